//! What `--json` prints: one object, or one a line, each with the number of its schema. The schemas are the files in
//! `schemas/`, which packages install; fields are only added within one number.

use culvert_protocol::{Change, LogLine, ProfileFacts, SCHEMA, SettingsInForce, VERSION};
use serde::Serialize;

/// Puts the number beside the fields of what has none of its own.
#[derive(Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub(crate) struct Numbered<T> {
    /// The number of this schema: 1.
    schema: u32,
    #[serde(flatten)]
    value: T,
}

impl<T> Numbered<T> {
    pub(crate) fn new(value: T) -> Self {
        Self { schema: SCHEMA, value }
    }
}

/// `profiles list --json`.
#[derive(Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub(crate) struct Profiles {
    /// All of them, by name.
    pub(crate) profiles: Vec<ProfileFacts>,
}

/// `speedtest --json`.
#[derive(Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub(crate) struct Speed {
    /// The gateway's display name.
    pub(crate) gateway: String,
    /// From the gateway to this machine: bytes inside TCP, times eight.
    pub(crate) down_bits_per_second: f64,
    /// From this machine to the gateway.
    pub(crate) up_bits_per_second: f64,
    /// The link's round trip before the test.
    pub(crate) rtt_ms: f64,
    /// The longest round trip that was seen during it.
    pub(crate) loaded_rtt_ms: f64,
    /// How long each way was tested.
    pub(crate) seconds: u64,
}

/// `version --json`.
#[derive(Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub(crate) struct Version {
    /// The version of this program.
    pub(crate) client: &'static str,
    /// The version of the helper; null when none answers.
    pub(crate) helper: Option<String>,
    /// The version of the protocol between them that this program speaks.
    pub(crate) protocol: u32,
}

impl Version {
    pub(crate) fn new(helper: Option<String>) -> Self {
        Self { client: env!("CARGO_PKG_VERSION"), helper, protocol: VERSION }
    }
}

/// A line of `watch --json` after the first.
pub(crate) type ChangeLine = Numbered<Change>;
/// A line of `logs --json`.
pub(crate) type LogsLine = Numbered<LogLine>;
/// `settings list --json`.
pub(crate) type SettingsList = Numbered<SettingsInForce>;

#[cfg(test)]
mod tests;
