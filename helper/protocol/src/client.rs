//! The client side of the helper's socket, for the CLI and the app.
//!
//! No task and no lock: whoever owns the [`Client`] reads. Events that arrive while an answer is
//! awaited are held, newest first to survive, so a slow owner sees the latest state and nothing grows.

use std::collections::VecDeque;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::time::timeout;

use crate::frame::{FrameError, FrameReader, decode, encode};
use crate::message::{Answer, Ask, Event, Request};
use crate::problem::{Problem, code};

/// Unasked events held while an answer is awaited; older ones are dropped beyond that.
pub const EVENTS_HELD: usize = 64;
/// How long the helper may take to greet.
const HELLO_WITHIN: Duration = Duration::from_secs(5);

/// Why the helper could not be asked.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// Nobody listens on the socket.
    #[error("no helper at {}: {error}", path.display())]
    Unreachable {
        /// The socket.
        path: PathBuf,
        /// What the OS says.
        error: io::Error,
    },
    /// The helper hung up or fell silent.
    #[error("the helper hung up: {0}")]
    Lost(#[from] io::Error),
    /// The helper sent something that this version does not understand.
    #[error("the helper's answer cannot be read: {0}")]
    Frame(#[from] FrameError),
    /// The helper speaks another version.
    #[error("the helper {helper} speaks version {theirs}, this program version {}", crate::VERSION)]
    Version {
        /// The helper's version of the protocol.
        theirs: u32,
        /// The helper's program version.
        helper: String,
    },
    /// The helper refused or failed.
    #[error("{0}")]
    Refused(Problem),
}

impl ClientError {
    /// The same in the catalogue's terms.
    pub fn problem(&self) -> Problem {
        match self {
            Self::Unreachable { path, error } if error.kind() == io::ErrorKind::PermissionDenied => {
                Problem::new(code::FORBIDDEN).because(format!("Your user may not open {}", path.display()))
            }
            Self::Unreachable { path, .. } => Problem::new(code::HELPER)
                .because(format!("The background helper does not answer at {}", path.display())),
            Self::Lost(error) => Problem::new(code::HELPER).because(format!("The helper hung up ({error})")),
            Self::Frame(_) | Self::Version { .. } => Problem::new(code::HELPER_VERSION).because(self.to_string()),
            Self::Refused(problem) => problem.clone(),
        }
    }
}

/// A conversation with the helper.
#[derive(Debug)]
pub struct Client {
    stream: UnixStream,
    reader: FrameReader,
    held: VecDeque<Event>,
    next_id: u32,
    helper: String,
    version: u32,
}

impl Client {
    /// Connects and greets; `name` is this program and its version, for the helper's log.
    ///
    /// # Errors
    /// [`ClientError::Unreachable`] when nobody listens, [`ClientError::Refused`] when the helper
    /// does not serve this user, [`ClientError::Version`] when the versions do not fit.
    pub async fn connect(path: &Path, name: &str) -> Result<Self, ClientError> {
        let client = Self::open(path, name).await?;
        if client.version == crate::VERSION {
            Ok(client)
        } else {
            Err(ClientError::Version { theirs: client.version, helper: client.helper })
        }
    }

    /// The same with a helper of any version, which can then be asked for [`Request::is_core`].
    ///
    /// # Errors
    /// As [`Self::connect`], less those of the version.
    pub async fn open(path: &Path, name: &str) -> Result<Self, ClientError> {
        let unreachable = |error| ClientError::Unreachable { path: path.into(), error };
        let stream = UnixStream::connect(path).await.map_err(unreachable)?;
        let mut client = Self {
            stream,
            reader: FrameReader::default(),
            held: VecDeque::new(),
            next_id: 1,
            helper: String::new(),
            version: 0,
        };
        let greet = async {
            let nonce = if cfg!(target_os = "macos") { Some(client.nonce().await?) } else { None };
            client.request(Request::Hello { version: crate::VERSION, client: name.into(), nonce }).await
        };
        let silent = |_| ClientError::Lost(io::ErrorKind::TimedOut.into());
        match timeout(HELLO_WITHIN, greet).await.map_err(silent)?? {
            Event::Hello { version, helper } => (client.version, client.helper) = (version, helper),
            other => {
                return Err(FrameError::Malformed(format!("{other:?} instead of hello")).into());
            }
        }
        Ok(client)
    }

    /// The helper's program version.
    pub fn helper(&self) -> &str {
        &self.helper
    }

    /// The helper's version of the protocol.
    pub fn version(&self) -> u32 {
        self.version
    }

    /// Asks, and waits for the answer. Wrap it in a timeout where the helper may take long.
    ///
    /// # Errors
    /// [`ClientError::Refused`] when the answer is an error, else why there is none.
    pub async fn request(&mut self, request: Request) -> Result<Event, ClientError> {
        let id = self.next_id;
        self.next_id += 1;
        // A helper that refuses a caller says why and hangs up; reading its words comes first.
        let written = self.stream.write_all(&encode(&Ask { id, request })?).await;
        loop {
            let answer = match (self.read().await, &written) {
                (Err(ClientError::Lost(_)), Err(error)) => {
                    return Err(io::Error::from(error.kind()).into());
                }
                (answer, _) => answer?,
            };
            match answer {
                Answer { event: Event::Error(problem), .. } => return Err(ClientError::Refused(problem)),
                Answer { id: Some(answered), event } if answered == id => return Ok(event),
                Answer { id: None, event } => self.hold(event),
                Answer { id: Some(_), .. } => {} // the answer to a request that its caller gave up
            }
        }
    }

    /// The next unasked event; after [`Request::Watch`] each change of state. Cancel-safe.
    ///
    /// # Errors
    /// [`ClientError::Lost`] when the helper is gone.
    pub async fn next_event(&mut self) -> Result<Event, ClientError> {
        loop {
            if let Some(event) = self.held.pop_front() {
                return Ok(event);
            }
            let answer = self.read().await?;
            if answer.id.is_none() {
                self.hold(answer.event);
            }
        }
    }

    /// Forgets unasked events that came before the last answer: they tell of an older state.
    pub fn forget_events(&mut self) {
        self.held.clear();
    }

    /// What the helper says first where it wants to be sure who it talks to.
    async fn nonce(&mut self) -> Result<String, ClientError> {
        match self.read().await?.event {
            Event::Nonce { nonce } => Ok(nonce),
            Event::Error(problem) => Err(ClientError::Refused(problem)),
            other => Err(FrameError::Malformed(format!("{other:?} instead of a nonce")).into()),
        }
    }

    fn hold(&mut self, event: Event) {
        if self.held.len() == EVENTS_HELD {
            self.held.pop_front();
        }
        self.held.push_back(event);
    }

    /// Cancel-safe: bytes of an unfinished frame stay in the reader.
    async fn read(&mut self) -> Result<Answer, ClientError> {
        let mut chunk = [0; 4096];
        loop {
            if let Some(frame) = self.reader.next_frame()? {
                return Ok(decode(&frame)?);
            }
            match self.stream.read(&mut chunk).await? {
                0 => return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into()),
                n => self.reader.push(&chunk[..n]),
            }
        }
    }
}
