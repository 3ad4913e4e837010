//! Is the tunnel alive? An echo every 24 s while idle; at once when traffic stops coming in, and every
//! second while it goes out and nothing comes back. Pure. Three missed echoes end the link.
//!
//! The shard is asked for its counters while traffic flows (the machine is awake then anyway) and
//! never while it rests, so an idle client wakes up for its keep-alive only.

use std::time::{Duration, Instant};

use crate::supervisor::Action;

/// How often an idle link is tested: it is its keep-alive, for middleboxes that forget after 30 s, and comes
/// before QUIC's own.
pub const IDLE_EVERY: Duration = Duration::from_secs(24);
/// How often a suspicious link is tested.
pub const BUSY_EVERY: Duration = Duration::from_secs(1);
/// How often a link that carries something is looked at. A download that stops may have lost its way back
/// (a NAT that forgot it), and nothing but an echo shows the gateway the new one.
pub const LOOK_EVERY: Duration = Duration::from_millis(250);
/// So many echoes without an answer mean that the link is dead.
pub const MISSED: u32 = 3;
/// So many where something else comes back: the way there may be gone and the way back not, so that the other side
/// only repeats itself; or the path loses much.
pub const MISSED_HEARING: u32 = 5;

/// Inner packets that have crossed a link.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// To the gateway.
    pub sent: u64,
    /// From the gateway.
    pub received: u64,
}

/// What a timeout means.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Nothing is wrong yet; do this.
    Alive(Vec<Action>),
    /// Three echoes in a row were lost and nothing else came back either.
    Dead,
}

/// The health of one link.
#[derive(Debug)]
pub struct Health {
    last: Counters,
    /// When something last came back.
    heard: Instant,
    /// An echo is out.
    waiting: bool,
    /// Something else has come back since it went out.
    hearing: bool,
    missed: u32,
    busy: bool,
    receiving: bool,
    next: Instant,
}

impl Health {
    /// A link whose first echo has just come back.
    pub fn new(now: Instant) -> Self {
        Self {
            last: Counters::default(),
            heard: now,
            waiting: false,
            hearing: false,
            missed: 0,
            busy: false,
            receiving: false,
            next: now + BUSY_EVERY,
        }
    }

    /// A link whose first echo has just been sent.
    pub fn untested(now: Instant) -> Self {
        Self { waiting: true, ..Self::new(now) }
    }

    /// An echo was sent out of turn. However often that happens, a silent link is found in the same time.
    pub fn on_tested(&mut self, now: Instant) {
        let due = now + BUSY_EVERY;
        self.next = if self.waiting { self.next.min(due) } else { due };
        self.waiting = true;
    }

    /// When to call [`Self::on_timeout`] next.
    pub fn poll_timeout(&self) -> Instant {
        self.next
    }

    /// An echo came back.
    pub fn on_echo(&mut self, now: Instant) {
        self.on_heard(now);
        self.next = now + if self.busy { BUSY_EVERY } else { IDLE_EVERY };
    }

    /// Packets go out, perhaps after a rest: whether anything comes back is seen to soon.
    pub fn on_sending(&mut self, now: Instant) {
        self.next = self.next.min(now + BUSY_EVERY);
    }

    /// Looks at the counters; may ask for an echo.
    pub fn on_counters(&mut self, counters: Counters, now: Instant) -> Option<Action> {
        let (sending, receiving) = (counters.sent > self.last.sent, counters.received > self.last.received);
        let stopped = std::mem::replace(&mut self.receiving, receiving) && !receiving;
        self.last = counters;
        self.busy = sending || receiving;
        if receiving {
            self.heard = now;
        }
        if self.waiting {
            self.hearing |= receiving;
            return None;
        }
        if receiving {
            self.next = now + LOOK_EVERY;
            return None;
        }
        if sending || stopped || now.saturating_duration_since(self.heard) >= IDLE_EVERY {
            self.waiting = true;
            self.next = now + BUSY_EVERY;
            return Some(Action::Echo);
        }
        self.next = self.heard + IDLE_EVERY;
        None
    }

    /// The moment named by [`Self::poll_timeout`] has come.
    pub fn on_timeout(&mut self, now: Instant) -> Verdict {
        self.next = now + BUSY_EVERY;
        if !self.waiting {
            return Verdict::Alive(vec![Action::Inspect]);
        }
        self.missed += 1;
        if self.missed >= if self.hearing { MISSED_HEARING } else { MISSED } {
            return Verdict::Dead;
        }
        Verdict::Alive(vec![Action::Inspect, Action::Echo])
    }

    fn on_heard(&mut self, now: Instant) {
        (self.heard, self.waiting, self.hearing, self.missed) = (now, false, false, 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_dead_link_is_found_soon_after_the_first_packet_that_follows_a_rest() {
        let start = Instant::now();
        let at = |seconds: u64| start + Duration::from_secs(seconds);
        let mut health = Health::new(start);
        health.on_counters(Counters::default(), at(1));
        assert_eq!(health.poll_timeout(), at(24), "it rests");
        health.on_sending(at(6));
        let mut now = health.poll_timeout();
        assert_eq!(now, at(7));
        let mut sent = 1;
        while health.on_timeout(now) != Verdict::Dead {
            health.on_counters(Counters { sent, received: 0 }, now);
            sent += 1;
            now = health.poll_timeout();
        }
        assert!(now <= at(11), "dead after {:?}", now - at(6));
    }

    #[test]
    fn an_idle_link_is_tested_every_24_seconds_and_left_alone_in_between() {
        let mut link = Link::new();
        let mut echoes = 0;
        let mut wakeups = 0;
        while link.elapsed() < 10 * IDLE_EVERY {
            wakeups += 1;
            if link.expire(true) == Some(true) {
                echoes += 1;
            }
        }
        assert!((9..=10).contains(&echoes), "{echoes}");
        assert!(wakeups <= echoes + 3, "{wakeups} wake-ups");
    }

    #[test]
    fn a_link_that_dies_under_traffic_is_found_dead_within_five_seconds() {
        let mut link = Link::new();
        for _ in 0..10 {
            link.counters.sent += 100;
            link.counters.received += 100;
            assert!(link.expire(true).is_some());
        }
        let died = link.now;
        loop {
            link.counters.sent += 1;
            if link.expire(false).is_none() {
                break;
            }
        }
        assert!(link.now - died <= Duration::from_secs(5), "{:?}", link.now - died);
    }

    #[test]
    fn a_download_needs_no_echo() {
        let mut link = Link::new();
        for _ in 0..60 {
            link.counters.received += 1;
            assert_eq!(link.expire(false), Some(false));
        }
    }

    #[test]
    fn a_download_that_stops_is_tested_within_a_second_and_then_left_alone() {
        let mut link = Link::new();
        for _ in 0..10 {
            link.counters.received += 100;
            link.expire(true);
        }
        let stopped = link.now;
        assert_eq!(link.expire(true), Some(true));
        assert!(link.now - stopped < Duration::from_secs(1));
        assert!(link.health.poll_timeout() - link.now > Duration::from_secs(20), "it rests");
    }

    #[test]
    fn a_peer_that_only_repeats_itself_is_found_out() {
        let mut link = Link::new();
        for step in 0.. {
            link.counters.sent += 1;
            link.counters.received += u64::from(step % 2 == 0); // its retransmissions, further and further apart
            if link.expire(false).is_none() {
                break;
            }
        }
        assert!(link.elapsed() <= Duration::from_secs(8), "{:?}", link.elapsed());
    }

    #[test]
    fn one_lost_echo_does_no_harm() {
        let mut link = Link::new();
        let mut answered = false;
        for _ in 0..100 {
            answered = !answered;
            assert!(link.expire(answered).is_some());
        }
    }

    struct Link {
        health: Health,
        start: Instant,
        now: Instant,
        counters: Counters,
    }

    impl Link {
        fn new() -> Self {
            let now = Instant::now();
            Self { health: Health::new(now), start: now, now, counters: Counters::default() }
        }

        /// Lets time pass to the next timeout, with a gateway that answers echoes or not.
        /// `None` when the link is found dead, else whether an echo was sent.
        fn expire(&mut self, answers: bool) -> Option<bool> {
            self.now = self.health.poll_timeout();
            let Verdict::Alive(mut actions) = self.health.on_timeout(self.now) else {
                return None;
            };
            if actions.contains(&Action::Inspect) {
                actions.extend(self.health.on_counters(self.counters, self.now));
            }
            let echo = actions.contains(&Action::Echo);
            if echo && answers {
                self.health.on_echo(self.now);
            }
            Some(echo)
        }

        fn elapsed(&self) -> Duration {
            self.now - self.start
        }
    }
}
