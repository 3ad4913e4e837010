//! What the gateway's loop knows at the moment of a scrape.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use culvert_tunnel::device::Device as Interface;
use culvert_tunnel::shard::mailbox::LinkId;
use culvert_tunnel::stats::{LinkStats, ShardStats};
use time::OffsetDateTime;
use tokio::sync::oneshot;

use super::Sessions;
use crate::control_socket::Response;
use crate::conversation::Office;
use crate::health;
use crate::metrics::{self, DeviceSeries, Snapshot};
use crate::registry::{Counts, Device, Registry};

/// How long the registry's counts are good: counting a hundred thousand devices takes longer than a scrape may.
const COUNTS_GOOD_FOR: Duration = Duration::from_secs(15);

/// The registry's counts, as they were lately.
#[derive(Debug, Default)]
pub(super) struct Counted {
    last: Option<(tokio::time::Instant, Counts)>,
}

/// Adds what a device's session has carried.
pub(super) fn carry(devices: &mut BTreeMap<String, DeviceSeries>, device: &Device, stats: &LinkStats) {
    let now = SystemTime::now();
    let none = DeviceSeries { received: 0, sent: 0, last_seen: now };
    let series = devices.entry(format!("{}/{}", device.user, device.name)).or_insert(none);
    series.received += stats.received.bytes;
    series.sent += stats.sent.bytes;
    series.last_seen = now;
}

impl<R: Registry, D: Interface> Sessions<R, D> {
    /// Answers from a task of its own, once the shards and the registry have said what they know.
    pub(super) async fn scrape(&mut self, reply: oneshot::Sender<Response>) {
        let (shards, links) = self.look().await;
        let mut totals = self.totals;
        links.values().for_each(|stats| totals.add(stats));
        let mut devices = self.carried.clone();
        if self.office.config.metrics_devices {
            for (link, session) in self.open() {
                if let Some(stats) = links.get(&link) {
                    carry(&mut devices, &session.device, stats);
                }
            }
        }
        let counts = self.counts().await;
        let Office { config, settings, dns, .. } = &*self.office;
        let snapshot = Snapshot {
            sessions: self.devices.len(),
            totals,
            shards,
            pool: (settings.pool.size().into(), counts.active + counts.expired + counts.revoked),
            families: if settings.pool.ipv6().is_some() { &["ipv4", "ipv6"] } else { &["ipv4"] },
            counts,
            bans: None,
            certificates: [Some(self.office.authorities.current().facts().not_after), self.leaf.not_after()],
            port: config.listen.port(),
            dns: dns.as_ref().map(|counters| counters.snapshot()),
            devices,
        };
        let door = self.office.door.clone();
        tokio::spawn(async move {
            let bans = door.counts().await;
            Snapshot { bans, ..snapshot }.put();
            let _ = reply.send(Response::Metrics { text: metrics::render() }); // whoever asked may have gone
        });
    }

    /// Once a minute, what the paths of open sessions are like.
    pub(super) async fn sample(&self) {
        let (_, links) = self.look().await;
        for (link, _) in self.open() {
            if let Some(stats) = links.get(&link) {
                metrics::sample(stats);
            }
        }
    }

    /// Answers whether the gateway is ready, beside the loop.
    pub(super) fn tell_ready(&self, reply: oneshot::Sender<Response>) {
        let office = Arc::clone(&self.office);
        tokio::spawn(async move {
            let failed = health::failed(&office.registry, &office.config).await;
            let _ = reply.send(Response::Ready { failed }); // whoever asked may have gone
        });
    }

    async fn counts(&mut self) -> Counts {
        let now = tokio::time::Instant::now();
        match &self.counted.last {
            Some((at, counts)) if now < *at + COUNTS_GOOD_FOR => *counts,
            _ => {
                let counts = self.office.registry.counts(OffsetDateTime::from(SystemTime::now())).await;
                // `/readyz` says that the registry is unwell.
                let counts = counts.unwrap_or_else(|_| self.counted.last.map(|(_, counts)| counts).unwrap_or_default());
                self.counted.last = Some((now, counts));
                counts
            }
        }
    }

    /// The counters of all shards, and of every link.
    pub(super) async fn look(&self) -> (Vec<ShardStats>, HashMap<LinkId, LinkStats>) {
        let mut shards = Vec::new();
        let mut links = HashMap::new();
        for shard in &self.shards {
            if let Ok(inspection) = shard.inspect().await {
                shards.push(inspection.shard);
                links.extend(inspection.links);
            }
        }
        (shards, links)
    }
}
