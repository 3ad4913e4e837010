//! A token bucket: so much passes in a second, and so much at once.

use std::time::Instant;

/// Full at the beginning. The unit is the caller's: packets, bytes, handshakes.
#[derive(Clone, Copy, Debug)]
pub struct Bucket {
    per_second: u32,
    burst: u32,
    tokens: f64,
    /// When `tokens` was right; `None` before the first use.
    last: Option<Instant>,
}

impl Bucket {
    /// Lets `per_second` pass in a second, and `burst` at once.
    pub fn new(per_second: u32, burst: u32) -> Self {
        Self { per_second, burst, tokens: burst.into(), last: None }
    }

    /// True when the whole burst would pass: nothing was taken for long.
    pub fn is_full(&self, now: Instant) -> bool {
        let mut copy = *self;
        copy.take(self.burst, now)
    }

    /// Takes `amount` if there is as much; false takes nothing. A clock that stands still fills nothing.
    pub fn take(&mut self, amount: u32, now: Instant) -> bool {
        let passed = self.last.map_or(0.0, |last| now.saturating_duration_since(last).as_secs_f64());
        self.tokens = f64::from(self.burst).min(self.tokens + passed * f64::from(self.per_second));
        self.last = Some(now);
        let passes = self.tokens >= f64::from(amount);
        if passes {
            self.tokens -= f64::from(amount);
        }
        passes
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_burst_passes_and_then_only_the_rate() {
        let start = Instant::now();
        let mut bucket = Bucket::new(10, 25);
        assert_eq!((0..50).filter(|_| bucket.take(1, start)).count(), 25);
        let later = start + Duration::from_millis(300);
        assert_eq!((0..50).filter(|_| bucket.take(1, later)).count(), 3);
        let much_later = later + Duration::from_secs(3600);
        assert_eq!((0..50).filter(|_| bucket.take(1, much_later)).count(), 25, "what is not used is not saved up");
    }

    #[test]
    fn what_is_too_much_takes_nothing() {
        let now = Instant::now();
        let mut bucket = Bucket::new(100, 100);
        assert!(!bucket.take(101, now));
        assert!(bucket.is_full(now) && bucket.take(100, now));
        assert!(!bucket.take(1, now));
        assert!(!bucket.is_full(now + Duration::from_millis(900)) && bucket.is_full(now + Duration::from_secs(1)));
    }
}
