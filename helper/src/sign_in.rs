//! A network that wants a sign-in first: when to look whether it still does. Pure.
//!
//! Looked for when an attempt has been silent for [`SILENCE`], since nothing else tells of such a network, or has found
//! nobody; from then on every [`AGAIN`], so that the tunnel comes up as soon as the sign-in is done. Not here: how to look (`portal`), what may
//! be reached meanwhile (`service`).

use std::time::{Duration, Instant};

use crate::portal::{Page, Sight};

/// An attempt that takes longer than this is likely to find nobody.
pub const SILENCE: Duration = Duration::from_secs(2);
/// The page is looked for again after this time.
pub const AGAIN: Duration = Duration::from_secs(2);

/// What is known of the network's sign-in page.
#[derive(Debug, Default)]
pub struct SignIn {
    page: Option<Page>,
    /// A look is under way.
    looking: bool,
    next: Option<Instant>,
}

impl SignIn {
    /// The page that the network shows.
    pub fn page(&self) -> Option<&Page> {
        self.page.as_ref()
    }

    /// An attempt begins.
    pub fn on_attempt(&mut self, now: Instant) {
        if self.page.is_none() && !self.looking {
            self.next = Some(now + SILENCE);
        }
    }

    /// The gateway has answered, so nothing is in the way.
    pub fn on_answer(&mut self) {
        if self.page.is_none() {
            self.next = None;
        }
    }

    /// An attempt found nobody; true when to look.
    pub fn on_failed(&mut self) -> bool {
        let is_news = self.page.is_none() && !self.looking;
        if is_news {
            (self.next, self.looking) = (None, true);
        }
        is_news
    }

    /// When to call [`Self::on_timeout`] next.
    pub fn poll_timeout(&self) -> Option<Instant> {
        self.next
    }

    /// True when to look.
    pub fn on_timeout(&mut self, now: Instant) -> bool {
        let is_due = self.next.is_some_and(|next| now >= next);
        if is_due {
            (self.next, self.looking) = (None, true);
        }
        is_due
    }

    /// What a look showed; true when the sign-in is done. A page that may be somebody else's is none.
    pub fn on_sight(&mut self, sight: Sight, now: Instant) -> bool {
        self.looking = false;
        match sight {
            Sight::Portal(page) if page.is_certain => {
                (self.page, self.next) = (Some(page), Some(now + AGAIN));
                false
            }
            Sight::Portal(_) | Sight::Clear => {
                self.next = None;
                self.page.take().is_some()
            }
        }
    }

    /// Another network, or nobody wants to know any more. A look that is under way is of the old one, and is made
    /// again by what fails next.
    pub fn forget(&mut self) {
        *self = Self::default();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_is_looked_for_until_it_is_gone() {
        let now = Instant::now();
        let mut sign_in = SignIn::default();
        assert!(sign_in.on_failed());
        assert!(!sign_in.on_failed(), "one look at a time");
        assert!(!sign_in.on_sight(page(true), now));
        assert!(sign_in.page().is_some());
        assert!(!sign_in.on_failed(), "it is looked for by the clock now");
        assert!(!sign_in.on_timeout(now));
        assert!(sign_in.on_timeout(now + AGAIN));
        assert_eq!(sign_in.poll_timeout(), None);
        assert!(sign_in.on_sight(Sight::Clear, now + AGAIN), "the sign-in is done");
        assert!(sign_in.page().is_none());
        assert!(!sign_in.on_sight(Sight::Clear, now + AGAIN));
    }

    #[test]
    fn an_attempt_that_is_silent_is_followed_by_a_look_and_one_that_ends_soon_by_none() {
        let now = Instant::now();
        let mut sign_in = SignIn::default();
        sign_in.on_attempt(now);
        assert_eq!(sign_in.poll_timeout(), Some(now + SILENCE));
        sign_in.on_answer();
        assert_eq!(sign_in.poll_timeout(), None);
        sign_in.on_attempt(now);
        assert!(sign_in.on_timeout(now + SILENCE));
        assert!(!sign_in.on_failed(), "one look at a time");
        sign_in.on_attempt(now + SILENCE);
        assert_eq!(sign_in.poll_timeout(), None);
    }

    #[test]
    fn a_page_that_may_be_the_gateways_own_is_none() {
        let mut sign_in = SignIn::default();
        sign_in.on_failed();
        assert!(!sign_in.on_sight(page(false), Instant::now()));
        assert!(sign_in.page().is_none() && sign_in.poll_timeout().is_none());
    }

    fn page(is_certain: bool) -> Sight {
        Sight::Portal(Page { url: "http://login.hotel.example/".parse().unwrap(), is_certain })
    }
}
