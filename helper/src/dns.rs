//! The machine's resolver: names are looked up at the gateway's servers until the guard is undone.
//!
//! `cfg` appears here and nowhere above. Issue 4 adds systemd-resolved and resolvconf; until then
//! a resolver file that another program manages is left alone, and the status says so.

use std::io;
use std::net::IpAddr;
use std::path::PathBuf;

use crate::journal::{Entry, Journal, ResolverFile};

#[path = "dns/resolv_conf.rs"]
mod imp;

/// What to ask for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Servers {
    /// The resolver's file, `/etc/resolv.conf` outside tests.
    pub file: PathBuf,
    /// The servers, best first.
    pub servers: Vec<IpAddr>,
    /// Search domains.
    pub domains: Vec<String>,
}

/// What came of it.
#[derive(Debug)]
pub enum Outcome {
    /// The servers are in force until the guard is undone.
    InForce(DnsGuard),
    /// Another program manages the resolver; nothing was changed. The sentence is for the status.
    LeftAlone(String),
}

/// The gateway's servers, in force until undone; a crash is cleaned up by the journal.
#[derive(Debug)]
pub struct DnsGuard {
    entry: Entry,
    change: ResolverFile,
    undone: bool,
}

/// Puts the servers in force. Journals first.
///
/// # Errors
/// What the file system says; nothing is changed then.
pub fn apply(wanted: &Servers, journal: &mut Journal) -> io::Result<Outcome> {
    imp::apply(wanted, journal)
}

/// Undoes a change that a crashed helper left behind.
///
/// # Errors
/// What the file system says.
pub fn undo_leftover(change: &ResolverFile) -> io::Result<()> {
    imp::restore(change)
}

impl DnsGuard {
    /// Puts the resolver back as it was, unless somebody else has changed it since.
    ///
    /// # Errors
    /// What the file system says; the journal keeps the change then.
    pub fn undo(mut self, journal: &mut Journal) -> io::Result<()> {
        self.undone = true;
        imp::restore(&self.change)?;
        journal.strike(self.entry)
    }
}

impl Drop for DnsGuard {
    fn drop(&mut self) {
        if !self.undone
            && let Err(error) = imp::restore(&self.change)
        {
            tracing::error!(%error, "the resolver file could not be put back; the next start tries again");
        }
    }
}
