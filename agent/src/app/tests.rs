//! Whole conversations over a real socket, against real rules of the ledger.

use std::sync::atomic::Ordering;

use mayfly_wire::mechanism::Gcm;
use mayfly_wire::request::*;
use mayfly_wire::{
    AttributeState, CallError, Connection, Data, IvMode, Kind, List, Mechanism, ObjectRef, Parameters, Pin, Place,
    Request, Response, ResponseFlags, TemplateBuf, Ticket, TokenFlags, User, slot_id,
};

use super::ck::*;
use super::testing::*;

const SO_PIN: &[u8] = b"12345678";
const USER_PIN: &[u8] = b"1234";
const LABEL: &str = "dev";

/// A client of one token.
struct Tool {
    connection: Connection,
    slot: u32,
    /// From its Hello: names its application.
    ticket: Vec<u8>,
}

type Got<T> = Result<T, CK_RV>;

impl Tool {
    fn new(served: &Served, slot: u32) -> Self {
        Self::of(served, slot, &[])
    }

    /// One more connection of the application with this ticket.
    fn of(served: &Served, slot: u32, ticket: &[u8]) -> Self {
        let (connection, ticket) = served.client_of(ticket);
        Self { connection, slot, ticket }
    }

    fn call<R>(&mut self, request: &Request<'_>, take: impl FnOnce(Response<'_>) -> R) -> Got<R> {
        match self.connection.call(Some(0), Ticket::default(), request) {
            Ok((_, answer)) => Ok(take(answer)),
            Err(CallError::Refused { code, .. }) => Err(code),
            Err(other) => panic!("{other:?}"),
        }
    }

    fn done(&mut self, request: &Request<'_>) -> Got<()> {
        self.call(request, |answer| assert!(matches!(answer, Response::Done | Response::Ticket(_)), "{answer:?}"))
    }

    fn login(&mut self, user: User, pin: &[u8]) -> Got<()> {
        self.done(&Request::Login(Login { token: self.slot, session: 1, user, name: "", pin: Pin(pin) }))
    }

    fn logout(&mut self) -> Got<()> {
        self.done(&Request::Logout(OfToken { token: self.slot }))
    }

    fn find(&mut self, items: &[(CK_ATTRIBUTE_TYPE, &[u8])]) -> Vec<u64> {
        let template = template(items);
        let ask = FindObjects { token: self.slot, after: 0, count_max: 1000, template: template.as_list() };
        self.call(&Request::FindObjects(ask), |answer| match answer {
            Response::Found(found) => found.handles.iter().collect(),
            other => panic!("{other:?}"),
        })
        .unwrap()
    }

    fn created(&mut self, request: &Request<'_>) -> Got<u64> {
        self.call(request, |answer| match answer {
            Response::Created(created) => created.object,
            other => panic!("{other:?}"),
        })
    }

    fn create(&mut self, items: &[(CK_ATTRIBUTE_TYPE, &[u8])]) -> Got<u64> {
        let template = template(items);
        let ask = CreateObject { token: self.slot, session: 1, template: template.as_list() };
        self.created(&Request::CreateObject(ask))
    }

    fn generate(&mut self, items: &[(CK_ATTRIBUTE_TYPE, &[u8])]) -> Got<u64> {
        let template = template(items);
        let mechanism = Mechanism::plain(CKM_AES_KEY_GEN);
        let ask = GenerateKey { token: self.slot, session: 1, mechanism, template: template.as_list() };
        self.created(&Request::GenerateKey(ask))
    }

    fn generate_pair(&mut self, public: &[(u64, &[u8])], private: &[(u64, &[u8])]) -> Got<(u64, u64)> {
        let (public, private) = (template(public), template(private));
        let ask = GenerateKeyPair {
            token: self.slot,
            session: 1,
            mechanism: Mechanism::plain(CKM_EC_KEY_PAIR_GEN),
            public: public.as_list(),
            private: private.as_list(),
        };
        self.call(&Request::GenerateKeyPair(ask), |answer| match answer {
            Response::CreatedPair(pair) => (pair.public, pair.private),
            other => panic!("{other:?}"),
        })
    }

    fn operate(&mut self, kind: Kind, object: u64, mechanism: Mechanism<'_>, input: &[u8]) -> Got<Vec<u8>> {
        self.operate_with(kind, object, mechanism, input, &[], Place::Inline { max: 16_384 })
    }

    fn operate_with(
        &mut self,
        kind: Kind,
        object: u64,
        mechanism: Mechanism<'_>,
        input: &[u8],
        signature: &[u8],
        output: Place,
    ) -> Got<Vec<u8>> {
        let (input, signature) = (Data::inline(input), Data::inline(signature));
        let ask = Operate { token: self.slot, session: 1, kind, object, mechanism, input, signature, output };
        self.call(&Request::Operate(ask), output_bytes)
    }

    fn begin(&mut self, kind: Kind, object: u64, mechanism: Mechanism<'_>) -> Got<u64> {
        let ask = Begin { token: self.slot, session: 1, kind, object, mechanism };
        self.call(&Request::Begin(ask), |answer| match answer {
            Response::Begun(begun) => begun.operation,
            other => panic!("{other:?}"),
        })
    }

    fn update(&mut self, operation: u64, input: &[u8], max: u32) -> Got<Vec<u8>> {
        let output = Place::Inline { max };
        self.call(&Request::Update(Update { operation, input: Data::inline(input), output }), output_bytes)
    }

    fn finish(&mut self, operation: u64, signature: &[u8], max: u32) -> Got<Vec<u8>> {
        let output = Place::Inline { max };
        let ask = Finish { operation, signature: Data::inline(signature), output };
        self.call(&Request::Finish(ask), output_bytes)
    }

    fn attribute(&mut self, object: u64, kind: CK_ATTRIBUTE_TYPE) -> Got<Result<Vec<u8>, &'static str>> {
        let kinds = [kind];
        let ask = Attributes { token: self.slot, object, kinds: List::from(&kinds[..]) };
        self.call(&Request::Attributes(ask), |answer| match answer {
            Response::Attributes(attributes) => match attributes.attributes.iter().next().unwrap().state {
                AttributeState::Value(value) => Ok(value.0.to_vec()),
                AttributeState::Sensitive => Err("sensitive"),
                AttributeState::Absent => Err("absent"),
                AttributeState::OnRequest => Err("on request"),
            },
            other => panic!("{other:?}"),
        })
    }

    fn set(&mut self, object: u64, items: &[(CK_ATTRIBUTE_TYPE, &[u8])]) -> Got<()> {
        let template = template(items);
        self.done(&Request::SetAttributes(SetAttributes { token: self.slot, object, template: template.as_list() }))
    }

    fn copy(&mut self, object: u64, items: &[(CK_ATTRIBUTE_TYPE, &[u8])]) -> Got<u64> {
        let template = template(items);
        let ask = CopyObject { token: self.slot, session: 1, object, template: template.as_list() };
        self.created(&Request::CopyObject(ask))
    }

    fn destroy(&mut self, object: u64) -> Got<()> {
        self.done(&Request::DestroyObject(OfObject { token: self.slot, object }))
    }

    fn header(&mut self) -> mayfly_wire::ResponseHeader {
        let request = Request::Mechanisms(OfToken { token: self.slot });
        self.connection.call(None, Ticket::default(), &request).unwrap().0
    }

    fn manage(&mut self, json: serde_json::Value) -> Result<serde_json::Value, (CK_RV, String)> {
        match self.connection.manage(&json.to_string(), |_| ()) {
            Ok(answer) => Ok(serde_json::from_str(&answer).unwrap()),
            Err(CallError::Refused { code, reason, .. }) => Err((code, reason)),
            Err(other) => panic!("{other:?}"),
        }
    }
}

fn output_bytes(answer: Response<'_>) -> Vec<u8> {
    match answer {
        Response::Output(output) => match output.data {
            Data::Inline(bytes) => bytes.0.to_vec(),
            Data::Shared { offset, length } => format!("shared {offset} {length}").into_bytes(),
        },
        other => panic!("{other:?}"),
    }
}

fn template(items: &[(CK_ATTRIBUTE_TYPE, &[u8])]) -> TemplateBuf {
    let mut template = TemplateBuf::new();
    items.iter().for_each(|(kind, value)| template.push(*kind, value));
    template
}

fn number(value: u64) -> [u8; 8] {
    value.to_le_bytes()
}

const NONE: [u64; 0] = [];
const T: &[u8] = &[1];
const F: &[u8] = &[0];
const P256: &[u8] = &[0x06, 0x08, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x03, 0x01, 0x07];

/// A token with both PINs, made as `pkcs11-tool --init-token --init-pin` does.
fn token(served: &Served) -> Tool {
    let mut tool = Tool::new(served, slot_id("mayfly"));
    let init = InitToken { token: tool.slot, so_pin: Pin(SO_PIN), label: LABEL };
    tool.done(&Request::InitToken(init)).unwrap();
    tool.slot = slot_id(LABEL);
    tool.login(User::SecurityOfficer, SO_PIN).unwrap();
    tool.done(&Request::InitPin(InitPin { token: tool.slot, pin: Pin(USER_PIN) })).unwrap();
    tool.logout().unwrap();
    tool
}

fn logged_in(served: &Served) -> Tool {
    let mut tool = token(served);
    tool.login(User::User, USER_PIN).unwrap();
    tool
}

fn gcm<'a>(iv: &'a [u8; 12], aad: &'a [u8]) -> Mechanism<'a> {
    Mechanism { code: CKM_AES_GCM, parameters: Parameters::Gcm(Gcm { iv, aad, tag_bits: 128 }) }
}

fn cbc_pad(iv: &[u8; 16]) -> Mechanism<'_> {
    Mechanism { code: CKM_AES_CBC_PAD, parameters: Parameters::Iv(iv) }
}

#[test]
fn a_token_from_nothing_to_its_first_key() {
    let served = Served::new(true);
    let mut tool = token(&served);
    let flags = tool
        .call(&Request::Tokens, |answer| match answer {
            Response::Tokens(tokens) => {
                let all: Vec<_> = tokens.tokens.iter().collect();
                assert_eq!((all.len(), all[0].label, all[0].slot), (1, LABEL, slot_id(LABEL)));
                all[0].flags
            }
            other => panic!("{other:?}"),
        })
        .unwrap();
    assert!(flags.contains(TokenFlags::INITIALISED.with(TokenFlags::USER_PIN_SET).with(TokenFlags::LOGIN_REQUIRED)));

    let length = number(32);
    let aes: &[(u64, &[u8])] = &[(CKA_TOKEN, T), (CKA_LABEL, b"k"), (CKA_ID, b"\x01"), (CKA_VALUE_LEN, &length)];
    assert_eq!(tool.generate(aes), Err(CKR_USER_NOT_LOGGED_IN), "keys are private");
    tool.login(User::User, USER_PIN).unwrap();
    let key = tool.generate(aes).unwrap();
    assert_eq!(tool.find(&[(CKA_LABEL, b"k")]), [key]);
    assert_eq!(tool.find(&[(CKA_ID, b"\x01"), (CKA_CLASS, &number(CKO_SECRET_KEY))]), [key]);
    assert_eq!(tool.find(&[(CKA_ID, b"\x02")]), NONE);

    let (iv, text) = ([7; 12], b"a file that matters");
    let sealed = tool.operate(Kind::Encrypt, key, gcm(&iv, b"aad"), text).unwrap();
    assert_eq!(sealed.len(), text.len() + 16);
    assert_eq!(tool.operate(Kind::Decrypt, key, gcm(&iv, b"aad"), &sealed).unwrap(), text);
    assert_eq!(tool.operate(Kind::Decrypt, key, gcm(&iv, b"AAD"), &sealed), Err(CKR_ENCRYPTED_DATA_INVALID));
    assert!(served.net.assemblies.load(Ordering::Relaxed) >= 3);

    tool.logout().unwrap();
    assert_eq!(tool.find(&[]), NONE, "private objects are not there without a login");
    assert_eq!(tool.operate(Kind::Encrypt, key, gcm(&iv, b""), text), Err(CKR_USER_NOT_LOGGED_IN));
    assert_eq!(tool.logout(), Err(CKR_USER_NOT_LOGGED_IN));
}

#[test]
fn logins() {
    let served = Served::new(true);
    let mut tool = token(&served);
    assert_eq!(tool.login(User::User, b"9999"), Err(CKR_PIN_INCORRECT));
    assert_eq!(tool.login(User::ContextSpecific, USER_PIN), Err(CKR_USER_NOT_LOGGED_IN));
    tool.login(User::User, USER_PIN).unwrap();
    assert_eq!(tool.login(User::User, USER_PIN), Err(CKR_USER_ALREADY_LOGGED_IN));
    assert_eq!(tool.login(User::SecurityOfficer, SO_PIN), Err(CKR_USER_ANOTHER_ALREADY_LOGGED_IN));
    assert!(tool.header().flags.contains(ResponseFlags::USER_LOGGED_IN));

    let mut stranger = Tool::new(&served, tool.slot);
    assert!(
        !stranger.header().flags.contains(ResponseFlags::USER_LOGGED_IN),
        "without the ticket it is another application, of the same process too"
    );
    let mut other = Tool::of(&served, tool.slot, &tool.ticket);
    assert!(
        other.header().flags.contains(ResponseFlags::USER_LOGGED_IN),
        "a login is the application's, not a connection's"
    );
    other.logout().unwrap();
    assert!(!tool.header().flags.contains(ResponseFlags::USER_LOGGED_IN));

    let change = |user, old, new| Request::SetPin(SetPin { token: slot_id(LABEL), user, old: Pin(old), new: Pin(new) });
    assert_eq!(tool.done(&change(User::User, b"9999", b"4321")), Err(CKR_PIN_INCORRECT));
    assert_eq!(tool.done(&change(User::User, USER_PIN, b"1")), Err(CKR_PIN_LEN_RANGE));
    tool.done(&change(User::User, USER_PIN, b"4321")).unwrap();
    assert_eq!(tool.login(User::User, USER_PIN), Err(CKR_PIN_INCORRECT));
    tool.login(User::User, b"4321").unwrap();
    assert_eq!(
        tool.done(&Request::InitPin(InitPin { token: tool.slot, pin: Pin(b"0000") })),
        Err(CKR_USER_NOT_LOGGED_IN)
    );
    let named = Login { token: tool.slot, session: 1, user: User::User, name: "alice", pin: Pin(b"4321") };
    assert_eq!(tool.done(&Request::Login(named)), Err(CKR_USER_TYPE_INVALID));
}

#[test]
fn a_token_can_be_made_new_only_where_that_is_allowed() {
    let served = Served::new(true);
    let mut tool = logged_in(&served);
    tool.generate(&[(CKA_TOKEN, T), (CKA_VALUE_LEN, &number(16))]).unwrap();
    tool.generate_pair(&[(CKA_TOKEN, T), (CKA_EC_PARAMS, P256)], &[(CKA_TOKEN, T)]).unwrap();
    tool.create(&[(CKA_CLASS, &number(CKO_DATA)), (CKA_TOKEN, T), (CKA_VALUE, b"x")]).unwrap();
    let init =
        |so_pin| Request::InitToken(InitToken { token: slot_id(LABEL), so_pin: Pin(so_pin), label: "renamed  " });
    assert_eq!(tool.done(&init(b"wrong one")), Err(CKR_PIN_INCORRECT));
    assert_eq!(tool.find(&[]).len(), 4);
    tool.done(&init(SO_PIN)).unwrap();
    assert_eq!(tool.login(User::User, USER_PIN), Err(CKR_USER_PIN_NOT_INITIALIZED), "in its old slot, without its PIN");
    tool.login(User::SecurityOfficer, SO_PIN).unwrap();
    tool.done(&Request::InitPin(InitPin { token: tool.slot, pin: Pin(USER_PIN) })).unwrap();
    tool.logout().unwrap();
    tool.login(User::User, USER_PIN).unwrap();
    assert_eq!(tool.find(&[]), NONE);

    let strict = Served::new(false);
    let mut tool = Tool::new(&strict, slot_id("mayfly"));
    let first = InitToken { token: tool.slot, so_pin: Pin(SO_PIN), label: LABEL };
    assert_eq!(tool.done(&Request::InitToken(first)), Err(CKR_FUNCTION_REJECTED), "administrators make tokens");
    let id = mayfly_protocol::TokenId([1; 32]);
    let record =
        mayfly_protocol::record::Token { id, label: LABEL.into(), devices: vec![], creators: vec![], allow: vec![] };
    strict.net.administer(record);
    tool.slot = slot_id(LABEL);
    tool.done(&Request::InitToken(InitToken { token: tool.slot, so_pin: Pin(SO_PIN), label: LABEL })).unwrap();
    tool.login(User::SecurityOfficer, SO_PIN).unwrap();
    tool.done(&Request::InitPin(InitPin { token: tool.slot, pin: Pin(USER_PIN) })).unwrap();
    tool.logout().unwrap();
    tool.login(User::User, USER_PIN).unwrap();
    tool.generate(&[(CKA_TOKEN, T), (CKA_VALUE_LEN, &number(16))]).unwrap();
    let again = InitToken { token: tool.slot, so_pin: Pin(SO_PIN), label: LABEL };
    assert_eq!(tool.done(&Request::InitToken(again)), Err(CKR_FUNCTION_REJECTED), "it has keys");
}

#[test]
fn the_first_pin_of_a_token_leaves_what_is_in_it() {
    for dev in [true, false] {
        let served = Served::new(dev);
        let id = mayfly_protocol::TokenId([1; 32]);
        let (devices, creators, allow) = (vec![], vec![], vec![]);
        served.net.administer(mayfly_protocol::record::Token { id, label: LABEL.into(), devices, creators, allow });
        let mut tool = Tool::new(&served, slot_id(LABEL));
        tool.manage(serde_json::json!({ "command": "key.create", "name": "k", "type": "aes:256" })).unwrap();
        let init = InitToken { token: tool.slot, so_pin: Pin(SO_PIN), label: LABEL };
        tool.done(&Request::InitToken(init)).unwrap();
        tool.login(User::SecurityOfficer, SO_PIN).unwrap();
        tool.done(&Request::InitPin(InitPin { token: tool.slot, pin: Pin(USER_PIN) })).unwrap();
        tool.logout().unwrap();
        tool.login(User::User, USER_PIN).unwrap();
        assert_eq!(tool.find(&[]).len(), 1, "dev: {dev}");
        tool.logout().unwrap();
        // Not the second one: C_InitToken destroys objects (PKCS#11 5.5.7), which only a development network allows.
        let again = InitToken { token: tool.slot, so_pin: Pin(SO_PIN), label: LABEL };
        assert_eq!(tool.done(&Request::InitToken(again)).is_ok(), dev);
    }
}

#[test]
fn pairs_sign_and_their_public_halves_need_no_login() {
    let served = Served::new(true);
    let mut tool = logged_in(&served);
    let public: &[(u64, &[u8])] = &[(CKA_TOKEN, T), (CKA_EC_PARAMS, P256), (CKA_ID, b"p")];
    let (public, private) = tool.generate_pair(public, &[(CKA_TOKEN, T), (CKA_ID, b"p")]).unwrap();
    assert_eq!(private | 1, public, "one record, one position");
    let ecdsa = Mechanism::plain(CKM_ECDSA);
    let digest = [9; 32];
    let signature = tool.operate(Kind::Sign, private, ecdsa, &digest).unwrap();
    assert_eq!(signature.len(), 64);
    assert_eq!(tool.operate(Kind::Sign, public, ecdsa, &digest), Err(CKR_KEY_FUNCTION_NOT_PERMITTED));

    tool.logout().unwrap();
    let assemblies = served.net.assemblies.load(Ordering::Relaxed);
    let verify = |tool: &mut Tool, digest: &[u8], signature: &[u8]| {
        tool.operate_with(Kind::Verify, public, ecdsa, digest, signature, Place::NONE)
    };
    assert_eq!(tool.find(&[(CKA_ID, b"p")]), [public]);
    assert_eq!(verify(&mut tool, &digest, &signature), Ok(vec![]));
    assert_eq!(verify(&mut tool, &[8; 32], &signature), Err(CKR_SIGNATURE_INVALID));
    assert_eq!(verify(&mut tool, &digest, &signature[1..]), Err(CKR_SIGNATURE_LEN_RANGE));
    assert_eq!(served.net.assemblies.load(Ordering::Relaxed), assemblies, "nothing was put together");
    let point = tool.attribute(public, CKA_EC_POINT).unwrap().unwrap();
    assert_eq!((point.len(), point[0]), (67, 4));

    tool.login(User::User, USER_PIN).unwrap();
    tool.destroy(private).unwrap();
    assert_eq!(tool.find(&[(CKA_ID, b"p")]), [public], "the public half stays");
    assert_eq!(tool.operate(Kind::Sign, private, ecdsa, &digest), Err(CKR_KEY_HANDLE_INVALID));
    tool.destroy(public).unwrap();
    assert_eq!(tool.destroy(public), Err(CKR_OBJECT_HANDLE_INVALID));
}

#[test]
fn imported_keys_are_the_ones_that_were_brought() {
    let served = Served::new(true);
    let mut tool = logged_in(&served);
    // RFC 4231, test case 2.
    let (class, generic) = (number(CKO_SECRET_KEY), number(CKK_GENERIC_SECRET));
    let mac = hex::decode("5bdcc146bf60754e6a042426089575c75a003f089d2739839dec58b964ec3843").unwrap();
    for on_token in [T, F] {
        let items: &[(u64, &[u8])] =
            &[(CKA_CLASS, &class), (CKA_KEY_TYPE, &generic), (CKA_TOKEN, on_token), (CKA_VALUE, b"Jefe")];
        let key = tool.create(items).unwrap();
        let hmac = Mechanism::plain(CKM_SHA256_HMAC);
        assert_eq!(tool.operate(Kind::Sign, key, hmac, b"what do ya want for nothing?").unwrap(), mac);
        let text: &[u8] = b"what do ya want for nothing?";
        assert_eq!(tool.operate_with(Kind::Verify, key, hmac, text, &mac, Place::NONE), Ok(vec![]));
        let wrong = tool.operate_with(Kind::Verify, key, hmac, b"nothing", &mac, Place::NONE);
        assert_eq!(wrong, Err(CKR_SIGNATURE_INVALID));
        assert_eq!(tool.attribute(key, CKA_VALUE).unwrap(), Err("sensitive"));
        assert_eq!(tool.attribute(key, CKA_MODULUS).unwrap(), Err("absent"));
        assert_eq!(tool.find(&[(CKA_VALUE, b"Jefe")]), NONE, "no guessing");
    }
    let scalar = [3; 32];
    let private: &[(u64, &[u8])] = &[
        (CKA_CLASS, &number(CKO_PRIVATE_KEY)),
        (CKA_KEY_TYPE, &number(CKK_EC)),
        (CKA_TOKEN, T),
        (CKA_EC_PARAMS, P256),
        (CKA_VALUE, &scalar),
    ];
    let key = tool.create(private).unwrap();
    let signature = tool.operate(Kind::Sign, key, Mechanism::plain(CKM_ECDSA), &[5; 32]).unwrap();
    let point = mayfly_engine::ec_public(mayfly_engine::Curve::P256, &scalar).unwrap();
    let public = mayfly_engine::Key::EcPublic { curve: mayfly_engine::Curve::P256, point: &point };
    mayfly_engine::verify(&mayfly_engine::Mechanism::Ecdsa, &public, &[5; 32], &signature).unwrap();
    let mut zero = private.to_vec();
    zero[4] = (CKA_VALUE, &[0; 32]);
    assert_eq!(tool.create(&zero), Err(CKR_ATTRIBUTE_VALUE_INVALID));
}

#[test]
fn readable_values_are_read_and_private_data_is_kept_like_keys() {
    let served = Served::new(true);
    let mut tool = logged_in(&served);
    let (class, generic, data) = (number(CKO_SECRET_KEY), number(CKK_GENERIC_SECRET), number(CKO_DATA));
    for on_token in [T, F] {
        let key: &[(u64, &[u8])] = &[
            (CKA_CLASS, &class),
            (CKA_KEY_TYPE, &generic),
            (CKA_TOKEN, on_token),
            (CKA_SENSITIVE, F),
            (CKA_EXTRACTABLE, T),
            (CKA_VALUE, b"readable"),
        ];
        let key = tool.create(key).unwrap();
        assert_eq!(tool.attribute(key, CKA_VALUE).unwrap().unwrap(), b"readable");
        tool.set(key, &[(CKA_SENSITIVE, T)]).unwrap();
        assert_eq!(tool.attribute(key, CKA_VALUE).unwrap(), Err("sensitive"));
        assert_eq!(tool.set(key, &[(CKA_SENSITIVE, F)]), Err(CKR_ATTRIBUTE_READ_ONLY), "one way");
        let secret = tool
            .create(&[
                (CKA_CLASS, &data),
                (CKA_TOKEN, on_token),
                (CKA_PRIVATE, T),
                (CKA_LABEL, b"d"),
                (CKA_VALUE, b"mine"),
            ])
            .unwrap();
        assert_eq!(tool.attribute(secret, CKA_VALUE).unwrap().unwrap(), b"mine");
        assert_eq!(tool.find(&[(CKA_CLASS, &data), (CKA_LABEL, b"d")]), [secret]);
        assert_eq!(
            tool.operate(Kind::Sign, secret, Mechanism::plain(CKM_SHA256_HMAC), b"x"),
            Err(if on_token == T { CKR_KEY_FUNCTION_NOT_PERMITTED } else { CKR_KEY_HANDLE_INVALID })
        );
        tool.destroy(secret).unwrap();
    }
    let on_ledger = format!("{:?}", served.app.keys.state());
    let forms = [format!("{:?}", b"mine"), format!("{:?}", b"readable")];
    assert!(forms.iter().all(|form| !on_ledger.contains(&form[1..form.len() - 1])));
    let long = [7; 600];
    let too_long: &[(u64, &[u8])] = &[(CKA_CLASS, &data), (CKA_TOKEN, T), (CKA_PRIVATE, T), (CKA_VALUE, &long)];
    assert_eq!(tool.create(too_long), Err(CKR_DEVICE_MEMORY));
}

#[test]
fn attributes_change_by_their_rules() {
    let served = Served::new(true);
    let mut tool = logged_in(&served);
    let length = number(32);
    let fixed: &[(u64, &[u8])] = &[(CKA_TOKEN, T), (CKA_VALUE_LEN, &length), (CKA_MODIFIABLE, F), (CKA_DESTROYABLE, F)];
    let fixed = tool.generate(fixed).unwrap();
    assert_eq!(tool.set(fixed, &[(CKA_LABEL, b"x")]), Err(CKR_ACTION_PROHIBITED));
    assert_eq!(tool.destroy(fixed), Err(CKR_ACTION_PROHIBITED));

    let key = tool.generate(&[(CKA_TOKEN, T), (CKA_VALUE_LEN, &length), (CKA_DECRYPT, F)]).unwrap();
    tool.set(key, &[(CKA_LABEL, b"new name"), (CKA_ID, b"77")]).unwrap();
    assert_eq!(tool.find(&[(CKA_LABEL, b"new name"), (CKA_ID, b"77")]), [key]);
    for (items, code) in [
        (&[(CKA_CLASS, &number(CKO_DATA)[..])][..], CKR_ATTRIBUTE_READ_ONLY),
        (&[(CKA_LOCAL, F)], CKR_ATTRIBUTE_READ_ONLY),
        (&[(CKA_TOKEN, F)], CKR_ATTRIBUTE_READ_ONLY),
        (&[(CKA_TRUSTED, T)], CKR_ATTRIBUTE_READ_ONLY),
        (&[(CKA_EXTRACTABLE, T)], CKR_ATTRIBUTE_READ_ONLY),
        (&[(CKA_DECRYPT, T)], CKR_ATTRIBUTE_READ_ONLY),
        (&[(CKA_SIGN, b"yes")], CKR_ATTRIBUTE_VALUE_INVALID),
        (&[(CKA_MODULUS, b"")], CKR_ATTRIBUTE_TYPE_INVALID),
        (&[(CKA_LABEL, b"half"), (CKA_LOCAL, F)], CKR_ATTRIBUTE_READ_ONLY),
    ] {
        assert_eq!(tool.set(key, items), Err(code), "{items:?}");
    }
    assert_eq!(tool.find(&[(CKA_LABEL, b"half")]), NONE, "all or nothing");
    tool.set(key, &[(CKA_ENCRYPT, F)]).unwrap();
    assert_eq!(tool.operate(Kind::Encrypt, key, gcm(&[1; 12], b""), b"x"), Err(CKR_KEY_FUNCTION_NOT_PERMITTED));
    tool.set(key, &[(CKA_ENCRYPT, T)]).unwrap();
    tool.operate(Kind::Encrypt, key, gcm(&[1; 12], b""), b"x").unwrap();
}

#[test]
fn copies() {
    let served = Served::new(true);
    let mut tool = logged_in(&served);
    let length = number(32);
    let session = tool.generate(&[(CKA_VALUE_LEN, &length), (CKA_LABEL, b"s")]).unwrap();
    let on_token = tool.copy(session, &[(CKA_TOKEN, T), (CKA_LABEL, b"t")]).unwrap();
    let sealed = tool.operate(Kind::Encrypt, session, gcm(&[1; 12], b""), b"same key").unwrap();
    assert_eq!(tool.operate(Kind::Decrypt, on_token, gcm(&[1; 12], b""), &sealed).unwrap(), b"same key");
    assert_eq!(tool.copy(session, &[(CKA_PRIVATE, F)]), Err(CKR_ATTRIBUTE_READ_ONLY));
    assert_eq!(tool.copy(session, &[(CKA_EXTRACTABLE, T)]), Err(CKR_ATTRIBUTE_READ_ONLY));

    let hard = tool.generate(&[(CKA_TOKEN, T), (CKA_VALUE_LEN, &length)]).unwrap();
    assert_eq!(tool.copy(hard, &[(CKA_TOKEN, F)]), Err(CKR_ACTION_PROHIBITED), "its bytes stay with its holders");
    let soft = tool.generate(&[(CKA_TOKEN, T), (CKA_VALUE_LEN, &length), (CKA_EXTRACTABLE, T)]).unwrap();
    let copy = tool.copy(soft, &[(CKA_TOKEN, F)]).unwrap();
    let sealed = tool.operate(Kind::Encrypt, copy, gcm(&[1; 12], b""), b"same key").unwrap();
    assert_eq!(tool.operate(Kind::Decrypt, soft, gcm(&[1; 12], b""), &sealed).unwrap(), b"same key");

    let data = tool.create(&[(CKA_CLASS, &number(CKO_DATA)), (CKA_VALUE, b"v")]).unwrap();
    let copy = tool.copy(data, &[(CKA_TOKEN, T)]).unwrap();
    assert_eq!(tool.attribute(copy, CKA_VALUE).unwrap().unwrap(), b"v");
    tool.done(&Request::CloseSession(OfSession { token: tool.slot, session: 1 })).unwrap();
    assert_eq!(tool.attribute(data, CKA_VALUE), Err(CKR_OBJECT_HANDLE_INVALID), "gone with its session");
}

#[test]
fn changes_on_another_host_are_seen_at_once() {
    let served = Served::new(true);
    let mut tool = logged_in(&served);
    let before = tool.header().object_version;
    let token = *served.app.keys.state().tokens.keys().next().unwrap();
    let mut attributes = Vec::new();
    super::objects::attributes::put_ulong(&mut attributes, CKA_CLASS, CKO_CERTIFICATE);
    super::objects::attributes::put(&mut attributes, CKA_LABEL, *b"from elsewhere");
    let id = mayfly_protocol::ObjectId([5; 32]);
    served.net.elsewhere(mayfly_protocol::record::Object { id, token, attributes });
    assert!(tool.header().object_version > before);
    assert_eq!(tool.find(&[(CKA_LABEL, b"from elsewhere")]).len(), 1);
}

#[test]
fn parts_give_what_the_whole_gives() {
    let served = Served::new(true);
    let mut tool = logged_in(&served);
    let length = number(32);
    let text: Vec<u8> = (0..5000_u32).map(|n| n as u8).collect();
    for on_token in [T, F] {
        let key = tool.generate(&[(CKA_TOKEN, on_token), (CKA_VALUE_LEN, &length)]).unwrap();
        let (iv, nonce) = ([3; 16], [4; 12]);
        for mechanism in [cbc_pad(&iv), gcm(&nonce, b"aad")] {
            let whole = tool.operate(Kind::Encrypt, key, mechanism, &text).unwrap();
            let operation = tool.begin(Kind::Encrypt, key, mechanism).unwrap();
            let mut parts = Vec::new();
            for part in text.chunks(777) {
                assert_eq!(tool.update(operation, part, 0), Err(CKR_BUFFER_TOO_SMALL));
                parts.extend(tool.update(operation, part, 1000).unwrap());
            }
            assert_eq!(tool.finish(operation, b"", 0), Err(CKR_BUFFER_TOO_SMALL));
            parts.extend(tool.finish(operation, b"", 100).unwrap());
            assert!(parts == whole);
            assert_eq!(tool.finish(operation, b"", 100), Err(CKR_OPERATION_NOT_INITIALIZED), "it is over");
        }
        let sealed = tool.operate(Kind::Encrypt, key, cbc_pad(&iv), b"thirteen byte").unwrap();
        let operation = tool.begin(Kind::Decrypt, key, cbc_pad(&iv)).unwrap();
        let mut plain = tool.update(operation, &sealed, 100).unwrap();
        plain.extend(tool.finish(operation, b"", 13).unwrap());
        assert_eq!(plain, b"thirteen byte", "room for exactly what there is suffices");
    }
    let hmac = Mechanism::plain(CKM_SHA256_HMAC);
    let generic: &[(u64, &[u8])] = &[
        (CKA_CLASS, &number(CKO_SECRET_KEY)),
        (CKA_KEY_TYPE, &number(CKK_GENERIC_SECRET)),
        (CKA_TOKEN, T),
        (CKA_VALUE, b"k"),
    ];
    let key = tool.create(generic).unwrap();
    let mac = tool.operate(Kind::Sign, key, hmac, &text).unwrap();
    let (sign, verify) = (tool.begin(Kind::Sign, key, hmac).unwrap(), tool.begin(Kind::Verify, key, hmac).unwrap());
    for part in text.chunks(999) {
        tool.update(sign, part, 0).unwrap();
        tool.update(verify, part, 0).unwrap();
    }
    assert_eq!(tool.finish(sign, b"", 32).unwrap(), mac);
    assert_eq!(tool.finish(verify, &[0; 32], 0), Err(CKR_SIGNATURE_INVALID));
    assert_eq!(tool.finish(verify, &mac, 0), Err(CKR_OPERATION_NOT_INITIALIZED), "any other error ends it");
    let bad = tool.begin(Kind::Decrypt, key, gcm(&[1; 12], b""));
    assert_eq!(bad, Err(CKR_KEY_FUNCTION_NOT_PERMITTED));
}

#[test]
fn a_deleted_or_banned_key_ends_operations_in_parts() {
    let served = Served::new(true);
    let mut tool = logged_in(&served);
    let key = tool.generate(&[(CKA_TOKEN, T), (CKA_VALUE_LEN, &number(16))]).unwrap();
    let operation = tool.begin(Kind::Encrypt, key, cbc_pad(&[1; 16])).unwrap();
    tool.update(operation, &[1; 32], 100).unwrap();
    tool.destroy(key).unwrap();
    assert_eq!(tool.update(operation, &[1; 32], 100), Err(CKR_KEY_FUNCTION_NOT_PERMITTED));
    assert_eq!(tool.update(operation, &[1; 32], 100), Err(CKR_OPERATION_NOT_INITIALIZED));
}

#[test]
fn too_few_holders_is_a_device_error_and_mayfly_why_names_who_was_missing() {
    let served = Served::new(true);
    let mut tool = logged_in(&served);
    let key = tool.generate(&[(CKA_TOKEN, T), (CKA_LABEL, b"k"), (CKA_VALUE_LEN, &number(16))]).unwrap();
    served.net.live.store(1, Ordering::Relaxed);
    assert_eq!(tool.operate(Kind::Encrypt, key, gcm(&[1; 12], b""), b"x"), Err(CKR_DEVICE_ERROR));
    let why = tool.manage(serde_json::json!({ "command": "why" })).unwrap();
    let newest = &why["refusals"][0];
    assert_eq!((newest["operation"].as_str(), newest["key"].as_str()), (Some("encrypt"), Some("k")));
    assert_eq!((newest["rule"].as_str(), newest["devices"][0]["device"].as_str()), (Some("holders"), Some("agent-2")));
    let status = tool.manage(serde_json::json!({ "command": "status" })).unwrap();
    let warnings = status["warnings"].to_string();
    assert!(warnings.contains("too few holders can be reached to use: k"), "{warnings}");
    served.net.live.store(3, Ordering::Relaxed);
    tool.operate(Kind::Encrypt, key, gcm(&[1; 12], b""), b"x").unwrap();
}

#[test]
fn synthetic_ivs() {
    let served = Served::new(true);
    let mut tool = logged_in(&served);
    let create = serde_json::json!({ "command": "key.create", "name": "k", "type": "aes:256",
        "iv_modes": ["hedged", "deterministic"] });
    let shown = tool.manage(create).unwrap();
    assert_eq!(shown["warnings"], serde_json::Value::Null);
    let nobody = serde_json::json!({ "command": "key.create", "name": "unusable", "type": "aes:256",
        "allow": ["user=no such account"] });
    let warned = tool.manage(nobody).unwrap()["warnings"].to_string();
    assert!(warned.contains("user=no such account is no account of this host"), "{warned}");
    assert_eq!((shown["t"].as_u64(), shown["n"].as_u64(), shown["name"].as_str()), (Some(2), Some(3), Some("k")));
    let ask = |mode, context, length| Iv {
        token: 0,
        key: ObjectRef::Name("k"),
        mode,
        length,
        explain: true,
        context,
        aad: b"aad",
        plaintext: Data::inline(b"plaintext"),
    };
    let mut iv = |mode, context, length| {
        tool.call(&Request::Iv(ask(mode, context, length)), |answer| match answer {
            Response::Iv(iv) => (iv.iv.to_vec(), serde_json::from_str::<serde_json::Value>(iv.explanation).unwrap()),
            other => panic!("{other:?}"),
        })
    };
    let (hedged, explanation) = iv(IvMode::Hedged, b"", 12).unwrap();
    assert_eq!(hedged.len(), 12);
    assert_ne!(hedged, iv(IvMode::Hedged, b"", 12).unwrap().0);
    let steps: Vec<_> =
        explanation["steps"].as_array().unwrap().iter().map(|step| step["step"].as_str().unwrap()).collect();
    assert_eq!(steps, ["query the ledger", "ask the holders", "reconstruct", "derive", "destroy"]);
    assert_eq!(explanation["holders"].as_array().unwrap().len(), 2);
    let (one, two) = (iv(IvMode::Deterministic, b"c", 16).unwrap().0, iv(IvMode::Deterministic, b"c", 16).unwrap().0);
    assert_eq!((one.len(), &one), (16, &two));
    assert_ne!(one, iv(IvMode::Deterministic, b"d", 16).unwrap().0);
    for (mode, context, length, code) in [
        (IvMode::Deterministic, &b""[..], 12, CKR_MECHANISM_PARAM_INVALID),
        (IvMode::Random, b"", 12, CKR_KEY_FUNCTION_NOT_PERMITTED),
        (IvMode::Hedged, b"", 11, CKR_MECHANISM_PARAM_INVALID),
        (IvMode::Hedged, b"", 33, CKR_MECHANISM_PARAM_INVALID),
    ] {
        assert_eq!(iv(mode, context, length).unwrap_err(), code, "{mode:?} {length}");
    }
}

#[test]
fn management() {
    let served = Served::new(true);
    let mut tool = logged_in(&served);
    let ask = |tool: &mut Tool, json: &str| tool.manage(serde_json::from_str(json).unwrap());
    let made = ask(
        &mut tool,
        r#"{"command":"key.create","name":"web","type":"ec:p256","uses":["sign"],"allow":["user=www-data"]}"#,
    );
    let made = made.unwrap();
    assert_eq!(made["uses"], serde_json::json!(["sign"]));
    assert_eq!(made["shards"].as_array().unwrap().len(), 3);
    let again = ask(&mut tool, r#"{"command":"key.create","name":"web","type":"aes:256"}"#).unwrap_err();
    assert_eq!(again.0, CKR_ARGUMENTS_BAD);
    for (json, code) in [
        (r#"{"command":"key.create","name":"x","type":"des"}"#, CKR_ARGUMENTS_BAD),
        (r#"{"command":"key.create","name":"a\u001b[2J","type":"aes:256"}"#, CKR_ARGUMENTS_BAD),
        (r#"{"command":"key.create","name":"x","type":"aes:256","uses":["fly"]}"#, CKR_ARGUMENTS_BAD),
        (r#"{"command":"key.create","name":"x","type":"ec:p256","uses":["sign","encrypt"]}"#, CKR_ARGUMENTS_BAD),
        (r#"{"command":"key.create","name":"x","type":"hmac:256","uses":["wrap"]}"#, CKR_ARGUMENTS_BAD),
        (r#"{"command":"key.create","name":"x","type":"aes:256","id":"1"}"#, CKR_ARGUMENTS_BAD),
        (r#"{"command":"key.create","name":"x","type":"aes:256","holders":["agent-1","agent-1"]}"#, CKR_ARGUMENTS_BAD),
        (r#"{"command":"key.show","key":""}"#, CKR_ARGUMENTS_BAD),
        (r#"{"command":"key.create","name":"x","type":"aes:256","residency":"ever"}"#, CKR_ARGUMENTS_BAD),
        (r#"{"command":"key.create","name":"x","type":"aes:256","t":9}"#, CKR_FUNCTION_REJECTED),
        (r#"{"command":"key.create","name":"x","type":"aes:256","holders":["nobody"]}"#, CKR_ARGUMENTS_BAD),
        (r#"{"command":"key.create","name":"x","type":"aes:256","token":"none"}"#, CKR_TOKEN_NOT_PRESENT),
        (r#"{"command":"key.show","key":"none"}"#, CKR_KEY_HANDLE_INVALID),
        (r#"{"command":"device.show","device":"none"}"#, CKR_ARGUMENTS_BAD),
    ] {
        assert_eq!(ask(&mut tool, json).unwrap_err().0, code, "{json}");
    }
    assert_eq!(ask(&mut tool, r#"{"command":"key.show","key":"web"}"#).unwrap()["id"], made["id"]);
    let by_id = format!(r#"{{"command":"key.show","key":{}}}"#, made["id"]);
    let mut shown = ask(&mut tool, &by_id).unwrap();
    // What the choices of opening cost is told of a key that is looked at, not of one that was just made.
    let costs = shown.as_object_mut().unwrap().remove("vault_open_costs").unwrap();
    assert_eq!(costs.as_array().unwrap().len(), 3);
    assert_eq!(shown, made);
    assert_eq!(ask(&mut tool, r#"{"command":"key.list"}"#).unwrap().as_array().unwrap().len(), 1);
    assert_eq!(ask(&mut tool, r#"{"command":"token.list"}"#).unwrap()[0]["keys"], 1);
    let devices = ask(&mut tool, r#"{"command":"device.list"}"#).unwrap();
    assert_eq!(devices.as_array().unwrap().len(), 3);
    let device = ask(&mut tool, r#"{"command":"device.show","device":"agent-2"}"#).unwrap();
    assert_eq!((&device["shards"][0]["key"], &device["shards"][0]["state"]), (&"web".into(), &"valid".into()));
    let ledger = ask(&mut tool, r#"{"command":"ledger.show","count":3}"#).unwrap();
    assert_eq!(ledger["entries"][2]["kind"], "KEY");
    assert_eq!(ask(&mut tool, r#"{"command":"ledger.verify"}"#).unwrap()["verified"], true);
    let status = ask(&mut tool, r#"{"command":"status"}"#).unwrap();
    assert_eq!((&status["fresh"], &status["keys"], &status["membership"]), (&true.into(), &1.into(), &"member".into()));
    ask(&mut tool, r#"{"command":"key.delete","key":"web"}"#).unwrap();
    assert_eq!(tool.find(&[]), NONE, "both halves are gone");
}

#[test]
fn large_data_goes_through_the_shared_buffer() {
    let served = Served::new(true);
    let mut tool = logged_in(&served);
    let key = tool.generate(&[(CKA_TOKEN, T), (CKA_VALUE_LEN, &number(32))]).unwrap();
    let text: Vec<u8> = (0..1_000_000_u32).map(|n| (n * 7) as u8).collect();
    tool.connection.shared(text.len() as u64 + 100).unwrap().write(0, &text).unwrap();
    let whole = Data::Shared { offset: 0, length: text.len() as u64 };
    let operate = |kind, input, max| {
        Request::Operate(Operate {
            token: slot_id(LABEL),
            session: 1,
            kind,
            object: key,
            mechanism: gcm(&[5; 12], b""),
            input,
            signature: Data::empty(),
            output: Place::Shared { offset: 0, max },
        })
    };
    assert_eq!(tool.call(&operate(Kind::Encrypt, whole, 10), |_| ()), Err(CKR_BUFFER_TOO_SMALL));
    // Input is wiped before the answer, whatever that is; before it was looked at, too.
    let Request::Operate(ask) = operate(Kind::Encrypt, whole, 10) else { unreachable!() };
    for (refused, code) in [
        (ask, CKR_BUFFER_TOO_SMALL),
        (Operate { object: key + 4, ..ask }, CKR_KEY_HANDLE_INVALID),
        (Operate { token: 1, ..ask }, CKR_SLOT_ID_INVALID),
    ] {
        tool.connection.shared(0).unwrap().write(0, &text).unwrap();
        assert_eq!(tool.call(&Request::Operate(refused), |_| ()), Err(code));
        let mut left = vec![1; text.len()];
        tool.connection.shared(0).unwrap().read(0, &mut left).unwrap();
        assert!(left.iter().all(|byte| *byte == 0), "{code:#x}");
    }
    tool.connection.shared(0).unwrap().write(0, &text).unwrap();
    let sealed = tool.call(&operate(Kind::Encrypt, whole, 1 << 30), output_bytes).unwrap();
    assert_eq!(sealed, b"shared 0 1000016");
    let mut bytes = vec![0; 1_000_016];
    tool.connection.shared(0).unwrap().read(0, &mut bytes).unwrap();
    assert!(bytes[..100] != text[..100]);
    tool.find(&[]);
    let mut after = vec![1; 1_000_016];
    tool.connection.shared(0).unwrap().read(0, &mut after).unwrap();
    assert!(after.iter().all(|byte| *byte == 0), "wiped at the next request");
    tool.connection.shared(0).unwrap().write(0, &bytes).unwrap();
    let input = Data::Shared { offset: 0, length: bytes.len() as u64 };
    tool.call(&operate(Kind::Decrypt, input, 1 << 30), output_bytes).unwrap();
    let mut plain = vec![0; text.len()];
    tool.connection.shared(0).unwrap().read(0, &mut plain).unwrap();
    assert!(plain == text);
    let outside = Data::Shared { offset: u64::MAX, length: 5 };
    assert_eq!(tool.call(&operate(Kind::Encrypt, outside, 100), |_| ()), Err(CKR_ARGUMENTS_BAD));
}

#[test]
fn keys_of_others_are_neither_found_nor_used() {
    let served = Served::new(true);
    let mut tool = logged_in(&served);
    let own = if rustix::process::getuid().is_root() { return } else { rustix::process::getuid().as_raw() };
    let create = r#"{"command":"key.create","name":"theirs","type":"aes:256","allow":["user=somebody-else"]}"#;
    tool.manage(serde_json::from_str(create).unwrap()).unwrap();
    assert_eq!(tool.find(&[(CKA_LABEL, b"theirs")]), NONE, "uid {own}");
}

#[test]
fn what_is_private_never_lies_in_the_open() {
    let served = Served::new(true);
    let mut tool = logged_in(&served);
    let data = number(CKO_DATA);
    for on_token in [T, F] {
        let open = tool.create(&[(CKA_CLASS, &data), (CKA_TOKEN, on_token), (CKA_VALUE, b"first")]).unwrap();
        let private = tool.copy(open, &[(CKA_PRIVATE, T)]).unwrap();
        assert_eq!(tool.attribute(private, CKA_VALUE).unwrap().unwrap(), b"first");
        let empty = [(CKA_CLASS, &data[..]), (CKA_TOKEN, on_token), (CKA_PRIVATE, T), (CKA_VALUE, b"")];
        let empty = tool.create(&empty).unwrap();
        for object in [private, empty] {
            assert_eq!(tool.set(object, &[(CKA_VALUE, b"hidden contents")]), Err(CKR_ATTRIBUTE_READ_ONLY));
        }
        tool.set(open, &[(CKA_VALUE, b"seen by all")]).unwrap();
    }
    let state = served.app.keys.state();
    let private = |attributes: &[mayfly_protocol::record::Attribute]| {
        super::objects::attributes::stored_bool(attributes, CKA_PRIVATE) == Some(true)
            && super::objects::attributes::stored(attributes, CKA_VALUE).is_some()
    };
    assert!(!state.objects.values().any(|object| private(&object.attributes)));
    assert!(!state.keys.values().any(|key| private(&key.attributes)));
}

#[test]
fn a_token_is_changed_by_those_who_are_logged_in() {
    let served = Served::new(true);
    let mut tool = logged_in(&served);
    let certificate: &[(u64, &[u8])] = &[
        (CKA_CLASS, &number(CKO_CERTIFICATE)),
        (CKA_CERTIFICATE_TYPE, &number(CKC_X_509)),
        (CKA_TOKEN, T),
        (CKA_SUBJECT, b"s"),
        (CKA_VALUE, b"v"),
    ];
    let kept = tool.create(certificate).unwrap();
    let pair = tool.generate_pair(&[(CKA_TOKEN, T), (CKA_EC_PARAMS, P256)], &[(CKA_TOKEN, T)]).unwrap();
    tool.logout().unwrap();
    for object in [kept, pair.0] {
        assert_eq!(tool.destroy(object), Err(CKR_USER_NOT_LOGGED_IN));
        assert_eq!(tool.set(object, &[(CKA_LABEL, b"mine now")]), Err(CKR_USER_NOT_LOGGED_IN));
    }
    assert_eq!(tool.create(certificate), Err(CKR_USER_NOT_LOGGED_IN));
    assert_eq!(tool.find(&[]).len(), 2, "seen, as before");
    let session = [certificate, &[(CKA_TOKEN, F)]].concat().into_iter().filter(|a| *a != (CKA_TOKEN, T));
    tool.create(&session.collect::<Vec<_>>()).unwrap();
    tool.login(User::SecurityOfficer, SO_PIN).unwrap();
    tool.destroy(kept).unwrap();
}

#[test]
fn a_copy_cannot_do_what_the_policy_of_its_key_does_not_allow() {
    let served = Served::new(true);
    let mut tool = logged_in(&served);
    let soft = [(CKA_TOKEN, T), (CKA_VALUE_LEN, &number(32)[..]), (CKA_EXTRACTABLE, T), (CKA_DECRYPT, F)];
    let key = tool.generate(&soft).unwrap();
    for on_token in [T, F] {
        assert_eq!(tool.copy(key, &[(CKA_TOKEN, on_token), (CKA_DECRYPT, T)]), Err(CKR_ATTRIBUTE_READ_ONLY));
    }
    tool.copy(key, &[(CKA_TOKEN, F), (CKA_LABEL, b"as it was")]).unwrap();
}

#[test]
fn session_objects_and_operations_are_bounded_per_user_and_hurt_nobody_else() {
    let served = Served::new(true);
    let mut tool = logged_in(&served);
    let key = tool.generate(&[(CKA_TOKEN, T), (CKA_VALUE_LEN, &number(32))]).unwrap();
    // Without a login, as any user of the host could.
    let mut hostile = Tool::new(&served, tool.slot);
    let open: &[(u64, &[u8])] = &[(CKA_PRIVATE, F), (CKA_VALUE_LEN, &number(32)), (CKA_EXTRACTABLE, T)];
    let first = hostile.generate(open).unwrap();
    let refused = (0..10_000).find_map(|_| hostile.generate(open).err());
    assert_eq!(refused, Some(CKR_DEVICE_MEMORY));
    assert_eq!(hostile.begin(Kind::Encrypt, first, cbc_pad(&[1; 16])), Err(CKR_DEVICE_MEMORY));
    tool.operate(Kind::Encrypt, key, gcm(&[1; 12], b""), b"the node's own memory is there").unwrap();
    let secrets = mayfly_secmem::status();
    assert!(secrets.used_bytes < secrets.limit_bytes / 2);
    drop(hostile);
    let mut later = Tool::new(&served, tool.slot);
    let again = (0..1000).any(|_| {
        std::thread::sleep(std::time::Duration::from_millis(2));
        later.generate(open).is_ok()
    });
    assert!(again, "what the application held is given back when it has ended");
}

#[test]
fn collected_ciphertext_is_counted() {
    let connections = super::settings::Connections { memory_per_user_mib_max: 4, ..Default::default() };
    let settings = super::Settings { connections, ..Default::default() };
    let served = Served::with(true, settings, super::server::Patience::default());
    let mut tool = logged_in(&served);
    let key = tool.generate(&[(CKA_VALUE_LEN, &number(32))]).unwrap();
    let part = [7; 16_384];
    let operations: Vec<_> = (0..3).map(|_| tool.begin(Kind::Decrypt, key, gcm(&[1; 12], b"")).unwrap()).collect();
    let refused = (0..300).find_map(|n| tool.update(operations[n % 3], &part, 0).err());
    assert_eq!(refused, Some(CKR_DEVICE_MEMORY));
    tool.done(&Request::CloseSession(OfSession { token: tool.slot, session: 1 })).unwrap();
    let key = tool.generate(&[(CKA_VALUE_LEN, &number(32))]).unwrap();
    let operation = tool.begin(Kind::Decrypt, key, gcm(&[1; 12], b"")).unwrap();
    (0..100).for_each(|_| assert_eq!(tool.update(operation, &part, 0), Ok(vec![])));
    assert!(tool.connection.shared(16 << 20).is_err(), "shared buffers count too");
}

#[test]
fn an_operation_does_not_outlive_its_login() {
    let served = Served::new(true);
    let mut tool = logged_in(&served);
    let key = tool.generate(&[(CKA_VALUE_LEN, &number(32))]).unwrap();
    let operation = tool.begin(Kind::Encrypt, key, cbc_pad(&[1; 16])).unwrap();
    let application = served.app.applications.all().remove(0);
    let held = application.operation(operation).unwrap();
    tool.logout().unwrap();
    assert_eq!(tool.update(operation, &[1; 16], 100), Err(CKR_OPERATION_NOT_INITIALIZED), "it went with the login");
    // As if it had been begun before the logout and kept after it.
    while std::sync::Arc::strong_count(&held) > 1 {
        std::thread::yield_now(); // the sweeper may be looking at it
    }
    let operation = std::sync::Arc::into_inner(held).unwrap().into_inner().unwrap();
    let number = application.keep_operation(operation, &served.app.applications.operation_numbers).unwrap();
    assert_eq!(tool.update(number, &[1; 16], 100), Err(CKR_USER_NOT_LOGGED_IN));
    assert_eq!(tool.update(number, &[1; 16], 100), Err(CKR_OPERATION_NOT_INITIALIZED));
}

#[test]
fn one_request_puts_a_key_together_once_and_a_long_answer_is_refused() {
    let served = Served::new(true);
    let mut tool = logged_in(&served);
    let soft = [(CKA_TOKEN, T), (CKA_VALUE_LEN, &number(32)[..]), (CKA_EXTRACTABLE, T), (CKA_SENSITIVE, F)];
    let key = tool.generate(&soft).unwrap();
    let before = served.net.assemblies.load(Ordering::Relaxed);
    let kinds = [CKA_VALUE; 200];
    let ask = |object| Request::Attributes(Attributes { token: slot_id(LABEL), object, kinds: List::from(&kinds[..]) });
    tool.call(&ask(key), |answer| assert!(matches!(answer, Response::Attributes(_)))).unwrap();
    assert_eq!(served.net.assemblies.load(Ordering::Relaxed), before + 1);
    let long = [1; 16_000];
    let data = tool.create(&[(CKA_CLASS, &number(CKO_DATA)), (CKA_VALUE, &long)]).unwrap();
    assert_eq!(tool.call(&ask(data), |_| ()), Err(CKR_DEVICE_MEMORY));
    tool.find(&[]);
}

#[test]
fn without_a_vault_there_is_no_token_and_a_clear_reason() {
    use crate::node::{Trouble, TroubleState};
    let served = Served::new(true);
    let mut tool = Tool::new(&served, slot_id("mayfly"));
    let tokens = |tool: &mut Tool| {
        tool.call(&Request::Tokens, |answer| match answer {
            Response::Tokens(answer) => answer.tokens.iter().count(),
            other => panic!("{other:?}"),
        })
    };
    assert_eq!(tokens(&mut tool), Ok(1), "a slot for C_InitToken");
    let trouble = Trouble { state: TroubleState::Lost, reason: "vault(tpm): another chip".into() };
    *served.net.trouble.lock().unwrap() = Some(trouble);
    assert_eq!(tokens(&mut tool), Ok(0), "as if there were no agent");
    assert_eq!(tool.login(User::User, USER_PIN), Err(CKR_DEVICE_ERROR));
    let refused = tool.manage(serde_json::json!({ "command": "key.list" })).unwrap_err();
    assert_eq!(refused, (CKR_DEVICE_ERROR, "vault-lost: vault(tpm): another chip".into()));
    let status = tool.manage(serde_json::json!({ "command": "status" })).unwrap();
    assert_eq!((&status["phase"], &status["vault"]["state"]), (&"without vault".into(), &"vault-lost".into()));
    assert!(status["warnings"][0].as_str().unwrap().contains("mayfly join"), "{status}");
    let why = tool.manage(serde_json::json!({ "command": "why" })).unwrap();
    assert_eq!(why["standing"]["state"], "vault-lost");
    assert!(why["refusals"][0]["next"].as_str().unwrap().contains("mayfly ban"), "{why}");
    *served.net.trouble.lock().unwrap() = None;
    tool.manage(serde_json::json!({ "command": "key.list" })).unwrap();
}
