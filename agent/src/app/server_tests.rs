use super::*;
use crate::app::testing::{Served, hello};
use mayfly_wire::{CallError, Connection, Ticket, request, slot_id};
use std::io::Write;

const SHORT: Patience =
    Patience { hello: Duration::from_millis(200), frame: Duration::from_millis(200), tick: Duration::from_millis(20) };

fn impatient() -> Served {
    Served::with(true, Settings::default(), SHORT)
}

/// Whether the agent ends this connection by itself.
fn is_ended(mut stream: UnixStream) -> bool {
    stream.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    matches!(stream.read(&mut [0; 64]), Ok(0) | Err(_)) && stream.read(&mut [0; 64]).is_ok_and(|count| count == 0)
}

fn still_serves(served: &Served) {
    let mut client = served.client();
    client.call(None, Ticket::default(), &Request::Tokens).unwrap();
}

#[test]
fn refused_connections_fill_no_log_and_are_counted() {
    let mut complaints = Complaints::default();
    let began = Instant::now();
    assert_eq!(complaints.overdue(began), None);
    for round in 0..3 {
        let at = began + round * COMPLAINTS_EVERY;
        let told = (0..100).filter(|_| complaints.may_tell(at)).count();
        assert_eq!(told, COMPLAINTS_MAX as usize, "round {round}");
        assert_eq!(complaints.overdue(at), None, "not yet");
        assert_eq!(complaints.overdue(at + COMPLAINTS_EVERY), Some(100 - u64::from(COMPLAINTS_MAX)));
        assert_eq!(complaints.overdue(at + COMPLAINTS_EVERY), None, "once");
    }
    assert!(complaints.may_tell(began + 3 * COMPLAINTS_EVERY));
    assert_eq!(complaints.overdue(began + 5 * COMPLAINTS_EVERY), None, "all were told");
}

#[test]
fn garbage_and_giant_frames_end_their_connection_only() {
    let served = Served::new(true);
    let mut bystander = served.client();
    let mut giant = Vec::new();
    giant.extend_from_slice(&(1_u32 << 30).to_le_bytes());
    giant.extend_from_slice(b"Mq\x01\0\x02\0\0\0");
    giant.resize(32, 0xff);
    giant[24..].fill(0);
    let random: Vec<u8> = (0..1000_u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
    for (what, bytes) in
        [("http", &b"GET / HTTP/1.1\r\nHost: agent\r\n\r\n\r\n"[..]), ("1 GiB", &giant), ("random", &random)]
    {
        let mut stream = served.raw();
        stream.write_all(bytes).unwrap();
        assert!(is_ended(stream), "{what}");
    }
    bystander.call(None, Ticket::default(), &Request::Tokens).unwrap();
    still_serves(&served);
}

#[test]
fn a_body_of_nonsense_is_refused_and_the_connection_goes_on() {
    let served = Served::new(true);
    let mut stream = served.raw();
    let mut frame = FrameBuf::default();
    let request = Request::Logout(request::OfToken { token: 1 });
    let mut bytes = frame.request(7, None, Ticket::default(), &request).unwrap().to_vec();
    bytes.push(0xaa);
    let length = (bytes.len() - 32) as u32;
    bytes[..4].copy_from_slice(&length.to_le_bytes());
    stream.write_all(&bytes).unwrap();
    let (mut first, mut spill) = (vec![0; 4096], Vec::new());
    let answer = mayfly_wire::read_response(&mut stream, &mut first, &mut spill).unwrap().unwrap();
    assert!(matches!(answer.response().unwrap(), mayfly_wire::Response::Refused(r) if r.code == ck::CKR_GENERAL_ERROR));
    let mut client = Connection::over(stream);
    client.hello(Ticket::default(), hello()).unwrap();
}

#[test]
fn slow_clients_are_ended_and_idle_ones_are_not() {
    let served = impatient();
    let mut idle = served.client();
    let silent = served.raw();
    let mut half = served.raw();
    half.write_all(&[1, 0, 0]).unwrap();
    let mut dribbling = served.raw();
    let dribble = std::thread::spawn(move || {
        let slow = (0..100).map(|_| {
            std::thread::sleep(Duration::from_millis(20));
            dribbling.write_all(&[0]).is_ok()
        });
        slow.collect::<Vec<_>>().iter().any(|written| !written)
    });
    assert!(is_ended(silent), "no Hello");
    assert!(is_ended(half), "half a header");
    assert!(dribble.join().unwrap(), "one byte after the other");
    std::thread::sleep(2 * SHORT.hello);
    idle.call(None, Ticket::default(), &Request::Tokens).unwrap();
}

#[test]
fn a_client_that_does_not_fetch_its_answers_is_ended() {
    let served = impatient();
    let mut deaf = served.raw();
    let mut frame = FrameBuf::default();
    deaf.write_all(frame.request(1, None, Ticket::default(), &Request::Hello(hello())).unwrap()).unwrap();
    // Answers fill the socket's buffer; then the agent waits for its patience and no longer. Requests one by one: two at once are an error.
    let request = frame.request(2, None, Ticket::default(), &Request::Tokens).unwrap().to_vec();
    let ended = (0..20_000).any(|_| {
        std::thread::sleep(Duration::from_micros(300));
        deaf.write_all(&request).is_err()
    });
    assert!(ended);
    still_serves(&served);
}

#[test]
fn hello_comes_first_and_once() {
    let served = Served::new(true);
    let code = |result: Result<_, CallError>| match result {
        Err(CallError::Refused { code, .. }) => code,
        Ok(()) => 0,
        Err(other) => panic!("{other:?}"),
    };
    let mut client = Connection::over(served.raw());
    let before = client.call(None, Ticket::default(), &Request::Tokens).map(|_| ());
    assert_eq!(code(before), ck::CKR_GENERAL_ERROR);
    let newer = request::Hello { version_min: 2, version_max: 9, ..hello() };
    assert_eq!(code(client.hello(Ticket::default(), newer).map(|_| ())), ck::CKR_GENERAL_ERROR);
    client.hello(Ticket(b"nonsense"), hello()).unwrap();
    assert_eq!(code(client.hello(Ticket::default(), hello()).map(|_| ())), ck::CKR_GENERAL_ERROR);
    let foreign = client.call(None, Ticket(b"of another"), &Request::Tokens).map(|_| ());
    assert_eq!(code(foreign), ck::CKR_GENERAL_ERROR);
}

#[test]
fn what_holds_a_secret_must_fit_secret_memory() {
    let served = Served::new(true);
    let mut client = served.client();
    let slot = slot_id("mayfly");
    let so_pin = mayfly_wire::Pin(b"12345678");
    client
        .call(None, Ticket::default(), &Request::InitToken(request::InitToken { token: slot, so_pin, label: "dev" }))
        .unwrap();
    let long = vec![b'x'; SECRET_FRAME_BYTES];
    let mut template = mayfly_wire::TemplateBuf::new();
    template.push_u64(ck::CKA_CLASS, ck::CKO_SECRET_KEY);
    template.push(ck::CKA_LABEL, &long);
    template.push(ck::CKA_VALUE, b"0123456789abcdef");
    let ask = request::CreateObject { token: slot_id("dev"), session: 1, template: template.as_list() };
    let refused = client.call(None, Ticket::default(), &Request::CreateObject(ask)).map(|_| ());
    assert!(matches!(refused, Err(CallError::Refused { code: ck::CKR_ARGUMENTS_BAD, .. })), "{refused:?}");
}

#[test]
fn connections_are_bounded() {
    let connections = Connections { all_max: 3, per_user_max: 3, ..Connections::default() };
    let served = Served::with(true, Settings { connections, ..Settings::default() }, Patience::default());
    let mut open: Vec<_> = (0..3).map(|_| served.client()).collect();
    assert!(is_ended(served.raw()), "one too many");
    open.pop();
    // The place is free as soon as its thread has seen the end.
    let gets_in = || {
        let client = Connection::connect(&served.socket, Some(Duration::from_secs(20)));
        client.is_ok_and(|mut client| client.hello(Ticket::default(), hello()).is_ok())
    };
    let until = Instant::now() + Duration::from_secs(20);
    while !gets_in() {
        assert!(Instant::now() < until, "a place is given back");
    }
    let open = Open::new(Connections { all_max: 10, per_user_max: 2, ..Connections::default() });
    let (open, stream) = (Arc::new(open), || Arc::new(UnixStream::pair().unwrap().0));
    let places: Vec<_> = (0..3).map(|_| open.take(stream(), 1000)).collect();
    assert_eq!(places.iter().map(Option::is_some).collect::<Vec<_>>(), [true, true, false]);
    assert!(open.take(stream(), 1001).is_some() && open.take(stream(), 0).is_some(), "others are untouched");
    drop(places);
    assert!(open.take(stream(), 1000).is_some());
    let open = Arc::new(Open::new(Connections { all_max: 64, per_user_max: 64, ..Connections::default() }));
    let _users: Vec<_> = (0..63).map(|_| open.take(stream(), 1000).unwrap()).collect();
    assert!(open.take(stream(), 1001).is_none(), "the last one is root's");
    let _root = open.take(stream(), 0).unwrap();
    assert!(open.take(stream(), 0).is_none());
}

#[test]
fn the_agent_ends_at_once_with_clients_connected() {
    let mut served = Served::new(true);
    let _idle: Vec<_> = (0..5).map(|_| served.client()).collect();
    let start = Instant::now();
    served.stop();
    assert!(start.elapsed() < Duration::from_secs(1), "{:?}", start.elapsed());
    assert_eq!(served.app.applications.count(), 0);
}

#[test]
fn many_threads_of_one_application_at_once() {
    let served = Served::new(true);
    std::thread::scope(|scope| {
        for _ in 0..16 {
            scope.spawn(|| (0..50).for_each(|_| still_serves(&served)));
        }
    });
}
