//! TCP connections to targets, a task each.

use std::net::TcpStream;
use std::sync::Arc;
use std::time::Duration;

use consensus_core::io::{Audience, Input, SocketEnd, SocketId};
use shell_blocking::names::Names;
use shell_blocking::socket::Traffic;
use smol::channel::{Receiver, Sender, TryRecvError};
use smol::{Async, Executor, Task, Timer, future};

use crate::dial::{Limit, dial_tcp};
use crate::runtime::{Busy, Happened};

enum Command {
    Send(Vec<u8>),
    Read(usize),
    Leave(Leaving),
}

/// Held while a connection is being left: the end of the node waits for it, and their number is counted.
struct Leaving {
    _busy: Busy,
    _counted: Arc<()>,
}

/// The runtime's end of a connection. Dropping it ends the connection at once.
pub(crate) struct Socket {
    /// Bounded by the node, which closes a connection that does not take what it is sent.
    commands: Sender<Command>,
    /// Whether the node knows that it is open.
    pub(crate) is_open: bool,
    task: Task<()>,
}

/// Where to.
pub(crate) struct Place {
    pub(crate) audience: Audience,
    pub(crate) host: String,
    pub(crate) port: u16,
    pub(crate) timeout: Duration,
}

impl Socket {
    /// Opens a connection; what becomes of it arrives at `happened`.
    pub(crate) fn open(
        executor: &Executor<'static>,
        id: SocketId,
        place: Place,
        names: Names,
        happened: Sender<Happened>,
    ) -> Self {
        let (commands, to_do) = smol::channel::unbounded();
        let task = executor.spawn(run(id, place, names, to_do, happened));
        Self { commands, is_open: false, task }
    }

    pub(crate) fn send(&self, data: Vec<u8>) {
        // One that has ended takes nothing; its end is on its way to the node.
        let _ = self.commands.try_send(Command::Send(data));
    }

    pub(crate) fn read(&self, most: usize) {
        let _ = self.commands.try_send(Command::Read(most));
    }

    /// Writes what is unsent, then ends the connection.
    pub(crate) fn leave(self, busy: Busy, counted: Arc<()>) {
        let _ = self.commands.try_send(Command::Leave(Leaving { _busy: busy, _counted: counted }));
        self.task.detach();
    }

    /// Of a connection whose end the node knows: it may still write what is unsent.
    pub(crate) fn detach(self) {
        self.task.detach();
    }
}

async fn run(
    socket: SocketId,
    place: Place,
    names: Names,
    to_do: Receiver<Command>,
    happened: Sender<Happened>,
) {
    let tell = |input| happened.send(Happened::Input(input));
    let limit = Limit::new(place.timeout);
    match dial_tcp(&place.host, place.port, place.audience, &names, limit).await {
        Err(error) => {
            let end = SocketEnd::Unopened(error.into_fetch_error());
            let _ = tell(Input::SocketEnded { socket, end }).await;
        }
        Ok(stream) => {
            let _ = tell(Input::SocketOpened { socket }).await;
            let stream: Arc<Async<TcpStream>> = stream.into();
            work(socket, &stream, &to_do, &happened).await;
        }
    }
}

async fn work(
    socket: SocketId,
    stream: &Async<TcpStream>,
    to_do: &Receiver<Command>,
    happened: &Sender<Happened>,
) {
    let tell = |input| happened.send(Happened::Input(input));
    let mut traffic = Traffic::default();
    let mut leaving = None;
    let mut next = None;
    loop {
        // All that was asked for since the last turn, so that it is written together.
        loop {
            match next.take().map_or_else(|| to_do.try_recv(), Ok) {
                Ok(Command::Send(data)) => traffic.send(data),
                Ok(Command::Read(most)) => traffic.want(most),
                Ok(Command::Leave(held)) => {
                    leaving = Some(held);
                    traffic.leave();
                }
                Err(TryRecvError::Empty | TryRecvError::Closed) => break,
            }
        }
        if traffic.until().is_none() {
            let bytes = traffic.write(stream.get_ref());
            if bytes > 0 {
                let _ = tell(Input::SocketSent { socket, bytes }).await;
            }
            match traffic.read(stream.get_ref()) {
                None => {}
                Some(Ok(data)) => {
                    let _ = tell(Input::SocketData { socket, data }).await;
                }
                Some(Err(end)) => {
                    let _ = tell(Input::SocketEnded { socket, end }).await;
                    // The target may still read what is unsent.
                    traffic.leave();
                }
            }
        }
        if traffic.until().is_some() && !traffic.go_on_leaving(stream.get_ref()) {
            return drop(leaving);
        }
        next = wait(stream, &traffic, to_do).await;
    }
}

/// Waits until there is something to do. A command is given back.
async fn wait(stream: &Async<TcpStream>, traffic: &Traffic, to_do: &Receiver<Command>) -> Option<Command> {
    let command = async {
        match to_do.recv().await {
            Ok(command) => Some(command),
            // The runtime wants nothing more; it has had the connection left, or this task is at its end.
            Err(_) => future::pending().await,
        }
    };
    let readable = async {
        if !traffic.wants_to_read() {
            future::pending::<()>().await;
        }
        let _ = stream.readable().await;
        None
    };
    let writable = async {
        if !traffic.wants_to_write() {
            future::pending::<()>().await;
        }
        let _ = stream.writable().await;
        None
    };
    let late = async {
        match traffic.until() {
            Some(until) => Timer::at(until).await,
            None => future::pending().await,
        };
        None
    };
    future::or(future::or(command, readable), future::or(writable, late)).await
}
