//! The gateway's loop takes another configuration, and tells the clients what that changes for them.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Instant, SystemTime};

use culvert_tunnel::control::{FromServer, Welcome};
use culvert_tunnel::device::Device as Interface;
use culvert_tunnel::rules::Rules;
use culvert_tunnel::shard::mailbox::{Command, LinkId};
use tokio::sync::watch;

use super::{Session, Sessions};
use crate::addresses::Pool;
use crate::admit::{self, Rates};
use crate::config::Config;
use crate::conversation::Office;
use crate::dns;
use crate::gateway::{self, GatewayError};
use crate::interface::{Netlink, check_overlap};
use crate::registry::Registry;
use crate::reload::{Judged, ReloadError, Reloader, merge};
use crate::settings::Settings;
use crate::{log, nat};

/// What a reload needs and changes, beside the loop.
#[derive(Debug)]
pub struct Reloading<R> {
    /// Reads the configuration.
    pub reloader: Reloader,
    /// Go by what is in force.
    pub followers: Followers,
    /// Answers clients' questions for names.
    pub resolver: dns::Service<R>,
}

/// Tells tasks beside the loop what is in force now.
#[derive(Debug)]
pub struct Followers {
    in_force: watch::Sender<(Arc<Config>, Settings)>,
    pool: watch::Sender<Pool>,
}

impl Followers {
    /// At the start.
    pub fn new(config: &Config, settings: &Settings) -> Self {
        Self {
            in_force: watch::Sender::new((Arc::new(config.clone()), settings.clone())),
            pool: watch::Sender::new(settings.pool),
        }
    }

    /// Configuration and settings.
    pub fn in_force(&self) -> watch::Receiver<(Arc<Config>, Settings)> {
        self.in_force.subscribe()
    }

    /// The inner networks.
    pub fn pool(&self) -> watch::Receiver<Pool> {
        self.pool.subscribe()
    }

    fn tell(&self, config: &Config, settings: &Settings) {
        self.in_force.send_replace((Arc::new(config.clone()), settings.clone()));
        self.pool.send_replace(settings.pool);
    }
}

/// The interface and the firewall's table as they are to be.
async fn change_host<R>(old: &Office<R>, config: &Config, pool: &Pool) -> Result<(), GatewayError> {
    let was = &old.settings.pool;
    if pool != was {
        resize(&config.device, was, pool).await?;
    }
    if pool != was || config.isolation != old.config.isolation {
        let put = nat::put(&config.device, pool, config.isolation, config.nat);
        if put.is_err() && pool != was {
            let _ = resize(&config.device, pool, was).await; // the first error is what counts
        }
        put?;
    }
    Ok(())
}

/// The interface in another network that begins where its own does, if nothing else on this host uses that.
async fn resize(device: &str, from: &Pool, to: &Pool) -> Result<(), GatewayError> {
    let netlink = Netlink::open()?;
    let mut locals = netlink.local_networks().await?;
    locals.retain(|local| local.interface != device);
    check_overlap(to, &locals)?;
    Ok(netlink.resize(device, from, to).await?)
}

impl<R: Registry, D: Interface> Sessions<R, D> {
    /// Reads the configuration again and puts in force what can be changed now.
    ///
    /// # Errors
    /// [`ReloadError`]; everything is as it was then.
    pub(super) async fn reload(&mut self) -> Result<Judged, ReloadError> {
        let (loaded, mut judged) = self.reloading.reloader.read()?;
        let old = Arc::clone(&self.office);
        let mut config = merge(&old.config, &loaded.config);
        let refused = |error: &dyn std::fmt::Display| ReloadError::Refused(error.to_string());
        let settings = Settings::resolve(&loaded.config, &old.registry).await.map_err(|error| refused(&error))?;
        // Other networks wait for a restart, whoever changed what they come from. One that gateways share does not grow.
        let grown = old.settings.pool.grown_to(settings.pool.ipv4());
        let grown = grown.filter(|_| old.gateway_id.is_none() && judged.grow());
        if grown.is_some() {
            config.ipv4 = loaded.config.ipv4;
        }
        let pool = grown.unwrap_or(old.settings.pool);
        let others = old.settings.others.clone();
        let mut settings = Settings { others, ..Settings::new(&config, settings.endpoint, pool) };
        let transport =
            self.leaf.renewed(&old.authorities, &settings, SystemTime::now()).map_err(|error| refused(&error))?;
        let is_other_pool = pool != old.settings.pool;
        if let Err(error) = change_host(&old, &config, &pool).await {
            self.leaf.not_shown();
            return Err(refused(&error));
        }
        // From here on nothing fails.
        let answers_otherwise = settings.answers != old.settings.answers
            || (&config.dns, config.isolation) != (&old.config.dns, old.config.isolation);
        if is_other_pool || answers_otherwise {
            self.reloading.resolver.apply(&config, &mut settings).await;
        }
        self.reloading.followers.tell(&config, &settings);
        self.office =
            Arc::new(Office { config, settings, dns: self.reloading.resolver.counters(), ..Office::clone(&old) });
        let Office { config, settings, .. } = &*self.office;
        log::reconfigure(config);
        old.door.configure(config.bans.clone()).await;
        if config.handshakes_per_second != old.config.handshakes_per_second {
            self.rates = config.handshakes_per_second.map(Rates::new);
        }
        self.challenges.set(config.rechallenge, Instant::now(), super::random);
        let policy = Arc::new(gateway::policy(config, settings));
        for shard in &self.shards {
            if let Some(transport) = &transport {
                let _ = shard.send(Command::Serve(transport.clone())).await; // a shard that has ended; see `run`
            }
            let _ = shard.send(Command::Judge(Arc::clone(&policy))).await;
        }
        for (link, rules) in self.rules_changed(&old) {
            if let Some(shard) = self.shard(link) {
                let _ = shard.send(Command::Limit { link, rules }).await; // as above
            }
        }
        let news = self.news(&old);
        for (link, welcome) in news {
            self.send(link, &FromServer::Reconfigure(welcome)).await;
        }
        self.reloading.reloader.accept(&loaded, &judged);
        Ok(judged)
    }

    /// Other gateways have come, gone or moved.
    pub(super) async fn tell_others(&mut self) {
        let others = self.others.borrow_and_update().clone();
        let old = Arc::clone(&self.office);
        let names = others.join(" ");
        tracing::info!(event = "gateways_changed", endpoints = names, "the other gateways, as clients are told");
        let settings = Settings { others, ..old.settings.clone() };
        self.office = Arc::new(Office { settings, ..Office::clone(&old) });
        for (link, welcome) in self.news(&old) {
            self.send(link, &FromServer::Reconfigure(welcome)).await;
        }
    }

    /// The gateway's own certificate is renewed before it ends; open sessions do not notice.
    pub(super) async fn renew_leaf(&mut self) {
        match self.leaf.renewed(&self.office.authorities, &self.office.settings, SystemTime::now()) {
            Ok(None) => {}
            Ok(Some(transport)) => {
                for shard in &self.shards {
                    let _ = shard.send(Command::Serve(transport.clone())).await; // a shard that has ended; see `run`
                }
            }
            Err(error) => tracing::error!(event = "leaf_not_renewed", %error),
        }
    }

    /// The sessions whose rules are others than before.
    fn rules_changed(&self, old: &Office<R>) -> Vec<(LinkId, Option<Arc<Rules>>)> {
        let changed = self.open().filter_map(|(link, session)| {
            let user = &session.device.user;
            let now = self.office.config.policies.rules(user);
            (now != old.config.policies.rules(user)).then_some((link, now))
        });
        changed.collect()
    }

    /// What each client would be told now, where that is not what it was told.
    fn news(&self, old: &Office<R>) -> HashMap<LinkId, Welcome> {
        let told = |office: &Office<R>, session: &Session| {
            let seen_as = SocketAddr::new(session.remote.ip().to_canonical(), session.remote.port());
            let Office { config, settings, .. } = office;
            let welcome =
                admit::welcome(settings, &config.push, config.rechallenge, &session.device, session.lease, seen_as);
            Welcome { time: None, ..welcome }
        };
        let news = self.open().filter_map(|(link, session)| {
            let now = told(&self.office, session);
            (now != told(old, session)).then_some((link, now))
        });
        news.collect()
    }
}
