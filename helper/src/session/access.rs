//! What keeps this device's access good within a session, and what it learns for the next one: where the gateways are,
//! its certificate, their CAs. `upkeep` and `endpoints` judge; here it is taken over into the profile, which
//! `service` saves.

use std::time::SystemTime;

use culvert_tunnel::control::{Base64, FromClient};
use tokio::time::Instant;

use super::Session;
use crate::dial;
use crate::endpoints;
use crate::upkeep::{self, Renewal};

impl Session {
    /// The profile is on the disk as it is here; a gateway that gives devices certificates of another CA is told.
    pub async fn confirm_saved(&mut self) {
        if let (Some(authority), Some(live)) = (self.unconfirmed.take(), &self.live) {
            self.say(live.link, &FromClient::Kept { authority }).await;
        }
    }

    /// Takes over where else the gateways say they are. Returns the place of the endpoint in use.
    pub(super) fn learn(&mut self, told: &[String], in_use: usize) -> usize {
        let Some(profile) = &mut self.profile else { return in_use };
        let merged = endpoints::merged(&profile.endpoints, told, in_use);
        if merged == profile.endpoints {
            return in_use;
        }
        let old = std::mem::replace(&mut profile.endpoints, merged);
        if profile.endpoints.first() != old.first() {
            profile.server_name =
                profile.endpoints.first().map(|first| dial::host(first).to_owned()).unwrap_or_default();
        }
        let place = |before: usize| profile.endpoints.iter().position(|now| Some(now) == old.get(before));
        self.known.retain_mut(|known| place(known.endpoint).map(|now| known.endpoint = now).is_some());
        tracing::info!(endpoints = profile.endpoints.join(" "), "where the gateway can be reached has changed");
        self.stale = true; // the next attempt looks up the new ones, too
        self.renewed = true;
        place(in_use).unwrap_or_default()
    }

    pub(super) async fn on_renewal_due(&mut self) {
        let (Some(profile), Some(live)) = (&self.profile, &mut self.live) else { return };
        let link = live.link;
        self.renewed |= self.unconfirmed.is_some(); // it could not be saved the last time
        let request = match upkeep::due_for(profile, SystemTime::now()) {
            Renewal::Wait(time) => {
                live.renewal_due = Instant::now() + time;
                return;
            }
            Renewal::Ask(time) => {
                live.renewal_due = Instant::now() + time;
                upkeep::request(profile)
            }
        };
        match request {
            Ok(request) => self.say(link, &request).await,
            Err(error) => tracing::warn!(%error, "the certificate cannot be renewed"),
        }
    }

    pub(super) fn on_certificate(&mut self, chain: Vec<Base64>) {
        let (Some(profile), Some(live)) = (&mut self.profile, &mut self.live) else { return };
        match upkeep::accept(profile, chain) {
            Ok(chain_pem) => {
                let before = profile.authority();
                profile.chain_pem = chain_pem;
                self.unconfirmed = profile.authority().filter(|now| Some(*now) != before).or(self.unconfirmed);
                self.renewed = true;
                live.renewal_due = Instant::now();
                tracing::info!("the certificate is renewed");
            }
            Err(error) => tracing::warn!(%error, "the certificate is not renewed"),
        }
    }

    pub(super) fn on_authorities(&mut self, authorities: Vec<Base64>) {
        let (Some(profile), Some(live)) = (&mut self.profile, &mut self.live) else { return };
        match upkeep::learn(authorities) {
            Ok(authorities_pem) => {
                profile.authorities_pem = authorities_pem;
                self.renewed = true;
                live.renewal_due = Instant::now(); // after it is saved: `next` comes later
                tracing::info!(authorities = ?profile.pins(), "the gateway has another certificate authority");
            }
            Err(error) => tracing::warn!(%error, "the gateway's certificate authorities stay as they were"),
        }
    }

    pub(super) async fn on_challenge(&mut self, nonce: Vec<u8>) {
        let (Some(profile), Some(live)) = (&self.profile, &self.live) else { return };
        match upkeep::answer(profile, nonce, &live.exporter) {
            Ok(answer) => self.say(live.link, &answer).await,
            Err(error) => tracing::warn!(%error, "the gateway's challenge cannot be answered"),
        }
    }
}
