//! A small ledger for unit tests: an administrator, devices, a gateway's key, and the entries that they sign. Panics where a test is wrong.
#![expect(clippy::unwrap_used, reason = "compiled for tests only")]

use crate::chain::Chain;
use crate::replica::SignerError;
use crate::witness::Cosigner;
use mayfly_crypto::checkpoint::{Note, SignatureLine};
use mayfly_crypto::sign::{Ed25519Secret, PublicKey};
use mayfly_protocol::entry::VERSION;
use mayfly_protocol::head::{self, Cosignature};
use mayfly_protocol::ids::public_key_id;
use mayfly_protocol::record::{self, DeviceRole, Record, Verifier};
use mayfly_protocol::sync::{Bundle, WitnessedHead};
use mayfly_protocol::{AuthorId, DeviceId, Entry, Head, InviteId, NetworkId, State};

/// Time of the first entry.
pub const START_MS: u64 = 1_700_000_000_000;
/// Bound of the network's policy.
pub const SKEW_MS: u64 = 10_000;

/// The ledger.
pub struct Ledger {
    /// The one administrator.
    pub admin: Ed25519Secret,
    /// The one gateway.
    pub gateway: Ed25519Secret,
    /// The first entry.
    pub genesis: Vec<u8>,
    /// Zeros before [`Ledger::start`].
    pub network: NetworkId,
    /// Everything so far.
    pub state: State,
    /// Time of the newest bundle; each one is a millisecond later.
    pub time_ms: u64,
}

/// A device.
pub struct Device {
    /// Identity key.
    pub identity: Ed25519Secret,
    /// Session key.
    pub session: Ed25519Secret,
}

impl Device {
    /// Its id.
    pub fn id(&self) -> DeviceId {
        DeviceId(public_key_id(&self.identity.public()))
    }

    /// Its cosignature.
    pub fn cosign(&self, network: &NetworkId, head: &Head, time_ms: u64) -> Cosignature {
        let signature = self.session.sign(&Cosignature::message(network, head, time_ms)).to_vec();
        Cosignature { witness: self.id(), time_ms, signature }
    }
}

impl Cosigner for Device {
    fn device(&self) -> DeviceId {
        self.id()
    }

    fn key(&self) -> Option<PublicKey> {
        Some(self.session.public())
    }

    fn sign(&self, message: &[u8]) -> Result<Vec<u8>, SignerError> {
        Ok(self.session.sign(message).to_vec())
    }
}

fn token(label: &str) -> record::Token {
    let mut id = [0; 32];
    id[..label.len()].copy_from_slice(label.as_bytes());
    record::Token {
        id: mayfly_protocol::TokenId(id),
        label: label.into(),
        devices: vec![],
        creators: vec![],
        allow: vec![],
    }
}

fn key() -> Ed25519Secret {
    Ed25519Secret::generate().unwrap()
}

impl Ledger {
    /// A ledger without entries.
    #[expect(clippy::new_without_default, reason = "random keys are no default")]
    pub fn new() -> Ledger {
        let (admin, gateway) = (key(), key());
        let mut ledger = Ledger {
            admin,
            gateway,
            genesis: Vec::new(),
            network: NetworkId::default(),
            state: State::default(),
            time_ms: START_MS,
        };
        let genesis = record::Genesis {
            name: "test".into(),
            created_ms: START_MS,
            administrators: vec![record::Administrator { name: "root".into(), key: Verifier(ledger.admin.public()) }],
            administrators_needed: 1,
            gateways: vec![record::Gateway { key: Verifier(ledger.gateway.public()), addresses: vec![] }],
            policy: record::NetworkPolicy {
                head_age_ms_max: 60_000,
                skew_ms_max: SKEW_MS,
                members_join_unapproved: true,
                dev: true,
                unattested: true,
            },
            nonce: [3; 32],
        };
        ledger.genesis = ledger.sign(&genesis.into(), public_key_id(&ledger.admin.public()), &[&ledger.admin]);
        ledger
    }

    /// The genesis entry as a bundle, applied.
    pub fn start(&mut self) -> Bundle {
        let genesis = self.genesis.clone();
        let bundle = self.bundle(vec![genesis]);
        self.network = self.state.network;
        bundle
    }

    fn sign(&self, record: &Record, author: [u8; 32], signers: &[&Ed25519Secret]) -> Vec<u8> {
        let author = AuthorId(author);
        let (author_seq, author_prev) = self.state.author_next(&author);
        let mut entry = Entry {
            version: VERSION,
            network: self.network,
            kind: record.kind() as u16,
            author,
            author_seq,
            author_prev,
            head: if self.state.size() == 0 { Head::default() } else { self.state.head() },
            payload: record.encode(),
            signatures: vec![],
        };
        for signer in signers {
            entry.sign_with(&signer.public(), |m| Ok::<_, SignerError>(signer.sign(m).to_vec())).unwrap();
        }
        entry.encode()
    }

    /// A bundle of these entries, applied.
    pub fn bundle(&mut self, entries: Vec<Vec<u8>>) -> Bundle {
        let first = self.state.size();
        self.time_ms += 1;
        entries.iter().for_each(|entry| drop(self.state.apply(self.time_ms, entry).unwrap()));
        Bundle { first, time_ms: self.time_ms, entries: entries.into_iter().map(Into::into).collect() }
    }

    /// A record of the administrator's, in a bundle of its own.
    pub fn post(&mut self, record: impl Into<Record>) -> Bundle {
        let entry = self.sign(&record.into(), public_key_id(&self.admin.public()), &[&self.admin]);
        self.bundle(vec![entry])
    }

    /// A record that can be posted any number of times.
    pub fn token(&mut self, label: &str) -> Bundle {
        self.post(token(label))
    }

    /// The same by a device, with its session key; not applied.
    pub fn token_of(&self, device: &Device, label: &str) -> Vec<u8> {
        self.sign(&token(label).into(), device.id().0, &[&device.session])
    }

    /// A device joins and delegates a session key: three bundles.
    pub fn device(&mut self, name: &str) -> (Device, Vec<Bundle>) {
        let device = Device { identity: key(), session: key() };
        let seed = key();
        let not_after_ms = self.time_ms + 3_600_000;
        let invited = self.post(record::Invite { seed_key: Verifier(seed.public()), not_after_ms });
        let join = record::Join {
            name: name.into(),
            identity: Verifier(device.identity.public()),
            invite: InviteId(public_key_id(&seed.public())),
            vault: "file".into(),
            software_only: true,
        };
        let entry = self.sign(&join.into(), device.id().0, &[&device.identity, &seed]);
        let joined = self.bundle(vec![entry]);
        let delegate = record::Delegate {
            session_key: Verifier(device.session.public()),
            start_counter: 1,
            vault_generation: 1,
            not_after_ms,
            addresses: vec![],
            quote: None,
        };
        let entry = self.sign(&delegate.into(), device.id().0, &[&device.identity, &device.session]);
        let delegated = self.bundle(vec![entry]);
        (device, vec![invited, joined, delegated])
    }

    /// The device becomes a witness, or is none any more.
    pub fn witness(&mut self, device: &Device, is_witness: bool) -> Bundle {
        let roles = if is_witness { vec![DeviceRole::Witness] } else { vec![] };
        self.post(record::Role { device: device.id(), roles })
    }

    /// The head.
    pub fn head(&self) -> Head {
        self.state.head()
    }

    /// The gateway's note of a head.
    pub fn note(&self, head: &Head) -> Vec<u8> {
        note(&self.gateway, &self.network, head, None)
    }

    /// The gateway's bookmark of a head.
    pub fn bookmark(&self, head: &Head, time_ms: u64) -> Vec<u8> {
        note(&self.gateway, &self.network, head, Some(time_ms))
    }

    /// A head with these cosignatures.
    pub fn witnessed(&self, head: &Head, by: &[&Device]) -> WitnessedHead {
        let cosignatures = by.iter().map(|d| d.cosign(&self.network, head, self.time_ms)).collect();
        WitnessedHead { note: self.note(head), cosignatures }
    }
}

/// A note signed by `gateway`; with a time it is a bookmark.
pub fn note(gateway: &Ed25519Secret, network: &NetworkId, head: &Head, time_ms: Option<u64>) -> Vec<u8> {
    let (checkpoint, name) = (head.checkpoint(network), head::origin(network));
    let signature = gateway.sign(checkpoint.body().as_bytes());
    let mut note = Note::new(checkpoint);
    note.push(SignatureLine::ed25519(&name, gateway.public_bytes(), &signature).unwrap()).unwrap();
    if let Some(time_ms) = time_ms {
        let signature = gateway.sign(&Cosignature::message(network, head, time_ms));
        let public = gateway.public_bytes();
        note.push(SignatureLine::cosignature_v1(&name, public, time_ms / 1000, &signature).unwrap()).unwrap();
    }
    note.encode().into_bytes()
}

/// A chain that has taken these bundles.
pub fn chain(network: NetworkId, bundles: &[Bundle]) -> Chain {
    let mut chain = Chain::new(network);
    bundles.iter().for_each(|b| chain.extend(b).unwrap());
    chain
}
