//! macOS: getpeereid(3), the effective uid at connect(2).
#![allow(unsafe_code, reason = "getpeereid has no safe wrapper in the crates we use")]

use std::io;
use std::os::fd::AsRawFd;

use tokio::net::UnixStream;

pub(super) fn uid(stream: &UnixStream) -> io::Result<u32> {
    let (mut uid, mut gid): (libc::uid_t, libc::gid_t) = (0, 0);
    // SAFETY: the descriptor is open for the life of `stream`, and both pointers are valid for writes.
    let result = unsafe { libc::getpeereid(stream.as_raw_fd(), &raw mut uid, &raw mut gid) };
    if result == 0 { Ok(uid) } else { Err(io::Error::last_os_error()) }
}
