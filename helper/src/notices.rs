//! Notifications of the Linux kernel (netlink(7) multicast): that something changed, not what.

use std::io;

use rtnetlink::sys::{AsyncSocket, AsyncSocketExt, SocketAddr, TokioSocket};

/// A socket that hears of changes. It ends with this.
pub struct Notices(TokioSocket);

impl std::fmt::Debug for Notices {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Notices")
    }
}

impl Notices {
    /// Listens to these groups (by number, from 1) of a netlink family. Must be called within a runtime.
    ///
    /// # Errors
    /// What the kernel says to a netlink socket.
    pub fn open(family: isize, groups: &[u32]) -> io::Result<Self> {
        let mut socket = TokioSocket::new(family)?;
        let mask = groups.iter().fold(0, |mask, group| mask | 1 << (group - 1));
        socket.socket_mut().bind(&SocketAddr::new(0, mask))?;
        Ok(Self(socket))
    }

    /// Waits for a notification, or for news that some were lost. Cancel-safe.
    pub async fn next(&mut self) {
        let mut buffer = Vec::with_capacity(32 * 1024);
        // What exactly changed is not read; ENOBUFS says the same.
        if let Err(error) = self.0.recv(&mut buffer).await
            && error.kind() != io::ErrorKind::WouldBlock
            && error.raw_os_error() != Some(rustix::io::Errno::NOBUFS.raw_os_error())
        {
            tracing::error!(%error, "a netlink socket is of no use any more");
            std::future::pending::<()>().await;
        }
    }
}
