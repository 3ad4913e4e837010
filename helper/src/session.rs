//! Makes the supervisor's wishes true: dials with a shard, sets this machine up, and tells back
//! what happened.
//!
//! [`Session::next`] only waits and may be dropped at any time; [`Session::digest`] and
//! [`Session::perform`] act and run to their end. The device and the routes outlive a link, so that
//! traffic is held and not leaked while a new one is made. Not here: when to try (`supervisor`).

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::pin::Pin;
use std::time::Duration;

use culvert_protocol::{Overlap, Problem, Step, Timestamp, code};
use culvert_tunnel::close::{Close, Down};
use culvert_tunnel::control::{self, FrameError, FromClient, FromServer, Welcome};
use culvert_tunnel::identity;
use culvert_tunnel::shard::RunningShard;
use culvert_tunnel::shard::mailbox::{Command, Established, Event, Lease, LinkId};
use culvert_tunnel::stats::{Drops, LinkStats, ShardStats};
use culvert_tunnel::transport::ClientTransport;
use tokio::time::{Instant, sleep_until, timeout};

use crate::device::Tun;
use crate::dial::{self, Candidate, DIAL_NEXT_AFTER, HANDSHAKE_WITHIN, cause_of_down, cause_of_refusal, unproven};
use crate::health::Counters;
use crate::install::Installed;
use crate::journal::Journal;
use crate::names::Names;
use crate::profile::Profile;
use crate::supervisor::{Action, Cause, Input};

mod access;

/// How long the gateway may take to judge this device.
pub const WELCOME_WITHIN: Duration = Duration::from_secs(5);
/// How long the shard may take to end.
const STOP_WITHIN: Duration = Duration::from_secs(2);

/// What does not change while the helper runs.
#[derive(Clone, Debug)]
pub struct Options {
    /// Marks the tunnel's own packets; also the number of our routing table.
    pub fwmark: u32,
    /// Which of two networks with the same addresses wins.
    pub overlap: Overlap,
    /// How long a network's sign-in page can be reached once it is opened.
    pub portal_for: Duration,
    /// The tunnel interface's name.
    pub device: String,
    /// The resolver's file.
    pub resolver: PathBuf,
}

/// Something to digest.
#[derive(Debug)]
pub enum Occurrence {
    /// The shard says something; `None` when its thread has ended.
    Shard(Option<Event>),
    /// The gateway's name has addresses, or not.
    Resolved(Result<Vec<Candidate>, Problem>),
    /// A deadline of the attempt has passed.
    Due,
    /// The certificate's age has to be looked at.
    RenewalDue,
    /// Another program has written the resolver's file.
    ResolverTaken,
}

/// A link that the gateway has welcomed.
#[derive(Debug)]
struct Live {
    link: LinkId,
    remote: SocketAddr,
    /// Which of the profile's endpoints that is.
    endpoint: usize,
    welcome: Box<Welcome>,
    /// The gateway's clock less ours, at its welcome.
    clock_ahead: Option<time::Duration>,
    /// The connection's TLS exporter value, which answers to challenges are bound to.
    exporter: [u8; 32],
    /// When to look at the certificate's age.
    renewal_due: Instant,
}

type Resolving = Pin<Box<dyn Future<Output = Result<Vec<Candidate>, Problem>> + Send>>;

/// How far an attempt has come.
enum Attempt {
    None,
    Resolving(Resolving),
    /// Handshakes under way; more candidates may follow.
    Dialling {
        links: Vec<(LinkId, Candidate)>,
        waiting: std::vec::IntoIter<Candidate>,
        due: Instant,
    },
    /// Hello is said.
    Waiting {
        established: Box<Established>,
        endpoint: usize,
        due: Instant,
    },
}

/// One user's wish, in force or on its way. An attempt may be under way beside a live link, which it replaces.
pub struct Session {
    options: Options,
    journal: Journal,
    profile: Option<Profile>,
    shard: Option<RunningShard<Tun>>,
    attempt: Attempt,
    live: Option<Live>,
    installed: Option<Installed>,
    /// Addresses that answered for this profile; the name cannot be looked up while the resolver
    /// is behind a tunnel that is down.
    known: Vec<Candidate>,
    /// None of `known` led to the gateway the last time: look its name up again.
    stale: bool,
    /// The profile has a new certificate, other CAs or other endpoints, and that is not on the disk yet.
    renewed: bool,
    /// The gateway waits to hear that a certificate by this CA is on the disk.
    unconfirmed: Option<identity::Pin>,
}

impl std::fmt::Debug for Session {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Session").field("profile", &self.profile).field("live", &self.live).finish_non_exhaustive()
    }
}

/// What is known of the session for `status`.
#[derive(Debug)]
pub struct Facts<'a> {
    /// The profile in use.
    pub profile: Option<&'a Profile>,
    /// Where the gateway is, and what it said.
    pub live: Option<(SocketAddr, &'a Welcome)>,
    /// The gateway's clock less ours, at its welcome.
    pub clock_ahead: Option<time::Duration>,
    /// What is in force on this machine.
    pub installed: Option<&'a Installed>,
    /// The link's counters now.
    pub stats: Option<LinkStats>,
    /// What was dropped before it came to a link: a forged source, or no session to carry it.
    pub dropped_device: Drops,
    /// What came through the link and the interface had no room for.
    pub undelivered: Drops,
}

impl Session {
    /// Nothing is changed yet; what a crashed helper left behind has been undone.
    pub fn new(options: Options, journal: Journal) -> Self {
        Self {
            options,
            journal,
            profile: None,
            shard: None,
            attempt: Attempt::None,
            live: None,
            installed: None,
            known: Vec::new(),
            stale: false,
            renewed: false,
            unconfirmed: None,
        }
    }

    /// Which of two networks with the same addresses wins, from the next attempt on.
    pub fn prefer(&mut self, overlap: Overlap) {
        self.options.overlap = overlap;
    }

    /// The profile that the next attempt uses.
    pub fn choose(&mut self, profile: Profile) {
        if self.profile.as_ref().is_none_or(|old| old.endpoints != profile.endpoints) {
            self.known.clear();
        }
        self.profile = Some(profile);
    }

    /// Forgets a key that a user's keychain opened.
    pub fn lock(&mut self) {
        if let Some(profile) = &mut self.profile {
            profile.lock();
        }
    }

    /// Forgets the profile, which must not be in use.
    pub fn forget(&mut self) {
        self.known.clear();
        self.profile = None;
    }

    /// The gateway's addresses as far as they are known: the one in use, else those that the next attempt would
    /// try.
    pub fn towards(&self) -> Vec<IpAddr> {
        match &self.live {
            Some(live) => vec![live.remote.ip()],
            None => self.known.iter().map(|candidate| candidate.address.ip()).collect(),
        }
    }

    /// The profile in use.
    pub fn profile(&self) -> Option<&Profile> {
        self.profile.as_ref()
    }

    /// Notes in the profile what is in force; true when the profile has changed since it was asked last.
    pub fn note_carried(&mut self) -> bool {
        let renewed = std::mem::take(&mut self.renewed);
        let (Some(installed), Some(profile)) = (&self.installed, &mut self.profile) else { return renewed };
        let carried = Some(installed.carried());
        std::mem::replace(&mut profile.carried, carried.clone()) != carried || renewed
    }

    /// What is in force on this machine.
    pub fn installed(&self) -> Option<&Installed> {
        self.installed.as_ref()
    }

    /// The name servers of the network below the tunnel.
    pub fn names(&self) -> Names {
        let inner = self.installed.as_ref().map_or(&[][..], Installed::name_servers);
        match self.installed.as_ref().and_then(Installed::resolver_before) {
            Some(text) => Names::of(&text, self.options.fwmark, inner),
            None => Names::of_file(&self.options.resolver, self.options.fwmark, inner),
        }
    }

    /// Waits for the next occurrence. Cancel-safe; never returns while nothing is under way.
    pub async fn next(&mut self) -> Occurrence {
        let due = match &self.attempt {
            Attempt::Dialling { due, .. } | Attempt::Waiting { due, .. } => Some(*due),
            Attempt::None | Attempt::Resolving(_) => None,
        };
        let resolving = match &mut self.attempt {
            Attempt::Resolving(resolving) => Some(resolving),
            _ => None,
        };
        let renewal_due = self.live.as_ref().map(|live| live.renewal_due);
        tokio::select! {
            event = receive(self.shard.as_mut()) => Occurrence::Shard(event),
            found = resolved(resolving) => Occurrence::Resolved(found),
            () = reached(due) => Occurrence::Due,
            () = reached(renewal_due) => Occurrence::RenewalDue,
            () = taken(self.installed.as_mut()) => Occurrence::ResolverTaken,
        }
    }

    /// Acts on an occurrence. Not cancel-safe.
    pub async fn digest(&mut self, occurrence: Occurrence) -> Option<Input> {
        match occurrence {
            Occurrence::Resolved(Ok(candidates)) => self.dial(candidates).await,
            // The resolver may be the gateway's own, behind the tunnel that is down.
            Occurrence::Resolved(Err(_))
                if self.live.is_none() && self.installed.is_some() && !self.known.is_empty() =>
            {
                self.dial(self.known.clone()).await
            }
            Occurrence::Resolved(Err(problem)) => Some(self.failed("the name has no address", network(problem)).await),
            Occurrence::Due => self.on_due().await,
            Occurrence::RenewalDue => {
                self.on_renewal_due().await;
                None
            }
            Occurrence::ResolverTaken => {
                if let Some(installed) = &mut self.installed {
                    installed.retake_resolver(&mut self.journal);
                }
                None
            }
            Occurrence::Shard(Some(event)) => self.on_event(event).await,
            Occurrence::Shard(None) => {
                self.shard = None;
                self.attempt = Attempt::None;
                self.live = None;
                self.uninstall().await;
                Some(lost(Problem::new(code::INTERNAL).because("The data path stopped by itself")))
            }
        }
    }

    /// Does what the supervisor asks. Not cancel-safe.
    pub async fn perform(&mut self, action: Action) -> Option<Input> {
        match action {
            Action::Attempt | Action::Beside => self.begin().await,
            Action::Prefer => self.begin_preferred().await,
            Action::Enough => {
                self.give_up("the link before it works").await;
                None
            }
            Action::Rebind => {
                self.rebind().await;
                None
            }
            Action::Abandon => {
                self.hang_up("connecting anew").await;
                None
            }
            Action::Echo => {
                let link = self.live.as_ref()?.link;
                self.send(Command::Echo { link }).await;
                None
            }
            Action::Inspect => {
                let stats = self.stats().await?.0?;
                Some(Input::Counters(Counters { sent: stats.sent.packets, received: stats.received.packets }))
            }
            Action::Undo => Some(Input::Undone(self.undo().await.err())),
            Action::LookForPortal => None, // `service` looks
        }
    }

    /// What is known now; asks the shard for its counters.
    pub async fn facts(&self) -> Facts<'_> {
        let (stats, shard) = self.stats().await.unwrap_or_default();
        Facts {
            profile: self.profile.as_ref(),
            live: self.live.as_ref().map(|live| (live.remote, &*live.welcome)),
            clock_ahead: self.live.as_ref().and_then(|live| live.clock_ahead),
            installed: self.installed.as_ref(),
            stats,
            dropped_device: shard.dropped_device,
            undelivered: shard.undelivered,
        }
    }

    async fn stats(&self) -> Option<(Option<LinkStats>, ShardStats)> {
        let (shard, live) = (self.shard.as_ref()?, self.live.as_ref()?);
        let inspection = shard.handle.inspect().await.ok()?;
        let stats = inspection.links.into_iter().find(|(link, _)| *link == live.link).map(|(_, stats)| stats);
        Some((stats, inspection.shard))
    }

    /// A socket that cannot be had is no reason to give up the one there is.
    async fn rebind(&self) {
        if self.shard.is_none() {
            return;
        }
        match dial::open_socket(self.options.fwmark) {
            Ok(socket) => self.send(Command::Rebind(socket)).await,
            Err(error) => tracing::warn!(%error, "no new socket for the new path; the old one stays"),
        }
    }

    // --- an attempt ---

    async fn begin(&mut self) -> Option<Input> {
        let Some(profile) = &self.profile else { return Some(verdict(Problem::new(code::NOT_ENROLLED))) };
        if self.shard.is_none() {
            match dial::start_shard(self.options.fwmark) {
                Ok(shard) => self.shard = Some(shard),
                Err(problem) => return Some(verdict(problem)),
            }
        }
        if self.installed.is_some() && !self.known.is_empty() && !std::mem::take(&mut self.stale) {
            return self.dial(self.known.clone()).await;
        }
        let (endpoints, names) = (profile.endpoints.clone(), self.names());
        self.attempt = Attempt::Resolving(Box::pin(async move { dial::resolve(&endpoints, &names).await }));
        None
    }

    /// Looks for the gateway at the endpoints before the one in use.
    async fn begin_preferred(&mut self) -> Option<Input> {
        let (Some(profile), Some(live)) = (&self.profile, &self.live) else { return None };
        let (endpoints, names) = (profile.endpoints[..live.endpoint].to_vec(), self.names());
        self.attempt = Attempt::Resolving(Box::pin(async move { dial::resolve(&endpoints, &names).await }));
        None
    }

    async fn dial(&mut self, candidates: Vec<Candidate>) -> Option<Input> {
        // What is known of other endpoints stays known.
        self.known.retain(|known| {
            candidates.iter().all(|new| new.address != known.address && new.endpoint != known.endpoint)
        });
        self.known.splice(0..0, candidates.iter().copied());
        self.attempt = Attempt::Dialling { links: Vec::new(), waiting: candidates.into_iter(), due: Instant::now() };
        self.dial_next().await.or(Some(Input::Reached(Step::Handshake)))
    }

    /// Dials the next candidate beside those that are still silent.
    async fn dial_next(&mut self) -> Option<Input> {
        let transport = match self.transport() {
            Ok(transport) => transport,
            Err(problem) => return Some(verdict(problem)),
        };
        let profile = self.profile.as_ref()?;
        let handle = self.shard.as_ref()?.handle.clone();
        let Attempt::Dialling { links, waiting, due } = &mut self.attempt else { return None };
        let candidate = waiting.next()?;
        let server_name = profile.server_name(candidate.endpoint).to_owned();
        let remote = candidate.address;
        *due = Instant::now() + if waiting.len() == 0 { HANDSHAKE_WITHIN } else { DIAL_NEXT_AFTER };
        tracing::debug!(%remote, "dialling");
        match handle.dial(remote, server_name, transport).await {
            Ok(link) => {
                links.push((link, candidate));
                None
            }
            Err(_) if waiting.len() > 0 => {
                *due = Instant::now();
                None
            }
            Err(down) => Some(self.failed("the attempt failed", cause_of_down(&down, remote)).await),
        }
    }

    fn transport(&self) -> Result<ClientTransport, Problem> {
        let profile = self.profile.as_ref().ok_or_else(|| Problem::new(code::NOT_ENROLLED))?;
        if profile.is_locked() {
            return Err(Problem::new(code::LOCKED));
        }
        dial::transport(profile)
    }

    async fn on_due(&mut self) -> Option<Input> {
        match &mut self.attempt {
            Attempt::Dialling { waiting, .. } if waiting.len() > 0 => self.dial_next().await,
            Attempt::Dialling { links, .. } => {
                let tried: Vec<String> = links.iter().map(|(_, candidate)| candidate.address.to_string()).collect();
                let sentence = format!("No reply from {} for {} s", tried.join(", "), HANDSHAKE_WITHIN.as_secs());
                self.stale = true;
                let cause = network(Problem::new(code::NO_ANSWER).because(sentence));
                Some(self.failed("no answer", cause).await)
            }
            Attempt::Waiting { .. } => {
                let sentence = "The gateway answered, but did not say whether this device may connect";
                Some(self.failed("no welcome", network(Problem::new(code::NO_ANSWER).because(sentence))).await)
            }
            Attempt::None | Attempt::Resolving(_) => None,
        }
    }

    // --- what the shard says ---

    async fn on_event(&mut self, event: Event) -> Option<Input> {
        match event {
            Event::Established(established) => self.on_established(established).await,
            Event::Frame { link, payload } => self.on_frame(link, &payload).await,
            Event::Echo { link, .. } => self.is_live(link).then_some(Input::Echo),
            Event::Moved { link, remote } => {
                if let Some(live) = self.live.as_mut().filter(|live| live.link == link) {
                    live.remote = remote;
                }
                None
            }
            Event::Sending { link } => self.is_live(link).then_some(Input::Sending),
            Event::InnerMtu { .. } => None, // the shard sets its device's MTU itself
            Event::Closed { link, down, remote, .. } => self.on_closed(link, &down, remote).await,
            Event::DeviceGone { os_error } => {
                tracing::warn!(os_error, "the tunnel interface is gone");
                self.hang_up("the interface is gone").await;
                self.uninstall().await;
                Some(lost(Problem::new(code::SYSTEM).because("Another program removed the tunnel interface")))
            }
        }
    }

    /// Ends the attempt, and nothing else while a link is there.
    async fn failed(&mut self, reason: &str, cause: Cause) -> Input {
        self.give_up(reason).await;
        if self.live.is_some() { Input::Missed(cause) } else { Input::Lost(cause) }
    }

    async fn on_established(&mut self, established: Established) -> Option<Input> {
        let link = established.link;
        let Attempt::Dialling { links, .. } = &self.attempt else {
            self.close(link, "not needed").await;
            return None;
        };
        let endpoint =
            links.iter().find(|(dialled, _)| *dialled == link).map_or(0, |(_, candidate)| candidate.endpoint);
        let others: Vec<LinkId> = links.iter().map(|(other, _)| *other).filter(|other| *other != link).collect();
        for other in others {
            self.close(other, "another address was faster").await;
        }
        if let Some(profile) = &self.profile {
            self.say(link, &dial::hello(profile)).await;
        }
        let due = Instant::now() + WELCOME_WITHIN;
        self.attempt = Attempt::Waiting { established: Box::new(established), endpoint, due };
        Some(Input::Reached(Step::Welcome))
    }

    async fn on_closed(&mut self, link: LinkId, down: &Down, remote: SocketAddr) -> Option<Input> {
        if self.is_live(link) {
            self.live = None;
            let mut cause = cause_of_down(down, remote);
            // The gateway closes a device's old link when it welcomes the new one, and may be heard first.
            cause.verdict &= !matches!(self.attempt, Attempt::Waiting { .. });
            return Some(Input::Lost(cause));
        }
        match &mut self.attempt {
            Attempt::Waiting { established, .. } if established.link == link => {}
            Attempt::Dialling { links, waiting, .. } => {
                let before = links.len();
                links.retain(|(dialled, _)| *dialled != link);
                if links.len() == before {
                    return None;
                }
                // Whatever ended it: another address may be the real gateway's.
                if waiting.len() > 0 {
                    return self.dial_next().await;
                }
                if !links.is_empty() {
                    return None;
                }
            }
            _ => return None,
        }
        let proven = matches!(self.attempt, Attempt::Waiting { .. });
        self.stale |= !proven; // perhaps the gateway has moved, and this is somebody else's address now
        let cause = if proven { cause_of_down(down, remote) } else { unproven(down, remote, self.installed.is_some()) };
        Some(self.failed("the attempt failed", cause).await)
    }

    async fn on_frame(&mut self, link: LinkId, payload: &[u8]) -> Option<Input> {
        let waiting = matches!(&self.attempt, Attempt::Waiting { established, .. } if established.link == link);
        if !waiting && !self.is_live(link) {
            return None;
        }
        match control::decode::<FromServer>(payload) {
            Ok(FromServer::Welcome(welcome)) if waiting => self.on_welcome(link, welcome).await,
            Ok(FromServer::Reconfigure(welcome)) if !waiting => self.on_reconfigure(welcome).await,
            Ok(FromServer::Refused(refused)) if waiting => {
                Some(self.failed("refused", cause_of_refusal(&refused)).await)
            }
            Ok(FromServer::Refused(refused)) => {
                self.hang_up("refused").await;
                Some(Input::Lost(cause_of_refusal(&refused)))
            }
            Ok(FromServer::Goodbye { reason }) => {
                tracing::info!(reason, "the gateway is about to close");
                None
            }
            Ok(FromServer::Challenge { nonce }) if !waiting => {
                self.on_challenge(nonce).await;
                None
            }
            Ok(FromServer::Certificate { chain }) if !waiting => {
                self.on_certificate(chain);
                None
            }
            Ok(FromServer::Authorities { authorities }) if !waiting => {
                self.on_authorities(authorities);
                None
            }
            Ok(FromServer::Unsupported { what }) => {
                tracing::debug!(what, "the gateway does not know this message");
                None
            }
            Ok(other) => {
                tracing::debug!(?other, "a message that this version does not act on");
                None
            }
            Err(FrameError::Unknown(what)) => {
                tracing::debug!(what, "the gateway says something newer than this program");
                None
            }
            Err(error) => {
                self.hang_up("a frame cannot be read").await;
                let sentence = format!("The gateway's message cannot be read: {error}");
                Some(verdict(Problem::new(code::VERSION).because(sentence)))
            }
        }
    }

    async fn on_welcome(&mut self, link: LinkId, welcome: Welcome) -> Option<Input> {
        let Attempt::Waiting { established, endpoint, .. } = std::mem::replace(&mut self.attempt, Attempt::None) else {
            return None;
        };
        if let Err(problem) = self.install(&welcome).await {
            self.close(link, "this machine could not be set up").await;
            return Some(verdict(problem));
        }
        let lease = Lease { ipv4: welcome.ipv4, ipv6: welcome.ipv6 };
        self.send(Command::Admit { link, lease }).await;
        tracing::info!(remote = %established.remote, gateway = welcome.gateway, "the gateway says welcome");
        // The address that answered goes first next time.
        self.known.sort_by_key(|known| known.address != established.remote);
        let endpoint = self.learn(&welcome.endpoints, endpoint);
        let now = Timestamp::now_utc().unix_timestamp();
        let clock_ahead = welcome.time.map(|time| time::Duration::seconds(time.saturating_sub(now)));
        let live = Live {
            link,
            remote: established.remote,
            endpoint,
            welcome: Box::new(welcome),
            clock_ahead,
            exporter: established.exporter,
            renewal_due: Instant::now(),
        };
        if let Some(old) = self.live.replace(live) {
            self.close(old.link, "another link has taken its place").await;
        }
        Some(Input::Ready { preferred: endpoint == 0 })
    }

    async fn on_reconfigure(&mut self, welcome: Welcome) -> Option<Input> {
        if let Err(problem) = self.install(&welcome).await {
            self.hang_up("this machine could not be set up").await;
            return Some(verdict(problem));
        }
        if let Some(mut live) = self.live.take() {
            live.endpoint = self.learn(&welcome.endpoints, live.endpoint);
            *live.welcome = welcome;
            self.live = Some(live);
        }
        None
    }

    // --- this machine ---

    /// Sets the machine up for a welcome; keeps what is already right.
    async fn install(&mut self, welcome: &Welcome) -> Result<(), Problem> {
        if let Some(installed) = &mut self.installed
            && (installed.fits(&self.options, welcome)
                || installed.change(&self.options, welcome, &mut self.journal).await?)
        {
            return Ok(());
        }
        self.uninstall().await;
        let (installed, device) = Installed::new(&self.options, welcome, &mut self.journal).await?;
        self.installed = Some(installed);
        self.send(Command::Attach(device)).await;
        Ok(())
    }

    /// Makes room for a new setup. What cannot be undone is logged and stays in the journal.
    async fn uninstall(&mut self) {
        if let Some(installed) = self.installed.take() {
            self.send(Command::Detach).await;
            let _ = installed.undo(&mut self.journal).await; // the new setup says what stands in its way
        }
    }

    /// Makes way for programs that have to reach this network itself: the next welcome puts all of it in force again.
    pub async fn step_aside(&mut self) {
        if self.live.is_none() {
            self.uninstall().await;
        }
    }

    /// Ends everything, also after a part of it has failed.
    async fn undo(&mut self) -> Result<(), Problem> {
        self.hang_up("disconnected by the user").await;
        let undone = match self.installed.take() {
            Some(installed) => installed.undo(&mut self.journal).await,
            None => Ok(()),
        };
        self.stop_shard().await;
        undone
    }

    async fn stop_shard(&mut self) {
        let Some(mut shard) = self.shard.take() else { return };
        let stop = Command::Stop { code: Close::Goodbye, reason: "disconnected by the user".into() };
        if shard.handle.send(stop).await.is_err() {
            return;
        }
        // The thread drops its device, and with it the interface, before it drops this channel.
        let ended = timeout(STOP_WITHIN, async { while shard.events.recv().await.is_some() {} });
        if ended.await.is_err() {
            tracing::error!("the data path does not stop");
        }
    }

    // --- small things ---

    fn is_live(&self, link: LinkId) -> bool {
        self.live.as_ref().is_some_and(|live| live.link == link)
    }

    /// Closes every link, whatever it was for.
    async fn hang_up(&mut self, reason: &str) {
        if let Some(live) = self.live.take() {
            self.close(live.link, reason).await;
        }
        self.give_up(reason).await;
    }

    /// Closes the links of the attempt under way.
    async fn give_up(&mut self, reason: &str) {
        let links = match std::mem::replace(&mut self.attempt, Attempt::None) {
            Attempt::Dialling { links, .. } => links.into_iter().map(|(link, _)| link).collect(),
            Attempt::Waiting { established, .. } => vec![established.link],
            Attempt::None | Attempt::Resolving(_) => vec![],
        };
        for link in links {
            self.close(link, reason).await;
        }
    }

    async fn close(&self, link: LinkId, reason: &str) {
        self.send(Command::Close { link, code: Close::Goodbye, reason: reason.into() }).await;
    }

    async fn say(&self, link: LinkId, message: &FromClient) {
        match control::encode(message) {
            Ok(frame) => self.send(Command::Send { link, frame }).await,
            Err(error) => tracing::error!(%error, "a message that cannot be sent"),
        }
    }

    /// A shard that is gone says so itself, through the end of its events.
    async fn send(&self, command: Command<Tun>) {
        if let Some(shard) = &self.shard {
            let _ = shard.handle.send(command).await;
        }
    }
}

fn network(problem: Problem) -> Cause {
    Cause { problem, verdict: false, not_before: None }
}

fn lost(problem: Problem) -> Input {
    Input::Lost(network(problem))
}

fn verdict(problem: Problem) -> Input {
    Input::Lost(Cause { problem, verdict: true, not_before: None })
}

async fn receive(shard: Option<&mut RunningShard<Tun>>) -> Option<Event> {
    match shard {
        Some(shard) => shard.events.recv().await,
        None => std::future::pending().await,
    }
}

async fn resolved(resolving: Option<&mut Resolving>) -> Result<Vec<Candidate>, Problem> {
    match resolving {
        Some(resolving) => resolving.await,
        None => std::future::pending().await,
    }
}

async fn taken(installed: Option<&mut Installed>) {
    match installed {
        Some(installed) => installed.resolver_taken().await,
        None => std::future::pending().await,
    }
}

async fn reached(due: Option<Instant>) {
    match due {
        Some(due) => sleep_until(due).await,
        None => std::future::pending().await,
    }
}
