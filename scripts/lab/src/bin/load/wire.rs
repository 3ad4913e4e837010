//! One engine and a socket for each of its many clients, moved by one thread.
//!
//! To the engine an address is only a label, so every client dials the gateway under another one, and a
//! transmit's label says whose socket it goes out of.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket};
use std::time::Instant;

use anyhow::{Context, bail};
use bytes::BytesMut;
use culvert_tunnel::close::{Close, Down};
use culvert_tunnel::control::{self, FromClient, Hello};
use culvert_tunnel::shard::cid::CidKey;
use culvert_tunnel::shard::engine::{Engine, Role};
use culvert_tunnel::shard::mailbox::{Event, LinkId};
use culvert_tunnel::transport::ClientTransport;
use rustix::buffer::spare_capacity;
use rustix::event::{Timespec, epoll};
use rustix::fd::OwnedFd;
use rustix::io::Errno;
use rustix::process::{Resource, getrlimit, setrlimit};
use socket2::{Domain, Protocol, Socket, Type};

use crate::sources::Sources;

/// The first label; the client's number is added (RFC 1112 section 4: nobody's).
const FIRST_LABEL: u32 = 0xf000_0000;
/// Bytes of one socket's receive buffer: some handshakes' worth.
const RECEIVE_BUFFER_BYTES: usize = 64 * 1024;
/// Sockets that are looked at before what came in is answered.
const READY_A_TURN: usize = 128;
/// Datagrams of one socket a turn.
const DATAGRAMS_A_SOCKET: usize = 8;
/// Descriptors besides the sockets.
const DESCRIPTORS: u64 = 64;

/// All clients of one thread.
pub(crate) struct Wire {
    engine: Engine,
    gateway: SocketAddr,
    sources: Sources,
    epoll: OwnedFd,
    /// By client.
    sockets: Vec<UdpSocket>,
    /// Whose link it is, by its serial number.
    owners: HashMap<u64, usize>,
    ready: Vec<epoll::Event>,
    buffer: Vec<u8>,
    /// Datagrams that the kernel did not take.
    pub(crate) unsent: u64,
}

impl Wire {
    pub(crate) fn open(gateway: SocketAddr, sources: Sources, clients: usize) -> anyhow::Result<Self> {
        if !gateway.is_ipv4() {
            bail!("the clients' sources are IPv4 addresses, so {gateway} cannot be reached from them");
        }
        allow_descriptors(clients as u64 + DESCRIPTORS)?;
        let mut wire = Self {
            engine: engine(),
            gateway,
            sources,
            epoll: epoll::create(epoll::CreateFlags::CLOEXEC)?,
            sockets: Vec::with_capacity(clients),
            owners: HashMap::new(),
            ready: Vec::with_capacity(READY_A_TURN),
            buffer: Vec::new(),
            unsent: 0,
        };
        wire.open_sockets(clients)?;
        Ok(wire)
    }

    fn open_sockets(&mut self, clients: usize) -> anyhow::Result<()> {
        self.sockets.clear(); // epoll forgets what is closed
        for client in 0..clients {
            let source = self.sources.of(client);
            let socket = open(source, self.gateway).with_context(|| {
                format!("no socket for {source} to {}; is it local? ip route add local CIDR dev lo", self.gateway)
            })?;
            epoll::add(&self.epoll, &socket, epoll::EventData::new_u64(client as u64), epoll::EventFlags::IN)?;
            self.sockets.push(socket);
        }
        Ok(())
    }

    pub(crate) fn gateway(&self) -> SocketAddr {
        self.gateway
    }

    pub(crate) fn dial(
        &mut self,
        now: Instant,
        client: usize,
        server_name: &str,
        transport: &ClientTransport,
    ) -> Result<LinkId, Down> {
        let link = self.engine.dial(now, label(client, self.gateway.port()), server_name, transport.clone())?;
        self.owners.insert(link.serial, client);
        Ok(link)
    }

    pub(crate) fn send(&mut self, now: Instant, link: LinkId, frame: &[u8]) {
        self.engine.send_frame(now, link, frame.to_vec());
    }

    pub(crate) fn close(&mut self, now: Instant, link: LinkId, code: Close) {
        self.engine.close(now, link, code, String::new());
    }

    pub(crate) fn echo(&mut self, now: Instant, link: LinkId) {
        self.engine.echo(now, link);
    }

    /// Loses every connection and port without a word, as in a power cut.
    pub(crate) fn forget(&mut self) -> anyhow::Result<()> {
        self.engine = engine();
        self.owners.clear();
        self.open_sockets(self.sockets.len())
    }

    /// Waits for datagrams until `due` or until a timer of the engine.
    pub(crate) fn wait(&mut self, due: Option<Instant>) -> anyhow::Result<()> {
        let due = [due, self.engine.poll_timeout()].into_iter().flatten().min();
        let wait = due.map(|due| {
            let wait = due.saturating_duration_since(Instant::now());
            Timespec { tv_sec: wait.as_secs() as i64, tv_nsec: i64::from(wait.subsec_nanos()) }
        });
        self.ready.clear();
        match epoll::wait(&self.epoll, spare_capacity(&mut self.ready), wait.as_ref()) {
            Ok(_) | Err(Errno::INTR) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    /// Takes what has come in and fires what is due. [`Self::next_event`] says what it meant.
    pub(crate) fn receive(&mut self, now: Instant) {
        let mut datagram = [0; 2048];
        self.engine.on_timeout(now);
        for index in 0..self.ready.len() {
            let data = self.ready[index].data;
            let client = data.u64() as usize;
            for _ in 0..DATAGRAMS_A_SOCKET {
                // Errors are an empty socket, or a gateway that does not run: QUIC finds out by itself.
                let Ok(len) = self.sockets[client].recv(&mut datagram) else { break };
                let from = label(client, self.gateway.port());
                self.engine.on_datagram(now, from, None, None, BytesMut::from(&datagram[..len]));
            }
        }
        self.engine.settle(now);
    }

    /// What happened to which client.
    pub(crate) fn next_event(&mut self, now: Instant) -> Option<(usize, Event)> {
        loop {
            let Some(event) = self.engine.poll_event() else {
                if !self.engine.is_starved() {
                    return None;
                }
                self.engine.resume_control(now);
                continue;
            };
            let (link, ended) = match &event {
                Event::Established(established) => (established.link, false),
                Event::Frame { link, .. } | Event::Echo { link, .. } => (*link, false),
                Event::Closed { link, .. } => (*link, true),
                // Nothing that a client without a device acts on.
                Event::Sending { .. } | Event::InnerMtu { .. } | Event::Moved { .. } | Event::DeviceGone { .. } => {
                    continue;
                }
            };
            let owner = if ended { self.owners.remove(&link.serial) } else { self.owners.get(&link.serial).copied() };
            if let Some(client) = owner {
                return Some((client, event));
            }
        }
    }

    /// Sends what is due.
    pub(crate) fn transmit(&mut self, now: Instant) {
        self.engine.settle(now);
        while let Some(transmit) = self.engine.poll_transmit(now, 1, &mut self.buffer) {
            let client = client(transmit.destination);
            // A datagram that finds no room is a lost one, and so is one to a gateway that does not run.
            if self.sockets[client].send(&self.buffer[..transmit.size]).is_err() {
                self.unsent += 1;
            }
        }
        self.engine.settle(now);
    }
}

/// What every client says first, as a frame.
pub(crate) fn hello() -> anyhow::Result<Vec<u8>> {
    let hello = Hello { version: control::VERSION, client: "load".into(), platform: "lab".into(), authorities: vec![] };
    Ok(control::encode(&FromClient::Hello(hello))?)
}

fn engine() -> Engine {
    Engine::new(0, 1, Role::Client, CidKey::random(), true, None)
}

fn label(client: usize, port: u16) -> SocketAddr {
    (Ipv4Addr::from_bits(FIRST_LABEL + client as u32), port).into()
}

fn client(label: SocketAddr) -> usize {
    match label.ip() {
        IpAddr::V4(ip) => (ip.to_bits() - FIRST_LABEL) as usize,
        IpAddr::V6(_) => unreachable!("labels are IPv4 addresses"),
    }
}

fn open(source: Ipv4Addr, gateway: SocketAddr) -> std::io::Result<UdpSocket> {
    let socket = Socket::new(Domain::IPV4, Type::DGRAM, Some(Protocol::UDP))?;
    socket.set_recv_buffer_size(RECEIVE_BUFFER_BYTES)?;
    socket.set_nonblocking(true)?;
    socket.bind(&SocketAddr::from((source, 0)).into())?;
    socket.connect(&gateway.into())?;
    Ok(socket.into())
}

/// Raises the limit on open files; root may raise it past the hard one.
fn allow_descriptors(wanted: u64) -> anyhow::Result<()> {
    let mut limit = getrlimit(Resource::Nofile);
    if limit.current.is_none_or(|current| current >= wanted) {
        return Ok(());
    }
    limit.current = Some(wanted);
    limit.maximum = limit.maximum.map(|maximum| maximum.max(wanted));
    setrlimit(Resource::Nofile, limit)
        .with_context(|| format!("{wanted} open files are not allowed; run as root, or raise ulimit -n"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_label_names_its_client() {
        for number in [0, 1, 9_999, 65_535] {
            assert_eq!(client(label(number, 443)), number);
        }
    }
}
