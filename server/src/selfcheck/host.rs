//! Looks at this host: the kernel's switches, its firewall, its way out, its disk and clock. Reads only.

use std::fs;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, UdpSocket};
use std::path::Path;
use std::time::{Duration, SystemTime};

use super::{Finding, judge};
use crate::config::Config;
use crate::firewall::{self, Needs};
use crate::nat;
use crate::settings::Settings;

/// The device of every tunnel (`Documentation/networking/tuntap.rst`).
const TUN: &str = "/dev/net/tun";

/// Forwarding of the families that are carried.
pub fn forwarding(settings: &Settings) -> Vec<Finding> {
    let look = |family, key: &str, path: &str| {
        let value = fs::read_to_string(path).ok();
        judge::forwarding(family, key, value.as_deref().map(str::trim))
    };
    let mut findings = vec![look("IPv4", "net.ipv4.ip_forward", "/proc/sys/net/ipv4/ip_forward")];
    if settings.pool.ipv6().is_some() {
        findings.push(look("IPv6", "net.ipv6.conf.all.forwarding", "/proc/sys/net/ipv6/conf/all/forwarding"));
    }
    findings
}

/// The gateway's own nftables table.
pub fn table(config: &Config) -> Finding {
    let name = nat::table_name(&config.device);
    judge::table(&name, nat::is_there(&name).map_err(|error| error.to_string()))
}

/// Other firewalls that drop what the gateway carries.
pub fn firewalls(config: &Config, settings: &Settings) -> Vec<Finding> {
    const CHECK: &str = "firewall";
    let needs = Needs {
        device: config.device.clone(),
        ipv6: settings.pool.ipv6().is_some(),
        port: config.listen.port(),
        dns: settings.answers,
    };
    let ruleset = match firewall::ruleset() {
        Ok(ruleset) => ruleset,
        Err(error) => return vec![Finding::warn(CHECK, format!("nft cannot list this host's rules: {error}"))],
    };
    let obstacles = firewall::obstacles(&ruleset, &needs);
    if obstacles.is_empty() {
        return vec![Finding::pass(CHECK, "No other firewall drops the tunnel's packets")];
    }
    let fail = |obstacle: firewall::Obstacle| {
        let sentence = format!("{} drops the packets of {}", obstacle.owner.name(), needs.device);
        Finding::fail(CHECK, sentence).repair(obstacle.command)
    };
    obstacles.into_iter().map(fail).collect()
}

/// The way out.
pub fn uplink() -> Finding {
    judge::uplink(way_out().as_deref())
}

/// The way out's MTU; `None` without a way out.
pub fn mtu(config: &Config) -> Option<Finding> {
    let interface = way_out().filter(|interface| *interface != config.device)?;
    let bytes = fs::read_to_string(format!("/sys/class/net/{interface}/mtu")).ok()?.trim().parse().ok()?;
    Some(judge::mtu(&interface, bytes))
}

/// May a tunnel be made here at all?
pub fn tun() -> Finding {
    const CHECK: &str = "tun";
    match fs::OpenOptions::new().read(true).write(true).open(TUN) {
        Ok(_) => Finding::pass(CHECK, format!("{TUN} can be opened")),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            Finding::fail(CHECK, format!("{TUN} is missing (in a container: --device {TUN})")).repair("modprobe tun")
        }
        Err(error) => Finding::fail(CHECK, format!("{TUN} cannot be opened: {error}")),
    }
}

/// Is the port free? Only while no gateway runs.
pub fn port(config: &Config) -> Finding {
    const CHECK: &str = "port";
    match UdpSocket::bind(config.listen) {
        Ok(_) => Finding::pass(CHECK, format!("UDP port {} is free", config.listen.port())),
        Err(error) => {
            let port = config.listen.port();
            Finding::fail(CHECK, format!("UDP port {port} of {} cannot be had: {error}", config.listen.ip()))
                .repair(format!("ss -lunp 'sport = :{port}'"))
        }
    }
}

/// Room where the registry is.
pub fn disk(config: &Config) -> Finding {
    let path = config.state_dir.display().to_string();
    match rustix::fs::statvfs(&config.state_dir) {
        Ok(found) => judge::disk(&path, found.f_bavail.saturating_mul(found.f_frsize)),
        Err(error) => Finding::warn("disk", format!("{path} cannot be looked at: {error}")),
    }
}

/// The clock; `not_before` is a time that it must be later than.
pub fn clock(not_before: Option<SystemTime>) -> Finding {
    let behind = not_before.and_then(|earliest| earliest.duration_since(SystemTime::now()).ok());
    judge::clock(behind, synchronised())
}

/// What systemd-timesyncd or chrony left behind when they had set the clock; `None` where neither is known.
fn synchronised() -> Option<bool> {
    if Path::new("/run/systemd/timesync/synchronized").exists() || Path::new("/run/chrony/chronyd.pid").exists() {
        return Some(true);
    }
    Path::new("/run/systemd/timesync").exists().then_some(false)
}

/// How long something still lives.
pub fn left(until: SystemTime) -> Option<Duration> {
    until.duration_since(SystemTime::now()).ok()
}

/// The addresses of this host, as far as packets to the internet and to itself show them.
pub fn own_addresses() -> Vec<IpAddr> {
    let Ok(networks) = fs::read_to_string("/proc/net/fib_trie") else { return Vec::new() };
    let ipv4 = local_ipv4(&networks);
    let ipv6 = fs::read_to_string("/proc/net/if_inet6").unwrap_or_default();
    ipv4.into_iter().map(IpAddr::V4).chain(local_ipv6(&ipv6).into_iter().map(IpAddr::V6)).collect()
}

/// Leaves of `/proc/net/fib_trie` that are "host LOCAL".
fn local_ipv4(text: &str) -> Vec<Ipv4Addr> {
    let mut found = Vec::new();
    let mut last: Option<Ipv4Addr> = None;
    for line in text.lines() {
        let line = line.trim_start();
        if let Some(address) = line.strip_prefix("|-- ") {
            last = address.trim().parse().ok();
        } else if line.starts_with("/32 host LOCAL") {
            found.extend(last);
        }
    }
    found.sort_unstable();
    found.dedup();
    found
}

/// `/proc/net/if_inet6`: 32 hexadecimal digits, and more columns.
fn local_ipv6(text: &str) -> Vec<Ipv6Addr> {
    let address = |line: &str| u128::from_str_radix(line.get(..32)?, 16).ok().map(Ipv6Addr::from);
    text.lines().filter_map(address).collect()
}

/// The interface of the default route: IPv4's, else IPv6's (`/proc/net/route`, `/proc/net/ipv6_route`).
fn way_out() -> Option<String> {
    let ipv4 = fs::read_to_string("/proc/net/route").unwrap_or_default();
    let ipv6 = fs::read_to_string("/proc/net/ipv6_route").unwrap_or_default();
    default_ipv4(&ipv4).or_else(|| default_ipv6(&ipv6))
}

/// Destination and mask are hexadecimal; the lowest metric wins.
fn default_ipv4(text: &str) -> Option<String> {
    let routes = text.lines().skip(1).filter_map(|line| {
        let columns: Vec<&str> = line.split_whitespace().collect();
        let is_default = columns.get(1) == Some(&"00000000") && columns.get(7) == Some(&"00000000");
        is_default.then(|| Some((columns.get(6)?.parse::<u32>().ok()?, columns.first()?.to_string()))).flatten()
    });
    routes.min().map(|(_, interface)| interface)
}

/// The unreachable default route that each kernel has is on `lo`.
fn default_ipv6(text: &str) -> Option<String> {
    let routes = text.lines().filter_map(|line| {
        let columns: Vec<&str> = line.split_whitespace().collect();
        let interface = columns.get(9).filter(|name| **name != "lo")?;
        let is_default = columns.first()?.bytes().all(|byte| byte == b'0') && columns.get(1) == Some(&"00");
        is_default.then(|| Some((u32::from_str_radix(columns.get(5)?, 16).ok()?, interface.to_string()))).flatten()
    });
    routes.min().map(|(_, interface)| interface)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_way_out_is_the_default_route_with_the_lowest_metric() {
        let header = "Iface\tDestination\tGateway\tFlags\tRefCnt\tUse\tMetric\tMask\tMTU\tWindow\tIRTT\n";
        let text = format!(
            "{header}wlan0\t00000000\t0100000A\t0003\t0\t0\t600\t00000000\t0\t0\t0\n\
             eth0\t00000000\t0100000A\t0003\t0\t0\t100\t00000000\t0\t0\t0\neth1\t0000000A\t00000000\t0001\t0\t0\t0\t00FFFFFF\t0\t0\t0\n"
        );
        assert_eq!(default_ipv4(&text).as_deref(), Some("eth0"));
        assert_eq!(default_ipv4(header), None);
        let zero = "0".repeat(32);
        let text = format!(
            "{zero} 00 {zero} 00 {zero} ffffffff 00000001 00000000 00200200 lo\n{zero} 00 {zero} 00 {zero} 00000400 00000001 00000000 00000003 eth0\n"
        );
        assert_eq!(default_ipv6(&text).as_deref(), Some("eth0"));
        assert_eq!(default_ipv6("rubbish\n\n"), None);
    }

    #[test]
    fn own_addresses_are_read_from_the_kernels_tables() {
        let text = "Local:\n  +-- 0.0.0.0/0 3 0 5\n     |-- 10.1.2.3\n        /32 host LOCAL\n     |-- 10.1.2.255\n        /32 link BROADCAST\n";
        assert_eq!(local_ipv4(text), ["10.1.2.3".parse::<Ipv4Addr>().unwrap()]);
        let text = "20010db8000000000000000000000001 02 40 00 80     eth0\n";
        assert_eq!(local_ipv6(text), ["2001:db8::1".parse::<Ipv6Addr>().unwrap()]);
        assert!(own_addresses().contains(&IpAddr::V4(Ipv4Addr::LOCALHOST)));
    }
}
