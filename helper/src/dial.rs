//! What it takes to reach a gateway: addresses of its name, a marked socket, a shard; and what the
//! end of a link means to the user.

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::time::Duration;

use culvert_protocol::{Code, Problem, code};
use culvert_tunnel::close::{Close, Down, ECode};
use culvert_tunnel::control::{self, FromClient, Hello, Refused};
use culvert_tunnel::shard::cid::CidKey;
use culvert_tunnel::shard::engine::Role;
use culvert_tunnel::shard::{RunningShard, ShardConfig, spawn};
use culvert_tunnel::socket::{SocketOptions, bind};
use culvert_tunnel::transport::{ClientTransport, Tuning};
use tokio::time::timeout;

use crate::device::Tun;
use crate::names::Names;
use crate::outside;
use crate::profile::Profile;
use crate::supervisor::Cause;

/// How long a name server may take.
pub const RESOLVE_WITHIN: Duration = Duration::from_secs(5);
/// A candidate that is silent for this long gets the next one dialled beside it.
pub const DIAL_NEXT_AFTER: Duration = Duration::from_secs(1);
/// The last candidate's handshake must be complete within this time.
pub const HANDSHAKE_WITHIN: Duration = Duration::from_secs(5);
/// Addresses tried in one attempt.
const CANDIDATES: usize = 8;

/// An address to dial, and which of the profile's endpoints it belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Candidate {
    /// Where.
    pub address: SocketAddr,
    /// The endpoint's place in the profile; 0 is the preferred one.
    pub endpoint: usize,
}

/// The addresses of `host:port` endpoints, in their order, none twice.
///
/// # Errors
/// E103 when none has an address.
pub async fn resolve(endpoints: &[String], names: &Names) -> Result<Vec<Candidate>, Problem> {
    let mut found: Vec<Candidate> = Vec::new();
    for (place, endpoint) in endpoints.iter().enumerate() {
        match timeout(RESOLVE_WITHIN, names.lookup(endpoint)).await {
            Ok(Ok(addresses)) => {
                for address in addresses {
                    if found.iter().all(|known| known.address != address) && found.len() < CANDIDATES {
                        found.push(Candidate { address, endpoint: place });
                    }
                }
            }
            Ok(Err(error)) => tracing::debug!(endpoint, %error, "no address"),
            Err(_) => tracing::debug!(endpoint, "the name servers do not answer"),
        }
    }
    if found.is_empty() {
        let names: Vec<&str> = endpoints.iter().map(|endpoint| host(endpoint)).collect();
        let sentence = format!("{} has no address on this network", names.join(", "));
        return Err(Problem::new(code::NAME).because(sentence));
    }
    Ok(found)
}

/// The host of `host:port`, without brackets.
pub fn host(endpoint: &str) -> &str {
    let host = endpoint.rsplit_once(':').map_or(endpoint, |(host, _)| host);
    host.trim_start_matches('[').trim_end_matches(']')
}

/// Starts a client's shard on a socket whose packets carry `fwmark`.
///
/// # Errors
/// E407 when the process may not set a mark, else E408.
pub fn start_shard(fwmark: u32) -> Result<RunningShard<Tun>, Problem> {
    let socket = open_socket(fwmark).map_err(|error| system("A UDP socket cannot be opened", &error))?;
    let config = ShardConfig { socket, device: None, role: Role::Client, cids: CidKey::random() };
    let mut started = spawn(vec![config]).map_err(|error| system("The data path cannot be started", &error))?;
    started.pop().ok_or_else(|| Problem::new(code::INTERNAL))
}

/// A UDP socket whose packets carry `fwmark`.
///
/// # Errors
/// What the OS says.
pub fn open_socket(fwmark: u32) -> io::Result<UdpSocket> {
    let options = SocketOptions::default();
    let socket = match bind((Ipv6Addr::UNSPECIFIED, 0).into(), options) {
        Err(error) if error.kind() != io::ErrorKind::PermissionDenied => {
            bind((Ipv4Addr::UNSPECIFIED, 0).into(), options) // a kernel without IPv6
        }
        bound => bound,
    }?;
    outside::send(&socket, fwmark)?;
    Ok(socket)
}

/// The transport of a session: both ends prove who they are.
///
/// # Errors
/// E303 for an identity that cannot be used.
pub fn transport(profile: &Profile) -> Result<ClientTransport, Problem> {
    let credential = profile.credential().map_err(|error| damaged(&error))?;
    let authorities = profile.authorities().map_err(|error| damaged(&error))?;
    ClientTransport::session(&authorities, credential.chain().to_vec(), credential.private_key(), Tuning::default())
        .map_err(|error| damaged(&error))
}

/// What a client says first.
pub fn hello(profile: &Profile) -> FromClient {
    FromClient::Hello(Hello {
        version: control::VERSION,
        client: concat!("culvert ", env!("CARGO_PKG_VERSION")).into(),
        platform: std::env::consts::OS.into(),
        authorities: profile.pins(),
    })
}

/// The stored identity cannot be used.
pub fn damaged(error: &dyn std::error::Error) -> Problem {
    let sentence = format!("The stored identity cannot be used: {error}");
    Problem::new(code::UNKNOWN).word("damaged_profile").because(sentence)
}

/// An OS error in the catalogue's terms.
pub fn system(what: &str, error: &io::Error) -> Problem {
    if error.kind() == io::ErrorKind::PermissionDenied {
        return Problem::new(code::CAPABILITY);
    }
    Problem::new(code::SYSTEM).because(format!("{what}: {error}"))
}

/// What the end of a link means.
pub fn cause_of_down(down: &Down, remote: SocketAddr) -> Cause {
    let mut problem = Problem::new(Code(down.ecode().0)).word(down.word());
    match down {
        Down::Peer { reason, .. } if !reason.is_empty() => problem.cause = sentence(reason),
        Down::NoAnswer => problem.cause = format!("No reply from {remote}"),
        Down::TimedOut => problem.cause = format!("{remote} stopped answering"),
        Down::Reset => problem.cause = format!("{remote} has forgotten this session, so it was restarted"),
        Down::Tls { local: true, .. } if down.ecode() == ECode(201) => {
            let why =
                if down.word() == "bad_certificate" { "is for another name" } else { "is from another authority" };
            problem.cause =
                format!("{remote} could not prove that it is your gateway: its certificate {why}; nothing was sent");
        }
        Down::PeerUnknown(_) | Down::Transport(_) => problem.cause = format!("The link to {remote} ended: {down}"),
        _ => {}
    }
    Cause { problem, verdict: down.is_verdict(), not_before: None }
}

/// What the end of a handshake means that has not proven who answers: anybody on the path can forge a version
/// negotiation, a certificate or a close (RFC 9000 section 21.1). That must not end a session, and never say that
/// this device was removed: either would let out in the clear what is held back.
pub fn unproven(down: &Down, remote: SocketAddr, in_session: bool) -> Cause {
    let mut cause = cause_of_down(down, remote);
    cause.verdict &= !in_session && cause.problem.code != code::REVOKED;
    cause
}

/// What a refusal means.
pub fn cause_of_refusal(refused: &Refused) -> Cause {
    let close = refused.close();
    let mut problem = Problem::new(Code(close.ecode().0)).word(close.word());
    if !refused.reason.is_empty() {
        problem.cause = sentence(&refused.reason);
    }
    let not_before = refused.retry_after_seconds.map(|seconds| Duration::from_secs(seconds.min(3600)));
    Cause { problem, verdict: close.is_verdict() && close != Close::Goodbye, not_before }
}

/// A peer's words as a sentence on one line of ours.
fn sentence(text: &str) -> String {
    let mut words = text.chars().map(|c| if c.is_control() { ' ' } else { c }).take(256);
    words.next().map_or_else(String::new, |first| first.to_uppercase().chain(words).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn addresses_need_no_name_server_and_keep_their_order() {
        let endpoints = ["[2001:db8::1]:443".into(), "192.0.2.1:4433".into(), "192.0.2.1:4433".into()];
        let found = resolve(&endpoints, &Names::of(b"", 0, &[])).await.unwrap();
        let candidate = |address: &str, endpoint| Candidate { address: address.parse().unwrap(), endpoint };
        assert_eq!(found, [candidate("[2001:db8::1]:443", 0), candidate("192.0.2.1:4433", 1)]);
        assert_eq!(endpoints.each_ref().map(|e| host(e)), ["2001:db8::1", "192.0.2.1", "192.0.2.1"]);
    }

    #[tokio::test]
    async fn a_name_without_an_address_is_named() {
        let problem = resolve(&["no such host.invalid:443".into()], &Names::of(b"", 0, &[])).await.unwrap_err();
        assert_eq!(problem.code, code::NAME);
        assert!(problem.cause.contains("no such host.invalid"), "{problem}");
    }

    #[test]
    fn nobody_who_has_not_proven_himself_ends_a_session_or_lifts_the_kill_switch() {
        let remote = "192.0.2.1:443".parse().unwrap();
        for alert in 0..=255 {
            for local in [true, false] {
                let down = Down::Tls { alert, local };
                assert!(!unproven(&down, remote, true).verdict, "{down:?}");
                let cause = unproven(&down, remote, false);
                assert!(!cause.verdict || cause.problem.code != code::REVOKED, "{down:?}");
            }
        }
        let revoked = Down::Peer { code: Close::Revoked, reason: String::new() };
        assert!(cause_of_down(&revoked, remote).verdict);
        assert!(!unproven(&revoked, remote, false).verdict);
    }

    #[test]
    fn every_end_of_a_link_has_words_of_its_own() {
        let remote = "192.0.2.1:443".parse().unwrap();
        for &close in Close::ALL {
            let down = Down::Peer { code: close, reason: String::new() };
            let cause = cause_of_down(&down, remote);
            assert_eq!(cause.problem.code.to_string(), close.ecode().to_string());
            assert!(close.ecode().0 == 0 || cause.problem.code != code::INTERNAL, "{close:?} is not in the catalogue");
            assert_eq!(
                culvert_protocol::Entry::of(cause.problem.code).code,
                cause.problem.code,
                "{close:?} is not in the catalogue"
            );
            assert_eq!(cause.verdict, close.is_verdict());
        }
        let refused = Refused::new(Close::Revoked, "removed on 3 May\nby root");
        let cause = cause_of_refusal(&refused);
        assert_eq!((cause.problem.code, cause.verdict), (code::REVOKED, true));
        assert_eq!(cause.problem.cause, "Removed on 3 May by root");
    }
}
