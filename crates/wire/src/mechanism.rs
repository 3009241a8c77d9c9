//! Mechanisms and their parameters, as values instead of C structures.

use crate::DecodeError;
use crate::codec::{Field, List, Opaque, Reader, Writer, record};

record! {
    /// A mechanism and what it is used with.
    Mechanism<'a> {
        /// CK_MECHANISM_TYPE.
        code: u64,
        /// Its parameters.
        parameters: Parameters<'a>,
    }
}

impl<'a> Mechanism<'a> {
    /// A mechanism without parameters.
    #[must_use]
    pub fn plain(code: u64) -> Self {
        Self { code, parameters: Parameters::None }
    }
}

record! {
    /// CK_RSA_PKCS_PSS_PARAMS.
    Pss {
        /// Hash, as CK_MECHANISM_TYPE (CKM_SHA256 …).
        hash: u64,
        /// Mask generation function, CKG_MGF1_….
        mgf: u64,
        /// Length of the salt, bytes.
        salt_length: u64,
    }
}

record! {
    /// CK_RSA_PKCS_OAEP_PARAMS.
    Oaep<'a> {
        /// Hash, as CK_MECHANISM_TYPE.
        hash: u64,
        /// Mask generation function, CKG_MGF1_….
        mgf: u64,
        /// The label (CKZ_DATA_SPECIFIED); empty for none.
        label: &'a [u8],
    }
}

record! {
    /// CK_GCM_PARAMS.
    Gcm<'a> {
        /// Nonce, 1 to 256 bytes.
        iv: &'a [u8],
        /// Additional authenticated data.
        aad: &'a [u8],
        /// Length of the tag, bits.
        tag_bits: u32,
    }
}

record! {
    /// CK_CCM_PARAMS.
    Ccm<'a> {
        /// Length of the plaintext, bytes.
        data_length: u64,
        /// Nonce.
        nonce: &'a [u8],
        /// Additional authenticated data.
        aad: &'a [u8],
        /// Length of the MAC, bytes.
        mac_length: u32,
    }
}

record! {
    /// CK_GCM_MESSAGE_PARAMS, the same for CCM: for the message kinds only.
    AeadMessage<'a> {
        /// Nonce; where `generator` is not CKG_NO_GENERATE only its first `iv_fixed_bits` bits count and
        /// its length is the length of the nonce to be made.
        iv: &'a [u8],
        /// Bits of the nonce that stay as given.
        iv_fixed_bits: u32,
        /// CKG_NO_GENERATE (0), CKG_GENERATE, CKG_GENERATE_COUNTER, CKG_GENERATE_RANDOM.
        generator: u64,
        /// Length of the tag, bits.
        tag_bits: u32,
        /// Additional authenticated data.
        aad: &'a [u8],
        /// The tag, for decryption; empty for encryption.
        tag: &'a [u8],
    }
}

record! {
    /// CK_ECDH1_DERIVE_PARAMS.
    Ecdh<'a> {
        /// Key derivation function, CKD_….
        kdf: u64,
        /// Shared information; may be empty.
        shared: &'a [u8],
        /// The other side's public value.
        public: &'a [u8],
    }
}

record! {
    /// CK_EDDSA_PARAMS.
    Eddsa<'a> {
        /// Whether the data is hashed first (Ed25519ph).
        prehash: bool,
        /// Context data.
        context: &'a [u8],
    }
}

record! {
    /// CK_AES_CBC_ENCRYPT_DATA_PARAMS and its like: derivation by encryption of data.
    EncryptData<'a> {
        /// IV; empty for ECB.
        iv: &'a [u8],
        /// Data to encrypt.
        data: Opaque<'a>,
    }
}

record! {
    /// CK_HKDF_PARAMS.
    Hkdf<'a> {
        /// Whether to extract.
        extract: bool,
        /// Whether to expand.
        expand: bool,
        /// Hash, as CK_MECHANISM_TYPE.
        hash: u64,
        /// CKF_HKDF_SALT_NULL (1), CKF_HKDF_SALT_DATA (2), CKF_HKDF_SALT_KEY (4).
        salt_type: u64,
        /// The salt where it is data.
        salt: &'a [u8],
        /// The salt where it is a key: its handle, else 0.
        salt_key: u64,
        /// Info.
        info: &'a [u8],
    }
}

record! {
    /// One data field of a SP 800-108 derivation (CK_PRF_DATA_PARAM).
    KdfField<'a> {
        /// CK_PRF_DATA_TYPE.
        kind: u64,
        /// Counter and length fields: bit 0 = little-endian, bits 8-15 = width in bits,
        /// bits 16-23 = length method; 0 otherwise.
        format: u32,
        /// Bytes of a byte-array field.
        value: Opaque<'a>,
    }
}

record! {
    /// CK_SP800_108_KDF_PARAMS and CK_SP800_108_FEEDBACK_KDF_PARAMS.
    Kdf108<'a> {
        /// Pseudo-random function, as CK_MECHANISM_TYPE.
        prf: u64,
        /// Its input, field by field.
        fields: List<'a, KdfField<'a>>,
        /// IV of the feedback mode; empty otherwise.
        iv: &'a [u8],
    }
}

record! {
    /// CK_RSA_AES_KEY_WRAP_PARAMS.
    RsaAesWrap<'a> {
        /// Length of the temporary AES key, bits.
        aes_bits: u32,
        /// How that key is wrapped.
        oaep: Oaep<'a>,
    }
}

record! {
    /// CK_ECDH_AES_KEY_WRAP_PARAMS.
    EcdhAesWrap<'a> {
        /// Length of the AES key, bits.
        aes_bits: u32,
        /// Key derivation function, CKD_….
        kdf: u64,
        /// Shared information.
        shared: &'a [u8],
    }
}

record! {
    /// CK_SIGN_ADDITIONAL_CONTEXT and CK_HASH_SIGN_ADDITIONAL_CONTEXT (ML-DSA).
    SignContext<'a> {
        /// CKH_HEDGE_PREFERRED (0), CKH_HEDGE_REQUIRED, CKH_DETERMINISTIC_REQUIRED.
        hedge: u64,
        /// Context string.
        context: &'a [u8],
        /// Hash of the pre-hash form, as CK_MECHANISM_TYPE; 0 for the pure form.
        hash: u64,
    }
}

record! {
    /// Synthetic IV (vendor mechanism).
    Synthetic<'a> {
        /// How it is made.
        mode: crate::IvMode,
        /// Context.
        context: &'a [u8],
        /// Additional authenticated data.
        aad: &'a [u8],
    }
}

macro_rules! parameters {
    ($($(#[$meta:meta])* $name:ident($type:ty) = $tag:literal,)*) => {
        /// A mechanism's parameters. The tag is not chosen by the mechanism's code: the agent checks that
        /// the two fit, and answers CKR_MECHANISM_PARAM_INVALID (0x71) where they do not.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum Parameters<'a> {
            /// None: pParameter is NULL.
            None,
            $($(#[$meta])* $name($type),)*
        }

        impl<'a> Field<'a> for Parameters<'a> {
            const BYTES_MIN: usize = 1;

            fn write(&self, to: &mut Writer<'_>) {
                match self {
                    Self::None => 0_u8.write(to),
                    $(Self::$name(value) => {
                        const TAG: u8 = $tag;
                        TAG.write(to);
                        value.write(to);
                    })*
                }
            }

            fn read(from: &mut Reader<'a>) -> Result<Self, DecodeError> {
                match u8::read(from)? {
                    0 => Ok(Self::None),
                    $($tag => Field::read(from).map(Self::$name),)*
                    tag => Err(DecodeError::UnknownCode { what: "mechanism parameters", value: tag.into() }),
                }
            }
        }
    };
}

parameters! {
    /// An IV alone: CBC, CBC-PAD, OFB, CFB, GMAC, key wrap with a given initial value.
    Iv(&'a [u8]) = 1,
    /// CK_AES_CTR_PARAMS.
    Ctr(Ctr<'a>) = 2,
    /// CK_GCM_PARAMS.
    Gcm(Gcm<'a>) = 3,
    /// CK_CCM_PARAMS.
    Ccm(Ccm<'a>) = 4,
    /// CK_MAC_GENERAL_PARAMS: length of the MAC, bytes.
    MacLength(u64) = 5,
    /// CK_RSA_PKCS_PSS_PARAMS.
    Pss(Pss) = 6,
    /// CK_RSA_PKCS_OAEP_PARAMS.
    Oaep(Oaep<'a>) = 7,
    /// CK_ECDH1_DERIVE_PARAMS.
    Ecdh(Ecdh<'a>) = 8,
    /// CK_EDDSA_PARAMS.
    Eddsa(Eddsa<'a>) = 9,
    /// Messages of GCM and CCM.
    AeadMessage(AeadMessage<'a>) = 10,
    /// Derivation by encryption.
    EncryptData(EncryptData<'a>) = 11,
    /// CK_KEY_DERIVATION_STRING_DATA.
    DeriveData(Opaque<'a>) = 12,
    /// A key's handle (CKM_CONCATENATE_BASE_AND_KEY).
    Object(u64) = 13,
    /// CK_EXTRACT_PARAMS: the first bit of the part to take.
    ExtractFrom(u64) = 14,
    /// CK_HKDF_PARAMS.
    Hkdf(Hkdf<'a>) = 15,
    /// CK_SP800_108_KDF_PARAMS.
    Kdf108(Kdf108<'a>) = 16,
    /// CK_RSA_AES_KEY_WRAP_PARAMS.
    RsaAesWrap(RsaAesWrap<'a>) = 17,
    /// CK_ECDH_AES_KEY_WRAP_PARAMS.
    EcdhAesWrap(EcdhAesWrap<'a>) = 18,
    /// CK_SIGN_ADDITIONAL_CONTEXT.
    SignContext(SignContext<'a>) = 19,
    /// Synthetic IV.
    Synthetic(Synthetic<'a>) = 20,
}

record! {
    /// CK_AES_CTR_PARAMS.
    Ctr<'a> {
        /// Bits of the block that count, 1 to 128; the count does not carry beyond them.
        counter_bits: u32,
        /// The first counter block.
        block: &'a [u8; 16],
    }
}
