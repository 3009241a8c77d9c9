//! Response codes of tpm2-tss and TPM 2.0 (Library, part 2, 6.6): who says it, what it is, what it means to a vault.

use mayfly_plugin_abi::{GuestError, Status};
use tss_esapi_sys as sys;

/// A call that did not succeed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct TpmError {
    /// The function.
    pub(crate) call: &'static str,
    /// What it answered; 0 when the fault is on our side of the call.
    pub(crate) rc: u32,
    detail: &'static str,
}

/// Who gave a response code.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Layer {
    /// The chip, or a resource manager that speaks in its place.
    Tpm,
    /// ESYS: the answer was not authentic, or we called it wrongly.
    Esys,
    /// The way to the chip.
    Tcti,
    /// Anything else in libtss2.
    Other,
}

/// Format-one codes that a vault tells apart (without the number of parameter, handle or session).
pub(crate) mod base {
    pub(crate) const VALUE: u32 = 0x84;
    pub(crate) const HANDLE: u32 = 0x8b;
    pub(crate) const AUTH_FAIL: u32 = 0x8e;
    pub(crate) const POLICY_FAIL: u32 = 0x9d;
    pub(crate) const INTEGRITY: u32 = 0x9f;
    pub(crate) const BAD_AUTH: u32 = 0xa2;
    // format zero
    pub(crate) const POLICY: u32 = 0x126;
    pub(crate) const PCR_CHANGED: u32 = 0x128;
    pub(crate) const NV_DEFINED: u32 = 0x14c;
    pub(crate) const NV_UNINITIALIZED: u32 = 0x14a;
    pub(crate) const NV_SPACE: u32 = 0x14b;
    pub(crate) const OBJECT_MEMORY: u32 = 0x902;
    pub(crate) const SESSION_MEMORY: u32 = 0x903;
    pub(crate) const LOCKOUT: u32 = 0x921;
}

const LAYER_MASK: u32 = 0x00ff_0000;
const ESYS_LAYER: u32 = 7 << 16;
const TCTI_LAYER: u32 = 10 << 16;
const RESMGR_TPM_LAYER: u32 = 12 << 16;
/// TSS2_BASE_RC_NO_CONNECTION, in the TCTI layer.
const TCTI_NO_CONNECTION: u32 = TCTI_LAYER | 8;
/// TSS2_BASE_RC_IO_ERROR, in the TCTI layer.
const TCTI_IO_ERROR: u32 = TCTI_LAYER | 10;
/// TSS2_BASE_RC_RSP_AUTH_FAILED, in the ESYS layer.
const ESYS_ANSWER_NOT_AUTHENTIC: u32 = ESYS_LAYER | 27;

/// Turns a return value into a result.
pub(super) fn check(call: &'static str, rc: sys::TSS2_RC) -> Result<(), TpmError> {
    if rc == 0 { Ok(()) } else { Err(TpmError { call, rc, detail: "" }) }
}

impl TpmError {
    /// A fault on our side of the call, or an answer without what it should have.
    pub(crate) fn local(call: &'static str, detail: &'static str) -> TpmError {
        TpmError { call, rc: 0, detail }
    }

    /// Who says it.
    pub(crate) fn layer(&self) -> Layer {
        match self.rc & LAYER_MASK {
            0 if self.rc != 0 => Layer::Tpm,
            RESMGR_TPM_LAYER => Layer::Tpm,
            ESYS_LAYER => Layer::Esys,
            TCTI_LAYER => Layer::Tcti,
            _ => Layer::Other,
        }
    }

    /// The chip's code without the number of parameter, handle or session; 0 when it is not the chip's.
    pub(crate) fn base(&self) -> u32 {
        let code = self.rc & 0xffff;
        match self.layer() {
            Layer::Tpm if code & 0x80 != 0 => code & 0xbf,
            Layer::Tpm => code,
            _ => 0,
        }
    }

    /// True for the chip's code `base`.
    pub(crate) fn is(&self, base: u32) -> bool {
        self.base() == base
    }

    /// True when the chip refused an auth value.
    pub(crate) fn is_auth(&self) -> bool {
        self.is(base::AUTH_FAIL) || self.is(base::BAD_AUTH)
    }

    /// True when the chip has no free slot for an object or a session.
    pub(crate) fn is_memory(&self) -> bool {
        // 0x901 context gap, 0x902 objects, 0x903 sessions, 0x904 memory, 0x905 and 0x906 handles
        (0x901..=0x906).contains(&self.base())
    }

    /// True when the chip asks to try again, or has no room at the moment.
    pub(crate) fn is_warning(&self) -> bool {
        (0x900..=0x93f).contains(&self.base())
    }

    fn status(&self) -> Status {
        match (self.layer(), self.base()) {
            (Layer::Tpm, base::LOCKOUT) => Status::Lockout,
            (Layer::Tpm, base::PCR_CHANGED) => Status::Transient,
            (Layer::Tpm, _) if self.is_warning() => Status::Transient,
            (Layer::Tpm, base::AUTH_FAIL | base::BAD_AUTH) => Status::Auth,
            (Layer::Tpm, base::INTEGRITY) => Status::Corrupt,
            (Layer::Tpm, base::NV_SPACE) => Status::ReadOnly,
            _ => Status::Io,
        }
    }

    fn meaning(&self) -> &'static str {
        match (self.layer(), self.base()) {
            (Layer::Tpm, base::VALUE) => ": value out of range or inconsistent",
            (Layer::Tpm, base::HANDLE) => ": there is no such object or index",
            (Layer::Tpm, base::AUTH_FAIL | base::BAD_AUTH) => ": wrong auth value",
            (Layer::Tpm, base::POLICY_FAIL | base::POLICY) => ": the policy is not satisfied",
            (Layer::Tpm, base::PCR_CHANGED) => ": registers (PCR) changed meanwhile, try again",
            (Layer::Tpm, base::INTEGRITY) => ": the blob is damaged, or another TPM made it",
            (Layer::Tpm, base::NV_DEFINED) => ": the index is defined already",
            (Layer::Tpm, base::NV_UNINITIALIZED) => ": the index was never written",
            (Layer::Tpm, base::NV_SPACE) => ": the TPM has no room for another index",
            (Layer::Tpm, base::OBJECT_MEMORY) => {
                ": the TPM has no free slot for an object; use a resource manager (device:/dev/tpmrm0, tabrmd)"
            }
            (Layer::Tpm, base::SESSION_MEMORY) => {
                ": the TPM has no free slot for a session; use a resource manager (device:/dev/tpmrm0, tabrmd)"
            }
            (Layer::Tpm, base::LOCKOUT) => ": the TPM is locked out after failed authorisations",
            (Layer::Tpm, _) if self.is_warning() => ": the TPM asks to try again",
            (Layer::Tpm, 0x100) => ": the TPM was not started (TPM2_Startup)",
            (Layer::Tpm, 0x101) => ": the TPM is in failure mode, restart the machine",
            _ if self.rc == TCTI_IO_ERROR || self.rc == TCTI_NO_CONNECTION => {
                ": the TPM is not reachable; is it there, and may this user open it"
            }
            _ if self.rc == ESYS_ANSWER_NOT_AUTHENTIC => {
                ": the answer is not authentic, something stands between us and the TPM"
            }
            _ => "",
        }
    }
}

impl std::fmt::Display for TpmError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let call = self.call.trim_start_matches("Esys_");
        match self.rc {
            0 => write!(f, "{call}: {}", self.detail),
            rc => write!(f, "{call}: {rc:#x}{}", self.meaning()),
        }
    }
}

impl From<TpmError> for GuestError {
    fn from(error: TpmError) -> GuestError {
        GuestError::new(error.status(), format!("tpm: {error}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn error(rc: u32) -> TpmError {
        check("Esys_X", rc).unwrap_err()
    }

    /// Codes that were seen on swtpm, and what they come to.
    #[test]
    fn codes() {
        for (rc, layer, base, status) in [
            (0x99d, Layer::Tpm, base::POLICY_FAIL, Status::Io),
            (0x1c4, Layer::Tpm, base::VALUE, Status::Io),
            (0x126, Layer::Tpm, base::POLICY, Status::Io),
            (0x128, Layer::Tpm, base::PCR_CHANGED, Status::Transient),
            (0x18b, Layer::Tpm, base::HANDLE, Status::Io),
            (0x1df, Layer::Tpm, base::INTEGRITY, Status::Corrupt),
            (0x98e, Layer::Tpm, base::AUTH_FAIL, Status::Auth),
            (0x9a2, Layer::Tpm, base::BAD_AUTH, Status::Auth),
            (0x921, Layer::Tpm, base::LOCKOUT, Status::Lockout),
            (0x902, Layer::Tpm, base::OBJECT_MEMORY, Status::Transient),
            (0x903, Layer::Tpm, base::SESSION_MEMORY, Status::Transient),
            (0xc0902, Layer::Tpm, base::OBJECT_MEMORY, Status::Transient),
            (0x14b, Layer::Tpm, base::NV_SPACE, Status::ReadOnly),
            (0xa000a, Layer::Tcti, 0, Status::Io),
            (0x7000b, Layer::Esys, 0, Status::Io),
            (0x8000b, Layer::Other, 0, Status::Io),
        ] {
            let error = error(rc);
            assert_eq!((error.layer(), error.base()), (layer, base), "{rc:#x}");
            assert_eq!(GuestError::from(error).status, status, "{rc:#x}");
        }
        assert!(error(0x903).is_memory() && !error(0x921).is_memory());
        assert!(error(0x9a2).is_auth() && error(0x98e).is_auth());
    }

    #[test]
    fn texts() {
        assert_eq!(error(0x14b).to_string(), "X: 0x14b: the TPM has no room for another index");
        assert_eq!(TpmError::local("Esys_X", "gave nothing").to_string(), "X: gave nothing");
        assert!(error(0xa000a).to_string().contains("not reachable"));
        assert!(error(ESYS_ANSWER_NOT_AUTHENTIC).to_string().contains("not authentic"));
    }
}
