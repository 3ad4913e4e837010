//! Firewalls of others that drop what this gateway carries: which they are, and the one command that repairs it.
//!
//! A packet crosses a hook of the kernel only if every chain there lets it through, so no rule in our own table
//! can help; only the other firewall can, and its owner decides. Nothing of others is changed here. What is in
//! force is read from `nft -j` (pure: [`obstacles`]). Not here: our own rules (`nat`).

use std::fs;
use std::io;
use std::process::Command;

use serde_json::Value;

use crate::config::Config;
use crate::settings::Settings;

/// What this gateway needs of a firewall.
#[derive(Clone, Debug)]
pub struct Needs {
    /// The tunnel's interface: forwarded packets come from it, and answers go to it.
    pub device: String,
    /// IPv6 is carried, too.
    pub ipv6: bool,
    /// The UDP port that clients dial.
    pub port: u16,
    /// Clients ask the gateway for names.
    pub dns: bool,
}

/// A firewall that drops what we need and does not know our interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Obstacle {
    /// Whose rules they are.
    pub owner: Owner,
    /// Its chains that drop.
    pub chains: Vec<Chain>,
    /// What makes it let our packets through; for a shell, as root.
    pub command: String,
}

/// A chain at one of the kernel's hooks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Chain {
    /// `family table chain`, as nft(8) takes it.
    pub name: String,
    /// It judges what is forwarded; else what is for this host.
    pub forwards: bool,
}

/// Who keeps a set of rules.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Owner {
    /// ufw(8), which keeps its rules over restarts.
    Ufw,
    /// firewalld(1), which keeps them, too.
    Firewalld,
    /// Docker, which sets the policy of forwarding to drop and leaves the chain DOCKER-USER to the administrator.
    Docker,
    /// Whoever wrote them with iptables(8), which gives a whole table up when it finds rules that it could not
    /// have made itself.
    Iptables,
    /// Whoever wrote them with nft(8).
    Nftables,
}

impl Owner {
    /// Its name, for people.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Ufw => "ufw",
            Self::Firewalld => "firewalld",
            Self::Docker => "Docker",
            Self::Iptables => "iptables",
            Self::Nftables => "nftables",
        }
    }
}

/// The rules in force, as `nft -j list ruleset` says them.
///
/// # Errors
/// What the OS says; `nft` itself is there when our own table is.
pub fn ruleset() -> io::Result<Value> {
    let output = Command::new("nft").args(["--json", "--terse", "list", "ruleset"]).output()?;
    if !output.status.success() {
        return Err(io::Error::other(String::from_utf8_lossy(&output.stderr).trim().to_owned()));
    }
    Ok(serde_json::from_slice(&output.stdout)?)
}

/// What stands in the way, and how it is repaired. A table in which some rule lets packets of our interface
/// through counts as repaired, so that a command that was run is not asked for again.
pub fn obstacles(ruleset: &Value, needs: &Needs) -> Vec<Obstacle> {
    let listed = ruleset["nftables"].as_array().map(Vec::as_slice).unwrap_or_default();
    let mut found: Vec<Obstacle> = Vec::new();
    for chain in listed.iter().filter_map(|object| object.get("chain")) {
        let Some(table) = Table::of(chain) else { continue };
        let ours = table.name.starts_with("culvert_");
        let of_family = ["ip", "inet"].contains(&table.family) || table.family == "ip6" && needs.ipv6;
        let forwards = chain["hook"] == "forward";
        // Of what is for this host only questions come out of the tunnel.
        let on_our_way = chain["type"] == "filter" && (forwards || chain["hook"] == "input" && needs.dns);
        if ours || !of_family || !on_our_way || !table.drops(chain, listed) || table.knows(&needs.device, listed) {
            continue;
        }
        let owner = table.owner(listed);
        let chain = Chain { name: format!("{} {} {}", table.family, table.name, text(&chain["name"])), forwards };
        match found.iter_mut().find(|obstacle| obstacle.owner == owner) {
            Some(obstacle) => obstacle.chains.push(chain),
            None => found.push(Obstacle { owner, chains: vec![chain], command: String::new() }),
        }
    }
    for obstacle in &mut found {
        obstacle.command = command(obstacle.owner, &obstacle.chains, needs);
    }
    found.sort_by_key(|obstacle| obstacle.owner);
    found
}

/// Says what stands in the way, one line each.
pub fn warn(config: &Config, settings: &Settings) {
    let needs = Needs {
        device: config.device.clone(),
        ipv6: settings.pool.ipv6().is_some(),
        port: config.listen.port(),
        dns: settings.answers,
    };
    match ruleset() {
        Ok(ruleset) => {
            for Obstacle { owner, chains, command } in obstacles(&ruleset, &needs) {
                tracing::warn!(
                    event = "firewall_blocks",
                    firewall = owner.name(),
                    chains = chains.iter().map(|chain| chain.name.as_str()).collect::<Vec<_>>().join(", "),
                    "{} does not know {} and drops what no rule of it accepts, so clients may reach nothing; run: {command}",
                    owner.name(),
                    needs.device,
                );
            }
        }
        Err(error) => tracing::warn!(%error, "cannot see whether another firewall drops the tunnel's packets"),
    }
    // nft(8) does not show rules of the old kernel interface, which both may be in force.
    let legacy = ["ip_tables_names", "ip6_tables_names"].map(|file| fs::read_to_string(format!("/proc/net/{file}")));
    if legacy.iter().flatten().any(|tables| tables.lines().any(|table| table == "filter")) {
        tracing::warn!(
            event = "firewall_unseen",
            "this host also has rules of iptables-legacy, which cannot be judged; if clients reach nothing, look with: \
             iptables-legacy -S FORWARD"
        );
    }
}

/// A table of the kernel, by family and name.
#[derive(Clone, Copy)]
struct Table<'a> {
    family: &'a str,
    name: &'a str,
}

impl<'a> Table<'a> {
    fn of(object: &'a Value) -> Option<Self> {
        Some(Self { family: object["family"].as_str()?, name: object["table"].as_str()? })
    }

    fn has(self, kind: &str, listed: &'a [Value]) -> impl Iterator<Item = &'a Value> {
        let objects = listed.iter().filter_map(move |object| object.get(kind));
        objects.filter(move |object| Table::of(object).is_some_and(|t| t.family == self.family && t.name == self.name))
    }

    /// True for a base chain that drops what none of its rules accepts. firewalld's policy is to accept, but its last
    /// rule rejects.
    fn drops(self, chain: &Value, listed: &[Value]) -> bool {
        let rejects = || {
            let rules = self.has("rule", listed).filter(|rule| rule["chain"] == chain["name"]);
            rules.last().is_some_and(|rule| {
                let parts = rule["expr"].as_array().map(Vec::as_slice).unwrap_or_default();
                let refusal = |part: &Value| part.get("reject").is_some() || part.get("drop").is_some();
                parts.last().is_some_and(refusal) && !parts.iter().any(|part| part.get("match").is_some())
            })
        };
        chain["policy"] == "drop" || rejects()
    }

    /// True when some rule here lets packets from the interface through, or hands them to a chain that is for it.
    fn knows(self, device: &str, listed: &[Value]) -> bool {
        self.has("rule", listed).any(|rule| {
            let parts = rule["expr"].as_array().map(Vec::as_slice).unwrap_or_default();
            let from = parts.iter().any(|part| {
                let test = &part["match"];
                let key = test["left"]["meta"]["key"].as_str();
                matches!(key, Some("iifname" | "iif")) && test["op"] != "!=" && names(&test["right"], device)
            });
            from && parts
                .last()
                .is_some_and(|last| ["accept", "jump", "goto"].iter().any(|word| last.get(word).is_some()))
        })
    }

    fn owner(self, listed: &[Value]) -> Owner {
        let has_chain = |name: &str| self.has("chain", listed).any(|chain| text(&chain["name"]).starts_with(name));
        if self.name == "firewalld" {
            Owner::Firewalld
        } else if has_chain("ufw-user-") || has_chain("ufw6-user-") {
            Owner::Ufw // before Docker, with whom it shares the table: its rules stay over a restart
        } else if has_chain("DOCKER-USER") {
            Owner::Docker
        } else if self.name == "filter" && self.family != "inet" && (has_chain("FORWARD") || has_chain("INPUT")) {
            Owner::Iptables
        } else {
            Owner::Nftables
        }
    }
}

/// True when an interface is meant: by its name, by one that ends in `*`, or in a set.
fn names(value: &Value, device: &str) -> bool {
    match (value.as_str(), value["set"].as_array()) {
        (Some(name), _) => name.strip_suffix('*').map_or(name == device, |start| device.starts_with(start)),
        (None, set) => set.is_some_and(|set| set.iter().any(|name| names(name, device))),
    }
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}

/// `device` and the chains' names hold nothing that a shell would take for more than a word: the configuration
/// allows only letters, digits, `-` and `_` for the first, and the chains stand in quotes.
fn command(owner: Owner, chains: &[Chain], needs: &Needs) -> String {
    let Needs { device, port, dns, .. } = needs;
    match owner {
        Owner::Ufw => {
            let dns = if *dns { format!(" && ufw allow in on {device} to any port 53") } else { String::new() };
            format!("ufw allow {port}/udp && ufw route allow in on {device}{dns}")
        }
        Owner::Firewalld => {
            // A zone of our own rather than `trusted`, which would open the host itself to the clients. Names of
            // zones and policies have 17 characters at most.
            let policy = format!("{device:.12}-out");
            let dns = if *dns { format!("--zone={device} --add-service=dns") } else { String::new() };
            let changes = [
                format!("--add-port={port}/udp"),
                format!("--new-zone={device}"),
                format!("--zone={device} --add-interface={device}"),
                dns,
                format!("--new-policy={policy}"),
                format!("--policy={policy} --add-ingress-zone={device}"),
                format!("--policy={policy} --add-egress-zone=ANY"),
                format!("--policy={policy} --set-target=ACCEPT"),
            ];
            let changes = changes.iter().filter(|change| !change.is_empty());
            let commands: Vec<String> = changes.map(|change| format!("firewall-cmd --permanent {change}")).collect();
            format!("{} && firewall-cmd --reload", commands.join(" && "))
        }
        Owner::Docker | Owner::Iptables => {
            let forward = if owner == Owner::Docker { "DOCKER-USER" } else { "FORWARD" };
            let rules = chains.iter().map(|Chain { name, forwards }| {
                let iptables = if name.starts_with("ip6 ") { "ip6tables" } else { "iptables" };
                if *forwards {
                    return format!(
                        "{iptables} -I {forward} -i {device} -j ACCEPT && {iptables} -I {forward} -o {device} \
                         -m conntrack --ctstate ESTABLISHED,RELATED -j ACCEPT"
                    );
                }
                let names = ["udp", "tcp"]
                    .map(|protocol| format!("{iptables} -I INPUT -i {device} -p {protocol} --dport 53 -j ACCEPT"));
                format!("{iptables} -I INPUT -p udp --dport {port} -j ACCEPT && {}", names.join(" && "))
            });
            rules.collect::<Vec<_>>().join(" && ")
        }
        Owner::Nftables => {
            let rules = chains.iter().map(|Chain { name, forwards }| match forwards {
                true => format!(
                    "insert rule {name} iifname \"{device}\" accept; \
                     insert rule {name} oifname \"{device}\" ct state established,related accept"
                ),
                false => format!(
                    "insert rule {name} udp dport {port} accept; \
                     insert rule {name} iifname \"{device}\" meta l4proto {{ tcp, udp }} th dport 53 accept"
                ),
            });
            format!("nft '{}'", rules.collect::<Vec<_>>().join("; "))
        }
    }
}
