//! A block as rules of macOS's packet filter, pf.conf(5): the text of one anchor. Pure.
//!
//! Only what leaves is judged, as on Linux; what comes in meets no rule of ours. Every rule is `quick`, so that the
//! first that fits decides. None makes a state: pf's states float (XNU `pf_find_state`: `pfi_all`), so one that was
//! made on the utun would let the same flow out of any other interface once the utun is gone, and one that was made
//! while local networks or a sign-in page were let through would outlive that.

use std::fmt::Write;
use std::net::IpAddr;

use super::{Block, Packets, Rule};

/// The text, one rule a line.
pub fn text(block: &Block) -> String {
    let mut text = String::new();
    for rule in block.rules() {
        let (verb, state, packets) = match &rule {
            Rule::Pass(packets) => ("pass out quick", " no state", packets),
            Rule::Refuse(packets) => ("block return out quick", "", packets),
        };
        for which in matches(packets) {
            let _ = writeln!(text, "{verb} {which}{state}"); // a `String` takes everything
        }
    }
    text
}

/// True when the main ruleset, as pfctl shows it, evaluates anchors below `com.apple`, as Apple's pf.conf does.
pub fn evaluates_ours(main: &str) -> bool {
    main.lines().any(|line| line.trim() == "anchor \"com.apple/*\" all")
}

/// The packets in pf's words; several where one rule cannot say it.
fn matches(packets: &Packets) -> Vec<String> {
    match packets {
        Packets::Loopback => vec!["on lo0 all".into()],
        Packets::Tunnel(device) => vec![format!("on {device} all")],
        // pf knows no marks; the helper's sockets have a group that nobody else is in (`outside`).
        Packets::Own(mark) => vec![format!("proto {{ tcp udp }} all group {mark}")],
        Packets::Dhcp => vec![
            "inet proto udp from any port 68 to any port 67".into(),
            "inet6 proto udp from any port 546 to any port 547".into(),
        ],
        // Router and neighbour solicitation, neighbour advertisement, reports of multicast listeners.
        Packets::NeighbourDiscovery => {
            [133, 135, 136, 131, 132, 143].map(|kind| format!("inet6 proto icmp6 all icmp6-type {kind}")).into()
        }
        Packets::Names => vec!["proto { tcp udp } from any to any port { 53 853 }".into()],
        Packets::NamesAt(servers) => to(servers.iter().map(IpAddr::to_string), "proto { tcp udp } ")
            .into_iter()
            .map(|it| it + " port 53")
            .collect(),
        Packets::Web(addresses) => to(addresses.iter().map(IpAddr::to_string), "proto tcp "),
        Packets::To(networks) => to(networks.iter().map(ToString::to_string), ""),
        Packets::Everything => vec!["all".into()],
    }
}

/// None for no destinations: an empty list is an error to pf, and "any" would be all of them.
fn to(destinations: impl Iterator<Item = String>, protocol: &str) -> Vec<String> {
    let list: Vec<String> = destinations.collect();
    if list.is_empty() { vec![] } else { vec![format!("{protocol}from any to {{ {} }}", list.join(" "))] }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::guard::Opening;
    use crate::guard::tests::block;
    use proptest::prelude::*;

    #[test]
    fn a_full_tunnel_without_local_networks() {
        let expected = "\
pass out quick on culvert0 all no state
pass out quick proto { tcp udp } all group 7 no state
pass out quick on lo0 all no state
pass out quick inet proto udp from any port 68 to any port 67 no state
pass out quick inet6 proto udp from any port 546 to any port 547 no state
pass out quick inet6 proto icmp6 all icmp6-type 133 no state
pass out quick inet6 proto icmp6 all icmp6-type 135 no state
pass out quick inet6 proto icmp6 all icmp6-type 136 no state
pass out quick inet6 proto icmp6 all icmp6-type 131 no state
pass out quick inet6 proto icmp6 all icmp6-type 132 no state
pass out quick inet6 proto icmp6 all icmp6-type 143 no state
block return out quick proto { tcp udp } from any to any port { 53 853 }
block return out quick all
";
        assert_eq!(text(&block(false, &[])), expected);
    }

    #[test]
    fn local_networks_come_after_names_and_before_the_rest() {
        let text = text(&block(true, &[]));
        let lines: Vec<&str> = text.lines().collect();
        let place = |start: &str| lines.iter().position(|line| line.starts_with(start)).unwrap();
        let (names, lan) =
            (place("block return out quick proto { tcp udp }"), place("pass out quick from any to { 10.0.0.0/8"));
        assert!(names < lan && lan == lines.len() - 2, "{text}");
        assert!(lines[lan].contains("192.168.0.0/16") && lines[lan].contains("fe80::/10"), "{text}");
    }

    #[test]
    fn apples_own_ruleset_evaluates_ours() {
        assert!(evaluates_ours("scrub-anchor \"com.apple/*\" all fragment reassemble\nanchor \"com.apple/*\" all\n"));
        for other in ["", "pass all\n", "scrub-anchor \"com.apple/*\" all\n", "anchor \"com.apple/*\" on en5 all\n"] {
            assert!(!evaluates_ours(other), "{other}");
        }
    }

    #[test]
    fn a_split_tunnel_holds_back_only_its_networks() {
        let inner = ["10.7.0.0/16".parse().unwrap(), "fd00:77::/64".parse().unwrap()];
        let text = text(&block(true, &inner));
        assert_eq!(text.lines().last(), Some("block return out quick from any to { 10.7.0.0/16 fd00:77::/64 }"));
        assert!(!text.contains("block return out quick all"), "{text}");
    }

    #[test]
    fn an_opening_for_a_sign_in_page_names_its_addresses() {
        let opening = Opening {
            page: vec!["10.1.1.1".parse().unwrap(), "2001:db8::1".parse().unwrap()],
            name_servers: vec!["10.0.0.1".parse().unwrap()],
        };
        let open = text(&Block { opening: Some(opening), ..block(false, &[]) });
        assert!(open.contains("pass out quick proto { tcp udp } from any to { 10.0.0.1 } port 53 "), "{open}");
        assert!(open.contains("pass out quick proto tcp from any to { 10.1.1.1 2001:db8::1 } "), "{open}");
        let unknown = Opening { page: vec![], name_servers: vec![] };
        let closed = text(&block(false, &[]));
        assert_eq!(text(&Block { opening: Some(unknown), ..block(false, &[]) }), closed, "nobody is not everybody");
    }

    proptest! {
        #[test]
        fn whatever_is_held_back_the_last_rule_refuses_and_every_rule_decides(
            allow_lan: bool, nets in proptest::collection::vec((any::<[u8; 4]>(), 1u8..=32), 0..5)
        ) {
            let only: Vec<ipnet::IpNet> = nets
                .into_iter()
                .map(|(address, length)| ipnet::IpNet::new(IpAddr::from(address), length).unwrap().trunc())
                .collect();
            let text = text(&block(allow_lan, &only));
            prop_assert!(text.lines().last().unwrap().starts_with("block return out quick"));
            for line in text.lines() {
                prop_assert!(line.starts_with("pass out quick ") || line.starts_with("block return out quick "));
                prop_assert!(!line.contains("{ }"), "{line}");
                prop_assert_eq!(line.starts_with("pass"), line.ends_with(" no state"));
            }
        }
    }
}
