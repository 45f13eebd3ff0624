//! TCP connections to targets: opened by workers, then read and written by the run loop.

use std::collections::{BTreeMap, VecDeque};
use std::net::TcpStream;
use std::os::fd::AsFd as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use consensus_core::io::{Audience, FetchError, FetchErrorKind, Input, SocketEnd, SocketId};
use rustix::event::PollFlags;

use super::inbox::{Inbox, Said};
use super::watch::{Token, Watch};
use crate::connect::{Limit, dial_tcp};
use crate::dial::DialError;
use crate::names::Names;
use crate::socket::{MAX_LEAVING, Traffic};
use crate::workers::Workers;

/// Connections being opened at once, each by a thread. A target that does not answer holds one for seconds: there are
/// enough of them that many such targets do not hold up the others.
const MAX_OPENING: usize = 128;

/// All sockets. What there is to tell the node goes to the queue that each call is handed.
pub(super) struct Sockets {
    workers: Workers,
    names: Names,
    inbox: Arc<Inbox>,
    sockets: BTreeMap<SocketId, Socket>,
    /// Sockets with something to write that was not tried yet.
    unwritten: Vec<SocketId>,
    leaving: usize,
}

struct Socket {
    stage: Stage,
    traffic: Traffic,
}

enum Stage {
    /// A worker opens it; it may be told to stop.
    Opening(Arc<AtomicBool>),
    Open(TcpStream),
    /// The node knows it no more.
    Leaving(TcpStream),
}

impl Sockets {
    pub(super) fn new(inbox: &Arc<Inbox>, names: Names) -> Self {
        Self {
            names,
            workers: Workers::new("open-socket", MAX_OPENING),
            inbox: Arc::clone(inbox),
            sockets: BTreeMap::new(),
            unwritten: Vec::new(),
            leaving: 0,
        }
    }

    pub(super) fn open(
        &mut self,
        socket: SocketId,
        audience: Audience,
        host: String,
        port: u16,
        timeout: Duration,
        own: &mut VecDeque<Input>,
    ) {
        let cancelled = Arc::new(AtomicBool::new(false));
        let (inbox, names) = (Arc::clone(&self.inbox), self.names.clone());
        // It may wait for a thread: that is part of its time.
        let limit = Limit::new(timeout, &cancelled);
        let open = move || {
            let stream = dial_tcp(&host, port, audience, &names, &limit);
            let result = stream.map_err(DialError::into_fetch_error);
            inbox.say(Said::Connected { socket, result });
        };
        match self.workers.submit(open) {
            Ok(()) => {
                let stage = Stage::Opening(cancelled);
                self.sockets.insert(socket, Socket { stage, traffic: Traffic::default() });
            }
            Err(_) => {
                let detail = "the system gives no thread".to_owned();
                let end = SocketEnd::Unopened(FetchError { kind: FetchErrorKind::Busy, detail });
                own.push_back(Input::SocketEnded { socket, end });
            }
        }
    }

    /// A worker has come to its end.
    pub(super) fn opened(
        &mut self,
        id: SocketId,
        result: Result<TcpStream, FetchError>,
        own: &mut VecDeque<Input>,
    ) {
        // One that is not wanted any more is dropped, and its connection with it.
        let Some(socket) = self.sockets.get_mut(&id) else { return };
        match result {
            Ok(stream) => {
                socket.stage = Stage::Open(stream);
                self.unwritten.push(id);
                own.push_back(Input::SocketOpened { socket: id });
            }
            Err(error) => {
                self.sockets.remove(&id);
                own.push_back(Input::SocketEnded { socket: id, end: SocketEnd::Unopened(error) });
            }
        }
    }

    pub(super) fn send(&mut self, id: SocketId, data: Vec<u8>) {
        if let Some(socket) = self.of_node(id) {
            // What waits for room is written when there is some; all else when the node has said all it wants sent.
            let is_first = !socket.traffic.wants_to_write();
            socket.traffic.send(data);
            if is_first {
                self.unwritten.push(id);
            }
        }
    }

    pub(super) fn read(&mut self, id: SocketId, most: usize) {
        if let Some(socket) = self.of_node(id) {
            socket.traffic.want(most);
        }
    }

    pub(super) fn close(&mut self, id: SocketId) {
        match self.sockets.remove(&id) {
            Some(Socket { stage: Stage::Open(stream), traffic }) => self.leave(id, stream, traffic),
            Some(Socket { stage: Stage::Opening(cancelled), .. }) => cancelled.store(true, Ordering::Relaxed),
            Some(socket @ Socket { stage: Stage::Leaving(_), .. }) => {
                self.sockets.insert(id, socket);
            }
            None => {}
        }
    }

    fn of_node(&mut self, id: SocketId) -> Option<&mut Socket> {
        self.sockets.get_mut(&id).filter(|socket| !matches!(socket.stage, Stage::Leaving(_)))
    }

    fn leave(&mut self, id: SocketId, stream: TcpStream, mut traffic: Traffic) {
        traffic.leave();
        if self.leaving < MAX_LEAVING && traffic.go_on_leaving(&stream) {
            self.leaving += 1;
            self.sockets.insert(id, Socket { stage: Stage::Leaving(stream), traffic });
        }
    }

    /// Writes what was sent since the last turn, each socket's together.
    pub(super) fn write(&mut self, own: &mut VecDeque<Input>) {
        for id in core::mem::take(&mut self.unwritten) {
            self.write_one(id, own);
        }
    }

    fn write_one(&mut self, id: SocketId, own: &mut VecDeque<Input>) {
        let Some(Socket { stage: Stage::Open(stream), traffic }) = self.sockets.get_mut(&id) else { return };
        let bytes = traffic.write(stream);
        if bytes > 0 {
            own.push_back(Input::SocketSent { socket: id, bytes });
        }
    }

    /// Goes on with a socket that is ready.
    pub(super) fn serve(&mut self, id: SocketId, own: &mut VecDeque<Input>) {
        self.write_one(id, own);
        let Some(Socket { stage, traffic }) = self.sockets.get_mut(&id) else { return };
        match stage {
            Stage::Opening(_) => {}
            Stage::Open(stream) => match traffic.read(stream) {
                None => {}
                Some(Ok(data)) => own.push_back(Input::SocketData { socket: id, data }),
                Some(Err(end)) => {
                    own.push_back(Input::SocketEnded { socket: id, end });
                    // The target may still read what is unsent.
                    self.close(id);
                }
            },
            Stage::Leaving(stream) => {
                if !traffic.go_on_leaving(stream) {
                    self.sockets.remove(&id);
                    self.leaving -= 1;
                }
            }
        }
    }

    /// Says what to wait for.
    pub(super) fn watch<'a>(&'a self, watch: &mut Watch<'a>) {
        for (id, socket) in &self.sockets {
            let (Stage::Open(stream) | Stage::Leaving(stream)) = &socket.stage else { continue };
            let read = if socket.traffic.wants_to_read() { PollFlags::IN } else { PollFlags::empty() };
            let write = if socket.traffic.wants_to_write() { PollFlags::OUT } else { PollFlags::empty() };
            watch.on(stream.as_fd(), read | write, Token::Socket(*id));
            watch.until(socket.traffic.until());
        }
    }

    /// Gives up what has had its time.
    pub(super) fn expire(&mut self, now: Instant) {
        if self.leaving > 0 {
            self.sockets.retain(|_, socket| socket.traffic.until().is_none_or(|until| now < until));
            self.leaving = self.sockets.values().filter(|socket| socket.traffic.until().is_some()).count();
        }
    }

    /// Ends what the node has not closed. What it has is still going on while this says so.
    pub(super) fn finish(&mut self) {
        self.sockets.retain(|_, socket| matches!(socket.stage, Stage::Leaving(_)));
    }

    pub(super) fn is_leaving(&self) -> bool {
        self.leaving > 0
    }
}
