//! One question in, one answer out: from ourselves, from the cache, or from the servers that the name
//! belongs to. A name that belongs to a zone is asked of that zone's servers and of nobody else, also when
//! they are gone.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use hickory_resolver::proto::op::ResponseCode;
use hickory_resolver::proto::rr::rdata::{A, AAAA};
use hickory_resolver::proto::rr::{Name, RData, Record, RecordType};
use tokio::sync::{Mutex, Semaphore};

use super::cache::Cache;
use super::counters::{Counters, count};
use super::devices::{Devices, TTL_SECONDS, nothing};
use super::question::{Answer, Subject};
use super::system::System;
use super::upstream::{AT_ONCE, NoAnswer, Servers};
use super::zones::{Source, Zones};
use crate::addresses::Pool;
use crate::config::Dns;
use crate::registry::Registry;

/// How old the list of devices may be; it is read only when somebody asks for one.
const DEVICES_FRESH: Duration = Duration::from_secs(5);

/// Answers questions.
#[derive(Debug)]
pub struct Resolver<R> {
    registry: R,
    pool: Pool,
    isolation: bool,
    domain: Option<Name>,
    zones: Zones,
    /// By the zone's number.
    of_zones: Vec<Servers>,
    system: System,
    cache: Cache,
    devices: Mutex<Option<(Instant, Arc<Devices>)>>,
    counters: Arc<Counters>,
}

impl<R: Registry> Resolver<R> {
    /// With nothing in its cache; it goes on counting where `counters` are. `resolv_conf` is the host's own file.
    pub fn new(
        config: &Dns,
        pool: Pool,
        isolation: bool,
        registry: R,
        resolv_conf: PathBuf,
        counters: Arc<Counters>,
    ) -> Self {
        let places = Arc::new(Semaphore::new(AT_ONCE));
        let (names, servers) = by_zone(config);
        let gateway = pool.gateway();
        let own = std::iter::once(gateway.ipv4.into()).chain(gateway.ipv6.map(IpAddr::from)).collect();
        Self {
            registry,
            pool,
            isolation,
            domain: config.inner.clone(),
            zones: Zones::new(&pool, config.inner.clone(), names),
            of_zones: servers.iter().map(|servers| Servers::new(servers, Arc::clone(&places))).collect(),
            system: System::new(config.upstream.clone(), own, resolv_conf, places, Instant::now()),
            cache: Cache::new(),
            devices: Mutex::default(),
            counters,
        }
    }

    /// What it has done.
    pub fn counters(&self) -> &Arc<Counters> {
        &self.counters
    }

    /// The answer for `asker`, a client of the inner networks. Takes 4 s at most. Cancel-safe.
    pub async fn answer(&self, asker: IpAddr, subject: Subject) -> Answer {
        count(&self.counters.queries);
        let source = self.zones.source(&subject.name);
        if !matches!(source, Source::Zone(_) | Source::Upstream) {
            count(&self.counters.local);
        }
        let Subject { name, kind, .. } = &subject;
        match source {
            Source::Localhost => localhost(name, *kind),
            Source::Nobody => nothing(&name.base_name(), ResponseCode::NXDomain),
            Source::Devices => match self.devices().await {
                Some(devices) => devices.lookup(asker, name, *kind),
                None => Answer::bare(ResponseCode::ServFail),
            },
            Source::Reverse { address, exact } => match self.devices().await {
                Some(devices) => devices.reverse(asker, name, address, exact, *kind),
                None => Answer::bare(ResponseCode::ServFail),
            },
            Source::Zone(number) => match self.of_zones.get(number) {
                Some(servers) => self.ask(servers, subject).await,
                None => Answer::bare(ResponseCode::ServFail), // `by_zone` makes one for each
            },
            Source::Upstream => {
                let (servers, changed) = self.system.current(Instant::now());
                if changed {
                    self.cache.clear();
                }
                self.ask(&servers, subject).await
            }
        }
    }

    async fn ask(&self, servers: &Servers, subject: Subject) -> Answer {
        if let Some(answer) = self.cache.get(&subject, Instant::now()) {
            count(&self.counters.cached);
            return answer;
        }
        match servers.ask(&subject).await {
            Ok(answer) => {
                self.cache.put(subject, &answer, Instant::now());
                answer
            }
            Err(outcome) => {
                count(&self.counters.upstream_failures);
                let failure = Answer::bare(ResponseCode::ServFail);
                // A server that is gone is looked after by its health; a name that fails is not asked again at once.
                if outcome == NoAnswer::Failed {
                    self.cache.put(subject, &failure, Instant::now());
                }
                failure
            }
        }
    }

    /// The devices as they were at most [`DEVICES_FRESH`] ago; one question reads them for all that wait.
    /// `None` when the registry fails and never did not.
    async fn devices(&self) -> Option<Arc<Devices>> {
        let mut kept = self.devices.lock().await;
        if let Some((read_at, devices)) = &*kept
            && read_at.elapsed() < DEVICES_FRESH
        {
            return Some(Arc::clone(devices));
        }
        match self.registry.devices().await {
            Ok(list) => {
                let devices = Devices::new(self.domain.as_ref(), &list, &self.pool, self.isolation);
                *kept = Some((Instant::now(), Arc::new(devices)));
            }
            Err(error) => {
                tracing::warn!(event = "registry_failed", %error);
                if let Some((read_at, _)) = &mut *kept {
                    *read_at = Instant::now(); // not for every question
                }
            }
        }
        kept.as_ref().map(|(_, devices)| Arc::clone(devices))
    }
}

/// Each zone once, with all of its servers in their order.
fn by_zone(config: &Dns) -> (Vec<Name>, Vec<Vec<SocketAddr>>) {
    let mut numbers: HashMap<&Name, usize> = HashMap::new();
    let (mut names, mut servers) = (Vec::new(), Vec::<Vec<SocketAddr>>::new());
    for zone in &config.zones {
        let number = *numbers.entry(&zone.name).or_insert(names.len());
        if number == names.len() {
            names.push(zone.name.clone());
            servers.push(Vec::new());
        }
        servers[number].push(zone.server);
    }
    (names, servers)
}

fn localhost(name: &Name, kind: RecordType) -> Answer {
    let data = match kind {
        RecordType::A => RData::A(A(Ipv4Addr::LOCALHOST)),
        RecordType::AAAA => RData::AAAA(AAAA(Ipv6Addr::LOCALHOST)),
        _ => return nothing(name, ResponseCode::NoError),
    };
    let answers = vec![Record::from_rdata(name.clone(), TTL_SECONDS, data)];
    Answer { authoritative: true, answers, ..Answer::bare(ResponseCode::NoError) }
}
