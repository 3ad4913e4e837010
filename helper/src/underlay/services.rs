//! Which network service of macOS is the one below the tunnel. Pure.
//!
//! The dynamic store's own "primary" service is ours while the tunnel is up, so services are listed instead, without
//! ours and without other tunnels, in the order that the user has set (`Setup:/Network/Global/IPv4`, `ServiceOrder`).

use std::net::IpAddr;

/// One family of one service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Service {
    /// Its UUID.
    pub id: String,
    /// Its interface.
    pub interface: String,
    /// Its router; a service without one leads nowhere.
    pub router: Option<IpAddr>,
    /// This machine's address there.
    pub address: Option<IpAddr>,
}

/// The service that packets of this family leave through; `None` without a network.
pub fn primary<'a>(services: &'a [Service], order: &[String], v4: bool) -> Option<&'a Service> {
    let usable = services.iter().filter(|service| {
        service.router.is_some_and(|router| router.is_ipv4() == v4) && !is_tunnel(&service.interface)
    });
    let rank = |service: &&Service| order.iter().position(|id| *id == service.id).unwrap_or(usize::MAX);
    usable.min_by_key(rank)
}

/// Interfaces that carry packets of others inside: utun, IPsec, PPP, tunnels of the kernel.
pub fn is_tunnel(interface: &str) -> bool {
    ["utun", "ipsec", "ppp", "gif", "stf"].iter().any(|prefix| interface.starts_with(prefix))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_users_order_decides_among_services_with_a_router() {
        let services = [service("wifi", "en0", Some("192.168.1.1")), service("dock", "en7", Some("10.0.0.1"))];
        let order = |ids: &[&str]| ids.iter().map(ToString::to_string).collect::<Vec<_>>();
        let of = |order: &[String]| primary(&services, order, true).map(|service| service.id.as_str());
        assert_eq!(of(&order(&["dock", "wifi"])), Some("dock"));
        assert_eq!(of(&order(&["wifi", "dock"])), Some("wifi"));
        assert_eq!(of(&order(&["dock"])), Some("dock"), "a service that the order does not name comes last");
        assert_eq!(primary(&services, &[], false), None, "no IPv6");
    }

    #[test]
    fn other_tunnels_and_services_without_a_router_are_no_network() {
        let services = [service("vpn", "utun4", Some("10.8.0.1")), service("bridge", "bridge0", None)];
        assert_eq!(primary(&services, &[], true), None);
        let with_wifi = [&services[..], &[service("wifi", "en0", Some("192.168.1.1"))]].concat();
        assert_eq!(primary(&with_wifi, &["vpn".into()], true).unwrap().id, "wifi");
    }

    fn service(id: &str, interface: &str, router: Option<&str>) -> Service {
        let router = router.map(|router| router.parse().unwrap());
        Service { id: id.into(), interface: interface.into(), router, address: None }
    }
}
