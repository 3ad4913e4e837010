//! Which routes it takes on a machine with one routing table. Pure: tested on Linux, used on a Mac.
//!
//! The default route stays the network's own, so all addresses are carried as two halves, each longer than it. What
//! is to stay outside is cut out of what goes in: every route leads into the tunnel, and all of them go with its
//! interface, whatever happens to this process or to the network below.

use ipnet::IpNet;

use super::Plan;

/// One route of the tunnel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Through {
    pub(super) destination: IpNet,
    /// Refused at once, since the gateway does not carry it.
    pub(super) refused: bool,
}

/// The routes of a plan, none within another but the halves of `preferred` networks, which go before local ones with
/// the same addresses.
pub(super) fn through(plan: &Plan, preferred: &[IpNet]) -> Vec<Through> {
    let v6 = IpNet::V6(ipnet::Ipv6Net::default());
    let refused = if plan.refuses_v6() { vec![v6] } else { vec![] };
    let of = |nets: &[IpNet], refused| -> Vec<Through> {
        // What is refused is all of IPv6 that is not carried.
        let carried = if refused { plan.carried() } else { vec![] };
        let outside = || plan.excluded.iter().chain(&carried);
        IpNet::aggregate(&nets.to_vec())
            .into_iter()
            .flat_map(halves)
            .flat_map(|net| {
                outside().fold(vec![net], |left, out| left.into_iter().flat_map(|net| less(net, *out)).collect())
            })
            .map(|destination| Through { destination, refused })
            .collect()
    };
    let mut routes = [of(&plan.carried(), false), of(&refused, true)].concat();
    for destination in preferred.iter().flat_map(|net| split(net.trunc())) {
        if routes.iter().all(|it| it.destination != destination) {
            routes.push(Through { destination, refused: false });
        }
    }
    routes
}

/// A default route as two halves; others as they are.
fn halves(net: IpNet) -> Vec<IpNet> {
    if net.prefix_len() == 0 { split(net) } else { vec![net] }
}

/// The two halves of a network; a host as it is.
fn split(net: IpNet) -> Vec<IpNet> {
    net.subnets(net.prefix_len().saturating_add(1)).map_or_else(|_| vec![net], Iterator::collect)
}

/// What is left of `net` without `out`: at most as many networks as `out` has more bits.
fn less(net: IpNet, out: IpNet) -> Vec<IpNet> {
    if out.contains(&net) {
        return vec![];
    }
    if !net.contains(&out) {
        return vec![net];
    }
    let halves = net.subnets(net.prefix_len() + 1).map_or(vec![], Iterator::collect);
    halves.into_iter().flat_map(|half: IpNet| less(half, out)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::net::IpAddr;

    #[test]
    fn all_addresses_are_two_halves_of_each_family() {
        let routes = through(&plan(&["0.0.0.0/0", "::/0"], &[], true), &[]);
        assert_eq!(words(&routes), ["0.0.0.0/1", "128.0.0.0/1", "::/1", "8000::/1"]);
    }

    #[test]
    fn ipv6_that_the_gateway_does_not_carry_is_refused_at_once() {
        let routes = through(&plan(&["0.0.0.0/0"], &[], false), &[]);
        assert_eq!(words(&routes), ["0.0.0.0/1", "128.0.0.0/1", "refused ::/1", "refused 8000::/1"]);
    }

    #[test]
    fn carried_ipv6_is_not_refused_with_the_rest() {
        let plan = Plan { networks: vec!["fd00:77::/32".parse().unwrap()], ..plan(&["0.0.0.0/0"], &[], true) };
        let routes = through(&plan, &[]);
        let inner: IpAddr = "fd00:77::1".parse().unwrap();
        let of = |address: IpAddr| routes.iter().filter(|it| it.destination.contains(&address)).collect::<Vec<_>>();
        assert!(matches!(of(inner)[..], [Through { refused: false, .. }]));
        assert!(matches!(of("2001:db8::1".parse().unwrap())[..], [Through { refused: true, .. }]));
    }

    #[test]
    fn chosen_networks_are_carried_as_they_are() {
        let routes = through(&plan(&["10.7.0.0/16", "10.7.3.0/24"], &[], true), &[]);
        assert_eq!(words(&routes), ["10.7.0.0/16"]);
    }

    #[test]
    fn what_stays_outside_is_cut_out() {
        let routes = through(&plan(&["10.0.0.0/8"], &["10.64.0.0/10"], true), &[]);
        assert_eq!(words(&routes), ["10.0.0.0/10", "10.128.0.0/9"]);
        assert!(through(&plan(&["10.0.0.0/8"], &["0.0.0.0/0"], true), &[]).is_empty());
    }

    #[test]
    fn a_preferred_network_goes_before_the_local_one_of_the_same_length() {
        let routes = through(&plan(&["0.0.0.0/0"], &[], true), &["192.168.1.0/24".parse().unwrap()]);
        assert!(words(&routes).ends_with(&["192.168.1.0/25".into(), "192.168.1.128/25".into()]));
    }

    proptest! {
        #[test]
        fn every_address_goes_where_the_plan_says(
            carried in proptest::collection::vec(v4(), 1..4),
            excluded in proptest::collection::vec(v4(), 0..4),
            address: u32,
            near in 0..8usize,
        ) {
            // Half of the addresses are taken from the edges of what was drawn.
            let all: Vec<&IpNet> = carried.iter().chain(&excluded).collect();
            let address = match all.get(near) {
                Some(net) if address % 2 == 0 => net.network(),
                Some(net) => net.broadcast(),
                None => IpAddr::V4(address.into()),
            };
            let mut plan = plan(&[], &[], false);
            plan.routes.clone_from(&carried);
            plan.excluded.clone_from(&excluded);
            let wanted = carried.iter().any(|net| net.contains(&address)) && !excluded.iter().any(|net| net.contains(&address));
            let routes = through(&plan, &[]);
            let found = routes.iter().filter(|it| it.destination.contains(&address)).count();
            prop_assert_eq!(found, usize::from(wanted));
            prop_assert!(routes.iter().all(|it| it.destination.prefix_len() > 0), "the default route is not ours");
        }
    }

    fn v4() -> impl Strategy<Value = IpNet> {
        (any::<u32>(), 0..=32u8)
            .prop_map(|(bits, len)| IpNet::new(std::net::Ipv4Addr::from(bits).into(), len).unwrap().trunc())
    }

    fn words(routes: &[Through]) -> Vec<String> {
        let word = |it: &Through| format!("{}{}", if it.refused { "refused " } else { "" }, it.destination);
        routes.iter().map(word).collect()
    }

    fn plan(routes: &[&str], excluded: &[&str], v6: bool) -> Plan {
        Plan {
            device: "utun6376".into(),
            ipv4: "100.77.0.2".parse().unwrap(),
            ipv6: v6.then(|| "fd00::2".parse().unwrap()),
            mtu_bytes: 1280,
            routes: routes.iter().map(|net| net.parse().unwrap()).collect(),
            excluded: excluded.iter().map(|net| net.parse().unwrap()).collect(),
            networks: vec![],
            fwmark: 1,
            overlap: culvert_protocol::Overlap::Ask,
        }
    }
}
