//! The transport of the tunnel: one WebSocket, full duplex.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use async_tungstenite::tungstenite::protocol::CloseFrame;
use async_tungstenite::tungstenite::protocol::frame::coding::CloseCode;
use async_tungstenite::tungstenite::{Error, Message};
use async_tungstenite::{WebSocketReceiver, WebSocketSender, client_async_with_config};
use consensus_core::io::{Audience, Input, LinkEnd, LinkId};
use shell_blocking::dial::DialError;
use shell_blocking::tls::Tls;
use shell_blocking::websocket;
use smol::channel::{Receiver, Sender};
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
    let end = match connect(&url, &tls).await {
        Ok((sender, receiver)) => {
            let _ = happened.send(Happened::Input(Input::LinkOpened { link })).await;
            converse(link, sender, receiver, &happened, &to_send, &queued).await
        }
        Err(end) => end,
    };
    let _ = happened.send(Happened::Input(Input::LinkEnded { link, end })).await;
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
    mut sender: WebSocketSender<Transport>,
    mut receiver: WebSocketReceiver<Transport>,
    happened: &Sender<Happened>,
    to_send: &Receiver<Outgoing>,
    queued: &AtomicUsize,
) -> LinkEnd {
    let read = async {
        let mut closed = None;
        loop {
            let input = match receiver.next().await {
                Some(Ok(Message::Binary(data))) => Input::LinkBinary { link, data: data.into() },
                Some(Ok(Message::Text(text))) => Input::LinkText { link, text: text.as_str().to_owned() },
                Some(Ok(Message::Close(frame))) => {
                    closed = Some(websocket::closed(frame.as_ref()));
                    continue;
                }
                Some(Ok(Message::Ping(_) | Message::Pong(_) | Message::Frame(_))) => continue,
                Some(Err(error)) => return closed.ok_or(error),
                None => return closed.ok_or(Error::ConnectionClosed),
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
                    let close = async {
                        let _ = sender.close(Some(frame)).await;
                        future::pending::<()>().await;
                    };
                    future::or(close, async {
                        Timer::after(CLOSE_TIMEOUT).await;
                    })
                    .await;
                    return Ok(LinkEnd::Lost { detail: "the close was not answered".to_owned() });
                }
                // The runtime is gone, and this task with it.
                Err(_) => break,
            }
        }
        // A write that fails shows at the reading end with its reason.
        future::pending().await
    };
    match future::or(read, write).await {
        Ok(end) => end,
        Err(error) => {
            let (end, answer) = websocket::failed(&error);
            if let Some(frame) = answer {
                let close = async {
                    let _ = sender.close(Some(frame)).await;
                };
                future::or(close, async {
                    Timer::after(CLOSE_TIMEOUT).await;
                })
                .await;
            }
            end
        }
    }
}
