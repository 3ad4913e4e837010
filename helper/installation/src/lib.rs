//! How Culvert is on a Mac: by the package ([`paths`]: a LaunchDaemon, and a helper in `/Library`), or by the app alone
//! (SMAppService: helper and job are in its bundle). Exactly one helper is to be active; [`reconcile`] says what is
//! left to do for that, and [`paths`] is the one list of what is ever written, which an uninstall goes through.
//!
//! `cfg` appears in the leaf `service` and nowhere else, so that everything but Apple's calls is tested on Linux.
//! Its own crate, so that nothing in a user's session links code that runs as root.

pub mod paths;
pub mod predecessor;
pub mod reconcile;
pub mod removal;
#[cfg(target_os = "macos")]
pub mod service;
