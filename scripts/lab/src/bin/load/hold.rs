//! Sessions that are kept, and what is told of them once a second.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant, SystemTime};

use serde_json::json;
use tokio::signal::unix::{SignalKind, signal};

use crate::Hold;
use crate::credentials::Credentials;
use crate::herd::{Herd, Standing};
use crate::measure::{cpu, percentiles, round};
use crate::wire::Wire;

const SECOND: Duration = Duration::from_secs(1);

pub(crate) fn run(hold: &Hold) -> anyhow::Result<()> {
    let credentials = Credentials::read(&hold.place.credentials)?;
    let transports = credentials.transports(hold.clients)?;
    let wire = Wire::open(hold.place.gateway, hold.place.sources, hold.clients)?;
    let mut herd = Herd::new(wire, transports, credentials.server_name)?;
    let began = Instant::now();
    let end = began + Duration::try_from_secs_f64(hold.seconds)?;
    let drop_after = hold.drop_at.map(Duration::try_from_secs_f64).transpose()?;
    let mut drop_at = None;
    let signalled = on_signal()?;
    let (mut started, mut told, mut spent) = (0, began, cpu());
    // Since when not all are open, and why.
    let mut without = Some((began, "start"));
    loop {
        let now = Instant::now();
        while started < hold.clients && began + after(started, hold.rate) <= now {
            herd.connect(now, started);
            started += 1;
        }
        herd.turn(now);
        for (client, why) in herd.stopped.drain(..) {
            println!("{}", json!({ "stopped": client, "why": why, "unix": unix() }));
        }
        let open = herd.count(Standing::Open);
        match without {
            Some((since, why)) if open == herd.len() => {
                let seconds = round(since.elapsed().as_secs_f64());
                let outage = percentiles(&mut std::mem::take(&mut herd.outages));
                println!(
                    "{}",
                    json!({
                        "all_open": open,
                        "after": why,
                        "seconds": seconds,
                        "unix": unix(),
                        "outage_ms": outage,
                        "lost_so_far": herd.lost.values().sum::<u64>(),
                    })
                );
                if why == "start" {
                    drop_at = drop_after.map(|after| now + after);
                }
                without = None;
            }
            None if open < herd.len() => without = Some((now, "loss")),
            _ => {}
        }
        if drop_at.is_some_and(|at| at <= now) || signalled.swap(false, Ordering::Relaxed) {
            drop_at = None;
            herd.forget()?;
            without = Some((Instant::now(), "drop"));
            println!("{}", json!({ "dropped": herd.len(), "unix": unix() }));
        }
        if now >= told + SECOND {
            let used = cpu();
            println!("{}", line(&herd, began, (used - spent).as_secs_f64() / (now - told).as_secs_f64()));
            (told, spent) = (now, used);
        }
        if now >= end {
            println!("{}", line(&herd, began, 0.0));
            return Ok(());
        }
        let start = (started < hold.clients).then(|| began + after(started, hold.rate));
        let due = [start, drop_at, Some(told + SECOND), Some(end)].into_iter().flatten().min();
        herd.wait(due.unwrap_or(end))?;
    }
}

/// Becomes true at SIGUSR1. It is looked at once a second, or more often while there is something to do.
fn on_signal() -> anyhow::Result<Arc<AtomicBool>> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build()?;
    let entered = runtime.enter();
    let mut signals = signal(SignalKind::user_defined1())?;
    drop(entered);
    let signalled = Arc::new(AtomicBool::new(false));
    let flag = Arc::clone(&signalled);
    std::thread::spawn(move || {
        runtime.block_on(async {
            while signals.recv().await.is_some() {
                flag.store(true, Ordering::Relaxed);
            }
        });
    });
    Ok(signalled)
}

fn line(herd: &Herd, began: Instant, cpu: f64) -> serde_json::Value {
    json!({
        "second": began.elapsed().as_secs(),
        "unix": unix(),
        "open": herd.count(Standing::Open),
        "dialling": herd.count(Standing::Dialling),
        "waiting": herd.count(Standing::Waiting),
        "stopped": herd.count(Standing::Stopped),
        "lost": herd.lost,
        "failed": herd.failed,
        "unsent_datagrams": herd.wire.unsent,
        "client_cpu_percent": round(cpu * 100.0),
    })
}

/// When a client begins; all at once when the rate is none.
fn after(client: usize, rate: f64) -> Duration {
    if rate > 0.0 { Duration::from_secs_f64(client as f64 / rate) } else { Duration::ZERO }
}

/// Seconds since 1970, to compare with a script's clock.
fn unix() -> f64 {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    (now.as_secs_f64() * 1000.0).round() / 1000.0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clients_begin_at_their_rate_or_all_at_once() {
        assert_eq!(after(500, 250.0), Duration::from_secs(2));
        assert_eq!(after(9_999, 0.0), Duration::ZERO);
    }
}
