//! Hears when a file changes, comes or goes. `cfg` appears here and nowhere above.

#[cfg(target_os = "linux")]
#[path = "watch/linux.rs"]
mod imp;
#[cfg(target_os = "macos")]
#[path = "watch/macos.rs"]
mod imp;

pub use imp::FileWatch;
