//! What the predecessor, SloPN, leaves on a Mac: a root job that anybody could speak to, and two files with secrets that
//! anybody could read (its `packaging/scripts/postinstall`, `cmd/helper/platform_darwin.go`, `gui/app.go`).
//! `preinstall` removes them before anything of ours is there.
//!
//! Not here: name servers that it wrote into the network settings. They may be somebody's choice, so the doctor's
//! answer and the documents name them, and nobody but the user takes them back.

use std::fs;
use std::path::Path;

/// launchd's label of its helper.
pub const LABEL: &str = "com.webdunesurfer.slopn.helper";
/// The receipt of its package.
pub const PACKAGE: &str = "com.webdunesurfer.slopn";

/// What it wrote, the job first.
pub const LEFTOVERS: [&str; 5] = [
    "/Library/LaunchDaemons/com.webdunesurfer.slopn.helper.plist",
    "/Library/PrivilegedHelperTools/slopn-helper",
    "/Library/Application Support/SloPN",
    "/var/log/slopn-helper.log",
    "/Applications/SloPN.app",
];

/// True while anything of it is below `root` (`/` outside tests).
pub fn is_there(root: &Path) -> bool {
    LEFTOVERS.iter().any(|path| fs::symlink_metadata(root.join(path.trim_start_matches('/'))).is_ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_part_of_it_alone_is_seen() {
        for path in LEFTOVERS {
            let dir = tempfile::tempdir().unwrap();
            assert!(!is_there(dir.path()));
            fs::create_dir_all(dir.path().join(path.trim_start_matches('/'))).unwrap();
            assert!(is_there(dir.path()), "{path}");
        }
    }

    #[test]
    fn preinstall_removes_all_of_it() {
        let script = concat!(env!("CARGO_MANIFEST_DIR"), "/../../packaging/macos/scripts/preinstall");
        let script = fs::read_to_string(script).unwrap();
        for path in LEFTOVERS {
            assert!(script.contains(&format!("$root{path}")), "{path}");
        }
        assert!(script.contains(LABEL) && script.contains(PACKAGE));
    }
}
