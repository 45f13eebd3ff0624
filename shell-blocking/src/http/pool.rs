//! Connections kept open for the next request to the same place: the policy, for both shells.
//!
//! A connection serves only requests of the same audience to the same scheme, name and address, and it is asked for
//! by the address that a look-up gave and the guard permitted: what holds for a new connection holds for a kept one.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use consensus_core::guard::{Scheme, Target};
use consensus_core::io::Audience;

/// Idle connections in all: each costs a descriptor here and one there.
const MAX_IDLE: usize = 64;

/// Idle connections that one place may have at the expense of others. It may have more as long as nobody else wants
/// them: requests that come in bursts would make new connections each time.
const OWN_IDLE: usize = 8;

/// How long a connection may be idle. Servers close theirs after 5 s to 75 s.
const IDLE_FOR: Duration = Duration::from_secs(15);

/// What can be kept.
pub trait Connection {
    /// Whether nothing has come and nothing has ended since the last response: anything that did makes it useless.
    fn is_quiet(&mut self) -> bool;
}

/// Where a connection goes, and for whom.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Place {
    audience: Audience,
    scheme: Scheme,
    host: String,
    address: SocketAddr,
}

impl Place {
    fn is(&self, target: &Target, audience: Audience, address: SocketAddr) -> bool {
        self.address == address
            && self.audience == audience
            && self.scheme == target.scheme
            && self.host == target.host
    }
}

/// A connection that may come back to the pool.
#[derive(Debug)]
pub struct Kept<C> {
    place: Place,
    /// The connection.
    pub connection: C,
}

impl<C> Kept<C> {
    /// A connection to that address, made for that target.
    pub fn new(target: &Target, audience: Audience, address: SocketAddr, connection: C) -> Self {
        let place = Place { audience, scheme: target.scheme, host: target.host.clone(), address };
        Self { place, connection }
    }
}

/// Idle connections; clones share them.
#[derive(Debug)]
pub struct Pool<C>(Arc<Mutex<Vec<Idle<C>>>>);

/// In the order in which they came.
#[derive(Debug)]
struct Idle<C> {
    kept: Kept<C>,
    since: Instant,
}

impl<C> Clone for Pool<C> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<C> Default for Pool<C> {
    fn default() -> Self {
        Self(Arc::default())
    }
}

impl<C: Connection> Pool<C> {
    /// A connection to one of these addresses, the one that was used last.
    #[must_use]
    pub fn take(&self, target: &Target, audience: Audience, addresses: &[SocketAddr]) -> Option<Kept<C>> {
        let mut idle = self.idle();
        drop_old(&mut idle, Instant::now());
        let fits =
            |idle: &Idle<C>| addresses.iter().any(|address| idle.kept.place.is(target, audience, *address));
        while let Some(at) = idle.iter().rposition(fits) {
            let mut kept = idle.remove(at).kept;
            if kept.connection.is_quiet() {
                return Some(kept);
            }
        }
        None
    }

    /// Keeps a connection whose response has come whole.
    pub fn put(&self, kept: Kept<C>) {
        self.put_at(kept, Instant::now());
    }

    fn put_at(&self, kept: Kept<C>, now: Instant) {
        let mut idle = self.idle();
        drop_old(&mut idle, now);
        if idle.len() >= MAX_IDLE {
            let of_place = |idle: &Idle<C>| idle.kept.place == kept.place;
            let has_its_own = idle.iter().filter(|idle| of_place(idle)).count() >= OWN_IDLE;
            let oldest = idle.iter().position(|idle| !has_its_own || of_place(idle));
            idle.remove(oldest.unwrap_or_default());
        }
        idle.push(Idle { kept, since: now });
    }

    /// Lets go of connections that are too old, or that have ended. To be called now and then, so that those are not
    /// held by a node that fetches nothing.
    pub fn sweep(&self) {
        let mut idle = self.idle();
        drop_old(&mut idle, Instant::now());
        idle.retain_mut(|idle| idle.kept.connection.is_quiet());
    }

    fn idle(&self) -> MutexGuard<'_, Vec<Idle<C>>> {
        // Nothing under this lock can leave it half-changed.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn drop_old<C>(idle: &mut Vec<Idle<C>>, now: Instant) {
    let old = idle.iter().take_while(|idle| now.saturating_duration_since(idle.since) >= IDLE_FOR).count();
    idle.drain(..old);
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A connection by its number; quiet or not.
    #[derive(Debug, PartialEq, Eq)]
    struct Numbered(usize, bool);

    impl Connection for Numbered {
        fn is_quiet(&mut self) -> bool {
            self.1
        }
    }

    fn address(last: u8) -> SocketAddr {
        SocketAddr::from(([192, 0, 2, last], 80))
    }

    fn target(url: &str) -> Target {
        Target::parse(url).unwrap()
    }

    fn kept(url: &str, last: u8, number: usize) -> Kept<Numbered> {
        Kept::new(&target(url), Audience::Stranger, address(last), Numbered(number, true))
    }

    fn take(pool: &Pool<Numbered>, url: &str, last: u8) -> Option<usize> {
        let taken = pool.take(&target(url), Audience::Stranger, &[address(last)]);
        taken.map(|kept| kept.connection.0)
    }

    #[test]
    fn a_connection_serves_its_own_place_alone() {
        let pool = Pool::default();
        pool.put(kept("http://a.example/", 1, 7));
        assert_eq!(take(&pool, "http://b.example/", 1), None, "another name");
        assert_eq!(take(&pool, "http://a.example/", 2), None, "another address");
        assert_eq!(take(&pool, "https://a.example/", 1), None, "another scheme");
        let operator = pool.take(&target("http://a.example/"), Audience::Operator, &[address(1)]);
        assert!(operator.is_none(), "another audience");
        assert_eq!(take(&pool, "http://a.example/other", 1), Some(7));
        assert_eq!(take(&pool, "http://a.example/", 1), None, "it is taken");
    }

    #[test]
    fn the_one_used_last_is_taken_first_and_one_that_is_not_quiet_never() {
        let pool = Pool::default();
        for number in 0..3 {
            let mut kept = kept("http://a.example/", 1, number);
            kept.connection.1 = number != 2;
            pool.put(kept);
        }
        assert_eq!(take(&pool, "http://a.example/", 1), Some(1));
        pool.put(Kept { connection: Numbered(9, false), ..kept("http://a.example/", 1, 0) });
        pool.sweep();
        assert_eq!(pool.idle().len(), 1);
    }

    #[test]
    fn the_pool_is_bounded_and_a_place_that_has_many_gives_way_to_others() {
        let pool = Pool::default();
        for number in 0..=MAX_IDLE {
            pool.put(kept("http://a.example/", 1, number));
        }
        let of = |host: &str| {
            let idle = pool.idle();
            let places = idle.iter().filter(|idle| idle.kept.place.host == host);
            places.map(|idle| idle.kept.connection.0).collect::<Vec<_>>()
        };
        assert_eq!(of("a.example"), (1..=MAX_IDLE).collect::<Vec<_>>(), "its oldest gives way");
        // Another place, with as many, gets its own at the expense of the oldest, and then of itself.
        for number in 0..MAX_IDLE {
            pool.put(kept("http://b.example/", 1, number));
        }
        assert_eq!(of("a.example"), (OWN_IDLE + 1..=MAX_IDLE).collect::<Vec<_>>());
        assert_eq!(of("b.example"), (MAX_IDLE - OWN_IDLE..MAX_IDLE).collect::<Vec<_>>());
    }

    #[test]
    fn what_was_idle_for_too_long_is_let_go() {
        let pool = Pool::default();
        let old = Instant::now();
        pool.put_at(kept("http://a.example/", 1, 1), old);
        pool.put_at(kept("http://b.example/", 1, 2), old + IDLE_FOR / 2);
        pool.put_at(kept("http://c.example/", 1, 3), old + IDLE_FOR);
        let left: Vec<_> = pool.idle().iter().map(|idle| idle.kept.connection.0).collect();
        assert_eq!(left, [2, 3]);
    }
}
