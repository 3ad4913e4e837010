//! `doctor` and `preflight`: everything that a gateway needs, looked at once; each failed check with the command
//! that repairs it. Nothing is changed. The state is read as its owner, the host looked at as whoever typed this.

use std::fs;

use serde_json::{Value, json};
use time::OffsetDateTime;

use super::lists::line;
use super::{AdminError, SCHEMA, state_dir};
use crate::config::Config;
use crate::control_socket::{AskError, Request, Response, StatusInfo, ask};
use crate::interface::{Netlink, check_overlap};
use crate::nat;
use crate::owner;
use crate::registry::gateways::Gateway;
use crate::registry::{Counts, Registry};
use crate::selfcheck::{Finding, State, host, judge, reach};
use crate::settings::Settings;
use crate::state::StateError;

/// Every finding, and whether clients suffer by one of them.
#[derive(Clone, Debug)]
pub struct Diagnosis {
    findings: Vec<Finding>,
    running: bool,
}

/// Before a gateway is started: what would keep it from starting or its clients from working.
///
/// # Errors
/// [`AdminError`] when the configuration or the state cannot be read.
pub async fn preflight(config: &Config) -> Result<Diagnosis, AdminError> {
    diagnose(config, None).await
}

/// The same for a gateway that runs, and what only that can show.
///
/// # Errors
/// As [`preflight`].
pub async fn doctor(config: &Config) -> Result<Diagnosis, AdminError> {
    let status = match ask(&config.control_socket, &Request::Status) {
        Ok(Response::Status(status)) => Some(*status),
        Ok(_) => None, // not to this request
        Err(error @ (AskError::Forbidden(_) | AskError::Failed(_))) => return Err(error.into()),
        Err(_) => None,
    };
    diagnose(config, status).await
}

async fn diagnose(config: &Config, status: Option<StatusInfo>) -> Result<Diagnosis, AdminError> {
    let state = state_dir(config);
    let registry = match state.registry().await {
        // Nothing else can be looked at without what is in it.
        Err(StateError::Registry(error)) if error.is_outage() => {
            let finding = Finding::fail("registry", error.to_string()).repair("culvert-server check-config --show");
            return Ok(Diagnosis { findings: vec![finding], running: status.is_some() });
        }
        registry => registry?,
    };
    let mut settings = Settings::resolve(config, &registry).await?;
    let counts = registry.counts(OffsetDateTime::now_utc()).await?;
    let gateways = match registry.shared() {
        Some(shared) => Some(shared.store().gateways().await?),
        None => None,
    };
    registry.close().await;
    let authority = state.authority()?;
    let leaf = fs::read_to_string(state.root().join("gateway/leaf.pem")).ok();
    let leaf = leaf.and_then(|text| culvert_tunnel::identity::Credential::chain_from_pem(&text).ok());
    let leaf = leaf.and_then(|chain| culvert_tunnel::identity::CertificateFacts::read(chain.first()?).ok());

    let mut findings = Vec::new();
    match &status {
        Some(status) => {
            findings.push(Finding::pass("gateway", format!("The gateway runs, {} sessions are open", status.sessions)));
            findings.push(resolver(&settings, status));
            settings.answers &= status.dns.is_some();
        }
        None => {
            findings.push(Finding::warn("gateway", "No gateway runs here").repair("systemctl start culvert-server"));
            findings.push(owner::as_caller(host::tun));
            findings.push(owner::as_caller(|| host::port(config)));
            findings.push(overlap(&settings).await);
        }
    }
    findings.extend(host::forwarding(&settings));
    if status.is_some() {
        findings.push(owner::as_caller(|| host::table(config)));
    }
    findings.extend(owner::as_caller(|| host::firewalls(config, &settings)));
    findings.push(host::uplink());
    findings.extend(host::mtu(config));
    let (endpoint, addresses) = reach::endpoint(&settings, &host::own_addresses()).await;
    findings.push(endpoint);
    if status.is_some() {
        findings.push(reach::handshake(&settings, authority.pin(), &addresses).await);
        findings.extend(reach::internet(&settings, &nat::table_name(&config.device)).await);
    }
    findings.extend(gateways.map(|gateways| fleet(&gateways)));
    findings.push(host::disk(config));
    findings.push(host::clock(leaf.as_ref().map(|leaf| leaf.not_before)));
    let leaf_left = leaf.and_then(|leaf| host::left(leaf.not_after));
    findings.extend(judge::certificates(host::left(authority.facts().not_after), leaf_left));
    let Counts { active, expired, revoked, .. } = counts;
    let pool = settings.pool;
    findings.push(judge::pool(&pool.ipv4().to_string(), active + expired + revoked, pool.size().into()));
    Ok(Diagnosis { findings, running: status.is_some() })
}

fn fleet(gateways: &[Gateway]) -> Finding {
    const CHECK: &str = "gateways";
    let silent: Vec<&str> =
        gateways.iter().filter(|gateway| !gateway.live).map(|gateway| gateway.name.as_str()).collect();
    match silent.first() {
        None => Finding::pass(CHECK, format!("The registry's database answers; {} gateways share it", gateways.len())),
        Some(first) => {
            let sentence = format!("{} of {} gateways are silent: {}", silent.len(), gateways.len(), silent.join(", "));
            Finding::warn(CHECK, sentence).repair(format!("culvert-server gateways forget {first}"))
        }
    }
}

fn resolver(settings: &Settings, status: &StatusInfo) -> Finding {
    const CHECK: &str = "dns";
    match (settings.answers, &status.dns) {
        (_, Some(_)) => Finding::pass(CHECK, "The gateway answers name lookups"),
        (false, None) => Finding::pass(CHECK, "Clients are not told to ask the gateway for names"),
        (true, None) => {
            let sentence = format!(
                "The gateway could not have port 53 of {}, so clients keep their own name servers",
                settings.pool.gateway().ipv4
            );
            Finding::fail(CHECK, sentence).repair("ss -lnptu 'sport = :53'")
        }
    }
}

async fn overlap(settings: &Settings) -> Finding {
    const CHECK: &str = "network";
    let locals = match Netlink::open() {
        Ok(netlink) => netlink.local_networks().await,
        Err(error) => Err(error),
    };
    match locals.map(|locals| check_overlap(&settings.pool, &locals)) {
        Ok(Ok(())) => Finding::pass(CHECK, format!("Nothing here uses {}", settings.pool.ipv4())),
        Ok(Err(overlap)) => Finding::fail(CHECK, overlap.to_string()),
        Err(error) => Finding::warn(CHECK, format!("This host's networks cannot be listed: {error}")),
    }
}

impl Diagnosis {
    /// True when no check failed.
    pub fn is_good(&self) -> bool {
        self.findings.iter().all(|finding| finding.state != State::Fail)
    }

    /// For people: one line a check, and below a failed one what repairs it.
    pub fn text(&self) -> String {
        let mut text = String::new();
        for Finding { check, state, sentence, repair } in &self.findings {
            text.push_str(&format!("{:<5} {check:<12} {sentence}\n", state.word()));
            if let (Some(repair), false) = (repair, *state == State::Pass) {
                text.push_str(&format!("      {:<12} run: {repair}\n", ""));
            }
        }
        let failed = self.findings.iter().filter(|finding| finding.state == State::Fail).count();
        let verdict = match (failed, self.running) {
            (0, true) => "Nothing stands in the way.\n".to_owned(),
            (0, false) => "Nothing keeps a gateway from starting here.\n".to_owned(),
            (1, _) => "One check failed.\n".to_owned(),
            (failed, _) => format!("{failed} checks failed.\n"),
        };
        text + &verdict
    }

    /// For scripts.
    pub fn json(&self) -> String {
        let check = |finding: &Finding| -> Value {
            json!({
                "check": finding.check,
                "state": finding.state.word(),
                "sentence": finding.sentence,
                "repair": finding.repair,
            })
        };
        let checks: Vec<Value> = self.findings.iter().map(check).collect();
        line(&json!({ "schema": SCHEMA, "ok": self.is_good(), "running": self.running, "checks": checks }))
    }
}
