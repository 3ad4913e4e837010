//! What the app and the CLI may ask of `culvert-helper`, and what they are told.
//!
//! One enum per direction ([`Request`], [`Event`]), in frames of `u32` length and one JSON object,
//! over a Unix socket. The helper listens and takes a short closed list: no paths, no commands, no
//! raw routes. The one state enum of the product ([`State`]) and the catalogue of errors
//! ([`Problem`]) live here too, so that every program says the same words. Its own crate, so that
//! nothing in a user's session links code that runs as root.

mod client;
mod diagnosis;
mod frame;
mod info_plist;
mod log;
mod managed;
mod message;
mod problem;
#[cfg(feature = "schema")]
pub mod schema;
mod secret;
mod settings;
mod status;

pub use client::{Client, ClientError, EVENTS_HELD};
pub use diagnosis::{Certainty, Check, CheckId, Diagnosis, Finding, Outcome};
pub use frame::{FrameError, FrameReader, MAX_FRAME, decode, encode};
pub use log::{LogLevel, LogLine};
pub use managed::{Managed, MenuItem, SettingName, SettingsInForce, UpdatePolicy};
pub use message::{Answer, Ask, Change, DOCTOR_WITHIN, Event, ProfileFacts, Request};
pub use problem::{CATALOGUE, Code, Entry, Problem, code};
pub use secret::Secret;
pub use settings::{KillSwitch, Overlap, Settings, SettingsChange};
pub use status::{
    Blocking, Certificate, Dropped, Drops, Gateway, Path, Protection, SCHEMA, State, Status, Step, Timestamp, Traffic,
};

/// The version of this protocol. `hello`, `version` and `status` keep their meaning across versions, so that a newer
/// app can always ask an older helper what it is, and the other way round.
pub const VERSION: u32 = 1;

/// Where the helper listens unless it is told otherwise (`--socket`, `CULVERT_SOCKET`).
pub const DEFAULT_SOCKET: &str =
    if cfg!(target_os = "macos") { "/var/run/net.culvert.daemon.sock" } else { "/run/culvert/helper.sock" };

/// Where the helper listens that comes with the app alone, on a Mac without the package.
const BUNDLE_SOCKET: &str = "/var/run/net.culvert.helper.sock";

/// Where a client finds the helper unless it is told otherwise.
pub fn default_socket() -> &'static str {
    let is_there = |socket: &str| std::path::Path::new(socket).exists();
    if cfg!(target_os = "macos") && !is_there(DEFAULT_SOCKET) && is_there(BUNDLE_SOCKET) {
        BUNDLE_SOCKET
    } else {
        DEFAULT_SOCKET
    }
}
