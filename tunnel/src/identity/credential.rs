//! What one end of a TLS connection presents: a certificate chain and the key that fits it.

use std::{fmt, time::SystemTime};

use data_encoding::BASE64;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, pem::PemObject};
use zeroize::Zeroizing;

use super::{CertificateFacts, DeviceKey, IdentityError, Pin, facts, renew_at};

/// A certificate chain, leaf first and CA last, with the leaf's private key.
#[derive(Debug)]
pub struct Credential {
    chain: Vec<CertificateDer<'static>>,
    key: DeviceKey,
}

impl Credential {
    /// Joins a chain of DER certificates (leaf first) with the leaf's key.
    ///
    /// # Errors
    /// [`IdentityError::Certificate`] for an empty or unreadable chain, [`IdentityError::Mismatch`]
    /// when the key is not the leaf's.
    pub fn new(chain: Vec<CertificateDer<'static>>, key: DeviceKey) -> Result<Self, IdentityError> {
        let leaf = chain.first().ok_or(IdentityError::Certificate)?;
        if Pin::of_certificate(leaf)? != key.pin() {
            return Err(IdentityError::Mismatch);
        }
        for issuer in &chain[1..] {
            facts::parse(issuer)?;
        }
        Ok(Self { chain, key })
    }

    /// Reads what [`Self::chain_pem`] and [`Self::key_pem`] wrote.
    ///
    /// # Errors
    /// As [`Self::new`], and [`IdentityError::Pem`] or [`IdentityError::Key`] for other texts.
    pub fn from_pem(chain_pem: &str, key_pem: &str) -> Result<Self, IdentityError> {
        Self::new(Self::chain_from_pem(chain_pem)?, DeviceKey::from_pem(key_pem)?)
    }

    /// Reads what [`Self::chain_pem`] wrote, for those who have no key.
    ///
    /// # Errors
    /// [`IdentityError::Pem`] for other texts, and for one without a certificate.
    pub fn chain_from_pem(chain_pem: &str) -> Result<Vec<CertificateDer<'static>>, IdentityError> {
        let chain = CertificateDer::pem_slice_iter(chain_pem.as_bytes())
            .collect::<Result<Vec<_>, _>>()
            .map_err(|_| IdentityError::Pem(CERTIFICATE))?;
        if chain.is_empty() { Err(IdentityError::Pem(CERTIFICATE)) } else { Ok(chain) }
    }

    /// The certificates, leaf first.
    pub fn chain(&self) -> &[CertificateDer<'static>] {
        &self.chain
    }

    /// The private key, in the form that rustls takes.
    pub fn private_key(&self) -> PrivateKeyDer<'static> {
        self.key.private_key()
    }

    /// The private key.
    pub fn key(&self) -> &DeviceKey {
        &self.key
    }

    /// The chain as PEM text, leaf first.
    pub fn chain_pem(&self) -> String {
        certificates_pem(&self.chain)
    }

    /// The private key as PEM text (PKCS#8).
    pub fn key_pem(&self) -> PrivatePem {
        self.key.to_pem()
    }

    /// What the leaf says.
    ///
    /// # Errors
    /// None for a credential that [`Self::new`] accepted.
    pub fn facts(&self) -> Result<CertificateFacts, IdentityError> {
        CertificateFacts::read(&self.chain[0])
    }

    /// When the leaf is due for renewal.
    ///
    /// # Errors
    /// As [`Self::facts`].
    pub fn renew_at(&self) -> Result<SystemTime, IdentityError> {
        self.facts().map(|facts| renew_at(facts.not_before, facts.not_after))
    }
}

/// The PEM text of a private key. Is wiped when dropped, and never printed by `Debug`.
#[derive(Clone)]
pub struct PrivatePem(Zeroizing<String>);

impl PrivatePem {
    /// The text, to be written where only its owner can read it.
    pub fn expose(&self) -> &str {
        &self.0
    }

    pub(super) fn of_pkcs8(der: &[u8]) -> Self {
        Self(Zeroizing::new(pem(PRIVATE_KEY, der)))
    }

    pub(super) fn parse(text: &str) -> Result<PrivatePkcs8KeyDer<'static>, IdentityError> {
        PrivatePkcs8KeyDer::from_pem_slice(text.as_bytes()).map_err(|_| IdentityError::Pem(PRIVATE_KEY))
    }
}

impl fmt::Debug for PrivatePem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("PrivatePem(..)")
    }
}

/// Certificates as PEM text, in their order.
pub fn certificates_pem(certificates: &[CertificateDer<'_>]) -> String {
    certificates.iter().map(|certificate| pem(CERTIFICATE, certificate)).collect()
}

pub(super) const CERTIFICATE: &str = "CERTIFICATE";
const PRIVATE_KEY: &str = "PRIVATE KEY";

/// One PEM section (RFC 7468 section 2): 64 characters a line.
pub(super) fn pem(label: &str, der: &[u8]) -> String {
    const LINE: usize = 64;
    let len = BASE64.encode_len(der.len());
    // Sized up front, so that a private key is never left behind in a buffer that grew.
    let mut text = String::with_capacity(len + len / LINE + 2 * label.len() + 40);
    text.push_str("-----BEGIN ");
    text.push_str(label);
    text.push_str("-----\n");
    for line in der.chunks(LINE / 4 * 3) {
        BASE64.encode_append(line, &mut text);
        text.push('\n');
    }
    text.push_str("-----END ");
    text.push_str(label);
    text.push_str("-----\n");
    text
}
