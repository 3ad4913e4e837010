//! What a device hands over is split into packets or malformed; coalesced and split again, the packets are
//! the very same, in the same order.
#![no_main]

use bytes::Bytes;
use culvert_tunnel::packet::Header;
use culvert_tunnel::segment::{Coalescer, SuperPacket, VnetHeader, split};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let Some((vnet, frame)) = data.split_first_chunk::<{ VnetHeader::LEN }>() else { return };
    let header = VnetHeader::from_bytes(vnet);
    assert_eq!(&header.to_bytes(), vnet);
    cross(&header, frame);

    // The same with lengths and kinds that fit, or hardly anything would be a super-packet.
    let mut frame = frame.to_vec();
    let gso_type = state_length(&mut frame);
    cross(&VnetHeader { gso_type: gso_type | header.gso_type & VnetHeader::GSO_ECN, ..header }, &frame);
});

fn cross(header: &VnetHeader, frame: &[u8]) {
    let mut packets: Vec<Bytes> = Vec::new();
    let Ok(count) = split(header, frame, &mut |packet| packets.push(packet)) else {
        assert!(packets.is_empty(), "nothing is emitted of a malformed frame");
        return;
    };
    assert_eq!(count, packets.len());
    let mut coalescer = Coalescer::new();
    for packet in &packets {
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
