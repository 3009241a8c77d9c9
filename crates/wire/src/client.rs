//! A blocking client of the agent, for the module and the command line.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use rustix::net::sockopt::{Timeout, set_socket_timeout};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};
use zeroize::Zeroizing;

use crate::frame::FIRST_BYTES;
use crate::shared::FdReader;
use crate::{
    DecodeError, FrameBuf, FrameError, HEADER_BYTES, Refusal, Request, Response, ResponseFlags, ResponseHeader,
    SharedBuffer, Spin, Ticket, codec, read_response, request, response, write_frame,
};

/// Why a call gave no answer.
#[derive(Debug, thiserror::Error)]
pub enum CallError {
    /// The request cannot have been acted on: it may be sent again on another connection, whatever it asks.
    #[error("request did not reach the agent")]
    NotSent(#[source] FrameError),
    /// The agent may have acted on the request or not.
    #[error("agent gave no answer")]
    Lost(#[source] FrameError),
    /// The agent refused.
    #[error("refused by the agent with {code:#x}: {reason}")]
    Refused {
        /// CK_RV.
        code: u64,
        /// When trying again has a point, milliseconds; else 0.
        retry_ms: u32,
        /// The agent's sentence.
        reason: String,
    },
    /// The answer is of a kind that does not belong to the request.
    #[error("agent answered something else than was asked")]
    Unexpected,
}

impl From<Refusal<'_>> for CallError {
    fn from(refusal: Refusal<'_>) -> Self {
        Self::Refused { code: refusal.code, retry_ms: refusal.retry_ms, reason: refusal.reason.to_owned() }
    }
}

/// One connection to the agent. Its buffers are wiped after use.
pub struct Connection {
    stream: UnixStream,
    out: FrameBuf,
    first: Zeroizing<Vec<u8>>,
    spill: Zeroizing<Vec<u8>>,
    last_id: u64,
    received: usize,
    shared: Option<SharedBuffer>,
    spin: Spin,
}

impl AsFd for Connection {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.stream.as_fd()
    }
}

impl Connection {
    /// Connects to a socket file. `timeout` bounds the connecting and each later wait; `None` waits for
    /// ever.
    pub fn connect(path: &Path, timeout: Option<Duration>) -> io::Result<Self> {
        let address = SocketAddrUnix::new(path)?;
        let socket = rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None)?;
        set_socket_timeout(&socket, Timeout::Send, timeout)?;
        set_socket_timeout(&socket, Timeout::Recv, timeout)?;
        loop {
            match rustix::net::connect(&socket, &address) {
                Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(error.into()),
                Ok(()) => return Ok(Self::over(socket.into())),
            }
        }
    }

    /// A client over a stream that is connected already.
    #[must_use]
    pub fn over(stream: UnixStream) -> Self {
        Self {
            stream,
            out: FrameBuf::default(),
            first: Zeroizing::new(vec![0; FIRST_BYTES]),
            spill: Zeroizing::default(),
            last_id: 0,
            received: 0,
            shared: None,
            spin: Spin::default(),
        }
    }

    /// Bounds each later wait: for the agent to take a request, and for its answer.
    pub fn set_timeout(&self, timeout: Option<Duration>) -> io::Result<()> {
        set_socket_timeout(&self.stream, Timeout::Send, timeout)?;
        Ok(set_socket_timeout(&self.stream, Timeout::Recv, timeout)?)
    }

    /// Says hello; must be the first call.
    pub fn hello<'c>(
        &'c mut self,
        ticket: Ticket<'_>,
        hello: request::Hello<'_>,
    ) -> Result<response::Hello<'c>, CallError> {
        match self.call(None, ticket, &Request::Hello(hello))?.1 {
            Response::Hello(answer) => Ok(answer),
            _ => Err(CallError::Unexpected),
        }
    }

    /// Sends a request and waits for its answer. A refusal is a [`CallError::Refused`]; after any other
    /// error the connection must be dropped.
    pub fn call<'c>(
        &'c mut self,
        cpu: Option<u32>,
        ticket: Ticket<'_>,
        request: &Request<'_>,
    ) -> Result<(ResponseHeader, Response<'c>), CallError> {
        let id = self.send(cpu, ticket, request)?;
        let answer = self.receive(id)?;
        if answer.2.is_some() {
            return Err(CallError::Unexpected);
        }
        Ok((answer.0, answer.1))
    }

    /// A management request; each piece of news before the answer goes to `progress`.
    pub fn manage(&mut self, json: &str, mut progress: impl FnMut(&str)) -> Result<String, CallError> {
        let id = self.send(None, Ticket::default(), &Request::Manage(request::Manage { json }))?;
        loop {
            match self.receive(id)?.1 {
                Response::Progress(news) => progress(news.json),
                Response::Managed(answer) => return Ok(answer.json.to_owned()),
                _ => return Err(CallError::Unexpected),
            }
        }
    }

    /// The connection's shared buffer, of at least `size` bytes: the one it has, or a new one.
    pub fn shared(&mut self, size: u64) -> Result<&SharedBuffer, CallError> {
        if self.shared.as_ref().is_none_or(|buffer| buffer.size() < size) {
            self.shared = None;
            self.shared = Some(self.ask_for_buffer(size)?);
        }
        self.shared.as_ref().ok_or(CallError::Unexpected)
    }

    /// The connection's shared buffer, if it has one.
    #[must_use]
    pub fn shared_now(&self) -> Option<&SharedBuffer> {
        self.shared.as_ref()
    }

    /// Gives a shared buffer of more than `size` bytes back, for the smallest there is: each counts for its user as long as it is there.
    pub fn shrink_shared(&mut self, size: u64) -> Result<(), CallError> {
        if self.shared.as_ref().is_some_and(|buffer| buffer.size() > size) {
            self.shared = None;
            self.shared = Some(self.ask_for_buffer(1)?);
        }
        Ok(())
    }

    /// Wipes the last answer.
    pub fn wipe(&mut self) {
        for memory in [&mut self.first, &mut self.spill] {
            let used = memory.len().min(self.received);
            codec::wipe(memory.get_mut(..used).unwrap_or_default());
        }
        self.received = 0;
    }

    fn ask_for_buffer(&mut self, size: u64) -> Result<SharedBuffer, CallError> {
        let request = Request::LargeBuffer(request::LargeBuffer { size });
        let id = self.send(None, Ticket::default(), &request)?;
        match self.receive(id)? {
            (_, Response::LargeBuffer(answer), Some(fd)) if answer.size >= size => {
                SharedBuffer::accept(fd, answer.size).map_err(|error| CallError::Lost(error.into()))
            }
            _ => Err(CallError::Unexpected),
        }
    }

    fn send(&mut self, cpu: Option<u32>, ticket: Ticket<'_>, request: &Request<'_>) -> Result<u64, CallError> {
        self.last_id += 1;
        let frame = self.out.request(self.last_id, cpu, ticket, request).map_err(CallError::NotSent)?;
        let sent = write_frame(&self.stream, frame);
        self.out.wipe();
        // The agent acts on whole frames only, and a frame of which a part is missing is never whole.
        sent.map_err(|error| CallError::NotSent(error.into()))?;
        Ok(self.last_id)
    }

    fn receive(&mut self, id: u64) -> Result<(ResponseHeader, Response<'_>, Option<OwnedFd>), CallError> {
        self.wipe();
        self.spin.wait(&self.stream);
        let mut reader = FdReader { stream: &self.stream, fd: None };
        let frame = read_response(&mut reader, &mut self.first, &mut self.spill).map_err(CallError::Lost)?;
        let frame = frame.ok_or_else(|| CallError::Lost(io::Error::from(io::ErrorKind::UnexpectedEof).into()))?;
        self.received = HEADER_BYTES + frame.header.length as usize;
        let carries_fd = frame.header.flags.contains(ResponseFlags::CARRIES_FD);
        if frame.header.request_id != id || carries_fd != reader.fd.is_some() {
            return Err(CallError::Unexpected);
        }
        let lost = |error: DecodeError| CallError::Lost(error.into());
        match frame.response().map_err(lost)? {
            Response::Refused(refusal) => Err(refusal.into()),
            answer => Ok((frame.header, answer, reader.fd)),
        }
    }
}
