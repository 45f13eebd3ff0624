//! One HTTP/1.1 exchange as a client.

use core::fmt;

use consensus_core::io::{Bounds, Fetch, FetchError, FetchErrorKind, Response};
use consensus_core::limits::MAX_HTTP_HEADERS;
use http::header::{CONNECTION, CONTENT_LENGTH, EXPECT, HOST, HeaderName, HeaderValue, TRANSFER_ENCODING};
use http::{HeaderMap, Method, Request, Version};
use ureq_proto::BodyMode;
use ureq_proto::client::state::{RecvResponse, SendRequest};
use ureq_proto::client::{Call, RecvResponseResult, SendRequestResult};

use super::body::{Body, BodyError};
use super::{Coding, HeadEnd, coding, has_connection_option, latin1, latin1_bytes};
use crate::budget::{Budget, Share};

/// A request body up to this size goes out in one piece with the head.
const JOINED_BODY: usize = 16 * 1024;

/// What a body's buffer takes at first, where the length is announced: no more than a peer must send to have it used.
const FIRST_RESERVE: usize = 64 * 1024;

/// One exchange: write [`to_write`](Self::to_write) until it is empty, then read and hand over what comes until
/// [`is_done`](Self::is_done). A machine that returned an error stays failed.
pub struct Exchange {
    head: Vec<u8>,
    body: Vec<u8>,
    written: usize,
    /// Whether another request of its kind does no more than this one alone (RFC 9110, 9.2.2).
    is_idempotent: bool,
    has_begun: bool,
    max_head: usize,
    max_body: usize,
    held: Share,
    read: Read,
}

enum Read {
    Head(Box<Head>),
    Body { response: Response, body: Body, keep: bool },
    Done { response: Response, reusable: bool },
    Failed,
}

struct Head {
    call: Call<RecvResponse>,
    bytes: Vec<u8>,
    end: HeadEnd,
    /// Bytes of interim responses that were passed over.
    passed: usize,
}

impl fmt::Debug for Exchange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = match &self.read {
            Read::Head(_) => "head",
            Read::Body { .. } => "body",
            Read::Done { .. } => "done",
            Read::Failed => "failed",
        };
        f.debug_struct("Exchange").field("state", &state).finish_non_exhaustive()
    }
}

impl Exchange {
    /// The exchange that `fetch` asks for, on a connection that may have served another and may serve the next. The
    /// response's body counts against `budget`.
    ///
    /// # Errors
    /// [`FetchErrorKind::Url`], where method, URL or headers cannot be written.
    pub fn new(fetch: Fetch, budget: &Budget) -> Result<Self, FetchError> {
        let unfit = |what: &str| failure(FetchErrorKind::Url, format!("the request cannot be sent: {what}"));
        let method = Method::from_bytes(fetch.method.as_bytes()).map_err(|_| unfit("its method"))?;
        if method == Method::CONNECT {
            return Err(unfit("CONNECT is not an exchange"));
        }
        let mut request = Request::new(());
        *request.method_mut() = method;
        let is_idempotent = request.method().is_idempotent();
        *request.uri_mut() = fetch.target.path_and_query.parse().map_err(|_| unfit("its path"))?;
        let host = HeaderValue::from_str(&fetch.target.host_header()).map_err(|_| unfit("its host"))?;
        let headers = request.headers_mut();
        headers.insert(HOST, host);
        for (name, value) in &fetch.headers {
            let name = HeaderName::from_bytes(name.as_bytes()).map_err(|_| unfit("a header name"))?;
            let value = latin1_bytes(value).and_then(|bytes| HeaderValue::from_bytes(&bytes).ok());
            // The framing is this machine's own; the body is there whole, so that nothing is to be expected.
            if ![HOST, CONNECTION, CONTENT_LENGTH, TRANSFER_ENCODING, EXPECT].contains(&name) {
                headers.append(name, value.ok_or_else(|| unfit("a header value"))?);
            }
        }
        let may_have_body = [Method::POST, Method::PUT, Method::PATCH].contains(request.method());
        if fetch.body.is_some() || may_have_body {
            let length = fetch.body.as_ref().map_or(0, Vec::len);
            request.headers_mut().insert(CONTENT_LENGTH, HeaderValue::from(length));
        }
        let mut call = Call::new(request).map_err(|error| unfit(&error.to_string()))?;
        call.allow_non_standard_methods(true);
        if fetch.body.is_some() {
            call.force_send_body();
        }
        let mut call = call.proceed();
        let mut head = write_head(&mut call).map_err(|error| unfit(&error.to_string()))?;
        let mut body = fetch.body.unwrap_or_default();
        let call = match call.proceed().map_err(|error| unfit(&error.to_string()))? {
            Some(SendRequestResult::RecvResponse(call)) => call,
            Some(SendRequestResult::SendBody(mut call)) => {
                call.consume_direct_write(body.len()).map_err(|error| unfit(&error.to_string()))?;
                call.proceed().ok_or_else(|| unfit("its body"))?
            }
            Some(SendRequestResult::Await100(_)) | None => return Err(unfit("its head")),
        };
        if body.len() <= JOINED_BODY {
            head.append(&mut body);
        }
        let read = Head { call, bytes: Vec::new(), end: HeadEnd::default(), passed: 0 };
        let read = Read::Head(Box::new(read));
        let Bounds { max_head, max_body, .. } = fetch.bounds;
        let held = budget.share();
        Ok(Self { head, body, written: 0, is_idempotent, has_begun: false, max_head, max_body, held, read })
    }

    /// What is still to be written, or its first part.
    #[must_use]
    pub fn to_write(&self) -> &[u8] {
        match self.head.get(self.written..) {
            Some(rest) if !rest.is_empty() => rest,
            _ => self.body.get(self.written.saturating_sub(self.head.len())..).unwrap_or_default(),
        }
    }

    /// So many bytes of [`to_write`](Self::to_write) were written.
    pub fn wrote(&mut self, bytes: usize) {
        self.written = self.written.saturating_add(bytes);
    }

    /// Whether anything of an answer has come.
    #[must_use]
    pub const fn has_begun(&self) -> bool {
        self.has_begun
    }

    /// Begins anew, for a new connection, if a kept one failed only because it had ended before: nothing of an answer
    /// has come, and nothing was written, or what was may be written twice.
    #[must_use]
    pub fn rewind(&mut self, error: &FetchError) -> bool {
        let may_repeat = self.is_idempotent || self.written == 0;
        if error.kind != FetchErrorKind::Protocol || self.has_begun || !may_repeat {
            return false;
        }
        self.written = 0;
        true
    }

    /// Takes what came. What follows a complete response makes the connection unfit for another exchange.
    ///
    /// # Errors
    /// [`FetchErrorKind::Protocol`] and [`FetchErrorKind::TooLarge`].
    pub fn received(&mut self, mut bytes: &[u8]) -> Result<(), FetchError> {
        let unsent = !self.to_write().is_empty();
        self.has_begun |= !bytes.is_empty();
        if !unsent {
            // There is no other connection to write it to any more.
            (self.head, self.body, self.written) = (Vec::new(), Vec::new(), 0);
        }
        while !bytes.is_empty() {
            match core::mem::replace(&mut self.read, Read::Failed) {
                Read::Failed => return Err(protocol("the exchange failed before")),
                Read::Done { response, .. } => {
                    self.read = Read::Done { response, reusable: false };
                    return Ok(());
                }
                Read::Body { mut response, mut body, keep } => {
                    let taken = body
                        .read(bytes, &mut response.body, self.max_body)
                        .map_err(|error| body_error(error, self.max_body))?;
                    bytes = &bytes[taken..];
                    if !self.held.hold(response.body.len()) {
                        return Err(failure(
                            FetchErrorKind::Busy,
                            "too many large responses at once".to_string(),
                        ));
                    }
                    self.read = if body.is_complete() {
                        Read::Done { response, reusable: keep && !unsent }
                    } else {
                        Read::Body { response, body, keep }
                    };
                }
                Read::Head(mut head) if head.bytes.is_empty() && matches!(bytes[0], b'\r' | b'\n') => {
                    // Empty lines before a head are passed over (RFC 9112, 2.2), here rather than by a parser that
                    // would begin anew at each.
                    head.passed += 1;
                    bytes = &bytes[1..];
                    if head.passed > self.max_head {
                        return Err(head_too_large());
                    }
                    self.read = Read::Head(head);
                }
                Read::Head(mut head) => {
                    // The bound cuts what is looked at, so that pieces make no difference.
                    let room = self.max_head.saturating_sub(head.passed + head.bytes.len());
                    let take = room.min(bytes.len());
                    let before = head.bytes.len();
                    head.bytes.extend_from_slice(&bytes[..take]);
                    let Some(end) = head.end.find(&head.bytes) else {
                        if take < bytes.len() {
                            return Err(head_too_large());
                        }
                        self.read = Read::Head(head);
                        return Ok(());
                    };
                    head.bytes.truncate(end);
                    bytes = &bytes[end.saturating_sub(before)..];
                    self.read = self.take_head(head, unsent)?;
                }
            }
        }
        Ok(())
    }

    /// A head is whole.
    fn take_head(&self, mut head: Box<Head>, unsent: bool) -> Result<Read, FetchError> {
        let mut fields = [httparse::EMPTY_HEADER; MAX_HTTP_HEADERS];
        let mut parsed = httparse::Response::new(&mut fields);
        match parsed.parse(&head.bytes) {
            Ok(httparse::Status::Complete(_)) => {}
            Ok(httparse::Status::Partial) => return Err(protocol("the response's head is not whole")),
            Err(httparse::Error::TooManyHeaders) => {
                return Err(failure(
                    FetchErrorKind::TooLarge,
                    "the response has too many headers".to_string(),
                ));
            }
            Err(error) => return Err(protocol(&error.to_string())),
        }
        let status = parsed.code.unwrap_or_default();
        if status == 101 {
            return Err(protocol("the server changes to a protocol that nobody asked for"));
        }
        if (100..200).contains(&status) {
            head.passed += head.bytes.len();
            head.bytes.clear();
            head.end = HeadEnd::default();
            return Ok(Read::Head(head));
        }
        // ureq-proto decides the framing; names as they came, their order and the reason phrase are only here.
        let reason = parsed.reason.unwrap_or_default().to_string();
        let headers =
            parsed.headers.iter().map(|field| (field.name.to_string(), latin1(field.value))).collect();
        let http10 = parsed.version == Some(0);
        let (_, seen) = head.call.try_response(&head.bytes, false).map_err(|e| protocol(&e.to_string()))?;
        let seen = seen.ok_or_else(|| protocol("the response's head is not whole"))?;
        check_framing(seen.version(), seen.headers())?;
        let keep = !has_connection_option(seen.headers(), "close")
            && (!http10 || has_connection_option(seen.headers(), "keep-alive"));
        let mut response = Response { status, reason, headers, body: Vec::new() };
        let body = match head.call.proceed() {
            Some(RecvResponseResult::RecvBody(call)) => match call.body_mode() {
                BodyMode::NoBody => Body::Length(0),
                BodyMode::LengthDelimited(length) => Body::Length(length),
                BodyMode::Chunked => Body::chunked(),
                BodyMode::CloseDelimited => Body::UntilClose,
            },
            Some(RecvResponseResult::Redirect(_) | RecvResponseResult::Cleanup(_)) => Body::Length(0),
            None => return Err(protocol("the response's head is not whole")),
        };
        if let Body::Length(length) = body {
            if length > self.max_body as u64 {
                return Err(body_error(BodyError::TooLarge, self.max_body));
            }
            response.body.reserve_exact(usize::try_from(length).unwrap_or(usize::MAX).min(FIRST_RESERVE));
        }
        Ok(if body.is_complete() {
            Read::Done { response, reusable: keep && !unsent }
        } else {
            Read::Body { response, body, keep }
        })
    }

    /// Status and headers, once they have come, with as much of the body as was not [taken](Self::take_body).
    #[must_use]
    pub const fn response(&self) -> Option<&Response> {
        match &self.read {
            Read::Body { response, .. } | Read::Done { response, .. } => Some(response),
            Read::Head(_) | Read::Failed => None,
        }
    }

    /// Takes what has come of the body, so that one larger than memory can go through. The bound on the body then holds
    /// for what is announced and for each part; all of it together is for the caller to count.
    pub fn take_body(&mut self) -> Vec<u8> {
        match &mut self.read {
            Read::Body { response, .. } | Read::Done { response, .. } => core::mem::take(&mut response.body),
            Read::Head(_) | Read::Failed => Vec::new(),
        }
    }

    /// Whether the response is complete.
    #[must_use]
    pub fn is_done(&self) -> bool {
        matches!(self.read, Read::Done { .. })
    }

    /// The connection ended in good order: no more bytes will come.
    ///
    /// # Errors
    /// [`FetchErrorKind::Protocol`], if something was missing.
    pub fn closed(&mut self) -> Result<(), FetchError> {
        match core::mem::replace(&mut self.read, Read::Failed) {
            Read::Body { response, body: Body::UntilClose, .. } => {
                self.read = Read::Done { response, reusable: false };
                Ok(())
            }
            Read::Done { response, .. } => {
                self.read = Read::Done { response, reusable: false };
                Ok(())
            }
            Read::Head(head) if !self.has_begun => {
                self.read = Read::Head(head);
                Err(protocol("the server closed the connection without an answer"))
            }
            Read::Head(_) | Read::Body { .. } => {
                Err(protocol("the server closed the connection in the middle of its answer"))
            }
            Read::Failed => Err(protocol("the exchange failed before")),
        }
    }

    /// The response, and whether the connection may serve another exchange.
    ///
    /// # Errors
    /// Before [`is_done`](Self::is_done).
    pub fn finish(self) -> Result<(Response, bool), FetchError> {
        match self.read {
            Read::Done { response, reusable } => Ok((response, reusable)),
            Read::Head(_) | Read::Body { .. } | Read::Failed => Err(protocol("the response is not complete")),
        }
    }
}

/// Framing about which readers differ is refused, wherever they stand on the way.
fn check_framing(version: Version, headers: &HeaderMap) -> Result<(), FetchError> {
    match coding(headers) {
        Coding::None => Ok(()),
        Coding::Chunked if version == Version::HTTP_10 => {
            Err(protocol("the response is chunked in a version of HTTP without chunks"))
        }
        Coding::Chunked if headers.contains_key(CONTENT_LENGTH) => {
            Err(protocol("the response has both a length and a transfer coding"))
        }
        Coding::Chunked => Ok(()),
        Coding::Other => Err(protocol("the response has a transfer coding other than chunked")),
    }
}

fn write_head(call: &mut Call<SendRequest>) -> Result<Vec<u8>, ureq_proto::Error> {
    let mut head = vec![0; 1024];
    let mut length = 0;
    while !call.can_proceed() {
        match call.write(&mut head[length..]) {
            Ok(written) => length += written,
            // A row did not fit. Rows are bounded by what the caller gave.
            Err(ureq_proto::Error::OutputOverflow) => head.resize(head.len() * 2, 0),
            Err(error) => return Err(error),
        }
    }
    head.truncate(length);
    Ok(head)
}

fn head_too_large() -> FetchError {
    failure(FetchErrorKind::TooLarge, "its head is too large (--max-head)".to_string())
}

fn failure(kind: FetchErrorKind, detail: String) -> FetchError {
    FetchError { kind, detail }
}

fn protocol(detail: &str) -> FetchError {
    failure(FetchErrorKind::Protocol, detail.to_string())
}

fn body_error(error: BodyError, max: usize) -> FetchError {
    match error {
        BodyError::TooLarge => {
            failure(FetchErrorKind::TooLarge, format!("its body has over {max} bytes (--max-response-body)"))
        }
        BodyError::BadChunk => protocol(&format!("the response is not taken: {error}")),
    }
}

#[cfg(test)]
mod tests {
    use consensus_core::guard::Target;
    use consensus_core::io::Audience;
    use consensus_core::limits::{Limits, MAX_HTTP_HEAD};

    use super::*;

    fn fetch(method: &str, body: Option<&[u8]>) -> Fetch {
        Fetch {
            audience: Audience::Operator,
            method: method.to_string(),
            target: Target::parse("http://Example.com:8080/a?b=c|d").unwrap(),
            headers: vec![("accept".to_string(), "caf\u{e9}".to_string())],
            body: body.map(<[u8]>::to_vec),
            bounds: Limits::default().bounds(1000),
        }
    }

    fn exchange(fetch: Fetch) -> Result<Exchange, FetchError> {
        Exchange::new(fetch, &Budget::default())
    }

    fn written(mut exchange: Exchange) -> Vec<u8> {
        let mut all = Vec::new();
        while let Some(byte) = exchange.to_write().first().copied() {
            all.push(byte);
            exchange.wrote(1);
        }
        all
    }

    /// What comes of a response to `method` in pieces of `step` bytes, and whether the connection may be reused.
    /// Without `closed`, a response that is not complete by itself is an error.
    fn read(method: &str, bytes: &[u8], step: usize, closed: bool) -> Result<(Response, bool), FetchError> {
        let mut exchange = exchange(fetch(method, None))?;
        exchange.wrote(exchange.to_write().len());
        for piece in bytes.chunks(step) {
            exchange.received(piece)?;
        }
        if closed {
            exchange.closed()?;
        }
        exchange.finish()
    }

    fn both(method: &str, bytes: &[u8], closed: bool) -> Result<(Response, bool), FetchError> {
        let whole = read(method, bytes, bytes.len().max(1), closed);
        assert_eq!(whole, read(method, bytes, 1, closed), "{:?}", String::from_utf8_lossy(bytes));
        whole
    }

    fn ok(bytes: &str) -> (Response, bool) {
        both("GET", bytes.as_bytes(), false).unwrap()
    }

    fn error(bytes: &[u8], closed: bool) -> FetchErrorKind {
        both("GET", bytes, closed).unwrap_err().kind
    }

    #[test]
    fn requests_are_written_with_their_framing_alone() {
        assert_eq!(
            written(exchange(fetch("GET", None)).unwrap()),
            b"GET /a?b=c|d HTTP/1.1\r\nhost: example.com:8080\r\naccept: caf\xe9\r\n\r\n"
        );
        let mut with_framing = fetch("POST", Some(b"body"));
        for name in ["Content-Length", "transfer-encoding", "Expect", "host", "connection"] {
            with_framing.headers.push((name.to_string(), "7".to_string()));
        }
        let text =
            String::from_utf8(written(exchange(with_framing).unwrap())[..].escape_ascii().collect()).unwrap();
        assert_eq!(
            text,
            r"POST /a?b=c|d HTTP/1.1\r\nhost: example.com:8080\r\naccept: caf\xe9\r\ncontent-length: 4\r\n\r\nbody"
        );
        for (method, body, length) in [
            ("POST", None, Some(0)),
            ("PUT", None, Some(0)),
            ("DELETE", None, None),
            ("DELETE", Some(&b"x"[..]), Some(1)),
            ("PROPFIND", Some(b"xy"), Some(2)),
            ("POST", Some(b""), Some(0)),
        ] {
            let bytes = written(exchange(fetch(method, body)).unwrap());
            let text = String::from_utf8_lossy(&bytes);
            let wanted = length.map(|length| format!("content-length: {length}\r\n"));
            assert_eq!(text.contains("content-length"), wanted.is_some(), "{text}");
            assert!(text.contains(&wanted.unwrap_or_default()), "{text}");
        }
    }

    #[test]
    fn a_large_body_is_not_copied_and_long_headers_fit() {
        let mut large = fetch("POST", Some(&vec![b'x'; JOINED_BODY + 1]));
        large.headers.push(("long".to_string(), "y".repeat(30_000)));
        let bytes = written(exchange(large).unwrap());
        assert!(bytes.ends_with(&[&b"\r\n\r\n"[..], &vec![b'x'; JOINED_BODY + 1]].concat()));
    }

    #[test]
    fn requests_that_would_split_are_refused() {
        for (name, value) in [("a\r\nb", "x"), ("a", "x\r\nb: c"), ("a", "\u{10d}"), ("", "x"), ("a b", "x")]
        {
            let mut bad = fetch("GET", None);
            bad.headers.push((name.to_string(), value.to_string()));
            assert_eq!(exchange(bad).unwrap_err().kind, FetchErrorKind::Url);
        }
        for method in ["", "GET /x", "CONNECT", "a\r\n"] {
            assert_eq!(exchange(fetch(method, None)).unwrap_err().kind, FetchErrorKind::Url);
        }
    }

    #[test]
    fn responses_come_as_they_are() {
        let (response, reusable) =
            ok("HTTP/1.1 203 Oh, Well\r\nX-B: 1\r\nx-a:  2 \r\nX-B: 3\r\ncontent-length: 2\r\n\r\nhi");
        assert!(reusable);
        assert_eq!((response.status, response.reason.as_str()), (203, "Oh, Well"));
        let headers: Vec<_> = response.headers.iter().map(|(n, v)| (n.as_str(), v.as_str())).collect();
        assert_eq!(headers, [("X-B", "1"), ("x-a", "2"), ("X-B", "3"), ("content-length", "2")]);
        assert_eq!(response.body, b"hi");

        let (response, _) =
            both("GET", b"HTTP/1.1 200 \r\nx: caf\xe9\r\ncontent-length: 0\r\n\r\n", false).unwrap();
        assert_eq!(response.headers[0].1, "caf\u{e9}");
        assert_eq!(response.reason, "");
    }

    #[test]
    fn every_framing_ends_where_it_should() {
        for (method, bytes, closed, body, reusable) in [
            (
                "GET",
                "HTTP/1.1 200 OK\r\nTransfer-Encoding: Chunked\r\n\r\n2\r\nhi\r\n0\r\n\r\n",
                false,
                "hi",
                true,
            ),
            ("GET", "HTTP/1.1 200 OK\r\n\r\nall of it", true, "all of it", false),
            ("GET", "HTTP/1.0 200 OK\r\ncontent-length: 2\r\n\r\nhi", false, "hi", false),
            (
                "GET",
                "HTTP/1.0 200 OK\r\nconnection: Keep-Alive\r\ncontent-length: 2\r\n\r\nhi",
                false,
                "hi",
                true,
            ),
            (
                "GET",
                "HTTP/1.1 200 OK\r\nconnection: x, Close\r\ncontent-length: 2\r\n\r\nhi",
                false,
                "hi",
                false,
            ),
            ("HEAD", "HTTP/1.1 200 OK\r\ncontent-length: 5000\r\n\r\n", false, "", true),
            ("HEAD", "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n", false, "", true),
            ("GET", "HTTP/1.1 204 No\r\n\r\n", false, "", true),
            ("GET", "HTTP/1.1 304 No\r\ncontent-length: 5\r\n\r\n", false, "", true),
            ("GET", "HTTP/1.1 302 Go\r\nlocation: /x\r\ncontent-length: 1\r\n\r\n!", false, "!", true),
            ("GET", "HTTP/1.1 200 OK\r\ncontent-length: 2\r\ncontent-length: 2\r\n\r\nhi", false, "hi", true),
            (
                "GET",
                "HTTP/1.1 100 Continue\r\nx: y\r\n\r\nHTTP/1.1 103 Early\r\nlink: x\r\n\r\nHTTP/1.1 204 No\r\n\r\n",
                false,
                "",
                true,
            ),
            ("GET", "\r\n\r\nHTTP/1.1 204 No\r\n\r\n", false, "", true),
            ("GET", "HTTP/1.1 200 OK\ncontent-length: 2\n\nhi", false, "hi", true),
        ] {
            let (response, may_be_reused) = both(method, bytes.as_bytes(), closed).unwrap();
            assert_eq!(String::from_utf8_lossy(&response.body), body, "{bytes}");
            assert_eq!(may_be_reused, reusable, "{bytes}");
        }
    }

    #[test]
    fn what_follows_a_response_spoils_the_connection_only() {
        let (response, reusable) = ok("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nhiHTTP/1.1 200 OK\r\n");
        assert_eq!((response.body.as_slice(), reusable), (&b"hi"[..], false));
        let mut early = exchange(fetch("POST", Some(b"not written yet"))).unwrap();
        early.received(b"HTTP/1.1 413 No\r\ncontent-length: 0\r\n\r\n").unwrap();
        assert!(!early.finish().unwrap().1);
    }

    #[test]
    fn a_response_cut_short_is_an_error_at_every_byte() {
        for bytes in [
            &b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhello"[..],
            b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
        ] {
            assert!(both("GET", bytes, true).is_ok());
            for end in 0..bytes.len() {
                assert_eq!(error(&bytes[..end], true), FetchErrorKind::Protocol, "{end}");
            }
        }
    }

    #[test]
    fn ambiguous_and_broken_responses_are_refused() {
        for head in [
            "content-length: 5\r\ntransfer-encoding: chunked",
            "transfer-encoding: gzip, chunked",
            "transfer-encoding: chunked, identity",
            "transfer-encoding: chunked\r\ntransfer-encoding: chunked",
            "transfer-encoding: xchunked",
            "transfer-encoding:",
            "content-length: 5\r\ncontent-length: 6",
            "content-length: 5, 6",
            "content-length: -5",
            "content-length: +5",
            "content-length: 0x5",
            "content-length: 5 5",
            "content-length:",
            "content-length: 99999999999999999999",
            "content-length : 5",
            " folded: x",
            "a\0: x",
            "a: \0",
            "no colon",
            ": no name",
        ] {
            let bytes = format!("HTTP/1.1 200 OK\r\n{head}\r\n\r\n5\r\nhello\r\n0\r\n\r\n");
            assert_eq!(error(bytes.as_bytes(), true), FetchErrorKind::Protocol, "{head}");
        }
        for bytes in [
            &b"HTTP/1.1 099 No\r\n\r\n"[..],
            b"HTTP/1.1 -20 No\r\n\r\n",
            b"HTTP/1.1 20 No\r\n\r\n",
            b"HTTP/2.0 200 No\r\n\r\n",
            b"HTTP/1.1 101 Switching\r\nupgrade: x\r\n\r\n",
            b"HTTP/1.0 200 OK\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
            b"SSH-2.0-OpenSSH_9.2\r\n\r\n",
            b"\xff\xfe\n\n",
            b"HTTP/1.1 200 OK\r\n\xe9: x\r\n\r\n",
        ] {
            assert_eq!(error(bytes, true), FetchErrorKind::Protocol, "{:?}", String::from_utf8_lossy(bytes));
        }
    }

    #[test]
    fn responses_are_bounded() {
        let long = "x".repeat(MAX_HTTP_HEAD);
        let many = "a: b\r\n".repeat(MAX_HTTP_HEADERS + 1);
        let interim = "HTTP/1.1 100 Continue\r\n\r\n".repeat(MAX_HTTP_HEAD / 20);
        for bytes in [
            format!("HTTP/1.1 200 OK\r\na: {long}\r\n\r\n"),
            format!("HTTP/1.1 200 OK\r\n{many}\r\n"),
            interim,
            "\r\n".repeat(MAX_HTTP_HEAD),
            "HTTP/1.1 200 OK\r\ncontent-length: 1001\r\n\r\n".to_string(),
            "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n3e9\r\n".to_string(),
            format!("HTTP/1.1 200 OK\r\n\r\n{}", "x".repeat(1001)),
        ] {
            assert_eq!(error(bytes.as_bytes(), false), FetchErrorKind::TooLarge, "{bytes:.80}");
        }
        let most = "a: b\r\n".repeat(MAX_HTTP_HEADERS - 1);
        assert!(both("GET", format!("HTTP/1.1 204 No\r\n{most}b: c\r\n\r\n").as_bytes(), false).is_ok());
    }
}
