//! Super-packets: what the kernel calls GSO and GRO, done on our side of the TUN device.
//!
//! With `IFF_VNET_HDR` the device gives and takes up to 64 KiB of one TCP flow at a time, behind a
//! virtio-net header that says how. [`split`] makes whole packets of what was read, since each
//! crosses the tunnel in its own datagram; [`Coalescer`] makes super-packets of what arrived, since
//! a system call per packet is what bounds throughput. Neither changes a byte that the other
//! end's stack could see: payloads, sequence numbers, options and order stay. All of it is pure.
//! Not here: reading and writing the device (`device`).

mod coalesce;
mod intake;
mod split;
#[cfg(test)]
mod tests;

use std::io::IoSlice;

use bytes::Bytes;

pub use coalesce::Coalescer;
pub use intake::{Frame, Intake, MAX_READ_SLICES};
pub use split::{split, split_into};

/// The virtio-net header of a TUN frame: `struct virtio_net_hdr` of linux/virtio_net.h (virtio 1.2
/// section 5.1.6), without `num_buffers`, in the machine's byte order as a TUN device has it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct VnetHeader {
    /// [`Self::NEEDS_CSUM`] or 0.
    pub flags: u8,
    /// [`Self::GSO_NONE`], [`Self::GSO_TCPV4`], [`Self::GSO_TCPV6`] or [`Self::GSO_UDP_L4`], perhaps with [`Self::GSO_ECN`].
    pub gso_type: u8,
    /// IP and transport header in bytes; a hint that is not to be trusted.
    pub hdr_len: u16,
    /// Payload bytes of every segment but the last.
    pub gso_size: u16,
    /// Where the checksummed bytes begin.
    pub csum_start: u16,
    /// Where the checksum field is, counted from `csum_start`.
    pub csum_offset: u16,
}

impl VnetHeader {
    /// Bytes on the device.
    pub const LEN: usize = 10;
    /// The checksum field holds only the pseudo-header's sum.
    pub const NEEDS_CSUM: u8 = 1;
    /// One packet.
    pub const GSO_NONE: u8 = 0;
    /// TCP segments over IPv4.
    pub const GSO_TCPV4: u8 = 1;
    /// TCP segments over IPv6.
    pub const GSO_TCPV6: u8 = 4;
    /// UDP datagrams of one flow.
    pub const GSO_UDP_L4: u8 = 5;
    /// With a TCP type: the first segment has CWR set (RFC 3168).
    pub const GSO_ECN: u8 = 0x80;

    /// Reads the header in front of a frame.
    pub fn from_bytes(bytes: &[u8; Self::LEN]) -> Self {
        let [flags, gso_type, a, b, c, d, e, f, g, h] = *bytes;
        Self {
            flags,
            gso_type,
            hdr_len: u16::from_ne_bytes([a, b]),
            gso_size: u16::from_ne_bytes([c, d]),
            csum_start: u16::from_ne_bytes([e, f]),
            csum_offset: u16::from_ne_bytes([g, h]),
        }
    }

    /// The header as the device takes it.
    pub fn to_bytes(&self) -> [u8; Self::LEN] {
        let [a, b] = self.hdr_len.to_ne_bytes();
        let [c, d] = self.gso_size.to_ne_bytes();
        let [e, f] = self.csum_start.to_ne_bytes();
        let [g, h] = self.csum_offset.to_ne_bytes();
        [self.flags, self.gso_type, a, b, c, d, e, f, g, h]
    }

    /// True when the frame holds more than one packet, or may.
    pub fn is_super(&self) -> bool {
        self.gso_type & !Self::GSO_ECN != Self::GSO_NONE
    }
}

/// One frame for the device: a packet as it came, or several TCP segments as one.
///
/// The frame is [`Self::header`] (only for a device with `IFF_VNET_HDR`) and then [`Self::parts`].
#[derive(Clone, Debug)]
pub struct SuperPacket {
    /// What the device is told about the frame.
    pub header: VnetHeader,
    /// Our own copy of the first segment's IP and TCP header, adjusted to the whole. Valid up to
    /// `head_len`, which is 0 for a packet that is sent as it came.
    head: [u8; Self::MAX_HEAD],
    head_len: u8,
    /// Never empty.
    pieces: Vec<Bytes>,
    len: usize,
}

impl SuperPacket {
    /// Payload pieces in one super-packet. A power of two that covers 65,535 bytes of 1,024-byte segments.
    pub const MAX_PIECES: usize = 64;
    /// Slices that [`Self::io_slices`] may fill: headers and pieces.
    pub const MAX_SLICES: usize = Self::MAX_PIECES + 2;
    /// The longest frame, in bytes.
    pub const MAX_LEN: usize = 65_535;
    /// IPv6 header and the longest TCP header.
    const MAX_HEAD: usize = 100;

    /// One packet, unchanged.
    pub fn single(packet: Bytes) -> Self {
        let mut frame = Self {
            header: VnetHeader::default(),
            head: [0; Self::MAX_HEAD],
            head_len: 0,
            pieces: Vec::with_capacity(1),
            len: 0,
        };
        frame.set_single(packet);
        frame
    }

    /// Makes this frame one unchanged packet; its allocation stays.
    fn set_single(&mut self, packet: Bytes) {
        self.header = VnetHeader::default();
        self.head_len = 0;
        self.len = packet.len();
        self.pieces.clear();
        self.pieces.push(packet);
    }

    /// Bytes of the frame, without the virtio-net header.
    #[allow(clippy::len_without_is_empty, reason = "a frame holds at least one packet")]
    pub fn len(&self) -> usize {
        self.len
    }

    /// The frame's bytes in order, without the virtio-net header.
    pub fn parts(&self) -> impl Iterator<Item = &[u8]> {
        let head = self.head();
        (!head.is_empty()).then_some(head).into_iter().chain(self.pieces.iter().map(Bytes::as_ref))
    }

    /// Fills `out` for one `writev` and returns how many slices that took, at most
    /// [`Self::MAX_SLICES`]. `vnet` is `self.header.to_bytes()`, or empty for a device without
    /// `IFF_VNET_HDR`. Slices that find no room in `out` are left out: give it `MAX_SLICES`.
    pub fn io_slices<'a>(&'a self, vnet: &'a [u8], out: &mut [IoSlice<'a>]) -> usize {
        let vnet = (!vnet.is_empty()).then_some(vnet);
        let mut used = 0;
        for (slot, part) in out.iter_mut().zip(vnet.into_iter().chain(self.parts())) {
            *slot = IoSlice::new(part);
            used += 1;
        }
        used
    }

    fn head(&self) -> &[u8] {
        self.head.get(..usize::from(self.head_len)).unwrap_or_default()
    }
}
