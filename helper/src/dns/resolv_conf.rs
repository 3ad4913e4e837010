//! A plain `/etc/resolv.conf` (resolv.conf(5)): the file that every libc reads.
//!
//! Replaced by rename, so that no reader sees half of it; written in place where a rename is
//! refused (the file is a mount of its own, as `ip netns exec` and containers make it). Put back
//! with the same bytes, mode and owner, and only while it still holds what we wrote.

use std::fs::{self, OpenOptions, Permissions};
use std::io::{self, ErrorKind, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt, chown};
use std::path::Path;

use data_encoding::BASE64;

use super::{DnsGuard, Outcome, Servers};
use crate::journal::{Change, Journal, ResolverFile};

/// Marks the file as ours, for people who look into it.
const HEADER: &str = "# Written by culvert-helper while the VPN is connected; the file before comes back afterwards.\n";
/// resolv.conf(5): MAXNS.
const MAX_SERVERS: usize = 3;
/// A larger file is not a resolver's.
const MAX_FILE: u64 = 64 * 1024;

pub(super) fn apply(wanted: &Servers, journal: &mut Journal) -> io::Result<Outcome> {
    let path = &wanted.file;
    let before = match fs::symlink_metadata(path) {
        Ok(meta) if meta.is_symlink() => {
            let target = fs::read_link(path)?;
            return Ok(Outcome::LeftAlone(format!(
                "{} is managed by another program ({}), so the gateway's name servers are not used",
                path.display(),
                target.display()
            )));
        }
        Ok(meta) if meta.len() > MAX_FILE => {
            return Err(io::Error::other(format!(
                "{} has {} bytes, which no resolver reads",
                path.display(),
                meta.len()
            )));
        }
        Ok(meta) => Some((fs::read(path)?, meta)),
        Err(error) if error.kind() == ErrorKind::NotFound => None,
        Err(error) => return Err(error),
    };
    let set = text(wanted, before.as_ref().map(|(bytes, _)| bytes.as_slice()));
    let change = ResolverFile {
        path: path.clone(),
        was: before.as_ref().map(|(bytes, _)| BASE64.encode(bytes)),
        mode: before.as_ref().map_or(0o644, |(_, meta)| meta.mode() & 0o7777),
        uid: before.as_ref().map_or(0, |(_, meta)| meta.uid()),
        gid: before.as_ref().map_or(0, |(_, meta)| meta.gid()),
        set,
    };
    let entry = journal.record(Change::ResolverFile(change.clone()))?;
    let guard = DnsGuard { entry, change, undone: false };
    match write(&guard.change, guard.change.set.as_bytes()) {
        Ok(()) => Ok(Outcome::InForce(guard)),
        Err(error) => {
            if let Err(second) = guard.undo(journal) {
                tracing::error!(error = %second, "the resolver file could not be put back");
            }
            Err(error)
        }
    }
}

pub(super) fn restore(change: &ResolverFile) -> io::Result<()> {
    let _ = fs::remove_file(temporary(&change.path)); // of a crash between write and rename
    let now = match fs::read(&change.path) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error),
    };
    // A crash in the middle of a write in place leaves a beginning of our text, or nothing.
    if !change.set.as_bytes().starts_with(&now) {
        return Ok(()); // somebody else wrote it: theirs wins
    }
    match &change.was {
        None => fs::remove_file(&change.path),
        Some(was) => {
            let was = BASE64.decode(was.as_bytes()).map_err(io::Error::other)?;
            write(change, &was)
        }
    }
}

fn text(wanted: &Servers, before: Option<&[u8]>) -> String {
    let mut text = String::from(HEADER);
    for server in wanted.servers.iter().take(MAX_SERVERS) {
        text.push_str(&format!("nameserver {server}\n"));
    }
    let before = String::from_utf8_lossy(before.unwrap_or_default());
    if wanted.domains.is_empty() {
        let kept = before.lines().filter(|line| ["search", "domain"].iter().any(|word| is_keyword(line, word)));
        kept.for_each(|line| text.push_str(&format!("{line}\n")));
    } else {
        text.push_str(&format!("search {}\n", wanted.domains.join(" ")));
    }
    let options = before.lines().filter(|line| is_keyword(line, "options"));
    options.for_each(|line| text.push_str(&format!("{line}\n")));
    text
}

fn is_keyword(line: &str, word: &str) -> bool {
    line.strip_prefix(word).is_some_and(|rest| rest.starts_with([' ', '\t']))
}

fn temporary(path: &Path) -> std::path::PathBuf {
    path.with_file_name(".resolv.conf.culvert")
}

/// Replaces the file with `bytes`, with the mode and owner of the file before.
fn write(change: &ResolverFile, bytes: &[u8]) -> io::Result<()> {
    let temporary = temporary(&change.path);
    let replaced = (|| {
        let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&temporary)?;
        file.write_all(bytes)?;
        chown(&temporary, Some(change.uid), Some(change.gid))?;
        file.set_permissions(Permissions::from_mode(change.mode))?;
        file.sync_all()?;
        fs::rename(&temporary, &change.path)
    })();
    let Err(error) = replaced else { return Ok(()) };
    let _ = fs::remove_file(&temporary);
    // Only where a replacement can never work: in place the old text is gone before the new is
    // there, which on a full disk would leave neither.
    if !matches!(
        error.kind(),
        ErrorKind::ResourceBusy
            | ErrorKind::CrossesDevices
            | ErrorKind::ReadOnlyFilesystem
            | ErrorKind::PermissionDenied
    ) {
        return Err(error);
    }
    tracing::debug!(%error, "the resolver file cannot be replaced, so it is written in place");
    let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(change.mode).open(&change.path)?;
    file.write_all(bytes)?;
    file.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;
    use tempfile::TempDir;

    #[test]
    fn the_file_comes_back_with_its_bytes_mode_and_owner() {
        let bench = Bench::new();
        let odd = b"nameserver 192.0.2.1\n\xff\xfe no newline at the end";
        fs::write(&bench.wanted.file, odd).unwrap();
        fs::set_permissions(&bench.wanted.file, Permissions::from_mode(0o640)).unwrap();
        let before = fs::metadata(&bench.wanted.file).unwrap();
        let mut journal = bench.journal();
        let Outcome::InForce(guard) = apply(&bench.wanted, &mut journal).unwrap() else { panic!("left alone") };
        let text = fs::read_to_string(&bench.wanted.file).unwrap();
        assert!(text.contains("nameserver 100.77.0.1\nnameserver fd00::1\nsearch acme.example\n"), "{text}");
        guard.undo(&mut journal).unwrap();
        assert_eq!(fs::read(&bench.wanted.file).unwrap(), odd);
        let after = fs::metadata(&bench.wanted.file).unwrap();
        assert_eq!((after.mode(), after.uid(), after.gid()), (before.mode(), before.uid(), before.gid()));
        assert_eq!(journal.in_force(), []);
        assert_eq!(fs::read_dir(bench.wanted.file.parent().unwrap()).unwrap().count(), 1, "a file was left behind");
    }

    #[test]
    fn a_helper_that_was_killed_is_cleaned_up_after() {
        let bench = Bench::new();
        fs::write(&bench.wanted.file, "nameserver 192.0.2.1\n").unwrap();
        let mut journal = bench.journal();
        let Outcome::InForce(guard) = apply(&bench.wanted, &mut journal).unwrap() else { panic!("left alone") };
        let ours = fs::read(&bench.wanted.file).unwrap();
        drop(guard);
        for cut in [ours.len(), ours.len() / 2, 0] {
            fs::write(&bench.wanted.file, &ours[..cut]).unwrap(); // as a kill would leave it
            let [(_, Change::ResolverFile(change))] = &journal.in_force()[..] else { panic!("not journaled") };
            super::super::undo_leftover(change).unwrap();
            assert_eq!(fs::read_to_string(&bench.wanted.file).unwrap(), "nameserver 192.0.2.1\n");
        }
    }

    #[test]
    fn a_file_that_somebody_else_wrote_meanwhile_stays() {
        let bench = Bench::new();
        fs::write(&bench.wanted.file, "nameserver 192.0.2.1\n").unwrap();
        let mut journal = bench.journal();
        let Outcome::InForce(guard) = apply(&bench.wanted, &mut journal).unwrap() else { panic!("left alone") };
        fs::write(&bench.wanted.file, "nameserver 198.51.100.1\n").unwrap();
        guard.undo(&mut journal).unwrap();
        assert_eq!(fs::read_to_string(&bench.wanted.file).unwrap(), "nameserver 198.51.100.1\n");
    }

    #[test]
    fn a_file_that_another_program_manages_is_left_alone_and_named() {
        let bench = Bench::new();
        let target = bench.dir.path().join("stub-resolv.conf");
        fs::write(&target, "nameserver 127.0.0.53\n").unwrap();
        std::os::unix::fs::symlink(&target, &bench.wanted.file).unwrap();
        let mut journal = bench.journal();
        let Outcome::LeftAlone(note) = apply(&bench.wanted, &mut journal).unwrap() else { panic!("changed") };
        assert!(note.contains("stub-resolv.conf"), "{note}");
        assert_eq!(fs::read_to_string(&target).unwrap(), "nameserver 127.0.0.53\n");
        assert_eq!(journal.in_force(), []);
    }

    #[test]
    fn a_missing_file_is_missing_again_afterwards() {
        let bench = Bench::new();
        let mut journal = bench.journal();
        let Outcome::InForce(guard) = apply(&bench.wanted, &mut journal).unwrap() else { panic!("left alone") };
        assert!(bench.wanted.file.exists());
        guard.undo(&mut journal).unwrap();
        assert!(!bench.wanted.file.exists());
    }

    #[test]
    fn a_file_that_cannot_be_replaced_for_another_reason_is_not_touched() {
        let bench = Bench::new();
        fs::write(&bench.wanted.file, "nameserver 192.0.2.1\n").unwrap();
        // As a full disk would, this fails before the rename; in place it would "work".
        fs::create_dir(temporary(&bench.wanted.file)).unwrap();
        let mut journal = bench.journal();
        apply(&bench.wanted, &mut journal).unwrap_err();
        assert_eq!(fs::read_to_string(&bench.wanted.file).unwrap(), "nameserver 192.0.2.1\n");
        assert_eq!(journal.in_force(), []);
    }

    #[test]
    fn options_of_the_user_are_kept() {
        let wanted = Servers { file: "x".into(), servers: vec!["192.0.2.9".parse().unwrap()], domains: vec![] };
        let text = text(&wanted, Some(b"search home.arpa\noptions edns0 trust-ad\nnameserver 10.0.0.1\n"));
        assert!(text.ends_with("nameserver 192.0.2.9\nsearch home.arpa\noptions edns0 trust-ad\n"), "{text}");
    }

    struct Bench {
        dir: TempDir,
        wanted: Servers,
    }

    impl Bench {
        fn new() -> Self {
            let dir = tempfile::tempdir().unwrap();
            let etc = dir.path().join("etc");
            fs::create_dir(&etc).unwrap();
            let wanted = Servers {
                file: etc.join("resolv.conf"),
                servers: vec!["100.77.0.1".parse().unwrap(), "fd00::1".parse().unwrap()],
                domains: vec!["acme.example".into()],
            };
            Self { dir, wanted }
        }

        fn journal(&self) -> Journal {
            Journal::open(self.dir.path()).unwrap()
        }
    }
}
