//! Lengths of time as people write them: `90s`, `30m`, `24h`, `7d`.

use std::time::Duration;

/// Reads a whole number and one unit of `s m h d`; a bare `0` is no time at all.
/// `None` for anything else, and for more than a hundred years.
pub fn parse(text: &str) -> Option<Duration> {
    const LONGEST: u64 = 100 * 365 * 86_400;
    if text == "0" {
        return Some(Duration::ZERO);
    }
    let (number, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    let seconds_per_unit = match unit {
        "s" => 1,
        "m" => 60,
        "h" => 3_600,
        "d" => 86_400,
        _ => return None,
    };
    if !number.bytes().all(|byte| byte.is_ascii_digit()) {
        return None; // `parse` would take "+5"
    }
    let seconds = number.parse::<u64>().ok()?.checked_mul(seconds_per_unit)?;
    (seconds <= LONGEST).then(|| Duration::from_secs(seconds))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_unit_is_understood() {
        for (text, seconds) in [
            ("90s", 90),
            ("30m", 1_800),
            ("24h", 86_400),
            ("7d", 604_800),
            ("0", 0),
        ] {
            assert_eq!(parse(text), Some(Duration::from_secs(seconds)), "{text}");
        }
    }

    #[test]
    fn what_is_no_length_of_time_is_refused() {
        for text in [
            "",
            "h",
            "24",
            "-1h",
            "+1h",
            "1.5h",
            "1 h",
            "1w",
            "99999999999999999999d",
            "40000d",
            "1é",
        ] {
            assert_eq!(parse(text), None, "{text}");
        }
    }
}
