//! macOS: an anchor of pf below `com.apple/`, which Apple's main rules evaluate, so that nobody's pf.conf is touched.
//!
//! The rules go to pfctl(8) as text on its standard input; what it says is not read, only its exit code. pf itself is
//! turned on by reference (`DIOCSTARTREF`), since others use it too: the token is kept in a file until it is given
//! back, and both end with the boot.
#![allow(unsafe_code, reason = "pf's references are ioctls without a safe wrapper")]

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;
use std::process::Stdio;
use std::time::Duration;

use tokio::io::AsyncWriteExt;
use tokio::process::Command;
use tokio::time::{Instant, sleep_until, timeout};

use super::{Block, GuardError, pf};
use crate::device::DEFAULT_DEVICE;

const PFCTL: &str = "/sbin/pfctl";
const APPLIED_WITHIN: Duration = Duration::from_secs(5);
/// Nothing tells when somebody else empties the anchor, so it is looked at in this rhythm while it is in force.
const LOOK_EVERY: Duration = Duration::from_secs(10);
/// `net/pfvar.h`: `_IOR('D', 8, u_int64_t)` and `_IOWR('D', 9, struct pfioc_remove_token)`.
const DIOCSTARTREF: libc::c_ulong = 0x4008_4408;
const DIOCSTOPREF: libc::c_ulong = 0xC010_4409;

/// `struct pfioc_remove_token`.
#[repr(C)]
struct RemoveToken {
    token: u64,
    references: u64,
}

const _: () = assert!(size_of::<RemoveToken>() == 16);

/// The anchor of an interface, known to `culvert-helper recover` and to people:
/// `sudo pfctl -a com.apple/net.culvert -F rules`.
fn anchor(device: &str) -> String {
    if device == DEFAULT_DEVICE { "com.apple/net.culvert".into() } else { format!("com.apple/net.culvert.{device}") }
}

/// The block of one tunnel interface, in force or not.
#[derive(Debug)]
pub struct Guard {
    anchor: String,
    /// Where the token is kept; /var/run is emptied at boot.
    token: String,
    in_force: Option<Block>,
    /// What is in force may be an earlier run's, or have been removed by somebody else.
    unknown: bool,
    look: Option<Instant>,
}

impl Guard {
    /// For the interface `device`, whatever an earlier run left.
    pub fn new(device: &str) -> Self {
        let token = format!("/var/run/net.culvert.{device}.pf");
        Self { anchor: anchor(device), token, in_force: None, unknown: true, look: None }
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
            Some(block) => {
                self.pfctl(&["-f", "-"], &pf::text(block)).await?;
                self.turn_on()?;
                if self.in_force.is_none() {
                    // What was connected before goes on only where the rules let it.
                    self.pfctl(&["-F", "states"], "").await?;
                }
            }
            None => {
                self.pfctl(&["-F", "rules"], "").await?;
                self.turn_off()?;
            }
        }
        if self.in_force.is_some() != wanted.is_some() {
            tracing::info!(in_force = wanted.is_some(), "kill switch");
        }
        self.look = wanted.is_some().then(|| Instant::now() + LOOK_EVERY);
        (self.in_force, self.unknown) = (wanted, false);
        Ok(())
    }

    /// Waits until somebody else has removed the block; the next [`Self::set`] puts it back. Cancel-safe.
    pub async fn removed(&mut self) {
        loop {
            let Some(due) = self.look else { return std::future::pending().await };
            sleep_until(due).await;
            let rules = self.run(&["-s", "rules"], "").await;
            self.look = Some(Instant::now() + LOOK_EVERY);
            // An anchor that was emptied has nothing to show.
            if rules.is_ok_and(|shown| shown.is_empty()) {
                self.unknown = true;
                return;
            }
        }
    }

    /// True while it refuses something.
    pub fn is_in_force(&self) -> bool {
        self.in_force.is_some()
    }

    async fn pfctl(&self, arguments: &[&str], input: &str) -> Result<(), GuardError> {
        self.run(arguments, input).await.map(drop)
    }

    /// What pfctl shows.
    async fn run(&self, arguments: &[&str], input: &str) -> Result<Vec<u8>, GuardError> {
        let refused = |error: io::Error| match error.kind() {
            io::ErrorKind::NotFound => GuardError::Missing("pfctl"),
            io::ErrorKind::PermissionDenied => GuardError::NotPermitted,
            _ => GuardError::Refused(error.to_string()),
        };
        let mut command = Command::new(PFCTL);
        command.env_clear().arg("-q").args(["-a", &self.anchor]).args(arguments);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null()).kill_on_drop(true);
        let mut child = command.spawn().map_err(refused)?;
        let ran = async {
            if let Some(mut stdin) = child.stdin.take() {
                stdin.write_all(input.as_bytes()).await?;
            }
            child.wait_with_output().await
        };
        let output = timeout(APPLIED_WITHIN, ran)
            .await
            .map_err(|_| GuardError::Refused(format!("pfctl did not end within {} s", APPLIED_WITHIN.as_secs())))?;
        let output = output.map_err(refused)?;
        if output.status.success() {
            Ok(output.stdout)
        } else {
            Err(GuardError::Refused(format!("pfctl {} ended with {}", arguments.join(" "), output.status)))
        }
    }

    /// One reference of ours, however often this is called.
    fn turn_on(&self) -> Result<(), GuardError> {
        if fs::metadata(&self.token).is_ok() {
            return Ok(());
        }
        let mut token = 0_u64;
        let device = device()?;
        // SAFETY: the request writes a `u64`, which `token` is.
        let result = unsafe { libc::ioctl(device.as_raw_fd(), DIOCSTARTREF, &raw mut token) };
        if result != 0 {
            return Err(os(&io::Error::last_os_error()));
        }
        let kept = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&self.token);
        kept.and_then(|mut file| io::Write::write_all(&mut file, token.to_string().as_bytes()))
            .map_err(|error| os(&error))
    }

    fn turn_off(&self) -> Result<(), GuardError> {
        let Ok(text) = fs::read_to_string(&self.token) else { return Ok(()) };
        if let Ok(token) = text.trim().parse() {
            let mut request = RemoveToken { token, references: 0 };
            let device = device()?;
            // SAFETY: the request reads and writes a `pfioc_remove_token`, which `request` is.
            let result = unsafe { libc::ioctl(device.as_raw_fd(), DIOCSTOPREF, &raw mut request) };
            if result != 0 {
                tracing::warn!(error = %io::Error::last_os_error(), "pf does not know this reference any more");
            }
        }
        fs::remove_file(&self.token).map_err(|error| os(&error))
    }
}

fn device() -> Result<File, GuardError> {
    OpenOptions::new().read(true).write(true).open("/dev/pf").map_err(|error| os(&error))
}

fn os(error: &io::Error) -> GuardError {
    match error.kind() {
        io::ErrorKind::PermissionDenied => GuardError::NotPermitted,
        _ => GuardError::Refused(error.to_string()),
    }
}
