//! Attestations, generations, approvals of registers, alerts: every rule broken once.

use super::*;
use crate::apply::{ALERT_AGAIN_MS, ALERT_BYTES_MAX, ALERT_NEWS_MS, APPROVAL_BYTES_MAX, EVIDENCE_BYTES_MAX};
use crate::attested::Attested;
use crate::record::{Alert, AlertKind, Attest, Chip, PcrApproval, Quoted, Registers, VaultGeneration};

/// Somebody saw chip `chip` in a device.
pub fn attest(device: u8, chip: u8) -> Attest {
    let certificate = Hash([chip; 32]);
    Attest {
        device: device_id(device),
        chip: Chip { attestation: [chip; 64], storage_root: [chip; 34], counter: 1, counter_base: 0, certificate },
        maker: "id:00001014 swtpm".into(),
        software: true,
        generation: 1,
        registers: registers(1),
        secret: [1; 32],
        proof: vec![1],
    }
}

fn registers(digest: u8) -> Registers {
    Registers { selected: 0x95, digest: Hash([digest; 32]) }
}

pub fn generation(generation: u64) -> VaultGeneration {
    VaultGeneration { generation, proof: None }
}

pub fn approval(device: u8) -> PcrApproval {
    PcrApproval { device: device_id(device), approval: vec![1; 107] }
}

pub fn alert(about: u8, text: &str) -> Alert {
    Alert { about: device_id(about), what: AlertKind::Evidence, text: text.into() }
}

/// Three witnesses (11, 12, 13; sessions 21, 22, 23) in a network that wants attestation, attested by the administrator.
fn strict() -> World {
    let mut world = World::genesis_with(|policy| policy.unattested = false);
    for device in [11, 12, 13] {
        world.enroll(device);
        world.post(ADMIN, &[ADMIN], attest(device, device)).unwrap();
        world.post(ADMIN, &[ADMIN], Approve { device: device_id(device) }).unwrap();
        world.post(ADMIN, &[ADMIN], Role { device: device_id(device), roles: vec![DeviceRole::Witness] }).unwrap();
        world.post(device, &[device, device + 10], delegate(device + 10, 1)).unwrap();
    }
    world
}

fn ban(world: &mut World, device: u8) {
    world.post(ADMIN, &[ADMIN], Ban { device: device_id(device), reason: String::new() }).unwrap();
}

#[test]
fn approval_needs_an_administrator_or_a_quorum_of_witnesses_who_saw_the_same_chip() {
    let mut w = strict();
    for device in [14, 15] {
        w.enroll(device);
        w.refuses(ADMIN, &[ADMIN], Approve { device: device_id(device) }, "rule");
    }
    w.post(11, &[21], attest(14, 50)).unwrap();
    w.post(11, &[21], attest(14, 50)).unwrap();
    assert_eq!(w.state.attested(&device_id(14)), Attested::No, "one witness twice is one witness");
    w.post(12, &[22], attest(14, 51)).unwrap();
    assert_eq!(w.state.attested(&device_id(14)), Attested::No, "two chips");
    w.refuses(ADMIN, &[ADMIN], Approve { device: device_id(14) }, "rule");
    w.post(13, &[23], attest(14, 50)).unwrap();
    assert_eq!(w.state.attested(&device_id(14)), Attested::ByWitnesses(2), "one liar blocks nobody");
    w.post(ADMIN, &[ADMIN], Approve { device: device_id(14) }).unwrap();

    w.post(ADMIN, &[ADMIN], attest(15, 52)).unwrap();
    assert_eq!(w.state.attested(&device_id(15)), Attested::ByAdministrators(1));
    w.post(ADMIN, &[ADMIN], Approve { device: device_id(15) }).unwrap();
}

#[test]
fn an_invited_device_becomes_a_member_by_itself_only_when_it_is_attested() {
    for (unattested, before) in [(true, true), (false, false)] {
        let mut w = World::genesis_with(|policy| {
            policy.members_join_unapproved = true;
            policy.unattested = unattested;
        });
        w.enroll(11);
        assert_eq!(w.state.devices[&device_id(11)].is_member(), before);
        w.post(ADMIN, &[ADMIN], attest(11, 50)).unwrap();
        assert!(w.state.devices[&device_id(11)].is_member());
        ban(&mut w, 11);
        w.refuses(ADMIN, &[ADMIN], attest(11, 50), "rule");
    }
}

#[test]
fn who_may_attest_what() {
    let mut w = strict();
    w.enroll(14);
    w.refuses(11, &[21], attest(11, 11), "rule");
    w.refuses(11, &[21], attest(99, 50), "rule");
    w.refuses(14, &[14], attest(12, 12), "authority");
    for (what, change) in [
        ("no register", (|a: &mut Attest| a.registers.selected = 0) as fn(&mut Attest)),
        ("register 24", |a| a.registers.selected = 1 << 24),
        ("no proof", |a| a.proof.clear()),
        ("a long proof", |a| a.proof = vec![0; EVIDENCE_BYTES_MAX + 1]),
        ("a long name", |a| a.maker = "m".repeat(129)),
        ("control characters", |a| a.maker = "\u{1b}[31m".into()),
    ] {
        let mut bad = attest(14, 50);
        change(&mut bad);
        assert_eq!(w.post(11, &[21], bad).expect_err(what).code(), "rule", "{what}");
    }
    // A member that is not a witness, and one that was.
    w.post(ADMIN, &[ADMIN], Role { device: device_id(13), roles: vec![DeviceRole::Holder] }).unwrap();
    w.refuses(13, &[23], attest(14, 50), "authority");
    w.post(11, &[21], attest(14, 50)).unwrap();
    w.post(12, &[22], attest(14, 50)).unwrap();
    assert_eq!(w.state.attested(&device_id(14)), Attested::ByWitnesses(2));
    ban(&mut w, 12);
    assert_eq!(w.state.attested(&device_id(14)), Attested::No, "the word of a banned witness does not count");
}

#[test]
fn a_device_stays_with_its_chip_and_a_chip_with_its_device() {
    let mut w = strict();
    w.enroll(14);
    w.post(11, &[21], attest(14, 50)).unwrap();
    w.refuses(11, &[21], attest(14, 51), "rule");
    w.post(12, &[22], attest(14, 50)).unwrap();
    w.refuses(13, &[23], attest(14, 51), "rule");
    w.refuses(ADMIN, &[ADMIN], attest(14, 51), "rule");
    // Also when those who saw it are witnesses no more.
    for device in [11, 12] {
        w.post(ADMIN, &[ADMIN], Role { device: device_id(device), roles: vec![] }).unwrap();
    }
    assert_eq!(w.state.attested(&device_id(14)), Attested::No);
    w.refuses(13, &[23], attest(14, 51), "rule");
    w.post(13, &[23], attest(14, 50)).unwrap();
    assert_eq!(w.state.attested(&device_id(14)), Attested::ByWitnesses(1));

    // The same machine with other keys, under another name.
    w.enroll(15);
    let mut twin = attest(15, 60);
    twin.chip.certificate = Hash([50; 32]);
    w.refuses(13, &[23], twin.clone(), "rule");
    ban(&mut w, 14);
    w.post(13, &[23], twin).unwrap();
    // A word that counts for nothing keeps nobody out.
    w.enroll(16);
    let mut w = World { state: w.state.clone(), log: w.log.clone() };
    w.post(ADMIN, &[ADMIN], Role { device: device_id(11), roles: vec![DeviceRole::Witness] }).unwrap();
    w.post(11, &[21], attest(16, 70)).unwrap();
    w.enroll(17);
    w.post(13, &[23], attest(17, 70)).unwrap();
}

#[test]
fn no_attester_moves_a_generation() {
    let mut w = strict();
    let ahead = Attest { generation: u64::MAX, ..attest(12, 12) };
    w.post(11, &[21], ahead).unwrap();
    assert_eq!(w.state.devices[&device_id(12)].vault_generation, 1);
    w.post(12, &[12], generation(5)).unwrap();
    w.refuses(11, &[21], Attest { generation: 4, ..attest(12, 12) }, "rule");
    w.post(11, &[21], Attest { generation: 5, ..attest(12, 12) }).unwrap();
}

#[test]
fn which_registers_count() {
    let mut w = strict();
    w.enroll(14);
    let seen = |digest| Attest { registers: registers(digest), ..attest(14, 50) };
    w.post(11, &[21], seen(1)).unwrap();
    assert_eq!(w.state.attested_registers(&device_id(14)), None, "not attested");
    w.post(12, &[22], seen(1)).unwrap();
    w.post(13, &[23], seen(9)).unwrap();
    assert_eq!(w.state.attested_registers(&device_id(14)), Some(registers(1)), "most witnesses");
    w.post(ADMIN, &[ADMIN], seen(4)).unwrap();
    assert_eq!(w.state.attested_registers(&device_id(14)), Some(registers(4)), "an administrator's word");
}

#[test]
fn generations_only_grow() {
    let mut w = World::new();
    w.enroll(15);
    w.refuses(15, &[15], generation(1), "authority");
    w.refuses(15, &[15], alert(15, "not approved yet"), "authority");
    w.refuses(11, &[11], generation(1), "rule");
    w.refuses(11, &[11], VaultGeneration { generation: 2, proof: Some(vec![]) }, "rule");
    let long = Some(vec![0; EVIDENCE_BYTES_MAX + 1]);
    w.refuses(11, &[11], VaultGeneration { generation: 2, proof: long.clone() }, "rule");
    w.post(11, &[11], VaultGeneration { generation: 2, proof: Some(vec![1]) }).unwrap();
    w.refuses(11, &[11], generation(2), "rule");
    let device = &w.state.devices[&device_id(11)];
    assert_eq!((device.vault_generation, device.generation_stated.as_ref().unwrap().record.generation), (2, 2));
    w.refuses(11, &[11, 31], delegate(31, 2), "rule");
    w.post(11, &[11, 31], Delegate { vault_generation: 2, ..delegate(31, 2) }).unwrap();
    ban(&mut w, 11);
    w.refuses(11, &[11], generation(3), "authority");
}

#[test]
fn quotes_are_of_today() {
    let mut w = World::new();
    let quoted = |head, statement| Delegate { quote: Some(Quoted { head, statement }), ..delegate(31, 2) };
    let now = w.state.head();
    for statement in [vec![], vec![0; EVIDENCE_BYTES_MAX + 1]] {
        w.refuses(11, &[11, 31], quoted(now, statement), "rule");
    }
    let other = Head { root: Hash([1; 32]), ..now };
    let ahead = Head { size: now.size + 1, ..now };
    for head in [other, ahead] {
        w.refuses(11, &[11, 31], quoted(head, vec![1]), "rule");
    }
    // The head of the entry is new, that of the quote is of long ago.
    let mut later = World { state: w.state.clone(), log: w.log.clone() };
    let at = T0 + DELEGATE_HEAD_AGE_MS_MAX + 60_000;
    later.state.apply(at, &later.entry(12, &[22], object("t")).encode()).unwrap();
    let fresh = Delegate { not_after_ms: at + 1000, ..quoted(later.state.head(), vec![1]) };
    let stale = Delegate { not_after_ms: at + 1000, ..quoted(now, vec![1]) };
    let refused = later.state.clone().apply(at, &later.entry(11, &[11, 31], stale).encode()).unwrap_err();
    assert!(refused.to_string().contains("a quote is made on a recent head"), "{refused}");
    later.state.apply(at, &later.entry(11, &[11, 31], fresh).encode()).unwrap();
    w.post(11, &[11, 31], quoted(now, vec![1])).unwrap();
}

#[test]
fn registers_are_approved_by_approvers() {
    let mut w = World::new();
    let roles = vec![DeviceRole::Witness, DeviceRole::PcrApprover];
    w.post(ADMIN, &[ADMIN], Role { device: device_id(11), roles }).unwrap();
    w.refuses(11, &[21], approval(99), "rule");
    for length in [0, APPROVAL_BYTES_MAX + 1] {
        w.refuses(11, &[21], PcrApproval { approval: vec![1; length], ..approval(12) }, "rule");
    }
    for _ in 0..crate::state::PCR_APPROVALS + 2 {
        w.post(11, &[21], approval(12)).unwrap();
    }
    assert_eq!(w.state.devices[&device_id(12)].pcr_approvals.len(), crate::state::PCR_APPROVALS);
    ban(&mut w, 12);
    w.refuses(11, &[21], approval(12), "rule");
}

#[test]
fn alerts_stand_until_the_device_delegates_anew() {
    let mut w = World::new();
    w.refuses(11, &[21], alert(99, "x"), "rule");
    w.refuses(11, &[21], alert(12, &"x".repeat(ALERT_BYTES_MAX + 1)), "rule");
    w.refuses(11, &[21], alert(12, "\n"), "rule");
    w.post(11, &[21], alert(12, "no quote")).unwrap();
    w.refuses(11, &[21], alert(12, "no quote"), "rule");
    w.refuses(11, &[21], alert(12, "no proof"), "rule");
    let news = w.entry(11, &[21], alert(12, "no proof"));
    w.state.clone().apply(T0 + w.log.len() as u64 - 1 + ALERT_NEWS_MS, &news.encode()).unwrap();
    w.post(12, &[12], Alert { what: AlertKind::VaultBehind, ..alert(12, "behind") }).unwrap();
    assert_eq!(w.state.alerts_about(&device_id(12)).count(), 2);
    assert_eq!(w.state.alerts_about(&device_id(11)).count(), 0);
    let again = w.entry(11, &[21], alert(12, "no quote"));
    assert!(w.state.clone().apply(T0 + w.log.len() as u64 + ALERT_NEWS_MS, &again.encode()).is_err());
    w.state.clone().apply(T0 + w.log.len() as u64 - 1 + ALERT_AGAIN_MS, &again.encode()).unwrap();

    w.post(12, &[22], alert(11, "about another")).unwrap();
    w.post(12, &[12, 22], delegate(22, 2)).unwrap();
    assert_eq!(w.state.alerts_about(&device_id(12)).count(), 0);
    assert_eq!(w.state.alerts_about(&device_id(11)).count(), 1);
    ban(&mut w, 12);
    w.refuses(12, &[12], alert(12, "x"), "authority");
}
