//! What keeps an open session good: a new certificate before the old one ends, and proof from time
//! to time that the device still has its key. Addresses and flows are not touched by either.

use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use culvert_tunnel::close::Close;
use culvert_tunnel::control::{self, Base64, FromServer};
use culvert_tunnel::device::Device as Interface;
use culvert_tunnel::identity::{self, DeviceId, IdentityError, Pin};
use culvert_tunnel::shard::mailbox::{Command, LinkId};
use time::OffsetDateTime;

use super::{Link, Session, Sessions};
use crate::challenges::{Act, NONCE_BYTES};
use crate::conversation::Office;
use crate::metrics;
use crate::registry::{Certificate, Device, Registry, RegistryError};

/// How long a session waits between two new certificates.
const RENEWALS_APART: Duration = Duration::from_secs(10);

/// What the device showed in TLS, kept to judge its answers to challenges.
#[derive(Debug)]
pub struct Proof {
    /// Its certificate, DER.
    pub certificate: Vec<u8>,
    /// The connection's TLS exporter value.
    pub exporter: [u8; 32],
}

/// Why there is no new certificate.
#[derive(Debug, thiserror::Error)]
enum RenewError {
    #[error("the request is for another key than the device's")]
    OtherKey,
    #[error("the device trusts an authority that signs nothing any more, and will be told of another")]
    OtherAuthority,
    #[error("the device is revoked, or has another key by now")]
    Changed,
    #[error(transparent)]
    Identity(#[from] IdentityError),
    #[error(transparent)]
    Registry(#[from] RegistryError),
}

impl<R: Registry, D: Interface> Sessions<R, D> {
    /// The client asks for a new certificate. Made beside the loop, since it ends on a disk.
    pub(super) fn on_renew(&mut self, link: LinkId, csr: Vec<u8>, authority: Option<Pin>) {
        let now = Instant::now();
        let Some(Link::Open(session)) = self.links.get_mut(&link) else { return };
        if session.renewed.is_some_and(|at| now < at + RENEWALS_APART) {
            return; // an honest client asks once
        }
        session.renewed = Some(now);
        let (office, device) = (Arc::clone(&self.office), session.device.clone());
        let Some(shard) = self.shard(link).cloned() else { return };
        tokio::spawn(async move {
            let renewed = renew(&office, &device, &csr, authority).await;
            metrics::renewal(if renewed.is_ok() { "ok" } else { "refused" });
            match renewed {
                Ok(chain) => {
                    let message = FromServer::Certificate { chain: chain.into_iter().map(Base64).collect() };
                    if let Ok(frame) = control::encode(&message) {
                        let _ = shard.send(Command::Send { link, frame }).await; // a shard that has ended
                    }
                    tracing::info!(event = "renewed", user = device.user, device = device.name, device_id = device.id);
                }
                Err(error) => {
                    tracing::warn!(event = "renew_failed", device = device.name, device_id = device.id, %error);
                }
            }
        });
    }

    /// Asks and closes as the challenges are due.
    pub(super) async fn on_challenges_due(&mut self) {
        let nonce = || {
            let [first, second] = [DeviceId::generate().ok()?, DeviceId::generate().ok()?];
            let mut nonce = [0; NONCE_BYTES];
            nonce[..16].copy_from_slice(first.as_bytes());
            nonce[16..].copy_from_slice(second.as_bytes());
            Some(nonce)
        };
        for act in self.challenges.on_timeout(Instant::now(), nonce) {
            match act {
                Act::Ask(link, nonce) => self.send(link, &FromServer::Challenge { nonce: nonce.to_vec() }).await,
                Act::Fail(link) => self.challenge_failed(link, "the challenge was not answered in time").await,
            }
        }
    }

    /// The client's answer, right or wrong.
    pub(super) async fn on_challenge_answer(&mut self, link: LinkId, nonce: &[u8], signature: &[u8]) {
        let Some(Link::Open(session)) = self.links.get(&link) else { return };
        let Proof { certificate, exporter } = &session.proof;
        let signed = identity::verify_challenge(certificate, nonce, exporter, signature).is_ok();
        if !self.challenges.on_answer(link, nonce, Instant::now(), super::random()) {
            return self.close(link, Close::Unexpected, "an answer to no challenge").await;
        }
        if !signed {
            self.challenge_failed(link, "the challenge was not answered by the device's key").await;
        }
    }

    async fn challenge_failed(&mut self, link: LinkId, reason: &str) {
        if let Some(Link::Open(session)) = self.links.get(&link) {
            let Session { device, remote, .. } = &**session;
            self.office.door.session_refused(
                *remote,
                Close::ChallengeFailed.word(),
                &device.name,
                Some(device.id.clone()),
            );
        }
        self.close(link, Close::ChallengeFailed, reason).await;
    }
}

/// Issues a certificate for the key that the device has, and notes it. It counts from when the
/// registry has it: if the client never hears of it, the old one is as good until its own end.
async fn renew<R: Registry>(
    office: &Office<R>,
    device: &Device,
    csr: &[u8],
    authority: Option<Pin>,
) -> Result<[Vec<u8>; 2], RenewError> {
    let authority = office.authorities.signer(authority).ok_or(RenewError::OtherAuthority)?;
    let id: DeviceId = device.id.parse()?;
    let issued = authority.issue_device_for(csr, id, office.config.device_lifetime, SystemTime::now())?;
    if issued.spki != Pin::from_bytes(device.spki_sha256) {
        return Err(RenewError::OtherKey);
    }
    let certificate =
        Certificate { spki_sha256: device.spki_sha256, serial: &issued.serial_hex, not_after: issued.not_after.into() };
    if !office.registry.renew(&device.id, &certificate, OffsetDateTime::now_utc()).await? {
        return Err(RenewError::Changed);
    }
    Ok([issued.der, authority.certificate_der().to_vec()])
}
