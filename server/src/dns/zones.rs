//! Which source answers which name. Pure; nothing here looks anything up.
//!
//! In this order: addresses of the inner networks are ours; then the most specific of the operator's
//! zones and the devices' domain; then names that have no meaning outside this host or its network
//! and so never leave; then upstream. An operator's zone may be one of those names (`home.arpa`,
//! `10.in-addr.arpa`), since he knows who answers it.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use hickory_resolver::proto::rr::Name;
use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use crate::addresses::Pool;

/// Who answers a name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// The devices' domain.
    Devices,
    /// The device with this inner address, and where its name lies below the address' own name.
    Reverse {
        /// The address.
        address: IpAddr,
        /// False for a name below that of the address, which nobody has.
        exact: bool,
    },
    /// This host means whoever asks (RFC 6761 section 6.3).
    Localhost,
    /// Nobody: there is no such name.
    Nobody,
    /// The servers of the operator's zone with this number.
    Zone(usize),
    /// The servers for everything else.
    Upstream,
}

/// Domains that must not be asked of the internet, and whose rule that is.
const NOBODYS: [&str; 7] = [
    "invalid.",       // RFC 6761 section 6.4
    "test.",          // RFC 6761 section 6.2
    "onion.",         // RFC 7686
    "local.",         // RFC 6762 section 22.1: multicast DNS
    "home.arpa.",     // RFC 8375: a home's own
    "alt.",           // RFC 9476: not DNS at all
    "resolver.arpa.", // RFC 9462 section 4: the resolver itself, which has nothing to say
];

/// Networks whose reverse names mean something else in every network (RFC 6303, RFC 6761 section 6.1, RFC 7793).
const PRIVATE_V4: [(Ipv4Addr, u8); 11] = [
    (Ipv4Addr::new(0, 0, 0, 0), 8),
    (Ipv4Addr::new(10, 0, 0, 0), 8),
    (Ipv4Addr::new(100, 64, 0, 0), 10),
    (Ipv4Addr::new(127, 0, 0, 0), 8),
    (Ipv4Addr::new(169, 254, 0, 0), 16),
    (Ipv4Addr::new(172, 16, 0, 0), 12),
    (Ipv4Addr::new(192, 0, 2, 0), 24),
    (Ipv4Addr::new(192, 168, 0, 0), 16),
    (Ipv4Addr::new(198, 51, 100, 0), 24),
    (Ipv4Addr::new(203, 0, 113, 0), 24),
    (Ipv4Addr::BROADCAST, 32),
];
/// The same for IPv6: unspecified, loopback, unique local, link-local, documentation.
const PRIVATE_V6: [(Ipv6Addr, u8); 5] = [
    (Ipv6Addr::UNSPECIFIED, 128),
    (Ipv6Addr::LOCALHOST, 128),
    (Ipv6Addr::new(0xfc00, 0, 0, 0, 0, 0, 0, 0), 7),
    (Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 0), 10),
    (Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 0), 32),
];

/// Tells sources apart.
#[derive(Clone, Debug)]
pub struct Zones {
    inner: Vec<IpNet>,
    devices: Option<Name>,
    zones: Vec<Name>,
    localhost: Name,
    nobodys: Vec<Name>,
}

impl Zones {
    /// The devices' domain and the operator's zones, all absolute; a zone's number is its place in `zones`.
    pub fn new(pool: &Pool, devices: Option<Name>, zones: Vec<Name>) -> Self {
        let inner = std::iter::once(pool.ipv4().into()).chain(pool.ipv6().map(IpNet::from)).collect();
        let constant = |text: &str| Name::from_ascii(text).unwrap_or_default();
        Self { inner, devices, zones, localhost: constant("localhost."), nobodys: NOBODYS.map(constant).into() }
    }

    /// Who answers this absolute name?
    pub fn source(&self, name: &Name) -> Source {
        let reverse = reverse(name);
        if let Some((network, exact)) = reverse
            && self.inner.iter().any(|inner| inner.contains(&network))
        {
            let whole = network.prefix_len() == network.max_prefix_len();
            return Source::Reverse { address: network.addr(), exact: exact && whole };
        }
        let of_devices = self.devices.iter().map(|zone| (zone, Source::Devices));
        let of_operator = self.zones.iter().enumerate().map(|(number, zone)| (zone, Source::Zone(number)));
        let matching = of_devices.chain(of_operator).filter(|(zone, _)| zone.zone_of(name));
        if let Some((_, source)) = matching.max_by_key(|(zone, _)| zone.num_labels()) {
            return source;
        }
        if self.localhost.zone_of(name) {
            return Source::Localhost;
        }
        let private = reverse.is_some_and(|(network, _)| is_private(network));
        if private || self.nobodys.iter().any(|zone| zone.zone_of(name)) { Source::Nobody } else { Source::Upstream }
    }
}

fn is_private(network: IpNet) -> bool {
    match network {
        IpNet::V4(network) => {
            PRIVATE_V4.iter().any(|(address, length)| Ipv4Net::new_assert(*address, *length).contains(&network))
        }
        IpNet::V6(network) => {
            PRIVATE_V6.iter().any(|(address, length)| Ipv6Net::new_assert(*address, *length).contains(&network))
        }
    }
}

/// The network whose addresses a reverse name is about, and whether the name is exactly that. Services are
/// announced below such names (`lb._dns-sd._udp.0.3.77.100.in-addr.arpa`), so what is in front counts for nothing.
fn reverse(name: &Name) -> Option<(IpNet, bool)> {
    let mut labels = name.iter().rev();
    if !labels.next()?.eq_ignore_ascii_case(b"arpa") {
        return None;
    }
    let kind = labels.next()?;
    let labels = labels.map(|label| std::str::from_utf8(label).unwrap_or_default());
    let count = name.iter().count() - 2;
    if kind.eq_ignore_ascii_case(b"in-addr") {
        let digits = |label: &&str| label.bytes().all(|byte| byte.is_ascii_digit());
        let octets: Vec<u8> = labels.take_while(digits).map_while(|label| label.parse().ok()).take(4).collect();
        let mut address = [0; 4];
        address[..octets.len()].copy_from_slice(&octets);
        Some((Ipv4Net::new_assert(address.into(), 8 * octets.len() as u8).into(), octets.len() == count))
    } else if kind.eq_ignore_ascii_case(b"ip6") {
        let digit = |label: &str| (label.len() == 1).then(|| u128::from_str_radix(label, 16).ok()).flatten();
        let digits: Vec<u128> = labels.map_while(digit).take(32).collect();
        let address = digits.iter().enumerate().fold(0, |address, (place, digit)| address | digit << (124 - 4 * place));
        Some((Ipv6Net::new_assert(address.into(), 4 * digits.len() as u8).into(), digits.len() == count))
    } else {
        None
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_most_specific_zone_answers_a_name() {
        let zones = zones();
        for (name, source) in [
            ("corp.example.", Source::Zone(0)),
            ("db.CORP.example.", Source::Zone(0)),
            ("deep.lab.corp.example.", Source::Zone(1)),
            ("notcorp.example.", Source::Upstream),
            ("example.", Source::Upstream),
            (".", Source::Upstream),
            ("laptop.anna.internal.", Source::Devices),
            ("internal.", Source::Devices),
            ("vm.cloud.internal.", Source::Zone(2)),
            ("printer.home.arpa.", Source::Zone(3)),
        ] {
            assert_eq!(zones.source(&self::name(name)), source, "{name}");
        }
    }

    #[test]
    fn names_without_meaning_outside_never_leave() {
        for name in [
            "localhost.",
            "a.localhost.",
            "printer.local.",
            "hidden.onion.",
            "x.invalid.",
            "x.test.",
            "x.alt.",
            "_dns.resolver.arpa.",
            "1.0.0.10.in-addr.arpa.",
            "10.in-addr.arpa.",
            "31.172.in-addr.arpa.",
            "lb._dns-sd._udp.0.1.168.192.in-addr.arpa.",
            "77.100.in-addr.arpa.",
            "d.f.ip6.arpa.",
            "b._dns-sd._udp.8.e.f.ip6.arpa.",
        ] {
            let source = zones().source(&self::name(name));
            assert!(matches!(source, Source::Nobody | Source::Localhost), "{name} {source:?}");
        }
        for name in [
            "*.arpa.",
            "*.in-addr.arpa.",
            "256.10.in-addr.example.",
            "32.172.in-addr.arpa.",
            "8.8.8.8.in-addr.arpa.",
            "in-addr.arpa.",
            "e.f.ip6.arpa.",
            "xlocal.",
        ] {
            assert_eq!(zones().source(&self::name(name)), Source::Upstream, "{name}");
        }
    }

    #[test]
    fn inner_addresses_are_ours_also_inside_an_operators_zone() {
        let outer = Zones::new(&pool(), None, vec![name("100.in-addr.arpa."), name("arpa.")]);
        for (name, exact) in [
            ("2.3.77.100.in-addr.arpa.", true),
            ("x.2.3.77.100.in-addr.arpa.", false),
            ("3.77.100.in-addr.arpa.", false),
            ("lb._dns-sd._udp.0.3.77.100.in-addr.arpa.", false),
            ("2.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.c.1.a.9.e.4.d.f.ip6.arpa.", true),
        ] {
            let source = outer.source(&self::name(name));
            assert!(matches!(source, Source::Reverse { exact: e, .. } if e == exact), "{name} {source:?}");
        }
        assert_eq!(outer.source(&name("2.4.77.100.in-addr.arpa.")), Source::Zone(0));
    }

    proptest! {
        #[test]
        fn a_name_below_a_zone_never_goes_anywhere_else(front in proptest::collection::vec("[a-z0-9_]([a-z0-9_-]{0,10}[a-z0-9_])?", 0..5)) {
            let zones = zones();
            let below = |zone: &str| name(&front.iter().map(|label| format!("{label}.")).chain([zone.into()]).collect::<String>());
            let source = zones.source(&below("corp.example."));
            prop_assert!(matches!(source, Source::Zone(0 | 1)), "{:?}", source);
            prop_assert!(matches!(zones.source(&below("local.")), Source::Nobody));
            let source = zones.source(&below("2.3.77.100.in-addr.arpa."));
            prop_assert!(matches!(source, Source::Reverse { .. }), "{:?}", source);
        }

        #[test]
        fn no_label_brings_it_down(
            front in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 1..8), 0..9),
            back in prop_oneof![Just("in-addr"), Just("ip6"), Just("x")],
        ) {
            let labels = front.iter().map(Vec::as_slice).chain([back.as_bytes(), b"arpa"]);
            let mut name = Name::from_labels(labels).unwrap();
            name.set_fqdn(true);
            prop_assert!(!matches!(zones().source(&name), Source::Zone(_) | Source::Devices));
        }

        #[test]
        fn every_inner_address_has_its_reverse_name_here(index in 0u32..256, low in any::<u64>()) {
            for address in [
                IpAddr::V4((0x644d_0300 + index).into()),
                IpAddr::V6((u128::from(0xfd4e_9a1c_u32) << 96 | u128::from(low)).into()),
            ] {
                let source = zones().source(&Name::from(address));
                prop_assert_eq!(source, Source::Reverse { address, exact: true });
            }
        }
    }

    fn zones() -> Zones {
        let of_operator = ["corp.example.", "lab.corp.example.", "cloud.internal.", "home.arpa."].map(name).into();
        Zones::new(&pool(), Some(name("internal.")), of_operator)
    }

    fn pool() -> Pool {
        Pool::new("100.77.3.0/24".parse().unwrap(), Some("fd4e:9a1c::/64".parse().unwrap()))
    }

    fn name(text: &str) -> Name {
        Name::from_ascii(text).unwrap()
    }
}
