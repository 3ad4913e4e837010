//! The control stream of wire version 1: frames of `u32` length (big-endian) and one JSON message.
//!
//! The client opens one bidirectional stream on `culvert/1`. Unknown fields are ignored; an
//! unknown `type` is answered with `unsupported`; a malformed or oversized frame closes the
//! connection with its own code. Pure: bytes in, messages out. Enrolment has its own messages
//! (`enrol`) in the same frames.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use ipnet::IpNet;
use serde::{Deserialize, Serialize, de::DeserializeOwned};

use crate::close::Close;
use crate::identity::Pin;

/// The longest frame payload either side may send, in bytes.
pub const MAX_FRAME: usize = 64 * 1024;

/// The wire version this build speaks.
pub const VERSION: u32 = 1;

/// The most CAs that a client trusts at a time: one, and the one that comes after it.
pub const MAX_AUTHORITIES: usize = 2;

/// What the client says on the control stream.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum FromClient {
    /// Opens the session. The first message, and only the first.
    Hello(Hello),
    /// Answers a `challenge`: a signature by the device key over nonce and TLS exporter.
    ChallengeAnswer {
        /// The nonce that is answered.
        #[serde(with = "bytes_as_base64")]
        nonce: Vec<u8>,
        /// ECDSA P-256 SHA-256 signature, ASN.1 DER.
        #[serde(with = "bytes_as_base64")]
        signature: Vec<u8>,
    },
    /// Asks for a fresh device certificate.
    Renew {
        /// PKCS#10 request, DER.
        #[serde(with = "bytes_as_base64")]
        csr: Vec<u8>,
        /// The CA that is to sign it, one that the client trusts; older clients do not say, and have one.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        authority: Option<Pin>,
    },
    /// A certificate by this CA is on the client's disk, and so is that it trusts that CA.
    Kept {
        /// The CA's pin.
        authority: Pin,
    },
    /// Tells the largest inner packet the client can take.
    Path {
        /// Bytes of one inner packet.
        mtu_bytes: u16,
    },
    /// The client is about to close.
    Goodbye,
}

/// What the gateway says on the control stream.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum FromServer {
    /// The session is open.
    Welcome(Welcome),
    /// The session is refused; the connection closes with the same code.
    Refused(Refused),
    /// Replaces the settings of a live session; addresses never change.
    Reconfigure(Welcome),
    /// Asks the client to prove that it still holds the device key.
    Challenge {
        /// Random bytes to sign.
        #[serde(with = "bytes_as_base64")]
        nonce: Vec<u8>,
    },
    /// A renewed device certificate, leaf first, DER.
    Certificate {
        /// The chain.
        chain: Vec<Base64>,
    },
    /// The CAs to trust from now on, instead of those that the client knew; DER. The first one is to sign the
    /// client's own certificate: who has another asks for one. Whoever says this has proven by one that the client
    /// trusted that it is the gateway.
    Authorities {
        /// The certificates, at most [`MAX_AUTHORITIES`].
        authorities: Vec<Base64>,
    },
    /// The last message's `type` is not known to this version.
    Unsupported {
        /// The type that was not understood.
        what: String,
    },
    /// The gateway is about to close.
    Goodbye {
        /// A word of the close table.
        reason: String,
    },
}

/// The client's first message.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hello {
    /// The wire version the client speaks.
    pub version: u32,
    /// The client's program and version, for the operator.
    pub client: String,
    /// Operating system, for the operator.
    pub platform: String,
    /// The CAs that the client trusts; older clients do not say, and cannot change them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub authorities: Vec<Pin>,
}

/// TCP port of the gateway's inner IPv4 address where clients test how fast the tunnel is.
pub const SPEED_PORT: u16 = 9581;

/// Everything a client needs to carry traffic.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Welcome {
    /// The gateway's display name.
    pub gateway: String,
    /// The device's name in the registry.
    pub device: String,
    /// The device's stable inner IPv4 address.
    pub ipv4: Ipv4Addr,
    /// The device's stable inner IPv6 address; absent when the gateway has none.
    pub ipv6: Option<Ipv6Addr>,
    /// The gateway's own inner addresses, in the same order.
    pub gateway_ipv4: Ipv4Addr,
    /// See `gateway_ipv4`.
    pub gateway_ipv6: Option<Ipv6Addr>,
    /// The networks inside, for the client's LAN-overlap check.
    pub networks: Vec<IpNet>,
    /// Destinations that go into the tunnel; `0.0.0.0/0` and `::/0` make it a full tunnel.
    pub routes: Vec<IpNet>,
    /// Destinations that stay outside even so.
    #[serde(default)]
    pub excluded_routes: Vec<IpNet>,
    /// DNS servers to use; empty leaves the client's own.
    #[serde(default)]
    pub dns_servers: Vec<IpAddr>,
    /// Domains that these servers answer; empty means all.
    #[serde(default)]
    pub dns_domains: Vec<String>,
    /// The address the gateway sees the client at.
    pub seen_as: SocketAddr,
    /// Other endpoints (`host:port`) of this gateway.
    #[serde(default)]
    pub endpoints: Vec<String>,
    /// End of the device certificate, seconds since the Unix epoch.
    pub certificate_until: i64,
    /// Seconds between challenges of a live session.
    pub rechallenge_seconds: u64,
    /// The gateway's clock, seconds since the Unix epoch; absent from older gateways.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub time: Option<i64>,
}

/// Why a session or an enrolment is refused.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Refused {
    /// A number of the close table.
    pub code: u32,
    /// One sentence for people.
    pub reason: String,
    /// Seconds to wait before another attempt makes sense.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retry_after_seconds: Option<u64>,
}

impl Refused {
    /// A refusal with a code of the table and a sentence for people.
    pub fn new(code: Close, reason: impl Into<String>) -> Self {
        Self { code: code.code(), reason: reason.into(), retry_after_seconds: None }
    }

    /// The code, or [`Close::Internal`] for one that this version does not know.
    pub fn close(&self) -> Close {
        Close::from_code(self.code.into()).unwrap_or(Close::Internal)
    }
}

/// Why a frame could not be read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// The length field exceeds [`MAX_FRAME`].
    #[error("a frame of {0} bytes exceeds the {MAX_FRAME}-byte limit")]
    Oversized(usize),
    /// The payload is not a JSON object of a known shape.
    #[error("a malformed frame")]
    Malformed,
    /// The `type` is not known; the connection goes on.
    #[error("an unknown message type {0:?}")]
    Unknown(String),
}

impl FrameError {
    /// The code to close with; `None` when the answer is `unsupported` and life goes on.
    pub const fn close(&self) -> Option<Close> {
        match self {
            Self::Oversized(_) => Some(Close::Oversized),
            Self::Malformed => Some(Close::Malformed),
            Self::Unknown(_) => None,
        }
    }
}

/// Joins stream bytes into frames. Holds at most one frame of [`MAX_FRAME`] bytes.
#[derive(Debug, Default)]
pub struct FrameReader {
    buffer: Vec<u8>,
}

impl FrameReader {
    /// Adds bytes as they arrive from the stream.
    pub fn push(&mut self, bytes: &[u8]) {
        self.buffer.extend_from_slice(bytes);
    }

    /// The next whole frame's payload, without its length; `None` while more bytes are needed.
    ///
    /// # Errors
    /// [`FrameError::Oversized`] as soon as the length field is known; the stream is lost then.
    pub fn next_frame(&mut self) -> Result<Option<Vec<u8>>, FrameError> {
        let Some(header) = self.buffer.first_chunk::<4>() else { return Ok(None) };
        let len = u32::from_be_bytes(*header) as usize;
        if len > MAX_FRAME {
            return Err(FrameError::Oversized(len));
        }
        if self.buffer.len() < 4 + len {
            return Ok(None);
        }
        let frame = self.buffer[4..4 + len].to_vec();
        self.buffer.drain(..4 + len);
        Ok(Some(frame))
    }
}

/// One message as a frame: length and JSON.
///
/// # Errors
/// [`FrameError::Oversized`] for a message that no peer would accept.
pub fn encode<M: Serialize>(message: &M) -> Result<Vec<u8>, FrameError> {
    let json = serde_json::to_vec(message).map_err(|_| FrameError::Malformed)?;
    if json.len() > MAX_FRAME {
        return Err(FrameError::Oversized(json.len()));
    }
    let mut frame = Vec::with_capacity(4 + json.len());
    frame.extend_from_slice(&(json.len() as u32).to_be_bytes());
    frame.extend_from_slice(&json);
    Ok(frame)
}

/// The message in one frame's payload.
///
/// # Errors
/// [`FrameError::Unknown`] for a well-formed message of a type that `M` lacks, else
/// [`FrameError::Malformed`].
pub fn decode<M: DeserializeOwned>(payload: &[u8]) -> Result<M, FrameError> {
    #[derive(Deserialize)]
    struct Tag {
        r#type: String,
    }
    serde_json::from_slice(payload).map_err(|error| {
        match serde_json::from_slice::<Tag>(payload) {
            // serde names the variant it lacks; a known type with a bad field does not say that.
            Ok(tag) if error.to_string().starts_with("unknown variant") => {
                FrameError::Unknown(tag.r#type.chars().take(64).collect())
            }
            _ => FrameError::Malformed,
        }
    })
}

/// Bytes that travel as base64 text inside JSON.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Base64(#[serde(with = "bytes_as_base64")] pub Vec<u8>);

/// `#[serde(with = ..)]` for byte fields.
pub mod bytes_as_base64 {
    use data_encoding::BASE64;
    use serde::{Deserialize, Deserializer, Serializer, de::Error};

    /// Writes standard base64 with padding.
    ///
    /// # Errors
    /// What the serializer returns.
    pub fn serialize<S: Serializer>(bytes: &[u8], to: S) -> Result<S::Ok, S::Error> {
        to.serialize_str(&BASE64.encode(bytes))
    }

    /// Reads standard base64 with padding.
    ///
    /// # Errors
    /// A text that is not base64.
    pub fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Vec<u8>, D::Error> {
        let text = String::deserialize(from)?;
        BASE64.decode(text.as_bytes()).map_err(D::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_message_survives_the_frame() {
        let hello =
            FromClient::Hello(Hello { version: 1, client: "t".into(), platform: "linux".into(), authorities: vec![] });
        let mut reader = FrameReader::default();
        reader.push(&encode(&hello).unwrap());
        let frame = reader.next_frame().unwrap().unwrap();
        assert_eq!(decode::<FromClient>(&frame), Ok(hello));
        assert_eq!(reader.next_frame(), Ok(None));
    }

    #[test]
    fn an_unknown_type_is_told_apart_from_garbage() {
        assert_eq!(decode::<FromClient>(br#"{"type":"dance"}"#), Err(FrameError::Unknown("dance".into())));
        assert_eq!(decode::<FromClient>(br#"{"type":"hello"}"#), Err(FrameError::Malformed));
        assert_eq!(decode::<FromClient>(b"\xff\x00"), Err(FrameError::Malformed));
        let extra = br#"{"type":"path","mtu_bytes":1400,"colour":"blue"}"#;
        assert_eq!(decode::<FromClient>(extra), Ok(FromClient::Path { mtu_bytes: 1400 }));
    }

    #[test]
    fn an_oversized_frame_is_refused_before_its_body_arrives() {
        let mut reader = FrameReader::default();
        reader.push(&(MAX_FRAME as u32 + 1).to_be_bytes());
        assert_eq!(reader.next_frame(), Err(FrameError::Oversized(MAX_FRAME + 1)));
    }

    proptest! {
        #[test]
        fn frames_survive_any_cut_of_the_stream(
            bodies in proptest::collection::vec(".{0,200}", 1..6),
            cut in 1usize..40,
        ) {
            let wire: Vec<u8> = bodies.iter().flat_map(|b| encode(b).unwrap()).collect();
            let mut reader = FrameReader::default();
            let mut seen = Vec::new();
            for part in wire.chunks(cut) {
                reader.push(part);
                while let Some(frame) = reader.next_frame().unwrap() {
                    seen.push(serde_json::from_slice::<String>(&frame).unwrap());
                }
            }
            prop_assert_eq!(seen, bodies);
        }
    }
}
