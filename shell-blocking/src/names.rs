//! What names resolve to, for both shells: strangers' names are looked up once for all who ask at the same time, and
//! what came of it is kept for a short time (protocol.md section 11).
//!
//! All addresses are kept, and nobody has judged them: the guard does, at every use.

use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::net::{IpAddr, ToSocketAddrs as _};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Instant;

use consensus_core::guard::{RESOLVED_FOR, UNRESOLVED_FOR};
use consensus_core::io::Audience;

/// Look-ups of strangers' names at once. Each holds a thread until the system's resolver is done with it, which may be
/// long after nobody waits for it any more.
const MAX_LOOK_UPS: usize = 32;

/// Names that are kept.
const MAX_KEPT: usize = 1024;

/// Addresses of one name that are kept. A name with more is looked up each time: leaving some out would let it past
/// the guard with the others.
const MAX_ADDRESSES: usize = 64;

/// Who may wait for one look-up.
const MAX_WAITING: usize = 1024;

/// A resolver's needs.
const STACK: usize = 256 * 1024;

/// All addresses of a name, or what the system says.
pub type Answer = Result<Arc<[IpAddr]>, String>;

type Tell = Box<dyn FnOnce(Answer) + Send>;

/// Look-ups; clones share them.
#[derive(Clone)]
pub struct Names(Arc<Inner>);

struct Inner {
    resolve: Box<dyn Fn(&str) -> Answer + Send + Sync>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    kept: Kept,
    /// Who waits for the look-ups under way.
    waiting: BTreeMap<(Audience, String), Vec<Tell>>,
}

impl Default for Names {
    fn default() -> Self {
        Self::with_resolver(|host| {
            let found = (host, 0).to_socket_addrs();
            let found = found.map(|found| found.map(|address| address.ip()).collect());
            found.map_err(|error: io::Error| error.to_string())
        })
    }
}

impl fmt::Debug for Names {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Names").finish_non_exhaustive()
    }
}

impl Names {
    /// Asks `resolve` in place of the system's resolver. It may take its time.
    pub fn with_resolver(resolve: impl Fn(&str) -> Answer + Send + Sync + 'static) -> Self {
        Self(Arc::new(Inner { resolve: Box::new(resolve), state: Mutex::default() }))
    }

    /// What is known of a name. The operator's own names are not kept: they are few, and they may change at any time.
    #[must_use]
    pub fn known(&self, host: &str, audience: Audience) -> Option<Answer> {
        match audience {
            Audience::Operator => None,
            Audience::Stranger => self.state().kept.get(host, Instant::now()),
        }
    }

    /// Looks a name up; `tell` gets what comes of it, from another thread or before this returns.
    pub fn look_up(&self, host: &str, audience: Audience, tell: impl FnOnce(Answer) + Send + 'static) {
        if let Some(answer) = self.known(host, audience) {
            return tell(answer);
        }
        let key = (audience, host.to_owned());
        let mut state = self.state();
        let others = state.waiting.keys().filter(|(audience, _)| *audience == Audience::Stranger).count();
        let refusal = match state.waiting.get_mut(&key) {
            Some(waiting) if waiting.len() < MAX_WAITING => return waiting.push(Box::new(tell)),
            Some(_) => "too many requests wait for this name",
            None if audience == Audience::Stranger && others >= MAX_LOOK_UPS => {
                "too many names are being looked up"
            }
            None => {
                state.waiting.insert(key.clone(), vec![Box::new(tell)]);
                drop(state);
                return self.begin(key);
            }
        };
        drop(state);
        tell(Err(refusal.to_owned()));
    }

    /// Asks the resolver, on a thread of its own: it cannot be told to hurry or to stop.
    fn begin(&self, key: (Audience, String)) {
        let (names, asked) = (self.clone(), key.clone());
        let ask = move || {
            let answer = (names.0.resolve)(&asked.1);
            names.resolved(&asked, answer, asked.0 == Audience::Stranger);
        };
        let thread = thread::Builder::new().name("look-up".to_owned()).stack_size(STACK).spawn(ask);
        if let Err(error) = thread {
            self.resolved(&key, Err(error.to_string()), false);
        }
    }

    fn resolved(&self, key: &(Audience, String), answer: Answer, keep: bool) {
        let mut state = self.state();
        if keep {
            state.kept.put(&key.1, answer.clone(), Instant::now());
        }
        let waiting = state.waiting.remove(key).unwrap_or_default();
        drop(state);
        for tell in waiting {
            tell(answer.clone());
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Nothing under this lock can leave it half-changed.
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What is kept, each until its time.
#[derive(Default)]
struct Kept(BTreeMap<String, (Answer, Instant)>);

impl Kept {
    fn get(&self, host: &str, now: Instant) -> Option<Answer> {
        self.0.get(host).filter(|(_, until)| now < *until).map(|(answer, _)| answer.clone())
    }

    fn put(&mut self, host: &str, answer: Answer, now: Instant) {
        let time = if answer.is_ok() { RESOLVED_FOR } else { UNRESOLVED_FOR };
        if answer.as_ref().is_ok_and(|addresses| addresses.len() > MAX_ADDRESSES) {
            self.0.remove(host);
            return;
        }
        if self.0.len() >= MAX_KEPT && !self.0.contains_key(host) {
            self.0.retain(|_, (_, until)| now < *until);
        }
        if self.0.len() >= MAX_KEPT && !self.0.contains_key(host) {
            let first = self.0.iter().min_by_key(|(_, (_, until))| *until).map(|(host, _)| host.clone());
            if let Some(first) = first {
                self.0.remove(&first);
            }
        }
        self.0.insert(host.to_owned(), (answer, now + time));
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::sync::mpsc;
    use std::time::Duration;

    use super::*;

    const ADDRESS: IpAddr = IpAddr::V4(std::net::Ipv4Addr::LOCALHOST);

    fn found(count: usize) -> Answer {
        Ok(vec![ADDRESS; count].into())
    }

    #[test]
    fn what_a_name_resolved_to_is_kept_for_its_time_and_a_failure_for_less() {
        let mut kept = Kept::default();
        let now = Instant::now();
        kept.put("good", found(1), now);
        kept.put("bad", Err("no".to_owned()), now);
        let second = Duration::from_secs(1);
        assert_eq!(kept.get("good", now + RESOLVED_FOR - second), Some(found(1)));
        assert_eq!(kept.get("good", now + RESOLVED_FOR), None);
        assert_eq!(kept.get("bad", now + UNRESOLVED_FOR - second), Some(Err("no".to_owned())));
        assert_eq!(kept.get("bad", now + UNRESOLVED_FOR), None);
    }

    #[test]
    fn a_bounded_number_of_names_is_kept_and_the_oldest_gives_way() {
        let mut kept = Kept::default();
        let now = Instant::now();
        for number in 0..=MAX_KEPT {
            kept.put(&number.to_string(), found(1), now + Duration::from_millis(number as u64));
        }
        assert_eq!(kept.0.len(), MAX_KEPT);
        assert_eq!((kept.get("0", now), kept.get("1", now)), (None, Some(found(1))));
        kept.put("large", found(MAX_ADDRESSES + 1), now);
        assert_eq!(kept.get("large", now), None);
        kept.put("later", found(1), now + RESOLVED_FOR * 2);
        assert_eq!(kept.0.len(), 1, "what is over is swept first");
    }

    #[test]
    fn all_who_ask_at_once_share_one_look_up_and_the_next_does_not_need_one() {
        let asked = Arc::new(AtomicUsize::new(0));
        let (open, gate) = mpsc::channel::<()>();
        let (count, gate) = (Arc::clone(&asked), Mutex::new(gate));
        let names = Names::with_resolver(move |_| {
            count.fetch_add(1, Ordering::SeqCst);
            let _ = gate.lock().unwrap().recv();
            found(2)
        });
        let (tell, told) = mpsc::channel();
        for _ in 0..5 {
            let tell = tell.clone();
            names.look_up("name", Audience::Stranger, move |answer| tell.send(answer).unwrap());
        }
        open.send(()).unwrap();
        for _ in 0..5 {
            assert_eq!(told.recv().unwrap(), found(2));
        }
        assert_eq!(names.known("name", Audience::Stranger), Some(found(2)));
        names.look_up("name", Audience::Stranger, move |answer| tell.send(answer).unwrap());
        assert_eq!(told.recv().unwrap(), found(2));
        assert_eq!(asked.load(Ordering::SeqCst), 1);

        // The operator's names are asked for each time.
        let (tell, told) = mpsc::channel();
        names.look_up("name", Audience::Operator, move |answer| tell.send(answer).unwrap());
        open.send(()).unwrap();
        assert_eq!(told.recv().unwrap(), found(2));
        assert_eq!(names.known("name", Audience::Operator), None);
        assert_eq!(asked.load(Ordering::SeqCst), 2);
    }

    #[test]
    fn strangers_names_are_looked_up_a_bounded_number_at_a_time() {
        let (open, gate) = mpsc::channel::<()>();
        let gate = Mutex::new(gate);
        let names = Names::with_resolver(move |_| {
            // Ends when the other end is dropped.
            let _ = gate.lock().unwrap().recv();
            found(1)
        });
        let (tell, told) = mpsc::channel();
        let ask = |host: String, audience| {
            let tell = tell.clone();
            names.look_up(&host, audience, move |answer| tell.send(answer).unwrap());
        };
        for number in 0..MAX_LOOK_UPS {
            ask(number.to_string(), Audience::Stranger);
        }
        ask("one more".to_owned(), Audience::Stranger);
        assert!(told.recv().unwrap().unwrap_err().contains("too many names"));
        ask("the tunnel's own".to_owned(), Audience::Operator);
        drop(open);
        for _ in 0..=MAX_LOOK_UPS {
            assert_eq!(told.recv().unwrap(), found(1));
        }
        ask("one more".to_owned(), Audience::Stranger);
        assert_eq!(told.recv().unwrap(), found(1), "being busy is not kept");
    }
}
