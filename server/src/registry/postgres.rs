//! The registry in a PostgreSQL database, which several gateways share.
//!
//! A writer takes one lock for the whole registry and keeps it until it commits, so what it judged is still so then,
//! and events become visible in the order of their numbers. Connecting waits for nobody: a gateway starts while its
//! database is down. The schema is brought up to this version at the first connection.

#[allow(clippy::duplicate_mod, reason = "compiled once a store, with its types")]
#[path = "sql/mod.rs"]
mod sql;

use std::io;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use sqlx::migrate::{MigrateError, Migrator};
use sqlx::pool::PoolConnection;
use sqlx::postgres::{PgConnectOptions, PgConnection, PgListener, PgPool, PgPoolOptions, PgRow, PgSslMode};
use sqlx::{Postgres, Transaction};
use time::OffsetDateTime;
use tokio::sync::OnceCell;
use zeroize::Zeroizing;

use super::dump::Dump;
use super::{Meta, RegistryError};
use crate::addresses::Pool;
use crate::config::Database as Place;
use crate::files;

// What `sql` is compiled with.
type Store = PostgresRegistry;
type Database = Postgres;
type Connection = PgConnection;
type Row = PgRow;

static MIGRATIONS: Migrator = sqlx::migrate!("./migrations/postgres");

/// Connections of one process.
const CONNECTIONS: u32 = 4;
/// How long a free connection is waited for, and a new one.
const CONNECT_WITHIN: Duration = Duration::from_secs(3);
/// The lock that a writer has while it writes: "culvert" in ASCII.
const WRITER: i64 = 0x0063_756c_7665_7274;
/// The class of the locks that running gateways hold.
const GATEWAYS: i32 = 0x6377;
/// What `events` rings on every change.
const CHANGES: &str = "culvert_changes";

/// What the server does for us when a gateway's machine is cut off in the middle of a transaction: the lock must not
/// stay. Milliseconds, but for the keep-alives, which are seconds.
const SESSION: [(&str, &str); 7] = [
    ("client_min_messages", "warning"),
    ("lock_timeout", "5000"),
    ("statement_timeout", "15000"),
    ("idle_in_transaction_session_timeout", "10000"),
    ("tcp_keepalives_idle", "10"),
    ("tcp_keepalives_interval", "5"),
    ("tcp_keepalives_count", "3"),
];

/// A registry in a database. Cheap to clone.
#[derive(Clone, Debug)]
pub struct PostgresRegistry {
    pool: PgPool,
    /// For connections that end with their use: they hold locks.
    single_use: PgPool,
    migrated: Arc<OnceCell<()>>,
}

/// A change that is made when it is committed, and not at all when it is dropped.
#[derive(Debug)]
pub struct Pending(Transaction<'static, Postgres>);

impl Pending {
    /// Makes it.
    ///
    /// # Errors
    /// What the database says.
    pub async fn commit(self) -> Result<(), RegistryError> {
        self.0.commit().await.map_err(from_sqlx)
    }
}

impl PostgresRegistry {
    /// The registry at this place. Nothing is connected yet.
    ///
    /// # Errors
    /// [`RegistryError::NoPassword`] when the password's file cannot be read.
    pub fn new(place: &Place) -> Result<Self, RegistryError> {
        let mut options = PgConnectOptions::from_str(place.url())
            .map_err(from_sqlx)?
            .application_name("culvert-server")
            .options(SESSION);
        if place.wants_tls() {
            options = options.ssl_mode(PgSslMode::VerifyFull);
        }
        if let Some(file) = &place.password_file {
            let password =
                read_password(file).map_err(|error| RegistryError::NoPassword { path: file.clone(), error })?;
            options = options.password(&password);
        }
        let pool = PgPoolOptions::new()
            .max_connections(CONNECTIONS)
            .acquire_timeout(CONNECT_WITHIN)
            .idle_timeout(Duration::from_secs(60))
            .connect_lazy_with(options.clone());
        let single_use = PgPoolOptions::new()
            .max_connections(2)
            .acquire_timeout(CONNECT_WITHIN)
            .after_release(|_, _| Box::pin(async { Ok(false) }))
            .connect_lazy_with(options);
        Ok(Self { pool, single_use, migrated: Arc::default() })
    }

    /// Connects, and brings the schema up to this version.
    ///
    /// # Errors
    /// [`RegistryError::Unreachable`], [`RegistryError::Newer`], or what the database says.
    pub async fn open(place: &Place) -> Result<Self, RegistryError> {
        let registry = Self::new(place)?;
        registry.read().await?;
        Ok(registry)
    }

    /// Writes the facts of a new fleet, which are there once [`Pending::commit`] says so.
    ///
    /// # Errors
    /// [`RegistryError::InUse`] when it is a fleet's already, else what the database says.
    pub async fn establish(&self, facts: &[(Meta, String)]) -> Result<Pending, RegistryError> {
        let mut transaction = self.write().await?;
        let used: bool = sqlx::query_scalar("SELECT EXISTS (SELECT FROM meta) OR EXISTS (SELECT FROM users)")
            .fetch_one(&mut *transaction)
            .await
            .map_err(from_sqlx)?;
        if used {
            return Err(RegistryError::InUse);
        }
        for (fact, value) in facts {
            sqlx::query("INSERT INTO meta (name, value) VALUES ($1, $2)")
                .bind(fact.name())
                .bind(value)
                .execute(&mut *transaction)
                .await
                .map_err(from_sqlx)?;
        }
        Ok(Pending(transaction))
    }

    /// All of it, as it is at one moment.
    ///
    /// # Errors
    /// What the database says.
    pub async fn export(&self) -> Result<Dump, RegistryError> {
        sql::export(&mut *self.write().await?).await
    }

    /// Fills an empty registry, wholly or not at all; `facts` are the ones that it keeps.
    ///
    /// # Errors
    /// [`RegistryError::InUse`] when it is not empty, else what the database says.
    pub async fn import(&self, facts: &[(Meta, String)], dump: &Dump) -> Result<(), RegistryError> {
        let mut transaction = self.write().await?;
        // A hundred thousand devices take longer than a change may.
        sqlx::query("SET LOCAL statement_timeout = 0").execute(&mut *transaction).await.map_err(from_sqlx)?;
        sql::import(&mut transaction, facts, dump).await?;
        for table in ["users", "events"] {
            let next = "SELECT setval(pg_get_serial_sequence($1, 'id'), 1 + (SELECT coalesce(max(id), 0) FROM ";
            sqlx::query(sqlx::AssertSqlSafe(format!("{next}{table}), false)")))
                .bind(table)
                .execute(&mut *transaction)
                .await
                .map_err(from_sqlx)?;
        }
        transaction.commit().await.map_err(from_sqlx)
    }

    /// Closes every connection.
    pub async fn close(self) {
        self.single_use.close().await;
        self.pool.close().await;
    }

    /// A connection that hears of every change at once.
    ///
    /// # Errors
    /// What the database says.
    pub async fn listen(&self) -> Result<PgListener, RegistryError> {
        self.read().await?;
        let mut listener = PgListener::connect_with(&self.single_use).await.map_err(from_sqlx)?;
        // A lost connection is for the caller to see: changes may have been missed.
        listener.eager_reconnect(false);
        listener.listen(CHANGES).await.map_err(from_sqlx)?;
        Ok(listener)
    }

    /// Takes the lock that a gateway with this id holds while it runs, on the listener's connection. False when
    /// another process has it. It is gone with the connection, and so with the process.
    ///
    /// # Errors
    /// What the database says.
    pub async fn hold(listener: &mut PgListener, gateway: &str) -> Result<bool, RegistryError> {
        sqlx::query_scalar("SELECT pg_try_advisory_lock($1, hashtext($2))")
            .bind(GATEWAYS)
            .bind(gateway)
            .fetch_one(listener)
            .await
            .map_err(from_sqlx)
    }

    /// Notes one change.
    pub(super) async fn record(
        &self,
        connection: &mut PgConnection,
        now: OffsetDateTime,
        event: &str,
        actor: &str,
        target: &str,
    ) -> Result<(), RegistryError> {
        sql::record(connection, now, event, actor, target).await
    }

    /// Gives the gateway one more part of the network.
    pub(super) async fn claim(
        &self,
        connection: &mut PgConnection,
        pool: &Pool,
        gateway: &str,
    ) -> Result<Option<i64>, RegistryError> {
        sql::claim(connection, pool, gateway).await
    }

    pub(super) async fn read(&self) -> Result<PoolConnection<Postgres>, RegistryError> {
        let connection = self.pool.acquire().await.map_err(from_sqlx)?;
        self.migrated.get_or_try_init(|| self.migrate()).await?;
        Ok(connection)
    }

    async fn migrate(&self) -> Result<(), RegistryError> {
        MIGRATIONS.run(&self.pool).await.map_err(|error| match error {
            MigrateError::VersionMissing(_) | MigrateError::VersionTooNew(..) => RegistryError::Newer,
            MigrateError::Execute(error) => from_sqlx(error),
            other => RegistryError::Other(other.into()),
        })
    }

    pub(super) async fn write(&self) -> Result<Transaction<'static, Postgres>, RegistryError> {
        if !self.migrated.initialized() {
            drop(self.read().await?);
        }
        // One message: every round trip is waited for by the next writer, too.
        let begin = format!("BEGIN; SELECT pg_advisory_xact_lock({WRITER})");
        self.pool.begin_with(sqlx::AssertSqlSafe(begin)).await.map_err(from_sqlx)
    }
}

fn read_password(file: &std::path::Path) -> io::Result<Zeroizing<String>> {
    files::first_line(&mut std::fs::File::open(file)?)
}

/// SQLSTATE codes (<https://www.postgresql.org/docs/current/errcodes-appendix.html>).
pub(super) fn from_sqlx(error: sqlx::Error) -> RegistryError {
    use sqlx::Error;
    let code = match &error {
        Error::Database(database) => database.code().map(std::borrow::Cow::into_owned),
        Error::PoolTimedOut | Error::PoolClosed | Error::Io(_) | Error::WorkerCrashed => {
            return RegistryError::Unreachable(error.into());
        }
        Error::Tls(_) => return RegistryError::NoTls(error.into()),
        _ => None,
    };
    match code.as_deref().unwrap_or_default() {
        // invalid_password, invalid_authorization_specification
        "28P01" | "28000" => RegistryError::WrongPassword,
        // insufficient_privilege
        "42501" => RegistryError::DatabaseDenied(error.into()),
        // invalid_catalog_name
        "3D000" => RegistryError::NoDatabase,
        // disk_full
        "53100" => RegistryError::DiskFull,
        // lock_not_available
        "55P03" => RegistryError::Busy,
        // read_only_sql_transaction: a standby
        "25006" => RegistryError::Standby,
        // data_corrupted, index_corrupted
        "XX001" | "XX002" => RegistryError::Damaged,
        // connection_exception, too_many_connections, operator_intervention (shutdown, starting up), query_canceled
        code if code.starts_with("08") || code.starts_with("57") || code == "53300" => {
            RegistryError::Unreachable(error.into())
        }
        _ => RegistryError::Other(error.into()),
    }
}
