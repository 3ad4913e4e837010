//! What is in force: the user's settings, and over them what the administrator has decided. The former are on disk,
//! `STATE_DIR/settings.json`: readable, and written whole or not at all; a decision leaves them there as they are.
//!
//! A file that was edited into nonsense is not overwritten: the helper goes on with the defaults and says so,
//! and the next change puts the file aside under another name.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use culvert_protocol::{Managed, Settings, SettingsChange, SettingsInForce};

use crate::files::{self, replace};

/// The settings, and where they are kept.
#[derive(Debug)]
pub struct SettingsFile {
    path: PathBuf,
    chosen: Settings,
    managed: Option<Managed>,
    now: Settings,
    damage: Option<String>,
}

impl SettingsFile {
    /// Reads them; the defaults where there are none.
    pub fn open(state_dir: &Path, managed: Option<Managed>) -> Self {
        let path = state_dir.join("settings.json");
        let read = match fs::read(&path) {
            Ok(bytes) => serde_json::from_slice(&bytes).map_err(|error| error.to_string()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Settings::default()),
            Err(error) => Err(error.to_string()),
        };
        let (chosen, damage) = match read {
            Ok(chosen) => (chosen, None),
            Err(why) => {
                let damage = format!("{} cannot be used, so the defaults are: {why}", path.display());
                tracing::error!("{damage}");
                (Settings::default(), Some(damage))
            }
        };
        let mut settings = Self { path, now: chosen.clone(), chosen, managed: None, damage };
        settings.manage(managed);
        settings
    }

    /// Takes over what the administrator has decided.
    pub fn manage(&mut self, managed: Option<Managed>) {
        self.managed = managed;
        self.work_out();
    }

    /// What is in force.
    pub fn now(&self) -> &Settings {
        &self.now
    }

    /// What the user has chosen, in force or not.
    pub fn chosen(&self) -> &Settings {
        &self.chosen
    }

    /// What the administrator has decided.
    pub fn managed(&self) -> Option<&Managed> {
        self.managed.as_ref()
    }

    /// What is in force, and why.
    pub fn in_force(&self) -> SettingsInForce {
        SettingsInForce {
            settings: self.now.clone(),
            locked: self.managed.as_ref().map(Managed::locked).unwrap_or_default(),
            managed: self.managed.clone(),
        }
    }

    /// What is wrong with the file, in a sentence.
    pub fn damage(&self) -> Option<&str> {
        self.damage.as_deref()
    }

    /// Back to the defaults, as if nothing had ever been chosen.
    ///
    /// # Errors
    /// What the file system says; the settings are as they were then.
    pub fn forget(&mut self) -> io::Result<()> {
        files::remove(&self.path)?;
        (self.chosen, self.damage) = (Settings::default(), None);
        self.work_out();
        Ok(())
    }

    /// Changes what the user has chosen, on disk first.
    ///
    /// # Errors
    /// What the file system says; the settings are as they were then.
    pub fn change(&mut self, change: &SettingsChange) -> io::Result<&Settings> {
        let wanted = change.applied_to(self.chosen.clone());
        if self.damage.is_some() {
            fs::rename(&self.path, self.path.with_extension("json.damaged"))?;
        }
        replace(&self.path, &serde_json::to_vec_pretty(&wanted)?)?;
        self.damage = None;
        self.chosen = wanted;
        self.work_out();
        Ok(&self.now)
    }

    fn work_out(&mut self) {
        let chosen = self.chosen.clone();
        self.now = match &self.managed {
            Some(managed) => managed.applied_to(chosen),
            None => chosen,
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use culvert_protocol::KillSwitch;

    #[test]
    fn what_was_chosen_is_still_chosen_after_a_restart() {
        let dir = tempfile::tempdir().unwrap();
        let mut settings = SettingsFile::open(dir.path(), None);
        assert_eq!(settings.now(), &Settings::default());
        settings.change(&lockdown()).unwrap();
        let again = SettingsFile::open(dir.path(), None);
        assert_eq!(again.now().kill_switch, KillSwitch::Lockdown);
        assert_eq!(again.damage(), None);
    }

    #[test]
    fn nonsense_is_named_and_kept_aside() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("settings.json");
        for nonsense in ["", "kill_switch = off", r#"{"kill_switch": "sometimes"}"#, "\0\u{1}"] {
            fs::write(&file, nonsense).unwrap();
            let mut settings = SettingsFile::open(dir.path(), None);
            assert_eq!(settings.now(), &Settings::default());
            assert!(settings.damage().unwrap().contains("settings.json"), "{:?}", settings.damage());
            assert_eq!(fs::read_to_string(&file).unwrap(), nonsense, "reading changes nothing");
            settings.change(&lockdown()).unwrap();
            assert_eq!(settings.damage(), None);
            assert_eq!(fs::read_to_string(dir.path().join("settings.json.damaged")).unwrap(), nonsense);
            assert_eq!(SettingsFile::open(dir.path(), None).now().kill_switch, KillSwitch::Lockdown);
        }
    }

    #[test]
    fn what_was_chosen_comes_back_when_a_decision_ends() {
        let dir = tempfile::tempdir().unwrap();
        let managed = Managed { lockdown: Some(true), allow_lan: Some(false), ..Managed::default() };
        let mut settings = SettingsFile::open(dir.path(), Some(managed));
        assert_eq!((settings.now().kill_switch, settings.now().allow_lan), (KillSwitch::Lockdown, false));
        assert_eq!(settings.in_force().locked.len(), 2);
        let overlap = SettingsChange { overlap: Some(culvert_protocol::Overlap::Local), ..SettingsChange::default() };
        settings.change(&overlap).unwrap();
        settings.manage(None);
        let chosen = Settings { overlap: culvert_protocol::Overlap::Local, ..Settings::default() };
        assert_eq!((settings.now(), settings.in_force().locked.len()), (&chosen, 0));
        assert_eq!(SettingsFile::open(dir.path(), None).now(), &chosen, "no decision is on the disk");
    }

    #[test]
    fn a_change_that_cannot_be_written_changes_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let mut settings = SettingsFile::open(dir.path(), None);
        fs::create_dir(dir.path().join("settings.json.new")).unwrap(); // as a full disk
        assert!(settings.change(&lockdown()).is_err());
        assert_eq!(settings.now(), &Settings::default());
    }

    fn lockdown() -> SettingsChange {
        SettingsChange { kill_switch: Some(KillSwitch::Lockdown), ..SettingsChange::default() }
    }
}
