//! Heads of the ledger as C2SP checkpoints: a signed note by the gateway, cosigned by witnesses.
//!
//! After <https://c2sp.org/tlog-checkpoint@v1.0.0>, <https://c2sp.org/signed-note@v1.0.0> and <https://c2sp.org/tlog-cosignature>, for
//! Ed25519. Narrower than these: a checkpoint has exactly three lines (the specification advises against extension lines, which nobody
//! can audit), and one key signs a note at most once. See `docs/formats/checkpoint.md`.
//!
//! ```text
//! mayfly/<hex of the network id>
//! <tree size, decimal>
//! <root, base64>
//!
//! — mayfly/<..> <base64 of key id (4) || Ed25519 signature (64)>
//! — <witness>   <base64 of key id (4) || u64be POSIX seconds || Ed25519 signature (64)>
//! ```
//!
//! A parsed note proves nothing: only [`Note::verify_log`] and [`Note::verify_cosignature`] do. Signatures of unknown keys are carried and
//! ignored, as the specification demands; signatures are always checked over the bytes that were received.

use crate::merkle::{Hash, TREE_SIZE_MAX};
use crate::sign::{PublicKey, SIGNATURE_BYTES};
use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use sha2::{Digest, Sha256};
use std::fmt::Write;
use thiserror::Error;

/// Most bytes of a note. Room for 32 signatures, post-quantum ones (3.3 KiB in base64) among them.
pub const NOTE_BYTES_MAX: usize = 64 * 1024;
/// Most signature lines of a note (the specification asks for at least 16).
pub const SIGNATURES_MAX: usize = 32;
/// Most bytes of a key's name or an origin.
pub const NAME_BYTES_MAX: usize = 255;
/// Latest time of a cosignature: 2^63 - 1 (tlog-cosignature, "Format").
pub const COSIGNATURE_TIME_MAX: u64 = (1 << 63) - 1;

const KEY_ID_BYTES: usize = 4;
const TIMESTAMP_BYTES: usize = 8;
/// A signature line begins with an em dash and a space.
const LINE_START: &str = "\u{2014} ";

/// Why a checkpoint or a note is refused.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum NoteError {
    /// Longer than [`NOTE_BYTES_MAX`].
    #[error("note of {0} bytes is above the limit")]
    TooLong(usize),
    /// Not UTF-8, or with control characters, or without the parts of a note.
    #[error("note is malformed: {0}")]
    Malformed(&'static str),
    /// A line of the checkpoint is not as it must be.
    #[error("checkpoint is malformed: {0}")]
    BadCheckpoint(&'static str),
    /// A key's name is empty, too long, or has spaces, plus or control characters.
    #[error("name of a note's key is malformed")]
    BadName,
    /// Two signatures by one key, or more than [`SIGNATURES_MAX`].
    #[error("note has too many signatures")]
    TooManySignatures,
    /// A time beyond [`COSIGNATURE_TIME_MAX`].
    #[error("time {0} of a cosignature is above the limit")]
    BadTime(u64),
    /// No line is by the key that was asked for.
    #[error("note is not signed by {0}")]
    NotSigned(String),
    /// A line claims to be by that key and is not: refuse the whole note.
    #[error("signature of {0} on the note does not verify")]
    BadSignature(String),
}

/// What kind of key signs a line (signed-note, "Signature types").
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum SignatureType {
    /// Ed25519 over the note's text: the gateway.
    Ed25519 = 0x01,
    /// Timestamped Ed25519 cosignature: a witness.
    CosignatureV1 = 0x04,
}

/// The origin of a network's ledger: `mayfly/<lower-case hex of its id>`; also the name of its gateway's key.
#[must_use]
pub fn origin(network_id: &[u8]) -> String {
    network_id.iter().fold(String::from("mayfly/"), |mut text, byte| {
        write!(text, "{byte:02x}").expect("writing to a String cannot fail");
        text
    })
}

/// `SHA-256(name || 0x0A || type || public key)[..4]` as a big-endian number (signed-note, "Signatures").
#[must_use]
pub fn key_id(name: &str, kind: SignatureType, public: &[u8; 32]) -> u32 {
    let digest = Sha256::new().chain_update(name).chain_update([b'\n', kind as u8]).chain_update(public).finalize();
    let (id, _) = digest.split_first_chunk().expect("SHA-256 has more than four bytes");
    u32::from_be_bytes(*id)
}

/// The note text of a head, with its final newline: what the gateway signs (tlog-checkpoint, "Note text").
#[must_use]
pub fn body(origin: &str, size: u64, root: &Hash) -> String {
    format!("{origin}\n{size}\n{}\n", BASE64.encode(root))
}

/// What a witness signs: `cosignature/v1`, the time in POSIX seconds, and the note text (tlog-cosignature, "Ed25519 signed message").
///
/// A time beyond [`COSIGNATURE_TIME_MAX`] gives a message that no signature line can carry.
#[must_use]
pub fn cosignature_message(time: u64, origin: &str, size: u64, root: &Hash) -> Vec<u8> {
    cosigned_bytes(time, &body(origin, size, root))
}

fn cosigned_bytes(time: u64, body: &str) -> Vec<u8> {
    format!("cosignature/v1\ntime {time}\n{body}").into_bytes()
}

/// The head of a log: whose, how many leaves, which root.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Checkpoint {
    /// The note text, byte for byte as it was received or made.
    body: String,
    size: u64,
    root: Hash,
}

impl Checkpoint {
    /// A checkpoint of this log.
    ///
    /// # Errors
    /// [`NoteError::BadCheckpoint`] when the origin or the size is out of bounds.
    pub fn new(origin: &str, size: u64, root: &Hash) -> Result<Self, NoteError> {
        Self::parse(&body(origin, size, root))
    }

    /// Reads the three lines of a checkpoint, each ended by a newline, and nothing else.
    ///
    /// # Errors
    /// [`NoteError::BadCheckpoint`].
    pub fn parse(body: &str) -> Result<Self, NoteError> {
        let text = body.strip_suffix('\n').ok_or(NoteError::BadCheckpoint("does not end in a newline"))?;
        let mut lines = text.split('\n');
        let (Some(origin), Some(size), Some(root), None) = (lines.next(), lines.next(), lines.next(), lines.next())
        else {
            return Err(NoteError::BadCheckpoint("has other than three lines"));
        };
        if origin.is_empty() || origin.len() > NAME_BYTES_MAX || has_control(origin) {
            return Err(NoteError::BadCheckpoint("origin is empty, too long or has control characters"));
        }
        let size =
            parse_decimal(size).ok_or(NoteError::BadCheckpoint("size is not a plain decimal number in range"))?;
        let root = decode_root(root).ok_or(NoteError::BadCheckpoint("root is not 32 bytes in base64"))?;
        Ok(Self { body: body.to_owned(), size, root })
    }

    /// The note text that is signed: three lines with their newlines.
    #[must_use]
    pub fn body(&self) -> &str {
        &self.body
    }

    /// The first line, without its newline.
    #[must_use]
    pub fn origin(&self) -> &str {
        self.body.split_once('\n').map_or("", |(origin, _)| origin)
    }

    /// Leaves in the tree.
    #[must_use]
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Root of the tree.
    #[must_use]
    pub fn root(&self) -> &Hash {
        &self.root
    }
}

/// One signature of a note, by a key of a known or unknown kind.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SignatureLine {
    name: String,
    key_id: u32,
    signature: Vec<u8>,
}

impl SignatureLine {
    /// The gateway's line: an Ed25519 signature over [`Checkpoint::body`].
    ///
    /// # Errors
    /// [`NoteError::BadName`].
    pub fn ed25519(name: &str, public: &[u8; 32], signature: &[u8; SIGNATURE_BYTES]) -> Result<Self, NoteError> {
        check_name(name)?;
        let key_id = key_id(name, SignatureType::Ed25519, public);
        Ok(Self { name: name.to_owned(), key_id, signature: signature.to_vec() })
    }

    /// A witness's line: an Ed25519 signature over [`cosignature_message`] of the same `time`.
    ///
    /// # Errors
    /// [`NoteError::BadName`], [`NoteError::BadTime`].
    pub fn cosignature_v1(
        name: &str,
        public: &[u8; 32],
        time: u64,
        signature: &[u8; SIGNATURE_BYTES],
    ) -> Result<Self, NoteError> {
        check_name(name)?;
        if time > COSIGNATURE_TIME_MAX {
            return Err(NoteError::BadTime(time));
        }
        let key_id = key_id(name, SignatureType::CosignatureV1, public);
        let signature = [time.to_be_bytes().as_slice(), signature].concat();
        Ok(Self { name: name.to_owned(), key_id, signature })
    }

    /// Name of the key.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Short id of the key; see [`key_id`].
    #[must_use]
    pub fn key_id(&self) -> u32 {
        self.key_id
    }

    /// The line with its newline.
    #[must_use]
    pub fn encode(&self) -> String {
        let bytes = [self.key_id.to_be_bytes().as_slice(), &self.signature].concat();
        format!("{LINE_START}{} {}\n", self.name, BASE64.encode(bytes))
    }

    /// Reads one line with its newline.
    ///
    /// # Errors
    /// [`NoteError::Malformed`], [`NoteError::BadName`].
    pub fn parse(line: &str) -> Result<Self, NoteError> {
        let bad = NoteError::Malformed("a signature line is not of the form '— name base64'");
        let Some(line) = line.strip_suffix('\n').and_then(|line| line.strip_prefix(LINE_START)) else {
            return Err(bad);
        };
        let Some((name, encoded)) = line.split_once(' ') else {
            return Err(bad);
        };
        check_name(name)?;
        let Ok(bytes) = BASE64.decode(encoded) else {
            return Err(bad);
        };
        match bytes.split_first_chunk::<KEY_ID_BYTES>() {
            Some((key_id, signature)) if !signature.is_empty() => {
                Ok(Self { name: name.to_owned(), key_id: u32::from_be_bytes(*key_id), signature: signature.to_vec() })
            }
            _ => Err(bad),
        }
    }

    fn is_by(&self, name: &str, key_id: u32) -> bool {
        self.name == name && self.key_id == key_id
    }
}

/// A checkpoint with its signatures.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Note {
    checkpoint: Checkpoint,
    lines: Vec<SignatureLine>,
}

impl Note {
    /// A note without signatures yet.
    #[must_use]
    pub fn new(checkpoint: Checkpoint) -> Self {
        Self { checkpoint, lines: Vec::new() }
    }

    /// Reads a signed note whose text is a checkpoint. Signatures are not verified.
    ///
    /// # Errors
    /// [`NoteError`] for whatever is out of form or bounds; a note without signatures is none.
    pub fn parse(note: &[u8]) -> Result<Self, NoteError> {
        if note.len() > NOTE_BYTES_MAX {
            return Err(NoteError::TooLong(note.len()));
        }
        let text = str::from_utf8(note).map_err(|_| NoteError::Malformed("is not UTF-8"))?;
        if text.chars().any(|c| c < ' ' && c != '\n') {
            return Err(NoteError::Malformed("has control characters"));
        }
        // The last empty line separates the text, which keeps its own final newline, from the signatures.
        let split = text.rfind("\n\n").ok_or(NoteError::Malformed("has no empty line"))?;
        let (body, signatures) = (&text[..split + 1], &text[split + 2..]);
        if signatures.is_empty() {
            return Err(NoteError::Malformed("has no signatures"));
        }
        let mut parsed = Self::new(Checkpoint::parse(body)?);
        for line in signatures.split_inclusive('\n') {
            parsed.push(SignatureLine::parse(line)?)?;
        }
        Ok(parsed)
    }

    /// Adds a signature.
    ///
    /// # Errors
    /// [`NoteError::TooManySignatures`] when the same key signed already, or above [`SIGNATURES_MAX`].
    pub fn push(&mut self, line: SignatureLine) -> Result<(), NoteError> {
        let repeated = self.lines.iter().any(|other| other.is_by(&line.name, line.key_id));
        if repeated || self.lines.len() == SIGNATURES_MAX {
            return Err(NoteError::TooManySignatures);
        }
        self.lines.push(line);
        Ok(())
    }

    /// What is signed.
    #[must_use]
    pub fn checkpoint(&self) -> &Checkpoint {
        &self.checkpoint
    }

    /// The signatures, unverified.
    #[must_use]
    pub fn lines(&self) -> &[SignatureLine] {
        &self.lines
    }

    /// The whole note as text.
    #[must_use]
    pub fn encode(&self) -> String {
        let lines = self.lines.iter().map(SignatureLine::encode).collect::<String>();
        format!("{}\n{lines}", self.checkpoint.body())
    }

    /// Checks the signature of the log's key (type 0x01).
    ///
    /// # Errors
    /// [`NoteError::NotSigned`] when there is none, [`NoteError::BadSignature`] when it is wrong.
    pub fn verify_log(&self, name: &str, public: &[u8; 32]) -> Result<(), NoteError> {
        let signature = self.signature_of(name, SignatureType::Ed25519, public)?;
        verify(name, public, self.checkpoint.body().as_bytes(), signature)
    }

    /// Checks a witness's cosignature (type 0x04) and gives its time in POSIX seconds. Whether the time is acceptable is up to the caller.
    ///
    /// # Errors
    /// [`NoteError::NotSigned`] when there is none, [`NoteError::BadSignature`] when it is wrong, [`NoteError::BadTime`].
    pub fn verify_cosignature(&self, name: &str, public: &[u8; 32]) -> Result<u64, NoteError> {
        let signature = self.signature_of(name, SignatureType::CosignatureV1, public)?;
        let Some((time, signature)) = signature.split_first_chunk::<TIMESTAMP_BYTES>() else {
            return Err(NoteError::BadSignature(name.to_owned()));
        };
        let time = u64::from_be_bytes(*time);
        if time > COSIGNATURE_TIME_MAX {
            return Err(NoteError::BadTime(time));
        }
        let message = cosigned_bytes(time, self.checkpoint.body());
        verify(name, public, &message, signature)?;
        Ok(time)
    }

    fn signature_of(&self, name: &str, kind: SignatureType, public: &[u8; 32]) -> Result<&[u8], NoteError> {
        let key_id = key_id(name, kind, public);
        let line = self.lines.iter().find(|line| line.is_by(name, key_id));
        line.map(|line| line.signature.as_slice()).ok_or_else(|| NoteError::NotSigned(name.to_owned()))
    }
}

fn verify(name: &str, public: &[u8; 32], message: &[u8], signature: &[u8]) -> Result<(), NoteError> {
    let verified = PublicKey::Ed25519(*public).verify(message, signature);
    verified.map_err(|_| NoteError::BadSignature(name.to_owned()))
}

fn has_control(text: &str) -> bool {
    text.chars().any(|c| c < ' ')
}

fn check_name(name: &str) -> Result<(), NoteError> {
    let bad = |c: char| c.is_whitespace() || c == '+' || c < ' ';
    if name.is_empty() || name.len() > NAME_BYTES_MAX || name.chars().any(bad) {
        return Err(NoteError::BadName);
    }
    Ok(())
}

/// A decimal number without sign or leading zeroes, up to [`TREE_SIZE_MAX`].
fn parse_decimal(text: &str) -> Option<u64> {
    let plain = text.bytes().all(|byte| byte.is_ascii_digit()) && (text == "0" || !text.starts_with('0'));
    let size = if plain {
        text.parse().ok()?
    } else {
        return None;
    };
    (size <= TREE_SIZE_MAX).then_some(size)
}

fn decode_root(text: &str) -> Option<Hash> {
    // 32 bytes are 44 characters: nothing longer is decoded.
    if text.len() != 44 {
        return None;
    }
    BASE64.decode(text).ok()?.try_into().ok()
}

#[cfg(test)]
mod tests;
