//! The only file that knows the knobs of quinn-proto and rustls.
//!
//! TLS 1.3 only, X25519MLKEM768 preferred (rustls' `prefer-post-quantum`), no 0-RTT, mutual
//! authentication against the private CA. Not here: who may connect (the registry decides that
//! after the handshake), issuing certificates (`identity`).

use std::sync::Arc;
use std::time::Duration;

use quinn_proto::crypto::rustls::{QuicClientConfig, QuicServerConfig};
use quinn_proto::{
    AckFrequencyConfig, BloomTokenLog, IdleTimeout, MtuDiscoveryConfig, TransportConfig, ValidationTokenConfig, VarInt,
};
use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::CryptoProvider;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::server::WebPkiClientVerifier;
use rustls::{CertificateError, DigitallySignedStruct, RootCertStore, SignatureScheme};

use crate::congestion::Congestion;
use crate::identity::Pin;
use crate::shard::mailbox::Protocol;

/// A session that hears nothing for this long is over. Clients send something every 25 s.
pub const IDLE_TIMEOUT: Duration = Duration::from_secs(60);
/// A client's own keep-alive; its health echo, every 24 s, normally comes first.
const KEEP_ALIVE: Duration = Duration::from_secs(25);
/// How long after a black hole path-MTU discovery begins again. Most were none; see `shard::inner_mtu`.
const BLACK_HOLE_COOLDOWN: Duration = Duration::from_secs(1);
/// UDP payload of a 1,500-byte IPv4 path: the most that discovery looks for.
const MTU_CEILING_BYTES: u16 = 1472;
/// What quinn may hold per direction of inner packets, in bytes. The shard drains its queue every
/// turn, so this is one turn's burst and not standing queue.
const DATAGRAM_RECEIVE_BYTES: usize = 4 << 20;
/// See [`DATAGRAM_RECEIVE_BYTES`]; the shard stops reading the device before it is full.
pub(crate) const DATAGRAM_SEND_BYTES: usize = 1 << 20;

/// Why keys and certificates cannot make a transport.
#[derive(Debug, thiserror::Error)]
pub enum TransportError {
    /// rustls refuses the certificate or key.
    #[error("unusable certificate or key: {0}")]
    Tls(#[from] rustls::Error),
    /// The CA certificate cannot anchor trust.
    #[error("unusable CA certificate")]
    Authority,
}

/// What both ends may choose.
#[derive(Clone, Copy, Debug, Default)]
pub struct Tuning {
    /// The controller around the tunnel's datagrams.
    pub congestion: Congestion,
}

/// What a client needs to dial: keys, trust and protocol.
#[derive(Clone, Debug)]
pub struct ClientTransport {
    pub(crate) config: quinn_proto::ClientConfig,
}

impl ClientTransport {
    /// A session: presents the device's chain, trusts exactly `authorities`: one CA, and two while a gateway changes
    /// from one to the other.
    ///
    /// # Errors
    /// [`TransportError`] when certificate, key and CAs do not make a TLS configuration.
    pub fn session(
        authorities: &[CertificateDer<'_>],
        chain: Vec<CertificateDer<'static>>,
        key: PrivateKeyDer<'static>,
        tuning: Tuning,
    ) -> Result<Self, TransportError> {
        // The gateway has its CA; what is sent to it again it would keep for every session.
        let chain = chain.into_iter().filter(|certificate| !authorities.contains(certificate)).collect();
        let tls = rustls::ClientConfig::builder_with_provider(provider())
            .with_protocol_versions(&[&rustls::version::TLS13])?
            .with_root_certificates(roots(authorities)?)
            .with_client_auth_cert(chain, key)?;
        Ok(Self::from_tls(tls, Protocol::Session, tuning))
    }

    /// Enrolment: presents nothing, trusts the CAs whose public keys have these pins.
    ///
    /// # Errors
    /// [`TransportError::Tls`] when the TLS library lacks TLS 1.3.
    pub fn enrolment(pins: Vec<Pin>, tuning: Tuning) -> Result<Self, TransportError> {
        let tls = rustls::ClientConfig::builder_with_provider(provider())
            .with_protocol_versions(&[&rustls::version::TLS13])?
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(PinnedAuthority { pins }))
            .with_no_client_auth();
        Ok(Self::from_tls(tls, Protocol::Enrolment, tuning))
    }

    fn from_tls(mut tls: rustls::ClientConfig, protocol: Protocol, tuning: Tuning) -> Self {
        tls.alpn_protocols = vec![protocol.alpn().to_vec()];
        tls.enable_early_data = false;
        tls.resumption = rustls::client::Resumption::disabled();
        let crypto = QuicClientConfig::try_from(tls).expect("aws-lc-rs has AES-128-GCM for Initial packets");
        let mut config = quinn_proto::ClientConfig::new(Arc::new(crypto));
        let mut transport = base(tuning);
        transport.keep_alive_interval(Some(KEEP_ALIVE));
        config.transport_config(Arc::new(transport));
        Self { config }
    }
}

/// What a gateway needs to answer: its leaf, and the CAs of its clients.
#[derive(Clone, Debug)]
pub struct ServerTransport {
    pub(crate) config: Arc<quinn_proto::ServerConfig>,
}

impl ServerTransport {
    /// Answers both protocols. A client certificate is asked for and verified against `authorities`
    /// when one is given; that a session needs one is judged after the handshake, so that the
    /// refusal carries our own close code.
    ///
    /// # Errors
    /// [`TransportError`] when certificate, key and CA do not make a TLS configuration.
    pub fn new(
        authorities: &[CertificateDer<'_>],
        chain: Vec<CertificateDer<'static>>,
        key: PrivateKeyDer<'static>,
        tuning: Tuning,
    ) -> Result<Self, TransportError> {
        let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots(authorities)?), provider())
            .allow_unauthenticated()
            .build()
            .map_err(|_| TransportError::Authority)?;
        let mut tls = rustls::ServerConfig::builder_with_provider(provider())
            .with_protocol_versions(&[&rustls::version::TLS13])?
            .with_client_cert_verifier(verifier)
            .with_single_cert(chain, key)?;
        tls.alpn_protocols = [Protocol::Session, Protocol::Enrolment].map(|p| p.alpn().to_vec()).into();
        // A resumed session would skip the certificate check; renewal and revocation must not be.
        tls.session_storage = Arc::new(rustls::server::NoServerSessionStorage {});
        tls.send_tls13_tickets = 0;
        let crypto = QuicServerConfig::try_from(tls).expect("aws-lc-rs has AES-128-GCM for Initial packets");
        let mut config = quinn_proto::ServerConfig::with_crypto(Arc::new(crypto));
        let mut tokens = ValidationTokenConfig::default();
        tokens.log(Arc::new(BloomTokenLog::new_expected_items(64 * 1024, 10_000))).sent(1);
        config
            .transport_config(Arc::new(base(tuning)))
            .validation_token_config(tokens)
            .max_incoming(1024)
            .incoming_buffer_size(64 * 1024)
            .incoming_buffer_size_total(4 << 20);
        Ok(Self { config: Arc::new(config) })
    }
}

fn base(tuning: Tuning) -> TransportConfig {
    let mut transport = TransportConfig::default();
    let mut discovery = MtuDiscoveryConfig::default();
    // After a fall to the minimum the true size is looked for at once, not after a minute: inner
    // packets of 1,280 bytes cost two datagrams meanwhile.
    discovery.upper_bound(MTU_CEILING_BYTES).minimum_change(8).black_hole_cooldown(BLACK_HOLE_COOLDOWN);
    let mut acks = AckFrequencyConfig::default();
    acks.ack_eliciting_threshold(VarInt::from_u32(16)).max_ack_delay(Some(Duration::from_millis(5)));
    transport
        .max_concurrent_bidi_streams(VarInt::from_u32(1))
        .max_concurrent_uni_streams(VarInt::from_u32(0))
        .stream_receive_window(VarInt::from_u32(2 * crate::control::MAX_FRAME as u32))
        .receive_window(VarInt::from_u32(4 * crate::control::MAX_FRAME as u32))
        .send_window(4 * crate::control::MAX_FRAME as u64)
        .max_idle_timeout(Some(IdleTimeout::try_from(IDLE_TIMEOUT).expect("60 s is a valid timeout")))
        .mtu_discovery_config(Some(discovery))
        .ack_frequency_config(Some(acks))
        .datagram_receive_buffer_size(Some(DATAGRAM_RECEIVE_BYTES))
        .datagram_send_buffer_size(DATAGRAM_SEND_BYTES)
        // The spin bit tells every router on the path our RTT; nobody here reads it.
        .allow_spin(false);
    tuning.congestion.apply(&mut transport);
    transport
}

fn provider() -> Arc<CryptoProvider> {
    use rustls::crypto::aws_lc_rs::{cipher_suite, default_provider};
    let mut provider = default_provider();
    // Short keys are enough and faster; ChaCha20 wins where the CPU has no AES instructions.
    let aes = cipher_suite::TLS13_AES_128_GCM_SHA256;
    let chacha = cipher_suite::TLS13_CHACHA20_POLY1305_SHA256;
    provider.cipher_suites = if has_aes_instructions() { vec![aes, chacha] } else { vec![chacha, aes] };
    Arc::new(provider)
}

fn has_aes_instructions() -> bool {
    #[cfg(any(target_arch = "x86", target_arch = "x86_64"))]
    {
        std::arch::is_x86_feature_detected!("aes") && std::arch::is_x86_feature_detected!("pclmulqdq")
    }
    #[cfg(target_arch = "aarch64")]
    {
        std::arch::is_aarch64_feature_detected!("aes")
    }
    #[cfg(not(any(target_arch = "x86", target_arch = "x86_64", target_arch = "aarch64")))]
    {
        false
    }
}

fn roots(authorities: &[CertificateDer<'_>]) -> Result<RootCertStore, TransportError> {
    let mut roots = RootCertStore::empty();
    for authority in authorities {
        roots.add(authority.clone().into_owned()).map_err(|_| TransportError::Authority)?;
    }
    Ok(roots)
}

/// Trusts a chain that ends in a CA with a pinned public key, and nothing else.
#[derive(Debug)]
struct PinnedAuthority {
    pins: Vec<Pin>,
}

impl ServerCertVerifier for PinnedAuthority {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let unknown = || rustls::Error::InvalidCertificate(CertificateError::UnknownIssuer);
        let authority = intermediates
            .iter()
            .find(|certificate| Pin::of_certificate(certificate).is_ok_and(|pin| self.pins.contains(&pin)))
            .ok_or_else(unknown)?;
        let roots = roots(std::slice::from_ref(authority)).map_err(|_| unknown())?;
        WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider())
            .build()
            .map_err(|_| unknown())?
            .verify_server_cert(end_entity, &[], server_name, ocsp_response, now)
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _certificate: &CertificateDer<'_>,
        _signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(rustls::Error::General("TLS 1.2 is not offered".into()))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &provider().signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, certificate, signature, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        provider().signature_verification_algorithms.supported_schemes()
    }
}
