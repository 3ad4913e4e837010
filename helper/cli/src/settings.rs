//! `settings`: what the user has chosen, by the words of the command line.

use std::path::Path;
use std::process::ExitCode;

use clap::{Subcommand, ValueEnum};
use culvert_protocol::{
    Client, Event, KillSwitch, Overlap, Request, SettingName, Settings, SettingsChange, SettingsInForce,
};

use crate::failure::Failure;
use crate::json::SettingsList;
use crate::{ask, dial, output};

#[derive(Subcommand, Debug)]
pub(crate) enum Command {
    /// Show every setting, its value and what that does.
    List {
        /// One JSON object.
        #[arg(long)]
        json: bool,
    },
    /// Show one value.
    Get {
        /// Which setting.
        key: Key,
    },
    /// Change one setting; it is in force at once.
    Set {
        /// Which setting.
        key: Key,
        /// Its new value: off, auto or lockdown for kill-switch; on or off for allow-lan; ask, gateway or local for
        /// overlap.
        value: String,
    },
    /// Go back to the default of one setting, or of all.
    Reset {
        /// Which setting; all when absent.
        key: Option<Key>,
    },
}

#[derive(ValueEnum, Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Key {
    /// When traffic that would leave beside the tunnel is refused.
    KillSwitch,
    /// Whether the kill switch lets local networks through.
    AllowLan,
    /// What to do about addresses that are both local and behind the gateway.
    Overlap,
}

impl Key {
    const ALL: [Self; 3] = [Self::KillSwitch, Self::AllowLan, Self::Overlap];

    fn word(self) -> &'static str {
        match self {
            Self::KillSwitch => "kill-switch",
            Self::AllowLan => "allow-lan",
            Self::Overlap => "overlap",
        }
    }

    fn name(self) -> SettingName {
        match self {
            Self::KillSwitch => SettingName::KillSwitch,
            Self::AllowLan => SettingName::AllowLan,
            Self::Overlap => SettingName::Overlap,
        }
    }

    fn value(self, settings: &Settings) -> &'static str {
        match self {
            Self::KillSwitch => settings.kill_switch.word(),
            Self::AllowLan => on_off(settings.allow_lan),
            Self::Overlap => settings.overlap.word(),
        }
    }

    fn sentence(self, settings: &Settings) -> &'static str {
        match self {
            Self::KillSwitch => settings.kill_switch.sentence(),
            Self::AllowLan if settings.allow_lan => "the kill switch lets local networks through",
            Self::AllowLan => "the kill switch refuses local networks, too",
            Self::Overlap => settings.overlap.sentence(),
        }
    }

    fn change(self, value: &str) -> Result<SettingsChange, Failure> {
        let mut change = SettingsChange::default();
        match self {
            Self::KillSwitch => {
                let known = KillSwitch::ALL.into_iter().find(|mode| mode.word() == value);
                change.kill_switch = Some(known.ok_or_else(|| unknown(self, value, "off, auto or lockdown"))?);
            }
            Self::AllowLan => {
                let known = [true, false].into_iter().find(|is| on_off(*is) == value);
                change.allow_lan = Some(known.ok_or_else(|| unknown(self, value, "on or off"))?);
            }
            Self::Overlap => {
                let known = Overlap::ALL.into_iter().find(|overlap| overlap.word() == value);
                change.overlap = Some(known.ok_or_else(|| unknown(self, value, "ask, gateway or local"))?);
            }
        }
        Ok(change)
    }
}

fn on_off(is: bool) -> &'static str {
    if is { "on" } else { "off" }
}

fn unknown(key: Key, value: &str, choices: &str) -> Failure {
    Failure::Usage(format!("{} cannot be {value:?}. hint: It is {choices}", key.word()))
}

pub(crate) async fn settings(socket: &Path, command: Command) -> Result<ExitCode, Failure> {
    // What cannot be meant is said before the helper is asked.
    let request = match &command {
        Command::List { .. } | Command::Get { .. } => Request::Settings,
        Command::Set { key, value } => Request::Set(key.change(value)?),
        Command::Reset { key: Some(key) } => Request::Set(defaults(*key)?),
        Command::Reset { key: None } => Request::Settings,
    };
    let mut client = dial(socket).await?;
    let mut now = answer(&mut client, request).await?;
    if matches!(command, Command::Reset { key: None }) {
        now = answer(&mut client, Request::Set(all_defaults(&now))).await?;
    }
    match command {
        Command::List { json: true } => output::json(&SettingsList::new(now))?,
        Command::List { json: false } => {
            for key in Key::ALL {
                let (value, sentence) = (key.value(&now.settings), key.sentence(&now.settings));
                let locked = if now.locked.contains(&key.name()) { " (locked)" } else { "" };
                output::text(&format!("{:<12} {value:<9} {sentence}{locked}", key.word()))?;
            }
            if let Some(managed) = &now.managed {
                output::text(&managed.by())?;
            }
        }
        Command::Get { key } => output::text(key.value(&now.settings))?,
        Command::Set { key, .. } => output::message(&said(key, &now)),
        Command::Reset { key } => {
            Key::ALL
                .into_iter()
                .filter(|it| key.is_none_or(|key| key == *it))
                .for_each(|it| output::message(&said(it, &now)));
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn said(key: Key, now: &SettingsInForce) -> String {
    let locked = match &now.managed {
        Some(managed) if now.locked.contains(&key.name()) => format!(" ({})", managed.by()),
        _ => String::new(),
    };
    format!("{} is {}: {}{locked}", key.word(), key.value(&now.settings), key.sentence(&now.settings))
}

fn defaults(key: Key) -> Result<SettingsChange, Failure> {
    key.change(key.value(&Settings::default()))
}

/// Of everything that a user may choose here.
fn all_defaults(now: &SettingsInForce) -> SettingsChange {
    let (default, is_free) = (Settings::default(), |name| !now.locked.contains(&name));
    SettingsChange {
        kill_switch: is_free(SettingName::KillSwitch).then_some(default.kill_switch),
        allow_lan: is_free(SettingName::AllowLan).then_some(default.allow_lan),
        overlap: is_free(SettingName::Overlap).then_some(default.overlap),
    }
}

async fn answer(client: &mut Client, request: Request) -> Result<SettingsInForce, Failure> {
    match ask(client, request).await? {
        Event::Settings(settings) => Ok(settings),
        other => Err(Failure::unexpected(&other)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use culvert_protocol::Managed;

    #[test]
    fn every_value_that_is_shown_can_be_set() {
        for settings in [
            Settings::default(),
            Settings { kill_switch: KillSwitch::Lockdown, allow_lan: false, overlap: Overlap::Local },
        ] {
            for key in Key::ALL {
                let change = key.change(key.value(&settings)).unwrap();
                assert_eq!(key.value(&change.applied_to(Settings::default())), key.value(&settings));
            }
        }
    }

    #[test]
    fn a_value_that_cannot_be_is_named_with_those_that_can() {
        let Err(Failure::Usage(text)) = Key::KillSwitch.change("on") else { panic!() };
        assert!(text.contains("kill-switch") && text.contains("\"on\"") && text.contains("lockdown"), "{text}");
    }

    #[test]
    fn a_reset_of_one_key_leaves_the_others() {
        assert_eq!(defaults(Key::AllowLan).unwrap().kill_switch, None);
        assert!(all_defaults(&SettingsInForce::default()).kill_switch.is_some());
    }

    #[test]
    fn a_reset_of_everything_leaves_alone_what_is_locked_and_that_is_said() {
        let managed = Managed { allow_lan: Some(false), ..Managed::default() };
        let settings = managed.applied_to(Settings::default());
        let now = SettingsInForce { settings, locked: managed.locked(), managed: Some(managed) };
        assert_eq!((all_defaults(&now).allow_lan, all_defaults(&now).overlap), (None, Some(Overlap::Ask)));
        assert!(said(Key::AllowLan, &now).ends_with("(Managed by the administrator)"), "{}", said(Key::AllowLan, &now));
        assert!(!said(Key::Overlap, &now).contains("anaged"));
    }
}
