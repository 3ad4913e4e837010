//! The registry in one SQLite file: write-ahead log, full synchronisation, one writer at a time.
//!
//! Administrators' commands open the same file while the gateway runs. Writers begin their
//! transaction with the write lock (`BEGIN IMMEDIATE`), so what they judged is still so when they
//! commit.

#[allow(clippy::duplicate_mod, reason = "compiled once a store, with its types")]
#[path = "sql/mod.rs"]
mod sql;

use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::time::Duration;

use sqlx::migrate::{MigrateError, Migrator};
use sqlx::pool::PoolConnection;
use sqlx::sqlite::{
    SqliteConnectOptions, SqliteConnection, SqliteJournalMode, SqlitePool, SqlitePoolOptions, SqliteRow,
    SqliteSynchronous,
};
use sqlx::{Connection as _, Sqlite, Transaction};

use super::dump::Dump;
use super::{Meta, RegistryError};

// What `sql` is compiled with.
type Store = SqliteRegistry;
type Database = Sqlite;
type Connection = SqliteConnection;
type Row = SqliteRow;

static MIGRATIONS: Migrator = sqlx::migrate!("./migrations/sqlite");

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
        let mut transaction = registry.write().await?;
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

    /// Writes a copy as it is at this moment, which nobody else can read. The file must not exist.
    ///
    /// # Errors
    /// What the store says; there is no file then.
    pub async fn copy_to(&self, path: &Path) -> Result<(), RegistryError> {
        let text = path.to_str().ok_or(RegistryError::Denied)?;
        std::fs::OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(path)
            .map_err(|error| from_io(&error))?;
        // An empty file is taken as a database without tables, and keeps its mode.
        let copied = sqlx::query("VACUUM INTO $1").bind(text).execute(&mut *self.read().await?).await;
        if copied.is_err() {
            let _ = std::fs::remove_file(path); // ours, and useless
        }
        copied.map(drop).map_err(from_sqlx)
    }

    /// Looks at every page.
    ///
    /// # Errors
    /// [`RegistryError::Damaged`], or what the store says.
    pub async fn check(&self) -> Result<(), RegistryError> {
        let told: String = sqlx::query_scalar("PRAGMA integrity_check")
            .fetch_one(&mut *self.read().await?)
            .await
            .map_err(from_sqlx)?;
        if told == "ok" { Ok(()) } else { Err(RegistryError::Damaged) }
    }

    /// All of it, as it is at one moment.
    ///
    /// # Errors
    /// What the store says.
    pub async fn export(&self) -> Result<Dump, RegistryError> {
        sql::export(&mut *self.write().await?).await
    }

    /// Fills an empty registry, wholly or not at all; `facts` are the ones that it keeps.
    ///
    /// # Errors
    /// [`RegistryError::InUse`] when it is not empty, else what the store says.
    pub async fn import(&self, facts: &[(Meta, String)], dump: &Dump) -> Result<(), RegistryError> {
        let mut transaction = self.write().await?;
        sql::import(&mut transaction, facts, dump).await?;
        transaction.commit().await.map_err(from_sqlx)
    }

    /// Closes every connection; the last one folds the log into the main file.
    pub async fn close(self) {
        self.pool.close().await;
    }

    async fn read(&self) -> Result<PoolConnection<Sqlite>, RegistryError> {
        self.pool.acquire().await.map_err(from_sqlx)
    }

    async fn write(&self) -> Result<Transaction<'static, Sqlite>, RegistryError> {
        self.pool.begin_with("BEGIN IMMEDIATE").await.map_err(from_sqlx)
    }
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
