//! Back-pressure: when the device is not read because a link's queue is full.
//!
//! A client has one way out, so holding up its device is right. A gateway must not let one slow
//! client hold up the others, neither long nor often: after [`MOST`] the link's packets are dropped
//! instead, and after a hold-up nobody gets another within [`PAUSE`].

use std::time::{Duration, Instant};

/// The longest hold-up of a gateway's device.
const MOST: Duration = Duration::from_millis(5);
/// From the beginning of one hold-up to the next, while others are there to suffer.
const PAUSE: Duration = Duration::from_millis(100);

/// Which link holds up the device, if any.
#[derive(Debug, Default)]
pub(crate) struct HoldUp {
    /// The link's index, and since when.
    by: Option<(usize, Instant)>,
    not_before: Option<Instant>,
}

impl HoldUp {
    /// The queue of link `index` is full. False when it may not hold up a gateway's device again so
    /// soon: drop its packets. `alone`: no other link would suffer.
    pub(crate) fn begin(&mut self, now: Instant, index: usize, gateway: bool, alone: bool) -> bool {
        if self.by.is_some() {
            return true;
        }
        if gateway {
            if !alone && self.not_before.is_some_and(|pause| now < pause) {
                return false;
            }
            self.not_before = Some(now + PAUSE);
        }
        self.by = Some((index, now));
        true
    }

    /// The link that holds up the device.
    pub(crate) fn by(&self) -> Option<usize> {
        self.by.map(|(index, _)| index)
    }

    /// True when a gateway's device has been held up for long enough.
    pub(crate) fn is_too_long(&self, now: Instant) -> bool {
        self.by.is_some_and(|(_, since)| now >= since + MOST)
    }

    /// When [`Self::is_too_long`] becomes true.
    pub(crate) fn poll_timeout(&self) -> Option<Instant> {
        self.by.map(|(_, since)| since + MOST)
    }

    /// The device may be read again.
    pub(crate) fn end(&mut self) {
        self.by = None;
    }
}
