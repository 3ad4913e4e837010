//! What the doctor is given, and what it says.

use std::time::Instant;

use culvert_protocol::{Check, CheckId, DOCTOR_WITHIN, Diagnosis, Finding, Problem, Timestamp, code};

use super::Service;
use super::profiles::unreadable;
use super::status::path_facts;
use crate::doctor::look::{Known, Link, look};
use crate::doctor::{examine, well};

impl Service {
    /// What a diagnosis begins with; one at a time.
    pub(super) async fn known(&self) -> Result<Known, Problem> {
        if !self.diagnosing.is_empty() {
            return Err(Problem::new(code::BUSY).because("Another diagnosis is under way"));
        }
        let facts = self.session.facts().await;
        let at_rest = self.supervisor.is_at_rest();
        let profile = match facts.profile.filter(|_| !at_rest) {
            Some(profile) => Some(Ok(profile.clone())),
            None => match self.profiles.default_name() {
                Ok(name) => name.map(|name| self.profiles.load(&name).map_err(|error| self.no_profile(&name, &error))),
                Err(error) => Some(Err(unreadable(&error))),
            },
        };
        let is_up = self.supervisor.state().is_connected();
        let link = facts.live.zip(facts.installed).filter(|_| is_up).map(|((remote, _), installed)| Link {
            remote,
            interface: installed.interface().to_owned(),
            path: facts.stats.as_ref().map(path_facts),
            sent_packets: facts.stats.as_ref().map_or(0, |stats| stats.quic_sent),
            name_servers: installed.name_servers().to_vec(),
            only: installed.carried().only,
            names_inside: installed.looks_up_names_inside(),
            unguarded: self.unguarded.clone(),
            clock_ahead: facts.clock_ahead,
        });
        let (fwmark, names) = (self.options.fwmark, self.session.names());
        Ok(Known { state: self.state(), at_rest, profile, names, fwmark, link })
    }
}

/// Looks, and says what it means; what takes too long has not been looked at.
pub(super) async fn diagnose(known: Known, began: Instant) -> Diagnosis {
    let at = Timestamp::now_utc();
    let seen = tokio::time::timeout(DOCTOR_WITHIN, look(known)).await;
    let took_ms = u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX);
    match seen {
        Ok(seen) => Diagnosis::of(at, took_ms, examine(&seen), &well(&seen)),
        Err(_) => {
            let doubt = Finding::warn(format!("The checks did not end within {} s", DOCTOR_WITHIN.as_secs()));
            Diagnosis::of(at, took_ms, vec![Check { check: CheckId::Helper, finding: doubt }], "")
        }
    }
}
