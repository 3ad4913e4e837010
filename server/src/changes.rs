//! What others changed in the registry while this gateway runs: administrators' commands, and
//! other gateways. One task reads the events after the last one it knows, when it is told to and
//! once a second, and hands them to the gateway's loop, which never waits for the registry itself.

use std::time::Duration;

use tokio::sync::{mpsc, oneshot};
use tokio::time::{MissedTickBehavior, interval};

use crate::audit;
use crate::registry::{Event, Registry, RegistryError};

/// How long a change may go unnoticed when nobody tells.
const EVERY: Duration = Duration::from_secs(1);
/// Events taken at once.
const AT_ONCE: u32 = 1_000;

/// What has happened, and who waits until that is acted on.
#[derive(Debug)]
pub struct Changes {
    /// Oldest first; may be empty when somebody asked.
    pub events: Vec<Event>,
    /// Told how many sessions were closed.
    pub asked: Option<oneshot::Sender<usize>>,
}

/// Somebody who has changed the registry and wants that to take effect now.
pub type Poke = oneshot::Sender<usize>;

/// Watches from event number `last` until the loop has ended.
pub async fn watch(registry: impl Registry, mut last: i64, mut pokes: mpsc::Receiver<Poke>, to: mpsc::Sender<Changes>) {
    let mut ticks = interval(EVERY);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut failing = false;
    loop {
        let mut asked = tokio::select! {
            _ = ticks.tick() => None,
            Some(poke) = pokes.recv() => Some(poke),
            () = to.closed() => return,
        };
        loop {
            let events = match registry.events_after(last, AT_ONCE).await {
                Ok(events) => events,
                Err(error) => {
                    warn_once(&mut failing, &error);
                    break; // whoever asked is told by its dropped end
                }
            };
            failing = false;
            let more = events.len() == AT_ONCE as usize;
            last = events.last().map_or(last, |event| event.id);
            let acts = events.clone();
            if events.is_empty() && asked.is_none() {
                break;
            }
            let told = Changes { events, asked: if more { None } else { asked.take() } };
            if to.send(told).await.is_err() {
                return;
            }
            audit::record_changes(&registry, &acts).await;
            if !more {
                break;
            }
        }
    }
}

fn warn_once(failing: &mut bool, error: &RegistryError) {
    if !std::mem::replace(failing, true) {
        tracing::error!(event = "registry_failed", %error, "changes of others are not seen until this ends");
    }
}
