//! What the control plane asks of a shard, and what it is told. Both ways are bounded.
//!
//! The control plane (tokio) holds a [`ShardHandle`]; the shard's thread holds the other end.
//! Sending a command wakes the thread through its [`Waker`]. Not here: what a shard does with
//! a command (`engine`).

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use rustls::pki_types::CertificateDer;
use tokio::sync::{mpsc, oneshot};

use crate::close::{Close, Down};
use crate::device::Device;
pub use crate::filter::{Lease, Policy};
pub use crate::rules::Rules;
use crate::shard::waker::Waker;
use crate::stats::{LinkStats, ShardStats};
use crate::transport::{ClientTransport, ServerTransport};

/// Commands a shard accepts before senders wait.
pub(crate) const COMMANDS: usize = 1024;
/// Events a shard may be ahead of its control plane; then it stops reading control frames.
pub(crate) const EVENTS: usize = 256;

/// Names one connection of one shard; never used again for another one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct LinkId {
    /// The shard that owns the connection for life.
    pub shard: u8,
    /// Counts up within the shard.
    pub serial: u64,
}

/// The protocols of wire version 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Protocol {
    /// `culvert/1`: a session.
    Session,
    /// `culvert-enrol/1`: enrolment.
    Enrolment,
}

impl Protocol {
    /// The ALPN protocol name (RFC 7301).
    pub const fn alpn(self) -> &'static [u8] {
        match self {
            Self::Session => b"culvert/1",
            Self::Enrolment => b"culvert-enrol/1",
        }
    }

    /// The protocol for a negotiated ALPN name.
    pub fn from_alpn(name: &[u8]) -> Option<Self> {
        [Self::Session, Self::Enrolment].into_iter().find(|p| p.alpn() == name)
    }
}

/// What the control plane asks of a shard.
#[derive(Debug)]
pub enum Command<D: Device> {
    /// Opens a connection; [`Event::Established`] or [`Event::Closed`] follows with the returned id.
    Dial {
        /// The gateway's UDP address.
        remote: SocketAddr,
        /// The name or address that the gateway's certificate must hold.
        server_name: String,
        /// Keys, trust and protocol.
        transport: Box<ClientTransport>,
        /// Answered at once with the link's name, or why it cannot even be tried.
        reply: oneshot::Sender<Result<LinkId, Down>>,
    },
    /// Sends one encoded frame (see [`crate::control::encode`]) on the link's control stream.
    Send {
        /// The link.
        link: LinkId,
        /// Length and JSON.
        frame: Vec<u8>,
    },
    /// From now on the link carries inner packets for this lease.
    /// On a gateway the addresses enter the routing table; on a client the link becomes the way out.
    Admit {
        /// The link.
        link: LinkId,
        /// Its addresses.
        lease: Lease,
    },
    /// What a gateway's client may reach, and how fast; `None` lifts all of it. Before [`Command::Admit`], so that
    /// not a packet passes without.
    Limit {
        /// The link.
        link: LinkId,
        /// Its rules.
        rules: Option<Arc<Rules>>,
    },
    /// Closes the link, after frames already sent on the control stream have gone out.
    Close {
        /// The link.
        link: LinkId,
        /// Why.
        code: Close,
        /// One sentence for people, at most 256 bytes.
        reason: String,
    },
    /// Sends an echo request through the tunnel; [`Event::Echo`] follows when it comes back.
    Echo {
        /// The link.
        link: LinkId,
    },
    /// Gives the shard its device; a client has none before it knows its addresses.
    Attach(D),
    /// Takes the device away and drops it.
    Detach,
    /// A gateway answers new peers with these keys from now on; links that are open keep theirs.
    Serve(ServerTransport),
    /// A gateway judges packets by this from now on.
    Judge(Arc<Policy>),
    /// A client's path changed: carry on from this socket (bound, non-blocking).
    Rebind(std::net::UdpSocket),
    /// Tells the counters.
    Inspect(oneshot::Sender<Inspection>),
    /// Answers, and does nothing else: the thread still takes turns.
    Heartbeat(oneshot::Sender<()>),
    /// Closes every link with this code, sends what is due and ends the thread.
    Stop {
        /// Why.
        code: Close,
        /// One sentence for people.
        reason: String,
    },
}

/// What a shard tells its control plane.
#[derive(Debug)]
pub enum Event {
    /// The handshake is complete. Nothing is admitted yet.
    Established(Established),
    /// One frame's payload arrived on the control stream.
    Frame {
        /// The link.
        link: LinkId,
        /// JSON, at most [`crate::control::MAX_FRAME`] bytes.
        payload: Vec<u8>,
    },
    /// The echo came back.
    Echo {
        /// The link.
        link: LinkId,
        /// Time through the tunnel and back.
        rtt: Duration,
    },
    /// Inner packets go out on a client's link; told at once after a rest, and then at most every 5 s,
    /// so that health can be looked at while it matters and not otherwise.
    Sending {
        /// The link.
        link: LinkId,
    },
    /// The largest inner packet that crosses in one datagram changed.
    InnerMtu {
        /// The link.
        link: LinkId,
        /// Bytes; at least 1,280, since smaller paths carry such packets in two pieces.
        mtu_bytes: u16,
    },
    /// The peer's datagrams come from another address; told at most once a second.
    Moved {
        /// The link.
        link: LinkId,
        /// The new address.
        remote: SocketAddr,
    },
    /// The link ended. Last event of a link; sent also when a dial fails.
    Closed {
        /// The link.
        link: LinkId,
        /// Why.
        down: Down,
        /// Where the peer was last seen.
        remote: SocketAddr,
        /// True when the handshake had completed (so the address is not spoofed).
        established: bool,
        /// Its last counters.
        stats: Box<LinkStats>,
    },
    /// The device failed (removed from outside); the shard goes on without it.
    DeviceGone {
        /// The OS error number.
        os_error: i32,
    },
}

/// A completed handshake.
#[derive(Debug)]
pub struct Established {
    /// The link.
    pub link: LinkId,
    /// Where the peer is.
    pub remote: SocketAddr,
    /// What was negotiated.
    pub protocol: Protocol,
    /// The peer's certificates, leaf first; empty when it presented none.
    pub peer_chain: Vec<CertificateDer<'static>>,
    /// TLS exporter value (RFC 8446 section 7.5), label `EXPORTER-culvert/1`, no context.
    pub exporter: [u8; 32],
    /// From the first packet to completion.
    pub handshake: Duration,
}

/// The counters of a shard and of its links, at one moment.
#[derive(Clone, Debug, Default)]
pub struct Inspection {
    /// Totals since the shard started.
    pub shard: ShardStats,
    /// Each live link.
    pub links: Vec<(LinkId, LinkStats)>,
}

/// The shard's thread is gone.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the shard has stopped")]
pub struct ShardGone;

/// The control plane's end of one shard. Cheap to clone.
#[derive(Debug)]
pub struct ShardHandle<D: Device> {
    pub(crate) commands: mpsc::Sender<Command<D>>,
    pub(crate) waker: Waker,
}

impl<D: Device> Clone for ShardHandle<D> {
    fn clone(&self) -> Self {
        Self { commands: self.commands.clone(), waker: self.waker.clone() }
    }
}

impl<D: Device> ShardHandle<D> {
    /// Sends one command and wakes the shard. Waits while the mailbox is full. Cancel-safe.
    ///
    /// # Errors
    /// [`ShardGone`] once the thread has ended.
    pub async fn send(&self, command: Command<D>) -> Result<(), ShardGone> {
        self.commands.send(command).await.map_err(|_| ShardGone)?;
        self.waker.wake();
        Ok(())
    }

    /// Opens a connection and returns its name at once; the handshake's end comes as an event.
    ///
    /// # Errors
    /// [`Down::Local`] when the shard has stopped, else why the dial could not begin.
    pub async fn dial(
        &self,
        remote: SocketAddr,
        server_name: String,
        transport: ClientTransport,
    ) -> Result<LinkId, Down> {
        let (reply, answer) = oneshot::channel();
        let dial = Command::Dial { remote, server_name, transport: Box::new(transport), reply };
        self.send(dial).await.map_err(|ShardGone| Down::Local(Close::Shutdown))?;
        answer.await.map_err(|_| Down::Local(Close::Shutdown))?
    }

    /// The counters now.
    ///
    /// # Errors
    /// [`ShardGone`] once the thread has ended.
    pub async fn inspect(&self) -> Result<Inspection, ShardGone> {
        let (reply, answer) = oneshot::channel();
        self.send(Command::Inspect(reply)).await?;
        answer.await.map_err(|_| ShardGone)
    }

    /// Waits until the thread has taken a turn, however long that is. Cancel-safe.
    ///
    /// # Errors
    /// [`ShardGone`] once the thread has ended.
    pub async fn heartbeat(&self) -> Result<(), ShardGone> {
        let (reply, answer) = oneshot::channel();
        self.send(Command::Heartbeat(reply)).await?;
        answer.await.map_err(|_| ShardGone)
    }
}
