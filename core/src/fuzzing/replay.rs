//! The replay window over the life of several processes.

use alloc::collections::BTreeSet;
use alloc::vec::Vec;
use core::time::Duration;

use arbitrary::Arbitrary;

use super::transparent::Transparent;
use super::{START, read};
use crate::data_plane::replay::{Before, SpendError, Spent, Ticket, serving_file};
use crate::data_plane::ticket::CLOCK_TOLERANCE;
use crate::time::Now;

#[derive(Debug, Default, Arbitrary)]
struct Script {
    actions: Vec<Action>,
}

#[derive(Debug, Arbitrary)]
enum Action {
    /// The ticket of that number, issued and expiring so many seconds from now.
    Spend {
        number: u8,
        issued: i8,
        lives: u8,
    },
    /// A ticket that was spent, once more.
    Again {
        nth: u8,
    },
    Wait {
        millis: u16,
    },
    /// This machine's clock is set; it is so much ahead of the issuer's then.
    Set {
        ahead: i8,
        /// Minutes, and not seconds.
        far: bool,
    },
    /// The process stops in good order and another begins.
    Restart,
    /// It is killed; its file is as it was, or damaged.
    Kill {
        damaged: bool,
    },
    /// The network says what time it is.
    Hear,
    /// It says so by a clock that is ahead.
    HearAhead {
        seconds: u32,
    },
}

/// No ticket is spent twice, whatever happens to the process and to its clock; and one that is certainly new is taken,
/// as soon as the network has said what time it is by a clock that is right.
pub fn replay(data: &[u8]) {
    let Script { actions } = read(data);
    let mut world = World {
        spent: Spent::new(START, Before::Never),
        true_time: START,
        ahead: 0,
        taken: Vec::new(),
        names: BTreeSet::new(),
        began: START.unix_seconds(),
        heard: 0,
        is_lost: false,
        is_certain: true,
    };
    for action in actions {
        world.act(action);
    }
}

struct World {
    spent: Spent,
    /// The time, by the issuer's clock.
    true_time: Now,
    /// How many seconds this machine's clock is ahead of it.
    ahead: i64,
    /// The name, issued, expires. A name is one ticket's.
    taken: Vec<(u8, u64, u64)>,
    names: BTreeSet<u8>,
    /// When the process began, by the issuer's clock.
    began: u64,
    /// The later of the two clocks when the network last said what time it is.
    heard: u64,
    /// Nobody has said what time it is since a kill.
    is_lost: bool,
    /// What is refused because of its age is old.
    is_certain: bool,
}

impl World {
    /// The time, by this machine's clock.
    fn now(&self) -> Now {
        let unix = self.true_time.unix_seconds().saturating_add_signed(self.ahead);
        let nanos = Duration::from_nanos(self.true_time.unix.subsec_nanos().into());
        Now { unix: Duration::from_secs(unix) + nanos, ..self.true_time }
    }

    fn act(&mut self, action: Action) {
        let (now, seconds) = (self.now(), self.true_time.unix_seconds());
        match action {
            Action::Spend { number, issued, lives } => {
                // An issuer's clock may be ahead by the tolerance, and it does not give a name twice.
                let issued = seconds.saturating_add_signed(issued.into()).min(seconds + CLOCK_TOLERANCE);
                if !self.names.contains(&number) {
                    self.spend((number, issued, issued + u64::from(lives)));
                }
            }
            Action::Again { nth } => {
                if let Some(ticket) = self.taken.get(usize::from(nth)).copied() {
                    self.spend(ticket);
                }
            }
            Action::Wait { millis } => {
                let passed = Duration::from_millis(millis.into());
                self.true_time.monotonic += passed;
                self.true_time.unix += passed;
            }
            Action::Set { ahead, far } => self.ahead = i64::from(ahead) * if far { 60 } else { 1 },
            Action::Restart => {
                self.spent = Spent::new(now, Before::from_file(&self.spent.file(now)));
                self.began = seconds;
                // What this clock takes for long expired goes by its age.
                self.is_certain &= self.ahead <= 0;
            }
            Action::Kill { damaged } => {
                let file = if damaged { Vec::from(*b"{\"clean\":true}") } else { serving_file() };
                self.spent = Spent::new(now, Before::from_file(&file));
                (self.began, self.is_lost) = (seconds, true);
            }
            Action::Hear => {
                self.spent.hear_time(seconds, now);
                self.heard = seconds.max(now.unix_seconds());
                (self.is_lost, self.is_certain) = (false, true);
            }
            Action::HearAhead { seconds: ahead } => {
                self.spent.hear_time(seconds + u64::from(ahead), now);
                self.is_certain &= !core::mem::take(&mut self.is_lost);
            }
        }
    }

    fn spend(&mut self, (number, issued, expires): (u8, u64, u64)) {
        let now = self.now();
        let seconds = now.unix_seconds();
        // Whatever `Token::verify` refuses does not come here.
        if issued > seconds + CLOCK_TOLERANCE || expires + CLOCK_TOLERANCE < seconds {
            return;
        }
        let was_taken = self.taken.contains(&(number, issued, expires));
        let ticket = Ticket::new(&Transparent, &alloc::format!("t{number}"), issued, expires);
        match self.spent.spend(&ticket, now) {
            Ok(()) => {
                assert!(!was_taken, "ticket {number} was spent twice");
                assert!(!self.is_lost, "ticket {number} was taken by who does not know the time");
                self.taken.push((number, issued, expires));
                self.names.insert(number);
            }
            Err(SpendError::Replayed) => assert!(was_taken, "ticket {number} was never spent"),
            Err(SpendError::BeforeStart) => {
                let old = self.began.saturating_add_signed(self.ahead).max(self.heard);
                let is_new = !self.is_lost && self.is_certain && issued > old + CLOCK_TOLERANCE + 1;
                assert!(was_taken || !is_new, "ticket {number} is new");
            }
        }
    }
}
