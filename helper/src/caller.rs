//! Who calls? The kernel says; nothing that the caller sends is believed. `cfg` appears here and
//! nowhere above. Issue 4 adds the code signature on macOS.

use std::io;

use tokio::net::UnixStream;

#[cfg(target_os = "linux")]
#[path = "caller/linux.rs"]
mod imp;
#[cfg(target_os = "macos")]
#[path = "caller/macos.rs"]
mod imp;

/// The process at the other end of the socket, at the moment it connected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Caller {
    /// Its effective user.
    pub uid: u32,
}

impl Caller {
    /// Asks the kernel.
    ///
    /// # Errors
    /// Whatever the kernel says; the caller must not be served then.
    pub fn of(stream: &UnixStream) -> io::Result<Self> {
        imp::uid(stream).map(|uid| Self { uid })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_kernel_names_this_user() {
        let (ours, _theirs) = UnixStream::pair().unwrap();
        assert_eq!(Caller::of(&ours).unwrap().uid, rustix::process::geteuid().as_raw());
    }
}
