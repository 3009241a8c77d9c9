//! The safe face on a real (software) chip: what is computed in software equals what the chip computes, and nothing
//! stays in it.

use super::*;
use crate::common::Swtpm;
use crate::error::Fault;
use mayfly_evidence::nv::Kind;
use mayfly_evidence::object::{self, Role, signing_key, signing_point, storage_root};
use mayfly_evidence::pcr::{self, Selection};
use mayfly_evidence::policy::{Policy, approval_message, approval_reference, approver_name, seal};
use p256::ecdsa::SigningKey;
use p256::ecdsa::signature::Signer;
use sha2::{Digest, Sha256};

const AUTH: [u8; 32] = [7; 32];
const CTR: u32 = 0x0180_0000;

fn connect(chip: &Swtpm) -> Tpm {
    prepare();
    Tpm::open(&CString::new(chip.tcti()).unwrap()).unwrap()
}

fn counter<'t>(tpm: &'t Tpm, session: &Session<'_>) -> (Index<'t>, u64) {
    tpm.define(session, &[], &Kind::Counter.public(CTR), &AUTH).unwrap();
    let index = tpm.index(CTR).unwrap();
    index.set_auth(&AUTH).unwrap();
    index.increment(session).unwrap();
    // libtss2 gives one handle for one index: the first must be gone before the second comes
    drop(index);
    let index = tpm.index(CTR).unwrap();
    index.set_auth(&AUTH).unwrap();
    let mut value = [0; 8];
    index.read(session, &mut value).unwrap();
    (index, u64::from_be_bytes(value))
}

/// Policy digests and Names, computed in software, are those of the chip.
#[test]
fn software_and_chip_agree() {
    let chip = Swtpm::start();
    {
        let tpm = connect(&chip);
        let root = tpm.create_primary(Hierarchy::Null, &[], None, &storage_root()).unwrap();
        let session = tpm.session(&root).unwrap();
        let (index, value) = counter(&tpm, &session);
        assert_eq!(index.public().unwrap(), Kind::Counter.written(CTR));

        let policy = tpm.policy_session(&root, Protect::Answer).unwrap();
        policy.nv_equal(&index, &session, &value.to_be_bytes()).unwrap();
        policy.auth_value().unwrap();
        assert_eq!(policy.digest().unwrap(), seal(&Kind::Counter.name(CTR), value, None));
        drop(policy);

        let registers = Selection::of(&[0, 7, 11]).unwrap();
        let digest = pcr::digest(&tpm.registers(registers).unwrap());
        let approver = SigningKey::from_slice(&[9; 32]).unwrap();
        let point = p256::Sec1Point::from(approver.verifying_key());
        let point = object::Point { x: (*point.x().unwrap()).into(), y: (*point.y().unwrap()).into() };
        let vault_id = [3; 16];
        let message = approval_message(registers, &digest, &vault_id, 5);
        let signature: p256::ecdsa::Signature = approver.sign(&message);

        let policy = tpm.policy_session(&root, Protect::Answer).unwrap();
        policy.pcr(registers, &digest).unwrap();
        assert_eq!(policy.digest().unwrap(), Policy::new().pcr(registers, &digest).digest());
        let key = tpm.load_public(&object::verification_key(&point)).unwrap();
        let (approved, reference) = (message[..32].try_into().unwrap(), approval_reference(&vault_id, 5));
        let (name, signed): (_, [u8; 32]) = (approver_name(&point), Sha256::digest(message).into());
        policy.authorize(&key, &name, &approved, &reference, &signature.to_bytes().into(), &signed).unwrap();
        policy.nv_equal(&index, &session, &value.to_be_bytes()).unwrap();
        policy.auth_value().unwrap();
        let expected = seal(&Kind::Counter.name(CTR), value, Some((&name, &reference)));
        assert_eq!(policy.digest().unwrap(), expected);

        // another signature is not taken
        let other: p256::ecdsa::Signature = approver.sign(b"something else");
        let policy = tpm.policy_session(&root, Protect::Answer).unwrap();
        policy.pcr(registers, &digest).unwrap();
        let refused = policy.authorize(&key, &name, &approved, &reference, &other.to_bytes().into(), &signed);
        assert!(refused.is_err());

        for role in [Role::Identity, Role::Attestation] {
            let (public, private) = tpm.create(&root, &session, &signing_key(role, None), &AUTH, &[]).unwrap();
            let point = signing_point(role, &public).unwrap();
            let loaded = tpm.load(&root, &public, &private).unwrap();
            assert_eq!(loaded.public().unwrap(), (public, object::name(&signing_key(role, Some(&point))).to_vec()));
        }
    }
    assert_eq!(chip.occupied(), 0, "something stayed in the chip");
}

/// A seal opens by its policy only; a plain auth value, right as it is, is refused (attack: userWithAuth).
#[test]
fn a_seal_has_no_other_door() {
    let chip = Swtpm::start();
    let tpm = connect(&chip);
    let root = tpm.create_primary(Hierarchy::Null, &[], None, &storage_root()).unwrap();
    let session = tpm.session(&root).unwrap();
    let (index, value) = counter(&tpm, &session);
    let policy_digest = seal(&Kind::Counter.name(CTR), value, None);
    let secret = [0x5a; 32];
    let (public, private) = tpm.create(&root, &session, &object::sealed(&policy_digest), &AUTH, &secret).unwrap();
    let sealed = tpm.load(&root, &public, &private).unwrap();
    sealed.set_auth(&AUTH).unwrap();

    session.ready(Protect::Answer).unwrap();
    let mut data = null_mut();
    let refused = esys!(&tpm, Esys_Unseal, sealed.tr(), session.tr(), NONE, NONE, &raw mut data);
    assert_eq!(refused.unwrap_err().rc & 0xfff, 0x12f, "AUTH_UNAVAILABLE");

    let open = |steps: &dyn Fn(&PolicySession<'_>) -> Result<(), TpmError>| {
        let policy = tpm.policy_session(&root, Protect::Answer).unwrap();
        let mut out = [0; 32];
        steps(&policy).and_then(|()| tpm.unseal(&sealed, policy, &mut out)).map(|()| out)
    };
    let value = value.to_be_bytes();
    let whole =
        |policy: &PolicySession<'_>| policy.nv_equal(&index, &session, &value).and_then(|()| policy.auth_value());
    assert_eq!(open(&whole).unwrap(), secret);
    assert!(open(&|policy| policy.auth_value()).unwrap_err().is(POLICY_FAIL), "without the counter");
    assert!(open(&|policy| policy.nv_equal(&index, &session, &value)).is_err(), "without the auth value");
    sealed.set_auth(&[8; 32]).unwrap();
    for _ in 0..6 {
        assert!(open(&whole).unwrap_err().is_auth(), "never a lockout");
    }
    sealed.set_auth(&AUTH).unwrap();
    index.increment(&session).unwrap();
    assert!(open(&whole).unwrap_err().is(POLICY), "revoked");

    let mut flipped = private.clone();
    flipped[40] ^= 1;
    assert_eq!(tpm.load(&root, &public, &flipped).err().unwrap().base(), 0x9f);
}

/// The chip itself, asked past our own checks: a seal opens at its count only, whatever is claimed about the counter, and
/// not by another index in the counter's place.
#[test]
fn a_seal_opens_at_its_count_only() {
    let chip = Swtpm::start();
    let tpm = connect(&chip);
    let root = tpm.create_primary(Hierarchy::Null, &[], None, &storage_root()).unwrap();
    let session = tpm.session(&root).unwrap();
    let (index, value) = counter(&tpm, &session);
    let seal_at = |count: u64| {
        let policy = seal(&Kind::Counter.name(CTR), count, None);
        let (public, private) = tpm.create(&root, &session, &object::sealed(&policy), &AUTH, &[0x5a; 32]).unwrap();
        let sealed = tpm.load(&root, &public, &private).unwrap();
        sealed.set_auth(&AUTH).unwrap();
        sealed
    };
    let open = |index: &Index<'_>, sealed: &Object<'_>, claimed: u64| {
        let policy = tpm.policy_session(&root, Protect::Answer).unwrap();
        let mut out = [0; 32];
        policy.nv_equal(index, &session, &claimed.to_be_bytes())?;
        policy.auth_value()?;
        tpm.unseal(sealed, policy, &mut out).map(|()| assert_eq!(out, [0x5a; 32]))
    };
    // two slots are left for what is sealed
    let (now, next) = (seal_at(value), seal_at(value + 1));
    open(&index, &now, value).unwrap();
    assert!(open(&index, &next, value + 1).unwrap_err().is(POLICY), "before the increment");
    assert!(open(&index, &next, value).unwrap_err().is(POLICY_FAIL), "by the present count");
    index.increment(&session).unwrap();
    open(&index, &next, value + 1).unwrap();
    assert!(open(&index, &now, value).unwrap_err().is(POLICY), "after the increment");
    assert!(open(&index, &now, value + 1).unwrap_err().is(POLICY_FAIL), "by the present count");

    // the owner, with our auth value too: a new counter goes on above the old one
    tpm.undefine(&session, &[], index).unwrap();
    let (index, again) = counter(&tpm, &session);
    assert!(again > value + 1, "{again} after {value}");
    for (sealed, count) in [(&now, value), (&next, value + 1)] {
        assert!(open(&index, sealed, count).unwrap_err().is(POLICY));
        assert!(open(&index, sealed, again).unwrap_err().is(POLICY_FAIL));
    }
    // an ordinary index in its place, with the right count in it: its kind is part of its Name
    tpm.undefine(&session, &[], index).unwrap();
    chip.tool("nvdefine", &["0x1800000", "-C", "o", "-s", "8", "-a", "authread|authwrite|no_da"]).unwrap();
    let index = tpm.index(CTR).unwrap();
    index.write(&session, &value.to_be_bytes()).unwrap();
    drop(index);
    let index = tpm.index(CTR).unwrap();
    assert!(open(&index, &now, value).unwrap_err().is(POLICY_FAIL), "the count is right, the index is not");
}

/// The attestation key signs what the chip states; a digest that somebody computed it does not.
#[test]
fn the_attestation_key_signs_nothing_that_is_handed_to_it() {
    let chip = Swtpm::start();
    let tpm = connect(&chip);
    let root = tpm.create_primary(Hierarchy::Null, &[], None, &storage_root()).unwrap();
    let session = tpm.session(&root).unwrap();
    let sign = |role: Role| {
        let (public, private) = tpm.create(&root, &session, &signing_key(role, None), &AUTH, &[]).unwrap();
        let key = tpm.load(&root, &public, &private).unwrap();
        key.set_auth(&AUTH).unwrap();
        tpm.sign(&key, &session, &Sha256::digest(b"\xffTCG forged").into())
    };
    sign(Role::Identity).unwrap();
    assert!(sign(Role::Attestation).unwrap_err().is(0xa0), "TICKET");
}

/// What a failed or forgotten call holds is given back; what others left is found and flushed.
#[test]
fn three_slots_are_enough() {
    let chip = Swtpm::start();
    let tpm = connect(&chip);
    let root = tpm.create_primary(Hierarchy::Null, &[], None, &storage_root()).unwrap();
    for _ in 0..50 {
        let session = tpm.session(&root).unwrap();
        let policy = tpm.policy_session(&root, Protect::Answer).unwrap();
        assert!(tpm.load(&root, &object::sealed(&[0; 32]), &[1; 64]).is_err());
        drop((session, policy));
    }
    let (one, two) = (tpm.session(&root).unwrap(), tpm.session(&root).unwrap());
    let three = tpm.session(&root).unwrap();
    let full = tpm.session(&root).err().unwrap();
    assert!(full.is_memory(), "{full}");
    // as a killed process leaves them: their destructors do not run
    let _killed = std::mem::ManuallyDrop::new((one, two, three));
    assert_eq!(tpm.flush_strays().unwrap(), 4, "three sessions and the root");
    assert_eq!(tpm.flush_strays().unwrap(), 0);
    let _killed = std::mem::ManuallyDrop::new(root);
}

#[test]
fn random_numbers() {
    let chip = Swtpm::start();
    let tpm = connect(&chip);
    let root = tpm.create_primary(Hierarchy::Null, &[], None, &storage_root()).unwrap();
    let session = tpm.session(&root).unwrap();
    let (mut one, mut two) = ([0; 100], [0; 100]);
    tpm.random(&session, &mut one).unwrap();
    tpm.random(&session, &mut two).unwrap();
    assert_ne!(one, two);
    assert_ne!(one[96..], [0; 4]);
    tpm.scrub().unwrap();
}

#[test]
fn nothing_there() {
    let error = Tpm::open(&c"swtpm:path=/nonexistent/tpm".to_owned()).err().unwrap();
    assert_eq!(error.layer(), Layer::Tcti);
    let told = mayfly_plugin_abi::GuestError::from(Fault::from(error));
    assert!(told.message.contains("not reachable"), "{told}");
}
