//! Tells the service manager that the gateway works, as long as it does: that the table of sessions and every shard
//! have just answered. When a part hangs nothing is told, and after `WatchdogSec=` systemd starts the gateway anew.

use std::fmt;
use std::time::Duration;

use culvert_tunnel::device::Device;
use culvert_tunnel::shard::mailbox::ShardHandle;
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, MissedTickBehavior, interval, timeout_at};

use crate::control_socket::{Asked, Request, Response};
use crate::manager;

/// How often the words for `systemctl status` are made anew where no watchdog waits.
const WITHOUT_WATCHDOG: Duration = Duration::from_secs(15);

/// Looks after a running gateway until dropped. `endpoint` is for the words. Without a service manager it does
/// nothing, so that an idle gateway is not woken for it.
pub async fn watch<D: Device>(asked: mpsc::Sender<Asked>, shards: Vec<ShardHandle<D>>, endpoint: String) {
    if !manager::listens() {
        return std::future::pending().await;
    }
    // Three looks before the time is over: one late answer is no reason to end every session.
    let every = sd_notify::watchdog_enabled().map_or(WITHOUT_WATCHDOG, |patience| patience / 3);
    let mut looks = interval(every.max(Duration::from_millis(1)));
    looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut told = String::new();
    loop {
        looks.tick().await;
        match look(&asked, &shards, Instant::now() + every).await {
            Ok(sessions) => {
                manager::alive();
                let words = words(&endpoint, sessions);
                if words != told {
                    manager::status(&words);
                    told = words;
                }
            }
            Err(part) => tracing::error!(
                event = "watchdog",
                %part,
                "does not answer; unless it does soon, the service manager starts the gateway anew"
            ),
        }
    }
}

/// What has not answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Part {
    Shard(usize),
    Sessions,
}

impl fmt::Display for Part {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Shard(index) => write!(f, "shard-{index}"), // as its thread is called
            Self::Sessions => f.write_str("sessions"),
        }
    }
}

/// Asks every part; returns how many sessions are open. All of them have until `end` together.
async fn look<D: Device>(asked: &mpsc::Sender<Asked>, shards: &[ShardHandle<D>], end: Instant) -> Result<usize, Part> {
    for (index, shard) in shards.iter().enumerate() {
        let Ok(Ok(())) = timeout_at(end, shard.heartbeat()).await else { return Err(Part::Shard(index)) };
    }
    let sessions = async {
        let (reply, answer) = oneshot::channel();
        asked.send((Request::Alive, reply)).await.ok()?;
        answer.await.ok()
    };
    match timeout_at(end, sessions).await {
        Ok(Some(Response::Alive { sessions })) => Ok(sessions),
        _ => Err(Part::Sessions),
    }
}

fn words(endpoint: &str, sessions: usize) -> String {
    let plural = if sessions == 1 { "" } else { "s" };
    format!("serving {endpoint}, {sessions} session{plural}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use culvert_tunnel::device::linux::Tun;

    #[tokio::test]
    async fn a_table_of_sessions_that_hangs_is_named_and_one_that_answers_counts() {
        let (asked, mut requests) = mpsc::channel::<Asked>(1);
        let hung = look::<Tun>(&asked, &[], Instant::now()).await;
        assert_eq!(hung, Err(Part::Sessions), "nobody takes the request");
        let table = async {
            loop {
                let (request, reply) = requests.recv().await.unwrap();
                assert_eq!(request, Request::Alive);
                let _ = reply.send(Response::Alive { sessions: 7 }); // to the look that gave up, too
            }
        };
        let patient = Instant::now() + Duration::from_secs(60);
        tokio::select! {
            seen = look::<Tun>(&asked, &[], patient) => assert_eq!(seen, Ok(7)),
            () = table => {}
        }
        drop(requests);
        assert_eq!(look::<Tun>(&asked, &[], patient).await, Err(Part::Sessions), "its loop has ended");
    }

    #[test]
    fn the_words_count() {
        assert_eq!(words("vpn.example.org:443", 1), "serving vpn.example.org:443, 1 session");
        assert_eq!(words("vpn.example.org:443", 0), "serving vpn.example.org:443, 0 sessions");
    }
}
