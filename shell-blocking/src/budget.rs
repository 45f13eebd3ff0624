//! One bound on the bytes of response bodies that a node holds, from the first byte read of a target to the last byte
//! written to the tunnel. Each response is bounded by itself; together they must fit into a small machine, and a
//! server that reads slowly must slow the fetches down and not fill the memory.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Bytes held at once.
const MAX_HELD: usize = 64 * 1024 * 1024;

/// A share leaves this part of its own size to others. The largest response a node takes by default still fits.
const LEFT_FOR_OTHERS: usize = 8;

/// What is held; clones count together.
#[derive(Clone, Debug, Default)]
pub struct Budget(Arc<AtomicUsize>);

/// A share of the bound, given back when dropped.
#[derive(Debug)]
pub struct Share {
    budget: Budget,
    held: usize,
}

impl Budget {
    /// A share that holds nothing yet.
    #[must_use]
    pub fn share(&self) -> Share {
        Share { budget: self.clone(), held: 0 }
    }

    /// A share of bytes that are there whatever the bound says: they count against what comes next.
    #[must_use]
    pub fn forced(&self, bytes: usize) -> Share {
        self.0.fetch_add(bytes, Ordering::Relaxed);
        Share { budget: self.clone(), held: bytes }
    }
}

impl Share {
    /// Holds `bytes` in all. `false`, and nothing more held, when others hold too much.
    #[must_use]
    pub fn hold(&mut self, bytes: usize) -> bool {
        let more = bytes.saturating_sub(self.held);
        if more == 0 {
            return true;
        }
        let held = &self.budget.0;
        // The larger a share, the more it leaves to others: a few targets with large responses that never end must not
        // keep every small one out.
        let room = MAX_HELD.saturating_sub(bytes / LEFT_FOR_OTHERS);
        if held.fetch_add(more, Ordering::Relaxed).saturating_add(more) > room {
            held.fetch_sub(more, Ordering::Relaxed);
            return false;
        }
        self.held += more;
        true
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        self.budget.0.fetch_sub(self.held, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use consensus_core::limits::Limits;

    use super::*;

    #[test]
    fn large_shares_leave_room_for_small_ones() {
        let budget = Budget::default();
        let mut large: Vec<Share> = (0..16).map(|_| budget.share()).collect();
        // All grow until none can any more.
        let mut bytes = 0;
        while large.iter_mut().any(|share| share.hold(bytes + 4096)) {
            bytes += 4096;
        }
        let mut small: Vec<Share> = (0..16).map(|_| budget.share()).collect();
        assert!(small.iter_mut().all(|share| share.hold(16 * 1024)));
        drop((large, small));
        assert!(budget.share().hold(Limits::default().max_response_body), "one large response fits");
    }

    #[test]
    fn shares_are_bounded_together_and_given_back() {
        let budget = Budget::default();
        let (mut first, mut second) = (budget.share(), budget.clone().share());
        assert!(first.hold(1024));
        let forced = budget.forced(MAX_HELD);
        assert!(!second.hold(1), "what waits to be sent keeps new bodies out");
        assert!(first.hold(1024), "what is held stays held");
        drop(forced);
        assert!(second.hold(1));
    }
}
