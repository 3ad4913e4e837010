//! The device that inner packets come from and go to.
//!
//! A small trait, so that the shard loop is the same over a Linux TUN, a macOS utun and a pair of
//! queues in a test. All `unsafe` of the crate is in the files below this one. Not here: splitting
//! and coalescing (`segment`), routes and addresses (they belong to the program that owns them).

#[cfg(target_os = "linux")]
pub mod linux;
#[cfg(target_os = "macos")]
pub mod macos;
pub mod memory;
#[cfg(any(target_os = "macos", test))]
mod utun;

use std::fmt;
use std::io;
use std::os::fd::BorrowedFd;

use crate::segment::{Frame, Intake, SuperPacket};

/// What the other side of the device may hand over and take in one piece.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Offload {
    /// TCP super-packets with partial checksums, both ways.
    pub tcp: bool,
    /// The same of UDP (`TUN_F_USO4`, `TUN_F_USO6`; Linux 6.2).
    pub udp: bool,
}

/// A source and sink of inner packets. Every call returns at once.
pub trait Device: fmt::Debug + Send + 'static {
    /// The interface's name, such as `culvert0`.
    fn name(&self) -> &str;

    /// What the device can take and give.
    fn offload(&self) -> Offload;

    /// The descriptor that becomes readable when packets wait; `None` for a device in memory.
    fn poll_fd(&self) -> Option<BorrowedFd<'_>>;

    /// Reads up to `budget` frames, into `intake` if that saves a copy, and gives each to `take`.
    ///
    /// Returns how many were read; fewer than `budget` means the device is empty.
    ///
    /// # Errors
    /// Whatever the OS says once the interface is gone; never [`io::ErrorKind::WouldBlock`].
    fn read_batch(&mut self, budget: usize, intake: &mut Intake, take: &mut dyn FnMut(Frame<'_>)) -> io::Result<usize>;

    /// Writes frames in order and returns how many the device took; fewer means it is full.
    /// A frame that the OS refuses as malformed counts as taken.
    ///
    /// # Errors
    /// Whatever the OS says once the interface is gone; never [`io::ErrorKind::WouldBlock`].
    fn write_batch(&mut self, frames: &[SuperPacket]) -> io::Result<usize>;

    /// Sets the interface's MTU, in bytes of one inner packet.
    ///
    /// # Errors
    /// Whatever the OS says.
    fn set_mtu(&mut self, mtu_bytes: u16) -> io::Result<()>;
}
