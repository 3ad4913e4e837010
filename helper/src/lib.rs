//! The root helper: it owns the tunnel device, the routes and the supervisor.
//!
//! How a request travels: [`socket`] accepts a caller that [`caller`] knows, [`service`] decides,
//! the pure [`supervisor`] says what to do next, and `session` does it with a shard of
//! `culvert-tunnel`. [`routes`] and [`dns`] are values that undo themselves; [`journal`] remembers
//! them across a crash.

pub mod caller;
pub mod dns;
pub mod health;
pub mod journal;
pub mod routes;
pub mod socket;
pub mod supervisor;
