//! The mechanisms that this module understands: what parameters they take, which keys fit, how long their
//! output is, and how they are put to the agent.
//!
//! What a token offers is the part of this table that its agent offers too, so that the list is always
//! truthful. To add a mechanism, add a row; a new kind of parameters also needs a reader in `ffi/parameters.rs`.

use cryptoki_sys::*;
use mayfly_wire::{DecodeError, Kind, Mechanism, Parameters, codec};

use crate::digest::Hash;
use crate::object::Object;
use crate::rv::{Outcome, Rv, ensure, fail};

/// Form of a mechanism's parameters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shape {
    /// pParameter is NULL, ulParameterLen 0.
    None,
    /// As many bytes of IV.
    Iv(usize),
    /// CK_AES_CTR_PARAMS.
    Ctr,
    /// CK_GCM_PARAMS.
    Gcm,
    /// CK_MAC_GENERAL_PARAMS.
    MacLength,
}

/// How an operation in parts is done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Parts {
    /// Collected in the module while small, then in the agent: nothing comes out before the end.
    Collect,
    /// In the agent from the first part on: output comes with each part.
    Stream,
    /// Encryption as `Stream`; decryption collected whole, since nothing may come out before the tag is
    /// checked.
    StreamSealed,
}

/// How long the output is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Length {
    /// No output, or none that this table knows of (key generation).
    None,
    /// As long as the input, which is a multiple of this many bytes.
    Same(usize),
    /// The input padded to a multiple of this many bytes.
    Padded(usize),
    /// The input and the tag that the parameters name.
    Sealed,
    /// A signature or MAC of this many bytes.
    Fixed(usize),
    /// A MAC of as many bytes as the parameters say, up to this.
    Chosen(usize),
    /// Two coordinates of the key's curve.
    TwoCoordinates,
}

/// One mechanism.
#[derive(Debug)]
pub struct Spec {
    /// CK_MECHANISM_TYPE.
    pub code: u64,
    /// What the agent is asked for: differs where the module hashes.
    pub sent_as: u64,
    /// The hash that the module makes of the data first.
    pub hash: Option<Hash>,
    /// Its parameters.
    pub shape: Shape,
    /// CKK_… of keys that fit; empty for key generation.
    pub keys: &'static [u64],
    /// In parts.
    pub parts: Parts,
    /// Length of the output.
    pub length: Length,
}

const AES: &[u64] = &[CKK_AES];
const EC: &[u64] = &[CKK_EC];
const BLOCK: usize = 16;

const fn row(code: u64, shape: Shape, keys: &'static [u64], parts: Parts, length: Length) -> Spec {
    Spec { code, sent_as: code, hash: None, shape, keys, parts, length }
}

const fn generation(code: u64) -> Spec {
    row(code, Shape::None, &[], Parts::Collect, Length::None)
}

const fn hmac(code: u64, keys: &'static [u64], bytes: usize) -> Spec {
    row(code, Shape::None, keys, Parts::Collect, Length::Fixed(bytes))
}

const fn hmac_general(code: u64, keys: &'static [u64], bytes: usize) -> Spec {
    row(code, Shape::MacLength, keys, Parts::Collect, Length::Chosen(bytes))
}

const fn ecdsa(code: u64, hash: Option<Hash>) -> Spec {
    let plain = row(code, Shape::None, EC, Parts::Collect, Length::TwoCoordinates);
    Spec { sent_as: CKM_ECDSA, hash, ..plain }
}

/// Every mechanism with a key, by code.
pub static TABLE: &[Spec] = &[
    generation(CKM_AES_KEY_GEN),
    generation(CKM_GENERIC_SECRET_KEY_GEN),
    generation(CKM_EC_KEY_PAIR_GEN),
    row(CKM_AES_ECB, Shape::None, AES, Parts::Stream, Length::Same(BLOCK)),
    row(CKM_AES_CBC, Shape::Iv(BLOCK), AES, Parts::Stream, Length::Same(BLOCK)),
    row(CKM_AES_CBC_PAD, Shape::Iv(BLOCK), AES, Parts::Stream, Length::Padded(BLOCK)),
    row(CKM_AES_CTR, Shape::Ctr, AES, Parts::Stream, Length::Same(1)),
    row(CKM_AES_GCM, Shape::Gcm, AES, Parts::StreamSealed, Length::Sealed),
    row(CKM_AES_CMAC, Shape::None, AES, Parts::Collect, Length::Fixed(BLOCK)),
    hmac(CKM_SHA_1_HMAC, &[CKK_GENERIC_SECRET, CKK_SHA_1_HMAC], 20),
    hmac(CKM_SHA224_HMAC, &[CKK_GENERIC_SECRET, CKK_SHA224_HMAC], 28),
    hmac(CKM_SHA256_HMAC, &[CKK_GENERIC_SECRET, CKK_SHA256_HMAC], 32),
    hmac(CKM_SHA384_HMAC, &[CKK_GENERIC_SECRET, CKK_SHA384_HMAC], 48),
    hmac(CKM_SHA512_HMAC, &[CKK_GENERIC_SECRET, CKK_SHA512_HMAC], 64),
    hmac_general(CKM_SHA_1_HMAC_GENERAL, &[CKK_GENERIC_SECRET, CKK_SHA_1_HMAC], 20),
    hmac_general(CKM_SHA224_HMAC_GENERAL, &[CKK_GENERIC_SECRET, CKK_SHA224_HMAC], 28),
    hmac_general(CKM_SHA256_HMAC_GENERAL, &[CKK_GENERIC_SECRET, CKK_SHA256_HMAC], 32),
    hmac_general(CKM_SHA384_HMAC_GENERAL, &[CKK_GENERIC_SECRET, CKK_SHA384_HMAC], 48),
    hmac_general(CKM_SHA512_HMAC_GENERAL, &[CKK_GENERIC_SECRET, CKK_SHA512_HMAC], 64),
    ecdsa(CKM_ECDSA, None),
    ecdsa(CKM_ECDSA_SHA1, Some(Hash::Sha1)),
    ecdsa(CKM_ECDSA_SHA224, Some(Hash::Sha224)),
    ecdsa(CKM_ECDSA_SHA256, Some(Hash::Sha256)),
    ecdsa(CKM_ECDSA_SHA384, Some(Hash::Sha384)),
    ecdsa(CKM_ECDSA_SHA512, Some(Hash::Sha512)),
];

/// The row of a mechanism.
pub fn find(code: u64) -> Outcome<&'static Spec> {
    TABLE.iter().find(|spec| spec.code == code).ok_or(Rv(CKR_MECHANISM_INVALID))
}

/// A mechanism with its parameters, kept from …Init to the operation: their wire form.
#[derive(Clone, Debug)]
pub struct Stored(Vec<u8>);

impl Stored {
    /// Keeps a copy.
    pub fn new(mechanism: &Mechanism<'_>) -> Self {
        use codec::Field;
        let mut count = codec::Writer::new(&mut []);
        mechanism.write(&mut count);
        let mut encoded = vec![0; count.used()];
        mechanism.write(&mut codec::Writer::new(&mut encoded));
        Self(encoded)
    }

    /// The mechanism.
    pub fn get(&self) -> Outcome<Mechanism<'_>> {
        use codec::Field;
        Mechanism::read(&mut codec::Reader::new(&self.0)).map_err(|_: DecodeError| Rv(CKR_GENERAL_ERROR))
    }
}

impl Spec {
    /// Checks what the parameters say, beyond their form.
    pub fn check(&self, parameters: &Parameters<'_>) -> Outcome {
        let is_right = match (self.length, parameters) {
            (Length::Sealed, Parameters::Gcm(gcm)) => {
                matches!(gcm.tag_bits, 32 | 64 | 96 | 104 | 112 | 120 | 128) && !gcm.iv.is_empty()
            }
            (Length::Same(1), Parameters::Ctr(ctr)) => (1..=128).contains(&ctr.counter_bits),
            (Length::Chosen(most), Parameters::MacLength(length)) => (1..=most as u64).contains(length),
            _ => true,
        };
        ensure(is_right, CKR_MECHANISM_PARAM_INVALID)
    }

    /// Checks that a key is of the right class and type and may do this.
    pub fn check_key(&self, kind: Kind, key: &Object) -> Outcome {
        let class = key.class.ok_or(Rv(CKR_KEY_HANDLE_INVALID))?;
        let is_key = matches!(class, CKO_SECRET_KEY | CKO_PRIVATE_KEY | CKO_PUBLIC_KEY);
        ensure(is_key, CKR_KEY_HANDLE_INVALID)?;
        let is_type = key.key_type.is_some_and(|key_type| self.keys.contains(&key_type));
        let is_class = match class {
            CKO_PUBLIC_KEY => matches!(kind, Kind::Encrypt | Kind::Verify | Kind::VerifyRecover),
            CKO_PRIVATE_KEY => matches!(kind, Kind::Decrypt | Kind::Sign | Kind::SignRecover),
            _ => true,
        };
        ensure(is_type && is_class, CKR_KEY_TYPE_INCONSISTENT)?;
        ensure(key.is(usage_attribute(kind)), CKR_KEY_FUNCTION_NOT_PERMITTED)?;
        let allowed = key.value(CKA_ALLOWED_MECHANISMS).unwrap_or_default();
        let is_allowed = allowed.is_empty() || allowed.chunks(8).any(|code| *code == self.code.to_le_bytes());
        ensure(is_allowed, CKR_MECHANISM_INVALID)
    }

    /// Length of a signature or MAC; `None` where the mechanism makes none.
    pub fn signature_bytes(&self, parameters: &Parameters<'_>, key: &Object) -> Outcome<Option<usize>> {
        match (self.length, parameters) {
            (Length::Fixed(bytes), _) => Ok(Some(bytes)),
            (Length::Chosen(_), Parameters::MacLength(bytes)) => Ok(usize::try_from(*bytes).ok()),
            (Length::TwoCoordinates, _) => match key.coordinate_bytes() {
                Some(bytes) => Ok(Some(2 * bytes)),
                None => fail(CKR_KEY_TYPE_INCONSISTENT),
            },
            _ => Ok(None),
        }
    }

    /// Length of what a whole encryption or decryption gives: exact, except that a padded decryption gives
    /// at least one byte less. Errors are those of a wrong input length.
    pub fn output_bytes(&self, kind: Kind, parameters: &Parameters<'_>, input: usize) -> Outcome<usize> {
        let range = if kind == Kind::Decrypt { CKR_ENCRYPTED_DATA_LEN_RANGE } else { CKR_DATA_LEN_RANGE };
        let tag = match parameters {
            Parameters::Gcm(gcm) => gcm.tag_bits as usize / 8,
            _ => 0,
        };
        let length = match (self.length, kind) {
            (Length::Same(block), _) => Some(input).filter(|input| input.is_multiple_of(block)),
            (Length::Padded(block), Kind::Decrypt) => {
                Some(input).filter(|input| *input > 0 && input.is_multiple_of(block))
            }
            (Length::Padded(block), _) => (input / block + 1).checked_mul(block),
            (Length::Sealed, Kind::Decrypt) => input.checked_sub(tag),
            (Length::Sealed, _) => input.checked_add(tag),
            _ => return fail(CKR_MECHANISM_INVALID),
        };
        length.ok_or(Rv(range))
    }

    /// Most bytes that come out of a part in the agent, `pending` bytes having gone in and not come out:
    /// exact for an agent that gives what it can.
    pub fn part_bytes(&self, kind: Kind, pending: usize, input: usize) -> usize {
        let total = pending.saturating_add(input);
        match (self.length, kind) {
            (Length::Same(block), _) => total / block * block,
            // The last block may be padding, so it is kept back.
            (Length::Padded(block), Kind::Decrypt) => total.saturating_sub(1) / block * block,
            (Length::Padded(block), _) => total / block * block,
            (Length::Sealed, _) => total,
            _ => 0,
        }
    }

    /// Most bytes that come out at the end, `pending` bytes having gone in and not come out.
    pub fn last_bytes(&self, kind: Kind, parameters: &Parameters<'_>, pending: usize) -> Outcome<usize> {
        match (self.length, kind) {
            (Length::Sealed | Length::Padded(_) | Length::Same(_), _) => self.output_bytes(kind, parameters, pending),
            _ => Ok(0),
        }
    }
}

/// The attribute that lets a key do this.
pub fn usage_attribute(kind: Kind) -> u64 {
    match kind {
        Kind::Encrypt | Kind::MessageEncrypt => CKA_ENCRYPT,
        Kind::Decrypt | Kind::MessageDecrypt => CKA_DECRYPT,
        Kind::Sign | Kind::MessageSign => CKA_SIGN,
        Kind::Verify | Kind::MessageVerify => CKA_VERIFY,
        Kind::SignRecover => CKA_SIGN_RECOVER,
        Kind::VerifyRecover => CKA_VERIFY_RECOVER,
        Kind::Digest => CKA_EXTRACTABLE,
    }
}

/// The flag in CK_MECHANISM_INFO that offers this.
pub fn usage_flag(kind: Kind) -> u64 {
    match kind {
        Kind::Encrypt | Kind::MessageEncrypt => CKF_ENCRYPT,
        Kind::Decrypt | Kind::MessageDecrypt => CKF_DECRYPT,
        Kind::Sign | Kind::MessageSign => CKF_SIGN,
        Kind::Verify | Kind::MessageVerify => CKF_VERIFY,
        Kind::SignRecover => CKF_SIGN_RECOVER,
        Kind::VerifyRecover => CKF_VERIFY_RECOVER,
        Kind::Digest => CKF_DIGEST,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use mayfly_wire::mechanism::Gcm;

    #[test]
    fn lengths_of_whole_operations() {
        let gcm = Parameters::Gcm(Gcm { iv: &[0; 12], aad: b"", tag_bits: 96 });
        let iv = Parameters::Iv(&[0; 16]);
        let data = CKR_DATA_LEN_RANGE;
        let encrypted = CKR_ENCRYPTED_DATA_LEN_RANGE;
        let cases = [
            (CKM_AES_CBC, Kind::Encrypt, iv, 32, Ok(32)),
            (CKM_AES_CBC, Kind::Encrypt, iv, 33, Err(Rv(data))),
            (CKM_AES_CBC, Kind::Decrypt, iv, 33, Err(Rv(encrypted))),
            (CKM_AES_CBC_PAD, Kind::Encrypt, iv, 0, Ok(16)),
            (CKM_AES_CBC_PAD, Kind::Encrypt, iv, 15, Ok(16)),
            (CKM_AES_CBC_PAD, Kind::Encrypt, iv, 16, Ok(32)),
            (CKM_AES_CBC_PAD, Kind::Decrypt, iv, 16, Ok(16)),
            (CKM_AES_CBC_PAD, Kind::Decrypt, iv, 0, Err(Rv(encrypted))),
            (CKM_AES_CBC_PAD, Kind::Encrypt, iv, usize::MAX, Err(Rv(data))),
            (CKM_AES_GCM, Kind::Encrypt, gcm, 5, Ok(17)),
            (CKM_AES_GCM, Kind::Decrypt, gcm, 17, Ok(5)),
            (CKM_AES_GCM, Kind::Decrypt, gcm, 11, Err(Rv(encrypted))),
            (CKM_AES_CTR, Kind::Encrypt, iv, 5, Ok(5)),
            (CKM_ECDSA, Kind::Encrypt, iv, 5, Err(Rv(CKR_MECHANISM_INVALID))),
        ];
        for (code, kind, parameters, input, output) in cases {
            let spec = find(code).unwrap();
            assert_eq!(spec.output_bytes(kind, &parameters, input), output, "{code:#x} {kind:?} {input}");
        }
    }

    #[test]
    fn lengths_of_parts() {
        let cases = [
            (CKM_AES_CBC, Kind::Encrypt, 15, 1, 16),
            (CKM_AES_CBC, Kind::Decrypt, 0, 31, 16),
            (CKM_AES_CBC_PAD, Kind::Encrypt, 0, 16, 16),
            (CKM_AES_CBC_PAD, Kind::Decrypt, 0, 16, 0),
            (CKM_AES_CBC_PAD, Kind::Decrypt, 0, 1024, 1008),
            (CKM_AES_CBC_PAD, Kind::Decrypt, 16, 1024, 1024),
            (CKM_AES_CTR, Kind::Encrypt, 0, 7, 7),
            (CKM_AES_GCM, Kind::Encrypt, 0, 7, 7),
            (CKM_SHA256_HMAC, Kind::Sign, 0, 7, 0),
        ];
        for (code, kind, pending, input, output) in cases {
            assert_eq!(find(code).unwrap().part_bytes(kind, pending, input), output, "{code:#x} {pending} {input}");
        }
    }

    #[test]
    fn parameters_are_kept_whole() {
        let gcm = Mechanism {
            code: CKM_AES_GCM,
            parameters: Parameters::Gcm(Gcm { iv: &[7; 12], aad: b"header", tag_bits: 128 }),
        };
        assert_eq!(Stored::new(&gcm).get(), Ok(gcm));
    }

    #[test]
    fn codes_are_listed_once() {
        for (index, spec) in TABLE.iter().enumerate() {
            assert!(TABLE[index + 1..].iter().all(|other| other.code != spec.code), "{:#x}", spec.code);
        }
    }

    #[test]
    fn parameters_out_of_range_are_refused() {
        let gcm = |tag_bits, iv| Parameters::Gcm(Gcm { iv, aad: b"", tag_bits });
        let spec = find(CKM_AES_GCM).unwrap();
        assert!(spec.check(&gcm(128, &[0; 12])).is_ok());
        for bad in [gcm(0, &[0; 12]), gcm(40, &[0; 12]), gcm(127, &[0; 12]), gcm(136, &[0; 12]), gcm(128, &[])] {
            assert_eq!(spec.check(&bad), fail(CKR_MECHANISM_PARAM_INVALID), "{bad:?}");
        }
        let general = find(CKM_SHA256_HMAC_GENERAL).unwrap();
        for (length, is_right) in [(0, false), (1, true), (32, true), (33, false), (u64::MAX, false)] {
            assert_eq!(general.check(&Parameters::MacLength(length)).is_ok(), is_right, "{length}");
        }
    }
}
