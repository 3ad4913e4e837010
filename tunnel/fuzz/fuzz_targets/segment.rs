//! What a device hands over is split into packets or malformed, in the same way however it was read;
//! coalesced and split again, the packets are the very same, in the same order.
#![no_main]

use std::io::IoSliceMut;

use bytes::{Bytes, BytesMut};
use culvert_tunnel::packet::Dropped;
use culvert_tunnel::packet::Header;
use culvert_tunnel::segment::{Coalescer, Intake, SuperPacket, VnetHeader, split};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let Some((vnet, frame)) = data.split_first_chunk::<{ VnetHeader::LEN }>() else { return };
    let header = VnetHeader::from_bytes(vnet);
    assert_eq!(&header.to_bytes(), vnet);
    let mut intake = Intake::default();
    cross(&mut intake, &header, frame);

    // The same with lengths and kinds that fit, or hardly anything would be a super-packet.
    let mut frame = frame.to_vec();
    let gso_type = state_length(&mut frame);
    cross(&mut intake, &VnetHeader { gso_type: gso_type | header.gso_type & VnetHeader::GSO_ECN, ..header }, &frame);
});

fn cross(intake: &mut Intake, header: &VnetHeader, frame: &[u8]) {
    let mut packets: Vec<Bytes> = Vec::new();
    let outcome = split(header, frame, &mut |packet| packets.push(packet));
    read(intake, header, frame, outcome, &packets);
    let Ok(count) = outcome else {
        assert!(packets.is_empty(), "nothing is emitted of a malformed frame");
        return;
    };
    assert_eq!(count, packets.len());
    for udp in [false, true] {
        join(udp, &packets);
    }
}

/// The frame as a shard reads it: in one piece at first, then with gaps where its packets will begin.
fn read(intake: &mut Intake, header: &VnetHeader, frame: &[u8], outcome: Result<usize, Dropped>, packets: &[Bytes]) {
    let bytes = [&header.to_bytes()[..], frame].concat();
    let mut spare = BytesMut::new();
    for round in 0..3 {
        let mut seen: Vec<Bytes> = Vec::new();
        let read = intake.read_with(|slices| Ok::<_, ()>(scatter(&bytes, slices)));
        let Ok(Some(read)) = read else { panic!("a whole frame was there") };
        assert_eq!((read.vnet, read.len()), (*header, frame.len()));
        // What has no header goes no further.
        let parsed = read.header();
        assert_eq!(parsed.is_ok(), Header::parse(frame).is_ok(), "round {round}");
        if parsed.is_ok() {
            let cut = read.cut(&mut spare, &mut |packet| seen.push(packet));
            assert_eq!((cut, &seen[..]), (outcome, packets), "round {round}");
        }
    }
}

/// What `readv` does.
fn scatter(mut bytes: &[u8], slices: &mut [IoSliceMut<'_>]) -> usize {
    let whole = bytes.len();
    for slice in slices {
        let (now, later) = bytes.split_at(slice.len().min(bytes.len()));
        slice[..now.len()].copy_from_slice(now);
        bytes = later;
    }
    whole - bytes.len()
}

fn join(udp: bool, packets: &[Bytes]) {
    let mut coalescer = Coalescer::new();
    coalescer.set_udp(udp);
    for packet in packets {
        // The engine pushes nothing else. A partial checksum may have been asked for inside the header.
        if Header::parse(packet).is_err() {
            return;
        }
        coalescer.push(packet.clone());
    }
    let mut again: Vec<Bytes> = Vec::new();
    for frame in coalescer.frames() {
        let whole = frame.parts().collect::<Vec<_>>().concat();
        assert_eq!(whole.len(), frame.len());
        assert!(frame.len() <= SuperPacket::MAX_LEN || !frame.header.is_super());
        Header::parse(&whole).expect("a frame for the device is one packet");
        split(&frame.header, &whole, &mut |packet| again.push(packet)).expect("what was coalesced can be split");
    }
    assert_eq!(again, packets);
}

/// Makes the IP header say how long the frame is; returns the kind of super-packet that it can be.
fn state_length(frame: &mut [u8]) -> u8 {
    let len = frame.len();
    let (protocol, tcp) = match frame.first().map(|byte| byte >> 4) {
        Some(4) if len >= 20 => {
            frame[2..4].copy_from_slice(&(len as u16).to_be_bytes());
            (frame[9], VnetHeader::GSO_TCPV4)
        }
        Some(6) if len >= 40 => {
            frame[4..6].copy_from_slice(&((len - 40) as u16).to_be_bytes());
            (frame[6], VnetHeader::GSO_TCPV6)
        }
        _ => return VnetHeader::GSO_NONE,
    };
    match protocol {
        6 => tcp,
        17 => VnetHeader::GSO_UDP_L4,
        _ => VnetHeader::GSO_NONE,
    }
}
