//! What a packet's sender is told when it does not cross: "too big", "prohibited".
//!
//! The rules for when to say nothing are RFC 1122 section 3.2.2 and RFC 4443 section 2.4(e): no
//! answer to an error, to what went to many, or to a later fragment, so that two ends can never
//! keep each other busy. Rate limits are the caller's. Not here: when a packet is too big (`shard`).

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use bytes::{BufMut, Bytes, BytesMut};

use crate::checksum::Sum;
use crate::packet::{Fragment, Header};

/// The longest answer over IPv4 (RFC 1812 section 4.3.2.3).
const MAX_V4: usize = 576;
/// The longest answer over IPv6: its minimum MTU (RFC 4443 section 2.4(c)).
const MAX_V6: usize = 1280;
/// "Internetwork control", as routers mark their own messages (RFC 1812 section 4.3.2.5).
const CONTROL: u8 = 0xc0;
const HOPS: u8 = 64;
const ICMP_V4: u8 = 1;
const ICMP_V6: u8 = 58;

/// Answers a packet that is larger than what crosses with "fragmentation needed" (RFC 1191) or
/// "packet too big" (RFC 4443 section 3.2), sent from the gateway's address.
///
/// `mtu_bytes` is the largest inner packet that crosses. IPv4 senders that allow fragments are told,
/// too: the tunnel does not fragment, and their stacks then do. `None`: nothing may be said, or
/// the gateway has no address of that family.
pub fn too_big(original: &[u8], mtu_bytes: u16, gateway_v4: Ipv4Addr, gateway_v6: Option<Ipv6Addr>) -> Option<Bytes> {
    let v4 = Message { kind: 3, code: 4, word: u32::from(mtu_bytes) };
    let v6 = Message { kind: 2, code: 0, word: u32::from(mtu_bytes) };
    answer(original, &v4, &v6, gateway_v4, gateway_v6)
}

/// Answers a packet that policy refuses with "administratively prohibited" (RFC 1812 section
/// 5.2.7.1, RFC 4443 section 3.1), so that connecting fails at once.
///
/// `None` as for [`too_big`].
pub fn unreachable(original: &[u8], gateway_v4: Ipv4Addr, gateway_v6: Option<Ipv6Addr>) -> Option<Bytes> {
    let v4 = Message { kind: 3, code: 13, word: 0 };
    let v6 = Message { kind: 1, code: 1, word: 0 };
    answer(original, &v4, &v6, gateway_v4, gateway_v6)
}

/// An ICMP message without its quote.
struct Message {
    kind: u8,
    code: u8,
    /// What stands between checksum and quote.
    word: u32,
}

fn answer(
    original: &[u8],
    v4: &Message,
    v6: &Message,
    gateway_v4: Ipv4Addr,
    gateway_v6: Option<Ipv6Addr>,
) -> Option<Bytes> {
    let header = Header::parse(original).ok()?;
    if !may_answer(&header, header.payload(original)) {
        return None;
    }
    match header.src() {
        IpAddr::V4(to) => Some(answer_v4(original, v4, gateway_v4, to)),
        IpAddr::V6(to) => Some(answer_v6(original, v6, gateway_v6?, to)),
    }
}

fn may_answer(header: &Header, payload: &[u8]) -> bool {
    // An ICMP message whose type was cut off might be an error.
    let kind = payload.first().copied();
    let is_error = match (header.src(), header.protocol()) {
        (IpAddr::V4(_), ICMP_V4) => matches!(kind, None | Some(3 | 4 | 5 | 11 | 12)),
        (IpAddr::V6(_), ICMP_V6) => matches!(kind, None | Some(0..=127 | 137)),
        _ => false,
    };
    !is_error && header.fragment() != Fragment::Later && is_one_host(header.src()) && is_one_host(header.dst())
}

/// False for addresses that name no host, every host, or several.
fn is_one_host(address: IpAddr) -> bool {
    match address {
        // Multicast, class E and broadcast are 224.0.0.0 and above.
        IpAddr::V4(v4) => !matches!(v4.octets()[0], 0 | 127 | 224..),
        IpAddr::V6(v6) => !(v6.is_unspecified() || v6.is_loopback() || v6.is_multicast()),
    }
}

fn answer_v4(original: &[u8], message: &Message, from: Ipv4Addr, to: Ipv4Addr) -> Bytes {
    let quote = original.get(..MAX_V4 - 28).unwrap_or(original);
    let len = 28 + quote.len();
    let mut packet = BytesMut::with_capacity(len);
    packet.put_slice(&[0x45, CONTROL]);
    packet.put_u16(len as u16);
    // Identification 0 and "don't fragment": an atomic datagram (RFC 6864).
    packet.put_slice(&[0, 0, 0x40, 0, HOPS, ICMP_V4, 0, 0]);
    packet.put_slice(&from.octets());
    packet.put_slice(&to.octets());
    let sum = Sum::default().bytes(&packet).checksum();
    packet[10..12].copy_from_slice(&sum.to_be_bytes());
    put_message(&mut packet, message, quote, Sum::default());
    packet.freeze()
}

fn answer_v6(original: &[u8], message: &Message, from: Ipv6Addr, to: Ipv6Addr) -> Bytes {
    let quote = original.get(..MAX_V6 - 48).unwrap_or(original);
    let len = 8 + quote.len();
    let mut packet = BytesMut::with_capacity(40 + len);
    packet.put_slice(&[0x60 | CONTROL >> 4, CONTROL << 4, 0, 0]);
    packet.put_u16(len as u16);
    packet.put_slice(&[ICMP_V6, HOPS]);
    packet.put_slice(&from.octets());
    packet.put_slice(&to.octets());
    let pseudo = Sum::pseudo_header(&packet[8..40], ICMP_V6, len);
    put_message(&mut packet, message, quote, pseudo);
    packet.freeze()
}

/// Appends the ICMP message; `pseudo` is the pseudo-header's sum, which only ICMPv6 has.
fn put_message(packet: &mut BytesMut, message: &Message, quote: &[u8], pseudo: Sum) {
    let start = packet.len();
    packet.put_slice(&[message.kind, message.code, 0, 0]);
    packet.put_u32(message.word);
    packet.put_slice(quote);
    let sum = pseudo.bytes(&packet[start..]).checksum();
    packet[start + 2..start + 4].copy_from_slice(&sum.to_be_bytes());
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::checksum::naive;

    const GATEWAY_V4: Ipv4Addr = Ipv4Addr::new(100, 77, 3, 1);
    const GATEWAY_V6: Ipv6Addr = Ipv6Addr::new(0xfd4e, 0, 0, 0, 0, 0, 0, 1);

    #[test]
    fn an_ipv4_sender_learns_the_mtu() {
        let original = v4(17, 1400, |_| ());
        let reply = too_big(&original, 1280, GATEWAY_V4, None).unwrap();
        let header = Header::parse(&reply).unwrap();
        assert_eq!((header.src(), header.dst(), header.protocol()), (GATEWAY_V4.into(), [100, 77, 3, 7].into(), 1));
        assert_eq!(reply.len(), 576);
        assert_eq!(reply[20..22], [3, 4]);
        assert_eq!(reply[24..28], [0, 0, 5, 0]);
        assert_eq!(reply[28..], original[..548]);
        assert_eq!(naive::sum(&[&reply[..20]]), 0xffff);
        assert_eq!(naive::sum(&[&reply[20..]]), 0xffff);
    }

    #[test]
    fn an_ipv6_sender_learns_the_mtu() {
        let original = v6(6, 1500, |_| ());
        let reply = too_big(&original, 1360, GATEWAY_V4, Some(GATEWAY_V6)).unwrap();
        let header = Header::parse(&reply).unwrap();
        assert_eq!((header.src(), header.protocol()), (GATEWAY_V6.into(), 58));
        assert_eq!(header.dst(), Header::parse(&original).unwrap().src());
        assert_eq!(reply.len(), 1280);
        assert_eq!(reply[40..42], [2, 0]);
        assert_eq!(reply[44..48], 1360u32.to_be_bytes());
        assert_eq!(reply[48..], original[..1232]);
        assert_icmp_v6_is_valid(&reply);
    }

    #[test]
    fn a_refused_packet_is_answered_with_prohibited() {
        let reply = unreachable(&v4(6, 60, |_| ()), GATEWAY_V4, Some(GATEWAY_V6)).unwrap();
        assert_eq!((&reply[20..22], reply.len()), (&[3, 13][..], 88));
        assert_eq!(naive::sum(&[&reply[20..]]), 0xffff);
        let reply = unreachable(&v6(6, 80, |_| ()), GATEWAY_V4, Some(GATEWAY_V6)).unwrap();
        assert_eq!((&reply[40..42], reply.len()), (&[1, 1][..], 128));
        assert_icmp_v6_is_valid(&reply);
    }

    #[test]
    fn an_icmp_error_is_never_answered_but_a_ping_is() {
        for kind in [3, 4, 5, 11, 12] {
            assert_silent(&v4(1, 1400, |packet| packet[20] = kind));
        }
        for kind in [1, 2, 3, 4, 127, 137] {
            assert_silent(&v6(58, 1400, |packet| packet[40] = kind));
        }
        assert_silent(&v4(1, 20, |_| ()));
        assert!(too_big(&v4(1, 1400, |packet| packet[20] = 8), 1280, GATEWAY_V4, None).is_some());
        assert!(too_big(&v6(58, 1400, |packet| packet[40] = 128), 1280, GATEWAY_V4, Some(GATEWAY_V6)).is_some());
    }

    #[test]
    fn an_icmp_error_behind_an_extension_header_is_not_answered() {
        assert_silent(&v6(60, 1400, |packet| {
            packet[40..49].copy_from_slice(&[58, 0, 1, 4, 0, 0, 0, 0, 2]);
        }));
    }

    #[test]
    fn what_went_to_many_or_came_from_nobody_is_not_answered() {
        for many in [[224, 0, 0, 1], [239, 1, 1, 1], [255, 255, 255, 255], [0, 0, 0, 0]] {
            assert_silent(&v4(17, 1400, |packet| {
                packet[16..20].copy_from_slice(&many);
            }));
            assert_silent(&v4(17, 1400, |packet| {
                packet[12..16].copy_from_slice(&many);
            }));
        }
        assert_silent(&v4(17, 1400, |packet| packet[12] = 127));
        assert_silent(&v6(17, 1400, |packet| packet[24] = 0xff));
        assert_silent(&v6(17, 1400, |packet| packet[8..24].fill(0)));
    }

    #[test]
    fn only_the_first_fragment_is_answered() {
        assert_silent(&v4(17, 1400, |packet| {
            packet[6..8].copy_from_slice(&[0x20, 0xb9]);
        }));
        assert_silent(&v4(17, 1400, |packet| {
            packet[6..8].copy_from_slice(&[0, 0xb9]);
        }));
        assert!(too_big(&v4(17, 1400, |packet| packet[6] = 0x20), 1280, GATEWAY_V4, None).is_some());
        assert_silent(&v6(44, 1400, |packet| {
            packet[40..44].copy_from_slice(&[17, 0, 5, 0xa9]);
        }));
        let first = v6(44, 1400, |packet| {
            packet[40..44].copy_from_slice(&[17, 0, 0, 1]);
        });
        assert!(too_big(&first, 1280, GATEWAY_V4, Some(GATEWAY_V6)).is_some());
    }

    #[test]
    fn a_gateway_without_ipv6_says_nothing_in_ipv6() {
        assert_eq!(too_big(&v6(6, 1400, |_| ()), 1280, GATEWAY_V4, None), None);
    }

    proptest! {
        #[test]
        fn an_answer_to_anything_is_valid_and_never_answered_itself(mut bytes in prop::collection::vec(any::<u8>(), 0..1600), v6: bool) {
            // Random bytes would rarely be a packet: give them a version and a length.
            let len = bytes.len() as u16;
            if let Some(fixed) = bytes.first_chunk_mut::<40>() {
                if v6 {
                    fixed[0] = 0x60;
                    fixed[4..6].copy_from_slice(&(len - 40).to_be_bytes());
                } else {
                    fixed[0] = 0x45;
                    fixed[2..4].copy_from_slice(&len.to_be_bytes());
                }
            }
            for reply in [too_big(&bytes, 1280, GATEWAY_V4, Some(GATEWAY_V6)), unreachable(&bytes, GATEWAY_V4, Some(GATEWAY_V6))].into_iter().flatten() {
                prop_assert!(Header::parse(&reply).is_ok());
                prop_assert_eq!(too_big(&reply, 1280, GATEWAY_V4, Some(GATEWAY_V6)), None);
            }
        }
    }

    fn assert_silent(packet: &[u8]) {
        assert!(Header::parse(packet).is_ok(), "the test's own packet must be well-formed");
        assert_eq!(too_big(packet, 1280, GATEWAY_V4, Some(GATEWAY_V6)), None);
        assert_eq!(unreachable(packet, GATEWAY_V4, Some(GATEWAY_V6)), None);
    }

    fn assert_icmp_v6_is_valid(packet: &[u8]) {
        let len = (packet.len() as u32 - 40).to_be_bytes();
        assert_eq!(naive::sum(&[&packet[8..40], &len, &[0, 58], &packet[40..]]), 0xffff);
    }

    fn v4(protocol: u8, len: usize, change: impl FnOnce(&mut [u8])) -> Vec<u8> {
        let mut packet: Vec<u8> = (0..len).map(|i| i as u8).collect();
        packet[..20]
            .copy_from_slice(&[0x45, 0, 0, 0, 0, 1, 0x40, 0, 64, protocol, 0, 0, 100, 77, 3, 7, 198, 51, 100, 4]);
        packet[2..4].copy_from_slice(&(len as u16).to_be_bytes());
        change(&mut packet);
        packet
    }

    fn v6(protocol: u8, len: usize, change: impl FnOnce(&mut [u8])) -> Vec<u8> {
        let mut packet: Vec<u8> = (0..len).map(|i| i as u8).collect();
        packet[..8].copy_from_slice(&[0x60, 0, 0, 0, 0, 0, protocol, 64]);
        packet[4..6].copy_from_slice(&(len as u16 - 40).to_be_bytes());
        packet[8..24].copy_from_slice(&Ipv6Addr::new(0xfd4e, 0, 0, 0, 0, 0, 0, 7).octets());
        packet[24..40].copy_from_slice(&Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1).octets());
        change(&mut packet);
        packet
    }
}
