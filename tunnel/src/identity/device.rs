//! A device: its id, its key, and its answer to a challenge on a live session.

use std::{fmt, str::FromStr};

use data_encoding::{HEXLOWER, HEXLOWER_PERMISSIVE};
use rcgen::{CertificateParams, DistinguishedName, DnType, KeyPair, PKCS_ECDSA_P256_SHA256, PublicKeyData, SigningKey};
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use serde::{Deserialize, Serialize};

use super::{IdentityError, Pin, PrivatePem, facts, printable, random};

/// Keeps an answer from being valid as a signature for any other purpose: a TLS signature starts
/// with 64 spaces (RFC 8446 section 4.4.3), a certificate or request with `0x30`.
const CHALLENGE_LABEL: &[u8] = b"culvert/1 challenge answer\0";

/// The registry's name of a device: 128 random bits. Prints as 32 lower-case hex digits.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct DeviceId([u8; 16]);

impl DeviceId {
    /// A fresh id.
    ///
    /// # Errors
    /// [`IdentityError::Crypto`] when the system gives no random bytes.
    pub fn generate() -> Result<Self, IdentityError> {
        random().map(Self)
    }

    /// The id with these bytes.
    pub const fn from_bytes(bytes: [u8; 16]) -> Self {
        Self(bytes)
    }

    /// The 16 bytes.
    pub const fn as_bytes(&self) -> &[u8; 16] {
        &self.0
    }
}

impl fmt::Display for DeviceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&HEXLOWER.encode(&self.0))
    }
}

impl fmt::Debug for DeviceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for DeviceId {
    type Err = IdentityError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let bytes = HEXLOWER_PERMISSIVE.decode(text.as_bytes()).map_err(|_| IdentityError::DeviceId)?;
        Ok(Self(bytes.try_into().map_err(|_| IdentityError::DeviceId)?))
    }
}

impl From<DeviceId> for String {
    fn from(id: DeviceId) -> Self {
        id.to_string()
    }
}

impl TryFrom<String> for DeviceId {
    type Error = IdentityError;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

/// A P-256 key pair, of a device or of a gateway's leaf. `Debug` prints only its pin.
pub struct DeviceKey(KeyPair);

impl DeviceKey {
    /// Makes a key.
    ///
    /// # Errors
    /// [`IdentityError::Crypto`] when the system gives no random bytes.
    pub fn generate() -> Result<Self, IdentityError> {
        KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map(Self).map_err(|_| IdentityError::Crypto)
    }

    /// Reads a PKCS#8 PEM text.
    ///
    /// # Errors
    /// [`IdentityError::Pem`] for another text, [`IdentityError::Key`] for another kind of key.
    pub fn from_pem(text: &str) -> Result<Self, IdentityError> {
        let der = PrivatePem::parse(text)?;
        KeyPair::from_pkcs8_der_and_sign_algo(&der, &PKCS_ECDSA_P256_SHA256).map(Self).map_err(|_| IdentityError::Key)
    }

    /// The key as PKCS#8 PEM text.
    pub fn to_pem(&self) -> PrivatePem {
        PrivatePem::of_pkcs8(self.0.serialized_der())
    }

    /// The key in the form that rustls takes.
    pub fn private_key(&self) -> PrivateKeyDer<'static> {
        PrivatePkcs8KeyDer::from(self.0.serialize_der()).into()
    }

    /// The pin of the public key.
    pub fn pin(&self) -> Pin {
        Pin::of_spki(&self.0.subject_public_key_info())
    }

    /// A PKCS#10 certificate request for this key, DER. The name is a hint; the gateway assigns
    /// the subject.
    ///
    /// # Errors
    /// [`IdentityError::Crypto`] when signing fails.
    pub fn csr(&self, device_name: &str) -> Result<Vec<u8>, IdentityError> {
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        if let Some(name) = printable(device_name) {
            params.distinguished_name.push(DnType::CommonName, name);
        }
        let request = params.serialize_request(&self.0).map_err(|_| IdentityError::Crypto)?;
        Ok(request.der().to_vec())
    }

    /// Answers a gateway's challenge: an ASN.1 DER signature over nonce and the connection's TLS exporter
    /// value ([`crate::shard::mailbox::Established`]).
    ///
    /// # Errors
    /// [`IdentityError::Crypto`] when signing fails.
    pub fn answer_challenge(&self, nonce: &[u8], exporter: &[u8; 32]) -> Result<Vec<u8>, IdentityError> {
        self.sign(&challenge_message(nonce, exporter))
    }

    /// An ECDSA P-256 SHA-256 signature over `message`, ASN.1 DER.
    fn sign(&self, message: &[u8]) -> Result<Vec<u8>, IdentityError> {
        self.0.sign(message).map_err(|_| IdentityError::Crypto)
    }

    pub(super) fn pair(&self) -> &KeyPair {
        &self.0
    }

    pub(super) fn into_pair(self) -> KeyPair {
        self.0
    }
}

impl fmt::Debug for DeviceKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "DeviceKey({})", self.pin())
    }
}

/// Checks the answer to a challenge against the certificate that the device presented in TLS.
///
/// # Errors
/// [`IdentityError::Challenge`] unless the certified key signed this nonce on this connection.
pub fn verify_challenge(
    certificate_der: &[u8],
    nonce: &[u8],
    exporter: &[u8; 32],
    signature: &[u8],
) -> Result<(), IdentityError> {
    let certificate = facts::parse(certificate_der)?;
    let key = facts::p256(certificate.public_key()).ok_or(IdentityError::Challenge)?;
    key.verify(&challenge_message(nonce, exporter), signature).map_err(|_| IdentityError::Challenge)
}

fn challenge_message(nonce: &[u8], exporter: &[u8; 32]) -> Vec<u8> {
    // Only the nonce varies in length, and it comes last: no two inputs give the same message.
    [CHALLENGE_LABEL, exporter, nonce].concat()
}
