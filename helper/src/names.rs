//! Looks up the gateway's name past the tunnel and past the kill switch: asks the network's own name servers,
//! from sockets with the tunnel's mark.
//!
//! A resolver on this machine (systemd-resolved, dnsmasq) asks from sockets of its own, which the kill switch
//! refuses; the servers behind it are asked instead. Where none of them knows the name, the C library is asked:
//! it may know sources that are no name servers (nsswitch.conf(5)).

use std::fs;
use std::future::Future;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::pin::Pin;
use std::time::Duration;

use hickory_resolver::Resolver;
#[cfg(target_os = "macos")]
use hickory_resolver::config::NameServerConfig;
use hickory_resolver::config::{LookupIpStrategy, ResolverConfig, ResolverOpts};
use hickory_resolver::net::runtime::iocompat::AsyncIoTokioAsStd;
use hickory_resolver::net::runtime::{RuntimeProvider, TokioHandle, TokioTime};
#[cfg(target_os = "linux")]
use hickory_resolver::system_conf::parse_resolv_conf;
use tokio::net::{TcpSocket, TcpStream, UdpSocket};
use tokio::time::timeout;

use crate::outside;

/// The servers behind a resolver on this machine, in the format of resolv.conf(5).
#[cfg(target_os = "linux")]
const BEHIND: [&str; 2] = ["/run/systemd/resolve/resolv.conf", "/run/NetworkManager/no-stub-resolv.conf"];
/// For one server's answer; a lost question is asked again.
const ANSWER_WITHIN: Duration = Duration::from_secs(1);
const TCP_WITHIN: Duration = Duration::from_secs(2);

/// Whom to ask.
#[derive(Clone, Debug)]
pub struct Names {
    servers: Option<(ResolverConfig, ResolverOpts)>,
    fwmark: u32,
}

impl Names {
    /// The name servers that `text` (the resolver's file, as the network wants it) names, or those behind them;
    /// never the `inner` ones, which only the tunnel reaches.
    pub fn of(text: &[u8], fwmark: u32, inner: &[IpAddr]) -> Self {
        Self { servers: of_network(text, inner), fwmark }
    }

    /// The same, with the file as it is now.
    pub fn of_file(file: &Path, fwmark: u32, inner: &[IpAddr]) -> Self {
        Self::of(&fs::read(file).unwrap_or_default(), fwmark, inner)
    }

    /// The name servers that are asked.
    pub fn servers(&self) -> Vec<IpAddr> {
        let servers = self.servers.as_ref().map(|(config, _)| config.name_servers().iter().map(|server| server.ip));
        servers.map(Iterator::collect).unwrap_or_default()
    }

    /// The addresses of `host:port`; none is an error of its own.
    ///
    /// # Errors
    /// What the last source that was asked says.
    pub async fn lookup(&self, endpoint: &str) -> io::Result<Vec<SocketAddr>> {
        if let Ok(address) = endpoint.parse() {
            return Ok(vec![address]);
        }
        let (host, port) = endpoint.rsplit_once(':').ok_or(io::ErrorKind::InvalidInput)?;
        let port: u16 = port.parse().map_err(|_| io::ErrorKind::InvalidInput)?;
        match self.ask(host).await {
            Ok(found) if !found.is_empty() => {
                return Ok(found.into_iter().map(|address| SocketAddr::new(address, port)).collect());
            }
            Ok(_) => {}
            Err(error) => tracing::debug!(host, %error, "the network's name servers do not know the gateway"),
        }
        Ok(tokio::net::lookup_host(endpoint).await?.collect())
    }

    async fn ask(&self, host: &str) -> io::Result<Vec<IpAddr>> {
        let Some((config, options)) = self.servers.clone() else { return Ok(vec![]) };
        let mut builder =
            Resolver::builder_with_config(config, Marked { fwmark: self.fwmark, handle: TokioHandle::default() });
        *builder.options_mut() = options;
        let options = builder.options_mut();
        (options.timeout, options.attempts) = (ANSWER_WITHIN, 2);
        options.ip_strategy = LookupIpStrategy::Ipv6AndIpv4;
        let resolver = builder.build().map_err(io::Error::other)?;
        let found = resolver.lookup_ip(host).await.map_err(io::Error::other)?;
        Ok(found.iter().collect())
    }
}

/// Those that the file names, or those behind them.
#[cfg(target_os = "linux")]
fn of_network(text: &[u8], inner: &[IpAddr]) -> Option<(ResolverConfig, ResolverOpts)> {
    usable(text, inner).or_else(|| BEHIND.iter().find_map(|file| usable(&fs::read(file).ok()?, inner)))
}

/// Those of the service below the tunnel; the file is configd's and names the tunnel's.
#[cfg(target_os = "macos")]
fn of_network(_: &[u8], inner: &[IpAddr]) -> Option<(ResolverConfig, ResolverOpts)> {
    let servers = crate::underlay::name_servers().into_iter().filter(|server| !inner.contains(server));
    let servers: Vec<_> = servers.map(NameServerConfig::udp_and_tcp).collect();
    (!servers.is_empty()).then(|| (ResolverConfig::from_parts(None, vec![], servers), ResolverOpts::default()))
}

/// What a resolver's file says, if it names servers that are neither on this machine nor inside.
#[cfg(target_os = "linux")]
fn usable(text: &[u8], inner: &[IpAddr]) -> Option<(ResolverConfig, ResolverOpts)> {
    let (config, options) = parse_resolv_conf(text).ok()?;
    let (domain, search) = (config.domain().cloned(), config.search().to_vec());
    let is_remote = |address: &IpAddr| !address.is_loopback() && !inner.contains(address);
    let remote: Vec<_> = config.name_servers().iter().filter(|server| is_remote(&server.ip)).cloned().collect();
    (!remote.is_empty()).then(|| (ResolverConfig::from_parts(domain, search, remote), options))
}

/// tokio's sockets, marked.
#[derive(Clone)]
struct Marked {
    fwmark: u32,
    handle: TokioHandle,
}

impl RuntimeProvider for Marked {
    type Handle = TokioHandle;
    type Timer = TokioTime;
    type Udp = UdpSocket;
    type Tcp = AsyncIoTokioAsStd<TcpStream>;

    fn create_handle(&self) -> Self::Handle {
        self.handle.clone()
    }

    fn connect_tcp(
        &self,
        server: SocketAddr,
        _bind: Option<SocketAddr>,
        patience: Option<Duration>,
    ) -> Pin<Box<dyn Send + Future<Output = io::Result<Self::Tcp>>>> {
        let fwmark = self.fwmark;
        Box::pin(async move {
            let socket = if server.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
            outside::send(&socket, fwmark)?;
            let stream = timeout(patience.unwrap_or(TCP_WITHIN), socket.connect(server)).await??;
            Ok(AsyncIoTokioAsStd(stream))
        })
    }

    fn bind_udp(
        &self,
        local: SocketAddr,
        _server: SocketAddr,
    ) -> Pin<Box<dyn Send + Future<Output = io::Result<Self::Udp>>>> {
        let fwmark = self.fwmark;
        Box::pin(async move {
            let socket = UdpSocket::bind(local).await?;
            outside::send(&socket, fwmark)?;
            Ok(socket)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[cfg(target_os = "linux")]
    #[test]
    fn a_resolver_on_this_machine_or_inside_is_not_asked() {
        let inner = ["100.77.0.1".parse().unwrap()];
        assert!(usable(b"nameserver 127.0.0.53\noptions edns0\n", &inner).is_none());
        assert!(usable(b"nameserver ::1\n", &inner).is_none());
        assert!(usable(b"nameserver 100.77.0.1\n", &inner).is_none());
        assert!(usable(b"# nothing\n", &inner).is_none());
        assert!(usable(b"\xff\xfe", &inner).is_none());
        let text = b"nameserver 100.77.0.1\nnameserver 127.0.0.1\nnameserver 192.168.1.1\nsearch home\n";
        let (config, _) = usable(text, &inner).unwrap();
        let servers: Vec<IpAddr> = config.name_servers().iter().map(|server| server.ip).collect();
        assert_eq!(servers, ["192.168.1.1".parse::<IpAddr>().unwrap()]);
        assert_eq!(config.search().len(), 1);
    }

    #[tokio::test]
    async fn an_address_needs_no_name_server() {
        let names = Names::of(b"", 0, &[]);
        let found = names.lookup("[2001:db8::1]:443").await.unwrap();
        assert_eq!(found, ["[2001:db8::1]:443".parse().unwrap()]);
        assert!(names.lookup("no port").await.is_err());
    }
}
