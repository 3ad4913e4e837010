//! The largest inner packet that hosts may send over one link: what the path carries in one datagram, or
//! what it carried until a moment ago.
//!
//! QUIC takes four bursts of loss in one acknowledgement for a black hole (quinn-proto's mtud.rs), which 5 %
//! of random loss is enough for, and hosts would remember a smaller size for ten minutes. So a path that
//! seems to carry less is believed only after a while; meanwhile what is too large crosses in two
//! datagrams (`pieces`). QUIC looks again after `transport::BLACK_HOLE_COOLDOWN` and needs a few round trips.

use std::time::{Duration, Instant};

/// The least that every link carries (RFC 8200 section 5); smaller paths split it.
pub(crate) const LEAST_BYTES: u16 = 1280;
/// How long the size stays although the path seems to carry less.
const HOLD: Duration = Duration::from_secs(5);

/// Pure: what the path carries and `now` go in.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct InnerMtu {
    /// 0 until the link carries packets.
    bytes: u16,
    held_until: Option<Instant>,
}

impl InnerMtu {
    /// As it was last followed, in bytes; 0 before that.
    pub(crate) fn told_bytes(self) -> u16 {
        self.bytes
    }

    /// What crosses, whole or in two.
    pub(crate) fn carried_bytes(self) -> u16 {
        self.bytes.max(LEAST_BYTES)
    }

    /// The path carries `datagram_bytes` in one datagram. True when hosts may send more or less than before.
    pub(crate) fn follow(&mut self, now: Instant, datagram_bytes: usize) -> bool {
        let bytes = u16::try_from(datagram_bytes).unwrap_or(u16::MAX).max(LEAST_BYTES);
        if bytes < self.bytes && now < *self.held_until.get_or_insert(now + HOLD) {
            return false;
        }
        self.held_until = None;
        std::mem::replace(&mut self.bytes, bytes) != bytes
    }

    /// The link has ended: nothing is followed any more.
    pub(crate) fn end(&mut self) {
        self.held_until = None;
    }

    /// When [`Self::follow`] is due although nothing has happened.
    pub(crate) fn poll_timeout(self) -> Option<Instant> {
        self.held_until
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_larger_path_is_followed_at_once_and_a_smaller_one_after_a_while() {
        let start = Instant::now();
        let mut mtu = InnerMtu::default();
        assert_eq!((mtu.told_bytes(), mtu.carried_bytes()), (0, LEAST_BYTES));
        assert!(mtu.follow(start, 1170));
        assert_eq!(mtu.told_bytes(), LEAST_BYTES, "never less");
        assert!(mtu.follow(start, 1434) && !mtu.follow(start, 1434));
        assert!(!mtu.follow(start, 1170));
        assert_eq!((mtu.told_bytes(), mtu.poll_timeout()), (1434, Some(start + HOLD)));
        assert!(!mtu.follow(start + HOLD - Duration::from_millis(1), 1300), "the first dip counts");
        assert!(mtu.follow(start + HOLD, 1300));
        assert_eq!((mtu.told_bytes(), mtu.poll_timeout()), (1300, None));
    }

    #[test]
    fn a_path_that_recovers_was_never_smaller() {
        let start = Instant::now();
        let mut mtu = InnerMtu::default();
        mtu.follow(start, 1434);
        mtu.follow(start, 1170);
        assert!(!mtu.follow(start + Duration::from_secs(2), 1434));
        assert_eq!(mtu.poll_timeout(), None);
        mtu.follow(start + Duration::from_secs(4), 1170);
        assert_eq!(mtu.poll_timeout(), Some(start + Duration::from_secs(4) + HOLD), "another dip, another while");
        mtu.end();
        assert_eq!(mtu.poll_timeout(), None);
    }
}
