//! fail2ban's own program reads what a real gateway wrote while real clients were refused in every way.
//!
//! Each way has a source address of its own, so that the addresses which fail2ban would ban tell what it
//! has understood.

#![allow(clippy::unwrap_used, reason = "helpers of tests; clippy.toml covers test functions only")]

mod client;
mod namespace;

use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, SystemTime};

use client::{Device, Gateway, Talk, closed, dial, refused, with_gateway};
use culvert_tunnel::close::Close;
use culvert_tunnel::control::{self, FromClient, FromServer, Hello};
use culvert_tunnel::identity::{Authority, DeviceId, DeviceKey};
use culvert_tunnel::invitation::{Invitation, InvitationId, Secret};

/// What an attacker would like to be read as a line of the gateway's.
const FORGED: &str = "x\" validated=yes\nevent=auth_failed src=9.9.9.9 port=1 reason=unknown_ca validated=yes name=\"";
const DAY: Duration = Duration::from_secs(86_400);

#[test]
fn fail2ban_bans_who_failed_and_nobody_else_by_the_text_log() {
    with_gateway("fail2ban_bans_who_failed_and_nobody_else_by_the_text_log", async |gateway| {
        let expected = refuse_in_every_way(gateway, &[]).await;
        assert_eq!(banned(&gateway.log(), "culvert-server"), expected);
    });
}

#[test]
fn fail2ban_bans_who_failed_and_nobody_else_by_the_json_log() {
    with_gateway("fail2ban_bans_who_failed_and_nobody_else_by_the_json_log", async |gateway| {
        let expected = refuse_in_every_way(gateway, &[("CULVERT_SERVER_LOG__FORMAT", "json")]).await;
        assert!(gateway.log().lines().all(|line| line.starts_with("{\"timestamp\":\"")), "{}", gateway.log());
        assert_eq!(banned(&gateway.log(), "culvert-server"), expected);
    });
}

#[test]
fn fail2ban_bans_who_failed_and_nobody_else_by_the_journal() {
    with_gateway("fail2ban_bans_who_failed_and_nobody_else_by_the_journal", async |gateway| {
        let expected = refuse_in_every_way(gateway, &[("JOURNAL_STREAM", "8:1")]).await;
        // The journal takes the priority off, and fail2ban's journal backend puts host and program before the rest.
        let journal = gateway.log().lines().fold(String::new(), |text, line| {
            let (_priority, message) =
                line.split_at_checked(3).filter(|(priority, _)| priority.starts_with('<')).unwrap();
            text + &format!("2026-11-27T08:00:00+0000 gw culvert-server[811]: {message}\n")
        });
        assert_eq!(banned(&journal, "culvert-server[logtype=journal]"), expected);
    });
}

#[test]
fn the_jail_is_off_until_somebody_turns_it_on() {
    let folder = unpacked();
    let dump = fail2ban(folder.path(), "fail2ban-server", &["--dp"]);
    assert!(!dump.contains("['add', 'culvert-server'"), "{dump}");
    std::fs::write(
        folder.path().join("etc/fail2ban/jail.d/culvert-server.local"),
        "[culvert-server]\nenabled = true\n",
    )
    .unwrap();
    let dump = fail2ban(folder.path(), "fail2ban-server", &["--dp"]);
    assert!(dump.contains("['add', 'culvert-server', 'systemd']"), "{dump}");
    assert!(dump.contains("_SYSTEMD_UNIT=culvert-server.service"), "{dump}");
}

/// Starts the gateway anew, has clients refused, and returns the addresses that should be banned.
async fn refuse_in_every_way(gateway: &Gateway, environment: &[(&str, &str)]) -> Vec<String> {
    let device = gateway.enrol(&gateway.invite("anna")).await.unwrap();
    let gone = gateway.enrol(&gateway.invite("ben")).await.unwrap();
    gateway.ok(&["devices", "revoke", "ben/laptop"]);
    gateway.signal("-TERM");
    gateway.wait();
    gateway.write_config("[bans]\nfailures = 0\n"); // fail2ban alone
    std::fs::write(gateway.log_path(), "").unwrap();
    gateway.start_with(environment);

    let key = DeviceKey::generate().unwrap();
    let csr = key.csr("x").unwrap();
    let issue = |authority: &Authority| {
        authority.issue_device(&csr, DeviceId::generate().unwrap(), SystemTime::now()).unwrap().der
    };
    let foreign = issue(&Authority::create("another", SystemTime::now()).unwrap());
    tls_refuses(gateway, guilty(1), &[foreign], &key).await;
    let nobody = dial(&gateway.endpoint(guilty(2), b"culvert/1", None), "127.0.0.1").await.unwrap();
    assert_eq!(closed(&nobody).await, Close::NoCertificate);
    let unknown = vec![issue(&gateway.authority())];
    let stranger = dial(&gateway.endpoint(guilty(3), b"culvert/1", Some((&unknown, &key))), "127.0.0.1").await.unwrap();
    assert_eq!(closed(&stranger).await, Close::UnknownDevice);
    let identity = (&gone.enrolment.chain, &gone.key);
    let revoked = dial(&gateway.endpoint(guilty(4), b"culvert/1", Some(identity)), "127.0.0.1").await.unwrap();
    assert_eq!(closed(&revoked).await, Close::Revoked);
    let good = gateway.invite("eve");
    let wrong = Invitation { secret: Secret::generate().unwrap(), ..good.clone() };
    assert_eq!(enrol(gateway, guilty(5), &wrong, FORGED).await, Close::InviteProof);
    let made_up = Invitation { id: InvitationId::generate().unwrap(), ..good.clone() };
    assert_eq!(enrol(gateway, guilty(6), &made_up, FORGED).await, Close::InviteForeign);

    let old = gateway.authority().issue_device_for(
        &device.key.csr("laptop").unwrap(),
        device.enrolment.device_id,
        DAY,
        SystemTime::now() - 3 * DAY,
    );
    tls_refuses(gateway, innocent(1), &[old.unwrap().der], &device.key).await;
    let short = gateway.invite_with("eve", &["--expires", "1s"]);
    tokio::time::sleep(Duration::from_millis(2_100)).await;
    assert_eq!(enrol(gateway, innocent(2), &short, FORGED).await, Close::InviteExpired);
    gateway.enrol(&good).await.unwrap();
    assert_eq!(enrol(gateway, innocent(3), &good, FORGED).await, Close::InviteUsed);
    hello(
        gateway,
        innocent(4),
        &device,
        Hello { version: 99, client: FORGED.into(), platform: FORGED.into(), authorities: vec![] },
    )
    .await;
    hello(
        gateway,
        innocent(5),
        &device,
        Hello { version: control::VERSION, client: FORGED.into(), platform: FORGED.into(), authorities: vec![] },
    )
    .await;

    // The lines of the first and the last may come after their clients have heard.
    for word in ["unknown_ca", "expired", "invite_used", "session_open"] {
        gateway.logs(word).await;
    }
    gateway.signal("-TERM");
    gateway.wait();
    (1..=6).map(|n| guilty(n).to_string()).collect()
}

fn guilty(n: u8) -> Ipv4Addr {
    Ipv4Addr::new(127, 0, 1, n)
}

fn innocent(n: u8) -> Ipv4Addr {
    Ipv4Addr::new(127, 0, 2, n)
}

/// TLS 1.3 may let a client believe that it is connected before its certificate was looked at.
async fn tls_refuses(gateway: &Gateway, from: Ipv4Addr, chain: &[Vec<u8>], key: &DeviceKey) {
    let chain = chain.to_vec();
    if let Ok(connection) = dial(&gateway.endpoint(from, b"culvert/1", Some((&chain, key))), "127.0.0.1").await {
        let _ = connection.closed().await;
    }
}

async fn enrol(gateway: &Gateway, from: Ipv4Addr, invitation: &Invitation, name: &str) -> Close {
    let connection = dial(&gateway.endpoint(from, b"culvert-enrol/1", None), "127.0.0.1").await.unwrap();
    refused(gateway.enrol_over(&connection, invitation, name).await)
}

async fn hello(gateway: &Gateway, from: Ipv4Addr, device: &Device, hello: Hello) {
    let identity = (&device.enrolment.chain, &device.key);
    let connection = dial(&gateway.endpoint(from, b"culvert/1", Some(identity)), "127.0.0.1").await.unwrap();
    let mut control = Talk::open(&connection).await;
    let accepted = hello.version == control::VERSION;
    control.send(&FromClient::Hello(hello)).await;
    assert_eq!(matches!(control.receive().await, FromServer::Welcome(_)), accepted);
}

/// The addresses that fail2ban would count, once each.
fn banned(log: &str, filter: &str) -> Vec<String> {
    let folder = unpacked();
    let path = folder.path().join("gateway.log");
    std::fs::write(&path, log).unwrap();
    let out =
        fail2ban(folder.path(), "fail2ban-regex", &["--usedns", "no", "-o", "ip", path.to_str().unwrap(), filter]);
    let mut addresses: Vec<String> = out.lines().map(str::to_owned).collect();
    addresses.sort();
    assert!(!log.contains("\nevent=auth_failed src=9.9.9.9"), "{log}");
    addresses
}

fn fail2ban(folder: &Path, program: &str, arguments: &[&str]) -> String {
    let output = Command::new("/usr/bin/python3")
        .arg(folder.join("usr/bin").join(program))
        .arg("-c")
        .arg(folder.join("etc/fail2ban"))
        .args(arguments)
        .env("PYTHONPATH", folder.join("usr/lib/python3/dist-packages"))
        .output()
        .unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    assert!(output.status.success(), "{program}: {}{}", text(&output.stdout), text(&output.stderr));
    text(&output.stdout)
}

/// fail2ban as Debian packs it, with our filter and jail in it. It is not installed: it would start.
fn unpacked() -> tempfile::TempDir {
    let home = || PathBuf::from(std::env::var_os("HOME").unwrap()).join(".cache");
    let cache = || std::env::var_os("XDG_CACHE_HOME").map_or_else(home, PathBuf::from).join("culvert");
    let debs = std::env::var_os("CULVERT_CACHE").map_or_else(cache, PathBuf::from).join("debs");
    let packages = std::fs::read_dir(&debs).map(|folder| folder.map(|entry| entry.unwrap().path()).collect::<Vec<_>>());
    let is_fail2ban = |path: &PathBuf| path.file_name().unwrap().to_string_lossy().starts_with("fail2ban_");
    let package = packages.unwrap_or_default().into_iter().find(is_fail2ban);
    let package = package.unwrap_or_else(|| panic!("no fail2ban in {}; run scripts/setup --test", debs.display()));
    let folder = tempfile::tempdir().unwrap();
    assert!(Command::new("dpkg-deb").arg("-x").args([&package, folder.path()]).status().unwrap().success());
    let ours = Path::new(env!("CARGO_MANIFEST_DIR")).join("../packaging/linux/fail2ban");
    for file in ["filter.d/culvert-server.conf", "jail.d/culvert-server.conf"] {
        std::fs::copy(ours.join(file), folder.path().join("etc/fail2ban").join(file)).unwrap();
    }
    folder
}
