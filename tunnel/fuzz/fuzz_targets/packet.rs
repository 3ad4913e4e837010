//! Any bytes are one IP packet or malformed; what parses has parts that lie inside it, may be judged by
//! every filter, and is answered by a packet that parses too.
#![no_main]

use std::net::Ipv4Addr;

use culvert_tunnel::filter::{Lease, Policy, client_in, client_out};
use culvert_tunnel::packet::{Dropped, Header};
use culvert_tunnel::{checksum, icmp};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let mut bytes = data.to_vec();
    // Without this hardly anything is as long as it says it is.
    state_length(&mut bytes);
    for packet in [data, &bytes] {
        match Header::parse(packet) {
            Ok(header) => look(packet, &header),
            Err(why) => assert_eq!(why, Dropped::Malformed { len: packet.len() }),
        }
        checksum::verify_tcp(packet);
    }
});

fn look(packet: &[u8], header: &Header) {
    assert_eq!(header.len(), packet.len());
    assert_eq!(header.header_len() + header.payload(packet).len(), packet.len());
    assert_eq!(header.addresses(packet).len(), if header.src().is_ipv4() { 8 } else { 32 });
    assert_eq!(header.src().is_ipv4(), header.dst().is_ipv4());

    let lease = Lease { ipv4: Ipv4Addr::new(100, 77, 3, 9), ipv6: "fd4e::9".parse().ok() };
    let policy = Policy {
        networks: vec!["100.77.3.0/24".parse().unwrap(), "fd4e::/64".parse().unwrap()],
        gateway: vec!["100.77.3.1".parse().unwrap(), "fd4e::1".parse().unwrap()],
        isolation: true,
    };
    let judged = policy.from_client(&lease, header);
    assert!(judged.is_err() || lease.holds(header.src()), "a source that is not the client's crosses");
    assert!(client_out(&lease, header).is_ok() || judged.is_err(), "the gateway lets through what the client may not");
    assert!(client_in(&lease, header).is_err() || lease.holds(header.dst()));
    let _ = policy.to_client(header);

    let gateway = (Ipv4Addr::new(100, 77, 3, 1), "fd4e::1".parse().ok());
    for answer in [icmp::too_big(packet, 1280, gateway.0, gateway.1), icmp::unreachable(packet, gateway.0, gateway.1)] {
        let Some(answer) = answer else { continue };
        let parsed = Header::parse(&answer).expect("an answer is a packet");
        assert_eq!(parsed.dst(), header.src(), "an answer goes to whom it is about");
        assert!(answer.len() <= 1280);
        assert_eq!(icmp::too_big(&answer, 1280, gateway.0, gateway.1), None, "an error answers no error");
    }
}

fn state_length(packet: &mut [u8]) {
    let len = packet.len();
    match packet.first().map(|byte| byte >> 4) {
        Some(4) if len >= 20 => packet[2..4].copy_from_slice(&(len as u16).to_be_bytes()),
        Some(6) if len >= 40 => packet[4..6].copy_from_slice(&((len - 40) as u16).to_be_bytes()),
        _ => {}
    }
}
