//! What the orchestrator saw and did, for people who watch it and tests that wait for it.

use std::collections::VecDeque;
use std::fmt;
use std::sync::{Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

use consensus_core::tunnel::Mode;
use serde_json::Value;

/// Records kept; older ones are forgotten.
const KEPT: usize = 20_000;

/// Something the orchestrator saw or did. `connection` numbers tunnel connections from 1.
#[derive(Clone, Debug, PartialEq)]
#[expect(missing_docs, reason = "the members are named as the protocol names them")]
pub enum Record {
    /// An HTTP request was answered.
    Http { method: String, path: String, status: u16 },
    /// A code was "sent" to this address.
    EmailCode { email: String, code: String },
    /// A tunnel connection was asked for.
    Tunnel { connection: u64 },
    /// A handshake, as received.
    Init { connection: u64, init: Value },
    /// A handshake was refused.
    Rejected { connection: u64, code: String },
    /// A session began: `ready` was sent.
    Ready { connection: u64, mode: Mode, node_id: Option<String>, session_id: String },
    /// A message of the node, as it stood in its frame.
    Message { connection: u64, message: Value },
    /// The node pinged.
    Pinged { connection: u64 },
    /// The node answered a ping.
    Pong { connection: u64 },
    /// The node sent something that is not of the protocol.
    BadFrame { connection: u64, reason: String },
    /// An eval action was answered.
    Evaluated { connection: u64, action: String, ok: bool, took: Duration },
    /// An evaluation was judged.
    Judged { connection: u64, missed: Vec<String> },
    /// A node was offered to join.
    Offered { connection: u64, join_id: String },
    /// A node registered.
    Joined { node_id: String },
    /// A tunnel connection ended. `code` is what the node's close frame said.
    Ended { connection: u64, code: Option<u16>, reason: String },
}

impl fmt::Display for Record {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Http { method, path, status } => write!(f, "{method} {path} -> {status}"),
            Self::EmailCode { email, code } => write!(f, "the code for {email} is {code}"),
            Self::Tunnel { connection } => write!(f, "tunnel {connection}: connection"),
            Self::Init { connection, init } => {
                let mode = init["mode"].as_str().unwrap_or("?");
                write!(f, "tunnel {connection}: handshake for {mode}")
            }
            Self::Rejected { connection, code } => write!(f, "tunnel {connection}: rejected, {code}"),
            Self::Ready { connection, mode, node_id, session_id } => {
                let who = node_id.as_deref().unwrap_or("a candidate");
                write!(f, "tunnel {connection}: {who} is ready for {mode}, session {session_id}")
            }
            Self::Message { connection, message } => {
                write!(f, "tunnel {connection}: {}", message["type"].as_str().unwrap_or("?"))
            }
            Self::Pinged { connection } => write!(f, "tunnel {connection}: ping answered"),
            Self::Pong { connection } => write!(f, "tunnel {connection}: pong"),
            Self::BadFrame { connection, reason } => write!(f, "tunnel {connection}: bad frame: {reason}"),
            Self::Evaluated { connection, action, ok, took } => {
                let word = if *ok { "done" } else { "failed" };
                write!(f, "tunnel {connection}: {action} {word} in {} ms", took.as_millis())
            }
            Self::Judged { connection, missed } if missed.is_empty() => {
                write!(f, "tunnel {connection}: the node passes")
            }
            Self::Judged { connection, missed } => {
                write!(f, "tunnel {connection}: the node fails: {}", missed.join("; "))
            }
            Self::Offered { connection, join_id } => {
                write!(f, "tunnel {connection}: offered join request {join_id}")
            }
            Self::Joined { node_id } => write!(f, "{node_id} is registered"),
            Self::Ended { connection, code: Some(code), reason } => {
                write!(f, "tunnel {connection}: closed by the node, {code} {reason}")
            }
            Self::Ended { connection, code: None, reason } => {
                write!(f, "tunnel {connection}: ended, {reason}")
            }
        }
    }
}

#[derive(Default)]
struct Kept {
    /// Records that were forgotten.
    forgotten: usize,
    records: VecDeque<(Instant, Record)>,
}

/// The records, in order.
#[derive(Default)]
pub struct Journal {
    kept: Mutex<Kept>,
    changed: Condvar,
    print: bool,
    leaves_traffic_out: bool,
}

impl fmt::Debug for Journal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Journal")
    }
}

impl Journal {
    /// An empty journal; one that prints writes each record to standard output as well.
    #[must_use]
    pub fn new(print: bool) -> Self {
        Self { print, ..Self::default() }
    }

    /// An empty journal that keeps no [`Record::Message`] and no [`Record::Http`]: for measurements, which reading each
    /// message would be most of.
    #[must_use]
    pub fn without_messages() -> Self {
        Self { leaves_traffic_out: true, ..Self::default() }
    }

    pub(super) fn leave_traffic_out(&mut self) {
        self.leaves_traffic_out = true;
    }

    pub(super) fn keeps_traffic(&self) -> bool {
        !self.leaves_traffic_out
    }

    pub(super) fn add(&self, record: Record) {
        if self.print {
            println!("{record}");
        }
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        if kept.records.len() == KEPT {
            kept.records.pop_front();
            kept.forgotten += 1;
        }
        kept.records.push_back((Instant::now(), record));
        self.changed.notify_all();
    }

    /// How many records there were so far: a place to wait from.
    #[must_use]
    pub fn mark(&self) -> usize {
        let kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        kept.forgotten + kept.records.len()
    }

    /// The records from a mark on.
    #[must_use]
    pub fn since(&self, mark: usize) -> Vec<(Instant, Record)> {
        let kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        kept.records.iter().skip(mark.saturating_sub(kept.forgotten)).cloned().collect()
    }

    /// The first record from a mark on for which `find` gives something, and when it was; waits for it.
    pub fn wait<T>(
        &self,
        mark: usize,
        timeout: Duration,
        mut find: impl FnMut(&Record) -> Option<T>,
    ) -> Option<(Instant, T)> {
        let end = Instant::now() + timeout;
        let mut seen = mark;
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            let skip = seen.saturating_sub(kept.forgotten);
            let found = kept.records.iter().skip(skip).find_map(|(at, record)| Some((*at, find(record)?)));
            if found.is_some() {
                return found;
            }
            seen = kept.forgotten + kept.records.len();
            let left = end.checked_duration_since(Instant::now())?;
            kept = self.changed.wait_timeout(kept, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}
