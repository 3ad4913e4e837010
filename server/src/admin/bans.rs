//! `bans list|add|remove`: whom the gateway does not listen to.

use std::time::Duration;

use clap::Subcommand;
use culvert_tunnel::identity::printable;
use ipnet::IpNet;
use serde_json::{Value, json};
use time::OffsetDateTime;

use super::lists::{line, table};
use super::{AdminError, SCHEMA, state_dir};
use crate::bans::{self, KeptBan};
use crate::config::Config;
use crate::control_socket::{AskError, BanInfo, Request, Response, ask};
use crate::door;
use crate::times::{parse_duration, rfc3339};

/// What the command line says after `bans`.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// All of them
    List {
        /// One JSON object
        #[arg(long)]
        json: bool,
    },
    /// Do not listen to an address or a network any more
    Add {
        /// Such as 203.0.113.9, 203.0.113.0/24 or 2001:db8:1:2::/64
        prefix: String,
        /// How long, such as 30m, 1h or 7d; without it until you lift it
        #[arg(long = "for", value_name = "TIME")]
        length: Option<String>,
        /// Why, for whoever reads the list
        #[arg(long, value_name = "TEXT", default_value = "")]
        reason: String,
        /// Also end the sessions that are open there
        #[arg(long)]
        now: bool,
        /// One JSON object
        #[arg(long)]
        json: bool,
    },
    /// Listen to it again
    Remove {
        /// As `bans list` shows it
        prefix: String,
        /// One JSON object
        #[arg(long)]
        json: bool,
    },
}

/// Does what the command line says. Returns what belongs on standard output, and a note for standard error.
///
/// # Errors
/// [`AdminError`]; nothing has changed then.
pub fn execute(config: &Config, command: Command) -> Result<(String, Option<String>), AdminError> {
    match command {
        Command::List { json } => list(config, json),
        Command::Add { prefix, length, reason, now, json } => add(config, &prefix, length, &reason, now, json),
        Command::Remove { prefix, json } => remove(config, &prefix, json),
    }
}

fn list(config: &Config, as_json: bool) -> Result<(String, Option<String>), AdminError> {
    let (bans, note) = match ask(&config.control_socket, &Request::Bans) {
        Ok(Response::Bans { bans }) => (bans, None),
        Ok(_) => (Vec::new(), None), // not to this request
        Err(AskError::NotRunning { .. }) => {
            let note = "no gateway runs here; these will be in force when it starts".to_owned();
            (kept(config)?, Some(note))
        }
        Err(error) => return Err(error.into()),
    };
    if as_json {
        return Ok((line(&json!({ "schema": SCHEMA, "bans": bans })), note));
    }
    let mut rows = vec![["PREFIX", "BY", "UNTIL", "REASON"].map(str::to_owned)];
    rows.extend(bans.into_iter().map(|ban| {
        let until = ban.until.unwrap_or_else(|| "lifted".to_owned());
        [ban.prefix.to_string(), ban.by, until, ban.reason]
    }));
    Ok((table(&rows), note))
}

/// What a gateway that does not run has kept and would put in force.
pub(super) fn kept(config: &Config) -> Result<Vec<BanInfo>, AdminError> {
    let state = state_dir(config);
    let kept = door::read(state.root())
        .map_err(|error| AdminError::BansUnreadable { path: state.root().join(door::FILE_NAME), error })?;
    let info = |ban: &KeptBan| BanInfo {
        prefix: ban.prefix,
        by: if ban.earlier.is_some() { "failures" } else { "operator" }.to_owned(),
        until: ban.until.and_then(|until| OffsetDateTime::from_unix_timestamp(until).ok()).map(rfc3339),
        reason: ban.reason.clone(),
    };
    Ok(kept.map_or_else(Vec::new, |kept| kept.in_force(OffsetDateTime::now_utc()).map(info).collect()))
}

fn add(
    config: &Config,
    text: &str,
    length: Option<String>,
    reason: &str,
    now: bool,
    as_json: bool,
) -> Result<(String, Option<String>), AdminError> {
    let prefix = prefix(text)?;
    let length = length.map(|text| {
        let parsed = parse_duration(&text).filter(|time| !time.is_zero());
        parsed.ok_or(AdminError::BadDuration(text))
    });
    let seconds = length.transpose()?.map(|time: Duration| time.as_secs());
    if !reason.is_empty() && printable(reason).is_none_or(|kept| kept != reason) {
        return Err(AdminError::BadReason);
    }
    let request = Request::BanAdd { prefix, seconds, reason: reason.to_owned(), now };
    let sessions = match ask(&config.control_socket, &request)? {
        Response::Ban { sessions, .. } => sessions,
        _ => 0, // not to this request
    };
    let until = seconds.map(|seconds| rfc3339(OffsetDateTime::now_utc() + Duration::from_secs(seconds)));
    let note = (sessions > 0 && !now)
        .then(|| format!("{sessions} open session(s) there go on until they end; end them with: --now"));
    let text = if as_json {
        let ended = if now { sessions } else { 0 };
        object(
            json!({ "changed": true, "prefix": prefix, "until": until, "sessions": sessions, "sessions_closed": ended }),
        )
    } else {
        let until = until.map_or_else(|| "until you lift it".to_owned(), |until| format!("until {until}"));
        let ended = if now && sessions > 0 { format!("{sessions} session(s) ended\n") } else { String::new() };
        format!("{prefix} is banned {until}\n{ended}")
    };
    Ok((text, note))
}

fn remove(config: &Config, text: &str, as_json: bool) -> Result<(String, Option<String>), AdminError> {
    let prefix = prefix(text)?;
    let (changed, covered_by) = match ask(&config.control_socket, &Request::BanRemove { prefix })? {
        Response::Ban { changed, covered_by, .. } => (changed, covered_by),
        _ => (false, None), // not to this request
    };
    let still = covered_by.map(|wider| {
        format!("{prefix} is still banned with {wider}; lift that with: culvert-server bans remove {wider}")
    });
    let note = match (changed, still) {
        (_, Some(still)) => Some(still),
        (false, None) => Some(format!("{prefix} was not banned; nothing was changed")),
        (true, None) => None,
    };
    let text = if as_json {
        object(json!({ "changed": changed, "prefix": prefix, "covered_by": covered_by }))
    } else if changed {
        format!("{prefix} is not banned any more\n")
    } else {
        String::new()
    };
    Ok((text, note))
}

fn object(mut value: Value) -> String {
    value["schema"] = SCHEMA.into();
    line(&value)
}

fn prefix(text: &str) -> Result<IpNet, AdminError> {
    bans::prefix(text).ok_or_else(|| AdminError::BadPrefix(text.to_owned()))
}
