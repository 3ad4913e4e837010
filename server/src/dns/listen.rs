//! Questions in and answers out, by UDP and TCP: the sockets and their bounds.
//!
//! hickory-server is not used: 0.26 takes any number of TCP connections, makes a task of each datagram
//! before anybody may say no, and logs every name.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::future::join_all;
use futures_util::join;
use ipnet::IpNet;
use socket2::{Domain, Protocol, Socket, Type};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::timeout;

use super::counters::count;
use super::places::{Limits, Places};
use super::question::{Question, Rejected};
use super::resolver::Resolver;
use crate::registry::Registry;

/// A browser that opens asks a few hundred at once.
const QUESTIONS: Limits = Limits { each: 256, all: 2048, reserve: 512, per_second: 1000, burst: 2000 };
/// Connections; each has one question at a time.
const CONNECTIONS: Limits = Limits { each: 8, all: 128, reserve: 64, per_second: 20, burst: 40 };
/// The longest question that is read; an honest one has at most 300 bytes and a few options.
const QUESTION_BYTES: usize = 4096;
/// Bytes of kernel buffer for questions that come all at once: about 5,000 of them.
const BUFFER_BYTES: usize = 4 * 1024 * 1024;
/// How long a connection may be silent (RFC 7766 section 6.2.3: a few seconds).
const IDLE: Duration = Duration::from_secs(10);
/// For the rest of a question, and for an answer to leave.
const PATIENCE: Duration = Duration::from_secs(5);
/// After an error of the OS, so that it does not fill the processor.
const PAUSE: Duration = Duration::from_millis(200);
const BACKLOG: i32 = 128;

/// Sockets at the gateway's inner addresses.
#[derive(Debug)]
pub struct Sockets {
    udp: Vec<UdpSocket>,
    tcp: Vec<TcpListener>,
}

/// Who answers now, and whom.
#[derive(Debug)]
pub struct Current<R> {
    /// Has the answers.
    pub resolver: Arc<Resolver<R>>,
    /// May ask.
    pub clients: Clients,
}

/// Whom the sockets serve.
#[derive(Clone, Debug)]
pub struct Clients {
    /// Their networks.
    pub networks: Vec<IpNet>,
    /// Addresses there that are ours: our own questions would come back to us.
    pub own: Vec<IpAddr>,
}

impl Clients {
    fn include(&self, address: IpAddr) -> bool {
        self.networks.iter().any(|network| network.contains(&address)) && !self.own.contains(&address)
    }
}

impl Sockets {
    /// Listens at each address, on `interface` only: a packet to an inner address that comes from elsewhere is
    /// none of a client's. Needs a tokio runtime.
    ///
    /// # Errors
    /// What the OS says of the first one that cannot be had; none is then.
    pub fn bind(addresses: &[IpAddr], port: u16, interface: Option<&str>) -> io::Result<Self> {
        let mut this = Self { udp: Vec::new(), tcp: Vec::new() };
        for address in addresses {
            let address = SocketAddr::new(*address, port);
            let udp = socket(address, Type::DGRAM, Protocol::UDP, interface)?;
            grow_buffer(&udp);
            this.udp.push(UdpSocket::from_std(udp.into())?);
            let tcp = socket(address, Type::STREAM, Protocol::TCP, interface)?;
            tcp.listen(BACKLOG)?;
            this.tcp.push(TcpListener::from_std(tcp.into())?);
        }
        Ok(this)
    }

    /// Where the first pair of sockets is, UDP and TCP.
    ///
    /// # Errors
    /// What the OS says; there is none without an address.
    pub fn local_addresses(&self) -> io::Result<(SocketAddr, SocketAddr)> {
        match (self.udp.first(), self.tcp.first()) {
            (Some(udp), Some(tcp)) => Ok((udp.local_addr()?, tcp.local_addr()?)),
            _ => Err(io::ErrorKind::NotConnected.into()),
        }
    }

    /// Answers until the future is dropped; each question by what is current when it comes.
    pub async fn serve<R: Registry>(self, current: watch::Receiver<Arc<Current<R>>>) {
        let server = Server { current, questions: Places::new(QUESTIONS), connections: Places::new(CONNECTIONS) };
        let udp = join_all(self.udp.into_iter().map(|socket| server.serve_udp(Arc::new(socket))));
        let tcp = join_all(self.tcp.into_iter().map(|listener| server.serve_tcp(listener)));
        join!(udp, tcp);
    }
}

struct Server<R> {
    current: watch::Receiver<Arc<Current<R>>>,
    questions: Places,
    connections: Places,
}

impl<R: Registry> Server<R> {
    fn current(&self) -> Arc<Current<R>> {
        Arc::clone(&self.current.borrow())
    }

    /// What is more than a client's share is dropped unread: saying so would cost as much as an answer, and a
    /// client that hears nothing waits.
    async fn serve_udp(&self, socket: Arc<UdpSocket>) {
        let mut buffer = vec![0; QUESTION_BYTES];
        let mut tasks = JoinSet::new(); // dropped with this future, they end
        loop {
            let Ok((length, peer)) = socket.recv_from(&mut buffer).await else {
                tokio::time::sleep(PAUSE).await;
                continue;
            };
            while tasks.try_join_next().is_some() {}
            let Current { resolver, clients } = &*self.current();
            let place = clients.include(peer.ip()).then(|| self.questions.take(peer.ip(), Instant::now()));
            let Some(place) = place.flatten() else {
                count(&resolver.counters().refused);
                continue;
            };
            let question = match Question::parse(&buffer[..length]) {
                Ok(question) => question,
                Err(rejected) => {
                    count(&resolver.counters().refused);
                    if let Rejected::Told(reply) = rejected {
                        send(&socket, &reply, peer);
                    }
                    continue;
                }
            };
            let (socket, resolver) = (Arc::clone(&socket), Arc::clone(resolver));
            tasks.spawn(async move {
                let answer = resolver.answer(peer.ip(), question.subject()).await;
                send(&socket, &question.reply(&answer, question.udp_limit()), peer);
                drop(place);
            });
        }
    }

    async fn serve_tcp(&self, listener: TcpListener) {
        let mut tasks = JoinSet::new();
        loop {
            let Ok((stream, peer)) = listener.accept().await else {
                tokio::time::sleep(PAUSE).await; // out of descriptors, mostly
                continue;
            };
            while tasks.try_join_next().is_some() {}
            let Current { resolver, clients } = &*self.current();
            let place = clients.include(peer.ip()).then(|| self.connections.take(peer.ip(), Instant::now()));
            let Some(place) = place.flatten() else {
                count(&resolver.counters().refused);
                continue;
            };
            let (current, questions) = (self.current.clone(), self.questions.clone());
            tasks.spawn(async move {
                // What a client breaks off is its own affair.
                let _ = converse(stream, peer.ip(), &current, &questions).await;
                drop(place);
            });
        }
    }
}

/// One question after the other, each behind its length (RFC 1035 section 4.2.2).
async fn converse<R: Registry>(
    mut stream: TcpStream,
    peer: IpAddr,
    current: &watch::Receiver<Arc<Current<R>>>,
    questions: &Places,
) -> io::Result<()> {
    loop {
        let length = usize::from(timeout(IDLE, stream.read_u16()).await??);
        let resolver = Arc::clone(&current.borrow().resolver);
        let place = questions.take(peer, Instant::now()).filter(|_| length <= QUESTION_BYTES);
        let Some(_place) = place else {
            count(&resolver.counters().refused);
            return Ok(());
        };
        let mut bytes = vec![0; length];
        timeout(PATIENCE, stream.read_exact(&mut bytes)).await??;
        let reply = match Question::parse(&bytes) {
            Ok(question) => {
                let answer = resolver.answer(peer, question.subject()).await;
                question.reply(&answer, usize::from(u16::MAX))
            }
            Err(rejected) => {
                count(&resolver.counters().refused);
                let Rejected::Told(reply) = rejected else { return Ok(()) };
                reply
            }
        };
        let mut framed = (reply.len() as u16).to_be_bytes().to_vec();
        framed.extend_from_slice(&reply);
        timeout(PATIENCE, stream.write_all(&framed)).await??;
    }
}

/// An answer that finds no room in the socket is lost, like any datagram, and asked for again.
fn send(socket: &UdpSocket, reply: &[u8], peer: SocketAddr) {
    let _ = socket.try_send_to(reply, peer);
}

fn socket(address: SocketAddr, kind: Type, protocol: Protocol, interface: Option<&str>) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(address), kind, Some(protocol))?;
    socket.set_nonblocking(true)?;
    if address.is_ipv6() {
        socket.set_only_v6(true)?;
    }
    if kind == Type::STREAM {
        socket.set_reuse_address(true)?; // connections of the gateway before us may linger
    }
    if let Some(interface) = interface {
        socket.bind_device(Some(interface.as_bytes()))?;
    }
    socket.bind(&address.into())?;
    Ok(socket)
}

/// Past the sysctl's limit where we may (`CAP_NET_ADMIN`), else within it: a smaller one only loses more of a flood.
fn grow_buffer(socket: &Socket) {
    if rustix::net::sockopt::set_socket_recv_buffer_size_force(socket, BUFFER_BYTES).is_err() {
        let _ = socket.set_recv_buffer_size(BUFFER_BYTES);
    }
}
