//! `profiles`: the gateways that this machine is enrolled with.

use std::io::{self, IsTerminal};
use std::path::Path;
use std::process::ExitCode;

use clap::Subcommand;
use culvert_protocol::{Client, Event, Problem, ProfileFacts, Request, code};
use time::OffsetDateTime;

use crate::failure::Failure;
use crate::json::{Numbered, Profiles};
use crate::{ask, dial, keychain, output, show};

#[derive(Subcommand, Debug)]
pub(crate) enum Command {
    /// Show them; the default one is marked.
    List {
        /// One JSON object.
        #[arg(long)]
        json: bool,
    },
    /// Give one another name.
    Rename {
        /// Its name now.
        profile: String,
        /// Its name from now on.
        to: String,
    },
    /// Forget one and its identity; only a new invitation brings it back.
    Remove {
        /// Its name.
        profile: String,
        /// Do not ask.
        #[arg(long)]
        yes: bool,
    },
    /// Seal the device key of one with a key that your keychain keeps: only you can connect then, while logged in.
    Lock {
        /// Its name.
        profile: String,
    },
    /// Undo `lock`.
    Unlock {
        /// Its name.
        profile: String,
    },
    /// Make one the profile that `culvert connect` uses.
    Default {
        /// Its name.
        profile: String,
    },
}

pub(crate) async fn profiles(socket: &Path, command: Option<Command>) -> Result<ExitCode, Failure> {
    let command = command.unwrap_or(Command::List { json: false });
    let mut client = dial(socket).await?;
    let request = match &command {
        Command::List { .. } => Request::Profiles,
        Command::Lock { profile } => {
            let key = keychain::make(device_id(&mut client, profile).await?).await?;
            Request::SealProfile { profile: profile.clone(), key }
        }
        Command::Unlock { profile } => {
            let Some(key) = keychain::key_of(&mut client, Some(profile)).await? else {
                output::message(&format!("{profile} is not locked"));
                return Ok(ExitCode::SUCCESS);
            };
            Request::UnsealProfile { profile: profile.clone(), key }
        }
        Command::Rename { profile, to } => Request::RenameProfile { profile: profile.clone(), to: to.clone() },
        Command::Remove { profile, yes } => {
            if !yes {
                confirm(profile)?;
            }
            Request::RemoveProfile { profile: profile.clone() }
        }
        Command::Default { profile } => Request::DefaultProfile { profile: profile.clone() },
    };
    let profiles = match ask(&mut client, request).await? {
        Event::Profiles { profiles } => profiles,
        other => return Err(Failure::unexpected(&other)),
    };
    match command {
        Command::List { json: true } => output::json(&Numbered::new(Profiles { profiles }))?,
        Command::List { json: false } if profiles.is_empty() => {
            output::message("There is no profile. Enrol with an invitation: culvert enrol");
        }
        Command::List { json: false } => output::text(&table(&profiles, OffsetDateTime::now_utc()))?,
        Command::Lock { profile } => output::message(&format!("{profile} opens only with your keychain now")),
        Command::Unlock { profile } => {
            // Only now that nothing needs it any more.
            if let Some(facts) = profiles.iter().find(|facts| facts.name == profile) {
                keychain::forget(facts.device_id.clone()).await?;
            }
            output::message(&format!("{profile} opens for everybody who may control the VPN now"));
        }
        Command::Rename { profile, to } => output::message(&format!("{profile} is called {to} now")),
        Command::Remove { profile, .. } => output::message(&format!("{profile} is forgotten")),
        Command::Default { profile } => output::message(&format!("{profile} is the default profile now")),
    }
    Ok(ExitCode::SUCCESS)
}

/// Names its key in the keychain.
async fn device_id(client: &mut Client, profile: &str) -> Result<String, Failure> {
    match ask(client, Request::Profiles).await? {
        Event::Profiles { profiles } => {
            let found = profiles.into_iter().find(|facts| facts.name == profile);
            let missing = || Problem::new(code::NO_PROFILE).because(format!("There is no profile {profile:?}"));
            Ok(found.ok_or_else(missing)?.device_id)
        }
        other => Err(Failure::unexpected(&other)),
    }
}

/// Asks on a terminal; elsewhere `--yes` must say it.
fn confirm(profile: &str) -> Result<(), Failure> {
    if !io::stdin().is_terminal() {
        return Err(Failure::Usage(format!("removing {profile} cannot be undone. hint: Say it with --yes")));
    }
    let question = format!("Forget {profile} and its identity? Only a new invitation brings it back.");
    output::consent(&question, "nothing was removed")
}

/// One line each, the columns as wide as their widest cell.
fn table(profiles: &[ProfileFacts], now: OffsetDateTime) -> String {
    let row = |profile: &ProfileFacts| {
        let until = profile.certificate_until.map(|until| show::date(until, now));
        [
            format!("{} {}", if profile.is_default { '*' } else { ' ' }, profile.name),
            if profile.gateway.is_empty() { "(damaged)".into() } else { profile.gateway.clone() },
            profile.endpoints.join(", "),
            format!("{} ({})", profile.device, profile.user),
            until.map_or_else(String::new, |until| format!("until {until}")),
        ]
    };
    let rows: Vec<[String; 5]> = profiles.iter().map(row).collect();
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
    let widths: [usize; 5] = std::array::from_fn(width);
    let line = |row: &[String; 5]| {
        let cells = row.iter().zip(widths).map(|(cell, width)| format!("{cell:<width$}"));
        cells.collect::<Vec<_>>().join("  ").trim_end().to_owned()
    };
    rows.iter().map(line).collect::<Vec<_>>().join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_stand_below_each_other_and_the_default_one_is_marked() {
        let profile = |name: &str, gateway: &str, is_default| ProfileFacts {
            name: name.into(),
            gateway: gateway.into(),
            endpoints: vec!["vpn.example.org:443".into()],
            device: "laptop".into(),
            user: "anna".into(),
            certificate_until: None,
            is_default,
            device_id: String::new(),
            sealed: false,
        };
        let shown =
            table(&[profile("acme", "Acme", true), profile("home-2", "My home", false)], OffsetDateTime::UNIX_EPOCH);
        let expected = "* acme    Acme     vpn.example.org:443  laptop (anna)\n  \
                        home-2  My home  vpn.example.org:443  laptop (anna)";
        assert_eq!(shown, expected);
    }
}
