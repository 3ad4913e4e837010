//! `registry export|import`: a registry from one store into another.

use std::fs::File;
use std::io::{self, BufReader};
use std::path::Path;

use clap::Subcommand;
use serde_json::json;

use super::lists::line;
use super::{AdminError, SCHEMA, state_dir};
use crate::config::Config;
use crate::files;
use crate::fleet::{FleetError, check_authorities};
use crate::owner;
use crate::registry::Meta;
use crate::registry::dump::{Dump, DumpError, Sizes};
use crate::state::shared_facts;

/// What can be done with a registry as a whole.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Write users, devices, invitations and history to one file that only you can read
    Export {
        /// A new file
        file: std::path::PathBuf,
        /// One JSON object
        #[arg(long)]
        json: bool,
    },
    /// Fill the empty database of registry.url with what export wrote
    Import {
        /// What export wrote
        file: std::path::PathBuf,
        /// One JSON object
        #[arg(long)]
        json: bool,
    },
}

/// What a command prints: standard output, and a note for standard error.
type Told = (String, Option<String>);

/// Does what the command line says.
///
/// # Errors
/// [`AdminError`]; nothing has changed then.
pub async fn execute(config: &Config, command: Command) -> Result<Told, AdminError> {
    match command {
        Command::Export { file, json } => export(config, &file, json).await,
        Command::Import { file, json } => Ok((import(config, &file, json).await?, None)),
    }
}

async fn export(config: &Config, to: &Path, as_json: bool) -> Result<Told, AdminError> {
    if owner::as_caller(|| to.exists()) {
        return Err(AdminError::Exists(to.to_owned()));
    }
    let state = state_dir(config);
    let registry = state.registry().await?;
    let dump = registry.export().await;
    registry.close().await;
    let dump = dump?;
    let mut bytes = Vec::new();
    let failed = |error: io::Error| AdminError::Write { path: to.to_owned(), error };
    dump.write(&mut bytes).map_err(failed)?;
    owner::as_caller(|| files::write_new(to, &bytes, 0o600)).map_err(|error| match error.kind() {
        io::ErrorKind::AlreadyExists => AdminError::Exists(to.to_owned()),
        _ => failed(error),
    })?;
    let note = state.is_locked().then(|| {
        "the gateway runs, and what it changes from now on is not in the file; stop it before you move its registry"
            .to_owned()
    });
    Ok((told("exported", to, dump.sizes(), as_json), note))
}

async fn import(config: &Config, from: &Path, as_json: bool) -> Result<String, AdminError> {
    let file = owner::as_caller(|| File::open(from)).map_err(|error| AdminError::Read { path: from.into(), error })?;
    let dump = Dump::read(BufReader::new(file)).map_err(|error| match error {
        DumpError::Io(error) => AdminError::Read { path: from.into(), error },
        error => AdminError::BadExport { path: from.into(), error },
    })?;
    let state = state_dir(config);
    let authorities = state.authorities()?;
    check_authorities(&authorities)?;
    let authority = authorities.current();
    let own = authority.pin().to_string();
    if let Some(theirs) = dump.meta.get(Meta::Authority.name()).filter(|theirs| **theirs != own) {
        return Err(FleetError::OtherAuthority { own, theirs: theirs.clone() }.into());
    }
    let fact = |fact: Meta| dump.meta.get(fact.name()).map(|value| (fact, value.clone()));
    let facts: Vec<_> = [Meta::Ipv4, Meta::Ipv6].into_iter().filter_map(fact).collect();
    let registry = state.shared_registry().await?.ok_or(AdminError::NotShared)?;
    let imported = registry.import(&shared_facts(&facts, authority), &dump).await;
    registry.close().await;
    imported?;
    Ok(told("imported", from, dump.sizes(), as_json))
}

fn told(what: &str, file: &Path, sizes: Sizes, as_json: bool) -> String {
    if as_json {
        return line(&json!({ "schema": SCHEMA, "file": file, what: sizes }));
    }
    let Sizes { users, devices, invitations, events, .. } = sizes;
    format!("{what}: {users} users, {devices} devices, {invitations} invitations, {events} events\n")
}
