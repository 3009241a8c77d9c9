//! Passes on records that take effect on sight, from agent to agent and to the ledger, until the ledger contains them.

use super::alarms::{AlarmError, Alarms};
use super::directory::Ledger;
use super::peers::{Exchange, Peers};
use mayfly_protocol::DeviceId;
use mayfly_protocol::on_sight::NotOnSight;
use mayfly_protocol::peer::{Alarm, Ask, Cause, Refused, Reply};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// News that wait to be passed on.
const QUEUE_MAX: usize = 64;
/// How long other agents may take to answer.
const TELL_TIMEOUT: Duration = Duration::from_secs(2);
/// How often what the ledger does not contain yet is told again.
const TELL_AGAIN: Duration = Duration::from_secs(15);
/// How long the ledger may take to take a record.
const SUBMIT_TIMEOUT: Duration = Duration::from_secs(2);
/// How often the thread looks whether it is to end.
const LOOK: Duration = Duration::from_secs(1);

/// What is heard and told.
#[derive(Debug)]
pub struct Gossip {
    device: DeviceId,
    ledger: Arc<Ledger>,
    alarms: Arc<Alarms>,
    peers: Arc<Peers>,
    news: SyncSender<Vec<u8>>,
    queue: Mutex<Receiver<Vec<u8>>>,
}

impl Gossip {
    /// Nothing heard yet.
    pub fn new(device: DeviceId, ledger: Arc<Ledger>, peers: Arc<Peers>) -> Self {
        let (news, queue) = sync_channel(QUEUE_MAX);
        Self { device, alarms: ledger.alarms().clone(), ledger, peers, news, queue: Mutex::new(queue) }
    }

    /// Takes an entry that was heard from a peer or an administrator, and acts upon it at once.
    ///
    /// # Errors
    /// [`AlarmError`]: it is not one that takes effect on sight.
    pub fn hear(&self, entry: &[u8]) -> Result<(), AlarmError> {
        let tip = self.ledger.replica().tip();
        if let Some(device) = self.alarms.hear(&tip, entry)? {
            tracing::warn!(device = %device, name = tip.device_name(&device), "a device is banned, before the ledger contains it");
            // A full queue is no loss: what is not in the ledger is told again.
            let _ = self.news.try_send(entry.to_vec());
        }
        Ok(())
    }

    /// Answers a peer that told us.
    pub fn heard(&self, entry: &[u8]) -> Reply {
        match self.hear(entry) {
            // The teller is behind, or we know it already: nothing to do.
            Ok(()) | Err(AlarmError::NotOnSight(NotOnSight::Banned | NotOnSight::Lifted)) => Reply::Noted,
            Err(error) => {
                Reply::Refused(Refused::new(Cause::Denied, error.to_string(), self.ledger.replica().tip().head()))
            }
        }
    }

    /// Tells others, until `stop`; calls `acted` after each piece of news. The body of a thread.
    pub fn pass_on(&self, stop: impl Fn() -> bool, acted: impl Fn()) {
        let queue = self.queue.lock().unwrap_or_else(PoisonError::into_inner);
        let mut told = Instant::now();
        while !stop() {
            match queue.recv_timeout(LOOK) {
                Ok(entry) => {
                    acted();
                    self.tell(&entry);
                }
                Err(RecvTimeoutError::Timeout) if told.elapsed() >= TELL_AGAIN => {
                    told = Instant::now();
                    self.alarms.settle(&self.ledger.replica().tip());
                    self.alarms.entries().iter().for_each(|entry| self.tell(entry));
                }
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return,
            }
        }
    }

    fn tell(&self, entry: &[u8]) {
        let view = self.ledger.view();
        let mut exchange = Exchange::new(&self.peers);
        for device in view.effective.devices.keys().filter(|d| **d != self.device && view.member(d).is_some()) {
            let alarm = Alarm { entry: entry.to_vec() };
            exchange.ask(*device, Box::new(move |_| Ok(Ask::Alarm(alarm.clone()))));
        }
        let deadline = Instant::now() + TELL_TIMEOUT;
        while exchange.pending() > 0 && exchange.wait(deadline, |_, _| ()) {}
        if let Err(error) = self.ledger.replica().submit(entry, SUBMIT_TIMEOUT) {
            tracing::info!(%error, "the ledger has not taken a ban yet");
        }
    }
}
