//! Session objects (CKA_TOKEN false): whole in the agent's secret memory, gone with their session.

use std::sync::Arc;

use mayfly_protocol::TokenId;
use mayfly_protocol::record::Attribute;
use mayfly_secmem::SecretBytes;

use super::attributes;
use crate::app::ck::CKA_PRIVATE;

/// An object that lives as long as its session.
#[derive(Debug, Clone)]
pub struct SessionObject {
    /// The token in whose sessions it is seen.
    pub token: TokenId,
    /// The session that made it.
    pub session: u64,
    /// All attributes but the secret value, ascending by type.
    pub attributes: Vec<Attribute>,
    /// The secret value of a secret or private key; of a private data object too.
    pub secret: Option<Arc<SecretBytes>>,
}

impl SessionObject {
    /// Whether it is seen only while logged in.
    pub fn is_private(&self) -> bool {
        attributes::stored_bool(&self.attributes, CKA_PRIVATE).unwrap_or(false)
    }

    #[cfg(test)]
    pub(crate) fn for_test(token: TokenId, session: u64, private: bool) -> Self {
        let attributes = vec![Attribute { kind: CKA_PRIVATE, value: vec![u8::from(private)] }];
        Self { token, session, attributes, secret: None }
    }
}
