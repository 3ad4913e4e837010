//! One direction of an emulated link: a rate with a bounded queue, then delay, jitter, loss, reordering.
//!
//! Pure: packets and `now` go in, packets come out when they are due. What befalls packet number n
//! depends on the seed and n alone, so that a run can be repeated. Loss is decided before the queue,
//! as a radio loses; the queue drops at its tail, as most routers do.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::time::{Duration, Instant};

/// What the link is like.
#[derive(Clone, Copy, Debug)]
pub struct Shape {
    /// Bytes a second.
    pub rate: f64,
    /// The queue in front of it, in time at that rate.
    pub queue: Duration,
    /// One way, without queue and transmission.
    pub delay: Duration,
    /// Up to this much more delay, evenly; packets keep their order.
    pub jitter: Duration,
    /// Share of packets lost, 0 to 1.
    pub loss: f64,
    /// Share of packets that come late, behind those of the next millisecond, 0 to 1.
    pub reorder: f64,
    /// Two links of one seed do the same.
    pub seed: u64,
}

/// What became of the packets so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct Counts {
    /// Given to the link.
    pub packets: u64,
    /// Lost at random.
    pub lost: u64,
    /// Found the queue full.
    pub dropped: u64,
    /// Made late.
    pub reordered: u64,
    /// Came out.
    pub delivered: u64,
}

/// One direction of the link, carrying packets of type `P`.
#[derive(Debug)]
pub struct Link<P> {
    shape: Shape,
    /// When the last packet will have left the queue.
    busy_until: Option<Instant>,
    /// When the last one in order arrives.
    last_due: Option<Instant>,
    under_way: BinaryHeap<Reverse<(Instant, u64, Slot<P>)>>,
    /// What became of the packets.
    pub counts: Counts,
}

/// A packet that takes no part in ordering.
#[derive(Debug)]
struct Slot<P>(P);

impl<P> PartialEq for Slot<P> {
    fn eq(&self, _: &Self) -> bool {
        true
    }
}
impl<P> Eq for Slot<P> {}
impl<P> PartialOrd for Slot<P> {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}
impl<P> Ord for Slot<P> {
    fn cmp(&self, _: &Self) -> std::cmp::Ordering {
        std::cmp::Ordering::Equal
    }
}

/// How much later a reordered packet comes.
const LATE: Duration = Duration::from_millis(1);

impl<P> Link<P> {
    /// An idle link.
    pub fn new(shape: Shape) -> Self {
        Self { shape, busy_until: None, last_due: None, under_way: BinaryHeap::new(), counts: Counts::default() }
    }

    /// Gives the link a packet of `bytes` bytes.
    pub fn push(&mut self, now: Instant, bytes: usize, packet: P) {
        let number = self.counts.packets;
        self.counts.packets += 1;
        if self.chance(number, 0) < self.shape.loss {
            self.counts.lost += 1;
            return;
        }
        let begins = self.busy_until.map_or(now, |busy| busy.max(now));
        if begins - now > self.shape.queue {
            self.counts.dropped += 1;
            return;
        }
        let leaves = begins + Duration::from_secs_f64(bytes as f64 / self.shape.rate);
        self.busy_until = Some(leaves);
        let jitter = self.shape.jitter.mul_f64(self.chance(number, 1));
        let mut due = leaves + self.shape.delay + jitter;
        if self.chance(number, 2) < self.shape.reorder {
            self.counts.reordered += 1;
            due += LATE;
        } else {
            due = self.last_due.map_or(due, |last| due.max(last));
            self.last_due = Some(due);
        }
        self.under_way.push(Reverse((due, number, Slot(packet))));
    }

    /// When [`Self::pop`] has something to give.
    pub fn poll_timeout(&self) -> Option<Instant> {
        self.under_way.peek().map(|Reverse((due, ..))| *due)
    }

    /// A packet that has arrived.
    pub fn pop(&mut self, now: Instant) -> Option<P> {
        self.poll_timeout().filter(|&due| due <= now)?;
        let Reverse((.., Slot(packet))) = self.under_way.pop()?;
        self.counts.delivered += 1;
        Some(packet)
    }

    /// An even number in 0..1 for decision `kind` about packet `number` (SplitMix64).
    fn chance(&self, number: u64, kind: u64) -> f64 {
        let mut z = self.shape.seed ^ (number * 4 + kind).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) >> 11) as f64 / (1u64 << 53) as f64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    #[test]
    fn a_packet_takes_its_transmission_and_the_delay() {
        let start = Instant::now();
        let mut link = Link::new(shape());
        link.push(start, 1000, 1); // 1 ms at 1 MB/s
        link.push(start, 1000, 2);
        assert_eq!(link.poll_timeout(), Some(start + 11 * MS));
        assert_eq!(link.pop(start + 11 * MS - MS / 10), None);
        assert_eq!(link.pop(start + 11 * MS), Some(1));
        assert_eq!(link.pop(start + 11 * MS), None);
        assert_eq!(link.pop(start + 12 * MS), Some(2));
    }

    #[test]
    fn the_queue_is_bounded_and_empties_with_time() {
        let start = Instant::now();
        let mut link = Link::new(shape());
        for number in 0..100 {
            link.push(start, 1000, number);
        }
        assert_eq!(link.counts.dropped, 79, "20 ms of queue and the one under way");
        link.push(start + 15 * MS, 1000, 100);
        assert_eq!(link.counts.dropped, 79);
    }

    #[test]
    fn loss_is_what_was_asked_for_and_the_same_every_time() {
        let start = Instant::now();
        let arrived = |seed| {
            let mut link = Link::new(Shape { loss: 0.05, rate: 1e12, seed, ..shape() });
            for number in 0..20_000 {
                link.push(start, 1000, number);
            }
            let mut arrived = Vec::new();
            while let Some(number) = link.pop(start + 1000 * MS) {
                arrived.push(number);
            }
            arrived
        };
        let (one, again, other) = (arrived(7), arrived(7), arrived(8));
        assert_eq!(one, again);
        assert_ne!(one, other);
        assert!((18_800..19_200).contains(&one.len()), "{}", one.len());
    }

    #[test]
    fn jitter_keeps_the_order_and_reordering_does_not() {
        let start = Instant::now();
        let run = |shape| {
            let mut link = Link::new(shape);
            for number in 0..1000 {
                link.push(start + Duration::from_micros(number * 100), 100, number);
            }
            let mut arrived = Vec::new();
            while let Some(number) = link.pop(start + 1000 * MS) {
                arrived.push(number);
            }
            arrived
        };
        let jittered = run(Shape { jitter: 5 * MS, rate: 1e9, ..shape() });
        assert_eq!(jittered.len(), 1000);
        assert!(jittered.is_sorted());
        let reordered = run(Shape { reorder: 0.1, rate: 1e9, ..shape() });
        assert_eq!(reordered.len(), 1000);
        assert!(!reordered.is_sorted());
    }

    fn shape() -> Shape {
        Shape { rate: 1e6, queue: 20 * MS, delay: 10 * MS, jitter: Duration::ZERO, loss: 0.0, reorder: 0.0, seed: 1 }
    }
}
