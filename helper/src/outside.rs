//! Sockets whose packets go beside the tunnel and past the kill switch: the helper's own, and nobody else's.

use std::io;
use std::os::fd::AsFd;

use socket2::SockRef;

/// Sends what leaves this socket beside the tunnel, by the tunnel's mark (socket(7), `SO_MARK`).
///
/// # Errors
/// What the OS says; `CAP_NET_ADMIN` is needed.
#[cfg(target_os = "linux")]
pub fn send(socket: &impl AsFd, fwmark: u32) -> io::Result<()> {
    SockRef::from(socket).set_mark(fwmark)
}
