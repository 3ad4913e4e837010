//! The task behind the door: owns the bans, the history and the list of who is inside.

use std::collections::HashMap;
use std::net::IpAddr;
use std::path::Path;
use std::time::{Duration, Instant};

use culvert_tunnel::banned::Banned;
use culvert_tunnel::close::Close;
use culvert_tunnel::device::Device as Interface;
use culvert_tunnel::shard::mailbox::{Command, LinkId, ShardHandle};
use ipnet::IpNet;
use time::OffsetDateTime;
use tokio::sync::{mpsc, oneshot};

use super::keeper::Keeper;
use super::{Door, TOLD, Told};
use crate::bans::{Ban, Bans, By, Change, Limits, canonical};
use crate::control_socket::{BanInfo, DeviceHistory, Request, Response};
use crate::history::History;
use crate::log::{network, peer_text};
use crate::times::rfc3339;

/// Opens the door over running shards; `banned` is the table that they look at. What was banned when the
/// gateway last ran here is banned again.
pub fn open<D: Interface>(limits: Limits, state: &Path, banned: Banned, shards: Vec<ShardHandle<D>>) -> Door {
    let (told, queue) = mpsc::channel(TOLD);
    let mut bans = Bans::new(limits);
    let keeper = Keeper::new(state);
    if let Some(kept) = keeper.read() {
        bans.restore(&kept, Instant::now(), OffsetDateTime::now_utc());
    }
    banned.replace(bans.iter().map(|(prefix, _)| prefix));
    let task = Task {
        bans,
        history: History::default(),
        inside: HashMap::new(),
        banned,
        keeper,
        shards,
        since: OffsetDateTime::now_utc(),
    };
    tokio::spawn(task.run(queue));
    Door { told }
}

struct Task<D: Interface> {
    bans: Bans,
    history: History,
    /// Open sessions: where, and which device.
    inside: HashMap<LinkId, (IpAddr, String)>,
    banned: Banned,
    keeper: Keeper,
    shards: Vec<ShardHandle<D>>,
    since: OffsetDateTime,
}

impl<D: Interface> Task<D> {
    async fn run(mut self, mut queue: mpsc::Receiver<Told>) {
        loop {
            let due = self.bans.poll_timeout();
            tokio::select! {
                told = queue.recv() => match told {
                    Some(Told::Stop(done)) => {
                        self.keeper.finish().await;
                        let _ = done.send(()); // nobody waits any more
                        return;
                    }
                    Some(told) => self.on_told(told).await,
                    None => return,
                },
                () = reached(due) => {
                    let lifted = self.bans.on_timeout(Instant::now());
                    self.act(lifted, None);
                }
                () = self.keeper.written() => {}
            }
        }
    }

    async fn on_told(&mut self, told: Told) {
        match told {
            Told::Refused { address, reason, against, device } => {
                self.history.on_refused(address, device.as_deref(), reason, OffsetDateTime::now_utc());
                if let Some(against) = against {
                    let changes = self.bans.on_failure(address, against, Instant::now());
                    self.act(changes, None);
                }
            }
            Told::Opened { link, address, device } => {
                self.history.on_session(address, &device, OffsetDateTime::now_utc());
                self.inside.insert(link, (address, device));
                let lifted = self.bans.on_session(address);
                self.act(lifted.into_iter().collect(), None);
            }
            Told::Moved { link, address } => {
                let Some((place, device)) = self.inside.get_mut(&link) else { return };
                let left = std::mem::replace(place, address);
                self.history.on_session(address, device, OffsetDateTime::now_utc());
                self.bans.on_session_end(left);
                let lifted = self.bans.on_session(address);
                self.act(lifted.into_iter().collect(), None);
            }
            Told::Closed { link } => {
                if let Some((address, _)) = self.inside.remove(&link) {
                    self.bans.on_session_end(address);
                }
            }
            Told::Limits(limits) => {
                let lifted = self.bans.configure(limits);
                self.act(lifted, None);
            }
            Told::Counts(reply) => drop(reply.send(self.bans.counts())),
            Told::Asked(request, reply) => self.on_asked(request, reply).await,
            Told::Stop(_) => {} // taken by `run`
        }
    }

    async fn on_asked(&mut self, request: Request, reply: oneshot::Sender<Response>) {
        let response = match request {
            Request::Bans => Response::Bans { bans: self.bans.iter().map(|(prefix, ban)| info(prefix, ban)).collect() },
            Request::BanAdd { prefix, seconds, reason, now } => {
                let (prefix, length) = (canonical(prefix), seconds.map(Duration::from_secs));
                match self.bans.add(prefix, length, &peer_text(&reason), Instant::now()) {
                    Err(error) => Response::Failed { message: error.to_string() },
                    Ok(change) => {
                        // Before the sessions end, or their clients would be back before it.
                        self.banned.replace(self.bans.iter().map(|(prefix, _)| prefix));
                        let sessions = self.end_sessions(prefix, now).await;
                        let done = Response::Ban { changed: true, sessions, covered_by: None };
                        return self.act(vec![change], Some((reply, done)));
                    }
                }
            }
            Request::BanRemove { prefix } => {
                let change = self.bans.remove(canonical(prefix));
                let covered_by = self.bans.covering(canonical(prefix)).map(|(wider, _)| wider);
                let done = Response::Ban { changed: change.is_some(), sessions: 0, covered_by };
                match change {
                    Some(change) => return self.act(vec![change], Some((reply, done))),
                    None => done,
                }
            }
            Request::History { devices } => Response::History {
                since: rfc3339(self.since),
                devices: devices.into_iter().map(|id| self.device_history(id)).collect(),
            },
            _ => return, // none of the door's; without a reply the asker is told that it failed
        };
        let _ = reply.send(response); // the asker may have gone
    }

    fn device_history(&self, id: String) -> DeviceHistory {
        let record = self.history.device(&id).cloned().unwrap_or_default();
        let of_place = record.place.and_then(|place| self.history.source(place)).cloned();
        let ban = record.place.and_then(|place| self.bans.covering(place));
        DeviceHistory { id, record, of_place, ban: ban.map(|(prefix, ban)| info(prefix, ban)) }
    }

    /// Counts the open sessions in a prefix, and ends them when `now` says so.
    async fn end_sessions(&self, prefix: IpNet, now: bool) -> usize {
        let there = self.inside.iter().filter(|(_, (address, _))| prefix.contains(&address.to_canonical()));
        let links: Vec<LinkId> = there.map(|(link, _)| *link).collect();
        for &link in links.iter().filter(|_| now) {
            if let Some(shard) = self.shards.get(usize::from(link.shard)) {
                let reason = "an administrator has banned the address that you come from".to_owned();
                let _ = shard.send(Command::Close { link, code: Close::Kicked, reason }).await; // a shard that has ended
            }
        }
        links.len()
    }

    /// Puts changes into the shards' table, the file and the log. Whoever waits is told when they are in all.
    fn act(&mut self, changes: Vec<Change>, waiting: Option<(oneshot::Sender<Response>, Response)>) {
        if changes.is_empty() {
            return;
        }
        self.banned.replace(self.bans.iter().map(|(prefix, _)| prefix));
        self.keeper.write(self.bans.keep(Instant::now(), OffsetDateTime::now_utc()).text(), waiting);
        for change in changes {
            match change {
                Change::Banned(prefix, ban) => tracing::warn!(
                    event = "banned",
                    src = network(prefix),
                    by = by(&ban),
                    seconds = ban.until.map_or(0, |until| left(until).as_secs()),
                    reason = ban.reason,
                ),
                Change::Lifted(prefix, why) => {
                    tracing::info!(event = "unbanned", src = network(prefix), reason = why.word());
                }
            }
        }
    }
}

fn info(prefix: IpNet, ban: &Ban) -> BanInfo {
    BanInfo {
        prefix,
        by: by(ban).to_owned(),
        until: ban.until.map(|until| rfc3339(OffsetDateTime::now_utc() + left(until))),
        reason: ban.reason.clone(),
    }
}

fn by(ban: &Ban) -> &'static str {
    match ban.by {
        By::Failures { .. } => "failures",
        By::Operator => "operator",
    }
}

/// Rounded, so that ten minutes are told as ten minutes.
fn left(until: Instant) -> Duration {
    Duration::from_secs_f64(until.saturating_duration_since(Instant::now()).as_secs_f64().round())
}

async fn reached(due: Option<Instant>) {
    match due {
        Some(due) => tokio::time::sleep_until(due.into()).await,
        None => std::future::pending().await,
    }
}
