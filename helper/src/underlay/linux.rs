//! Linux: rtnetlink(7) says that something changed; `RTM_GETROUTE` says which way a packet with our
//! mark would take now.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use futures_util::TryStreamExt;
use rtnetlink::packet_route::link::LinkFlags;
use rtnetlink::packet_route::route::{RouteAddress, RouteAttribute, RouteMessage, RouteType};
use rtnetlink::sys::protocols::NETLINK_ROUTE;
use rtnetlink::{Handle, MulticastGroup, RouteMessageBuilder, new_connection};
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep_until};

use super::{Change, Settling, Way, Ways};
use crate::notices::Notices;

/// Links, addresses, routes and rules of both families.
const GROUPS: [MulticastGroup; 7] = [
    MulticastGroup::Link,
    MulticastGroup::Ipv4Ifaddr,
    MulticastGroup::Ipv6Ifaddr,
    MulticastGroup::Ipv4Route,
    MulticastGroup::Ipv6Route,
    MulticastGroup::Ipv4Rule,
    MulticastGroup::Ipv6Rule,
];

/// Where a look goes before the gateway's addresses are known (RFC 5737, RFC 3849): it shows the default
/// routes, and nothing is sent.
const ANYWHERE: [IpAddr; 2] =
    [IpAddr::V4(Ipv4Addr::new(198, 51, 100, 1)), IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1))];

/// Follows the ways to a gateway. Its netlink sockets end with it.
pub struct Watch {
    notices: Notices,
    handle: Handle,
    reader: JoinHandle<()>,
    fwmark: u32,
    /// The gateway's addresses; empty while they are not known.
    towards: Vec<IpAddr>,
    settling: Settling,
}

impl std::fmt::Debug for Watch {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Watch").field("towards", &self.towards).field("settling", &self.settling).finish()
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.reader.abort();
    }
}

impl Watch {
    /// Watches on behalf of packets with this firewall mark. Must be called within a runtime.
    ///
    /// # Errors
    /// What the kernel says to a netlink socket.
    pub async fn open(fwmark: u32) -> io::Result<Self> {
        let notices = Notices::open(NETLINK_ROUTE, &GROUPS.map(|group| group as u32))?;
        let (connection, handle, _) = new_connection()?;
        let reader = tokio::spawn(connection);
        let mut watch = Self { notices, handle, reader, fwmark, towards: Vec::new(), settling: Settling::default() };
        watch.settling = Settling::new(watch.look().await);
        Ok(watch)
    }

    /// Follows the ways to these addresses from now on, in any order. Says when none of them has one.
    pub async fn aim(&mut self, mut towards: Vec<IpAddr>) -> Option<Change> {
        towards.sort_unstable();
        towards.dedup();
        if towards == self.towards {
            return None;
        }
        self.towards = towards;
        self.settling = Settling::new(self.look().await);
        (!self.towards.is_empty() && !self.settling.is_reachable()).then_some(Change::Gone)
    }

    /// Waits for the next change. Cancel-safe: a look that is dropped is made again. While the gateway's
    /// addresses are not known, nobody can say that there is no way to it.
    pub async fn next(&mut self) -> Change {
        loop {
            match self.settling.poll_look() {
                Some(due) => {
                    let due = Instant::from_std(due);
                    tokio::select! {
                        () = self.notices.next() => self.settling.on_notice(std::time::Instant::now()),
                        () = sleep_until(due) => {
                            let ways = self.look().await;
                            match self.settling.on_look(ways) {
                                Some(Change::Gone) if self.towards.is_empty() => {}
                                Some(change) => return change,
                                None => {}
                            }
                        }
                    }
                }
                None => {
                    self.notices.next().await;
                    self.settling.on_notice(std::time::Instant::now());
                }
            }
        }
    }

    async fn look(&self) -> Ways {
        let mut ways = Ways::new();
        for &to in if self.towards.is_empty() { &ANYWHERE[..] } else { &self.towards } {
            ways.extend(self.way(to).await);
        }
        ways
    }

    /// `None` when the kernel has no route, or the interface no carrier.
    async fn way(&self, to: IpAddr) -> Option<Way> {
        let mut request = match to {
            IpAddr::V4(v4) => RouteMessageBuilder::<Ipv4Addr>::new().destination_prefix(v4, 32).build(),
            IpAddr::V6(v6) => RouteMessageBuilder::<Ipv6Addr>::new().destination_prefix(v6, 128).build(),
        };
        request.attributes.push(RouteAttribute::Mark(self.fwmark));
        let mut answers = Box::pin(self.handle.route().get(request).execute());
        let answer = answers.try_next().await.ok()??;
        let way = way(to, &answer)?;
        let mut links = Box::pin(self.handle.link().get().match_index(way.interface).execute());
        let link = links.try_next().await.ok()??;
        link.header.flags.contains(LinkFlags::LowerUp).then_some(way)
    }
}

/// An interface without a link layer: TUN and WireGuard (`ARPHRD_NONE`, linux/if_arp.h).
pub fn is_tunnel(interface: &str) -> bool {
    let kind = std::fs::read_to_string(format!("/sys/class/net/{interface}/type")).unwrap_or_default();
    kind.trim() == "65534"
}

fn way(to: IpAddr, route: &RouteMessage) -> Option<Way> {
    if !matches!(route.header.kind, RouteType::Unicast | RouteType::Local) {
        return None;
    }
    let mut way = Way { to, interface: 0, router: None, source: None };
    for attribute in &route.attributes {
        match attribute {
            RouteAttribute::Oif(index) => way.interface = *index,
            RouteAttribute::Gateway(router) => way.router = address(router),
            RouteAttribute::PrefSource(source) => way.source = address(source),
            _ => {}
        }
    }
    (way.interface != 0).then_some(way)
}

fn address(address: &RouteAddress) -> Option<IpAddr> {
    match address {
        RouteAddress::Inet(v4) => Some(IpAddr::V4(*v4)),
        RouteAddress::Inet6(v6) => Some(IpAddr::V6(*v6)),
        _ => None,
    }
}
