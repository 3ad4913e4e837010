//! Request in, event out: the helper's whole policy. One task owns everything.
//!
//! | request | who | what |
//! |---|---|---|
//! | `hello`, `version` | anybody allowed on the socket | answered by `socket` |
//! | `status`, `watch` | the same | a snapshot; nothing is changed |
//! | `enrol` | the same | one at a time, beside a live session |
//! | `connect`, `disconnect` | the same | a wish for the supervisor; answered before it is fulfilled |

use std::collections::VecDeque;
use std::hash::{BuildHasher, Hasher, RandomState};
use std::io;
use std::path::PathBuf;
use std::time::Instant;

use culvert_protocol::{
    Certificate, Change, Dropped, Event, Gateway, Path as PathFacts, Problem, Request, SCHEMA, State, Status,
    Timestamp, Traffic, code,
};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinSet;

use crate::clock::{Slept, elapsed};
use crate::dns;
use crate::enrol::enrol;
use crate::journal::{Change as Made, Journal};
use crate::profile::{Profile, Profiles};
use crate::routes;
use crate::session::{Session, Settings};
use crate::socket::Asked;
use crate::supervisor::{Input, Now, Supervisor};
use crate::underlay::{self, Watch};

/// An enrolment under way: who waits for it, and what came of it.
type Enrolling = (oneshot::Sender<Event>, Result<Profile, Problem>);

/// The helper's one task.
#[derive(Debug)]
pub struct Service {
    profiles: Profiles,
    settings: Settings,
    supervisor: Supervisor,
    session: Session,
    /// Follows the network below the tunnel while a connection is wanted.
    underlay: Option<Watch>,
    slept: Slept,
    inputs: VecDeque<Input>,
    enrolling: JoinSet<Enrolling>,
    changes: watch::Sender<Change>,
}

impl Service {
    /// Takes over a state directory; undoes first what a crashed helper left behind.
    ///
    /// # Errors
    /// What the file system says.
    pub async fn open(state_dir: PathBuf, settings: Settings) -> io::Result<Self> {
        let profiles = Profiles::open(&state_dir)?;
        let mut journal = Journal::open(&state_dir)?;
        clean_up(&mut journal).await;
        let default = profiles.default_name()?;
        let supervisor = Supervisor::new(default.is_some());
        let (changes, _) =
            watch::channel(Change { at: Timestamp::now_utc(), profile: default, state: supervisor.state() });
        Ok(Self {
            profiles,
            session: Session::new(settings.clone(), journal),
            settings,
            supervisor,
            underlay: None,
            slept: Slept::new(Instant::now(), elapsed()),
            inputs: VecDeque::new(),
            enrolling: JoinSet::new(),
            changes,
        })
    }

    /// The newest state, for watchers.
    pub fn changes(&self) -> watch::Receiver<Change> {
        self.changes.subscribe()
    }

    /// Serves until `stop` completes, then undoes everything.
    pub async fn run(mut self, mut asked: mpsc::Receiver<Asked>, stop: impl Future<Output = ()>) {
        let mut stop = std::pin::pin!(stop);
        loop {
            let due = self.supervisor.poll_timeout().map(tokio::time::Instant::from_std);
            tokio::select! {
                Some(asked) = asked.recv() => self.on_asked(asked).await,
                occurrence = self.session.next() => {
                    let input = self.session.digest(occurrence).await;
                    self.inputs.extend(input);
                }
                () = async { tokio::time::sleep_until(due.unwrap_or_else(tokio::time::Instant::now)).await },
                    if due.is_some() => self.inputs.push_back(Input::Timeout),
                change = changed(self.underlay.as_mut()) => self.on_underlay(change),
                Some(done) = self.enrolling.join_next() => {
                    if let Ok((waiting, result)) = done {
                        let event = self.on_enrolled(result).unwrap_or_else(Event::Error);
                        let _ = waiting.send(event); // a caller that left learns it from `status`
                    }
                }
                () = &mut stop => break,
            }
            let now = Instant::now();
            let late = due.map(|due| now.saturating_duration_since(due.into_std()));
            if self.slept.on_turn(now, elapsed(), late) {
                tracing::info!("this machine was asleep");
                self.inputs.push_front(Input::Woke);
            }
            self.drive().await;
            self.aim().await;
        }
        self.inputs.push_back(Input::Disconnect);
        self.drive().await;
    }

    /// Follows the ways to the gateway as long as somebody wants to reach it.
    async fn aim(&mut self) {
        if self.supervisor.is_at_rest() {
            self.underlay = None;
            return;
        }
        if self.underlay.is_none() {
            match Watch::open(self.settings.fwmark).await {
                Ok(watch) => self.underlay = Some(watch),
                // Timers still find a dead link and try again.
                Err(error) => return tracing::error!(%error, "the network below the tunnel cannot be watched"),
            }
        }
        let Some(watch) = self.underlay.as_mut() else { return };
        if let Some(change) = watch.aim(self.session.towards()).await {
            self.on_underlay(change);
            self.drive().await;
        }
    }

    fn on_underlay(&mut self, change: underlay::Change) {
        tracing::info!(?change, "the network below the tunnel");
        self.inputs.push_back(match change {
            underlay::Change::Changed => Input::PathChanged,
            underlay::Change::Gone => Input::PathGone,
        });
    }

    async fn on_asked(&mut self, asked: Asked) {
        let event = match asked.request {
            Request::Status | Request::Watch => Ok(Event::Status(Box::new(self.status().await))),
            Request::Connect { profile } => self.on_connect(profile.as_deref()),
            Request::Disconnect => Ok(self.wish(Input::Disconnect)),
            Request::Enrol { invitation, device_name } => match self.may_enrol() {
                Ok(()) => {
                    let fwmark = self.settings.fwmark;
                    let name = device_name.unwrap_or_else(host_name);
                    let answer = asked.answer;
                    self.enrolling.spawn(async move { (answer, enrol(&invitation, &name, fwmark).await) });
                    return;
                }
                Err(problem) => Err(problem),
            },
            Request::Hello { .. } | Request::Version => Err(Problem::new(code::BAD_REQUEST)), // `socket` answers these
        };
        // The wish is noted before the answer, so that a watcher's next change is about it.
        self.drive().await;
        let _ = asked.answer.send(event.unwrap_or_else(Event::Error)); // a caller that left needs no answer
    }

    fn on_connect(&mut self, wanted: Option<&str>) -> Result<Event, Problem> {
        let disk = |error: io::Error| Problem::new(code::DISK).because(format!("The profiles cannot be read: {error}"));
        let default = self.profiles.default_name().map_err(disk)?;
        let active = self.session.profile().map(|profile| profile.name.clone());
        let resting =
            matches!(self.supervisor.state(), State::NotEnrolled | State::Disconnected | State::Failed { .. });
        let name = match (wanted, active) {
            (Some(name), _) => name.to_owned(),
            (None, Some(active)) if !resting => active,
            (None, _) => default.ok_or_else(|| Problem::new(code::NOT_ENROLLED))?,
        };
        let profile = self.profiles.load(&name).map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => {
                let known = self.profiles.names().unwrap_or_default();
                if known.is_empty() {
                    return Problem::new(code::NOT_ENROLLED);
                }
                let sentence = format!("There is no profile {name:?}");
                Problem::new(code::NO_PROFILE).because(sentence).hint(format!("Known profiles: {}", known.join(", ")))
            }
            _ => disk(error),
        })?;
        let switch = !resting && self.session.profile().is_some_and(|active| active.name != profile.name);
        if switch {
            self.inputs.push_back(Input::Disconnect);
        }
        self.session.choose(profile);
        let event = self.wish(Input::Connect);
        Ok(if switch { Event::Done { changed: true } } else { event })
    }

    /// Notes a wish; says whether it is news.
    fn wish(&mut self, input: Input) -> Event {
        let state = self.supervisor.state();
        let fulfilled = match input {
            Input::Connect => matches!(state, State::Connecting { .. } | State::Connected { .. }),
            _ => matches!(state, State::NotEnrolled | State::Disconnected),
        };
        self.inputs.push_back(input);
        Event::Done { changed: !fulfilled }
    }

    fn may_enrol(&self) -> Result<(), Problem> {
        if !self.enrolling.is_empty() {
            return Err(Problem::new(code::BUSY).because("Another enrolment is under way"));
        }
        self.profiles.has_room().map_err(|error| {
            Problem::new(code::DISK)
                .because(format!("The identity could not be saved, so the invitation was not used: {error}"))
        })
    }

    fn on_enrolled(&mut self, result: Result<Profile, Problem>) -> Result<Event, Problem> {
        let profile = self.profiles.keep(result?).map_err(|error| {
            Problem::new(code::DISK)
                .because(format!("The gateway enrolled this device, but its identity could not be saved: {error}"))
        })?;
        tracing::info!(profile = profile.name, gateway = profile.gateway, "enrolled");
        self.inputs.push_back(Input::Enrolled);
        Ok(Event::Enrolled {
            certificate_until: certificate_end(&profile).unwrap_or(Timestamp::UNIX_EPOCH),
            device: profile.device_name,
            gateway: profile.gateway,
            profile: profile.name,
        })
    }

    /// Gives the supervisor what has happened and does what it says, until nothing is left to do.
    async fn drive(&mut self) {
        while let Some(input) = self.inputs.pop_front() {
            let now = Now { mono: Instant::now(), utc: Timestamp::now_utc() };
            for action in self.supervisor.handle(input, now, random()) {
                self.publish();
                let input = self.session.perform(action).await;
                self.inputs.extend(input);
            }
            self.publish();
        }
    }

    fn publish(&self) {
        let state = self.supervisor.state();
        self.changes.send_if_modified(|last| {
            if last.state == state {
                return false;
            }
            log(&state);
            let profile = self.session.profile().map(|profile| profile.name.clone()).or_else(|| last.profile.clone());
            *last = Change { at: Timestamp::now_utc(), profile, state };
            true
        });
    }

    async fn status(&self) -> Status {
        let facts = self.session.facts().await;
        let resting = matches!(self.supervisor.state(), State::NotEnrolled | State::Disconnected);
        let default = if resting || facts.profile.is_none() { self.default_profile() } else { None };
        let profile = default.as_ref().or(facts.profile);
        let gateway = profile.map(|profile| Gateway {
            name: facts.live.map_or_else(|| profile.gateway.clone(), |(_, welcome)| welcome.gateway.clone()),
            endpoint: profile.endpoints.first().cloned().unwrap_or_default(),
            remote: facts.live.map(|(remote, _)| remote),
            seen_as: facts.live.map(|(_, welcome)| welcome.seen_as),
        });
        let until = facts.live.and_then(|(_, welcome)| Timestamp::from_unix_timestamp(welcome.certificate_until).ok());
        let certificate = profile.and_then(|profile| {
            let until = until.or_else(|| certificate_end(profile))?;
            Some(Certificate { device: profile.device_name.clone(), until })
        });
        let addresses = facts.live.map(|(_, welcome)| {
            let v6 = welcome.ipv6.map(Into::into);
            std::iter::once(welcome.ipv4.into()).chain(v6).collect()
        });
        Status {
            schema: SCHEMA,
            state: self.supervisor.state(),
            profile: profile.map(|profile| profile.name.clone()),
            gateway,
            addresses: addresses.unwrap_or_default(),
            interface: facts.installed.map(|installed| installed.interface().to_owned()),
            protection: facts.installed.map(crate::install::Installed::protection),
            path: facts.stats.as_ref().map(|stats| PathFacts {
                rtt_ms: stats.rtt.as_secs_f64() * 1e3,
                loss_percent: 100.0 * stats.quic_lost as f64 / stats.quic_sent.max(1) as f64,
                mtu_bytes: stats.inner_mtu_bytes,
                path_mtu_bytes: stats.path_mtu_bytes,
                black_holes: stats.black_holes,
            }),
            traffic: facts.stats.as_ref().map(|stats| {
                let mut sent = stats.dropped_out.occurred();
                for (reason, packets) in facts.dropped_device.occurred() {
                    *sent.entry(reason).or_default() += packets;
                }
                Traffic {
                    received_bytes: stats.received.bytes,
                    sent_bytes: stats.sent.bytes,
                    received_packets: stats.received.packets,
                    sent_packets: stats.sent.packets,
                    dropped: Dropped { sent, received: stats.dropped_in.occurred() },
                    split_packets: stats.split,
                    too_big_answers: stats.too_big_answers,
                }
            }),
            certificate,
            notes: facts.installed.map(|installed| installed.notes().to_vec()).unwrap_or_default(),
            helper: env!("CARGO_PKG_VERSION").into(),
        }
    }

    fn default_profile(&self) -> Option<Profile> {
        let name = self.profiles.default_name().ok()??;
        self.profiles.load(&name).ok()
    }
}

async fn changed(underlay: Option<&mut Watch>) -> underlay::Change {
    match underlay {
        Some(watch) => watch.next().await,
        None => std::future::pending().await,
    }
}

/// Undoes what a crashed helper left behind, newest first.
async fn clean_up(journal: &mut Journal) {
    for (entry, change) in journal.in_force() {
        tracing::info!(?change, "undoing what an earlier run left behind");
        let undone = match &change {
            Made::ResolverFile(file) => dns::undo_leftover(file).map_err(routes::RouteError::Journal),
            Made::PolicyRouting { .. } | Made::Sysctl { .. } => routes::undo_leftover(&change).await,
        };
        match undone.map(|()| journal.strike(entry)) {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::error!(%error, "the journal cannot be written"),
            Err(error) => tracing::error!(%error, ?change, "a change could not be undone; the next start tries again"),
        }
    }
}

fn log(state: &State) {
    match state {
        State::Failed { problem } => tracing::warn!(code = %problem.code, %problem, "failed"),
        State::Reconnecting { cause, attempt, .. } => {
            tracing::info!(code = %cause.code, cause = cause.cause, attempt, "reconnecting");
        }
        State::Connecting { step } => tracing::debug!(?step, "connecting"),
        other => tracing::info!(state = other.word(), "state"),
    }
}

fn certificate_end(profile: &Profile) -> Option<Timestamp> {
    Some(profile.credential().ok()?.facts().ok()?.not_after.into())
}

fn host_name() -> String {
    let name = rustix::system::uname().nodename().to_string_lossy().into_owned();
    if name.is_empty() { "device".into() } else { name }
}

/// Spreads retries; nothing secret depends on it. The standard library seeds this from the OS.
fn random() -> u64 {
    RandomState::new().build_hasher().finish()
}
