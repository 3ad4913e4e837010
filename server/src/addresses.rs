//! The pool of inner addresses: which are free, and which IPv6 address goes with which IPv4.
//!
//! A device keeps its address for life, so what is taken comes from the registry. Pure. The
//! network's first host is the gateway's own; network and broadcast addresses are nobody's. The
//! IPv6 address has the same index in its /64 as the IPv4 address in its network.

use std::net::{Ipv4Addr, Ipv6Addr};

use culvert_tunnel::filter::Lease;
use ipnet::{Ipv4Net, Ipv6Net};

/// The networks inside the tunnel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pool {
    ipv4: Ipv4Net,
    ipv6: Option<Ipv6Net>,
}

/// Every address of the network is taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("all {size} addresses of {network} are taken; remove a device, or set a larger network.ipv4")]
pub struct PoolFull {
    /// The network.
    pub network: Ipv4Net,
    /// How many devices it holds.
    pub size: u32,
}

impl Pool {
    /// A pool over two networks. The IPv4 network has at least two hosts (a /30 or larger), which
    /// the configuration checks.
    pub fn new(ipv4: Ipv4Net, ipv6: Option<Ipv6Net>) -> Self {
        Self { ipv4: ipv4.trunc(), ipv6: ipv6.map(|network| network.trunc()) }
    }

    /// The inner IPv4 network.
    pub fn ipv4(&self) -> Ipv4Net {
        self.ipv4
    }

    /// The inner IPv6 network.
    pub fn ipv6(&self) -> Option<Ipv6Net> {
        self.ipv6
    }

    /// This pool with a larger IPv4 network in which every address means what it meant: it begins where this one
    /// does, so that the gateway keeps its addresses and devices keep their IPv6 ones. `None` for any other network.
    #[must_use]
    pub fn grown_to(&self, ipv4: Ipv4Net) -> Option<Self> {
        let ipv4 = ipv4.trunc();
        let grows = ipv4.network() == self.ipv4.network() && ipv4.prefix_len() <= self.ipv4.prefix_len();
        grows.then_some(Self { ipv4, ipv6: self.ipv6 })
    }

    /// The gateway's own addresses.
    pub fn gateway(&self) -> Lease {
        self.lease(1)
    }

    /// How many devices fit.
    pub fn size(&self) -> u32 {
        self.hosts().end - self.hosts().start
    }

    /// The first and the last IPv4 address that a device may have, as numbers.
    pub fn range(&self) -> (i64, i64) {
        let (network, hosts) = (i64::from(u32::from(self.ipv4.network())), self.hosts());
        (network + i64::from(hosts.start), network + i64::from(hosts.end) - 1)
    }

    /// How many parts the network is divided into for gateways that share it: up to 256, of at least eight addresses.
    pub fn slices(&self) -> u32 {
        1 << (self.slice_prefix() - self.ipv4.prefix_len())
    }

    /// The first and the last IPv4 address, as numbers, that the gateway with this part gives to devices. The parts
    /// share no address, and together they are [`Self::range`].
    pub fn slice(&self, number: u32) -> (i64, i64) {
        let size = 1_i64 << (32 - self.slice_prefix());
        let start = i64::from(u32::from(self.ipv4.network())) + i64::from(number) * size;
        let (first, last) = self.range();
        (start.max(first), (start + size - 1).min(last))
    }

    fn slice_prefix(&self) -> u8 {
        const PARTS_LOG2: u8 = 8;
        const SMALLEST: u8 = 29;
        (self.ipv4.prefix_len() + PARTS_LOG2).min(SMALLEST.max(self.ipv4.prefix_len()))
    }

    /// The addresses of the device that the registry has under this IPv4 address; `None` when
    /// the network was changed and does not hold it any more.
    pub fn lease_of(&self, ipv4: Ipv4Addr) -> Option<Lease> {
        let index = u32::from(ipv4).wrapping_sub(self.ipv4.network().into());
        self.hosts().contains(&index).then(|| self.lease(index))
    }

    /// Indexes of the devices' addresses: neither network, gateway nor broadcast.
    fn hosts(&self) -> std::ops::Range<u32> {
        let last = u32::from(self.ipv4.broadcast()) - u32::from(self.ipv4.network());
        2..last.max(2)
    }

    fn lease(&self, index: u32) -> Lease {
        Lease {
            ipv4: Ipv4Addr::from(u32::from(self.ipv4.network()) + index),
            ipv6: self.ipv6.map(|network| Ipv6Addr::from(u128::from(network.network()) + u128::from(index))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_gateway_has_the_first_host_and_devices_the_others() {
        let pool = pool("100.77.3.0/24");
        assert_eq!(pool.gateway().ipv4, Ipv4Addr::new(100, 77, 3, 1));
        let (first, last) = ends(&pool);
        assert_eq!((first, last), (Ipv4Addr::new(100, 77, 3, 2), Ipv4Addr::new(100, 77, 3, 254)));
        assert_eq!(pool.lease_of(first).unwrap().ipv6, Some("fd4e:9a1c::2".parse().unwrap()));
        assert_eq!(pool.size(), 253);
    }

    #[test]
    fn a_pool_grows_where_nobody_gets_another_address() {
        let small = pool("100.77.2.0/24");
        let grown = small.grown_to("100.77.2.0/23".parse().unwrap()).unwrap();
        assert_eq!((grown.size(), grown.gateway()), (509, small.gateway()));
        let (first, last) = ends(&small);
        assert_eq!([first, last].map(|address| grown.lease_of(address)), [first, last].map(|a| small.lease_of(a)));
        assert_eq!(small.grown_to(small.ipv4()), Some(small));
        for other in ["100.77.0.0/22", "100.77.2.0/25", "100.78.2.0/23"] {
            assert_eq!(small.grown_to(other.parse().unwrap()), None, "{other}");
        }
    }

    proptest! {
        #[test]
        fn reserved_addresses_are_outside_and_each_device_has_its_own_ipv6(network in any::<u32>(), prefix in 8u8..=29) {
            let network = Ipv4Net::new(network.into(), prefix).unwrap().trunc();
            let pool = Pool::new(network, Some("fd00:1::/64".parse().unwrap()));
            let (first, last) = ends(&pool);
            prop_assert_eq!(u32::from(last) - u32::from(first) + 1, pool.size());
            for reserved in [network.network(), network.broadcast(), pool.gateway().ipv4] {
                prop_assert!(!(first..=last).contains(&reserved));
                prop_assert_eq!(pool.lease_of(reserved), None);
            }
            let [first, last] = [first, last].map(|address| pool.lease_of(address).unwrap());
            prop_assert!(pool.ipv6().unwrap().contains(&last.ipv6.unwrap()));
            prop_assert_ne!(first.ipv6, pool.gateway().ipv6);
            prop_assert_ne!(first.ipv6, last.ipv6);
        }

        #[test]
        fn slices_follow_one_another_from_the_first_address_to_the_last(network in any::<u32>(), prefix in 8u8..=29) {
            let pool = Pool::new(Ipv4Net::new(network.into(), prefix).unwrap().trunc(), None);
            let (first, last) = pool.range();
            let mut next = first;
            for number in 0..pool.slices() {
                let (from, to) = pool.slice(number);
                prop_assert_eq!(from, next);
                prop_assert!(from < to, "each has room for devices");
                next = to + 1;
            }
            prop_assert_eq!(next, last + 1);
        }
    }

    fn ends(pool: &Pool) -> (Ipv4Addr, Ipv4Addr) {
        let (first, last) = pool.range();
        (u32::try_from(first).unwrap().into(), u32::try_from(last).unwrap().into())
    }

    fn pool(ipv4: &str) -> Pool {
        Pool::new(ipv4.parse().unwrap(), Some("fd4e:9a1c::/64".parse().unwrap()))
    }
}
