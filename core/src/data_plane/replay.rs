//! Spent tickets (protocol.md section 10): the replay window, which lives as long as the process, and what of it
//! outlives a restart.

use alloc::collections::VecDeque;
use alloc::string::{String, ToString as _};
use alloc::vec::Vec;
use core::hash::{BuildHasherDefault, Hasher};

use hashbrown::HashMap;
use serde::{Deserialize, Serialize};

use super::ticket::CLOCK_TOLERANCE;
use crate::crypto::Crypto;
use crate::time::Now;
use crate::wire::hex;

/// Tickets kept; the oldest goes first.
pub const CAPACITY: usize = 100_000;

/// How long after its expiry a ticket is still handed on by name, in seconds. What is not handed on is refused by its
/// age, and this is how far the clock may be ahead at a stop without refusing what is still good.
const KEPT: u64 = 300;

/// The largest file that is looked at: [`CAPACITY`] tickets have under 5 MB.
pub const MAX_FILE: usize = 8 * 1024 * 1024;

/// A ticket's `jti`, hashed: the names are the issuer's, and of any length.
type Name = [u8; 16];

/// A name is a hash already: some of its bytes are all that a table wants of it. Who could choose names whose bytes
/// agree would have to be the issuer.
#[derive(Clone, Copy, Debug, Default)]
struct FirstBytes(u64);

impl Hasher for FirstBytes {
    fn write(&mut self, bytes: &[u8]) {
        if let Some(first) = bytes.first_chunk() {
            self.0 = u64::from_ne_bytes(*first);
        }
    }

    // An array says its length as well.
    fn write_usize(&mut self, _: usize) {}

    fn finish(&self) -> u64 {
        self.0
    }
}

/// A ticket to be spent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ticket {
    name: Name,
    issued_at: u64,
    expires_at: u64,
}

impl Ticket {
    /// The ticket of that `jti`, issued and expiring at those times (unix seconds).
    pub fn new<C: Crypto>(crypto: &C, jti: &str, issued_at: u64, expires_at: u64) -> Self {
        let mut name = Name::default();
        name.copy_from_slice(&crypto.sha256(&[jti.as_bytes()])[..16]);
        Self { name, issued_at, expires_at }
    }
}

/// Which tickets were spent.
///
/// A ticket lives about a minute, so the capacity is that of over a thousand requests a second; what falls out at the
/// old end has expired long before at any rate a node has.
#[derive(Debug)]
pub struct Spent {
    /// The first `iat` that is taken, by the clock as it was at the start.
    first: u64,
    /// The first `iat` that is taken, by the issuer's clock: nobody sets that.
    floor: u64,
    /// The process before this one did not come to its end, and the issuer's clock is not known yet.
    is_unclean: bool,
    started: Now,
    /// When each expires.
    names: HashMap<Name, u64, BuildHasherDefault<FirstBytes>>,
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
    /// The first `iat` that was taken: what the process before this one refused, the next one refuses too.
    #[serde(default)]
    first: u64,
    /// The same by the issuer's clock: what expired long ago is not handed on by name.
    #[serde(default)]
    floor: u64,
    /// The tickets that had not expired, or not long ago: hashed name, expiry.
    tickets: Vec<(String, u64)>,
}

impl Left {
    /// The file that says it.
    pub(crate) fn to_file(&self) -> Vec<u8> {
        // Serialising strings and numbers cannot fail.
        serde_json::to_vec(self).unwrap_or_default()
    }
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

/// Why a file is no list of spent tickets, whole or that of a process that serves; `None` where it is one.
#[must_use]
pub fn damage(bytes: &[u8]) -> Option<String> {
    match serde_json::from_slice::<Left>(bytes) {
        Ok(left) if bytes.len() <= MAX_FILE && left.tickets.len() <= CAPACITY => None,
        Ok(_) => Some("it is larger than any".to_string()),
        Err(error) => Some(error.to_string()),
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
    /// The window of a process that starts at that time.
    ///
    /// After a clean stop it goes on where it was, with what was refused then. Else tickets from before the start are refused: those older than
    /// the tolerance of the clocks where nothing can have been spent within it, and, after a process that was killed,
    /// also those that an issuer whose clock is ahead may have issued before the start. As this machine's clock may have
    /// been behind, none at all is taken then before [`hear_time`](Self::hear_time).
    #[must_use]
    pub fn new(started: Now, before: Before) -> Self {
        let is_unclean = before == Before::Unclean;
        let (names, order) = (HashMap::default(), VecDeque::new());
        let mut spent = Self { first: 0, floor: 0, is_unclean, started, names, order };
        let seconds = started.unix_seconds();
        let after = seconds.saturating_add(CLOCK_TOLERANCE).saturating_add(1);
        match before {
            Before::Never => spent.first = seconds.saturating_sub(CLOCK_TOLERANCE),
            Before::Unclean => spent.first = after,
            Before::Clean(left) => {
                // No later than a killed process would have it: the clock may have been set back since.
                spent.first = left.first.min(after);
                spent.floor = left.floor;
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

    /// How many tickets are remembered.
    pub(crate) fn len(&self) -> usize {
        self.order.len()
    }

    /// The issuer has said what time it is, in unix seconds. What it issued before that may have been spent by a process
    /// that was killed, whatever this machine's clock said of it.
    ///
    /// An issuer whose clock was far ahead once does not shut the window for good: nothing that was spent before now is
    /// newer than now, and one of the two clocks is right about that.
    pub fn hear_time(&mut self, issuer_seconds: u64, now: Now) {
        let after = |seconds: u64| seconds.saturating_add(CLOCK_TOLERANCE).saturating_add(1);
        if core::mem::take(&mut self.is_unclean) {
            self.floor = self.floor.max(after(issuer_seconds));
        } else {
            self.floor = self.floor.min(after(issuer_seconds.max(now.unix_seconds())));
        }
    }

    /// The first `iat` that is taken, by the clock as it is now: it may have been set since the start.
    fn first(&self, now: Now) -> u64 {
        let passed = now.monotonic.saturating_sub(self.started.monotonic);
        let expected = self.started.unix.saturating_add(passed);
        match now.unix.checked_sub(expected) {
            // A part of a second counts as one: rather refuse too much.
            Some(ahead) => self.first.saturating_add(ahead.as_secs() + u64::from(ahead.subsec_nanos() > 0)),
            None => self.first.saturating_sub(expected.saturating_sub(now.unix).as_secs()),
        }
    }

    /// Spends a ticket. To be called last, after every other check, so that a refusal burns nothing.
    ///
    /// # Errors
    /// [`SpendError`].
    pub fn spend(&mut self, ticket: &Ticket, now: Now) -> Result<(), SpendError> {
        if self.is_unclean || ticket.issued_at < self.first(now).max(self.floor) {
            return Err(SpendError::BeforeStart);
        }
        if self.insert(ticket.name, ticket.expires_at) { Ok(()) } else { Err(SpendError::Replayed) }
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

    /// The file of a clean stop at that time: what a process that starts at once must know. The clock may be wrong, and
    /// set right before that: every ticket is refused by its name or by its age, whatever the time is.
    #[must_use]
    pub fn file(&self, now: Now) -> Vec<u8> {
        if self.is_unclean {
            // What the process before spent is as unknown as it was.
            return serving_file();
        }
        let seconds = now.unix_seconds();
        let (mut tickets, mut floor) = (Vec::new(), self.floor);
        for name in &self.order {
            let expires = self.names.get(name).copied().unwrap_or(u64::MAX);
            if expires.saturating_add(KEPT) >= seconds {
                tickets.push((hex::encode(name), expires));
            } else {
                // None is taken that was issued after its expiry, but for the tolerance of the clocks, both ways.
                floor = floor.max(expires.saturating_add(2 * CLOCK_TOLERANCE).saturating_add(1));
            }
        }
        let left = Left { clean: true, first: self.first(now), floor, tickets };
        serde_json::to_vec(&left).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::crypto::pure::Pure;
    use alloc::format;
    use core::time::Duration;

    const START: u64 = 1000;

    /// That many seconds, by a clock that nobody sets.
    fn at(seconds: u64) -> Now {
        Now { monotonic: Duration::from_secs(seconds), unix: Duration::from_secs(seconds) }
    }

    fn spend(spent: &mut Spent, jti: &str, issued_at: u64) -> Result<(), SpendError> {
        spent.spend(&Ticket::new(&Pure, jti, issued_at, issued_at + 60), at(issued_at.max(START)))
    }

    #[test]
    fn a_ticket_is_spent_once() {
        let mut spent = Spent::new(at(START), Before::Never);
        assert_eq!(spend(&mut spent, "a", START), Ok(()));
        assert_eq!(spend(&mut spent, "a", START), Err(SpendError::Replayed));
        assert_eq!(spend(&mut spent, "b", START), Ok(()));
    }

    #[test]
    fn a_ticket_from_before_the_first_start_is_refused_and_not_burnt() {
        let mut spent = Spent::new(at(START), Before::Never);
        assert_eq!(spend(&mut spent, "a", START - 6), Err(SpendError::BeforeStart));
        assert_eq!(spend(&mut spent, "a", START - 5), Ok(()), "within the tolerance of the clocks");
    }

    #[test]
    fn a_killed_process_leaves_no_ticket_that_it_may_have_spent() {
        for file in [&serving_file()[..], b"", b"{", b"{\"clean\":true}", b"[]"] {
            let before = Before::from_file(file);
            assert_eq!(before, Before::Unclean, "{}", String::from_utf8_lossy(file));
            let mut spent = Spent::new(at(START), before);
            assert_eq!(spend(&mut spent, "a", START + 60), Err(SpendError::BeforeStart), "what time is it?");
            spent.hear_time(START, at(START));
            // An issuer's clock may be ahead by the tolerance.
            assert_eq!(spend(&mut spent, "a", START + 5), Err(SpendError::BeforeStart));
            assert_eq!(spend(&mut spent, "a", START + 6), Ok(()));
        }
    }

    #[test]
    fn a_clean_stop_hands_the_window_on() {
        let mut first = Spent::new(at(START), Before::Never);
        assert_eq!(spend(&mut first, "old", START), Ok(()));
        assert_eq!(spend(&mut first, "new", START + 80), Ok(()));
        let file = first.file(at(START + 60 + KEPT + 10));
        let Before::Clean(left) = Before::from_file(&file) else { panic!("{file:?}") };
        assert_eq!(left.tickets.len(), 1, "what expired long ago is not carried on by name");
        let mut second = Spent::new(at(START + 70), Before::Clean(left));
        assert_eq!(spend(&mut second, "old", START), Err(SpendError::BeforeStart), "but by its age");
        assert_eq!(spend(&mut second, "new", START + 80), Err(SpendError::Replayed));
        assert_eq!(spend(&mut second, "unspent", START + 80), Ok(()), "no ticket is lost by a restart");
    }

    #[test]
    fn a_clean_stop_soon_after_a_killed_process_does_not_open_its_window() {
        let mut unclean = Spent::new(at(START), Before::Unclean);
        assert_eq!(
            Before::from_file(&unclean.file(at(START + 2))),
            Before::Unclean,
            "it has learned nothing"
        );
        unclean.hear_time(START + 1, at(START + 1));
        let mut next = Spent::new(at(START + 3), Before::from_file(&unclean.file(at(START + 2))));
        assert_eq!(spend(&mut next, "a", START - 20), Err(SpendError::BeforeStart), "it may have been spent");
        assert_eq!(spend(&mut next, "a", START + 6), Err(SpendError::BeforeStart));
        assert_eq!(spend(&mut next, "a", START + 7), Ok(()));
    }

    #[test]
    fn a_clock_that_was_wrong_at_a_restart_brings_no_ticket_back() {
        let hour = Duration::from_secs(3600);
        let set = |at: Now, hours: i8| Now {
            unix: match hours {
                1.. => at.unix + hour,
                0 => at.unix,
                ..0 => at.unix.saturating_sub(hour),
            },
            ..at
        };
        for (ahead_at_stop, ahead_at_start) in [(1, 0), (0, 1), (1, -1), (-1, 1), (0, -1), (-1, 0)] {
            let mut first = Spent::new(at(START + 7200), Before::Never);
            assert_eq!(spend(&mut first, "a", START + 7200), Ok(()));
            let stop = set(at(START + 7210), ahead_at_stop);
            let start = set(at(START + 7211), ahead_at_start);
            let mut second = Spent::new(start, Before::from_file(&first.file(stop)));
            let ticket = Ticket::new(&Pure, "a", START + 7200, START + 7260);
            for now in [at(START + 7220), set(at(START + 7220), 1), set(at(START + 7220), -1)] {
                assert!(second.spend(&ticket, now).is_err(), "{ahead_at_stop} {ahead_at_start}");
            }
        }
        // Killed, and started by a clock that is behind: what was spent was not issued in the future.
        let mut killed = Spent::new(at(START - 60), Before::Unclean);
        killed.hear_time(START, at(START - 60));
        assert_eq!(spend(&mut killed, "a", START), Err(SpendError::BeforeStart));
    }

    #[test]
    fn a_clock_that_is_set_moves_the_window_with_it() {
        let an_hour = Duration::from_secs(3600);
        let now = |unix| Now { unix, ..at(START + 30) };
        let spend_at = |now: Now, before_now| {
            let issued_at = now.unix_seconds() - before_now;
            let mut spent = Spent::new(at(START), Before::Unclean);
            spent.hear_time(now.unix_seconds() - 30, now);
            (spent.spend(&Ticket::new(&Pure, "a", issued_at, issued_at + 60), now), spent.file(now))
        };
        let ahead = now(at(START + 30).unix + an_hour);
        assert_eq!(
            spend_at(ahead, 31).0,
            Err(SpendError::BeforeStart),
            "a clock that was behind at the start"
        );
        assert_eq!(spend_at(ahead, 20).0, Ok(()));
        let behind = now(at(START + 30 - 600).unix);
        assert_eq!(spend_at(behind, 31).0, Err(SpendError::BeforeStart));
        assert_eq!(spend_at(behind, 20).0, Ok(()), "a clock that was ahead at the start");
        let mut next = Spent::new(ahead, Before::from_file(&spend_at(ahead, 31).1));
        let issued_at = ahead.unix_seconds() - 31;
        let replayed = next.spend(&Ticket::new(&Pure, "a", issued_at, issued_at + 60), ahead);
        assert_eq!(replayed, Err(SpendError::BeforeStart), "the next process knows the clock as it was set");
    }

    #[test]
    fn a_server_whose_clock_was_wrong_once_locks_nobody_out_for_ever() {
        for far in [START + 3600, u64::MAX] {
            let mut spent = Spent::new(at(START), Before::Unclean);
            spent.hear_time(far, at(START));
            assert_eq!(spend(&mut spent, "a", START + 20), Err(SpendError::BeforeStart));
            // What is left behind in good order is no better than what it was told.
            let file = spent.file(at(START + 30));
            let mut next = Spent::new(at(START + 31), Before::from_file(&file));
            assert_eq!(spend(&mut next, "a", START + 40), Err(SpendError::BeforeStart));
            for mut spent in [spent, next] {
                spent.hear_time(START + 50, at(START + 50));
                assert_eq!(spend(&mut spent, "a", START + 55), Err(SpendError::BeforeStart));
                assert_eq!(spend(&mut spent, "a", START + 56), Ok(()));
            }
        }
    }

    #[test]
    fn one_clock_that_is_behind_opens_no_window() {
        let mut spent = Spent::new(at(START), Before::Unclean);
        spent.hear_time(START, at(START));
        spent.hear_time(0, at(START + 10));
        assert_eq!(spend(&mut spent, "a", START + 5), Err(SpendError::BeforeStart), "the server's");
        spent.hear_time(START + 10, at(START - 600));
        assert_eq!(spend(&mut spent, "a", START + 5), Err(SpendError::BeforeStart), "this machine's");
        assert_eq!(spend(&mut spent, "a", START + 6), Ok(()));
    }

    #[test]
    fn a_name_that_cannot_be_read_makes_the_whole_file_worthless() {
        let file = br#"{"clean":true,"tickets":[["zz",9999]]}"#;
        let mut spent = Spent::new(at(START), Before::from_file(file));
        assert_eq!(spend(&mut spent, "a", START), Err(SpendError::BeforeStart));
    }

    #[test]
    fn the_window_is_bounded_and_forgets_the_oldest() {
        let mut spent = Spent::new(at(0), Before::Never);
        for i in 0..=CAPACITY {
            assert_eq!(spend(&mut spent, &format!("{i}"), 0), Ok(()));
        }
        assert_eq!((spent.names.len(), spent.order.len()), (CAPACITY, CAPACITY));
        assert_eq!(spend(&mut spent, "1", 0), Err(SpendError::Replayed));
        assert_eq!(spend(&mut spent, "0", 0), Ok(()), "the oldest was forgotten");
        assert!(spent.file(at(0)).len() < MAX_FILE);
    }
}
