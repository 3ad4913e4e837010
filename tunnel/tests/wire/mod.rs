//! Two engines, a wire with latency, loss, reordering and a size limit, and a clock that only this
//! file moves.

#![allow(dead_code, reason = "each test binary uses its part")]
#![allow(clippy::unwrap_used, reason = "helpers of tests fail by panicking")]

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use bytes::BytesMut;
use culvert_tunnel::banned::Banned;
use culvert_tunnel::close::Close;
use culvert_tunnel::filter::{Lease, Policy};
use culvert_tunnel::identity::{Authority, Credential, DeviceId, DeviceKey};
use culvert_tunnel::routing::Routing;
use culvert_tunnel::segment::{self, VnetHeader};
use culvert_tunnel::shard::cid::CidKey;
use culvert_tunnel::shard::engine::{Engine, Role};
use culvert_tunnel::shard::mailbox::{Event, Inspection, LinkId};
use culvert_tunnel::stats::{LinkStats, ShardStats};
use culvert_tunnel::transport::{ClientTransport, ServerTransport, Tuning};
use quinn_proto::EcnCodepoint;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio::sync::oneshot;

pub const CLIENT: Lease =
    Lease { ipv4: Ipv4Addr::new(100, 77, 3, 9), ipv6: Some(Ipv6Addr::new(0xfd4e, 0x9a1c, 0, 0, 0, 0, 0, 9)) };
pub const GATEWAY: Lease =
    Lease { ipv4: Ipv4Addr::new(100, 77, 3, 1), ipv6: Some(Ipv6Addr::new(0xfd4e, 0x9a1c, 0, 0, 0, 0, 0, 1)) };
const NAME: &str = "vpn.example.org";

/// A CA, a gateway leaf for [`NAME`] and a device certificate, as a gateway would issue them.
pub struct Keys {
    pub authority: Authority,
    pub leaf: Credential,
    pub server: ServerTransport,
    pub client: ClientTransport,
    pub device_chain: Vec<CertificateDer<'static>>,
    pub device_key: PrivateKeyDer<'static>,
}

pub fn keys() -> Keys {
    let now = SystemTime::now();
    let authority = Authority::create("Example", now).unwrap();
    let ca = authority.certificate_der().clone();
    let leaf = authority.issue_server(&[NAME.to_owned(), "127.0.0.1".to_owned(), "::1".to_owned()], now).unwrap();
    let server =
        ServerTransport::new(std::slice::from_ref(&ca), leaf.chain().to_vec(), leaf.private_key(), Tuning::default())
            .unwrap();

    let key = DeviceKey::generate().unwrap();
    let issued = authority.issue_device(&key.csr("test").unwrap(), DeviceId::generate().unwrap(), now).unwrap();
    let device_chain = vec![CertificateDer::from(issued.der.clone()), ca.clone()];
    let client =
        ClientTransport::session(std::slice::from_ref(&ca), device_chain.clone(), key.private_key(), Tuning::default())
            .unwrap();
    Keys { authority, leaf, server, client, device_chain, device_key: key.private_key() }
}

struct End {
    engine: Engine,
    address: SocketAddr,
    link: Option<LinkId>,
    host: Vec<Vec<u8>>,
    events: Vec<Event>,
    buffer: Vec<u8>,
}

impl End {
    fn new(role: Role, address: &str, seed: u8) -> Self {
        let engine = Engine::new(0, 1, role, CidKey::random(), true, Some([seed; 32]));
        Self { engine, address: address.parse().unwrap(), link: None, host: vec![], events: vec![], buffer: vec![] }
    }

    fn collect(&mut self) {
        while let Some(event) = self.engine.poll_event() {
            if let Event::Established(established) = &event {
                self.link = Some(established.link);
            }
            self.events.push(event);
        }
        for frame in self.engine.frames() {
            let whole = frame.parts().collect::<Vec<_>>().concat();
            segment::split(&frame.header, &whole, &mut |packet| self.host.push(packet.to_vec())).unwrap();
        }
        self.engine.clear_frames();
    }

    fn inspect(&mut self) -> Inspection {
        let (reply, mut answer) = oneshot::channel();
        self.engine.inspect(reply);
        answer.try_recv().unwrap()
    }
}

struct Datagram {
    from: SocketAddr,
    to: SocketAddr,
    ecn: Option<EcnCodepoint>,
    bytes: Vec<u8>,
}

pub struct Pair {
    client: End,
    gateway: End,
    transport: ClientTransport,
    now: Instant,
    wire: BTreeMap<(Instant, u64), Datagram>,
    sequence: u64,
    random: u32,
    strangers: usize,
    /// Of the gateway.
    pub banned: Banned,
    pub latency: Duration,
    pub loss_percent: u32,
    pub reorder: bool,
    /// One in so many datagrams that take marks, by chance, is marked "congestion experienced" by the path; 0: none.
    pub mark_every: u32,
    /// So many of 1,000 bytes and more were marked.
    pub large_marked: usize,
    /// UDP payload that the path carries.
    pub path_bytes: usize,
}

impl Pair {
    pub fn new() -> Self {
        let keys = keys();
        let banned = Banned::default();
        let policy = Policy {
            networks: vec!["100.77.3.0/24".parse().unwrap(), "fd4e:9a1c::/64".parse().unwrap()],
            gateway: vec![GATEWAY.ipv4.into(), GATEWAY.ipv6.unwrap().into()],
            isolation: true,
        };
        let gateway = Role::Gateway {
            transport: keys.server,
            routing: Routing::default(),
            policy: Arc::new(policy),
            banned: banned.clone(),
        };
        Self {
            client: End::new(Role::Client, "192.0.2.1:40000", 1),
            gateway: End::new(gateway, "203.0.113.7:443", 2),
            transport: keys.client,
            now: Instant::now(),
            wire: BTreeMap::new(),
            sequence: 0,
            random: 7,
            strangers: 0,
            banned,
            latency: Duration::from_millis(10),
            loss_percent: 0,
            reorder: false,
            mark_every: 0,
            large_marked: 0,
            path_bytes: 1472,
        }
    }

    pub fn connected() -> Self {
        let mut pair = Self::new();
        pair.connect();
        pair
    }

    pub fn dial(&mut self) {
        let to = self.gateway.address;
        let link = self.client.engine.dial(self.now, to, NAME, self.transport.clone()).unwrap();
        self.client.link = Some(link);
        self.client.engine.settle(self.now);
    }

    /// Handshake and admission on both ends.
    pub fn connect(&mut self) {
        self.dial();
        self.run_for(Duration::from_secs(1));
        self.gateway.engine.admit(self.gateway.link.expect("the gateway saw the handshake"), CLIENT);
        self.client.engine.admit(self.client.link.unwrap(), CLIENT);
        self.gateway.engine.settle(self.now);
        self.client.engine.settle(self.now);
        self.run_for(Duration::from_millis(100));
    }

    /// Moves the clock, and everything that happens on the way.
    pub fn run_for(&mut self, duration: Duration) {
        let end = self.now + duration;
        loop {
            self.transmit();
            let next = [
                self.wire.keys().next().map(|(at, _)| *at),
                self.client.engine.poll_timeout(),
                self.gateway.engine.poll_timeout(),
            ];
            let next = next.into_iter().flatten().min().unwrap_or(end).max(self.now);
            if next > end {
                self.now = end;
                return;
            }
            self.now = next;
            for end in [&mut self.client, &mut self.gateway] {
                end.engine.on_timeout(self.now);
            }
            while let Some(entry) = self.wire.first_entry().filter(|entry| entry.key().0 <= self.now) {
                let datagram = entry.remove();
                let Some(to) = [&mut self.client, &mut self.gateway].into_iter().find(|e| e.address == datagram.to)
                else {
                    self.strangers += 1;
                    continue;
                };
                let payload = BytesMut::from(&datagram.bytes[..]);
                to.engine.on_datagram(self.now, datagram.from, None, datagram.ecn, payload);
            }
            for end in [&mut self.client, &mut self.gateway] {
                end.engine.settle(self.now);
            }
            self.client.collect();
            self.gateway.collect();
            if next == end && self.wire.keys().next().is_none_or(|(at, _)| *at > end) {
                self.transmit();
                return;
            }
        }
    }

    fn transmit(&mut self) {
        for end in [&mut self.client, &mut self.gateway] {
            let mut buffer = std::mem::take(&mut end.buffer);
            while let Some(transmit) = end.engine.poll_transmit(self.now, 44, &mut buffer) {
                let whole = &buffer[..transmit.size];
                for bytes in whole.chunks(transmit.segment_size.unwrap_or(whole.len())) {
                    self.random = self.random.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                    let dice = self.random >> 8;
                    if bytes.len() > self.path_bytes || dice % 100 < self.loss_percent {
                        continue;
                    }
                    let late =
                        if self.reorder { Duration::from_micros(u64::from(dice % 3000)) } else { Duration::ZERO };
                    self.sequence += 1;
                    let marks = self.mark_every > 0 && (dice >> 7).is_multiple_of(self.mark_every);
                    self.large_marked += usize::from(marks && bytes.len() >= 1000);
                    let datagram = Datagram {
                        from: end.address,
                        to: transmit.destination,
                        ecn: transmit.ecn.map(|ecn| if marks { EcnCodepoint::Ce } else { ecn }),
                        bytes: bytes.to_vec(),
                    };
                    self.wire.insert((self.now + self.latency + late, self.sequence), datagram);
                }
            }
            end.buffer = buffer;
            end.engine.settle(self.now);
            end.collect();
        }
    }

    fn send(end: &mut End, now: Instant, packet: &[u8]) {
        assert!(end.engine.wants_device(now), "back-pressure in a test that sends little");
        end.engine.on_frame(now, &VnetHeader::default(), packet);
        end.collect();
    }

    pub fn client_sends(&mut self, packet: &[u8]) {
        Self::send(&mut self.client, self.now, packet);
    }

    pub fn client_sends_unchecked(&mut self, packet: &[u8]) {
        Self::send(&mut self.client, self.now, packet);
    }

    pub fn gateway_sends(&mut self, packet: &[u8]) {
        Self::send(&mut self.gateway, self.now, packet);
    }

    pub fn client_host(&mut self) -> Vec<Vec<u8>> {
        std::mem::take(&mut self.client.host)
    }

    pub fn gateway_host(&mut self) -> Vec<Vec<u8>> {
        std::mem::take(&mut self.gateway.host)
    }

    pub fn client_events(&mut self) -> Vec<Event> {
        std::mem::take(&mut self.client.events)
    }

    pub fn gateway_events(&mut self) -> Vec<Event> {
        std::mem::take(&mut self.gateway.events)
    }

    pub fn client_mtu(&mut self) -> usize {
        self.client.engine.active_mtu().expect("an active session").into()
    }

    pub fn client_stats(&mut self) -> LinkStats {
        self.client.inspect().links.pop().expect("a live link").1
    }

    pub fn gateway_stats(&mut self) -> LinkStats {
        self.gateway.inspect().links.pop().expect("a live link").1
    }

    pub fn gateway_shard_stats(&mut self) -> ShardStats {
        self.gateway.inspect().shard
    }

    pub fn gateway_links(&mut self) -> usize {
        self.gateway.inspect().links.len()
    }

    pub fn client_device_drops(&mut self, reason: &str) -> u64 {
        let drops = self.client.inspect().shard.dropped_device;
        drops.by_reason().find(|(word, _)| *word == reason).expect("a known reason").1
    }

    /// Everything dropped for any reason, on both ends.
    pub fn drops(&mut self) -> u64 {
        [&mut self.client, &mut self.gateway]
            .into_iter()
            .map(|end| {
                let inspection = end.inspect();
                let links = inspection.links.iter().map(|(_, l)| l.dropped_in.total() + l.dropped_out.total());
                inspection.shard.dropped_device.total() + links.sum::<u64>()
            })
            .sum()
    }

    pub fn client_echo(&mut self) {
        self.client.engine.echo(self.now, self.client.link.unwrap());
        self.client.engine.settle(self.now);
    }

    pub fn gateway_closes(&mut self, code: Close, reason: &str) {
        self.gateway.engine.close(self.now, self.gateway.link.unwrap(), code, reason.into());
        self.gateway.engine.settle(self.now);
    }

    /// One datagram of noise from an address that is nobody's.
    pub fn gateway_hears_garbage(&mut self, seed: u32) {
        let mut random = seed.wrapping_mul(2_654_435_761) | 1;
        let mut next = || {
            random ^= random << 13;
            random ^= random >> 17;
            random ^= random << 5;
            random
        };
        let len = (next() % 1500) as usize;
        let bytes: Vec<u8> = (0..len).map(|_| next() as u8).collect();
        let from: SocketAddr = "198.51.100.99:9".parse().unwrap();
        self.gateway.engine.on_datagram(self.now, from, None, None, BytesMut::from(&bytes[..]));
        self.gateway.engine.settle(self.now);
        self.run_for(Duration::ZERO);
    }

    /// Datagrams on the wire, or arrived, for addresses that are no end of ours.
    pub fn gateway_answers_to_strangers(&self) -> usize {
        let ends = [self.client.address, self.gateway.address];
        self.strangers + self.wire.values().filter(|datagram| !ends.contains(&datagram.to)).count()
    }
}

/// What a test of hostile peers needs: both engines in its own hands.
impl Pair {
    pub fn now(&self) -> Instant {
        self.now
    }

    pub fn client(&mut self) -> &mut Engine {
        &mut self.client.engine
    }

    pub fn gateway(&mut self) -> &mut Engine {
        &mut self.gateway.engine
    }

    pub fn client_link(&self) -> LinkId {
        self.client.link.expect("a dialled link")
    }

    pub fn client_address(&self) -> SocketAddr {
        self.client.address
    }

    /// Moves the clock alone.
    pub fn sleep(&mut self, duration: Duration) {
        self.now += duration;
    }
}

/// An IPv4 packet of `len` bytes with a valid header: UDP where there is room, else protocol 253.
pub fn ipv4(source: Ipv4Addr, destination: Ipv4Addr, len: usize, dont_fragment: bool) -> Vec<u8> {
    let mut packet = vec![0u8; len];
    packet[0] = 0x45;
    packet[2..4].copy_from_slice(&(len as u16).to_be_bytes());
    packet[6] = if dont_fragment { 0x40 } else { 0 };
    packet[8] = 64;
    packet[9] = if len >= 28 { 17 } else { 253 };
    packet[12..16].copy_from_slice(&source.octets());
    packet[16..20].copy_from_slice(&destination.octets());
    let sum = checksum(&packet[..20]);
    packet[10..12].copy_from_slice(&sum.to_be_bytes());
    if len >= 28 {
        packet[20..24].copy_from_slice(&[0x13, 0x88, 0x13, 0x89]);
        packet[24..26].copy_from_slice(&((len - 20) as u16).to_be_bytes());
    }
    packet
}

/// An IPv6 packet of `len` bytes: UDP where there is room, else no next header.
pub fn ipv6(source: Ipv6Addr, destination: Ipv6Addr, len: usize) -> Vec<u8> {
    let mut packet = vec![0u8; len];
    packet[0] = 0x60;
    packet[4..6].copy_from_slice(&((len - 40) as u16).to_be_bytes());
    packet[6] = if len >= 48 { 17 } else { 59 };
    packet[7] = 64;
    packet[8..24].copy_from_slice(&source.octets());
    packet[24..40].copy_from_slice(&destination.octets());
    if len >= 48 {
        packet[40..44].copy_from_slice(&[0x13, 0x88, 0x13, 0x89]);
        packet[44..46].copy_from_slice(&((len - 40) as u16).to_be_bytes());
    }
    packet
}

/// A SYN over IPv4 that announces this maximum segment size. Its TCP checksum is not right.
pub fn syn(source: Ipv4Addr, destination: Ipv4Addr, mss: u16) -> Vec<u8> {
    let mut packet = ipv4(source, destination, 44, true);
    packet[9] = 6;
    packet[10..12].fill(0);
    let sum = checksum(&packet[..20]);
    packet[10..12].copy_from_slice(&sum.to_be_bytes());
    packet[20..44].fill(0);
    packet[32..34].copy_from_slice(&[0x60, 0x02]);
    packet[40..42].copy_from_slice(&[2, 4]);
    packet[42..44].copy_from_slice(&mss.to_be_bytes());
    packet
}

/// Sets the ECN field of [`ipv4`].
pub fn set_ecn(packet: &mut [u8], ecn: u8) {
    packet[1] = ecn;
    packet[10..12].fill(0);
    let sum = checksum(&packet[..20]);
    packet[10..12].copy_from_slice(&sum.to_be_bytes());
}

/// Writes `bytes` into the payload of [`ipv4`]'s UDP.
pub fn udp_payload(packet: &mut [u8], bytes: &[u8]) {
    packet[28..28 + bytes.len()].copy_from_slice(bytes);
}

fn checksum(bytes: &[u8]) -> u16 {
    let sum: u32 = bytes.chunks(2).map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]]))).sum();
    let folded = (sum & 0xffff) + (sum >> 16);
    !((folded + (folded >> 16)) as u16)
}
