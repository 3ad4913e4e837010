//! macOS: no package manager removes a package, so root does it here: launchd lets the job go, every file of ours goes,
//! and the receipt is forgotten. The app's own job (SMAppService) goes with the app, at the next restart at the latest.

use std::path::Path;
use std::process::{Command, Stdio};

use culvert_installation::{paths, removal};
use culvert_protocol::{Problem, code};

use crate::failure::Failure;
use crate::output;

/// The network is put back and the block lifted also when no helper answers.
pub(super) fn without_helper(failure: Failure) -> Result<(), Failure> {
    if !rustix::process::geteuid().is_root() || !Path::new(paths::HELPER).exists() {
        return Err(failure);
    }
    stop();
    if run(paths::HELPER, &["recover"]) { Ok(()) } else { Err(failure) }
}

pub(super) fn remove_programs(keep_identity: bool) -> Result<(), Failure> {
    if !rustix::process::geteuid().is_root() {
        output::message("To remove the programs: sudo culvert uninstall");
        return Ok(());
    }
    stop();
    let left = removal::remove(Path::new("/"), keep_identity);
    run("/usr/sbin/pkgutil", &["--forget", paths::PACKAGE_IDENTIFIER]);
    let Some(first) = left.first() else {
        output::message("The programs are removed.");
        return Ok(());
    };
    let sentence =
        format!("{} and {} more could not be removed: {}", first.path.display(), left.len() - 1, first.error);
    Err(Problem::new(code::SYSTEM).because(sentence).hint("Remove it by hand").into())
}

/// One that launchd does not know is stopped already.
fn stop() {
    run("/bin/launchctl", &["bootout", &format!("system/{}", paths::PACKAGE_LABEL)]);
}

fn run(program: &str, arguments: &[&str]) -> bool {
    let mut command = Command::new(program);
    command.args(arguments).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    command.status().is_ok_and(|status| status.success())
}
