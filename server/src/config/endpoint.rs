//! A name or address under which clients reach the gateway. Pure.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::str::FromStr;

/// A name or address of the gateway, with a port when it is not that of `listen.address`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Endpoint {
    /// A DNS name, or an address without brackets.
    pub host: String,
    /// The UDP port.
    pub port: Option<u16>,
}

impl Endpoint {
    /// The name as clients dial it.
    pub fn with_port(&self, default: u16) -> String {
        let port = self.port.unwrap_or(default);
        if self.host.contains(':') { format!("[{}]:{port}", self.host) } else { format!("{}:{port}", self.host) }
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.port, self.host.contains(':')) {
            (None, _) => f.write_str(&self.host),
            (Some(port), true) => write!(f, "[{}]:{port}", self.host),
            (Some(port), false) => write!(f, "{}:{port}", self.host),
        }
    }
}

/// Not a host, `host:port`, address or `[address]:port`.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is neither a host name nor an address, with or without a port")]
pub struct NotAnEndpoint(String);

impl FromStr for Endpoint {
    type Err = NotAnEndpoint;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if let Ok(address) = text.parse::<IpAddr>() {
            return Ok(Self { host: address.to_string(), port: None });
        }
        if let Ok(address) = text.parse::<SocketAddr>() {
            return Ok(Self { host: address.ip().to_string(), port: Some(address.port()) });
        }
        let (host, port) = match text.rsplit_once(':') {
            Some((host, port)) => (host, Some(port.parse().map_err(|_| NotAnEndpoint(text.into()))?)),
            None => (text, None),
        };
        if !is_host_name(host) || port == Some(0) {
            return Err(NotAnEndpoint(text.into()));
        }
        Ok(Self { host: host.to_ascii_lowercase(), port })
    }
}

/// A DNS name as certificates and resolvers take it (RFC 1123 section 2.1); all-numeric last
/// labels are mistyped addresses.
pub(super) fn is_host_name(host: &str) -> bool {
    let label = |label: &str| {
        let bytes = label.as_bytes();
        (1..=63).contains(&bytes.len())
            && bytes.iter().all(|byte| byte.is_ascii_alphanumeric() || *byte == b'-')
            && bytes[0] != b'-'
            && bytes[bytes.len() - 1] != b'-'
    };
    let last = host.rsplit('.').next().unwrap_or_default();
    host.len() <= 253 && host.split('.').all(label) && !last.bytes().all(|byte| byte.is_ascii_digit())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn endpoints_are_names_or_addresses_with_or_without_a_port() {
        for (text, host, dialled) in [
            ("VPN.example.org", "vpn.example.org", "vpn.example.org:443"),
            ("vpn.example.org:8443", "vpn.example.org", "vpn.example.org:8443"),
            ("203.0.113.7", "203.0.113.7", "203.0.113.7:443"),
            ("2001:db8::1", "2001:db8::1", "[2001:db8::1]:443"),
            ("[2001:db8::1]:8443", "2001:db8::1", "[2001:db8::1]:8443"),
        ] {
            let endpoint: Endpoint = text.parse().unwrap();
            assert_eq!((endpoint.host.as_str(), endpoint.with_port(443).as_str()), (host, dialled), "{text}");
        }
        for text in ["", "a b", "-x.org", "x..org", "300.1.1.1", "x:0", "x:99999", "https://x.org", "ä.org"] {
            assert!(text.parse::<Endpoint>().is_err(), "{text}");
        }
    }
}
