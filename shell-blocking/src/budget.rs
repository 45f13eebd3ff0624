//! One bound on the bytes of response bodies that a process holds, from the first byte read of a target to the last
//! byte written to the tunnel. Each response is bounded by itself; together they must fit into a small machine, and a
//! server that reads slowly must slow the fetches down and not fill the memory.

use std::sync::atomic::{AtomicUsize, Ordering};

/// Bytes held at once.
const MAX_HELD: usize = 64 * 1024 * 1024;

static HELD: AtomicUsize = AtomicUsize::new(0);

/// A share of the bound, given back when dropped.
#[derive(Debug, Default)]
pub struct Share(usize);

impl Share {
    /// Holds `bytes` in all. `false`, and nothing more held, when others hold too much.
    #[must_use]
    pub fn hold(&mut self, bytes: usize) -> bool {
        let more = bytes.saturating_sub(self.0);
        if HELD.fetch_add(more, Ordering::Relaxed).saturating_add(more) > MAX_HELD {
            HELD.fetch_sub(more, Ordering::Relaxed);
            return false;
        }
        self.0 += more;
        true
    }

    /// A share of bytes that are there whatever the bound says: they count against what comes next.
    #[must_use]
    pub fn forced(bytes: usize) -> Self {
        HELD.fetch_add(bytes, Ordering::Relaxed);
        Self(bytes)
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        HELD.fetch_sub(self.0, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_are_bounded_together_and_given_back() {
        let mut first = Share::default();
        assert!(first.hold(1024));
        let forced = Share::forced(MAX_HELD);
        let mut second = Share::default();
        assert!(!second.hold(1), "what waits to be sent keeps new bodies out");
        assert!(first.hold(1024), "what is held stays held");
        drop(forced);
        assert!(second.hold(1));
    }
}
