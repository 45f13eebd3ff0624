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
    /// The clock is set on.
    Set {
        seconds: u16,
    },
    /// The process stops in good order and another begins.
    Restart,
    /// It is killed; its file is as it was, or damaged.
    Kill {
        damaged: bool,
    },
    /// The network says what time it is.
    Hear,
}

/// No ticket is spent twice while it lives, whatever happens to the process; and one that is certainly new is taken.
pub fn replay(data: &[u8]) {
    let Script { actions } = read(data);
    let mut now = START;
    let mut spent = Spent::new(now, Before::Never);
    // The name, issued, expires. A name is one ticket's.
    let mut taken: Vec<(u8, u64, u64)> = Vec::new();
    let mut names: BTreeSet<u8> = BTreeSet::new();
    // From when on a ticket cannot have been issued before the process began.
    let mut fresh = START.unix_seconds();
    // Whether nobody has said what time it is since a kill.
    let mut is_lost = false;
    for action in actions {
        match action {
            Action::Spend { number, issued, lives } => {
                let issued = now.unix_seconds().saturating_add_signed(issued.into());
                spend(
                    &mut spent,
                    now,
                    (number, issued, issued + u64::from(lives)),
                    &mut taken,
                    &mut names,
                    (!is_lost).then_some(fresh),
                );
            }
            Action::Again { nth } => {
                if let Some(ticket) = taken.get(usize::from(nth)).copied() {
                    spend(&mut spent, now, ticket, &mut taken, &mut names, (!is_lost).then_some(fresh));
                }
            }
            Action::Wait { millis } => {
                let passed = Duration::from_millis(millis.into());
                now = Now { monotonic: now.monotonic + passed, unix: now.unix + passed };
            }
            Action::Set { seconds } => {
                now.unix += Duration::from_secs(seconds.into());
                // What is refused moves with the clock.
                fresh = fresh.max(now.unix_seconds());
            }
            Action::Restart => {
                spent = Spent::new(now, Before::from_file(&spent.file(now)));
                // What was refused before goes on being refused.
                fresh = fresh.max(now.unix_seconds());
            }
            Action::Kill { damaged } => {
                let file = if damaged { Vec::from(*b"{\"clean\":true}") } else { serving_file() };
                spent = Spent::new(now, Before::from_file(&file));
                (fresh, is_lost) = (now.unix_seconds(), true);
            }
            Action::Hear => {
                spent.hear_time(now.unix_seconds());
                if core::mem::take(&mut is_lost) {
                    fresh = fresh.max(now.unix_seconds());
                }
            }
        }
    }
}

fn spend(
    spent: &mut Spent,
    now: Now,
    (number, issued, expires): (u8, u64, u64),
    taken: &mut Vec<(u8, u64, u64)>,
    names: &mut BTreeSet<u8>,
    fresh: Option<u64>,
) {
    let seconds = now.unix_seconds();
    // Whatever `Token::verify` refuses does not come here.
    if issued > seconds + CLOCK_TOLERANCE || expires + CLOCK_TOLERANCE < seconds {
        return;
    }
    let was_taken = taken.contains(&(number, issued, expires));
    let is_other = !was_taken && names.contains(&number);
    if is_other {
        // An issuer does not give a name twice.
        return;
    }
    let ticket = Ticket::new(&Transparent, &alloc::format!("t{number}"), issued, expires);
    match spent.spend(&ticket, now) {
        Ok(()) => {
            assert!(!was_taken, "ticket {number} was spent twice");
            assert!(fresh.is_some(), "ticket {number} was taken by who does not know the time");
            taken.push((number, issued, expires));
            names.insert(number);
        }
        Err(SpendError::Replayed) => assert!(was_taken, "ticket {number} was never spent"),
        Err(SpendError::BeforeStart) => {
            let is_new = fresh.is_some_and(|fresh| issued > fresh + CLOCK_TOLERANCE + 1);
            assert!(was_taken || !is_new, "ticket {number} is new");
        }
    }
}
