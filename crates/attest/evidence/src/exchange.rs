//! The messages between a device and a verifier. `docs/formats/attestation.md` is their page.
//!
//! Each is a fixed list of fields behind four bytes that name it and its version. A device answers the calls `attest`
//! of the plugin interface with them, a verifier makes and checks them in `mayfly-attest`; the ledger may keep them.

use crate::hash;
use crate::marshal::{Malformed, Reader, Writer};
use crate::object::{PUBLIC_BYTES_MAX, Point};
use crate::pcr::Selection;
use crate::statement::STATEMENT_BYTES_MAX;

/// `attest` step: nothing in, [`DeviceKeys`] out.
pub const STEP_KEYS: u32 = 1;
/// `attest` step: [`Challenge`] in, [`Proof`] out.
pub const STEP_PROVE: u32 = 2;
/// `attest` step: 32 bytes of context in, [`Signed`] out: the counter.
pub const STEP_COUNTER: u32 = 3;
/// `attest` step: [`QuoteRequest`] in, [`Signed`] out.
pub const STEP_QUOTE: u32 = 4;

/// Most certificates of endorsement keys in a message.
pub const CERTIFICATES_MAX: usize = 5;
/// Longest certificate.
pub const CERTIFICATE_BYTES_MAX: usize = 4096;
/// Longest credential blob (TPMS_ID_OBJECT with a 32-byte secret and SHA-384 is 84).
pub const CREDENTIAL_BYTES_MAX: usize = 132;
/// Longest encrypted seed: an RSA-4096 ciphertext.
pub const SEED_BYTES_MAX: usize = 512;
/// Bytes of a signature: r || s, big-endian, low s.
pub const SIGNATURE_BYTES: usize = 64;
/// Bytes of what a statement is bound to.
pub const CONTEXT_BYTES: usize = 32;

const MAGIC_KEYS: [u8; 4] = *b"MTK1";
const MAGIC_CHALLENGE: [u8; 4] = *b"MTC1";
const MAGIC_PROOF: [u8; 4] = *b"MTP1";
const MAGIC_SIGNED: [u8; 4] = *b"MTS1";
const MAGIC_QUOTE: [u8; 4] = *b"MTQ1";

/// What statements are bound to by their `extraData`. One label each, so that none can stand in for another.
pub mod bind {
    use super::hash;

    /// Statements of an enrolment: nobody could make them before the credential was opened.
    #[must_use]
    pub fn enrolment(secret: &[u8; 32], context: &[u8; 32]) -> [u8; 32] {
        hash("mayfly/v1/tpm-enrolment", &[secret, context])
    }

    /// A counter certified later.
    #[must_use]
    pub fn counter(context: &[u8; 32]) -> [u8; 32] {
        hash("mayfly/v1/tpm-counter", &[context])
    }

    /// A quote made later.
    #[must_use]
    pub fn quote(context: &[u8; 32]) -> [u8; 32] {
        hash("mayfly/v1/tpm-quote", &[context])
    }
}

/// What a device says of itself before anything is proven.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeviceKeys {
    /// Made with the vault; approvals of registers name it.
    pub vault_id: [u8; 16],
    /// Certificates of endorsement keys (DER), by their NV index.
    pub certificates: Vec<(u32, Vec<u8>)>,
    /// The key that signs statements.
    pub attestation: Point,
    /// The key that signs for the device.
    pub identity: Point,
    /// Public area of the storage root key.
    pub storage_root: Vec<u8>,
    /// NV index of the counter.
    pub counter: u32,
    /// What the counter held when the vault was made: generation 0.
    pub counter_base: u64,
}

impl DeviceKeys {
    /// The bytes of the message.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Writer::new().raw(&MAGIC_KEYS).raw(&self.vault_id).u8(self.certificates.len() as u8);
        for (index, der) in &self.certificates {
            out = out.u32(*index).sized(der);
        }
        point_out(point_out(out, &self.attestation), &self.identity)
            .sized(&self.storage_root)
            .u32(self.counter)
            .u64(self.counter_base)
            .finish()
    }

    /// Reads the message.
    ///
    /// # Errors
    /// Other bytes than [`DeviceKeys::encode`] gives.
    pub fn decode(bytes: &[u8]) -> Result<DeviceKeys, Malformed> {
        let mut reader = start(bytes, MAGIC_KEYS)?;
        let vault_id = reader.array()?;
        let count = usize::from(reader.u8()?);
        if count > CERTIFICATES_MAX {
            return Err(Malformed("too many certificates"));
        }
        let mut certificates = Vec::with_capacity(count);
        for _ in 0..count {
            certificates.push((reader.u32()?, reader.sized(CERTIFICATE_BYTES_MAX)?.to_vec()));
        }
        let keys = DeviceKeys {
            vault_id,
            certificates,
            attestation: point(&mut reader)?,
            identity: point(&mut reader)?,
            storage_root: reader.sized(PUBLIC_BYTES_MAX)?.to_vec(),
            counter: reader.u32()?,
            counter_base: reader.u64()?,
        };
        reader.finish()?;
        Ok(keys)
    }
}

/// What a verifier asks of a device: to open a credential, and to make statements bound to what is in it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Challenge {
    /// NV index of the certificate to whose key the credential is encrypted.
    pub certificate: u32,
    /// TPM2B_ID_OBJECT without its length.
    pub credential: Vec<u8>,
    /// TPM2B_ENCRYPTED_SECRET without its length.
    pub seed: Vec<u8>,
    /// What the exchange is about: a hash of network, device and verifier.
    pub context: [u8; CONTEXT_BYTES],
    /// Registers to quote; none: no quote.
    pub pcrs: Selection,
}

impl Challenge {
    /// The bytes of the message.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let out = Writer::new().raw(&MAGIC_CHALLENGE).u32(self.certificate).sized(&self.credential);
        out.sized(&self.seed).raw(&self.context).raw(&self.pcrs.bitmap()).finish()
    }

    /// Reads the message.
    ///
    /// # Errors
    /// Other bytes than [`Challenge::encode`] gives.
    pub fn decode(bytes: &[u8]) -> Result<Challenge, Malformed> {
        let mut reader = start(bytes, MAGIC_CHALLENGE)?;
        let challenge = Challenge {
            certificate: reader.u32()?,
            credential: reader.sized(CREDENTIAL_BYTES_MAX)?.to_vec(),
            seed: reader.sized(SEED_BYTES_MAX)?.to_vec(),
            context: reader.array()?,
            pcrs: Selection::from_bitmap(reader.array()?),
        };
        reader.finish()?;
        Ok(challenge)
    }
}

/// A statement of a TPM with its signature.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Signed {
    /// TPMS_ATTEST exactly as it was signed.
    pub statement: Vec<u8>,
    /// ECDSA P-256 with SHA-256: r || s, low s.
    pub signature: [u8; SIGNATURE_BYTES],
}

impl Signed {
    /// The bytes of the message.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        self.put(Writer::new().raw(&MAGIC_SIGNED)).finish()
    }

    /// Reads the message.
    ///
    /// # Errors
    /// Other bytes than [`Signed::encode`] gives.
    pub fn decode(bytes: &[u8]) -> Result<Signed, Malformed> {
        let mut reader = start(bytes, MAGIC_SIGNED)?;
        let signed = Signed::get(&mut reader)?;
        reader.finish()?;
        Ok(signed)
    }

    fn put(&self, out: Writer) -> Writer {
        out.sized(&self.statement).raw(&self.signature)
    }

    fn get(reader: &mut Reader<'_>) -> Result<Signed, Malformed> {
        Ok(Signed { statement: reader.sized(STATEMENT_BYTES_MAX)?.to_vec(), signature: reader.array()? })
    }
}

/// Answer to a [`Challenge`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Proof {
    /// The identity key is in this TPM.
    pub identity: Signed,
    /// The storage root key is in this TPM.
    pub storage_root: Signed,
    /// The counter, with its value.
    pub counter: Signed,
    /// The registers, where the challenge selected any.
    pub quote: Option<Signed>,
}

impl Proof {
    /// The bytes of the message.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let out = self.identity.put(Writer::new().raw(&MAGIC_PROOF));
        let out = self.counter.put(self.storage_root.put(out));
        match &self.quote {
            Some(quote) => quote.put(out.u8(1)),
            None => out.u8(0),
        }
        .finish()
    }

    /// Reads the message.
    ///
    /// # Errors
    /// Other bytes than [`Proof::encode`] gives.
    pub fn decode(bytes: &[u8]) -> Result<Proof, Malformed> {
        let mut reader = start(bytes, MAGIC_PROOF)?;
        let (identity, storage_root) = (Signed::get(&mut reader)?, Signed::get(&mut reader)?);
        let counter = Signed::get(&mut reader)?;
        let quote = match reader.u8()? {
            0 => None,
            1 => Some(Signed::get(&mut reader)?),
            _ => return Err(Malformed("neither with nor without a quote")),
        };
        reader.finish()?;
        Ok(Proof { identity, storage_root, counter, quote })
    }
}

/// A quote asked for later, for instance with each delegation of a session key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct QuoteRequest {
    /// What the quote is about: a hash with the verifier's nonce in it.
    pub context: [u8; CONTEXT_BYTES],
    /// Which registers.
    pub pcrs: Selection,
}

impl QuoteRequest {
    /// The bytes of the message.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        Writer::new().raw(&MAGIC_QUOTE).raw(&self.context).raw(&self.pcrs.bitmap()).finish()
    }

    /// Reads the message.
    ///
    /// # Errors
    /// Other bytes than [`QuoteRequest::encode`] gives.
    pub fn decode(bytes: &[u8]) -> Result<QuoteRequest, Malformed> {
        let mut reader = start(bytes, MAGIC_QUOTE)?;
        let request = QuoteRequest { context: reader.array()?, pcrs: Selection::from_bitmap(reader.array()?) };
        reader.finish()?;
        Ok(request)
    }
}

fn start(bytes: &[u8], magic: [u8; 4]) -> Result<Reader<'_>, Malformed> {
    let mut reader = Reader::new(bytes);
    if reader.array()? == magic { Ok(reader) } else { Err(Malformed("another message, or of another version")) }
}

fn point_out(out: Writer, point: &Point) -> Writer {
    out.raw(&point.x).raw(&point.y)
}

fn point(reader: &mut Reader<'_>) -> Result<Point, Malformed> {
    Ok(Point { x: reader.array()?, y: reader.array()? })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn signed(fill: u8) -> Signed {
        Signed { statement: vec![fill; 100], signature: [fill; 64] }
    }

    fn round<T: PartialEq + std::fmt::Debug>(
        value: &T,
        encode: impl Fn(&T) -> Vec<u8>,
        decode: impl Fn(&[u8]) -> Result<T, Malformed>,
    ) {
        let bytes = encode(value);
        assert_eq!(decode(&bytes).as_ref(), Ok(value));
        for cut in 0..bytes.len() {
            assert!(decode(&bytes[..cut]).is_err(), "cut at {cut}");
        }
        assert!(decode(&[bytes.as_slice(), &[0]].concat()).is_err(), "bytes after the end");
        let mut other = bytes;
        other[3] = b'2';
        assert!(decode(&other).is_err(), "another version");
    }

    #[test]
    fn messages() {
        let point = Point { x: [1; 32], y: [2; 32] };
        let keys = DeviceKeys {
            vault_id: [3; 16],
            certificates: vec![(0x01c0_0002, vec![4; 900]), (0x01c0_0016, vec![5; 800])],
            attestation: point,
            identity: Point { x: [9; 32], ..point },
            storage_root: vec![6; 90],
            counter: 0x0180_4d00,
            counter_base: 7,
        };
        round(&keys, DeviceKeys::encode, DeviceKeys::decode);
        let pcrs = Selection::of(&[0, 7]).unwrap();
        let challenge =
            Challenge { certificate: 0x01c0_0002, credential: vec![1; 68], seed: vec![2; 256], context: [3; 32], pcrs };
        round(&challenge, Challenge::encode, Challenge::decode);
        for quote in [None, Some(signed(4))] {
            let proof = Proof { identity: signed(1), storage_root: signed(2), counter: signed(3), quote };
            round(&proof, Proof::encode, Proof::decode);
        }
        round(&signed(1), Signed::encode, Signed::decode);
        round(&QuoteRequest { context: [1; 32], pcrs }, QuoteRequest::encode, QuoteRequest::decode);
    }

    #[test]
    fn limits() {
        let keys = Writer::new().raw(&MAGIC_KEYS).raw(&[0; 16]).u8(CERTIFICATES_MAX as u8 + 1).raw(&[0; 4096]).finish();
        assert_eq!(DeviceKeys::decode(&keys), Err(Malformed("too many certificates")));
        let long = Writer::new().raw(&MAGIC_SIGNED).sized(&vec![0; STATEMENT_BYTES_MAX + 1]).raw(&[0; 64]).finish();
        assert!(Signed::decode(&long).is_err());
    }

    #[test]
    fn bindings_differ() {
        let context = [1; 32];
        let all = [
            bind::counter(&context),
            bind::quote(&context),
            bind::enrolment(&[2; 32], &context),
            bind::enrolment(&[3; 32], &context),
        ];
        for (index, one) in all.iter().enumerate() {
            assert!(!all[index + 1..].contains(one));
        }
    }
}
