//! Whether a server answers at all. Pure: time is an argument.
//!
//! A question to a server that is gone costs the client seconds, so nobody is sent there any more. But a
//! resolver may also be silent because the name's own servers are gone, and one such name must not cost
//! others theirs. So after a few silences the server is asked something that every server answers at once
//! ([`Admission::Probe`], in practice the root's servers), and only silence to that counts.

use std::time::{Duration, Instant};

/// Silences in a row until the server is probed: single packets get lost.
const SILENCES: u32 = 3;
/// How often a server that is gone is probed.
const AGAIN: Duration = Duration::from_secs(1);
/// When a probe of which nothing was heard is no longer waited for: whoever made it may have given up.
const PROBE: Duration = Duration::from_secs(2);

/// One server, as seen from its answers.
#[derive(Clone, Copy, Debug, Default)]
pub struct Health {
    silences: u32,
    probing_until: Option<Instant>,
    /// When it may be probed again; `None` while it counts as there.
    again_at: Option<Instant>,
}

/// May a question go to the server?
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Admission {
    /// It may.
    Go,
    /// Not before the server has answered a probe, which the caller makes now.
    Probe,
    /// It may not.
    Rest,
}

impl Health {
    /// May a question go there now? [`Admission::Probe`] once a second while the server counts as gone.
    pub fn admit(&mut self, now: Instant) -> Admission {
        match self.again_at {
            Some(at) if now < at => Admission::Rest,
            Some(_) => {
                self.again_at = Some(now + AGAIN);
                Admission::Probe
            }
            None => Admission::Go,
        }
    }

    /// True while nobody would be sent there: [`Self::admit`] without taking the probe of this second.
    pub fn rests(&self, now: Instant) -> bool {
        self.again_at.is_some_and(|at| now < at)
    }

    /// It said something, whatever it was. True when it counted as gone.
    pub fn on_answer(&mut self) -> bool {
        let was_gone = self.again_at.is_some();
        *self = Self::default();
        was_gone
    }

    /// It did not answer a question in time, or cannot be reached. True when the caller should probe it now; so is
    /// told one caller at a time.
    pub fn on_silence(&mut self, now: Instant) -> bool {
        self.silences = self.silences.saturating_add(1);
        let probing = self.probing_until.is_some_and(|until| now < until);
        let probe = self.again_at.is_none() && !probing && self.silences >= SILENCES;
        if probe {
            self.probing_until = Some(now + PROBE);
        }
        probe
    }

    /// It did not answer a probe either. True when it counts as gone from now on.
    pub fn on_silent_probe(&mut self, now: Instant) -> bool {
        let was_there = self.again_at.is_none();
        self.probing_until = None;
        self.again_at = Some(now + AGAIN);
        was_there
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lost_packet_is_no_outage() {
        let (mut health, now) = (Health::default(), Instant::now());
        for _ in 0..10 {
            assert!(!health.on_silence(now));
            assert!(!health.on_silence(now));
            assert!(!health.on_answer());
        }
        assert_eq!(health.admit(now), Admission::Go);
    }

    #[test]
    fn a_name_that_nobody_answers_costs_others_nothing() {
        let (mut health, now) = (Health::default(), Instant::now());
        for _ in 0..100 {
            if health.on_silence(now) {
                health.on_answer(); // to the probe
            }
            assert_eq!(health.admit(now), Admission::Go);
        }
    }

    #[test]
    fn a_server_that_is_gone_is_probed_once_a_second_until_it_is_back() {
        let (mut health, start) = (Health::default(), Instant::now());
        assert_eq!((0..50).filter(|_| health.on_silence(start)).count(), 1, "one probe, however many were waiting");
        assert_eq!(health.admit(start), Admission::Go, "nothing is decided yet");
        let start = start + PROBE;
        assert!(health.on_silence(start), "one that was given up does not keep others from probing");
        assert!(health.on_silent_probe(start));
        assert!(!health.on_silent_probe(start), "said once");
        assert!(health.rests(start) && !health.rests(start + AGAIN));
        let seen: Vec<_> = (0..300).map(|n| health.admit(start + Duration::from_millis(n * 10))).collect();
        assert_eq!(
            seen.iter().filter(|seen| **seen == Admission::Probe).count(),
            2,
            "in three seconds, of which it rests one"
        );
        assert!(!seen.contains(&Admission::Go));
        assert!(!health.on_silence(start), "those that were under way still");
        assert!(health.on_answer());
        assert_eq!(health.admit(start), Admission::Go);
    }
}
