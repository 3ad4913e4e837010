//! Pieces in any order, damaged or repeated, make whole packets or nothing, and each is accounted for; a
//! packet cut in two comes back as it was.
#![no_main]

use std::time::{Duration, Instant};

use bytes::Bytes;
use culvert_tunnel::packet::Header;
use culvert_tunnel::pieces::{Joiner, LIFE, split_in_two};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let start = Instant::now();
    any_payloads(start, data);
    let [id, max, packet @ ..] = data else { return };
    round_trip(start, u16::from(*id), usize::from(*max) * 8, packet);
});

/// The input as payloads: a length, a pause in units of 4 ms, and so many bytes.
fn any_payloads(mut now: Instant, mut data: &[u8]) {
    let mut joiner = Joiner::new();
    let (mut taken, mut ended) = (0, 0);
    while let [len, pause, rest @ ..] = data {
        let (payload, behind) = rest.split_at(usize::from(*len).min(rest.len()));
        data = behind;
        now += Duration::from_millis(u64::from(*pause) * 4);
        taken += 1;
        match joiner.on_piece(now, payload, pause & 1 == 1) {
            Ok(None) => {}
            Ok(Some(joined)) => {
                Header::parse(&joined.packet).expect("what is joined is a packet");
                ended += 2;
            }
            // Of no piece itself, or of two that made no packet.
            Err(_) => ended += if is_piece(payload) { 2 } else { 1 },
        }
        ended += joiner.expire(now);
        assert_eq!(joiner.poll_timeout().is_some(), taken > ended, "a timeout is due while something waits");
    }
    ended += joiner.expire(now + LIFE);
    assert_eq!(ended, taken, "each was joined, refused or given up");
    assert_eq!(joiner.poll_timeout(), None);
}

fn is_piece(payload: &[u8]) -> bool {
    matches!(payload, [2, 0 | 1, _, _, _, ..])
}

fn round_trip(now: Instant, id: u16, max_bytes: usize, packet: &[u8]) {
    let packet = Bytes::copy_from_slice(packet);
    let Some(halves) = split_in_two(&packet, id, max_bytes) else {
        assert!(packet.len() < 2 || packet.len().div_ceil(2) + 4 > max_bytes, "two would have sufficed");
        return;
    };
    assert!(halves.iter().all(|half| half.len() <= max_bytes));
    for [a, b] in [[0, 1], [1, 0]] {
        let mut joiner = Joiner::new();
        assert_eq!(joiner.on_piece(now, &halves[a], false), Ok(None));
        match joiner.on_piece(now, &halves[b], false) {
            Ok(whole) => assert_eq!(whole.map(|joined| joined.packet), Some(packet.clone())),
            Err(_) => assert!(Header::parse(&packet).is_err(), "a packet was refused"),
        }
    }
}
