//! A pin: the SHA-256 of a public key, which names a certificate authority or a device.
//!
//! It covers the SubjectPublicKeyInfo and not the certificate, so that a renewed certificate for
//! the same key keeps its pin (RFC 7469 section 2.4).

use std::{fmt, str::FromStr};

use aws_lc_rs::digest;
use data_encoding::{HEXLOWER, HEXLOWER_PERMISSIVE};
use serde::{Deserialize, Serialize};

use super::{IdentityError, facts};

/// SHA-256 over a DER SubjectPublicKeyInfo. Prints as 64 lower-case hex digits. It is public, so
/// it need not be compared in constant time.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct Pin([u8; 32]);

impl Pin {
    /// The pin of a DER SubjectPublicKeyInfo.
    pub fn of_spki(spki_der: &[u8]) -> Self {
        let mut pin = [0; 32];
        pin.copy_from_slice(digest::digest(&digest::SHA256, spki_der).as_ref());
        Self(pin)
    }

    /// The pin of the key in a DER certificate.
    ///
    /// # Errors
    /// [`IdentityError::Certificate`] for anything else.
    pub fn of_certificate(der: &[u8]) -> Result<Self, IdentityError> {
        Ok(Self::of_spki(facts::parse(der)?.public_key().raw))
    }

    /// The pin with these bytes.
    pub const fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// The 32 bytes.
    pub const fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

impl fmt::Display for Pin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&HEXLOWER.encode(&self.0))
    }
}

impl fmt::Debug for Pin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for Pin {
    type Err = IdentityError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let bytes = HEXLOWER_PERMISSIVE.decode(text.trim().as_bytes()).map_err(|_| IdentityError::Pin)?;
        Ok(Self(bytes.try_into().map_err(|_| IdentityError::Pin)?))
    }
}

impl From<Pin> for String {
    fn from(pin: Pin) -> Self {
        pin.to_string()
    }
}

impl TryFrom<String> for Pin {
    type Error = IdentityError;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}
