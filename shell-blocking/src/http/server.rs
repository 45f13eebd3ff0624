//! The requests of one HTTP/1.1 connection, for the local API.
//!
//! Anybody on this host, and any page in a browser on it, can write here; so a request is either plain or refused.
//! After a refusal the connection ends, because what follows cannot be told from a body.

use core::fmt;
use core::time::Duration;

use consensus_core::io::{LocalRequest, LocalResponse};
use consensus_core::limits::{MAX_HTTP_HEAD, MAX_LOCAL_BODY};
use http::header::{
    CONTENT_LENGTH, EXPECT, HOST, HeaderName, HeaderValue, SEC_WEBSOCKET_KEY, TRANSFER_ENCODING, UPGRADE,
};
use http::{HeaderMap, Request, StatusCode, Version};
use tungstenite::handshake::derive_accept_key;
use ureq_proto::server::Reply;
use ureq_proto::server::state::RecvRequest;

use super::body::{Body, BodyError};
use super::{Coding, HeadEnd, coding, has_connection_option, latin1, latin1_bytes};

const CONTINUE: &[u8] = b"HTTP/1.1 100 Continue\r\n\r\n";

/// The status of an answer that makes a WebSocket of the connection.
pub const SWITCHING_PROTOCOLS: u16 = 101;

/// One connection. Hand over what comes with [`received`](Self::received), ask [`next`](Self::next) until it wants
/// more, and after each request write what [`respond`](Self::respond) gives before asking again.
pub struct Connection {
    unread: Vec<u8>,
    state: State,
    max_body: usize,
}

enum State {
    Head {
        end: HeadEnd,
    },
    Body {
        request: LocalRequest,
        body: Body,
        then: Then,
    },
    /// A request is with the caller.
    Asked(Then),
    /// The connection has changed to the WebSocket protocol.
    Upgraded,
    Closed,
}

/// What is known of a request that its response depends on.
#[derive(Debug)]
struct Then {
    keep_alive: bool,
    http10: bool,
    is_head: bool,
    /// The `sec-websocket-key`, where there is one.
    key: Option<HeaderValue>,
}

/// What to do next.
#[derive(Debug, PartialEq, Eq)]
pub enum Step {
    /// Read more.
    Read,
    /// Write this, then ask again.
    Write(Vec<u8>),
    /// Answer this request.
    Request(LocalRequest),
    /// Write this, then close.
    Refuse(Vec<u8>),
}

/// What the connection waits for, which decides how long it may.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Waiting {
    /// A request; none of it has come.
    Request,
    /// The rest of a head.
    Head,
    /// The rest of a body.
    Body,
}

/// Why a request is refused.
struct Refusal {
    status: StatusCode,
    error: &'static str,
    message: &'static str,
}

impl fmt::Debug for Connection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = match &self.state {
            State::Head { .. } => "head",
            State::Body { .. } => "body",
            State::Asked(_) => "asked",
            State::Upgraded => "upgraded",
            State::Closed => "closed",
        };
        f.debug_struct("Connection").field("state", &state).field("unread", &self.unread.len()).finish()
    }
}

impl Default for Connection {
    fn default() -> Self {
        Self::new()
    }
}

impl Connection {
    /// A connection that nothing came on yet.
    #[must_use]
    pub fn new() -> Self {
        Self::with_max_body(MAX_LOCAL_BODY)
    }

    /// One that refuses larger bodies, in bytes.
    #[must_use]
    pub fn with_max_body(max_body: usize) -> Self {
        Self { unread: Vec::new(), state: State::Head { end: HeadEnd::default() }, max_body }
    }

    /// Takes what came. Call it only when [`next`](Self::next) wanted more: that keeps what is buffered bounded by
    /// one head and one read.
    pub fn received(&mut self, bytes: &[u8]) {
        self.unread.extend_from_slice(bytes);
    }

    /// What it waits for.
    #[must_use]
    pub fn waiting(&self) -> Waiting {
        match &self.state {
            State::Body { .. } => Waiting::Body,
            State::Head { .. } if !self.unread.is_empty() => Waiting::Head,
            State::Head { .. } | State::Asked(_) | State::Upgraded | State::Closed => Waiting::Request,
        }
    }

    /// What to do next. `now` is unix time, for the date of a refusal.
    pub fn next(&mut self, now: Duration) -> Step {
        match self.advance() {
            Ok(step) => step,
            Err(refusal) => self.refuse(&refusal, now),
        }
    }

    fn refuse(&mut self, refusal: &Refusal, now: Duration) -> Step {
        self.state = State::Closed;
        self.unread = Vec::new();
        let body = format!(r#"{{"error":"{}","message":"{}"}}"#, refusal.error, refusal.message);
        let response = LocalResponse {
            status: refusal.status.as_u16(),
            headers: vec![("content-type".to_string(), "application/json".to_string())],
            body: body.into_bytes(),
        };
        let then = Then { keep_alive: false, http10: false, is_head: false, key: None };
        Step::Refuse(write(&response, &then, now))
    }

    fn advance(&mut self) -> Result<Step, Refusal> {
        match core::mem::replace(&mut self.state, State::Closed) {
            State::Head { mut end } => {
                // Empty lines before a request are passed over (RFC 9112, 2.2).
                let empty = self.unread.iter().take_while(|byte| matches!(byte, b'\r' | b'\n')).count();
                if empty > 0 {
                    self.unread.drain(..empty);
                    end = HeadEnd::default();
                }
                let found = end.find(&self.unread);
                if found.unwrap_or(self.unread.len()) > MAX_HTTP_HEAD {
                    return Err(HEAD_TOO_LARGE);
                }
                let Some(length) = found else {
                    self.state = State::Head { end };
                    return Ok(Step::Read);
                };
                let head: Vec<u8> = self.unread.drain(..length).collect();
                let (request, body, then, wants_continue) = read_head(&head, self.max_body)?;
                if wants_continue && self.unread.is_empty() && !body.is_complete() {
                    self.state = State::Body { request, body, then };
                    return Ok(Step::Write(CONTINUE.to_vec()));
                }
                self.advance_body(request, body, then)
            }
            State::Body { request, body, then } => self.advance_body(request, body, then),
            State::Asked(then) => {
                self.state = State::Asked(then);
                Ok(Step::Read)
            }
            State::Upgraded => {
                self.state = State::Upgraded;
                Ok(Step::Read)
            }
            State::Closed => Ok(Step::Refuse(Vec::new())),
        }
    }

    fn advance_body(
        &mut self,
        mut request: LocalRequest,
        mut body: Body,
        then: Then,
    ) -> Result<Step, Refusal> {
        let taken = body.read(&self.unread, &mut request.body, self.max_body)?;
        if taken == self.unread.len() {
            self.unread.clear();
        } else {
            self.unread.drain(..taken);
        }
        if body.is_complete() {
            self.state = State::Asked(then);
            Ok(Step::Request(request))
        } else {
            self.state = State::Body { request, body, then };
            Ok(Step::Read)
        }
    }

    /// Serialises the answer to the last request. With status 101 the connection [becomes](Self::is_upgraded) a
    /// WebSocket when that is written.
    pub fn respond(&mut self, response: &LocalResponse, now: Duration) -> Vec<u8> {
        let then = match core::mem::replace(&mut self.state, State::Closed) {
            State::Asked(then) => then,
            state => {
                self.state = state;
                return Vec::new();
            }
        };
        if is_upgrade(response.status, &then) {
            self.state = State::Upgraded;
        } else if then.keep_alive {
            self.state = State::Head { end: HeadEnd::default() };
        }
        write(response, &then, now)
    }

    /// Whether what follows is a WebSocket, whose first bytes [may be here](Self::into_unread).
    #[must_use]
    pub fn is_upgraded(&self) -> bool {
        matches!(self.state, State::Upgraded)
    }

    /// The answer to a client that took too long with what it [waits](Self::waiting) for; nothing for one that has
    /// not begun.
    pub fn timed_out(&mut self, now: Duration) -> Vec<u8> {
        match self.waiting() {
            Waiting::Request => Vec::new(),
            Waiting::Head | Waiting::Body => match self.refuse(&TIMEOUT, now) {
                Step::Refuse(bytes) => bytes,
                Step::Read | Step::Write(_) | Step::Request(_) => Vec::new(),
            },
        }
    }

    /// The answer to a client for whom there is no room.
    #[must_use]
    pub fn busy(now: Duration) -> Vec<u8> {
        match Self::new().refuse(&BUSY, now) {
            Step::Refuse(bytes) => bytes,
            Step::Read | Step::Write(_) | Step::Request(_) => Vec::new(),
        }
    }

    /// Whether the connection is at its end, once all has been written.
    #[must_use]
    pub fn is_closed(&self) -> bool {
        matches!(self.state, State::Closed)
    }

    /// What came after the last request: the first bytes of the protocol that the connection changes to.
    #[must_use]
    pub fn into_unread(self) -> Vec<u8> {
        self.unread
    }
}

const fn bad(message: &'static str) -> Refusal {
    Refusal { status: StatusCode::BAD_REQUEST, error: "bad_request", message }
}

const HEAD_TOO_LARGE: Refusal = Refusal {
    status: StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE,
    error: "head_too_large",
    message: "the request's head is too large",
};
const BODY_TOO_LARGE: Refusal = Refusal {
    status: StatusCode::PAYLOAD_TOO_LARGE,
    error: "body_too_large",
    message: "the request's body is too large",
};
const TIMEOUT: Refusal = Refusal {
    status: StatusCode::REQUEST_TIMEOUT,
    error: "timeout",
    message: "the request took too long to arrive",
};
const BUSY: Refusal = Refusal {
    status: StatusCode::SERVICE_UNAVAILABLE,
    error: "busy",
    message: "too many connections at once",
};

impl From<BodyError> for Refusal {
    fn from(error: BodyError) -> Self {
        match error {
            BodyError::TooLarge => BODY_TOO_LARGE,
            BodyError::BadChunk => bad("the chunked body is malformed"),
        }
    }
}

impl From<ureq_proto::Error> for Refusal {
    fn from(error: ureq_proto::Error) -> Self {
        match error {
            ureq_proto::Error::HttpParseTooManyHeaders => HEAD_TOO_LARGE,
            ureq_proto::Error::BadContentLengthHeader => bad("the content-length is not a number"),
            ureq_proto::Error::TooManyContentLengthHeaders => bad("the request has two content-lengths"),
            // The library's own words would echo what came.
            _ => bad("the request is not HTTP/1.1"),
        }
    }
}

/// Reads a whole head: the request without its body, the framing of that, and whether the client waits for 100.
fn read_head(head: &[u8], max_body: usize) -> Result<(LocalRequest, Body, Then, bool), Refusal> {
    let mut reply = Reply::<RecvRequest>::new()?;
    // Without this ureq-proto takes a HEAD with a length for one without a body, and the body for the next request.
    reply.force_recv_body();
    let (_, request) = reply.try_request(head)?;
    let request = request.ok_or(bad("the request's head is not whole"))?;
    let headers = request.headers();
    let http10 = request.version() == Version::HTTP_10;
    check_host(http10, headers)?;
    let body = framing(http10, headers, max_body)?;
    let wants_continue = match headers.get(EXPECT) {
        Some(_) if http10 => false,
        Some(value) if value.as_bytes().eq_ignore_ascii_case(b"100-continue") => true,
        Some(_) => {
            let message = "only 100-continue can be expected";
            return Err(Refusal {
                status: StatusCode::EXPECTATION_FAILED,
                error: "expectation_failed",
                message,
            });
        }
        None => false,
    };
    let keep_alive =
        !has_connection_option(headers, "close") && (!http10 || has_connection_option(headers, "keep-alive"));
    let then = Then {
        keep_alive,
        http10,
        is_head: request.method() == http::Method::HEAD,
        key: headers.get(SEC_WEBSOCKET_KEY).cloned(),
    };
    let request = LocalRequest {
        method: request.method().as_str().to_string(),
        target: target(&request)?,
        headers: headers
            .iter()
            // Nothing but HTTP/1.1 can be upgraded (RFC 9110, 7.8).
            .filter(|(name, _)| !http10 || *name != UPGRADE)
            .map(|(name, value)| (name.as_str().to_string(), latin1(value.as_bytes())))
            .collect(),
        body: Vec::new(),
    };
    Ok((request, body, then, wants_continue))
}

fn check_host(http10: bool, headers: &HeaderMap) -> Result<(), Refusal> {
    match headers.get_all(HOST).iter().count() {
        1 => Ok(()),
        0 if http10 => Ok(()),
        0 => Err(bad("the request has no host")),
        _ => Err(bad("the request has two hosts")),
    }
}

/// The framing of a request's body. A request with neither a length nor a coding has none, whatever its method.
fn framing(http10: bool, headers: &HeaderMap, max_body: usize) -> Result<Body, Refusal> {
    let mut lengths = headers.get_all(CONTENT_LENGTH).iter();
    let length = match (lengths.next(), lengths.next()) {
        (None, _) => None,
        // ureq-proto has taken lists of equal numbers for one; here they are refused with all that is odd.
        (Some(value), None) if value.as_bytes().iter().all(u8::is_ascii_digit) => {
            let number = value.to_str().ok().and_then(|text| text.parse::<u64>().ok());
            Some(number.ok_or(bad("the content-length is not a number"))?)
        }
        (Some(_), None) => return Err(bad("the content-length is not a number")),
        (Some(_), Some(_)) => return Err(bad("the request has two content-lengths")),
    };
    match (coding(headers), length) {
        (Coding::None, None) => Ok(Body::Length(0)),
        (Coding::None, Some(length)) if length > max_body as u64 => Err(BODY_TOO_LARGE),
        (Coding::None, Some(length)) => Ok(Body::Length(length)),
        (Coding::Chunked | Coding::Other, Some(_)) => {
            Err(bad("the request has both a length and a transfer coding"))
        }
        (Coding::Chunked, None) if http10 => Err(bad("the request is chunked in a version without chunks")),
        (Coding::Chunked, None) => Ok(Body::chunked()),
        (Coding::Other, None) => Err(Refusal {
            status: StatusCode::NOT_IMPLEMENTED,
            error: "bad_request",
            message: "no transfer coding but chunked is understood",
        }),
    }
}

/// Path and query: of the usual form, of a whole URL (which RFC 9112, 3.2.2 wants understood), or `*`.
fn target(request: &Request<()>) -> Result<String, Refusal> {
    let uri = request.uri();
    match uri.path_and_query() {
        Some(path) if path.as_str().starts_with('/') => Ok(path.as_str().to_string()),
        Some(path) if path.as_str() == "*" && request.method() == http::Method::OPTIONS => {
            Ok("*".to_string())
        }
        _ => Err(bad("the request's target is not a path")),
    }
}

/// Serialises a response. A header that cannot be written is left out: it must not become two.
fn write(response: &LocalResponse, then: &Then, now: Duration) -> Vec<u8> {
    let status = StatusCode::from_u16(response.status).ok();
    // No other interim response is a last word, and this one is none without a key.
    let status = status.filter(|status| !status.is_informational() || is_upgrade(status.as_u16(), then));
    let status = status.unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let mut out = Vec::with_capacity(256 + response.body.len());
    out.extend_from_slice(
        format!("HTTP/1.1 {} {}\r\n", status.as_str(), status.canonical_reason().unwrap_or_default())
            .as_bytes(),
    );
    for (name, value) in &response.headers {
        let name = HeaderName::from_bytes(name.as_bytes()).ok();
        let value = latin1_bytes(value).and_then(|bytes| HeaderValue::from_bytes(&bytes).ok());
        let (Some(name), Some(value)) = (name, value) else { continue };
        if ![CONTENT_LENGTH, TRANSFER_ENCODING, http::header::CONNECTION, http::header::DATE].contains(&name)
        {
            out.extend_from_slice(name.as_str().as_bytes());
            out.extend_from_slice(b": ");
            out.extend_from_slice(value.as_bytes());
            out.extend_from_slice(b"\r\n");
        }
    }
    let bodiless = status.is_informational() || matches!(status.as_u16(), 204 | 304);
    if !bodiless {
        out.extend_from_slice(format!("content-length: {}\r\n", response.body.len()).as_bytes());
    }
    let connection = match (&then.key, then.keep_alive, then.http10) {
        (Some(key), _, _) if is_upgrade(status.as_u16(), then) => {
            let accept = derive_accept_key(key.as_bytes());
            format!("connection: upgrade\r\nupgrade: websocket\r\nsec-websocket-accept: {accept}\r\n")
        }
        (_, false, _) => "connection: close\r\n".to_owned(),
        (_, true, true) => "connection: keep-alive\r\n".to_owned(),
        (_, true, false) => String::new(),
    };
    out.extend_from_slice(format!("date: {}\r\n{connection}\r\n", date(now)).as_bytes());
    if !bodiless && !then.is_head {
        out.extend_from_slice(&response.body);
    }
    out
}

fn is_upgrade(status: u16, then: &Then) -> bool {
    status == SWITCHING_PROTOCOLS && then.key.is_some()
}

/// A date of RFC 9110, 5.6.7.
fn date(unix: Duration) -> String {
    let seconds = unix.as_secs();
    let (days, second) = (seconds / 86_400, seconds % 86_400);
    let weekday = ["Thu", "Fri", "Sat", "Sun", "Mon", "Tue", "Wed"][(days % 7) as usize];
    // Years begin in March here, so that the leap day is the last of one; eras have 400 years (146 097 days).
    let shifted = days + 719_468;
    let day_of_era = shifted % 146_097;
    let year_of_era = (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = ["Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec", "Jan", "Feb"]
        [month_from_march as usize];
    let year = shifted / 146_097 * 400 + year_of_era + u64::from(month_from_march >= 10);
    let (hour, minute, second) = (second / 3600, second / 60 % 60, second % 60);
    format!("{weekday}, {day:02} {month} {year:04} {hour:02}:{minute:02}:{second:02} GMT")
}

#[cfg(test)]
mod tests {
    use consensus_core::limits::MAX_HTTP_HEADERS;

    use super::*;

    const NOW: Duration = Duration::from_secs(784_111_777);

    fn answer(body: &str) -> LocalResponse {
        LocalResponse { status: 200, headers: vec![], body: body.as_bytes().to_vec() }
    }

    /// The requests in `bytes` and all that is written, if it comes in pieces of `step` bytes and each request is
    /// answered with its own body.
    fn serve(bytes: &[u8], step: usize) -> (Vec<LocalRequest>, Vec<u8>) {
        let mut connection = Connection::new();
        let (mut requests, mut written) = (Vec::new(), Vec::new());
        for piece in bytes.chunks(step) {
            connection.received(piece);
            loop {
                match connection.next(NOW) {
                    Step::Read => break,
                    Step::Write(bytes) => written.extend(bytes),
                    Step::Request(request) => {
                        let response =
                            LocalResponse { status: 200, headers: vec![], body: request.body.clone() };
                        written.extend(connection.respond(&response, NOW));
                        requests.push(request);
                    }
                    Step::Refuse(bytes) => {
                        written.extend(bytes);
                        assert!(connection.is_closed());
                        return (requests, written);
                    }
                }
                if connection.is_closed() {
                    return (requests, written);
                }
            }
        }
        (requests, written)
    }

    fn both(bytes: &[u8]) -> (Vec<LocalRequest>, String) {
        let whole = serve(bytes, bytes.len().max(1));
        let (requests, written) = serve(bytes, 1);
        assert_eq!(whole.0, requests);
        assert_eq!(whole.1, written, "{:?}", String::from_utf8_lossy(bytes));
        (requests, String::from_utf8(written).unwrap())
    }

    fn refused(bytes: &str) -> u16 {
        let (requests, written) = both(bytes.as_bytes());
        assert_eq!(requests, [], "{bytes:?}");
        assert!(written.contains("\r\nconnection: close\r\n"), "{bytes:?}: {written}");
        written[9..12].parse().unwrap()
    }

    #[test]
    fn a_request_is_read_and_answered() {
        let (requests, written) =
            both(b"POST /proxy?a=b HTTP/1.1\r\nHost: x\r\nX-Name: caf\xe9\r\nContent-Length: 4\r\n\r\nbody");
        let [request] = &requests[..] else { panic!("{requests:?}") };
        assert_eq!((request.method.as_str(), request.target.as_str()), ("POST", "/proxy?a=b"));
        assert_eq!(request.header("x-name"), Some("caf\u{e9}"));
        assert_eq!(request.body, b"body");
        assert_eq!(
            written,
            "HTTP/1.1 200 OK\r\ncontent-length: 4\r\ndate: Sun, 06 Nov 1994 08:49:37 GMT\r\n\r\nbody"
        );
    }

    #[test]
    fn requests_follow_one_another() {
        let (requests, written) = both(
            b"\r\nGET /a HTTP/1.1\r\nhost: x\r\n\r\n\
              POST /b HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n2\r\nhi\r\n0\r\nt: 1\r\n\r\n\
              POST /c HTTP/1.1\r\nhost: x\r\n\r\n\
              HEAD /d HTTP/1.1\r\nhost: x\r\ncontent-length: 3\r\n\r\nabc\
              GET http://x/e?f HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n\
              GET /not-read HTTP/1.1\r\nhost: x\r\n\r\n",
        );
        let targets: Vec<_> = requests.iter().map(|request| request.target.as_str()).collect();
        assert_eq!(targets, ["/a", "/b", "/c", "/d", "/e?f"]);
        assert_eq!(requests[1].body, b"hi");
        assert_eq!(requests[3].body, b"abc");
        assert!(!written.contains("abc"), "HEAD has no body in its answer");
        assert!(written.contains("content-length: 3\r\n"));
        assert_eq!(written.matches("connection: close").count(), 1);
    }

    #[test]
    fn http_1_0_closes_unless_asked() {
        let (requests, written) = both(b"GET / HTTP/1.0\r\n\r\nGET / HTTP/1.0\r\n\r\n");
        assert_eq!(requests.len(), 1);
        assert!(written.contains("connection: close\r\n"));
        let (requests, written) =
            both(b"GET / HTTP/1.0\r\nconnection: keep-alive\r\n\r\nGET / HTTP/1.0\r\n\r\n");
        assert_eq!(requests.len(), 2);
        assert!(written.contains("connection: keep-alive\r\n"));
    }

    #[test]
    fn a_client_that_waits_is_told_to_go_on() {
        let head = b"POST / HTTP/1.1\r\nhost: x\r\nexpect: 100-Continue\r\ncontent-length: 2\r\n\r\n";
        let mut connection = Connection::new();
        connection.received(head);
        assert_eq!(connection.next(NOW), Step::Write(CONTINUE.to_vec()));
        assert_eq!((connection.next(NOW), connection.waiting()), (Step::Read, Waiting::Body));
        connection.received(b"hi");
        assert!(matches!(connection.next(NOW), Step::Request(request) if request.body == b"hi"));
        // One that does not wait has no use for it.
        assert!(!serve(&[&head[..], b"hi"].concat(), 1000).1.starts_with(CONTINUE));
        assert_eq!(refused("POST / HTTP/1.1\r\nhost: x\r\nexpect: 200-ok\r\ncontent-length: 2\r\n\r\n"), 417);
        let large = "POST / HTTP/1.1\r\nhost: x\r\nexpect: 100-continue\r\ncontent-length: 99999999\r\n\r\n";
        assert_eq!(refused(large), 413);
    }

    #[test]
    fn ambiguous_requests_are_refused() {
        for head in [
            "content-length: 5\r\ntransfer-encoding: chunked",
            "transfer-encoding: chunked\r\ncontent-length: 5",
            "transfer-encoding: chunked\r\ntransfer-encoding: chunked\r\ncontent-length: 5",
            "content-length: 5\r\ncontent-length: 5",
            "content-length: 5\r\ncontent-length: 6",
            "content-length: 5, 5",
            "content-length: -5",
            "content-length: +5",
            "content-length: 0x5",
            "content-length: 5 ; x",
            "content-length:",
            "content-length: 18446744073709551616",
            "content-length : 5",
            "content-length\t: 5",
            " content-length: 5",
            "a: b\r\n content-length: 5",
            "host: y",
            "a\0: b",
            "a: \0b",
            "a: b\rc: d",
            "\u{e9}: x",
            "no colon",
            ": x",
        ] {
            let bytes = format!("POST / HTTP/1.1\r\nhost: x\r\n{head}\r\n\r\n5\r\nhello\r\n0\r\n\r\n");
            assert_eq!(refused(&bytes), 400, "{head}");
        }
        for coding in
            ["gzip, chunked", "chunked, chunked", "identity", "xchunked", "\"chunked\"", "", "chunked;x"]
        {
            let bytes = format!("POST / HTTP/1.1\r\nhost: x\r\ntransfer-encoding: {coding}\r\n\r\n0\r\n\r\n");
            assert_eq!(refused(&bytes), 501, "{coding}");
        }
        for bytes in [
            "GET / HTTP/1.1\r\n\r\n",
            "POST / HTTP/1.0\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
            "GET / HTTP/1.0\r\nhost: a\r\nhost: b\r\n\r\n",
            "GET / HTTP/2.0\r\nhost: x\r\n\r\n",
            "GET /\r\n\r\n",
            "GET  / HTTP/1.1\r\nhost: x\r\n\r\n",
            "GET x HTTP/1.1\r\nhost: x\r\n\r\n",
            "GET * HTTP/1.1\r\nhost: x\r\n\r\n",
            "CONNECT x:80 HTTP/1.1\r\nhost: x\r\n\r\n",
            "G\u{e9}T / HTTP/1.1\r\nhost: x\r\n\r\n",
            "\x16\x03\x01\n\n",
        ] {
            assert_eq!(refused(bytes), 400, "{bytes:?}");
        }
        for chunks in ["-5\r\n", "+5\r\nhello\r\n", "5\r\nhello0\r\n\r\n", "5\nhello\r\n"] {
            let bytes = format!("POST / HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n{chunks}");
            assert_eq!(refused(&bytes), 400, "{chunks}");
        }
    }

    #[test]
    fn requests_are_bounded() {
        let long = "x".repeat(MAX_HTTP_HEAD);
        let many = "a: b\r\n".repeat(MAX_HTTP_HEADERS);
        assert_eq!(refused(&format!("GET /{long} HTTP/1.1\r\nhost: x\r\n\r\n")), 431);
        assert_eq!(refused(&format!("GET / HTTP/1.1\r\nhost: x\r\na: {long}")), 431);
        assert_eq!(refused(&format!("GET / HTTP/1.1\r\nhost: x\r\n{many}\r\n")), 431);
        let length = MAX_LOCAL_BODY + 1;
        assert_eq!(refused(&format!("GET / HTTP/1.1\r\nhost: x\r\ncontent-length: {length}\r\n\r\n")), 413);
        let chunk = format!("POST / HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n{length:x}\r\n");
        assert_eq!(refused(&chunk), 413);
        for (length, is_read) in [(5, true), (6, false)] {
            let mut connection = Connection::with_max_body(5);
            let body = "x".repeat(length);
            connection.received(
                format!("POST / HTTP/1.1\r\nhost: x\r\ncontent-length: {length}\r\n\r\n{body}").as_bytes(),
            );
            assert_eq!(matches!(connection.next(NOW), Step::Request(_)), is_read);
        }
    }

    #[test]
    fn slow_clients_are_told_apart() {
        let mut connection = Connection::new();
        assert_eq!((connection.next(NOW), connection.waiting()), (Step::Read, Waiting::Request));
        assert_eq!(connection.timed_out(NOW), b"");
        connection.received(b"G");
        assert_eq!((connection.next(NOW), connection.waiting()), (Step::Read, Waiting::Head));
        assert!(connection.timed_out(NOW).starts_with(b"HTTP/1.1 408 "));
        assert!(connection.is_closed());
        assert!(Connection::busy(NOW).starts_with(b"HTTP/1.1 503 "));
    }

    #[test]
    fn a_response_cannot_be_split() {
        let mut connection = Connection::new();
        connection.received(b"GET / HTTP/1.1\r\nhost: x\r\n\r\nnext");
        assert!(matches!(connection.next(NOW), Step::Request(_)));
        let mut response = answer("x");
        for (name, value) in [
            ("a", "b\r\nc: d"),
            ("a\r\n", "b"),
            ("content-length", "7"),
            ("good", "caf\u{e9}"),
            ("a", "\u{100}"),
        ] {
            response.headers.push((name.to_string(), value.to_string()));
        }
        let written = connection.respond(&response, NOW);
        let wanted = b"HTTP/1.1 200 OK\r\ngood: caf\xe9\r\ncontent-length: 1\r\ndate: ";
        assert!(written.starts_with(wanted), "{:?}", String::from_utf8_lossy(&written));
        assert_eq!(connection.into_unread(), b"next");
    }

    #[test]
    fn responses_without_a_body_have_none() {
        let mut connection = Connection::new();
        connection.received(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n");
        assert!(matches!(connection.next(NOW), Step::Request(_)));
        let written = connection.respond(&LocalResponse { status: 204, ..answer("x") }, NOW);
        assert!(written.ends_with(b"GMT\r\n\r\n") && !written.windows(7).any(|w| w == b"content"));
        assert_eq!(connection.respond(&answer("again"), NOW), b"", "a request has one answer");
    }

    #[test]
    fn an_upgrade_is_answered_with_its_key_and_what_came_after_it_is_kept() {
        let head = "GET /connect HTTP/1.1\r\nhost: x\r\nconnection: keep-alive, Upgrade\r\nupgrade: websocket\r\n\
            sec-websocket-version: 13\r\nsec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n";
        let switch = LocalResponse { status: 101, ..answer("") };
        let mut connection = Connection::new();
        connection.received(head.as_bytes());
        connection.received(b"\x81\x80");
        let Step::Request(request) = connection.next(NOW) else { panic!("no request") };
        assert_eq!(request.header("sec-websocket-key"), Some("dGhlIHNhbXBsZSBub25jZQ=="));
        assert_eq!(request.header("upgrade"), Some("websocket"));
        assert!(!connection.is_upgraded());
        let written = String::from_utf8(connection.respond(&switch, NOW)).unwrap();
        assert!(written.starts_with("HTTP/1.1 101 Switching Protocols\r\n"), "{written}");
        assert!(written.contains("\r\nconnection: upgrade\r\nupgrade: websocket\r\n"), "{written}");
        // The example of RFC 6455, 1.3.
        assert!(written.contains("\r\nsec-websocket-accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n"), "{written}");
        assert!(written.ends_with("\r\n\r\n") && !written.contains("content-length"), "{written}");
        assert!(connection.is_upgraded() && !connection.is_closed());
        assert_eq!(connection.next(NOW), Step::Read);
        assert_eq!(connection.into_unread(), b"\x81\x80");

        // Refused, it goes on as what it was.
        let mut connection = Connection::new();
        connection.received(head.repeat(2).as_bytes());
        assert!(matches!(connection.next(NOW), Step::Request(_)));
        assert!(connection.respond(&answer("no"), NOW).ends_with(b"\r\n\r\nno"));
        assert!(matches!(connection.next(NOW), Step::Request(_)));

        // Nobody who has not asked for it gets it.
        let mut connection = Connection::new();
        connection.received(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n");
        assert!(matches!(connection.next(NOW), Step::Request(_)));
        assert!(connection.respond(&switch, NOW).starts_with(b"HTTP/1.1 500 "));
        assert!(!connection.is_upgraded());
        let (requests, _) = both(b"GET / HTTP/1.0\r\nupgrade: websocket\r\n\r\n");
        assert_eq!(requests[0].headers, []);
    }

    #[test]
    fn dates_are_of_the_calendar() {
        for (seconds, text) in [
            (0, "Thu, 01 Jan 1970 00:00:00 GMT"),
            (951_782_400, "Tue, 29 Feb 2000 00:00:00 GMT"),
            (1_795_391_521, "Sun, 22 Nov 2026 23:52:01 GMT"),
            (4_107_542_399, "Sun, 28 Feb 2100 23:59:59 GMT"),
            (4_107_542_400, "Mon, 01 Mar 2100 00:00:00 GMT"),
        ] {
            assert_eq!(date(Duration::from_secs(seconds)), text);
        }
    }
}
