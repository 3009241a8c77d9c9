//! C_CreateObject, C_GenerateKey, C_GenerateKeyPair, C_CopyObject.
//!
//! A token key is dealt to its holders and posted in one record; a session object is kept in secret memory and nowhere else. Private data
//! objects of the token are kept like keys, wrapped under a shared root: nothing secret lies on the ledger in the open. They are
//! therefore at most 512 bytes long.

use std::sync::Arc;

use mayfly_protocol::record::{self, Attribute, Origin, Schedule};
use mayfly_protocol::rules::{GENERIC_BYTES_MAX, KeyType, Use};
use mayfly_protocol::{KeyId, ObjectId};
use mayfly_secmem::SecretBytes;
use mayfly_wire::{Mechanism, Parameters, request};

use super::attributes::{self, Change, class, put, put_bool, stored, stored_bool};
use super::catalogue::Target;
use super::change::may_use_so;
use super::session::SessionObject;
use super::template::{Draft, Template, uses_of};
use super::view::View;
use super::{ec, find};
use crate::app::caller::{Caller, Glance};
use crate::app::ck::*;
use crate::app::fail::{Done, Fail};
use crate::app::mechanisms;
use crate::app::reply::Reply;
use crate::node::{Material, NewKey};

/// C_CreateObject.
///
/// # Errors
/// As PKCS#11 says for templates; CKR_USER_NOT_LOGGED_IN, CKR_TOKEN_WRITE_PROTECTED, CKR_DEVICE_ERROR.
pub fn create(caller: &Caller<'_>, glance: &Glance, ask: &request::CreateObject<'_>) -> Done<Reply> {
    let template = Template::read(ask.template)?;
    let draft = Draft::brought(&template)?;
    let secret = match (draft.secret(), draft.key_type) {
        (Some(scalar), Some(key_type)) if draft.class == class::PRIVATE => {
            let curve = ec::curve(key_type).ok_or_else(|| Fail::new(CKR_ATTRIBUTE_VALUE_INVALID, "no curve"))?;
            Some(mayfly_engine::import_ec_scalar(curve, scalar)?)
        }
        (Some([]), _) => None,
        (Some(value), _) => Some(SecretBytes::new_with(value.len(), |to| to.copy_from_slice(value))?),
        (None, _) => None,
    };
    let Draft { class, attributes, key_type, .. } = draft;
    let born = Born { class, attributes, key_type, origin: Origin::Imported, secret: secret.map(Arc::new) };
    keep(caller, glance, ask.session, born).map(Reply::Created)
}

/// C_GenerateKey.
///
/// # Errors
/// As [`create`]; CKR_MECHANISM_INVALID.
pub fn generate(caller: &Caller<'_>, glance: &Glance, ask: &request::GenerateKey<'_>) -> Done<Reply> {
    let template = Template::read(ask.template)?;
    let number = match plain(&ask.mechanism)? {
        CKM_AES_KEY_GEN => CKK_AES,
        CKM_GENERIC_SECRET_KEY_GEN => generic_number(&template),
        other => return Err(mechanisms::unknown(other)),
    };
    let Draft { class, attributes, key_type, .. } = Draft::generated_secret(ask.mechanism.code, number, &template)?;
    let mut born = Born { class, attributes, key_type, origin: Origin::Dealt, secret: None };
    if !born.is_token() {
        let bytes = key_type.and_then(KeyType::derived_bytes).unwrap_or(0);
        born.secret = Some(Arc::new(mayfly_engine::generate_secret(bytes)?));
    }
    keep(caller, glance, ask.session, born).map(Reply::Created)
}

/// Generic secrets may be called by their hash (CKK_SHA256_HMAC and its like).
fn generic_number(template: &Template<'_>) -> CK_KEY_TYPE {
    let hmacs = [CKK_SHA_1_HMAC, CKK_SHA224_HMAC, CKK_SHA256_HMAC, CKK_SHA384_HMAC, CKK_SHA512_HMAC];
    template.ulong(CKA_KEY_TYPE).filter(|number| hmacs.contains(number)).unwrap_or(CKK_GENERIC_SECRET)
}

/// The code of a mechanism that takes no parameters.
fn plain(mechanism: &Mechanism<'_>) -> Done<CK_MECHANISM_TYPE> {
    match mechanism.parameters {
        Parameters::None => Ok(mechanism.code),
        _ => Err(Fail::new(CKR_MECHANISM_PARAM_INVALID, "key generation takes no parameters")),
    }
}

/// C_GenerateKeyPair.
///
/// # Errors
/// As [`create`]; CKR_MECHANISM_INVALID.
pub fn generate_pair(caller: &Caller<'_>, glance: &Glance, ask: &request::GenerateKeyPair<'_>) -> Done<Reply> {
    let mechanism = plain(&ask.mechanism)?;
    if mechanism != CKM_EC_KEY_PAIR_GEN {
        return Err(mechanisms::unknown(mechanism));
    }
    let (public, private) = (Template::read(ask.public)?, Template::read(ask.private)?);
    let parameters = public.bytes(CKA_EC_PARAMS).or(private.bytes(CKA_EC_PARAMS));
    let parameters = parameters.ok_or_else(|| Fail::new(CKR_TEMPLATE_INCOMPLETE, "a key pair needs CKA_EC_PARAMS"))?;
    let key_type = ec::key_type(parameters)?;
    let half = |class, template| Draft::generated_half(class, mechanism, key_type, template);
    let (public, private) = (half(class::PUBLIC, &public)?, half(class::PRIVATE, &private)?);
    let curve = ec::curve(key_type).ok_or_else(|| Fail::new(CKR_CURVE_NOT_SUPPORTED, "no curve"))?;
    // Rights first: a pair that nobody may keep is not drawn.
    may_keep(caller, glance, public.is_token(), public.is_private())?;
    may_keep(caller, glance, private.is_token(), private.is_private())?;
    let pair = mayfly_engine::generate_ec(curve)?;
    let born = |draft: Draft<'_>, secret| Born {
        class: draft.class,
        attributes: draft.attributes,
        key_type: Some(key_type),
        origin: Origin::Dealt,
        secret,
    };
    let mut public = born(public, None);
    put(&mut public.attributes, CKA_EC_POINT, ec::point_der(key_type, &pair.public)?);
    let private = born(private, Some(Arc::new(pair.private)));
    if public.is_token() && private.is_token() {
        let id = keep_key(caller, glance, private, Some(public.attributes))?;
        let handle = |target| handle_of_key(caller, &id, target);
        return Ok(Reply::CreatedPair { public: handle(Target::Public(id))?, private: handle(Target::Key(id))? });
    }
    let private = keep(caller, glance, ask.session, private)?;
    Ok(Reply::CreatedPair { public: keep(caller, glance, ask.session, public)?, private })
}

/// C_CopyObject.
///
/// # Errors
/// CKR_OBJECT_HANDLE_INVALID, CKR_ACTION_PROHIBITED where the object is not copyable, as [`create`] for the rest.
pub fn copy(caller: &Caller<'_>, glance: &Glance, ask: &request::CopyObject<'_>) -> Done<Reply> {
    let template = Template::read(ask.template)?;
    let view = caller.seen(glance, ask.object)?;
    if stored_bool(view.attributes(), CKA_COPYABLE) == Some(false) {
        let reason = "the object is not copyable: its key would have to leave its holders";
        return Err(Fail::ruled(CKR_ACTION_PROHIBITED, "copyable", reason));
    }
    let mut attributes = view.attributes().to_vec();
    for (kind, value) in template.iter() {
        change_in_copy(&view, &mut attributes, kind, value)?;
    }
    for (history, now, wanted) in
        [(CKA_ALWAYS_SENSITIVE, CKA_SENSITIVE, true), (CKA_NEVER_EXTRACTABLE, CKA_EXTRACTABLE, false)]
    {
        if stored_bool(&attributes, history) == Some(true) && stored_bool(&attributes, now) != Some(wanted) {
            put_bool(&mut attributes, history, false);
        }
    }
    attributes::check_size(&attributes)?;
    let secret =
        if view.has_secret() { Some(copied_secret(caller, &view)?) } else { become_secret(&view, &mut attributes)? };
    let born = Born { class: view.class(), attributes, key_type: view.key_type(), origin: Origin::Imported, secret };
    keep(caller, glance, ask.session, born).map(Reply::Created)
}

fn change_in_copy(view: &View<'_>, attributes: &mut Vec<Attribute>, kind: u64, value: &[u8]) -> Done<()> {
    let rule = attributes::rule_for(kind, view.class())?;
    rule.check(value)?;
    let was = stored_bool(attributes, kind).unwrap_or(false);
    let becomes = value.first() == Some(&1);
    let allowed = match rule.change {
        _ if view.matches(kind, value) => true,
        // What was for those who are logged in does not become everybody's.
        Change::InCopy => kind != CKA_PRIVATE || becomes,
        Change::Free => may_use_so(view, kind, becomes)?,
        Change::ToTrue => becomes,
        Change::ToFalse => !becomes && was,
        Change::Computed | Change::Never | Change::Officer => false,
    };
    if !allowed {
        return Err(Fail::new(CKR_ATTRIBUTE_READ_ONLY, format!("attribute {kind:#x} cannot be changed so in a copy")));
    }
    put(attributes, kind, value);
    Ok(())
}

/// The contents of a data object that becomes private in the copy, taken out of what lies in the open.
fn become_secret(view: &View<'_>, attributes: &mut Vec<Attribute>) -> Done<Option<Arc<SecretBytes>>> {
    if view.class() != class::DATA || stored_bool(attributes, CKA_PRIVATE) != Some(true) {
        return Ok(None);
    }
    let value = stored(attributes, CKA_VALUE).filter(|value| !value.is_empty());
    let secret = value.map(|value| SecretBytes::new_with(value.len(), |to| to.copy_from_slice(value))).transpose()?;
    attributes.retain(|attribute| attribute.kind != CKA_VALUE);
    Ok(secret.map(Arc::new))
}

/// The secret of an object that is copied: a session object's own, or a key's that is extractable.
fn copied_secret(caller: &Caller<'_>, view: &View<'_>) -> Done<Arc<SecretBytes>> {
    match view {
        View::Session(_, object) => {
            object.secret.clone().ok_or_else(|| Fail::new(CKR_FUNCTION_FAILED, "the object has no secret"))
        }
        View::Key(key) if view.flag(CKA_EXTRACTABLE) || view.class() == class::DATA => {
            find::exported(caller, &key.record.id)
        }
        _ => {
            let reason = "the key is not extractable: its bytes never leave the moment of their use";
            Err(Fail::ruled(CKR_ACTION_PROHIBITED, "extractable", reason))
        }
    }
}

/// An object about to be kept.
struct Born {
    class: u8,
    attributes: Vec<Attribute>,
    key_type: Option<KeyType>,
    origin: Origin,
    secret: Option<Arc<SecretBytes>>,
}

impl Born {
    fn is_token(&self) -> bool {
        stored_bool(&self.attributes, CKA_TOKEN).unwrap_or(false)
    }

    fn is_private(&self) -> bool {
        stored_bool(&self.attributes, CKA_PRIVATE).unwrap_or(false)
    }
}

fn may_keep(caller: &Caller<'_>, glance: &Glance, token: bool, private: bool) -> Done<()> {
    if private {
        glance.need_user()?;
    }
    if token {
        glance.need_login()?;
        glance.need_creator(&caller.app.keys.device())?;
    }
    Ok(())
}

/// Keeps an object where it belongs and gives its handle.
fn keep(caller: &Caller<'_>, glance: &Glance, session: u64, born: Born) -> Done<u64> {
    may_keep(caller, glance, born.is_token(), born.is_private())?;
    if !born.is_token() {
        let object = SessionObject { token: glance.token, session, attributes: born.attributes, secret: born.secret };
        return caller.application().keep_object(object, &caller.app.applications.object_numbers);
    }
    if born.class & class::GUARDED != 0 || born.secret.is_some() {
        let id = keep_key(caller, glance, born, None)?;
        return handle_of_key(caller, &id, Target::Key(id));
    }
    let mut id = [0; 32];
    mayfly_secmem::random(&mut id)?;
    let id = ObjectId(id);
    let object = record::Object { id, token: glance.token, attributes: born.attributes };
    let position = caller.app.keys.post(&object.into())?;
    Ok(Target::Object(id).handle(position))
}

/// Deals and posts a key, or a private data object, which is kept like one.
fn keep_key(
    caller: &Caller<'_>,
    glance: &Glance,
    born: Born,
    public_attributes: Option<Vec<Attribute>>,
) -> Done<KeyId> {
    let bytes = born.secret.as_ref().map_or(0, |secret| secret.len());
    let key_type = match born.key_type {
        Some(key_type) => key_type,
        None if bytes <= GENERIC_BYTES_MAX => KeyType::Generic(bytes),
        None => return Err(Fail::new(CKR_DEVICE_MEMORY, "private data of the token has at most 512 bytes")),
    };
    let material = match born.secret {
        None => Material::Derived,
        Some(secret) => Material::Wrapped(own(secret)?),
    };
    let uses = if born.class == class::DATA { Use::Export.bit() } else { uses_of(&born.attributes, key_type) };
    let defaults = &caller.app.settings.keys;
    let new = NewKey {
        token: glance.token,
        key_type,
        material,
        origin: born.origin,
        t: defaults.threshold,
        holders: defaults.holders(glance.state().holders().len(), defaults.threshold)?,
        assemblers: defaults.assemblers(glance.state(), caller.app.keys.device()),
        attributes: born.attributes,
        public_attributes,
        policy: defaults.policy(vec![caller.principal.own_rule()], uses)?,
        schedule: Schedule { refresh_seconds: 0, refresh_uses: 0 },
        valid_until_ms: None,
    };
    Ok(caller.app.keys.create_key(new)?)
}

/// The bytes themselves where nobody else holds them, else a copy.
fn own(secret: Arc<SecretBytes>) -> Done<SecretBytes> {
    match Arc::try_unwrap(secret) {
        Ok(secret) => Ok(secret),
        Err(shared) => Ok(SecretBytes::new_with(shared.len(), |to| to.copy_from_slice(shared.expose()))?),
    }
}

fn handle_of_key(caller: &Caller<'_>, id: &KeyId, target: Target) -> Done<u64> {
    let state = caller.app.keys.state();
    let position = state.keys.get(id).map(|key| key.position);
    let missing =
        || Fail::ruled(CKR_DEVICE_ERROR, "ledger", "the key is on the ledger, but this device does not see it yet");
    Ok(target.handle(position.ok_or_else(missing)?))
}

/// CKA_LABEL of attributes, for people.
pub fn label_of(attributes: &[Attribute]) -> String {
    String::from_utf8_lossy(stored(attributes, CKA_LABEL).unwrap_or_default()).into_owned()
}
