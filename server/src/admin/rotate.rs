//! `ca rotate`: another CA takes the place of the first one, with a time in between in which both count.
//!
//! Each step is taken on the disk, noted in the registry, and told to the running gateway, in this order: a command
//! that is killed in between has taken the step or not, and the gateway sees it within ten minutes, or when any
//! other command tells it to look.

use std::time::SystemTime;

use culvert_tunnel::identity::{Authority, Pin};
use serde_json::{Value, json};
use time::OffsetDateTime;

use super::devices::{count, tell};
use super::lists::line;
use super::{AdminError, SCHEMA, actor, state_dir};
use crate::authorities::{Authorities, Second};
use crate::config::Config;
use crate::registry::any::AnyRegistry;
use crate::registry::{Device, Invitation, Registry, Rotation};
use crate::state::StateDir;

/// Devices that a sentence names.
const NAMED: usize = 8;

/// Which step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// A second one comes.
    Begin,
    /// It takes the first one's place.
    Finish,
    /// It does not.
    Abort,
}

/// Why a step was not taken.
#[derive(Debug, thiserror::Error)]
pub enum RotationError {
    /// There is a second one.
    #[error(
        "a rotation is under way: culvert-server ca show says how far it is, culvert-server ca rotate --finish ends \
         it, and --abort takes it back"
    )]
    UnderWay,
    /// There is none.
    #[error("no rotation is under way; culvert-server ca rotate begins one")]
    None,
    /// The second one leaves.
    #[error(
        "the last rotation was taken back, and devices still have certificates of it: culvert-server ca show names \
         them, and culvert-server ca rotate --abort forgets it once they have others"
    )]
    Leaving,
    /// The others would not know it.
    #[error(
        "this gateway shares its registry, and so its certificate authority, with others; a rotation of all of them is \
         not possible yet"
    )]
    Shared,
    /// Some would be lost.
    #[error(
        "{} now: {what}. Wait until the devices have connected (culvert-server ca show), or do it all the same with \
         --force; each of them then needs a new invitation (culvert-server invite NAME --renew)",
        .lost.sentence()
    )]
    Lost {
        /// What would be.
        lost: Lost,
        /// Which.
        what: String,
    },
}

/// Who would lose access by the end of a rotation.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Lost {
    /// `user/device`, of those whose certificates are good.
    pub devices: Vec<String>,
    /// Users with open invitations that name the former CA.
    pub invitations: Vec<String>,
}

impl Lost {
    fn is_empty(&self) -> bool {
        self.devices.is_empty() && self.invitations.is_empty()
    }

    fn sentence(&self) -> String {
        let devices = (!self.devices.is_empty()).then(|| count(self.devices.len(), "device"));
        let invitations = (!self.invitations.is_empty()).then(|| count(self.invitations.len(), "open invitation"));
        let both: Vec<String> = devices.into_iter().chain(invitations).collect();
        format!("{} would be lost", both.join(" and "))
    }

    fn names(&self) -> String {
        let invitations = self.invitations.iter().map(|user| format!("an invitation for {user}"));
        let all: Vec<String> = self.devices.iter().cloned().chain(invitations).collect();
        named(&all)
    }

    fn json(&self) -> Value {
        json!({ "devices": self.devices, "invitations": self.invitations })
    }
}

/// The first few names.
pub(super) fn named(names: &[String]) -> String {
    match names.len().checked_sub(NAMED) {
        Some(more @ 1..) => format!("{} and {more} more", names[..NAMED].join(", ")),
        _ => names.join(", "),
    }
}

/// How far a rotation is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Progress {
    /// Devices that may connect.
    pub devices: usize,
    /// Of these, those that do not have a certificate of the CA that stays, by name.
    pub waiting: Vec<String>,
}

impl Progress {
    /// Of devices, towards the CA with this pin.
    pub fn of(devices: &[Device], towards: Pin, now: OffsetDateTime) -> Self {
        let able: Vec<&Device> =
            devices.iter().filter(|device| device.revoked_at.is_none() && now < device.not_after).collect();
        let waiting = able.iter().filter(|device| device.authority != Some(towards));
        Self { devices: able.len(), waiting: waiting.map(|device| full_name(device)).collect() }
    }
}

fn full_name(device: &Device) -> String {
    format!("{}/{}", device.user, device.name)
}

/// Takes one step.
///
/// # Errors
/// [`AdminError`]; [`AdminError::StillOpen`] when the step was taken and the running gateway could not be told.
pub async fn rotate(config: &Config, step: Step, force: bool, as_json: bool) -> Result<String, AdminError> {
    let state = state_dir(config);
    let registry = state.registry().await?;
    let done = take(config, &state, &registry, step, force).await;
    registry.close().await;
    let (text, mut object) = done?;
    object["schema"] = SCHEMA.into();
    Ok(if as_json { line(&object) } else { text })
}

type Told = (String, Value);

async fn take(
    config: &Config,
    state: &StateDir,
    registry: &AnyRegistry,
    step: Step,
    force: bool,
) -> Result<Told, AdminError> {
    if registry.shared().is_some() {
        return Err(RotationError::Shared.into());
    }
    let lock = state.lock_rotation()?;
    state.tidy_rotation(&lock)?;
    let authorities = state.authorities()?;
    let current = authorities.current();
    // Before anybody can have a certificate of another one.
    registry.first_authority(&current.pin()).await?;
    let now = OffsetDateTime::now_utc();
    match (step, authorities.second()) {
        (Step::Begin, None) => {
            let next = state.begin_rotation(&lock, current)?;
            registry.rotated(Rotation::Begun, &next.pin(), now, &actor()).await?;
            tell(config)?;
            Ok(begun(&next, &authorities))
        }
        (Step::Begin, Some(second)) => {
            tell(config)?; // the command before this one may have been killed before it did
            Err(if matches!(second, Second::Coming(_)) { RotationError::UnderWay } else { RotationError::Leaving }
                .into())
        }
        (Step::Finish | Step::Abort, None) => {
            tell(config)?; // as above
            Err(RotationError::None.into())
        }
        (Step::Finish, Some(Second::Leaving(_))) => Err(RotationError::Leaving.into()),
        (Step::Finish, Some(Second::Coming(next))) => {
            let devices = registry.devices().await?;
            let invitations = open(registry.invitations().await?, now);
            let lost = Lost {
                devices: Progress::of(&devices, next.pin(), now).waiting,
                invitations: invitations.iter().map(|invitation| invitation.user.clone()).collect(),
            };
            refuse(&lost, force)?;
            for invitation in &invitations {
                registry.cancel_invitation(&invitation.id, now, &actor()).await?; // nobody could use it
            }
            // Whoever is lost is told so as long as its certificate would have been good.
            let until = devices.iter().filter(|device| device.revoked_at.is_none()).map(|device| device.not_after);
            let until = until.max().unwrap_or(now);
            state.finish_rotation(&lock, current, next, SystemTime::from(until))?;
            registry.rotated(Rotation::Finished, &next.pin(), now, &actor()).await?;
            tell(config)?;
            Ok(finished(next, &lost))
        }
        (Step::Abort, Some(second)) => {
            let second_pin = authorities.second_pin().unwrap_or(current.pin());
            let devices = registry.devices().await?;
            let lost = Lost { devices: Progress::of(&devices, current.pin(), now).waiting, invitations: vec![] };
            let is_coming = matches!(second, Second::Coming(_));
            if lost.is_empty() || force {
                state.forget_next(&lock)?;
            } else if let Second::Coming(next) = second {
                state.abort_rotation(&lock, next)?;
            } else {
                refuse(&lost, force)?;
            }
            if is_coming {
                registry.rotated(Rotation::Aborted, &second_pin, now, &actor()).await?;
            }
            tell(config)?;
            Ok(aborted(&lost, force))
        }
    }
}

fn open(mut invitations: Vec<Invitation>, now: OffsetDateTime) -> Vec<Invitation> {
    invitations.retain(|invitation| invitation.judge(now).is_ok());
    invitations
}

fn refuse(lost: &Lost, force: bool) -> Result<(), RotationError> {
    if lost.is_empty() || force {
        return Ok(());
    }
    Err(RotationError::Lost { lost: lost.clone(), what: lost.names() })
}

fn begun(next: &Authority, authorities: &Authorities) -> Told {
    let text = format!(
        "A second certificate authority is there. CA pin: {}\nDevices get a certificate of it when they are \
         connected; until the end both count. culvert-server ca show says who has none yet, culvert-server ca rotate \
         --finish ends it.\n",
        next.pin()
    );
    let pins = json!({ "step": "begun", "ca_pin": authorities.current().pin(), "next_pin": next.pin() });
    (text, pins)
}

fn finished(next: &Authority, lost: &Lost) -> Told {
    let mut text = format!("The new certificate authority has taken the old one's place. CA pin: {}\n", next.pin());
    if !lost.is_empty() {
        text.push_str(&format!("Lost: {}\n", lost.names()));
    }
    (text, json!({ "step": "finished", "ca_pin": next.pin(), "lost": lost.json() }))
}

fn aborted(waiting: &Lost, force: bool) -> Told {
    if waiting.is_empty() || force {
        let mut text = "The rotation is taken back, and nothing is left of it.\n".to_owned();
        if !waiting.is_empty() {
            text.push_str(&format!("Lost: {}\n", waiting.names()));
        }
        return (text, json!({ "step": "aborted", "lost": waiting.json() }));
    }
    let text = format!(
        "The rotation is taken back. {} have certificates of it, which count until they have others: {}\n\
         culvert-server ca rotate --abort, once more, forgets it then.\n",
        count(waiting.devices.len(), "device"),
        waiting.names()
    );
    (text, json!({ "step": "aborting", "waiting": waiting.devices }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_would_be_lost_is_counted_and_named() {
        let lost = Lost { devices: (1..=10).map(|n| format!("anna/{n}")).collect(), invitations: vec!["ben".into()] };
        let told = refuse(&lost, false).unwrap_err().to_string();
        assert!(told.starts_with("10 devices and 1 open invitation would be lost now: anna/1, "), "{told}");
        assert!(told.contains("anna/8 and 3 more. Wait"), "{told}");
        assert!(refuse(&lost, true).is_ok() && refuse(&Lost::default(), false).is_ok());
    }
}
