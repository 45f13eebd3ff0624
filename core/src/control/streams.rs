//! Streams (protocol.md section 9): which are open, how far each has come, and what a proxy session says.

use alloc::boxed::Box;
use alloc::collections::BTreeMap;
use alloc::string::{String, ToString as _};
use alloc::vec::Vec;

use serde::Deserialize;
use serde_json::{Map, Value, json};

use crate::crypto::Crypto;
use crate::data_plane::responder::Responder;
use crate::io::Response;
use crate::limits::{DATA_PLANE_STEP, MAX_STREAMS};
use crate::time::{Deadline, Now, Reason};
use crate::wire::base64;
use crate::wire::frame::FrameBuf;
use crate::wire::message::{BodyEncoding, StreamOpen, decode_body, joined_headers};

/// Why a data-plane stream is closed when all went well, and when the client was told what did not.
pub(super) const COMPLETE: &str = "data-plane complete";

/// An open stream.
#[derive(Debug)]
pub(super) enum Stream<C: Crypto> {
    /// Each datum is a request.
    ProxySession,
    /// A data-plane connection that waits for its `data_init`.
    DataInit { until: Deadline },
    /// One that waits for its request.
    DataRequest { responder: Box<Responder<C>>, until: Deadline },
    /// One whose request is being fetched; that has a deadline of its own.
    DataFetching,
}

impl<C: Crypto> Stream<C> {
    pub(super) fn data_request(responder: Responder<C>, now: Now) -> Self {
        let until = now.deadline(DATA_PLANE_STEP, Reason::DataPlaneStep);
        Self::DataRequest { responder: Box::new(responder), until }
    }

    const fn until(&self) -> Option<Deadline> {
        match self {
            Self::DataInit { until } | Self::DataRequest { until, .. } => Some(*until),
            Self::ProxySession | Self::DataFetching => None,
        }
    }
}

/// The open streams of a session.
#[derive(Debug)]
pub(super) struct Streams<C: Crypto> {
    open: BTreeMap<String, Stream<C>>,
}

impl<C: Crypto> Default for Streams<C> {
    fn default() -> Self {
        Self { open: BTreeMap::new() }
    }
}

/// A `target` that is JSON.
#[derive(Deserialize)]
struct Target {
    kind: String,
}

impl<C: Crypto> Streams<C> {
    pub(super) fn len(&self) -> usize {
        self.open.len()
    }

    pub(super) fn clear(&mut self) {
        self.open.clear();
    }

    pub(super) fn deadline(&self) -> Option<Deadline> {
        self.open.values().filter_map(Stream::until).min_by_key(|until| until.at)
    }

    /// The streams whose client took too long.
    pub(super) fn overdue(&self, now: Now) -> Vec<String> {
        let is_due = |stream: &Stream<C>| stream.until().is_some_and(|until| until.is_due(now));
        self.open.iter().filter(|(_, stream)| is_due(stream)).map(|(id, _)| id.clone()).collect()
    }

    /// Opens a stream; the error is a code and a text for the server.
    pub(super) fn open(&mut self, open: &StreamOpen, now: Now) -> Result<(), (&'static str, &'static str)> {
        let unsupported = ("unsupported_stream_target", "this release has no streams of that kind");
        let stream = if open.target == "proxy-session" {
            Stream::ProxySession
        } else {
            let target: Target = serde_json::from_str(&open.target).map_err(|_| unsupported)?;
            match target.kind.as_str() {
                "data-plane" => {
                    Stream::DataInit { until: now.deadline(DATA_PLANE_STEP, Reason::DataPlaneStep) }
                }
                _ => return Err(unsupported),
            }
        };
        if self.open.contains_key(&open.stream_id) {
            return Err(("stream_exists", "a stream of that name is open"));
        }
        if self.open.len() >= MAX_STREAMS {
            return Err(("too_many_streams", "as many streams are open as this node takes"));
        }
        self.put(open.stream_id.clone(), stream);
        Ok(())
    }

    /// The stream of that name; a proxy session stays open, the others are put back by whoever takes them on.
    pub(super) fn take(&mut self, stream_id: &str) -> Option<Stream<C>> {
        match self.open.get(stream_id)? {
            Stream::ProxySession => Some(Stream::ProxySession),
            _ => self.open.remove(stream_id),
        }
    }

    pub(super) fn put(&mut self, stream_id: String, stream: Stream<C>) {
        self.open.insert(stream_id, stream);
    }

    pub(super) fn take_closed(&mut self, stream_id: &str) {
        self.open.remove(stream_id);
    }
}

/// One request of a proxy session.
#[derive(Debug, PartialEq)]
pub(super) struct SessionRequest {
    pub(super) id: Option<Value>,
    pub(super) url: String,
    pub(super) method: Option<String>,
    pub(super) headers: Vec<(String, String)>,
    pub(super) body: Option<Vec<u8>>,
}

/// Reads a datum of a proxy session. The error has the asker's `id`, where it could be read, and the message.
pub(super) fn session_request(
    data: &[u8],
    max_body: usize,
) -> Result<SessionRequest, (Option<Value>, String)> {
    #[derive(Deserialize)]
    struct Datum {
        url: Option<String>,
        method: Option<String>,
        headers: Option<BTreeMap<String, String>>,
        body: Option<Value>,
        #[serde(default)]
        body_encoding: BodyEncoding,
    }
    let value: Value =
        serde_json::from_slice(data).map_err(|_| (None, "Message must be valid JSON".to_string()))?;
    let id = value.get("id").filter(|id| id.is_string() || id.is_number()).cloned();
    let invalid = |reason: String| (id.clone(), reason);
    let datum = Datum::deserialize(&value).map_err(|error| invalid(error.to_string()))?;
    let url = datum.url.ok_or_else(|| invalid("Missing required field: url".to_string()))?;
    let body = match datum.body {
        None | Some(Value::Null) => None,
        Some(Value::String(text)) => Some(text),
        Some(value) => Some(value.to_string()),
    };
    let body = decode_body(body, datum.body_encoding, max_body).map_err(invalid)?;
    let headers = datum.headers.unwrap_or_default().into_iter().collect();
    Ok(SessionRequest { id, url, method: datum.method, headers, body })
}

/// The datum of a response in a proxy session.
pub(super) fn session_response(id: Option<&Value>, response: &Response) -> Vec<u8> {
    let mut datum = with_id(id);
    datum.insert("status".to_string(), response.status.into());
    datum.insert("headers".to_string(), json!(joined_headers(&response.headers)));
    datum.insert("body".to_string(), base64::encode(&response.body).into());
    datum.insert("body_encoding".to_string(), "base64".into());
    datum.insert("meta".to_string(), json!({"served_by": "node-control"}));
    Value::Object(datum).to_string().into_bytes()
}

/// The datum of an error in a proxy session.
pub(super) fn session_error(id: Option<&Value>, error: &str, message: &str) -> Vec<u8> {
    let mut datum = with_id(id);
    datum.insert("error".to_string(), error.into());
    datum.insert("message".to_string(), message.into());
    Value::Object(datum).to_string().into_bytes()
}

fn with_id(id: Option<&Value>) -> Map<String, Value> {
    id.map(|id| ("id".to_string(), id.clone())).into_iter().collect()
}

/// The plaintext of a `stream_data`, its bytes encoded where they will be sealed.
pub(super) fn datum(unix_seconds: u64, stream_id: &str, bytes: &[u8]) -> FrameBuf {
    let head = json!({
        "type": "stream_data", "timestamp": unix_seconds, "stream_id": stream_id, "encoding": "base64",
    });
    let head = head.to_string();
    let encoded = bytes.len().div_ceil(3).saturating_mul(4);
    let mut out = FrameBuf::with_capacity(head.len().saturating_add(encoded).saturating_add(16));
    out.extend(head.trim_end_matches('}').as_bytes());
    out.extend(b",\"data\":\"");
    out.extend_base64(bytes);
    out.extend(b"\"}");
    out
}
