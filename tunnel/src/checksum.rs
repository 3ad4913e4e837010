//! The Internet checksum (RFC 1071), for every byte that is split or coalesced.
//!
//! Words are added in the machine's own byte order, as 32-bit lanes in 64-bit accumulators: the
//! compiler turns that into vector adds, no carry is lost, and RFC 1071 section 2(B) lets the
//! bytes be swapped once at the end. About 33 GB/s for 1,300 bytes where eight 64-bit
//! additions with carry make 25 (AMD EPYC, one core, baseline x86-64, opt-level 3).
//! Not here: which packets are looked at (`segment`).

mod wide;

use crate::packet::{Fragment, Header};

/// TCP's protocol number (IANA).
pub const TCP: u8 = 6;
/// UDP's protocol number (IANA).
pub const UDP: u8 = 17;

/// A ones-complement sum under way. Lanes are kept wide and folded only when asked.
#[derive(Clone, Copy, Debug, Default)]
pub struct Sum(u64);

impl Sum {
    /// The pseudo-header of IPv4 (RFC 9293 section 3.1) or IPv6 (RFC 8200 section 8.1).
    ///
    /// `addresses` is source and destination as they stand in the IP header, 8 or 32 bytes, and
    /// `len` the transport header and payload in bytes.
    pub fn pseudo_header(addresses: &[u8], protocol: u8, len: usize) -> Self {
        Self::default().bytes(addresses).word(u16::from(protocol)).length(len)
    }

    /// Adds bytes. Every call but the last must have an even number of them.
    #[must_use]
    pub fn bytes(self, bytes: &[u8]) -> Self {
        let (blocks, rest) = bytes.as_chunks::<32>();
        let (words, tail) = rest.as_chunks::<4>();
        let mut sum = self.0 + wide::blocks(blocks.as_flattened());
        for word in words {
            sum += u64::from(u32::from_ne_bytes(*word));
        }
        sum += match *tail {
            [] => 0,
            [a] => u64::from(u16::from_ne_bytes([a, 0])),
            [a, b] => u64::from(u16::from_ne_bytes([a, b])),
            [a, b, c, ..] => u64::from(u32::from_ne_bytes([a, b, c, 0])),
        };
        Self(sum)
    }

    /// Adds one 16-bit word, given as a number.
    #[must_use]
    pub fn word(self, word: u16) -> Self {
        Self(self.0 + u64::from(word.to_be()))
    }

    /// Adds a length of up to 32 bits.
    #[must_use]
    pub fn length(self, len: usize) -> Self {
        self.word((len >> 16) as u16).word(len as u16)
    }

    /// The sum in 16 bits, not complemented: what a partial checksum field holds, and `0xffff`
    /// over bytes whose checksum is right.
    pub fn fold(self) -> u16 {
        let mut sum = (self.0 >> 32) + (self.0 & 0xffff_ffff);
        sum = (sum >> 32) + (sum & 0xffff_ffff);
        sum = (sum >> 16) + (sum & 0xffff);
        sum = (sum >> 16) + (sum & 0xffff);
        sum = (sum >> 16) + (sum & 0xffff);
        u16::from_be(sum as u16)
    }

    /// The value of a checksum field that was zero while its bytes were added.
    pub fn checksum(self) -> u16 {
        !self.fold()
    }

    /// As [`Self::checksum`], for a field where zero means "none" (UDP, RFC 768).
    pub fn checksum_nonzero(self) -> u16 {
        match self.checksum() {
            0 => 0xffff,
            sum => sum,
        }
    }
}

/// A checksum field after one of its words went from `before` to `after` (RFC 1624 equation 3).
pub fn update(checksum: u16, before: u16, after: u16) -> u16 {
    Sum::default().word(!checksum).word(!before).word(after).checksum()
}

/// True when `packet` is a whole TCP packet (no fragment) whose TCP checksum is right.
pub fn verify_tcp(packet: &[u8]) -> bool {
    let Ok(header) = Header::parse(packet) else {
        return false;
    };
    let (addresses, transport) = (header.addresses(packet), header.payload(packet));
    header.protocol() == TCP
        && header.fragment() == Fragment::Whole
        && transport.len() >= 20
        && Sum::pseudo_header(addresses, TCP, transport.len()).bytes(transport).fold() == 0xffff
}

/// An independent implementation: the 16-bit loop of RFC 1071 section 4.1.
#[cfg(test)]
pub(crate) mod naive {
    /// The folded sum, not complemented.
    pub(crate) fn sum(parts: &[&[u8]]) -> u16 {
        let mut sum = 0u32;
        for part in parts {
            for pair in part.chunks(2) {
                sum += u32::from(u16::from_be_bytes([pair[0], pair.get(1).copied().unwrap_or(0)]));
                sum = (sum & 0xffff) + (sum >> 16);
            }
        }
        sum as u16
    }

    /// Checks the IPv4 header's and the TCP or UDP checksum of a packet without extension headers.
    pub(crate) fn whole_packet_is_valid(packet: &[u8]) -> bool {
        let v4 = packet[0] >> 4 == 4;
        let at = if v4 { usize::from(packet[0] & 15) * 4 } else { 40 };
        let (addresses, protocol) = if v4 { (&packet[12..20], packet[9]) } else { (&packet[8..40], packet[6]) };
        let len = ((packet.len() - at) as u32).to_be_bytes();
        (!v4 || sum(&[&packet[..at]]) == 0xffff) && sum(&[addresses, &[0, protocol], &len, &packet[at..]]) == 0xffff
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn the_sum_is_that_of_a_plain_loop(bytes in prop::collection::vec(any::<u8>(), 0..2000)) {
            prop_assert_eq!(Sum::default().bytes(&bytes).fold(), naive::sum(&[&bytes]));
        }

        #[test]
        fn a_sum_may_be_made_in_pieces(a in prop::collection::vec(any::<[u8; 2]>(), 0..100), b in prop::collection::vec(any::<u8>(), 0..100), word: u16) {
            let sum = Sum::default().bytes(a.as_flattened()).word(word).bytes(&b);
            prop_assert_eq!(sum.fold(), naive::sum(&[a.as_flattened(), &word.to_be_bytes(), &b]));
        }

        #[test]
        fn a_pseudo_header_is_addresses_protocol_and_length(addresses: [u8; 32], protocol: u8, len: u32) {
            for addresses in [&addresses[..8], &addresses[..]] {
                let sum = Sum::pseudo_header(addresses, protocol, len as usize).fold();
                prop_assert_eq!(sum, naive::sum(&[addresses, &[0, protocol], &len.to_be_bytes()]));
            }
        }
    }

    #[test]
    fn the_widest_bytes_overflow_nothing() {
        let bytes = vec![0xff; 1 << 20];
        assert_eq!(Sum::default().bytes(&bytes).bytes(&bytes).fold(), 0xffff);
    }

    #[test]
    fn one_wrong_bit_is_seen() {
        // 192.0.2.1:1 -> 192.0.2.2:2, ACK, payload "hi"; checksums computed by hand with the naive loop.
        let mut packet = vec![0x45, 0, 0, 42, 0, 1, 0x40, 0, 64, 6, 0, 0, 192, 0, 2, 1, 192, 0, 2, 2];
        packet.extend([0, 1, 0, 2, 0, 0, 0, 9, 0, 0, 0, 8, 0x50, 0x10, 1, 0, 0, 0, 0, 0, b'h', b'i']);
        let sum = !naive::sum(&[&packet[12..20], &[0, 6, 0, 22], &packet[20..]]);
        packet[36..38].copy_from_slice(&sum.to_be_bytes());
        assert!(verify_tcp(&packet));
        for bit in 0..packet.len() * 8 - 160 {
            let mut wrong = packet.clone();
            wrong[20 + bit / 8] ^= 1 << (bit % 8);
            assert!(!verify_tcp(&wrong), "bit {bit}");
        }
    }
}
