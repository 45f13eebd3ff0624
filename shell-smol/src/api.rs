//! The local API's sockets, a task each.

use std::net::{Shutdown, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use consensus_core::event::Level;
use consensus_core::io::{Input, LocalId, LocalRequest, LocalResponse};
use shell_blocking::budget::Budget;
use shell_blocking::http::server::{Connection, Step, Waiting};
use shell_blocking::log::Log;
use shell_blocking::places::{Doing, Place, Places, refuse_at_once};
use shell_blocking::system;
use smol::channel::{Receiver, Sender};
use smol::io::{AsyncReadExt as _, AsyncWriteExt as _};
use smol::net::TcpStream;
use smol::{Async, Executor, Task, Timer, future};

use crate::channel::{Far, serve_client};
use crate::runtime::{Busy, Happened};

/// How long a client may take for what the connection waits for.
const fn patience(waiting: Waiting) -> Duration {
    Duration::from_secs(match waiting {
        Waiting::Request => 60,
        Waiting::Head => 10,
        Waiting::Body => 30,
    })
}

/// After a refusal, for the client to read it.
const REFUSAL_TIMEOUT: Duration = Duration::from_secs(1);

/// For the answer to be taken.
const WRITE_TIMEOUT: Duration = Duration::from_secs(30);

/// Before another try when the system cannot give another connection.
const ACCEPT_PAUSE: Duration = Duration::from_millis(200);

/// What a client is answered.
pub(crate) struct Answer {
    pub(crate) response: LocalResponse,
    /// Where the connection is to become a WebSocket.
    pub(crate) upgrade: Option<(LocalId, Far)>,
    /// Held until the answer is written.
    pub(crate) busy: Busy,
}

/// Listens; dropping the task ends it.
pub(crate) fn listen(
    executor: &Arc<Executor<'static>>,
    address: SocketAddr,
    log: &Log,
    happened: Sender<Happened>,
    budget: Budget,
) -> Result<Task<()>, String> {
    let describe = |error: std::io::Error| {
        format!("cannot listen on {address}: {error}; choose another with --listen or NODE_PORT")
    };
    let listener = Async::<std::net::TcpListener>::bind(address).map_err(describe)?;
    let bound = listener.get_ref().local_addr().map_err(describe)?;
    log.note(
        Level::Info,
        "api",
        "listening",
        &format!("local API on http://{bound}"),
        &[("address", bound.to_string().into())],
    );
    let places = Places::default();
    let spawner = Arc::clone(executor);
    Ok(executor.spawn(async move {
        loop {
            let Ok((stream, _)) = listener.accept().await else {
                // Out of file descriptors, most likely: they come back.
                Timer::after(ACCEPT_PAUSE).await;
                continue;
            };
            let _ = stream.get_ref().set_nodelay(true);
            let (evict, evicted) = smol::channel::bounded(1);
            let Ok((place, _)) = places.enter(evict) else {
                refuse_at_once(stream.get_ref());
                continue;
            };
            let stream = TcpStream::from(stream);
            let client = Client { stream, place, happened: happened.clone() };
            spawner.spawn(serve(client, budget.clone(), evicted)).detach();
        }
    }))
}

/// Serves a connection to its end, or until it has to go for another.
async fn serve(mut client: Client, budget: Budget, evicted: Receiver<()>) {
    let evicted = || async {
        // Nothing is ever sent: the other end is dropped.
        let _ = evicted.recv().await;
    };
    let gone = async {
        evicted().await;
        None
    };
    let Some(Upgrade { id, far, unread }) = future::or(client.speak_http(), gone).await else { return };
    let Client { stream, place, happened } = client;
    if let Some(unread) = unread {
        let socket = serve_client(id, Box::new(stream), unread, &budget, far, &happened, &place);
        future::or(socket, evicted()).await;
    }
    // The runtime knows whether the node has been told.
    let _ = happened.send(Happened::Input(Input::LocalEnded { id })).await;
}

/// A connection that the node made a WebSocket of.
struct Upgrade {
    id: LocalId,
    far: Far,
    /// What came with the request; nothing where the client did not take the answer.
    unread: Option<Vec<u8>>,
}

/// One connection.
struct Client {
    stream: TcpStream,
    place: Place<Sender<()>>,
    happened: Sender<Happened>,
}

impl Client {
    async fn speak_http(&mut self) -> Option<Upgrade> {
        let now = || system::now().unix;
        let mut connection = Connection::new();
        let mut buffer = vec![0; 4096];
        // The first request is expected at once; a whole head has one time, and so has a whole body.
        let mut waiting = Waiting::Head;
        let mut until = Instant::now() + patience(waiting);
        loop {
            let written = match connection.next(now()) {
                Step::Read => {
                    let wanted = connection.waiting();
                    if wanted != waiting && (waiting, wanted) != (Waiting::Head, Waiting::Request) {
                        if wanted == Waiting::Body && self.place.begin(Doing::Request).is_err() {
                            return self.refuse(&Connection::busy(now())).await;
                        }
                        waiting = wanted;
                        until = Instant::now() + patience(waiting);
                    }
                    match self.read(&mut buffer, until).await {
                        Read::Some(count) => {
                            connection.received(buffer.get(..count).unwrap_or_default());
                            Some(())
                        }
                        Read::TimedOut => return self.refuse(&connection.timed_out(now())).await,
                        Read::End => None,
                    }
                }
                Step::Write(bytes) => self.write(&bytes).await,
                Step::Refuse(bytes) => return self.refuse(&bytes).await,
                Step::Request(request) => {
                    if self.place.begin(Doing::of(&request)).is_err() {
                        return self.refuse(&Connection::busy(now())).await;
                    }
                    let Answer { response, upgrade, busy } = self.ask(request).await?;
                    let bytes = connection.respond(&response, now());
                    let written = self.write(&bytes).await;
                    drop(busy);
                    if let Some((id, far)) = upgrade {
                        let is_upgraded = written.is_some() && connection.is_upgraded();
                        let unread = is_upgraded.then(|| connection.into_unread());
                        return Some(Upgrade { id, far, unread });
                    }
                    // There are as many places to wait in as there are places.
                    let _ = self.place.begin(Doing::Waiting);
                    waiting = Waiting::Request;
                    until = Instant::now() + patience(waiting);
                    written
                }
            };
            if written.is_none() || connection.is_closed() {
                return None;
            }
        }
    }

    async fn ask(&self, request: LocalRequest) -> Option<Answer> {
        let (answer, answered): (_, Receiver<Answer>) = smol::channel::bounded(1);
        self.happened.send(Happened::Local { request, answer }).await.ok()?;
        answered.recv().await.ok()
    }

    async fn read(&mut self, buffer: &mut [u8], until: Instant) -> Read {
        let timeout = async {
            Timer::at(until).await;
            Read::TimedOut
        };
        let read = async {
            match self.stream.read(buffer).await {
                Ok(count) if count > 0 => Read::Some(count),
                _ => Read::End,
            }
        };
        future::or(read, timeout).await
    }

    /// Says why, and waits a moment until that is read: a connection closed with unread data is reset.
    async fn refuse(&mut self, answer: &[u8]) -> Option<Upgrade> {
        self.write(answer).await?;
        self.stream.shutdown(Shutdown::Write).ok()?;
        let timeout = async {
            Timer::after(REFUSAL_TIMEOUT).await;
        };
        let drain = async {
            let mut buffer = vec![0; 4096];
            while matches!(self.stream.read(&mut buffer).await, Ok(count) if count > 0) {}
        };
        future::or(drain, timeout).await;
        None
    }

    /// `None` when the client took too long or the connection broke.
    async fn write(&mut self, bytes: &[u8]) -> Option<()> {
        let timeout = async {
            Timer::after(WRITE_TIMEOUT).await;
            None
        };
        future::or(async { self.stream.write_all(bytes).await.ok() }, timeout).await
    }
}

enum Read {
    Some(usize),
    End,
    TimedOut,
}
