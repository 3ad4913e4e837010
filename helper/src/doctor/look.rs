//! Looks at everything that a diagnosis needs, within its time. Changes nothing on this machine; a gateway that is
//! asked whether it admits this device, which happens at rest only, sees a session that ends at once.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use culvert_protocol::{Path, Problem, State, Timestamp, code};
use culvert_tunnel::close::{Close, Down};
use culvert_tunnel::control::{self, FromServer};
use culvert_tunnel::shard::RunningShard;
use culvert_tunnel::shard::mailbox::{Command, Event, LinkId};
use culvert_tunnel::transport::{ClientTransport, Tuning};
use ipnet::IpNet;
use tokio::io::Interest;
use tokio::net::UdpSocket;
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout, timeout_at};

use super::{Access, Family, Heard, Name, Network, Reach, Seen, Session, Way};
use crate::device::Tun;
use crate::dial::{self, Candidate, HANDSHAKE_WITHIN, cause_of_down, cause_of_refusal};
use crate::names::Names;
use crate::outside;
use crate::portal;
use crate::profile::Profile;
use crate::routes::{self, LocalNet};
use crate::underlay::is_tunnel;

/// For the addresses of the gateway's names.
const NAMES_WITHIN: Duration = Duration::from_secs(3);
/// For the gateway's decision.
const DECISION_WITHIN: Duration = Duration::from_secs(3);
/// For the refusal of a certificate, which comes after the handshake (RFC 8446 section 4.4.2.4 and its end).
const REFUSAL_WITHIN: Duration = Duration::from_millis(500);
/// For answers through the tunnel.
const INSIDE_WITHIN: Duration = Duration::from_secs(2);
/// Addresses asked.
const ADDRESSES: usize = 8;
/// Where ordinary packets to the internet go: documentation addresses (RFC 5737, RFC 3849). Nothing is sent there.
const ANYWHERE: [SocketAddr; 2] = [
    SocketAddr::new(IpAddr::V4(Ipv4Addr::new(198, 51, 100, 1)), 9),
    SocketAddr::new(IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1)), 9),
];
/// a.root-servers.net and d.root-servers.net (root.hints of IANA): whoever is on the internet may ask them.
const ROOT_SERVERS: [IpAddr; 2] = [IpAddr::V4(Ipv4Addr::new(198, 41, 0, 4)), IpAddr::V4(Ipv4Addr::new(199, 7, 91, 13))];

/// What the helper knows before it looks.
#[derive(Debug)]
pub struct Known {
    /// What the supervisor says.
    pub state: State,
    /// No connection is wanted, so that the gateway may be asked.
    pub at_rest: bool,
    /// The profile that a connection would use; `None` when there is none.
    pub profile: Option<Result<Profile, Problem>>,
    /// Who knows the gateway's names.
    pub names: Names,
    /// Marks packets that go beside the tunnel.
    pub fwmark: u32,
    /// The session that is up.
    pub link: Option<Link>,
}

/// What the helper knows of the session that is up.
#[derive(Debug)]
pub struct Link {
    /// Where the gateway is.
    pub remote: SocketAddr,
    /// The tunnel interface.
    pub interface: String,
    /// Measured by the link.
    pub path: Option<Path>,
    /// QUIC packets sent so far.
    pub sent_packets: u64,
    /// The gateway's name servers.
    pub name_servers: Vec<IpAddr>,
    /// What the tunnel carries; empty for everything.
    pub only: Vec<IpNet>,
    /// Names are looked up at the gateway.
    pub names_inside: bool,
    /// The kill switch should be in force, and is not.
    pub unguarded: Option<Problem>,
    /// The gateway's clock less ours, at the moment of its welcome.
    pub clock_ahead: Option<time::Duration>,
}

/// What a gateway that was asked said.
struct Asked {
    reach: Vec<Reach>,
    admission: Option<Result<(), Problem>>,
    clock_ahead: Option<time::Duration>,
}

/// Looks at everything.
pub async fn look(known: Known) -> Seen {
    let now = Timestamp::now_utc();
    let profile = known.profile.as_ref().and_then(|profile| profile.as_ref().ok());
    let network = network(known.fwmark);
    let has_network = !network.ways.is_empty();
    let (names, addresses) = match profile {
        Some(profile) if has_network => names(profile, &known.names).await,
        _ => (vec![], vec![]),
    };
    let asked = async {
        match (&known.link, profile) {
            (Some(link), _) => Asked {
                reach: vec![Reach { address: link.remote, heard: Heard::Gateway }],
                admission: Some(Ok(())),
                clock_ahead: link.clock_ahead,
            },
            (None, Some(profile)) => ask(profile, &addresses, known.at_rest, known.fwmark).await,
            (None, None) => Asked { reach: vec![], admission: None, clock_ahead: None },
        }
    };
    let portal = async {
        if known.link.is_some() || !has_network {
            return None;
        }
        let gateway = addresses.first().map(|candidate| candidate.address.ip());
        let host = profile.and_then(|profile| profile.endpoints.first()).map(|endpoint| dial::host(endpoint));
        Some(portal::look(gateway.zip(host), known.fwmark).await)
    };
    let session = async {
        match &known.link {
            Some(link) => Some(session(link).await),
            None => None,
        }
    };
    let (mut asked, portal, session) = tokio::join!(asked, portal, session);
    // What keeps an attempt from succeeding is known to it.
    if asked.admission.is_none()
        && let State::Failed { problem }
        | State::Blocked { cause: problem }
        | State::Reconnecting { cause: problem, .. } = &known.state
        && (300..400).contains(&problem.code.0)
    {
        asked.admission = Some(Err(problem.clone()));
    }
    Seen {
        now,
        state: known.state,
        profile: access(known.profile.as_ref()),
        network,
        portal,
        names,
        reach: asked.reach,
        admission: asked.admission,
        clock_ahead: asked.clock_ahead,
        session,
    }
}

fn access(profile: Option<&Result<Profile, Problem>>) -> Access {
    let profile = match profile {
        None => return Access::None,
        Some(Err(problem)) => return Access::Damaged(problem.clone()),
        Some(Ok(profile)) => profile,
    };
    match profile.facts() {
        Ok(facts) => Access::Certificate {
            gateway: profile.gateway.clone(),
            device: profile.device_name.clone(),
            from: facts.not_before.into(),
            until: facts.not_after.into(),
        },
        Err(error) => Access::Damaged(dial::damaged(&error)),
    }
}

fn network(fwmark: u32) -> Network {
    let interfaces = if_addrs::get_if_addrs().unwrap_or_default();
    let ways = ANYWHERE.iter().filter_map(|&to| way(to, Some(fwmark), &interfaces)).collect();
    let local = routes::local_networks(is_tunnel).into_iter().map(|LocalNet { net, interface }| (net, interface));
    Network { ways, local: local.collect() }
}

/// Where a packet there would leave from: the kernel chooses a route and an address when a UDP socket is
/// connected, and sends nothing (connect(2)).
fn way(to: SocketAddr, fwmark: Option<u32>, interfaces: &[if_addrs::Interface]) -> Option<Way> {
    let unspecified: IpAddr = if to.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    let socket = std::net::UdpSocket::bind((unspecified, 0)).ok()?;
    if let Some(fwmark) = fwmark {
        outside::send(&socket, fwmark).ok()?;
    }
    socket.connect(to).ok()?;
    let source = socket.local_addr().ok()?.ip();
    let name = interfaces.iter().find(|interface| interface.ip() == source).map(|interface| interface.name.clone())?;
    Some(Way { is_tunnel: is_tunnel(&name), interface: name, source })
}

async fn names(profile: &Profile, names: &Names) -> (Vec<Name>, Vec<Candidate>) {
    let mut found = Vec::new();
    let mut all: Vec<Candidate> = Vec::new();
    let due = Instant::now() + NAMES_WITHIN;
    for (place, endpoint) in profile.endpoints.iter().enumerate() {
        let addresses = match timeout_at(due, names.lookup(endpoint)).await {
            Ok(Ok(addresses)) => addresses,
            Ok(Err(_)) | Err(_) => vec![],
        };
        found.push(Name {
            host: dial::host(endpoint).to_owned(),
            addresses: addresses.iter().map(SocketAddr::ip).collect(),
        });
        for address in addresses {
            if all.iter().all(|known| known.address != address) && all.len() < ADDRESSES {
                all.push(Candidate { address, endpoint: place });
            }
        }
    }
    (found, all)
}

async fn ask(profile: &Profile, candidates: &[Candidate], may_ask: bool, fwmark: u32) -> Asked {
    let mut refusals = JoinSet::new();
    for &Candidate { address, .. } in candidates {
        refusals.spawn(async move { (address, refusal(address, fwmark).await) });
    }
    // Before the handshakes, and more than once: hosts answer few packets a second that nobody listens for (RFC 1812
    // section 4.3.2.8).
    let refusals = refusals.join_all().await;
    let mut asked = handshakes(profile, candidates, may_ask, fwmark).await;
    for (address, refusal) in refusals {
        for reach in asked.reach.iter_mut().filter(|reach| reach.address == address) {
            if let (Heard::Nothing(_), Some(why)) = (&reach.heard, &refusal) {
                reach.heard = why.clone();
            }
        }
    }
    asked
}

/// Why nothing can come back from an address, if the operating system knows: one byte that no gateway answers.
async fn refusal(to: SocketAddr, fwmark: u32) -> Option<Heard> {
    let of = |error: &io::Error| match error.kind() {
        io::ErrorKind::ConnectionRefused => Some(Heard::Closed),
        io::ErrorKind::PermissionDenied => Some(Heard::Filtered),
        io::ErrorKind::NetworkUnreachable | io::ErrorKind::HostUnreachable => Some(Heard::NoWay),
        _ => None,
    };
    let unspecified: IpAddr = if to.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    let socket = UdpSocket::bind((unspecified, 0)).await.ok()?;
    outside::send(&socket, fwmark).ok()?;
    if let Err(error) = socket.connect(to).await {
        return of(&error);
    }
    for _ in 0..3 {
        if let Err(error) = socket.send(&[0]).await {
            return of(&error);
        }
        // An error wakes nobody who only waits to read (udp(7), poll(2)).
        let _ = timeout(REFUSAL_WITHIN, socket.ready(Interest::READABLE | Interest::ERROR)).await;
        if let Ok(Some(error)) = socket.take_error() {
            return of(&error);
        }
    }
    None
}

/// Dials every address at once on a shard of its own; asks the first gateway for its decision if that may be.
async fn handshakes(profile: &Profile, candidates: &[Candidate], may_ask: bool, fwmark: u32) -> Asked {
    let silent = |to: &Candidate| Reach { address: to.address, heard: Heard::Nothing(HANDSHAKE_WITHIN) };
    let mut asked = Asked { reach: candidates.iter().map(silent).collect(), admission: None, clock_ahead: None };
    // What was not asked has not been silent.
    let (Ok(transport), Ok(mut shard)) = (transport(profile), dial::start_shard(fwmark)) else {
        asked.reach.clear();
        return asked;
    };
    converse(&mut shard, profile, candidates, &transport, may_ask && !profile.is_locked(), &mut asked).await;
    let stop = Command::Stop { code: Close::Goodbye, reason: String::new() };
    let _ = shard.handle.send(stop).await; // an ended thread needs no stopping
    while shard.events.recv().await.is_some() {}
    asked
}

/// Without the key, which only its user's keychain opens, as one who enrols: that shows who answers, too.
fn transport(profile: &Profile) -> Result<ClientTransport, Problem> {
    let damaged = || Problem::new(code::UNKNOWN);
    if profile.is_locked() {
        return ClientTransport::enrolment(profile.pins(), Tuning::default()).map_err(|_| damaged());
    }
    dial::transport(profile)
}

async fn converse(
    shard: &mut RunningShard<Tun>,
    profile: &Profile,
    candidates: &[Candidate],
    transport: &ClientTransport,
    may_ask: bool,
    asked: &mut Asked,
) {
    let mut links: Vec<Option<LinkId>> = Vec::new();
    for (reach, candidate) in asked.reach.iter_mut().zip(candidates) {
        let server_name = profile.server_name(candidate.endpoint).to_owned();
        let dialled = shard.handle.dial(reach.address, server_name, transport.clone()).await;
        if dialled.is_err() {
            reach.heard = Heard::NoWay;
        }
        links.push(dialled.ok());
    }
    let mut open = links.iter().flatten().count();
    let mut due = Instant::now() + HANDSHAKE_WITHIN;
    let mut first: Option<LinkId> = None;
    while open > 0 && asked.admission.is_none() {
        let Ok(Some(event)) = timeout_at(due, shard.events.recv()).await else { break };
        match event {
            Event::Established(established) => {
                let Some(place) = links.iter().position(|link| *link == Some(established.link)) else { continue };
                asked.reach[place].heard = Heard::Gateway;
                if first.is_some() {
                    continue;
                }
                first = Some(established.link);
                due = Instant::now() + if may_ask { DECISION_WITHIN } else { REFUSAL_WITHIN };
                if may_ask && let Ok(frame) = control::encode(&dial::hello(profile)) {
                    // Its silence says the rest.
                    let _ = shard.handle.send(Command::Send { link: established.link, frame }).await;
                }
            }
            Event::Frame { link, payload } if Some(link) == first => match control::decode::<FromServer>(&payload) {
                Ok(FromServer::Welcome(welcome)) => {
                    let now = Timestamp::now_utc().unix_timestamp();
                    asked.clock_ahead = welcome.time.map(|time| time::Duration::seconds(time.saturating_sub(now)));
                    asked.admission = Some(Ok(()));
                }
                Ok(FromServer::Refused(refused)) => asked.admission = Some(Err(cause_of_refusal(&refused).problem)),
                _ => {}
            },
            Event::Closed { link, down, remote, .. } => {
                let Some(place) = links.iter().position(|known| *known == Some(link)) else { continue };
                open -= 1;
                let problem = cause_of_down(&down, remote).problem;
                if Some(link) == first {
                    asked.admission = Some(Err(problem));
                } else if !matches!(down, Down::NoAnswer | Down::TimedOut) {
                    // A refusal of our certificate comes from one that has proven nothing yet, so it is its answer.
                    asked.reach[place].heard = Heard::Other(problem);
                }
            }
            _ => {}
        }
    }
}

async fn session(link: &Link) -> Session {
    let interfaces = if_addrs::get_if_addrs().unwrap_or_default();
    let families = [Family::V4, Family::V6];
    let ordinary = families.into_iter().zip(ANYWHERE.map(|to| way(to, None, &interfaces))).collect();
    let name_servers = async {
        let mut answers = Vec::new();
        for &server in link.name_servers.iter().take(3) {
            answers.push((server, answers_names(server).await));
        }
        answers
    };
    let internet = async {
        if !link.only.is_empty() {
            return None;
        }
        let (a, d) = tokio::join!(answers_names(ROOT_SERVERS[0]), answers_names(ROOT_SERVERS[1]));
        Some(a || d)
    };
    let (name_servers, internet) = tokio::join!(name_servers, internet);
    Session {
        interface: link.interface.clone(),
        path: link.path,
        sent_packets: link.sent_packets,
        name_servers,
        internet,
        ordinary,
        only: link.only.clone(),
        names_inside: link.names_inside,
        unguarded: link.unguarded.clone(),
    }
}

/// Whether a name server answers anything at all: it is asked for the root's own servers (RFC 1035 section 4.1).
async fn answers_names(server: IpAddr) -> bool {
    // Header: id, flags RD, one question; then the root's name, type NS, class IN.
    const QUESTION: [u8; 17] = [0x63, 0x76, 0x01, 0x00, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 2, 0, 1];
    let conversation = async {
        let unspecified: IpAddr =
            if server.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
        let socket = UdpSocket::bind((unspecified, 0)).await?;
        socket.connect((server, 53)).await?;
        for _ in 0..2 {
            socket.send(&QUESTION).await?;
            let mut answer = [0; 512];
            if let Ok(received) = timeout(INSIDE_WITHIN / 2, socket.recv(&mut answer)).await {
                return Ok(received? >= 12 && answer[..2] == QUESTION[..2]);
            }
        }
        Ok::<bool, io::Error>(false)
    };
    conversation.await.unwrap_or(false)
}
