//! Spent tickets (protocol.md section 10): the replay window, which lives as long as the process, and what of it
//! outlives a restart.

use alloc::collections::{BTreeMap, VecDeque};
use alloc::string::String;
use alloc::vec::Vec;

use serde::{Deserialize, Serialize};

use super::ticket::CLOCK_TOLERANCE;
use crate::crypto::Crypto;
use crate::wire::hex;

/// Tickets kept; the oldest goes first.
pub const CAPACITY: usize = 100_000;

/// The largest file that is looked at: [`CAPACITY`] tickets have under 5 MB.
pub const MAX_FILE: usize = 8 * 1024 * 1024;

/// A ticket's `jti`, hashed: the names are the issuer's, and of any length.
type Name = [u8; 16];

/// Which tickets were spent.
///
/// A ticket lives about a minute, so the capacity is that of over a thousand requests a second; what falls out at the
/// old end has expired long before at any rate a node has.
#[derive(Debug)]
pub struct Spent {
    /// The first `iat` that is taken.
    first: u64,
    /// When each expires.
    names: BTreeMap<Name, u64>,
    order: VecDeque<Name>,
}

/// What is known of the process that served before this one.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Before {
    /// There is no file: none has served from this state directory.
    #[default]
    Never,
    /// It did not come to its end, or its file is damaged: any ticket issued before now may be spent.
    Unclean,
    /// It left this in good order.
    Clean(Left),
}

/// The content of `spent-tickets.json`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Left {
    /// `false` while a process serves, and after one that was killed.
    clean: bool,
    /// The tickets that had not expired: hashed name, expiry.
    tickets: Vec<(String, u64)>,
}

impl Before {
    /// What a file says.
    #[must_use]
    pub fn from_file(bytes: &[u8]) -> Self {
        if bytes.len() > MAX_FILE {
            return Self::Unclean;
        }
        match serde_json::from_slice::<Left>(bytes) {
            Ok(left) if left.clean && left.tickets.len() <= CAPACITY => Self::Clean(left),
            _ => Self::Unclean,
        }
    }
}

/// The file that says a process serves: whoever finds it knows that it did not come to its end.
#[must_use]
pub fn serving_file() -> Vec<u8> {
    // Serialising strings and numbers cannot fail.
    serde_json::to_vec(&Left::default()).unwrap_or_default()
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
    /// The window of a process that starts at that time (unix seconds).
    ///
    /// After a clean stop it goes on where it was. Else tickets from before the start are refused: those older than
    /// the tolerance of the clocks where nothing can have been spent within it, and, after a process that was killed,
    /// also those that an issuer whose clock is ahead may have issued before the start.
    #[must_use]
    pub fn new(started: u64, before: Before) -> Self {
        let mut spent = Self { first: 0, names: BTreeMap::new(), order: VecDeque::new() };
        match before {
            Before::Never => spent.first = started.saturating_sub(CLOCK_TOLERANCE),
            Before::Unclean => spent.first = started.saturating_add(CLOCK_TOLERANCE).saturating_add(1),
            Before::Clean(left) => {
                for (name, expires) in left.tickets {
                    let name = hex::decode(&name).and_then(|name| Name::try_from(name).ok());
                    // One that cannot be read is one that cannot be remembered.
                    let Some(name) = name else { return Self::new(started, Before::Unclean) };
                    spent.insert(name, expires);
                }
            }
        }
        spent
    }

    /// Spends the ticket of that name, issued and expiring at those times (unix seconds). To be called last, after
    /// every other check, so that a refusal burns nothing.
    ///
    /// # Errors
    /// [`SpendError`].
    pub fn spend<C: Crypto>(
        &mut self,
        crypto: &C,
        jti: &str,
        issued_at: u64,
        expires_at: u64,
    ) -> Result<(), SpendError> {
        if issued_at < self.first {
            return Err(SpendError::BeforeStart);
        }
        let hash = crypto.sha256(&[jti.as_bytes()]);
        let Some(name) = hash.first_chunk::<16>() else { return Err(SpendError::Replayed) };
        if self.insert(*name, expires_at) { Ok(()) } else { Err(SpendError::Replayed) }
    }

    fn insert(&mut self, name: Name, expires: u64) -> bool {
        if self.names.contains_key(&name) {
            return false;
        }
        self.names.insert(name, expires);
        self.order.push_back(name);
        if self.order.len() > CAPACITY {
            if let Some(oldest) = self.order.pop_front() {
                self.names.remove(&oldest);
            }
        }
        true
    }

    /// The file of a clean stop at that time: what a process that starts at once must know.
    #[must_use]
    pub fn file(&self, now: u64) -> Vec<u8> {
        let alive = |name: &&Name| {
            self.names.get(*name).is_some_and(|expires| expires.saturating_add(CLOCK_TOLERANCE) >= now)
        };
        let ticket = |name: &Name| (hex::encode(name), self.names.get(name).copied().unwrap_or(u64::MAX));
        let tickets = self.order.iter().filter(alive).map(ticket).collect();
        serde_json::to_vec(&Left { clean: true, tickets }).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::crypto::pure::Pure;
    use alloc::format;

    const START: u64 = 1000;

    fn spend(spent: &mut Spent, jti: &str, issued_at: u64) -> Result<(), SpendError> {
        spent.spend(&Pure, jti, issued_at, issued_at + 60)
    }

    #[test]
    fn a_ticket_is_spent_once() {
        let mut spent = Spent::new(START, Before::Never);
        assert_eq!(spend(&mut spent, "a", START), Ok(()));
        assert_eq!(spend(&mut spent, "a", START), Err(SpendError::Replayed));
        assert_eq!(spend(&mut spent, "b", START), Ok(()));
    }

    #[test]
    fn a_ticket_from_before_the_first_start_is_refused_and_not_burnt() {
        let mut spent = Spent::new(START, Before::Never);
        assert_eq!(spend(&mut spent, "a", START - 6), Err(SpendError::BeforeStart));
        assert_eq!(spend(&mut spent, "a", START - 5), Ok(()), "within the tolerance of the clocks");
    }

    #[test]
    fn a_killed_process_leaves_no_ticket_that_it_may_have_spent() {
        for file in [&serving_file()[..], b"", b"{", b"{\"clean\":true}", b"[]"] {
            let before = Before::from_file(file);
            assert_eq!(before, Before::Unclean, "{}", String::from_utf8_lossy(file));
            let mut spent = Spent::new(START, before);
            // An issuer's clock may be ahead by the tolerance.
            assert_eq!(spend(&mut spent, "a", START + 5), Err(SpendError::BeforeStart));
            assert_eq!(spend(&mut spent, "a", START + 6), Ok(()));
        }
    }

    #[test]
    fn a_clean_stop_hands_the_window_on() {
        let mut first = Spent::new(START, Before::Never);
        assert_eq!(spend(&mut first, "old", START), Ok(()));
        assert_eq!(spend(&mut first, "new", START + 60), Ok(()));
        let file = first.file(START + 70);
        let Before::Clean(left) = Before::from_file(&file) else { panic!("{file:?}") };
        assert_eq!(left.tickets.len(), 1, "what has expired is not carried on");
        let mut second = Spent::new(START + 70, Before::Clean(left));
        assert_eq!(spend(&mut second, "new", START + 60), Err(SpendError::Replayed));
        assert_eq!(spend(&mut second, "unspent", START + 60), Ok(()), "no ticket is lost by a restart");
    }

    #[test]
    fn a_name_that_cannot_be_read_makes_the_whole_file_worthless() {
        let file = br#"{"clean":true,"tickets":[["zz",9999]]}"#;
        let mut spent = Spent::new(START, Before::from_file(file));
        assert_eq!(spend(&mut spent, "a", START), Err(SpendError::BeforeStart));
    }

    #[test]
    fn the_window_is_bounded_and_forgets_the_oldest() {
        let mut spent = Spent::new(0, Before::Never);
        for i in 0..=CAPACITY {
            assert_eq!(spend(&mut spent, &format!("{i}"), 0), Ok(()));
        }
        assert_eq!((spent.names.len(), spent.order.len()), (CAPACITY, CAPACITY));
        assert_eq!(spend(&mut spent, "1", 0), Err(SpendError::Replayed));
        assert_eq!(spend(&mut spent, "0", 0), Ok(()), "the oldest was forgotten");
        assert!(spent.file(0).len() < MAX_FILE);
    }
}
