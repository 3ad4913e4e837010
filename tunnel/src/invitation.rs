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
    net::Ipv6Addr,
    num::NonZeroU16,
    str::FromStr,
    time::{Duration, SystemTime},
};

use aws_lc_rs::constant_time::verify_slices_are_equal;
use data_encoding::{HEXLOWER, HEXLOWER_PERMISSIVE};
use rustls::pki_types::ServerName;
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
    /// Where the gateway can be reached, best first: 1 to [`MAX_ENDPOINTS`] that [`is_endpoint`]
    /// accepts, or nobody can read the invitation.
    pub endpoints: Vec<String>,
    /// The pin of the gateway's CA.
    pub pin: Pin,
    /// The registry's name of this invitation. Not secret.
    pub id: InvitationId,
    /// What the device proves to know.
    pub secret: Secret,
    /// The end, seconds since the Unix epoch.
    pub expires: u64,
    /// The gateway's display name, as [`printable`] gives it.
    pub gateway: String,
    /// Whom the invitation is for, as [`printable`] gives it.
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
        SystemTime::UNIX_EPOCH.checked_add(Duration::from_secs(self.expires)).unwrap_or(SystemTime::UNIX_EPOCH)
    }

    /// True once it is useless by this device's clock; the gateway's is what counts.
    pub fn is_expired(&self, now: SystemTime) -> bool {
        now.duration_since(SystemTime::UNIX_EPOCH).is_ok_and(|since| since.as_secs() >= self.expires)
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
        let count = usize::try_from(text::take_varint(&mut body)?).ok().filter(|n| (1..=MAX_ENDPOINTS).contains(n))?;
        let endpoints =
            (0..count).map(|_| take_text(&mut body).filter(|text| is_endpoint(text))).collect::<Option<Vec<_>>>()?;
        let gateway = take_text(&mut body)?;
        let user = take_text(&mut body)?;
        let gateway = printable(&gateway).unwrap_or_default();
        let user = printable(&user).unwrap_or_default();
        body.is_empty().then_some(Self { endpoints, pin, id, secret, expires, gateway, user })
    }
}

/// True for what an invitation may carry as an endpoint: `name:port`, `192.0.2.1:443` or
/// `[2001:db8::1]:443`, at most [`MAX_ENDPOINT`] bytes, the port not 0.
pub fn is_endpoint(text: &str) -> bool {
    let Some((host, port)) = text.rsplit_once(':') else {
        return false;
    };
    let in_brackets = host.strip_prefix('[').and_then(|rest| rest.strip_suffix(']'));
    let is_host = match in_brackets {
        Some(address) => address.parse::<Ipv6Addr>().is_ok(),
        None => !host.contains(':') && ServerName::try_from(host).is_ok(),
    };
    // `parse` alone would take "+443".
    let is_port = port.bytes().all(|b| b.is_ascii_digit()) && port.parse::<NonZeroU16>().is_ok();
    text.len() <= MAX_ENDPOINT && is_host && is_port
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
    #[error("this is not an invitation; paste the whole text that begins with culvert:// or culvert1")]
    NotAnInvitation,
    /// The checksum does not fit.
    #[error("the invitation is damaged: at least one character is wrong; copy it again, or check what was typed")]
    Damaged,
    /// The end is missing.
    #[error("the invitation is not complete: its end is missing; copy all of it, also the lines below the first")]
    Truncated,
    /// A newer program made it.
    #[error("the invitation was made by a newer Culvert (format {0}); update Culvert on this device")]
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
        let bytes = HEXLOWER_PERMISSIVE.decode(text.as_bytes()).map_err(|_| InvalidId)?;
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

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn an_endpoint_is_a_host_and_a_port() {
        for good in ["vpn.example.org:443", "192.0.2.1:1", "[2001:db8::1]:65535", "localhost:51820"] {
            assert!(is_endpoint(good), "{good}");
        }
        for bad in [
            "",
            ":443",
            "vpn.example.org",
            "vpn.example.org:",
            "vpn.example.org:0",
            "vpn.example.org:+443",
            "vpn.example.org:65536",
            "2001:db8::1:443",
            "[vpn.example.org]:443",
            "user@vpn.example.org:443",
            "vpn example.org:443",
            "vpn.example.org/x:443",
        ] {
            assert!(!is_endpoint(bad), "{bad}");
        }
    }

    #[test]
    fn the_secret_is_in_the_link_and_nowhere_else() {
        let invitation = invitation(["a.example:443".to_owned()].to_vec(), "Acme", "anna", 1);
        let shown = format!("{invitation:?} {:?}", invitation.secret.key());
        for leak in ["5, 5", "0505", "BQUF"] {
            assert!(!shown.contains(leak), "{shown}");
        }
        let other = Invitation { secret: Secret::from_bytes([6; 16]), ..invitation.clone() };
        assert_ne!(other.to_link(), invitation.to_link());
        assert_ne!(other, invitation);
    }

    #[test]
    fn the_registry_s_key_is_not_the_secret_and_differs_for_each() {
        let [a, b] = [5, 6].map(|byte| *Secret::from_bytes([byte; 16]).key().as_bytes());
        assert_ne!(a, b);
        assert!(!a.windows(16).any(|w| w == [5; 16]));
    }

    #[test]
    fn an_invitation_ends_when_it_says() {
        let invitation = invitation(vec!["a.example:443".into()], "Acme", "anna", 1_000);
        let end = invitation.expires_at();
        assert_eq!(end, SystemTime::UNIX_EPOCH + Duration::from_secs(1_000));
        assert!(!invitation.is_expired(end - Duration::from_secs(1)));
        assert!(invitation.is_expired(end));
    }

    #[test]
    fn an_invitation_without_an_endpoint_that_works_is_refused() {
        for endpoints in [vec![], vec!["no port".to_owned()], vec!["a.example:443".to_owned(); MAX_ENDPOINTS + 1]] {
            let unusable = invitation(endpoints, "Acme", "anna", 1);
            assert_eq!(unusable.to_text().parse::<Invitation>(), Err(InvitationError::Damaged));
        }
    }

    #[test]
    fn a_name_in_an_invitation_cannot_forge_a_line() {
        let sly = invitation(vec!["a.example:443".into()], "Acme\n\x1b[31mOK", "anna\u{202e}", 1);
        let read: Invitation = sly.to_text().parse().unwrap();
        assert_eq!((read.gateway.as_str(), read.user.as_str()), ("Acme [31mOK", "anna"));
    }

    proptest! {
        #[test]
        fn any_invitation_survives_both_forms_in_any_case(
            invitation in any_invitation(),
            upper in proptest::collection::vec(any::<bool>(), 64),
        ) {
            for text in [invitation.to_link(), invitation.to_text()] {
                let mixed: String = text
                    .chars()
                    .zip(upper.iter().cycle())
                    .map(|(c, upper)| if *upper { c.to_ascii_uppercase() } else { c })
                    .collect();
                prop_assert_eq!(mixed.parse::<Invitation>(), Ok(invitation.clone()));
            }
        }

        #[test]
        fn any_wrong_character_is_noticed(
            invitation in any_invitation(),
            at in any::<proptest::sample::Index>(),
            wrong in "[ -~]",
        ) {
            for text in [invitation.to_link(), invitation.to_text()] {
                let at = at.index(text.len());
                let wrong_text = format!("{}{wrong}{}", &text[..at], &text[at + 1..]);
                prop_assume!(reads_the_same(&text[at..=at]) != reads_the_same(&wrong));
                prop_assert!(wrong_text.parse::<Invitation>().is_err(), "{text} {wrong_text}");
            }
        }

        #[test]
        fn neighbours_in_the_wrong_order_are_noticed(
            invitation in any_invitation(),
            at in any::<proptest::sample::Index>(),
        ) {
            let mut text = invitation.to_text().into_bytes();
            let at = at.index(text.len() - 1);
            prop_assume!(text[at] != text[at + 1]);
            text.swap(at, at + 1);
            let text = String::from_utf8(text).unwrap();
            prop_assert!(text.parse::<Invitation>().is_err());
        }
    }

    /// Characters that stand for the same symbol.
    fn reads_the_same(c: &str) -> String {
        c.to_ascii_lowercase().replace('o', "0").replace(['i', 'l'], "1")
    }

    fn invitation(endpoints: Vec<String>, gateway: &str, user: &str, expires: u64) -> Invitation {
        Invitation {
            endpoints,
            pin: Pin::from_bytes([9; 32]),
            id: InvitationId::from_bytes([1; 8]),
            secret: Secret::from_bytes([5; 16]),
            expires,
            gateway: gateway.into(),
            user: user.into(),
        }
    }

    fn any_invitation() -> impl Strategy<Value = Invitation> {
        let endpoint = "([a-z][a-z0-9]{0,20}(\\.[a-z]{2,9}){0,3}|192\\.0\\.2\\.[1-9]|\\[2001:db8::[1-9a-f]{1,4}\\]):[1-9][0-9]{0,3}";
        (
            proptest::collection::vec(endpoint, 1..=MAX_ENDPOINTS),
            any::<([u8; 32], [u8; 8], [u8; 16], u64)>(),
            ".{0,80}",
            ".{0,80}",
        )
            .prop_map(|(endpoints, (pin, id, secret, expires), gateway, user)| Invitation {
                endpoints,
                pin: Pin::from_bytes(pin),
                id: InvitationId::from_bytes(id),
                secret: Secret::from_bytes(secret),
                expires,
                gateway: printable(&gateway).unwrap_or_default(),
                user: printable(&user).unwrap_or_default(),
            })
    }
}
