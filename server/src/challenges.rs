//! When a live session has to prove its key again, and whether it did (architecture section 5).
//!
//! A stolen session (its keys copied out of a client's memory) lives no longer than this allows,
//! since the answer needs the device's own key. Pure: no clock, no link. What a link is closed with
//! is `sessions`' business. A link that is gone may stay in the queue until its turn; nothing is
//! asked of it then.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap};
use std::time::{Duration, Instant};

use culvert_tunnel::shard::mailbox::LinkId;

/// How long an answer may take. Longer than QUIC lets a silent peer live, so that a client that
/// sleeps loses its connection and not its good name.
pub const ANSWER_WITHIN: Duration = Duration::from_secs(75);

/// Bytes of a challenge.
pub const NONCE_BYTES: usize = 32;

/// What is to be done now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Act {
    /// Send this challenge.
    Ask(LinkId, [u8; NONCE_BYTES]),
    /// The last one was not answered.
    Fail(LinkId),
}

/// The challenges of all open sessions.
#[derive(Debug, Default)]
pub struct Challenges {
    every: Option<Duration>,
    queue: BinaryHeap<Reverse<(Instant, LinkId)>>,
    /// Sessions that are open, with what they were asked and have not answered.
    open: HashMap<LinkId, Option<[u8; NONCE_BYTES]>>,
}

impl Challenges {
    /// One challenge a session in each `every`; `None` asks nothing.
    pub fn new(every: Option<Duration>) -> Self {
        Self { every, ..Self::default() }
    }

    /// Another interval, from each session's next challenge on. Sessions that had none begin now.
    pub fn set(&mut self, every: Option<Duration>, now: Instant, mut random: impl FnMut() -> u32) {
        if self.every == every {
            return;
        }
        self.every = every;
        self.queue.clear();
        let links: Vec<LinkId> = self.open.keys().copied().collect();
        for link in links {
            self.open.insert(link, None);
            self.schedule(link, now, random());
        }
    }

    /// A session opened. `random` spreads sessions that open together over half the interval.
    pub fn admit(&mut self, link: LinkId, now: Instant, random: u32) {
        self.open.insert(link, None);
        self.schedule(link, now, random);
    }

    /// A session ended.
    pub fn forget(&mut self, link: LinkId) {
        self.open.remove(&link);
    }

    /// When to call [`Self::on_timeout`] next; `None` while nothing is due ever.
    pub fn poll_timeout(&self) -> Option<Instant> {
        self.queue.peek().map(|Reverse((at, _))| *at)
    }

    /// What is due. `nonce` gives random bytes, and `None` when the system has none: such a session is
    /// asked at its next turn.
    pub fn on_timeout(&mut self, now: Instant, mut nonce: impl FnMut() -> Option<[u8; NONCE_BYTES]>) -> Vec<Act> {
        let mut acts = Vec::new();
        while let Some(Reverse((at, link))) = self.queue.peek().copied()
            && at <= now
        {
            self.queue.pop();
            match self.open.get_mut(&link) {
                None => {}
                Some(Some(_)) => {
                    self.open.remove(&link);
                    acts.push(Act::Fail(link));
                }
                Some(asked) => match nonce() {
                    Some(nonce) => {
                        *asked = Some(nonce);
                        self.queue.push(Reverse((now + ANSWER_WITHIN, link)));
                        acts.push(Act::Ask(link, nonce));
                    }
                    None => self.queue.push(Reverse((now + ANSWER_WITHIN, link))),
                },
            }
        }
        acts
    }

    /// True when this is the challenge that the session was asked; whether the signature is right is the
    /// caller's to see. The next challenge follows after an interval.
    pub fn on_answer(&mut self, link: LinkId, nonce: &[u8], now: Instant, random: u32) -> bool {
        let Some(asked) = self.open.get_mut(&link) else { return false };
        if asked.is_none_or(|asked| asked != nonce) {
            return false;
        }
        *asked = None;
        // The deadline of this one is still queued; it is the next challenge's turn then, if that is later.
        self.queue.retain(|Reverse((_, queued))| *queued != link);
        self.schedule(link, now, random);
        true
    }

    fn schedule(&mut self, link: LinkId, now: Instant, random: u32) {
        if let Some(every) = self.every {
            let spread = every.mul_f64(0.5 + f64::from(random) / f64::from(u32::MAX) / 2.0);
            self.queue.push(Reverse((now + spread, link)));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR: Duration = Duration::from_secs(3_600);
    const A: LinkId = LinkId { shard: 0, serial: 1 };
    const B: LinkId = LinkId { shard: 1, serial: 1 };

    #[test]
    fn each_session_is_asked_within_an_interval_and_again_after_its_answer() {
        let t0 = Instant::now();
        let mut challenges = Challenges::new(Some(HOUR));
        challenges.admit(A, t0, 0);
        challenges.admit(B, t0, u32::MAX);
        assert_eq!(challenges.poll_timeout(), Some(t0 + HOUR / 2));
        assert_eq!(challenges.on_timeout(t0 + HOUR / 2, || Some([1; 32])), [Act::Ask(A, [1; 32])]);
        assert!(!challenges.on_answer(A, &[9; 32], t0 + HOUR / 2, 0), "another nonce");
        assert!(!challenges.on_answer(B, &[1; 32], t0 + HOUR / 2, 0), "another session");
        assert!(challenges.on_answer(A, &[1; 32], t0 + HOUR / 2, u32::MAX));
        assert!(!challenges.on_answer(A, &[1; 32], t0 + HOUR / 2, 0), "once");
        assert_eq!(challenges.on_timeout(t0 + HOUR, || Some([2; 32])), [Act::Ask(B, [2; 32])]);
        assert_eq!(challenges.on_timeout(t0 + HOUR + ANSWER_WITHIN, || Some([3; 32])), [Act::Fail(B)]);
        assert_eq!(challenges.on_timeout(t0 + HOUR * 3 / 2, || Some([4; 32])), [Act::Ask(A, [4; 32])]);
    }

    #[test]
    fn a_session_that_ended_is_not_asked() {
        let t0 = Instant::now();
        let mut challenges = Challenges::new(Some(HOUR));
        challenges.admit(A, t0, 0);
        challenges.forget(A);
        assert_eq!(challenges.on_timeout(t0 + HOUR, || Some([1; 32])), []);
        assert_eq!(challenges.poll_timeout(), None);
    }

    #[test]
    fn without_an_interval_nothing_is_asked_until_there_is_one() {
        let t0 = Instant::now();
        let mut challenges = Challenges::new(None);
        challenges.admit(A, t0, 0);
        assert_eq!(challenges.poll_timeout(), None);
        challenges.set(Some(HOUR), t0, || 0);
        assert_eq!(challenges.poll_timeout(), Some(t0 + HOUR / 2));
        challenges.set(None, t0, || 0);
        assert_eq!(challenges.poll_timeout(), None);
    }

    #[test]
    fn a_system_without_random_numbers_asks_later() {
        let t0 = Instant::now();
        let mut challenges = Challenges::new(Some(HOUR));
        challenges.admit(A, t0, 0);
        assert_eq!(challenges.on_timeout(t0 + HOUR, || None), []);
        let later = t0 + HOUR + ANSWER_WITHIN;
        assert_eq!(challenges.on_timeout(later, || Some([1; 32])), [Act::Ask(A, [1; 32])]);
    }
}
