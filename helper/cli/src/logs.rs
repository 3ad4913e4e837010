//! `logs`: what the helper has logged since it started, and what it logs from now on.

use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use clap::Args;
use culvert_protocol::{Client, Event, LogLevel, LogLine, Request};
use time::OffsetDateTime;

use crate::failure::Failure;
use crate::json::LogsLine;
use crate::{ask, dial, duration, output, show};

#[derive(Args, Debug)]
pub(crate) struct Logs {
    /// Go on with what is logged from now on, until interrupted.
    #[arg(short, long)]
    follow: bool,
    /// Only lines this serious, or more: error, warn, info, debug.
    #[arg(long, value_name = "LEVEL", default_value_t)]
    level: LogLevel,
    /// Only lines of this last time, such as 10m.
    #[arg(long, value_name = "TIME", value_parser = duration)]
    since: Option<Duration>,
    /// One JSON object a line.
    #[arg(long)]
    json: bool,
}

pub(crate) async fn logs(socket: &Path, arguments: Logs) -> Result<ExitCode, Failure> {
    let mut client = dial(socket).await?;
    let earliest = arguments.since.map(|since| OffsetDateTime::now_utc() - since);
    let print = |lines: &[LogLine]| -> Result<(), Failure> {
        for line in lines.iter().filter(|line| earliest.is_none_or(|earliest| line.at >= earliest)) {
            if arguments.json {
                output::json(&LogsLine::new(line.clone()))?;
            } else {
                output::text(&show(line))?;
            }
        }
        Ok(())
    };
    all(&mut client, arguments.level, arguments.follow, print).await?;
    if !arguments.follow {
        return Ok(ExitCode::SUCCESS);
    }
    let mut reader_gone = output::reader_gone();
    loop {
        let event = tokio::select! {
            event = client.next_event() => event?,
            _ = &mut reader_gone => return Ok(ExitCode::SUCCESS),
        };
        if let Event::Logs { lines, .. } = event {
            print(&lines)?;
        }
    }
}

/// Hands over every line that the helper has kept, a frame at a time.
pub(crate) async fn all(
    client: &mut Client,
    level: LogLevel,
    follow: bool,
    mut print: impl FnMut(&[LogLine]) -> Result<(), Failure>,
) -> Result<(), Failure> {
    let mut after = None;
    loop {
        match ask(client, Request::Logs { after, level, follow }).await? {
            Event::Logs { lines, more } => {
                print(&lines)?;
                after = lines.last().map(|line| line.seq);
                if !more || after.is_none() {
                    return Ok(());
                }
            }
            other => return Err(Failure::unexpected(&other)),
        }
    }
}

/// `09:12:03 WARN  failed code=E104`.
pub(crate) fn show(line: &LogLine) -> String {
    format!("{} {:<5} {}", show::clock(line.at), line.level.word().to_uppercase(), line.text)
}
