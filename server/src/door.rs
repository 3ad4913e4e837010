//! The door: who was refused, whom that bans, and which sessions are open where.
//!
//! One task (`task`) owns the bans and the history; everybody else holds a [`Door`] and tells it. What
//! is refused is logged here, so that there is one place for the security line. The task never waits for
//! the gateway's loop, so the loop may wait for it.

mod keeper;
mod task;

use std::net::{IpAddr, SocketAddr};

use culvert_tunnel::shard::mailbox::LinkId;
use tokio::sync::{mpsc, oneshot};

use crate::bans::{self, Counts, Limits};
use crate::control_socket::{Request, Response};
use crate::log::{peer_text, port, src};
use crate::metrics;

pub use keeper::{BansFileError, NAME as FILE_NAME, read};
pub use task::open;

/// What may wait for the task. Refusals beyond it are logged and not counted.
const TOLD: usize = 4_096;

/// Everybody's way to the task. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Door {
    told: mpsc::Sender<Told>,
}

/// What the task is told.
#[derive(Debug)]
enum Told {
    /// Somebody was refused, at a validated address.
    Refused {
        address: IpAddr,
        /// The word that is kept.
        reason: &'static str,
        /// The word that counts against the source.
        against: Option<&'static str>,
        /// The id of a device that the registry knows.
        device: Option<String>,
    },
    /// A session opened.
    Opened { link: LinkId, address: IpAddr, device: String },
    /// Its client is elsewhere.
    Moved { link: LinkId, address: IpAddr },
    /// It ended.
    Closed { link: LinkId },
    /// The configuration was read again.
    Limits(Limits),
    /// An administrator asks.
    Asked(Request, oneshot::Sender<Response>),
    /// For metrics.
    Counts(oneshot::Sender<Counts>),
    /// Keep what is to be kept, and end.
    Stop(oneshot::Sender<()>),
}

impl Door {
    /// A session was refused, in TLS or after it. `device` is the id of a device that the registry knows.
    /// Only for peers whose address is validated.
    pub fn session_refused(&self, remote: SocketAddr, reason: &'static str, name: &str, device: Option<String>) {
        metrics::refused(reason);
        let against = bans::counts(reason).then_some(reason);
        if against.is_some() || reason == "expired" {
            auth_failed(remote, reason, name);
        } else {
            tracing::warn!(
                event = "session_refused",
                src = src(remote.ip()),
                port = port(remote),
                reason,
                validated = "yes",
                name = peer_text(name),
            );
        }
        self.tell_refusal(Told::Refused { address: remote.ip(), reason, against, device });
    }

    /// An enrolment was refused. Only for peers whose address is validated.
    pub fn enrolment_refused(&self, remote: SocketAddr, reason: &'static str, invitation: &str, name: &str) {
        metrics::refused(reason);
        metrics::enrolment("refused");
        let against = bans::counts_at_enrolment(reason);
        if let Some(against) = against.filter(|against| bans::counts(against)) {
            auth_failed(remote, against, name);
        }
        tracing::warn!(
            event = "enrol_failed",
            src = src(remote.ip()),
            port = port(remote),
            reason,
            validated = "yes",
            invitation,
            name = peer_text(name),
        );
        self.tell_refusal(Told::Refused { address: remote.ip(), reason, against, device: None });
    }

    fn tell_refusal(&self, refused: Told) {
        let _ = self.told.try_send(refused); // a full queue forgives one
    }

    /// A device's session opened.
    pub async fn opened(&self, link: LinkId, remote: SocketAddr, device: &str) {
        self.tell(Told::Opened { link, address: remote.ip(), device: device.to_owned() }).await;
    }

    /// An open session's client is elsewhere now.
    pub async fn moved(&self, link: LinkId, remote: SocketAddr) {
        self.tell(Told::Moved { link, address: remote.ip() }).await;
    }

    /// A session ended.
    pub async fn closed(&self, link: LinkId) {
        self.tell(Told::Closed { link }).await;
    }

    /// Other limits hold.
    pub async fn configure(&self, limits: Limits) {
        self.tell(Told::Limits(limits)).await;
    }

    /// Answers an administrator's request that concerns the door.
    pub async fn answer(&self, request: Request, reply: oneshot::Sender<Response>) {
        self.tell(Told::Asked(request, reply)).await;
    }

    /// What was counted so far; `None` once the gateway stops.
    pub async fn counts(&self) -> Option<Counts> {
        let (reply, counts) = oneshot::channel();
        self.tell(Told::Counts(reply)).await;
        counts.await.ok()
    }

    /// Ends the task; what is to be kept is on the disk when this returns.
    pub async fn stop(&self) {
        let (reply, done) = oneshot::channel();
        self.tell(Told::Stop(reply)).await;
        let _ = done.await; // it had ended before
    }

    async fn tell(&self, told: Told) {
        let _ = self.told.send(told).await; // it ends only when the gateway does
    }
}

/// The security line (product contract 7.5), which fail2ban reads.
fn auth_failed(remote: SocketAddr, reason: &str, name: &str) {
    tracing::warn!(
        event = "auth_failed",
        src = src(remote.ip()),
        port = port(remote),
        reason,
        validated = "yes",
        name = peer_text(name),
    );
}
