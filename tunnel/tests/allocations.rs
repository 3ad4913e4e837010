//! What a packet costs in allocations once a session has settled: none of ours.
//!
//! Two engines, joined in memory, move TCP super-packets one way and then the other. Counted is everything
//! between a device's frame and a GSO batch on the sending side, and between a GRO batch and a device's
//! frame on the receiving side, acknowledgements included; the buffers that a socket would fill are made
//! here as `shard::udp` makes them, and not counted.
//!
//! quinn-proto 0.11.19 keeps what it has sent in a `BTreeMap` until it is acknowledged: a node of 1.2 KB for
//! every six packets, 165 allocations per 1,000 on the sending side. On the receiving side there are none.

#![allow(clippy::unwrap_used, reason = "helpers of tests fail by panicking")]

mod counting;
mod wire;

use std::io::IoSliceMut;
use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use bytes::BytesMut;
use counting::in_column;
use culvert_tunnel::segment::{Intake, VnetHeader};
use culvert_tunnel::shard::engine::Engine;
use wire::{CLIENT, Pair};

#[global_allocator]
static ALLOCATOR: counting::Counting = counting::Counting;

const INTERNET: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 7);
const SENDING: usize = 0;
const RECEIVING: usize = 1;
/// Payload of one super-packet, in bytes.
const SUPER_BYTES: usize = 60_000;
/// Frames that are queued before any is sent: more than a shard leaves waiting, less than fills the queue.
const FRAMES_A_TURN: usize = 16;
const TURNS: usize = 64;

#[test]
fn a_settled_session_allocates_nothing_of_ours_per_packet() {
    let mut pair = Pair::connected();
    pair.run_for(Duration::from_secs(5)); // path-MTU discovery
    let mut bench = Bench::new(pair);
    for up in [true, false] {
        bench.run(up, 4 * TURNS); // queues and pools take their size
        counting::take_counts();
        let packets = bench.run(up, TURNS);
        let [sending, receiving] = counting::take_counts();
        assert!(packets > 15_000, "{packets} packets crossed");
        let way = if up { "up" } else { "down" };
        let sides = [("sending", sending, 200.0), ("receiving", receiving, 1.0)];
        for (side, count, _) in sides {
            let (calls, bytes) = (per_thousand(count.calls, packets), per_thousand(count.bytes, packets));
            println!("{way}, {side}: {calls:.1} allocations and {bytes:.0} bytes per 1,000 packets");
        }

        counting::begin_traces();
        let traced = bench.run(up, TURNS / 16);
        let seen = counting::end_traces(&["culvert_tunnel::", "quinn_proto::", "rustls::"]);
        counting::take_counts();
        for ((column, function), calls) in &seen {
            println!("{way}, {}: {:6.1} by {function}", sides[*column].0, per_thousand(*calls, traced));
        }
        for (side, count, most) in sides {
            let calls = per_thousand(count.calls, packets);
            assert!(calls <= most, "{way}, {side}: {calls} allocations per 1,000 packets");
        }
        let ours: Vec<_> = seen.keys().filter(|(_, function)| !function.starts_with("quinn_proto::")).collect();
        assert!(ours.is_empty(), "{way}: {ours:?}");
    }
}

fn per_thousand(count: u64, packets: u64) -> f64 {
    count as f64 * 1000.0 / packets as f64
}

/// Both engines with what a shard has beside them.
struct Bench {
    pair: Pair,
    now: Instant,
    size: usize,
    sequence: u32,
    intake: Intake,
    frame: Vec<u8>,
    outgoing: Vec<u8>,
    pool: Vec<BytesMut>,
}

impl Bench {
    fn new(mut pair: Pair) -> Self {
        let size = pair.client_mtu() - 40;
        let now = pair.now();
        Self {
            pair,
            now,
            size,
            sequence: 1,
            intake: Intake::default(),
            frame: Vec::new(),
            outgoing: Vec::new(),
            pool: Vec::new(),
        }
    }

    /// Moves super-packets for some turns; how many inner packets crossed.
    fn run(&mut self, up: bool, turns: usize) -> u64 {
        let addresses = if up { (CLIENT.ipv4, INTERNET) } else { (INTERNET, CLIENT.ipv4) };
        let mut crossed = 0;
        for _ in 0..turns {
            self.now += Duration::from_micros(500);
            self.pair.sleep(Duration::from_micros(500));
            for _ in 0..FRAMES_A_TURN {
                self.next_frame(addresses);
                let Self { pair, intake, frame, now, .. } = self;
                let engine = if up { pair.client() } else { pair.gateway() };
                in_column(SENDING, || {
                    if engine.wants_device(*now) {
                        let read = intake.read_with(|slices| Ok::<_, ()>(scatter(frame, slices)));
                        engine.on_device_frame(*now, read.unwrap().unwrap());
                    }
                });
            }
            crossed += self.exchange(up);
        }
        crossed
    }

    /// Everything that is to be said crosses, until nobody says more.
    fn exchange(&mut self, up: bool) -> u64 {
        let mut crossed = 0;
        for sends in [up, !up, up] {
            let column = |is_client: bool| if is_client == up { SENDING } else { RECEIVING };
            let now = self.now;
            let from = if sends { self.pair.client_address() } else { "203.0.113.7:443".parse().unwrap() };
            loop {
                let Self { pair, outgoing, .. } = self;
                let engine: &mut Engine = if sends { pair.client() } else { pair.gateway() };
                let transmit = in_column(column(sends), || {
                    engine.on_timeout(now);
                    engine.poll_transmit(now, 44, outgoing)
                });
                let Some(transmit) = transmit else { break };
                let mut batch = self.received(transmit.size);
                let stride = transmit.segment_size.unwrap_or(transmit.size);
                let engine = if sends { self.pair.gateway() } else { self.pair.client() };
                crossed += in_column(column(!sends), || {
                    while !batch.is_empty() {
                        let payload = batch.split_to(stride.min(batch.len()));
                        engine.on_datagram(now, from, None, transmit.ecn, payload);
                    }
                    engine.settle(now);
                    let packets =
                        engine.frames().iter().map(|frame| packets_in(frame.header, frame.len())).sum::<u64>();
                    engine.clear_frames();
                    packets
                });
                let engine = if sends { self.pair.client() } else { self.pair.gateway() };
                in_column(column(sends), || engine.settle(now));
            }
        }
        crossed
    }

    /// What `shard::udp` makes of a GRO batch: a buffer of its pool, or a copy of a small one.
    fn received(&mut self, len: usize) -> BytesMut {
        const BUFFER_BYTES: usize = 65_536;
        if len <= 8 * 1024 {
            let mut copy = BytesMut::from(&self.outgoing[..len]);
            _ = copy.split_off(len); // shared from now on, as it is there
            return copy;
        }
        let free = self.pool.iter_mut().position(|buffer| buffer.try_reclaim(BUFFER_BYTES));
        let mut buffer =
            free.map_or_else(|| BytesMut::with_capacity(BUFFER_BYTES), |index| self.pool.swap_remove(index));
        buffer.extend_from_slice(&self.outgoing[..len]);
        let filled = buffer.split_to(len);
        self.pool.push(buffer);
        filled
    }

    /// The next super-packet of the flow, behind its virtio header, in `self.frame`.
    fn next_frame(&mut self, (source, destination): (Ipv4Addr, Ipv4Addr)) {
        let len = 40 + SUPER_BYTES;
        self.frame.resize(VnetHeader::LEN + len, 7);
        let (vnet, frame) = self.frame.split_first_chunk_mut().unwrap();
        frame[..20].copy_from_slice(&[0x45, 0, 0, 0, 0, 1, 0x40, 0, 64, 6, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
        frame[2..4].copy_from_slice(&(len as u16).to_be_bytes());
        frame[12..16].copy_from_slice(&source.octets());
        frame[16..20].copy_from_slice(&destination.octets());
        frame[20..40].copy_from_slice(&[0x13, 0x88, 0x13, 0x89, 0, 0, 0, 0, 0, 0, 0, 1, 0x50, 0x10, 1, 0, 0, 0, 0, 0]);
        frame[24..28].copy_from_slice(&self.sequence.to_be_bytes());
        self.sequence = self.sequence.wrapping_add(SUPER_BYTES as u32);
        *vnet = VnetHeader {
            flags: VnetHeader::NEEDS_CSUM,
            gso_type: VnetHeader::GSO_TCPV4,
            hdr_len: 40,
            gso_size: self.size as u16,
            csum_start: 20,
            csum_offset: 16,
        }
        .to_bytes();
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

fn packets_in(header: VnetHeader, len: usize) -> u64 {
    if header.is_super() { (len - usize::from(header.hdr_len)).div_ceil(header.gso_size.into()) as u64 } else { 1 }
}
