//! What holds for this gateway once the configuration meets what `init` chose.

use std::net::IpAddr;

use culvert_tunnel::identity::IdentityError;
use culvert_tunnel::invitation::MAX_ENDPOINTS;
use ipnet::{Ipv4Net, Ipv6Net};

use crate::addresses::Pool;
use crate::config::{Config, Endpoint, Ipv6, NameServer};
use crate::registry::{Meta, Registry, RegistryError};

/// Endpoints and inner networks, with nothing left open.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// What clients are told first.
    pub endpoint: Endpoint,
    /// More of the same.
    pub extra_endpoints: Vec<Endpoint>,
    /// Those of the other gateways that share the registry, as clients dial them.
    pub others: Vec<String>,
    /// The UDP port of endpoints that name none.
    pub port: u16,
    /// The inner addresses.
    pub pool: Pool,
    /// The gateway answers name lookups at its own inner addresses.
    pub answers: bool,
}

/// What is missing.
#[derive(Debug, thiserror::Error)]
pub enum SettingsError {
    /// Neither the configuration nor the registry has it.
    #[error("{0} is set nowhere; set it in the configuration")]
    Missing(&'static str),
    /// The registry cannot be read.
    #[error(transparent)]
    Registry(#[from] RegistryError),
    /// The random numbers failed.
    #[error(transparent)]
    Identity(#[from] IdentityError),
}

impl Settings {
    /// Joins the configuration with what `init` kept in the registry. The configuration wins.
    ///
    /// # Errors
    /// [`SettingsError`] when neither has a value.
    pub async fn resolve(config: &Config, registry: &impl Registry) -> Result<Self, SettingsError> {
        let endpoint = match &config.endpoint {
            Some(endpoint) => endpoint.clone(),
            None => kept(registry, Meta::Endpoint, "endpoint.name").await?,
        };
        let ipv4: Ipv4Net = match config.ipv4 {
            Some(network) => network,
            None => kept(registry, Meta::Ipv4, "network.ipv4").await?,
        };
        let ipv6: Option<Ipv6Net> = match config.ipv6 {
            Ipv6::Off => None,
            Ipv6::Network(network) => Some(network),
            Ipv6::Auto => Some(kept(registry, Meta::Ipv6, "network.ipv6").await?),
        };
        Ok(Self::new(config, endpoint, Pool::new(ipv4, ipv6)))
    }

    /// What the configuration makes of an endpoint and a pool.
    pub fn new(config: &Config, endpoint: Endpoint, pool: Pool) -> Self {
        Self {
            endpoint,
            extra_endpoints: config.extra_endpoints.clone(),
            others: Vec::new(),
            port: config.listen.port(),
            pool,
            answers: config.push.dns.contains(&NameServer::Gateway) || config.policies.ask_the_gateway(),
        }
    }

    /// The name servers that clients are told of; the gateway's own addresses only while it answers there.
    pub fn name_servers(&self, chosen: &[NameServer]) -> Vec<IpAddr> {
        let gateway = self.pool.gateway();
        let own = || std::iter::once(gateway.ipv4.into()).chain(gateway.ipv6.map(IpAddr::from));
        let servers = chosen.iter().flat_map(|server| match server {
            NameServer::Gateway if self.answers => own().collect(),
            NameServer::Gateway => vec![],
            NameServer::Address(address) => vec![*address],
        });
        servers.collect()
    }

    /// Every endpoint as clients dial it, this gateway's own first; as many as a client takes.
    pub fn endpoints(&self) -> Vec<String> {
        let mut endpoints = self.own_endpoints();
        for other in &self.others {
            if !endpoints.contains(other) {
                endpoints.push(other.clone());
            }
        }
        endpoints.truncate(MAX_ENDPOINTS.max(1 + self.extra_endpoints.len()));
        endpoints
    }

    /// This gateway's endpoints as clients dial them, best first.
    pub fn own_endpoints(&self) -> Vec<String> {
        std::iter::once(&self.endpoint)
            .chain(&self.extra_endpoints)
            .map(|endpoint| endpoint.with_port(self.port))
            .collect()
    }

    /// The hosts that the gateway's certificate must hold.
    pub fn leaf_names(&self) -> Vec<String> {
        std::iter::once(&self.endpoint).chain(&self.extra_endpoints).map(|endpoint| endpoint.host.clone()).collect()
    }

    /// What people call this gateway.
    pub fn display_name(&self) -> &str {
        &self.endpoint.host
    }
}

async fn kept<T: std::str::FromStr>(
    registry: &impl Registry,
    meta: Meta,
    key: &'static str,
) -> Result<T, SettingsError> {
    let text = registry.meta(meta).await?;
    text.and_then(|text| text.parse().ok()).ok_or(SettingsError::Missing(key))
}
