//! Back-pressure of streams (protocol.md section 9 has none on the wire): what a stream brought in is remembered until
//! the tunnel has taken it, and only then is more brought in.

use alloc::collections::VecDeque;

use crate::io::SocketId;
use crate::limits::{HOLD_ABOVE, HOLD_BELOW};

/// Whose bytes a message of the tunnel carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Source {
    /// A target's: it is read again when the message is taken.
    Socket(SocketId),
    /// Another stream's, relayed: the tunnel is held while too many of them wait.
    Relay(usize),
}

/// Messages that wait to be taken, in order. Each is one that a bounded source brought in, so there is no end of them
/// only if there is none of those.
#[derive(Debug, Default)]
pub(super) struct Flow {
    /// With the place in the tunnel's traffic where each ends.
    waiting: VecDeque<(u64, Source)>,
    /// Bytes of relays among them.
    relayed: usize,
}

impl Flow {
    /// A message was given to the tunnel that ends at that place of its traffic.
    pub(super) fn push(&mut self, end: u64, source: Source) {
        if let Source::Relay(bytes) = source {
            self.relayed = self.relayed.saturating_add(bytes);
        }
        self.waiting.push_back((end, source));
    }

    /// How many messages wait.
    pub(super) fn len(&self) -> usize {
        self.waiting.len()
    }

    /// The next message that was taken, the tunnel being at that place of its traffic.
    pub(super) fn pop(&mut self, taken: u64) -> Option<Source> {
        let (end, source) = *self.waiting.front()?;
        if end > taken {
            return None;
        }
        self.waiting.pop_front();
        if let Source::Relay(bytes) = source {
            self.relayed = self.relayed.saturating_sub(bytes);
        }
        Some(source)
    }

    /// Whether the tunnel is to be held; nothing where it stays as it is.
    pub(super) const fn hold(&self) -> Option<bool> {
        match self.relayed {
            HOLD_ABOVE.. => Some(true),
            ..HOLD_BELOW => Some(false),
            _ => None,
        }
    }

    /// The tunnel is gone, and what waited with it.
    pub(super) fn clear(&mut self) {
        *self = Self::default();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_waits_comes_back_in_order_as_it_is_taken() {
        let mut flow = Flow::default();
        let socket = Source::Socket(SocketId(1));
        flow.push(100, socket);
        flow.push(300, Source::Relay(HOLD_ABOVE));
        flow.push(301, Source::Relay(1));
        assert_eq!((flow.pop(99), flow.hold()), (None, Some(true)));
        assert_eq!((flow.pop(300), flow.pop(300)), (Some(socket), Some(Source::Relay(HOLD_ABOVE))));
        assert_eq!((flow.pop(300), flow.hold()), (None, Some(false)));
        assert_eq!(flow.pop(u64::MAX), Some(Source::Relay(1)));
        assert_eq!(flow.pop(u64::MAX), None);
    }

    #[test]
    fn the_tunnel_is_not_held_and_let_go_by_turns_for_every_message() {
        let mut flow = Flow::default();
        flow.push(1, Source::Relay(HOLD_BELOW));
        assert_eq!(flow.hold(), None, "between the two marks it stays as it is");
    }
}
