//! The gateway's resolver for its clients, at its own inner addresses.
//!
//! A question's way: `listen` (sockets, who may ask, how much) → `question` (bytes to a question)
//! → `resolver` → `zones` (who answers this name) → `devices` (names inside), or `cache`, or `upstream` (the
//! servers, each with its `health`; `system` follows the host's own) → back. The gateway carries packets
//! without all of this: when it cannot listen it says so, and clients are not told to ask it.
//!
//! No name is ever logged, and there is no line for a question.

mod cache;
mod counters;
mod devices;
mod health;
mod listen;
mod places;
mod question;
mod resolver;
mod system;
mod upstream;
mod zones;

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::sync::Arc;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

pub use counters::{Counters, Snapshot};
pub use system::RESOLV_CONF;

use crate::config::Config;
use crate::registry::Registry;
use crate::settings::Settings;
use listen::{Clients, Sockets};
use resolver::Resolver;

/// RFC 1035 section 4.2.
pub const PORT: u16 = 53;
/// Descriptors for questions under way and connections, beside what the gateway has.
const OPEN_FILES: u64 = 8192;

/// Answers clients.
#[derive(Debug)]
pub struct Forwarder<R> {
    sockets: Sockets,
    resolver: Arc<Resolver<R>>,
    clients: Clients,
}

impl<R: Registry> Forwarder<R> {
    /// Listens at the gateway's inner addresses, on the tunnel's `interface` only (`None`: on any, for tests
    /// without a tunnel). `resolv_conf` is the host's own file. Needs a tokio runtime.
    ///
    /// # Errors
    /// What the OS says.
    pub fn bind(
        config: &Config,
        settings: &Settings,
        registry: R,
        interface: Option<&str>,
        port: u16,
        resolv_conf: &Path,
    ) -> io::Result<Self> {
        let own = own_addresses(settings);
        let sockets = Sockets::bind(&own, port, interface)?;
        raise_open_files();
        let pool = settings.pool;
        let networks = std::iter::once(pool.ipv4().into()).chain(pool.ipv6().map(Into::into)).collect();
        let resolver = Resolver::new(&config.dns, pool, config.isolation, registry, resolv_conf.to_owned());
        Ok(Self { sockets, resolver: Arc::new(resolver), clients: Clients { networks, own } })
    }

    /// What it has done; any thread may look.
    pub fn counters(&self) -> Arc<Counters> {
        Arc::clone(self.resolver.counters())
    }

    /// Where it listens first, by UDP and by TCP.
    ///
    /// # Errors
    /// What the OS says.
    pub fn local_addresses(&self) -> io::Result<(SocketAddr, SocketAddr)> {
        self.sockets.local_addresses()
    }

    /// Answers until the future is dropped.
    pub async fn serve(self) {
        self.sockets.serve(self.resolver, self.clients).await;
    }
}

/// The resolver that clients are told of, if they are told of one. One that cannot be had is taken out of what
/// they are told, and the log says how to repair it.
pub fn start<R: Registry>(config: &Config, settings: &mut Settings, registry: &R) -> Option<Forwarder<R>> {
    if !settings.answers {
        return None;
    }
    let device = Some(config.device.as_str());
    match Forwarder::bind(config, settings, registry.clone(), device, PORT, Path::new(RESOLV_CONF)) {
        Ok(forwarder) => Some(forwarder),
        Err(error) => {
            settings.answers = false;
            tracing::warn!(
                event = "dns_unavailable",
                %error,
                "no name server for clients: {}, or set push.dns to other servers",
                remedy(&error, settings)
            );
            None
        }
    }
}

/// [`Forwarder::serve`], if there is one; never ends.
pub async fn serve<R: Registry>(forwarder: Option<Forwarder<R>>) {
    match forwarder {
        Some(forwarder) => forwarder.serve().await,
        None => std::future::pending().await,
    }
}

fn remedy(error: &io::Error, settings: &Settings) -> String {
    let address = settings.pool.gateway().ipv4;
    match error.kind() {
        io::ErrorKind::AddrInUse => {
            format!(
                "another program has port {PORT} of {address}; stop it, or make it listen at other addresses (ss -lnptu 'sport = :{PORT}' names it)"
            )
        }
        io::ErrorKind::PermissionDenied => {
            format!("port {PORT} needs CAP_NET_BIND_SERVICE; run as root, or by the systemd unit")
        }
        _ => format!("cannot listen at port {PORT} of {address}"),
    }
}

fn own_addresses(settings: &Settings) -> Vec<IpAddr> {
    let gateway = settings.pool.gateway();
    std::iter::once(gateway.ipv4.into()).chain(gateway.ipv6.map(IpAddr::from)).collect()
}

/// Service managers start programs with 1,024 descriptors and let them have more (systemd.exec(5), `LimitNOFILE`).
fn raise_open_files() {
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    let wanted = maximum.map_or(OPEN_FILES, |most| OPEN_FILES.min(most));
    if current.is_some_and(|current| current < wanted) {
        // With fewer, questions wait for each other: nothing to tell.
        let _ = setrlimit(Resource::Nofile, Rlimit { current: Some(wanted), maximum });
    }
}
