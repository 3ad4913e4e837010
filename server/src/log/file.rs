//! The log in a file (`log.file`), for machines without a journal. Opened for appending, and again when
//! logrotate has moved it away ([`super::reopen`]).

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

/// The file cannot be had.
#[derive(Debug, thiserror::Error)]
#[error("cannot write the log {}: {error}; make its folder, or set log.file", .path.display())]
pub struct LogFileError {
    path: PathBuf,
    error: io::Error,
}

/// One file for every thread. Cheap to clone.
#[derive(Clone, Debug)]
pub(super) struct LogFile {
    path: PathBuf,
    // Locked for one write of one line, or to put another file in its place.
    file: Arc<Mutex<File>>,
}

impl LogFile {
    pub(super) fn open(path: &Path) -> Result<Self, LogFileError> {
        let file = append(path).map_err(|error| LogFileError { path: path.to_owned(), error })?;
        Ok(Self { path: path.to_owned(), file: Arc::new(Mutex::new(file)) })
    }

    /// Opens whatever has the name now. The old file stays in use when that fails.
    pub(super) fn reopen(&self) -> Result<(), LogFileError> {
        let file = append(&self.path).map_err(|error| LogFileError { path: self.path.clone(), error })?;
        *self.file.lock().unwrap_or_else(PoisonError::into_inner) = file;
        Ok(())
    }
}

impl Write for LogFile {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        self.file.lock().unwrap_or_else(PoisonError::into_inner).write(line)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(()) // nothing is buffered
    }
}

/// Addresses and names are in it: for its owner, and a group that reads logs.
fn append(path: &Path) -> io::Result<File> {
    OpenOptions::new().append(true).create(true).mode(0o640).open(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn after_a_rotation_lines_go_into_the_new_file() {
        let folder = tempfile::tempdir().unwrap();
        let (path, rotated) = (folder.path().join("log"), folder.path().join("log.1"));
        std::fs::write(&path, "before\n").unwrap();
        let mut log = LogFile::open(&path).unwrap();
        log.clone().write_all(b"one\n").unwrap();
        std::fs::rename(&path, &rotated).unwrap();
        log.write_all(b"two\n").unwrap();
        log.reopen().unwrap();
        log.write_all(b"three\n").unwrap();
        assert_eq!(std::fs::read_to_string(rotated).unwrap(), "before\none\ntwo\n");
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "three\n");
    }

    #[test]
    fn a_log_that_cannot_be_opened_again_goes_on_in_the_old_file() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("log");
        let mut log = LogFile::open(&path).unwrap();
        std::fs::remove_file(&path).unwrap();
        std::fs::create_dir(&path).unwrap();
        let told = log.reopen().unwrap_err().to_string();
        assert!(told.contains("set log.file"), "{told}");
        log.write_all(b"still\n").unwrap();
    }
}
