//! `why NAME`: gathers what registry, configuration and running gateway know, and has it judged.

use serde_json::{Value, json};
use time::OffsetDateTime;

use super::lists::{device_json, line};
use super::{AdminError, SCHEMA, bans, state_dir};
use crate::config::Config;
use crate::control_socket::{AskError, DeviceHistory, Request, Response, SessionInfo, ask};
use crate::registry::any::AnyRegistry;
use crate::registry::{Device, Invitation, Registry};
use crate::settings::Settings;
use crate::times::rfc3339;
use crate::why::{DeviceFacts, Heard, Judgement, UserFacts, judge_device, judge_user};

/// Whom a name means.
struct Subject {
    /// Of the user, or those that are called so.
    devices: Vec<Device>,
    /// Those of the users concerned.
    invitations: Vec<Invitation>,
    /// The name is a user's.
    is_user: bool,
}

/// One line for each device that the name may mean, or for the user.
///
/// # Errors
/// [`AdminError`] when nobody is called so, or the registry cannot be read.
pub async fn why(config: &Config, name: &str, as_json: bool) -> Result<String, AdminError> {
    let state = state_dir(config);
    let registry = state.registry().await?;
    let pool = Settings::resolve(config, &registry).await?.pool;
    let known = state.authorities()?;
    let authorities: Vec<_> = std::iter::once(known.current().pin()).chain(known.second_pin()).collect();
    let subject = find(&registry, name).await?;
    registry.close().await;
    let now = OffsetDateTime::now_utc();
    let running = ask_gateway(config, &subject.devices)?;
    let mut judged = Vec::new();
    for device in &subject.devices {
        let of_user: Vec<Invitation> =
            subject.invitations.iter().filter(|one| one.user == device.user).cloned().collect();
        let heard = running.as_ref().map(|running| running.heard(&device.id));
        let facts = DeviceFacts { device, invitations: &of_user, heard, pool: &pool, authorities: &authorities };
        judged.push((judge_device(&facts, now), Some((device, facts.heard.clone()))));
    }
    if judged.is_empty() && subject.is_user {
        judged.push((judge_user(&UserFacts { user: name, invitations: &subject.invitations }, now), None));
    }
    if as_json {
        let answers: Vec<Value> = judged.iter().map(|(judged, of)| as_value(judged, of.as_ref(), now)).collect();
        let kept = if running.is_none() { bans::kept(config)? } else { Vec::new() };
        return Ok(line(&json!({
            "schema": SCHEMA, "gateway_running": running.is_some(), "answers": answers, "bans_kept": kept,
        })));
    }
    let mut text = String::new();
    for (judged, _) in &judged {
        text.push_str(&format!("{}\n", judged.text()));
    }
    // The same for all of them.
    if let Some(unknown) = judged.iter().find_map(|(judged, _)| judged.unknown.as_ref()) {
        text.push_str(&format!("    ({unknown})\n"));
    }
    Ok(text)
}

/// The only place that looks names up.
async fn find(registry: &AnyRegistry, name: &str) -> Result<Subject, AdminError> {
    let mut devices = registry.devices_of(name).await?;
    for device in registry.find_devices(name).await? {
        if !devices.iter().any(|known| known.id == device.id) {
            devices.push(device);
        }
    }
    let is_user = registry.users().await?.iter().any(|user| user.name == name);
    if devices.is_empty() && !is_user {
        return Err(AdminError::Nobody(name.to_owned()));
    }
    let mut invitations = registry.invitations().await?;
    invitations.retain(|one| one.user == name || devices.iter().any(|device| device.user == one.user));
    Ok(Subject { devices, invitations, is_user })
}

/// What a running gateway told.
struct Running {
    since: String,
    histories: Vec<DeviceHistory>,
    sessions: Vec<SessionInfo>,
}

impl Running {
    fn heard(&self, device: &str) -> Heard {
        let history = self.histories.iter().find(|history| history.id == device).cloned();
        let session = self.sessions.iter().find(|session| session.device_id == device);
        Heard {
            history: history.unwrap_or_else(|| DeviceHistory {
                id: device.to_owned(),
                record: Default::default(),
                of_place: None,
                ban: None,
            }),
            session: session.map(|session| (session.since.clone(), session.remote.clone())),
            since: self.since.clone(),
        }
    }
}

/// `None` when none runs.
fn ask_gateway(config: &Config, devices: &[Device]) -> Result<Option<Running>, AdminError> {
    let request = Request::History { devices: devices.iter().map(|device| device.id.clone()).collect() };
    let (since, histories) = match ask(&config.control_socket, &request) {
        Ok(Response::History { since, devices }) => (since, devices),
        Ok(_) | Err(AskError::NotRunning { .. }) => return Ok(None),
        Err(error) => return Err(error.into()),
    };
    let sessions = match ask(&config.control_socket, &Request::Sessions) {
        Ok(Response::Sessions { sessions }) => sessions,
        Ok(_) | Err(AskError::NotRunning { .. }) => return Ok(None), // it has stopped meanwhile
        Err(error) => return Err(error.into()),
    };
    Ok(Some(Running { since, histories, sessions }))
}

fn as_value(judged: &Judgement, of: Option<&(&Device, Option<Heard>)>, now: OffsetDateTime) -> Value {
    let mut object = json!(judged);
    if let Some((device, heard)) = of {
        object["device"] = device_json(device, now);
        object["heard"] = heard.as_ref().map_or(Value::Null, |heard| {
            let record = &heard.history.record;
            json!({
                "refused": record.refused,
                "refused_since": record.refused_since.map(rfc3339),
                "refusals": record.last,
                "session_opened": record.opened.map(rfc3339),
                "place": record.place,
                "ban": heard.history.ban,
                "connected_since": heard.session.as_ref().map(|(since, _)| since),
            })
        });
    }
    object
}
