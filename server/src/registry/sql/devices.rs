//! Devices and their users: enrolled, found, renamed, renewed, revoked.

use std::collections::HashMap;
use std::net::Ipv4Addr;

use culvert_tunnel::identity::Pin;
use sqlx::{QueryBuilder, Row as _};
use time::{Duration, OffsetDateTime};

use super::events::record;
use super::slices;
use super::{Connection, Row, from_sqlx, maybe_when, when};
use crate::addresses::{Pool, PoolFull};
use crate::registry::{Certificate, Counts, Device, EnrolError, Enrolment, RegistryError, Renamed, Seen, User};

const SELECT: &str = "SELECT devices.*, users.name AS user_name FROM devices JOIN users ON users.id = devices.\"user\"";

async fn select(
    connection: &mut Connection,
    rest: &str,
    bind: impl FnOnce(Query<'_>) -> Query<'_>,
) -> Result<Vec<Device>, RegistryError> {
    let query = format!("{SELECT} {rest}");
    let rows = bind(sqlx::query(sqlx::AssertSqlSafe(query))).fetch_all(connection).await.map_err(from_sqlx)?;
    rows.iter().map(device).collect()
}

type Query<'q> = sqlx::query::Query<'q, super::Database, <super::Database as sqlx::Database>::Arguments>;

pub(super) async fn by_key(connection: &mut Connection, spki: &[u8; 32]) -> Result<Option<Device>, RegistryError> {
    let key = spki.to_vec();
    Ok(select(connection, "WHERE devices.spki_sha256 = $1", |query| query.bind(key)).await?.pop())
}

async fn by_id(connection: &mut Connection, id: &str) -> Result<Option<Device>, RegistryError> {
    let id = id.to_owned();
    Ok(select(connection, "WHERE devices.id = $1", |query| query.bind(id)).await?.pop())
}

/// `user/device`, an id, or a device's name, which several users' devices may have.
pub(super) async fn find(connection: &mut Connection, name: &str) -> Result<Vec<Device>, RegistryError> {
    const ORDER: &str = "ORDER BY users.name, devices.name";
    if let Some((user, device)) = name.split_once('/') {
        let (user, device) = (user.to_owned(), device.to_owned());
        let rest = "WHERE users.name = $1 AND devices.name = $2";
        let found = select(&mut *connection, rest, |query| query.bind(user).bind(device)).await?;
        if !found.is_empty() {
            return Ok(found);
        }
    }
    let name = name.to_owned();
    let rest = format!("WHERE devices.name = $1 OR devices.id = $1 {ORDER}");
    select(connection, &rest, |query| query.bind(name)).await
}

pub(super) async fn of(connection: &mut Connection, user: &str) -> Result<Vec<Device>, RegistryError> {
    let user = user.to_owned();
    select(connection, "WHERE users.name = $1 ORDER BY devices.name", |query| query.bind(user)).await
}

pub(super) async fn all(connection: &mut Connection) -> Result<Vec<Device>, RegistryError> {
    select(connection, "ORDER BY users.name, devices.name", |query| query).await
}

/// A device in use whose address the pool does not hold.
pub(super) async fn outside(connection: &mut Connection, pool: &Pool) -> Result<Option<Device>, RegistryError> {
    let (first, last) = pool.range();
    let rest = "WHERE devices.revoked_at IS NULL AND (devices.address < $1 OR devices.address > $2)
        ORDER BY devices.address LIMIT 1";
    Ok(select(connection, rest, |query| query.bind(first).bind(last)).await?.pop())
}

pub(super) async fn users(connection: &mut Connection) -> Result<Vec<User>, RegistryError> {
    let rows = sqlx::query(
        "SELECT users.name, users.created, count(devices.id) AS devices, count(devices.revoked_at) AS revoked
         FROM users LEFT JOIN devices ON devices.\"user\" = users.id
         GROUP BY users.id, users.name, users.created ORDER BY users.name",
    )
    .fetch_all(connection)
    .await
    .map_err(from_sqlx)?;
    let user = |row: &Row| {
        let count = |column| row.try_get::<i64, _>(column).map_err(from_sqlx);
        Ok(User {
            name: row.try_get("name").map_err(from_sqlx)?,
            created: when(row.try_get("created").map_err(from_sqlx)?)?,
            devices: count("devices")?.unsigned_abs(),
            revoked: count("revoked")?.unsigned_abs(),
        })
    };
    rows.iter().map(user).collect()
}

pub(super) async fn counts(connection: &mut Connection, now: OffsetDateTime) -> Result<Counts, RegistryError> {
    let now_seconds = now.unix_timestamp();
    let soon = |days| (now + Duration::days(days)).unix_timestamp();
    let row = sqlx::query(
        "SELECT
           (SELECT count(*) FROM devices WHERE revoked_at IS NULL AND not_after > $1) AS active,
           (SELECT count(*) FROM devices WHERE revoked_at IS NULL AND not_after <= $1) AS expired,
           (SELECT count(*) FROM devices WHERE revoked_at IS NOT NULL) AS revoked,
           (SELECT count(*) FROM devices WHERE revoked_at IS NULL AND not_after > $1 AND not_after <= $2) AS week,
           (SELECT count(*) FROM devices WHERE revoked_at IS NULL AND not_after > $1 AND not_after <= $3) AS month,
           (SELECT count(*) FROM invitations WHERE cancelled_at IS NULL AND uses < uses_allowed AND expires > $1) AS open,
           (SELECT count(*) FROM invitations WHERE uses = uses_allowed) AS used,
           (SELECT count(*) FROM invitations WHERE cancelled_at IS NULL AND uses < uses_allowed AND expires <= $1) AS lapsed,
           (SELECT count(*) FROM invitations WHERE cancelled_at IS NOT NULL AND uses < uses_allowed) AS cancelled",
    )
    .bind(now_seconds)
    .bind(soon(7))
    .bind(soon(30))
    .fetch_one(connection)
    .await
    .map_err(from_sqlx)?;
    let count = |column| row.try_get::<i64, _>(column).map(i64::unsigned_abs).map_err(from_sqlx);
    Ok(Counts {
        active: count("active")?,
        expired: count("expired")?,
        revoked: count("revoked")?,
        expiring_in_7_days: count("week")?,
        expiring_in_30_days: count("month")?,
        invitations_open: count("open")?,
        invitations_used: count("used")?,
        invitations_expired: count("lapsed")?,
        invitations_cancelled: count("cancelled")?,
    })
}

/// Devices noted by one statement; each is two parameters, of which SQLite takes 32,766.
const SEEN_AT_ONCE: usize = 1_000;

/// The latest note on each device counts.
pub(super) async fn saw(connection: &mut Connection, seen: &[Seen]) -> Result<(), RegistryError> {
    let mut latest: HashMap<&str, i64> = HashMap::with_capacity(seen.len());
    for Seen { device, at } in seen {
        let last = latest.entry(device).or_insert(i64::MIN);
        *last = at.unix_timestamp().max(*last);
    }
    let latest: Vec<(&str, i64)> = latest.into_iter().collect();
    for some in latest.chunks(SEEN_AT_ONCE) {
        let mut update = QueryBuilder::<super::Database>::new("UPDATE devices SET last_seen = seen.column2 FROM (");
        update.push_values(some, |mut row, (device, at)| {
            row.push_bind(*device).push_bind(*at);
        });
        update.push(") AS seen WHERE devices.id = seen.column1");
        update.build().execute(&mut *connection).await.map_err(from_sqlx)?;
    }
    Ok(())
}

pub(super) async fn revoke(
    connection: &mut Connection,
    device: &str,
    now: OffsetDateTime,
    actor: &str,
) -> Result<bool, RegistryError> {
    let change = "UPDATE devices SET revoked_at = $2 WHERE id = $1 AND revoked_at IS NULL";
    let query = sqlx::query(change).bind(device).bind(now.unix_timestamp());
    if query.execute(&mut *connection).await.map_err(from_sqlx)?.rows_affected() == 0 {
        return Ok(false);
    }
    record(connection, now, "revoked", actor, device).await?;
    Ok(true)
}

pub(super) async fn restore(
    connection: &mut Connection,
    device: &str,
    now: OffsetDateTime,
    actor: &str,
) -> Result<bool, RegistryError> {
    let query =
        sqlx::query("UPDATE devices SET revoked_at = NULL WHERE id = $1 AND revoked_at IS NOT NULL").bind(device);
    if query.execute(&mut *connection).await.map_err(from_sqlx)?.rows_affected() == 0 {
        return Ok(false);
    }
    record(connection, now, "restored", actor, device).await?;
    Ok(true)
}

pub(super) async fn rename(
    connection: &mut Connection,
    device: &str,
    name: &str,
    now: OffsetDateTime,
    actor: &str,
) -> Result<Renamed, RegistryError> {
    let Some(found) = by_id(&mut *connection, device).await? else { return Ok(Renamed::Gone) };
    if found.name == name {
        return Ok(Renamed::Same);
    }
    if has_device(&mut *connection, &found.user, name).await? {
        return Ok(Renamed::Taken);
    }
    sqlx::query("UPDATE devices SET name = $1 WHERE id = $2")
        .bind(name)
        .bind(device)
        .execute(&mut *connection)
        .await
        .map_err(from_sqlx)?;
    record(connection, now, "renamed", actor, device).await?;
    Ok(Renamed::Done)
}

pub(super) async fn renew(
    connection: &mut Connection,
    device: &str,
    certificate: &Certificate<'_>,
    now: OffsetDateTime,
) -> Result<bool, RegistryError> {
    let renewed = sqlx::query(
        "UPDATE devices SET serial = $1, not_after = $2 WHERE id = $3 AND spki_sha256 = $4 AND revoked_at IS NULL",
    )
    .bind(certificate.serial)
    .bind(certificate.not_after.unix_timestamp())
    .bind(device)
    .bind(certificate.spki_sha256.as_slice())
    .execute(&mut *connection)
    .await
    .map_err(from_sqlx)?;
    if renewed.rows_affected() == 0 {
        return Ok(false);
    }
    record(connection, now, "renewed", "device", device).await?;
    Ok(true)
}

/// A certificate of this CA is on the device's disk.
pub(super) async fn holds(connection: &mut Connection, device: &str, authority: &Pin) -> Result<(), RegistryError> {
    sqlx::query("UPDATE devices SET authority = $1 WHERE id = $2")
        .bind(authority.to_string())
        .bind(device)
        .execute(connection)
        .await
        .map_err(from_sqlx)?;
    Ok(())
}

/// Devices that were there before anybody asked have a certificate of this CA.
pub(super) async fn first_authority(connection: &mut Connection, authority: &Pin) -> Result<(), RegistryError> {
    sqlx::query("UPDATE devices SET authority = $1 WHERE authority IS NULL")
        .bind(authority.to_string())
        .execute(connection)
        .await
        .map_err(from_sqlx)?;
    Ok(())
}

/// Adds a device with an address of its own.
pub(super) async fn enrol(
    connection: &mut Connection,
    user: &str,
    enrolment: &Enrolment<'_>,
) -> Result<Device, EnrolError> {
    check_limit(&mut *connection, user, enrolment.devices_per_user).await?;
    check_key(&mut *connection, enrolment).await?;
    let address = match enrolment.gateway {
        None => free_address(&mut *connection, enrolment.pool.range()).await?,
        Some(gateway) => slices::free_address(&mut *connection, &enrolment.pool, gateway).await?,
    };
    let full = PoolFull { network: enrolment.pool.ipv4(), size: enrolment.pool.size() };
    let lease = enrolment.pool.lease_of(address.ok_or(full)?);
    let lease = lease.ok_or(RegistryError::Impossible("address"))?;
    let device = Device {
        id: enrolment.device.to_owned(),
        name: free_name(&mut *connection, user, enrolment.name).await?,
        user: user.to_owned(),
        spki_sha256: enrolment.spki_sha256,
        serial: enrolment.serial.to_owned(),
        not_after: enrolment.not_after,
        ipv4: lease.ipv4,
        ipv6: lease.ipv6,
        created: enrolment.now,
        last_seen: None,
        revoked_at: None,
        authority: Some(enrolment.authority),
    };
    sqlx::query(
        "INSERT INTO devices (id, \"user\", name, spki_sha256, serial, not_after, ipv4, address, ipv6, created,
           authority)
         VALUES ($1, (SELECT id FROM users WHERE name = $2), $3, $4, $5, $6, $7, $8, $9, $10, $11)",
    )
    .bind(&device.id)
    .bind(&device.user)
    .bind(&device.name)
    .bind(device.spki_sha256.as_slice())
    .bind(&device.serial)
    .bind(device.not_after.unix_timestamp())
    .bind(device.ipv4.to_string())
    .bind(i64::from(u32::from(device.ipv4)))
    .bind(device.ipv6.map(|ipv6| ipv6.to_string()))
    .bind(device.created.unix_timestamp())
    .bind(enrolment.authority.to_string())
    .execute(connection)
    .await
    .map_err(from_sqlx)?;
    Ok(device)
}

/// Gives a device that is known a new key and certificate; it keeps its name, address and id.
pub(super) async fn enrol_again(
    connection: &mut Connection,
    device: &str,
    enrolment: &Enrolment<'_>,
) -> Result<Device, EnrolError> {
    let Some(known) = by_id(&mut *connection, device).await? else { return Err(EnrolError::Foreign) };
    if enrolment.device != device {
        return Err(RegistryError::Impossible("device of an invitation").into()); // its certificate would be another's
    }
    if known.revoked_at.is_some() {
        return Err(EnrolError::Cancelled);
    }
    check_key(&mut *connection, enrolment).await?;
    sqlx::query("UPDATE devices SET spki_sha256 = $1, serial = $2, not_after = $3, authority = $4 WHERE id = $5")
        .bind(enrolment.spki_sha256.as_slice())
        .bind(enrolment.serial)
        .bind(enrolment.not_after.unix_timestamp())
        .bind(enrolment.authority.to_string())
        .bind(device)
        .execute(connection)
        .await
        .map_err(from_sqlx)?;
    Ok(Device {
        spki_sha256: enrolment.spki_sha256,
        serial: enrolment.serial.to_owned(),
        not_after: enrolment.not_after,
        authority: Some(enrolment.authority),
        ..known
    })
}

async fn check_key(connection: &mut Connection, enrolment: &Enrolment<'_>) -> Result<(), EnrolError> {
    match by_key(connection, &enrolment.spki_sha256).await? {
        Some(_) => Err(EnrolError::KnownKey),
        None => Ok(()),
    }
}

async fn check_limit(connection: &mut Connection, user: &str, limit: Option<u32>) -> Result<(), EnrolError> {
    let Some(limit) = limit else { return Ok(()) };
    let devices: i64 = sqlx::query_scalar(
        "SELECT count(*) FROM devices JOIN users ON users.id = devices.\"user\"
         WHERE users.name = $1 AND devices.revoked_at IS NULL",
    )
    .bind(user)
    .fetch_one(connection)
    .await
    .map_err(from_sqlx)?;
    if devices >= i64::from(limit) { Err(EnrolError::Limit { limit }) } else { Ok(()) }
}

/// Of the addresses from the first to the last, as numbers: the one after the highest in use, or the lowest gap once
/// the end is reached. Two looks into an index, however many devices there are. `None` when all are taken.
pub(super) async fn free_address(
    connection: &mut Connection,
    (first, last): (i64, i64),
) -> Result<Option<Ipv4Addr>, RegistryError> {
    let highest: Option<i64> = sqlx::query_scalar("SELECT max(address) FROM devices WHERE address BETWEEN $1 AND $2")
        .bind(first)
        .bind(last)
        .fetch_one(&mut *connection)
        .await
        .map_err(from_sqlx)?;
    let next = highest.map_or(first, |highest| highest + 1);
    let free = if next <= last { Some(next) } else { lowest_gap(connection, first, last).await? };
    let address = |number| u32::try_from(number).map_err(|_| RegistryError::Impossible("address"));
    Ok(free.map(address).transpose()?.map(Into::into))
}

async fn lowest_gap(connection: &mut Connection, first: i64, last: i64) -> Result<Option<i64>, RegistryError> {
    // The number before the first one stands in for a neighbour, so that a gap there is found too.
    sqlx::query_scalar(
        "SELECT before.address + 1 FROM (
             SELECT $1 - 1 AS address UNION ALL SELECT address FROM devices WHERE address BETWEEN $1 AND $2
         ) AS before
         WHERE before.address < $2 AND NOT EXISTS (SELECT 1 FROM devices WHERE address = before.address + 1)
         ORDER BY before.address LIMIT 1",
    )
    .bind(first)
    .bind(last)
    .fetch_optional(connection)
    .await
    .map_err(from_sqlx)
}

/// `wanted`, or `wanted-N` for an N that is free: doubled until it is, and then halved back towards
/// those that are taken, so that the ten-thousandth "laptop" costs no more than some thirty looks.
async fn free_name(connection: &mut Connection, user: &str, wanted: &str) -> Result<String, RegistryError> {
    if !has_device(&mut *connection, user, wanted).await? {
        return Ok(wanted.to_owned());
    }
    let numbered = |number: u64| format!("{wanted}-{number}");
    let (mut taken, mut free) = (1, 2);
    while has_device(&mut *connection, user, &numbered(free)).await? {
        (taken, free) = (free, free * 2);
    }
    while taken + 1 < free {
        let middle = taken.midpoint(free);
        if has_device(&mut *connection, user, &numbered(middle)).await? { taken = middle } else { free = middle }
    }
    Ok(numbered(free))
}

async fn has_device(connection: &mut Connection, user: &str, name: &str) -> Result<bool, RegistryError> {
    let found: Option<i64> = sqlx::query_scalar(
        "SELECT users.id FROM devices JOIN users ON users.id = devices.\"user\"
         WHERE users.name = $1 AND devices.name = $2",
    )
    .bind(user)
    .bind(name)
    .fetch_optional(connection)
    .await
    .map_err(from_sqlx)?;
    Ok(found.is_some())
}

fn device(row: &Row) -> Result<Device, RegistryError> {
    let text = |column| row.try_get::<String, _>(column).map_err(from_sqlx);
    let ipv6: Option<String> = row.try_get("ipv6").map_err(from_sqlx)?;
    let authority: Option<String> = row.try_get("authority").map_err(from_sqlx)?;
    let spki: Vec<u8> = row.try_get("spki_sha256").map_err(from_sqlx)?;
    Ok(Device {
        id: text("id")?,
        user: text("user_name")?,
        name: text("name")?,
        spki_sha256: spki.try_into().map_err(|_| RegistryError::Impossible("key hash"))?,
        serial: text("serial")?,
        not_after: when(row.try_get("not_after").map_err(from_sqlx)?)?,
        ipv4: text("ipv4")?.parse().map_err(|_| RegistryError::Impossible("address"))?,
        ipv6: ipv6.map(|ipv6| ipv6.parse().map_err(|_| RegistryError::Impossible("address"))).transpose()?,
        created: when(row.try_get("created").map_err(from_sqlx)?)?,
        last_seen: maybe_when(row.try_get("last_seen").map_err(from_sqlx)?)?,
        revoked_at: maybe_when(row.try_get("revoked_at").map_err(from_sqlx)?)?,
        authority: authority.map(|pin| pin.parse().map_err(|_| RegistryError::Impossible("pin"))).transpose()?,
    })
}
