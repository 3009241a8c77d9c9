//! C_FindObjects, C_GetAttributeValue, C_GetObjectSize.

use std::sync::Arc;

use mayfly_protocol::KeyId;
use mayfly_protocol::rules::Use;
use mayfly_secmem::SecretBytes;
use mayfly_wire::{FIND_HANDLES_MAX, List, SESSION_OBJECT_BIT, request};

use super::catalogue::Target;
use super::template::Template;
use super::view::{Shown, View};
use crate::app::caller::{Caller, Glance};
use crate::app::ck::*;
use crate::app::fail::{Done, Fail};
use crate::app::reply::{AttributeLine, AttributeValue, Reply};

/// Most attributes in one request.
pub const KINDS_MAX: usize = 256;

/// The objects that match a template, by ascending handle: those of the token first, then the application's session objects.
///
/// # Errors
/// CKR_ATTRIBUTE_VALUE_INVALID and its like for a malformed template.
pub fn find(caller: &Caller<'_>, glance: &Glance, ask: &request::FindObjects<'_>) -> Done<Reply> {
    let template = Template::read(ask.template)?;
    let most = (ask.count_max as usize).min(FIND_HANDLES_MAX);
    let mut handles = Vec::new();
    let fits = |view: &View<'_>| {
        template.iter().all(|(kind, value)| view.matches(kind, value)) && caller.sees_object(glance, view)
    };
    // One more than is wanted tells whether there are more.
    if ask.after & SESSION_OBJECT_BIT == 0 {
        let on_ledger = candidates(glance, &template, ask.after);
        let matching = on_ledger.filter(|(_, target)| View::of(glance.state(), target).is_some_and(|view| fits(&view)));
        handles.extend(matching.map(|(handle, _)| handle).take(most + 1));
    }
    if handles.len() <= most {
        let of_sessions = caller.application().objects(&glance.token, ask.after.max(SESSION_OBJECT_BIT)).into_iter();
        let matching = of_sessions.filter(|(handle, object)| fits(&View::Session(*handle, object.clone())));
        handles.extend(matching.map(|(handle, _)| handle).take(most + 1 - handles.len()));
    }
    let more = handles.len() > most;
    handles.truncate(most);
    Ok(Reply::Found { more, handles })
}

/// Objects on the ledger that may match: by CKA_ID or CKA_LABEL where the template names one, else all.
fn candidates<'g>(
    glance: &'g Glance,
    template: &Template<'_>,
    after: u64,
) -> Box<dyn Iterator<Item = (u64, Target)> + 'g> {
    let Some(shelf) = glance.shelf() else { return Box::new(std::iter::empty()) };
    if let Some(id) = template.bytes(CKA_ID).filter(|id| !id.is_empty()) {
        Box::new(shelf.with_id(id, after).into_iter())
    } else if let Some(label) = template.bytes(CKA_LABEL).filter(|label| !label.is_empty()) {
        Box::new(shelf.labelled(label, after).into_iter())
    } else {
        Box::new(shelf.above(after))
    }
}

/// Everything that is known of an object without putting a key together.
///
/// # Errors
/// CKR_OBJECT_HANDLE_INVALID.
pub fn all_attributes(caller: &Caller<'_>, glance: &Glance, handle: u64) -> Done<Reply> {
    let view = caller.seen(glance, handle)?;
    let line = |kind| {
        let value = match view.shown(kind) {
            Shown::Value(value) => AttributeValue::Public(value.into_owned()),
            Shown::Sensitive => AttributeValue::Sensitive,
            Shown::Absent => AttributeValue::Absent,
            Shown::Secret => AttributeValue::OnRequest,
        };
        AttributeLine { kind, value }
    };
    Ok(Reply::Attributes(view.kinds().into_iter().map(line).collect()))
}

/// Chosen attributes; a readable secret value is put together for it.
///
/// # Errors
/// CKR_OBJECT_HANDLE_INVALID, CKR_DEVICE_ERROR.
pub fn chosen_attributes(caller: &Caller<'_>, glance: &Glance, handle: u64, kinds: List<'_, u64>) -> Done<Reply> {
    if kinds.len() > KINDS_MAX {
        return Err(Fail::new(CKR_ARGUMENTS_BAD, "more than 256 attributes are asked for at once"));
    }
    let view = caller.seen(glance, handle)?;
    let mut lines = Vec::with_capacity(kinds.len());
    let mut secret = None;
    for kind in kinds.iter() {
        let value = match view.shown(kind) {
            Shown::Value(value) => AttributeValue::Public(value.into_owned()),
            Shown::Sensitive => AttributeValue::Sensitive,
            Shown::Absent => AttributeValue::Absent,
            // Put together once, however often the value is asked for.
            Shown::Secret => {
                let value = secret.take().map_or_else(|| secret_value(caller, &view), Ok)?;
                AttributeValue::Secret(secret.insert(value).clone())
            }
        };
        lines.push(AttributeLine { kind, value });
    }
    Ok(Reply::Attributes(lines))
}

/// The secret value of an object whose attributes let it be read.
///
/// # Errors
/// CKR_ATTRIBUTE_SENSITIVE where they do not; CKR_DEVICE_ERROR.
pub fn secret_value(caller: &Caller<'_>, view: &View<'_>) -> Done<Arc<SecretBytes>> {
    if !view.value_is_readable() {
        return Err(Fail::new(CKR_ATTRIBUTE_SENSITIVE, "the value is sensitive or not extractable"));
    }
    match view {
        View::Session(_, object) => object.secret.clone().ok_or_else(no_secret),
        View::Key(key) => exported(caller, &key.record.id),
        View::Public(_) | View::Object(..) => Err(no_secret()),
    }
}

/// The bytes of a key on the ledger, in secret memory of their own. Whether they may be copied out the caller has seen to; that the
/// key's policy allows it the holders see to.
///
/// # Errors
/// CKR_KEY_FUNCTION_NOT_PERMITTED, CKR_DEVICE_ERROR.
pub fn exported(caller: &Caller<'_>, key: &KeyId) -> Done<Arc<SecretBytes>> {
    let mut copy = None;
    caller.app.keys.with_key(key, Use::Export, &mut |assembled| {
        let bytes = assembled.bytes();
        let copied = |to: &mut [u8]| mayfly_secmem::on_secret_stack(|| to.copy_from_slice(bytes));
        copy = Some(SecretBytes::new_with(bytes.len(), copied));
    })?;
    Ok(Arc::new(copy.ok_or_else(no_secret)??))
}

fn no_secret() -> Fail {
    Fail::new(CKR_ATTRIBUTE_TYPE_INVALID, "the object has no secret value")
}
