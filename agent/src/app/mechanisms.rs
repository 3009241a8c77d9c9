//! PKCS#11's mechanism numbers and parameters to the engine's mechanisms and back; the list that applications see.

use mayfly_engine as engine;
use mayfly_engine::{Hash, MechanismKind, Operation};
use mayfly_wire::{Mechanism, Parameters, types::MechanismInfo};

use super::ck::*;
use super::fail::{Done, Fail};

const HMACS: &[(CK_MECHANISM_TYPE, CK_MECHANISM_TYPE, Hash)] = &[
    (CKM_SHA_1_HMAC, CKM_SHA_1_HMAC_GENERAL, Hash::Sha1),
    (CKM_SHA224_HMAC, CKM_SHA224_HMAC_GENERAL, Hash::Sha224),
    (CKM_SHA256_HMAC, CKM_SHA256_HMAC_GENERAL, Hash::Sha256),
    (CKM_SHA384_HMAC, CKM_SHA384_HMAC_GENERAL, Hash::Sha384),
    (CKM_SHA512_HMAC, CKM_SHA512_HMAC_GENERAL, Hash::Sha512),
    (CKM_SHA512_224_HMAC, CKM_SHA512_224_HMAC_GENERAL, Hash::Sha512_224),
    (CKM_SHA512_256_HMAC, CKM_SHA512_256_HMAC_GENERAL, Hash::Sha512_256),
    (CKM_SHA3_224_HMAC, CKM_SHA3_224_HMAC_GENERAL, Hash::Sha3_224),
    (CKM_SHA3_256_HMAC, CKM_SHA3_256_HMAC_GENERAL, Hash::Sha3_256),
    (CKM_SHA3_384_HMAC, CKM_SHA3_384_HMAC_GENERAL, Hash::Sha3_384),
    (CKM_SHA3_512_HMAC, CKM_SHA3_512_HMAC_GENERAL, Hash::Sha3_512),
];

const ECDSA_HASHES: &[(CK_MECHANISM_TYPE, Hash)] = &[
    (CKM_ECDSA_SHA1, Hash::Sha1),
    (CKM_ECDSA_SHA224, Hash::Sha224),
    (CKM_ECDSA_SHA256, Hash::Sha256),
    (CKM_ECDSA_SHA384, Hash::Sha384),
    (CKM_ECDSA_SHA512, Hash::Sha512),
    (CKM_ECDSA_SHA3_224, Hash::Sha3_224),
    (CKM_ECDSA_SHA3_256, Hash::Sha3_256),
    (CKM_ECDSA_SHA3_384, Hash::Sha3_384),
    (CKM_ECDSA_SHA3_512, Hash::Sha3_512),
];

/// Bits of the one curve that keys on the ledger may have.
const EC_BITS: u64 = 256;

/// The engine's mechanism for a request's.
///
/// # Errors
/// CKR_MECHANISM_INVALID, CKR_MECHANISM_PARAM_INVALID.
pub fn read<'a>(mechanism: &Mechanism<'a>) -> Done<engine::Mechanism<'a>> {
    let fitting = match (mechanism.code, mechanism.parameters) {
        (CKM_AES_ECB, Parameters::None) => engine::Mechanism::AesEcb,
        (CKM_AES_CBC, Parameters::Iv(iv)) => engine::Mechanism::AesCbc(block_iv(iv)?),
        (CKM_AES_CBC_PAD, Parameters::Iv(iv)) => engine::Mechanism::AesCbcPad(block_iv(iv)?),
        (CKM_AES_CTR, Parameters::Ctr(ctr)) => {
            engine::Mechanism::AesCtr(engine::Ctr { block: *ctr.block, counter_bits: ctr.counter_bits })
        }
        (CKM_AES_GCM, Parameters::Gcm(gcm)) => {
            let gcm = engine::Gcm { iv: gcm.iv, aad: gcm.aad, tag_bits: gcm.tag_bits };
            gcm.tag_bytes()?;
            engine::Mechanism::AesGcm(gcm)
        }
        (CKM_ECDSA, Parameters::None) => engine::Mechanism::Ecdsa,
        (code, parameters) => return hashed(code, parameters),
    };
    Ok(fitting)
}

fn hashed<'a>(code: CK_MECHANISM_TYPE, parameters: Parameters<'a>) -> Done<engine::Mechanism<'a>> {
    if let Some((_, hash)) = ECDSA_HASHES.iter().find(|(number, _)| *number == code) {
        return match parameters {
            Parameters::None => Ok(engine::Mechanism::EcdsaHash(*hash)),
            _ => Err(misfit()),
        };
    }
    let hmac = HMACS.iter().find(|(whole, general, _)| *whole == code || *general == code);
    let Some((whole, _, hash)) = hmac else {
        let known = [CKM_AES_ECB, CKM_AES_CBC, CKM_AES_CBC_PAD, CKM_AES_CTR, CKM_AES_GCM, CKM_ECDSA].contains(&code);
        return Err(if known { misfit() } else { unknown(code) });
    };
    let hmac = match parameters {
        Parameters::None if *whole == code => engine::Hmac::full(*hash),
        Parameters::MacLength(bytes) if *whole != code => {
            engine::Hmac { hash: *hash, mac_bytes: Some(u32::try_from(bytes).map_err(|_| misfit())?) }
        }
        _ => return Err(misfit()),
    };
    hmac.bytes()?;
    Ok(engine::Mechanism::Hmac(hmac))
}

fn block_iv(iv: &[u8]) -> Done<engine::Iv> {
    let iv = iv.try_into().map_err(|_| Fail::new(CKR_MECHANISM_PARAM_INVALID, "an IV of AES has 16 bytes"))?;
    Ok(engine::Iv(iv))
}

fn misfit() -> Fail {
    Fail::new(CKR_MECHANISM_PARAM_INVALID, "the mechanism's parameters are not of its kind")
}

/// The refusal of a mechanism that is not there.
pub fn unknown(code: CK_MECHANISM_TYPE) -> Fail {
    Fail::new(CKR_MECHANISM_INVALID, format!("mechanism {code:#x} is not offered"))
}

/// What applications are told: everything that works, without digests and hash-then-sign forms, which the module makes of these.
pub fn list() -> Vec<MechanismInfo> {
    let lines = engine::mechanisms().filter_map(|info| {
        let (code, extra) = number(info.kind)?;
        let (mut least, mut most) = (u64::from(info.key_size.0), u64::from(info.key_size.1));
        if extra != 0 {
            (least, most) = (EC_BITS, EC_BITS);
        }
        let flags = info.operations.iter().fold(extra, |flags, operation| flags | flag(*operation));
        Some(MechanismInfo { code, key_size_min: least, key_size_max: most, flags })
    });
    lines.collect()
}

/// CKM_ number, and flags beyond those of its operations.
fn number(kind: MechanismKind) -> Option<(CK_MECHANISM_TYPE, CK_FLAGS)> {
    const EC: CK_FLAGS = CKF_EC_F_P | CKF_EC_NAMEDCURVE | CKF_EC_UNCOMPRESS;
    let hmac = |wanted: Hash| HMACS.iter().find(|(_, _, hash)| *hash == wanted);
    match kind {
        MechanismKind::AesKeyGen => Some((CKM_AES_KEY_GEN, 0)),
        MechanismKind::GenericSecretKeyGen => Some((CKM_GENERIC_SECRET_KEY_GEN, 0)),
        MechanismKind::EcKeyPairGen => Some((CKM_EC_KEY_PAIR_GEN, EC)),
        MechanismKind::AesEcb => Some((CKM_AES_ECB, 0)),
        MechanismKind::AesCbc => Some((CKM_AES_CBC, 0)),
        MechanismKind::AesCbcPad => Some((CKM_AES_CBC_PAD, 0)),
        MechanismKind::AesCtr => Some((CKM_AES_CTR, 0)),
        MechanismKind::AesGcm => Some((CKM_AES_GCM, 0)),
        MechanismKind::Hmac(hash) => hmac(hash).map(|line| (line.0, 0)),
        MechanismKind::HmacGeneral(hash) => hmac(hash).map(|line| (line.1, 0)),
        MechanismKind::Ecdsa => Some((CKM_ECDSA, EC)),
        _ => None,
    }
}

fn flag(operation: Operation) -> CK_FLAGS {
    match operation {
        Operation::Encrypt => CKF_ENCRYPT,
        Operation::Decrypt => CKF_DECRYPT,
        Operation::Sign => CKF_SIGN,
        Operation::Verify => CKF_VERIFY,
        Operation::Digest => CKF_DIGEST,
        Operation::Generate => CKF_GENERATE,
        Operation::GenerateKeyPair => CKF_GENERATE_KEY_PAIR,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use mayfly_wire::mechanism::{Ctr, Gcm, Pss};

    #[test]
    fn numbers_and_parameters_must_fit() {
        let (iv, block) = ([1; 16], [2; 16]);
        let gcm = |iv, tag_bits| Parameters::Gcm(Gcm { iv, aad: b"", tag_bits });
        let pss = Parameters::Pss(Pss { hash: 0, mgf: 0, salt_length: 0 });
        let cases: &[(CK_MECHANISM_TYPE, Parameters<'_>, Option<CK_RV>)] = &[
            (CKM_AES_CBC, Parameters::Iv(&iv), None),
            (CKM_AES_CBC, Parameters::Iv(&iv[..15]), Some(CKR_MECHANISM_PARAM_INVALID)),
            (CKM_AES_CBC, Parameters::None, Some(CKR_MECHANISM_PARAM_INVALID)),
            (CKM_AES_ECB, Parameters::None, None),
            (CKM_AES_ECB, Parameters::Iv(&iv), Some(CKR_MECHANISM_PARAM_INVALID)),
            (CKM_AES_CTR, Parameters::Ctr(Ctr { counter_bits: 128, block: &block }), None),
            (CKM_AES_GCM, gcm(&iv[..12], 128), None),
            (CKM_AES_GCM, gcm(&[], 128), Some(CKR_MECHANISM_PARAM_INVALID)),
            (CKM_AES_GCM, gcm(&iv, 127), Some(CKR_MECHANISM_PARAM_INVALID)),
            (CKM_AES_GCM, pss, Some(CKR_MECHANISM_PARAM_INVALID)),
            (CKM_SHA256_HMAC, Parameters::None, None),
            (CKM_SHA256_HMAC, Parameters::MacLength(16), Some(CKR_MECHANISM_PARAM_INVALID)),
            (CKM_SHA256_HMAC_GENERAL, Parameters::MacLength(16), None),
            (CKM_SHA256_HMAC_GENERAL, Parameters::MacLength(33), Some(CKR_MECHANISM_PARAM_INVALID)),
            (CKM_SHA256_HMAC_GENERAL, Parameters::MacLength(u64::MAX), Some(CKR_MECHANISM_PARAM_INVALID)),
            (CKM_SHA256_HMAC_GENERAL, Parameters::None, Some(CKR_MECHANISM_PARAM_INVALID)),
            (CKM_ECDSA, Parameters::None, None),
            (CKM_ECDSA_SHA256, Parameters::None, None),
            (CKM_ECDSA_SHA256, Parameters::Iv(&iv), Some(CKR_MECHANISM_PARAM_INVALID)),
            (CKM_DES3_CBC, Parameters::Iv(&iv), Some(CKR_MECHANISM_INVALID)),
            (CKM_RSA_PKCS, Parameters::None, Some(CKR_MECHANISM_INVALID)),
            (u64::MAX, Parameters::None, Some(CKR_MECHANISM_INVALID)),
        ];
        for (code, parameters, refusal) in cases {
            let read = read(&Mechanism { code: *code, parameters: *parameters });
            assert_eq!(read.map_err(|fail| fail.code).err(), *refusal, "{code:#x} {parameters:?}");
        }
    }

    #[test]
    fn the_list_is_of_what_can_be_read() {
        let list = list();
        for info in &list {
            let refused = read(&Mechanism::plain(info.code)).map_err(|fail| fail.code);
            let makes_keys = info.flags & (CKF_GENERATE | CKF_GENERATE_KEY_PAIR) != 0;
            assert_eq!(refused.err() == Some(CKR_MECHANISM_INVALID), makes_keys, "{:#x}", info.code);
        }
        let ecdsa = list.iter().find(|info| info.code == CKM_ECDSA).unwrap();
        assert_eq!((ecdsa.key_size_min, ecdsa.key_size_max), (256, 256));
        assert_eq!(ecdsa.flags & (CKF_SIGN | CKF_VERIFY | CKF_EC_F_P), CKF_SIGN | CKF_VERIFY | CKF_EC_F_P);
        for absent in [CKM_SHA256, CKM_ECDSA_SHA256, CKM_RSA_PKCS] {
            assert!(list.iter().all(|info| info.code != absent), "{absent:#x}");
        }
        let mut codes: Vec<_> = list.iter().map(|info| info.code).collect();
        codes.sort_unstable();
        codes.dedup();
        assert_eq!(codes.len(), list.len(), "each once");
    }
}
