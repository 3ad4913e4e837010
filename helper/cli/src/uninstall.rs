//! `uninstall`: this machine as it was, and what is left to do for whoever installed the program.

use std::io::{self, IsTerminal};
use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use clap::Args;
use culvert_protocol::{Event, Request};
use tokio::time::timeout;

use crate::failure::Failure;
use crate::{dial, output};

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
    let mut client = dial(socket).await?;
    let forget = client.request(Request::Forget { keep_identity: arguments.keep_identity });
    match timeout(UNDONE_WITHIN, forget).await.map_err(|_| Failure::helper_silent())?? {
        Event::Done { .. } => {}
        other => return Err(Failure::unexpected(&other)),
    }
    output::message(if arguments.keep_identity {
        "Disconnected; settings are forgotten, nothing is held back any more, and access to gateways is kept."
    } else {
        "Disconnected; settings and access to gateways are forgotten, and nothing is held back any more."
    });
    output::message(&format!("To remove the programs: {}", remove()));
    Ok(ExitCode::SUCCESS)
}

/// How the programs came here, as far as that can be seen.
fn remove() -> &'static str {
    if cfg!(target_os = "macos") {
        "run Uninstall Culvert from the app's settings"
    } else if Path::new("/usr/share/doc/culvert/changelog.Debian.gz").exists() {
        "sudo apt purge culvert"
    } else {
        "stop culvert-helper, then remove it the way it was installed, and its state in /var/lib/culvert"
    }
}

fn confirm(keep_identity: bool) -> Result<(), Failure> {
    if !io::stdin().is_terminal() {
        return Err(Failure::Usage("forgetting cannot be undone. hint: Say it with --yes".into()));
    }
    let what = if keep_identity { "settings" } else { "settings and the access to every gateway" };
    output::consent(&format!("Disconnect, and forget {what}?"), "nothing was changed")
}
