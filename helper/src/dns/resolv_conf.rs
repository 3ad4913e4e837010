//! A plain `/etc/resolv.conf` (resolv.conf(5)): the file that every libc reads.
//!
//! A link to another program's file is replaced itself, and what it points to is never touched.
//! Replaced by rename, so that no reader sees half of it; written in place where a rename is
//! refused (the file is a mount of its own, as `ip netns exec` and containers make it). Put back
//! with the same bytes, mode and owner, and only while it still holds what we wrote.

use std::fs::{self, OpenOptions, Permissions};
use std::io::{self, ErrorKind, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt, chown};
use std::path::Path;

use data_encoding::BASE64;

use super::Servers;
use crate::journal::{Change, Entry, Journal, ResolverFile};

/// Marks the file as ours, for people who look into it.
const HEADER: &str = "# Written by culvert-helper while the VPN is connected; the file before comes back afterwards.\n";
/// resolv.conf(5): MAXNS.
const MAX_SERVERS: usize = 3;
/// A larger file is not a resolver's.
const MAX_FILE: u64 = 64 * 1024;

/// Journals, then writes. On an error the file is as it was.
pub(super) fn apply(wanted: &Servers, journal: &mut Journal) -> io::Result<(Entry, ResolverFile)> {
    let path = &wanted.file;
    let link = fs::read_link(path).ok();
    let before = match fs::metadata(path) {
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
        link,
        was: before.as_ref().map(|(bytes, _)| BASE64.encode(bytes)),
        mode: before.as_ref().map_or(0o644, |(_, meta)| meta.mode() & 0o7777),
        uid: before.as_ref().map_or(0, |(_, meta)| meta.uid()),
        gid: before.as_ref().map_or(0, |(_, meta)| meta.gid()),
        set,
    };
    let entry = journal.record(Change::ResolverFile(change.clone()))?;
    if let Err(error) = write(&change, change.set.as_bytes()) {
        if let Err(second) = restore(&change).and_then(|()| journal.strike(entry)) {
            tracing::error!(error = %second, "the resolver file could not be put back");
        }
        return Err(error);
    }
    Ok((entry, change))
}

/// True while the file holds what we wrote.
pub(super) fn is_ours(change: &ResolverFile) -> bool {
    fs::read(&change.path).is_ok_and(|now| now == change.set.as_bytes()) && fs::read_link(&change.path).is_err()
}

pub(super) fn restore(change: &ResolverFile) -> io::Result<()> {
    let _ = fs::remove_file(temporary(&change.path)); // of a crash between write and rename
    let now = match fs::read(&change.path) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error),
    };
    // A crash in the middle of a write in place leaves a beginning of our text, or nothing.
    if !change.set.as_bytes().starts_with(&now) || fs::read_link(&change.path).is_ok() {
        return Ok(()); // somebody else wrote it: theirs wins
    }
    if let Some(target) = &change.link {
        let temporary = temporary(&change.path);
        std::os::unix::fs::symlink(target, &temporary)?;
        return fs::rename(&temporary, &change.path);
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
    if change.link.is_some() {
        return Err(error); // in place would be in the other program's file
    }
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
        let guard = bench.apply(&mut journal);
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
        let guard = bench.apply(&mut journal);
        let ours = fs::read(&bench.wanted.file).unwrap();
        drop(guard);
        for cut in [ours.len(), ours.len() / 2, 0] {
            fs::write(&bench.wanted.file, &ours[..cut]).unwrap(); // as a kill would leave it
            let [(_, Change::ResolverFile(change))] = &journal.in_force()[..] else { panic!("not journaled") };
            restore(change).unwrap();
            assert_eq!(fs::read_to_string(&bench.wanted.file).unwrap(), "nameserver 192.0.2.1\n");
        }
    }

    #[test]
    fn a_file_that_somebody_else_wrote_meanwhile_stays() {
        let bench = Bench::new();
        fs::write(&bench.wanted.file, "nameserver 192.0.2.1\n").unwrap();
        let mut journal = bench.journal();
        let guard = bench.apply(&mut journal);
        fs::write(&bench.wanted.file, "nameserver 198.51.100.1\n").unwrap();
        guard.undo(&mut journal).unwrap();
        assert_eq!(fs::read_to_string(&bench.wanted.file).unwrap(), "nameserver 198.51.100.1\n");
    }

    #[test]
    fn a_link_to_another_programs_file_is_a_link_again_and_that_file_is_never_touched() {
        let bench = Bench::new();
        let target = bench.dir.path().join("theirs");
        std::os::unix::fs::symlink("../theirs", &bench.wanted.file).unwrap();
        for theirs in [None, Some("nameserver 192.0.2.1\noptions edns0\n")] {
            theirs.inspect(|text| fs::write(&target, text).unwrap());
            let mut journal = bench.journal();
            let guard = bench.apply(&mut journal);
            let text = fs::read_to_string(&bench.wanted.file).unwrap();
            assert!(text.contains("nameserver 100.77.0.1\n"), "{text}");
            assert_eq!(fs::read_to_string(&target).ok().as_deref(), theirs);
            guard.undo(&mut journal).unwrap();
            assert_eq!(fs::read_link(&bench.wanted.file).unwrap(), Path::new("../theirs"));
            assert_eq!(fs::read_to_string(&target).ok().as_deref(), theirs);
            assert_eq!(journal.in_force(), []);
        }
    }

    #[test]
    fn a_link_that_somebody_made_meanwhile_stays() {
        let bench = Bench::new();
        fs::write(&bench.wanted.file, "nameserver 192.0.2.1\n").unwrap();
        let mut journal = bench.journal();
        let guard = bench.apply(&mut journal);
        let target = bench.dir.path().join("theirs");
        fs::rename(&bench.wanted.file, &target).unwrap(); // even with our text behind it
        std::os::unix::fs::symlink(&target, &bench.wanted.file).unwrap();
        guard.undo(&mut journal).unwrap();
        assert_eq!(fs::read_link(&bench.wanted.file).unwrap(), target);
    }

    #[test]
    fn a_missing_file_is_missing_again_afterwards() {
        let bench = Bench::new();
        let mut journal = bench.journal();
        let guard = bench.apply(&mut journal);
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
        let wanted = Servers { servers: vec!["192.0.2.9".parse().unwrap()], domains: vec![], ..Bench::new().wanted };
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
                device: "culvert0".into(),
                addresses: vec![],
                all: true,
                servers: vec!["100.77.0.1".parse().unwrap(), "fd00::1".parse().unwrap()],
                domains: vec!["acme.example".into()],
            };
            Self { dir, wanted }
        }

        fn journal(&self) -> Journal {
            Journal::open(self.dir.path()).unwrap()
        }

        fn apply(&self, journal: &mut Journal) -> Guard {
            let (entry, change) = apply(&self.wanted, journal).unwrap();
            Guard { entry, change }
        }
    }

    /// What was put in force.
    struct Guard {
        entry: Entry,
        change: ResolverFile,
    }

    impl Guard {
        fn undo(self, journal: &mut Journal) -> io::Result<()> {
            restore(&self.change)?;
            journal.strike(self.entry)
        }
    }
}
