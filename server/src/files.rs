//! Writing files so that a crash leaves the old one or the new one, and nobody else can read it.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use zeroize::Zeroizing;

/// Replaces a file in one step, mode 0600, on disk when this returns.
///
/// # Errors
/// Whatever the OS says; the old file is still there then.
pub fn write_private(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let temporary = beside(path);
    let written = write_new(&temporary, bytes, 0o600).and_then(|()| fs::rename(&temporary, path));
    if written.is_err() {
        let _ = fs::remove_file(&temporary); // it may not be there; the first error is what counts
    }
    written?;
    sync_folder(path)
}

/// Makes a file that must not exist yet, on disk when this returns.
///
/// # Errors
/// [`io::ErrorKind::AlreadyExists`], or whatever the OS says; nothing stays behind then.
pub fn write_new(path: &Path, bytes: &[u8], mode: u32) -> io::Result<()> {
    let mut file = OpenOptions::new().write(true).create_new(true).mode(mode).open(path)?;
    let written = file.write_all(bytes).and_then(|()| file.sync_all());
    if written.is_err() {
        let _ = fs::remove_file(path); // ours, and useless
    }
    written
}

/// Makes changes of names in the folder of `path` last.
///
/// # Errors
/// Whatever the OS says.
pub fn sync_folder(path: &Path) -> io::Result<()> {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    File::open(folder)?.sync_all()
}

/// The first line of what holds a password, without its end; at most 4 KiB are read.
///
/// # Errors
/// Whatever the OS says.
pub fn first_line(from: &mut impl Read) -> io::Result<Zeroizing<String>> {
    const MOST: u64 = 4096;
    let mut text = Zeroizing::new(String::new());
    from.take(MOST).read_to_string(&mut text)?;
    Ok(Zeroizing::new(text.lines().next().unwrap_or_default().to_owned()))
}

fn beside(path: &Path) -> PathBuf {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(format!(".{}.new", std::process::id()));
    path.with_file_name(name)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn a_replaced_file_is_private_and_leaves_nothing_beside_it() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file");
        fs::write(&path, "old").unwrap();
        write_private(&path, b"new").unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"new");
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
        assert_eq!(write_new(&path, b"x", 0o600).unwrap_err().kind(), io::ErrorKind::AlreadyExists);
        assert_eq!(fs::read(&path).unwrap(), b"new");
    }
}
