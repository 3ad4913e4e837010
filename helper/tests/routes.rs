//! Routes in a network namespace of their own, with the kernel's real routing tables: what is in
//! force while connected, and that nothing is left afterwards. Needs root.
#![allow(clippy::unwrap_used, reason = "a test's helpers may panic as its body does")]
#![cfg(target_os = "linux")]
#![allow(unsafe_code, reason = "unshare(2) has no safe wrapper: it changes what other calls of the thread see")]

use std::process::Command;

use culvert_helper::journal::Journal;
use culvert_helper::routes::{Plan, RouteError, RouteGuard, undo_leftover};
use culvert_protocol::Overlap;
use rustix::thread::UnshareFlags;

const MARK: u32 = 0x6376;

#[test]
fn a_full_tunnel_takes_everything_but_its_own_packets_and_the_lan_and_leaves_no_trace() {
    in_namespace(async |bench| {
        let before = bench.routing();
        let guard = RouteGuard::apply(&plan(), &mut bench.journal).await.unwrap();
        assert!(bench.ip("route get 198.51.100.1").contains("dev culvert0"));
        assert!(bench.ip("-6 route get 2001:db8::1").contains("dev culvert0"));
        assert!(bench.ip("route get 198.51.100.1 mark 0x6376").contains("via 192.0.2.1 dev lan0"));
        assert!(bench.ip("route get 192.0.2.77").contains("dev lan0"), "the LAN stays local");
        assert!(bench.ip("route get 203.0.113.9").contains("dev lan0"), "an excluded network stays outside");
        assert!(bench.ip("route get 198.51.100.1").contains("src 100.77.0.2"));
        assert_eq!(bench.mtu(), 1280);
        guard.set_mtu(1380).await.unwrap();
        assert_eq!(bench.mtu(), 1380);
        guard.undo(&mut bench.journal).await.unwrap();
        bench.ip("link del culvert0");
        assert_eq!(bench.routing(), before);
        assert_eq!(bench.journal.in_force(), []);
    });
}

#[test]
fn ipv6_is_refused_at_once_by_a_full_tunnel_that_has_none() {
    in_namespace(async |bench| {
        let before = bench.routing();
        let plan = Plan { ipv6: None, ..plan() };
        let guard = RouteGuard::apply(&plan, &mut bench.journal).await.unwrap();
        let refused = Command::new("ip").args(["-6", "route", "get", "2001:db8::1"]).output().unwrap();
        let words = String::from_utf8_lossy(&refused.stderr).to_lowercase();
        assert!(words.contains("unreachable") || words.contains("no route"), "{refused:?}");
        guard.undo(&mut bench.journal).await.unwrap();
        bench.ip("link del culvert0");
        assert_eq!(bench.routing(), before);
    });
}

#[test]
fn where_two_networks_have_the_same_addresses_the_one_that_was_chosen_wins() {
    in_namespace(async |bench| {
        let before = bench.routing();
        bench.ip("addr add 10.7.0.5/24 dev lan0");
        let with_lan = bench.routing();
        let plan = |overlap| Plan { routes: vec!["10.7.0.0/24".parse().unwrap()], overlap, excluded: vec![], ..plan() };
        let refused = RouteGuard::apply(&plan(Overlap::Ask), &mut bench.journal).await.unwrap_err().to_string();
        assert!(refused.contains("10.7.0.0/24 on lan0"), "{refused}");
        assert_eq!(bench.routing(), with_lan, "nothing is left behind");

        let guard = RouteGuard::apply(&plan(Overlap::Local), &mut bench.journal).await.unwrap();
        assert!(guard.note().unwrap().contains("10.7.0.0/24 behind the gateway"));
        assert!(bench.ip("route get 10.7.0.9").contains("dev lan0"));
        assert!(bench.ip("route get 100.77.0.1").contains("dev culvert0"));
        guard.undo(&mut bench.journal).await.unwrap();

        let guard = RouteGuard::apply(&plan(Overlap::Gateway), &mut bench.journal).await.unwrap();
        assert_eq!(guard.note(), None);
        assert!(bench.ip("route get 10.7.0.9").contains("dev culvert0"));
        assert!(bench.ip(&format!("route get 10.7.0.9 mark {MARK}")).contains("dev lan0"), "the tunnel's own");
        let change = bench.journal.in_force()[0].1.clone();
        let _crashed = std::mem::ManuallyDrop::new(guard);
        undo_leftover(&change).await.unwrap();
        bench.ip("link del culvert0");
        bench.ip("addr del 10.7.0.5/24 dev lan0");
        assert_eq!(bench.routing(), before);
    });
}

#[test]
fn split_routes_leave_the_rest_alone() {
    in_namespace(async |bench| {
        let plan = Plan { routes: vec!["10.0.0.0/8".parse().unwrap()], excluded: vec![], ..plan() };
        let guard = RouteGuard::apply(&plan, &mut bench.journal).await.unwrap();
        assert!(bench.ip("route get 10.1.2.3").contains("dev culvert0"));
        assert!(bench.ip("route get 100.77.0.1").contains("dev culvert0"), "the inner network is carried too");
        assert!(bench.ip("route get 198.51.100.1").contains("dev lan0"));
        assert!(bench.ip("-6 route get 2001:db8::1").contains("dev lan0"));
        guard.undo(&mut bench.journal).await.unwrap();
    });
}

#[test]
fn a_network_that_is_excluded_twice_or_carried_too_stays_outside() {
    in_namespace(async |bench| {
        let before = bench.routing();
        let nets = |texts: &[&str]| texts.iter().map(|text| text.parse().unwrap()).collect::<Vec<_>>();
        let plan = Plan {
            ipv6: None,
            routes: nets(&["0.0.0.0/0", "203.0.113.0/24"]),
            excluded: nets(&["203.0.113.0/24", "203.0.113.7/24", "::/0"]),
            ..plan()
        };
        let guard = RouteGuard::apply(&plan, &mut bench.journal).await.unwrap();
        assert!(bench.ip("route get 203.0.113.9").contains("dev lan0"));
        assert!(bench.ip("route get 198.51.100.1").contains("dev culvert0"));
        assert!(bench.ip("-6 route get 2001:db8::1").contains("dev lan0"), "excluded, so not refused");
        guard.undo(&mut bench.journal).await.unwrap();
        bench.ip("link del culvert0");
        assert_eq!(bench.routing(), before);
    });
}

#[test]
fn a_killed_helpers_rules_are_removed_by_the_next_start() {
    in_namespace(async |bench| {
        bench.set_sysctl("net/ipv4/conf/lan0/rp_filter", "1");
        let before = bench.routing();
        let guard = RouteGuard::apply(&plan(), &mut bench.journal).await.unwrap();
        assert_eq!(bench.sysctl("net/ipv4/conf/all/rp_filter"), "2", "a strict filter would drop the answers");
        let _killed = std::mem::ManuallyDrop::new(guard); // as kill -9 does: nothing runs
        bench.ip("link del culvert0"); // as the kernel does with a dead process's device
        assert_ne!(bench.routing(), before);
        for _twice in 0..2 {
            for (_, change) in bench.journal.in_force() {
                undo_leftover(&change).await.unwrap();
            }
        }
        assert_eq!(bench.routing(), before);
        assert_eq!(bench.sysctl("net/ipv4/conf/all/rp_filter"), "0");
    });
}

#[test]
fn a_dropped_guard_undoes_itself() {
    in_namespace(async |bench| {
        let before = bench.routing();
        drop(RouteGuard::apply(&plan(), &mut bench.journal).await.unwrap());
        bench.ip("link del culvert0");
        assert_eq!(bench.routing(), before);
    });
}

#[test]
fn a_clash_with_the_lan_is_refused_by_name_and_changes_nothing() {
    in_namespace(async |bench| {
        bench.ip("addr add 100.77.4.1/24 dev lan0");
        let before = bench.routing();
        let error = RouteGuard::apply(&plan(), &mut bench.journal).await.unwrap_err();
        assert!(matches!(&error, RouteError::Overlap { interface, .. } if interface == "lan0"), "{error}");
        assert_eq!(bench.routing(), before);
    });
}

#[test]
fn a_table_of_another_program_is_left_alone() {
    in_namespace(async |bench| {
        bench.ip("route add 10.9.0.0/16 dev lan0 table 25462");
        let error = RouteGuard::apply(&plan(), &mut bench.journal).await.unwrap_err();
        assert!(matches!(error, RouteError::TableTaken(MARK)), "{error}");
        assert_eq!(bench.journal.in_force(), []);
    });
}

fn plan() -> Plan {
    Plan {
        device: "culvert0".into(),
        ipv4: "100.77.0.2".parse().unwrap(),
        ipv6: Some("fd00:77::2".parse().unwrap()),
        mtu_bytes: 1280,
        routes: vec!["0.0.0.0/0".parse().unwrap(), "::/0".parse().unwrap()],
        excluded: vec!["203.0.113.0/24".parse().unwrap()],
        networks: vec!["100.77.0.0/16".parse().unwrap(), "fd00:77::/64".parse().unwrap()],
        fwmark: MARK,
        overlap: Overlap::Ask,
    }
}

struct Bench {
    journal: Journal,
}

/// Runs a test in a fresh network namespace with one physical-looking interface and a TUN. The
/// namespace ends with the thread.
fn in_namespace(test: impl AsyncFnOnce(&mut Bench) + Send) {
    assert!(rustix::process::geteuid().is_root(), "network namespaces need root");
    let run = || {
        // SAFETY: only this thread's network namespace changes; it shares no descriptors with others.
        unsafe { rustix::thread::unshare_unsafe(UnshareFlags::NEWNET) }.unwrap();
        let dir = tempfile::tempdir().unwrap();
        let mut bench = Bench { journal: Journal::open(dir.path()).unwrap() };
        // Of this thread's namespace: nobody else is on these links, so nobody is asked for a second.
        std::fs::write("/proc/sys/net/ipv6/conf/default/accept_dad", "0").unwrap();
        for command in [
            "link set lo up",
            "link add lan0 type veth peer name router0",
            "link set router0 up",
            "link set lan0 up",
            "addr add 192.0.2.2/24 dev lan0",
            "route add default via 192.0.2.1",
            "-6 addr add 2001:db8:1::2/64 dev lan0 nodad",
            "-6 route add default via 2001:db8:1::1",
            "tuntap add dev culvert0 mode tun",
        ] {
            bench.ip(command);
        }
        bench.wait_for_link_local_addresses();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(test(&mut bench));
    };
    std::thread::scope(|scope| scope.spawn(run).join()).unwrap_or_else(|panic| std::panic::resume_unwind(panic));
}

impl Bench {
    fn ip(&self, arguments: &str) -> String {
        let output = Command::new("ip").args(arguments.split(' ')).output().unwrap();
        assert!(output.status.success(), "ip {arguments}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    }

    /// The kernel gives them, with their routes, some time after the links are up.
    fn wait_for_link_local_addresses(&self) {
        for _ in 0..500 {
            if ["lan0", "router0"].iter().all(|link| self.ip(&format!("-6 addr show dev {link}")).contains("fe80:")) {
                return;
            }
            std::thread::sleep(std::time::Duration::from_millis(10));
        }
        panic!("the links have no link-local addresses");
    }

    /// Everything that decides where a packet goes.
    fn routing(&self) -> String {
        ["rule", "-6 rule", "route show table all", "-6 route show table all"]
            .map(|part| self.ip(part))
            .join("\n")
            .lines()
            .filter(|line| !line.contains("dev culvert0"))
            .collect::<Vec<_>>()
            .join("\n")
    }

    fn mtu(&self) -> u32 {
        let text = self.ip("-o link show culvert0");
        text.split_once("mtu ").unwrap().1.split(' ').next().unwrap().parse().unwrap()
    }

    fn sysctl(&self, key: &str) -> String {
        std::fs::read_to_string(format!("/proc/sys/{key}")).unwrap().trim().into()
    }

    fn set_sysctl(&self, key: &str, value: &str) {
        std::fs::write(format!("/proc/sys/{key}"), value).unwrap();
    }
}
