//! The pool of inner addresses: which are free, and which IPv6 address goes with which IPv4.
//!
//! A device keeps its address for life, so what is taken comes from the registry. Pure. The
//! network's first host is the gateway's own; network and broadcast addresses are nobody's. The
//! IPv6 address has the same index in its /64 as the IPv4 address in its network.

use std::collections::HashSet;
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

    /// The gateway's own addresses.
    pub fn gateway(&self) -> Lease {
        self.lease(1)
    }

    /// How many devices fit.
    pub fn size(&self) -> u32 {
        self.hosts().end - self.hosts().start
    }

    /// The lowest addresses that nobody in `taken` has.
    ///
    /// # Errors
    /// [`PoolFull`] when there are none.
    pub fn allocate(&self, taken: &HashSet<Ipv4Addr>) -> Result<Lease, PoolFull> {
        self.hosts()
            .map(|index| self.lease(index))
            .find(|lease| !taken.contains(&lease.ipv4))
            .ok_or(PoolFull { network: self.ipv4, size: self.size() })
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
    fn the_first_device_gets_the_second_host_of_both_networks() {
        let lease = pool("100.77.3.0/24").allocate(&HashSet::new()).unwrap();
        assert_eq!(lease.ipv4, Ipv4Addr::new(100, 77, 3, 2));
        assert_eq!(lease.ipv6, Some("fd4e:9a1c::2".parse().unwrap()));
        assert_eq!(pool("100.77.3.0/24").gateway().ipv4, Ipv4Addr::new(100, 77, 3, 1));
    }

    #[test]
    fn a_full_pool_is_an_error_and_never_gives_out_a_reserved_address() {
        let pool = pool("10.9.8.0/29");
        let mut taken = HashSet::new();
        for _ in 0..5 {
            assert!(taken.insert(pool.allocate(&taken).unwrap().ipv4));
        }
        let reserved = [0, 1, 7].map(|last| Ipv4Addr::new(10, 9, 8, last));
        assert!(reserved.iter().all(|address| !taken.contains(address)), "{taken:?}");
        let full = pool.allocate(&taken).unwrap_err();
        assert_eq!(full.size, 5);
        assert!(full.to_string().starts_with("all 5 addresses of 10.9.8.0/29 are taken"));
    }

    proptest! {
        #[test]
        fn what_is_allocated_is_free_inside_and_found_again(
            network in any::<u32>(),
            prefix in 8u8..=29,
            taken in proptest::collection::hash_set(2u32..64, 0..60),
        ) {
            let network = Ipv4Net::new(network.into(), prefix).unwrap().trunc();
            let pool = Pool::new(network, Some("fd00:1::/64".parse().unwrap()));
            let taken: HashSet<Ipv4Addr> =
                taken.into_iter().map(|index| Ipv4Addr::from(u32::from(network.network()).wrapping_add(index))).collect();
            match pool.allocate(&taken) {
                Ok(lease) => {
                    prop_assert!(!taken.contains(&lease.ipv4));
                    prop_assert!(network.contains(&lease.ipv4));
                    prop_assert!(lease.ipv4 != network.network() && lease.ipv4 != network.broadcast());
                    prop_assert!(lease.ipv4 != pool.gateway().ipv4);
                    prop_assert_eq!(pool.lease_of(lease.ipv4), Some(lease));
                    prop_assert!(pool.ipv6().unwrap().contains(&lease.ipv6.unwrap()));
                }
                Err(full) => {
                    let held = taken.iter().filter(|address| pool.lease_of(**address).is_some()).count();
                    prop_assert_eq!(held, full.size as usize);
                }
            }
        }

        #[test]
        fn two_devices_never_share_an_address(prefix in 20u8..=29, count in 1usize..40) {
            let pool = Pool::new(Ipv4Net::new(Ipv4Addr::new(100, 64, 0, 0), prefix).unwrap(), Some("fd00:1::/64".parse().unwrap()));
            let (mut ipv4, mut ipv6) = (HashSet::new(), HashSet::new());
            for _ in 0..count.min(pool.size() as usize) {
                let lease = pool.allocate(&ipv4).unwrap();
                prop_assert!(ipv4.insert(lease.ipv4));
                prop_assert!(ipv6.insert(lease.ipv6));
            }
        }
    }

    fn pool(ipv4: &str) -> Pool {
        Pool::new(ipv4.parse().unwrap(), Some("fd4e:9a1c::/64".parse().unwrap()))
    }
}
