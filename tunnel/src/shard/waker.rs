//! Wakes a shard out of its `poll`: an eventfd on Linux, a pipe elsewhere. Safe calls only.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

/// The sending end. Cheap to clone; any thread may wake.
#[derive(Clone, Debug)]
pub struct Waker(Arc<OwnedFd>);

/// The end that a shard polls.
#[derive(Debug)]
pub(crate) struct Wakeup(Source);

#[cfg(target_os = "linux")]
type Source = Arc<OwnedFd>;
#[cfg(not(target_os = "linux"))]
type Source = OwnedFd;

/// A connected pair, both non-blocking.
///
/// # Errors
/// When the process has no file descriptor left.
#[cfg(target_os = "linux")]
pub(crate) fn pair() -> io::Result<(Waker, Wakeup)> {
    use rustix::event::{EventfdFlags, eventfd};
    let fd = Arc::new(eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?);
    Ok((Waker(fd.clone()), Wakeup(fd)))
}

/// A connected pair, both non-blocking.
///
/// # Errors
/// When the process has no file descriptor left.
#[cfg(not(target_os = "linux"))]
pub(crate) fn pair() -> io::Result<(Waker, Wakeup)> {
    use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};
    use rustix::io::{FdFlags, fcntl_setfd};
    let (read, write) = rustix::pipe::pipe()?;
    for fd in [&read, &write] {
        fcntl_setfd(fd, FdFlags::CLOEXEC)?;
        fcntl_setfl(fd, fcntl_getfl(fd)? | OFlags::NONBLOCK)?;
    }
    Ok((Waker(Arc::new(write)), Wakeup(read)))
}

impl Waker {
    /// Makes the shard's next (or present) poll return. Never blocks: a full pipe is awake already.
    pub fn wake(&self) {
        _ = rustix::io::write(&*self.0, &1u64.to_ne_bytes());
    }
}

impl Wakeup {
    /// Takes all wake-ups that are due.
    pub(crate) fn drain(&self) {
        let mut bytes = [0; 64];
        while rustix::io::read(&self.0, &mut bytes).is_ok_and(|n| n == bytes.len()) {}
    }
}

impl AsFd for Wakeup {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}
