//! What one turn of the run loop waits for.

use std::os::fd::BorrowedFd;
use std::time::{Duration, Instant};

use consensus_core::io::{EffectId, LinkId, LocalId, SocketId};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;

/// What a descriptor belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Token {
    Inbox,
    Signals,
    Listener,
    Channel(Name),
    Lingering(u64),
    Socket(SocketId),
    Fetch(EffectId),
    Client(u64),
}

/// A WebSocket of the node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Name {
    Link(LinkId),
    Local(LocalId),
}

/// Descriptors to wait on, and how long. Built anew each turn: the descriptors are borrowed, so that none can be closed
/// while it is waited on.
pub(super) struct Watch<'a> {
    fds: Vec<PollFd<'a>>,
    tokens: &'a mut Vec<Token>,
    until: Option<Instant>,
}

impl<'a> Watch<'a> {
    /// What is ready will be in `tokens`, whose memory is used again.
    pub(super) fn new(tokens: &'a mut Vec<Token>) -> Self {
        // One more than the last time, most likely.
        let fds = Vec::with_capacity(tokens.capacity().max(4));
        tokens.clear();
        Self { fds, tokens, until: None }
    }

    /// Waits on a descriptor, unless nothing is wanted of it: the system would tell its end, over and over.
    pub(super) fn on(&mut self, fd: BorrowedFd<'a>, flags: PollFlags, token: Token) {
        if !flags.is_empty() {
            self.fds.push(PollFd::from_borrowed_fd(fd, flags));
            self.tokens.push(token);
        }
    }

    /// Waits no longer than that.
    pub(super) fn until(&mut self, until: Option<Instant>) {
        self.until = match (self.until, until) {
            (Some(a), Some(b)) => Some(a.min(b)),
            (a, b) => a.or(b),
        };
    }

    /// Waits. Whether a time has come; the tokens of all that is ready are left.
    pub(super) fn wait(mut self, may_wait: bool) -> Result<bool, String> {
        let left = self.until.map(|until| until.saturating_duration_since(Instant::now()));
        let wait = if may_wait { left } else { Some(Duration::ZERO) };
        let timeout = wait.map(|wait| Timespec {
            tv_sec: i64::try_from(wait.as_secs()).unwrap_or(i64::MAX),
            tv_nsec: i64::from(wait.subsec_nanos()),
        });
        match poll(&mut self.fds, timeout.as_ref()) {
            Ok(_) => {
                let mut fds = self.fds.iter();
                self.tokens.retain(|_| fds.next().is_some_and(|fd| !fd.revents().is_empty()));
            }
            // A signal; its byte is read in the next turn.
            Err(Errno::INTR) => self.tokens.clear(),
            Err(error) => return Err(format!("cannot wait for events: {error}")),
        }
        Ok(self.until.is_some_and(|until| Instant::now() >= until))
    }
}
