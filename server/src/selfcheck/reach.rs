//! Looks beyond this host: whether the endpoint leads here and answers as this gateway, and whether what comes
//! out of the tunnel reaches the internet.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use culvert_tunnel::close::{Close, Down};
use culvert_tunnel::device::linux::Tun;
use culvert_tunnel::identity::Pin;
use culvert_tunnel::shard::cid::CidKey;
use culvert_tunnel::shard::engine::Role;
use culvert_tunnel::shard::mailbox::{Command, Event};
use culvert_tunnel::shard::{ShardConfig, spawn};
use culvert_tunnel::socket::{self, SocketOptions};
use culvert_tunnel::transport::{ClientTransport, Tuning};
use tokio::net::{UdpSocket, lookup_host};
use tokio::time::timeout;

use super::{Finding, judge};
use crate::settings::Settings;

/// For a name's addresses, a handshake, an answer.
const PATIENCE: Duration = Duration::from_secs(3);
/// a.root-servers.net and b.root-servers.net: hosts that are there for everybody to ask (as `culvert doctor` does).
const ROOTS: [(IpAddr, IpAddr); 2] = [
    (IpAddr::V4(Ipv4Addr::new(198, 41, 0, 4)), IpAddr::V6(Ipv6Addr::new(0x2001, 0x503, 0xba3e, 0, 0, 0, 0x2, 0x30))),
    (IpAddr::V4(Ipv4Addr::new(170, 247, 170, 2)), IpAddr::V6(Ipv6Addr::new(0x2801, 0x1b8, 0x10, 0, 0, 0, 0, 0xb))),
];
/// A question for the name servers of the root (RFC 1035 section 4.1), without recursion.
const QUESTION: [u8; 17] = [0xc1, 0x7e, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 2, 0, 1];

/// The endpoint's name, and where it leads.
pub async fn endpoint(settings: &Settings, own: &[IpAddr]) -> (Finding, Vec<SocketAddr>) {
    let target = settings.endpoint.with_port(settings.port);
    let found = match timeout(PATIENCE, lookup_host(target.clone())).await {
        Ok(Ok(addresses)) => Ok(addresses.collect::<Vec<SocketAddr>>()),
        Ok(Err(error)) => Err(error.to_string()),
        Err(_) => Err("no name server answers".to_owned()),
    };
    let addresses = found.as_ref().map(|found| found.iter().map(SocketAddr::ip).collect()).map_err(Clone::clone);
    (judge::endpoint(&settings.endpoint.host, &addresses, own), found.unwrap_or_default())
}

/// A handshake with the gateway by its public name, as a client's first one.
pub async fn handshake(settings: &Settings, pin: Pin, addresses: &[SocketAddr]) -> Finding {
    const CHECK: &str = "reach";
    let Some(address) = addresses.first().copied() else {
        return Finding::warn(CHECK, "Without an address of the endpoint nobody can try it");
    };
    let port = address.port();
    match dial(settings, pin, address).await {
        Ok(()) => Finding::pass(CHECK, format!("The gateway answers at UDP {address}")),
        Err(Down::Tls { .. }) => {
            Finding::fail(CHECK, format!("Somebody else answers at UDP {address}: forward UDP {port} to this host"))
        }
        Err(_) => Finding::warn(
            CHECK,
            format!(
                "Nobody answers at UDP {address} from this host; behind NAT that may be so. Ask a client, and open {port}/udp in the firewall of your provider"
            ),
        ),
    }
}

async fn dial(settings: &Settings, pin: Pin, address: SocketAddr) -> Result<(), Down> {
    let failed = || Down::Local(Close::Internal);
    let any: IpAddr = if address.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    let socket = socket::bind((any, 0).into(), SocketOptions::default()).map_err(|_| failed())?;
    let transport = ClientTransport::enrolment(vec![pin], Tuning::default()).map_err(|_| failed())?;
    let config = ShardConfig::<Tun> { socket, device: None, role: Role::Client, cids: CidKey::random() };
    let mut shard = spawn(vec![config]).map_err(|_| failed())?.pop().ok_or_else(failed)?;
    let dialled = shard.handle.dial(address, settings.endpoint.host.clone(), transport).await;
    let told = async {
        dialled?;
        loop {
            match shard.events.recv().await {
                Some(Event::Established(_)) => return Ok(()),
                Some(Event::Closed { down, .. }) => return Err(down),
                Some(_) => {}
                None => return Err(failed()),
            }
        }
    };
    let outcome = timeout(PATIENCE, told).await.unwrap_or(Err(Down::NoAnswer));
    let _ = shard.handle.send(Command::Stop { code: Close::Goodbye, reason: String::new() }).await; // may have ended
    outcome
}

/// What comes from the gateway's own inner address goes the way of the clients' packets, translation included.
pub async fn internet(settings: &Settings, table: &str) -> Vec<Finding> {
    const CHECK: &str = "internet";
    let gateway = settings.pool.gateway();
    let families = [Some(("IPv4", IpAddr::V4(gateway.ipv4))), gateway.ipv6.map(|ipv6| ("IPv6", IpAddr::V6(ipv6)))];
    let mut findings = Vec::new();
    for (family, own) in families.into_iter().flatten() {
        let mut answered = false;
        for (ipv4, ipv6) in ROOTS {
            answered = answered || ask(own, if own.is_ipv4() { ipv4 } else { ipv6 }).await.is_some();
        }
        findings.push(if answered {
            Finding::pass(CHECK, format!("What leaves the tunnel reaches the internet over {family}"))
        } else if family == "IPv6" {
            // Many hosts have none; a client then uses IPv4.
            Finding::warn(CHECK, format!("Nothing answers {own} from the internet over IPv6; clients use IPv4"))
        } else {
            let sentence = format!(
                "Nothing answers {own} from the internet: a firewall, the translation or the uplink stands in the way"
            );
            Finding::fail(CHECK, sentence).repair(format!("nft list table inet {table}; nft list ruleset"))
        });
    }
    findings
}

async fn ask(own: IpAddr, server: IpAddr) -> Option<()> {
    let socket = UdpSocket::bind((own, 0)).await.ok()?;
    socket.connect((server, 53)).await.ok()?;
    let mut answer = [0; 512];
    for _ in 0..2 {
        socket.send(&QUESTION).await.ok()?;
        if let Ok(Ok(len)) = timeout(PATIENCE / 2, socket.recv(&mut answer)).await
            && len >= QUESTION.len()
            && answer.get(..2) == QUESTION.get(..2)
            && answer[2] & 0x80 != 0
        {
            return Some(());
        }
    }
    None
}
