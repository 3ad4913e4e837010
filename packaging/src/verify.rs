//! Opens a finished package with a reader that shares no code with the writer: `verify.py`, of Python's own library.

use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, bail};

const READER: &str = include_str!("../macos/verify.py");

/// What a package must be.
#[derive(Debug)]
pub struct Expected<'a> {
    /// The version that every part has to tell.
    pub version: &'a str,
}

/// The reader's summary.
///
/// # Errors
/// One line for each thing that is wrong; a missing python3.
pub fn verify(package: &Path, expected: &Expected<'_>) -> anyhow::Result<String> {
    // From stdin: the reader is found wherever this program runs.
    let mut reader = Command::new("python3")
        .args(["-I", "-", "--version", expected.version])
        .arg(package)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .context("python3, which reads the package. Install it")?;
    reader.stdin.take().context("the reader's input")?.write_all(READER.as_bytes())?;
    let result = reader.wait_with_output()?;
    let (said, wrong) = (String::from_utf8_lossy(&result.stdout), String::from_utf8_lossy(&result.stderr));
    if !result.status.success() {
        bail!("{} is not as it should be:\n{}", package.display(), format!("{said}{wrong}").trim_end());
    }
    Ok(said.trim_end().to_owned())
}
