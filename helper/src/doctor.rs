//! What stands in the way of a connection: from what was seen ([`Seen`]) to fifteen findings. Pure.
//!
//! Each finding says what was measured; what is only the most likely reason is marked so. Not here: how it is
//! measured (`doctor/look`), in which order findings count ([`culvert_protocol::Diagnosis`]).

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use culvert_protocol::{Check, CheckId, Finding, Path, Problem, State, Timestamp, code};
use ipnet::IpNet;
use time::format_description::BorrowedFormatItem;
use time::macros::format_description;

use crate::portal::Sight;

pub mod look;

/// Access that ends within this time is told.
const ENDS_SOON: Duration = Duration::from_secs(14 * 24 * 3600);
/// A clock that is off by more than this makes certificates fail sooner or later.
const CLOCK_OFF: Duration = Duration::from_secs(5 * 60);
/// A loss that people notice.
const LOSSY_PERCENT: f64 = 5.0;
/// Too few packets to say anything of their loss.
const FEW_PACKETS: u64 = 50;
/// What a path with an MTU of 1,500 carries in UDP over IPv6.
const ORDINARY_UDP_BYTES: u16 = 1452;

const DAY: &[BorrowedFormatItem<'_>] = format_description!("[day padding:none] [month repr:long] [year]");

/// Everything that was seen. What was not looked at is `None`.
#[derive(Clone, Debug)]
pub struct Seen {
    /// When.
    pub now: Timestamp,
    /// What the supervisor says.
    pub state: State,
    /// The profile that a connection would use.
    pub profile: Access,
    /// What leads to the gateway, or anywhere.
    pub network: Network,
    /// What the network shows to a browser.
    pub portal: Option<Sight>,
    /// The gateway's names, and what they lead to here.
    pub names: Vec<Name>,
    /// What each of its addresses said.
    pub reach: Vec<Reach>,
    /// What the gateway decided, if it was asked.
    pub admission: Option<Result<(), Problem>>,
    /// The gateway's clock less ours, at the moment of its welcome.
    pub clock_ahead: Option<time::Duration>,
    /// Of the session, while there is one.
    pub session: Option<Session>,
}

/// This machine's access to a gateway.
#[derive(Clone, Debug)]
pub enum Access {
    /// It has none.
    None,
    /// There is one that cannot be used.
    Damaged(Problem),
    /// A certificate.
    Certificate {
        /// The gateway's display name.
        gateway: String,
        /// What this device is called there.
        device: String,
        /// It counts from here.
        from: Timestamp,
        /// And ends here.
        until: Timestamp,
    },
}

/// What the operating system says of the way out.
#[derive(Clone, Debug, Default)]
pub struct Network {
    /// Where packets beside the tunnel leave from, one per family that has a way.
    pub ways: Vec<Way>,
    /// Networks that this machine is on, with their interfaces.
    pub local: Vec<(IpNet, String)>,
}

/// One way out.
#[derive(Clone, Debug)]
pub struct Way {
    /// The interface.
    pub interface: String,
    /// This machine's address there.
    pub source: IpAddr,
    /// The interface belongs to a tunnel of somebody else.
    pub is_tunnel: bool,
}

/// A name of the gateway.
#[derive(Clone, Debug)]
pub struct Name {
    /// As enrolled, without its port.
    pub host: String,
    /// Its addresses; none when it has none here.
    pub addresses: Vec<IpAddr>,
}

/// An address of the gateway.
#[derive(Clone, Debug)]
pub struct Reach {
    /// Which one.
    pub address: SocketAddr,
    /// What it said.
    pub heard: Heard,
}

/// What came back from an address.
#[derive(Clone, Debug)]
pub enum Heard {
    /// A handshake that proves that it is the gateway.
    Gateway,
    /// An answer that proves that it is not, or that something is amiss with it.
    Other(Problem),
    /// Nothing within the time.
    Nothing(Duration),
    /// The machine there says that nothing listens (ICMP port unreachable).
    Closed,
    /// This machine's own filter refused to send.
    Filtered,
    /// This machine has no way there.
    NoWay,
}

/// A session that is up.
#[derive(Clone, Debug)]
pub struct Session {
    /// The tunnel interface.
    pub interface: String,
    /// Measured by the link.
    pub path: Option<Path>,
    /// QUIC packets sent so far.
    pub sent_packets: u64,
    /// The gateway's name servers, and whether each answered.
    pub name_servers: Vec<(IpAddr, bool)>,
    /// Whether something on the internet answered through the tunnel; `None` for a tunnel to chosen networks.
    pub internet: Option<bool>,
    /// Where ordinary packets to the internet leave from, one per family; `None` for a family that is refused.
    pub ordinary: Vec<(Family, Option<Way>)>,
    /// What the tunnel carries: everything, or these networks.
    pub only: Vec<IpNet>,
    /// Names are looked up at the gateway, as it wants.
    pub names_inside: bool,
    /// The kill switch should be in force, and is not.
    pub unguarded: Option<Problem>,
}

/// A family of addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

/// The findings on everything but the helper's version, which only its caller can compare.
pub fn examine(seen: &Seen) -> Vec<Check> {
    let findings = [
        (CheckId::Helper, Finding::pass(concat!("Version ", env!("CARGO_PKG_VERSION"), " is running"))),
        (CheckId::Enrolment, enrolment(&seen.profile, seen.now)),
        (CheckId::Network, network(&seen.network)),
        (CheckId::Portal, portal(seen)),
        (CheckId::Clock, clock(seen)),
        (CheckId::Name, name(seen)),
        (CheckId::Reach, reach(seen)),
        (CheckId::Identity, identity(seen)),
        (CheckId::Admission, admission(seen)),
        (CheckId::Routes, routes(seen)),
        (CheckId::Echo, of_session(seen, echo)),
        (CheckId::Mtu, of_session(seen, mtu)),
        (CheckId::Dns, of_session(seen, dns)),
        (CheckId::Internet, of_session(seen, internet)),
        (CheckId::Leaks, of_session(seen, leaks)),
    ];
    findings.into_iter().map(|(check, finding)| Check { check, finding }).collect()
}

/// The sentence for a diagnosis without a failure or a doubt.
pub fn well(seen: &Seen) -> String {
    match (&seen.profile, &seen.session) {
        (Access::Certificate { gateway, .. }, Some(_)) => format!("Connected to {gateway}, and nothing is amiss"),
        (Access::Certificate { gateway, .. }, None) => {
            format!("Nothing stands in the way of a connection to {gateway}")
        }
        _ => "Nothing is amiss".into(),
    }
}

fn enrolment(access: &Access, now: Timestamp) -> Finding {
    match access {
        Access::None => of_problem(&Problem::new(code::NOT_ENROLLED)),
        Access::Damaged(problem) => of_problem(problem),
        Access::Certificate { until, .. } if *until <= now => {
            let problem = Problem::new(code::EXPIRED);
            Finding::fail(code::EXPIRED, format!("Access expired on {}", day(*until)), problem.hint)
        }
        Access::Certificate { gateway, until, .. } if *until - now < ENDS_SOON => {
            Finding::warn(format!("Access to {gateway} ends on {}", day(*until)))
                .act("Connect before then, which renews it, or ask for a new invitation")
        }
        Access::Certificate { gateway, device, until, .. } => {
            Finding::pass(format!("Enrolled with {gateway} as {device}; access ends on {}", day(*until)))
        }
    }
}

fn network(network: &Network) -> Finding {
    if network.ways.is_empty() {
        return of_problem(&Problem::new(code::NO_NETWORK));
    }
    let ways: Vec<String> = network.ways.iter().map(|way| format!("{} ({})", way.source, way.interface)).collect();
    Finding::pass(format!("Packets can leave from {}", ways.join(" and ")))
}

fn portal(seen: &Seen) -> Finding {
    match &seen.portal {
        _ if seen.network.ways.is_empty() => Finding::not_checked("There is no network"),
        None => Finding::not_checked("The tunnel is up, so nothing is in its way"),
        Some(Sight::Clear) => Finding::pass("This network shows no sign-in page"),
        Some(Sight::Portal(page)) if page.is_certain => {
            Finding::fail(code::PORTAL, "This network needs a sign-in first", format!("Open {}", page.url))
        }
        Some(Sight::Portal(page)) => {
            let sentence = format!("A web page at {} answers in place of the gateway", page.url);
            Finding::warn(sentence).inferred().act(format!("If it is this network's sign-in page, open {}", page.url))
        }
    }
}

fn clock(seen: &Seen) -> Finding {
    const ACT: &str = "Set the date and time";
    if let Some(ahead) = seen.clock_ahead {
        return match ahead.unsigned_abs() {
            off if off > CLOCK_OFF => {
                let which = if ahead.is_positive() { "behind" } else { "ahead of" };
                let sentence = format!("This clock is {} {which} the gateway's", span(off));
                Finding::fail(code::CLOCK, sentence, ACT)
            }
            off => Finding::pass(format!("This clock and the gateway's differ by {}", span(off))),
        };
    }
    match &seen.profile {
        Access::Certificate { from, .. } if *from > seen.now => {
            let behind = (*from - seen.now).unsigned_abs();
            let sentence = format!("This clock is at least {} behind: access began later than now", span(behind));
            Finding::fail(code::CLOCK, sentence, ACT)
        }
        _ if seen.session.is_some() => Finding::pass("The gateway's certificate counts by this clock"),
        Access::Certificate { .. } => Finding::pass("Nothing contradicts this clock").inferred(),
        _ => Finding::not_checked("There is nothing to compare the clock with"),
    }
}

fn name(seen: &Seen) -> Finding {
    if seen.names.is_empty() {
        return Finding::not_checked(if seen.network.ways.is_empty() {
            "There is no network"
        } else {
            "There is no gateway to look up"
        });
    }
    let (found, missing): (Vec<&Name>, Vec<&Name>) = seen.names.iter().partition(|name| !name.addresses.is_empty());
    let list = |names: &[&Name]| names.iter().map(|name| name.host.as_str()).collect::<Vec<_>>().join(", ");
    if found.is_empty() {
        let hint = Problem::new(code::NAME).hint;
        return Finding::fail(code::NAME, format!("{} has no address on this network", list(&missing)), hint);
    }
    let addresses: Vec<String> = found.iter().flat_map(|name| &name.addresses).map(ToString::to_string).collect();
    let sentence = format!("{} is at {}", list(&found), addresses.join(", "));
    if missing.is_empty() {
        Finding::pass(sentence)
    } else {
        Finding::warn(format!("{sentence}; {} has no address on this network", list(&missing)))
    }
}

fn reach(seen: &Seen) -> Finding {
    if let Some(Reach { address, .. }) = answered(seen) {
        let silent: Vec<String> =
            seen.reach.iter().filter(|reach| !is_answer(&reach.heard)).map(|reach| reach.address.to_string()).collect();
        let sentence = format!("{address} answers over UDP");
        return if silent.is_empty() {
            Finding::pass(sentence)
        } else {
            Finding::warn(format!("{sentence}; {} does not", silent.join(", ")))
        };
    }
    let Some(first) = seen.reach.first() else { return Finding::not_checked("No address was asked") };
    let addresses: Vec<String> = seen.reach.iter().map(|reach| reach.address.to_string()).collect();
    let addresses = addresses.join(", ");
    if let Some(reach) = seen.reach.iter().find(|reach| matches!(reach.heard, Heard::Closed)) {
        let sentence = format!("Nothing listens at {}: the machine there says so", reach.address);
        return Finding::fail(
            code::NO_ANSWER,
            sentence,
            "Only the administrator can start the gateway, or open its port",
        );
    }
    match first.heard {
        Heard::Filtered => {
            let problem = Problem::new(code::FILTER);
            Finding::fail(
                code::FILTER,
                format!("This machine's own filter refuses packets to {addresses}"),
                problem.hint,
            )
        }
        Heard::NoWay => {
            let sentence = format!("This machine has no route to {addresses}");
            Finding::fail(
                code::NO_NETWORK,
                sentence,
                "Another network, or one with the other family of addresses, may have one",
            )
        }
        Heard::Nothing(within) => {
            let sentence = format!(
                "No answer from {addresses} within {} s: the gateway is down, or this network blocks UDP",
                within.as_secs()
            );
            Finding::fail(
                code::NO_ANSWER,
                sentence,
                "Try another network; if that does not help, tell the administrator",
            )
        }
        Heard::Gateway | Heard::Other(_) | Heard::Closed => Finding::not_checked("Not looked at"),
    }
}

fn identity(seen: &Seen) -> Finding {
    match answered(seen).map(|reach| &reach.heard) {
        Some(Heard::Other(problem)) => of_problem(problem),
        Some(_) => Finding::pass("The gateway has proven that it is the one this device enrolled with"),
        None => Finding::not_checked("No gateway has answered"),
    }
}

fn admission(seen: &Seen) -> Finding {
    match &seen.admission {
        Some(Ok(())) => Finding::pass("The gateway admits this device"),
        Some(Err(problem)) => of_problem(problem),
        None => Finding::not_checked("The gateway was not asked"),
    }
}

fn routes(seen: &Seen) -> Finding {
    if let Some(way) = seen.network.ways.iter().find(|way| way.is_tunnel) {
        let sentence = format!("Packets to the gateway go through {}, another program's tunnel", way.interface);
        return Finding::warn(sentence).act("Disconnect the other VPN if this one does not work");
    }
    let only = seen.session.as_ref().map_or(&[][..], |session| &session.only);
    let clash = seen.network.local.iter().find_map(|(local, interface)| {
        let inner = only.iter().find(|net| net.prefix_len() > 0 && (net.contains(local) || local.contains(*net)))?;
        Some((local, interface, inner))
    });
    if let Some((local, interface, inner)) = clash {
        let sentence = format!("{local} on {interface} and {inner} behind the gateway use the same addresses");
        return Finding::fail(code::OVERLAP, sentence, Problem::new(code::OVERLAP).hint);
    }
    if seen.state.is_connected() || seen.session.is_some() {
        return Finding::pass("No other program holds the routes, and no local network has the gateway's addresses");
    }
    Finding::pass("No other program holds the routes")
}

fn of_session(seen: &Seen, check: impl Fn(&Session) -> Finding) -> Finding {
    seen.session.as_ref().map_or_else(|| Finding::not_checked("Not connected"), check)
}

fn echo(session: &Session) -> Finding {
    let Some(path) = &session.path else { return Finding::not_checked("The link has no measurements yet") };
    if session.sent_packets >= FEW_PACKETS && path.loss_percent >= LOSSY_PERCENT {
        let sentence = format!(
            "Connected, but {:.0} % of the packets to the gateway were lost (round trip {:.0} ms)",
            path.loss_percent, path.rtt_ms
        );
        let hint = Problem::new(code::LOSSY).hint;
        return Finding { code: Some(code::LOSSY), ..Finding::warn(sentence).act(hint) };
    }
    Finding::pass(format!("Round trip {:.0} ms, {:.1} % lost", path.rtt_ms, path.loss_percent))
}

fn mtu(session: &Session) -> Finding {
    let Some(path) = &session.path else { return Finding::not_checked("The link has no measurements yet") };
    let sentence =
        format!("This network passes {} bytes of UDP; {} of them inside", path.path_mtu_bytes, path.mtu_bytes);
    if path.black_holes > 0 {
        return Finding::warn(format!(
            "{sentence}; large packets stopped crossing {} times, adjusted",
            path.black_holes
        ));
    }
    if path.path_mtu_bytes < ORDINARY_UDP_BYTES {
        Finding::pass(format!("{sentence}, adjusted"))
    } else {
        Finding::pass(sentence)
    }
}

fn dns(session: &Session) -> Finding {
    let (well, silent): (Vec<_>, Vec<_>) = session.name_servers.iter().partition(|(_, answers)| *answers);
    let list = |servers: &[&(IpAddr, bool)]| {
        servers.iter().map(|(address, _)| address.to_string()).collect::<Vec<_>>().join(", ")
    };
    match (well.len(), silent.len()) {
        (0, 0) => Finding::not_checked("The gateway names no name servers"),
        (_, 0) => Finding::pass(format!("{} answers", list(&well))),
        (0, _) => {
            let problem = Problem::new(code::GATEWAY_NAMES);
            Finding::fail(
                code::GATEWAY_NAMES,
                format!("The gateway answers, its name server {} does not", list(&silent)),
                problem.hint,
            )
        }
        _ => Finding::warn(format!("{} answers, {} does not", list(&well), list(&silent))),
    }
}

fn internet(session: &Session) -> Finding {
    match session.internet {
        None => Finding::not_checked("The tunnel carries chosen networks only"),
        Some(true) => Finding::pass("The internet answers through the gateway"),
        Some(false) => {
            let problem = Problem::new(code::GATEWAY_INTERNET);
            let sentence = "The gateway answers, the internet behind it does not (two root name servers were asked)";
            Finding::fail(code::GATEWAY_INTERNET, sentence, problem.hint).inferred()
        }
    }
}

fn leaks(session: &Session) -> Finding {
    if let Some(problem) = &session.unguarded {
        return of_problem(problem);
    }
    if !session.only.is_empty() {
        return Finding::not_checked("The tunnel carries chosen networks only");
    }
    for (family, way) in &session.ordinary {
        let name = if *family == Family::V4 { "IPv4" } else { "IPv6" };
        if let Some(way) = way.as_ref().filter(|way| way.interface != session.interface) {
            let sentence = format!("{name} traffic goes outside, through {}", way.interface);
            return Finding::fail(code::CONFLICT, sentence, "Disconnect other VPNs, then disconnect and connect again");
        }
    }
    if !session.names_inside && !session.name_servers.is_empty() {
        let sentence = "Names are looked up outside: another program has changed the resolver";
        return Finding::fail(code::CONFLICT, sentence, "Disconnect and connect again");
    }
    let refused: Vec<&str> = session
        .ordinary
        .iter()
        .filter(|(_, way)| way.is_none())
        .map(|(family, _)| if *family == Family::V4 { "IPv4" } else { "IPv6" })
        .collect();
    if refused.is_empty() {
        return Finding::pass(format!("IPv4 and IPv6 leave through {}", session.interface));
    }
    Finding::pass(format!("Everything leaves through {}; {} is refused", session.interface, refused.join(", ")))
}

/// The first address that answered, and was the gateway if one was.
fn answered(seen: &Seen) -> Option<&Reach> {
    let proven = seen.reach.iter().find(|reach| matches!(reach.heard, Heard::Gateway));
    proven.or_else(|| seen.reach.iter().find(|reach| is_answer(&reach.heard)))
}

fn is_answer(heard: &Heard) -> bool {
    matches!(heard, Heard::Gateway | Heard::Other(_))
}

fn of_problem(problem: &Problem) -> Finding {
    Finding::fail(problem.code, problem.cause.trim_end_matches('.'), problem.hint.trim_end_matches('.'))
}

fn day(at: Timestamp) -> String {
    at.format(DAY).unwrap_or_else(|_| at.to_string())
}

/// `2 h 5 min`; the two largest units.
fn span(time: Duration) -> String {
    let seconds = time.as_secs();
    match (seconds / 86_400, seconds / 3_600 % 24, seconds / 60 % 60) {
        (0, 0, 0) => format!("{seconds} s"),
        (0, 0, minutes) => format!("{minutes} min"),
        (0, hours, minutes) => format!("{hours} h {minutes} min"),
        (days, hours, _) => format!("{days} d {hours} h"),
    }
}

#[cfg(test)]
mod tests;
