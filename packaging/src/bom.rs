//! The bill of materials of a package: every path with owner, mode, size and checksum. Installer reads it before it
//! unpacks, and `pkgutil --files` and uninstallers afterwards.
//!
//! Written here since the builder of `apple-bom` 0.3 cannot be used: it panics at the first path (a `CString` of a name
//! with its NUL), stores whole paths where lsbom(8) expects names, and sums by another CRC. Its reader is what the
//! tests use. The format is that of mkbom(8): numbered blocks, and named trees of them.

use anyhow::Context;

use crate::tree::{Entry, Kind};

const BLOCK_BYTES: u32 = 4096;
/// Paths in one leaf of the tree, as mkbom(8) fills them.
const PATHS_PER_LEAF: usize = 256;
const HEADER_LEN: usize = 512;

/// The bill of `entries`, which begin with the root and name a folder before what is in it.
///
/// # Errors
/// A path whose folder is not there, or a size beyond 4 GiB.
pub fn write(entries: &[Entry], mtime: u32) -> anyhow::Result<Vec<u8>> {
    let mut store = Store::default();

    let mut info = Bytes::default();
    info.words(&[1, u32::try_from(entries.len())? + 1, 1, 0, 0, 0, 0]);
    let info = store.add(info);

    let mut leaves = vec![];
    let mut rows = vec![];
    for (place, entry) in entries.iter().enumerate() {
        let id = u32::try_from(place)? + 1;
        let parent = match entry.parent() {
            None => 0,
            Some(parent) => {
                let found = entries[..place].iter().position(|other| other.path == parent);
                u32::try_from(found.with_context(|| format!("{}: its folder is not there", entry.path))?)? + 1
            }
        };
        let record = store.add(record(entry, mtime)?);
        let mut number = Bytes::default();
        number.words(&[id, record]);
        let number = store.add(number);
        let mut name = Bytes::default();
        name.words(&[parent]);
        name.0.extend(entry.name().bytes());
        name.0.push(0);
        rows.push((number, store.add(name)));
    }
    // In the tree: by folder, then by name.
    let key = |row: &(u32, u32)| store.blocks[row.1 as usize].0.clone();
    rows.sort_by_key(key);
    let chunks: Vec<_> = rows.chunks(PATHS_PER_LEAF).collect();
    let first = store.next();
    for (place, chunk) in chunks.iter().enumerate() {
        let place = u32::try_from(place)?;
        let forward = if place as usize + 1 < chunks.len() { first + place + 1 } else { 0 };
        let backward = if place > 0 { first + place - 1 } else { 0 };
        leaves.push((store.add(paths(true, chunk, forward, backward)?), chunk[chunk.len() - 1].1));
    }
    let top = if let [(only, _)] = leaves.as_slice() { *only } else { store.add(paths(false, &leaves, 0, 0)?) };
    let paths_tree = store.add(tree(top, BLOCK_BYTES, u32::try_from(entries.len())?));

    let empty = |store: &mut Store, bytes| -> anyhow::Result<u32> {
        let leaf = store.add(paths(true, &[], 0, 0)?);
        Ok(store.add(tree(leaf, bytes, 0)))
    };
    let hard_links = empty(&mut store, BLOCK_BYTES)?;
    let versions = empty(&mut store, 128)?;
    let mut index = Bytes::default();
    index.words(&[1, versions, 0]);
    index.0.push(0);
    let index = store.add(index);
    let large = empty(&mut store, BLOCK_BYTES)?;
    store.finish(&[
        ("BomInfo", info),
        ("Paths", paths_tree),
        ("HLIndex", hard_links),
        ("VIndex", index),
        ("Size64", large),
    ])
}

/// One path's record: type, mode, owner (root and wheel), time, size, checksum.
fn record(entry: &Entry, mtime: u32) -> anyhow::Result<Bytes> {
    let mut block = Bytes::default();
    let (kind, size, sum, target) = match &entry.kind {
        Kind::Folder => (2, 0, 0, None),
        Kind::File(bytes) => (1, u32::try_from(bytes.len())?, cksum(bytes), None),
        Kind::Link(target) => (3, u32::try_from(target.len())?, cksum(target.as_bytes()), Some(target)),
    };
    block.0.extend([kind, 1]);
    block.halves(&[if kind == 1 { 0xf } else { 0x3 }, u16::try_from(entry.full_mode())?]);
    block.words(&[0, 0, mtime, size]);
    block.0.push(1);
    block.words(&[sum, target.map_or(Ok(0), |target| u32::try_from(target.len() + 1))?]);
    if let Some(target) = target {
        block.0.extend(target.bytes());
        block.0.push(0);
    }
    Ok(block)
}

fn paths(is_leaf: bool, rows: &[(u32, u32)], forward: u32, backward: u32) -> anyhow::Result<Bytes> {
    let mut block = Bytes::default();
    block.halves(&[is_leaf.into(), u16::try_from(rows.len())?]);
    block.words(&[forward, backward]);
    for (value, key) in rows {
        block.words(&[*value, *key]);
    }
    Ok(block)
}

fn tree(top: u32, block_bytes: u32, count: u32) -> Bytes {
    let mut block = Bytes(b"tree".to_vec());
    block.words(&[1, top, block_bytes, count]);
    block.0.push(0);
    block
}

/// The checksum of cksum(1).
fn cksum(bytes: &[u8]) -> u32 {
    let length = bytes.len().to_le_bytes();
    let significant = length.iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1);
    !bytes
        .iter()
        .chain(&length[..significant])
        .fold(0, |sum, byte| sum << 8 ^ TABLE[(sum >> 24) as usize ^ usize::from(*byte)])
}

const TABLE: [u32; 256] = {
    let mut table = [0; 256];
    let mut byte = 0;
    while byte < 256 {
        let mut sum = (byte as u32) << 24;
        let mut bit = 0;
        while bit < 8 {
            sum = if sum >> 31 == 1 { sum << 1 ^ 0x04c1_1db7 } else { sum << 1 };
            bit += 1;
        }
        table[byte] = sum;
        byte += 1;
    }
    table
};

/// Big-endian bytes of one block.
#[derive(Clone, Debug, Default)]
struct Bytes(Vec<u8>);

impl Bytes {
    fn words(&mut self, words: &[u32]) {
        self.0.extend(words.iter().flat_map(|word| word.to_be_bytes()));
    }

    fn halves(&mut self, halves: &[u16]) {
        self.0.extend(halves.iter().flat_map(|half| half.to_be_bytes()));
    }
}

/// Blocks by number; number 0 is empty.
struct Store {
    blocks: Vec<Bytes>,
}

impl Default for Store {
    fn default() -> Self {
        Self { blocks: vec![Bytes::default()] }
    }
}

impl Store {
    fn next(&self) -> u32 {
        self.blocks.len() as u32
    }

    fn add(&mut self, block: Bytes) -> u32 {
        self.blocks.push(block);
        self.next() - 1
    }

    fn finish(&self, named: &[(&str, u32)]) -> anyhow::Result<Vec<u8>> {
        let mut vars = Bytes::default();
        vars.words(&[u32::try_from(named.len())?]);
        for (name, block) in named {
            vars.words(&[*block]);
            vars.0.push(u8::try_from(name.len())?);
            vars.0.extend(name.bytes());
        }
        let (mut index, mut body) = (Bytes::default(), vec![]);
        index.words(&[self.next()]);
        let mut at = HEADER_LEN + vars.0.len();
        for block in &self.blocks {
            let empty = block.0.is_empty();
            index.words(&[if empty { 0 } else { u32::try_from(at)? }, u32::try_from(block.0.len())?]);
            body.extend(&block.0);
            at += block.0.len();
        }
        // Free blocks: none, of two places.
        index.words(&[2, 0, 0, 0, 0]);

        let mut file = Bytes(b"BOMStore".to_vec());
        let (index_len, vars_len) = (u32::try_from(index.0.len())?, u32::try_from(vars.0.len())?);
        file.words(&[1, self.next() - 1, u32::try_from(at)?, index_len, u32::try_from(HEADER_LEN)?, vars_len]);
        file.0.resize(HEADER_LEN, 0);
        Ok([file.0, vars.0, body, index.0].concat())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use apple_bom::ParsedBom;

    fn entries(files: usize) -> Vec<Entry> {
        let mut entries = vec![Entry { path: String::new(), mode: 0o755, kind: Kind::Folder }];
        entries.push(Entry { path: "usr".into(), mode: 0o755, kind: Kind::Folder });
        for number in 0..files {
            let kind = Kind::File(format!("{number}").into_bytes());
            entries.push(Entry { path: format!("usr/file-{number}"), mode: 0o644, kind });
        }
        entries.push(Entry { path: "usr/link".into(), mode: 0o755, kind: Kind::Link("file-0".into()) });
        entries
    }

    #[test]
    fn the_checksum_is_that_of_cksum() {
        // printf '' | cksum; printf 123456789 | cksum
        assert_eq!(cksum(b""), 4_294_967_295);
        assert_eq!(cksum(b"123456789"), 930_766_865);
    }

    #[test]
    fn another_reader_finds_every_path_with_owner_and_mode() {
        for files in [1, 700] {
            let entries = entries(files);
            let bytes = write(&entries, 1_700_000_000).unwrap();
            let bom = ParsedBom::parse(&bytes).unwrap();
            let mut paths = bom.paths().unwrap();
            paths.sort_by(|one, other| one.path().cmp(other.path()));
            assert_eq!(paths.len(), entries.len());
            let file = paths.iter().find(|path| path.path().ends_with("usr/file-0")).unwrap();
            assert_eq!((file.user_id(), file.group_id(), file.file_mode()), (0, 0, 0o100_644));
            assert_eq!((file.size(), file.crc32()), (1, Some(cksum(b"0"))));
            assert_eq!(file.modified_time().timestamp(), 1_700_000_000);
            assert!(paths.iter().any(|path| path.path().ends_with("usr/link") && path.link_name() == Some("file-0")));
        }
    }

    #[test]
    fn a_path_without_its_folder_is_refused() {
        let lost = Entry { path: "usr/lost".into(), mode: 0o644, kind: Kind::File(vec![]) };
        assert!(write(&[entries(0).remove(0), lost], 0).unwrap_err().to_string().contains("usr/lost"));
    }
}
