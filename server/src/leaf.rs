//! The gateway's own certificate while it runs: made anew when its names or its CA change, and at two thirds
//! of its life.

use std::time::SystemTime;

use culvert_tunnel::identity::{CertificateDer, Pin};
use culvert_tunnel::transport::{ServerTransport, TransportError, Tuning};

use crate::authorities::Authorities;
use crate::settings::Settings;
use crate::state::{StateDir, StateError};

/// What is shown to clients now.
#[derive(Debug)]
pub struct Leaf {
    state: StateDir,
    tuning: Tuning,
    shown: Option<Shown>,
}

#[derive(Debug)]
struct Shown {
    leaf: Pin,
    until: SystemTime,
    /// Whose clients may come.
    accepted: Vec<CertificateDer<'static>>,
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

    /// The state directory that it is kept in.
    pub fn state(&self) -> &StateDir {
        &self.state
    }

    /// What new peers are to be answered with, when that is another certificate than the one shown so far, or
    /// other clients may come.
    ///
    /// # Errors
    /// [`LeafError`]; the old one is still shown then.
    pub fn renewed(
        &mut self,
        authorities: &Authorities,
        settings: &Settings,
        now: SystemTime,
    ) -> Result<Option<ServerTransport>, LeafError> {
        let leaf = self.state.leaf(authorities.current(), &settings.leaf_names(), now)?;
        let pin = leaf.key().pin();
        let accepted = authorities.accepted();
        if self.shown.as_ref().is_some_and(|shown| shown.leaf == pin && shown.accepted == accepted) {
            return Ok(None);
        }
        let chain = leaf.chain().iter().chain(authorities.cross()).cloned().collect();
        let transport = ServerTransport::new(&accepted, chain, leaf.private_key(), self.tuning)?;
        let until = leaf.facts().map_or(now, |facts| facts.not_after);
        self.shown = Some(Shown { leaf: pin, until, accepted });
        Ok(Some(transport))
    }

    /// What was renewed last is not shown after all; it is told again the next time.
    pub fn not_shown(&mut self) {
        self.shown = None;
    }

    /// When the one that is shown ends.
    pub fn not_after(&self) -> Option<SystemTime> {
        self.shown.as_ref().map(|shown| shown.until)
    }
}
