//! What happened: one row a change, which is the history that people read and the signal by which
//! running gateways notice what others changed.

use sqlx::Row as _;
use time::OffsetDateTime;

use super::{Connection, Row, from_sqlx, when};
use crate::registry::{Event, RegistryError};

/// Notes one change.
pub(in super::super) async fn record(
    connection: &mut Connection,
    now: OffsetDateTime,
    event: &str,
    actor: &str,
    target: &str,
) -> Result<(), RegistryError> {
    sqlx::query("INSERT INTO events (at, event, actor, target) VALUES ($1, $2, $3, $4)")
        .bind(now.unix_timestamp())
        .bind(event)
        .bind(actor)
        .bind(target)
        .execute(connection)
        .await
        .map_err(from_sqlx)?;
    Ok(())
}

/// The newest event's number; 0 when nothing has happened yet.
pub(super) async fn last(connection: &mut Connection) -> Result<i64, RegistryError> {
    let last: Option<i64> =
        sqlx::query_scalar("SELECT max(id) FROM events").fetch_one(connection).await.map_err(from_sqlx)?;
    Ok(last.unwrap_or_default())
}

/// Oldest first.
pub(super) async fn after(connection: &mut Connection, id: i64, at_most: u32) -> Result<Vec<Event>, RegistryError> {
    let rows = sqlx::query("SELECT * FROM events WHERE id > $1 ORDER BY id LIMIT $2")
        .bind(id)
        .bind(i64::from(at_most))
        .fetch_all(connection)
        .await
        .map_err(from_sqlx)?;
    rows.iter().map(event).collect()
}

/// Newest first.
pub(super) async fn of(connection: &mut Connection, target: &str, at_most: u32) -> Result<Vec<Event>, RegistryError> {
    let rows = sqlx::query("SELECT * FROM events WHERE target = $1 ORDER BY id DESC LIMIT $2")
        .bind(target)
        .bind(i64::from(at_most))
        .fetch_all(connection)
        .await
        .map_err(from_sqlx)?;
    rows.iter().map(event).collect()
}

fn event(row: &Row) -> Result<Event, RegistryError> {
    Ok(Event {
        id: row.try_get("id").map_err(from_sqlx)?,
        at: when(row.try_get("at").map_err(from_sqlx)?)?,
        event: row.try_get("event").map_err(from_sqlx)?,
        actor: row.try_get("actor").map_err(from_sqlx)?,
        target: row.try_get("target").map_err(from_sqlx)?,
    })
}
