//! Takes every file of ours off a Mac: the disk's part of an uninstall. Pure but for the files below `root`.
//!
//! Not here: what goes before it (the helper undoes and forgets, launchd lets the job go) and after it (the package's
//! receipt).

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use crate::paths::{self, When};

/// What was found, and could not be removed.
#[derive(Debug)]
pub struct Left {
    /// Where.
    pub path: PathBuf,
    /// Why.
    pub error: io::Error,
}

/// Removes all that [`paths::written`] names below `root` (`/` outside tests), man pages, and what the app keeps in the
/// homes of users; `keep_identity` leaves [`paths::STATE`]. Goes on after a failure, and comes back with all of them.
/// What is not there is no failure.
pub fn remove(root: &Path, keep_identity: bool) -> Vec<Left> {
    let below = |path: &str| root.join(path.trim_start_matches('/'));
    let kept = |when: When| keep_identity && when == When::UnlessKept;
    let parts = paths::written().into_iter().filter(|(_, when)| !kept(*when)).map(|(path, _)| below(path));
    let pages = entries(&below(paths::MAN))
        .into_iter()
        .filter(|page| page.file_name().and_then(|name| name.to_str()).is_some_and(paths::is_man_page));
    let homes = entries(&below("/Users"));
    let of_users = homes.iter().flat_map(|home| paths::OF_USERS.iter().filter_map(|path| inside(home, path)));
    parts
        .chain(pages)
        .chain(of_users)
        .filter_map(|path| remove_one(&path).err().map(|error| Left { path, error }))
        .collect()
}

/// `home/path`, unless a part of it leads elsewhere: a user must not choose what root removes.
fn inside(home: &Path, path: &str) -> Option<PathBuf> {
    let whole = home.join(path);
    let mut folders = whole.ancestors().skip(1).take_while(|folder| folder.starts_with(home));
    folders.all(|folder| fs::symlink_metadata(folder).is_ok_and(|meta| meta.is_dir())).then_some(whole)
}

/// A link is removed, and not what it leads to.
fn remove_one(path: &Path) -> io::Result<()> {
    let removed = match fs::symlink_metadata(path) {
        Ok(meta) if meta.is_dir() => fs::remove_dir_all(path),
        Ok(_) => fs::remove_file(path),
        Err(error) => Err(error),
    };
    match removed {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

fn entries(folder: &Path) -> Vec<PathBuf> {
    fs::read_dir(folder).map(|entries| entries.flatten().map(|entry| entry.path()).collect()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    fn put(root: &Path, path: &str) {
        let path = root.join(path.trim_start_matches('/'));
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, "x").unwrap();
    }

    fn files(folder: &Path) -> Vec<String> {
        let mut found = Vec::new();
        for path in entries(folder) {
            if fs::symlink_metadata(&path).unwrap().is_dir() {
                found.extend(files(&path));
            } else {
                found.push(path.to_str().unwrap().to_owned());
            }
        }
        found.sort();
        found
    }

    /// A Mac with everything of ours, and with others' files beside it.
    fn mac() -> (tempfile::TempDir, Vec<String>) {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path();
        for other in [
            "/Applications/Other.app/Contents/Info.plist",
            "/Library/LaunchDaemons/org.other.plist",
            "/Library/PrivilegedHelperTools/org.other",
            "/usr/local/bin/other",
            "/usr/local/share/man/man1/other.1",
            "/usr/local/share/man/man8/culvert.8",
            "/Users/anna/Library/Preferences/org.other.plist",
            "/Users/anna/elsewhere/net.culvert.app/mine",
        ] {
            put(root, other);
        }
        let others = files(root);
        for (path, _) in paths::written() {
            if matches!(path, paths::STATE | paths::APP) {
                put(root, &format!("{path}/profiles/acme.json"));
            } else {
                put(root, path);
            }
        }
        put(root, "/usr/local/share/man/man1/culvert-settings.1.gz");
        for path in paths::OF_USERS {
            put(root, &format!("/Users/anna/{path}"));
        }
        (dir, others)
    }

    #[test]
    fn nothing_of_ours_is_left_and_everything_of_others_is() {
        let (dir, others) = mac();
        for _ in 0..2 {
            assert!(remove(dir.path(), false).is_empty());
            assert_eq!(files(dir.path()), others);
        }
    }

    #[test]
    fn the_identity_stays_when_it_is_to() {
        let (dir, others) = mac();
        assert!(remove(dir.path(), true).is_empty());
        let left = files(dir.path());
        let kept: Vec<&String> = left.iter().filter(|path| !others.contains(path)).collect();
        assert!(matches!(&kept[..], [one] if one.ends_with("Culvert/profiles/acme.json")), "{kept:?}");
    }

    #[test]
    fn a_link_of_a_user_leads_root_nowhere() {
        let (dir, others) = mac();
        let library = dir.path().join("Users/berta/Library");
        fs::create_dir_all(&library).unwrap();
        symlink(dir.path().join("Users/anna/elsewhere"), library.join("Caches")).unwrap();
        symlink(dir.path().join("Users/anna/elsewhere"), dir.path().join("Users/carl")).unwrap();
        assert!(remove(dir.path(), false).is_empty());
        for other in others {
            assert!(Path::new(&other).exists(), "{other}");
        }
    }

    #[test]
    fn a_link_that_leads_nowhere_is_removed_like_a_file() {
        let (dir, others) = mac();
        let cli = dir.path().join("usr/local/bin/culvert");
        fs::remove_file(&cli).unwrap();
        symlink("/Applications/Culvert.app/Contents/MacOS/culvert", &cli).unwrap();
        assert!(remove(dir.path(), false).is_empty());
        assert_eq!(files(dir.path()), others);
    }
}
