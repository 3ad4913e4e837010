//! Linux: `SO_PEERCRED` of unix(7), fixed at connect(2).

use std::io;

use tokio::net::UnixStream;

pub(super) fn uid(stream: &UnixStream) -> io::Result<u32> {
    Ok(rustix::net::sockopt::socket_peercred(stream)?.uid.as_raw())
}
