//! Times as scripts read them (RFC 3339, UTC), and lengths of time as people write them: `90s`,
//! `30m`, `24h`, `7d`.

use std::time::Duration;

use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

/// A time in RFC 3339, whole seconds, UTC.
pub fn rfc3339(at: OffsetDateTime) -> String {
    let seconds = at.to_offset(time::UtcOffset::UTC).replace_nanosecond(0).unwrap_or(at);
    seconds.format(&Rfc3339).unwrap_or_default() // fails only beyond the year 9999
}

/// Reads a whole number and one unit of `s m h d`; a bare `0` is no time at all.
/// `None` for anything else, and for more than a hundred years.
pub fn parse_duration(text: &str) -> Option<Duration> {
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
        for (text, seconds) in [("90s", 90), ("30m", 1_800), ("24h", 86_400), ("7d", 604_800), ("0", 0)] {
            assert_eq!(parse_duration(text), Some(Duration::from_secs(seconds)), "{text}");
        }
    }

    #[test]
    fn a_time_is_told_in_utc_and_whole_seconds() {
        let at = OffsetDateTime::from_unix_timestamp(1_800_000_000).unwrap() + Duration::from_millis(900);
        assert_eq!(rfc3339(at), "2027-01-15T08:00:00Z");
    }

    #[test]
    fn what_is_no_length_of_time_is_refused() {
        for text in ["", "h", "24", "-1h", "+1h", "1.5h", "1 h", "1w", "99999999999999999999d", "40000d", "1é"] {
            assert_eq!(parse_duration(text), None, "{text}");
        }
    }
}
