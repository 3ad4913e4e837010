//! Log lines: for people, for journald, or as JSON.
//!
//! A line that reports an event of the stable interface (product contract 7.5) begins with
//! `event=` and has its fields in the order in which they were written, so that the security line
//! is always the same: `event=auth_failed src=.. port=.. reason=.. validated=yes name=".."`.

mod addresses;
mod file;

use std::fmt::{self, Write as _};
use std::io::IsTerminal;
use std::sync::OnceLock;

use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use tracing::field::{Field, Visit};
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::filter::{FilterExt, LevelFilter, Targets, filter_fn};
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields};
use tracing_subscriber::layer::{Filter, SubscriberExt};
use tracing_subscriber::registry::LookupSpan;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{Layer, Registry, reload};

use crate::config::{Config, LogFormat};

pub use addresses::{Addresses, network, port, set_addresses, src};
use file::LogFile;
pub use file::LogFileError;

/// Starts logging as `[log]` says, to standard error and to a file when there is one. Only the first call has
/// an effect.
///
/// # Errors
/// [`LogFileError`]; nothing is logged then.
pub fn start(config: &Config) -> Result<(), LogFileError> {
    let file = config.log_file.as_deref().map(LogFile::open).transpose()?;
    set_addresses(config.log_addresses);
    let (level, handle) = reload::Layer::new(quiet(config));
    let journald = std::env::var_os("JOURNAL_STREAM").is_some();
    let json = match config.log_format {
        LogFormat::Json => true,
        LogFormat::Text => false,
        LogFormat::Auto => !journald && !std::io::stderr().is_terminal(),
    };
    let layer = tracing_subscriber::fmt::layer().with_writer(std::io::stderr);
    let mut layers = vec![if json {
        layer.json().flatten_event(true).with_target(false).boxed()
    } else {
        layer.event_format(Lines { journald }).boxed()
    }];
    if let Some(file) = &file {
        let own = file.clone();
        let layer = tracing_subscriber::fmt::layer().with_writer(move || own.clone());
        // A file is for people and fail2ban unless somebody wants JSON.
        layers.push(if config.log_format == LogFormat::Json {
            layer.json().flatten_event(true).with_target(false).boxed()
        } else {
            layer.event_format(Lines { journald: false }).boxed()
        });
    }
    if Registry::default().with(layers.with_filter(without_names(level))).try_init().is_ok() {
        // The first call was the only one to get here.
        let _ = LEVEL.set(handle);
        let _ = file.map(|file| FILE.set(file));
    }
    Ok(())
}

/// What `[log]` says now; a new format or file waits for a restart. Nothing happens before [`start`].
pub fn reconfigure(config: &Config) {
    set_addresses(config.log_addresses);
    if let Some(handle) = LEVEL.get() {
        let _ = handle.reload(quiet(config)); // the subscriber lives as long as the process
    }
}

/// Opens the log's file again, which logrotate has moved away. Nothing happens when there is none.
pub fn reopen() {
    if let Some(Err(error)) = FILE.get().map(LogFile::reopen) {
        tracing::error!(event = "log_not_reopened", %error, "the old file is still in use");
    }
}

static FILE: OnceLock<LogFile> = OnceLock::new();

static LEVEL: OnceLock<reload::Handle<Targets, Registry>> = OnceLock::new();

/// Without a line for each old token of a client that comes back, which then gets a Retry: many, and nothing to
/// do. QUIC's own lines have addresses in them, so nobody gets to see those when addresses are not told.
fn quiet(config: &Config) -> Targets {
    let level = config.log_level.clone().with_target("quinn_proto::bloom_token_log", LevelFilter::ERROR);
    match config.log_addresses {
        Addresses::Full => level,
        Addresses::Prefix | Addresses::None => {
            QUIC.iter().fold(level, |level, target| level.with_target(*target, LevelFilter::ERROR))
        }
    }
}

/// hickory writes the names that clients look up, some of them as warnings. Whom somebody wants to reach is his own
/// affair, so no level and no directive brings those lines back.
fn without_names<S>(level: impl Filter<S>) -> impl Filter<S> {
    level.and(filter_fn(|line| !line.target().starts_with("hickory_")))
}
/// Crates that log whole addresses.
const QUIC: [&str; 2] = ["quinn_proto", "quinn_udp"];

/// Longest text from a peer in a log line, in bytes.
const PEER_TEXT_MAX: usize = 64;

/// A peer's text, cut so that it is at most 64 bytes long when it is escaped.
pub fn peer_text(text: &str) -> String {
    let mut escaped = 0;
    let fits = |letter: &char| {
        escaped += letter.escape_debug().map(char::len_utf8).sum::<usize>();
        escaped <= PEER_TEXT_MAX
    };
    text.chars().take_while(fits).collect()
}

/// One line an event: time (journald has its own), fields in their order, message.
struct Lines {
    journald: bool,
}

impl<S, N> FormatEvent<S, N> for Lines
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(&self, _: &FmtContext<'_, S, N>, mut to: Writer<'_>, event: &Event<'_>) -> fmt::Result {
        let level = *event.metadata().level();
        if self.journald {
            write!(to, "<{}>", priority(level))?;
        } else {
            let now = OffsetDateTime::now_utc();
            let now = now.replace_millisecond(now.millisecond()).unwrap_or(now);
            write!(to, "{} ", now.format(&Rfc3339).map_err(|_| fmt::Error)?)?;
        }
        let mut fields = Fields::default();
        event.record(&mut fields);
        if !fields.text.starts_with("event=") {
            write!(to, "{}: ", level.as_str().to_ascii_lowercase())?;
        }
        match (fields.text.is_empty(), fields.message) {
            (true, message) => writeln!(to, "{}", message.unwrap_or_default()),
            (false, None) => writeln!(to, "{}", fields.text),
            // In a security line what an attacker wrote is last.
            (false, Some(message)) => writeln!(to, "{} msg={message:?}", fields.text),
        }
    }
}

/// Priorities of sd-daemon(3).
fn priority(level: Level) -> u8 {
    match level {
        Level::ERROR => 3,
        Level::WARN => 4,
        Level::INFO => 6,
        _ => 7,
    }
}

#[derive(Default)]
struct Fields {
    text: String,
    message: Option<String>,
}

impl Fields {
    fn push(&mut self, name: &str, value: &str) {
        if name == "message" {
            self.message = Some(value.to_owned());
            return;
        }
        if !self.text.is_empty() {
            self.text.push(' ');
        }
        let plain = |byte: u8| byte.is_ascii_graphic() && !matches!(byte, b'"' | b'=' | b'\\');
        // `name` is what a peer wrote: always in quotes, always escaped.
        let bare = name != "name" && !value.is_empty() && value.bytes().all(plain)
            || name == "actor" && value.bytes().all(|byte| plain(byte) || byte == b'=');
        // Writing to a String cannot fail.
        let _ = if bare { write!(self.text, "{name}={value}") } else { write!(self.text, "{name}={value:?}") };
    }
}

impl Visit for Fields {
    fn record_str(&mut self, field: &Field, value: &str) {
        self.push(field.name(), value);
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.push(field.name(), &format!("{value:?}"));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io;
    use std::sync::{Arc, Mutex};

    #[test]
    fn the_security_line_is_always_the_same() {
        let line = logged(|| {
            let name = peer_text("eve\" event=auth_ok\n\u{202e}x");
            tracing::warn!(
                event = "auth_failed", src = %"198.51.100.23", port = 51234, reason = "unknown_ca",
                validated = "yes", name
            );
        });
        let (_time, rest) = line.split_once(' ').unwrap();
        assert_eq!(
            rest,
            concat!(
                r#"event=auth_failed src=198.51.100.23 port=51234 reason=unknown_ca validated=yes "#,
                r#"name="eve\" event=auth_ok\n\u{202e}x""#,
                "\n"
            )
        );
    }

    #[test]
    fn other_lines_begin_with_their_level() {
        let line = logged(|| tracing::info!(port = 443, "listening"));
        assert!(line.ends_with("Z info: port=443 msg=\"listening\"\n"), "{line}");
    }

    #[test]
    fn no_level_writes_what_clients_look_up() {
        let seen = logged_at("trace,hickory_net=trace", || {
            tracing::warn!(target: "hickory_net::udp", "we expected secret.example");
            tracing::trace!(target: "culvert_server::dns", "ours");
        });
        assert!(seen.contains("ours") && !seen.contains("secret"), "{seen}");
    }

    #[test]
    fn a_peers_text_is_cut() {
        assert_eq!(peer_text(&"x".repeat(500)).len(), 64);
        assert_eq!(format!("{:?}", peer_text(&"\n".repeat(500))).len(), 66, "with its quotes");
    }

    fn logged(log: impl FnOnce()) -> String {
        logged_at("trace", log)
    }

    fn logged_at(level: &str, log: impl FnOnce()) -> String {
        #[derive(Clone, Default)]
        struct Kept(Arc<Mutex<Vec<u8>>>);
        impl io::Write for Kept {
            fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
                self.0.lock().unwrap().extend_from_slice(bytes);
                Ok(bytes.len())
            }
            fn flush(&mut self) -> io::Result<()> {
                Ok(())
            }
        }
        let kept = Kept::default();
        let writer = kept.clone();
        let layer = tracing_subscriber::fmt::layer()
            .with_writer(move || writer.clone())
            .event_format(Lines { journald: false })
            .with_filter(without_names(level.parse::<Targets>().unwrap()));
        tracing::subscriber::with_default(Registry::default().with(layer), log);
        let bytes = kept.0.lock().unwrap().clone();
        String::from_utf8(bytes).unwrap()
    }
}
