//! The clients' own addresses: a gateway bounds what one address may do, and a herd has many.

use std::net::Ipv4Addr;
use std::str::FromStr;

use ipnet::Ipv4Net;

/// An IPv4 network of which every host address is local.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Sources(Ipv4Net);

impl Sources {
    /// How many there are.
    pub(crate) fn count(self) -> u32 {
        u32::from(self.0.broadcast()) - u32::from(self.0.network()) - 1
    }

    /// The address of a client. When there are more clients than addresses, some share one.
    pub(crate) fn of(self, client: usize) -> Ipv4Addr {
        let index = (client % self.count() as usize) as u32;
        Ipv4Addr::from(u32::from(self.0.network()) + 1 + index)
    }
}

impl FromStr for Sources {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let network: Ipv4Net = text.parse().map_err(|_| "an IPv4 network such as 10.99.0.0/16 is needed".to_owned())?;
        if network.prefix_len() > 30 {
            return Err(format!("{network} holds no host besides its network and broadcast addresses"));
        }
        Ok(Self(network.trunc()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn every_client_has_an_address_of_its_own_while_they_last() {
        let sources: Sources = "10.99.0.0/24".parse().unwrap();
        assert_eq!(sources.count(), 254);
        assert_eq!(sources.of(0), Ipv4Addr::new(10, 99, 0, 1));
        assert_eq!(sources.of(253), Ipv4Addr::new(10, 99, 0, 254));
        assert_eq!((0..254).map(|client| sources.of(client)).collect::<HashSet<_>>().len(), 254);
        assert_eq!(sources.of(254), sources.of(0));
    }

    #[test]
    fn a_network_without_hosts_is_refused() {
        for text in ["10.99.0.0/31", "10.99.0.1/32", "10.99.0.0", "fd00::/64", ""] {
            assert!(text.parse::<Sources>().is_err(), "{text:?}");
        }
        assert_eq!("10.99.7.9/30".parse::<Sources>().unwrap().of(1), Ipv4Addr::new(10, 99, 7, 10));
    }
}
