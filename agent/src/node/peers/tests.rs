//! Two agents' connections, over a directory that is a table.

mod hostile;

use super::conn::Conn;
use super::link::Link;
use super::*;
use mayfly_crypto::envelope::Session;
use mayfly_crypto::sign::Ed25519Secret;
use mayfly_protocol::freshness::FreshAsk;
use mayfly_protocol::peer::{Ask, Cause, Message, Refused, Released, Reply};
use mayfly_protocol::{KeyId, ShardId};
use std::collections::HashMap;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, RwLock};
use std::time::Instant;

const SECRET: &[u8; 64] = &[42; 64];

/// Members and candidates, as the ledger would name them.
#[derive(Debug, Default)]
struct Table(RwLock<HashMap<DeviceId, (PublicKey, String)>>, RwLock<HashMap<DeviceId, PublicKey>>);

impl Directory for Table {
    fn standing_of(&self, device: &DeviceId, key: &PublicKey) -> Option<Standing> {
        let candidate = self.1.read().unwrap().get(device) == Some(key);
        let member = || (self.session_of(device) == Some(*key)).then_some(Standing::Member);
        if candidate { Some(Standing::Candidate) } else { member() }
    }

    fn caller_of(&self, key: &PublicKey, patience: Duration) -> Option<(DeviceId, Standing)> {
        let deadline = Instant::now() + patience;
        loop {
            let member =
                self.0.read().unwrap().iter().find(|(_, (k, _))| k == key).map(|(d, _)| (*d, Standing::Member));
            let candidate =
                || self.1.read().unwrap().iter().find(|(_, k)| *k == key).map(|(d, _)| (*d, Standing::Candidate));
            let found = member.or_else(candidate);
            if found.is_some() || Instant::now() >= deadline {
                return found;
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    fn session_of(&self, device: &DeviceId) -> Option<PublicKey> {
        self.0.read().unwrap().get(device).map(|(key, _)| *key)
    }

    fn addresses_of(&self, device: &DeviceId) -> Vec<String> {
        self.0.read().unwrap().get(device).map(|(_, address)| vec![address.clone()]).unwrap_or_default()
    }

    fn head(&self) -> Head {
        Head::default()
    }
}

/// Answers FRESH with a sealed secret, and remembers who asked.
#[derive(Default)]
struct Sealer(Mutex<Vec<DeviceId>>);

impl Service for Sealer {
    fn answer(&self, caller: &Caller, session: &mut Session, ask: Ask) -> Reply {
        self.0.lock().unwrap().push(caller.device);
        let Ask::Fresh(ask) = ask else {
            return Reply::Refused(Refused::new(Cause::Denied, "no", Head::default()));
        };
        let mut sealed = Vec::new();
        session.seal(&ask.nonce, SECRET, &mut sealed).unwrap();
        Reply::Released(Released {
            key: KeyId([1; 32]),
            generation: 1,
            epoch: 1,
            shard: ShardId([1; 32]),
            index: 1,
            nonce: [0; 16],
            head: Head::default(),
            sealed,
        })
    }
}

struct Agent {
    device: DeviceId,
    peers: Arc<Peers>,
    server: Arc<Server>,
    service: Arc<Sealer>,
    stop: Arc<AtomicBool>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Drop for Agent {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        self.server.end(|_| true);
        self.thread.take().unwrap().join().unwrap();
    }
}

fn local(table: &Arc<Table>, n: u8) -> Local {
    Local { network: NetworkId([9; 32]), device: DeviceId([n; 32]), directory: table.clone() }
}

/// An agent that serves; it is in the table if `member`.
fn agent(table: &Arc<Table>, n: u8, member: bool) -> Agent {
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let session = Arc::new(Ed25519Secret::generate().unwrap());
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let (device, address) = (DeviceId([n; 32]), listener.local_addr().unwrap().to_string());
    if member {
        table.0.write().unwrap().insert(device, (session.public(), address));
    }
    let peers = Arc::new(Peers::new(local(table, n), session));
    let (service, stop) = (Arc::new(Sealer::default()), Arc::new(AtomicBool::new(false)));
    let server = Server::new(&peers, service.clone(), 100);
    let (run, flag) = (server.clone(), stop.clone());
    let thread = Some(std::thread::spawn(move || run.run(&listener, &flag)));
    Agent { device, peers, server, service, stop, thread }
}

/// Asks for the secret; what came of it.
fn ask(from: &Peers, to: DeviceId, within: Duration) -> Result<(), String> {
    let nonce = [7; 32];
    let mut exchange = Exchange::new(from);
    exchange.ask(to, Box::new(move |_| Ok(Ask::Fresh(FreshAsk { nonce, head: Head::default() }))));
    let mut result = Err("nothing came".to_owned());
    exchange.wait(Instant::now() + within, |device, outcome| {
        assert_eq!(device, to);
        result = match outcome {
            Outcome::Answer(Reply::Released(released), session) => {
                let secret = session.open_fixed::<64>(&nonce, &released.sealed).unwrap();
                assert_eq!(secret.expose(), SECRET);
                Ok(())
            }
            Outcome::Answer(other, _) => Err(format!("{other:?}")),
            Outcome::Lost(why) => Err(why),
        };
    });
    result
}

const SOON: Duration = Duration::from_secs(10);

#[test]
fn members_talk_and_know_who_they_talk_to() {
    let table = Arc::new(Table::default());
    let (one, two) = (agent(&table, 1, true), agent(&table, 2, true));
    for _ in 0..3 {
        ask(&one.peers, two.device, SOON).unwrap();
        ask(&two.peers, one.device, SOON).unwrap();
    }
    assert_eq!(*two.service.0.lock().unwrap(), [one.device; 3]);
    assert_eq!((one.server.count(), two.server.count()), (1, 1), "a connection is used again");
    let standing = one.peers.standing(&two.device);
    assert!(standing.connected && standing.usual_us.is_some() && standing.failed.is_none());
}

#[test]
fn a_stranger_gets_no_answer_and_a_late_comer_is_waited_for() {
    let table = Arc::new(Table::default());
    let (one, two) = (agent(&table, 1, true), agent(&table, 2, true));
    let elsewhere = Arc::new(Table(RwLock::new(table.0.read().unwrap().clone()), RwLock::default()));
    let stranger = Peers::new(local(&elsewhere, 3), Arc::new(Ed25519Secret::generate().unwrap()));
    assert!(ask(&stranger, two.device, SOON).is_err());
    assert_eq!(*two.service.0.lock().unwrap(), []);

    let session = Arc::new(Ed25519Secret::generate().unwrap());
    let late = Peers::new(local(&elsewhere, 4), session.clone());
    std::thread::scope(|scope| {
        let asked = scope.spawn(|| ask(&late, two.device, SOON));
        std::thread::sleep(Duration::from_millis(100)); // the handshake is under way
        table.0.write().unwrap().insert(DeviceId([4; 32]), (session.public(), String::new()));
        asked.join().unwrap().unwrap();
    });
    drop(one);
}

#[test]
fn a_server_with_another_key_is_not_talked_to() {
    let table = Arc::new(Table::default());
    let (one, two) = (agent(&table, 1, true), agent(&table, 2, true));
    let other = Ed25519Secret::generate().unwrap().public();
    table.0.write().unwrap().get_mut(&two.device).unwrap().0 = other;
    let error = ask(&one.peers, two.device, SOON).unwrap_err();
    assert!(error.contains("TLS"), "{error}");
    assert_eq!(*two.service.0.lock().unwrap(), []);
}

#[test]
fn a_greeting_under_another_name_or_network_ends_the_connection() {
    let table = Arc::new(Table::default());
    let (_one, two) = (agent(&table, 1, true), agent(&table, 2, true));
    let session = Arc::new(Ed25519Secret::generate().unwrap());
    table.0.write().unwrap().insert(DeviceId([3; 32]), (session.public(), String::new()));
    let honest = local(&table, 3);
    ask(&Peers::new(honest.clone(), session.clone()), two.device, SOON).unwrap();
    for lie in [local(&table, 1), Local { network: NetworkId([8; 32]), ..honest }] {
        assert!(ask(&Peers::new(lie, session.clone()), two.device, SOON).is_err());
    }
    assert_eq!(two.service.0.lock().unwrap().len(), 1);
}

#[test]
fn a_member_that_loses_its_right_is_cut_off_in_the_middle_of_a_connection() {
    let table = Arc::new(Table::default());
    let (one, two) = (agent(&table, 1, true), agent(&table, 2, true));
    // Two tables: the first agent does not know that it was banned.
    let its_own = Arc::new(Table(RwLock::new(table.0.read().unwrap().clone()), RwLock::default()));
    let session = Arc::new(Ed25519Secret::generate().unwrap());
    for table in [&table, &its_own] {
        table.0.write().unwrap().insert(DeviceId([3; 32]), (session.public(), String::new()));
    }
    let third = Peers::new(local(&its_own, 3), session);
    ask(&third, two.device, SOON).unwrap();
    table.0.write().unwrap().remove(&DeviceId([3; 32]));
    assert!(ask(&third, two.device, SOON).is_err());
    assert_eq!(two.service.0.lock().unwrap().len(), 1, "the question was not even looked at");
    ask(&one.peers, two.device, SOON).unwrap();
    // One that says nothing is cut off, too.
    table.0.write().unwrap().remove(&one.device);
    two.server.prune();
    let deadline = Instant::now() + SOON;
    while two.server.count() > 0 {
        assert!(Instant::now() < deadline);
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn a_connection_that_died_in_the_pool_is_replaced_without_the_asker_noticing() {
    let table = Arc::new(Table::default());
    let (one, two) = (agent(&table, 1, true), agent(&table, 2, true));
    for _ in 0..5 {
        ask(&one.peers, two.device, SOON).unwrap();
        two.server.end(|_| true);
    }
    assert_eq!(two.service.0.lock().unwrap().len(), 5);
}

#[test]
fn one_that_never_answers_is_left_behind_and_asked_last() {
    let table = Arc::new(Table::default());
    let (one, two) = (agent(&table, 1, true), agent(&table, 2, true));
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let mute = DeviceId([0; 32]);
    let entry = (Ed25519Secret::generate().unwrap().public(), silent.local_addr().unwrap().to_string());
    table.0.write().unwrap().insert(mute, entry);
    let order = |peers: &Peers| -> Vec<DeviceId> {
        peers.by_preference([mute, two.device]).into_iter().map(|c| c.device).collect()
    };
    assert_eq!(order(&one.peers), [mute, two.device]);
    let began = Instant::now();
    assert_eq!(ask(&one.peers, mute, Duration::from_millis(50)), Err("nothing came".into()));
    assert!(began.elapsed() < Duration::from_secs(1));
    ask(&one.peers, two.device, SOON).unwrap();
    assert_eq!(order(&one.peers), [two.device, mute]);
    assert!(one.peers.standing(&mute).failed.is_some(), "slower than usual: asked last until it has answered");
}

#[test]
fn a_refused_connection_is_known_at_once_and_backed_off_from() {
    let table = Arc::new(Table::default());
    let one = agent(&table, 1, true);
    let gone = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let device = DeviceId([5; 32]);
    let key = Ed25519Secret::generate().unwrap().public();
    table.0.write().unwrap().insert(device, (key, gone.to_string()));
    let began = Instant::now();
    assert!(ask(&one.peers, device, SOON).unwrap_err().contains("refused"));
    assert!(began.elapsed() < Duration::from_secs(2));
    assert!(one.peers.standing(&device).failed.is_some());
    table.0.write().unwrap().remove(&device);
    assert!(ask(&one.peers, device, SOON).unwrap_err().contains("no member"));
}

#[test]
fn garbage_before_and_after_the_handshake_ends_only_its_own_connection() {
    let table = Arc::new(Table::default());
    let (one, two) = (agent(&table, 1, true), agent(&table, 2, true));
    let address = table.addresses_of(&two.device).remove(0);
    for garbage in [&b"GET / HTTP/1.1\r\n\r\n"[..], &[0xff; 4096], &[0x16, 3, 1, 0xff, 0xff], &[0; 100]] {
        let mut raw = TcpStream::connect(&address).unwrap();
        raw.write_all(garbage).unwrap();
        raw.shutdown(std::net::Shutdown::Write).unwrap();
        let _ = raw.read_to_end(&mut Vec::new());
    }
    // A member that has gone mad: frames of 1 GiB, of nothing, of no CBOR, of an answer.
    let answer = mayfly_protocol::peer::Answer { id: 1, reply: Reply::Noted }.frame();
    for garbage in [&[0x40, 0, 0, 0, 1, 2, 3][..], &[0; 4], &[0, 0, 0, 3, 1, 2, 3], &answer] {
        let (mut conn, link) = raw_link(&one, two.device);
        link(&mut conn).send(garbage).unwrap();
        let deadline = Instant::now() + SOON;
        while conn.answer().is_ok() {
            assert!(Instant::now() < deadline, "the connection did not end");
            std::thread::sleep(Duration::from_millis(1));
        }
    }
    ask(&one.peers, two.device, SOON).unwrap();
    assert_eq!(two.service.0.lock().unwrap().len(), 1);
}

/// A ready connection, and its inside.
fn raw_link(from: &Agent, to: DeviceId) -> (Conn, fn(&mut Conn) -> &mut Link) {
    let (mut conn, _) = from.peers.take(&to, true).unwrap();
    let deadline = Instant::now() + SOON;
    while !conn.advance(from.peers.local()).unwrap() {
        assert!(Instant::now() < deadline);
        std::thread::sleep(Duration::from_millis(1));
    }
    (conn, Conn::link_for_test)
}

#[test]
fn too_many_connections_of_one_device_are_refused_and_others_served() {
    let table = Arc::new(Table::default());
    let (one, two, three) = (agent(&table, 1, true), agent(&table, 2, true), agent(&table, 3, true));
    let open = |n: usize| -> Vec<Conn> { (0..n).map(|_| raw_link(&one, two.device).0).collect() };
    let kept = open(CONNECTIONS_PER_PEER_MAX);
    assert!(one.peers.take(&two.device, true).is_err(), "our own bound");
    assert_eq!(two.server.count(), CONNECTIONS_PER_PEER_MAX);
    ask(&three.peers, two.device, SOON).unwrap();
    kept.into_iter().for_each(|conn| one.peers.discard(conn));
    ask(&one.peers, two.device, SOON).unwrap();
}

#[test]
fn the_keeper_opens_connections_and_finds_back_those_who_were_away() {
    let table = Arc::new(Table::default());
    let one = agent(&table, 1, true);
    let two = agent(&table, 2, true);
    let peer = two.device;
    let stop = AtomicBool::new(false);
    let wait = |what: &str, ready: &dyn Fn() -> bool| {
        let deadline = Instant::now() + SOON;
        while !ready() {
            assert!(Instant::now() < deadline, "never: {what}");
            std::thread::sleep(Duration::from_millis(10));
        }
    };
    std::thread::scope(|scope| {
        scope.spawn(|| one.peers.tend(|| (!stop.load(Ordering::Relaxed)).then(|| vec![peer])));
        wait("connected", &|| two.server.callers().iter().any(|c| c.device == one.device));
        two.server.end(|_| true);
        one.peers.distrust(&peer, "a bad moment");
        wait("found back", &|| one.peers.standing(&peer).failed.is_none() && two.server.count() > 0);
        stop.store(true, Ordering::Relaxed);
    });
}

/// An agent that waits for approval by everybody else's ledger; its own ledger knows the members.
fn candidate(table: &Arc<Table>, number: u8) -> (Arc<Peers>, DeviceId) {
    let session = Arc::new(Ed25519Secret::generate().unwrap());
    let device = DeviceId([number; 32]);
    table.1.write().unwrap().insert(device, session.public());
    (Arc::new(Peers::new(local(table, number), session)), device)
}

fn ask_to_be_attested() -> Ask {
    Ask::Attest(mayfly_protocol::peer::AttestAsk::Prove(vec![1]))
}

#[test]
fn a_candidate_may_ask_to_be_attested_and_nothing_else() {
    let table = Arc::new(Table::default());
    let two = agent(&table, 2, true);
    let (peers, device) = candidate(&table, 9);
    let question = |ask: Ask| {
        let mut exchange = Exchange::new(&peers);
        exchange.ask(two.device, Box::new(move |_| Ok(ask.clone())));
        let mut came = Err("nothing came".to_owned());
        exchange.wait(Instant::now() + SOON, |_, outcome| {
            came = match outcome {
                Outcome::Answer(reply, _) => Ok(reply),
                Outcome::Lost(why) => Err(why),
            };
        });
        came
    };
    let fresh = FreshAsk { nonce: [0; 32], head: Head::default() };
    let alarm = mayfly_protocol::peer::Alarm { entry: vec![1] };
    for ask in [Ask::Fresh(fresh), Ask::Alarm(alarm)] {
        let reply = question(ask).unwrap();
        assert!(
            matches!(&reply, Reply::Refused(r) if r.cause == Cause::Denied && r.text.contains("only ask")),
            "{reply:?}"
        );
    }
    assert!(two.service.0.lock().unwrap().is_empty(), "the questions were not even looked at");
    question(ask_to_be_attested()).unwrap();
    assert_eq!(*two.service.0.lock().unwrap(), [device]);
    // It takes no connection of its own part: a candidate is nobody whom members open connections to.
    assert!(ask(&two.peers, device, SOON).unwrap_err().contains("no member"));

    // Banned in the middle: the connection ends.
    table.1.write().unwrap().remove(&device);
    assert!(question(ask_to_be_attested()).is_err());
    assert_eq!(two.service.0.lock().unwrap().len(), 1);
}

#[test]
fn candidates_are_few_and_their_questions_too() {
    let table = Arc::new(Table::default());
    let (one, two) = (agent(&table, 1, true), agent(&table, 2, true));
    let open = |peers: &Peers| -> Option<Conn> {
        let (mut conn, _) = peers.take(&two.device, true).unwrap();
        let deadline = Instant::now() + SOON;
        loop {
            match conn.advance(peers.local()) {
                Ok(true) => return Some(conn),
                Ok(false) => assert!(Instant::now() < deadline),
                Err(_) => return None,
            }
            std::thread::sleep(Duration::from_millis(1));
        }
    };
    let devices = CANDIDATES_MAX / CANDIDATE_CONNECTIONS_MAX;
    let mut kept = Vec::new();
    for number in 0..devices {
        let (peers, _) = candidate(&table, 100 + u8::try_from(number).unwrap());
        kept.extend((0..CANDIDATE_CONNECTIONS_MAX).map(|_| open(&peers).expect("within the bounds")));
        assert!(open(&peers).is_none(), "one candidate's bound");
    }
    let (late, _) = candidate(&table, 200);
    assert!(open(&late).is_none(), "the bound of all candidates");
    ask(&one.peers, two.device, SOON).unwrap(); // members do not notice
    let mut conn = kept.pop().unwrap();
    let mut answers = 0;
    for _ in 0..2 * CANDIDATE_QUESTIONS_MAX {
        let deadline = Instant::now() + SOON;
        if conn.ask(ask_to_be_attested()).is_err() {
            break;
        }
        let answer = loop {
            match conn.answer() {
                Ok(Some(answer)) => break Some(answer),
                Ok(None) => assert!(Instant::now() < deadline),
                Err(_) => break None,
            }
            std::thread::sleep(Duration::from_millis(1));
        };
        if answer.is_none() {
            break;
        }
        answers += 1;
    }
    assert_eq!(answers, CANDIDATE_QUESTIONS_MAX);
    // What ended makes room.
    let deadline = Instant::now() + SOON;
    while open(&late).is_none() {
        assert!(Instant::now() < deadline);
    }
}
