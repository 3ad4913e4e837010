//! What a program needs of macOS, against a checked-in list.
//!
//! There is no SDK where this is built: a name that no Mac has would only fail there, when the program starts. So each
//! library and symbol that a program needs has a line in `packaging/macos/imports/PROGRAM.txt`,
//! `LIBRARY SYMBOL`, and what has none stops the build. The same lists are the linker's view of the frameworks.

use std::collections::BTreeSet;

use anyhow::{Context, bail, ensure};
use goblin::mach::MachO;
use goblin::mach::load_command::CommandVariant;

use crate::names::MINIMUM_MACOS;
use crate::universal::{Slice, slices};

/// N_WEAK_REF of mach-o/nlist.h: may be missing at load time.
const WEAK_REFERENCE: u16 = 0x40;
/// PLATFORM_MACOS of mach-o/loader.h.
const PLATFORM_MACOS: u32 = 1;

/// Pairs of an install name and a symbol.
pub type Imports = BTreeSet<(String, String)>;

/// The lines of a list; `#` begins a comment.
///
/// # Errors
/// A line that has not two words.
pub fn parse(list: &str) -> anyhow::Result<Imports> {
    let lines = list.lines().map(|line| line.split('#').next().unwrap_or_default().trim());
    lines
        .filter(|line| !line.is_empty())
        .map(|line| {
            let (library, symbol) = line.split_once(' ').with_context(|| format!("`{line}` is not LIBRARY SYMBOL"))?;
            Ok((library.to_owned(), symbol.trim().to_owned()))
        })
        .collect()
}

/// What all processors' programs in `file` need, together.
///
/// # Errors
/// What is no program for a Mac, is not for [`MINIMUM_MACOS`], or needs a symbol of no library.
pub fn needed(file: &[u8]) -> anyhow::Result<Imports> {
    let mut all = Imports::new();
    for slice in slices(file)? {
        all.extend(needed_by(&slice).with_context(|| format!("the {} program", slice.processor))?);
    }
    Ok(all)
}

fn needed_by(slice: &Slice<'_>) -> anyhow::Result<Imports> {
    let program = MachO::parse(slice.bytes, 0)?;
    check_minimum(&program)?;
    let mut imports = Imports::new();
    for symbol in program.symbols.iter().flatten() {
        let (name, entry) = symbol?;
        if !entry.is_undefined() || entry.is_stab() {
            continue;
        }
        // The library's place among the load commands, from 1; goblin puts the program itself at 0.
        let place = usize::from(entry.n_desc >> 8);
        let library = program.libs.get(place).filter(|_| place > 0);
        match library {
            Some(library) => imports.insert(((*library).to_owned(), name.to_owned())),
            None if entry.n_desc & WEAK_REFERENCE != 0 => continue,
            None => bail!("{name} is of no library, and would be looked up when the program starts"),
        };
    }
    // A library that nothing is needed of is loaded all the same.
    for library in program.libs.iter().skip(1) {
        if !imports.iter().any(|(other, _)| other == library) {
            imports.insert(((*library).to_owned(), "-".to_owned()));
        }
    }
    Ok(imports)
}

fn check_minimum(program: &MachO<'_>) -> anyhow::Result<()> {
    let version = program.load_commands.iter().find_map(|command| match command.command {
        CommandVariant::BuildVersion(build) if build.platform == PLATFORM_MACOS => Some(build.minos),
        CommandVariant::VersionMinMacosx(least) => Some(least.version),
        _ => None,
    });
    let version = version.context("it does not say which macOS it is for")?;
    let text = format!("{}.{}", version >> 16, version >> 8 & 0xff);
    ensure!(text == MINIMUM_MACOS, "it is for macOS {text}, not {MINIMUM_MACOS}. Set MACOSX_DEPLOYMENT_TARGET");
    Ok(())
}

/// Compares what a program needs with its list.
///
/// # Errors
/// Names each library and symbol that has no line.
pub fn check(program: &str, file: &[u8], allowed: &Imports) -> anyhow::Result<()> {
    let needed = needed(file).with_context(|| program.to_owned())?;
    // Lines of libraries that nothing is needed of are for the library alone.
    let news: Vec<_> = needed.difference(allowed).map(|(library, symbol)| format!("  {library} {symbol}")).collect();
    ensure!(
        news.is_empty(),
        "{program} needs what packaging/macos/imports/{program}.txt has not:\n{}\nAdd these lines if macOS \
         {MINIMUM_MACOS} has them",
        news.join("\n")
    );
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sample;

    const SYSTEM: &str = "/usr/lib/libSystem.B.dylib";

    #[test]
    fn a_symbol_without_a_line_is_named() {
        let file = sample::program("arm64", &["_close", "_clsoe"]);
        let allowed = parse(&format!("# what every program needs\n{SYSTEM} _close\n")).unwrap();
        let error = check("culvert", &file, &allowed).unwrap_err().to_string();
        assert!(error.contains("libSystem.B.dylib _clsoe") && !error.contains("_close\n"), "{error}");
        let allowed = parse(&format!("{SYSTEM} _close\n{SYSTEM} _clsoe # a typo\n")).unwrap();
        check("culvert", &file, &allowed).unwrap();
    }

    #[test]
    fn a_universal_program_needs_what_each_half_needs() {
        let halves = [sample::program("arm64", &["_close"]), sample::program("x86_64", &["_close$NOCANCEL"])];
        let file = crate::universal::join(&halves).unwrap();
        let symbols: Vec<_> = needed(&file).unwrap().into_iter().map(|(_, symbol)| symbol).collect();
        assert_eq!(symbols, ["_close", "_close$NOCANCEL"]);
    }

    #[test]
    fn another_macos_and_a_broken_line_are_refused() {
        let mut file = sample::program("arm64", &[]);
        sample::set_minimum(&mut file, 11 << 16);
        let error = format!("{:#}", needed(&file).unwrap_err());
        assert!(error.contains("macOS 11.0, not 13.0"), "{error}");
        assert!(parse("one-word").is_err());
    }
}
