//! The local API's connections: one worker each, up to a bound.

use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsFd as _, BorrowedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, sync_channel};
use std::time::{Duration, Instant};

use consensus_core::io::{LocalRequest, LocalResponse};
use consensus_core::limits::LOCAL_TIMEOUT;

use super::connect::{Limit, Tcp};
use super::inbox::{Inbox, Said};
use super::workers::Workers;
use crate::http::server::{Connection, Step, Waiting};
use crate::system;

/// Connections at once. Each has a thread.
const MAX_CONNECTIONS: usize = 32;

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

/// The listener and its connections.
pub(super) struct Api {
    listener: TcpListener,
    address: SocketAddr,
    workers: Workers,
    inbox: Arc<Inbox>,
    connections: Arc<AtomicUsize>,
    /// Answers that the node has given and that are being written.
    pub(super) writing: Arc<AtomicUsize>,
    closing: Arc<AtomicBool>,
    paused_until: Option<Instant>,
}

impl Api {
    pub(super) fn listen(address: SocketAddr, inbox: &Arc<Inbox>) -> Result<Self, String> {
        let describe = |error: std::io::Error| {
            format!("cannot listen on {address}: {error}; choose another with --listen or NODE_PORT")
        };
        let listener = TcpListener::bind(address).map_err(describe)?;
        listener.set_nonblocking(true).map_err(describe)?;
        let address = listener.local_addr().map_err(describe)?;
        Ok(Self {
            listener,
            address,
            workers: Workers::new("local-api", MAX_CONNECTIONS),
            inbox: Arc::clone(inbox),
            connections: Arc::default(),
            writing: Arc::default(),
            closing: Arc::default(),
            paused_until: None,
        })
    }

    pub(super) fn address(&self) -> SocketAddr {
        self.address
    }

    /// What the loop waits on, unless accepting pauses; and when the pause ends.
    pub(super) fn fd(&self) -> Result<BorrowedFd<'_>, Instant> {
        match self.paused_until {
            Some(until) if Instant::now() < until => Err(until),
            _ => Ok(self.listener.as_fd()),
        }
    }

    /// Takes the connections that wait.
    pub(super) fn accept(&mut self) {
        self.paused_until = None;
        // A bound on one turn of the loop; the rest is told again.
        for _ in 0..MAX_CONNECTIONS {
            match self.listener.accept() {
                Ok((stream, _)) => self.serve(stream),
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

    fn serve(&self, stream: TcpStream) {
        let place = Place::take(&self.connections);
        if place.number > MAX_CONNECTIONS {
            refuse(&stream);
            return;
        }
        let (inbox, writing, closing) =
            (Arc::clone(&self.inbox), Arc::clone(&self.writing), Arc::clone(&self.closing));
        let work = move || {
            let _place = place;
            let _ = stream.set_nodelay(true);
            if stream.set_nonblocking(false).is_ok() {
                let limit = Limit { until: Instant::now() + HEAD_TIMEOUT, cancelled: closing };
                if let Ok(tcp) = Tcp::new(stream, limit) {
                    Client { tcp, http: Connection::new(), inbox, writing }.serve();
                }
            }
        };
        // Without a thread the connection is dropped, which the client sees.
        let _ = self.workers.submit(work);
    }
}

impl Drop for Api {
    fn drop(&mut self) {
        self.closing.store(true, Ordering::Relaxed);
    }
}

/// A connection's place among those that there may be.
struct Place {
    number: usize,
    connections: Arc<AtomicUsize>,
}

impl Place {
    fn take(connections: &Arc<AtomicUsize>) -> Self {
        let number = connections.fetch_add(1, Ordering::Relaxed) + 1;
        Self { number, connections: Arc::clone(connections) }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.connections.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Tells a client that there is no room, without waiting for it: this runs in the loop.
fn refuse(mut stream: &TcpStream) {
    if stream.set_nonblocking(true).is_ok() {
        // What was sent already would reset the connection before the answer is read.
        let _ = stream.read(&mut [0; 4096]);
        let _ = stream.write(&Connection::busy(system::now().unix));
        let _ = stream.shutdown(Shutdown::Write);
    }
}

/// One connection, on its thread.
struct Client {
    tcp: Tcp,
    http: Connection,
    inbox: Arc<Inbox>,
    writing: Arc<AtomicUsize>,
}

impl Client {
    fn serve(mut self) {
        let mut buffer = [0; 4096];
        // The first request is expected at once.
        let mut waiting = Waiting::Head;
        loop {
            match self.http.next(system::now().unix) {
                Step::Read => {
                    let now_waiting = self.http.waiting();
                    if now_waiting != waiting
                        && !(waiting == Waiting::Head && now_waiting == Waiting::Request)
                    {
                        waiting = now_waiting;
                        self.tcp.set_until(Instant::now() + timeout(waiting));
                    }
                    match self.tcp.read(&mut buffer) {
                        Ok(0) => return,
                        Ok(length) => self.http.received(&buffer[..length]),
                        Err(error) if error.kind() == ErrorKind::TimedOut => {
                            let answer = self.http.timed_out(system::now().unix);
                            return self.refuse(&answer);
                        }
                        Err(_) => return,
                    }
                }
                Step::Write(bytes) => {
                    if self.tcp.write_all(&bytes).is_err() {
                        return;
                    }
                }
                Step::Refuse(bytes) => return self.refuse(&bytes),
                Step::Request(request) => {
                    let Some(response) = self.ask(request) else { return };
                    let answer = self.http.respond(&response, system::now().unix);
                    self.tcp.set_until(Instant::now() + BODY_TIMEOUT);
                    let written = self.tcp.write_all(&answer);
                    self.writing.fetch_sub(1, Ordering::SeqCst);
                    if written.is_err() || self.http.is_closed() {
                        return;
                    }
                    waiting = Waiting::Request;
                    self.tcp.set_until(Instant::now() + IDLE_TIMEOUT);
                }
            }
        }
    }

    /// Has the node answer. Nothing, when it has ended.
    fn ask(&self, request: LocalRequest) -> Option<LocalResponse> {
        let (answer, answered): (_, Receiver<LocalResponse>) = sync_channel(1);
        self.inbox.say(Said::Local { request, answer });
        answered.recv_timeout(ANSWER_TIMEOUT).ok()
    }

    /// Says why, and waits a moment until that is read.
    fn refuse(&mut self, answer: &[u8]) {
        self.tcp.set_until(Instant::now() + REFUSAL_TIMEOUT);
        if self.tcp.write_all(answer).is_err() {
            return;
        }
        self.tcp.shutdown(Shutdown::Write);
        let mut buffer = [0; 4096];
        while matches!(self.tcp.read(&mut buffer), Ok(length) if length > 0) {}
    }
}

fn timeout(waiting: Waiting) -> Duration {
    match waiting {
        Waiting::Request => IDLE_TIMEOUT,
        Waiting::Head => HEAD_TIMEOUT,
        Waiting::Body => BODY_TIMEOUT,
    }
}
