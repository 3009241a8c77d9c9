//! As a witness, judges what attested devices state on the ledger, and alerts when something is wrong.
//!
//! Only what is newest counts: a device's newest delegation and generation. So a start needs no memory of what was judged before, and judges
//! each device once; while the agent runs a device is judged again only when something about it changed.

use super::evidence::{self, Finding};
use crate::node::directory::Ledger;
use crate::node::identity::Records;
use mayfly_ledger_client::with_cause;
use mayfly_protocol::record::{Alert, AlertKind, DeviceRole, Registers};
use mayfly_protocol::state::Device;
use mayfly_protocol::{DeviceId, Record, State};
use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Longest time between two looks.
const LOOK: Duration = Duration::from_secs(1);
/// The first witness waits so long, the next one so much longer: one alert is enough.
const TURN: Duration = Duration::from_secs(3);
/// How long a record may take that would put a thing right.
const HEAL: Duration = Duration::from_secs(20);
/// How long the ledger may take to take an alert.
const POST_TIMEOUT: Duration = Duration::from_secs(10);
/// Pause after an alert that the ledger did not take.
const AGAIN: Duration = Duration::from_secs(30);

/// One witness's watch over all others.
#[derive(Debug)]
pub struct Watch {
    device: DeviceId,
    ledger: Arc<Ledger>,
    records: Arc<Records>,
}

/// What was judged last, and what came of it.
pub(in crate::node) type Judged = HashMap<DeviceId, (Device, Option<Registers>, Vec<Finding>)>;

impl Watch {
    /// Of this device.
    pub fn new(device: DeviceId, ledger: Arc<Ledger>, records: Arc<Records>) -> Watch {
        Watch { device, ledger, records }
    }

    /// Watches until `stop` (which pauses so long). The body of a thread.
    pub fn keep(&self, stop: impl Fn(Duration) -> bool) {
        let mut judged = Judged::new();
        let mut due: HashMap<(DeviceId, Finding), Instant> = HashMap::new();
        while !stop(LOOK) {
            let view = self.ledger.view();
            let state = &view.effective;
            if !view.member(&self.device).is_some_and(|d| d.has_role(DeviceRole::Witness)) {
                due.clear();
                continue;
            }
            let found = look(state, &self.device, &mut judged);
            due.retain(|finding, _| found.contains(finding));
            let now = Instant::now();
            for finding in found {
                let rank = rank(state, &self.device, &finding.0);
                let heal = if finding.1.may_heal { HEAL } else { Duration::ZERO };
                let at = due.entry(finding.clone()).or_insert_with(|| now + heal + TURN * rank);
                if *at <= now {
                    *at = now + AGAIN;
                    self.alert(finding.0, finding.1);
                }
            }
        }
    }

    fn alert(&self, about: DeviceId, finding: Finding) {
        tracing::warn!(device = %about, what = ?finding.what, text = finding.text, "something is wrong with a device");
        let record = Record::Alert(Alert { about, what: finding.what, text: finding.text });
        if let Err(error) = self.records.post(&record, POST_TIMEOUT) {
            tracing::warn!(device = %about, error = with_cause(&error), "an alert is not on the ledger yet");
        }
    }
}

/// What is wrong with other devices, as far as no witness has said it already.
pub(in crate::node) fn look(state: &State, us: &DeviceId, judged: &mut Judged) -> Vec<(DeviceId, Finding)> {
    judged.retain(|id, _| state.devices.contains_key(id));
    let mut found = Vec::new();
    for (id, device) in state.devices.iter().filter(|(id, d)| *id != us && d.chip.is_some()) {
        let registers = state.attested_registers(id);
        let known = judged.get(id).is_some_and(|(d, r, _)| d == device && *r == registers);
        if !known {
            judged.insert(*id, (device.clone(), registers, evidence::judge(state, id)));
        }
        let findings = judged.get(id).map(|(.., findings)| findings.as_slice()).unwrap_or_default();
        found.extend(findings.iter().filter(|f| !is_said(state, id, f.what)).map(|f| (*id, f.clone())));
    }
    found
}

fn is_said(state: &State, about: &DeviceId, what: AlertKind) -> bool {
    let witnesses = state.active_witnesses();
    state.alerts_about(about).any(|((_, said, author), _)| *said == what && witnesses.contains(author))
}

/// Which turn a witness has.
fn rank(state: &State, us: &DeviceId, about: &DeviceId) -> u32 {
    let before = state.active_witnesses().into_iter().filter(|w| w != about && w < us).count();
    u32::try_from(before).unwrap_or(u32::MAX).min(16)
}
