//! Where frames of the device are read into, so that cutting a super-packet copies nothing.
//!
//! A super-packet has one header, and each of its packets needs one of its own. It is therefore read
//! with gaps (`readv`): the header and the first segment, a gap as long as the header, the second
//! segment, and so on. Cutting then writes headers into the gaps, and every packet is a slice of the
//! buffer. How long header and segments are must be known before the read: the last super-packet
//! tells, since a host that sends much sends alike. A frame that is otherwise is closed up and cut
//! by copying, and tells how the next one is read.

use std::io::IoSliceMut;

use bytes::{Buf, Bytes, BytesMut};

use super::VnetHeader;
use super::split::{Cut, complete_checksum};
use crate::packet::{Dropped, Header};
use crate::pool::Pool;

/// Segments that are read with gaps; more of them (below 1,024 bytes each) are cut by copying.
const MOST_GAPS: usize = 63;
/// Headers longer than this (IPv6 extensions) are cut by copying.
const LONGEST_HEAD: usize = 120;
/// Segments longer than this (jumbo frames) are cut by copying: there are few of them in a frame.
const LONGEST_SEGMENT: usize = 4096;
/// The largest frame with its virtio header and its gaps.
/// The last slice may reach beyond the frame by almost a segment.
const MOST_BYTES: usize = VnetHeader::LEN + 65_536 + LONGEST_SEGMENT + (MOST_GAPS + 1) * LONGEST_HEAD;
/// One buffer: a super-packet and many small packets behind it.
const BUFFER_BYTES: usize = 2 * 65_536 + MOST_GAPS * LONGEST_HEAD;

/// Single packets in a row after which gaps are not expected any more: they cost a little.
const SINGLES: u32 = 8;

/// Slices that [`Intake::read_with`] may hand to `readv`.
pub const MAX_READ_SLICES: usize = MOST_GAPS + 1;

/// How the next frame is read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Layout {
    /// IP and transport header, in bytes.
    head: usize,
    /// Payload bytes of each segment; 0: without gaps.
    size: usize,
}

impl Layout {
    /// Where byte `at` of a frame lies in the buffer, behind the virtio header.
    fn place(self, at: usize) -> usize {
        if self.size == 0 || at < self.head + self.size {
            return at;
        }
        at + (at - self.head) / self.size * self.head
    }
}

/// Buffers for frames, and how the next frame will be read.
#[derive(Debug)]
pub struct Intake {
    pool: Pool,
    /// Initialised to its whole length.
    buffer: BytesMut,
    layout: Layout,
    /// Single packets since the last super-packet.
    singles: u32,
}

impl Default for Intake {
    fn default() -> Self {
        let mut pool = Pool::new(BUFFER_BYTES);
        let buffer = pool.take();
        Self { pool, buffer, layout: Layout::default(), singles: 0 }
    }
}

impl Intake {
    /// Reads one frame, virtio header first, by `read`, which gets the slices for one `readv` and
    /// returns what that returned.
    ///
    /// `Ok(None)`: it read less than a virtio header.
    ///
    /// # Errors
    /// Those of `read`.
    pub fn read_with<E>(
        &mut self,
        read: impl FnOnce(&mut [IoSliceMut<'_>]) -> Result<usize, E>,
    ) -> Result<Option<Frame<'_>>, E> {
        if self.buffer.len() < MOST_BYTES {
            let fresh = self.pool.take();
            self.pool.put_back(std::mem::replace(&mut self.buffer, fresh));
        }
        let Layout { head, size } = self.layout;
        let len = if size == 0 {
            read(&mut [IoSliceMut::new(&mut self.buffer[..VnetHeader::LEN + 65_536])])?
        } else {
            let (first, mut rest) = self.buffer.split_at_mut(VnetHeader::LEN + head + size);
            let mut slices: [IoSliceMut<'_>; MAX_READ_SLICES] = std::array::from_fn(|_| IoSliceMut::new(&mut []));
            slices[0] = IoSliceMut::new(first);
            let (mut used, mut payload) = (1, size);
            while payload < 65_536 && used < MAX_READ_SLICES {
                let (_gap, behind) = rest.split_at_mut(head);
                let (segment, behind) = behind.split_at_mut(size);
                slices[used] = IoSliceMut::new(segment);
                rest = behind;
                used += 1;
                payload += size;
            }
            read(&mut slices[..used])?
        };
        let Some(len) = len.checked_sub(VnetHeader::LEN) else { return Ok(None) };
        let Some((vnet, _)) = self.buffer.split_first_chunk() else { return Ok(None) };
        Ok(Some(Frame { vnet: VnetHeader::from_bytes(vnet), body: Body::Read { intake: self, len } }))
    }

    /// The frame without gaps; they are closed by moving what is behind them.
    fn close_up(&mut self, len: usize) -> &[u8] {
        let Layout { head, size } = self.layout;
        let mut at = head + size;
        while size > 0 && at < len {
            let from = VnetHeader::LEN + self.layout.place(at);
            let n = size.min(len - at);
            self.buffer.copy_within(from..from + n, VnetHeader::LEN + at);
            at += n;
        }
        &self.buffer[VnetHeader::LEN..VnetHeader::LEN + len]
    }

    /// Takes `len` bytes behind the virtio header out of the buffer.
    fn take(&mut self, len: usize) -> Bytes {
        let mut taken = self.buffer.split_to(VnetHeader::LEN + len).freeze();
        taken.advance(VnetHeader::LEN);
        taken
    }

    /// One packet as it came, its checksum completed.
    fn whole(&mut self, vnet: &VnetHeader, len: usize) -> Option<Bytes> {
        self.close_up(len);
        complete_checksum(vnet, &mut self.buffer[VnetHeader::LEN..VnetHeader::LEN + len])?;
        self.singles += 1;
        if self.singles >= SINGLES {
            self.layout = Layout::default();
        }
        Some(self.take(len))
    }

    fn cut(
        &mut self,
        vnet: &VnetHeader,
        len: usize,
        spare: &mut BytesMut,
        emit: &mut impl FnMut(Bytes),
    ) -> Option<usize> {
        if !vnet.is_super() {
            emit(self.whole(vnet, len)?);
            return Some(1);
        }
        let contiguous = self.contiguous(len);
        let cut = Cut::new(vnet, &self.buffer[VnetHeader::LEN..VnetHeader::LEN + contiguous], len)?;
        let found = Layout { head: cut.head_len(), size: cut.size() };
        self.singles = 0;
        if found != self.layout {
            let segments = cut.by_copying(self.close_up(len), spare, emit);
            let many_enough = found.size * MOST_GAPS >= 65_536 && found.size <= LONGEST_SEGMENT;
            let with_gaps = found.head <= LONGEST_HEAD && many_enough;
            self.layout = if with_gaps { found } else { Layout::default() };
            return Some(segments);
        }
        let mut head = [0; LONGEST_HEAD];
        head[..found.head].copy_from_slice(&self.buffer[VnetHeader::LEN..VnetHeader::LEN + found.head]);
        self.buffer.advance(VnetHeader::LEN);
        let segments = cut.segments();
        for index in 0..segments {
            let payload = (len - found.head - index * found.size).min(found.size);
            let mut packet = self.buffer.split_to(found.head + payload);
            packet[..found.head].copy_from_slice(&head[..found.head]);
            cut.adjust(&mut packet, index);
            emit(packet.freeze());
        }
        Some(segments)
    }

    /// How much of a frame of `len` bytes lies in one piece at the front.
    fn contiguous(&self, len: usize) -> usize {
        let Layout { head, size } = self.layout;
        if size == 0 { len } else { len.min(head + size) }
    }
}

/// One frame of the device: a packet, or a super-packet as [`Self::vnet`] says.
#[derive(Debug)]
pub struct Frame<'a> {
    /// What the device says of it.
    pub vnet: VnetHeader,
    body: Body<'a>,
}

#[derive(Debug)]
enum Body<'a> {
    /// In the device's own memory.
    Lent(&'a [u8]),
    /// In the buffer it was read into, perhaps with gaps.
    Read { intake: &'a mut Intake, len: usize },
}

impl<'a> Frame<'a> {
    /// A frame in somebody else's memory.
    pub fn lent(vnet: VnetHeader, frame: &'a [u8]) -> Self {
        Self { vnet, body: Body::Lent(frame) }
    }

    /// Bytes of the whole frame, without the virtio header.
    #[allow(clippy::len_without_is_empty, reason = "what a device gives is never empty")]
    pub fn len(&self) -> usize {
        match &self.body {
            Body::Lent(frame) => frame.len(),
            Body::Read { len, .. } => *len,
        }
    }

    /// Its header, checked as [`Header::parse`] does.
    ///
    /// # Errors
    /// [`Dropped::Malformed`] as there.
    pub fn header(&self) -> Result<Header, Dropped> {
        match &self.body {
            Body::Lent(frame) => Header::parse(frame),
            Body::Read { intake, len } => {
                let front = VnetHeader::LEN + intake.contiguous(*len);
                Header::parse_front(&intake.buffer[VnetHeader::LEN..front], *len)
            }
        }
    }

    /// Makes whole packets of it, checksums complete, and gives them to `emit` in order; returns how
    /// many there were. `spare` is memory for packets that must be copied.
    ///
    /// # Errors
    /// [`Dropped::Malformed`] when headers and lengths contradict each other; nothing was emitted then.
    pub fn cut(self, spare: &mut BytesMut, emit: &mut impl FnMut(Bytes)) -> Result<usize, Dropped> {
        match self.body {
            Body::Lent(frame) => super::split_into(spare, &self.vnet, frame, emit),
            Body::Read { intake, len } => intake.cut(&self.vnet, len, spare, emit).ok_or(Dropped::Malformed { len }),
        }
    }

    /// The whole frame in one piece.
    pub fn bytes(&mut self) -> &[u8] {
        match &mut self.body {
            Body::Lent(frame) => frame,
            Body::Read { intake, len } => {
                let len = *len;
                let closed = intake.close_up(len);
                debug_assert_eq!(closed.len(), len);
                // Closed up now: it must not be closed up again.
                intake.layout = Layout::default();
                &intake.buffer[VnetHeader::LEN..VnetHeader::LEN + len]
            }
        }
    }
}
