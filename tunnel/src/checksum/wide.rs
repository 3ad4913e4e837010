//! The same sum with the widest registers that the processor has.
//!
//! The program is built for every x86-64, so the compiler may use no more than SSE2; here the loop is
//! compiled once more for AVX2 and chosen at run time.

#![allow(unsafe_code, reason = "calling a function that is compiled for more than the baseline")]

/// The sum of 32-bit words in the machine's byte order; a remainder of less than 32 bytes is left out.
#[inline]
pub(super) fn blocks(bytes: &[u8]) -> u64 {
    #[cfg(target_arch = "x86_64")]
    if bytes.len() >= 256 && std::arch::is_x86_feature_detected!("avx2") {
        // SAFETY: the processor has just been found to have AVX2.
        return unsafe { blocks_avx2(bytes) };
    }
    plain(bytes)
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
fn blocks_avx2(bytes: &[u8]) -> u64 {
    plain(bytes)
}

#[inline(always)]
fn plain(bytes: &[u8]) -> u64 {
    let (blocks, _) = bytes.as_chunks::<32>();
    let mut lanes = [0u64; 8];
    for block in blocks {
        let (words, _) = block.as_chunks::<4>();
        for (lane, word) in lanes.iter_mut().zip(words) {
            *lane += u64::from(u32::from_ne_bytes(*word));
        }
    }
    lanes.iter().sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_processor_sums_alike() {
        let bytes: Vec<u8> = (0..70_000u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
        for len in [0, 31, 32, 255, 256, 257, 1300, 65_535] {
            assert_eq!(blocks(&bytes[..len]), plain(&bytes[..len]), "{len} bytes");
        }
    }
}
