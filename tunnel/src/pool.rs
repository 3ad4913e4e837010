//! Receive buffers that come back by themselves.
//!
//! A buffer of 64 KiB is filled by one `recvmmsg` slot, cut into datagrams without copying, and
//! decrypted in place; inner packets are slices of it until the device has them. When the last
//! slice is dropped, the buffer is taken again. Its bytes are zeroed once, when it is made.

#![allow(unsafe_code, reason = "taking a buffer again without zeroing 64 KiB each time")]

use bytes::BytesMut;

/// Bytes of one buffer: the largest GRO batch that Linux hands over.
pub const BUFFER_BYTES: usize = 65_536;

/// Buffers handed out one after the other and taken back when nobody holds a slice of them.
#[derive(Debug, Default)]
pub struct Pool {
    /// Handles on the tails of buffers whose heads may still be in use.
    waiting: Vec<BytesMut>,
}

impl Pool {
    /// The most buffers that wait to be free; beyond it they are given back to the allocator.
    const MOST_WAITING: usize = 64;

    /// A buffer of [`BUFFER_BYTES`] initialised bytes (their content is whatever was there last).
    pub fn take(&mut self) -> BytesMut {
        // Newest first: its memory is warmest.
        for index in (0..self.waiting.len()).rev() {
            if self.waiting[index].try_reclaim(BUFFER_BYTES) {
                let mut buffer = self.waiting.swap_remove(index);
                debug_assert!(buffer.is_empty() && buffer.capacity() >= BUFFER_BYTES);
                // SAFETY: `put_back` only keeps buffers that `take` made, and those were zeroed to
                // their whole length at first; a reclaimed handle begins at the same byte and no
                // one else holds it. `u8` has no invalid value.
                unsafe { buffer.set_len(BUFFER_BYTES) };
                return buffer;
            }
        }
        BytesMut::zeroed(BUFFER_BYTES)
    }

    /// Gives back what is left of a buffer after its filled head was split off.
    pub fn put_back(&mut self, mut rest: BytesMut) {
        // The oldest gives way: a slice that is never dropped must not cost a place for ever.
        if self.waiting.len() == Self::MOST_WAITING {
            self.waiting.remove(0);
        }
        rest.clear();
        self.waiting.push(rest);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_buffer_is_taken_again_once_its_slices_are_gone() {
        let mut pool = Pool::default();
        let mut first = pool.take();
        let address = first.as_ptr();
        let head = first.split_to(1200).freeze();
        pool.put_back(first);

        let second = pool.take();
        assert_ne!(second.as_ptr(), address, "the head still holds the first buffer");
        assert_eq!(second.len(), BUFFER_BYTES);

        drop(head);
        let third = pool.take();
        assert_eq!(third.as_ptr(), address);
        assert_eq!(third.len(), BUFFER_BYTES);
    }

    #[test]
    fn a_wholly_used_buffer_comes_back_too() {
        let mut pool = Pool::default();
        let mut buffer = pool.take();
        let all = buffer.split_to(BUFFER_BYTES);
        pool.put_back(buffer);
        drop(all);
        assert_eq!(pool.take().len(), BUFFER_BYTES);
    }
}
