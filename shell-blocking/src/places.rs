//! Who has a place among the connections of the local API.
//!
//! Anybody who reaches it can open connections and say nothing. Such connections never keep others out: when all places
//! are taken, the one that has been silent longest is closed for the next. Requests under way and WebSockets have bounds
//! of their own, so that neither keeps the other out.

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
    /// It is a WebSocket, or asks to be, and no message has come on it.
    Silent,
    /// It is a WebSocket on which a message came.
    WebSocket,
}

/// Too many connections do that already, or this one had to go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Full;

impl Doing {
    /// What a connection with that request does.
    #[must_use]
    pub fn of(request: &LocalRequest) -> Self {
        let is_upgrade = |value: &str| value.trim().eq_ignore_ascii_case("websocket");
        if request.header("upgrade").is_some_and(is_upgrade) { Self::Silent } else { Self::Request }
    }

    /// How many may do it at once, and what counts as that.
    const fn most(self) -> (usize, &'static [Self]) {
        match self {
            Self::Waiting => (MAX_CONNECTIONS, &[Self::Waiting]),
            Self::Request => (MAX_REQUESTS, &[Self::Request]),
            Self::Silent | Self::WebSocket => (MAX_WEBSOCKETS, &[Self::Silent, Self::WebSocket]),
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

    /// A place for a new connection, and the number of the connection that has to go for it.
    ///
    /// # Errors
    /// All are busy.
    pub fn enter(&self, evict: T) -> Result<(Place<T>, Option<u64>), Full> {
        let mut taken = self.taken();
        let is_full = taken.by_number.len() >= MAX_CONNECTIONS;
        let evicted = if is_full { Some(taken.evict(Doing::Waiting)?) } else { None };
        let number = taken.next;
        taken.next += 1;
        let begun = taken.begin();
        taken.by_number.insert(number, Seat { doing: Doing::Waiting, begun, _evict: evict });
        Ok((Place { number, places: Self(Arc::clone(&self.0)) }, evicted))
    }
}

impl<T> Taken<T> {
    fn begin(&mut self) -> u64 {
        self.begun += 1;
        self.begun
    }

    /// Closes the connection that has done that longest.
    fn evict(&mut self, doing: Doing) -> Result<u64, Full> {
        let those = self.by_number.iter().filter(|(_, seat)| seat.doing == doing);
        let (number, _) = those.min_by_key(|(_, seat)| seat.begun).ok_or(Full)?;
        let number = *number;
        self.by_number.remove(&number);
        Ok(number)
    }
}

impl<T> Place<T> {
    /// Its number, which no other connection has.
    #[must_use]
    pub fn number(&self) -> u64 {
        self.number
    }

    /// The connection does something else now. Gives the number of the connection that has to go for it.
    ///
    /// # Errors
    /// Too many do that already, or this one had to go itself.
    pub fn begin(&self, doing: Doing) -> Result<Option<u64>, Full> {
        let mut taken = self.places.taken();
        if !taken.by_number.contains_key(&self.number) {
            return Err(Full);
        }
        let (most, same) = doing.most();
        let others = taken.by_number.iter();
        let others = others.filter(|(number, seat)| **number != self.number && same.contains(&seat.doing));
        let evicted = match (others.count() < most, doing) {
            (true, _) => None,
            (false, Doing::Silent) => Some(taken.evict(Doing::Silent)?),
            (false, Doing::Waiting | Doing::Request | Doing::WebSocket) => return Err(Full),
        };
        let begun = taken.begin();
        let seat = taken.by_number.get_mut(&self.number).ok_or(Full)?;
        (seat.doing, seat.begun) = (doing, begun);
        Ok(evicted)
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

    fn enter(count: usize, places: &Places<()>) -> Vec<Place<()>> {
        (0..count).map(|_| places.enter(()).unwrap().0).collect()
    }

    #[test]
    fn silent_connections_make_room() {
        let places = Places::default();
        let held = enter(MAX_CONNECTIONS, &places);
        // The first has had a request, so that the second has waited longer.
        held[0].begin(Doing::Request).unwrap();
        held[0].begin(Doing::Waiting).unwrap();
        let (_new, evicted) = places.enter(()).unwrap();
        assert_eq!(evicted, Some(held[1].number()));
        assert_eq!(held[1].begin(Doing::Request), Err(Full), "it had to go");
        drop(held);
        assert_eq!(places.enter(()).unwrap().1, None, "a place given back is free");
    }

    #[test]
    fn silent_websockets_make_room_and_those_that_spoke_keep_theirs() {
        let places = Places::default();
        let held = enter(MAX_WEBSOCKETS, &places);
        assert!(held.iter().all(|place| place.begin(Doing::Silent) == Ok(None)));
        held[0].begin(Doing::WebSocket).unwrap();
        let (new, _) = places.enter(()).unwrap();
        assert_eq!(new.begin(Doing::Silent), Ok(Some(held[1].number())));
        assert_eq!(held[1].begin(Doing::WebSocket), Err(Full), "it had to go");
        for place in held.iter().skip(2) {
            place.begin(Doing::WebSocket).unwrap();
        }
        new.begin(Doing::WebSocket).unwrap();
        let (other, _) = places.enter(()).unwrap();
        assert_eq!(other.begin(Doing::Silent), Err(Full));
        assert_eq!(other.begin(Doing::Request), Ok(None), "requests have their own bound");
    }

    #[test]
    fn requests_and_websockets_have_bounds_of_their_own() {
        let places = Places::default();
        let requests = enter(MAX_REQUESTS + 1, &places);
        let begun = requests.iter().filter(|place| place.begin(Doing::Request).is_ok());
        assert_eq!(begun.count(), MAX_REQUESTS);
        let sockets = enter(MAX_WEBSOCKETS, &places);
        assert!(sockets.iter().all(|place| place.begin(Doing::Silent) == Ok(None)));
        // All that is left is for those that have not said what they want; when they have, nobody has to go.
        let rest = enter(MAX_CONNECTIONS - MAX_WEBSOCKETS - MAX_REQUESTS - 1, &places);
        assert_eq!(places.enter(()).unwrap().1, Some(requests[MAX_REQUESTS].number()));
        drop(rest);
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
