//! What raw tunnels lead to: targets that send back what they get.

use std::collections::BTreeMap;

use consensus_core::io::{FetchError, FetchErrorKind, Input, SocketEnd, SocketId};

use super::plan::Dice;

/// One connection.
#[derive(Debug)]
struct Socket {
    stage: Stage,
    /// What came and was not told to have been taken.
    untold: usize,
    /// What is to go back.
    echo: Vec<u8>,
    /// How much is wanted of it.
    wanted: usize,
    /// It hangs up when everything has gone back.
    hangs_up: bool,
    has_sent: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    Opening,
    Refused,
    Open,
}

/// The connections of one process.
#[derive(Debug, Default)]
pub(super) struct Sockets(BTreeMap<SocketId, Socket>);

impl Sockets {
    pub(super) fn open(&mut self, socket: SocketId, opens: bool, dice: &mut Dice) {
        let stage = if opens { Stage::Opening } else { Stage::Refused };
        let hangs_up = dice.happens(30);
        let new = Socket { stage, untold: 0, echo: Vec::new(), wanted: 0, hangs_up, has_sent: false };
        self.0.insert(socket, new);
    }

    pub(super) fn send(&mut self, socket: SocketId, data: Vec<u8>) {
        if let Some(socket) = self.0.get_mut(&socket) {
            socket.untold += data.len();
            socket.echo.extend(data);
        }
    }

    pub(super) fn read(&mut self, socket: SocketId, most: usize) {
        if let Some(socket) = self.0.get_mut(&socket) {
            socket.wanted = most;
        }
    }

    pub(super) fn close(&mut self, socket: SocketId) {
        self.0.remove(&socket);
    }

    /// The next thing that it has to tell.
    pub(super) fn next(&mut self, id: SocketId) -> Option<Input> {
        let socket = self.0.get_mut(&id)?;
        match socket.stage {
            Stage::Refused => {
                self.0.remove(&id);
                let error = FetchError { kind: FetchErrorKind::Connect, detail: "refused".into() };
                return Some(Input::SocketEnded { socket: id, end: SocketEnd::Unopened(error) });
            }
            Stage::Opening => {
                socket.stage = Stage::Open;
                return Some(Input::SocketOpened { socket: id });
            }
            Stage::Open => {}
        }
        if socket.untold > 0 {
            let bytes = std::mem::take(&mut socket.untold);
            return Some(Input::SocketSent { socket: id, bytes });
        }
        if socket.wanted > 0 && !socket.echo.is_empty() {
            let rest = socket.echo.split_off(socket.wanted.min(socket.echo.len()));
            let data = std::mem::replace(&mut socket.echo, rest);
            (socket.wanted, socket.has_sent) = (0, true);
            return Some(Input::SocketData { socket: id, data });
        }
        if socket.hangs_up && socket.has_sent && socket.echo.is_empty() {
            self.0.remove(&id);
            return Some(Input::SocketEnded { socket: id, end: SocketEnd::Closed });
        }
        None
    }
}
