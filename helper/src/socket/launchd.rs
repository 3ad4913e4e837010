//! launchd's socket activation: launch_activate_socket(3).
#![allow(unsafe_code, reason = "launch_activate_socket has no safe wrapper in the crates we use")]

use std::ffi::{CStr, c_char, c_int, c_void};
use std::io;
use std::os::fd::{FromRawFd, OwnedFd};
use std::os::unix::net::UnixListener;

/// The key under `Sockets` of the helper's launchd plist.
const NAME: &CStr = c"helper";

unsafe extern "C" {
    fn launch_activate_socket(name: *const c_char, fds: *mut *mut c_int, count: *mut usize) -> c_int;
}

/// The socket that launchd listens on for us; `None` for a process that it did not start, or whose plist names none.
pub(super) fn handed_over() -> io::Result<Option<UnixListener>> {
    let (mut fds, mut count) = (std::ptr::null_mut::<c_int>(), 0);
    // SAFETY: the name ends with NUL, the out-pointers are valid for the call.
    match unsafe { launch_activate_socket(NAME.as_ptr(), &raw mut fds, &raw mut count) } {
        0 => {}
        libc::ENOENT | libc::ESRCH => return Ok(None),
        error => return Err(io::Error::from_raw_os_error(error)),
    }
    // SAFETY: on success there are `count` descriptors at `fds`, open and ours, and the array is ours to free.
    let owned: Vec<OwnedFd> = unsafe {
        let owned = (0..count).map(|place| OwnedFd::from_raw_fd(*fds.add(place))).collect();
        libc::free(fds.cast::<c_void>());
        owned
    };
    Ok(owned.into_iter().next().map(UnixListener::from))
}
