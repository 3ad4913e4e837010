//! Figures: percentiles, counts by word, and what the measuring itself costs.

use std::collections::BTreeMap;
use std::time::Duration;

use serde_json::{Value, json};

/// How often something happened, by a word of the close table.
pub(crate) type Counts = BTreeMap<String, u64>;

/// It has happened once more.
pub(crate) fn count(counts: &mut Counts, word: &str) {
    *counts.entry(word.to_owned()).or_default() += 1;
}

/// Median, 90th and 99th percentile and maximum in milliseconds, by the nearest rank; `null` of nothing.
pub(crate) fn percentiles(times: &mut [Duration]) -> Value {
    times.sort_unstable();
    let at = |percent: usize| {
        let rank = (times.len() * percent).div_ceil(100).max(1);
        times.get(rank - 1).map(|time| round(time.as_secs_f64() * 1000.0))
    };
    json!({ "p50": at(50), "p90": at(90), "p99": at(99), "max": at(100) })
}

/// To two decimals: more would be noise.
pub(crate) fn round(figure: f64) -> f64 {
    (figure * 100.0).round() / 100.0
}

/// What this thread has spent on a core so far (proc_pid_schedstat: its first number, in nanoseconds).
pub(crate) fn cpu() -> Duration {
    let text = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap_or_default();
    let nanoseconds = text.split_whitespace().next().and_then(|number| number.parse().ok());
    Duration::from_nanos(nanoseconds.unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_values_that_were_seen() {
        let mut times: Vec<Duration> = (1..=200).rev().map(Duration::from_millis).collect();
        assert_eq!(percentiles(&mut times), json!({ "p50": 100.0, "p90": 180.0, "p99": 198.0, "max": 200.0 }));
        let mut one = [Duration::from_micros(1234)];
        assert_eq!(percentiles(&mut one), json!({ "p50": 1.23, "p90": 1.23, "p99": 1.23, "max": 1.23 }));
        assert_eq!(percentiles(&mut [])["p50"], Value::Null);
    }

    #[test]
    fn work_is_seen_as_cpu_time() {
        let before = cpu();
        let mut sum = 0u64;
        while cpu() == before {
            sum = std::hint::black_box(sum + 1);
        }
        assert!(cpu() > before);
    }
}
