//! Writing files so that a crash leaves the old one or the new one, and nobody else can read it.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, OFlags, linkat};
use zeroize::Zeroizing;

/// Replaces a file in one step, mode 0600, on disk when this returns.
///
/// # Errors
/// Whatever the OS says; the old file is still there then.
pub fn write_private(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let temporary = beside(path);
    // Of a process with our number that was killed: in a container every gateway has the same.
    let _ = fs::remove_file(&temporary);
    let written = write_new(&temporary, bytes, 0o600).and_then(|()| fs::rename(&temporary, path));
    if written.is_err() {
        let _ = fs::remove_file(&temporary); // it may not be there; the first error is what counts
    }
    written?;
    sync_folder(path)
}

/// Makes a file that must not exist yet, on disk when this returns. Whoever kills us meanwhile finds all of it or none.
///
/// # Errors
/// [`io::ErrorKind::AlreadyExists`], or whatever the OS says; nothing stays behind then.
pub fn write_new(path: &Path, bytes: &[u8], mode: u32) -> io::Result<()> {
    let written = match write_nameless(path, bytes, mode) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => write_named(path, bytes, mode),
        done => done,
    };
    written.and_then(|()| sync_folder(path))
}

/// A file without a name gets its name once it is whole. Some file systems have none such (NFS), and it takes `/proc`.
fn write_nameless(path: &Path, bytes: &[u8], mode: u32) -> io::Result<()> {
    let mut file =
        OpenOptions::new().write(true).mode(mode).custom_flags(OFlags::TMPFILE.bits() as i32).open(folder(path))?;
    file.write_all(bytes)?;
    file.sync_all()?;
    let nameless = format!("/proc/self/fd/{}", file.as_raw_fd());
    Ok(linkat(CWD, nameless, CWD, path, AtFlags::SYMLINK_FOLLOW)?)
}

fn write_named(path: &Path, bytes: &[u8], mode: u32) -> io::Result<()> {
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
    File::open(folder(path))?.sync_all()
}

fn folder(path: &Path) -> &Path {
    path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."))
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
        fs::write(beside(&path), "torn by a kill").unwrap();
        write_private(&path, b"newest").unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"newest");
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_new_file_is_made_with_and_without_a_name_at_first() {
        let folder = tempfile::tempdir().unwrap();
        for (name, write) in
            [("nameless", write_nameless as fn(&Path, &[u8], u32) -> io::Result<()>), ("named", write_named)]
        {
            let path = folder.path().join(name);
            write(&path, b"x", 0o640).unwrap();
            assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o640);
            assert_eq!(write(&path, b"y", 0o640).unwrap_err().kind(), io::ErrorKind::AlreadyExists);
            assert_eq!(fs::read(&path).unwrap(), b"x");
        }
        assert_eq!(write_new(&folder.path().join("no/where"), b"", 0o600).unwrap_err().kind(), io::ErrorKind::NotFound);
    }
}
