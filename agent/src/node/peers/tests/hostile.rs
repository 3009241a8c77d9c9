//! Peers that are members and do not keep to the protocol.

use super::*;
use crate::node::peers::conn::exporter;
use crate::node::peers::link::LinkError;
use crate::node::peers::tls::Tls;
use mayfly_protocol::peer::{self, Answer, Hello, Request};
use std::sync::mpsc::{Receiver, sync_channel};

/// How long a flood lasts: an asker that does not get away from it is caught by the tests' bound on time.
const FLOOD: Duration = Duration::from_secs(5);
/// What getting away from it may take on a slow machine.
const AWAY: Duration = Duration::from_secs(3);

/// A member that serves each connection by `act`, which gets it after the greetings.
fn hostile(table: &Arc<Table>, n: u8, act: impl Fn(Link) + Send + Sync + 'static) -> DeviceId {
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let session = Arc::new(Ed25519Secret::generate().unwrap());
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let (local, address) = (local(table, n), listener.local_addr().unwrap().to_string());
    table.0.write().unwrap().insert(local.device, (session.public(), address));
    let (device, act) = (local.device, Arc::new(act));
    std::thread::spawn(move || {
        let config = Arc::new(Tls::server(&Tls::new(session), local.directory.clone()));
        while let Ok((socket, _)) = listener.accept() {
            let (config, local, act) = (config.clone(), local.clone(), act.clone());
            std::thread::spawn(move || act(greet(socket, config, &local)));
        }
    });
    device
}

fn greet(socket: TcpStream, config: Arc<rustls::ServerConfig>, local: &Local) -> Link {
    let tls = rustls::ServerConnection::new(config).unwrap();
    let mut link = Link::new(socket, rustls::Connection::Server(tls)).unwrap();
    while !link.shake().unwrap() {
        link.wait(Instant::now() + SOON).unwrap();
    }
    let theirs = Hello::from_bytes(&next_frame(&mut link)).unwrap();
    let ephemeral = Ephemeral::generate().unwrap();
    let ours = local.hello(&ephemeral);
    let transcript = peer::channel_transcript(&theirs, &ours, &exporter(link.tls()).unwrap());
    ephemeral.agree(&theirs.ephemeral, &transcript).unwrap();
    link.send(&ours.frame()).unwrap();
    link
}

fn next_frame(link: &mut Link) -> Vec<u8> {
    loop {
        match link.frame().unwrap() {
            Some(frame) => return frame,
            None => assert!(link.wait(Instant::now() + SOON).unwrap(), "no frame"),
        }
    }
}

fn answer(id: u64) -> Vec<u8> {
    Answer { id, reply: Reply::Noted }.frame()
}

/// Sends answers to nothing as fast as they are taken.
fn flood(link: &mut Link) {
    let (until, many) = (Instant::now() + FLOOD, answer(u64::MAX).repeat(500));
    while Instant::now() < until {
        if !link.interest().contains(rustix::event::PollFlags::OUT) && link.send(&many).is_err() {
            return;
        }
        let _ = link.wait(until.min(Instant::now() + Duration::from_millis(10)));
        if link.flush().is_err() {
            return;
        }
    }
}

#[test]
fn a_flood_of_answers_to_nothing_holds_nobody_beyond_the_deadline() {
    let table = Arc::new(Table::default());
    let (one, two) = (agent(&table, 1, true), agent(&table, 2, true));
    let liar = hostile(&table, 3, |mut link| flood(&mut link));
    let began = Instant::now();
    assert_eq!(ask(&one.peers, liar, SOON), Err(LinkError::Unasked.to_string()));
    assert!(began.elapsed() < AWAY, "{:?}", began.elapsed());
    assert_eq!(one.peers.standing(&liar).failed, Some(LinkError::Unasked.to_string()));
    ask(&one.peers, two.device, SOON).unwrap();
}

#[test]
fn a_flood_on_a_connection_that_rests_keeps_nobody_from_the_pool() {
    let table = Arc::new(Table::default());
    let one = agent(&table, 1, true);
    let liar = hostile(&table, 3, |mut link| {
        let request = Request::from_bytes(&next_frame(&mut link)).unwrap();
        link.send(&answer(request.id)).unwrap();
        flood(&mut link);
    });
    assert_eq!(ask(&one.peers, liar, SOON), Err("Noted".into()), "it begins well");
    std::thread::sleep(Duration::from_millis(50));
    let began = Instant::now();
    assert_eq!(ask(&one.peers, liar, SOON), Err("Noted".into()), "over a new connection");
    assert!(began.elapsed() < AWAY, "{:?}", began.elapsed());
    std::thread::sleep(Duration::from_millis(50));
    let stop = AtomicBool::new(false);
    let tended = || (!stop.swap(true, Ordering::Relaxed)).then(|| vec![liar]);
    one.peers.tend(tended);
    assert!(began.elapsed() < AWAY + Duration::from_secs(1), "{:?}", began.elapsed());
}

#[test]
fn each_question_is_answered_once_and_no_other() {
    // Whether the question was given up; the ids of the answers; whether it is answered, and whether the connection lives.
    for (given_up, ids, answered, lives) in [
        (false, &[1][..], true, true),
        (true, &[1], false, true),
        (true, &[1, 1], false, false),
        (false, &[1, 1], true, false),
        (false, &[2], false, false),
        (true, &[2], false, false),
        (false, &[0, 1], false, false),
    ] {
        let table = Arc::new(Table::default());
        let one = agent(&table, 1, true);
        let peer = hostile(&table, 3, move |mut link| {
            next_frame(&mut link);
            link.send(&ids.iter().flat_map(|id| answer(*id)).collect::<Vec<_>>()).unwrap();
            let _ = link.wait(Instant::now() + SOON);
        });
        let (mut conn, _) = raw_link(&one, peer);
        conn.ask(Ask::Fresh(FreshAsk { nonce: [7; 32], head: Head::default() })).unwrap();
        if given_up {
            conn.give_up();
        }
        let (mut got, mut ended) = (false, None);
        let until = Instant::now() + SOON;
        // Until the answers are here, the last of which ends the connection or leaves no question open.
        while ended.is_none() && (!lives || got != answered || conn.late() > 0) && Instant::now() < until {
            match conn.answer() {
                Ok(came) => got |= came.is_some(),
                Err(error) => ended = Some(error),
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        assert_eq!(got, answered, "{given_up} {ids:?}");
        assert_eq!(ended.is_none(), lives, "{given_up} {ids:?}");
        assert!(ended.is_none_or(|e| matches!(e, LinkError::Unasked)), "{given_up} {ids:?}");
        assert_eq!(conn.late(), usize::from(given_up && ids == [2]), "{given_up} {ids:?}");
    }
}

/// A connection whose serving side has queued more than the sockets take, after which it does `then`.
fn stuffed(then: impl Fn(&mut Link) -> bool + Send + Sync + 'static) -> (Agent, Conn, Receiver<bool>) {
    let table = Arc::new(Table::default());
    let one = agent(&table, 1, true);
    let (tell, told) = sync_channel(2);
    let peer = hostile(&table, 3, move |mut link| {
        let is_queued = |link: &Link| link.interest().contains(rustix::event::PollFlags::OUT);
        loop {
            while !is_queued(&link) {
                link.send(&answer(1).repeat(1000)).unwrap();
            }
            // The kernel hands on what it has and takes more, until the other side's buffer is full too.
            let may_take_more = link.wait(Instant::now() + Duration::from_millis(300)).unwrap();
            link.flush().unwrap();
            if !may_take_more && is_queued(&link) {
                break;
            }
        }
        tell.send(true).unwrap();
        tell.send(then(&mut link)).unwrap();
        let _ = link.wait(Instant::now() + SOON); // until the other side is at its end
    });
    let (conn, _) = raw_link(&one, peer);
    assert!(told.recv_timeout(SOON).unwrap());
    (one, conn, told)
}

#[test]
fn what_was_queued_is_sent_when_the_other_side_reads_though_it_says_nothing() {
    let (_one, mut conn, told) = stuffed(|link| {
        let until = Instant::now() + SOON;
        // As the server does, but for its wait for a next question when all is sent.
        loop {
            assert!(link.frame().unwrap().is_none());
            if !link.interest().contains(rustix::event::PollFlags::OUT) {
                return true;
            }
            if !link.wait(until).unwrap() {
                return false;
            }
        }
    });
    let until = Instant::now() + 2 * SOON;
    let sent = loop {
        while conn.link_for_test().frame().unwrap().is_some() {}
        match told.recv_timeout(Duration::from_millis(1)) {
            Ok(sent) => break sent,
            Err(_) => assert!(Instant::now() < until, "never sent"),
        }
    };
    assert!(sent);
}

#[test]
fn who_does_not_take_what_was_sent_is_given_up() {
    let (_one, _conn, told) = stuffed(|link| {
        assert!(link.frame().unwrap().is_none(), "a little patience");
        link.age_for_test();
        let waits = !link.wait(Instant::now() + SOON).unwrap();
        waits && matches!(link.frame(), Err(LinkError::Stuck))
    });
    assert!(told.recv_timeout(SOON).unwrap());
}

#[test]
fn silent_connections_of_strangers_keep_no_member_out() {
    let table = Arc::new(Table::default());
    let (one, two) = (agent(&table, 1, true), agent(&table, 2, true));
    let address = table.addresses_of(&two.device).remove(0);
    let silent: Vec<_> = (0..100).map(|_| TcpStream::connect(&address).unwrap()).collect();
    let began = Instant::now();
    ask(&one.peers, two.device, SOON).unwrap();
    assert!(began.elapsed() < HANDSHAKE_TIMEOUT, "before the silent ones have run out of time");
    while two.server.count() > 1 {
        assert!(began.elapsed() < OPEN_TIMEOUT, "a silent one has less time than a greeting one");
        std::thread::sleep(Duration::from_millis(10));
    }
    drop(silent);
}
