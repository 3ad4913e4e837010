//! What a user may choose, and the words for it. The helper keeps the settings; the app and `culvert settings`
//! show and change them.

use std::fmt;

use serde::{Deserialize, Serialize};

/// When traffic that would leave beside the tunnel is refused.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum KillSwitch {
    /// Never. Once a session is up its routes hold traffic back, before and after it they do not.
    Off,
    /// From the wish to connect until the wish to disconnect, whatever happens in between.
    #[default]
    Auto,
    /// Always, also while no connection is wanted and after a restart.
    Lockdown,
}

impl KillSwitch {
    /// Every mode, the least strict first.
    pub const ALL: [Self; 3] = [Self::Off, Self::Auto, Self::Lockdown];

    /// The stable word, as in JSON and on the command line.
    pub const fn word(self) -> &'static str {
        match self {
            Self::Off => "off",
            Self::Auto => "auto",
            Self::Lockdown => "lockdown",
        }
    }

    /// Its effect, for people.
    pub const fn sentence(self) -> &'static str {
        match self {
            Self::Off => "traffic may leave beside the tunnel while there is none",
            Self::Auto => "while you want to be connected, nothing leaves beside the tunnel",
            Self::Lockdown => "nothing leaves beside the tunnel, also while you are disconnected",
        }
    }
}

impl fmt::Display for KillSwitch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.word())
    }
}

/// What to do when a network of this machine and one behind the gateway use the same addresses.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub enum Overlap {
    /// Do not connect, and say so.
    #[default]
    Ask,
    /// These addresses lead to the gateway.
    Gateway,
    /// These addresses stay where they are.
    Local,
}

impl Overlap {
    /// Every choice.
    pub const ALL: [Self; 3] = [Self::Ask, Self::Gateway, Self::Local];

    /// The stable word, as in JSON and on the command line.
    pub const fn word(self) -> &'static str {
        match self {
            Self::Ask => "ask",
            Self::Gateway => "gateway",
            Self::Local => "local",
        }
    }

    /// Its effect, for people.
    pub const fn sentence(self) -> &'static str {
        match self {
            Self::Ask => "no connection is made where a local network has the gateway's addresses",
            Self::Gateway => "addresses that a local network has, too, lead to the gateway",
            Self::Local => "addresses that a local network has, too, stay local",
        }
    }
}

/// Everything that can be chosen. Fields are only added; a missing one has its default.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(default)]
pub struct Settings {
    /// When traffic beside the tunnel is refused. Default: auto.
    pub kill_switch: KillSwitch,
    /// Whether the kill switch lets local networks through: printers, file servers, other machines at home.
    /// Default: yes.
    pub allow_lan: bool,
    /// What to do about addresses that are both local and behind the gateway, from the next connection on.
    /// Default: ask.
    pub overlap: Overlap,
}

impl Default for Settings {
    fn default() -> Self {
        Self { kill_switch: KillSwitch::default(), allow_lan: true, overlap: Overlap::default() }
    }
}

/// What to change; what is absent stays.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SettingsChange {
    /// See [`Settings::kill_switch`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kill_switch: Option<KillSwitch>,
    /// See [`Settings::allow_lan`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub allow_lan: Option<bool>,
    /// See [`Settings::overlap`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub overlap: Option<Overlap>,
}

impl SettingsChange {
    /// The settings after the change.
    #[must_use]
    pub fn applied_to(&self, mut settings: Settings) -> Settings {
        settings.kill_switch = self.kill_switch.unwrap_or(settings.kill_switch);
        settings.allow_lan = self.allow_lan.unwrap_or(settings.allow_lan);
        settings.overlap = self.overlap.unwrap_or(settings.overlap);
        settings
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn settings_of_an_older_version_get_the_defaults_of_what_is_new() {
        assert_eq!(serde_json::from_value::<Settings>(json!({})).unwrap(), Settings::default());
        let newer = json!({"kill_switch": "lockdown", "allow_lan": false, "weather": "fine"});
        let settings = serde_json::from_value::<Settings>(newer).unwrap();
        let expected = Settings { kill_switch: KillSwitch::Lockdown, allow_lan: false, ..Settings::default() };
        assert_eq!(settings, expected);
    }

    #[test]
    fn a_change_leaves_alone_what_it_does_not_name() {
        let change: SettingsChange = serde_json::from_value(json!({"kill_switch": "off"})).unwrap();
        let before = Settings { allow_lan: false, ..Settings::default() };
        let after = change.applied_to(before.clone());
        assert_eq!(after, Settings { kill_switch: KillSwitch::Off, ..before });
    }

    #[test]
    fn a_change_that_this_version_does_not_know_is_an_error_and_not_ignored() {
        assert!(serde_json::from_value::<SettingsChange>(json!({"kill_swich": "off"})).is_err());
        assert!(serde_json::from_value::<SettingsChange>(json!({"kill_switch": "sometimes"})).is_err());
    }

    #[test]
    fn the_words_are_those_of_the_json() {
        for mode in KillSwitch::ALL {
            assert_eq!(serde_json::to_value(mode).unwrap(), json!(mode.word()));
        }
        for overlap in Overlap::ALL {
            assert_eq!(serde_json::to_value(overlap).unwrap(), json!(overlap.word()));
        }
    }
}
