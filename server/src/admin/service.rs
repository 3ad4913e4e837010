//! The package's unit: where it is installed, `init` starts the gateway by it, now and at every boot.

use std::path::Path;
use std::process::{Command, Stdio};

use serde::Serialize;

use super::state_dir;
use crate::config::{DEFAULT_PATH, Loaded};
use crate::owner;

/// The unit of the package.
pub const UNIT: &str = "culvert-server.service";
/// Where units of packages and of administrators are (systemd.unit(5)).
const UNITS: [&str; 3] = ["/etc/systemd/system", "/usr/lib/systemd/system", "/lib/systemd/system"];
/// Never by PATH: root runs it.
const SYSTEMCTL: [&str; 2] = ["/usr/bin/systemctl", "/bin/systemctl"];
/// The state directory that the unit may write to.
const STATE: &str = "/var/lib/culvert-server";

/// How it stands with the unit after `init`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Service {
    /// There is none, or it is for another gateway than this one.
    None,
    /// It is there, and was left alone: `--no-start`, `--dry-run`, or nothing was changed.
    Left,
    /// It runs.
    Started,
    /// It did not start.
    Failed,
}

/// Whether the unit, where there is one, would run this gateway.
pub fn find(loaded: &Loaded) -> Service {
    let booted = sd_notify::booted().unwrap_or(false);
    let is_there = || UNITS.iter().any(|folder| Path::new(folder).join(UNIT).exists());
    if booted && is_units(loaded) && is_there() { Service::Left } else { Service::None }
}

/// The unit has no arguments, so it runs the gateway of the usual places.
fn is_units(loaded: &Loaded) -> bool {
    loaded.path == Path::new(DEFAULT_PATH) && state_dir(&loaded.config).root() == Path::new(STATE)
}

/// Starts the unit, now and at every boot. Waits until the gateway serves or has failed to; what systemctl has to
/// say goes to standard error.
pub fn start() -> Service {
    let Some(systemctl) = SYSTEMCTL.iter().find(|path| Path::new(path).exists()) else { return Service::Failed };
    let mut command = Command::new(systemctl);
    // Standard output is for what `init` prints.
    command.args(["--quiet", "--no-ask-password", "enable", "--now", UNIT]).stdin(Stdio::null()).stdout(Stdio::null());
    match owner::as_caller(|| command.status()) {
        Ok(status) if status.success() => Service::Started,
        Ok(_) | Err(_) => Service::Failed,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Config, Flags, Named};

    #[test]
    fn a_gateway_of_other_places_is_not_the_units() {
        let load = |config: Option<&str>, state: Option<&str>| {
            let settings = state.map(|dir| ("--state-dir", "state", "dir", dir.to_owned()));
            let flags = Flags { config: config.map(Into::into), settings: settings.into_iter().collect() };
            Config::load(&flags, [], Named::MayBeMissing).unwrap()
        };
        assert!(is_units(&load(Some(DEFAULT_PATH), Some(STATE))));
        assert!(!is_units(&load(Some("/nonexistent/gw.toml"), Some(STATE))));
        assert!(!is_units(&load(Some(DEFAULT_PATH), Some("/srv/gateway"))));
    }
}
