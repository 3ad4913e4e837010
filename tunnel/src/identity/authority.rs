//! The private CA that `init` makes: it issues the gateway's leaf and every device's certificate.

use std::{
    fmt,
    net::IpAddr,
    time::{Duration, SystemTime},
};

use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, PublicKeyData, SanType, SerialNumber, SubjectPublicKeyInfo,
};
use rustls::pki_types::{CertificateDer, DnsName, pem::PemObject};
use time::OffsetDateTime;

use super::{
    AUTHORITY_LIFETIME, CertificateFacts, Credential, DAY, DEVICE_LIFETIME, DeviceId, DeviceKey, IdentityError,
    MAX_NAME, Pin, PrivatePem, SERVER_LIFETIME,
    credential::{CERTIFICATE, pem},
    facts, printable, random, verify_csr,
};

/// The longest certificate request that is looked at, in bytes. One for P-256 takes about 250.
pub const MAX_CSR: usize = 4096;

/// How long before its making a certificate counts: a clock in the wrong time zone, the client's when it meets the
/// gateway or the gateway's when a device enrolled, keeps nobody out once it is right.
const SKEW: Duration = Duration::from_secs(DAY);

/// What a CA's name ends in.
const SUFFIX: &str = " CA";

/// A private CA with its key.
pub struct Authority {
    certificate: CertificateDer<'static>,
    issuer: Issuer<'static, KeyPair>,
    facts: CertificateFacts,
}

/// A certificate issued to a device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Issued {
    /// The certificate, DER.
    pub der: Vec<u8>,
    /// Its serial number, lower-case hexadecimal.
    pub serial_hex: String,
    /// The pin of the device's key.
    pub spki: Pin,
    /// Its end.
    pub not_after: SystemTime,
}

impl Authority {
    /// Makes a CA called "`name` CA", valid for ten years.
    ///
    /// # Errors
    /// [`IdentityError::Name`] for a name with nothing printable in it.
    pub fn create(name: &str, now: SystemTime) -> Result<Self, IdentityError> {
        Self::create_called(name, SUFFIX, now)
    }

    /// Makes the CA that follows this one: "`name` CA 2" and so on, so that nobody takes one for the other.
    ///
    /// # Errors
    /// As [`Self::create`].
    pub fn successor(&self, now: SystemTime) -> Result<Self, IdentityError> {
        let own = self.facts.common_name.as_deref().unwrap_or_default();
        let (name, number) = match own.rsplit_once(SUFFIX) {
            Some((name, "")) => (name, 1),
            Some((name, number)) => (name, number.trim_start().parse::<u32>().unwrap_or(1)),
            None => (own, 1),
        };
        Self::create_called(name, &format!("{SUFFIX} {}", number.saturating_add(1)), now)
    }

    fn create_called(name: &str, suffix: &str, now: SystemTime) -> Result<Self, IdentityError> {
        let mut name: String =
            printable(name).ok_or(IdentityError::Name)?.chars().take(MAX_NAME - suffix.len()).collect();
        name.push_str(suffix);
        let key = DeviceKey::generate()?.into_pair();
        let params = authority_params(&name, now - SKEW, now + AUTHORITY_LIFETIME)?;
        let certificate = params.self_signed(&key).map_err(|_| IdentityError::Crypto)?;
        Self::join(certificate.into(), key)
    }

    /// A certificate for the key of `other` by this CA ("new with old", RFC 4210 section 4.4): who trusts only this
    /// one can verify what the other has issued. Valid until `until`, but no longer than either.
    ///
    /// # Errors
    /// [`IdentityError::AuthorityExpired`] when that is over.
    pub fn cross_sign(
        &self,
        other: &Self,
        until: SystemTime,
        now: SystemTime,
    ) -> Result<CertificateDer<'static>, IdentityError> {
        let until = until.min(self.facts.not_after).min(other.facts.not_after);
        if now >= until {
            return Err(IdentityError::AuthorityExpired);
        }
        let name = other.facts.common_name.as_deref().unwrap_or_default();
        let key = other.issuer.key().subject_public_key_info();
        let key = SubjectPublicKeyInfo::from_der(&key).map_err(|_| IdentityError::Crypto)?;
        let params = authority_params(name, now - SKEW, until)?;
        Ok(params.signed_by(&key, &self.issuer).map_err(|_| IdentityError::Crypto)?.into())
    }

    /// Reads what [`Self::certificate_pem`] and [`Self::key_pem`] wrote.
    ///
    /// # Errors
    /// [`IdentityError::Mismatch`] when they are not a pair, [`IdentityError::NotAuthority`] when
    /// the certificate may not issue, and the errors of reading either.
    pub fn load(certificate_pem: &str, key_pem: &str) -> Result<Self, IdentityError> {
        let certificate =
            CertificateDer::from_pem_slice(certificate_pem.as_bytes()).map_err(|_| IdentityError::Pem(CERTIFICATE))?;
        Self::join(certificate, DeviceKey::from_pem(key_pem)?.into_pair())
    }

    fn join(certificate: CertificateDer<'static>, key: KeyPair) -> Result<Self, IdentityError> {
        let facts = CertificateFacts::read(&certificate)?;
        if facts.spki != Pin::of_spki(&key.subject_public_key_info()) {
            return Err(IdentityError::Mismatch);
        }
        if !facts::parse(&certificate)?.is_ca() {
            return Err(IdentityError::NotAuthority);
        }
        let issuer = Issuer::from_ca_cert_der(&certificate, key).map_err(|_| IdentityError::NotAuthority)?;
        Ok(Self { certificate, issuer, facts })
    }

    /// The CA's certificate.
    pub fn certificate_der(&self) -> &CertificateDer<'static> {
        &self.certificate
    }

    /// The CA's certificate as PEM text.
    pub fn certificate_pem(&self) -> String {
        pem(CERTIFICATE, &self.certificate)
    }

    /// The CA's private key as PEM text (PKCS#8).
    pub fn key_pem(&self) -> PrivatePem {
        PrivatePem::of_pkcs8(self.issuer.key().serialized_der())
    }

    /// What invitations carry, and clients insist on.
    pub fn pin(&self) -> Pin {
        self.facts.spki
    }

    /// What the CA's certificate says.
    pub fn facts(&self) -> &CertificateFacts {
        &self.facts
    }

    /// Issues a certificate with a fresh key for a gateway that is reached by `names`: host names
    /// or IP addresses. Valid for a year, but never longer than the CA.
    ///
    /// # Errors
    /// [`IdentityError::NoServerName`], [`IdentityError::ServerName`] with the first bad one, or
    /// [`IdentityError::AuthorityExpired`].
    pub fn issue_server(&self, names: &[String], now: SystemTime) -> Result<Credential, IdentityError> {
        let first = names.first().ok_or(IdentityError::NoServerName)?;
        let common_name = printable(first).ok_or_else(|| IdentityError::ServerName(first.clone()))?;
        let mut params = params(&common_name, now - SKEW, self.end(now, SERVER_LIFETIME)?)?;
        params.subject_alt_names = names.iter().map(|name| subject_alt_name(name)).collect::<Result<_, _>>()?;
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        let key = DeviceKey::generate()?;
        let leaf = self.issue_leaf(params, key.pair())?;
        Credential::new(vec![leaf, self.certificate.clone()], key)
    }

    /// Issues a device's certificate, valid for [`DEVICE_LIFETIME`] but never longer than the CA. See
    /// [`Self::issue_device_for`].
    ///
    /// # Errors
    /// As [`Self::issue_device_for`].
    pub fn issue_device(&self, csr_der: &[u8], id: DeviceId, now: SystemTime) -> Result<Issued, IdentityError> {
        self.issue_device_for(csr_der, id, DEVICE_LIFETIME, now)
    }

    /// Issues a device's certificate, valid for `lifetime` but never longer than the CA.
    ///
    /// The request only proves that its sender holds the key. Whatever subject and extensions it
    /// asks for are ignored: the device's id becomes the common name.
    ///
    /// # Errors
    /// A `Request*` variant of [`IdentityError`] for a request that cannot be used, or
    /// [`IdentityError::AuthorityExpired`].
    pub fn issue_device_for(
        &self,
        csr_der: &[u8],
        id: DeviceId,
        lifetime: Duration,
        now: SystemTime,
    ) -> Result<Issued, IdentityError> {
        let spki = verify_csr(csr_der)?;
        let public_key = SubjectPublicKeyInfo::from_der(&spki).map_err(|_| IdentityError::RequestKey)?;
        let not_before = now - SKEW.min(lifetime / 10);
        let mut params = params(&id.to_string(), not_before, self.end(now, lifetime)?)?;
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        let leaf = self.issue_leaf(params, &public_key)?;
        let facts = CertificateFacts::read(&leaf)?;
        Ok(Issued { der: leaf.to_vec(), serial_hex: facts.serial_hex, spki: facts.spki, not_after: facts.not_after })
    }

    fn issue_leaf(
        &self,
        mut params: CertificateParams,
        key: &impl PublicKeyData,
    ) -> Result<CertificateDer<'static>, IdentityError> {
        params.is_ca = IsCa::ExplicitNoCa;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.use_authority_key_identifier_extension = true;
        Ok(params.signed_by(key, &self.issuer).map_err(|_| IdentityError::Crypto)?.into())
    }

    /// The end of something issued now, cut to the CA's own.
    fn end(&self, now: SystemTime, lifetime: Duration) -> Result<SystemTime, IdentityError> {
        if now >= self.facts.not_after {
            return Err(IdentityError::AuthorityExpired);
        }
        Ok((now + lifetime).min(self.facts.not_after))
    }
}

impl fmt::Debug for Authority {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Authority").field("facts", &self.facts).finish_non_exhaustive()
    }
}

/// What all certificates share: a common name, a lifetime, a random serial number.
fn params(name: &str, not_before: SystemTime, not_after: SystemTime) -> Result<CertificateParams, IdentityError> {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, name);
    params.not_before = OffsetDateTime::from(not_before);
    params.not_after = OffsetDateTime::from(not_after);
    let mut serial = random::<16>()?;
    // Positive, and of the same length always (RFC 5280 section 4.1.2.2).
    serial[0] = serial[0] & 0x7f | 0x40;
    params.serial_number = Some(SerialNumber::from_slice(&serial));
    Ok(params)
}

fn authority_params(name: &str, from: SystemTime, until: SystemTime) -> Result<CertificateParams, IdentityError> {
    let mut params = params(name, from, until)?;
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    Ok(params)
}

fn subject_alt_name(name: &str) -> Result<SanType, IdentityError> {
    let bare = name.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(name);
    if let Ok(address) = bare.parse::<IpAddr>() {
        return Ok(SanType::IpAddress(address));
    }
    let wrong = || IdentityError::ServerName(name.to_owned());
    let host = name.strip_suffix('.').unwrap_or(name);
    DnsName::try_from(host).map_err(|_| wrong())?;
    Ok(SanType::DnsName(host.try_into().map_err(|_| wrong())?))
}
