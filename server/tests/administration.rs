//! What an administrator does to a running gateway, seen from its clients: the program itself, its
//! registry and its commands, in a network namespace of each test's own.

#![allow(clippy::unwrap_used, reason = "helpers of tests; clippy.toml covers test functions only")]

mod client;
mod namespace;

use std::net::Ipv4Addr;
use std::os::unix::fs::PermissionsExt;
use std::process::Stdio;
use std::time::{Duration, Instant};

use client::{Device, Gateway, Session, add_address, closed, ping, refused, with_gateway};
use culvert_tunnel::close::Close;
use culvert_tunnel::control::{FromClient, FromServer};
use culvert_tunnel::identity::{CertificateFacts, DeviceKey, is_device_certificate};
use quinn::ConnectionError;

#[test]
fn a_revoked_device_is_cut_off_and_refused_until_it_is_restored() {
    with_gateway("a_revoked_device_is_cut_off_and_refused_until_it_is_restored", async |gateway| {
        let device = gateway.enrol(&gateway.invite("anna")).await.unwrap();
        let other = gateway.enrol(&gateway.invite("ben")).await.unwrap();
        let session = gateway.session(&device).await.unwrap();
        let spared = gateway.session(&other).await.unwrap();

        let done = gateway.json(&["devices", "revoke", "anna/laptop", "--json"]);
        assert_eq!((&done["revoked"][0], &done["sessions_closed"]), (&"anna/laptop".into(), &1.into()));
        assert_eq!(closed(&session.connection).await, Close::Revoked);
        assert_eq!(session_refused(gateway, &device).await, Close::Revoked);
        assert!(ping(&spared, spared.welcome.gateway_ipv4).await.is_some(), "another device's session goes on");
        assert_eq!(gateway.json(&["devices", "revoke", "anna/laptop", "--json"])["revoked"], serde_json::json!([]));

        gateway.ok(&["devices", "restore", "anna/laptop"]);
        let again = gateway.session(&device).await.unwrap();
        assert_eq!(again.welcome.ipv4, session.welcome.ipv4);
        let history = gateway.json(&["devices", "show", "anna/laptop", "--json"])["history"].clone();
        let events: Vec<&str> = history.as_array().unwrap().iter().map(|row| row["event"].as_str().unwrap()).collect();
        assert_eq!(events, ["restored", "revoked", "enrol_ok"]);
    });
}

#[test]
fn a_revocation_that_nobody_tells_the_gateway_of_takes_effect_all_the_same() {
    with_gateway("a_revocation_that_nobody_tells_the_gateway_of_takes_effect_all_the_same", async |gateway| {
        let device = gateway.enrol(&gateway.invite("anna")).await.unwrap();
        let session = gateway.session(&device).await.unwrap();
        // As another gateway would, or a command that cannot reach the socket.
        gateway.sql("UPDATE devices SET revoked_at = 1").await;
        gateway.sql("INSERT INTO events (at, event, actor, target) SELECT 1, 'revoked', 'test', id FROM devices").await;
        assert_eq!(closed(&session.connection).await, Close::Revoked);
    });
}

#[test]
fn a_user_who_leaves_loses_every_device_and_every_open_invitation() {
    with_gateway("a_user_who_leaves_loses_every_device_and_every_open_invitation", async |gateway| {
        let first = gateway.enrol(&gateway.invite("anna")).await.unwrap();
        let second = gateway.enrol(&gateway.invite("anna")).await.unwrap();
        let open = gateway.invite("anna");
        let sessions = [gateway.session(&first).await.unwrap(), gateway.session(&second).await.unwrap()];
        let told = gateway.fails(&["devices", "revoke", "anna"]);
        assert!(told.contains("anna is a user") && told.contains("anna/laptop-2"), "{told}");

        let done = gateway.json(&["devices", "revoke", "--user", "anna", "--json"]);
        assert_eq!((&done["sessions_closed"], &done["invitations_withdrawn"]), (&2.into(), &1.into()));
        for session in &sessions {
            assert_eq!(closed(&session.connection).await, Close::Revoked);
        }
        assert_eq!(refused(gateway.enrol(&open).await), Close::InviteCancelled);
    });
}

#[test]
fn a_kicked_device_may_come_back() {
    with_gateway("a_kicked_device_may_come_back", async |gateway| {
        let device = gateway.enrol(&gateway.invite("anna")).await.unwrap();
        let session = gateway.session(&device).await.unwrap();
        assert_eq!(gateway.json(&["sessions", "kick", "laptop", "--json"])["sessions_closed"], 1);
        assert_eq!(closed(&session.connection).await, Close::Kicked);
        gateway.session(&device).await.unwrap();
        let told = gateway.fails(&["sessions", "kick", "nobody"]);
        assert!(told.contains("no device \"nobody\""), "{told}");
    });
}

#[test]
fn an_invitation_is_withdrawn_by_its_id_or_its_user() {
    with_gateway("an_invitation_is_withdrawn_by_its_id_or_its_user", async |gateway| {
        let [first, second] = [gateway.invite("anna"), gateway.invite("ben")];
        let listed = gateway.json(&["invites", "list", "--json"]);
        assert_eq!(listed["invitations"].as_array().unwrap().len(), 2);
        gateway.ok(&["invites", "cancel", &first.id.to_string()[..8]]);
        gateway.ok(&["invites", "cancel", "ben"]);
        assert_eq!(refused(gateway.enrol(&first).await), Close::InviteCancelled);
        assert_eq!(refused(gateway.enrol(&second).await), Close::InviteCancelled);
        assert_eq!(gateway.json(&["invites", "list", "--json"])["invitations"], serde_json::json!([]));
        assert_eq!(gateway.json(&["invites", "list", "--all", "--json"])["invitations"][0]["state"], "cancelled");
        assert!(gateway.fails(&["invites", "cancel", "ben"]).contains("no open invitation"));
    });
}

#[test]
fn a_certificate_is_renewed_in_the_session_and_the_session_goes_on() {
    with_gateway("a_certificate_is_renewed_in_the_session_and_the_session_goes_on", async |gateway| {
        let device = gateway.enrol(&gateway.invite("anna")).await.unwrap();
        let mut session = gateway.session(&device).await.unwrap();
        let before = CertificateFacts::read(&device.enrolment.chain[0]).unwrap();
        session.control.send(&FromClient::Renew { csr: device.key.csr("laptop").unwrap(), authority: None }).await;
        let FromServer::Certificate { chain } = session.control.receive().await else { panic!("a certificate") };
        let (id, pin) = (device.enrolment.device_id, device.key.pin());
        assert!(is_device_certificate(&chain[0].0, &chain[1].0, id, pin).unwrap());
        assert_ne!(CertificateFacts::read(&chain[0].0).unwrap().serial_hex, before.serial_hex);
        assert!(ping(&session, session.welcome.gateway_ipv4).await.is_some(), "the session goes on");

        let again = gateway.session(&device).await.unwrap();
        assert_eq!(again.welcome.ipv4, session.welcome.ipv4);
        let shown = gateway.json(&["devices", "show", "laptop", "--json"]);
        assert_eq!(shown["serial"], CertificateFacts::read(&chain[0].0).unwrap().serial_hex);
    });
}

#[test]
fn a_certificate_for_another_key_is_not_issued() {
    with_gateway("a_certificate_for_another_key_is_not_issued", async |gateway| {
        let device = gateway.enrol(&gateway.invite("anna")).await.unwrap();
        let mut session = gateway.session(&device).await.unwrap();
        session
            .control
            .send(&FromClient::Renew { csr: DeviceKey::generate().unwrap().csr("laptop").unwrap(), authority: None })
            .await;
        gateway.logs("event=renew_failed").await;
        let shown = gateway.json(&["devices", "show", "laptop", "--json"]);
        let before = CertificateFacts::read(&device.enrolment.chain[0]).unwrap();
        assert_eq!(shown["serial"], before.serial_hex);
    });
}

#[test]
fn an_invitation_renews_a_device_that_lost_its_key() {
    with_gateway("an_invitation_renews_a_device_that_lost_its_key", async |gateway| {
        let lost = gateway.enrol(&gateway.invite("anna")).await.unwrap();
        let before = gateway.session(&lost).await.unwrap();
        let again = gateway.enrol(&gateway.invite_with("anna", &["--renew"])).await.unwrap();
        assert_eq!(again.enrolment.device_id, lost.enrolment.device_id);
        let session = gateway.session(&again).await.unwrap();
        assert_eq!(session.welcome.ipv4, before.welcome.ipv4);
        assert_eq!(closed(&before.connection).await, Close::Replaced);
        assert_eq!(session_refused(gateway, &lost).await, Close::UnknownDevice, "the lost key is worth nothing");
        assert_eq!(gateway.json(&["devices", "list", "--json"])["devices"].as_array().unwrap().len(), 1);
    });
}

#[test]
fn a_session_proves_its_key_again_and_one_that_cannot_is_ended() {
    with_gateway("a_session_proves_its_key_again_and_one_that_cannot_is_ended", async |gateway| {
        let device = gateway.enrol(&gateway.invite("anna")).await.unwrap();
        gateway.write_config("[auth]\nrechallenge = \"2s\"\n");
        gateway.ok(&["reload"]);
        let mut session = gateway.session(&device).await.unwrap();
        for _ in 0..2 {
            let nonce = challenge(&mut session).await;
            let signature = device.key.answer_challenge(&nonce, &exporter(&session)).unwrap();
            session.control.send(&FromClient::ChallengeAnswer { nonce, signature }).await;
        }
        assert!(ping(&session, session.welcome.gateway_ipv4).await.is_some());
        let nonce = challenge(&mut session).await;
        let signature = DeviceKey::generate().unwrap().answer_challenge(&nonce, &exporter(&session)).unwrap();
        session.control.send(&FromClient::ChallengeAnswer { nonce, signature }).await;
        assert_eq!(closed(&session.connection).await, Close::ChallengeFailed);
        gateway.logs("event=auth_failed src=127.0.0.1 port=").await;
        gateway.logs("reason=challenge_failed validated=yes").await;
    });
}

#[test]
fn the_name_server_comes_and_goes_and_the_network_grows_by_a_reload() {
    with_gateway("the_name_server_comes_and_goes_and_the_network_grows_by_a_reload", async |gateway| {
        // A network that can grow, whatever init chose.
        let network = |network: &str| format!("[network]\nipv4 = \"{network}\"\n");
        let small = network("100.101.64.0/24");
        gateway.write_config(&small);
        gateway.signal("-TERM");
        gateway.wait();
        gateway.start();
        let reload = |text: &str| {
            gateway.write_config(text);
            gateway.json(&["reload", "--json"])
        };
        let device = gateway.enrol(&gateway.invite("anna")).await.unwrap();
        let session = gateway.session(&device).await.unwrap();
        let status = || gateway.json(&["status", "--json"]);
        for round in 0..3 {
            assert!(!status()["dns"].is_null(), "round {round}");
            let told = reload(&format!("{small}[push]\ndns = [\"192.0.2.53\"]\n"));
            assert_eq!(told["applied"], serde_json::json!(["push.dns"]));
            assert!(status()["dns"].is_null(), "round {round}");
            assert_eq!(reload(&small)["applied"], serde_json::json!(["push.dns"]));
        }
        assert_eq!(reload(&network("100.101.64.0/23"))["applied"], serde_json::json!(["network.ipv4"]));
        assert_eq!(status()["networks"][0], "100.101.64.0/23");
        assert_eq!(reload(&network("100.101.0.0/16"))["needs_restart"], serde_json::json!(["network.ipv4"]));
        add_address("100.101.67.1/24").await;
        gateway.write_config(&network("100.101.64.0/22"));
        let refused = gateway.run(&["reload"]);
        assert_eq!(refused.status.code(), Some(9));
        let told = String::from_utf8(refused.stderr).unwrap();
        assert!(told.contains("100.101.64.0/22 overlaps 100.101.67.0/24"), "{told}");
        assert_eq!(status()["networks"][0], "100.101.64.0/23", "as it was");
        assert!(ping(&session, session.welcome.gateway_ipv4).await.is_some(), "the session goes on");
        assert_eq!(gateway.session(&device).await.unwrap().welcome.ipv4, session.welcome.ipv4);
        assert!(!gateway.log().contains("dns_unavailable"), "{}", gateway.log());
    });
}

#[test]
fn a_reload_reaches_open_sessions_and_an_invalid_one_changes_nothing() {
    with_gateway("a_reload_reaches_open_sessions_and_an_invalid_one_changes_nothing", async |gateway| {
        let device = gateway.enrol(&gateway.invite("anna")).await.unwrap();
        let mut session = gateway.session(&device).await.unwrap();
        let ben = gateway.invite("ben");
        gateway.write_config("[push]\ndns = [\"10.1.1.1\"]\n[tunnel]\nshards = 1\n");
        let told = gateway.json(&["reload", "--json"]);
        assert_eq!(told["applied"], serde_json::json!(["push.dns"]));
        assert_eq!(told["needs_restart"], serde_json::json!(["tunnel.shards"]));
        let FromServer::Reconfigure(welcome) = session.control.receive().await else { panic!("news") };
        assert_eq!(welcome.dns_servers, ["10.1.1.1".parse::<std::net::IpAddr>().unwrap()]);
        assert_eq!(welcome.ipv4, session.welcome.ipv4);

        gateway.write_config("[push]\ndomain = []\n");
        let output = gateway.run(&["reload"]);
        assert_eq!(output.status.code(), Some(9));
        let told = String::from_utf8(output.stderr).unwrap();
        assert!(told.contains("did you mean \"domains\"?"), "{told}");
        let again = gateway.session(&gateway.enrol(&ben).await.unwrap()).await.unwrap();
        assert_eq!(again.welcome.dns_servers, welcome.dns_servers, "the last good one is in force");
        assert!(ping(&session, session.welcome.gateway_ipv4).await.is_some(), "nobody was dropped");
    });
}

#[test]
fn a_new_name_gets_a_certificate_while_sessions_go_on_and_sighup_does_it_too() {
    with_gateway("a_new_name_gets_a_certificate_while_sessions_go_on_and_sighup_does_it_too", async |gateway| {
        let device = gateway.enrol(&gateway.invite("anna")).await.unwrap();
        let session = gateway.session(&device).await.unwrap();
        assert!(gateway.connect_to("new.example.org", None).await.is_err(), "not in the certificate yet");
        gateway.write_config("[endpoint]\nextra_names = [\"new.example.org\"]\n");
        gateway.signal("-HUP");
        gateway.logs("event=config_reloaded applied=endpoint.extra_names").await;
        gateway.connect_to("new.example.org", None).await.unwrap();
        assert!(ping(&session, session.welcome.gateway_ipv4).await.is_some());
        let invitation = gateway.invite("ben");
        assert!(invitation.endpoints.iter().any(|endpoint| endpoint.starts_with("new.example.org:")));
    });
}

#[test]
fn a_backup_makes_the_same_gateway_again_and_its_devices_notice_nothing() {
    with_gateway("a_backup_makes_the_same_gateway_again_and_its_devices_notice_nothing", async |gateway| {
        let device = gateway.enrol(&gateway.invite("anna")).await.unwrap();
        let before = gateway.session(&device).await.unwrap();
        let path = |name: &str| gateway.folder.path().join(name).to_str().unwrap().to_owned();
        let (file, good, bad) = (path("backup"), path("passphrase"), path("other"));
        std::fs::write(&good, "four words are enough\nnot this").unwrap();
        std::fs::write(&bad, "four words are not it").unwrap();

        // While it runs, and while the registry's newest rows are still in its log.
        gateway.ok(&["ca", "backup", &file, "--passphrase-file", &good]);
        assert_eq!(std::fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
        assert!(gateway.fails(&["ca", "backup", &file, "--passphrase-file", &good]).contains("exists already"));
        assert!(gateway.fails(&["ca", "restore", &file, "--passphrase-file", &good]).contains("exists already"));
        let pin = gateway.json(&["ca", "show", "--json"])["ca"]["pin"].clone();

        gateway.signal("-TERM");
        assert!(gateway.wait().success());
        std::fs::remove_dir_all(path("state")).unwrap();
        std::fs::remove_file(path("gw.toml")).unwrap();
        assert!(gateway.fails(&["ca", "restore", &file, "--passphrase-file", &bad]).contains("passphrase is wrong"));
        let mut damaged = std::fs::read(&file).unwrap();
        let middle = damaged.len() / 2;
        damaged[middle] ^= 1;
        std::fs::write(path("damaged"), &damaged).unwrap();
        gateway.fails(&["ca", "restore", &path("damaged"), "--passphrase-file", &good]);
        assert!(!std::path::Path::new(&path("state/gateway")).exists(), "nothing half made");

        let told = gateway.json(&["ca", "restore", &file, "--passphrase-file", &good, "--json"]);
        assert_eq!((&told["ca_pin"], &told["config_written"]), (&pin, &true.into()));
        gateway.start();
        let after = gateway.session(&device).await.unwrap();
        assert_eq!(after.welcome.ipv4, before.welcome.ipv4);
    });
}

#[test]
fn a_backup_needs_a_passphrase_that_is_worth_one() {
    with_gateway("a_backup_needs_a_passphrase_that_is_worth_one", async |gateway| {
        let file = gateway.folder.path().join("backup").to_str().unwrap().to_owned();
        let short = gateway.folder.path().join("short").to_str().unwrap().to_owned();
        std::fs::write(&short, "short").unwrap();
        for (arguments, told) in [
            (vec!["ca", "backup", &file], "there is no terminal"),
            (vec!["ca", "backup", &file, "--passphrase-file", &short], "at least 12 characters"),
        ] {
            let output = gateway.command(&arguments).stdin(Stdio::null()).output().unwrap();
            let error = String::from_utf8(output.stderr).unwrap();
            assert_eq!(output.status.code(), Some(2), "{error}");
            assert!(error.contains(told), "{error}");
        }
        assert!(!std::path::Path::new(&file).exists());
    });
}

#[test]
fn isolation_can_be_lifted_and_put_back_while_clients_are_connected() {
    with_gateway("isolation_can_be_lifted_and_put_back_while_clients_are_connected", async |gateway| {
        let anna = gateway.session(&gateway.enrol(&gateway.invite("anna")).await.unwrap()).await.unwrap();
        let ben = gateway.session(&gateway.enrol(&gateway.invite("ben")).await.unwrap()).await.unwrap();
        let reaches = async || {
            ping(&anna, ben.welcome.ipv4).await; // nobody answers; what counts is whether it arrives
            tokio::time::timeout(Duration::from_millis(200), ben.connection.read_datagram()).await.is_ok()
        };
        assert!(!reaches().await);
        gateway.write_config("[network]\nisolation = false\n");
        gateway.ok(&["reload"]);
        assert!(reaches().await);
        gateway.write_config("");
        gateway.ok(&["reload"]);
        assert!(!reaches().await);
    });
}

#[test]
fn a_policy_says_what_a_user_reaches_from_the_moment_it_is_in_force() {
    with_gateway("a_policy_says_what_a_user_reaches_from_the_moment_it_is_in_force", async |gateway| {
        let (inside, outside) = (Ipv4Addr::new(10, 77, 0, 1), Ipv4Addr::new(10, 78, 0, 1));
        for address in [inside, outside] {
            add_address(&format!("{address}/32")).await;
        }
        let anna = gateway.session(&gateway.enrol(&gateway.invite("anna")).await.unwrap()).await.unwrap();
        let ben = gateway.session(&gateway.enrol(&gateway.invite("ben")).await.unwrap()).await.unwrap();
        assert_eq!(ping(&anna, outside).await, Some(outside), "without a policy");

        gateway.write_config(
            "[groups]\nnight = [\"anna\"]\n[policy.night]\nallow = [\"10.77.0.0/16 icmp\"]\nroutes = [\"10.77.0.0/16\"]\n",
        );
        assert_eq!(gateway.json(&["reload", "--json"])["applied"], serde_json::json!(["policy"]));
        assert_eq!(ping(&anna, inside).await, Some(inside));
        assert_eq!(ping(&anna, outside).await, None);
        assert_eq!(prohibited(&anna, outside).await, Some(outside), "its host is told so at once");
        assert_eq!(
            ping(&anna, anna.welcome.gateway_ipv4).await,
            Some(anna.welcome.gateway_ipv4),
            "the gateway is spared"
        );
        assert_eq!(ping(&ben, outside).await, Some(outside), "he is in no group");
        let listed = gateway.json(&["sessions", "list", "--json"]);
        assert!(listed["sessions"][0]["dropped_received"]["policy"].as_u64() >= Some(2), "{listed}");

        // One who comes later is held to it from the first packet, and is told other routes.
        let second = gateway.session(&gateway.enrol(&gateway.invite("anna")).await.unwrap()).await.unwrap();
        assert_eq!(second.welcome.routes, ["10.77.0.0/16".parse().unwrap()]);
        assert_eq!(ping(&second, outside).await, None);

        gateway.write_config("");
        gateway.ok(&["reload"]);
        assert_eq!(ping(&anna, outside).await, Some(outside));
    });
}

#[test]
fn a_rate_holds_for_each_device_and_the_devices_of_a_user_are_counted_by_policy() {
    with_gateway("a_rate_holds_for_each_device_and_the_devices_of_a_user_are_counted_by_policy", async |gateway| {
        gateway.write_config("[policy.anna]\nrate = \"64k\"\ndevices = 1\n");
        gateway.ok(&["reload"]);
        let device = gateway.enrol(&gateway.invite("anna")).await.unwrap();
        assert_eq!(refused(gateway.enrol(&gateway.invite("anna")).await), Close::Limit);
        let session = gateway.session(&device).await.unwrap();
        // 8 kB a second and 256 KiB at once: of a thousand packets of 1 kB at most a third pass.
        let mut packet = vec![0x45, 0, 4, 0, 0, 1, 0, 0, 64, 17, 0, 0];
        packet.extend(session.welcome.ipv4.octets());
        packet.extend(Ipv4Addr::new(192, 0, 2, 1).octets());
        packet.resize(1024, 0);
        for _ in 0..1_000 {
            session.connection.send_datagram_wait(packet.clone().into()).await.unwrap();
        }
        let dropped = async || {
            let listed = gateway.json(&["sessions", "list", "--json"]);
            listed["sessions"][0]["dropped_received"]["rate_limit"].as_u64().unwrap_or(0)
        };
        let deadline = Instant::now() + Duration::from_secs(10);
        while dropped().await < 500 {
            assert!(Instant::now() < deadline, "{}", dropped().await);
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    });
}

#[test]
fn a_policy_that_makes_no_sense_is_refused_with_its_place() {
    with_gateway("a_policy_that_makes_no_sense_is_refused_with_its_place", async |gateway| {
        for (text, told) in [
            (
                "[policy.anna]\nalow = []\n",
                "test.toml:2:1: unknown key \"alow\" in [policy.anna]; did you mean \"allow\"?",
            ),
            (
                "[policy.anna]\nallow = [\"10.1.0.0/16 tpc 443\"]\n",
                "test.toml:2:9: policy.anna.allow is not a list such as",
            ),
            (
                "[policy.anna]\nrate = \"fast\"\n",
                "test.toml:2:8: policy.anna.rate is not 0 (no limit) or bits a second",
            ),
            ("[policy]\nanna = 5\n", "test.toml:2:1: policy.anna is not a section"),
            ("[groups]\nnight = \"anna\"\n", "test.toml:2:1: groups.night is not a list of users"),
            ("[groups]\ndefault = []\n", "test.toml:2:1: groups.default is not the name of a group"),
            ("policy = 1\n", "\"policy\" is a section"),
        ] {
            gateway.write_config(text);
            let output = gateway.run(&["check-config"]);
            let error = String::from_utf8(output.stderr).unwrap();
            assert_eq!(output.status.code(), Some(9), "{error}");
            assert!(error.contains(told), "{told}: {error}");
        }
        gateway.write_config(
            "[groups]\nnight = [\"anna\"]\n[policy.night]\nallow = [\"default tcp 443\"]\nrate = \"1M\"\n",
        );
        let shown = gateway.ok(&["check-config", "--show"]);
        assert!(
            shown.contains("[policy.night]\nallow = [\"0.0.0.0/0 tcp 443\", \"::/0 tcp 443\"]\nrate = \"1000k\"\n"),
            "{shown}"
        );
    });
}

async fn session_refused(gateway: &Gateway, device: &Device) -> Close {
    // The gateway judges after the handshake, so the connection may be there for a moment.
    match gateway.connect(b"culvert/1", Some((&device.enrolment.chain, &device.key))).await {
        Ok(connection) => closed(&connection).await,
        Err(ConnectionError::ApplicationClosed(close)) => Close::from_code(close.error_code.into_inner()).unwrap(),
        Err(other) => panic!("{other:?}"),
    }
}

async fn challenge(session: &mut Session) -> Vec<u8> {
    match session.control.receive().await {
        FromServer::Challenge { nonce } => nonce,
        other => panic!("{other:?}"),
    }
}

/// Sends an echo request; returns about which destination an answer says "administratively prohibited".
async fn prohibited(session: &Session, target: Ipv4Addr) -> Option<Ipv4Addr> {
    ping(session, target).await; // reads and passes over what is no echo reply, so ask twice
    session.connection.send_datagram(client::echo_request(session.welcome.ipv4, target).into()).unwrap();
    let answer = tokio::time::timeout(Duration::from_secs(1), session.connection.read_datagram()).await.ok()?.ok()?;
    // Behind 20 bytes of IP and 8 of ICMP is the header of the packet that is meant.
    let quoted = answer.get(28 + 16..28 + 20)?;
    (answer[20..22] == [3, 13]).then(|| Ipv4Addr::new(quoted[0], quoted[1], quoted[2], quoted[3]))
}

fn exporter(session: &Session) -> [u8; 32] {
    let mut exporter = [0; 32];
    session.connection.export_keying_material(&mut exporter, b"EXPORTER-culvert/1", b"").unwrap();
    exporter
}
