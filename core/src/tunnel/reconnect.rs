//! When to try again (protocol.md section 9): 1 s, doubling to 30 s, plus up to 0.5 s of jitter; from the start
//! again after a connection.

use core::time::Duration;

use crate::crypto::Drbg;
use crate::limits::{RECONNECT_FIRST, RECONNECT_JITTER, RECONNECT_MAX};

/// The schedule, and where in it the node is.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Backoff {
    failures: u32,
}

impl Backoff {
    /// The number of the attempt that comes next, from 1.
    pub(crate) const fn attempt(self) -> u32 {
        self.failures.saturating_add(1)
    }

    /// One more failure: how long to wait for the next attempt.
    pub(crate) fn next_delay(&mut self, rng: &mut Drbg) -> Duration {
        let doubled = RECONNECT_FIRST.saturating_mul(1 << self.failures.min(16));
        self.failures = self.failures.saturating_add(1);
        let jitter_bound = u64::try_from(RECONNECT_JITTER.as_millis()).unwrap_or(u64::MAX);
        doubled.min(RECONNECT_MAX) + Duration::from_millis(rng.below(jitter_bound.saturating_add(1)))
    }

    /// A session was established.
    pub(crate) const fn reset(&mut self) {
        self.failures = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_double_from_one_second_to_thirty_with_half_a_second_of_jitter() {
        let mut rng = Drbg::new([1; 32]);
        let mut backoff = Backoff::default();
        for expected in [1, 2, 4, 8, 16, 30, 30, 30] {
            let delay = backoff.next_delay(&mut rng);
            let least = Duration::from_secs(expected);
            assert!(delay >= least && delay <= least + Duration::from_millis(500), "{expected}: {delay:?}");
        }
        backoff.reset();
        assert_eq!(backoff.attempt(), 1);
        assert!(backoff.next_delay(&mut rng) <= Duration::from_millis(1500));
    }

    #[test]
    fn the_longest_outage_does_not_overflow() {
        let mut backoff = Backoff { failures: u32::MAX };
        assert!(backoff.next_delay(&mut Drbg::new([1; 32])) <= Duration::from_millis(30_500));
    }

    #[test]
    fn two_nodes_do_not_come_back_in_the_same_instant() {
        let delay = |seed| Backoff::default().next_delay(&mut Drbg::new([seed; 32]));
        let mut delays: alloc::vec::Vec<_> = (0..32).map(delay).collect();
        delays.sort_unstable();
        delays.dedup();
        assert!(delays.len() > 16, "{delays:?}");
    }
}
