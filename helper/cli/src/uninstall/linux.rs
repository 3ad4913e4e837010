//! Linux: the package manager has its own list of files, so it is named and nothing is removed here.

use std::path::Path;

use crate::failure::Failure;
use crate::output;

/// Nobody but the helper can undo what it did.
pub(super) fn without_helper(failure: Failure) -> Result<(), Failure> {
    Err(failure)
}

pub(super) fn remove_programs(_keep_identity: bool) -> Result<(), Failure> {
    let how = if Path::new("/usr/share/doc/culvert/changelog.Debian.gz").exists() {
        "sudo apt purge culvert"
    } else {
        "stop culvert-helper, then remove it the way it was installed, and its state in /var/lib/culvert"
    };
    output::message(&format!("To remove the programs: {how}"));
    Ok(())
}
