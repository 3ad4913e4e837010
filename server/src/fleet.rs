//! This gateway among those that share its registry: says that it runs, hears of changes at once, and knows the others.
//!
//! One task with one connection, on which the database rings for every change (LISTEN); while that is lost, changes
//! are seen by looking once a second (`changes`). The same connection holds a lock of this gateway's identity, so that
//! a copied state directory is noticed.

use std::time::Duration;

use sqlx::postgres::PgListener;
use time::OffsetDateTime;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::{Instant, MissedTickBehavior, interval, sleep, timeout};

use crate::authorities::Authorities;
use crate::control_socket::{Asked, Request};
use crate::registry::gateways::{Beat, Gateway, JoinError};
use crate::registry::postgres::PostgresRegistry;
use crate::registry::shared::SharedRegistry;
use crate::registry::{Meta, Registry, RegistryError};
use crate::settings::Settings;

/// How often a gateway says that it runs, and looks who else does.
const EVERY: Duration = Duration::from_secs(3);
/// Between two attempts to have the database's ear.
const AGAIN: Duration = Duration::from_secs(1);
/// How long the database may take to notice that the process before this one has ended.
const TWIN_FOR: Duration = Duration::from_secs(5);
/// The same when a connection was cut without a word: longer than its keep-alives (`registry::postgres`).
const OWN_FOR: Duration = Duration::from_secs(40);
/// A gateway that was not seen for so long is not told to clients any more.
const GONE: time::Duration = time::Duration::DAY;

/// Why a gateway cannot take part.
#[derive(Debug, thiserror::Error)]
pub enum FleetError {
    /// Two with one identity.
    #[error(
        "another gateway runs with this one's identity, so its state directory is a copy; make a new one with: \
         culvert-server init --registry URL --ca BACKUP"
    )]
    Twin,
    /// Devices would get addresses that the others do not route.
    #[error(
        "this gateway's inner network is {own}, that of the gateways that share its registry {theirs}; remove network.ipv4 from the configuration"
    )]
    OtherNetwork {
        /// By the configuration.
        own: String,
        /// By the registry.
        theirs: String,
    },
    /// Clients would meet two authorities.
    #[error(
        "the registry belongs to gateways with another CA ({theirs}, here {own}); join them with: culvert-server init --registry URL --ca BACKUP"
    )]
    OtherAuthority {
        /// The pin here.
        own: String,
        /// The pin in the registry.
        theirs: String,
    },
    /// Some devices have certificates of one CA, some of another, and nobody could end that.
    #[error(
        "a rotation of this gateway's certificate authority is under way, and gateways that share a registry cannot end one: take registry.url out of the configuration, end it (culvert-server ca rotate --finish, or --abort), and put it back"
    )]
    Rotating,
    /// It was not let in.
    #[error(transparent)]
    Join(#[from] JoinError),
    /// The registry.
    #[error(transparent)]
    Registry(#[from] RegistryError),
}

/// May a gateway with these authorities share a registry?
///
/// # Errors
/// [`FleetError::Rotating`].
pub fn check_authorities(authorities: &Authorities) -> Result<(), FleetError> {
    if authorities.second().is_some() { Err(FleetError::Rotating) } else { Ok(()) }
}

/// This gateway's place among the others.
#[derive(Debug)]
pub struct Member {
    registry: SharedRegistry,
    beat: Beat,
    settings: Settings,
    listener: Option<PgListener>,
}

impl Member {
    /// Takes the place. While the database does not answer, it is taken later.
    ///
    /// # Errors
    /// [`FleetError`], which only a person can end.
    pub async fn join(
        registry: &SharedRegistry,
        id: String,
        authority_pin: &str,
        settings: &Settings,
    ) -> Result<Self, FleetError> {
        check_facts(registry, authority_pin, settings).await?;
        let beat = Beat { id, name: settings.display_name().to_owned(), endpoints: settings.own_endpoints() };
        let mut this = Self { registry: registry.clone(), beat, settings: settings.clone(), listener: None };
        let began = Instant::now();
        loop {
            match this.enter().await {
                Err(FleetError::Twin) if began.elapsed() < TWIN_FOR => sleep(AGAIN / 5).await,
                Err(FleetError::Registry(error) | FleetError::Join(JoinError::Registry(error)))
                    if error.is_outage() =>
                {
                    return Ok(this);
                }
                entered => return entered.map(|()| this),
            }
        }
    }

    fn store(&self) -> &PostgresRegistry {
        self.registry.store()
    }

    async fn enter(&mut self) -> Result<(), FleetError> {
        let mut listener = self.store().listen().await?;
        if !PostgresRegistry::hold(&mut listener, &self.beat.id).await? {
            return Err(FleetError::Twin);
        }
        self.store().join(&self.beat, &self.settings.pool, OffsetDateTime::now_utc()).await?;
        self.listener = Some(listener);
        Ok(())
    }

    /// Keeps the place for ever. `others` has the other gateways' endpoints, live ones first; `asked` is the gateway's
    /// loop, which is told to look for changes.
    pub async fn keep(mut self, others: watch::Sender<Vec<String>>, asked: mpsc::Sender<Asked>) {
        let mut ticks = interval(EVERY);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut twin: Option<Instant> = None;
        loop {
            let Some(listener) = &mut self.listener else {
                let entered = self.enter().await;
                match entered {
                    Ok(()) => {
                        twin = None;
                        ring(&asked).await; // what was missed meanwhile
                    }
                    Err(FleetError::Twin) => {
                        // For a while it may be this gateway's own connection before.
                        let since = *twin.get_or_insert_with(Instant::now);
                        if since.elapsed() > OWN_FOR {
                            tracing::error!(event = "gateway_twin", error = %FleetError::Twin);
                            twin = Some(Instant::now());
                        }
                        sleep(AGAIN).await;
                    }
                    Err(error) => {
                        twin = None;
                        tracing::debug!(%error, "no place among the gateways");
                        sleep(AGAIN).await;
                    }
                }
                continue;
            };
            tokio::select! {
                heard = listener.try_recv() => match heard {
                    Ok(Some(_)) => {
                        while listener.next_buffered().is_some() {} // one look is enough for all of them
                        ring(&asked).await;
                        self.refresh().await;
                    }
                    Ok(None) | Err(_) => self.listener = None,
                },
                _ = ticks.tick() => {
                    match timeout(EVERY, self.look()).await {
                        Ok(Ok(list)) => {
                            others.send_if_modified(|told| {
                                let changed = *told != list;
                                *told = list;
                                changed
                            });
                        }
                        failed => {
                            tracing::debug!(?failed, "the other gateways are not known");
                            self.listener = None;
                        }
                    }
                    self.refresh().await;
                }
            }
        }
    }

    async fn look(&mut self) -> Result<Vec<String>, FleetError> {
        if !self.store().beat(&self.beat).await? {
            // Somebody forgot a gateway that runs: it comes again.
            self.store().join(&self.beat, &self.settings.pool, OffsetDateTime::now_utc()).await?;
        }
        Ok(others(&self.store().gateways().await?, &self.beat.id, OffsetDateTime::now_utc()))
    }

    async fn refresh(&self) {
        if let Err(error) = self.registry.refresh().await {
            tracing::debug!(%error, "the copy of the registry stays as it is");
        }
    }
}

async fn check_facts(registry: &SharedRegistry, pin: &str, settings: &Settings) -> Result<(), FleetError> {
    if let Some(theirs) = registry.meta(Meta::Authority).await?.filter(|theirs| theirs != pin) {
        return Err(FleetError::OtherAuthority { own: pin.to_owned(), theirs });
    }
    let pool = &settings.pool;
    let own = (Some(pool.ipv4().to_string()), pool.ipv6().map(|network| network.to_string()));
    for (own, fact) in [(own.0, Meta::Ipv4), (own.1, Meta::Ipv6)] {
        if let (Some(own), Some(theirs)) = (own, registry.meta(fact).await?)
            && own != theirs
        {
            return Err(FleetError::OtherNetwork { own, theirs });
        }
    }
    Ok(())
}

/// What clients are told of the others. Pure.
fn others(gateways: &[Gateway], own: &str, now: OffsetDateTime) -> Vec<String> {
    let mut others: Vec<&Gateway> =
        gateways.iter().filter(|other| other.id != own && (other.live || other.last_seen > now - GONE)).collect();
    others.sort_by_key(|other| !other.live); // stable: by name otherwise
    let mut endpoints: Vec<String> = Vec::new();
    for endpoint in others.iter().flat_map(|other| &other.endpoints) {
        if !endpoints.contains(endpoint) {
            endpoints.push(endpoint.clone());
        }
    }
    endpoints
}

/// As an administrator's command does after a change. The answer is nobody's business.
async fn ring(asked: &mpsc::Sender<Asked>) {
    let (reply, _) = oneshot::channel();
    let _ = asked.send((Request::Changed, reply)).await; // the loop has ended
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clients_are_told_of_live_gateways_first_and_of_none_that_is_long_gone() {
        let now = OffsetDateTime::from_unix_timestamp(1_800_000_000).unwrap();
        let gateway = |id: &str, endpoints: &[&str], live, hours| Gateway {
            id: id.into(),
            name: id.into(),
            endpoints: endpoints.iter().map(|endpoint| (*endpoint).to_owned()).collect(),
            version: "1".into(),
            joined: now,
            last_seen: now - time::Duration::hours(hours),
            live,
            slices: vec![0],
        };
        let all = [
            gateway("a", &["a:443"], true, 0),
            gateway("b", &["b:443", "b:80"], false, 1),
            gateway("c", &["c:443"], true, 0),
            gateway("d", &["d:443"], false, 25),
            gateway("e", &["c:443", "e:443"], true, 0),
        ];
        assert_eq!(others(&all, "a", now), ["c:443", "e:443", "b:443", "b:80"]);
    }
}
