//! macOS: kqueue(2), `EVFILT_VNODE` on the folder, and on the file while it is there.
#![allow(unsafe_code, reason = "kevent(2) takes bare descriptors, and tokio wants to be told that one stays open")]

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::time::Duration;

use rustix::buffer::spare_capacity;
use rustix::event::kqueue::{Event, EventFilter, EventFlags, VnodeEvents, kevent, kqueue};
use tokio::io::unix::AsyncFd;

/// Watches one file and its folder: some programs write into it, others put another one in its place.
#[derive(Debug)]
pub struct FileWatch {
    fd: AsyncFd<OwnedFd>,
    path: PathBuf,
    /// Open as long as they are watched; closing one ends its events.
    _folder: Option<File>,
    file: Mutex<Option<File>>,
}

impl FileWatch {
    /// Must be called within a runtime.
    ///
    /// # Errors
    /// What the OS says, such as that the folder is not there.
    pub fn open(path: &Path) -> io::Result<Self> {
        let fd = kqueue()?;
        let folder = path.parent().map(File::open).transpose()?;
        if let Some(folder) = &folder {
            add(&fd, folder)?;
        }
        // SAFETY: an `OwnedFd` is open until it is dropped, and always the same; nobody takes it out of `fd`.
        let fd = unsafe { AsyncFd::register(fd) }.map_err(io::Error::other)?;
        let watch = Self { fd, path: path.into(), _folder: folder, file: Mutex::new(None) };
        watch.follow();
        Ok(watch)
    }

    /// Waits for a change of something there. Cancel-safe.
    pub async fn next(&self) {
        loop {
            let Ok(mut ready) = self.fd.readable().await else { return std::future::pending().await };
            let mut events: Vec<Event> = Vec::with_capacity(8);
            // SAFETY: no change is made, so no descriptor is given.
            let heard = unsafe { kevent(&self.fd, &[], spare_capacity(&mut events), Some(Duration::ZERO)) };
            if heard.is_ok_and(|count| count > 0) {
                self.follow();
                return;
            }
            ready.clear_ready();
        }
    }

    /// The file may be another one by now; one that is not there is its folder's news.
    fn follow(&self) {
        let file = File::open(&self.path).ok().filter(|file| add(self.fd.get_ref(), file).is_ok());
        if let Ok(mut watched) = self.file.lock() {
            *watched = file;
        }
    }
}

fn add(fd: &OwnedFd, file: &File) -> io::Result<()> {
    let flags = VnodeEvents::WRITE | VnodeEvents::EXTEND | VnodeEvents::DELETE | VnodeEvents::RENAME;
    let filter = EventFilter::Vnode { vnode: file.as_raw_fd(), flags };
    let change = Event::new(filter, EventFlags::ADD | EventFlags::CLEAR, std::ptr::null_mut());
    let mut none: [Event; 0] = [];
    // SAFETY: the file is open for the call, and closing it later takes its events out of the queue.
    unsafe { kevent(fd, &[change], &mut none, Some(Duration::ZERO)) }?;
    Ok(())
}
