//! What the parts of the Mac package are called, and where they go.
//!
//! Identifiers and labels are frozen: macOS remembers them with the designated requirement of what was installed, and
//! refuses to launch something else under the same name. A change needs a new label, and the old one unregistered.

/// The app, and the domain of its preferences.
pub const APP_IDENTIFIER: &str = "net.culvert.app";
/// The root helper's code signature.
pub const HELPER_IDENTIFIER: &str = "net.culvert.helper";
/// The command's code signature.
pub const CLI_IDENTIFIER: &str = "net.culvert.ctl";
/// The component package, as `pkgutil --pkgs` lists it.
pub const PACKAGE_IDENTIFIER: &str = "net.culvert.pkg";

/// launchd's label of the helper that the pkg installs; the app's own way has another one, since macOS keeps both in
/// one table.
pub const DAEMON_LABEL: &str = "net.culvert.daemon";
/// launchd's label of the helper inside the app (SMAppService).
pub const BUNDLED_LABEL: &str = "net.culvert.helper";

/// The oldest macOS that is served: the first with SMAppService.
pub const MINIMUM_MACOS: &str = "13.0";

/// The programs as the build names them.
pub const APP_PROGRAM: &str = "Culvert";
/// The root helper as the build names it.
pub const HELPER_PROGRAM: &str = "culvert-helper";
/// The command as the build names it.
pub const CLI_PROGRAM: &str = "culvert";

/// The app, below the root of the disk.
pub const APP_PATH: &str = "Applications/Culvert.app";
/// The helper of the pkg: every folder above belongs to root, which /Applications does not promise.
pub const HELPER_PATH: &str = "Library/PrivilegedHelperTools/net.culvert.helper";
/// launchd's file of the pkg.
pub const DAEMON_PATH: &str = "Library/LaunchDaemons/net.culvert.daemon.plist";
/// The command.
pub const CLI_PATH: &str = "usr/local/bin/culvert";
