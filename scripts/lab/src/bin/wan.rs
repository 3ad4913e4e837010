//! An emulated wide-area link between two network namespaces, in user space: there is no netem here.
//!
//! It makes two TUN devices, which `scripts/wan-table` moves to the two hosts, and carries IP packets
//! between them, so that a tunnel's UDP and plain TCP cross the very same link.

use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use anyhow::Context;
use bytes::{Bytes, BytesMut};
use clap::Parser;
use culvert_lab::link::{Link, Shape};
use culvert_tunnel::device::Device;
use culvert_tunnel::device::linux::Tun;
use culvert_tunnel::segment::{Intake, SuperPacket};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

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

struct End {
    device: Tun,
    /// Packets that this end has sent.
    link: Link<Bytes>,
}

fn main() -> anyhow::Result<()> {
    let arguments = Arguments::parse();
    let ms = |ms: f64| Duration::from_secs_f64(ms / 1000.0);
    let shape = Shape {
        rate: arguments.rate_mbit * 1e6 / 8.0,
        queue: ms(arguments.queue_ms.unwrap_or((2.0 * arguments.delay_ms).max(50.0))),
        delay: ms(arguments.delay_ms),
        jitter: ms(arguments.jitter_ms),
        loss: arguments.loss_percent / 100.0,
        reorder: arguments.reorder_percent / 100.0,
        seed: arguments.seed,
    };
    let mut ends = Vec::new();
    for (number, name) in arguments.devices.iter().enumerate() {
        let device = Tun::open(name, 1).context("no TUN device")?.pop().context("no queue")?;
        let seed = shape.seed.wrapping_mul(2) + number as u64;
        ends.push(End { device, link: Link::new(Shape { seed, ..shape }) });
    }
    println!("ready");
    let end = Instant::now() + Duration::from_secs(arguments.seconds);
    let (mut intake, mut spare) = (Intake::default(), BytesMut::new());
    while Instant::now() < end {
        let now = Instant::now();
        for End { device, link } in &mut ends {
            // A device whose interface is down or gone says so until it is up again.
            _ = device.read_batch(64, &mut intake, &mut |frame| {
                _ = frame.cut(&mut spare, &mut |packet| link.push(now, packet.len(), packet)); // what is no packet is not carried
            });
        }
        let now = Instant::now();
        for (from, to) in [(0, 1), (1, 0)] {
            while let Some(packet) = ends[from].link.pop(now) {
                _ = ends[to].device.write_batch(&[SuperPacket::single(packet)]); // see above
            }
        }
        let due = ends.iter().filter_map(|end| end.link.poll_timeout()).min().map_or(end, |due| due.min(end));
        let wait = due.saturating_duration_since(Instant::now());
        let wait = Timespec { tv_sec: wait.as_secs() as i64, tv_nsec: i64::from(wait.subsec_nanos()) };
        let fds: Vec<_> = ends.iter().filter_map(|end| end.device.poll_fd()).collect();
        let mut fds: Vec<_> = fds.iter().map(|fd| PollFd::from_borrowed_fd(fd.as_fd(), PollFlags::IN)).collect();
        poll(&mut fds, Some(&wait))?;
    }
    println!("{}", serde_json::to_string(&ends.iter().map(|end| end.link.counts).collect::<Vec<_>>())?);
    Ok(())
}
