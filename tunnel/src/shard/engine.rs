//! Everything of a shard except sockets, devices and clocks.
//!
//! Datagrams, device frames, commands and `now` go in; transmits, device frames, events and
//! hand-overs come out. The loop in `shard.rs` moves them; a test moves them under a fake clock.

mod commands;
mod device;
mod settle;
mod strangers;

use std::collections::{HashMap, VecDeque};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Instant;

use bytes::BytesMut;
use quinn_proto::{
    ConnectionHandle, DatagramEvent, EcnCodepoint, Endpoint, EndpointConfig, EndpointEvent, Incoming, Transmit,
};

use crate::banned::Banned;
use crate::bucket::Bucket;
use crate::close::Down;
use crate::device::Offload;
use crate::filter::Policy;
use crate::routing::Routing;
use crate::segment::{Coalescer, SuperPacket};
use crate::shard::cid::{self, CidKey, ShardCids};
use crate::shard::handover::Handover;
use crate::shard::handshakes::Handshakes;
use crate::shard::hold_up::HoldUp;
use crate::shard::link::Link;
use crate::shard::mailbox::{Event, LinkId};
use crate::shard::timers::Timers;
use crate::stats::ShardStats;
use crate::transport::ServerTransport;

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
        /// Who may not begin a connection, shared by all shards.
        banned: Banned,
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
    links: Vec<Option<Box<Link>>>,
    by_serial: HashMap<u64, usize>,
    next_serial: u64,
    handshakes: Handshakes<Incoming>,
    /// What may be sent to strangers.
    retry_bytes: Bucket,
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
    carried: u64,
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
        // One key for all shards: whichever hears from a connection that was can say so.
        let mut config = EndpointConfig::new(cids.reset_key());
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
            retry_bytes: Bucket::new(strangers::RETRY_BYTES_PER_SECOND, strangers::RETRY_BYTES_PER_SECOND),
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
            carried: 0,
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
        if speaks_another_version(&payload) {
            self.stats.datagrams_in += 1;
            // One version is spoken here. Answering strangers with a list of versions would only
            // tell a scanner that somebody is home (RFC 9000 section 6 leaves it to us).
            self.stats.datagrams_foreign += 1;
            return;
        }
        if is_long_header(&payload)
            && let Role::Gateway { banned, .. } = &self.role
            && banned.contains(remote.ip())
        {
            // Before anything is decrypted. Open sessions send no long headers.
            self.stats.datagrams_in += 1;
            self.stats.datagrams_banned += 1;
            return;
        }
        if self.shards > 1
            && let Some(shard) = cid::destination(&payload).and_then(|cid| self.cids.shard_of(cid))
            && shard != self.shard
        {
            self.handovers.push(Handover::Datagram { shard, remote, local_ip, ecn, payload });
            return;
        }
        // What is handed over counts where it is taken.
        self.stats.datagrams_in += 1;
        let (long_header, mut response) = (is_long_header(&payload), Vec::new());
        match self.endpoint.handle(now, remote, local_ip, ecn, payload, &mut response) {
            Some(DatagramEvent::ConnectionEvent(handle, event)) => {
                // A mark is for the packets of this datagram alone.
                let marked = ecn == Some(EcnCodepoint::Ce);
                if marked {
                    self.read_datagrams(now, handle.0, usize::MAX, false);
                }
                if let Some(link) = self.links.get_mut(handle.0).and_then(Option::as_mut) {
                    link.connection.handle_event(event);
                    link.heard = true;
                    self.touch(handle.0);
                }
                if marked {
                    self.read_datagrams(now, handle.0, usize::MAX, true);
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

    // --- time ---

    /// When [`Self::on_timeout`] is due.
    pub fn poll_timeout(&mut self) -> Option<Instant> {
        let held_up = match self.role {
            Role::Gateway { .. } => self.hold_up.poll_timeout(),
            Role::Client => None,
        };
        [self.timers.next(), held_up, self.handshakes.poll_timeout()].into_iter().flatten().min()
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
        self.begin_handshakes(now);
        self.settle(now);
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

    /// A device was attached that takes super-packets as `offload` says.
    pub fn on_attached(&mut self, offload: Offload) {
        self.to_device.set_udp(offload.udp);
    }

    /// What the device should write. Call [`Self::clear_frames`] when it has.
    pub fn frames(&mut self) -> &[SuperPacket] {
        self.to_device.frames()
    }

    /// Those of [`Self::frames`], at the front, that grow no more before the end of the turn.
    pub fn full_frames(&mut self) -> &[SuperPacket] {
        self.to_device.full_frames()
    }

    /// Forgets the first `count` frames.
    pub fn take_frames(&mut self, count: usize) {
        self.to_device.take(count);
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
                return Some(Event::InnerMtu { link: link.id, mtu_bytes: link.inner_mtu.told_bytes() });
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

    /// Datagrams received and sent so far.
    pub fn moved(&self) -> u64 {
        self.stats.datagrams_in + self.stats.datagrams_out
    }

    /// Inner packets and frames of the device so far.
    pub fn carried(&self) -> u64 {
        self.carried
    }

    /// What other shards must take over.
    pub fn handovers(&mut self) -> std::vec::Drain<'_, Handover> {
        self.handovers.drain(..)
    }

    /// Takes over what another shard has handed to this one. Call [`Self::settle`] after a batch.
    pub fn on_handover(&mut self, now: Instant, handover: Handover) {
        self.stats.handed_in += 1;
        match handover {
            Handover::Packet { link, packet } => self.on_handed_packet(now, link, packet),
            Handover::Datagram { remote, local_ip, ecn, payload, .. } => {
                self.on_datagram(now, remote, local_ip, ecn, payload);
            }
        }
    }

    /// The inner MTU of the client's active link, for its device.
    pub fn active_mtu(&self) -> Option<u16> {
        self.active.and_then(|index| self.links[index].as_ref()).map(|link| link.inner_mtu.told_bytes())
    }

    // --- inside ---

    fn add(&mut self, now: Instant, handle: ConnectionHandle, connection: quinn_proto::Connection) -> LinkId {
        let id = LinkId { shard: self.shard, serial: self.next_serial };
        self.next_serial += 1;
        if self.links.len() <= handle.0 {
            self.links.resize_with(handle.0 + 1, || None);
        }
        self.links[handle.0] = Some(Box::new(Link::new(id, connection, now)));
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
}

/// True for a QUIC long header of a version that is not 1 (RFC 8999 section 5.1).
fn speaks_another_version(datagram: &[u8]) -> bool {
    const VERSION_1: [u8; 4] = [0, 0, 0, 1];
    is_long_header(datagram) && datagram.get(1..5) != Some(&VERSION_1[..])
}

fn is_long_header(datagram: &[u8]) -> bool {
    datagram.first().is_some_and(|first| first & 0x80 != 0)
}
