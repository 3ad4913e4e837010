//! What the door answers: bans, and what was heard of devices.

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use crate::history::Record;

/// A prefix that the gateway does not listen to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BanInfo {
    /// Who.
    pub prefix: IpNet,
    /// `failures`, or `operator`.
    pub by: String,
    /// Its end, RFC 3339; `None` when somebody has to lift it.
    pub until: Option<String>,
    /// An operator's words, or the last failure's.
    pub reason: String,
}

/// What a running gateway has heard of a device.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeviceHistory {
    /// The device's id.
    pub id: String,
    /// Of the device itself.
    pub record: Record,
    /// Refusals of whoever comes from where the device was last heard of: TLS refuses an expired certificate
    /// before it is known whose it is.
    pub of_place: Option<Record>,
    /// A ban of that place.
    pub ban: Option<BanInfo>,
}
