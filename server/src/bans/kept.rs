//! Bans as they are kept across restarts: JSON, with times of the wall clock.

use std::time::{Duration, Instant};

use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use time::OffsetDateTime;

use super::{BANS, Ban, Bans, By, CENTURY, LONGEST, OPERATOR_BANS, REMEMBERED, Source, canonical};

/// The shape of the file.
const VERSION: u32 = 1;

/// What is in the file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Kept {
    version: u32,
    /// In the order of prefixes.
    pub bans: Vec<KeptBan>,
}

/// One ban in the file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeptBan {
    /// Who is banned.
    pub prefix: IpNet,
    /// Its end, in seconds since the Unix epoch; `None` when somebody has to lift it.
    pub until: Option<i64>,
    /// For a ban for failures: how often the prefix had been banned shortly before. `None`: an operator's.
    pub earlier: Option<u32>,
    /// An operator's words, or the last failure's.
    pub reason: String,
}

/// Why the file says nothing.
#[derive(Debug, thiserror::Error)]
pub enum Unreadable {
    /// Torn, or another program's.
    #[error("it is damaged ({0})")]
    Damaged(#[from] serde_json::Error),
    /// Of a later version.
    #[error("a newer culvert-server wrote it (shape {0})")]
    Newer(u32),
}

impl Kept {
    /// Reads the file's text.
    ///
    /// # Errors
    /// [`Unreadable`].
    pub fn parse(text: &[u8]) -> Result<Self, Unreadable> {
        #[derive(Deserialize)]
        struct Shape {
            version: u32,
        }
        let Shape { version } = serde_json::from_slice(text)?;
        if version > VERSION {
            return Err(Unreadable::Newer(version));
        }
        Ok(serde_json::from_slice(text)?)
    }

    /// As the file's text.
    pub fn text(&self) -> Vec<u8> {
        serde_json::to_vec_pretty(self).unwrap_or_default() // only strings and numbers
    }

    /// Those that are in force at `wall`.
    pub fn in_force(&self, wall: OffsetDateTime) -> impl Iterator<Item = &KeptBan> {
        self.bans.iter().filter(move |ban| ban.until.is_none_or(|until| until > wall.unix_timestamp()))
    }
}

impl Bans {
    /// What the file should say.
    pub fn keep(&self, now: Instant, wall: OffsetDateTime) -> Kept {
        let bans = self.iter().map(|(prefix, ban)| KeptBan {
            prefix,
            until: ban.until.map(|until| (wall + until.saturating_duration_since(now)).unix_timestamp()),
            earlier: match ban.by {
                By::Failures { earlier } => Some(earlier),
                By::Operator => None,
            },
            reason: ban.reason.clone(),
        });
        Kept { version: VERSION, bans: bans.collect() }
    }

    /// Takes what the file says and is still in force. A wall clock that was set back makes no ban for
    /// failures longer than the longest.
    pub fn restore(&mut self, kept: &Kept, now: Instant, wall: OffsetDateTime) {
        for ban in kept.in_force(wall) {
            let prefix = canonical(ban.prefix);
            let left = ban.until.map(|until| Duration::from_secs(until.abs_diff(wall.unix_timestamp())).min(CENTURY));
            let (by, left) = match ban.earlier {
                Some(earlier) => (By::Failures { earlier }, Some(left.unwrap_or(LONGEST).min(LONGEST))),
                None => (By::Operator, left),
            };
            if self.bans.len() >= BANS + OPERATOR_BANS {
                return;
            }
            let until = left.map(|left| now + left);
            self.bans.insert(prefix, Ban { by, until, reason: ban.reason.clone() });
            if let (By::Failures { earlier }, Some(until)) = (by, until) {
                let remembered_until = until + REMEMBERED;
                let source = Source { level: 0.0, at: now, earlier: earlier.saturating_add(1), remembered_until };
                self.sources.insert(prefix, source);
            }
        }
        let limits = self.limits.clone();
        self.configure(limits); // exempt by now, or no bans at all
    }
}
