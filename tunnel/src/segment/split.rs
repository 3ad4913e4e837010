//! A frame read from the device becomes whole packets: TCP and UDP segmentation in software.
//!
//! Nothing in the virtio-net header is trusted but the kind and `gso_size`; header lengths come
//! from the packet itself. What does not add up is [`Dropped::Malformed`].

use bytes::{BufMut, Bytes};

use super::{Cuttings, VnetHeader};
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
    split_into(&mut Cuttings::default(), header, frame, emit)
}

/// As [`split`], with packets cut from `cuttings`, whose allocations are used again.
///
/// # Errors
/// As [`split`].
pub fn split_into(
    cuttings: &mut Cuttings,
    header: &VnetHeader,
    frame: &[u8],
    emit: &mut impl FnMut(Bytes),
) -> Result<usize, Dropped> {
    let malformed = Dropped::Malformed { len: frame.len() };
    match header.gso_type & !VnetHeader::GSO_ECN {
        VnetHeader::GSO_NONE => {
            let packet = whole(cuttings, header, frame).ok_or(malformed)?;
            emit(packet);
            Ok(1)
        }
        kind => {
            let plan = Plan::new(kind, header, frame).ok_or(malformed)?;
            Ok(plan.run(cuttings, emit))
        }
    }
}

/// One packet, its checksum completed when the kernel left that to us.
fn whole(cuttings: &mut Cuttings, header: &VnetHeader, frame: &[u8]) -> Option<Bytes> {
    let ip = Header::parse(frame).ok()?;
    let partial = header.flags & VnetHeader::NEEDS_CSUM != 0;
    let start = usize::from(header.csum_start);
    let field = start + usize::from(header.csum_offset);
    // csum_start may lie deeper than the transport header: a tunnel inside leaves its own sum to us.
    if partial && (start < ip.header_len() || field + 2 > frame.len()) {
        return None;
    }
    let buffer = cuttings.room(frame.len());
    buffer.put_slice(frame);
    if partial {
        let sum = Sum::default().bytes(buffer.get(start..)?).checksum_nonzero();
        put_u16(buffer, field, sum);
    }
    Some(buffer.split().freeze())
}

/// How a super-packet is cut. Made once all is known to fit, so that cutting cannot fail.
struct Plan<'a> {
    /// IP and transport header.
    head: &'a [u8],
    payload: &'a [u8],
    /// The IP header's length.
    ip_len: usize,
    /// The transport: TCP or UDP.
    protocol: u8,
    /// Payload bytes of every segment but the last; not 0.
    size: usize,
}

impl<'a> Plan<'a> {
    fn new(kind: u8, header: &VnetHeader, frame: &'a [u8]) -> Option<Self> {
        let ip = Header::parse(frame).ok()?;
        let (protocol, fits) = match kind {
            VnetHeader::GSO_TCPV4 => (TCP, ip.dst().is_ipv4()),
            VnetHeader::GSO_TCPV6 => (TCP, ip.dst().is_ipv6()),
            VnetHeader::GSO_UDP_L4 => (UDP, true),
            _ => return None,
        };
        let ip_len = ip.header_len();
        let transport = frame.get(ip_len..)?;
        let transport_len = match protocol {
            TCP => usize::from(*transport.get(12)? >> 4) * 4,
            _ => 8,
        };
        let min_len = if protocol == TCP { 20 } else { 8 };
        let whole = ip.fragment() == Fragment::Whole && ip.protocol() == protocol;
        if !fits || !whole || transport_len < min_len || header.gso_size == 0 {
            return None;
        }
        let (head, payload) = frame.split_at_checked(ip_len + transport_len)?;
        let size = usize::from(header.gso_size);
        Some(Self { head, payload, ip_len, protocol, size })
    }

    fn run(&self, cuttings: &mut Cuttings, emit: &mut impl FnMut(Bytes)) -> usize {
        // A super-packet without payload is still one packet.
        let segments = self.payload.len().div_ceil(self.size).max(1);
        let buffer = cuttings.room(segments * self.head.len() + self.payload.len());
        for index in 0..segments {
            let at = index * self.size;
            let payload = self.payload.get(at..).unwrap_or_default();
            let payload = payload.get(..self.size).unwrap_or(payload);
            buffer.put_slice(self.head);
            buffer.put_slice(payload);
            self.adjust(buffer, index, index + 1 == segments);
            emit(buffer.split().freeze());
        }
        segments
    }

    /// Turns the super-packet's headers at the front of `packet` into those of segment `index`.
    fn adjust(&self, packet: &mut [u8], index: usize, last: bool) {
        let len = packet.len();
        let (ip, transport) = packet.split_at_mut(self.ip_len);
        let addresses = if ip[0] >> 4 == 4 {
            put_u16(ip, 2, len as u16);
            let id = u16::from_be_bytes([ip[4], ip[5]]).wrapping_add(index as u16);
            put_u16(ip, 4, id);
            put_u16(ip, 10, 0);
            let sum = Sum::default().bytes(ip).checksum();
            put_u16(ip, 10, sum);
            &ip[12..20]
        } else {
            put_u16(ip, 4, (len - 40) as u16);
            &ip[8..40]
        };
        let pseudo = Sum::pseudo_header(addresses, self.protocol, transport.len());
        if self.protocol == TCP {
            let seq = u32::from_be_bytes([transport[4], transport[5], transport[6], transport[7]]);
            let seq = seq.wrapping_add((index * self.size) as u32);
            transport[4..8].copy_from_slice(&seq.to_be_bytes());
            if !last {
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
