//! A device key that opens only with a key from a user's keychain. Pure.
//!
//! AES-256-GCM (NIST SP 800-38D) with a fresh nonce, bound to the device's id: a sealed key of another profile does
//! not open, and neither does one that was changed.

use std::fmt;

use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use culvert_tunnel::identity::DeviceId;
use data_encoding::{BASE64, HEXLOWER};
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

/// Bytes of a keychain's key.
const KEY_BYTES: usize = 32;

/// What is on the disk instead of the key.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sealed {
    /// Hexadecimal.
    nonce: String,
    /// Base64: the key's PEM text, encrypted, and the tag.
    key: String,
}

/// Why a key does not open, or cannot be sealed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SealError {
    /// The keychain's key is not 32 bytes in hexadecimal.
    #[error("the keychain's key is malformed")]
    Malformed,
    /// The file was changed, or this is not the key that it was sealed with.
    #[error("the keychain's key does not fit")]
    Mismatch,
    /// The system gives no random bytes.
    #[error("the system gives no random bytes")]
    Random,
}

/// A key from a keychain.
pub struct Keychain(LessSafeKey);

impl fmt::Debug for Keychain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Keychain")
    }
}

impl Keychain {
    /// Reads 64 hexadecimal digits.
    ///
    /// # Errors
    /// [`SealError::Malformed`].
    pub fn parse(text: &str) -> Result<Self, SealError> {
        let bytes = Zeroizing::new(HEXLOWER.decode(text.as_bytes()).map_err(|_| SealError::Malformed)?);
        if bytes.len() != KEY_BYTES {
            return Err(SealError::Malformed);
        }
        let key = UnboundKey::new(&AES_256_GCM, &bytes).map_err(|_| SealError::Malformed)?;
        Ok(Self(LessSafeKey::new(key)))
    }

    /// Seals a key's PEM text for a device.
    ///
    /// # Errors
    /// [`SealError::Random`].
    pub fn seal(&self, pem: &str, device: DeviceId) -> Result<Sealed, SealError> {
        let mut nonce = [0; NONCE_LEN];
        getrandom::fill(&mut nonce).map_err(|_| SealError::Random)?;
        let mut bytes = pem.as_bytes().to_vec();
        let sealed = self.0.seal_in_place_append_tag(
            Nonce::assume_unique_for_key(nonce),
            Aad::from(device.as_bytes()),
            &mut bytes,
        );
        sealed.map_err(|_| SealError::Mismatch)?;
        Ok(Sealed { nonce: HEXLOWER.encode(&nonce), key: BASE64.encode(&bytes) })
    }

    /// The PEM text.
    ///
    /// # Errors
    /// [`SealError::Mismatch`].
    pub fn open(&self, sealed: &Sealed, device: DeviceId) -> Result<Zeroizing<String>, SealError> {
        let nonce = HEXLOWER.decode(sealed.nonce.as_bytes()).map_err(|_| SealError::Mismatch)?;
        let nonce = Nonce::try_assume_unique_for_key(&nonce).map_err(|_| SealError::Mismatch)?;
        let mut bytes = Zeroizing::new(BASE64.decode(sealed.key.as_bytes()).map_err(|_| SealError::Mismatch)?);
        let plain = self.0.open_in_place(nonce, Aad::from(device.as_bytes()), &mut bytes);
        let plain = plain.map_err(|_| SealError::Mismatch)?;
        let text = std::str::from_utf8(plain).map_err(|_| SealError::Mismatch)?;
        Ok(Zeroizing::new(text.to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sealed_key_opens_with_its_key_for_its_device_and_otherwise_not() {
        let device = DeviceId::from_bytes([1; 16]);
        let sealed = keychain(7).seal("the key", device).unwrap();
        assert!(!serde_json::to_string(&sealed).unwrap().contains("the key"));
        assert_eq!(keychain(7).open(&sealed, device).unwrap().as_str(), "the key");
        assert_eq!(keychain(8).open(&sealed, device), Err(SealError::Mismatch));
        assert_eq!(keychain(7).open(&sealed, DeviceId::from_bytes([2; 16])), Err(SealError::Mismatch));
        let again = keychain(7).seal("the key", device).unwrap();
        assert_ne!(again, sealed, "a nonce is used once");
    }

    #[test]
    fn a_sealed_key_that_was_changed_anywhere_does_not_open() {
        let device = DeviceId::from_bytes([1; 16]);
        let sealed = keychain(7).seal("the key", device).unwrap();
        for cut in 0..sealed.key.len() {
            let changed = Sealed { key: sealed.key[..cut].to_owned(), ..sealed.clone() };
            assert_eq!(keychain(7).open(&changed, device), Err(SealError::Mismatch));
        }
        let changed = Sealed { nonce: "00".repeat(NONCE_LEN), ..sealed };
        assert_eq!(keychain(7).open(&changed, device), Err(SealError::Mismatch));
    }

    #[test]
    fn what_is_no_key_is_malformed() {
        for text in ["", "00", "zz", &"0".repeat(63), &"0".repeat(66), &"AB".repeat(32)] {
            assert_eq!(Keychain::parse(text).unwrap_err(), SealError::Malformed, "{text}");
        }
    }

    fn keychain(byte: u8) -> Keychain {
        Keychain::parse(&HEXLOWER.encode(&[byte; KEY_BYTES])).unwrap()
    }
}
