//! The local API's listener and the connections on it that speak HTTP. None has a thread: the run loop reads and writes
//! them all.

use std::collections::{BTreeMap, VecDeque};
use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsFd as _;
use std::time::{Duration, Instant};

use consensus_core::io::{Input, LocalId, LocalRequest, LocalResponse};
use consensus_core::limits::LOCAL_TIMEOUT;
use rustix::event::PollFlags;

use super::watch::{Token, Watch};
use crate::http::server::{Connection, Step, Waiting};
use crate::places::{Doing, Place, Places, refuse_at_once};
use crate::system;
use crate::websocket::BYTES_A_TURN;

/// From the first byte of a request, or the begin of the connection, to the end of the head.
const HEAD_TIMEOUT: Duration = Duration::from_secs(10);

/// From the end of the head to the end of the body; also for a client to take a response.
const BODY_TIMEOUT: Duration = Duration::from_secs(30);

/// Between two requests.
const IDLE_TIMEOUT: Duration = Duration::from_secs(60);

/// After a refusal, for the client to read it before the connection is reset by what it still sends.
const REFUSAL_TIMEOUT: Duration = Duration::from_secs(1);

/// How long accepting pauses when the system cannot give another connection.
const ACCEPT_PAUSE: Duration = Duration::from_millis(200);

/// The node answers within [`LOCAL_TIMEOUT`]; this is for the case that it does not.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(LOCAL_TIMEOUT.as_secs() + 5);

/// Connections taken in one turn of the loop; the rest is told again.
const ACCEPTS_A_TURN: usize = 64;

/// Read at once.
const READ_BUFFER: usize = 4096;

/// The listener and its connections.
pub(super) struct Api {
    listener: TcpListener,
    address: SocketAddr,
    places: Places<()>,
    clients: BTreeMap<u64, Client>,
    asked: BTreeMap<LocalId, u64>,
    next: u64,
    /// Places of connections that have to go, and are no HTTP any more.
    evicted: Vec<u64>,
    paused_until: Option<Instant>,
}

/// A connection that has become a WebSocket.
pub(super) struct Upgraded {
    pub(super) stream: TcpStream,
    pub(super) unread: Vec<u8>,
    pub(super) place: Place<()>,
}

impl Api {
    pub(super) fn listen(address: SocketAddr) -> Result<Self, String> {
        let describe = |error: std::io::Error| {
            format!("cannot listen on {address}: {error}; choose another with --listen or NODE_PORT")
        };
        let listener = TcpListener::bind(address).map_err(describe)?;
        listener.set_nonblocking(true).map_err(describe)?;
        let address = listener.local_addr().map_err(describe)?;
        Ok(Self {
            listener,
            address,
            places: Places::default(),
            clients: BTreeMap::new(),
            asked: BTreeMap::new(),
            next: 0,
            evicted: Vec::new(),
            paused_until: None,
        })
    }

    pub(super) fn address(&self) -> SocketAddr {
        self.address
    }

    /// Says what to wait for; the listener only while `accepts`.
    pub(super) fn watch<'a>(&'a self, watch: &mut Watch<'a>, accepts: bool) {
        match self.paused_until.filter(|until| Instant::now() < *until) {
            _ if !accepts => {}
            Some(until) => watch.until(Some(until)),
            None => watch.on(self.listener.as_fd(), PollFlags::IN, Token::Listener),
        }
        for (number, client) in &self.clients {
            watch.on(client.stream.as_fd(), client.wants(), Token::Client(*number));
            watch.until(Some(client.until));
        }
    }

    /// Takes the connections that wait.
    pub(super) fn accept(&mut self) {
        self.paused_until = None;
        for _ in 0..ACCEPTS_A_TURN {
            match self.listener.accept() {
                Ok((stream, _)) => self.take(stream),
                Err(error) => match error.kind() {
                    ErrorKind::WouldBlock => return,
                    // The client has gone again.
                    ErrorKind::ConnectionAborted | ErrorKind::Interrupted => {}
                    _ => {
                        self.paused_until = Some(Instant::now() + ACCEPT_PAUSE);
                        return;
                    }
                },
            }
        }
    }

    fn take(&mut self, stream: TcpStream) {
        if stream.set_nonblocking(true).is_err() {
            return;
        }
        let _ = stream.set_nodelay(true);
        let Ok((place, evicted)) = self.places.enter(()) else { return refuse_at_once(&stream) };
        if let Some(evicted) = evicted {
            self.clients.remove(&evicted);
        }
        self.clients.insert(place.number(), Client::new(stream, place));
    }

    /// Goes on with a connection that is ready.
    pub(super) fn serve(&mut self, number: u64, own: &mut VecDeque<Input>) {
        let Some(client) = self.clients.get_mut(&number) else { return };
        match client.go_on() {
            Ok(None) => {}
            Ok(Some((request, evicted))) => {
                if let Some(evicted) = evicted.filter(|evicted| self.clients.remove(evicted).is_none()) {
                    self.evicted.push(evicted);
                }
                let id = LocalId(self.next);
                self.next += 1;
                self.asked.insert(id, number);
                own.push_back(Input::Local { id, request });
            }
            Err(Gone) => {
                self.clients.remove(&number);
            }
        }
    }

    /// The places of WebSockets that have to go for others.
    pub(super) fn take_evicted(&mut self) -> Vec<u64> {
        core::mem::take(&mut self.evicted)
    }

    /// Writes the node's answer. Gives the connection back where it has become a WebSocket, and `None` where it has not.
    pub(super) fn respond(
        &mut self,
        id: LocalId,
        response: &LocalResponse,
        own: &mut VecDeque<Input>,
    ) -> Option<Upgraded> {
        let number = self.asked.remove(&id)?;
        let client = self.clients.get_mut(&number).filter(|client| matches!(client.stage, Stage::Asked))?;
        client.answer(response);
        if client.http.is_upgraded() {
            let client = self.clients.remove(&number)?;
            return client.into_upgraded();
        }
        self.serve(number, own);
        None
    }

    /// Ends what has taken too long.
    pub(super) fn expire(&mut self, now: Instant) {
        self.clients.retain(|_, client| now < client.until || client.time_out().is_ok());
    }

    /// Ends all but the answers that are being written.
    pub(super) fn finish(&mut self) {
        self.clients.retain(|_, client| matches!(client.stage, Stage::Writing(_)));
    }

    pub(super) fn is_answering(&self) -> bool {
        !self.clients.is_empty()
    }
}

/// The connection is at its end.
#[derive(Debug)]
struct Gone;

/// One connection.
struct Client {
    stream: TcpStream,
    place: Place<()>,
    http: Connection,
    unsent: Vec<u8>,
    written: usize,
    stage: Stage,
    /// For what it is at.
    until: Instant,
}

#[derive(Clone, Copy)]
enum Stage {
    Reading(Waiting),
    /// A request is with the node.
    Asked,
    Writing(Then),
    /// Refused: what the client still sends is read over, so that it can read why.
    Draining,
}

/// What follows when all is written.
#[derive(Clone, Copy)]
enum Then {
    GoOn,
    Close,
    Drain,
}

impl Client {
    fn new(stream: TcpStream, place: Place<()>) -> Self {
        Self {
            stream,
            place,
            http: Connection::new(),
            unsent: Vec::new(),
            written: 0,
            // The first request is expected at once.
            stage: Stage::Reading(Waiting::Head),
            until: Instant::now() + HEAD_TIMEOUT,
        }
    }

    fn wants(&self) -> PollFlags {
        match self.stage {
            Stage::Reading(_) | Stage::Draining => PollFlags::IN,
            Stage::Asked => PollFlags::empty(),
            Stage::Writing(_) => PollFlags::OUT,
        }
    }

    /// Reads and writes as far as it goes. A request is for the node; a connection may have to go for it.
    fn go_on(&mut self) -> Result<Option<(LocalRequest, Option<u64>)>, Gone> {
        let mut left = BYTES_A_TURN;
        while left > 0 {
            match self.stage {
                Stage::Asked => return Ok(None),
                Stage::Reading(waiting) => match self.http.next(system::now().unix) {
                    Step::Read => {
                        if !self.wait_for(waiting, self.http.waiting()) {
                            continue;
                        }
                        let mut buffer = [0; READ_BUFFER];
                        let Some(length) = self.read(&mut buffer)? else { return Ok(None) };
                        left = left.saturating_sub(length);
                        self.http.received(&buffer[..length]);
                    }
                    Step::Write(bytes) => self.begin_writing(bytes, Then::GoOn),
                    Step::Refuse(bytes) => self.begin_writing(bytes, Then::Drain),
                    Step::Request(request) => {
                        if let Ok(evicted) = self.place.begin(Doing::of(&request)) {
                            self.stage = Stage::Asked;
                            self.until = Instant::now() + ANSWER_TIMEOUT;
                            return Ok(Some((request, evicted)));
                        }
                        self.begin_writing(Connection::busy(system::now().unix), Then::Drain);
                    }
                },
                Stage::Writing(then) => {
                    if !self.write()? {
                        return Ok(None);
                    }
                    self.end_writing(then)?;
                }
                Stage::Draining => {
                    let Some(length) = self.read(&mut [0; READ_BUFFER])? else { return Ok(None) };
                    left = left.saturating_sub(length);
                }
            }
        }
        Ok(None)
    }

    /// Gives each thing that is waited for its time. `false` when there is no room for it.
    fn wait_for(&mut self, waiting: Waiting, now: Waiting) -> bool {
        if now == waiting || (waiting, now) == (Waiting::Head, Waiting::Request) {
            return true;
        }
        if now == Waiting::Body && self.place.begin(Doing::Request).is_err() {
            self.begin_writing(Connection::busy(system::now().unix), Then::Drain);
            return false;
        }
        self.stage = Stage::Reading(now);
        self.until = Instant::now()
            + match now {
                Waiting::Request => IDLE_TIMEOUT,
                Waiting::Head => HEAD_TIMEOUT,
                Waiting::Body => BODY_TIMEOUT,
            };
        true
    }

    /// `None` where nothing has come.
    fn read(&mut self, buffer: &mut [u8]) -> Result<Option<usize>, Gone> {
        match self.stream.read(buffer) {
            Ok(0) => Err(Gone),
            Ok(length) => Ok(Some(length)),
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => Ok(None),
            Err(_) => Err(Gone),
        }
    }

    fn begin_writing(&mut self, bytes: Vec<u8>, then: Then) {
        (self.unsent, self.written) = (bytes, 0);
        self.stage = Stage::Writing(then);
        self.until = Instant::now() + BODY_TIMEOUT;
    }

    /// Whether all is written.
    fn write(&mut self) -> Result<bool, Gone> {
        while self.written < self.unsent.len() {
            match self.stream.write(&self.unsent[self.written..]) {
                Ok(0) => return Err(Gone),
                Ok(length) => self.written += length,
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(false),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(_) => return Err(Gone),
            }
        }
        self.unsent = Vec::new();
        Ok(true)
    }

    fn end_writing(&mut self, then: Then) -> Result<(), Gone> {
        match then {
            Then::GoOn => {
                // There are as many places to wait in as there are places.
                let _ = self.place.begin(Doing::Waiting);
                self.stage = Stage::Reading(Waiting::Request);
                self.until = Instant::now() + IDLE_TIMEOUT;
                Ok(())
            }
            Then::Close => Err(Gone),
            Then::Drain => {
                self.stream.shutdown(Shutdown::Write).map_err(|_| Gone)?;
                self.stage = Stage::Draining;
                self.until = Instant::now() + REFUSAL_TIMEOUT;
                Ok(())
            }
        }
    }

    fn answer(&mut self, response: &LocalResponse) {
        let bytes = self.http.respond(response, system::now().unix);
        let then = if self.http.is_closed() { Then::Close } else { Then::GoOn };
        self.begin_writing(bytes, then);
    }

    /// The client has had its time: it is told so where it had begun.
    fn time_out(&mut self) -> Result<(), Gone> {
        let Stage::Reading(Waiting::Head | Waiting::Body) = self.stage else { return Err(Gone) };
        let answer = self.http.timed_out(system::now().unix);
        self.begin_writing(answer, Then::Drain);
        self.go_on().map(|_| ())
    }

    /// The answer to an upgrade fits into what the system takes at once, or the client does not read.
    fn into_upgraded(mut self) -> Option<Upgraded> {
        let all = self.write().ok()?;
        let Self { stream, http, place, .. } = self;
        all.then(|| Upgraded { stream, unread: http.into_unread(), place })
    }
}
