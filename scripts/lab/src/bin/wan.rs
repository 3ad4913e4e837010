//! An emulated wide-area link between two network namespaces, in user space: there is no netem here.
//!
//! It makes two TUN devices, which `scripts/wan-table` moves to the two hosts, and carries IP packets
//! between them, so that a tunnel's UDP and plain TCP cross the very same link. What became of the
//! packets is one line of JSON on standard output: at the end, after SIGTERM, and whenever SIGUSR1 asks.
//! After SIGUSR2 the packets meet what the first ones have met, for another flow.

use std::io::{Read, Write};
use std::num::NonZeroU64;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use anyhow::Context;
use bytes::{Bytes, BytesMut};
use clap::Parser;
use culvert_lab::link::{Counts, Link, Shape};
use culvert_tunnel::device::Device;
use culvert_tunnel::device::linux::Tun;
use culvert_tunnel::segment::{Intake, SuperPacket};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::thread::set_current_timer_slack;
use tokio::signal::unix::{SignalKind, signal};

/// Carries packets between two TUN devices as a wide-area link would, and prints what became of them.
#[derive(Debug, Parser)]
struct Arguments {
    /// The two devices.
    #[arg(num_args = 2, required = true)]
    devices: Vec<String>,
    /// Megabits a second, each way.
    #[arg(long)]
    rate_mbit: f64,
    /// Milliseconds one way.
    #[arg(long)]
    delay_ms: f64,
    /// The queue in milliseconds at the rate; by default one round trip, but at least 50.
    #[arg(long)]
    queue_ms: Option<f64>,
    /// Up to so many milliseconds more.
    #[arg(long, default_value_t = 0.0)]
    jitter_ms: f64,
    /// Percent of packets lost, each way.
    #[arg(long, default_value_t = 0.0)]
    loss_percent: f64,
    /// Percent of packets that come a millisecond late.
    #[arg(long, default_value_t = 0.0)]
    reorder_percent: f64,
    /// The same seed loses the same packets.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Stops by itself after so many seconds.
    #[arg(long, default_value_t = 600)]
    seconds: u64,
}

/// One of the two hosts.
struct End {
    device: Tun,
    /// Packets that this end has sent.
    link: Link<Bytes>,
    /// Packets that arrived and that the device would not have.
    refused: u64,
}

/// What a signal asks for, as a byte of the pipe that carries it to the loop.
const COUNTS: u8 = b'c';
const STOP: u8 = b's';
const BEGIN_AGAIN: u8 = b'b';

fn main() -> anyhow::Result<()> {
    let arguments = Arguments::parse();
    let ms = |ms: f64| Duration::from_secs_f64(ms / 1000.0);
    let links = Link::pair(Shape {
        rate: (arguments.rate_mbit * 1e6) as u64,
        queue: ms(arguments.queue_ms.unwrap_or((2.0 * arguments.delay_ms).max(50.0))),
        delay: ms(arguments.delay_ms),
        jitter: ms(arguments.jitter_ms),
        loss: arguments.loss_percent / 100.0,
        reorder: arguments.reorder_percent / 100.0,
        seed: arguments.seed,
    });
    let mut ends = Vec::new();
    for (name, link) in arguments.devices.iter().zip(links) {
        let device = Tun::open(name, 1).context("no TUN device")?.pop().context("no queue")?;
        ends.push(End { device, link, refused: 0 });
    }
    let mut asked = signals()?;
    // The default, 50 µs, would be 1 % of a round trip of 10 ms.
    set_current_timer_slack(NonZeroU64::new(1_000))?;
    println!("ready");
    let end = Instant::now() + Duration::from_secs(arguments.seconds);
    let (mut intake, mut spare) = (Intake::default(), BytesMut::new());
    let mut stop = false;
    while !stop && Instant::now() < end {
        let now = Instant::now();
        for End { device, link, .. } in &mut ends {
            // A device whose interface is down or gone says so until it is up again.
            _ = device.read_batch(64, &mut intake, &mut |frame| {
                _ = frame.cut(&mut spare, &mut |packet| link.push(now, packet.len(), packet)); // what is no packet is not carried
            });
        }
        let now = Instant::now();
        for (from, to) in [(0, 1), (1, 0)] {
            while let Some(packet) = ends[from].link.pop(now) {
                let taken = ends[to].device.write_batch(&[SuperPacket::single(packet)]);
                ends[from].refused += u64::from(!matches!(taken, Ok(1)));
            }
        }
        let due = ends.iter().filter_map(|end| end.link.poll_timeout()).min().map_or(end, |due| due.min(end));
        let wait = due.saturating_duration_since(Instant::now());
        let wait = Timespec { tv_sec: wait.as_secs() as i64, tv_nsec: i64::from(wait.subsec_nanos()) };
        let fds: Vec<_> = ends.iter().filter_map(|end| end.device.poll_fd()).collect();
        let mut fds: Vec<_> =
            fds.into_iter().chain([asked.as_fd()]).map(|fd| PollFd::from_borrowed_fd(fd, PollFlags::IN)).collect();
        match poll(&mut fds, Some(&wait)) {
            Err(rustix::io::Errno::INTR) => continue, // a signal: its byte is in the pipe soon
            polled => _ = polled?,
        }
        if fds.last().is_some_and(|fd| !fd.revents().is_empty()) {
            drop(fds);
            let mut bytes = [0; 64];
            let read = asked.read(&mut bytes)?;
            let bytes = &bytes[..read];
            if bytes.contains(&COUNTS) {
                print(&ends)?;
            }
            if bytes.contains(&BEGIN_AGAIN) {
                ends.iter_mut().for_each(|end| end.link.begin_again());
            }
            stop = bytes.contains(&STOP);
        }
    }
    print(&ends)
}

/// One line: the packets of the first device, then those of the second.
fn print(ends: &[End]) -> anyhow::Result<()> {
    #[derive(serde::Serialize)]
    struct Line<'a> {
        from: &'a str,
        #[serde(flatten)]
        counts: Counts,
        refused: u64,
    }
    let lines: Vec<_> = ends
        .iter()
        .map(|End { device, link, refused }| Line { from: device.name(), counts: link.counts, refused: *refused })
        .collect();
    println!("{}", serde_json::to_string(&lines)?);
    Ok(std::io::stdout().flush()?)
}

/// The reading end of a pipe that gets [`STOP`] for SIGTERM and SIGINT, [`COUNTS`] for SIGUSR1 and
/// [`BEGIN_AGAIN`] for SIGUSR2.
fn signals() -> anyhow::Result<UnixStream> {
    let (reader, mut writer) = UnixStream::pair()?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build()?;
    let entered = runtime.enter();
    let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    let (mut ask, mut again) = (signal(SignalKind::user_defined1())?, signal(SignalKind::user_defined2())?);
    drop(entered);
    std::thread::spawn(move || {
        runtime.block_on(async {
            loop {
                let byte = tokio::select! {
                    _ = terminate.recv() => STOP,
                    _ = interrupt.recv() => STOP,
                    _ = ask.recv() => COUNTS,
                    _ = again.recv() => BEGIN_AGAIN,
                };
                if writer.write_all(&[byte]).is_err() {
                    return; // the loop has ended
                }
            }
        });
    });
    Ok(reader)
}
