//! The administrator's commands: `init`, `invite`, `invites`, `devices`, `sessions`, `status`, `check-config`.
//!
//! Each returns what belongs on standard output; data only, as text or as one JSON object with
//! `"schema": 1`. Failures carry the exit code of the product contract, section 6.2.

pub mod bans;
pub mod ca;
pub mod devices;
pub mod doctor;
pub mod first_run;
pub mod gateways;
pub mod init;
pub mod invite;
pub mod invites;
pub mod lists;
pub mod mdm;
pub mod registry;
pub mod rotate;
pub mod service;
pub mod why;

use std::io;
use std::path::PathBuf;

use crate::audit::{self, Via};
use crate::backup::BackupError;
use crate::config::{Config, ConfigError, Loaded, Source};
use crate::control_socket::{AskError, Request, Response, ask};
use crate::door::BansFileError;
use crate::fleet::FleetError;
use crate::gateway::GatewayError;
use crate::interface::{NetlinkError, Overlap};
use crate::log::LogFileError;
use crate::owner::OwnerError;
use crate::registry::RegistryError;
use crate::registry::dump::DumpError;
use crate::sealed_file::SealError;
use crate::settings::SettingsError;
use crate::state::{StateDir, StateError};
use culvert_tunnel::identity::IdentityError;

/// The number that every JSON answer carries; fields are only added under it.
pub const SCHEMA: u32 = 1;

/// Why a command failed.
#[derive(Debug, thiserror::Error)]
pub enum AdminError {
    /// No public address of this host is known.
    #[error("{0}")]
    NeedsEndpoint(init::NeedsEndpoint),
    /// Nothing inside is free.
    #[error("no /24 of 100.64.0.0/10 or 10.0.0.0/8 is free on this host; set network.ipv4")]
    NoNetwork,
    /// There is nothing to share.
    #[error("the registry is a file of this gateway's own; set registry.url to the database that gateways share")]
    NotShared,
    /// Nobody made the registry.
    #[error(
        "no gateway has made its registry in this database; make the first one: culvert-server init --registry URL"
    )]
    NobodyThere,
    /// No gateway is called so.
    #[error("there is no gateway {0:?}; see culvert-server gateways list")]
    NoGateway(String),
    /// It says that it runs.
    #[error("{0} runs; stop it first, or it comes again")]
    GatewayRuns(String),
    /// The name for an invitation or a user is none.
    #[error("a name has 1 to 64 printable characters")]
    BadName,
    /// The length of time is none.
    #[error("{0:?} is not a length of time; write it like 30m, 24h or 7d")]
    BadDuration(String),
    /// Nothing that can be banned.
    #[error("{0:?} is neither an address nor a network; write it like 203.0.113.9 or 203.0.113.0/24")]
    BadPrefix(String),
    /// A reason that a list cannot show.
    #[error("a reason has at most 64 printable characters")]
    BadReason,
    /// The bans that are kept.
    #[error("cannot read {}: {error}; remove it to begin without bans", .path.display())]
    BansUnreadable {
        /// Their file.
        path: PathBuf,
        /// What is wrong with it.
        error: BansFileError,
    },
    /// Neither a device nor a user is called so.
    #[error("there is no device and no user {0:?}; see culvert-server devices list")]
    Nobody(String),
    /// No device is called so.
    #[error("there is no device {0:?}; see culvert-server devices list")]
    NoDevice(String),
    /// It is the name of a user, and a command acts on one device.
    #[error(
        "{name} is a user; say which device ({}), or --user for all of them", .devices.join(", ")
    )]
    IsUser {
        /// What was typed.
        name: String,
        /// The user's devices.
        devices: Vec<String>,
    },
    /// No user is called so.
    #[error("there is no user {0:?}; see culvert-server devices list")]
    NoUser(String),
    /// Several are called so.
    #[error("{name:?} may be any of {}; say which", .choices.join(", "))]
    Ambiguous {
        /// What was typed.
        name: String,
        /// What it may mean.
        choices: Vec<String>,
    },
    /// The user's devices have different names.
    #[error("there is a device {0} already; nothing was changed")]
    NameTaken(String),
    /// No invitation can be withdrawn.
    #[error("there is no open invitation {0:?}; see culvert-server invites list")]
    NoInvitation(String),
    /// A certificate is renewed for a device that may connect.
    #[error("{0} is revoked; first give it its access back: culvert-server devices restore {0}")]
    IsRevoked(String),
    /// The registry was changed, but a running gateway was not told.
    #[error("the registry was changed, but the running gateway was not told and sees it a second later: {0}")]
    StillOpen(AskError),
    /// No registry.
    #[error("{} cannot be imported: {error}; nothing was changed", .path.display())]
    BadExport {
        /// Which file.
        path: PathBuf,
        /// What is wrong with it.
        error: DumpError,
    },
    /// Clients are not served.
    #[error("the gateway runs but is not ready: {0}; culvert-server doctor says more")]
    NotReady(String),
    /// `doctor` found something.
    #[error("a check failed; see above")]
    CheckFailed,
    /// A file cannot be read.
    #[error("cannot read {}: {error}", .path.display())]
    Read {
        /// Which.
        path: PathBuf,
        /// What the OS says.
        error: io::Error,
    },
    /// Nobody is there to ask.
    #[error(
        "a passphrase is needed and there is no terminal; give it with --passphrase-file FILE (- is standard input)"
    )]
    NoPassphrase,
    /// It would be tried out.
    #[error("a passphrase has at least {0} characters; four or five words are easy to keep")]
    ShortPassphrase(usize),
    /// A step of a rotation that is none now.
    #[error(transparent)]
    Rotation(#[from] rotate::RotationError),
    /// A backup does not open.
    #[error(transparent)]
    Sealed(#[from] SealError),
    /// A backup is not whole.
    #[error(transparent)]
    Backup(#[from] BackupError),
    /// The running gateway keeps its configuration.
    #[error("{0}")]
    NotReloaded(String),
    /// Nobody knows who has signed the app.
    #[error(
        "say whose signature the app has: --team-id ID, the ten characters that pkgutil --check-signature shows for the package"
    )]
    NoTeam,
    /// The user's limit is below what is asked for.
    #[error(
        "{user} may have {limit} devices, not {uses}; write [policy.{user}] devices = {uses} into the configuration (0: no limit), then culvert-server reload"
    )]
    TooFewDevices {
        /// Whose devices they would be.
        user: String,
        /// The user's limit.
        limit: u32,
        /// The invitation's.
        uses: u32,
    },
    /// The profile cannot be written as XML.
    #[error("the profile: {0}")]
    Profile(String),
    /// A link does not fit into a QR code.
    #[error("the invitation is too long for a QR code; send the link")]
    NoQr,
    /// A file cannot be written.
    #[error("cannot write {}: {error}", .path.display())]
    Write {
        /// Which.
        path: PathBuf,
        /// What the OS says.
        error: io::Error,
    },
    /// Nobody else may write it meanwhile, and nothing is overwritten.
    #[error("{} exists already; nothing was changed", .0.display())]
    Exists(PathBuf),
    /// The gateway was made, but its unit does not run.
    #[error("the gateway is made, but {unit} did not start; journalctl -u {unit} says why", unit = service::UNIT)]
    NotStarted,
    /// No gateway makes itself here.
    #[error(transparent)]
    NotHere(#[from] first_run::NotHere),
    /// The state is another user's.
    #[error(transparent)]
    Owner(#[from] OwnerError),
    /// The log's file.
    #[error(transparent)]
    Log(#[from] LogFileError),
    /// The configuration.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The state directory.
    #[error(transparent)]
    State(#[from] StateError),
    /// The registry.
    #[error(transparent)]
    Registry(#[from] RegistryError),
    /// Something is set nowhere.
    #[error(transparent)]
    Settings(#[from] SettingsError),
    /// Keys or random numbers.
    #[error(transparent)]
    Identity(#[from] IdentityError),
    /// The inner network is in use outside.
    #[error(transparent)]
    Overlap(#[from] Overlap),
    /// The host's networks cannot be read.
    #[error(transparent)]
    Netlink(#[from] NetlinkError),
    /// The gateway did not answer.
    #[error(transparent)]
    Ask(#[from] AskError),
    /// The other gateways.
    #[error(transparent)]
    Fleet(#[from] FleetError),
    /// The gateway did not start, or ended.
    #[error(transparent)]
    Gateway(#[from] GatewayError),
}

impl AdminError {
    /// The exit code (product contract 6.2, rule 3).
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::NeedsEndpoint(_)
            | Self::BadName
            | Self::BadDuration(_)
            | Self::BadPrefix(_)
            | Self::BadReason
            | Self::NoTeam
            | Self::NotHere(_)
            | Self::NoPassphrase
            | Self::ShortPassphrase(_) => 2,
            Self::Ask(AskError::NotRunning { .. } | AskError::NoAnswer(_)) | Self::StillOpen(_) => 4,
            Self::State(StateError::NotInitialised(_))
            | Self::Gateway(GatewayError::State(StateError::NotInitialised(_))) => 7,
            Self::Ask(AskError::Forbidden(_)) | Self::Gateway(GatewayError::NoCapability) | Self::Owner(_) => 8,
            Self::State(StateError::Io { error, .. }) | Self::Write { error, .. } | Self::Read { error, .. }
                if error.kind() == io::ErrorKind::PermissionDenied =>
            {
                8
            }
            Self::Config(_) | Self::NotReloaded(_) => 9,
            _ => 1,
        }
    }
}

/// `check-config`: every value and where it came from, or only that all is well.
pub fn check_config(loaded: &Loaded, show: bool) -> String {
    if !show {
        let file = if loaded.found { "" } else { " (not there: defaults)" };
        return format!("{}{file}: valid\n", loaded.path.display());
    }
    let mut text = String::new();
    let mut section = "";
    for (key, value, source) in loaded.layers.iter() {
        if key.section != section {
            section = key.section;
            text.push_str(&format!("[{section}]\n"));
        }
        text.push_str(&format!("{} = {value}  # {source}\n", key.name));
    }
    text.push_str(&loaded.layers.policies().to_string());
    text
}

/// `reload`: the running gateway reads its configuration again.
///
/// # Errors
/// [`AdminError::NotReloaded`] when that says nothing that makes sense; the old one stays in force.
pub fn reload(config: &Config, as_json: bool) -> Result<String, AdminError> {
    let (applied, needs_restart) = match ask(&config.control_socket, &Request::Reload)? {
        Response::Reloaded { applied, needs_restart } => (applied, needs_restart),
        Response::NotReloaded { message } => return Err(AdminError::NotReloaded(message)),
        _ => Default::default(), // not to this request
    };
    if as_json {
        let object = serde_json::json!({ "schema": SCHEMA, "applied": applied, "needs_restart": needs_restart });
        return Ok(lists::line(&object));
    }
    let mut text = match applied.as_slice() {
        [] => "Nothing that can be changed now has changed.\n".to_owned(),
        keys => format!("In force now: {}\n", keys.join(", ")),
    };
    if !needs_restart.is_empty() {
        text.push_str(&format!("After a restart: {}\n", needs_restart.join(", ")));
    }
    Ok(text)
}

/// `health`: whether the running gateway answers, or with `ready` serves clients.
///
/// # Errors
/// [`AdminError::NotReady`] with what failed; [`AdminError::Ask`] when no gateway answers.
pub fn health(config: &Config, ready: bool, as_json: bool) -> Result<String, AdminError> {
    let failed = if ready {
        match ask(&config.control_socket, &Request::Ready)? {
            Response::Ready { failed } => failed,
            _ => Vec::new(), // not to this request
        }
    } else {
        ask(&config.control_socket, &Request::Alive)?;
        Vec::new()
    };
    if !failed.is_empty() {
        return Err(AdminError::NotReady(failed.join(", ")));
    }
    let word = if ready { "ready" } else { "alive" };
    Ok(if as_json { lists::line(&serde_json::json!({ "schema": SCHEMA, word: true })) } else { format!("{word}\n") })
}

/// `metrics`: what a scrape would tell, also when no port is open for scrapers.
///
/// # Errors
/// [`AdminError::Ask`] when no gateway answers.
pub fn metrics(config: &Config) -> Result<String, AdminError> {
    match ask(&config.control_socket, &Request::Scrape)? {
        Response::Metrics { text } => Ok(text),
        _ => Ok(String::new()), // not to this request
    }
}

/// Where a command's state is.
pub fn state_dir(config: &Config) -> StateDir {
    StateDir::of(config)
}

/// Who types this, for the audit.
fn actor() -> String {
    audit::actor(rustix::process::getuid().as_raw(), Via::Command)
}

/// True for what `init` writes into the file it makes.
fn is_chosen(source: &Source) -> bool {
    matches!(source, Source::Flag(_))
}
