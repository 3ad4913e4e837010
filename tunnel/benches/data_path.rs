//! What one packet costs where no system call is made: `cargo bench -p culvert-tunnel --bench data_path`.
//!
//! Figures of one machine at one time; what they are compared with belongs to the same run. The whole path
//! with kernels on both sides is `scripts/bench`, allocations are `tests/allocations.rs`.

#![allow(clippy::unwrap_used, reason = "a benchmark fails by panicking")]

use std::hint::black_box;
use std::io::IoSliceMut;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use bytes::{Bytes, BytesMut};
use criterion::{BatchSize, Criterion, Throughput};
use culvert_tunnel::checksum::{Sum, TCP, UDP};
use culvert_tunnel::control::{self, FrameReader, FromServer, Welcome};
use culvert_tunnel::filter::{Lease, Policy};
use culvert_tunnel::packet::Header;
use culvert_tunnel::routing::Routing;
use culvert_tunnel::segment::{Coalescer, Intake, VnetHeader, split};
use culvert_tunnel::shard::mailbox::LinkId;

const LEASE: Lease =
    Lease { ipv4: Ipv4Addr::new(100, 77, 3, 9), ipv6: Some(Ipv6Addr::new(0xfd4e, 0x9a1c, 0, 0, 0, 0, 0, 9)) };
const INTERNET4: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 7);
const INTERNET6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 2, 0, 0, 0, 0, 7);
/// Payload of a super-packet, in bytes.
const SUPER_BYTES: usize = 60_000;
/// Payload of each of its packets.
const SEGMENT_BYTES: u16 = 1_380;

fn main() {
    let mut criterion = Criterion::default().configure_from_args();
    splitting(&mut criterion);
    coalescing(&mut criterion);
    checksums(&mut criterion);
    filtering(&mut criterion);
    routing(&mut criterion);
    control_messages(&mut criterion);
    criterion.final_summary();
}

fn splitting(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("split");
    group.throughput(Throughput::Bytes(SUPER_BYTES as u64));
    for (name, v4, protocol) in [("tcp4", true, TCP), ("tcp6", false, TCP), ("udp4", true, UDP), ("udp6", false, UDP)] {
        let (header, frame) = super_packet(v4, protocol, 5000);
        let bytes = [&header.to_bytes()[..], &frame].concat();
        let (mut intake, mut spare) = (Intake::default(), BytesMut::new());
        // With the copy that a kernel makes of it, which is how the gaps come about.
        group.bench_function(name, |bencher| {
            bencher.iter(|| {
                let frame =
                    intake.read_with(|slices| Ok::<_, ()>(scatter(black_box(&bytes), slices))).unwrap().unwrap();
                frame.cut(&mut spare, &mut |packet| drop(black_box(packet))).unwrap()
            });
        });
    }
    group.finish();
}

fn coalescing(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("coalesce");
    for (name, flows, v4) in [("1 flow, tcp4", 1, true), ("1 flow, tcp6", 1, false), ("16 flows, tcp4", 16, true)] {
        let each: Vec<_> = (0..flows).map(|flow| packets(&super_packet(v4, TCP, 5000 + flow))).collect();
        // One packet of each flow, then the next of each.
        let mixed: Vec<Bytes> =
            (0..each[0].len()).flat_map(|at| each.iter().map(move |flow| flow[at].clone())).collect();
        group.throughput(Throughput::Bytes(mixed.iter().map(|packet| packet.len() as u64).sum()));
        let mut coalescer = Coalescer::new();
        for packet in &mixed {
            coalescer.push(packet.clone());
        }
        assert_eq!(coalescer.frames().len(), usize::from(flows), "every flow becomes one frame");
        coalescer.clear();
        group.bench_function(name, |bencher| {
            bencher.iter_batched_ref(
                || mixed.clone(),
                |packets| {
                    packets.drain(..).for_each(|packet| coalescer.push(packet));
                    black_box(coalescer.frames());
                    coalescer.clear();
                },
                BatchSize::LargeInput,
            );
        });
    }
    group.finish();
}

fn checksums(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("checksum");
    for len in [40, 1300, 60_000] {
        let bytes = vec![0xa5; len];
        group.throughput(Throughput::Bytes(len as u64));
        group.bench_function(format!("{len} bytes"), |bencher| {
            bencher.iter(|| Sum::default().bytes(black_box(&bytes)).fold());
        });
    }
    group.finish();
}

fn filtering(criterion: &mut Criterion) {
    let policy = Policy {
        networks: vec!["100.77.0.0/16".parse().unwrap(), "fd4e:9a1c::/64".parse().unwrap()],
        gateway: vec!["100.77.0.1".parse().unwrap(), "fd4e:9a1c::1".parse().unwrap()],
        isolation: true,
    };
    let mut group = criterion.benchmark_group("filter");
    for (name, v4) in [("parse and from_client, v4", true), ("parse and from_client, v6", false)] {
        let packet = packets(&super_packet(v4, TCP, 5000)).swap_remove(0);
        group.bench_function(name, |bencher| {
            bencher.iter(|| policy.from_client(&LEASE, &Header::parse(black_box(&packet)).unwrap()).unwrap());
        });
    }
    group.finish();
}

fn routing(criterion: &mut Criterion) {
    const LINKS: u64 = 10_000;
    let routing = Routing::default();
    let address4 = |n: u64| Ipv4Addr::from_bits(0x6440_0002 + n as u32);
    let address6 = |n: u64| Ipv6Addr::from_bits(0xfd4e_9a1c << 96 | u128::from(n + 2));
    for n in 0..LINKS {
        routing.insert(Lease { ipv4: address4(n), ipv6: Some(address6(n)) }, LinkId { shard: 0, serial: n });
    }
    let order: Vec<u64> = (0..1024).map(|n| n * 7919 % LINKS).collect();
    let mut group = criterion.benchmark_group("routing, 10,000 links");
    group.throughput(Throughput::Elements(order.len() as u64));
    for (name, v4) in [("lookup, v4", true), ("lookup, v6", false)] {
        let wanted: Vec<IpAddr> =
            order.iter().map(|&n| if v4 { address4(n).into() } else { address6(n).into() }).collect();
        group.bench_function(name, |bencher| {
            bencher.iter(|| {
                wanted
                    .iter()
                    .filter_map(|&address| routing.get(black_box(address)))
                    .map(|link| link.serial)
                    .sum::<u64>()
            });
        });
    }
    group.finish();
}

fn control_messages(criterion: &mut Criterion) {
    let welcome = FromServer::Welcome(Welcome {
        gateway: "Example".into(),
        device: "laptop".into(),
        ipv4: LEASE.ipv4,
        ipv6: LEASE.ipv6,
        gateway_ipv4: "100.77.0.1".parse().unwrap(),
        gateway_ipv6: "fd4e:9a1c::1".parse().ok(),
        networks: vec!["100.77.0.0/16".parse().unwrap(), "fd4e:9a1c::/64".parse().unwrap()],
        routes: vec!["0.0.0.0/0".parse().unwrap(), "::/0".parse().unwrap()],
        excluded_routes: vec!["192.168.0.0/16".parse().unwrap()],
        dns_servers: vec!["198.51.100.54".parse().unwrap()],
        dns_domains: vec!["corp.example".into()],
        seen_as: "192.0.2.2:40000".parse().unwrap(),
        endpoints: vec!["vpn.example.org:443".into()],
        certificate_until: 1_800_000_000,
        rechallenge_seconds: 3600,
        time: None,
    });
    let frame = control::encode(&welcome).unwrap();
    let mut group = criterion.benchmark_group("control");
    group.throughput(Throughput::Bytes(frame.len() as u64));
    group.bench_function("encode welcome", |bencher| bencher.iter(|| control::encode(black_box(&welcome)).unwrap()));
    group.bench_function("decode welcome", |bencher| {
        let mut reader = FrameReader::default();
        bencher.iter(|| {
            reader.push(black_box(&frame));
            let payload = reader.next_frame().unwrap().unwrap();
            control::decode::<FromServer>(&payload).unwrap()
        });
    });
    group.finish();
}

/// A super-packet from the client to the internet, from `port`.
fn super_packet(v4: bool, protocol: u8, port: u16) -> (VnetHeader, Vec<u8>) {
    let ip_len = if v4 { 20 } else { 40 };
    let head_len = ip_len + if protocol == TCP { 20 } else { 8 };
    let mut frame = vec![0x5a; head_len + SUPER_BYTES];
    let len = frame.len();
    let (ip, transport) = frame.split_at_mut(ip_len);
    if v4 {
        ip.copy_from_slice(&[0x45, 0, 0, 0, 0, 1, 0x40, 0, 64, protocol, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
        ip[2..4].copy_from_slice(&(len as u16).to_be_bytes());
        ip[12..16].copy_from_slice(&LEASE.ipv4.octets());
        ip[16..20].copy_from_slice(&INTERNET4.octets());
    } else {
        ip[..8].copy_from_slice(&[0x60, 0, 0, 0, 0, 0, protocol, 64]);
        ip[4..6].copy_from_slice(&((len - 40) as u16).to_be_bytes());
        ip[8..24].copy_from_slice(&LEASE.ipv6.unwrap().octets());
        ip[24..40].copy_from_slice(&INTERNET6.octets());
    }
    transport[..4].copy_from_slice(&[port.to_be_bytes(), [1, 0xbb]].concat());
    if protocol == TCP {
        transport[4..20].copy_from_slice(&[0, 0, 0, 1, 0, 0, 0, 1, 0x50, 0x10, 1, 0, 0, 0, 0, 0]);
    } else {
        transport[4..8].fill(0);
    }
    let gso_type = match protocol {
        TCP if v4 => VnetHeader::GSO_TCPV4,
        TCP => VnetHeader::GSO_TCPV6,
        _ => VnetHeader::GSO_UDP_L4,
    };
    let header = VnetHeader {
        flags: VnetHeader::NEEDS_CSUM,
        gso_type,
        hdr_len: head_len as u16,
        gso_size: SEGMENT_BYTES,
        csum_start: ip_len as u16,
        csum_offset: if protocol == TCP { 16 } else { 6 },
    };
    (header, frame)
}

fn packets((header, frame): &(VnetHeader, Vec<u8>)) -> Vec<Bytes> {
    let mut packets = Vec::new();
    split(header, frame, &mut |packet| packets.push(packet)).unwrap();
    packets
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
