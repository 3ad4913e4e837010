//! The state directory: keys, certificates and the registry, made once by `init`.
//!
//! ```text
//! DIR/.lock            held by the running gateway, and by init
//! DIR/journal.json     what to undo on this host (see `journal`)
//! DIR/registry.copy    what is remembered of a registry in a database
//! DIR/gateway/         appears in one rename, so it is whole or not there; 0700
//!     ca.pem ca.key    the private CA; `rotation` has the files that are there while another takes its place
//!     leaf.pem         the gateway's own certificate and key, replaced in one rename
//!     cid.key          the secret of connection IDs, so that a new process can end an old one's sessions
//!     id               who this gateway is among those that share its registry
//!     registry.sqlite  unless the registry is in a database
//! ```

mod rotation;

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io;
use std::net::IpAddr;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use culvert_tunnel::identity::{Authority, Credential, DeviceId, IdentityError};
use culvert_tunnel::shard::cid::{CidKey, SECRET_BYTES};
use rustix::fs::{FlockOperation, flock};
use x509_parser::extensions::GeneralName;
use x509_parser::parse_x509_certificate;
use zeroize::Zeroizing;

use crate::backup::{self, Files};
use crate::config::{Config, Database};
use crate::files;
use crate::registry::any::AnyRegistry;
use crate::registry::copy::CopyKey;
use crate::registry::postgres::{Pending, PostgresRegistry};
use crate::registry::shared::SharedRegistry;
use crate::registry::sqlite::SqliteRegistry;
use crate::registry::{Meta, RegistryError};

pub use rotation::{FILES as ROTATION_FILES, Stamp};

/// A state directory, initialised or not.
#[derive(Clone, Debug)]
pub struct StateDir {
    root: PathBuf,
    /// Where the registry is when it is not here.
    database: Option<Database>,
}

/// Nobody else changes this state directory until it is dropped.
#[derive(Debug)]
pub struct StateLock {
    _file: File,
}

/// Why the state cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    /// `init` was never run here.
    #[error("there is no gateway in {}; run culvert-server init", .0.display())]
    NotInitialised(PathBuf),
    /// A running gateway or an `init` has it.
    #[error("another culvert-server uses {}; stop it, or choose another state directory", .0.display())]
    Locked(PathBuf),
    /// Another command changes the authorities, or reads them for a backup.
    #[error("another culvert-server ca command is at work in {}; try again when it is done", .0.display())]
    Rotating(PathBuf),
    /// It cannot be read or written.
    #[error("cannot use {}: {error}", .path.display())]
    Io {
        /// Which file or folder.
        path: PathBuf,
        /// What the OS says.
        error: io::Error,
    },
    /// A key or certificate is unusable.
    #[error("{}: {error}", .path.display())]
    Identity {
        /// Which file.
        path: PathBuf,
        /// What is wrong with it.
        error: IdentityError,
    },
    /// The registry is unusable.
    #[error(transparent)]
    Registry(#[from] RegistryError),
}

impl StateDir {
    /// The directory `[state] dir`, with a registry of its own.
    pub fn new(root: &Path) -> Self {
        Self { root: root.to_owned(), database: None }
    }

    /// The directory and the registry that the configuration names.
    pub fn of(config: &Config) -> Self {
        Self { root: config.state_dir.clone(), database: config.database.clone() }
    }

    /// The directory itself.
    pub fn root(&self) -> &Path {
        &self.root
    }

    fn gateway(&self) -> PathBuf {
        self.root.join("gateway")
    }

    /// True when `init` has completed here.
    pub fn is_initialised(&self) -> bool {
        self.gateway().is_dir()
    }

    /// Takes the directory for this process; waits half a second for what is left of a killed one. Makes it when it is not there.
    ///
    /// # Errors
    /// [`StateError::Locked`], or [`StateError::Io`].
    pub fn lock(&self) -> Result<StateLock, StateError> {
        DirBuilder::new().recursive(true).mode(0o700).create(&self.root).map_err(self.io(&self.root))?;
        let path = self.root.join(".lock");
        let file = OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .mode(0o600)
            .custom_flags(libc::O_NOFOLLOW) // root opens it in another user's folder (cleanup)
            .open(&path)
            .map_err(self.io(&path))?;
        let began = Instant::now();
        loop {
            let again = file.try_clone().map_err(self.io(&path))?;
            match locked(again).map_err(|error| self.io(&path)(error.into()))? {
                Some(lock) => return Ok(lock),
                None if began.elapsed() < ENDING_FOR => thread::sleep(ENDING_FOR / 20),
                None => return Err(StateError::Locked(self.root.clone())),
            }
        }
    }

    /// True while a gateway (or an `init`) uses the directory.
    pub fn is_locked(&self) -> bool {
        let Ok(file) = File::open(self.root.join(".lock")) else { return false };
        matches!(flock(&file, FlockOperation::NonBlockingLockShared), Err(rustix::io::Errno::WOULDBLOCK))
    }

    /// Makes CA, leaf and registry in one step: afterwards all of them are on disk, or none.
    ///
    /// # Errors
    /// [`StateError`]; the directory is as it was then.
    pub async fn create(
        &self,
        lock: &StateLock,
        display_name: &str,
        leaf_names: &[String],
        facts: &[(Meta, String)],
    ) -> Result<(), StateError> {
        self.remove_unfinished(lock);
        let unfinished = self.root.join(UNFINISHED);
        let made = self.fill(&unfinished, display_name, leaf_names, facts).await;
        let made = match made.and_then(|pending| self.finish(&unfinished).map(|()| pending)) {
            // The database last: keys without facts there are completed by the next `init`, facts without keys by none.
            Ok(Some(pending)) => pending.commit().await.map_err(StateError::from).inspect_err(|_| {
                let _ = fs::remove_dir_all(self.gateway()); // ours, and never in use
            }),
            made => made.map(drop),
        };
        if made.is_err() {
            self.remove_unfinished(lock);
        }
        made
    }

    async fn fill(
        &self,
        folder: &Path,
        display_name: &str,
        leaf_names: &[String],
        facts: &[(Meta, String)],
    ) -> Result<Option<Pending>, StateError> {
        let wrong = |error| StateError::Identity { path: folder.join("ca.pem"), error };
        let authority = Authority::create(display_name, SystemTime::now()).map_err(wrong)?;
        self.fill_keys(folder, &authority, leaf_names)?;
        match &self.database {
            None => {
                SqliteRegistry::create(&folder.join(backup::REGISTRY), facts).await?.close().await;
                Ok(None)
            }
            Some(database) => {
                let registry = PostgresRegistry::open(database).await?;
                Ok(Some(registry.establish(&shared_facts(facts, &authority)).await?))
            }
        }
    }

    /// Completes a [`Self::create`] that was interrupted before the database had its facts.
    ///
    /// # Errors
    /// [`StateError`].
    pub async fn establish(&self, registry: &PostgresRegistry, facts: &[(Meta, String)]) -> Result<(), StateError> {
        let facts = shared_facts(facts, &self.authority()?);
        Ok(registry.establish(&facts).await?.commit().await?)
    }

    fn fill_keys(&self, folder: &Path, authority: &Authority, leaf_names: &[String]) -> Result<(), StateError> {
        DirBuilder::new().mode(0o700).create(folder).map_err(self.io(folder))?;
        let wrong = |error| StateError::Identity { path: folder.join("leaf.pem"), error };
        let leaf = authority.issue_server(leaf_names, SystemTime::now()).map_err(wrong)?;
        let write = |name: &str, text: &str| {
            let path = folder.join(name);
            files::write_new(&path, text.as_bytes(), 0o600).map_err(self.io(&path))
        };
        write("ca.pem", &authority.certificate_pem())?;
        write("ca.key", authority.key_pem().expose())?;
        write("leaf.pem", &leaf_text(&leaf))?;
        let cids = folder.join("cid.key");
        files::write_new(&cids, &CidKey::random_secret(), 0o600).map_err(self.io(&cids))
    }

    /// Makes a further gateway for a registry that others share already: their CA, and its own leaf. In one step, as
    /// [`Self::create`].
    ///
    /// # Errors
    /// [`StateError`]; the directory is as it was then.
    pub fn join(&self, lock: &StateLock, authority: &Authority, leaf_names: &[String]) -> Result<(), StateError> {
        self.remove_unfinished(lock);
        let unfinished = self.root.join(UNFINISHED);
        let made = self.fill_keys(&unfinished, authority, leaf_names).and_then(|()| self.finish(&unfinished));
        if made.is_err() {
            self.remove_unfinished(lock);
        }
        made
    }

    /// What a backup holds. The registry is copied as it is at one moment, also while a gateway runs.
    ///
    /// # Errors
    /// [`StateError`].
    pub async fn backup_files(&self) -> Result<Files, StateError> {
        let _lock = self.lock_rotation()?;
        self.remove_copies();
        let mut files = Files::new();
        for name in ROTATION_FILES {
            let path = self.gateway().join(name);
            match fs::read(&path) {
                Ok(bytes) => files.push((name.to_owned(), Zeroizing::new(bytes))),
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(self.io(&path)(error)),
            }
        }
        for name in backup::FILES.into_iter().chain(self.database.is_none().then_some(backup::REGISTRY)) {
            let path = self.gateway().join(name);
            let bytes = if name == backup::REGISTRY {
                let copy = self.root.join(format!("{COPY}{}.sqlite", std::process::id()));
                let registry = SqliteRegistry::open(&path).await?;
                let copied = registry.copy_to(&copy).await;
                registry.close().await;
                let bytes = copied.map(|()| fs::read(&copy));
                let _ = fs::remove_file(&copy); // not there when copying failed
                bytes?
            } else {
                fs::read(&path)
            };
            files.push((name.to_owned(), Zeroizing::new(bytes.map_err(self.io(&path))?)));
        }
        Ok(files)
    }

    /// Removes the registry's copies of backups that were killed: their processes are gone, or are this one.
    fn remove_copies(&self) {
        let Ok(entries) = fs::read_dir(&self.root) else { return };
        for entry in entries.flatten() {
            let name = entry.file_name();
            let number = name.to_str().and_then(|name| name.strip_prefix(COPY)?.split('.').next()?.parse().ok());
            let Some(process) = number.and_then(rustix::process::Pid::from_raw) else { continue };
            let gone = rustix::process::test_kill_process(process) == Err(rustix::io::Errno::SRCH);
            if gone || process == rustix::process::getpid() {
                let _ = fs::remove_file(entry.path()); // the next backup tries again
            }
        }
    }

    /// Makes what [`Self::backup_files`] gave, in one step: afterwards all of it is on disk, or nothing.
    ///
    /// # Errors
    /// [`StateError`]; the directory is as it was then.
    pub async fn restore(&self, lock: &StateLock, kept: &Files) -> Result<(), StateError> {
        self.remove_unfinished(lock);
        let unfinished = self.root.join(UNFINISHED);
        let made = self.unpack(&unfinished, kept).await.and_then(|()| self.finish(&unfinished));
        if made.is_err() {
            self.remove_unfinished(lock);
        }
        made
    }

    async fn unpack(&self, folder: &Path, kept: &Files) -> Result<(), StateError> {
        DirBuilder::new().mode(0o700).create(folder).map_err(self.io(folder))?;
        for (name, bytes) in kept {
            let path = folder.join(name);
            files::write_new(&path, bytes, 0o600).map_err(self.io(&path))?;
        }
        self.authorities_in(folder)?;
        if kept.iter().all(|(name, _)| name != backup::REGISTRY) {
            return Ok(()); // it is in a database
        }
        let registry = SqliteRegistry::open(&folder.join(backup::REGISTRY)).await?;
        let sound = registry.check().await;
        registry.close().await;
        Ok(sound?)
    }

    /// What was filled takes its name.
    fn finish(&self, unfinished: &Path) -> Result<(), StateError> {
        files::sync_folder(&unfinished.join("x")).map_err(self.io(unfinished))?;
        fs::rename(unfinished, self.gateway()).map_err(self.io(&self.gateway()))?;
        files::sync_folder(&self.gateway()).map_err(self.io(&self.root))
    }

    /// What an interrupted `init` left was never in use.
    fn remove_unfinished(&self, _lock: &StateLock) {
        let _ = fs::remove_dir_all(self.root.join(UNFINISHED)); // usually not there
    }

    /// Opens the registry.
    ///
    /// # Errors
    /// [`StateError::NotInitialised`], or what the registry says.
    pub async fn registry(&self) -> Result<AnyRegistry, StateError> {
        self.check_initialised()?;
        Ok(match &self.database {
            None => AnyRegistry::Sqlite(SqliteRegistry::open(&self.gateway().join(backup::REGISTRY)).await?),
            Some(database) => AnyRegistry::Postgres(SharedRegistry::plain(PostgresRegistry::open(database).await?)),
        })
    }

    /// Opens the database that gateways share, whether there is a gateway here or not; `None` where the configuration
    /// names none.
    ///
    /// # Errors
    /// What the database says.
    pub async fn shared_registry(&self) -> Result<Option<PostgresRegistry>, StateError> {
        match &self.database {
            Some(database) => Ok(Some(PostgresRegistry::open(database).await?)),
            None => Ok(None),
        }
    }

    /// Opens the registry for a gateway: where gateways share it, what this one remembers does while the database does
    /// not answer.
    ///
    /// # Errors
    /// As [`Self::registry`].
    pub async fn remembering_registry(&self, good_for: Duration) -> Result<AnyRegistry, StateError> {
        let Some(database) = &self.database else { return self.registry().await };
        self.check_initialised()?;
        let key = CopyKey::derive(self.cid_secret()?.as_slice());
        let (store, path) = (PostgresRegistry::new(database)?, self.root.join("registry.copy"));
        Ok(AnyRegistry::Postgres(SharedRegistry::remembering(store, &path, key, good_for).await?))
    }

    /// Reads the present CA with its key.
    ///
    /// # Errors
    /// [`StateError`] when it is not there or unusable.
    pub fn authority(&self) -> Result<Authority, StateError> {
        self.check_initialised()?;
        self.current_in(&self.gateway())
    }

    /// The gateway's certificate and key. Issues new ones when the old are another CA's, not for exactly these
    /// names, or past two thirds of their life.
    ///
    /// # Errors
    /// [`StateError`] when neither the old nor new ones can be had.
    pub fn leaf(&self, authority: &Authority, names: &[String], now: SystemTime) -> Result<Credential, StateError> {
        let path = self.gateway().join("leaf.pem");
        if let Ok(text) = self.read(&path)
            && let Ok(leaf) = Credential::from_pem(&text, &text)
            && leaf.renew_at().is_ok_and(|due| now < due)
            && leaf_names(&leaf) == sorted(names)
            && leaf.chain().last() == Some(authority.certificate_der())
        {
            return Ok(leaf);
        }
        let wrong = |error| StateError::Identity { path: path.clone(), error };
        let leaf = authority.issue_server(names, now).map_err(wrong)?;
        files::write_private(&path, leaf_text(&leaf).as_bytes()).map_err(self.io(&path))?;
        tracing::info!(event = "leaf_issued", names = names.join(" "), "a new certificate for this gateway");
        Ok(leaf)
    }

    /// The key of connection IDs; made when it is not there, as before this version.
    ///
    /// # Errors
    /// [`StateError`] when it is unusable, or a new one cannot be written.
    pub fn cid_key(&self, _lock: &StateLock) -> Result<CidKey, StateError> {
        self.check_initialised()?;
        let secret = self.cid_secret()?;
        Ok(CidKey::from_secret(&secret))
    }

    /// Who this gateway is among those that share its registry; chosen when it first asks.
    ///
    /// # Errors
    /// [`StateError`] when it is unusable, or cannot be written.
    pub fn gateway_id(&self, _lock: &StateLock) -> Result<DeviceId, StateError> {
        let path = self.gateway().join("id");
        let wrong = |error| StateError::Identity { path: path.clone(), error };
        match self.read(&path) {
            Ok(text) => text.trim().parse().map_err(wrong),
            Err(StateError::Io { error, .. }) if error.kind() == io::ErrorKind::NotFound => {
                let id = DeviceId::generate().map_err(wrong)?;
                files::write_private(&path, id.to_string().as_bytes()).map_err(self.io(&path))?;
                Ok(id)
            }
            Err(error) => Err(error),
        }
    }

    fn cid_secret(&self) -> Result<CidSecret, StateError> {
        let path = self.gateway().join("cid.key");
        match fs::read(&path) {
            Ok(bytes) => {
                let wrong = || io::Error::other("not a key of ours; remove it, and a new one is made");
                let secret: [u8; SECRET_BYTES] = bytes.try_into().map_err(|_| self.io(&path)(wrong()))?;
                Ok(Zeroizing::new(secret))
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let secret = CidKey::random_secret();
                files::write_private(&path, &secret).map_err(self.io(&path))?;
                Ok(Zeroizing::new(secret))
            }
            Err(error) => Err(self.io(&path)(error)),
        }
    }

    /// Is there a gateway here?
    ///
    /// # Errors
    /// [`StateError::NotInitialised`], or [`StateError::Io`] when that cannot be seen.
    pub fn check_initialised(&self) -> Result<(), StateError> {
        match fs::metadata(self.gateway()) {
            Ok(_) => Ok(()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Err(StateError::NotInitialised(self.root.clone())),
            Err(error) => Err(self.io(&self.gateway())(error)),
        }
    }

    fn read(&self, path: &Path) -> Result<String, StateError> {
        fs::read_to_string(path).map_err(self.io(path))
    }

    #[expect(clippy::unused_self, reason = "reads like the other methods where it is used")]
    fn io(&self, path: &Path) -> impl Fn(io::Error) -> StateError + use<> {
        let path = path.to_owned();
        move |error| StateError::Io { path: path.clone(), error }
    }
}

type CidSecret = Zeroizing<[u8; SECRET_BYTES]>;

/// How long what is left of a killed gateway may keep its lock: a child between fork and exec has its descriptors.
const ENDING_FOR: Duration = Duration::from_millis(500);
const UNFINISHED: &str = ".init-unfinished";
/// What the name of a copy of the registry begins with, which a backup makes and removes.
const COPY: &str = ".backup-";

/// What all gateways have in common: not one's own name and endpoint, but the CA.
pub fn shared_facts(facts: &[(Meta, String)], authority: &Authority) -> Vec<(Meta, String)> {
    let common = facts.iter().filter(|(fact, _)| !matches!(fact, Meta::GatewayId | Meta::Endpoint | Meta::Authority));
    common.cloned().chain([(Meta::Authority, authority.pin().to_string())]).collect()
}

/// `None` when somebody else has it.
fn locked(file: File) -> Result<Option<StateLock>, rustix::io::Errno> {
    match flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(Some(StateLock { _file: file })),
        Err(rustix::io::Errno::WOULDBLOCK) => Ok(None),
        Err(error) => Err(error),
    }
}

fn leaf_text(leaf: &Credential) -> String {
    format!("{}{}", leaf.key_pem().expose(), leaf.chain_pem())
}

/// The names in a leaf, in a canonical order; empty when it cannot be read.
fn leaf_names(leaf: &Credential) -> Vec<String> {
    let Some(der) = leaf.chain().first() else { return Vec::new() };
    let Ok((_, certificate)) = parse_x509_certificate(der) else { return Vec::new() };
    let Ok(Some(names)) = certificate.subject_alternative_name() else { return Vec::new() };
    let text = |name: &GeneralName<'_>| match name {
        GeneralName::DNSName(host) => Some((*host).to_owned()),
        GeneralName::IPAddress(bytes) => match bytes.len() {
            4 => <[u8; 4]>::try_from(*bytes).ok().map(|bytes| IpAddr::from(bytes).to_string()),
            _ => <[u8; 16]>::try_from(*bytes).ok().map(|bytes| IpAddr::from(bytes).to_string()),
        },
        _ => None,
    };
    sorted(&names.value.general_names.iter().filter_map(text).collect::<Vec<_>>())
}

fn sorted(names: &[String]) -> Vec<String> {
    let mut names = names.to_vec();
    names.sort();
    names.dedup();
    names
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[tokio::test]
    async fn everything_is_made_at_once_and_private() {
        let folder = tempfile::tempdir().unwrap();
        let state = StateDir::new(&folder.path().join("deep/state"));
        assert!(matches!(state.authority(), Err(StateError::NotInitialised(_))));
        let lock = state.lock().unwrap();
        assert!(matches!(state.lock(), Err(StateError::Locked(_))));
        fs::create_dir(state.root().join(UNFINISHED)).unwrap(); // an earlier init was interrupted
        state.create(&lock, "vpn.example.org", &names(&["vpn.example.org"]), &[]).await.unwrap();
        assert!(state.is_initialised());
        state.registry().await.unwrap().close().await;
        for entry in fs::read_dir(state.gateway()).unwrap() {
            let entry = entry.unwrap();
            assert_eq!(entry.metadata().unwrap().permissions().mode() & 0o777, 0o600, "{:?}", entry.path());
        }
        for folder in [state.root(), &state.gateway()] {
            assert_eq!(fs::metadata(folder).unwrap().permissions().mode() & 0o777, 0o700, "{folder:?}");
        }
    }

    #[tokio::test]
    async fn the_leaf_follows_the_names_and_its_age() {
        let folder = tempfile::tempdir().unwrap();
        let state = StateDir::new(folder.path());
        let lock = state.lock().unwrap();
        let both = names(&["vpn.example.org", "203.0.113.7", "2001:db8::1"]);
        state.create(&lock, "vpn.example.org", &both, &[]).await.unwrap();
        let authority = state.authority().unwrap();
        let now = SystemTime::now();
        let pin = |names: &[String], now| state.leaf(&authority, names, now).unwrap().key().pin();
        let first = pin(&both, now);
        assert_eq!(pin(&names(&["2001:db8::1", "vpn.example.org", "203.0.113.7"]), now), first);
        let other = pin(&names(&["new.example.org"]), now);
        assert_ne!(other, first);
        assert_eq!(pin(&names(&["new.example.org"]), now), other, "kept on disk");
        let late = now + Duration::from_secs(250 * 86_400);
        assert_ne!(pin(&names(&["new.example.org"]), late), other, "past two thirds of a year");
    }

    #[tokio::test]
    async fn the_secret_of_connection_ids_is_kept_and_a_damaged_one_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let state = StateDir::new(folder.path());
        let lock = state.lock().unwrap();
        state.create(&lock, "vpn.example.org", &names(&["vpn.example.org"]), &[]).await.unwrap();
        state.cid_key(&lock).unwrap();
        let path = state.gateway().join("cid.key");
        let kept = fs::read(&path).unwrap();
        state.cid_key(&lock).unwrap();
        assert_eq!(fs::read(&path).unwrap(), kept);
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        fs::write(&path, "short").unwrap();
        let error = state.cid_key(&lock).unwrap_err().to_string();
        assert!(error.contains("cid.key") && error.contains("remove it"), "{error}");
    }

    fn names(names: &[&str]) -> Vec<String> {
        names.iter().map(|name| (*name).to_owned()).collect()
    }
}
