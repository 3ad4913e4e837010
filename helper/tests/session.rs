//! The real helper against a gateway's real shard, across two network namespaces with real TUNs:
//! what is in force while connected, what is held while reconnecting, and that nothing is left
//! afterwards, whatever ended it. Needs root.
#![allow(clippy::unwrap_used, reason = "a test's helpers may panic as its body does")]
#![cfg(target_os = "linux")]
#![allow(unsafe_code, reason = "unshare(2) has no safe wrapper: it changes what other calls of the thread see")]

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use culvert_helper::profile::{Profile, Profiles};
use culvert_protocol::{Client, Event, Request, State, Status, code};
use culvert_tunnel::banned::Banned;
use culvert_tunnel::close::Close;
use culvert_tunnel::control::{FromClient, FromServer, Refused, Welcome, decode, encode};
use culvert_tunnel::device::linux::Tun;
use culvert_tunnel::filter::Policy;
use culvert_tunnel::identity::{Authority, Credential, DeviceId, DeviceKey};
use culvert_tunnel::routing::Routing;
use culvert_tunnel::shard::cid::CidKey;
use culvert_tunnel::shard::engine::Role;
use culvert_tunnel::shard::mailbox::{self, Lease, ShardHandle};
use culvert_tunnel::shard::{RunningShard, ShardConfig, spawn};
use culvert_tunnel::socket::{SocketOptions, bind};
use culvert_tunnel::transport::{ServerTransport, Tuning};
use rustix::process::{Pid, Signal, kill_process};
use rustix::thread::UnshareFlags;
use tempfile::TempDir;
use tokio::time::timeout;

const RESOLVER: &str = "# the user's own\nnameserver 192.0.2.53\n";

#[test]
fn connected_means_that_packets_cross_and_disconnected_that_nothing_is_left() {
    in_namespaces(async |bench| {
        let before = bench.machine();
        let _gateway = bench.gateway(Answer::Welcome);
        let mut client = bench.client().await;
        client.request(Request::Connect { profile: None, key: None }).await.unwrap();
        let status = bench.reaches(&mut client, "connected").await;
        assert_eq!(
            status.addresses,
            ["100.77.0.2".parse::<std::net::IpAddr>().unwrap(), "fd00:77::2".parse().unwrap()]
        );
        let protection = status.protection.unwrap();
        assert!(protection.ipv4 && protection.ipv6 && protection.dns && protection.kill_switch);
        assert_eq!(status.gateway.unwrap().remote, Some("192.0.2.1:4433".parse().unwrap()));
        for target in ["100.77.0.1", "fd00:77::1"] {
            let ping = bench.run(&["ping", "-n", "-c", "3", "-i", "0.2", "-W", "2", target]);
            assert!(ping.status.success(), "{target}: {ping:?}");
        }
        assert!(bench.resolver().contains("nameserver 100.77.0.1\n"));
        assert!(bench.read(&["ip", "route", "get", "198.51.100.1"]).contains("dev culvert0"));
        let status = bench.status(&mut client).await;
        let traffic = status.traffic.unwrap();
        assert!(traffic.sent_packets >= 6 && traffic.received_packets >= 6, "{traffic:?}");
        assert!(status.path.unwrap().rtt_ms > 0.0);

        client.request(Request::Disconnect { unblock: false }).await.unwrap();
        bench.reaches(&mut client, "disconnected").await;
        assert_eq!(bench.machine(), before);
        assert_eq!(fs::metadata(bench.dir.path().join("state/journal")).unwrap().len(), 0);
    });
}

#[test]
fn a_gateway_that_comes_back_is_found_again_and_traffic_is_held_meanwhile() {
    in_namespaces(async |bench| {
        let before = bench.machine();
        let gateway = bench.gateway(Answer::Welcome);
        let mut client = bench.client().await;
        client.request(Request::Connect { profile: None, key: None }).await.unwrap();
        bench.reaches(&mut client, "connected").await;
        let interface = bench.read(&["cat", "/proc/self/net/dev_snmp6/culvert0"]);

        gateway.stop().await;
        let status = bench.reaches(&mut client, "reconnecting").await;
        assert!(matches!(status.state, State::Reconnecting { cause, .. } if cause.code == code::NO_ANSWER));
        assert!(bench.read(&["ip", "route", "get", "198.51.100.1"]).contains("dev culvert0"), "held, not leaked");
        assert!(bench.resolver().contains("nameserver 100.77.0.1\n"));

        let _gateway = bench.gateway(Answer::Welcome);
        bench.reaches(&mut client, "connected").await;
        let same = bench.read(&["cat", "/proc/self/net/dev_snmp6/culvert0"]);
        assert_eq!(same.lines().next(), interface.lines().next(), "the interface was kept");
        assert!(bench.run(&["ping", "-n", "-c", "1", "-W", "2", "100.77.0.1"]).status.success());
        client.request(Request::Disconnect { unblock: false }).await.unwrap();
        bench.reaches(&mut client, "disconnected").await;
        assert_eq!(bench.machine(), before);
    });
}

#[test]
fn an_impostor_cannot_end_a_session_so_that_its_traffic_leaks() {
    in_namespaces(async |bench| {
        let gateway = bench.gateway(Answer::Welcome);
        let mut client = bench.client().await;
        client.request(Request::Connect { profile: None, key: None }).await.unwrap();
        bench.reaches(&mut client, "connected").await;
        gateway.stop().await;
        let mallory = Authority::create("Mallory", SystemTime::now()).unwrap();
        let real = std::mem::replace(&mut bench.authority, mallory);
        let impostor = bench.gateway(Answer::Welcome);
        let met = async {
            loop {
                let state = bench.status(&mut client).await.state;
                match state {
                    State::Reconnecting { cause, .. } if cause.code == code::WRONG_SERVER => return,
                    State::Reconnecting { .. } | State::Connected { .. } => client.next_event().await.unwrap(),
                    state => panic!("{state:?}"),
                };
            }
        };
        timeout(Duration::from_secs(30), met).await.expect("the impostor is met");
        assert!(bench.read(&["ip", "route", "get", "198.51.100.1"]).contains("dev culvert0"), "held, not leaked");
        impostor.stop().await;
        bench.authority = real;
        let _gateway = bench.gateway(Answer::Welcome);
        bench.reaches(&mut client, "connected").await;
    });
}

#[test]
fn a_gateway_that_moves_is_found_at_its_new_address() {
    in_namespaces(async |bench| {
        let gateway = bench.gateway(Answer::Welcome);
        let mut client = bench.client().await;
        client.request(Request::Connect { profile: None, key: None }).await.unwrap();
        bench.reaches(&mut client, "connected").await;
        gateway.stop().await;
        succeed(Command::new("ip").args(["addr", "add", "192.0.2.3/24", "dev", "net0"]));
        fs::write(bench.dir.path().join("hosts"), "192.0.2.3 gateway.example\n").unwrap();
        let _gateway = bench.gateway_at("192.0.2.3:4433", Answer::Welcome);
        bench.reaches(&mut client, "reconnecting").await;
        let status = bench.reaches(&mut client, "connected").await;
        assert_eq!(status.gateway.unwrap().remote, Some("192.0.2.3:4433".parse().unwrap()));
    });
}

#[test]
fn a_revoked_device_is_told_so_in_the_gateways_words_and_does_not_try_again() {
    in_namespaces(async |bench| {
        let before = bench.machine();
        let _gateway = bench.gateway(Answer::Refuse);
        let mut client = bench.client().await;
        client.request(Request::Connect { profile: None, key: None }).await.unwrap();
        let status = bench.reaches(&mut client, "failed").await;
        let State::Failed { problem } = status.state else { panic!() };
        assert_eq!((problem.code, problem.cause.as_str()), (code::REVOKED, "Removed on 3 May"));
        assert_eq!(bench.machine(), before);
    });
}

#[test]
fn a_server_with_another_authority_learns_nothing_and_is_refused() {
    in_namespaces(async |bench| {
        bench.authority = Authority::create("Mallory", SystemTime::now()).unwrap();
        let _gateway = bench.gateway(Answer::Welcome);
        let mut client = bench.client().await;
        client.request(Request::Connect { profile: None, key: None }).await.unwrap();
        let status = bench.reaches(&mut client, "blocked").await;
        assert!(matches!(status.state, State::Blocked { cause } if cause.code == code::WRONG_SERVER));
    });
}

#[test]
fn a_helper_killed_while_connected_is_followed_by_one_that_goes_on() {
    in_namespaces(async |bench| {
        let before = bench.machine();
        let _gateway = bench.gateway(Answer::Welcome);
        let mut client = bench.client().await;
        client.request(Request::Connect { profile: None, key: None }).await.unwrap();
        bench.reaches(&mut client, "connected").await;
        bench.helper.kill().unwrap();
        bench.helper.wait().unwrap();
        assert!(bench.machine().contains("table inet culvert"), "the block stays");
        bench.start_helper();
        let mut client = bench.client().await;
        bench.reaches(&mut client, "connected").await;
        client.request(Request::Disconnect { unblock: false }).await.unwrap();
        bench.reaches(&mut client, "disconnected").await;
        assert_eq!(bench.machine(), before);
    });
}

#[test]
fn what_a_killed_helper_left_can_be_undone_without_another() {
    in_namespaces(async |bench| {
        let before = bench.machine();
        let _gateway = bench.gateway(Answer::Welcome);
        let mut client = bench.client().await;
        client.request(Request::Connect { profile: None, key: None }).await.unwrap();
        bench.reaches(&mut client, "connected").await;
        let recover = [env!("CARGO_BIN_EXE_culvert-helper"), "recover", "--state-dir", &bench.state()];
        let refused = bench.run(&recover);
        assert!(!refused.status.success(), "a helper is there");
        assert!(String::from_utf8_lossy(&refused.stderr).contains("stop the helper first"), "{refused:?}");
        bench.helper.kill().unwrap();
        bench.helper.wait().unwrap();
        assert_ne!(bench.machine(), before, "kill -9 leaves rules, resolver and block behind");
        bench.read(&recover);
        assert_eq!(bench.machine(), before);
        bench.start_helper();
        let mut client = bench.client().await;
        assert_eq!(bench.status(&mut client).await.state, State::Disconnected, "nothing is wanted any more");
    });
}

#[test]
fn a_terminated_helper_undoes_everything_first() {
    in_namespaces(async |bench| {
        let before = bench.machine();
        let _gateway = bench.gateway(Answer::Welcome);
        for signal in [Signal::TERM, Signal::HUP] {
            let mut client = bench.client().await;
            client.request(Request::Connect { profile: None, key: None }).await.unwrap();
            bench.reaches(&mut client, "connected").await;
            kill_process(Pid::from_child(&bench.helper), signal).unwrap();
            assert!(bench.helper.wait().unwrap().success(), "{signal:?}");
            assert_eq!(bench.machine(), before, "{signal:?}");
            bench.start_helper();
        }
    });
}

#[test]
fn a_resolver_that_cannot_be_put_back_is_told_and_put_back_by_the_next_start() {
    in_namespaces(async |bench| {
        let before = bench.machine();
        let _gateway = bench.gateway(Answer::Welcome);
        let mut client = bench.client().await;
        client.request(Request::Connect { profile: None, key: None }).await.unwrap();
        bench.reaches(&mut client, "connected").await;
        bench.read(&["mount", "-o", "remount,bind,ro", "/etc/resolv.conf"]);
        client.request(Request::Disconnect { unblock: false }).await.unwrap();
        let status = bench.reaches(&mut client, "failed").await;
        let State::Failed { problem } = status.state else { panic!() };
        assert_eq!(problem.code, code::SYSTEM);
        assert!(problem.cause.contains("/etc/resolv.conf"), "{problem}");
        assert!(!bench.read(&["ip", "rule"]).contains("fwmark"), "the rest is undone");
        bench.read(&["mount", "-o", "remount,bind,rw", "/etc/resolv.conf"]);
        kill_process(Pid::from_child(&bench.helper), Signal::TERM).unwrap();
        assert!(bench.helper.wait().unwrap().success());
        bench.start_helper();
        bench.client().await;
        assert_eq!(bench.machine(), before);
    });
}

#[test]
fn a_clash_with_the_lan_is_refused_by_name_and_nothing_is_left() {
    in_namespaces(async |bench| {
        bench.read(&["ip", "addr", "add", "100.77.9.1/24", "dev", "lan0"]);
        let before = bench.machine();
        let _gateway = bench.gateway(Answer::Welcome);
        let mut client = bench.client().await;
        client.request(Request::Connect { profile: None, key: None }).await.unwrap();
        let status = bench.reaches(&mut client, "blocked").await;
        let State::Blocked { cause: problem } = status.state else { panic!() };
        assert_eq!(problem.code, code::OVERLAP);
        assert!(problem.cause.contains("100.77.9.0/24 on lan0"), "{problem}");
        client.request(Request::Disconnect { unblock: false }).await.unwrap();
        bench.reaches(&mut client, "disconnected").await;
        assert_eq!(bench.machine(), before);
    });
}

#[test]
fn an_interface_that_somebody_deletes_is_made_again() {
    in_namespaces(async |bench| {
        let _gateway = bench.gateway(Answer::Welcome);
        let mut client = bench.client().await;
        client.request(Request::Connect { profile: None, key: None }).await.unwrap();
        bench.reaches(&mut client, "connected").await;
        bench.read(&["ip", "link", "del", "culvert0"]);
        bench.run(&["ping", "-n", "-c", "1", "-W", "1", "100.77.0.1"]); // so that the loss is noticed
        bench.reaches(&mut client, "reconnecting").await;
        bench.reaches(&mut client, "connected").await;
        assert!(bench.run(&["ping", "-n", "-c", "1", "-W", "2", "100.77.0.1"]).status.success());
    });
}

#[test]
fn a_connected_helper_is_small_and_sleeps() {
    in_namespaces(async |bench| {
        let _gateway = bench.gateway(Answer::Welcome);
        let mut client = bench.client().await;
        client.request(Request::Connect { profile: None, key: None }).await.unwrap();
        bench.reaches(&mut client, "connected").await;
        tokio::time::sleep(Duration::from_secs(3)).await; // path MTU discovery
        let before = bench.wakeups();
        tokio::time::sleep(Duration::from_secs(5)).await;
        let woken = bench.wakeups() - before;
        assert!(woken < 15, "{woken} wake-ups in 5 s of rest");
        let resident = bench.resident_kib();
        assert!(resident < 30 * 1024, "{resident} KiB resident");
    });
}

#[derive(Clone, Copy)]
enum Answer {
    Welcome,
    Refuse,
}

/// A gateway's data path with the least control plane that a client needs.
struct Gateway {
    handle: ShardHandle<Tun>,
    ended: tokio::task::JoinHandle<()>,
}

impl Gateway {
    async fn stop(self) {
        let stop = mailbox::Command::Stop { code: Close::Shutdown, reason: "the gateway is stopping".into() };
        self.handle.send(stop).await.unwrap();
        self.ended.await.unwrap();
    }
}

struct Bench {
    dir: TempDir,
    authority: Authority,
    /// Holds the client's namespaces open.
    holder: Child,
    helper: Child,
}

/// Runs a test on a thread whose network namespace is the gateway's.
fn in_namespaces(test: impl AsyncFnOnce(&mut Bench) + Send) {
    assert!(rustix::process::geteuid().is_root(), "network namespaces need root");
    let run = || {
        // SAFETY: only this thread's network namespace changes; it shares no descriptors with others.
        unsafe { rustix::thread::unshare_unsafe(UnshareFlags::NEWNET) }.unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let mut bench = Bench::new();
            test(&mut bench).await;
        });
    };
    std::thread::scope(|scope| scope.spawn(run).join()).unwrap_or_else(|panic| std::panic::resume_unwind(panic));
}

impl Bench {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let authority = Authority::create("Acme", SystemTime::now()).unwrap();
        fs::write(dir.path().join("resolv.conf"), RESOLVER).unwrap();
        fs::write(dir.path().join("hosts"), "192.0.2.1 gateway.example\n").unwrap();
        let holder = hold_namespaces(dir.path());
        let pid = holder.id().to_string();
        for command in [
            "ip link set lo up",
            "ip link add net0 type veth peer name lan0",
            &format!("ip link set lan0 netns {pid}"),
            "ip addr add 192.0.2.1/24 dev net0",
            "ip link set net0 up",
        ] {
            succeed(Command::new("ip").args(command.split(' ').skip(1)));
        }
        fs::create_dir(dir.path().join("state")).unwrap();
        Profiles::open(&dir.path().join("state")).unwrap().keep(profile(&authority)).unwrap();
        let helper = start_helper(dir.path(), &holder);
        let bench = Self { dir, authority, holder, helper };
        for command in [
            "ip link set lo up",
            "ip link set lan0 addrgenmode none", // its link-local address would come a second later
            "ip link set lan0 up",
            "ip addr add 192.0.2.2/24 dev lan0",
            "ip route add default via 192.0.2.1",
            "ip -6 addr add 2001:db8:1::2/64 dev lan0 nodad",
            "ip -6 route add default via 2001:db8:1::1",
        ] {
            bench.read(&command.split(' ').collect::<Vec<_>>());
        }
        // The kernel makes it when it has seen the cable, which may take a moment.
        let deadline = Instant::now() + Duration::from_secs(10);
        while !bench.read(&["ip", "-6", "route", "show", "table", "local"]).contains("local 2001:db8:1::2") {
            assert!(Instant::now() < deadline, "no route to the own address");
            std::thread::sleep(Duration::from_millis(10));
        }
        bench
    }

    fn start_helper(&mut self) {
        self.helper = start_helper(self.dir.path(), &self.holder);
    }

    /// Starts a gateway on 192.0.2.1:4433.
    fn gateway(&self, answer: Answer) -> Gateway {
        self.gateway_at("192.0.2.1:4433", answer)
    }

    /// Starts a gateway; its inner side is `gw0`, 100.77.0.1 and fd00:77::1.
    fn gateway_at(&self, address: &str, answer: Answer) -> Gateway {
        let now = SystemTime::now();
        let credential = self.authority.issue_server(&["192.0.2.1".into()], now).unwrap();
        let transport = ServerTransport::new(
            std::slice::from_ref(self.authority.certificate_der()),
            credential.chain().to_vec(),
            credential.private_key(),
            Tuning::default(),
        )
        .unwrap();
        let policy = Policy {
            networks: vec!["100.77.0.0/16".parse().unwrap(), "fd00:77::/64".parse().unwrap()],
            gateway: vec!["100.77.0.1".parse().unwrap(), "fd00:77::1".parse().unwrap()],
            isolation: true,
        };
        let device = Tun::open("gw0", 1).unwrap().remove(0);
        for command in
            ["link set gw0 up mtu 1280", "addr add 100.77.0.1/16 dev gw0", "-6 addr add fd00:77::1/64 dev gw0 nodad"]
        {
            succeed(Command::new("ip").args(command.split(' ')));
        }
        let config = ShardConfig {
            socket: bind(address.parse().unwrap(), SocketOptions::default()).unwrap(),
            device: Some(device),
            role: Role::Gateway {
                transport,
                routing: Routing::default(),
                policy: Arc::new(policy),
                banned: Banned::default(),
            },
            cids: CidKey::random(),
        };
        let shard = spawn(vec![config]).unwrap().remove(0);
        let handle = shard.handle.clone();
        Gateway { handle, ended: tokio::spawn(serve(shard, answer)) }
    }

    async fn client(&self) -> Client {
        let socket = self.dir.path().join("helper.sock");
        let connected = async {
            loop {
                match Client::connect(&socket, "test").await {
                    Ok(client) => return client,
                    Err(_) => tokio::time::sleep(Duration::from_millis(20)).await,
                }
            }
        };
        let mut client = timeout(Duration::from_secs(10), connected).await.expect("the helper listens");
        client.request(Request::Watch).await.unwrap();
        client
    }

    /// Waits until the state has this name.
    async fn reaches(&self, client: &mut Client, word: &str) -> Status {
        let reached = async {
            loop {
                let status = self.status(client).await;
                if status.state.word() == word {
                    return status;
                }
                client.next_event().await.unwrap();
            }
        };
        match timeout(Duration::from_secs(20), reached).await {
            Ok(status) => status,
            Err(_) => panic!("not {word}, but {:?}", self.status(client).await),
        }
    }

    async fn status(&self, client: &mut Client) -> Status {
        let Event::Status(status) = client.request(Request::Status).await.unwrap() else { panic!() };
        *status
    }

    /// Runs a program in the client's namespaces.
    fn run(&self, words: &[&str]) -> Output {
        let target = self.holder.id().to_string();
        Command::new("nsenter").args(["-t", &target, "-n", "-m", "--"]).args(words).output().unwrap()
    }

    fn read(&self, words: &[&str]) -> String {
        let output = self.run(words);
        assert!(output.status.success(), "{words:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    }

    fn state(&self) -> String {
        self.dir.path().join("state").display().to_string()
    }

    fn resolver(&self) -> String {
        self.read(&["cat", "/etc/resolv.conf"])
    }

    /// Everything that a VPN may change and must put back.
    fn machine(&self) -> String {
        let commands: [&[&str]; 8] = [
            &["ip", "route"],
            &["ip", "-6", "route"],
            &["ip", "route", "show", "table", "all"],
            &["ip", "-6", "route", "show", "table", "all"],
            &["ip", "rule"],
            &["ip", "-6", "rule"],
            &["cat", "/etc/resolv.conf"],
            &["nft", "list", "ruleset"],
        ];
        commands.map(|words| self.read(words)).join("\n--\n")
    }

    /// Times that threads of the helper went to sleep and woke again.
    fn wakeups(&self) -> u64 {
        let tasks = fs::read_dir(format!("/proc/{}/task", self.helper.id())).unwrap();
        let of = |task: fs::DirEntry| number(&task.path().join("status"), "voluntary_ctxt_switches:");
        tasks.flatten().map(of).sum()
    }

    fn resident_kib(&self) -> u64 {
        number(Path::new(&format!("/proc/{}/status", self.helper.id())), "VmRSS:")
    }
}

impl Drop for Bench {
    fn drop(&mut self) {
        for child in [&mut self.helper, &mut self.holder] {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// Answers hellos until the shard ends.
async fn serve(mut shard: RunningShard<Tun>, answer: Answer) {
    while let Some(event) = shard.events.recv().await {
        let mailbox::Event::Frame { link, payload } = event else { continue };
        let Ok(FromClient::Hello(_)) = decode(&payload) else { continue };
        let reply = match answer {
            Answer::Welcome => FromServer::Welcome(welcome("192.0.2.2:1".parse().unwrap())),
            Answer::Refuse => FromServer::Refused(Refused::new(Close::Revoked, "removed on 3 May")),
        };
        let mut commands = vec![mailbox::Command::Send { link, frame: encode(&reply).unwrap() }];
        match answer {
            Answer::Welcome => {
                let lease = Lease { ipv4: "100.77.0.2".parse().unwrap(), ipv6: Some("fd00:77::2".parse().unwrap()) };
                commands.push(mailbox::Command::Admit { link, lease });
            }
            Answer::Refuse => {
                commands.push(mailbox::Command::Close {
                    link,
                    code: Close::Revoked,
                    reason: "removed on 3 May".into(),
                });
            }
        }
        for command in commands {
            let _ = shard.handle.send(command).await; // the end of the events says that it stopped
        }
    }
}

fn welcome(seen_as: SocketAddr) -> Welcome {
    Welcome {
        gateway: "Acme".into(),
        device: "test".into(),
        ipv4: "100.77.0.2".parse().unwrap(),
        ipv6: Some("fd00:77::2".parse().unwrap()),
        gateway_ipv4: "100.77.0.1".parse().unwrap(),
        gateway_ipv6: Some("fd00:77::1".parse().unwrap()),
        networks: vec!["100.77.0.0/16".parse().unwrap(), "fd00:77::/64".parse().unwrap()],
        routes: vec!["0.0.0.0/0".parse().unwrap(), "::/0".parse().unwrap()],
        excluded_routes: vec![],
        dns_servers: vec!["100.77.0.1".parse().unwrap()],
        dns_domains: vec![],
        seen_as,
        endpoints: vec![],
        certificate_until: 1_900_000_000,
        rechallenge_seconds: 3600,
        time: None,
    }
}

/// A process in a network and mount namespace of its own, where /etc/resolv.conf and /etc/hosts are
/// the files of these names in `dir`.
fn hold_namespaces(dir: &Path) -> Child {
    let run = || {
        // SAFETY: only this thread's namespaces change; it ends right after the fork.
        unsafe { rustix::thread::unshare_unsafe(UnshareFlags::NEWNET | UnshareFlags::NEWNS) }.unwrap();
        succeed(Command::new("mount").args(["--make-rprivate", "/"]));
        for name in ["resolv.conf", "hosts"] {
            succeed(Command::new("mount").arg("--bind").arg(dir.join(name)).arg(format!("/etc/{name}")));
        }
        Command::new("sleep").arg("600").spawn().unwrap()
    };
    std::thread::scope(|scope| scope.spawn(run).join()).unwrap()
}

fn start_helper(dir: &Path, holder: &Child) -> Child {
    let log = fs::OpenOptions::new().create(true).append(true).open(dir.join("helper.log")).unwrap();
    let mut command = Command::new("nsenter");
    command.args(["-t", &holder.id().to_string(), "-n", "-m", "--", env!("CARGO_BIN_EXE_culvert-helper"), "run"]);
    command.arg("--socket").arg(dir.join("helper.sock")).arg("--state-dir").arg(dir.join("state"));
    command.args(["--log-level", "debug"]).stderr(Stdio::from(log)).spawn().unwrap()
}

fn profile(authority: &Authority) -> Profile {
    let (key, device_id) = (DeviceKey::generate().unwrap(), DeviceId::generate().unwrap());
    let issued = authority.issue_device(&key.csr("test").unwrap(), device_id, SystemTime::now()).unwrap();
    let credential = Credential::new(vec![issued.der.into(), authority.certificate_der().clone()], key).unwrap();
    Profile {
        name: String::new(),
        gateway: "Acme".into(),
        endpoints: vec!["gateway.example:4433".into()],
        server_name: "192.0.2.1".into(),
        device_id,
        device_name: "test".into(),
        user: "anna".into(),
        chain_pem: credential.chain_pem(),
        key_pem: credential.key_pem().expose().into(),
        sealed: None,
        authorities_pem: String::new(),
        carried: None,
    }
}

fn succeed(command: &mut Command) {
    let output = command.output().unwrap();
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
}

/// The number after `field` in a file of /proc.
fn number(path: &Path, field: &str) -> u64 {
    let text = fs::read_to_string(PathBuf::from(path)).unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix(field)).unwrap_or("0");
    line.split_whitespace().next().unwrap().parse().unwrap()
}
