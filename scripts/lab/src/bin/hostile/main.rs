//! Peers that mean harm, one misdeed a run, for `tests/net/flood.sh`.
//!
//! Strangers write raw IPv4 packets under any source address (`raw`); the enrolled ones open a true session
//! with the profile of a device and then misbehave in it (`session`, `control`). Each ends by itself and
//! prints how many times it did what it does.

mod control;
mod raw;
mod session;

use std::net::SocketAddrV4;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use clap::{Args, Parser, Subcommand};

#[derive(Debug, Parser)]
#[command(about = "Does harm to a Culvert gateway, for tests")]
struct Cli {
    #[command(subcommand)]
    misdeed: Misdeed,
}

#[derive(Debug, Subcommand)]
enum Misdeed {
    /// True first packets of handshakes, from addresses that nobody has.
    Initials(Flood),
    /// Random bytes, from addresses that nobody has.
    Noise(Flood),
    /// Keeps what one address sends to UDP port 443 past this host.
    Capture {
        /// Whose packets.
        from: std::net::Ipv4Addr,
        /// How many.
        count: usize,
        /// Where they are kept.
        file: PathBuf,
    },
    /// Sends kept packets again, every second one with a bit flipped.
    Replay {
        /// What `capture` has kept.
        file: PathBuf,
        #[command(flatten)]
        flood: Flood,
    },
    /// UDP datagrams of 1,200 bytes, as any server might send them.
    Pour(Flood),
    /// A session that is opened and never read again.
    Deaf(Enrolled),
    /// A session whose inner packets all have false sources.
    Spoof(Enrolled),
    /// A session whose control stream never pauses.
    Control(Enrolled),
}

#[derive(Debug, Args)]
struct Flood {
    /// The gateway.
    to: SocketAddrV4,
    /// Packets in all.
    #[arg(long, default_value_t = 100_000)]
    count: u64,
    /// Packets a second.
    #[arg(long, default_value_t = 20_000)]
    rate: u64,
}

#[derive(Debug, Args)]
struct Enrolled {
    /// A helper's profile: `STATE_DIR/profiles/NAME.json`.
    profile: PathBuf,
    /// For how long, in seconds.
    #[arg(long, default_value_t = 5.0)]
    seconds: f64,
    /// Packets a second.
    #[arg(long, default_value_t = 20_000)]
    rate: u64,
}

fn main() -> anyhow::Result<()> {
    match Cli::parse().misdeed {
        Misdeed::Initials(flood) => raw::initials(&flood),
        Misdeed::Noise(flood) => raw::noise(&flood),
        Misdeed::Capture { from, count, file } => raw::capture(from, count, &file),
        Misdeed::Replay { file, flood } => raw::replay(&file, &flood),
        Misdeed::Pour(flood) => raw::pour(&flood),
        Misdeed::Deaf(enrolled) => session::deaf(&enrolled),
        Misdeed::Spoof(enrolled) => session::spoof(&enrolled),
        Misdeed::Control(enrolled) => control::flood(&enrolled),
    }
}

/// Lets so many pass a second, evenly.
#[derive(Debug)]
struct Pace {
    began: Instant,
    rate: u64,
    passed: u64,
}

impl Pace {
    fn new(rate: u64) -> Self {
        Self { began: Instant::now(), rate: rate.max(1), passed: 0 }
    }

    /// Waits until the next may pass.
    fn pass(&mut self) {
        let due = self.began + Duration::from_nanos(self.passed * 1_000_000_000 / self.rate);
        let wait = due.saturating_duration_since(Instant::now());
        // Less than a timer is good for: a few may pass together.
        if wait > Duration::from_micros(500) {
            std::thread::sleep(wait);
        }
        self.passed += 1;
    }
}
