//! systemd-resolved over D-Bus (org.freedesktop.resolve1(5)): servers and domains of the tunnel's link.
//!
//! resolved forgets what it was told about a link when the link goes, so a crash needs no journal. Names are
//! routed by domain: the longest that fits decides, and `.` fits all.

use std::io;
use std::net::IpAddr;
use std::path::Path;
use std::time::Duration;

use tokio::time::timeout;
use zbus::Connection;
use zbus::zvariant::DynamicType;

use super::Servers;

/// D-Bus starts a service that is not running, so an answer may take a moment.
const ANSWER_WITHIN: Duration = Duration::from_secs(5);
/// address_families(7).
const AF_INET: i32 = 2;
const AF_INET6: i32 = 10;

/// True when the C library asks resolved: by its stub (127.0.0.53, 127.0.0.54) or by a file that it keeps.
pub(super) fn is_asked(file: &Path, text: &[u8]) -> bool {
    let kept = file.canonicalize().is_ok_and(|real| real.starts_with("/run/systemd/resolve"));
    let text = String::from_utf8_lossy(text);
    let mut servers = text.lines().filter_map(|line| line.trim().strip_prefix("nameserver")).map(str::trim).peekable();
    kept || servers.peek().is_some() && servers.all(|server| matches!(server, "127.0.0.53" | "127.0.0.54"))
}

/// What resolved was told about one link.
#[derive(Debug)]
pub(super) struct Link {
    bus: Connection,
    index: i32,
}

impl Link {
    /// Tells resolved the servers and domains of the link with this index.
    pub(super) async fn apply(wanted: &Servers, index: u32) -> io::Result<Self> {
        let bus = timeout(ANSWER_WITHIN, Connection::system()).await?.map_err(io::Error::other)?;
        let index = i32::try_from(index).map_err(io::Error::other)?;
        let link = Self { bus, index };
        let told = async {
            link.call("SetLinkDNS", &(index, addresses(&wanted.servers))).await?;
            link.call("SetLinkDomains", &(index, domains(wanted))).await?;
            link.call("SetLinkDefaultRoute", &(index, wanted.all)).await?;
            // What the network's servers said about inner names is of no use now.
            link.call("FlushCaches", &()).await
        };
        if let Err(error) = told.await {
            let _ = link.revert().await; // the first error says more
            return Err(error);
        }
        Ok(link)
    }

    /// Makes resolved forget it.
    pub(super) async fn revert(&self) -> io::Result<()> {
        self.call("RevertLink", &self.index).await?;
        self.call("FlushCaches", &()).await
    }

    async fn call<B: serde::Serialize + DynamicType>(&self, method: &str, body: &B) -> io::Result<()> {
        let name = Some("org.freedesktop.resolve1");
        let interface = Some("org.freedesktop.resolve1.Manager");
        let called = self.bus.call_method(name, "/org/freedesktop/resolve1", interface, method, body);
        timeout(ANSWER_WITHIN, called).await?.map_err(|error| io::Error::other(format!("{method}: {error}")))?;
        Ok(())
    }
}

/// `a(iay)`.
fn addresses(servers: &[IpAddr]) -> Vec<(i32, Vec<u8>)> {
    let bytes = |server: &IpAddr| match server {
        IpAddr::V4(v4) => (AF_INET, v4.octets().to_vec()),
        IpAddr::V6(v6) => (AF_INET6, v6.octets().to_vec()),
    };
    servers.iter().map(bytes).collect()
}

/// `a(sb)`: each domain, and whether names are only sent here by it, or short names completed with it too.
fn domains(wanted: &Servers) -> Vec<(String, bool)> {
    let all = wanted.all.then(|| (".".to_owned(), true));
    all.into_iter().chain(wanted.domains.iter().map(|domain| (domain.clone(), false))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_stub_and_the_files_of_resolved_are_known() {
        let file = Path::new("/nonexistent");
        assert!(is_asked(file, b"# stub\nnameserver 127.0.0.53\noptions edns0 trust-ad\nsearch .\n"));
        for other in
            [&b"nameserver 192.168.1.1\n"[..], b"nameserver 127.0.0.53\nnameserver 192.168.1.1\n", b"", b"\xff"]
        {
            assert!(!is_asked(file, other), "{other:?}");
        }
    }

    #[test]
    fn chosen_domains_go_to_the_gateway_and_nothing_else() {
        let split = servers(false, &["acme.example"]);
        assert_eq!(domains(&split), [("acme.example".to_owned(), false)]);
        let full = servers(true, &["acme.example"]);
        assert_eq!(domains(&full), [(".".to_owned(), true), ("acme.example".to_owned(), false)]);
    }

    #[test]
    fn addresses_are_bytes_with_their_family() {
        let told = addresses(&servers(true, &[]).servers);
        assert_eq!(told[0], (AF_INET, vec![100, 77, 0, 1]));
        assert_eq!((told[1].0, told[1].1.len()), (AF_INET6, 16));
    }

    fn servers(all: bool, domains: &[&str]) -> Servers {
        Servers {
            file: "/etc/resolv.conf".into(),
            device: "culvert0".into(),
            addresses: vec![],
            servers: vec!["100.77.0.1".parse().unwrap(), "fd00::1".parse().unwrap()],
            domains: domains.iter().map(|domain| (*domain).to_owned()).collect(),
            all,
        }
    }
}
