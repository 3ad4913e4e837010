//! Who may connect: users, their devices, and invitations for new ones.
//!
//! The registry is the authority (architecture section 5): a valid certificate whose device is
//! not here is refused. [`Registry`] is narrow so that another store can stand behind it; no type
//! of a database crate crosses it. Each call is one transaction: after a crash it has happened
//! wholly or not at all.

pub mod any;
pub mod copy;
pub mod dump;
pub mod gateways;
pub mod postgres;
pub mod shared;
pub mod sqlite;

use std::future::Future;
use std::net::{Ipv4Addr, Ipv6Addr};

use time::OffsetDateTime;

use culvert_tunnel::filter::Lease;
use culvert_tunnel::identity::Pin;

use crate::addresses::{Pool, PoolFull};

/// A store of users, devices and invitations.
pub trait Registry: Clone + Send + Sync + 'static {
    /// One value that belongs to the gateway as a whole.
    fn meta(&self, name: Meta) -> impl Future<Output = Result<Option<String>, RegistryError>> + Send;

    /// Keeps a new invitation; its user comes into being when it is the first.
    fn add_invitation(
        &self,
        invitation: &Invitation,
        actor: &str,
    ) -> impl Future<Output = Result<(), RegistryError>> + Send;

    /// The invitation with this id; `None` when this gateway never issued it.
    fn invitation(&self, id: &[u8]) -> impl Future<Output = Result<Option<Invitation>, RegistryError>> + Send;

    /// Every invitation that was ever made, newest first.
    fn invitations(&self) -> impl Future<Output = Result<Vec<Invitation>, RegistryError>> + Send;

    /// Withdraws an invitation. False when there is nothing to withdraw: unknown, or withdrawn
    /// before.
    fn cancel_invitation(
        &self,
        id: &[u8],
        now: OffsetDateTime,
        actor: &str,
    ) -> impl Future<Output = Result<bool, RegistryError>> + Send;

    /// Turns one use of an invitation into a device with an address of its own: judges the
    /// invitation again, counts the use, picks the address and adds the device, or none of it.
    fn enrol(&self, enrolment: &Enrolment<'_>) -> impl Future<Output = Result<Device, EnrolError>> + Send;

    /// The device whose public key has this SHA-256 (of the DER SubjectPublicKeyInfo).
    fn device_by_key(
        &self,
        spki_sha256: &[u8; 32],
    ) -> impl Future<Output = Result<Option<Device>, RegistryError>> + Send;

    /// The devices that people may mean by a name: `user/device`, an id, or a device's own name,
    /// which devices of several users may have.
    fn find_devices(&self, name: &str) -> impl Future<Output = Result<Vec<Device>, RegistryError>> + Send;

    /// A user's devices, in the order of their names.
    fn devices_of(&self, user: &str) -> impl Future<Output = Result<Vec<Device>, RegistryError>> + Send;

    /// Every device, in the order of their users' and their own names.
    fn devices(&self) -> impl Future<Output = Result<Vec<Device>, RegistryError>> + Send;

    /// Every user, in the order of their names.
    fn users(&self) -> impl Future<Output = Result<Vec<User>, RegistryError>> + Send;

    /// A device that is not revoked and whose address the pool does not hold.
    fn stranded(&self, pool: &Pool) -> impl Future<Output = Result<Option<Device>, RegistryError>> + Send;

    /// Notes which devices were here.
    fn saw(&self, seen: &[Seen]) -> impl Future<Output = Result<(), RegistryError>> + Send;

    /// Removes a device's access. False when it had none.
    fn revoke(
        &self,
        device: &str,
        now: OffsetDateTime,
        actor: &str,
    ) -> impl Future<Output = Result<bool, RegistryError>> + Send;

    /// Gives a revoked device its access back. False when it was not revoked.
    fn restore(
        &self,
        device: &str,
        now: OffsetDateTime,
        actor: &str,
    ) -> impl Future<Output = Result<bool, RegistryError>> + Send;

    /// Calls a device something else.
    fn rename(
        &self,
        device: &str,
        name: &str,
        now: OffsetDateTime,
        actor: &str,
    ) -> impl Future<Output = Result<Renamed, RegistryError>> + Send;

    /// Notes a device's new certificate for the key that it has. False when it has another key, or
    /// is revoked or unknown: the certificate is worth nothing then.
    fn renew(
        &self,
        device: &str,
        certificate: &Certificate<'_>,
        now: OffsetDateTime,
    ) -> impl Future<Output = Result<bool, RegistryError>> + Send;

    /// Notes the CA of the certificate that a device has on its disk.
    fn holds(&self, device: &str, authority: &Pin) -> impl Future<Output = Result<(), RegistryError>> + Send;

    /// Devices of which it is not known have a certificate of this CA, the first one.
    fn first_authority(&self, authority: &Pin) -> impl Future<Output = Result<(), RegistryError>> + Send;

    /// Notes a step of a rotation to this CA.
    fn rotated(
        &self,
        step: Rotation,
        authority: &Pin,
        now: OffsetDateTime,
        actor: &str,
    ) -> impl Future<Output = Result<(), RegistryError>> + Send;

    /// How many devices and invitations there are of each kind.
    fn counts(&self, now: OffsetDateTime) -> impl Future<Output = Result<Counts, RegistryError>> + Send;

    /// The number of the newest event; 0 before the first.
    fn last_event(&self) -> impl Future<Output = Result<i64, RegistryError>> + Send;

    /// The number of the newest event that this handle's answers hold: where the store does not answer, that of its
    /// copy.
    fn known_event(&self) -> impl Future<Output = Result<i64, RegistryError>> + Send {
        self.last_event()
    }

    /// The events after this number, oldest first: how a running gateway notices what others changed.
    fn events_after(&self, id: i64, at_most: u32) -> impl Future<Output = Result<Vec<Event>, RegistryError>> + Send;

    /// What happened to one device (by id) or user (by name), newest first.
    fn history(&self, target: &str, at_most: u32) -> impl Future<Output = Result<Vec<Event>, RegistryError>> + Send;
}

/// Facts about the gateway that the registry keeps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Meta {
    /// Random name of this gateway, made once.
    GatewayId,
    /// The endpoint that `init` was given or found.
    Endpoint,
    /// The inner IPv4 network that `init` chose.
    Ipv4,
    /// The inner IPv6 network that `init` chose.
    Ipv6,
    /// The pin of the CA, where gateways share the registry: all of them have the same CA.
    Authority,
}

impl Meta {
    /// Its name in the store.
    pub const fn name(self) -> &'static str {
        match self {
            Self::GatewayId => "gateway_id",
            Self::Endpoint => "endpoint",
            Self::Ipv4 => "network_ipv4",
            Self::Ipv6 => "network_ipv6",
            Self::Authority => "ca_pin",
        }
    }
}

/// A step of a rotation of the CA.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rotation {
    /// A second one is there.
    Begun,
    /// It has taken the first one's place.
    Finished,
    /// It will not.
    Aborted,
}

impl Rotation {
    /// Its event's name.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Begun => "ca_rotate",
            Self::Finished => "ca_finish",
            Self::Aborted => "ca_abort",
        }
    }
}

/// Leave to enrol devices for one user.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Invitation {
    /// Random, from the invitation itself.
    pub id: Vec<u8>,
    /// What the client's proof is checked with.
    pub key: Vec<u8>,
    /// For whom.
    pub user: String,
    /// How many devices it is good for.
    pub uses_allowed: u32,
    /// How many it has made.
    pub uses: u32,
    /// When it was made.
    pub created: OffsetDateTime,
    /// When it ends.
    pub expires: OffsetDateTime,
    /// When an administrator withdrew it.
    pub cancelled_at: Option<OffsetDateTime>,
    /// When it last made a device, and what that is called.
    pub last_use: Option<(OffsetDateTime, String)>,
    /// The id of the device that it gives a new key and certificate, instead of adding one.
    pub renews: Option<String>,
}

impl Invitation {
    /// May it enrol a device now?
    ///
    /// # Errors
    /// The [`EnrolError`] that says why not.
    pub fn judge(&self, now: OffsetDateTime) -> Result<(), EnrolError> {
        if self.cancelled_at.is_some() {
            Err(EnrolError::Cancelled)
        } else if self.uses >= self.uses_allowed {
            let (at, device) = self.last_use.clone().unwrap_or((self.created, String::new()));
            Err(EnrolError::Used { at, device })
        } else if now >= self.expires {
            Err(EnrolError::Expired { at: self.expires })
        } else {
            Ok(())
        }
    }
}

/// A device that may connect, or might until it was revoked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Device {
    /// Random, also in its certificate.
    pub id: String,
    /// Whose it is.
    pub user: String,
    /// What its owner calls it; unique for the user.
    pub name: String,
    /// SHA-256 of its DER SubjectPublicKeyInfo.
    pub spki_sha256: [u8; 32],
    /// Serial number of its certificate, hexadecimal.
    pub serial: String,
    /// End of its certificate.
    pub not_after: OffsetDateTime,
    /// Its address for life.
    pub ipv4: Ipv4Addr,
    /// Its IPv6 address when it was enrolled.
    pub ipv6: Option<Ipv6Addr>,
    /// When it was enrolled.
    pub created: OffsetDateTime,
    /// When it last opened or closed a session.
    pub last_seen: Option<OffsetDateTime>,
    /// When an administrator removed it.
    pub revoked_at: Option<OffsetDateTime>,
    /// The CA of the newest certificate that it is known to have; `None` is the gateway's first one.
    pub authority: Option<Pin>,
}

/// Somebody who has devices, or was invited.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct User {
    /// Their name.
    pub name: String,
    /// When they were first invited.
    pub created: OffsetDateTime,
    /// Devices they ever had.
    pub devices: u64,
    /// How many of these are revoked.
    pub revoked: u64,
}

/// A device that opened or closed a session.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Seen {
    /// Its id.
    pub device: String,
    /// When.
    pub at: OffsetDateTime,
}

/// A device's new certificate.
#[derive(Clone, Copy, Debug)]
pub struct Certificate<'a> {
    /// SHA-256 of its key's DER SubjectPublicKeyInfo.
    pub spki_sha256: [u8; 32],
    /// Its serial number, hexadecimal.
    pub serial: &'a str,
    /// Its end.
    pub not_after: OffsetDateTime,
}

/// What became of [`Registry::rename`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Renamed {
    /// It has the new name.
    Done,
    /// It was called so before.
    Same,
    /// Another device of the user is called so; nothing was changed.
    Taken,
    /// There is no such device.
    Gone,
}

/// How many there are of each kind. The states of devices, and those of invitations, exclude each
/// other.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Devices that may connect.
    pub active: u64,
    /// Devices whose certificate has ended.
    pub expired: u64,
    /// Devices that were revoked.
    pub revoked: u64,
    /// Of the active ones, those whose certificate ends within a week.
    pub expiring_in_7_days: u64,
    /// The same within 30 days.
    pub expiring_in_30_days: u64,
    /// Invitations that can be used.
    pub invitations_open: u64,
    /// Invitations that are used up.
    pub invitations_used: u64,
    /// Invitations that have ended before they were used up.
    pub invitations_expired: u64,
    /// Invitations that were withdrawn before.
    pub invitations_cancelled: u64,
}

/// One change of the registry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    /// Counts up.
    pub id: i64,
    /// When.
    pub at: OffsetDateTime,
    /// What: `invite`, `invite_cancel`, `enrol_ok`, `renewed`, `renamed`, `revoked` or `restored`,
    /// and those of [`Rotation`].
    pub event: String,
    /// Who.
    pub actor: String,
    /// A device's id, for invitations a user's name, and for a [`Rotation`] the CA's pin.
    pub target: String,
}

/// A device about to be added.
#[derive(Clone, Debug)]
pub struct Enrolment<'a> {
    /// The invitation whose secret the client has proved.
    pub invitation: &'a [u8],
    /// The new device's id, or that of the device which the invitation renews.
    pub device: &'a str,
    /// What its owner calls it; a number is appended when the user has such a device.
    pub name: &'a str,
    /// SHA-256 of its DER SubjectPublicKeyInfo.
    pub spki_sha256: [u8; 32],
    /// Serial number of its certificate, hexadecimal.
    pub serial: &'a str,
    /// End of its certificate.
    pub not_after: OffsetDateTime,
    /// The CA that signed it.
    pub authority: Pin,
    /// Where addresses come from.
    pub pool: Pool,
    /// The gateway whose parts of the pool the address comes from; `None` where one gateway has all of it.
    pub gateway: Option<&'a str>,
    /// Devices one user may have; `None` means any number.
    pub devices_per_user: Option<u32>,
    /// The present.
    pub now: OffsetDateTime,
}

/// Why a device was not added. The invitation is as it was.
#[derive(Debug, thiserror::Error)]
pub enum EnrolError {
    /// No such invitation.
    #[error("this gateway did not issue the invitation")]
    Foreign,
    /// Past its end.
    #[error("the invitation expired at {at}")]
    Expired {
        /// Its end.
        at: OffsetDateTime,
    },
    /// Every use is used.
    #[error("the invitation was used by {device:?} at {at}")]
    Used {
        /// When it made its last device.
        at: OffsetDateTime,
        /// What that device is called.
        device: String,
    },
    /// Withdrawn.
    #[error("the invitation was cancelled")]
    Cancelled,
    /// The user has enough devices.
    #[error("the user already has {limit} devices, the most this gateway allows")]
    Limit {
        /// `limits.devices_per_user`.
        limit: u32,
    },
    /// The key belongs to a device already.
    #[error("a device with this key is already enrolled")]
    KnownKey,
    /// No address is left.
    #[error(transparent)]
    PoolFull(#[from] PoolFull),
    /// The store failed.
    #[error(transparent)]
    Registry(#[from] RegistryError),
}

/// Why the store failed. Whatever was asked has not happened.
#[derive(Debug, thiserror::Error)]
pub enum RegistryError {
    /// No room for another page.
    #[error("the disk that holds the registry is full; nothing was changed. Free some space and try again")]
    DiskFull,
    /// Somebody else held it for too long.
    #[error("the registry is locked by another process; try again")]
    Busy,
    /// It is there, but it is not ours or it is broken.
    #[error("the registry is damaged; restore it from a backup")]
    Damaged,
    /// A later version of this program has changed its shape.
    #[error("the registry was written by a newer culvert-server; run that version")]
    Newer,
    /// It cannot be opened or written.
    #[error("the registry cannot be opened or written; check that its files and their folder belong to you")]
    Denied,
    /// The database does not answer.
    #[error("the registry's database does not answer; see that it runs, and that this host reaches it (registry.url)")]
    Unreachable(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// The database's certificate, or that it has none.
    #[error(
        "the registry's database does not prove who it is: {0}; give it a certificate, and name its authority with \
         sslrootcert in registry.url"
    )]
    NoTls(Box<dyn std::error::Error + Send + Sync>),
    /// The database does not know us.
    #[error("the registry's database refuses the user or the password; set registry.url and registry.password_file")]
    WrongPassword,
    /// The password's file.
    #[error("cannot read {}, the password of the registry's database: {error}", .path.display())]
    NoPassword {
        /// `registry.password_file`.
        path: std::path::PathBuf,
        /// What the OS says.
        error: std::io::Error,
    },
    /// The user has too few rights.
    #[error("the registry's database does not let its user do this: {0}; make the user the database's owner")]
    DatabaseDenied(Box<dyn std::error::Error + Send + Sync>),
    /// The server has no such database.
    #[error("the server has no such database; make it with createdb, or set registry.url")]
    NoDatabase,
    /// A copy that cannot be written.
    #[error("the registry's database is a standby; set registry.url to the server that can be written")]
    Standby,
    /// Another fleet's registry.
    #[error("the registry is in use already; nothing was changed")]
    InUse,
    /// The database does not answer, and what is remembered of it is too old.
    #[error(
        "the registry's database does not answer, and what this gateway remembers is older than registry.cache_age"
    )]
    Forgotten,
    /// A value in it makes no sense.
    #[error("the registry holds an impossible {0}")]
    Impossible(&'static str),
    /// Anything else.
    #[error("the registry failed: {0}")]
    Other(Box<dyn std::error::Error + Send + Sync>),
}

impl RegistryError {
    /// True when the store cannot be asked at the moment, and may be later without anybody changing it.
    pub fn is_outage(&self) -> bool {
        matches!(
            self,
            Self::Unreachable(_)
                | Self::NoTls(_)
                | Self::WrongPassword
                | Self::NoPassword { .. }
                | Self::NoDatabase
                | Self::Standby
                | Self::Forgotten
        )
    }
}

impl Device {
    /// Its addresses today: the IPv6 one follows the network. `None` when the network inside was
    /// changed and does not hold the device's address any more.
    pub fn lease(&self, pool: &Pool) -> Option<Lease> {
        pool.lease_of(self.ipv4)
    }
}
