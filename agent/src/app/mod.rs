//! The application half of the agent: what PKCS#11 modules and the command line are served over the Unix socket.
//!
//! ```text
//! server ── a thread per connection ── client ─┬─ tokens       logins, PINs
//!    │                                  │      ├─ objects      finding, making, changing
//!  principal (who, by the kernel's word)│      ├─ operations   whole;  streams: in parts;  iv
//!  applications (logins, session objects)      └─ manage       JSON for the command line
//!                                       caller (what this one may see)      keys ── the node
//! ```
//!
//! | Module | Is |
//! |---|---|
//! | [`server`], [`client`] | connections and their bounds; one connection's requests |
//! | [`principal`], [`applications`], [`ticket`], [`caller`] | users; processes; what they carry along; what they may see now |
//! | [`tokens`], [`pins`], [`throttle`] | logins; PINs against verifiers; the price of wrong ones |
//! | [`quota`] | what one user's applications may hold in memory |
//! | [`objects`] | templates, attributes, the catalogue of each token |
//! | [`operations`], [`streams`], [`mechanisms`], [`iv`], [`io`], [`cpu`] | using keys |
//! | [`manage`], [`why`] | the command line's questions |
//! | [`keys`], [`desk`] | what all this needs of the node; the node, or why there is none |
//! | [`fail`], [`reply`], [`ck`], [`settings`] | refusals, answers, PKCS#11's numbers, what an operator may set |
//!
//! What must never happen here:
//! - a key's bytes, or a PIN, outside `mayfly_secmem` types: frames that can hold them are read into secret memory;
//! - an answer that depends on what a frame says about who sent it;
//! - a decision taken from a client's cache, flags or ticket that the agent could take from the ledger;
//! - a client that makes another one wait: no lock is held while a holder, the ledger or a client is waited for.

pub mod applications;
pub mod caller;
pub mod ck;
pub mod client;
pub mod cpu;
pub mod desk;
pub mod fail;
pub mod io;
pub mod iv;
pub mod keys;
pub mod manage;
pub mod mechanisms;
pub mod objects;
pub mod operations;
pub mod pins;
pub mod principal;
pub mod quota;
pub mod reply;
pub mod server;
pub mod settings;
pub mod streams;
pub mod throttle;
pub mod ticket;
pub mod tokens;
pub mod why;

pub use desk::Desk;
pub use server::serve;
pub use settings::Settings;

use std::sync::Arc;

use mayfly_secmem::{RandomError, Secret};

/// What all connections share.
pub struct App {
    /// The node.
    pub keys: Arc<dyn keys::Agent>,
    /// What the operator set.
    pub settings: Settings,
    /// Processes that have a connection.
    pub applications: Arc<applications::Applications>,
    /// What lies in the tokens.
    pub catalogues: objects::catalogue::Catalogues,
    /// Secret memory that applications hold.
    pub secrets: Arc<quota::Pot>,
    /// Ordinary memory that applications hold.
    pub memory: Arc<quota::Pot>,
    /// Wrong PINs.
    pub throttle: throttle::Gate,
    /// Last refusals.
    pub why: why::Why,
    /// What applications are told of mechanisms.
    pub mechanisms: Arc<[mayfly_wire::types::MechanismInfo]>,
    /// The agent's own user.
    pub uid: u32,
}

impl std::fmt::Debug for App {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("App").field("settings", &self.settings).finish_non_exhaustive()
    }
}

impl App {
    /// Over a node. `ticket_key` lets applications' logins go on after a restart of the agent; without it a fresh one is drawn.
    ///
    /// # Errors
    /// No secret memory, or no randomness.
    pub fn new(
        keys: Arc<dyn keys::Agent>,
        settings: Settings,
        ticket_key: Option<Secret<32>>,
    ) -> Result<Self, RandomError> {
        let (user, all) = (settings.connections.memory_per_user_mib_max, settings.connections.memory_all_mib_max);
        Ok(Self {
            secrets: quota::Pot::new("secret memory", quota::SECRET_PER_USER_MAX, quota::SECRET_ALL_MAX),
            memory: quota::Pot::new("memory", user.saturating_mul(1 << 20), all.saturating_mul(1 << 20)),
            keys,
            settings,
            applications: Arc::new(applications::Applications::new(ticket::Tickets::new(ticket_key)?)),
            catalogues: objects::catalogue::Catalogues::default(),
            throttle: throttle::Gate::default(),
            why: why::Why::default(),
            mechanisms: mechanisms::list().into(),
            uid: rustix::process::getuid().as_raw(),
        })
    }
}

#[cfg(test)]
mod testing;
#[cfg(test)]
mod tests;
