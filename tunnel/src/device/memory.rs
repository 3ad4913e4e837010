//! A device in memory, for tests: what the far end pushes is read, what is written the far end takes.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::device::{Device, Offload};
use crate::segment::{Frame, Intake, SuperPacket, VnetHeader};
use crate::shard::waker::{self, Waker, Wakeup};

/// Packets that wait in one direction before more are refused.
const MOST_WAITING: usize = 4096;

#[derive(Debug, Default)]
struct Wires {
    to_tunnel: VecDeque<Vec<u8>>,
    from_tunnel: VecDeque<Vec<u8>>,
    mtu_bytes: u16,
}

/// The shard's end.
#[derive(Debug)]
pub struct MemoryDevice {
    wires: Arc<Mutex<Wires>>,
    readable: Wakeup,
}

/// The test's end: it plays the host's IP stack.
#[derive(Clone, Debug)]
pub struct Host {
    wires: Arc<Mutex<Wires>>,
    wake: Waker,
}

/// A device and its far end.
///
/// # Errors
/// When the process has no file descriptor left.
pub fn pair() -> io::Result<(MemoryDevice, Host)> {
    let (wake, readable) = waker::pair()?;
    let wires = Arc::new(Mutex::new(Wires::default()));
    Ok((MemoryDevice { wires: wires.clone(), readable }, Host { wires, wake }))
}

fn lock(wires: &Mutex<Wires>) -> MutexGuard<'_, Wires> {
    wires.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Host {
    /// Sends one IP packet into the tunnel; false when the queue is full.
    pub fn send(&self, packet: &[u8]) -> bool {
        let mut wires = lock(&self.wires);
        if wires.to_tunnel.len() >= MOST_WAITING {
            return false;
        }
        wires.to_tunnel.push_back(packet.to_vec());
        drop(wires);
        self.wake.wake();
        true
    }

    /// The next IP packet out of the tunnel.
    pub fn receive(&self) -> Option<Vec<u8>> {
        lock(&self.wires).from_tunnel.pop_front()
    }

    /// The MTU last set; 0 before that.
    pub fn mtu_bytes(&self) -> u16 {
        lock(&self.wires).mtu_bytes
    }
}

impl Device for MemoryDevice {
    fn name(&self) -> &str {
        "memory"
    }

    fn offload(&self) -> Offload {
        Offload::default()
    }

    fn poll_fd(&self) -> Option<BorrowedFd<'_>> {
        Some(self.readable.as_fd())
    }

    fn read_batch(
        &mut self,
        budget: usize,
        _intake: &mut Intake,
        take: &mut dyn FnMut(Frame<'_>),
    ) -> io::Result<usize> {
        for read in 0..budget {
            let packet = {
                let mut wires = lock(&self.wires);
                let packet = wires.to_tunnel.pop_front();
                if wires.to_tunnel.is_empty() {
                    self.readable.drain();
                }
                packet
            };
            let Some(packet) = packet else { return Ok(read) };
            take(Frame::lent(VnetHeader::default(), &packet));
        }
        Ok(budget)
    }

    fn write_batch(&mut self, frames: &[SuperPacket]) -> io::Result<usize> {
        let mut wires = lock(&self.wires);
        for (written, frame) in frames.iter().enumerate() {
            if wires.from_tunnel.len() >= MOST_WAITING {
                return Ok(written);
            }
            // A host without offload sees single packets.
            let whole = frame.parts().collect::<Vec<_>>().concat();
            let cut = crate::segment::split(&frame.header, &whole, &mut |packet| {
                wires.from_tunnel.push_back(packet.to_vec());
            });
            debug_assert!(cut.is_ok(), "the coalescer made a frame that cannot be split: {cut:?}");
        }
        Ok(frames.len())
    }

    fn set_mtu(&mut self, mtu_bytes: u16) -> io::Result<()> {
        lock(&self.wires).mtu_bytes = mtu_bytes;
        Ok(())
    }
}
