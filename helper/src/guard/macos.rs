//! macOS: rules in a pf anchor of our own, loaded by pfctl(8), and a reference that keeps pf on.
//!
//! Apple's pf.conf evaluates whatever is below `com.apple`, so nobody's ruleset is edited, and one that is loaded
//! again keeps ours. pfctl loads an anchor in one transaction: rules that it refuses leave those before them. The
//! rules outlive this process, not the boot; what lifts them needs the anchor's name, and the token (`reference`).
//! People lift them by `pfctl -a com.apple/net.culvert -F rules`.
#![allow(unsafe_code, reason = "three ioctls of pf(4) that pfctl would only tell in prose")]

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::path::PathBuf;
use std::process::Stdio;

use tokio::io::AsyncWriteExt;
use tokio::process::Command;
use tokio::time::{Duration, Instant, sleep_until, timeout};

use super::reference::{
    DIOCGETSTARTERS, DIOCSTARTREF, DIOCSTOPREF, Reference, RemoveToken, TOKEN_BYTES, Tokens, is_listed,
};
use super::{Block, GuardError, pf};
use crate::device::DEFAULT_DEVICE;
use crate::{files, wish};

const PFCTL: &str = "/sbin/pfctl";
const DEVICE: &str = "/dev/pf";
/// pfctl waits for others that change rules.
const APPLIED_WITHIN: Duration = Duration::from_secs(5);
/// Nothing tells of a change to pf's rules, so they are looked at.
const LOOK_EVERY: Duration = Duration::from_secs(10);

/// The anchor of an interface. Helpers with interfaces of their own do not lift each other's blocks.
fn anchor(device: &str) -> String {
    if device == DEFAULT_DEVICE { "com.apple/net.culvert".into() } else { format!("com.apple/net.culvert.{device}") }
}

/// The block of one tunnel interface, in force or not.
#[derive(Debug)]
pub struct Guard {
    anchor: String,
    /// Where the reference is kept.
    file: PathBuf,
    boot: String,
    in_force: Option<Block>,
    /// What is in force may be an earlier run's, or have been removed by somebody else.
    unknown: bool,
    look: Instant,
}

impl Guard {
    /// For the interface `device`, whatever an earlier run left.
    pub fn new(device: &str) -> Self {
        Self {
            anchor: anchor(device),
            file: PathBuf::from(format!("/var/run/net.culvert.{device}.pf")),
            boot: wish::boot(),
            in_force: None,
            unknown: true,
            look: Instant::now() + LOOK_EVERY,
        }
    }

    /// Puts a block in force, or lifts the one that is. Nothing is done when that is known to be so.
    ///
    /// # Errors
    /// [`GuardError`]; what was in force still is.
    pub async fn set(&mut self, wanted: Option<Block>) -> Result<(), GuardError> {
        if self.in_force == wanted && !self.unknown {
            return Ok(());
        }
        self.unknown = true;
        match &wanted {
            Some(block) => self.apply(block).await?,
            None => self.lift().await?,
        }
        if self.in_force.is_some() != wanted.is_some() {
            tracing::info!(in_force = wanted.is_some(), "kill switch");
        }
        (self.in_force, self.unknown) = (wanted, false);
        self.look = Instant::now() + LOOK_EVERY;
        Ok(())
    }

    /// Waits until somebody else has removed the block or switched pf off; the next [`Self::set`] puts it back.
    /// Cancel-safe.
    pub async fn removed(&mut self) {
        if self.in_force.is_none() {
            return std::future::pending().await;
        }
        loop {
            sleep_until(self.look).await;
            let is_there = self.is_there().await;
            self.look = Instant::now() + LOOK_EVERY;
            if !is_there {
                self.unknown = true;
                return;
            }
        }
    }

    /// True while it refuses something.
    pub fn is_in_force(&self) -> bool {
        self.in_force.is_some()
    }

    async fn is_there(&self) -> bool {
        let ours = pfctl(&["-a", &self.anchor, "-s", "rules"], "").await;
        let main = pfctl(&["-s", "rules"], "").await;
        ours.is_ok_and(|rules| !rules.trim().is_empty())
            && main.is_ok_and(|rules| pf::evaluates_ours(&rules))
            && self.holds_a_reference()
    }

    fn holds_a_reference(&self) -> bool {
        let Some(held) = Reference::load(&self.file, &self.boot) else { return false };
        open().and_then(|pf| references(&pf)).is_ok_and(|list| is_listed(&list, held.token))
    }

    async fn apply(&self, block: &Block) -> Result<(), GuardError> {
        if !pf::evaluates_ours(&pfctl(&["-s", "rules"], "").await?) {
            return Err(GuardError::Refused(
                "this Mac's pf rules do not evaluate com.apple/*, so ours would have no effect; restore the line \
                 'anchor \"com.apple/*\"' in /etc/pf.conf and run 'pfctl -f /etc/pf.conf', or connect without the \
                 kill switch: culvert settings set kill-switch off"
                    .into(),
            ));
        }
        // Rules before the switch: there is no moment in which pf runs without them.
        pfctl(&["-a", &self.anchor, "-f", "-"], &pf::text(block)).await?;
        if !self.holds_a_reference() {
            let token = take_reference().map_err(|error| refused(&error))?;
            // A crash before this line leaves pf on until the next start of the machine, with nothing to refuse.
            Reference::new(token, &self.boot).save(&self.file).map_err(|error| {
                let _ = give_back(token); // the first error says more
                GuardError::Refused(format!("{} cannot be written: {error}", self.file.display()))
            })?;
        }
        if self.in_force.is_none() {
            // A flow that another program's rule lets through by its state would never meet ours.
            pfctl(&["-F", "states"], "").await?;
        }
        Ok(())
    }

    /// One that is not there is no error.
    async fn lift(&self) -> Result<(), GuardError> {
        pfctl(&["-a", &self.anchor, "-F", "rules"], "").await?;
        if let Some(held) = Reference::load(&self.file, &self.boot)
            && let Err(error) = give_back(held.token)
        {
            // Somebody switched pf off meanwhile, and with it every reference.
            tracing::debug!(%error, "pf does not know our reference");
        }
        files::remove(&self.file).map_err(|error| refused(&error))
    }
}

/// Runs pfctl without a shell or an environment; what it writes to its standard output.
async fn pfctl(arguments: &[&str], input: &str) -> Result<String, GuardError> {
    let run = async {
        let mut child = Command::new(PFCTL)
            .args(["-q"])
            .args(arguments)
            .env_clear()
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()?;
        if let Some(mut stdin) = child.stdin.take() {
            stdin.write_all(input.as_bytes()).await?;
        }
        child.wait_with_output().await
    };
    let Ok(done) = timeout(APPLIED_WITHIN, run).await else {
        return Err(GuardError::Refused(format!("pfctl did not end within {} s", APPLIED_WITHIN.as_secs())));
    };
    let done = done.map_err(|error| refused(&error))?;
    if done.status.success() {
        return Ok(String::from_utf8_lossy(&done.stdout).into_owned());
    }
    if !rustix::process::geteuid().is_root() {
        return Err(GuardError::NotPermitted);
    }
    let said = String::from_utf8_lossy(&done.stderr);
    let said = said.lines().map(str::trim).find(|line| !line.is_empty()).unwrap_or("no reason given");
    Err(GuardError::Refused(format!("pfctl {}: {} ({said})", arguments.join(" "), done.status)))
}

fn refused(error: &io::Error) -> GuardError {
    match error.kind() {
        io::ErrorKind::PermissionDenied => GuardError::NotPermitted,
        _ => GuardError::Refused(error.to_string()),
    }
}

fn open() -> io::Result<File> {
    File::options().read(true).write(true).open(DEVICE)
}

/// Switches pf on, if nobody has; gives the token.
fn take_reference() -> io::Result<u64> {
    let pf = open()?;
    let mut token = 0u64;
    // SAFETY: the request writes eight bytes, which `token` has (asserted in `reference`).
    check(unsafe { libc::ioctl(pf.as_raw_fd(), DIOCSTARTREF, &raw mut token) })?;
    Ok(token)
}

/// Switches pf off, if nobody else holds a reference.
fn give_back(token: u64) -> io::Result<()> {
    let pf = open()?;
    let mut request = RemoveToken { token, references: 0 };
    // SAFETY: the request reads and writes a `pfioc_remove_token`, which `request` is (asserted in `reference`).
    check(unsafe { libc::ioctl(pf.as_raw_fd(), DIOCSTOPREF, &raw mut request) })
}

/// Every reference that anybody holds, as the kernel lists them; an error when there is none.
fn references(pf: &File) -> io::Result<Vec<u8>> {
    let mut request = Tokens { size: 0, buffer: std::ptr::null_mut() };
    // SAFETY: with a size of 0 the kernel writes the needed size into `request` and nothing else.
    check(unsafe { libc::ioctl(pf.as_raw_fd(), DIOCGETSTARTERS, &raw mut request) })?;
    // Some may be added meanwhile.
    let mut list = vec![0u8; usize::try_from(request.size).unwrap_or(0) + 16 * TOKEN_BYTES];
    let mut request = Tokens { size: i32::try_from(list.len()).unwrap_or(0), buffer: list.as_mut_ptr() };
    // SAFETY: the kernel writes at most `size` bytes to `buffer`, which has as many.
    check(unsafe { libc::ioctl(pf.as_raw_fd(), DIOCGETSTARTERS, &raw mut request) })?;
    list.truncate(usize::try_from(request.size).unwrap_or(0));
    Ok(list)
}

fn check(result: libc::c_int) -> io::Result<()> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::guard::tests::block;

    /// Runs on the Mac runner only, under sudo: `cargo nextest run --run-ignored only`.
    #[tokio::test]
    #[ignore = "needs a Mac and root"]
    async fn a_block_is_loaded_found_and_lifted() {
        let mut guard = Guard::new("utun6399");
        // Only a network of documentation is held back, so that the runner stays reachable.
        guard.set(Some(block(true, &["198.51.100.0/24".parse().unwrap()]))).await.unwrap();
        assert!(guard.is_there().await);
        pfctl(&["-a", &guard.anchor, "-F", "rules"], "").await.unwrap();
        assert!(!guard.is_there().await);
        guard.unknown = true;
        guard.set(Some(block(true, &["198.51.100.0/24".parse().unwrap()]))).await.unwrap();
        // Another process lifts it by what is on the disk.
        drop(guard);
        let mut next = Guard::new("utun6399");
        next.set(None).await.unwrap();
        assert!(!next.is_there().await);
        assert!(!next.file.exists());
    }
}
