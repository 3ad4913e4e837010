//! Who may ask: root, the gateway's own user, and the group that owns the socket.
//!
//! The mode of the socket says so already; this holds when somebody has changed the mode.

use std::fs;
use std::io;
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
    let member = || peer.pid().is_some_and(|pid| supplementary_groups(pid).contains(&group));
    peer.gid() == group || member()
}

/// Who the caller is, for the audit.
pub(super) fn actor(stream: &UnixStream) -> String {
    stream.peer_cred().map_or_else(|_| "unknown".to_owned(), |peer| audit::actor(peer.uid(), Via::Socket))
}

/// The groups in `/proc/PID/status` (proc(5)).
fn supplementary_groups(pid: i32) -> Vec<u32> {
    let Ok(status) = fs::read_to_string(format!("/proc/{pid}/status")) else { return Vec::new() };
    let groups = status.lines().find_map(|line| line.strip_prefix("Groups:")).unwrap_or_default();
    groups.split_whitespace().filter_map(|group| group.parse().ok()).collect()
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
        assert!(supplementary_groups(-1).is_empty());
    }
}
