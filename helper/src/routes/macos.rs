//! macOS: routes into the utun by PF_ROUTE messages (route(4)).
//!
//! Nothing here needs a journal: the kernel removes an interface's addresses and every route through it when its
//! descriptor is closed (XNU `if_utun.c`), and every route of ours leads through it. While the interface goes on they
//! are removed one by one, and only while they lead into it: the kernel itself looks at the destination alone, and
//! would remove another program's.
#![allow(unsafe_code, reason = "if_nametoindex has no safe wrapper in the crates we use")]

use std::io::{self, Read, Write};
use std::time::Duration;

use culvert_tunnel::device::macos::{add_address, set_mtu};
use ipnet::IpNet;
use rustix::io::Errno;
use socket2::{Domain, Socket, Type};

use super::message::{self, Heard, LONGEST_BYTES};
use super::prefixes::{Through, through};
use super::{Plan, RouteError, local_networks};
use crate::journal::{Change, Journal};

/// For an answer, which the kernel gives before the question returns.
const ANSWER_WITHIN: Duration = Duration::from_secs(1);
/// Messages to others that may come before it.
const OTHERS: usize = 1000;

/// What is in force.
#[derive(Debug)]
pub(super) struct Routes {
    device: String,
    index: u32,
    note: Option<String>,
    made: Vec<IpNet>,
}

impl Routes {
    #[allow(clippy::unused_async, reason = "the same on every platform; here the kernel answers at once")]
    pub(super) async fn apply(plan: &Plan, _journal: &mut Journal) -> Result<Self, RouteError> {
        let index = index(&plan.device)?;
        let (note, preferred) = plan.settle(&local_networks(|name| name == plan.device))?;
        let mut routes = Self { device: plan.device.clone(), index, note, made: Vec::new() };
        routes.make(plan, &preferred)?;
        Ok(routes)
    }

    fn make(&mut self, plan: &Plan, preferred: &[IpNet]) -> Result<(), RouteError> {
        set_mtu(&self.device, plan.mtu_bytes).map_err(|error| kernel("setting the interface's MTU", error))?;
        let own = std::iter::once(plan.ipv4.into()).chain(plan.ipv6.map(Into::into));
        for address in own {
            add_address(&self.device, address).map_err(|error| kernel("adding the inner address", error))?;
        }
        let index = self.short_index()?;
        let mut socket = RouteSocket::open().map_err(|error| kernel("opening a routing socket", error))?;
        for Through { destination, refused } in through(plan, preferred) {
            match socket.add(destination, index, refused) {
                Ok(()) => {}
                // Adding the inner address made it, or another program has it.
                Err(error) if error.raw_os_error() == Some(Errno::EXIST.raw_os_error()) => {
                    let leads = socket.get(destination).map_err(|error| kernel("reading a route", error))?;
                    if leads != Some(index) {
                        return Err(RouteError::Taken(destination));
                    }
                }
                Err(error) => return Err(kernel("adding a route", error)),
            }
            self.made.push(destination);
        }
        Ok(())
    }

    #[allow(clippy::unused_async, reason = "the same on every platform")]
    pub(super) async fn change(&mut self, _: &Plan, _: &Plan, _: &mut Journal) -> Result<bool, RouteError> {
        Ok(false) // a new utun is made
    }

    pub(super) fn note(&self) -> Option<&str> {
        self.note.as_deref()
    }

    pub(super) fn index(&self) -> u32 {
        self.index
    }

    #[allow(clippy::unused_async, reason = "the same on every platform; here the kernel answers at once")]
    pub(super) async fn set_mtu(&self, mtu_bytes: u16) -> Result<(), RouteError> {
        set_mtu(&self.device, mtu_bytes).map_err(|error| kernel("setting the interface's MTU", error))
    }

    #[allow(clippy::unused_async, reason = "the same on every platform; here the kernel answers at once")]
    pub(super) async fn undo(mut self, _journal: &mut Journal) -> Result<(), RouteError> {
        self.remove()
    }

    fn remove(&mut self) -> Result<(), RouteError> {
        // The interface is gone, or is another one by now: our routes went with ours.
        if self.made.is_empty() || index(&self.device).ok() != Some(self.index) {
            self.made.clear();
            return Ok(());
        }
        let index = self.short_index()?;
        let mut socket = RouteSocket::open().map_err(|error| kernel("opening a routing socket", error))?;
        while let Some(destination) = self.made.last().copied() {
            if socket.get(destination).map_err(|error| kernel("reading a route", error))? == Some(index) {
                socket.delete(destination).map_err(|error| kernel("deleting a route", error))?;
            }
            self.made.pop();
        }
        Ok(())
    }

    /// Messages name interfaces by 16 bits.
    fn short_index(&self) -> Result<u16, RouteError> {
        u16::try_from(self.index).map_err(|_| kernel("naming the interface", io::ErrorKind::InvalidInput.into()))
    }
}

impl Drop for Routes {
    fn drop(&mut self) {
        if let Err(error) = self.remove() {
            tracing::error!(%error, "routes could not be undone; they go with the tunnel interface");
        }
    }
}

/// Changes that only Linux makes: a journal is not carried from one system to another.
#[allow(clippy::unused_async, reason = "the same on every platform")]
pub(super) async fn undo(_change: &Change) -> Result<(), RouteError> {
    Ok(())
}

fn index(device: &str) -> Result<u32, RouteError> {
    let gone = || RouteError::NoInterface(device.into());
    let name = std::ffi::CString::new(device).map_err(|_| gone())?;
    // SAFETY: the name ends with NUL.
    let index = unsafe { libc::if_nametoindex(name.as_ptr()) };
    if index == 0 { Err(gone()) } else { Ok(index) }
}

/// A socket to the kernel's routing table.
struct RouteSocket {
    socket: Socket,
    sequence: i32,
}

impl RouteSocket {
    fn open() -> io::Result<Self> {
        let socket = Socket::new(Domain::from(libc::PF_ROUTE), Type::RAW, None)?;
        socket.set_cloexec(true)?;
        socket.set_read_timeout(Some(ANSWER_WITHIN))?;
        Ok(Self { socket, sequence: 0 })
    }

    fn add(&mut self, destination: IpNet, interface: u16, refused: bool) -> io::Result<()> {
        let sequence = self.next();
        self.say(&message::add(destination, interface, refused, sequence))
    }

    /// One that is gone already is no error.
    fn delete(&mut self, destination: IpNet) -> io::Result<()> {
        let sequence = self.next();
        match self.say(&message::delete(destination, sequence)) {
            Err(error) if error.raw_os_error() == Some(Errno::SRCH.raw_os_error()) => Ok(()),
            done => done,
        }
    }

    /// Through which interface exactly this route leads; `None` when there is none.
    fn get(&mut self, destination: IpNet) -> io::Result<Option<u16>> {
        let sequence = self.next();
        match self.say(&message::get(destination, sequence)) {
            Ok(()) => {}
            Err(error) if error.raw_os_error() == Some(Errno::SRCH.raw_os_error()) => return Ok(None),
            Err(error) => return Err(error),
        }
        let pid = rustix::process::getpid().as_raw_nonzero().get();
        let mut bytes = [0; LONGEST_BYTES];
        for _ in 0..OTHERS {
            let len = (&self.socket).read(&mut bytes)?;
            if let Some(heard) = Heard::parse(&bytes[..len])
                && heard.is_answer(pid, sequence)
            {
                return Ok(Some(heard.interface));
            }
        }
        Err(io::ErrorKind::TimedOut.into())
    }

    /// The kernel's answer is the write's.
    fn say(&mut self, message: &[u8]) -> io::Result<()> {
        (&self.socket).write(message).map(drop)
    }

    fn next(&mut self) -> i32 {
        self.sequence += 1;
        self.sequence
    }
}

fn kernel(doing: &'static str, error: io::Error) -> RouteError {
    RouteError::Kernel { doing, error }
}
