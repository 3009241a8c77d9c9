//! The signing keys: the identity, which signs for the device, and the attestation key, which signs for the chip.

use crate::error::Fault;
use crate::keys::Use;
use crate::record::KeyFile;
use crate::tss::Object;
use crate::vault::{Link, TpmVault};
use mayfly_evidence::object::{Point, Role, signing_key, signing_point};
use mayfly_plugin_abi::{Alg, GuestError, Identity, SIGNATURE_BYTES, Status};
use mayfly_vault_store::{IDENTITY, refusal};
use sha2::{Digest, Sha256};

/// Some old chips leave leading zeros of a coordinate out; the Name of such a key cannot be rebuilt by others. One key in
/// 128 has them, so a few tries are enough.
const TRIES: usize = 6;

impl TpmVault {
    pub(crate) fn identity(&mut self, alg: Option<Alg>, create: bool) -> Result<Identity, GuestError> {
        if alg == Some(Alg::Ed25519) {
            return Err(GuestError::new(Status::Unsupported, "identity keys are P-256 here"));
        }
        let point = match self.key_file(Role::Identity)? {
            Some((_, point)) => point,
            None if create => self.link(|link| self.make_key(link, Role::Identity))?.1,
            None => return Err(refusal::no_identity()),
        };
        Ok(Identity { alg: Alg::P256, public: point.compressed().to_vec() })
    }

    pub(crate) fn sign(&mut self, message: &[u8], signature: &mut [u8; SIGNATURE_BYTES]) -> Result<(), GuestError> {
        let (file, _) = self.key_file(Role::Identity)?.ok_or_else(refusal::no_identity)?;
        let digest: [u8; 32] = Sha256::digest(message).into();
        self.link(|link| {
            let key = self.load_key(link, &file)?;
            *signature = low_s(link.tpm.sign(&key, link.session, &digest)?)?;
            Ok(())
        })
    }

    /// A key's file and point, if it was made.
    pub(crate) fn key_file(&self, role: Role) -> Result<Option<(KeyFile, Point)>, GuestError> {
        let name = file_name(role);
        let Some(file) = self.decode(name, KeyFile::decode, |file| file.vault_id)? else { return Ok(None) };
        let point = signing_point(role, &file.public);
        let point = point.map_err(|error| self.store.damaged(name, &error.0.into()))?;
        Ok(Some((file, point)))
    }

    /// Makes a signing key in the chip and keeps what it wraps.
    pub(crate) fn make_key(&self, link: &Link<'_>, role: Role) -> Result<(KeyFile, Point), Fault> {
        let auth = self.auth.value(use_of(role));
        for _ in 0..TRIES {
            let (public, private) =
                link.tpm.create(link.srk, link.session, &signing_key(role, None), &auth[..], &[])?;
            let Ok(point) = signing_point(role, &public) else { continue };
            let file = KeyFile { vault_id: self.header.vault_id, role, public, private };
            self.store.write(file_name(role), &file.encode())?;
            return Ok((file, point));
        }
        Err(Fault::told(Status::Io, "the TPM makes signing keys of another kind than asked for"))
    }

    /// Loads a signing key, ready for use.
    pub(crate) fn load_key<'t>(&self, link: &Link<'t>, file: &KeyFile) -> Result<Object<'t>, Fault> {
        let key = link.tpm.load(link.srk, &file.public, &file.private)?;
        key.set_auth(&self.auth.value(use_of(file.role))[..])?;
        Ok(key)
    }
}

fn file_name(role: Role) -> &'static str {
    match role {
        Role::Identity => IDENTITY,
        Role::Attestation => "attestation",
    }
}

fn use_of(role: Role) -> Use {
    match role {
        Role::Identity => Use::Identity,
        Role::Attestation => Use::Attestation,
    }
}

/// Of s and n - s the lower one: half of what a chip gives is the other.
pub(crate) fn low_s(signature: [u8; 64]) -> Result<[u8; 64], Fault> {
    let signature = p256::ecdsa::Signature::from_slice(&signature)
        .map_err(|_| Fault::told(Status::Io, "the TPM gave a signature that is none"))?;
    Ok(signature.normalize_s().to_bytes().into())
}
