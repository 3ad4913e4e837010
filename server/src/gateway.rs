//! Starts everything a gateway is made of, and stops it in reverse.
//!
//! Whatever can be refused is checked before the host is changed, and each refusal is one
//! sentence with what repairs it.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::SystemTime;

use culvert_tunnel::banned::Banned;
use culvert_tunnel::device::linux::{OpenError, Tun};
use culvert_tunnel::filter::Policy;
use culvert_tunnel::routing::Routing;
use culvert_tunnel::shard::engine::Role;
use culvert_tunnel::shard::{self, RunningShard, ShardConfig};
use culvert_tunnel::socket::{self, SocketOptions};
use culvert_tunnel::transport::Tuning;
use rustix::thread::{CapabilitySet, capabilities};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{mpsc, oneshot, watch};

use crate::config::{Config, ConfigError, Loaded};
use crate::control_socket::{Asked, ControlSocket, Request, SocketError};
use crate::conversation::Office;
use crate::dns;
use crate::door;
use crate::firewall;
use crate::fleet::{FleetError, Member, check_authorities};
use crate::forwarding::{Forwarding, ForwardingError};
use crate::http::Http;
use crate::interface::{Netlink, NetlinkError, Overlap, check_overlap};
use crate::journal::{Journal, JournalError};
use crate::leaf::{Leaf, LeafError};
use crate::manager;
use crate::metrics;
use crate::nat::{self, Nat, NatError};
use crate::registry::any::AnyRegistry;
use crate::registry::{Device, Registry, RegistryError};
use crate::reload::Reloader;
use crate::selfcheck;
use crate::sessions::{Followers, LoopError, Reloading, Sessions};
use crate::settings::{Settings, SettingsError};
use crate::speed::{self, Speed};
use crate::state::{StateDir, StateError};
use crate::watchdog;

/// The interface's MTU when nothing else is said: each session's own path MTU is enforced in the
/// shard, by ICMP "too big".
const DEFAULT_MTU_BYTES: u16 = 1500;
/// Administrators' requests that may wait.
const REQUESTS: usize = 16;

/// Why there is no gateway, or not any more.
#[derive(Debug, thiserror::Error)]
pub enum GatewayError {
    /// We may not change the network.
    #[error("culvert-server needs CAP_NET_ADMIN for this; run it as root, or by its systemd unit")]
    NoCapability,
    /// The UDP port cannot be had.
    #[error("{}", port_sentence(*.address, .error))]
    Port {
        /// `listen.address`.
        address: SocketAddr,
        /// What the OS says.
        error: io::Error,
    },
    /// A device's address is not in the network any more.
    #[error(
        "{user}/{name} has the address {ipv4}, which is not in the inner network {network}; set network.ipv4 back to \
         the network of its devices, or a larger one that holds it"
    )]
    Stranded {
        /// Whose device.
        user: String,
        /// Which.
        name: String,
        /// Its address.
        ipv4: std::net::Ipv4Addr,
        /// The network now.
        network: ipnet::Ipv4Net,
    },
    /// The threads or signals cannot be had.
    #[error("cannot start: {0}")]
    Os(#[from] io::Error),
    /// The state directory.
    #[error(transparent)]
    State(#[from] StateError),
    /// The registry.
    #[error(transparent)]
    Registry(#[from] RegistryError),
    /// The other gateways.
    #[error(transparent)]
    Fleet(#[from] FleetError),
    /// Something is set nowhere.
    #[error(transparent)]
    Settings(#[from] SettingsError),
    /// The inner network is in use outside.
    #[error(transparent)]
    Overlap(#[from] Overlap),
    /// The interface's addresses.
    #[error(transparent)]
    Netlink(#[from] NetlinkError),
    /// The interface.
    #[error(transparent)]
    Tun(#[from] OpenError),
    /// The kernel's forwarding.
    #[error(transparent)]
    Forwarding(#[from] ForwardingError),
    /// The nftables table.
    #[error(transparent)]
    Nat(#[from] NatError),
    /// The journal.
    #[error(transparent)]
    Journal(#[from] JournalError),
    /// The control socket.
    #[error(transparent)]
    Socket(#[from] SocketError),
    /// The gateway's own certificate.
    #[error(transparent)]
    Leaf(#[from] LeafError),
    /// There is no certificate to begin with.
    #[error("the gateway has no certificate")]
    NoLeaf,
    /// It ran, and ended by itself.
    #[error(transparent)]
    Loop(#[from] LoopError),
}

fn port_sentence(address: SocketAddr, error: &io::Error) -> String {
    let port = address.port();
    match error.kind() {
        io::ErrorKind::AddrInUse => {
            format!("UDP port {port} of {address} is in use by another program; stop it, or set listen.address")
        }
        io::ErrorKind::PermissionDenied => {
            format!(
                "UDP port {port} needs CAP_NET_BIND_SERVICE; run as root, or set listen.address to a port above 1023"
            )
        }
        io::ErrorKind::AddrNotAvailable => {
            format!("no interface of this host has the address {}; set listen.address", address.ip())
        }
        _ => format!("cannot listen on UDP {address}: {error}"),
    }
}

/// Runs a gateway until SIGTERM or SIGINT. What it changed on the host is undone when it returns.
///
/// `read` reads the configuration again, as `loaded` was read: SIGHUP and `culvert-server reload` ask for it.
///
/// # Errors
/// [`GatewayError`]: why it did not start, or why it ended by itself.
pub async fn run(
    loaded: Loaded,
    read: impl Fn() -> Result<Loaded, ConfigError> + Send + Sync + 'static,
) -> Result<(), GatewayError> {
    check_capability()?;
    let state = StateDir::of(&loaded.config);
    let registry = state.remembering_registry(loaded.config.cache_age).await?;
    let reloader = Reloader::new(loaded.layers, read);
    let outcome = serve(loaded.config, reloader, &state, registry.clone()).await;
    // However it ended: an unclosed database may leave its working files behind.
    registry.close().await;
    outcome
}

async fn serve(
    config: Config,
    reloader: Reloader,
    state: &StateDir,
    registry: AnyRegistry,
) -> Result<(), GatewayError> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut hang_up = signal(SignalKind::hangup())?;
    let lock = state.lock()?;
    if let Ok(lock) = state.lock_rotation() {
        state.tidy_rotation(&lock)?;
    }
    let authorities_stamp = state.authorities_stamp();
    let authorities = state.authorities()?;
    if registry.shared().is_some() {
        check_authorities(&authorities)?;
    }
    let cids = state.cid_key(&lock)?;
    let mut settings = Settings::resolve(&config, &registry).await?;
    check_stranded(registry.stranded(&settings.pool).await?, &settings)?;
    let member = match registry.shared() {
        Some(shared) => {
            let pin = authorities.current().pin().to_string();
            let id = state.gateway_id(&lock)?.to_string();
            Some((Member::join(shared, id.clone(), &pin, &settings).await?, id))
        }
        None => None,
    };
    let (member, gateway_id) = member.unzip();
    let mut leaf = Leaf::new(state.clone(), Tuning { congestion: config.congestion });
    let transport = leaf.renewed(&authorities, &settings, SystemTime::now())?.ok_or(GatewayError::NoLeaf)?;

    let netlink = Netlink::open()?;
    check_overlap(&settings.pool, &netlink.local_networks().await?)?;
    let shards = usize::from(config.shards.unwrap_or_else(automatic_shards));
    let sockets = bind(config.listen, shards)?;
    let control = ControlSocket::bind(&config.control_socket)?;
    metrics::install();
    let tuns = Tun::open(&config.device, shards)?;
    // From here on the host changes; each value undoes its change when it is dropped.
    netlink.bring_up(&config.device, &settings.pool, config.mtu_bytes.unwrap_or(DEFAULT_MTU_BYTES)).await?;
    let host = Host::change(&config, &settings, state)?;
    firewall::warn(&config, &settings);

    let (routing, banned) = (Routing::default(), Banned::default());
    let policy = Arc::new(policy(&config, &settings));
    let configs = sockets.into_iter().zip(tuns).map(|(socket, tun)| ShardConfig {
        socket,
        device: Some(tun),
        role: Role::Gateway {
            transport: transport.clone(),
            routing: routing.clone(),
            policy: Arc::clone(&policy),
            banned: banned.clone(),
        },
        cids: cids.clone(),
    });
    let running = shard::spawn(configs.collect())?;
    tracing::info!(
        event = "started",
        version = env!("CARGO_PKG_VERSION"),
        listen = %config.listen,
        endpoint = settings.endpoint.with_port(settings.port),
        device = config.device,
        ipv4 = %settings.pool.ipv4(),
        ipv6 = settings.pool.ipv6().map_or_else(String::new, |network| network.to_string()),
        shards,
    );

    let mut handles = Vec::new();
    let mut events = Vec::new();
    let mut threads = Vec::new();
    for RunningShard { handle, events: told, thread } in running {
        handles.push(handle);
        events.push(told);
        threads.push(thread);
    }
    let http = http(&config).await;
    let mut resolver = dns::Service::new(registry.clone());
    resolver.apply(&config, &mut settings).await;
    let dns = resolver.counters();
    let followers = Followers::new(&config, &settings);
    let speed = speed(&config, &followers).await;
    let (asked, requests) = mpsc::channel(REQUESTS);
    let selfcheck = selfcheck::watch(followers.in_force());
    let watchdog = watchdog::watch(asked.clone(), handles.clone(), settings.endpoint.with_port(settings.port));
    let door = door::open(config.bans.clone(), state.root(), banned, handles.clone());
    let registry = registry.clone();
    let authorities = Arc::new(authorities);
    let office = Arc::new(Office { registry, authorities, config, settings, gateway_id, dns, door: door.clone() });
    let (told, others) = watch::channel(Vec::new());
    let fleet = keep(member, told, asked.clone());
    let reload = asked.clone();
    let stop = async {
        let signal = loop {
            tokio::select! {
                _ = terminate.recv() => break "SIGTERM",
                _ = interrupt.recv() => break "SIGINT",
                _ = hang_up.recv() => {
                    manager::reloading();
                    let (reply, done) = oneshot::channel(); // the log tells what came of it
                    let _ = reload.try_send((Request::Reload, reply)); // full of requests: one of them, or the next signal
                    tokio::spawn(async move {
                        let _ = done.await; // dropped when it was not taken
                        manager::ready();
                    });
                }
            }
        };
        manager::stopping();
        tracing::info!(event = "stopping", signal);
    };
    let reloading = Reloading { reloader, followers, resolver };
    let sessions =
        Sessions::new(office, handles, leaf, authorities_stamp, reloading, others).await?.run(events, requests, stop);
    manager::ready();
    let outcome = tokio::select! {
        outcome = sessions => outcome,
        () = serve_http(http, asked.clone()) => Err(LoopError::ShardGone), // never: it serves for ever
        () = control.serve(asked) => Err(LoopError::ShardGone), // neither does this end
        () = serve_speed(speed) => Err(LoopError::ShardGone), // neither does this end
        () = fleet => Err(LoopError::ShardGone), // nor this
        () = watchdog => Err(LoopError::ShardGone), // nor this
        () = selfcheck => Err(LoopError::ShardGone), // nor this
    };
    drop(control);
    door.stop().await;
    for thread in threads {
        // A thread that hangs must not keep the host changed; it ends with the process.
        if thread.is_finished() && thread.join().is_err() {
            tracing::error!(event = "shard_panicked");
        }
    }
    drop(host);
    tracing::info!(event = "stopped");
    Ok(outcome?)
}

/// A gateway without it carries packets as well.
async fn speed(config: &Config, followers: &Followers) -> Option<Speed> {
    match Speed::bind(followers.pool(), config.speedtests? as usize).await {
        Ok(speed) => Some(speed),
        Err(error) => {
            tracing::warn!(event = "speedtest_unavailable", %error, "TCP port {} of the inner address", speed::PORT);
            None
        }
    }
}

/// A gateway without it carries packets as well; a second one on this host has to have a port of its own.
async fn http(config: &Config) -> Option<Http> {
    let address = config.metrics_listen?;
    match Http::bind(address).await {
        Ok(http) => Some(http),
        Err(error) => {
            tracing::warn!(
                event = "metrics_unavailable",
                %error,
                "no metrics at TCP {address}: set metrics.listen to a port that is free, or to \"\""
            );
            None
        }
    }
}

/// Without others there is no place to keep.
async fn keep(member: Option<Member>, told: watch::Sender<Vec<String>>, asked: mpsc::Sender<Asked>) {
    match member {
        Some(member) => member.keep(told, asked).await,
        None => std::future::pending().await,
    }
}

async fn serve_http(http: Option<Http>, asked: mpsc::Sender<Asked>) {
    match http {
        Some(http) => http.serve(asked).await,
        None => std::future::pending().await,
    }
}

async fn serve_speed(speed: Option<Speed>) {
    match speed {
        Some(speed) => speed.serve().await,
        None => std::future::pending().await,
    }
}

/// Undoes what a crashed gateway left on this host.
///
/// # Errors
/// [`GatewayError`] when a gateway runs, or something cannot be undone.
pub fn cleanup(config: &Config) -> Result<bool, GatewayError> {
    check_capability()?; // without it we may not even see whether there is a gateway
    let state = StateDir::of(config);
    if !state.is_initialised() {
        return Ok(false);
    }
    let _lock = state.lock()?;
    let (_, undone) = Journal::open(state.root())?;
    Ok(undone)
}

/// What is changed on the host while the gateway runs. Dropping it undoes that, and only then
/// forgets the journal.
struct Host {
    /// `None` once undone.
    changes: Option<(Forwarding, Nat)>,
    journal: Journal,
    table: String,
}

impl Host {
    fn change(config: &Config, settings: &Settings, state: &StateDir) -> Result<Self, GatewayError> {
        let (mut journal, undone) = Journal::open(state.root())?;
        if undone {
            tracing::warn!(event = "cleaned_up", "undid what a crashed gateway left");
        }
        let table = nat::table_name(&config.device);
        journal.add_table(table.clone())?;
        let nat = match Nat::apply(&config.device, &settings.pool, config.isolation, config.nat) {
            Ok(nat) => nat,
            Err(error) => {
                journal.clear();
                return Err(error.into());
            }
        };
        match Forwarding::enable(settings.pool.ipv6().is_some(), &mut journal) {
            Ok(forwarding) => Ok(Self { changes: Some((forwarding, nat)), journal, table }),
            Err(error) => {
                drop(nat);
                journal.clear();
                Err(error.into())
            }
        }
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        let Some((forwarding, nat)) = self.changes.take() else { return };
        // Forwarding first: rules without forwarding are harmless, the other way round is not.
        if nat::other_gateways(&self.table).unwrap_or(false) {
            forwarding.keep();
        } else {
            drop(forwarding);
        }
        drop(nat);
        self.journal.clear();
    }
}

/// One shard a core that this process may use (affinity and cgroup quotas count).
fn automatic_shards() -> u8 {
    const MOST: usize = 64;
    std::thread::available_parallelism().map_or(1, |cores| cores.get().min(MOST)) as u8
}

fn check_capability() -> Result<(), GatewayError> {
    let able = capabilities(None).is_ok_and(|sets| sets.effective.contains(CapabilitySet::NET_ADMIN));
    if able { Ok(()) } else { Err(GatewayError::NoCapability) }
}

fn check_stranded(stranded: Option<Device>, settings: &Settings) -> Result<(), GatewayError> {
    stranded.map_or(Ok(()), |device| {
        Err(GatewayError::Stranded {
            user: device.user,
            name: device.name,
            ipv4: device.ipv4,
            network: settings.pool.ipv4(),
        })
    })
}

fn bind(address: SocketAddr, shards: usize) -> Result<Vec<std::net::UdpSocket>, GatewayError> {
    let failed = |error| GatewayError::Port { address, error };
    if shards == 1 {
        return Ok(vec![socket::bind(address, SocketOptions::default()).map_err(failed)?]);
    }
    // Sockets that share a port would also share it with another gateway of the same user.
    drop(socket::bind(address, SocketOptions::default()).map_err(failed)?);
    let shared = SocketOptions { reuse_port: true, ..SocketOptions::default() };
    (0..shards).map(|_| socket::bind(address, shared).map_err(failed)).collect()
}

/// What the shards judge packets by.
pub fn policy(config: &Config, settings: &Settings) -> Policy {
    let pool = settings.pool;
    let gateway = pool.gateway();
    Policy {
        networks: std::iter::once(pool.ipv4().into()).chain(pool.ipv6().map(Into::into)).collect(),
        gateway: std::iter::once(gateway.ipv4.into()).chain(gateway.ipv6.map(Into::into)).collect(),
        isolation: config.isolation,
    }
}
