//! Everything that a gateway cannot make again, in one sealed file: its CA, its own certificate, its
//! connections' secret, and who may connect.
//!
//! The bytes are a tar archive, sealed (`sealed_file`). The configuration goes along for people to
//! look at; restoring writes it only where there is none. A registry on PostgreSQL is backed up with
//! that database's own tools.

use std::io::{self, Read};

use zeroize::Zeroizing;

/// The files of a state directory's `gateway` folder, in the order in which they are written.
pub const FILES: [&str; 4] = ["ca.pem", "ca.key", "leaf.pem", "cid.key"];
/// The registry, unless it is in a database.
pub const REGISTRY: &str = "registry.sqlite";
/// Files of the same folder that are there only while, and after, another CA takes the first one's place.
pub const MAYBE: [&str; 2] = crate::state::ROTATION_FILES;
/// The configuration, as it was.
pub const CONFIG: &str = "config.toml";
/// Says what this is to whoever opens it with other tools.
const ABOUT: &str = "about.txt";
/// More than a registry of a million devices takes.
const LARGEST_BYTES: u64 = 1 << 30;

/// A backup's files.
pub type Files = Vec<(String, Zeroizing<Vec<u8>>)>;

/// Why the archive cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum BackupError {
    /// It is no archive, or cut off. Sealing makes that unlikely.
    #[error("the backup cannot be read: {0}")]
    Archive(#[from] io::Error),
    /// Something is not there.
    #[error("the backup has no {0}")]
    Missing(&'static str),
    /// A file of an unexpected name or size, which is not unpacked.
    #[error("the backup holds {0:?}, which does not belong there")]
    Unexpected(String),
}

/// Puts files into one archive.
///
/// # Errors
/// [`BackupError::Archive`], for lack of memory.
pub fn pack(files: &Files, about: &str) -> Result<Zeroizing<Vec<u8>>, BackupError> {
    let mut archive = tar::Builder::new(Vec::new());
    let about = (ABOUT.to_owned(), Zeroizing::new(about.as_bytes().to_vec()));
    for (name, bytes) in std::iter::once(&about).chain(files) {
        let mut header = tar::Header::new_gnu();
        header.set_size(bytes.len() as u64);
        header.set_mode(0o600);
        archive.append_data(&mut header, name, bytes.as_slice())?;
    }
    Ok(Zeroizing::new(archive.into_inner()?))
}

/// Takes the archive apart again: [`FILES`], all of them, and [`REGISTRY`], [`MAYBE`] and [`CONFIG`] if they are there.
///
/// # Errors
/// [`BackupError`].
pub fn unpack(archive: &[u8]) -> Result<Files, BackupError> {
    let mut files = Files::new();
    for entry in tar::Archive::new(archive).entries()? {
        let entry = entry?;
        let name = entry.path()?.to_string_lossy().into_owned();
        let known = FILES.iter().chain(&MAYBE).chain(&[REGISTRY, CONFIG]).any(|file| *file == name);
        let plain = entry.header().entry_type().is_file() && entry.size() <= LARGEST_BYTES;
        if name == ABOUT {
            continue;
        }
        if !known || !plain || files.iter().any(|(other, _)| *other == name) {
            return Err(BackupError::Unexpected(name));
        }
        let mut bytes = Zeroizing::new(Vec::new());
        entry.take(LARGEST_BYTES).read_to_end(&mut bytes)?;
        files.push((name, bytes));
    }
    for name in FILES {
        if !files.iter().any(|(found, _)| found == name) {
            return Err(BackupError::Missing(name));
        }
    }
    Ok(files)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_packed_comes_back() {
        let packed = pack(&files(), "a backup").unwrap();
        assert_eq!(unpack(&packed).unwrap(), files());
    }

    #[test]
    fn what_is_missing_or_does_not_belong_there_is_named() {
        let without = |name: &str| files().into_iter().filter(|(found, _)| found != name).collect::<Files>();
        let told = unpack(&pack(&without("ca.key"), "").unwrap()).unwrap_err();
        assert!(matches!(told, BackupError::Missing("ca.key")), "{told}");
        let mut more = files();
        more.push(("evil.sh".into(), Zeroizing::new(vec![])));
        assert!(matches!(unpack(&pack(&more, "").unwrap()), Err(BackupError::Unexpected(name)) if name == "evil.sh"));
        let twice: Files = files().into_iter().chain(files()).collect();
        assert!(matches!(unpack(&pack(&twice, "").unwrap()), Err(BackupError::Unexpected(_))));
        assert!(unpack(&pack(&files(), "").unwrap()[..700]).is_err());
        assert!(matches!(unpack(b""), Err(BackupError::Missing("ca.pem"))));
    }

    fn files() -> Files {
        FILES
            .into_iter()
            .chain(MAYBE)
            .chain([CONFIG])
            .map(|name| (name.to_owned(), Zeroizing::new(name.as_bytes().to_vec())))
            .collect()
    }
}
