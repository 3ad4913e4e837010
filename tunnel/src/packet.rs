//! One inner IP packet. [`Dropped`] is the first family of errors: one packet, counted, life goes on.

use std::net::IpAddr;

/// Why one packet was dropped. Never ends the link: count it, take the next.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Dropped {
    /// Too short, or its header contradicts its length.
    #[error("{len} bytes are no IP packet")]
    Malformed {
        /// What arrived.
        len: usize,
    },
    /// The source is not the session's own address.
    #[error("sent from {sender}, which is not the session's address")]
    BadSource {
        /// The inner source.
        sender: IpAddr,
    },
    /// The destination is none that this end carries (multicast, link-local, not ours).
    #[error("destination {destination} is not carried")]
    BadDestination {
        /// The inner destination.
        destination: IpAddr,
    },
    /// Client to client while isolation is on.
    #[error("client to client ({destination}) is not allowed")]
    Isolation {
        /// The inner destination.
        destination: IpAddr,
    },
    /// Larger than the path carries; the sender was told by ICMP.
    #[error("{len} bytes exceed the inner MTU of {mtu_bytes}")]
    TooBig {
        /// The whole packet.
        len: usize,
        /// What would have crossed.
        mtu_bytes: u16,
    },
    /// No session holds the destination (gateway), or none is up (client).
    #[error("no session for {destination}")]
    NoSession {
        /// The inner destination.
        destination: IpAddr,
    },
    /// A bounded queue was full or its oldest packet too old.
    #[error("queue full")]
    QueueFull,
    /// Half of a split packet whose other half never came.
    #[error("an unjoined piece")]
    Unjoined,
    /// A datagram payload of an unknown kind.
    #[error("unknown payload kind {kind:#04x}")]
    UnknownKind {
        /// Its first byte.
        kind: u8,
    },
}

impl Dropped {
    /// How many reasons there are.
    pub const KINDS: usize = 9;
    /// Stable words for metrics and JSON, by [`Self::index`].
    pub const WORDS: [&'static str; Self::KINDS] = [
        "malformed", "bad_source", "bad_destination", "isolation", "too_big", "no_session", "queue_full", "unjoined",
        "unknown_kind",
    ];

    /// The reason's place in [`Self::WORDS`].
    pub const fn index(&self) -> usize {
        match self {
            Self::Malformed { .. } => 0,
            Self::BadSource { .. } => 1,
            Self::BadDestination { .. } => 2,
            Self::Isolation { .. } => 3,
            Self::TooBig { .. } => 4,
            Self::NoSession { .. } => 5,
            Self::QueueFull => 6,
            Self::Unjoined => 7,
            Self::UnknownKind { .. } => 8,
        }
    }
}
