//! An inner packet larger than one datagram crosses as two, joined again on the far side.
//!
//! Needed only where the path carries less than the tunnel's smallest inner MTU, 1,280 bytes (IPv6
//! allows no less). A piece is the payload of one DATAGRAM frame:
//!
//! ```text
//! byte 0     0x02, the kind
//! byte 1     which half: 0 the first, 1 the second; others are malformed
//! byte 2, 3  identification, big-endian: equal in both halves, counts up per packet and link
//! byte 4...  bytes of the packet, at least one
//! ```
//!
//! The halves differ by at most one byte, so that a path that shrinks takes both or none. Lengths
//! are not sent: the IP header has them. What waits for its other half is bounded in number,
//! bytes and time; what is given up is counted, never joined with a stranger unnoticed: the whole
//! must be one IP packet again.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use bytes::{BufMut, Bytes, BytesMut};

use crate::packet::{Dropped, Header};

/// First byte of a DATAGRAM payload that is half of a packet.
pub const KIND: u8 = 0x02;
/// Bytes of a piece in front of the packet's.
pub const HEADER_LEN: usize = 4;
/// How long a half waits for the other.
pub const LIFE: Duration = Duration::from_millis(200);

/// Halves that may wait at once.
const MAX_WAITING: usize = 16;
/// Bytes that waiting halves may hold.
const MAX_BYTES: usize = 64 * 1024;

/// Cuts a packet into two datagram payloads of at most `max_datagram` bytes each.
///
/// `None` when two do not suffice, or when there is nothing to cut. The pieces share one allocation.
pub fn split_in_two(packet: &Bytes, id: u16, max_datagram: usize) -> Option<[Bytes; 2]> {
    let middle = packet.len().div_ceil(2);
    let (first, second) = packet.split_at_checked(middle)?;
    if second.is_empty() || middle + HEADER_LEN > max_datagram {
        return None;
    }
    let mut buffer = BytesMut::with_capacity(packet.len() + 2 * HEADER_LEN);
    let mut piece = |half: u8, bytes: &[u8]| {
        buffer.put_slice(&[KIND, half]);
        buffer.put_u16(id);
        buffer.put_slice(bytes);
        buffer.split().freeze()
    };
    Some([piece(0, first), piece(1, second)])
}

/// A packet made of two halves.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Joined {
    /// The whole.
    pub packet: Bytes,
    /// The path marked one of them "congestion experienced", and so the packet (RFC 3168 section 5.3).
    pub marked: bool,
}

/// Joins the halves that one link receives.
#[derive(Debug, Default)]
pub struct Joiner {
    /// Oldest first.
    waiting: VecDeque<Half>,
    /// The sum of their capacities.
    bytes: usize,
    /// Given up since [`Self::expire`] last told.
    given_up: usize,
}

#[derive(Debug)]
struct Half {
    id: u16,
    half: u8,
    since: Instant,
    /// The path marked it "congestion experienced".
    marked: bool,
    /// Our own copy: the datagram's buffer may be far larger. A first half has room for the second.
    bytes: BytesMut,
}

impl Joiner {
    /// With nothing waiting.
    pub fn new() -> Self {
        Self::default()
    }

    /// Takes one DATAGRAM payload of [`KIND`]; the packet, once both halves are there.
    ///
    /// `marked`: the path marked it "congestion experienced". Halves come in any order. One that is
    /// displaced (by a newer one with its place, or by want of room) or outlives [`LIFE`] is given up, which [`Self::expire`] counts.
    ///
    /// # Errors
    /// [`Dropped::Malformed`] when `payload` is no piece, or when what the two halves make is not
    /// one IP packet; then both are gone.
    pub fn on_piece(&mut self, now: Instant, payload: &[u8], marked: bool) -> Result<Option<Joined>, Dropped> {
        let malformed = Dropped::Malformed { len: payload.len() };
        let Some((&[KIND, half @ (0 | 1), high, low], bytes)) = payload.split_first_chunk::<HEADER_LEN>() else {
            return Err(malformed);
        };
        // No half of a 65,535-byte packet is longer; and its room stays within the bound.
        if bytes.is_empty() || bytes.len() > MAX_BYTES / 2 {
            return Err(malformed);
        }
        let id = u16::from_be_bytes([high, low]);
        self.give_up_old(now);
        let Some(other) = self.take(id) else {
            self.wait(now, id, half, bytes, marked);
            return Ok(None);
        };
        if other.half == half {
            self.given_up += 1;
            self.wait(now, id, half, bytes, marked);
            return Ok(None);
        }
        let packet = if half == 1 {
            let mut packet = other.bytes;
            packet.put_slice(bytes);
            packet
        } else {
            let mut packet = BytesMut::with_capacity(bytes.len() + other.bytes.len());
            packet.put_slice(bytes);
            packet.put_slice(&other.bytes);
            packet
        };
        Header::parse(&packet)?;
        Ok(Some(Joined { packet: packet.freeze(), marked: marked || other.marked }))
    }

    /// Gives up what has waited too long. Returns how many halves were given up since the last
    /// call, for whatever reason: each is one [`Dropped::Unjoined`].
    pub fn expire(&mut self, now: Instant) -> usize {
        self.give_up_old(now);
        std::mem::take(&mut self.given_up)
    }

    /// When to call [`Self::expire`] next; `None` while nothing waits.
    pub fn poll_timeout(&self) -> Option<Instant> {
        self.waiting.front().map(|oldest| oldest.since + LIFE)
    }

    fn take(&mut self, id: u16) -> Option<Half> {
        let place = self.waiting.iter().position(|half| half.id == id)?;
        let half = self.waiting.remove(place)?;
        self.bytes -= half.bytes.capacity();
        Some(half)
    }

    fn wait(&mut self, now: Instant, id: u16, half: u8, bytes: &[u8], marked: bool) {
        let room = if half == 0 { bytes.len() * 2 } else { bytes.len() };
        while !self.waiting.is_empty() && (self.waiting.len() >= MAX_WAITING || self.bytes + room > MAX_BYTES) {
            self.give_up_oldest();
        }
        let mut copy = BytesMut::with_capacity(room);
        copy.put_slice(bytes);
        self.bytes += copy.capacity();
        self.waiting.push_back(Half { id, half, since: now, marked, bytes: copy });
    }

    fn give_up_old(&mut self, now: Instant) {
        while self.waiting.front().is_some_and(|oldest| now.saturating_duration_since(oldest.since) >= LIFE) {
            self.give_up_oldest();
        }
    }

    fn give_up_oldest(&mut self) {
        if let Some(half) = self.waiting.pop_front() {
            self.bytes -= half.bytes.capacity();
            self.given_up += 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_packet_crosses_in_halves_whatever_their_order() {
        let now = Instant::now();
        for len in [20, 21, 1279, 1280] {
            let packet = packet(len);
            let halves = split_in_two(&packet, 7, 1200).unwrap();
            for [a, b] in [[0, 1], [1, 0]] {
                let mut joiner = Joiner::new();
                assert_eq!(join(&mut joiner, now, &halves[a]), Ok(None));
                assert_eq!(join(&mut joiner, now, &halves[b]), Ok(Some(packet.clone())));
                assert_eq!((joiner.expire(now + LIFE), joiner.bytes, joiner.poll_timeout()), (0, 0, None));
            }
        }
    }

    #[test]
    fn a_mark_on_one_half_marks_the_whole() {
        let now = Instant::now();
        let whole = packet(1280);
        let halves = split_in_two(&whole, 7, 1200).unwrap();
        for marks in [[false, true], [true, false], [true, true]] {
            let mut joiner = Joiner::new();
            assert_eq!(joiner.on_piece(now, &halves[0], marks[0]), Ok(None));
            let joined = joiner.on_piece(now, &halves[1], marks[1]);
            assert_eq!(joined, Ok(Some(Joined { packet: whole.clone(), marked: true })));
        }
    }

    #[test]
    fn a_packet_that_two_datagrams_cannot_carry_is_not_cut() {
        assert!(split_in_two(&packet(1280), 1, 644).is_some());
        assert_eq!(split_in_two(&packet(1280), 1, 643), None);
        assert_eq!(split_in_two(&packet(1281), 1, 644), None);
        assert_eq!(split_in_two(&Bytes::new(), 1, 1200), None);
        assert_eq!(split_in_two(&Bytes::from_static(b"E"), 1, 1200), None);
    }

    #[test]
    fn a_half_is_given_up_after_its_life_and_counted_once() {
        let now = Instant::now();
        let [first, second] = split_in_two(&packet(1280), 1, 1200).unwrap();
        let mut joiner = Joiner::new();
        assert_eq!(join(&mut joiner, now, &first), Ok(None));
        assert_eq!(joiner.poll_timeout(), Some(now + LIFE));
        assert_eq!(joiner.expire(now + LIFE - Duration::from_millis(1)), 0);
        assert_eq!(join(&mut joiner, now + LIFE, &second), Ok(None));
        assert_eq!(joiner.expire(now + LIFE), 1);
        assert_eq!(joiner.expire(now + LIFE * 2), 1);
        assert_eq!(joiner.expire(now + LIFE * 3), 0);
    }

    #[test]
    fn a_duplicate_takes_the_place_of_the_first() {
        let now = Instant::now();
        let packet = packet(900);
        let [first, second] = split_in_two(&packet, 1, 1200).unwrap();
        let mut joiner = Joiner::new();
        assert_eq!(join(&mut joiner, now, &first), Ok(None));
        assert_eq!(join(&mut joiner, now, &first), Ok(None));
        assert_eq!(join(&mut joiner, now, &second), Ok(Some(packet)));
        assert_eq!(joiner.expire(now), 1);
    }

    #[test]
    fn halves_of_different_packets_make_none() {
        let now = Instant::now();
        let [first, _] = split_in_two(&packet(900), 1, 1200).unwrap();
        let [_, second] = split_in_two(&packet(1000), 1, 1200).unwrap();
        let mut joiner = Joiner::new();
        assert_eq!(join(&mut joiner, now, &first), Ok(None));
        assert_eq!(join(&mut joiner, now, &second), Err(Dropped::Malformed { len: 950 }));
        assert_eq!((joiner.expire(now), joiner.bytes), (0, 0));
    }

    #[test]
    fn a_flood_of_halves_stays_within_bounds() {
        let now = Instant::now();
        for len in [8, 1280, 16_000, 64_000] {
            let mut joiner = Joiner::new();
            for id in 0..1000 {
                for half in split_in_two(&packet(len.max(20)), id, 40_000).unwrap().into_iter().take(1) {
                    assert_eq!(join(&mut joiner, now, &half), Ok(None));
                    assert!(joiner.waiting.len() <= MAX_WAITING && joiner.bytes <= MAX_BYTES);
                }
            }
            assert_eq!(joiner.expire(now + LIFE), 1000);
        }
    }

    #[test]
    fn what_is_no_piece_is_malformed() {
        let mut joiner = Joiner::new();
        for payload in [&[][..], &[2], &[2, 0, 0, 1], &[2, 2, 0, 1, 9], &[2, 0x80, 0, 1, 9], &[0x45, 0, 0, 1, 9]] {
            let malformed = Err(Dropped::Malformed { len: payload.len() });
            assert_eq!(join(&mut joiner, Instant::now(), payload), malformed);
        }
        assert_eq!(joiner.poll_timeout(), None);
    }

    proptest! {
        #[test]
        fn every_half_is_joined_or_counted(pieces in prop::collection::vec((0u16..24, 0usize..2, 20usize..3000, 0u64..40), 0..200)) {
            let mut now = Instant::now();
            let mut joiner = Joiner::new();
            let mut ends = 0;
            for (id, half, len, wait_ms) in &pieces {
                now += Duration::from_millis(*wait_ms);
                let halves = split_in_two(&packet(*len), *id, 2000).unwrap();
                match join(&mut joiner, now, &halves[*half]) {
                    Ok(None) => {}
                    Ok(Some(packet)) => {
                        prop_assert!(Header::parse(&packet).is_ok());
                        ends += 2;
                    }
                    Err(_) => ends += 2,
                }
                prop_assert!(joiner.waiting.len() <= MAX_WAITING && joiner.bytes <= MAX_BYTES);
            }
            ends += joiner.expire(now + LIFE);
            prop_assert_eq!(ends, pieces.len());
            prop_assert_eq!(joiner.bytes, 0);
        }

        #[test]
        fn arbitrary_payloads_never_panic(payloads in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..80), 0..50), tidy: bool) {
            let mut joiner = Joiner::new();
            for mut payload in payloads {
                if let Some(head) = payload.first_chunk_mut::<4>().filter(|_| tidy) {
                    *head = [KIND, head[1] & 1, 0, head[3] & 3];
                }
                if let Ok(Some(packet)) = join(&mut joiner, Instant::now(), &payload) {
                    prop_assert!(Header::parse(&packet).is_ok());
                }
            }
        }
    }

    fn join(joiner: &mut Joiner, now: Instant, payload: &[u8]) -> Result<Option<Bytes>, Dropped> {
        Ok(joiner.on_piece(now, payload, false)?.map(|joined| {
            assert!(!joined.marked, "no half was");
            joined.packet
        }))
    }

    fn packet(len: usize) -> Bytes {
        let mut packet: Vec<u8> = (0..len).map(|i| (i * 7) as u8).collect();
        packet[..12].copy_from_slice(&[0x45, 0, 0, 0, 0, 1, 0x40, 0, 64, 17, 0, 0]);
        packet[2..4].copy_from_slice(&(len as u16).to_be_bytes());
        packet.into()
    }
}
