//! Spent tickets (protocol.md section 10): a cache of names that lives as long as the process.

use alloc::collections::{BTreeSet, VecDeque};
use alloc::string::String;

/// Names kept; the oldest goes first.
pub const CAPACITY: usize = 100_000;

/// Which tickets were spent.
///
/// A ticket lives about a minute, so the capacity is that of over a thousand requests a second; what falls out at the
/// old end has expired long before at any rate a node has. A restart forgets the names, so tickets from before the
/// start are refused instead ([`Spent::spend`]).
#[derive(Debug)]
pub struct Spent {
    started: u64,
    names: BTreeSet<String>,
    order: VecDeque<String>,
}

/// Why a ticket cannot be spent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SpendError {
    /// It was spent.
    Replayed,
    /// It was issued before this process started: it may have been spent then.
    BeforeStart,
}

impl Spent {
    /// An empty cache of a process that started at that time (unix seconds).
    #[must_use]
    pub const fn new(started: u64) -> Self {
        Self { started, names: BTreeSet::new(), order: VecDeque::new() }
    }

    /// Spends the ticket of that name, issued at that time (unix seconds). To be called last, after every other
    /// check, so that a refusal burns nothing.
    ///
    /// # Errors
    /// [`SpendError`].
    pub fn spend(&mut self, jti: &str, issued_at: u64) -> Result<(), SpendError> {
        if issued_at.saturating_add(super::ticket::CLOCK_TOLERANCE) < self.started {
            return Err(SpendError::BeforeStart);
        }
        if !self.names.insert(jti.into()) {
            return Err(SpendError::Replayed);
        }
        self.order.push_back(jti.into());
        if self.order.len() > CAPACITY {
            if let Some(oldest) = self.order.pop_front() {
                self.names.remove(&oldest);
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::format;

    #[test]
    fn a_ticket_is_spent_once() {
        let mut spent = Spent::new(100);
        assert_eq!(spent.spend("a", 100), Ok(()));
        assert_eq!(spent.spend("a", 100), Err(SpendError::Replayed));
        assert_eq!(spent.spend("b", 100), Ok(()));
    }

    #[test]
    fn a_ticket_from_before_the_start_is_refused_and_not_burnt() {
        let mut spent = Spent::new(100);
        assert_eq!(spent.spend("a", 94), Err(SpendError::BeforeStart));
        assert_eq!(spent.spend("a", 95), Ok(()), "within the tolerance of the clocks");
    }

    #[test]
    fn the_cache_is_bounded_and_forgets_the_oldest() {
        let mut spent = Spent::new(0);
        for i in 0..=CAPACITY {
            assert_eq!(spent.spend(&format!("{i}"), 0), Ok(()));
        }
        assert_eq!((spent.names.len(), spent.order.len()), (CAPACITY, CAPACITY));
        assert_eq!(spent.spend("1", 0), Err(SpendError::Replayed));
        assert_eq!(spent.spend("0", 0), Ok(()), "the oldest was forgotten");
    }
}
