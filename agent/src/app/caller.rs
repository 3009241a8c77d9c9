//! Who asks, what he is logged in to, and what he may see: asked anew by every request, remembered as long as nothing changed.

use std::sync::Arc;

use mayfly_protocol::rules::Use;
use mayfly_protocol::state::{State, Token};
use mayfly_protocol::{DeviceId, TokenId};
use mayfly_wire::{ResponseFlags, SESSION_OBJECT_BIT};

use super::App;
use super::applications::{Application, Attached, LoginUser};
use super::ck::*;
use super::fail::{Done, Fail};
use super::objects::catalogue::{Catalogue, Shelf};
use super::objects::view::View;
use super::principal::Principal;

/// One token as one application sees it at one moment.
#[derive(Debug)]
pub struct Glance {
    /// Its slot.
    pub slot: u32,
    /// Its id on the ledger.
    pub token: TokenId,
    /// As whom the application is logged in.
    pub login: Option<LoginUser>,
    /// Everything on the ledger.
    pub catalogue: Arc<Catalogue>,
    /// Name of this device.
    pub device_name: String,
    /// Grows with everything that changes what the application sees.
    pub object_version: u64,
    changes: u64,
}

impl Glance {
    /// The ledger's state.
    pub fn state(&self) -> &Arc<State> {
        self.catalogue.state()
    }

    /// The token's objects; `None`: it never had any.
    pub fn shelf(&self) -> Option<&Shelf> {
        self.catalogue.shelf(&self.token)
    }

    /// The token.
    ///
    /// # Errors
    /// CKR_TOKEN_NOT_PRESENT.
    pub fn token_state(&self) -> Done<&Token> {
        self.state().tokens.get(&self.token).ok_or_else(no_token)
    }

    /// Flags of an answer.
    pub fn flags(&self) -> ResponseFlags {
        match self.login {
            Some(LoginUser::User) => ResponseFlags::USER_LOGGED_IN,
            Some(LoginUser::SecurityOfficer) => ResponseFlags::SO_LOGGED_IN,
            None => ResponseFlags::default(),
        }
    }

    /// Refuses what only a logged-in user may do.
    ///
    /// # Errors
    /// CKR_USER_NOT_LOGGED_IN.
    pub fn need_user(&self) -> Done<()> {
        if self.login == Some(LoginUser::User) {
            Ok(())
        } else {
            Err(Fail::ruled(CKR_USER_NOT_LOGGED_IN, "login", "this needs a login as user of the token"))
        }
    }

    /// Refuses what only somebody who is logged in may do, as whichever user.
    ///
    /// # Errors
    /// CKR_USER_NOT_LOGGED_IN.
    pub fn need_login(&self) -> Done<()> {
        if self.login.is_some() {
            Ok(())
        } else {
            Err(Fail::ruled(
                CKR_USER_NOT_LOGGED_IN,
                "login",
                "what lies in a token is changed by its logged-in users only",
            ))
        }
    }

    /// Refuses changes where this device may make none.
    ///
    /// # Errors
    /// CKR_TOKEN_WRITE_PROTECTED.
    pub fn need_creator(&self, device: &DeviceId) -> Done<()> {
        if self.state().creates_in(&self.token, device) {
            Ok(())
        } else {
            let reason = "the token's policy does not let this device make or change anything in it";
            Err(Fail::ruled(CKR_TOKEN_WRITE_PROTECTED, "creators", reason))
        }
    }
}

fn no_token() -> Fail {
    Fail::new(CKR_TOKEN_NOT_PRESENT, "there is no such token here")
}

/// One application on one connection.
#[derive(Debug)]
pub struct Caller<'a> {
    /// The agent's application half.
    pub app: &'a App,
    /// The user.
    pub principal: Principal,
    /// [`super::principal::Peer::account`].
    pub account: u32,
    attached: Attached,
    newest: Option<Arc<Glance>>,
}

impl<'a> Caller<'a> {
    /// A caller that has said hello.
    pub fn new(app: &'a App, principal: Principal, account: u32, attached: Attached) -> Self {
        Self { app, principal, account, attached, newest: None }
    }

    /// Its application.
    pub fn application(&self) -> &Arc<Application> {
        self.attached.application()
    }

    /// Forgets what was looked up: nobody shall keep an old state of the ledger alive while he sleeps.
    pub fn rest(&mut self) {
        self.newest = None;
    }

    /// Its hold on the application.
    pub fn attached(&self) -> &Attached {
        &self.attached
    }

    /// The token in a slot as it is now.
    ///
    /// # Errors
    /// CKR_SLOT_ID_INVALID: no token, or none that this user may see on this device.
    pub fn glance(&mut self, slot: u32) -> Done<Arc<Glance>> {
        let state = self.app.keys.state();
        let changes = self.application().changes();
        if let Some(newest) = &self.newest
            && newest.slot == slot
            && newest.changes == changes
            && Arc::ptr_eq(newest.state(), &state)
        {
            return Ok(newest.clone());
        }
        let fresh = Arc::new(self.look(slot, &state, changes)?);
        self.newest = Some(fresh.clone());
        Ok(fresh)
    }

    fn look(&self, slot: u32, state: &Arc<State>, changes: u64) -> Done<Glance> {
        let device = self.app.keys.device();
        let catalogue = self.app.catalogues.of(state);
        let device_name = catalogue.state().device_name(&device);
        let in_slot =
            catalogue.in_slot(slot).filter(|(id, token)| self.sees(catalogue.state(), id, token, &device_name));
        let (id, token) = in_slot.ok_or_else(|| Fail::new(CKR_SLOT_ID_INVALID, "there is no such slot"))?;
        let (token, object_version) = (*id, token.version + changes);
        let login = self.application().login(&token);
        Ok(Glance { slot, token, login, catalogue, device_name, object_version, changes })
    }

    /// Whether the user sees this token on this device.
    pub fn sees(&self, state: &State, id: &TokenId, token: &Token, device_name: &str) -> bool {
        state.sees_token(id, &self.app.keys.device()) && self.principal.may_see(&token.record.allow, device_name)
    }

    /// The object that a handle names, whether the user may see it or not.
    pub fn object<'g>(&self, glance: &'g Glance, handle: u64) -> Option<View<'g>> {
        if handle & SESSION_OBJECT_BIT != 0 {
            return self.application().object(&glance.token, handle).map(|object| View::Session(handle, object));
        }
        glance.shelf()?.get(handle).and_then(|target| View::of(glance.state(), target))
    }

    /// The object that a handle names, if the user may see it.
    ///
    /// # Errors
    /// CKR_OBJECT_HANDLE_INVALID.
    pub fn seen<'g>(&self, glance: &'g Glance, handle: u64) -> Done<View<'g>> {
        let view = self.object(glance, handle).filter(|view| self.sees_object(glance, view));
        view.ok_or_else(|| Fail::new(CKR_OBJECT_HANDLE_INVALID, "there is no such object"))
    }

    /// Whether the user sees an object: private ones when logged in, keys when their policy names him.
    pub fn sees_object(&self, glance: &Glance, view: &View<'_>) -> bool {
        let is_allowed = match view {
            View::Key(key) => self.principal.may_use(&key.record.policy.allow, &glance.device_name),
            _ => true,
        };
        is_allowed && (glance.login == Some(LoginUser::User) || !view.is_private())
    }

    /// The same, with the reason.
    ///
    /// # Errors
    /// CKR_KEY_FUNCTION_NOT_PERMITTED, CKR_USER_NOT_LOGGED_IN.
    pub fn may_look(&self, glance: &Glance, view: &View<'_>) -> Done<()> {
        self.may_use_on(view, &glance.device_name)?;
        if view.is_private() { glance.need_user() } else { Ok(()) }
    }

    /// Whether a key's policy lets the user in on this device.
    ///
    /// # Errors
    /// CKR_KEY_FUNCTION_NOT_PERMITTED.
    pub fn may_use(&self, view: &View<'_>) -> Done<()> {
        self.may_use_on(view, &self.app.keys.state().device_name(&self.app.keys.device()))
    }

    fn may_use_on(&self, view: &View<'_>, device: &str) -> Done<()> {
        match view {
            View::Key(key) if !self.principal.may_use(&key.record.policy.allow, device) => {
                let reason =
                    format!("the key's policy does not let user {} use it on device {device}", self.principal.name());
                Err(Fail::ruled(CKR_KEY_FUNCTION_NOT_PERMITTED, "allow", reason)
                    .next("who may use a key is set when it is made (mayfly key create --allow)"))
            }
            _ => Ok(()),
        }
    }

    /// The key that a handle names, for a use of it.
    ///
    /// # Errors
    /// CKR_KEY_HANDLE_INVALID, CKR_USER_NOT_LOGGED_IN, CKR_KEY_FUNCTION_NOT_PERMITTED, CKR_MECHANISM_INVALID.
    pub fn key<'g>(
        &self,
        glance: &'g Glance,
        handle: u64,
        session: u64,
        purpose: Use,
        mechanism: CK_MECHANISM_TYPE,
    ) -> Done<View<'g>> {
        let view = self.object(glance, handle).filter(|view| view.key_type().is_some());
        let view = view.ok_or_else(|| Fail::new(CKR_KEY_HANDLE_INVALID, "there is no such key"))?;
        self.may_look(glance, &view)?;
        let attribute = usage_attribute(purpose);
        if attribute.is_some_and(|attribute| !view.flag(attribute)) {
            let reason = format!("the key's attributes do not allow '{}'", purpose.name());
            return Err(Fail::ruled(CKR_KEY_FUNCTION_NOT_PERMITTED, "usage", reason));
        }
        if !view.allows_mechanism(mechanism) {
            return Err(Fail::new(CKR_MECHANISM_INVALID, "the key's CKA_ALLOWED_MECHANISMS do not name the mechanism"));
        }
        if view.flag(CKA_ALWAYS_AUTHENTICATE) && !self.application().take_allowed_once(glance.token, session) {
            let reason = "the key wants the PIN before each use (CKA_ALWAYS_AUTHENTICATE)";
            return Err(Fail::ruled(CKR_USER_NOT_LOGGED_IN, "login", reason));
        }
        Ok(view)
    }
}

/// The attribute that must be TRUE for a use.
fn usage_attribute(purpose: Use) -> Option<CK_ATTRIBUTE_TYPE> {
    match purpose {
        Use::Encrypt | Use::Iv => Some(CKA_ENCRYPT),
        Use::Decrypt => Some(CKA_DECRYPT),
        Use::Sign => Some(CKA_SIGN),
        Use::Verify => Some(CKA_VERIFY),
        Use::Derive => Some(CKA_DERIVE),
        Use::Wrap => Some(CKA_WRAP),
        Use::Unwrap => Some(CKA_UNWRAP),
        Use::Export => None,
    }
}
