//! The kill switch: refuses what would leave this machine beside the tunnel. The rules are a value that every
//! platform translates; `cfg` appears here and nowhere above.
//!
//! Allowed are the tunnel, the tunnel's own packets, and what a network needs to be a network (loopback, DHCP,
//! neighbour discovery); local networks if the user wants, but never name servers there. What is refused is
//! answered at once, so that programs notice.
//!
//! The block of an interface has one name in the kernel, so the kernel is its journal: whatever an earlier run
//! left is replaced or removed by that name. Not here: when it is in force (`supervisor`, `service`).

use std::net::IpAddr;

use culvert_protocol::{Problem, code};
use ipnet::IpNet;

#[cfg(target_os = "linux")]
#[path = "guard/linux.rs"]
mod imp;
#[cfg(target_os = "macos")]
#[path = "guard/macos.rs"]
mod imp;
#[cfg(any(target_os = "macos", test))]
mod pf;
#[cfg(any(target_os = "macos", test))]
mod reference;
pub use imp::Guard;

/// What to hold back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Block {
    /// The tunnel interface, whether it exists or not.
    pub device: String,
    /// Marks the tunnel's own packets.
    pub fwmark: u32,
    /// Local networks may be reached.
    pub allow_lan: bool,
    /// Holds back only what goes here, for a gateway that carries chosen networks; empty for everything.
    pub only: Vec<IpNet>,
    /// Destinations that the gateway wants outside the tunnel.
    pub excluded: Vec<IpNet>,
    /// For a network's sign-in page.
    pub opening: Option<Opening>,
}

/// What it takes to see a sign-in page, and nothing else.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Opening {
    /// Where the page is: TCP to these may pass.
    pub page: Vec<IpAddr>,
    /// The network's own name servers.
    pub name_servers: Vec<IpAddr>,
}

/// One line of the block. The first that fits a packet decides.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Rule {
    /// Lets it go.
    Pass(Packets),
    /// Refuses it, with an answer.
    Refuse(Packets),
}

/// Which packets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Packets {
    /// Within this machine.
    Loopback,
    /// Into the tunnel, or out of it.
    Tunnel(String),
    /// The tunnel's own, by their mark.
    Own(u32),
    /// DHCP (RFC 2131) and DHCPv6 (RFC 8415), from client to server.
    Dhcp,
    /// Router and neighbour discovery (RFC 4861), multicast listeners (RFC 3810).
    NeighbourDiscovery,
    /// DNS, plain or over TLS (RFC 7858), wherever it goes.
    Names,
    /// Plain DNS to these name servers.
    NamesAt(Vec<IpAddr>),
    /// TCP to these addresses.
    Web(Vec<IpAddr>),
    /// To these networks.
    To(Vec<IpNet>),
    /// All the rest.
    Everything,
}

impl Block {
    /// The rules, in order.
    pub fn rules(&self) -> Vec<Rule> {
        let mut rules = vec![
            // What there is most of comes first.
            Rule::Pass(Packets::Tunnel(self.device.clone())),
            Rule::Pass(Packets::Own(self.fwmark)),
            Rule::Pass(Packets::Loopback),
        ];
        if !self.excluded.is_empty() {
            rules.push(Rule::Pass(Packets::To(self.excluded.clone())));
        }
        if !self.only.is_empty() {
            rules.push(Rule::Refuse(Packets::To(self.only.clone())));
            return rules;
        }
        if let Some(Opening { page, name_servers }) = &self.opening {
            rules.push(Rule::Pass(Packets::NamesAt(name_servers.clone())));
            rules.push(Rule::Pass(Packets::Web(page.clone())));
        }
        rules.push(Rule::Pass(Packets::Dhcp));
        rules.push(Rule::Pass(Packets::NeighbourDiscovery));
        // A name server at home asks one outside.
        rules.push(Rule::Refuse(Packets::Names));
        if self.allow_lan {
            rules.push(Rule::Pass(Packets::To(local_networks())));
        }
        rules.push(Rule::Refuse(Packets::Everything));
        rules
    }
}

/// Addresses that no router of the internet carries: private (RFC 1918, RFC 4193), link-local (RFC 3927,
/// RFC 4291) and local multicast (RFC 5771, RFC 2365, RFC 4291). A hostile network may claim others to be
/// local (TunnelCrack, 2023), so what it claims is not asked.
fn local_networks() -> Vec<IpNet> {
    const NETWORKS: [&str; 12] = [
        "10.0.0.0/8",
        "172.16.0.0/12",
        "192.168.0.0/16",
        "169.254.0.0/16",
        "224.0.0.0/24",
        "239.0.0.0/8",
        "255.255.255.255/32",
        "fc00::/7",
        "fe80::/10",
        "ff01::/16",
        "ff02::/16",
        "ff05::/16",
    ];
    NETWORKS.iter().filter_map(|network| network.parse().ok()).collect()
}

/// The block could not be changed; it is as it was.
#[derive(Debug, thiserror::Error)]
pub enum GuardError {
    /// The program that talks to the kernel's firewall is missing.
    #[error("the program {0} is missing")]
    Missing(&'static str),
    /// This process lacks the capability.
    #[error("CAP_NET_ADMIN is missing")]
    NotPermitted,
    /// The program, or the kernel, refused.
    #[error("{0}")]
    Refused(String),
}

impl GuardError {
    /// The same in the catalogue's terms.
    pub fn problem(&self) -> Problem {
        let sentence = format!("The kill switch cannot be changed: {self}");
        let problem = Problem::new(code::KILL_SWITCH).because(sentence);
        match self {
            Self::NotPermitted => Problem::new(code::CAPABILITY),
            Self::Missing(program) => problem.hint(format!(
                "Install {program} (apt install nftables), or connect without it: culvert settings set kill-switch off"
            )),
            Self::Refused(_) => problem,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_refused_before_local_networks_are_let_through() {
        let rules = block(true, &[]).rules();
        let place = |wanted: &Rule| rules.iter().position(|rule| rule == wanted).unwrap();
        assert!(place(&Rule::Refuse(Packets::Names)) < place(&Rule::Pass(Packets::To(local_networks()))));
        assert_eq!(rules.last(), Some(&Rule::Refuse(Packets::Everything)));
    }

    #[test]
    fn without_local_networks_nothing_but_the_tunnel_and_the_network_itself_is_let_through() {
        let let_through: Vec<Packets> = block(false, &[])
            .rules()
            .into_iter()
            .filter_map(|rule| match rule {
                Rule::Pass(packets) => Some(packets),
                Rule::Refuse(_) => None,
            })
            .collect();
        let tunnel = Packets::Tunnel("culvert0".into());
        let expected = [tunnel, Packets::Own(7), Packets::Loopback, Packets::Dhcp, Packets::NeighbourDiscovery];
        assert_eq!(let_through, expected);
    }

    #[test]
    fn an_opening_lets_the_page_and_its_name_through_and_nothing_else() {
        let opening =
            Opening { page: vec!["10.1.1.1".parse().unwrap()], name_servers: vec!["10.0.0.1".parse().unwrap()] };
        let closed = block(false, &[]);
        let open = Block { opening: Some(opening.clone()), ..closed.clone() };
        let more: Vec<Rule> = open.rules().into_iter().filter(|rule| !closed.rules().contains(rule)).collect();
        let passes = [Packets::NamesAt(opening.name_servers), Packets::Web(opening.page)].map(Rule::Pass);
        assert_eq!(more, passes);
        assert_eq!(open.rules().last(), Some(&Rule::Refuse(Packets::Everything)));
    }

    #[test]
    fn a_tunnel_for_chosen_networks_holds_back_only_those() {
        let inner: IpNet = "10.7.0.0/16".parse().unwrap();
        let rules = block(true, &[inner]).rules();
        assert_eq!(rules.last(), Some(&Rule::Refuse(Packets::To(vec![inner]))));
        assert!(!rules.contains(&Rule::Refuse(Packets::Everything)));
    }

    #[test]
    fn every_local_network_is_one() {
        assert_eq!(local_networks().len(), 12);
        for network in local_networks() {
            assert_eq!(network, network.trunc());
        }
    }

    pub(super) fn block(allow_lan: bool, only: &[IpNet]) -> Block {
        Block { device: "culvert0".into(), fwmark: 7, allow_lan, only: only.to_vec(), excluded: vec![], opening: None }
    }
}
