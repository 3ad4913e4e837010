//! Why a connection ended: the application close codes of the wire, one table.
//!
//! Each code has the E-code of the product contract (product.md 5.4), so that the gateway's own
//! reason reaches the user whatever TLS library stands between. Not here: what the user reads
//! for an E-code (that is the client's catalogue).

use std::fmt;

/// A user-visible error number, such as `E301`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ECode(pub u16);

impl fmt::Display for ECode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "E{:03}", self.0)
    }
}

impl fmt::Debug for ECode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

macro_rules! close_codes {
    ($( $(#[$doc:meta])* $name:ident = $code:literal, $ecode:literal, $word:literal; )*) => {
        /// An application close code (RFC 9000 section 19.19) of wire version 1.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum Close { $( $(#[$doc])* $name, )* }

        impl Close {
            /// Every code, in the order of the table.
            pub const ALL: &[Self] = &[ $( Self::$name, )* ];

            /// The number on the wire.
            pub const fn code(self) -> u32 { match self { $( Self::$name => $code, )* } }

            /// The number the user sees.
            pub const fn ecode(self) -> ECode { ECode(match self { $( Self::$name => $ecode, )* }) }

            /// A stable lower-case word for logs, metrics and JSON.
            pub const fn word(self) -> &'static str { match self { $( Self::$name => $word, )* } }

            /// The code for a number from the wire; `None` for one that this version does not know.
            pub const fn from_code(code: u64) -> Option<Self> {
                match code { $( $code => Some(Self::$name), )* _ => None }
            }
        }
    };
}

close_codes! {
    /// The peer is done: the user disconnected, or enrolment is complete.
    Goodbye = 0x00, 100, "goodbye";
    /// The gateway is stopping; it is worth calling again soon.
    Shutdown = 0x01, 104, "shutdown";
    /// The same device opened a newer session.
    Replaced = 0x02, 100, "replaced";
    /// An administrator ended the session; a new one is welcome.
    Kicked = 0x03, 104, "kicked";

    /// A control frame that is no JSON message of a known shape.
    Malformed = 0x10, 307, "malformed";
    /// A control frame longer than [`crate::control::MAX_FRAME`].
    Oversized = 0x11, 307, "oversized";
    /// A message that is not allowed in this state of the conversation.
    Unexpected = 0x12, 307, "unexpected";
    /// The peers share no version of the wire protocol.
    Version = 0x13, 307, "version";
    /// The peer did not send what was due in time.
    Timeout = 0x14, 104, "timeout";
    /// Something failed inside the gateway (its disk, its registry).
    Internal = 0x15, 305, "internal";

    /// `culvert/1` needs a client certificate and none was presented.
    NoCertificate = 0x20, 303, "no_certificate";
    /// The certificate is valid but the registry has no such device.
    UnknownDevice = 0x21, 303, "unknown_device";
    /// An administrator removed the device.
    Revoked = 0x22, 301, "revoked";
    /// The device certificate is past its end.
    Expired = 0x23, 302, "expired";
    /// A challenge on a live session was answered wrongly or not at all.
    ChallengeFailed = 0x24, 303, "challenge_failed";

    /// The user has as many devices as the gateway allows.
    Limit = 0x30, 304, "limit";
    /// No free inner address is left.
    PoolFull = 0x31, 305, "pool_full";
    /// Too many attempts; the gateway says when to come back.
    Wait = 0x32, 306, "wait";

    /// The invitation is past its end.
    InviteExpired = 0x40, 601, "invite_expired";
    /// The invitation has been used up.
    InviteUsed = 0x41, 601, "invite_used";
    /// This gateway never issued the invitation.
    InviteForeign = 0x42, 601, "invite_foreign";
    /// The proof does not fit the invitation: mistyped, damaged, or replayed.
    InviteProof = 0x43, 601, "invite_proof";
    /// An administrator withdrew the invitation.
    InviteCancelled = 0x44, 601, "invite_cancelled";
    /// The certificate request cannot be used (key type, signature, or size).
    BadRequest = 0x45, 601, "bad_request";
}

impl Close {
    /// True when trying again cannot help until a person acts: the client stops (architecture
    /// section 6, "never for verdicts").
    pub const fn is_verdict(self) -> bool {
        !matches!(
            self,
            Self::Goodbye
                | Self::Shutdown
                | Self::Kicked
                | Self::Timeout
                | Self::Internal
                | Self::PoolFull
                | Self::Wait
        )
    }
}

/// Why a link ended. The second family of errors (`Dropped` is the first): each variant exists
/// because some line returns it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Down {
    /// We closed it ourselves.
    #[error("closed here: {}", .0.word())]
    Local(Close),
    /// The peer closed it with a code of our table, and its words (at most 256 bytes, escaped).
    #[error("closed by the peer: {} {reason:?}", .code.word())]
    Peer {
        /// The code it gave.
        code: Close,
        /// The text it gave, for people.
        reason: String,
    },
    /// The peer closed it with a code we do not know.
    #[error("closed by the peer with the unknown code {0:#x}")]
    PeerUnknown(u64),
    /// TLS failed; `alert` is the description of RFC 8446 section 6. `local` when we raised it.
    #[error("TLS alert {alert} ({})", if *.local { "raised here" } else { "from the peer" })]
    Tls {
        /// TLS alert description.
        alert: u8,
        /// True when this side refused the peer, false when the peer refused us.
        local: bool,
    },
    /// Nothing ever came back.
    #[error("no answer")]
    NoAnswer,
    /// The peer fell silent.
    #[error("the connection timed out")]
    TimedOut,
    /// The peer lost its state (a stateless reset arrived).
    #[error("reset by the peer")]
    Reset,
    /// The peer speaks no QUIC version that we do.
    #[error("no common QUIC version")]
    VersionMismatch,
    /// The peer broke QUIC itself; the number is a transport error code of RFC 9000 section 20.
    #[error("QUIC transport error {0:#x}")]
    Transport(u64),
}

/// TLS alert descriptions that have an E-code of their own (RFC 8446 section 6.2).
mod alert {
    pub(super) const BAD_CERTIFICATE: u8 = 42;
    pub(super) const CERTIFICATE_REVOKED: u8 = 44;
    pub(super) const CERTIFICATE_EXPIRED: u8 = 45;
    pub(super) const UNKNOWN_CA: u8 = 48;
    /// What webpki raises for a CA of the same name with another key: a gateway that was reinstalled.
    pub(super) const DECRYPT_ERROR: u8 = 51;
    pub(super) const CERTIFICATE_REQUIRED: u8 = 116;
    pub(super) const NO_APPLICATION_PROTOCOL: u8 = 120;
}

impl Down {
    /// The number the user sees.
    pub const fn ecode(&self) -> ECode {
        match self {
            Self::Local(code) | Self::Peer { code, .. } => code.ecode(),
            Self::Tls { alert: alert::CERTIFICATE_EXPIRED, local: true } => ECode(202),
            Self::Tls { alert: alert::CERTIFICATE_EXPIRED, local: false } => ECode(302),
            Self::Tls { alert: alert::CERTIFICATE_REVOKED, local: false } => ECode(301),
            Self::Tls { alert: alert::NO_APPLICATION_PROTOCOL, .. } => ECode(307),
            Self::Tls { local: true, .. } => ECode(201),
            Self::Tls { local: false, .. } => ECode(303),
            Self::VersionMismatch => ECode(307),
            Self::PeerUnknown(_) | Self::NoAnswer | Self::TimedOut | Self::Reset | Self::Transport(_) => ECode(104),
        }
    }

    /// A stable lower-case word for logs, metrics and JSON.
    pub const fn word(&self) -> &'static str {
        match self {
            Self::Local(code) | Self::Peer { code, .. } => code.word(),
            Self::PeerUnknown(_) => "unknown_code",
            Self::Tls { alert: alert::CERTIFICATE_EXPIRED, .. } => "expired",
            Self::Tls { alert: alert::UNKNOWN_CA | alert::DECRYPT_ERROR, .. } => "unknown_ca",
            Self::Tls { alert: alert::CERTIFICATE_REQUIRED, .. } => "no_certificate",
            Self::Tls { alert: alert::NO_APPLICATION_PROTOCOL, .. } => "no_application_protocol",
            Self::Tls { alert: alert::BAD_CERTIFICATE, .. } => "bad_certificate",
            Self::Tls { .. } => "tls",
            Self::NoAnswer => "no_answer",
            Self::TimedOut => "timed_out",
            Self::Reset => "reset",
            Self::VersionMismatch => "version",
            Self::Transport(_) => "transport",
        }
    }

    /// True when trying again cannot help until a person acts.
    pub const fn is_verdict(&self) -> bool {
        match self {
            Self::Local(code) | Self::Peer { code, .. } => code.is_verdict(),
            Self::Tls { .. } | Self::VersionMismatch => true,
            Self::PeerUnknown(_) | Self::NoAnswer | Self::TimedOut | Self::Reset | Self::Transport(_) => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn every_code_survives_the_wire_and_is_unique() {
        let mut numbers = HashSet::new();
        let mut words = HashSet::new();
        for &close in Close::ALL {
            assert_eq!(Close::from_code(close.code().into()), Some(close));
            assert!(numbers.insert(close.code()), "{close:?} shares its number");
            assert!(words.insert(close.word()), "{close:?} shares its word");
        }
        assert_eq!(Close::from_code(0xffff), None);
    }

    #[test]
    fn a_refused_client_learns_whose_certificate_was_at_fault() {
        assert_eq!(Down::Tls { alert: 45, local: true }.ecode(), ECode(202));
        assert_eq!(Down::Tls { alert: 45, local: false }.ecode(), ECode(302));
        assert_eq!(Down::Tls { alert: 48, local: true }.ecode(), ECode(201));
        assert_eq!(Down::Tls { alert: 48, local: false }.ecode(), ECode(303));
        assert_eq!(ECode(301).to_string(), "E301");
    }
}
