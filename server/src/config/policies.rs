//! `[groups]` and `[policy.NAME]`: the sections whose names the operator chooses.
//!
//! A later file replaces a group or policy of the same name as a whole. Every complaint has its place.

use std::ops::RangeInclusive;

use culvert_tunnel::rules::Allow;
use ipnet::IpNet;
use toml_edit::{Item, Key, TableLike};

use super::layers::{Complaint, Problem, Source, suggest};
use super::{NameServer, destination, endpoint};
use crate::policy::{DEFAULT, Policies, Policy};

/// Sections that this file reads.
pub(super) const SECTIONS: [&str; 2] = ["groups", "policy"];
const KEYS: [&str; 6] = ["allow", "rate", "routes", "dns", "domains", "devices"];
const ALLOW: &str = "a list such as [\"10.1.0.0/16\", \"10.2.0.5 tcp 443\", \"default udp 53-54\"]";
/// What a rate looks like.
pub(super) const RATE: &str = "0 (no limit) or bits a second, such as \"500k\", \"50M\" or \"1G\"";

/// Lays one of [`SECTIONS`] over what is there. `place` finds a span in the file.
pub(super) fn read(
    section: &str,
    table: &dyn TableLike,
    policies: &mut Policies,
    place: &impl Fn(Option<std::ops::Range<usize>>) -> Source,
) -> Vec<Problem> {
    let mut problems = Vec::new();
    for (name, _) in table.iter() {
        let Some((key, item)) = table.get_key_value(name) else { continue };
        let at = place(key.span().or_else(|| item.span()));
        let wrong = |expected| Problem {
            at: at.clone(),
            what: Complaint::BadPolicy { section: section.to_owned(), name: name.to_owned(), expected },
        };
        if section == "groups" {
            match (name == DEFAULT, texts(item)) {
                (false, Some(users)) => {
                    policies.groups.insert(name.to_owned(), users);
                }
                (true, _) => problems.push(wrong("the name of a group: the policy \"default\" is everybody's")),
                (false, None) => problems.push(wrong("a list of users, such as [\"anna\", \"ben\"]")),
            }
            continue;
        }
        let Some(table) = item.as_table_like() else {
            problems.push(wrong("a section; write [policy.NAME] and its keys below"));
            continue;
        };
        match policy(name, table, place) {
            Ok(policy) => {
                policies.policies.retain(|old| old.name != policy.name);
                policies.policies.push(policy);
            }
            Err(told) => problems.extend(told),
        }
    }
    problems
}

fn policy(
    name: &str,
    table: &dyn TableLike,
    place: &impl Fn(Option<std::ops::Range<usize>>) -> Source,
) -> Result<Policy, Vec<Problem>> {
    let mut policy = Policy { name: name.to_owned(), ..Policy::default() };
    let mut problems = Vec::new();
    for (key_name, _) in table.iter() {
        let Some((key, item)) = table.get_key_value(key_name) else { continue };
        if let Err(what) = set(&mut policy, key, item) {
            let span = if matches!(what, Complaint::UnknownKey { .. }) { key.span() } else { item.span() };
            problems.push(Problem { at: place(span), what });
        }
    }
    if problems.is_empty() { Ok(policy) } else { Err(problems) }
}

fn set(policy: &mut Policy, key: &Key, item: &Item) -> Result<(), Complaint> {
    let section = format!("policy.{}", policy.name);
    let name = key.get();
    let wrong = |expected| Complaint::BadPolicy { section: section.clone(), name: name.to_owned(), expected };
    match name {
        "allow" => policy.allow = Some(each(item, allow).ok_or_else(|| wrong(ALLOW))?.concat()),
        "rate" => {
            let rate = number_or_text(item).and_then(|text| rate(&text));
            policy.bytes_per_second = Some(rate.ok_or_else(|| wrong(RATE))?);
        }
        "routes" => {
            let routes = each(item, destination).ok_or_else(|| wrong("a list of \"default\" and networks"))?;
            policy.routes = Some(routes.concat());
        }
        "dns" => {
            let servers = each(item, NameServer::parse).ok_or_else(|| wrong("a list of \"gateway\" and addresses"))?;
            policy.dns = Some(servers);
        }
        "domains" => {
            let domain = |text: &str| {
                let text = text.trim_end_matches('.');
                endpoint::is_host_name(text).then(|| text.to_ascii_lowercase())
            };
            policy.domains = Some(each(item, domain).ok_or_else(|| wrong("a list of domain names"))?);
        }
        "devices" => {
            let number = item.as_integer().and_then(|number| u32::try_from(number).ok());
            let number = number.ok_or_else(|| wrong("0 (no limit) or more"))?;
            policy.devices = Some((number > 0).then_some(number));
        }
        unknown => {
            let suggestion = suggest(unknown, KEYS.iter().copied());
            return Err(Complaint::UnknownKey { section, name: unknown.to_owned(), suggestion });
        }
    }
    Ok(())
}

fn texts(item: &Item) -> Option<Vec<String>> {
    each(item, |text| (!text.is_empty()).then(|| text.to_owned()))
}

fn each<T>(item: &Item, parse: impl Fn(&str) -> Option<T>) -> Option<Vec<T>> {
    item.as_array()?.iter().map(|value| parse(value.as_str()?)).collect()
}

fn number_or_text(item: &Item) -> Option<String> {
    item.as_str().map(str::to_owned).or_else(|| item.as_integer().map(|number| number.to_string()))
}

/// `NETWORK [tcp|udp|icmp [PORT[-PORT]]]`; `default` is both families.
fn allow(text: &str) -> Option<Vec<Allow>> {
    let mut words = text.split_whitespace();
    let networks = destination(words.next()?)?;
    let transport = words.next();
    let ports = words.next().map(ports);
    if words.next().is_some() || ports.as_ref().is_some_and(Option::is_none) {
        return None;
    }
    let ports = ports.flatten();
    let each = |network: IpNet| {
        let protocol = match (transport, &network) {
            (None, _) => None,
            (Some("tcp"), _) => Some(6),
            (Some("udp"), _) => Some(17),
            (Some("icmp"), IpNet::V4(_)) => Some(1),
            (Some("icmp"), IpNet::V6(_)) => Some(58),
            (Some(_), _) => return None,
        };
        (ports.is_none() || matches!(protocol, Some(6 | 17))).then(|| Allow { network, protocol, ports: ports.clone() })
    };
    networks.into_iter().map(each).collect()
}

fn ports(text: &str) -> Option<RangeInclusive<u16>> {
    let number = |text: &str| text.parse::<u16>().ok().filter(|port| *port > 0);
    let (first, last) = text.split_once('-').unwrap_or((text, text));
    let (first, last) = (number(first)?, number(last)?);
    (first <= last).then_some(first..=last)
}

/// Bits a second as bytes a second; `0` is no limit.
pub(super) fn rate(text: &str) -> Option<Option<u32>> {
    if text == "0" {
        return Some(None);
    }
    let (number, factor) = match text.as_bytes().last()? {
        b'k' => (&text[..text.len() - 1], 1_000),
        b'M' => (&text[..text.len() - 1], 1_000_000),
        b'G' => (&text[..text.len() - 1], 1_000_000_000),
        _ => (text, 1),
    };
    if !number.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let bits = number.parse::<u64>().ok()?.checked_mul(factor)?;
    // Less, and not one full packet a second would pass.
    let bytes = u32::try_from(bits / 8).ok().filter(|bytes| *bytes >= 8_000)?;
    Some(Some(bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_are_bits_and_kept_as_bytes() {
        let read = |text: &str| rate(text);
        assert_eq!(read("0"), Some(None));
        assert_eq!(read("50M"), Some(Some(6_250_000)));
        assert_eq!(read("1G"), Some(Some(125_000_000)));
        assert_eq!(read("500k"), Some(Some(62_500)));
        assert_eq!(read("128000"), Some(Some(16_000)));
        for text in ["", "M", "-1M", "1.5M", "50m", "50 M", "1k", "99999G", "١M"] {
            assert_eq!(read(text), None, "{text}");
        }
    }

    #[test]
    fn what_is_allowed_is_a_network_a_transport_and_ports() {
        let one = |text: &str| allow(text).map(|found| found.len());
        assert_eq!(one("10.1.0.0/16"), Some(1));
        assert_eq!(one("default"), Some(2));
        assert_eq!(allow("10.2.0.5/32 tcp 443-445").unwrap()[0].ports, Some(443..=445));
        assert_eq!(
            allow("default icmp").unwrap().iter().map(|it| it.protocol).collect::<Vec<_>>(),
            [Some(1), Some(58)]
        );
        for text in [
            "",
            "10.1",
            "10.1.0.0/16 sctp",
            "10.1.0.0/16 icmp 8",
            "10.1.0.0/16 443",
            "10.1.0.0/16 tcp 0",
            "10.1.0.0/16 tcp 9-8",
            "10.1.0.0/16 tcp 70000",
            "10.1.0.0/16 tcp 1 2",
        ] {
            assert_eq!(allow(text), None, "{text}");
        }
    }
}
