//! The gateway's loop takes another configuration, and tells the clients what that changes for them.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Instant, SystemTime};

use culvert_tunnel::control::{FromServer, Welcome};
use culvert_tunnel::device::Device as Interface;
use culvert_tunnel::rules::Rules;
use culvert_tunnel::shard::mailbox::{Command, LinkId};

use super::{Session, Sessions};
use crate::admit::{self, Rates};
use crate::conversation::Office;
use crate::gateway;
use crate::registry::Registry;
use crate::reload::{Judged, ReloadError, merge};
use crate::settings::Settings;
use crate::{log, nat};

impl<R: Registry, D: Interface> Sessions<R, D> {
    /// Reads the configuration again and puts in force what can be changed now.
    ///
    /// # Errors
    /// [`ReloadError`]; everything is as it was then.
    pub(super) async fn reload(&mut self) -> Result<Judged, ReloadError> {
        let (loaded, judged) = self.reloader.read()?;
        let old = Arc::clone(&self.office);
        let config = merge(&old.config, &loaded.config);
        let refused = |error: &dyn std::fmt::Display| ReloadError::Refused(error.to_string());
        let settings = Settings::resolve(&config, &old.registry).await.map_err(|error| refused(&error))?;
        // The networks wait for a restart, whoever changed what they come from, and so does the resolver.
        let Settings { pool, answers, ref others, .. } = old.settings;
        let settings = Settings { pool, answers, others: others.clone(), ..settings };
        let transport =
            self.leaf.renewed(&old.authority, &settings, SystemTime::now()).map_err(|error| refused(&error))?;
        if config.isolation != old.config.isolation {
            nat::put(&config.device, &settings.pool, config.isolation, config.nat).map_err(|error| refused(&error))?;
        }
        // From here on nothing fails.
        self.office = Arc::new(old.with(config, settings));
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
        self.reloader.accept(&loaded);
        Ok(judged)
    }

    /// Other gateways have come, gone or moved.
    pub(super) async fn tell_others(&mut self) {
        let others = self.others.borrow_and_update().clone();
        let old = Arc::clone(&self.office);
        let names = others.join(" ");
        tracing::info!(event = "gateways_changed", endpoints = names, "the other gateways, as clients are told");
        let settings = Settings { others, ..old.settings.clone() };
        self.office = Arc::new(old.with(old.config.clone(), settings));
        for (link, welcome) in self.news(&old) {
            self.send(link, &FromServer::Reconfigure(welcome)).await;
        }
    }

    /// The gateway's own certificate is renewed before it ends; open sessions do not notice.
    pub(super) async fn renew_leaf(&mut self) {
        match self.leaf.renewed(&self.office.authority, &self.office.settings, SystemTime::now()) {
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
