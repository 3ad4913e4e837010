//! What an observation comes to. Pure.

use std::net::IpAddr;
use std::time::Duration;

use super::Finding;

/// The check of the gateway's own nftables table.
pub const TABLE: &str = "nat";
/// An outer packet: IPv6, UDP, QUIC's short header and tag, a DATAGRAM frame; and 1,280 bytes inside.
const OUTER_FOR_1280: u32 = 1280 + 40 + 8 + 24 + 3;
/// What Ethernet carries.
const USUAL_MTU: u32 = 1500;
/// Below this a registry that grows is a question of days.
const DISK_LOW_BYTES: u64 = 100 << 20;
const DISK_FULL_BYTES: u64 = 4 << 20;
const DAY: u64 = 86_400;
/// product.md 3.8: the CA's end is told half a year before.
const CA_SOON: Duration = Duration::from_secs(180 * DAY);
const LEAF_SOON: Duration = Duration::from_secs(30 * DAY);

/// A switch of the kernel: `1` (or `2`) is on.
pub fn forwarding(family: &'static str, key: &str, value: Option<&str>) -> Finding {
    const CHECK: &str = "forwarding";
    match value {
        Some("0") => {
            Finding::fail(CHECK, format!("This host does not forward {family}")).repair(format!("sysctl -w {key}=1"))
        }
        Some(_) => Finding::pass(CHECK, format!("This host forwards {family}")),
        None => Finding::warn(CHECK, format!("{key} cannot be read, so nobody can say whether {family} is forwarded")),
    }
}

/// The gateway's own table, whether there is one.
pub fn table(name: &str, there: Result<bool, String>) -> Finding {
    match there {
        Ok(true) => Finding::pass(TABLE, format!("The rules of inet {name} are in force")),
        Ok(false) => Finding::fail(
            TABLE,
            format!("The nftables table inet {name} is gone; the gateway puts it back within a minute"),
        )
        .repair("systemctl restart culvert-server"),
        Err(error) => Finding::warn(TABLE, format!("nft cannot list this host's tables: {error}")),
    }
}

/// Which way a packet to the internet would take.
pub fn uplink(interface: Option<&str>) -> Finding {
    match interface {
        Some(interface) => Finding::pass("uplink", format!("The way out is {interface}")),
        None => Finding::fail("uplink", "This host has no default route, so clients reach nothing beyond it")
            .repair("ip route show; ip route add default via ROUTER"),
    }
}

/// The way out's MTU.
pub fn mtu(interface: &str, bytes: u32) -> Finding {
    const CHECK: &str = "mtu";
    if bytes < OUTER_FOR_1280 {
        let sentence =
            format!("{interface} carries packets of {bytes} bytes, so that inner packets of 1,280 bytes cross in two");
        return Finding::warn(CHECK, sentence).repair(format!("ip link set {interface} mtu {USUAL_MTU}"));
    }
    Finding::pass(CHECK, format!("{interface} carries packets of {bytes} bytes"))
}

/// Room where the registry is.
pub fn disk(path: &str, free_bytes: u64) -> Finding {
    const CHECK: &str = "disk";
    let megabytes = free_bytes / 1_000_000;
    let told = format!("{megabytes} MB are free at {path}");
    let clean = || "journalctl --vacuum-size=100M; apt-get clean";
    match free_bytes {
        free if free < DISK_FULL_BYTES => Finding::fail(CHECK, format!("{told}: nobody can enrol")).repair(clean()),
        free if free < DISK_LOW_BYTES => Finding::warn(CHECK, told).repair(clean()),
        _ => Finding::pass(CHECK, told),
    }
}

/// The clock against what it must be later than, and whether somebody keeps it right.
pub fn clock(behind: Option<Duration>, synchronised: Option<bool>) -> Finding {
    const CHECK: &str = "clock";
    const SYNC: &str = "timedatectl set-ntp true";
    match (behind, synchronised) {
        (Some(behind), _) => {
            let hours = behind.as_secs() / 3600;
            let sentence = format!(
                "This host's clock is at least {hours} h behind: it is earlier than the gateway's own certificate"
            );
            Finding::fail(CHECK, sentence).repair(SYNC)
        }
        (None, Some(false)) => {
            Finding::warn(CHECK, "Nobody keeps this host's clock right; certificates need that").repair(SYNC)
        }
        (None, Some(true)) => Finding::pass(CHECK, "The clock is kept right"),
        (None, None) => Finding::pass(CHECK, "Nothing contradicts this clock"),
    }
}

/// How long the CA and the gateway's own certificate still live.
pub fn certificates(ca_left: Option<Duration>, leaf_left: Option<Duration>) -> Vec<Finding> {
    let days = |left: Duration| left.as_secs() / DAY;
    let ca = match ca_left {
        None => Finding::fail("ca", "The certificate authority has ended; no client can connect")
            .repair("culvert-server init (elsewhere), and invite everybody again"),
        Some(left) if left < CA_SOON => {
            Finding::warn("ca", format!("The certificate authority ends in {} days", days(left)))
                .repair("culvert-server ca rotate")
        }
        Some(left) => Finding::pass("ca", format!("The certificate authority is good for {} days", days(left))),
    };
    let restart = "systemctl restart culvert-server";
    let leaf = match leaf_left {
        None => Finding::fail("certificate", "The gateway's own certificate has ended").repair(restart),
        Some(left) if left < LEAF_SOON => Finding::warn(
            "certificate",
            format!("The gateway's own certificate ends in {} days and was not renewed", days(left)),
        )
        .repair(restart),
        Some(left) => Finding::pass(
            "certificate",
            format!("The gateway's own certificate is good for {} days, and renews by itself", days(left)),
        ),
    };
    vec![ca, leaf]
}

/// Inner addresses that are left.
pub fn pool(network: &str, used: u64, size: u64) -> Finding {
    const CHECK: &str = "pool";
    let told = format!("{used} of {size} addresses of {network} are taken");
    if used >= size {
        Finding::fail(CHECK, format!("{told}: nobody can enrol; set a larger network.ipv4"))
    } else if used * 10 >= size * 9 {
        Finding::warn(CHECK, format!("{told}; set a larger network.ipv4 in time"))
    } else {
        Finding::pass(CHECK, told)
    }
}

/// Whether the endpoint's name leads to this host.
pub fn endpoint(name: &str, found: &Result<Vec<IpAddr>, String>, own: &[IpAddr]) -> Finding {
    const CHECK: &str = "endpoint";
    match found {
        Err(error) => Finding::fail(
            CHECK,
            format!("The name {name} has no address here ({error}); clients cannot find the gateway"),
        ),
        Ok(addresses) if addresses.iter().any(|address| own.contains(address)) => {
            Finding::pass(CHECK, format!("{name} is this host"))
        }
        Ok(addresses) => {
            let listed = addresses.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
            Finding::warn(
                CHECK,
                format!(
                    "{name} is {listed}, which is no address of this host: right behind NAT, where the port must be forwarded here"
                ),
            )
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::State;
    use super::*;

    #[test]
    fn every_failure_says_what_repairs_it_or_what_to_set() {
        let failures = [
            forwarding("IPv4", "net.ipv4.ip_forward", Some("0")),
            table("culvert_culvert0", Ok(false)),
            uplink(None),
            disk("/var/lib", 0),
            clock(Some(Duration::from_secs(7_200)), None),
            certificates(None, None).remove(0),
            certificates(None, None).remove(1),
        ];
        for finding in failures {
            assert_eq!(finding.state, State::Fail, "{finding:?}");
            assert!(finding.repair.is_some(), "{finding:?}");
        }
        assert!(pool("10.0.0.0/29", 5, 5).sentence.contains("set a larger network.ipv4"));
    }

    #[test]
    fn what_is_still_good_is_told_in_time() {
        let days = |days| Some(Duration::from_secs(days * DAY));
        let states = |ca, leaf| certificates(ca, leaf).into_iter().map(|finding| finding.state).collect::<Vec<_>>();
        assert_eq!(states(days(181), days(31)), [State::Pass, State::Pass]);
        assert_eq!(states(days(179), days(29)), [State::Warn, State::Warn]);
        let pools = [(0, State::Pass), (89, State::Pass), (90, State::Warn), (100, State::Fail)];
        for (used, state) in pools {
            assert_eq!(pool("10.0.0.0/24", used, 100).state, state, "{used}");
        }
        assert_eq!(disk("/", 50 << 20).state, State::Warn);
        assert_eq!(mtu("eth0", 1_354).state, State::Warn);
        assert_eq!(mtu("eth0", 1_355).state, State::Pass);
        assert_eq!(clock(None, Some(false)).state, State::Warn);
    }

    #[test]
    fn a_name_that_leads_elsewhere_is_no_failure_behind_nat() {
        let address = |text: &str| text.parse::<IpAddr>().unwrap();
        let own = [address("10.0.0.5")];
        assert_eq!(endpoint("vpn.example", &Err("no such name".into()), &own).state, State::Fail);
        assert_eq!(endpoint("vpn.example", &Ok(vec![address("203.0.113.7")]), &own).state, State::Warn);
        assert_eq!(endpoint("vpn.example", &Ok(vec![address("203.0.113.7"), own[0]]), &own).state, State::Pass);
    }
}
