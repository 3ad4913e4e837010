//! All of a registry out, and into an empty one.

use sqlx::{QueryBuilder, Row as _};
use time::OffsetDateTime;

use super::{Connection, Database, Row, devices, events, from_sqlx, invitations};
use crate::registry::dump::{Dump, Sizes, Use};
use crate::registry::{Event, Meta, RegistryError};

/// Rows of one statement: a device has thirteen values, and SQLite takes 32,766.
const ROWS: usize = 1_000;

/// Inside a transaction, so that it is one moment's.
pub(in super::super) async fn export(connection: &mut Connection) -> Result<Dump, RegistryError> {
    let mut dump = Dump::default();
    let rows = sqlx::query("SELECT name, value FROM meta").fetch_all(&mut *connection).await.map_err(from_sqlx)?;
    for row in rows {
        dump.meta.insert(row.try_get("name").map_err(from_sqlx)?, row.try_get("value").map_err(from_sqlx)?);
    }
    let users = devices::users(&mut *connection).await?;
    dump.users = users.into_iter().map(|user| (user.name, user.created.unix_timestamp())).collect();
    dump.devices = devices::all(&mut *connection).await?;
    dump.invitations = invitations::all(&mut *connection).await?;
    dump.invitations.iter_mut().for_each(|invitation| invitation.last_use = None); // it is in `uses`
    let rows = sqlx::query("SELECT invitation, device, at FROM invitation_uses ORDER BY invitation, device")
        .fetch_all(&mut *connection)
        .await
        .map_err(from_sqlx)?;
    let one = |row: &Row| {
        Ok(Use {
            invitation: row.try_get("invitation").map_err(from_sqlx)?,
            device: row.try_get("device").map_err(from_sqlx)?,
            at: row.try_get("at").map_err(from_sqlx)?,
        })
    };
    dump.uses = rows.iter().map(one).collect::<Result<_, RegistryError>>()?;
    dump.events = events::after(connection, 0, u32::MAX).await?;
    Ok(dump)
}

/// Fills an empty registry. `facts` are the ones that it keeps.
pub(in super::super) async fn import(
    connection: &mut Connection,
    facts: &[(Meta, String)],
    dump: &Dump,
) -> Result<(), RegistryError> {
    if sizes(&mut *connection).await? != Sizes::default() {
        return Err(RegistryError::InUse);
    }
    sqlx::query("DELETE FROM meta").execute(&mut *connection).await.map_err(from_sqlx)?;
    for some in facts.chunks(ROWS) {
        let mut insert = QueryBuilder::<Database>::new("INSERT INTO meta (name, value) ");
        insert.push_values(some, |mut row, (fact, value)| {
            row.push_bind(fact.name()).push_bind(value);
        });
        insert.build().execute(&mut *connection).await.map_err(from_sqlx)?;
    }
    for (part, some) in dump.users.chunks(ROWS).enumerate() {
        let mut insert = QueryBuilder::<Database>::new("INSERT INTO users (id, name, created) ");
        insert.push_values(some.iter().zip((part * ROWS) as i64 + 1..), |mut row, ((name, created), id)| {
            row.push_bind(id).push_bind(name).push_bind(*created);
        });
        insert.build().execute(&mut *connection).await.map_err(from_sqlx)?;
    }
    let ids: std::collections::HashMap<&str, i64> = dump.users.iter().map(|(name, _)| name.as_str()).zip(1..).collect();
    let owner = |user: &str| ids.get(user).copied().ok_or(RegistryError::Impossible("user"));
    for some in dump.devices.chunks(ROWS) {
        let owners: Vec<i64> = some.iter().map(|device| owner(&device.user)).collect::<Result<_, _>>()?;
        let mut insert = QueryBuilder::<Database>::new(
            "INSERT INTO devices (id, \"user\", name, spki_sha256, serial, not_after, ipv4, address, ipv6, created,
             last_seen, revoked_at, authority) ",
        );
        insert.push_values(some.iter().zip(owners), |mut row, (device, owner)| {
            row.push_bind(&device.id)
                .push_bind(owner)
                .push_bind(&device.name)
                .push_bind(device.spki_sha256.as_slice())
                .push_bind(&device.serial)
                .push_bind(device.not_after.unix_timestamp())
                .push_bind(device.ipv4.to_string())
                .push_bind(i64::from(u32::from(device.ipv4)))
                .push_bind(device.ipv6.map(|ipv6| ipv6.to_string()))
                .push_bind(device.created.unix_timestamp())
                .push_bind(device.last_seen.map(OffsetDateTime::unix_timestamp))
                .push_bind(device.revoked_at.map(OffsetDateTime::unix_timestamp))
                .push_bind(device.authority.map(|pin| pin.to_string()));
        });
        insert.build().execute(&mut *connection).await.map_err(from_sqlx)?;
    }
    for some in dump.invitations.chunks(ROWS) {
        let owners: Vec<i64> = some.iter().map(|invitation| owner(&invitation.user)).collect::<Result<_, _>>()?;
        let mut insert = QueryBuilder::<Database>::new(
            "INSERT INTO invitations (id, key, \"user\", uses_allowed, uses, created, expires, cancelled_at, device) ",
        );
        insert.push_values(some.iter().zip(owners), |mut row, (invitation, owner)| {
            row.push_bind(&invitation.id)
                .push_bind(&invitation.key)
                .push_bind(owner)
                .push_bind(i64::from(invitation.uses_allowed))
                .push_bind(i64::from(invitation.uses))
                .push_bind(invitation.created.unix_timestamp())
                .push_bind(invitation.expires.unix_timestamp())
                .push_bind(invitation.cancelled_at.map(OffsetDateTime::unix_timestamp))
                .push_bind(&invitation.renews);
        });
        insert.build().execute(&mut *connection).await.map_err(from_sqlx)?;
    }
    for some in dump.uses.chunks(ROWS) {
        let mut insert = QueryBuilder::<Database>::new("INSERT INTO invitation_uses (invitation, device, at) ");
        insert.push_values(some, |mut row, one| {
            row.push_bind(&one.invitation).push_bind(&one.device).push_bind(one.at);
        });
        insert.build().execute(&mut *connection).await.map_err(from_sqlx)?;
    }
    for some in dump.events.chunks(ROWS) {
        let mut insert = QueryBuilder::<Database>::new("INSERT INTO events (id, at, event, actor, target) ");
        insert.push_values(some, |mut row, Event { id, at, event, actor, target }| {
            row.push_bind(*id).push_bind(at.unix_timestamp()).push_bind(event).push_bind(actor).push_bind(target);
        });
        insert.build().execute(&mut *connection).await.map_err(from_sqlx)?;
    }
    if sizes(connection).await? == dump.sizes() { Ok(()) } else { Err(RegistryError::Impossible("number of rows")) }
}

async fn sizes(connection: &mut Connection) -> Result<Sizes, RegistryError> {
    let row = sqlx::query(
        "SELECT (SELECT count(*) FROM users) AS users, (SELECT count(*) FROM devices) AS devices,
           (SELECT count(*) FROM invitations) AS invitations, (SELECT count(*) FROM invitation_uses) AS uses,
           (SELECT count(*) FROM events) AS events",
    )
    .fetch_one(connection)
    .await
    .map_err(from_sqlx)?;
    let count = |column| {
        let count: i64 = row.try_get(column).map_err(from_sqlx)?;
        usize::try_from(count).map_err(|_| RegistryError::Impossible("count"))
    };
    Ok(Sizes {
        users: count("users")?,
        devices: count("devices")?,
        invitations: count("invitations")?,
        uses: count("uses")?,
        events: count("events")?,
    })
}
