//! What a node holds at one moment, in entries and bytes, and the bounds that hold for it: for whoever looks whether a
//! node's memory is bounded.

use core::fmt;

use crate::data_plane::replay::CAPACITY;
use crate::history::{MAX_EVENTS, MAX_SAMPLES};
use crate::limits::{
    Limits, MAX_ENDED_STREAMS, MAX_JOB_BYTES, MAX_JOBS, MAX_REQUEST_BODIES, MAX_SOCKETS_UNSENT, MAX_STREAMS,
};

/// The sizes of a node's queues and tables.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Holdings {
    /// Outputs that were not polled.
    pub outputs: usize,
    /// Requests under way for others.
    pub requests: usize,
    /// Bytes of their bodies.
    pub request_bytes: usize,
    /// Streams of the tunnel that are open.
    pub streams: usize,
    /// Names of streams that have ended.
    pub ended_streams: usize,
    /// TCP connections of raw tunnels.
    pub sockets: usize,
    /// Bytes that these have not taken.
    pub socket_bytes: usize,
    /// Public tunnels that have an owner.
    pub public_tunnels: usize,
    /// Messages that wait to be taken by the link.
    pub waiting: usize,
    /// Clients of the data plane, at the local API and on streams.
    pub clients: usize,
    /// Those of them that must take a step in time.
    pub deadlines: usize,
    /// Jobs of the data plane that have not come back.
    pub jobs: usize,
    /// Bytes that these hold.
    pub job_bytes: usize,
    /// Tickets that are known to be spent.
    pub spent_tickets: usize,
    /// Events that are remembered.
    pub events: usize,
    /// Steps of time that figures are remembered of.
    pub samples: usize,
}

/// More is held than may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Excess {
    /// Of what.
    pub what: &'static str,
    /// How much there is.
    pub held: usize,
    /// How much there may be.
    pub most: usize,
}

impl fmt::Display for Excess {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {} are held, and {} may be", self.held, self.what, self.most)
    }
}

impl core::error::Error for Excess {}

impl Holdings {
    /// Whether all of it is within the bounds, the node being drained.
    ///
    /// # Errors
    /// The first that is not.
    pub fn check(&self, limits: &Limits) -> Result<(), Excess> {
        let max_streams = limits.max_streams.min(MAX_STREAMS);
        let bounds = [
            ("outputs", self.outputs, 0),
            ("requests", self.requests, limits.max_requests),
            ("bytes of requests", self.request_bytes, MAX_REQUEST_BODIES),
            ("streams", self.streams, max_streams),
            ("names of ended streams", self.ended_streams, MAX_ENDED_STREAMS),
            ("sockets", self.sockets, self.streams),
            ("bytes for sockets", self.socket_bytes, MAX_SOCKETS_UNSENT),
            ("public tunnels", self.public_tunnels, self.streams),
            ("clients", self.clients, max_streams),
            ("deadlines of clients", self.deadlines, self.clients),
            ("jobs", self.jobs, MAX_JOBS),
            // There is always room for one job.
            ("bytes of jobs", self.job_bytes, MAX_JOB_BYTES.max(if self.jobs == 1 { usize::MAX } else { 0 })),
            ("spent tickets", self.spent_tickets, CAPACITY),
            ("events", self.events, MAX_EVENTS),
            ("samples", self.samples, MAX_SAMPLES),
        ];
        match bounds.into_iter().find(|(_, held, most)| held > most) {
            None => Ok(()),
            Some((what, held, most)) => Err(Excess { what, held, most }),
        }
    }

    /// What belongs to a session, or to somebody who waits for an answer: nothing, where nobody does.
    #[must_use]
    pub const fn under_way(&self) -> usize {
        self.requests
            + self.request_bytes
            + self.streams
            + self.sockets
            + self.socket_bytes
            + self.public_tunnels
            + self.waiting
            + self.clients
            + self.jobs
            + self.job_bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_over_its_bound_is_named() {
        let limits = Limits::default();
        let held = Holdings { requests: limits.max_requests, streams: 3, sockets: 3, ..Holdings::default() };
        assert_eq!(held.check(&limits), Ok(()));
        let over = Holdings { requests: limits.max_requests + 1, ..held };
        let excess = over.check(&limits).unwrap_err();
        assert_eq!((excess.what, excess.held, excess.most), ("requests", 257, 256));
        let over = Holdings { sockets: 4, ..held };
        assert_eq!(over.check(&limits).unwrap_err().what, "sockets");
        let undrained = Holdings { outputs: 1, ..Holdings::default() };
        assert_eq!(undrained.check(&limits).unwrap_err().what, "outputs");
    }

    #[test]
    fn what_is_only_remembered_is_nothing_under_way() {
        let idle =
            Holdings { spent_tickets: 7, ended_streams: 7, events: 7, samples: 7, ..Holdings::default() };
        assert_eq!(idle.under_way(), 0);
        assert_eq!(Holdings { streams: 1, ..idle }.under_way(), 1);
    }
}
