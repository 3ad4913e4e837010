//! The root helper: it owns the tunnel device, the routes and the supervisor.
//!
//! How a request travels: [`socket`] accepts a caller that [`caller`] knows, [`service`] decides,
//! the pure [`supervisor`] says what to do next, and [`session`] does it with a shard of
//! `culvert-tunnel`. What a welcome changes on this machine is one value ([`install`]) made of
//! [`routes`] and [`dns`], which undo themselves; [`journal`] remembers them across a crash. The kill
//! switch ([`guard`]) outlives them, as long as the user's [`settings`] and [`wish`] say so.

pub mod caller;
pub mod clock;
pub mod detour;
pub mod dns;
pub mod doctor;
pub mod files;
pub mod guard;
pub mod health;
pub mod journal;
pub mod logs;
pub mod manager;
pub mod outside;
pub mod owners;
pub mod portal;
pub mod profile;
pub mod roam;
pub mod settings;
pub mod sign_in;
pub mod socket;
pub mod supervisor;
pub mod underlay;
pub mod wish;

// What stands on rtnetlink and the Linux TUN. macOS gets its own routes with the issue Stays up.
#[cfg(target_os = "linux")]
pub mod dial;
#[cfg(target_os = "linux")]
pub mod enrol;
#[cfg(target_os = "linux")]
pub mod install;
#[cfg(target_os = "linux")]
pub mod names;
#[cfg(target_os = "linux")]
pub mod notices;
#[cfg(target_os = "linux")]
pub mod routes;
#[cfg(target_os = "linux")]
pub mod service;
#[cfg(target_os = "linux")]
pub mod session;
