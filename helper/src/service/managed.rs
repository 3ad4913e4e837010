//! What the administrator has decided, and the invitation among it.

use std::time::Instant;

use culvert_protocol::{Managed, Problem};
use culvert_tunnel::identity::Pin;

use super::{Service, host_name};
use crate::enrol::enrol;
use crate::profile::Profile;

impl Service {
    /// The file may say something else.
    pub(super) async fn on_managed(&mut self) {
        let decided = self.managed.read();
        self.invited.on_told(decided.invitation, Instant::now());
        self.undecided = decided.damage;
        if self.settings.managed() == decided.managed.as_ref() {
            return;
        }
        let before = self.settings.now().kill_switch;
        self.settings.manage(decided.managed);
        self.unblocked &= before == self.settings.now().kill_switch;
        if let Err(problem) = self.hold().await {
            tracing::error!(%problem, "the kill switch");
        }
        let by = self.settings.managed().map(Managed::by);
        tracing::info!(managed = by.as_deref(), "the administrator has decided anew");
        self.publish();
    }

    /// Uses the administrator's invitation, unless there is an identity of its gateway already.
    pub(super) fn on_invited(&mut self) {
        let Some((text, invitation)) = self.invited.on_timeout(Instant::now()) else { return };
        if self.has_profile_of(&invitation.pin) {
            return self.note_tried(Ok(()));
        }
        if let Err(problem) = self.may_enrol() {
            return self.note_tried(Err(problem));
        }
        tracing::info!(gateway = invitation.gateway, "enrolling with the administrator's invitation");
        let (names, fwmark) = (self.session.names(), self.options.fwmark);
        self.enrolling.spawn(async move { (None, enrol(text.expose(), &host_name(), &names, fwmark).await) });
    }

    pub(super) fn on_invited_enrolled(&mut self, result: Result<Profile, Problem>) {
        let done = self.on_enrolled(result).map(|_| ());
        self.note_tried(done);
    }

    fn note_tried(&mut self, result: Result<(), Problem>) {
        if let Err(problem) = &result {
            tracing::warn!(%problem, "the administrator's invitation");
        }
        if let Err(error) = self.invited.on_tried(result, Instant::now()) {
            tracing::error!(%error, "that the invitation is used cannot be noted");
        }
    }

    fn has_profile_of(&self, pin: &Pin) -> bool {
        let names = self.profiles.names().unwrap_or_default();
        names.iter().filter_map(|name| self.profiles.load(name).ok()).any(|profile| profile.authority() == Some(*pin))
    }
}
