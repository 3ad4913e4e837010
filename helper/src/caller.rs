//! Who calls? The kernel says; nothing that the caller sends is believed. `cfg` appears here and
//! nowhere above.
//!
//! Linux knows the user, fixed at connect(2). macOS knows the process as well, but at the moment of asking: a caller
//! that hands its socket to a program that is trusted would be taken for it. So it is asked before anything is said
//! and again after every request, and a number that is made in between must come back first (`socket`).

use std::io;

use tokio::net::UnixStream;

#[cfg(target_os = "linux")]
#[path = "caller/linux.rs"]
mod imp;
#[cfg(target_os = "macos")]
#[path = "caller/macos.rs"]
mod imp;

/// True where a caller must show that it has been the same since it was asked about.
pub const WANTS_NONCE: bool = cfg!(target_os = "macos");

/// The process at the other end of the socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Caller {
    /// Its effective user.
    pub uid: u32,
    process: imp::Process,
}

impl Caller {
    /// Asks the kernel; on macOS also whether the caller's program is one of ours.
    ///
    /// # Errors
    /// Whatever the kernel says; the caller must not be served then.
    pub fn of(stream: &UnixStream) -> io::Result<Self> {
        let (uid, process) = imp::of(stream)?;
        Ok(Self { uid, process })
    }

    /// True while the same process, in the same program, is at the other end.
    pub fn is_still(self, stream: &UnixStream) -> bool {
        imp::is_still(stream, self.process)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_kernel_names_this_user() {
        let (ours, _theirs) = UnixStream::pair().unwrap();
        let caller = Caller::of(&ours).unwrap();
        assert_eq!(caller.uid, rustix::process::geteuid().as_raw());
        assert!(caller.is_still(&ours));
    }
}
