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
use tokio::sync::watch;
use tokio::task::JoinHandle;

pub use counters::{Counters, Snapshot};
pub use system::RESOLV_CONF;

use crate::config::Config;
use crate::registry::Registry;
use crate::settings::Settings;
use listen::{Clients, Current, Sockets};
use resolver::Resolver;

/// RFC 1035 section 4.2.
pub const PORT: u16 = 53;
/// Descriptors for questions under way and connections, beside what the gateway has.
const OPEN_FILES: u64 = 8192;

/// Answers clients.
#[derive(Debug)]
pub struct Forwarder<R> {
    sockets: Sockets,
    current: watch::Sender<Arc<Current<R>>>,
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
        let sockets = Sockets::bind(&own_addresses(settings), port, interface)?;
        raise_open_files();
        Ok(Self::over(sockets, current(config, settings, registry, resolv_conf, Arc::default())))
    }

    fn over(sockets: Sockets, current: Current<R>) -> Self {
        Self { sockets, current: watch::Sender::new(Arc::new(current)) }
    }

    /// What it has done; any thread may look.
    pub fn counters(&self) -> Arc<Counters> {
        Arc::clone(self.current.borrow().resolver.counters())
    }

    /// Where it listens first, by UDP and by TCP.
    ///
    /// # Errors
    /// What the OS says.
    pub fn local_addresses(&self) -> io::Result<(SocketAddr, SocketAddr)> {
        self.sockets.local_addresses()
    }

    /// Answers in a task of its own, which ends when what comes back is dropped.
    pub fn start(self) -> Running<R> {
        let task = tokio::spawn(self.sockets.serve(self.current.subscribe()));
        Running { current: self.current, task }
    }
}

/// A resolver that answers. It ends when this is dropped.
#[derive(Debug)]
pub struct Running<R> {
    current: watch::Sender<Arc<Current<R>>>,
    task: JoinHandle<()>,
}

impl<R: Registry> Running<R> {
    /// From now on questions are answered by other settings, in which the gateway has the same inner addresses.
    /// What was learnt is forgotten, and no question is lost.
    pub fn change(&self, config: &Config, settings: &Settings, registry: R, resolv_conf: &Path) {
        let counters = self.counters();
        self.current.send_replace(Arc::new(current(config, settings, registry, resolv_conf, counters)));
    }

    /// What it has done, since it was started first.
    pub fn counters(&self) -> Arc<Counters> {
        Arc::clone(self.current.borrow().resolver.counters())
    }

    async fn stop(mut self) {
        self.task.abort();
        let _ = (&mut self.task).await; // cancelled
    }
}

impl<R> Drop for Running<R> {
    fn drop(&mut self) {
        self.task.abort();
    }
}

fn current<R: Registry>(
    config: &Config,
    settings: &Settings,
    registry: R,
    resolv_conf: &Path,
    counters: Arc<Counters>,
) -> Current<R> {
    let pool = settings.pool;
    let networks = std::iter::once(pool.ipv4().into()).chain(pool.ipv6().map(Into::into)).collect();
    let resolver = Resolver::new(&config.dns, pool, config.isolation, registry, resolv_conf.to_owned(), counters);
    Current { resolver: Arc::new(resolver), clients: Clients { networks, own: own_addresses(settings) } }
}

/// The resolver that clients are told of, while they are told of one.
#[derive(Debug)]
pub struct Service<R> {
    registry: R,
    running: Option<Running<R>>,
    /// Of all that have run: no counter goes back.
    counters: Arc<Counters>,
}

impl<R: Registry> Service<R> {
    /// None answers yet.
    pub fn new(registry: R) -> Self {
        Self { registry, running: None, counters: Arc::default() }
    }

    /// Starts it, changes it or ends it, as the settings want. One that cannot be had is taken out of what clients
    /// are told, and the log says how to repair it.
    pub async fn apply(&mut self, config: &Config, settings: &mut Settings) {
        if !settings.answers {
            if let Some(running) = self.running.take() {
                running.stop().await; // its sockets are free for whoever is next
            }
            return;
        }
        let (registry, resolv_conf) = (self.registry.clone(), Path::new(RESOLV_CONF));
        if let Some(running) = &self.running {
            return running.change(config, settings, registry, resolv_conf);
        }
        match Sockets::bind(&own_addresses(settings), PORT, Some(&config.device)) {
            Ok(sockets) => {
                raise_open_files();
                let current = current(config, settings, registry, resolv_conf, Arc::clone(&self.counters));
                self.running = Some(Forwarder::over(sockets, current).start());
            }
            Err(error) => {
                settings.answers = false;
                tracing::warn!(
                    event = "dns_unavailable",
                    %error,
                    "no name server for clients: {}, or set push.dns to other servers",
                    remedy(&error, settings)
                );
            }
        }
    }

    /// What it has done; `None` while there is none.
    pub fn counters(&self) -> Option<Arc<Counters>> {
        self.running.as_ref().map(|_| Arc::clone(&self.counters))
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
