//! Another configuration in a running gateway: what it changes at once, and what waits for a restart.
//!
//! No session ends by it. An invalid configuration changes nothing. [`judge`] decides, pure; the
//! gateway's loop acts on the answer.

use crate::config::{Config, ConfigError, Layers, Loaded};

/// Settings that take effect at once. All others wait for a restart: they are sockets, interfaces,
/// threads and files that are open, or networks that devices have their addresses in.
const LIVE: &[(&str, &[&str])] = &[
    ("endpoint", &["name", "extra_names"]),
    ("network", &["isolation"]),
    ("push", &["routes", "excluded_routes", "dns", "domains"]),
    ("dns", &["upstream", "zones", "inner"]),
    ("limits", &["devices_per_user", "handshakes_per_second", "rate"]),
    ("log", &["level", "addresses"]),
    ("bans", &["failures", "window", "duration", "exempt"]),
    ("auth", &["rechallenge", "device_lifetime"]),
];

/// In force at once where the new network holds the old one from its beginning (`addresses::Pool::grown_to`).
const GROWS: &str = "network.ipv4";

/// What a reload comes to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Judged {
    /// Keys whose new values are in force, `section.name`.
    pub applied: Vec<String>,
    /// Keys whose old values stay in force until a restart.
    pub needs_restart: Vec<String>,
}

impl Judged {
    /// The inner network has grown and need not wait. False when it has not changed.
    pub fn grow(&mut self) -> bool {
        let Some(at) = self.needs_restart.iter().position(|key| key == GROWS) else { return false };
        self.applied.push(self.needs_restart.remove(at));
        true
    }
}

/// Why nothing was reloaded.
#[derive(Debug, thiserror::Error)]
pub enum ReloadError {
    /// The configuration; the old one stays in force.
    #[error("the configuration is not changed: {}", .0.to_string().replace('\n', "; "))]
    Config(#[from] ConfigError),
    /// Something that the new values need cannot be had; the old ones stay in force.
    #[error("the configuration is not changed: {0}")]
    Refused(String),
}

/// Which settings differ, and which of these can be changed now.
pub fn judge(old: &Layers, new: &Layers) -> Judged {
    let mut judged = Judged::default();
    for ((key, before, _), (_, after, _)) in old.iter().zip(new.iter()) {
        if before == after {
            continue;
        }
        let live = LIVE.iter().any(|(section, names)| *section == key.section && names.contains(&key.name));
        let list = if live { &mut judged.applied } else { &mut judged.needs_restart };
        list.push(format!("{}.{}", key.section, key.name));
    }
    if old.policies() != new.policies() {
        judged.applied.push("policy".into());
    }
    judged
}

/// The configuration in force after a reload: `old` with the live values of `new`.
pub fn merge(old: &Config, new: &Config) -> Config {
    Config {
        endpoint: new.endpoint.clone(),
        extra_endpoints: new.extra_endpoints.clone(),
        isolation: new.isolation,
        push: new.push.clone(),
        dns: new.dns.clone(),
        policies: new.policies.clone(),
        devices_per_user: new.devices_per_user,
        handshakes_per_second: new.handshakes_per_second,
        log_level: new.log_level.clone(),
        log_addresses: new.log_addresses,
        bans: new.bans.clone(),
        rechallenge: new.rechallenge,
        device_lifetime: new.device_lifetime,
        ..old.clone()
    }
}

/// Reads the configuration again, and remembers what is in force.
pub struct Reloader {
    read: Box<dyn Fn() -> Result<Loaded, ConfigError> + Send + Sync>,
    in_force: Layers,
}

impl std::fmt::Debug for Reloader {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Reloader").finish_non_exhaustive()
    }
}

impl Reloader {
    /// `read` reads the same files, variables and flags as at the start, which gave `in_force`.
    pub fn new(in_force: Layers, read: impl Fn() -> Result<Loaded, ConfigError> + Send + Sync + 'static) -> Self {
        Self { read: Box::new(read), in_force }
    }

    /// What the files say now, and what that would change.
    ///
    /// # Errors
    /// [`ConfigError`] when they say nothing that makes sense.
    pub fn read(&self) -> Result<(Loaded, Judged), ConfigError> {
        let loaded = (self.read)()?;
        let judged = judge(&self.in_force, &loaded.layers);
        Ok((loaded, judged))
    }

    /// What was judged as applied is in force. What waits for a restart is told again the next time.
    pub fn accept(&mut self, loaded: &Loaded, judged: &Judged) {
        for (section, name) in judged.applied.iter().filter_map(|key| key.split_once('.')) {
            self.in_force.take_from(&loaded.layers, section, name);
        }
        self.in_force.take_policies_from(&loaded.layers);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Flags, KEYS, Named};

    #[test]
    fn what_can_be_changed_at_once_is_told_apart_from_what_waits() {
        let old = load("[push]\ndns = [\"10.0.0.1\"]\n");
        let new = load("[push]\ndns = [\"10.0.0.2\"]\n[listen]\naddress = \"[::]:4430\"\n[tunnel]\nshards = 2\n");
        let judged = judge(&old.layers, &new.layers);
        assert_eq!(judged.applied, ["push.dns"]);
        assert_eq!(judged.needs_restart, ["listen.address", "tunnel.shards"]);
        let merged = merge(&old.config, &new.config);
        assert_eq!(merged.push.dns, new.config.push.dns);
        assert_eq!(merged.listen, old.config.listen);
        assert_eq!(judge(&new.layers, &new.layers), Judged::default());
    }

    #[test]
    fn what_waits_for_a_restart_is_told_again_and_what_was_applied_is_not() {
        let old = load("");
        let mut reloader = Reloader::new(old.layers, || Ok(load("[log]\nlevel = \"debug\"\n[tunnel]\nshards = 2\n")));
        let (loaded, first) = reloader.read().unwrap();
        reloader.accept(&loaded, &first);
        let (_, second) = reloader.read().unwrap();
        assert_eq!(first.applied, ["log.level"]);
        assert_eq!(second, Judged { applied: vec![], needs_restart: vec!["tunnel.shards".into()] });
    }

    #[test]
    fn a_network_that_grows_does_not_wait() {
        let mut judged = judge(&load("").layers, &load("[network]\nipv4 = \"10.9.0.0/23\"\n").layers);
        assert_eq!(judged.needs_restart, ["network.ipv4"], "until somebody has seen that it does");
        assert!(judged.grow() && !judged.grow());
        assert_eq!((judged.applied.as_slice(), judged.needs_restart.len()), (&["network.ipv4".to_owned()][..], 0));
    }

    #[test]
    fn groups_and_policies_are_in_force_at_once() {
        let old = load("");
        let new = load("[groups]\nnight = [\"anna\"]\n[policy.night]\nrate = \"1M\"\n");
        assert_eq!(judge(&old.layers, &new.layers).applied, ["policy"]);
        assert!(merge(&old.config, &new.config).policies.rules("anna").is_some());
    }

    #[test]
    fn every_live_setting_exists() {
        for (section, names) in LIVE {
            for name in *names {
                assert!(KEYS.iter().any(|key| key.section == *section && key.name == *name), "{section}.{name}");
            }
        }
    }

    fn load(text: &str) -> Loaded {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("config.toml");
        std::fs::write(&path, text).unwrap();
        Config::load(&Flags { config: Some(path), settings: vec![] }, [], Named::MustExist).unwrap()
    }
}
