//! The gateway's side of one enrolment. The caller owns the registry and the CA: this machine
//! says when to ask them, and takes their answers.

use std::mem;

use super::{
    Begin, EnrolKey, Enrolled, FromEnrollee, FromEnroller, Refusal, VERSION,
    proof::{Transcript, sha256},
};
use crate::{
    control::{Base64, Refused},
    identity::{DeviceId, IdentityError, MAX_CSR, Pin, printable, random, verify_csr},
    invitation::InvitationId,
};

/// One enrolment, from `begin` to `enrolled`. Every refusal ends it: a second guess needs another
/// connection, where the caller can count.
pub struct Enroller {
    exporter: [u8; 32],
    state: State,
}

enum State {
    Begin,
    Invitation { request: Request },
    Proof { request: Request, key: EnrolKey, transcript: Transcript },
    Proven { key: EnrolKey, transcript: Transcript },
    Over,
}

struct Request {
    client_nonce: [u8; 32],
    csr: Vec<u8>,
    device_name: String,
    platform: String,
}

/// The device wants to use this invitation: look it up, and tell [`Enroller::on_invitation`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NeedsInvitation {
    /// Which one.
    pub id: InvitationId,
    /// What the device would like to be called; 1 to 64 printable characters.
    pub device_name: String,
    /// Its operating system; at most 64 printable characters.
    pub platform: String,
}

/// The device has proven the secret and the possession of its key: consume the invitation, issue
/// the certificate and store the device in one transaction, then call [`Enroller::finish`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProvenCsr {
    /// The request for [`crate::identity::Authority::issue_device`], DER, its signature verified.
    pub csr: Vec<u8>,
    /// The pin of the device's key.
    pub spki: Pin,
    /// As in [`NeedsInvitation`].
    pub device_name: String,
    /// As in [`NeedsInvitation`].
    pub platform: String,
}

/// What the gateway grants; the fields are those of [`Enrolled`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Grant {
    /// The device's id in the registry.
    pub device_id: DeviceId,
    /// What the device is called there.
    pub device_name: String,
    /// Whose device it is.
    pub user: String,
    /// The device's certificate, DER.
    pub leaf: Vec<u8>,
    /// The CA's certificate, DER.
    pub authority: Vec<u8>,
    /// The gateway's display name.
    pub gateway: String,
    /// Where sessions are opened, `host:port`, best first.
    pub endpoints: Vec<String>,
    /// The name or address that the gateway's certificate carries.
    pub server_name: String,
}

impl Enroller {
    /// For a connection with this TLS exporter value ([`crate::shard::mailbox::Established`]).
    pub const fn new(exporter: [u8; 32]) -> Self {
        Self { exporter, state: State::Begin }
    }

    /// Takes the device's first message.
    ///
    /// # Errors
    /// What to send before closing with the same code.
    pub fn on_begin(&mut self, message: FromEnrollee) -> Result<NeedsInvitation, Refused> {
        let State::Begin = mem::replace(&mut self.state, State::Over) else {
            return Err(Refusal::Unexpected.into());
        };
        let FromEnrollee::Begin(begin) = message else {
            return Err(Refusal::Unexpected.into());
        };
        let Begin { version, invitation, client_nonce, csr, device_name, platform } = begin;
        if version != VERSION {
            return Err(Refusal::Version(version).into());
        }
        // Its signature is verified after the proof: strangers get no cryptography for free.
        if csr.len() > MAX_CSR {
            return Err(Refusal::BadRequest(IdentityError::RequestTooLong(csr.len())).into());
        }
        let device_name = printable(&device_name).ok_or(Refusal::BadRequest(IdentityError::Name))?;
        let platform = printable(&platform).unwrap_or_default();
        let needs = NeedsInvitation { id: invitation, device_name: device_name.clone(), platform: platform.clone() };
        self.state = State::Invitation { request: Request { client_nonce, csr, device_name, platform } };
        Ok(needs)
    }

    /// Takes what the registry knows about the invitation, and returns what to send. After
    /// [`FromEnroller::Refused`] close with its code.
    pub fn on_invitation(&mut self, found: Result<EnrolKey, Refusal>) -> FromEnroller {
        match self.challenge(found) {
            Ok(server_nonce) => FromEnroller::Challenge { server_nonce },
            Err(refusal) => FromEnroller::Refused(refusal.into()),
        }
    }

    fn challenge(&mut self, found: Result<EnrolKey, Refusal>) -> Result<[u8; 32], Refusal> {
        let State::Invitation { request } = mem::replace(&mut self.state, State::Over) else {
            return Err(Refusal::Unexpected);
        };
        let key = found?;
        let server_nonce = random().map_err(|_| Refusal::Internal)?;
        let transcript = Transcript {
            server_nonce,
            client_nonce: request.client_nonce,
            csr_hash: sha256(&request.csr),
            exporter: self.exporter,
        };
        self.state = State::Proof { request, key, transcript };
        Ok(server_nonce)
    }

    /// Takes the device's proof.
    ///
    /// # Errors
    /// What to send before closing with the same code.
    pub fn on_proof(&mut self, message: &FromEnrollee) -> Result<ProvenCsr, Refused> {
        let State::Proof { request, key, transcript } = mem::replace(&mut self.state, State::Over) else {
            return Err(Refusal::Unexpected.into());
        };
        let FromEnrollee::Proof { hmac } = message else {
            return Err(Refusal::Unexpected.into());
        };
        if !transcript.is_client_proof(&key, hmac) {
            return Err(Refusal::Proof.into());
        }
        let spki = Pin::of_spki(&verify_csr(&request.csr).map_err(Refusal::BadRequest)?);
        self.state = State::Proven { key, transcript };
        let Request { csr, device_name, platform, .. } = request;
        Ok(ProvenCsr { csr, spki, device_name, platform })
    }

    /// Takes what was granted, and returns the last message, with the gateway's proof.
    ///
    /// # Errors
    /// What to send before closing with the same code: only when called out of turn, or when the
    /// cryptographic library fails.
    pub fn finish(&mut self, grant: Grant) -> Result<FromEnroller, Refused> {
        let State::Proven { key, transcript } = mem::replace(&mut self.state, State::Over) else {
            return Err(Refusal::Unexpected.into());
        };
        let Grant { device_id, device_name, user, leaf, authority, gateway, endpoints, server_name } = grant;
        let proof = transcript.server_proof(&key, &[&leaf, &authority]).map_err(|_| Refusal::Internal)?;
        let chain = vec![Base64(leaf), Base64(authority)];
        Ok(FromEnroller::Enrolled(Enrolled {
            device_id,
            device_name,
            user,
            chain,
            gateway,
            endpoints,
            server_name,
            proof,
        }))
    }
}
