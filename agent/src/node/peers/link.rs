//! One TLS connection over one non-blocking socket, cut into frames. Used by both sides.

use mayfly_protocol::peer::{self, FRAME_HEADER_BYTES, PeerError};
use rustix::event::{PollFd, PollFlags, Timespec};
use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::os::fd::{AsFd, BorrowedFd};
use std::time::{Duration, Instant};

/// Received bytes are taken from TLS in pieces of this size.
const PIECE_BYTES: usize = 4096;
/// Reads in one look for a frame: a peer that sends faster than it is read from does not keep a thread beyond its deadlines.
const READS_MAX: usize = 64;
/// How long what was queued may wait until the other side has taken all of it.
const UNSENT_MAX: Duration = Duration::from_secs(10);
/// A buffer that grew beyond this is given back when it is empty.
const IDLE_BUFFER_BYTES: usize = 16 * 1024;

/// Why a connection ended.
#[derive(Debug, thiserror::Error)]
pub(super) enum LinkError {
    /// The socket.
    #[error("{0}")]
    Io(#[from] io::Error),
    /// TLS.
    #[error("TLS: {0}")]
    Tls(#[from] rustls::Error),
    /// What came is no message.
    #[error("{0}")]
    Peer(#[from] PeerError),
    /// The other side closed it.
    #[error("connection closed by the peer")]
    Closed,
    /// Key agreement, or a sealed share.
    #[error("envelope: {0}")]
    Envelope(#[from] mayfly_crypto::envelope::EnvelopeError),
    /// It does not read what it asked for.
    #[error("the peer does not take what was sent to it")]
    Stuck,
    /// It answered something that it was not asked, or answered twice.
    #[error("the peer sent an answer to no question")]
    Unasked,
    /// It took too long.
    #[error("no answer in time")]
    Late,
    /// The key is not that of a member any more.
    #[error("the peer is no member, or its session was replaced")]
    NotMember,
}

/// A TLS connection and what has been received on it.
pub(super) struct Link {
    tcp: TcpStream,
    tls: rustls::Connection,
    /// Received plaintext; frames before `taken` have been handed out.
    plain: Vec<u8>,
    taken: usize,
    closed: bool,
    /// Since when something waits to be sent.
    unsent_since: Option<Instant>,
}

impl Link {
    /// Takes a socket that is connected, or being connected.
    pub(super) fn new(tcp: TcpStream, tls: rustls::Connection) -> io::Result<Link> {
        tcp.set_nonblocking(true)?;
        tcp.set_nodelay(true)?;
        Ok(Link { tcp, tls, plain: Vec::new(), taken: 0, closed: false, unsent_since: None })
    }

    pub(super) fn tls(&self) -> &rustls::Connection {
        &self.tls
    }

    pub(super) fn socket(&self) -> &TcpStream {
        &self.tcp
    }

    /// What to poll for.
    pub(super) fn interest(&self) -> PollFlags {
        if self.tls.wants_write() { PollFlags::IN | PollFlags::OUT } else { PollFlags::IN }
    }

    /// Queues bytes and sends as much as the socket takes now.
    pub(super) fn send(&mut self, bytes: &[u8]) -> Result<(), LinkError> {
        self.tls.writer().write_all(bytes)?;
        self.flush()
    }

    /// Sends what is queued, as much as the socket takes now.
    pub(super) fn flush(&mut self) -> Result<(), LinkError> {
        while self.tls.wants_write() {
            match self.tls.write_tls(&mut self.tcp) {
                Ok(_) => {}
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => break,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e.into()),
            }
        }
        if !self.tls.wants_write() {
            self.unsent_since = None;
        } else if self.unsent_since.get_or_insert_with(Instant::now).elapsed() > UNSENT_MAX {
            return Err(LinkError::Stuck);
        }
        Ok(())
    }

    /// Sends what is queued, then: the next frame's content, if it is here whole. Reads what the socket has, no more than it takes and
    /// not for ever: `None` may also mean that there is more to read.
    pub(super) fn frame(&mut self) -> Result<Option<Vec<u8>>, LinkError> {
        self.flush()?;
        for _ in 0..READS_MAX {
            if let Some(frame) = self.take_frame()? {
                return Ok(Some(frame));
            }
            if self.closed {
                return Err(LinkError::Closed);
            }
            if !self.receive()? {
                return Ok(None);
            }
        }
        self.take_frame()
    }

    /// Goes on with the handshake as far as it goes now. True when it is complete.
    pub(super) fn shake(&mut self) -> Result<bool, LinkError> {
        self.flush()?;
        for _ in 0..READS_MAX {
            if !self.tls.is_handshaking() {
                self.flush()?;
                return Ok(true);
            }
            if self.closed {
                return Err(LinkError::Closed);
            }
            if !self.receive()? {
                return Ok(false);
            }
        }
        Ok(false)
    }

    fn take_frame(&mut self) -> Result<Option<Vec<u8>>, LinkError> {
        let rest = &self.plain[self.taken..];
        let Some((header, content)) = rest.split_first_chunk::<FRAME_HEADER_BYTES>() else { return Ok(None) };
        let length = peer::frame_length(*header)?;
        let Some(content) = content.get(..length) else { return Ok(None) };
        let frame = content.to_vec();
        self.taken += FRAME_HEADER_BYTES + length;
        if self.taken == self.plain.len() {
            self.plain.clear();
            self.plain.shrink_to(IDLE_BUFFER_BYTES);
            self.taken = 0;
        }
        Ok(Some(frame))
    }

    /// One read from the socket through TLS into `plain`. False: there is nothing now.
    fn receive(&mut self) -> Result<bool, LinkError> {
        match self.tls.read_tls(&mut self.tcp) {
            Ok(0) => self.closed = true,
            Ok(_) => {}
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => return Ok(false),
            Err(e) if e.kind() == io::ErrorKind::Interrupted => return Ok(true),
            Err(e) => return Err(e.into()),
        }
        let state = match self.tls.process_new_packets() {
            Ok(state) => state,
            Err(error) => {
                // The alert tells the other side why; if it cannot be sent, nothing is lost.
                let _ = self.flush();
                return Err(error.into());
            }
        };
        self.closed |= state.peer_has_closed();
        self.drain(state.plaintext_bytes_to_read())?;
        self.flush()?;
        Ok(true)
    }

    fn drain(&mut self, mut waiting: usize) -> Result<(), LinkError> {
        if self.taken > 0 {
            self.plain.drain(..self.taken);
            self.taken = 0;
        }
        let mut piece = [0; PIECE_BYTES];
        while waiting > 0 {
            let n = self.tls.reader().read(&mut piece)?;
            if n == 0 {
                break;
            }
            self.plain.extend_from_slice(piece.get(..n).unwrap_or_default());
            waiting = waiting.saturating_sub(n);
        }
        Ok(())
    }

    /// Waits until something can be read (or sent, if something is queued). False: `deadline` is over (or the time for what is queued),
    /// whether or not something could.
    pub(super) fn wait(&self, deadline: Instant) -> io::Result<bool> {
        let deadline = self.unsent_since.map_or(deadline, |since| deadline.min(since + UNSENT_MAX));
        if Instant::now() >= deadline {
            return Ok(false);
        }
        wait_any(&[(self.as_fd(), self.interest())], deadline)
    }

    /// As if what is queued had waited for as long as it may.
    #[cfg(test)]
    pub(super) fn age_for_test(&mut self) {
        self.unsent_since = Instant::now().checked_sub(UNSENT_MAX + Duration::from_millis(1));
    }

    /// Says goodbye; what cannot be sent at once is not.
    pub(super) fn close(&mut self) {
        self.tls.send_close_notify();
        let _ = self.flush();
    }
}

impl AsFd for Link {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.tcp.as_fd()
    }
}

/// Polls until one of the descriptors is ready. False: none was until `deadline`.
pub(super) fn wait_any(watched: &[(BorrowedFd<'_>, PollFlags)], deadline: Instant) -> io::Result<bool> {
    let mut fds: Vec<PollFd<'_>> =
        watched.iter().map(|(fd, interest)| PollFd::from_borrowed_fd(*fd, *interest)).collect();
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        match rustix::event::poll(&mut fds, Some(&timespec(left))) {
            Ok(0) if left.is_zero() => return Ok(false),
            Ok(0) | Err(rustix::io::Errno::INTR) => {}
            Ok(_) => return Ok(true),
            Err(error) => return Err(error.into()),
        }
    }
}

fn timespec(duration: Duration) -> Timespec {
    let tv_sec = i64::try_from(duration.as_secs()).unwrap_or(i64::MAX);
    Timespec { tv_sec, tv_nsec: i64::from(duration.subsec_nanos()) }
}
