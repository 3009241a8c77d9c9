//! The application's pointers: checked for null and length, read and written once.
//!
//! All functions here share one contract, which is PKCS#11's own: a pointer that is not null is valid for
//! the length that goes with it, for the duration of the call. Nothing is assumed about alignment, or about
//! input and output being apart: results are copied out when nothing borrows the input any more.

use std::ptr;

use cryptoki_sys::*;
use mayfly_wire::TemplateBuf;
use mayfly_wire::attribute::nested_template;

use crate::objects::Shown;
use crate::operation::{Output, Room};
use crate::rv::{Outcome, Rv, ensure, fail};

/// Most attributes of a template.
const TEMPLATE_ATTRIBUTES_MAX: CK_ULONG = 256;
/// Most bytes of a template's values: it has to go into one frame.
const TEMPLATE_BYTES_MAX: usize = mayfly_wire::BODY_BYTES_MAX / 2;
/// Longest input that is believed: longer ones are mistakes (a length of -1), and larger than any memory.
const INPUT_BYTES_MAX: CK_ULONG = 1 << 40;
/// Templates in templates (CKA_WRAP_TEMPLATE) go this deep.
const TEMPLATE_DEPTH_MAX: u8 = 2;

/// A slice of the application's memory.
///
/// # Safety
/// The contract of this module's page.
pub unsafe fn input<'a>(data: *const u8, length: CK_ULONG) -> Outcome<&'a [u8]> {
    if length == 0 {
        return Ok(&[]);
    }
    let is_plausible = !data.is_null() && length <= INPUT_BYTES_MAX;
    ensure(is_plausible && (data as usize).checked_add(length as usize).is_some(), CKR_ARGUMENTS_BAD)?;
    // SAFETY: not null, not over the end of the address space, and valid for `length` by the contract.
    Ok(unsafe { std::slice::from_raw_parts(data, length as usize) })
}

/// As [`input`], `None` for a null pointer.
///
/// # Safety
/// The contract of this module's page.
pub unsafe fn optional_input<'a>(data: *const u8, length: CK_ULONG) -> Outcome<Option<&'a [u8]>> {
    if data.is_null() {
        return Ok(None);
    }
    // SAFETY: the caller's contract.
    unsafe { input(data, length) }.map(Some)
}

/// Reads one value.
///
/// # Safety
/// The contract of this module's page, for one `T`.
pub unsafe fn get<T: Copy>(from: *const T) -> Outcome<T> {
    ensure(!from.is_null(), CKR_ARGUMENTS_BAD)?;
    // SAFETY: not null, valid by the contract; no alignment needed.
    Ok(unsafe { from.read_unaligned() })
}

/// Writes one value.
///
/// # Safety
/// The contract of this module's page, for one `T`.
pub unsafe fn put<T>(to: *mut T, value: T) -> Outcome {
    ensure(!to.is_null(), CKR_ARGUMENTS_BAD)?;
    // SAFETY: not null, valid by the contract; no alignment needed.
    unsafe { to.write_unaligned(value) };
    Ok(())
}

/// What room a buffer and its length offer.
///
/// # Safety
/// The contract of this module's page.
pub unsafe fn room(buffer: *const u8, length: *const CK_ULONG) -> Outcome<Room> {
    // SAFETY: the caller's contract.
    let length = unsafe { get(length) }?;
    Ok(if buffer.is_null() { Room::Query } else { Room::Bytes(usize::try_from(length).unwrap_or(usize::MAX)) })
}

/// Hands a result out through a buffer and its length.
///
/// # Safety
/// The contract of this module's page; the buffer is as long as [`room`] has found it.
pub unsafe fn deliver(output: &Output, buffer: *mut u8, length: *mut CK_ULONG) -> Outcome {
    let (named, code) = match output {
        Output::Length(named) => (*named, CKR_OK),
        Output::TooSmall(named) => (*named, CKR_BUFFER_TOO_SMALL),
        Output::Bytes(bytes) => {
            // SAFETY: the caller's contract.
            let room = unsafe { room(buffer, length) }?;
            // The bodies have seen to this already; memory that is not ours is worth a second look.
            ensure(matches!(room, Room::Bytes(room) if bytes.len() <= room), CKR_GENERAL_ERROR)?;
            // SAFETY: not null and, by the contract, valid for as many bytes as were just compared; the bytes
            // are our own memory, so the two do not overlap.
            unsafe { ptr::copy_nonoverlapping(bytes.as_ptr(), buffer, bytes.len()) };
            (bytes.len(), CKR_OK)
        }
    };
    // SAFETY: the caller's contract.
    unsafe { put(length, named as CK_ULONG) }?;
    if code == CKR_OK { Ok(()) } else { fail(code) }
}

/// Hands out a list by the convention of C_GetSlotList: its count alone to a null pointer or a short buffer.
///
/// # Safety
/// The contract of this module's page.
pub unsafe fn put_list<T: Copy>(list: &[T], to: *mut T, count: *mut CK_ULONG) -> Outcome {
    // SAFETY: the caller's contract.
    let room = unsafe { get(count) }?;
    // SAFETY: as before.
    unsafe { put(count, list.len() as CK_ULONG) }?;
    if to.is_null() {
        return Ok(());
    }
    ensure(room >= list.len() as CK_ULONG, CKR_BUFFER_TOO_SMALL)?;
    for (index, item) in list.iter().enumerate() {
        // SAFETY: `to` is valid for `room` items, and `index` is below it.
        unsafe { to.add(index).write_unaligned(*item) };
    }
    Ok(())
}

/// A template, copied into wire form.
///
/// # Safety
/// The contract of this module's page, also for the pointers in the attributes.
pub unsafe fn template(attributes: *const CK_ATTRIBUTE, count: CK_ULONG) -> Outcome<TemplateBuf> {
    // SAFETY: the caller's contract.
    unsafe { template_at_depth(attributes, count, 0, &mut 0) }
}

unsafe fn template_at_depth(
    attributes: *const CK_ATTRIBUTE,
    count: CK_ULONG,
    depth: u8,
    bytes: &mut usize,
) -> Outcome<TemplateBuf> {
    ensure(count == 0 || !attributes.is_null(), CKR_ARGUMENTS_BAD)?;
    ensure(count <= TEMPLATE_ATTRIBUTES_MAX, CKR_ARGUMENTS_BAD)?;
    let mut template = TemplateBuf::new();
    for index in 0..count as usize {
        // SAFETY: `attributes` is valid for `count` items by the contract.
        let attribute = unsafe { attributes.add(index).read_unaligned() };
        // SAFETY: as the caller's contract says of the attributes' own pointers.
        let value = unsafe { input(attribute.pValue.cast(), attribute.ulValueLen) };
        let value = value.map_err(|_| Rv(CKR_ATTRIBUTE_VALUE_INVALID))?;
        *bytes = bytes.saturating_add(value.len());
        ensure(*bytes <= TEMPLATE_BYTES_MAX, CKR_ATTRIBUTE_VALUE_INVALID)?;
        if is_template(attribute.type_) {
            let is_whole = value.len().is_multiple_of(size_of::<CK_ATTRIBUTE>()) && depth + 1 < TEMPLATE_DEPTH_MAX;
            ensure(is_whole, CKR_ATTRIBUTE_VALUE_INVALID)?;
            let inner_count = (value.len() / size_of::<CK_ATTRIBUTE>()) as CK_ULONG;
            // SAFETY: the value of such an attribute is an array of attributes, by PKCS#11.
            let inner = unsafe { template_at_depth(attribute.pValue.cast(), inner_count, depth + 1, bytes) }?;
            template.push(attribute.type_, &inner.as_value());
        } else {
            template.push(attribute.type_, value);
        }
    }
    Ok(template)
}

/// Whether the value of an attribute is itself a template.
fn is_template(kind: CK_ATTRIBUTE_TYPE) -> bool {
    kind & CKF_ARRAY_ATTRIBUTE != 0 && kind != CKA_ALLOWED_MECHANISMS
}

/// The types that a template asks for.
///
/// # Safety
/// The contract of this module's page.
pub unsafe fn kinds(attributes: *const CK_ATTRIBUTE, count: CK_ULONG) -> Outcome<Vec<u64>> {
    ensure(!attributes.is_null() && count <= TEMPLATE_ATTRIBUTES_MAX, CKR_ARGUMENTS_BAD)?;
    // SAFETY: `attributes` is valid for `count` items by the contract.
    Ok((0..count as usize).map(|index| unsafe { attributes.add(index).read_unaligned() }.type_).collect())
}

/// Fills the template of C_GetAttributeValue: what can be shown is, the rest gets the length -1. The error
/// is that of the last attribute that has one.
///
/// # Safety
/// The contract of this module's page, also for the pointers in the attributes; `attributes` has at least
/// as many items as there are answers.
pub unsafe fn put_attributes(attributes: *mut CK_ATTRIBUTE, shown: &[Shown]) -> Outcome {
    let mut result = Ok(());
    for (index, shown) in shown.iter().enumerate() {
        // SAFETY: within the array by the contract.
        let one = unsafe { put_attribute(attributes.add(index), shown) };
        result = one.and(result);
    }
    result
}

unsafe fn put_attribute(to: *mut CK_ATTRIBUTE, shown: &Shown) -> Outcome {
    // SAFETY: an attribute of the application's template, by the caller's contract.
    let mut attribute = unsafe { to.read_unaligned() };
    let result = match shown {
        Shown::Value(value) if is_template(attribute.type_) => {
            // SAFETY: as above; its value is an array of attributes, by PKCS#11.
            unsafe { put_nested(&mut attribute, value) }
        }
        // SAFETY: as above.
        Shown::Value(value) => unsafe { put_value(&mut attribute, value) },
        Shown::Sensitive => fail(CKR_ATTRIBUTE_SENSITIVE),
        Shown::Absent => fail(CKR_ATTRIBUTE_TYPE_INVALID),
    };
    if result.is_err() {
        attribute.ulValueLen = CK_UNAVAILABLE_INFORMATION;
    }
    // SAFETY: as above.
    unsafe { to.write_unaligned(attribute) };
    result
}

unsafe fn put_value(attribute: &mut CK_ATTRIBUTE, value: &[u8]) -> Outcome {
    let length = value.len() as CK_ULONG;
    if !attribute.pValue.is_null() {
        ensure(attribute.ulValueLen >= length, CKR_BUFFER_TOO_SMALL)?;
        // SAFETY: not null and, by the contract, valid for ulValueLen bytes, which are enough.
        unsafe { ptr::copy_nonoverlapping(value.as_ptr(), attribute.pValue.cast(), value.len()) };
    }
    attribute.ulValueLen = length;
    Ok(())
}

unsafe fn put_nested(attribute: &mut CK_ATTRIBUTE, value: &[u8]) -> Outcome {
    let inner = nested_template(value).map_err(|_| Rv(CKR_DEVICE_ERROR))?;
    let length = (inner.len() * size_of::<CK_ATTRIBUTE>()) as CK_ULONG;
    let array: *mut CK_ATTRIBUTE = attribute.pValue.cast();
    let mut result = Ok(());
    if !array.is_null() {
        ensure(attribute.ulValueLen >= length, CKR_BUFFER_TOO_SMALL)?;
        for (index, item) in inner.iter().enumerate() {
            // SAFETY: the array has room for all items, as was just checked.
            let to = unsafe { array.add(index) };
            // SAFETY: as before.
            let mut one = unsafe { to.read_unaligned() };
            one.type_ = item.kind;
            // SAFETY: the inner attribute's pointer is the application's, by PKCS#11.
            let filled = unsafe { put_value(&mut one, item.value.0) };
            if filled.is_err() {
                one.ulValueLen = CK_UNAVAILABLE_INFORMATION;
            }
            // SAFETY: as before.
            unsafe { to.write_unaligned(one) };
            result = filled.and(result);
        }
    }
    result?;
    attribute.ulValueLen = length;
    Ok(())
}
