//! The root helper: it owns the tunnel device, the routes and the supervisor.
//!
//! How a request travels: [`socket`] accepts a caller that [`caller`] knows, [`service`] decides,
//! the pure [`supervisor`] says what to do next, and [`session`] does it with a shard of
//! `culvert-tunnel`. What a welcome changes on this machine is one value ([`install`]) made of
//! [`routes`] and [`dns`], which undo themselves; [`journal`] remembers them across a crash. The kill
//! switch ([`guard`]) outlives them, as long as the user's [`settings`] and [`wish`] say so, and
//! what the administrator has decided ([`managed`]).

pub mod caller;
pub mod clock;
pub mod detour;
pub mod device;
pub mod dial;
pub mod dns;
pub mod doctor;
pub mod endpoints;
pub mod enrol;
pub mod files;
pub mod guard;
pub mod health;
pub mod install;
pub mod journal;
pub mod logs;
pub mod managed;
pub mod manager;
pub mod names;
#[cfg(target_os = "linux")]
pub mod notices;
pub mod outside;
pub mod owners;
pub mod portal;
pub mod profile;
pub mod roam;
pub mod routes;
pub mod seal;
pub mod service;
pub mod session;
pub mod settings;
pub mod sign_in;
pub mod socket;
pub mod supervisor;
pub mod underlay;
pub mod upkeep;
pub mod wake;
pub mod watch;
pub mod wish;
