//! A vault's objects in the token: their names, how they are made, found and destroyed.
//!
//! | Object | CKA_LABEL | CKA_ID |
//! |---|---|---|
//! | key of a generation | `mayfly-vault-` and the vault's id in hexadecimal | vault's id, generation (8 bytes, big-endian) |
//! | identity, both halves | `mayfly-identity-` and the same | vault's id |
//!
//! Nothing without the vault's own label is ever touched: one token serves several vaults, and other programs.

use crate::error::{Fault, is_template};
use crate::identity::{self, CURVE, Signing};
use crate::record::PUBLIC_BYTES;
use crate::seal::Sealing;
use crate::token::Open;
use cryptoki::error::{Error, RvError};
use cryptoki::mechanism::Mechanism;
use cryptoki::object::{Attribute, AttributeType, KeyType, ObjectClass, ObjectHandle};
use mayfly_plugin_abi::{GuestError, Status};
use mayfly_vault_store::VaultId;

/// Most objects of one template that are looked at. A vault has one or two keys at a time, and what crashes left.
const OBJECTS_MAX: usize = 4096;
/// Bytes of the generations' keys: AES-256.
const KEY_BYTES: u64 = 32;

/// The key of a generation, if it is there.
pub(crate) fn generation_key(open: &Open, vault: &VaultId, generation: u64) -> Result<Option<ObjectHandle>, Fault> {
    let mut template = generation_names(vault).to_vec();
    template.push(Attribute::Id(generation_id(vault, generation)));
    match search(open, &template)?[..] {
        [] => Ok(None),
        [key] => Ok(Some(key)),
        _ => {
            let text = format!("the token has several keys of generation {generation}; destroy the wrong ones by hand");
            Err(GuestError::new(Status::Corrupt, text).into())
        }
    }
}

/// The same, to seal by: still made in the token and unable to leave it. Who has the PIN may have put another in its place.
pub(crate) fn sealing_key(open: &Open, vault: &VaultId, generation: u64) -> Result<Option<ObjectHandle>, Fault> {
    let key = generation_key(open, vault, generation)?;
    if let Some(key) = key {
        check_kept(open, key).map_err(|fault| match fault {
            Fault::Refused(why) => {
                let text = format!("{why}; somebody put another key of generation {generation} there, stage it anew");
                GuestError::new(Status::Corrupt, text).into()
            }
            failed => failed,
        })?;
    }
    Ok(key)
}

/// Every key of a generation that the token has, with the generation, ascending.
pub(crate) fn generation_keys(open: &Open, vault: &VaultId) -> Result<Vec<(u64, ObjectHandle)>, Fault> {
    let mut found = Vec::new();
    for key in search(open, &generation_names(vault))? {
        for attribute in open.session.get_attributes(key, &[AttributeType::Id])? {
            let Attribute::Id(id) = attribute else { continue };
            let Some(number) = id.strip_prefix(vault).and_then(|rest| <[u8; 8]>::try_from(rest).ok()) else { continue };
            found.push((u64::from_be_bytes(number), key));
        }
    }
    found.sort_by_key(|(generation, _)| *generation);
    Ok(found)
}

/// Makes the key of a generation that has none.
pub(crate) fn make_generation_key(
    open: &Open,
    vault: &VaultId,
    generation: u64,
    sealing: Sealing,
) -> Result<(), Fault> {
    let mut template = generation_names(vault).to_vec();
    template.extend([
        Attribute::KeyType(KeyType::AES),
        Attribute::ValueLen(KEY_BYTES.into()),
        Attribute::Id(generation_id(vault, generation)),
    ]);
    template.extend(kept());
    template.extend(sealing.usage());
    let made = with_or_without_copyable(&mut template, |template| {
        open.step(|| open.session.generate_key(&Mechanism::AesKeyGen, template))
    })?;
    check_kept(open, made).inspect_err(|_| {
        // of no use; the next attempt destroys it if this does not
        let _ = open.session.destroy_object(made);
    })
}

/// Destroys the keys of all generations for which `dead` holds, and looks again, in a session of its own where the token
/// gives a second one: an error when one of them is still found.
pub(crate) fn destroy_generations(open: &Open, vault: &VaultId, dead: impl Fn(u64) -> bool) -> Result<(), Fault> {
    let mut keys = generation_keys(open, vault)?;
    keys.retain(|(generation, _)| dead(*generation));
    if keys.is_empty() {
        return Ok(());
    }
    for (_, key) in keys {
        destroy(open, key)?;
    }
    // SoftHSM forgets the handle before it removes the file (SoftHSMv2 #903); what counts is what a new search finds
    let left = match open.another() {
        Err(Fault::Token(Error::Pkcs11(RvError::SessionCount, _))) => generation_keys(open, vault)?,
        another => generation_keys(&another?, vault)?,
    };
    match left.into_iter().find(|(generation, _)| dead(*generation)) {
        None => Ok(()),
        Some((generation, _)) => {
            let text = format!("the token still has the key of generation {generation} after C_DestroyObject");
            Err(GuestError::new(Status::Io, text).into())
        }
    }
}

/// The private half of the identity, if it is there.
pub(crate) fn identity_key(open: &Open, vault: &VaultId) -> Result<Option<ObjectHandle>, Fault> {
    match search(open, &identity_names(vault, ObjectClass::PRIVATE_KEY))?[..] {
        [] => Ok(None),
        [key] => Ok(Some(key)),
        _ => {
            let text = "the token has several identity keys of this vault; destroy the wrong ones by hand";
            Err(GuestError::new(Status::Corrupt, text).into())
        }
    }
}

/// Makes the identity's pair, or takes a whole one that an interrupted attempt has left; gives the public half.
pub(crate) fn make_identity(open: &Open, vault: &VaultId, signing: Signing) -> Result<[u8; PUBLIC_BYTES], Fault> {
    let [public, private] =
        [ObjectClass::PUBLIC_KEY, ObjectClass::PRIVATE_KEY].map(|class| identity_names(vault, class));
    let (found_public, found_private) = (search(open, &public)?, search(open, &private)?);
    if let ([public], [private]) = (&found_public[..], &found_private[..])
        && let Ok(key) = identity::public_of(&open.session, signing, *public, *private)
    {
        check_kept(open, *private)?;
        return Ok(key);
    }
    // halves of attempts that nobody has seen the result of
    for key in found_public.into_iter().chain(found_private) {
        destroy(open, key)?;
    }
    let mut public = public.to_vec();
    public.extend([
        Attribute::KeyType(KeyType::EC),
        Attribute::EcParams(CURVE.to_vec()),
        Attribute::Token(true),
        Attribute::Private(false),
        Attribute::Verify(true),
    ]);
    let mut private = private.to_vec();
    private.extend([Attribute::KeyType(KeyType::EC), Attribute::Sign(true)]);
    private.extend(kept());
    let (public, private) = with_or_without_copyable(&mut private, |private| {
        open.step(|| open.session.generate_key_pair(&Mechanism::EccKeyPairGen, &public, private))
    })?;
    check_kept(open, private)?;
    identity::public_of(&open.session, signing, public, private)
}

fn destroy(open: &Open, key: ObjectHandle) -> Result<(), Fault> {
    match open.step(|| open.session.destroy_object(key)) {
        Ok(()) | Err(Error::Pkcs11(RvError::ObjectHandleInvalid, _)) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

fn search(open: &Open, template: &[Attribute]) -> Result<Vec<ObjectHandle>, Fault> {
    let found = open.session.iter_objects(template)?.take(OBJECTS_MAX).collect::<Result<Vec<_>, _>>()?;
    if found.is_empty() {
        open.check_login()?;
    }
    Ok(found)
}

fn generation_names(vault: &VaultId) -> [Attribute; 2] {
    let label = format!("mayfly-vault-{}", hex::encode(vault));
    [Attribute::Class(ObjectClass::SECRET_KEY), Attribute::Label(label.into_bytes())]
}

fn generation_id(vault: &VaultId, generation: u64) -> Vec<u8> {
    [&vault[..], &generation.to_be_bytes()].concat()
}

fn identity_names(vault: &VaultId, class: ObjectClass) -> [Attribute; 3] {
    let label = format!("mayfly-identity-{}", hex::encode(vault));
    [Attribute::Class(class), Attribute::Label(label.into_bytes()), Attribute::Id(vault.to_vec())]
}

/// What keeps a key in its token. CKA_COPYABLE is the last one: see [`with_or_without_copyable`].
fn kept() -> [Attribute; 6] {
    [
        Attribute::Token(true),
        Attribute::Private(true),
        Attribute::Sensitive(true),
        Attribute::Extractable(false),
        Attribute::Modifiable(false),
        Attribute::Copyable(false),
    ]
}

/// CKA_COPYABLE is of v2.30 and some tokens do not know it; they are asked again without. A copy made with the PIN would
/// be as little extractable, but would outlive its original: the page of the format says so.
fn with_or_without_copyable<T>(
    template: &mut Vec<Attribute>,
    make: impl Fn(&[Attribute]) -> Result<T, Error>,
) -> Result<T, Error> {
    match make(template) {
        Err(error) if is_template(&error) => {
            template.retain(|attribute| attribute.attribute_type() != AttributeType::Copyable);
            make(template)
        }
        other => other,
    }
}

/// Believes the token's word for it, not ours: the key was made there and cannot leave.
fn check_kept(open: &Open, key: ObjectHandle) -> Result<(), Fault> {
    let wanted = [
        Attribute::Token(true),
        Attribute::Private(true),
        Attribute::Sensitive(true),
        Attribute::AlwaysSensitive(true),
        Attribute::Extractable(false),
        Attribute::NeverExtractable(true),
        Attribute::Local(true),
    ];
    let types: Vec<_> = wanted.iter().map(Attribute::attribute_type).collect();
    let found = open.session.get_attributes(key, &types)?;
    match wanted.iter().find(|attribute| !found.contains(attribute)) {
        None => Ok(()),
        Some(attribute) => {
            let text = format!("the token's key is not {attribute:?}: it could leave the token, or was not made in it");
            Err(GuestError::new(Status::Unsupported, text).into())
        }
    }
}
