//! What `push.dns` and the section `[dns]` mean.

use std::fmt;
use std::net::{IpAddr, SocketAddr};

use hickory_resolver::proto::rr::Name;

/// A name server that clients are told of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NameServer {
    /// The gateway itself.
    Gateway,
    /// Another one.
    Address(IpAddr),
}

impl fmt::Display for NameServer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Gateway => f.write_str("gateway"),
            Self::Address(address) => address.fmt(f),
        }
    }
}

impl NameServer {
    /// `gateway`, or an address.
    pub fn parse(text: &str) -> Option<Self> {
        if text == "gateway" { Some(Self::Gateway) } else { text.parse().ok().map(Self::Address) }
    }
}

/// Who answers what the gateway itself does not know.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Upstream {
    /// Whoever answers this host: the servers of `/etc/resolv.conf`.
    System,
    /// This one.
    Server(SocketAddr),
}

impl Upstream {
    /// `system`, or an address with or without a port.
    pub fn parse(text: &str) -> Option<Self> {
        if text == "system" { Some(Self::System) } else { server(text).map(Self::Server) }
    }
}

/// A domain with a server of its own; several for one domain are tried in their order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Zone {
    /// The domain and everything below it.
    pub name: Name,
    /// Who answers it.
    pub server: SocketAddr,
}

impl Zone {
    /// `corp.example=10.0.0.53`, with or without a port.
    pub fn parse(text: &str) -> Option<Self> {
        let (name, address) = text.split_once('=')?;
        Some(Self { name: domain(name.trim())?, server: server(address.trim())? })
    }
}

/// The gateway's resolver.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Dns {
    /// `dns.upstream`, best first.
    pub upstream: Vec<Upstream>,
    /// `dns.zones`.
    pub zones: Vec<Zone>,
    /// `dns.inner`: the domain of the devices' names; `None` means that they have none.
    pub inner: Option<Name>,
}

/// A domain below the root, absolute and in lower case. Wider than a host name: reverse domains and
/// those of services (`_msdcs.corp.example`) are domains too.
pub fn domain(text: &str) -> Option<Name> {
    let letter = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_');
    let labels = text.trim_end_matches('.');
    let well_formed = labels.split('.').all(|label| (1..=63).contains(&label.len()) && label.bytes().all(letter));
    let mut name = well_formed.then(|| Name::from_ascii(labels.to_ascii_lowercase()).ok()).flatten()?;
    name.set_fqdn(true);
    Some(name)
}

fn server(text: &str) -> Option<SocketAddr> {
    const PORT: u16 = 53;
    let address: SocketAddr = match text.parse::<IpAddr>() {
        Ok(address) => SocketAddr::new(address, PORT),
        Err(_) => text.parse().ok()?,
    };
    (!address.ip().is_unspecified() && !address.ip().is_multicast() && address.port() != 0).then_some(address)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn servers_have_a_port_when_they_say_one() {
        assert_eq!(Upstream::parse("system"), Some(Upstream::System));
        assert_eq!(Upstream::parse("9.9.9.9"), Some(Upstream::Server("9.9.9.9:53".parse().unwrap())));
        assert_eq!(Upstream::parse("[2620:fe::9]:5353"), Some(Upstream::Server("[2620:fe::9]:5353".parse().unwrap())));
        for text in ["", "gateway", "dns.example", "0.0.0.0", "ff02::fb", "9.9.9.9:0"] {
            assert_eq!(Upstream::parse(text), None, "{text}");
        }
    }

    #[test]
    fn a_zone_is_a_domain_and_its_server() {
        let zone = Zone::parse("Corp.Example.=10.0.0.53:5353").unwrap();
        assert_eq!((zone.name.to_ascii().as_str(), zone.server), ("corp.example.", "10.0.0.53:5353".parse().unwrap()));
        assert!(Zone::parse("10.in-addr.arpa=10.0.0.53").is_some());
        for text in ["corp.example", "=10.0.0.53", ".=10.0.0.53", "a..b=10.0.0.53", "a b=10.0.0.53", "corp.example=ns1"]
        {
            assert_eq!(Zone::parse(text), None, "{text}");
        }
    }
}
