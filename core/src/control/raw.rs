//! Raw tunnels (protocol.md section 9): a stream that is a TCP connection to a target, through the guard.

use alloc::collections::BTreeMap;
use alloc::string::{String, ToString as _};
use alloc::vec::Vec;

use super::fetching::explain;
use super::flow::Source;
use super::streams::Stream;
use super::{Context, Control, TARGET_CLOSED};
use crate::crypto::Crypto;
use crate::guard;
use crate::io::{Output, SocketEnd, SocketId};
use crate::limits::{MAX_SOCKET_READ, MAX_SOCKET_READS, MAX_SOCKET_UNSENT, MAX_SOCKETS_UNSENT};
use crate::text::printable;
use crate::wire::message;

/// The TCP connections of raw tunnels.
#[derive(Debug, Default)]
pub(super) struct Sockets {
    open: BTreeMap<SocketId, Socket>,
    next: u64,
    /// Bytes that targets have not taken.
    unsent: usize,
}

#[derive(Debug)]
struct Socket {
    stream_id: String,
    origin: String,
    stage: Stage,
    /// Bytes that it has not taken, those that wait for it to open among them.
    unsent: usize,
}

#[derive(Debug)]
enum Stage {
    /// What came meanwhile waits.
    Opening(Vec<u8>),
    Open,
}

impl Sockets {
    /// How many there are, and the bytes that they have not taken, for the fuzz bodies.
    #[cfg(any(test, feature = "fuzzing"))]
    pub(super) fn held(&self) -> (usize, usize) {
        (self.open.len(), self.unsent)
    }

    /// What may be read of one at once.
    fn share(&self) -> usize {
        (MAX_SOCKET_READS / self.open.len().max(1)).clamp(1024, MAX_SOCKET_READ)
    }

    fn remove(&mut self, socket: SocketId) -> Option<Socket> {
        let removed = self.open.remove(&socket)?;
        self.unsent = self.unsent.saturating_sub(removed.unsent);
        Some(removed)
    }
}

impl<C: Crypto> Control<C> {
    /// Opens a connection for a stream.
    pub(super) fn open_raw(
        &mut self,
        context: &mut Context<'_, C>,
        stream_id: String,
        host: &str,
        port: u16,
    ) {
        let target = match guard::socket_target(host, port, self.audience) {
            Ok(target) => target,
            Err(refused) => return self.fail_raw(context, &stream_id, None, &refused.to_string()),
        };
        let socket = SocketId(self.sockets.next);
        self.sockets.next += 1;
        context.out.push(Output::OpenSocket {
            socket,
            audience: self.audience,
            host: target.host.clone(),
            port: target.port,
            timeout: self.limits.connect_timeout,
        });
        let origin = target.host_header();
        let opening = Stage::Opening(Vec::new());
        let entry = Socket { stream_id: stream_id.clone(), origin, stage: opening, unsent: 0 };
        self.sockets.open.insert(socket, entry);
        self.streams.insert(stream_id, Stream::RawTunnel(socket));
    }

    /// Bytes of the server for the target.
    pub(super) fn send_raw(&mut self, context: &mut Context<'_, C>, id: SocketId, data: Vec<u8>) {
        let total = self.sockets.unsent.saturating_add(data.len());
        let Some(socket) = self.sockets.open.get_mut(&id) else { return };
        if data.is_empty() {
            return;
        }
        let unsent = socket.unsent.saturating_add(data.len());
        if unsent > MAX_SOCKET_UNSENT || total > MAX_SOCKETS_UNSENT {
            self.over_limit(context.out, "unsent bytes of a raw tunnel");
            return self.end_raw(context, id, "the target reads more slowly than it is sent to");
        }
        socket.unsent = unsent;
        self.sockets.unsent = total;
        match &mut socket.stage {
            Stage::Opening(waiting) => waiting.extend_from_slice(&data),
            Stage::Open => context.out.push(Output::SendSocket { socket: id, data }),
        }
    }

    /// The connection is there.
    pub(crate) fn handle_socket_opened(&mut self, context: &mut Context<'_, C>, id: SocketId) {
        let most = self.sockets.share();
        let Some(socket) = self.sockets.open.get_mut(&id) else { return };
        let Stage::Opening(data) = core::mem::replace(&mut socket.stage, Stage::Open) else { return };
        if !data.is_empty() {
            context.out.push(Output::SendSocket { socket: id, data });
        }
        context.out.push(Output::ReadSocket { socket: id, most });
    }

    /// Bytes of the target for the server. More of them are read when the tunnel has taken these.
    pub(crate) fn handle_socket_data(&mut self, context: &mut Context<'_, C>, id: SocketId, data: &[u8]) {
        let Some(socket) = self.sockets.open.get(&id) else { return };
        context.send(message::stream_data(context.seconds(), &socket.stream_id, data));
        self.flow.push(context.tunnel.given(), Source::Socket(id));
    }

    /// What the target sent has been taken: the next of it is wanted.
    pub(super) fn read_more(&mut self, context: &mut Context<'_, C>, id: SocketId) {
        if self.sockets.open.contains_key(&id) {
            context.out.push(Output::ReadSocket { socket: id, most: self.sockets.share() });
        }
    }

    /// The target took bytes of the server.
    pub(crate) fn handle_socket_sent(&mut self, id: SocketId, bytes: usize) {
        if let Some(socket) = self.sockets.open.get_mut(&id) {
            let bytes = bytes.min(socket.unsent);
            socket.unsent -= bytes;
            self.sockets.unsent = self.sockets.unsent.saturating_sub(bytes);
        }
    }

    /// The connection has ended, or there is none.
    pub(crate) fn handle_socket_ended(
        &mut self,
        context: &mut Context<'_, C>,
        id: SocketId,
        end: &SocketEnd,
    ) {
        let Some(socket) = self.sockets.remove(id) else { return };
        let reason = match end {
            SocketEnd::Closed => {
                return self.close_stream(context, &socket.stream_id, TARGET_CLOSED);
            }
            SocketEnd::Unopened(error) => explain(error),
            SocketEnd::Failed { detail } => printable(detail),
        };
        self.fail_raw(context, &socket.stream_id, Some(socket.origin), &reason);
    }

    /// The node ends a raw tunnel.
    fn end_raw(&mut self, context: &mut Context<'_, C>, id: SocketId, reason: &str) {
        let Some(socket) = self.sockets.remove(id) else { return };
        context.out.push(Output::CloseSocket { socket: id });
        self.fail_raw(context, &socket.stream_id, Some(socket.origin), reason);
    }

    fn fail_raw(
        &mut self,
        context: &mut Context<'_, C>,
        stream_id: &str,
        origin: Option<String>,
        reason: &str,
    ) {
        self.tell_failure(context, origin, reason);
        let answer = message::error(context.seconds(), Some(stream_id), "raw_tunnel_failed", reason);
        context.send(answer);
        self.close_stream(context, stream_id, reason);
    }

    /// The stream has gone: the connection goes too, when what was sent has been taken.
    pub(super) fn drop_raw(&mut self, context: &mut Context<'_, C>, id: SocketId) {
        if self.sockets.remove(id).is_some() {
            context.out.push(Output::CloseSocket { socket: id });
        }
    }
}
