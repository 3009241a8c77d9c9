//! Status codes: the one number that every call across the table returns.

/// What a call came to. The number is the ABI; the name is for people.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(i32)]
#[non_exhaustive]
pub enum Status {
    /// Done; outputs are filled.
    Ok = 0,
    /// A defect in the plugin or something it has no better word for.
    Internal = 1,
    /// The configuration text or what it points at is wrong; retrying does not help.
    Config = 2,
    /// This plugin does not offer this call or this parameter.
    Unsupported = 3,
    /// An argument is outside what the interface allows, or the call does not fit the present state.
    Invalid = 4,
    /// The operating system or the device under the plugin failed.
    Io = 5,
    /// Another process holds what this plugin needs alone.
    Busy = 6,
    /// Wrong passphrase, PIN or authorisation value.
    Auth = 7,
    /// Something stored is damaged, torn or not ours.
    Corrupt = 8,
    /// This generation does not open: revoked, not committed yet, or never staged.
    NoGeneration = 9,
    /// The machine's state is not the one that the seal's policy allows; a new approval opens it again.
    PolicyPending = 10,
    /// The chip or token is not the one that sealed (cleared, replaced); the device must enrol again.
    VaultLost = 11,
    /// The chip or token refuses for a while because of failed authorisations.
    Lockout = 12,
    /// Failed now, may succeed when tried again.
    Transient = 13,
    /// There is no identity key yet and none was to be made.
    NoIdentity = 14,
    /// The caller's buffer is too small; the length that is needed was put in the length output.
    BufferTooSmall = 15,
    /// The head is not the expected one; the actual head was put in the output.
    Conflict = 16,
    /// Not known whether the append was stored; the caller reads to find out.
    Unknown = 17,
    /// The entries asked for were pruned; the first one that is left was put in the output.
    Pruned = 18,
    /// The store takes no writes now (disk full, quota); reading goes on.
    ReadOnly = 19,
    /// Larger than the limit that the plugin declared.
    TooLarge = 20,
    /// Nothing is stored under what was asked for.
    NotFound = 21,
}

impl Status {
    /// Every status, in the order of the numbers.
    pub const ALL: [Status; 22] = [
        Status::Ok,
        Status::Internal,
        Status::Config,
        Status::Unsupported,
        Status::Invalid,
        Status::Io,
        Status::Busy,
        Status::Auth,
        Status::Corrupt,
        Status::NoGeneration,
        Status::PolicyPending,
        Status::VaultLost,
        Status::Lockout,
        Status::Transient,
        Status::NoIdentity,
        Status::BufferTooSmall,
        Status::Conflict,
        Status::Unknown,
        Status::Pruned,
        Status::ReadOnly,
        Status::TooLarge,
        Status::NotFound,
    ];

    /// The status of a number, or `None` for one that version 1 does not know.
    pub fn from_code(code: i32) -> Option<Status> {
        usize::try_from(code).ok().and_then(|index| Status::ALL.get(index)).copied()
    }

    /// The number on the interface.
    pub fn code(self) -> i32 {
        self as i32
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_number_maps_to_itself_and_no_other() {
        for status in Status::ALL {
            assert_eq!(Status::from_code(status.code()), Some(status));
        }
        for code in [-1, 22, i32::MIN, i32::MAX] {
            assert_eq!(Status::from_code(code), None);
        }
    }
}
