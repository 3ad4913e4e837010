//! When to connect, when to try again, when to stop: the state machine of the client.
//!
//! Pure: inputs and `now` in, actions out; no clock, no socket, no randomness of its own. Network
//! causes are retried for ever with full jitter, verdicts never. Connected is said only after the
//! gateway's welcome is in force and one echo has come back. While it tries again, the device and
//! the routes stay, so that traffic is held and not leaked. A link whose path has changed is tested
//! at once, and after a second without an answer a second link is made beside it ([`Roam`]).
//! Not here: how an attempt is made (`session`), whether the link is alive once it is up (`health`).

use std::time::{Duration, Instant};

use culvert_protocol::{Problem, State, Step, Timestamp, code};

use crate::detour::Detour;
use crate::health::{Counters, Health, Verdict};
use crate::portal::Sight;
use crate::roam::{Roam, Test};
use crate::sign_in::SignIn;

/// The first retry comes within this time.
pub const BACKOFF_FIRST: Duration = Duration::from_millis(250);
/// No retry waits longer than this.
pub const BACKOFF_LAST: Duration = Duration::from_secs(30);
/// A link that was up this long starts the backoff anew.
pub const HEALTHY_AFTER: Duration = Duration::from_secs(60);
/// An attempt that reports neither success nor failure is given up after this time.
pub const ATTEMPT_WITHIN: Duration = Duration::from_secs(30);
/// The first echo must come back within this time.
pub const ECHO_WITHIN: Duration = Duration::from_secs(5);
/// The first echo is sent again in this rhythm, since it may be lost.
const ECHO_AGAIN: Duration = Duration::from_secs(1);

/// One moment, by both clocks: intervals are measured on the first, people are told the second.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Now {
    /// The monotonic clock.
    pub mono: Instant,
    /// The wall clock.
    pub utc: Timestamp,
}

/// What happened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Input {
    /// The user wants a connection.
    Connect,
    /// The user wants none.
    Disconnect,
    /// An identity exists now.
    Enrolled,
    /// The last identity is gone.
    Forgotten,
    /// The attempt under way has come this far.
    Reached(Step),
    /// The gateway said welcome and this machine is set up for it.
    Ready {
        /// At the endpoint that the profile names first.
        preferred: bool,
    },
    /// An echo came back through the tunnel.
    Echo,
    /// Packets go out on a link that may have rested.
    Sending,
    /// The tunnel's packets take another way now: interface, router or source address.
    PathChanged,
    /// There is no way to the gateway at all.
    PathGone,
    /// This machine, or this program, has slept.
    Woke,
    /// The attempt beside a link that is still there ended; answers [`Action::Beside`] and [`Action::Prefer`].
    Missed(Cause),
    /// What the network shows to a browser; answers [`Action::LookForPortal`].
    Sight(Sight),
    /// What has crossed so far; answers [`Action::Inspect`].
    Counters(Counters),
    /// The attempt or the link ended.
    Lost(Cause),
    /// Everything is undone, except for what the problem names; answers [`Action::Undo`].
    Undone(Option<Problem>),
    /// The moment named by [`Supervisor::poll_timeout`] has come.
    Timeout,
}

/// Why an attempt or a link ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cause {
    /// In words, and with its E-code.
    pub problem: Problem,
    /// True when trying again cannot help until a person acts.
    pub verdict: bool,
    /// The gateway asked for this pause.
    pub not_before: Option<Duration>,
}

/// What to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Begin an attempt: look up, dial, say hello, set up this machine.
    Attempt,
    /// Give up the attempt or link under way; the device and the routes stay.
    Abandon,
    /// Send from a new socket, which the path as it is now suits, and say so to the gateway.
    Rebind,
    /// Begin an attempt and keep the link meanwhile. The first of them that answers stays.
    Beside,
    /// Begin an attempt at the endpoints that the profile names before the one in use, and keep the link meanwhile.
    Prefer,
    /// Give up the attempt beside the link.
    Enough,
    /// See whether the network wants a sign-in first.
    LookForPortal,
    /// Send an echo.
    Echo,
    /// Read the counters.
    Inspect,
    /// Close the link and undo every change to this machine.
    Undo,
}

#[derive(Debug)]
enum Phase {
    NotEnrolled,
    Disconnected,
    Failed {
        problem: Problem,
        /// A connection was wanted and could not be had: what the kill switch holds back stays held back.
        held: bool,
    },
    /// An attempt is under way.
    Trying {
        step: Step,
        deadline: Instant,
    },
    /// The machine is set up; the first echo is out.
    Probing {
        deadline: Instant,
        again: Instant,
        preferred: bool,
    },
    /// The next attempt waits for its time.
    Waiting {
        until: Instant,
        until_utc: Timestamp,
        /// The gateway asked for a pause until then.
        earliest: Instant,
    },
    Up {
        since: Now,
        health: Health,
        /// The path has changed, and the link must show that it still works.
        roam: Option<Roam>,
        /// The link is not at the endpoint that the profile names first.
        detour: Option<Detour>,
    },
    /// Changes are being undone; then comes failure, or another connection, or rest.
    Undoing {
        failed: Option<Problem>,
        again: bool,
    },
}

/// The state machine. One per helper.
#[derive(Debug)]
pub struct Supervisor {
    phase: Phase,
    /// Why the last link or attempt ended; `None` until one has.
    cause: Option<Problem>,
    /// Attempts that ended since the link was last healthy.
    attempts: u32,
    /// There is no way to the gateway, as far as this machine knows.
    offline: bool,
    sign_in: SignIn,
}

impl Supervisor {
    /// At rest.
    pub fn new(enrolled: bool) -> Self {
        let phase = if enrolled { Phase::Disconnected } else { Phase::NotEnrolled };
        Self { phase, cause: None, attempts: 0, offline: false, sign_in: SignIn::default() }
    }

    /// The state as people and programs are told it.
    pub fn state(&self) -> State {
        match (&self.phase, &self.cause) {
            (Phase::NotEnrolled, _) => State::NotEnrolled,
            (Phase::Disconnected, _) => State::Disconnected,
            (Phase::Failed { problem, .. }, _) => State::Failed { problem: problem.clone() },
            (Phase::Undoing { .. }, _) => State::Disconnecting,
            _ if self.offline => State::Offline,
            (Phase::Trying { .. } | Phase::Probing { .. } | Phase::Waiting { .. }, _)
                if let Some(page) = self.sign_in.page() =>
            {
                State::PortalSignIn { page: page.url.to_string(), open_until: None }
            }
            (Phase::Up { roam: Some(roam), .. }, _) if let Some(cause) = roam.doubt() => {
                State::Reconnecting { cause: cause.clone(), attempt: self.attempts, next_at: None }
            }
            (Phase::Up { since, .. }, _) => State::Connected { since: since.utc },
            (Phase::Trying { step, .. }, None) => State::Connecting { step: *step },
            (Phase::Probing { .. }, None) => State::Connecting { step: Step::Echo },
            (Phase::Trying { .. } | Phase::Probing { .. }, Some(cause)) => {
                State::Reconnecting { cause: cause.clone(), attempt: self.attempts, next_at: None }
            }
            (Phase::Waiting { until_utc, .. }, cause) => State::Reconnecting {
                cause: cause.clone().unwrap_or_else(|| Problem::new(code::NO_ANSWER)),
                attempt: self.attempts,
                next_at: Some(*until_utc),
            },
        }
    }

    /// True while no connection is wanted, or none can be had until a person acts.
    pub fn is_at_rest(&self) -> bool {
        matches!(self.phase, Phase::NotEnrolled | Phase::Disconnected | Phase::Failed { .. } | Phase::Undoing { .. })
    }

    /// True while nothing may leave beside the tunnel under the kill switch's mode auto: from the wish to connect
    /// until the wish to disconnect, except after the administrator has removed this device.
    pub fn holds(&self) -> bool {
        match &self.phase {
            Phase::NotEnrolled | Phase::Disconnected => false,
            Phase::Failed { held, .. } => *held,
            Phase::Trying { .. }
            | Phase::Probing { .. }
            | Phase::Waiting { .. }
            | Phase::Up { .. }
            | Phase::Undoing { .. } => true,
        }
    }

    /// When to give [`Input::Timeout`] next; `None` while only something else can change the state.
    pub fn poll_timeout(&self) -> Option<Instant> {
        let look = self.sign_in.poll_timeout();
        match &self.phase {
            Phase::Trying { deadline, .. } => look.into_iter().chain([*deadline]).min(),
            Phase::Probing { deadline, again, .. } => look.into_iter().chain([*again, *deadline]).min(),
            Phase::Waiting { until, .. } => look.into_iter().chain([*until]).min(),
            Phase::Up { health, roam, detour, .. } => {
                let test = roam.as_ref().map(Roam::poll_timeout);
                let back = detour.as_ref().and_then(Detour::poll_timeout);
                [test, back].into_iter().flatten().chain([health.poll_timeout()]).min()
            }
            Phase::NotEnrolled | Phase::Disconnected | Phase::Failed { .. } | Phase::Undoing { .. } => None,
        }
    }

    /// Takes one input. `random` spreads the retries of many clients; any number will do.
    pub fn handle(&mut self, input: Input, now: Now, random: u64) -> Vec<Action> {
        match input {
            Input::Connect => self.on_connect(now),
            Input::Disconnect => self.on_disconnect(),
            Input::Enrolled => {
                if matches!(self.phase, Phase::NotEnrolled | Phase::Failed { .. }) {
                    self.phase = Phase::Disconnected;
                }
                vec![]
            }
            Input::Forgotten => {
                if matches!(self.phase, Phase::Disconnected | Phase::Failed { .. }) {
                    self.phase = Phase::NotEnrolled;
                }
                vec![]
            }
            Input::Reached(reached) => {
                if let Phase::Trying { step, .. } = &mut self.phase {
                    *step = reached;
                }
                if reached == Step::Welcome {
                    self.sign_in.on_answer();
                }
                vec![]
            }
            Input::Ready { preferred } => self.on_ready(preferred, now),
            Input::Echo => self.on_echo(now),
            Input::Sending => {
                if let Phase::Up { health, .. } = &mut self.phase {
                    health.on_sending(now.mono);
                }
                vec![]
            }
            Input::Counters(counters) => match &mut self.phase {
                Phase::Up { health, .. } => health.on_counters(counters, now.mono).into_iter().collect(),
                _ => vec![],
            },
            Input::PathChanged => {
                let was_offline = std::mem::take(&mut self.offline);
                self.sign_in.forget();
                self.on_path(was_offline.then(|| Problem::new(code::NO_NETWORK)), now)
            }
            Input::PathGone => {
                self.offline = true;
                vec![]
            }
            Input::Woke => self.on_path(Some(silent("This machine was asleep").problem), now),
            Input::Sight(sight) => self.on_sight(sight, now),
            Input::Missed(cause) => self.on_missed(cause, now, random),
            Input::Lost(cause) => self.on_lost(cause, now, random),
            Input::Undone(left) => self.on_undone(left, now),
            Input::Timeout => self.on_timeout(now, random),
        }
    }

    fn on_connect(&mut self, now: Now) -> Vec<Action> {
        match &mut self.phase {
            Phase::Disconnected | Phase::Failed { .. } | Phase::Waiting { .. } => {
                (self.cause, self.attempts) = (None, 0);
                self.attempt(now)
            }
            Phase::Undoing { failed, again } => {
                (*failed, *again) = (None, true);
                vec![]
            }
            // A new wish waits for its own outcome and is not told the last one's.
            Phase::Trying { .. } | Phase::Probing { .. } => {
                self.cause = None;
                vec![]
            }
            Phase::NotEnrolled | Phase::Up { .. } => vec![],
        }
    }

    fn on_disconnect(&mut self) -> Vec<Action> {
        match &mut self.phase {
            Phase::NotEnrolled | Phase::Disconnected => vec![],
            Phase::Failed { .. } => {
                self.phase = Phase::Disconnected;
                vec![]
            }
            Phase::Undoing { failed, again } => {
                (*failed, *again) = (None, false);
                vec![]
            }
            Phase::Trying { .. } | Phase::Probing { .. } | Phase::Waiting { .. } | Phase::Up { .. } => self.undo(None),
        }
    }

    fn on_ready(&mut self, preferred: bool, now: Now) -> Vec<Action> {
        match &mut self.phase {
            Phase::Trying { .. } => {}
            // The link beside the one that did not answer, or was a detour, is the link now.
            Phase::Up { health, roam, detour, .. } => {
                *roam = None;
                *detour = (!preferred).then(|| Detour::new(now.mono));
                *health = Health::untested(now.mono);
                return vec![Action::Echo];
            }
            _ => return vec![],
        }
        self.sign_in.on_answer();
        let (deadline, again) = (now.mono + ECHO_WITHIN, now.mono + ECHO_AGAIN);
        self.phase = Phase::Probing { deadline, again, preferred };
        vec![Action::Echo]
    }

    fn on_echo(&mut self, now: Now) -> Vec<Action> {
        match &mut self.phase {
            Phase::Probing { preferred, .. } => {
                let detour = (!*preferred).then(|| Detour::new(now.mono));
                self.sign_in.forget();
                self.phase = Phase::Up { since: now, health: Health::new(now.mono), roam: None, detour };
            }
            Phase::Up { health, roam, .. } => {
                health.on_echo(now.mono);
                if roam.take().is_some_and(|roam| roam.is_beside()) {
                    return vec![Action::Enough];
                }
            }
            _ => {}
        }
        vec![]
    }

    /// The path is another one, or may be. `doubt`: why the link may be gone, if that is likely.
    fn on_path(&mut self, doubt: Option<Problem>, now: Now) -> Vec<Action> {
        match &mut self.phase {
            Phase::Up { health, roam, detour, .. } => {
                // An attempt on the old path may wait for long.
                let was_beside = roam.replace(Roam::new(doubt, now.mono)).is_some_and(|roam| roam.is_beside());
                let was_back = detour.as_mut().is_some_and(|detour| detour.on_ended(now.mono));
                let old = (was_beside || was_back).then_some(Action::Enough);
                health.on_tested(now.mono);
                old.into_iter().chain([Action::Rebind, Action::Echo]).collect()
            }
            Phase::Waiting { earliest, .. } if now.mono < *earliest => vec![Action::Rebind],
            Phase::Waiting { .. } => {
                self.attempts = 0;
                let attempt = self.attempt(now);
                std::iter::once(Action::Rebind).chain(attempt).collect()
            }
            Phase::Trying { .. } | Phase::Probing { .. } => {
                let attempt = self.attempt(now);
                [Action::Abandon, Action::Rebind].into_iter().chain(attempt).collect()
            }
            Phase::NotEnrolled | Phase::Disconnected | Phase::Failed { .. } | Phase::Undoing { .. } => vec![],
        }
    }

    fn on_sight(&mut self, sight: Sight, now: Now) -> Vec<Action> {
        let waits = matches!(self.phase, Phase::Trying { .. } | Phase::Probing { .. } | Phase::Waiting { .. });
        // The network is as good as another one once the sign-in is done.
        if waits && self.sign_in.on_sight(sight, now.mono) { self.on_path(None, now) } else { vec![] }
    }

    fn on_missed(&mut self, cause: Cause, now: Now, random: u64) -> Vec<Action> {
        match &mut self.phase {
            Phase::Up { .. } if cause.verdict => self.undo(Some(cause.problem)),
            Phase::Up { roam, detour, .. } => {
                if let Some(detour) = detour {
                    detour.on_ended(now.mono);
                }
                if let Some(roam) = roam {
                    roam.on_missed(now.mono);
                }
                vec![]
            }
            // The link that it was beside has been given up.
            _ => self.on_lost(cause, now, random),
        }
    }

    fn on_lost(&mut self, cause: Cause, now: Now, random: u64) -> Vec<Action> {
        match &self.phase {
            Phase::Trying { .. } | Phase::Probing { .. } => {}
            Phase::Up { since, roam, detour, .. } => {
                if now.mono.saturating_duration_since(since.mono) >= HEALTHY_AFTER {
                    self.attempts = 0;
                }
                // The attempt beside it goes on.
                let is_beside =
                    roam.as_ref().is_some_and(Roam::is_beside) || detour.as_ref().is_some_and(Detour::is_under_way);
                if !cause.verdict && is_beside {
                    self.cause = Some(cause.problem);
                    self.phase = Phase::Trying { step: Step::Handshake, deadline: now.mono + ATTEMPT_WITHIN };
                    return vec![];
                }
            }
            // Late news of a link that nobody waits for.
            _ => return vec![],
        }
        if cause.verdict {
            return self.undo(Some(cause.problem));
        }
        // An attempt that was silent for seconds has waited already: a gateway that comes back within the first
        // half minute finds somebody knocking.
        let took = match &self.phase {
            Phase::Trying { deadline, .. } => (now.mono + ATTEMPT_WITHIN).saturating_duration_since(*deadline),
            Phase::Probing { deadline, .. } => (now.mono + ECHO_WITHIN).saturating_duration_since(*deadline),
            _ => Duration::ZERO,
        };
        let pause = cause.not_before.unwrap_or_default();
        let wait = backoff(self.attempts, random).saturating_sub(took).max(backoff(0, random)).max(pause);
        let found_nobody = matches!(cause.problem.code, code::NO_ANSWER | code::NAME);
        if !found_nobody {
            self.sign_in.on_answer();
        }
        let look = (found_nobody && self.sign_in.on_failed()).then_some(Action::LookForPortal);
        self.cause = Some(cause.problem);
        self.attempts = self.attempts.saturating_add(1);
        self.phase = Phase::Waiting { until: now.mono + wait, until_utc: now.utc + wait, earliest: now.mono + pause };
        std::iter::once(Action::Abandon).chain(look).collect()
    }

    fn on_undone(&mut self, left: Option<Problem>, now: Now) -> Vec<Action> {
        let Phase::Undoing { failed, again } = &mut self.phase else {
            return vec![];
        };
        if *again {
            (self.cause, self.attempts) = (None, 0);
            return self.attempt(now);
        }
        let failed = failed.take();
        // Nobody waits for a device that was removed to connect again.
        let held = failed.as_ref().is_some_and(|problem| problem.code != code::REVOKED);
        // What is left behind on the machine matters more than why it was to be undone.
        self.phase = left.or(failed).map_or(Phase::Disconnected, |problem| Phase::Failed { problem, held });
        vec![]
    }

    fn on_timeout(&mut self, now: Now, random: u64) -> Vec<Action> {
        if self.poll_timeout().is_none_or(|due| now.mono < due) {
            return vec![];
        }
        if self.sign_in.on_timeout(now.mono) {
            return vec![Action::LookForPortal];
        }
        match &mut self.phase {
            Phase::Waiting { .. } => self.attempt(now),
            Phase::Trying { .. } => self.on_lost(silent("The attempt to connect took too long"), now, random),
            Phase::Probing { deadline, again, .. } if now.mono < *deadline => {
                *again = now.mono + ECHO_AGAIN;
                vec![Action::Echo]
            }
            Phase::Probing { .. } => self.on_lost(
                silent("The gateway accepted this device, but nothing comes back through the tunnel"),
                now,
                random,
            ),
            Phase::Up { roam: Some(roam), .. } if now.mono >= roam.poll_timeout() => match roam.on_timeout(now.mono) {
                Test::Echo => vec![Action::Echo],
                Test::Beside => vec![Action::Echo, Action::Beside],
            },
            Phase::Up { roam: None, detour: Some(detour), .. }
                if detour.poll_timeout().is_some_and(|due| now.mono >= due) =>
            {
                detour.on_timeout();
                vec![Action::Prefer]
            }
            Phase::Up { health, .. } => match health.on_timeout(now.mono) {
                Verdict::Alive(actions) => actions,
                Verdict::Dead => self.on_lost(silent("Nothing comes back through the tunnel"), now, random),
            },
            _ => vec![],
        }
    }

    fn attempt(&mut self, now: Now) -> Vec<Action> {
        self.phase = Phase::Trying { step: Step::Resolve, deadline: now.mono + ATTEMPT_WITHIN };
        self.sign_in.on_attempt(now.mono);
        vec![Action::Attempt]
    }

    fn undo(&mut self, failed: Option<Problem>) -> Vec<Action> {
        self.offline = false; // nobody looks any more
        self.sign_in.forget();
        self.phase = Phase::Undoing { failed, again: false };
        vec![Action::Undo]
    }
}

fn silent(sentence: &str) -> Cause {
    Cause { problem: Problem::new(code::NO_ANSWER).because(sentence), verdict: false, not_before: None }
}

/// Full jitter: anything between nothing and a ceiling that doubles up to [`BACKOFF_LAST`]
/// (Brooker, "Exponential Backoff And Jitter").
fn backoff(attempts: u32, random: u64) -> Duration {
    let ceiling = BACKOFF_FIRST.saturating_mul(1 << attempts.min(16)).min(BACKOFF_LAST);
    let ceiling_ms = ceiling.as_millis() as u64;
    Duration::from_millis(random % (ceiling_ms + 1))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::portal::Page;
    use proptest::prelude::*;

    #[test]
    fn connected_is_said_only_after_the_welcome_and_one_echo() {
        let mut it = Bench::new();
        assert_eq!(it.give(Input::Connect), [Action::Attempt]);
        it.give(Input::Reached(Step::Welcome));
        it.give(Input::Echo); // a stray one
        assert_eq!(it.state(), State::Connecting { step: Step::Welcome });
        assert_eq!(it.give(Input::Ready { preferred: true }), [Action::Echo]);
        assert_eq!(it.state(), State::Connecting { step: Step::Echo });
        it.give(Input::Echo);
        assert!(it.state().is_connected());
    }

    #[test]
    fn a_lost_first_echo_is_sent_again_and_no_echo_at_all_is_no_connection() {
        let mut it = Bench::new();
        it.give(Input::Connect);
        it.give(Input::Ready { preferred: true });
        assert_eq!(it.expire(), [Action::Echo]);
        assert_eq!(it.expire(), [Action::Echo]);
        while let State::Connecting { .. } = it.state() {
            it.expire();
        }
        assert_eq!(it.state().word(), "reconnecting");
        assert_eq!(it.elapsed(), ECHO_WITHIN);
    }

    #[test]
    fn network_causes_are_retried_for_ever_and_verdicts_never() {
        let mut it = Bench::new();
        it.give(Input::Connect);
        assert_eq!(it.give(network_cause()), [Action::Abandon, Action::LookForPortal]);
        assert_eq!(it.expire(), [Action::Attempt]);
        it.give(Input::Sight(Sight::Clear));
        for _ in 0..1000 {
            assert_eq!(it.give(network_cause())[0], Action::Abandon);
            assert_eq!(it.expire(), [Action::Attempt]);
        }
        let revoked = Problem::new(code::REVOKED);
        let verdict = Input::Lost(Cause { problem: revoked.clone(), verdict: true, not_before: None });
        assert_eq!(it.give(verdict), [Action::Undo]);
        assert_eq!(it.state(), State::Disconnecting);
        it.give(Input::Undone(None));
        assert_eq!(it.state(), State::Failed { problem: revoked });
        assert_eq!(it.supervisor.poll_timeout(), None);
    }

    #[test]
    fn the_backoff_grows_to_its_ceiling_and_starts_anew_after_a_minute_of_health() {
        let mut it = Bench::new();
        it.random = u64::MAX; // MAX % (ceiling + 1) varies; the ceiling is tested below
        it.give(Input::Connect);
        for attempt in 1..=20 {
            it.give(network_cause());
            assert!(matches!(it.state(), State::Reconnecting { attempt: a, .. } if a == attempt));
            it.expire();
        }
        it.give(Input::Ready { preferred: true });
        it.give(Input::Echo);
        it.now.mono += HEALTHY_AFTER;
        it.give(network_cause());
        assert!(matches!(it.state(), State::Reconnecting { attempt: 1, .. }));
    }

    #[test]
    fn a_link_that_never_became_healthy_keeps_its_backoff() {
        let mut it = Bench::new();
        it.give(Input::Connect);
        for attempt in 1..=5 {
            it.give(Input::Ready { preferred: true });
            it.give(Input::Echo);
            it.give(network_cause());
            assert!(matches!(it.state(), State::Reconnecting { attempt: a, .. } if a == attempt));
            it.expire();
        }
    }

    #[test]
    fn a_gateway_that_is_gone_for_half_a_minute_is_dialled_all_the_time() {
        let mut it = Bench::connected();
        it.give(network_cause());
        let lost = it.elapsed();
        let mut resting = Duration::ZERO;
        while it.elapsed() - lost < Duration::from_secs(25) {
            let before = it.elapsed();
            assert_eq!(it.expire(), [Action::Attempt]);
            resting += it.elapsed() - before;
            it.now.mono += Duration::from_secs(5); // a handshake that nobody answers
            it.give(network_cause());
        }
        assert!(resting < Duration::from_secs(2), "{resting:?} of 25 s nobody knocked");
    }

    #[test]
    fn a_gateway_that_asks_for_a_pause_gets_it() {
        let mut it = Bench::new();
        it.give(Input::Connect);
        let pause = Duration::from_secs(240);
        it.give(Input::Lost(Cause { problem: Problem::new(code::WAIT), verdict: false, not_before: Some(pause) }));
        it.expire();
        assert_eq!(it.elapsed(), pause);
    }

    #[test]
    fn traffic_is_held_back_from_the_wish_to_connect_to_the_wish_to_disconnect() {
        let mut it = Bench::new();
        assert!(!it.supervisor.holds());
        for input in [Input::Connect, Input::Ready { preferred: true }, Input::Echo, network_cause(), Input::PathGone] {
            it.give(input);
            assert!(it.supervisor.holds(), "{:?}", it.state());
        }
        it.give(Input::Disconnect);
        assert!(it.supervisor.holds(), "the tunnel is still being undone");
        it.give(Input::Undone(None));
        assert!(!it.supervisor.holds());
    }

    #[test]
    fn a_failure_holds_traffic_back_unless_the_device_was_removed() {
        for (code, held) in [(code::WRONG_SERVER, true), (code::EXPIRED, true), (code::REVOKED, false)] {
            let mut it = Bench::connected();
            it.give(Input::Lost(Cause { problem: Problem::new(code), verdict: true, not_before: None }));
            it.give(Input::Undone(None));
            assert_eq!((it.state().word(), it.supervisor.holds()), ("failed", held), "{code}");
            it.give(Input::Disconnect);
            assert!(!it.supervisor.holds());
        }
    }

    #[test]
    fn what_a_disconnect_could_not_undo_holds_nothing_back() {
        let mut it = Bench::connected();
        it.give(Input::Disconnect);
        it.give(Input::Undone(Some(Problem::new(code::SYSTEM))));
        assert_eq!((it.state().word(), it.supervisor.holds()), ("failed", false));
    }

    #[test]
    fn a_new_wish_while_undoing_is_kept() {
        let mut it = Bench::new();
        it.give(Input::Connect);
        assert_eq!(it.give(Input::Disconnect), [Action::Undo]);
        assert_eq!(it.give(Input::Connect), []);
        assert_eq!(it.give(Input::Undone(None)), [Action::Attempt]);
    }

    #[test]
    fn what_could_not_be_undone_is_told_and_not_called_success() {
        let mut it = Bench::new();
        it.give(Input::Connect);
        it.give(Input::Disconnect);
        let left = Problem::new(code::SYSTEM);
        it.give(Input::Undone(Some(left.clone())));
        assert_eq!(it.state(), State::Failed { problem: left });
    }

    #[test]
    fn connecting_by_hand_does_not_wait_for_the_backoff() {
        let mut it = Bench::new();
        it.give(Input::Connect);
        it.give(network_cause());
        assert_eq!(it.give(Input::Connect), [Action::Attempt]);
        assert_eq!(it.state(), State::Connecting { step: Step::Resolve }, "the old cause is not the new one's");
    }

    #[test]
    fn connecting_by_hand_during_an_attempt_forgets_why_the_last_one_failed() {
        let mut it = Bench::new();
        it.give(Input::Connect);
        it.give(network_cause());
        it.expire();
        assert_eq!(it.state().word(), "reconnecting");
        assert_eq!(it.give(Input::Connect), []);
        assert_eq!(it.state(), State::Connecting { step: Step::Resolve });
        it.give(network_cause());
        assert_eq!(it.state().word(), "reconnecting");
    }

    #[test]
    fn a_link_that_answers_on_its_new_path_is_kept() {
        let mut it = Bench::connected();
        assert_eq!(it.give(Input::PathChanged), [Action::Rebind, Action::Echo]);
        assert_eq!(it.expire(), [Action::Echo], "the first may be lost to the change itself");
        assert!(it.state().is_connected());
        assert_eq!(it.give(Input::Echo), []);
        assert_eq!(it.expire(), [Action::Inspect], "it is an ordinary link again");
    }

    #[test]
    fn a_link_that_does_not_answer_on_its_new_path_gets_another_beside_it_within_a_second() {
        let mut it = Bench::connected();
        let changed = it.elapsed();
        it.give(Input::PathChanged);
        while !it.expire().contains(&Action::Beside) {}
        assert!(it.elapsed() - changed <= Duration::from_secs(1));
        assert!(it.state().is_connected(), "nothing is known to be lost");
        it.give(Input::Reached(Step::Welcome));
        assert_eq!(it.give(Input::Ready { preferred: true }), [Action::Echo], "the new link is tested, too");
        it.give(Input::Echo);
        assert!(it.state().is_connected());
    }

    #[test]
    fn the_old_link_wins_if_it_answers_first() {
        let mut it = Bench::connected();
        it.give(Input::PathChanged);
        while !it.expire().contains(&Action::Beside) {}
        assert_eq!(it.give(Input::Echo), [Action::Enough]);
        assert!(it.state().is_connected());
    }

    #[test]
    fn an_attempt_beside_a_dead_link_outlives_it() {
        let mut it = Bench::connected();
        it.give(Input::PathChanged);
        while !it.expire().contains(&Action::Beside) {}
        assert_eq!(it.give(network_cause()), [], "the link is lost, the attempt goes on");
        assert_eq!(it.state().word(), "reconnecting");
        assert_eq!(it.give(Input::Ready { preferred: true }), [Action::Echo]);
        it.give(Input::Echo);
        assert!(it.state().is_connected());
    }

    #[test]
    fn a_revoked_device_learns_it_from_the_attempt_beside_its_link() {
        let mut it = Bench::connected();
        it.give(Input::PathChanged);
        while !it.expire().contains(&Action::Beside) {}
        let revoked = Cause { problem: Problem::new(code::REVOKED), verdict: true, not_before: None };
        assert_eq!(it.give(Input::Missed(revoked)), [Action::Undo]);
    }

    #[test]
    fn a_silent_link_is_given_up_whatever_becomes_of_the_attempts_beside_it() {
        let mut it = Bench::connected();
        it.give(Input::PathChanged);
        let changed = it.elapsed();
        while it.state().is_connected() {
            if it.expire().contains(&Action::Beside) {
                it.give(Input::Missed(no_answer()));
            }
        }
        assert!(it.elapsed() - changed <= Duration::from_secs(5), "{:?}", it.elapsed() - changed);
    }

    #[test]
    fn a_path_that_changes_all_the_time_does_not_hide_a_silent_link() {
        let mut it = Bench::connected();
        let began = it.elapsed();
        while it.state().is_connected() && it.elapsed() - began < Duration::from_secs(60) {
            it.give(Input::PathChanged);
            for _ in 0..2 {
                if it.state().is_connected() {
                    it.expire();
                }
            }
        }
        assert!(it.elapsed() - began <= Duration::from_secs(5), "{:?}", it.elapsed() - began);
    }

    #[test]
    fn a_network_that_comes_back_is_tried_at_once_however_long_it_was_gone() {
        let mut it = Bench::new();
        it.give(Input::Connect);
        it.give(Input::PathGone);
        assert_eq!(it.state(), State::Offline);
        for _ in 0..100 {
            it.give(network_cause());
            it.expire();
        }
        it.give(network_cause());
        assert_eq!(it.give(Input::PathChanged), [Action::Rebind, Action::Attempt]);
        assert_eq!(it.state().word(), "reconnecting");
    }

    #[test]
    fn a_new_path_does_not_shorten_the_pause_that_the_gateway_asked_for() {
        let mut it = Bench::new();
        it.give(Input::Connect);
        let pause = Duration::from_secs(240);
        it.give(Input::Lost(Cause { problem: Problem::new(code::WAIT), verdict: false, not_before: Some(pause) }));
        assert_eq!(it.give(Input::PathChanged), [Action::Rebind]);
        it.expire();
        assert_eq!(it.elapsed(), pause);
    }

    #[test]
    fn an_attempt_on_the_old_path_is_begun_anew() {
        let mut it = Bench::new();
        it.give(Input::Connect);
        assert_eq!(it.give(Input::PathChanged), [Action::Abandon, Action::Rebind, Action::Attempt]);
    }

    #[test]
    fn after_a_time_without_a_network_connected_is_said_only_after_an_echo() {
        let mut it = Bench::connected();
        it.give(Input::PathGone);
        assert_eq!(it.give(Input::PathChanged), [Action::Rebind, Action::Echo]);
        assert!(matches!(it.state(), State::Reconnecting { cause, .. } if cause.code == code::NO_NETWORK));
        it.give(Input::Echo);
        assert!(it.state().is_connected());
        it.give(Input::Woke);
        assert_eq!(it.state().word(), "reconnecting");
        it.give(Input::Echo);
        assert!(it.state().is_connected());
    }

    #[test]
    fn a_detour_is_left_for_the_preferred_endpoint_without_a_gap() {
        let mut it = Bench::new();
        for input in [Input::Connect, Input::Ready { preferred: false }, Input::Echo] {
            it.give(input);
        }
        let up = it.elapsed();
        it.until(Action::Prefer);
        assert!(it.elapsed() - up <= Duration::from_secs(60));
        assert!(it.state().is_connected());
        it.give(Input::Missed(no_answer()));
        let missed = it.elapsed();
        it.until(Action::Prefer);
        assert!(it.elapsed() - missed >= Duration::from_secs(60), "and not all the time");
        assert_eq!(it.give(Input::Ready { preferred: true }), [Action::Echo]);
        it.give(Input::Echo);
        assert!(it.state().is_connected());
        for _ in 0..1000 {
            assert!(!it.expire_answered().contains(&Action::Prefer), "it has arrived");
        }
    }

    #[test]
    fn a_link_that_is_lost_while_the_preferred_endpoint_is_tried_waits_for_that() {
        let mut it = Bench::new();
        for input in [Input::Connect, Input::Ready { preferred: false }, Input::Echo] {
            it.give(input);
        }
        it.until(Action::Prefer);
        assert_eq!(it.give(network_cause()), []);
        assert_eq!(it.state().word(), "reconnecting");
        assert_eq!(it.give(Input::Ready { preferred: true }), [Action::Echo]);
    }

    #[test]
    fn a_network_that_wants_a_sign_in_is_named_and_the_tunnel_comes_up_once_it_is_done() {
        let mut it = Bench::new();
        it.give(Input::Connect);
        let actions = it.give(network_cause());
        assert!(actions.contains(&Action::LookForPortal));
        it.give(Input::Sight(portal()));
        let State::PortalSignIn { page, .. } = it.state() else { panic!("{:?}", it.state()) };
        assert_eq!(page, "http://login.hotel.example/");
        let seen = it.elapsed();
        let mut attempts = 0;
        loop {
            let actions = it.expire();
            attempts += usize::from(actions.contains(&Action::Attempt));
            if actions.contains(&Action::LookForPortal) {
                break;
            }
        }
        assert!(it.elapsed() - seen <= crate::sign_in::AGAIN);
        it.give(Input::Sight(portal()));
        assert_eq!(it.state().word(), "portal_sign_in", "also while attempts go on: {attempts}");
        it.until_expired(Action::LookForPortal);
        let actions = it.give(Input::Sight(Sight::Clear));
        assert!(actions.contains(&Action::Attempt), "{actions:?}");
        assert_eq!(it.state().word(), "reconnecting");
    }

    #[test]
    fn a_sign_in_page_is_forgotten_with_its_network_and_with_the_wish() {
        for input in [Input::PathChanged, Input::Disconnect] {
            let mut it = Bench::new();
            it.give(Input::Connect);
            it.give(network_cause());
            it.give(Input::Sight(portal()));
            it.give(input);
            assert_ne!(it.state().word(), "portal_sign_in");
        }
        let mut it = Bench::new();
        it.give(Input::Sight(portal())); // an answer that comes late
        assert_eq!(it.state(), State::Disconnected);
    }

    #[test]
    fn a_machine_without_a_network_says_so_and_disconnects_all_the_same() {
        let mut it = Bench::connected();
        it.give(Input::PathGone);
        assert_eq!(it.state(), State::Offline);
        assert_eq!(it.give(Input::Disconnect), [Action::Undo]);
        assert_eq!(it.state(), State::Disconnecting);
        it.give(Input::Undone(None));
        assert_eq!(it.state(), State::Disconnected);
    }

    proptest! {
        #[test]
        fn every_wait_is_within_its_ceiling(attempts in 0u32..100, random: u64) {
            let ceiling = BACKOFF_FIRST.saturating_mul(1 << attempts.min(16)).min(BACKOFF_LAST);
            prop_assert!(backoff(attempts, random) <= ceiling);
            prop_assert!(ceiling <= BACKOFF_LAST);
        }

        #[test]
        fn whatever_happens_disconnect_reaches_disconnected(inputs in proptest::collection::vec(any_input(), 0..200)) {
            let mut it = Bench::new();
            for input in inputs {
                it.step(input);
            }
            let before = it.undoing;
            let actions = it.give(Input::Disconnect);
            it.undoing = before || actions.contains(&Action::Undo);
            if it.undoing {
                it.give(Input::Undone(None));
            }
            prop_assert_eq!(it.state(), State::Disconnected);
            prop_assert!(!it.supervisor.holds(), "a block outlives the wish");
            prop_assert_eq!(it.supervisor.poll_timeout(), None);
        }

        #[test]
        fn no_state_is_stuck(inputs in proptest::collection::vec(any_input(), 0..200)) {
            let mut it = Bench::new();
            for input in inputs {
                it.step(input);
                let waits_for_a_person = matches!(it.state(), State::Disconnected | State::Failed { .. });
                let moves_by_itself = it.supervisor.poll_timeout().is_some() || it.undoing;
                prop_assert!(waits_for_a_person != moves_by_itself, "{:?}", it.supervisor);
            }
        }

        #[test]
        fn left_alone_with_a_dead_network_it_keeps_trying(inputs in proptest::collection::vec(any_input(), 0..100)) {
            let mut it = Bench::new();
            for input in inputs {
                it.step(input);
            }
            if it.undoing {
                it.undoing = false;
                it.give(Input::Undone(None));
            }
            it.give(Input::Connect);
            let mut attempts = 0;
            for _ in 0..200 {
                let mut actions = it.expire();
                if actions.contains(&Action::Inspect) {
                    actions.extend(it.give(Input::Counters(Counters::default())));
                }
                attempts += actions.iter().filter(|action| **action == Action::Attempt).count();
            }
            prop_assert!(attempts > 10, "{attempts} attempts, {:?}", it.supervisor);
        }
    }

    /// A supervisor, a clock and a memory of whether an undo is under way.
    struct Bench {
        supervisor: Supervisor,
        start: Instant,
        now: Now,
        random: u64,
        undoing: bool,
    }

    impl Bench {
        fn new() -> Self {
            let start = Instant::now(); // any instant will do: time is an argument
            let now = Now { mono: start, utc: Timestamp::UNIX_EPOCH };
            Self { supervisor: Supervisor::new(true), start, now, random: 7, undoing: false }
        }

        fn connected() -> Self {
            let mut it = Self::new();
            for input in [Input::Connect, Input::Ready { preferred: true }, Input::Echo] {
                it.give(input);
            }
            it
        }

        fn give(&mut self, input: Input) -> Vec<Action> {
            self.random = self.random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            self.supervisor.handle(input, self.now, self.random)
        }

        /// Lets time pass to the next timeout.
        fn expire(&mut self) -> Vec<Action> {
            self.now.mono = self.supervisor.poll_timeout().expect("a timeout is pending");
            self.give(Input::Timeout)
        }

        /// The same with a gateway that answers echoes and counters that stand still.
        fn expire_answered(&mut self) -> Vec<Action> {
            let mut actions = self.expire();
            if actions.contains(&Action::Inspect) {
                actions.extend(self.give(Input::Counters(Counters::default())));
            }
            if actions.contains(&Action::Echo) {
                actions.extend(self.give(Input::Echo));
            }
            actions
        }

        fn until_expired(&mut self, wanted: Action) {
            while !self.expire().contains(&wanted) {}
        }

        fn until(&mut self, wanted: Action) {
            while !self.expire_answered().contains(&wanted) {}
        }

        /// One input of any kind, as the shell would give it.
        fn step(&mut self, input: Input) {
            match input {
                Input::Undone(_) if !self.undoing => return,
                Input::Undone(_) => self.undoing = false,
                Input::Timeout => {
                    if let Some(due) = self.supervisor.poll_timeout() {
                        self.now.mono = due;
                    }
                }
                _ => self.now.mono += Duration::from_millis(300),
            }
            let actions = self.give(input);
            assert!(!(self.undoing && actions.contains(&Action::Undo)), "undone twice");
            self.undoing |= actions.contains(&Action::Undo);
        }

        fn state(&self) -> State {
            self.supervisor.state()
        }

        fn elapsed(&self) -> Duration {
            self.now.mono - self.start
        }
    }

    fn no_answer() -> Cause {
        Cause { problem: Problem::new(code::NO_ANSWER), verdict: false, not_before: None }
    }

    fn portal() -> Sight {
        Sight::Portal(Page { url: "http://login.hotel.example/".parse().unwrap(), is_certain: true })
    }

    fn network_cause() -> Input {
        Input::Lost(no_answer())
    }

    fn any_input() -> impl Strategy<Value = Input> {
        prop_oneof![
            Just(Input::Connect),
            Just(Input::Disconnect),
            Just(Input::Enrolled),
            Just(Input::Reached(Step::Handshake)),
            Just(Input::Ready { preferred: true }),
            Just(Input::Ready { preferred: false }),
            Just(Input::Echo),
            Just(Input::Echo),
            (0u64..3, 0u64..3).prop_map(|(sent, received)| Input::Counters(Counters { sent, received })),
            Just(network_cause()),
            Just(Input::PathChanged),
            Just(Input::PathChanged),
            Just(Input::PathGone),
            Just(Input::Woke),
            Just(Input::Missed(no_answer())),
            Just(Input::Sight(Sight::Clear)),
            Just(Input::Sight(portal())),
            Just(Input::Lost(Cause { problem: Problem::new(code::REVOKED), verdict: true, not_before: None })),
            Just(Input::Undone(None)),
            Just(Input::Undone(Some(Problem::new(code::SYSTEM)))),
            Just(Input::Timeout),
            Just(Input::Timeout),
        ]
    }
}
