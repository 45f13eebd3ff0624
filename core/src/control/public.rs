//! Public tunnels (protocol.md section 9): the owner of a tunnel has one stream that carries everything in frames; each
//! visitor has a stream of its own. The node passes bytes from one to the other, and both are streams of the same
//! session.

use alloc::collections::BTreeMap;
use alloc::string::{String, ToString as _};
use alloc::vec::Vec;

use super::flow::Source;
use super::streams::Stream;
use super::{Context, Control, TARGET_CLOSED};
use crate::crypto::Crypto;
use crate::limits::MAX_RELAYED;
use crate::wire::base64;
use crate::wire::message;
use crate::wire::mux::{MuxFrame, MuxKind, head};

const TARGET_RESET: &str = "target reset";
const OWNER_CLOSED: &str = "tunnel owner closed";
const NO_OWNER: &str = "tunnel owner unavailable";

/// The frames of a tunnel itself, such as pings, are of this number.
const TUNNEL_ITSELF: u32 = 0;

/// A public tunnel that has an owner.
#[derive(Debug)]
pub(super) struct PublicTunnel {
    /// The owner's stream.
    owner: String,
    /// The visitors' streams by their numbers.
    visitors: BTreeMap<u32, String>,
    next: u32,
}

impl PublicTunnel {
    /// A number that no visitor has, from 1 on.
    fn number(&mut self) -> u32 {
        // There are never as many streams as numbers.
        while self.next == TUNNEL_ITSELF || self.visitors.contains_key(&self.next) {
            self.next = self.next.wrapping_add(1);
        }
        let number = self.next;
        self.next = self.next.wrapping_add(1);
        number
    }
}

impl<C: Crypto> Control<C> {
    /// Somebody owns a public tunnel from now on. Whoever owned it before does not any more.
    pub(super) fn open_owner(&mut self, context: &mut Context<'_, C>, stream_id: String, tunnel_id: String) {
        if let Some(before) = self.tunnels.get(&tunnel_id).map(|tunnel| tunnel.owner.clone()) {
            self.streams.remove(&before);
            self.drop_owner(context, &tunnel_id);
            self.close_stream(context, &before, "another owner took the tunnel");
        }
        let tunnel = PublicTunnel { owner: stream_id.clone(), visitors: BTreeMap::new(), next: 1 };
        self.tunnels.insert(tunnel_id.clone(), tunnel);
        self.streams.insert(stream_id, Stream::Owner { tunnel_id });
    }

    /// Somebody comes through a public tunnel.
    pub(super) fn open_visitor(
        &mut self,
        context: &mut Context<'_, C>,
        stream_id: String,
        tunnel_id: String,
        initial_data: Option<&str>,
    ) {
        let Some(tunnel) = self.tunnels.get_mut(&tunnel_id) else {
            return self.close_stream(context, &stream_id, NO_OWNER);
        };
        let number = tunnel.number();
        tunnel.visitors.insert(number, stream_id.clone());
        self.streams.insert(stream_id.clone(), Stream::Visitor { tunnel_id: tunnel_id.clone(), number });
        let mut data = Vec::new();
        if !base64::decode_into(initial_data.unwrap_or_default(), &mut data) {
            let text = "the initial data is not base64";
            context.send(message::error(context.seconds(), Some(&stream_id), "decode_failed", text));
        }
        let rest = data.split_off(data.len().min(MAX_RELAYED));
        self.relay_to_owner(context, &tunnel_id, MuxKind::Open, number, &data);
        self.relay_visitor(context, &tunnel_id, number, &rest);
    }

    /// Bytes of a visitor, for the owner.
    pub(super) fn relay_visitor(
        &mut self,
        context: &mut Context<'_, C>,
        tunnel_id: &str,
        number: u32,
        data: &[u8],
    ) {
        for data in data.chunks(MAX_RELAYED) {
            self.relay_to_owner(context, tunnel_id, MuxKind::Data, number, data);
        }
    }

    /// A frame of the owner.
    pub(super) fn relay_owner(
        &mut self,
        context: &mut Context<'_, C>,
        owner: &str,
        tunnel_id: &str,
        data: &[u8],
    ) {
        let frame = match MuxFrame::parse(data) {
            Ok(frame) => frame,
            Err(error) => {
                let text = error.to_string();
                context.send(message::error(context.seconds(), Some(owner), "decode_failed", &text));
                return;
            }
        };
        let Some(tunnel) = self.tunnels.get_mut(tunnel_id) else { return };
        match frame.kind {
            MuxKind::Data => {
                // A visitor that has gone meanwhile was reset.
                let Some(visitor) = tunnel.visitors.get(&frame.stream).cloned() else { return };
                for data in frame.payload.chunks(MAX_RELAYED) {
                    self.relay(context, &visitor, data);
                }
            }
            MuxKind::End => self.end_visitor(context, tunnel_id, frame.stream, TARGET_CLOSED),
            MuxKind::Reset => self.end_visitor(context, tunnel_id, frame.stream, TARGET_RESET),
            MuxKind::Ping => self.relay_to_owner(context, tunnel_id, MuxKind::Pong, TUNNEL_ITSELF, &[]),
            // Streams are the visitors', and this end sends no pings.
            MuxKind::Open | MuxKind::Pong => {}
        }
    }

    fn end_visitor(&mut self, context: &mut Context<'_, C>, tunnel_id: &str, number: u32, reason: &str) {
        let tunnel = self.tunnels.get_mut(tunnel_id);
        if let Some(visitor) = tunnel.and_then(|tunnel| tunnel.visitors.remove(&number)) {
            self.close_stream(context, &visitor, reason);
        }
    }

    /// The server has closed a visitor's stream.
    pub(super) fn drop_visitor(&mut self, context: &mut Context<'_, C>, tunnel_id: &str, number: u32) {
        let tunnel = self.tunnels.get_mut(tunnel_id);
        if tunnel.is_some_and(|tunnel| tunnel.visitors.remove(&number).is_some()) {
            self.relay_to_owner(context, tunnel_id, MuxKind::Reset, number, &[]);
        }
    }

    /// The owner's stream has gone, and with it everybody who came through the tunnel.
    pub(super) fn drop_owner(&mut self, context: &mut Context<'_, C>, tunnel_id: &str) {
        let Some(tunnel) = self.tunnels.remove(tunnel_id) else { return };
        for visitor in tunnel.visitors.into_values() {
            self.close_stream(context, &visitor, OWNER_CLOSED);
        }
    }

    fn relay_to_owner(
        &mut self,
        context: &mut Context<'_, C>,
        tunnel_id: &str,
        kind: MuxKind,
        number: u32,
        payload: &[u8],
    ) {
        if let Some(owner) = self.tunnels.get(tunnel_id).map(|tunnel| tunnel.owner.clone()) {
            self.relay(context, &owner, &[&head(kind, number)[..], payload].concat());
        }
    }

    /// Passes bytes on, and holds the tunnel while too many of them wait.
    fn relay(&mut self, context: &mut Context<'_, C>, stream_id: &str, data: &[u8]) {
        let before = context.tunnel.given();
        context.send(message::stream_data(context.seconds(), stream_id, data));
        let given = context.tunnel.given();
        // What it takes on the wire: an answer to a ping is all head.
        let bytes = usize::try_from(given.saturating_sub(before)).unwrap_or(usize::MAX);
        self.flow.push(given, Source::Relay(bytes));
        self.hold(context);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn visitors_are_numbered_from_one_and_no_two_alike() {
        let mut tunnel = PublicTunnel { owner: "o".into(), visitors: BTreeMap::new(), next: 1 };
        assert_eq!((tunnel.number(), tunnel.number()), (1, 2));
        tunnel.visitors.insert(u32::MAX, "v".into());
        tunnel.visitors.insert(1, "w".into());
        tunnel.next = u32::MAX;
        assert_eq!(tunnel.number(), 2, "neither 0, which is the tunnel's own, nor one that is taken");
    }
}
