//! May this packet cross? Source, destination, isolation. Pure, and a few comparisons per packet.
//!
//! The gateway's firewall says the same again (architecture.md section 5). Not here: where a
//! packet goes (`shard`), what its sender is told (`icmp`).

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;

use crate::packet::{Dropped, Header};

/// The inner addresses of one session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lease {
    /// The device's inner IPv4 address.
    pub ipv4: Ipv4Addr,
    /// The device's inner IPv6 address.
    pub ipv6: Option<Ipv6Addr>,
}

impl Lease {
    /// True when `address` is one of the session's own.
    pub fn holds(&self, address: IpAddr) -> bool {
        match address {
            IpAddr::V4(v4) => v4 == self.ipv4,
            IpAddr::V6(v6) => Some(v6) == self.ipv6,
        }
    }
}

/// What a gateway lets through.
#[derive(Clone, Debug)]
pub struct Policy {
    /// The inner networks from which clients have their addresses.
    pub networks: Vec<IpNet>,
    /// The gateway's own inner addresses, which lie in `networks`.
    pub gateway: Vec<IpAddr>,
    /// Refuse packets from one client to another.
    pub isolation: bool,
}

impl Policy {
    /// May a packet from the client with this lease go on?
    ///
    /// # Errors
    /// [`Dropped::BadSource`] unless the source is the client's own address;
    /// [`Dropped::BadDestination`] for destinations that no tunnel carries, the broadcast
    /// addresses of `networks` among them; [`Dropped::Isolation`] for another client's address
    /// while isolation is on.
    pub fn from_client(&self, lease: &Lease, header: &Header) -> Result<(), Dropped> {
        client_out(lease, header)?;
        let destination = header.dst();
        let Some(network) = self.networks.iter().find(|network| network.contains(&destination)) else {
            return Ok(());
        };
        if self.gateway.contains(&destination) {
            return Ok(());
        }
        // A /31 has no broadcast address (RFC 3021), and IPv6 has none at all.
        if matches!(network, IpNet::V4(v4) if v4.prefix_len() < 31 && v4.broadcast() == destination) {
            return Err(Dropped::BadDestination { destination });
        }
        if self.isolation {
            return Err(Dropped::Isolation { destination });
        }
        Ok(())
    }

    /// May a packet go to the client that holds its destination?
    ///
    /// # Errors
    /// [`Dropped::Isolation`] when it comes from another client while isolation is on.
    pub fn to_client(&self, header: &Header) -> Result<(), Dropped> {
        let source = header.src();
        let from_client = self.isolation
            && self.networks.iter().any(|network| network.contains(&source))
            && !self.gateway.contains(&source);
        if from_client { Err(Dropped::Isolation { destination: header.dst() }) } else { Ok(()) }
    }
}

/// May a client send this packet into the tunnel?
///
/// # Errors
/// [`Dropped::BadSource`] unless the source is the session's own address;
/// [`Dropped::BadDestination`] for destinations that no tunnel carries.
pub fn client_out(lease: &Lease, header: &Header) -> Result<(), Dropped> {
    if !lease.holds(header.src()) {
        return Err(Dropped::BadSource { sender: header.src() });
    }
    if !is_carried(header.dst()) {
        return Err(Dropped::BadDestination { destination: header.dst() });
    }
    Ok(())
}

/// May a client take this packet from the tunnel?
///
/// # Errors
/// [`Dropped::BadDestination`] unless it is for the session's own address.
pub fn client_in(lease: &Lease, header: &Header) -> Result<(), Dropped> {
    if lease.holds(header.dst()) { Ok(()) } else { Err(Dropped::BadDestination { destination: header.dst() }) }
}

/// False for addresses that mean something on one link or host only, or many hosts at once
/// (RFC 6890): unspecified, loopback, link-local, multicast, broadcast, and IPv4-mapped IPv6,
/// which would smuggle the others in.
fn is_carried(destination: IpAddr) -> bool {
    match destination {
        IpAddr::V4(v4) => {
            let no =
                v4.octets()[0] == 0 || v4.is_loopback() || v4.is_link_local() || v4.is_multicast() || v4.is_broadcast();
            !no
        }
        IpAddr::V6(v6) => {
            let no = v6.is_unspecified()
                || v6.is_loopback()
                || v6.is_unicast_link_local()
                || v6.is_multicast()
                || v6.to_ipv4_mapped().is_some();
            !no
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_spoofed_source_is_dropped() {
        for sender in ["100.77.3.8", "192.0.2.1", "fd4e::8"] {
            let header = header(sender, if sender.contains(':') { "2001:db8::1" } else { "192.0.2.9" });
            let bad = Err(Dropped::BadSource { sender: sender.parse().unwrap() });
            assert_eq!(policy(false).from_client(&lease(), &header), bad);
            assert_eq!(client_out(&lease(), &header), bad);
        }
    }

    #[test]
    fn a_session_without_ipv6_may_not_send_any() {
        let lease = Lease { ipv6: None, ..lease() };
        let header = header("fd4e::7", "2001:db8::1");
        assert_eq!(client_out(&lease, &header), Err(Dropped::BadSource { sender: header.src() }));
    }

    #[test]
    fn own_packets_to_the_outside_cross_in_both_families() {
        for (src, dst) in [("100.77.3.7", "198.51.100.4"), ("100.77.3.7", "10.0.0.1"), ("fd4e::7", "2001:db8::1")] {
            assert_eq!(policy(true).from_client(&lease(), &header(src, dst)), Ok(()));
            assert_eq!(client_out(&lease(), &header(src, dst)), Ok(()));
        }
    }

    #[test]
    fn destinations_that_no_tunnel_carries_are_refused() {
        let v4 =
            ["0.0.0.0", "0.1.2.3", "127.0.0.1", "169.254.1.1", "224.0.0.251", "239.255.255.250", "255.255.255.255"];
        let v6 = ["::", "::1", "fe80::1", "ff02::fb", "ff0e::1", "::ffff:127.0.0.1"];
        for dst in v4.into_iter().chain(v6) {
            let header = header(if dst.contains(':') { "fd4e::7" } else { "100.77.3.7" }, dst);
            let bad = Err(Dropped::BadDestination { destination: dst.parse().unwrap() });
            assert_eq!(policy(false).from_client(&lease(), &header), bad);
            assert_eq!(client_out(&lease(), &header), bad);
        }
    }

    #[test]
    fn the_inner_networks_broadcast_address_is_refused() {
        let header = header("100.77.3.7", "100.77.3.255");
        let bad = Err(Dropped::BadDestination { destination: header.dst() });
        assert_eq!(policy(false).from_client(&lease(), &header), bad);
        assert_eq!(policy(true).from_client(&lease(), &header), bad);
    }

    #[test]
    fn clients_reach_each_other_only_without_isolation() {
        for (src, dst) in [("100.77.3.7", "100.77.3.8"), ("fd4e::7", "fd4e::8")] {
            let header = header(src, dst);
            let isolated = Err(Dropped::Isolation { destination: header.dst() });
            assert_eq!(policy(true).from_client(&lease(), &header), isolated);
            assert_eq!(policy(true).to_client(&header), isolated);
            assert_eq!(policy(false).from_client(&lease(), &header), Ok(()));
            assert_eq!(policy(false).to_client(&header), Ok(()));
        }
    }

    #[test]
    fn isolation_spares_the_gateway_and_the_outside() {
        assert_eq!(policy(true).from_client(&lease(), &header("100.77.3.7", "100.77.3.1")), Ok(()));
        for (src, dst) in [("100.77.3.1", "100.77.3.7"), ("fd4e::1", "fd4e::7"), ("198.51.100.4", "100.77.3.7")] {
            assert_eq!(policy(true).to_client(&header(src, dst)), Ok(()));
        }
    }

    #[test]
    fn a_client_takes_only_what_is_for_it() {
        assert_eq!(client_in(&lease(), &header("198.51.100.4", "100.77.3.7")), Ok(()));
        assert_eq!(client_in(&lease(), &header("2001:db8::1", "fd4e::7")), Ok(()));
        let other = header("198.51.100.4", "192.168.1.20");
        assert_eq!(client_in(&lease(), &other), Err(Dropped::BadDestination { destination: other.dst() }));
    }

    fn lease() -> Lease {
        Lease { ipv4: "100.77.3.7".parse().unwrap(), ipv6: Some("fd4e::7".parse().unwrap()) }
    }

    fn policy(isolation: bool) -> Policy {
        Policy {
            networks: vec!["100.77.3.0/24".parse().unwrap(), "fd4e::/64".parse().unwrap()],
            gateway: vec!["100.77.3.1".parse().unwrap(), "fd4e::1".parse().unwrap()],
            isolation,
        }
    }

    /// An empty packet's header.
    fn header(src: &str, dst: &str) -> Header {
        let packet = match (src.parse().unwrap(), dst.parse().unwrap()) {
            (IpAddr::V4(src), IpAddr::V4(dst)) => {
                [&[0x45, 0, 0, 20, 0, 0, 0, 0, 64, 59, 0, 0][..], &src.octets(), &dst.octets()].concat()
            }
            (IpAddr::V6(src), IpAddr::V6(dst)) => {
                [&[0x60, 0, 0, 0, 0, 0, 59, 64][..], &src.octets(), &dst.octets()].concat()
            }
            _ => panic!("both addresses must be of one family"),
        };
        Header::parse(&packet).unwrap()
    }
}
