//! A WebSocket, full duplex: the tunnel's, or a client's of the local API.

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use async_tungstenite::tungstenite::protocol::frame::coding::CloseCode;
use async_tungstenite::tungstenite::protocol::{CloseFrame, Role};
use async_tungstenite::tungstenite::{Error, Message};
use async_tungstenite::{WebSocketReceiver, WebSocketSender, WebSocketStream};
use consensus_core::io::{Input, LinkEnd, LinkId, LocalId};
use shell_blocking::budget::{Budget, Share};
use shell_blocking::places::{Doing, Place};
use shell_blocking::websocket::{
    self, BYTES_A_TURN, CLIENT_CLOSE_TIMEOUT, CLIENT_TIMEOUT, CLOSE_TIMEOUT, Intake,
};
use smol::channel::{Receiver, Sender};
use smol::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use smol::stream::StreamExt as _;
use smol::{Timer, future};

use crate::dial::Transport;
use crate::runtime::{Busy, Happened};

/// What is queued for a peer that does not read. Over it the connection is given up. Responses alone do not get there:
/// what is queued counts against the [`budget`](shell_blocking::budget) that new ones are read within.
const MAX_QUEUED: usize = 256 * 1024 * 1024;

/// A WebSocket of the node.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Name {
    Link(LinkId),
    Local(LocalId),
}

impl Name {
    pub(crate) fn ended(self, end: LinkEnd) -> Input {
        match self {
            Self::Link(link) => Input::LinkEnded { link, end },
            Self::Local(id) => Input::LocalEnded { id },
        }
    }

    fn binary(self, data: Vec<u8>) -> Input {
        match self {
            Self::Link(link) => Input::LinkBinary { link, data },
            Self::Local(id) => Input::LocalMessage { id, data },
        }
    }

    fn text(self, text: &str) -> Input {
        match self {
            Self::Link(link) => Input::LinkText { link, text: text.to_owned() },
            Self::Local(id) => Input::LocalMessage { id, data: text.as_bytes().to_vec() },
        }
    }

    /// For one message, if it has a time at all, and for all that is left before a close frame.
    const fn timeouts(self) -> (Option<Duration>, Duration) {
        match self {
            Self::Link(_) => (None, CLOSE_TIMEOUT),
            Self::Local(_) => (Some(CLIENT_TIMEOUT), CLIENT_TIMEOUT),
        }
    }
}

enum Outgoing {
    Message(Vec<u8>, Share),
    Close(u16, String, Busy),
}

/// The runtime's end of a WebSocket.
pub(crate) struct Channel {
    outgoing: Sender<Outgoing>,
    state: Arc<State>,
    budget: Budget,
}

/// The end of whoever owns the transport.
pub(crate) struct Far {
    to_send: Receiver<Outgoing>,
    state: Arc<State>,
}

/// What both ends see.
struct State {
    /// Payload bytes that the transport has not taken.
    queued: AtomicUsize,
    /// Payload bytes that it took and the node was not told of.
    sent: AtomicUsize,
    is_held: AtomicBool,
    /// Writing failed: the reading end knows better why, and is not to be held.
    is_broken: AtomicBool,
    look: Sender<()>,
    /// Whoever is held looks again.
    looked: Receiver<()>,
}

impl State {
    async fn wait_while_held(&self) {
        while self.is_held.load(Ordering::SeqCst) && !self.is_broken.load(Ordering::SeqCst) {
            let _ = self.looked.recv().await;
        }
    }

    fn set(&self, flag: &AtomicBool, value: bool) {
        flag.store(value, Ordering::SeqCst);
        // One that is full is as good.
        let _ = self.look.try_send(());
    }
}

impl Channel {
    pub(crate) fn new(budget: Budget) -> (Self, Far) {
        // Bounded by what the node sends, and by MAX_QUEUED.
        let (outgoing, to_send) = smol::channel::unbounded();
        let (look, looked) = smol::channel::bounded(1);
        let state = Arc::new(State {
            queued: AtomicUsize::new(0),
            sent: AtomicUsize::new(0),
            is_held: AtomicBool::new(false),
            is_broken: AtomicBool::new(false),
            look,
            looked,
        });
        (Self { outgoing, state: Arc::clone(&state), budget }, Far { to_send, state })
    }

    /// Queues a message. `false` when the peer does not take what it is sent.
    pub(crate) fn send(&self, data: Vec<u8>) -> bool {
        let length = data.len();
        let queued = self.state.queued.fetch_add(length, Ordering::Relaxed) + length;
        // One that has ended takes nothing; its end is on its way to the node.
        let _ = self.outgoing.try_send(Outgoing::Message(data, self.budget.forced(length)));
        queued <= MAX_QUEUED
    }

    /// Queues the close frame, after which nothing is sent. `busy` is dropped when the transport has ended.
    pub(crate) fn close(&self, code: u16, reason: String, busy: Busy) {
        self.hold(false);
        let _ = self.outgoing.try_send(Outgoing::Close(code, reason, busy));
    }

    /// Reads no more for now, or goes on.
    pub(crate) fn hold(&self, hold: bool) {
        self.state.set(&self.state.is_held, hold);
    }

    /// Payload bytes of whole messages that the transport took since this was last asked.
    pub(crate) fn take_sent(&self) -> usize {
        self.state.sent.swap(0, Ordering::SeqCst)
    }
}

/// Turns a connection of the local API into a WebSocket, and works it to its end; `unread` came with its request.
pub(crate) async fn serve_client(
    id: LocalId,
    transport: Transport,
    unread: Vec<u8>,
    budget: &Budget,
    far: Far,
    happened: &Sender<Happened>,
    place: &Place<Sender<()>>,
) {
    let mut intake = Intake::new(budget);
    // At most one read: it cannot be too much.
    let _ = intake.read(unread.len());
    let intake = Arc::new(Mutex::new(intake));
    let fair = Fair { intake: Some(Arc::clone(&intake)), ..Fair::new(transport) };
    let config = Some(websocket::config());
    let socket = WebSocketStream::from_partially_read(fair, unread, Role::Server, config).await;
    work(Name::Local(id), socket, Some(OfClient { intake, place }), far, happened).await;
}

/// What is different about a client of the local API.
pub(crate) struct OfClient<'a> {
    intake: Arc<Mutex<Intake>>,
    place: &'a Place<Sender<()>>,
}

/// Works a WebSocket to its end, and tells that.
pub(crate) async fn work(
    name: Name,
    socket: WebSocketStream<Fair>,
    client: Option<OfClient<'_>>,
    far: Far,
    happened: &Sender<Happened>,
) {
    let (mut sender, mut receiver) = socket.split();
    let mut busy = None;
    let reading = read(name, &mut receiver, client, &far.state, happened);
    let writing = write(name, &mut sender, &far, happened, &mut busy);
    let (end, leave) = match future::or(reading, writing).await {
        Ok(end) => (end, Leave::Answer),
        Err(error) => {
            let (end, answer) = websocket::failed(&error);
            (end, answer.map_or(Leave::Nothing, Leave::Tell))
        }
    };
    let _ = happened.send(Happened::Input(name.ended(end))).await;
    within(CLOSE_TIMEOUT, take_leave(leave, sender, receiver)).await;
}

async fn read(
    name: Name,
    receiver: &mut WebSocketReceiver<Fair>,
    client: Option<OfClient<'_>>,
    state: &State,
    happened: &Sender<Happened>,
) -> Result<LinkEnd, Error> {
    let mut has_spoken = false;
    loop {
        state.wait_while_held().await;
        let message = receiver.next().await.unwrap_or(Err(Error::ConnectionClosed))?;
        if let Some(OfClient { intake, place }) = &client {
            match &message {
                Message::Ping(data) | Message::Pong(data) => lock(intake).took_control(data.len()),
                Message::Binary(_) | Message::Text(_) => {
                    lock(intake).took_message();
                    if !core::mem::replace(&mut has_spoken, true) {
                        // One that had to go ends by itself.
                        let _ = place.begin(Doing::WebSocket);
                    }
                }
                Message::Close(_) | Message::Frame(_) => {}
            }
        }
        let input = match message {
            Message::Binary(data) => name.binary(data.into()),
            Message::Text(text) => name.text(text.as_str()),
            Message::Close(frame) => return Ok(websocket::closed(frame.as_ref())),
            Message::Ping(_) | Message::Pong(_) | Message::Frame(_) => {
                // They are small and cost an answer each: others go first.
                future::yield_now().await;
                continue;
            }
        };
        // Waits while the node is busy: that is the back-pressure. After the node's end nobody hears it.
        let _ = happened.send(Happened::Input(input)).await;
    }
}

async fn write(
    name: Name,
    sender: &mut WebSocketSender<Fair>,
    far: &Far,
    happened: &Sender<Happened>,
    busy: &mut Option<Busy>,
) -> Result<LinkEnd, Error> {
    let (of_message, of_close) = name.timeouts();
    let late = || Err(io::Error::from(io::ErrorKind::TimedOut).into());
    while let Ok(outgoing) = far.to_send.recv().await {
        match outgoing {
            Outgoing::Message(data, share) => {
                let length = data.len();
                let send = async { Some(sender.send(Message::Binary(data.into())).await) };
                let timeout = async {
                    match of_message {
                        Some(time) => Timer::after(time).await,
                        None => future::pending().await,
                    };
                    None
                };
                match future::or(send, timeout).await {
                    Some(Ok(())) => {}
                    Some(Err(_)) => {
                        // It shows at the reading end with its reason.
                        far.state.set(&far.state.is_broken, true);
                        return future::pending().await;
                    }
                    None => return late(),
                }
                drop(share);
                far.state.queued.fetch_sub(length, Ordering::Relaxed);
                // Once for all that the node was not told of yet. One that finds no room needs none: the runtime looks
                // before it waits.
                if far.state.sent.fetch_add(length, Ordering::SeqCst) == 0 && matches!(name, Name::Link(_)) {
                    let _ = happened.try_send(Happened::Sent);
                }
            }
            Outgoing::Close(code, reason, until_ended) => {
                *busy = Some(until_ended);
                let frame = CloseFrame { code: CloseCode::from(code), reason: reason.into() };
                let until = Instant::now() + of_close;
                within(of_close, async {
                    let _ = sender.close(Some(frame)).await;
                })
                .await;
                // The reading end sees the answer.
                Timer::at(until.min(Instant::now() + CLIENT_CLOSE_TIMEOUT)).await;
                return late();
            }
        }
    }
    // The runtime does not want it any more.
    Err(Error::ConnectionClosed)
}

/// What is left to do on a transport after the WebSocket has ended for the node.
enum Leave {
    /// The library has queued the answer to the peer's close frame; the peer then ends the connection.
    Answer,
    /// The peer broke the rules and is told.
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
pub(crate) struct Fair {
    transport: Transport,
    left: usize,
    /// For a client of the local API.
    intake: Option<Arc<Mutex<Intake>>>,
}

impl Fair {
    pub(crate) const fn new(transport: Transport) -> Self {
        Self { transport, left: BYTES_A_TURN, intake: None }
    }
}

fn lock(intake: &Mutex<Intake>) -> MutexGuard<'_, Intake> {
    // Nothing under this lock can leave it half-changed.
    intake.lock().unwrap_or_else(PoisonError::into_inner)
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
            Poll::Ready(Ok(count)) => {
                self.left = self.left.saturating_sub(*count);
                if let Some(intake) = &self.intake {
                    lock(intake).read(*count)?;
                }
            }
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
