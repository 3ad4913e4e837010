//! Linux: `SO_PEERCRED` of unix(7), fixed at connect(2).

use std::io;

use tokio::net::UnixStream;

/// Nothing more is needed: what is known cannot change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Process;

pub(super) fn of(stream: &UnixStream) -> io::Result<(u32, Process)> {
    Ok((rustix::net::sockopt::socket_peercred(stream)?.uid.as_raw(), Process))
}

pub(super) fn is_still(_: &UnixStream, _: Process) -> bool {
    true
}
