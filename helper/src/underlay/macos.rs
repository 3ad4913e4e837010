//! macOS: configd's dynamic store says which service packets leave through (`services`); it and the routing socket
//! (route(4)) only say that it is time to look.
#![allow(unsafe_code, reason = "PF_ROUTE, if_nametoindex and a Mach port's run loop have no safe wrappers here")]

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::num::NonZeroU32;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

use core_foundation::array::CFArray;
use core_foundation::base::{CFType, TCFType};
use core_foundation::dictionary::CFDictionary;
use core_foundation::propertylist::CFPropertyList;
use core_foundation::runloop::{CFRunLoop, kCFRunLoopDefaultMode};
use core_foundation::string::CFString;
use system_configuration::dynamic_store::{SCDynamicStore, SCDynamicStoreBuilder, SCDynamicStoreCallBackContext};
use tokio::io::unix::AsyncFd;
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, sleep_until};

pub use super::services::is_tunnel;
use super::services::{self, Service};
use super::{Change, Settling, Way, Ways};
use crate::dns::other_service;

/// Whose changes are told.
const PATTERNS: [&str; 3] =
    ["State:/Network/Service/.*/IPv[46]", "State:/Network/Global/IPv[46]", "State:/Network/Interface/.*/Link"];
/// `net/route.h`; macOS 26.4 sends floods of them.
const RTM_MISS: u8 = 7;

/// The network below the tunnel.
#[derive(Clone, Debug)]
pub struct Primary {
    /// Its interface's index.
    pub index: NonZeroU32,
    /// Its routers.
    pub router_v4: Option<Ipv4Addr>,
    /// See `router_v4`.
    pub router_v6: Option<Ipv6Addr>,
}

/// What packets beside the tunnel leave through now; `None` without a network.
pub fn primary() -> Option<Primary> {
    let (services, order) = read()?;
    let (v4, v6) = (services::primary(&services, &order, true), services::primary(&services, &order, false));
    let main = v4.or(v6)?;
    // The other family counts where it is of the same network.
    let router = |service: Option<&Service>| service.filter(|it| it.interface == main.interface)?.router;
    let router_v4 = router(v4).and_then(|router| if let IpAddr::V4(v4) = router { Some(v4) } else { None });
    let router_v6 = router(v6).and_then(|router| if let IpAddr::V6(v6) = router { Some(v6) } else { None });
    Some(Primary { index: index(&main.interface)?, router_v4, router_v6 })
}

/// The same for those who only bind a socket.
pub fn primary_interface() -> Option<NonZeroU32> {
    primary().map(|primary| primary.index)
}

/// The name servers of the network below the tunnel.
pub fn name_servers() -> Vec<IpAddr> {
    let servers = || {
        let (services, order) = read()?;
        let main =
            services::primary(&services, &order, true).or_else(|| services::primary(&services, &order, false))?;
        let store = SCDynamicStoreBuilder::new("culvert-helper").build()?;
        let entry = dictionary(store.get(format!("State:/Network/Service/{}/DNS", main.id).as_str()))?;
        texts(&entry, "ServerAddresses")
    };
    servers().unwrap_or_default().iter().filter_map(|server| server.split('%').next()?.parse().ok()).collect()
}

/// Follows the ways to a gateway.
pub struct Watch {
    told: mpsc::Receiver<()>,
    run_loop: Option<CFRunLoop>,
    routes: Option<AsyncFd<OwnedFd>>,
    towards: Vec<IpAddr>,
    settling: Settling,
}

impl std::fmt::Debug for Watch {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Watch")
            .field("towards", &self.towards)
            .field("settling", &self.settling)
            .finish_non_exhaustive()
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        if let Some(run_loop) = &self.run_loop {
            run_loop.stop();
        }
    }
}

impl Watch {
    /// Watches. Must be called within a runtime.
    ///
    /// # Errors
    /// That configd cannot be reached.
    pub async fn open(_: u32) -> io::Result<Self> {
        // One is enough: several changes that nobody has looked at are one.
        let (tell, told) = mpsc::channel(1);
        let (started, loops) = oneshot::channel();
        std::thread::Builder::new().name("network".into()).spawn(move || listen(tell, started))?;
        let run_loop = loops.await.map_err(|_| io::Error::other("configd cannot be reached"))?;
        let routes = route_socket().inspect_err(|error| tracing::warn!(%error, "routes cannot be watched")).ok();
        let settling = Settling::new(look(&[]));
        Ok(Self { told, run_loop: Some(run_loop), routes, towards: Vec::new(), settling })
    }

    /// Follows the ways to these addresses from now on, in any order. Says when none of them has one.
    pub async fn aim(&mut self, mut towards: Vec<IpAddr>) -> Option<Change> {
        towards.sort_unstable();
        towards.dedup();
        if towards == self.towards {
            return None;
        }
        self.towards = towards;
        self.settling = Settling::new(look(&self.towards));
        (!self.towards.is_empty() && !self.settling.is_reachable()).then_some(Change::Gone)
    }

    /// Waits for the next change. Cancel-safe.
    pub async fn next(&mut self) -> Change {
        loop {
            let due = self.settling.poll_look().map(Instant::from_std);
            tokio::select! {
                Some(()) = self.told.recv() => self.settling.on_notice(std::time::Instant::now()),
                () = routed(self.routes.as_ref()) => self.settling.on_notice(std::time::Instant::now()),
                () = async { sleep_until(due.unwrap_or_else(Instant::now)).await }, if due.is_some() => {
                    match self.settling.on_look(look(&self.towards)) {
                        Some(Change::Gone) if self.towards.is_empty() => {}
                        Some(change) => return change,
                        None => {}
                    }
                }
            }
        }
    }
}

/// The ways to these addresses, or anywhere while none is known.
fn look(towards: &[IpAddr]) -> Ways {
    const ANYWHERE: [IpAddr; 2] = [IpAddr::V4(Ipv4Addr::UNSPECIFIED), IpAddr::V6(Ipv6Addr::UNSPECIFIED)];
    let Some((services, order)) = read() else { return Ways::new() };
    let towards = if towards.is_empty() { &ANYWHERE[..] } else { towards };
    let way = |&to: &IpAddr| {
        let service = services::primary(&services, &order, to.is_ipv4())?;
        let interface = index(&service.interface)?.get();
        Some(Way { to, interface, router: service.router, source: service.address })
    };
    towards.iter().filter_map(way).collect()
}

/// Every service but ours, and the user's order.
fn read() -> Option<(Vec<Service>, Vec<String>)> {
    let store = SCDynamicStoreBuilder::new("culvert-helper").build()?;
    let mut services = Vec::new();
    for family in ["IPv4", "IPv6"] {
        for key in store.get_keys(format!("State:/Network/Service/[^/]+/{family}").as_str())?.iter() {
            let key = key.to_string();
            let Some(id) = other_service(&key) else { continue };
            services.extend(service(id, &store, &key));
        }
    }
    let global = dictionary(store.get("Setup:/Network/Global/IPv4"));
    let order = global.and_then(|global| texts(&global, "ServiceOrder")).unwrap_or_default();
    Some((services, order))
}

fn service(id: &str, store: &SCDynamicStore, key: &str) -> Option<Service> {
    let entry = dictionary(store.get(key))?;
    let first = texts(&entry, "Addresses").and_then(|addresses| addresses.first()?.parse().ok());
    Some(Service {
        id: id.into(),
        interface: text(&entry, "InterfaceName")?,
        router: text(&entry, "Router").and_then(|router| router.split('%').next()?.parse().ok()),
        address: first,
    })
}

type Dictionary = CFDictionary<CFString, CFType>;

fn dictionary(list: Option<CFPropertyList>) -> Option<Dictionary> {
    let untyped = list?.downcast_into::<CFDictionary>()?;
    // SAFETY: configd's dictionaries are property lists, whose keys are strings (SCDynamicStore.h).
    Some(unsafe { Dictionary::wrap_under_get_rule(untyped.as_concrete_TypeRef()) })
}

fn text(entry: &Dictionary, key: &'static str) -> Option<String> {
    Some(entry.find(CFString::from_static_string(key))?.downcast::<CFString>()?.to_string())
}

fn texts(entry: &Dictionary, key: &'static str) -> Option<Vec<String>> {
    let list = entry.find(CFString::from_static_string(key))?.downcast::<CFArray>()?;
    // SAFETY: a property list's array holds property lists, which are CF objects; what is no string is left out.
    let list = unsafe { CFArray::<CFType>::wrap_under_get_rule(list.as_concrete_TypeRef()) };
    Some(list.iter().filter_map(|item| Some(item.downcast::<CFString>()?.to_string())).collect())
}

fn index(interface: &str) -> Option<NonZeroU32> {
    let name = std::ffi::CString::new(interface).ok()?;
    // SAFETY: the name ends with NUL.
    NonZeroU32::new(unsafe { libc::if_nametoindex(name.as_ptr()) })
}

/// Runs until the run loop is stopped.
fn listen(tell: mpsc::Sender<()>, started: oneshot::Sender<CFRunLoop>) {
    let context = SCDynamicStoreCallBackContext { callout: on_change, info: tell };
    let Some(store) = SCDynamicStoreBuilder::new("culvert-helper-watch").callback_context(context).build() else {
        return;
    };
    let patterns: Vec<CFString> = PATTERNS.iter().map(|pattern| CFString::from_static_string(pattern)).collect();
    let none: [CFString; 0] = [];
    if !store.set_notification_keys(&CFArray::from_CFTypes(&none), &CFArray::from_CFTypes(&patterns)) {
        return;
    }
    let Some(source) = store.create_run_loop_source() else { return };
    let run_loop = CFRunLoop::get_current();
    // SAFETY: a constant of the framework.
    run_loop.add_source(&source, unsafe { kCFRunLoopDefaultMode });
    if started.send(run_loop).is_ok() {
        CFRunLoop::run_current();
    }
}

fn on_change(_: SCDynamicStore, _: CFArray<CFString>, tell: &mut mpsc::Sender<()>) {
    let _ = tell.try_send(()); // one that waits says the same
}

fn route_socket() -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: takes numbers, and returns a descriptor of ours or an error.
    let fd = unsafe { libc::socket(libc::PF_ROUTE, libc::SOCK_RAW, libc::AF_UNSPEC) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the descriptor is open, and nobody else's.
    let fd = unsafe { OwnedFd::from_raw_fd(fd) };
    rustix::io::ioctl_fionbio(&fd, true)?;
    // SAFETY: an `OwnedFd` is open until it is dropped, and always the same; nobody takes it out.
    unsafe { AsyncFd::register(fd) }.map_err(io::Error::other)
}

/// Waits for a message that is about more than one lookup. Cancel-safe.
async fn routed(routes: Option<&AsyncFd<OwnedFd>>) {
    let Some(routes) = routes else { return std::future::pending().await };
    loop {
        // macOS takes such sockets away around sleep; the dynamic store still tells.
        let Ok(mut ready) = routes.readable().await else { return std::future::pending().await };
        let mut bytes = [0_u8; 2048];
        let mut any = false;
        loop {
            // SAFETY: the kernel writes at most as many bytes as the buffer has.
            let len = unsafe { libc::read(routes.as_raw_fd(), bytes.as_mut_ptr().cast(), bytes.len()) };
            match len {
                4.. => any |= bytes[3] != RTM_MISS,
                1..4 => {}
                _ if io::Error::last_os_error().kind() == io::ErrorKind::WouldBlock => break,
                _ => return std::future::pending().await,
            }
        }
        ready.clear_ready();
        if any {
            return;
        }
    }
}
