//! The transport of the tunnel: one WebSocket, opened by a worker, then read and written by the run loop without
//! ever blocking it.

use std::collections::VecDeque;
use std::io::{self, ErrorKind, Read as _};
use std::os::fd::{AsFd as _, BorrowedFd};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

use consensus_core::io::{Audience, Input, LinkEnd, LinkId, OpenStage};
use consensus_core::limits::OPEN_TIMEOUT;
use tungstenite::handshake::HandshakeError;
use tungstenite::protocol::CloseFrame;
use tungstenite::protocol::frame::coding::CloseCode;
use tungstenite::{Error, Message, WebSocket};

use super::connect::{Limit, Transport, dial};
use crate::budget::{Budget, Share};
use crate::dial::DialError;
use crate::tls::Tls;
use crate::websocket::{self, BYTES_A_TURN};

/// A WebSocket over TCP or TLS.
pub(super) type Socket = WebSocket<Fair>;

/// What is queued for a server that does not read. Over it the link is given up. Responses alone do not get there:
/// what is queued counts against the [`budget`](crate::budget) that new ones are read within.
const MAX_UNSENT: usize = 256 * 1024 * 1024;

/// What a control frame takes of a turn's bytes: it is small, and costs an answer.
const CONTROL_COST: usize = 1024;

/// A transport that says it has no more after so many bytes, until its next turn.
#[derive(Debug)]
pub(super) struct Fair {
    transport: Transport,
    left: usize,
}

impl Fair {
    /// One whose turn does not end: for opening, on a thread of its own.
    const fn new(transport: Transport) -> Self {
        Self { transport, left: usize::MAX }
    }
}

impl io::Read for Fair {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.left == 0 {
            return Err(ErrorKind::WouldBlock.into());
        }
        let read = self.transport.read(buffer)?;
        self.left = self.left.saturating_sub(read);
        Ok(read)
    }
}

impl io::Write for Fair {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        self.transport.write(buffer)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.transport.flush()
    }
}

/// How long the server may take to read what is unsent and a close frame, and to answer that.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(2);

/// A close frame has 125 bytes at most, two of them for the code (RFC 6455, 5.5).
const MAX_CLOSE_REASON: usize = 123;

/// The node gives an attempt up after [`OPEN_TIMEOUT`] and says so; that is to be heard, and not this thread's own
/// limit, which only sees to it that the thread ends.
const GRACE: Duration = Duration::from_secs(5);

/// Opens a link, on a thread that may block.
pub(super) fn open(url: &str, tls: &Tls, cancelled: &Arc<AtomicBool>) -> Result<Socket, LinkEnd> {
    let limit = Limit { until: Instant::now() + OPEN_TIMEOUT + GRACE, cancelled: Arc::clone(cancelled) };
    let target = websocket::target(url)?;
    let request = websocket::request(url, &target)?;
    let transport = dial(&target, Audience::Operator, tls, &limit).map_err(DialError::into_link_end)?;
    let upgraded =
        tungstenite::client::client_with_config(request, Fair::new(transport), Some(websocket::config()));
    let mut socket = match upgraded {
        Ok((socket, _)) => socket,
        Err(HandshakeError::Failure(error)) => return Err(websocket::not_upgraded(&error)),
        // The transport waits until its limit and then fails.
        Err(HandshakeError::Interrupted(_)) => {
            let detail = "the server did not answer in time".to_owned();
            return Err(LinkEnd::Unopened { stage: OpenStage::Upgrade, detail });
        }
    };
    let detail = |error: io::Error| LinkEnd::Lost { detail: error.to_string() };
    socket.get_mut().transport.set_nonblocking().map_err(detail)?;
    Ok(socket)
}

/// An open link, or one on its way out.
#[derive(Debug)]
pub(super) struct Link {
    id: LinkId,
    socket: Socket,
    /// What the library has not been given: it takes one message after the other, because its own buffer moves all of
    /// its content at every partial write.
    unsent: VecDeque<(Vec<u8>, Share)>,
    unsent_bytes: usize,
    /// Of the message that the library is writing.
    writing: Option<Share>,
    budget: Budget,
    /// Whether the transport took less than it was given.
    is_full: bool,
    stage: Stage,
}

#[derive(Debug)]
enum Stage {
    Open,
    /// Nothing more is to be sent but what is unsent, and then this frame.
    Sending {
        frame: CloseFrame,
        until: Instant,
    },
    /// The last frame is written; the server's answer and the end of its connection are waited for.
    Closing {
        until: Instant,
    },
    /// The server broke the rules and has been told; what it still sends is read over, because a connection closed
    /// with unread data is reset, and the reset would overtake what it was told.
    Draining {
        until: Instant,
    },
}

/// What reading gave.
#[derive(Debug)]
pub(super) enum Read {
    /// For the node.
    Input(Input),
    /// Nothing more now.
    Nothing,
    /// The link has ended for the node; the transport may linger.
    End(LinkEnd),
}

impl Link {
    pub(super) fn new(id: LinkId, socket: Socket, budget: Budget) -> Self {
        let unsent = VecDeque::new();
        Self {
            id,
            socket,
            unsent,
            unsent_bytes: 0,
            writing: None,
            budget,
            is_full: false,
            stage: Stage::Open,
        }
    }

    pub(super) fn fd(&self) -> BorrowedFd<'_> {
        self.socket.get_ref().transport.as_fd()
    }

    /// Another turn of reading.
    pub(super) fn begin_turn(&mut self) {
        self.socket.get_mut().left = BYTES_A_TURN;
    }

    /// Whether the turn ended before what there is to read.
    pub(super) fn is_unread(&self) -> bool {
        self.socket.get_ref().left == 0
    }

    /// Whether it wants to know when the transport takes more.
    pub(super) fn wants_to_write(&self) -> bool {
        self.is_full
    }

    /// Sends a message, or queues it.
    pub(super) fn send(&mut self, data: Vec<u8>) -> Result<(), LinkEnd> {
        self.unsent_bytes += data.len();
        if self.unsent_bytes > MAX_UNSENT {
            return Err(LinkEnd::Lost { detail: "the server does not read what it is sent".to_owned() });
        }
        let share = self.budget.forced(data.len());
        self.unsent.push_back((data, share));
        if self.is_full { Ok(()) } else { self.write() }
    }

    /// Writes what is unsent, as far as the transport takes it.
    pub(super) fn write(&mut self) -> Result<(), LinkEnd> {
        self.try_write().map_err(|error| match error {
            // The reading end knows better why the connection ended.
            Error::Io(error) => LinkEnd::Lost { detail: error.to_string() },
            error => websocket::failed(&error).0,
        })
    }

    fn try_write(&mut self) -> Result<(), Error> {
        self.is_full = false;
        loop {
            if is_blocked(self.socket.flush())? {
                self.is_full = true;
                return Ok(());
            }
            self.writing = None;
            if let Some((data, share)) = self.unsent.pop_front() {
                self.unsent_bytes -= data.len();
                self.writing = Some(share);
                // One that blocks is with the library, and goes out by the flushes above.
                is_blocked(self.socket.write(Message::Binary(data.into())))?;
            } else if let Stage::Sending { frame, until } = &self.stage {
                let (frame, until) = (frame.clone(), *until);
                self.stage = Stage::Closing { until };
                is_blocked(self.socket.close(Some(frame)))?;
            } else {
                return Ok(());
            }
        }
    }

    /// Reads one message. Called until it gives nothing: TLS may hold messages of which the system knows nothing.
    pub(super) fn read(&mut self) -> Read {
        loop {
            let input = match self.socket.read() {
                Ok(Message::Binary(data)) => Input::LinkBinary { link: self.id, data: data.into() },
                Ok(Message::Text(text)) => Input::LinkText { link: self.id, text: text.as_str().to_owned() },
                Ok(Message::Ping(_) | Message::Pong(_) | Message::Frame(_)) => {
                    let turn = self.socket.get_mut();
                    turn.left = turn.left.saturating_sub(CONTROL_COST);
                    continue;
                }
                Ok(Message::Close(frame)) => {
                    self.stage = Stage::Closing { until: Instant::now() + CLOSE_TIMEOUT };
                    // The library has queued the answer.
                    let _ = self.try_write();
                    return Read::End(websocket::closed(frame.as_ref()));
                }
                Err(Error::Io(error)) if error.kind() == ErrorKind::WouldBlock => {
                    // Answers to pings go out with the next write; there may be none soon.
                    return match self.write() {
                        Ok(()) => Read::Nothing,
                        Err(end) => Read::End(end),
                    };
                }
                Err(error) => {
                    let (end, answer) = websocket::failed(&error);
                    self.end_at_fault(answer);
                    return Read::End(describe(end, &error));
                }
            };
            return Read::Input(input);
        }
    }

    /// Tells a server that broke the rules, and reads no more of it: the library's reader is not to be used again.
    fn end_at_fault(&mut self, answer: Option<CloseFrame>) {
        let until = Instant::now() + CLOSE_TIMEOUT;
        if answer.is_some() {
            self.unsent.clear();
            let _ = self.socket.close(answer);
            self.socket.get_mut().transport.end_writing();
            self.stage = Stage::Draining { until };
        } else {
            self.stage = Stage::Draining { until: Instant::now() };
        }
    }

    /// Sends what is unsent, then a close frame.
    pub(super) fn close(&mut self, code: u16, reason: &str) {
        let mut end = reason.len().min(MAX_CLOSE_REASON);
        while !reason.is_char_boundary(end) {
            end -= 1;
        }
        let frame = CloseFrame { code: CloseCode::from(code), reason: reason[..end].into() };
        self.stage = Stage::Sending { frame, until: Instant::now() + CLOSE_TIMEOUT };
        if !self.is_full && self.try_write().is_err() {
            self.stage = Stage::Draining { until: Instant::now() };
        }
    }

    /// When a link on its way out is given up.
    pub(super) fn until(&self) -> Option<Instant> {
        match &self.stage {
            Stage::Open => None,
            Stage::Sending { until, .. } | Stage::Closing { until } | Stage::Draining { until } => {
                Some(*until)
            }
        }
    }

    /// Goes on with a link on its way out. `false` when its transport has ended.
    pub(super) fn linger(&mut self) -> bool {
        if self.until().is_some_and(|until| Instant::now() >= until) {
            return false;
        }
        self.begin_turn();
        match &self.stage {
            Stage::Draining { .. } => {
                let mut buffer = [0; 4096];
                // A turn's worth; the rest is there the next time.
                for _ in 0..BYTES_A_TURN / buffer.len() {
                    match self.socket.get_mut().transport.tcp().read(&mut buffer) {
                        Ok(0) => return false,
                        Ok(_) => {}
                        Err(error) if error.kind() == ErrorKind::Interrupted => {}
                        Err(error) => return error.kind() == ErrorKind::WouldBlock,
                    }
                }
                true
            }
            Stage::Open | Stage::Sending { .. } | Stage::Closing { .. } => {
                if self.try_write().is_err() {
                    return false;
                }
                loop {
                    match self.socket.read() {
                        Ok(_) => {}
                        Err(Error::Io(error)) if error.kind() == ErrorKind::WouldBlock => return true,
                        // The close is answered and the connection ended; or it is lost, which is as good here.
                        Err(_) => return false,
                    }
                }
            }
        }
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        self.socket.get_mut().transport.tcp().shutdown(std::net::Shutdown::Both);
    }
}

/// Whether a result says that the transport takes or has no more now.
fn is_blocked(result: Result<(), Error>) -> Result<bool, Error> {
    match result {
        Ok(()) => Ok(false),
        Err(Error::Io(error)) if error.kind() == ErrorKind::WouldBlock => Ok(true),
        Err(error) => Err(error),
    }
}

/// What the system or TLS says of a lost connection, without the library's wrapping.
fn describe(end: LinkEnd, error: &Error) -> LinkEnd {
    match (end, error) {
        (LinkEnd::Lost { .. }, Error::Io(error)) => LinkEnd::Lost { detail: crate::tls::describe(error) },
        (end, _) => end,
    }
}
