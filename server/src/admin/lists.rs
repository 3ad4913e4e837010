//! `devices list`, `sessions list` and `status`: what the registry and the running gateway know.

use serde_json::{Value, json};
use time::OffsetDateTime;

use super::{AdminError, SCHEMA, state_dir};
use crate::config::Config;
use crate::control_socket::{Request, Response, SessionInfo, StatusInfo, ask};
use crate::registry::{Device, Registry};
use crate::times::rfc3339;

/// Every device in the registry; the gateway need not run.
///
/// # Errors
/// [`AdminError`] when there is no registry, or it cannot be read.
pub async fn devices(config: &Config, as_json: bool) -> Result<String, AdminError> {
    let registry = state_dir(config).registry().await?;
    let devices = registry.devices().await?;
    registry.close().await;
    let now = OffsetDateTime::now_utc();
    if as_json {
        let devices: Vec<Value> = devices.iter().map(|device| device_json(device, now)).collect();
        return Ok(line(&json!({ "schema": SCHEMA, "devices": devices })));
    }
    let mut rows = vec![["USER", "DEVICE", "IPV4", "IPV6", "LAST SEEN", "STATE"].map(str::to_owned)];
    rows.extend(devices.iter().map(|device| {
        [
            device.user.clone(),
            device.name.clone(),
            device.ipv4.to_string(),
            device.ipv6.map_or_else(|| "-".to_owned(), |ipv6| ipv6.to_string()),
            device.last_seen.map_or_else(|| "never".to_owned(), rfc3339),
            state(device, now).to_owned(),
        ]
    }));
    Ok(table(&rows))
}

pub(super) fn device_json(device: &Device, now: OffsetDateTime) -> Value {
    json!({
        "id": device.id,
        "user": device.user,
        "name": device.name,
        "ipv4": device.ipv4,
        "ipv6": device.ipv6,
        "created": rfc3339(device.created),
        "last_seen": device.last_seen.map(rfc3339),
        "certificate_until": rfc3339(device.not_after),
        "revoked_at": device.revoked_at.map(rfc3339),
        "ca_pin": device.authority.map(|pin| pin.to_string()),
        "state": state(device, now),
    })
}

fn state(device: &Device, now: OffsetDateTime) -> &'static str {
    if device.revoked_at.is_some() {
        "revoked"
    } else if now >= device.not_after {
        "expired"
    } else {
        "active"
    }
}

/// The open sessions, from the running gateway.
///
/// # Errors
/// [`AdminError::Ask`] when none answers.
pub fn sessions(config: &Config, as_json: bool) -> Result<String, AdminError> {
    let sessions = match ask(&config.control_socket, &Request::Sessions)? {
        Response::Sessions { sessions } => sessions,
        _ => Vec::new(), // not to this request
    };
    if as_json {
        return Ok(line(&json!({ "schema": SCHEMA, "sessions": sessions })));
    }
    let mut rows = vec![["USER", "DEVICE", "FROM", "IPV4", "SINCE", "RECEIVED", "SENT", "RTT"].map(str::to_owned)];
    rows.extend(sessions.iter().map(|session: &SessionInfo| {
        [
            session.user.clone(),
            session.device.clone(),
            session.remote.clone(),
            session.ipv4.clone(),
            session.since.clone(),
            bytes(session.received_bytes),
            bytes(session.sent_bytes),
            format!("{:.1} ms", session.rtt_seconds * 1e3),
        ]
    }));
    Ok(table(&rows))
}

/// The running gateway as a whole.
///
/// # Errors
/// [`AdminError::Ask`] when none answers.
pub fn status(config: &Config, as_json: bool) -> Result<String, AdminError> {
    let Response::Status(status) = ask(&config.control_socket, &Request::Status)? else {
        return Ok(String::new()); // not to this request
    };
    if as_json {
        let mut object = json!(*status);
        object["schema"] = SCHEMA.into();
        return Ok(line(&object));
    }
    let StatusInfo { version, since, endpoints, listen, device, networks, sessions, pending, .. } = *status;
    Ok(format!(
        "Running since {since} (version {version})\n    Endpoint:  {}\n    Listening: {listen} (UDP)\n    \
         Inside:    {} on {device}\n    Sessions:  {sessions} open, {pending} being judged\n",
        endpoints.join(", "),
        networks.join(", "),
    ))
}

pub(super) fn line(value: &Value) -> String {
    format!("{value}\n")
}

/// Columns as wide as their widest cell, two spaces apart.
pub(super) fn table<const N: usize>(rows: &[[String; N]]) -> String {
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..N).map(width).collect();
    let mut text = String::new();
    for row in rows {
        let cells: Vec<String> =
            row.iter().zip(&widths).map(|(cell, width)| format!("{cell:<width$}", width = *width)).collect();
        text.push_str(cells.join("  ").trim_end());
        text.push('\n');
    }
    text
}

/// Decimal units, as disks and providers count.
fn bytes(count: u64) -> String {
    const UNITS: [&str; 5] = ["B", "kB", "MB", "GB", "TB"];
    let mut value = count as f64;
    let mut unit = 0;
    while value >= 1000.0 && unit < UNITS.len() - 1 {
        value /= 1000.0;
        unit += 1;
    }
    if unit == 0 { format!("{count} B") } else { format!("{value:.1} {}", UNITS[unit]) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_line_up_and_lines_have_no_tail() {
        let rows = [["A", "BB"], ["ccc", "d"]].map(|row| row.map(str::to_owned));
        assert_eq!(table(&rows), "A    BB\nccc  d\n");
    }

    #[test]
    fn bytes_are_told_in_the_largest_unit_that_fits() {
        for (count, text) in [(0, "0 B"), (999, "999 B"), (1_000, "1.0 kB"), (1_250_000_000, "1.2 GB")] {
            assert_eq!(bytes(count), text);
        }
    }
}
