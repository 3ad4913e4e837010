//! The helper's Unix socket: who may talk, how much, and for how long.
//!
//! Anybody may open the socket (mode 0666): every user of the machine may see the state, and one who may not
//! change it gets a sentence instead of a riddle. At most [`CONNECTIONS`] at once, of which others than the owners
//! have at most [`FOR_OTHERS`]; every frame has a deadline, both ways; the accept loop never waits for a peer. A
//! watcher that reads slowly skips states, and nothing grows. A caller of another version of the protocol may ask
//! what all versions have in common. Not here: what a request does (`service`).

use std::fs::{self, DirBuilder, Permissions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use culvert_protocol::{
    Answer, Ask, Change, Event, FrameReader, LogLevel, Problem, Request, VERSION, code, decode, encode,
};
#[cfg(not(target_os = "macos"))]
use listenfd::ListenFd;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot, watch};
use tokio::time::{Instant, sleep_until, timeout};

use crate::caller::Caller;
use crate::logs::Logs;
use crate::owners::Owners;

#[cfg(target_os = "macos")]
mod launchd;

/// Connections served at once.
pub const CONNECTIONS: usize = 8;
/// Of which users that may only look have no more than these, so that they cannot lock the owners out.
pub const FOR_OTHERS: usize = 3;
/// A frame that has begun must be complete within this time, and one that is sent must be taken.
pub const FRAME_WITHIN: Duration = Duration::from_secs(5);
/// A caller that neither asks nor watches is hung up on after this time.
pub const IDLE_WITHIN: Duration = Duration::from_secs(60);

/// One request on its way to the service, which answers exactly once.
#[derive(Debug)]
pub struct Asked {
    /// What is asked.
    pub request: Request,
    /// Who asks.
    pub caller: Caller,
    /// Where the answer goes.
    pub answer: oneshot::Sender<Event>,
}

/// What every connection shares.
#[derive(Clone, Debug)]
pub struct Shared {
    /// Requests go here.
    pub asked: mpsc::Sender<Asked>,
    /// The newest state.
    pub changes: watch::Receiver<Change>,
    /// Who may change the state.
    pub owners: Arc<Owners>,
    /// What was logged.
    pub logs: Logs,
    /// A caller must show that it is still who it was ([`crate::caller::WANTS_NONCE`]).
    pub nonce: bool,
}

/// A socket that listens, and its file, which goes with it.
#[derive(Debug)]
pub struct Socket {
    listener: UnixListener,
    /// Ours to remove; `None` for a service manager's.
    path: Option<PathBuf>,
}

impl Socket {
    /// The socket that a service manager listens on for us (sd_listen_fds(3)), if there is one. Its file and its mode
    /// are the manager's, and callers that come while no helper runs wait in it.
    ///
    /// # Errors
    /// What the OS says, or that what was handed over is no Unix socket.
    pub fn inherited() -> io::Result<Option<Self>> {
        let Some(listener) = handed_over()? else { return Ok(None) };
        listener.set_nonblocking(true)?;
        Ok(Some(Self { listener: UnixListener::from_std(listener)?, path: None }))
    }

    /// Listens on `path`; makes its directory (0755) when there is none, and takes the place of a
    /// socket that nobody listens on any more.
    ///
    /// # Errors
    /// [`io::ErrorKind::AddrInUse`] when another helper listens there, else what the OS says.
    pub fn bind(path: &Path) -> io::Result<Self> {
        if let Some(dir) = path.parent().filter(|dir| !dir.as_os_str().is_empty() && !dir.exists()) {
            DirBuilder::new().recursive(true).mode(0o755).create(dir)?;
            fs::set_permissions(dir, Permissions::from_mode(0o755))?; // whatever the umask says
        }
        match fs::symlink_metadata(path) {
            Ok(meta) if meta.file_type().is_socket() => {
                if std::os::unix::net::UnixStream::connect(path).is_ok() {
                    let text = format!("another helper listens on {}", path.display());
                    return Err(io::Error::new(io::ErrorKind::AddrInUse, text));
                }
                fs::remove_file(path)?;
            }
            Ok(_) => {
                let text = format!("{} exists and is no socket", path.display());
                return Err(io::Error::new(io::ErrorKind::AlreadyExists, text));
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
        let listener = UnixListener::bind(path)?;
        fs::set_permissions(path, Permissions::from_mode(0o666))?;
        Ok(Self { listener, path: Some(path.into()) })
    }

    /// Accepts callers until the future is dropped; their tasks end with the service.
    pub async fn serve(&self, shared: Shared) {
        let places = Arc::new(Semaphore::new(CONNECTIONS));
        let others = Arc::new(Semaphore::new(FOR_OTHERS));
        loop {
            let stream = match self.listener.accept().await {
                Ok((stream, _)) => stream,
                Err(error) => {
                    // Out of descriptors, mostly; without the pause this would spin.
                    tracing::warn!(%error, "a caller could not be accepted");
                    tokio::time::sleep(Duration::from_millis(200)).await;
                    continue;
                }
            };
            match places.clone().try_acquire_owned() {
                Ok(place) => drop(tokio::spawn(converse(stream, shared.clone(), place, others.clone()))),
                Err(_) => turn_away(&stream, Problem::new(code::BUSY)),
            }
        }
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        if let Some(path) = &self.path {
            let _ = fs::remove_file(path);
        }
    }
}

/// sd_listen_fds(3).
#[cfg(not(target_os = "macos"))]
fn handed_over() -> io::Result<Option<std::os::unix::net::UnixListener>> {
    ListenFd::from_env().take_unix_listener(0)
}

#[cfg(target_os = "macos")]
use launchd::handed_over;

/// Says one sentence and hangs up, without waiting: a fresh socket's buffer takes it.
fn turn_away(stream: &UnixStream, problem: Problem) {
    if let Ok(frame) = encode(&Answer { id: None, event: Event::Error(problem) }) {
        let _ = stream.try_write(&frame);
    }
}

async fn converse(stream: UnixStream, shared: Shared, place: OwnedSemaphorePermit, others: Arc<Semaphore>) {
    let caller = match Caller::of(&stream) {
        Ok(caller) => caller,
        Err(error) => return tracing::warn!(%error, "a caller could not be told apart"),
    };
    let is_owner = shared.owners.include(caller.uid).await;
    let other = if is_owner { None } else { others.try_acquire_owned().ok() };
    if !is_owner && other.is_none() {
        return turn_away(&stream, Problem::new(code::BUSY));
    }
    let mut conversation = Conversation {
        stream,
        reader: FrameReader::default(),
        caller,
        is_owner,
        shared,
        same_version: false,
        watching: false,
        following: None,
    };
    if let Err(End::Say(problem)) = conversation.run().await {
        tracing::info!(uid = caller.uid, %problem, "hung up on a caller");
        let _ = conversation.tell(None, Event::Error(problem)).await;
    }
    drop((place, other));
}

/// Why a conversation ended.
enum End {
    /// The peer hung up, or does not read.
    Silent,
    /// The peer broke the rules, and is told which.
    Say(Problem),
}

struct Conversation {
    stream: UnixStream,
    reader: FrameReader,
    caller: Caller,
    is_owner: bool,
    shared: Shared,
    /// The caller speaks our version of the protocol.
    same_version: bool,
    watching: bool,
    following: Option<Following>,
}

/// A caller that is told what is logged.
struct Following {
    level: LogLevel,
    /// What it has been told.
    after: u64,
    newest: watch::Receiver<u64>,
}

impl Conversation {
    async fn run(&mut self) -> Result<(), End> {
        self.greet().await?;
        loop {
            let Ask { id, request } = self.next().await?;
            if let Err(problem) = self.may(&request) {
                self.tell(Some(id), Event::Error(problem)).await?;
                continue;
            }
            match request {
                Request::Hello { .. } => return Err(rule("Hello comes first, and only once")),
                Request::Version => self.tell(Some(id), version()).await?,
                Request::Logs { after, level, follow } => self.tell_logs(id, after.unwrap_or(0), level, follow).await?,
                Request::Watch => {
                    // Marks the newest state as seen first: what changes from here on is told.
                    self.shared.changes.mark_unchanged();
                    self.watching = true;
                    self.ask(id, Request::Status).await?;
                }
                other => self.ask(id, other).await?,
            }
        }
    }

    async fn greet(&mut self) -> Result<(), End> {
        let wanted = if self.shared.nonce { Some(self.challenge().await?) } else { None };
        match self.next().await? {
            Ask { request: Request::Hello { nonce, .. }, .. } if wanted.is_some() && nonce != wanted => {
                Err(rule("Hello brings back the nonce that was said"))
            }
            Ask { id, request: Request::Hello { version, client, .. } } => {
                tracing::debug!(uid = self.caller.uid, version, client = %client.escape_debug(), "a caller");
                self.same_version = version == VERSION;
                let helper = env!("CARGO_PKG_VERSION").into();
                self.tell(Some(id), Event::Hello { version: VERSION, helper }).await
            }
            _ => Err(rule("Hello comes first, and only once")),
        }
    }

    /// Says a number that nobody could know when the caller was asked about. What came before it is not read: whoever
    /// sent that may have handed the socket on since.
    async fn challenge(&mut self) -> Result<String, End> {
        let mut early = [0; 4096];
        while self.stream.try_read(&mut early).is_ok_and(|count| count > 0) {}
        let mut number = [0; 32];
        getrandom::fill(&mut number).map_err(|_| End::Silent)?;
        let nonce = data_encoding::HEXLOWER.encode(&number);
        self.tell(None, Event::Nonce { nonce: nonce.clone() }).await?;
        Ok(nonce)
    }

    /// Whether this caller may ask this.
    fn may(&self, request: &Request) -> Result<(), Problem> {
        if !self.same_version && !request.is_core() {
            let sentence = format!("The helper speaks version {VERSION} of the protocol, the caller another one");
            return Err(Problem::new(code::HELPER_VERSION).because(sentence));
        }
        if !self.is_owner && !request.only_looks() {
            tracing::info!(uid = self.caller.uid, "refused a request");
            let sentence = format!("User {} may not control the VPN", self.caller.uid);
            return Err(Problem::new(code::FORBIDDEN).because(sentence));
        }
        Ok(())
    }

    async fn tell_logs(&mut self, id: u32, after: u64, level: LogLevel, follow: bool) -> Result<(), End> {
        let newest = self.shared.logs.newest();
        let seen = *newest.borrow();
        let (lines, more) = self.shared.logs.lines(after, level);
        self.following = (follow && !more).then_some(Following { level, after: seen, newest });
        self.tell(Some(id), Event::Logs { lines, more }).await
    }

    /// Tells a follower what is new. One that reads slowly misses what is no longer kept.
    async fn tell_news(&mut self) -> Result<(), End> {
        while let Some(following) = &mut self.following {
            let seen = *following.newest.borrow_and_update();
            let (lines, more) = self.shared.logs.lines(following.after, following.level);
            following.after = if more { lines.last().map_or(seen, |line| line.seq) } else { seen };
            if !lines.is_empty() {
                self.tell(None, Event::Logs { lines, more }).await?;
            }
            if !more {
                break;
            }
        }
        Ok(())
    }

    /// Hands a request to the service and its answer to the caller.
    async fn ask(&mut self, id: u32, request: Request) -> Result<(), End> {
        let (answer, answered) = oneshot::channel();
        let asked = Asked { request, caller: self.caller, answer };
        self.shared.asked.send(asked).await.map_err(|_| End::Silent)?;
        let event = answered.await.map_err(|_| End::Silent)?;
        self.tell(Some(id), event).await
    }

    /// The caller's next request; tells a watcher what changes meanwhile.
    async fn next(&mut self) -> Result<Ask, End> {
        let mut chunk = [0; 4096];
        let mut due = Instant::now() + if self.reader.is_partial() { FRAME_WITHIN } else { IDLE_WITHIN };
        loop {
            match self.reader.next_frame() {
                Ok(Some(_)) if !self.caller.is_still(&self.stream) => return Err(End::Silent),
                Ok(Some(frame)) => return decode(&frame).map_err(|error| rule(&error.to_string())),
                Ok(None) => {}
                Err(error) => return Err(rule(&error.to_string())),
            }
            let may_idle = (self.watching || self.following.is_some()) && !self.reader.is_partial();
            tokio::select! {
                read = self.stream.read(&mut chunk) => match read {
                    Ok(0) | Err(_) => return Err(End::Silent),
                    Ok(count) => {
                        if !self.reader.is_partial() {
                            due = Instant::now() + FRAME_WITHIN;
                        }
                        self.reader.push(&chunk[..count]);
                    }
                },
                changed = self.shared.changes.changed(), if self.watching => {
                    changed.map_err(|_| End::Silent)?;
                    let change = self.shared.changes.borrow_and_update().clone();
                    self.tell(None, Event::Change(change)).await?;
                }
                () = logged(self.following.as_mut()) => self.tell_news().await?,
                () = sleep_until(due), if !may_idle => return Err(rule("A whole request was not sent in time")),
            }
        }
    }

    async fn tell(&mut self, id: Option<u32>, event: Event) -> Result<(), End> {
        let frame = encode(&Answer { id, event }).map_err(|_| End::Silent)?;
        match timeout(FRAME_WITHIN, self.stream.write_all(&frame)).await {
            Ok(Ok(())) => Ok(()),
            _ => Err(End::Silent),
        }
    }
}

/// Waits for a new line; for ever when nobody follows.
async fn logged(following: Option<&mut Following>) {
    let Some(following) = following else { return std::future::pending().await };
    if following.newest.changed().await.is_err() {
        std::future::pending::<()>().await;
    }
}

fn version() -> Event {
    Event::Version { version: VERSION, helper: env!("CARGO_PKG_VERSION").into() }
}

fn rule(sentence: &str) -> End {
    End::Say(Problem::new(code::BAD_REQUEST).because(format!("The request cannot be served: {sentence}")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Write};

    #[tokio::test]
    async fn a_caller_that_does_not_bring_the_nonce_back_is_hung_up_on() {
        let bench = Bench::new();
        for nonce in [None, Some("00".to_owned())] {
            let mut stream = bench.connect();
            assert!(matches!(bench.hear(&mut stream).await, Event::Nonce { .. }));
            stream.write_all(&hello(nonce)).unwrap();
            assert!(
                matches!(bench.hear(&mut stream).await, Event::Error(problem) if problem.code == code::BAD_REQUEST)
            );
        }
    }

    #[tokio::test]
    async fn a_nonce_opens_one_conversation_and_no_other() {
        let bench = Bench::new();
        let (mut first, mut second) = (bench.connect(), bench.connect());
        let Event::Nonce { nonce } = bench.hear(&mut first).await else { panic!() };
        let Event::Nonce { nonce: other } = bench.hear(&mut second).await else { panic!() };
        assert!(nonce != other && nonce.len() == 64, "{nonce} {other}");
        second.write_all(&hello(Some(nonce.clone()))).unwrap();
        assert!(matches!(bench.hear(&mut second).await, Event::Error(_)));
        first.write_all(&hello(Some(nonce))).unwrap();
        assert!(matches!(bench.hear(&mut first).await, Event::Hello { .. }));
    }

    fn hello(nonce: Option<String>) -> Vec<u8> {
        let request = Request::Hello { version: VERSION, client: "test".into(), nonce };
        encode(&Ask { id: 1, request }).unwrap()
    }

    struct Bench {
        dir: tempfile::TempDir,
        _requests: mpsc::Receiver<Asked>,
    }

    impl Bench {
        fn new() -> Self {
            let dir = tempfile::tempdir().unwrap();
            let socket = Socket::bind(&dir.path().join("s")).unwrap();
            let (asked, requests) = mpsc::channel(1);
            let state = culvert_protocol::State::Disconnected;
            let change = Change { at: culvert_protocol::Timestamp::UNIX_EPOCH, profile: None, state };
            let (_, changes) = watch::channel(change);
            let owners = Owners { uids: vec![rustix::process::geteuid().as_raw()], ..Owners::default() };
            let shared = Shared { asked, changes, owners: owners.into(), logs: Logs::default(), nonce: true };
            tokio::spawn(async move { socket.serve(shared).await });
            Self { dir, _requests: requests }
        }

        fn connect(&self) -> std::os::unix::net::UnixStream {
            let stream = std::os::unix::net::UnixStream::connect(self.dir.path().join("s")).unwrap();
            stream.set_nonblocking(true).unwrap();
            stream
        }

        async fn hear(&self, stream: &mut std::os::unix::net::UnixStream) -> Event {
            let (mut reader, mut chunk) = (FrameReader::default(), [0; 4096]);
            for _ in 0..500 {
                if let Some(frame) = reader.next_frame().unwrap() {
                    return decode::<Answer>(&frame).unwrap().event;
                }
                match stream.read(&mut chunk) {
                    Ok(count) if count > 0 => reader.push(&chunk[..count]),
                    _ => tokio::time::sleep(Duration::from_millis(10)).await,
                }
            }
            panic!("nothing is said");
        }
    }
}
