//! Lines of the helper's log, for `culvert logs` and the app.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::status::Timestamp;

/// One line.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct LogLine {
    /// Its number since the helper started, from 1.
    pub seq: u64,
    /// When.
    #[serde(with = "time::serde::rfc3339")]
    #[cfg_attr(feature = "schema", schemars(with = "crate::schema::Moment"))]
    pub at: Timestamp,
    /// How serious.
    pub level: LogLevel,
    /// Which part of the helper.
    pub target: String,
    /// What happened, on one line.
    pub text: String,
}

/// How serious a line is; a lower one includes those above it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum LogLevel {
    /// Something failed that a person should look at.
    Error,
    /// Something is not as it should be.
    Warn,
    /// What happens.
    #[default]
    Info,
    /// Every step.
    Debug,
}

impl LogLevel {
    /// Every level, the most serious first.
    pub const ALL: [Self; 4] = [Self::Error, Self::Warn, Self::Info, Self::Debug];

    /// The stable word, as in JSON and on the command line.
    pub const fn word(self) -> &'static str {
        match self {
            Self::Error => "error",
            Self::Warn => "warn",
            Self::Info => "info",
            Self::Debug => "debug",
        }
    }
}

impl fmt::Display for LogLevel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.word())
    }
}

impl FromStr for LogLevel {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let known = Self::ALL.into_iter().find(|level| level.word() == text);
        known.ok_or_else(|| format!("{text:?} is no level; choose error, warn, info or debug"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn the_words_are_those_of_the_json_and_of_the_command_line() {
        for level in LogLevel::ALL {
            assert_eq!(serde_json::to_value(level).unwrap(), json!(level.word()));
            assert_eq!(level.word().parse(), Ok(level));
        }
        assert!("loud".parse::<LogLevel>().unwrap_err().contains("loud"));
        assert!(LogLevel::Error < LogLevel::Debug);
    }
}
