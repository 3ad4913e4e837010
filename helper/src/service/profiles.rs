//! What is asked about the stored profiles, and what comes of an enrolment.

use std::io;

use culvert_protocol::{Event, Problem, ProfileFacts, Secret, Timestamp, code};

use super::Service;
use crate::profile::{Profile, Profiles};
use crate::seal::{Keychain, SealError};
use crate::supervisor::Input;

impl Service {
    /// Seals the key of a profile that no session uses, or undoes that.
    pub(super) fn on_seal(&mut self, name: &str, key: &Secret, seal: bool) -> Result<Event, Problem> {
        if !self.supervisor.is_at_rest() {
            return Err(Problem::new(code::PROFILE_IN_USE).because("A connection is wanted"));
        }
        let mut profile = self.profiles.load(name).map_err(|error| self.no_profile(name, &error))?;
        if seal == profile.sealed.is_some() {
            unlock(&mut profile, Some(key))?; // the same, if it is the same key
            return self.profile_facts();
        }
        if seal {
            let keychain = Keychain::parse(key.expose()).map_err(|error| locked(&error))?;
            let sealed = keychain.seal(&profile.key_pem, profile.device_id).map_err(|error| locked(&error))?;
            profile.sealed = Some(sealed);
        } else {
            unlock(&mut profile, Some(key))?;
            profile.sealed = None;
        }
        self.profiles.update(&profile).map_err(|error| unreadable(&error))?;
        self.session.forget();
        tracing::info!(profile = name, sealed = seal, "the device key");
        self.profile_facts()
    }

    /// Changes a profile that no session uses.
    pub(super) fn on_profile(
        &mut self,
        name: &str,
        change: impl FnOnce(&Profiles) -> io::Result<()>,
    ) -> Result<Event, Problem> {
        let in_use = self.session.profile().is_some_and(|active| active.name == name);
        if in_use && !self.supervisor.is_at_rest() {
            return Err(Problem::new(code::PROFILE_IN_USE).because(format!("The profile {name:?} is in use")));
        }
        change(&self.profiles).map_err(|error| self.no_profile(name, &error))?;
        if in_use {
            self.session.forget();
        }
        if self.profiles.default_name().is_ok_and(|left| left.is_none()) {
            self.inputs.push_back(Input::Forgotten);
        }
        self.profile_facts()
    }

    pub(super) fn profile_facts(&self) -> Result<Event, Problem> {
        let default = self.profiles.default_name().map_err(|error| unreadable(&error))?;
        let names = self.profiles.names().map_err(|error| unreadable(&error))?;
        let facts = |name: String| {
            let is_default = default.as_ref() == Some(&name);
            match self.profiles.load(&name) {
                Ok(profile) => ProfileFacts {
                    certificate_until: certificate_end(&profile),
                    name,
                    gateway: profile.gateway,
                    endpoints: profile.endpoints,
                    device: profile.device_name,
                    user: profile.user,
                    is_default,
                    device_id: profile.device_id.to_string(),
                    sealed: profile.sealed.is_some(),
                },
                // A damaged one is there, and can be removed.
                Err(_) => ProfileFacts {
                    name,
                    gateway: String::new(),
                    endpoints: vec![],
                    device: String::new(),
                    user: String::new(),
                    certificate_until: None,
                    is_default,
                    device_id: String::new(),
                    sealed: false,
                },
            }
        };
        Ok(Event::Profiles { profiles: names.into_iter().map(facts).collect() })
    }

    /// Why a profile cannot be had.
    pub(super) fn no_profile(&self, name: &str, error: &io::Error) -> Problem {
        match error.kind() {
            io::ErrorKind::NotFound => {
                let known = self.profiles.names().unwrap_or_default();
                if known.is_empty() {
                    return Problem::new(code::NOT_ENROLLED);
                }
                let sentence = format!("There is no profile {name:?}");
                Problem::new(code::NO_PROFILE).because(sentence).hint(format!("Known profiles: {}", known.join(", ")))
            }
            io::ErrorKind::InvalidInput => Problem::new(code::PROFILE_NAME),
            io::ErrorKind::AlreadyExists => Problem::new(code::PROFILE_NAME).because("A profile has this name already"),
            _ => unreadable(error),
        }
    }

    pub(super) fn may_enrol(&self) -> Result<(), Problem> {
        if !self.enrolling.is_empty() {
            return Err(Problem::new(code::BUSY).because("Another enrolment is under way"));
        }
        self.profiles.has_room().map_err(|error| {
            Problem::new(code::DISK)
                .because(format!("The identity could not be saved, so the invitation was not used: {error}"))
        })
    }

    pub(super) fn on_enrolled(&mut self, result: Result<Profile, Problem>) -> Result<Event, Problem> {
        let profile = self.profiles.keep(result?).map_err(|error| {
            Problem::new(code::DISK)
                .because(format!("The gateway enrolled this device, but its identity could not be saved: {error}"))
        })?;
        tracing::info!(profile = profile.name, gateway = profile.gateway, "enrolled");
        self.inputs.push_back(Input::Enrolled);
        Ok(Event::Enrolled {
            certificate_until: certificate_end(&profile).unwrap_or(Timestamp::UNIX_EPOCH),
            device: profile.device_name,
            gateway: profile.gateway,
            profile: profile.name,
        })
    }
}

/// Opens a sealed key with the keychain's; nothing is to be done for others.
pub(super) fn unlock(profile: &mut Profile, key: Option<&Secret>) -> Result<(), Problem> {
    let Some(sealed) = &profile.sealed else { return Ok(()) };
    let key = key.ok_or_else(|| Problem::new(code::LOCKED))?;
    let keychain = Keychain::parse(key.expose()).map_err(|error| locked(&error))?;
    let pem = keychain.open(sealed, profile.device_id).map_err(|error| locked(&error))?;
    profile.key_pem = pem.as_str().to_owned();
    Ok(())
}

fn locked(error: &SealError) -> Problem {
    Problem::new(code::LOCKED).because(format!("The identity of this profile does not open: {error}"))
}

pub(super) fn unreadable(error: &io::Error) -> Problem {
    Problem::new(code::DISK).because(format!("The profiles cannot be read or written: {error}"))
}

pub(super) fn certificate_end(profile: &Profile) -> Option<Timestamp> {
    Some(profile.facts().ok()?.not_after.into())
}
