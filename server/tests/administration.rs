//! What an administrator does to a running gateway, seen from its clients: the program itself, its
//! registry and its commands, in a network namespace of each test's own.

#![allow(clippy::unwrap_used, reason = "helpers of tests; clippy.toml covers test functions only")]

mod client;
mod namespace;

use std::time::Duration;

use client::{Device, Gateway, Session, closed, ping, refused, with_gateway};
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
        session.control.send(&FromClient::Renew { csr: device.key.csr("laptop").unwrap() }).await;
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
        session.control.send(&FromClient::Renew { csr: DeviceKey::generate().unwrap().csr("laptop").unwrap() }).await;
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

fn exporter(session: &Session) -> [u8; 32] {
    let mut exporter = [0; 32];
    session.connection.export_keying_material(&mut exporter, b"EXPORTER-culvert/1", b"").unwrap();
    exporter
}
