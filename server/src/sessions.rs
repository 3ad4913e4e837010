//! The gateway's loop: what the shards tell, whom the conversations admit, what administrators
//! ask. One task owns the table of links; it never waits for a client.

mod authorities;
mod reconfigure;
mod scrape;
mod upkeep;

pub use reconfigure::{Followers, Reloading};
pub use upkeep::Proof;

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::hash::{BuildHasher, RandomState};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use culvert_tunnel::bucket::Bucket;
use culvert_tunnel::close::{Close, Down};
use culvert_tunnel::control::{self, FrameError, FromClient, FromServer, Hello};
use culvert_tunnel::device::Device as Interface;
use culvert_tunnel::filter::Lease;
use culvert_tunnel::shard::mailbox::{Command, Established, Event, LinkId, Protocol, ShardHandle};
use culvert_tunnel::stats::LinkStats;
use futures_util::StreamExt;
use futures_util::stream::{self, SelectAll};
use time::OffsetDateTime;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot, watch};
use tokio::time::MissedTickBehavior;

use crate::admit::{self, Rates};
use crate::challenges::Challenges;
use crate::changes::{self, Changes, Poke};
use crate::control_socket::{Asked, Request, Response, SessionInfo, ShardInfo, StatusInfo};
use crate::conversation::{Admission, Conversation, FRAMES, Office};
use crate::leaf::Leaf;
use crate::log::{port, reopen, src};
use crate::metrics::{self, DeviceSeries, Totals};
use crate::registry::{Device, Registry, RegistryError, Seen};
use crate::reload::Judged;
use crate::state::Stamp;
use crate::times::rfc3339;

/// Enrolments at once, apart from sessions: strangers cannot keep enrolled devices out.
const ENROLMENTS: usize = 128;
/// Connections that may be judged at once, enrolments among them.
const CONVERSATIONS: usize = 1024;
/// Notes on who was here that may wait for the disk; more are dropped.
const NOTES: usize = 4096;
/// Administrators who may wait at once for the registry to be read.
const POKES: usize = 16;
/// How often the age of the gateway's own certificate is looked at, and whether a command that was killed has left
/// another CA.
const LEAF_EVERY: Duration = Duration::from_secs(600);
/// How often the paths of open sessions are looked at for metrics.
const SAMPLES_EVERY: Duration = Duration::from_secs(60);
/// Messages a second that an open session may send; an honest client sends a few an hour.
const MESSAGES_PER_SECOND: u32 = 20;
/// How long the shards may take to say goodbye.
const FAREWELL: Duration = Duration::from_secs(3);

/// Every link, and who holds it.
#[derive(Debug)]
pub struct Sessions<R, D: Interface> {
    office: Arc<Office<R>>,
    shards: Vec<ShardHandle<D>>,
    links: HashMap<LinkId, Link>,
    /// Device id → its open session.
    devices: HashMap<String, LinkId>,
    challenges: Challenges,
    reloading: Reloading<R>,
    leaf: Leaf,
    /// The files that `office.authorities` came from.
    authorities_stamp: Stamp,
    /// Sessions that have to be told of other authorities.
    untold: VecDeque<LinkId>,
    rates: Option<Rates>,
    conversations: Arc<Semaphore>,
    enrolments: Arc<Semaphore>,
    admissions: (mpsc::Sender<Admission>, mpsc::Receiver<Admission>),
    notes: mpsc::Sender<Seen>,
    /// Devices that were revoked while this gateway runs: one that was judged just before is not let in just after.
    revoked: HashSet<String>,
    changes: mpsc::Receiver<Changes>,
    pokes: mpsc::Sender<Poke>,
    /// The endpoints of other gateways.
    others: watch::Receiver<Vec<String>>,
    /// Sessions that have ended, by why.
    ended: BTreeMap<String, u64>,
    /// What links that are gone have carried.
    totals: Totals,
    /// The same by device, with `metrics.devices`: as many as have had a session.
    carried: BTreeMap<String, DeviceSeries>,
    counted: scrape::Counted,
    started: OffsetDateTime,
}

#[derive(Debug)]
enum Link {
    /// A conversation reads its frames.
    Talking { frames: mpsc::Sender<Vec<u8>>, remote: SocketAddr, _place: OwnedSemaphorePermit },
    /// It carries packets.
    Open(Box<Session>),
    /// We have closed it; the shard has not said so yet.
    Closing,
}

#[derive(Debug)]
struct Session {
    device: Device,
    lease: Lease,
    hello: Hello,
    remote: SocketAddr,
    since: OffsetDateTime,
    messages: Bucket,
    proof: Proof,
    /// When it last asked for a new certificate.
    renewed: Option<Instant>,
}

/// Why the loop ended by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LoopError {
    /// Somebody removed the interface.
    #[error("the tunnel's interface is gone (error {os_error}); somebody removed it")]
    DeviceGone {
        /// The OS error number.
        os_error: i32,
    },
    /// A shard ended without being asked.
    #[error("a packet thread has ended unexpectedly")]
    ShardGone,
}

impl<R: Registry, D: Interface> Sessions<R, D> {
    /// An empty table over running shards.
    ///
    /// # Errors
    /// [`RegistryError`] when the registry cannot be read.
    pub async fn new(
        office: Arc<Office<R>>,
        shards: Vec<ShardHandle<D>>,
        leaf: Leaf,
        authorities_stamp: Stamp,
        reloading: Reloading<R>,
        others: watch::Receiver<Vec<String>>,
    ) -> Result<Self, RegistryError> {
        let (notes, queue) = mpsc::channel(NOTES);
        tokio::spawn(keep_notes(office.registry.clone(), queue));
        let (told, changes) = mpsc::channel(1);
        let (pokes, poked) = mpsc::channel(POKES);
        let last = office.registry.known_event().await?;
        tokio::spawn(changes::watch(office.registry.clone(), last, poked, told));
        let rates = office.config.handshakes_per_second.map(Rates::new);
        let challenges = Challenges::new(office.config.rechallenge);
        Ok(Self {
            office,
            shards,
            links: HashMap::new(),
            devices: HashMap::new(),
            challenges,
            reloading,
            leaf,
            authorities_stamp,
            untold: VecDeque::new(),
            rates,
            conversations: Arc::new(Semaphore::new(CONVERSATIONS)),
            enrolments: Arc::new(Semaphore::new(ENROLMENTS)),
            admissions: mpsc::channel(CONVERSATIONS),
            notes,
            revoked: HashSet::new(),
            changes,
            pokes,
            others,
            ended: BTreeMap::new(),
            totals: Totals::default(),
            carried: BTreeMap::new(),
            counted: scrape::Counted::default(),
            started: OffsetDateTime::now_utc(),
        })
    }

    /// Serves until `stop` completes, then closes every session with [`Close::Shutdown`].
    ///
    /// # Errors
    /// [`LoopError`] when it cannot go on; the shards have been stopped all the same.
    pub async fn run(
        mut self,
        events: Vec<mpsc::Receiver<Event>>,
        mut asked: mpsc::Receiver<Asked>,
        stop: impl Future<Output = ()>,
    ) -> Result<(), LoopError> {
        let mut events: SelectAll<_> =
            events.into_iter().map(|mut events| stream::poll_fn(move |context| events.poll_recv(context))).collect();
        tokio::pin!(stop);
        let mut leaf_due = tokio::time::interval(LEAF_EVERY);
        let mut telling = tokio::time::interval(authorities::TELL_EVERY);
        telling.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut samples = tokio::time::interval(SAMPLES_EVERY);
        let outcome = loop {
            let due = self.challenges.poll_timeout();
            tokio::select! {
                () = &mut stop => break Ok(()),
                event = events.next() => match event {
                    Some(Event::DeviceGone { os_error }) => break Err(LoopError::DeviceGone { os_error }),
                    Some(event) => metrics::timed(self.on_event(event)).await,
                    None => break Err(LoopError::ShardGone),
                },
                Some(admission) = self.admissions.1.recv() => metrics::timed(self.on_admission(admission)).await,
                Some(changes) = self.changes.recv() => metrics::timed(self.on_changes(changes)).await,
                Ok(()) = self.others.changed() => metrics::timed(self.tell_others()).await,
                () = reached(due) => metrics::timed(self.on_challenges_due()).await,
                _ = leaf_due.tick() => metrics::timed(self.look_at_certificates()).await,
                _ = telling.tick(), if !self.untold.is_empty() => metrics::timed(self.tell_authorities()).await,
                _ = samples.tick(), if self.office.config.metrics_listen.is_some() => metrics::timed(self.sample()).await,
                Some((request, reply)) = asked.recv() => metrics::timed(self.on_request(request, reply)).await,
            }
        };
        for shard in &self.shards {
            let reason = "the gateway is stopping".to_owned();
            let _ = shard.send(Command::Stop { code: Close::Shutdown, reason }).await; // may have ended
        }
        // The streams end with the shards' threads.
        let farewell = async {
            while let Some(event) = events.next().await {
                if let Event::Closed { .. } = event {
                    self.on_event(event).await;
                }
            }
        };
        if tokio::time::timeout(FAREWELL, farewell).await.is_err() {
            tracing::warn!(event = "stop_slow", "a packet thread did not end in time");
        }
        outcome
    }

    async fn on_event(&mut self, event: Event) {
        match event {
            Event::Established(established) => self.on_established(established).await,
            Event::Frame { link, payload } => self.on_frame(link, payload).await,
            Event::Moved { link, remote } => {
                if let Some(Link::Open(session)) = self.links.get_mut(&link) {
                    tracing::info!(
                        event = "path_changed",
                        device = session.device.name,
                        src = src(remote.ip()),
                        port = port(remote),
                    );
                    metrics::moved(session.remote.ip() != remote.ip());
                    session.remote = remote;
                    self.office.door.moved(link, remote).await;
                }
            }
            Event::Closed { link, down, remote, established, stats } => {
                self.on_closed(link, &down, remote, established, &stats).await;
            }
            // A gateway sends no echoes, follows no MTU of its own, and `run` takes the last.
            Event::Echo { .. } | Event::InnerMtu { .. } | Event::Sending { .. } | Event::DeviceGone { .. } => {}
        }
    }

    async fn on_established(&mut self, established: Established) {
        let link = established.link;
        metrics::handshake(established.handshake);
        let certificate = established.peer_chain.first().map(AsRef::as_ref);
        let too_fast = self.rates.as_mut().is_some_and(|rates| !rates.pass(certificate, Instant::now()));
        let place = Arc::clone(&self.conversations).try_acquire_owned();
        let (false, Ok(place)) = (too_fast, place) else {
            return self.close(link, Close::Wait, "too many connections at once; come back in a moment").await;
        };
        let Some(shard) = self.shard(link).cloned() else { return };
        let (frames, queue) = mpsc::channel(FRAMES);
        let remote = established.remote;
        let protocol = established.protocol;
        let conversation = Conversation { office: Arc::clone(&self.office), shard, established, frames: queue };
        match protocol {
            Protocol::Session => {
                let admissions = self.admissions.0.clone();
                tokio::spawn(async move {
                    if let Some(admission) = conversation.judge_session().await {
                        let _ = admissions.send(admission).await; // the loop may have ended
                    }
                });
            }
            Protocol::Enrolment => {
                let Ok(permit) = Arc::clone(&self.enrolments).try_acquire_owned() else {
                    return self.close(link, Close::Wait, "too many enrolments at once; come back in a moment").await;
                };
                tokio::spawn(async move {
                    let _permit = permit;
                    conversation.enrol().await;
                });
            }
        }
        self.links.insert(link, Link::Talking { frames, remote, _place: place });
    }

    async fn on_frame(&mut self, link: LinkId, payload: Vec<u8>) {
        match self.links.get_mut(&link) {
            Some(Link::Talking { frames, .. }) => {
                if let Err(mpsc::error::TrySendError::Full(_)) = frames.try_send(payload) {
                    self.close(link, Close::Unexpected, "too many messages before the session is open").await;
                }
            }
            Some(Link::Open(session)) => {
                if session.messages.take(1, Instant::now()) {
                    self.on_message(link, control::decode(&payload)).await;
                } else {
                    self.close(link, Close::Unexpected, "too many messages").await;
                }
            }
            Some(Link::Closing) | None => {}
        }
    }

    /// A message in an open session.
    async fn on_message(&mut self, link: LinkId, message: Result<FromClient, FrameError>) {
        match message {
            Ok(FromClient::Path { mtu_bytes }) => tracing::debug!(?link, mtu_bytes, "the client's inner MTU"),
            Ok(FromClient::Goodbye) => self.close(link, Close::Goodbye, "").await,
            Ok(FromClient::Renew { csr, authority }) => self.on_renew(link, csr, authority),
            Ok(FromClient::Kept { authority }) => self.on_kept(link, authority),
            Ok(FromClient::ChallengeAnswer { nonce, signature }) => {
                self.on_challenge_answer(link, &nonce, &signature).await;
            }
            Ok(FromClient::Hello(_)) => {
                self.close(link, Close::Unexpected, "this message does not belong here").await;
            }
            Err(FrameError::Unknown(what)) => self.send(link, &FromServer::Unsupported { what }).await,
            Err(error) => {
                let code = error.close().unwrap_or(Close::Malformed);
                self.close(link, code, &error.to_string()).await;
            }
        }
    }

    async fn on_admission(&mut self, Admission { link, device, lease, hello, proof }: Admission) {
        // It may have closed while it was judged.
        let Some(Link::Talking { remote, .. }) = self.links.get(&link) else { return };
        let remote = *remote;
        if self.revoked.contains(&device.id) {
            return self.close(link, Close::Wait, "the device's access was changed just now; come again").await;
        }
        if let Some(older) = self.devices.insert(device.id.clone(), link) {
            self.replace(older).await;
        }
        let Some(shard) = self.shard(link).cloned() else { return };
        let Office { config, settings, .. } = &*self.office;
        let rules = config.policies.rules(&device.user);
        if rules.is_some() && shard.send(Command::Limit { link, rules }).await.is_err() {
            return; // as below
        }
        if shard.send(Command::Admit { link, lease }).await.is_err() {
            return; // the shard has ended, and `run` will see it
        }
        let seen_as = SocketAddr::new(remote.ip().to_canonical(), remote.port());
        let push = config.policies.push(&device.user, &config.push);
        let welcome = admit::welcome(settings, &push, config.rechallenge, &device, lease, seen_as);
        self.send(link, &FromServer::Welcome(welcome)).await;
        tracing::info!(
            event = "session_open",
            src = src(remote.ip()),
            port = port(remote),
            user = device.user,
            device = device.name,
            device_id = device.id,
            ipv4 = %lease.ipv4,
            client = crate::log::peer_text(&hello.client),
        );
        self.note(&device);
        self.office.door.opened(link, remote, &device.id).await;
        let messages = Bucket::new(MESSAGES_PER_SECOND, MESSAGES_PER_SECOND);
        self.challenges.admit(link, Instant::now(), random());
        let since = OffsetDateTime::now_utc();
        if self.has_news_of_authorities(&hello) {
            self.untold.push_back(link);
        }
        let session = Session { device, lease, hello, remote, since, messages, proof, renewed: None };
        self.links.insert(link, Link::Open(Box::new(session)));
    }

    /// The same device opened a newer session.
    async fn replace(&mut self, older: LinkId) {
        let Some(shard) = self.shard(older).cloned() else { return };
        let reason = "the same device opened a newer session".to_owned();
        let _ = shard.send(Command::Close { link: older, code: Close::Replaced, reason }).await; // see `run`
    }

    async fn on_closed(&mut self, link: LinkId, down: &Down, remote: SocketAddr, established: bool, stats: &LinkStats) {
        self.totals.add(stats);
        if !established {
            metrics::handshake_failed(down.word());
        }
        match self.links.remove(&link) {
            Some(Link::Open(session)) => {
                self.challenges.forget(link);
                self.office.door.closed(link).await;
                let Session { device, since, .. } = *session;
                if self.devices.get(&device.id) == Some(&link) {
                    self.devices.remove(&device.id);
                }
                self.note(&device);
                if self.office.config.metrics_devices {
                    scrape::carry(&mut self.carried, &device, stats);
                }
                *self.ended.entry(down.word().to_owned()).or_default() += 1;
                metrics::session_closed(down.word(), (OffsetDateTime::now_utc() - since).unsigned_abs());
                tracing::info!(
                    event = "session_close",
                    src = src(remote.ip()),
                    port = port(remote),
                    user = device.user,
                    device = device.name,
                    device_id = device.id,
                    reason = down.word(),
                    seconds = (OffsetDateTime::now_utc() - since).whole_seconds(),
                    received_bytes = stats.received.bytes,
                    sent_bytes = stats.sent.bytes,
                );
            }
            Some(Link::Talking { .. } | Link::Closing) => {}
            None if !established && is_validated_refusal(down) => {
                self.office.door.session_refused(remote, down.word(), "", None);
            }
            None => tracing::debug!(src = src(remote.ip()), reason = down.word(), "no handshake"),
        }
    }

    async fn on_changes(&mut self, Changes { events, asked }: Changes) {
        self.look_at_authorities().await;
        let mut closed = 0;
        for event in events {
            match event.event.as_str() {
                "revoked" => {
                    let reason = format!("an administrator removed this device on {}", event.at.date());
                    closed += usize::from(self.end_session(&event.target, Close::Revoked, &reason).await);
                    self.revoked.insert(event.target);
                }
                "restored" => {
                    self.revoked.remove(&event.target);
                }
                _ => {}
            }
        }
        if let Some(asked) = asked {
            let _ = asked.send(closed); // whoever asked may have gone
        }
    }

    async fn on_request(&mut self, request: Request, reply: oneshot::Sender<Response>) {
        let response = match request {
            Request::Changed => {
                let (poke, told) = oneshot::channel();
                if self.pokes.try_send(poke).is_ok() {
                    tokio::spawn(async move {
                        if let Ok(sessions) = told.await {
                            let _ = reply.send(Response::Closed { sessions }); // see below
                        }
                    });
                }
                return; // without a reply the asker is told that it failed
            }
            Request::Scrape => return self.scrape(reply).await,
            Request::Ready => return self.tell_ready(reply),
            Request::Reload => self.tell_reload().await,
            Request::Kick { devices } => {
                let mut sessions = 0;
                for device in devices {
                    let reason = "an administrator ended the session";
                    sessions += usize::from(self.end_session(&device, Close::Kicked, reason).await);
                }
                Response::Closed { sessions }
            }
            Request::Alive => Response::Alive { sessions: self.devices.len() },
            Request::Sessions => self.tell_sessions().await,
            Request::Status => self.tell_status().await,
            Request::Bans | Request::BanAdd { .. } | Request::BanRemove { .. } | Request::History { .. } => {
                return self.office.door.answer(request, reply).await;
            }
        };
        let _ = reply.send(response); // the asker may have gone
    }

    async fn tell_reload(&mut self) -> Response {
        reopen();
        match self.reload().await {
            Ok(Judged { applied, needs_restart }) => {
                let (now, later) = (applied.join(" "), needs_restart.join(" "));
                metrics::reloaded(true);
                tracing::info!(event = "config_reloaded", applied = now, needs_restart = later);
                Response::Reloaded { applied, needs_restart }
            }
            Err(error) => {
                metrics::reloaded(false);
                tracing::error!(event = "config_invalid", %error);
                Response::NotReloaded { message: error.to_string() }
            }
        }
    }

    /// Closes the device's session; false when it has none.
    async fn end_session(&mut self, device: &str, code: Close, reason: &str) -> bool {
        let Some(link) = self.devices.get(device).copied() else { return false };
        self.close(link, code, reason).await;
        true
    }

    fn open(&self) -> impl Iterator<Item = (LinkId, &Session)> {
        self.links.iter().filter_map(|(link, state)| match state {
            Link::Open(session) => Some((*link, &**session)),
            _ => None,
        })
    }

    async fn tell_sessions(&self) -> Response {
        let (_, stats) = self.look().await;
        let mut sessions: Vec<SessionInfo> =
            self.open().map(|(link, session)| session.info(stats.get(&link))).collect();
        sessions.sort_by(|a, b| (&a.user, &a.device).cmp(&(&b.user, &b.device)));
        Response::Sessions { sessions }
    }

    async fn tell_status(&self) -> Response {
        let (shards, _) = self.look().await;
        let Office { config, settings, dns, .. } = &*self.office;
        let pool = settings.pool;
        Response::Status(Box::new(StatusInfo {
            version: env!("CARGO_PKG_VERSION").into(),
            since: rfc3339(self.started),
            endpoints: settings.endpoints(),
            listen: config.listen.to_string(),
            device: config.device.clone(),
            networks: std::iter::once(pool.ipv4().to_string())
                .chain(pool.ipv6().map(|network| network.to_string()))
                .collect(),
            sessions: self.open().count(),
            pending: CONVERSATIONS - self.conversations.available_permits(),
            ended: self.ended.clone(),
            dns: dns.as_ref().map(|counters| counters.snapshot()),
            shards: shards.iter().map(ShardInfo::from).collect(),
        }))
    }

    fn shard(&self, link: LinkId) -> Option<&ShardHandle<D>> {
        self.shards.get(usize::from(link.shard))
    }

    /// A failed send means that the shard has ended; `run` sees that.
    async fn send(&self, link: LinkId, message: &FromServer) {
        if let (Some(shard), Ok(frame)) = (self.shard(link), control::encode(message)) {
            let _ = shard.send(Command::Send { link, frame }).await;
        }
    }

    /// Closes a link. An open session stays in the table until the shard confirms its end.
    async fn close(&mut self, link: LinkId, code: Close, reason: &str) {
        if !matches!(self.links.get(&link), Some(Link::Open(_))) {
            self.links.insert(link, Link::Closing);
        }
        if let Some(shard) = self.shard(link) {
            let _ = shard.send(Command::Close { link, code, reason: reason.to_owned() }).await;
        }
    }

    /// Notes that the device was here. Nothing hangs on it, so a slow disk may lose it.
    fn note(&self, device: &Device) {
        let _ = self.notes.try_send(Seen { device: device.id.clone(), at: OffsetDateTime::now_utc() });
    }
}

impl Session {
    fn info(&self, stats: Option<&LinkStats>) -> SessionInfo {
        let none = LinkStats::default();
        let stats = stats.unwrap_or(&none);
        SessionInfo {
            device_id: self.device.id.clone(),
            device: self.device.name.clone(),
            user: self.device.user.clone(),
            remote: SocketAddr::new(self.remote.ip().to_canonical(), self.remote.port()).to_string(),
            ipv4: self.lease.ipv4.to_string(),
            ipv6: self.lease.ipv6.map(|ipv6| ipv6.to_string()),
            since: rfc3339(self.since),
            client: crate::log::peer_text(&self.hello.client),
            platform: crate::log::peer_text(&self.hello.platform),
            received_bytes: stats.received.bytes,
            received_packets: stats.received.packets,
            sent_bytes: stats.sent.bytes,
            sent_packets: stats.sent.packets,
            dropped_packets: stats.dropped_in.total() + stats.dropped_out.total(),
            dropped_received: stats.dropped_in.occurred(),
            dropped_sent: stats.dropped_out.occurred(),
            split_packets: stats.split,
            too_big_answers: stats.too_big_answers,
            rtt_seconds: stats.rtt.as_secs_f64(),
            mtu_bytes: stats.inner_mtu_bytes,
            path_mtu_bytes: stats.path_mtu_bytes,
            black_holes: stats.black_holes,
        }
    }
}

/// True when we refused the peer's certificate: that came in packets which only somebody who
/// reads ours can send (RFC 9000 section 8.1), so the address is not forged.
fn is_validated_refusal(down: &Down) -> bool {
    /// certificate_required, and bad_certificate to unknown_ca (RFC 8446 section 6.2).
    /// decrypt_error is what a CA of the same name with another key comes to.
    const CERTIFICATE: [u8; 8] = [42, 43, 44, 45, 46, 48, 51, 116];
    matches!(down, Down::Tls { alert, local: true } if CERTIFICATE.contains(alert))
}

async fn reached(due: Option<Instant>) {
    match due {
        Some(due) => tokio::time::sleep_until(due.into()).await,
        None => std::future::pending().await,
    }
}

/// Spreads what would otherwise happen at once; nothing secret hangs on it.
fn random() -> u32 {
    RandomState::new().hash_one(0) as u32
}

/// Notes of one second are one transaction: ten thousand clients that come back cost a few.
async fn keep_notes(registry: impl Registry, mut notes: mpsc::Receiver<Seen>) {
    const TOGETHER: Duration = Duration::from_secs(1);
    let mut seen = Vec::with_capacity(NOTES);
    while notes.recv_many(&mut seen, NOTES).await > 0 {
        if let Err(error) = registry.saw(&seen).await {
            tracing::warn!(event = "registry_failed", %error);
        }
        seen.clear();
        tokio::time::sleep(TOGETHER).await;
    }
}
