//! Buffers that come back by themselves.
//!
//! A buffer is filled by one `recvmmsg` slot or by reads of the device, and cut into packets without
//! copying. When the last slice is dropped, the buffer is taken again. Its bytes are zeroed once,
//! when it is made.

#![allow(unsafe_code, reason = "taking a buffer again without zeroing it each time")]

use bytes::BytesMut;

/// Buffers handed out one after the other and taken back when nobody holds a slice of them.
#[derive(Debug)]
pub struct Pool {
    /// Bytes of one buffer.
    size: usize,
    /// Handles on the tails of buffers whose heads may still be in use.
    waiting: Vec<BytesMut>,
}

impl Pool {
    /// The most buffers that wait to be free; beyond it they are given back to the allocator.
    const MOST_WAITING: usize = 64;

    /// Of buffers of `size` bytes each.
    pub fn new(size: usize) -> Self {
        Self { size, waiting: Vec::new() }
    }

    /// A buffer of initialised bytes (their content is whatever was there last).
    pub fn take(&mut self) -> BytesMut {
        // Newest first: its memory is warmest.
        for index in (0..self.waiting.len()).rev() {
            if self.waiting[index].try_reclaim(self.size) {
                let mut buffer = self.waiting.swap_remove(index);
                debug_assert!(buffer.is_empty() && buffer.capacity() >= self.size);
                // SAFETY: `put_back` only keeps buffers that `take` made, and those were zeroed to
                // their whole length at first; a reclaimed handle begins at the same byte and no
                // one else holds it. `u8` has no invalid value.
                unsafe { buffer.set_len(self.size) };
                return buffer;
            }
        }
        BytesMut::zeroed(self.size)
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

    const BUFFER_BYTES: usize = 65_536;

    #[test]
    fn a_buffer_is_taken_again_once_its_slices_are_gone() {
        let mut pool = Pool::new(BUFFER_BYTES);
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
        let mut pool = Pool::new(BUFFER_BYTES);
        let mut buffer = pool.take();
        let all = buffer.split_to(BUFFER_BYTES);
        pool.put_back(buffer);
        drop(all);
        assert_eq!(pool.take().len(), BUFFER_BYTES);
    }
}
