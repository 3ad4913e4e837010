//! `report`: one text file for whoever helps, without names and addresses, to be read before it is given away.
//! Nothing is sent.

use std::fmt::Write as _;
use std::fs::OpenOptions;
use std::io::{self, IsTerminal, Write as _};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::Args;
use culvert_protocol::{Client, Event, LogLevel, Request, Status};
use time::OffsetDateTime;
use time::macros::format_description;

use crate::failure::Failure;
use crate::redact::Redactor;
use crate::{ask, ask_status, dial, doctor, logs, output, show};

#[derive(Args, Debug)]
pub(crate) struct Report {
    /// Save it here, without asking; an existing file is not overwritten.
    #[arg(short, long, value_name = "FILE", conflicts_with = "stdout")]
    output: Option<PathBuf>,
    /// Print it and save nothing.
    #[arg(long)]
    stdout: bool,
}

pub(crate) async fn report(socket: &Path, arguments: Report) -> Result<ExitCode, Failure> {
    output::message("Looking at everything; this takes up to 15 s.");
    let report = text(socket).await?;
    if arguments.stdout {
        output::text(&report)?;
        return Ok(ExitCode::SUCCESS);
    }
    let path = match arguments.output {
        Some(path) => path,
        None => {
            let path = PathBuf::from(file_name(OffsetDateTime::now_utc()));
            if io::stdin().is_terminal() && io::stdout().is_terminal() {
                output::text(&report)?;
                output::consent(&format!("Save this as {}?", path.display()), "nothing was saved")?;
            }
            path
        }
    };
    save(&path, &report)?;
    let lines = report.lines().count();
    output::message(&format!(
        "Saved {lines} lines as {}. Nothing was sent: read it, then give it to whoever helps you.",
        path.display()
    ));
    Ok(ExitCode::SUCCESS)
}

fn file_name(now: OffsetDateTime) -> String {
    let stamp = now.format(format_description!("[year][month][day]-[hour][minute][second]")).unwrap_or_default();
    format!("culvert-report-{stamp}.txt")
}

fn save(path: &Path, report: &str) -> Result<(), Failure> {
    let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path);
    let written = file.and_then(|mut file| file.write_all(report.as_bytes()));
    written.map_err(|error| {
        let hint =
            if error.kind() == io::ErrorKind::AlreadyExists { "choose another name" } else { "choose another place" };
        Failure::Usage(format!(
            "{} cannot be written: {error}. hint: {hint} with -o, or print it with --stdout",
            path.display()
        ))
    })
}

/// The whole report, redacted.
async fn text(socket: &Path) -> Result<String, Failure> {
    let mut redactor = Redactor::default();
    redactor.hide("host", rustix::system::uname().nodename().to_str().unwrap_or_default());
    redactor.hide("user", &std::env::var("USER").unwrap_or_default());
    let mut sections = vec![("Versions", versions())];
    match dial(socket).await {
        Ok(mut client) => {
            let _ = writeln!(sections[0].1, "helper   {}", client.helper());
            sections.extend(of_helper(&mut client, &mut redactor).await?);
        }
        Err(failure) => sections.push(("Helper", failure.cause())),
    }
    let (diagnosis, _) = doctor::diagnose(socket).await?;
    sections.insert(1, ("Diagnosis", doctor::text(&diagnosis)));
    let made = OffsetDateTime::now_utc();
    let mut report = format!(
        "Culvert report of {}\nNames and addresses are replaced; the same word stands for the same one.\n",
        made.format(format_description!("[year]-[month]-[day] [hour]:[minute] UTC")).unwrap_or_default()
    );
    for (title, body) in sections {
        let _ = write!(report, "\n== {title} ==\n{}\n", redactor.redact(body.trim_end()));
    }
    Ok(report)
}

fn versions() -> String {
    let system = rustix::system::uname();
    let word = |text: &std::ffi::CStr| text.to_string_lossy().into_owned();
    let distribution = std::fs::read_to_string("/etc/os-release").unwrap_or_default();
    let distribution = distribution.lines().find_map(|line| line.strip_prefix("PRETTY_NAME=")).unwrap_or_default();
    format!(
        "system   {} {} {} {}\nculvert  {}\n",
        word(system.sysname()),
        word(system.release()),
        word(system.machine()),
        distribution.trim_matches('"'),
        env!("CARGO_PKG_VERSION")
    )
}

async fn of_helper(client: &mut Client, redactor: &mut Redactor) -> Result<Vec<(&'static str, String)>, Failure> {
    let status = ask_status(client, Request::Status).await?;
    hide_status(&status, redactor);
    let Event::Profiles { profiles } = ask(client, Request::Profiles).await? else { return Ok(vec![]) };
    let mut list = String::new();
    for profile in &profiles {
        redactor.hide("profile", &profile.name);
        redactor.hide("gateway", &profile.gateway);
        redactor.hide("device", &profile.device);
        redactor.hide("user", &profile.user);
        for endpoint in &profile.endpoints {
            hide_host(endpoint, redactor);
        }
        let until = profile.certificate_until.map_or_else(|| "damaged".into(), |until| until.date().to_string());
        let default = if profile.is_default { ", default" } else { "" };
        let _ = writeln!(list, "{} at {}, until {until}{default}", profile.name, profile.endpoints.join(", "));
    }
    let Event::Settings(settings) = ask(client, Request::Settings).await? else { return Ok(vec![]) };
    if let Some(managed) = &settings.managed {
        managed.organization.iter().for_each(|name| redactor.hide("organization", name));
        managed.support_url.iter().for_each(|url| redactor.hide("support", url));
    }
    let mut log = String::new();
    logs::all(client, LogLevel::Debug, false, |lines| {
        for line in lines {
            let _ = writeln!(log, "{}", logs::show(line));
        }
        Ok(())
    })
    .await?;
    Ok(vec![
        ("Status", show::status(&status, OffsetDateTime::now_utc())),
        ("Status, in full", serde_json::to_string_pretty(&status).map_err(io::Error::other)?),
        ("Settings", serde_json::to_string_pretty(&settings).map_err(io::Error::other)?),
        ("Profiles", list),
        ("Log of the helper", log),
    ])
}

fn hide_status(status: &Status, redactor: &mut Redactor) {
    if let Some(gateway) = &status.gateway {
        redactor.hide("gateway", &gateway.name);
        hide_host(&gateway.endpoint, redactor);
    }
    if let Some(profile) = &status.profile {
        redactor.hide("profile", profile);
    }
    if let Some(certificate) = &status.certificate {
        redactor.hide("device", &certificate.device);
    }
}

fn hide_host(endpoint: &str, redactor: &mut Redactor) {
    let host = endpoint.rsplit_once(':').map_or(endpoint, |(host, _)| host);
    redactor.hide("gateway", host.trim_matches(['[', ']']));
}
