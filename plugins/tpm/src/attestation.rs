//! What the chip says about itself, for a verifier (`mayfly-attest`); messages in `mayfly_evidence::exchange`.

use crate::chip;
use crate::error::Fault;
use crate::identity::low_s;
use crate::record::KeyFile;
use crate::tss::{EndorsementUse, HANDLE, Hierarchy, Layer, Object, Protect, RawSigned, Session, Tpm};
use crate::vault::{Link, TpmVault};
use mayfly_evidence::Malformed;
use mayfly_evidence::ek::{Endorsement, cut_certificate};
use mayfly_evidence::exchange::{
    CERTIFICATE_BYTES_MAX, CERTIFICATES_MAX, CONTEXT_BYTES, Challenge, DeviceKeys, Proof, QuoteRequest, STEP_COUNTER,
    STEP_KEYS, STEP_PROVE, STEP_QUOTE, Signed, bind,
};
use mayfly_evidence::marshal::Reader;
use mayfly_evidence::object::Role;
use mayfly_plugin_abi::{GuestError, Status};
use mayfly_vault_store::refusal;
use zeroize::Zeroizing;

/// Where persistent objects of the endorsement hierarchy begin (TCG registry of reserved handles).
const ENDORSEMENT_PERSISTENT: u32 = 0x8101_0000;
/// ... and end.
const ENDORSEMENT_PERSISTENT_LAST: u32 = 0x8101_ffff;
/// Bytes of an index that are read at once; every chip takes that many.
const NV_PIECE_BYTES: usize = 512;

impl TpmVault {
    pub(crate) fn attestation(&mut self, step: u32, input: &[u8]) -> Result<Vec<u8>, GuestError> {
        match step {
            STEP_KEYS => self.device_keys(),
            STEP_PROVE => self.prove(&Challenge::decode(input).map_err(invalid)?),
            STEP_COUNTER => self.certified_counter(&Reader::new(input).array().map_err(invalid)?),
            STEP_QUOTE => self.quoted(&QuoteRequest::decode(input).map_err(invalid)?),
            step => Err(GuestError::new(Status::Unsupported, format!("attest has no step {step}"))),
        }
    }

    fn device_keys(&mut self) -> Result<Vec<u8>, GuestError> {
        let (_, identity) = self.key_file(Role::Identity)?.ok_or_else(refusal::no_identity)?;
        let known = self.key_file(Role::Attestation)?;
        self.link(|link| {
            let (_, attestation) = match known {
                Some(known) => known,
                None => self.make_key(link, Role::Attestation)?,
            };
            let keys = DeviceKeys {
                vault_id: self.header.vault_id,
                certificates: certificates(link.tpm)?,
                attestation,
                identity,
                storage_root: link.srk.public()?.0,
                counter: self.header.nv_base,
                counter_base: self.header.counter_base,
            };
            Ok(keys.encode())
        })
    }

    /// Opens the credential, and makes the statements that only who opened it can make.
    fn prove(&mut self, challenge: &Challenge) -> Result<Vec<u8>, GuestError> {
        let kind = Endorsement::of_index(challenge.certificate)
            .ok_or_else(|| GuestError::new(Status::Invalid, "challenge: no such endorsement key"))?;
        let identity = self.key_file(Role::Identity)?.ok_or_else(refusal::no_identity)?.0;
        let attestation = self.attestation_file()?;
        self.link(|link| {
            let key = self.load_key(link, &attestation)?;
            let mut secret = Zeroizing::new([0; 32]);
            self.activate(link, kind, &key, challenge, &mut secret)?;
            let extra = bind::enrolment(&secret, &challenge.context);
            let other = link.tpm.session(link.srk)?;
            // the identity key takes its slot only now: using a persistent endorsement key needs a free one
            let identity = self.load_key(link, &identity)?;
            let certify = |object: &Object<'_>| -> Result<Signed, Fault> {
                signed(link.tpm.certify((object, &other), (&key, link.session), &extra)?)
            };
            let proof = Proof {
                identity: certify(&identity)?,
                storage_root: certify(link.srk)?,
                counter: self.certify_counter(link, &other, &key, &extra)?,
                quote: match challenge.pcrs.is_empty() {
                    true => None,
                    false => Some(signed(link.tpm.quote((&key, link.session), challenge.pcrs, &extra)?)?),
                },
            };
            link.tpm.scrub()?;
            Ok(proof.encode())
        })
    }

    fn certified_counter(&mut self, context: &[u8; CONTEXT_BYTES]) -> Result<Vec<u8>, GuestError> {
        let attestation = self.attestation_file()?;
        self.link(|link| {
            let key = self.load_key(link, &attestation)?;
            let other = link.tpm.session(link.srk)?;
            Ok(self.certify_counter(link, &other, &key, &bind::counter(context))?.encode())
        })
    }

    fn certify_counter(
        &self,
        link: &Link<'_>,
        other: &Session<'_>,
        key: &Object<'_>,
        extra: &[u8; 32],
    ) -> Result<Signed, Fault> {
        signed(link.tpm.certify_counter((&link.counter, other), (key, link.session), extra)?)
    }

    fn quoted(&mut self, request: &QuoteRequest) -> Result<Vec<u8>, GuestError> {
        let attestation = self.attestation_file()?;
        self.link(|link| {
            let key = self.load_key(link, &attestation)?;
            let extra = bind::quote(&request.context);
            Ok(signed(link.tpm.quote((&key, link.session), request.pcrs, &extra)?)?.encode())
        })
    }

    fn attestation_file(&self) -> Result<KeyFile, GuestError> {
        let known = self.key_file(Role::Attestation)?;
        known.map(|(file, _)| file).ok_or_else(|| {
            GuestError::new(Status::Invalid, "there is no attestation key yet; ask for the device's keys first")
        })
    }

    fn activate(
        &self,
        link: &Link<'_>,
        kind: Endorsement,
        key: &Object<'_>,
        challenge: &Challenge,
        secret: &mut [u8; 32],
    ) -> Result<(), Fault> {
        let auth = self.config.endorsement_auth()?;
        let endorsement = endorsement_key(link, kind, &auth)?;
        let other;
        let permission = if kind.by_policy() {
            let policy = link.tpm.policy_session(link.srk, Protect::Nothing)?;
            policy.endorsement(link.session, &auth).map_err(endorsement_fault)?;
            EndorsementUse::Policy(policy)
        } else {
            other = link.tpm.session(link.srk)?;
            EndorsementUse::Session(&other)
        };
        let (credential, seed) = (&challenge.credential, &challenge.seed);
        let opened = link.tpm.activate((key, link.session), (&endorsement, permission), credential, seed, secret);
        opened.map_err(|error| match error.layer() {
            Layer::Tpm if !error.is_warning() => {
                let what = "the credential does not open: it is for another TPM or another attestation key";
                Fault::told(Status::Invalid, format!("{what} ({error})"))
            }
            _ => error.into(),
        })
    }
}

fn invalid(malformed: Malformed) -> GuestError {
    GuestError::new(Status::Invalid, format!("message of a verifier: {malformed}"))
}

fn signed((statement, signature): RawSigned) -> Result<Signed, Fault> {
    Ok(Signed { statement, signature: low_s(signature)? })
}

/// The certificates that the maker left in the chip, best key first.
fn certificates(tpm: &Tpm) -> Result<Vec<(u32, Vec<u8>)>, Fault> {
    let mut found = Vec::new();
    for kind in Endorsement::ALL {
        let index = kind.certificate_index();
        let contents = match read_whole(tpm, index) {
            Ok(contents) => contents,
            Err(Fault::Tpm(error)) if error.is(HANDLE) => continue,
            Err(fault) => return Err(fault),
        };
        // an index with something else in it is as good as none
        if let Ok(der) = cut_certificate(&contents)
            && der.len() <= CERTIFICATE_BYTES_MAX
            && found.len() < CERTIFICATES_MAX
        {
            found.push((index, der.to_vec()));
        }
    }
    Ok(found)
}

fn read_whole(tpm: &Tpm, handle: u32) -> Result<Vec<u8>, Fault> {
    let index = tpm.index(handle)?;
    let public = index.public()?;
    // the last field of an index's public area is its size
    let size = public.last_chunk::<2>().map_or(0, |bytes| usize::from(u16::from_be_bytes(*bytes)));
    let mut contents = Vec::with_capacity(size);
    while contents.len() < size {
        let piece = (size - contents.len()).min(NV_PIECE_BYTES) as u16;
        let bytes = tpm.read_open(&index, piece, contents.len() as u16)?;
        if bytes.is_empty() {
            break;
        }
        contents.extend_from_slice(&bytes);
    }
    Ok(contents)
}

/// The endorsement key of a kind: a persistent one of its template, or made again, which gives the same key.
fn endorsement_key<'t>(link: &Link<'t>, kind: Endorsement, auth: &[u8]) -> Result<Object<'t>, Fault> {
    let tpm = link.tpm;
    let persistent = chip::handles(tpm, ENDORSEMENT_PERSISTENT)?;
    let certificate = read_whole(tpm, kind.certificate_index())?;
    for handle in persistent.into_iter().take_while(|handle| *handle <= ENDORSEMENT_PERSISTENT_LAST) {
        let object = tpm.persistent(handle)?;
        let key = kind.key(&object.public()?.0);
        if key.is_ok_and(|key| holds(&certificate, &key)) {
            return Ok(object);
        }
    }
    tpm.create_primary(Hierarchy::Endorsement, auth, Some(link.session), &kind.template()).map_err(endorsement_fault)
}

/// Whether a certificate has a key's bytes in it: it may be that key's. The verifier decides, by encrypting to it.
fn holds(certificate: &[u8], key: &[u8]) -> bool {
    certificate.windows(key.len().max(1)).any(|window| window == key)
}

fn endorsement_fault(error: crate::tss::TpmError) -> Fault {
    if error.is_auth() {
        let text = "the TPM's endorsement hierarchy has another auth value: set endorsement_auth_file or \
                    endorsement_auth_credential";
        return Fault::told(Status::Auth, text);
    }
    error.into()
}
