//! A shard's UDP socket: GRO batches in, GSO batches out, and what the kernel had no room for.

use std::io::{self, IoSliceMut};
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::os::fd::{AsFd, BorrowedFd};

use bytes::BytesMut;
use quinn_proto::EcnCodepoint;
use quinn_udp::{RecvMeta, UdpSockRef, UdpSocketState};

use crate::pool::Pool;

/// Bytes of one buffer: the largest GRO batch that Linux hands over.
const BATCH_BYTES: usize = 65_536;
/// Received batches up to this size are copied out of their 64 KiB buffer: QUIC may keep a slice of
/// a few bytes for long (a stream with a gap), and a peer must not pin a whole buffer with it.
const SMALL_BATCH_BYTES: usize = 8 * 1024;
/// Slots of one `recvmmsg`; each takes a whole GRO batch.
const RECEIVE_SLOTS: usize = 8;
/// The UDP socket with its buffers.
#[derive(Debug)]
pub(crate) struct Udp {
    pub(crate) socket: UdpSocket,
    pub(crate) state: UdpSocketState,
    /// The socket's own family: IPv6 reaches IPv4 by mapped addresses.
    is_ipv6: bool,
    pool: Pool,
    slots: Vec<BytesMut>,
    /// Bytes of the transmit under way.
    pub(crate) outgoing: Vec<u8>,
    /// A transmit that the kernel had no room for.
    blocked: Option<quinn_proto::Transmit>,
}

impl Udp {
    pub(crate) fn new(socket: UdpSocket) -> io::Result<Self> {
        let state = UdpSocketState::new(UdpSockRef::from(&socket))?;
        let mut pool = Pool::new(BATCH_BYTES);
        let is_ipv6 = socket.local_addr()?.is_ipv6();
        let slots = (0..RECEIVE_SLOTS).map(|_| pool.take()).collect();
        Ok(Self { socket, state, is_ipv6, pool, slots, outgoing: Vec::new(), blocked: None })
    }

    pub(crate) fn is_blocked(&self) -> bool {
        self.blocked.is_some()
    }

    /// One `recvmmsg`. Returns true when the socket may hold more.
    pub(crate) fn receive(
        &mut self,
        take: &mut dyn FnMut(SocketAddr, Option<IpAddr>, Option<EcnCodepoint>, BytesMut),
    ) -> bool {
        let mut meta = [RecvMeta::default(); RECEIVE_SLOTS];
        let received = {
            let mut slots = self.slots.iter_mut();
            let mut buffers: [IoSliceMut<'_>; RECEIVE_SLOTS] =
                std::array::from_fn(|_| IoSliceMut::new(slots.next().expect("one buffer a slot")));
            self.state.recv(UdpSockRef::from(&self.socket), &mut buffers, &mut meta)
        };
        // Errors here are a peer's ICMP (connection refused) or an empty socket: nothing to read.
        let Ok(received) = received else { return false };
        for (slot, meta) in self.slots.iter_mut().zip(&meta[..received]) {
            let mut data = if meta.len <= SMALL_BATCH_BYTES {
                BytesMut::from(&slot[..meta.len])
            } else {
                let fresh = self.pool.take();
                let mut filled = std::mem::replace(slot, fresh);
                let data = filled.split_to(meta.len);
                self.pool.put_back(filled);
                data
            };
            let ecn = meta.ecn.and_then(|ecn| EcnCodepoint::from_bits(ecn as u8));
            let remote = canonical(meta.addr);
            let stride = meta.stride.max(1);
            while !data.is_empty() {
                let payload = data.split_to(stride.min(data.len()));
                take(remote, meta.dst_ip.map(|ip| ip.to_canonical()), ecn, payload);
            }
        }
        received == RECEIVE_SLOTS
    }

    /// Sends what was blocked. Returns false while it still is.
    pub(crate) fn retry(&mut self) -> bool {
        match self.blocked.take() {
            Some(transmit) => self.send(transmit),
            None => true,
        }
    }

    /// Sends `outgoing`. Returns false, and keeps it, when the kernel has no room.
    pub(crate) fn send(&mut self, transmit: quinn_proto::Transmit) -> bool {
        let datagram = quinn_udp::Transmit {
            destination: self.reachable(transmit.destination),
            ecn: transmit.ecn.and_then(|ecn| quinn_udp::EcnCodepoint::from_bits(ecn as u8)),
            contents: &self.outgoing[..transmit.size],
            segment_size: transmit.segment_size,
            src_ip: transmit.src_ip,
        };
        match self.state.try_send(UdpSockRef::from(&self.socket), &datagram) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                self.blocked = Some(transmit);
                false
            }
            // Anything else (no route now, a probe larger than the interface) is a lost datagram:
            // QUIC notices and repeats what matters.
            Ok(()) | Err(_) => true,
        }
    }

    /// An IPv6 socket reaches IPv4 peers by their mapped address.
    fn reachable(&self, destination: SocketAddr) -> SocketAddr {
        match destination {
            SocketAddr::V4(v4) if self.is_ipv6 => SocketAddr::new(v4.ip().to_ipv6_mapped().into(), v4.port()),
            _ => destination,
        }
    }
}

impl AsFd for Udp {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// IPv4 peers of an IPv6 socket under their IPv4 name.
fn canonical(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}
