//! What the tunnel's own packets find below them: the way to the gateway, and when it changes.
//!
//! A network changes in bursts (a link goes, its addresses and routes go, others come), so a change
//! is looked at once it has been quiet for [`QUIET`], and after [`AT_LAST`] in any case; what looks
//! as before is not told. The kernel is asked, not remembered: a notification only says that it is
//! time to look. Not here: what to do about it (`supervisor`).

use std::net::IpAddr;
use std::time::{Duration, Instant};

#[cfg(target_os = "linux")]
#[path = "underlay/linux.rs"]
mod imp;
#[cfg(target_os = "macos")]
#[path = "underlay/macos.rs"]
mod imp;
#[cfg(any(target_os = "macos", test))]
mod services;
#[cfg(target_os = "macos")]
pub use imp::{Primary, name_servers, primary, primary_interface};
pub use imp::{Watch, is_tunnel};

/// So long after the last notification the ways are looked at.
pub const QUIET: Duration = Duration::from_millis(100);
/// So long after the first one they are looked at, however busy the network is with itself.
pub const AT_LAST: Duration = Duration::from_millis(500);

/// How packets to one destination leave this machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Way {
    /// Where they go.
    pub to: IpAddr,
    /// Through which interface, by its number.
    pub interface: u32,
    /// To which router; `None` on the same link.
    pub router: Option<IpAddr>,
    /// With which source address.
    pub source: Option<IpAddr>,
}

/// The ways to every address of a gateway that has one, in their order.
pub type Ways = Vec<Way>;

/// What a look showed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    /// The ways are other ones, or there is one again.
    Changed,
    /// There is no way any more.
    Gone,
}

/// Notifications in, the moments to look out. Pure.
#[derive(Debug, Default)]
pub struct Settling {
    told: Ways,
    /// The first and the last notification since the last look.
    noticed: Option<(Instant, Instant)>,
}

impl Settling {
    /// Begins with what is there now.
    pub fn new(ways: Ways) -> Self {
        Self { told: ways, noticed: None }
    }

    /// Something about the network changed, perhaps nothing of ours.
    pub fn on_notice(&mut self, now: Instant) {
        let first = self.noticed.map_or(now, |(first, _)| first);
        self.noticed = Some((first, now));
    }

    /// When to look; `None` while nothing has changed.
    pub fn poll_look(&self) -> Option<Instant> {
        self.noticed.map(|(first, last)| (first + AT_LAST).min(last + QUIET))
    }

    /// What the look showed.
    pub fn on_look(&mut self, ways: Ways) -> Option<Change> {
        self.noticed = None;
        if ways == self.told {
            return None;
        }
        self.told = ways;
        Some(if self.told.is_empty() { Change::Gone } else { Change::Changed })
    }

    /// True when there was a way at the last look.
    pub fn is_reachable(&self) -> bool {
        !self.told.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_burst_of_notifications_is_one_look() {
        let start = Instant::now();
        let at = |ms: u64| start + Duration::from_millis(ms);
        let mut settling = Settling::new(vec![wifi()]);
        assert_eq!(settling.poll_look(), None);
        for ms in [0, 30, 60, 90] {
            settling.on_notice(at(ms));
        }
        assert_eq!(settling.poll_look(), Some(at(90) + QUIET));
        assert_eq!(settling.on_look(vec![cable()]), Some(Change::Changed));
        assert_eq!(settling.poll_look(), None);
    }

    #[test]
    fn a_network_that_never_rests_is_looked_at_all_the_same() {
        let start = Instant::now();
        let mut settling = Settling::new(vec![wifi()]);
        for ms in (0..500).step_by(50) {
            settling.on_notice(start + Duration::from_millis(ms));
        }
        assert_eq!(settling.poll_look(), Some(start + AT_LAST));
    }

    #[test]
    fn what_looks_as_before_is_not_told() {
        let mut settling = Settling::new(vec![wifi()]);
        settling.on_notice(Instant::now());
        assert_eq!(settling.on_look(vec![wifi()]), None);
    }

    #[test]
    fn another_router_on_the_same_interface_is_a_change() {
        let mut settling = Settling::new(vec![wifi()]);
        let hotspot = Way { router: Some("172.20.10.1".parse().unwrap()), ..wifi() };
        assert_eq!(settling.on_look(vec![hotspot]), Some(Change::Changed));
    }

    #[test]
    fn no_way_is_told_once_and_its_return_too() {
        let mut settling = Settling::new(vec![wifi()]);
        assert_eq!(settling.on_look(vec![]), Some(Change::Gone));
        assert!(!settling.is_reachable());
        assert_eq!(settling.on_look(vec![]), None);
        assert_eq!(settling.on_look(vec![wifi()]), Some(Change::Changed));
        assert!(settling.is_reachable());
    }

    proptest! {
        #[test]
        fn every_notification_is_followed_by_a_look_within_half_a_second(gaps in proptest::collection::vec(0u64..400, 1..50)) {
            let mut settling = Settling::new(vec![]);
            let mut now = Instant::now();
            let mut waiting: Option<Instant> = None;
            for gap in gaps {
                let next = now + Duration::from_millis(gap);
                if let Some(due) = settling.poll_look().filter(|due| *due <= next) {
                    prop_assert!(waiting.take().is_some_and(|since| due - since <= AT_LAST));
                    settling.on_look(vec![]);
                }
                now = next;
                settling.on_notice(now);
                waiting.get_or_insert(now);
            }
            prop_assert!(settling.poll_look().is_some_and(|due| due - waiting.unwrap() <= AT_LAST));
        }
    }

    fn wifi() -> Way {
        Way {
            to: "203.0.113.7".parse().unwrap(),
            interface: 2,
            router: Some("192.168.1.1".parse().unwrap()),
            source: Some("192.168.1.20".parse().unwrap()),
        }
    }

    fn cable() -> Way {
        Way { interface: 3, ..wifi() }
    }
}
