//! `culvert-server why`, about real devices at a real gateway.

#![allow(clippy::unwrap_used, reason = "helpers of tests; clippy.toml covers test functions only")]

mod client;
mod namespace;

use std::time::{Duration, SystemTime};

use client::{Gateway, closed, with_gateway};
use culvert_tunnel::close::Close;
use quinn::VarInt;

const DAY: Duration = Duration::from_secs(86_400);

#[test]
fn why_follows_a_device_from_its_invitation_to_its_revocation() {
    with_gateway("why_follows_a_device_from_its_invitation_to_its_revocation", async |gateway| {
        assert!(gateway.fails(&["why", "anna"]).contains("there is no device and no user \"anna\""));
        let invitation = gateway.invite("anna");
        assert!(why(gateway, "anna").contains("anna: invited just now, and the invitation was not used yet"));
        let device = gateway.enrol(&invitation).await.unwrap();
        assert!(why(gateway, "anna").contains("anna/laptop: enrolled just now and never connected"));
        let session = gateway.session(&device).await.unwrap();
        assert!(why(gateway, "laptop").contains("anna/laptop: connected since "));
        let answer = &gateway.json(&["why", "anna/laptop", "--json"])["answers"][0];
        assert_eq!((&answer["verdict"], &answer["heard"]["place"]), (&"connected".into(), &"127.0.0.1/32".into()));

        gateway.ok(&["devices", "revoke", "laptop"]);
        assert_eq!(closed(&session.connection).await, Close::Revoked);
        for _ in 0..3 {
            let refused = gateway.connect(b"culvert/1", Some((&device.enrolment.chain, &device.key))).await.unwrap();
            assert_eq!(closed(&refused).await, Close::Revoked);
        }
        let told = why(gateway, "anna");
        assert!(told.contains("anna/laptop: 3 handshakes refused since "), "{told}");
        assert!(
            told.ends_with(
                "an administrator removed its access just now. Fix: culvert-server devices restore anna/laptop\n"
            ),
            "{told}"
        );
    });
}

#[test]
fn why_knows_an_expired_certificate_that_tls_refuses_and_its_repair_repairs_it() {
    with_gateway("why_knows_an_expired_certificate_that_tls_refuses_and_its_repair_repairs_it", async |gateway| {
        let device = gateway.enrol(&gateway.invite("anna")).await.unwrap();
        let session = gateway.session(&device).await.unwrap();
        session.connection.close(VarInt::from_u32(Close::Goodbye.code()), b"");
        gateway.logs("event=session_close").await;

        let (id, csr) = (device.enrolment.device_id, device.key.csr("laptop").unwrap());
        let old = gateway.authority().issue_device_for(&csr, id, DAY, SystemTime::now() - 3 * DAY).unwrap();
        gateway.sql("UPDATE devices SET not_after = unixepoch() - 2 * 86400 - 60").await;
        let chain = vec![old.der];
        for _ in 0..3 {
            let refused = gateway.connect(b"culvert/1", Some((&chain, &device.key))).await;
            match refused {
                Ok(connection) => drop(connection.closed().await),
                Err(error) => drop(error),
            }
        }
        gateway.logs("reason=expired validated=yes").await;
        let told = why(gateway, "anna");
        assert!(told.contains("anna/laptop: 3 handshakes refused since "), "{told}");
        let fix = "certificate expired 2 days ago. Fix: culvert-server invite anna/laptop --renew\n";
        assert!(told.ends_with(fix), "{told}");

        let renewed = gateway.enrol(&gateway.invite_with("anna/laptop", &["--renew"])).await.unwrap();
        let _session = gateway.session(&renewed).await.unwrap();
        assert!(why(gateway, "anna").contains("anna/laptop: connected since "));
    });
}

#[test]
fn why_works_without_a_running_gateway_and_says_what_it_cannot_know() {
    with_gateway("why_works_without_a_running_gateway_and_says_what_it_cannot_know", async |gateway| {
        gateway.enrol(&gateway.invite("anna")).await.unwrap();
        gateway.signal("-TERM");
        gateway.wait();
        let told = why(gateway, "anna");
        assert!(
            told.contains("anna/laptop: no gateway runs here, so nobody can connect. Fix: systemctl start"),
            "{told}"
        );
        assert!(told.contains("are not known"), "{told}");
        assert_eq!(gateway.json(&["why", "anna", "--json"])["gateway_running"], false);
    });
}

#[test]
fn administrative_acts_are_logged_with_who_did_them() {
    with_gateway("administrative_acts_are_logged_with_who_did_them", async |gateway| {
        gateway.enrol(&gateway.invite("anna")).await.unwrap();
        gateway.ok(&["devices", "rename", "anna/laptop", "old mac"]);
        gateway.ok(&["devices", "revoke", "anna/old mac"]);
        gateway.ok(&["reload"]);
        for line in [
            "event=admin actor=root(uid=0,via=command) action=invite target=anna result=ok",
            "event=admin actor=root(uid=0,via=command) action=rename target=\"anna/old mac\" result=ok",
            "event=admin actor=root(uid=0,via=command) action=revoke target=\"anna/old mac\" result=ok",
            "event=admin actor=root(uid=0,via=socket) action=reload target=- result=ok",
        ] {
            gateway.logs(line).await;
        }
    });
}

fn why(gateway: &Gateway, name: &str) -> String {
    gateway.ok(&["why", name])
}
