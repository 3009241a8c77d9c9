//! The way to the chip: libtss2's TCTI loader, and commands past ESYS for what it cannot express.

use super::rc::{self, TpmError};
use mayfly_evidence::marshal::{Reader, Writer};
use std::ffi::CString;
use std::ptr::{NonNull, null_mut};
use tss_esapi_sys as sys;

const ST_NO_SESSIONS: u16 = 0x8001;
const CC_GET_CAPABILITY: u32 = 0x017a;
const CC_FLUSH_CONTEXT: u32 = 0x0165;
const CAP_HANDLES: u32 = 1;
/// Where the handles of each kind begin: transient objects, loaded HMAC sessions, loaded policy sessions.
const STRAY_KINDS: [u32; 2] = [0x8000_0000, 0x0200_0000];
/// No chip has more slots of a kind.
const STRAYS_MAX: u32 = 64;
/// Largest answer of a TPM.
const ANSWER_BYTES_MAX: usize = 4096;

/// Whether something between us and the chip keeps programs apart: the kernel's or tabrmd's resource manager. Without
/// one the chip's few slots are shared by all, and what a killed process leaves stays.
pub(crate) fn has_resource_manager(tcti: &str) -> bool {
    tcti.starts_with("tabrmd") || tcti.starts_with("device:/dev/tpmrm")
}

/// An open TCTI.
pub(super) struct Tcti(NonNull<sys::TSS2_TCTI_CONTEXT>);

impl Tcti {
    pub(super) fn open(configuration: &CString) -> Result<Tcti, TpmError> {
        let mut context = null_mut();
        // SAFETY: a terminated string that lives through the call, and a fresh output.
        let rc = unsafe { sys::Tss2_TctiLdr_Initialize(configuration.as_ptr(), &raw mut context) };
        rc::check("Tss2_TctiLdr_Initialize", rc)?;
        NonNull::new(context).map(Tcti).ok_or_else(|| TpmError::local("Tss2_TctiLdr_Initialize", "gave nothing"))
    }

    pub(super) fn raw(&self) -> *mut sys::TSS2_TCTI_CONTEXT {
        self.0.as_ptr()
    }

    /// One command past ESYS; the answer's parameters.
    fn command(&self, code: u32, parameters: &[u8]) -> Result<Vec<u8>, TpmError> {
        const CALL: &str = "a plain command";
        let length = 10 + parameters.len();
        let command = Writer::new().u16(ST_NO_SESSIONS).u32(length as u32).u32(code).raw(parameters).finish();
        let table = self.0.as_ptr().cast::<sys::TSS2_TCTI_CONTEXT_COMMON_V1>();
        // SAFETY: every TCTI context begins with this table of functions (TCG TSS 2.0 TCTI, 3.2).
        let (transmit, receive) = unsafe { ((*table).transmit, (*table).receive) };
        let (Some(transmit), Some(receive)) = (transmit, receive) else {
            return Err(TpmError::local(CALL, "a TCTI without its functions"));
        };
        // SAFETY: the context is live; `command` is readable for its length.
        rc::check(CALL, unsafe { transmit(self.raw(), command.len() as sys::size_t, command.as_ptr()) })?;
        let mut answer = vec![0u8; ANSWER_BYTES_MAX];
        let mut size = answer.len() as sys::size_t;
        // SAFETY: the context is live; `answer` is writable for `size` bytes.
        let rc = unsafe { receive(self.raw(), &raw mut size, answer.as_mut_ptr(), sys::TSS2_TCTI_TIMEOUT_BLOCK) };
        rc::check(CALL, rc)?;
        answer.truncate(size as usize);
        let mut reader = Reader::new(&answer);
        let head = reader.u16().and(reader.u32()).and(reader.u32());
        let code = head.map_err(|_| TpmError::local(CALL, "an answer without a head"))?;
        rc::check(CALL, code)?;
        Ok(answer.split_off(10))
    }

    /// Flushes every object and session that is loaded. Only where no resource manager stands between and the chip is
    /// ours alone: what a killed process left would block it (three slots).
    fn flush_strays(&self) -> Result<usize, TpmError> {
        let mut flushed = 0;
        for first in STRAY_KINDS {
            let ask = Writer::new().u32(CAP_HANDLES).u32(first).u32(STRAYS_MAX).finish();
            let answer = self.command(CC_GET_CAPABILITY, &ask)?;
            for handle in handles(&answer).ok_or_else(|| TpmError::local("a plain command", "a list cut short"))? {
                self.command(CC_FLUSH_CONTEXT, &handle.to_be_bytes())?;
                flushed += 1;
            }
        }
        Ok(flushed)
    }
}

/// The list in an answer to GetCapability(handles): more-data flag, capability, count, handles.
fn handles(answer: &[u8]) -> Option<Vec<u32>> {
    let mut reader = Reader::new(answer);
    reader.u8().and(reader.u32()).ok()?;
    let count = reader.u32().ok().filter(|count| *count <= STRAYS_MAX)?;
    (0..count).map(|_| reader.u32().ok()).collect()
}

impl super::Tpm {
    /// [`Tcti::flush_strays`]; gives their number.
    pub(crate) fn flush_strays(&self) -> Result<usize, TpmError> {
        self.tcti.flush_strays()
    }
}

impl Drop for Tcti {
    fn drop(&mut self) {
        let mut context = self.raw();
        // SAFETY: live, and nothing uses it any more: the ESYS context is finalized before.
        unsafe { sys::Tss2_TctiLdr_Finalize(&raw mut context) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn resource_managers() {
        for (tcti, expected) in [
            ("tabrmd", true),
            ("tabrmd:bus_type=session", true),
            ("device:/dev/tpmrm0", true),
            ("device:/dev/tpm0", false),
            ("swtpm:path=/run/swtpm", false),
        ] {
            assert_eq!(has_resource_manager(tcti), expected, "{tcti}");
        }
    }

    #[test]
    fn lists_of_handles() {
        let list = Writer::new().u8(0).u32(1).u32(2).u32(7).u32(8).finish();
        assert_eq!(handles(&list), Some(vec![7, 8]));
        assert_eq!(handles(&list[..list.len() - 1]), None);
        assert_eq!(handles(&Writer::new().u8(0).u32(1).u32(STRAYS_MAX + 1).finish()), None);
    }
}
