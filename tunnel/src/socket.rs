//! UDP sockets for shards: dual stack, large buffers without a sysctl, a firewall mark for clients.

use std::io;
use std::net::{SocketAddr, UdpSocket};

use socket2::{Domain, Protocol, Socket, Type};

/// Bytes of kernel buffer asked for each way: 20 ms at 1.6 Gbit/s.
const BUFFER_BYTES: usize = 4 << 20;

/// What a socket is for.
#[derive(Clone, Copy, Debug, Default)]
pub struct SocketOptions {
    /// `SO_MARK`: policy routing lets marked packets go round the tunnel (Linux only).
    pub mark: Option<u32>,
    /// `SO_REUSEPORT`: several shards share one port.
    pub reuse_port: bool,
}

/// Binds a non-blocking UDP socket. `[::]` takes IPv4 too.
///
/// # Errors
/// What the OS says: `AddrInUse` for an occupied port, `PermissionDenied` for a mark without
/// `CAP_NET_ADMIN` or a port below 1024 without `CAP_NET_BIND_SERVICE`.
pub fn bind(address: SocketAddr, options: SocketOptions) -> io::Result<UdpSocket> {
    let socket = Socket::new(Domain::for_address(address), Type::DGRAM, Some(Protocol::UDP))?;
    if address.is_ipv6() {
        socket.set_only_v6(!address.ip().is_unspecified())?;
    }
    if options.reuse_port {
        socket.set_reuse_port(true)?;
    }
    #[cfg(target_os = "linux")]
    if let Some(mark) = options.mark {
        socket.set_mark(mark)?;
    }
    grow_buffers(&socket);
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    Ok(socket.into())
}

/// Asks past the sysctl limit first (needs `CAP_NET_ADMIN`), then within it. Smaller buffers only
/// cost throughput, so failure is none.
fn grow_buffers(socket: &Socket) {
    #[cfg(target_os = "linux")]
    {
        use rustix::net::sockopt::{set_socket_recv_buffer_size_force, set_socket_send_buffer_size_force};
        let receive = set_socket_recv_buffer_size_force(socket, BUFFER_BYTES);
        let send = set_socket_send_buffer_size_force(socket, BUFFER_BYTES);
        if receive.is_ok() && send.is_ok() {
            return;
        }
    }
    _ = socket.set_recv_buffer_size(BUFFER_BYTES);
    _ = socket.set_send_buffer_size(BUFFER_BYTES);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_occupied_port_is_told_as_such() {
        let first = bind("127.0.0.1:0".parse().unwrap(), SocketOptions::default()).unwrap();
        let taken = first.local_addr().unwrap();
        let error = bind(taken, SocketOptions::default()).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::AddrInUse);
    }

    #[test]
    fn a_wildcard_socket_hears_ipv4_too() {
        let socket = bind("[::]:0".parse().unwrap(), SocketOptions::default()).unwrap();
        let port = socket.local_addr().unwrap().port();
        let sender = UdpSocket::bind("127.0.0.1:0").unwrap();
        sender.send_to(b"hello", ("127.0.0.1", port)).unwrap();
        socket.set_nonblocking(false).unwrap();
        let mut buffer = [0; 16];
        assert_eq!(socket.recv(&mut buffer).unwrap(), 5);
    }
}
