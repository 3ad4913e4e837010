//! The file of the bans, `bans.json` in the state directory: written beside the task, and always whole.

use std::fs;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use tokio::sync::oneshot;
use tokio::task::JoinHandle;

use crate::bans::{Kept, Unreadable};
use crate::control_socket::Response;
use crate::files;

/// Its name in the state directory.
pub const NAME: &str = "bans.json";
/// More than all bans take, each with the longest reason.
const MOST_BYTES: u64 = 4 << 20;

/// Why the file says nothing.
#[derive(Debug, thiserror::Error)]
pub enum BansFileError {
    /// What is in it.
    #[error(transparent)]
    Unreadable(#[from] Unreadable),
    /// It cannot be read.
    #[error("{0}")]
    Io(#[from] io::Error),
}

/// The bans that were kept in a state directory; `None` when none ever were.
///
/// # Errors
/// [`BansFileError`].
pub fn read(state: &Path) -> Result<Option<Kept>, BansFileError> {
    let file = match fs::File::open(state.join(NAME)) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error.into()),
    };
    let mut text = Vec::new();
    file.take(MOST_BYTES).read_to_end(&mut text)?;
    Ok(Some(Kept::parse(&text)?))
}

/// Whoever waits until a change is on the disk, and what they are told then.
type Waiting = (oneshot::Sender<Response>, Response);

/// Writes one text after the other. A text that comes while another is written waits, and replaces one
/// that waits: only the latest counts.
#[derive(Debug)]
pub(super) struct Keeper {
    path: PathBuf,
    writing: Option<(JoinHandle<io::Result<()>>, Vec<Waiting>)>,
    next: Option<(Vec<u8>, Vec<Waiting>)>,
    failing: bool,
}

impl Keeper {
    pub(super) fn new(state: &Path) -> Self {
        Self { path: state.join(NAME), writing: None, next: None, failing: false }
    }

    /// What earlier runs kept. A file that cannot be read is put aside, so that nothing in it is lost.
    pub(super) fn read(&self) -> Option<Kept> {
        match read(self.path.parent()?) {
            Ok(kept) => kept,
            Err(error) => {
                let aside = self.path.with_extension("json.unreadable");
                let moved = fs::rename(&self.path, &aside).is_ok();
                let aside = if moved { aside.display().to_string() } else { "nowhere".into() };
                tracing::error!(event = "bans_unreadable", path = %self.path.display(), %error, aside, "nobody is banned");
                None
            }
        }
    }

    /// Writes this now, or after what is being written.
    pub(super) fn write(&mut self, text: Vec<u8>, waiting: Option<Waiting>) {
        let mut all = self.next.take().map_or_else(Vec::new, |(_, waiting)| waiting);
        all.extend(waiting);
        self.next = Some((text, all));
        self.begin();
    }

    fn begin(&mut self) {
        if self.writing.is_none()
            && let Some((text, waiting)) = self.next.take()
        {
            let path = self.path.clone();
            let write = tokio::task::spawn_blocking(move || files::write_private(&path, &text));
            self.writing = Some((write, waiting));
        }
    }

    /// Completes when a text is on the disk, or could not be written; never when there is none. Cancel-safe.
    pub(super) async fn written(&mut self) {
        let Some((writing, _)) = &mut self.writing else { return std::future::pending().await };
        let outcome = writing.await.unwrap_or_else(|error| Err(io::Error::other(error)));
        let waiting = self.writing.take().map_or_else(Vec::new, |(_, waiting)| waiting);
        if let Err(error) = &outcome
            && !self.failing
        {
            tracing::error!(event = "bans_not_kept", path = %self.path.display(), %error, "they end with this process");
        }
        self.failing = outcome.is_err();
        for (reply, done) in waiting {
            let told = match &outcome {
                Ok(()) => done,
                Err(error) => Response::Failed {
                    message: format!(
                        "it is in force, but only until a restart: cannot write {}: {error}",
                        self.path.display()
                    ),
                },
            };
            let _ = reply.send(told); // whoever asked may have gone
        }
        self.begin();
    }

    /// Waits until everything is on the disk.
    pub(super) async fn finish(&mut self) {
        while self.writing.is_some() {
            self.written().await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bans::{Bans, Limits};
    use std::time::{Duration, Instant};
    use time::OffsetDateTime;

    #[tokio::test]
    async fn the_latest_text_is_on_the_disk_when_whoever_asked_is_told() {
        let folder = tempfile::tempdir().unwrap();
        let mut keeper = Keeper::new(folder.path());
        assert_eq!(keeper.read(), None);
        let mut answers = Vec::new();
        for n in 0..5 {
            let (reply, answer) = oneshot::channel();
            keeper.write(text(n), Some((reply, Response::Closed { sessions: n as usize })));
            answers.push(answer);
        }
        keeper.finish().await;
        assert_eq!(keeper.read().unwrap().bans.len(), 4);
        for (n, mut answer) in answers.into_iter().enumerate() {
            assert!(matches!(answer.try_recv(), Ok(Response::Closed { sessions }) if sessions == n));
        }
    }

    #[tokio::test]
    async fn a_torn_file_is_put_aside_and_the_next_one_is_whole() {
        let folder = tempfile::tempdir().unwrap();
        let mut keeper = Keeper::new(folder.path());
        let torn = text(4)[..100].to_vec();
        fs::write(folder.path().join(NAME), &torn).unwrap();
        assert_eq!(keeper.read(), None);
        assert_eq!(fs::read(folder.path().join("bans.json.unreadable")).unwrap(), torn);
        keeper.write(text(2), None);
        keeper.finish().await;
        assert_eq!(keeper.read().unwrap().bans.len(), 2);
    }

    #[tokio::test]
    async fn whoever_waits_is_told_when_it_cannot_be_kept() {
        let folder = tempfile::tempdir().unwrap();
        let mut keeper = Keeper::new(&folder.path().join("gone"));
        let (reply, answer) = oneshot::channel();
        keeper.write(text(1), Some((reply, Response::Closed { sessions: 0 })));
        keeper.finish().await;
        assert!(matches!(answer.await, Ok(Response::Failed { message }) if message.contains("only until a restart")));
    }

    /// A file with so many bans.
    fn text(bans: u8) -> Vec<u8> {
        let second = Duration::from_secs(1);
        let mut kept = Bans::new(Limits { failures: 1, window: second, duration: second, exempt: Vec::new() });
        for n in 0..bans {
            kept.add(format!("203.0.113.{n}/32").parse().unwrap(), None, "", Instant::now()).unwrap();
        }
        kept.keep(Instant::now(), OffsetDateTime::now_utc()).text()
    }
}
