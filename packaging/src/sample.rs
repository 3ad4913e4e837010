//! Tiny Mach-O programs for tests: a header, the load commands that matter, a symbol table, an `__info_plist`.

use std::iter::once;

/// Byte range of the least macOS in the file that [`program`] makes.
const MINIMUM_AT: usize = HEADER_LEN + 72 + 80 + 12;
const HEADER_LEN: usize = 32;

/// A program for `processor` that needs `symbols` of libSystem.
pub fn program(processor: &str, symbols: &[&str]) -> Vec<u8> {
    program_with(processor, symbols, b"<plist/>")
}

/// The same, with the text of its `__info_plist`.
pub fn program_with(processor: &str, symbols: &[&str], info: &[u8]) -> Vec<u8> {
    let library = padded(b"/usr/lib/libSystem.B.dylib");
    let strings: Vec<u8> =
        once(b"\0".to_vec()).chain(symbols.iter().map(|name| [name.as_bytes(), b"\0"].concat())).flatten().collect();
    let commands_len = 72 + 80 + 24 + 24 + 24 + library.len();
    let info_at = HEADER_LEN + commands_len;
    let symbols_at = info_at + info.len().next_multiple_of(8);
    let strings_at = symbols_at + 16 * symbols.len();
    let end = strings_at + strings.len();
    let (cpu, subtype) = if processor == "arm64" { (0x0100_000c, 0) } else { (0x0100_0007, 3) };

    let mut file = vec![];
    // mach_header_64: MH_EXECUTE; four load commands.
    words(&mut file, &[0xfeed_facf, cpu, subtype, 2, 4, commands_len as u32, 0x0020_0085, 0]);
    // LC_SEGMENT_64 __TEXT with one section, __info_plist.
    words(&mut file, &[0x19, 72 + 80]);
    file.extend(name(b"__TEXT"));
    longs(&mut file, &[0x1_0000_0000, 0x4000, 0, end as u64]);
    words(&mut file, &[5, 5, 1, 0]);
    file.extend(name(b"__info_plist"));
    file.extend(name(b"__TEXT"));
    longs(&mut file, &[0x1_0000_0000 + info_at as u64, info.len() as u64]);
    words(&mut file, &[info_at as u32, 0, 0, 0, 0, 0, 0, 0]);
    // LC_BUILD_VERSION: macOS 13.0 at least.
    words(&mut file, &[0x32, 24, 1, 13 << 16, 13 << 16, 0]);
    // LC_SYMTAB.
    words(&mut file, &[2, 24, symbols_at as u32, symbols.len() as u32, strings_at as u32, strings.len() as u32]);
    // LC_LOAD_DYLIB.
    words(&mut file, &[0xc, 24 + library.len() as u32, 24, 2, 0, 0]);
    file.extend(library);
    file.extend(info);
    file.resize(symbols_at, 0);
    let mut at = 1;
    for symbol in symbols {
        // nlist_64: external and undefined, of the first library.
        words(&mut file, &[at, 0x0100_0001]);
        longs(&mut file, &[0]);
        at += symbol.len() as u32 + 1;
    }
    file.extend(strings);
    file
}

/// Makes it a program for another macOS: `major << 16 | minor << 8`.
pub fn set_minimum(program: &mut [u8], version: u32) {
    program[MINIMUM_AT..MINIMUM_AT + 4].copy_from_slice(&version.to_le_bytes());
}

fn words(file: &mut Vec<u8>, words: &[u32]) {
    file.extend(words.iter().flat_map(|word| word.to_le_bytes()));
}
fn longs(file: &mut Vec<u8>, longs: &[u64]) {
    file.extend(longs.iter().flat_map(|long| long.to_le_bytes()));
}
fn name(text: &[u8]) -> Vec<u8> {
    let mut name = text.to_vec();
    name.resize(16, 0);
    name
}
fn padded(text: &[u8]) -> Vec<u8> {
    let mut padded = text.to_vec();
    padded.resize((text.len() + 1).next_multiple_of(8), 0);
    padded
}
