//! What macOS's configd is told: a network service of our own, as entries of the dynamic store. Pure.
//!
//! In a full tunnel the service is made the primary one (`OverridePrimary`), so that its resolver is the default one;
//! that needs addresses and a router. Else its resolver is asked for the gateway's domains alone
//! (`SupplementalMatchDomains`). Keys of SCSchemaDefinitions.h and, for the order, of configd's `dns-configuration.c`.

use std::net::IpAddr;

use super::Servers;

/// Names our service. One for the product, so that what an older version left is replaced.
const SERVICE: &str = "6E0C2D7A-5B1F-4B8E-9C40-637600A1C0DE";

/// A value of a property list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Value {
    /// `CFString`.
    Text(String),
    /// `CFNumber`.
    Number(i32),
    /// `CFArray`.
    List(Vec<Value>),
}

/// One key of the dynamic store, and its dictionary.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// The whole key.
    pub key: String,
    /// Its dictionary.
    pub dictionary: Vec<(&'static str, Value)>,
}

/// The entries for a resolver, the addresses first: configd looks at them when the names appear.
pub fn entries(wanted: &Servers) -> Vec<Entry> {
    let mut entries = Vec::new();
    if wanted.all {
        entries.extend(wanted.addresses.iter().map(|address| addresses(&wanted.device, *address)));
    }
    entries.push(names(wanted));
    entries
}

fn addresses(device: &str, address: IpAddr) -> Entry {
    let list = |text: String| Value::List(vec![Value::Text(text)]);
    let mut dictionary = vec![
        ("InterfaceName", Value::Text(device.into())),
        ("Addresses", list(address.to_string())),
        // Without a router the service would rank last.
        ("Router", Value::Text(address.to_string())),
        ("OverridePrimary", Value::Number(1)),
    ];
    let family = match address {
        IpAddr::V4(_) => {
            dictionary.push(("SubnetMasks", list("255.255.255.255".into())));
            "IPv4"
        }
        IpAddr::V6(_) => {
            dictionary.push(("PrefixLength", Value::List(vec![Value::Number(128)])));
            dictionary.push(("Flags", Value::List(vec![Value::Number(0)])));
            "IPv6"
        }
    };
    Entry { key: key(family), dictionary }
}

fn names(wanted: &Servers) -> Entry {
    let texts = |texts: &[String]| Value::List(texts.iter().cloned().map(Value::Text).collect());
    let servers: Vec<String> = wanted.servers.iter().map(ToString::to_string).collect();
    let mut dictionary = vec![("ServerAddresses", texts(&servers))];
    if wanted.all {
        if !wanted.domains.is_empty() {
            dictionary.push(("SearchDomains", texts(&wanted.domains)));
        }
        // In case another VPN is made the primary service: every name, before others are asked.
        dictionary.push(("SupplementalMatchDomains", texts(&[String::new()])));
        dictionary.push(("SupplementalMatchOrders", Value::List(vec![Value::Number(1)])));
    } else {
        dictionary.push(("SupplementalMatchDomains", texts(&wanted.domains)));
        dictionary.push(("SupplementalMatchOrders", Value::List(vec![Value::Number(1); wanted.domains.len()])));
        dictionary.push(("SupplementalMatchDomainsNoSearch", Value::Number(1)));
    }
    Entry { key: key("DNS"), dictionary }
}

fn key(entity: &str) -> String {
    format!("State:/Network/Service/{SERVICE}/{entity}")
}

/// The service of a key such as `State:/Network/Service/ID/IPv4`, unless it is ours.
pub fn other_service(key: &str) -> Option<&str> {
    let id = key.strip_prefix("State:/Network/Service/")?.split('/').next()?;
    (id != SERVICE).then_some(id)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_tunnel_is_the_primary_service_and_answers_every_name() {
        let entries = entries(&servers(true));
        let keys: Vec<&str> = entries.iter().map(|entry| entry.key.rsplit('/').next().unwrap()).collect();
        assert_eq!(keys, ["IPv4", "IPv6", "DNS"]);
        for entry in &entries[..2] {
            assert!(entry.dictionary.contains(&("OverridePrimary", Value::Number(1))), "{entry:?}");
            assert!(entry.dictionary.iter().any(|(key, _)| *key == "Router"), "{entry:?}");
            assert!(entry.dictionary.contains(&("InterfaceName", text("utun637"))), "{entry:?}");
        }
        let names = &entries[2].dictionary;
        assert_eq!(names[0], ("ServerAddresses", Value::List(vec![text("100.77.0.1")])));
        assert!(names.contains(&("SupplementalMatchDomains", Value::List(vec![text("")]))));
        assert!(names.contains(&("SearchDomains", Value::List(vec![text("acme.org"), text("acme.net")]))));
    }

    #[test]
    fn a_split_tunnel_answers_its_domains_alone_and_completes_no_names() {
        let entries = entries(&servers(false));
        let [names] = &entries[..] else { panic!("{entries:?}") };
        let domains = Value::List(vec![text("acme.org"), text("acme.net")]);
        let orders = Value::List(vec![Value::Number(1), Value::Number(1)]);
        assert!(names.dictionary.contains(&("SupplementalMatchDomains", domains)));
        assert!(names.dictionary.contains(&("SupplementalMatchOrders", orders)), "as many as domains");
        assert!(names.dictionary.contains(&("SupplementalMatchDomainsNoSearch", Value::Number(1))));
    }

    #[test]
    fn our_own_service_is_never_the_network_below() {
        assert_eq!(other_service(&key("IPv4")), None);
        assert_eq!(other_service("State:/Network/Service/ABC/IPv4"), Some("ABC"));
        assert_eq!(other_service("State:/Network/Global/IPv4"), None);
    }

    fn text(text: &str) -> Value {
        Value::Text(text.into())
    }

    fn servers(all: bool) -> Servers {
        Servers {
            file: "/etc/resolv.conf".into(),
            device: "utun637".into(),
            addresses: vec!["100.77.0.2".parse().unwrap(), "fd00:77::2".parse().unwrap()],
            servers: vec!["100.77.0.1".parse().unwrap()],
            domains: vec!["acme.org".into(), "acme.net".into()],
            all,
        }
    }
}
