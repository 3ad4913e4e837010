//! The gateway's interface and the networks around it, over rtnetlink.
//!
//! Addresses, MTU and state vanish with the interface, which the kernel removes when its last
//! queue is closed: nothing here needs undoing.

use std::collections::HashMap;
use std::io;
use std::net::IpAddr;

use futures_util::TryStreamExt;
use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use rtnetlink::packet_core::ErrorMessage;
use rtnetlink::packet_route::address::{AddressAttribute, AddressHeaderFlags};
use rtnetlink::packet_route::link::LinkAttribute;
use rtnetlink::packet_route::route::{RouteAddress, RouteAttribute, RouteMessage, RouteType};
use rtnetlink::{Handle, LinkUnspec, RouteMessageBuilder};

use crate::addresses::Pool;

/// A netlink socket of its own, closed on drop.
#[derive(Debug)]
pub struct Netlink {
    handle: Handle,
    connection: tokio::task::JoinHandle<()>,
}

/// The kernel refused.
#[derive(Debug, thiserror::Error)]
pub enum NetlinkError {
    /// No socket.
    #[error("cannot open a netlink socket: {0}")]
    Open(io::Error),
    /// A request failed.
    #[error("cannot {what}: {error}")]
    Refused {
        /// What was asked.
        what: &'static str,
        /// What the kernel said.
        error: io::Error,
    },
    /// There is no such interface.
    #[error("there is no interface {0}")]
    NoInterface(String),
}

/// A network that this host reaches without our help.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LocalNetwork {
    /// The destination.
    pub network: IpNet,
    /// Through which interface; empty for a route without one.
    pub interface: String,
}

/// The network inside the tunnel is in use outside.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "the inner network {inner} overlaps {} of this host (interface {}); set {key} to a network that nothing here uses",
    .with.network, .with.interface
)]
pub struct Overlap {
    /// Ours.
    pub inner: IpNet,
    /// The one that was there.
    pub with: LocalNetwork,
    /// The setting to change.
    pub key: &'static str,
}

impl Netlink {
    /// Opens a socket in this network namespace. Needs a tokio runtime.
    ///
    /// # Errors
    /// [`NetlinkError::Open`].
    pub fn open() -> Result<Self, NetlinkError> {
        let (connection, handle, _) = rtnetlink::new_connection().map_err(NetlinkError::Open)?;
        Ok(Self { handle, connection: tokio::spawn(connection) })
    }

    /// Networks that this host has addresses in or routes to, apart from default routes,
    /// multicast, loopback and link-local ones.
    ///
    /// # Errors
    /// [`NetlinkError::Refused`] when a dump fails.
    pub async fn local_networks(&self) -> Result<Vec<LocalNetwork>, NetlinkError> {
        let names = self.interface_names().await?;
        let name = |index: u32| names.get(&index).cloned().unwrap_or_default();
        let mut networks = Vec::new();
        let mut addresses = self.handle.address().get().execute();
        while let Some(message) = addresses.try_next().await.map_err(refused("list the addresses"))? {
            for attribute in &message.attributes {
                if let AddressAttribute::Address(address) = attribute
                    && let Ok(network) = IpNet::new(*address, message.header.prefix_len)
                {
                    networks.push(LocalNetwork { network: network.trunc(), interface: name(message.header.index) });
                }
            }
        }
        for request in [
            RouteMessageBuilder::<std::net::Ipv4Addr>::new().build(),
            RouteMessageBuilder::<std::net::Ipv6Addr>::new().build(),
        ] {
            let mut routes = self.handle.route().get(request).execute();
            while let Some(route) = routes.try_next().await.map_err(refused("list the routes"))? {
                if let Some((network, index)) = unicast_route(&route) {
                    networks.push(LocalNetwork { network, interface: name(index) });
                }
            }
        }
        networks.retain(|local| is_ordinary(local.network));
        Ok(networks)
    }

    /// Gives the interface its addresses and MTU and sets it up.
    ///
    /// # Errors
    /// [`NetlinkError`] when the interface is gone or the kernel refuses.
    pub async fn bring_up(&self, interface: &str, pool: &Pool, mtu_bytes: u16) -> Result<(), NetlinkError> {
        let index = self.index(interface).await?;
        let gateway = pool.gateway();
        let mut addresses = vec![(IpAddr::V4(gateway.ipv4), pool.ipv4().prefix_len())];
        if let (Some(ipv6), Some(network)) = (gateway.ipv6, pool.ipv6()) {
            addresses.push((ipv6.into(), network.prefix_len()));
        }
        // First the MTU: the kernel refuses IPv6 below 1,280.
        let link = LinkUnspec::new_with_index(index).mtu(mtu_bytes.into()).up().build();
        self.handle.link().set(link).execute().await.map_err(refused("set the interface up"))?;
        for (address, prefix) in addresses {
            let mut request = self.handle.address().add(index, address, prefix).replace();
            // Nobody else is on this link: no duplicate detection, usable at once.
            request.message_mut().header.flags |= AddressHeaderFlags::Nodad;
            request.execute().await.map_err(refused("give the interface its address"))?;
        }
        Ok(())
    }

    /// Gives the interface's IPv4 address the larger network of `to`, which has the same gateway address. The larger
    /// one is there before the smaller one goes, so that no packet is without a route.
    ///
    /// # Errors
    /// [`NetlinkError`] when the interface is gone or the kernel refuses.
    pub async fn resize(&self, interface: &str, from: &Pool, to: &Pool) -> Result<(), NetlinkError> {
        let (index, address) = (self.index(interface).await?, IpAddr::V4(to.gateway().ipv4));
        let request = self.handle.address().add(index, address, to.ipv4().prefix_len()).replace();
        request.execute().await.map_err(refused("give the interface its address"))?;
        let mut addresses = self.handle.address().get().set_link_index_filter(index).execute();
        while let Some(message) = addresses.try_next().await.map_err(refused("list the addresses"))? {
            let is_ours = message.attributes.contains(&AddressAttribute::Address(address));
            if is_ours && message.header.prefix_len == from.ipv4().prefix_len() {
                let request = self.handle.address().del(message);
                return request.execute().await.map_err(refused("take the interface's address in the smaller network"));
            }
        }
        Ok(())
    }

    async fn index(&self, interface: &str) -> Result<u32, NetlinkError> {
        let names = self.interface_names().await?;
        let found = names.into_iter().find(|(_, name)| name == interface);
        found.map(|(index, _)| index).ok_or_else(|| NetlinkError::NoInterface(interface.to_owned()))
    }

    async fn interface_names(&self) -> Result<HashMap<u32, String>, NetlinkError> {
        let mut names = HashMap::new();
        let mut links = self.handle.link().get().execute();
        while let Some(link) = links.try_next().await.map_err(refused("list the interfaces"))? {
            for attribute in link.attributes {
                if let LinkAttribute::IfName(name) = attribute {
                    names.insert(link.header.index, name);
                }
            }
        }
        Ok(names)
    }
}

impl Drop for Netlink {
    fn drop(&mut self) {
        self.connection.abort();
    }
}

/// Is any of our networks in use outside?
///
/// # Errors
/// The first [`Overlap`].
pub fn check_overlap(pool: &Pool, locals: &[LocalNetwork]) -> Result<(), Overlap> {
    let ours = [Some((IpNet::V4(pool.ipv4()), "network.ipv4")), pool.ipv6().map(|net| (net.into(), "network.ipv6"))];
    for (inner, key) in ours.into_iter().flatten() {
        if let Some(with) = locals.iter().find(|local| overlap(inner, local.network)) {
            return Err(Overlap { inner, with: with.clone(), key });
        }
    }
    Ok(())
}

/// True when the networks share an address.
pub fn overlap(a: IpNet, b: IpNet) -> bool {
    a.contains(&b) || b.contains(&a)
}

/// A random /24 for the inside that no local network overlaps: first from 100.64.0.0/10 (RFC
/// 6598), which homes and offices do not use, then from 10.0.0.0/8. `random` gives random numbers.
pub fn choose_ipv4(locals: &[LocalNetwork], mut random: impl FnMut() -> u32) -> Option<Ipv4Net> {
    const TRIES: u32 = 512;
    for (base, bits) in [(0x6440_0000_u32, 14), (0x0a00_0000, 16)] {
        for _ in 0..TRIES {
            let network = base | (random() % (1 << bits)) << 8;
            let network = Ipv4Net::new_assert(network.into(), 24);
            if !locals.iter().any(|local| overlap(network.into(), local.network)) {
                return Some(network);
            }
        }
    }
    None
}

/// A random unique local /64 (RFC 4193 section 3.2.2) from 56 random bits.
pub fn choose_ipv6(random: u64) -> Ipv6Net {
    let network = 0xfd << 120 | u128::from(random >> 8) << 64;
    Ipv6Net::new_assert(network.into(), 64)
}

fn unicast_route(route: &RouteMessage) -> Option<(IpNet, u32)> {
    if route.header.kind != RouteType::Unicast {
        return None;
    }
    let mut destination = None;
    let mut interface = 0;
    for attribute in &route.attributes {
        match attribute {
            RouteAttribute::Destination(RouteAddress::Inet(address)) => destination = Some(IpAddr::V4(*address)),
            RouteAttribute::Destination(RouteAddress::Inet6(address)) => destination = Some(IpAddr::V6(*address)),
            RouteAttribute::Oif(index) => interface = *index,
            _ => {}
        }
    }
    Some((IpNet::new(destination?, route.header.destination_prefix_length).ok()?.trunc(), interface))
}

fn is_ordinary(network: IpNet) -> bool {
    let address = network.addr();
    let link_local = match address {
        IpAddr::V4(v4) => v4.is_link_local(),
        IpAddr::V6(v6) => v6.is_unicast_link_local(),
    };
    network.prefix_len() > 0 && !address.is_loopback() && !address.is_multicast() && !link_local
}

fn refused(what: &'static str) -> impl Fn(rtnetlink::Error) -> NetlinkError {
    move |error| {
        let error = match error {
            rtnetlink::Error::NetlinkError(ErrorMessage { code: Some(code), .. }) => {
                io::Error::from_raw_os_error(-code.get())
            }
            other => io::Error::other(other),
        };
        NetlinkError::Refused { what, error }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_overlap_names_both_networks_and_the_setting() {
        let pool = Pool::new("100.77.3.0/24".parse().unwrap(), Some("fd4e:9a1c::/64".parse().unwrap()));
        assert_eq!(check_overlap(&pool, &[local("100.77.4.0/24"), local("fd4e:9a1d::/64")]), Ok(()));
        for (network, key) in
            [("100.77.3.7/32", "network.ipv4"), ("100.64.0.0/10", "network.ipv4"), ("fd4e:9a1c::/64", "network.ipv6")]
        {
            let told = check_overlap(&pool, &[local(network)]).unwrap_err().to_string();
            assert!(told.contains(network) && told.contains(key) && told.contains("eth7"), "{told}");
        }
    }

    #[test]
    fn the_chosen_network_avoids_what_is_there() {
        let mut state = 1_u32;
        let mut random = || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            state >> 3
        };
        let free = choose_ipv4(&[], &mut random).unwrap();
        assert!("100.64.0.0/10".parse::<Ipv4Net>().unwrap().contains(&free));
        let beside = choose_ipv4(&[local("100.64.0.0/10")], &mut random).unwrap();
        assert!("10.0.0.0/8".parse::<Ipv4Net>().unwrap().contains(&beside));
        assert_eq!(choose_ipv4(&[local("100.64.0.0/10"), local("10.0.0.0/8")], &mut random), None);
        assert!("fd00::/8".parse::<Ipv6Net>().unwrap().contains(&choose_ipv6(u64::MAX)));
    }

    fn local(network: &str) -> LocalNetwork {
        LocalNetwork { network: network.parse().unwrap(), interface: "eth7".into() }
    }
}
