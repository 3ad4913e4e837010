use time::OffsetDateTime;

use super::*;

const SECOND: Duration = Duration::from_secs(1);
const ADDRESS: &str = "203.0.113.9";

#[test]
fn so_many_failures_at_once_are_a_ban_and_fewer_are_not() {
    let (mut bans, now) = (Bans::new(limits()), Instant::now());
    let mut changes = Vec::new();
    for n in 0..10 {
        assert!(changes.is_empty(), "banned after {n}");
        changes = fail(&mut bans, ADDRESS, now);
    }
    let Some(Change::Banned(prefix, ban)) = changes.first() else { panic!("{changes:?}") };
    assert_eq!(*prefix, net("203.0.113.9/32"));
    assert_eq!((ban.by, ban.until), (By::Failures { earlier: 0 }, Some(now + 600 * SECOND)));
    assert!(fail(&mut bans, ADDRESS, now).is_empty(), "what was under way changes nothing");
    assert!(bans.covering(net("203.0.113.8/32")).is_none());
}

#[test]
fn failures_that_come_slowly_are_forgiven() {
    let (mut bans, start) = (Bans::new(limits()), Instant::now());
    for n in 0..1000 {
        assert!(fail(&mut bans, ADDRESS, start + n * 30 * SECOND).is_empty(), "failure {n}");
    }
}

#[test]
fn every_host_of_one_64_counts_as_one() {
    let (mut bans, now) = (Bans::new(limits()), Instant::now());
    let changes: Vec<Change> = (0..10).flat_map(|n| fail(&mut bans, &format!("2001:db8:1:2::{n}"), now)).collect();
    assert!(matches!(&changes[..], [Change::Banned(prefix, _)] if *prefix == net("2001:db8:1:2::/64")), "{changes:?}");
    assert!(fail(&mut bans, "::ffff:203.0.113.9", now).is_empty());
    assert!(bans.sources.contains_key(&net("203.0.113.9/32")), "IPv4 is IPv4 however it is written");
}

#[test]
fn each_ban_is_twice_as_long_up_to_a_day_and_a_quiet_day_forgets_it() {
    let (mut bans, mut now) = (Bans::new(limits()), Instant::now());
    let mut lengths = Vec::new();
    for _ in 0..10 {
        let until = ban_by_failures(&mut bans, ADDRESS, now);
        lengths.push((until - now).as_secs() / 60);
        assert_eq!(bans.poll_timeout(), Some(until));
        assert!(bans.on_timeout(until - SECOND).is_empty());
        assert_eq!(bans.on_timeout(until), [Change::Lifted(net("203.0.113.9/32"), Lifted::Expired)]);
        now = until;
    }
    assert_eq!(lengths, [10, 20, 40, 80, 160, 320, 640, 1280, 1440, 1440]);
    now += REMEMBERED;
    assert_eq!(ban_by_failures(&mut bans, ADDRESS, now), now + 600 * SECOND);
}

#[test]
fn a_prefix_with_a_session_is_never_banned_for_failures() {
    let (mut bans, now) = (Bans::new(limits()), Instant::now());
    assert_eq!(bans.on_session(address(ADDRESS)), None);
    assert_eq!(bans.on_session(address(ADDRESS)), None);
    (0..10_000).for_each(|_| assert!(fail(&mut bans, ADDRESS, now).is_empty()));
    bans.on_session_end(address(ADDRESS));
    assert!(fail(&mut bans, ADDRESS, now).is_empty(), "one is still there");
    bans.on_session_end(address(ADDRESS));
    assert!(bans.live.is_empty());
    assert_eq!(fail(&mut bans, ADDRESS, now).len(), 1);
    assert!(bans.counts().spared >= 9_990);
}

#[test]
fn a_session_that_comes_to_a_banned_prefix_lifts_the_gateways_ban_and_not_an_operators() {
    let (mut bans, now) = (Bans::new(limits()), Instant::now());
    ban_by_failures(&mut bans, ADDRESS, now);
    assert_eq!(bans.on_session(address(ADDRESS)), Some(Change::Lifted(net("203.0.113.9/32"), Lifted::Session)));
    bans.add(net("203.0.113.9/32"), None, "", now).unwrap();
    assert_eq!(bans.on_session(address(ADDRESS)), None);
    assert!(bans.covering(net("203.0.113.9/32")).is_some());
}

#[test]
fn exempt_prefixes_and_no_limit_ban_nobody_and_lift_what_is_there() {
    let now = Instant::now();
    let exempt = Limits { exempt: vec![net("203.0.113.0/24")], ..limits() };
    let none = Limits { failures: 0, ..limits() };
    for changed in [exempt, none] {
        let mut bans = Bans::new(changed.clone());
        (0..100).for_each(|_| assert!(fail(&mut bans, ADDRESS, now).is_empty(), "{changed:?}"));
        let mut bans = Bans::new(limits());
        ban_by_failures(&mut bans, ADDRESS, now);
        bans.add(net("203.0.113.0/30"), None, "", now).unwrap();
        let lifted = bans.configure(changed);
        assert_eq!(lifted, [Change::Lifted(net("203.0.113.9/32"), Lifted::Configuration)]);
        assert_eq!(bans.iter().count(), 1, "an operator's ban stays");
    }
}

#[test]
fn an_operator_bans_any_prefix_but_not_the_internet() {
    let (mut bans, now) = (Bans::new(limits()), Instant::now());
    assert_eq!(bans.add(net("0.0.0.0/0"), None, "", now), Err(BanError::TooWide(net("0.0.0.0/0"))));
    assert!(bans.add(net("2000::/3"), None, "", now).is_err());
    bans.add(net("203.0.113.0/24"), Some(3600 * SECOND), "noise", now).unwrap();
    let (covering, ban) = bans.covering(net("203.0.113.9/32")).unwrap();
    assert_eq!((covering, ban.until), (net("203.0.113.0/24"), Some(now + 3600 * SECOND)));
    assert_eq!(bans.remove(net("203.0.113.9/32")), None);
    assert_eq!(bans.remove(covering), Some(Change::Lifted(covering, Lifted::Operator)));
    for n in 0..OPERATOR_BANS as u32 {
        bans.add(IpNet::from(IpAddr::from((n + 0x0a00_0000).to_be_bytes())), None, "", now).unwrap();
    }
    assert_eq!(bans.add(net("203.0.113.0/24"), None, "", now), Err(BanError::Full));
    bans.add(net("10.0.0.1/32"), None, "again", now).unwrap();
}

#[test]
fn a_lifted_prefix_begins_with_nothing_against_it() {
    let (mut bans, now) = (Bans::new(limits()), Instant::now());
    ban_by_failures(&mut bans, ADDRESS, now);
    bans.remove(net("203.0.113.9/32")).unwrap();
    assert_eq!(ban_by_failures(&mut bans, ADDRESS, now), now + 600 * SECOND, "as the first time");
}

#[test]
fn a_million_sources_take_no_more_memory_and_do_not_push_out_the_worst() {
    let (mut bans, mut now) = (Bans::new(limits()), Instant::now());
    for _ in 0..9 {
        fail(&mut bans, ADDRESS, now);
    }
    for n in 0..1_000_000_u32 {
        now += Duration::from_micros(20);
        fail_at(&mut bans, IpAddr::from((n + 0x0a00_0000).to_be_bytes()), now);
    }
    assert!(bans.sources.len() <= SOURCES, "{}", bans.sources.len());
    let changes: Vec<Change> = (0..2).flat_map(|_| fail(&mut bans, ADDRESS, now)).collect();
    assert_eq!(changes.len(), 1, "what it had done is not forgotten");
}

#[test]
fn bans_are_bounded_and_the_one_that_ends_first_makes_room() {
    let (mut bans, start) = (Bans::new(Limits { failures: 1, ..limits() }), Instant::now());
    for n in 0..BANS as u32 {
        fail_at(&mut bans, IpAddr::from((n + 0x0a00_0000).to_be_bytes()), start + n * SECOND / 1000);
    }
    assert_eq!(bans.counts().active_failures, BANS);
    let changes = fail(&mut bans, ADDRESS, start + 6 * SECOND);
    assert_eq!(changes[0], Change::Lifted(net("10.0.0.0/32"), Lifted::Room));
    assert_eq!((changes.len(), bans.counts().active_failures), (2, BANS));
}

#[test]
fn both_kinds_survive_a_restart_with_the_rest_of_their_time() {
    let (mut bans, now) = (Bans::new(limits()), Instant::now());
    let wall = OffsetDateTime::from_unix_timestamp(1_800_000_000).unwrap();
    ban_by_failures(&mut bans, ADDRESS, now);
    bans.add(net("198.51.100.0/24"), None, "for good", now).unwrap();
    bans.add(net("192.0.2.1/32"), Some(60 * SECOND), "short", now).unwrap();
    let kept = Kept::parse(&bans.keep(now, wall).text()).unwrap();

    let (mut again, boot) = (Bans::new(limits()), now + 5 * SECOND);
    again.restore(&kept, boot, wall + 200 * SECOND);
    let left: Vec<_> = again.iter().map(|(prefix, ban)| (prefix.to_string(), ban.until)).collect();
    assert_eq!(left, [("198.51.100.0/24".to_owned(), None), ("203.0.113.9/32".to_owned(), Some(boot + 400 * SECOND)),]);
    let until = boot + 400 * SECOND;
    again.on_timeout(until);
    assert_eq!(ban_by_failures(&mut again, ADDRESS, until), until + 1200 * SECOND, "the first one counts");

    // A clock that was two hours ahead when the file was written.
    let mut back = Bans::new(limits());
    back.restore(&kept, boot, wall - 3 * REMEMBERED);
    let longest = back.iter().filter_map(|(_, ban)| matches!(ban.by, By::Failures { .. }).then_some(ban.until?)).max();
    assert_eq!(longest, Some(boot + LONGEST));
}

#[test]
fn a_torn_file_or_one_of_a_newer_version_is_told_apart() {
    let (mut bans, now) = (Bans::new(limits()), Instant::now());
    bans.add(net("198.51.100.0/24"), None, "for good", now).unwrap();
    let text = bans.keep(now, OffsetDateTime::UNIX_EPOCH).text();
    for length in 0..text.len() {
        assert!(matches!(Kept::parse(&text[..length]), Err(Unreadable::Damaged(_))), "{length} bytes");
    }
    assert!(matches!(Kept::parse(br#"{"version":2,"others":[]}"#), Err(Unreadable::Newer(2))));
}

#[test]
fn innocent_refusals_do_not_count() {
    for word in ["expired", "limit", "wait", "invite_expired", "invite_used", "pool_full", "internal", "timeout"] {
        assert!(!counts(word), "{word}");
        assert!(word == "timeout" || counts_at_enrolment(word).is_none(), "{word}");
    }
    assert!(counts("unknown_ca") && counts("bad_invite"));
    assert_eq!(counts_at_enrolment("invite_proof"), Some("bad_invite"));
    assert_eq!(counts_at_enrolment("timeout"), Some("silent"), "a place that others wait for");
}

#[test]
fn a_prefix_has_one_spelling() {
    for (text, expected) in [
        ("203.0.113.9/24", "203.0.113.0/24"),
        ("::ffff:203.0.113.9/128", "203.0.113.9/32"),
        ("::ffff:203.0.113.9/120", "203.0.113.0/24"),
        ("2001:db8::1/64", "2001:db8::/64"),
    ] {
        assert_eq!(canonical(net(text)), net(expected), "{text}");
    }
}

fn limits() -> Limits {
    Limits { failures: 10, window: 300 * SECOND, duration: 600 * SECOND, exempt: Vec::new() }
}

fn fail(bans: &mut Bans, text: &str, now: Instant) -> Vec<Change> {
    fail_at(bans, address(text), now)
}

fn fail_at(bans: &mut Bans, address: IpAddr, now: Instant) -> Vec<Change> {
    bans.on_failure(address, "unknown_ca", now)
}

/// Fails until banned; returns the end of the ban.
fn ban_by_failures(bans: &mut Bans, text: &str, now: Instant) -> Instant {
    for _ in 0..20 {
        if let Some(Change::Banned(_, ban)) = fail(bans, text, now).pop() {
            return ban.until.unwrap();
        }
    }
    panic!("never banned");
}

fn address(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn net(text: &str) -> IpNet {
    text.parse().unwrap()
}
