//! Finding, reading, making, changing and destroying objects; making keys.

use std::sync::Arc;

use cryptoki_sys::*;
use mayfly_wire::types::Place;
use mayfly_wire::{
    Attribute, AttributeState, Data, INLINE_DATA_MAX, List, Mechanism, Request, Response, TemplateBuf, request,
};

use crate::agent::Repeat;
use crate::bytes::Bytes;
use crate::library::Library;
use crate::object::{Object, is_session_object};
use crate::operation::{Output, Room, deliverable};
use crate::rv::{Outcome, Rv, ensure, fail};
use crate::session::{Session, expect_done};

/// Most handles of one search.
const FOUND_MAX: usize = 1 << 20;

/// What C_GetAttributeValue is to say about one attribute.
#[derive(Debug)]
pub enum Shown {
    /// Its value.
    Value(Bytes),
    /// CKR_ATTRIBUTE_SENSITIVE.
    Sensitive,
    /// CKR_ATTRIBUTE_TYPE_INVALID.
    Absent,
}

impl Library {
    /// An object, remembered or asked for. `missing` is the code for a handle that names nothing.
    pub fn object(&self, slot: u32, handle: u64, missing: CK_RV) -> Outcome<Arc<Object>> {
        if let Some(object) = self.lock_objects().find(self.agent.run(), slot, handle) {
            return Ok(object);
        }
        let request = Request::Object(request::OfObject { token: slot, object: handle });
        let result = self.agent.call(Repeat::Harmless, &request, |header, answer| match answer {
            Response::Attributes(answer) => {
                let object = Arc::new(Object::new(&answer.attributes));
                let run = self.agent.run();
                self.lock_objects().insert(run, slot, header.object_version, handle, object.clone());
                Ok(object)
            }
            _ => fail(CKR_DEVICE_ERROR),
        });
        match self.check_login_lost(slot, result) {
            Err(Rv(CKR_OBJECT_HANDLE_INVALID | CKR_KEY_HANDLE_INVALID)) => fail(missing),
            other => other,
        }
    }

    /// C_GetAttributeValue: one answer for each type asked for, in order.
    pub fn attributes(&self, session: CK_SESSION_HANDLE, handle: u64, kinds: &[u64]) -> Outcome<Vec<Shown>> {
        let session = self.session(session)?;
        let object = self.object(session.slot, handle, CKR_OBJECT_HANDLE_INVALID)?;
        let mut shown: Vec<Option<Shown>> = kinds.iter().map(|kind| show(object.attribute(*kind))).collect();
        let open: Vec<u64> =
            kinds.iter().zip(&shown).filter(|(_, shown)| shown.is_none()).map(|(kind, _)| *kind).collect();
        if !open.is_empty() {
            let mut answers = self.ask_attributes(session.slot, handle, &open)?.into_iter();
            for place in shown.iter_mut().filter(|shown| shown.is_none()) {
                *place = answers.next();
            }
        }
        Ok(shown.into_iter().map(|shown| shown.unwrap_or(Shown::Absent)).collect())
    }

    /// Attributes that are not remembered: each read costs an assembly, and leaves no copy here.
    fn ask_attributes(&self, slot: u32, handle: u64, kinds: &[u64]) -> Outcome<Vec<Shown>> {
        let request = request::Attributes { token: slot, object: handle, kinds: List::from(kinds) };
        self.ask(slot, Repeat::Harmless, &Request::Attributes(request), |answer| match answer {
            Response::Attributes(answer) => {
                Ok(answer.attributes.iter().map(|one| show(one.state).unwrap_or(Shown::Absent)).collect())
            }
            _ => fail(CKR_DEVICE_ERROR),
        })
    }

    /// C_FindObjectsInit: the search is done here, C_FindObjects hands out its result.
    pub fn find_init(&self, session: CK_SESSION_HANDLE, template: &TemplateBuf) -> Outcome {
        let session = self.session(session)?;
        session.check_no_find()?;
        let mut handles = Vec::new();
        loop {
            let request = request::FindObjects {
                token: session.slot,
                after: handles.last().copied().unwrap_or(0),
                count_max: mayfly_wire::FIND_HANDLES_MAX as u32,
                template: template.as_list(),
            };
            let before = handles.len();
            let more =
                self.ask(session.slot, Repeat::Harmless, &Request::FindObjects(request), |answer| match answer {
                    Response::Found(found) => {
                        handles.truncate(before);
                        handles.extend(found.handles.iter());
                        Ok(found.more)
                    }
                    _ => fail(CKR_DEVICE_ERROR),
                })?;
            // An agent that says "more" and gives nothing would keep us here for ever.
            if !more || handles.len() == before || handles.len() >= FOUND_MAX {
                return session.start_find(handles);
            }
        }
    }

    /// C_CreateObject.
    pub fn create_object(&self, session: CK_SESSION_HANDLE, template: &TemplateBuf) -> Outcome<u64> {
        let session = self.session(session)?;
        self.check_new(&session, template.as_list(), false)?;
        let request =
            request::CreateObject { token: session.slot, session: session.handle, template: template.as_list() };
        self.make(&session, &Request::CreateObject(request))
    }

    /// C_CopyObject.
    pub fn copy_object(&self, session: CK_SESSION_HANDLE, handle: u64, template: &TemplateBuf) -> Outcome<u64> {
        let session = self.session(session)?;
        let object = self.object(session.slot, handle, CKR_OBJECT_HANDLE_INVALID)?;
        ensure(object.value(CKA_COPYABLE) != Some(&[0]), CKR_ACTION_PROHIBITED)?;
        self.check_new(&session, template.as_list(), object.is(CKA_TOKEN))?;
        let request = request::CopyObject {
            token: session.slot,
            session: session.handle,
            object: handle,
            template: template.as_list(),
        };
        self.make(&session, &Request::CopyObject(request))
    }

    /// C_DestroyObject.
    pub fn destroy_object(&self, session: CK_SESSION_HANDLE, handle: u64) -> Outcome {
        let session = self.session(session)?;
        let object = self.object(session.slot, handle, CKR_OBJECT_HANDLE_INVALID)?;
        check_changeable(&session, handle, &object)?;
        ensure(object.value(CKA_DESTROYABLE) != Some(&[0]), CKR_ACTION_PROHIBITED)?;
        let request = Request::DestroyObject(request::OfObject { token: session.slot, object: handle });
        self.ask(session.slot, Repeat::Never, &request, expect_done)?;
        self.lock_objects().forget(session.slot);
        Ok(())
    }

    /// C_SetAttributeValue.
    pub fn set_attributes(&self, session: CK_SESSION_HANDLE, handle: u64, template: &TemplateBuf) -> Outcome {
        let session = self.session(session)?;
        let object = self.object(session.slot, handle, CKR_OBJECT_HANDLE_INVALID)?;
        check_changeable(&session, handle, &object)?;
        ensure(object.value(CKA_MODIFIABLE) != Some(&[0]), CKR_ACTION_PROHIBITED)?;
        let template = template.as_list();
        let request = request::SetAttributes { token: session.slot, object: handle, template };
        self.ask(session.slot, Repeat::Never, &Request::SetAttributes(request), expect_done)?;
        self.lock_objects().forget(session.slot);
        Ok(())
    }

    /// C_GetObjectSize.
    pub fn object_size(&self, session: CK_SESSION_HANDLE, handle: u64) -> Outcome<u64> {
        let session = self.session(session)?;
        let request = Request::ObjectSize(request::OfObject { token: session.slot, object: handle });
        self.ask(session.slot, Repeat::Harmless, &request, |answer| match answer {
            Response::Size(size) => Ok(size.bytes),
            _ => fail(CKR_DEVICE_ERROR),
        })
    }

    /// C_GenerateKey.
    pub fn generate_key(
        &self,
        session: CK_SESSION_HANDLE,
        mechanism: &Mechanism<'_>,
        template: &TemplateBuf,
    ) -> Outcome<u64> {
        let session = self.session(session)?;
        self.check_offered(session.slot, mechanism.code, CKF_GENERATE)?;
        self.check_new(&session, template.as_list(), false)?;
        let request = request::GenerateKey {
            token: session.slot,
            session: session.handle,
            mechanism: *mechanism,
            template: template.as_list(),
        };
        self.make(&session, &Request::GenerateKey(request))
    }

    /// C_GenerateKeyPair: handles of the public and the private key.
    pub fn generate_key_pair(
        &self,
        session: CK_SESSION_HANDLE,
        mechanism: &Mechanism<'_>,
        public: &TemplateBuf,
        private: &TemplateBuf,
    ) -> Outcome<(u64, u64)> {
        let session = self.session(session)?;
        self.check_offered(session.slot, mechanism.code, CKF_GENERATE_KEY_PAIR)?;
        self.check_new(&session, public.as_list(), false)?;
        self.check_new(&session, private.as_list(), false)?;
        session.make_known();
        let request = request::GenerateKeyPair {
            token: session.slot,
            session: session.handle,
            mechanism: *mechanism,
            public: public.as_list(),
            private: private.as_list(),
        };
        self.ask(session.slot, Repeat::Never, &Request::GenerateKeyPair(request), |answer| match answer {
            Response::CreatedPair(pair) => Ok((pair.public, pair.private)),
            _ => fail(CKR_DEVICE_ERROR),
        })
    }

    /// C_WrapKey. Only the agent knows how long the result is, so that a length query wraps too.
    pub fn wrap_key(
        &self,
        session: CK_SESSION_HANDLE,
        mechanism: &Mechanism<'_>,
        wrapping: u64,
        key: u64,
        room: Room,
    ) -> Outcome<Output> {
        let session = self.session(session)?;
        self.check_offered(session.slot, mechanism.code, CKF_WRAP)?;
        self.object(session.slot, wrapping, CKR_WRAPPING_KEY_HANDLE_INVALID)?;
        self.object(session.slot, key, CKR_KEY_HANDLE_INVALID)?;
        let request = request::Wrap {
            token: session.slot,
            session: session.handle,
            mechanism: *mechanism,
            wrapping,
            key,
            output: Place::Inline { max: INLINE_DATA_MAX as u32 },
        };
        let wrapped = self.ask(session.slot, Repeat::Harmless, &Request::Wrap(request), |answer| match answer {
            Response::Output(output) => match output.data {
                Data::Inline(bytes) => Bytes::copy(bytes.0),
                Data::Shared { .. } => fail(CKR_DEVICE_ERROR),
            },
            _ => fail(CKR_DEVICE_ERROR),
        })?;
        Ok(deliverable(wrapped, room))
    }

    /// C_UnwrapKey.
    pub fn unwrap_key(
        &self,
        session: CK_SESSION_HANDLE,
        mechanism: &Mechanism<'_>,
        unwrapping: u64,
        wrapped: &[u8],
        template: &TemplateBuf,
    ) -> Outcome<u64> {
        let session = self.session(session)?;
        self.check_offered(session.slot, mechanism.code, CKF_UNWRAP)?;
        ensure(wrapped.len() <= INLINE_DATA_MAX, CKR_WRAPPED_KEY_LEN_RANGE)?;
        self.object(session.slot, unwrapping, CKR_UNWRAPPING_KEY_HANDLE_INVALID)?;
        self.check_new(&session, template.as_list(), false)?;
        let request = request::Unwrap {
            token: session.slot,
            session: session.handle,
            mechanism: *mechanism,
            unwrapping,
            wrapped: Data::inline(wrapped),
            template: template.as_list(),
        };
        self.make(&session, &Request::Unwrap(request))
    }

    /// C_DeriveKey.
    pub fn derive_key(
        &self,
        session: CK_SESSION_HANDLE,
        mechanism: &Mechanism<'_>,
        base: u64,
        template: &TemplateBuf,
    ) -> Outcome<u64> {
        let session = self.session(session)?;
        self.check_offered(session.slot, mechanism.code, CKF_DERIVE)?;
        self.object(session.slot, base, CKR_KEY_HANDLE_INVALID)?;
        self.check_new(&session, template.as_list(), false)?;
        let request = request::Derive {
            token: session.slot,
            session: session.handle,
            mechanism: *mechanism,
            base,
            template: template.as_list(),
        };
        self.make(&session, &Request::Derive(request))
    }

    /// Sends what makes one object.
    fn make(&self, session: &Session, request: &Request<'_>) -> Outcome<u64> {
        session.make_known();
        self.ask(session.slot, Repeat::Never, request, |answer| match answer {
            Response::Created(created) if created.object != CK_INVALID_HANDLE => Ok(created.object),
            _ => fail(CKR_DEVICE_ERROR),
        })
    }

    /// Whether a session may make what a template says. What the template leaves open is `token` for
    /// CKA_TOKEN and the agent's business for CKA_PRIVATE.
    fn check_new(&self, session: &Session, template: List<'_, Attribute<'_>>, token: bool) -> Outcome {
        let said = |kind| template.iter().find(|attribute| attribute.kind == kind).map(|attribute| attribute.as_bool());
        let is_token = match said(CKA_TOKEN) {
            Some(value) => value.ok_or(Rv(CKR_ATTRIBUTE_VALUE_INVALID))?,
            None => token,
        };
        ensure(!is_token || session.is_writable, CKR_SESSION_READ_ONLY)?;
        match said(CKA_PRIVATE) {
            Some(None) => fail(CKR_ATTRIBUTE_VALUE_INVALID),
            Some(Some(true)) if self.needs_login(session.slot) => self.check_user(session.slot),
            _ => Ok(()),
        }
    }

    fn needs_login(&self, slot: u32) -> bool {
        self.token(slot.into()).is_ok_and(|token| token.is_login_required())
    }
}

/// Whether a session may change an object: a token object only in a read-write session.
fn check_changeable(session: &Session, handle: u64, object: &Object) -> Outcome {
    let is_token = !is_session_object(handle) && object.value(CKA_TOKEN) != Some(&[0]);
    ensure(!is_token || session.is_writable, CKR_SESSION_READ_ONLY)
}

/// What is shown of an attribute; `None` if the agent has to be asked.
fn show(state: AttributeState<'_>) -> Option<Shown> {
    match state {
        AttributeState::Value(value) => Some(Shown::Value(Bytes::from(value.0))),
        AttributeState::Sensitive => Some(Shown::Sensitive),
        AttributeState::Absent => Some(Shown::Absent),
        AttributeState::OnRequest => None,
    }
}
