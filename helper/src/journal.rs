//! What this helper has changed on the machine, on disk before it is changed.
//!
//! Each [`Change`] says enough to undo it without any other memory, and undoing it twice does no
//! harm. After a crash the next start undoes what is left, newest first. The file is one JSON
//! object a line; a line that a crash cut short was written before its change was made, so it is
//! ignored. Not here: how a change is undone (`routes`, `dns`).

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

/// One change to the machine, and what was there before.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "change", rename_all = "snake_case")]
pub enum Change {
    /// Policy rules that send unmarked packets to a routing table of ours, and that table.
    PolicyRouting {
        /// The routing table's number, which is ours alone.
        table: u32,
        /// The firewall mark of the tunnel's own packets.
        fwmark: u32,
    },
    /// A kernel parameter.
    Sysctl {
        /// Its path below `/proc/sys`.
        key: String,
        /// The value before.
        was: String,
        /// The value we set. Put back only while this is what is there.
        set: String,
    },
    /// What this helper contributes to resolvconf(8).
    Resolvconf {
        /// Under which name.
        record: String,
    },
    /// The resolver's file. Put back only while it holds what we wrote.
    ResolverFile(ResolverFile),
}

/// A resolver file before and after.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ResolverFile {
    /// The file.
    pub path: PathBuf,
    /// Where it pointed before, when it was a symbolic link.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub link: Option<PathBuf>,
    /// Its bytes before, base64; absent when there was no such file.
    pub was: Option<String>,
    /// Permission bits before.
    pub mode: u32,
    /// Owner before.
    pub uid: u32,
    /// Group before.
    pub gid: u32,
    /// The bytes that we wrote.
    pub set: String,
}

/// Names one recorded change.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Entry(u64);

#[derive(Serialize, Deserialize)]
#[serde(untagged)]
enum Line {
    Made { made: Entry, what: Change },
    Undone { undone: Entry },
}

/// The journal, open for one helper. Two helpers need two state directories.
#[derive(Debug)]
pub struct Journal {
    path: PathBuf,
    file: File,
    entries: Vec<(Entry, Change)>,
    next: u64,
}

impl Journal {
    /// Opens or makes `DIR/journal`.
    ///
    /// # Errors
    /// What the file system says, or that another helper holds the journal.
    pub fn open(dir: &Path) -> io::Result<Self> {
        let path = dir.join("journal");
        let file = OpenOptions::new().read(true).append(true).create(true).mode(0o600).open(&path)?;
        if let Err(error) = file.try_lock() {
            return Err(match error {
                std::fs::TryLockError::WouldBlock => {
                    let text = format!("another helper uses the state directory {}", dir.display());
                    io::Error::new(io::ErrorKind::ResourceBusy, text)
                }
                std::fs::TryLockError::Error(error) => error,
            });
        }
        let text = std::fs::read(&path)?;
        let mut entries: Vec<(Entry, Change)> = Vec::new();
        for line in text.split(|byte| *byte == b'\n') {
            match serde_json::from_slice(line) {
                Ok(Line::Made { made, what }) => entries.push((made, what)),
                Ok(Line::Undone { undone }) => entries.retain(|(entry, _)| *entry != undone),
                Err(_) => {}
            }
        }
        let next = entries.iter().map(|(Entry(number), _)| number + 1).max().unwrap_or(0);
        let mut journal = Self { path, file, entries, next };
        if !text.is_empty() && !text.ends_with(b"\n") {
            journal.append(b"\n")?; // ends a line that was cut short
        }
        Ok(journal)
    }

    /// Writes a change down. On return it is on the disk and may be made.
    ///
    /// # Errors
    /// What the file system says; the change must not be made then.
    pub fn record(&mut self, change: Change) -> io::Result<Entry> {
        let entry = Entry(self.next);
        self.write(&Line::Made { made: entry, what: change.clone() })?;
        self.next += 1;
        self.entries.push((entry, change));
        Ok(entry)
    }

    /// Strikes a change that has been undone.
    ///
    /// # Errors
    /// What the file system says; undoing it again later does no harm.
    pub fn strike(&mut self, entry: Entry) -> io::Result<()> {
        self.entries.retain(|(known, _)| *known != entry);
        if self.entries.is_empty() {
            self.file.set_len(0)?;
            return self.file.sync_all();
        }
        self.write(&Line::Undone { undone: entry })
    }

    /// What is in force, newest first.
    pub fn in_force(&self) -> Vec<(Entry, Change)> {
        self.entries.iter().rev().cloned().collect()
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    fn write(&mut self, line: &Line) -> io::Result<()> {
        let mut bytes = serde_json::to_vec(line)?;
        bytes.push(b'\n');
        self.append(&bytes)
    }

    /// All of the bytes or none: half a line would swallow the next one.
    fn append(&mut self, bytes: &[u8]) -> io::Result<()> {
        let before = self.file.metadata()?.len();
        let written = self.file.write_all(bytes).and_then(|()| self.file.sync_data());
        if written.is_err() {
            let _ = self.file.set_len(before); // the first error says more
        }
        written
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_not_undone_is_found_again_newest_first() {
        let dir = tempfile::tempdir().unwrap();
        let mut journal = Journal::open(dir.path()).unwrap();
        let first = journal.record(sysctl("a")).unwrap();
        journal.record(sysctl("b")).unwrap();
        journal.record(sysctl("c")).unwrap();
        journal.strike(first).unwrap();
        drop(journal);
        let journal = Journal::open(dir.path()).unwrap();
        let left: Vec<Change> = journal.in_force().into_iter().map(|(_, change)| change).collect();
        assert_eq!(left, [sysctl("c"), sysctl("b")]);
    }

    #[test]
    fn a_journal_cut_short_at_any_byte_keeps_every_whole_line() {
        let dir = tempfile::tempdir().unwrap();
        let mut journal = Journal::open(dir.path()).unwrap();
        for key in ["a", "b", "c"] {
            journal.record(sysctl(key)).unwrap();
        }
        drop(journal);
        let path = dir.path().join("journal");
        let whole = std::fs::read(&path).unwrap();
        for cut in 0..whole.len() {
            std::fs::write(&path, &whole[..cut]).unwrap();
            let mut journal = Journal::open(dir.path()).unwrap();
            // A line is whole with its last brace; the newline adds nothing.
            let lines = whole[..cut].split_inclusive(|byte| *byte == b'\n');
            let complete = lines.filter(|line| serde_json::from_slice::<serde_json::Value>(line).is_ok()).count();
            assert_eq!(journal.in_force().len(), complete, "cut at {cut}");
            journal.record(sysctl("d")).unwrap();
            drop(journal);
            let journal = Journal::open(dir.path()).unwrap();
            assert_eq!(journal.in_force().len(), complete + 1, "cut at {cut}, then continued");
        }
    }

    #[test]
    fn an_empty_journal_is_an_empty_file() {
        let dir = tempfile::tempdir().unwrap();
        let mut journal = Journal::open(dir.path()).unwrap();
        let entry = journal.record(sysctl("a")).unwrap();
        journal.strike(entry).unwrap();
        assert_eq!(std::fs::metadata(journal.path()).unwrap().len(), 0);
        journal.record(sysctl("b")).unwrap();
        drop(journal);
        assert_eq!(Journal::open(dir.path()).unwrap().in_force().len(), 1);
    }

    #[test]
    fn two_helpers_cannot_share_a_journal() {
        let dir = tempfile::tempdir().unwrap();
        let _first = Journal::open(dir.path()).unwrap();
        let second = Journal::open(dir.path()).unwrap_err();
        assert!(second.to_string().contains("another helper"), "{second}");
    }

    fn sysctl(key: &str) -> Change {
        Change::Sysctl { key: key.into(), was: "0".into(), set: "2".into() }
    }
}
