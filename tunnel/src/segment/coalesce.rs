//! Packets that arrived become super-packets, by the rules of the kernel's GRO.
//!
//! A segment joins the frame of its flow only if the kernel, cutting that frame again, would make
//! the very same packets: equal headers, the next sequence number, a right checksum. Everything else
//! goes through alone and ends the frame of its flow, so that a flow is never reordered. UDP
//! datagrams join by the same rules, without sequence numbers, if the device takes them.

use bytes::{Buf, Bytes};

use super::{SuperPacket, VnetHeader};
use crate::checksum::{Sum, TCP, UDP};

/// Flows that may have an open frame at once; beyond that they give way in turn.
const FLOWS: usize = 16;
/// Frames whose allocations are kept for the next batch.
const MOST_KEPT: usize = 1024;
const PSH: u8 = 0x08;
const ACK: u8 = 0x10;

/// Collects one batch of packets for the device. See [`SuperPacket`].
#[derive(Debug, Default)]
pub struct Coalescer {
    /// The first `used` are this batch; those behind keep their allocations for the next.
    frames: Vec<SuperPacket>,
    used: usize,
    /// At most [`FLOWS`].
    open: Vec<Open>,
    /// Which of `open` gives way next.
    next_victim: usize,
    /// The device takes super-packets of UDP.
    udp: bool,
}

/// A frame that may still grow.
#[derive(Clone, Copy, Debug)]
struct Open {
    flow: Flow,
    /// Index into the frames.
    frame: usize,
    next_seq: u32,
    /// Payload bytes of every segment so far.
    size: u16,
    /// Has the first packet's checksum been found right? Looked at when a second one comes.
    verified: bool,
    /// The IPv4 header's sum without length and checksum. 0 in IPv6.
    ip_sum: Sum,
    /// The pseudo-header's sum without the length.
    pseudo_sum: Sum,
}

/// The addresses and ports of a TCP connection, or of UDP, in one direction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Flow {
    /// IPv4 addresses are followed by zeros.
    addresses: [u8; 32],
    ports: [u8; 4],
    protocol: u8,
    v4: bool,
}

/// A TCP or UDP packet with a plain IP header.
struct Segment {
    flow: Flow,
    ip_len: usize,
    head_len: usize,
    /// TCP's; 0 in UDP.
    seq: u32,
    /// TCP's flags; 0 in UDP.
    flags: u8,
    /// Payload bytes; may be 0.
    size: usize,
}

impl Coalescer {
    /// With nothing in it.
    pub fn new() -> Self {
        Self::default()
    }

    /// Says whether the device takes super-packets of UDP; at first it does not.
    pub fn set_udp(&mut self, udp: bool) {
        self.udp = udp;
    }

    /// Adds a packet that [`crate::packet::Header::parse`] has accepted.
    pub fn push(&mut self, packet: Bytes) {
        let Some(segment) = Segment::of(&packet).filter(|segment| segment.flow.protocol == TCP || self.udp) else {
            if is_fragment(&packet) {
                // Nobody knows of which flow it is.
                self.open.clear();
            }
            self.push_alone(packet);
            return;
        };
        let found = self.open.iter().position(|open| open.flow == segment.flow);
        if let Some(place) = found {
            if self.join(place, &segment, &packet) {
                return;
            }
            self.open.swap_remove(place);
        }
        self.begin(&segment, packet);
    }

    /// The frames of this batch, in the order in which they go to the device.
    pub fn frames(&self) -> &[SuperPacket] {
        self.frames.get(..self.used).unwrap_or_default()
    }

    /// Begins the next batch: gives the packets back and keeps the allocations.
    pub fn clear(&mut self) {
        for frame in self.frames.iter_mut().take(self.used) {
            frame.pieces.clear();
        }
        self.used = 0;
        self.open.clear();
        // One burst of tiny packets must not be remembered for ever.
        self.frames.truncate(MOST_KEPT);
    }

    fn push_alone(&mut self, packet: Bytes) {
        match self.frames.get_mut(self.used) {
            Some(frame) => frame.set_single(packet),
            None => self.frames.push(SuperPacket::single(packet)),
        }
        self.used += 1;
    }

    /// Puts a segment into a frame of its own, which stays open if another may follow it.
    fn begin(&mut self, segment: &Segment, packet: Bytes) {
        let index = self.used;
        let may_grow = segment.size > 0
            && match segment.flow.protocol {
                TCP => segment.flags == ACK,
                // Zero: there is no checksum, and the kernel would make one.
                _ => packet[segment.ip_len + 6..segment.ip_len + 8] != [0, 0],
            };
        self.push_alone(packet);
        let Some(frame) = self.frames.get_mut(index).filter(|_| may_grow) else {
            return;
        };
        let Some(head) = frame.pieces.first().and_then(|packet| packet.get(..segment.head_len)) else {
            return;
        };
        frame.head[..segment.head_len].copy_from_slice(head);
        let (ip, _) = head.split_at(segment.ip_len);
        let (ip_sum, addresses) = if segment.flow.v4 {
            (Sum::default().bytes(&ip[..2]).bytes(&ip[4..10]).bytes(&ip[12..]), &ip[12..20])
        } else {
            (Sum::default(), &ip[8..40])
        };
        let open = Open {
            flow: segment.flow,
            frame: index,
            next_seq: segment.seq.wrapping_add(segment.size as u32),
            size: segment.size as u16,
            verified: false,
            ip_sum,
            pseudo_sum: Sum::pseudo_header(addresses, segment.flow.protocol, 0),
        };
        if self.open.len() < FLOWS {
            self.open.push(open);
        } else {
            self.open[self.next_victim] = open;
            self.next_victim = (self.next_victim + 1) % FLOWS;
        }
    }

    /// Adds a segment to the open frame of its flow. Returns false when it does not belong there;
    /// then nothing has changed.
    fn join(&mut self, place: usize, segment: &Segment, packet: &Bytes) -> bool {
        let (Some(open), Some(head)) = (self.open.get_mut(place), packet.get(..segment.head_len)) else {
            return false;
        };
        let Some(frame) = self.frames.get_mut(open.frame) else {
            return false;
        };
        let follows = match segment.flow.protocol {
            TCP => segment.flags & !PSH == ACK && segment.seq == open.next_seq,
            // A checksum of zero would be found right by the sum, but there is none.
            _ => packet[segment.ip_len + 6..segment.ip_len + 8] != [0, 0],
        };
        let fits = follows
            && (1..=usize::from(open.size)).contains(&segment.size)
            && frame.pieces.len() < SuperPacket::MAX_PIECES
            && frame.len + segment.size <= SuperPacket::MAX_LEN
            && segment.continues(frame, head);
        if !fits || !segment.is_intact(packet, open.pseudo_sum) {
            return false;
        }
        if !open.verified {
            // The frame is still its first packet as it came.
            let Some(first) = frame.pieces.first_mut() else {
                return false;
            };
            if !segment.is_intact(first, open.pseudo_sum) {
                return false;
            }
            open.verified = true;
            first.advance(segment.head_len);
            frame.head_len = segment.head_len as u8;
            let (gso_type, csum_offset) = match (segment.flow.protocol, segment.flow.v4) {
                (TCP, true) => (VnetHeader::GSO_TCPV4, 16),
                (TCP, false) => (VnetHeader::GSO_TCPV6, 16),
                _ => (VnetHeader::GSO_UDP_L4, 6),
            };
            frame.header = VnetHeader {
                flags: VnetHeader::NEEDS_CSUM,
                gso_type,
                hdr_len: segment.head_len as u16,
                gso_size: open.size,
                csum_start: segment.ip_len as u16,
                csum_offset,
            };
        }
        frame.pieces.push(packet.slice(segment.head_len..));
        frame.len += segment.size;
        frame.adjust_head(open, segment);
        open.next_seq = open.next_seq.wrapping_add(segment.size as u32);
        if segment.size < usize::from(open.size) || segment.flags & PSH != 0 {
            self.open.swap_remove(place);
        }
        true
    }
}

impl SuperPacket {
    /// Makes the headers say what the frame has become with `last`.
    fn adjust_head(&mut self, open: &Open, last: &Segment) {
        let (ip, transport) = self.head.split_at_mut(last.ip_len);
        let transport_len = self.len - last.ip_len;
        if last.flow.v4 {
            let len = self.len as u16;
            ip[2..4].copy_from_slice(&len.to_be_bytes());
            ip[10..12].copy_from_slice(&open.ip_sum.word(len).checksum().to_be_bytes());
        } else {
            ip[4..6].copy_from_slice(&((self.len - 40) as u16).to_be_bytes());
        }
        let partial = open.pseudo_sum.length(transport_len).fold().to_be_bytes();
        if last.flow.protocol == TCP {
            transport[13] |= last.flags & PSH;
            transport[16..18].copy_from_slice(&partial);
        } else {
            transport[4..6].copy_from_slice(&(transport_len as u16).to_be_bytes());
            transport[6..8].copy_from_slice(&partial);
        }
    }
}

impl Segment {
    /// Reads a TCP or UDP packet without IP options, extension headers or fragmentation. `None`: any
    /// other.
    fn of(packet: &[u8]) -> Option<Self> {
        let mut addresses = [0; 32];
        let (ip_len, v4, protocol) = match packet.first()? {
            0x45 => {
                let ip = packet.first_chunk::<20>()?;
                // Neither "more fragments" nor an offset; the reserved bit is nobody's.
                if (ip[6] & 0xbf) != 0 || ip[7] != 0 {
                    return None;
                }
                addresses[..8].copy_from_slice(&ip[12..20]);
                (20, true, ip[9])
            }
            0x60..=0x6f => {
                let ip = packet.first_chunk::<40>()?;
                addresses.copy_from_slice(&ip[8..40]);
                (40, false, ip[6])
            }
            _ => return None,
        };
        let transport = packet.get(ip_len..)?;
        let (transport_len, seq, flags) = match protocol {
            TCP => {
                let tcp = transport.first_chunk::<20>()?;
                let len = usize::from(tcp[12] >> 4) * 4;
                (len, u32::from_be_bytes([tcp[4], tcp[5], tcp[6], tcp[7]]), tcp[13])
            }
            UDP => {
                let udp = transport.first_chunk::<8>()?;
                if usize::from(u16::from_be_bytes([udp[4], udp[5]])) != transport.len() {
                    return None;
                }
                (8, 0, 0)
            }
            _ => return None,
        };
        let head_len = ip_len + transport_len;
        if transport_len < 8 || (protocol == TCP && transport_len < 20) || head_len > packet.len() {
            return None;
        }
        let ports = [transport[0], transport[1], transport[2], transport[3]];
        let flow = Flow { addresses, ports, protocol, v4 };
        Some(Self { flow, ip_len, head_len, seq, flags, size: packet.len() - head_len })
    }

    /// Does `head`, this segment's, differ from the frame's only as a next segment's must?
    ///
    /// Equal: traffic class (with its ECN bits), flow label, hop limit, DF, acknowledgement, window,
    /// options. IPv4 identifications must count up unless DF makes them meaningless (RFC 6864).
    fn continues(&self, frame: &SuperPacket, head: &[u8]) -> bool {
        let Some(first) = frame.head.get(..self.head_len) else {
            return false;
        };
        let (ip, tcp) = first.split_at(self.ip_len);
        let (next_ip, next_tcp) = head.split_at(self.ip_len);
        let same_ip = if self.flow.v4 {
            let dont_fragment = ip[6] & 0x40 != 0;
            let id = u16::from_be_bytes([ip[4], ip[5]]).wrapping_add(frame.pieces.len() as u16);
            ip[1] == next_ip[1]
                && ip[6] == next_ip[6]
                && ip[8] == next_ip[8]
                && (dont_fragment || next_ip[4..6] == id.to_be_bytes())
        } else {
            ip[..4] == next_ip[..4] && ip[7] == next_ip[7]
        };
        if self.flow.protocol != TCP {
            return same_ip;
        }
        // A different data offset is a different byte 12, so the slices below are equally long.
        same_ip && tcp[8..13] == next_tcp[8..13] && tcp[14..16] == next_tcp[14..16] && tcp[18..] == next_tcp[18..]
    }

    /// True when the checksums of a packet with this segment's header lengths are right.
    fn is_intact(&self, packet: &[u8], pseudo_sum: Sum) -> bool {
        let Some((ip, transport)) = packet.split_at_checked(self.ip_len) else {
            return false;
        };
        (!self.flow.v4 || Sum::default().bytes(ip).fold() == 0xffff)
            && pseudo_sum.length(transport.len()).bytes(transport).fold() == 0xffff
    }
}

/// Does the packet say that it is part of another one?
fn is_fragment(packet: &[u8]) -> bool {
    const FRAGMENT_HEADER: u8 = 44;
    match packet {
        [first, ..] if first >> 4 == 4 => packet.get(6..8).is_some_and(|place| place[0] & 0x3f != 0 || place[1] != 0),
        _ => packet.get(6).is_some_and(|&next| next == FRAGMENT_HEADER),
    }
}
