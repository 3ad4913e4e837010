//! The tunnel interface of this platform. `cfg` appears here and nowhere above.

use culvert_protocol::{Problem, code};
#[cfg(target_os = "linux")]
pub use culvert_tunnel::device::linux::Tun;
#[cfg(target_os = "macos")]
pub use culvert_tunnel::device::macos::Utun as Tun;

/// The interface's name unless it is told otherwise. macOS knows no other names than `utunN`; the system takes the
/// low numbers.
pub const DEFAULT_DEVICE: &str = if cfg!(target_os = "macos") { "utun637" } else { "culvert0" };

/// Makes the interface. It goes with the value.
///
/// # Errors
/// E403 when another program has it, E406 and E407 for what the machine lacks, else E408.
#[cfg(target_os = "linux")]
pub fn open(name: &str) -> Result<Tun, Problem> {
    use culvert_tunnel::device::linux::OpenError;
    let opened = Tun::open(name, 1).map_err(|error| match &error {
        OpenError::NoDriver => Problem::new(code::NO_TUN),
        OpenError::NotPermitted => Problem::new(code::CAPABILITY),
        OpenError::Busy(name) => busy(name),
        OpenError::BadName(_) | OpenError::Os { .. } => Problem::new(code::SYSTEM).because(error.to_string()),
    })?;
    opened.into_iter().next().ok_or_else(|| Problem::new(code::INTERNAL))
}

/// Makes the interface. It goes with the value, its addresses and routes with it.
///
/// # Errors
/// E403 when another program has it, E407 without root, else E408.
#[cfg(target_os = "macos")]
pub fn open(name: &str) -> Result<Tun, Problem> {
    use std::io::ErrorKind;
    Tun::open(name).map_err(|error| match error.kind() {
        ErrorKind::PermissionDenied => Problem::new(code::CAPABILITY),
        ErrorKind::ResourceBusy => busy(name),
        _ => Problem::new(code::SYSTEM).because(format!("The tunnel interface cannot be made: {error}")),
    })
}

fn busy(name: &str) -> Problem {
    Problem::new(code::CONFLICT)
        .because(format!("The interface {name} is in use by another program"))
        .hint("Stop it, or give this helper another name (culvert-helper run --device-name)")
}
