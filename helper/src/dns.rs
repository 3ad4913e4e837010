//! The machine's resolver: names are looked up at the gateway's servers until the guard is undone. `cfg` appears here
//! and nowhere above.

use std::io;
use std::net::IpAddr;
use std::path::PathBuf;

use crate::journal::ResolverFile;

#[cfg(target_os = "linux")]
#[path = "dns/linux.rs"]
mod imp;
#[cfg(target_os = "macos")]
#[path = "dns/macos.rs"]
mod imp;
#[cfg(any(target_os = "macos", test))]
mod service;

pub use imp::DnsGuard;
#[cfg(target_os = "macos")]
pub use service::other_service;

/// What to ask for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Servers {
    /// The resolver's file, `/etc/resolv.conf` outside tests.
    pub file: PathBuf,
    /// The tunnel interface.
    pub device: String,
    /// This end's inner addresses.
    pub addresses: Vec<IpAddr>,
    /// The servers, best first.
    pub servers: Vec<IpAddr>,
    /// Domains of the gateway: they are looked up there, and complete short names.
    pub domains: Vec<String>,
    /// Every other name is looked up there as well.
    pub all: bool,
}

/// Undoes a change to the resolver's file that a crashed helper left behind.
///
/// # Errors
/// What the file system says.
pub fn undo_file(change: &ResolverFile) -> io::Result<()> {
    imp::undo_file(change)
}

/// Takes back what a crashed helper contributed to resolvconf.
///
/// # Errors
/// What the program says.
pub fn undo_resolvconf(record: &str) -> io::Result<()> {
    imp::undo_resolvconf(record)
}
