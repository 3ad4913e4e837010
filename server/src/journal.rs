//! What this gateway changed on the host, on disk before it is changed.
//!
//! A crash leaves the journal behind; the next start, or `cleanup`, undoes what it says. The file
//! is gone when there is nothing to undo. Old settings go back only where they are still the ones
//! to have: not after a reboot, and not under another gateway that forwards by them.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::files;
use crate::{forwarding, nat};

/// One kernel setting as it was.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Setting {
    /// Below `/proc/sys`.
    pub path: PathBuf,
    /// Its old text.
    pub was: String,
}

/// Changes in force, and the file that lists them.
#[derive(Debug)]
pub struct Journal {
    path: PathBuf,
    entries: Entries,
}

#[derive(Debug, Default, Serialize, Deserialize)]
struct Entries {
    /// Which boot the changes belong to: the kernel's settings start anew with the next.
    #[serde(default)]
    boot: String,
    tables: Vec<String>,
    settings: Vec<Setting>,
}

/// The journal cannot be kept.
#[derive(Debug, thiserror::Error)]
#[error("cannot write {}, so nothing on this host was changed: {error}", .path.display())]
pub struct JournalError {
    path: PathBuf,
    error: io::Error,
}

impl Journal {
    /// Undoes what an earlier run left in `folder`, and begins anew. Returns true with it when
    /// there was something to undo.
    ///
    /// # Errors
    /// [`nat::NatError`] when a table cannot be removed, or it cannot be seen whether another
    /// gateway needs the settings; the journal stays then.
    pub fn open(folder: &Path) -> Result<(Self, bool), nat::NatError> {
        let path = folder.join("journal.json");
        let left: Option<Entries> = match fs::read(&path) {
            // One that cannot be read was never completed, so nothing had been changed yet.
            Ok(bytes) => serde_json::from_slice(&bytes).ok(),
            Err(_) => None,
        };
        let mut this = Self { path, entries: Entries::new() };
        let Some(left) = left else {
            return Ok((this, false));
        };
        this.entries = left;
        this.undo()?;
        Ok((this, true))
    }

    /// Notes a setting about to be changed.
    ///
    /// # Errors
    /// [`JournalError`]: leave it unchanged.
    pub fn add(&mut self, setting: Setting) -> Result<(), JournalError> {
        self.entries.settings.push(setting);
        self.write()
    }

    /// Notes an nftables table about to be made.
    ///
    /// # Errors
    /// [`JournalError`]: do not make it.
    pub fn add_table(&mut self, table: String) -> Result<(), JournalError> {
        self.entries.tables.push(table);
        self.write()
    }

    /// Everything was undone by its owner.
    pub fn clear(&mut self) {
        self.entries = Entries::new();
        self.remove();
    }

    fn undo(&mut self) -> Result<(), nat::NatError> {
        for table in &self.entries.tables {
            nat::remove(table)?;
        }
        let mut ours = std::mem::take(&mut self.entries.settings);
        ours.retain(|setting| forwarding::is_ours(&setting.path));
        // Our own tables are gone by now: any that is left is another gateway's.
        if self.entries.is_of_this_boot() && !ours.is_empty() && !nat::other_gateways("")? {
            forwarding::restore(&ours);
        }
        self.clear();
        Ok(())
    }

    fn write(&self) -> Result<(), JournalError> {
        let failed = |error| JournalError { path: self.path.clone(), error };
        let text = serde_json::to_vec(&self.entries).map_err(|error| failed(error.into()))?;
        files::write_private(&self.path, &text).map_err(failed)
    }

    fn remove(&self) {
        if let Err(error) = fs::remove_file(&self.path)
            && error.kind() != io::ErrorKind::NotFound
        {
            tracing::warn!(path = %self.path.display(), %error, "the journal stays and will be undone again");
        }
    }
}

impl Entries {
    fn new() -> Self {
        Self { boot: boot_id(), ..Self::default() }
    }

    fn is_of_this_boot(&self) -> bool {
        !self.boot.is_empty() && self.boot == boot_id()
    }
}

/// This boot's random name (random(4)); empty where the kernel tells none.
fn boot_id() -> String {
    fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default().trim().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_torn_journal_is_passed_over() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("journal.json"), "{\"tables\":[").unwrap();
        let (_, undone) = Journal::open(folder.path()).unwrap();
        assert!(!undone);
    }

    #[test]
    fn nothing_outside_the_kernels_switches_is_ever_written() {
        let folder = tempfile::tempdir().unwrap();
        let victim = folder.path().join("victim");
        fs::write(&victim, "kept").unwrap();
        let (mut journal, _) = Journal::open(folder.path()).unwrap();
        journal.add(Setting { path: victim.clone(), was: "lost".into() }).unwrap();
        let (_, undone) = Journal::open(folder.path()).unwrap();
        assert!(undone);
        assert_eq!(fs::read_to_string(victim).unwrap(), "kept");
        assert!(!folder.path().join("journal.json").exists());
    }
}
