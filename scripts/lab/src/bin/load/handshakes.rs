//! Sessions that end as soon as they are open: dial, mutual TLS, hello, welcome, goodbye, over and over.

use std::time::{Duration, Instant};

use culvert_tunnel::close::{Close, Down};
use culvert_tunnel::control::{self, FromServer};
use culvert_tunnel::shard::mailbox::{Event, LinkId};
use serde_json::json;

use crate::Place;
use crate::credentials::Credentials;
use crate::measure::{Counts, count, cpu, percentiles, round};
use crate::wire::{Wire, hello};

/// One of those that are under way at once. It has devices of its own, one after the other: a device that
/// comes back before the gateway has seen it go would replace its own session.
struct Slot {
    device: usize,
    link: LinkId,
    began: Instant,
}

#[derive(Default)]
struct Outcome {
    /// TLS was complete on our side.
    established: u64,
    /// From the first packet to the welcome.
    welcomed: Vec<Duration>,
    /// The gateway said no, by its word.
    refused: Counts,
    /// It ended otherwise.
    lost: Counts,
}

pub(crate) fn run(place: &Place, concurrency: usize, time: Duration) -> anyhow::Result<()> {
    let credentials = Credentials::read(&place.credentials)?;
    let slots = concurrency.clamp(1, credentials.devices.len().max(1));
    let transports = credentials.transports(credentials.devices.len().max(slots))?;
    let hello = hello()?;
    let mut wire = Wire::open(place.gateway, place.sources, slots)?;
    let (mut outcome, spent, began) = (Outcome::default(), cpu(), Instant::now());
    let end = began + time;
    let next = |device: usize| if device + slots < transports.len() { device + slots } else { device % slots };
    let dial = |wire: &mut Wire, number: usize, device: usize| -> anyhow::Result<Slot> {
        let began = Instant::now();
        let link = wire.dial(began, number, &credentials.server_name, &transports[device])?;
        Ok(Slot { device, link, began })
    };
    let mut under_way = (0..slots).map(|slot| dial(&mut wire, slot, slot)).collect::<anyhow::Result<Vec<_>>>()?;
    loop {
        let now = Instant::now();
        wire.receive(now);
        while let Some((number, event)) = wire.next_event(now) {
            let slot = &mut under_way[number];
            match event {
                Event::Established(established) if established.link == slot.link => {
                    outcome.established += 1;
                    wire.send(now, slot.link, &hello);
                }
                Event::Frame { link, payload } if link == slot.link => {
                    match control::decode(&payload) {
                        Ok(FromServer::Welcome(_)) => outcome.welcomed.push(now - slot.began),
                        Ok(FromServer::Refused(refused)) => count(&mut outcome.refused, refused.close().word()),
                        _ => continue,
                    }
                    wire.close(now, slot.link, Close::Goodbye);
                    *slot = dial(&mut wire, number, next(slot.device))?;
                }
                Event::Closed { link, down, .. } if link == slot.link => {
                    let counts =
                        if matches!(down, Down::Peer { .. }) { &mut outcome.refused } else { &mut outcome.lost };
                    count(counts, down.word());
                    *slot = dial(&mut wire, number, next(slot.device))?;
                }
                _ => {} // of a link that this slot has closed
            }
        }
        wire.transmit(now);
        if now >= end {
            break;
        }
        wire.wait(Some(end))?;
    }
    let seconds = began.elapsed().as_secs_f64();
    let welcomed = outcome.welcomed.len();
    println!(
        "{}",
        json!({
            "seconds": round(seconds),
            "concurrency": slots,
            "handshakes": welcomed,
            "handshakes_per_second": round(welcomed as f64 / seconds),
            "tls_per_second": round(outcome.established as f64 / seconds),
            "latency_ms": percentiles(&mut outcome.welcomed),
            "refused": outcome.refused,
            "lost": outcome.lost,
            "unsent_datagrams": wire.unsent,
            "client_cpu_percent": round((cpu() - spent).as_secs_f64() / seconds * 100.0),
        })
    );
    Ok(())
}
