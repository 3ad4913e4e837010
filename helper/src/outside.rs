//! Sockets whose packets go beside the tunnel and past the kill switch: the helper's own, and nobody else's. `cfg`
//! appears here and nowhere above.
//!
//! Linux: the tunnel's firewall mark (socket(7), `SO_MARK`), which only root can set. macOS: bound to the interface
//! below the tunnel (`IP_BOUND_IF`), and told apart by the process's group, which has the mark's number and no member:
//! pf knows the group of a socket, and no marks.

use std::io;
use std::os::fd::AsFd;

use socket2::SockRef;

/// Makes this process known to the kill switch. Before the first socket.
///
/// # Errors
/// What the OS says.
#[cfg(target_os = "linux")]
pub fn adopt(_: u32) -> io::Result<()> {
    Ok(()) // each socket has the mark
}

/// Sends what leaves this socket beside the tunnel.
///
/// # Errors
/// What the OS says; `CAP_NET_ADMIN` is needed.
#[cfg(target_os = "linux")]
pub fn send(socket: &impl AsFd, fwmark: u32) -> io::Result<()> {
    SockRef::from(socket).set_mark(fwmark)
}

/// Makes this process known to the kill switch: its effective group is the mark's number. Before the first socket.
///
/// # Errors
/// What the OS says; root is needed.
#[cfg(target_os = "macos")]
#[allow(unsafe_code, reason = "setegid has no safe wrapper in the crates we use")]
pub fn adopt(fwmark: u32) -> io::Result<()> {
    // SAFETY: takes a number and changes only this process's credentials.
    let result = unsafe { libc::setegid(fwmark) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Sends what leaves this socket through the interface below the tunnel, whatever the routes say. Without a network
/// there is none to choose; what is sent fails then, and the next socket is bound to what there is by then.
///
/// # Errors
/// What the OS says.
#[cfg(target_os = "macos")]
pub fn send(socket: &impl AsFd, _: u32) -> io::Result<()> {
    let Some(index) = crate::underlay::primary_interface() else { return Ok(()) };
    let socket = SockRef::from(socket);
    // Of the other family's option a socket knows nothing; a dual-stack one takes both.
    let (v4, v6) = (socket.bind_device_by_index_v4(Some(index)), socket.bind_device_by_index_v6(Some(index)));
    v6.or(v4)
}
