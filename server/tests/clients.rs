//! Clients against the real gateway: the program itself, its own TUN, nftables and registry, in a
//! network namespace of each test's own. The client is a stock `quinn`.

#![allow(clippy::unwrap_used, reason = "helpers of tests; clippy.toml covers test functions only")]

mod client;
mod namespace;

use std::process::Command;
use std::time::{Duration, SystemTime};

use client::{LISTEN, add_address, closed, ping, refused, with_gateway};
use culvert_tunnel::close::Close;
use culvert_tunnel::control::{self, FromClient};
use culvert_tunnel::identity::{Authority, DeviceId, DeviceKey};
use culvert_tunnel::invitation::{Invitation, Secret};
use nftables::helper::{DEFAULT_NFT, get_current_ruleset_with_args};
use nftables::schema::{NfListObject, NfObject};
use quinn::{ConnectionError, VarInt};

#[test]
fn a_device_enrols_keeps_its_address_and_carries_packets() {
    with_gateway("a_device_enrols_keeps_its_address_and_carries_packets", async |gateway| {
        let device = gateway.enrol(&gateway.invite("anna")).await.unwrap();
        let listed = gateway.json(&["devices", "list", "--json"]);
        assert_eq!(listed["devices"][0]["id"], device.enrolment.device_id.to_string());
        assert_eq!(listed["devices"][0]["user"], "anna");

        let session = gateway.session(&device).await.unwrap();
        assert_eq!(listed["devices"][0]["ipv4"], session.welcome.ipv4.to_string());
        assert!(session.welcome.ipv6.is_some());
        assert_eq!(ping(&session, session.welcome.gateway_ipv4).await, Some(session.welcome.gateway_ipv4));

        let sessions = gateway.json(&["sessions", "list", "--json"]);
        assert_eq!(sessions["sessions"][0]["device"], "laptop");
        assert_eq!(sessions["sessions"][0]["received_packets"], 1);
        assert_eq!(gateway.json(&["status", "--json"])["sessions"], 1);

        let address = session.welcome.ipv4;
        session.connection.close(VarInt::from_u32(0), b"");
        let again = gateway.session(&device).await.unwrap();
        assert_eq!(again.welcome.ipv4, address);
    });
}

#[test]
fn a_newer_session_of_the_same_device_replaces_the_older() {
    with_gateway("a_newer_session_of_the_same_device_replaces_the_older", async |gateway| {
        let device = gateway.enrol(&gateway.invite("anna")).await.unwrap();
        let older = gateway.session(&device).await.unwrap();
        let newer = gateway.session(&device).await.unwrap();
        assert_eq!(closed(&older.connection).await, Close::Replaced);
        assert_eq!(ping(&newer, newer.welcome.gateway_ipv4).await, Some(newer.welcome.gateway_ipv4));
        assert_eq!(gateway.json(&["sessions", "list", "--json"])["sessions"].as_array().unwrap().len(), 1);
    });
}

#[test]
fn every_bad_invitation_has_its_own_code() {
    with_gateway("every_bad_invitation_has_its_own_code", async |gateway| {
        let used = gateway.invite("anna");
        gateway.enrol(&used).await.unwrap();
        assert_eq!(refused(gateway.enrol(&used).await), Close::InviteUsed);

        let good = gateway.invite("anna");
        let mistyped = Invitation { secret: Secret::generate().unwrap(), ..good.clone() };
        assert_eq!(refused(gateway.enrol(&mistyped).await), Close::InviteProof);
        let foreign = Invitation { id: culvert_tunnel::invitation::InvitationId::generate().unwrap(), ..good.clone() };
        assert_eq!(refused(gateway.enrol(&foreign).await), Close::InviteForeign);

        let short = gateway.invite_with("anna", &["--expires", "1s"]);
        tokio::time::sleep(Duration::from_millis(2_100)).await;
        assert_eq!(refused(gateway.enrol(&short).await), Close::InviteExpired);

        gateway.sql("UPDATE invitations SET cancelled_at = 1 WHERE uses = 0").await;
        assert_eq!(refused(gateway.enrol(&good).await), Close::InviteCancelled);
        assert_eq!(gateway.json(&["devices", "list", "--json"])["devices"].as_array().unwrap().len(), 1);
        let log = gateway.log();
        assert!(log.contains("event=enrol_failed src=127.0.0.1 port="), "{log}");
        assert!(log.contains("reason=invite_used validated=yes"), "{log}");
    });
}

#[test]
fn a_full_disk_refuses_an_enrolment_and_the_invitation_stays_good() {
    with_gateway("a_full_disk_refuses_an_enrolment_and_the_invitation_stays_good", async |gateway| {
        let invitation = gateway.invite("anna");
        let filler = gateway.folder.path().join("filler");
        let mut file = std::fs::File::create(&filler).unwrap();
        while std::io::Write::write_all(&mut file, &[0; 4096]).is_ok() {}
        assert_eq!(refused(gateway.enrol(&invitation).await), Close::Internal);
        assert!(gateway.fails(&["invite", "ben"]).contains("the disk that holds the registry is full"));
        drop(file);
        std::fs::remove_file(filler).unwrap();
        let device = gateway.enrol(&invitation).await.unwrap();
        gateway.session(&device).await.unwrap();
    });
}

#[test]
fn a_session_needs_a_certificate_that_the_registry_knows() {
    with_gateway("a_session_needs_a_certificate_that_the_registry_knows", async |gateway| {
        let nobody = gateway.connect(b"culvert/1", None).await.unwrap();
        assert_eq!(closed(&nobody).await, Close::NoCertificate);

        let authority = gateway.authority();
        let key = DeviceKey::generate().unwrap();
        let stranger = authority.issue_device(&key.csr("x").unwrap(), DeviceId::generate().unwrap(), SystemTime::now());
        let chain = vec![stranger.unwrap().der];
        let stranger = gateway.connect(b"culvert/1", Some((&chain, &key))).await.unwrap();
        assert_eq!(closed(&stranger).await, Close::UnknownDevice);

        let device = gateway.enrol(&gateway.invite("anna")).await.unwrap();
        gateway.sql("UPDATE devices SET revoked_at = 1800000000").await;
        let revoked = gateway.connect(b"culvert/1", Some((&device.enrolment.chain, &device.key))).await.unwrap();
        assert_eq!(closed(&revoked).await, Close::Revoked);

        let other = Authority::create("another CA", SystemTime::now()).unwrap();
        let forged = other.issue_device(&key.csr("x").unwrap(), DeviceId::generate().unwrap(), SystemTime::now());
        let forged = gateway.connect(b"culvert/1", Some((&vec![forged.unwrap().der], &key))).await;
        let told = match forged {
            Ok(connection) => connection.closed().await,
            Err(error) => error,
        };
        // TLS alert unknown_ca, as a QUIC transport error (RFC 9001 section 4.8).
        assert!(
            matches!(&told, ConnectionError::ConnectionClosed(close) if u64::from(close.error_code) == 0x130),
            "{told:?}"
        );
        let alpn = gateway.connect(b"h3", None).await.unwrap_err();
        assert!(
            matches!(&alpn, ConnectionError::ConnectionClosed(close) if u64::from(close.error_code) == 0x178),
            "{alpn:?}"
        );

        for reason in ["no_certificate", "unknown_device", "revoked", "unknown_ca"] {
            gateway.logs(&format!("reason={reason} validated=yes name=\"")).await;
        }
        let log = gateway.log();
        assert!(!log.contains("no_application_protocol"), "its address was not validated: {log}");
    });
}

#[test]
fn garbage_on_the_control_stream_is_answered_by_its_own_code() {
    with_gateway("garbage_on_the_control_stream_is_answered_by_its_own_code", async |gateway| {
        for (bytes, code) in [
            (&b"\0\0\0\x04junk"[..], Close::Malformed),
            (b"\xff\xff\xff\xff", Close::Oversized),
            (b"\0\0\0\x12{\"type\":\"goodbye\"}", Close::Unexpected),
        ] {
            let connection = gateway.connect(b"culvert-enrol/1", None).await.unwrap();
            let (mut send, _receive) = connection.open_bi().await.unwrap();
            send.write_all(bytes).await.unwrap();
            let expected = if code == Close::Unexpected { Close::Unexpected } else { code };
            assert_eq!(closed(&connection).await, expected, "{bytes:?}");
        }
    });
}

#[test]
fn a_session_that_floods_its_control_stream_is_ended_and_counted() {
    with_gateway("a_session_that_floods_its_control_stream_is_ended_and_counted", async |gateway| {
        let device = gateway.enrol(&gateway.invite("anna")).await.unwrap();
        let mut session = gateway.session(&device).await.unwrap();
        for _ in 0..10 {
            session.control.send(&FromClient::Path { mtu_bytes: 1400 }).await;
        }
        assert!(ping(&session, session.welcome.gateway_ipv4).await.is_some(), "a few are welcome");
        let frame = control::encode(&FromClient::Path { mtu_bytes: 1400 }).unwrap();
        while session.control.send.write_all(&frame).await.is_ok() {}
        assert_eq!(closed(&session.connection).await, Close::Unexpected);
        assert_eq!(gateway.json(&["status", "--json"])["ended"]["unexpected"], 1);
    });
}

#[test]
fn stopping_says_goodbye_and_leaves_the_host_as_it_was() {
    with_gateway("stopping_says_goodbye_and_leaves_the_host_as_it_was", async |gateway| {
        let device = gateway.enrol(&gateway.invite("anna")).await.unwrap();
        let session = gateway.session(&device).await.unwrap();
        assert_eq!(tables(), ["culvert_culv0"]);
        assert_eq!(forwarding(), "1");
        gateway.signal("-TERM");
        assert_eq!(closed(&session.connection).await, Close::Shutdown);
        assert!(gateway.wait().success());
        assert!(tables().is_empty());
        assert_eq!(forwarding(), "0");
        assert!(!gateway.folder.path().join("sock").exists());
        assert!(gateway.log().contains("event=session_close"));

        // A crash leaves everything; the next start undoes it first, and so does cleanup.
        gateway.start();
        gateway.signal("-KILL");
        gateway.wait();
        assert_eq!((tables().len(), forwarding()), (1, "1".into()));
        gateway.ok(&["cleanup"]);
        assert_eq!((tables().len(), forwarding()), (0, "0".into()));
        gateway.start();
        gateway.signal("-KILL");
        gateway.wait();
        gateway.start();
        assert_eq!((tables().len(), forwarding()), (1, "1".into()));
        gateway.signal("-INT");
        assert!(gateway.wait().success());
        assert_eq!((tables().len(), forwarding()), (0, "0".into()));
    });
}

#[test]
fn each_start_that_is_refused_says_what_repairs_it_and_changes_nothing() {
    with_gateway("each_start_that_is_refused_says_what_repairs_it_and_changes_nothing", async |gateway| {
        assert!(gateway.refuses(&[]).contains("another culvert-server uses"));
        gateway.signal("-TERM");
        gateway.wait();

        let taken = std::net::UdpSocket::bind(LISTEN).unwrap();
        assert!(gateway.refuses(&[]).contains("UDP port 4433 of 127.0.0.1:4433 is in use by another program"));
        drop(taken);
        let told = gateway.refuses(&[("CULVERT_SERVER_LISTEN__ADDRESS", "192.0.2.1:4433")]);
        assert!(told.contains("no interface of this host has the address 192.0.2.1"), "{told}");
        assert!(gateway.refuses(&[("PATH", "/nonexistent")]).contains("apt install nftables"));
        let told = gateway.refuses(&[("CULVERT_SERVER_TUNNEL__DEVICE", "lo")]);
        assert!(told.contains("lo"), "{told}");

        add_address("10.55.0.1/16").await;
        let told = gateway.refuses(&[("CULVERT_SERVER_NETWORK__IPV4", "10.55.7.0/24")]);
        assert!(told.contains("the inner network 10.55.7.0/24 overlaps 10.55.0.0/16"), "{told}");

        let hidden = Command::new("mount").args(["-t", "tmpfs", "tmpfs", "/dev/net"]).status().unwrap();
        assert!(hidden.success());
        assert!(gateway.refuses(&[]).contains("/dev/net/tun is missing"));
        assert!(tables().is_empty());
        assert_eq!(forwarding(), "0");
    });
}

#[test]
fn a_gateway_with_one_client_stays_under_16_megabytes_of_its_own() {
    with_gateway("a_gateway_with_one_client_stays_under_16_megabytes_of_its_own", async |gateway| {
        let device = gateway.enrol(&gateway.invite("anna")).await.unwrap();
        let session = gateway.session(&device).await.unwrap();
        for _ in 0..100 {
            ping(&session, session.welcome.gateway_ipv4).await;
        }
        let kilobytes = gateway.anonymous_kilobytes();
        assert!(kilobytes < 16_000, "{kilobytes} kB");
    });
}

fn forwarding() -> String {
    std::fs::read_to_string("/proc/sys/net/ipv4/ip_forward").unwrap().trim().to_owned()
}

fn tables() -> Vec<String> {
    let listed = get_current_ruleset_with_args(DEFAULT_NFT, ["list", "tables"]).unwrap();
    let table = |object: &NfObject<'_>| match object {
        NfObject::ListObject(NfListObject::Table(table)) => Some(table.name.to_string()),
        _ => None,
    };
    listed.objects.iter().filter_map(table).collect()
}
