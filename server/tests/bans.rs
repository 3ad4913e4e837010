//! Bans as clients and administrators meet them: the program itself, in a network namespace of each
//! test's own. Sources are addresses of the loopback network.

#![allow(clippy::unwrap_used, reason = "helpers of tests; clippy.toml covers test functions only")]

mod client;
mod namespace;

use std::net::Ipv4Addr;
use std::time::Duration;

use client::{Gateway, closed, dial, ping, refused, with_gateway};
use culvert_tunnel::close::Close;
use culvert_tunnel::invitation::{Invitation, Secret};
use quinn::VarInt;

const ATTACKER: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 66);

#[test]
fn ten_thousand_attempts_with_wrong_proofs_cost_a_few_handshakes_and_others_do_not_notice() {
    with_gateway(
        "ten_thousand_attempts_with_wrong_proofs_cost_a_few_handshakes_and_others_do_not_notice",
        async |gateway| {
            let device = gateway.enrol(&gateway.invite("anna")).await.unwrap();
            let session = gateway.session(&device).await.unwrap();
            let wrong = Invitation { secret: Secret::generate().unwrap(), ..gateway.invite("ben") };
            let attacker = gateway.endpoint(ATTACKER, b"culvert-enrol/1", None);
            for _ in 0..10 {
                let connection = dial(&attacker, "127.0.0.1").await.unwrap();
                assert_eq!(refused(gateway.enrol_over(&connection, &wrong, "laptop").await), Close::InviteProof);
            }
            gateway.logs("event=banned src=127.0.0.66 by=failures seconds=600 reason=bad_invite").await;

            let before = gateway.shards("handshakes");
            let (mut attempts, mut answered) = (0, 0);
            while attempts < 10_000 || gateway.shards("datagrams_banned") < 10_000 {
                // So many at once that the socket of the test does not overflow; each sends its first packet.
                let batch: Vec<_> = (0..200).map(|_| dial(&attacker, "127.0.0.1")).collect();
                attempts += batch.len();
                answered += usize::from(ping(&session, session.welcome.gateway_ipv4).await.is_some());
                drop(batch);
            }
            assert_eq!(answered, attempts / 200, "the client beside it lost nothing");
            assert_eq!(gateway.shards("handshakes"), before, "none of them began");
            assert_eq!(gateway.json(&["sessions", "list", "--json"])["sessions"].as_array().unwrap().len(), 1);
        },
    );
}

#[test]
fn a_prefix_where_somebody_has_a_session_is_not_banned_until_they_have_left() {
    with_gateway("a_prefix_where_somebody_has_a_session_is_not_banned_until_they_have_left", async |gateway| {
        let device = gateway.enrol(&gateway.invite("anna")).await.unwrap();
        let session = gateway.session(&device).await.unwrap();
        for _ in 0..15 {
            fail(gateway, Ipv4Addr::LOCALHOST).await;
        }
        assert!(gateway.json(&["bans", "list", "--json"])["bans"].as_array().unwrap().is_empty());
        let again = gateway.session(&device).await.unwrap();
        assert_eq!(closed(&session.connection).await, Close::Replaced);

        again.connection.close(VarInt::from_u32(Close::Goodbye.code()), b"");
        gateway.logs("event=session_close src=127.0.0.1").await;
        gateway.until("the second session's end", || gateway.log().matches("event=session_close").count() == 2).await;
        fail(gateway, Ipv4Addr::LOCALHOST).await;
        gateway.logs("event=banned src=127.0.0.1 by=failures").await;
    });
}

#[test]
fn an_operators_ban_spares_open_sessions_unless_told_and_survives_a_crash() {
    with_gateway("an_operators_ban_spares_open_sessions_unless_told_and_survives_a_crash", async |gateway| {
        let device = gateway.enrol(&gateway.invite("anna")).await.unwrap();
        let session = gateway.session(&device).await.unwrap();
        let added = gateway.json(&["bans", "add", "127.0.0.1", "--for", "1h", "--reason", "noise", "--json"]);
        assert_eq!(
            (&added["prefix"], &added["sessions"], &added["sessions_closed"]),
            (&"127.0.0.1/32".into(), &1.into(), &0.into())
        );
        assert!(ping(&session, session.welcome.gateway_ipv4).await.is_some(), "the session goes on");
        let added = gateway.run(&["bans", "add", "127.0.0.0/24", "--now"]);
        assert_eq!(
            String::from_utf8_lossy(&added.stdout),
            "127.0.0.0/24 is banned until you lift it\n1 session(s) ended\n"
        );
        assert_eq!(closed(&session.connection).await, Close::Kicked);

        // A crash, right after the command has answered.
        gateway.signal("-KILL");
        gateway.wait();
        let kept = gateway.json(&["bans", "list", "--json"]);
        assert_eq!(kept["bans"].as_array().unwrap().len(), 2, "without a gateway, too: {kept}");
        gateway.start();
        assert_eq!(gateway.json(&["bans", "list", "--json"]), kept);
        let attempt = gateway.endpoint(Ipv4Addr::LOCALHOST, b"culvert/1", None);
        let waiting = dial(&attempt, "127.0.0.1");
        gateway.until("the attempt", || gateway.shards("datagrams_banned") > 0).await;
        assert_eq!(gateway.shards("handshakes"), 0);
        drop(waiting);

        let told = gateway.run(&["bans", "remove", "127.0.0.1"]);
        assert!(
            String::from_utf8_lossy(&told.stderr).contains("still banned with 127.0.0.0/24; lift that with"),
            "{told:?}"
        );
        gateway.ok(&["bans", "remove", "127.0.0.0/24"]);
        gateway.session(&device).await.unwrap();
        let log = gateway.log();
        assert!(
            log.contains("event=admin actor=root(uid=0,via=socket) action=ban target=127.0.0.0/24 result=ok"),
            "{log}"
        );
        assert!(log.contains("action=unban target=127.0.0.0/24 result=ok"), "{log}");
    });
}

#[test]
fn bad_bans_are_refused_with_a_sentence() {
    with_gateway("bad_bans_are_refused_with_a_sentence", async |gateway| {
        for (arguments, code, sentence) in [
            (&["bans", "add", "vpn.example.org"][..], 2, "is neither an address nor a network"),
            (&["bans", "add", "203.0.113.9/33"], 2, "is neither an address nor a network"),
            (&["bans", "add", "0.0.0.0/0"], 1, "is most of the internet"),
            (&["bans", "add", "203.0.113.9", "--for", "tomorrow"], 2, "is not a length of time"),
            (&["bans", "add", "203.0.113.9", "--reason", "a\nb"], 2, "printable"),
        ] {
            let output = gateway.run(arguments);
            let told = String::from_utf8(output.stderr).unwrap();
            assert_eq!(output.status.code(), Some(code), "{told}");
            assert!(told.contains(sentence) && told.lines().count() == 1, "{told}");
        }
        let nothing = gateway.run(&["bans", "remove", "203.0.113.9"]);
        assert!(nothing.status.success() && String::from_utf8_lossy(&nothing.stderr).contains("was not banned"));
        assert!(gateway.json(&["bans", "list", "--json"])["bans"].as_array().unwrap().is_empty());
    });
}

#[test]
fn a_torn_file_of_bans_is_put_aside_and_the_gateway_runs() {
    with_gateway("a_torn_file_of_bans_is_put_aside_and_the_gateway_runs", async |gateway| {
        gateway.ok(&["bans", "add", "203.0.113.0/24", "--reason", "for good"]);
        gateway.signal("-TERM");
        gateway.wait();
        let path = gateway.folder.path().join("state/bans.json");
        let whole = std::fs::read(&path).unwrap();
        std::fs::write(&path, &whole[..whole.len() / 2]).unwrap();
        assert!(gateway.fails(&["bans", "list"]).contains("damaged"));
        gateway.start();
        assert!(gateway.log().contains("event=bans_unreadable"));
        assert_eq!(std::fs::read(path.with_extension("json.unreadable")).unwrap(), whole[..whole.len() / 2]);
        gateway.ok(&["bans", "add", "203.0.113.0/24"]);
        assert_eq!(gateway.json(&["bans", "list", "--json"])["bans"].as_array().unwrap().len(), 1);
    });
}

#[test]
fn a_reload_exempts_a_prefix_and_lifts_its_ban() {
    with_gateway("a_reload_exempts_a_prefix_and_lifts_its_ban", async |gateway| {
        for _ in 0..10 {
            fail(gateway, ATTACKER).await;
        }
        gateway.logs("event=banned src=127.0.0.66").await;
        gateway.write_config("[bans]\nexempt = [\"127.0.0.0/8\"]\n");
        gateway.ok(&["reload"]);
        gateway.logs("event=unbanned src=127.0.0.66 reason=configuration").await;
        for _ in 0..15 {
            fail(gateway, ATTACKER).await;
        }
        assert!(gateway.json(&["bans", "list", "--json"])["bans"].as_array().unwrap().is_empty());
    });
}

#[test]
fn the_log_tells_of_addresses_what_it_may() {
    with_gateway("the_log_tells_of_addresses_what_it_may", async |gateway| {
        for (choice, src) in [("prefix", "127.0.0.0/24"), ("none", "-")] {
            gateway.write_config(&format!("[log]\naddresses = \"{choice}\"\nlevel = \"trace\"\n"));
            gateway.ok(&["reload"]);
            std::fs::write(gateway.log_path(), "").unwrap();
            let device = gateway.enrol(&gateway.invite("anna")).await.unwrap();
            let session = gateway.session(&device).await.unwrap();
            session.connection.close(VarInt::from_u32(Close::Goodbye.code()), b"");
            for _ in 0..10 {
                fail(gateway, ATTACKER).await;
            }
            gateway.logs("event=session_close").await;
            gateway.logs("event=banned").await;
            gateway.ok(&["bans", "remove", "127.0.0.66"]);
            let log = gateway.log();
            for event in ["session_open", "session_close", "auth_failed", "enrol_ok"] {
                assert!(log.contains(&format!("event={event} src={src} port=0 ")), "{event}: {log}");
            }
            assert!(log.contains(&format!("event=banned src={src} ")), "{log}");
            let private = |line: &&str| line.contains("127.0.0.1") || line.contains("127.0.0.66");
            assert_eq!(log.lines().find(private), None);
        }
    });
}

#[test]
fn a_log_file_is_appended_to_and_opened_again_by_a_reload() {
    with_gateway("a_log_file_is_appended_to_and_opened_again_by_a_reload", async |gateway| {
        gateway.signal("-TERM");
        gateway.wait();
        let (path, rotated) = (gateway.folder.path().join("own.log"), gateway.folder.path().join("own.log.1"));
        gateway.write_config(&format!("[log]\nfile = \"{}\"\n", path.display()));
        gateway.start();
        std::fs::rename(&path, &rotated).unwrap();
        gateway.signal("-HUP");
        gateway.until("the new file", || path.exists()).await;
        fail(gateway, ATTACKER).await;
        let line = "event=auth_failed src=127.0.0.66";
        gateway.until("the line", || std::fs::read_to_string(&path).unwrap().contains(line)).await;
        assert!(std::fs::read_to_string(rotated).unwrap().contains("event=started"));
        assert!(gateway.log().contains(line), "and on standard error");
        gateway.signal("-TERM");
        gateway.wait();
        gateway.write_config("[log]\nfile = \"/nonexistent/own.log\"\n");
        assert!(gateway.refuses(&[]).contains("cannot write the log /nonexistent/own.log"));
    });
}

/// One connection without a certificate, which is refused.
async fn fail(gateway: &Gateway, from: Ipv4Addr) {
    let connection = dial(&gateway.endpoint(from, b"culvert/1", None), "127.0.0.1").await.unwrap();
    assert_eq!(closed(&connection).await, Close::NoCertificate);
}

impl Gateway {
    /// A counter, over all shards.
    fn shards(&self, name: &str) -> u64 {
        let status = self.json(&["status", "--json"]);
        status["shards"].as_array().unwrap().iter().map(|shard| shard[name].as_u64().unwrap()).sum()
    }

    async fn until(&self, what: &str, is_so: impl Fn() -> bool) {
        let deadline = std::time::Instant::now() + Duration::from_secs(10);
        while !is_so() {
            assert!(std::time::Instant::now() < deadline, "{what}: {}", self.log());
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}
