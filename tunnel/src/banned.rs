//! Addresses whose first packets a gateway does not even look at. One table for all shards, read
//! without locks, replaced as a whole when it changes, which is seldom.
//!
//! Only packets with a long header are judged by it: nothing of an open session is. Whoever forges a
//! source can at most claim to be one that is banned already. Not here: who is banned, and for how
//! long (the gateway's control plane decides).

use std::net::IpAddr;
use std::sync::Arc;

use arc_swap::ArcSwap;
use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use prefix_trie::PrefixSet;

/// Shared by every shard of one gateway. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct Banned(Arc<ArcSwap<Table>>);

#[derive(Debug, Default)]
struct Table {
    ipv4: PrefixSet<Ipv4Net>,
    ipv6: PrefixSet<Ipv6Net>,
}

impl Banned {
    /// True when a prefix of the table holds the address; an IPv4 address in IPv6's clothes is IPv4.
    pub fn contains(&self, address: IpAddr) -> bool {
        let table = self.0.load();
        match address.to_canonical() {
            IpAddr::V4(address) => table.ipv4.is_covered(&address.into()),
            IpAddr::V6(address) => table.ipv6.is_covered(&address.into()),
        }
    }

    /// Puts these prefixes in place of those before.
    pub fn replace(&self, prefixes: impl IntoIterator<Item = IpNet>) {
        let mut table = Table::default();
        for prefix in prefixes {
            match prefix {
                IpNet::V4(prefix) => table.ipv4.insert(prefix),
                IpNet::V6(prefix) => table.ipv6.insert(prefix),
            };
        }
        self.0.store(Arc::new(table));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_banned_with_its_prefix_and_no_longer_than_that() {
        let banned = Banned::default();
        assert!(!banned.contains(address("203.0.113.9")));
        banned.replace(["203.0.113.9/32", "198.51.100.0/24", "2001:db8:0:1::/64"].map(|text| text.parse().unwrap()));
        for (text, expected) in [
            ("203.0.113.9", true),
            ("203.0.113.8", false),
            ("::ffff:203.0.113.9", true),
            ("198.51.100.200", true),
            ("198.51.101.1", false),
            ("2001:db8:0:1:ffff::1", true),
            ("2001:db8:0:2::1", false),
        ] {
            assert_eq!(banned.contains(address(text)), expected, "{text}");
        }
        banned.clone().replace([]);
        assert!(!banned.contains(address("203.0.113.9")), "a clone is the same table");
    }

    fn address(text: &str) -> IpAddr {
        text.parse().unwrap()
    }
}
