//! The local API's sockets.

use std::net::{Shutdown, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use consensus_core::event::Level;
use consensus_core::io::LocalRequest;
use shell_blocking::http::server::{Connection, Step, Waiting};
use shell_blocking::log::Log;
use shell_blocking::system;
use smol::channel::Sender;
use smol::io::{AsyncReadExt as _, AsyncWriteExt as _};
use smol::net::TcpStream;
use smol::{Async, Executor, Task, Timer, future};

use crate::runtime::Happened;

/// Clients at once; one more is told so and let go.
const MAX_CLIENTS: usize = 32;

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

/// Listens; dropping the task ends it.
pub(crate) fn listen(
    executor: &Arc<Executor<'static>>,
    address: SocketAddr,
    log: &Log,
    happened: Sender<Happened>,
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
    let clients = Arc::new(AtomicUsize::new(0));
    let spawner = Arc::clone(executor);
    Ok(executor.spawn(async move {
        loop {
            let Ok((stream, _)) = listener.accept().await else {
                // Out of file descriptors, most likely: they come back.
                Timer::after(Duration::from_millis(100)).await;
                continue;
            };
            let stream = TcpStream::from(stream);
            let client = Client::new(&clients);
            let happened = happened.clone();
            spawner.spawn(serve(stream, client, happened)).detach();
        }
    }))
}

/// A place among the clients, given back when dropped.
struct Client {
    clients: Arc<AtomicUsize>,
    has_room: bool,
}

impl Client {
    fn new(clients: &Arc<AtomicUsize>) -> Self {
        let before = clients.fetch_add(1, Ordering::Relaxed);
        Self { clients: Arc::clone(clients), has_room: before < MAX_CLIENTS }
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        self.clients.fetch_sub(1, Ordering::Relaxed);
    }
}

async fn serve(mut stream: TcpStream, client: Client, happened: Sender<Happened>) {
    let now = || system::now().unix;
    if !client.has_room {
        // What was sent already would reset the connection before the answer is read.
        refuse(&mut stream, &Connection::busy(now())).await;
        return;
    }
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
                    waiting = wanted;
                    until = Instant::now() + patience(waiting);
                }
                match read(&mut stream, &mut buffer, until).await {
                    Read::Some(count) => {
                        connection.received(buffer.get(..count).unwrap_or_default());
                        Some(())
                    }
                    Read::TimedOut => {
                        refuse(&mut stream, &connection.timed_out(now())).await;
                        None
                    }
                    Read::End => None,
                }
            }
            Step::Write(bytes) => write(&mut stream, &bytes).await,
            Step::Refuse(bytes) => {
                refuse(&mut stream, &bytes).await;
                None
            }
            Step::Request(request) => match ask(&happened, request).await {
                Some(response) => {
                    let bytes = connection.respond(&response, now());
                    let written = write(&mut stream, &bytes).await;
                    waiting = Waiting::Request;
                    until = Instant::now() + patience(waiting);
                    written
                }
                None => None,
            },
        };
        if written.is_none() || connection.is_closed() {
            return;
        }
    }
}

async fn ask(
    happened: &Sender<Happened>,
    request: LocalRequest,
) -> Option<consensus_core::io::LocalResponse> {
    let (answer, answered) = smol::channel::bounded(1);
    happened.send(Happened::Local { request, answer }).await.ok()?;
    answered.recv().await.ok()
}

enum Read {
    Some(usize),
    End,
    TimedOut,
}

async fn read(stream: &mut TcpStream, buffer: &mut [u8], until: Instant) -> Read {
    let timeout = async {
        Timer::at(until).await;
        Read::TimedOut
    };
    let read = async {
        match stream.read(buffer).await {
            Ok(count) if count > 0 => Read::Some(count),
            _ => Read::End,
        }
    };
    future::or(read, timeout).await
}

/// Says why, and waits a moment until that is read: a connection closed with unread data is reset.
async fn refuse(stream: &mut TcpStream, answer: &[u8]) {
    if write(stream, answer).await.is_none() || stream.shutdown(Shutdown::Write).is_err() {
        return;
    }
    let timeout = async {
        Timer::after(REFUSAL_TIMEOUT).await;
    };
    let drain = async {
        let mut buffer = vec![0; 4096];
        while matches!(stream.read(&mut buffer).await, Ok(count) if count > 0) {}
    };
    future::or(drain, timeout).await;
}

/// `None` when the client took too long or the connection broke.
async fn write(stream: &mut TcpStream, bytes: &[u8]) -> Option<()> {
    let timeout = async {
        Timer::after(WRITE_TIMEOUT).await;
        None
    };
    future::or(async { stream.write_all(bytes).await.ok() }, timeout).await
}
