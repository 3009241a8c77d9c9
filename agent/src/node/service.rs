//! Answers other agents' questions.

use super::attestation::Attester;
use super::clock;
use super::directory::Ledger;
use super::gossip::Gossip;
use super::holder::Holder;
use super::peers::{Caller, Service};
use super::registers::Registers;
use mayfly_crypto::envelope::Session;
use mayfly_crypto::sign::Ed25519Secret;
use mayfly_ledger_client::with_cause;
use mayfly_protocol::DeviceId;
use mayfly_protocol::freshness::{FreshAsk, Statement, statement_message};
use mayfly_protocol::peer::{Ask, Cause, Refused, Reply, VaultPolicy};
use mayfly_protocol::record::DeviceRole;
use std::sync::Arc;

/// What answers.
#[derive(Debug)]
pub struct Answers {
    /// This device.
    pub device: DeviceId,
    /// Its session key.
    pub session: Arc<Ed25519Secret>,
    /// The ledger.
    pub ledger: Arc<Ledger>,
    /// As a holder.
    pub holder: Arc<Holder>,
    /// Alarms.
    pub gossip: Arc<Gossip>,
    /// Registers of its vault.
    pub registers: Arc<Registers>,
    /// As a witness, of chips.
    pub attester: Arc<Attester>,
}

impl Service for Answers {
    fn answer(&self, caller: &Caller, session: &mut Session, ask: Ask) -> Reply {
        match ask {
            Ask::Release(ask) => self.holder.answer_release(caller, session, &ask),
            Ask::Offer(offer) => self.holder.answer_offer(caller, session, &offer),
            Ask::Fresh(ask) => self.state(caller, &ask),
            Ask::Alarm(alarm) => self.gossip.heard(&alarm.entry),
            Ask::VaultPolicy => self.vault_policy(caller),
            Ask::Attest(ask) => self.attester.answer(caller, ask),
        }
    }
}

impl Answers {
    /// Approvers alone are told: who knows a vault's id could have registers of his own approved for it, as if they were of his vault.
    fn vault_policy(&self, caller: &Caller) -> Reply {
        let view = self.ledger.view();
        let refused = |cause, text: String| Reply::Refused(Refused::new(cause, text, view.tip.head()));
        if !view.member(&caller.device).is_some_and(|d| d.has_role(DeviceRole::PcrApprover)) {
            return refused(Cause::Denied, "only devices with role pcr-approver are told".into());
        }
        match self.registers.policy() {
            Ok(json) => Reply::VaultPolicy(VaultPolicy { json }),
            Err(error) => refused(Cause::Failed, with_cause(&error)),
        }
    }

    /// States our newest *verified* head (which we have saved, and may have cosigned), and our time.
    fn state(&self, caller: &Caller, ask: &FreshAsk) -> Reply {
        let view = self.ledger.view();
        let head = view.tip.head();
        if !view.member(&self.device).is_some_and(|d| d.has_role(DeviceRole::Witness)) {
            return Reply::Refused(Refused::new(Cause::Denied, "this device is not a witness", head));
        }
        let time_ms = clock::local_ms();
        let network = &view.effective.network;
        let message = statement_message(network, &self.device, &caller.device, &head, &ask.nonce, time_ms);
        Reply::Fresh(Statement { witness: self.device, head, time_ms, signature: self.session.sign(&message).to_vec() })
    }
}
