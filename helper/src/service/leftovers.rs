//! Undoes what a helper that is gone left behind.

use std::io;
use std::path::Path;

use crate::dns;
use crate::guard::Guard;
use crate::journal::{Change as Made, Journal};
use crate::routes;
use crate::wish::{self, WishFile};

/// Undoes what a helper that is gone left behind, and lifts its block, whatever the mode.
///
/// # Errors
/// What the file system says, or that a helper is still there.
pub async fn recover(state_dir: &Path, device: &str) -> io::Result<()> {
    let mut journal = Journal::open(state_dir)?;
    // The wish too: the next start would put all of it in force again.
    WishFile::new(state_dir, wish::boot()).note(None)?;
    clean_up(&mut journal).await;
    let lifted = Guard::new(device).set(None).await;
    lifted.map_err(|error| io::Error::other(format!("the block could not be lifted: {error}")))?;
    match journal.in_force().len() {
        0 => Ok(()),
        left => Err(io::Error::other(format!("{left} changes could not be undone; see the messages above"))),
    }
}

/// Undoes what a crashed helper left behind, newest first.
pub(super) async fn clean_up(journal: &mut Journal) {
    for (entry, change) in journal.in_force() {
        tracing::info!(?change, "undoing what an earlier run left behind");
        let undone = match &change {
            Made::ResolverFile(file) => dns::undo_file(file).map_err(routes::RouteError::Journal),
            Made::Resolvconf { record } => dns::undo_resolvconf(record).map_err(routes::RouteError::Journal),
            Made::PolicyRouting { .. } | Made::Sysctl { .. } => routes::undo_leftover(&change).await,
        };
        match undone.map(|()| journal.strike(entry)) {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::error!(%error, "the journal cannot be written"),
            Err(error) => tracing::error!(%error, ?change, "a change could not be undone; the next start tries again"),
        }
    }
}
