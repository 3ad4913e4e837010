//! Request in, event out: the helper's whole policy. One task owns everything.
//!
//! | request | who | what |
//! |---|---|---|
//! | `hello`, `version` | any user of this machine | answered by `socket` |
//! | `status`, `watch` | the same | a snapshot; nothing is changed |
//! | `enrol` | root, and users it was told of | one at a time, beside a live session |
//! | `connect`, `disconnect` | the same | a wish for the supervisor; answered before it is fulfilled |
//! | `profiles`, `rename_profile`, `remove_profile`, `default_profile` | the same | never the one in use |
//! | `settings`, `set` | the same | what is chosen, as far as the administrator leaves it; in force before it is answered |
//! | `forget` | the same | everything is undone and forgotten |
//! | `open_portal` | the same | a sign-in page can be reached for a while |
//! | `doctor` | the same | one at a time; nothing is changed |
//! | `logs` | the same | answered by `socket` |

use std::collections::VecDeque;
use std::hash::{BuildHasher, Hasher, RandomState};
use std::io;
use std::path::{Path, PathBuf};
use std::time::Instant;

use culvert_protocol::{
    Change, Diagnosis, Event, KillSwitch, Problem, Request, Secret, Settings as Chosen, SettingsChange, State,
    Timestamp, code,
};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinSet;

use crate::clock::{Slept, elapsed};
use crate::enrol::enrol;
use crate::guard::{Block, Guard, Opening};
use crate::journal::Journal;
use crate::managed::ManagedFile;
use crate::managed::invited::Invited;
use crate::manager;
use crate::portal::{self, Sight};
use crate::profile::{Carried, Profile, Profiles};
use crate::session::{Options, Session};
use crate::settings::SettingsFile;
use crate::socket::Asked;
use crate::supervisor::{Action, Cause, Input, Now, Supervisor};
use crate::underlay::{self, Watch};
use crate::wake::Wakes;
use crate::wish::{self, WishFile};

mod diagnosis;
mod leftovers;
mod managed;
mod opening;
mod profiles;
mod status;

use diagnosis::diagnose;
use leftovers::clean_up;
pub use leftovers::recover;
use opening::{Open, needed};
use profiles::{unlock, unreadable};

/// An enrolment under way: who waits for it (nobody for the administrator's), and what came of it.
type Enrolling = (Option<oneshot::Sender<Event>>, Result<Profile, Problem>);

/// A diagnosis under way.
type Diagnosing = (oneshot::Sender<Event>, Diagnosis);

/// The helper's one task.
#[derive(Debug)]
pub struct Service {
    profiles: Profiles,
    options: Options,
    settings: SettingsFile,
    /// What the administrator has decided.
    managed: ManagedFile,
    invited: Invited,
    /// What of it cannot be used.
    undecided: Vec<String>,
    wish: WishFile,
    supervisor: Supervisor,
    session: Session,
    guard: Guard,
    /// Lockdown is lifted until the next wish to connect.
    unblocked: bool,
    /// Why the kill switch is not as it should be.
    unguarded: Option<Problem>,
    /// Follows the network below the tunnel while a connection is wanted.
    underlay: Option<Watch>,
    slept: Slept,
    wakes: Wakes,
    inputs: VecDeque<Input>,
    enrolling: JoinSet<Enrolling>,
    diagnosing: JoinSet<Diagnosing>,
    looking: JoinSet<Sight>,
    opening: JoinSet<(oneshot::Sender<Event>, Opening)>,
    /// The sign-in page can be reached until then.
    open: Option<Open>,
    changes: watch::Sender<Change>,
}

impl Service {
    /// Takes over a state directory, and what the administrator has decided in the file `managed`; undoes first what a
    /// crashed helper left behind.
    ///
    /// # Errors
    /// What the file system says.
    pub async fn open(state_dir: &Path, managed: PathBuf, options: Options) -> io::Result<Self> {
        let profiles = Profiles::open(state_dir)?;
        let mut journal = Journal::open(state_dir)?;
        let managed = ManagedFile::new(managed);
        let decided = managed.read();
        let mut invited = Invited::open(state_dir);
        invited.on_told(decided.invitation, Instant::now());
        let settings = SettingsFile::open(state_dir, decided.managed);
        let wish = WishFile::new(state_dir, wish::boot());
        let wanted = wish.profile().and_then(|name| profiles.load(&name).ok());
        // What is to be held back is held back before anything else is put back as it was.
        let block = match settings.now().kill_switch {
            KillSwitch::Off => None,
            KillSwitch::Auto if wanted.is_none() => None,
            KillSwitch::Auto | KillSwitch::Lockdown => Some(block(&options, settings.now(), wanted.as_ref())),
        };
        let mut guard = Guard::new(&options.device);
        let unguarded = guard.set(block).await.err().map(|error| error.problem());
        if let Some(problem) = &unguarded {
            tracing::error!(%problem, "the kill switch");
        }
        clean_up(&mut journal).await;
        let default = profiles.default_name()?;
        let supervisor = Supervisor::new(default.is_some());
        let state = told(supervisor.state(), guard.is_in_force());
        let (changes, _) = watch::channel(Change { at: Timestamp::now_utc(), profile: default, state });
        let mut session = Session::new(options.clone(), journal);
        session.prefer(settings.now().overlap);
        let mut inputs = VecDeque::new();
        if let Some(profile) = wanted {
            tracing::info!(profile = profile.name, "going on where an earlier run ended");
            session.choose(profile);
            inputs.push_back(Input::Connect);
        }
        Ok(Self {
            profiles,
            session,
            options,
            settings,
            managed,
            invited,
            undecided: decided.damage,
            wish,
            supervisor,
            guard,
            unblocked: false,
            unguarded,
            underlay: None,
            slept: Slept::new(Instant::now(), elapsed()),
            wakes: Wakes::open(),
            inputs,
            enrolling: JoinSet::new(),
            diagnosing: JoinSet::new(),
            looking: JoinSet::new(),
            opening: JoinSet::new(),
            open: None,
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
        self.drive().await;
        self.aim().await;
        loop {
            let due = self.supervisor.poll_timeout().map(tokio::time::Instant::from_std);
            let close = self.open.as_ref().map(|open| tokio::time::Instant::from_std(open.until));
            let invite = self.invited.poll_timeout().map(tokio::time::Instant::from_std);
            tokio::select! {
                Some(asked) = asked.recv() => self.on_asked(asked).await,
                occurrence = self.session.next() => {
                    let input = self.session.digest(occurrence).await;
                    self.inputs.extend(input);
                }
                () = async { tokio::time::sleep_until(due.unwrap_or_else(tokio::time::Instant::now)).await },
                    if due.is_some() => self.inputs.push_back(Input::Timeout),
                () = async { tokio::time::sleep_until(close.unwrap_or_else(tokio::time::Instant::now)).await },
                    if close.is_some() => self.close().await,
                () = async { tokio::time::sleep_until(invite.unwrap_or_else(tokio::time::Instant::now)).await },
                    if invite.is_some() => self.on_invited(),
                () = self.managed.changed() => self.on_managed().await,
                Some(Ok(sight)) = self.looking.join_next() => self.inputs.push_back(Input::Sight(sight)),
                Some(Ok((waiting, what))) = self.opening.join_next() => {
                    let event = self.on_opening(what).await.unwrap_or_else(Event::Error);
                    let _ = waiting.send(event); // or nobody waits any more
                }
                change = changed(self.underlay.as_mut()) => self.on_underlay(change),
                () = self.guard.removed() => {
                    tracing::warn!("another program removed the kill switch's table; it is put back");
                    if let Err(problem) = self.hold().await {
                        tracing::error!(%problem, "the kill switch");
                    }
                }
                Some(done) = self.enrolling.join_next() => {
                    match done {
                        Ok((Some(waiting), result)) => {
                            let event = self.on_enrolled(result).unwrap_or_else(Event::Error);
                            let _ = waiting.send(event); // a caller that left learns it from `status`
                        }
                        Ok((None, result)) => self.on_invited_enrolled(result),
                        Err(error) => tracing::error!(%error, "an enrolment"),
                    }
                }
                Some(done) = self.diagnosing.join_next() => {
                    if let Ok((waiting, diagnosis)) = done {
                        let _ = waiting.send(Event::Diagnosis(Box::new(diagnosis))); // or nobody waits any more
                    }
                }
                () = self.wakes.next() => {
                    tracing::info!("the system says that it was asleep");
                    self.inputs.push_back(Input::Woke);
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
        manager::tell_end();
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
            match Watch::open(self.options.fwmark).await {
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
            Request::Connect { profile, key } => self.on_connect(profile.as_deref(), key.as_ref()),
            Request::SealProfile { profile, key } => self.on_seal(&profile, &key, true),
            Request::UnsealProfile { profile, key } => self.on_seal(&profile, &key, false),
            Request::Disconnect { unblock } => {
                self.unblocked |= unblock;
                self.note_wish(None);
                Ok(self.wish(Input::Disconnect))
            }
            Request::Profiles => self.profile_facts(),
            Request::RenameProfile { profile, to } => {
                self.on_profile(&profile, |profiles| profiles.rename(&profile, &to))
            }
            Request::RemoveProfile { profile } => self.on_profile(&profile, |profiles| profiles.remove(&profile)),
            Request::DefaultProfile { profile } => self
                .profiles
                .make_default(&profile)
                .map_err(|error| self.no_profile(&profile, &error))
                .and_then(|()| self.profile_facts()),
            Request::Settings => Ok(Event::Settings(self.settings.in_force())),
            Request::Set(change) => self.on_set(&change).await,
            Request::Forget { keep_identity } => self.on_forget(keep_identity).await,
            Request::OpenPortal => match self.supervisor.state() {
                State::PortalSignIn { page, .. } => {
                    let (names, answer) = (self.session.names(), asked.answer);
                    self.opening.spawn(async move { (answer, needed(&page, &names).await) });
                    return;
                }
                _ => Err(Problem::new(code::NO_PORTAL)),
            },
            Request::Doctor => match self.known().await {
                Ok(known) => {
                    let (answer, began) = (asked.answer, Instant::now());
                    self.diagnosing.spawn(async move { (answer, diagnose(known, began).await) });
                    return;
                }
                Err(problem) => Err(problem),
            },
            Request::Enrol { invitation, device_name } => match self.may_enrol() {
                Ok(()) => {
                    let fwmark = self.options.fwmark;
                    let names = self.session.names();
                    let name = device_name.unwrap_or_else(host_name);
                    let answer = asked.answer;
                    self.enrolling
                        .spawn(async move { (Some(answer), enrol(&invitation, &name, &names, fwmark).await) });
                    return;
                }
                Err(problem) => Err(problem),
            },
            // `socket` answers these.
            Request::Hello { .. } | Request::Version | Request::Logs { .. } => Err(Problem::new(code::BAD_REQUEST)),
        };
        // The wish is noted before the answer, so that a watcher's next change is about it.
        self.drive().await;
        let _ = asked.answer.send(event.unwrap_or_else(Event::Error)); // a caller that left needs no answer
    }

    fn on_connect(&mut self, wanted: Option<&str>, key: Option<&Secret>) -> Result<Event, Problem> {
        let default = self.profiles.default_name().map_err(|error| unreadable(&error))?;
        let active = self.session.profile().map(|profile| profile.name.clone());
        let resting =
            matches!(self.supervisor.state(), State::NotEnrolled | State::Disconnected | State::Failed { .. });
        let name = match (wanted, active) {
            (Some(name), _) => name.to_owned(),
            (None, Some(active)) if !resting => active,
            (None, _) => default.ok_or_else(|| Problem::new(code::NOT_ENROLLED))?,
        };
        let mut profile = self.profiles.load(&name).map_err(|error| self.no_profile(&name, &error))?;
        match (self.session.profile(), key) {
            // Who is connected needs no key to hear that he is.
            (Some(open), None) if open.name == name && !open.is_locked() && !resting => profile = open.clone(),
            _ => unlock(&mut profile, key)?,
        }
        let switch = !resting && self.session.profile().is_some_and(|active| active.name != profile.name);
        if switch {
            self.inputs.push_back(Input::Disconnect);
        }
        self.note_wish(Some(&profile.name));
        self.unblocked = false;
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

    /// A wish that is not on the disk is lost with this process only.
    fn note_wish(&self, profile: Option<&str>) {
        if let Err(error) = self.wish.note(profile) {
            tracing::warn!(%error, "the wish cannot be saved, so a crash would end it");
        }
    }

    async fn on_set(&mut self, change: &SettingsChange) -> Result<Event, Problem> {
        if let Some(managed) = self.settings.managed() {
            managed.allows(change)?;
        }
        let (before, was) = (self.settings.now().clone(), self.settings.chosen().clone());
        let saved = self.settings.change(change).cloned();
        let chosen = saved
            .map_err(|error| Problem::new(code::DISK).because(format!("The settings could not be saved: {error}")))?;
        self.unblocked &= before.kill_switch == chosen.kill_switch;
        if let Err(problem) = self.hold().await {
            let back = SettingsChange {
                kill_switch: Some(was.kill_switch),
                allow_lan: Some(was.allow_lan),
                overlap: Some(was.overlap),
            };
            if let Err(error) = self.settings.change(&back) {
                tracing::error!(%error, "the settings could not be put back");
            }
            return Err(problem);
        }
        self.session.prefer(chosen.overlap);
        tracing::info!(kill_switch = %chosen.kill_switch, allow_lan = chosen.allow_lan, overlap = chosen.overlap.word(), "settings");
        self.publish();
        Ok(Event::Settings(self.settings.in_force()))
    }

    /// As it was before this program came.
    async fn on_forget(&mut self, keep_identity: bool) -> Result<Event, Problem> {
        self.unblocked = true;
        self.note_wish(None);
        self.inputs.push_back(Input::Disconnect);
        self.drive().await;
        if let State::Failed { problem } = self.supervisor.state() {
            return Err(problem); // something could not be undone, and the journal is still needed
        }
        self.settings.forget().map_err(|error| unreadable(&error))?;
        self.invited.forget().map_err(|error| unreadable(&error))?;
        if !keep_identity {
            for name in self.profiles.names().map_err(|error| unreadable(&error))? {
                self.profiles.remove(&name).map_err(|error| unreadable(&error))?;
            }
            self.session.forget();
            self.inputs.push_back(Input::Forgotten);
        }
        self.hold().await?;
        tracing::info!(keep_identity, "everything is forgotten");
        Ok(Event::Done { changed: true })
    }

    /// Puts the kill switch in force, or lifts it, as it is to be now.
    async fn hold(&mut self) -> Result<(), Problem> {
        let chosen = self.settings.now();
        let held = match chosen.kill_switch {
            KillSwitch::Off => false,
            KillSwitch::Auto => self.supervisor.holds(),
            KillSwitch::Lockdown => !self.unblocked || self.supervisor.holds(),
        };
        if !matches!(self.supervisor.state(), State::PortalSignIn { .. }) {
            self.open = None;
        }
        let opening = self.open.as_ref().map(|open| open.what.clone());
        let wanted = held.then(|| Block { opening, ..block(&self.options, chosen, self.session.profile()) });
        let done = self.guard.set(wanted).await.map_err(|error| error.problem());
        self.unguarded = done.as_ref().err().cloned();
        done
    }

    fn state(&self) -> State {
        match (told(self.supervisor.state(), self.guard.is_in_force()), &self.open) {
            (State::PortalSignIn { page, .. }, Some(open)) => {
                State::PortalSignIn { page, open_until: Some(open.until_utc) }
            }
            (state, _) => state,
        }
    }

    /// Gives the supervisor what has happened and does what it says, until nothing is left to do.
    async fn drive(&mut self) {
        while let Some(input) = self.inputs.pop_front() {
            let now = Now { mono: Instant::now(), utc: Timestamp::now_utc() };
            let mut actions = self.supervisor.handle(input, now, random());
            // Before anything that the block is for, and after everything that undoes its reason.
            if let Err(problem) = self.hold().await {
                tracing::error!(%problem, "the kill switch");
                if actions.contains(&Action::Attempt) {
                    actions.clear();
                    self.inputs.push_front(Input::Lost(Cause { problem, verdict: true, not_before: None }));
                }
            }
            for action in actions {
                self.publish();
                if action == Action::LookForPortal {
                    self.looking.spawn(portal::look(None, self.options.fwmark));
                    continue;
                }
                let input = self.session.perform(action).await;
                self.inputs.extend(input);
            }
            self.publish();
            self.note_carried().await;
            if self.supervisor.is_at_rest() {
                self.session.lock();
            }
        }
        self.note_carried().await; // a new certificate is no input
    }

    /// Keeps what the gateway's tunnel carries for the next time that it has to be held back before it is up.
    async fn note_carried(&mut self) {
        if !self.session.note_carried() {
            return;
        }
        match self.session.profile().map(|profile| self.profiles.update(profile)) {
            Some(Ok(())) => self.session.confirm_saved().await,
            Some(Err(error)) => tracing::warn!(%error, "the profile cannot be saved"),
            None => {}
        }
        if let Err(problem) = self.hold().await {
            tracing::error!(%problem, "the kill switch");
        }
    }

    fn publish(&self) {
        let state = self.state();
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
}

async fn changed(underlay: Option<&mut Watch>) -> underlay::Change {
    match underlay {
        Some(watch) => watch.next().await,
        None => std::future::pending().await,
    }
}

/// What the kill switch is to hold back for a profile; everything while nothing is known of it.
fn block(options: &Options, chosen: &Chosen, profile: Option<&Profile>) -> Block {
    let mut carried = profile.and_then(|profile| profile.carried.clone()).unwrap_or_default();
    if chosen.kill_switch == KillSwitch::Lockdown {
        carried = Carried { only: vec![], ..carried };
    }
    Block {
        device: options.device.clone(),
        fwmark: options.fwmark,
        allow_lan: chosen.allow_lan,
        only: carried.only,
        excluded: carried.excluded,
        opening: None,
    }
}

/// The state as people are told it: one in which nothing gets out is no ordinary rest.
fn told(state: State, blocked: bool) -> State {
    match state {
        State::Failed { problem } if blocked => State::Blocked { cause: problem },
        State::NotEnrolled | State::Disconnected if blocked => State::Blocked { cause: Problem::new(code::LOCKDOWN) },
        state => state,
    }
}

fn log(state: &State) {
    match state {
        State::Failed { problem } => tracing::warn!(code = %problem.code, %problem, "failed"),
        State::Blocked { cause } => tracing::warn!(code = %cause.code, %cause, "blocked"),
        State::Reconnecting { cause, attempt, .. } => {
            tracing::info!(code = %cause.code, cause = cause.cause, attempt, "reconnecting");
        }
        State::Connecting { step } => tracing::debug!(?step, "connecting"),
        other => tracing::info!(state = other.word(), "state"),
    }
}

fn host_name() -> String {
    let name = rustix::system::uname().nodename().to_string_lossy().into_owned();
    if name.is_empty() { "device".into() } else { name }
}

/// Spreads retries; nothing secret depends on it. The standard library seeds this from the OS.
fn random() -> u64 {
    RandomState::new().build_hasher().finish()
}
