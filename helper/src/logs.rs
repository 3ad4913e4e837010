//! The last lines of the log, in memory, for `culvert logs` and reports: what a service manager keeps is not for
//! every user to read, and not the same everywhere. Bounded; the oldest lines go first.

use std::collections::VecDeque;
use std::fmt::{self, Write};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use culvert_protocol::{LogLevel, LogLine, Timestamp};
use tokio::sync::watch;
use tracing::field::{Field, Visit};
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::Layer;
use tracing_subscriber::layer::Context;

/// Bytes of text that are kept.
const KEPT_BYTES: usize = 256 * 1024;
/// Bytes of one line; the rest is cut.
const LINE_BYTES: usize = 1024;
/// Bytes of text that go into one answer, which is a frame of 64 KiB with its JSON.
const ANSWER_BYTES: usize = 16 * 1024;
/// What a line takes beside its text.
const OVERHEAD_BYTES: usize = 100;

/// The log of this run. Clones share it.
#[derive(Clone, Debug)]
pub struct Logs {
    kept: Arc<Mutex<Kept>>,
    /// The newest line's number.
    newest: watch::Sender<u64>,
}

#[derive(Debug, Default)]
struct Kept {
    lines: VecDeque<LogLine>,
    bytes: usize,
}

impl Default for Logs {
    fn default() -> Self {
        Self { kept: Arc::default(), newest: watch::Sender::new(0) }
    }
}

impl Logs {
    /// Lines after number `after` that are at least as serious as `level`, oldest first; true when there are more
    /// than fit in one answer.
    pub fn lines(&self, after: u64, level: LogLevel) -> (Vec<LogLine>, bool) {
        let (mut found, mut bytes) = (Vec::new(), 0);
        let kept = self.kept();
        for line in kept.lines.iter().filter(|line| line.seq > after && line.level <= level) {
            bytes += size(line);
            if bytes > ANSWER_BYTES {
                return (found, true);
            }
            found.push(line.clone());
        }
        (found, false)
    }

    /// The newest line's number, for those who wait for more.
    pub fn newest(&self) -> watch::Receiver<u64> {
        self.newest.subscribe()
    }

    fn push(&self, level: LogLevel, target: &str, text: String) {
        let mut kept = self.kept();
        let seq = *self.newest.borrow() + 1;
        let line = LogLine { seq, at: Timestamp::now_utc(), level, target: target.into(), text };
        kept.bytes += size(&line);
        kept.lines.push_back(line);
        while kept.bytes > KEPT_BYTES {
            let Some(oldest) = kept.lines.pop_front() else { break };
            kept.bytes -= size(&oldest);
        }
        drop(kept);
        self.newest.send_replace(seq);
    }

    /// Nothing in here can panic half-way, so what another thread left is whole.
    fn kept(&self) -> MutexGuard<'_, Kept> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn size(line: &LogLine) -> usize {
    line.text.len() + line.target.len() + OVERHEAD_BYTES
}

impl<S: Subscriber> Layer<S> for Logs {
    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        let metadata = event.metadata();
        let level = match *metadata.level() {
            Level::ERROR => LogLevel::Error,
            Level::WARN => LogLevel::Warn,
            Level::INFO => LogLevel::Info,
            Level::DEBUG => LogLevel::Debug,
            Level::TRACE => return,
        };
        let mut text = Text(String::new());
        event.record(&mut text);
        self.push(level, metadata.target(), text.0);
    }
}

/// `message key=value key=value`, on one line.
struct Text(String);

impl Text {
    fn add(&mut self, field: &Field, value: fmt::Arguments<'_>) {
        let mut part = String::new();
        let _ = match field.name() {
            "message" => write!(part, "{value}"),
            name => write!(part, "{name}={value}"),
        };
        if !self.0.is_empty() {
            self.0.push(' ');
        }
        // A peer's words may be among them.
        for c in part.chars() {
            if self.0.len() >= LINE_BYTES {
                return;
            }
            self.0.push(if c.is_control() { ' ' } else { c });
        }
    }
}

impl Visit for Text {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.add(field, format_args!("{value:?}"));
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.add(field, format_args!("{value}"));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tracing_subscriber::layer::SubscriberExt;

    #[test]
    fn a_line_has_its_words_its_fields_and_its_number() {
        let logs = Logs::default();
        tracing::subscriber::with_default(tracing_subscriber::registry().with(logs.clone()), || {
            tracing::warn!(code = %"E104", attempt = 3, name = "a\nb", "failed");
            tracing::debug!("a step");
        });
        let (lines, more) = logs.lines(0, LogLevel::Debug);
        let shown: Vec<_> = lines.iter().map(|line| (line.seq, line.level, line.text.as_str())).collect();
        let failed = "failed code=E104 attempt=3 name=a b";
        assert_eq!(shown, [(1, LogLevel::Warn, failed), (2, LogLevel::Debug, "a step")]);
        assert!(!more);
        assert_eq!(logs.lines(0, LogLevel::Info).0.len(), 1);
        assert_eq!(logs.lines(1, LogLevel::Debug).0.len(), 1);
        assert_eq!(*logs.newest().borrow(), 2);
    }

    #[test]
    fn a_log_that_never_rests_stays_small_and_is_read_in_pieces() {
        let logs = Logs::default();
        for number in 0..10_000 {
            logs.push(LogLevel::Info, "test", format!("line {number}"));
        }
        assert!(logs.kept().bytes <= KEPT_BYTES);
        let (mut after, mut count) = (0, 0);
        loop {
            let (lines, more) = logs.lines(after, LogLevel::Debug);
            assert!(lines.iter().map(size).sum::<usize>() <= ANSWER_BYTES);
            count += lines.len();
            after = lines.last().unwrap().seq;
            if !more {
                break;
            }
        }
        assert_eq!(after, 10_000);
        assert!((1000..10_000).contains(&count), "{count}");
    }

    #[test]
    fn a_very_long_line_is_cut() {
        let logs = Logs::default();
        tracing::subscriber::with_default(tracing_subscriber::registry().with(logs.clone()), || {
            tracing::info!("{}", "é".repeat(10_000));
        });
        assert!(logs.lines(0, LogLevel::Info).0[0].text.len() <= LINE_BYTES + 4);
    }
}
