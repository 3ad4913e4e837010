//! One inner IP packet. [`Dropped`] is the first family of errors: one packet, counted, life goes on.
//!
//! [`Header::parse`] is the only way in: it checks version and lengths once, so that accessors
//! cannot fail. Lengths count the whole IP packet. Checksums are not looked at: the host's stack
//! does that. Not here: who may send it (`filter`), how it is cut and joined (`segment`, `pieces`).

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// Why one packet was dropped. Never ends the link: count it, take the next.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Dropped {
    /// Too short, or its header contradicts its length.
    #[error("{len} bytes are no IP packet")]
    Malformed {
        /// What arrived.
        len: usize,
    },
    /// The source is not the session's own address.
    #[error("sent from {sender}, which is not the session's address")]
    BadSource {
        /// The inner source.
        sender: IpAddr,
    },
    /// The destination is none that this end carries (multicast, link-local, not ours).
    #[error("destination {destination} is not carried")]
    BadDestination {
        /// The inner destination.
        destination: IpAddr,
    },
    /// Client to client while isolation is on.
    #[error("client to client ({destination}) is not allowed")]
    Isolation {
        /// The inner destination.
        destination: IpAddr,
    },
    /// A destination that this client may not reach; it was told by ICMP.
    #[error("{destination} may not be reached by this client")]
    Policy {
        /// The inner destination.
        destination: IpAddr,
    },
    /// Beyond the rate that this client has.
    #[error("beyond the client's rate")]
    RateLimit,
    /// Larger than the path carries; the sender was told by ICMP.
    #[error("{len} bytes exceed the inner MTU of {mtu_bytes}")]
    TooBig {
        /// The whole packet.
        len: usize,
        /// What would have crossed.
        mtu_bytes: u16,
    },
    /// No session holds the destination (gateway), or none is up (client).
    #[error("no session for {destination}")]
    NoSession {
        /// The inner destination.
        destination: IpAddr,
    },
    /// A bounded queue was full or its oldest packet too old.
    #[error("queue full")]
    QueueFull,
    /// Half of a split packet whose other half never came.
    #[error("an unjoined piece")]
    Unjoined,
    /// The path marked it "congestion experienced", and its sender takes no marks (RFC 6040).
    #[error("marked by a congested path, for a sender that takes no marks")]
    Congestion,
    /// A datagram payload of an unknown kind.
    #[error("unknown payload kind {kind:#04x}")]
    UnknownKind {
        /// Its first byte.
        kind: u8,
    },
}

impl Dropped {
    /// How many reasons there are.
    pub const KINDS: usize = 12;
    /// Stable words for metrics and JSON, by [`Self::index`].
    pub const WORDS: [&'static str; Self::KINDS] = [
        "malformed",
        "bad_source",
        "bad_destination",
        "isolation",
        "too_big",
        "no_session",
        "queue_full",
        "unjoined",
        "unknown_kind",
        "congestion",
        "policy",
        "rate_limit",
    ];

    /// The reason's place in [`Self::WORDS`].
    pub const fn index(&self) -> usize {
        match self {
            Self::Malformed { .. } => 0,
            Self::BadSource { .. } => 1,
            Self::BadDestination { .. } => 2,
            Self::Isolation { .. } => 3,
            Self::TooBig { .. } => 4,
            Self::NoSession { .. } => 5,
            Self::QueueFull => 6,
            Self::Unjoined => 7,
            Self::UnknownKind { .. } => 8,
            Self::Congestion => 9,
            Self::Policy { .. } => 10,
            Self::RateLimit => 11,
        }
    }
}

/// Which part of a datagram a packet carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fragment {
    /// All of it.
    Whole,
    /// The first of several fragments; the transport header is here.
    First,
    /// A later fragment; it has no transport header.
    Later,
}

/// What the IP header of one whole, well-formed packet says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    src: IpAddr,
    dst: IpAddr,
    len: usize,
    header_len: u16,
    protocol: u8,
    traffic_class: u8,
    dont_fragment: bool,
    fragment: Fragment,
}

impl Header {
    /// Reads the header of one packet, which must fill `packet` exactly.
    ///
    /// IPv6 extension headers that an end of the path handles (RFC 8200 section 4) are walked; one
    /// that is cut short or unknown ends the walk and counts as the payload.
    ///
    /// # Errors
    /// [`Dropped::Malformed`] when the version is neither 4 nor 6, the header is too short for
    /// its version, or the length it states is not that of `packet`.
    pub fn parse(packet: &[u8]) -> Result<Self, Dropped> {
        Self::parse_front(packet, packet.len())
    }

    /// As [`Self::parse`], of a packet of `whole` bytes of which `packet` is the front: at least all
    /// of its headers, since one that is cut short counts as payload.
    ///
    /// # Errors
    /// As [`Self::parse`].
    pub fn parse_front(packet: &[u8], whole: usize) -> Result<Self, Dropped> {
        match packet.first().map(|byte| byte >> 4) {
            Some(4) => Self::parse_v4(packet, whole),
            Some(6) => Self::parse_v6(packet, whole),
            _ => None,
        }
        .ok_or(Dropped::Malformed { len: whole })
    }

    fn parse_v4(packet: &[u8], whole: usize) -> Option<Self> {
        let (fixed, _) = packet.split_first_chunk::<20>()?;
        let header_len = u16::from(fixed[0] & 0x0f) * 4;
        let len = usize::from(u16::from_be_bytes([fixed[2], fixed[3]]));
        if header_len < 20 || len < usize::from(header_len) || len != whole {
            return None;
        }
        let place = u16::from_be_bytes([fixed[6], fixed[7]]);
        Some(Self {
            src: IpAddr::V4(Ipv4Addr::new(fixed[12], fixed[13], fixed[14], fixed[15])),
            dst: IpAddr::V4(Ipv4Addr::new(fixed[16], fixed[17], fixed[18], fixed[19])),
            len,
            header_len,
            protocol: fixed[9],
            traffic_class: fixed[1],
            dont_fragment: place & 0x4000 != 0,
            fragment: fragment(place & 0x1fff, place & 0x2000 != 0),
        })
    }

    fn parse_v6(packet: &[u8], whole: usize) -> Option<Self> {
        let (fixed, _) = packet.split_first_chunk::<40>()?;
        let len = usize::from(u16::from_be_bytes([fixed[4], fixed[5]])) + 40;
        if len != whole {
            return None;
        }
        let (_, addresses) = fixed.split_first_chunk::<8>()?;
        let (src, dst) = addresses.split_first_chunk::<16>()?;
        let mut header = Self {
            src: IpAddr::V6(Ipv6Addr::from(*src)),
            dst: IpAddr::V6(Ipv6Addr::from(*dst.first_chunk::<16>()?)),
            len,
            header_len: 40,
            protocol: fixed[6],
            traffic_class: fixed[0] << 4 | fixed[1] >> 4,
            dont_fragment: true,
            fragment: Fragment::Whole,
        };
        while matches!(header.protocol, HOP_BY_HOP | ROUTING | FRAGMENT | DESTINATION)
            && header.fragment != Fragment::Later
        {
            let at = usize::from(header.header_len);
            let Some(&[next, units, high, low]) = packet.get(at..).and_then(|rest| rest.first_chunk::<4>()) else {
                break;
            };
            let extension_len = if header.protocol == FRAGMENT { 8 } else { (u16::from(units) + 1) * 8 };
            let Some(end) = header.header_len.checked_add(extension_len).filter(|end| usize::from(*end) <= len) else {
                break;
            };
            if header.protocol == FRAGMENT {
                let place = u16::from_be_bytes([high, low]);
                header.fragment = fragment(place >> 3, place & 1 != 0);
            }
            header.protocol = next;
            header.header_len = end;
        }
        Some(header)
    }

    /// Who sent it.
    pub fn src(&self) -> IpAddr {
        self.src
    }

    /// Whom it is for.
    pub fn dst(&self) -> IpAddr {
        self.dst
    }

    /// The whole packet, in bytes.
    // A packet is never empty.
    #[allow(clippy::len_without_is_empty, reason = "a packet has at least 20 bytes")]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Bytes before the transport header: the IP header with its options or extension headers.
    pub fn header_len(&self) -> usize {
        usize::from(self.header_len)
    }

    /// The transport's protocol number (IANA), such as 6 for TCP.
    pub fn protocol(&self) -> u8 {
        self.protocol
    }

    /// May no router fragment it? Always so in IPv6.
    pub fn dont_fragment(&self) -> bool {
        self.dont_fragment
    }

    /// Which part of a datagram it carries.
    pub fn fragment(&self) -> Fragment {
        self.fragment
    }

    /// The ECN field, 0 to 3 (RFC 3168).
    pub fn ecn(&self) -> u8 {
        self.traffic_class & 3
    }

    /// Source and destination as they stand in `packet`, which must be the parsed one.
    pub fn addresses<'a>(&self, packet: &'a [u8]) -> &'a [u8] {
        let range = if self.src.is_ipv4() { 12..20 } else { 8..40 };
        packet.get(range).unwrap_or_default()
    }

    /// The bytes behind [`Self::header_len`] of `packet`, which must be the parsed one.
    pub fn payload<'a>(&self, packet: &'a [u8]) -> &'a [u8] {
        packet.get(self.header_len()..).unwrap_or_default()
    }
}

fn fragment(offset: u16, more: bool) -> Fragment {
    match (offset, more) {
        (0, false) => Fragment::Whole,
        (0, true) => Fragment::First,
        _ => Fragment::Later,
    }
}

// IPv6 extension headers (RFC 8200 section 4). A chain of them is at most as long as the packet.
const HOP_BY_HOP: u8 = 0;
const ROUTING: u8 = 43;
const FRAGMENT: u8 = 44;
const DESTINATION: u8 = 60;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn an_ipv4_header_is_read() {
        let mut packet =
            vec![0x46, 0x03, 0, 30, 0, 1, 0x40, 0, 64, 17, 0, 0, 192, 0, 2, 1, 198, 51, 100, 2, 1, 1, 1, 0];
        packet.extend([9; 6]);
        let header = Header::parse(&packet).unwrap();
        assert_eq!((header.src(), header.dst()), ([192, 0, 2, 1].into(), [198, 51, 100, 2].into()));
        assert_eq!((header.len(), header.header_len(), header.protocol(), header.ecn()), (30, 24, 17, 3));
        assert!(header.dont_fragment());
        assert_eq!(header.payload(&packet), [9; 6]);
        assert_eq!(header.addresses(&packet), [192, 0, 2, 1, 198, 51, 100, 2]);
    }

    #[test]
    fn ipv6_extension_headers_are_walked_to_the_transport() {
        // Hop-by-hop (8 bytes), destination options (16), a first fragment (8), TCP.
        let mut packet = v6(0, 8 + 16 + 8 + 20);
        packet[1] = 0x10;
        packet[40..42].copy_from_slice(&[60, 0]);
        packet[48..50].copy_from_slice(&[44, 1]);
        packet[64..68].copy_from_slice(&[6, 0, 0, 1]);
        let header = Header::parse(&packet).unwrap();
        assert_eq!((header.protocol(), header.header_len(), header.fragment()), (6, 72, Fragment::First));
        assert_eq!(header.ecn(), 1);
        packet[66] = 1;
        assert_eq!(Header::parse(&packet).unwrap().fragment(), Fragment::Later);
        // What follows a later fragment's header is no header, whatever it says.
        packet[64] = 60;
        let later = Header::parse(&packet).unwrap();
        assert_eq!((later.protocol(), later.header_len()), (60, 72));
        packet[64] = 6;
        packet[66..68].fill(0);
        assert_eq!(Header::parse(&packet).unwrap().fragment(), Fragment::Whole);
    }

    #[test]
    fn an_extension_header_cut_short_is_payload() {
        let mut packet = v6(0, 8);
        packet[40..42].copy_from_slice(&[60, 9]);
        let header = Header::parse(&packet).unwrap();
        assert_eq!((header.protocol(), header.header_len()), (0, 40));
    }

    #[test]
    fn fragments_of_ipv4_are_told_apart() {
        for (place, fragment) in [
            ([0x40, 0], Fragment::Whole),
            ([0x20, 0], Fragment::First),
            ([0x20, 1], Fragment::Later),
            ([0x1f, 0xff], Fragment::Later),
        ] {
            let packet = [&[0x45, 0, 0, 20, 0, 1][..], &place, &[64, 6, 0, 0, 192, 0, 2, 1, 198, 51, 100, 2]].concat();
            assert_eq!(Header::parse(&packet).unwrap().fragment(), fragment);
        }
    }

    #[test]
    fn a_packet_that_is_not_its_stated_length_is_malformed() {
        let v4 = [0x45, 0, 0, 20, 0, 1, 0x40, 0, 64, 6, 0, 0, 192, 0, 2, 1, 198, 51, 100, 2];
        for whole in [v4.to_vec(), v6(59, 0), v6(17, 100)] {
            assert!(Header::parse(&whole).is_ok());
            for cut in 0..whole.len() {
                assert_eq!(Header::parse(&whole[..cut]), Err(Dropped::Malformed { len: cut }));
            }
            let long = [&whole[..], &[0]].concat();
            assert_eq!(Header::parse(&long), Err(Dropped::Malformed { len: long.len() }));
        }
        for first in [0x44, 0x46, 0x55, 0x00, 0x75] {
            let mut wrong = v4;
            wrong[0] = first;
            assert_eq!(Header::parse(&wrong), Err(Dropped::Malformed { len: 20 }));
        }
    }

    #[test]
    fn every_reason_has_its_own_word() {
        let mut words = Dropped::WORDS.to_vec();
        words.sort_unstable();
        words.dedup();
        assert_eq!(words.len(), Dropped::KINDS);
        assert_eq!(Dropped::WORDS[Dropped::Unjoined.index()], "unjoined");
        assert_eq!(Dropped::WORDS[Dropped::UnknownKind { kind: 9 }.index()], "unknown_kind");
    }

    proptest! {
        #[test]
        fn anything_parses_or_is_malformed(mut bytes in prop::collection::vec(any::<u8>(), 0..200), tidy: bool, next in prop::sample::select(vec![0u8, 6, 43, 44, 60])) {
            let len = bytes.len() as u16;
            if let Some(fixed) = bytes.first_chunk_mut::<40>().filter(|_| tidy) {
                fixed[0] = 0x60;
                fixed[4..6].copy_from_slice(&(len - 40).to_be_bytes());
                fixed[6] = next;
            }
            match Header::parse(&bytes) {
                Ok(header) => {
                    prop_assert_eq!(header.len(), bytes.len());
                    prop_assert_eq!(header.payload(&bytes).len() + header.header_len(), bytes.len());
                    prop_assert_eq!(header.addresses(&bytes).len(), if header.src().is_ipv4() { 8 } else { 32 });
                }
                Err(why) => prop_assert_eq!(why, Dropped::Malformed { len: bytes.len() }),
            }
        }
    }

    /// A packet with `len` bytes of zeros behind its fixed header.
    fn v6(next: u8, len: usize) -> Vec<u8> {
        let mut packet = vec![0; 40 + len];
        packet[0] = 0x60;
        packet[4..6].copy_from_slice(&(len as u16).to_be_bytes());
        packet[6] = next;
        packet
    }
}
