//! Files that are there whole or not at all.

use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use anyhow::Context;

/// Writes a file beside `path`, and gives it its name when all of it is on the disk.
///
/// # Errors
/// What the system refuses; `path` is then as it was.
pub fn write(path: &Path, bytes: &[u8], mode: u32) -> anyhow::Result<()> {
    let name = || path.display().to_string();
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let mut file = tempfile::NamedTempFile::new_in(folder).with_context(name)?;
    file.write_all(bytes).with_context(name)?;
    file.as_file().set_permissions(std::fs::Permissions::from_mode(mode)).with_context(name)?;
    file.as_file().sync_all().with_context(name)?;
    file.persist(path).with_context(name)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_has_the_name_when_the_folder_cannot_be_written_to() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("missing/Culvert.pkg");
        assert!(write(&path, b"x", 0o644).unwrap_err().to_string().contains("Culvert.pkg"));
        let path = folder.path().join("Culvert.pkg");
        write(&path, b"x", 0o644).unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"x");
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1, "nothing beside it");
    }
}
