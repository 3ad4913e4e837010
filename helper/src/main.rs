//! `culvert-helper`: arguments, logging, signals, run.

use std::io::{ErrorKind, IsTerminal};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context;
use clap::{Args, Parser, Subcommand};
use culvert_helper::caller::WANTS_NONCE;
use culvert_helper::device::DEFAULT_DEVICE;
use culvert_helper::logs::Logs;
use culvert_helper::managed;
use culvert_helper::manager;
use culvert_helper::owners::Owners;
use culvert_helper::service::Service;
use culvert_helper::session::Options;
use culvert_helper::socket::{CONNECTIONS, Shared, Socket};
use culvert_protocol::{DEFAULT_SOCKET, Overlap};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;
use tracing_subscriber::filter::{LevelFilter, Targets};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, Layer};

culvert_protocol::info_plist!("net.culvert.helper", "culvert-helper");

/// Gives memory back to the OS after a burst, where glibc keeps it.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// The root helper of Culvert: owns the tunnel device, routes and resolver of this machine.
#[derive(Parser, Debug)]
#[command(version)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand, Debug)]
enum Command {
    /// Serves the Unix socket until SIGTERM, SIGINT or SIGHUP, then undoes every change.
    Run(Run),
    /// Undoes what a helper that is gone left behind, and lifts the kill switch in any mode. Needs root.
    Recover {
        /// Where that helper kept its journal.
        #[arg(long, default_value = STATE_DIR)]
        state_dir: PathBuf,
        /// Name of that helper's tunnel interface.
        #[arg(long, default_value = DEFAULT_DEVICE, value_parser = device_name)]
        device_name: String,
    },
}

const STATE_DIR: &str =
    if cfg!(target_os = "macos") { "/Library/Application Support/Culvert" } else { "/var/lib/culvert" };

#[derive(Args, Debug)]
struct Run {
    /// The Unix socket to listen on.
    #[arg(long, env = "CULVERT_SOCKET", default_value = DEFAULT_SOCKET)]
    socket: PathBuf,
    /// Where profiles and the journal of changes are kept.
    #[arg(long, default_value = STATE_DIR)]
    state_dir: PathBuf,
    /// What the administrator has decided: a configuration profile of `culvert-server mdm-profile`.
    #[arg(long, value_name = "FILE", default_value = managed::FILE)]
    managed: PathBuf,
    /// A user that may control the VPN, beside root. May be repeated.
    #[arg(long = "allow-uid", value_name = "UID")]
    uids: Vec<u32>,
    /// A group whose members may control the VPN. May be repeated.
    #[arg(long = "allow-group", value_name = "NAME")]
    groups: Vec<String>,
    /// Whoever sits at this machine (the user of the active local session) may control the VPN, too.
    #[arg(long = "allow-local")]
    local: bool,
    /// Firewall mark of the tunnel's own packets, and number of its routing table.
    #[arg(long, default_value = "0x6376", value_parser = mark)]
    fwmark: u32,
    /// Name of the tunnel interface.
    #[arg(long, default_value = DEFAULT_DEVICE, value_parser = device_name)]
    device_name: String,
    /// How long a network's sign-in page can be reached once it is opened (`culvert portal`).
    #[arg(long, value_name = "SECONDS", default_value_t = 300, value_parser = clap::value_parser!(u64).range(1..=3600))]
    portal_for: u64,
    /// What to log to stderr: a level, or filters as in `info,culvert_helper=debug`.
    #[arg(long, default_value = "info")]
    log_level: String,
}

fn main() -> ExitCode {
    // The allocator's arenas would become huge pages: 14 MB resident where 4 are used.
    #[cfg(target_os = "linux")]
    let _ = rustix::thread::disable_transparent_huge_pages(true); // a kernel that has none needs no telling
    match start() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // One line, whatever RUST_BACKTRACE says.
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn start() -> anyhow::Result<()> {
    let Arguments { command } = Arguments::parse();
    let level = if let Command::Run(run) = &command { &run.log_level } else { "info" };
    let filter = EnvFilter::try_new(level).context("--log-level")?;
    let colour = std::io::stderr().is_terminal();
    let stderr = tracing_subscriber::fmt::layer().with_writer(std::io::stderr).with_ansi(colour).with_filter(filter);
    let logs = Logs::default();
    // Every step of ours, and what others think is amiss.
    let ours = Targets::new().with_default(LevelFilter::WARN).with_target("culvert", LevelFilter::DEBUG);
    tracing_subscriber::registry().with(stderr).with(logs.clone().with_filter(ours)).init();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().context("the runtime")?;
    runtime.block_on(async {
        match command {
            Command::Run(run) => serve(run, logs).await,
            Command::Recover { state_dir, device_name } => recover(&state_dir, &device_name).await,
        }
    })
}

async fn recover(state_dir: &std::path::Path, device: &str) -> anyhow::Result<()> {
    culvert_helper::service::recover(state_dir, device).await.with_context(|| {
        format!("cannot recover with {} (stop the helper first, and run this as root)", state_dir.display())
    })?;
    eprintln!("Everything is put back as it was, and nothing is held back.");
    Ok(())
}

async fn serve(run: Run, logs: Logs) -> anyhow::Result<()> {
    let options = Options {
        fwmark: run.fwmark,
        overlap: Overlap::default(),
        portal_for: Duration::from_secs(run.portal_for),
        device: run.device_name,
        resolver: PathBuf::from("/etc/resolv.conf"),
    };
    culvert_helper::outside::adopt(options.fwmark).context("the process's group (run as root)")?;
    // Before anything is changed: the default of each is to end the process with all in force, and
    // SIGHUP comes from a terminal that is closed.
    let stop = stop().context("signals")?;
    // The socket next: a second helper must notice before it touches the first one's changes.
    let inherited = Socket::inherited().context("the service manager's socket")?;
    let socket = match inherited {
        Some(socket) => socket,
        None => Socket::bind(&run.socket).with_context(|| {
            let path = run.socket.display();
            format!("cannot listen on {path} (stop what listens there, or choose another with --socket)")
        })?,
    };
    let service = match Service::open(&run.state_dir, run.managed, options).await {
        // Of the package's helper and the app's own, one is to be active; launchd starts again what ends with an error.
        Err(error) if error.kind() == ErrorKind::ResourceBusy && manager::STEPS_BACK => {
            tracing::warn!(%error, "this one ends");
            return Ok(());
        }
        opened => opened.with_context(|| {
            format!("cannot use {} (run as root, or choose another with --state-dir)", run.state_dir.display())
        })?,
    };
    let owners = Owners { uids: run.uids, groups: run.groups, local: run.local };
    let (asked, requests) = mpsc::channel(CONNECTIONS);
    let shared = Shared { asked, changes: service.changes(), owners: owners.into(), logs, nonce: WANTS_NONCE };
    tracing::info!(socket = %run.socket.display(), "ready");
    let told = tokio::spawn(manager::tell(service.changes()));
    tokio::select! {
        () = service.run(requests, stop) => {}
        () = socket.serve(shared) => {}
    }
    told.abort();
    Ok(())
}

/// Completes on the first signal that asks for an end; those are caught from this call on.
fn stop() -> std::io::Result<impl Future<Output = ()>> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut hang_up = signal(SignalKind::hangup())?;
    Ok(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
            _ = hang_up.recv() => {}
        }
    })
}

/// What the kernel takes for an interface (`dev_valid_name`), less the odd characters.
fn device_name(text: &str) -> Result<String, String> {
    let usable = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_');
    if (1..=15).contains(&text.len()) && text.chars().all(usable) {
        Ok(text.into())
    } else {
        Err("an interface name has 1 to 15 letters, digits, '-' or '_'".into())
    }
}

/// A mark in decimal or, with `0x`, in hexadecimal. It names a routing table too, so the reserved
/// tables 0 and 253 to 255 are refused.
fn mark(text: &str) -> Result<u32, String> {
    let number = match text.strip_prefix("0x") {
        Some(digits) => u32::from_str_radix(digits, 16),
        None => text.parse(),
    };
    match number {
        Ok(0 | 253..=255) => Err("0 and 253 to 255 are the kernel's own routing tables".into()),
        Ok(mark) => Ok(mark),
        Err(error) => Err(error.to_string()),
    }
}
