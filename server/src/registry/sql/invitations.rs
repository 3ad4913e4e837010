//! Invitations, and what becomes of them.

use sqlx::Row as _;
use time::OffsetDateTime;

use super::events::record;
use super::{Connection, Row, devices, from_sqlx, maybe_when, when};
use crate::registry::{Device, EnrolError, Enrolment, Invitation, RegistryError};

/// With the last use of each.
const SELECT: &str = "SELECT invitations.*, users.name AS user_name, uses.at AS used_at, devices.name AS used_by
    FROM invitations JOIN users ON users.id = invitations.user
    LEFT JOIN invitation_uses AS uses ON uses.invitation = invitations.id AND uses.device = (
        SELECT last.device FROM invitation_uses AS last WHERE last.invitation = invitations.id
        ORDER BY last.at DESC, last.device DESC LIMIT 1)
    LEFT JOIN devices ON devices.id = uses.device";

pub(super) async fn add(
    connection: &mut Connection,
    invitation: &Invitation,
    actor: &str,
) -> Result<(), RegistryError> {
    sqlx::query("INSERT INTO users (name, created) VALUES ($1, $2) ON CONFLICT (name) DO NOTHING")
        .bind(&invitation.user)
        .bind(invitation.created.unix_timestamp())
        .execute(&mut *connection)
        .await
        .map_err(from_sqlx)?;
    sqlx::query(
        "INSERT INTO invitations (id, key, \"user\", uses_allowed, uses, created, expires, cancelled_at, device)
         VALUES ($1, $2, (SELECT id FROM users WHERE name = $3), $4, $5, $6, $7, $8, $9)",
    )
    .bind(&invitation.id)
    .bind(&invitation.key)
    .bind(&invitation.user)
    .bind(i64::from(invitation.uses_allowed))
    .bind(i64::from(invitation.uses))
    .bind(invitation.created.unix_timestamp())
    .bind(invitation.expires.unix_timestamp())
    .bind(invitation.cancelled_at.map(OffsetDateTime::unix_timestamp))
    .bind(&invitation.renews)
    .execute(&mut *connection)
    .await
    .map_err(from_sqlx)?;
    record(connection, invitation.created, "invite", actor, &invitation.user).await
}

pub(super) async fn get(connection: &mut Connection, id: &[u8]) -> Result<Option<Invitation>, RegistryError> {
    let query = format!("{SELECT} WHERE invitations.id = $1");
    let row = sqlx::query(sqlx::AssertSqlSafe(query)).bind(id).fetch_optional(connection).await.map_err(from_sqlx)?;
    row.as_ref().map(invitation).transpose()
}

/// Newest first.
pub(super) async fn all(connection: &mut Connection) -> Result<Vec<Invitation>, RegistryError> {
    let query = format!("{SELECT} ORDER BY invitations.created DESC, invitations.id");
    let rows = sqlx::query(sqlx::AssertSqlSafe(query)).fetch_all(connection).await.map_err(from_sqlx)?;
    rows.iter().map(invitation).collect()
}

pub(super) async fn cancel(
    connection: &mut Connection,
    id: &[u8],
    now: OffsetDateTime,
    actor: &str,
) -> Result<bool, RegistryError> {
    let user: Option<String> = sqlx::query_scalar(
        "UPDATE invitations SET cancelled_at = $1 WHERE id = $2 AND cancelled_at IS NULL
         RETURNING (SELECT name FROM users WHERE users.id = invitations.\"user\")",
    )
    .bind(now.unix_timestamp())
    .bind(id)
    .fetch_optional(&mut *connection)
    .await
    .map_err(from_sqlx)?;
    let Some(user) = user else { return Ok(false) };
    record(connection, now, "invite_cancel", actor, &user).await?;
    Ok(true)
}

/// Judges the invitation again, and makes or renews its device.
pub(super) async fn enrol(connection: &mut Connection, enrolment: &Enrolment<'_>) -> Result<Device, EnrolError> {
    let Some(invitation) = get(&mut *connection, enrolment.invitation).await? else {
        return Err(EnrolError::Foreign);
    };
    invitation.judge(enrolment.now)?;
    let device = match &invitation.renews {
        Some(device) => devices::enrol_again(&mut *connection, device, enrolment).await?,
        None => devices::enrol(&mut *connection, &invitation.user, enrolment).await?,
    };
    sqlx::query("UPDATE invitations SET uses = uses + 1 WHERE id = $1")
        .bind(enrolment.invitation)
        .execute(&mut *connection)
        .await
        .map_err(from_sqlx)?;
    sqlx::query("INSERT INTO invitation_uses (invitation, device, at) VALUES ($1, $2, $3)")
        .bind(enrolment.invitation)
        .bind(&device.id)
        .bind(enrolment.now.unix_timestamp())
        .execute(&mut *connection)
        .await
        .map_err(from_sqlx)?;
    record(connection, enrolment.now, "enrol_ok", &device.user, &device.id).await?;
    Ok(device)
}

fn invitation(row: &Row) -> Result<Invitation, RegistryError> {
    let used_at = maybe_when(row.try_get("used_at").map_err(from_sqlx)?)?;
    let used_by: Option<String> = row.try_get("used_by").map_err(from_sqlx)?;
    let count = |column| {
        let count: i64 = row.try_get(column).map_err(from_sqlx)?;
        u32::try_from(count).map_err(|_| RegistryError::Impossible("count"))
    };
    Ok(Invitation {
        id: row.try_get("id").map_err(from_sqlx)?,
        key: row.try_get("key").map_err(from_sqlx)?,
        user: row.try_get("user_name").map_err(from_sqlx)?,
        uses_allowed: count("uses_allowed")?,
        uses: count("uses")?,
        created: when(row.try_get("created").map_err(from_sqlx)?)?,
        expires: when(row.try_get("expires").map_err(from_sqlx)?)?,
        cancelled_at: maybe_when(row.try_get("cancelled_at").map_err(from_sqlx)?)?,
        last_use: used_at.zip(used_by),
        renews: row.try_get("device").map_err(from_sqlx)?,
    })
}
