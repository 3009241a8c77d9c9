//! Tickets: the agent's sealed word about one process, which that process carries from connection to connection.
//!
//! A ticket is bound to uid, pid, start time and boot; it opens for no other process. It names one application of that process, which its
//! further connections join, and lets logins go on after the agent was restarted. A ticket of this very run never brings back an
//! application that has ended: closing the last connection logs out, whatever tickets are about.
//!
//! `nonce || AES-256-GCM-SIV(key of the agent, AAD = process, instance || number || logins) || tag`, at most 256 bytes.

use mayfly_crypto::{enc, wrap};
use mayfly_protocol::TokenId;
use mayfly_secmem::Secret;
use mayfly_wire::TICKET_BYTES_MAX;

use super::applications::{Identity, Login, LoginUser};

/// Logins that a ticket carries; an application that is logged in to more tokens loses the rest when the agent restarts.
pub const LOGINS_MAX: usize = 5;

const LABEL: &str = "mayfly/v1/app-ticket";
const LOGIN_BYTES: usize = 32 + 1 + Login::MARK_BYTES;
const _: () = assert!(wrap::OVERHEAD_BYTES + 16 + LOGINS_MAX * LOGIN_BYTES <= TICKET_BYTES_MAX);

/// What makes and opens tickets.
#[derive(Debug)]
pub struct Tickets {
    key: Secret<32>,
    boot: String,
    /// This run of the agent.
    pub instance: u64,
}

/// Which application a ticket speaks of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Name {
    /// The run of the agent that made it.
    pub instance: u64,
    /// The application's number in that run.
    pub number: u64,
}

/// What a ticket says.
#[derive(Debug, PartialEq, Eq)]
pub struct Opened {
    /// The application.
    pub name: Name,
    /// Logins at that time.
    pub logins: Vec<(TokenId, Login)>,
}

impl Tickets {
    /// With a key that outlives the agent, or a fresh one.
    ///
    /// # Errors
    /// No secret memory, or no randomness.
    pub fn new(key: Option<Secret<32>>) -> Result<Self, mayfly_secmem::RandomError> {
        let key = match key {
            Some(key) => key,
            None => Secret::try_new_with(|bytes| mayfly_secmem::random(bytes))?,
        };
        let mut instance = [0; 8];
        mayfly_secmem::random(&mut instance)?;
        let boot = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
        Ok(Self { key, boot, instance: u64::from_le_bytes(instance) })
    }

    /// A ticket for an application of the process. Empty if it cannot be made: the application then stays without one.
    pub fn make<'l>(
        &self,
        identity: Identity,
        name: Name,
        logins: impl Iterator<Item = (&'l TokenId, &'l Login)>,
    ) -> Vec<u8> {
        let mut text = [name.instance.to_le_bytes(), name.number.to_le_bytes()].concat();
        for (token, login) in logins.take(LOGINS_MAX) {
            text.extend_from_slice(token.as_bytes());
            text.push(login.user as u8);
            text.extend_from_slice(&login.mark);
        }
        wrap::seal(&self.key, &self.process(identity), &text).unwrap_or_default()
    }

    /// Opens a ticket of this process. `None`: it is of another, or no ticket.
    pub fn open(&self, identity: Identity, ticket: &[u8]) -> Option<Opened> {
        if ticket.len() > TICKET_BYTES_MAX {
            return None;
        }
        let text = wrap::open(&self.key, &self.process(identity), ticket).ok()?;
        let (instance, rest) = text.expose().split_first_chunk()?;
        let (number, logins) = rest.split_first_chunk()?;
        let name = Name { instance: u64::from_le_bytes(*instance), number: u64::from_le_bytes(*number) };
        let logins = logins.chunks_exact(LOGIN_BYTES).filter_map(|login| {
            let (token, rest) = login.split_first_chunk()?;
            let (user, mark) = rest.split_first()?;
            Some((TokenId(*token), Login { user: LoginUser::from_byte(*user)?, mark: mark.try_into().ok()? }))
        });
        Some(Opened { name, logins: logins.collect() })
    }

    fn process(&self, identity: Identity) -> Vec<u8> {
        let Identity { uid, pid, start } = identity;
        enc::enc(LABEL, &[&uid.to_be_bytes(), &pid.to_be_bytes(), &start.to_be_bytes(), self.boot.trim().as_bytes()])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PROCESS: Identity = Identity { uid: 1000, pid: 77, start: 123 };

    fn login(user: LoginUser) -> Login {
        Login { user, mark: [7; Login::MARK_BYTES] }
    }

    #[test]
    fn a_ticket_opens_for_its_process_only() {
        let tickets = Tickets::new(None).unwrap();
        let logins =
            [(TokenId([1; 32]), login(LoginUser::User)), (TokenId([2; 32]), login(LoginUser::SecurityOfficer))];
        let name = Name { instance: tickets.instance, number: 3 };
        let ticket = tickets.make(PROCESS, name, logins.iter().map(|(token, login)| (token, login)));
        let opened = Opened { name, logins: logins.to_vec() };
        assert_eq!(tickets.open(PROCESS, &ticket), Some(opened));
        for other in
            [Identity { uid: 0, ..PROCESS }, Identity { pid: 78, ..PROCESS }, Identity { start: 124, ..PROCESS }]
        {
            assert_eq!(tickets.open(other, &ticket), None, "{other:?}");
        }
        assert_eq!(Tickets::new(None).unwrap().open(PROCESS, &ticket), None, "another agent's");
        for changed in 0..ticket.len() {
            let mut bad = ticket.clone();
            bad[changed] ^= 1;
            assert_eq!(tickets.open(PROCESS, &bad), None, "byte {changed}");
        }
        for garbage in [&b""[..], b"ticket", &[0; TICKET_BYTES_MAX], &[0; 4096]] {
            assert_eq!(tickets.open(PROCESS, garbage), None);
        }
    }

    #[test]
    fn a_ticket_has_a_bounded_length() {
        let tickets = Tickets::new(None).unwrap();
        let logins: Vec<_> = (0..20).map(|n| (TokenId([n; 32]), login(LoginUser::User))).collect();
        let name = Name { instance: 1, number: u64::MAX };
        let ticket = tickets.make(PROCESS, name, logins.iter().map(|(token, login)| (token, login)));
        assert!(ticket.len() <= TICKET_BYTES_MAX);
        assert_eq!(tickets.open(PROCESS, &ticket).unwrap().logins.len(), LOGINS_MAX);
    }
}
