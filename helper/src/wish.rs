//! What the user last wished for, on disk, so that a helper that crashed or was upgraded goes on where it was.
//! A wish ends with the boot: after a restart of the machine nothing is wanted until somebody says so.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::files;

/// A connection that is wanted.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Wish {
    profile: String,
    /// Differs after each start of the machine.
    boot: String,
}

/// Where the wish is kept.
#[derive(Debug)]
pub struct WishFile {
    path: PathBuf,
    boot: String,
}

impl WishFile {
    /// `STATE_DIR/wish.json`, in this boot of the machine.
    pub fn new(state_dir: &Path, boot: String) -> Self {
        Self { path: state_dir.join("wish.json"), boot }
    }

    /// The profile that was wanted in this boot. A file that cannot be read is no wish.
    pub fn profile(&self) -> Option<String> {
        let wish: Wish = serde_json::from_slice(&fs::read(&self.path).ok()?).ok()?;
        (wish.boot == self.boot && !self.boot.is_empty()).then_some(wish.profile)
    }

    /// Notes what is wanted now. Writes only what is news.
    ///
    /// # Errors
    /// What the file system says.
    pub fn note(&self, profile: Option<&str>) -> io::Result<()> {
        match profile {
            None => files::remove(&self.path),
            Some(profile) if self.profile().as_deref() == Some(profile) => Ok(()),
            Some(profile) => {
                let wish = Wish { profile: profile.to_owned(), boot: self.boot.clone() };
                files::replace(&self.path, &serde_json::to_vec(&wish)?)
            }
        }
    }
}

/// Names this boot of the machine: random(4), `/proc/sys/kernel/random/boot_id`. Empty where that is not known.
#[cfg(target_os = "linux")]
pub fn boot() -> String {
    fs::read_to_string("/proc/sys/kernel/random/boot_id").map(|id| id.trim().to_owned()).unwrap_or_default()
}

/// Names this boot of the machine: sysctl(3), `kern.bootsessionuuid`. Empty where that is not known.
#[cfg(target_os = "macos")]
#[allow(unsafe_code, reason = "sysctlbyname has no safe wrapper in the crates we use")]
pub fn boot() -> String {
    let mut id = [0_u8; 64];
    let mut len = id.len();
    // SAFETY: the name ends with NUL, the kernel writes at most `len` bytes to `id` and the new length to `len`.
    let result = unsafe {
        libc::sysctlbyname(
            c"kern.bootsessionuuid".as_ptr(),
            id.as_mut_ptr().cast(),
            &raw mut len,
            std::ptr::null_mut(),
            0,
        )
    };
    let text = if result == 0 { &id[..len.min(id.len())] } else { &[] };
    String::from_utf8_lossy(text).trim_end_matches('\0').to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wish_outlives_the_helper_and_ends_with_the_boot() {
        let dir = tempfile::tempdir().unwrap();
        let file = |boot: &str| WishFile::new(dir.path(), boot.to_owned());
        assert_eq!(file("monday").profile(), None);
        file("monday").note(Some("acme")).unwrap();
        assert_eq!(file("monday").profile().as_deref(), Some("acme"));
        assert_eq!(file("tuesday").profile(), None);
        assert_eq!(file("").profile(), None, "a boot without a name is no boot");
        file("monday").note(None).unwrap();
        file("monday").note(None).unwrap();
        assert_eq!(file("monday").profile(), None);
    }

    #[test]
    fn a_damaged_wish_is_none() {
        let dir = tempfile::tempdir().unwrap();
        let file = WishFile::new(dir.path(), "monday".into());
        file.note(Some("acme")).unwrap();
        fs::write(dir.path().join("wish.json"), "{\"profile\":").unwrap();
        assert_eq!(file.profile(), None);
        file.note(Some("acme")).unwrap();
        assert_eq!(file.profile().as_deref(), Some("acme"));
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn this_boot_has_a_name() {
        assert_eq!(boot(), boot());
        assert!(boot().len() >= 32, "{}", boot());
    }
}
