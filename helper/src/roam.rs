//! A link is tested after its path has changed: does it still answer, or is another one needed? Pure.
//!
//! Echoes at once and a few times more, since the change itself may swallow one; after a second
//! without an answer a fresh handshake beside the link, since its path may never heal (a gateway or
//! a middlebox that forgot it). Whichever answers first stays.

use std::time::{Duration, Instant};

use culvert_protocol::Problem;

/// The rhythm of the echoes.
const ECHO_EVERY: Duration = Duration::from_millis(250);
/// So long a link may be silent before another one is made beside it, and so long after one that failed.
const BESIDE_AFTER: Duration = Duration::from_secs(1);

/// A link under test.
#[derive(Debug)]
pub struct Roam {
    doubt: Option<Problem>,
    next_echo: Instant,
    /// When to begin an attempt beside it; `None` while one is under way.
    next_beside: Option<Instant>,
}

/// What a timeout asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Test {
    /// Another echo.
    Echo,
    /// Another link beside it.
    Beside,
}

impl Roam {
    /// The path has just changed, and the first echo is out. `doubt`: why nobody should be told that the link
    /// still works before it answers.
    pub fn new(doubt: Option<Problem>, now: Instant) -> Self {
        Self { doubt, next_echo: now + ECHO_EVERY, next_beside: Some(now + BESIDE_AFTER) }
    }

    /// Why the link may be gone, if that is likely.
    pub fn doubt(&self) -> Option<&Problem> {
        self.doubt.as_ref()
    }

    /// True while an attempt beside the link is under way.
    pub fn is_beside(&self) -> bool {
        self.next_beside.is_none()
    }

    /// When to call [`Self::on_timeout`] next.
    pub fn poll_timeout(&self) -> Instant {
        self.next_beside.map_or(self.next_echo, |beside| beside.min(self.next_echo))
    }

    /// The moment named by [`Self::poll_timeout`] has come.
    pub fn on_timeout(&mut self, now: Instant) -> Test {
        self.next_echo = now + ECHO_EVERY;
        if self.next_beside.is_some_and(|due| now >= due) {
            self.next_beside = None;
            return Test::Beside;
        }
        Test::Echo
    }

    /// The attempt beside the link failed.
    pub fn on_missed(&mut self, now: Instant) {
        self.next_beside = Some(now + BESIDE_AFTER);
    }
}
