//! The user's settings on disk, `STATE_DIR/settings.json`: readable, and written whole or not at all.
//!
//! A file that was edited into nonsense is not overwritten: the helper goes on with the defaults and says so,
//! and the next change puts the file aside under another name.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use culvert_protocol::{Settings, SettingsChange};

use crate::files::{self, replace};

/// The settings, and where they are kept.
#[derive(Debug)]
pub struct SettingsFile {
    path: PathBuf,
    now: Settings,
    damage: Option<String>,
}

impl SettingsFile {
    /// Reads them; the defaults where there are none.
    pub fn open(state_dir: &Path) -> Self {
        let path = state_dir.join("settings.json");
        let read = match fs::read(&path) {
            Ok(bytes) => serde_json::from_slice(&bytes).map_err(|error| error.to_string()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Settings::default()),
            Err(error) => Err(error.to_string()),
        };
        match read {
            Ok(now) => Self { path, now, damage: None },
            Err(why) => {
                let damage = format!("{} cannot be used, so the defaults are: {why}", path.display());
                tracing::error!("{damage}");
                Self { path, now: Settings::default(), damage: Some(damage) }
            }
        }
    }

    /// What is in force.
    pub fn now(&self) -> &Settings {
        &self.now
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
        (self.now, self.damage) = (Settings::default(), None);
        Ok(())
    }

    /// Changes them, on disk first.
    ///
    /// # Errors
    /// What the file system says; the settings are as they were then.
    pub fn change(&mut self, change: &SettingsChange) -> io::Result<&Settings> {
        let wanted = change.applied_to(self.now.clone());
        if self.damage.is_some() {
            fs::rename(&self.path, self.path.with_extension("json.damaged"))?;
        }
        replace(&self.path, &serde_json::to_vec_pretty(&wanted)?)?;
        self.damage = None;
        self.now = wanted;
        Ok(&self.now)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use culvert_protocol::KillSwitch;

    #[test]
    fn what_was_chosen_is_still_chosen_after_a_restart() {
        let dir = tempfile::tempdir().unwrap();
        let mut settings = SettingsFile::open(dir.path());
        assert_eq!(settings.now(), &Settings::default());
        settings.change(&lockdown()).unwrap();
        let again = SettingsFile::open(dir.path());
        assert_eq!(again.now().kill_switch, KillSwitch::Lockdown);
        assert_eq!(again.damage(), None);
    }

    #[test]
    fn nonsense_is_named_and_kept_aside() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("settings.json");
        for nonsense in ["", "kill_switch = off", r#"{"kill_switch": "sometimes"}"#, "\0\u{1}"] {
            fs::write(&file, nonsense).unwrap();
            let mut settings = SettingsFile::open(dir.path());
            assert_eq!(settings.now(), &Settings::default());
            assert!(settings.damage().unwrap().contains("settings.json"), "{:?}", settings.damage());
            assert_eq!(fs::read_to_string(&file).unwrap(), nonsense, "reading changes nothing");
            settings.change(&lockdown()).unwrap();
            assert_eq!(settings.damage(), None);
            assert_eq!(fs::read_to_string(dir.path().join("settings.json.damaged")).unwrap(), nonsense);
            assert_eq!(SettingsFile::open(dir.path()).now().kill_switch, KillSwitch::Lockdown);
        }
    }

    #[test]
    fn a_change_that_cannot_be_written_changes_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let mut settings = SettingsFile::open(dir.path());
        fs::create_dir(dir.path().join("settings.json.new")).unwrap(); // as a full disk
        assert!(settings.change(&lockdown()).is_err());
        assert_eq!(settings.now(), &Settings::default());
    }

    fn lockdown() -> SettingsChange {
        SettingsChange { kill_switch: Some(KillSwitch::Lockdown), ..SettingsChange::default() }
    }
}
