//! How much one client may ask for at once, and all of them together. Pure; [`Places`] shares it.
//!
//! A client that asks for more than its share waits for its own answers, never for another's: the last
//! places are kept for those who have few.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use culvert_tunnel::bucket::Bucket;

/// The bounds.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Of one client at the same time.
    pub each: u32,
    /// Of all clients at the same time.
    pub all: u32,
    /// More than `all`, for clients that have fewer than [`FEW`].
    pub reserve: u32,
    /// Of one client in a second, on average.
    pub per_second: u32,
    /// Of one client at once, after it has rested.
    pub burst: u32,
}

/// See [`Limits::reserve`].
pub const FEW: u32 = 8;
/// Clients remembered before those that rest are forgotten.
const REMEMBERED: usize = 1024;

#[derive(Debug)]
struct Ledger {
    limits: Limits,
    clients: HashMap<IpAddr, Client>,
    taken: u32,
    tidy_at: usize,
}

#[derive(Debug)]
struct Client {
    taken: u32,
    rate: Bucket,
}

impl Ledger {
    fn new(limits: Limits) -> Self {
        Self { limits, clients: HashMap::new(), taken: 0, tidy_at: REMEMBERED }
    }

    fn take(&mut self, address: IpAddr, now: Instant) -> bool {
        if self.clients.len() >= self.tidy_at {
            self.clients.retain(|_, client| client.taken > 0 || !client.rate.is_full(now));
            self.tidy_at = REMEMBERED.max(2 * self.clients.len());
        }
        let Limits { each, all, reserve, per_second, burst } = self.limits;
        let new = || Client { taken: 0, rate: Bucket::new(per_second, burst) };
        let client = self.clients.entry(address).or_insert_with(new);
        let room = if client.taken < FEW { all + reserve } else { all };
        let may = client.taken < each && self.taken < room && client.rate.take(1, now);
        if may {
            client.taken += 1;
            self.taken += 1;
        }
        may
    }

    fn give_back(&mut self, address: IpAddr) {
        self.taken -= 1;
        if let Some(client) = self.clients.get_mut(&address) {
            client.taken -= 1;
        }
    }
}

/// Gives places out.
#[derive(Clone, Debug)]
pub struct Places(Arc<Mutex<Ledger>>);

/// Given back when it is dropped.
#[derive(Debug)]
pub struct Place {
    ledger: Arc<Mutex<Ledger>>,
    address: IpAddr,
}

impl Places {
    /// With these bounds.
    pub fn new(limits: Limits) -> Self {
        Self(Arc::new(Mutex::new(Ledger::new(limits))))
    }

    /// A place for this client, unless it has its share, or nobody has room.
    pub fn take(&self, address: IpAddr, now: Instant) -> Option<Place> {
        let may = self.0.lock().unwrap_or_else(PoisonError::into_inner).take(address, now);
        may.then(|| Place { ledger: Arc::clone(&self.0), address })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.ledger.lock().unwrap_or_else(PoisonError::into_inner).give_back(self.address);
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn one_client_has_its_share_and_others_have_theirs() {
        let (places, now) = (Places::new(LIMITS), Instant::now());
        let first: Vec<_> = std::iter::from_fn(|| places.take(client(1), now)).collect();
        assert_eq!(first.len(), 20);
        assert!(places.take(client(2), now).is_some());
        drop(first);
        assert!(places.take(client(1), now).is_some());
    }

    #[test]
    fn the_last_places_are_for_those_who_have_few() {
        let (places, now) = (Places::new(LIMITS), Instant::now());
        let taken: Vec<_> =
            (1..=3).flat_map(|n| std::iter::from_fn(|| places.take(client(n), now)).collect::<Vec<_>>()).collect();
        assert_eq!(taken.len(), 20 + 20 + 10, "all places are taken");
        let late: Vec<_> = std::iter::from_fn(|| places.take(client(4), now)).collect();
        assert_eq!(late.len(), FEW as usize, "a newcomer has some all the same");
        assert!(places.take(client(1), now).is_none());
    }

    #[test]
    fn who_asks_too_fast_is_slowed_down() {
        let (places, start) = (Places::new(LIMITS), Instant::now());
        let asked = (0..500).filter(|_| places.take(client(1), start).is_some()).count();
        assert_eq!(asked, 100, "each is answered at once, and only the rate counts");
        let later = start + Duration::from_millis(500);
        assert_eq!((0..500).filter(|_| places.take(client(1), later).is_some()).count(), 25);
    }

    #[test]
    fn clients_that_rest_are_forgotten() {
        let (places, start) = (Places::new(LIMITS), Instant::now());
        let mut held = Vec::new();
        for second in 0..20_000_u32 {
            let address = IpAddr::V4(second.into());
            let place = places.take(address, start + Duration::from_secs(second.into()));
            held.extend(place.filter(|_| second % 1000 == 0));
        }
        let known = places.0.lock().unwrap().clients.len();
        assert!(known <= REMEMBERED, "{known}");
        assert_eq!(held.len(), 20, "and those that wait are not");
        drop(held);
        assert_eq!(places.0.lock().unwrap().taken, 0);
    }

    const LIMITS: Limits = Limits { each: 20, all: 50, reserve: 16, per_second: 50, burst: 100 };

    fn client(last: u8) -> IpAddr {
        [100, 77, 3, last].into()
    }
}
