//! Has this machine slept, or this program? The clock that stands still meanwhile tells it by the other,
//! which goes on.
//!
//! Timers stand still in sleep too, so that nothing is late afterwards; only a stopped program
//! (SIGSTOP, a frozen container) finds its timer late.

use std::time::{Duration, Instant};

use rustix::time::{ClockId, clock_gettime};

/// Less than this is no sleep: the two clocks are not read at the same moment, and a busy machine is late.
const SLEEP: Duration = Duration::from_secs(2);

/// Time on the clock that goes on in sleep, from an arbitrary moment (Linux: `CLOCK_BOOTTIME`; macOS:
/// `CLOCK_MONOTONIC`, clock_gettime(3)). [`Instant`] stands still.
pub fn elapsed() -> Duration {
    #[cfg(target_vendor = "apple")]
    let id = ClockId::Monotonic;
    #[cfg(not(target_vendor = "apple"))]
    let id = ClockId::Boottime;
    let time = clock_gettime(id);
    Duration::new(time.tv_sec.unsigned_abs(), u32::try_from(time.tv_nsec).unwrap_or(0))
}

/// Finds out by comparing. Pure.
#[derive(Debug)]
pub struct Slept {
    now: Instant,
    elapsed: Duration,
}

impl Slept {
    /// Both clocks now.
    pub fn new(now: Instant, elapsed: Duration) -> Self {
        Self { now, elapsed }
    }

    /// Both clocks now, and by how much the timer that was due is late, if one was. True after a sleep.
    pub fn on_turn(&mut self, now: Instant, elapsed: Duration, late: Option<Duration>) -> bool {
        let awake = now.saturating_duration_since(self.now);
        let asleep = elapsed.saturating_sub(self.elapsed).saturating_sub(awake);
        (self.now, self.elapsed) = (now, elapsed);
        asleep >= SLEEP || late.is_some_and(|late| late >= SLEEP)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_machine_that_slept_is_told_once() {
        let mut bench = Bench::new();
        assert!(!bench.turn(1, 1, None));
        assert!(bench.turn(2, 30_000, None));
        assert!(!bench.turn(3, 30_001, None));
    }

    #[test]
    fn clocks_that_drift_apart_slowly_are_no_sleep() {
        let mut bench = Bench::new();
        for minute in 1..1000 {
            assert!(!bench.turn(60 * minute, 61 * minute, None));
        }
    }

    #[test]
    fn a_program_that_was_stopped_finds_its_timer_late() {
        let mut bench = Bench::new();
        assert!(!bench.turn(1, 1, Some(Duration::from_millis(900))));
        assert!(bench.turn(61, 61, Some(Duration::from_secs(59))));
    }

    #[test]
    fn the_clock_of_this_machine_goes_on() {
        let before = elapsed();
        std::thread::sleep(Duration::from_millis(2));
        assert!(elapsed() > before);
    }

    struct Bench {
        start: Instant,
        slept: Slept,
    }

    impl Bench {
        fn new() -> Self {
            let start = Instant::now(); // any instant will do
            Self { start, slept: Slept::new(start, Duration::ZERO) }
        }

        /// Seconds on both clocks.
        fn turn(&mut self, awake: u64, elapsed: u64, late: Option<Duration>) -> bool {
            self.slept.on_turn(self.start + Duration::from_secs(awake), Duration::from_secs(elapsed), late)
        }
    }
}
