//! What a gateway needs of its host, looked at: one [`Finding`] a check, each failed one with the command that
//! repairs it.
//!
//! `doctor` and `preflight` look at all of it; a running gateway looks again once a minute at what others can
//! break under it ([`watch()`]), and puts its own firewall table back when somebody removed it. Judging is apart
//! from looking (`judge`, pure).

pub mod host;
pub mod judge;
pub mod reach;

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::{MissedTickBehavior, interval};

use crate::config::Config;
use crate::metrics;
use crate::nat;
use crate::settings::Settings;

/// How often a running gateway looks.
const EVERY: Duration = Duration::from_secs(60);

/// How a check went.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum State {
    /// As it should be.
    Pass,
    /// It works, but not for long or not as well as it could; or it cannot be seen from here.
    Warn,
    /// Clients suffer by it.
    Fail,
}

impl State {
    /// For scripts.
    pub const fn word(self) -> &'static str {
        match self {
            Self::Pass => "pass",
            Self::Warn => "warn",
            Self::Fail => "fail",
        }
    }
}

/// One check and what came of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// Its stable name.
    pub check: &'static str,
    /// How it went.
    pub state: State,
    /// One sentence.
    pub sentence: String,
    /// The one command that repairs it, for a shell, as root.
    pub repair: Option<String>,
}

impl Finding {
    /// As it should be.
    pub fn pass(check: &'static str, sentence: impl Into<String>) -> Self {
        Self { check, state: State::Pass, sentence: sentence.into(), repair: None }
    }

    /// See [`State::Warn`].
    pub fn warn(check: &'static str, sentence: impl Into<String>) -> Self {
        Self { check, state: State::Warn, sentence: sentence.into(), repair: None }
    }

    /// See [`State::Fail`].
    pub fn fail(check: &'static str, sentence: impl Into<String>) -> Self {
        Self { check, state: State::Fail, sentence: sentence.into(), repair: None }
    }

    /// With the command that repairs it.
    #[must_use]
    pub fn repair(self, command: impl Into<String>) -> Self {
        Self { repair: Some(command.into()), ..self }
    }
}

/// What others can break under a running gateway: forwarding, the own table, the way out, the resolver.
pub async fn look(config: &Config, settings: &Settings) -> Vec<Finding> {
    let (config, settings) = (config.clone(), settings.clone());
    // `nft` and files: off the threads that serve.
    let looked = tokio::task::spawn_blocking(move || {
        let mut findings = host::forwarding(&settings);
        findings.push(host::table(&config));
        findings.push(host::uplink());
        findings.extend(host::mtu(&config));
        findings
    });
    looked.await.unwrap_or_default()
}

/// Looks once a minute, by what is in force then, and tells what turned bad or good. Never ends.
pub async fn watch(in_force: watch::Receiver<(Arc<Config>, Settings)>) {
    let mut ticks = interval(EVERY);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut bad: Vec<&'static str> = Vec::new();
    loop {
        ticks.tick().await;
        let (config, settings) = in_force.borrow().clone();
        let findings = look(&config, &settings).await;
        for check in [judge::TABLE, "forwarding", "uplink", "mtu"] {
            let bad = |finding: &Finding| finding.check == check && finding.state == State::Fail;
            metrics::selfcheck(check, !findings.iter().any(bad));
        }
        metrics::selfcheck("dns", settings.answers);
        for finding in &findings {
            let was_bad = bad.contains(&finding.check);
            match (finding.state, was_bad) {
                (State::Fail, false) => {
                    let repair = finding.repair.as_deref().unwrap_or_default();
                    tracing::error!(event = "selfcheck_failed", check = finding.check, repair, "{}", finding.sentence);
                }
                (State::Pass | State::Warn, true) => tracing::info!(event = "selfcheck_ok", check = finding.check),
                _ => {}
            }
        }
        bad = findings.iter().filter(|finding| finding.state == State::Fail).map(|finding| finding.check).collect();
        if bad.contains(&judge::TABLE) {
            restore_table(&config, &settings).await;
        }
    }
}

/// A firewall that was reloaded takes our table along; nobody but us puts it back.
async fn restore_table(config: &Arc<Config>, settings: &Settings) {
    let (config, pool) = (Arc::clone(config), settings.pool);
    let put = tokio::task::spawn_blocking(move || nat::put(&config.device, &pool, config.isolation, config.nat));
    match put.await {
        Ok(Ok(())) => tracing::warn!(event = "nat_restored", "somebody removed the gateway's nftables table"),
        Ok(Err(error)) => tracing::error!(event = "nat_missing", %error),
        Err(_) => {} // the runtime is going down
    }
}
