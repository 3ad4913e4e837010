//! Registries for tests, of both stores, and what is put into them.

#![allow(dead_code, reason = "each test program uses some of it")]

mod cluster;

use std::path::{Path, PathBuf};

use culvert_server::addresses::Pool;
use culvert_server::config::Database;
use culvert_server::registry::any::AnyRegistry;
use culvert_server::registry::postgres::PostgresRegistry;
use culvert_server::registry::shared::SharedRegistry;
use culvert_server::registry::sqlite::SqliteRegistry;
use culvert_server::registry::{Device, EnrolError, Enrolment, Invitation, Meta, Registry};
use culvert_tunnel::identity::Pin;
use time::OffsetDateTime;

pub use cluster::Cluster;

/// Where one registry is.
pub enum Home {
    /// A file in a folder of its own.
    File(tempfile::TempDir),
    /// A database of its own.
    Database(Database),
}

impl Home {
    pub fn file() -> Self {
        Self::File(tempfile::tempdir().unwrap())
    }

    pub fn database(cluster: &Cluster, name: &str) -> Self {
        Self::Database(cluster.database(name))
    }

    /// The folder of the file.
    pub fn folder(&self) -> &Path {
        let Self::File(folder) = self else { panic!("a database has no folder") };
        folder.path()
    }

    pub fn path(&self) -> PathBuf {
        self.folder().join("registry.sqlite")
    }

    pub async fn create(&self) -> AnyRegistry {
        let facts = [(Meta::GatewayId, "g".into())];
        match self {
            Self::File(_) => AnyRegistry::Sqlite(SqliteRegistry::create(&self.path(), &facts).await.unwrap()),
            Self::Database(database) => {
                let registry = PostgresRegistry::open(database).await.unwrap();
                registry.establish(&facts).await.unwrap().commit().await.unwrap();
                AnyRegistry::Postgres(SharedRegistry::plain(registry))
            }
        }
    }

    /// One more handle, as an administrator's command has.
    pub async fn open(&self) -> AnyRegistry {
        match self {
            Self::File(_) => AnyRegistry::Sqlite(SqliteRegistry::open(&self.path()).await.unwrap()),
            Self::Database(database) => {
                AnyRegistry::Postgres(SharedRegistry::plain(PostgresRegistry::open(database).await.unwrap()))
            }
        }
    }
}

pub async fn invite(registry: &AnyRegistry, id: &[u8], user: &str, uses: u32) {
    registry.add_invitation(&invitation(id, user, uses), "test").await.unwrap();
}

pub fn invitation(id: &[u8], user: &str, uses_allowed: u32) -> Invitation {
    Invitation {
        id: id.to_vec(),
        key: vec![1; 32],
        user: user.into(),
        uses_allowed,
        uses: 0,
        created: now(),
        expires: now() + time::Duration::HOUR,
        cancelled_at: None,
        last_use: None,
        renews: None,
    }
}

pub async fn enrol(registry: &AnyRegistry, invitation: &[u8], number: u32) -> Result<Device, EnrolError> {
    registry.enrol(&request(invitation, number)).await
}

pub fn request(invitation: &[u8], number: u32) -> Enrolment<'_> {
    Enrolment {
        invitation,
        device: Box::leak(format!("device-{number}").into_boxed_str()),
        name: "laptop",
        spki_sha256: key(number),
        serial: "0a",
        not_after: now() + time::Duration::DAY,
        authority: Pin::from_bytes([7; 32]),
        pool: Pool::new("100.77.3.0/24".parse().unwrap(), Some("fd4e:9a1c::/64".parse().unwrap())),
        gateway: None,
        devices_per_user: Some(3),
        now: now(),
    }
}

pub fn wide() -> Pool {
    Pool::new("10.0.0.0/8".parse().unwrap(), Some("fd4e:9a1c::/64".parse().unwrap()))
}

pub fn key(number: u32) -> [u8; 32] {
    let mut key = [0; 32];
    key[..4].copy_from_slice(&number.to_be_bytes());
    key
}

pub fn now() -> OffsetDateTime {
    OffsetDateTime::from_unix_timestamp(1_800_000_000).unwrap()
}
