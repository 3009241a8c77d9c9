//! C_SetAttributeValue, C_DestroyObject.

use mayfly_protocol::ids::Hash;
use mayfly_protocol::record::{self, Attribute, TargetKind};

use super::attributes::{self, Change, class, put, stored_bool};
use super::session::SessionObject;
use super::template::{Template, USAGE};
use super::view::View;
use crate::app::applications::LoginUser;
use crate::app::caller::{Caller, Glance};
use crate::app::ck::*;
use crate::app::fail::{Done, Fail};
use crate::app::reply::Reply;

/// C_SetAttributeValue: all of the template, or nothing.
///
/// # Errors
/// CKR_ACTION_PROHIBITED, CKR_ATTRIBUTE_READ_ONLY and its like, CKR_TOKEN_WRITE_PROTECTED, CKR_DEVICE_ERROR.
pub fn set(caller: &Caller<'_>, glance: &Glance, handle: u64, template: &Template<'_>) -> Done<Reply> {
    let view = caller.seen(glance, handle)?;
    if stored_bool(view.attributes(), CKA_MODIFIABLE) == Some(false) {
        return Err(Fail::new(CKR_ACTION_PROHIBITED, "the object is not modifiable"));
    }
    let mut changed: Vec<Attribute> = Vec::new();
    for (kind, value) in template.iter() {
        may_change(glance, &view, kind, value)?;
        changed.push(Attribute { kind, value: value.to_vec() });
    }
    let mut whole = view.attributes().to_vec();
    changed.iter().for_each(|attribute| put(&mut whole, attribute.kind, attribute.value.clone()));
    attributes::check_size(&whole)?;
    if changed.is_empty() {
        return Ok(Reply::Done);
    }
    match target(&view) {
        None => {
            let View::Session(handle, object) = &view else { return Ok(Reply::Done) };
            let object = SessionObject { attributes: whole, ..SessionObject::clone(object) };
            caller.application().replace_object(*handle, object)?;
        }
        Some((target, id)) => {
            may_write(caller, glance, &view)?;
            caller.app.keys.post(&record::Attributes { target, id, set: changed }.into())?;
        }
    }
    Ok(Reply::Done)
}

fn may_change(glance: &Glance, view: &View<'_>, kind: CK_ATTRIBUTE_TYPE, value: &[u8]) -> Done<()> {
    let rule = attributes::rule_for(kind, view.class())?;
    rule.check(value)?;
    let becomes = value.first() == Some(&1);
    let allowed = match rule.change {
        Change::Free => may_use_so(view, kind, becomes)?,
        Change::ToTrue => becomes || view.matches(kind, value),
        Change::ToFalse => !becomes || view.matches(kind, value),
        Change::Officer => glance.login == Some(LoginUser::SecurityOfficer),
        // The contents of a data object in the open are not what the object is known by. Those of a private one never lie in the open.
        Change::Never => kind == CKA_VALUE && view.class() == class::DATA && !view.has_secret() && !view.is_private(),
        Change::Computed | Change::InCopy => false,
    };
    if allowed {
        Ok(())
    } else {
        Err(Fail::new(CKR_ATTRIBUTE_READ_ONLY, format!("attribute {kind:#x} cannot be changed so")))
    }
}

/// A usage attribute becomes TRUE only where the key's policy on the ledger has the use: the holders would refuse it else.
pub(super) fn may_use_so(view: &View<'_>, kind: CK_ATTRIBUTE_TYPE, becomes: bool) -> Done<bool> {
    let View::Key(key) = view else { return Ok(true) };
    let needed = USAGE.iter().find(|(attribute, _)| *attribute == kind);
    match needed {
        Some((_, purpose)) if becomes && key.record.policy.uses & purpose.bit() == 0 => {
            let reason = format!("the key's policy on the ledger does not allow '{}'", purpose.name());
            Err(Fail::ruled(CKR_ATTRIBUTE_READ_ONLY, "policy", reason))
        }
        _ => Ok(true),
    }
}

/// Whether the object, which lies in the token, may be changed or destroyed by this application. The public half of a pair goes with its key.
fn may_write(caller: &Caller<'_>, glance: &Glance, view: &View<'_>) -> Done<()> {
    glance.need_login()?;
    if let View::Public(key) = view {
        caller.may_use(&View::Key(key))?;
    }
    glance.need_creator(&caller.app.keys.device())
}

/// C_DestroyObject.
///
/// # Errors
/// CKR_OBJECT_HANDLE_INVALID, CKR_ACTION_PROHIBITED, CKR_TOKEN_WRITE_PROTECTED, CKR_DEVICE_ERROR.
pub fn destroy(caller: &Caller<'_>, glance: &Glance, handle: u64) -> Done<Reply> {
    let view = caller.seen(glance, handle)?;
    if stored_bool(view.attributes(), CKA_DESTROYABLE) == Some(false) {
        return Err(Fail::new(CKR_ACTION_PROHIBITED, "the object is not destroyable"));
    }
    match target(&view) {
        None => caller.application().drop_object(handle),
        Some((target, id)) => {
            may_write(caller, glance, &view)?;
            caller.app.keys.post(&record::Delete { target, id }.into())?;
        }
    }
    Ok(Reply::Done)
}

/// How records name the object; `None` for session objects, of which no record speaks.
fn target(view: &View<'_>) -> Option<(TargetKind, Hash)> {
    match view {
        View::Key(key) => Some((TargetKind::Key, Hash(key.record.id.0))),
        View::Public(key) => Some((TargetKind::PublicKey, Hash(key.record.id.0))),
        View::Object(id, _) => Some((TargetKind::Object, Hash(id.0))),
        View::Session(..) => None,
    }
}
