//! Sends traffic into the tunnel: addresses, routes and rules. `cfg` appears here and nowhere above.
//!
//! The tunnel's own packets carry a firewall mark and take the machine's ordinary routes; all
//! others meet a routing table of ours first. Local networks stay reachable, since every route of
//! the main table except the default ones goes before ours. Not here: names (`dns`).

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use culvert_protocol::{Overlap, Problem, code};
use ipnet::IpNet;

use crate::journal::{Change, Journal};

#[cfg(target_os = "linux")]
#[path = "routes/linux.rs"]
mod imp;
#[cfg(target_os = "macos")]
#[path = "routes/macos.rs"]
mod imp;
#[cfg(any(target_os = "macos", test))]
mod message;
#[cfg(any(target_os = "macos", test))]
mod prefixes;

/// What to send into the tunnel, in full; the same for every platform.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    /// The tunnel interface, which exists.
    pub device: String,
    /// This end's inner IPv4 address.
    pub ipv4: Ipv4Addr,
    /// This end's inner IPv6 address, when the gateway carries IPv6.
    pub ipv6: Option<Ipv6Addr>,
    /// The interface's MTU to begin with.
    pub mtu_bytes: u16,
    /// Destinations that go into the tunnel.
    pub routes: Vec<IpNet>,
    /// Destinations that stay outside even so.
    pub excluded: Vec<IpNet>,
    /// Networks behind the gateway; none may clash with a local one.
    pub networks: Vec<IpNet>,
    /// Marks the tunnel's own packets; also the number of our routing table.
    pub fwmark: u32,
    /// Which network wins where a local one has the same addresses.
    pub overlap: Overlap,
}

impl Plan {
    /// True when both are of one interface with one pair of addresses: only destinations differ.
    pub fn is_same_interface(&self, other: &Self) -> bool {
        let rest = |plan: &Self| Self { routes: vec![], excluded: vec![], networks: vec![], ..plan.clone() };
        rest(self) == rest(other)
    }

    /// True when all IPv4 traffic goes into the tunnel.
    pub fn is_full_v4(&self) -> bool {
        self.routes.iter().any(|net| matches!(net, IpNet::V4(v4) if v4.prefix_len() == 0))
    }

    /// True when the plan wants all traffic in the tunnel, so that nothing may leak beside it.
    pub fn is_full(&self) -> bool {
        self.is_full_v4() || self.routes.iter().any(|net| net.prefix_len() == 0)
    }

    /// This end's inner addresses of the families whose traffic goes into the tunnel as a whole.
    pub fn whole(&self) -> Vec<IpAddr> {
        let carried = self.carried();
        let is_whole = |address: &IpAddr| {
            carried.iter().any(|net| net.prefix_len() == 0 && net.addr().is_ipv4() == address.is_ipv4())
        };
        let own = [Some(IpAddr::V4(self.ipv4)), self.ipv6.map(IpAddr::V6)];
        own.into_iter().flatten().filter(is_whole).collect()
    }

    /// The destinations that really go in: families that this end has an address for.
    pub fn carried(&self) -> Vec<IpNet> {
        let all = self.routes.iter().chain(&self.networks);
        let mut nets: Vec<IpNet> =
            all.filter(|net| matches!(net, IpNet::V4(_)) || self.ipv6.is_some()).map(IpNet::trunc).collect();
        nets.sort();
        nets.dedup();
        nets
    }

    /// True when IPv6 must be refused at once, lest it leak beside a full tunnel without IPv6.
    pub fn refuses_v6(&self) -> bool {
        self.is_full() && !self.carried().iter().any(|net| matches!(net, IpNet::V6(v6) if v6.prefix_len() == 0))
    }

    /// The clashes between local networks and those behind the gateway: an inner network may
    /// not touch a local one, and a pushed route may not lie within one (it would never be used).
    pub fn clashes(&self, local: &[LocalNet]) -> Vec<Clash> {
        let with = |theirs: &LocalNet| {
            let touches = |net: &&IpNet| net.contains(&theirs.net) || theirs.net.contains(*net);
            let within = |net: &&IpNet| theirs.net.contains(*net);
            let inner = self.networks.iter().filter(touches).chain(self.routes.iter().filter(within));
            let clash = |net: &IpNet| Clash { inner: net.trunc(), local: theirs.clone() };
            inner.map(clash).collect::<Vec<_>>()
        };
        local.iter().flat_map(with).collect()
    }

    /// What clashes with local networks come to: a sentence for what is given up, and inner networks that go before
    /// local ones.
    ///
    /// # Errors
    /// [`RouteError::Overlap`] with the first clash when the user has not chosen.
    pub fn settle(&self, local: &[LocalNet]) -> Result<(Option<String>, Vec<IpNet>), RouteError> {
        let clashes = self.clashes(local);
        match (self.overlap, clashes.first()) {
            (_, None) => Ok((None, vec![])),
            (Overlap::Ask, Some(clash)) => Err(clash.error()),
            (Overlap::Local, Some(clash)) => Ok((Some(clash.note()), vec![])),
            (Overlap::Gateway, Some(_)) => {
                let mut preferred: Vec<IpNet> = clashes.iter().map(|clash| clash.inner).collect();
                preferred.sort();
                preferred.dedup();
                Ok((None, preferred))
            }
        }
    }
}

/// A network that the machine reaches by itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LocalNet {
    /// The network; never a default route.
    pub net: IpNet,
    /// Through which interface.
    pub interface: String,
}

/// The networks that this machine's interfaces are on, without link-local ones of IPv6 and without interfaces that are
/// left out.
pub fn local_networks(left_out: impl Fn(&str) -> bool) -> Vec<LocalNet> {
    let interfaces = if_addrs::get_if_addrs().unwrap_or_default().into_iter();
    let local = interfaces.filter(|interface| !interface.is_loopback() && !left_out(&interface.name));
    local
        .filter_map(|interface| {
            let prefix = match &interface.addr {
                if_addrs::IfAddr::V4(v4) => v4.prefixlen,
                if_addrs::IfAddr::V6(v6) if !v6.ip.is_unicast_link_local() => v6.prefixlen,
                if_addrs::IfAddr::V6(_) => return None,
            };
            Some(LocalNet { net: IpNet::new(interface.ip(), prefix).ok()?.trunc(), interface: interface.name })
        })
        .collect()
}

/// Two networks with the same addresses.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Clash {
    /// Behind the gateway.
    pub inner: IpNet,
    /// On this machine.
    pub local: LocalNet,
}

impl Clash {
    fn error(&self) -> RouteError {
        let LocalNet { net, interface } = self.local.clone();
        RouteError::Overlap { inner: self.inner, local: net, interface }
    }

    /// What is given up for the local network.
    fn note(&self) -> String {
        let LocalNet { net, interface } = &self.local;
        format!("{} behind the gateway cannot be reached: {net} on {interface} has the same addresses", self.inner)
    }
}

/// Why the routes could not be put in force. Nothing is in force then.
#[derive(Debug, thiserror::Error)]
pub enum RouteError {
    /// A local network and an inner one use the same addresses.
    #[error("the network {inner} behind the gateway clashes with {local} on {interface}")]
    Overlap {
        /// Behind the gateway.
        inner: IpNet,
        /// On this machine.
        local: IpNet,
        /// Through which interface.
        interface: String,
    },
    /// Our routing table holds routes that we did not make.
    #[error("routing table {0} is already used by another program")]
    TableTaken(u32),
    /// A route that we need is another program's (macOS: there is only one table).
    #[error("another program already routes {0}")]
    Taken(IpNet),
    /// The tunnel interface does not exist.
    #[error("there is no interface {0}")]
    NoInterface(String),
    /// The kernel refused a request.
    #[error("{doing}: {error}")]
    Kernel {
        /// What was asked.
        doing: &'static str,
        /// What the kernel said.
        error: io::Error,
    },
    /// The journal could not be written, so nothing was changed.
    #[error("the journal: {0}")]
    Journal(#[from] io::Error),
}

impl RouteError {
    /// The same in the catalogue's terms.
    pub fn problem(&self) -> Problem {
        let sentence = |code| Problem::new(code).because(capital(&self.to_string()));
        match self {
            Self::Overlap { .. } => sentence(code::OVERLAP),
            Self::Taken(_) => sentence(code::CONFLICT).hint("Disconnect the other VPN, then connect again"),
            Self::TableTaken(_) => sentence(code::CONFLICT)
                .hint("Stop the other program, or give this helper another mark (culvert-helper run --fwmark)"),
            Self::Kernel { error, .. } if error.kind() == io::ErrorKind::PermissionDenied => {
                Problem::new(code::CAPABILITY)
            }
            Self::NoInterface(_) | Self::Kernel { .. } => sentence(code::SYSTEM),
            Self::Journal(_) => sentence(code::DISK),
        }
    }
}

fn capital(text: &str) -> String {
    let mut chars = text.chars();
    chars.next().map_or_else(String::new, |first| first.to_uppercase().chain(chars).collect())
}

/// Routes in force until undone. Dropping it undoes them too, and waits for the kernel.
#[derive(Debug)]
pub struct RouteGuard(imp::Routes);

impl RouteGuard {
    /// Puts a plan in force. Journals first; on an error nothing is left in force.
    ///
    /// # Errors
    /// See [`RouteError`].
    pub async fn apply(plan: &Plan, journal: &mut Journal) -> Result<Self, RouteError> {
        imp::Routes::apply(plan, journal).await.map(Self)
    }

    /// Puts `plan` in force in place of `old`, of the same interface, without a moment in which a destination of
    /// both is not carried. False where that cannot be done in place; after an error, too, the guard can only be
    /// undone.
    ///
    /// # Errors
    /// See [`RouteError`].
    pub async fn change(&mut self, old: &Plan, plan: &Plan, journal: &mut Journal) -> Result<bool, RouteError> {
        self.0.change(old, plan, journal).await
    }

    /// What is not reached through the tunnel, in a sentence.
    pub fn note(&self) -> Option<&str> {
        self.0.note()
    }

    /// The interface's number.
    pub fn index(&self) -> u32 {
        self.0.index()
    }

    /// Sets the interface's MTU, in bytes of one inner packet.
    ///
    /// # Errors
    /// [`RouteError::Kernel`].
    pub async fn set_mtu(&self, mtu_bytes: u16) -> Result<(), RouteError> {
        self.0.set_mtu(mtu_bytes).await
    }

    /// Removes exactly what was added.
    ///
    /// # Errors
    /// [`RouteError::Kernel`]; the journal keeps what could not be undone.
    pub async fn undo(self, journal: &mut Journal) -> Result<(), RouteError> {
        self.0.undo(journal).await
    }
}

/// Undoes a change that a crashed helper left behind; one that is not in force is no error.
///
/// # Errors
/// [`RouteError::Kernel`].
pub async fn undo_leftover(change: &Change) -> Result<(), RouteError> {
    imp::undo(change).await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_tunnel_without_ipv6_refuses_it() {
        assert!(plan(&["0.0.0.0/0"], true).refuses_v6());
        assert!(plan(&["0.0.0.0/0", "::/0"], false).refuses_v6());
        assert!(!plan(&["0.0.0.0/0", "::/0"], true).refuses_v6());
        assert!(!plan(&["10.0.0.0/8"], false).refuses_v6());
    }

    #[test]
    fn inner_networks_are_carried_and_nothing_twice() {
        let nets = plan(&["10.0.0.0/8", "100.77.0.0/16"], false).carried();
        assert_eq!(nets, ["10.0.0.0/8".parse().unwrap(), "100.77.0.0/16".parse().unwrap()] as [IpNet; 2]);
    }

    #[test]
    fn a_local_network_that_clashes_is_named() {
        let plan = plan(&["0.0.0.0/0", "192.168.1.0/24", "10.0.0.0/8"], false);
        let lan = |net: &str| [LocalNet { net: net.parse().unwrap(), interface: "wlan0".into() }];
        let clashes = plan.clashes(&lan("192.168.1.0/24"));
        let [clash] = &clashes[..] else { panic!("{clashes:?}") };
        assert_eq!(clash.error().problem().code, code::OVERLAP);
        assert!(clash.error().to_string().contains("192.168.1.0/24 on wlan0"), "{}", clash.error());
        assert!(clash.note().contains("192.168.1.0/24 behind the gateway"), "{}", clash.note());
        assert!(!plan.clashes(&lan("100.64.0.0/10")).is_empty(), "inside the LAN");
        assert!(!plan.clashes(&lan("100.77.9.0/24")).is_empty(), "around the LAN");
        assert!(plan.clashes(&lan("10.5.0.0/16")).is_empty(), "a LAN within a pushed route keeps its addresses");
        assert!(plan.clashes(&lan("172.16.0.0/12")).is_empty());
    }

    fn plan(routes: &[&str], v6: bool) -> Plan {
        Plan {
            device: "culvert0".into(),
            ipv4: "100.77.0.2".parse().unwrap(),
            ipv6: v6.then(|| "fd00::2".parse().unwrap()),
            mtu_bytes: 1280,
            routes: routes.iter().map(|net| net.parse().unwrap()).collect(),
            excluded: vec![],
            networks: vec!["100.77.0.0/16".parse().unwrap()],
            fwmark: 1,
            overlap: Overlap::Ask,
        }
    }
}
