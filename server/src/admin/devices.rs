//! `devices show|rename|revoke|restore` and `sessions kick`: acts on one device, or on all of a user's.
//!
//! The registry is changed first and is the authority; a running gateway is told then, and would
//! notice by itself within a second.

use serde_json::{Value, json};
use time::OffsetDateTime;

use super::lists::{device_json, line};
use super::{AdminError, SCHEMA, actor, invite, state_dir};
use crate::config::Config;
use crate::control_socket::{AskError, Request, Response, ask};
use crate::registry::any::AnyRegistry;
use crate::registry::{Device, Event, Registry, Renamed};
use crate::times::rfc3339;

/// Which devices are meant.
#[derive(Clone, Debug)]
pub enum Which {
    /// One, as `user/device`, by its id, or by its name when only one is called so.
    Device(String),
    /// All of a user's.
    OfUser(String),
}

/// What a command did, for people and for programs.
#[derive(Clone, Debug)]
pub struct Done {
    /// On standard output.
    pub text: String,
    /// On standard error; something that people should know.
    pub note: Option<String>,
}

/// One device and what happened to it.
///
/// # Errors
/// [`AdminError`] when there is no such device.
pub async fn show(config: &Config, name: &str, as_json: bool) -> Result<String, AdminError> {
    const EVENTS: u32 = 20;
    let registry = state_dir(config).registry().await?;
    let device = one(&registry, name).await?;
    let history = registry.history(&device.id, EVENTS).await?;
    registry.close().await;
    let now = OffsetDateTime::now_utc();
    let mut object = device_json(&device, now);
    if as_json {
        object["schema"] = SCHEMA.into();
        object["serial"] = device.serial.clone().into();
        object["history"] = history.iter().map(event_json).collect();
        return Ok(line(&object));
    }
    let text = |key: &str| object[key].as_str().unwrap_or("-").to_owned();
    let mut lines = format!(
        "{}/{} ({})\n    Id:           {}\n    Addresses:    {}, {}\n    Enrolled:     {}\n    Last seen:    {}\n    \
         Certificate:  until {} (serial {})\n",
        device.user,
        device.name,
        text("state"),
        device.id,
        device.ipv4,
        text("ipv6"),
        text("created"),
        text("last_seen"),
        text("certificate_until"),
        device.serial,
    );
    for event in &history {
        lines.push_str(&format!("    {}  {} by {}\n", rfc3339(event.at), event.event, event.actor));
    }
    Ok(lines)
}

fn event_json(event: &Event) -> Value {
    json!({ "at": rfc3339(event.at), "event": event.event, "actor": event.actor })
}

/// Calls a device something else.
///
/// # Errors
/// [`AdminError`]; the name is the old one then.
pub async fn rename(config: &Config, name: &str, new: &str, as_json: bool) -> Result<Done, AdminError> {
    let new = invite::check_name(new)?;
    let registry = state_dir(config).registry().await?;
    let device = one(&registry, name).await?;
    let renamed = registry.rename(&device.id, &new, OffsetDateTime::now_utc(), &actor()).await?;
    registry.close().await;
    let full = format!("{}/{new}", device.user);
    let note = match renamed {
        Renamed::Done => None,
        Renamed::Same => Some(format!("{full} was called so before; nothing was changed")),
        Renamed::Taken => return Err(AdminError::NameTaken(full)),
        Renamed::Gone => return Err(AdminError::NoDevice(name.to_owned())),
    };
    let changed = renamed == Renamed::Done;
    let text = if as_json {
        line(&json!({ "schema": SCHEMA, "changed": changed, "device": full, "id": device.id }))
    } else {
        format!("{}/{} is now {full}\n", device.user, device.name)
    };
    Ok(Done { text, note })
}

/// Removes the access of devices, ends their sessions, and for a whole user withdraws the open
/// invitations as well. What was removed already stays so.
///
/// # Errors
/// [`AdminError`]. [`AdminError::StillOpen`] when the registry was changed but the running gateway
/// could not be told: it notices by itself within a second if it can read the registry.
pub async fn revoke(config: &Config, which: &Which, as_json: bool) -> Result<Done, AdminError> {
    let registry = state_dir(config).registry().await?;
    let devices = matching(&registry, which).await?;
    let now = OffsetDateTime::now_utc();
    let mut changed = Vec::new();
    for device in &devices {
        if registry.revoke(&device.id, now, &actor()).await? {
            changed.push(device);
        }
    }
    let mut withdrawn = 0;
    if let Which::OfUser(user) = which {
        for invitation in registry.invitations().await? {
            if invitation.user == *user && invitation.judge(now).is_ok() {
                withdrawn += usize::from(registry.cancel_invitation(&invitation.id, now, &actor()).await?);
            }
        }
    }
    registry.close().await;
    let closed = tell(config)?;
    let note = (changed.is_empty() && withdrawn == 0).then(|| "was revoked before; nothing was changed".to_owned());
    let text = if as_json {
        line(&json!({
            "schema": SCHEMA,
            "revoked": names(&changed),
            "sessions_closed": closed,
            "invitations_withdrawn": withdrawn,
        }))
    } else {
        let mut text = String::new();
        for device in &changed {
            text.push_str(&format!("{}/{} may not connect any more\n", device.user, device.name));
        }
        if withdrawn > 0 {
            text.push_str(&format!("{} withdrawn\n", count(withdrawn, "open invitation")));
        }
        match closed {
            Some(0) => {}
            Some(closed) => text.push_str(&format!("{} ended\n", count(closed, "session"))),
            None => text.push_str("No gateway runs here, so there was no session to end\n"),
        }
        text
    };
    Ok(Done { text, note })
}

/// Gives a device its access back.
///
/// # Errors
/// [`AdminError`].
pub async fn restore(config: &Config, name: &str, as_json: bool) -> Result<Done, AdminError> {
    let registry = state_dir(config).registry().await?;
    let device = one(&registry, name).await?;
    let now = OffsetDateTime::now_utc();
    let changed = registry.restore(&device.id, now, &actor()).await?;
    registry.close().await;
    tell(config)?;
    let full = format!("{}/{}", device.user, device.name);
    let mut notes = Vec::new();
    if !changed {
        notes.push(format!("{full} was not revoked; nothing was changed"));
    }
    if now >= device.not_after {
        notes.push(format!(
            "its certificate ended on {}; send it a new one with: culvert-server invite {full} --renew",
            device.not_after.date()
        ));
    }
    let text = if as_json {
        line(&json!({ "schema": SCHEMA, "changed": changed, "device": full, "id": device.id }))
    } else {
        format!("{full} may connect\n")
    };
    Ok(Done { text, note: (!notes.is_empty()).then(|| notes.join("; ")) })
}

/// Ends sessions; the devices may come back at once.
///
/// # Errors
/// [`AdminError`] when no gateway runs, or there is no such device.
pub async fn kick(config: &Config, which: &Which, as_json: bool) -> Result<String, AdminError> {
    let registry = state_dir(config).registry().await?;
    let devices = matching(&registry, which).await?;
    registry.close().await;
    let ids = devices.into_iter().map(|device| device.id).collect();
    let sessions = match ask(&config.control_socket, &Request::Kick { devices: ids })? {
        Response::Closed { sessions } => sessions,
        _ => 0, // not to this request
    };
    Ok(if as_json {
        line(&json!({ "schema": SCHEMA, "sessions_closed": sessions }))
    } else {
        format!("{} ended\n", count(sessions, "session"))
    })
}

async fn matching(registry: &AnyRegistry, which: &Which) -> Result<Vec<Device>, AdminError> {
    match which {
        Which::Device(name) => Ok(vec![one(registry, name).await?]),
        Which::OfUser(user) => {
            let devices = registry.devices_of(user).await?;
            if devices.is_empty() && !registry.users().await?.iter().any(|known| known.name == *user) {
                return Err(AdminError::NoUser(user.clone()));
            }
            Ok(devices)
        }
    }
}

/// The one device that a name means.
pub(super) async fn one(registry: &AnyRegistry, name: &str) -> Result<Device, AdminError> {
    let mut found = registry.find_devices(name).await?;
    match (found.pop(), found.is_empty()) {
        (Some(device), true) => Ok(device),
        (Some(device), false) => {
            found.push(device);
            Err(AdminError::Ambiguous { name: name.to_owned(), choices: names(&found.iter().collect::<Vec<_>>()) })
        }
        (None, _) => {
            let of_user = registry.devices_of(name).await?;
            if of_user.is_empty() {
                return Err(AdminError::NoDevice(name.to_owned()));
            }
            Err(AdminError::IsUser { name: name.to_owned(), devices: names(&of_user.iter().collect::<Vec<_>>()) })
        }
    }
}

fn names(devices: &[&Device]) -> Vec<String> {
    devices.iter().map(|device| format!("{}/{}", device.user, device.name)).collect()
}

/// Lets the running gateway act on the registry now. Returns how many sessions that ended; `None`
/// when no gateway runs.
pub(super) fn tell(config: &Config) -> Result<Option<usize>, AdminError> {
    match ask(&config.control_socket, &Request::Changed) {
        Ok(Response::Closed { sessions }) => Ok(Some(sessions)),
        Ok(_) => Ok(None), // not to this request
        // A gateway holds the lock of its state directory as long as it lives.
        Err(AskError::NotRunning { .. }) if !state_dir(config).is_locked() => Ok(None),
        Err(error) => Err(AdminError::StillOpen(error)),
    }
}

pub(super) fn count(number: usize, what: &str) -> String {
    if number == 1 { format!("1 {what}") } else { format!("{number} {what}s") }
}
