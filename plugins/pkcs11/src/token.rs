//! The open token: one session, logged in once, opened again when it is lost.
//!
//! A session that is lost (token pulled and put back, network gone, logged out by somebody else) is opened again once
//! per call, and once more after C_Finalize and C_Initialize. A PIN that the token refuses ends that for good.
//!
//! Handles of objects are good within one session only, so whatever uses one finds it in the same [`Token::with`].

use crate::config::{Config, NamedUser, Seal, User};
use crate::error::{self, Fault};
use crate::identity::Signing;
use crate::module::Module;
use crate::pin::PinSource;
use crate::seal::Sealing;
use cryptoki::context::Pkcs11;
use cryptoki::error::{Error, RvError};
use cryptoki::mechanism::{MechanismInfo, MechanismType};
use cryptoki::session::{Session, SessionState, UserType};
use cryptoki::slot::{Slot, TokenInfo};
use mayfly_plugin_abi::{GuestError, Status};
use mayfly_vault_store::Store;
use mayfly_vault_store::config::refuse;
use std::sync::Arc;

/// Makers of tokens in software, as their CK_TOKEN_INFO begins.
const SOFTWARE_MAKERS: [&str; 4] = ["softhsm", "kryoptic", "mozilla", "pkcs#11 kit"];

/// The token, connected or to be connected again.
pub(crate) struct Token {
    module: Module,
    config: Config,
    pin: PinSource,
    open: Option<Open>,
    sealing: Sealing,
    signing: Signing,
    #[cfg(test)]
    faults: Arc<mayfly_vault_store::faults::Faults>,
}

/// A session, logged in.
pub(crate) struct Open {
    pub(crate) session: Session,
    info: TokenInfo,
    library: Pkcs11,
    slot: Slot,
    #[cfg(test)]
    faults: Arc<mayfly_vault_store::faults::Faults>,
}

impl Token {
    /// Finds the token, checks that it has the mechanisms, logs in.
    pub(crate) fn open(module: Module, config: Config, store: &Arc<Store>) -> Result<Token, GuestError> {
        let pin = PinSource::new(config.pin()?, store.clone());
        // no PIN goes to a token that cannot do the work
        let slot = module.find(&config)?.slot;
        let (sealing, signing) = choose_mechanisms(&module, &config, slot)?;
        let mut token = Token {
            module,
            config,
            pin,
            open: None,
            sealing,
            signing,
            #[cfg(test)]
            faults: store.faults.clone(),
        };
        token.connect()?;
        Ok(token)
    }

    /// How new generations are sealed.
    pub(crate) fn sealing(&self) -> Sealing {
        self.sealing
    }

    /// How the identity signs.
    pub(crate) fn signing(&self) -> Signing {
        self.signing
    }

    /// The wanted token, for messages.
    pub(crate) fn wanted(&self) -> String {
        self.config.wanted()
    }

    /// Runs `call` in the session; once more in a new one when the session is lost. `call` must be fit to be repeated
    /// after it was done in part.
    pub(crate) fn with<T>(
        &mut self,
        doing: &str,
        mut call: impl FnMut(&Open) -> Result<T, Fault>,
    ) -> Result<T, GuestError> {
        if let Some(open) = &self.open {
            match call(open) {
                Err(fault) if fault.is_lost() => self.open = None,
                Err(fault) if fault.is_vague() => {
                    // it may be the session: the next call gets a new one
                    self.open = None;
                    return Err(fault.told(doing));
                }
                result => return result.map_err(|fault| fault.told(doing)),
            }
        }
        self.reconnect()?;
        match &self.open {
            Some(open) => call(open).map_err(|fault| fault.told(doing)),
            None => Err(GuestError::new(Status::Internal, "no session after connecting")),
        }
    }

    /// What the token says of itself now, and whether nothing but software is under it.
    pub(crate) fn describe(&mut self) -> Result<(TokenInfo, bool), GuestError> {
        self.with("asking the token what it is", |open| {
            let info = open.library.get_token_info(open.slot)?;
            let maker = info.manufacturer_id().to_lowercase();
            let known = SOFTWARE_MAKERS.iter().any(|software| maker.starts_with(software));
            // a slot that does not call itself hardware is not believed to be any
            let hardware = open.library.get_slot_info(open.slot)?.hardware_slot();
            Ok((info, known || !hardware))
        })
    }

    fn connect(&mut self) -> Result<(), GuestError> {
        self.open = None;
        let present = self.module.find(&self.config)?;
        let library = self.module.library().clone();
        let session = library.open_rw_session(present.slot);
        let session = session.map_err(error::refusal("opening a session with the token"))?;
        self.login(&session, &present.info)?;
        self.open = Some(Open {
            session,
            info: present.info,
            library,
            slot: present.slot,
            #[cfg(test)]
            faults: self.faults.clone(),
        });
        Ok(())
    }

    fn reconnect(&mut self) -> Result<(), GuestError> {
        match self.connect() {
            Err(error) if matches!(error.status, Status::Transient | Status::Io) => {
                self.module.begin_again().map_err(error::refusal("starting the PKCS#11 library again"))?;
                self.connect()
            }
            other => other,
        }
    }

    fn login(&mut self, session: &Session, info: &TokenInfo) -> Result<(), GuestError> {
        if !info.login_required() || is_logged_in(session) {
            return Ok(());
        }
        let wanted = self.config.wanted();
        let user = match self.config.user {
            User::Named(NamedUser::User) => {
                may_try(info, &wanted)?;
                UserType::User
            }
            User::Vendor(code) => UserType::VendorExtension(code),
        };
        let mut pin = self.pin.read()?;
        let result = match &mut pin {
            Some(pin) => session.login_with_raw(user, &pin.take()),
            None if info.protected_authentication_path() => session.login(user, None),
            None => {
                let text = format!("{wanted} wants a PIN: set pin_file or pin_credential in the vault's configuration");
                return Err(refuse(text));
            }
        };
        match result {
            Ok(()) | Err(Error::Pkcs11(RvError::UserAlreadyLoggedIn, _)) => self.pin.accepted(),
            Err(failed) => {
                let status = error::status(&failed);
                let mut text = format!("{wanted} does not let us in: {}", error::name(&failed));
                if matches!(failed, Error::Pkcs11(RvError::UserPinNotInitialized, _)) {
                    text = format!("{text}; set a user PIN by its vendor's tool");
                }
                if matches!(status, Status::Auth | Status::Lockout) {
                    text = format!("{text}; {}", self.pin.refused(pin.as_ref()));
                }
                Err(GuestError::new(status, text))
            }
        }
    }
}

#[cfg(test)]
impl Token {
    /// C_Finalize and C_Initialize by somebody else: every session of ours is gone.
    pub(crate) fn begin_again_under_us(&self) {
        self.module.begin_again().expect("SoftHSM starts again");
    }
}

impl Drop for Token {
    fn drop(&mut self) {
        self.open = None;
        self.module.end();
    }
}

impl Open {
    /// Another session with the same token, which sees what is there and not what this one remembers.
    pub(crate) fn another(&self) -> Result<Open, Fault> {
        Ok(Open {
            session: self.library.open_rw_session(self.slot)?,
            info: self.info.clone(),
            library: self.library.clone(),
            slot: self.slot,
            #[cfg(test)]
            faults: self.faults.clone(),
        })
    }

    /// An error when the session sees no private objects because somebody logged it out: then nothing that is not
    /// found is known to be gone.
    pub(crate) fn check_login(&self) -> Result<(), Fault> {
        if !self.info.login_required() || is_logged_in(&self.session) {
            return Ok(());
        }
        Err(Error::Pkcs11(RvError::UserNotLoggedIn, cryptoki::context::Function::FindObjects).into())
    }

    /// One change of the token's objects; tests let any one fail before or after it was done.
    pub(crate) fn step<T>(&self, change: impl FnOnce() -> Result<T, Error>) -> Result<T, Error> {
        #[cfg(test)]
        return self
            .faults
            .around(change, || Error::Pkcs11(RvError::FunctionRejected, cryptoki::context::Function::DestroyObject));
        #[cfg(not(test))]
        change()
    }
}

fn is_logged_in(session: &Session) -> bool {
    matches!(
        session.get_session_info().map(|info| info.session_state()),
        Ok(SessionState::RwUser | SessionState::RoUser)
    )
}

/// Refuses to spend the last attempt, and to try where none is left.
fn may_try(info: &TokenInfo, wanted: &str) -> Result<(), GuestError> {
    let lockout = |text: String| Err(GuestError::new(Status::Lockout, text));
    if info.user_pin_locked() {
        return lockout(format!("the user PIN of {wanted} is locked: its security officer must unlock it"));
    }
    if info.user_pin_final_try() {
        return lockout(format!(
            "one attempt is left before the user PIN of {wanted} locks, and it is not spent here: log in by hand once \
             (pkcs11-tool --login --list-objects), then start again"
        ));
    }
    Ok(())
}

fn choose_mechanisms(module: &Module, config: &Config, slot: Slot) -> Result<(Sealing, Signing), GuestError> {
    let library = module.library();
    let listed = library.get_mechanism_list(slot).map_err(error::refusal("listing the token's mechanisms"))?;
    let info = |mechanism| -> Option<MechanismInfo> {
        listed.contains(&mechanism).then(|| library.get_mechanism_info(slot, mechanism).ok())?
    };
    let lacks = |what: &str| refuse(format!("{} cannot be a vault: it lacks {what}", config.wanted()));
    let wishes = match config.seal {
        Seal::Auto => &Sealing::ALL[..],
        Seal::AesGcm => &[Sealing::Gcm],
        Seal::AesKeyWrapPad => &[Sealing::KeyWrapPad],
    };
    let offered = |sealing: &&Sealing| info(sealing.mechanism()).is_some_and(|info| sealing.is_offered(&info));
    let names: Vec<_> = wishes.iter().map(|sealing| sealing.name()).collect();
    let sealing = wishes.iter().find(offered).ok_or_else(|| lacks(&names.join(" and ")))?;
    if !info(MechanismType::AES_KEY_GEN).is_some_and(|info| info.generate()) {
        return Err(lacks("CKM_AES_KEY_GEN"));
    }
    if !info(MechanismType::ECC_KEY_PAIR_GEN).is_some_and(|info| info.generate_key_pair()) {
        return Err(lacks("CKM_EC_KEY_PAIR_GEN"));
    }
    let signing = Signing::choose(|mechanism| info(mechanism).is_some_and(|info| info.sign()));
    Ok((*sealing, signing.ok_or_else(|| lacks("CKM_ECDSA"))?))
}
