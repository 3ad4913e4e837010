//! What the resolver has done, counted. Never by name or by client.

use std::sync::atomic::{AtomicU64, Ordering};

use serde::{Deserialize, Serialize};

/// Counters since the start; any thread may read them.
#[derive(Debug, Default)]
pub struct Counters {
    pub(super) queries: AtomicU64,
    pub(super) local: AtomicU64,
    pub(super) cached: AtomicU64,
    pub(super) refused: AtomicU64,
    pub(super) upstream_failures: AtomicU64,
}

/// The counters at one moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Snapshot {
    /// Questions that were taken up.
    pub queries: u64,
    /// Answered by the gateway itself: devices' names, and names that never leave.
    pub local: u64,
    /// Answered from the cache.
    pub cached: u64,
    /// Not taken up: not from a client, more than its share, or no question at all.
    pub refused: u64,
    /// No server had an answer; the client was told SERVFAIL.
    pub upstream_failures: u64,
}

impl Counters {
    /// All of them now. Each is exact; taken together they may be a few questions apart.
    pub fn snapshot(&self) -> Snapshot {
        Snapshot {
            queries: self.queries.load(Ordering::Relaxed),
            local: self.local.load(Ordering::Relaxed),
            cached: self.cached.load(Ordering::Relaxed),
            refused: self.refused.load(Ordering::Relaxed),
            upstream_failures: self.upstream_failures.load(Ordering::Relaxed),
        }
    }
}

/// One more.
pub(super) fn count(counter: &AtomicU64) {
    counter.fetch_add(1, Ordering::Relaxed);
}
