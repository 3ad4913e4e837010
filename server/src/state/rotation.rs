//! The certificate authorities on the disk, and the steps of a rotation. Each step is one rename (or removal), so
//! that a crash leaves the state before it or the one after it:
//!
//! ```text
//! ca.next.pem      the second one: certificate and key; without a key it is leaving
//! ca.former.pem    the former one: its certificate, and what it says of the present one. Counts only while ca.pem
//!                  is that present one, so it may be written early
//! ca.pem ca.key    the present one. At the end of a rotation ca.next.pem becomes ca.pem, with the key in it; what
//!                  follows (the key into ca.key, and out of ca.pem) only tidies up, and is done again after a crash
//! ```

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::SystemTime;

use culvert_tunnel::identity::{Authority, CertificateFacts, Credential, IdentityError, certificates_pem};

use super::{StateDir, StateError, StateLock};
use crate::authorities::{Authorities, Former, Second};
use crate::files;

/// The files that a rotation adds.
pub const FILES: [&str; 2] = [NEXT, FORMER];
const CURRENT: &str = "ca.pem";
const KEY: &str = "ca.key";
const NEXT: &str = "ca.next.pem";
const FORMER: &str = "ca.former.pem";

/// Tells one state of the files from another.
pub type Stamp = Vec<Option<(u64, i64, i64, u64)>>;

impl StateDir {
    /// Nobody else takes a step until it is dropped. The gateway may run.
    ///
    /// # Errors
    /// [`StateError::Rotating`], or [`StateError::Io`].
    pub fn lock_rotation(&self) -> Result<StateLock, StateError> {
        self.check_initialised()?;
        let path = self.gateway();
        let folder = fs::File::open(&path).map_err(self.io(&path))?;
        let locked = super::locked(folder).map_err(|error| self.io(&path)(error.into()))?;
        locked.ok_or_else(|| StateError::Rotating(self.root.clone()))
    }

    /// All of them.
    ///
    /// # Errors
    /// [`StateError`] when one is not there or unusable.
    pub fn authorities(&self) -> Result<Authorities, StateError> {
        self.check_initialised()?;
        self.authorities_in(&self.gateway())
    }

    pub(super) fn authorities_in(&self, folder: &Path) -> Result<Authorities, StateError> {
        let current = self.current_in(folder)?;
        let second = self.second_in(folder)?;
        let former = self.former_in(folder, &current, SystemTime::now())?;
        Ok(Authorities::new(current, second, former))
    }

    pub(super) fn current_in(&self, folder: &Path) -> Result<Authority, StateError> {
        let path = folder.join(CURRENT);
        let certificate = self.read(&path)?;
        let loaded = match Authority::load(&certificate, &certificate) {
            Err(IdentityError::Pem(_)) => Authority::load(&certificate, &self.read(&folder.join(KEY))?),
            whole => whole, // a rotation that has ended and was not tidied up
        };
        loaded.map_err(|error| StateError::Identity { path, error })
    }

    fn second_in(&self, folder: &Path) -> Result<Option<Second>, StateError> {
        let path = folder.join(NEXT);
        let Some(text) = self.read_if_there(&path)? else { return Ok(None) };
        let wrong = |error| StateError::Identity { path: path.clone(), error };
        match Authority::load(&text, &text) {
            Ok(authority) => Ok(Some(Second::Coming(Box::new(authority)))),
            Err(IdentityError::Pem(_)) => {
                let certificate = Credential::chain_from_pem(&text).map_err(wrong)?.remove(0);
                Ok(Some(Second::Leaving(certificate)))
            }
            Err(error) => Err(wrong(error)),
        }
    }

    fn former_in(&self, folder: &Path, current: &Authority, now: SystemTime) -> Result<Option<Former>, StateError> {
        let path = folder.join(FORMER);
        let Some(text) = self.read_if_there(&path)? else { return Ok(None) };
        let wrong = |error| StateError::Identity { path: path.clone(), error };
        let mut chain = Credential::chain_from_pem(&text).map_err(wrong)?;
        let (Some(cross), Some(certificate)) = (chain.pop(), chain.pop()) else { return Ok(None) };
        let facts = CertificateFacts::read(&cross).map_err(wrong)?;
        let counts = facts.spki == current.pin() && now < facts.not_after;
        Ok(counts.then_some(Former { certificate, cross }))
    }

    /// What the files are like now; another stamp means that one was replaced.
    pub fn authorities_stamp(&self) -> Stamp {
        let stamp = |name: &str| {
            let told = fs::metadata(self.gateway().join(name)).ok()?;
            Some((told.ino(), told.mtime(), told.mtime_nsec(), told.len()))
        };
        [CURRENT, NEXT, FORMER].map(stamp).to_vec()
    }

    /// Makes the one that comes.
    ///
    /// # Errors
    /// [`StateError`]; there is none then.
    pub fn begin_rotation(&self, _lock: &StateLock, current: &Authority) -> Result<Authority, StateError> {
        let path = self.gateway().join(NEXT);
        let wrong = |error| StateError::Identity { path: path.clone(), error };
        let next = current.successor(SystemTime::now()).map_err(wrong)?;
        files::write_private(&path, whole(&next).as_bytes()).map_err(self.io(&path))?;
        Ok(next)
    }

    /// The one that was to come leaves: its key is gone, its certificates count.
    ///
    /// # Errors
    /// [`StateError`]; it still comes then.
    pub fn abort_rotation(&self, _lock: &StateLock, next: &Authority) -> Result<(), StateError> {
        let path = self.gateway().join(NEXT);
        files::write_private(&path, next.certificate_pem().as_bytes()).map_err(self.io(&path))
    }

    /// Nothing is left of the second one.
    ///
    /// # Errors
    /// [`StateError`]; it is still there then.
    pub fn forget_next(&self, _lock: &StateLock) -> Result<(), StateError> {
        let path = self.gateway().join(NEXT);
        fs::remove_file(&path).and_then(|()| files::sync_folder(&path)).map_err(self.io(&path))
    }

    /// The one that comes is the present one. Until `until` those who know only the former one are told so.
    ///
    /// # Errors
    /// [`StateError`]. Before the step nothing has changed then; after it only the tidying up is left.
    pub fn finish_rotation(
        &self,
        lock: &StateLock,
        current: &Authority,
        next: &Authority,
        until: SystemTime,
    ) -> Result<(), StateError> {
        let folder = self.gateway();
        let former = folder.join(FORMER);
        let now = SystemTime::now();
        if now < until {
            let wrong = |error| StateError::Identity { path: former.clone(), error };
            let cross = current.cross_sign(next, until, now).map_err(wrong)?;
            let text = certificates_pem(&[current.certificate_der().clone(), cross]);
            files::write_private(&former, text.as_bytes()).map_err(self.io(&former))?;
        }
        let path = folder.join(CURRENT);
        fs::rename(folder.join(NEXT), &path).and_then(|()| files::sync_folder(&path)).map_err(self.io(&path))?;
        self.tidy_rotation(lock)
    }

    /// What the end of a rotation has left to do, if it was interrupted.
    ///
    /// # Errors
    /// [`StateError`]; what counts is the same all the same.
    pub fn tidy_rotation(&self, _lock: &StateLock) -> Result<(), StateError> {
        let path = self.gateway().join(CURRENT);
        let text = self.read(&path)?;
        let Ok(whole) = Authority::load(&text, &text) else { return Ok(()) };
        let key = self.gateway().join(KEY);
        files::write_private(&key, whole.key_pem().expose().as_bytes()).map_err(self.io(&key))?;
        files::write_private(&path, whole.certificate_pem().as_bytes()).map_err(self.io(&path))
    }

    fn read_if_there(&self, path: &Path) -> Result<Option<zeroize::Zeroizing<String>>, StateError> {
        match fs::read_to_string(path) {
            Ok(text) => Ok(Some(text.into())),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(self.io(path)(error)),
        }
    }
}

/// Certificate and key in one text.
fn whole(authority: &Authority) -> zeroize::Zeroizing<String> {
    format!("{}{}", authority.certificate_pem(), authority.key_pem().expose()).into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::authorities::Issuer;
    use std::time::Duration;

    const DAY: Duration = Duration::from_secs(86_400);

    #[tokio::test]
    async fn a_rotation_goes_to_its_end_and_each_state_is_read_back() {
        let (_folder, state) = made().await;
        let lock = state.lock_rotation().unwrap();
        assert!(matches!(state.lock_rotation(), Err(StateError::Rotating(_))));
        let old = state.authority().unwrap();
        let before = state.authorities_stamp();
        let new = state.begin_rotation(&lock, &old).unwrap();
        assert_ne!(state.authorities_stamp(), before);
        let both = state.authorities().unwrap();
        assert_eq!(both.trusted_pins(), [new.pin(), old.pin()]);
        assert_eq!(both.current().pin(), old.pin());
        state.finish_rotation(&lock, &old, &new, SystemTime::now() + DAY).unwrap();
        let finished = state.authorities().unwrap();
        assert_eq!(finished.trusted_pins(), [new.pin()]);
        assert!(finished.cross().is_some() && finished.second().is_none());
        let text = fs::read_to_string(state.gateway().join(CURRENT)).unwrap();
        assert!(!text.contains("PRIVATE"), "as init makes it");
        assert!(!state.gateway().join(NEXT).exists());
        // The next one does not take the last one's words for its own.
        let third = state.begin_rotation(&lock, &new).unwrap();
        state.finish_rotation(&lock, &new, &third, SystemTime::now()).unwrap();
        assert!(state.authorities().unwrap().cross().is_none(), "nobody to be told");
    }

    #[tokio::test]
    async fn a_rotation_that_is_taken_back_leaves_what_was() {
        let (_folder, state) = made().await;
        let lock = state.lock_rotation().unwrap();
        let old = state.authority().unwrap();
        let new = state.begin_rotation(&lock, &old).unwrap();
        state.abort_rotation(&lock, &new).unwrap();
        let leaving = state.authorities().unwrap();
        assert!(matches!(leaving.second(), Some(Second::Leaving(_))));
        assert_eq!((leaving.second_pin(), leaving.trusted_pins()), (Some(new.pin()), vec![old.pin()]));
        state.forget_next(&lock).unwrap();
        assert!(!state.authorities().unwrap().are_several());
    }

    /// Every point at which the last step can be cut off.
    #[tokio::test]
    async fn a_crash_leaves_the_state_before_a_step_or_after_it() {
        let (_folder, state) = made().await;
        let lock = state.lock_rotation().unwrap();
        let old = state.authority().unwrap();
        let new = state.begin_rotation(&lock, &old).unwrap();
        let place = |name: &str| state.gateway().join(name);
        // A half-written file has another name.
        fs::write(place("ca.next.pem.1.new"), "-----BEGIN").unwrap();
        let cross = old.cross_sign(&new, SystemTime::now() + DAY, SystemTime::now()).unwrap();
        let text = certificates_pem(&[old.certificate_der().clone(), cross]);
        fs::write(place(FORMER), text).unwrap();
        let seen = state.authorities().unwrap();
        assert_eq!(seen.trusted_pins(), [new.pin(), old.pin()], "the former one is written, and the step not taken");
        assert!(seen.cross().is_none());
        fs::rename(place(NEXT), place(CURRENT)).unwrap();
        let check = |when: &str| {
            let seen = state.authorities().unwrap();
            assert_eq!((seen.trusted_pins(), state.authority().unwrap().pin()), (vec![new.pin()], new.pin()), "{when}");
            let csr = culvert_tunnel::identity::DeviceKey::generate().unwrap().csr("a").unwrap();
            let id = culvert_tunnel::identity::DeviceId::generate().unwrap();
            let issued = seen.signer(None).unwrap().issue_device(&csr, id, SystemTime::now()).unwrap();
            assert_eq!(seen.issuer(&issued.der), Ok(Issuer::Counts(new.pin())), "{when}");
        };
        check("the step is taken, and nothing tidied up");
        fs::write(place(KEY), new.key_pem().expose()).unwrap();
        check("the key is in both");
        state.tidy_rotation(&lock).unwrap();
        check("tidied up");
        state.tidy_rotation(&lock).unwrap();
        check("twice");
    }

    async fn made() -> (tempfile::TempDir, StateDir) {
        let folder = tempfile::tempdir().unwrap();
        let state = StateDir::new(folder.path());
        let lock = state.lock().unwrap();
        state.create(&lock, "vpn.example.org", &["vpn.example.org".into()], &[]).await.unwrap();
        (folder, state)
    }
}
