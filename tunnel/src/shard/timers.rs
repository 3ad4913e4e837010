//! Deadlines of many links: one heap, one entry a link.
//!
//! QUIC moves its deadlines later with almost every packet. An entry is therefore left where it is
//! when its deadline moves later, and put right when it comes up; only an earlier one is pushed.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::time::Instant;

/// The nearest deadline among links named by small numbers.
#[derive(Debug, Default)]
pub(crate) struct Timers {
    heap: BinaryHeap<Reverse<(Instant, usize)>>,
    slots: Vec<Slot>,
}

#[derive(Clone, Copy, Debug, Default)]
struct Slot {
    /// When the link wants to be called.
    due: Option<Instant>,
    /// The earliest entry of the link that is in the heap.
    queued: Option<Instant>,
}

impl Timers {
    /// Sets or clears the deadline of link `index`.
    pub(crate) fn set(&mut self, index: usize, due: Option<Instant>) {
        if self.slots.len() <= index {
            self.slots.resize(index + 1, Slot::default());
        }
        let slot = &mut self.slots[index];
        slot.due = due;
        let Some(due) = due else { return };
        if slot.queued.is_none_or(|queued| due < queued) {
            slot.queued = Some(due);
            self.heap.push(Reverse((due, index)));
            if self.heap.len() > 4 * self.slots.len() + 64 {
                self.rebuild();
            }
        }
    }

    /// Leaves one entry a link. An entry that an earlier one replaced lies in the heap until its
    /// time has come, a minute for an idle timeout: timers that fire often would pile them up.
    fn rebuild(&mut self) {
        self.heap.clear();
        for (index, slot) in self.slots.iter_mut().enumerate() {
            slot.queued = slot.due;
            self.heap.extend(slot.due.map(|due| Reverse((due, index))));
        }
    }

    /// When [`Self::expired`] has something to give.
    pub(crate) fn next(&mut self) -> Option<Instant> {
        self.settle();
        self.heap.peek().map(|Reverse((due, _))| *due)
    }

    /// A link whose deadline has passed; its deadline is cleared.
    pub(crate) fn expired(&mut self, now: Instant) -> Option<usize> {
        self.settle();
        let &Reverse((due, index)) = self.heap.peek()?;
        if due > now {
            return None;
        }
        self.heap.pop();
        self.slots[index] = Slot::default();
        Some(index)
    }

    /// Puts right what has moved, until the top of the heap is a true deadline.
    fn settle(&mut self) {
        while let Some(&Reverse((entry, index))) = self.heap.peek() {
            let slot = &mut self.slots[index];
            if slot.queued == Some(entry) && slot.due == Some(entry) {
                return;
            }
            self.heap.pop();
            if slot.queued != Some(entry) {
                continue; // an earlier entry of the link replaced this one
            }
            slot.queued = slot.due;
            if let Some(due) = slot.due {
                self.heap.push(Reverse((due, index)));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::time::Duration;

    proptest! {
        #[test]
        fn it_agrees_with_a_plain_list(
            acts in proptest::collection::vec((0usize..5, proptest::option::of(0u64..50)), 1..80),
        ) {
            let start = Instant::now();
            let at = |ms: u64| start + Duration::from_millis(ms);
            let mut timers = Timers::default();
            let mut plain: [Option<Instant>; 5] = [None; 5];
            for (step, (index, due)) in acts.into_iter().enumerate() {
                timers.set(index, due.map(at));
                plain[index] = due.map(at);
                prop_assert_eq!(timers.next(), plain.iter().flatten().min().copied());
                let now = at(step as u64);
                while let Some(index) = timers.expired(now) {
                    prop_assert!(plain[index].is_some_and(|due| due <= now));
                    plain[index] = None;
                }
                prop_assert!(plain.iter().flatten().all(|&due| due > now));
            }
        }
    }

    #[test]
    fn timers_that_fire_often_leave_a_small_heap() {
        let start = Instant::now();
        let mut timers = Timers::default();
        timers.set(1, Some(start + Duration::from_secs(50)));
        for step in 0..100_000u64 {
            let now = start + Duration::from_micros(200 * step);
            timers.set(0, Some(now + Duration::from_secs(60)));
            timers.set(0, Some(now + Duration::from_micros(200)));
            timers.expired(now + Duration::from_micros(200));
        }
        assert!(timers.heap.len() <= 72, "{} entries", timers.heap.len());
    }

    #[test]
    fn a_deadline_that_only_moves_later_leaves_one_entry() {
        let start = Instant::now();
        let mut timers = Timers::default();
        for ms in 1..1000 {
            timers.set(0, Some(start + Duration::from_millis(ms)));
        }
        assert_eq!(timers.heap.len(), 1);
        assert_eq!(timers.next(), Some(start + Duration::from_millis(999)));
    }
}
