//! Request in, event out: the helper's whole policy. One task owns everything.
//!
//! | request | who | what |
//! |---|---|---|
//! | `hello`, `version` | any user of this machine | answered by `socket` |
//! | `status`, `watch` | the same | a snapshot; nothing is changed |
//! | `enrol` | root, and users it was told of | one at a time, beside a live session |
//! | `connect`, `disconnect` | the same | a wish for the supervisor; answered before it is fulfilled |
//! | `profiles`, `rename_profile`, `remove_profile`, `default_profile` | the same | never the one in use |
//! | `settings`, `set` | the same | what is chosen; in force before it is answered |
//! | `forget` | the same | everything is undone and forgotten |
//! | `open_portal` | the same | a sign-in page can be reached for a while |
//! | `doctor` | the same | one at a time; nothing is changed |
//! | `logs` | the same | answered by `socket` |

use std::collections::VecDeque;
use std::hash::{BuildHasher, Hasher, RandomState};
use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Instant;

use culvert_protocol::{
    Blocking, Certificate, Change, Check, CheckId, DOCTOR_WITHIN, Diagnosis, Dropped, Event, Finding, Gateway,
    KillSwitch, Path as PathFacts, Problem, ProfileFacts, Protection, Request, SCHEMA, Secret, Settings as Chosen,
    SettingsChange, State, Status, Timestamp, Traffic, code,
};
use culvert_tunnel::stats::LinkStats;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinSet;

use crate::clock::{Slept, elapsed};
use crate::dial::RESOLVE_WITHIN;
use crate::dns;
use crate::doctor::look::{Known, Link, look};
use crate::doctor::{examine, well};
use crate::enrol::enrol;
use crate::guard::{Block, Guard, Opening};
use crate::install::Installed;
use crate::journal::{Change as Made, Journal};
use crate::manager;
use crate::names::Names;
use crate::portal::{self, Sight};
use crate::profile::{Carried, Profile, Profiles};
use crate::routes;
use crate::seal::{Keychain, SealError};
use crate::session::{Options, Session};
use crate::settings::SettingsFile;
use crate::socket::Asked;
use crate::supervisor::{Action, Cause, Input, Now, Supervisor};
use crate::underlay::{self, Watch};
use crate::wake::Wakes;
use crate::wish::{self, WishFile};

/// An enrolment under way: who waits for it, and what came of it.
type Enrolling = (oneshot::Sender<Event>, Result<Profile, Problem>);

/// What is open for a sign-in page, and until when by both clocks.
#[derive(Clone, Debug)]
struct Open {
    what: Opening,
    until: Instant,
    until_utc: Timestamp,
}

/// A diagnosis under way.
type Diagnosing = (oneshot::Sender<Event>, Diagnosis);

/// The helper's one task.
#[derive(Debug)]
pub struct Service {
    profiles: Profiles,
    options: Options,
    settings: SettingsFile,
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
    /// Takes over a state directory; undoes first what a crashed helper left behind.
    ///
    /// # Errors
    /// What the file system says.
    pub async fn open(state_dir: PathBuf, options: Options) -> io::Result<Self> {
        let profiles = Profiles::open(&state_dir)?;
        let mut journal = Journal::open(&state_dir)?;
        let settings = SettingsFile::open(&state_dir);
        let wish = WishFile::new(&state_dir, wish::boot());
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
                    if let Ok((waiting, result)) = done {
                        let event = self.on_enrolled(result).unwrap_or_else(Event::Error);
                        let _ = waiting.send(event); // a caller that left learns it from `status`
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
            Request::Settings => Ok(Event::Settings(self.settings.now().clone())),
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
                    self.enrolling.spawn(async move { (answer, enrol(&invitation, &name, &names, fwmark).await) });
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

    /// Seals the key of a profile that no session uses, or undoes that.
    fn on_seal(&mut self, name: &str, key: &Secret, seal: bool) -> Result<Event, Problem> {
        if !self.supervisor.is_at_rest() {
            return Err(Problem::new(code::PROFILE_IN_USE).because("A connection is wanted"));
        }
        let mut profile = self.profiles.load(name).map_err(|error| self.no_profile(name, &error))?;
        if seal == profile.sealed.is_some() {
            unlock(&mut profile, Some(key))?; // the same, if it is the same key
            return self.profile_facts();
        }
        if seal {
            let keychain = Keychain::parse(key.expose()).map_err(|error| locked(&error))?;
            let sealed = keychain.seal(&profile.key_pem, profile.device_id).map_err(|error| locked(&error))?;
            profile.sealed = Some(sealed);
        } else {
            unlock(&mut profile, Some(key))?;
            profile.sealed = None;
        }
        self.profiles.update(&profile).map_err(|error| unreadable(&error))?;
        self.session.forget();
        tracing::info!(profile = name, sealed = seal, "the device key");
        self.profile_facts()
    }

    /// Why a profile cannot be had.
    fn no_profile(&self, name: &str, error: &io::Error) -> Problem {
        match error.kind() {
            io::ErrorKind::NotFound => {
                let known = self.profiles.names().unwrap_or_default();
                if known.is_empty() {
                    return Problem::new(code::NOT_ENROLLED);
                }
                let sentence = format!("There is no profile {name:?}");
                Problem::new(code::NO_PROFILE).because(sentence).hint(format!("Known profiles: {}", known.join(", ")))
            }
            io::ErrorKind::InvalidInput => Problem::new(code::PROFILE_NAME),
            io::ErrorKind::AlreadyExists => Problem::new(code::PROFILE_NAME).because("A profile has this name already"),
            _ => unreadable(error),
        }
    }

    /// Changes a profile that no session uses.
    fn on_profile(&mut self, name: &str, change: impl FnOnce(&Profiles) -> io::Result<()>) -> Result<Event, Problem> {
        let in_use = self.session.profile().is_some_and(|active| active.name == name);
        if in_use && !self.supervisor.is_at_rest() {
            return Err(Problem::new(code::PROFILE_IN_USE).because(format!("The profile {name:?} is in use")));
        }
        change(&self.profiles).map_err(|error| self.no_profile(name, &error))?;
        if in_use {
            self.session.forget();
        }
        if self.profiles.default_name().is_ok_and(|left| left.is_none()) {
            self.inputs.push_back(Input::Forgotten);
        }
        self.profile_facts()
    }

    fn profile_facts(&self) -> Result<Event, Problem> {
        let default = self.profiles.default_name().map_err(|error| unreadable(&error))?;
        let names = self.profiles.names().map_err(|error| unreadable(&error))?;
        let facts = |name: String| {
            let is_default = default.as_ref() == Some(&name);
            match self.profiles.load(&name) {
                Ok(profile) => ProfileFacts {
                    certificate_until: certificate_end(&profile),
                    name,
                    gateway: profile.gateway,
                    endpoints: profile.endpoints,
                    device: profile.device_name,
                    user: profile.user,
                    is_default,
                    device_id: profile.device_id.to_string(),
                    sealed: profile.sealed.is_some(),
                },
                // A damaged one is there, and can be removed.
                Err(_) => ProfileFacts {
                    name,
                    gateway: String::new(),
                    endpoints: vec![],
                    device: String::new(),
                    user: String::new(),
                    certificate_until: None,
                    is_default,
                    device_id: String::new(),
                    sealed: false,
                },
            }
        };
        Ok(Event::Profiles { profiles: names.into_iter().map(facts).collect() })
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
        let before = self.settings.now().clone();
        let saved = self.settings.change(change).cloned();
        let chosen = saved
            .map_err(|error| Problem::new(code::DISK).because(format!("The settings could not be saved: {error}")))?;
        self.unblocked &= before.kill_switch == chosen.kill_switch;
        if let Err(problem) = self.hold().await {
            let back = SettingsChange {
                kill_switch: Some(before.kill_switch),
                allow_lan: Some(before.allow_lan),
                overlap: Some(before.overlap),
            };
            if let Err(error) = self.settings.change(&back) {
                tracing::error!(%error, "the settings could not be put back");
            }
            return Err(problem);
        }
        self.session.prefer(chosen.overlap);
        tracing::info!(kill_switch = %chosen.kill_switch, allow_lan = chosen.allow_lan, overlap = chosen.overlap.word(), "settings");
        self.publish();
        Ok(Event::Settings(chosen))
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

    /// The way to the sign-in page is known: lets it be reached.
    async fn on_opening(&mut self, what: Opening) -> Result<Event, Problem> {
        let State::PortalSignIn { page, .. } = self.supervisor.state() else {
            return Err(Problem::new(code::NO_PORTAL));
        };
        let for_how_long = self.options.portal_for;
        let until_utc = Timestamp::now_utc() + for_how_long;
        tracing::info!(page, ?what, "the sign-in page can be reached");
        self.open = Some(Open { what, until: Instant::now() + for_how_long, until_utc });
        // The routes of a tunnel that is down would swallow what is meant for the page.
        self.session.step_aside().await;
        self.hold().await?;
        self.publish();
        Ok(Event::Portal { page, until: until_utc })
    }

    /// The time for the sign-in is over.
    async fn close(&mut self) {
        tracing::info!("the sign-in page is held back again");
        self.open = None;
        if let Err(problem) = self.hold().await {
            tracing::error!(%problem, "the kill switch");
        }
        self.publish();
    }

    /// What a diagnosis begins with; one at a time.
    async fn known(&self) -> Result<Known, Problem> {
        if !self.diagnosing.is_empty() {
            return Err(Problem::new(code::BUSY).because("Another diagnosis is under way"));
        }
        let facts = self.session.facts().await;
        let at_rest = self.supervisor.is_at_rest();
        let profile = match facts.profile.filter(|_| !at_rest) {
            Some(profile) => Some(Ok(profile.clone())),
            None => match self.profiles.default_name() {
                Ok(name) => name.map(|name| self.profiles.load(&name).map_err(|error| self.no_profile(&name, &error))),
                Err(error) => Some(Err(unreadable(&error))),
            },
        };
        let is_up = self.supervisor.state().is_connected();
        let link = facts.live.zip(facts.installed).filter(|_| is_up).map(|((remote, _), installed)| Link {
            remote,
            interface: installed.interface().to_owned(),
            path: facts.stats.as_ref().map(path_facts),
            sent_packets: facts.stats.as_ref().map_or(0, |stats| stats.quic_sent),
            name_servers: installed.name_servers().to_vec(),
            only: installed.carried().only,
            names_inside: installed.looks_up_names_inside(),
            unguarded: self.unguarded.clone(),
            clock_ahead: facts.clock_ahead,
        });
        let (fwmark, names) = (self.options.fwmark, self.session.names());
        Ok(Known { state: self.state(), at_rest, profile, names, fwmark, link })
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
    }

    /// Keeps what the gateway's tunnel carries for the next time that it has to be held back before it is up.
    async fn note_carried(&mut self) {
        if !self.session.note_carried() {
            return;
        }
        if let Some(profile) = self.session.profile()
            && let Err(error) = self.profiles.update(profile)
        {
            tracing::warn!(%error, "the profile cannot be saved");
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
            inner: facts.live.map(|(_, welcome)| welcome.gateway_ipv4.into()),
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
            state: self.state(),
            profile: profile.map(|profile| profile.name.clone()),
            gateway,
            addresses: addresses.unwrap_or_default(),
            interface: facts.installed.map(|installed| installed.interface().to_owned()),
            protection: facts
                .installed
                .map(|installed| Protection { kill_switch: self.guard.is_in_force(), ..installed.protection() }),
            kill_switch: Some(Blocking {
                mode: self.settings.now().kill_switch,
                in_force: self.guard.is_in_force(),
                allow_lan: self.settings.now().allow_lan,
            }),
            path: facts.stats.as_ref().map(path_facts),
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
            notes: facts
                .installed
                .map_or(&[][..], Installed::notes)
                .iter()
                .cloned()
                .chain(self.settings.damage().map(|why| Problem::new(code::SETTINGS).because(why).to_string()))
                .chain(self.unguarded.as_ref().map(ToString::to_string))
                .collect(),
            helper: env!("CARGO_PKG_VERSION").into(),
        }
    }

    fn default_profile(&self) -> Option<Profile> {
        let name = self.profiles.default_name().ok()??;
        self.profiles.load(&name).ok()
    }
}

/// Opens a sealed key with the keychain's; nothing is to be done for others.
fn unlock(profile: &mut Profile, key: Option<&Secret>) -> Result<(), Problem> {
    let Some(sealed) = &profile.sealed else { return Ok(()) };
    let key = key.ok_or_else(|| Problem::new(code::LOCKED))?;
    let keychain = Keychain::parse(key.expose()).map_err(|error| locked(&error))?;
    let pem = keychain.open(sealed, profile.device_id).map_err(|error| locked(&error))?;
    profile.key_pem = pem.as_str().to_owned();
    Ok(())
}

fn locked(error: &SealError) -> Problem {
    Problem::new(code::LOCKED).because(format!("The identity of this profile does not open: {error}"))
}

/// What a browser needs to see a page.
async fn needed(page: &str, names: &Names) -> Opening {
    let name_servers = names.servers();
    let Some(endpoint) = portal::endpoint(page) else { return Opening { page: vec![], name_servers } };
    let found = tokio::time::timeout(RESOLVE_WITHIN, names.lookup(&endpoint)).await;
    let addresses = found.ok().and_then(Result::ok).unwrap_or_default();
    Opening { page: addresses.iter().map(SocketAddr::ip).collect(), name_servers }
}

/// Looks, and says what it means; what takes too long has not been looked at.
async fn diagnose(known: Known, began: Instant) -> Diagnosis {
    let at = Timestamp::now_utc();
    let seen = tokio::time::timeout(DOCTOR_WITHIN, look(known)).await;
    let took_ms = u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX);
    match seen {
        Ok(seen) => Diagnosis::of(at, took_ms, examine(&seen), &well(&seen)),
        Err(_) => {
            let doubt = Finding::warn(format!("The checks did not end within {} s", DOCTOR_WITHIN.as_secs()));
            Diagnosis::of(at, took_ms, vec![Check { check: CheckId::Helper, finding: doubt }], "")
        }
    }
}

fn path_facts(stats: &LinkStats) -> PathFacts {
    PathFacts {
        rtt_ms: stats.rtt.as_secs_f64() * 1e3,
        loss_percent: 100.0 * stats.quic_lost as f64 / stats.quic_sent.max(1) as f64,
        mtu_bytes: stats.inner_mtu_bytes,
        path_mtu_bytes: stats.path_mtu_bytes,
        black_holes: stats.black_holes,
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

/// Undoes what a helper that is gone left behind, and lifts its block, whatever the mode.
///
/// # Errors
/// What the file system says, or that a helper is still there.
pub async fn recover(state_dir: &Path, device: &str) -> io::Result<()> {
    let mut journal = Journal::open(state_dir)?;
    // The wish too: the next start would put all of it in force again.
    WishFile::new(state_dir, wish::boot()).note(None)?;
    clean_up(&mut journal).await;
    let lifted = Guard::new(device).set(None).await;
    lifted.map_err(|error| io::Error::other(format!("the block could not be lifted: {error}")))?;
    match journal.in_force().len() {
        0 => Ok(()),
        left => Err(io::Error::other(format!("{left} changes could not be undone; see the messages above"))),
    }
}

/// Undoes what a crashed helper left behind, newest first.
async fn clean_up(journal: &mut Journal) {
    for (entry, change) in journal.in_force() {
        tracing::info!(?change, "undoing what an earlier run left behind");
        let undone = match &change {
            Made::ResolverFile(file) => dns::undo_file(file).map_err(routes::RouteError::Journal),
            Made::Resolvconf { record } => dns::undo_resolvconf(record).map_err(routes::RouteError::Journal),
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
        State::Blocked { cause } => tracing::warn!(code = %cause.code, %cause, "blocked"),
        State::Reconnecting { cause, attempt, .. } => {
            tracing::info!(code = %cause.code, cause = cause.cause, attempt, "reconnecting");
        }
        State::Connecting { step } => tracing::debug!(?step, "connecting"),
        other => tracing::info!(state = other.word(), "state"),
    }
}

fn unreadable(error: &io::Error) -> Problem {
    Problem::new(code::DISK).because(format!("The profiles cannot be read or written: {error}"))
}

fn certificate_end(profile: &Profile) -> Option<Timestamp> {
    Some(profile.facts().ok()?.not_after.into())
}

fn host_name() -> String {
    let name = rustix::system::uname().nodename().to_string_lossy().into_owned();
    if name.is_empty() { "device".into() } else { name }
}

/// Spreads retries; nothing secret depends on it. The standard library seeds this from the OS.
fn random() -> u64 {
    RandomState::new().build_hasher().finish()
}
