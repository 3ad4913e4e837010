//! Whom the gateway does not listen to, and for how long. Pure: `now` is an argument, and what is to
//! be done about a change comes back as a [`Change`].
//!
//! Failures are counted by source: an IPv4 address, or the /64 that one IPv6 host has. Only those count
//! whose address was validated (see [`counts`] for which); a source with an open session is never banned
//! for failures. An operator bans what he likes. Everything is bounded. Not here: the table that the
//! shards look at, the file and the log (`door`).

mod kept;

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;
use std::time::{Duration, Instant};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

pub use kept::{Kept, KeptBan, Unreadable};

/// Sources whose failures are remembered. More push out those that have done least.
const SOURCES: usize = 8_192;
/// Bans for failures at once. More push out the one that ends first.
const BANS: usize = 4_096;
/// Bans of the operator at once.
const OPERATOR_BANS: usize = 1_024;
/// No ban for failures is longer.
pub const LONGEST: Duration = Duration::from_secs(24 * 3_600);
/// The longest that a clock is trusted to tell.
const CENTURY: Duration = Duration::from_secs(100 * 365 * 86_400);
/// How long after a ban the next one is longer.
const REMEMBERED: Duration = Duration::from_secs(24 * 3_600);

/// When failures become a ban (`[bans]` of the configuration).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limits {
    /// So many failures at once; 0 bans nobody.
    pub failures: u32,
    /// In so long as many more are forgiven, one after the other.
    pub window: Duration,
    /// Of the first ban; each one after it is twice as long, up to a day.
    pub duration: Duration,
    /// Prefixes that are never banned for failures.
    pub exempt: Vec<IpNet>,
}

/// Who has banned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum By {
    /// The gateway, for failures. How often it had banned the source shortly before.
    Failures {
        /// Earlier bans that are remembered.
        earlier: u32,
    },
    /// An administrator.
    Operator,
}

/// A prefix that is not listened to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ban {
    /// Who has banned it.
    pub by: By,
    /// Its end; `None` when somebody has to lift it.
    pub until: Option<Instant>,
    /// An operator's words, or the last failure's.
    pub reason: String,
}

/// Why a ban ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lifted {
    /// Its time is over.
    Expired,
    /// An administrator lifted it.
    Operator,
    /// Somebody there has a session.
    Session,
    /// The configuration exempts the prefix now, or bans nobody.
    Configuration,
    /// There are too many bans, and it would have been the next to end.
    Room,
}

impl Lifted {
    /// For the log.
    pub const fn word(self) -> &'static str {
        match self {
            Self::Expired => "expired",
            Self::Operator => "operator",
            Self::Session => "session",
            Self::Configuration => "configuration",
            Self::Room => "room",
        }
    }
}

/// What has become of a prefix. The shards' table, the file and the log follow.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// It is banned from now on.
    Banned(IpNet, Ban),
    /// It is not any more.
    Lifted(IpNet, Lifted),
}

/// What was counted since the start, for metrics.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Bans for failures that are in force.
    pub active_failures: usize,
    /// Bans of the operator that are in force.
    pub active_operator: usize,
    /// Bans so far by the reason of the last failure; `operator` for an operator's.
    pub banned: BTreeMap<&'static str, u64>,
    /// Times that a source would have been banned but had a session, or was exempt.
    pub spared: u64,
    /// Sources whose failures are remembered.
    pub sources: usize,
}

/// Every ban, and the failures that may lead to more.
#[derive(Debug)]
pub struct Bans {
    limits: Limits,
    sources: HashMap<IpNet, Source>,
    bans: BTreeMap<IpNet, Ban>,
    /// Open sessions by source.
    live: HashMap<IpNet, u32>,
    banned: BTreeMap<&'static str, u64>,
    spared: u64,
}

/// A token bucket, upside down: failures fill it, time empties it.
#[derive(Clone, Copy, Debug)]
struct Source {
    level: f64,
    /// When `level` was right.
    at: Instant,
    /// Bans so far, and until when they count.
    earlier: u32,
    remembered_until: Instant,
}

/// Why an operator's ban was not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BanError {
    /// Everybody would be in it.
    #[error("{0} is most of the internet; the shortest prefix to ban is /8, for IPv6 /16")]
    TooWide(IpNet),
    /// There is no room.
    #[error("there are {OPERATOR_BANS} bans of yours already; lift some, or ban a shorter prefix")]
    Full,
}

/// Does a refusal with this word speak against whoever sent it? Innocents expire, come too often, use an
/// invitation twice, or meet a gateway that is full.
pub fn counts(reason: &str) -> bool {
    FAILURES.contains(&reason)
}

const FAILURES: [&str; 8] = [
    "no_certificate",
    "unknown_ca",
    "bad_certificate",
    "tls",
    "unknown_device",
    "revoked",
    "challenge_failed",
    "bad_invite",
];

/// Every word that [`Counts::banned`] may have.
pub fn reasons() -> impl Iterator<Item = &'static str> {
    FAILURES.into_iter().chain(["silent", "operator"])
}

/// The word under which a refused enrolment speaks against whoever sent it, if it does. Who has no right
/// invitation guesses; who has an old one was invited. One who says nothing holds a place that others wait for.
pub fn counts_at_enrolment(reason: &str) -> Option<&'static str> {
    match reason {
        "invite_proof" | "invite_foreign" => Some("bad_invite"),
        "timeout" => Some("silent"),
        _ => None,
    }
}

/// The prefix that an address counts as.
pub fn source(address: IpAddr) -> IpNet {
    match address.to_canonical() {
        IpAddr::V4(address) => IpNet::V4(address.into()),
        IpAddr::V6(address) => IpNet::V6(Ipv6Net::new_assert(address, 64).trunc()),
    }
}

/// Reads an address, or a network whatever its host bits. `None` for anything else.
pub fn prefix(text: &str) -> Option<IpNet> {
    let network = || text.parse::<IpNet>().ok();
    text.parse::<IpAddr>().ok().map(IpNet::from).or_else(network).map(canonical)
}

/// The prefix in its one spelling: no host bits, and IPv4 where it is written as IPv6.
pub fn canonical(prefix: IpNet) -> IpNet {
    if let IpNet::V6(inner) = prefix
        && inner.prefix_len() >= 96
        && let Some(address) = inner.addr().to_ipv4_mapped()
    {
        return IpNet::V4(Ipv4Net::new_assert(address, inner.prefix_len() - 96).trunc());
    }
    prefix.trunc()
}

impl Bans {
    /// Nobody is banned.
    pub fn new(limits: Limits) -> Self {
        Self {
            limits,
            sources: HashMap::new(),
            bans: BTreeMap::new(),
            live: HashMap::new(),
            banned: BTreeMap::new(),
            spared: 0,
        }
    }

    // --- in ---

    /// Somebody was refused there, after the address was validated. `reason` is one that [`counts`].
    pub fn on_failure(&mut self, address: IpAddr, reason: &'static str, now: Instant) -> Vec<Change> {
        let prefix = source(address);
        if self.limits.failures == 0 || self.covering(prefix).is_some() {
            return Vec::new(); // what was under way when the ban came
        }
        self.make_room(now);
        let most = f64::from(self.limits.failures);
        let per_second = most / self.limits.window.as_secs_f64();
        let fresh = Source { level: 0.0, at: now, earlier: 0, remembered_until: now };
        let state = self.sources.entry(prefix).or_insert(fresh);
        // No more than most is remembered, so that a source which was spared is not banned for its past.
        state.level = (state.level_at(now, per_second) + 1.0).min(most);
        state.at = now;
        if state.level <= most - 1.0 {
            return Vec::new();
        }
        if self.live.contains_key(&prefix) || self.limits.exempt.iter().any(|exempt| exempt.contains(&prefix)) {
            self.spared += 1;
            return Vec::new();
        }
        let earlier = if now < state.remembered_until { state.earlier } else { 0 };
        let length = self.limits.duration.saturating_mul(1 << earlier.min(20)).min(LONGEST);
        let until = now + length;
        *state = Source { level: 0.0, at: now, earlier: earlier + 1, remembered_until: until + REMEMBERED };
        let ban = Ban { by: By::Failures { earlier }, until: Some(until), reason: reason.to_owned() };
        let mut changes = self.room_for_ban();
        *self.banned.entry(reason).or_default() += 1;
        self.bans.insert(prefix, ban.clone());
        changes.push(Change::Banned(prefix, ban));
        changes
    }

    /// A session has opened there, or has moved there.
    pub fn on_session(&mut self, address: IpAddr) -> Option<Change> {
        let prefix = source(address);
        *self.live.entry(prefix).or_default() += 1;
        let ban = self.bans.get(&prefix)?;
        matches!(ban.by, By::Failures { .. }).then(|| self.lift(prefix, Lifted::Session)).flatten()
    }

    /// A session there has ended, or has moved away.
    pub fn on_session_end(&mut self, address: IpAddr) {
        let prefix = source(address);
        if let Some(count) = self.live.get_mut(&prefix) {
            *count -= 1;
            if *count == 0 {
                self.live.remove(&prefix);
            }
        }
    }

    /// An operator bans a [`canonical`] prefix. His ban replaces one that is there.
    ///
    /// # Errors
    /// [`BanError`]; nothing has changed then.
    pub fn add(
        &mut self,
        prefix: IpNet,
        length: Option<Duration>,
        reason: &str,
        now: Instant,
    ) -> Result<Change, BanError> {
        let shortest = if matches!(prefix, IpNet::V4(_)) { 8 } else { 16 };
        if prefix.prefix_len() < shortest {
            return Err(BanError::TooWide(prefix));
        }
        let others = self.bans.iter().filter(|(other, ban)| **other != prefix && ban.by == By::Operator).count();
        if others >= OPERATOR_BANS {
            return Err(BanError::Full);
        }
        let until = length.map(|length| now + length.min(CENTURY));
        let ban = Ban { by: By::Operator, until, reason: reason.to_owned() };
        *self.banned.entry("operator").or_default() += 1;
        self.bans.insert(prefix, ban.clone());
        Ok(Change::Banned(prefix, ban))
    }

    /// An operator lifts the ban of exactly this prefix. What led to it is forgotten.
    pub fn remove(&mut self, prefix: IpNet) -> Option<Change> {
        let lifted = self.lift(prefix, Lifted::Operator)?;
        self.sources.remove(&prefix);
        Some(lifted)
    }

    /// Other limits hold from now on.
    pub fn configure(&mut self, limits: Limits) -> Vec<Change> {
        self.limits = limits;
        let free: Vec<IpNet> = self
            .bans
            .iter()
            .filter(|(prefix, ban)| {
                let exempt = self.limits.failures == 0 || self.limits.exempt.iter().any(|net| net.contains(*prefix));
                ban.by != By::Operator && exempt
            })
            .map(|(prefix, _)| *prefix)
            .collect();
        free.into_iter().filter_map(|prefix| self.lift(prefix, Lifted::Configuration)).collect()
    }

    /// When [`Self::on_timeout`] is due next.
    pub fn poll_timeout(&self) -> Option<Instant> {
        self.bans.values().filter_map(|ban| ban.until).min()
    }

    /// Lifts what is over.
    pub fn on_timeout(&mut self, now: Instant) -> Vec<Change> {
        let over = |ban: &Ban| ban.until.is_some_and(|until| now >= until);
        let over: Vec<IpNet> = self.bans.iter().filter(|(_, ban)| over(ban)).map(|(prefix, _)| *prefix).collect();
        over.into_iter().filter_map(|prefix| self.lift(prefix, Lifted::Expired)).collect()
    }

    // --- out ---

    /// Every ban, in the order of prefixes.
    pub fn iter(&self) -> impl Iterator<Item = (IpNet, &Ban)> {
        self.bans.iter().map(|(prefix, ban)| (*prefix, ban))
    }

    /// A ban that holds all of this prefix.
    pub fn covering(&self, prefix: IpNet) -> Option<(IpNet, &Ban)> {
        // A prefix has at most 129 above it, and itself.
        (0..=prefix.prefix_len()).rev().find_map(|length| {
            let wider = IpNet::new(prefix.addr(), length).ok()?.trunc();
            self.bans.get(&wider).map(|ban| (wider, ban))
        })
    }

    /// See [`Counts`].
    pub fn counts(&self) -> Counts {
        let active_operator = self.bans.values().filter(|ban| ban.by == By::Operator).count();
        Counts {
            active_failures: self.bans.len() - active_operator,
            active_operator,
            banned: self.banned.clone(),
            spared: self.spared,
            sources: self.sources.len(),
        }
    }

    // --- inside ---

    fn lift(&mut self, prefix: IpNet, why: Lifted) -> Option<Change> {
        self.bans.remove(&prefix).map(|_| Change::Lifted(prefix, why))
    }

    /// Keeps room for one more source: those that have been quiet go, then a quarter that has done least.
    /// An attacker with many prefixes pushes out his own.
    fn make_room(&mut self, now: Instant) {
        if self.sources.len() < SOURCES {
            return;
        }
        let per_second = f64::from(self.limits.failures) / self.limits.window.as_secs_f64();
        self.sources.retain(|_, state| now < state.remembered_until || state.level_at(now, per_second) > 0.0);
        if self.sources.len() < SOURCES {
            return;
        }
        let guilt = |state: &Source| {
            let earlier = if now < state.remembered_until { state.earlier } else { 0 };
            f64::from(earlier) * 1e6 + state.level_at(now, per_second)
        };
        let mut order: Vec<(f64, IpNet)> = self.sources.iter().map(|(prefix, state)| (guilt(state), *prefix)).collect();
        let (least, ..) = order.select_nth_unstable_by(SOURCES / 4, |a, b| a.0.total_cmp(&b.0));
        for (_, prefix) in least {
            self.sources.remove(prefix);
        }
    }

    fn room_for_ban(&mut self) -> Vec<Change> {
        let of_failures = self.bans.iter().filter(|(_, ban)| ban.by != By::Operator);
        if of_failures.clone().count() < BANS {
            return Vec::new();
        }
        let first = of_failures.min_by_key(|(_, ban)| ban.until).map(|(prefix, _)| *prefix);
        first.and_then(|prefix| self.lift(prefix, Lifted::Room)).into_iter().collect()
    }
}

impl Source {
    fn level_at(&self, now: Instant, per_second: f64) -> f64 {
        (self.level - now.saturating_duration_since(self.at).as_secs_f64() * per_second).max(0.0)
    }
}

#[cfg(test)]
mod tests;
