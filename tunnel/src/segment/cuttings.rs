//! Where frames of the device are cut into packets, without an allocation a frame.
//!
//! Packets are slices of a buffer until QUIC has encrypted them. While they wait the buffer cannot be
//! taken again, and a turn reads several frames before anything leaves; so there are a few buffers.

use bytes::BytesMut;

/// Bytes of one buffer: a super-packet with the headers of all its packets.
const BUFFER_BYTES: usize = 64 * 1024;
/// Buffers that are kept: what fills one link's datagram queue of 1 MiB, and some.
const MOST_KEPT: usize = 20;

/// Buffers that are taken again once all packets cut from them are gone.
#[derive(Debug, Default)]
pub struct Cuttings {
    /// The last one is cut from now.
    buffers: Vec<BytesMut>,
}

impl Cuttings {
    /// An empty buffer with room for `len` bytes.
    pub(super) fn room(&mut self, len: usize) -> &mut BytesMut {
        // Newest first: its memory is warmest.
        let free = (0..self.buffers.len()).rev().find(|&index| self.buffers[index].try_reclaim(len));
        let buffer = match free {
            Some(index) => self.buffers.remove(index),
            None => {
                // The oldest gives way: a packet that never leaves must not cost a place for ever.
                if self.buffers.len() == MOST_KEPT {
                    self.buffers.remove(0);
                }
                BytesMut::with_capacity(len.max(BUFFER_BYTES))
            }
        };
        self.buffers.push(buffer);
        self.buffers.last_mut().expect("it was just put there")
    }
}

#[cfg(test)]
mod tests {
    use bytes::{BufMut, Bytes};

    use super::*;

    fn cut(cuttings: &mut Cuttings, len: usize) -> Bytes {
        let buffer = cuttings.room(len);
        buffer.put_bytes(7, len);
        buffer.split().freeze()
    }

    #[test]
    fn packets_share_a_buffer_while_it_has_room() {
        let mut cuttings = Cuttings::default();
        let packets: Vec<_> = (0..40).map(|_| cut(&mut cuttings, 1500)).collect();
        assert_eq!(packets[39].as_ptr() as usize - packets[0].as_ptr() as usize, 39 * 1500);
    }

    #[test]
    fn a_full_queue_is_cut_from_the_same_buffers_again_and_again() {
        let mut cuttings = Cuttings::default();
        let mut first: Vec<usize> = Vec::new();
        for round in 0..5 {
            let queue: Vec<_> = (0..16).map(|_| cut(&mut cuttings, 60_000)).collect();
            let mut places: Vec<_> = queue.iter().map(|packet| packet.as_ptr() as usize).collect();
            places.sort_unstable();
            if round == 0 {
                first = places;
            } else {
                assert_eq!(places, first);
            }
        }
    }

    #[test]
    fn packets_that_never_leave_cost_no_more_than_the_kept_buffers() {
        let mut cuttings = Cuttings::default();
        let stuck: Vec<_> = (0..100).map(|_| cut(&mut cuttings, 60_000)).collect();
        assert_eq!(cuttings.buffers.len(), MOST_KEPT);
        drop(stuck);
        let place = cut(&mut cuttings, 60_000).as_ptr();
        assert_eq!(cut(&mut cuttings, 60_000).as_ptr(), place);
    }
}
