//! What is issued here is judged by rustls's own verifiers, as on a real connection.

use std::{
    sync::Arc,
    time::{Duration, SystemTime},
};

use proptest::prelude::*;
use rcgen::{
    BasicConstraints, CertificateParams, CustomExtension, ExtendedKeyUsagePurpose, IsCa, KeyPair,
    PKCS_ECDSA_P384_SHA384, PKCS_ED25519, PKCS_RSA_SHA256,
};
use rustls::{
    CertificateError, Error, RootCertStore,
    client::{WebPkiServerVerifier, danger::ServerCertVerifier},
    crypto::aws_lc_rs::default_provider,
    pki_types::{CertificateDer, ServerName, UnixTime},
    server::WebPkiClientVerifier,
};

use x509_parser::{certification_request::X509CertificationRequest, prelude::FromDer};

use super::*;

const NAMES: [&str; 3] = ["vpn.example.org", "192.0.2.1", "[2001:db8::1]"];

#[test]
fn a_client_accepts_the_gateway_under_each_of_its_names() {
    let server = authority().issue_server(&names(), now()).unwrap();
    for name in ["vpn.example.org", "VPN.example.org", "192.0.2.1", "2001:db8::1"] {
        assert_eq!(client_sees(&authority(), &server, name, now()), Ok(()), "{name}");
    }
}

#[test]
fn a_client_refuses_a_gateway_under_another_name() {
    let server = authority().issue_server(&names(), now()).unwrap();
    for name in ["evil.example.org", "example.org", "192.0.2.2", "2001:db8::2"] {
        let seen = client_sees(&authority(), &server, name, now());
        let Err(Error::InvalidCertificate(CertificateError::NotValidForNameContext { .. })) = seen else {
            panic!("{name}: {seen:?}")
        };
    }
}

#[test]
fn a_client_refuses_a_gateway_of_another_authority() {
    let other = Authority::create("Acme", now()).unwrap();
    let server = other.issue_server(&names(), now()).unwrap();
    let seen = client_sees(&authority(), &server, "vpn.example.org", now());
    // The other CA has the same name, so it is the signature that gives it away.
    assert_eq!(seen, Err(CertificateError::BadSignature.into()));
}

#[test]
fn a_gateway_is_trusted_for_its_year_and_by_slow_clocks() {
    let server = authority().issue_server(&names(), now()).unwrap();
    let sees = |at| client_sees(&authority(), &server, "vpn.example.org", at);
    assert_eq!(sees(now() - Duration::from_secs(DAY - 1)), Ok(()));
    assert_eq!(sees(now() + SERVER_LIFETIME), Ok(()));
    let Err(Error::InvalidCertificate(CertificateError::ExpiredContext { .. })) =
        sees(now() + SERVER_LIFETIME + SECOND)
    else {
        panic!("accepted after its end")
    };
    let Err(Error::InvalidCertificate(CertificateError::NotValidYetContext { .. })) =
        sees(now() - Duration::from_secs(DAY + 1))
    else {
        panic!("accepted before its start")
    };
}

#[test]
fn a_gateway_accepts_its_devices_for_90_days() {
    let issued = device(&authority());
    let leaf = CertificateDer::from(issued.der.clone());
    assert_eq!(gateway_sees(&authority(), &leaf, now() - Duration::from_secs(299)), Ok(()));
    assert_eq!(gateway_sees(&authority(), &leaf, now() + DEVICE_LIFETIME), Ok(()));
    assert_eq!(issued.not_after, now() + DEVICE_LIFETIME);
    let Err(Error::InvalidCertificate(CertificateError::ExpiredContext { .. })) =
        gateway_sees(&authority(), &leaf, now() + DEVICE_LIFETIME + SECOND)
    else {
        panic!("accepted after its end")
    };
}

#[test]
fn a_device_of_another_gateway_is_refused() {
    let other = Authority::create("Other", now()).unwrap();
    let leaf = device(&other).der.into();
    assert_eq!(gateway_sees(&authority(), &leaf, now()), Err(CertificateError::UnknownIssuer.into()));
}

#[test]
fn no_device_can_pose_as_a_gateway_nor_a_gateway_as_a_device() {
    let key = DeviceKey::generate().unwrap();
    let issued = authority().issue_device(&key.csr("vpn.example.org").unwrap(), ID, now()).unwrap();
    let posing = Credential::new(vec![issued.der.into()], key).unwrap();
    assert!(client_sees(&authority(), &posing, "vpn.example.org", now()).is_err());
    let server = authority().issue_server(&names(), now()).unwrap();
    let Err(Error::InvalidCertificate(CertificateError::InvalidPurposeContext { .. })) =
        gateway_sees(&authority(), &server.chain()[0], now())
    else {
        panic!("a server's certificate opened a session")
    };
}

#[test]
fn a_device_cannot_issue_certificates() {
    let key = DeviceKey::generate().unwrap();
    let issued = authority().issue_device(&key.csr("mac").unwrap(), ID, now()).unwrap();
    assert_eq!(Authority::load(&pem_of(&issued.der), key.to_pem().expose()).unwrap_err(), IdentityError::NotAuthority);
}

#[test]
fn what_a_request_asks_for_beyond_its_key_is_ignored() {
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::new(vec!["vpn.example.org".to_owned()]).unwrap();
    params.distinguished_name.push(rcgen::DnType::CommonName, "root");
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    params.custom_extensions = vec![CustomExtension::from_oid_content(&[1, 3, 6, 1, 4, 1, 99999, 1], vec![5, 0])];
    let csr = params.serialize_request(&key).unwrap();
    let issued = authority().issue_device(csr.der(), ID, now()).unwrap();
    let read = facts::parse(&issued.der).unwrap();
    assert!(!read.is_ca());
    assert!(read.subject_alternative_name().unwrap().is_none());
    let usage = read.extended_key_usage().unwrap().unwrap().value;
    assert!(usage.client_auth && !usage.server_auth);
    let facts = CertificateFacts::read(&issued.der).unwrap();
    assert_eq!(facts.common_name, Some(ID.to_string()));
    assert_eq!((facts.spki, facts.serial_hex), (issued.spki, issued.serial_hex));
}

#[test]
fn only_requests_for_p256_keys_are_accepted() {
    for algorithm in [&PKCS_ED25519, &PKCS_ECDSA_P384_SHA384, &PKCS_RSA_SHA256] {
        let key = KeyPair::generate_for(algorithm).unwrap();
        let csr = CertificateParams::default().serialize_request(&key).unwrap();
        assert_eq!(refusal(csr.der()), IdentityError::RequestKey, "{algorithm:?}");
    }
}

#[test]
fn a_request_signed_by_another_key_is_refused() {
    let (own, other) = (DeviceKey::generate().unwrap(), DeviceKey::generate().unwrap());
    let mut csr = own.csr("mac").unwrap();
    let [own, other] = [&own, &other].map(|key| key.pair().public_key_raw().to_vec());
    let at = csr.windows(own.len()).position(|bytes| bytes == own).unwrap();
    csr[at..at + own.len()].copy_from_slice(&other);
    assert_eq!(refusal(&csr), IdentityError::RequestSignature);
}

#[test]
fn garbage_is_no_request() {
    let csr = DeviceKey::generate().unwrap().csr("mac").unwrap();
    let certificate = device(&authority()).der;
    let trailing = [csr.as_slice(), &[0]].concat();
    for bytes in [&[][..], b"hello", &[0x30; 300], &certificate, &trailing] {
        assert_eq!(refusal(bytes), IdentityError::Request);
    }
    let long = vec![0x30; MAX_CSR + 1];
    assert_eq!(refusal(&long), IdentityError::RequestTooLong(MAX_CSR + 1));
}

#[test]
fn files_are_read_back_as_they_were_written() {
    let made = authority();
    let read = Authority::load(&made.certificate_pem(), made.key_pem().expose()).unwrap();
    assert_eq!(read.certificate_der(), made.certificate_der());
    assert_eq!(read.pin(), made.pin());
    let server = read.issue_server(&names(), now()).unwrap();
    assert_eq!(client_sees(&made, &server, "vpn.example.org", now()), Ok(()));
    let again = Credential::from_pem(&server.chain_pem(), server.key_pem().expose()).unwrap();
    assert_eq!(again.chain(), server.chain());
    assert_eq!(again.private_key(), server.private_key());
    assert_eq!(again.chain()[1], *made.certificate_der());
    // rustls compares key and leaf again.
    rustls::ServerConfig::builder_with_provider(Arc::new(default_provider()))
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(again.chain().to_vec(), again.private_key())
        .unwrap();
}

#[test]
fn files_that_do_not_belong_together_are_refused() {
    let (one, two) = (authority(), Authority::create("Acme", now()).unwrap());
    let loaded = Authority::load(&one.certificate_pem(), two.key_pem().expose());
    assert_eq!(loaded.unwrap_err(), IdentityError::Mismatch);
    let loaded = Authority::load("", one.key_pem().expose());
    assert_eq!(loaded.unwrap_err(), IdentityError::Pem("CERTIFICATE"));
    let loaded = Authority::load(&one.certificate_pem(), "-----BEGIN PRIVATE KEY-----\nAA\n");
    assert_eq!(loaded.unwrap_err(), IdentityError::Pem("PRIVATE KEY"));
    let [a, b] = [(); 2].map(|()| one.issue_server(&names(), now()).unwrap());
    let joined = Credential::from_pem(&a.chain_pem(), b.key_pem().expose());
    assert_eq!(joined.unwrap_err(), IdentityError::Mismatch);
    let rsa = KeyPair::generate_for(&PKCS_RSA_SHA256).unwrap().serialize_pem();
    assert_eq!(DeviceKey::from_pem(&rsa).unwrap_err(), IdentityError::Key);
}

#[test]
fn keys_do_not_appear_in_debug_output() {
    let made = authority();
    let server = made.issue_server(&names(), now()).unwrap();
    let shown = format!("{made:?} {:?} {server:?} {:?}", made.key_pem(), server.key_pem());
    for pem in [made.key_pem(), server.key_pem()] {
        let der = PrivatePem::parse(pem.expose()).unwrap();
        let decimal = format!("{:?}", &der.secret_pkcs8_der()[40..44]);
        assert!(!shown.contains(pem.expose().lines().nth(1).unwrap()));
        assert!(!shown.contains(decimal.trim_matches(['[', ']'])));
    }
}

#[test]
fn a_successor_has_a_name_and_a_key_of_its_own() {
    let first = authority();
    let second = first.successor(now()).unwrap();
    let third = second.successor(now()).unwrap();
    let called = |authority: &Authority| authority.facts().common_name.clone().unwrap();
    assert_eq!([called(&first), called(&second), called(&third)], ["Acme CA", "Acme CA 2", "Acme CA 3"]);
    assert_ne!(first.pin(), second.pin());
    let long = Authority::create(&"a".repeat(100), now()).unwrap().successor(now()).unwrap();
    assert!(called(&long).ends_with("a CA 2") && called(&long).len() == MAX_NAME, "{long:?}");
    assert!(is_authority(second.certificate_der()).unwrap());
    assert!(!is_authority(&device(&first).der).unwrap());
}

#[test]
fn who_trusts_only_the_old_authority_can_verify_the_new_one_through_the_cross_certificate() {
    let old = authority();
    let new = old.successor(now()).unwrap();
    let until = now() + Duration::from_secs(10 * DAY);
    let cross = old.cross_sign(&new, until, now()).unwrap();
    assert_eq!(Pin::of_certificate(&cross).unwrap(), new.pin());
    assert!(is_signed_by(&cross, old.certificate_der()).unwrap() && !is_signed_by(&cross, &cross).unwrap());
    let server = new.issue_server(&names(), now()).unwrap();
    let mut chain = server.chain().to_vec();
    let plain = Credential::new(chain.clone(), DeviceKey::from_pem(server.key_pem().expose()).unwrap()).unwrap();
    chain.push(cross);
    let crossed = Credential::new(chain, DeviceKey::from_pem(server.key_pem().expose()).unwrap()).unwrap();
    let name = NAMES[0];
    assert!(client_sees(&old, &plain, name, now()).is_err());
    assert_eq!(client_sees(&old, &crossed, name, now()), Ok(()));
    assert_eq!(client_sees(&new, &crossed, name, now()), Ok(()));
    assert!(client_sees(&old, &crossed, name, until + SECOND).is_err(), "only for a time");
    assert_eq!(old.cross_sign(&new, now(), now()).unwrap_err(), IdentityError::AuthorityExpired);
}

#[test]
fn nothing_outlives_its_authority() {
    let made = Authority::create("Acme", now()).unwrap();
    let end = made.facts().not_after;
    let issued =
        made.issue_device(&DeviceKey::generate().unwrap().csr("mac").unwrap(), ID, end - Duration::from_secs(DAY));
    assert_eq!(issued.unwrap().not_after, end);
    assert_eq!(made.issue_server(&names(), end).unwrap_err(), IdentityError::AuthorityExpired);
}

#[test]
fn a_renewed_certificate_keeps_its_pin_and_not_its_serial_number() {
    let key = DeviceKey::generate().unwrap();
    let csr = key.csr("mac").unwrap();
    let made = authority();
    let [first, second] = [(); 2].map(|()| made.issue_device(&csr, ID, now()).unwrap());
    assert_eq!([first.spki, second.spki], [key.pin(); 2]);
    assert_ne!(first.serial_hex, second.serial_hex);
    assert_eq!(first.serial_hex.len(), 32);
}

#[test]
fn renewal_is_due_at_two_thirds() {
    let start = now();
    assert_eq!(renew_at(start, start + Duration::from_secs(90 * DAY)), start + Duration::from_secs(60 * DAY));
    assert_eq!(renew_at(start, start - SECOND), start);
}

#[test]
fn a_gateway_needs_names_that_a_certificate_can_carry() {
    let issue = |names: &[&str]| {
        let names: Vec<_> = names.iter().map(|name| (*name).to_owned()).collect();
        authority().issue_server(&names, now()).map(drop)
    };
    assert_eq!(issue(&[]), Err(IdentityError::NoServerName));
    for bad in ["", "*.example.org", "vpn example", "vpn.example.org:443", "bücher.example", "[vpn]"] {
        assert_eq!(issue(&["vpn.example.org", bad]), Err(IdentityError::ServerName(bad.into())));
    }
    let long = format!("{}.example.org", "a".repeat(63));
    assert_eq!(issue(&[&long, "vpn.example.org."]), Ok(()));
}

#[test]
fn an_authority_is_called_after_its_gateway() {
    let named = |name: &str| Authority::create(name, now()).map(|made| made.facts().common_name.clone().unwrap());
    assert_eq!(named("Acme Büro").as_deref(), Ok("Acme Büro CA"));
    assert_eq!(named(&"x".repeat(200)).map(|name| name.len()), Ok(MAX_NAME));
    assert_eq!(named("\n"), Err(IdentityError::Name));
}

#[test]
fn a_challenge_is_answered_by_the_device_on_its_connection_only() {
    let (key, other) = (DeviceKey::generate().unwrap(), DeviceKey::generate().unwrap());
    let leaf = authority().issue_device(&key.csr("mac").unwrap(), ID, now()).unwrap().der;
    let answer = key.answer_challenge(b"nonce", &[1; 32]).unwrap();
    assert_eq!(verify_challenge(&leaf, b"nonce", &[1; 32], &answer), Ok(()));
    let refused = Err(IdentityError::Challenge);
    assert_eq!(verify_challenge(&leaf, b"other", &[1; 32], &answer), refused);
    assert_eq!(verify_challenge(&leaf, b"nonce", &[2; 32], &answer), refused);
    assert_eq!(verify_challenge(&leaf, b"nonce", &[1; 32], &[]), refused);
    let foreign = other.answer_challenge(b"nonce", &[1; 32]).unwrap();
    assert_eq!(verify_challenge(&leaf, b"nonce", &[1; 32], &foreign), refused);
    let unlabelled = rcgen::SigningKey::sign(key.pair(), &[&[1; 32][..], b"nonce"].concat()).unwrap();
    assert_eq!(verify_challenge(&leaf, b"nonce", &[1; 32], &unlabelled), refused);
}

#[test]
fn ids_and_pins_survive_their_text() {
    let id = DeviceId::generate().unwrap();
    assert_eq!(id.to_string().parse(), Ok(id));
    assert_eq!(serde_json::from_str::<DeviceId>(&serde_json::to_string(&id).unwrap()).unwrap(), id);
    assert_eq!("12".parse::<DeviceId>(), Err(IdentityError::DeviceId));
    let pin = authority().pin();
    assert_eq!(pin.to_string().to_uppercase().parse(), Ok(pin));
    assert_eq!(pin, Pin::of_certificate(authority().certificate_der()).unwrap());
    assert_eq!("zz".parse::<Pin>(), Err(IdentityError::Pin));
    assert_eq!(Pin::of_certificate(b"no"), Err(IdentityError::Certificate));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn a_request_with_one_wrong_bit_is_refused(at in any::<prop::sample::Index>(), bit in 0..8u8) {
        let key = DeviceKey::generate().unwrap();
        let mut csr = key.csr("mac").unwrap();
        let at = at.index(csr.len());
        let is_signed = signed_part(&csr).contains(&at);
        csr[at] ^= 1 << bit;
        // Around the signed part the parser forgives some tags: that changes nothing that is used.
        if let Ok(spki) = verify_csr(&csr) {
            prop_assert!(!is_signed && Pin::of_spki(&spki) == key.pin());
        }
    }

    #[test]
    fn no_bytes_make_a_reader_panic(bytes in prop::collection::vec(any::<u8>(), 0..400)) {
        prop_assert!(verify_csr(&bytes).is_err());
        prop_assert!(CertificateFacts::read(&bytes).is_err());
    }
}

const SECOND: Duration = Duration::from_secs(1);
const ID: DeviceId = DeviceId::from_bytes([0xab; 16]);

fn now() -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(1_777_777_777)
}

fn names() -> Vec<String> {
    NAMES.map(str::to_owned).to_vec()
}

/// The same CA in every call.
fn authority() -> Authority {
    use std::sync::OnceLock;
    static FILES: OnceLock<(String, PrivatePem)> = OnceLock::new();
    let (certificate, key) = FILES.get_or_init(|| {
        let made = Authority::create("Acme", now()).unwrap();
        (made.certificate_pem(), made.key_pem())
    });
    Authority::load(certificate, key.expose()).unwrap()
}

fn device(authority: &Authority) -> Issued {
    let csr = DeviceKey::generate().unwrap().csr("mac").unwrap();
    authority.issue_device(&csr, ID, now()).unwrap()
}

fn refusal(csr: &[u8]) -> IdentityError {
    authority().issue_device(csr, ID, now()).unwrap_err()
}

/// Where the CertificationRequestInfo lies in a request (RFC 2986 section 4.2).
fn signed_part(csr: &[u8]) -> std::ops::Range<usize> {
    let (_, read) = X509CertificationRequest::from_der(csr).unwrap();
    let signed = read.certification_request_info.raw.as_ptr_range();
    let offset = |at: *const u8| at as usize - csr.as_ptr() as usize;
    offset(signed.start)..offset(signed.end)
}

fn pem_of(der: &[u8]) -> String {
    credential::pem(credential::CERTIFICATE, der)
}

fn client_sees(root: &Authority, server: &Credential, name: &str, at: SystemTime) -> Result<(), Error> {
    let verifier =
        WebPkiServerVerifier::builder_with_provider(roots(root), Arc::new(default_provider())).build().unwrap();
    let name = ServerName::try_from(name).unwrap();
    verifier.verify_server_cert(&server.chain()[0], &server.chain()[1..], &name, &[], unix(at)).map(drop)
}

fn gateway_sees(root: &Authority, leaf: &CertificateDer<'_>, at: SystemTime) -> Result<(), Error> {
    let verifier =
        WebPkiClientVerifier::builder_with_provider(roots(root), Arc::new(default_provider())).build().unwrap();
    verifier.verify_client_cert(leaf, &[], unix(at)).map(drop)
}

fn roots(authority: &Authority) -> Arc<RootCertStore> {
    let mut roots = RootCertStore::empty();
    roots.add(authority.certificate_der().clone()).unwrap();
    Arc::new(roots)
}

fn unix(at: SystemTime) -> UnixTime {
    UnixTime::since_unix_epoch(at.duration_since(SystemTime::UNIX_EPOCH).unwrap())
}
