//! A link at an endpoint that is not the preferred one: when to try that again. Pure.
//!
//! Tried beside the link, so that nothing is lost by it; after a minute first, since what failed just now may fail
//! again, then after twice as long each time.

use std::time::{Duration, Instant};

/// The first time.
const FIRST: Duration = Duration::from_secs(60);
/// The longest time between two.
const LONGEST: Duration = Duration::from_secs(15 * 60);

/// On a detour.
#[derive(Debug)]
pub struct Detour {
    /// When to try; `None` while that is under way.
    next: Option<Instant>,
    wait: Duration,
}

impl Detour {
    /// The link is up.
    pub fn new(now: Instant) -> Self {
        Self { next: Some(now + FIRST), wait: FIRST }
    }

    /// When to call [`Self::on_timeout`] next.
    pub fn poll_timeout(&self) -> Option<Instant> {
        self.next
    }

    /// The preferred endpoint is being tried from now on.
    pub fn on_timeout(&mut self) {
        self.next = None;
    }

    /// True while it is being tried.
    pub fn is_under_way(&self) -> bool {
        self.next.is_none()
    }

    /// Whatever was under way has ended without success; true when something was.
    pub fn on_ended(&mut self, now: Instant) -> bool {
        let was = self.is_under_way();
        if was {
            self.wait = (self.wait * 2).min(LONGEST);
            self.next = Some(now + self.wait);
        }
        was
    }
}
