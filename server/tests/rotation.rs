//! Another certificate authority in a gateway that runs: devices change to it, nobody's session ends, and who was
//! away hears why it is let in no further.

#![allow(clippy::unwrap_used, reason = "helpers of tests; clippy.toml covers test functions only")]

mod client;
mod namespace;

use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use client::{Device, Gateway, Session, closed, dial, ping, with_gateway};
use culvert_tunnel::close::Close;
use culvert_tunnel::control::{FromClient, FromServer};
use culvert_tunnel::identity::Pin;
use quinn::ConnectionError;
use serde_json::json;

#[test]
fn devices_change_to_another_authority_within_their_sessions() {
    with_gateway("devices_change_to_another_authority_within_their_sessions", async |gateway| {
        let device = gateway.enrol(&gateway.invite("anna")).await.unwrap();
        let old = gateway.authority().pin();
        assert_eq!(gateway.json(&["ca", "show", "--json"])["rotation"], json!(null));
        assert!(gateway.fails(&["ca", "rotate", "--finish"]).contains("no rotation is under way"));
        let mut session = gateway.session_trusting(&device, vec![old]).await.unwrap();

        let new = begin(gateway);
        assert!(gateway.fails(&["ca", "rotate"]).contains("a rotation is under way"));
        assert_eq!(told(&mut session).await, [new, old]);
        let renewed = renew(&mut session, device, new).await;
        let told_by = gateway.fails(&["ca", "rotate", "--finish"]);
        assert!(told_by.contains("1 device would be lost now: anna/laptop"), "not on its disk yet: {told_by}");
        session.control.send(&FromClient::Kept { authority: new }).await;
        nobody_waits(gateway).await;

        gateway.ok(&["ca", "rotate", "--finish"]);
        assert_eq!(gateway.authority().pin(), new, "as a restart would find it");
        assert_eq!(told(&mut session).await, [new]);
        assert!(ping(&session, session.welcome.gateway_ipv4).await.is_some(), "its packets go on");
        assert_eq!(gateway.json(&["sessions", "list", "--json"])["sessions"].as_array().unwrap().len(), 1);
        assert!(!gateway.log().contains("session_close"), "{}", gateway.log());
        for step in ["action=ca_rotate", "action=ca_finish"] {
            gateway.logs(step).await;
        }

        // Whoever comes now is shown the new one, and may come with its certificate only.
        let session = gateway.session_trusting(&renewed, vec![new]).await.unwrap();
        assert!(ping(&session, session.welcome.gateway_ipv4).await.is_some());
        let invitation = gateway.invite("ben");
        assert_eq!(invitation.pin, new);
        gateway.enrol(&invitation).await.unwrap();
        gateway.run(&["devices", "revoke", "anna/laptop"]);
        assert_eq!(closed(&session.connection).await, Close::Revoked);
    });
}

#[test]
fn who_was_away_is_told_what_to_do_and_who_was_revoked_stays_so() {
    with_gateway("who_was_away_is_told_what_to_do_and_who_was_revoked_stays_so", async |gateway| {
        let away = gateway.enrol(&gateway.invite("anna")).await.unwrap();
        let revoked = gateway.enrol(&gateway.invite("ben")).await.unwrap();
        let unused = gateway.invite("carl");
        gateway.ok(&["devices", "revoke", "ben/laptop"]);
        let old = gateway.authority().certificate_der().clone();
        let new = begin(gateway);
        let (invitation, pin) = (gateway.invite("dora"), Pin::of_certificate(&old).unwrap());
        assert_eq!(invitation.pin, pin, "what works until the end");
        let meanwhile = gateway.enrol(&invitation).await.unwrap();
        let mut session = gateway.session_trusting(&meanwhile, vec![pin]).await.unwrap();
        assert_eq!(told(&mut session).await, [new, pin], "as everybody else");
        renew(&mut session, meanwhile, new).await;
        session.control.send(&FromClient::Kept { authority: new }).await;
        only_wait(gateway, &["anna/laptop"]).await;
        let told = gateway.fails(&["ca", "rotate", "--finish"]);
        assert!(told.contains("1 device and 1 open invitation would be lost now: anna/laptop"), "{told}");
        let lost = gateway.json(&["ca", "rotate", "--finish", "--force", "--json"]);
        assert_eq!(lost["lost"]["devices"], json!(["anna/laptop"]));
        assert_eq!(lost["ca_pin"], json!(new));
        assert_eq!(gateway.json(&["invites", "list", "--json"])["invitations"], json!([]));

        let come = async |device: &Device| {
            let identity = Some((&device.enrolment.chain, &device.key));
            let endpoint = gateway.endpoint_trusting(old.clone(), Ipv4Addr::LOCALHOST, b"culvert/1", identity);
            let connection = dial(&endpoint, "127.0.0.1").await.expect("its old authority vouches for the new one");
            client::Talk::open(&connection).await.send(&FromClient::Goodbye).await;
            match connection.closed().await {
                ConnectionError::ApplicationClosed(close) => close,
                other => panic!("{other:?}"),
            }
        };
        let close = come(&away).await;
        assert_eq!(Close::from_code(close.error_code.into_inner()), Some(Close::Expired));
        let reason = String::from_utf8_lossy(&close.reason).into_owned();
        assert!(
            reason.contains("new certificate authority") && reason.contains("ask for a new invitation"),
            "{reason}"
        );
        let close = come(&revoked).await;
        assert_eq!(Close::from_code(close.error_code.into_inner()), Some(Close::Revoked));

        // An invitation that names the former one does not get as far as that.
        let enrolled = gateway.enrol(&unused).await;
        assert!(enrolled.is_err(), "withdrawn, and of the former one");
        let renewal = gateway.invite_with("anna", &["--renew"]);
        let back = gateway.enrol(&renewal).await.unwrap();
        assert_eq!(back.enrolment.device_id, away.enrolment.device_id);
        gateway.session_trusting(&back, vec![new]).await.unwrap();
    });
}

#[test]
fn a_rotation_is_taken_back_and_survives_a_crash_and_a_backup() {
    with_gateway("a_rotation_is_taken_back_and_survives_a_crash_and_a_backup", async |gateway| {
        let device = gateway.enrol(&gateway.invite("anna")).await.unwrap();
        let old = gateway.authority().pin();
        let new = begin(gateway);
        gateway.signal("-KILL");
        gateway.wait();
        gateway.start();
        let mut session = gateway.session_trusting(&device, vec![old]).await.unwrap();
        assert_eq!(told(&mut session).await, [new, old], "at its beginning");
        let renewed = renew(&mut session, device, new).await;
        drop(session);

        let path = |name: &str| gateway.folder.path().join(name).into_os_string().into_string().unwrap();
        std::fs::write(path("pass"), "correct horse battery\n").unwrap();
        gateway.ok(&["ca", "backup", &path("backup"), "--passphrase-file", &path("pass")]);
        gateway.signal("-TERM");
        gateway.wait();
        std::fs::rename(path("state"), path("lost")).unwrap();
        gateway.ok(&["ca", "restore", &path("backup"), "--passphrase-file", &path("pass")]);
        let restored = gateway.json(&["ca", "show", "--json"])["rotation"].clone();
        assert_eq!((&restored["state"], &restored["pin"]), (&json!("coming"), &json!(new)));
        gateway.start();

        // It comes with the new certificate, which says that it has it: no word of its own was needed.
        let mut session = gateway.session_trusting(&renewed, vec![new, old]).await.unwrap();
        nobody_waits(gateway).await;
        let aborted = gateway.json(&["ca", "rotate", "--abort", "--json"]);
        assert_eq!((&aborted["step"], &aborted["waiting"]), (&json!("aborting"), &json!(["anna/laptop"])));
        assert_eq!(told(&mut session).await, [old]);
        assert!(gateway.fails(&["ca", "rotate", "--abort"]).contains("1 device would be lost now: anna/laptop"));
        assert!(gateway.fails(&["ca", "rotate"]).contains("was taken back"));
        drop(session);
        let mut session = gateway.session_trusting(&renewed, vec![new, old]).await.expect("its certificate counts");
        assert_eq!(told(&mut session).await, [old]);
        let back = renew(&mut session, renewed, old).await;
        session.control.send(&FromClient::Kept { authority: old }).await;
        nobody_waits(gateway).await;
        assert_eq!(gateway.json(&["ca", "rotate", "--abort", "--json"])["step"], json!("aborted"));
        assert_eq!(gateway.json(&["ca", "show", "--json"])["rotation"], json!(null));
        let mut session = gateway.session_trusting(&back, vec![old]).await.unwrap();
        let silence = tokio::time::timeout(Duration::from_secs(1), session.control.receive::<FromServer>()).await;
        assert!(silence.is_err(), "nothing to tell: {silence:?}");
        // And from the beginning again.
        assert_ne!(begin(gateway), new);
        assert_eq!(told(&mut session).await.len(), 2);
    });
}

/// Begins a rotation; the pin of the one that comes.
fn begin(gateway: &Gateway) -> Pin {
    let begun = gateway.json(&["ca", "rotate", "--json"]);
    assert_eq!(begun["step"], json!("begun"));
    begun["next_pin"].as_str().unwrap().parse().unwrap()
}

/// The pins of the authorities that the client is told to trust.
async fn told(session: &mut Session) -> Vec<Pin> {
    let message = tokio::time::timeout(Duration::from_secs(5), session.control.receive()).await.expect("it is told");
    let FromServer::Authorities { authorities } = message else { panic!("{message:?}") };
    authorities.iter().map(|authority| Pin::of_certificate(&authority.0).unwrap()).collect()
}

/// The device with a certificate of this authority, which it asks for.
async fn renew(session: &mut Session, device: Device, authority: Pin) -> Device {
    let csr = device.key.csr("laptop").unwrap();
    session.control.send(&FromClient::Renew { csr, authority: Some(authority) }).await;
    let FromServer::Certificate { chain } = session.control.receive().await else { panic!("a certificate") };
    let chain: Vec<Vec<u8>> = chain.into_iter().map(|certificate| certificate.0).collect();
    assert_eq!(Pin::of_certificate(&chain[1]).unwrap(), authority);
    Device { enrolment: culvert_tunnel::enrol::Enrolment { chain, ..device.enrolment }, ..device }
}

async fn nobody_waits(gateway: &Gateway) {
    only_wait(gateway, &[]).await;
}

async fn only_wait(gateway: &Gateway, devices: &[&str]) {
    let deadline = Instant::now() + Duration::from_secs(5);
    while gateway.json(&["ca", "show", "--json"])["rotation"]["waiting"] != json!(devices) {
        assert!(Instant::now() < deadline, "{}", gateway.ok(&["ca", "show"]));
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}
