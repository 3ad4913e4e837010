//! A frame read from the device becomes whole packets: TCP and UDP segmentation in software.
//!
//! Nothing in the virtio-net header is trusted but the kind and `gso_size`; header lengths come
//! from the packet itself. What does not add up is [`Dropped::Malformed`].

use bytes::{BufMut, Bytes, BytesMut};

use super::VnetHeader;
use crate::checksum::{Sum, TCP, UDP};
use crate::packet::{Dropped, Fragment, Header};

/// TCP flags that only the last segment keeps.
const FIN_PSH: u8 = 0x01 | 0x08;
/// The TCP flag that only the first segment keeps (RFC 3168 section 6.1.2).
const CWR: u8 = 0x80;

/// Makes whole packets, checksums complete, of one frame, and gives them to `emit` in order.
///
/// Returns how many there were. They share one allocation, which is made here; a caller with
/// many frames has [`split_into`].
///
/// # Errors
/// [`Dropped::Malformed`] when headers and lengths contradict each other; nothing was emitted then.
pub fn split(header: &VnetHeader, frame: &[u8], emit: &mut impl FnMut(Bytes)) -> Result<usize, Dropped> {
    split_into(&mut BytesMut::new(), header, frame, emit)
}

/// As [`split`], with packets cut from `buffer`: its allocation is used again once all packets
/// cut from it are gone, and a fresh one (64 KiB if it began as large) is made when it is used up.
///
/// # Errors
/// As [`split`].
pub fn split_into(
    buffer: &mut BytesMut,
    header: &VnetHeader,
    frame: &[u8],
    emit: &mut impl FnMut(Bytes),
) -> Result<usize, Dropped> {
    let malformed = Dropped::Malformed { len: frame.len() };
    buffer.clear();
    if header.is_super() {
        let cut = Cut::new(header, frame, frame.len()).ok_or(malformed)?;
        Ok(cut.by_copying(frame, buffer, emit))
    } else {
        buffer.reserve(frame.len());
        buffer.put_slice(frame);
        complete_checksum(header, buffer).ok_or(malformed)?;
        emit(buffer.split().freeze());
        Ok(1)
    }
}

/// Completes the checksum of one packet when the kernel left that to us. `None`: it is no packet, or
/// the header in front of it contradicts it.
pub(super) fn complete_checksum(header: &VnetHeader, packet: &mut [u8]) -> Option<()> {
    let ip = Header::parse(packet).ok()?;
    if header.flags & VnetHeader::NEEDS_CSUM == 0 {
        return Some(());
    }
    let start = usize::from(header.csum_start);
    let field = start + usize::from(header.csum_offset);
    // csum_start may lie deeper than the transport header: a tunnel inside leaves its own sum to us.
    if start < ip.header_len() || field + 2 > packet.len() {
        return None;
    }
    let sum = Sum::default().bytes(packet.get(start..)?).checksum_nonzero();
    put_u16(packet, field, sum);
    Some(())
}

/// How a super-packet is cut. Made once all is known to fit, so that cutting cannot fail.
#[derive(Clone, Copy, Debug)]
pub(super) struct Cut {
    /// The IP header's length.
    ip_len: usize,
    /// That of IP and transport header.
    head_len: usize,
    /// The transport: TCP or UDP.
    protocol: u8,
    /// Payload bytes of every segment but the last; not 0.
    size: usize,
    /// Not 0.
    segments: usize,
    /// The IPv4 header's sum without length, identification and checksum. 0 in IPv6.
    ip_sum: Sum,
    /// The first packet's identification.
    id: u16,
    /// The pseudo-header's sum without the length.
    pseudo_sum: Sum,
}

impl Cut {
    /// `front` is a frame of `len` bytes, or as much of it as holds the headers.
    pub(super) fn new(header: &VnetHeader, front: &[u8], len: usize) -> Option<Self> {
        let ip = Header::parse_front(front, len).ok()?;
        let (protocol, fits) = match header.gso_type & !VnetHeader::GSO_ECN {
            VnetHeader::GSO_TCPV4 => (TCP, ip.dst().is_ipv4()),
            VnetHeader::GSO_TCPV6 => (TCP, ip.dst().is_ipv6()),
            VnetHeader::GSO_UDP_L4 => (UDP, true),
            _ => return None,
        };
        let ip_len = ip.header_len();
        let transport = front.get(ip_len..)?;
        let (transport_len, min_len) = match protocol {
            TCP => (usize::from(*transport.get(12)? >> 4) * 4, 20),
            _ => (8, 8),
        };
        let whole = ip.fragment() == Fragment::Whole && ip.protocol() == protocol;
        let head_len = ip_len + transport_len;
        if !fits || !whole || transport_len < min_len || header.gso_size == 0 || front.len() < head_len {
            return None;
        }
        let size = usize::from(header.gso_size);
        // A super-packet without payload is still one packet.
        let segments = (len - head_len).div_ceil(size).max(1);
        let (ip_sum, id) = if ip.dst().is_ipv4() {
            let sum = Sum::default().bytes(&front[..2]).bytes(&front[6..10]).bytes(&front[12..ip_len]);
            (sum, u16::from_be_bytes([front[4], front[5]]))
        } else {
            (Sum::default(), 0)
        };
        let pseudo_sum = Sum::pseudo_header(ip.addresses(front), protocol, 0);
        Some(Self { ip_len, head_len, protocol, size, segments, ip_sum, id, pseudo_sum })
    }

    pub(super) fn head_len(&self) -> usize {
        self.head_len
    }

    pub(super) fn size(&self) -> usize {
        self.size
    }

    pub(super) fn segments(&self) -> usize {
        self.segments
    }

    /// Cuts `frame`, which must be the whole one, into packets copied to `buffer`.
    pub(super) fn by_copying(&self, frame: &[u8], buffer: &mut BytesMut, emit: &mut impl FnMut(Bytes)) -> usize {
        let (head, payload) = frame.split_at(self.head_len);
        buffer.clear();
        buffer.reserve(self.segments * head.len() + payload.len());
        for index in 0..self.segments {
            let payload = payload.get(index * self.size..).unwrap_or_default();
            let payload = payload.get(..self.size).unwrap_or(payload);
            buffer.put_slice(head);
            buffer.put_slice(payload);
            self.adjust(buffer, index);
            emit(buffer.split().freeze());
        }
        self.segments
    }

    /// Turns the super-packet's headers at the front of `packet` into those of segment `index`.
    pub(super) fn adjust(&self, packet: &mut [u8], index: usize) {
        let len = packet.len();
        let (ip, transport) = packet.split_at_mut(self.ip_len);
        if ip[0] >> 4 == 4 {
            let id = self.id.wrapping_add(index as u16);
            put_u16(ip, 2, len as u16);
            put_u16(ip, 4, id);
            put_u16(ip, 10, self.ip_sum.word(len as u16).word(id).checksum());
        } else {
            put_u16(ip, 4, (len - 40) as u16);
        }
        let pseudo = self.pseudo_sum.length(transport.len());
        if self.protocol == TCP {
            let seq = u32::from_be_bytes([transport[4], transport[5], transport[6], transport[7]]);
            let seq = seq.wrapping_add((index * self.size) as u32);
            transport[4..8].copy_from_slice(&seq.to_be_bytes());
            if index + 1 != self.segments {
                transport[13] &= !FIN_PSH;
            }
            if index > 0 {
                transport[13] &= !CWR;
            }
            put_u16(transport, 16, 0);
            let sum = pseudo.bytes(transport).checksum();
            put_u16(transport, 16, sum);
        } else {
            put_u16(transport, 4, transport.len() as u16);
            put_u16(transport, 6, 0);
            let sum = pseudo.bytes(transport).checksum_nonzero();
            put_u16(transport, 6, sum);
        }
    }
}

fn put_u16(bytes: &mut [u8], at: usize, value: u16) {
    bytes[at..at + 2].copy_from_slice(&value.to_be_bytes());
}
