use super::*;
use crate::portal::Page;
use culvert_protocol::{Diagnosis, Outcome};
use time::macros::datetime;

#[test]
fn a_machine_that_is_well_and_connected_passes_everything() {
    let diagnosis = diagnose(&connected());
    assert_eq!(diagnosis.verdict.outcome, Outcome::Pass, "{diagnosis:#?}");
    assert_eq!(diagnosis.verdict.sentence, "Connected to Acme, and nothing is amiss");
    let skipped: Vec<CheckId> = with(&diagnosis, Outcome::NotChecked);
    assert_eq!(skipped, [CheckId::Portal], "there is nothing for it to be in the way of");
}

#[test]
fn a_machine_at_rest_is_told_that_a_connection_would_come_about() {
    let diagnosis = diagnose(&resting());
    assert_eq!(diagnosis.verdict.sentence, "Nothing stands in the way of a connection to Acme");
    let skipped = [CheckId::Echo, CheckId::Mtu, CheckId::Dns, CheckId::Internet, CheckId::Leaks];
    assert_eq!(with(&diagnosis, Outcome::NotChecked), skipped);
}

#[test]
fn the_first_cause_is_the_verdict() {
    let mut seen = resting();
    seen.network.ways.clear();
    seen.names.clear();
    seen.reach.clear();
    seen.admission = None;
    assert_eq!(verdict(&seen), Some(code::NO_NETWORK));
    seen.profile = Access::None;
    assert_eq!(verdict(&seen), Some(code::NOT_ENROLLED));
}

#[test]
fn silence_names_both_reasons_and_asserts_neither() {
    let mut seen = resting();
    seen.reach[0].heard = Heard::Nothing(Duration::from_secs(5));
    seen.admission = None;
    let diagnosis = diagnose(&seen);
    let sentence = &diagnosis.verdict.sentence;
    assert_eq!(diagnosis.verdict.code, Some(code::NO_ANSWER));
    assert!(sentence.contains("203.0.113.7:443") && sentence.contains("5 s"), "{sentence}");
    assert!(sentence.contains("is down, or this network blocks UDP"), "{sentence}");
    assert_eq!(with(&diagnosis, Outcome::NotChecked)[..2], [CheckId::Identity, CheckId::Admission]);
}

#[test]
fn what_the_operating_system_knows_of_silence_is_told_instead() {
    for (heard, code, words) in [
        (Heard::Closed, code::NO_ANSWER, "Nothing listens at 203.0.113.7:443"),
        (Heard::Filtered, code::FILTER, "own filter refuses"),
        (Heard::NoWay, code::NO_NETWORK, "no route to 203.0.113.7:443"),
    ] {
        let mut seen = resting();
        seen.reach[0].heard = heard;
        seen.admission = None;
        let found = diagnose(&seen).verdict;
        assert_eq!(found.code, Some(code));
        assert!(found.sentence.contains(words), "{}", found.sentence);
    }
}

#[test]
fn one_address_that_answers_is_enough_and_the_others_are_named() {
    let mut seen = resting();
    let silent = Reach { address: "[2001:db8::7]:443".parse().unwrap(), heard: Heard::Nothing(Duration::from_secs(5)) };
    seen.reach.insert(0, silent);
    let finding = finding(&seen, CheckId::Reach);
    assert_eq!(finding.outcome, Outcome::Warn);
    assert!(finding.sentence.contains("[2001:db8::7]:443 does not"), "{}", finding.sentence);
    assert_eq!(self::finding(&seen, CheckId::Identity).outcome, Outcome::Pass);
}

#[test]
fn somebody_else_who_answers_is_not_the_gateway() {
    let mut seen = resting();
    seen.reach[0].heard = Heard::Other(Problem::new(code::WRONG_SERVER));
    seen.admission = None;
    assert_eq!(verdict(&seen), Some(code::WRONG_SERVER));
    assert_eq!(finding(&seen, CheckId::Reach).outcome, Outcome::Pass, "UDP is not blocked");
}

#[test]
fn the_gateways_own_reason_is_told() {
    let mut seen = resting();
    let removed = "Removed on 3 May by root";
    seen.admission = Some(Err(Problem::new(code::REVOKED).because(removed)));
    let found = diagnose(&seen).verdict;
    assert_eq!((found.code, found.sentence.as_str()), (Some(code::REVOKED), removed));
}

#[test]
fn a_sign_in_page_comes_before_the_silence_that_it_causes() {
    let mut seen = resting();
    seen.reach[0].heard = Heard::Nothing(Duration::from_secs(5));
    seen.admission = None;
    let page =
        |is_certain| Some(Sight::Portal(Page { url: "http://login.hotel.example/".parse().unwrap(), is_certain }));
    seen.portal = page(true);
    let found = diagnose(&seen).verdict;
    assert_eq!(found.code, Some(code::PORTAL));
    assert_eq!(found.action.as_deref(), Some("Open http://login.hotel.example/"));
    seen.portal = page(false);
    assert_eq!(verdict(&seen), Some(code::NO_ANSWER), "what is only likely does not hide what was measured");
}

#[test]
fn a_wrong_clock_is_told_with_its_direction() {
    let mut seen = resting();
    seen.clock_ahead = Some(time::Duration::hours(2));
    assert_eq!(finding(&seen, CheckId::Clock).sentence, "This clock is 2 h 0 min behind the gateway's");
    seen.clock_ahead = Some(time::Duration::hours(-2));
    assert_eq!(finding(&seen, CheckId::Clock).sentence, "This clock is 2 h 0 min ahead of the gateway's");
    seen.clock_ahead = Some(time::Duration::seconds(-3));
    assert_eq!(finding(&seen, CheckId::Clock).outcome, Outcome::Pass);
    seen.clock_ahead = None;
    seen.now = datetime!(2025-01-01 00:00:00 UTC);
    let found = finding(&seen, CheckId::Clock);
    assert_eq!(found.code, Some(code::CLOCK));
    assert!(found.sentence.contains("at least 365 d"), "{}", found.sentence);
}

#[test]
fn access_that_ends_soon_is_a_doubt_and_access_that_ended_the_cause() {
    let mut seen = resting();
    seen.now = datetime!(2026-07-25 00:00:00 UTC);
    assert_eq!(finding(&seen, CheckId::Enrolment).outcome, Outcome::Warn);
    seen.now = datetime!(2026-08-03 00:00:00 UTC);
    let found = finding(&seen, CheckId::Enrolment);
    assert_eq!((found.code, found.sentence.as_str()), (Some(code::EXPIRED), "Access expired on 3 August 2026"));
}

#[test]
fn a_home_network_with_the_gateways_addresses_is_named_with_both() {
    let mut seen = connected();
    seen.session.as_mut().unwrap().only = vec!["192.168.1.0/24".parse().unwrap()];
    let found = finding(&seen, CheckId::Routes);
    assert_eq!(found.code, Some(code::OVERLAP));
    assert!(found.sentence.contains("192.168.1.0/24 on wlan0"), "{}", found.sentence);
}

#[test]
fn traffic_beside_the_tunnel_is_a_leak_and_refused_traffic_none() {
    let mut seen = connected();
    let session = seen.session.as_mut().unwrap();
    session.ordinary[1].1 = None;
    let found = finding(&seen, CheckId::Leaks);
    assert_eq!(found.outcome, Outcome::Pass);
    assert!(found.sentence.contains("IPv6 is refused"), "{}", found.sentence);
    seen.session.as_mut().unwrap().ordinary[1].1 = Some(way("wlan0", "2001:db8:1::2"));
    let found = finding(&seen, CheckId::Leaks);
    assert_eq!(found.sentence, "IPv6 traffic goes outside, through wlan0");
    let mut seen = connected();
    seen.session.as_mut().unwrap().names_inside = false;
    assert_eq!(finding(&seen, CheckId::Leaks).outcome, Outcome::Fail);
}

#[test]
fn a_weak_network_is_told_with_its_numbers_once_enough_was_sent() {
    let mut seen = connected();
    let session = seen.session.as_mut().unwrap();
    session.path = Some(Path { loss_percent: 31.0, ..path() });
    session.sent_packets = 10;
    assert_eq!(finding(&seen, CheckId::Echo).outcome, Outcome::Pass, "nothing can be said of ten packets");
    seen.session.as_mut().unwrap().sent_packets = 1000;
    let found = finding(&seen, CheckId::Echo);
    assert_eq!(found.code, Some(code::LOSSY));
    assert!(found.sentence.contains("31 %"), "{}", found.sentence);
}

#[test]
fn a_gateway_without_names_or_internet_is_told_apart() {
    let mut seen = connected();
    seen.session.as_mut().unwrap().internet = Some(false);
    assert_eq!(verdict(&seen), Some(code::GATEWAY_INTERNET));
    seen.session.as_mut().unwrap().name_servers[0].1 = false;
    assert_eq!(verdict(&seen), Some(code::GATEWAY_NAMES));
}

fn resting() -> Seen {
    Seen {
        now: datetime!(2026-05-03 09:12:00 UTC),
        state: State::Disconnected,
        profile: Access::Certificate {
            gateway: "Acme".into(),
            device: "laptop".into(),
            from: datetime!(2026-01-01 00:00:00 UTC),
            until: datetime!(2026-08-03 00:00:00 UTC),
        },
        network: Network {
            ways: vec![way("wlan0", "192.168.1.20")],
            local: vec![("192.168.1.0/24".parse().unwrap(), "wlan0".into())],
        },
        portal: Some(Sight::Clear),
        names: vec![Name { host: "vpn.acme.org".into(), addresses: vec!["203.0.113.7".parse().unwrap()] }],
        reach: vec![Reach { address: "203.0.113.7:443".parse().unwrap(), heard: Heard::Gateway }],
        admission: Some(Ok(())),
        clock_ahead: Some(time::Duration::ZERO),
        session: None,
    }
}

fn connected() -> Seen {
    Seen {
        state: State::Connected { since: datetime!(2026-05-03 09:00:00 UTC) },
        portal: None,
        session: Some(Session {
            interface: "culvert0".into(),
            path: Some(path()),
            sent_packets: 1000,
            name_servers: vec![("100.77.0.1".parse().unwrap(), true)],
            internet: Some(true),
            ordinary: vec![
                (Family::V4, Some(way("culvert0", "100.77.0.2"))),
                (Family::V6, Some(way("culvert0", "fd00:77::2"))),
            ],
            only: vec![],
            names_inside: true,
            unguarded: None,
        }),
        ..resting()
    }
}

fn way(interface: &str, source: &str) -> Way {
    Way { interface: interface.into(), source: source.parse().unwrap(), is_tunnel: false }
}

fn path() -> Path {
    Path { rtt_ms: 23.0, loss_percent: 0.1, mtu_bytes: 1380, path_mtu_bytes: 1452, black_holes: 0 }
}

fn diagnose(seen: &Seen) -> Diagnosis {
    Diagnosis::of(seen.now, 0, examine(seen), &well(seen))
}

fn verdict(seen: &Seen) -> Option<culvert_protocol::Code> {
    diagnose(seen).verdict.code
}

fn finding(seen: &Seen, check: CheckId) -> Finding {
    let found = examine(seen).into_iter().find(|found| found.check == check);
    found.unwrap().finding
}

fn with(diagnosis: &Diagnosis, outcome: Outcome) -> Vec<CheckId> {
    let checks = diagnosis.checks.iter().filter(|check| check.finding.outcome == outcome);
    checks.map(|check| check.check).collect()
}
