//! Writing to stdout and stderr without panicking when the reader has gone.

use std::io::{self, BufRead, Write};

use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use serde::Serialize;
use tokio::sync::oneshot;

use crate::failure::Failure;

/// Data for a person, on stdout.
pub(crate) fn text(text: &str) -> io::Result<()> {
    let mut out = io::stdout().lock();
    writeln!(out, "{}", text.trim_end())?;
    out.flush()
}

/// Data for a program, on stdout: one object on one line.
pub(crate) fn json<T: Serialize>(value: &T) -> io::Result<()> {
    text(&serde_json::to_string(value).map_err(io::Error::other)?)
}

/// A message for a person, on stderr. If that is gone too, nobody is left to tell.
pub(crate) fn message(text: &str) {
    let _ = writeln!(io::stderr(), "{text}");
}

/// Asks on a terminal, and goes on only after a yes; elsewhere somebody has said so already.
pub(crate) fn consent(question: &str, declined: &str) -> Result<(), Failure> {
    message(&format!("{question} [y/N]"));
    let mut answer = String::new();
    io::stdin().lock().read_line(&mut answer).map_err(Failure::Output)?;
    match answer.trim() {
        "y" | "Y" | "yes" => Ok(()),
        _ => Err(Failure::Usage(declined.into())),
    }
}

/// Completes once nobody can read stdout any more (`culvert watch | head -1`), also while there is
/// nothing to write. Never for a file or a terminal, which stay.
pub(crate) fn reader_gone() -> oneshot::Receiver<()> {
    let (gone, told) = oneshot::channel();
    // A thread, because an executor's registration of a borrowed descriptor is unsafe; it sleeps in
    // poll(2), which reports errors unasked, and ends with the process.
    std::thread::spawn(move || {
        let stdout = io::stdout();
        while poll(&mut [PollFd::new(&stdout, PollFlags::empty())], None).is_err_and(|error| error == Errno::INTR) {}
        let _ = gone.send(()); // nobody waits any more
    });
    told
}
