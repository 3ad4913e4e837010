//! The files of a package as they will be on the Mac, read from a folder that has them laid out.
//!
//! Whoever built the folder owns its files; in the package all belong to root and wheel, and modes are 0755 or 0644:
//! nobody but root may change what root runs.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use anyhow::{Context, bail, ensure};

/// One path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Below the root, without a slash in front; the root is the empty one.
    pub path: String,
    /// Permissions: the lowest nine bits.
    pub mode: u32,
    /// What is there.
    pub kind: Kind,
}

/// What is at a path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A folder.
    Folder,
    /// A file with its bytes.
    File(Vec<u8>),
    /// A symbolic link with its target.
    Link(String),
}

impl Entry {
    /// The path of the folder it is in; none for the root.
    pub fn parent(&self) -> Option<&str> {
        if self.path.is_empty() { None } else { Some(self.path.rsplit_once('/').map_or("", |(parent, _)| parent)) }
    }

    /// The last part of its path.
    pub fn name(&self) -> &str {
        if self.path.is_empty() { "." } else { self.path.rsplit('/').next().unwrap_or_default() }
    }

    /// Permissions and type, as stat(2) gives them.
    pub fn full_mode(&self) -> u32 {
        let kind = match self.kind {
            Kind::Folder => 0o040_000,
            Kind::File(_) => 0o100_000,
            Kind::Link(_) => 0o120_000,
        };
        kind | self.mode
    }
}

/// Everything below `root`, the root first, in the order of names.
///
/// # Errors
/// What cannot be read, what is neither file, folder nor link, and what macOS's Finder leaves behind (`._*`,
/// `.DS_Store`): launchd refuses files that came with it.
pub fn read(root: &Path) -> anyhow::Result<Vec<Entry>> {
    ensure!(root.is_dir(), "{} is not a folder. Run `bundle` first", root.display());
    let mut entries = vec![Entry { path: String::new(), mode: 0o755, kind: Kind::Folder }];
    descend(root, "", &mut entries)?;
    Ok(entries)
}

fn descend(folder: &Path, path: &str, entries: &mut Vec<Entry>) -> anyhow::Result<()> {
    let mut names = vec![];
    for entry in fs::read_dir(folder).with_context(|| folder.display().to_string())? {
        let name = entry?.file_name().into_string();
        names.push(name.ok().with_context(|| format!("{}: a name that is not UTF-8", folder.display()))?);
    }
    names.sort();
    for name in names {
        let (file, path) = (folder.join(&name), if path.is_empty() { name.clone() } else { format!("{path}/{name}") });
        ensure!(!name.starts_with("._") && name != ".DS_Store", "{path}: left by Finder. Remove it");
        let metadata = file.symlink_metadata()?;
        let executable = metadata.permissions().mode() & 0o111 != 0;
        if metadata.is_dir() {
            entries.push(Entry { path: path.clone(), mode: 0o755, kind: Kind::Folder });
            descend(&file, &path, entries)?;
        } else if metadata.is_file() {
            let bytes = fs::read(&file).with_context(|| file.display().to_string())?;
            entries.push(Entry { path, mode: if executable { 0o755 } else { 0o644 }, kind: Kind::File(bytes) });
        } else if metadata.is_symlink() {
            let target = fs::read_link(&file)?.into_os_string().into_string();
            let target = target.ok().with_context(|| format!("{path}: a target that is not UTF-8"))?;
            entries.push(Entry { path, mode: 0o755, kind: Kind::Link(target) });
        } else {
            bail!("{path}: neither file, folder nor link");
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn modes_are_tidied_and_finders_leavings_refused() {
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir(folder.path().join("bin")).unwrap();
        let program = folder.path().join("bin/program");
        fs::write(&program, "x").unwrap();
        fs::set_permissions(&program, fs::Permissions::from_mode(0o4777)).unwrap();
        fs::write(folder.path().join("bin/a text"), "y").unwrap();
        std::os::unix::fs::symlink("program", folder.path().join("link")).unwrap();
        let found: Vec<_> =
            read(folder.path()).unwrap().iter().map(|entry| (entry.path.clone(), entry.full_mode())).collect();
        let expected = [
            ("", 0o40_755),
            ("bin", 0o40_755),
            ("bin/a text", 0o100_644),
            ("bin/program", 0o100_755),
            ("link", 0o120_755),
        ];
        assert_eq!(found, expected.map(|(path, mode)| (path.to_owned(), mode)));

        fs::write(folder.path().join("bin/._program"), "").unwrap();
        assert!(read(folder.path()).unwrap_err().to_string().contains("bin/._program"));
        assert!(read(&folder.path().join("nowhere")).unwrap_err().to_string().contains("bundle"));
    }
}
