//! Questions to several devices at once, asked and awaited by the calling thread: no other thread is woken on this side.

use super::conn::Conn;
use super::link::{LinkError, wait_any};
use super::pool::Peers;
use mayfly_crypto::envelope::Session;
use mayfly_protocol::DeviceId;
use mayfly_protocol::assembly::HEDGE_MIN;
use mayfly_protocol::peer::{Ask, Cause, Refused, Reply};
use std::time::Instant;

/// Makes the question for a connection; called again when a connection turns out to be dead and the question goes out on a new one.
pub type Question<'a> = Box<dyn FnMut(&mut Session) -> Result<Ask, String> + 'a>;

/// What came of a question.
pub enum Outcome<'s> {
    /// An answer, and the envelope in which its sealed part opens.
    Answer(Reply, &'s mut Session),
    /// None will come, and why.
    Lost(String),
}

/// Questions under way. What is unanswered when it is dropped is not waited for; the connections go back.
pub struct Exchange<'p, 'a> {
    peers: &'p Peers,
    asked: Vec<Asked<'a>>,
    lost: Vec<(DeviceId, String)>,
}

struct Asked<'a> {
    conn: Option<Conn>,
    question: Question<'a>,
    /// The question is out.
    sent: bool,
    began: Instant,
    /// The connection had been used before: that it is dead says nothing about the device.
    reused: bool,
}

enum Progress {
    Pending,
    Answered(Reply),
    Failed(LinkError),
}

impl<'p, 'a> Exchange<'p, 'a> {
    /// No question yet.
    pub fn new(peers: &'p Peers) -> Self {
        Self { peers, asked: Vec::new(), lost: Vec::new() }
    }

    /// Asks a device. Whatever goes wrong is told by [`Exchange::wait`].
    pub fn ask(&mut self, device: DeviceId, question: Question<'a>) {
        match self.peers.take(&device, false) {
            Ok((conn, reused)) => {
                let asked = Asked { conn: Some(conn), question, sent: false, began: Instant::now(), reused };
                self.asked.push(asked);
                // The question is on its way before the next device is thought of.
                let at = self.asked.len() - 1;
                if let Progress::Failed(error) = self.send(at) {
                    self.fail(at, error);
                }
            }
            Err(error) => self.lose(device, error.to_string()),
        }
    }

    /// Questions without an outcome.
    pub fn pending(&self) -> usize {
        self.asked.len() + self.lost.len()
    }

    /// Waits until something has come of at least one question, and tells each outcome. False: nothing until `until`.
    pub fn wait(&mut self, until: Instant, mut tell: impl FnMut(DeviceId, Outcome<'_>)) -> bool {
        loop {
            let mut told = !self.lost.is_empty();
            self.lost.drain(..).for_each(|(device, why)| tell(device, Outcome::Lost(why)));
            let mut at = 0;
            while at < self.asked.len() {
                match self.progress(at) {
                    Progress::Pending => at += 1,
                    Progress::Answered(reply) => {
                        self.finish(at, reply, &mut tell);
                        told = true;
                    }
                    Progress::Failed(error) => self.fail(at, error),
                }
            }
            if told || (self.asked.is_empty() && self.lost.is_empty()) {
                return told;
            }
            if self.lost.is_empty() && !self.sleep(until) {
                return false;
            }
        }
    }

    fn sleep(&self, until: Instant) -> bool {
        if Instant::now() >= until {
            return false; // also when a peer sends without end
        }
        let watched: Vec<_> = self.asked.iter().filter_map(|a| a.conn.as_ref()).map(Conn::watch).collect();
        wait_any(&watched, until).unwrap_or(false)
    }

    /// Sends the question if the connection is ready and it is not out yet.
    fn send(&mut self, at: usize) -> Progress {
        let Some(asked) = self.asked.get_mut(at) else { return Progress::Pending };
        let Some(conn) = asked.conn.as_mut() else { return Progress::Failed(LinkError::Closed) };
        match conn.advance(self.peers.local()) {
            Ok(true) => {}
            Ok(false) => return Progress::Pending,
            Err(error) => return Progress::Failed(error),
        }
        let Some(session) = conn.session() else { return Progress::Failed(LinkError::Closed) };
        let ask = match (asked.question)(session) {
            Ok(ask) => ask,
            Err(text) => {
                asked.reused = false; // another connection would not help
                return Progress::Failed(std::io::Error::other(text).into());
            }
        };
        asked.began = Instant::now();
        match conn.ask(ask) {
            Ok(()) => {
                asked.sent = true;
                Progress::Pending
            }
            Err(error) => Progress::Failed(error),
        }
    }

    fn progress(&mut self, at: usize) -> Progress {
        if self.asked.get(at).is_some_and(|a| !a.sent) {
            return self.send(at);
        }
        let Some(asked) = self.asked.get_mut(at) else { return Progress::Pending };
        let Some(conn) = asked.conn.as_mut() else { return Progress::Failed(LinkError::Closed) };
        match conn.answer().map(|answer| answer.map(|a| a.reply)) {
            Ok(None) => Progress::Pending,
            Ok(Some(Reply::Refused(Refused { cause: Cause::Session, .. }))) => Progress::Failed(LinkError::NotMember),
            Ok(Some(reply)) => Progress::Answered(reply),
            Err(error) => {
                asked.reused &= !matches!(error, LinkError::Unasked); // a lie, not a connection that died
                Progress::Failed(error)
            }
        }
    }

    fn finish(&mut self, at: usize, reply: Reply, tell: &mut impl FnMut(DeviceId, Outcome<'_>)) {
        let asked = self.asked.swap_remove(at);
        let Some(mut conn) = asked.conn else { return };
        let device = conn.device();
        self.peers.answered(&device, asked.began.elapsed());
        if let Some(session) = conn.session() {
            tell(device, Outcome::Answer(reply, session));
        }
        self.peers.give_back(conn);
    }

    /// A dead connection that had served before is replaced once; otherwise the device counts as lost.
    fn fail(&mut self, at: usize, error: LinkError) {
        let mut asked = self.asked.swap_remove(at);
        let Some(conn) = asked.conn.take() else { return };
        let device = conn.device();
        self.peers.discard(conn);
        if asked.reused
            && let Ok((conn, _)) = self.peers.take(&device, true)
        {
            self.asked.push(Asked { conn: Some(conn), sent: false, reused: false, ..asked });
            return;
        }
        self.lose(device, error.to_string());
    }

    fn lose(&mut self, device: DeviceId, why: String) {
        self.peers.failed(&device, &why);
        self.lost.push((device, why));
    }
}

impl Drop for Exchange<'_, '_> {
    fn drop(&mut self) {
        for asked in self.asked.drain(..) {
            let Some(mut conn) = asked.conn else { continue };
            // Slower than it usually is: it is not asked first until it has answered something.
            if asked.began.elapsed() > HEDGE_MIN + self.peers.usual(&conn.device()) {
                self.peers.failed(&conn.device(), &LinkError::Late.to_string());
            }
            conn.give_up();
            self.peers.give_back(conn);
        }
    }
}
