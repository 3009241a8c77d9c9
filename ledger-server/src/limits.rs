//! Every bound of the gateway that is not a field of its protocol. Those that operators may change are in [`crate::config::Limits`].

use std::time::Duration;

/// Longest time from the first packet of a connection to its hello.
pub const HANDSHAKE_MAX: Duration = Duration::from_secs(10);
/// Handshakes under way at once: what two cores do in the time that a client waits.
pub const HANDSHAKES_MAX: usize = 256;
/// Connections that one client (device, administrator, invitation) may have at once.
pub const CONNECTIONS_PER_CLIENT_MAX: usize = 32;
/// How often a connection is looked after.
pub const TICK: Duration = Duration::from_secs(5);
/// A ping is sent after so much silence from the client.
pub const PING_AFTER: Duration = Duration::from_secs(20);
/// A client with so much silence is gone.
pub const DEAD_AFTER: Duration = Duration::from_secs(45);
/// A client that has everything gets a bookmark when the last one is so old; at the latest a [`TICK`] later.
pub const BOOKMARK_EVERY: Duration = Duration::from_secs(10);
/// How often a witness is asked what time it is, so that a gateway whose own time was lost (a paused machine) soon knows again; at the
/// latest a [`TICK`] later.
pub const ASK_TIME_EVERY: Duration = Duration::from_secs(5);
/// So long after the start no entries are taken before a quorum of the witnesses has told its time: most come back within it.
pub const ASK_FIRST_MAX: Duration = Duration::from_secs(10);
/// How often it is looked whether they have.
pub const ASK_FIRST_POLL: Duration = Duration::from_millis(20);
/// Read buffer of a WebSocket; the default would be 128 KiB of real memory for each client.
pub const READ_BUFFER_BYTES: usize = 4 * 1024;
/// Frames are gathered up to here before they are written.
pub const WRITE_BUFFER_BYTES: usize = 32 * 1024;
/// Most bytes that wait in user space for one client: one bundle of the largest size, with room.
pub const WRITE_BUFFER_BYTES_MAX: usize = 512 * 1024;
/// Send buffer of the kernel for one client.
pub const SOCKET_SEND_BYTES: usize = 256 * 1024;
/// Answers that wait for one client; as many of its submissions may be under way.
pub const IN_FLIGHT_MAX: usize = 128;
/// Submissions that wait for the sequencer.
pub const QUEUE_MAX: usize = 4096;
/// Cosignatures that wait for the notary; more are dropped, the next head gets new ones.
pub const COSIGN_QUEUE_MAX: usize = 1024;
/// Proposed heads that may wait for their quorum at once.
pub const PROPOSALS_MAX: usize = 16;
/// A proposed head that has waited so long does not hold up the proposal of a newer one.
pub const PROPOSAL_STALE_AFTER: Duration = Duration::from_millis(250);
/// A witnessed head that does not change the witnesses is stored at most this often.
pub const CHECKPOINT_EVERY: Duration = Duration::from_secs(1);
/// Bytes of one read from the store.
pub const STORE_READ_BYTES: usize = 1024 * 1024;
/// Reads from the store for clients at once.
pub const STORE_READS_MAX: usize = 2;
/// Pause before a doubtful append is looked into again.
pub const RESOLVE_EVERY: Duration = Duration::from_millis(250);
/// Longest wait for entries that another gateway appends; a gateway takes up to so long to stop because of it.
pub const FOREIGN_WAIT: Duration = Duration::from_secs(1);
/// Rest after such entries were seen: one reading takes up all that came meanwhile.
pub const FOREIGN_PAUSE: Duration = Duration::from_millis(2);
/// What a client is told to wait when a queue is full, milliseconds.
pub const BUSY_MS: u64 = 100;
/// What a client is told to wait when the store does not answer, milliseconds.
pub const STORE_BUSY_MS: u64 = 1000;
/// Longest time that clients are spread over when the gateway stops, milliseconds.
pub const SPREAD_MS_MAX: u64 = 30_000;
/// Longest time that the gateway takes to stop.
pub const STOP_MAX: Duration = Duration::from_secs(5);
