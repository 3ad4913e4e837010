//! macOS: a service of our own in configd's dynamic store, with session keys: configd forgets them when this process
//! ends, however it ends, so a crash needs no journal. What the user has set is never written.

use std::io;
use std::time::Duration;

use core_foundation::array::CFArray;
use core_foundation::base::{CFType, TCFType};
use core_foundation::dictionary::CFDictionary;
use core_foundation::number::CFNumber;
use core_foundation::string::CFString;
use system_configuration::dynamic_store::{SCDynamicStore, SCDynamicStoreBuilder};
use tokio::time::sleep;

use super::Servers;
use super::service::{Entry, Value, entries};
use crate::journal::{Journal, ResolverFile};

/// configd may still hold a dead helper's keys for a moment.
const AGAIN: Duration = Duration::from_millis(100);
const TRIES: usize = 20;

/// The gateway's servers, in force until undone.
pub struct DnsGuard {
    store: SCDynamicStore,
    keys: Vec<String>,
}

impl std::fmt::Debug for DnsGuard {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("DnsGuard").field("keys", &self.keys).finish_non_exhaustive()
    }
}

impl DnsGuard {
    /// Puts the servers in force.
    ///
    /// # Errors
    /// That configd refuses; nothing is changed then.
    pub async fn apply(wanted: &Servers, _: u32, _: &mut Journal) -> io::Result<Self> {
        let store = SCDynamicStoreBuilder::new("culvert-helper").session_keys(true).build();
        let store = store.ok_or_else(|| io::Error::other("configd cannot be reached"))?;
        let mut guard = Self { store, keys: Vec::new() };
        for entry in entries(wanted) {
            guard.publish(&entry).await?; // dropping the guard takes back what was published
        }
        Ok(guard)
    }

    async fn publish(&mut self, entry: &Entry) -> io::Result<()> {
        let pairs: Vec<(CFString, CFType)> =
            entry.dictionary.iter().map(|(key, value)| (CFString::new(key), property(value))).collect();
        let dictionary = CFDictionary::from_CFType_pairs(&pairs).to_untyped();
        for _ in 0..TRIES {
            if self.store.set(entry.key.as_str(), dictionary.clone()) {
                self.keys.push(entry.key.clone());
                return Ok(());
            }
            // A key that belongs to no session cannot be made one of ours.
            self.store.remove(entry.key.as_str());
            sleep(AGAIN).await;
        }
        Err(io::Error::other(format!("configd refuses {}", entry.key)))
    }

    /// The network's own servers stand in the store all the time; the file is configd's.
    pub fn before(&self) -> Option<Vec<u8>> {
        None
    }

    /// This system can do everything that is asked.
    pub fn note(&self) -> Option<&str> {
        None
    }

    /// True while what was published is there.
    pub fn is_in_force(&self) -> bool {
        self.keys.iter().all(|key| self.store.get(key.as_str()).is_some())
    }

    /// Nobody else writes a key of ours.
    pub async fn taken(&mut self) {
        std::future::pending().await
    }

    /// See [`Self::taken`].
    ///
    /// # Errors
    /// None.
    pub fn retake(&mut self, _: &Servers, _: &mut Journal) -> io::Result<()> {
        Ok(())
    }

    /// Takes back what was published.
    ///
    /// # Errors
    /// None: what configd does not know any more is not there.
    pub async fn undo(self, _: &mut Journal) -> io::Result<()> {
        Ok(())
    }
}

impl Drop for DnsGuard {
    fn drop(&mut self) {
        // Names before addresses: the other way round the resolver would be there without a way.
        for key in self.keys.iter().rev() {
            self.store.remove(key.as_str());
        }
    }
}

fn property(value: &Value) -> CFType {
    match value {
        Value::Text(text) => CFString::new(text).as_CFType(),
        Value::Number(number) => CFNumber::from(*number).as_CFType(),
        Value::List(values) => {
            let values: Vec<CFType> = values.iter().map(property).collect();
            CFArray::from_CFTypes(&values).as_CFType()
        }
    }
}

/// Another platform's.
pub(super) fn undo_file(_: &ResolverFile) -> io::Result<()> {
    Ok(())
}

/// Another platform's.
pub(super) fn undo_resolvconf(_: &str) -> io::Result<()> {
    Ok(())
}
