//! The journal on a disk that is really full: a tmpfs in a mount namespace of its own. Needs root.
#![allow(clippy::unwrap_used, reason = "a test's helpers may panic as its body does")]
#![cfg(target_os = "linux")]
#![allow(unsafe_code, reason = "unshare(2) has no safe wrapper: it changes what other calls of the thread see")]

use std::fs;
use std::path::Path;
use std::process::Command;

use culvert_helper::journal::{Change, Journal};
use rustix::thread::UnshareFlags;

/// tmpfs counts in pages.
const PAGE_BYTES: usize = 4096;

#[test]
fn a_full_disk_does_not_garble_what_is_written_once_there_is_room() {
    on_a_small_disk(|dir| {
        let mut journal = Journal::open(dir).unwrap();
        journal.record(sysctl("before")).unwrap();
        let other = dir.join("other");
        fs::write(&other, vec![0; 2 * PAGE_BYTES]).unwrap_err();
        let error = journal.record(sysctl(&"long".repeat(PAGE_BYTES))).unwrap_err();
        assert_eq!(error.kind(), std::io::ErrorKind::StorageFull);
        fs::remove_file(&other).unwrap();
        journal.record(sysctl("after")).unwrap();
        drop(journal);
        let changes: Vec<Change> = Journal::open(dir).unwrap().in_force().into_iter().map(|(_, what)| what).collect();
        assert_eq!(changes, [sysctl("after"), sysctl("before")]);
    });
}

fn sysctl(key: &str) -> Change {
    Change::Sysctl { key: key.into(), was: "0".into(), set: "2".into() }
}

/// Runs a test in a directory with room for two pages. It ends with the thread's mount namespace.
fn on_a_small_disk(test: impl FnOnce(&Path) + Send) {
    assert!(rustix::process::geteuid().is_root(), "mounting needs root");
    let dir = tempfile::tempdir().unwrap();
    let mount = |arguments: &[&str]| {
        let output = Command::new("mount").args(arguments).arg(dir.path()).output().unwrap();
        assert!(output.status.success(), "{output:?}");
    };
    let run = || {
        // SAFETY: only this thread's view of the mounts changes; it ends with the thread.
        unsafe { rustix::thread::unshare_unsafe(UnshareFlags::NEWNS) }.unwrap();
        assert!(Command::new("mount").args(["--make-rprivate", "/"]).status().unwrap().success());
        mount(&["-t", "tmpfs", "-o", "size=8k", "small"]);
        test(dir.path());
    };
    std::thread::scope(|scope| scope.spawn(run).join()).unwrap_or_else(|panic| std::panic::resume_unwind(panic));
}
