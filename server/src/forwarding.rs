//! Whether this host forwards packets: two switches of the kernel, set only when they are off.
//!
//! What was there is written to the [`Journal`] before it is changed and put back when
//! [`Forwarding`] is dropped, or at the next start after a crash.

use std::fs;
use std::io;
use std::path::Path;

use crate::journal::{Journal, JournalError, Setting};

/// Forwarding is on until this is dropped.
#[derive(Debug)]
pub struct Forwarding {
    changed: Vec<Setting>,
}

/// This host does not forward.
#[derive(Debug, thiserror::Error)]
pub enum ForwardingError {
    /// Off, and we may not turn it on.
    #[error("this host does not forward {family} and it cannot be turned on here ({error}); run: sysctl -w {key}=1")]
    Off {
        /// `IPv4` or `IPv6`.
        family: &'static str,
        /// The sysctl.
        key: &'static str,
        /// What the OS said.
        error: io::Error,
    },
    /// The old values could not be kept, so nothing was changed.
    #[error(transparent)]
    Journal(#[from] JournalError),
}

const IPV4: (&str, &str, &str) = ("IPv4", "net.ipv4.ip_forward", "/proc/sys/net/ipv4/ip_forward");
const IPV6: (&str, &str, &str) = ("IPv6", "net.ipv6.conf.all.forwarding", "/proc/sys/net/ipv6/conf/all/forwarding");
/// One folder of switches for each interface, `default` and `all`.
const IPV4_CONF: &str = "/proc/sys/net/ipv4/conf";
const IPV6_CONF: &str = "/proc/sys/net/ipv6/conf";

impl Forwarding {
    /// Turns forwarding on where it is off.
    ///
    /// # Errors
    /// [`ForwardingError::Off`] with the command that helps; what was changed is undone.
    pub fn enable(ipv6: bool, journal: &mut Journal) -> Result<Self, ForwardingError> {
        let mut this = Self { changed: Vec::new() };
        for (family, key, path) in [Some(IPV4), ipv6.then_some(IPV6)].into_iter().flatten() {
            if family == IPV6.0 {
                this.keep_router_advertisements(journal)?;
            }
            let path = Path::new(path);
            let off = |error| ForwardingError::Off { family, key, error };
            if read(path).map_err(off)? == "0" {
                this.note_interfaces(path, journal)?;
                this.set(path, "1", journal)?.map_err(off)?;
            }
        }
        Ok(this)
    }

    /// A forwarding host ignores router advertisements (kernel documentation, ip-sysctl,
    /// `accept_ra`), and would lose a default route that came by one. 2 accepts them all the same.
    fn keep_router_advertisements(&mut self, journal: &mut Journal) -> Result<(), ForwardingError> {
        if read(Path::new(IPV6.2)).is_ok_and(|value| value != "0") {
            return Ok(());
        }
        let Ok(interfaces) = fs::read_dir(IPV6_CONF) else {
            return Ok(());
        };
        for interface in interfaces.flatten() {
            let path = interface.path().join("accept_ra");
            let template = ["all", "default", "lo"].iter().any(|name| interface.file_name() == *name);
            if !template
                && read(&path).is_ok_and(|value| value == "1")
                && let Err(error) = self.set(&path, "2", journal)?
            {
                tracing::warn!(path = %path.display(), %error, "router advertisements will be ignored");
            }
        }
        Ok(())
    }

    /// A master switch sets every interface (kernel documentation, ip-sysctl, `ip_forward`), and
    /// turning it off again would stop those that forwarded without it. They are noted before it,
    /// and so put back after it.
    fn note_interfaces(&mut self, master: &Path, journal: &mut Journal) -> Result<(), ForwardingError> {
        let conf = if master == Path::new(IPV4.2) { IPV4_CONF } else { IPV6_CONF };
        let Ok(interfaces) = fs::read_dir(conf) else {
            return Ok(());
        };
        for interface in interfaces.flatten().filter(|interface| interface.file_name() != "all") {
            let path = interface.path().join("forwarding");
            if read(&path).is_ok_and(|value| value == "1") {
                let setting = Setting { path, was: "1".into() };
                journal.add(setting.clone())?;
                self.changed.push(setting);
            }
        }
        Ok(())
    }

    fn set(&mut self, path: &Path, value: &str, journal: &mut Journal) -> Result<io::Result<()>, ForwardingError> {
        let was = match read(path) {
            Ok(was) => was,
            Err(error) => return Ok(Err(error)),
        };
        let setting = Setting { path: path.to_owned(), was };
        journal.add(setting.clone())?;
        let written = fs::write(path, value);
        if written.is_ok() {
            self.changed.push(setting);
        }
        Ok(written)
    }

    /// Leaves forwarding on for good, since another gateway here relies on it.
    pub fn keep(mut self) {
        self.changed.clear();
    }
}

impl Drop for Forwarding {
    fn drop(&mut self) {
        restore(&self.changed);
    }
}

/// Puts old values back, newest first. What is gone (an interface) needs nothing.
pub fn restore(settings: &[Setting]) {
    for Setting { path, was } in settings.iter().rev() {
        match fs::write(path, was) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => {
                tracing::warn!(event = "undo_failed", path = %path.display(), %error, "cannot be put back");
            }
        }
    }
}

fn read(path: &Path) -> io::Result<String> {
    Ok(fs::read_to_string(path)?.trim().to_owned())
}

/// True for the switches that this file may have changed: what a journal says is not trusted to
/// name any other file.
pub fn is_ours(path: &Path) -> bool {
    let below = path.parent().and_then(Path::parent);
    let switch = match path.file_name().and_then(|name| name.to_str()) {
        Some("accept_ra") => below == Some(Path::new(IPV6_CONF)),
        Some("forwarding") => [IPV4_CONF, IPV6_CONF].iter().any(|conf| below == Some(Path::new(conf))),
        _ => false,
    };
    let upwards = path.components().any(|part| part == std::path::Component::ParentDir);
    path == Path::new(IPV4.2) || switch && !upwards
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_our_own_switches_are_ever_put_back() {
        let of_interfaces = [
            "/proc/sys/net/ipv6/conf/eth0/accept_ra",
            "/proc/sys/net/ipv6/conf/eth0/forwarding",
            "/proc/sys/net/ipv4/conf/default/forwarding",
        ];
        for path in of_interfaces.into_iter().chain([IPV4.2, IPV6.2]) {
            assert!(is_ours(Path::new(path)), "{path}");
        }
        for path in [
            "/etc/passwd",
            "/proc/sys/net/ipv6/conf/../accept_ra",
            "/proc/sys/net/ipv6/conf/a/b/accept_ra",
            "/proc/sys/net/ipv4/conf/eth0/accept_ra",
            "/proc/sys/net/ipv4/conf/../forwarding",
        ] {
            assert!(!is_ours(Path::new(path)), "{path}");
        }
    }
}
