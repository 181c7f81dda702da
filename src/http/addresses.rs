//! How many sockets each address has at one listener. Does not know what they are used for.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::Arc;

use parking_lot::Mutex;

/// Sockets of one address at a listener, unless the configuration says otherwise: enough for the people behind one live of a
/// large office, a sixtieth of a listener's sockets.
const PER_ADDRESS_MAX: usize = 1000;

/// The sockets of each address. Holds an entry for addresses with sockets only, so it is bounded as they are.
#[derive(Debug)]
pub struct Addresses {
    open: Mutex<HashMap<IpAddr, usize>>,
}

/// One socket of an address, as long as it is held.
#[derive(Debug)]
pub struct AddressPermit {
    addresses: Arc<Addresses>,
    key: IpAddr,
}

impl Addresses {
    /// No address has a socket yet.
    pub fn new() -> Arc<Self> {
        Arc::new(Self { open: Mutex::default() })
    }

    /// Admits one more socket of an address; none if it has as many as are allowed. If no bound is set the default applies, and
    /// any number is allowed for loopback addresses, because there a proxy may connect for everybody.
    pub fn admit(self: &Arc<Self>, ip: IpAddr, bound: Option<usize>) -> Option<AddressPermit> {
        let key = network(ip);
        let bound = bound.unwrap_or(if key.is_loopback() { usize::MAX } else { PER_ADDRESS_MAX });
        let mut open = self.open.lock();
        let sockets = open.entry(key).or_default();
        if *sockets >= bound {
            return None;
        }
        *sockets += 1;
        Some(AddressPermit { addresses: self.clone(), key })
    }
}

impl Drop for AddressPermit {
    fn drop(&mut self) {
        if let Entry::Occupied(mut sockets) = self.addresses.open.lock().entry(self.key) {
            *sockets.get_mut() -= 1;
            if *sockets.get() == 0 {
                sockets.remove();
            }
        }
    }
}

/// An address as text: an IPv4 one that came as IPv6 is IPv4.
pub fn text(ip: IpAddr) -> Arc<str> {
    ip.to_canonical().to_string().into()
}

/// What counts as one address: for IPv6 the first 64 bits, because one client usually has all of them.
fn network(ip: IpAddr) -> IpAddr {
    match ip.to_canonical() {
        IpAddr::V6(v6) if !v6.is_loopback() => Ipv6Addr::from_bits(v6.to_bits() & (u128::MAX << 64)).into(),
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn an_address_has_so_many_and_what_closes_makes_room() {
        let addresses = Addresses::new();
        let first = addresses.admit(ip("192.0.2.1"), Some(2));
        let second = addresses.admit(ip("::ffff:192.0.2.1"), Some(2));
        assert!(first.is_some() && second.is_some());
        assert!(addresses.admit(ip("192.0.2.1"), Some(2)).is_none(), "a third");
        assert!(addresses.admit(ip("192.0.2.2"), Some(2)).is_some(), "somebody else's first");
        drop(second);
        let again = addresses.admit(ip("192.0.2.1"), Some(2));
        assert!(again.is_some() && addresses.admit(ip("192.0.2.1"), Some(2)).is_none());
        drop((first, again));
        assert!(addresses.open.lock().is_empty(), "who has gone is forgotten");
    }

    #[test]
    fn a_network_of_ipv6_is_one_address() {
        let addresses = Addresses::new();
        let held = addresses.admit(ip("2001:db8:0:1::1"), Some(1));
        assert!(addresses.admit(ip("2001:db8:0:1:ffff::2"), Some(1)).is_none());
        assert!(addresses.admit(ip("2001:db8:0:2::1"), Some(1)).is_some());
        assert!(addresses.admit(ip("::1"), Some(1)).is_some());
        drop(held);
    }

    #[test]
    fn loopback_addresses_are_bounded_only_where_it_is_said() {
        let usual = Addresses::new();
        for (address, admitted) in [("127.0.0.1", 2000), ("::1", 2000), ("192.0.2.1", 1000), ("2001:db8::1", 1000)] {
            let held: Vec<_> = (0..2000).filter_map(|_| usual.admit(ip(address), None)).collect();
            assert_eq!(held.len(), admitted, "{address}");
        }
        let said = Addresses::new();
        let held = said.admit(ip("127.0.0.1"), Some(1));
        assert!(held.is_some() && said.admit(ip("127.0.0.1"), Some(1)).is_none());
    }
}
