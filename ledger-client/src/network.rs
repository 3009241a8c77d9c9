//! `network.toml`: what a program must be given to find a network and to recognise it.
//!
//! ```toml
//! network = "64 hexadecimal digits"
//! genesis = "base64 of the first entry"
//!
//! [[gateway]]
//! address = "ledger.example:7440"
//! key = "01 and 64 hexadecimal digits: algorithm byte and Ed25519 public key"
//! ```

use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use mayfly_crypto::sign::{Alg, PublicKey};
use mayfly_protocol::record::ADDRESS_BYTES_MAX;
use mayfly_protocol::{Entry, NetworkId, Refusal, State};
use serde::{Deserialize, Serialize};

/// Most bytes of the file.
pub const FILE_BYTES_MAX: usize = 256 * 1024;
/// Most gateways in the file.
pub const GATEWAYS_MAX: usize = 16;

/// A gateway as a client knows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GatewayAddress {
    /// `host:port`.
    pub address: String,
    /// Ed25519 key that its TLS must prove, and that signs its heads.
    pub key: PublicKey,
}

/// The contents of `network.toml`, checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NetworkFile {
    /// The network: the id of its genesis entry.
    pub network: NetworkId,
    /// The genesis entry.
    pub genesis: Vec<u8>,
    /// Gateways, at least one.
    pub gateways: Vec<GatewayAddress>,
}

/// Why a `network.toml` is refused.
#[derive(Debug, thiserror::Error)]
pub enum NetworkFileError {
    /// Not TOML of this form.
    #[error("network file is malformed")]
    Toml(#[from] toml::de::Error),
    /// Longer than `FILE_BYTES_MAX`.
    #[error("network file of {0} bytes is longer than {FILE_BYTES_MAX}")]
    TooLong(usize),
    /// A field does not hold what it should.
    #[error("network file: {0}")]
    Field(&'static str),
    /// The genesis entry does not stand as a first record.
    #[error("network file: the genesis entry is not valid")]
    Genesis(#[from] Refusal),
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawFile {
    network: String,
    genesis: String,
    #[serde(default)]
    gateway: Vec<RawGateway>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawGateway {
    address: String,
    key: String,
}

impl NetworkFile {
    /// Reads the file's text; the genesis entry is verified and must be the network's.
    ///
    /// # Errors
    /// [`NetworkFileError`], naming the field.
    pub fn parse(text: &str) -> Result<NetworkFile, NetworkFileError> {
        if text.len() > FILE_BYTES_MAX {
            return Err(NetworkFileError::TooLong(text.len()));
        }
        let raw: RawFile = toml::from_str(text)?;
        let network =
            raw.network.parse().map_err(|_| NetworkFileError::Field("network is not 64 hexadecimal digits"))?;
        let genesis = BASE64.decode(raw.genesis).map_err(|_| NetworkFileError::Field("genesis is not base64"))?;
        let gateways = raw.gateway.into_iter().map(RawGateway::check).collect::<Result<Vec<_>, _>>()?;
        let file = NetworkFile { network, genesis, gateways };
        file.check()?;
        Ok(file)
    }

    /// The text that [`NetworkFile::parse`] reads.
    pub fn to_toml(&self) -> String {
        let raw = RawFile {
            network: self.network.to_string(),
            genesis: BASE64.encode(&self.genesis),
            gateway: self
                .gateways
                .iter()
                .map(|g| RawGateway { address: g.address.clone(), key: hex::encode(g.key.to_bytes()) })
                .collect(),
        };
        toml::to_string(&raw).expect("strings and tables are always TOML")
    }

    fn check(&self) -> Result<(), NetworkFileError> {
        if !(1..=GATEWAYS_MAX).contains(&self.gateways.len()) {
            return Err(NetworkFileError::Field("one to sixteen gateways are expected"));
        }
        let entry = Entry::decode(&self.genesis).map_err(Refusal::from)?;
        if entry.id().0 != self.network.0 {
            return Err(NetworkFileError::Field("genesis is the first entry of another network"));
        }
        State::default().apply(0, &self.genesis)?;
        Ok(())
    }
}

impl RawGateway {
    fn check(self) -> Result<GatewayAddress, NetworkFileError> {
        let bad_address = NetworkFileError::Field("a gateway's address is not host:port");
        let port = self.address.rsplit_once(':').and_then(|(host, port)| (!host.is_empty()).then_some(port));
        if self.address.len() > ADDRESS_BYTES_MAX || port.and_then(|p| p.parse::<u16>().ok()).is_none() {
            return Err(bad_address);
        }
        let bad_key = || NetworkFileError::Field("a gateway's key is not an Ed25519 key in hexadecimal");
        let bytes = hex::decode(&self.key).map_err(|_| bad_key())?;
        let key = PublicKey::from_bytes(&bytes).map_err(|_| bad_key())?;
        if key.alg() != Alg::Ed25519 || key.check().is_err() {
            return Err(bad_key());
        }
        Ok(GatewayAddress { address: self.address, key })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::Ledger;

    #[test]
    fn the_file_reads_back_and_odd_ones_are_refused_with_the_field() {
        let mut ledger = Ledger::new();
        ledger.start();
        let key = ledger.gateway.public();
        let file = NetworkFile {
            network: ledger.network,
            genesis: ledger.genesis.clone(),
            gateways: vec![GatewayAddress { address: "[::1]:7440".into(), key }],
        };
        let text = file.to_toml();
        assert_eq!(NetworkFile::parse(&text).unwrap(), file);
        let genesis = BASE64.encode(&ledger.genesis);
        let none = file.to_toml().split("[[gateway]]").next().unwrap().to_owned();
        for (text, expected) in [
            (text.replace("network =", "netwrok ="), "malformed"),
            (text.replace(&ledger.network.to_string(), "00"), "64 hexadecimal"),
            (text.replace(&ledger.network.to_string(), &"00".repeat(32)), "another network"),
            (text.replace(&genesis, "%%"), "base64"),
            (text.replace(&genesis, "AAAA"), "not valid"),
            (text.replace(":7440", ":74400"), "host:port"),
            (text.replace("[::1]:7440", "7440"), "host:port"),
            (text.replace(&hex::encode(key.to_bytes()), &hex::encode([2; 34])), "Ed25519"),
            (text.replace(&hex::encode(key.to_bytes()), &hex::encode([1; 33])), "Ed25519"),
            (none, "gateways"),
            ("x".repeat(FILE_BYTES_MAX + 1), "longer"),
        ] {
            let error = NetworkFile::parse(&text).unwrap_err().to_string();
            assert!(error.contains(expected), "{expected}: {error}");
        }
    }
}
