//! resolvconf(8), Debian's or openresolv's: keeps `/etc/resolv.conf` from what each interface contributes.

use std::io::{self, Write};
use std::path::Path;
use std::process::{Command, Stdio};

use super::Servers;

const PROGRAM: &str = "resolvconf";
/// Debian's resolvconf knows an interface's rank by its name's beginning, and has the highest for `tun`.
const RANKS: &str = "/etc/resolvconf/interface-order";

/// True when the file is kept by resolvconf, and the program is there.
pub(super) fn keeps(file: &Path, text: &[u8]) -> bool {
    let by_link = file.canonicalize().is_ok_and(|real| real.components().any(|part| part.as_os_str() == PROGRAM));
    let text = String::from_utf8_lossy(text);
    let by_header = text.lines().take_while(|line| line.starts_with('#')).any(|line| line.contains(PROGRAM));
    (by_link || by_header) && Command::new(PROGRAM).arg("--version").stdin(Stdio::null()).output().is_ok()
}

/// What an interface's contribution is called.
pub(super) fn record(device: &str) -> String {
    if Path::new(RANKS).exists() { format!("tun.{device}") } else { device.to_owned() }
}

/// Contributes the servers, ahead of all others (`-m 0`), and of them only (`-x`; Debian's ignores both).
pub(super) fn add(record: &str, wanted: &Servers) -> io::Result<()> {
    let mut text: String = wanted.servers.iter().map(|server| format!("nameserver {server}\n")).collect();
    if !wanted.domains.is_empty() {
        text.push_str(&format!("search {}\n", wanted.domains.join(" ")));
    }
    run(&["-a", record, "-m", "0", "-x"], text.as_bytes())
}

/// Takes the contribution back; one that is not there is no error (`-f`).
pub(super) fn delete(record: &str) -> io::Result<()> {
    run(&["-d", record, "-f"], b"")
}

fn run(arguments: &[&str], input: &[u8]) -> io::Result<()> {
    let mut child = Command::new(PROGRAM)
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()?;
    if let Some(mut stdin) = child.stdin.take() {
        stdin.write_all(input)?;
    }
    let done = child.wait_with_output()?;
    if done.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&done.stderr).trim().replace('\n', "; ");
    Err(io::Error::other(format!("{PROGRAM} {}: {} ({said})", arguments.join(" "), done.status)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_ordinary_file_is_nobodys() {
        assert!(!keeps(Path::new("/nonexistent"), b"nameserver 192.168.1.1\n# resolvconf would be named above\n"));
    }
}
