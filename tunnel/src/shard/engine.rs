//! Everything of a shard except sockets, devices and clocks.
//!
//! Datagrams, device frames, commands and `now` go in; transmits, device frames, events and
//! hand-overs come out. The loop in `shard.rs` moves them; a test moves them under a fake clock.

use std::collections::{HashMap, VecDeque};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Instant;

use bytes::{Bytes, BytesMut};
use quinn_proto::crypto::rustls::HandshakeData;
use quinn_proto::{
    ConnectionHandle, DatagramEvent, EcnCodepoint, Endpoint, EndpointConfig, EndpointEvent, Event as QuicEvent,
    Incoming, StreamEvent, Transmit, VarInt,
};
use rustls::pki_types::CertificateDer;
use tokio::sync::oneshot;

use crate::close::{Close, Down};
use crate::filter::{self, Lease, Policy};
use crate::icmp;
use crate::packet::{Dropped, Header};
use crate::routing::Routing;
use crate::segment::{self, Coalescer, SuperPacket, VnetHeader};
use crate::shard::cid::{self, CidKey, ShardCids};
use crate::shard::ending::down;
use crate::shard::handshakes::Handshakes;
use crate::shard::hold_up::HoldUp;
use crate::shard::link::{LEAST_INNER_MTU_BYTES, Link, Sent};
use crate::shard::mailbox::{Established, Event, Inspection, LinkId, Protocol};
use crate::shard::payload::take_payload;
use crate::shard::timers::Timers;
use crate::stats::ShardStats;
use crate::transport::{ClientTransport, ServerTransport};

/// Answers to strangers that may wait for the socket.
const MOST_RESPONSES: usize = 512;
/// Payloads taken from one link before the others have their turn.
const PAYLOADS_A_SETTLE: usize = 1024;
/// Untold events beyond which control streams are not read.
const MOST_UNTOLD: usize = 64;
/// Label of the exported value that proofs and challenges are bound to (RFC 5705).
const EXPORTER_LABEL: &[u8] = b"EXPORTER-culvert/1";

/// Which end this is.
#[derive(Clone, Debug)]
pub enum Role {
    /// One session at a time carries everything the device gives.
    Client,
    /// Sessions by inner address.
    Gateway {
        /// Keys and trust.
        transport: ServerTransport,
        /// Inner address → link, shared by all shards.
        routing: Routing,
        /// Which packets may cross.
        policy: Arc<Policy>,
    },
}

/// What another shard of this gateway must take over.
#[derive(Debug)]
pub enum Handover {
    /// A packet for one of its links.
    Packet {
        /// The link.
        link: LinkId,
        /// The packet.
        packet: Bytes,
    },
    /// A datagram for one of its connections.
    Datagram {
        /// The shard that owns the connection.
        shard: u8,
        /// Who sent it.
        remote: SocketAddr,
        /// Its ECN mark.
        ecn: Option<EcnCodepoint>,
        /// The UDP payload.
        payload: BytesMut,
    },
}

/// The state of one shard.
#[derive(Debug)]
pub struct Engine {
    shard: u8,
    shards: u8,
    role: Role,
    cids: CidKey,
    endpoint: Endpoint,
    /// By QUIC's connection handle.
    links: Vec<Option<Link>>,
    by_serial: HashMap<u64, usize>,
    next_serial: u64,
    handshakes: Handshakes,
    timers: Timers,
    touched: Vec<usize>,
    sending: VecDeque<usize>,
    responses: VecDeque<(Transmit, Vec<u8>)>,
    events: VecDeque<Event>,
    starved: Vec<usize>,
    handovers: Vec<Handover>,
    to_device: Coalescer,
    /// Where super-packets are cut; its memory comes back when the packets are sent.
    cuttings: BytesMut,
    /// The way out of a client.
    active: Option<usize>,
    hold_up: HoldUp,
    /// Links with news of which only the latest counts.
    notices: VecDeque<usize>,
    stats: ShardStats,
}

impl Engine {
    /// A shard numbered `shard` of `shards`. `rng_seed` makes a test repeatable.
    pub fn new(
        shard: u8,
        shards: u8,
        role: Role,
        cids: CidKey,
        may_discover_mtu: bool,
        rng_seed: Option<[u8; 32]>,
    ) -> Self {
        let mut config = EndpointConfig::default();
        let generator = cids.clone();
        config.cid_generator(move || Box::new(ShardCids { key: generator.clone(), shard })).rng_seed(rng_seed);
        let server = match &role {
            Role::Client => None,
            Role::Gateway { transport, .. } => Some(transport.config.clone()),
        };
        Self {
            shard,
            shards,
            role,
            cids,
            endpoint: Endpoint::new(Arc::new(config), server, may_discover_mtu, None),
            links: Vec::new(),
            by_serial: HashMap::new(),
            next_serial: 0,
            handshakes: Handshakes::default(),
            timers: Timers::default(),
            touched: Vec::new(),
            sending: VecDeque::new(),
            responses: VecDeque::new(),
            events: VecDeque::new(),
            starved: Vec::new(),
            handovers: Vec::new(),
            to_device: Coalescer::default(),
            cuttings: BytesMut::with_capacity(64 * 1024),
            active: None,
            hold_up: HoldUp::default(),
            notices: VecDeque::new(),
            stats: ShardStats::default(),
        }
    }

    // --- in: the network ---

    /// Takes one UDP payload. Call [`Self::settle`] after a batch.
    pub fn on_datagram(
        &mut self,
        now: Instant,
        remote: SocketAddr,
        local_ip: Option<IpAddr>,
        ecn: Option<EcnCodepoint>,
        payload: BytesMut,
    ) {
        self.stats.datagrams_in += 1;
        if speaks_another_version(&payload) {
            // One version is spoken here. Answering strangers with a list of versions would only
            // tell a scanner that somebody is home (RFC 9000 section 6 leaves it to us).
            self.stats.datagrams_foreign += 1;
            return;
        }
        if self.shards > 1
            && let Some(shard) = cid::destination(&payload).and_then(|cid| self.cids.shard_of(cid))
            && shard != self.shard
        {
            self.handovers.push(Handover::Datagram { shard, remote, ecn, payload });
            return;
        }
        let (long_header, mut response) = (is_long_header(&payload), Vec::new());
        match self.endpoint.handle(now, remote, local_ip, ecn, payload, &mut response) {
            Some(DatagramEvent::ConnectionEvent(handle, event)) => {
                if let Some(link) = self.links.get_mut(handle.0).and_then(Option::as_mut) {
                    link.connection.handle_event(event);
                    link.heard = true;
                    self.touch(handle.0);
                }
            }
            Some(DatagramEvent::NewConnection(incoming)) => self.on_incoming(now, incoming),
            // A gateway that lost its state says so by a stateless reset. Nothing else is due to a
            // stranger: not to what only looks like an Initial, and not from a client at all.
            Some(DatagramEvent::Response(_)) if long_header || matches!(self.role, Role::Client) => {
                self.stats.datagrams_foreign += 1;
            }
            Some(DatagramEvent::Response(transmit)) => self.respond(transmit, response),
            None => self.stats.datagrams_foreign += 1,
        }
    }

    fn on_incoming(&mut self, now: Instant, incoming: Incoming) {
        self.stats.handshakes += 1;
        let mut buffer = Vec::new();
        let source = incoming.remote_address().ip();
        if !self.handshakes.may_begin(source) {
            self.stats.handshakes_refused += 1;
            self.endpoint.ignore(incoming);
            return;
        }
        if !incoming.remote_address_validated() && incoming.may_retry() {
            self.stats.retries += 1;
            if let Ok(transmit) = self.endpoint.retry(incoming, &mut buffer) {
                self.respond(transmit, buffer);
            }
            return;
        }
        match self.endpoint.accept(incoming, now, &mut buffer, None) {
            Ok((handle, connection)) => {
                let id = self.add(now, handle, connection);
                if let Some(oldest) = self.handshakes.begin(id.serial, source) {
                    self.give_way(now, oldest);
                }
            }
            Err(error) => {
                if let Some(transmit) = error.response {
                    self.respond(transmit, buffer);
                }
            }
        }
    }

    fn respond(&mut self, transmit: Transmit, bytes: Vec<u8>) {
        if self.responses.len() < MOST_RESPONSES {
            self.responses.push_back((transmit, bytes));
        }
    }

    /// Ends the oldest handshake, there being too many.
    fn give_way(&mut self, now: Instant, serial: u64) {
        self.stats.handshakes_refused += 1;
        let Some(&index) = self.by_serial.get(&serial) else { return };
        if let Some(link) = self.links[index].as_mut() {
            link.connection.close(now, VarInt::from_u32(Close::Timeout.code()), Bytes::new());
        }
        self.touch(index);
        self.report(now, index, Down::Local(Close::Timeout));
    }

    // --- in: the device ---

    /// Takes one frame of the device: a packet, or a super-packet as `vnet` says.
    pub fn on_frame(&mut self, now: Instant, vnet: &VnetHeader, frame: &[u8]) {
        if let Err(why) = self.route_frame(now, vnet, frame) {
            self.stats.dropped_device.count(&why);
        }
    }

    fn route_frame(&mut self, now: Instant, vnet: &VnetHeader, frame: &[u8]) -> Result<(), Dropped> {
        let header = Header::parse(frame)?;
        let destination = header.dst();
        let nobody = Dropped::NoSession { destination };
        let index = match &self.role {
            Role::Client => {
                let index = self.active.ok_or(nobody)?;
                let lease = self.links[index].as_ref().and_then(|link| link.lease).ok_or(nobody)?;
                filter::client_out(&lease, &header)?;
                index
            }
            Role::Gateway { routing, policy, .. } => {
                policy.to_client(&header)?;
                let id = routing.load().get(destination).ok_or(nobody)?;
                if id.shard != self.shard {
                    let handovers = &mut self.handovers;
                    segment::split_into(&mut self.cuttings, vnet, frame, &mut |packet| {
                        handovers.push(Handover::Packet { link: id, packet });
                    })?;
                    return Ok(());
                }
                *self.by_serial.get(&id.serial).ok_or(nobody)?
            }
        };
        let link = self.links[index].as_mut().ok_or(nobody)?;
        let max_bytes = link.datagram_bytes();
        let mut too_big = None;
        segment::split_into(&mut self.cuttings, vnet, frame, &mut |packet| {
            if let Sent::TooBig { mtu_bytes, packet } = link.send_packet(packet, &header, max_bytes) {
                // One answer a frame is enough for its sender.
                too_big.get_or_insert((packet, mtu_bytes));
            }
        })?;
        if !link.lossy && !link.has_room() {
            let gateway = matches!(self.role, Role::Gateway { .. });
            link.lossy = !self.hold_up.begin(now, index, gateway, self.by_serial.len() == 1);
        }
        self.queue(index);
        if let Some((packet, mtu_bytes)) = too_big {
            self.answer_too_big(index, &packet, &header, mtu_bytes);
        }
        Ok(())
    }

    /// A packet that another shard has routed and checked.
    pub fn on_handed_packet(&mut self, id: LinkId, packet: Bytes) {
        debug_assert_eq!(id.shard, self.shard);
        let found = Header::parse(&packet).and_then(|header| {
            let nobody = Dropped::NoSession { destination: header.dst() };
            Ok((*self.by_serial.get(&id.serial).ok_or(nobody)?, header))
        });
        let (index, header) = match found {
            Ok(found) => found,
            Err(why) => return self.stats.dropped_device.count(&why),
        };
        let Some(link) = self.links[index].as_mut() else { return };
        let max_bytes = link.datagram_bytes();
        let sent = link.send_packet(packet, &header, max_bytes);
        self.queue(index);
        if let Sent::TooBig { mtu_bytes, packet } = sent {
            self.answer_too_big(index, &packet, &header, mtu_bytes);
        }
    }

    /// Tells the sender of a device packet, through the device, how large it may be.
    fn answer_too_big(&mut self, index: usize, packet: &Bytes, header: &Header, mtu_bytes: u16) {
        // The answer comes from the address that was asked for: any other source would fail the
        // host's reverse-path check, and our own is a martian when it arrives on the device.
        let answer = match header.dst() {
            IpAddr::V4(asked) => icmp::too_big(packet, mtu_bytes, asked, None),
            IpAddr::V6(asked) => icmp::too_big(packet, mtu_bytes, Ipv4Addr::UNSPECIFIED, Some(asked)),
        };
        if let Some(answer) = answer {
            self.to_device.push(answer);
            if let Some(link) = self.links[index].as_mut() {
                link.too_big_answers += 1;
            }
        }
    }

    /// False while a full queue should be drained before the device is read again.
    pub fn wants_device(&mut self, now: Instant) -> bool {
        let Some(index) = self.hold_up.by() else { return true };
        if let Some(link) = self.links[index].as_mut()
            && !link.reported
            && !link.has_room()
        {
            if matches!(self.role, Role::Client) || !self.hold_up.is_too_long(now) {
                return false;
            }
            link.lossy = true;
        }
        self.hold_up.end();
        true
    }

    // --- in: the control plane ---

    /// Opens a connection.
    pub fn dial(
        &mut self,
        now: Instant,
        remote: SocketAddr,
        server_name: &str,
        transport: ClientTransport,
    ) -> Result<LinkId, Down> {
        match self.endpoint.connect(now, transport.config, remote, server_name) {
            Ok((handle, connection)) => Ok(self.add(now, handle, connection)),
            // Every cause is a bad address or name; the caller has checked both.
            Err(_) => Err(Down::NoAnswer),
        }
    }

    /// Sends one frame on the link's control stream.
    pub fn send_frame(&mut self, now: Instant, id: LinkId, frame: Vec<u8>) {
        let mut taken = true;
        self.with(id, |link| taken = link.send_frame(frame));
        if !taken {
            self.close(now, id, Close::Unexpected, "the control stream is not read".into());
        }
    }

    /// Opens the link for inner packets.
    pub fn admit(&mut self, id: LinkId, lease: Lease) {
        let Some(index) = self.with(id, |link| link.lease = Some(lease)) else { return };
        match &self.role {
            Role::Client => {
                self.active = Some(index);
                self.hold_up.end();
            }
            Role::Gateway { routing, .. } => routing.insert(lease, id),
        }
    }

    /// Closes the link.
    pub fn close(&mut self, now: Instant, id: LinkId, code: Close, reason: String) {
        let Some(index) = self.with(id, |link| link.close(now, code, reason)) else { return };
        self.report(now, index, Down::Local(code));
    }

    /// Sends an echo request.
    pub fn echo(&mut self, now: Instant, id: LinkId) {
        self.with(id, |link| link.send_echo(now));
    }

    /// The socket was replaced: every peer must learn the new address.
    pub fn on_rebind(&mut self) {
        for index in 0..self.links.len() {
            if let Some(link) = self.links[index].as_mut() {
                link.connection.local_address_changed();
                self.touch(index);
            }
        }
    }

    /// Closes everything at once.
    pub fn stop(&mut self, now: Instant, code: Close, reason: &str) {
        for index in 0..self.links.len() {
            if let Some(link) = self.links[index].as_mut() {
                link.connection.close(now, VarInt::from_u32(code.code()), Bytes::copy_from_slice(reason.as_bytes()));
                self.touch(index);
                self.report(now, index, Down::Local(code));
            }
        }
    }

    /// Answers with the counters.
    pub fn inspect(&mut self, reply: oneshot::Sender<Inspection>) {
        let links = self.links.iter_mut().flatten().filter(|link| !link.reported);
        let links = links.map(|link| (link.id, link.stats())).collect();
        _ = reply.send(Inspection { shard: self.stats, links });
    }

    /// Counters that the loop itself moves.
    pub fn stats_mut(&mut self) -> &mut ShardStats {
        &mut self.stats
    }

    // --- time ---

    /// When [`Self::on_timeout`] is due.
    pub fn poll_timeout(&mut self) -> Option<Instant> {
        let held_up = match self.role {
            Role::Gateway { .. } => self.hold_up.poll_timeout(),
            Role::Client => None,
        };
        [self.timers.next(), held_up].into_iter().flatten().min()
    }

    /// Fires what is due.
    pub fn on_timeout(&mut self, now: Instant) {
        while let Some(index) = self.timers.expired(now) {
            let Some(link) = self.links[index].as_mut() else { continue };
            if link.is_over(now) {
                self.endpoint.handle_event(ConnectionHandle(index), EndpointEvent::drained());
                self.remove(now, index);
                continue;
            }
            let ended = link.on_timeout(now);
            self.touch(index);
            if let Some(down) = ended {
                self.report(now, index, down);
            }
        }
        self.settle(now);
    }

    /// Takes what QUIC has to say about every link that was touched.
    pub fn settle(&mut self, now: Instant) {
        let mut again = Vec::new();
        while let Some(index) = self.touched.pop() {
            if let Some(link) = self.links[index].as_mut() {
                link.touched = false;
                if self.settle_link(now, index) {
                    again.push(index);
                }
            }
        }
        for index in again {
            self.touch(index);
        }
    }

    /// True when [`Self::settle`] left payloads for another turn.
    pub fn has_more(&self) -> bool {
        !self.touched.is_empty()
    }

    /// Returns true when payloads are left.
    fn settle_link(&mut self, now: Instant, index: usize) -> bool {
        loop {
            let Some(link) = self.links[index].as_mut() else { return false };
            if let Some(event) = link.connection.poll_endpoint_events() {
                let drained = event.is_drained();
                if drained {
                    // Why it ended may still wait behind it.
                    while let Some(event) = link.connection.poll() {
                        if let QuicEvent::ConnectionLost { reason } = event {
                            let down = down(&reason, link.heard);
                            self.report(now, index, down);
                            break;
                        }
                    }
                }
                let answer = self.endpoint.handle_event(ConnectionHandle(index), event);
                if drained {
                    self.remove(now, index);
                    return false;
                }
                if let (Some(event), Some(link)) = (answer, self.links[index].as_mut()) {
                    link.connection.handle_event(event);
                }
                continue;
            }
            let Some(event) = link.connection.poll() else { break };
            match event {
                QuicEvent::Connected => self.on_connected(now, index),
                QuicEvent::ConnectionLost { reason } => {
                    let down = down(&reason, link.heard);
                    self.report(now, index, down);
                }
                QuicEvent::Stream(StreamEvent::Opened { .. }) => {
                    link.accept_control();
                    self.read_control(now, index);
                }
                QuicEvent::Stream(StreamEvent::Readable { .. }) => self.read_control(now, index),
                QuicEvent::Stream(StreamEvent::Writable { .. }) => link.write_control(),
                QuicEvent::Stream(StreamEvent::Finished { .. }) => link.finish_closing(now),
                _ => {}
            }
        }
        let more = self.read_datagrams(now, index);
        let Some(link) = self.links[index].as_mut() else { return false };
        if link.follow_peer(now) {
            link.notice.moved = true;
        }
        self.watch_mtu(index);
        self.queue(index);
        more
    }

    // --- out ---

    /// Writes the next transmit into `buffer` (cleared first), at most `segments` datagrams.
    pub fn poll_transmit(&mut self, now: Instant, segments: usize, buffer: &mut Vec<u8>) -> Option<Transmit> {
        buffer.clear();
        if let Some((transmit, bytes)) = self.responses.pop_front() {
            buffer.extend_from_slice(&bytes);
            self.stats.datagrams_out += 1;
            return Some(transmit);
        }
        while let Some(index) = self.sending.pop_front() {
            let Some(link) = self.links[index].as_mut() else { continue };
            link.queued = false;
            let mtu = usize::from(link.connection.current_mtu()).max(1);
            // One sendmsg takes less than 64 KiB, IP and UDP headers included.
            let most = segments.min(65_000 / mtu).max(1);
            let transmit = link.connection.poll_transmit(now, most, buffer);
            if link.lossy && link.is_nearly_empty() {
                link.lossy = false;
            }
            let due = link.poll_timeout();
            self.timers.set(index, due);
            if let Some(transmit) = transmit {
                self.queue(index); // behind the others
                self.stats.datagrams_out += transmit.segment_size.map_or(1, |size| transmit.size.div_ceil(size)) as u64;
                return Some(transmit);
            }
            // Sending can end a connection or retire IDs.
            if self.links[index].as_ref().is_some_and(|link| link.connection.is_drained()) {
                self.touch(index);
            }
        }
        None
    }

    /// What the device should write. Call [`Self::clear_frames`] when it has.
    pub fn frames(&mut self) -> &[SuperPacket] {
        self.to_device.frames()
    }

    /// Forgets the frames.
    pub fn clear_frames(&mut self) {
        self.to_device.clear();
    }

    /// The next event for the control plane.
    pub fn poll_event(&mut self) -> Option<Event> {
        if let Some(event) = self.events.pop_front() {
            return Some(event);
        }
        while let Some(index) = self.notices.pop_front() {
            let Some(link) = self.links[index].as_mut() else { continue };
            link.notice.queued = false;
            if link.reported {
                continue;
            }
            if std::mem::take(&mut link.notice.moved) {
                let event = Event::Moved { link: link.id, remote: link.remote };
                self.notify(index);
                return Some(event);
            }
            if std::mem::take(&mut link.notice.mtu) {
                return Some(Event::InnerMtu { link: link.id, mtu_bytes: link.inner_mtu_bytes });
            }
        }
        None
    }

    /// Tells that the device is gone.
    pub fn on_device_gone(&mut self, os_error: i32) {
        self.events.push_back(Event::DeviceGone { os_error });
    }

    /// Gives back an event that the control plane had no room for.
    pub fn unpoll_event(&mut self, event: Event) {
        self.events.push_front(event);
    }

    /// Reads the control streams that waited for the control plane to catch up.
    pub fn resume_control(&mut self, now: Instant) {
        if self.events.len() >= MOST_UNTOLD {
            return;
        }
        for index in std::mem::take(&mut self.starved) {
            if let Some(link) = self.links[index].as_mut() {
                link.starved = false;
                self.read_control(now, index);
                self.queue(index);
            }
        }
    }

    /// True while control streams wait for the control plane.
    pub fn is_starved(&self) -> bool {
        !self.starved.is_empty()
    }

    /// True while the control plane has not been told everything.
    pub fn has_untold(&self) -> bool {
        !self.events.is_empty() || !self.notices.is_empty()
    }

    /// What other shards must take over.
    pub fn take_handovers(&mut self) -> Vec<Handover> {
        std::mem::take(&mut self.handovers)
    }

    /// The inner MTU of the client's active link, for its device.
    pub fn active_mtu(&self) -> Option<u16> {
        self.active.and_then(|index| self.links[index].as_ref()).map(|link| link.inner_mtu_bytes)
    }

    // --- inside ---

    fn add(&mut self, now: Instant, handle: ConnectionHandle, connection: quinn_proto::Connection) -> LinkId {
        let id = LinkId { shard: self.shard, serial: self.next_serial };
        self.next_serial += 1;
        if self.links.len() <= handle.0 {
            self.links.resize_with(handle.0 + 1, || None);
        }
        self.links[handle.0] = Some(Link::new(id, connection, now));
        self.by_serial.insert(id.serial, handle.0);
        self.touch(handle.0);
        id
    }

    fn remove(&mut self, now: Instant, index: usize) {
        self.report(now, index, Down::TimedOut);
        self.timers.set(index, None);
        if let Some(link) = self.links[index].take() {
            self.by_serial.remove(&link.id.serial);
        }
    }

    /// Tells the end of a link once, and takes its traffic away.
    fn report(&mut self, now: Instant, index: usize, down: Down) {
        let Some(link) = self.links[index].as_mut() else { return };
        if link.reported {
            return;
        }
        link.on_reported(now);
        if let Some(lease) = link.lease.take()
            && let Role::Gateway { routing, .. } = &self.role
        {
            routing.remove(lease, link.id);
        }
        if self.active == Some(index) {
            self.active = None;
        }
        if self.hold_up.by() == Some(index) {
            self.hold_up.end();
        }
        let stats = Box::new(link.stats());
        let (id, remote, established) = (link.id, link.remote, link.protocol.is_some());
        self.handshakes.end(id.serial);
        self.events.push_back(Event::Closed { link: id, down, remote, established, stats });
    }

    fn with(&mut self, id: LinkId, act: impl FnOnce(&mut Link)) -> Option<usize> {
        let &index = self.by_serial.get(&id.serial).filter(|_| id.shard == self.shard)?;
        let link = self.links[index].as_mut().filter(|link| !link.reported)?;
        act(link);
        self.touch(index);
        Some(index)
    }

    fn touch(&mut self, index: usize) {
        if let Some(link) = self.links[index].as_mut()
            && !std::mem::replace(&mut link.touched, true)
        {
            self.touched.push(index);
        }
    }

    fn queue(&mut self, index: usize) {
        if let Some(link) = self.links[index].as_mut()
            && !std::mem::replace(&mut link.queued, true)
        {
            self.sending.push_back(index);
        }
    }

    fn on_connected(&mut self, now: Instant, index: usize) {
        let Some(link) = self.links[index].as_mut().filter(|link| !link.reported) else { return };
        let session = link.connection.crypto_session();
        let data = session.handshake_data().and_then(|data| data.downcast::<HandshakeData>().ok());
        let protocol = data.and_then(|data| data.protocol).and_then(|name| Protocol::from_alpn(&name));
        let peer_chain: Vec<CertificateDer<'static>> =
            session.peer_identity().and_then(|chain| chain.downcast().ok()).map_or_else(Vec::new, |chain| *chain);
        let mut exporter = [0; 32];
        let exported = session.export_keying_material(&mut exporter, EXPORTER_LABEL, &[]);
        let (Some(protocol), Ok(())) = (protocol, exported) else {
            // TLS refuses a foreign ALPN by itself; this is a peer that offered none.
            link.close(now, Close::Version, "no common protocol".into());
            self.report(now, index, Down::Local(Close::Version));
            return;
        };
        link.protocol = Some(protocol);
        if matches!(self.role, Role::Client) {
            link.open_control();
        }
        let handshake = now.saturating_duration_since(link.began);
        let (id, remote) = (link.id, link.remote);
        self.handshakes.end(id.serial);
        self.events.push_back(Event::Established(Established {
            link: id,
            remote,
            protocol,
            peer_chain,
            exporter,
            handshake,
        }));
    }

    fn read_control(&mut self, now: Instant, index: usize) {
        let room = MOST_UNTOLD.saturating_sub(self.events.len());
        let Some(link) = self.links[index].as_mut().filter(|link| !link.reported) else { return };
        let mut frames = Vec::new();
        let outcome = if room == 0 { Ok(true) } else { link.read_control(room.min(16), &mut frames) };
        let id = link.id;
        self.events.extend(frames.into_iter().map(|payload| Event::Frame { link: id, payload }));
        match outcome {
            Ok(false) => {}
            Ok(true) => {
                if let Some(link) = self.links[index].as_mut()
                    && !std::mem::replace(&mut link.starved, true)
                {
                    self.starved.push(index);
                }
            }
            Err(code) => self.close(now, id, code, "unreadable control frame".into()),
        }
    }

    /// Returns true when payloads are left.
    fn read_datagrams(&mut self, now: Instant, index: usize) -> bool {
        let Some(link) = self.links[index].as_mut() else { return false };
        for _ in 0..PAYLOADS_A_SETTLE {
            let Some(payload) = link.connection.datagrams().recv() else { return false };
            if let Err(why) = take_payload(&self.role, link, now, payload, &mut self.to_device, &mut self.events) {
                link.dropped_in.count(&why);
            }
        }
        true
    }

    fn watch_mtu(&mut self, index: usize) {
        let Some(link) = self.links[index].as_mut() else { return };
        if link.lease.is_none() {
            link.notice = crate::shard::link::Notice { queued: link.notice.queued, ..Default::default() };
            return;
        }
        let bytes = u16::try_from(link.datagram_bytes()).unwrap_or(u16::MAX).max(LEAST_INNER_MTU_BYTES);
        if bytes != link.inner_mtu_bytes {
            link.inner_mtu_bytes = bytes;
            link.notice.mtu = true;
        }
        if link.notice.mtu || link.notice.moved {
            self.notify(index);
        }
    }

    fn notify(&mut self, index: usize) {
        if let Some(link) = self.links[index].as_mut()
            && !std::mem::replace(&mut link.notice.queued, true)
        {
            self.notices.push_back(index);
        }
    }
}

/// True for a QUIC long header of a version that is not 1 (RFC 8999 section 5.1).
fn speaks_another_version(datagram: &[u8]) -> bool {
    const VERSION_1: [u8; 4] = [0, 0, 0, 1];
    is_long_header(datagram) && datagram.get(1..5) != Some(&VERSION_1[..])
}

fn is_long_header(datagram: &[u8]) -> bool {
    datagram.first().is_some_and(|first| first & 0x80 != 0)
}
