//! Who is at the other end of a connection: the kernel's word, turned into the names that policy uses.
//!
//! Policy on the ledger names users and groups (`user=NAME`, `group=NAME`, each optionally `@DEVICE`); every host resolves the names
//! by its own `/etc/passwd` and `/etc/group`. The answer is fixed when a connection opens, as a process's credentials are. Nothing
//! that a frame says is asked.
//!
//! It must never give the overflow uid (a user that another user namespace could not map) any name.

use std::fs::{self, File};
use std::io::Read;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Most bytes of `/etc/passwd` and `/etc/group` that are read, each.
const ACCOUNTS_BYTES_MAX: u64 = 4 << 20;
/// Most groups of one process that are looked at (the kernel's own limit).
const GROUPS_MAX: usize = 65_536;
/// Uid of unmapped users where `/proc` does not tell.
const OVERFLOW_UID: u32 = 65_534;
/// A file that was changed so shortly before it was read is read again: within one tick of the file system's clock it can change once more,
/// and look the same.
const SETTLED_AFTER: Duration = Duration::from_secs(2);
/// The files of this host.
static HOST: AccountFiles<&'static str> =
    AccountFiles { passwd: "/etc/passwd", group: "/etc/group", subuid: "/etc/subuid", read: Mutex::new(None) };

/// What the kernel says about the process that connected.
#[derive(Debug)]
pub struct Peer {
    /// Effective user at the time of `connect`.
    pub uid: u32,
    /// Effective group at the time of `connect`.
    pub gid: u32,
    /// Process; 0 if it cannot be seen from our PID namespace.
    pub pid: i32,
    /// Start time of that process: field 22 of `/proc/PID/stat`, clock ticks since boot. With the pid it names a process for ever.
    pub start: u64,
    /// Supplementary groups of the process.
    pub groups: Vec<u32>,
    /// To whose account connections, memory and wrong PINs are put: the user, or the owner of the range where `uid` is a subordinate one
    /// (`subuid(5)`). Else whoever has such a range would be 65,536 users.
    pub account: u32,
}

/// Why a peer cannot be identified.
#[derive(Debug, thiserror::Error)]
pub enum PeerError {
    /// The socket does not tell.
    #[error("the kernel does not name the process at the other end")]
    Credentials(#[source] std::io::Error),
    /// The process is outside our PID namespace, so that it cannot be told from others of its user.
    #[error("the process is in another PID namespace; run the agent in the host's")]
    Namespace,
    /// The process ended while we looked, or its `/proc` folder cannot be read.
    #[error("process {0} cannot be looked at: it has ended, or /proc hides it (mount option hidepid, ProtectProc=)")]
    Gone(i32),
}

impl Peer {
    /// Asks the kernel about the other end of a connected Unix socket.
    ///
    /// # Errors
    /// [`PeerError`]. A process id that was given to another process in the meantime is found out by its pidfd (SO_PEERPIDFD, Linux
    /// 6.5), and on older kernels by its user.
    pub fn of<F: AsFd>(socket: &F) -> Result<Self, PeerError> {
        use nix::sys::socket::{getsockopt, sockopt};
        let credentials =
            getsockopt(&socket.as_fd(), sockopt::PeerCredentials).map_err(|e| PeerError::Credentials(e.into()))?;
        let (pid, uid, gid) = (credentials.pid(), credentials.uid(), credentials.gid());
        if pid <= 0 {
            return Err(PeerError::Namespace);
        }
        let handle = getsockopt(&socket.as_fd(), sockopt::PeerPidfd).ok();
        let start = start_time(pid).ok_or(PeerError::Gone(pid))?;
        let status = read_bounded(format!("/proc/{pid}/status")).ok_or(PeerError::Gone(pid))?;
        let (owner, groups) = parse_status(&status).ok_or(PeerError::Gone(pid))?;
        // A set-user-id program may have connected before or after its change: only groups that go with the connected user count.
        let groups = if owner == uid { groups } else { Vec::new() };
        if handle.is_some_and(|handle| has_ended(&handle)) || start_time(pid) != Some(start) {
            return Err(PeerError::Gone(pid));
        }
        Ok(Self { uid, gid, pid, start, groups, account: Accounts::load().owner(uid) })
    }
}

/// Field 22 of `/proc/PID/stat`. The second field, the program's name, may contain anything, `)` too: what counts is behind the last.
fn start_time(pid: i32) -> Option<u64> {
    let stat = read_bounded(format!("/proc/{pid}/stat"))?;
    parse_start(&stat)
}

fn parse_start(stat: &str) -> Option<u64> {
    let (_, after_name) = stat.rsplit_once(')')?;
    after_name.split_ascii_whitespace().nth(19)?.parse().ok()
}

/// Effective uid and supplementary groups of `/proc/PID/status`.
fn parse_status(status: &str) -> Option<(u32, Vec<u32>)> {
    let line = |name: &str| status.lines().find_map(|line| line.strip_prefix(name));
    let owner = line("Uid:")?.split_ascii_whitespace().nth(1)?.parse().ok()?;
    let groups = line("Groups:")?.split_ascii_whitespace().take(GROUPS_MAX).filter_map(|g| g.parse().ok()).collect();
    Some((owner, groups))
}

fn has_ended(pidfd: &OwnedFd) -> bool {
    use rustix::event::{PollFd, PollFlags, Timespec, poll};
    let at_once = Timespec { tv_sec: 0, tv_nsec: 0 };
    let mut fds = [PollFd::new(pidfd, PollFlags::IN)];
    poll(&mut fds, Some(&at_once)).is_ok_and(|ready| ready > 0)
}

fn read_bounded(path: impl AsRef<Path>) -> Option<String> {
    let mut bytes = Vec::new();
    File::open(path).ok()?.take(ACCOUNTS_BYTES_MAX).read_to_end(&mut bytes).ok()?;
    Some(String::from_utf8_lossy(&bytes).into_owned())
}

/// The host's users and groups, as far as policy needs them.
#[derive(Debug, Default)]
pub struct Accounts {
    users: Vec<(String, u32, u32)>,
    groups: Vec<(String, u32, Vec<String>)>,
    /// Ranges of `subuid(5)`: owner, first, number.
    subordinate: Vec<(u32, u32, u32)>,
    overflow_uid: u32,
}

/// Where accounts are read from, and what was read.
struct AccountFiles<P> {
    passwd: P,
    group: P,
    subuid: P,
    read: Mutex<Option<ReadAccounts>>,
}

struct ReadAccounts {
    at: SystemTime,
    marks: [Option<Mark>; 3],
    overflow_uid: u32,
    accounts: Arc<Accounts>,
}

/// What a file looks like from outside. Replaced or written to, it looks different, or was changed just now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Mark {
    device: u64,
    inode: u64,
    bytes: u64,
    /// Of the contents: seconds, nanoseconds since the Unix epoch.
    changed: (i64, i64),
    /// Of anything about it; nobody can set this one back.
    touched: (i64, i64),
}

impl Mark {
    fn of(path: &Path) -> Option<Self> {
        let found = fs::metadata(path).ok()?;
        Some(Self {
            device: found.dev(),
            inode: found.ino(),
            bytes: found.len(),
            changed: (found.mtime(), found.mtime_nsec()),
            touched: (found.ctime(), found.ctime_nsec()),
        })
    }

    /// Whether what was read at `at` is what the file still has while it looks like this.
    fn is_settled(&self, at: SystemTime) -> bool {
        let read_s = at.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs()) as i64;
        read_s.saturating_sub(self.touched.0.max(self.changed.0)) > SETTLED_AFTER.as_secs() as i64
    }
}

impl<P: AsRef<Path>> AccountFiles<P> {
    /// The accounts as the files have them at `now`; files that have not changed are not read again.
    fn load(&self, now: SystemTime) -> Arc<Accounts> {
        let overflow = read_bounded("/proc/sys/kernel/overflowuid").and_then(|text| text.trim().parse().ok());
        let overflow_uid = overflow.unwrap_or(OVERFLOW_UID);
        // Looked at before they are read: a change in between shows the next time.
        let marks = [&self.passwd, &self.group, &self.subuid].map(|path| Mark::of(path.as_ref()));
        let mut read = self.read.lock().unwrap_or_else(PoisonError::into_inner);
        let is_same = |read: &&ReadAccounts| read.marks == marks && read.overflow_uid == overflow_uid;
        let is_settled = |read: &&ReadAccounts| read.marks.iter().flatten().all(|mark| mark.is_settled(read.at));
        if let Some(read) = read.as_ref().filter(is_same).filter(is_settled) {
            return read.accounts.clone();
        }
        let file = |path: &P| read_bounded(path).unwrap_or_default();
        let accounts = Accounts::parse(&file(&self.passwd), &file(&self.group), overflow_uid);
        let accounts = Arc::new(accounts.with_subordinate(&file(&self.subuid)));
        *read = Some(ReadAccounts { at: now, marks, overflow_uid, accounts: accounts.clone() });
        accounts
    }
}

impl Accounts {
    /// What `/etc/passwd`, `/etc/group`, `/etc/subuid` and the kernel's overflow uid say now. A file that cannot be read counts as empty:
    /// fewer names match.
    pub fn load() -> Arc<Self> {
        HOST.load(SystemTime::now())
    }

    /// Adds the ranges of a `subuid(5)` text: `owner:first:number`, the owner by name or number.
    fn with_subordinate(mut self, subuid: &str) -> Self {
        let range = |line: &str| {
            let mut fields = line.split(':');
            let owner = fields.next()?;
            let named = self.users.iter().find(|(name, ..)| name == owner).map(|(_, uid, _)| *uid);
            Some((named.or_else(|| owner.parse().ok())?, fields.next()?.parse().ok()?, fields.next()?.parse().ok()?))
        };
        self.subordinate = subuid.lines().filter_map(range).collect();
        self
    }

    /// The user himself, or whose subordinate user he is. Somebody with an entry of his own is nobody's.
    pub fn owner(&self, uid: u32) -> u32 {
        let has_entry = self.users.iter().any(|(_, own, _)| *own == uid);
        let holds = |(_, first, count): &&(u32, u32, u32)| uid.checked_sub(*first).is_some_and(|at| at < *count);
        let owner = self.subordinate.iter().find(holds).map(|(owner, ..)| *owner);
        owner.filter(|_| !has_entry).unwrap_or(uid)
    }

    /// Whether a rule (see [`Principal::matches`]) names an account of this host. What it says of other devices cannot be judged here, and
    /// a number may be anybody's.
    pub fn knows(&self, rule: &str, device: &str) -> bool {
        let (subject, place) = rule.rsplit_once('@').map_or((rule, None), |(subject, place)| (subject, Some(place)));
        let is_named = match subject.split_once('=') {
            Some(("user", name)) => name.parse::<u32>().is_ok() || self.users.iter().any(|(user, ..)| user == name),
            Some(("group", name)) => self.groups.iter().any(|(group, ..)| group == name),
            _ => false,
        };
        is_named || place.is_some_and(|place| place != device)
    }

    /// Reads the text of `passwd(5)` and `group(5)`. Lines that are not of their form are passed over.
    pub fn parse(passwd: &str, group: &str, overflow_uid: u32) -> Self {
        let user = |line: &str| {
            let mut fields = line.split(':');
            let name = fields.next().filter(|name| !name.is_empty())?;
            Some((name.to_owned(), fields.nth(1)?.parse().ok()?, fields.next()?.parse().ok()?))
        };
        let one_group = |line: &str| {
            let mut fields = line.split(':');
            let name = fields.next().filter(|name| !name.is_empty())?;
            let gid = fields.nth(1)?.parse().ok()?;
            let members = fields.next()?.split(',').filter(|m| !m.is_empty()).map(str::to_owned).collect();
            Some((name.to_owned(), gid, members))
        };
        Self {
            users: passwd.lines().filter_map(user).collect(),
            groups: group.lines().filter_map(one_group).collect(),
            subordinate: Vec::new(),
            overflow_uid,
        }
    }
}

/// A user of this host, as policy sees him.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Principal {
    /// The kernel's number.
    pub uid: u32,
    users: Vec<String>,
    groups: Vec<String>,
    root: bool,
    agent: bool,
    nobody: bool,
}

impl Principal {
    /// Resolves a peer's names. `agent_uid` is the agent's own user.
    pub fn resolve(peer: &Peer, accounts: &Accounts, agent_uid: u32) -> Self {
        let nobody = peer.uid == accounts.overflow_uid;
        let mut users: Vec<String> =
            accounts.users.iter().filter(|(_, uid, _)| *uid == peer.uid).map(|(name, ..)| name.clone()).collect();
        let number = peer.uid.to_string();
        if users.is_empty() && !accounts.users.iter().any(|(name, ..)| *name == number) {
            users.push(number); // a user without an entry goes by his number
        }
        let in_group = |(name, gid, members): &&(String, u32, Vec<String>)| {
            !name.is_empty()
                && (*gid == peer.gid || peer.groups.contains(gid) || members.iter().any(|m| users.contains(m)))
        };
        let groups = accounts.groups.iter().filter(in_group).map(|(name, ..)| name.clone()).collect();
        let root = peer.uid == 0 && !nobody;
        Self { uid: peer.uid, users, groups, root, agent: peer.uid == agent_uid && !nobody, nobody }
    }

    /// Whether one rule (`user=NAME`, `group=NAME`, with `@DEVICE` or without) speaks of this user on the device of this name.
    /// Root counts as every user and is in every group.
    pub fn matches(&self, rule: &str, device: &str) -> bool {
        if self.nobody {
            return false;
        }
        let (subject, place) = rule.rsplit_once('@').map_or((rule, None), |(subject, place)| (subject, Some(place)));
        if place.is_some_and(|place| place != device) {
            return false;
        }
        match subject.split_once('=') {
            Some(("user", name)) => self.root || self.users.iter().any(|user| user == name),
            Some(("group", name)) => self.root || self.groups.iter().any(|group| group == name),
            _ => false,
        }
    }

    /// Whether a key's list of users lets this one in. An empty list lets in root only.
    pub fn may_use(&self, allow: &[String], device: &str) -> bool {
        if allow.is_empty() { self.root } else { allow.iter().any(|rule| self.matches(rule, device)) }
    }

    /// Whether a token's list of users lets this one in. An empty list lets in everybody but the overflow uid.
    pub fn may_see(&self, allow: &[String], device: &str) -> bool {
        !self.nobody && (allow.is_empty() || allow.iter().any(|rule| self.matches(rule, device)))
    }

    /// Whether this user may manage the agent: root, and the agent's own user.
    pub fn manages(&self) -> bool {
        self.root || self.agent
    }

    /// The rule that lets exactly this user use what he makes. Of somebody without a name it matches nobody.
    pub fn own_rule(&self) -> String {
        format!("user={}", self.users.first().map_or("", String::as_str))
    }

    /// A name for people.
    pub fn name(&self) -> &str {
        self.users.first().map_or("nobody", String::as_str)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PASSWD: &str = "root:x:0:0:root:/root:/bin/sh\nwww-data:x:33:33::/var/www:/x\nalice:x:1000:1000::/h:/b\nalias:x:1000:1000::/h:/b\n\
                          bad line\n4711:x:12:12::/:/\nnobody:x:65534:65534::/:/\n:x:5:5::/:/\n";
    const GROUP: &str = "root:x:0:\nwww-data:x:33:\nalice:x:1000:\nsigners:x:2000:bob,alice\nextra:x:3000:\nbroken:x:\nnogroup:x:65534:\n";

    fn principal(uid: u32, gid: u32, groups: &[u32]) -> Principal {
        let peer = Peer { uid, gid, pid: 1, start: 1, groups: groups.to_vec(), account: uid };
        Principal::resolve(&peer, &Accounts::parse(PASSWD, GROUP, 65_534), 999)
    }

    #[test]
    fn rules_match_names_of_this_host() {
        let cases: &[(u32, u32, &[u32], &str, bool)] = &[
            (1000, 1000, &[], "user=alice", true),
            (1000, 1000, &[], "user=alias", true),
            (1000, 1000, &[], "user=bob", false),
            (1000, 1000, &[], "user=alice@web1", true),
            (1000, 1000, &[], "user=alice@web2", false),
            (1000, 1000, &[], "group=signers", true),
            (1000, 1000, &[3000], "group=extra", true),
            (1000, 1000, &[], "group=extra", false),
            (1000, 1000, &[], "group=alice", true),
            (1000, 1000, &[], "user=1000", false),
            (1000, 1000, &[], "alice", false),
            (1000, 1000, &[], "role=alice", false),
            (1000, 1000, &[], "user=", false),
            (1000, 1000, &[], "", false),
            (33, 33, &[], "user=www-data", true),
            (33, 33, &[], "user=alice", false),
            (4242, 33, &[], "user=4242", true),
            (4242, 33, &[], "group=www-data", true),
            (4711, 1, &[], "user=4711", false), // the name belongs to uid 12
            (0, 0, &[], "user=alice", true),
            (0, 0, &[], "group=signers", true),
            (0, 0, &[], "user=alice@web2", false),
            (65_534, 65_534, &[], "user=nobody", false),
            (65_534, 65_534, &[], "group=nogroup", false),
            (65_534, 0, &[0], "user=root", false),
        ];
        for (uid, gid, groups, rule, expected) in cases {
            assert_eq!(principal(*uid, *gid, groups).matches(rule, "web1"), *expected, "uid {uid}: {rule}");
        }
    }

    #[test]
    fn names_that_no_account_has() {
        let accounts = Accounts::parse("web:x:33:33::/:/bin/sh\n", "ssl-cert:x:110:web\n", 65_534);
        for (rule, known) in [
            ("user=web", true),
            ("group=ssl-cert", true),
            ("user=nosuchuser", false),
            ("group=web", false),
            ("user=nosuchuser@here", false),
            ("user=nosuchuser@elsewhere", true),
            ("user=1234", true),
        ] {
            assert_eq!(accounts.knows(rule, "here"), known, "{rule}");
        }
    }

    #[test]
    fn empty_lists() {
        let nothing: [String; 0] = [];
        for (uid, uses, sees) in [(0, true, true), (1000, false, true), (65_534, false, false)] {
            let who = principal(uid, uid, &[]);
            assert_eq!((who.may_use(&nothing, "d"), who.may_see(&nothing, "d")), (uses, sees), "uid {uid}");
        }
    }

    #[test]
    fn managers() {
        for (uid, manages) in [(0, true), (999, true), (1000, false), (65_534, false)] {
            assert_eq!(principal(uid, uid, &[]).manages(), manages, "uid {uid}");
        }
        assert_eq!(principal(1000, 1000, &[]).own_rule(), "user=alice");
        assert_eq!(principal(4242, 1, &[]).own_rule(), "user=4242");
        assert_eq!(principal(4711, 1, &[]).own_rule(), "user=", "his number is the name of another");
    }

    #[test]
    fn subordinate_users_are_their_owners() {
        let accounts = Accounts::parse(PASSWD, GROUP, 65_534)
            .with_subordinate("alice:100000:65536\n33:200000:10\nunknown:300000:5\nalice:1000:5\nbad\n7:1\n:1:1\n");
        for (uid, owner) in [
            (99_999, 99_999),
            (100_000, 1000),
            (165_535, 1000),
            (165_536, 165_536),
            (200_009, 33),
            (300_000, 300_000),
            (1000, 1000),
            (1001, 1000),
            (0, 0),
            (u32::MAX, u32::MAX),
        ] {
            assert_eq!(accounts.owner(uid), owner, "uid {uid}");
        }
    }

    #[test]
    fn files_are_read_again_when_they_were_changed_or_replaced_and_only_then() {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        let files = AccountFiles {
            passwd: path("passwd"),
            group: path("group"),
            subuid: path("subuid"),
            read: Mutex::default(),
        };
        let later = || SystemTime::now() + 2 * SETTLED_AFTER;
        let write = |name: &str, text: &str| fs::write(path(name), text).unwrap();
        // What is written has the size, and the time of the contents, of what was there.
        let old = SystemTime::now() - Duration::from_secs(1000);
        let backdate = |name: &str| File::options().write(true).open(path(name)).unwrap().set_modified(old).unwrap();
        let owner = |name: &str| files.load(later()).users.iter().any(|(user, ..)| user == name);

        assert!(files.load(later()).users.is_empty(), "no files");
        write("passwd", "alice:x:1000:1000::/:/\n");
        backdate("passwd");
        assert!(owner("alice"), "made");
        let one = files.load(later());
        assert!(Arc::ptr_eq(&one, &files.load(later())), "not read again");

        write("passwd.new", "carol:x:1000:1000::/:/\n");
        backdate("passwd.new");
        fs::rename(path("passwd.new"), path("passwd")).unwrap();
        assert!(owner("carol") && !owner("alice"), "replaced");
        write("passwd", "bobby:x:1000:1000::/:/\n");
        backdate("passwd");
        assert!(owner("bobby") && !owner("carol"), "written to");

        write("group", "users:x:100:\n");
        write("subuid", "bobby:5000:10\n");
        let read = files.load(later());
        assert!(read.groups.len() == 1 && read.owner(5001) == 1000);
        fs::remove_file(path("subuid")).unwrap();
        assert_eq!(files.load(later()).owner(5001), 5001, "removed");

        // Within one tick of the file system's clock a second change may look like the first.
        write("passwd", "early:x:1000:1000::/:/\n");
        let soon = files.load(SystemTime::now());
        assert!(!Arc::ptr_eq(&soon, &files.load(SystemTime::now())), "changed just now");
    }

    #[test]
    fn proc_files() {
        let stat = "77 (a) S 1) S 1 77 77 0 -1 4194560 1 2 3 4 5 6 7 8 20 0 1 0 123456 9 9";
        assert_eq!(parse_start(stat), Some(123_456));
        for bad in ["", "77 (x)", "77 (x) S 1 2", "no parenthesis"] {
            assert_eq!(parse_start(bad), None, "{bad}");
        }
        assert_eq!(parse_status("Uid:\t1\t2\t3\t4\nGroups:\t5 6 \n"), Some((2, vec![5, 6])));
        assert_eq!(parse_status("Uid:\t1\n"), None);
    }

    #[test]
    fn the_other_end_of_a_pair_is_this_process() {
        let (one, _other) = std::os::unix::net::UnixStream::pair().unwrap();
        let peer = Peer::of(&one).unwrap();
        assert_eq!(peer.pid as u32, std::process::id());
        assert_eq!(Some(peer.start), start_time(peer.pid));
        assert_eq!(peer.uid, rustix::process::getuid().as_raw());
    }
}
