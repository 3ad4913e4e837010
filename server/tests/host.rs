//! What the gateway changes on its host, in a network namespace of the test's own: nftables,
//! sysctls, addresses. Each test runs again as a child inside `unshare`.

#![allow(clippy::unwrap_used, reason = "helpers of tests; clippy.toml covers test functions only")]

mod namespace;

use culvert_server::addresses::Pool;
use culvert_server::config::Translated;
use culvert_server::firewall::{self, Needs, Obstacle, Owner};
use culvert_server::forwarding::Forwarding;
use culvert_server::interface::{Netlink, check_overlap};
use culvert_server::journal::Journal;
use culvert_server::nat::{self, Nat};
use futures_util::TryStreamExt;
use namespace::in_a_namespace;
use nftables::helper::{DEFAULT_NFT, get_current_ruleset_with_args};
use nftables::schema::{NfListObject, NfObject};
use rtnetlink::LinkVeth;
use rtnetlink::packet_route::link::LinkAttribute;

#[test]
fn the_table_is_replaced_as_a_whole_and_gone_with_its_owner() {
    in_a_namespace("the_table_is_replaced_as_a_whole_and_gone_with_its_owner", || {
        let pool = pool();
        let first = Nat::apply("culv-0", &pool, true, Translated::BOTH).unwrap();
        let rules = rules("culvert_culv-0");
        assert_eq!(rules, 8, "isolation, 2 sources, forged, answers, rest, 2 masquerades");
        let again = Nat::apply("culv-0", &pool, true, Translated::BOTH).unwrap();
        assert_eq!(self::rules("culvert_culv-0"), rules, "a second start adds nothing");
        let open = Nat::apply("culv-0", &pool, false, Translated::BOTH).unwrap();
        assert_eq!(self::rules("culvert_culv-0"), rules - 1, "without isolation");

        let neighbour = Nat::apply("culv-1", &pool, true, Translated::BOTH).unwrap();
        assert!(nat::other_gateways("culvert_culv-0").unwrap());
        let routed = Nat::apply("culv-0", &pool, true, Translated { ipv4: true, ipv6: false }).unwrap();
        assert_eq!(self::rules("culvert_culv-0"), rules - 1, "routed IPv6 keeps its addresses");
        drop((first, again, open, routed));
        assert_eq!(tables(), ["culvert_culv-1"]);
        assert!(!nat::other_gateways("culvert_culv-1").unwrap());
        drop(neighbour);
        assert!(tables().is_empty());
        nat::remove("culvert_culv-0").expect("removing what is gone is fine");
    });
}

#[test]
fn forwarding_is_turned_on_and_put_back_also_after_a_crash() {
    in_a_namespace("forwarding_is_turned_on_and_put_back_also_after_a_crash", || {
        let folder = tempfile::tempdir().unwrap();
        let before = forwarding();
        assert_eq!(before, ("0".into(), "0".into()), "a new namespace does not forward");
        let (mut journal, undone) = Journal::open(folder.path()).unwrap();
        assert!(!undone);
        let guard = Forwarding::enable(true, &mut journal).unwrap();
        assert_eq!(forwarding(), ("1".into(), "1".into()));
        drop(guard);
        assert_eq!(forwarding(), before);
        journal.clear();

        // A crash: nothing is dropped, the journal stays.
        let (mut journal, _) = Journal::open(folder.path()).unwrap();
        journal.add_table("culvert_culv0".into()).unwrap();
        let table = Nat::apply("culv0", &pool(), true, Translated::BOTH).unwrap();
        Forwarding::enable(true, &mut journal).unwrap().keep();
        #[expect(clippy::mem_forget, reason = "a crash runs no destructor")]
        std::mem::forget(table);
        drop(journal);
        assert_eq!(tables(), ["culvert_culv0"]);

        let (_, undone) = Journal::open(folder.path()).unwrap();
        assert!(undone);
        assert!(tables().is_empty());
        assert_eq!(forwarding(), before);
    });
}

#[test]
fn another_firewalls_drop_policy_is_seen_and_the_command_told_is_one_that_nft_takes() {
    in_a_namespace("another_firewalls_drop_policy_is_seen_and_the_command_told_is_one_that_nft_takes", || {
        let _own = Nat::apply("culv-0", &pool(), true, Translated::BOTH).unwrap();
        assert_eq!(obstacles(), []);
        nft(
            "add table ip filter; add chain ip filter FORWARD { type filter hook forward priority filter; policy drop; }",
        );
        nft(
            "add table ip6 filter; add chain ip6 filter FORWARD { type filter hook forward priority filter; policy drop; }",
        );
        nft(
            "add table inet open; add chain inet open forward { type filter hook forward priority filter; policy accept; }",
        );
        nft("add table inet shut; add chain inet shut in { type filter hook input priority filter; policy accept; }");
        nft(
            "add rule inet shut in iifname \"lo\" accept; add rule inet shut in counter reject with icmpx admin-prohibited",
        );
        nft("add table bridge filter; add chain bridge filter F { type filter hook forward priority 0; policy drop; }");
        let seen = obstacles();
        assert_eq!(chains(&seen), ["ip filter FORWARD", "ip6 filter FORWARD", "inet shut in"]);
        let owners: Vec<Owner> = seen.iter().map(|obstacle| obstacle.owner).collect();
        assert_eq!(owners, [Owner::Iptables, Owner::Nftables]);
        let without = |needs: &Needs| chains(&firewall::obstacles(&firewall::ruleset().unwrap(), needs));
        assert_eq!(without(&Needs { ipv6: false, ..needs() }), ["ip filter FORWARD", "inet shut in"]);
        assert_eq!(without(&Needs { dns: false, ..needs() }), ["ip filter FORWARD", "ip6 filter FORWARD"]);
        seen.iter().for_each(|obstacle| shell(&obstacle.command));
        assert_eq!(obstacles(), [], "what was repaired is not asked for again");
        shell("iptables -S FORWARD && ip6tables -S FORWARD"); // which gives up at rules of nft's own kind
    });
}

#[test]
fn a_firewall_that_lets_our_interface_through_is_no_obstacle() {
    in_a_namespace("a_firewall_that_lets_our_interface_through_is_no_obstacle", || {
        for (rule, known) in [
            ("iifname \"culv-0\" accept", true),
            ("iifname { \"eth9\", \"culv-0\" } counter accept", true),
            ("iifname \"culv-*\" jump lan", true),
            ("iifname \"culv-0\" drop", false),
            ("iifname != \"culv-0\" accept", false),
            ("oifname \"culv-0\" accept", false),
            ("iifname \"culv-01\" accept", false),
        ] {
            nft("flush ruleset; add table inet site; add chain inet site lan");
            nft("add chain inet site in { type filter hook forward priority filter; policy drop; }");
            nft(&format!("add rule inet site in {rule}"));
            assert_eq!(obstacles().is_empty(), known, "{rule}");
        }
    });
}

#[test]
fn dockers_ufws_and_firewalls_that_are_both_are_told_apart() {
    in_a_namespace("dockers_ufws_and_firewalls_that_are_both_are_told_apart", || {
        for iptables in ["iptables-nft", "ip6tables-nft"] {
            shell(&format!(
                "{iptables} -P FORWARD DROP && {iptables} -N DOCKER-USER && {iptables} -A FORWARD -j DOCKER-USER"
            ));
        }
        let seen = obstacles();
        assert_eq!((seen.len(), seen[0].owner), (1, Owner::Docker));
        let command = seen[0].command.clone();
        assert!(command.starts_with("iptables -I DOCKER-USER -i culv-0 -j ACCEPT"), "{command}");
        // ufw shares Docker's table and keeps its rules over a restart, so it is the one to ask.
        shell("iptables-nft -N ufw-user-forward");
        assert!(obstacles().iter().any(|obstacle| obstacle.owner == Owner::Ufw));
        shell("iptables-nft -X ufw-user-forward");
        shell(&command);
        assert_eq!(obstacles(), []);
        // Docker beside rules of an administrator for the host itself.
        shell("iptables -F DOCKER-USER && ip6tables -F DOCKER-USER && iptables -P INPUT DROP");
        let seen = obstacles();
        assert_eq!(chains(&seen), ["ip filter FORWARD", "ip filter INPUT", "ip6 filter FORWARD"]);
        shell(&seen[0].command);
        assert_eq!(obstacles(), []);
        shell(
            "iptables -C INPUT -i culv-0 -p udp --dport 53 -j ACCEPT && iptables -C INPUT -p udp --dport 443 -j ACCEPT",
        );
    });
}

#[test]
fn a_crashed_gateways_settings_stay_under_another_gateway_and_after_a_reboot() {
    in_a_namespace("a_crashed_gateways_settings_stay_under_another_gateway_and_after_a_reboot", || {
        let folder = tempfile::tempdir().unwrap();
        let on = ("1".to_owned(), "1".to_owned());
        crash(folder.path());
        let other = Nat::apply("culv1", &pool(), true, Translated::BOTH).unwrap();
        let (_, undone) = Journal::open(folder.path()).unwrap();
        assert!(undone);
        assert_eq!(forwarding(), on, "the other gateway forwards on");
        drop(other);
        set("ipv4/ip_forward", "0");
        set("ipv6/conf/all/forwarding", "0");

        crash(folder.path());
        let file = folder.path().join("journal.json");
        let mut entries: serde_json::Value = serde_json::from_slice(&std::fs::read(&file).unwrap()).unwrap();
        for boot in [serde_json::json!("of yesterday"), serde_json::Value::Null] {
            entries["boot"] = boot;
            if entries["boot"].is_null() {
                entries.as_object_mut().unwrap().remove("boot");
            }
            std::fs::write(&file, entries.to_string()).unwrap();
            assert!(Journal::open(folder.path()).unwrap().1);
            assert_eq!(forwarding(), on, "today's values are the administrator's");
        }
        assert!(!file.exists());
    });
}

#[test]
fn an_interface_that_forwarded_by_itself_does_so_again_afterwards() {
    in_a_namespace("an_interface_that_forwarded_by_itself_does_so_again_afterwards", || {
        let folder = tempfile::tempdir().unwrap();
        let switches = ["ipv4/conf/lo/forwarding", "ipv6/conf/lo/forwarding"];
        for switch in switches {
            set(switch, "1");
        }
        let check = |when| {
            assert_eq!(forwarding(), ("0".into(), "0".into()), "{when}");
            for switch in switches {
                assert_eq!(get(switch), "1", "{switch} {when}");
            }
            assert_eq!(get("ipv4/conf/default/forwarding"), "0", "{when}");
        };
        check("before");
        let (mut journal, _) = Journal::open(folder.path()).unwrap();
        drop(Forwarding::enable(true, &mut journal).unwrap());
        check("after a stop");
        journal.clear();
        crash(folder.path());
        assert!(Journal::open(folder.path()).unwrap().1);
        check("after a crash");
    });
}

#[test]
fn the_interface_gets_both_addresses_and_an_overlap_is_seen() {
    in_a_namespace("the_interface_gets_both_addresses_and_an_overlap_is_seen", || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let (connection, handle, _) = rtnetlink::new_connection().unwrap();
            tokio::spawn(connection);
            handle.link().add(LinkVeth::new("culv0", "peer0").build()).execute().await.unwrap();

            let netlink = Netlink::open().unwrap();
            assert_eq!(check_overlap(&pool(), &netlink.local_networks().await.unwrap()), Ok(()));
            netlink.bring_up("culv0", &pool(), 1500).await.unwrap();
            netlink.bring_up("culv0", &pool(), 1400).await.expect("a second time changes nothing");

            let locals = netlink.local_networks().await.unwrap();
            let overlap = check_overlap(&pool(), &locals).unwrap_err();
            assert_eq!((overlap.with.interface.as_str(), overlap.key), ("culv0", "network.ipv4"));
            let networks: Vec<String> = locals.iter().map(|local| local.network.to_string()).collect();
            assert!(networks.contains(&"fd4e:9a1c::/64".to_owned()), "{networks:?}");
            let missing = netlink.bring_up("nosuch0", &pool(), 1500).await.unwrap_err();
            assert_eq!(missing.to_string(), "there is no interface nosuch0");

            let link = handle.link().get().match_name("culv0").execute().try_next().await.unwrap().unwrap();
            assert!(link.attributes.contains(&LinkAttribute::Mtu(1400)), "{:?}", link.attributes);
        });
    });
}

fn pool() -> Pool {
    Pool::new("100.77.3.0/24".parse().unwrap(), Some("fd4e:9a1c::/64".parse().unwrap()))
}

/// Turns forwarding on for a gateway that then dies.
fn crash(folder: &std::path::Path) {
    let (mut journal, undone) = Journal::open(folder).unwrap();
    assert!(!undone);
    Forwarding::enable(true, &mut journal).unwrap().keep();
}

fn forwarding() -> (String, String) {
    (get("ipv4/ip_forward"), get("ipv6/conf/all/forwarding"))
}

fn get(switch: &str) -> String {
    std::fs::read_to_string(format!("/proc/sys/net/{switch}")).unwrap().trim().to_owned()
}

fn set(switch: &str, value: &str) {
    std::fs::write(format!("/proc/sys/net/{switch}"), value).unwrap();
}

fn tables() -> Vec<String> {
    let listed = get_current_ruleset_with_args(DEFAULT_NFT, ["list", "tables"]).unwrap();
    let table = |object: &NfObject<'_>| match object {
        NfObject::ListObject(NfListObject::Table(table)) => Some(table.name.to_string()),
        _ => None,
    };
    listed.objects.iter().filter_map(table).collect()
}

fn needs() -> Needs {
    Needs { device: "culv-0".into(), ipv6: true, port: 443, dns: true }
}

fn obstacles() -> Vec<Obstacle> {
    firewall::obstacles(&firewall::ruleset().unwrap(), &needs())
}

fn chains(obstacles: &[Obstacle]) -> Vec<String> {
    obstacles.iter().flat_map(|obstacle| &obstacle.chains).map(|chain| chain.name.clone()).collect()
}

fn shell(command: &str) {
    let output = std::process::Command::new("sh").args(["-c", command]).output().unwrap();
    assert!(output.status.success(), "{command}: {}", String::from_utf8_lossy(&output.stderr));
}

fn nft(commands: &str) {
    let output = std::process::Command::new("nft").arg(commands).output().unwrap();
    assert!(output.status.success(), "{commands}: {}", String::from_utf8_lossy(&output.stderr));
}

fn rules(table: &str) -> usize {
    let listed = get_current_ruleset_with_args(DEFAULT_NFT, ["list", "table", "inet", table]).unwrap();
    listed.objects.iter().filter(|object| matches!(object, NfObject::ListObject(NfListObject::Rule(_)))).count()
}
