//! How much of a client's address goes into the log (`log.addresses`).
//!
//! Everything that logs an address asks here. What an administrator asks for by a command is told in
//! full. The choice is one for the process, like the log itself.

use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicU8, Ordering};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

/// What of an address is logged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Addresses {
    /// All of it, and the port; what fail2ban needs.
    Full,
    /// The network: /24, for IPv6 /48. No port.
    Prefix,
    /// Nothing.
    None,
}

static CHOSEN: AtomicU8 = AtomicU8::new(Addresses::Full as u8);

/// Logs so much from now on.
pub fn set_addresses(addresses: Addresses) {
    CHOSEN.store(addresses as u8, Ordering::Relaxed);
}

fn chosen() -> Addresses {
    match CHOSEN.load(Ordering::Relaxed) {
        0 => Addresses::Full,
        1 => Addresses::Prefix,
        _ => Addresses::None,
    }
}

/// The value of `src` in a log line.
pub fn src(address: IpAddr) -> String {
    show(chosen(), address.to_canonical().into(), 32, 128)
}

/// The value of `port` in a log line: 0 where it would tell one client of a network from another.
pub fn port(remote: SocketAddr) -> u16 {
    if chosen() == Addresses::Full { remote.port() } else { 0 }
}

/// A prefix as the value of `src`; one address is written without its length, so that fail2ban reads it.
pub fn network(prefix: IpNet) -> String {
    show(chosen(), prefix, prefix.prefix_len(), prefix.prefix_len())
}

/// `ipv4` and `ipv6`: the most that is told of each.
fn show(addresses: Addresses, prefix: IpNet, ipv4: u8, ipv6: u8) -> String {
    let (ipv4, ipv6) = match addresses {
        Addresses::Full => (ipv4, ipv6),
        Addresses::Prefix => (ipv4.min(24), ipv6.min(48)),
        Addresses::None => return "-".to_owned(),
    };
    let shown: IpNet = match prefix {
        IpNet::V4(net) => Ipv4Net::new_assert(net.addr(), ipv4.min(net.prefix_len())).trunc().into(),
        IpNet::V6(net) => Ipv6Net::new_assert(net.addr(), ipv6.min(net.prefix_len())).trunc().into(),
    };
    if shown.prefix_len() == shown.max_prefix_len() { shown.addr().to_string() } else { shown.to_string() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_told_in_full_as_its_network_or_not_at_all() {
        for (address, full, network) in [
            ("198.51.100.23", "198.51.100.23", "198.51.100.0/24"),
            ("::ffff:198.51.100.23", "198.51.100.23", "198.51.100.0/24"),
            ("2001:db8:1:2::3", "2001:db8:1:2::3", "2001:db8:1::/48"),
        ] {
            let prefix = address.parse::<IpAddr>().unwrap().to_canonical().into();
            assert_eq!(show(Addresses::Full, prefix, 32, 128), full);
            assert_eq!(show(Addresses::Prefix, prefix, 32, 128), network);
            assert_eq!(show(Addresses::None, prefix, 32, 128), "-");
        }
    }

    #[test]
    fn a_prefix_is_never_told_longer_than_it_is() {
        let told = |addresses, text: &str| {
            let prefix: IpNet = text.parse().unwrap();
            show(addresses, prefix, prefix.prefix_len(), prefix.prefix_len())
        };
        assert_eq!(told(Addresses::Full, "203.0.113.9/32"), "203.0.113.9");
        assert_eq!(told(Addresses::Full, "2001:db8:1:2::/64"), "2001:db8:1:2::/64");
        assert_eq!(told(Addresses::Prefix, "2001:db8:1:2::/64"), "2001:db8:1::/48");
        assert_eq!(told(Addresses::Prefix, "203.0.0.0/16"), "203.0.0.0/16");
    }
}
