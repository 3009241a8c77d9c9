//! The switch itself, for x86_64 with the System V calling convention.

use super::SECRET_STACK_BYTES;
use std::arch::{asm, is_x86_feature_detected};
use std::ffi::c_void;
use std::ptr::NonNull;

const AVX: u64 = 1;
const AVX512: u64 = 2;

/// Calls `entry(task)` with the stack pointer at the top of `stack`, then wipes all of `stack` and every register that the
/// convention lets a callee leave things in.
///
/// # Safety
/// `stack` is the lowest address of [`SECRET_STACK_BYTES`] writable bytes, aligned to 16, used by nobody else; `entry` does
/// not unwind and may be called with `task`.
#[inline(never)]
pub(super) unsafe fn call_and_wipe(stack: NonNull<u8>, entry: extern "C" fn(*mut c_void), task: *mut c_void) {
    let vectors = vector_registers();
    // SAFETY: the caller's promise keeps the end inside one allocation.
    let top = unsafe { stack.as_ptr().add(SECRET_STACK_BYTES) };
    // SAFETY: r12 to r15 are the callee's to save, so they survive `entry`: the old stack pointer comes back from r12, the
    // other three are read after the call. The block is not `nostack`, so the compiler keeps nothing below the stack pointer.
    // Whatever a call may change is declared by clobber_abi; the callee-saved registers hold our caller's values, which
    // are no secrets. `rep stosb` writes exactly the stack; the direction flag is clear, as the convention demands.
    // AVX and AVX-512 instructions run only where the processor and the kernel have them.
    unsafe {
        asm!(
            "xchg rsp, r12",
            "call r13",
            "mov rsp, r12",
            // the stack
            "mov rdi, r14",
            "mov ecx, {stack_bytes}",
            "xor eax, eax",
            "rep stosb",
            // vector and mask registers
            "test r15d, {avx512}",
            "jz 2f",
            "vpxorq zmm16, zmm16, zmm16", "vpxorq zmm17, zmm17, zmm17", "vpxorq zmm18, zmm18, zmm18", "vpxorq zmm19, zmm19, zmm19",
            "vpxorq zmm20, zmm20, zmm20", "vpxorq zmm21, zmm21, zmm21", "vpxorq zmm22, zmm22, zmm22", "vpxorq zmm23, zmm23, zmm23",
            "vpxorq zmm24, zmm24, zmm24", "vpxorq zmm25, zmm25, zmm25", "vpxorq zmm26, zmm26, zmm26", "vpxorq zmm27, zmm27, zmm27",
            "vpxorq zmm28, zmm28, zmm28", "vpxorq zmm29, zmm29, zmm29", "vpxorq zmm30, zmm30, zmm30", "vpxorq zmm31, zmm31, zmm31",
            "kxorw k0, k0, k0", "kxorw k1, k1, k1", "kxorw k2, k2, k2", "kxorw k3, k3, k3",
            "kxorw k4, k4, k4", "kxorw k5, k5, k5", "kxorw k6, k6, k6", "kxorw k7, k7, k7",
            "2:",
            "test r15d, {avx}",
            "jz 3f",
            "vzeroall",
            "jmp 4f",
            "3:",
            "xorps xmm0, xmm0", "xorps xmm1, xmm1", "xorps xmm2, xmm2", "xorps xmm3, xmm3",
            "xorps xmm4, xmm4", "xorps xmm5, xmm5", "xorps xmm6, xmm6", "xorps xmm7, xmm7",
            "xorps xmm8, xmm8", "xorps xmm9, xmm9", "xorps xmm10, xmm10", "xorps xmm11, xmm11",
            "xorps xmm12, xmm12", "xorps xmm13, xmm13", "xorps xmm14, xmm14", "xorps xmm15, xmm15",
            "4:",
            // general registers; rax and rcx are zero by now
            "xor edx, edx", "xor esi, esi", "xor edi, edi",
            "xor r8d, r8d", "xor r9d, r9d", "xor r10d, r10d", "xor r11d, r11d",
            stack_bytes = const SECRET_STACK_BYTES,
            avx = const AVX,
            avx512 = const AVX512,
            inout("r12") top => _,
            inout("r13") entry => _,
            inout("r14") stack.as_ptr() => _,
            inout("r15") vectors => _,
            inout("rdi") task => _,
            clobber_abi("C"),
        );
    }
}

/// Which wide registers exist (asked from the processor once, then a load).
#[inline]
fn vector_registers() -> u64 {
    match (is_x86_feature_detected!("avx512f"), is_x86_feature_detected!("avx")) {
        (true, _) => AVX | AVX512,
        (false, true) => AVX,
        (false, false) => 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stack::pool;

    const PATTERN: u64 = 0x5ec2_e75e_c2e7_5ec2;

    /// Leaves PATTERN in registers of every kind and on the stack.
    extern "C" fn litter(_: *mut c_void) {
        let array = std::hint::black_box([PATTERN; 512]);
        assert_ne!(array[3], 0);
        // SAFETY: changes only registers that the convention leaves to the callee, all declared; wide ones only where they exist.
        unsafe {
            if is_x86_feature_detected!("avx512f") {
                asm!("vpbroadcastq zmm0, rax", "vpbroadcastq zmm15, rax", "vpbroadcastq zmm16, rax", "vpbroadcastq zmm31, rax",
                    "kmovw k3, eax", in("rax") PATTERN, clobber_abi("C"));
            }
            asm!("movq xmm1, rax", "movq xmm14, rax", "mov rcx, rax", "mov rdx, rax", "mov rsi, rax", "mov rdi, rax",
                "mov r8, rax", "mov r11, rax", in("rax") PATTERN, clobber_abi("C"));
        }
    }

    #[test]
    fn registers_and_stack_are_zero_afterwards() {
        let stack = pool::take().unwrap();
        let mut general = [1u64; 9];
        let mut low = [1u64; 32];
        // SAFETY: the stack is ours; `litter` ignores its argument and does not unwind. The second block only reads
        // registers and writes them into two arrays of sufficient size.
        unsafe {
            call_and_wipe(stack, litter, std::ptr::null_mut());
            asm!(
                "mov [r14], rax", "mov [r14+8], rcx", "mov [r14+16], rdx", "mov [r14+24], rsi", "mov [r14+32], rdi",
                "mov [r14+40], r8", "mov [r14+48], r9", "mov [r14+56], r10", "mov [r14+64], r11",
                "movups [r15], xmm0", "movups [r15+16], xmm1", "movups [r15+32], xmm14", "movups [r15+48], xmm15",
                in("r14") general.as_mut_ptr(), in("r15") low.as_mut_ptr(), clobber_abi("C"),
            );
            if is_x86_feature_detected!("avx512f") {
                asm!("vmovdqu64 [r15+64], zmm16", "vmovdqu64 [r15+128], zmm31", "kmovw eax, k3", "mov [r15+192], rax",
                    in("r15") low.as_mut_ptr(), out("rax") _);
            }
        }
        let clean = crate::arena::is_zero(stack, SECRET_STACK_BYTES);
        pool::give_back(stack);
        assert!(clean);
        // The compiler may have used some registers in between, for addresses; the pattern must be in none.
        assert!(!general.contains(&PATTERN), "{general:x?}");
        assert!(!low.contains(&PATTERN) && !low.contains(&(PATTERN & 0xffff)), "{low:x?}");
    }
}
