//! Every path that Culvert ever writes on a Mac, and the names that are frozen: macOS remembers label, identifier and
//! place of a helper, and kills one that comes back under the same label with others (macos.md 6.4).
//!
//! `packaging/macos/scripts/preinstall` and `postinstall` know the same paths; a test compares them.

/// The app's bundle identifier; its managed preferences have the same name.
pub const APP_IDENTIFIER: &str = "net.culvert.app";
/// The signing identifier of the helper, whichever way it came.
pub const HELPER_IDENTIFIER: &str = "net.culvert.helper";
/// The signing identifier of the command line.
pub const CLI_IDENTIFIER: &str = "net.culvert.ctl";
/// The package's receipt.
pub const PACKAGE_IDENTIFIER: &str = "net.culvert.pkg";

/// launchd's label of the package's helper.
pub const PACKAGE_LABEL: &str = "net.culvert.daemon";
/// launchd's label of the bundle's helper. Another one: the same would collide in macOS's list of background items.
pub const BUNDLE_LABEL: &str = "net.culvert.helper";

/// The app.
pub const APP: &str = "/Applications/Culvert.app";
/// The package's job.
pub const DAEMON_PLIST: &str = "/Library/LaunchDaemons/net.culvert.daemon.plist";
/// The package's helper: below root's folders only, so that nobody else can put another one in its place.
pub const HELPER: &str = "/Library/PrivilegedHelperTools/net.culvert.helper";
/// The bundle's job, below [`APP`], by which SMAppService knows it.
pub const BUNDLE_PLIST: &str = "net.culvert.helper.plist";
/// The command line.
pub const CLI: &str = "/usr/local/bin/culvert";
/// Profiles, settings, journal.
pub const STATE: &str = "/Library/Application Support/Culvert";
/// The socket that launchd keeps for the package's helper.
pub const PACKAGE_SOCKET: &str = "/var/run/net.culvert.daemon.sock";
/// The socket that launchd keeps for the bundle's helper.
pub const BUNDLE_SOCKET: &str = "/var/run/net.culvert.helper.sock";
/// The kill switch's reference to pf, for the default interface.
pub const PF_REFERENCE: &str = "/var/run/net.culvert.culvert0.pf";
/// Completions for bash, zsh and fish.
pub const COMPLETIONS: [&str; 3] = [
    "/usr/local/share/bash-completion/completions/culvert",
    "/usr/local/share/zsh/site-functions/_culvert",
    "/usr/local/share/fish/vendor_completions.d/culvert.fish",
];

/// Below the home of each user who ran the app.
pub const OF_USERS: [&str; 6] = [
    "Library/Application Support/net.culvert.app",
    "Library/Caches/net.culvert.app",
    "Library/HTTPStorages/net.culvert.app",
    "Library/Preferences/net.culvert.app.plist",
    "Library/Saved Application State/net.culvert.app.savedState",
    "Library/WebKit/net.culvert.app",
];

/// Whose it is to remove a path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum When {
    /// At every uninstall.
    Always,
    /// Not when access to gateways is to be kept.
    UnlessKept,
}

/// What an uninstall removes of the machine, in this order: the job before its program, so that a removal that was
/// interrupted leaves no job without one. Man pages are found by [`is_man_page`].
pub fn written() -> Vec<(&'static str, When)> {
    let parts = [DAEMON_PLIST, HELPER, PACKAGE_SOCKET, BUNDLE_SOCKET, PF_REFERENCE, CLI];
    let always = parts.into_iter().chain(COMPLETIONS).map(|path| (path, When::Always));
    always.chain([(STATE, When::UnlessKept), (APP, When::Always)]).collect()
}

/// Where man pages are.
pub const MAN: &str = "/usr/local/share/man/man1";

/// True for the file name of one of our man pages.
pub fn is_man_page(name: &str) -> bool {
    let stem = name.strip_suffix(".gz").unwrap_or(name).strip_suffix(".1");
    stem.is_some_and(|stem| stem == "culvert" || stem.starts_with("culvert-"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::path::{Path, PathBuf};

    fn root() -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
    }

    /// Every text between quotation marks in a file that could be a path of ours.
    fn quoted(text: &str) -> Vec<String> {
        let is_path = |word: &str| word.starts_with('/') && !word.starts_with("//") && !word.contains('\n');
        let is_ours = |word: &&str| is_path(word) && word.to_lowercase().contains("culvert");
        text.split('"').filter(is_ours).map(str::to_owned).collect()
    }

    fn sources(folder: &Path, found: &mut Vec<PathBuf>) {
        for entry in fs::read_dir(folder).unwrap().flatten() {
            let path = entry.path();
            if path.is_dir() && path.file_name() != Some("tests".as_ref()) {
                sources(&path, found);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                found.push(path);
            }
        }
    }

    fn is_listed(path: &str) -> bool {
        let managed = path == "/Library/Managed Preferences/net.culvert.app.plist"; // macOS writes it
        let below =
            |listed: &str| path == listed || path.strip_prefix(listed).is_some_and(|rest| rest.starts_with('/'));
        managed || written().iter().any(|(listed, _)| below(listed))
    }

    #[test]
    fn no_source_names_a_path_on_a_mac_that_an_uninstall_does_not_know() {
        let linux = ["/run/culvert", "/var/lib/culvert", "/etc/culvert", "/usr/share/doc/culvert", "/proc/"];
        let mut files = Vec::new();
        for folder in ["helper", "app"] {
            sources(&root().join(folder), &mut files);
        }
        assert!(files.len() > 50, "{files:?}");
        let mut mac = 0;
        for file in files {
            let text = fs::read_to_string(&file).unwrap();
            let code = text.split("#[cfg(test)]\nmod tests").next().unwrap_or_default();
            for path in quoted(code) {
                let path = path.replace("{device}", "culvert0");
                if linux.iter().any(|linux| path.starts_with(linux)) || path.starts_with("/usr/bin") {
                    continue;
                }
                mac += 1;
                assert!(is_listed(&path), "{} names {path}, which is not in paths::written()", file.display());
            }
        }
        assert!(mac > 10, "the search finds the paths that there are: {mac}");
    }

    #[test]
    fn the_scripts_know_the_same_paths() {
        for script in ["preinstall", "postinstall"] {
            let file = root().join("packaging/macos/scripts").join(script);
            let text = fs::read_to_string(&file).unwrap();
            let mut known = 0;
            for rest in text.split("$root").skip(1).filter(|rest| rest.starts_with('/')) {
                let end = rest.find(|c: char| "\"\n;)".contains(c)).unwrap_or(rest.len());
                let path = rest[..end].split(". ").next().unwrap_or_default();
                let receipt = path.starts_with("/var/db/receipts/"); // `pkgutil --forget` removes it
                let folder = !path.to_lowercase().contains("culvert") && !path.to_lowercase().contains("slopn");
                let slopn = crate::predecessor::LEFTOVERS.contains(&path);
                let copy = path == "/Applications/Culvert.localized"; // Installer's, and named, not written
                known += usize::from(is_listed(path));
                assert!(is_listed(path) || receipt || folder || slopn || copy, "{} names {path}", file.display());
            }
            assert!(known > 1, "{script}: the search finds the paths that there are");
        }
    }

    #[test]
    fn the_job_of_the_package_is_the_one_that_the_list_names() {
        let file = root().join("packaging/macos/net.culvert.daemon.plist");
        let job = plist::Value::from_file(file).unwrap();
        let job = job.as_dictionary().unwrap();
        assert_eq!(job["Label"].as_string(), Some(PACKAGE_LABEL));
        assert_eq!(job["ProgramArguments"].as_array().unwrap()[0].as_string(), Some(HELPER));
        let socket = job["Sockets"].as_dictionary().unwrap()["helper"].as_dictionary().unwrap();
        assert_eq!(socket["SockPathName"].as_string(), Some(PACKAGE_SOCKET));
        assert_eq!(socket["SockPathMode"].as_signed_integer(), Some(0o666));
        let bundle = plist::Value::from_file(root().join("packaging/macos").join(BUNDLE_PLIST)).unwrap();
        let bundle = bundle.as_dictionary().unwrap();
        assert_eq!(bundle["Label"].as_string(), Some(BUNDLE_LABEL));
        assert_eq!(bundle["BundleProgram"].as_string(), Some("Contents/MacOS/culvert-helper"));
        assert!(!bundle.contains_key("Program"), "macOS takes one or the other");
        let socket = bundle["Sockets"].as_dictionary().unwrap()["helper"].as_dictionary().unwrap();
        assert_eq!(socket["SockPathName"].as_string(), Some(BUNDLE_SOCKET));
        for job in [job, bundle] {
            let apps = job["AssociatedBundleIdentifiers"].as_array().unwrap();
            assert_eq!(apps[0].as_string(), Some(APP_IDENTIFIER), "whose name System Settings shows");
        }
    }

    #[test]
    fn only_our_man_pages_are_ours() {
        for ours in ["culvert.1", "culvert.1.gz", "culvert-settings-set.1.gz"] {
            assert!(is_man_page(ours), "{ours}");
        }
        for other in ["culverts.1", "culvert.8", "curl.1", "culvert", "xculvert-a.1"] {
            assert!(!is_man_page(other), "{other}");
        }
    }
}
