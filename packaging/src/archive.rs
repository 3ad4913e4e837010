//! cpio archives, packed by gzip: what a package installs, and its scripts. Root and wheel own everything.

use cpio_archive::odc::{OdcBuilder, OdcHeader};
use flate2::write::GzEncoder;
use flate2::{Compression, GzBuilder};

use crate::tree::{Entry, Kind};

/// What ends an archive.
const TRAILER: &str = "TRAILER!!!";

/// The archive of `entries`, all as old as `mtime` (seconds since 1970).
///
/// # Errors
/// A file beyond 8 GiB.
pub fn write(entries: &[Entry], mtime: u32) -> anyhow::Result<Vec<u8>> {
    let mut packed: GzEncoder<Vec<u8>> = GzBuilder::new().write(vec![], Compression::best());
    let mut archive = OdcBuilder::new(&mut packed);
    let header = |inode: usize, mode: u32, file_size: usize, name: String| -> anyhow::Result<OdcHeader> {
        let (inode, file_size) = (u32::try_from(inode)?, file_size as u64);
        Ok(OdcHeader { dev: 0, inode, mode, uid: 0, gid: 0, nlink: 1, rdev: 0, mtime, file_size, name })
    };
    for (place, entry) in entries.iter().enumerate() {
        let data: &[u8] = match &entry.kind {
            Kind::Folder => &[],
            Kind::File(bytes) => bytes,
            Kind::Link(target) => target.as_bytes(),
        };
        let name = if entry.path.is_empty() { ".".to_owned() } else { format!("./{}", entry.path) };
        archive.append_header_with_data(header(place + 1, entry.full_mode(), data.len(), name)?, data)?;
    }
    // Not by `finish`, which puts the time of day into it.
    archive.append_header_with_data(header(0, 0, 0, TRAILER.to_owned())?, [])?;
    Ok(packed.finish()?)
}
