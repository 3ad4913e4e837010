//! What people read. Sentence case, checkable words, stable order (product.md sections 5.3, 6.2).
//! Pure, except for the local time zone.

use culvert_protocol::{Blocking, Protection, State, Status, Timestamp};
use time::format_description::BorrowedFormatItem;
use time::macros::format_description;
use time::{OffsetDateTime, UtcOffset};

const CLOCK: &[BorrowedFormatItem<'_>] = format_description!("[hour]:[minute]");
const CLOCK_SECONDS: &[BorrowedFormatItem<'_>] = format_description!("[hour]:[minute]:[second]");
const DAY: &[BorrowedFormatItem<'_>] = format_description!("[day padding:none] [month repr:long]");
const DAY_YEAR: &[BorrowedFormatItem<'_>] = format_description!("[day padding:none] [month repr:long] [year]");

/// The first line.
pub(crate) fn headline(state: &State, gateway: &str) -> String {
    match state {
        State::NotEnrolled => "Not set up".into(),
        State::Disconnected => "Not connected".into(),
        State::Connecting { step } => format!("Connecting to {gateway}… ({})", step.sentence()),
        State::Connected { .. } => format!("Connected to {gateway}"),
        State::Reconnecting { .. } => format!("Reconnecting to {gateway}…"),
        State::Offline => "No network".into(),
        State::PortalSignIn { .. } => "Sign-in needed".into(),
        State::Blocked { .. } => "Blocked: there is no tunnel, and traffic is held back".into(),
        State::Failed { problem } => format!("Can't connect: {}", problem.title()),
        State::Disconnecting => "Disconnecting…".into(),
        State::Paused => "Paused".into(),
    }
}

/// One line of `watch`.
pub(crate) fn change(state: &State, gateway: &str, at: Timestamp) -> String {
    let mut line = format!("{}  {}", clock(at), headline(state, gateway));
    if let State::Reconnecting { cause, .. } | State::Blocked { cause } | State::Failed { problem: cause } = state {
        line.push_str(&format!(": {cause}"));
    }
    line
}

/// The whole of `status`.
pub(crate) fn status(status: &Status, now: Timestamp) -> String {
    let gateway = status.gateway.as_ref();
    let name = gateway.map_or("the gateway", |gateway| gateway.name.as_str());
    let mut first = headline(&status.state, name);
    if matches!(status.state, State::Reconnecting { .. }) {
        // Routes stay while a session is looked for again; before the first one there are none.
        first.push_str(if status.protection.is_some() || status.kill_switch.is_some_and(|it| it.in_force) {
            " traffic is held back"
        } else {
            " traffic goes past the tunnel"
        });
    }
    let mut lines = vec![first];
    let mut row = |label: &str, value: String| lines.push(format!("    {:<13}{value}", format!("{label}:")));
    if let Some(gateway) = gateway {
        let host = gateway.endpoint.rsplit_once(':').map_or(gateway.endpoint.as_str(), |(host, _)| host);
        match gateway.remote {
            Some(remote) => row("Gateway", format!("{host} ({remote}, UDP)")),
            None => row("Gateway", format!("{name}, {}", gateway.endpoint)),
        }
    }
    match &status.state {
        State::Connected { since } => row("Since", format!("{} ({})", moment(*since, now), elapsed(*since, now))),
        State::Reconnecting { cause, attempt, next_at } => {
            row("Cause", cause.to_string());
            let next = next_at.map_or_else(|| "under way".into(), |at| format!("in {}", elapsed(now, at)));
            row("Next try", format!("{next} (attempt {})", attempt + u32::from(next_at.is_some())));
        }
        State::Blocked { cause } | State::Failed { problem: cause } => row("Cause", cause.to_string()),
        State::NotEnrolled => row("Set up with", "culvert enrol".into()),
        State::PortalSignIn { page, open_until } => {
            row("Page", page.clone());
            match open_until {
                Some(until) => row("Reachable", format!("the page, for {} more", elapsed(now, *until))),
                None => row("Open it", "culvert portal".into()),
            }
        }
        _ => {}
    }
    if !status.addresses.is_empty() {
        let addresses: Vec<String> = status.addresses.iter().map(ToString::to_string).collect();
        row("Address", addresses.join(", "));
    }
    match (&status.protection, status.kill_switch) {
        (Some(protection), _) => row("Protected", protected(protection)),
        (None, Some(Blocking { in_force: true, allow_lan, .. })) => {
            let what = if allow_lan { "local networks only" } else { "nothing" };
            row("Reachable", format!("{what}; kill switch on"));
        }
        _ => {}
    }
    if let Some(path) = &status.path {
        let quality = format!("RTT {:.0} ms, loss {:.1} %, MTU {}", path.rtt_ms, path.loss_percent, path.mtu_bytes);
        row("Quality", quality);
    }
    if let Some(traffic) = &status.traffic {
        row("Traffic", format!("{} down, {} up", bytes(traffic.received_bytes), bytes(traffic.sent_bytes)));
        let dropped: Vec<String> = [(&traffic.dropped.sent, "up"), (&traffic.dropped.received, "down")]
            .into_iter()
            .flat_map(|(reasons, way)| reasons.iter().map(move |(reason, packets)| (reason, packets, way)))
            .map(|(reason, packets, way)| format!("{packets} {} ({way})", reason.replace('_', " ")))
            .collect();
        if !dropped.is_empty() {
            row("Dropped", dropped.join(", "));
        }
    }
    if let Some(certificate) = &status.certificate {
        row("Access ends", date(certificate.until, now));
    }
    for note in &status.notes {
        row("Note", note.clone());
    }
    lines.join("\n")
}

fn protected(protection: &Protection) -> String {
    let facts = [(protection.ipv4, "IPv4"), (protection.ipv6, "IPv6"), (protection.dns, "DNS")];
    let names: Vec<&str> = facts.into_iter().filter(|(is, _)| *is).map(|(_, name)| name).collect();
    let names = if names.is_empty() { "chosen networks only".to_owned() } else { names.join(", ") };
    format!("{names}; kill switch {}", if protection.kill_switch { "on" } else { "off" })
}

/// `09:12:03`.
pub(crate) fn clock(at: Timestamp) -> String {
    format(local(at), CLOCK_SECONDS)
}

/// `3 August`, with the year when it is another one.
pub(crate) fn date(at: Timestamp, now: Timestamp) -> String {
    let (at, now) = (local(at), local(now));
    format(at, if at.year() == now.year() { DAY } else { DAY_YEAR })
}

/// `09:12 today`, or with its day.
fn moment(at: Timestamp, now: Timestamp) -> String {
    let is_today = local(at).date() == local(now).date();
    let day = if is_today { "today".to_owned() } else { date(at, now) };
    format!("{} {day}", format(local(at), CLOCK))
}

/// `1 h 12 min`; the two largest units.
pub(crate) fn elapsed(from: Timestamp, to: Timestamp) -> String {
    let seconds = (to - from).whole_seconds().max(0);
    match (seconds / 86_400, seconds / 3_600 % 24, seconds / 60 % 60) {
        (0, 0, 0) => format!("{seconds} s"),
        (0, 0, minutes) => format!("{minutes} min"),
        (0, hours, minutes) => format!("{hours} h {minutes} min"),
        (days, hours, _) => format!("{days} d {hours} h"),
    }
}

/// Decimal units with two significant figures, as file managers show them.
fn bytes(count: u64) -> String {
    const UNITS: [&str; 5] = ["B", "kB", "MB", "GB", "TB"];
    let mut value = count as f64;
    let mut unit = 0;
    while value >= 999.5 && unit + 1 < UNITS.len() {
        value /= 1000.0;
        unit += 1;
    }
    if unit == 0 || value >= 9.95 {
        format!("{value:.0} {}", UNITS[unit])
    } else {
        format!("{value:.1} {}", UNITS[unit])
    }
}

/// In the time zone of this machine; UTC where that is not known.
fn local(at: Timestamp) -> OffsetDateTime {
    UtcOffset::local_offset_at(at).map_or(at, |offset| at.to_offset(offset))
}

fn format(at: OffsetDateTime, form: &[BorrowedFormatItem<'_>]) -> String {
    at.format(form).unwrap_or_else(|_| at.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use culvert_protocol::{Certificate, Dropped, Gateway, KillSwitch, Path, Problem, SCHEMA, Traffic, code};
    use time::macros::datetime;

    #[test]
    fn connected_looks_as_the_contract_shows_it() {
        let now = datetime!(2026-05-03 10:24:30 UTC);
        let since = datetime!(2026-05-03 09:12:00 UTC);
        let until = datetime!(2026-08-03 00:00:00 UTC);
        let since_when = moment(since, now); // the machine's time zone decides
        let ends = date(until, now);
        let shown = status(&connected(since, until), now);
        let expected = format!(
            "Connected to Acme\n\
             \x20   Gateway:     vpn.acme.org (203.0.113.7:443, UDP)\n\
             \x20   Since:       {since_when} (1 h 12 min)\n\
             \x20   Address:     100.77.3.9, fd4e:9a1c::9\n\
             \x20   Protected:   IPv4, IPv6, DNS; kill switch on\n\
             \x20   Quality:     RTT 23 ms, loss 0.0 %, MTU 1380\n\
             \x20   Traffic:     1.2 GB down, 96 MB up\n\
             \x20   Dropped:     2 too big (up), 1 unjoined (down)\n\
             \x20   Access ends: {ends}"
        );
        assert_eq!(shown, expected);
    }

    #[test]
    fn a_failure_says_why_and_what_to_do() {
        let mut failed = connected(Timestamp::UNIX_EPOCH, Timestamp::UNIX_EPOCH);
        failed.state = State::Failed { problem: Problem::new(code::REVOKED) };
        let shown = status(&failed, Timestamp::UNIX_EPOCH);
        assert!(shown.starts_with("Can't connect: Access was removed\n"), "{shown}");
        assert!(shown.contains("[E301]"), "{shown}");
    }

    #[test]
    fn a_blocked_machine_says_what_it_can_reach_and_how_to_lift_it() {
        let mut blocked = connected(Timestamp::UNIX_EPOCH, Timestamp::UNIX_EPOCH);
        blocked.state = State::Blocked { cause: Problem::new(code::LOCKDOWN) };
        blocked.protection = None;
        let shown = status(&blocked, Timestamp::UNIX_EPOCH);
        assert!(shown.contains("local networks only; kill switch on"), "{shown}");
        assert!(shown.contains("culvert disconnect --unblock"), "{shown}");
    }

    #[test]
    fn sizes_and_times_are_rounded_for_people() {
        assert_eq!(bytes(0), "0 B");
        assert_eq!(bytes(999), "999 B");
        assert_eq!(bytes(1_000), "1.0 kB");
        assert_eq!(bytes(999_999), "1.0 MB");
        assert_eq!(bytes(96_000_000), "96 MB");
        assert_eq!(bytes(u64::MAX), "18446744 TB");
        let at = |seconds| Timestamp::from_unix_timestamp(seconds).unwrap();
        assert_eq!(elapsed(at(0), at(59)), "59 s");
        assert_eq!(elapsed(at(0), at(4_320)), "1 h 12 min");
        assert_eq!(elapsed(at(0), at(90_000)), "1 d 1 h");
        assert_eq!(elapsed(at(10), at(0)), "0 s");
    }

    fn connected(since: Timestamp, until: Timestamp) -> Status {
        Status {
            schema: SCHEMA,
            state: State::Connected { since },
            profile: Some("acme".into()),
            gateway: Some(Gateway {
                name: "Acme".into(),
                endpoint: "vpn.acme.org:443".into(),
                remote: Some("203.0.113.7:443".parse().unwrap()),
                seen_as: None,
                inner: None,
            }),
            addresses: vec!["100.77.3.9".parse().unwrap(), "fd4e:9a1c::9".parse().unwrap()],
            interface: Some("culvert0".into()),
            protection: Some(Protection { ipv4: true, ipv6: true, dns: true, kill_switch: true }),
            kill_switch: Some(Blocking { mode: KillSwitch::Auto, in_force: true, allow_lan: true }),
            path: Some(Path {
                rtt_ms: 23.1,
                loss_percent: 0.01,
                mtu_bytes: 1380,
                path_mtu_bytes: 1413,
                black_holes: 0,
            }),
            traffic: Some(Traffic {
                received_bytes: 1_200_000_000,
                sent_bytes: 96_000_000,
                received_packets: 1,
                sent_packets: 1,
                dropped: Dropped {
                    sent: [("too_big".to_owned(), 2)].into(),
                    received: [("unjoined".to_owned(), 1)].into(),
                },
                split_packets: 0,
                too_big_answers: 2,
            }),
            certificate: Some(Certificate { device: "anna".into(), until }),
            notes: vec![],
            helper: "0.1.0".into(),
        }
    }
}
