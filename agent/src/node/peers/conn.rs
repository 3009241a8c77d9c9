//! The asking side of a connection: connects, shakes hands, greets, then carries questions and answers. Never blocks.

use super::link::{Link, LinkError};
use super::tls::{self, Tls};
use super::{CONNECTION_AGE_MAX, Local, OPEN_TIMEOUT};
use mayfly_crypto::envelope::{Ephemeral, Session};
use mayfly_crypto::sign::PublicKey;
use mayfly_protocol::DeviceId;
use mayfly_protocol::peer::{self, Answer, Ask, EXPORTER_LABEL, Hello, Message, Request};
use rustix::event::PollFlags;
use rustix::net::{AddressFamily, SocketFlags, SocketType};
use std::net::{SocketAddr, TcpStream};
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::time::Instant;

/// How far a connection is.
enum Stage {
    /// TCP.
    Connecting,
    /// TLS.
    Handshaking,
    /// Our greeting is out, theirs is awaited.
    Greeting { hello: Hello, ephemeral: Ephemeral },
    /// Questions can be asked.
    Ready(Session),
    /// An error was reported; it is good for nothing.
    Ended,
}

/// A connection to one device.
pub(super) struct Conn {
    device: DeviceId,
    key: PublicKey,
    link: Link,
    stage: Stage,
    began: Instant,
    next_id: u64,
    /// The question that is waited for.
    awaited: Option<u64>,
    /// Questions whose answers may still come, though nobody waits for them any more.
    given_up: Vec<u64>,
}

impl Conn {
    /// Begins to connect to `device`, which must prove `key`.
    pub(super) fn open(tls: &Tls, device: DeviceId, key: PublicKey, address: SocketAddr) -> Result<Conn, LinkError> {
        let config = tls.client(&key).ok_or(LinkError::NotMember)?;
        let session = rustls::ClientConnection::new(Arc::new(config), tls::server_name())?;
        let family = if address.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let socket = rustix::net::socket_with(family, SocketType::STREAM, flags, None).map_err(std::io::Error::from)?;
        match rustix::net::connect(&socket, &address) {
            Ok(()) | Err(rustix::io::Errno::INPROGRESS) => {}
            Err(error) => return Err(std::io::Error::from(error).into()),
        }
        let link = Link::new(TcpStream::from(socket), rustls::Connection::Client(session))?;
        let (stage, began, (awaited, given_up)) = (Stage::Connecting, Instant::now(), Default::default());
        Ok(Conn { device, key, link, stage, began, next_id: 1, awaited, given_up })
    }

    pub(super) fn device(&self) -> DeviceId {
        self.device
    }

    pub(super) fn is_ready(&self) -> bool {
        matches!(self.stage, Stage::Ready(_))
    }

    /// Whether it may be used for another question: ready, for this session key, not too old, not full of unanswered questions.
    pub(super) fn is_usable(&self, key: &PublicKey) -> bool {
        self.is_ready() && self.key == *key && self.began.elapsed() < CONNECTION_AGE_MAX && self.late() == 0
    }

    /// Unanswered questions that nobody waits for.
    pub(super) fn late(&self) -> usize {
        self.given_up.len()
    }

    pub(super) fn age(&self) -> std::time::Duration {
        self.began.elapsed()
    }

    pub(super) fn key(&self) -> &PublicKey {
        &self.key
    }

    /// A question will not be waited for any longer; its answer, when it comes, is thrown away.
    pub(super) fn give_up(&mut self) {
        self.given_up.extend(self.awaited.take());
    }

    /// The inner envelope, once ready.
    pub(super) fn session(&mut self) -> Option<&mut Session> {
        match &mut self.stage {
            Stage::Ready(session) => Some(session),
            _ => None,
        }
    }

    pub(super) fn watch(&self) -> (BorrowedFd<'_>, PollFlags) {
        let interest = if matches!(self.stage, Stage::Connecting) { PollFlags::OUT } else { self.link.interest() };
        (self.link.as_fd(), interest)
    }

    /// Goes on with opening as far as it goes now. True when ready.
    pub(super) fn advance(&mut self, local: &Local) -> Result<bool, LinkError> {
        let result = self.try_advance(local);
        if result.is_err() {
            self.stage = Stage::Ended;
        }
        result
    }

    fn try_advance(&mut self, local: &Local) -> Result<bool, LinkError> {
        loop {
            match &mut self.stage {
                Stage::Ready(_) => return Ok(true),
                Stage::Ended => return Err(LinkError::Closed),
                _ if self.began.elapsed() > OPEN_TIMEOUT => return Err(LinkError::Late),
                Stage::Connecting => {
                    if !super::link::wait_any(&[(self.link.as_fd(), PollFlags::OUT)], Instant::now())? {
                        return Ok(false);
                    }
                    if let Some(error) = self.link.socket().take_error()? {
                        return Err(error.into());
                    }
                    self.stage = Stage::Handshaking;
                }
                Stage::Handshaking => {
                    if !self.link.shake()? {
                        return Ok(false);
                    }
                    let ephemeral = Ephemeral::generate()?;
                    let hello = local.hello(&ephemeral);
                    self.link.send(&hello.frame())?;
                    self.stage = Stage::Greeting { hello, ephemeral };
                }
                Stage::Greeting { .. } => {
                    let Some(frame) = self.link.frame()? else { return Ok(false) };
                    self.greet(&frame)?;
                }
            }
        }
    }

    fn greet(&mut self, frame: &[u8]) -> Result<(), LinkError> {
        let Stage::Greeting { hello: ours, ephemeral } = std::mem::replace(&mut self.stage, Stage::Ended) else {
            return Err(LinkError::Closed);
        };
        let theirs = Hello::from_bytes(frame)?;
        theirs.check(&ours.network, &self.device)?;
        let transcript = peer::channel_transcript(&ours, &theirs, &exporter(self.link.tls())?);
        self.stage = Stage::Ready(ephemeral.agree(&theirs.ephemeral, &transcript)?);
        Ok(())
    }

    /// Sends a question, whose answer is waited for from now on.
    pub(super) fn ask(&mut self, ask: Ask) -> Result<(), LinkError> {
        let id = self.next_id;
        self.next_id += 1;
        self.give_up();
        self.awaited = Some(id);
        self.link.send(&Request { id, ask }.frame())
    }

    /// The answer that is waited for, if it is here. Answers to questions that were given up are thrown away, each once; any other is an
    /// error, so no more frames are read than questions are outstanding.
    pub(super) fn answer(&mut self) -> Result<Option<Answer>, LinkError> {
        while let Some(frame) = self.link.frame()? {
            let answer = Answer::from_bytes(&frame)?;
            if self.awaited == Some(answer.id) {
                self.awaited = None;
                return Ok(Some(answer));
            }
            let at = self.given_up.iter().position(|id| *id == answer.id).ok_or(LinkError::Unasked)?;
            self.given_up.swap_remove(at);
        }
        Ok(None)
    }

    #[cfg(test)]
    pub(super) fn link_for_test(&mut self) -> &mut Link {
        &mut self.link
    }

    pub(super) fn close(mut self) {
        self.link.close();
    }
}

/// 32 bytes that only the two ends of this TLS connection know; they bind the envelope, they are not its key.
pub(super) fn exporter(tls: &rustls::Connection) -> Result<[u8; 32], LinkError> {
    Ok(tls.export_keying_material([0; 32], EXPORTER_LABEL, None)?)
}
