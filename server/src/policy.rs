//! Who may reach what, how fast, and what they are told: one policy a user, by their own name, by a
//! group's, or the default one. Pure.
//!
//! ```toml
//! [groups]
//! engineers = ["anna", "ben"]
//!
//! [policy.engineers]                 # a user, a group, or "default"
//! allow = ["10.1.0.0/16", "10.2.0.5 tcp 443", "0.0.0.0/0 icmp"]
//! rate = "50M"
//! routes = ["10.1.0.0/16"]
//! ```
//!
//! Exactly one policy holds for a user: their own, else that of the first group (in the order of the
//! policies) that they are in, else `default`, else none. Policies are never added up, so that one
//! look says what holds.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use culvert_tunnel::rules::{Allow, Rules};

use crate::config::{NameServer, Push};

/// The policy that holds for whoever has no other.
pub const DEFAULT: &str = "default";

/// Every group and policy of a configuration.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Policies {
    /// Group → its users.
    pub groups: BTreeMap<String, Vec<String>>,
    /// In the order in which they were written.
    pub policies: Vec<Policy>,
    /// `limits.rate` for those without a rate of their own, in bytes a second.
    pub bytes_per_second: Option<u32>,
}

/// What holds for some users. What is `None` is as it is for everybody.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Policy {
    /// A user's name, a group's, or [`DEFAULT`].
    pub name: String,
    /// The only destinations, beside the gateway itself.
    pub allow: Option<Vec<Allow>>,
    /// The most that passes in each direction of one device, in bytes a second; `Some(None)` is no limit.
    pub bytes_per_second: Option<Option<u32>>,
    /// Instead of `push.routes`.
    pub routes: Option<Vec<ipnet::IpNet>>,
    /// Instead of `push.dns`.
    pub dns: Option<Vec<NameServer>>,
    /// Instead of `push.domains`.
    pub domains: Option<Vec<String>>,
    /// Instead of `limits.devices_per_user`; `Some(None)` is no limit.
    pub devices: Option<Option<u32>>,
}

impl Policies {
    /// The one that holds for a user.
    pub fn of(&self, user: &str) -> Option<&Policy> {
        let named = |name: &str| self.policies.iter().find(|policy| policy.name == name);
        let of_group = || {
            self.policies.iter().find(|policy| {
                self.groups.get(&policy.name).is_some_and(|users| users.iter().any(|member| member == user))
            })
        };
        // A group may be called like somebody who is not in it.
        let own = named(user).filter(|policy| !self.groups.contains_key(&policy.name) && policy.name != DEFAULT);
        own.or_else(of_group).or_else(|| named(DEFAULT))
    }

    /// What the shards hold a user's devices to; `None` when that is nothing.
    pub fn rules(&self, user: &str) -> Option<Arc<Rules>> {
        let policy = self.of(user);
        let rules = Rules {
            allow: policy.and_then(|policy| policy.allow.clone()),
            bytes_per_second: policy.and_then(|policy| policy.bytes_per_second).unwrap_or(self.bytes_per_second),
        };
        (rules != Rules::default()).then(|| Arc::new(rules))
    }

    /// What a user's devices are told.
    pub fn push(&self, user: &str, for_all: &Push) -> Push {
        let mut push = for_all.clone();
        if let Some(policy) = self.of(user) {
            push.routes = policy.routes.clone().unwrap_or(push.routes);
            push.dns = policy.dns.clone().unwrap_or(push.dns);
            push.domains = policy.domains.clone().unwrap_or(push.domains);
        }
        push
    }

    /// True when some policy sends name lookups to the gateway itself.
    pub fn ask_the_gateway(&self) -> bool {
        self.policies.iter().flat_map(|policy| &policy.dns).any(|servers| servers.contains(&NameServer::Gateway))
    }

    /// How many devices a user may have; `None` is any number.
    pub fn devices(&self, user: &str, for_all: Option<u32>) -> Option<u32> {
        self.of(user).and_then(|policy| policy.devices).unwrap_or(for_all)
    }
}

/// As it could stand in the file.
impl fmt::Display for Policies {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if !self.groups.is_empty() {
            writeln!(f, "[groups]")?;
        }
        for (name, users) in &self.groups {
            writeln!(f, "{name} = {users:?}")?;
        }
        for policy in &self.policies {
            write!(f, "{policy}")?;
        }
        Ok(())
    }
}

impl fmt::Display for Policy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fn list(f: &mut fmt::Formatter<'_>, key: &str, items: Option<Vec<String>>) -> fmt::Result {
            items.map_or(Ok(()), |items| writeln!(f, "{key} = {items:?}"))
        }
        fn texts<T: ToString>(items: Option<&Vec<T>>) -> Option<Vec<String>> {
            items.map(|items| items.iter().map(T::to_string).collect())
        }
        writeln!(f, "[policy.{}]", self.name)?;
        list(f, "allow", self.allow.as_ref().map(|allow| allow.iter().map(allowed).collect()))?;
        match self.bytes_per_second {
            Some(Some(rate)) if rate % 125 == 0 => writeln!(f, "rate = \"{}k\"", u64::from(rate) * 8 / 1000)?,
            Some(rate) => writeln!(f, "rate = \"{}\"", rate.map_or(0, |rate| u64::from(rate) * 8))?,
            None => {}
        }
        list(f, "routes", texts(self.routes.as_ref()))?;
        list(f, "dns", texts(self.dns.as_ref()))?;
        list(f, "domains", texts(self.domains.as_ref()))?;
        self.devices.map_or(Ok(()), |devices| writeln!(f, "devices = {}", devices.unwrap_or(0)))
    }
}

fn allowed(allow: &Allow) -> String {
    let transport = match allow.protocol {
        None => "",
        Some(6) => " tcp",
        Some(17) => " udp",
        Some(_) => " icmp",
    };
    let ports = match &allow.ports {
        None => String::new(),
        Some(ports) if ports.start() == ports.end() => format!(" {}", ports.start()),
        Some(ports) => format!(" {}-{}", ports.start(), ports.end()),
    };
    format!("{}{transport}{ports}", allow.network)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_users_own_policy_goes_before_a_groups_and_that_before_the_default() {
        let policies = Policies {
            groups: [("engineers", vec!["anna", "ben"]), ("night", vec!["ben", "cleo"])]
                .map(|(name, users)| (name.to_owned(), users.into_iter().map(str::to_owned).collect()))
                .into(),
            policies: ["night", "engineers", "anna", DEFAULT].map(policy).into(),
            bytes_per_second: None,
        };
        let name = |user: &str| policies.of(user).map(|policy| policy.name.clone()).unwrap_or_default();
        assert_eq!(name("anna"), "anna");
        assert_eq!(name("ben"), "night", "the first that is written");
        assert_eq!(name("cleo"), "night");
        assert_eq!(name("dora"), DEFAULT);
        assert_eq!(name("engineers"), DEFAULT, "a user who is called like a group is not in it");
        assert_eq!(Policies { policies: vec![policy("anna")], ..Policies::default() }.of("ben"), None);
    }

    #[test]
    fn what_a_policy_does_not_say_is_as_it_is_for_all() {
        let push = Push {
            routes: vec!["10.0.0.0/8".parse().unwrap()],
            excluded_routes: vec![],
            dns: vec![NameServer::Gateway],
            domains: vec!["corp.example".into()],
        };
        let only_routes = Policy { routes: Some(vec![]), ..policy("anna") };
        let policies = Policies { policies: vec![only_routes], bytes_per_second: Some(1_000), ..Policies::default() };
        assert_eq!(policies.push("anna", &push), Push { routes: vec![], ..push.clone() });
        assert_eq!(policies.push("ben", &push), push);
        assert_eq!(policies.rules("anna").unwrap().bytes_per_second, Some(1_000));
        assert_eq!(policies.devices("anna", Some(5)), Some(5));
        let unlimited = Policy { bytes_per_second: Some(None), devices: Some(None), ..policy("anna") };
        let policies = Policies { policies: vec![unlimited], bytes_per_second: Some(1_000), ..Policies::default() };
        assert_eq!(policies.rules("anna"), None);
        assert_eq!(policies.devices("anna", Some(5)), None);
    }

    fn policy(name: &str) -> Policy {
        Policy { name: name.to_owned(), ..Policy::default() }
    }
}
