//! `gateways list|forget`: those that share a registry.

use clap::Subcommand;
use serde_json::{Value, json};
use time::OffsetDateTime;

use super::lists::{line, table};
use super::{AdminError, SCHEMA, actor, state_dir};
use crate::addresses::Pool;
use crate::config::Config;
use crate::registry::gateways::Gateway;
use crate::registry::postgres::PostgresRegistry;
use crate::settings::Settings;
use crate::times::rfc3339;

/// What can be done about gateways.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Those that share this one's registry
    List {
        /// One JSON object
        #[arg(long)]
        json: bool,
    },
    /// Strike out one that is gone: its addresses are free for others, its devices keep theirs
    Forget {
        /// Its name, or the beginning of its id
        #[arg(value_name = "NAME|ID")]
        gateway: String,
        /// One JSON object
        #[arg(long)]
        json: bool,
    },
}

/// Does what the command line says.
///
/// # Errors
/// [`AdminError`]; nothing has changed then.
pub async fn execute(config: &Config, command: Command) -> Result<String, AdminError> {
    let state = state_dir(config);
    state.check_initialised()?;
    let registry = state.shared_registry().await?.ok_or(AdminError::NotShared)?;
    let told = match command {
        Command::List { json } => list(config, &registry, json).await,
        Command::Forget { gateway, json } => forget(&registry, &gateway, json).await,
    };
    registry.close().await;
    told
}

async fn list(config: &Config, registry: &PostgresRegistry, as_json: bool) -> Result<String, AdminError> {
    let gateways = registry.gateways().await?;
    let pool = Settings::resolve(config, registry).await?.pool;
    if as_json {
        let one = |gateway: &Gateway| -> Value {
            json!({
                "id": gateway.id,
                "name": gateway.name,
                "endpoints": gateway.endpoints,
                "version": gateway.version,
                "joined": rfc3339(gateway.joined),
                "last_seen": rfc3339(gateway.last_seen),
                "live": gateway.live,
                "addresses": addresses(gateway, &pool),
            })
        };
        let gateways: Vec<Value> = gateways.iter().map(one).collect();
        return Ok(line(&json!({ "schema": SCHEMA, "gateways": gateways })));
    }
    let mut rows = vec![["NAME", "ENDPOINTS", "ADDRESSES", "LAST SEEN", "STATE", "ID"].map(str::to_owned)];
    rows.extend(gateways.iter().map(|gateway| {
        [
            gateway.name.clone(),
            gateway.endpoints.join(" "),
            addresses(gateway, &pool).join(" "),
            rfc3339(gateway.last_seen),
            if gateway.live { "live" } else { "silent" }.to_owned(),
            gateway.id.chars().take(8).collect(),
        ]
    }));
    Ok(table(&rows))
}

/// The parts of the network that are a gateway's, first and last address.
fn addresses(gateway: &Gateway, pool: &Pool) -> Vec<String> {
    let text =
        |number: i64| u32::try_from(number).map_or_else(|_| String::new(), |n| std::net::Ipv4Addr::from(n).to_string());
    let parts = gateway.slices.iter().filter(|number| **number < pool.slices()).map(|number| pool.slice(*number));
    parts.map(|(first, last)| format!("{}-{}", text(first), text(last))).collect()
}

async fn forget(registry: &PostgresRegistry, which: &str, as_json: bool) -> Result<String, AdminError> {
    const ID_PART: usize = 6;
    let gateways = registry.gateways().await?;
    let is_meant =
        |gateway: &&Gateway| gateway.name == which || (which.len() >= ID_PART && gateway.id.starts_with(which));
    let found: Vec<&Gateway> = gateways.iter().filter(is_meant).collect();
    let gateway = match found.as_slice() {
        [] => return Err(AdminError::NoGateway(which.to_owned())),
        [one] => one,
        several => {
            let choices = several.iter().map(|gateway| gateway.id.clone()).collect();
            return Err(AdminError::Ambiguous { name: which.to_owned(), choices });
        }
    };
    if gateway.live {
        return Err(AdminError::GatewayRuns(gateway.name.clone()));
    }
    registry.forget(&gateway.id, OffsetDateTime::now_utc(), &actor()).await?;
    Ok(if as_json {
        line(&json!({ "schema": SCHEMA, "forgotten": { "id": gateway.id, "name": gateway.name } }))
    } else {
        format!("{} is forgotten; its devices connect to the other gateways with their addresses\n", gateway.name)
    })
}
