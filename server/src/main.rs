//! `culvert-server`: runs a gateway, and administers it.

use std::io::{self, Write};
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context;
use clap::{Args, CommandFactory, Parser, Subcommand};
use culvert_server::admin::ca::Passphrase;
use culvert_server::admin::devices::Which;
use culvert_server::admin::doctor::{self, Diagnosis};
use culvert_server::admin::init::InitRequest;
use culvert_server::admin::invite::InviteRequest;
use culvert_server::admin::rotate::Step;
use culvert_server::admin::service::Service;
use culvert_server::admin::{self, AdminError, first_run, init, invite, lists};
use culvert_server::config::{CONFIG_VARIABLE, Config, ConfigError, Flags, Loaded, Named};
use culvert_server::times::parse_duration;
use culvert_server::{gateway, log, manual, owner};

// Gives memory back and wastes less of it on the small blocks of a long-running control plane.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// The Culvert gateway.
#[derive(Debug, Parser)]
#[command(
    version,
    after_help = "Exit codes: 0 done, 1 failed, 2 usage, 4 the gateway does not run, 7 there is no gateway yet, 8 not permitted, 9 configuration invalid"
)]
struct Cli {
    #[command(flatten)]
    place: Place,
    #[command(subcommand)]
    command: Command,
}

/// Where this gateway's things are, so that several run on one machine.
#[derive(Clone, Debug, Args)]
struct Place {
    /// Configuration file [default: /etc/culvert-server/config.toml]
    #[arg(long, global = true, value_name = "FILE", env = CONFIG_VARIABLE)]
    config: Option<PathBuf>,
    /// Directory of keys and registry (state.dir)
    #[arg(long, global = true, value_name = "DIR")]
    state_dir: Option<String>,
    /// Socket of the running gateway (control.socket)
    #[arg(long, global = true, value_name = "PATH", alias = "control-socket")]
    socket: Option<String>,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Make a gateway: keys, registry, configuration. A second time changes nothing
    Init {
        /// The name or address under which clients reach this gateway, with or without a port
        #[arg(long, value_name = "NAME")]
        endpoint: Option<String>,
        /// Keep the registry in this PostgreSQL database, which other gateways may share (registry.url)
        #[arg(long, value_name = "URL")]
        registry: Option<String>,
        /// The first line of this file is the database's password (registry.password_file)
        #[arg(long, value_name = "FILE", requires = "registry")]
        registry_password_file: Option<String>,
        /// Join the gateways that share the registry: the backup of one of them (ca backup) has their CA
        #[arg(long, value_name = "FILE")]
        ca: Option<PathBuf>,
        /// The backup's passphrase is the first line of this file; - is standard input
        #[arg(long, value_name = "FILE", requires = "ca")]
        passphrase_file: Option<PathBuf>,
        /// Invite this user at once
        #[arg(long, value_name = "NAME")]
        invite: Option<String>,
        /// Only say what would be done
        #[arg(long)]
        dry_run: bool,
        /// Leave the package's unit alone; otherwise it is enabled and started
        #[arg(long)]
        no_start: bool,
        /// Ask nothing (init never does; for scripts that say so anyway)
        #[arg(long)]
        yes: bool,
        /// One JSON object
        #[arg(long)]
        json: bool,
    },
    /// Make an invitation for a user's device
    Invite {
        /// The user
        name: String,
        /// How long it is good, such as 30m, 24h or 7d
        #[arg(long, value_name = "TIME", default_value = "24h")]
        expires: String,
        /// For how many devices
        #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=10_000))]
        uses: u32,
        /// Write it to a new file that only you can read
        #[arg(long, value_name = "FILE")]
        out: Option<PathBuf>,
        /// Also as a QR code
        #[arg(long, conflicts_with_all = ["out", "json"])]
        qr: bool,
        /// NAME is a device (or a user with one device) that gets a new key and certificate, and keeps its name and
        /// address
        #[arg(long, conflicts_with = "uses")]
        renew: bool,
        /// One JSON object
        #[arg(long)]
        json: bool,
    },
    /// Invitations that are not used up
    Invites {
        #[command(subcommand)]
        command: Invites,
    },
    /// The devices that may connect, or might until they were revoked
    Devices {
        #[command(subcommand)]
        command: Devices,
    },
    /// The open sessions
    Sessions {
        #[command(subcommand)]
        command: Sessions,
    },
    /// Whom the gateway does not listen to
    Bans {
        #[command(subcommand)]
        command: admin::bans::Command,
    },
    /// The certificate authority: what it is, another one in its place, and a backup of it with the registry
    Ca {
        #[command(subcommand)]
        command: Ca,
    },
    /// A configuration profile for Macs under MDM, as XML on standard output; an MDM signs it
    MdmProfile(Box<admin::mdm::Arguments>),
    /// The gateways that share this one's registry
    Gateways {
        #[command(subcommand)]
        command: admin::gateways::Command,
    },
    /// The registry as one file, to move it into a database
    Registry {
        #[command(subcommand)]
        command: admin::registry::Command,
    },
    /// The running gateway as a whole
    Status {
        /// One JSON object
        #[arg(long)]
        json: bool,
    },
    /// Why a device or a user cannot connect, and the command that repairs it
    Why {
        /// A user, user/device, a device's name or its id
        name: String,
        /// One JSON object
        #[arg(long)]
        json: bool,
    },
    /// Run the gateway until SIGTERM
    Run {
        /// Make the gateway first if its state directory is an empty volume; for containers
        #[arg(long)]
        init: bool,
    },
    /// Let the running gateway read its configuration again; no session ends
    Reload {
        /// One JSON object
        #[arg(long)]
        json: bool,
    },
    /// Say whether the running gateway works
    Health {
        /// Whether clients are served, too: the registry, the interface, the firewall's table
        #[arg(long)]
        ready: bool,
        /// One JSON object
        #[arg(long)]
        json: bool,
    },
    /// Every metric of the running gateway, as Prometheus reads it
    Metrics,
    /// Look at everything that this gateway needs; each failed check says what repairs it
    Doctor {
        /// One JSON object
        #[arg(long)]
        json: bool,
    },
    /// The same before a gateway is started
    Preflight {
        /// One JSON object
        #[arg(long)]
        json: bool,
    },
    /// Say what is wrong with the configuration
    CheckConfig {
        /// Instead of the one that is in use
        file: Option<PathBuf>,
        /// Every value that is in force, and where it came from
        #[arg(long)]
        show: bool,
    },
    /// Undo what a crashed gateway left on this host
    Cleanup,
    /// Print completions for a shell; packages install them
    Completions {
        /// Which
        shell: clap_complete::Shell,
    },
    /// Write the man pages into a folder; packages install them
    #[command(hide = true)]
    Man {
        /// Which
        folder: PathBuf,
    },
}

#[derive(Debug, Subcommand)]
enum Invites {
    /// Those that can be used
    List {
        /// Also those that are used, cancelled or past their end
        #[arg(long)]
        all: bool,
        /// One JSON object
        #[arg(long)]
        json: bool,
    },
    /// Withdraw one, or all of a user's
    Cancel {
        /// The beginning of its id, or the user
        #[arg(value_name = "ID|USER")]
        which: String,
        /// One JSON object
        #[arg(long)]
        json: bool,
    },
}

#[derive(Debug, Subcommand)]
enum Devices {
    /// All of them
    List {
        /// One JSON object
        #[arg(long)]
        json: bool,
    },
    /// One, and what happened to it
    Show {
        /// user/device, its id, or its name when only one is called so
        device: String,
        /// One JSON object
        #[arg(long)]
        json: bool,
    },
    /// Call one something else
    Rename {
        /// user/device, its id, or its name when only one is called so
        device: String,
        /// The new name
        name: String,
        /// One JSON object
        #[arg(long)]
        json: bool,
    },
    /// Take its access away: its session ends at once, and it is refused from now on
    Revoke {
        #[command(flatten)]
        which: Chosen,
        /// One JSON object
        #[arg(long)]
        json: bool,
    },
    /// Give it its access back
    Restore {
        /// user/device, its id, or its name when only one is called so
        device: String,
        /// One JSON object
        #[arg(long)]
        json: bool,
    },
}

#[derive(Debug, Subcommand)]
enum Sessions {
    /// All of them
    List {
        /// One JSON object
        #[arg(long)]
        json: bool,
    },
    /// End a session; the device may come back at once
    Kick {
        #[command(flatten)]
        which: Chosen,
        /// One JSON object
        #[arg(long)]
        json: bool,
    },
}

#[derive(Debug, Subcommand)]
enum Ca {
    /// The CA's pin and life, how far a rotation is, and the gateway's own certificate
    Show {
        /// One JSON object
        #[arg(long)]
        json: bool,
    },
    /// Make a second CA that takes the place of the first one: devices change to it as they connect, no session ends
    Rotate {
        /// End it: from now on only the second one counts
        #[arg(long, group = "end")]
        finish: bool,
        /// Take it back: the first one stays
        #[arg(long, group = "end")]
        abort: bool,
        /// Also when devices lose their access by that; each needs a new invitation then
        #[arg(long, requires = "end")]
        force: bool,
        /// One JSON object
        #[arg(long)]
        json: bool,
    },
    /// Write the CA, the registry and the configuration to one file that a passphrase opens
    Backup {
        /// A new file
        file: PathBuf,
        /// The passphrase is the first line of this file; - is standard input
        #[arg(long, value_name = "FILE")]
        passphrase_file: Option<PathBuf>,
        /// One JSON object
        #[arg(long)]
        json: bool,
    },
    /// Make the gateway of a backup, on a machine that has none
    Restore {
        /// What backup wrote
        file: PathBuf,
        /// The passphrase is the first line of this file; - is standard input
        #[arg(long, value_name = "FILE")]
        passphrase_file: Option<PathBuf>,
        /// One JSON object
        #[arg(long)]
        json: bool,
    },
}

/// One device, or a user's.
#[derive(Debug, Args)]
#[group(required = true, multiple = false)]
struct Chosen {
    /// user/device, its id, or its name when only one is called so
    device: Option<String>,
    /// All devices of this user
    #[arg(long, value_name = "NAME")]
    user: Option<String>,
}

impl Chosen {
    fn which(self) -> Which {
        match (self.user, self.device) {
            (Some(user), _) => Which::OfUser(user),
            (None, device) => Which::Device(device.unwrap_or_default()), // clap insists on one of them
        }
    }
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    // The allocator's arenas would become huge pages: 16 MB resident where 3 are used. Costs
    // nothing where the kernel has none.
    let _ = rustix::thread::disable_transparent_huge_pages(true);
    let outcome = take_owners_rights(&cli).and_then(|()| runtime()?.block_on(execute(cli)));
    match outcome.and_then(|text| Ok(print(&text)?)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            for line in format!("{error:#}").lines() {
                eprintln!("error: {line}");
            }
            ExitCode::from(error.downcast_ref::<AdminError>().map_or(1, AdminError::exit_code))
        }
    }
}

/// For what touches the state directory. What asks the gateway keeps its caller's name, and those that change the
/// host their right to.
fn take_owners_rights(cli: &Cli) -> anyhow::Result<()> {
    match cli.command {
        Command::Init { .. }
        | Command::Invite { .. }
        | Command::Invites { .. }
        | Command::MdmProfile(_)
        | Command::Devices { .. }
        | Command::Ca { .. }
        | Command::Gateways { .. }
        | Command::Registry { .. }
        | Command::Doctor { .. }
        | Command::Why { .. }
        | Command::Preflight { .. }
        | Command::Sessions { command: Sessions::Kick { .. } } => {}
        _ => return Ok(()),
    }
    // What is wrong with the configuration the command says itself.
    let Ok(loaded) = load(&cli.place, vec![], Named::MayBeMissing) else { return Ok(()) };
    owner::adopt(&loaded.config.state_dir).map_err(|error| AdminError::from(error).into())
}

/// Two threads do for a control plane; packets have their own.
fn runtime() -> anyhow::Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .max_blocking_threads(8)
        .thread_name("control")
        .enable_all()
        .build()
        .context("cannot start the control threads")
}

async fn execute(cli: Cli) -> anyhow::Result<String> {
    let place = &cli.place;
    Ok(match cli.command {
        Command::Init {
            endpoint,
            registry,
            registry_password_file,
            ca,
            passphrase_file,
            invite,
            dry_run,
            no_start,
            yes: _,
            json,
        } => {
            let chosen = [
                endpoint.map(|name| ("--endpoint", "endpoint", "name", name)),
                registry.map(|url| ("--registry", "registry", "url", url)),
                registry_password_file
                    .map(|file| ("--registry-password-file", "registry", "password_file", absolute(file))),
            ];
            let loaded = load(place, chosen.into_iter().flatten().collect(), Named::MayBeMissing)?;
            let join = ca.map(|file| (file, passphrase(passphrase_file)));
            let request = InitRequest { invite, join, dry_run, start: !no_start, write_config: true };
            let done = init::init(&loaded, &request).await?;
            if let Some(note) = done.port_note() {
                eprintln!("note: {note}");
            }
            let text = if json { object(&done)? } else { done.text(dry_run) };
            if done.service == Service::Failed {
                print(&text)?; // the invitation is told only once
                return Err(AdminError::NotStarted.into());
            }
            text
        }
        Command::Invite { name, expires, uses, out, qr, renew, json } => {
            let lifetime = parse_duration(&expires).filter(|time| !time.is_zero());
            let lifetime = lifetime.ok_or(AdminError::BadDuration(expires))?;
            let request = InviteRequest { user: name, lifetime, uses, out, renew };
            let done = invite::invite(&config(place)?, &request).await?;
            match (json, qr) {
                (true, _) => object(&done.json()?)?,
                (false, true) => done.text() + &done.qr()?,
                (false, false) => done.text(),
            }
        }
        Command::Invites { command } => invites(&config(place)?, command).await?,
        Command::Devices { command } => devices(&config(place)?, command).await?,
        Command::Sessions { command } => match command {
            Sessions::List { json } => lists::sessions(&config(place)?, json)?,
            Sessions::Kick { which, json } => admin::devices::kick(&config(place)?, &which.which(), json).await?,
        },
        Command::Ca { command } => ca(place, command).await?,
        Command::Bans { command } => {
            let (text, note) = admin::bans::execute(&config(place)?, command)?;
            if let Some(note) = note {
                eprintln!("note: {note}");
            }
            text
        }
        Command::MdmProfile(arguments) => admin::mdm::profile(&config(place)?, *arguments).await?,
        Command::Gateways { command } => admin::gateways::execute(&config(place)?, command).await?,
        Command::Registry { command } => {
            let (text, note) = admin::registry::execute(&config(place)?, command).await?;
            if let Some(note) = note {
                eprintln!("note: {note}");
            }
            text
        }
        Command::Status { json } => lists::status(&config(place)?, json)?,
        Command::Why { name, json } => admin::why::why(&config(place)?, &name, json).await?,
        Command::Run { init } => {
            let loaded = load(place, vec![], Named::MustExist)?;
            log::start(&loaded.config).map_err(AdminError::from)?;
            owner::check(&loaded.config.state_dir).map_err(AdminError::from)?;
            if init {
                first_run::init_if_empty(&loaded).await?;
            }
            let place = place.clone();
            let again = move || read(&place, vec![], Named::MustExist);
            gateway::run(loaded, again).await.map_err(AdminError::from)?;
            String::new()
        }
        Command::Health { ready, json } => admin::health(&config(place)?, ready, json)?,
        Command::Metrics => admin::metrics(&config(place)?)?,
        Command::Doctor { json } => return diagnosed(&doctor::doctor(&config(place)?).await?, json),
        Command::Preflight { json } => return diagnosed(&doctor::preflight(&config(place)?).await?, json),
        Command::Reload { json } => admin::reload(&config(place)?, json)?,
        Command::CheckConfig { file, show } => {
            let place = Place { config: file.or_else(|| place.config.clone()), ..place.clone() };
            admin::check_config(&load(&place, vec![], Named::MustExist)?, show)
        }
        Command::Cleanup => {
            let config = config(place)?;
            // Not into the file: made by root, the gateway could not write it any more.
            log::start(&Config { log_file: None, ..config.clone() }).map_err(AdminError::from)?;
            let undone = gateway::cleanup(&config).map_err(AdminError::from)?;
            if undone { "Undid what a gateway left on this host.\n".into() } else { "Nothing to undo.\n".into() }
        }
        Command::Completions { shell } => manual::completions(Cli::command(), shell),
        Command::Man { folder } => {
            manual::pages(Cli::command(), &folder).with_context(|| format!("cannot write to {}", folder.display()))?;
            String::new()
        }
    })
}

/// The findings are the answer, whatever they are; a failed check is told by the exit code, too.
fn diagnosed(diagnosis: &Diagnosis, json: bool) -> anyhow::Result<String> {
    let text = if json { diagnosis.json() } else { diagnosis.text() };
    if diagnosis.is_good() {
        return Ok(text);
    }
    print(&text)?;
    Err(AdminError::CheckFailed.into())
}

fn passphrase(file: Option<PathBuf>) -> Passphrase {
    file.map_or(Passphrase::Ask, Passphrase::File)
}

async fn ca(place: &Place, command: Ca) -> Result<String, AdminError> {
    match command {
        Ca::Show { json } => admin::ca::show(&config(place)?, json).await,
        Ca::Rotate { finish, abort, force, json } => {
            let step = match (finish, abort) {
                (true, _) => Step::Finish,
                (_, true) => Step::Abort,
                _ => Step::Begin,
            };
            admin::rotate::rotate(&config(place)?, step, force, json).await
        }
        Ca::Backup { file, passphrase_file, json } => {
            admin::ca::backup(&load(place, vec![], Named::MustExist)?, &file, &passphrase(passphrase_file), json).await
        }
        Ca::Restore { file, passphrase_file, json } => {
            admin::ca::restore(&load(place, vec![], Named::MayBeMissing)?, &file, &passphrase(passphrase_file), json)
                .await
        }
    }
}

async fn invites(config: &Config, command: Invites) -> Result<String, AdminError> {
    match command {
        Invites::List { all, json } => admin::invites::list(config, all, json).await,
        Invites::Cancel { which, json } => admin::invites::cancel(config, &which, json).await,
    }
}

async fn devices(config: &Config, command: Devices) -> Result<String, AdminError> {
    let done = match command {
        Devices::List { json } => return lists::devices(config, json).await,
        Devices::Show { device, json } => return admin::devices::show(config, &device, json).await,
        Devices::Rename { device, name, json } => admin::devices::rename(config, &device, &name, json).await?,
        Devices::Revoke { which, json } => admin::devices::revoke(config, &which.which(), json).await?,
        Devices::Restore { device, json } => admin::devices::restore(config, &device, json).await?,
    };
    if let Some(note) = done.note {
        eprintln!("note: {note}");
    }
    Ok(done.text)
}

fn config(place: &Place) -> Result<Config, AdminError> {
    Ok(load(place, vec![], Named::MustExist)?.config)
}

type Setting = (&'static str, &'static str, &'static str, String);

fn load(place: &Place, more: Vec<Setting>, named: Named) -> Result<Loaded, AdminError> {
    Ok(read(place, more, named)?)
}

fn read(place: &Place, more: Vec<Setting>, named: Named) -> Result<Loaded, ConfigError> {
    let settings = [
        place.state_dir.clone().map(|dir| ("--state-dir", "state", "dir", absolute(dir))),
        place.socket.clone().map(|path| ("--socket", "control", "socket", absolute(path))),
    ];
    let settings = settings.into_iter().flatten().chain(more).collect();
    let flags = Flags { config: place.config.clone(), settings };
    let environment: Vec<_> = std::env::vars_os()
        .filter_map(|(name, text)| Some((name.into_string().ok()?, text.into_string().ok()?)))
        .collect();
    owner::as_caller(|| Config::load(&flags, environment, named))
}

/// A path on the command line is meant from here; one in a file has to be absolute.
fn absolute(path: String) -> String {
    std::path::absolute(&path).ok().and_then(|path| path.into_os_string().into_string().ok()).unwrap_or(path)
}

fn object(value: &impl serde::Serialize) -> anyhow::Result<String> {
    Ok(format!("{}\n", serde_json::to_string(value)?))
}

/// A reader that has seen enough is no failure.
fn print(text: &str) -> io::Result<()> {
    let mut out = io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        other => other,
    }
}
