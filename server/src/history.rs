//! The last refusals of each device and of each source, in memory, for `culvert-server why`. Pure.
//!
//! Bounded: those that nobody heard of for longest are forgotten first. What lasts is in the registry.

use std::collections::VecDeque;
use std::net::IpAddr;
use std::num::NonZeroUsize;

use ipnet::IpNet;
use lru::LruCache;
use serde::{Deserialize, Serialize};
use time::OffsetDateTime;

use crate::bans::source;

/// Devices, and sources, of which something is remembered.
const REMEMBERED: NonZeroUsize = NonZeroUsize::new(2_048).expect("not zero");
/// Refusals of each.
const REFUSALS: usize = 8;

/// Somebody was refused.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Refusal {
    /// When.
    #[serde(with = "time::serde::rfc3339")]
    pub at: OffsetDateTime,
    /// From where.
    pub from: IpNet,
    /// Why, in a word of the log.
    pub reason: String,
}

/// What is remembered of one device, or of one source.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// Refusals since the device's last session opened.
    pub refused: u64,
    /// When the first of these was.
    #[serde(with = "time::serde::rfc3339::option")]
    pub refused_since: Option<OffsetDateTime>,
    /// The last of them, oldest first.
    pub last: VecDeque<Refusal>,
    /// When a session last opened.
    #[serde(with = "time::serde::rfc3339::option")]
    pub opened: Option<OffsetDateTime>,
    /// Where the device was last heard of.
    pub place: Option<IpNet>,
}

/// What was heard of devices and sources.
#[derive(Debug)]
pub struct History {
    /// By id.
    devices: LruCache<String, Record>,
    sources: LruCache<IpNet, Record>,
}

impl Default for History {
    fn default() -> Self {
        Self { devices: LruCache::new(REMEMBERED), sources: LruCache::new(REMEMBERED) }
    }
}

impl History {
    /// Somebody was refused; `device` is the id of one that the registry knows.
    pub fn on_refused(&mut self, address: IpAddr, device: Option<&str>, reason: &str, now: OffsetDateTime) {
        let from = source(address);
        self.sources.get_or_insert_mut(from, Record::default).refused(from, reason, now);
        if let Some(device) = device {
            self.devices.get_or_insert_mut(device.to_owned(), Record::default).refused(from, reason, now);
        }
    }

    /// A session opened, or moved here. Others who come from here may be refused all the same.
    pub fn on_session(&mut self, address: IpAddr, device: &str, now: OffsetDateTime) {
        let place = source(address);
        let record = Record { opened: Some(now), place: Some(place), ..Record::default() };
        self.devices.put(device.to_owned(), record);
    }

    /// Of a device, by id.
    pub fn device(&self, id: &str) -> Option<&Record> {
        self.devices.peek(id)
    }

    /// Of a source.
    pub fn source(&self, prefix: IpNet) -> Option<&Record> {
        self.sources.peek(&prefix)
    }
}

impl Record {
    fn refused(&mut self, from: IpNet, reason: &str, now: OffsetDateTime) {
        self.refused += 1;
        self.refused_since.get_or_insert(now);
        if self.last.len() == REFUSALS {
            self.last.pop_front();
        }
        self.last.push_back(Refusal { at: now, from, reason: reason.to_owned() });
        self.place = Some(from);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refusals_are_counted_since_the_last_session() {
        let mut history = History::default();
        let (address, start) = (IpAddr::from([203, 0, 113, 9]), OffsetDateTime::UNIX_EPOCH);
        history.on_session(address, "id", start);
        for n in 1..=20 {
            history.on_refused(address, Some("id"), "revoked", start + std::time::Duration::from_secs(n));
        }
        for record in [history.device("id").unwrap(), history.source(source(address)).unwrap()] {
            assert_eq!((record.refused, record.last.len()), (20, REFUSALS));
            assert_eq!(record.refused_since, Some(start + std::time::Duration::from_secs(1)));
            assert_eq!(record.last.back().unwrap().at, start + std::time::Duration::from_secs(20));
        }
        history.on_session(address, "id", start);
        assert_eq!(history.device("id").unwrap().refused, 0);
        assert_eq!(history.source(source(address)).unwrap().refused, 20, "others may come from there, too");
    }

    #[test]
    fn a_hundred_thousand_sources_take_no_more_memory_than_a_few_thousand() {
        let mut history = History::default();
        let now = OffsetDateTime::UNIX_EPOCH;
        for n in 0..100_000_u32 {
            history.on_refused(n.to_be_bytes().into(), Some(&n.to_string()), "revoked", now);
        }
        assert_eq!((history.sources.len(), history.devices.len()), (REMEMBERED.get(), REMEMBERED.get()));
        assert!(history.device("99999").is_some() && history.device("0").is_none());
    }
}
