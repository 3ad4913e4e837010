//! What the administrator of this machine has decided (its MDM, or a file of root's), and what that leaves to choose.

use serde::{Deserialize, Serialize};

use crate::problem::{Problem, code};
use crate::settings::{KillSwitch, Settings, SettingsChange};

/// One of the [`Settings`], by the name of its field.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum SettingName {
    /// [`Settings::kill_switch`].
    KillSwitch,
    /// [`Settings::allow_lan`].
    AllowLan,
    /// [`Settings::overlap`].
    Overlap,
}

/// How the app updates itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum UpdatePolicy {
    /// By itself.
    Automatic,
    /// When its user says so.
    Ask,
    /// Never; the administrator does it.
    Off,
}

/// What the app's menu need not show.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum MenuItem {
    /// The choice of a gateway.
    Gateways,
    /// The doctor.
    Diagnose,
    /// The settings.
    Settings,
    /// The end of the app.
    Quit,
}

/// What the administrator has decided. What is absent the user chooses.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(default)]
pub struct Managed {
    /// Who manages this machine.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub organization: Option<String>,
    /// True: the kill switch is in lockdown. False: it is not, and the user chooses between the other modes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub lockdown: Option<bool>,
    /// Whether the kill switch lets local networks through.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub allow_lan: Option<bool>,
    /// For the app: connect when it starts.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub connect_at_launch: Option<bool>,
    /// For the app: start when somebody logs in.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub start_at_login: Option<bool>,
    /// For the app: where users ask for help.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub support_url: Option<String>,
    /// For the app: how it updates itself.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub update_policy: Option<UpdatePolicy>,
    /// For the app: what its menu does not show.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub hide_menu_items: Vec<MenuItem>,
}

impl Managed {
    /// The settings that are in force where a user has chosen `settings`.
    #[must_use]
    pub fn applied_to(&self, mut settings: Settings) -> Settings {
        settings.kill_switch = match (self.lockdown, settings.kill_switch) {
            (Some(true), _) => KillSwitch::Lockdown,
            (Some(false), KillSwitch::Lockdown) => KillSwitch::Auto,
            (_, chosen) => chosen,
        };
        settings.allow_lan = self.allow_lan.unwrap_or(settings.allow_lan);
        settings
    }

    /// What the user cannot choose at all.
    pub fn locked(&self) -> Vec<SettingName> {
        let kill_switch = (self.lockdown == Some(true)).then_some(SettingName::KillSwitch);
        let allow_lan = self.allow_lan.map(|_| SettingName::AllowLan);
        kill_switch.into_iter().chain(allow_lan).collect()
    }

    /// Says why, where a change asks for something else than what is decided.
    ///
    /// # Errors
    /// [`code::MANAGED`].
    pub fn allows(&self, change: &SettingsChange) -> Result<(), Problem> {
        let asked = change.applied_to(Settings::default());
        let kept = self.applied_to(asked.clone());
        let refused = if change.kill_switch.is_some() && kept.kill_switch != asked.kill_switch {
            match self.lockdown {
                Some(false) => "kill-switch cannot be lockdown".to_owned(),
                _ => format!("kill-switch is {}", kept.kill_switch),
            }
        } else if change.allow_lan.is_some() && kept.allow_lan != asked.allow_lan {
            format!("allow-lan is {}", if kept.allow_lan { "on" } else { "off" })
        } else {
            return Ok(());
        };
        Err(Problem::new(code::MANAGED).because(format!("{}: {refused}, and users cannot change it", self.by())))
    }

    /// Who decides, for people: `Managed by Acme`.
    pub fn by(&self) -> String {
        match &self.organization {
            Some(name) => format!("Managed by {name}"),
            None => "Managed by the administrator".into(),
        }
    }
}

/// Answers a question for the settings.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct SettingsInForce {
    /// The settings that are in force, chosen or decided.
    #[serde(flatten)]
    pub settings: Settings,
    /// The settings that users cannot change.
    #[serde(default)]
    pub locked: Vec<SettingName>,
    /// What the administrator has decided; absent on a machine that nobody manages.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub managed: Option<Managed>,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::settings::Overlap;
    use serde_json::json;

    #[test]
    fn what_is_decided_wins_over_what_was_chosen_and_the_rest_stays() {
        let chosen = Settings { kill_switch: KillSwitch::Off, allow_lan: true, overlap: Overlap::Local };
        let lockdown = Managed { lockdown: Some(true), ..Managed::default() };
        let table = [
            (Managed::default(), chosen.clone(), vec![]),
            (lockdown, Settings { kill_switch: KillSwitch::Lockdown, ..chosen.clone() }, vec![SettingName::KillSwitch]),
            (Managed { lockdown: Some(false), ..Managed::default() }, chosen.clone(), vec![]),
            (
                Managed { allow_lan: Some(false), ..Managed::default() },
                Settings { allow_lan: false, ..chosen.clone() },
                vec![SettingName::AllowLan],
            ),
        ];
        for (managed, expected, locked) in table {
            assert_eq!(managed.applied_to(chosen.clone()), expected, "{managed:?}");
            assert_eq!(managed.locked(), locked, "{managed:?}");
        }
        let no_lockdown = Managed { lockdown: Some(false), ..Managed::default() };
        let was = Settings { kill_switch: KillSwitch::Lockdown, ..chosen };
        assert_eq!(no_lockdown.applied_to(was).kill_switch, KillSwitch::Auto);
    }

    #[test]
    fn a_change_against_a_decision_is_refused_by_name_and_one_that_fits_it_is_not() {
        let managed = Managed {
            organization: Some("Acme".into()),
            lockdown: Some(true),
            allow_lan: Some(false),
            ..Managed::default()
        };
        let kill_switch = |mode| SettingsChange { kill_switch: Some(mode), ..SettingsChange::default() };
        let allow_lan = |is| SettingsChange { allow_lan: Some(is), ..SettingsChange::default() };
        let problem = managed.allows(&kill_switch(KillSwitch::Off)).unwrap_err();
        assert_eq!(problem.code, code::MANAGED);
        assert_eq!(problem.cause, "Managed by Acme: kill-switch is lockdown, and users cannot change it");
        let problem = managed.allows(&allow_lan(true)).unwrap_err();
        assert!(problem.cause.contains("allow-lan is off"), "{problem}");
        for fits in [kill_switch(KillSwitch::Lockdown), allow_lan(false), SettingsChange::default()] {
            managed.allows(&fits).unwrap();
        }
        managed.allows(&SettingsChange { overlap: Some(Overlap::Gateway), ..SettingsChange::default() }).unwrap();
        let managed = Managed { lockdown: Some(false), ..Managed::default() };
        managed.allows(&kill_switch(KillSwitch::Off)).unwrap();
        let problem = managed.allows(&kill_switch(KillSwitch::Lockdown)).unwrap_err();
        assert!(problem.cause.starts_with("Managed by the administrator: kill-switch cannot be lockdown"), "{problem}");
    }

    #[test]
    fn an_older_helper_that_knows_no_manager_is_understood() {
        let told = json!({"kill_switch": "auto", "allow_lan": true, "overlap": "ask"});
        assert_eq!(serde_json::from_value::<SettingsInForce>(told).unwrap(), SettingsInForce::default());
    }
}
