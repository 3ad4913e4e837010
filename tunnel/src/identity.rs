//! Who is who: the private CA, the gateway's certificate, device keys and certificates, pins.
//!
//! Everything is ECDSA on P-256 with SHA-256. Certificates only carry identity from one end to the
//! other: the registry decides which device may connect, so there is no CRL here that could expire
//! and lock everybody out. Pure: no file, no socket, and `now` is an argument.

use std::time::{Duration, SystemTime};

mod authority;
mod credential;
mod device;
mod facts;
mod names;
mod pin;
#[cfg(test)]
mod tests;

pub use rustls::pki_types::CertificateDer;

pub use authority::{Authority, Issued, MAX_CSR};
pub use credential::{Credential, PrivatePem, certificates_pem};
pub use device::{DeviceId, DeviceKey, verify_challenge};
pub use facts::{CertificateFacts, is_authority, is_device_certificate, is_signed_by, verify_csr};
pub use names::{MAX_NAME, printable};
pub use pin::Pin;

/// How long a CA is valid: ten years.
pub const AUTHORITY_LIFETIME: Duration = Duration::from_secs(3_652 * DAY);

/// How long a gateway's certificate is valid: one year.
pub const SERVER_LIFETIME: Duration = Duration::from_secs(365 * DAY);

/// How long a device's certificate is valid: 90 days.
pub const DEVICE_LIFETIME: Duration = Duration::from_secs(90 * DAY);

const DAY: u64 = 24 * 60 * 60;

/// Why a key, a certificate or a request cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum IdentityError {
    /// Not X.509, or bytes follow it.
    #[error("this is no X.509 certificate")]
    Certificate,
    /// Not a PKCS#8 key on P-256.
    #[error("this is no P-256 private key in PKCS#8")]
    Key,
    /// The PEM text has no such section, or a broken one.
    #[error("the PEM text lacks a readable {0} section")]
    Pem(&'static str),
    /// The private key and the certificate are not a pair.
    #[error("the private key does not belong to the certificate; both files must come from the same init or backup")]
    Mismatch,
    /// A certificate that may not issue others stands where the CA's is needed.
    #[error("the certificate is not a P-256 certificate authority")]
    NotAuthority,
    /// The CA is past its end, so nothing it issues would be accepted.
    #[error(
        "the certificate authority has expired; make a new one with init and invite every device again (ca rotate does it without that, before the end)"
    )]
    AuthorityExpired,
    /// The request is longer than [`MAX_CSR`].
    #[error("a certificate request of {0} bytes exceeds the {MAX_CSR}-byte limit")]
    RequestTooLong(usize),
    /// Not a PKCS#10 request.
    #[error("this is no PKCS#10 certificate request")]
    Request,
    /// The request's key is not on P-256.
    #[error("the certificate request is not for a P-256 key")]
    RequestKey,
    /// The request is not signed by the key that it names.
    #[error("the certificate request is not signed by its own key")]
    RequestSignature,
    /// A certificate for a gateway without names would never be accepted.
    #[error("a gateway certificate needs at least one host name or address")]
    NoServerName,
    /// Neither a host name nor an address.
    #[error("{0:?} is neither a host name nor an IP address")]
    ServerName(String),
    /// Nothing printable is left of the name.
    #[error("a name of 1 to {MAX_NAME} printable characters is needed")]
    Name,
    /// The signature is not the device key's over this challenge and this connection.
    #[error("the challenge was not answered by the device's key")]
    Challenge,
    /// The text is not 64 hexadecimal digits.
    #[error("a pin is 64 hexadecimal digits")]
    Pin,
    /// The text is not 32 hexadecimal digits.
    #[error("a device id is 32 hexadecimal digits")]
    DeviceId,
    /// The cryptographic library failed, for lack of memory or random numbers.
    #[error("the cryptographic library failed")]
    Crypto,
}

/// When to renew what is valid from `not_before` to `not_after`: at two thirds of its life.
pub fn renew_at(not_before: SystemTime, not_after: SystemTime) -> SystemTime {
    let life = not_after.duration_since(not_before).unwrap_or_default();
    not_before + life / 3 * 2
}

/// Random bytes from the operating system.
pub(crate) fn random<const N: usize>() -> Result<[u8; N], IdentityError> {
    let mut bytes = [0; N];
    aws_lc_rs::rand::fill(&mut bytes).map_err(|_| IdentityError::Crypto)?;
    Ok(bytes)
}
