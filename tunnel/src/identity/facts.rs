//! Reading certificates and certificate requests: the few facts that anything here depends on.

use std::time::{Duration, SystemTime};

use aws_lc_rs::signature::{ECDSA_P256_SHA256_ASN1, UnparsedPublicKey};
use data_encoding::HEXLOWER;
use x509_parser::{
    certificate::X509Certificate,
    certification_request::X509CertificationRequest,
    oid_registry::{OID_EC_P256, OID_KEY_TYPE_EC_PUBLIC_KEY, OID_SIG_ECDSA_WITH_SHA256},
    prelude::FromDer,
    x509::SubjectPublicKeyInfo,
};

use super::{DeviceId, IdentityError, MAX_CSR, Pin};

/// What a certificate says about its holder.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CertificateFacts {
    /// The subject's first common name: the device id in a device's certificate.
    pub common_name: Option<String>,
    /// The pin of the certified key.
    pub spki: Pin,
    /// Valid from, inclusive.
    pub not_before: SystemTime,
    /// Valid until, inclusive.
    pub not_after: SystemTime,
    /// The serial number, lower-case hexadecimal.
    pub serial_hex: String,
}

impl CertificateFacts {
    /// Reads a DER certificate. Verifies nothing.
    ///
    /// # Errors
    /// [`IdentityError::Certificate`] for anything else, also when bytes follow the certificate.
    pub fn read(der: &[u8]) -> Result<Self, IdentityError> {
        let certificate = parse(der)?;
        let validity = certificate.validity();
        Ok(Self {
            common_name: certificate
                .subject()
                .iter_common_name()
                .next()
                .and_then(|name| name.as_str().ok())
                .map(str::to_owned),
            spki: Pin::of_spki(certificate.public_key().raw),
            not_before: system_time(validity.not_before.timestamp()),
            not_after: system_time(validity.not_after.timestamp()),
            serial_hex: HEXLOWER.encode(certificate.raw_serial()),
        })
    }
}

/// Verifies that a DER certificate request is signed by the P-256 key it names, and returns that
/// key's SubjectPublicKeyInfo in DER. Subject and requested extensions are not looked at.
///
/// # Errors
/// One of the `Request*` variants of [`IdentityError`].
pub fn verify_csr(csr_der: &[u8]) -> Result<Vec<u8>, IdentityError> {
    if csr_der.len() > MAX_CSR {
        return Err(IdentityError::RequestTooLong(csr_der.len()));
    }
    let Ok(([], csr)) = X509CertificationRequest::from_der(csr_der) else {
        return Err(IdentityError::Request);
    };
    let info = &csr.certification_request_info;
    let key = p256(&info.subject_pki).ok_or(IdentityError::RequestKey)?;
    if csr.signature_algorithm.algorithm != OID_SIG_ECDSA_WITH_SHA256 {
        return Err(IdentityError::RequestSignature);
    }
    key.verify(info.raw, &csr.signature_value.data).map_err(|_| IdentityError::RequestSignature)?;
    Ok(info.subject_pki.raw.to_vec())
}

/// The certificate in `der`, and nothing after it.
pub(super) fn parse(der: &[u8]) -> Result<X509Certificate<'_>, IdentityError> {
    let Ok(([], certificate)) = X509Certificate::from_der(der) else {
        return Err(IdentityError::Certificate);
    };
    Ok(certificate)
}

/// The key as one that verifies ECDSA P-256 with SHA-256; `None` for any other kind of key.
pub(super) fn p256<'a>(spki: &'a SubjectPublicKeyInfo<'_>) -> Option<UnparsedPublicKey<&'a [u8]>> {
    let curve = spki.algorithm.parameters.as_ref()?.as_oid().ok()?;
    (spki.algorithm.algorithm == OID_KEY_TYPE_EC_PUBLIC_KEY && curve == OID_EC_P256)
        .then(|| UnparsedPublicKey::new(&ECDSA_P256_SHA256_ASN1, &*spki.subject_public_key.data))
}

/// True when `certificate` is this device's, for this key, signed by the CA whose certificate is `authority`.
///
/// # Errors
/// [`IdentityError::Certificate`] when either is none.
pub fn is_device_certificate(
    certificate: &[u8],
    authority: &[u8],
    id: DeviceId,
    key: Pin,
) -> Result<bool, IdentityError> {
    let facts = CertificateFacts::read(certificate)?;
    let is_its_own = facts.spki == key && facts.common_name == Some(id.to_string());
    Ok(is_its_own && is_signed_by(certificate, authority)?)
}

/// True for the certificate of a P-256 certificate authority.
///
/// # Errors
/// [`IdentityError::Certificate`] for what is no certificate.
pub fn is_authority(der: &[u8]) -> Result<bool, IdentityError> {
    let certificate = parse(der)?;
    Ok(certificate.is_ca() && p256(certificate.public_key()).is_some())
}

/// True when `certificate` carries a signature by the P-256 key in `issuer`.
///
/// # Errors
/// [`IdentityError::Certificate`] when either is none.
pub fn is_signed_by(certificate: &[u8], issuer: &[u8]) -> Result<bool, IdentityError> {
    let (certificate, issuer) = (parse(certificate)?, parse(issuer)?);
    let Some(key) = p256(issuer.public_key()) else {
        return Ok(false);
    };
    Ok(certificate.signature_algorithm.algorithm == OID_SIG_ECDSA_WITH_SHA256
        && key.verify(certificate.tbs_certificate.as_ref(), &certificate.signature_value.data).is_ok())
}

fn system_time(unix_seconds: i64) -> SystemTime {
    let distance = Duration::from_secs(unix_seconds.unsigned_abs());
    if unix_seconds < 0 { SystemTime::UNIX_EPOCH - distance } else { SystemTime::UNIX_EPOCH + distance }
}
