//! Handshakes that peers began: those that wait their turn and those under way, bounded in all and by
//! source.
//!
//! A handshake costs as much as a thousand packets, so a shard begins a few a turn and its traffic goes
//! on between them; who waits sends again by itself (RFC 9002 section 6.2.4). A Retry proves only that
//! an address is real, not that its owner means well: one source may have a few at once, and one that
//! hangs gives way to a newcomer when there are too many in all. One that only waits for this machine
//! does not: in a herd, giving way to whoever is next would let none of them finish.

use std::collections::{HashMap, VecDeque};
use std::net::{IpAddr, Ipv6Addr};
use std::time::{Duration, Instant};

/// Handshakes under way at once: each holds about 30 KiB while it lasts, and over 250 ms of round trip
/// a shard cannot compute more.
const MOST: usize = 128;
/// Those that wait to begin.
const MOST_WAITING: usize = 1024;
/// Of both together from one source.
const MOST_A_SOURCE: u16 = 16;
/// How long a handshake is under way before it may have to give way.
const HANGS: Duration = Duration::from_secs(1);
/// How long one waits before its peer has long sent again, or has gone.
const STALE: Duration = Duration::from_secs(3);
/// How many begin in one turn of the shard: about a millisecond of work.
pub(crate) const BEGIN_A_TURN: usize = 2;

/// The handshakes of one shard. `I` is what a waiting one is made of.
#[derive(Debug)]
pub(crate) struct Handshakes<I> {
    /// Oldest first.
    waiting: VecDeque<Waiting<I>>,
    /// By the serial number of their link, oldest first.
    under_way: VecDeque<(u64, IpAddr, Instant)>,
    by_source: HashMap<IpAddr, u16>,
}

#[derive(Debug)]
struct Waiting<I> {
    incoming: I,
    source: IpAddr,
    since: Instant,
}

/// What to do next with those that wait.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Next<I> {
    /// Begin this one, from this address, and tell [`Handshakes::begun`] or [`Handshakes::failed`].
    Begin(I, IpAddr),
    /// End this one under way, which hangs, and ask again.
    GiveWay(u64),
    /// Forget this one: its peer has sent again or has gone.
    Forget(I),
    /// Nothing.
    Wait,
}

impl<I> Default for Handshakes<I> {
    fn default() -> Self {
        Self { waiting: VecDeque::new(), under_way: VecDeque::new(), by_source: HashMap::new() }
    }
}

impl<I> Handshakes<I> {
    /// Lets one wait; gives it back when there are too many, in all or from this address.
    pub(crate) fn wait(&mut self, now: Instant, address: IpAddr, incoming: I) -> Result<(), I> {
        let source = source(address);
        let from_source = self.by_source.get(&source).copied().unwrap_or_default();
        if self.waiting.len() >= MOST_WAITING || from_source >= MOST_A_SOURCE {
            return Err(incoming);
        }
        self.by_source.insert(source, from_source + 1);
        self.waiting.push_back(Waiting { incoming, source, since: now });
        Ok(())
    }

    /// See [`Next`]. Whoever is told to begin counts as under way from then on.
    pub(crate) fn next(&mut self, now: Instant) -> Next<I> {
        let Some(first) = self.waiting.front() else { return Next::Wait };
        let is_stale = now >= first.since + STALE;
        if !is_stale && self.under_way.len() >= MOST {
            return match self.under_way.front() {
                Some((serial, _, began)) if now >= *began + HANGS => Next::GiveWay(*serial),
                _ => Next::Wait,
            };
        }
        let Some(Waiting { incoming, source, .. }) = self.waiting.pop_front() else { return Next::Wait };
        if is_stale {
            self.leave(source);
            return Next::Forget(incoming);
        }
        Next::Begin(incoming, source)
    }

    /// Takes one that waits, when none will begin any more.
    pub(crate) fn give_up(&mut self) -> Option<I> {
        let Waiting { incoming, source, .. } = self.waiting.pop_front()?;
        self.leave(source);
        Some(incoming)
    }

    /// One that was told to begin is under way as the link of this serial number.
    pub(crate) fn begun(&mut self, now: Instant, serial: u64, source: IpAddr) {
        self.under_way.push_back((serial, source, now));
    }

    /// One that was told to begin came to nothing.
    pub(crate) fn failed(&mut self, source: IpAddr) {
        self.leave(source);
    }

    /// When [`Self::next`] has something to say. In the past: at once.
    pub(crate) fn poll_timeout(&self) -> Option<Instant> {
        let first = self.waiting.front()?.since;
        match self.under_way.front() {
            Some((_, _, began)) if self.under_way.len() >= MOST => Some((first + STALE).min(*began + HANGS)),
            _ => Some(first),
        }
    }

    /// The handshake is over, one way or the other; nothing happens for one that never began here.
    pub(crate) fn end(&mut self, serial: u64) {
        let Some(place) = self.under_way.iter().position(|(other, ..)| *other == serial) else { return };
        if let Some((_, source, _)) = self.under_way.remove(place) {
            self.leave(source);
        }
    }

    fn leave(&mut self, source: IpAddr) {
        if let Some(count) = self.by_source.get_mut(&source) {
            *count -= 1;
            if *count == 0 {
                self.by_source.remove(&source);
            }
        }
    }
}

/// Whose handshakes count as one: an IPv4 address, or the /64 that one IPv6 host has.
fn source(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(v6) => Ipv6Addr::from_bits(v6.to_bits() & !u128::from(u64::MAX)).into(),
        v4 => v4,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(n: u64) -> IpAddr {
        IpAddr::from([10, 0, (n >> 8) as u8, n as u8])
    }

    /// Begins as many as may begin now; returns their numbers and those that gave way.
    fn begin(handshakes: &mut Handshakes<u64>, now: Instant) -> (Vec<u64>, Vec<u64>) {
        let (mut begun, mut gave_way) = (Vec::new(), Vec::new());
        loop {
            match handshakes.next(now) {
                Next::Begin(serial, source) => {
                    handshakes.begun(now, serial, source);
                    begun.push(serial);
                }
                Next::GiveWay(serial) => {
                    handshakes.end(serial);
                    gave_way.push(serial);
                }
                Next::Forget(_) => {}
                Next::Wait => return (begun, gave_way),
            }
        }
    }

    #[test]
    fn one_source_has_a_few_waiting_or_under_way() {
        let now = Instant::now();
        let mut handshakes = Handshakes::default();
        let hosts = ["2001:db8::1", "2001:db8::2"].map(|text| text.parse().unwrap());
        for serial in 0..16 {
            handshakes.wait(now, hosts[serial % 2], serial as u64).unwrap();
            if serial == 7 {
                begin(&mut handshakes, now);
            }
        }
        assert_eq!(handshakes.wait(now, hosts[0], 16), Err(16), "both hosts are in one /64");
        handshakes.wait(now, "198.51.100.1".parse().unwrap(), 17).unwrap();
        handshakes.end(3);
        handshakes.wait(now, hosts[0], 18).unwrap();
        begin(&mut handshakes, now);
        (0..=18).for_each(|serial| handshakes.end(serial));
        assert!(handshakes.by_source.is_empty() && handshakes.under_way.is_empty());
    }

    #[test]
    fn a_herd_begins_in_order_and_nobody_gives_way_while_handshakes_end() {
        let mut now = Instant::now();
        let mut handshakes = Handshakes::default();
        let herd: Vec<u64> = (0..2000).filter(|&n| handshakes.wait(now, address(n), n).is_ok()).collect();
        assert_eq!(herd.len(), MOST_WAITING);
        let mut served = Vec::new();
        while served.len() < herd.len() {
            let (begun, gave_way) = begin(&mut handshakes, now);
            assert!(!begun.is_empty() && gave_way.is_empty());
            begun.iter().for_each(|serial| handshakes.end(*serial));
            served.extend(begun);
            now += Duration::from_millis(300);
        }
        assert_eq!(served, herd);
        assert!(handshakes.by_source.is_empty());
    }

    #[test]
    fn one_that_hangs_gives_way_to_a_newcomer() {
        let start = Instant::now();
        let mut handshakes = Handshakes::default();
        (0..300).for_each(|n| handshakes.wait(start, address(n), n).unwrap());
        assert_eq!(begin(&mut handshakes, start).0.len(), MOST);
        assert_eq!(handshakes.poll_timeout(), Some(start + HANGS), "nothing to do before");
        let (begun, gave_way) = begin(&mut handshakes, start + HANGS);
        assert_eq!((begun, gave_way), ((128..256).collect(), (0..128).collect()));
    }

    #[test]
    fn one_that_waited_too_long_is_forgotten() {
        let start = Instant::now();
        let mut handshakes = Handshakes::default();
        handshakes.wait(start, address(1), 1).unwrap();
        assert_eq!(handshakes.poll_timeout(), Some(start));
        assert_eq!(handshakes.next(start + STALE), Next::Forget(1));
        assert_eq!((handshakes.poll_timeout(), handshakes.by_source.len()), (None, 0));
    }
}
