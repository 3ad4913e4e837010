//! `uninstall`: this machine as it was. On a Mac the programs, too; elsewhere what is left to do for whoever installed
//! them.

use std::io::{self, IsTerminal};
use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use clap::Args;
use culvert_protocol::{Event, Request};
use tokio::time::timeout;

use crate::failure::Failure;
use crate::{dial, output};

#[cfg(not(target_os = "macos"))]
#[path = "uninstall/linux.rs"]
mod imp;
#[cfg(target_os = "macos")]
#[path = "uninstall/macos.rs"]
mod imp;

/// Everything is undone within this time.
const UNDONE_WITHIN: Duration = Duration::from_secs(15);

#[derive(Args, Debug)]
pub(crate) struct Uninstall {
    /// Keep the access to gateways, for when the program comes back.
    #[arg(long)]
    keep_identity: bool,
    /// Do not ask.
    #[arg(long)]
    yes: bool,
}

pub(crate) async fn uninstall(socket: &Path, arguments: Uninstall) -> Result<ExitCode, Failure> {
    if !arguments.yes {
        confirm(arguments.keep_identity)?;
    }
    match forget(socket, arguments.keep_identity).await {
        Ok(()) => {}
        Err(failure) => imp::without_helper(failure)?,
    }
    output::message(if arguments.keep_identity {
        "Disconnected; settings are forgotten, nothing is held back any more, and access to gateways is kept."
    } else {
        "Disconnected; settings and access to gateways are forgotten, and nothing is held back any more."
    });
    imp::remove_programs(arguments.keep_identity)?;
    Ok(ExitCode::SUCCESS)
}

async fn forget(socket: &Path, keep_identity: bool) -> Result<(), Failure> {
    let mut client = dial(socket).await?;
    let forget = client.request(Request::Forget { keep_identity });
    match timeout(UNDONE_WITHIN, forget).await.map_err(|_| Failure::helper_silent())?? {
        Event::Done { .. } => Ok(()),
        other => Err(Failure::unexpected(&other)),
    }
}

fn confirm(keep_identity: bool) -> Result<(), Failure> {
    if !io::stdin().is_terminal() {
        return Err(Failure::Usage("forgetting cannot be undone. hint: Say it with --yes".into()));
    }
    let what = if keep_identity { "settings" } else { "settings and the access to every gateway" };
    output::consent(&format!("Disconnect, and forget {what}?"), "nothing was changed")
}
