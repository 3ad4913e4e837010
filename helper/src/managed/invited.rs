//! The administrator's invitation is used once on this machine: by itself, and again only when it is another one. Pure
//! but for its file, `STATE_DIR/managed.json`.
//!
//! A gateway that does not answer is asked again, after ever longer pauses; one that does not take the invitation
//! is not, until there is another one or the helper starts anew.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use culvert_protocol::{Problem, Secret, code};
use culvert_tunnel::invitation::{Invitation, InvitationId};
use serde::{Deserialize, Serialize};

use crate::files;

/// After the first failure; twice as long after each further one.
const FIRST_PAUSE: Duration = Duration::from_secs(15);
const LONGEST_PAUSE: Duration = Duration::from_secs(60 * 60);

/// What is remembered across restarts.
#[derive(Debug, Default, Serialize, Deserialize)]
struct Memory {
    /// The invitation that was used, or not needed.
    used: Option<InvitationId>,
}

/// What to do about the invitation.
#[derive(Debug)]
enum State {
    /// Nothing: there is none, it is used, or it cannot be.
    Done,
    Waiting {
        until: Instant,
        failures: u32,
    },
    Trying {
        failures: u32,
    },
}

/// The invitation of the administrator, and how far its use is.
#[derive(Debug)]
pub struct Invited {
    path: PathBuf,
    used: Option<InvitationId>,
    told: Option<Secret>,
    state: State,
    problem: Option<Problem>,
}

impl Invited {
    /// What an earlier run has used. A file that cannot be read is none: the gateway refuses what is used up.
    pub fn open(state_dir: &Path) -> Self {
        let path = state_dir.join("managed.json");
        let memory: Memory =
            fs::read(&path).ok().and_then(|bytes| serde_json::from_slice(&bytes).ok()).unwrap_or_default();
        Self { path, used: memory.used, told: None, state: State::Done, problem: None }
    }

    /// Takes notice of what the administrator's file has.
    pub fn on_told(&mut self, told: Option<Secret>, now: Instant) {
        if self.told == told {
            return;
        }
        self.told = told;
        self.problem = None;
        self.state = match self.invitation() {
            Some(Ok(invitation)) if Some(invitation.id) != self.used => State::Waiting { until: now, failures: 0 },
            Some(Err(problem)) => {
                self.problem = Some(problem);
                State::Done
            }
            _ => State::Done,
        };
    }

    /// When to call [`Self::on_timeout`] next.
    pub fn poll_timeout(&self) -> Option<Instant> {
        let State::Waiting { until, .. } = self.state else { return None };
        Some(until)
    }

    /// The invitation to use now; [`Self::on_tried`] has to follow.
    pub fn on_timeout(&mut self, now: Instant) -> Option<(Secret, Invitation)> {
        let State::Waiting { until, failures } = self.state else { return None };
        if now < until {
            return None;
        }
        let Some(Ok(invitation)) = self.invitation() else { return None };
        self.state = State::Trying { failures };
        Some((self.told.clone()?, invitation))
    }

    /// What came of it: `Ok` for an identity that is kept, or not needed since there is one of that gateway.
    ///
    /// # Errors
    /// What the file system says; it is remembered until the helper ends, all the same.
    pub fn on_tried(&mut self, result: Result<(), Problem>, now: Instant) -> io::Result<()> {
        let State::Trying { failures } = self.state else { return Ok(()) }; // another one has come since
        match result {
            Ok(()) => {
                self.state = State::Done;
                self.problem = None;
                self.used = self.invitation().and_then(Result::ok).map(|invitation| invitation.id);
                files::replace(&self.path, &serde_json::to_vec(&Memory { used: self.used })?)
            }
            Err(problem) => {
                self.state = if problem.code == code::INVITATION {
                    State::Done
                } else {
                    State::Waiting { until: now + pause(failures), failures: failures + 1 }
                };
                self.problem = Some(problem);
                Ok(())
            }
        }
    }

    /// Why this machine is not enrolled by the invitation, while it is not.
    pub fn problem(&self) -> Option<&Problem> {
        self.problem.as_ref()
    }

    /// Nothing is left on the disk; until the helper ends the invitation still counts as used.
    ///
    /// # Errors
    /// What the file system says.
    pub fn forget(&mut self) -> io::Result<()> {
        self.state = State::Done;
        files::remove(&self.path)
    }

    fn invitation(&self) -> Option<Result<Invitation, Problem>> {
        let parsed = self.told.as_ref()?.expose().trim().parse();
        Some(parsed.map_err(|_| Problem::new(code::INVITATION).hint("Upload a new profile")))
    }
}

fn pause(failures: u32) -> Duration {
    FIRST_PAUSE.saturating_mul(1 << failures.min(16)).min(LONGEST_PAUSE)
}

#[cfg(test)]
mod tests {
    use super::*;
    use culvert_tunnel::identity::Pin;
    use culvert_tunnel::invitation::Secret as InvitationSecret;

    fn invitation() -> Secret {
        let invitation = Invitation {
            endpoints: vec!["vpn.example.org:443".into()],
            pin: Pin::from_bytes([7; 32]),
            id: InvitationId::generate().unwrap(),
            secret: InvitationSecret::generate().unwrap(),
            expires: u64::MAX / 2,
            gateway: "Acme".into(),
            user: "mdm".into(),
        };
        Secret::new(invitation.to_link())
    }

    #[test]
    fn an_invitation_is_used_once_also_after_a_restart_and_another_one_again() {
        let (dir, t0) = (tempfile::tempdir().unwrap(), Instant::now());
        let first = Some(invitation());
        let mut invited = Invited::open(dir.path());
        invited.on_told(first.clone(), t0);
        assert_eq!(invited.on_timeout(t0).unwrap().0, first.clone().unwrap());
        assert!(invited.on_timeout(t0).is_none(), "one at a time");
        invited.on_tried(Ok(()), t0).unwrap();
        for mut invited in [invited, Invited::open(dir.path())] {
            invited.on_told(None, t0);
            invited.on_told(first.clone(), t0);
            assert!(invited.on_timeout(t0).is_none(), "used");
            invited.on_told(Some(invitation()), t0);
            assert!(invited.on_timeout(t0).is_some(), "another one");
        }
    }

    #[test]
    fn a_gateway_that_does_not_answer_is_asked_again_after_ever_longer_pauses() {
        let (dir, mut now) = (tempfile::tempdir().unwrap(), Instant::now());
        let mut invited = Invited::open(dir.path());
        invited.on_told(Some(invitation()), now);
        let mut pauses = Vec::new();
        for _ in 0..11 {
            assert!(invited.on_timeout(now).is_some());
            invited.on_tried(Err(Problem::new(code::NO_ANSWER)), now).unwrap();
            let until = invited.poll_timeout().unwrap();
            assert!(invited.on_timeout(until - Duration::from_millis(1)).is_none(), "too early");
            pauses.push((until - now).as_secs());
            now = until;
        }
        assert_eq!(pauses, [15, 30, 60, 120, 240, 480, 960, 1920, 3600, 3600, 3600]);
        assert_eq!(invited.problem().unwrap().code, code::NO_ANSWER);
        invited.on_timeout(now);
        invited.on_tried(Ok(()), now).unwrap();
        assert_eq!(invited.problem(), None);
    }

    #[test]
    fn an_invitation_that_is_refused_or_damaged_is_not_tried_again_and_that_is_told() {
        let (dir, t0) = (tempfile::tempdir().unwrap(), Instant::now());
        let mut invited = Invited::open(dir.path());
        invited.on_told(Some(invitation()), t0);
        invited.on_timeout(t0).unwrap();
        invited.on_tried(Err(Problem::new(code::INVITATION)), t0).unwrap();
        assert_eq!((invited.poll_timeout(), invited.problem().unwrap().code), (None, code::INVITATION));
        invited.on_told(Some(Secret::new("culvert://enrol#damaged".into())), t0);
        assert_eq!((invited.poll_timeout(), invited.problem().unwrap().code), (None, code::INVITATION));
        invited.on_told(None, t0);
        assert_eq!(invited.problem(), None);
    }

    #[test]
    fn a_result_that_comes_after_another_invitation_changes_nothing() {
        let (dir, t0) = (tempfile::tempdir().unwrap(), Instant::now());
        let mut invited = Invited::open(dir.path());
        invited.on_told(Some(invitation()), t0);
        invited.on_timeout(t0).unwrap();
        invited.on_told(Some(invitation()), t0);
        invited.on_tried(Ok(()), t0).unwrap();
        assert!(invited.on_timeout(t0).is_some(), "the new one is still to be used");
    }
}
