//! The registry in SQL that every store here understands. This folder is compiled once a store
//! (`sqlite`), with that store's types: the statements, and so the judgements, are the same.
//!
//! The store gives [`Store::read`], a connection, and [`Store::write`], a transaction that no
//! other writer runs beside, so that what was judged is still so when it commits.

mod devices;
mod dump;
mod events;
mod invitations;
mod slices;

#[allow(unused_imports, reason = "only a registry that gateways share has more to record, and parts to claim")]
pub(super) use {
    dump::{export, import},
    events::record,
    slices::claim,
};

use culvert_tunnel::identity::Pin;
use time::OffsetDateTime;

use super::Store;
use super::{Connection, Database, Row, from_sqlx};
use crate::addresses::Pool;
use crate::registry::{
    Certificate, Counts, Device, EnrolError, Enrolment, Event, Invitation, Meta, Registry, RegistryError, Renamed,
    Rotation, Seen, User,
};

impl Registry for Store {
    async fn meta(&self, name: Meta) -> Result<Option<String>, RegistryError> {
        sqlx::query_scalar("SELECT value FROM meta WHERE name = $1")
            .bind(name.name())
            .fetch_optional(&mut *self.read().await?)
            .await
            .map_err(from_sqlx)
    }

    async fn add_invitation(&self, invitation: &Invitation, actor: &str) -> Result<(), RegistryError> {
        let mut transaction = self.write().await?;
        invitations::add(&mut transaction, invitation, actor).await?;
        transaction.commit().await.map_err(from_sqlx)
    }

    async fn invitation(&self, id: &[u8]) -> Result<Option<Invitation>, RegistryError> {
        invitations::get(&mut *self.read().await?, id).await
    }

    async fn invitations(&self) -> Result<Vec<Invitation>, RegistryError> {
        invitations::all(&mut *self.read().await?).await
    }

    async fn cancel_invitation(&self, id: &[u8], now: OffsetDateTime, actor: &str) -> Result<bool, RegistryError> {
        let mut transaction = self.write().await?;
        let cancelled = invitations::cancel(&mut transaction, id, now, actor).await?;
        transaction.commit().await.map_err(from_sqlx)?;
        Ok(cancelled)
    }

    async fn enrol(&self, enrolment: &Enrolment<'_>) -> Result<Device, EnrolError> {
        let mut transaction = self.write().await?;
        let device = invitations::enrol(&mut transaction, enrolment).await?;
        transaction.commit().await.map_err(from_sqlx)?;
        Ok(device)
    }

    async fn device_by_key(&self, spki_sha256: &[u8; 32]) -> Result<Option<Device>, RegistryError> {
        devices::by_key(&mut *self.read().await?, spki_sha256).await
    }

    async fn find_devices(&self, name: &str) -> Result<Vec<Device>, RegistryError> {
        devices::find(&mut *self.read().await?, name).await
    }

    async fn devices_of(&self, user: &str) -> Result<Vec<Device>, RegistryError> {
        devices::of(&mut *self.read().await?, user).await
    }

    async fn devices(&self) -> Result<Vec<Device>, RegistryError> {
        devices::all(&mut *self.read().await?).await
    }

    async fn users(&self) -> Result<Vec<User>, RegistryError> {
        devices::users(&mut *self.read().await?).await
    }

    async fn stranded(&self, pool: &Pool) -> Result<Option<Device>, RegistryError> {
        devices::outside(&mut *self.read().await?, pool).await
    }

    async fn saw(&self, seen: &[Seen]) -> Result<(), RegistryError> {
        let mut transaction = self.write().await?;
        devices::saw(&mut transaction, seen).await?;
        transaction.commit().await.map_err(from_sqlx)
    }

    async fn revoke(&self, device: &str, now: OffsetDateTime, actor: &str) -> Result<bool, RegistryError> {
        let mut transaction = self.write().await?;
        let changed = devices::revoke(&mut transaction, device, now, actor).await?;
        transaction.commit().await.map_err(from_sqlx)?;
        Ok(changed)
    }

    async fn restore(&self, device: &str, now: OffsetDateTime, actor: &str) -> Result<bool, RegistryError> {
        let mut transaction = self.write().await?;
        let changed = devices::restore(&mut transaction, device, now, actor).await?;
        transaction.commit().await.map_err(from_sqlx)?;
        Ok(changed)
    }

    async fn rename(
        &self,
        device: &str,
        name: &str,
        now: OffsetDateTime,
        actor: &str,
    ) -> Result<Renamed, RegistryError> {
        let mut transaction = self.write().await?;
        let renamed = devices::rename(&mut transaction, device, name, now, actor).await?;
        transaction.commit().await.map_err(from_sqlx)?;
        Ok(renamed)
    }

    async fn renew(
        &self,
        device: &str,
        certificate: &Certificate<'_>,
        now: OffsetDateTime,
    ) -> Result<bool, RegistryError> {
        let mut transaction = self.write().await?;
        let renewed = devices::renew(&mut transaction, device, certificate, now).await?;
        transaction.commit().await.map_err(from_sqlx)?;
        Ok(renewed)
    }

    async fn holds(&self, device: &str, authority: &Pin) -> Result<(), RegistryError> {
        let mut transaction = self.write().await?;
        devices::holds(&mut transaction, device, authority).await?;
        transaction.commit().await.map_err(from_sqlx)
    }

    async fn first_authority(&self, authority: &Pin) -> Result<(), RegistryError> {
        let mut transaction = self.write().await?;
        devices::first_authority(&mut transaction, authority).await?;
        transaction.commit().await.map_err(from_sqlx)
    }

    async fn rotated(
        &self,
        step: Rotation,
        authority: &Pin,
        now: OffsetDateTime,
        actor: &str,
    ) -> Result<(), RegistryError> {
        let mut transaction = self.write().await?;
        record(&mut transaction, now, step.name(), actor, &authority.to_string()).await?;
        transaction.commit().await.map_err(from_sqlx)
    }

    async fn counts(&self, now: OffsetDateTime) -> Result<Counts, RegistryError> {
        devices::counts(&mut *self.read().await?, now).await
    }

    async fn last_event(&self) -> Result<i64, RegistryError> {
        events::last(&mut *self.read().await?).await
    }

    async fn events_after(&self, id: i64, at_most: u32) -> Result<Vec<Event>, RegistryError> {
        events::after(&mut *self.read().await?, id, at_most).await
    }

    async fn history(&self, target: &str, at_most: u32) -> Result<Vec<Event>, RegistryError> {
        events::of(&mut *self.read().await?, target, at_most).await
    }
}

fn when(seconds: i64) -> Result<OffsetDateTime, RegistryError> {
    OffsetDateTime::from_unix_timestamp(seconds).map_err(|_| RegistryError::Impossible("time"))
}

fn maybe_when(seconds: Option<i64>) -> Result<Option<OffsetDateTime>, RegistryError> {
    seconds.map(when).transpose()
}
