//! The device's side of one enrolment.

use std::mem;

use rustls::pki_types::ServerName;

use super::{
    Begin, EnrolKey, Enrolled, FromEnrollee, FromEnroller, VERSION,
    proof::{Transcript, sha256},
};
use crate::{
    close::{Close, ECode},
    control::Refused,
    identity::{DeviceId, DeviceKey, IdentityError, Pin, is_device_certificate, printable, random},
    invitation::{Invitation, MAX_ENDPOINTS, is_endpoint},
};

/// One enrolment, as the device sees it.
pub struct Enrollee {
    key: EnrolKey,
    /// The CA that the invitation names.
    pin: Pin,
    /// This device's own key.
    own: Pin,
    client_nonce: [u8; 32],
    csr_hash: [u8; 32],
    exporter: [u8; 32],
    state: State,
}

enum State {
    Challenge,
    Enrolled { server_nonce: [u8; 32] },
    Over,
}

/// What to do next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// Send this, and wait for the answer.
    Send(FromEnrollee),
    /// Keep this, and close with [`Close::Goodbye`].
    Done(Enrolment),
}

/// What an enrolled device keeps, beside its key. Everything in it has been verified.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Enrolment {
    /// The device's id in the gateway's registry.
    pub device_id: DeviceId,
    /// What the device is called there.
    pub device_name: String,
    /// Whose device it is.
    pub user: String,
    /// The device's certificate and the CA's, DER.
    pub chain: Vec<Vec<u8>>,
    /// The gateway's display name.
    pub gateway: String,
    /// Where sessions are opened, `host:port`, best first.
    pub endpoints: Vec<String>,
    /// The name or address that the gateway's certificate must carry.
    pub server_name: String,
}

/// Why the device is not enrolled.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum EnrolError {
    /// The gateway said no, and why.
    #[error("{}", .0.reason)]
    Refused(Refused),
    /// The message does not belong here.
    #[error("the gateway sent a message out of turn")]
    Unexpected,
    /// Whoever answered does not hold the invitation's secret.
    #[error("the gateway could not prove that it issued this invitation")]
    ServerProof,
    /// The chain ends in another CA.
    #[error("the gateway's authority {found} is not the invitation's {pinned}")]
    WrongAuthority {
        /// What the invitation says.
        pinned: Pin,
        /// What the gateway sent.
        found: Pin,
    },
    /// The certificate is for another key or another device, or not signed by the CA.
    #[error("the gateway issued a certificate that does not fit this device")]
    WrongCertificate,
    /// An endpoint or the server's name makes no sense, or there is none.
    #[error("the gateway sent no usable address of its own")]
    BadEndpoint,
    /// A certificate could not be read, or the cryptographic library failed.
    #[error(transparent)]
    Identity(#[from] IdentityError),
}

impl EnrolError {
    /// The code to close with.
    pub const fn close(&self) -> Close {
        match self {
            Self::Refused(_) => Close::Goodbye,
            Self::Unexpected => Close::Unexpected,
            Self::ServerProof => Close::InviteProof,
            Self::WrongAuthority { .. } => Close::InviteForeign,
            Self::WrongCertificate | Self::BadEndpoint | Self::Identity(_) => Close::Malformed,
        }
    }

    /// The number the user sees.
    pub fn ecode(&self) -> ECode {
        match self {
            Self::Refused(refused) => refused.close().ecode(),
            Self::ServerProof | Self::WrongAuthority { .. } => ECode(201),
            Self::Unexpected | Self::WrongCertificate | Self::BadEndpoint | Self::Identity(_) => ECode(307),
        }
    }
}

impl Enrollee {
    /// Begins on a connection with this TLS exporter value
    /// ([`crate::shard::mailbox::Established`]), and returns what to send first. `key` is the device's own; it never leaves the device.
    ///
    /// # Errors
    /// [`IdentityError::Crypto`] when the cryptographic library fails.
    pub fn start(
        invitation: &Invitation,
        key: &DeviceKey,
        device_name: &str,
        platform: &str,
        exporter: [u8; 32],
    ) -> Result<(Self, FromEnrollee), IdentityError> {
        let csr = key.csr(device_name)?;
        let client_nonce = random()?;
        let enrollee = Self {
            key: invitation.secret.key(),
            pin: invitation.pin,
            own: key.pin(),
            client_nonce,
            csr_hash: sha256(&csr),
            exporter,
            state: State::Challenge,
        };
        let begin = Begin {
            version: VERSION,
            invitation: invitation.id,
            client_nonce,
            csr,
            device_name: printable(device_name).unwrap_or_else(|| "device".to_owned()),
            platform: printable(platform).unwrap_or_default(),
        };
        Ok((enrollee, FromEnrollee::Begin(begin)))
    }

    /// Takes the gateway's next message.
    ///
    /// # Errors
    /// Why the enrolment failed. The machine is spent then: close with [`EnrolError::close`].
    pub fn on_message(&mut self, message: FromEnroller) -> Result<Step, EnrolError> {
        match (mem::replace(&mut self.state, State::Over), message) {
            (State::Challenge | State::Enrolled { .. }, FromEnroller::Refused(refused)) => {
                let reason = printable_sentence(&refused.reason);
                Err(EnrolError::Refused(Refused { reason, ..refused }))
            }
            (State::Challenge, FromEnroller::Challenge { server_nonce }) => {
                let hmac = self.transcript(server_nonce).client_proof(&self.key)?;
                self.state = State::Enrolled { server_nonce };
                Ok(Step::Send(FromEnrollee::Proof { hmac }))
            }
            (State::Enrolled { server_nonce }, FromEnroller::Enrolled(enrolled)) => {
                self.check(&self.transcript(server_nonce), enrolled).map(Step::Done)
            }
            _ => Err(EnrolError::Unexpected),
        }
    }

    fn check(&self, transcript: &Transcript, enrolled: Enrolled) -> Result<Enrolment, EnrolError> {
        let Enrolled { device_id, device_name, user, chain, gateway, endpoints, server_name, proof } = enrolled;
        let [leaf, authority] = chain.as_slice() else {
            return Err(EnrolError::WrongCertificate);
        };
        if !transcript.is_server_proof(&self.key, &[&leaf.0, &authority.0], &proof) {
            return Err(EnrolError::ServerProof);
        }
        let found = Pin::of_certificate(&authority.0)?;
        if found != self.pin {
            return Err(EnrolError::WrongAuthority { pinned: self.pin, found });
        }
        if !is_device_certificate(&leaf.0, &authority.0, device_id, self.own)? {
            return Err(EnrolError::WrongCertificate);
        }
        let known_endpoints =
            (1..=MAX_ENDPOINTS).contains(&endpoints.len()) && endpoints.iter().all(|e| is_endpoint(e));
        if !known_endpoints || ServerName::try_from(server_name.as_str()).is_err() {
            return Err(EnrolError::BadEndpoint);
        }
        Ok(Enrolment {
            device_id,
            device_name: printable(&device_name).unwrap_or_default(),
            user: printable(&user).unwrap_or_default(),
            chain: chain.into_iter().map(|certificate| certificate.0).collect(),
            gateway: printable(&gateway).unwrap_or_default(),
            endpoints,
            server_name,
        })
    }

    /// Proves another request than the one that was made: for tests of the gateway's side.
    #[cfg(test)]
    pub(super) fn replace_csr(&mut self, csr: &[u8]) {
        self.csr_hash = sha256(csr);
    }

    fn transcript(&self, server_nonce: [u8; 32]) -> Transcript {
        Transcript { server_nonce, client_nonce: self.client_nonce, csr_hash: self.csr_hash, exporter: self.exporter }
    }
}

/// A peer's sentence on one line, at most 256 characters.
fn printable_sentence(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).take(256).collect()
}
