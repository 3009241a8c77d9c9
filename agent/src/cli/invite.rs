//! `mayfly invite`: a one-time join token for one device.

use super::admin::{Administrator, Signing};
use super::announce::{Announcer, field, moment};
use super::value;
use crate::join_token::JoinToken;
use anyhow::{Context, Result, ensure};
use clap::Args;
use mayfly_crypto::sign::Ed25519Secret;
use mayfly_protocol::record::{self, Gateway, Verifier};
use mayfly_secmem::{Secret, SecretBytes};
use serde_json::json;
use std::io::Write;
use std::time::Duration;

/// Print a one-time join token for a new device
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  mayfly invite --expires 1h --admin net/administrator.key")]
pub struct Invite {
    /// How long it may be used, at most 7d
    #[arg(long, value_name = "TIME", default_value = "24h", value_parser = value::duration)]
    expires: Duration,
    #[command(flatten)]
    signing: Signing,
}

impl Invite {
    /// Runs the command.
    pub fn run(self, out: &Announcer) -> Result<()> {
        let longest = Duration::from_millis(mayfly_protocol::apply::INVITE_MS_MAX);
        ensure!(self.expires <= longest, "an invitation is good for at most {} days", longest.as_secs() / 86_400);
        let mut administrator = Administrator::open(&self.signing)?;
        let not_after_ms = administrator.now_ms().saturating_add(u64::try_from(self.expires.as_millis())?);
        let token = make(&mut administrator, self.expires)?.encode()?;
        // The token is a secret that people are meant to see: it goes from locked memory to standard output, once.
        let text = std::str::from_utf8(token.expose()).context("a join token is ASCII")?;
        if out.is_json() {
            out.result(&json!({"token": text, "not_after_ms": not_after_ms}), |v| field(v, "token"))?;
        } else {
            writeln!(std::io::stdout(), "{text}").context("cannot print the token")?;
            // Not on standard output: scripts take the token from there.
            eprintln!("good for one device, until {}", moment(not_after_ms));
            eprintln!(
                "  next, on the new host: mayfly join - --name NAME --advertise HOST:7411, and give it the token"
            );
        }
        Ok(())
    }
}

/// Posts an INVITE record and makes its token.
pub fn make(administrator: &mut Administrator, expires: Duration) -> Result<JoinToken> {
    let seed = Ed25519Secret::generate().context("no randomness for an invitation")?;
    let life_ms = u64::try_from(expires.as_millis()).unwrap_or(u64::MAX).min(mayfly_protocol::apply::INVITE_MS_MAX);
    let not_after_ms = administrator.now_ms().saturating_add(life_ms);
    administrator.post(record::Invite { seed_key: Verifier(seed.public()), not_after_ms })?;
    let network = administrator.network();
    let gateways =
        network.gateways.iter().map(|g| Gateway { key: Verifier(g.key), addresses: vec![g.address.clone()] });
    let copy = Secret::new_with(|slot: &mut [u8; 32]| slot.copy_from_slice(seed.seed().expose()))?;
    Ok(JoinToken { network: network.network, gateways: gateways.collect(), seed: copy })
}

/// The token's text in locked memory.
pub fn make_text(administrator: &mut Administrator, expires: Duration) -> Result<SecretBytes> {
    Ok(make(administrator, expires)?.encode()?)
}
