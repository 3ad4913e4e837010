use std::collections::VecDeque;

use super::*;
use crate::control_socket::BanInfo;
use crate::history::{Record, Refusal};

const PRESENT: Pin = Pin::from_bytes([1; 32]);

/// A case: what is unusual about the device, and the whole line.
type Case = (&'static str, fn(&mut Device, &mut Heard), &'static str);

#[test]
fn each_state_of_a_device_has_one_verdict_and_one_repair() {
    let cases: &[Case] = &[
        (
            "connected, whatever was before",
            |_, heard| {
                heard.session = Some(("2027-01-15T08:00:00Z".into(), "203.0.113.9:4433".into()));
                heard.history.record = refused("timeout", 3);
            },
            "anna/mac: connected since 2027-01-15T08:00:00Z from 203.0.113.9:4433",
        ),
        (
            "revoked",
            |device, heard| {
                device.revoked_at = Some(now() - days(3));
                heard.history.record = refused("revoked", 1);
            },
            "anna/mac: 1 handshake refused since 07:00 UTC: an administrator removed its access 3 days ago. \
             Fix: culvert-server devices restore anna/mac",
        ),
        (
            "expired, and refused by TLS",
            |device, heard| {
                device.not_after = now() - days(2);
                let mut there = refused("expired", 3);
                there.last.push_back(Refusal { reason: "unknown_ca".into(), ..there.last[0].clone() });
                heard.history.of_place = Some(there);
            },
            "anna/mac: 3 handshakes refused since 07:00 UTC: certificate expired 2 days ago. \
             Fix: culvert-server invite anna/mac --renew",
        ),
        (
            "expired, and nothing was heard",
            |device, _| device.not_after = now() - days(1),
            "anna/mac: certificate expired 1 day ago. Fix: culvert-server invite anna/mac --renew",
        ),
        (
            "away while the authority changed",
            |device, heard| {
                device.authority = Some(Pin::from_bytes([2; 32]));
                heard.history.record = refused("expired", 1);
            },
            "anna/mac: 1 handshake refused since 07:00 UTC: the gateway has a new certificate authority, and the \
             device was away while it changed. Fix: culvert-server invite anna/mac --renew",
        ),
        (
            "a network that was changed",
            |device, _| device.ipv4 = "10.0.0.9".parse().unwrap(),
            "anna/mac: its address 10.0.0.9 is not in the inner network 100.77.3.0/24. \
             Fix: set network.ipv4 to a network that holds it, and: systemctl restart culvert-server",
        ),
        (
            "banned for failures",
            |_, heard| {
                heard.history.record = refused("challenge_failed", 1);
                heard.history.ban = Some(ban("failures", "bad_invite"));
            },
            "anna/mac: the address that it last came from 203.0.113.9 is banned until 2027-01-15T09:00:00Z for failed \
             logins, the last one bad_invite. Fix: culvert-server bans remove 203.0.113.0/24",
        ),
        (
            "banned by somebody",
            |_, heard| heard.history.ban = Some(BanInfo { until: None, ..ban("operator", "noise") }),
            "anna/mac: the address that it last came from is banned by an administrator (noise). \
             Fix: culvert-server bans remove 203.0.113.0/24",
        ),
        (
            "another version",
            |_, heard| heard.history.record = refused("version", 12),
            "anna/mac: 12 handshakes refused since 07:00 UTC: it speaks another version of the protocol. \
             Fix: on the device: update Culvert, or update this gateway",
        ),
        (
            "restored since",
            |_, heard| heard.history.record = refused("revoked", 2),
            "anna/mac: 2 handshakes refused since 07:00 UTC: it was revoked then, and is not any more. \
             Fix: on the device: culvert connect",
        ),
        (
            "silent",
            |_, _| {},
            "anna/mac: nothing is wrong here; last seen 5 hours ago, and nothing was heard of it since this gateway \
             started at 2027-01-15T06:00:00Z. Fix: on the device: culvert doctor",
        ),
        (
            "never came",
            |device, _| device.last_seen = None,
            "anna/mac: enrolled 40 days ago and never connected; nothing was heard of it since this gateway started at \
             2027-01-15T06:00:00Z. Fix: on the device: culvert doctor",
        ),
        (
            "a name for which a shell has plans",
            |device, _| {
                device.name = "mac; rm 'x'".into();
                device.not_after = now() - days(2);
            },
            r"anna/mac; rm 'x': certificate expired 2 days ago. Fix: culvert-server invite 'anna/mac; rm '\''x'\''' --renew",
        ),
    ];
    for (case, change, expected) in cases {
        let (mut device, mut heard) = (device(), heard());
        change(&mut device, &mut heard);
        assert_eq!(judge(&device, Some(heard)).text(), *expected, "{case}");
    }
}

#[test]
fn without_a_running_gateway_it_says_what_it_cannot_know() {
    let judged = judge(&device(), None);
    assert_eq!(
        judged.text(),
        "anna/mac: no gateway runs here, so nobody can connect. Fix: systemctl start culvert-server"
    );
    assert!(judged.unknown.unwrap().contains("not known"));
    let expired = judge(&Device { not_after: now() - days(2), ..device() }, None);
    assert_eq!(expired.verdict, Verdict::Expired, "the registry knows that alone");
    assert!(judge(&device(), Some(heard())).unknown.unwrap().contains("bans list"));
}

#[test]
fn an_open_renewal_is_told() {
    let device = Device { not_after: now() - days(2), ..device() };
    let renewal = Invitation { renews: Some(device.id.clone()), ..invitation() };
    let pool = pool();
    let facts = DeviceFacts { device: &device, invitations: &[renewal], heard: None, pool: &pool, authorities: &[] };
    let told = judge_device(&facts, now()).sentence;
    assert_eq!(told, "certificate expired 2 days ago; an invitation that renews it is open until 2027-01-16 08:00 UTC");
}

#[test]
fn a_user_without_a_device_is_judged_by_the_invitations() {
    let expired = Invitation { created: now() - days(3), expires: now() - days(2), ..invitation() };
    let cancelled = Invitation { cancelled_at: Some(now() - days(1)), ..invitation() };
    for (invitations, expected) in [
        (vec![], "anna: has no device and no invitation. Fix: culvert-server invite anna"),
        (vec![expired.clone()], "anna: the last invitation expired 2 days ago. Fix: culvert-server invite anna"),
        (
            vec![expired.clone(), invitation()],
            "anna: invited 2 hours ago, and the invitation was not used yet; it is good until 2027-01-16 08:00 UTC. \
             Fix: culvert-server invite anna",
        ),
        (
            vec![expired, cancelled],
            "anna: the last invitation was withdrawn 1 day ago. Fix: culvert-server invite anna",
        ),
    ] {
        assert_eq!(judge_user(&UserFacts { user: "anna", invitations: &invitations }, now()).text(), expected);
    }
}

fn judge(device: &Device, heard: Option<Heard>) -> Judgement {
    judge_device(&DeviceFacts { device, invitations: &[], heard, pool: &pool(), authorities: &[PRESENT] }, now())
}

fn pool() -> Pool {
    Pool::new("100.77.3.0/24".parse().unwrap(), None)
}

/// Eight in the morning of 15 January 2027, UTC.
fn now() -> OffsetDateTime {
    OffsetDateTime::from_unix_timestamp(1_800_000_000).unwrap()
}

fn days(count: i64) -> time::Duration {
    time::Duration::days(count)
}

fn device() -> Device {
    Device {
        id: "id".into(),
        user: "anna".into(),
        name: "mac".into(),
        spki_sha256: [0; 32],
        serial: String::new(),
        not_after: now() + days(50),
        ipv4: "100.77.3.2".parse().unwrap(),
        ipv6: None,
        created: now() - days(40),
        last_seen: Some(now() - time::Duration::hours(5)),
        revoked_at: None,
        authority: Some(PRESENT),
    }
}

fn invitation() -> Invitation {
    Invitation {
        id: vec![1],
        key: Vec::new(),
        user: "anna".into(),
        uses_allowed: 1,
        uses: 0,
        created: now() - time::Duration::hours(2),
        expires: now() + days(1),
        cancelled_at: None,
        last_use: None,
        renews: None,
    }
}

fn heard() -> Heard {
    let history = DeviceHistory { id: "id".into(), record: Record::default(), of_place: None, ban: None };
    Heard { history, session: None, since: "2027-01-15T06:00:00Z".into() }
}

fn refused(reason: &str, count: u64) -> Record {
    let first = now() - time::Duration::hours(1);
    let from = "203.0.113.9/32".parse().unwrap();
    let last: VecDeque<_> = (0..count).map(|_| Refusal { at: first, from, reason: reason.into() }).collect();
    Record { refused: count, refused_since: Some(first), last, opened: None, place: Some(from) }
}

fn ban(by: &str, reason: &str) -> BanInfo {
    let until = Some("2027-01-15T09:00:00Z".into());
    BanInfo { prefix: "203.0.113.0/24".parse().unwrap(), by: by.into(), until, reason: reason.into() }
}
