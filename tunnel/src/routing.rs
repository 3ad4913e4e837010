//! Inner address → link. One table for all shards of a gateway, read without locks on every packet.
//!
//! A concurrent hash table: opening a session among 10,000 changes one entry, where a table that is
//! replaced as a whole would be copied.

use std::net::IpAddr;
use std::sync::Arc;

use papaya::{HashMap, Operation};

use crate::shard::mailbox::{Lease, LinkId};

/// Shared by every shard of one gateway. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct Routing(Arc<HashMap<IpAddr, LinkId>>);

impl Routing {
    /// The link that holds `address`.
    pub fn get(&self, address: IpAddr) -> Option<LinkId> {
        self.0.pin().get(&address).copied()
    }

    /// Sends the lease's addresses to `link` from now on.
    pub fn insert(&self, lease: Lease, link: LinkId) {
        let table = self.0.pin();
        for address in addresses(lease) {
            table.insert(address, link);
        }
    }

    /// Forgets the lease's addresses, unless a newer link has taken them over.
    pub fn remove(&self, lease: Lease, link: LinkId) {
        let table = self.0.pin();
        for address in addresses(lease) {
            table.compute(address, |held| match held {
                Some((_, held)) if *held == link => Operation::Remove,
                _ => Operation::<LinkId, ()>::Abort(()),
            });
        }
    }
}

fn addresses(lease: Lease) -> impl Iterator<Item = IpAddr> {
    std::iter::once(lease.ipv4.into()).chain(lease.ipv6.map(Into::into))
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;

    #[test]
    fn a_closing_link_does_not_take_its_successor_along() {
        let routing = Routing::default();
        let lease = Lease { ipv4: Ipv4Addr::new(100, 64, 0, 2), ipv6: Some("fd00::2".parse().unwrap()) };
        let [old, new] = [1, 2].map(|serial| LinkId { shard: 0, serial });
        routing.insert(lease, old);
        routing.insert(lease, new);
        routing.remove(lease, old);
        assert_eq!(routing.get(lease.ipv4.into()), Some(new));
        assert_eq!(routing.get("fd00::2".parse().unwrap()), Some(new));
        routing.remove(lease, new);
        assert_eq!(routing.get(lease.ipv4.into()), None);
    }
}
