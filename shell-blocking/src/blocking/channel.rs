//! A WebSocket that the run loop reads and writes without ever being blocked by it: the tunnel's, or a client's of the
//! local API.

use std::collections::VecDeque;
use std::io::{self, ErrorKind, Read as _};
use std::os::fd::{AsFd as _, BorrowedFd};
use std::time::Instant;

use consensus_core::io::LinkEnd;
use rustix::event::PollFlags;
use tungstenite::protocol::frame::coding::CloseCode;
use tungstenite::protocol::{CloseFrame, Role};
use tungstenite::{Error, Message, WebSocket};

use crate::budget::{Budget, Share};
use crate::connect::Transport;
use crate::places::{Doing, Place};
use crate::websocket::{self, BYTES_A_TURN, CLIENT_CLOSE_TIMEOUT, CLIENT_TIMEOUT, CLOSE_TIMEOUT, Intake};

/// A WebSocket over TCP or TLS.
pub(super) type Socket = WebSocket<Fair>;

/// What is queued for a peer that does not read. Over it the connection is given up. Responses alone do not get there:
/// what is queued counts against the [`budget`](crate::budget) that new ones are read within.
const MAX_UNSENT: usize = 256 * 1024 * 1024;

/// What a control frame takes of a turn's bytes: it is small, and costs an answer.
const CONTROL_COST: usize = 1024;

/// A close frame has 125 bytes at most, two of them for the code (RFC 6455, 5.5).
const MAX_CLOSE_REASON: usize = 123;

/// A transport that says it has no more after so many bytes, until its next turn.
#[derive(Debug)]
pub(super) struct Fair {
    transport: Transport,
    left: usize,
    /// For a client of the local API.
    intake: Option<Intake>,
}

impl Fair {
    /// One whose turn does not end: for opening, on a thread of its own.
    pub(super) const fn new(transport: Transport) -> Self {
        Self { transport, left: usize::MAX, intake: None }
    }

    pub(super) fn set_nonblocking(&mut self) -> io::Result<()> {
        self.transport.set_nonblocking()
    }
}

impl io::Read for Fair {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.left == 0 {
            return Err(ErrorKind::WouldBlock.into());
        }
        let read = self.transport.read(buffer)?;
        self.left = self.left.saturating_sub(read);
        if let Some(intake) = &mut self.intake {
            intake.read(read)?;
        }
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

/// An open WebSocket, or one on its way out.
#[derive(Debug)]
pub(super) struct Channel {
    socket: Socket,
    /// What the library has not been given: it takes one message after the other, because its own buffer moves all of
    /// its content at every partial write.
    unsent: VecDeque<(Vec<u8>, Share)>,
    unsent_bytes: usize,
    /// The message that the library is writing: its length, and its share.
    writing: Option<(usize, Share)>,
    /// Payload bytes that the transport took and nobody was told of yet.
    sent: usize,
    budget: Budget,
    /// Whether the transport took less than it was given.
    is_full: bool,
    is_held: bool,
    /// Writing failed: the reading end knows better why the connection ended.
    is_broken: bool,
    stage: Stage,
    of_client: Option<OfClient>,
}

/// What is different about a client of the local API.
#[derive(Debug)]
struct OfClient {
    place: Place<()>,
    has_spoken: bool,
    /// When what the transport does not take must be taken.
    until: Option<Instant>,
}

#[derive(Debug)]
enum Stage {
    Open,
    /// Nothing more is to be sent but what is unsent, and then this frame.
    Sending {
        frame: CloseFrame,
        until: Instant,
    },
    /// The last frame is written; the peer's answer and the end of its connection are waited for.
    Closing {
        until: Instant,
    },
    /// The peer broke the rules and has been told; what it still sends is read over, because a connection closed
    /// with unread data is reset, and the reset would overtake what it was told.
    Draining {
        until: Instant,
    },
}

/// What reading gave.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Read {
    /// A message.
    Binary(Vec<u8>),
    /// A message.
    Text(String),
    /// Nothing more now.
    Nothing,
    /// The WebSocket has ended for the node; the transport may linger.
    End(LinkEnd),
}

impl Channel {
    /// The tunnel.
    pub(super) fn new(socket: Socket, budget: Budget) -> Self {
        Self {
            socket,
            unsent: VecDeque::new(),
            unsent_bytes: 0,
            writing: None,
            sent: 0,
            budget,
            is_full: false,
            is_held: false,
            is_broken: false,
            stage: Stage::Open,
            of_client: None,
        }
    }

    /// A client of the local API that was told it has a WebSocket; `unread` came with its request.
    pub(super) fn of_client(transport: Transport, unread: Vec<u8>, place: Place<()>, budget: Budget) -> Self {
        let mut intake = Intake::new(&budget);
        // At most one read: it cannot be too much.
        let _ = intake.read(unread.len());
        let fair = Fair { transport, left: BYTES_A_TURN, intake: Some(intake) };
        let config = Some(websocket::config());
        let socket = WebSocket::from_partially_read(fair, unread, Role::Server, config);
        let mut channel = Self::new(socket, budget);
        channel.of_client = Some(OfClient { place, has_spoken: false, until: None });
        channel
    }

    /// The number of its place, if it is a client's.
    pub(super) fn place(&self) -> Option<u64> {
        self.of_client.as_ref().map(|client| client.place.number())
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

    /// What it waits for.
    pub(super) fn wants(&self) -> PollFlags {
        let read = if self.wants_to_read() { PollFlags::IN } else { PollFlags::empty() };
        let write = if self.wants_to_write() { PollFlags::OUT } else { PollFlags::empty() };
        read | write
    }

    /// Whether it wants to know when there is something to read.
    pub(super) fn wants_to_read(&self) -> bool {
        !self.is_held || self.is_broken
    }

    /// Whether it wants to know when the transport takes more.
    pub(super) fn wants_to_write(&self) -> bool {
        self.is_full
    }

    /// Reads no more for now, or goes on.
    pub(super) fn hold(&mut self, hold: bool) {
        self.is_held = hold;
    }

    /// Payload bytes of whole messages that the transport took since this was last asked.
    pub(super) fn take_sent(&mut self) -> usize {
        core::mem::take(&mut self.sent)
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
            Error::Io(error) => LinkEnd::Lost { detail: error.to_string() },
            error => websocket::failed(&error).0,
        })
    }

    fn try_write(&mut self) -> Result<(), Error> {
        let written = self.write_all();
        self.is_broken |= written.is_err();
        if let Some(client) = &mut self.of_client {
            // A message that goes out makes a new time for the next.
            match &written {
                Ok(()) if !self.is_full => client.until = None,
                _ => {
                    client.until.get_or_insert_with(|| Instant::now() + CLIENT_TIMEOUT);
                }
            }
        }
        written
    }

    fn write_all(&mut self) -> Result<(), Error> {
        self.is_full = false;
        loop {
            if is_blocked(self.socket.flush())? {
                self.is_full = true;
                return Ok(());
            }
            if let Some((length, _)) = self.writing.take() {
                self.sent += length;
                if let Some(client) = &mut self.of_client {
                    client.until = None;
                }
            }
            if let Some((data, share)) = self.unsent.pop_front() {
                self.unsent_bytes -= data.len();
                self.writing = Some((data.len(), share));
                // One that blocks is with the library, and goes out by the flushes above.
                is_blocked(self.socket.write(Message::Binary(data.into())))?;
            } else if let Stage::Sending { frame, until } = &self.stage {
                let (frame, until) = (frame.clone(), *until);
                self.stage = Stage::Closing { until: until.min(Instant::now() + CLIENT_CLOSE_TIMEOUT) };
                is_blocked(self.socket.close(Some(frame)))?;
            } else {
                return Ok(());
            }
        }
    }

    /// Reads one message. Called until it gives nothing: TLS may hold messages of which the system knows nothing.
    pub(super) fn read(&mut self) -> Read {
        loop {
            return match self.read_message() {
                Ok(Message::Binary(data)) => Read::Binary(data.into()),
                Ok(Message::Text(text)) => Read::Text(text.as_str().to_owned()),
                Ok(Message::Ping(_) | Message::Pong(_) | Message::Frame(_)) => continue,
                Ok(Message::Close(frame)) => {
                    self.stage = Stage::Closing { until: Instant::now() + CLOSE_TIMEOUT };
                    // The library has queued the answer.
                    let _ = self.try_write();
                    Read::End(websocket::closed(frame.as_ref()))
                }
                Err(Error::Io(error)) if error.kind() == ErrorKind::WouldBlock => {
                    // Answers to pings go out with the next write; there may be none soon.
                    match self.write() {
                        Ok(()) => Read::Nothing,
                        Err(end) => Read::End(end),
                    }
                }
                Err(error) => {
                    let (end, answer) = websocket::failed(&error);
                    self.end_at_fault(answer);
                    Read::End(describe(end, &error))
                }
            };
        }
    }

    fn read_message(&mut self) -> Result<Message, Error> {
        let message = self.socket.read()?;
        let turn = self.socket.get_mut();
        match &message {
            Message::Ping(data) | Message::Pong(data) => {
                turn.left = turn.left.saturating_sub(CONTROL_COST);
                if let Some(intake) = &mut turn.intake {
                    intake.took_control(data.len());
                }
            }
            Message::Binary(_) | Message::Text(_) => {
                if let Some(intake) = &mut turn.intake {
                    intake.took_message();
                }
                if let Some(client) = self.of_client.as_mut().filter(|client| !client.has_spoken) {
                    client.has_spoken = true;
                    // One that had to go is gone already.
                    let _ = client.place.begin(Doing::WebSocket);
                }
            }
            Message::Close(_) | Message::Frame(_) => {}
        }
        Ok(message)
    }

    /// Tells a peer that broke the rules, and reads no more of it: the library's reader is not to be used again.
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
        let timeout = if self.of_client.is_some() { CLIENT_TIMEOUT } else { CLOSE_TIMEOUT };
        self.stage = Stage::Sending { frame, until: Instant::now() + timeout };
        self.is_held = false;
        if !self.is_full && self.try_write().is_err() {
            self.stage = Stage::Draining { until: Instant::now() };
        }
    }

    /// When it is given up: on its way out, or because a client does not read.
    pub(super) fn until(&self) -> Option<Instant> {
        match &self.stage {
            Stage::Open => self.of_client.as_ref().and_then(|client| client.until),
            Stage::Sending { until, .. } | Stage::Closing { until } | Stage::Draining { until } => {
                Some(*until)
            }
        }
    }

    /// Goes on with a WebSocket on its way out. `false` when its transport has ended.
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
                    match self.read_message() {
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

impl Drop for Channel {
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

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, TcpStream};
    use std::thread;

    use super::*;
    use crate::connect::Tcp;
    use crate::places::Places;
    use crate::testing::read_all;

    #[test]
    fn a_client_has_a_time_to_read_each_message_and_to_read_all_before_the_close() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let tcp = Tcp::nonblocking(listener.accept().unwrap().0).unwrap();
        let (place, _) = Places::default().enter(()).unwrap();
        let mut channel = Channel::of_client(Transport::Plain(tcp), Vec::new(), place, Budget::default());
        channel.send(vec![0; 10]).unwrap();
        assert_eq!(channel.until(), None, "nothing waits");
        for _ in 0..2 {
            channel.send(vec![0; 12 << 20]).unwrap();
        }
        let first = channel.until().expect("the client does not read");
        assert!(first <= Instant::now() + CLIENT_TIMEOUT);
        let reading = thread::spawn(move || read_all(client));
        while channel.wants_to_write() {
            channel.write().unwrap();
            assert!(
                channel.until().is_none_or(|until| until >= first),
                "a message that goes out makes a new time"
            );
        }
        assert_eq!(channel.until(), None);
        assert_eq!(channel.take_sent(), 10 + (24 << 20));
        channel.close(1000, &"\u{e9}".repeat(100));
        let until = channel.until().unwrap();
        assert!(until <= Instant::now() + CLIENT_CLOSE_TIMEOUT, "all is written");
        drop(channel);
        let all = reading.join().unwrap().unwrap();
        // Too long a reason is cut between two characters.
        assert_eq!(all[all.len() - 4..], [0xc3, 0xa9, 0xc3, 0xa9]);
        assert_eq!(all[all.len() - 126..][..4], [0x88, 124, 0x03, 0xe8]);
    }
}
