//! The Culvert gateway, as a library so that tests reach its parts; `main.rs` is the program.
//!
//! Find your way: `config` is what the operator chose; `gateway` starts everything and stops it
//! in reverse; `admit` judges who may connect, by the `registry`; `nat` and `interface` change
//! the system and undo it; `admin` holds the commands.

pub mod addresses;
pub mod config;
pub mod duration;
pub mod files;
pub mod forwarding;
pub mod interface;
pub mod journal;
pub mod nat;
pub mod registry;
