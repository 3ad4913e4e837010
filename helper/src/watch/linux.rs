//! Linux: inotify(7).
#![allow(unsafe_code, reason = "tokio wants to be told that a descriptor stays open")]

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use rustix::fs::inotify::{CreateFlags, Reader, WatchFlags, add_watch, init};
use tokio::io::unix::AsyncFd;

/// Watches one file and its folder: some programs write into it, others put another one in its place.
#[derive(Debug)]
pub struct FileWatch {
    fd: AsyncFd<OwnedFd>,
    path: PathBuf,
}

impl FileWatch {
    /// Must be called within a runtime.
    ///
    /// # Errors
    /// What the OS says, such as that the folder is not there.
    pub fn open(path: &Path) -> io::Result<Self> {
        let fd = init(CreateFlags::NONBLOCK | CreateFlags::CLOEXEC)?;
        if let Some(folder) = path.parent() {
            add_watch(&fd, folder, WatchFlags::CREATE | WatchFlags::MOVED_TO | WatchFlags::DELETE)?;
        }
        // SAFETY: an `OwnedFd` is open until it is dropped, and always the same; nobody takes it out of `fd`.
        let fd = unsafe { AsyncFd::register(fd) }.map_err(io::Error::other)?;
        let watch = Self { fd, path: path.into() };
        watch.follow();
        Ok(watch)
    }

    /// Waits for a change of something there. Cancel-safe.
    pub async fn next(&self) {
        loop {
            let Ok(mut ready) = self.fd.readable().await else { return std::future::pending().await };
            let mut buffer = [MaybeUninit::uninit(); 4096];
            let mut reader = Reader::new(&self.fd, &mut buffer);
            let mut any = false;
            while reader.next().is_ok() {
                any = true;
            }
            ready.clear_ready();
            if any {
                self.follow();
                return;
            }
        }
    }

    /// The file may be another one by now; one that is not there is its folder's news.
    fn follow(&self) {
        let _ = add_watch(&self.fd, &self.path, WatchFlags::CLOSE_WRITE | WatchFlags::MODIFY);
    }
}
