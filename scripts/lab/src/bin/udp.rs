//! Sends UDP at a rate through whatever is between two hosts, and tells how much of it arrived.
//!
//! iperf3 cannot be used for this: its receiver has the default socket buffer, about 90 packets, and
//! loses what arrives while it waits for a core, which says nothing of the tunnel before it. Here the
//! receiver has 4 MiB. `--gso` hands the kernel several datagrams in one call, as QUIC stacks do.

use std::collections::HashMap;
use std::io::IoSliceMut;
use std::net::{SocketAddr, UdpSocket};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use clap::{Parser, Subcommand};
use culvert_tunnel::socket::{SocketOptions, bind};
use quinn_udp::{BATCH_SIZE, RecvMeta, Transmit, UdpSockRef, UdpSocketState};
use rustix::event::{PollFd, PollFlags, poll};

/// Sends UDP at a rate and tells how much of it arrived.
#[derive(Debug, Parser)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Counts what arrives, until it is ended.
    Serve {
        /// Address and port.
        listen: SocketAddr,
    },
    /// Sends, and prints one line of JSON: sent_mbit, sent, received, lost_percent.
    Send {
        /// Where `serve` listens.
        target: SocketAddr,
        /// Payload bits a second.
        #[arg(long)]
        mbit: f64,
        /// Bytes of each payload.
        #[arg(long, default_value_t = 1300, value_parser = clap::value_parser!(u16).range(32..))]
        bytes: u16,
        /// How long.
        #[arg(long, default_value_t = 1.0)]
        seconds: f64,
        /// Datagrams a call of the kernel.
        #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=64))]
        gso: u16,
    },
}

/// The first byte of a payload: counted, or a question for the count.
const DATA: u8 = 0;
const QUESTION: u8 = 1;
/// Kind, seven bytes of nothing, run.
const HEAD: usize = 16;
/// How often due datagrams are sent.
const TICK: Duration = Duration::from_micros(250);

fn main() -> anyhow::Result<()> {
    match Arguments::parse().command {
        Command::Serve { listen } => serve(listen),
        Command::Send { target, mbit, bytes, seconds, gso } => {
            send(target, mbit * 1e6 / 8.0, bytes.into(), Duration::from_secs_f64(seconds), gso.into())
        }
    }
}

fn serve(listen: SocketAddr) -> anyhow::Result<()> {
    let socket = bind(listen, SocketOptions::default()).context("cannot listen")?;
    let state = UdpSocketState::new(UdpSockRef::from(&socket))?;
    let mut memory = vec![[0u8; 65_536]; BATCH_SIZE];
    let mut counts: HashMap<[u8; 8], u64> = HashMap::new();
    loop {
        let mut meta = [RecvMeta::default(); BATCH_SIZE];
        let mut slots = memory.iter_mut();
        let mut buffers: [IoSliceMut<'_>; BATCH_SIZE] =
            std::array::from_fn(|_| IoSliceMut::new(slots.next().expect("one buffer a slot")));
        // A blocking `recvmmsg` would wait until every slot is filled.
        poll(&mut [PollFd::new(&socket, PollFlags::IN)], None)?;
        // ICMP of a sender that has gone.
        let Ok(received) = state.recv(UdpSockRef::from(&socket), &mut buffers, &mut meta) else { continue };
        for (meta, batch) in meta.iter().zip(&memory).take(received) {
            for payload in batch[..meta.len].chunks(meta.stride.max(1)) {
                let Some(run) = payload.get(8..HEAD).and_then(|run| run.first_chunk::<8>()) else { continue };
                if payload[0] == DATA {
                    *counts.entry(*run).or_default() += 1;
                } else {
                    let count = counts.get(run).copied().unwrap_or(0);
                    let answer = [&run[..], &count.to_be_bytes()].concat();
                    _ = socket.send_to(&answer, meta.addr); // the question is repeated
                }
            }
        }
        if counts.len() > 1000 {
            counts.clear();
        }
    }
}

fn send(target: SocketAddr, bytes_per_second: f64, bytes: usize, length: Duration, gso: usize) -> anyhow::Result<()> {
    let any: SocketAddr = if target.is_ipv4() { ([0; 4], 0).into() } else { ([0u16; 8], 0).into() };
    let socket = bind(any, SocketOptions::default())?;
    socket.connect(target)?;
    let state = UdpSocketState::new(UdpSockRef::from(&socket))?;
    let run = std::process::id().to_be_bytes();
    let mut payload = vec![0u8; bytes];
    payload[HEAD - 4..HEAD].copy_from_slice(&run);
    let most = gso.min(65_000 / bytes).min(state.max_gso_segments()).max(1);
    let batch = payload.repeat(most);
    socket.set_nonblocking(false)?;

    let (start, mut sent) = (Instant::now(), 0u64);
    while start.elapsed() < length {
        let due = (start.elapsed().as_secs_f64() * bytes_per_second / bytes as f64) as u64;
        // What could not be sent in time is not made up for in one burst.
        let burst = due.saturating_sub(sent).min(4096);
        let mut left = burst as usize;
        while left > 0 {
            let now = left.min(most);
            if now == 1 {
                socket.send(&payload)?;
            } else {
                let transmit = Transmit {
                    destination: target,
                    ecn: None,
                    contents: &batch[..now * bytes],
                    segment_size: Some(bytes),
                    src_ip: None,
                };
                state.try_send(UdpSockRef::from(&socket), &transmit)?;
            }
            sent += now as u64;
            left -= now;
        }
        std::thread::sleep(TICK);
    }
    let took = start.elapsed().as_secs_f64();
    let received = ask(&socket, run)?;
    let report = serde_json::json!({
        "sent_mbit": sent as f64 * bytes as f64 * 8.0 / took / 1e6,
        "sent": sent,
        "received": received,
        "lost_percent": 100.0 * (1.0 - received as f64 / sent.max(1) as f64),
    });
    println!("{report}");
    Ok(())
}

/// How many have arrived, once that does not change any more.
fn ask(socket: &UdpSocket, run: [u8; 4]) -> anyhow::Result<u64> {
    let mut question = [0; HEAD];
    question[0] = QUESTION;
    question[HEAD - 4..].copy_from_slice(&run);
    socket.set_read_timeout(Some(Duration::from_millis(300)))?;
    let (mut last, mut answer) = (None, [0; HEAD]);
    for _ in 0..20 {
        socket.send(&question)?;
        let Ok(HEAD) = socket.recv(&mut answer) else { continue };
        let count = u64::from_be_bytes(answer[8..].try_into()?);
        if last == Some(count) {
            return Ok(count);
        }
        last = Some(count);
        std::thread::sleep(Duration::from_millis(50));
    }
    bail!("no answer from {}; does `udp serve` run there?", socket.peer_addr()?)
}
