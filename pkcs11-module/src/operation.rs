//! Operations: encrypt, decrypt, sign, verify, digest; whole and in parts.
//!
//! The rules of PKCS#11 that this page keeps: asking for a length and CKR_BUFFER_TOO_SMALL leave an
//! operation as it was; every other error ends it; a whole operation cannot follow a part. Where the data
//! goes: whole operations to the agent in one frame; hashes stay here; MACs and sealed decryption are
//! collected and go as a whole; ciphers in parts run in the agent.

use cryptoki_sys::*;
use mayfly_wire::{
    CallError, Connection, DATA_BYTES_MAX, Data, INLINE_DATA_MAX, Kind, Mechanism, Place, Request, Response,
    SHARED_SLACK_BYTES, Ticket, request,
};

use crate::agent::Repeat;
use crate::bytes::Bytes;
use crate::digest::{Hash, Hasher};
use crate::library::Library;
use crate::mechanism::{self, Length, Parts, Spec, Stored, usage_flag};
use crate::rv::{Outcome, Rv, ensure, fail};
use crate::session::{Session, expect_done};
use crate::sys;

/// Most bytes of parts that are collected for a MAC before the agent takes over.
const COLLECTED_BYTES_MAX: usize = INLINE_DATA_MAX;

/// Longest plaintext of an AEAD, in all its parts: what can be sealed here can be opened here, where ciphertext
/// and tag have to be in one piece.
const SEALED_DATA_BYTES_MAX: usize = DATA_BYTES_MAX - 16;

/// What an application has for output.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Room {
    /// A null pointer: it asks for the length.
    Query,
    /// A buffer of this many bytes.
    Bytes(usize),
}

impl Room {
    /// What to say instead of working, if the buffer is too small for `least` bytes: then, or for a query,
    /// `most` is named.
    fn refuses(self, least: usize, most: usize) -> Option<Output> {
        match self {
            Self::Query => Some(Output::Length(most)),
            Self::Bytes(room) if room < least => Some(Output::TooSmall(most)),
            Self::Bytes(_) => None,
        }
    }
}

/// What a call gives back through a buffer and a length.
#[derive(Debug)]
pub enum Output {
    /// The length that was asked for.
    Length(usize),
    /// CKR_BUFFER_TOO_SMALL, and the length needed.
    TooSmall(usize),
    /// The output, which fits.
    Bytes(Bytes),
}

/// A result that exists already, for the room there is.
pub fn deliverable(result: Bytes, room: Room) -> Output {
    room.refuses(result.len(), result.len()).unwrap_or(Output::Bytes(result))
}

/// An active operation.
pub enum Active {
    /// One with a key.
    Keyed(Keyed),
    /// A digest.
    Digest(Digesting),
}

impl Active {
    /// Whether its key demands a login for each operation.
    pub fn wants_login(&self) -> bool {
        matches!(self, Self::Keyed(keyed) if keyed.wants_login)
    }

    fn keyed(&mut self) -> Outcome<&mut Keyed> {
        match self {
            Self::Keyed(keyed) => Ok(keyed),
            Self::Digest(_) => fail(CKR_GENERAL_ERROR),
        }
    }

    fn digest(&mut self) -> Outcome<&mut Digesting> {
        match self {
            Self::Digest(digest) => Ok(digest),
            Self::Keyed(_) => fail(CKR_GENERAL_ERROR),
        }
    }
}

/// A digest on its way.
pub struct Digesting {
    hasher: Hasher,
    bytes: usize,
    has_parts: bool,
}

/// An operation with a key.
pub struct Keyed {
    kind: Kind,
    spec: &'static Spec,
    mechanism: Stored,
    object: u64,
    /// Length of its signature or MAC; 0 for ciphers.
    signature_bytes: usize,
    wants_login: bool,
    phase: Phase,
}

enum Phase {
    /// After Init.
    Fresh,
    /// Parts go into a hash here.
    Hashing(Hasher),
    /// Parts are kept here.
    Collecting(Bytes),
    /// Parts go to the agent.
    Running(Running),
    /// It is done, and the application had too little room for the result.
    Finished(Bytes),
}

#[derive(Clone, Copy)]
struct Running {
    operation: u64,
    /// The agent's run that knows it.
    run: u64,
    /// Bytes that went in and have not come out.
    pending: usize,
    /// Bytes that went in.
    taken: usize,
}

/// What becomes of an operation after a call.
enum After {
    GoesOn,
    Ends,
}

/// An output, and what it means for the operation: only a delivered result ends a whole one.
fn whole(output: Output) -> (Output, After) {
    let after = if matches!(output, Output::Bytes(_)) { After::Ends } else { After::GoesOn };
    (output, after)
}

impl Library {
    /// C_EncryptInit and the like.
    pub fn begin(&self, session: CK_SESSION_HANDLE, kind: Kind, mechanism: &Mechanism<'_>, key: u64) -> Outcome {
        let session = self.session(session)?;
        session.check_idle(kind)?;
        let spec = mechanism::find(mechanism.code)?;
        self.check_offered(session.slot, mechanism.code, usage_flag(kind))?;
        spec.check(&mechanism.parameters)?;
        let object = self.object(session.slot, key, CKR_KEY_HANDLE_INVALID)?;
        spec.check_key(kind, &object)?;
        let signature_bytes = spec.signature_bytes(&mechanism.parameters, &object)?.unwrap_or(0);
        let keyed = Keyed {
            kind,
            spec,
            mechanism: Stored::new(mechanism),
            object: key,
            signature_bytes,
            wants_login: object.is(CKA_ALWAYS_AUTHENTICATE),
            phase: Phase::Fresh,
        };
        session.start(kind, Active::Keyed(keyed))
    }

    /// C_DigestInit.
    pub fn digest_begin(&self, session: CK_SESSION_HANDLE, code: u64) -> Outcome {
        let session = self.session(session)?;
        session.check_idle(Kind::Digest)?;
        let hash = Hash::of_mechanism(code).ok_or(Rv(CKR_MECHANISM_INVALID))?;
        let digest = Digesting { hasher: Hasher::new(hash), bytes: hash.bytes(), has_parts: false };
        session.start(Kind::Digest, Active::Digest(digest))
    }

    /// An error before an operation's call could begin ends the operation too.
    pub fn end(&self, session: CK_SESSION_HANDLE, kind: Kind) {
        if let Ok(session) = self.session(session)
            && let Ok(mut taken) = session.take(kind)
            && let Ok(active) = taken.get()
        {
            self.give_up(&session, active);
        }
    }

    /// …Init with a null mechanism (PKCS#11 v3.0): the active operation is given up.
    pub fn cancel(&self, session: CK_SESSION_HANDLE, kind: Kind) -> Outcome {
        let session = self.session(session)?;
        // Without an operation there is nothing that a null mechanism could mean.
        let mut taken = session.take(kind).map_err(|_| Rv(CKR_ARGUMENTS_BAD))?;
        self.give_up(&session, taken.get()?);
        Ok(())
    }

    /// C_Encrypt, C_Decrypt.
    pub fn cipher(&self, session: CK_SESSION_HANDLE, kind: Kind, input: &[u8], room: Room) -> Outcome<Output> {
        self.with_keyed(session, kind, |session, keyed| {
            ensure(matches!(keyed.phase, Phase::Fresh), CKR_OPERATION_ACTIVE)?;
            self.cipher_whole(session, keyed, input, room).map(whole)
        })
    }

    /// C_EncryptUpdate, C_DecryptUpdate.
    pub fn cipher_part(&self, session: CK_SESSION_HANDLE, kind: Kind, input: &[u8], room: Room) -> Outcome<Output> {
        self.with_keyed(session, kind, |session, keyed| {
            let output = match (keyed.spec.parts, kind) {
                (Parts::StreamSealed, Kind::Decrypt) => self.collect_sealed(keyed, input, room),
                _ => self.cipher_running(session, keyed, input, room),
            }?;
            Ok((output, After::GoesOn))
        })
    }

    /// C_EncryptFinal, C_DecryptFinal.
    pub fn cipher_end(&self, session: CK_SESSION_HANDLE, kind: Kind, room: Room) -> Outcome<Output> {
        self.with_keyed(session, kind, |session, keyed| {
            let output = match &mut keyed.phase {
                // Nothing went in: blocks without padding give nothing.
                Phase::Fresh if matches!(keyed.spec.length, Length::Same(_)) => deliverable(Bytes::default(), room),
                Phase::Fresh => self.cipher_whole(session, keyed, &[], room)?,
                Phase::Collecting(collected) => {
                    let input = std::mem::take(collected);
                    let output = self.cipher_whole(session, keyed, &input, room)?;
                    keyed.phase = Phase::Collecting(input);
                    output
                }
                Phase::Running(running) => {
                    let running = *running;
                    self.cipher_finish(session, keyed, running, room)?
                }
                Phase::Finished(result) => match room.refuses(result.len(), result.len()) {
                    Some(output) => output,
                    None => Output::Bytes(std::mem::take(result)),
                },
                Phase::Hashing(_) => return fail(CKR_GENERAL_ERROR),
            };
            Ok(whole(output))
        })
    }

    /// C_Sign, C_SignRecover, C_VerifyRecover: data in, output out.
    pub fn sign(&self, session: CK_SESSION_HANDLE, kind: Kind, input: &[u8], room: Room) -> Outcome<Output> {
        self.with_keyed(session, kind, |session, keyed| {
            ensure(matches!(keyed.phase, Phase::Fresh), CKR_OPERATION_ACTIVE)?;
            if let Some(output) = room.refuses(keyed.signature_bytes, keyed.signature_bytes) {
                return Ok((output, After::GoesOn));
            }
            let signature = match keyed.spec.hash {
                Some(hash) => self.operate(session, keyed, &hash_of(hash, input), &[], keyed.signature_bytes)?,
                None => self.operate(session, keyed, input, &[], keyed.signature_bytes)?,
            };
            Ok(whole(deliverable(signature, room)))
        })
    }

    /// C_Verify.
    pub fn verify(&self, session: CK_SESSION_HANDLE, input: &[u8], signature: &[u8]) -> Outcome {
        self.with_keyed(session, Kind::Verify, |session, keyed| {
            ensure(matches!(keyed.phase, Phase::Fresh), CKR_OPERATION_ACTIVE)?;
            ensure(signature.len() == keyed.signature_bytes, CKR_SIGNATURE_LEN_RANGE)?;
            match keyed.spec.hash {
                Some(hash) => self.operate(session, keyed, &hash_of(hash, input), signature, 0)?,
                None => self.operate(session, keyed, input, signature, 0)?,
            };
            Ok(((), After::Ends))
        })
    }

    /// C_SignUpdate, C_VerifyUpdate.
    pub fn sign_part(&self, session: CK_SESSION_HANDLE, kind: Kind, input: &[u8]) -> Outcome {
        self.with_keyed(session, kind, |session, keyed| {
            self.take_in(session, keyed, input)?;
            Ok(((), After::GoesOn))
        })
    }

    /// C_SignFinal.
    pub fn sign_end(&self, session: CK_SESSION_HANDLE, room: Room) -> Outcome<Output> {
        self.with_keyed(session, Kind::Sign, |session, keyed| {
            if let Some(output) = room.refuses(keyed.signature_bytes, keyed.signature_bytes) {
                return Ok((output, After::GoesOn));
            }
            let signature = self.conclude(session, keyed, &[], keyed.signature_bytes)?;
            Ok(whole(deliverable(signature, room)))
        })
    }

    /// C_VerifyFinal.
    pub fn verify_end(&self, session: CK_SESSION_HANDLE, signature: &[u8]) -> Outcome {
        self.with_keyed(session, Kind::Verify, |session, keyed| {
            if signature.len() != keyed.signature_bytes {
                return fail(CKR_SIGNATURE_LEN_RANGE);
            }
            self.conclude(session, keyed, signature, 0)?;
            Ok(((), After::Ends))
        })
    }

    /// C_Digest.
    pub fn digest(&self, session: CK_SESSION_HANDLE, input: &[u8], room: Room) -> Outcome<Output> {
        self.with_digest(session, |digest| {
            ensure(!digest.has_parts, CKR_OPERATION_ACTIVE)?;
            if let Some(output) = room.refuses(digest.bytes, digest.bytes) {
                return Ok((output, After::GoesOn));
            }
            digest.hasher.update(input);
            Ok((Output::Bytes(digest.hasher.clone().finish()), After::Ends))
        })
    }

    /// C_DigestUpdate.
    pub fn digest_part(&self, session: CK_SESSION_HANDLE, input: &[u8]) -> Outcome {
        self.with_digest(session, |digest| {
            digest.has_parts = true;
            digest.hasher.update(input);
            Ok(((), After::GoesOn))
        })
    }

    /// C_DigestKey: keys are never where digests are made.
    pub fn digest_key(&self, session: CK_SESSION_HANDLE) -> Outcome {
        self.with_digest(session, |_| fail::<((), After)>(CKR_KEY_INDIGESTIBLE))
    }

    /// C_DigestFinal.
    pub fn digest_end(&self, session: CK_SESSION_HANDLE, room: Room) -> Outcome<Output> {
        self.with_digest(session, |digest| {
            let output = room.refuses(digest.bytes, digest.bytes);
            Ok(whole(output.unwrap_or_else(|| Output::Bytes(digest.hasher.clone().finish()))))
        })
    }

    /// C_DigestEncryptUpdate and C_SignEncryptUpdate: the plaintext also goes `beside`. Nothing does where
    /// the ciphertext has no room.
    pub fn encrypt_part_and(
        &self,
        session: CK_SESSION_HANDLE,
        beside: Kind,
        input: &[u8],
        room: Room,
    ) -> Outcome<Output> {
        self.check_active(session, beside)?;
        let output = self.cipher_part(session, Kind::Encrypt, input, room)?;
        if matches!(output, Output::Bytes(_)) {
            self.part_beside(session, beside, input)?;
        }
        Ok(output)
    }

    /// C_DecryptDigestUpdate and C_DecryptVerifyUpdate: the plaintext also goes `beside`.
    pub fn decrypt_part_and(
        &self,
        session: CK_SESSION_HANDLE,
        beside: Kind,
        input: &[u8],
        room: Room,
    ) -> Outcome<Output> {
        self.check_active(session, beside)?;
        let output = self.cipher_part(session, Kind::Decrypt, input, room)?;
        if let Output::Bytes(plaintext) = &output {
            self.part_beside(session, beside, plaintext)?;
        }
        Ok(output)
    }

    fn part_beside(&self, session: CK_SESSION_HANDLE, kind: Kind, data: &[u8]) -> Outcome {
        if kind == Kind::Digest { self.digest_part(session, data) } else { self.sign_part(session, kind, data) }
    }

    fn check_active(&self, session: CK_SESSION_HANDLE, kind: Kind) -> Outcome {
        self.session(session)?.take(kind)?.keep();
        Ok(())
    }

    /// Runs one call on an operation, and ends it where it has ended or failed.
    fn with_keyed<T>(
        &self,
        session: CK_SESSION_HANDLE,
        kind: Kind,
        work: impl FnOnce(&Session, &mut Keyed) -> Outcome<(T, After)>,
    ) -> Outcome<T> {
        let session = self.session(session)?;
        let mut taken = session.take(kind)?;
        match work(&session, taken.get()?.keyed()?) {
            Ok((result, After::GoesOn)) => {
                taken.keep();
                Ok(result)
            }
            Ok((result, After::Ends)) => Ok(result),
            Err(error) => {
                self.give_up(&session, taken.get()?);
                Err(error)
            }
        }
    }

    fn with_digest<T>(
        &self,
        session: CK_SESSION_HANDLE,
        work: impl FnOnce(&mut Digesting) -> Outcome<(T, After)>,
    ) -> Outcome<T> {
        let session = self.session(session)?;
        let mut taken = session.take(Kind::Digest)?;
        let (result, after) = work(taken.get()?.digest()?)?;
        if matches!(after, After::GoesOn) {
            taken.keep();
        }
        Ok(result)
    }

    /// Tells the agent that an operation it runs is over. Whether it hears does not matter: it also drops
    /// what belongs to a closed session.
    fn give_up(&self, session: &Session, active: &Active) {
        if let Active::Keyed(Keyed { phase: Phase::Running(running), .. }) = active
            && running.run == self.agent.run()
        {
            let request = Request::Cancel(request::OfOperation { operation: running.operation });
            let _ = self.ask(session.slot, Repeat::Harmless, &request, expect_done);
        }
    }

    fn cipher_whole(&self, session: &Session, keyed: &mut Keyed, input: &[u8], room: Room) -> Outcome<Output> {
        let parameters = keyed.mechanism.get()?.parameters;
        let most = keyed.spec.output_bytes(keyed.kind, &parameters, input.len())?;
        check_sealed_length(keyed, input.len())?;
        // The length of a padded plaintext is known only afterwards.
        let least = match (keyed.spec.length, keyed.kind) {
            (Length::Padded(block), Kind::Decrypt) => most.saturating_sub(block),
            _ => most,
        };
        if let Some(output) = room.refuses(least, most) {
            return Ok(output);
        }
        if input.len() <= DATA_BYTES_MAX && most <= DATA_BYTES_MAX + SHARED_SLACK_BYTES {
            return Ok(deliverable(self.operate(session, keyed, input, &[], most)?, room));
        }
        self.cipher_in_pieces(session, keyed, input, most, room)
    }

    /// A whole operation on more than a shared buffer holds.
    fn cipher_in_pieces(
        &self,
        session: &Session,
        keyed: &mut Keyed,
        input: &[u8],
        most: usize,
        room: Room,
    ) -> Outcome<Output> {
        let mut result = match self.cipher_running(session, keyed, input, Room::Bytes(most))? {
            Output::Bytes(bytes) => bytes,
            Output::Length(_) | Output::TooSmall(_) => return fail(CKR_GENERAL_ERROR),
        };
        if let Phase::Running(running) = keyed.phase
            && let Output::Bytes(last) = self.cipher_finish(session, keyed, running, Room::Bytes(most))?
        {
            result.append(&last)?;
        }
        let output = deliverable(result, room);
        keyed.phase = Phase::Fresh;
        Ok(output)
    }

    fn collect_sealed(&self, keyed: &mut Keyed, input: &[u8], room: Room) -> Outcome<Output> {
        if room == Room::Query {
            return Ok(Output::Length(0));
        }
        if let Phase::Fresh = keyed.phase {
            keyed.phase = Phase::Collecting(Bytes::default());
        }
        match &mut keyed.phase {
            Phase::Collecting(collected) => {
                ensure(collected.len().saturating_add(input.len()) <= DATA_BYTES_MAX, CKR_ENCRYPTED_DATA_LEN_RANGE)?;
                collected.append(input)?;
            }
            Phase::Fresh | Phase::Hashing(_) | Phase::Running(_) | Phase::Finished(_) => {
                return fail(CKR_OPERATION_NOT_INITIALIZED);
            }
        }
        Ok(Output::Bytes(Bytes::default()))
    }

    fn cipher_running(&self, session: &Session, keyed: &mut Keyed, input: &[u8], room: Room) -> Outcome<Output> {
        let (pending, taken) = match &keyed.phase {
            Phase::Fresh => (0, 0),
            Phase::Running(running) => (running.pending, running.taken),
            Phase::Hashing(_) | Phase::Collecting(_) | Phase::Finished(_) => {
                return fail(CKR_OPERATION_NOT_INITIALIZED);
            }
        };
        check_sealed_length(keyed, taken.saturating_add(input.len()))?;
        let most = keyed.spec.part_bytes(keyed.kind, pending, input.len());
        if let Some(output) = room.refuses(most, most) {
            return Ok(output);
        }
        let mut result = Bytes::default();
        for piece in input.chunks(DATA_BYTES_MAX) {
            let mut running = self.running(session, keyed)?;
            let most = keyed.spec.part_bytes(keyed.kind, running.pending, piece.len());
            let output = self.update(session, running, piece, most)?;
            running.pending = (running.pending + piece.len()).saturating_sub(output.len());
            running.taken = running.taken.saturating_add(piece.len());
            keyed.phase = Phase::Running(running);
            if result.is_empty() {
                result = output;
            } else {
                result.append(&output)?;
            }
        }
        Ok(Output::Bytes(result))
    }

    fn cipher_finish(&self, session: &Session, keyed: &mut Keyed, running: Running, room: Room) -> Outcome<Output> {
        let parameters = keyed.mechanism.get()?.parameters;
        let most = keyed.spec.last_bytes(keyed.kind, &parameters, running.pending)?;
        let least = if keyed.kind == Kind::Decrypt { 0 } else { most };
        if let Some(output) = room.refuses(least, most) {
            return Ok(output);
        }
        let last = self.finish(session, running, &[], most)?;
        match room.refuses(last.len(), last.len()) {
            Some(output) => {
                keyed.phase = Phase::Finished(last);
                Ok(output)
            }
            None => Ok(Output::Bytes(last)),
        }
    }

    /// A part of what is signed or verified.
    fn take_in(&self, session: &Session, keyed: &mut Keyed, input: &[u8]) -> Outcome {
        if let (Phase::Fresh, Some(hash)) = (&keyed.phase, keyed.spec.hash) {
            keyed.phase = Phase::Hashing(Hasher::new(hash));
        }
        match &mut keyed.phase {
            Phase::Hashing(hasher) => hasher.update(input),
            Phase::Fresh if input.len() <= COLLECTED_BYTES_MAX => keyed.phase = Phase::Collecting(Bytes::copy(input)?),
            Phase::Collecting(collected) if collected.len().saturating_add(input.len()) <= COLLECTED_BYTES_MAX => {
                collected.append(input)?;
            }
            Phase::Fresh | Phase::Collecting(_) | Phase::Running(_) => {
                let collected = match std::mem::replace(&mut keyed.phase, Phase::Fresh) {
                    Phase::Collecting(collected) => collected,
                    other => {
                        keyed.phase = other;
                        Bytes::default()
                    }
                };
                for piece in [&collected[..], input].into_iter().flat_map(|data| data.chunks(DATA_BYTES_MAX)) {
                    let running = self.running(session, keyed)?;
                    self.update(session, running, piece, 0)?;
                }
            }
            Phase::Finished(_) => return fail(CKR_OPERATION_NOT_INITIALIZED),
        }
        Ok(())
    }

    /// The end of signing or verifying in parts.
    fn conclude(&self, session: &Session, keyed: &mut Keyed, signature: &[u8], most: usize) -> Outcome<Bytes> {
        match &keyed.phase {
            Phase::Fresh => match keyed.spec.hash {
                Some(hash) => self.operate(session, keyed, &hash_of(hash, &[]), signature, most),
                None => self.operate(session, keyed, &[], signature, most),
            },
            Phase::Hashing(hasher) => self.operate(session, keyed, &hasher.clone().finish(), signature, most),
            Phase::Collecting(collected) => self.operate(session, keyed, collected, signature, most),
            Phase::Running(running) => {
                let running = *running;
                let result = self.finish(session, running, signature, most);
                // Whatever the agent said, it has ended the operation.
                keyed.phase = Phase::Finished(Bytes::default());
                result
            }
            Phase::Finished(_) => fail(CKR_OPERATION_NOT_INITIALIZED),
        }
    }

    /// The operation in the agent, begun if need be.
    fn running(&self, session: &Session, keyed: &mut Keyed) -> Outcome<Running> {
        if let Phase::Running(running) = keyed.phase {
            // Another run of the agent knows nothing of it.
            ensure(running.run == self.agent.run(), CKR_OPERATION_NOT_INITIALIZED)?;
            return Ok(running);
        }
        session.make_known();
        let mut mechanism = keyed.mechanism.get()?;
        mechanism.code = keyed.spec.sent_as;
        let begin = request::Begin {
            token: session.slot,
            session: session.handle,
            kind: keyed.kind,
            object: keyed.object,
            mechanism,
        };
        let operation = self.ask(session.slot, Repeat::Never, &Request::Begin(begin), |answer| match answer {
            Response::Begun(begun) => Ok(begun.operation),
            _ => fail(CKR_DEVICE_ERROR),
        })?;
        let running = Running { operation, run: self.agent.run(), pending: 0, taken: 0 };
        keyed.phase = Phase::Running(running);
        Ok(running)
    }

    fn update(&self, session: &Session, running: Running, input: &[u8], most: usize) -> Outcome<Bytes> {
        self.transfer(session.slot, Repeat::Never, input, most, |input, output| {
            Request::Update(request::Update { operation: running.operation, input, output })
        })
    }

    fn finish(&self, session: &Session, running: Running, signature: &[u8], most: usize) -> Outcome<Bytes> {
        ensure(running.run == self.agent.run(), CKR_OPERATION_NOT_INITIALIZED)?;
        self.transfer(session.slot, Repeat::Never, &[], most, |_, output| {
            let signature = Data::inline(signature);
            Request::Finish(request::Finish { operation: running.operation, signature, output })
        })
    }

    /// A whole operation in one frame.
    fn operate(&self, session: &Session, keyed: &Keyed, input: &[u8], signature: &[u8], most: usize) -> Outcome<Bytes> {
        let mut mechanism = keyed.mechanism.get()?;
        mechanism.code = keyed.spec.sent_as;
        self.transfer(session.slot, Repeat::Harmless, input, most, |input, output| {
            Request::Operate(request::Operate {
                token: session.slot,
                session: session.handle,
                kind: keyed.kind,
                object: keyed.object,
                mechanism,
                input,
                signature: Data::inline(signature),
                output,
            })
        })
    }

    /// Sends a request with data and fetches its output: inside the frame, or through the shared buffer of
    /// the connection where either is large.
    fn transfer<'r>(
        &self,
        slot: u32,
        repeat: Repeat,
        input: &'r [u8],
        most: usize,
        request: impl Fn(Data<'r>, Place) -> Request<'r>,
    ) -> Outcome<Bytes> {
        let larger = input.len().max(most);
        let is_in_range = input.len() <= DATA_BYTES_MAX && most <= DATA_BYTES_MAX + SHARED_SLACK_BYTES;
        ensure(is_in_range, CKR_DATA_LEN_RANGE)?;
        let result = self.agent.with_connection(repeat, |connection| {
            let result = self.exchange(connection, slot, input, most, &request);
            wipe_shared(connection, larger);
            match result {
                // Of an operation in parts: the refusal has ended it, and the same part once more would hide why.
                Err(CallError::Refused { code, reason, .. }) if repeat == Repeat::Never => {
                    Err(CallError::Refused { code, retry_ms: 0, reason })
                }
                other => other,
            }
        });
        match self.check_login_lost(slot, result) {
            // The room was made by the mechanism's own rules. An agent to which it is too small is at fault, and
            // the application is not to try again with a larger buffer for ever.
            Err(Rv(CKR_BUFFER_TOO_SMALL)) => fail(CKR_DEVICE_ERROR),
            other => other,
        }
    }

    fn exchange<'r>(
        &self,
        connection: &mut Connection,
        slot: u32,
        input: &'r [u8],
        most: usize,
        request: impl Fn(Data<'r>, Place) -> Request<'r>,
    ) -> Result<Outcome<Bytes>, CallError> {
        let larger = input.len().max(most);
        let (data, place) = if larger <= INLINE_DATA_MAX {
            (Data::inline(input), Place::Inline { max: most as u32 })
        } else {
            let buffer = connection.shared(larger as u64)?;
            buffer.write(0, input).map_err(|error| CallError::NotSent(error.into()))?;
            let length = input.len() as u64;
            (Data::Shared { offset: 0, length }, Place::Shared { offset: 0, max: most as u64 })
        };
        let (header, answer) = connection.call(sys::current_cpu(), Ticket::default(), &request(data, place))?;
        self.lock_objects().note(self.agent.run(), slot, header.object_version);
        let output = match answer {
            Response::Output(output) if output.data.length() <= most as u64 => output.data,
            _ => return Err(CallError::Unexpected),
        };
        match output {
            Data::Inline(bytes) => Ok(Bytes::copy(bytes.0)),
            Data::Shared { offset, length } => fetch(connection, offset, length),
        }
    }
}

fn fetch(connection: &Connection, offset: u64, length: u64) -> Result<Outcome<Bytes>, CallError> {
    let buffer = connection.shared_now().ok_or(CallError::Unexpected)?;
    let mut result = match Bytes::zeroed(length as usize) {
        Ok(result) => result,
        Err(error) => return Ok(Err(error)),
    };
    buffer.read(offset, result.as_mut()).map_err(|error| CallError::Lost(error.into()))?;
    Ok(Ok(result))
}

/// Refuses what an AEAD cannot do in one piece.
fn check_sealed_length(keyed: &Keyed, length: usize) -> Outcome {
    match (keyed.spec.parts, keyed.kind) {
        (Parts::StreamSealed, Kind::Decrypt) => ensure(length <= DATA_BYTES_MAX, CKR_ENCRYPTED_DATA_LEN_RANGE),
        (Parts::StreamSealed, _) => ensure(length <= SEALED_DATA_BYTES_MAX, CKR_DATA_LEN_RANGE),
        _ => Ok(()),
    }
}

/// Wipes what an operation on that many bytes has left in the connection's shared buffer, if it used it.
/// What cannot be wiped here is wiped by the agent.
fn wipe_shared(connection: &Connection, used: usize) {
    if let Some(buffer) = connection.shared_now().filter(|_| used > INLINE_DATA_MAX) {
        let _ = buffer.wipe(0, used as u64);
    }
}

fn hash_of(hash: Hash, data: &[u8]) -> Bytes {
    let mut hasher = Hasher::new(hash);
    hasher.update(data);
    hasher.finish()
}
