//! Asks other name servers: by hickory, whose source ports and ids are random, and which goes over to TCP
//! when an answer is cut.
//!
//! Each server is asked for itself, in the operator's order, so that one that refuses or is gone does not
//! spoil the answer of the next; hickory's own pool takes the first refusal for the answer. No name is
//! logged here, and what hickory logs is never written (`log`).

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use hickory_resolver::config::{NameServerConfig, ResolverOpts};
use hickory_resolver::net::runtime::TokioRuntimeProvider;
use hickory_resolver::net::xfer::{DnsHandle, FirstAnswer};
use hickory_resolver::net::{DnsError, NetError};
use hickory_resolver::proto::op::{DnsRequest, DnsRequestOptions, Query};
use hickory_resolver::proto::rr::{Name, RecordType};
use hickory_resolver::{NameServerPool, PoolContext, TlsConfig};
use tokio::sync::Semaphore;
use tokio::time::timeout;

use super::health::{Admission, Health};
use super::question::{Answer, Subject, UDP_BYTES};

/// For one server, in which a lost question is asked up to three times more.
const PATIENCE: Duration = Duration::from_millis(1500);
/// For all of them together: the C library of the client gives up after 5 s (resolv.conf(5), `timeout`).
const ALTOGETHER: Duration = Duration::from_secs(4);
/// Questions to one group of servers at once, so that a group that is gone leaves room for others.
const GROUP_AT_ONCE: usize = 128;

/// Questions to all servers at once. Each has up to four sockets.
pub const AT_ONCE: usize = 256;

/// Servers that say the same, best first.
#[derive(Debug)]
pub struct Servers {
    servers: Vec<Server>,
    own_places: Semaphore,
    places: Arc<Semaphore>,
}

struct Server {
    address: SocketAddr,
    pool: NameServerPool<TokioRuntimeProvider>,
    health: Mutex<Health>,
}

/// No server had an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NoAnswer {
    /// At least one is there and said that it has none; so it will for a while.
    Failed,
    /// Nobody said anything.
    Silent,
}

enum Heard {
    Answer(Answer),
    /// It is there, but it cannot help.
    Failure,
    Silence,
}

impl Servers {
    /// Servers that share `places` with all others; no place is used before [`Self::ask`].
    pub fn new(addresses: &[SocketAddr], places: Arc<Semaphore>) -> Self {
        let servers = addresses.iter().filter_map(|address| Server::new(*address)).collect();
        Self { servers, own_places: Semaphore::new(GROUP_AT_ONCE), places }
    }

    /// Their addresses.
    pub fn addresses(&self) -> impl Iterator<Item = SocketAddr> {
        self.servers.iter().map(|server| server.address)
    }

    /// The first answer. Takes 4 s at most, and no time while all are gone.
    ///
    /// # Errors
    /// [`NoAnswer`].
    pub async fn ask(&self, subject: &Subject) -> Result<Answer, NoAnswer> {
        let now = Instant::now();
        if self.servers.iter().all(|server| server.health().rests(now)) {
            return Err(NoAnswer::Silent);
        }
        timeout(ALTOGETHER, self.ask_each(subject)).await.unwrap_or(Err(NoAnswer::Silent))
    }

    async fn ask_each(&self, subject: &Subject) -> Result<Answer, NoAnswer> {
        let Ok(_own) = self.own_places.acquire().await else { return Err(NoAnswer::Silent) };
        let Ok(_place) = self.places.acquire().await else { return Err(NoAnswer::Silent) };
        let mut outcome = NoAnswer::Silent;
        for server in &self.servers {
            if !server.is_open().await {
                continue;
            }
            match server.ask(subject).await {
                Heard::Answer(answer) => {
                    server.on_answer();
                    return Ok(answer);
                }
                Heard::Failure => {
                    server.on_answer();
                    outcome = NoAnswer::Failed;
                }
                Heard::Silence => {
                    let suspicious = server.health().on_silence(Instant::now());
                    if suspicious {
                        server.probe().await;
                    }
                }
            }
        }
        Err(outcome)
    }
}

impl Server {
    /// `None` when the library cannot be set up, which it always can without TLS.
    fn new(address: SocketAddr) -> Option<Self> {
        let mut options = ResolverOpts::default();
        options.timeout = PATIENCE;
        options.num_concurrent_reqs = 1;
        options.max_active_requests = GROUP_AT_ONCE;
        let mut config = NameServerConfig::udp_and_tcp(address.ip());
        for connection in &mut config.connections {
            connection.port = address.port();
        }
        let context = Arc::new(PoolContext::new(options, TlsConfig::new().ok()?));
        let pool = NameServerPool::from_config([config], context, TokioRuntimeProvider::default());
        Some(Self { address, pool, health: Mutex::default() })
    }

    async fn ask(&self, subject: &Subject) -> Heard {
        let mut options = DnsRequestOptions::default();
        options.edns_payload_len = UDP_BYTES;
        options.edns_set_dnssec_ok = subject.dnssec_ok;
        let query = Query::query(subject.name.clone(), subject.kind);
        let (mut message, options) = DnsRequest::from_query(query, options).into_parts();
        message.metadata.checking_disabled = subject.checking_disabled;
        let sent = self.pool.send(DnsRequest::new(message, options)).first_answer();
        match timeout(PATIENCE, sent).await {
            Ok(Ok(response)) => {
                let message = response.into_message();
                let answer = Answer {
                    code: message.response_code,
                    authoritative: false,
                    answers: message.answers,
                    authorities: message.authorities,
                    additionals: message.additionals,
                };
                Heard::Answer(answer)
            }
            Ok(Err(NetError::Dns(DnsError::NoRecordsFound(nothing)))) => {
                let authorities = nothing.authorities.map(|records| records.to_vec()).unwrap_or_default();
                Heard::Answer(Answer { authorities, ..Answer::bare(nothing.response_code) })
            }
            // A name of which the server says that it is broken, as when its signatures are wrong; it is asked
            // again in a while.
            Ok(Err(NetError::Dns(_))) => Heard::Failure,
            Ok(Err(NetError::Proto(_) | NetError::Truncated | NetError::Busy)) => Heard::Failure,
            Ok(Err(_)) | Err(_) => Heard::Silence,
        }
    }

    /// May a question go there? Probes first when that is due.
    async fn is_open(&self) -> bool {
        let admission = self.health().admit(Instant::now());
        match admission {
            Admission::Go => true,
            Admission::Probe => self.probe().await,
            Admission::Rest => false,
        }
    }

    /// Asks for the root's servers, which every resolver has, and every other server answers somehow.
    async fn probe(&self) -> bool {
        let root = Subject { name: Name::root(), kind: RecordType::NS, dnssec_ok: false, checking_disabled: false };
        if !matches!(self.ask(&root).await, Heard::Silence) {
            self.on_answer();
            return true;
        }
        if self.health().on_silent_probe(Instant::now()) {
            tracing::warn!(
                event = "dns_upstream_down",
                server = %self.address,
                "the name server does not answer; it is tried once a second until it does"
            );
        }
        false
    }

    fn on_answer(&self) {
        if self.health().on_answer() {
            tracing::info!(event = "dns_upstream_up", server = %self.address, "the name server answers again");
        }
    }

    fn health(&self) -> MutexGuard<'_, Health> {
        self.health.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl std::fmt::Debug for Server {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Server").field("address", &self.address).finish_non_exhaustive()
    }
}
