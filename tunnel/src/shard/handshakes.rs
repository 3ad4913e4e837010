//! Handshakes under way that peers began, bounded in all and by source.
//!
//! A Retry proves only that an address is real, not that its owner means well: one source may have
//! a few at once, and when there are too many in all the oldest gives way, since a newcomer who
//! means it is quick.

use std::collections::{HashMap, VecDeque};
use std::net::{IpAddr, Ipv6Addr};

/// Handshakes under way at once.
const MOST: usize = 256;
/// Of these from one source.
const MOST_A_SOURCE: u16 = 16;

/// The handshakes of one shard, by the serial number of their link.
#[derive(Debug, Default)]
pub(crate) struct Handshakes {
    /// Oldest first.
    waiting: VecDeque<(u64, IpAddr)>,
    by_source: HashMap<IpAddr, u16>,
}

impl Handshakes {
    /// False while this address has as many under way as it may.
    pub(crate) fn may_begin(&self, address: IpAddr) -> bool {
        self.by_source.get(&source(address)).is_none_or(|&count| count < MOST_A_SOURCE)
    }

    /// A handshake has begun. Returns the oldest one when it must give way.
    pub(crate) fn begin(&mut self, serial: u64, address: IpAddr) -> Option<u64> {
        let source = source(address);
        self.waiting.push_back((serial, source));
        *self.by_source.entry(source).or_default() += 1;
        (self.waiting.len() > MOST).then(|| self.waiting.front().map(|(serial, _)| *serial)).flatten()
    }

    /// The handshake is over, one way or the other; nothing happens for one that never began here.
    pub(crate) fn end(&mut self, serial: u64) {
        let Some(place) = self.waiting.iter().position(|(waiting, _)| *waiting == serial) else { return };
        let Some((_, source)) = self.waiting.remove(place) else { return };
        if let Some(count) = self.by_source.get_mut(&source) {
            *count -= 1;
            if *count == 0 {
                self.by_source.remove(&source);
            }
        }
    }
}

/// Whose handshakes count as one: an IPv4 address, or the /64 that one IPv6 host has.
fn source(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(v6) => Ipv6Addr::from_bits(v6.to_bits() & !u128::from(u64::MAX)).into(),
        v4 => v4,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_source_has_a_few_and_a_newcomer_is_let_in() {
        let mut handshakes = Handshakes::default();
        let hosts = ["2001:db8::1", "2001:db8::2"].map(|text| text.parse().unwrap());
        for serial in 0..16 {
            assert!(handshakes.may_begin(hosts[serial % 2]));
            handshakes.begin(serial as u64, hosts[serial % 2]);
        }
        assert!(!handshakes.may_begin(hosts[0]), "both hosts are in one /64");
        assert!(handshakes.may_begin("198.51.100.1".parse().unwrap()));
        handshakes.end(3);
        assert!(handshakes.may_begin(hosts[0]));
    }

    #[test]
    fn the_oldest_gives_way() {
        let mut handshakes = Handshakes::default();
        let mut given_way = Vec::new();
        for serial in 0..300u64 {
            if let Some(oldest) = handshakes.begin(serial, IpAddr::from([10, 0, (serial >> 8) as u8, serial as u8])) {
                handshakes.end(oldest);
                given_way.push(oldest);
            }
        }
        assert_eq!(given_way, (0..44).collect::<Vec<_>>());
        for serial in 0..300 {
            handshakes.end(serial);
        }
        assert!(handshakes.by_source.is_empty());
    }
}
