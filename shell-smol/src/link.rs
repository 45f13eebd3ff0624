//! The transport of the tunnel: one WebSocket, full duplex.

use std::future::Future;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use async_tungstenite::tungstenite::protocol::CloseFrame;
use async_tungstenite::tungstenite::protocol::frame::coding::CloseCode;
use async_tungstenite::tungstenite::{Error, Message};
use async_tungstenite::{WebSocketReceiver, WebSocketSender, WebSocketStream, client_async_with_config};
use consensus_core::io::{Audience, Input, LinkEnd, LinkId};
use shell_blocking::dial::DialError;
use shell_blocking::tls::Tls;
use shell_blocking::websocket;
use smol::channel::{Receiver, Sender};
use smol::io::{AsyncReadExt as _, AsyncWriteExt as _};
use smol::stream::StreamExt as _;
use smol::{Task, Timer, future};

use crate::dial::{self, Transport};
use crate::runtime::Happened;

/// What is queued for a server that does not read. Over it the link is given up: the node answers what it was asked,
/// and a server that asks without reading the answers is no peer.
const MAX_QUEUED: usize = 64 * 1024 * 1024;

/// How long the server may take to answer a close frame, or to take one.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(2);

enum Outgoing {
    Message(Vec<u8>),
    Close(u16, String),
}

/// The runtime's end of a link. Dropping it ends the transport at once.
pub(crate) struct Link {
    pub(crate) id: LinkId,
    outgoing: Sender<Outgoing>,
    queued: Arc<AtomicUsize>,
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
    ) -> Self {
        let (outgoing, to_send) = smol::channel::unbounded();
        let queued = Arc::new(AtomicUsize::new(0));
        let task = executor.spawn(run(id, url, tls, happened, to_send, Arc::clone(&queued)));
        Self { id, outgoing, queued, task }
    }

    /// Queues a message. `false` when the server does not take what it is sent.
    pub(crate) fn send(&self, data: Vec<u8>) -> bool {
        let length = data.len();
        let queued = self.queued.fetch_add(length, Ordering::Relaxed) + length;
        // A link that has ended takes nothing; its end is on its way to the node.
        let _ = self.outgoing.try_send(Outgoing::Message(data));
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

async fn take_leave(
    leave: Leave,
    mut sender: WebSocketSender<Transport>,
    mut receiver: WebSocketReceiver<Transport>,
) {
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

type Halves = (WebSocketSender<Transport>, WebSocketReceiver<Transport>);

async fn connect(url: &str, tls: &Tls) -> Result<Halves, LinkEnd> {
    let target = websocket::target(url)?;
    let request = websocket::request(url, &target)?;
    let transport = dial::dial(&target, Audience::Operator, tls).await.map_err(DialError::into_link_end)?;
    match client_async_with_config(request, transport, Some(websocket::config())).await {
        Ok((socket, _)) => Ok(socket.split()),
        Err(error) => Err(websocket::not_upgraded(&error)),
    }
}

/// Reads and writes until one of the two ends.
async fn converse(
    link: LinkId,
    sender: &mut WebSocketSender<Transport>,
    receiver: &mut WebSocketReceiver<Transport>,
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
                Some(Ok(Message::Ping(_) | Message::Pong(_) | Message::Frame(_))) => continue,
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
                Ok(Outgoing::Message(data)) => {
                    let length = data.len();
                    if sender.send(Message::Binary(data.into())).await.is_err() {
                        break;
                    }
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
