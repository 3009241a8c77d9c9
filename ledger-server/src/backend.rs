//! The store under a gateway, as the gateway uses it: the facade of the plugin, or something else in tests. Calls block.

use mayfly_plugin_api::{Append, BackendPlugin, Checkpoint, Head, PluginError, ReadAnswer};
use std::time::Duration;

/// Ordered bundles with a head that is compared and swapped; see `docs/formats/plugin-abi.md`.
pub trait Backend: Send + Sync + 'static {
    /// Largest bundle that the store takes, in bytes; 64 KiB at least, which is room for any one entry.
    fn bundle_bytes_max(&self) -> usize;

    /// The head; all zero while the store is empty.
    ///
    /// # Errors
    /// The plugin's.
    fn head(&self) -> Result<Head, PluginError>;

    /// Stores `bundle` durably as the entries `expected.size..new.size`, if the head is `expected`.
    ///
    /// # Errors
    /// Only where nothing was stored for certain; doubt is [`Append::Unknown`].
    fn append_if_head(&self, expected: &Head, new: &Head, bundle: &[u8]) -> Result<Append, PluginError>;

    /// Whole bundles in order, from the one that contains `from`.
    ///
    /// # Errors
    /// The plugin's.
    fn read(&self, from: u64, bytes_max: usize) -> Result<ReadAnswer, PluginError>;

    /// A hint that somebody else has appended: returns when there are more than `above` entries, or after `timeout`; may be early, late or
    /// spurious. `None` where nobody else can append.
    fn wait(&self, above: u64, timeout: Duration) -> Option<Result<Head, PluginError>>;

    /// Keeps a witnessed head for ever.
    ///
    /// # Errors
    /// The plugin's.
    fn put_checkpoint(&self, size: u64, bytes: &[u8]) -> Result<(), PluginError>;

    /// The newest witnessed head of at most this size.
    ///
    /// # Errors
    /// The plugin's.
    fn latest_checkpoint(&self, size: u64) -> Result<Option<Checkpoint>, PluginError>;
}

impl Backend for BackendPlugin {
    fn bundle_bytes_max(&self) -> usize {
        usize::try_from(self.caps().bundle_bytes_max).unwrap_or(usize::MAX)
    }

    fn head(&self) -> Result<Head, PluginError> {
        BackendPlugin::head(self)
    }

    fn append_if_head(&self, expected: &Head, new: &Head, bundle: &[u8]) -> Result<Append, PluginError> {
        BackendPlugin::append_if_head(self, expected, new, bundle)
    }

    fn read(&self, from: u64, bytes_max: usize) -> Result<ReadAnswer, PluginError> {
        BackendPlugin::read(self, from, bytes_max)
    }

    fn wait(&self, above: u64, timeout: Duration) -> Option<Result<Head, PluginError>> {
        self.caps().has_wait.then(|| BackendPlugin::wait(self, above, timeout))
    }

    fn put_checkpoint(&self, size: u64, bytes: &[u8]) -> Result<(), PluginError> {
        BackendPlugin::put_checkpoint(self, size, bytes)
    }

    fn latest_checkpoint(&self, size: u64) -> Result<Option<Checkpoint>, PluginError> {
        BackendPlugin::latest_checkpoint(self, size)
    }
}
