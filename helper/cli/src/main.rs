//! `culvert`: asks the helper, and says what it answers. Everything that a person can do to the
//! VPN without being root.
//!
//! stdout is data, stderr is messages. Errors are one line: `error: cause. hint: what to do. [E104]`.

mod connect;
mod doctor;
mod enrol;
mod failure;
mod json;
mod keychain;
mod logs;
mod output;
mod portal;
mod profiles;
mod redact;
mod report;
mod settings;
mod show;
mod speedtest;
mod uninstall;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::{Args, CommandFactory, Parser, Subcommand};
use culvert_protocol::{Client, Event, Request, Status, default_socket};
use failure::Failure;
use time::OffsetDateTime;

culvert_protocol::info_plist!("net.culvert.ctl", "culvert");

/// How long the helper may take to answer what needs no network.
const ANSWER_WITHIN: Duration = Duration::from_secs(5);

/// Who this program is, for the helper's log.
const NAME: &str = concat!("culvert ", env!("CARGO_PKG_VERSION"));

const EXIT_CODES: &str = "\
Exit codes:
  0    done / true
  1    failed; the reason, with its code, is on stderr
  2    usage error
  3    status --check: not connected
  4    background service not reachable
  5    credential refused, expired or revoked
  6    network: no answer, or timeout
  7    not enrolled
  8    forbidden by policy or permission
  9    configuration invalid
  130  interrupted";

/// Controls the Culvert VPN of this machine.
#[derive(Parser, Debug)]
#[command(name = "culvert", version, after_help = EXIT_CODES, disable_help_subcommand = false)]
struct Arguments {
    /// The helper's Unix socket.
    #[arg(long, global = true, env = "CULVERT_SOCKET", default_value = default_socket())]
    socket: PathBuf,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand, Debug)]
enum Command {
    /// Set this machine up with an invitation from the gateway's administrator.
    #[command(after_help = EXIT_CODES)]
    Enrol(Enrol),
    /// Connect, and stay connected until `culvert disconnect`.
    #[command(after_help = EXIT_CODES)]
    Connect(Connect),
    /// Disconnect, and undo every change to this machine.
    #[command(after_help = EXIT_CODES)]
    Disconnect {
        /// Lift the kill switch in any mode, until the next connect.
        #[arg(long)]
        unblock: bool,
        /// How long to wait until everything is undone.
        #[arg(long, value_name = "TIME", default_value = "10s", value_parser = duration)]
        timeout: Duration,
    },
    /// Show what is going on.
    #[command(after_help = EXIT_CODES)]
    Status {
        /// Exit with 3 unless connected.
        #[arg(long)]
        check: bool,
        /// One JSON object.
        #[arg(long)]
        json: bool,
    },
    /// Show what is going on, and then every change.
    #[command(after_help = EXIT_CODES)]
    Watch {
        /// One JSON object a line: first a full snapshot, then changes.
        #[arg(long)]
        json: bool,
    },
    /// Show and change the gateways that this machine is enrolled with.
    #[command(after_help = EXIT_CODES)]
    Profiles {
        #[command(subcommand)]
        command: Option<profiles::Command>,
    },
    /// Show what is chosen, and change it.
    #[command(after_help = EXIT_CODES)]
    Settings {
        #[command(subcommand)]
        command: settings::Command,
    },
    /// Let the sign-in page of this network be reached for 5 minutes, and print where it is.
    #[command(after_help = EXIT_CODES)]
    Portal,
    /// Find out what is wrong: fifteen checks, one verdict, at most 15 s; nothing is changed.
    #[command(after_help = EXIT_CODES)]
    Doctor {
        /// One JSON object.
        #[arg(long)]
        json: bool,
    },
    /// Write a report for whoever helps, without names and addresses; nothing is sent.
    #[command(after_help = EXIT_CODES)]
    Report(report::Report),
    /// Show what the helper has logged since it started.
    #[command(after_help = EXIT_CODES)]
    Logs(logs::Logs),
    /// Measure how fast the tunnel is, against your own gateway; nobody else takes part.
    #[command(after_help = EXIT_CODES)]
    Speedtest(speedtest::Speedtest),
    /// Disconnect, lift the kill switch, and forget settings and access to gateways; on a Mac, with sudo, remove the
    /// programs, too.
    #[command(after_help = EXIT_CODES)]
    Uninstall(uninstall::Uninstall),
    /// Print completions for a shell; packages install them.
    #[command(after_help = EXIT_CODES)]
    Completions {
        /// Which shell.
        shell: clap_complete::Shell,
    },
    /// Write the man pages into a folder; packages install them.
    #[command(hide = true)]
    Man {
        /// The folder, which exists.
        dir: PathBuf,
    },
    /// Show the versions of this program and of the helper.
    #[command(after_help = EXIT_CODES)]
    Version {
        /// One JSON object.
        #[arg(long)]
        json: bool,
    },
}

#[derive(Args, Debug)]
struct Enrol {
    /// The invitation; `-` or nothing reads it from stdin, where no other user can see it.
    #[arg(value_name = "INVITE")]
    invitation: Option<String>,
    /// What the gateway's administrator will see this device as; the host's name by default.
    #[arg(long, value_name = "NAME")]
    name: Option<String>,
    /// How long to wait for the gateway.
    #[arg(long, value_name = "TIME", default_value = "60s", value_parser = duration)]
    timeout: Duration,
}

#[derive(Args, Debug)]
struct Connect {
    /// Which gateway; the default profile when absent.
    profile: Option<String>,
    /// Wait until connected, through causes that time may heal [default when given: 30s].
    #[arg(long, value_name = "TIME", num_args = 0..=1, require_equals = true, default_missing_value = "30s",
          value_parser = duration, conflicts_with_all = ["no_wait", "timeout"])]
    wait: Option<Duration>,
    /// Return at once; `culvert watch` tells the rest.
    #[arg(long)]
    no_wait: bool,
    /// Without --wait: wait this long until connected, or until the first cause why not.
    #[arg(long, value_name = "TIME", default_value = "10s", value_parser = duration)]
    timeout: Duration,
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let done = tokio::select! {
        done = run(arguments) => done,
        _ = tokio::signal::ctrl_c() => return ExitCode::from(failure::INTERRUPTED),
    };
    match done {
        Ok(code) => code,
        Err(failure) => failure.report(),
    }
}

async fn run(Arguments { socket, command }: Arguments) -> Result<ExitCode, Failure> {
    match command {
        Command::Enrol(arguments) => enrol::enrol(&socket, arguments).await,
        Command::Connect(arguments) => connect::connect(&socket, arguments).await,
        Command::Disconnect { unblock, timeout } => connect::disconnect(&socket, unblock, timeout).await,
        Command::Profiles { command } => profiles::profiles(&socket, command).await,
        Command::Settings { command } => settings::settings(&socket, command).await,
        Command::Status { check, json } => status(&socket, check, json).await,
        Command::Watch { json } => watch(&socket, json).await,
        Command::Portal => portal::portal(&socket).await,
        Command::Doctor { json } => doctor::doctor(&socket, json).await,
        Command::Report(arguments) => report::report(&socket, arguments).await,
        Command::Logs(arguments) => logs::logs(&socket, arguments).await,
        Command::Speedtest(arguments) => speedtest::speedtest(&socket, arguments).await,
        Command::Uninstall(arguments) => uninstall::uninstall(&socket, arguments).await,
        Command::Completions { shell } => Ok(completions(shell)?),
        Command::Man { dir } => man(&dir),
        Command::Version { json } => version(&socket, json).await,
    }
}

/// Connects to the helper under this program's name.
async fn dial(socket: &std::path::Path) -> Result<Client, Failure> {
    Ok(Client::connect(socket, NAME).await?)
}

/// Asks for something that needs no network.
async fn ask(client: &mut Client, request: Request) -> Result<Event, Failure> {
    tokio::time::timeout(ANSWER_WITHIN, client.request(request))
        .await
        .map_err(|_| Failure::helper_silent())?
        .map_err(Failure::from)
}

async fn ask_status(client: &mut Client, request: Request) -> Result<Status, Failure> {
    match ask(client, request).await? {
        Event::Status(status) => Ok(*status),
        other => Err(Failure::unexpected(&other)),
    }
}

async fn status(socket: &std::path::Path, check: bool, json: bool) -> Result<ExitCode, Failure> {
    let mut client = dial(socket).await?;
    let status = ask_status(&mut client, Request::Status).await?;
    if json {
        output::json(&status)?;
    } else {
        output::text(&show::status(&status, OffsetDateTime::now_utc()))?;
    }
    let code = if check && !status.state.is_connected() { failure::NOT_CONNECTED } else { 0 };
    Ok(ExitCode::from(code))
}

async fn watch(socket: &std::path::Path, json: bool) -> Result<ExitCode, Failure> {
    let mut client = dial(socket).await?;
    let status = ask_status(&mut client, Request::Watch).await?;
    let gateway = status.gateway.as_ref().map_or_else(|| "the gateway".to_owned(), |gateway| gateway.name.clone());
    if json {
        output::json(&status)?;
    } else {
        output::text(&show::change(&status.state, &gateway, OffsetDateTime::now_utc()))?;
    }
    let mut reader_gone = output::reader_gone();
    loop {
        let event = tokio::select! {
            event = client.next_event() => event?,
            _ = &mut reader_gone => return Ok(ExitCode::SUCCESS),
        };
        let Event::Change(change) = event else { continue };
        if json {
            output::json(&json::ChangeLine::new(change))?;
        } else {
            output::text(&show::change(&change.state, &gateway, change.at))?;
        }
    }
}

fn completions(shell: clap_complete::Shell) -> std::io::Result<ExitCode> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Arguments::command(), "culvert", &mut script);
    output::text(&String::from_utf8_lossy(&script))?;
    Ok(ExitCode::SUCCESS)
}

fn man(dir: &std::path::Path) -> Result<ExitCode, Failure> {
    clap_mangen::generate_to(Arguments::command(), dir)
        .map_err(|error| Failure::Usage(format!("the man pages cannot be written to {}: {error}", dir.display())))?;
    Ok(ExitCode::SUCCESS)
}

async fn version(socket: &std::path::Path, json: bool) -> Result<ExitCode, Failure> {
    let client = env!("CARGO_PKG_VERSION");
    // Which version this program has can be told without a helper too.
    let helper = Client::open(socket, NAME).await.map_err(Failure::from).map(|client| client.helper().to_owned());
    if json {
        output::json(&json::Numbered::new(json::Version::new(helper.ok())))?;
    } else {
        let helper = helper.unwrap_or_else(|failure| format!("not known ({})", failure.cause()));
        output::text(&format!("culvert {client}\nhelper  {helper}"))?;
    }
    Ok(ExitCode::SUCCESS)
}

/// A time such as `30`, `30s`, `5m` or `500ms`.
fn duration(text: &str) -> Result<Duration, String> {
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let number: u64 = digits.parse().map_err(|_| format!("{text:?} is no time; write 30s, 5m or 500ms"))?;
    match &text[digits.len()..] {
        "" | "s" => Ok(Duration::from_secs(number)),
        "ms" => Ok(Duration::from_millis(number)),
        "m" => Ok(Duration::from_secs(number.saturating_mul(60))),
        unit => Err(format!("unknown unit {unit:?}; write 30s, 5m or 500ms")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_sound() {
        Arguments::command().debug_assert();
    }

    #[test]
    fn times_are_read_with_their_units() {
        assert_eq!(duration("30"), Ok(Duration::from_secs(30)));
        assert_eq!(duration("500ms"), Ok(Duration::from_millis(500)));
        assert_eq!(duration("5m"), Ok(Duration::from_secs(300)));
        assert!(duration("soon").is_err());
        assert!(duration("5h").unwrap_err().contains("\"h\""));
    }

    #[test]
    fn wait_takes_a_time_only_with_an_equals_sign_so_that_a_profile_may_follow() {
        let connect = |line: &str| {
            let Command::Connect(connect) = Arguments::parse_from(line.split(' ')).command else { panic!("{line}") };
            connect
        };
        let plain = connect("culvert connect --wait acme");
        assert_eq!((plain.wait, plain.profile.as_deref()), (Some(Duration::from_secs(30)), Some("acme")));
        assert_eq!(connect("culvert connect --wait=5s").wait, Some(Duration::from_secs(5)));
        assert_eq!(connect("culvert connect").wait, None);
    }
}
