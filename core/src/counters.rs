//! What a node did, counted and timed.

use core::time::Duration;

use serde::Serialize;

/// Since the process started. They only grow.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub(crate) struct Counters {
    /// Requests fetched for others, to whatever end.
    pub(crate) requests: u64,
    /// Those of them, and those that were not fetched, that ended in an error.
    pub(crate) failed: u64,
    /// Bytes of response bodies passed on.
    pub(crate) bytes: u64,
    /// Streams opened.
    pub(crate) streams: u64,
    /// Data-plane connections, on streams and at `/connect`.
    pub(crate) connections: u64,
    /// Those of them that were turned away: no handshake, no request, no ticket that pays for it.
    pub(crate) refused: u64,
    /// What was turned away because a limit was reached.
    pub(crate) over_limit: u64,
}

/// The upper bounds of the classes of [`Latency`], in milliseconds: from an answer out of the same house to the longest
/// that a request may take. What takes longer than the last is in a class of its own.
pub(crate) const CLASSES_MS: [u64; 12] = [5, 10, 25, 50, 100, 250, 500, 1000, 2500, 5000, 10_000, 30_000];

/// How long the requests took that were fetched for others: from the request to its answer or its error. Those that
/// nobody waited for any more are not among them.
#[derive(Clone, Debug, Default)]
pub(crate) struct Latency {
    /// How many took no longer than a bound and longer than the one before; the last class has no bound.
    classes: [u64; CLASSES_MS.len() + 1],
    sum: Duration,
    /// Since it was last [taken](Self::take_slowest).
    slowest: Duration,
}

impl Latency {
    pub(crate) fn observe(&mut self, took: Duration) {
        let class = CLASSES_MS.iter().take_while(|bound| took > Duration::from_millis(**bound)).count();
        if let Some(class) = self.classes.get_mut(class) {
            *class += 1;
        }
        self.sum = self.sum.saturating_add(took);
        self.slowest = self.slowest.max(took);
    }

    pub(crate) fn count(&self) -> u64 {
        self.classes.iter().sum()
    }

    pub(crate) const fn sum(&self) -> Duration {
        self.sum
    }

    /// For each bound how many took no longer, in their order.
    pub(crate) fn cumulative(&self) -> impl Iterator<Item = (u64, u64)> + '_ {
        CLASSES_MS.iter().zip(&self.classes).scan(0, |all, (bound, class)| {
            *all += class;
            Some((*bound, *all))
        })
    }

    /// The lowest bound, in milliseconds, within which so many of a hundred were. `None` where there were none, or where
    /// the last bound is too low.
    pub(crate) fn within_ms(&self, percent: u64) -> Option<u64> {
        let count = self.count();
        let enough = |within: u64| count > 0 && within.saturating_mul(100) >= count.saturating_mul(percent);
        self.cumulative().find(|(_, within)| enough(*within)).map(|(bound, _)| bound)
    }

    pub(crate) fn take_slowest(&mut self) -> Duration {
        core::mem::take(&mut self.slowest)
    }
}

#[cfg(test)]
mod tests {
    use alloc::vec::Vec;

    use super::*;

    #[test]
    fn a_time_is_in_the_class_whose_bound_it_does_not_exceed() {
        let mut latency = Latency::default();
        for millis in [0, 5, 6, 30_000, 30_001] {
            latency.observe(Duration::from_millis(millis));
        }
        let cumulative: Vec<(u64, u64)> = latency.cumulative().collect();
        assert_eq!(cumulative[..3], [(5, 2), (10, 3), (25, 3)]);
        assert_eq!(cumulative.last(), Some(&(30_000, 4)));
        assert_eq!((latency.count(), latency.sum()), (5, Duration::from_millis(60_012)));
        assert_eq!(
            (latency.within_ms(40), latency.within_ms(50), latency.within_ms(95)),
            (Some(5), Some(10), None)
        );
        assert_eq!(latency.take_slowest(), Duration::from_millis(30_001));
        assert_eq!(latency.take_slowest(), Duration::ZERO);
        assert_eq!(Latency::default().within_ms(50), None);
    }
}
