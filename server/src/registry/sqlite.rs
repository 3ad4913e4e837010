//! The registry in one SQLite file: write-ahead log, full synchronisation, one writer at a time.
//!
//! Administrators' commands open the same file while the gateway runs. Writers begin their
//! transaction with the write lock (`BEGIN IMMEDIATE`), so what they judged is still so when they
//! commit.

use std::collections::HashSet;
use std::net::Ipv4Addr;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::time::Duration;

use sqlx::migrate::{MigrateError, Migrator};
use sqlx::sqlite::{
    SqliteConnectOptions, SqliteJournalMode, SqlitePool, SqlitePoolOptions, SqliteRow, SqliteSynchronous,
};
use sqlx::{Connection, Row, Sqlite, Transaction};
use time::OffsetDateTime;

use super::{Device, EnrolError, Enrolment, Invitation, Meta, Registry, RegistryError};

static MIGRATIONS: Migrator = sqlx::migrate!("./migrations");

/// How long a writer waits for another one.
const BUSY_TIMEOUT: Duration = Duration::from_secs(5);
/// Connections of one process; each costs a thread and its page cache.
const CONNECTIONS: u32 = 2;

/// A registry in a file. Cheap to clone.
#[derive(Clone, Debug)]
pub struct SqliteRegistry {
    pool: SqlitePool,
}

impl SqliteRegistry {
    /// Makes an empty registry. The file must not exist; only its owner can read it.
    ///
    /// # Errors
    /// [`RegistryError::Denied`] when the file exists or cannot be made, else what the store says.
    pub async fn create(path: &Path, facts: &[(Meta, String)]) -> Result<Self, RegistryError> {
        // SQLite gives its log and index the mode of the main file.
        std::fs::OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(path)
            .map_err(|error| from_io(&error))?;
        let registry = Self::open(path).await?;
        let mut transaction = registry.begin().await?;
        for (fact, value) in facts {
            sqlx::query("INSERT INTO meta (name, value) VALUES (?, ?)")
                .bind(fact.name())
                .bind(value)
                .execute(&mut *transaction)
                .await
                .map_err(from_sqlx)?;
        }
        transaction.commit().await.map_err(from_sqlx)?;
        Ok(registry)
    }

    /// Opens what [`Self::create`] made, and brings it up to this version.
    ///
    /// # Errors
    /// [`RegistryError::Newer`] when a later version wrote it, else what the store says.
    pub async fn open(path: &Path) -> Result<Self, RegistryError> {
        let options = SqliteConnectOptions::new()
            .filename(path)
            .create_if_missing(false)
            .journal_mode(SqliteJournalMode::Wal)
            .synchronous(SqliteSynchronous::Full)
            .foreign_keys(true)
            .busy_timeout(BUSY_TIMEOUT)
            .pragma("cache_size", "-512"); // KiB for each connection
        let pool = SqlitePoolOptions::new()
            .max_connections(CONNECTIONS)
            .idle_timeout(Duration::from_secs(60))
            // After a COMMIT that failed SQLite has rolled back, but sqlx 0.9 still counts a
            // transaction and could never begin another one: take a fresh connection.
            .before_acquire(|connection, _| Box::pin(async move { Ok(!connection.is_in_transaction()) }))
            .connect_with(options)
            .await
            .map_err(from_sqlx)?;
        MIGRATIONS.run(&pool).await.map_err(|error| match error {
            MigrateError::VersionMissing(_) | MigrateError::VersionTooNew(..) => RegistryError::Newer,
            MigrateError::Execute(error) => from_sqlx(error),
            other => RegistryError::Other(other.into()),
        })?;
        Ok(Self { pool })
    }

    /// Closes every connection; the last one folds the log into the main file.
    pub async fn close(self) {
        self.pool.close().await;
    }

    async fn begin(&self) -> Result<Transaction<'static, Sqlite>, RegistryError> {
        self.pool.begin_with("BEGIN IMMEDIATE").await.map_err(from_sqlx)
    }
}

impl Registry for SqliteRegistry {
    async fn meta(&self, name: Meta) -> Result<Option<String>, RegistryError> {
        sqlx::query_scalar("SELECT value FROM meta WHERE name = ?")
            .bind(name.name())
            .fetch_optional(&self.pool)
            .await
            .map_err(from_sqlx)
    }

    async fn add_invitation(&self, invitation: &Invitation, actor: &str) -> Result<(), RegistryError> {
        let mut transaction = self.begin().await?;
        sqlx::query("INSERT INTO users (name, created) VALUES (?, ?) ON CONFLICT (name) DO NOTHING")
            .bind(&invitation.user)
            .bind(invitation.created.unix_timestamp())
            .execute(&mut *transaction)
            .await
            .map_err(from_sqlx)?;
        sqlx::query(
            "INSERT INTO invitations (id, key, user, uses_allowed, uses, created, expires, cancelled_at)
             VALUES (?, ?, (SELECT id FROM users WHERE name = ?), ?, ?, ?, ?, ?)",
        )
        .bind(&invitation.id)
        .bind(&invitation.key)
        .bind(&invitation.user)
        .bind(invitation.uses_allowed)
        .bind(invitation.uses)
        .bind(invitation.created.unix_timestamp())
        .bind(invitation.expires.unix_timestamp())
        .bind(invitation.cancelled_at.map(OffsetDateTime::unix_timestamp))
        .execute(&mut *transaction)
        .await
        .map_err(from_sqlx)?;
        record(&mut transaction, invitation.created, "invite", actor, &invitation.user).await?;
        transaction.commit().await.map_err(from_sqlx)
    }

    async fn invitation(&self, id: &[u8]) -> Result<Option<Invitation>, RegistryError> {
        let row = sqlx::query(INVITATION).bind(id).fetch_optional(&self.pool).await.map_err(from_sqlx)?;
        row.map(|row| invitation(&row)).transpose()
    }

    async fn cancel_invitation(&self, id: &[u8], now: OffsetDateTime, actor: &str) -> Result<bool, RegistryError> {
        let mut transaction = self.begin().await?;
        let user: Option<String> = sqlx::query_scalar(
            "UPDATE invitations SET cancelled_at = ? WHERE id = ? AND cancelled_at IS NULL
             RETURNING (SELECT name FROM users WHERE users.id = user)",
        )
        .bind(now.unix_timestamp())
        .bind(id)
        .fetch_optional(&mut *transaction)
        .await
        .map_err(from_sqlx)?;
        let Some(user) = user else { return Ok(false) };
        record(&mut transaction, now, "invite_cancel", actor, &user).await?;
        transaction.commit().await.map_err(from_sqlx)?;
        Ok(true)
    }

    async fn enrol(&self, enrolment: &Enrolment<'_>) -> Result<Device, EnrolError> {
        let mut transaction = self.begin().await?;
        let row = sqlx::query(INVITATION)
            .bind(enrolment.invitation)
            .fetch_optional(&mut *transaction)
            .await
            .map_err(from_sqlx)?;
        let Some(row) = row else {
            return Err(EnrolError::Foreign);
        };
        let invitation = invitation(&row)?;
        invitation.judge(enrolment.now)?;
        check_limit(&mut transaction, &invitation.user, enrolment.devices_per_user).await?;
        let known: Option<i64> = sqlx::query_scalar("SELECT 1 FROM devices WHERE spki_sha256 = ?")
            .bind(enrolment.spki_sha256.as_slice())
            .fetch_optional(&mut *transaction)
            .await
            .map_err(from_sqlx)?;
        if known.is_some() {
            return Err(EnrolError::KnownKey);
        }
        let lease = enrolment.pool.allocate(&taken(&mut transaction).await?)?;
        let device = Device {
            id: enrolment.device.to_owned(),
            name: free_name(&mut transaction, &invitation.user, enrolment.name).await?,
            user: invitation.user,
            spki_sha256: enrolment.spki_sha256,
            serial: enrolment.serial.to_owned(),
            not_after: enrolment.not_after,
            ipv4: lease.ipv4,
            ipv6: lease.ipv6,
            created: enrolment.now,
            last_seen: None,
            revoked_at: None,
        };
        insert(&mut transaction, &device).await?;
        sqlx::query("UPDATE invitations SET uses = uses + 1 WHERE id = ?")
            .bind(enrolment.invitation)
            .execute(&mut *transaction)
            .await
            .map_err(from_sqlx)?;
        sqlx::query("INSERT INTO invitation_uses (invitation, device, at) VALUES (?, ?, ?)")
            .bind(enrolment.invitation)
            .bind(&device.id)
            .bind(enrolment.now.unix_timestamp())
            .execute(&mut *transaction)
            .await
            .map_err(from_sqlx)?;
        record(&mut transaction, enrolment.now, "enrol_ok", &device.user, &device.id).await?;
        transaction.commit().await.map_err(from_sqlx)?;
        Ok(device)
    }

    async fn device_by_key(&self, spki_sha256: &[u8; 32]) -> Result<Option<Device>, RegistryError> {
        let row = sqlx::query(
            "SELECT devices.*, users.name AS user_name FROM devices JOIN users ON users.id = devices.user
             WHERE spki_sha256 = ?",
        )
        .bind(spki_sha256.as_slice())
        .fetch_optional(&self.pool)
        .await
        .map_err(from_sqlx)?;
        row.map(|row| device(&row)).transpose()
    }

    async fn devices(&self) -> Result<Vec<Device>, RegistryError> {
        let rows = sqlx::query(
            "SELECT devices.*, users.name AS user_name FROM devices JOIN users ON users.id = devices.user
             ORDER BY users.name, devices.name",
        )
        .fetch_all(&self.pool)
        .await
        .map_err(from_sqlx)?;
        rows.iter().map(device).collect()
    }

    async fn saw(&self, device: &str, now: OffsetDateTime) -> Result<(), RegistryError> {
        sqlx::query("UPDATE devices SET last_seen = ? WHERE id = ?")
            .bind(now.unix_timestamp())
            .bind(device)
            .execute(&self.pool)
            .await
            .map_err(from_sqlx)?;
        Ok(())
    }
}

const INVITATION: &str = "SELECT invitations.*, users.name AS user_name, invitation_uses.at AS used_at,
        devices.name AS used_by
    FROM invitations JOIN users ON users.id = invitations.user
    LEFT JOIN invitation_uses ON invitation_uses.invitation = invitations.id
    LEFT JOIN devices ON devices.id = invitation_uses.device
    WHERE invitations.id = ? ORDER BY invitation_uses.at DESC LIMIT 1";

async fn check_limit(
    transaction: &mut Transaction<'static, Sqlite>,
    user: &str,
    limit: Option<u32>,
) -> Result<(), EnrolError> {
    let Some(limit) = limit else { return Ok(()) };
    let devices: i64 = sqlx::query_scalar(
        "SELECT count(*) FROM devices JOIN users ON users.id = devices.user
         WHERE users.name = ? AND revoked_at IS NULL",
    )
    .bind(user)
    .fetch_one(&mut **transaction)
    .await
    .map_err(from_sqlx)?;
    if devices >= i64::from(limit) { Err(EnrolError::Limit { limit }) } else { Ok(()) }
}

async fn taken(transaction: &mut Transaction<'static, Sqlite>) -> Result<HashSet<Ipv4Addr>, RegistryError> {
    // In one row: sqlx hands rows from its thread to ours one by one, some 2 µs each.
    let text: Option<String> = sqlx::query_scalar("SELECT group_concat(ipv4, ' ') FROM devices")
        .fetch_one(&mut **transaction)
        .await
        .map_err(from_sqlx)?;
    let addresses = text.as_deref().unwrap_or_default().split(' ').filter(|text| !text.is_empty());
    addresses.map(|text| text.parse().map_err(|_| RegistryError::Impossible("address"))).collect()
}

/// `wanted`, or `wanted-2`, `wanted-3` and so on when the user has such a device.
async fn free_name(
    transaction: &mut Transaction<'static, Sqlite>,
    user: &str,
    wanted: &str,
) -> Result<String, RegistryError> {
    let names: Vec<String> = sqlx::query_scalar(
        "SELECT devices.name FROM devices JOIN users ON users.id = devices.user WHERE users.name = ?",
    )
    .bind(user)
    .fetch_all(&mut **transaction)
    .await
    .map_err(from_sqlx)?;
    let mut name = wanted.to_owned();
    let mut number = 1;
    while names.contains(&name) {
        number += 1;
        name = format!("{wanted}-{number}");
    }
    Ok(name)
}

async fn insert(transaction: &mut Transaction<'static, Sqlite>, device: &Device) -> Result<(), RegistryError> {
    sqlx::query(
        "INSERT INTO devices (id, user, name, spki_sha256, serial, not_after, ipv4, ipv6, created)
         VALUES (?, (SELECT id FROM users WHERE name = ?), ?, ?, ?, ?, ?, ?, ?)",
    )
    .bind(&device.id)
    .bind(&device.user)
    .bind(&device.name)
    .bind(device.spki_sha256.as_slice())
    .bind(&device.serial)
    .bind(device.not_after.unix_timestamp())
    .bind(device.ipv4.to_string())
    .bind(device.ipv6.map(|ipv6| ipv6.to_string()))
    .bind(device.created.unix_timestamp())
    .execute(&mut **transaction)
    .await
    .map_err(from_sqlx)?;
    Ok(())
}

async fn record(
    transaction: &mut Transaction<'static, Sqlite>,
    now: OffsetDateTime,
    event: &str,
    actor: &str,
    target: &str,
) -> Result<(), RegistryError> {
    sqlx::query("INSERT INTO events (at, event, actor, target) VALUES (?, ?, ?, ?)")
        .bind(now.unix_timestamp())
        .bind(event)
        .bind(actor)
        .bind(target)
        .execute(&mut **transaction)
        .await
        .map_err(from_sqlx)?;
    Ok(())
}

fn invitation(row: &SqliteRow) -> Result<Invitation, RegistryError> {
    let used_at = maybe_when(row.try_get("used_at").map_err(from_sqlx)?)?;
    let used_by: Option<String> = row.try_get("used_by").map_err(from_sqlx)?;
    Ok(Invitation {
        id: row.try_get("id").map_err(from_sqlx)?,
        key: row.try_get("key").map_err(from_sqlx)?,
        user: row.try_get("user_name").map_err(from_sqlx)?,
        uses_allowed: row.try_get("uses_allowed").map_err(from_sqlx)?,
        uses: row.try_get("uses").map_err(from_sqlx)?,
        created: when(row.try_get("created").map_err(from_sqlx)?)?,
        expires: when(row.try_get("expires").map_err(from_sqlx)?)?,
        cancelled_at: maybe_when(row.try_get("cancelled_at").map_err(from_sqlx)?)?,
        last_use: used_at.zip(used_by),
    })
}

fn device(row: &SqliteRow) -> Result<Device, RegistryError> {
    let text = |column| row.try_get::<String, _>(column).map_err(from_sqlx);
    let ipv6: Option<String> = row.try_get("ipv6").map_err(from_sqlx)?;
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
    })
}

fn when(seconds: i64) -> Result<OffsetDateTime, RegistryError> {
    OffsetDateTime::from_unix_timestamp(seconds).map_err(|_| RegistryError::Impossible("time"))
}

fn maybe_when(seconds: Option<i64>) -> Result<Option<OffsetDateTime>, RegistryError> {
    seconds.map(when).transpose()
}

/// Primary result codes (<https://www.sqlite.org/rescode.html>); the low byte of what sqlx tells.
mod result_code {
    pub(super) const BUSY: u32 = 5;
    pub(super) const READONLY: u32 = 8;
    pub(super) const CORRUPT: u32 = 11;
    /// What a full tmpfs comes to when SQLite grows its shared memory.
    pub(super) const IOERR_SHMSIZE: u32 = 10 | 19 << 8;
    pub(super) const FULL: u32 = 13;
    pub(super) const CANTOPEN: u32 = 14;
    pub(super) const NOTADB: u32 = 26;
}

fn from_sqlx(error: sqlx::Error) -> RegistryError {
    let code = match &error {
        sqlx::Error::Database(database) => database.code().and_then(|code| code.parse::<u32>().ok()),
        sqlx::Error::PoolTimedOut => Some(result_code::BUSY),
        _ => None,
    };
    if code == Some(result_code::IOERR_SHMSIZE) {
        return RegistryError::DiskFull;
    }
    match code.map(|code| code & 0xff) {
        Some(result_code::FULL) => RegistryError::DiskFull,
        Some(result_code::BUSY) => RegistryError::Busy,
        Some(result_code::CORRUPT | result_code::NOTADB) => RegistryError::Damaged,
        Some(result_code::READONLY | result_code::CANTOPEN) => RegistryError::Denied,
        _ => RegistryError::Other(error.into()),
    }
}

fn from_io(error: &std::io::Error) -> RegistryError {
    match error.kind() {
        std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded => RegistryError::DiskFull,
        _ => RegistryError::Denied,
    }
}
