//! Attestation with real agents and software TPMs: a strict network from its first device on, and the attacks on it.

use super::chips::{Maker, Swtpm};
use super::net::{Net, PATIENCE, config_with, eventually, name, now_ms};
use super::*;
use crate::node::attestation::{Chip, ChipError, NotBelieved, Roots, challenge, evidence, look};
use crate::node::peers::{Caller, Standing};
use crate::node::vault::Vault;
use mayfly_attest::evidence::exchange::{DeviceKeys, STEP_PROVE, Signed};
use mayfly_attest::judge::CHALLENGE_MS_MAX;
use mayfly_protocol::attested::{Attested, counter_context};
use mayfly_protocol::freshness::FreshAsk;
use mayfly_protocol::peer::{Alarm, Ask, AttestAsk, AttestBegin, Cause, Refused, Release, Reply};
use mayfly_protocol::record::{
    AlertKind, Approve, Attest, DeviceRole, NetworkPolicy, PcrApproval, Quoted, Registers, Role,
};
use mayfly_protocol::state::Membership;

fn strict() -> NetworkPolicy {
    NetworkPolicy {
        head_age_ms_max: 60_000,
        skew_ms_max: 2_000,
        members_join_unapproved: false,
        dev: true,
        unattested: false,
    }
}

/// The sections of an agent on this chip that believes this maker.
fn sections(chip: &Swtpm, maker: &Maker) -> String {
    let roots = maker.bundle();
    format!("{}[attestation]\nroots = \"{}\"\ndanger_allow_software = true\n", chip.vault(), roots.display())
}

/// Agent `i` joins and runs, without approval.
fn enrol(net: &mut Net, i: usize, sections: &str) -> DeviceId {
    let device = join(&net.invite(), &config_with(net.dir.path(), i, sections)).unwrap().device;
    net.start_with(i, sections);
    device
}

/// What `mayfly device attest` does, with the agent in this process.
fn attest_by_administrator(net: &Net, i: usize, maker: &Maker) -> Attest {
    let (node, roots) = (net.node(i), Roots::read(&maker.bundle(), true).unwrap());
    let state = net.replica.tip();
    let shown = node.chip().unwrap().unwrap();
    let context = enrolment_context(&state.network, &node.device(), &net.administrator());
    let subject = (node.device(), &state.devices[&node.device()].identity);
    let (challenged, message) = challenge(&roots, subject, &shown.keys, shown.registers, context, now_ms()).unwrap();
    let statement = challenged.judge(&node.prove(&message).unwrap(), now_ms()).unwrap();
    net.post(statement.clone());
    statement
}

fn admit(net: &Net, device: DeviceId, roles: &[DeviceRole]) {
    net.post(Approve { device });
    net.post(Role { device, roles: roles.to_vec() });
}

fn ask(node: &Node, device: DeviceId, ask: Ask) -> Result<Reply, String> {
    let mut exchange = peers::Exchange::new(&node.peers);
    exchange.ask(device, Box::new(move |_| Ok(ask.clone())));
    let mut came = Err("nothing came".to_owned());
    exchange.wait(Instant::now() + PATIENCE, |_, outcome| {
        came = match outcome {
            peers::Outcome::Answer(reply, _) => Ok(reply),
            peers::Outcome::Lost(why) => Err(why),
        };
    });
    came
}

fn text(reply: &Reply) -> &str {
    match reply {
        Reply::Refused(refused) => &refused.text,
        _ => panic!("{reply:?}"),
    }
}

/// The first device by the administrator, the others by the witnesses; approval without attestation is refused; later statements are watched.
#[test]
fn a_strict_network_from_its_first_device_on() {
    let maker = Maker::new();
    let chips = [maker.chip(), maker.chip(), maker.chip()];
    let mut net = Net::bare(strict());

    let first = enrol(&mut net, 0, &sections(&chips[0], &maker));
    eventually("the first device waits", || net.node(0).phase() == Phase::WaitingForApproval);
    let refused = net.refused(Approve { device: first });
    assert!(refused.contains("nobody has attested the device"), "{refused}");
    let seen = attest_by_administrator(&net, 0, &maker);
    assert!(seen.software && seen.maker.contains("swtpm"), "{}", seen.maker);
    assert_eq!(net.replica.tip().attested(&first), Attested::ByAdministrators(1));
    admit(&net, first, &[DeviceRole::Holder, DeviceRole::Witness]);
    assert!(net.node(0).wait_until_ready(PATIENCE));

    // The one witness attests the second device; the candidate gets nothing else from it.
    let second = enrol(&mut net, 1, &sections(&chips[1], &maker));
    let refused = net.refused(Approve { device: second });
    assert!(refused.contains("nobody has attested"), "{refused}");
    eventually("attested by the witness", || net.replica.tip().attested(&second) == Attested::ByWitnesses(1));
    assert_eq!(net.node(1).phase(), Phase::WaitingForApproval);
    a_candidate_gets_nothing(&net, 1, first);
    admit(&net, second, &[DeviceRole::Holder, DeviceRole::Witness]);
    assert!(net.node(1).wait_until_ready(PATIENCE));

    // Two witnesses must see the third one.
    let third = enrol(&mut net, 2, &sections(&chips[2], &maker));
    eventually("attested by both", || net.replica.tip().attested(&third) == Attested::ByWitnesses(2));
    admit(&net, third, &[DeviceRole::Holder]);
    assert!(net.node(2).wait_until_ready(PATIENCE));
    assert!(net.node(2).unattested().is_empty());

    for node in net.nodes.iter().flatten() {
        let state = node.state();
        for device in [first, second, third] {
            assert_eq!(evidence::judge(&state, &device), [], "{}", state.device_name(&device));
            assert!(state.devices[&device].delegation.as_ref().unwrap().quote.is_some());
            assert!(evidence::generation(&state, &device).unwrap().proved_ms.is_some());
        }
    }
    statements_that_do_not_hold(&net.node(0).state(), third, &net.node(2).vault);

    // The third device boots something else, and says so itself: its chip quotes.
    net.stop(2);
    chips[2].extend(4);
    net.start_with(2, &sections(&chips[2], &maker));
    let alerted = |what| move |state: &State| state.alerts_about(&third).any(|((_, kind, _), _)| *kind == what);
    net.replica.wait_tip(alerted(AlertKind::Registers), PATIENCE).unwrap();
    eventually("it goes on: an alert takes no right", || net.node(2).phase() == Phase::Running);
    one_alert_is_enough(&net.replica.tip(), third);
    // An administrator looks at the machine and attests it anew: its registers are expected from now on.
    attest_by_administrator(&net, 2, &maker);
    net.stop(2);
    net.start_with(2, &sections(&chips[2], &maker));
    net.replica.wait_tip(|state| state.alerts_about(&third).count() == 0, PATIENCE).unwrap();
    assert_eq!(evidence::judge(&net.replica.tip(), &third), []);
}

/// Where one witness has spoken, no other has anything to add; where its word counts for nothing, the next one speaks.
fn one_alert_is_enough(state: &State, about: DeviceId) {
    let says = |state: &State, us: &DeviceId| look(state, us, &mut Default::default());
    let witnesses = state.active_witnesses();
    assert_eq!(witnesses.len(), 2);
    assert!(witnesses.iter().all(|w| says(state, w).is_empty()));
    let author = state.alerts_about(&about).next().unwrap().0.2;
    let mut without = state.clone();
    without.devices.get_mut(&author).unwrap().roles.clear();
    let other = without.active_witnesses()[0];
    let said = says(&without, &other);
    assert!(matches!(&said[..], [(device, f)] if *device == about && f.what == AlertKind::Registers), "{said:?}");
    assert!(says(&without, &about).is_empty(), "nobody judges itself");
}

/// Everything but its own attestation is refused to a device that waits for approval.
fn a_candidate_gets_nothing(net: &Net, candidate: usize, witness: DeviceId) {
    let node = net.node(candidate);
    let release = Release {
        key: KeyId([1; 32]),
        generation: 1,
        epoch: 1,
        purpose: Use::Encrypt,
        uses: 1,
        requester: node.device(),
        head: node.state().head(),
        nonce: [1; 16],
    };
    let fresh = FreshAsk { nonce: [1; 32], head: node.state().head() };
    for question in [Ask::Release(release), Ask::Fresh(fresh), Ask::Alarm(Alarm { entry: vec![1] })] {
        let reply = ask(node, witness, question).unwrap();
        assert_eq!(text(&reply), "a device that waits for approval may only ask to be attested");
    }
    let shown = node.chip().unwrap().unwrap();
    let begin = AttestBegin { keys: shown.keys, registers: shown.registers };
    // As soon as the witness's own copy of the ledger has what it posted.
    eventually("once is enough", || {
        let reply = ask(node, witness, Ask::Attest(AttestAsk::Begin(begin.clone()))).unwrap();
        matches!(reply, Reply::Refused(refused) if refused.text.contains("attested the device already"))
    });
}

/// The pure judge, on statements of a real chip that were changed afterwards.
fn statements_that_do_not_hold(state: &State, device: DeviceId, vault: &Vault) {
    let judged = |change: &dyn Fn(&mut mayfly_protocol::state::Device)| {
        let mut state = state.clone();
        change(state.devices.get_mut(&device).unwrap());
        evidence::judge(&state, &device).into_iter().map(|f| (f.what, f.text)).collect::<Vec<_>>()
    };
    let delegation = state.devices[&device].delegation.clone().unwrap();
    let quoted = delegation.quote.clone().unwrap();
    let quote = Signed::decode(&quoted.statement).unwrap();
    let requoted = |statement: Option<Vec<u8>>| {
        let quote = statement.map(|statement| Quoted { statement, ..quoted.clone() });
        let delegation = mayfly_protocol::record::Delegate { quote, ..(*delegation).clone() };
        judged(&|d| d.delegation = Some(Arc::new(delegation.clone())))
    };
    assert_eq!(judged(&|_| ()), []);
    assert_eq!(evidence::quoted(state, &device), state.attested_registers(&device));
    let mut unquoted = state.clone();
    Arc::make_mut(unquoted.devices.get_mut(&device).unwrap().delegation.as_mut().unwrap()).start_counter += 1;
    assert_eq!(evidence::quoted(&unquoted, &device), None, "what does not hold is nobody's word");
    let mut forged = quote.clone();
    forged.statement[60] ^= 1;
    let other = state.devices.iter().find(|(id, _)| **id != device).unwrap().1.delegation.clone().unwrap();
    for (what, quote, says) in [
        ("missing", None, "carries no quote"),
        ("no message", Some(vec![1, 2, 3]), "does not hold"),
        ("forged", Some(forged.encode()), "not signed by the attestation key"),
        ("of another chip", other.quote.clone().map(|q| q.statement), "not signed by the attestation key"),
    ] {
        let found = requoted(quote);
        assert!(matches!(&found[..], [(AlertKind::Evidence, text)] if text.contains(says)), "{what}: {found:?}");
    }
    // The quote of another session, of another day, or of other registers than attested.
    let mut replayed = (*delegation).clone();
    replayed.start_counter += 1;
    let mut old = (*delegation).clone();
    old.quote.as_mut().unwrap().head.size -= 1;
    for delegation in [replayed, old] {
        let found = judged(&|d| d.delegation = Some(Arc::new(delegation.clone())));
        assert!(matches!(&found[..], [(AlertKind::Evidence, text)] if text.contains("not bound")), "{found:?}");
    }
    let reattested =
        |change: &dyn Fn(&mut Registers)| judged(&|d| attest_others(d, &|said| change(&mut said.registers)));
    let found = reattested(&|r| r.selected = 1 << 7);
    // Nor does a chip's proof hold of other registers than it quoted in it.
    let [by_quote, by_proof] = &found[..] else { panic!("{found:?}") };
    assert!(by_quote.0 == AlertKind::Evidence && by_quote.1.contains("states something else"), "{found:?}");
    assert!(by_proof.0 == AlertKind::Evidence && by_proof.1.contains("is not proven by the chip"), "{found:?}");
    let found = reattested(&|r| r.digest.0[0] ^= 1);
    assert!(matches!(&found[..], [(AlertKind::Registers, _)]), "{found:?}");
    // Whoever attests a device cannot vouch for a generation that its chip has not proved.
    let vouched = judged(&|d| {
        d.vault_generation = 7;
        attest_others(d, &|said| said.generation = 7);
    });
    assert!(matches!(&vouched[..], [(AlertKind::Evidence, text)] if text.contains("not proven")), "{vouched:?}");
    // An approval of just these registers puts it right; of others it does not.
    let registers = state.attested_registers(&device).unwrap();
    for (flip, expected) in [(0, 0), (1, 1)] {
        let mut digest = registers.digest.0;
        digest[31] ^= flip;
        let [low, middle, high, _] = registers.selected.to_le_bytes();
        let approval = mayfly_attest::evidence::approval::Approval {
            generation: 1,
            registers: mayfly_attest::evidence::pcr::Selection::from_bitmap([low, middle, high]),
            digest,
            signature: [0; 64],
        };
        let mut changed = state.clone();
        let known = changed.devices.get_mut(&device).unwrap();
        known.pcr_approvals.push(Arc::new(PcrApproval { device, approval: approval.encode() }));
        attest_others(known, &|said| said.registers.digest.0[0] ^= 1);
        assert_eq!(evidence::judge(&changed, &device).len(), expected);
    }
    // Generations.
    let stated = |generation: u64, proof: Option<Vec<u8>>| {
        judged(&|d| {
            d.vault_generation = generation;
            let record = Arc::new(mayfly_protocol::record::VaultGeneration { generation, proof: proof.clone() });
            d.generation_stated = Some(mayfly_protocol::state::GenerationStated { record, time_ms: 1 });
        })
    };
    // What the chip says when it is asked about this generation: it is honest, and at generation 1.
    let certified = |about: u64| vault.certified_counter(&counter_context(&state.network, &device, about)).unwrap();
    assert!(certified(9).is_some());
    for (what, proof, says) in [
        ("nothing", None, "is not proven"),
        ("no message", Some(vec![1]), "does not hold"),
        ("a quote", Some(quote.encode()), "does not hold"),
        ("the counter of another generation", certified(9), "does not hold"),
        ("a counter certified for another statement", certified(1), "does not hold"),
    ] {
        let found = stated(9, proof);
        assert!(matches!(&found[..], [(AlertKind::Evidence, text)] if text.contains(says)), "{what}: {found:?}");
    }
    assert_eq!(judged(&|d| d.chip = None), [], "nobody has attested it: nothing to hold against it");
    assert_eq!(judged(&|d| d.membership = Membership::Banned), []);
}

/// As if other registers had been attested.
fn attest_others(device: &mut mayfly_protocol::state::Device, change: &dyn Fn(&mut Attest)) {
    for author in device.attestations.keys().copied().collect::<Vec<_>>() {
        let attestation = device.attestations.get_mut(&author).unwrap();
        let mut record = (*attestation.record).clone();
        change(&mut record);
        attestation.record = Arc::new(record);
    }
}

fn statement_of(subject: &(DeviceId, mayfly_crypto::sign::PublicKey)) -> (DeviceId, &mayfly_crypto::sign::PublicKey) {
    (subject.0, &subject.1)
}

/// Whose proof stands for whom: chips without agents.
#[test]
fn one_chips_proof_is_no_others() {
    let maker = Maker::new();
    let (good, evil) = (maker.chip(), maker.chip());
    let dir = tempfile::tempdir().unwrap();
    let vault = |i: usize, chip: &Swtpm| {
        let config = config_with(dir.path(), i, &chip.vault());
        let data = DataDir::open(&config.data_dir).unwrap();
        let vault = Arc::new(Vault::start(&config, &data.join("vault"), true).unwrap());
        (Chip::new(vault.clone()), vault, data)
    };
    let ((a, a_vault, _a_data), (b, b_vault, _b_data)) = (vault(0, &good), vault(1, &evil));
    let roots = Roots::read(&maker.bundle(), true).unwrap();
    let (a_shown, b_shown) = (a.show().unwrap().unwrap(), b.show().unwrap().unwrap());
    let (a_is, b_is) = ((a_vault.device(), *a_vault.identity()), (b_vault.device(), *b_vault.identity()));
    let network = mayfly_protocol::NetworkId([1; 32]);
    let verifier = AuthorId([2; 32]);
    let context = |device: &DeviceId| enrolment_context(&network, device, &verifier);
    let registers = a_shown.registers;
    assert_eq!(registers, 0x95, "0, 2, 4, 7: the vault's policy names none");
    let begin = |roots: &Roots, subject, keys: &[u8], registers| {
        challenge(roots, statement_of(subject), keys, registers, context(&subject.0), now_ms())
    };
    let good_one = || begin(&roots, &a_is, &a_shown.keys, registers).unwrap();

    let (challenged, message) = good_one();
    let proof = a.prove(&message, &[context(&a_is.0)]).unwrap();
    let statement = challenged.judge(&proof, now_ms()).unwrap();
    assert_eq!((statement.device, statement.generation, statement.registers.selected), (a_is.0, 1, registers));

    // B shows A's chip as its own: with A's keys, or with its own identity key among them.
    let refused = begin(&roots, &b_is, &a_shown.keys, registers).unwrap_err();
    assert!(matches!(refused, NotBelieved::Identity), "{refused}");
    let mixed = DeviceKeys {
        identity: DeviceKeys::decode(&b_shown.keys).unwrap().identity,
        ..DeviceKeys::decode(&a_shown.keys).unwrap()
    };
    let (challenged, relayed) = begin(&roots, &b_is, &mixed.encode(), registers).unwrap();
    let honest = a.prove(&relayed, &[context(&a_is.0)]).unwrap_err();
    assert!(matches!(honest, ChipError::Foreign), "{honest}");
    let proof = a_vault.attest(STEP_PROVE, &relayed).unwrap(); // A's host is broken into as well
    let refused = challenged.judge(&proof, now_ms()).unwrap_err();
    assert!(refused.to_string().contains("the identity key: it states something else"), "{refused}");
    // The credential is for the chip whose certificate was shown.
    let stolen = DeviceKeys {
        certificates: DeviceKeys::decode(&a_shown.keys).unwrap().certificates,
        ..DeviceKeys::decode(&b_shown.keys).unwrap()
    };
    let (_, message) = begin(&roots, &b_is, &stolen.encode(), registers).unwrap();
    assert!(b_vault.attest(STEP_PROVE, &message).is_err());
    assert!(a_vault.attest(STEP_PROVE, &message).is_err());

    // For another network, verifier, device; with other registers than the device offers.
    for foreign in [
        enrolment_context(&mayfly_protocol::NetworkId([9; 32]), &a_is.0, &verifier),
        enrolment_context(&network, &a_is.0, &AuthorId([9; 32])),
        context(&b_is.0),
    ] {
        let (_, message) = good_one();
        assert!(a.prove(&message, &[foreign]).is_err());
    }
    let (_, message) = begin(&roots, &a_is, &a_shown.keys, 1 << 7).unwrap();
    assert!(a.prove(&message, &[context(&a_is.0)]).is_err());
    // A proof for another challenge, and one that comes too late.
    let (challenged, _) = good_one();
    let refused = challenged.judge(&statement.proof, now_ms()).unwrap_err();
    assert!(refused.to_string().contains("not bound to this challenge"), "{refused}");
    let (challenged, message) = good_one();
    let proof = a.prove(&message, &[context(&a_is.0)]).unwrap();
    let refused = challenged.judge(&proof, now_ms() + CHALLENGE_MS_MAX + 10_000).unwrap_err();
    assert!(refused.to_string().contains("too late"), "{refused}");

    // Registers that say nothing, makers that are not believed.
    for bad in [0, 1 << 16, 1 << 23 | 1, 1 << 24] {
        assert!(matches!(begin(&roots, &a_is, &a_shown.keys, bad), Err(NotBelieved::Registers)), "{bad:#x}");
    }
    let hardware_only = Roots::read(&maker.bundle(), false).unwrap();
    let refused = begin(&hardware_only, &a_is, &a_shown.keys, registers).unwrap_err();
    assert!(refused.to_string().contains("the TPM is software"), "{refused}");
    let others = Maker::new();
    drop(others.chip());
    let foreign = Roots::read(&others.bundle(), true).unwrap();
    let refused = begin(&foreign, &a_is, &a_shown.keys, registers).unwrap_err();
    assert!(refused.to_string().contains("certificate of the endorsement key"), "{refused}");
    std::fs::write(dir.path().join("none.pem"), "").unwrap();
    assert!(Roots::read(&dir.path().join("none.pem"), true).is_err());
}

/// A witness without makers says so; one challenge for a device, one answer; too many questions are put off.
#[test]
fn a_witness_attests_carefully() {
    let maker = Maker::new();
    let (chip, other) = (maker.chip(), maker.chip());
    let mut net = Net::up(1); // a witness with a vault of kind file, which knows no makers
    let device = enrol(&mut net, 1, &chip.vault());
    let witness = net.devices()[0];
    eventually("refused with a reason", || {
        net.node(1).unattested().iter().any(|(w, why)| *w == witness && why.contains("no makers' certificates"))
    });
    assert!(!net.replica.tip().devices[&device].is_member());
    net.stop(1);

    // With makers now. The device does not run: its part is played here.
    let roots = format!(
        "[vault]\nkind = \"file\"\nconfig = '''\npassphrase_file = \"{}\"\n'''\n[attestation]\nroots = \"{}\"\ndanger_allow_software = true\n",
        net.dir.path().join(name(0)).join("passphrase").display(),
        maker.bundle().display(),
    );
    net.stop(0);
    net.start_with(0, &roots);
    assert!(net.node(0).wait_until_ready(PATIENCE));
    let node = net.node(0);
    let vault = |i: usize, chip: &Swtpm| {
        let config = config_with(net.dir.path(), i, &chip.vault());
        let data = DataDir::open(&config.data_dir).unwrap();
        (Arc::new(Vault::start(&config, &data.join("vault"), true).unwrap()), data)
    };
    let ((vault, _data), (stranger, _stranger_data)) = (vault(1, &chip), vault(2, &other));
    let mine = Chip::new(vault.clone());
    let shown = mine.show().unwrap().unwrap();
    let caller = |device| Caller { device, key: *vault.identity(), standing: Standing::Candidate };
    let begin = || AttestAsk::Begin(AttestBegin { keys: shown.keys.clone(), registers: shown.registers });
    let answer = |device, ask| node.attester.answer(&caller(device), ask);
    let challenge = || {
        let made = std::cell::RefCell::new(None);
        eventually("a challenge", || {
            if let Reply::Challenge(message) = answer(device, begin()) {
                *made.borrow_mut() = Some(message);
            }
            made.borrow().is_some()
        });
        made.into_inner().unwrap()
    };
    let context = enrolment_context(&node.state().network, &device, &AuthorId::from(witness));

    // One that has not joined; one that is somebody else.
    assert!(text(&answer(stranger.device(), begin())).contains("has not joined"));
    assert!(text(&answer(witness, begin())).contains("does not hold the device's identity key"));
    assert!(text(&answer(device, AttestAsk::Prove(vec![1]))).contains("no challenge is open"));
    // Once only.
    let first = challenge();
    let busy = answer(device, begin());
    assert!(matches!(&busy, Reply::Refused(Refused { cause: Cause::Busy, .. })), "{busy:?}");
    let proof = mine.prove(&first, &[context]).unwrap();
    assert!(
        text(&answer(witness, AttestAsk::Prove(proof.clone()))).contains("no challenge is open"),
        "of another device"
    );
    assert!(text(&answer(device, AttestAsk::Prove(vec![1]))).contains("not believed"));
    assert!(text(&answer(device, AttestAsk::Prove(proof))).contains("no challenge is open"), "a second answer");
    assert_eq!(net.replica.tip().attested(&device), Attested::No);

    let proof = mine.prove(&challenge(), &[context]).unwrap();
    assert_eq!(answer(device, AttestAsk::Prove(proof.clone())), Reply::Attested);
    eventually("on the ledger", || net.replica.tip().attested(&device) == Attested::ByWitnesses(1));
    assert!(text(&answer(device, AttestAsk::Prove(proof))).contains("no challenge is open"), "again");
    eventually(
        "known",
        || matches!(answer(device, begin()), Reply::Refused(refused) if refused.text.contains("already")),
    );
}
