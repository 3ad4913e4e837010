//! What the parts of the Mac package are called, and where they go.
//!
//! Identifiers and labels are frozen: macOS remembers them with the designated requirement of what was installed, and
//! refuses to launch something else under the same name. A change needs a new label, and the old one unregistered.

use culvert_installation::paths::{APP, CLI, DAEMON_PLIST, HELPER};
pub use culvert_installation::paths::{
    APP_IDENTIFIER, BUNDLE_LABEL as BUNDLED_LABEL, CLI_IDENTIFIER, HELPER_IDENTIFIER, PACKAGE_IDENTIFIER,
    PACKAGE_LABEL as DAEMON_LABEL,
};

/// The oldest macOS that is served: the first with SMAppService.
pub const MINIMUM_MACOS: &str = "13.0";

/// The programs as the build names them.
pub const APP_PROGRAM: &str = "Culvert";
/// The root helper as the build names it.
pub const HELPER_PROGRAM: &str = "culvert-helper";
/// The command as the build names it.
pub const CLI_PROGRAM: &str = "culvert";

/// The app, below the root of the disk.
pub const APP_PATH: &str = below_root(APP);
/// The helper of the pkg: every folder above belongs to root, which /Applications does not promise.
pub const HELPER_PATH: &str = below_root(HELPER);
/// launchd's file of the pkg.
pub const DAEMON_PATH: &str = below_root(DAEMON_PLIST);
/// The command.
pub const CLI_PATH: &str = below_root(CLI);

const fn below_root(path: &str) -> &str {
    path.split_at(1).1
}
