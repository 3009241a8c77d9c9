//! Attestation of devices' chips. Format pages: `docs/formats/attestation.md`, `docs/formats/peer.md`.
//!
//! | Part | Is |
//! |---|---|
//! | [`Roots`], [`challenge`] | the judge of a challenge: of a witness here, of an administrator in `mayfly device attest` |
//! | [`Chip`] | this device's own chip: shows its keys, answers challenges, quotes registers |
//! | [`Prover`] | proves this device to the witnesses that have not attested it |
//! | [`Attester`] | as a witness, challenges devices that ask for it, and posts what it saw |
//! | [`Watch`] | as a witness, judges what attested devices state on the ledger, and alerts |
//! | [`evidence`] | the pure judge of those statements |
//!
//! What must never happen here: a challenge that is judged twice; an answer to a challenge that is not for this device, this network and
//! this verifier; a word for a chip whose maker the operator does not trust, or that holds another identity key than the device's.

pub mod evidence;

mod attester;
mod chip;
mod prover;
mod watch;

pub use attester::Attester;
pub use chip::{Chip, ChipError, Shown};
pub use prover::Prover;
pub use watch::Watch;
#[cfg(test)]
pub(in crate::node) use watch::look;

use mayfly_attest::certificate::{CertificateError, Trust};
use mayfly_attest::evidence::Malformed;
use mayfly_attest::evidence::exchange::{DeviceKeys, Proof};
use mayfly_attest::evidence::pcr::Selection;
use mayfly_attest::judge;
use mayfly_crypto::sign::PublicKey;
use mayfly_protocol::DeviceId;
use mayfly_protocol::ids::Hash;
use mayfly_protocol::record::{self, NAME_BYTES_MAX, Registers};
use std::io::Read;
use std::path::Path;

/// Registers that are quoted where the vault's policy names none: firmware (0), option ROMs (2), boot loader (4), Secure Boot's state (7).
/// Those between hold settings and tables that change without anybody's doing (TCG PC Client Platform Firmware Profile, section 3.3.4).
pub const REGISTERS_DEFAULT: [u32; 4] = [0, 2, 4, 7];
/// Registers that any program may reset (TCG PC Client Platform TPM Profile, section 4.6): they say nothing of the machine.
const REGISTERS_RESETTABLE: [u32; 2] = [16, 23];
/// Largest bundle of makers' certificates, bytes.
const BUNDLE_BYTES_MAX: u64 = 4 << 20;

/// Whose chips are believed: the operator's bundle of makers' certificates.
#[derive(Debug)]
pub struct Roots {
    trust: Trust,
    danger_allow_software: bool,
}

/// Why makers' certificates cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum RootsError {
    /// The file.
    #[error("cannot be read")]
    Read(#[from] std::io::Error),
    /// What is in it.
    #[error(transparent)]
    Bundle(#[from] CertificateError),
}

impl Roots {
    /// From a bundle in PEM: makers' roots, and what stands between.
    ///
    /// # Errors
    /// [`RootsError`].
    pub fn read(path: &Path, danger_allow_software: bool) -> Result<Roots, RootsError> {
        let mut pem = Vec::new();
        std::fs::File::open(path)?.take(BUNDLE_BYTES_MAX).read_to_end(&mut pem)?;
        Ok(Roots { trust: Trust::from_bundle(&pem)?, danger_allow_software })
    }
}

/// Why a chip is not believed.
#[derive(Debug, thiserror::Error)]
pub enum NotBelieved {
    /// A message that is none.
    #[error("message of the chip")]
    Malformed(#[from] Malformed),
    /// The chip shows another key than the device's.
    #[error("the chip does not hold the device's identity key")]
    Identity,
    /// No register, or one that says nothing.
    #[error("registers to quote are one or more of 0 to 15 and 17 to 22; 16 and 23 can be reset by any program")]
    Registers,
    /// The certificate or the proof.
    #[error(transparent)]
    Refused(#[from] judge::Refused),
}

/// A challenge that was made; it is judged once.
#[derive(Debug)]
pub struct Challenged {
    pending: judge::Pending,
    device: DeviceId,
    registers: u32,
}

/// Makes a challenge for the chip that shows `keys` (message `MTK1`) as that of `device`; the message for it (`MTC1`). `context` is that of
/// [`mayfly_protocol::attested::enrolment_context`].
///
/// # Errors
/// [`NotBelieved`].
pub fn challenge(
    roots: &Roots,
    (device, identity): (DeviceId, &PublicKey),
    keys: &[u8],
    registers: u32,
    context: [u8; 32],
    now_ms: u64,
) -> Result<(Challenged, Vec<u8>), NotBelieved> {
    let keys = DeviceKeys::decode(keys)?;
    let shown = (keys.identity.x, keys.identity.y);
    if identity.coordinates() != Some(shown) {
        return Err(NotBelieved::Identity);
    }
    let selection = selection(registers).filter(|s| says_something(*s)).ok_or(NotBelieved::Registers)?;
    let software = roots.danger_allow_software;
    let (pending, challenge) = judge::challenge(&roots.trust, &keys, context, selection, now_ms, software)?;
    Ok((Challenged { pending, device, registers }, challenge.encode()))
}

impl Challenged {
    /// Judges the answer (message `MTP1`): the statement for the ledger.
    ///
    /// # Errors
    /// [`NotBelieved`]. The challenge is used up either way.
    pub fn judge(self, proof: &[u8], now_ms: u64) -> Result<record::Attest, NotBelieved> {
        let verdict = self.pending.judge(&Proof::decode(proof)?, now_ms)?;
        let (enrolled, endorsed) = (verdict.enrolled, verdict.endorsed);
        let quote = verdict.quote.ok_or(judge::Refused::Quote)?;
        let mut attestation = [0; 64];
        attestation[..32].copy_from_slice(&enrolled.attestation.x);
        attestation[32..].copy_from_slice(&enrolled.attestation.y);
        Ok(record::Attest {
            device: self.device,
            chip: record::Chip {
                attestation,
                storage_root: enrolled.storage_root,
                counter: enrolled.counter,
                counter_base: enrolled.counter_base,
                certificate: Hash(endorsed.fingerprint),
            },
            maker: cut(format!("{} {}", endorsed.maker, endorsed.model), 2 * NAME_BYTES_MAX),
            software: endorsed.software,
            generation: verdict.generation,
            registers: Registers { selected: self.registers, digest: Hash(quote.digest) },
            secret: verdict.secret,
            proof: proof.to_vec(),
        })
    }
}

/// The registers of a bit map, as records have it.
fn selection(registers: u32) -> Option<Selection> {
    match registers.to_le_bytes() {
        [low, middle, high, 0] => Some(Selection::from_bitmap([low, middle, high])).filter(|s| !s.is_empty()),
        _ => None,
    }
}

/// The bit map of registers.
fn bits(selection: Selection) -> u32 {
    let [low, middle, high] = selection.bitmap();
    u32::from_le_bytes([low, middle, high, 0])
}

fn says_something(selection: Selection) -> bool {
    selection.numbers().all(|n| !REGISTERS_RESETTABLE.contains(&n))
}

/// The longest start of a text that has at most `bytes_max` bytes.
fn cut(mut text: String, bytes_max: usize) -> String {
    while text.len() > bytes_max {
        text.pop();
    }
    text
}
