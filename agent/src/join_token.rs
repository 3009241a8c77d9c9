//! The join token: all that a new device needs to find its network and to prove that it was invited.
//!
//! `mayfly invite` prints one, `mayfly join` takes it. It holds the seed of the invitation, a secret that is good for one device and for a
//! short time; so the token is made and read in locked memory. It must never hold more than that: whoever steals an unused token can put
//! a device before the administrators for approval, and nothing else. Format page: `docs/formats/join-token.md`.

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use mayfly_crypto::sign::PublicKey;
use mayfly_protocol::NetworkId;
use mayfly_protocol::record::{ADDRESSES_MAX, Gateway};
use mayfly_secmem::{Exhausted, Secret, SecretBytes};
use minicbor::encode::write::Cursor;
use minicbor::{Decoder, Encoder};

/// What every token starts with.
pub const PREFIX: &str = "mayfly-join-";
/// Longest token in characters.
pub const TEXT_BYTES_MAX: usize = 8192;
/// Most gateways in a token.
pub const GATEWAYS_MAX: usize = 16;
/// Version of the layout.
const VERSION: u8 = 1;
/// Bytes of SHA-256 that tell a token which was cut off or mistyped from a good one.
const CHECK_BYTES: usize = 4;
/// Longest token before base64.
const BODY_BYTES_MAX: usize = (TEXT_BYTES_MAX - PREFIX.len()) / 4 * 3;

/// An invitation to one network, for one device.
#[derive(Debug)]
pub struct JoinToken {
    /// The network; also the id of its genesis entry, so that a gateway cannot pass off another network as this one.
    pub network: NetworkId,
    /// Where its ledger is served, and by which keys: nothing else is connected to.
    pub gateways: Vec<Gateway>,
    /// Ed25519 seed whose public half is in the INVITE record.
    pub seed: Secret<32>,
}

/// Why a text is not a join token.
#[derive(Debug, thiserror::Error)]
pub enum JoinTokenError {
    /// Another text.
    #[error("a join token starts with '{PREFIX}'; `mayfly invite` prints one")]
    NotAToken,
    /// Cut off, mistyped, or not from this software.
    #[error("the join token is damaged; copy it whole, from '{PREFIX}' to its last character")]
    Damaged,
    /// Written by a newer version.
    #[error("the join token has version {0}, this program knows {VERSION}; update mayfly on this host")]
    Version(u8),
    /// Too many or too long addresses to write down.
    #[error("the network's gateways do not fit into a token of {TEXT_BYTES_MAX} characters")]
    TooLarge,
    /// No locked memory left.
    #[error("no locked memory for a join token")]
    Memory(#[from] Exhausted),
}

impl JoinToken {
    /// The token as text (ASCII).
    ///
    /// # Errors
    /// [`JoinTokenError::TooLarge`], [`JoinTokenError::Memory`].
    pub fn encode(&self) -> Result<SecretBytes, JoinTokenError> {
        let mut length = 0;
        let mut body = SecretBytes::try_new_with(BODY_BYTES_MAX, |memory| {
            length = self.write_body(memory).ok_or(JoinTokenError::TooLarge)?;
            Ok::<_, JoinTokenError>(())
        })?;
        body.truncate(length);
        let mut text = SecretBytes::new_with(TEXT_BYTES_MAX, |memory| {
            let (prefix, rest) = memory.split_at_mut(PREFIX.len());
            prefix.copy_from_slice(PREFIX.as_bytes());
            length = URL_SAFE_NO_PAD.encode_slice(body.expose(), rest).unwrap_or(0);
        })?;
        text.truncate(PREFIX.len() + length);
        Ok(text)
    }

    /// Reads a token; space around it is ignored.
    ///
    /// # Errors
    /// Every variant but [`JoinTokenError::TooLarge`].
    pub fn parse(text: &[u8]) -> Result<Self, JoinTokenError> {
        let text = text.trim_ascii();
        let base64 = text.strip_prefix(PREFIX.as_bytes()).ok_or(JoinTokenError::NotAToken)?;
        if text.len() > TEXT_BYTES_MAX {
            return Err(JoinTokenError::Damaged);
        }
        let mut length = 0;
        let mut body = SecretBytes::try_new_with(base64.len(), |memory| {
            length = URL_SAFE_NO_PAD.decode_slice(base64, memory).map_err(|_| JoinTokenError::Damaged)?;
            Ok::<_, JoinTokenError>(())
        })?;
        body.truncate(length);
        let (cbor, check) = body.expose().split_last_chunk::<CHECK_BYTES>().ok_or(JoinTokenError::Damaged)?;
        if checksum(cbor) != *check {
            return Err(JoinTokenError::Damaged);
        }
        Self::read_body(cbor)
    }

    /// Deterministic CBOR and its checksum; the length, or `None` if it does not fit.
    fn write_body(&self, memory: &mut [u8]) -> Option<usize> {
        let mut to = Encoder::new(Cursor::new(&mut *memory));
        to.array(4).ok()?.u8(VERSION).ok()?.encode(self.network).ok()?;
        to.encode(&self.gateways).ok()?.bytes(self.seed.expose()).ok()?;
        let length = to.writer().position();
        let (cbor, rest) = memory.split_at_mut(length);
        rest.get_mut(..CHECK_BYTES)?.copy_from_slice(&checksum(cbor));
        Some(length + CHECK_BYTES)
    }

    fn read_body(cbor: &[u8]) -> Result<Self, JoinTokenError> {
        let mut from = Decoder::new(cbor);
        let damaged = |_| JoinTokenError::Damaged;
        if from.array().map_err(damaged)? != Some(4) {
            return Err(JoinTokenError::Damaged);
        }
        match from.u8().map_err(damaged)? {
            VERSION => {}
            other => return Err(JoinTokenError::Version(other)),
        }
        let network: NetworkId = from.decode().map_err(damaged)?;
        let gateways: Vec<Gateway> = from.decode().map_err(damaged)?;
        let seed: &[u8; 32] = from.bytes().ok().and_then(|b| b.try_into().ok()).ok_or(JoinTokenError::Damaged)?;
        let fits = |gateway: &Gateway| !gateway.addresses.is_empty() && gateway.addresses.len() <= ADDRESSES_MAX;
        let sound = |key: &PublicKey| key.check().is_ok();
        let whole = from.position() == cbor.len() && (1..=GATEWAYS_MAX).contains(&gateways.len());
        if !whole || !gateways.iter().all(|g| fits(g) && sound(&g.key.0)) {
            return Err(JoinTokenError::Damaged);
        }
        Ok(Self { network, gateways, seed: Secret::new_with(|slot| slot.copy_from_slice(seed))? })
    }
}

fn checksum(cbor: &[u8]) -> [u8; CHECK_BYTES] {
    let [a, b, c, d, ..] = mayfly_crypto::enc::sha256(cbor);
    [a, b, c, d]
}

#[cfg(test)]
mod tests {
    use super::*;
    use mayfly_crypto::sign::{Alg, Ed25519Secret};
    use mayfly_protocol::record::Verifier;

    fn token() -> JoinToken {
        let key = Ed25519Secret::from_seed(Secret::new_with(|s| s.fill(1)).unwrap()).public();
        assert_eq!(key.alg(), Alg::Ed25519);
        let gateway = Gateway { key: Verifier(key), addresses: vec!["ledger.example:7410".into()] };
        JoinToken {
            network: NetworkId([7; 32]),
            gateways: vec![gateway],
            seed: Secret::new_with(|s| s.fill(0xa5)).unwrap(),
        }
    }

    #[test]
    fn survives_the_round_trip() {
        let text = token().encode().unwrap();
        let padded = [b"\n  ", text.expose(), b"\r\n"].concat();
        let parsed = JoinToken::parse(&padded).unwrap();
        assert_eq!((parsed.network, &parsed.gateways), (token().network, &token().gateways));
        assert_eq!(parsed.seed.expose(), token().seed.expose());
    }

    #[test]
    fn any_change_is_noticed() {
        let text = token().encode().unwrap();
        for at in 0..text.len() {
            let mut changed = text.expose().to_vec();
            changed[at] = if changed[at] == b'A' { b'B' } else { b'A' };
            assert!(JoinToken::parse(&changed).is_err(), "character {at}");
            assert!(JoinToken::parse(&text.expose()[..at]).is_err(), "cut at {at}");
        }
    }

    #[test]
    fn other_texts_are_refused_with_what_to_do() {
        for (text, says) in [
            (&b""[..], "`mayfly invite`"),
            (b"hello", "`mayfly invite`"),
            (b"mayfly-join-", "copy it whole"),
            (b"mayfly-join-AAAA", "copy it whole"),
            (b"mayfly-join-\xff\xff\xff\xff", "copy it whole"),
        ] {
            let error = JoinToken::parse(text).unwrap_err().to_string();
            assert!(error.contains(says), "{error}");
        }
        let long = [PREFIX.as_bytes(), &vec![b'A'; TEXT_BYTES_MAX]].concat();
        assert!(JoinToken::parse(&long).is_err());
    }

    #[test]
    fn debug_does_not_show_the_seed() {
        assert!(!format!("{:?}", token()).to_lowercase().contains("a5a5"));
    }
}
