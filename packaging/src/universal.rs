//! Joins programs for single processors into one universal program: Apple's fat header (mach-o/fat.h) and the
//! programs behind it, each on a page of its own.

use anyhow::{Context, ensure};
use goblin::mach::constants::cputype::{CPU_TYPE_ARM64, CPU_TYPE_X86_64, CpuType};
use goblin::mach::header::{Header, MH_MAGIC_64};
use goblin::mach::{Mach, fat::FAT_MAGIC};

/// The processors of a Mac, with the name that lipo(1) and installers give them.
pub const PROCESSORS: [(&str, CpuType); 2] = [("x86_64", CPU_TYPE_X86_64), ("arm64", CPU_TYPE_ARM64)];
/// 2^14 bytes, the larger of the two page sizes: signatures are judged page by page.
const ALIGNMENT_EXPONENT: u32 = 14;

/// One processor's program in a universal one.
#[derive(Debug)]
pub struct Slice<'a> {
    /// As in [`PROCESSORS`].
    pub processor: &'static str,
    /// The whole Mach-O file.
    pub bytes: &'a [u8],
}

/// The programs in a file, universal or not, in the order of the file.
///
/// # Errors
/// What is not a 64-bit Mach-O program, or is for another processor than a Mac's.
pub fn slices(file: &[u8]) -> anyhow::Result<Vec<Slice<'_>>> {
    match Mach::parse(file).context("not a Mach-O file")? {
        Mach::Binary(_) => Ok(vec![slice(file)?]),
        Mach::Fat(fat) => fat
            .iter_arches()
            .map(|arch| {
                let arch = arch?;
                let range = arch.offset as usize..arch.offset as usize + arch.size as usize;
                slice(file.get(range).context("a universal file that is cut off")?)
            })
            .collect(),
    }
}

fn slice(bytes: &[u8]) -> anyhow::Result<Slice<'_>> {
    let cpu = header(bytes)?.cputype;
    let known = PROCESSORS.iter().find(|(_, code)| *code == cpu);
    let (processor, _) = known.with_context(|| format!("a program for processor {cpu:#x}, which no Mac has"))?;
    Ok(Slice { processor, bytes })
}

fn header(bytes: &[u8]) -> anyhow::Result<Header> {
    let Mach::Binary(program) = Mach::parse(bytes).context("not a Mach-O file")? else {
        anyhow::bail!("a universal file within a universal file");
    };
    ensure!(program.header.magic == MH_MAGIC_64, "not a 64-bit program of this byte order");
    Ok(program.header)
}

/// The universal program of `thin` ones; the same bytes whatever their order. A single one stays as it is.
///
/// # Errors
/// None, two for one processor, or what is no program for a Mac.
pub fn join(thin: &[Vec<u8>]) -> anyhow::Result<Vec<u8>> {
    let mut parts = vec![];
    for bytes in thin {
        let header = header(bytes)?;
        let slice = slice(bytes)?;
        let twice = parts.iter().any(|(other, _): &(Header, Slice<'_>)| other.cputype == header.cputype);
        ensure!(!twice, "two programs for {}. Give one for each processor", slice.processor);
        parts.push((header, slice));
    }
    parts.sort_by_key(|(header, _)| header.cputype);
    if let [(_, only)] = parts.as_slice() {
        return Ok(only.bytes.to_vec());
    }
    ensure!(!parts.is_empty(), "no program to join");

    let alignment = 1 << ALIGNMENT_EXPONENT;
    let mut file = vec![];
    file.extend(FAT_MAGIC.to_be_bytes());
    file.extend(u32::try_from(parts.len())?.to_be_bytes());
    let mut offset = alignment;
    for (header, slice) in &parts {
        let size = slice.bytes.len();
        for word in
            [header.cputype, header.cpusubtype, u32::try_from(offset)?, u32::try_from(size)?, ALIGNMENT_EXPONENT]
        {
            file.extend(word.to_be_bytes());
        }
        offset = (offset + size).next_multiple_of(alignment);
    }
    for (_, slice) in &parts {
        file.resize(file.len().next_multiple_of(alignment), 0);
        file.extend(slice.bytes);
    }
    Ok(file)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sample;

    #[test]
    fn two_programs_become_one_that_has_both_unchanged() {
        let (arm, intel) = (sample::program("arm64", &[]), sample::program("x86_64", &[]));
        let both = join(&[arm.clone(), intel.clone()]).unwrap();
        assert_eq!(both, join(&[intel.clone(), arm.clone()]).unwrap(), "in any order");
        let slices = slices(&both).unwrap();
        let found: Vec<_> = slices.iter().map(|slice| (slice.processor, slice.bytes)).collect();
        assert_eq!(found, [("x86_64", &intel[..]), ("arm64", &arm[..])]);
        for slice in slices {
            let offset = slice.bytes.as_ptr() as usize - both.as_ptr() as usize;
            assert_eq!(offset % 16384, 0, "on a page of its own");
        }
    }

    #[test]
    fn one_program_stays_as_it_is_and_nonsense_is_refused() {
        let arm = sample::program("arm64", &[]);
        assert_eq!(join(std::slice::from_ref(&arm)).unwrap(), arm);
        assert!(join(&[]).is_err());
        assert!(join(&[arm.clone(), arm.clone()]).unwrap_err().to_string().contains("two programs for arm64"));
        assert!(join(&[arm.clone(), b"\x7fELF and more, but of no Mac".to_vec()]).is_err());
        let both = join(&[arm.clone(), sample::program("x86_64", &[])]).unwrap();
        assert!(join(&[both]).is_err(), "universal ones are not joined again");
    }
}
