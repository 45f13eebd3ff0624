//! Messages: the JSON plaintext of data frames, both directions (protocol.md section 4).
//!
//! A message is parsed in two steps: its head (`type`, `timestamp`), then the members of that type. Unknown members
//! are ignored, unknown types are an error. Both halves of the protocol use the same types: what the node parses,
//! [`peer`](crate::peer) writes.

use alloc::borrow::Cow;
use alloc::boxed::Box;
use alloc::collections::BTreeMap;
use alloc::collections::btree_map::Entry;
use alloc::format;
use alloc::string::{String, ToString as _};
use alloc::vec::Vec;
use core::fmt;

use serde::de::{Error as _, IgnoredAny, MapAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::{Number, Value};

use super::frame::FrameBuf;
use super::json::Object;
use crate::limits::{MAX_ID, MAX_MESSAGE, MAX_SMALL_MESSAGE};
use crate::release::manifest::{Capabilities, Manifest};
use crate::text::printable;
use crate::tunnel::Mode;

/// Why a plaintext is not a message. The peer's fault; answered with `decode_failed`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DecodeError {
    /// Not one JSON object with a `type` string and a finite `timestamp`.
    Head(String),
    /// A type that is not of version 1.
    UnknownType(String),
    /// A member is missing or of the wrong kind.
    Members {
        /// Of which message.
        kind: &'static str,
        /// What is wrong.
        detail: String,
    },
    /// An identifier is empty or over [`MAX_ID`] bytes.
    Id {
        /// Of which message.
        kind: &'static str,
    },
}

impl fmt::Display for DecodeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Head(detail) => write!(f, "not a message: {detail}"),
            Self::UnknownType(kind) => write!(f, "unknown message type \"{kind}\""),
            Self::Members { kind, detail } => write!(f, "{kind}: {detail}"),
            Self::Id { kind } => write!(f, "{kind}: an identifier is empty or over {MAX_ID} bytes"),
        }
    }
}

impl core::error::Error for DecodeError {}

/// What every message has.
#[derive(Deserialize)]
struct Head<'a> {
    #[serde(rename = "type", borrow)]
    kind: Cow<'a, str>,
    // JSON has no way to write a number that is not finite, and serde_json refuses one that overflows.
    #[serde(rename = "timestamp")]
    _timestamp: f64,
}

/// The body of a request or response: how `body` is written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum BodyEncoding {
    /// `body` is the text itself.
    #[default]
    Utf8,
    /// `body` is base64.
    Base64,
}

/// Names of header fields that are read of one request. Whoever is to send them takes far fewer and says so; these are
/// as many as memory is taken for, because a map takes ten times the length of its JSON.
pub(crate) const MAX_HEADERS_READ: usize = 1024;

/// Reads the header fields of a request, within [`MAX_HEADERS_READ`].
pub(crate) fn few_headers<'de, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<Option<BTreeMap<String, String>>, D::Error> {
    struct Few;
    impl<'de> Visitor<'de> for Few {
        type Value = Headers;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("a map of header fields")
        }

        fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Headers, A::Error> {
            let mut headers = BTreeMap::new();
            while let Some((name, value)) = map.next_entry::<String, String>()? {
                if headers.len() >= MAX_HEADERS_READ {
                    return Err(A::Error::custom("too many header fields"));
                }
                headers.insert(name, value);
            }
            Ok(Headers(headers))
        }
    }
    struct Headers(BTreeMap<String, String>);
    impl<'de> Deserialize<'de> for Headers {
        fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
            deserializer.deserialize_map(Few)
        }
    }
    Ok(Option::<Headers>::deserialize(deserializer)?.map(|headers| headers.0))
}

/// The parameters of all eval actions. They have types of their own, and are not any JSON, because JSON in memory
/// takes a hundred times its length.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct EvalParams {
    /// Of `tunnel_echo`: base64.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub payload: Option<String>,
    /// Of `tunnel_echo`: repeated in the answer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub nonce: Option<String>,
    /// Of `benchmark_memory_pressure`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub test_size_mb: Option<Number>,
    /// Of `benchmark_memory_pressure`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rounds: Option<Number>,
    /// Of `benchmark_composite`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub quick: Option<bool>,
    /// Of `benchmark_sustained` and `benchmark_multicore`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub duration_ms: Option<Number>,
    /// Of `benchmark_sustained`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub window_ms: Option<Number>,
    /// Of `speedtest_fetch`: what to fetch.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target_url: Option<String>,
    /// Of `speedtest_fetch`: `GET` when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub method: Option<String>,
    /// Of `speedtest_fetch`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeout_ms: Option<Number>,
}

/// The longest message of a type.
fn max_length(kind: &str) -> usize {
    match kind {
        "proxy_request" | "proxy_response" | "stream_open" | "stream_data" | "eval_request"
        | "eval_response" => MAX_MESSAGE,
        _ => MAX_SMALL_MESSAGE,
    }
}

macro_rules! messages {
    ($($(#[$doc:meta])* $variant:ident = $kind:literal {
        $($(#[$member:meta])* $field:ident: $type:ty,)*
    })*) => {
        $(
            $(#[$doc])*
            #[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
            pub struct $variant { $($(#[$member])* pub $field: $type,)* }

            impl $variant {
                /// The plaintext of this message.
                #[must_use]
                pub fn encode(&self, unix_seconds: u64) -> FrameBuf {
                    encode($kind, unix_seconds, self)
                }
            }
        )*

        /// A message of version 1, whichever way it goes.
        #[derive(Clone, Debug, PartialEq)]
        #[expect(missing_docs, reason = "each variant is documented at the type of its name")]
        pub enum Message { $($variant($variant),)* }

        impl Message {
            /// Its `type`.
            #[must_use]
            pub const fn kind(&self) -> &'static str {
                match self { $(Self::$variant(_) => $kind,)* }
            }

            fn parse_members(kind: &str, text: &str) -> Result<Self, DecodeError> {
                match kind {
                    $($kind => serde_json::from_str(text)
                        .map(Self::$variant)
                        .map_err(|error| DecodeError::Members { kind: $kind, detail: detail(&error) }),)*
                    _ => Err(DecodeError::UnknownType(printable(kind))),
                }
            }
        }
    };
}

messages! {
    /// The node introduces itself.
    Hello = "hello" {
        /// As in the handshake.
        mode: Mode,
        /// The registered name, where there is one.
        #[serde(skip_serializing_if = "Option::is_none")]
        node_id: Option<String>,
        /// The operator's name for the candidate.
        #[serde(skip_serializing_if = "Option::is_none")]
        candidate_id: Option<String>,
        /// The node's identity.
        public_key_pem: String,
        /// Of the release.
        version: String,
    }
    /// The server takes the session.
    Ready = "ready" {
        /// As derived.
        session_id: String,
        /// As asked for.
        mode: Mode,
    }
    /// A ping inside a data frame; the frame type of its own is what is used.
    Ping = "ping" {
        /// To be repeated in the answer.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        id: Option<String>,
    }
    /// The answer to a ping.
    Pong = "pong" {
        /// The ping's `id`, where it had one.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        reply_to: Option<String>,
    }
    /// The server asks for an eval action (section 5).
    EvalRequest = "eval_request" {
        /// To be repeated in the answer.
        id: String,
        /// Which.
        action: String,
        /// Its parameters.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        params: Option<EvalParams>,
    }
    /// The node's answer.
    EvalResponse = "eval_response" {
        /// The request's `id`.
        reply_to: String,
        /// The request's `action`.
        action: String,
        /// Whether there is a result.
        ok: bool,
        /// The result.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        result: Option<Value>,
        /// Why there is none.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        error: Option<String>,
    }
    /// The node is admitted (section 5).
    JoinReady = "join_ready" {
        /// Names the join request.
        join_id: String,
        /// `ed25519`.
        alg: String,
        /// To be signed as raw bytes; base64url.
        nonce: String,
        /// Unix seconds.
        #[serde(deserialize_with = "whole_seconds")]
        expires_at: u64,
    }
    /// The node lives and serves.
    Heartbeat = "heartbeat" {
        /// Whose.
        node_id: String,
        /// Of the process.
        uptime_seconds: u64,
        /// What it can do.
        capabilities: Capabilities,
        /// Proxied requests under way.
        active_requests: usize,
        /// Streams open.
        active_streams: usize,
    }
    /// The server wants something fetched (section 9).
    ProxyRequest = "proxy_request" {
        /// To be repeated in the answer.
        id: String,
        /// What to fetch.
        target_url: String,
        /// `GET` when absent.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        method: Option<String>,
        /// To be sent, after cleaning.
        #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "few_headers")]
        headers: Option<BTreeMap<String, String>>,
        /// To be sent.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        body: Option<String>,
        /// How `body` is written.
        #[serde(default)]
        body_encoding: BodyEncoding,
    }
    /// What was fetched. The node writes it with [`encode_proxy_response`].
    ProxyResponse = "proxy_response" {
        /// The request's `id`.
        reply_to: String,
        /// HTTP status.
        status: u16,
        /// HTTP reason phrase.
        status_text: String,
        /// One string a name.
        headers: BTreeMap<String, String>,
        /// The body.
        body: String,
        /// How `body` is written: always base64.
        body_encoding: BodyEncoding,
    }
    /// Reserved; answered with `unsupported`.
    HttpRequest = "http_request" {
        /// To be repeated in the answer.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        id: Option<String>,
    }
    /// Reserved.
    HttpResponse = "http_response" {
        /// The request's `id`.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        reply_to: Option<String>,
    }
    /// The server opens a stream (section 9).
    StreamOpen = "stream_open" {
        /// Names the stream.
        stream_id: String,
        /// `proxy-session` or a JSON text.
        target: String,
    }
    /// Bytes of a stream.
    StreamData = "stream_data" {
        /// Which.
        stream_id: String,
        /// The bytes, base64.
        data: String,
        /// `base64`.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        encoding: Option<String>,
    }
    /// The end of a stream.
    StreamClose = "stream_close" {
        /// Which.
        stream_id: String,
        /// Why.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        reason: Option<String>,
    }
    /// The server wants another release prepared (section 9).
    UpdatePrepare = "update_prepare" {
        /// To be repeated in the answer.
        id: String,
        /// Names the update.
        update_id: String,
        /// The release.
        manifest: Box<Manifest>,
    }
    /// The release is downloaded and verified.
    UpdateReady = "update_ready" {
        /// The request's `id`.
        reply_to: String,
        /// Which update.
        update_id: String,
        /// The file; empty when there is nothing to do.
        artifact_path: String,
        /// Its hash, hex.
        sha256: String,
        /// What runs.
        current_version: String,
        /// What was prepared.
        target_version: String,
    }
    /// The server wants the prepared release installed.
    UpdateApply = "update_apply" {
        /// To be repeated in the answer.
        id: String,
        /// Which update.
        update_id: String,
        /// How long to wait between the answer and the install.
        #[serde(default)]
        restart_after_ms: u64,
    }
    /// An update came to nothing.
    UpdateFailed = "update_failed" {
        /// The request's `id`.
        reply_to: String,
        /// Which update.
        update_id: String,
        /// `prepare_failed`, `update_not_prepared` or `apply_failed`.
        code: String,
        /// Why.
        message: String,
    }
    /// Something is done that has no answer of its own.
    Ack = "ack" {
        /// The request's `id`.
        reply_to: String,
    }
    /// Something went wrong with what the other side sent.
    ErrorMessage = "error" {
        /// The message it is about.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        reply_to: Option<String>,
        /// For programs.
        code: String,
        /// For people.
        #[serde(default)]
        message: String,
    }
}

impl Message {
    /// The message of a plaintext.
    ///
    /// # Errors
    /// It is not one, or of a type that version 1 does not have.
    pub fn parse(plaintext: &[u8]) -> Result<Self, DecodeError> {
        // Checked here as a whole, because a JSON parser looks only at the strings it keeps.
        let text =
            core::str::from_utf8(plaintext).map_err(|_| DecodeError::Head("it is not UTF-8".to_string()))?;
        quick_datum(text).map_or_else(|| Self::parse_any(text), |data| Ok(Self::StreamData(data)))
    }

    /// In two passes: the type, then what it has.
    pub(crate) fn parse_any(text: &str) -> Result<Self, DecodeError> {
        let head: Head<'_> = serde_json::from_str(text).map_err(|error| DecodeError::Head(detail(&error)))?;
        if text.len() > max_length(&head.kind) {
            let reason = format!("{} bytes are too many for a message of type {}", text.len(), head.kind);
            return Err(DecodeError::Head(printable(&reason)));
        }
        let message = Self::parse_members(&head.kind, text)?;
        if message.ids().into_iter().flatten().all(|id| !id.is_empty() && id.len() <= MAX_ID) {
            Ok(message)
        } else {
            Err(DecodeError::Id { kind: message.kind() })
        }
    }

    /// The identifiers the peer chose: what the node keeps or repeats.
    fn ids(&self) -> [Option<&String>; 2] {
        match self {
            Self::Hello(m) => [m.node_id.as_ref(), m.candidate_id.as_ref()],
            Self::Ready(m) => [Some(&m.session_id), None],
            Self::Ping(m) => [m.id.as_ref(), None],
            Self::Pong(m) => [m.reply_to.as_ref(), None],
            Self::EvalRequest(m) => [Some(&m.id), Some(&m.action)],
            Self::EvalResponse(m) => [Some(&m.reply_to), Some(&m.action)],
            Self::JoinReady(m) => [Some(&m.join_id), None],
            Self::Heartbeat(m) => [Some(&m.node_id), None],
            Self::ProxyRequest(m) => [Some(&m.id), None],
            Self::ProxyResponse(m) => [Some(&m.reply_to), None],
            Self::HttpRequest(m) => [m.id.as_ref(), None],
            Self::HttpResponse(m) => [m.reply_to.as_ref(), None],
            Self::StreamOpen(m) => [Some(&m.stream_id), None],
            Self::StreamData(m) => [Some(&m.stream_id), None],
            Self::StreamClose(m) => [Some(&m.stream_id), None],
            Self::UpdatePrepare(m) => [Some(&m.id), Some(&m.update_id)],
            Self::UpdateReady(m) => [Some(&m.reply_to), Some(&m.update_id)],
            Self::UpdateApply(m) => [Some(&m.id), Some(&m.update_id)],
            Self::UpdateFailed(m) => [Some(&m.reply_to), Some(&m.update_id)],
            Self::Ack(m) => [Some(&m.reply_to), None],
            Self::ErrorMessage(m) => [m.reply_to.as_ref(), None],
        }
    }
}

/// A `stream_data` as both sides write it, read in one go: most of what a busy tunnel carries is of this kind, and long.
/// `None` for everything else and for what is wrong with it, which is then read, or refused, as any message.
fn quick_datum(text: &str) -> Option<StreamData> {
    #[derive(Deserialize)]
    struct Datum {
        /// A second type is an error: the one that stands first is not all.
        #[serde(rename = "type")]
        _kind: IgnoredAny,
        #[serde(rename = "timestamp")]
        _timestamp: f64,
        stream_id: String,
        data: String,
        encoding: Option<String>,
    }
    if !text.starts_with("{\"type\":\"stream_data\",") || text.len() > MAX_MESSAGE {
        return None;
    }
    let Datum { stream_id, data, encoding, .. } = serde_json::from_str(text).ok()?;
    let is_named = !stream_id.is_empty() && stream_id.len() <= MAX_ID;
    is_named.then_some(StreamData { stream_id, data, encoding })
}

/// A time that the peer may write as a whole number or not.
fn whole_seconds<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u64, D::Error> {
    f64::deserialize(deserializer).map(seconds)
}

/// A peer's timestamp as whole seconds; what is none becomes the nearest that is.
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "`as` saturates, which is what is wanted"
)]
pub(crate) const fn seconds(timestamp: f64) -> u64 {
    timestamp as u64
}

/// The member of a parse error, without the peer's own text running on for ever.
fn detail(error: &serde_json::Error) -> String {
    printable(&error.to_string())
}

#[derive(Serialize)]
struct Envelope<'a, T> {
    #[serde(rename = "type")]
    kind: &'static str,
    timestamp: u64,
    #[serde(flatten)]
    members: &'a T,
}

fn encode<T: Serialize>(kind: &'static str, timestamp: u64, members: &T) -> FrameBuf {
    // Serialising plain data into memory fails only where a map has a key that is not a string; no message has.
    let json = serde_json::to_vec(&Envelope { kind, timestamp, members });
    debug_assert!(json.is_ok(), "{kind} does not serialise");
    FrameBuf::from_plaintext(&json.unwrap_or_default())
}

/// The plaintext of a `proxy_response`: on the tunnel with `timestamp` and `reply_to` (section 9), on the data plane
/// with neither (section 10). The body is encoded straight into the buffer that is sealed and sent.
#[must_use]
pub fn encode_proxy_response(
    tunnel: Option<(u64, &str)>,
    status: u16,
    status_text: &str,
    headers: &[(String, String)],
    body: &[u8],
) -> FrameBuf {
    let headers = joined_headers(headers);
    // The names of the members, and a few escapes.
    let mut capacity = body.len().div_ceil(3).saturating_mul(4).saturating_add(status_text.len() + 256);
    for (name, value) in &headers {
        capacity = capacity.saturating_add(name.len() + value.len() + 8);
    }
    let mut out = FrameBuf::with_capacity(capacity);
    let mut head = Object::open(&mut out);
    head.text("type", "proxy_response");
    if let Some((timestamp, reply_to)) = tunnel {
        head.number("timestamp", timestamp);
        head.text("reply_to", reply_to);
    }
    head.number("status", status.into());
    head.text("status_text", status_text);
    let mut fields = head.object("headers");
    for (name, value) in &headers {
        fields.named(name, value);
    }
    fields.close();
    head.text("body_encoding", "base64");
    out.extend(b",\"body\":\"");
    out.extend_base64(body);
    out.extend(b"\"}");
    out
}

/// Header fields as the wire has them: one string a name.
pub(crate) type JoinedHeaders<'a> = BTreeMap<Cow<'a, str>, Cow<'a, str>>;

/// Header fields as the wire has them: names in lower case, values of one name joined with a comma (RFC 9110, 5.3).
/// `transfer-encoding` is left out: the coding has been taken off. A `content-length` stands once, however often it
/// was sent; different ones do not get here.
///
/// A `set-cookie` must not be joined, because its value may hold commas (RFC 6265, 3). The wire has one string a name,
/// but names that differ in case are different names there, and one name again for whoever makes WHATWG `Headers` of
/// them, which keep every `set-cookie` apart. So the first is `set-cookie`, and the next ones are its other spellings,
/// in the order of [`spelling`].
pub(crate) fn joined_headers(headers: &[(String, String)]) -> JoinedHeaders<'_> {
    let mut out = JoinedHeaders::new();
    let mut cookies = 0;
    for (name, value) in headers {
        let name = if name.bytes().any(|byte| byte.is_ascii_uppercase()) {
            Cow::Owned(name.to_ascii_lowercase())
        } else {
            Cow::Borrowed(name.as_str())
        };
        if name == "transfer-encoding" {
            continue;
        }
        if name == "set-cookie" {
            // A head has fewer fields than the name has spellings.
            if let Some(name) = spelling(&name, cookies) {
                out.insert(Cow::Owned(name), Cow::Borrowed(value));
            }
            cookies += 1;
            continue;
        }
        match out.entry(name) {
            Entry::Vacant(entry) => {
                entry.insert(Cow::Borrowed(value));
            }
            Entry::Occupied(entry) if entry.key() == "content-length" => {}
            Entry::Occupied(mut entry) => {
                let joined = entry.get_mut().to_mut();
                if !joined.is_empty() {
                    joined.push_str(", ");
                }
                joined.push_str(value);
            }
        }
    }
    out
}

/// The `number`th spelling of a name in lower case: its letters are the bits of the number, the first letter the
/// lowest bit, and a set bit is a capital. 0 is the name itself; there are as many as the letters have combinations.
fn spelling(name: &str, number: usize) -> Option<String> {
    let mut bits = number;
    let spelled = name
        .chars()
        .map(|letter| {
            if !letter.is_ascii_alphabetic() {
                return letter;
            }
            let is_capital = bits & 1 == 1;
            bits >>= 1;
            if is_capital { letter.to_ascii_uppercase() } else { letter }
        })
        .collect();
    (bits == 0).then_some(spelled)
}

/// The plaintext of a `stream_data` (section 9), its bytes encoded where they will be sealed.
#[must_use]
pub fn stream_data(unix_seconds: u64, stream_id: &str, bytes: &[u8]) -> FrameBuf {
    // The name is the other side's: it is escaped by whoever knows how. Serialising text cannot fail.
    let stream_id = serde_json::to_string(stream_id).unwrap_or_default();
    let encoded = bytes.len().div_ceil(3).saturating_mul(4);
    let mut out = FrameBuf::with_capacity(encoded.saturating_add(stream_id.len()).saturating_add(96));
    out.extend(b"{\"type\":\"stream_data\",\"timestamp\":");
    out.extend(unix_seconds.to_string().as_bytes());
    out.extend(b",\"stream_id\":");
    out.extend(stream_id.as_bytes());
    out.extend(b",\"data\":\"");
    out.extend_base64(bytes);
    out.extend(b"\",\"encoding\":\"base64\"}");
    out
}

/// The plaintext of an `error`.
#[must_use]
pub fn error(unix_seconds: u64, reply_to: Option<&str>, code: &str, message: &str) -> FrameBuf {
    let message = ErrorMessage {
        reply_to: reply_to.map(String::from),
        code: code.to_string(),
        message: message.to_string(),
    };
    message.encode(unix_seconds)
}

/// The plaintext of a pong frame (section 2).
#[must_use]
pub fn pong_plaintext(unix_seconds: u64) -> FrameBuf {
    FrameBuf::from_plaintext(format!("{{\"type\":\"pong\",\"timestamp\":{unix_seconds}}}").as_bytes())
}

/// The bytes of a request body as the wire writes it.
///
/// # Errors
/// It says base64 and is not, or is longer than `max` bytes.
pub fn decode_body(
    body: Option<Cow<'_, str>>,
    encoding: BodyEncoding,
    max: usize,
) -> Result<Option<Vec<u8>>, String> {
    let Some(body) = body else { return Ok(None) };
    let bytes = match encoding {
        BodyEncoding::Utf8 => body.into_owned().into_bytes(),
        BodyEncoding::Base64 => super::base64::decode(&body).ok_or("the body is not base64")?,
    };
    if bytes.len() > max {
        return Err(format!("the body has {} bytes; the limit is {max}", bytes.len()));
    }
    Ok(Some(bytes))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::limits::MAX_HTTP_HEADERS;
    use alloc::vec;
    use serde_json::json;

    fn parse(value: &Value) -> Result<Message, DecodeError> {
        Message::parse(&serde_json::to_vec(value).unwrap())
    }

    #[test]
    fn no_more_header_fields_are_read_than_memory_is_taken_for() {
        let request = |count: usize| {
            let headers: BTreeMap<_, _> = (0..count).map(|number| (format!("h{number}"), "v")).collect();
            let request = serde_json::json!({
                "type": "proxy_request", "timestamp": 1, "id": "a", "target_url": "u", "headers": headers,
            });
            Message::parse(request.to_string().as_bytes())
        };
        let Ok(Message::ProxyRequest(read)) = request(MAX_HEADERS_READ) else { panic!() };
        assert_eq!(read.headers.unwrap().len(), MAX_HEADERS_READ);
        assert!(request(MAX_HEADERS_READ + 1).unwrap_err().to_string().contains("too many header fields"));
        for (headers, read) in
            [("", None), (",\"headers\":null", None), (",\"headers\":{}", Some(BTreeMap::new()))]
        {
            let text =
                format!(r#"{{"type":"proxy_request","timestamp":1,"id":"a","target_url":"u"{headers}}}"#);
            let Ok(Message::ProxyRequest(request)) = Message::parse(text.as_bytes()) else {
                panic!("{text}")
            };
            assert_eq!(request.headers, read);
        }
    }

    #[test]
    fn a_datum_that_is_read_in_one_go_is_read_as_any_message_is() {
        let usual = stream_data(7, "s\"1", b"\xff\x00");
        let usual = core::str::from_utf8(usual.plaintext()).unwrap();
        assert!(quick_datum(usual).is_some());
        let long_name = format!(
            r#"{{"type":"stream_data","timestamp":1,"stream_id":"{}","data":""}}"#,
            "n".repeat(MAX_ID + 1)
        );
        let odd = [
            usual,
            &long_name,
            r#"{"type":"stream_data","timestamp":1,"stream_id":"","data":""}"#,
            r#"{"type":"stream_data","timestamp":1,"stream_id":"s","data":"?"}"#,
            r#"{"type":"stream_data","timestamp":1.5,"stream_id":"s","data":"","encoding":null}"#,
            r#"{"type":"stream_data","timestamp":1,"stream_id":"s","data":"","encoding":7}"#,
            r#"{"type":"stream_data","timestamp":1,"stream_id":"s","data":"","more":{"type":1}}"#,
            r#"{"type":"stream_data","type":"stream_data","timestamp":1,"stream_id":"s","data":""}"#,
            r#"{"type":"stream_data","timestamp":1,"stream_id":"s","data":"","type":"stream_close"}"#,
            r#"{"type":"stream_data","timestamp":1,"stream_id":"s","data":"","data":"aGk="}"#,
            r#"{"type":"stream_data","timestamp":1,"stream_id":"s","stream_id":"t","data":""}"#,
            r#"{"type":"stream_data","timestamp":1,"timestamp":2,"stream_id":"s","data":""}"#,
            r#"{"type":"stream_data","stream_id":"s","data":""}"#,
            r#"{"type":"stream_data","timestamp":"1","stream_id":"s","data":""}"#,
            r#"{"type":"stream_data","timestamp":1e999,"stream_id":"s","data":""}"#,
            r#"{"type":"stream_data","timestamp":1,"stream_id":"s"}"#,
            r#"{"type":"stream_data","timestamp":1,"stream_id":"s","data":["a"]}"#,
            r#"{"type":"stream_data","timestamp":1,"stream_id":"\u0000","data":"\u0061"}"#,
            r#"{"type":"stream_data","timestamp":1,"stream_id":"\ud800","data":""}"#,
            r#"{"type":"stream_data","timestamp":1,"stream_id":"s","data":""}x"#,
            r#"{"type":"stream_data",}"#,
            r#"{"type":"stream_data","#,
            r#"{"timestamp":1,"type":"stream_data","stream_id":"s","data":""}"#,
        ];
        for text in odd {
            assert_eq!(Message::parse(text.as_bytes()), Message::parse_any(text), "{text}");
        }
    }

    #[test]
    fn unknown_members_are_ignored_and_unknown_types_are_named() {
        let ack = json!({"type": "ack", "timestamp": 1.5, "reply_to": "a", "more": [1]});
        assert_eq!(parse(&ack).unwrap(), Message::Ack(Ack { reply_to: "a".into() }));
        let unknown = json!({"type": "te\u{1b}leport", "timestamp": 1});
        assert_eq!(parse(&unknown), Err(DecodeError::UnknownType("te leport".into())));
    }

    #[test]
    fn a_message_has_a_type_and_a_finite_timestamp() {
        for text in [
            "",
            "[]",
            "1",
            "{}",
            r#"{"type":"ack","reply_to":"a"}"#,
            r#"{"type":1,"timestamp":1}"#,
            r#"{"type":"ack","timestamp":"1","reply_to":"a"}"#,
            r#"{"type":"ack","timestamp":1e999,"reply_to":"a"}"#,
            r#"{"type":"ack","timestamp":null,"reply_to":"a"}"#,
            "{\"type\":\"ack\",\"timestamp\":1}x",
        ] {
            assert!(matches!(Message::parse(text.as_bytes()), Err(DecodeError::Head(_))), "{text}");
        }
    }

    #[test]
    fn a_message_that_carries_nobodys_bytes_is_short() {
        let error =
            json!({"type": "error", "timestamp": 1, "code": "c", "message": "x".repeat(MAX_SMALL_MESSAGE)});
        assert!(matches!(parse(&error), Err(DecodeError::Head(_))));
        let request = json!({"type": "proxy_request", "timestamp": 1, "id": "r", "target_url": "x".repeat(MAX_SMALL_MESSAGE)});
        assert!(parse(&request).is_ok());
    }

    #[test]
    fn text_that_is_not_utf8_is_refused_even_where_nobody_reads_it() {
        let message = b"{\"type\":\"ack\",\"timestamp\":1,\"reply_to\":\"a\",\"ignored\":\"\xff\"}";
        assert!(matches!(Message::parse(message), Err(DecodeError::Head(_))));
    }

    #[test]
    fn identifiers_are_bounded() {
        for id in [String::new(), "x".repeat(MAX_ID + 1)] {
            let message = json!({"type": "ack", "timestamp": 1, "reply_to": id});
            assert_eq!(parse(&message), Err(DecodeError::Id { kind: "ack" }));
        }
    }

    #[test]
    fn deep_nesting_is_an_error_and_not_a_stack_overflow() {
        let text = format!("{{\"type\":\"ack\",\"timestamp\":1,\"x\":{}", "[".repeat(1 << 20));
        assert!(Message::parse(text.as_bytes()).is_err());
    }

    #[test]
    fn what_is_encoded_parses_to_the_same() {
        let message = ProxyRequest {
            id: "r1".into(),
            target_url: "http://example.com/".into(),
            method: None,
            headers: None,
            body: Some("x".into()),
            body_encoding: BodyEncoding::Utf8,
        };
        let plaintext = message.encode(5);
        assert_eq!(Message::parse(plaintext.plaintext()), Ok(Message::ProxyRequest(message)));
    }

    #[test]
    fn a_proxy_response_is_the_message_its_type_says() {
        let headers = vec![
            ("Content-Type".into(), "a/b".into()),
            ("vary".into(), "x".into()),
            ("Vary".into(), "y".into()),
            ("Transfer-Encoding".into(), "chunked".into()),
        ];
        let plaintext =
            encode_proxy_response(Some((7, "r1")), 200, "OK \"quoted\"", &headers, b"\xff\x00body");
        let value: Value = serde_json::from_slice(plaintext.plaintext()).unwrap();
        assert_eq!(
            value,
            json!({
                "type": "proxy_response", "timestamp": 7, "reply_to": "r1", "status": 200,
                "status_text": "OK \"quoted\"", "headers": {"content-type": "a/b", "vary": "x, y"},
                "body": "/wBib2R5", "body_encoding": "base64",
            })
        );
        assert!(matches!(Message::parse(plaintext.plaintext()), Ok(Message::ProxyResponse(_))));
    }

    #[test]
    fn cookies_are_kept_apart_by_the_spelling_of_their_name() {
        let cookie = |number: usize| ("Set-Cookie".to_string(), format!("c{number}=a, b"));
        let headers: Vec<_> = (0..MAX_HTTP_HEADERS).map(cookie).collect();
        let joined = joined_headers(&headers);
        assert_eq!(joined.len(), MAX_HTTP_HEADERS, "none may replace another");
        for (number, name) in
            ["set-cookie", "Set-cookie", "sEt-cookie", "SEt-cookie", "seT-cookie"].iter().enumerate()
        {
            assert_eq!(joined.get(*name), Some(&Cow::Borrowed(cookie(number).1.as_str())), "{name}");
        }
        assert!(joined.keys().all(|name| name.eq_ignore_ascii_case("set-cookie")));
        assert_eq!(spelling("set-cookie", 511).as_deref(), Some("SET-COOKIE"));
        assert_eq!(spelling("set-cookie", 512), None);
    }

    #[test]
    fn a_length_stands_once_and_an_empty_value_joins_nothing() {
        let pairs =
            [("Content-Length", "5"), ("content-length", "5"), ("a", ""), ("A", "1"), ("b", "1"), ("B", "")];
        let headers: Vec<_> =
            pairs.iter().map(|(name, value)| (name.to_string(), value.to_string())).collect();
        let joined = joined_headers(&headers);
        let joined: Vec<_> = joined.iter().map(|(name, value)| (&**name, &**value)).collect();
        assert_eq!(joined, [("a", "1"), ("b", "1, "), ("content-length", "5")]);
    }

    #[test]
    fn stream_data_is_the_message_its_type_says() {
        let plaintext = stream_data(7, "s\"1", b"\xff\x00data");
        let data =
            StreamData { stream_id: "s\"1".into(), data: "/wBkYXRh".into(), encoding: Some("base64".into()) };
        assert_eq!(Message::parse(plaintext.plaintext()), Ok(Message::StreamData(data)));
    }

    #[test]
    fn a_body_is_decoded_by_its_encoding_and_within_its_bound() {
        let body = |text: &str, encoding, max| decode_body(Some(Cow::Borrowed(text)), encoding, max);
        assert_eq!(body("aGk", BodyEncoding::Base64, 2), Ok(Some(b"hi".to_vec())));
        assert_eq!(body("aGk", BodyEncoding::Utf8, 3), Ok(Some(b"aGk".to_vec())));
        assert!(body("a!", BodyEncoding::Base64, 9).is_err());
        assert!(body("aGk", BodyEncoding::Base64, 1).is_err());
        assert_eq!(decode_body(None, BodyEncoding::Base64, 0), Ok(None));
    }
}
