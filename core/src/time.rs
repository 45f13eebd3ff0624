//! Time as the core sees it: handed in with every input, never read.

use core::fmt;
use core::time::Duration;

use serde::{Deserialize, Serialize};

/// The two clocks of one instant, read together by the shell.
///
/// Deadlines use the monotonic clock, which never jumps. What goes on the wire, or is compared with what a
/// peer sent, uses the unix clock, which an operator or NTP may set at any moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Now {
    /// Since any fixed point, the same one for the life of the process.
    pub monotonic: Duration,
    /// Since 1970-01-01T00:00:00Z.
    pub unix: Duration,
}

impl Now {
    /// Whole unix seconds: the unit of every timestamp on the wire (protocol.md, notation).
    #[must_use]
    pub const fn unix_seconds(self) -> u64 {
        self.unix.as_secs()
    }

    /// The deadline `after` from now.
    #[must_use]
    pub fn deadline(self, after: Duration, reason: Reason) -> Deadline {
        Deadline { at: self.monotonic.saturating_add(after), reason }
    }
}

/// A monotonic instant at which the node wants to be called, and what for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Deadline {
    /// Compare with [`Now::monotonic`].
    pub at: Duration,
    /// Why; for logs, traces and tests.
    pub reason: Reason,
}

impl Deadline {
    /// Whether the deadline has come.
    #[must_use]
    pub fn is_due(&self, now: Now) -> bool {
        now.monotonic >= self.at
    }

    /// The earlier of two deadlines; on a tie the first.
    #[must_use]
    pub fn earlier(a: Option<Self>, b: Option<Self>) -> Option<Self> {
        match (a, b) {
            (Some(a), Some(b)) => Some(if b.at < a.at { b } else { a }),
            (a, b) => a.or(b),
        }
    }
}

/// What a [`Deadline`] is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Reason {
    /// Open the tunnel again after a failure (protocol.md section 9, reconnect).
    Reconnect,
    /// The transport must be open by then.
    Open,
    /// The handshake must be answered by then.
    Handshake,
    /// `ready` must have come by then.
    Ready,
    /// Send a ping frame.
    Ping,
    /// The peer has been silent too long.
    Silence,
    /// Send a heartbeat.
    Heartbeat,
    /// An eval action must be answered by then (protocol.md section 5, timeouts).
    EvalAction,
    /// The server should have sent the next eval action or `join_ready` by then.
    EvalIdle,
    /// A proxied request must be answered by then (protocol.md section 9).
    ProxyRequest,
    /// A request to the local API must be answered by then.
    LocalRequest,
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Reconnect => "reconnect",
            Self::Open => "open the tunnel",
            Self::Handshake => "handshake answer",
            Self::Ready => "ready",
            Self::Ping => "ping",
            Self::Silence => "silent peer",
            Self::Heartbeat => "heartbeat",
            Self::EvalAction => "eval action",
            Self::EvalIdle => "next eval action",
            Self::ProxyRequest => "proxied request",
            Self::LocalRequest => "local request",
        })
    }
}
