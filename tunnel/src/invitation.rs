//! An invitation: everything that a device needs to enrol, in one text that people pass on.
//!
//! One payload, two texts: the link `culvert://enrol#...`, and `culvert1...` to dictate or type.
//! Both are base32 in Crockford's alphabet (case does not matter, O is 0, I and L are 1), white
//! space and dashes are ignored, and a checksum finds every mistyped character. In a link the
//! payload stands behind `#`, so that no web server ever sees it.
//!
//! The frame, in bytes: version (1), length of the body (varint), body, checksum (5, of SHA-256).
//! It is the same in every version, so that an old program can tell a new invitation from a
//! damaged one. All varints are LEB128.

use std::{
    fmt,
    str::FromStr,
    time::{Duration, SystemTime},
};

use aws_lc_rs::constant_time::verify_slices_are_equal;
use data_encoding::{HEXLOWER, HEXLOWER_PERMISSIVE};
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use crate::{
    enrol::EnrolKey,
    identity::{IdentityError, Pin, printable, random},
};

mod text;

/// The most endpoints that an invitation carries.
pub const MAX_ENDPOINTS: usize = 8;

/// The longest endpoint, in bytes: a host name of 253 and a port.
pub const MAX_ENDPOINT: usize = 260;

/// An offer to enrol one device. `Debug` does not print the secret.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Invitation {
    /// Where the gateway can be reached, `host:port`, best first.
    pub endpoints: Vec<String>,
    /// The pin of the gateway's CA.
    pub pin: Pin,
    /// The registry's name of this invitation. Not secret.
    pub id: InvitationId,
    /// What the device proves to know.
    pub secret: Secret,
    /// The end, seconds since the Unix epoch.
    pub expires: u64,
    /// The gateway's display name.
    pub gateway: String,
    /// Whom the invitation is for.
    pub user: String,
}

impl Invitation {
    /// The link: `culvert://enrol#` and the payload. Contains the secret.
    pub fn to_link(&self) -> String {
        text::to_text(text::LINK, &self.body())
    }

    /// The text to dictate: `culvert1` and the payload. Contains the secret.
    pub fn to_text(&self) -> String {
        text::to_text(text::TYPED, &self.body())
    }

    /// The end as a time.
    pub fn expires_at(&self) -> SystemTime {
        SystemTime::UNIX_EPOCH
            .checked_add(Duration::from_secs(self.expires))
            .unwrap_or(SystemTime::UNIX_EPOCH)
    }

    /// True once it is useless by this device's clock; the gateway's is what counts.
    pub fn is_expired(&self, now: SystemTime) -> bool {
        now.duration_since(SystemTime::UNIX_EPOCH)
            .is_ok_and(|since| since.as_secs() >= self.expires)
    }

    fn body(&self) -> Zeroizing<Vec<u8>> {
        let mut body = Zeroizing::new(Vec::with_capacity(512));
        body.extend_from_slice(&self.id.0);
        body.extend_from_slice(&*self.secret.0);
        body.extend_from_slice(self.pin.as_bytes());
        text::put_varint(&mut body, self.expires);
        text::put_varint(&mut body, self.endpoints.len() as u64);
        for text in self.endpoints.iter().chain([&self.gateway, &self.user]) {
            text::put_varint(&mut body, text.len() as u64);
            body.extend_from_slice(text.as_bytes());
        }
        body
    }

    /// The fields of a body whose checksum fits; `None` for one that no version 1 wrote.
    fn from_body(mut body: &[u8]) -> Option<Self> {
        let id = InvitationId(take(&mut body)?);
        let secret = Secret::from_bytes(take(&mut body)?);
        let pin = Pin::from_bytes(take(&mut body)?);
        let expires = text::take_varint(&mut body)?;
        let count = usize::try_from(text::take_varint(&mut body)?)
            .ok()
            .filter(|n| (1..=MAX_ENDPOINTS).contains(n))?;
        let endpoints = (0..count)
            .map(|_| take_text(&mut body).filter(|text| is_endpoint(text)))
            .collect::<Option<Vec<_>>>()?;
        let gateway = take_text(&mut body)?;
        let user = take_text(&mut body)?;
        let gateway = printable(&gateway).unwrap_or_default();
        let user = printable(&user).unwrap_or_default();
        body.is_empty().then_some(Self {
            endpoints,
            pin,
            id,
            secret,
            expires,
            gateway,
            user,
        })
    }
}

/// A host and a port, in characters that need no care anywhere.
pub(crate) fn is_endpoint(text: &str) -> bool {
    let plain =
        |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_' | ':' | '[' | ']' | '%');
    text.len() <= MAX_ENDPOINT
        && text.chars().all(plain)
        && text
            .rsplit_once(':')
            .is_some_and(|(host, port)| !host.is_empty() && port.parse::<u16>().is_ok())
}

fn take<const N: usize>(from: &mut &[u8]) -> Option<[u8; N]> {
    let (bytes, rest) = from.split_first_chunk()?;
    *from = rest;
    Some(*bytes)
}

fn take_text(from: &mut &[u8]) -> Option<String> {
    let len = usize::try_from(text::take_varint(from)?).ok()?;
    let (bytes, rest) = from.split_at_checked(len)?;
    *from = rest;
    String::from_utf8(bytes.to_vec()).ok()
}

impl FromStr for Invitation {
    type Err = InvitationError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Self::from_body(&text::from_text(text)?).ok_or(InvitationError::Damaged)
    }
}

/// Why a text is no invitation that can be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvitationError {
    /// It begins like neither form.
    #[error(
        "this is not an invitation; paste the whole text that begins with culvert:// or culvert1"
    )]
    NotAnInvitation,
    /// The checksum does not fit.
    #[error(
        "the invitation is damaged: at least one character is wrong; copy it again, or check what was typed"
    )]
    Damaged,
    /// The end is missing.
    #[error(
        "the invitation is not complete: its end is missing; copy all of it, also the lines below the first"
    )]
    Truncated,
    /// A newer program made it.
    #[error(
        "the invitation was made by a newer Culvert (format {0}); update Culvert on this device"
    )]
    UnknownVersion(u8),
}

/// The registry's name of an invitation: 64 random bits. Prints as 16 lower-case hex digits.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct InvitationId([u8; 8]);

impl InvitationId {
    /// A fresh id.
    ///
    /// # Errors
    /// [`IdentityError::Crypto`] when the system gives no random bytes.
    pub fn generate() -> Result<Self, IdentityError> {
        random().map(Self)
    }

    /// The id with these bytes.
    pub const fn from_bytes(bytes: [u8; 8]) -> Self {
        Self(bytes)
    }

    /// The 8 bytes.
    pub const fn as_bytes(&self) -> &[u8; 8] {
        &self.0
    }
}

impl fmt::Display for InvitationId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&HEXLOWER.encode(&self.0))
    }
}

impl fmt::Debug for InvitationId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl From<InvitationId> for String {
    fn from(id: InvitationId) -> Self {
        id.to_string()
    }
}

impl FromStr for InvitationId {
    type Err = InvalidId;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let bytes = HEXLOWER_PERMISSIVE
            .decode(text.as_bytes())
            .map_err(|_| InvalidId)?;
        Ok(Self(bytes.try_into().map_err(|_| InvalidId)?))
    }
}

impl TryFrom<String> for InvitationId {
    type Error = InvalidId;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

/// The text is no [`InvitationId`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("an invitation id is 16 hexadecimal digits")]
pub struct InvalidId;

/// The 128 bits that an invitation is worth. Never printed, wiped when dropped.
#[derive(Clone)]
pub struct Secret(Zeroizing<[u8; 16]>);

impl Secret {
    /// A fresh secret.
    ///
    /// # Errors
    /// [`IdentityError::Crypto`] when the system gives no random bytes.
    pub fn generate() -> Result<Self, IdentityError> {
        random().map(Self::from_bytes)
    }

    /// The secret with these bytes.
    pub fn from_bytes(bytes: [u8; 16]) -> Self {
        Self(Zeroizing::new(bytes))
    }

    /// The key for the proofs of enrolment. The registry keeps this and not the secret, so that
    /// nobody can rebuild an invitation from a copy of the registry.
    pub fn key(&self) -> EnrolKey {
        EnrolKey::derive(&self.0)
    }
}

impl PartialEq for Secret {
    fn eq(&self, other: &Self) -> bool {
        verify_slices_are_equal(&*self.0, &*other.0).is_ok()
    }
}

impl Eq for Secret {}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(..)")
    }
}
