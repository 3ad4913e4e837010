//! Linux: systemd-resolved, which routes names by domain; resolvconf; else the file itself, whoever wrote it. The last
//! two cannot route, so that all names go to the gateway where they are in use.

use std::fs;
use std::io;
use std::path::Path;
use std::time::Duration;

use tokio::time::{Instant, sleep_until};

use super::Servers;
use crate::journal::{Change, Entry, Journal, ResolverFile};
use crate::watch::FileWatch;

mod resolv_conf;
mod resolvconf;
mod resolved;

/// So long after the last change to the resolver's file it is looked at.
const QUIET: Duration = Duration::from_millis(200);
/// Another program that takes the file back more often than this within [`FIGHT`] keeps it.
const RETAKEN: usize = 5;
/// See [`RETAKEN`].
const FIGHT: Duration = Duration::from_secs(60);

/// The gateway's servers, in force until undone; a crash is cleaned up by the journal, or by resolved itself.
#[derive(Debug)]
pub struct DnsGuard {
    made: Option<Made>,
    /// What the machine cannot do, in a sentence.
    note: Option<String>,
    watch: Option<FileWatch>,
    /// When to look whether the file is still ours.
    look: Option<Instant>,
    /// When it was taken back.
    retaken: Vec<Instant>,
}

#[derive(Debug)]
enum Made {
    File { entry: Entry, change: ResolverFile },
    Resolvconf { entry: Entry, record: String },
    Resolved(resolved::Link),
}

impl DnsGuard {
    /// Puts the servers in force for the tunnel interface with this index. Journals first.
    ///
    /// # Errors
    /// What the resolver or the file system says; nothing is changed then.
    pub async fn apply(wanted: &Servers, index: u32, journal: &mut Journal) -> io::Result<Self> {
        let unrouted = || {
            let domains = wanted.domains.join(", ");
            (!wanted.all).then(|| format!(
                "This machine's resolver cannot look up only {domains} through the gateway, so all names are looked up there"
            ))
        };
        let text = match fs::read(&wanted.file) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            text => text.unwrap_or_default(),
        };
        if resolved::is_asked(&wanted.file, &text) {
            let link = resolved::Link::apply(wanted, index).await?;
            return Ok(Self::of(Made::Resolved(link), None));
        }
        if resolvconf::keeps(&wanted.file, &text) {
            let record = resolvconf::record(&wanted.device);
            let entry = journal.record(Change::Resolvconf { record: record.clone() })?;
            let guard = Self::of(Made::Resolvconf { entry, record: record.clone() }, unrouted());
            if let Err(error) = resolvconf::add(&record, wanted) {
                let _ = guard.undo(journal).await; // the first error says more
                return Err(error);
            }
            return Ok(guard);
        }
        let (entry, change) = resolv_conf::apply(wanted, journal)?;
        let mut guard = Self::of(Made::File { entry, change }, unrouted());
        guard.watch(&wanted.file);
        Ok(guard)
    }

    fn of(made: Made, note: Option<String>) -> Self {
        Self { made: Some(made), note, watch: None, look: None, retaken: Vec::new() }
    }

    /// Without it the file is as good, until another program writes it.
    fn watch(&mut self, file: &Path) {
        let opened = FileWatch::open(file);
        self.watch = opened.inspect_err(|error| tracing::warn!(%error, "the resolver's file cannot be watched")).ok();
    }

    /// Waits until another program has written the resolver's file: a DHCP client in another network, mostly.
    /// Cancel-safe.
    pub async fn taken(&mut self) {
        loop {
            let Some(watch) = &self.watch else { return std::future::pending().await };
            match self.look {
                None => {
                    watch.next().await;
                    self.look = Some(Instant::now() + QUIET);
                }
                Some(due) => tokio::select! {
                    () = watch.next() => {} // one burst is one look
                    () = sleep_until(due) => {
                        self.look = None;
                        if !self.is_in_force() {
                            return;
                        }
                    }
                },
            }
        }
    }

    /// Puts the servers in force again after [`Self::taken`]; what the other program wrote comes back at the end.
    ///
    /// # Errors
    /// What the file system says; the file is as the other program wrote it then.
    pub fn retake(&mut self, wanted: &Servers, journal: &mut Journal) -> io::Result<()> {
        let Some(Made::File { entry: old, .. }) = self.made else { return Ok(()) };
        let now = Instant::now();
        self.retaken.retain(|at| now - *at < FIGHT);
        if self.retaken.len() >= RETAKEN {
            let file = wanted.file.display();
            self.note = Some(format!("Another program keeps writing {file}, so names are looked up as it wants"));
            return Ok(());
        }
        self.retaken.push(now);
        let (entry, change) = resolv_conf::apply(wanted, journal)?;
        self.made = Some(Made::File { entry, change });
        journal.strike(old)
    }

    /// The resolver's file as the network wants it, where ours has taken its place.
    pub fn before(&self) -> Option<Vec<u8>> {
        match self.made.as_ref()? {
            Made::File { change, .. } => {
                let was = change.was.as_deref().unwrap_or_default();
                data_encoding::BASE64.decode(was.as_bytes()).ok()
            }
            Made::Resolvconf { .. } | Made::Resolved(_) => None,
        }
    }

    /// What the machine cannot do, in a sentence.
    pub fn note(&self) -> Option<&str> {
        self.note.as_deref()
    }

    /// True while what was put in force is there, as far as that can be seen.
    pub fn is_in_force(&self) -> bool {
        match &self.made {
            Some(Made::File { change, .. }) => resolv_conf::is_ours(change),
            Some(Made::Resolvconf { .. } | Made::Resolved(_)) => true,
            None => false,
        }
    }

    /// Puts the resolver back as it was, unless somebody else has changed it since.
    ///
    /// # Errors
    /// What the resolver or the file system says; the journal keeps the change then.
    pub async fn undo(mut self, journal: &mut Journal) -> io::Result<()> {
        match self.made.take() {
            None => Ok(()),
            Some(Made::File { entry, change }) => {
                resolv_conf::restore(&change)?;
                journal.strike(entry)
            }
            Some(Made::Resolvconf { entry, record }) => {
                resolvconf::delete(&record)?;
                journal.strike(entry)
            }
            // It forgets the link when that goes; being told sooner is a courtesy.
            Some(Made::Resolved(link)) => {
                if let Err(error) = link.revert().await {
                    tracing::debug!(%error, "systemd-resolved");
                }
                Ok(())
            }
        }
    }
}

impl Drop for DnsGuard {
    fn drop(&mut self) {
        let undone = match &self.made {
            Some(Made::File { change, .. }) => resolv_conf::restore(change),
            Some(Made::Resolvconf { record, .. }) => resolvconf::delete(record),
            Some(Made::Resolved(_)) => Ok(()),
            None => Ok(()),
        };
        if let Err(error) = undone {
            tracing::error!(%error, "the resolver could not be put back; the next start tries again");
        }
    }
}

/// Undoes a change to the resolver's file that a crashed helper left behind.
///
/// # Errors
/// What the file system says.
pub fn undo_file(change: &ResolverFile) -> io::Result<()> {
    resolv_conf::restore(change)
}

/// Takes back what a crashed helper contributed to resolvconf.
///
/// # Errors
/// What the program says.
pub fn undo_resolvconf(record: &str) -> io::Result<()> {
    resolvconf::delete(record)
}
