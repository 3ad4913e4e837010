//! `mdm-profile`: a profile that an MDM gives to Macs, so that the app enrols them and has its settings from you.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

use clap::ValueEnum;

use super::invite::{InviteRequest, check_name, invite_as};
use super::{AdminError, state_dir};
use crate::config::Config;
use crate::files;
use crate::mobileconfig::{Locked, Profile};
use crate::owner;
use crate::registry::{Meta, Registry};
use crate::settings::{Settings, SettingsError};
use crate::times::parse_duration;

/// Whose signature packages of this build have, when it is known.
const TEAM: Option<&str> = option_env!("CULVERT_TEAM_ID");

/// The command line.
#[derive(Clone, Debug, clap::Args)]
pub struct Arguments {
    /// Who manages these Macs; the app shows it
    #[arg(long, value_name = "NAME")]
    org: String,
    /// The profile holds an invitation for so many Macs
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=10_000), required_unless_present = "no_invitation")]
    uses: Option<u32>,
    /// How long the invitation is good, such as 24h or 30d
    #[arg(long, value_name = "TIME", default_value = "30d")]
    expires: String,
    /// The user whose devices these Macs become
    #[arg(long, value_name = "NAME", default_value = "mdm")]
    user: String,
    /// No invitation: somebody enrols each Mac
    #[arg(long, conflicts_with_all = ["uses", "expires", "user"])]
    no_invitation: bool,
    /// Whose signature the app has: the ten characters that pkgutil --check-signature shows
    #[arg(long, value_name = "ID", value_parser = team_id)]
    team_id: Option<String>,
    /// Whether it connects when it starts
    #[arg(long, value_name = "on|off")]
    connect_at_launch: Option<Switch>,
    /// Whether it starts when somebody logs in
    #[arg(long, value_name = "on|off")]
    start_at_login: Option<Switch>,
    /// Whether everything outside the tunnel is blocked, also while disconnected
    #[arg(long, value_name = "on|off")]
    lockdown: Option<Switch>,
    /// Whether local networks can be reached beside the tunnel
    #[arg(long, value_name = "on|off")]
    allow_lan: Option<Switch>,
    /// Where users ask for help
    #[arg(long, value_name = "URL", value_parser = support_url)]
    support_url: Option<String>,
    /// How the app updates itself
    #[arg(long, value_name = "POLICY")]
    update_policy: Option<UpdatePolicy>,
    /// What its menu does not show
    #[arg(long, value_name = "ITEM,...", value_delimiter = ',')]
    hide_menu_items: Vec<MenuItem>,
    /// Write it to a new file, which only you can read if it holds an invitation
    #[arg(long, value_name = "FILE")]
    output: Option<PathBuf>,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Switch {
    On,
    Off,
}

impl Switch {
    fn is_on(self) -> bool {
        matches!(self, Self::On)
    }
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum UpdatePolicy {
    /// By itself, while nothing is connected
    Automatic,
    /// It asks
    Ask,
    /// Never: the MDM does
    Off,
}

impl UpdatePolicy {
    fn word(self) -> &'static str {
        match self {
            Self::Automatic => "automatic",
            Self::Ask => "ask",
            Self::Off => "off",
        }
    }
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum MenuItem {
    Gateways,
    Diagnose,
    Settings,
    Quit,
}

impl MenuItem {
    fn word(self) -> &'static str {
        match self {
            Self::Gateways => "gateways",
            Self::Diagnose => "diagnose",
            Self::Settings => "settings",
            Self::Quit => "quit",
        }
    }
}

fn team_id(text: &str) -> Result<String, String> {
    let is_one = text.len() == 10 && text.bytes().all(|byte| byte.is_ascii_digit() || byte.is_ascii_uppercase());
    if is_one { Ok(text.to_owned()) } else { Err("a team has ten digits and capital letters".into()) }
}

fn support_url(text: &str) -> Result<String, String> {
    let is_one = ["https://", "mailto:"].iter().any(|scheme| text.len() > scheme.len() && text.starts_with(scheme))
        && text.chars().all(|c| c.is_ascii_graphic());
    if is_one {
        Ok(text.to_owned())
    } else {
        Err("write it like https://help.example.org or mailto:it@example.org".into())
    }
}

/// The profile, or where it was written; and what to say beside it.
///
/// # Errors
/// [`AdminError`]; there is neither an invitation nor a file then.
pub async fn profile(config: &Config, arguments: Arguments) -> Result<String, AdminError> {
    let organization = check_name(&arguments.org)?;
    let team_id = arguments.team_id.as_deref().or(TEAM.filter(|team| *team != "unsigned")).ok_or(AdminError::NoTeam)?;
    let registry = state_dir(config).registry().await?;
    let gateway_id = registry.meta(Meta::GatewayId).await?.ok_or(SettingsError::Missing("the gateway's id"))?;
    let settings = Settings::resolve(config, &registry).await?;
    registry.close().await;
    let gateway = settings.endpoint.with_port(settings.port);
    let locked = Locked {
        connect_at_launch: arguments.connect_at_launch.map(Switch::is_on),
        start_at_login: arguments.start_at_login.map(Switch::is_on),
        lockdown: arguments.lockdown.map(Switch::is_on),
        allow_lan: arguments.allow_lan.map(Switch::is_on),
        support_url: arguments.support_url,
        update_policy: arguments.update_policy.map(UpdatePolicy::word),
        hide_menu_items: arguments.hide_menu_items.into_iter().map(MenuItem::word).collect(),
    };
    let with = |invitation: Option<&str>| {
        let profile = Profile {
            organization: &organization,
            gateway_id: &gateway_id,
            gateway: &gateway,
            team_id,
            invitation,
            locked: locked.clone(),
        };
        profile.to_xml().map_err(|error| AdminError::Profile(error.to_string()))
    };
    let out = arguments.output;
    let Some(uses) = arguments.uses else {
        let text = with(None)?;
        let Some(path) = out else { return Ok(text) };
        let written = owner::as_caller(|| files::write_new(&path, text.as_bytes(), 0o644));
        written.map_err(|error| match error.kind() {
            io::ErrorKind::AlreadyExists => AdminError::Exists(path.clone()),
            _ => AdminError::Write { path: path.clone(), error },
        })?;
        return Ok(format!("The profile is in {}\n", path.display()));
    };
    let lifetime = parse_duration(&arguments.expires).filter(|time| *time > Duration::ZERO);
    let lifetime = lifetime.ok_or(AdminError::BadDuration(arguments.expires))?;
    let user = check_name(&arguments.user)?;
    if let Some(limit) = config.policies.devices(&user, config.devices_per_user)
        && limit < uses
    {
        return Err(AdminError::TooFewDevices { user, limit, uses });
    }
    let request = InviteRequest { user, lifetime, uses, out, renew: false };
    let invited = invite_as(config, &request, |link| with(Some(link))).await?;
    Ok(match (invited.invitation, invited.file) {
        (Some(text), _) => text,
        (None, file) => format!(
            "The profile is in {}; whoever has it may enrol {uses} devices until {}\n",
            file.unwrap_or_default().display(),
            invited.expires
        ),
    })
}
