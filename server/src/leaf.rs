//! The gateway's own certificate while it runs: made anew when its names change, and at two thirds
//! of its life.

use std::time::SystemTime;

use culvert_tunnel::identity::{Authority, Pin};
use culvert_tunnel::transport::{ServerTransport, TransportError, Tuning};

use crate::settings::Settings;
use crate::state::{StateDir, StateError};

/// What is shown to clients now.
#[derive(Debug)]
pub struct Leaf {
    state: StateDir,
    tuning: Tuning,
    shown: Option<(Pin, SystemTime)>,
}

/// Why there is no certificate to show.
#[derive(Debug, thiserror::Error)]
pub enum LeafError {
    /// It cannot be made or written.
    #[error(transparent)]
    State(#[from] StateError),
    /// It cannot be used.
    #[error(transparent)]
    Transport(#[from] TransportError),
}

impl Leaf {
    /// None is shown yet.
    pub fn new(state: StateDir, tuning: Tuning) -> Self {
        Self { state, tuning, shown: None }
    }

    /// What new peers are to be answered with, when that is another certificate than the one shown so far.
    ///
    /// # Errors
    /// [`LeafError`]; the old one is still shown then.
    pub fn renewed(
        &mut self,
        authority: &Authority,
        settings: &Settings,
        now: SystemTime,
    ) -> Result<Option<ServerTransport>, LeafError> {
        let leaf = self.state.leaf(authority, &settings.leaf_names(), now)?;
        let pin = leaf.key().pin();
        if self.shown.is_some_and(|(shown, _)| shown == pin) {
            return Ok(None);
        }
        let chain = leaf.chain().to_vec();
        let transport = ServerTransport::new(
            std::slice::from_ref(authority.certificate_der()),
            chain,
            leaf.private_key(),
            self.tuning,
        )?;
        let until = leaf.facts().map_or(now, |facts| facts.not_after);
        self.shown = Some((pin, until));
        Ok(Some(transport))
    }

    /// When the one that is shown ends.
    pub fn not_after(&self) -> Option<SystemTime> {
        self.shown.map(|(_, until)| until)
    }
}
