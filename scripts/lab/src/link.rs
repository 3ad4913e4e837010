//! One direction of an emulated link: a rate with a bounded queue, then delay, jitter, loss, reordering.
//!
//! Pure: packets and `now` go in, packets come out when they are due. What befalls packet number n
//! depends on the seed and n alone, so that a run can be repeated. Long and short packets have numbers
//! of their own: a flow loses the same of its segments, whatever acknowledgements and probes go between
//! them, and two runs of one seed can be compared. Loss is decided before the queue, as a radio loses;
//! the queue drops at its tail, as most routers do. Times are rounded up, never in the packets' favour.
//! Not here: devices and the clock (`bin/wan.rs`).

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::time::{Duration, Instant};

/// What the link is like.
#[derive(Clone, Copy, Debug)]
pub struct Shape {
    /// Bits a second, more than 0.
    pub rate: u64,
    /// The queue in front of it, in time at that rate. A packet that finds the link idle is always taken.
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

/// What became of the packets so far. `packets` is the sum of `lost`, `dropped`, `forwarded` and those under way.
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
    pub forwarded: u64,
    /// The bytes of those.
    pub forwarded_bytes: u64,
    /// How much later than they were due those were taken, in microseconds and together: what the
    /// machine has added to the path.
    pub late_us: u64,
    /// The longest that a packet took to leave the queue, its own transmission included, in microseconds.
    pub longest_queue_us: u64,
}

/// One direction of the link, carrying packets of type `P`.
#[derive(Debug)]
pub struct Link<P> {
    shape: Shape,
    /// When the last packet will have left the queue.
    busy_until: Option<Instant>,
    /// When the last one in order arrives.
    last_due: Option<Instant>,
    under_way: BinaryHeap<Reverse<UnderWay<P>>>,
    /// The numbers of the next short and the next long packet.
    next: [u64; 2],
    /// What became of the packets.
    pub counts: Counts,
}

/// A packet between its ends, in the order of arrival.
#[derive(Debug)]
struct UnderWay<P> {
    due: Instant,
    /// Among all packets.
    order: u64,
    bytes: usize,
    packet: P,
}

impl<P> PartialEq for UnderWay<P> {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other).is_eq()
    }
}
impl<P> Eq for UnderWay<P> {}
impl<P> PartialOrd for UnderWay<P> {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}
impl<P> Ord for UnderWay<P> {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        (self.due, self.order).cmp(&(other.due, other.order))
    }
}

/// A packet of so many bytes is long.
const LONG_BYTES: usize = 600;
/// How much later a reordered packet comes.
const LATE: Duration = Duration::from_millis(1);

impl<P> Link<P> {
    /// An idle link.
    pub fn new(shape: Shape) -> Self {
        let under_way = BinaryHeap::new();
        Self { shape, busy_until: None, last_due: None, under_way, next: [0; 2], counts: Counts::default() }
    }

    /// The two directions of one path. Each draws from a seed of its own: what one carries changes
    /// nothing for the other.
    pub fn pair(shape: Shape) -> [Self; 2] {
        [0, 1].map(|way| Self::new(Shape { seed: shape.seed.wrapping_mul(2).wrapping_add(way), ..shape }))
    }

    /// Numbers the packets from 0 again: what comes meets what the first ones have met.
    pub fn begin_again(&mut self) {
        self.next = [0; 2];
    }

    /// Gives the link a packet of `bytes` bytes. `now` must not go backwards.
    pub fn push(&mut self, now: Instant, bytes: usize, packet: P) {
        let (order, long) = (self.counts.packets, bytes >= LONG_BYTES);
        self.counts.packets += 1;
        let next = &mut self.next[usize::from(long)];
        let number = *next * 2 + u64::from(long);
        *next += 1;
        if self.chance(number, Decision::Loss) < self.shape.loss {
            self.counts.lost += 1;
            return;
        }
        let idle = self.busy_until.is_none_or(|busy| busy <= now);
        let begins = self.busy_until.filter(|_| !idle).unwrap_or(now);
        let leaves = begins + self.transmission(bytes);
        if !idle && leaves - now > self.shape.queue {
            self.counts.dropped += 1;
            return;
        }
        self.busy_until = Some(leaves);
        let queued_us = u64::try_from((leaves - now).as_micros()).unwrap_or(u64::MAX);
        self.counts.longest_queue_us = self.counts.longest_queue_us.max(queued_us);
        let jitter = self.shape.jitter.mul_f64(self.chance(number, Decision::Jitter));
        let mut due = leaves + self.shape.delay + jitter;
        if self.chance(number, Decision::Reorder) < self.shape.reorder {
            self.counts.reordered += 1;
            due += LATE;
        } else {
            due = self.last_due.map_or(due, |last| due.max(last));
            self.last_due = Some(due);
        }
        self.under_way.push(Reverse(UnderWay { due, order, bytes, packet }));
    }

    /// When [`Self::pop`] has something to give.
    pub fn poll_timeout(&self) -> Option<Instant> {
        self.under_way.peek().map(|Reverse(first)| first.due)
    }

    /// A packet that has arrived.
    pub fn pop(&mut self, now: Instant) -> Option<P> {
        self.poll_timeout().filter(|&due| due <= now)?;
        let Reverse(UnderWay { due, bytes, packet, .. }) = self.under_way.pop()?;
        self.counts.late_us += u64::try_from((now - due).as_micros()).unwrap_or(u64::MAX);
        self.counts.forwarded += 1;
        self.counts.forwarded_bytes += bytes as u64;
        Some(packet)
    }

    /// How long the link is busy with a packet of `bytes` bytes.
    fn transmission(&self, bytes: usize) -> Duration {
        const NANOS_A_SECOND: u64 = 1_000_000_000;
        Duration::from_nanos((bytes as u64 * 8 * NANOS_A_SECOND).div_ceil(self.shape.rate))
    }

    /// An even number in 0..1 for one decision about packet `number` (SplitMix64).
    fn chance(&self, number: u64, decision: Decision) -> f64 {
        let mut z = self.shape.seed ^ (number * 4 + decision as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) >> 11) as f64 / (1u64 << 53) as f64
    }
}

/// What is decided about each packet.
#[derive(Clone, Copy, Debug)]
enum Decision {
    Loss,
    Jitter,
    Reorder,
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const MS: Duration = Duration::from_millis(1);

    #[test]
    fn a_packet_takes_its_transmission_and_the_delay() {
        let start = Instant::now();
        let mut link = Link::new(shape());
        link.push(start, 1000, 1); // 1 ms at 8 Mbit/s
        link.push(start, 1000, 2);
        assert_eq!(link.poll_timeout(), Some(start + 11 * MS));
        assert_eq!(link.pop(start + 11 * MS - MS / 10), None);
        assert_eq!(link.pop(start + 11 * MS), Some(1));
        assert_eq!(link.pop(start + 11 * MS), None);
        assert_eq!(link.counts.late_us, 0);
        assert_eq!(link.pop(start + 14 * MS), Some(2));
        assert_eq!(link.counts.late_us, 2000);
        assert_eq!(link.counts.forwarded_bytes, 2000);
        assert_eq!(link.counts.longest_queue_us, 2000);
    }

    #[test]
    fn the_queue_is_bounded_and_empties_with_time() {
        let start = Instant::now();
        let mut link = Link::new(shape());
        for number in 0..100 {
            link.push(start, 1000, number);
        }
        assert_eq!(link.counts.dropped, 80, "20 ms of queue");
        link.push(start + 15 * MS, 1000, 100);
        assert_eq!(link.counts.dropped, 80);
    }

    #[test]
    fn an_idle_link_takes_a_packet_that_is_longer_than_its_queue() {
        let start = Instant::now();
        let mut link = Link::new(Shape { queue: Duration::ZERO, ..shape() });
        link.push(start, 1000, 1);
        link.push(start, 1000, 2);
        link.push(start + MS, 1000, 3);
        assert_eq!(link.counts.dropped, 1);
    }

    #[test]
    fn loss_is_what_was_asked_for_and_differs_by_direction() {
        let start = Instant::now();
        let arrived = Link::pair(Shape { loss: 0.05, rate: 1_000_000_000_000, ..shape() }).map(|mut link| {
            for number in 0..20_000 {
                link.push(start, 1000, number);
            }
            drain(&mut link)
        });
        assert_ne!(arrived[0], arrived[1]);
        for arrived in arrived {
            assert!((18_800..19_200).contains(&arrived.len()), "{}", arrived.len());
        }
    }

    #[test]
    fn reordering_makes_some_packets_late() {
        let start = Instant::now();
        let mut link = Link::new(Shape { reorder: 0.1, rate: 1_000_000_000, ..shape() });
        for number in 0..1000 {
            link.push(start + Duration::from_micros(number * 100), 100, number);
        }
        let arrived: Vec<_> = drain(&mut link).into_iter().map(|(_, number)| number).collect();
        assert_eq!(arrived.len(), 1000);
        assert!(!arrived.is_sorted());
        assert!((50..150).contains(&link.counts.reordered), "{}", link.counts.reordered);
    }

    #[test]
    fn long_packets_lose_the_same_whatever_goes_between_them_and_after_a_new_beginning() {
        let mut link = Link::new(Shape { loss: 0.2, rate: 1_000_000_000_000, ..shape() });
        let mut long_ones = |between, again| {
            if again {
                link.begin_again();
            }
            for number in 0..1000 {
                (0..between).for_each(|_| link.push(epoch(), 60, None));
                link.push(epoch(), 1400, Some(number));
            }
            drain(&mut link).into_iter().filter_map(|(_, number)| number).collect::<Vec<_>>()
        };
        let first = long_ones(0, false);
        assert_ne!(first, long_ones(0, false));
        assert_eq!(first, long_ones(3, true));
    }

    proptest! {
        #[test]
        fn nothing_overtakes_without_reordering(shape in shapes(), sent in offers()) {
            let arrived = carry(Shape { reorder: 0.0, ..shape }, &sent).0;
            prop_assert!(arrived.iter().map(|(_, number)| number).is_sorted());
        }

        #[test]
        fn every_packet_takes_at_least_its_transmission_and_the_delay(shape in shapes(), sent in offers()) {
            for (at, number) in carry(shape, &sent).0 {
                let (sent_at, bytes) = sent[number];
                let least = shape.delay.as_secs_f64() + bytes as f64 * 8.0 / shape.rate as f64;
                prop_assert!((at - sent_at).as_secs_f64() >= least - 1e-9, "packet {number}: {:?}", at - sent_at);
            }
        }

        /// What arrives after one packet and up to a later one took at least its time at the rate.
        /// Jitter and lateness hold back what came first; then one more packet can be among it, the
        /// one whose transmission ended as the window began.
        #[test]
        fn no_window_exceeds_the_rate(shape in shapes(), sent in offers()) {
            let arrived = carry(shape, &sent).0;
            let late = shape.jitter + if shape.reorder > 0.0 { LATE } else { Duration::ZERO };
            let one_more = if late.is_zero() { 0.0 } else { LONGEST_BYTES as f64 * 8.0 };
            for (first, (from, _)) in arrived.iter().enumerate() {
                let mut bits = 0.0;
                for (to, number) in &arrived[first + 1..] {
                    bits += sent[*number].1 as f64 * 8.0;
                    let seconds = (*to - *from + late).as_secs_f64() + 1e-9;
                    prop_assert!(bits <= shape.rate as f64 * seconds + one_more, "{bits} bits in {seconds} s");
                }
            }
        }

        /// Without jitter the arrival tells when a packet left the queue. At each moment those that
        /// have not are at most the queue, the one under way counted by what is left of it.
        #[test]
        fn never_more_than_the_queue_waits(shape in shapes(), sent in offers()) {
            let shape = Shape { jitter: Duration::ZERO, reorder: 0.0, loss: 0.0, ..shape };
            let bytes_in = |time: Duration| time.as_secs_f64() * shape.rate as f64 / 8.0;
            let (arrived, counts) = carry(shape, &sent);
            let room = bytes_in(shape.queue);
            for (_, last) in &arrived {
                let now = sent[*last].0;
                let waiting: Vec<_> = arrived
                    .iter()
                    .filter(|(at, number)| number <= last && *at - shape.delay > now)
                    .map(|(at, number)| bytes_in(*at - shape.delay - now).min(sent[*number].1 as f64))
                    .collect();
                let all: f64 = waiting.iter().sum();
                prop_assert!(waiting.len() <= 1 || all <= room + 1.0, "{all} bytes, room for {room}");
            }
            // And nothing is dropped while there is room.
            if sent.iter().map(|(_, bytes)| *bytes as f64).sum::<f64>() < room {
                prop_assert_eq!(counts.dropped, 0);
            }
        }

        #[test]
        fn the_same_seed_does_the_same_and_every_packet_is_accounted_for(shape in shapes(), sent in offers()) {
            let (arrived, counts) = carry(shape, &sent);
            prop_assert_eq!(&(arrived, counts), &carry(shape, &sent));
            prop_assert_eq!(counts.packets, sent.len() as u64);
            prop_assert_eq!(counts.packets, counts.forwarded + counts.lost + counts.dropped);
        }

        /// What one direction does to its packets is the same whatever the other one carries, and when.
        #[test]
        fn the_directions_do_not_disturb_each_other(
            shape in shapes(), sent in offers(), other in offers(), order in prop::collection::vec(any::<bool>(), 0..400),
        ) {
            let [mut one, mut two] = Link::pair(shape);
            let (mut ours, mut theirs) = (sent.iter().enumerate(), other.iter().enumerate());
            for our_turn in order.into_iter().chain(std::iter::repeat_n(true, sent.len())) {
                let (link, offers) = if our_turn { (&mut one, &mut ours) } else { (&mut two, &mut theirs) };
                if let Some((number, (at, bytes))) = offers.next() {
                    link.push(*at, *bytes, number);
                }
            }
            let [alone, _] = Link::<usize>::pair(shape);
            prop_assert_eq!(drain(&mut one), carry(alone.shape, &sent).0);
        }
    }

    /// More than any packet has.
    const LONGEST_BYTES: usize = 1500;

    /// A packet's moment and bytes.
    type Offer = (Instant, usize);

    /// Sends it all and returns what arrived, each with its moment, and the counts.
    fn carry(shape: Shape, sent: &[Offer]) -> (Vec<(Instant, usize)>, Counts) {
        let mut link = Link::new(shape);
        for (number, (at, bytes)) in sent.iter().enumerate() {
            link.push(*at, *bytes, number);
        }
        let arrived = drain(&mut link);
        (arrived, link.counts)
    }

    /// What is under way, each with the moment of its arrival.
    fn drain<P>(link: &mut Link<P>) -> Vec<(Instant, P)> {
        std::iter::from_fn(|| link.poll_timeout().and_then(|due| Some((due, link.pop(due)?)))).collect()
    }

    prop_compose! {
        fn shapes()(
            rate in 1_000_000..500_000_000_u64,
            [queue, delay] in [0..20_000_u64, 0..20_000],
            jitter in prop_oneof![Just(0), 0..5_000_u64],
            loss in prop_oneof![Just(0.0), 0.0..0.2],
            reorder in prop_oneof![Just(0.0), 0.0..0.2],
            seed: u64,
        ) -> Shape {
            let [queue, delay, jitter] = [queue, delay, jitter].map(Duration::from_micros);
            Shape { rate, queue, delay, jitter, loss, reorder, seed }
        }
    }

    prop_compose! {
        /// Packets in bursts and with pauses.
        fn offers()(
            gaps in prop::collection::vec((prop_oneof![Just(0), 0..200_u64, 0..20_000_u64], 20..LONGEST_BYTES), 1..200),
        ) -> Vec<Offer> {
            let mut at = epoch();
            gaps.into_iter().map(|(gap, bytes)| { at += Duration::from_micros(gap); (at, bytes) }).collect()
        }
    }

    /// The same moment for every packet of this process.
    fn epoch() -> Instant {
        static EPOCH: std::sync::LazyLock<Instant> = std::sync::LazyLock::new(Instant::now);
        *EPOCH
    }

    fn shape() -> Shape {
        let [queue, delay, jitter] = [20, 10, 0].map(Duration::from_millis);
        Shape { rate: 8_000_000, queue, delay, jitter, loss: 0.0, reorder: 0.0, seed: 1 }
    }
}
