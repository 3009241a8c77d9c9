//! Properties of the encoding: what is written is read back; what is read has one encoding; garbage is an
//! error, never a panic.

#![allow(clippy::unwrap_used)] // helpers of tests say what they expect by unwrapping
use mayfly_wire::types::{MechanismInfo, TokenInfo};
use mayfly_wire::{mechanism as m, request as q, response as a, *};
use proptest::prelude::*;

/// Material from which every message is made.
#[derive(Clone, Debug)]
struct Pieces {
    bytes: Vec<u8>,
    more: Vec<u8>,
    pin: Vec<u8>,
    text: String,
    numbers: Vec<u64>,
    n: u64,
    k: u32,
    flag: bool,
    block: [u8; 16],
    pick: usize,
}

prop_compose! {
    fn pieces()(
        bytes in prop::collection::vec(any::<u8>(), 0..200),
        more in prop::collection::vec(any::<u8>(), 0..40),
        pin in prop::collection::vec(any::<u8>(), 0..=PIN_BYTES_MAX),
        text in ".{0,40}",
        numbers in prop::collection::vec(any::<u64>(), 0..20),
        n in any::<u64>(), k in any::<u32>(), flag in any::<bool>(), block in any::<[u8; 16]>(), pick in 0_usize..1000,
    ) -> Pieces {
        Pieces { bytes, more, pin, text, numbers, n, k, flag, block, pick }
    }
}

fn pick<T: Copy>(from: &[T], number: usize) -> T {
    from[number % from.len()]
}

fn each_parameters<'a>(p: &'a Pieces, fields: &'a [m::KdfField<'a>]) -> Vec<Parameters<'a>> {
    let (iv, aad) = (&p.bytes[..], &p.more[..]);
    let oaep = m::Oaep { hash: p.n, mgf: 1, label: aad };
    vec![
        Parameters::None,
        Parameters::Iv(iv),
        Parameters::Ctr(m::Ctr { counter_bits: p.k, block: &p.block }),
        Parameters::Gcm(m::Gcm { iv, aad, tag_bits: p.k }),
        Parameters::Ccm(m::Ccm { data_length: p.n, nonce: iv, aad, mac_length: p.k }),
        Parameters::MacLength(p.n),
        Parameters::Pss(m::Pss { hash: p.n, mgf: 2, salt_length: 3 }),
        Parameters::Oaep(oaep),
        Parameters::Ecdh(m::Ecdh { kdf: 1, shared: iv, public: aad }),
        Parameters::Eddsa(m::Eddsa { prehash: p.flag, context: iv }),
        Parameters::AeadMessage(m::AeadMessage {
            iv,
            iv_fixed_bits: p.k,
            generator: 1,
            tag_bits: 128,
            aad,
            tag: &p.pin,
        }),
        Parameters::EncryptData(m::EncryptData { iv, data: Opaque(aad) }),
        Parameters::DeriveData(Opaque(iv)),
        Parameters::Object(p.n),
        Parameters::ExtractFrom(p.n),
        Parameters::Hkdf(m::Hkdf {
            extract: p.flag,
            expand: true,
            hash: 1,
            salt_type: 2,
            salt: iv,
            salt_key: 0,
            info: aad,
        }),
        Parameters::Kdf108(m::Kdf108 { prf: p.n, fields: List::from(fields), iv }),
        Parameters::RsaAesWrap(m::RsaAesWrap { aes_bits: p.k, oaep }),
        Parameters::EcdhAesWrap(m::EcdhAesWrap { aes_bits: p.k, kdf: 2, shared: iv }),
        Parameters::SignContext(m::SignContext { hedge: 0, context: iv, hash: p.n }),
        Parameters::Synthetic(m::Synthetic { mode: pick(IvMode::ALL, p.pick), context: iv, aad }),
    ]
}

fn each_request<'a>(p: &'a Pieces, template: List<'a, Attribute<'a>>, mechanism: Mechanism<'a>) -> Vec<Request<'a>> {
    let (token, session, object) = (p.k, p.n, p.n.wrapping_add(1));
    let (pin, input) = (Pin(&p.pin), Data::inline(&p.bytes));
    let signature = Data::Shared { offset: p.n, length: p.k.into() };
    let output = if p.flag { Place::Inline { max: p.k } } else { Place::Shared { offset: p.n, max: 7 } };
    let unwrap = q::Unwrap { token, session, mechanism, unwrapping: object, wrapped: input, template };
    let derive = q::Derive { token, session, mechanism, base: object, template };
    vec![
        Request::Hello(q::Hello {
            version_min: 1,
            version_max: 2,
            role: pick(Role::ALL, p.pick),
            process_start: p.n,
            name: &p.text,
        }),
        Request::Tokens,
        Request::Mechanisms(q::OfToken { token }),
        Request::Login(q::Login { token, session, user: pick(User::ALL, p.pick), name: &p.text, pin }),
        Request::Logout(q::OfToken { token }),
        Request::InitToken(q::InitToken { token, so_pin: pin, label: &p.text }),
        Request::InitPin(q::InitPin { token, pin }),
        Request::SetPin(q::SetPin { token, user: User::User, old: pin, new: Pin(b"1234") }),
        Request::FindObjects(q::FindObjects { token, after: object, count_max: 9, template }),
        Request::Object(q::OfObject { token, object }),
        Request::Attributes(q::Attributes { token, object, kinds: List::from(&p.numbers[..]) }),
        Request::CreateObject(q::CreateObject { token, session, template }),
        Request::CopyObject(q::CopyObject { token, session, object, template }),
        Request::DestroyObject(q::OfObject { token, object }),
        Request::SetAttributes(q::SetAttributes { token, object, template }),
        Request::ObjectSize(q::OfObject { token, object }),
        Request::CloseSession(q::OfSession { token, session }),
        Request::CloseAllSessions(q::OfToken { token }),
        Request::GenerateKey(q::GenerateKey { token, session, mechanism, template }),
        Request::GenerateKeyPair(q::GenerateKeyPair { token, session, mechanism, public: template, private: template }),
        Request::Wrap(q::Wrap { token, session, mechanism, wrapping: object, key: 3, output }),
        Request::Unwrap(unwrap),
        Request::Derive(derive),
        Request::Encapsulate(derive),
        Request::Decapsulate(unwrap),
        Request::Operate(q::Operate {
            token,
            session,
            kind: pick(Kind::ALL, p.pick),
            object,
            mechanism,
            input,
            signature,
            output,
        }),
        Request::Begin(q::Begin { token, session, kind: pick(Kind::ALL, p.pick), object, mechanism }),
        Request::Update(q::Update { operation: object, input, output }),
        Request::UpdateKey(q::UpdateKey { operation: object, object: session }),
        Request::Finish(q::Finish { operation: object, signature, output }),
        Request::Cancel(q::OfOperation { operation: object }),
        Request::Iv(q::Iv {
            token,
            key: if p.flag { ObjectRef::Name(&p.text) } else { ObjectRef::Handle(p.n) },
            mode: pick(IvMode::ALL, p.pick),
            length: 12,
            explain: p.flag,
            context: &p.more,
            aad: &p.bytes,
            plaintext: input,
        }),
        Request::LargeBuffer(q::LargeBuffer { size: p.n }),
        Request::Manage(q::Manage { json: &p.text }),
    ]
}

fn each_response<'a>(
    p: &'a Pieces,
    tokens: &'a [TokenInfo<'a>],
    mechanisms: &'a [MechanismInfo],
    attributes: &'a [AttributeAnswer<'a>],
) -> Vec<Response<'a>> {
    vec![
        Response::Refused(Refusal { code: p.n, retry_ms: p.k, reason: &p.text }),
        Response::Done,
        Response::Hello(a::Hello {
            version: 1,
            resumed: p.flag,
            instance: p.n,
            ticket: Ticket(&p.bytes),
            agent_version: &p.text,
        }),
        Response::Tokens(a::Tokens { tokens: List::from(tokens) }),
        Response::Mechanisms(a::Mechanisms { mechanisms: List::from(mechanisms) }),
        Response::Ticket(a::TicketChanged { ticket: Ticket(&p.bytes) }),
        Response::Found(a::Found { more: p.flag, handles: List::from(&p.numbers[..]) }),
        Response::Attributes(a::Attributes { attributes: List::from(attributes) }),
        Response::Created(a::Created { object: p.n }),
        Response::CreatedPair(a::CreatedPair { public: p.n, private: 4 }),
        Response::Size(a::Size { bytes: p.n }),
        Response::Output(a::Output { data: Data::inline(&p.bytes), iv: &p.more, tag: &p.pin }),
        Response::Encapsulated(a::Encapsulated { object: p.n, ciphertext: &p.bytes }),
        Response::Begun(a::Begun { operation: p.n }),
        Response::Iv(a::Iv { iv: &p.more, explanation: &p.text }),
        Response::LargeBuffer(a::LargeBuffer { size: p.n }),
        Response::Managed(a::Json { json: &p.text }),
        Response::Progress(a::Json { json: &p.text }),
    ]
}

/// Runs `check` on the frame of every message that the pieces make.
fn for_each_frame(p: &Pieces, mut check: impl FnMut(&[u8]) -> Result<(), TestCaseError>) -> Result<(), TestCaseError> {
    let template = [Attribute::new(p.n, &p.bytes), Attribute::new(1, &p.more), Attribute::new(2, &[])];
    let template = List::from(&template[..p.pick % 4]);
    let fields = [m::KdfField { kind: 1, format: p.k, value: Opaque(&p.more) }];
    let mut memory = FrameBuf::default();
    for parameters in each_parameters(p, &fields) {
        for request in each_request(p, template, Mechanism { code: p.n, parameters }) {
            let frame = memory.request(p.n, Some(p.k).filter(|k| *k != u32::MAX), Ticket(&p.more), &request).unwrap();
            let back = frame::RequestFrame::parse(frame).unwrap();
            prop_assert_eq!(back.request().unwrap(), request);
            prop_assert_eq!(back.ticket, Ticket(&p.more));
            prop_assert_eq!(back.header.request_id, p.n);
            check(frame)?;
        }
    }
    let tokens = [TokenInfo {
        slot: p.k,
        flags: TokenFlags(p.k),
        object_version: p.n,
        pin_bytes_min: 4,
        pin_bytes_max: 255,
        label: &p.text,
        serial: "1",
        model: "Mayfly",
    }; 3];
    let mechanisms = [MechanismInfo { code: p.n, key_size_min: 16, key_size_max: 32, flags: 0x300 }; 5];
    let attributes = [
        AttributeAnswer::value(p.n, &p.bytes),
        AttributeAnswer { kind: 3, state: AttributeState::Sensitive },
        AttributeAnswer { kind: 4, state: AttributeState::Absent },
        AttributeAnswer { kind: 5, state: AttributeState::OnRequest },
    ];
    for response in each_response(p, &tokens[..p.pick % 4], &mechanisms[..p.pick % 6], &attributes[..p.pick % 5]) {
        let flags = ResponseFlags(p.k & 7);
        let frame = memory.response(p.n, 5, flags, &response).unwrap();
        let back = frame::ResponseFrame::parse(frame).unwrap();
        prop_assert_eq!(back.response().unwrap(), response);
        prop_assert_eq!((back.header.flags, back.header.object_version), (flags, 5));
        check(frame)?;
    }
    Ok(())
}

/// Whatever decodes must encode to the very same bytes.
fn decodes_canonically(frame: &[u8]) -> Result<(), TestCaseError> {
    let mut memory = FrameBuf::default();
    if let Ok(parsed) = frame::RequestFrame::parse(frame)
        && let Ok(request) = parsed.request()
    {
        let again = memory.request(parsed.header.request_id, parsed.header.cpu, parsed.ticket, &request).unwrap();
        prop_assert_eq!(again, frame);
        let _ = format!("{request:?}");
    }
    if let Ok(parsed) = frame::ResponseFrame::parse(frame)
        && let Ok(response) = parsed.response()
    {
        let header = parsed.header;
        let again = memory.response(header.request_id, header.object_version, header.flags, &response).unwrap();
        prop_assert_eq!(again, frame);
        let _ = format!("{response:?}");
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn every_message_comes_back(p in pieces()) {
        for_each_frame(&p, |_| Ok(()))?;
    }

    #[test]
    fn damaged_frames_are_errors_or_other_messages(p in pieces(), at in any::<prop::sample::Index>(), bit in 0..8_u8) {
        for_each_frame(&p, |frame| {
            let mut damaged = frame.to_vec();
            damaged[at.index(frame.len())] ^= 1 << bit;
            decodes_canonically(&damaged)?;
            // Cut, with a length that fits what is left.
            let end = HEADER_BYTES + at.index(frame.len() - HEADER_BYTES + 1);
            damaged = frame[..end].to_vec();
            damaged[..4].copy_from_slice(&((end - HEADER_BYTES) as u32).to_le_bytes());
            if end < frame.len() {
                let request = frame::RequestFrame::parse(&damaged).ok().map(|f| f.request().is_ok());
                let response = frame::ResponseFrame::parse(&damaged).ok().map(|f| f.response().is_ok());
                prop_assert!(request != Some(true) && response != Some(true), "a cut frame decodes");
            }
            Ok(())
        })?;
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(4096))]

    #[test]
    fn garbage_is_an_error_or_canonical(body in prop::collection::vec(prop_oneof![Just(0_u8), Just(1), any::<u8>()], 0..300), code in any::<u16>()) {
        for op in request::Op::ALL {
            let _ = Request::decode(*op, &body);
        }
        for answer in response::Answer::ALL {
            let _ = Response::decode(*answer, &body);
        }
        let mut frame = (body.len() as u32).to_le_bytes().to_vec();
        frame.extend_from_slice(if code & 1 == 0 { b"Mq" } else { b"Ma" });
        frame.extend_from_slice(&PROTOCOL_VERSION.to_le_bytes());
        frame.extend_from_slice(&(code >> 9).to_le_bytes());
        frame.extend_from_slice(&[0; 22]);
        frame.extend_from_slice(&body);
        decodes_canonically(&frame)?;
    }
}

#[test]
fn limits_are_kept_in_decoding() {
    let long_pin = vec![0; PIN_BYTES_MAX + 1];
    let long_data = vec![0; INLINE_DATA_MAX + 1];
    let long_ticket = vec![0; TICKET_BYTES_MAX + 1];
    let mut memory = FrameBuf::default();
    let cases = [
        Request::InitPin(q::InitPin { token: 1, pin: Pin(&long_pin) }),
        Request::Update(q::Update { operation: 1, input: Data::inline(&long_data), output: Place::NONE }),
    ];
    for request in cases {
        let frame = memory.request(1, None, Ticket::default(), &request).unwrap();
        let parsed = frame::RequestFrame::parse(frame).unwrap();
        assert!(matches!(parsed.request(), Err(DecodeError::TooLong { .. })), "{request:?}");
    }
    let frame = memory.request(1, None, Ticket(&long_ticket), &Request::Tokens).unwrap();
    assert!(matches!(frame::RequestFrame::parse(frame), Err(DecodeError::TooLong { what: "ticket", .. })));
}

#[test]
fn secrets_are_not_printed() {
    let pin = b"squirrel";
    let template = [Attribute::new(0x11, pin)];
    let all = format!(
        "{:?} {:?} {:?}",
        Request::Login(q::Login { token: 1, session: 1, user: User::User, name: "", pin: Pin(pin) }),
        Request::CreateObject(q::CreateObject { token: 1, session: 1, template: List::from(&template[..]) }),
        Response::Output(a::Output::new(Data::inline(pin))),
    );
    assert!(!all.contains("squirrel") && !all.contains("115, 113"), "{all}");
}
