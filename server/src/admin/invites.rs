//! `invites list|cancel`: leave that was given and is not used up.

use data_encoding::HEXLOWER;
use serde_json::{Value, json};
use time::OffsetDateTime;

use super::lists::{line, table};
use super::{AdminError, SCHEMA, actor, state_dir};
use crate::config::Config;
use crate::registry::{EnrolError, Invitation, Registry};
use crate::times::rfc3339;

/// The invitations that can be used, or with `all` every one.
///
/// # Errors
/// [`AdminError`] when there is no registry, or it cannot be read.
pub async fn list(config: &Config, all: bool, as_json: bool) -> Result<String, AdminError> {
    let registry = state_dir(config).registry().await?;
    let mut invitations = registry.invitations().await?;
    registry.close().await;
    let now = OffsetDateTime::now_utc();
    invitations.retain(|invitation| all || invitation.judge(now).is_ok());
    if as_json {
        let invitations: Vec<Value> = invitations.iter().map(|invitation| as_value(invitation, now)).collect();
        return Ok(line(&json!({ "schema": SCHEMA, "invitations": invitations })));
    }
    let mut rows = vec![["ID", "USER", "USES", "CREATED", "EXPIRES", "STATE"].map(str::to_owned)];
    rows.extend(invitations.iter().map(|invitation| {
        [
            name(invitation),
            invitation.user.clone(),
            format!("{} of {}", invitation.uses, invitation.uses_allowed),
            rfc3339(invitation.created),
            rfc3339(invitation.expires),
            state(invitation, now).to_owned(),
        ]
    }));
    Ok(table(&rows))
}

fn as_value(invitation: &Invitation, now: OffsetDateTime) -> Value {
    let last_use = invitation.last_use.as_ref();
    json!({
        "id": name(invitation),
        "user": invitation.user,
        "uses": invitation.uses,
        "uses_allowed": invitation.uses_allowed,
        "created": rfc3339(invitation.created),
        "expires": rfc3339(invitation.expires),
        "cancelled_at": invitation.cancelled_at.map(rfc3339),
        "last_used_at": last_use.map(|(at, _)| rfc3339(*at)),
        "last_used_by": last_use.map(|(_, device)| device),
        "renews": invitation.renews,
        "state": state(invitation, now),
    })
}

/// Withdraws invitations: one by the beginning of its id, or all open ones of a user.
///
/// # Errors
/// [`AdminError::NoInvitation`] when there is none.
pub async fn cancel(config: &Config, which: &str, as_json: bool) -> Result<String, AdminError> {
    let registry = state_dir(config).registry().await?;
    let now = OffsetDateTime::now_utc();
    let mut open = registry.invitations().await?;
    open.retain(|invitation| invitation.judge(now).is_ok());
    let of_user: Vec<&Invitation> = open.iter().filter(|invitation| invitation.user == which).collect();
    let by_id = || -> Vec<&Invitation> {
        open.iter().filter(|invitation| which.len() >= ID_MIN && name(invitation).starts_with(which)).collect()
    };
    let chosen = if of_user.is_empty() { by_id() } else { of_user };
    if chosen.len() > 1 && chosen.iter().any(|invitation| invitation.user != which) {
        let ids = chosen.iter().map(|invitation| name(invitation)).collect();
        return Err(AdminError::Ambiguous { name: which.to_owned(), choices: ids });
    }
    if chosen.is_empty() {
        return Err(AdminError::NoInvitation(which.to_owned()));
    }
    let mut cancelled = Vec::new();
    for invitation in chosen {
        if registry.cancel_invitation(&invitation.id, now, &actor()).await? {
            cancelled.push(invitation);
        }
    }
    let text = if as_json {
        let names: Vec<String> = cancelled.iter().map(|invitation| name(invitation)).collect();
        line(&json!({ "schema": SCHEMA, "cancelled": names }))
    } else {
        let told = |invitation: &&Invitation| format!("{} for {} is withdrawn\n", name(invitation), invitation.user);
        cancelled.iter().map(told).collect()
    };
    registry.close().await;
    Ok(text)
}

/// Of an id, so that one typed digit withdraws nothing.
const ID_MIN: usize = 4;

/// An invitation's id as logs and `invite` tell it.
fn name(invitation: &Invitation) -> String {
    HEXLOWER.encode(&invitation.id)
}

fn state(invitation: &Invitation, now: OffsetDateTime) -> &'static str {
    match invitation.judge(now) {
        Ok(()) => "open",
        Err(EnrolError::Cancelled) => "cancelled",
        Err(EnrolError::Used { .. }) => "used",
        Err(_) => "expired",
    }
}
