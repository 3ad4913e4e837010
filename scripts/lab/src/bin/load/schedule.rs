//! When each of many clients wants to be called.

use std::collections::BTreeSet;
use std::time::Instant;

/// Deadlines of clients named by small numbers.
#[derive(Debug)]
pub(crate) struct Schedule {
    due: Vec<Option<Instant>>,
    order: BTreeSet<(Instant, usize)>,
}

impl Schedule {
    /// For so many clients, none of which waits.
    pub(crate) fn new(clients: usize) -> Self {
        Self { due: vec![None; clients], order: BTreeSet::new() }
    }

    /// Sets or clears a client's deadline.
    pub(crate) fn set(&mut self, client: usize, due: Option<Instant>) {
        let before = std::mem::replace(&mut self.due[client], due);
        if before != due {
            if let Some(before) = before {
                self.order.remove(&(before, client));
            }
            self.order.extend(due.map(|due| (due, client)));
        }
    }

    /// The next deadline of all.
    pub(crate) fn next(&self) -> Option<Instant> {
        self.order.first().map(|(due, _)| *due)
    }

    /// A client whose deadline has passed; it is cleared.
    pub(crate) fn expired(&mut self, now: Instant) -> Option<usize> {
        let &(_, client) = self.order.first().filter(|(due, _)| *due <= now)?;
        self.set(client, None);
        Some(client)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn clients_are_called_in_the_order_of_their_latest_deadlines() {
        let start = Instant::now();
        let at = |ms| start + Duration::from_millis(ms);
        let mut schedule = Schedule::new(4);
        for (client, ms) in [(0, 30), (1, 10), (2, 10), (3, 5)] {
            schedule.set(client, Some(at(ms)));
        }
        schedule.set(3, None);
        schedule.set(1, Some(at(20)));
        assert_eq!(schedule.next(), Some(at(10)));
        assert_eq!(schedule.expired(at(9)), None);
        assert_eq!(schedule.expired(at(25)), Some(2));
        assert_eq!(schedule.expired(at(25)), Some(1));
        assert_eq!(schedule.expired(at(25)), None);
        assert_eq!(schedule.next(), Some(at(30)));
    }
}
