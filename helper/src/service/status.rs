//! One snapshot of everything that people may see.

use culvert_protocol::{
    Blocking, Certificate, Dropped, Gateway, Path as PathFacts, Problem, Protection, SCHEMA, State, Status, Timestamp,
    Traffic, code,
};
use culvert_tunnel::stats::LinkStats;

use super::Service;
use super::profiles::certificate_end;
use crate::install::Installed;
use crate::profile::Profile;

impl Service {
    pub(super) async fn status(&self) -> Status {
        let facts = self.session.facts().await;
        let resting = matches!(self.supervisor.state(), State::NotEnrolled | State::Disconnected);
        let default = if resting || facts.profile.is_none() { self.default_profile() } else { None };
        let profile = default.as_ref().or(facts.profile);
        let gateway = profile.map(|profile| Gateway {
            name: facts.live.map_or_else(|| profile.gateway.clone(), |(_, welcome)| welcome.gateway.clone()),
            endpoint: profile.endpoints.first().cloned().unwrap_or_default(),
            remote: facts.live.map(|(remote, _)| remote),
            seen_as: facts.live.map(|(_, welcome)| welcome.seen_as),
            inner: facts.live.map(|(_, welcome)| welcome.gateway_ipv4.into()),
        });
        let until = facts.live.and_then(|(_, welcome)| Timestamp::from_unix_timestamp(welcome.certificate_until).ok());
        let certificate = profile.and_then(|profile| {
            let until = until.or_else(|| certificate_end(profile))?;
            Some(Certificate { device: profile.device_name.clone(), until })
        });
        let addresses = facts.live.map(|(_, welcome)| {
            let v6 = welcome.ipv6.map(Into::into);
            std::iter::once(welcome.ipv4.into()).chain(v6).collect()
        });
        Status {
            schema: SCHEMA,
            state: self.state(),
            profile: profile.map(|profile| profile.name.clone()),
            gateway,
            addresses: addresses.unwrap_or_default(),
            interface: facts.installed.map(|installed| installed.interface().to_owned()),
            protection: facts
                .installed
                .map(|installed| Protection { kill_switch: self.guard.is_in_force(), ..installed.protection() }),
            kill_switch: Some(Blocking {
                mode: self.settings.now().kill_switch,
                in_force: self.guard.is_in_force(),
                allow_lan: self.settings.now().allow_lan,
            }),
            path: facts.stats.as_ref().map(path_facts),
            traffic: facts.stats.as_ref().map(|stats| {
                let (mut sent, mut received) = (stats.dropped_out, stats.dropped_in);
                sent.add(&facts.dropped_device);
                received.add(&facts.undelivered);
                Traffic {
                    received_bytes: stats.received.bytes,
                    sent_bytes: stats.sent.bytes,
                    received_packets: stats.received.packets,
                    sent_packets: stats.sent.packets,
                    dropped: Dropped { sent: sent.occurred(), received: received.occurred() },
                    split_packets: stats.split,
                    too_big_answers: stats.too_big_answers,
                }
            }),
            certificate,
            notes: facts
                .installed
                .map_or(&[][..], Installed::notes)
                .iter()
                .cloned()
                .chain(self.settings.damage().map(|why| Problem::new(code::SETTINGS).because(why).to_string()))
                .chain(self.undecided.iter().map(|why| Problem::new(code::UNDECIDED).because(why).to_string()))
                .chain(self.invited.problem().map(|why| format!("The administrator's invitation: {why}")))
                .chain(self.unguarded.as_ref().map(ToString::to_string))
                .collect(),
            helper: env!("CARGO_PKG_VERSION").into(),
        }
    }

    fn default_profile(&self) -> Option<Profile> {
        let name = self.profiles.default_name().ok()??;
        self.profiles.load(&name).ok()
    }
}

pub(super) fn path_facts(stats: &LinkStats) -> PathFacts {
    PathFacts {
        rtt_ms: stats.rtt.as_secs_f64() * 1e3,
        loss_percent: 100.0 * stats.quic_lost as f64 / stats.quic_sent.max(1) as f64,
        mtu_bytes: stats.inner_mtu_bytes,
        path_mtu_bytes: stats.path_mtu_bytes,
        black_holes: stats.black_holes,
    }
}
