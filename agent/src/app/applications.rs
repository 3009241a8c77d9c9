//! Applications: processes that have a connection, their logins, session objects and operations in parts.
//!
//! An application belongs to one process: (uid, pid, start time), by the kernel's word. It begins with a Hello without a ticket, which is that
//! process's word that it starts over; connections with its ticket join it. It ends with its last connection: then its logins are gone, its
//! session objects wiped, its operations dropped. Nothing of it is written anywhere.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use mayfly_protocol::TokenId;
use mayfly_protocol::record::PinVerifier;
use mayfly_wire::SESSION_OBJECT_BIT;

use super::ck::{CKR_DEVICE_MEMORY, CKR_HOST_MEMORY, CKR_OPERATION_NOT_INITIALIZED};
use super::fail::{Done, Fail};
use super::objects::session::SessionObject;
use super::quota::{Allowance, Held};
use super::streams::Operation;
use super::ticket::{Name, Tickets};

/// Session objects of one application.
pub const SESSION_OBJECTS_MAX: usize = 16_384;
/// Operations in parts of one application at the same time.
pub const OPERATIONS_MAX: usize = 16_384;
/// Context-specific logins of one application that wait for their operation.
pub const CONTEXT_LOGINS_MAX: usize = 1024;
/// What a session object counts for beside its attributes and its secret, bytes.
const OBJECT_BYTES: usize = 512;

/// A process.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Identity {
    /// Its user.
    pub uid: u32,
    /// Its number.
    pub pid: i32,
    /// Its start time, clock ticks since boot.
    pub start: u64,
}

/// As whom an application is logged in to a token.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum LoginUser {
    /// CKU_SO.
    SecurityOfficer = 0,
    /// CKU_USER.
    User = 1,
}

impl LoginUser {
    /// The user with this number.
    pub fn from_byte(byte: u8) -> Option<Self> {
        match byte {
            0 => Some(Self::SecurityOfficer),
            1 => Some(Self::User),
            _ => None,
        }
    }
}

/// A login.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Login {
    /// As whom.
    pub user: LoginUser,
    /// Names the PIN that was given, so that a ticket does not outlive a change of the PIN.
    pub mark: [u8; Login::MARK_BYTES],
}

impl Login {
    /// Length of a mark.
    pub const MARK_BYTES: usize = 8;

    /// A login by the PIN of this verifier.
    pub fn new(user: LoginUser, verifier: &PinVerifier) -> Self {
        let digest = mayfly_crypto::enc::hash("mayfly/v1/pin-mark", &[&verifier.salt, &verifier.tag]);
        let mut mark = [0; Self::MARK_BYTES];
        mark.copy_from_slice(digest.first_chunk::<{ Self::MARK_BYTES }>().unwrap_or(&[0; Self::MARK_BYTES]));
        Self { user, mark }
    }
}

/// What an application may take of the agent's memory.
#[derive(Debug, Clone)]
pub struct Allowances {
    /// Of secret memory.
    pub secrets: Allowance,
    /// Of ordinary memory.
    pub memory: Allowance,
}

/// One application with at least one connection.
#[derive(Debug)]
pub struct Application {
    /// The process.
    pub identity: Identity,
    /// Run of the agent and number by which tickets name it: those of an earlier run where it came with a ticket of one.
    names: Vec<Name>,
    allowances: Allowances,
    /// Grows with every change of logins and session objects: what was looked up under an older number is looked up again.
    changes: AtomicU64,
    kept: Mutex<Kept>,
}

/// What is kept of an application.
#[derive(Debug, Default)]
pub struct Kept {
    connections: usize,
    logins: HashMap<TokenId, Login>,
    /// Tokens and sessions whose next operation may use a key with CKA_ALWAYS_AUTHENTICATE.
    context_logins: HashSet<(TokenId, u64)>,
    objects: BTreeMap<u64, KeptObject>,
    operations: HashMap<u64, KeptOperation>,
}

/// A session object, and what it counts for.
#[derive(Debug)]
struct KeptObject {
    object: Arc<SessionObject>,
    _held: [Held; 2],
}

/// An operation in parts, and what decides when it must end: told without waiting for whoever works on it.
#[derive(Debug, Clone)]
struct KeptOperation {
    token: TokenId,
    session: u64,
    needs_login: bool,
    operation: Arc<Mutex<Operation>>,
}

impl Application {
    fn new(identity: Identity, names: Vec<Name>, allowances: Allowances) -> Self {
        Self { identity, names, allowances, changes: AtomicU64::new(0), kept: Mutex::default() }
    }

    /// What it may take of the agent's memory.
    pub fn allowances(&self) -> &Allowances {
        &self.allowances
    }

    fn kept(&self) -> MutexGuard<'_, Kept> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn changed(&self) {
        self.changes.fetch_add(1, Ordering::AcqRel);
    }

    /// Number of changes of logins and session objects so far.
    pub fn changes(&self) -> u64 {
        self.changes.load(Ordering::Acquire)
    }

    /// As whom the application is logged in to the token.
    pub fn login(&self, token: &TokenId) -> Option<LoginUser> {
        self.kept().logins.get(token).map(|login| login.user)
    }

    /// Notes a login.
    pub fn log_in(&self, token: TokenId, login: Login) {
        self.kept().logins.insert(token, login);
        self.changed();
    }

    /// Ends the login to a token, with its private session objects (PKCS#11 v2.40, C_Logout). Whether there was one.
    pub fn log_out(&self, token: &TokenId) -> bool {
        let mut kept = self.kept();
        let was = kept.logins.remove(token).is_some();
        if was {
            kept.objects.retain(|_, kept| kept.object.token != *token || !kept.object.is_private());
            kept.context_logins.retain(|(of, _)| of != token);
            kept.operations.retain(|_, operation| operation.token != *token || !operation.needs_login);
        }
        drop(kept);
        self.changed();
        was
    }

    /// Allows the session's next operation with a key of this token that asks for its own login.
    pub fn allow_once(&self, token: TokenId, session: u64) {
        let mut kept = self.kept();
        if kept.context_logins.len() < CONTEXT_LOGINS_MAX {
            kept.context_logins.insert((token, session));
        }
    }

    /// Uses up the session's context-specific login. Whether there was one.
    pub fn take_allowed_once(&self, token: TokenId, session: u64) -> bool {
        self.kept().context_logins.remove(&(token, session))
    }

    /// Forgets all that belongs to a session.
    pub fn close_session(&self, session: u64) {
        let mut kept = self.kept();
        let before = kept.objects.len();
        kept.objects.retain(|_, kept| kept.object.session != session);
        kept.operations.retain(|_, operation| operation.session != session);
        kept.context_logins.retain(|(_, of)| *of != session);
        let changed = kept.objects.len() != before;
        drop(kept);
        if changed {
            self.changed();
        }
    }

    /// Forgets all that belongs to a token: logins too.
    pub fn close_token(&self, token: &TokenId) {
        let mut kept = self.kept();
        kept.logins.remove(token);
        kept.objects.retain(|_, kept| kept.object.token != *token);
        kept.operations.retain(|_, operation| operation.token != *token);
        kept.context_logins.retain(|(of, _)| of != token);
        drop(kept);
        self.changed();
    }

    /// Keeps a session object and gives its handle.
    ///
    /// # Errors
    /// CKR_DEVICE_MEMORY beyond [`SESSION_OBJECTS_MAX`] or what the user may hold.
    pub fn keep_object(&self, object: SessionObject, numbers: &AtomicU64) -> Done<u64> {
        let object = self.counted(object)?;
        let mut kept = self.kept();
        if kept.objects.len() >= SESSION_OBJECTS_MAX {
            return Err(Fail::new(CKR_DEVICE_MEMORY, "the application has too many session objects"));
        }
        let handle = SESSION_OBJECT_BIT | numbers.fetch_add(1, Ordering::Relaxed);
        kept.objects.insert(handle, object);
        drop(kept);
        self.changed();
        Ok(handle)
    }

    fn counted(&self, object: SessionObject) -> Done<KeptObject> {
        let attributes: usize = object.attributes.iter().map(|attribute| attribute.value.len() + 64).sum();
        let held = [
            self.allowances.memory.take(OBJECT_BYTES + attributes)?,
            self.allowances.secrets.take_secrets(object.secret.iter().map(|secret| secret.len()))?,
        ];
        Ok(KeptObject { object: Arc::new(object), _held: held })
    }

    /// The session object with this handle.
    pub fn object(&self, token: &TokenId, handle: u64) -> Option<Arc<SessionObject>> {
        let kept = self.kept();
        kept.objects.get(&handle).map(|kept| &kept.object).filter(|object| object.token == *token).cloned()
    }

    /// Puts a changed session object in the place of the old one.
    ///
    /// # Errors
    /// CKR_DEVICE_MEMORY.
    pub fn replace_object(&self, handle: u64, object: SessionObject) -> Done<()> {
        let object = self.counted(object)?;
        if let Some(place) = self.kept().objects.get_mut(&handle) {
            *place = object;
        }
        self.changed();
        Ok(())
    }

    /// Drops a session object. Its secret is wiped when the last operation that uses it ends.
    pub fn drop_object(&self, handle: u64) {
        self.kept().objects.remove(&handle);
        self.changed();
    }

    /// Session objects of a token above `after`, by ascending handle.
    pub fn objects(&self, token: &TokenId, after: u64) -> Vec<(u64, Arc<SessionObject>)> {
        let kept = self.kept();
        let above = kept.objects.range((std::ops::Bound::Excluded(after), std::ops::Bound::Unbounded));
        let of_token = above.filter(|(_, kept)| kept.object.token == *token);
        of_token.map(|(handle, kept)| (*handle, kept.object.clone())).collect()
    }

    /// Keeps an operation in parts under a new number.
    ///
    /// # Errors
    /// CKR_HOST_MEMORY beyond [`OPERATIONS_MAX`].
    pub fn keep_operation(&self, operation: Operation, numbers: &AtomicU64) -> Done<u64> {
        let mut kept = self.kept();
        if kept.operations.len() >= OPERATIONS_MAX {
            return Err(Fail::new(CKR_HOST_MEMORY, "the application has too many operations under way"));
        }
        let number = numbers.fetch_add(1, Ordering::Relaxed);
        let (token, session, needs_login) = (operation.token, operation.session, operation.needs_login);
        let operation = Arc::new(Mutex::new(operation));
        kept.operations.insert(number, KeptOperation { token, session, needs_login, operation });
        Ok(number)
    }

    /// The operation with this number.
    ///
    /// # Errors
    /// CKR_OPERATION_NOT_INITIALIZED.
    pub fn operation(&self, number: u64) -> Done<Arc<Mutex<Operation>>> {
        let found = self.kept().operations.get(&number).map(|kept| kept.operation.clone());
        found.ok_or_else(|| Fail::new(CKR_OPERATION_NOT_INITIALIZED, "no such operation under way"))
    }

    /// Ends an operation.
    pub fn drop_operation(&self, number: u64) {
        self.kept().operations.remove(&number);
    }

    /// Drops key material of operations in parts that was held for its time (the sweeper calls this).
    pub fn suspend_idle_operations(&self, now: std::time::Instant) {
        let operations: Vec<_> = self.kept().operations.values().map(|kept| kept.operation.clone()).collect();
        for operation in operations {
            // One that is in use at this moment is not idle.
            if let Ok(mut operation) = operation.try_lock() {
                operation.suspend_if_due(now);
            }
        }
    }

    fn ticket(&self, tickets: &Tickets) -> Vec<u8> {
        self.names.first().map_or_else(Vec::new, |name| tickets.make(self.identity, *name, self.kept().logins.iter()))
    }
}

/// All applications of this agent.
#[derive(Debug)]
pub struct Applications {
    tickets: Tickets,
    by_number: Mutex<BTreeMap<u64, Arc<Application>>>,
    /// Next number of an application.
    numbers: AtomicU64,
    /// Next number of a session object.
    pub object_numbers: AtomicU64,
    /// Next number of an operation in parts.
    pub operation_numbers: AtomicU64,
}

/// One connection's hold on its application; the last to be dropped ends the application.
#[derive(Debug)]
pub struct Attached {
    applications: Arc<Applications>,
    application: Arc<Application>,
    number: u64,
    /// Whether logins went on.
    pub resumed: bool,
}

impl Applications {
    /// None yet.
    pub fn new(tickets: Tickets) -> Self {
        // Far from those of any earlier run: what an application still holds from there must name nothing here.
        let first = tickets.instance >> 3;
        Self {
            tickets,
            by_number: Mutex::default(),
            numbers: AtomicU64::new(1),
            object_numbers: AtomicU64::new(first),
            operation_numbers: AtomicU64::new(first),
        }
    }

    /// Random number of this run.
    pub fn instance(&self) -> u64 {
        self.tickets.instance
    }

    /// Attaches a connection to the application of this process that its ticket names; without one, or with one that names none, a new
    /// application begins. `still_good` judges logins that a ticket of an earlier run brings.
    pub fn attach(
        self: &Arc<Self>,
        identity: Identity,
        ticket: &[u8],
        allowances: Allowances,
        still_good: impl Fn(&TokenId, &Login) -> bool,
    ) -> Attached {
        let opened = self.tickets.open(identity, ticket);
        let mut all = self.lock();
        let known = opened.as_ref().and_then(|opened| {
            all.iter().find(|(_, living)| living.identity == identity && living.names.contains(&opened.name))
        });
        if let Some((number, application)) = known {
            application.kept().connections += 1;
            return self.attached(application.clone(), *number, true);
        }
        let number = self.numbers.fetch_add(1, Ordering::Relaxed);
        let mut names = vec![Name { instance: self.instance(), number }];
        // Of this run, it named an application that has ended: closing the last connection logs out, whatever tickets are about.
        let earlier = opened.filter(|opened| opened.name.instance != self.instance());
        names.extend(earlier.as_ref().map(|opened| opened.name));
        let application = Arc::new(Application::new(identity, names, allowances));
        application.kept().connections = 1;
        all.insert(number, application.clone());
        // Before others can join it.
        let resumed = earlier.is_some();
        for (token, login) in earlier.into_iter().flat_map(|opened| opened.logins) {
            if still_good(&token, &login) {
                application.log_in(token, login);
            }
        }
        self.attached(application, number, resumed)
    }

    fn attached(self: &Arc<Self>, application: Arc<Application>, number: u64, resumed: bool) -> Attached {
        Attached { applications: self.clone(), application, number, resumed }
    }

    /// Number of applications.
    pub fn count(&self) -> usize {
        self.lock().len()
    }

    /// All applications.
    pub fn all(&self) -> Vec<Arc<Application>> {
        self.lock().values().cloned().collect()
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<u64, Arc<Application>>> {
        self.by_number.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Attached {
    /// The application.
    pub fn application(&self) -> &Arc<Application> {
        &self.application
    }

    /// The application's ticket as things are now.
    pub fn ticket(&self) -> Vec<u8> {
        self.application.ticket(&self.applications.tickets)
    }

    /// Whether a ticket is one of this application.
    pub fn owns(&self, ticket: &[u8]) -> bool {
        let opened = self.applications.tickets.open(self.application.identity, ticket);
        opened.is_some_and(|opened| self.application.names.contains(&opened.name))
    }
}

impl Drop for Attached {
    fn drop(&mut self) {
        let mut all = self.applications.lock();
        let mut kept = self.application.kept();
        kept.connections = kept.connections.saturating_sub(1);
        if kept.connections == 0 {
            all.remove(&self.number);
            *kept = Kept::default(); // wipes now, even if somebody still holds the application
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PROCESS: Identity = Identity { uid: 1000, pid: 77, start: 123 };
    const TOKEN: TokenId = TokenId([1; 32]);
    const USER: Login = Login { user: LoginUser::User, mark: [1; 8] };

    fn applications() -> Arc<Applications> {
        Arc::new(Applications::new(Tickets::new(None).unwrap()))
    }

    fn allowances() -> Allowances {
        let pot = || crate::app::quota::Pot::new("memory", 1 << 20, 1 << 20).of(1000);
        Allowances { secrets: pot(), memory: pot() }
    }

    fn attach(all: &Arc<Applications>, identity: Identity, ticket: &[u8]) -> Attached {
        all.attach(identity, ticket, allowances(), |_, _| true)
    }

    #[test]
    fn an_application_ends_with_its_last_connection() {
        let all = applications();
        let first = attach(&all, PROCESS, &[]);
        first.application().log_in(TOKEN, USER);
        let second = attach(&all, PROCESS, &first.ticket());
        assert!(second.resumed);
        drop(first);
        assert_eq!(second.application().login(&TOKEN), Some(LoginUser::User), "one connection is left");
        let ticket = second.ticket();
        drop(second);
        assert_eq!(all.count(), 0);
        let again = attach(&all, PROCESS, &ticket);
        assert!(!again.resumed, "a ticket of this run does not bring it back");
        assert_eq!(again.application().login(&TOKEN), None);
    }

    #[test]
    fn logins_go_on_in_the_next_run_of_the_agent() {
        let key = || mayfly_secmem::Secret::new_with(|bytes| bytes.fill(9)).unwrap();
        let run = || Arc::new(Applications::new(Tickets::new(Some(key())).unwrap()));
        let before = attach(&run(), PROCESS, &[]);
        before.application().log_in(TOKEN, USER);
        let ticket = before.ticket();
        let after = run();
        let resumed = after.attach(PROCESS, &ticket, allowances(), |token, login| (*token, *login) == (TOKEN, USER));
        assert!(resumed.resumed);
        assert_eq!(resumed.application().login(&TOKEN), Some(LoginUser::User));
        let second = attach(&after, PROCESS, &ticket);
        assert!(Arc::ptr_eq(second.application(), resumed.application()), "two connections, one application");
        assert!(second.owns(&resumed.ticket()) && resumed.owns(&ticket));
        drop((resumed, second));
        let pin_changed = after.attach(PROCESS, &ticket, allowances(), |_, _| false);
        assert_eq!(pin_changed.application().login(&TOKEN), None);
        let thief = attach(&after, Identity { pid: 78, ..PROCESS }, &ticket);
        assert!(!thief.resumed);
        assert_eq!(thief.application().login(&TOKEN), None);
    }

    #[test]
    fn a_hello_without_ticket_starts_over() {
        let all = applications();
        let before = attach(&all, PROCESS, &[]);
        before.application().log_in(TOKEN, USER);
        // The process has become another program by exec, or has finalised the module, while a connection of before is still at work.
        for ticket in [&[][..], b"nonsense"] {
            let after = attach(&all, PROCESS, ticket);
            assert!(!after.resumed && !after.owns(&before.ticket()) && !before.owns(&after.ticket()));
            assert_eq!(after.application().login(&TOKEN), None, "logins are not inherited");
        }
        assert_eq!((all.count(), before.application().login(&TOKEN)), (1, Some(LoginUser::User)));
    }

    #[test]
    fn what_is_kept_is_counted_and_given_back() {
        let (all, pots) =
            (applications(), [1 << 13, 1 << 10].map(|max| crate::app::quota::Pot::new("memory", max, max)));
        let allowances = || Allowances { memory: pots[0].of(1000), secrets: pots[1].of(1000) };
        let secret = || Some(Arc::new(mayfly_secmem::SecretBytes::new_with(32, |bytes| bytes.fill(1)).unwrap()));
        let object = |secret| SessionObject { secret, ..SessionObject::for_test(TOKEN, 1, false) };
        for _ in 0..2 {
            let one = all.attach(PROCESS, &[], allowances(), |_, _| true);
            let keep = |secret| one.application().keep_object(object(secret), &all.object_numbers);
            let handles: Vec<_> = (0..4).map(|_| keep(secret()).unwrap()).collect();
            assert_eq!(keep(secret()).unwrap_err().code, CKR_DEVICE_MEMORY, "no secret memory is left to this user");
            keep(None).unwrap();
            let mut larger = object(None);
            larger.attributes.push(mayfly_protocol::record::Attribute { kind: 3, value: vec![0; 8192] });
            assert!(one.application().replace_object(handles[0], larger).is_err(), "growing is counted too");
            one.application().drop_object(handles[0]);
            keep(secret()).unwrap();
        }
    }

    #[test]
    fn numbers_of_an_earlier_run_name_nothing() {
        let first = || {
            let all = applications();
            [&all.object_numbers, &all.operation_numbers].map(|number| number.load(Ordering::Relaxed))
        };
        let (earlier, now) = (first(), first());
        assert!(earlier.iter().zip(now).all(|(earlier, now)| earlier.abs_diff(now) > 1 << 32));
        assert!(now.iter().all(|number| *number < SESSION_OBJECT_BIT / 2), "with room to count");
    }

    #[test]
    fn processes_are_told_apart() {
        let all = applications();
        let one = attach(&all, PROCESS, &[]);
        one.application().log_in(TOKEN, USER);
        for other in
            [Identity { uid: 1001, ..PROCESS }, Identity { pid: 78, ..PROCESS }, Identity { start: 124, ..PROCESS }]
        {
            assert_eq!(attach(&all, other, &[]).application().login(&TOKEN), None, "{other:?}");
        }
    }

    #[test]
    fn logging_out_ends_what_it_must() {
        let all = applications();
        let one = attach(&all, PROCESS, &[]);
        let application = one.application();
        application.log_in(TOKEN, USER);
        for (session, private) in [(1, true), (1, false), (2, true)] {
            application.keep_object(SessionObject::for_test(TOKEN, session, private), &all.object_numbers).unwrap();
        }
        let count = || application.objects(&TOKEN, 0).len();
        let before = application.changes();
        assert_eq!(count(), 3);
        assert!(application.log_out(&TOKEN));
        assert!(!application.log_out(&TOKEN));
        assert_eq!(count(), 1, "the public one stays");
        assert!(application.changes() > before);
        application.close_session(1);
        assert_eq!(count(), 0);
    }

    #[test]
    fn context_logins_are_used_once() {
        let all = applications();
        let one = attach(&all, PROCESS, &[]);
        let application = one.application();
        application.allow_once(TOKEN, 5);
        assert!(!application.take_allowed_once(TOKEN, 6));
        assert!(!application.take_allowed_once(TokenId([2; 32]), 5), "the PIN of another token");
        assert!(application.take_allowed_once(TOKEN, 5));
        assert!(!application.take_allowed_once(TOKEN, 5));
        application.log_in(TOKEN, USER);
        application.allow_once(TOKEN, 5);
        application.log_out(&TOKEN);
        assert!(!application.take_allowed_once(TOKEN, 5), "it ends with the login");
    }
}
