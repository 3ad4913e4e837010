//! Times and reasons in words.

use ipnet::IpNet;
use time::OffsetDateTime;
use time::macros::format_description;

use super::length;

/// "2 days ago", in the largest unit that is at least one.
pub(super) fn ago(span: time::Duration) -> String {
    let seconds = length(span).as_secs();
    let (count, unit) = match seconds {
        0..60 => return "just now".to_owned(),
        60..3_600 => (seconds / 60, "minute"),
        3_600..86_400 => (seconds / 3_600, "hour"),
        _ => (seconds / 86_400, "day"),
    };
    format!("{count} {unit}{} ago", if count == 1 { "" } else { "s" })
}

/// "09:14 UTC", with its day unless that is today.
pub(super) fn moment(at: OffsetDateTime, now: OffsetDateTime) -> String {
    let (at, now) = (at.to_offset(time::UtcOffset::UTC), now.to_offset(time::UtcOffset::UTC));
    let text = if at.date() == now.date() {
        at.format(format_description!("[hour]:[minute] UTC"))
    } else {
        at.format(format_description!("[year]-[month]-[day] [hour]:[minute] UTC"))
    };
    text.unwrap_or_default() // the formats hold for every time
}

/// An address without the length of its prefix.
pub(super) fn place(prefix: IpNet) -> String {
    if prefix.prefix_len() == prefix.max_prefix_len() { prefix.addr().to_string() } else { prefix.to_string() }
}

/// What the word of a refusal means for a device that the registry would let in now, and what repairs it.
pub(super) fn refusal(reason: &str, name: &str, renew: Option<String>) -> (String, Option<String>) {
    let on_device = |command: &str| Some(format!("on the device: {command}"));
    let (why, fix) = match reason {
        "revoked" => ("it was revoked then, and is not any more", on_device("culvert connect")),
        "expired" => ("its certificate had ended then, and was renewed since", on_device("culvert connect")),
        "unknown_device" => ("its certificate is not the one that the registry has for it", renew),
        "challenge_failed" => ("it could not prove that it has its key; somebody may have copied its session", renew),
        "version" => ("it speaks another version of the protocol", on_device("update Culvert, or update this gateway")),
        "timeout" => ("it fell silent during the handshake; its network loses packets", on_device("culvert doctor")),
        "pool_full" => ("its address was not in the inner network then", on_device("culvert connect")),
        "internal" => {
            ("this gateway could not read its registry", Some("journalctl -u culvert-server -p err".to_owned()))
        }
        "malformed" | "oversized" | "unexpected" => {
            ("it sends what the protocol does not allow", on_device("update Culvert"))
        }
        other => return (format!("{other}; see {name} in the log"), Some("journalctl -u culvert-server".to_owned())),
    };
    (why.to_owned(), fix)
}
