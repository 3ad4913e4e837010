//! The servers for everything that is not ours: those of the configuration, and the host's own.
//!
//! The host's are read again when its file has changed, looked at once a second at most and only when
//! somebody asks, so that an idle gateway does not wake up for it. Changed servers are another network:
//! what the old ones said is forgotten.

use std::fs;
use std::net::{IpAddr, SocketAddr};
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use hickory_resolver::system_conf::parse_resolv_conf;
use tokio::sync::Semaphore;

use super::upstream::Servers;
use crate::config::Upstream;

/// Where a host says whom it asks (resolv.conf(5)).
pub const RESOLV_CONF: &str = "/etc/resolv.conf";
/// The C library uses as many (resolv.conf(5), `nameserver`).
const MOST: usize = 3;
const LOOK_EVERY: Duration = Duration::from_secs(1);
const PORT: u16 = 53;

/// Follows the host's file.
#[derive(Debug)]
pub struct System {
    wanted: Vec<Upstream>,
    /// Ours: a question sent there would come back.
    own: Vec<IpAddr>,
    file: PathBuf,
    places: Arc<Semaphore>,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    looked_at: Instant,
    stamp: Option<Stamp>,
    servers: Arc<Servers>,
}

/// Tells two versions of a file apart: inode, seconds and nanoseconds of change, length.
type Stamp = (u64, i64, i64, u64);

impl System {
    /// The servers of the configuration, with `system` for those in `file`; never one of `own`.
    pub fn new(wanted: Vec<Upstream>, own: Vec<IpAddr>, file: PathBuf, places: Arc<Semaphore>, now: Instant) -> Self {
        let servers = Arc::new(Servers::new(&[], Arc::clone(&places)));
        let this =
            Self { wanted, own, file, places, state: Mutex::new(State { looked_at: now, stamp: None, servers }) };
        {
            let mut state = this.state.lock().unwrap_or_else(PoisonError::into_inner);
            state.stamp = this.stamp();
            state.servers = this.servers();
        }
        this
    }

    /// Whom to ask now, and whether they are others than the last time.
    pub fn current(&self, now: Instant) -> (Arc<Servers>, bool) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if !self.wanted.contains(&Upstream::System) || now.saturating_duration_since(state.looked_at) < LOOK_EVERY {
            return (Arc::clone(&state.servers), false);
        }
        state.looked_at = now;
        let stamp = self.stamp();
        let mut changed = false;
        if stamp != state.stamp {
            state.stamp = stamp;
            let servers = self.servers();
            changed = !servers.addresses().eq(state.servers.addresses());
            if changed {
                tracing::info!(event = "dns_upstream_changed", servers = list(&servers));
                state.servers = servers;
            }
        }
        (Arc::clone(&state.servers), changed)
    }

    fn stamp(&self) -> Option<Stamp> {
        let facts = fs::metadata(&self.file).ok()?;
        Some((facts.ino(), facts.mtime(), facts.mtime_nsec(), facts.len()))
    }

    fn servers(&self) -> Arc<Servers> {
        let mut addresses: Vec<SocketAddr> = Vec::new();
        for upstream in &self.wanted {
            match upstream {
                Upstream::Server(address) => addresses.push(*address),
                Upstream::System => addresses.extend(self.of_file()),
            }
        }
        let (ours, others): (Vec<_>, Vec<_>) =
            addresses.into_iter().partition(|address| address.port() == PORT && self.own.contains(&address.ip()));
        if !ours.is_empty() {
            tracing::warn!(
                event = "dns_upstream_loop",
                "this host's resolver is the gateway itself, which is passed over; set dns.upstream to another one"
            );
        }
        if others.is_empty() {
            tracing::warn!(
                event = "dns_no_upstream",
                "no name server is known, so clients find only devices and zones; set dns.upstream"
            );
        }
        Arc::new(Servers::new(&others, Arc::clone(&self.places)))
    }

    fn of_file(&self) -> Vec<SocketAddr> {
        let text = fs::read(&self.file).unwrap_or_default();
        let Ok((config, _)) = parse_resolv_conf(&text) else { return Vec::new() };
        let addresses = config.name_servers().iter().map(|server| server.ip);
        // hickory drops the interface that a link-local address is on, without which it is none.
        let usable = addresses.filter(|address| match address {
            IpAddr::V4(_) => true,
            IpAddr::V6(address) => !address.is_unicast_link_local(),
        });
        usable.take(MOST).map(|address| SocketAddr::new(address, PORT)).collect()
    }
}

fn list(servers: &Servers) -> String {
    servers.addresses().map(|address| address.to_string()).collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_changed_file_is_read_again_and_said_so_once() {
        let host = Host::new("nameserver 192.0.2.1\nnameserver 100.77.3.1\nsearch corp.example\n");
        let start = Instant::now();
        let system = host.system(&["system", "192.0.2.9:5353"], start);
        assert_eq!(seen(&system, start), ("192.0.2.1:53 192.0.2.9:5353".into(), false), "and never ourselves");
        host.write("nameserver 192.0.2.2\n");
        assert_eq!(seen(&system, start).0, "192.0.2.1:53 192.0.2.9:5353", "not looked at yet");
        let later = start + LOOK_EVERY;
        assert_eq!(seen(&system, later), ("192.0.2.2:53 192.0.2.9:5353".into(), true));
        assert!(!seen(&system, later + LOOK_EVERY).1);
        host.write("# a comment more\nnameserver 192.0.2.2\n");
        assert!(!seen(&system, later + 2 * LOOK_EVERY).1, "the same servers are no change");
    }

    #[test]
    fn a_host_without_that_file_has_no_servers_until_it_comes() {
        let host = Host::new("");
        fs::remove_file(host.file()).unwrap();
        let start = Instant::now();
        let system = host.system(&["system"], start);
        assert_eq!(seen(&system, start).0, "");
        host.write("nameserver 127.0.0.53\nnameserver fe80::1%eth0\n");
        assert_eq!(seen(&system, start + LOOK_EVERY), ("127.0.0.53:53".into(), true));
    }

    #[test]
    fn addresses_alone_never_look_at_the_file() {
        let host = Host::new("nameserver 192.0.2.1\n");
        let start = Instant::now();
        let system = host.system(&["192.0.2.9"], start);
        host.write("nameserver 192.0.2.2\n");
        assert_eq!(seen(&system, start + LOOK_EVERY), ("192.0.2.9:53".into(), false));
    }

    fn seen(system: &System, now: Instant) -> (String, bool) {
        let (servers, changed) = system.current(now);
        (list(&servers), changed)
    }

    struct Host(tempfile::TempDir);

    impl Host {
        fn new(text: &str) -> Self {
            let host = Self(tempfile::tempdir().unwrap());
            host.write(text);
            host
        }

        fn file(&self) -> PathBuf {
            self.0.path().join("resolv.conf")
        }

        fn write(&self, text: &str) {
            fs::write(self.0.path().join("new"), text).unwrap();
            fs::rename(self.0.path().join("new"), self.file()).unwrap();
        }

        fn system(&self, wanted: &[&str], now: Instant) -> System {
            let wanted = wanted.iter().map(|text| Upstream::parse(text).unwrap()).collect();
            System::new(wanted, vec!["100.77.3.1".parse().unwrap()], self.file(), Arc::new(Semaphore::new(1)), now)
        }
    }
}
