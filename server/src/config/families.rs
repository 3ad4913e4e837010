//! `network.nat`: whose inner addresses are translated on the way out.

/// By family. What is not translated is routed: the network outside has to know the way back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Translated {
    /// Inner IPv4 addresses leave as the host's own.
    pub ipv4: bool,
    /// The same for IPv6 (NAT66).
    pub ipv6: bool,
}

impl Translated {
    /// Both, which needs nothing of the network outside.
    pub const BOTH: Self = Self { ipv4: true, ipv6: true };
}
