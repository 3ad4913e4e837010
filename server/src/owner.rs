//! Root acts on the gateway's state as the user that owns it.
//!
//! The package's unit runs the gateway as a user of its own. A file that root left in its state directory (SQLite's
//! log above all) that user could not write, and a link that it put there root must not follow. So a command that
//! root types takes the owner's rights before it touches the state ([`adopt`]), and its own again only for what it
//! does in its caller's name ([`as_caller`]): a file that the command line names, the configuration, systemctl.

use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use rustix::process::{Gid, Uid, getegid, geteuid, getgid, getuid};
use rustix::thread::{set_thread_groups, set_thread_res_gid, set_thread_res_uid};

/// The state is another user's.
#[derive(Debug, thiserror::Error)]
pub enum OwnerError {
    /// A gateway of root's would leave files that the owner cannot use.
    #[error(
        "{} belongs to user {uid}, who could not use what a gateway of root's leaves there; start its own gateway \
         with: systemctl start culvert-server, or give the directory to root",
        .dir.display()
    )]
    Foreign {
        /// The state directory.
        dir: PathBuf,
        /// Whose it is.
        uid: u32,
    },
    /// The kernel refuses, as in a container without CAP_SETUID.
    #[error("cannot act as the owner (user {uid}) of {}: {error}; run this as that user", .dir.display())]
    Refused {
        /// The state directory.
        dir: PathBuf,
        /// Whose it is.
        uid: u32,
        /// What the OS says.
        error: io::Error,
    },
}

/// From here on root has the rights of the user that owns `dir`, if there is one. For any other caller, or where
/// `dir` is missing or root's own, nothing changes.
///
/// Only for the calling thread and those that it starts: call it before any other thread.
///
/// # Errors
/// [`OwnerError::Refused`].
pub fn adopt(dir: &Path) -> Result<(), OwnerError> {
    let Some((uid, gid)) = other_owner(dir) else { return Ok(()) };
    let refused = |error: rustix::io::Errno| OwnerError::Refused { dir: dir.into(), uid, error: error.into() };
    let (user, group) = (Uid::from_raw(uid), Gid::from_raw(gid));
    set_thread_groups(&[group]).map_err(refused)?;
    set_thread_res_gid(None, group, None).map_err(refused)?;
    set_thread_res_uid(None, user, None).map_err(refused) // the last: it takes the right to do the others
}

/// That root may run a gateway on `dir`.
///
/// # Errors
/// [`OwnerError::Foreign`].
pub fn check(dir: &Path) -> Result<(), OwnerError> {
    other_owner(dir).map_or(Ok(()), |(uid, _)| Err(OwnerError::Foreign { dir: dir.into(), uid }))
}

/// User and group of `dir` when we are root and it is not root's.
fn other_owner(dir: &Path) -> Option<(u32, u32)> {
    let owner = dir.metadata().ok().filter(|owner| geteuid().is_root() && owner.uid() != 0)?;
    Some((owner.uid(), owner.gid()))
}

/// Runs `act` with the rights of whoever typed the command, on a thread that ends with it.
///
/// # Panics
/// When `act` does.
pub fn as_caller<T: Send>(act: impl FnOnce() -> T + Send) -> T {
    let (user, group) = (getuid(), getgid());
    if (user, group) == (geteuid(), getegid()) {
        return act();
    }
    let run = || {
        // Going back to the real user is always allowed (setresuid(2)).
        set_thread_res_uid(None, user, None).expect("the real user");
        set_thread_res_gid(None, group, None).expect("the real group");
        act()
    };
    match std::thread::scope(|scope| scope.spawn(run).join()) {
        Ok(done) => done,
        Err(panic) => std::panic::resume_unwind(panic),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::chown;

    #[test]
    fn root_takes_the_owners_rights_and_its_own_only_for_its_caller() {
        if !geteuid().is_root() {
            return; // nobody else has rights to give up
        }
        let folder = tempfile::tempdir().unwrap();
        let state = folder.path().join("state");
        fs::create_dir(&state).unwrap();
        check(&state).expect("root's own");
        chown(&state, Some(4711), Some(4712)).unwrap();
        fs::set_permissions(folder.path(), std::os::unix::fs::PermissionsExt::from_mode(0o711)).unwrap();
        assert!(matches!(check(&state), Err(OwnerError::Foreign { uid: 4711, .. })));
        // Threads share no rights: this one's are given up for good with it.
        std::thread::scope(|scope| {
            scope.spawn(|| {
                adopt(&state).unwrap();
                fs::write(state.join("made"), "").unwrap();
                let made = fs::metadata(state.join("made")).unwrap();
                assert_eq!((made.uid(), made.gid()), (4711, 4712));
                let denied = fs::write(folder.path().join("callers"), "").unwrap_err();
                assert_eq!(denied.kind(), io::ErrorKind::PermissionDenied);
                as_caller(|| fs::write(folder.path().join("callers"), "")).unwrap();
                let callers = fs::metadata(folder.path().join("callers")).unwrap();
                assert_eq!((callers.uid(), callers.gid()), (0, 0));
                assert_eq!(geteuid().as_raw(), 4711, "only while it acts");
            });
        });
    }

    #[test]
    fn a_missing_directory_changes_nothing() {
        adopt(Path::new("/nonexistent/state")).unwrap();
        check(Path::new("/nonexistent/state")).unwrap();
        assert_eq!(as_caller(geteuid), geteuid());
    }
}
