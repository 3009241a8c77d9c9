//! An agent that speaks `wire` and keeps everything in one struct.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};

use cryptoki_sys::*;
use mayfly_wire::request::Op;
use mayfly_wire::types::{MechanismInfo, TokenInfo};
use mayfly_wire::*;
use sha2::{Digest, Sha256};

pub const SO_PIN: &[u8] = b"12345678";
pub const USER_PIN: &[u8] = b"1234";
const P256: &[u8] = b"\x06\x08\x2a\x86\x48\xce\x3d\x03\x01\x07";

#[derive(Clone, Default)]
pub struct Thing {
    pub attributes: BTreeMap<u64, Vec<u8>>,
    pub session: u64,
}

struct Parts {
    kind: Kind,
    mechanism: u64,
    tag: usize,
    held: Vec<u8>,
}

#[derive(Default)]
pub struct Model {
    pub objects: BTreeMap<u64, Thing>,
    pub version: u64,
    pub logged_in: Option<User>,
    pub asked: HashMap<Op, u32>,
    pub connections: u32,
    /// Closes the connection instead of answering the next request of this kind.
    pub drop_next: Option<Op>,
    /// Closes the connection after doing the next request of this kind, instead of answering.
    pub drop_after: Option<Op>,
    /// Refuses the next request that is not Hello.
    pub refuse_next: Option<(u64, u32)>,
    /// Accepts no ticket.
    pub is_forgetful: bool,
    /// Lets nobody change anything.
    pub is_write_protected: bool,
    /// Sessions that may use a key with CKA_ALWAYS_AUTHENTICATE once.
    context_logins: HashSet<u64>,
    parts: HashMap<u64, Parts>,
    next: u64,
}

pub struct Agent {
    pub model: Arc<Mutex<Model>>,
    stop: Arc<AtomicBool>,
    streams: Arc<Mutex<Vec<UnixStream>>>,
    /// Requests that have come, whether or not the model was free to answer them.
    received: Arc<AtomicU64>,
    /// Requests of this kind have to wait.
    held: Arc<Mutex<Option<Op>>>,
    acceptor: Option<std::thread::JoinHandle<()>>,
    socket: std::path::PathBuf,
}

static INSTANCES: AtomicU64 = AtomicU64::new(100);

pub fn slot() -> u32 {
    slot_id("toy")
}

impl Agent {
    pub fn start(socket: &Path) -> Self {
        Self::resume(socket, Arc::new(Mutex::new(Model::with_keys())))
    }

    /// An agent that goes on with an earlier one's objects and logins.
    pub fn resume(socket: &Path, model: Arc<Mutex<Model>>) -> Self {
        let listener = UnixListener::bind(socket).unwrap();
        let (stop, streams) = (Arc::new(AtomicBool::new(false)), Arc::new(Mutex::new(vec![])));
        let instance = INSTANCES.fetch_add(1, Ordering::Relaxed);
        model.lock().unwrap().parts.clear();
        let (received, held) = (Arc::new(AtomicU64::new(0)), Arc::new(Mutex::new(None)));
        let acceptor = std::thread::spawn({
            let (model, stop, streams) = (model.clone(), stop.clone(), Arc::clone(&streams));
            let (received, held) = (received.clone(), Arc::clone(&held));
            move || {
                while let Ok((stream, _)) = listener.accept() {
                    if stop.load(Ordering::Acquire) {
                        break;
                    }
                    streams.lock().unwrap().push(stream.try_clone().unwrap());
                    model.lock().unwrap().connections += 1;
                    let (model, received, held) = (model.clone(), received.clone(), held.clone());
                    std::thread::spawn(move || serve(stream, &model, &received, &held, instance));
                }
            }
        });
        Self { model, stop, streams, received, held, acceptor: Some(acceptor), socket: socket.to_owned() }
    }

    pub fn lock(&self) -> MutexGuard<'_, Model> {
        self.model.lock().unwrap()
    }

    pub fn asked(&self, op: Op) -> u32 {
        self.lock().asked.get(&op).copied().unwrap_or(0)
    }

    pub fn received(&self) -> u64 {
        self.received.load(Ordering::Acquire)
    }

    /// Lets requests of this kind wait from now on, and all others go.
    pub fn hold(&self, op: Option<Op>) {
        *self.held.lock().unwrap() = op;
    }

    /// As a process that was killed: nobody listens, every connection is closed.
    pub fn stop(mut self) -> Arc<Mutex<Model>> {
        self.end();
        self.model.clone()
    }

    fn end(&mut self) {
        self.stop.store(true, Ordering::Release);
        let _ = UnixStream::connect(&self.socket);
        if let Some(acceptor) = self.acceptor.take() {
            acceptor.join().unwrap();
        }
        let _ = std::fs::remove_file(&self.socket);
        for stream in self.streams.lock().unwrap().drain(..) {
            let _ = stream.shutdown(std::net::Shutdown::Both);
        }
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        self.end();
    }
}

fn serve(mut stream: UnixStream, model: &Mutex<Model>, received: &AtomicU64, held: &Mutex<Option<Op>>, instance: u64) {
    let (mut first, mut spill, mut out) = (vec![0; frame::FIRST_BYTES], Vec::new(), FrameBuf::default());
    let mut shared: Option<SharedBuffer> = None;
    while let Ok(Some(frame)) = read_request(&mut stream, &mut first, &mut spill) {
        let (op, id) = (frame.header.op, frame.header.request_id);
        received.fetch_add(1, Ordering::AcqRel);
        while *held.lock().unwrap() == Some(op) {
            std::thread::sleep(std::time::Duration::from_millis(1));
        }
        let mut model = model.lock().unwrap();
        *model.asked.entry(op).or_default() += 1;
        if model.drop_next == Some(op) {
            model.drop_next = None;
            let _ = stream.shutdown(std::net::Shutdown::Both);
            return;
        }
        let mut memory = Vec::new();
        let request = frame.request().unwrap();
        let refusal = model.refuse_next.take_if(|_| op != Op::Hello);
        let response = match (refusal, request) {
            (Some((code, retry_ms)), _) => Err((code, retry_ms)),
            (None, Request::LargeBuffer(asked)) => {
                let buffer = SharedBuffer::create(asked.size).unwrap();
                let answer = Response::LargeBuffer(response::LargeBuffer { size: buffer.size() });
                let bytes = out.response(id, 0, ResponseFlags::CARRIES_FD, &answer).unwrap();
                shared::write_frame_with_buffer(&stream, bytes, &buffer).unwrap();
                shared = Some(buffer);
                continue;
            }
            (None, request) => {
                model.answer(&request, frame.ticket, instance, shared.as_ref(), &mut memory).map_err(|code| (code, 0))
            }
        };
        let response = response.unwrap_or_else(|(code, retry_ms)| {
            Response::Refused(Refusal { retry_ms, ..Refusal::new(code, "the toy does not want to") })
        });
        if model.drop_after == Some(op) {
            model.drop_after = None;
            let _ = stream.shutdown(std::net::Shutdown::Both);
            return;
        }
        let flags = match model.logged_in {
            Some(User::SecurityOfficer) => ResponseFlags::SO_LOGGED_IN,
            Some(_) => ResponseFlags::USER_LOGGED_IN,
            None => ResponseFlags::default(),
        };
        let bytes = out.response(id, model.version, flags, &response).unwrap();
        if write_frame(&stream, bytes).is_err() {
            return;
        }
    }
}

/// What answers borrow from.
type Memory = Vec<u8>;

impl Model {
    fn with_keys() -> Self {
        let mut model = Self { version: 1, next: 1, ..Self::default() };
        let yes = vec![1];
        let usage = [CKA_ENCRYPT, CKA_DECRYPT, CKA_SIGN, CKA_VERIFY];
        let base = |class: u64, key_type: u64, label: &str| {
            let mut attributes = BTreeMap::from([
                (CKA_CLASS, class.to_le_bytes().to_vec()),
                (CKA_KEY_TYPE, key_type.to_le_bytes().to_vec()),
                (CKA_LABEL, label.as_bytes().to_vec()),
                (CKA_TOKEN, vec![1]),
            ]);
            attributes.extend(usage.iter().map(|kind| (*kind, yes.clone())));
            attributes
        };
        let mut lame = base(CKO_SECRET_KEY, CKK_AES, "lame");
        lame.insert(CKA_ENCRYPT, vec![0]);
        let mut careful = base(CKO_SECRET_KEY, CKK_AES, "careful");
        careful.insert(CKA_ALWAYS_AUTHENTICATE, vec![1]);
        let mut only_gcm = base(CKO_SECRET_KEY, CKK_AES, "only-gcm");
        only_gcm.insert(CKA_ALLOWED_MECHANISMS, CKM_AES_GCM.to_le_bytes().to_vec());
        let mut private = base(CKO_PRIVATE_KEY, CKK_EC, "ec");
        let mut public = base(CKO_PUBLIC_KEY, CKK_EC, "ec-public");
        private.insert(CKA_EC_PARAMS, P256.to_vec());
        public.insert(CKA_EC_PARAMS, P256.to_vec());
        let mut open = base(CKO_SECRET_KEY, CKK_GENERIC_SECRET, "open");
        open.insert(CKA_VALUE, b"open secret".to_vec());
        let all = [
            base(CKO_SECRET_KEY, CKK_AES, "aes"),
            base(CKO_SECRET_KEY, CKK_GENERIC_SECRET, "hmac"),
            lame,
            careful,
            only_gcm,
            private,
            public,
            open,
        ];
        for (attributes, id) in all.into_iter().zip(1..) {
            let mut attributes = attributes;
            attributes.insert(CKA_ID, vec![id]);
            model.add(attributes, 0);
        }
        model
    }

    fn add(&mut self, attributes: BTreeMap<u64, Vec<u8>>, session: u64) -> u64 {
        let is_token = attributes.get(&CKA_TOKEN) == Some(&vec![1]);
        let handle = self.next | if is_token { 0 } else { SESSION_OBJECT_BIT };
        self.next += 1;
        self.version += 1;
        self.objects.insert(handle, Thing { attributes, session });
        handle
    }

    fn answer<'m>(
        &mut self,
        request: &Request<'_>,
        ticket: Ticket<'_>,
        instance: u64,
        shared: Option<&SharedBuffer>,
        memory: &'m mut Memory,
    ) -> Result<Response<'m>, u64> {
        match request {
            Request::Hello(_) => {
                let resumed = !ticket.0.is_empty() && !self.is_forgetful;
                if !resumed {
                    self.logged_in = None;
                }
                let ticket = Ticket(b"ticket");
                Ok(Response::Hello(response::Hello { version: 1, resumed, instance, ticket, agent_version: "0" }))
            }
            Request::Tokens => {
                let tokens = &tokens()[usize::from(self.is_write_protected)..][..1];
                Ok(Response::Tokens(response::Tokens { tokens: List::from(tokens) }))
            }
            Request::Mechanisms(_) => {
                Ok(Response::Mechanisms(response::Mechanisms { mechanisms: List::from(MECHANISMS) }))
            }
            Request::Login(login) => self.login(login),
            Request::Logout(_) | Request::CloseAllSessions(_) => {
                self.logged_in = None;
                self.objects.retain(|handle, _| handle & SESSION_OBJECT_BIT == 0 || op_is(request, Op::Logout));
                Ok(Response::Ticket(response::TicketChanged { ticket: Ticket(b"ticket2") }))
            }
            Request::InitToken(init) if init.so_pin.0 == SO_PIN => Ok(Response::Done),
            Request::InitToken(_) => Err(CKR_PIN_INCORRECT),
            Request::InitPin(_) | Request::SetPin(_) | Request::Cancel(_) => Ok(Response::Done),
            Request::FindObjects(find) => Ok(self.find(find, memory)),
            Request::Object(one) => {
                let thing = self.objects.get(&one.object).ok_or(CKR_OBJECT_HANDLE_INVALID)?;
                let kinds: Vec<u64> = thing.attributes.keys().copied().collect();
                Ok(attributes(thing, &kinds, false, memory))
            }
            Request::Attributes(some) => {
                let thing = self.objects.get(&some.object).ok_or(CKR_OBJECT_HANDLE_INVALID)?;
                Ok(attributes(thing, &some.kinds.iter().collect::<Vec<_>>(), true, memory))
            }
            Request::CreateObject(create) => {
                Ok(Response::Created(response::Created { object: self.add(owned(&create.template), create.session) }))
            }
            Request::GenerateKey(generate) => {
                let mut attributes = aes_key();
                attributes.extend(owned(&generate.template));
                let object = self.add(attributes, generate.session);
                Ok(Response::Created(response::Created { object }))
            }
            Request::GenerateKeyPair(pair) => {
                let public = self.add(owned(&pair.public), pair.session);
                let private = self.add(owned(&pair.private), pair.session);
                Ok(Response::CreatedPair(response::CreatedPair { public, private }))
            }
            Request::CopyObject(copy) => {
                let mut thing = self.objects.get(&copy.object).ok_or(CKR_OBJECT_HANDLE_INVALID)?.attributes.clone();
                thing.extend(owned(&copy.template));
                Ok(Response::Created(response::Created { object: self.add(thing, copy.session) }))
            }
            Request::DestroyObject(one) => {
                self.version += 1;
                self.objects.remove(&one.object).map(|_| Response::Done).ok_or(CKR_OBJECT_HANDLE_INVALID)
            }
            Request::SetAttributes(set) => {
                self.version += 1;
                let thing = self.objects.get_mut(&set.object).ok_or(CKR_OBJECT_HANDLE_INVALID)?;
                thing.attributes.extend(owned(&set.template));
                Ok(Response::Done)
            }
            Request::ObjectSize(_) => Ok(Response::Size(response::Size { bytes: 99 })),
            Request::CloseSession(one) => {
                self.objects.retain(|_, thing| thing.session != one.session || thing.session == 0);
                Ok(Response::Done)
            }
            Request::Operate(operate) => {
                let key = self.objects.get(&operate.object).ok_or(CKR_KEY_HANDLE_INVALID)?;
                let is_careful = key.attributes.get(&CKA_ALWAYS_AUTHENTICATE).is_some_and(|value| value == &[1]);
                if is_careful && !self.context_logins.remove(&operate.session) {
                    return Err(CKR_USER_NOT_LOGGED_IN);
                }
                let input = fetch(&operate.input, shared);
                let tag = tag_bytes(&operate.mechanism);
                let signature = fetch(&operate.signature, shared);
                let output = whole(operate.kind, operate.mechanism.code, tag, &input, &signature)?;
                deliver(output, operate.output, shared, memory)
            }
            Request::Begin(begin) => {
                let tag = tag_bytes(&begin.mechanism);
                let parts = Parts { kind: begin.kind, mechanism: begin.mechanism.code, tag, held: vec![] };
                self.next += 1;
                self.parts.insert(self.next, parts);
                Ok(Response::Begun(response::Begun { operation: self.next }))
            }
            Request::Update(update) => {
                let input = fetch(&update.input, shared);
                let parts = self.parts.get_mut(&update.operation).ok_or(CKR_OPERATION_NOT_INITIALIZED)?;
                let output = parts.update(&input);
                deliver(output, update.output, shared, memory)
            }
            Request::Finish(finish) => {
                let parts = self.parts.remove(&finish.operation).ok_or(CKR_OPERATION_NOT_INITIALIZED)?;
                let output = parts.finish(&fetch(&finish.signature, shared))?;
                deliver(output, finish.output, shared, memory)
            }
            _ => Err(CKR_FUNCTION_NOT_SUPPORTED),
        }
    }

    fn login<'m>(&mut self, login: &request::Login<'_>) -> Result<Response<'m>, u64> {
        match self.logged_in.filter(|_| login.user != User::ContextSpecific) {
            Some(user) if user == login.user => return Err(CKR_USER_ALREADY_LOGGED_IN),
            Some(_) => return Err(CKR_USER_ANOTHER_ALREADY_LOGGED_IN),
            None => {}
        }
        let right = if login.user == User::SecurityOfficer { SO_PIN } else { USER_PIN };
        if login.pin.0 != right {
            return Err(CKR_PIN_INCORRECT);
        }
        if login.user == User::ContextSpecific {
            self.context_logins.insert(login.session);
        } else {
            self.logged_in = Some(login.user);
        }
        Ok(Response::Ticket(response::TicketChanged { ticket: Ticket(b"ticket1") }))
    }

    fn find<'m>(&self, find: &request::FindObjects<'_>, memory: &'m mut Memory) -> Response<'m> {
        let wanted = owned(&find.template);
        let all: Vec<u64> = self
            .objects
            .range(find.after + 1..)
            .filter(|(_, thing)| wanted.iter().all(|(kind, value)| thing.attributes.get(kind) == Some(value)))
            .map(|(handle, _)| *handle)
            .collect();
        // Two at a time, so that paging is used.
        let page = &all[..all.len().min(2)];
        *memory = encoded(&List::from(page));
        Response::Found(response::Found { more: all.len() > 2, handles: decoded(memory) })
    }
}

/// What a new key has besides its template.
fn aes_key() -> BTreeMap<u64, Vec<u8>> {
    let yes = [CKA_ENCRYPT, CKA_DECRYPT].map(|kind| (kind, vec![1]));
    let numbers = [(CKA_CLASS, CKO_SECRET_KEY), (CKA_KEY_TYPE, CKK_AES)];
    yes.into_iter().chain(numbers.map(|(kind, value)| (kind, value.to_le_bytes().to_vec()))).collect()
}

fn op_is(request: &Request<'_>, op: Op) -> bool {
    request.code() == op
}

/// The token as it is, and write-protected.
fn tokens() -> &'static [TokenInfo<'static>; 2] {
    static TOKENS: std::sync::OnceLock<[TokenInfo<'static>; 2]> = std::sync::OnceLock::new();
    TOKENS.get_or_init(|| {
        let flags = TokenFlags::PRESENT.with(TokenFlags::INITIALISED).with(TokenFlags::LOGIN_REQUIRED);
        let token = TokenInfo {
            slot: slot(),
            flags: flags.with(TokenFlags::USER_PIN_SET),
            object_version: 1,
            pin_bytes_min: 4,
            pin_bytes_max: 64,
            label: "toy",
            serial: "0001",
            model: "Toy",
        };
        [token, TokenInfo { flags: token.flags.with(TokenFlags::WRITE_PROTECTED), ..token }]
    })
}

const fn info(code: u64, flags: u64) -> MechanismInfo {
    MechanismInfo { code, key_size_min: 16, key_size_max: 32, flags }
}

const CIPHER: u64 = CKF_ENCRYPT | CKF_DECRYPT;
const SIGNER: u64 = CKF_SIGN | CKF_VERIFY;
const MECHANISMS: &[MechanismInfo] = &[
    info(CKM_AES_KEY_GEN, CKF_GENERATE),
    info(CKM_EC_KEY_PAIR_GEN, CKF_GENERATE_KEY_PAIR),
    info(CKM_AES_CBC, CIPHER),
    info(CKM_AES_CBC_PAD, CIPHER),
    info(CKM_AES_CTR, CIPHER),
    info(CKM_AES_GCM, CIPHER),
    info(CKM_SHA256_HMAC, SIGNER),
    info(CKM_SHA256_HMAC_GENERAL, SIGNER),
    info(CKM_ECDSA, SIGNER),
    info(0x8000_0777, SIGNER),
];

fn encoded<'a, T: codec::Field<'a>>(value: &T) -> Vec<u8> {
    let mut count = codec::Writer::new(&mut []);
    value.write(&mut count);
    let mut bytes = vec![0; count.used()];
    value.write(&mut codec::Writer::new(&mut bytes));
    bytes
}

fn decoded<'a, T: codec::Field<'a>>(bytes: &'a [u8]) -> T {
    T::read(&mut codec::Reader::new(bytes)).unwrap()
}

fn owned(template: &List<'_, Attribute<'_>>) -> BTreeMap<u64, Vec<u8>> {
    template.iter().map(|attribute| (attribute.kind, attribute.value.0.to_vec())).collect()
}

fn attributes<'m>(thing: &Thing, kinds: &[u64], is_asked: bool, memory: &'m mut Memory) -> Response<'m> {
    let answers: Vec<AttributeAnswer<'_>> = kinds
        .iter()
        .map(|kind| match thing.attributes.get(kind) {
            Some(_) if *kind == CKA_VALUE && !is_asked => {
                AttributeAnswer { kind: *kind, state: AttributeState::OnRequest }
            }
            Some(value) => AttributeAnswer::value(*kind, value),
            None => AttributeAnswer { kind: *kind, state: AttributeState::Absent },
        })
        .chain((!is_asked).then_some(AttributeAnswer { kind: CKA_PRIME_1, state: AttributeState::Sensitive }))
        .collect();
    *memory = encoded(&List::from(&answers[..]));
    Response::Attributes(response::Attributes { attributes: decoded(memory) })
}

fn fetch(data: &Data<'_>, shared: Option<&SharedBuffer>) -> Vec<u8> {
    match data {
        Data::Inline(bytes) => bytes.0.to_vec(),
        Data::Shared { offset, length } => {
            let mut bytes = vec![0; *length as usize];
            shared.unwrap().read(*offset, &mut bytes).unwrap();
            bytes
        }
    }
}

fn deliver<'m>(
    output: Vec<u8>,
    place: Place,
    shared: Option<&SharedBuffer>,
    memory: &'m mut Memory,
) -> Result<Response<'m>, u64> {
    if output.len() as u64 > place.max() {
        return Err(CKR_BUFFER_TOO_SMALL);
    }
    *memory = output;
    let data = match place {
        Place::Inline { .. } => Data::inline(memory),
        Place::Shared { offset, .. } => {
            shared.unwrap().write(offset, memory).unwrap();
            Data::Shared { offset, length: memory.len() as u64 }
        }
    };
    Ok(Response::Output(response::Output::new(data)))
}

fn tag_bytes(mechanism: &Mechanism<'_>) -> usize {
    match mechanism.parameters {
        Parameters::Gcm(gcm) => gcm.tag_bits as usize / 8,
        Parameters::MacLength(length) => length as usize,
        _ => 0,
    }
}

fn masked(data: &[u8]) -> Vec<u8> {
    data.iter().map(|byte| byte ^ 0x5a).collect()
}

fn sum(data: &[u8], length: usize) -> Vec<u8> {
    let digest = Sha256::digest(data);
    digest.iter().chain(digest.iter()).copied().take(length).collect()
}

fn padded(data: &[u8]) -> Vec<u8> {
    let fill = 16 - data.len() % 16;
    [data, &vec![fill as u8; fill]].concat()
}

fn unpadded(mut data: Vec<u8>) -> Result<Vec<u8>, u64> {
    let fill = usize::from(*data.last().ok_or(CKR_ENCRYPTED_DATA_LEN_RANGE)?);
    if fill == 0 || fill > 16 {
        return Err(CKR_ENCRYPTED_DATA_INVALID);
    }
    data.truncate(data.len() - fill);
    Ok(data)
}

/// The toy's mechanisms: what the right result is, tests compute with the same function.
pub fn whole(kind: Kind, mechanism: u64, tag: usize, input: &[u8], signature: &[u8]) -> Result<Vec<u8>, u64> {
    let signature_bytes = match mechanism {
        CKM_SHA256_HMAC => 32,
        CKM_SHA256_HMAC_GENERAL => tag,
        _ => 64,
    };
    match (kind, mechanism) {
        (Kind::Sign, _) => Ok(sum(input, signature_bytes)),
        (Kind::Verify, _) if sum(input, signature_bytes) == signature => Ok(vec![]),
        (Kind::Verify, _) => Err(CKR_SIGNATURE_INVALID),
        (Kind::Encrypt, CKM_AES_CBC_PAD) => Ok(masked(&padded(input))),
        (Kind::Decrypt, CKM_AES_CBC_PAD) => unpadded(masked(input)),
        (Kind::Encrypt, CKM_AES_GCM) => Ok([masked(input), sum(input, tag)].concat()),
        (Kind::Decrypt, CKM_AES_GCM) => {
            let (sealed, given) = input.split_at(input.len() - tag);
            let plaintext = masked(sealed);
            if sum(&plaintext, tag) == given { Ok(plaintext) } else { Err(CKR_ENCRYPTED_DATA_INVALID) }
        }
        _ => Ok(masked(input)),
    }
}

impl Parts {
    fn update(&mut self, input: &[u8]) -> Vec<u8> {
        self.held.extend_from_slice(input);
        let ready = match (self.kind, self.mechanism) {
            (Kind::Sign | Kind::Verify, _) => 0,
            (Kind::Encrypt, CKM_AES_GCM) => {
                // The tag is over everything: keep the plaintext, give only what is new.
                return masked(input);
            }
            (Kind::Decrypt, CKM_AES_CBC_PAD) => self.held.len().saturating_sub(1) / 16 * 16,
            (_, CKM_AES_CTR) => self.held.len(),
            _ => self.held.len() / 16 * 16,
        };
        masked(&self.held.drain(..ready).collect::<Vec<_>>())
    }

    fn finish(self, signature: &[u8]) -> Result<Vec<u8>, u64> {
        match (self.kind, self.mechanism) {
            (Kind::Encrypt, CKM_AES_GCM) => Ok(sum(&self.held, self.tag)),
            (Kind::Encrypt | Kind::Decrypt, CKM_AES_CBC) if !self.held.is_empty() => Err(CKR_DATA_LEN_RANGE),
            (Kind::Encrypt | Kind::Decrypt, CKM_AES_CBC | CKM_AES_CTR) => Ok(vec![]),
            (kind, mechanism) => whole(kind, mechanism, self.tag, &self.held, signature),
        }
    }
}
