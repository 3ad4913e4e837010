//! Why a gateway turns an enrolment down: each cause its own close code and its own sentence.

use std::time::SystemTime;

use time::{OffsetDateTime, format_description::BorrowedFormatItem, macros::format_description};

use super::VERSION;
use crate::{close::Close, control::Refused, identity::IdentityError};

/// The gateway's verdict on an enrolment that it will not complete.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// The invitation is past its end.
    #[error("this invitation expired on {}; ask for a new one", day(*.at))]
    Expired {
        /// Its end.
        at: SystemTime,
    },
    /// The invitation has been used as often as it may be.
    #[error("this invitation was used on {} by {device:?}; ask for a new one, and if that was not you, say so", day(*.at))]
    Used {
        /// When it was used up.
        at: SystemTime,
        /// The device that used it.
        device: String,
    },
    /// The registry has no such invitation.
    #[error("this gateway never issued this invitation; check that it is for this gateway, or ask for a new one")]
    Foreign,
    /// The proof does not fit.
    #[error("the proof does not fit the invitation; copy the invitation again, or ask for a new one")]
    Proof,
    /// An administrator withdrew it.
    #[error("this invitation was withdrawn by an administrator; ask for a new one")]
    Cancelled,
    /// The certificate request cannot be used.
    #[error("{0}; update Culvert on this device")]
    BadRequest(IdentityError),
    /// The device speaks another version of this conversation.
    #[error(
        "the device speaks version {0} of enrolment and this gateway version {VERSION}; update the older of the two"
    )]
    Version(u32),
    /// The message does not belong here.
    #[error("a message came out of turn; update Culvert on this device")]
    Unexpected,
    /// The user has as many devices as allowed.
    #[error("this user already has {0} devices, as many as the gateway allows; remove one first")]
    Limit(u32),
    /// No inner address is left.
    #[error("the gateway has no free address left; its administrator has to enlarge the pool")]
    PoolFull,
    /// The gateway cannot look into its registry for now.
    #[error(
        "the gateway cannot reach its registry, so nobody can enrol at the moment; the invitation is still good, try \
         again in a minute"
    )]
    RegistryAway,
    /// The gateway itself failed.
    #[error("the gateway could not complete the enrolment; the invitation is still good, try again later")]
    Internal,
}

impl Refusal {
    /// The code to close with.
    pub const fn close(&self) -> Close {
        match self {
            Self::Expired { .. } => Close::InviteExpired,
            Self::Used { .. } => Close::InviteUsed,
            Self::Foreign => Close::InviteForeign,
            Self::Proof => Close::InviteProof,
            Self::Cancelled => Close::InviteCancelled,
            Self::BadRequest(_) => Close::BadRequest,
            Self::Version(_) => Close::Version,
            Self::Unexpected => Close::Unexpected,
            Self::Limit(_) => Close::Limit,
            Self::PoolFull => Close::PoolFull,
            Self::RegistryAway | Self::Internal => Close::Internal,
        }
    }
}

impl From<Refusal> for Refused {
    fn from(refusal: Refusal) -> Self {
        Self::new(refusal.close(), refusal.to_string())
    }
}

/// Such as `3 May 2026 at 14:05 UTC`.
fn day(at: SystemTime) -> String {
    const FORMAT: &[BorrowedFormatItem<'_>] =
        format_description!("[day padding:none] [month repr:long] [year] at [hour]:[minute] UTC");
    OffsetDateTime::from(at).format(FORMAT).unwrap_or_else(|_| "an unknown day".to_owned())
}
