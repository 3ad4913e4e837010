//! The reference that keeps pf switched on: what the kernel is asked, and what is kept on disk to give it back.
//!
//! pf is off on a Mac. Who needs it takes a reference (`DIOCSTARTREF`) and gives it back (`DIOCSTOPREF`); it runs
//! while somebody holds one, and outlives the holder's process, so the token is kept. Never `DIOCSTOP`, which takes
//! everybody's. Pure but for the file: tested on Linux. Layouts and numbers: XNU `bsd/net/pfvar.h`, those of `pfctl`.

use std::fs;
use std::io;
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::files;

/// `_IOWR('D', 5, struct pfioc_tokens)`: lists the references.
pub(super) const DIOCGETSTARTERS: u64 = 0xC010_4405;
/// `_IOR('D', 8, u_int64_t)`: takes a reference and gives its token.
pub(super) const DIOCSTARTREF: u64 = 0x4008_4408;
/// `_IOWR('D', 9, struct pfioc_remove_token)`: gives one back.
pub(super) const DIOCSTOPREF: u64 = 0xC010_4409;

/// `struct pfioc_tokens`, in a program of 64 bits.
#[repr(C)]
pub(super) struct Tokens {
    /// In: bytes of room, 0 to ask how many are needed. Out: bytes written.
    pub(super) size: i32,
    pub(super) buffer: *mut u8,
}

/// `struct pfioc_remove_token`.
#[repr(C)]
pub(super) struct RemoveToken {
    pub(super) token: u64,
    /// Out: references that are left.
    pub(super) references: u64,
}

const _: () = {
    assert!(size_of::<Tokens>() == argument_bytes(DIOCGETSTARTERS));
    assert!(size_of::<RemoveToken>() == argument_bytes(DIOCSTOPREF));
    assert!(size_of::<u64>() == argument_bytes(DIOCSTARTREF));
};

/// How many bytes a request's argument has, by its number (`IOCPARM_LEN`).
const fn argument_bytes(request: u64) -> usize {
    ((request >> 16) & 0x1fff) as usize
}

/// `struct pfioc_token`, packed: token, time, pid, name of the process.
pub(super) const TOKEN_BYTES: usize = 8 + 8 + 4 + 64;

/// True when a list of references has this token.
pub(super) fn is_listed(list: &[u8], token: u64) -> bool {
    list.chunks_exact(TOKEN_BYTES).any(|entry| entry[..8] == token.to_ne_bytes())
}

/// A reference that this helper, or one before it, holds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Reference {
    pub(super) token: u64,
    /// Tokens end with the boot of the machine.
    boot: String,
}

impl Reference {
    pub(super) fn new(token: u64, boot: &str) -> Self {
        Self { token, boot: boot.into() }
    }

    /// The one on disk, if it is of this boot. A file that cannot be read is none.
    pub(super) fn load(file: &Path, boot: &str) -> Option<Self> {
        let kept: Self = serde_json::from_slice(&fs::read(file).ok()?).ok()?;
        (kept.boot == boot && !boot.is_empty()).then_some(kept)
    }

    pub(super) fn save(&self, file: &Path) -> io::Result<()> {
        files::replace(file, &serde_json::to_vec(self)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_found_among_others() {
        let entry = |token: u64| {
            let mut entry = token.to_ne_bytes().to_vec();
            entry.resize(TOKEN_BYTES, 0xAA);
            entry
        };
        let list = [entry(3), entry(0xdead_beef_0000_0001), entry(9)].concat();
        assert!(is_listed(&list, 0xdead_beef_0000_0001));
        assert!(is_listed(&list, 9));
        assert!(!is_listed(&list, 0xAAAA_AAAA_AAAA_AAAA), "only a token is one");
        assert!(!is_listed(&list[..TOKEN_BYTES - 1], 3), "half an entry is none");
        assert!(!is_listed(&[], 3));
    }

    #[test]
    fn a_reference_outlives_the_helper_and_ends_with_the_boot() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("pf.json");
        assert_eq!(Reference::load(&file, "monday"), None);
        let held = Reference::new(u64::MAX, "monday");
        held.save(&file).unwrap();
        assert_eq!(Reference::load(&file, "monday"), Some(held));
        assert_eq!(Reference::load(&file, "tuesday"), None);
        fs::write(&file, "{").unwrap();
        assert_eq!(Reference::load(&file, "monday"), None);
    }
}
