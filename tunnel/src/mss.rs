//! TCP's maximum segment size, clamped in SYNs to what the tunnel carries.
//!
//! A belt: who sends more is told by ICMP (`icmp`), but many networks block that. Only the size is
//! lowered, never raised, and a SYN without the option is left alone (its default of 536 bytes, 1,220
//! over IPv6, fits: RFC 9293 section 3.7.1).

use bytes::{Bytes, BytesMut};

use crate::checksum::{TCP, update};
use crate::packet::{Fragment, Header};

/// The flag of the packets that open a connection, both ways.
const SYN: u8 = 0x02;
/// TCP's header without options.
const TCP_LEN: usize = 20;
/// The option's kind and length (RFC 9293 section 3.2).
const MSS: [u8; 2] = [2, 4];

/// `packet` with the size it announces lowered to what fits in `mtu_bytes`, IP header included.
///
/// `header` is the packet's own. Everything but a SYN comes back as it was, at the cost of one look.
pub fn clamp(packet: Bytes, header: &Header, mtu_bytes: u16) -> Bytes {
    let Some((at, announced)) = announcement(&packet, header) else { return packet };
    // Options and extension headers are the sender's to subtract (RFC 6691).
    let headers = if header.dst().is_ipv4() { 40 } else { 60 };
    let fits = mtu_bytes.saturating_sub(headers);
    if announced <= fits {
        return packet;
    }
    let mut packet = packet.try_into_mut().unwrap_or_else(|shared| BytesMut::from(&shared[..]));
    packet[at..at + 2].copy_from_slice(&fits.to_be_bytes());
    let sum_at = header.header_len() + 16;
    let sum = u16::from_be_bytes([packet[sum_at], packet[sum_at + 1]]);
    // At an odd place each of its bytes is the other half of a word.
    let odd = (at - header.header_len()) % 2 == 1;
    let [before, after] = [announced, fits].map(|size| if odd { size.swap_bytes() } else { size });
    packet[sum_at..sum_at + 2].copy_from_slice(&update(sum, before, after).to_be_bytes());
    packet.freeze()
}

/// Where in `packet` a SYN announces its maximum segment size, and which.
fn announcement(packet: &[u8], header: &Header) -> Option<(usize, u16)> {
    if header.protocol() != TCP || header.fragment() == Fragment::Later {
        return None;
    }
    let start = header.header_len();
    let transport = packet.get(start..)?;
    if transport.get(13)? & SYN == 0 {
        return None;
    }
    let end = usize::from(transport[12] >> 4) * 4;
    let mut at = TCP_LEN;
    loop {
        match transport.get(..end)?.get(at..)? {
            [0, ..] | [] => return None,
            [1, ..] => at += 1,
            [kind, len, high, low, ..] if [*kind, *len] == MSS => {
                return Some((start + at + 2, u16::from_be_bytes([*high, *low])));
            }
            [_, len, ..] if *len >= 2 => at += usize::from(*len),
            _ => return None,
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::checksum::{Sum, verify_tcp};

    /// A TCP packet with `options` (padded) and those flags; its checksum is right.
    fn tcp(v6: bool, flags: u8, options: &[u8]) -> Bytes {
        let mut options = options.to_vec();
        options.resize(options.len().next_multiple_of(4), 0);
        let mut transport = vec![0x13, 0x88, 0, 80, 0, 0, 0, 1, 0, 0, 0, 0, 0, flags, 0xff, 0xff, 0, 0, 0, 0];
        transport[12] = (((20 + options.len()) / 4) << 4) as u8;
        transport.extend(options);
        let mut packet = if v6 {
            let mut ip = vec![0; 40];
            ip[0] = 0x60;
            ip[5] = transport.len() as u8;
            ip[6..8].copy_from_slice(&[6, 64]);
            ip[8..40].copy_from_slice(&[0xfd; 32]);
            ip
        } else {
            let len = (20 + transport.len()) as u8;
            vec![0x45, 0, 0, len, 0, 1, 0x40, 0, 64, 6, 0, 0, 192, 0, 2, 1, 198, 51, 100, 2]
        };
        let start = packet.len();
        packet.extend(transport);
        let header = Header::parse(&packet).unwrap();
        let sum = Sum::pseudo_header(header.addresses(&packet), TCP, packet.len() - start).bytes(&packet[start..]);
        packet[start + 16..start + 18].copy_from_slice(&sum.checksum().to_be_bytes());
        packet.into()
    }

    fn clamped(packet: &Bytes, mtu_bytes: u16) -> Bytes {
        clamp(packet.clone(), &Header::parse(packet).unwrap(), mtu_bytes)
    }

    #[test]
    fn a_syn_announces_no_more_than_fits_wherever_its_option_stands() {
        for (v6, headers) in [(false, 40), (true, 60)] {
            for flags in [0x02, 0x12, 0xc2] {
                for front in [&[][..], &[1], &[1, 1], &[3, 3, 7], &[4, 2, 1, 8, 10, 1, 2, 3, 4, 5, 6, 7, 8]] {
                    let syn = |mss: u16| tcp(v6, flags, &[front, &[2, 4], &mss.to_be_bytes()].concat());
                    let after = clamped(&syn(1460), 1380);
                    assert_eq!(after, syn(1380 - headers), "{front:?}");
                    assert!(verify_tcp(&after));
                    assert_eq!(clamped(&syn(1000), 1380), syn(1000), "never raised");
                }
            }
        }
    }

    #[test]
    fn everything_else_stays_as_it_is() {
        let option = [2, 4, 5, 180];
        for packet in [
            tcp(false, 0x10, &option),
            tcp(false, 0x02, &[]),
            tcp(false, 0x02, &[0, 2, 4, 5, 180]),
            tcp(false, 0x02, &[3, 0, 2, 4, 5, 180]), // an option of no length
            tcp(false, 0x02, &[2, 4, 5]),            // cut short by its padding: 1,280
        ] {
            assert_eq!(clamped(&packet, 1400), packet);
        }
        let mut udp = tcp(false, 0x02, &option).to_vec();
        udp[9] = 17;
        assert_eq!(clamped(&udp.clone().into(), 1280), udp);
        let mut later = tcp(false, 0x02, &option).to_vec();
        later[7] = 9;
        assert_eq!(clamped(&later.clone().into(), 1280), later);
    }

    proptest! {
        #[test]
        fn any_options_keep_their_length_and_a_right_checksum(
            options in prop::collection::vec(any::<u8>(), 0..40), v6: bool, mtu in 1280u16..1500,
        ) {
            let packet = tcp(v6, 0x02, &options);
            let after = clamped(&packet, mtu);
            prop_assert_eq!(after.len(), packet.len());
            prop_assert!(verify_tcp(&after));
            let changed = packet.iter().zip(&after).filter(|(a, b)| a != b).count();
            prop_assert!(changed <= 4, "the size and the checksum");
        }
    }
}
