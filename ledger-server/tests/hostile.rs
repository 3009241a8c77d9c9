//! Clients that send garbage, too much, too little, or read nothing: each is turned away with a reason, the others go on.

mod common;

use common::raw::{Raw, block_on};

use common::*;
use futures_util::StreamExt;
use mayfly_ledger_client::{PostError, SubmitError};
use mayfly_ledger_server::config::Limits;
use mayfly_protocol::head::Cosignature;
use mayfly_protocol::record::{self, Attribute, DeviceRole};
use mayfly_protocol::sync::{Bye, CLIENT_FRAME_BYTES_MAX, FromClient, FromGateway, Hello, PATH, SUBPROTOCOL};
use mayfly_protocol::{DeviceId, Head};
use std::io::{Read, Write};
use std::time::Duration;
use tokio::time::timeout;
use tokio_tungstenite::tungstenite::Message;

#[test]
fn what_is_no_message_ends_the_connection_with_a_reason_and_nobody_elses() {
    let world = World::new();
    let gateway = world.gateway(Memory::new());
    let admin = world.admin(&[(gateway.address, 0)]);
    admin.post(token("before"));
    let cosignature = Cosignature { witness: DeviceId([1; 32]), time_ms: 0, signature: vec![0; 64] };
    block_on(async {
        let at = gateway.address;
        for (frame, expected) in [
            (Message::binary(b"garbage".to_vec()), Bye::Malformed),
            (Message::binary(vec![]), Bye::Malformed),
            (Message::text("hello"), Bye::Malformed),
            (Message::binary(vec![0; CLIENT_FRAME_BYTES_MAX + 1]), Bye::Malformed),
            (Message::binary(FromClient::Cosign { head: Head::default(), cosignature }.encode()), Bye::Malformed),
        ] {
            for greeted in [false, true] {
                let mut raw = if greeted { Raw::admitted(&world, at).await } else { Raw::open(&world, at).await };
                raw.frame(frame.clone()).await;
                assert_eq!(raw.bye().await, Some(expected), "{frame:?} {greeted}");
                assert_eq!(raw.next().await, None);
            }
        }
        let mut raw = Raw::admitted(&world, at).await;
        let again = raw.hello(&world, &world.admin, &raw.exporter.clone());
        raw.send(&FromClient::Hello(again)).await;
        assert_eq!(raw.bye().await, Some(Bye::Malformed), "two hellos");
        let mut raw = Raw::admitted(&world, at).await;
        raw.frame(Message::binary([0x81, 0x18, 0xff].to_vec())).await; // grease
        raw.send(&FromClient::Submit { id: 9, entry: b"x".to_vec() }).await;
        loop {
            match raw.next().await {
                Some(FromGateway::Reject { id: 9, .. }) => break,
                Some(_) => continue,
                None => panic!("grease is passed over"),
            }
        }
    });
    admin.post(token("after"));
    assert!(admin.replica.status().last_error.is_none());
}

#[test]
fn a_hello_is_good_for_one_connection_one_network_one_version() {
    let world = World::new();
    let gateway = world.gateway(Memory::new());
    block_on(async {
        let open = || Raw::open(&world, gateway.address);
        let mut raw = open().await;
        let other = open().await;
        let stolen = Hello { ..raw.hello(&world, &world.admin, &other.exporter) };
        raw.send(&FromClient::Hello(stolen)).await;
        assert_eq!(raw.bye().await, Some(Bye::Authentication), "made for another connection");

        let mut raw = open().await;
        let foreign =
            Hello { network: mayfly_protocol::NetworkId([1; 32]), ..raw.hello(&world, &world.admin, &raw.exporter) };
        raw.send(&FromClient::Hello(foreign)).await;
        assert_eq!(raw.bye().await, Some(Bye::Network));

        let mut raw = open().await;
        let newer = Hello { version: 2, ..raw.hello(&world, &world.admin, &raw.exporter) };
        raw.send(&FromClient::Hello(newer)).await;
        assert_eq!(raw.bye().await, Some(Bye::Version));

        let mut raw = open().await;
        let stranger = raw.hello(&world, &Key::new(), &raw.exporter);
        raw.send(&FromClient::Hello(stranger)).await;
        assert_eq!(raw.bye().await, Some(Bye::Authentication), "nobody's key");
    });
}

#[test]
fn only_our_path_and_subprotocol_are_served() {
    let world = World::new();
    let gateway = world.gateway(Memory::new());
    block_on(async {
        for (path, protocol) in [("/", SUBPROTOCOL), (PATH, "chat"), (PATH, "mayfly-ledger.v2")] {
            let stream = Raw::tls(&world, gateway.address).await;
            assert!(Raw::upgrade(stream, path, protocol).await.is_err(), "{path} {protocol}");
        }
        let stream = Raw::tls(&world, gateway.address).await;
        assert!(Raw::upgrade(stream, PATH, "chat, mayfly-ledger.v1").await.is_ok());
    });
}

#[test]
fn idle_and_talkative_strangers_do_not_keep_others_out() {
    let world = World::new();
    let gateway = world.gateway(Memory::new());
    let mut strangers: Vec<_> = (0..50).map(|_| std::net::TcpStream::connect(gateway.address).unwrap()).collect();
    for stranger in strangers.iter_mut().skip(25) {
        stranger.write_all(&[0x16; 20_000]).unwrap();
    }
    let admin = world.admin(&[(gateway.address, 0)]);
    admin.post(token("one"));
    let mut answer = Vec::new();
    let _ = strangers.last_mut().unwrap().read_to_end(&mut answer); // garbage is hung up on
    assert!(answer.len() < 100);
}

#[test]
fn a_client_that_reads_nothing_is_dropped_while_others_go_on() {
    let world = World::new();
    let limits = Limits { slow_seconds: 1, submissions_per_second: 0, ..Limits::default() };
    let gateway = world.gateway_with(Memory::new(), 0, "127.0.0.1:0".parse().unwrap(), limits);
    let at = [(gateway.address, 0)];
    let admin = world.admin(&at);
    let device = world.device(&admin, "a", &at);
    admin.post(token("t"));
    device.replica.wait_tip(|s| s.token_by_label("t").is_some(), SOON).unwrap();
    block_on(async {
        let mut raw = Raw::admitted(&world, gateway.address).await;
        let poster = std::thread::spawn(move || {
            for n in 0..100u8 {
                let value = Attribute { kind: 1, value: vec![n; 30_000] };
                let id = mayfly_protocol::ObjectId([n; 32]);
                let object = record::Object { id, token: token("t").id, attributes: vec![value] };
                device.author.post(&object.into(), &[], SOON).unwrap();
            }
            device
        });
        let device = poster.join().unwrap();
        device.replica.wait_tip(|s| s.objects.len() == 100, SOON).expect("others go on");
        tokio::time::sleep(Duration::from_millis(2500)).await; // reads nothing, for longer than slow_seconds and the good-bye
        let (mut bytes, mut last) = (0, None);
        while let Ok(Some(Ok(Message::Binary(frame)))) = timeout(SOON, raw.socket.next()).await {
            bytes += frame.len();
            last = FromGateway::decode(&frame).unwrap();
        }
        assert!(bytes < 2_000_000, "dropped before everything (3 MB) was sent: {bytes}");
        // The good-bye comes through only if there was room for it.
        assert!(!matches!(last, Some(FromGateway::Bye { reason, .. }) if reason != Bye::Slow), "{last:?}");
    });
    // It resumes from where it is: nothing is lost for it.
    let again = world.admin(&at);
    again.replica.wait_tip(|s| s.objects.len() == 100, SOON).unwrap();
}

#[test]
fn a_client_that_submits_too_much_is_told_to_wait() {
    let world = World::new();
    let limits = Limits { submissions_per_second: 10, submissions_burst: 3, ..Limits::default() };
    let gateway = world.gateway_with(Memory::new(), 0, "127.0.0.1:0".parse().unwrap(), limits);
    let admin = world.admin(&[(gateway.address, 0)]);
    admin.replica.wait_caught_up(SOON).unwrap();
    let outcomes: Vec<_> = (0..6).map(|_| admin.replica.submit(b"x", SOON)).collect();
    let busy =
        |o: &Result<u64, SubmitError>| matches!(o, Err(SubmitError::Busy { retry_ms }) if (1..=100).contains(retry_ms));
    assert!(!busy(&outcomes[2]) && busy(&outcomes[4]), "{outcomes:?}");
    // An author waits by itself.
    admin.post(token("patient"));
}

/// A witness that is not there: its connection is a test's own.
struct Absent {
    witness: DeviceId,
    session: Key,
}

impl Absent {
    fn appointed(world: &World, admin: &Member, at: &[(std::net::SocketAddr, usize)]) -> Absent {
        let device = world.device(admin, "w", at);
        let (witness, session) = (device.id(), device.keys.session());
        drop(device);
        let index = admin.post(record::Role { device: witness, roles: vec![DeviceRole::Witness] });
        admin.replica.wait_effective(|s| s.size() > index, SOON).expect("the first witness takes effect");
        Absent { witness, session }
    }

    /// Connects, and gives the gateway's question.
    async fn asked(&self, world: &World, address: std::net::SocketAddr) -> (Raw, u64) {
        let mut raw = Raw::admitted_as(world, address, &self.session).await;
        loop {
            match raw.next().await {
                Some(FromGateway::AskTime { asked }) => return (raw, asked),
                Some(_) => {}
                None => panic!("witnesses are asked for the time"),
            }
        }
    }
}

/// Says that it is `off_ms` earlier than it is, and returns when the gateway knows.
async fn tell_time(raw: &mut Raw, asked: u64, off_ms: u64) {
    raw.send(&FromClient::Time { asked, time_ms: now_ms() - off_ms }).await;
    // One message after the other: what comes first is known when this is answered.
    raw.send(&FromClient::Submit { id: 1, entry: b"x".to_vec() }).await;
    loop {
        match raw.next().await {
            Some(FromGateway::Reject { id: 1, .. }) => return,
            Some(_) => {}
            None => panic!("the gateway hung up"),
        }
    }
}

fn taken(outcome: Result<u64, PostError>) -> bool {
    match outcome {
        Ok(_) => true,
        Err(PostError::Disputed { rule, text }) => {
            assert!(rule == "clock" && text.contains("ahead of those of 1 witnesses"), "{rule} {text}");
            false
        }
        Err(other) => panic!("{other}"),
    }
}

#[test]
fn a_gateway_takes_nothing_while_its_clock_is_not_that_of_the_witnesses_and_heals_by_itself() {
    let world = World::new();
    let gateway = world.gateway(Memory::new());
    let at = [(gateway.address, 0)];
    let admin = world.admin(&at);
    let absent = Absent::appointed(&world, &admin, &at);
    block_on(async {
        let (mut raw, asked) = absent.asked(&world, gateway.address).await;
        for (label, off_ms, expected) in
            [("at one time", 0, true), ("at another", 60_000, false), ("set right", 0, true), ("still so", 0, true)]
        {
            tell_time(&mut raw, asked, off_ms).await;
            assert_eq!(taken(admin.author.post(&token(label).into(), &[], SOON)), expected, "{label}");
        }
        // Whoever is no witness is not believed.
        let stranger = Cosignature { witness: absent.witness, time_ms: 0, signature: vec![0; 64] };
        let mut other = Raw::admitted(&world, gateway.address).await;
        tell_time(&mut other, asked, 60_000).await;
        assert!(taken(admin.author.post(&token("of a stranger").into(), &[], SOON)));
        other.send(&FromClient::Cosign { head: Head::default(), cosignature: stranger }).await;
        assert_eq!(other.bye().await, Some(Bye::Malformed));
    });
}

#[test]
fn a_gateway_that_starts_asks_the_witnesses_first() {
    let world = World::new();
    let store = Memory::new();
    let gateway = world.gateway(store.clone());
    let admin = world.admin(&[(gateway.address, 0)]);
    let absent = Absent::appointed(&world, &admin, &[(gateway.address, 0)]);
    drop(admin);
    gateway.stop();

    let gateway = world.gateway(store.clone());
    let (admin, before) = (world.admin(&[(gateway.address, 0)]), store.size());
    admin.replica.wait_caught_up(SOON).unwrap();
    block_on(async {
        let (mut raw, asked) = absent.asked(&world, gateway.address).await;
        let early = admin.author.post(&token("nobody knows the time").into(), &[], Duration::from_millis(500));
        assert!(matches!(early, Err(PostError::Submit(_))), "{early:?}");
        tell_time(&mut raw, asked, 60_000).await;
        assert!(!taken(admin.author.post(&token("it is wrong").into(), &[], SOON)));
        assert_eq!(store.size(), before);
        tell_time(&mut raw, asked, 0).await;
        assert!(taken(admin.author.post(&token("it is right").into(), &[], SOON)));
    });
    assert_eq!(store.size(), before + 2, "the one in the outbox, and this");
}

#[test]
fn a_gateway_whose_witnesses_stay_away_goes_on() {
    let world = World::new();
    let store = Memory::new();
    let gateway = world.gateway(store.clone());
    let admin = world.admin(&[(gateway.address, 0)]);
    Absent::appointed(&world, &admin, &[(gateway.address, 0)]);
    drop(admin);
    gateway.stop();

    let gateway = world.gateway(store);
    let admin = world.admin(&[(gateway.address, 0)]);
    let began = std::time::Instant::now();
    admin.post(token("one"));
    let waited = began.elapsed();
    admin.post(token("two"));
    assert!(waited < Duration::from_secs(15) && began.elapsed() < waited * 2, "once: {waited:?}");
}
