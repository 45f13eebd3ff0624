//! What both shells do alike with WebSockets, the tunnel's and the local API's: settings, the request, what errors mean,
//! and what is taken of a client.

use core::fmt;
use std::io;
use std::time::Duration;

use crate::budget::{Budget, Share};
use consensus_core::guard::Target;
use consensus_core::io::{LinkEnd, OpenStage};
use consensus_core::limits::MAX_MESSAGE;
use tungstenite::error::{CapacityError, ProtocolError};
use tungstenite::handshake::client::{Request, generate_key};
use tungstenite::protocol::frame::coding::CloseCode;
use tungstenite::protocol::{CloseFrame, WebSocketConfig};
use tungstenite::{Error, Utf8Bytes};

/// Read at once from the transport. The library takes this much memory for each connection at its start.
const READ_BUFFER: usize = 8 * 1024;

/// What answers to pings may add to one message that is being written. A server that pings and does not read is
/// answered no more than that.
const CONTROL_ROOM: usize = 64 * 1024;

/// What is read of one connection before others, timers and signals have their turn. Without it a flood of frames
/// that carry nothing would keep the run loop for as long as it lasts.
pub const BYTES_A_TURN: usize = 256 * 1024;

/// How long the tunnel's server may take to read what is unsent and a close frame, and to answer that.
pub const CLOSE_TIMEOUT: Duration = Duration::from_secs(2);

/// How long a client of the local API may take to read a message, or all that is left before a close frame. One that
/// does not read must not hold memory.
pub const CLIENT_TIMEOUT: Duration = Duration::from_secs(30);

/// How long a client of the local API may take to answer a close frame when nothing else is left.
pub const CLIENT_CLOSE_TIMEOUT: Duration = Duration::from_secs(5);

/// A client that has not sent a first message yet is not known to want anything sensible: no larger one is taken of it.
/// Of every client, what comes in over it counts against the [`budget`](crate::budget).
const FREE_INTAKE: usize = 64 * 1024;

/// What a frame of a client has beside its payload, if that is short.
const SHORT_HEADER: usize = 6;

/// What has been read of a client since its last message.
#[derive(Debug)]
pub struct Intake {
    bytes: usize,
    has_spoken: bool,
    budget: Budget,
    share: Share,
}

/// Why no more is read of a client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Refused {
    TooLarge,
    Busy,
}

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::TooLarge => "the first message is too large",
            Self::Busy => "too much is being received at once",
        })
    }
}

impl std::error::Error for Refused {}

impl Intake {
    /// Of a client that has sent nothing yet.
    #[must_use]
    pub fn new(budget: &Budget) -> Self {
        Self { bytes: 0, has_spoken: false, budget: budget.clone(), share: budget.share() }
    }

    /// Bytes were read.
    ///
    /// # Errors
    /// They are too many; [`failed`] says what the client is told.
    pub fn read(&mut self, bytes: usize) -> io::Result<()> {
        self.bytes += bytes;
        if self.bytes <= FREE_INTAKE {
            Ok(())
        } else if !self.has_spoken {
            Err(io::Error::other(Refused::TooLarge))
        } else if !self.share.hold(self.bytes) {
            Err(io::Error::other(Refused::Busy))
        } else {
            Ok(())
        }
    }

    /// A ping, or an answer to one, was among what was read.
    pub fn took_control(&mut self, payload: usize) {
        self.bytes = self.bytes.saturating_sub(payload + SHORT_HEADER);
    }

    /// A whole message was.
    pub fn took_message(&mut self) {
        self.bytes = 0;
        self.has_spoken = true;
        self.share = self.budget.share();
    }
}

/// The bounds of a connection: a message or frame over [`MAX_MESSAGE`] is refused by its header, before memory is
/// taken for it.
#[must_use]
pub fn config() -> WebSocketConfig {
    WebSocketConfig::default()
        .read_buffer_size(READ_BUFFER)
        .write_buffer_size(0)
        .max_write_buffer_size(MAX_MESSAGE + CONTROL_ROOM)
        .max_message_size(Some(MAX_MESSAGE))
        .max_frame_size(Some(MAX_MESSAGE))
}

/// Where a `ws` or `wss` URL leads.
///
/// # Errors
/// It is none. The command line has checked it; this is what is said if it did not.
pub fn target(url: &str) -> Result<Target, LinkEnd> {
    let http = url.strip_prefix("ws").map(|rest| ["http", rest].concat());
    http.and_then(|http| Target::parse(&http).ok()).ok_or_else(|| LinkEnd::Unopened {
        stage: OpenStage::Resolve,
        detail: "the tunnel URL is not a ws or wss URL".to_owned(),
    })
}

/// The upgrade request for `target`.
///
/// # Errors
/// The host or path cannot stand in a request.
pub fn request(url: &str, target: &Target) -> Result<Request, LinkEnd> {
    Request::builder()
        .uri(url)
        .header("Host", target.host_header())
        .header("Connection", "Upgrade")
        .header("Upgrade", "websocket")
        .header("Sec-WebSocket-Version", "13")
        .header("Sec-WebSocket-Key", generate_key())
        .body(())
        .map_err(|error| unopened(&error))
}

/// The end of an upgrade that failed.
#[must_use]
pub fn not_upgraded(error: &Error) -> LinkEnd {
    match error {
        Error::Http(response) => LinkEnd::NotUpgraded { status: response.status().as_u16() },
        error => unopened(error),
    }
}

fn unopened(error: &dyn std::error::Error) -> LinkEnd {
    LinkEnd::Unopened { stage: OpenStage::Upgrade, detail: error.to_string() }
}

/// The end that a close frame of the server is.
#[must_use]
pub fn closed(frame: Option<&CloseFrame>) -> LinkEnd {
    match frame {
        Some(frame) => LinkEnd::Closed { code: frame.code.into(), reason: frame.reason.as_str().to_owned() },
        None => LinkEnd::Closed { code: 1005, reason: String::new() },
    }
}

/// What an error of an open connection means, and the close frame that tells the server, where it is at fault.
#[must_use]
pub fn failed(error: &Error) -> (LinkEnd, Option<CloseFrame>) {
    let answer = |code, reason| Some(CloseFrame { code, reason: Utf8Bytes::from_static(reason) });
    let refused = |error: &io::Error| error.get_ref().and_then(|inner| inner.downcast_ref().copied());
    match error {
        Error::Io(error) if refused(error) == Some(Refused::Busy) => {
            (LinkEnd::Lost { detail: error.to_string() }, answer(CloseCode::Again, "busy"))
        }
        Error::Io(error) if refused(error) == Some(Refused::TooLarge) => {
            (LinkEnd::TooLarge, answer(CloseCode::Size, "message too large"))
        }
        Error::Capacity(CapacityError::MessageTooLong { .. }) => {
            (LinkEnd::TooLarge, answer(CloseCode::Size, "message too large"))
        }
        // The library counts this as a broken protocol; it is how a server that dies looks.
        Error::Protocol(ProtocolError::ResetWithoutClosingHandshake) => {
            (LinkEnd::Lost { detail: "the server ended the connection without a word".to_owned() }, None)
        }
        Error::Protocol(_) | Error::Utf8(_) | Error::Capacity(_) => (
            LinkEnd::BadWebSocket { detail: error.to_string() },
            answer(CloseCode::Protocol, "protocol error"),
        ),
        error => (LinkEnd::Lost { detail: error.to_string() }, None),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tunnel_url_leads_to_its_host_and_default_port() {
        let target = target("wss://network.example/node/tunnel").unwrap();
        assert_eq!((target.host.as_str(), target.port), ("network.example", 443));
        let request = request("wss://network.example/node/tunnel", &target).unwrap();
        assert_eq!(request.headers()["host"], "network.example");
        for url in ["http://x/", "ws:///", "wss", "wsss://x/"] {
            assert!(super::target(url).is_err(), "{url}");
        }
    }

    #[test]
    fn a_message_too_large_and_a_broken_protocol_are_answered_by_their_codes() {
        let (end, answer) = failed(&Error::Capacity(CapacityError::MessageTooLong { size: 9, max_size: 1 }));
        assert_eq!((end, answer.unwrap().code), (LinkEnd::TooLarge, CloseCode::Size));
        let error = Error::Protocol(ProtocolError::UnmaskedFrameFromClient);
        assert_eq!(failed(&error).1.unwrap().code, CloseCode::Protocol);
        assert_eq!(failed(&Error::ConnectionClosed).1, None);
    }

    #[test]
    fn a_client_shows_a_small_message_before_a_large_one_is_taken() {
        let budget = Budget::default();
        let mut intake = Intake::new(&budget);
        intake.read(FREE_INTAKE).unwrap();
        let error = Error::Io(intake.read(1).unwrap_err());
        assert_eq!(failed(&error).1.unwrap().code, CloseCode::Size);

        let mut intake = Intake::new(&budget);
        for _ in 0..FREE_INTAKE {
            // Pings for hours are no message.
            intake.read(7).unwrap();
            intake.took_control(1);
        }
        intake.read(100).unwrap();
        intake.took_message();
        intake.read(MAX_MESSAGE).unwrap();
        let mut other = Intake::new(&budget);
        other.took_message();
        let held = budget.forced(usize::MAX / 2);
        let error = Error::Io(other.read(MAX_MESSAGE).unwrap_err());
        assert_eq!(failed(&error).1.unwrap().code, CloseCode::Again);
        drop(held);
        intake.took_message();
        other.read(1).unwrap();
    }
}
