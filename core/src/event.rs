//! What the node tells its operator.
//!
//! An event says what happened, to what, and what to do about it. It serialises to the members of a JSON log
//! line (`event` and its own), and displays as one line of text. Text that came from a peer is bounded and holds
//! no control characters (see [`text::printable`](crate::text::printable)). No event has a place for a key, a
//! token, a URL's query or a client's address.

use alloc::string::String;
use alloc::vec::Vec;
use core::fmt;
use core::time::Duration;

use serde::{Deserialize, Serialize};

use crate::time::iso8601;
use crate::tunnel::Mode;

/// How loud an event is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Level {
    /// Routine traffic.
    Debug,
    /// The normal course of a node's life.
    Info,
    /// Something the node copes with, but that an operator may want to know.
    Warn,
    /// Something that needs the operator.
    Error,
}

/// One event.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case")]
#[non_exhaustive]
pub enum Event {
    /// The tunnel is being opened.
    Connecting {
        /// Scheme, host and path.
        url: String,
        /// Counted from 1 since the last session.
        attempt: u32,
    },
    /// The server answered `ready`.
    Connected {
        /// The session, as both sides derived it.
        session_id: String,
        /// For what.
        mode: Mode,
    },
    /// A session, or an attempt at one, came to its end.
    Disconnected {
        /// What happened.
        reason: String,
        /// What the operator can do, where there is something.
        advice: Option<String>,
        /// When the next attempt is, if there is one.
        retry_in_ms: Option<u64>,
    },
    /// The server sent something that is not of the protocol; the session goes on.
    BadFrame {
        /// What was wrong.
        reason: String,
        /// How many there were in this session; told at each power of two.
        count: u64,
    },
    /// The server answered something of ours with an error.
    ServerError {
        /// Its code.
        code: String,
        /// Its message.
        message: String,
    },
    /// An answer was too large to be sent.
    NotSent {
        /// Its plaintext, in bytes.
        length: usize,
    },
    /// A heartbeat was sent.
    Heartbeat {
        /// Requests under way.
        active_requests: usize,
        /// Streams open.
        active_streams: usize,
    },
    /// The server asked for an eval action.
    EvalStarted {
        /// The action.
        action: String,
    },
    /// An eval action was answered.
    EvalFinished {
        /// The action.
        action: String,
        /// Whether it gave a result.
        ok: bool,
        /// Its headline figure, or why there is none.
        summary: String,
        /// From the request to the answer.
        duration_ms: u64,
    },
    /// Every action was answered; the server's decision, or its next action, has not come yet.
    EvalWaiting {
        /// How long the node will go on waiting.
        seconds: u64,
    },
    /// The node's own judgement of its results.
    EvalVerdict {
        /// Whether every threshold that was measured is met.
        admissible: bool,
        /// One sentence for each threshold missed.
        missed: Vec<String>,
        /// Thresholds the server did not ask to measure.
        not_measured: Vec<String>,
    },
    /// The server admitted the node; the authorisation is saved.
    Admitted {
        /// The join request it is for.
        join_id: String,
        /// Unix seconds.
        expires_at: u64,
    },
    /// A proxied request was answered.
    Proxied {
        /// Scheme, host and port; no path, no query.
        origin: String,
        /// Of the upstream's answer.
        status: u16,
        /// Bytes of the upstream's body.
        bytes: usize,
        /// From the request to the answer.
        duration_ms: u64,
    },
    /// A proxied request failed.
    ProxyFailed {
        /// Scheme, host and port, where the URL could be read.
        origin: Option<String>,
        /// Why.
        reason: String,
    },
    /// The server asked for something this release does not do.
    Unsupported {
        /// What.
        what: String,
    },
    /// A data-plane client was turned away: no handshake, no request, or no ticket that pays for it. Told at each power
    /// of two, because anybody can be such a client.
    ClientRefused {
        /// Why.
        reason: String,
        /// How many there were, since the start.
        count: u64,
    },
    /// A limit of this node turned something away; told at each power of two.
    OverLimit {
        /// Which: the name of a setting, or what is bounded.
        limit: String,
        /// How often any limit did, since the start.
        count: u64,
    },
    /// A release that the network directs is being downloaded and looked into.
    UpdatePreparing {
        /// The network's name for it.
        update_id: String,
        /// Of the release.
        version: String,
    },
    /// It is there and can be installed.
    UpdatePrepared {
        /// The network's name for it.
        update_id: String,
        /// Of the release.
        version: String,
    },
    /// An update was refused, or came to nothing; the node serves on.
    UpdateFailed {
        /// The network's name for it.
        update_id: String,
        /// What the server was told: `prepare_failed`, `update_not_prepared` or `apply_failed`.
        code: String,
        /// Why.
        reason: String,
    },
    /// The network wants the prepared release: nothing new is taken on until it is installed.
    UpdateDraining {
        /// Of the release.
        version: String,
        /// Requests under way.
        active_requests: usize,
        /// Streams open.
        active_streams: usize,
        /// How long they may take at the most.
        limit_ms: u64,
    },
    /// The installer runs.
    UpdateInstalling {
        /// Of the release.
        version: String,
    },
    /// The release is installed; this process ends, so that the supervisor starts it.
    UpdateInstalled {
        /// Of the release.
        version: String,
    },
    /// An installer that had taken too long has ended.
    UpdateOverdue {
        /// With what.
        reason: String,
    },
    /// This release runs for the first time: if the network does not answer it, the one before comes back.
    UpdateOnProbation {
        /// Of the release.
        version: String,
    },
    /// The network answered this release: it stays.
    UpdateConfirmed {
        /// Of the release.
        version: String,
    },
    /// A release was installed and given up again; the one before it runs.
    UpdateRolledBack {
        /// Of the release.
        version: String,
        /// Why.
        reason: String,
    },
    /// A file of the state directory could not be written.
    NotSaved {
        /// Why; names the file.
        reason: String,
    },
    /// The operator asked the node to stop.
    Stopping,
}

impl Event {
    /// How loud it is.
    #[must_use]
    pub const fn level(&self) -> Level {
        match self {
            Self::Heartbeat { .. } | Self::Proxied { .. } => Level::Debug,
            Self::Connecting { .. }
            | Self::Connected { .. }
            | Self::EvalStarted { .. }
            | Self::EvalFinished { .. }
            | Self::EvalWaiting { .. }
            | Self::EvalVerdict { admissible: true, .. }
            | Self::Admitted { .. }
            | Self::UpdatePreparing { .. }
            | Self::UpdatePrepared { .. }
            | Self::UpdateDraining { .. }
            | Self::UpdateInstalling { .. }
            | Self::UpdateInstalled { .. }
            | Self::UpdateOnProbation { .. }
            | Self::UpdateConfirmed { .. }
            | Self::Stopping => Level::Info,
            Self::Disconnected { .. }
            | Self::BadFrame { .. }
            | Self::NotSent { .. }
            | Self::ServerError { .. }
            | Self::ProxyFailed { .. }
            | Self::ClientRefused { .. }
            | Self::OverLimit { .. }
            | Self::UpdateFailed { .. }
            | Self::UpdateOverdue { .. }
            // The network decides, and may know better.
            | Self::EvalVerdict { .. }
            | Self::Unsupported { .. } => Level::Warn,
            Self::UpdateRolledBack { .. } | Self::NotSaved { .. } => Level::Error,
        }
    }

    /// Which part of the node speaks: the `scope` of a log line.
    #[must_use]
    pub const fn scope(&self) -> &'static str {
        match self {
            Self::Connecting { .. }
            | Self::Connected { .. }
            | Self::Disconnected { .. }
            | Self::BadFrame { .. }
            | Self::NotSent { .. }
            | Self::ServerError { .. } => "tunnel",
            Self::EvalStarted { .. }
            | Self::EvalFinished { .. }
            | Self::EvalWaiting { .. }
            | Self::EvalVerdict { .. }
            | Self::Admitted { .. } => "eval",
            Self::Heartbeat { .. }
            | Self::Proxied { .. }
            | Self::ProxyFailed { .. }
            | Self::ClientRefused { .. }
            | Self::OverLimit { .. }
            | Self::Unsupported { .. } => "control",
            Self::UpdatePreparing { .. }
            | Self::UpdatePrepared { .. }
            | Self::UpdateFailed { .. }
            | Self::UpdateDraining { .. }
            | Self::UpdateInstalling { .. }
            | Self::UpdateInstalled { .. }
            | Self::UpdateOverdue { .. }
            | Self::UpdateOnProbation { .. }
            | Self::UpdateConfirmed { .. }
            | Self::UpdateRolledBack { .. } => "update",
            Self::NotSaved { .. } | Self::Stopping => "node",
        }
    }
}

impl fmt::Display for Event {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Connecting { url, attempt: 1 } => write!(f, "connecting to {url}"),
            Self::Connecting { url, attempt } => write!(f, "connecting to {url} (attempt {attempt})"),
            Self::Connected { session_id, mode } => write!(f, "connected for {mode}, session {session_id}"),
            Self::Disconnected { reason, advice, retry_in_ms } => {
                write!(f, "{reason}")?;
                if let Some(advice) = advice {
                    write!(f, "; {advice}")?;
                }
                match retry_in_ms {
                    Some(ms) => write!(f, "; trying again in {}.{} s", ms / 1000, ms % 1000 / 100),
                    None => Ok(()),
                }
            }
            Self::BadFrame { reason, count } => {
                write!(f, "the server sent a bad frame ({count} in this session): {reason}")
            }
            Self::NotSent { length } => write!(f, "an answer of {length} bytes does not fit in a frame"),
            Self::ServerError { code, message } => write!(f, "the server reports {code}: {message}"),
            Self::Heartbeat { active_requests, active_streams } => {
                write!(f, "heartbeat, {active_requests} requests and {active_streams} streams under way")
            }
            Self::EvalStarted { action } => write!(f, "{action} …"),
            Self::EvalFinished { action, ok: true, summary, duration_ms } => {
                write!(f, "{action}: {summary} ({duration_ms} ms)")
            }
            Self::EvalFinished { action, ok: false, summary, .. } => write!(f, "{action} failed: {summary}"),
            Self::EvalWaiting { seconds } => {
                write!(f, "waiting for the network's decision (up to {seconds} s)")
            }
            Self::EvalVerdict { admissible: true, missed: _, not_measured } if not_measured.is_empty() => {
                f.write_str("own verdict: every threshold is met")
            }
            Self::EvalVerdict { admissible: true, missed: _, not_measured } => {
                write!(f, "own verdict: what was measured meets the thresholds; not measured: ")?;
                write_list(f, not_measured)
            }
            Self::EvalVerdict { missed, .. } => {
                f.write_str("own verdict: not admissible: ")?;
                write_list(f, missed)
            }
            Self::Admitted { join_id, expires_at } => {
                let until = iso8601(Duration::from_secs(*expires_at));
                write!(
                    f,
                    "admitted, join request {join_id}, to be used until {until}; next: register this node"
                )
            }
            Self::Proxied { origin, status, bytes, duration_ms } => {
                write!(f, "proxied {origin}: {status}, {bytes} bytes, {duration_ms} ms")
            }
            Self::ProxyFailed { origin: Some(origin), reason } => write!(f, "proxying {origin}: {reason}"),
            Self::ProxyFailed { origin: None, reason } => write!(f, "proxying: {reason}"),
            Self::ClientRefused { reason, count } => {
                write!(f, "a data-plane client was turned away ({count} since the start): {reason}")
            }
            Self::OverLimit { limit, count } => {
                write!(f, "over the limit of {limit}: turned away ({count} times since the start)")
            }
            Self::Unsupported { what } => {
                write!(f, "the server asked for {what}, which this release does not do")
            }
            Self::UpdatePreparing { update_id, version } => {
                write!(f, "the network directs an update to {version} ({update_id}): downloading it")
            }
            Self::UpdatePrepared { update_id, version } => {
                write!(f, "the update to {version} ({update_id}) is ready; the network says when")
            }
            Self::UpdateFailed { update_id, code, reason } => {
                write!(f, "update {update_id}: {code}: {reason}; this release goes on")
            }
            Self::UpdateDraining { version, active_requests, active_streams, limit_ms } => write!(
                f,
                "updating to {version}: nothing new is taken on; {active_requests} requests and {active_streams}                  streams have at most {} s to end",
                limit_ms / 1000
            ),
            Self::UpdateInstalling { version } => write!(f, "updating to {version}: installing"),
            Self::UpdateInstalled { version } => {
                write!(f, "{version} is installed; this process ends for the supervisor to start it")
            }
            Self::UpdateOverdue { reason } => f.write_str(reason),
            Self::UpdateOnProbation { version } => {
                write!(f, "{version} runs for the first time: it stays if the network answers it")
            }
            Self::UpdateConfirmed { version } => write!(f, "{version} works and stays"),
            Self::UpdateRolledBack { version, reason } => write!(
                f,
                "{version} was installed and did not work, so the release before it runs again: {reason}; it is not \
                 tried again"
            ),
            Self::NotSaved { reason } => write!(f, "could not save: {reason}"),
            Self::Stopping => f.write_str("stopping"),
        }
    }
}

fn write_list(f: &mut fmt::Formatter<'_>, items: &[String]) -> fmt::Result {
    for (i, item) in items.iter().enumerate() {
        let separator = if i == 0 { "" } else { "; " };
        write!(f, "{separator}{item}")?;
    }
    Ok(())
}
