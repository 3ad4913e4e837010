//! `run --init`: a gateway that makes itself at its first start, as containers do, and at no other.
//!
//! A second identity by mistake would lock every client out, so nothing is made unless the state directory is a
//! volume that keeps it, and empty. No invitation is made and no configuration written: the root is read-only, and
//! a log is no place for a secret.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, StatxAttributes, StatxFlags, statx};

use super::init::{self, InitRequest};
use super::{AdminError, state_dir};
use crate::config::Loaded;

/// Why no gateway is made here.
#[derive(Debug, thiserror::Error)]
pub enum NotHere {
    /// It would be gone with the container.
    #[error(
        "{} is no volume, so a gateway made here would be lost with this container; mount a volume there",
        .0.display()
    )]
    NotKept(PathBuf),
    /// Probably another volume than was meant.
    #[error(
        "{} holds something ({found}) but no gateway; mount the right volume, or an empty one to make a new gateway",
        .dir.display()
    )]
    NotEmpty {
        /// The state directory.
        dir: PathBuf,
        /// The first that should not be there.
        found: String,
    },
    /// Clients must know how to reach it.
    #[error(
        "clients need the public name of this gateway; set endpoint.name (in a container the variable \
         CULVERT_SERVER_ENDPOINT__NAME)"
    )]
    NoName,
}

/// Makes a gateway if the state directory is an empty volume. Returns true if it made one.
///
/// # Errors
/// [`AdminError`]; the volume is as it was then.
pub async fn init_if_empty(loaded: &Loaded) -> Result<bool, AdminError> {
    let state = state_dir(&loaded.config);
    if state.is_initialised() {
        return Ok(false);
    }
    check_empty(state.root())?;
    if !is_volume(state.root()) {
        return Err(NotHere::NotKept(state.root().into()).into());
    }
    let request = InitRequest { invite: None, join: None, dry_run: false, start: false, write_config: false };
    match init::init(loaded, &request).await {
        Ok(done) => {
            tracing::info!(
                event = "initialised",
                endpoints = done.endpoints.join(" "),
                networks = done.networks.join(" "),
                ca_pin = done.ca_pin,
                "a new gateway, since {} was empty; clients of an earlier one cannot connect to it",
                state.root().display()
            );
            Ok(true)
        }
        Err(AdminError::NeedsEndpoint(_)) => Err(NotHere::NoName.into()),
        Err(error) => Err(error),
    }
}

/// What a file system makes by itself, and an interrupted `init`.
const NOTHING: [&str; 3] = ["lost+found", ".lock", ".init-unfinished"];

fn check_empty(dir: &Path) -> Result<(), AdminError> {
    let unreadable = |error| super::StateError::Io { path: dir.into(), error };
    let entries = match fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(unreadable(error).into()),
    };
    for entry in entries {
        let name = entry.map_err(unreadable)?.file_name();
        if !NOTHING.iter().any(|nothing| name == *nothing) {
            return Err(NotHere::NotEmpty { dir: dir.into(), found: name.to_string_lossy().into_owned() }.into());
        }
    }
    Ok(())
}

/// True when something other than the root file system is mounted at `dir`, or between it and the root.
fn is_volume(dir: &Path) -> bool {
    let told = |path: &Path| statx(CWD, path, AtFlags::empty(), StatxFlags::empty()).ok();
    let Some(root) = told(Path::new("/")) else { return false };
    let mounted = |path: &Path| {
        told(path).is_some_and(|told| {
            if told.stx_attributes_mask.contains(StatxAttributes::MOUNT_ROOT) {
                told.stx_attributes.contains(StatxAttributes::MOUNT_ROOT)
            } else {
                // Before Linux 5.8 a mount is seen only by its other device.
                (told.stx_dev_major, told.stx_dev_minor) != (root.stx_dev_major, root.stx_dev_minor)
            }
        })
    };
    dir.ancestors().filter(|path| path.parent().is_some()).any(mounted)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_that_holds_something_is_not_taken_for_a_new_volume() {
        let folder = tempfile::tempdir().unwrap();
        check_empty(&folder.path().join("missing")).unwrap();
        fs::write(folder.path().join(".lock"), "").unwrap();
        fs::create_dir(folder.path().join("lost+found")).unwrap();
        check_empty(folder.path()).unwrap();
        fs::write(folder.path().join("postgres.pid"), "").unwrap();
        let told = check_empty(folder.path()).unwrap_err().to_string();
        assert!(told.contains("(postgres.pid) but no gateway; mount the right volume"), "{told}");
    }

    #[test]
    fn a_mount_is_seen_from_below_it() {
        assert!(is_volume(Path::new("/proc/self")), "/proc is mounted");
        assert!(!is_volume(Path::new("/")), "the root keeps nothing in a container");
    }
}
