//! The exchange from the verifier's side: a challenge for a device, the judgement on its answer, and later statements.

use crate::certificate::{self, CertificateError, Endorsed, Trust};
use crate::credential::{self, CredentialError};
use aws_lc_rs::signature::{ECDSA_P256_SHA256_FIXED, UnparsedPublicKey};
use mayfly_evidence::exchange::{Challenge, DeviceKeys, Proof, Signed, bind};
use mayfly_evidence::nv::Kind;
use mayfly_evidence::object::{
    Name, OWNER, Point, Role, check_storage_key, name, qualified_name, qualified_under, signing_key,
};
use mayfly_evidence::pcr::Selection;
use mayfly_evidence::statement::{Claim, Statement};
use mayfly_evidence::{Malformed, ek::Endorsement};
use zeroize::Zeroizing;

/// How long a device may take to answer a challenge. Slow chips make an RSA endorsement key in ten seconds; beyond this
/// the answer is for somebody else.
pub const CHALLENGE_MS_MAX: u64 = 5 * 60 * 1000;
/// Half of the order of P-256, rounded down: the largest s of a signature that is taken.
const HALF_ORDER: [u8; 32] = [
    0x7f, 0xff, 0xff, 0xff, 0x80, 0x00, 0x00, 0x00, 0x7f, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xde, 0x73, 0x7d,
    0x56, 0xd3, 0x8b, 0xcf, 0x42, 0x79, 0xdc, 0xe5, 0x61, 0x7e, 0x31, 0x92, 0xa8,
];

/// Why a device is not believed.
#[derive(Debug, thiserror::Error)]
pub enum Refused {
    /// No certificate of a supported endorsement key.
    #[error("the device shows no certificate of an endorsement key that is supported here")]
    NoCertificate,
    /// The certificate.
    #[error(transparent)]
    Certificate(#[from] CertificateError),
    /// The challenge could not be made.
    #[error(transparent)]
    Credential(#[from] CredentialError),
    /// The storage root key.
    #[error("storage root key: {0}")]
    StorageRoot(Malformed),
    /// The answer came too late, or from before the challenge.
    #[error("the answer to the challenge came too late; make a new one")]
    Late,
    /// A statement that does not parse.
    #[error("statement about {about}: {what}")]
    Statement {
        /// Identity, storage root key, counter, registers.
        about: &'static str,
        /// What is wrong.
        what: Malformed,
    },
    /// A signature that is not the attestation key's (or not in the low form).
    #[error("statement about {0}: not signed by the attestation key")]
    Signature(&'static str),
    /// A statement for another purpose or challenge.
    #[error("statement about {0}: not bound to this challenge")]
    Binding(&'static str),
    /// Something else is stated.
    #[error("statement about {0}: it states something else")]
    Claim(&'static str),
    /// The quote is missing or was not asked for.
    #[error("a quote is missing, or there is one that was not asked for")]
    Quote,
    /// The counter is lower than where the vault began.
    #[error("the counter is lower than when the vault was made")]
    Counter,
}

/// What is known of an enrolled device and does not change: enough to judge its later statements.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Enrolled {
    /// The key that signs statements.
    pub attestation: Point,
    /// The key that signs for the device.
    pub identity: Point,
    /// The Name of the storage root key.
    pub storage_root: Name,
    /// NV index of the counter.
    pub counter: u32,
    /// What the counter held at generation 0.
    pub counter_base: u64,
}

/// A challenge that was sent. It is used up by its judgement: the same credential opens again and again in the chip.
pub struct Pending {
    secret: Zeroizing<[u8; 32]>,
    context: [u8; 32],
    made_ms: u64,
    enrolled: Enrolled,
    endorsed: Endorsed,
    pcrs: Selection,
}

impl std::fmt::Debug for Pending {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Pending({} {})", self.endorsed.maker, self.endorsed.model)
    }
}

/// A device that is believed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verdict {
    /// What holds from now on.
    pub enrolled: Enrolled,
    /// Its chip.
    pub endorsed: Endorsed,
    /// Where its counter stands.
    pub generation: u64,
    /// The registers, where they were asked for.
    pub quote: Option<Quote>,
    /// The challenge's secret. Told afterwards, it lets anybody check the statements ([`check_proof`]).
    pub secret: [u8; 32],
}

/// What a quote says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Quote {
    /// The digest over the selected registers.
    pub digest: [u8; 32],
    /// Starts of the chip, offset by a constant for each attestation key: two quotes tell a restart.
    pub reset_count: u32,
}

impl Enrolled {
    /// What the keys of a device claim; nothing of it is proven by this.
    ///
    /// # Errors
    /// A storage root key that is none.
    pub fn claimed(keys: &DeviceKeys) -> Result<Enrolled, Refused> {
        check_storage_key(&keys.storage_root).map_err(Refused::StorageRoot)?;
        Ok(Enrolled {
            attestation: keys.attestation,
            identity: keys.identity,
            storage_root: name(&keys.storage_root),
            counter: keys.counter,
            counter_base: keys.counter_base,
        })
    }

    fn signer(&self) -> Name {
        qualified_under(&self.storage_root, &name(&signing_key(Role::Attestation, Some(&self.attestation))))
    }

    /// A statement whose signature, signer and binding are right.
    fn statement(&self, about: &'static str, signed: &Signed, bound: &[u8; 32]) -> Result<Statement, Refused> {
        let key = self.attestation.uncompressed();
        let key = UnparsedPublicKey::new(&ECDSA_P256_SHA256_FIXED, &key);
        let low = signed.signature[32..] <= HALF_ORDER[..];
        if !low || key.verify(&signed.statement, &signed.signature).is_err() {
            return Err(Refused::Signature(about));
        }
        let statement = Statement::parse(&signed.statement).map_err(|what| Refused::Statement { about, what })?;
        if statement.signer != self.signer() {
            return Err(Refused::Signature(about));
        }
        if statement.extra != bound { Err(Refused::Binding(about)) } else { Ok(statement) }
    }

    fn generation(&self, signed: &Signed, bound: &[u8; 32]) -> Result<u64, Refused> {
        const ABOUT: &str = "the counter";
        let Claim::Nv { index, offset: 0, contents } = self.statement(ABOUT, signed, bound)?.claim else {
            return Err(Refused::Claim(ABOUT));
        };
        // the Name with WRITTEN set; exactly the eight bytes of a counter
        let value: [u8; 8] = contents.try_into().map_err(|_| Refused::Claim(ABOUT))?;
        if index != Kind::Counter.name(self.counter) {
            return Err(Refused::Claim(ABOUT));
        }
        u64::from_be_bytes(value).checked_sub(self.counter_base).ok_or(Refused::Counter)
    }

    fn quote(&self, pcrs: Selection, signed: &Signed, bound: &[u8; 32]) -> Result<Quote, Refused> {
        const ABOUT: &str = "the registers";
        let statement = self.statement(ABOUT, signed, bound)?;
        match statement.claim {
            Claim::Quote { selection, digest } if selection == pcrs => {
                Ok(Quote { digest, reset_count: statement.reset_count })
            }
            _ => Err(Refused::Claim(ABOUT)),
        }
    }
}

/// Makes a challenge for a device: verifies the first supported certificate of an endorsement key, encrypts a fresh secret
/// to it. `context` says what the exchange is about: a hash of network, device and verifier. `now_ms` is Unix time.
///
/// # Errors
/// [`Refused`].
pub fn challenge(
    trust: &Trust,
    keys: &DeviceKeys,
    context: [u8; 32],
    pcrs: Selection,
    now_ms: u64,
    danger_allow_software: bool,
) -> Result<(Pending, Challenge), Refused> {
    let enrolled = Enrolled::claimed(keys)?;
    let (index, endorsed) = endorsed(trust, keys, now_ms, danger_allow_software)?;
    let mut secret = Zeroizing::new([0; 32]);
    getrandom::fill(&mut secret[..]).map_err(|_| CredentialError)?;
    let attestation = name(&signing_key(Role::Attestation, Some(&enrolled.attestation)));
    let made = credential::make(&endorsed.key, &attestation, &secret)?;
    let challenge = Challenge { certificate: index, credential: made.blob, seed: made.seed, context, pcrs };
    Ok((Pending { secret, context, made_ms: now_ms, enrolled, endorsed, pcrs }, challenge))
}

/// The first certificate that verifies, in the order of preference; the reason of the last when none does.
fn endorsed(
    trust: &Trust,
    keys: &DeviceKeys,
    now_ms: u64,
    danger_allow_software: bool,
) -> Result<(u32, Endorsed), Refused> {
    let mut last = Refused::NoCertificate;
    for kind in Endorsement::ALL {
        let index = kind.certificate_index();
        let of_kind = keys.certificates.iter().filter(|(at, _)| *at == index);
        for (_, der) in of_kind {
            match certificate::verify(der, trust, now_ms, danger_allow_software) {
                Ok(endorsed) => return Ok((index, endorsed)),
                Err(error) => last = error.into(),
            }
        }
    }
    Err(last)
}

impl Pending {
    /// Judges the answer.
    ///
    /// # Errors
    /// [`Refused`]. The challenge is used up either way.
    pub fn judge(self, proof: &Proof, now_ms: u64) -> Result<Verdict, Refused> {
        if !(self.made_ms..=self.made_ms.saturating_add(CHALLENGE_MS_MAX)).contains(&now_ms) {
            return Err(Refused::Late);
        }
        let (generation, quote) = check_proof(&self.enrolled, &self.secret, &self.context, self.pcrs, proof)?;
        let secret = *self.secret;
        Ok(Verdict { enrolled: self.enrolled, endorsed: self.endorsed, generation, quote, secret })
    }
}

/// Checks the statements of an enrolment, for anybody who knows the challenge's secret by now: the identity key, the
/// storage root key and the counter are in the chip of the attestation key. That the attestation key is in a genuine
/// chip is what only the verifier saw. Gives the generation, and the quote if one was asked for.
///
/// # Errors
/// [`Refused`].
pub fn check_proof(
    enrolled: &Enrolled,
    secret: &[u8; 32],
    context: &[u8; 32],
    pcrs: Selection,
    proof: &Proof,
) -> Result<(u64, Option<Quote>), Refused> {
    let bound = bind::enrolment(secret, context);
    let identity = name(&signing_key(Role::Identity, Some(&enrolled.identity)));
    let under = qualified_under(&enrolled.storage_root, &identity);
    certified(enrolled, "the identity key", &proof.identity, &bound, (identity, under))?;
    let under = qualified_name(&OWNER.to_be_bytes(), &enrolled.storage_root);
    certified(enrolled, "the storage root key", &proof.storage_root, &bound, (enrolled.storage_root, under))?;
    let generation = enrolled.generation(&proof.counter, &bound)?;
    let quote = match (&proof.quote, pcrs.is_empty()) {
        (None, true) => None,
        (Some(quote), false) => Some(enrolled.quote(pcrs, quote, &bound)?),
        _ => return Err(Refused::Quote),
    };
    Ok((generation, quote))
}

fn certified(
    enrolled: &Enrolled,
    about: &'static str,
    signed: &Signed,
    bound: &[u8; 32],
    expected: (Name, Name),
) -> Result<(), Refused> {
    match enrolled.statement(about, signed, bound)?.claim {
        Claim::Certify { name, qualified } if (name, qualified) == expected => Ok(()),
        _ => Err(Refused::Claim(about)),
    }
}

/// Checks a counter certified for `context`; gives the generation.
///
/// # Errors
/// [`Refused`].
pub fn check_counter(enrolled: &Enrolled, context: &[u8; 32], signed: &Signed) -> Result<u64, Refused> {
    enrolled.generation(signed, &bind::counter(context))
}

/// Checks a quote of `pcrs` made for `context`.
///
/// # Errors
/// [`Refused`].
pub fn check_quote(
    enrolled: &Enrolled,
    context: &[u8; 32],
    pcrs: Selection,
    signed: &Signed,
) -> Result<Quote, Refused> {
    enrolled.quote(pcrs, signed, &bind::quote(context))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The same encoding as everywhere in Mayfly: plugins cannot link the crate that has it.
    #[test]
    fn labelled_hashes_are_those_of_the_crypto_crate() {
        for fields in [&[][..], &[&b"a"[..]], &[b"ab", b"", b"c"]] {
            assert_eq!(mayfly_evidence::hash("label", fields), mayfly_crypto::enc::hash("label", fields));
        }
    }

    /// Validly signed statements about counters that say less, or something else: a chip certifies any piece of any index.
    #[test]
    fn counters_that_are_none() {
        use aws_lc_rs::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair};
        use mayfly_evidence::marshal::Writer;
        use mayfly_evidence::object::storage_root;

        let key = EcdsaKeyPair::generate(&ECDSA_P256_SHA256_FIXED_SIGNING).unwrap();
        let random = aws_lc_rs::rand::SystemRandom::new();
        let point = key.public_key().as_ref();
        let attestation = Point { x: point[1..33].try_into().unwrap(), y: point[33..].try_into().unwrap() };
        let enrolled = Enrolled {
            attestation,
            identity: attestation,
            storage_root: name(&storage_root()),
            counter: 0x0180_4d00,
            counter_base: 7,
        };
        let context = [3; 32];
        let state = |magic: u32, kind: u16, index: &Name, offset: u16, contents: &[u8]| {
            let head = Writer::new().u32(magic).u16(kind).sized(&enrolled.signer()).sized(&bind::counter(&context));
            let head = head.u64(0).u32(0).u32(0).u8(1).u64(0);
            let statement = head.sized(index).u16(offset).sized(contents).finish();
            loop {
                let signature: [u8; 64] = key.sign(&random, &statement).unwrap().as_ref().try_into().unwrap();
                if signature[32..] <= HALF_ORDER[..] {
                    return Signed { statement, signature };
                }
            }
        };
        const MADE_BY_A_TPM: u32 = 0xff54_4347;
        const NV: u16 = 0x8014;
        let right = Kind::Counter.name(enrolled.counter);
        let nine = 9u64.to_be_bytes();
        let good = state(MADE_BY_A_TPM, NV, &right, 0, &nine);
        assert_eq!(check_counter(&enrolled, &context, &good).unwrap(), 2);

        let unwritten = name(&Kind::Counter.public(enrolled.counter));
        let neighbour = Kind::Counter.name(enrolled.counter + 1);
        let ordinary = Kind::Secret.name(enrolled.counter);
        for (what, index, offset, contents) in [
            ("four bytes of it", &right, 0, &nine[4..]),
            ("none of it", &right, 0, &[][..]),
            ("a byte more", &right, 0, &[0, 0, 0, 0, 0, 0, 0, 0, 9]),
            ("from its second byte on", &right, 1, &nine),
            ("before its first increment", &unwritten, 0, &nine),
            ("another index", &neighbour, 0, &nine),
            ("an ordinary index at its handle", &ordinary, 0, &nine),
        ] {
            let refused = check_counter(&enrolled, &context, &state(MADE_BY_A_TPM, NV, index, offset, contents));
            assert!(matches!(refused, Err(Refused::Claim("the counter"))), "{what}: {refused:?}");
        }
        let lower = check_counter(&enrolled, &context, &state(MADE_BY_A_TPM, NV, &right, 0, &6u64.to_be_bytes()));
        assert!(matches!(lower, Err(Refused::Counter)), "lower than when it was made: {lower:?}");
        for (magic, kind) in [(0, NV), (MADE_BY_A_TPM, 0x8017), (MADE_BY_A_TPM, 0x801c)] {
            assert!(check_counter(&enrolled, &context, &state(magic, kind, &right, 0, &nine)).is_err(), "{kind:#x}");
        }
        let other = Enrolled { storage_root: [1; 34], ..enrolled.clone() };
        assert!(matches!(check_counter(&other, &context, &good), Err(Refused::Signature(_))), "another chip's root");
    }

    #[test]
    fn the_low_half() {
        // the order of P-256 is 2 * HALF_ORDER + 1
        let order: [u8; 32] = [
            0xff, 0xff, 0xff, 0xff, 0x00, 0x00, 0x00, 0x00, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xbc, 0xe6,
            0xfa, 0xad, 0xa7, 0x17, 0x9e, 0x84, 0xf3, 0xb9, 0xca, 0xc2, 0xfc, 0x63, 0x25, 0x51,
        ];
        let mut carry = 1;
        for at in (0..32).rev() {
            let twice = u16::from(HALF_ORDER[at]) * 2 + carry;
            assert_eq!(twice as u8, order[at]);
            carry = twice >> 8;
        }
    }
}
