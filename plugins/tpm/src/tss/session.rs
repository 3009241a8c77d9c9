//! Sessions: always salted with a key whose Name was checked, always with AES-128-CFB for what is secret.

use super::{NONE, Object, Tpm, TpmError, esys, sys, unmarshal};
use mayfly_evidence::marshal::Writer;
use mayfly_evidence::object::{ALG_AES, ALG_CFB, ALG_SHA256};
use std::ptr::null;

const SE_HMAC: u8 = 0;
const SE_POLICY: u8 = 1;
// TPMA_SESSION (Library, part 2, 8.4)
const CONTINUE: u8 = 0x01;
/// The first parameter of the command is encrypted.
const DECRYPT: u8 = 0x20;
/// The first parameter of the answer is encrypted.
const ENCRYPT: u8 = 0x40;

/// What of the next command is secret. It must fit the command: a flag for a parameter that is not there is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Protect {
    /// Nothing; command and answer are still authenticated.
    Nothing,
    /// The first parameter of the command.
    Command,
    /// The first parameter of the answer.
    Answer,
    /// Both.
    Both,
}

impl Protect {
    fn flags(self) -> u8 {
        match self {
            Protect::Nothing => 0,
            Protect::Command => DECRYPT,
            Protect::Answer => ENCRYPT,
            Protect::Both => DECRYPT | ENCRYPT,
        }
    }
}

/// An HMAC session: authorises with auth values that never cross the bus, and authenticates the answers.
pub(crate) struct Session<'t> {
    tpm: &'t Tpm,
    tr: sys::ESYS_TR,
}

/// A policy session, for one use.
pub(crate) struct PolicySession<'t> {
    tpm: &'t Tpm,
    tr: sys::ESYS_TR,
}

impl Tpm {
    /// Starts an HMAC session salted with `key`.
    pub(crate) fn session(&self, key: &Object<'_>) -> Result<Session<'_>, TpmError> {
        Ok(Session { tpm: self, tr: self.start(key, SE_HMAC)? })
    }

    /// Starts a policy session salted with `key`; `protect` is about the one command that it will authorise.
    pub(crate) fn policy_session(&self, key: &Object<'_>, protect: Protect) -> Result<PolicySession<'_>, TpmError> {
        let session = PolicySession { tpm: self, tr: self.start(key, SE_POLICY)? };
        // not continued: the chip frees it with that command
        set_flags(self, session.tr, protect.flags())?;
        Ok(session)
    }

    fn start(&self, key: &Object<'_>, kind: u8) -> Result<sys::ESYS_TR, TpmError> {
        const CALL: &str = "Esys_StartAuthSession";
        let aes = Writer::new().u16(ALG_AES).u16(128).u16(ALG_CFB).finish();
        let symmetric = unmarshal(CALL, sys::Tss2_MU_TPMT_SYM_DEF_Unmarshal, &aes)?;
        let mut tr = NONE;
        let out = &raw mut tr;
        let cipher = &raw const *symmetric;
        esys!(self, Esys_StartAuthSession, key.tr(), NONE, NONE, NONE, NONE, null(), kind, cipher, ALG_SHA256, out)?;
        Ok(tr)
    }
}

fn set_flags(tpm: &Tpm, tr: sys::ESYS_TR, flags: u8) -> Result<(), TpmError> {
    esys!(tpm, Esys_TRSess_SetAttributes, tr, flags, 0xff)
}

impl Session<'_> {
    /// Says what of the next command is secret.
    pub(super) fn ready(&self, protect: Protect) -> Result<(), TpmError> {
        set_flags(self.tpm, self.tr, CONTINUE | protect.flags())
    }

    pub(super) fn tr(&self) -> sys::ESYS_TR {
        self.tr
    }
}

impl Drop for Session<'_> {
    fn drop(&mut self) {
        self.tpm.flush(self.tr);
    }
}

impl<'t> PolicySession<'t> {
    pub(super) fn tr(&self) -> sys::ESYS_TR {
        self.tr
    }

    pub(super) fn tpm(&self) -> &'t Tpm {
        self.tpm
    }

    /// Its command has succeeded: the chip has freed it.
    pub(super) fn used(self) {
        let done = std::mem::ManuallyDrop::new(self);
        // fails where libtss2 has already forgotten it by itself
        let _ = tr_close(done.tpm, done.tr);
    }
}

impl Drop for PolicySession<'_> {
    fn drop(&mut self) {
        self.tpm.flush(self.tr);
    }
}

/// Forgets a handle of libtss2's without a command.
pub(super) fn tr_close(tpm: &Tpm, mut tr: sys::ESYS_TR) -> Result<(), TpmError> {
    esys!(tpm, Esys_TR_Close, &raw mut tr)
}
