//! The local API's sockets.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

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

/// For the answer to be taken.
const WRITE_TIMEOUT: Duration = Duration::from_secs(30);

/// Listens; dropping the task ends it.
pub(crate) fn listen(
    executor: &Arc<Executor<'static>>,
    address: SocketAddr,
    log: &Log,
    happened: Sender<Happened>,
) -> Result<Task<()>, String> {
    let describe = |error: std::io::Error| format!("cannot listen on {address}: {error}");
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
        let _ = write(&mut stream, &Connection::busy(now())).await;
        return;
    }
    let mut connection = Connection::new();
    let mut buffer = vec![0; 4096];
    loop {
        let step = connection.next(now());
        let written = match step {
            Step::Read => match read(&mut stream, &mut buffer, connection.waiting()).await {
                Some(0) | None => {
                    let last = connection.timed_out(now());
                    let _ = write(&mut stream, &last).await;
                    return;
                }
                Some(count) => {
                    connection.received(buffer.get(..count).unwrap_or_default());
                    Some(())
                }
            },
            Step::Write(bytes) => write(&mut stream, &bytes).await,
            Step::Refuse(bytes) => {
                let _ = write(&mut stream, &bytes).await;
                None
            }
            Step::Request(request) => match ask(&happened, request).await {
                Some(response) => {
                    let bytes = connection.respond(&response, now());
                    write(&mut stream, &bytes).await
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

/// `None` when the client took too long or the connection broke.
async fn read(stream: &mut TcpStream, buffer: &mut [u8], waiting: Waiting) -> Option<usize> {
    let timeout = async {
        Timer::after(patience(waiting)).await;
        None
    };
    future::or(async { stream.read(buffer).await.ok() }, timeout).await
}

async fn write(stream: &mut TcpStream, bytes: &[u8]) -> Option<()> {
    let timeout = async {
        Timer::after(WRITE_TIMEOUT).await;
        None
    };
    future::or(async { stream.write_all(bytes).await.ok() }, timeout).await
}
