//! This device's chip, where its vault has one: its keys, its answers to challenges, its quotes.

use super::{REGISTERS_DEFAULT, bits, selection};
use crate::node::vault::{Vault, VaultError};
use mayfly_attest::evidence::Malformed;
use mayfly_attest::evidence::exchange::{Challenge, QuoteRequest, STEP_KEYS, STEP_PROVE, STEP_QUOTE};
use mayfly_attest::evidence::pcr::Selection;
use mayfly_plugin_api::Status;
use std::sync::{Arc, Mutex, PoisonError};

/// The chip under this device's vault.
#[derive(Debug)]
pub struct Chip {
    vault: Arc<Vault>,
    shown: Mutex<Looked>,
}

/// What is known of the chip.
#[derive(Debug, Clone, Default)]
enum Looked {
    #[default]
    Never,
    None,
    Some(Shown),
}

/// What the chip shows before it proves anything.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Shown {
    /// Its keys and certificates (message `MTK1`).
    pub keys: Vec<u8>,
    /// Registers that its quotes are of; bit i: register i.
    pub registers: u32,
}

/// Why the chip does not answer.
#[derive(Debug, thiserror::Error)]
pub enum ChipError {
    /// There is none.
    #[error("this device's vault has no chip that could prove itself; vaults of kind tpm have")]
    NoChip,
    /// The challenge is no message.
    #[error("malformed challenge")]
    Malformed(#[from] Malformed),
    /// The challenge is for another device, network or verifier: somebody would pass the answer on.
    #[error("the challenge is not for this device and this verifier; nothing is proven to whom it was made for")]
    Foreign,
    /// The vault.
    #[error(transparent)]
    Vault(#[from] VaultError),
}

impl Chip {
    /// Of this vault.
    pub fn new(vault: Arc<Vault>) -> Chip {
        Chip { vault, shown: Mutex::default() }
    }

    /// What the chip shows; none where there is no chip. Asks the vault once.
    ///
    /// # Errors
    /// [`VaultError`]: it may be another time.
    pub fn show(&self) -> Result<Option<Shown>, VaultError> {
        let mut shown = self.shown.lock().unwrap_or_else(PoisonError::into_inner);
        if matches!(*shown, Looked::Never) {
            *shown = self.look()?;
        }
        Ok(match &*shown {
            Looked::Some(shown) => Some(shown.clone()),
            Looked::Never | Looked::None => None,
        })
    }

    fn look(&self) -> Result<Looked, VaultError> {
        let keys = match self.vault.attest(STEP_KEYS, &[]) {
            Ok(keys) => keys,
            Err(error) if error.status() == Some(Status::Unsupported) => return Ok(Looked::None),
            Err(error) => return Err(error),
        };
        Ok(Looked::Some(Shown { keys, registers: bits(self.policy()) }))
    }

    /// The registers of the vault's own policy: whoever approves those wants to see them. Without a policy the usual ones.
    fn policy(&self) -> Selection {
        let told = self.vault.control("policy", &[]).ok();
        let told = told.and_then(|json| serde_json::from_slice::<serde_json::Value>(&json).ok());
        let named = told.as_ref().and_then(|policy| policy.get("registers")?.as_object());
        let numbers: Vec<u32> = named.into_iter().flatten().filter_map(|(number, _)| number.parse().ok()).collect();
        let usual = || Selection::of(&REGISTERS_DEFAULT).expect("registers below 24");
        Selection::of(&numbers).ok().filter(|s| !s.is_empty()).unwrap_or_else(usual)
    }

    /// The chip's answer (message `MTP1`) to a challenge (`MTC1`) that must be made for one of `contexts`.
    ///
    /// # Errors
    /// [`ChipError`].
    pub fn prove(&self, challenge: &[u8], contexts: &[[u8; 32]]) -> Result<Vec<u8>, ChipError> {
        let shown = self.show()?.ok_or(ChipError::NoChip)?;
        let asked = Challenge::decode(challenge)?;
        if !contexts.contains(&asked.context) || bits(asked.pcrs) != shown.registers {
            return Err(ChipError::Foreign);
        }
        Ok(self.vault.attest(STEP_PROVE, challenge)?)
    }

    /// A quote of `registers` (of those that the chip shows, where none are given) for `context`; none where there is no chip.
    ///
    /// # Errors
    /// [`VaultError`].
    pub fn quote(&self, context: [u8; 32], registers: Option<u32>) -> Result<Option<Vec<u8>>, VaultError> {
        let Some(shown) = self.show()? else { return Ok(None) };
        let Some(pcrs) = selection(registers.unwrap_or(shown.registers)) else { return Ok(None) };
        self.vault.attest(STEP_QUOTE, &QuoteRequest { context, pcrs }.encode()).map(Some)
    }
}
