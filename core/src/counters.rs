//! What a node did, counted.

use serde::Serialize;

/// Since the process started. They only grow.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub(crate) struct Counters {
    /// Requests fetched for others, to whatever end.
    pub(crate) requests: u64,
    /// Those of them, and those that were not fetched, that ended in an error.
    pub(crate) failed: u64,
    /// Bytes of response bodies passed on.
    pub(crate) bytes: u64,
    /// Streams opened.
    pub(crate) streams: u64,
    /// Data-plane connections, on streams and at `/connect`.
    pub(crate) connections: u64,
    /// Those of them that were turned away: no handshake, no request, no ticket that pays for it.
    pub(crate) refused: u64,
    /// What was turned away because a limit was reached.
    pub(crate) over_limit: u64,
}
