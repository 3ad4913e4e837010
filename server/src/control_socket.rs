//! Where the running gateway answers its administrator: a Unix socket, one JSON object a line.
//!
//! The socket is 0660 and belongs to the group `culvert-server` when there is one; who calls is
//! checked again by the credentials that the kernel gives. A request is one of a short closed
//! list. Both ends are here: [`ControlSocket::serve`] for the gateway, [`ask`] for the commands.

mod door;
mod peer;

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, BufRead, BufReader, Write};
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::os::unix::net::UnixStream as BlockingStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use culvert_tunnel::stats::ShardStats;
use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{Semaphore, mpsc, oneshot};
use tokio::time::timeout;

use crate::{audit, dns};

pub use door::{BanInfo, DeviceHistory};

/// What an administrator may ask.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "request", rename_all = "snake_case", deny_unknown_fields)]
pub enum Request {
    /// The open sessions.
    Sessions,
    /// The gateway as a whole.
    Status,
    /// The registry was changed: act on it now.
    Changed,
    /// Read the configuration again.
    Reload,
    /// End the sessions of these devices. They may come back at once.
    Kick {
        /// Their ids.
        devices: Vec<String>,
    },
    /// Whether the table of sessions is still looked after. Asks no shard.
    Alive,
    /// Whether clients are served.
    Ready,
    /// Every metric.
    Scrape,
    /// Who is not listened to.
    Bans,
    /// Do not listen to this prefix.
    BanAdd {
        /// Who.
        prefix: IpNet,
        /// For how long; `None` until somebody lifts it.
        seconds: Option<u64>,
        /// For people.
        reason: String,
        /// End the sessions there as well.
        now: bool,
    },
    /// Listen to exactly this prefix again.
    BanRemove {
        /// Who.
        prefix: IpNet,
    },
    /// What was last heard of these devices.
    History {
        /// Their ids.
        devices: Vec<String>,
    },
}

/// What the gateway answers.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(tag = "response", rename_all = "snake_case")]
pub enum Response {
    /// To anything, from somebody who may not ask.
    Forbidden,
    /// To [`Request::Sessions`].
    Sessions {
        /// In the order of users and devices.
        sessions: Vec<SessionInfo>,
    },
    /// To [`Request::Status`].
    Status(Box<StatusInfo>),
    /// To [`Request::Changed`] and [`Request::Kick`].
    Closed {
        /// Sessions that were ended by it.
        sessions: usize,
    },
    /// To [`Request::Reload`].
    Reloaded {
        /// Settings whose new values are in force.
        applied: Vec<String>,
        /// Settings whose new values wait for a restart.
        needs_restart: Vec<String>,
    },
    /// To [`Request::Reload`]: the old configuration stays in force.
    NotReloaded {
        /// Why.
        message: String,
    },
    /// To [`Request::Bans`].
    Bans {
        /// In the order of prefixes.
        bans: Vec<BanInfo>,
    },
    /// To [`Request::BanAdd`] and [`Request::BanRemove`].
    Ban {
        /// False when there was nothing to lift.
        changed: bool,
        /// Open sessions in the prefix: ended by it, or going on.
        sessions: usize,
        /// A ban that still holds the prefix after it was lifted.
        covered_by: Option<IpNet>,
    },
    /// To [`Request::History`].
    History {
        /// Since when the gateway remembers.
        since: String,
        /// In the order of the request.
        devices: Vec<DeviceHistory>,
    },
    /// The gateway could not do it.
    Failed {
        /// Why, in one sentence.
        message: String,
    },
    /// To [`Request::Ready`].
    Ready {
        /// The checks that failed.
        failed: Vec<String>,
    },
    /// To [`Request::Scrape`].
    Metrics {
        /// Prometheus' text format.
        text: String,
    },
    /// To [`Request::Alive`].
    Alive {
        /// Open sessions.
        sessions: usize,
    },
    /// The request was none of the list.
    Invalid {
        /// What was wrong.
        message: String,
    },
}

/// One open session. Times are RFC 3339, counters whole inner packets.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct SessionInfo {
    /// The device's id.
    pub device_id: String,
    /// Its name.
    pub device: String,
    /// Whose it is.
    pub user: String,
    /// Where it is.
    pub remote: String,
    /// Its inner IPv4 address.
    pub ipv4: String,
    /// Its inner IPv6 address.
    pub ipv6: Option<String>,
    /// When the session opened.
    pub since: String,
    /// The client's program and version.
    pub client: String,
    /// The client's operating system.
    pub platform: String,
    /// From the client.
    pub received_bytes: u64,
    /// See `received_bytes`.
    pub received_packets: u64,
    /// To the client.
    pub sent_bytes: u64,
    /// See `sent_bytes`.
    pub sent_packets: u64,
    /// Dropped, both ways.
    pub dropped_packets: u64,
    /// Dropped on the way from the client, by reason; only reasons that occurred.
    #[serde(default)]
    pub dropped_received: BTreeMap<String, u64>,
    /// Dropped on the way to the client.
    #[serde(default)]
    pub dropped_sent: BTreeMap<String, u64>,
    /// Packets sent that crossed as two datagrams.
    #[serde(default)]
    pub split_packets: u64,
    /// Packets that were too big, and whose senders were told by ICMP.
    #[serde(default)]
    pub too_big_answers: u64,
    /// Smoothed round-trip time outside.
    pub rtt_seconds: f64,
    /// Largest inner packet in one datagram.
    pub mtu_bytes: u16,
    /// UDP payload bytes that the path carries.
    #[serde(default)]
    pub path_mtu_bytes: u16,
    /// Times that the path was found to carry less than before.
    #[serde(default)]
    pub black_holes: u64,
}

/// The gateway as a whole.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct StatusInfo {
    /// Of this program.
    pub version: String,
    /// Since when it runs.
    pub since: String,
    /// What clients dial, best first.
    pub endpoints: Vec<String>,
    /// The UDP address.
    pub listen: String,
    /// The interface.
    pub device: String,
    /// The inner networks.
    pub networks: Vec<String>,
    /// Open sessions.
    pub sessions: usize,
    /// Connections that are being judged.
    pub pending: usize,
    /// Sessions that have ended since the start, by the word for why.
    #[serde(default)]
    pub ended: BTreeMap<String, u64>,
    /// What the resolver for clients has done; `None` when there is none.
    #[serde(default)]
    pub dns: Option<dns::Snapshot>,
    /// The shards' counters.
    pub shards: Vec<ShardInfo>,
}

/// The counters of one shard since it started.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct ShardInfo {
    /// UDP datagrams received, whatever they were.
    pub datagrams_in: u64,
    /// UDP datagrams sent.
    pub datagrams_out: u64,
    /// Datagrams that belong to no connection and open none.
    pub datagrams_foreign: u64,
    /// Datagrams of banned addresses.
    #[serde(default)]
    pub datagrams_banned: u64,
    /// Handshakes begun by peers.
    pub handshakes: u64,
    /// Handshakes answered with a Retry first.
    pub retries: u64,
    /// Handshakes not answered since Retry packets had used up their bytes.
    #[serde(default)]
    pub retries_withheld: u64,
    /// Handshakes refused since too many were waiting or under way.
    pub handshakes_refused: u64,
    /// Packets and datagrams handed to other shards.
    #[serde(default)]
    pub handed_out: u64,
    /// Packets and datagrams taken over from other shards.
    #[serde(default)]
    pub handed_in: u64,
    /// Packets and datagrams for which another shard had no room.
    #[serde(default)]
    pub handed_lost: u64,
    /// Packets of the interface that came to no session, by reason; only reasons that occurred.
    #[serde(default)]
    pub dropped_device: BTreeMap<String, u64>,
    /// Packets of sessions that the interface had no room for, by reason; only reasons that occurred.
    #[serde(default)]
    pub undelivered: BTreeMap<String, u64>,
}

impl From<&ShardStats> for ShardInfo {
    fn from(stats: &ShardStats) -> Self {
        Self {
            datagrams_in: stats.datagrams_in,
            datagrams_out: stats.datagrams_out,
            datagrams_foreign: stats.datagrams_foreign,
            datagrams_banned: stats.datagrams_banned,
            handshakes: stats.handshakes,
            retries: stats.retries,
            retries_withheld: stats.retries_withheld,
            handshakes_refused: stats.handshakes_refused,
            handed_out: stats.handed_out,
            handed_in: stats.handed_in,
            handed_lost: stats.handed_lost,
            dropped_device: stats.dropped_device.occurred(),
            undelivered: stats.undelivered.occurred(),
        }
    }
}

/// A request with the way back.
pub type Asked = (Request, oneshot::Sender<Response>);

/// Why the socket cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum SocketError {
    /// A running gateway answers there.
    #[error("another culvert-server answers on {}; stop it, or set control.socket", .0.display())]
    InUse(PathBuf),
    /// The OS refuses.
    #[error("cannot make the control socket {}: {error}", .path.display())]
    Io {
        /// Where.
        path: PathBuf,
        /// What the OS says.
        error: io::Error,
    },
}

/// The socket's name is gone when this is dropped.
#[derive(Debug)]
pub struct ControlSocket {
    listener: UnixListener,
    path: PathBuf,
}

impl ControlSocket {
    /// Binds the socket in place of one that a dead gateway left. Needs a tokio runtime.
    ///
    /// # Errors
    /// [`SocketError`].
    pub fn bind(path: &Path) -> Result<Self, SocketError> {
        let failed = |error| SocketError::Io { path: path.to_owned(), error };
        if let Some(folder) = path.parent() {
            make_folder(folder).map_err(failed)?;
        }
        if BlockingStream::connect(path).is_ok() {
            return Err(SocketError::InUse(path.to_owned()));
        }
        // Bound under another name until only the right people can connect.
        let mut name = path.file_name().unwrap_or_default().to_owned();
        name.push(".new");
        let temporary = path.with_file_name(name);
        let _ = fs::remove_file(&temporary); // of a gateway that died right here
        let listener = UnixListener::bind(&temporary).map_err(failed)?;
        let named = peer::own_group(&temporary)
            .and_then(|()| fs::set_permissions(&temporary, fs::Permissions::from_mode(0o660)))
            .and_then(|()| fs::rename(&temporary, path));
        if let Err(error) = named {
            let _ = fs::remove_file(&temporary); // the first error counts
            return Err(failed(error));
        }
        Ok(Self { listener, path: path.to_owned() })
    }

    /// Answers until dropped. Requests go to `gateway`, which replies. Cancel-safe.
    pub async fn serve(&self, gateway: mpsc::Sender<Asked>) {
        const CALLERS: usize = 16;
        let callers = Arc::new(Semaphore::new(CALLERS));
        loop {
            let Ok(permit) = Arc::clone(&callers).acquire_owned().await else { return };
            let stream = match self.listener.accept().await {
                Ok((stream, _)) => stream,
                Err(error) => {
                    tracing::warn!(%error, "control socket");
                    tokio::time::sleep(Duration::from_millis(100)).await; // out of descriptors
                    continue;
                }
            };
            if !peer::may_ask(&stream, &self.path) {
                audit::record(&peer::actor(&stream), "connect", "", "forbidden");
                let _ = refuse(stream); // who does not read it is not waited for
                continue;
            }
            let gateway = gateway.clone();
            tokio::spawn(async move {
                let _permit = permit;
                // Whatever ends the conversation, only this caller is concerned.
                let _ = converse(stream, gateway).await;
            });
        }
    }
}

/// One line, without waiting for room.
fn refuse(stream: UnixStream) -> io::Result<()> {
    let mut text = serde_json::to_vec(&Response::Forbidden)?;
    text.push(b'\n');
    stream.into_std()?.write_all(&text)
}

/// Makes the folder, and those above it, where they are missing. The administrators' group can
/// pass through what is new, whatever the umask; what was there keeps its mode.
fn make_folder(folder: &Path) -> io::Result<()> {
    let new: Vec<&Path> = folder.ancestors().take_while(|folder| !folder.exists()).collect();
    fs::DirBuilder::new().recursive(true).mode(0o750).create(folder)?;
    for folder in new {
        peer::own_group(folder)?;
        fs::set_permissions(folder, fs::Permissions::from_mode(0o750))?;
    }
    Ok(())
}

impl Drop for ControlSocket {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.path); // gone is what we want
    }
}

/// A request that names ten thousand devices.
const REQUEST_MAX: u64 = 512 * 1024;
const PATIENCE: Duration = Duration::from_secs(10);

async fn converse(mut stream: UnixStream, gateway: mpsc::Sender<Asked>) -> io::Result<()> {
    let actor = peer::actor(&stream);
    let (reader, mut writer) = stream.split();
    let mut reader = tokio::io::BufReader::new(reader);
    loop {
        let mut line = Vec::new();
        let read = timeout(PATIENCE, (&mut reader).take(REQUEST_MAX).read_until(b'\n', &mut line)).await??;
        if read == 0 {
            return Ok(());
        }
        let response = match serde_json::from_slice::<Request>(&line) {
            Ok(request) => {
                let act = audit::act(&request);
                let (reply, answer) = oneshot::channel();
                if gateway.send((request, reply)).await.is_err() {
                    return Ok(()); // stopping
                }
                let response = answer.await.unwrap_or_else(|_| Response::Failed {
                    message: "the gateway cannot do this now; see its log".into(),
                });
                if let Some((action, target)) = act {
                    let failed = matches!(response, Response::Failed { .. } | Response::NotReloaded { .. });
                    audit::record(&actor, action, &target, if failed { "failed" } else { "ok" });
                }
                response
            }
            Err(error) => Response::Invalid { message: error.to_string() },
        };
        let mut text = serde_json::to_vec(&response)?;
        text.push(b'\n');
        timeout(PATIENCE, writer.write_all(&text)).await??;
        if line.last() != Some(&b'\n') {
            return Ok(()); // longer than any request, or cut off
        }
    }
}

/// Why a running gateway did not answer.
#[derive(Debug, thiserror::Error)]
pub enum AskError {
    /// Nobody listens.
    #[error("no running gateway answers on {} ({error}); start it with: culvert-server run", .path.display())]
    NotRunning {
        /// Where.
        path: PathBuf,
        /// What the OS says.
        error: io::Error,
    },
    /// The socket is not for this user.
    #[error("you may not use {}; run this as root, or join the group that owns it", .0.display())]
    Forbidden(PathBuf),
    /// It hung up, or spoke in tongues.
    #[error("the gateway did not answer: {0}")]
    NoAnswer(io::Error),
    /// It could not do it.
    #[error("{0}")]
    Failed(String),
}

/// Asks the gateway behind `path` and waits up to 10 s.
///
/// # Errors
/// [`AskError`].
pub fn ask(path: &Path, request: &Request) -> Result<Response, AskError> {
    let stream = BlockingStream::connect(path).map_err(|error| match error.kind() {
        io::ErrorKind::PermissionDenied => AskError::Forbidden(path.to_owned()),
        _ => AskError::NotRunning { path: path.to_owned(), error },
    })?;
    match exchange(&stream, request).map_err(AskError::NoAnswer)? {
        Response::Forbidden => Err(AskError::Forbidden(path.to_owned())),
        Response::Invalid { message } => Err(AskError::NoAnswer(io::Error::other(message))),
        Response::Failed { message } => Err(AskError::Failed(message)),
        response => Ok(response),
    }
}

fn exchange(mut stream: &BlockingStream, request: &Request) -> io::Result<Response> {
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    let mut text = serde_json::to_vec(request)?;
    text.push(b'\n');
    let written = stream.write_all(&text);
    let mut line = String::new();
    // Whoever hangs up before the request may have said why.
    match BufReader::new(stream).read_line(&mut line) {
        Ok(read) if read > 0 => Ok(serde_json::from_str(&line)?),
        read => written.and(read).and(Err(io::ErrorKind::UnexpectedEof.into())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_request_is_answered_and_garbage_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("run/control.sock");
        let socket = ControlSocket::bind(&path).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o660);
        let (asked, mut requests) = mpsc::channel::<Asked>(4);
        let server = tokio::spawn(async move { socket.serve(asked).await });
        let gateway = tokio::spawn(async move {
            while let Some((request, reply)) = requests.recv().await {
                assert_eq!(request, Request::Sessions);
                let _ = reply.send(Response::Sessions { sessions: Vec::new() });
            }
        });
        let own = path.clone();
        let told = tokio::task::spawn_blocking(move || {
            assert!(matches!(ControlSocket::bind(&own), Err(SocketError::InUse(_))));
            let garbage = raw(&own, b"{\"request\":\"explode\"}\n");
            let long = raw(&own, &vec![b'x'; REQUEST_MAX as usize + 10]);
            (ask(&own, &Request::Sessions), garbage, long)
        });
        let (answer, garbage, long) = told.await.unwrap();
        assert!(matches!(answer, Ok(Response::Sessions { sessions }) if sessions.is_empty()));
        assert!(garbage.contains("unknown variant"), "{garbage}");
        assert!(long.contains("invalid"), "{long}");
        server.abort();
        let _ = server.await;
        gateway.abort();
        assert!(!path.exists());
        assert!(matches!(ask(&path, &Request::Status), Err(AskError::NotRunning { .. })));
    }

    #[tokio::test]
    async fn the_group_can_pass_through_new_folders_only() {
        let folder = tempfile::tempdir().unwrap();
        fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o700)).unwrap();
        let before = rustix::process::umask(rustix::fs::Mode::RWXG | rustix::fs::Mode::RWXO);
        let bound = ControlSocket::bind(&folder.path().join("run/a/control.sock"));
        rustix::process::umask(before);
        let _socket = bound.unwrap();
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode(folder.path()), 0o700);
        assert_eq!(mode(&folder.path().join("run")), 0o750);
        assert_eq!(mode(&folder.path().join("run/a")), 0o750);
    }

    fn raw(path: &Path, bytes: &[u8]) -> String {
        let mut stream = BlockingStream::connect(path).unwrap();
        let _ = stream.write_all(bytes); // the far side may stop reading
        let mut line = String::new();
        BufReader::new(stream).read_line(&mut line).unwrap();
        line
    }
}
