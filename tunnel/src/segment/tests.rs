//! Splitting and coalescing against each other, and against an independent checksum.

use std::collections::HashMap;

use bytes::BytesMut;
use proptest::prelude::*;
use proptest::sample::Index;

use super::*;
use crate::checksum::naive::{self, whole_packet_is_valid};
use crate::checksum::verify_tcp;
use crate::packet::{Dropped, Header};

const FIN: u8 = 0x01;
const SYN: u8 = 0x02;
const PSH: u8 = 0x08;
const ACK: u8 = 0x10;
const CWR: u8 = 0x80;
/// NOP, NOP, timestamps (RFC 7323), as Linux sends them.
const TIMESTAMPS: [u8; 12] = [1, 1, 8, 10, 0, 0, 0, 9, 0, 0, 0, 3];

proptest! {
    #[test]
    fn every_segment_is_whole_and_in_its_place(tcp in tcp(), payload in payload(), size in 1u16..3000, marks in any::<(bool, bool, bool)>()) {
        let mut flags = ACK;
        for (bit, set) in [(FIN, marks.0), (PSH, marks.1), (CWR, marks.2)] {
            flags |= if set { bit } else { 0 };
        }
        let tcp = Tcp { flags, ..tcp };
        let (header, frame) = tcp.super_packet(&payload, size);
        let segments = split_all(&header, &frame).unwrap();
        prop_assert_eq!(segments.len(), payload.len().div_ceil(size.into()).max(1));
        let mut at = 0;
        for (index, segment) in segments.iter().enumerate() {
            let (first, last) = (index == 0, index + 1 == segments.len());
            prop_assert!(Header::parse(segment).is_ok() && whole_packet_is_valid(segment) && verify_tcp(segment));
            let bytes = &segment[tcp.head_len()..];
            prop_assert!(bytes.len() == usize::from(size) || last);
            let flags = flags & !(if last { 0 } else { FIN | PSH }) & !(if first { 0 } else { CWR });
            let id = tcp.id.wrapping_add(index as u16);
            let expected = Tcp { seq: tcp.seq.wrapping_add(at as u32), id, flags, ..tcp.clone() };
            prop_assert_eq!(segment, &expected.packet(bytes));
            prop_assert_eq!(bytes, &payload[at..at + bytes.len()]);
            at += bytes.len();
        }
        prop_assert_eq!(at, payload.len());
    }

    #[test]
    fn what_was_split_is_coalesced_into_the_very_same_frame(tcp in tcp(), size in 1u16..1460, segments in 2usize..=64, short in any::<Index>(), push: bool) {
        let len = (size as usize * (segments - 1) + 1 + short.index(size.into())).min(65_535 - tcp.head_len());
        let payload: Vec<u8> = (0..len).map(|i| ((i * 31) >> 3) as u8).collect();
        let tcp = Tcp { flags: if push { ACK | PSH } else { ACK }, ..tcp };
        let (header, frame) = tcp.super_packet(&payload, size);
        let mut coalescer = Coalescer::new();
        let count = split(&header, &frame, &mut |packet| coalescer.push(packet)).unwrap();
        prop_assert!(count > 1);
        prop_assert_eq!(coalescer.frames().len(), 1);
        prop_assert_eq!(coalescer.frames()[0].header, header);
        prop_assert_eq!(coalescer.frames()[0].len(), frame.len());
        prop_assert_eq!(concat(&coalescer.frames()[0]), frame);
    }

    #[test]
    fn a_frame_read_with_gaps_is_cut_as_one_without(frames in prop::collection::vec(device_frame(), 1..12)) {
        let (mut intake, mut spare) = (Intake::default(), BytesMut::new());
        for (header, frame) in frames {
            let expected = split_all(&header, &frame);
            let mut read = read(&mut intake, &header, &frame);
            prop_assert_eq!(read.vnet, header);
            prop_assert_eq!(read.header(), Header::parse(&frame));
            if frame.len() % 7 == 0 {
                prop_assert_eq!(read.bytes(), &frame[..]);
            }
            let mut packets = Vec::new();
            let told = read.cut(&mut spare, &mut |packet| packets.push(packet));
            prop_assert_eq!(told.map(|count| { assert_eq!(count, packets.len()); packets }), expected);
        }
    }

    #[test]
    fn udp_that_was_split_is_coalesced_into_the_very_same_frame(v4: bool, size in 1u16..1460, segments in 2usize..=64, short in any::<Index>()) {
        let len = size as usize * (segments - 1) + 1 + short.index(size.into());
        let payload: Vec<u8> = (0..len.min(65_000)).map(|i| ((i * 31) >> 3) as u8).collect();
        let (header, frame) = udp_super_packet(v4, &payload, size);
        let mut coalescer = Coalescer::new();
        coalescer.set_udp(true);
        let count = split(&header, &frame, &mut |packet| coalescer.push(packet)).unwrap();
        if count > 1 {
            prop_assert_eq!(coalescer.frames().len(), 1);
            prop_assert_eq!(coalescer.frames()[0].header, header);
            prop_assert_eq!(concat(&coalescer.frames()[0]), frame);
        }
    }

    #[test]
    fn coalescing_changes_no_packet_and_no_order_within_a_flow(packets in traffic()) {
        let mut coalescer = Coalescer::new();
        // Twice, since the second batch runs in the allocations of the first.
        for _ in 0..2 {
            coalescer.clear();
            for packet in &packets {
                coalescer.push(packet.clone());
            }
            let mut out = Vec::new();
            for frame in coalescer.frames() {
                prop_assert!(frame.len() <= SuperPacket::MAX_LEN);
                prop_assert_eq!(frame.len(), concat(frame).len());
                if frame.header.is_super() {
                    out.extend(split_all(&frame.header, &concat(frame)).unwrap());
                } else {
                    prop_assert_eq!(frame.header, VnetHeader::default());
                    out.push(concat(frame).into());
                }
            }
            prop_assert_eq!(by_flow(&out), by_flow(&packets));
        }
    }

    #[test]
    fn arbitrary_frames_never_panic_and_what_comes_out_is_a_packet(header: [u8; 10], frame in prop::collection::vec(any::<u8>(), 0..300), kind in 0u8..8) {
        let header = VnetHeader::from_bytes(&header);
        for header in [header, VnetHeader { gso_type: kind, ..header }] {
            let _ = split(&header, &frame, &mut |packet| assert!(Header::parse(&packet).is_ok()));
        }
        Coalescer::new().push(frame.into());
    }

    #[test]
    fn damaged_super_packets_never_panic(tcp in tcp(), payload in payload(), size in 1u16..3000, damage in prop::collection::vec((0usize..60, any::<u8>()), 1..6), kind in 0u8..8, cut in any::<Index>()) {
        let (header, mut frame) = tcp.super_packet(&payload, size);
        for (at, value) in damage {
            if let Some(byte) = frame.get_mut(at) {
                *byte = value;
            }
        }
        let header = VnetHeader { gso_type: if kind == 7 { header.gso_type } else { kind }, ..header };
        let short = frame[..cut.index(frame.len())].to_vec();
        for frame in [frame, short] {
            let mut coalescer = Coalescer::new();
            let told = split(&header, &frame, &mut |packet| {
                assert!(Header::parse(&packet).is_ok());
                coalescer.push(packet);
            });
            let told_well = matches!(told, Ok(1..) | Err(Dropped::Malformed { .. }));
            prop_assert!(told_well, "{:?}", told);
        }
    }

    #[test]
    fn a_partial_checksum_is_completed(tcp in tcp(), payload in payload()) {
        // A lone packet of the kernel's, with the pseudo-header's sum in the field.
        let (header, frame) = tcp.super_packet(&payload, u16::MAX);
        let header = VnetHeader { gso_type: VnetHeader::GSO_NONE, gso_size: 0, ..header };
        let packets = split_all(&header, &frame).unwrap();
        prop_assert_eq!(packets.len(), 1);
        prop_assert!(whole_packet_is_valid(&packets[0]));
        prop_assert_eq!(packets[0].len(), frame.len());
    }

    #[test]
    fn udp_super_packets_become_whole_datagrams(v4: bool, payload in payload(), size in 1u16..3000) {
        let header = VnetHeader { flags: VnetHeader::NEEDS_CSUM, gso_type: VnetHeader::GSO_UDP_L4, gso_size: size, ..Default::default() };
        let frame = udp(v4, &payload);
        let datagrams = split_all(&header, &frame).unwrap();
        let head_len = frame.len() - payload.len();
        for datagram in &datagrams {
            prop_assert!(whole_packet_is_valid(datagram));
            let stated = u16::from_be_bytes([datagram[head_len - 4], datagram[head_len - 3]]);
            prop_assert_eq!(usize::from(stated), datagram.len() - head_len + 8);
            prop_assert_ne!(&datagram[head_len - 2..head_len], &[0, 0][..]);
        }
        let bytes: Vec<u8> = datagrams.iter().flat_map(|datagram| &datagram[head_len..]).copied().collect();
        prop_assert_eq!(bytes, payload);
    }
}

#[test]
fn super_packets_of_one_kind_are_cut_where_they_were_read() {
    let mut intake = Intake::default();
    let (header, frame) = Tcp::example(true).super_packet(&[7; 20_000], 1338);
    for round in 0..40 {
        let mut spare = BytesMut::with_capacity(1 << 16);
        let mut packets = Vec::new();
        read(&mut intake, &header, &frame).cut(&mut spare, &mut |packet| packets.push(packet)).unwrap();
        assert_eq!(packets, split_all(&header, &frame).unwrap());
        assert_eq!(spare.capacity() < 1 << 16, round == 0, "only the first one is copied");
    }
}

#[test]
fn udp_without_a_checksum_or_for_another_device_stays_alone() {
    let (header, frame) = udp_super_packet(true, &[3; 3000], 1000);
    let datagrams = split_all(&header, &frame).unwrap();
    let mut coalescer = Coalescer::new();
    for datagram in &datagrams {
        coalescer.push(datagram.clone());
    }
    assert_eq!(coalescer.frames().len(), 3, "the device takes none");
    coalescer.set_udp(true);
    for without in 0..3 {
        coalescer.clear();
        for (index, datagram) in datagrams.iter().enumerate() {
            let mut datagram = datagram.to_vec();
            if index == without {
                datagram[26..28].fill(0);
            }
            coalescer.push(datagram.into());
        }
        let expected = [vec![1, 2], vec![1, 1, 1], vec![2, 1]][without].clone();
        let pieces: Vec<usize> = coalescer.frames().iter().map(|frame| frame.pieces.len()).collect();
        assert_eq!(pieces, expected);
    }
}

#[test]
fn frames_taken_while_others_grow_are_neither_lost_nor_reordered() {
    let mut coalescer = Coalescer::new();
    let (mut a, mut b) = (Tcp::example(true), Tcp { port: 9, ..Tcp::example(true) });
    let mut taken = Vec::new();
    let take = |coalescer: &mut Coalescer, all: bool, taken: &mut Vec<Bytes>| {
        let frames = if all { coalescer.frames() } else { coalescer.full_frames() };
        for frame in frames {
            taken.extend(split_all(&frame.header, &concat(frame)).unwrap());
        }
        let count = frames.len();
        coalescer.take(count);
    };
    let mut pushed = Vec::new();
    for round in 0..300 {
        for flow in [&mut a, &mut b] {
            let packet = flow.next(&[round as u8; 1000]);
            pushed.push(packet.clone());
            coalescer.push(packet);
        }
        if round % 3 == 0 {
            take(&mut coalescer, false, &mut taken);
        }
    }
    assert!(taken.len() > 300, "{} were full before the end", taken.len());
    take(&mut coalescer, true, &mut taken);
    assert_eq!(by_flow(&taken), by_flow(&pushed));
    assert!(coalescer.frames().is_empty());
}

#[test]
fn nothing_overtakes_a_fragment() {
    let (header, frame) = udp_super_packet(true, &[3; 3000], 1000);
    let datagrams = split_all(&header, &frame).unwrap();
    let mut fragment = datagrams[1].to_vec();
    fragment[6] = 0x20;
    let mut coalescer = Coalescer::new();
    coalescer.set_udp(true);
    for packet in [datagrams[0].clone(), fragment.into(), datagrams[2].clone()] {
        coalescer.push(packet);
    }
    assert_eq!(coalescer.frames().len(), 3);
}

#[test]
fn the_vnet_header_has_the_kernels_layout() {
    let bytes = [1, 0x84, 0x42, 0, 0x14, 5, 40, 0, 16, 0];
    let header = VnetHeader { flags: 1, gso_type: 0x84, hdr_len: 66, gso_size: 1300, csum_start: 40, csum_offset: 16 };
    if cfg!(target_endian = "little") {
        assert_eq!(VnetHeader::from_bytes(&bytes), header);
    }
    assert_eq!(VnetHeader::from_bytes(&header.to_bytes()), header);
    assert!(header.is_super());
    assert!(!VnetHeader { gso_type: VnetHeader::GSO_ECN, ..header }.is_super());
}

#[test]
fn packets_without_a_transport_header_pass_unchanged() {
    let bare = [0x45, 0, 0, 20, 0, 1, 0x40, 0, 64, 6, 0, 0, 192, 0, 2, 1, 192, 0, 2, 2];
    assert_eq!(split_all(&VnetHeader::default(), &bare).unwrap(), [Bytes::copy_from_slice(&bare)]);
    let mut coalescer = Coalescer::new();
    coalescer.push(Bytes::copy_from_slice(&bare));
    coalescer.push(Bytes::copy_from_slice(&bare));
    assert_eq!(shapes(&coalescer), [(1, 20), (1, 20)]);
}

#[test]
fn a_checksum_field_outside_the_packet_is_malformed() {
    let tcp = Tcp::example(true);
    let (header, frame) = tcp.super_packet(b"payload", 100);
    let lone = VnetHeader { gso_type: VnetHeader::GSO_NONE, ..header };
    let len = frame.len();
    for (csum_start, csum_offset) in [(0, 10), (19, 16), (20, (len - 21) as u16), (u16::MAX, u16::MAX), (len as u16, 0)]
    {
        let header = VnetHeader { csum_start, csum_offset, ..lone };
        assert_eq!(split_all(&header, &frame), Err(Dropped::Malformed { len }));
    }
    assert!(split_all(&VnetHeader { csum_offset: (len - 22) as u16, ..lone }, &frame).is_ok());
}

#[test]
fn a_super_packet_that_contradicts_itself_is_malformed() {
    let (header, frame) = Tcp::example(true).super_packet(&[7; 3000], 1000);
    let malformed = Err(Dropped::Malformed { len: frame.len() });
    assert_eq!(split_all(&VnetHeader { gso_size: 0, ..header }, &frame), malformed);
    assert_eq!(split_all(&VnetHeader { gso_type: VnetHeader::GSO_TCPV6, ..header }, &frame), malformed);
    assert_eq!(split_all(&VnetHeader { gso_type: VnetHeader::GSO_UDP_L4, ..header }, &frame), malformed);
    assert_eq!(split_all(&VnetHeader { gso_type: 3, ..header }, &frame), malformed);
    for (at, value) in [(0, 0x4f), (3, 0), (6, 0x20), (9, 17), (32, 0x40)] {
        let mut frame = frame.clone();
        frame[at] = value;
        assert_eq!(split_all(&header, &frame), malformed, "byte {at} = {value}");
    }
    // hdr_len and csum_start are hints only.
    assert!(split_all(&VnetHeader { hdr_len: 9999, csum_start: 3, ..header }, &frame).is_ok());
}

#[test]
fn a_buffer_is_used_again_once_its_packets_are_gone() {
    let (header, frame) = Tcp::example(false).super_packet(&[7; 30_000], 1200);
    let mut buffer = BytesMut::with_capacity(64 * 1024);
    let begin = buffer.as_ptr();
    for _ in 0..10 {
        let mut first = None;
        split_into(&mut buffer, &header, &frame, &mut |packet| {
            _ = first.get_or_insert(packet.as_ptr());
        })
        .unwrap();
        let inside = first.unwrap() as usize - begin as usize;
        assert!(inside < 64 * 1024, "the packets lie in the first allocation");
    }
}

#[test]
fn packets_of_other_flows_between_do_not_end_a_flow() {
    let mut flows: Vec<Tcp> = (0..8).map(|port| Tcp { port, ..Tcp::example(port % 2 == 0) }).collect();
    let mut coalescer = Coalescer::new();
    for _ in 0..10 {
        for flow in &mut flows {
            coalescer.push(flow.next(&[1; 1000]));
            coalescer.push(Bytes::from(udp(true, b"between")));
        }
    }
    let frames = coalescer.frames();
    assert_eq!(frames.iter().filter(|frame| frame.header.is_super()).count(), 8);
    assert_eq!(frames.len(), 8 + 80);
    for frame in frames.iter().filter(|frame| frame.header.is_super()) {
        assert_eq!(frame.len() % 1000, if frame.header.gso_type == VnetHeader::GSO_TCPV4 { 52 } else { 72 });
    }
}

#[test]
fn a_corrupt_segment_goes_through_alone_and_unchanged() {
    for corrupt in 0..5 {
        for at in [20 + 16, 60] {
            let mut flow = Tcp::example(true);
            let packets: Vec<Bytes> = (0..5)
                .map(|index| {
                    let mut packet = flow.next(&[1; 1000]).to_vec();
                    packet[at] ^= if index == corrupt { 1 } else { 0 };
                    packet.into()
                })
                .collect();
            let mut coalescer = Coalescer::new();
            packets.iter().for_each(|packet| coalescer.push(packet.clone()));
            let alone: Vec<Vec<u8>> =
                coalescer.frames().iter().filter(|frame| !frame.header.is_super()).map(concat).collect();
            assert!(alone.contains(&packets[corrupt].to_vec()), "segment {corrupt}, byte {at}");
            assert_eq!(coalescer.frames().iter().map(|frame| frame.pieces.len()).sum::<usize>(), 5);
        }
    }
}

#[test]
fn a_corrupt_ipv4_header_is_not_repaired() {
    let mut flow = Tcp::example(true);
    let packets: Vec<Bytes> = (0..2).map(|_| flow.next(&[1; 100])).collect();
    for corrupt in 0..2 {
        let mut coalescer = Coalescer::new();
        for (index, packet) in packets.iter().enumerate() {
            let mut packet = packet.to_vec();
            packet[10] ^= if index == corrupt { 1 } else { 0 };
            coalescer.push(packet.into());
        }
        assert_eq!(shapes(&coalescer), [(1, 152), (1, 152)]);
    }
}

#[test]
fn segments_that_differ_in_more_than_their_place_stay_apart() {
    type Change = fn(&mut Tcp);
    let changes: [(&str, Change); 9] = [
        ("congestion experienced", |tcp| tcp.class ^= 1),
        ("hop limit", |tcp| tcp.hops -= 1),
        ("don't fragment", |tcp| tcp.dont_fragment = false),
        ("acknowledgement", |tcp| tcp.ack += 1),
        ("window", |tcp| tcp.window += 1),
        ("timestamps", |tcp| tcp.options[7] += 1),
        ("options gone", |tcp| tcp.options.clear()),
        ("a gap", |tcp| tcp.seq += 1),
        ("FIN", |tcp| tcp.flags |= FIN),
    ];
    for (what, change) in changes {
        let mut flow = Tcp::example(true);
        let mut coalescer = Coalescer::new();
        coalescer.push(flow.next(&[1; 1000]));
        coalescer.push(flow.next(&[2; 1000]));
        change(&mut flow);
        coalescer.push(flow.next(&[3; 1000]));
        let pieces: Vec<usize> = shapes(&coalescer).iter().map(|shape| shape.0).collect();
        assert_eq!(pieces, [2, 1], "{what}");
    }
    let mut flow = Tcp { dont_fragment: false, ..Tcp::example(true) };
    let mut coalescer = Coalescer::new();
    coalescer.push(flow.next(&[1; 1000]));
    flow.id = flow.id.wrapping_add(1);
    coalescer.push(flow.next(&[2; 1000]));
    assert_eq!(coalescer.frames().len(), 2, "identifications must count up unless DF is set");
}

#[test]
fn a_short_or_pushed_segment_is_the_last_of_its_frame() {
    let mut flow = Tcp::example(false);
    let mut coalescer = Coalescer::new();
    for len in [1000, 1000, 999, 1000, 1001, 1000] {
        coalescer.push(flow.next(&vec![1; len]));
    }
    assert_eq!(shapes(&coalescer), [(3, 3071), (1, 1072), (2, 2073)]);
    coalescer.clear();
    flow.flags = ACK | PSH;
    coalescer.push(flow.next(&[1; 1000]));
    flow.flags = ACK;
    coalescer.push(flow.next(&[1; 1000]));
    assert_eq!(shapes(&coalescer), [(1, 1072), (1, 1072)]);
}

#[test]
fn acknowledgements_and_handshakes_keep_their_place_in_the_flow() {
    let mut flow = Tcp::example(true);
    let mut coalescer = Coalescer::new();
    coalescer.push(flow.next(&[1; 1000]));
    coalescer.push(flow.next(&[1; 1000]));
    coalescer.push(flow.next(&[]));
    coalescer.push(flow.next(&[1; 1000]));
    flow.flags = SYN;
    coalescer.push(flow.next(&[]));
    assert_eq!(shapes(&coalescer), [(2, 2052), (1, 52), (1, 1052), (1, 52)]);
}

#[test]
fn fragments_and_options_of_ip_are_left_alone() {
    // Each with right checksums, so that only its kind keeps it alone.
    let changes: [fn(&mut Vec<u8>); 3] = [
        |packet| packet[6] |= 0x20,
        |packet| packet[7] |= 1,
        |packet| {
            packet[0] = 0x46;
            packet[3] += 4;
            packet.splice(20..20, [1, 1, 1, 0]);
        },
    ];
    for change in changes {
        let mut flow = Tcp::example(true);
        let mut coalescer = Coalescer::new();
        for _ in 0..3 {
            let mut packet = flow.next(&[1; 100]).to_vec();
            change(&mut packet);
            packet[10..12].fill(0);
            let header_len = usize::from(packet[0] & 15) * 4;
            let sum = !naive::sum(&[&packet[..header_len]]);
            packet[10..12].copy_from_slice(&sum.to_be_bytes());
            assert!(whole_packet_is_valid(&packet));
            coalescer.push(packet.into());
        }
        assert_eq!(coalescer.frames().len(), 3);
    }
}

#[test]
fn a_batch_never_continues_the_one_before() {
    let (mut flow, mut other) = (Tcp::example(true), Tcp { port: 1, ..Tcp::example(true) });
    let mut coalescer = Coalescer::new();
    coalescer.push(flow.next(&[1; 100]));
    coalescer.push(flow.next(&[1; 100]));
    coalescer.clear();
    assert!(coalescer.frames().is_empty());
    coalescer.push(other.next(&[1; 100]));
    coalescer.push(flow.next(&[1; 100]));
    assert_eq!(shapes(&coalescer), [(1, 152), (1, 152)]);
}

#[test]
fn a_udp_checksum_of_zero_is_sent_as_all_ones() {
    let header = VnetHeader { gso_type: VnetHeader::GSO_UDP_L4, gso_size: 2, ..Default::default() };
    let datagram = &split_all(&header, &udp(true, &[0, 0])).unwrap()[0];
    // The payload that makes the sum all ones, and its complement zero.
    let payload = [datagram[26], datagram[27]];
    let datagram = &split_all(&header, &udp(true, &payload)).unwrap()[0];
    assert_eq!(datagram[26..28], [0xff, 0xff]);
    assert!(whole_packet_is_valid(datagram));
}

#[test]
fn a_frame_ends_at_its_bounds() {
    let mut coalescer = Coalescer::new();
    let mut flow = Tcp::example(true);
    (0..100).for_each(|_| coalescer.push(flow.next(&[1; 10])));
    assert_eq!(shapes(&coalescer), [(64, 692), (36, 412)]);
    coalescer.clear();
    (0..50).for_each(|_| coalescer.push(flow.next(&[1; 1400])));
    assert_eq!(shapes(&coalescer), [(46, 64_452), (4, 5652)]);
}

#[test]
fn more_flows_than_can_be_open_still_lose_nothing() {
    let mut flows: Vec<Tcp> = (0..40).map(|port| Tcp { port, ..Tcp::example(true) }).collect();
    let mut coalescer = Coalescer::new();
    for _ in 0..5 {
        flows.iter_mut().for_each(|flow| coalescer.push(flow.next(&[1; 100])));
    }
    assert_eq!(coalescer.frames().iter().map(|frame| frame.pieces.len()).sum::<usize>(), 200);
}

#[test]
fn io_slices_are_the_vnet_header_and_the_parts() {
    let mut flow = Tcp::example(true);
    let mut coalescer = Coalescer::new();
    (0..64).for_each(|_| coalescer.push(flow.next(&[1; 100])));
    coalescer.push(flow.next(&[]));
    for frame in coalescer.frames() {
        let vnet = frame.header.to_bytes();
        let mut slices = [IoSlice::new(&[]); SuperPacket::MAX_SLICES];
        let used = frame.io_slices(&vnet, &mut slices);
        assert_eq!(used, if frame.header.is_super() { SuperPacket::MAX_SLICES } else { 2 });
        let bytes: Vec<u8> = slices[..used].iter().flat_map(|slice| slice.iter().copied()).collect();
        assert_eq!(bytes, [&vnet[..], &concat(frame)].concat());
        assert_eq!(frame.io_slices(&[], &mut slices), used - 1);
    }
}

/// A TCP packet's headers; checksums and lengths follow from the rest.
#[derive(Clone, Debug)]
struct Tcp {
    v4: bool,
    port: u16,
    class: u8,
    hops: u8,
    id: u16,
    dont_fragment: bool,
    seq: u32,
    ack: u32,
    window: u16,
    flags: u8,
    options: Vec<u8>,
}

impl Tcp {
    fn example(v4: bool) -> Self {
        let options = TIMESTAMPS.to_vec();
        Self {
            v4,
            port: 4000,
            class: 2,
            hops: 64,
            id: 65_530,
            dont_fragment: true,
            seq: u32::MAX - 5000,
            ack: 77,
            window: 500,
            flags: ACK,
            options,
        }
    }

    /// The packet with this payload; then the headers are those of the one after it.
    fn next(&mut self, payload: &[u8]) -> Bytes {
        let packet = self.packet(payload);
        self.seq = self.seq.wrapping_add(payload.len() as u32);
        self.id = self.id.wrapping_add(1);
        packet
    }

    fn ip_len(&self) -> usize {
        if self.v4 { 20 } else { 40 }
    }

    fn head_len(&self) -> usize {
        self.ip_len() + 20 + self.options.len()
    }

    fn packet(&self, payload: &[u8]) -> Bytes {
        let mut packet = self.headers(payload.len());
        packet.extend(payload);
        let sum = !naive::sum(&[&self.pseudo_header(&packet), &packet[self.ip_len()..]]);
        packet[self.ip_len() + 16..][..2].copy_from_slice(&sum.to_be_bytes());
        packet.into()
    }

    fn super_packet(&self, payload: &[u8], size: u16) -> (VnetHeader, Vec<u8>) {
        let mut frame = self.headers(payload.len());
        frame.extend(payload);
        let sum = naive::sum(&[&self.pseudo_header(&frame)]);
        frame[self.ip_len() + 16..][..2].copy_from_slice(&sum.to_be_bytes());
        let header = VnetHeader {
            flags: VnetHeader::NEEDS_CSUM,
            gso_type: if self.v4 { VnetHeader::GSO_TCPV4 } else { VnetHeader::GSO_TCPV6 },
            hdr_len: self.head_len() as u16,
            gso_size: size,
            csum_start: self.ip_len() as u16,
            csum_offset: 16,
        };
        (header, frame)
    }

    fn pseudo_header(&self, packet: &[u8]) -> Vec<u8> {
        let addresses = if self.v4 { &packet[12..20] } else { &packet[8..40] };
        [addresses, &[0, 6], &((packet.len() - self.ip_len()) as u32).to_be_bytes()].concat()
    }

    fn headers(&self, payload_len: usize) -> Vec<u8> {
        let len = self.head_len() + payload_len;
        let mut packet = if self.v4 {
            ip_v4(len, self.class, self.id, self.dont_fragment, self.hops, 6)
        } else {
            ip_v6(len, self.class, self.hops, 6)
        };
        packet.extend([self.port.to_be_bytes(), [0x1f, 0x90]].concat());
        packet.extend([self.seq.to_be_bytes(), self.ack.to_be_bytes()].concat());
        packet.extend([((20 + self.options.len()) * 4) as u8, self.flags]);
        packet.extend([self.window.to_be_bytes(), [0, 0], [0, 0]].concat());
        packet.extend(&self.options);
        packet
    }
}

fn ip_v4(len: usize, class: u8, id: u16, dont_fragment: bool, hops: u8, protocol: u8) -> Vec<u8> {
    let [a, b] = (len as u16).to_be_bytes();
    let [c, d] = id.to_be_bytes();
    let mut ip = vec![
        0x45,
        class,
        a,
        b,
        c,
        d,
        u8::from(dont_fragment) << 6,
        0,
        hops,
        protocol,
        0,
        0,
        100,
        77,
        3,
        7,
        198,
        51,
        100,
        4,
    ];
    let sum = !naive::sum(&[&ip]);
    ip[10..12].copy_from_slice(&sum.to_be_bytes());
    ip
}

fn ip_v6(len: usize, class: u8, hops: u8, protocol: u8) -> Vec<u8> {
    let [a, b] = ((len - 40) as u16).to_be_bytes();
    let mut ip = vec![0x60 | class >> 4, class << 4 | 3, 1, 2, a, b, protocol, hops];
    ip.extend((0..32).map(|byte| byte * 5 + 32));
    ip
}

/// A UDP packet whose checksum is still to be made.
fn udp(v4: bool, payload: &[u8]) -> Vec<u8> {
    let len = payload.len() + 8;
    let mut packet = if v4 { ip_v4(20 + len, 0, 9, true, 64, 17) } else { ip_v6(40 + len, 0, 64, 17) };
    packet.extend([0x30, 0x39, 0x01, 0xbb]);
    packet.extend((len as u16).to_be_bytes());
    packet.extend([0, 0]);
    packet.extend(payload);
    packet
}

fn tcp() -> impl Strategy<Value = Tcp> {
    let options = prop_oneof![
        Just(Vec::new()),
        Just(TIMESTAMPS.to_vec()),
        prop::collection::vec(any::<[u8; 4]>(), 0..=10).prop_map(|words| words.concat()),
    ];
    let ip = (any::<bool>(), any::<u8>(), any::<u8>(), any::<u16>(), any::<bool>());
    (ip, any::<u16>(), any::<u32>(), any::<u32>(), any::<u16>(), options).prop_map(
        |((v4, class, hops, id, dont_fragment), port, seq, ack, window, options)| Tcp {
            v4,
            port,
            class,
            hops,
            id,
            dont_fragment,
            seq,
            ack,
            window,
            flags: ACK,
            options,
        },
    )
}

/// Up to what still fits a super-packet behind the longest headers.
fn payload() -> impl Strategy<Value = Vec<u8>> {
    let len = prop_oneof![Just(0usize), 1usize..100, 100usize..5000, 60_000usize..=65_435];
    (len, any::<u8>()).prop_map(|(len, seed)| (0..len).map(|i| ((i * 31) >> 3) as u8 ^ seed).collect())
}

/// Several flows at once, with all that can befall a segment.
fn traffic() -> impl Strategy<Value = Vec<Bytes>> {
    let flows = prop::collection::vec(tcp(), 1..20);
    // Mostly full segments; `event` says what is odd about this one, 0 to 9.
    let steps =
        prop::collection::vec((any::<Index>(), prop_oneof![3 => Just(500usize), 1 => 0usize..600], 0u8..40), 1..200);
    (flows, steps).prop_map(|(mut flows, steps)| {
        for (port, flow) in flows.iter_mut().enumerate() {
            flow.port = port as u16;
        }
        let mut packets = Vec::new();
        for (which, len, event) in steps {
            let at = which.index(flows.len());
            let flow = &mut flows[at];
            flow.flags = match event {
                0 => ACK | PSH,
                1 => ACK | FIN,
                2 => ACK | CWR,
                3 => SYN,
                _ => ACK,
            };
            match event {
                4 => flow.class ^= 3,
                5 => flow.seq = flow.seq.wrapping_sub(700),
                6 => flow.id = flow.id.wrapping_add(3),
                7 => flow.ack = flow.ack.wrapping_add(1000),
                8 => flow.options = TIMESTAMPS.to_vec(),
                _ => {}
            }
            let packet = flow.next(&vec![event; len]);
            let mut bytes = packet.to_vec();
            if event == 9 {
                // The port must stay: it tells the test which flow this is.
                let last = bytes.len() - 1;
                bytes[last.max(flow.head_len() - 1)] ^= 0x10;
            }
            packets.push(bytes.into());
        }
        packets
    })
}

/// Packets of each flow in order. Identifications mean nothing where DF is set (RFC 6864), so they
/// are taken out there, and the header checksum with them.
fn by_flow(packets: &[Bytes]) -> HashMap<Vec<u8>, Vec<Vec<u8>>> {
    let mut flows: HashMap<_, Vec<_>> = HashMap::new();
    for packet in packets {
        let mut packet = packet.to_vec();
        let v4 = packet[0] >> 4 == 4;
        if v4 && packet[6] & 0x40 != 0 {
            packet[4..6].fill(0);
            packet[10..12].fill(0);
        }
        let flow = if v4 { packet[12..24].to_vec() } else { packet[8..44].to_vec() };
        flows.entry(flow).or_default().push(packet);
    }
    flows
}

/// What a host may hand over: super-packets, some of a size, and single packets between them.
fn device_frame() -> impl Strategy<Value = (VnetHeader, Vec<u8>)> {
    let size = prop::sample::select(vec![500u16, 1041, 1100, 1338, 1338, 1460, 4095, 9000, 16_000, 60_000]);
    let kind = 0u8..6;
    (tcp(), payload(), size, kind, any::<bool>()).prop_map(|(tcp, payload, size, kind, v4)| match kind {
        0 => (VnetHeader::default(), tcp.packet(&payload).to_vec()),
        1 => (VnetHeader::default(), udp(v4, &payload)),
        2 => udp_super_packet(v4, &payload, size),
        _ => Tcp::example(v4).super_packet(&payload, size),
    })
}

/// A super-packet of UDP as the kernel hands it over.
fn udp_super_packet(v4: bool, payload: &[u8], size: u16) -> (VnetHeader, Vec<u8>) {
    let mut frame = udp(v4, payload);
    let ip_len = frame.len() - payload.len() - 8;
    if v4 {
        frame[6] = 0x40;
        frame[10..12].fill(0);
        let sum = !naive::sum(&[&frame[..20]]);
        frame[10..12].copy_from_slice(&sum.to_be_bytes());
    }
    let addresses = if v4 { 12..20 } else { 8..40 };
    let len = ((payload.len() + 8) as u32).to_be_bytes();
    let partial = naive::sum(&[&frame[addresses], &len, &[0, 17]]);
    frame[ip_len + 6..ip_len + 8].copy_from_slice(&partial.to_be_bytes());
    let header = VnetHeader {
        flags: VnetHeader::NEEDS_CSUM,
        gso_type: VnetHeader::GSO_UDP_L4,
        hdr_len: ip_len as u16 + 8,
        gso_size: size,
        csum_start: ip_len as u16,
        csum_offset: 6,
    };
    (header, frame)
}

/// Reads a frame as `readv` would.
fn read<'a>(intake: &'a mut Intake, header: &VnetHeader, frame: &[u8]) -> Frame<'a> {
    let bytes = [&header.to_bytes()[..], frame].concat();
    let read = intake.read_with(|slices| {
        let mut rest = &bytes[..];
        for slice in slices {
            let (now, later) = rest.split_at(rest.len().min(slice.len()));
            slice[..now.len()].copy_from_slice(now);
            rest = later;
        }
        assert!(rest.is_empty(), "the slices hold the largest frame");
        Ok::<_, ()>(bytes.len())
    });
    read.unwrap().expect("a frame")
}

fn split_all(header: &VnetHeader, frame: &[u8]) -> Result<Vec<Bytes>, Dropped> {
    let mut packets = Vec::new();
    let told = split(header, frame, &mut |packet| packets.push(packet))?;
    assert_eq!(told, packets.len());
    Ok(packets)
}

fn concat(frame: &SuperPacket) -> Vec<u8> {
    frame.parts().flatten().copied().collect()
}

/// Pieces and length of each frame.
fn shapes(coalescer: &Coalescer) -> Vec<(usize, usize)> {
    coalescer.frames().iter().map(|frame| (frame.pieces.len(), frame.len())).collect()
}
