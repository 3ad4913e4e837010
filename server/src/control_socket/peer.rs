//! Who may ask: root, the gateway's own user, and the group that owns the socket.
//!
//! The mode of the socket says so already; this holds when somebody has changed the mode.

#![allow(unsafe_code, reason = "one socket option that neither std nor rustix has")]

use std::fs;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{MetadataExt, chown};
use std::path::Path;

use tokio::net::UnixStream;

use crate::audit::{self, Via};

/// The group whose members administer the gateway.
const GROUP: &str = "culvert-server";

/// Gives a new socket or folder to the administrators' group, when there is one and we may.
pub(super) fn own_group(path: &Path) -> io::Result<()> {
    let Some(group) = group_id(GROUP) else { return Ok(()) };
    match chown(path, None, Some(group)) {
        // Not root and no member: it stays ours.
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => Ok(()),
        other => other,
    }
}

/// Judges by the credentials of the moment when the caller connected (`SO_PEERCRED`, unix(7)).
pub(super) fn may_ask(stream: &UnixStream, socket: &Path) -> bool {
    let Ok(peer) = stream.peer_cred() else { return false };
    if peer.uid() == 0 || peer.uid() == rustix::process::geteuid().as_raw() {
        return true;
    }
    let Ok(group) = fs::metadata(socket).map(|socket| socket.gid()) else { return false };
    peer.gid() == group || supplementary_groups(stream).contains(&group)
}

/// Who the caller is, for the audit.
pub(super) fn actor(stream: &UnixStream) -> String {
    stream.peer_cred().map_or_else(|_| "unknown".to_owned(), |peer| audit::actor(peer.uid(), Via::Socket))
}

/// The caller's groups at the same moment (`SO_PEERGROUPS`, Linux 4.13). Not from `/proc`: the unit's
/// `ProtectProc=invisible` hides the processes of others there, and a number may be another process by then.
fn supplementary_groups(stream: &UnixStream) -> Vec<u32> {
    let mut groups: Vec<libc::gid_t> = vec![0; 64];
    loop {
        let mut bytes = size_of_val(groups.as_slice()) as libc::socklen_t;
        // SAFETY: the kernel writes at most `bytes` bytes into `groups`, which has as many, and says in `bytes` how
        // many there are.
        let result = unsafe {
            libc::getsockopt(
                stream.as_raw_fd(),
                libc::SOL_SOCKET,
                libc::SO_PEERGROUPS,
                groups.as_mut_ptr().cast(),
                &raw mut bytes,
            )
        };
        let count = bytes as usize / size_of::<libc::gid_t>();
        if result == 0 {
            groups.truncate(count);
            return groups;
        }
        // ERANGE: there are more, and `bytes` says how many (65,536 at most, NGROUPS_MAX).
        if io::Error::last_os_error().raw_os_error() != Some(libc::ERANGE) || count <= groups.len() {
            return Vec::new();
        }
        groups.resize(count, 0);
    }
}

/// The number of a group of `/etc/group` (group(5)).
fn group_id(name: &str) -> Option<u32> {
    let groups = fs::read_to_string("/etc/group").ok()?;
    groups.lines().find_map(|line| {
        let mut fields = line.split(':');
        (fields.next() == Some(name)).then(|| fields.nth(1)?.parse().ok()).flatten()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn groups_are_found_where_the_system_keeps_them() {
        assert_eq!(group_id("root"), Some(0));
        assert_eq!(group_id("no-such-group"), None);
    }

    #[tokio::test]
    async fn a_caller_has_all_its_groups_however_many() {
        let (ours, _theirs) = UnixStream::pair().unwrap();
        let mut own: Vec<u32> = rustix::process::getgroups().unwrap().iter().map(|group| group.as_raw()).collect();
        let mut seen = supplementary_groups(&ours);
        own.sort_unstable();
        seen.sort_unstable();
        assert_eq!(seen, own);
        if rustix::process::geteuid().is_root() {
            let many: Vec<u32> = (1_000..1_300).collect();
            let groups: Vec<_> = many.iter().map(|group| rustix::process::Gid::from_raw(*group)).collect();
            // The groups of this test's thread alone, and of the pair that it makes now.
            rustix::thread::set_thread_groups(&groups).unwrap();
            let (ours, _theirs) = UnixStream::pair().unwrap();
            assert_eq!(supplementary_groups(&ours), many);
        }
    }
}
