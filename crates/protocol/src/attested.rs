//! What the statements of a device's chip are bound to, so that none can stand in for another, and who believes a device.
//!
//! The statements themselves are judged by `mayfly-attest`; here is what goes into their `extraData`.

use crate::head::Head;
use crate::ids::{AuthorId, DeviceId, NetworkId};
use mayfly_crypto::enc;
use mayfly_crypto::sign::PublicKey;

/// Whose word there is that a device is a genuine chip.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Attested {
    /// Nobody's that counts.
    No,
    /// So many administrators', enough to approve a device.
    ByAdministrators(usize),
    /// So many witnesses', a quorum.
    ByWitnesses(usize),
}

/// Context of the challenge that `verifier` (a witness's device id, or an administrator's id) makes for a device.
pub fn enrolment_context(network: &NetworkId, device: &DeviceId, verifier: &AuthorId) -> [u8; 32] {
    enc::hash("mayfly/v1/attest-enrolment", &[network.as_bytes(), device.as_bytes(), verifier.as_bytes()])
}

/// Context of the counter certified after a revocation.
pub fn counter_context(network: &NetworkId, device: &DeviceId, generation: u64) -> [u8; 32] {
    enc::hash("mayfly/v1/attest-counter", &[network.as_bytes(), device.as_bytes(), &generation.to_be_bytes()])
}

/// Context of the quote with a delegation. The head makes it fresh: whoever has a machine for a day cannot have quotes made for the days after.
pub fn quote_context(
    network: &NetworkId,
    device: &DeviceId,
    session: &PublicKey,
    start_counter: u64,
    head: &Head,
) -> [u8; 32] {
    enc::hash(
        "mayfly/v1/attest-quote",
        &[
            network.as_bytes(),
            device.as_bytes(),
            &[session.alg() as u8],
            session.bytes(),
            &start_counter.to_be_bytes(),
            &head.size.to_be_bytes(),
            &head.root.0,
        ],
    )
}
