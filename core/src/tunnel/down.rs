//! Why a session, or an attempt at one, came to its end: in words for an operator, with what to do.

use alloc::format;
use alloc::string::{String, ToString as _};

use super::handshake::HandshakeError;
use crate::io::{LinkEnd, OpenStage, Outcome};
use crate::limits::{HANDSHAKE_CLOCK_TOLERANCE, MAX_MESSAGE};
use crate::text::printable;
use crate::time::Reason;

/// For a server that took the connection and then did not go on.
const BUSY: Option<&str> = Some("it may be overloaded; there is nothing to do here");

/// The end of a session or of an attempt.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Down {
    /// What a node that does not try again ends with.
    pub(crate) outcome: Outcome,
    /// What happened.
    pub(crate) reason: String,
    /// What the operator can do.
    pub(crate) advice: Option<String>,
}

impl Down {
    fn new(outcome: Outcome, reason: impl Into<String>, advice: Option<&str>) -> Self {
        Self { outcome, reason: reason.into(), advice: advice.map(String::from) }
    }

    /// The transport ended by itself or by the server.
    pub(crate) fn of_link(end: &LinkEnd) -> Self {
        match end {
            LinkEnd::Unopened { stage, detail } => {
                let detail = printable(detail);
                let (what, advice) = match stage {
                    OpenStage::Resolve => (
                        "the server's name does not resolve",
                        "check the name in the server URL and this machine's DNS",
                    ),
                    OpenStage::Connect => (
                        "the server cannot be reached",
                        "check that the server is up and that no firewall keeps this machine from its port",
                    ),
                    OpenStage::Tls => (
                        "TLS with the server failed",
                        "check the scheme and port of the server URL, this machine's clock, and its CA certificates",
                    ),
                    OpenStage::Upgrade => (
                        "the server did not open a WebSocket",
                        "check that the URL is a Consensus server's, and whether it wants https",
                    ),
                    OpenStage::Proxy => (
                        "there is no way through the proxy",
                        "check HTTPS_PROXY, HTTP_PROXY and ALL_PROXY; a server named in NO_PROXY is connected to directly",
                    ),
                };
                Self::new(Outcome::Unreachable, format!("{what}: {detail}"), Some(advice))
            }
            LinkEnd::NotUpgraded { status } => {
                let advice = match status {
                    300..=399 => "the server moved: use the URL it redirects to",
                    401 | 403 => "the server, or a proxy before it, does not let this machine in",
                    404 | 405 => "check the server URL: there is no /node/tunnel at this one",
                    426 => "a proxy before the server does not pass WebSockets on",
                    500..=599 => "the server is in trouble; nothing is wrong here",
                    _ => "check that the URL is a Consensus server's",
                };
                let reason = format!("the server answered HTTP {status} instead of opening a WebSocket");
                Self::new(Outcome::Unreachable, reason, Some(advice))
            }
            LinkEnd::Closed { code, reason } => {
                let mut text = format!("the server closed the tunnel with code {code}");
                if !reason.is_empty() {
                    text = format!("{text}: {}", printable(reason));
                }
                let advice = (*code == 1008)
                    .then_some("the server does not take what this node sent; is it up to date?");
                Self::new(Outcome::Unreachable, text, advice)
            }
            LinkEnd::TooLarge => {
                let reason = format!("the server sent a message over {MAX_MESSAGE} bytes");
                Self::new(Outcome::Unreachable, reason, None)
            }
            LinkEnd::BadWebSocket { detail } => {
                let reason = format!("the server broke the WebSocket protocol: {}", printable(detail));
                Self::new(Outcome::Unreachable, reason, None)
            }
            LinkEnd::Lost { detail } => {
                let reason = format!("the connection to the server broke: {}", printable(detail));
                Self::new(Outcome::Unreachable, reason, None)
            }
        }
    }

    /// The handshake failed. `unix_seconds` is this machine's clock.
    pub(crate) fn of_handshake(error: &HandshakeError, unix_seconds: u64) -> Self {
        let reason = error.to_string();
        match error {
            HandshakeError::Rejected { server_time, .. } => {
                let off = unix_seconds.abs_diff(*server_time);
                if off > HANDSHAKE_CLOCK_TOLERANCE.as_secs() {
                    let direction = if unix_seconds > *server_time { "ahead of" } else { "behind" };
                    let advice = format!(
                        "this machine's clock is {off} s {direction} the server's: set it (NTP) and it will connect"
                    );
                    return Self::new(Outcome::Refused, reason, Some(&advice));
                }
                let advice = "check that this state directory's node is registered with this very server, and with the key in its keys/node.key";
                Self::new(Outcome::Refused, reason, Some(advice))
            }
            HandshakeError::Unsigned | HandshakeError::BadSignature => {
                let advice = "this may not be the server you pinned: find out before you change --server-key";
                Self::new(Outcome::Refused, reason, Some(advice))
            }
            HandshakeError::Incompatible { .. } => {
                Self::new(Outcome::Refused, reason, Some("update this node"))
            }
            HandshakeError::Malformed(_) | HandshakeError::BadPoint | HandshakeError::WrongSession => {
                Self::new(Outcome::Unreachable, reason, Some("check that the URL is a Consensus server's"))
            }
        }
    }

    /// A deadline passed.
    pub(crate) fn of_deadline(reason: Reason) -> Self {
        let (text, advice) = match reason {
            Reason::Open => (
                "the server did not open the tunnel in time",
                Some("check that no firewall drops this machine's packets to the server"),
            ),
            Reason::Handshake => ("the server did not answer the handshake in time", BUSY),
            Reason::Ready => ("the server did not say ready in time", BUSY),
            _ => ("the server has been silent for too long; the connection is taken for dead", None),
        };
        Self::new(Outcome::Unreachable, text, advice)
    }

    /// The server ended the session with a close frame of the frame layer.
    pub(crate) fn of_close_frame() -> Self {
        Self::new(Outcome::Unreachable, "the server ended the session", None)
    }
}
