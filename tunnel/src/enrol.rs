//! Enrolment over `culvert-enrol/1`: a device turns an invitation into a certificate.
//!
//! A challenge-response, so that the invitation's secret never crosses the wire:
//!
//! ```text
//! device                                             gateway
//!   begin      invitation id, client nonce, CSR  ─►  looks the invitation up
//!              ◄─  challenge   server nonce          (or refused)
//!   proof      HMAC                              ─►  consumes it, issues the certificate
//!              ◄─  enrolled    chain, names, HMAC    (or refused)
//! ```
//!
//! Both proofs cover the TLS exporter, so neither is worth anything on another connection, and
//! carry different labels, so neither can be sent back. The device checks the gateway's proof,
//! that the certificate is for its own key, and that the chain ends in the CA whose pin the
//! invitation carries. Both ends are state machines without sockets or clocks.

use serde::{Deserialize, Serialize};

use crate::{
    control::{Base64, Refused, bytes_as_base64},
    identity::DeviceId,
    invitation::InvitationId,
};

mod enrollee;
mod enroller;
mod proof;
mod refusal;
#[cfg(test)]
mod tests;

pub use enrollee::{EnrolError, Enrollee, Enrolment, Step};
pub use enroller::{Enroller, Grant, NeedsInvitation, ProvenCsr};
pub use proof::EnrolKey;
pub use refusal::Refusal;

/// The version of this conversation.
pub const VERSION: u32 = 1;

/// What the device says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum FromEnrollee {
    /// Opens the conversation.
    Begin(Begin),
    /// Proves the invitation's secret.
    Proof {
        /// HMAC-SHA-256.
        #[serde(with = "array_as_base64")]
        hmac: [u8; 32],
    },
}

/// The device's first message.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Begin {
    /// [`VERSION`] of the device's program.
    pub version: u32,
    /// The invitation that is to be used.
    pub invitation: InvitationId,
    /// Fresh random bytes.
    #[serde(with = "array_as_base64")]
    pub client_nonce: [u8; 32],
    /// PKCS#10 request for the device's key, DER.
    #[serde(with = "bytes_as_base64")]
    pub csr: Vec<u8>,
    /// What the device would like to be called.
    pub device_name: String,
    /// Operating system, for the operator.
    pub platform: String,
}

/// What the gateway says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum FromEnroller {
    /// The invitation is good; prove that you hold it.
    Challenge {
        /// Fresh random bytes.
        #[serde(with = "array_as_base64")]
        server_nonce: [u8; 32],
    },
    /// The device is enrolled.
    Enrolled(Enrolled),
    /// No; the connection closes with the same code.
    Refused(Refused),
}

/// What an enrolled device gets.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Enrolled {
    /// The device's id in the registry.
    pub device_id: DeviceId,
    /// What the device is called there.
    pub device_name: String,
    /// Whose device it is.
    pub user: String,
    /// The device's certificate and the CA's, DER.
    pub chain: Vec<Base64>,
    /// The gateway's display name.
    pub gateway: String,
    /// Where sessions are opened, `host:port`, best first.
    pub endpoints: Vec<String>,
    /// The name or address that the gateway's certificate must carry.
    pub server_name: String,
    /// HMAC-SHA-256: the gateway holds the invitation too.
    #[serde(with = "array_as_base64")]
    pub proof: [u8; 32],
}

/// `#[serde(with = ..)]` for byte fields of a fixed length.
mod array_as_base64 {
    use serde::{Deserializer, Serializer, de::Error};

    use crate::control::bytes_as_base64;

    pub(super) fn serialize<S: Serializer, const N: usize>(bytes: &[u8; N], to: S) -> Result<S::Ok, S::Error> {
        bytes_as_base64::serialize(bytes, to)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>, const N: usize>(from: D) -> Result<[u8; N], D::Error> {
        let bytes = bytes_as_base64::deserialize(from)?;
        bytes.try_into().map_err(|bytes: Vec<u8>| D::Error::custom(format_args!("{} bytes, not {N}", bytes.len())))
    }
}
