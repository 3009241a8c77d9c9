//! The connections that are served, and who must go when there are too many. Strangers can fill it with silent connections: they push out
//! each other, an address its own first, and never one whose opener has proved a key.

use super::server::Caller;
use super::{UNPROVED_MAX, UNPROVED_PER_ADDRESS_MAX};
use std::collections::{BTreeMap, HashMap};
use std::net::{IpAddr, Ipv6Addr, Shutdown, TcpStream};

/// The end of a connection that another thread serves.
pub(super) trait Ends {
    /// The thread sees the end and tidies up; one that is gone already needs nothing.
    fn end(&self);
}

impl Ends for TcpStream {
    fn end(&self) {
        let _ = self.shutdown(Shutdown::Both);
    }
}

/// Connections by number, which ascends with time.
pub(super) struct Table<S = TcpStream> {
    connections_max: usize,
    served: BTreeMap<u64, Served<S>>,
    next: u64,
}

struct Served<S> {
    source: IpAddr,
    caller: Option<Caller>,
    /// Was told to end; its thread is still there.
    ending: bool,
    /// A second handle, to end the connection from another thread.
    socket: S,
}

impl<S> Served<S> {
    fn is_unproved(&self) -> bool {
        self.caller.is_none() && !self.ending
    }
}

/// Whether a connection is served.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Admission {
    /// Under this number.
    Admitted(u64),
    /// No room could be made.
    Refused,
}

impl<S: Ends> Table<S> {
    /// With room for so many, and as many again that are ending.
    pub(super) fn new(connections_max: usize) -> Self {
        Self { connections_max, served: BTreeMap::new(), next: 0 }
    }

    /// A new connection, whose opener has proved nothing yet.
    pub(super) fn admit(&mut self, from: IpAddr, socket: S) -> Admission {
        let source = source(from);
        let of_source = self.served.values().filter(|s| s.source == source && s.caller.is_none());
        // Those that were told to end do so at once, or within the patience for unknown keys: threads are bounded in any case.
        if of_source.count() >= 2 * UNPROVED_PER_ADDRESS_MAX || self.served.len() >= 2 * self.connections_max {
            return Admission::Refused;
        }
        let live = self.served.values().filter(|s| !s.ending).count();
        let unproved = self.unproved_by_source();
        let full = live >= self.connections_max || unproved.values().sum::<usize>() >= UNPROVED_MAX;
        let goes = match unproved.get(&source) {
            Some(own) if *own >= UNPROVED_PER_ADDRESS_MAX => Some(source),
            _ if full => unproved.iter().max_by_key(|(_, count)| **count).map(|(busiest, _)| *busiest),
            _ => None,
        };
        match goes {
            Some(source) => self.end_oldest_unproved(&source),
            None if full => return Admission::Refused,
            None => {}
        }
        self.next += 1;
        self.served.insert(self.next, Served { source, caller: None, ending: false, socket });
        Admission::Admitted(self.next)
    }

    fn unproved_by_source(&self) -> HashMap<IpAddr, usize> {
        let mut counts = HashMap::new();
        self.served.values().filter(|s| s.is_unproved()).for_each(|s| *counts.entry(s.source).or_default() += 1);
        counts
    }

    fn end_oldest_unproved(&mut self, source: &IpAddr) {
        if let Some(oldest) = self.served.values_mut().find(|s| s.is_unproved() && s.source == *source) {
            oldest.ending = true;
            oldest.socket.end();
        }
    }

    /// Its opener is this member. False: it was told to end meanwhile.
    pub(super) fn prove(&mut self, number: u64, caller: Caller) -> bool {
        let Some(served) = self.served.get_mut(&number).filter(|s| !s.ending) else { return false };
        served.caller = Some(caller);
        true
    }

    /// Its thread is at its end.
    pub(super) fn remove(&mut self, number: u64) {
        self.served.remove(&number);
    }

    /// Tells those to end that `which` names.
    pub(super) fn end(&mut self, which: impl Fn(Option<&Caller>) -> bool) {
        for served in self.served.values_mut().filter(|s| which(s.caller.as_ref())) {
            served.ending = true;
            served.socket.end();
        }
    }

    /// Who has a connection.
    pub(super) fn callers(&self) -> impl Iterator<Item = &Caller> {
        self.served.values().filter_map(|s| s.caller.as_ref())
    }

    /// Connections, those that are ending included.
    pub(super) fn len(&self) -> usize {
        self.served.len()
    }
}

/// What counts as one address: whoever has one IPv6 address has 2^64.
fn source(from: IpAddr) -> IpAddr {
    match from.to_canonical() {
        IpAddr::V6(v6) => IpAddr::V6(Ipv6Addr::from_bits(v6.to_bits() >> 64 << 64)),
        v4 => v4,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use mayfly_crypto::sign::Ed25519Secret;
    use mayfly_protocol::DeviceId;
    use std::cell::Cell;
    use std::rc::Rc;

    impl Ends for Rc<Cell<bool>> {
        fn end(&self) {
            self.set(true);
        }
    }

    type Ended = Rc<Cell<bool>>;

    fn admit(table: &mut Table<Ended>, from: &str) -> (Admission, Ended) {
        let ended = Ended::default();
        (table.admit(from.parse().unwrap(), ended.clone()), ended)
    }

    fn caller() -> Caller {
        let key = Ed25519Secret::generate().unwrap().public();
        Caller { device: DeviceId([1; 32]), key, standing: crate::node::peers::Standing::Member }
    }

    #[test]
    fn silent_connections_of_one_address_push_out_each_other_and_nobody_else() {
        let mut table = Table::new(256);
        let (_, other) = admit(&mut table, "192.0.2.2");
        let mut silent: Vec<Ended> = (0..UNPROVED_PER_ADDRESS_MAX).map(|_| admit(&mut table, "192.0.2.1").1).collect();
        assert!(silent.iter().all(|s| !s.get()));
        silent.push(admit(&mut table, "::ffff:192.0.2.1").1);
        let ended: Vec<_> = silent.iter().map(|s| s.get()).collect();
        assert!(ended[0] && !ended[1..].contains(&true), "the oldest of its own");
        assert!(!other.get());
        // While their threads do not end, no more threads are started for this address.
        while let (Admission::Admitted(_), _) = admit(&mut table, "192.0.2.1") {}
        assert_eq!(table.len(), 2 * UNPROVED_PER_ADDRESS_MAX + 1);
        assert!(matches!(admit(&mut table, "192.0.2.3").0, Admission::Admitted(_)));
        assert!(!other.get());
    }

    #[test]
    fn strangers_make_room_for_newcomers_and_members_stay() {
        let mut table = Table::new(256);
        let (Admission::Admitted(member), member_ended) = admit(&mut table, "2001:db8::1") else { panic!("refused") };
        assert!(table.prove(member, caller()));
        let spread: Vec<Ended> =
            (0..UNPROVED_MAX).map(|i| admit(&mut table, &format!("2001:db8:0:{:x}::{i:x}", i / 2 + 1)).1).collect();
        assert!(spread.iter().all(|s| !s.get()));
        let busy = admit(&mut table, "2001:db8:0:1:ffff::").1;
        assert_eq!(spread.iter().filter(|s| s.get()).count(), 1, "one stranger goes");
        assert!(!member_ended.get() && !busy.get());
    }

    #[test]
    fn full_of_members_means_full() {
        let mut table = Table::new(2);
        for _ in 0..2 {
            let (Admission::Admitted(number), _) = admit(&mut table, "192.0.2.1") else { panic!("refused") };
            assert!(table.prove(number, caller()));
        }
        assert_eq!(admit(&mut table, "192.0.2.9").0, Admission::Refused);
        table.remove(1);
        let (Admission::Admitted(number), ended) = admit(&mut table, "192.0.2.9") else { panic!("refused") };
        assert!(matches!(admit(&mut table, "192.0.2.8").0, Admission::Admitted(_)));
        assert!(ended.get() && !table.prove(number, caller()), "what was told to end proves nothing any more");
    }
}
