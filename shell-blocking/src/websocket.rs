//! What both shells do alike with the tunnel's WebSocket: its settings, its request, and what its errors mean.

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
    match error {
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
}
