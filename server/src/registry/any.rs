//! A registry wherever it is, so that the gateway and its commands have one type.

use culvert_tunnel::identity::Pin;
use time::OffsetDateTime;

use super::dump::Dump;
use super::shared::SharedRegistry;
use super::sqlite::SqliteRegistry;
use super::{
    Certificate, Counts, Device, EnrolError, Enrolment, Event, Invitation, Meta, Registry, RegistryError, Renamed,
    Rotation, Seen, User,
};
use crate::addresses::Pool;

/// One of the stores.
#[derive(Clone, Debug)]
pub enum AnyRegistry {
    /// A file, for one gateway.
    Sqlite(SqliteRegistry),
    /// A database that gateways share.
    Postgres(SharedRegistry),
}

macro_rules! delegate {
    ($self:ident.$method:ident($($argument:expr),*)) => {
        match $self {
            AnyRegistry::Sqlite(registry) => registry.$method($($argument),*).await,
            AnyRegistry::Postgres(registry) => registry.$method($($argument),*).await,
        }
    };
}

impl AnyRegistry {
    /// The database that gateways share, if it is one.
    pub fn shared(&self) -> Option<&SharedRegistry> {
        match self {
            Self::Sqlite(_) => None,
            Self::Postgres(registry) => Some(registry),
        }
    }

    /// All of it, as it is at one moment.
    ///
    /// # Errors
    /// What the store says.
    pub async fn export(&self) -> Result<Dump, RegistryError> {
        match self {
            Self::Sqlite(registry) => registry.export().await,
            Self::Postgres(registry) => registry.store().export().await,
        }
    }

    /// Closes every connection.
    pub async fn close(self) {
        match self {
            Self::Sqlite(registry) => registry.close().await,
            Self::Postgres(registry) => registry.close().await,
        }
    }
}

impl Registry for AnyRegistry {
    async fn meta(&self, name: Meta) -> Result<Option<String>, RegistryError> {
        delegate!(self.meta(name))
    }

    async fn add_invitation(&self, invitation: &Invitation, actor: &str) -> Result<(), RegistryError> {
        delegate!(self.add_invitation(invitation, actor))
    }

    async fn invitation(&self, id: &[u8]) -> Result<Option<Invitation>, RegistryError> {
        delegate!(self.invitation(id))
    }

    async fn invitations(&self) -> Result<Vec<Invitation>, RegistryError> {
        delegate!(self.invitations())
    }

    async fn cancel_invitation(&self, id: &[u8], now: OffsetDateTime, actor: &str) -> Result<bool, RegistryError> {
        delegate!(self.cancel_invitation(id, now, actor))
    }

    async fn enrol(&self, enrolment: &Enrolment<'_>) -> Result<Device, EnrolError> {
        delegate!(self.enrol(enrolment))
    }

    async fn device_by_key(&self, spki_sha256: &[u8; 32]) -> Result<Option<Device>, RegistryError> {
        delegate!(self.device_by_key(spki_sha256))
    }

    async fn find_devices(&self, name: &str) -> Result<Vec<Device>, RegistryError> {
        delegate!(self.find_devices(name))
    }

    async fn devices_of(&self, user: &str) -> Result<Vec<Device>, RegistryError> {
        delegate!(self.devices_of(user))
    }

    async fn devices(&self) -> Result<Vec<Device>, RegistryError> {
        delegate!(self.devices())
    }

    async fn users(&self) -> Result<Vec<User>, RegistryError> {
        delegate!(self.users())
    }

    async fn stranded(&self, pool: &Pool) -> Result<Option<Device>, RegistryError> {
        delegate!(self.stranded(pool))
    }

    async fn saw(&self, seen: &[Seen]) -> Result<(), RegistryError> {
        delegate!(self.saw(seen))
    }

    async fn revoke(&self, device: &str, now: OffsetDateTime, actor: &str) -> Result<bool, RegistryError> {
        delegate!(self.revoke(device, now, actor))
    }

    async fn restore(&self, device: &str, now: OffsetDateTime, actor: &str) -> Result<bool, RegistryError> {
        delegate!(self.restore(device, now, actor))
    }

    async fn rename(
        &self,
        device: &str,
        name: &str,
        now: OffsetDateTime,
        actor: &str,
    ) -> Result<Renamed, RegistryError> {
        delegate!(self.rename(device, name, now, actor))
    }

    async fn renew(
        &self,
        device: &str,
        certificate: &Certificate<'_>,
        now: OffsetDateTime,
    ) -> Result<bool, RegistryError> {
        delegate!(self.renew(device, certificate, now))
    }

    async fn holds(&self, device: &str, authority: &Pin) -> Result<(), RegistryError> {
        delegate!(self.holds(device, authority))
    }

    async fn first_authority(&self, authority: &Pin) -> Result<(), RegistryError> {
        delegate!(self.first_authority(authority))
    }

    async fn rotated(
        &self,
        step: Rotation,
        authority: &Pin,
        now: OffsetDateTime,
        actor: &str,
    ) -> Result<(), RegistryError> {
        delegate!(self.rotated(step, authority, now, actor))
    }

    async fn counts(&self, now: OffsetDateTime) -> Result<Counts, RegistryError> {
        delegate!(self.counts(now))
    }

    async fn last_event(&self) -> Result<i64, RegistryError> {
        delegate!(self.last_event())
    }

    async fn known_event(&self) -> Result<i64, RegistryError> {
        delegate!(self.known_event())
    }

    async fn events_after(&self, id: i64, at_most: u32) -> Result<Vec<Event>, RegistryError> {
        delegate!(self.events_after(id, at_most))
    }

    async fn history(&self, target: &str, at_most: u32) -> Result<Vec<Event>, RegistryError> {
        delegate!(self.history(target, at_most))
    }
}
