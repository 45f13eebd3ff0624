//! The computing of data-plane connections, cut into jobs that any thread can run: the node itself only keeps order.
//!
//! A job holds all that it needs and touches nothing shared. The node gives one out for each
//! [`Output::Compute`](crate::io::Output::Compute); what it makes goes back by
//! [`Node::handle_computed`](crate::node::Node::handle_computed). A connection has one job at a time.

use alloc::boxed::Box;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::fmt;

use super::responder::{self, AcceptError, Gate, Refused, Request, Responder};
use crate::crypto::identity::Identity;
use crate::crypto::{Crypto, Drbg};
use crate::io::{JobId, Response};
use crate::time::Now;

/// One step of one connection.
pub struct Job<C: Crypto> {
    id: JobId,
    work: Work<C>,
}

/// What a node knows of itself that its jobs need.
pub(crate) struct Host<C: Crypto> {
    pub(crate) crypto: C,
    pub(crate) identity: Arc<Identity<C>>,
    pub(crate) node_id: Arc<str>,
    pub(crate) issuer_key: Option<[u8; 32]>,
    /// The body of a request, decoded, in bytes.
    pub(crate) max_body: usize,
    pub(crate) now: Now,
}

pub(crate) enum Work<C: Crypto> {
    /// Answer a `data_init`.
    Accept { host: Host<C>, init: Vec<u8>, rng: Drbg },
    /// Open a request and verify its ticket.
    Open { host: Host<C>, responder: Box<Responder<C>>, frame: Vec<u8> },
    /// Seal the target's answer.
    Answer { request: Box<Request<C>>, response: Response },
}

/// What a job made.
pub struct Computed<C: Crypto> {
    pub(crate) id: JobId,
    pub(crate) made: Made<C>,
}

pub(crate) enum Made<C: Crypto> {
    /// Of [`Work::Accept`]: the connection and its `data_accept`.
    Accepted(Result<(Box<Responder<C>>, Vec<u8>), AcceptError>),
    /// Of [`Work::Open`].
    Opened(Result<Box<Request<C>>, Refused>),
    /// Of [`Work::Answer`]: the frame.
    Sealed(Vec<u8>),
}

impl<C: Crypto> Work<C> {
    /// What it holds that came from a peer, in bytes.
    pub(crate) fn bytes(&self) -> usize {
        match self {
            Self::Accept { init, .. } => init.len(),
            Self::Open { frame, .. } => frame.len(),
            Self::Answer { response, .. } => response.body.len(),
        }
    }
}

impl<C: Crypto> fmt::Debug for Job<C> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Job").field("id", &self.id).finish_non_exhaustive()
    }
}

impl<C: Crypto> fmt::Debug for Computed<C> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Computed").field("id", &self.id).finish_non_exhaustive()
    }
}

impl<C: Crypto> Job<C> {
    pub(crate) const fn new(id: JobId, work: Work<C>) -> Self {
        Self { id, work }
    }

    /// Does it. Takes as long as cryptography takes: some hundred microseconds for a usual request.
    #[must_use]
    pub fn run(self) -> Computed<C> {
        let made = match self.work {
            Work::Accept { host, init, mut rng } => {
                let Host { crypto, identity, node_id, now, .. } = host;
                let accepted = responder::accept(crypto, &identity, &node_id, &init, &mut rng, now);
                Made::Accepted(accepted.map(|(responder, accept)| (Box::new(responder), accept)))
            }
            Work::Open { host, responder, mut frame } => {
                let gate = Gate { issuer_key: host.issuer_key.as_ref(), node_id: &host.node_id };
                let opened = responder.open(&mut frame, host.max_body);
                Made::Opened(opened.and_then(|opened| opened.verify(gate, host.now)).map(Box::new))
            }
            Work::Answer { request, response } => Made::Sealed(request.encode(&response).seal()),
        };
        Computed { id: self.id, made }
    }
}
