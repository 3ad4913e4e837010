//! macOS: halves of the default routes (they go before it, and configd leaves them alone) and the gateway's networks
//! through the utun, by the routing socket (route(4)).
//!
//! Routes through the utun vanish with it, so only those that are not are journaled. Local networks stay local by
//! their longer prefixes; the tunnel's own sockets are bound to the interface below (`outside`), so that no host route
//! to the gateway is needed.
#![allow(unsafe_code, reason = "socket(2) for PF_ROUTE has no safe wrapper in the crates we use")]

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::FromRawFd;
use std::time::Duration;

use culvert_tunnel::device::macos::add_address;
use ipnet::IpNet;
use socket2::SockRef;

use super::message::{self, Via, halves};
use super::{LocalNet, Plan, RouteError};
use crate::journal::{Change, Entry, Journal};
use crate::underlay::primary;

/// For the kernel's answer, which it gives at once.
const ANSWER_WITHIN: Duration = Duration::from_secs(2);

/// What is in force.
#[derive(Debug)]
pub(super) struct Routes {
    device: String,
    index: u32,
    note: Option<String>,
    made: Vec<(Entry, Change)>,
}

impl Routes {
    pub(super) async fn apply(plan: &Plan, journal: &mut Journal) -> Result<Self, RouteError> {
        let index = index(&plan.device)?;
        let (note, preferred) = plan.settle(&local_networks(&plan.device))?;
        let mut routes = Self { device: plan.device.clone(), index, note, made: Vec::new() };
        if let Err(error) = routes.make(plan, &preferred, journal) {
            if let Err(second) = routes.undo(journal).await {
                tracing::error!(error = %second, "what was done could not be undone");
            }
            return Err(error);
        }
        Ok(routes)
    }

    fn make(&mut self, plan: &Plan, preferred: &[IpNet], journal: &mut Journal) -> Result<(), RouteError> {
        add_address(&plan.device, plan.ipv4.into()).map_err(|error| kernel("adding the inner address", error))?;
        if let Some(ipv6) = plan.ipv6 {
            add_address(&plan.device, ipv6.into()).map_err(|error| kernel("adding the inner address", error))?;
        }
        self.set_mtu_now(plan.mtu_bytes)?;
        let mut socket = Socket::open()?;
        let beside = beside(plan);
        if !beside.is_empty() {
            let change = Change::Routes { destinations: beside.iter().map(|(net, _)| *net).collect() };
            let entry = journal.record(change.clone())?;
            self.made.push((entry, change));
        }
        for (net, via) in beside {
            socket.change(&message::add(net, via, socket.next()), "adding a route")?;
        }
        let through = Via::Interface(u16::try_from(self.index).unwrap_or_default());
        for net in inside(plan, preferred) {
            socket.change(&message::add(net, through, socket.next()), "adding a route")?;
        }
        Ok(())
    }

    pub(super) fn note(&self) -> Option<&str> {
        self.note.as_deref()
    }

    pub(super) fn index(&self) -> u32 {
        self.index
    }

    pub(super) async fn set_mtu(&self, mtu_bytes: u16) -> Result<(), RouteError> {
        self.set_mtu_now(mtu_bytes)
    }

    fn set_mtu_now(&self, mtu_bytes: u16) -> Result<(), RouteError> {
        culvert_tunnel::device::macos::set_mtu(&self.device, mtu_bytes)
            .map_err(|error| kernel("setting the interface's MTU", error))
    }

    pub(super) async fn undo(mut self, journal: &mut Journal) -> Result<(), RouteError> {
        while let Some((entry, change)) = self.made.last() {
            undo(change).await?;
            journal.strike(*entry)?;
            self.made.pop();
        }
        Ok(())
    }
}

impl Drop for Routes {
    fn drop(&mut self) {
        for (_, change) in std::mem::take(&mut self.made).iter().rev() {
            if let Err(error) = remove(change) {
                tracing::error!(%error, "routes could not be undone; the next start tries again");
            }
        }
    }
}

/// Undoes one journaled change. Repeating it does no harm.
pub(super) async fn undo(change: &Change) -> Result<(), RouteError> {
    remove(change)
}

fn remove(change: &Change) -> Result<(), RouteError> {
    let Change::Routes { destinations } = change else { return Ok(()) };
    let mut socket = Socket::open()?;
    for net in destinations {
        socket.change(&message::delete(*net, socket.next()), "deleting a route")?;
    }
    Ok(())
}

/// Destinations that go through the tunnel: a default route in halves, and a preferred network in halves as well, so
/// that it goes before the local one.
fn inside(plan: &Plan, preferred: &[IpNet]) -> Vec<IpNet> {
    let mut nets: Vec<IpNet> = plan
        .carried()
        .into_iter()
        .flat_map(|net| if net.prefix_len() == 0 { halves(net) } else { vec![net] })
        .chain(preferred.iter().copied().flat_map(halves))
        .collect();
    nets.sort();
    nets.dedup();
    nets
}

/// Destinations that do not: excluded ones, to the network's own router, and IPv6 that nobody carries.
fn beside(plan: &Plan) -> Vec<(IpNet, Via)> {
    let network = primary();
    let router = |net: &IpNet| {
        let primary = network.as_ref()?;
        if net.addr().is_ipv4() { primary.router_v4.map(Into::into) } else { primary.router_v6.map(Into::into) }
    };
    let excluded = plan.excluded.iter().filter_map(|net| Some((net.trunc(), Via::Router(router(net)?))));
    let refused = plan.refuses_v6().then(|| halves(IpNet::V6(ipnet::Ipv6Net::default()))).unwrap_or_default();
    excluded.chain(refused.into_iter().map(|net| (net, Via::Nowhere))).collect()
}

fn local_networks(ours: &str) -> Vec<LocalNet> {
    let interfaces = if_addrs::get_if_addrs().unwrap_or_default();
    let local = interfaces.into_iter().filter(|interface| !interface.is_loopback() && interface.name != ours);
    local
        .filter_map(|interface| {
            let prefix = match &interface.addr {
                if_addrs::IfAddr::V4(v4) => v4.prefixlen,
                if_addrs::IfAddr::V6(v6) if !v6.ip.is_unicast_link_local() => v6.prefixlen,
                if_addrs::IfAddr::V6(_) => return None,
            };
            Some(LocalNet { net: IpNet::new(interface.ip(), prefix).ok()?.trunc(), interface: interface.name })
        })
        .collect()
}

fn index(device: &str) -> Result<u32, RouteError> {
    let gone = || RouteError::NoInterface(device.into());
    let name = std::ffi::CString::new(device).map_err(|_| gone())?;
    // SAFETY: the name ends with NUL.
    let index = unsafe { libc::if_nametoindex(name.as_ptr()) };
    if index == 0 { Err(gone()) } else { Ok(index) }
}

fn kernel(doing: &'static str, error: io::Error) -> RouteError {
    RouteError::Kernel { doing, error }
}

/// A routing socket.
struct Socket {
    file: File,
    seq: std::cell::Cell<i32>,
}

impl Socket {
    fn open() -> Result<Self, RouteError> {
        // SAFETY: takes numbers, and returns a descriptor of ours or an error.
        let fd = unsafe { libc::socket(libc::PF_ROUTE, libc::SOCK_RAW, libc::AF_UNSPEC) };
        if fd < 0 {
            return Err(kernel("opening a routing socket", io::Error::last_os_error()));
        }
        // SAFETY: the descriptor is open, and nobody else's.
        let file = unsafe { File::from_raw_fd(fd) };
        let patience = SockRef::from(&file).set_read_timeout(Some(ANSWER_WITHIN));
        patience.map_err(|error| kernel("opening a routing socket", error))?;
        Ok(Self { file, seq: std::cell::Cell::new(0) })
    }

    fn next(&self) -> i32 {
        self.seq.set(self.seq.get() + 1);
        self.seq.get()
    }

    /// One change; one that is there already, or gone already, is no error.
    fn change(&mut self, message: &[u8], doing: &'static str) -> Result<(), RouteError> {
        let benign = [libc::EEXIST, libc::ESRCH];
        match self.file.write_all(message) {
            // The kernel refuses in write(2) itself what it also refuses in its answer.
            Err(error) if error.raw_os_error().is_some_and(|number| benign.contains(&number)) => return Ok(()),
            Err(error) => return Err(kernel(doing, error)),
            Ok(()) => {}
        }
        let (pid, seq) = (std::process::id().cast_signed(), self.seq.get());
        let mut bytes = [0; 2048];
        // Other programs' messages come between, but not for ever.
        for _ in 0..256 {
            let len = self.file.read(&mut bytes).map_err(|error| kernel(doing, error))?;
            match message::answer(&bytes[..len], pid, seq) {
                None => {}
                Some(0) => return Ok(()),
                Some(number) if benign.contains(&number) => return Ok(()),
                Some(number) => return Err(kernel(doing, io::Error::from_raw_os_error(number))),
            }
        }
        Err(kernel(doing, io::ErrorKind::TimedOut.into()))
    }
}
