//! Who has a place among the connections of the local API.
//!
//! Anybody who reaches it can open connections and say nothing. Such connections never keep others out: when all places
//! are taken, the one that has waited longest for a request is closed for the next. Requests under way and WebSockets
//! have bounds of their own, so that neither keeps the other out.

use std::collections::BTreeMap;
use std::io::{Read as _, Write as _};
use std::net::{Shutdown, TcpStream};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use consensus_core::io::LocalRequest;

use crate::http::server::Connection;
use crate::system;

/// Connections at once, whatever they do.
pub const MAX_CONNECTIONS: usize = 512;

/// Requests under way at once, from their body to the answer's last byte. Each may hold a whole body.
pub const MAX_REQUESTS: usize = 32;

/// WebSockets at once. What is left of [`MAX_CONNECTIONS`] is for those that say what they want.
pub const MAX_WEBSOCKETS: usize = 448;

/// What a connection does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Doing {
    /// It waits for a request, or for the rest of a head.
    Waiting,
    /// A request is under way on it.
    Request,
    /// It is a WebSocket, or asks to be.
    WebSocket,
}

impl Doing {
    /// What a connection with that request does.
    #[must_use]
    pub fn of(request: &LocalRequest) -> Self {
        let is_upgrade = |value: &str| value.trim().eq_ignore_ascii_case("websocket");
        if request.header("upgrade").is_some_and(is_upgrade) { Self::WebSocket } else { Self::Request }
    }

    const fn most(self) -> usize {
        match self {
            Self::Waiting => MAX_CONNECTIONS,
            Self::Request => MAX_REQUESTS,
            Self::WebSocket => MAX_WEBSOCKETS,
        }
    }
}

/// All places. `T` is dropped when its connection has to go.
#[derive(Debug)]
pub struct Places<T>(Arc<Mutex<Taken<T>>>);

#[derive(Debug)]
struct Taken<T> {
    next: u64,
    /// Counts what connections begin, to know who has waited longest.
    begun: u64,
    by_number: BTreeMap<u64, Seat<T>>,
}

#[derive(Debug)]
struct Seat<T> {
    doing: Doing,
    begun: u64,
    _evict: T,
}

/// One connection's place, given back when dropped.
#[derive(Debug)]
pub struct Place<T> {
    number: u64,
    places: Places<T>,
}

impl<T> Default for Places<T> {
    fn default() -> Self {
        Self(Arc::new(Mutex::new(Taken { next: 0, begun: 0, by_number: BTreeMap::new() })))
    }
}

impl<T> Places<T> {
    fn taken(&self) -> MutexGuard<'_, Taken<T>> {
        // Nothing under this lock can leave it half-changed.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A place for a new connection, and the number of the connection that has to go for it. Nothing when all are busy.
    pub fn enter(&self, evict: T) -> Option<(Place<T>, Option<u64>)> {
        let mut taken = self.taken();
        let evicted =
            if taken.by_number.len() < MAX_CONNECTIONS { None } else { Some(taken.longest_waiting()?) };
        if let Some(evicted) = evicted {
            taken.by_number.remove(&evicted);
        }
        let (number, begun) = (taken.next, taken.begun);
        taken.next += 1;
        taken.begun += 1;
        taken.by_number.insert(number, Seat { doing: Doing::Waiting, begun, _evict: evict });
        Some((Place { number, places: Self(Arc::clone(&self.0)) }, evicted))
    }
}

impl<T> Taken<T> {
    fn longest_waiting(&self) -> Option<u64> {
        let waiting = self.by_number.iter().filter(|(_, seat)| seat.doing == Doing::Waiting);
        waiting.min_by_key(|(_, seat)| seat.begun).map(|(number, _)| *number)
    }
}

impl<T> Place<T> {
    /// Its number, which no other connection has.
    #[must_use]
    pub fn number(&self) -> u64 {
        self.number
    }

    /// The connection does something else now. `false` when too many do that already, or it had to go.
    pub fn begin(&self, doing: Doing) -> bool {
        let mut taken = self.places.taken();
        let others =
            taken.by_number.iter().filter(|(number, seat)| **number != self.number && seat.doing == doing);
        if others.count() >= doing.most() {
            return false;
        }
        let begun = taken.begun;
        taken.begun += 1;
        let Some(seat) = taken.by_number.get_mut(&self.number) else { return false };
        (seat.doing, seat.begun) = (doing, begun);
        true
    }
}

impl<T> Drop for Place<T> {
    fn drop(&mut self) {
        let seat = self.places.taken().by_number.remove(&self.number);
        drop(seat);
    }
}

/// Tells a client that there is no room, without waiting for it. The connection must not block.
pub fn refuse_at_once(mut stream: &TcpStream) {
    // What was sent already would reset the connection before the answer is read.
    let _ = stream.read(&mut [0; 4096]);
    let _ = stream.write(&Connection::busy(system::now().unix));
    let _ = stream.shutdown(Shutdown::Write);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn silent_connections_make_room_and_busy_ones_keep_theirs() {
        let places = Places::<()>::default();
        let mut held: Vec<_> = (0..MAX_CONNECTIONS).map(|_| places.enter(()).unwrap().0).collect();
        // The first has had a request, so that the second has waited longer.
        assert!(held[0].begin(Doing::Request) && held[0].begin(Doing::Waiting));
        let (_new, evicted) = places.enter(()).unwrap();
        assert_eq!(evicted, Some(held[1].number()));
        assert!(!held[1].begin(Doing::Request), "it had to go");
        held.remove(1);

        let begun = |doing| held.iter().filter(|place| place.begin(doing)).count();
        assert_eq!(begun(Doing::WebSocket), MAX_WEBSOCKETS);
        let rest: Vec<_> = held.iter().skip(MAX_WEBSOCKETS).collect();
        assert_eq!(rest.iter().filter(|place| place.begin(Doing::Request)).count(), MAX_REQUESTS);
        let waiting = MAX_CONNECTIONS - MAX_WEBSOCKETS - MAX_REQUESTS;
        let more: Vec<_> = (0..waiting).map(|_| places.enter(()).unwrap()).collect();
        assert!(more.iter().all(|(_, evicted)| evicted.is_some()));
        assert!(more.iter().all(|(place, _)| !place.begin(Doing::Request)));
        held.remove(0);
        assert_eq!(places.enter(()).unwrap().1, None, "a place given back is free");
    }

    #[test]
    fn what_would_end_a_connection_is_dropped_when_it_has_to_go() {
        let places = Places::default();
        let ends: Vec<Arc<()>> = (0..=MAX_CONNECTIONS).map(|_| Arc::default()).collect();
        let held: Vec<_> = ends.iter().map(|end| places.enter(Arc::clone(end)).unwrap()).collect();
        assert_eq!(Arc::strong_count(&ends[0]), 1);
        assert_eq!(Arc::strong_count(&ends[1]), 2);
        drop(held);
        assert_eq!(Arc::strong_count(&ends[1]), 1);
    }
}
