//! The gateways that share a registry: who they are, when they were last seen, and which parts of the inner network
//! are theirs.

use std::time::Duration;

use sqlx::Row as _;
use sqlx::postgres::PgRow;
use time::OffsetDateTime;

use super::RegistryError;
use super::postgres::{PostgresRegistry, from_sqlx};
use crate::addresses::Pool;

/// A gateway that has said nothing for so long is not reached by clients either.
pub const SILENT: Duration = Duration::from_secs(15);

/// One of them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Gateway {
    /// Random; in its state directory.
    pub id: String,
    /// The host of its first endpoint.
    pub name: String,
    /// What clients dial, best first.
    pub endpoints: Vec<String>,
    /// Of its program.
    pub version: String,
    /// When it first came.
    pub joined: OffsetDateTime,
    /// When it last said that it runs.
    pub last_seen: OffsetDateTime,
    /// True when that was within [`SILENT`], by the database's clock.
    pub live: bool,
    /// Its parts of the inner network, by number.
    pub slices: Vec<u32>,
}

/// What a gateway says of itself.
#[derive(Clone, Debug)]
pub struct Beat {
    /// See [`Gateway::id`].
    pub id: String,
    /// See [`Gateway::name`].
    pub name: String,
    /// See [`Gateway::endpoints`].
    pub endpoints: Vec<String>,
}

/// Why a gateway cannot take part.
#[derive(Debug, thiserror::Error)]
pub enum JoinError {
    /// Nobody can enrol with it.
    #[error(
        "every part of the inner network {0} belongs to a gateway; forget one that is gone (culvert-server gateways \
         forget NAME)"
    )]
    NoSlice(ipnet::Ipv4Net),
    /// The registry.
    #[error(transparent)]
    Registry(#[from] RegistryError),
}

impl PostgresRegistry {
    /// Enters the gateway, or says that it runs; gives it a part of the network when it has none.
    ///
    /// # Errors
    /// [`JoinError`].
    pub async fn join(&self, beat: &Beat, pool: &Pool, now: OffsetDateTime) -> Result<(), JoinError> {
        let mut transaction = self.write().await?;
        let new: bool = sqlx::query_scalar(
            "INSERT INTO gateways (id, name, endpoints, version, joined, last_seen)
             VALUES ($1, $2, $3, $4, $5, extract(epoch FROM now())::bigint)
             ON CONFLICT (id) DO UPDATE SET name = excluded.name, endpoints = excluded.endpoints,
                 version = excluded.version, last_seen = excluded.last_seen
             RETURNING xmax = 0", // true for a row that was inserted
        )
        .bind(&beat.id)
        .bind(&beat.name)
        .bind(beat.endpoints.join(" "))
        .bind(env!("CARGO_PKG_VERSION"))
        .bind(now.unix_timestamp())
        .fetch_one(&mut *transaction)
        .await
        .map_err(from_sqlx)?;
        if new {
            self.record(&mut transaction, now, "gateway_joined", "gateway", &beat.name).await?;
        }
        let slices: i64 = sqlx::query_scalar("SELECT count(*) FROM slices WHERE gateway = $1")
            .bind(&beat.id)
            .fetch_one(&mut *transaction)
            .await
            .map_err(from_sqlx)?;
        if slices == 0 && self.claim(&mut transaction, pool, &beat.id).await?.is_none() {
            return Err(JoinError::NoSlice(pool.ipv4()));
        }
        transaction.commit().await.map_err(|error| from_sqlx(error).into())
    }

    /// Says that the gateway runs. False when it was forgotten meanwhile.
    ///
    /// # Errors
    /// What the database says.
    pub async fn beat(&self, beat: &Beat) -> Result<bool, RegistryError> {
        let beaten = sqlx::query(
            "UPDATE gateways SET name = $2, endpoints = $3, last_seen = extract(epoch FROM now())::bigint WHERE id = $1",
        )
        .bind(&beat.id)
        .bind(&beat.name)
        .bind(beat.endpoints.join(" "))
        .execute(&mut *self.read().await?)
        .await
        .map_err(from_sqlx)?;
        Ok(beaten.rows_affected() > 0)
    }

    /// Every gateway, in the order of their names.
    ///
    /// # Errors
    /// What the database says.
    pub async fn gateways(&self) -> Result<Vec<Gateway>, RegistryError> {
        let rows = sqlx::query(
            "SELECT gateways.*, last_seen > extract(epoch FROM now())::bigint - $1 AS live,
                 ARRAY(SELECT number FROM slices WHERE gateway = gateways.id ORDER BY number) AS slices
             FROM gateways ORDER BY name, id",
        )
        .bind(SILENT.as_secs() as i64)
        .fetch_all(&mut *self.read().await?)
        .await
        .map_err(from_sqlx)?;
        rows.iter().map(gateway).collect()
    }

    /// Removes a gateway that is gone; its parts of the network are free for others, and its devices keep their
    /// addresses. False when it was not there.
    ///
    /// # Errors
    /// What the database says.
    pub async fn forget(&self, id: &str, now: OffsetDateTime, actor: &str) -> Result<bool, RegistryError> {
        let mut transaction = self.write().await?;
        let name: Option<String> = sqlx::query_scalar("DELETE FROM gateways WHERE id = $1 RETURNING name")
            .bind(id)
            .fetch_optional(&mut *transaction)
            .await
            .map_err(from_sqlx)?;
        let Some(name) = name else { return Ok(false) };
        self.record(&mut transaction, now, "gateway_forgotten", actor, &name).await?;
        transaction.commit().await.map_err(from_sqlx)?;
        Ok(true)
    }
}

fn gateway(row: &PgRow) -> Result<Gateway, RegistryError> {
    let text = |column| row.try_get::<String, _>(column).map_err(from_sqlx);
    let when = |column| {
        let seconds: i64 = row.try_get(column).map_err(from_sqlx)?;
        OffsetDateTime::from_unix_timestamp(seconds).map_err(|_| RegistryError::Impossible("time"))
    };
    let slices: Vec<i64> = row.try_get("slices").map_err(from_sqlx)?;
    Ok(Gateway {
        id: text("id")?,
        name: text("name")?,
        endpoints: text("endpoints")?.split_whitespace().map(str::to_owned).collect(),
        version: text("version")?,
        joined: when("joined")?,
        last_seen: when("last_seen")?,
        live: row.try_get("live").map_err(from_sqlx)?,
        slices: slices.into_iter().filter_map(|number| u32::try_from(number).ok()).collect(),
    })
}
