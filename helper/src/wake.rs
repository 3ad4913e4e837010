//! The system's own word that it has been asleep; [`crate::clock`] finds out by itself, up to seconds later. `cfg`
//! appears here and nowhere above.

use tokio::task::JoinHandle;

#[cfg(target_os = "linux")]
#[path = "wake/linux.rs"]
mod imp;
#[cfg(target_os = "macos")]
#[path = "wake/macos.rs"]
mod imp;

/// Hears when this machine wakes.
#[derive(Debug)]
pub struct Wakes(State);

#[derive(Debug)]
enum State {
    /// Nobody waits for those who tell: a bus that is slow at boot must not hold up the helper.
    Opening(JoinHandle<Option<imp::Wakes>>),
    Open(Box<imp::Wakes>),
    Nobody,
}

impl Wakes {
    /// Must be called within a runtime.
    pub fn open() -> Self {
        Self(State::Opening(tokio::spawn(imp::Wakes::open())))
    }

    /// Waits until this machine has woken; for ever where there is nobody to tell. Cancel-safe.
    pub async fn next(&mut self) {
        loop {
            match &mut self.0 {
                State::Opening(opening) => {
                    self.0 = opening.await.ok().flatten().map_or(State::Nobody, |wakes| State::Open(Box::new(wakes)));
                }
                State::Open(wakes) => return wakes.next().await,
                State::Nobody => std::future::pending().await,
            }
        }
    }
}
