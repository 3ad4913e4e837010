//! Inner address → link. One read-mostly table for all shards of a gateway: read without locks,
//! replaced as a whole when a session opens or closes.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use arc_swap::ArcSwap;

use crate::shard::mailbox::{Lease, LinkId};

/// The table at one moment.
#[derive(Clone, Debug, Default)]
pub struct Table {
    ipv4: HashMap<Ipv4Addr, LinkId>,
    ipv6: HashMap<Ipv6Addr, LinkId>,
}

impl Table {
    /// The link that holds `address`.
    pub fn get(&self, address: IpAddr) -> Option<LinkId> {
        match address {
            IpAddr::V4(v4) => self.ipv4.get(&v4).copied(),
            IpAddr::V6(v6) => self.ipv6.get(&v6).copied(),
        }
    }
}

/// Shared by every shard of one gateway. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct Routing(Arc<ArcSwap<Table>>);

impl Routing {
    /// The table now; hold it for a batch, not longer.
    pub fn load(&self) -> arc_swap::Guard<Arc<Table>> {
        self.0.load()
    }

    /// Sends the lease's addresses to `link` from now on.
    pub fn insert(&self, lease: Lease, link: LinkId) {
        self.0.rcu(|table| {
            let mut table = Table::clone(table);
            table.ipv4.insert(lease.ipv4, link);
            if let Some(ipv6) = lease.ipv6 {
                table.ipv6.insert(ipv6, link);
            }
            table
        });
    }

    /// Forgets the lease's addresses, unless a newer link has taken them over.
    pub fn remove(&self, lease: Lease, link: LinkId) {
        self.0.rcu(|table| {
            let mut table = Table::clone(table);
            if table.ipv4.get(&lease.ipv4) == Some(&link) {
                table.ipv4.remove(&lease.ipv4);
            }
            if let Some(ipv6) = lease.ipv6
                && table.ipv6.get(&ipv6) == Some(&link)
            {
                table.ipv6.remove(&ipv6);
            }
            table
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_closing_link_does_not_take_its_successor_along() {
        let routing = Routing::default();
        let lease = Lease { ipv4: Ipv4Addr::new(100, 64, 0, 2), ipv6: Some("fd00::2".parse().unwrap()) };
        let [old, new] = [1, 2].map(|serial| LinkId { shard: 0, serial });
        routing.insert(lease, old);
        routing.insert(lease, new);
        routing.remove(lease, old);
        assert_eq!(routing.load().get(lease.ipv4.into()), Some(new));
        assert_eq!(routing.load().get("fd00::2".parse().unwrap()), Some(new));
        routing.remove(lease, new);
        assert_eq!(routing.load().get(lease.ipv4.into()), None);
    }
}
