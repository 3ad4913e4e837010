//! The Culvert gateway, as a library so that tests reach its parts; `main.rs` is the program.
//!
//! Find your way: `config` is what the operator chose; `gateway` starts everything and stops it
//! in reverse; `admit` judges who may connect, by the `registry`; `nat` and `interface` change
//! the system and undo it; `admin` holds the commands.

pub mod addresses;
pub mod admin;
pub mod admit;
pub mod audit;
pub mod authorities;
pub mod backup;
pub mod bans;
pub mod challenges;
pub mod changes;
pub mod config;
pub mod control_socket;
pub mod conversation;
pub mod dns;
pub mod door;
pub mod files;
pub mod firewall;
pub mod fleet;
pub mod forwarding;
pub mod gateway;
pub mod health;
pub mod history;
pub mod http;
pub mod interface;
pub mod journal;
pub mod leaf;
pub mod log;
pub mod manager;
pub mod manual;
pub mod metrics;
pub mod mobileconfig;
pub mod nat;
pub mod owner;
pub mod policy;
pub mod registry;
pub mod reload;
pub mod sealed_file;
pub mod selfcheck;
pub mod sessions;
pub mod settings;
pub mod speed;
pub mod state;
pub mod times;
pub mod watchdog;
pub mod why;
