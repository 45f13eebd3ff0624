//! The transport of the tunnel: one WebSocket, full duplex.

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use async_tungstenite::tungstenite::protocol::CloseFrame;
use async_tungstenite::tungstenite::protocol::frame::coding::CloseCode;
use async_tungstenite::tungstenite::{Error, Message};
use async_tungstenite::{WebSocketReceiver, WebSocketSender, WebSocketStream, client_async_with_config};
use consensus_core::io::{Audience, Input, LinkEnd, LinkId};
use shell_blocking::budget::{Budget, Share};
use shell_blocking::dial::DialError;
use shell_blocking::tls::Tls;
use shell_blocking::websocket::{self, BYTES_A_TURN};
use smol::channel::{Receiver, Sender};
use smol::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use smol::stream::StreamExt as _;
use smol::{Task, Timer, future};

use crate::dial::{self, Transport};
use crate::runtime::Happened;

/// What is queued for a server that does not read. Over it the link is given up. Responses alone do not get there:
/// what is queued counts against the [`budget`](shell_blocking::budget) that new ones are read within.
const MAX_QUEUED: usize = 256 * 1024 * 1024;

/// How long the server may take to answer a close frame, or to take one.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(2);

enum Outgoing {
    Message(Vec<u8>, Share),
    Close(u16, String),
}

/// The runtime's end of a link. Dropping it ends the transport at once.
pub(crate) struct Link {
    pub(crate) id: LinkId,
    outgoing: Sender<Outgoing>,
    queued: Arc<AtomicUsize>,
    budget: Budget,
    task: Task<()>,
}

impl Link {
    /// Opens a link; what becomes of it arrives at `happened`.
    pub(crate) fn open(
        executor: &smol::Executor<'static>,
        id: LinkId,
        url: String,
        tls: Tls,
        happened: Sender<Happened>,
        budget: Budget,
    ) -> Self {
        let (outgoing, to_send) = smol::channel::unbounded();
        let queued = Arc::new(AtomicUsize::new(0));
        let task = executor.spawn(run(id, url, tls, happened, to_send, Arc::clone(&queued)));
        Self { id, outgoing, queued, budget, task }
    }

    /// Queues a message. `false` when the server does not take what it is sent.
    pub(crate) fn send(&self, data: Vec<u8>) -> bool {
        let length = data.len();
        let queued = self.queued.fetch_add(length, Ordering::Relaxed) + length;
        // A link that has ended takes nothing; its end is on its way to the node.
        let _ = self.outgoing.try_send(Outgoing::Message(data, self.budget.forced(length)));
        queued <= MAX_QUEUED
    }

    /// Resolves when the transport of a link that has ended for the node has ended as well.
    pub(crate) async fn ended(self) {
        self.task.await;
    }

    /// Queues the close frame, after which nothing is sent. Resolves when the transport has ended.
    pub(crate) async fn close(self, code: u16, reason: String) {
        let _ = self.outgoing.try_send(Outgoing::Close(code, reason));
        self.task.await;
    }
}

async fn run(
    link: LinkId,
    url: String,
    tls: Tls,
    happened: Sender<Happened>,
    to_send: Receiver<Outgoing>,
    queued: Arc<AtomicUsize>,
) {
    let ended = |end| happened.send(Happened::Input(Input::LinkEnded { link, end }));
    match connect(&url, &tls).await {
        Err(end) => {
            let _ = ended(end).await;
        }
        Ok((mut sender, mut receiver)) => {
            let _ = happened.send(Happened::Input(Input::LinkOpened { link })).await;
            let (end, leave) = converse(link, &mut sender, &mut receiver, &happened, &to_send, &queued).await;
            let _ = ended(end).await;
            within(CLOSE_TIMEOUT, take_leave(leave, sender, receiver)).await;
        }
    }
}

/// What is left to do on a transport after the link has ended for the node.
enum Leave {
    /// The library has queued the answer to the server's close frame; the server then ends the connection.
    Answer,
    /// The server broke the rules and is told.
    Tell(CloseFrame),
    /// There is nobody to tell.
    Nothing,
}

async fn take_leave(leave: Leave, mut sender: WebSocketSender<Fair>, mut receiver: WebSocketReceiver<Fair>) {
    match leave {
        Leave::Nothing => {}
        Leave::Answer => while let Some(Ok(_)) = receiver.next().await {},
        Leave::Tell(frame) => {
            let _ = sender.close(Some(frame)).await;
            // A connection closed with unread data is reset, and the reset would overtake the close frame. The
            // library's reader is not to be used again after an error.
            let Ok(socket) = WebSocketStream::reunite(sender, receiver) else { return };
            let mut transport = socket.into_inner();
            let _ = transport.close().await;
            let mut buffer = vec![0; 4096];
            while matches!(transport.read(&mut buffer).await, Ok(length) if length > 0) {}
        }
    }
}

/// Gives up after `time`.
async fn within(time: Duration, work: impl Future<Output = ()>) {
    let timeout = async {
        Timer::after(time).await;
    };
    future::or(work, timeout).await;
}

/// A transport that lets others go first after so many bytes: timers, signals and the writer must not starve while a
/// flood keeps it readable.
struct Fair {
    transport: Transport,
    left: usize,
}

impl Fair {
    const fn new(transport: Transport) -> Self {
        Self { transport, left: BYTES_A_TURN }
    }
}

impl AsyncRead for Fair {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut [u8],
    ) -> Poll<io::Result<usize>> {
        if self.left == 0 {
            self.left = BYTES_A_TURN;
            context.waker().wake_by_ref();
            return Poll::Pending;
        }
        let read = Pin::new(&mut self.transport).poll_read(context, buffer);
        match &read {
            Poll::Ready(Ok(count)) => self.left = self.left.saturating_sub(*count),
            // It waits of its own accord, and everybody else has had a turn when it goes on.
            Poll::Pending => self.left = BYTES_A_TURN,
            Poll::Ready(Err(_)) => {}
        }
        read
    }
}

impl AsyncWrite for Fair {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.transport).poll_write(context, buffer)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.transport).poll_flush(context)
    }

    fn poll_close(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.transport).poll_close(context)
    }
}

type Halves = (WebSocketSender<Fair>, WebSocketReceiver<Fair>);

async fn connect(url: &str, tls: &Tls) -> Result<Halves, LinkEnd> {
    let target = websocket::target(url)?;
    let request = websocket::request(url, &target)?;
    let transport = dial::dial(&target, Audience::Operator, tls).await.map_err(DialError::into_link_end)?;
    match client_async_with_config(request, Fair::new(transport), Some(websocket::config())).await {
        Ok((socket, _)) => Ok(socket.split()),
        Err(error) => Err(websocket::not_upgraded(&error)),
    }
}

/// Reads and writes until one of the two ends.
async fn converse(
    link: LinkId,
    sender: &mut WebSocketSender<Fair>,
    receiver: &mut WebSocketReceiver<Fair>,
    happened: &Sender<Happened>,
    to_send: &Receiver<Outgoing>,
    queued: &AtomicUsize,
) -> (LinkEnd, Leave) {
    let read = async {
        loop {
            let input = match receiver.next().await {
                Some(Ok(Message::Binary(data))) => Input::LinkBinary { link, data: data.into() },
                Some(Ok(Message::Text(text))) => Input::LinkText { link, text: text.as_str().to_owned() },
                Some(Ok(Message::Close(frame))) => return Ok(websocket::closed(frame.as_ref())),
                Some(Ok(Message::Ping(_) | Message::Pong(_) | Message::Frame(_))) => {
                    // They are small and cost an answer each: others go first.
                    future::yield_now().await;
                    continue;
                }
                Some(Err(error)) => return Err(error),
                None => return Err(Error::ConnectionClosed),
            };
            // Waits while the node is busy: that is the back-pressure.
            if happened.send(Happened::Input(input)).await.is_err() {
                future::pending::<()>().await;
            }
        }
    };
    let write = async {
        loop {
            match to_send.recv().await {
                Ok(Outgoing::Message(data, share)) => {
                    let length = data.len();
                    if sender.send(Message::Binary(data.into())).await.is_err() {
                        break;
                    }
                    drop(share);
                    queued.fetch_sub(length, Ordering::Relaxed);
                }
                Ok(Outgoing::Close(code, reason)) => {
                    let frame = CloseFrame { code: CloseCode::from(code), reason: reason.into() };
                    within(CLOSE_TIMEOUT, async {
                        let _ = sender.close(Some(frame)).await;
                        // The reading end sees the answer.
                        future::pending::<()>().await;
                    })
                    .await;
                    return Err(io::Error::from(io::ErrorKind::TimedOut).into());
                }
                // The runtime is gone, and this task with it.
                Err(_) => break,
            }
        }
        // A write that fails shows at the reading end with its reason.
        future::pending().await
    };
    match future::or(read, write).await {
        Ok(end) => (end, Leave::Answer),
        Err(error) => {
            let (end, answer) = websocket::failed(&error);
            (end, answer.map_or(Leave::Nothing, Leave::Tell))
        }
    }
}
