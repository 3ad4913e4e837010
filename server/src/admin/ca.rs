//! `ca show|backup|restore`: the one thing that a gateway cannot make again. `rotate` has the rest of `ca`.

use std::fs;
use std::io::{self, IsTerminal};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use culvert_tunnel::identity::{Authority, renew_at};
use serde_json::{Value, json};
use time::OffsetDateTime;
use zeroize::Zeroizing;

use super::lists::line;
use super::rotate::{self, Progress};
use super::{AdminError, SCHEMA, state_dir};
use crate::authorities::{Authorities, Second};
use crate::backup::{self, BackupError, CONFIG, Files};
use crate::config::{Config, Loaded};
use crate::files;
use crate::owner;
use crate::registry::{Device, Registry};
use crate::sealed_file;
use crate::settings::Settings;
use crate::times::rfc3339;

/// Shorter ones are tried out too fast, whatever the file's own cost.
const PASSPHRASE_MIN: usize = 12;

/// Where a passphrase comes from. Never from the command line, which others can read.
#[derive(Clone, Debug)]
pub enum Passphrase {
    /// The terminal.
    Ask,
    /// A file's first line; `-` is standard input.
    File(PathBuf),
}

/// The CA and the gateway's own certificate.
///
/// # Errors
/// [`AdminError`] when there is no gateway here.
pub async fn show(config: &Config, as_json: bool) -> Result<String, AdminError> {
    let state = state_dir(config);
    let registry = state.registry().await?;
    let settings = Settings::resolve(config, &registry).await?;
    let authorities = state.authorities()?;
    let devices = if authorities.second().is_some() { registry.devices().await? } else { vec![] };
    registry.close().await;
    let authority = authorities.current();
    let leaf = state.leaf(authority, &settings.leaf_names(), SystemTime::now())?.facts()?;
    let ca = authority.facts();
    let time = |at: SystemTime| rfc3339(OffsetDateTime::from(at));
    let renews = renew_at(leaf.not_before, leaf.not_after);
    if as_json {
        return Ok(line(&json!({
            "schema": SCHEMA,
            "ca": { "pin": authority.pin().to_string(), "name": ca.common_name, "serial": ca.serial_hex,
                    "not_before": time(ca.not_before), "not_after": time(ca.not_after) },
            "rotation": rotation(&authorities, &devices).map(|(object, _)| object),
            "gateway": { "names": settings.leaf_names(), "serial": leaf.serial_hex,
                         "not_before": time(leaf.not_before), "not_after": time(leaf.not_after), "renews": time(renews) },
        })));
    }
    Ok(format!(
        "{}\n    Pin:          {}\n    Valid until:  {}\n{}The gateway's own certificate\n    Names:        {}\n    \
         Valid until:  {} (renews by itself on {})\n",
        ca.common_name.as_deref().unwrap_or("CA"),
        authority.pin(),
        time(ca.not_after),
        rotation(&authorities, &devices).map_or_else(String::new, |(_, text)| text),
        settings.leaf_names().join(", "),
        time(leaf.not_after),
        OffsetDateTime::from(renews).date(),
    ))
}

/// The CA beside the first one, and how far devices are: for JSON and for people.
fn rotation(authorities: &Authorities, devices: &[Device]) -> Option<(Value, String)> {
    let (state, towards, said) = match authorities.second()? {
        Second::Coming(next) => ("coming", next.pin(), "A second one comes"),
        Second::Leaving(_) => ("leaving", authorities.current().pin(), "A second one leaves again"),
    };
    let pin = authorities.second_pin()?;
    let Progress { devices, waiting } = Progress::of(devices, towards, OffsetDateTime::now_utc());
    let object = json!({ "state": state, "pin": pin, "devices": devices, "waiting": waiting });
    let (ready, of) = (devices - waiting.len(), if state == "coming" { "it" } else { "the first one" });
    let mut text =
        format!("{said}\n    Pin:          {pin}\n    Devices:      {ready} of {devices} have a certificate of {of}\n");
    if !waiting.is_empty() {
        text.push_str(&format!("    Not yet:      {}\n", rotate::named(&waiting)));
    }
    Some((object, text))
}

/// Writes everything that cannot be made again into one sealed file, mode 0600. The gateway may run.
///
/// # Errors
/// [`AdminError`]; there is no file then.
pub async fn backup(loaded: &Loaded, to: &Path, from: &Passphrase, as_json: bool) -> Result<String, AdminError> {
    let state = state_dir(&loaded.config);
    state.check_initialised()?;
    if owner::as_caller(|| to.exists()) {
        return Err(AdminError::Exists(to.to_owned()));
    }
    let passphrase = read_passphrase(from, true)?;
    let mut kept = state.backup_files().await?;
    if let Ok(config) = owner::as_caller(|| fs::read(&loaded.path)) {
        kept.push((CONFIG.to_owned(), Zeroizing::new(config)));
    }
    let about = format!(
        "Backup of a Culvert gateway, version {}, made {}. Restore it with: culvert-server ca restore FILE\n",
        env!("CARGO_PKG_VERSION"),
        rfc3339(OffsetDateTime::now_utc())
    );
    let sealed = sealed_file::seal(&backup::pack(&kept, &about)?, &passphrase)?;
    let written = owner::as_caller(|| files::write_new(to, &sealed, 0o600).and_then(|()| files::sync_folder(to)));
    written.map_err(|error| match error.kind() {
        io::ErrorKind::AlreadyExists => AdminError::Exists(to.to_owned()),
        _ => AdminError::Write { path: to.to_owned(), error },
    })?;
    Ok(if as_json {
        line(&json!({ "schema": SCHEMA, "file": to, "bytes": sealed.len() }))
    } else {
        let what = if loaded.config.database.is_some() {
            "CA; the registry is in its database"
        } else {
            "CA and the registry"
        };
        format!("{} holds the {what}. Without its passphrase nobody can use it, you included.\n", to.display())
    })
}

/// Makes a gateway of a backup, where there is none. Its files are there all at once, or not at all.
///
/// # Errors
/// [`AdminError`]; nothing has changed then.
pub async fn restore(loaded: &Loaded, file: &Path, from: &Passphrase, as_json: bool) -> Result<String, AdminError> {
    let state = state_dir(&loaded.config);
    if state.is_initialised() {
        return Err(AdminError::Exists(state.root().to_owned()));
    }
    let mut kept = open_backup(file, from)?;
    let at = kept.iter().position(|(name, _)| name == CONFIG);
    let config = at.map(|at| kept.swap_remove(at).1);
    let lock = state.lock()?;
    state.restore(&lock, &kept).await?;
    let wrote = match config {
        Some(config) if !loaded.found => owner::as_caller(|| write_config(&loaded.path, &config)).is_ok(),
        _ => false,
    };
    let pin = state.authority()?.pin().to_string();
    Ok(if as_json {
        line(&json!({ "schema": SCHEMA, "ca_pin": pin, "state_dir": state.root(), "config_written": wrote }))
    } else {
        let config =
            if wrote { format!(", and the configuration is in {}", loaded.path.display()) } else { String::new() };
        format!("The gateway is in {}{config}. CA pin: {pin}\n", state.root().display())
    })
}

fn open_backup(file: &Path, from: &Passphrase) -> Result<Files, AdminError> {
    let sealed =
        owner::as_caller(|| fs::read(file)).map_err(|error| AdminError::Read { path: file.to_owned(), error })?;
    let passphrase = read_passphrase(from, false)?;
    Ok(backup::unpack(&sealed_file::open(&sealed, &passphrase)?)?)
}

/// The CA of a backup, for a gateway that joins others.
///
/// # Errors
/// [`AdminError`] for a file or passphrase that does not fit.
pub(super) fn authority_of(file: &Path, from: &Passphrase) -> Result<Authority, AdminError> {
    let kept = open_backup(file, from)?;
    let text = |wanted: &'static str| {
        let bytes = kept.iter().find(|(name, _)| name == wanted).map(|(_, bytes)| bytes);
        bytes.and_then(|bytes| std::str::from_utf8(bytes).ok()).ok_or(BackupError::Missing(wanted))
    };
    Ok(Authority::load(text("ca.pem")?, text("ca.key")?)?)
}

fn write_config(path: &Path, bytes: &[u8]) -> io::Result<()> {
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder)?;
    }
    files::write_new(path, bytes, 0o644)
}

fn read_passphrase(from: &Passphrase, new: bool) -> Result<Zeroizing<String>, AdminError> {
    let text = match from {
        Passphrase::File(path) if path == Path::new("-") => files::first_line(&mut io::stdin().lock()),
        Passphrase::File(path) => {
            owner::as_caller(|| fs::File::open(path)).and_then(|mut file| files::first_line(&mut file))
        }
        Passphrase::Ask if io::stdin().is_terminal() => ask(new),
        Passphrase::Ask => return Err(AdminError::NoPassphrase),
    };
    let path = if let Passphrase::File(path) = from { path.clone() } else { "the terminal".into() };
    let text = text.map_err(|error| AdminError::Read { path, error })?;
    if new && text.chars().count() < PASSPHRASE_MIN {
        return Err(AdminError::ShortPassphrase(PASSPHRASE_MIN));
    }
    Ok(text)
}

fn ask(new: bool) -> io::Result<Zeroizing<String>> {
    let first = Zeroizing::new(rpassword::prompt_password("Passphrase: ")?);
    if new && *first != *Zeroizing::new(rpassword::prompt_password("The same again: ")?) {
        return Err(io::Error::other("the two passphrases are not the same"));
    }
    Ok(first)
}
