//! Many clients of one gateway, without a TUN: how many handshakes it makes, what idle sessions cost it, and
//! how it takes all of them at once. `scripts/load` runs this between network namespaces.
//!
//! `prepare` enrols devices straight into a stopped gateway's registry (`credentials` is what they get).
//! `handshakes` opens and closes sessions over and over, `hold` keeps a `herd` of them. All clients live in one engine of `culvert-tunnel`
//! with a socket each, which `wire` moves.

mod credentials;
mod handshakes;
mod herd;
mod hold;
mod measure;
mod prepare;
mod schedule;
mod sources;
mod wire;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand};

use crate::sources::Sources;

// As in the programs that are measured: the clients share their cores.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

#[derive(Debug, Parser)]
#[command(about = "Puts load on a Culvert gateway, to measure it")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Enrols devices into the registry of a gateway that does not run.
    Prepare {
        /// The gateway's state directory (state.dir).
        #[arg(long)]
        state: PathBuf,
        /// How many.
        #[arg(long)]
        devices: usize,
        /// Where their credentials go; replaced, and only its owner can read it.
        #[arg(long)]
        output: PathBuf,
    },
    /// Opens and closes sessions as fast as the gateway lets it, and prints one JSON object.
    Handshakes {
        #[command(flatten)]
        place: Place,
        /// Sessions under way at once, each from a source address of its own.
        #[arg(long, default_value_t = 64)]
        concurrency: usize,
        /// For how long, in seconds.
        #[arg(long, default_value_t = 10.0)]
        seconds: f64,
    },
    /// Opens sessions and keeps them, dials again as a helper would, and prints a JSON object a second, one
    /// whenever all are open, and one for each session that ends for good.
    Hold(Hold),
}

#[derive(Debug, Args)]
struct Hold {
    #[command(flatten)]
    place: Place,
    /// How many sessions.
    #[arg(long)]
    clients: usize,
    /// Clients that begin in one second; 0 lets all of them begin at once.
    #[arg(long, default_value_t = 0.0)]
    rate: f64,
    /// For how long, in seconds, whatever happens.
    #[arg(long)]
    seconds: f64,
    /// So many seconds after all were open for the first time they forget their connections, as in a power
    /// cut, and dial at once. SIGUSR1 does the same.
    #[arg(long)]
    drop_at: Option<f64>,
}

/// Who the clients are, where they are and where they go.
#[derive(Debug, Args)]
struct Place {
    /// What `prepare` has written.
    #[arg(long)]
    credentials: PathBuf,
    /// The gateway's address and port.
    #[arg(long)]
    gateway: SocketAddr,
    /// The clients' own addresses; every one must be local: ip route add local CIDR dev lo.
    #[arg(long)]
    sources: Sources,
}

fn main() -> anyhow::Result<()> {
    match Cli::parse().command {
        Command::Prepare { state, devices, output } => prepare::prepare(&state, devices, &output),
        Command::Handshakes { place, concurrency, seconds } => {
            handshakes::run(&place, concurrency, Duration::try_from_secs_f64(seconds)?)
        }
        Command::Hold(hold) => hold::run(&hold),
    }
}
