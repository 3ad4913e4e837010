//! Linux: one nftables table, `inet culvert` for the interface `culvert0`, replaced and removed in one
//! transaction (nft(8), libnftables-json(5)).
//!
//! Chain `output` judges what this machine sends, `forward` what it sends for others (containers, virtual
//! machines). Rules of others stay as they are, and still apply: a pass here ends only our own chain.

use std::net::IpAddr;

use ipnet::IpNet;
use nftables::helper::{self, NftablesError};
use rtnetlink::sys::protocols::NETLINK_NETFILTER;
use rustix::thread::{CapabilitySet, capabilities};
use serde_json::{Value, json};
use tokio::time::{Duration, Instant, sleep_until, timeout};

use super::{Block, GuardError, Packets, Rule};
use crate::device::DEFAULT_DEVICE;
use crate::notices::Notices;

/// The table of an interface, known to `culvert-helper recover` and to people: `nft delete table inet culvert`.
/// Helpers with interfaces of their own do not lift each other's blocks.
fn table_name(device: &str) -> String {
    if device == DEFAULT_DEVICE { "culvert".into() } else { format!("culvert-{device}") }
}

/// `linux/netfilter/nfnetlink.h`.
const NFNLGRP_NFTABLES: u32 = 7;
/// nft waits for others that change tables.
const APPLIED_WITHIN: Duration = Duration::from_secs(5);
/// After a change to some table, so that a reload has ended when ours is looked for.
const QUIET: Duration = Duration::from_millis(100);

/// The block of one tunnel interface, in force or not.
#[derive(Debug)]
pub struct Guard {
    table: String,
    in_force: Option<Block>,
    /// What is in force may be an earlier run's, or have been removed by somebody else.
    unknown: bool,
    /// Hears of changes to any table.
    notices: Option<Notices>,
    /// When to look whether ours is still there.
    look: Option<Instant>,
}

impl Guard {
    /// For the interface `device`, whatever an earlier run left.
    pub fn new(device: &str) -> Self {
        Self { table: table_name(device), in_force: None, unknown: true, notices: None, look: None }
    }

    /// Puts a block in force, or lifts the one that is. Nothing is done when that is known to be so.
    ///
    /// # Errors
    /// [`GuardError`]; what was in force still is.
    pub async fn set(&mut self, wanted: Option<Block>) -> Result<(), GuardError> {
        if self.in_force == wanted && !self.unknown {
            return Ok(());
        }
        // Until it is done nobody knows: an nft that is given up may still do it.
        self.unknown = true;
        match &wanted {
            Some(block) => apply(&ruleset(&self.table, block)).await?,
            None => self.lift().await?,
        }
        if wanted.is_some() && self.notices.is_none() {
            // Without it the block is as good, until another program removes it.
            let opened = Notices::open(NETLINK_NETFILTER, &[NFNLGRP_NFTABLES]);
            self.notices = opened.inspect_err(|error| tracing::warn!(%error, "nftables cannot be watched")).ok();
        }
        if self.in_force.is_some() != wanted.is_some() {
            tracing::info!(in_force = wanted.is_some(), "kill switch");
        }
        (self.in_force, self.unknown) = (wanted, false);
        Ok(())
    }

    /// Waits until somebody else has removed the block (a firewall that is reloaded removes every table); the next
    /// [`Self::set`] puts it back. Cancel-safe.
    pub async fn removed(&mut self) {
        loop {
            let (Some(notices), true) = (&mut self.notices, self.in_force.is_some()) else {
                return std::future::pending().await;
            };
            let Some(due) = self.look else {
                notices.next().await;
                self.look = Some(Instant::now() + QUIET);
                continue;
            };
            tokio::select! {
                () = notices.next() => {} // one burst is one look
                () = sleep_until(due) => {
                    let listed =
                        helper::get_current_ruleset_raw_async(helper::DEFAULT_NFT, ["list", "table", "inet", &self.table]);
                    let is_there = listed.await.is_ok();
                    self.look = None;
                    if !is_there {
                        self.unknown = true;
                        return;
                    }
                }
            }
        }
    }

    /// True while it refuses something.
    pub fn is_in_force(&self) -> bool {
        self.in_force.is_some()
    }

    /// One that is not there is no error, and neither is a missing `nft`: without it there is none.
    async fn lift(&self) -> Result<(), GuardError> {
        // Deleting what is not there is an error; adding what is there is none.
        let table = table(&self.table);
        match apply(&json!([{"add": table}, {"delete": table}])).await {
            Err(GuardError::Missing(_)) => Ok(()),
            done => done,
        }
    }
}

async fn apply(commands: &Value) -> Result<(), GuardError> {
    let ruleset = json!({ "nftables": commands }).to_string();
    let applied = helper::apply_ruleset_raw_async(&ruleset, helper::DEFAULT_NFT, helper::DEFAULT_ARGS);
    let Ok(applied) = timeout(APPLIED_WITHIN, applied).await else {
        return Err(GuardError::Refused(format!("nft did not end within {} s", APPLIED_WITHIN.as_secs())));
    };
    match applied {
        Ok(_) => Ok(()),
        Err(NftablesError::NftExecution { inner, .. }) if inner.kind() == std::io::ErrorKind::NotFound => {
            Err(GuardError::Missing("nft"))
        }
        Err(_) if !may_change_the_network() => Err(GuardError::NotPermitted),
        Err(NftablesError::NftFailed { stderr, .. }) => Err(GuardError::Refused(one_line(&stderr))),
        Err(error) => Err(GuardError::Refused(error.to_string())),
    }
}

fn may_change_the_network() -> bool {
    capabilities(None).is_ok_and(|sets| sets.effective.contains(CapabilitySet::NET_ADMIN))
}

/// What nft said, for a log.
fn one_line(text: &str) -> String {
    let first = text.lines().map(str::trim).find(|line| !line.is_empty()).unwrap_or("nft failed and did not say why");
    first.chars().filter(|c| !c.is_control()).take(200).collect()
}

fn table(name: &str) -> Value {
    json!({"table": {"family": "inet", "name": name}})
}

fn ruleset(name: &str, block: &Block) -> Value {
    let table = table(name);
    let mut commands = vec![json!({"add": table}), json!({"delete": table}), json!({"add": table})];
    for hook in ["output", "forward"] {
        commands.push(json!({"add": {"chain": {
            "family": "inet", "table": name, "name": hook, "type": "filter", "hook": hook, "prio": 0, "policy": "accept",
        }}}));
        for rule in block.rules() {
            let (packets, verdict) = match &rule {
                Rule::Pass(packets) => (packets, json!({"accept": null})),
                Rule::Refuse(packets) => (packets, json!({"reject": {"type": "icmpx", "expr": "admin-prohibited"}})),
            };
            for mut statements in matches(packets, hook == "forward") {
                statements.push(verdict.clone());
                commands.push(json!({"add": {"rule": {
                    "family": "inet", "table": name, "chain": hook, "expr": statements,
                }}}));
            }
        }
    }
    Value::Array(commands)
}

/// The rules that it takes to say which packets, each as its statements.
fn matches(packets: &Packets, forwarded: bool) -> Vec<Vec<Value>> {
    match packets {
        Packets::Loopback if forwarded => vec![],
        Packets::Loopback => vec![vec![equal(&meta("oifname"), &json!("lo"))]],
        Packets::Tunnel(device) => {
            let out = vec![equal(&meta("oifname"), &json!(device))];
            let back = vec![equal(&meta("iifname"), &json!(device))];
            if forwarded { vec![out, back] } else { vec![out] }
        }
        // What is forwarded is nobody's own.
        Packets::Own(_) | Packets::Dhcp | Packets::NeighbourDiscovery | Packets::NamesAt(_) | Packets::Web(_)
            if forwarded =>
        {
            vec![]
        }
        Packets::Own(mark) => vec![vec![equal(&meta("mark"), &json!(mark))]],
        Packets::Dhcp => [(68, 67), (546, 547)]
            .into_iter()
            .map(|(client, server)| {
                vec![equal(&field("udp", "sport"), &json!(client)), equal(&field("udp", "dport"), &json!(server))]
            })
            .collect(),
        Packets::NeighbourDiscovery => vec![vec![equal(
            &field("icmpv6", "type"),
            &json!({"set": ["nd-router-solicit", "nd-neighbor-solicit", "nd-neighbor-advert", "mld-listener-report",
                           "mld-listener-done", "mld2-listener-report"]}),
        )]],
        Packets::Names => vec![vec![
            equal(&meta("l4proto"), &json!({"set": ["tcp", "udp"]})),
            equal(&field("th", "dport"), &json!({"set": [53, 853]})),
        ]],
        Packets::NamesAt(servers) => to(&hosts(servers))
            .into_iter()
            .map(|destination| {
                let protocol = equal(&meta("l4proto"), &json!({"set": ["tcp", "udp"]}));
                vec![destination, protocol, equal(&field("th", "dport"), &json!(53))]
            })
            .collect(),
        Packets::Web(addresses) => to(&hosts(addresses))
            .into_iter()
            .map(|destination| vec![destination, equal(&meta("l4proto"), &json!("tcp"))])
            .collect(),
        Packets::To(networks) => to(networks).into_iter().map(|destination| vec![destination]).collect(),
        Packets::Everything => vec![vec![]],
    }
}

fn hosts(addresses: &[IpAddr]) -> Vec<IpNet> {
    addresses.iter().copied().map(IpNet::from).collect()
}

/// One match for each family that there is a destination of.
fn to(networks: &[IpNet]) -> Vec<Value> {
    let of = |(protocol, v4)| {
        let networks = networks.iter().filter(|network| network.addr().is_ipv4() == v4);
        let prefix = |network: &IpNet| json!({"prefix": {"addr": network.addr(), "len": network.prefix_len()}});
        let prefixes: Vec<Value> = networks.map(prefix).collect();
        (!prefixes.is_empty()).then(|| equal(&field(protocol, "daddr"), &json!({ "set": prefixes })))
    };
    [("ip", true), ("ip6", false)].into_iter().filter_map(of).collect()
}

fn equal(left: &Value, right: &Value) -> Value {
    json!({"match": {"op": "==", "left": left, "right": right}})
}

fn meta(key: &str) -> Value {
    json!({"meta": {"key": key}})
}

fn field(protocol: &str, field: &str) -> Value {
    json!({"payload": {"protocol": protocol, "field": field}})
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::guard::tests::block;

    #[test]
    fn the_table_is_replaced_in_one_transaction() {
        let commands = ruleset("culvert", &block(true, &[]));
        let first: Vec<&Value> = commands.as_array().unwrap().iter().take(3).collect();
        let table = table("culvert");
        assert_eq!(first, [&json!({"add": table}), &json!({"delete": table}), &json!({"add": table})]);
    }

    #[test]
    fn only_the_usual_interface_has_the_usual_table() {
        assert_eq!(table_name(DEFAULT_DEVICE), "culvert");
        assert_eq!(table_name("work0"), "culvert-work0");
    }

    #[test]
    fn both_chains_end_with_a_refusal() {
        let commands = ruleset("culvert", &block(false, &[]));
        for chain in ["output", "forward"] {
            let rules: Vec<&Value> = commands
                .as_array()
                .unwrap()
                .iter()
                .map(|c| &c["add"]["rule"])
                .filter(|r| r["chain"] == chain)
                .collect();
            let refusal = json!([{"reject": {"type": "icmpx", "expr": "admin-prohibited"}}]);
            assert_eq!(rules.last().unwrap()["expr"], refusal, "{chain}");
        }
    }

    #[test]
    fn what_is_forwarded_passes_into_the_tunnel_and_out_of_it_only() {
        let commands = ruleset("culvert", &block(false, &[]));
        let passes: Vec<String> = commands
            .as_array()
            .unwrap()
            .iter()
            .map(|command| &command["add"]["rule"])
            .filter(|rule| rule["chain"] == "forward")
            .filter(|rule| rule["expr"].as_array().unwrap().last() == Some(&json!({"accept": null})))
            .map(|rule| rule["expr"][0]["match"]["left"]["meta"]["key"].to_string())
            .collect();
        assert_eq!(passes, ["\"oifname\"", "\"iifname\""]);
    }
}
