//! Writing to stdout and stderr without panicking when the reader has gone.

use std::io::{self, Write};

use serde::Serialize;

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
