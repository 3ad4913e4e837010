//! A file that only a passphrase opens: Argon2id (RFC 9106) and AES-256-GCM.
//!
//! ```text
//! "culvert sealed file\n"  format 1 (u8)  memory KiB (u32)  passes (u32)  salt (16)  nonce (12)  ciphertext, tag
//! ```
//!
//! Numbers are big-endian; what stands before the ciphertext is authenticated with it. Pure apart from
//! random numbers. Not the format of `age`: its crate brings 150 others into a daemon that faces the
//! internet.

use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey};
use aws_lc_rs::rand;
use zeroize::Zeroizing;

const MAGIC: &[u8] = b"culvert sealed file\n";
const FORMAT: u8 = 1;
/// Second of the recommended choices of RFC 9106 section 4 (64 MiB, three passes).
const COST: Cost = Cost { memory_kib: 64 * 1024, passes: 3 };
/// A file may ask for no more than this: whoever made it might not be a friend.
const MOST: Cost = Cost { memory_kib: 1024 * 1024, passes: 16 };
const SALT_BYTES: usize = 16;
const NONCE_BYTES: usize = 12;
const HEADER_BYTES: usize = MAGIC.len() + 1 + 4 + 4 + SALT_BYTES + NONCE_BYTES;

#[derive(Clone, Copy, Debug)]
struct Cost {
    memory_kib: u32,
    passes: u32,
}

/// Why a file does not open.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SealError {
    /// Something else.
    #[error("this is no file of culvert-server")]
    Foreign,
    /// Of a later version of this program.
    #[error("this file was written by a newer culvert-server; use that version")]
    Newer,
    /// The wrong passphrase; or bytes were changed or are missing, which looks the same.
    #[error("the passphrase is wrong, or the file is damaged")]
    Wrong,
    /// Out of memory, or out of random numbers.
    #[error("the cryptographic library failed")]
    Crypto,
}

/// Seals bytes with a passphrase.
///
/// # Errors
/// [`SealError::Crypto`].
pub fn seal(plain: &[u8], passphrase: &str) -> Result<Vec<u8>, SealError> {
    let mut random = [0; SALT_BYTES + NONCE_BYTES];
    rand::fill(&mut random).map_err(|_| SealError::Crypto)?;
    let mut header = MAGIC.to_vec();
    header.push(FORMAT);
    header.extend(COST.memory_kib.to_be_bytes());
    header.extend(COST.passes.to_be_bytes());
    header.extend(random);
    let (salt, nonce) = random.split_at(SALT_BYTES);
    let key = key(passphrase, salt, COST)?;
    let mut sealed = plain.to_vec();
    key.seal_in_place_append_tag(nonce_of(nonce)?, Aad::from(&header), &mut sealed).map_err(|_| SealError::Crypto)?;
    header.extend(sealed);
    Ok(header)
}

/// Opens what [`seal`] made.
///
/// # Errors
/// [`SealError`].
pub fn open(file: &[u8], passphrase: &str) -> Result<Zeroizing<Vec<u8>>, SealError> {
    let rest = file.strip_prefix(MAGIC).ok_or(SealError::Foreign)?;
    let (&format, rest) = rest.split_first().ok_or(SealError::Foreign)?;
    if format != FORMAT {
        return Err(SealError::Newer);
    }
    let (header, sealed) = file.split_at_checked(HEADER_BYTES).ok_or(SealError::Wrong)?;
    let number = |at: usize| rest.get(at..at + 4).and_then(|bytes| bytes.try_into().ok()).map(u32::from_be_bytes);
    let (Some(memory_kib), Some(passes)) = (number(0), number(4)) else { return Err(SealError::Wrong) };
    if memory_kib > MOST.memory_kib || passes > MOST.passes {
        return Err(SealError::Wrong);
    }
    let (salt, nonce) = header[HEADER_BYTES - SALT_BYTES - NONCE_BYTES..].split_at(SALT_BYTES);
    let key = key(passphrase, salt, Cost { memory_kib, passes }).map_err(|_| SealError::Wrong)?;
    let mut plain = Zeroizing::new(sealed.to_vec());
    let len = key.open_in_place(nonce_of(nonce)?, Aad::from(header), &mut plain).map_err(|_| SealError::Wrong)?.len();
    plain.truncate(len);
    Ok(plain)
}

fn nonce_of(bytes: &[u8]) -> Result<Nonce, SealError> {
    Nonce::try_assume_unique_for_key(bytes).map_err(|_| SealError::Crypto)
}

fn key(passphrase: &str, salt: &[u8], cost: Cost) -> Result<LessSafeKey, SealError> {
    let params = argon2::Params::new(cost.memory_kib, cost.passes, 1, Some(32)).map_err(|_| SealError::Crypto)?;
    let argon2 = argon2::Argon2::new(argon2::Algorithm::Argon2id, argon2::Version::V0x13, params);
    let mut key = Zeroizing::new([0; 32]);
    argon2.hash_password_into(passphrase.as_bytes(), salt, &mut *key).map_err(|_| SealError::Crypto)?;
    Ok(LessSafeKey::new(UnboundKey::new(&AES_256_GCM, &*key).map_err(|_| SealError::Crypto)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_passphrase_opens_it_and_no_changed_byte_goes_unnoticed() {
        let sealed = seal(b"the secret of the house", "open sesame").unwrap();
        assert_eq!(open(&sealed, "open sesame").unwrap().as_slice(), b"the secret of the house");
        assert!(!sealed.windows(6).any(|part| part == b"secret"));
        assert_eq!(open(&sealed, "open sesame ").unwrap_err(), SealError::Wrong);
        for at in [0, MAGIC.len(), MAGIC.len() + 4, MAGIC.len() + 8, MAGIC.len() + 12, HEADER_BYTES, sealed.len() - 1] {
            let mut changed = sealed.clone();
            changed[at] ^= 1;
            assert!(open(&changed, "open sesame").is_err(), "byte {at}");
        }
        for len in [0, 3, MAGIC.len(), MAGIC.len() + 3, HEADER_BYTES - 1, HEADER_BYTES, sealed.len() - 1] {
            assert!(open(&sealed[..len], "open sesame").is_err(), "{len} bytes");
        }
    }

    #[test]
    fn what_is_not_ours_or_newer_or_greedy_is_told_apart() {
        assert_eq!(open(b"PK\x03\x04", "x").unwrap_err(), SealError::Foreign);
        let mut newer = seal(b"", "x").unwrap();
        newer[MAGIC.len()] = 2;
        assert_eq!(open(&newer, "x").unwrap_err(), SealError::Newer);
        let mut greedy = seal(b"", "x").unwrap();
        greedy[MAGIC.len() + 1..MAGIC.len() + 5].copy_from_slice(&u32::MAX.to_be_bytes());
        assert_eq!(open(&greedy, "x").unwrap_err(), SealError::Wrong);
    }
}
