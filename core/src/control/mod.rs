//! The control session (protocol.md section 9): heartbeats, requests to proxy, and streams.

mod streams;

use alloc::boxed::Box;
use alloc::collections::BTreeMap;
use alloc::format;
use alloc::string::{String, ToString as _};
use alloc::vec::Vec;
use core::mem;

use serde_json::Value;

use self::streams::{Stream, Streams};
use crate::crypto::identity::Identity;
use crate::crypto::{Crypto, Drbg};
use crate::data_plane::replay::Spent;
use crate::data_plane::responder::{self, Refusal, Responder};
use crate::event::Event;
use crate::guard;
use crate::io::{Audience, Effect, EffectId, EffectResult, FetchError, FetchErrorKind, Output, Response};
use crate::limits::{
    HEARTBEAT_INTERVAL, Limits, MAX_REQUEST_BODIES, MAX_STREAM_BODY, MAX_TUNNEL_BODY, PROXY_TIMEOUT,
};
use crate::outbox::Outbox;
use crate::release::manifest::{Capabilities, Manifest, differences};
use crate::state::Registration;
use crate::text::printable;
use crate::time::{Deadline, Now, Reason};
use crate::wire::base64;
use crate::wire::frame::{FrameBuf, MAX_PLAINTEXT};
use crate::wire::message::{
    self, Heartbeat, ProxyRequest, StreamClose, StreamData, StreamOpen, UpdateApply, UpdateFailed,
    UpdatePrepare, UpdateReady, decode_body,
};

/// What the control session needs of the node that has it.
pub(crate) struct Context<'a, C: Crypto> {
    pub(crate) now: Now,
    pub(crate) crypto: &'a C,
    pub(crate) identity: &'a Identity<C>,
    pub(crate) rng: &'a mut Drbg,
    pub(crate) out: &'a mut Outbox,
    /// Plaintexts to send, in order.
    pub(crate) answers: &'a mut Vec<FrameBuf>,
}

impl<C: Crypto> Context<'_, C> {
    fn seconds(&self) -> u64 {
        self.now.unix_seconds()
    }
}

/// A fetch under way for somebody.
#[derive(Debug)]
struct Proxied<C: Crypto> {
    asker: Asker<C>,
    origin: String,
    /// Of the request's body.
    bytes: usize,
    asked: Now,
    until: Deadline,
}

/// Who gets the response.
#[derive(Debug)]
enum Asker<C: Crypto> {
    /// The server, on the tunnel.
    Tunnel { reply_to: String },
    /// A proxy-session stream; `id` is the asker's own.
    Session { stream_id: String, id: Option<Value> },
    /// A client of the data plane, on a stream.
    DataPlane { stream_id: String, request: Box<responder::Request<C>> },
}

impl<C: Crypto> Asker<C> {
    fn stream_id(&self) -> Option<&str> {
        match self {
            Self::Tunnel { .. } => None,
            Self::Session { stream_id, .. } | Self::DataPlane { stream_id, .. } => Some(stream_id),
        }
    }
}

/// What somebody wants fetched.
struct Wanted<'a> {
    url: &'a str,
    method: Option<&'a str>,
    headers: Vec<(String, String)>,
    body: Option<Vec<u8>>,
}

/// The control session's own state. It lives as long as the node; [`Control::stop`] ends what belongs to one
/// session.
#[derive(Debug)]
pub(crate) struct Control<C: Crypto> {
    node_id: String,
    issuer_key: Option<[u8; 32]>,
    audience: Audience,
    limits: Limits,
    started: Now,
    heartbeat: Option<Deadline>,
    proxied: BTreeMap<EffectId, Proxied<C>>,
    streams: Streams<C>,
    spent: Spent,
}

impl<C: Crypto> Control<C> {
    pub(crate) fn new(
        registration: Option<&Registration>,
        audience: Audience,
        limits: Limits,
        started: Now,
    ) -> Self {
        Self {
            node_id: registration.map(|registration| registration.node_id.clone()).unwrap_or_default(),
            issuer_key: registration.and_then(Registration::server_key),
            audience,
            limits,
            started,
            heartbeat: None,
            proxied: BTreeMap::new(),
            streams: Streams::default(),
            spent: Spent::new(started.unix_seconds()),
        }
    }

    /// The session is up: the first heartbeat goes out at once.
    pub(crate) fn start(&mut self, context: &mut Context<'_, C>) {
        self.heartbeat(context);
    }

    /// The session is gone, and with it everybody who waited for an answer.
    pub(crate) fn stop(&mut self, out: &mut Outbox) {
        self.heartbeat = None;
        self.streams.clear();
        while let Some((id, _)) = self.proxied.pop_first() {
            out.push(Output::Cancel { id });
        }
    }

    pub(crate) fn deadline(&self) -> Option<Deadline> {
        // Every request has the same time, so the oldest, which has the lowest id, is the first to be due.
        let oldest = self.proxied.first_key_value().map(|(_, proxied)| proxied.until);
        Deadline::earlier(Deadline::earlier(self.heartbeat, oldest), self.streams.deadline())
    }

    /// Whether the effect is one of this machine's.
    pub(crate) fn owns(&self, effect: EffectId) -> bool {
        self.proxied.contains_key(&effect)
    }

    /// The server wants something fetched.
    pub(crate) fn handle_proxy_request(&mut self, context: &mut Context<'_, C>, request: ProxyRequest) {
        let ProxyRequest { id, target_url, method, headers, body, body_encoding } = request;
        let asker = Asker::Tunnel { reply_to: id };
        match decode_body(body, body_encoding, self.limits.max_request_body) {
            Ok(body) => {
                let headers = headers.unwrap_or_default().into_iter().collect();
                self.fetch(
                    context,
                    asker,
                    Wanted { url: &target_url, method: method.as_deref(), headers, body },
                );
            }
            Err(reason) => self.fail(context, asker, None, &reason),
        }
    }

    /// The server opens a stream.
    pub(crate) fn handle_stream_open(&mut self, context: &mut Context<'_, C>, open: StreamOpen) {
        if let Err((code, text)) = self.streams.open(&open, context.now) {
            context.out.event(Event::Unsupported { what: ["a stream: ", text].concat() });
            let answer = message::error(context.seconds(), Some(&open.stream_id), code, text);
            context.answers.push(answer);
        }
    }

    /// Bytes of a stream.
    pub(crate) fn handle_stream_data(&mut self, context: &mut Context<'_, C>, data: StreamData) {
        let StreamData { stream_id, data, .. } = data;
        let Some(data) = base64::decode(&data) else {
            let text = "the data of a stream is not base64";
            context.answers.push(message::error(context.seconds(), Some(&stream_id), "decode_failed", text));
            return;
        };
        match self.streams.take(&stream_id) {
            // The deployed server can send data before the open.
            None | Some(Stream::ProxySession) => self.session_datum(context, stream_id, &data),
            Some(Stream::DataInit { .. }) => self.data_init(context, stream_id, &data),
            Some(Stream::DataRequest { responder, .. }) => {
                self.data_request(context, stream_id, *responder, data);
            }
            // One request a connection: what follows it is nobody's.
            Some(Stream::DataFetching) => self.streams.put(stream_id, Stream::DataFetching),
        }
    }

    /// The server closes a stream: what is under way for it is wanted by nobody.
    pub(crate) fn handle_stream_close(&mut self, out: &mut Outbox, close: &StreamClose) {
        self.streams.take_closed(&close.stream_id);
        let of_stream =
            |(_, proxied): &(&EffectId, &Proxied<C>)| proxied.asker.stream_id() == Some(&close.stream_id);
        let ended: Vec<EffectId> = self.proxied.iter().filter(of_stream).map(|(id, _)| *id).collect();
        for id in ended {
            self.proxied.remove(&id);
            out.push(Output::Cancel { id });
        }
    }

    /// An effect of this machine ended.
    pub(crate) fn handle_done(
        &mut self,
        context: &mut Context<'_, C>,
        effect: EffectId,
        result: EffectResult,
    ) {
        let Some(Proxied { asker, origin, asked, .. }) = self.proxied.remove(&effect) else { return };
        match result {
            EffectResult::Fetched(Ok(response)) => {
                let took = context.now.monotonic.saturating_sub(asked.monotonic);
                context.out.event(Event::Proxied {
                    origin,
                    status: response.status,
                    bytes: response.body.len(),
                    duration_ms: u64::try_from(took.as_millis()).unwrap_or(u64::MAX),
                });
                self.respond(context, asker, &response);
            }
            EffectResult::Fetched(Err(error)) => self.fail(context, asker, Some(origin), &explain(&error)),
            EffectResult::Measured(_) | EffectResult::Written(_) => {
                self.fail(context, asker, Some(origin), "not an answer to a fetch");
            }
        }
    }

    /// What is due: a heartbeat, requests that took too long, streams whose client does not go on.
    pub(crate) fn handle_time(&mut self, context: &mut Context<'_, C>) {
        if self.heartbeat.is_some_and(|heartbeat| heartbeat.is_due(context.now)) {
            self.heartbeat(context);
        }
        while let Some(oldest) =
            self.proxied.first_entry().filter(|entry| entry.get().until.is_due(context.now))
        {
            let (id, proxied) = oldest.remove_entry();
            context.out.push(Output::Cancel { id });
            let reason = format!("no answer within {} s", PROXY_TIMEOUT.as_secs());
            self.fail(context, proxied.asker, Some(proxied.origin), &reason);
        }
        for stream_id in self.streams.overdue(context.now) {
            self.close_stream(context, stream_id, "the client took too long");
        }
    }

    fn heartbeat(&mut self, context: &mut Context<'_, C>) {
        let now = context.now;
        self.heartbeat = Some(now.deadline(HEARTBEAT_INTERVAL, Reason::Heartbeat));
        let (active_requests, active_streams) = (self.proxied.len(), self.streams.len());
        context.out.event(Event::Heartbeat { active_requests, active_streams });
        let heartbeat = Heartbeat {
            node_id: self.node_id.clone(),
            uptime_seconds: now.monotonic.saturating_sub(self.started.monotonic).as_secs(),
            capabilities: Capabilities::ALL,
            active_requests,
            active_streams,
        };
        context.answers.push(heartbeat.encode(now.unix_seconds()));
    }

    /// A datum of a proxy session: one request.
    fn session_datum(&mut self, context: &mut Context<'_, C>, stream_id: String, data: &[u8]) {
        match streams::session_request(data, self.limits.max_request_body) {
            Ok(request) => {
                let asker = Asker::Session { stream_id, id: request.id };
                let (method, headers, body) = (request.method.as_deref(), request.headers, request.body);
                self.fetch(context, asker, Wanted { url: &request.url, method, headers, body });
            }
            Err((id, reason)) => {
                let answer = streams::session_error(id.as_ref(), "invalid_request", &reason);
                context.answers.push(streams::datum(context.seconds(), &stream_id, &answer));
            }
        }
    }

    /// The first datum of a data-plane stream.
    fn data_init(&mut self, context: &mut Context<'_, C>, stream_id: String, init: &[u8]) {
        let crypto = context.crypto.clone();
        match responder::accept(crypto, context.identity, &self.node_id, init, context.rng, context.now) {
            Ok((responder, accept)) => {
                context.answers.push(streams::datum(context.seconds(), &stream_id, &accept));
                self.streams.put(stream_id, Stream::data_request(responder, context.now));
            }
            Err(error) => {
                context.out.event(Event::ProxyFailed { origin: None, reason: error.to_string() });
                self.close_stream(context, stream_id, "handshake failed");
            }
        }
    }

    /// The second datum: the request.
    fn data_request(
        &mut self,
        context: &mut Context<'_, C>,
        stream_id: String,
        responder: Responder<C>,
        mut frame: Vec<u8>,
    ) {
        let gate = responder::Gate {
            issuer_key: self.issuer_key.as_ref(),
            node_id: &self.node_id,
            max_body: self.limits.max_request_body,
        };
        let mut request = match responder.open(&mut frame, gate, context.now) {
            Ok(request) => request,
            Err(refused) => {
                context.out.event(Event::ProxyFailed { origin: None, reason: refused.reason });
                if let Some(frame) = refused.frame {
                    context.answers.push(streams::datum(context.seconds(), &stream_id, &frame));
                }
                return self.close_stream(context, stream_id, streams::COMPLETE);
            }
        };
        // Last of all checks, so that no refusal burns a ticket. What follows may still fail, but it was paid for.
        let url = mem::take(&mut request.target_url);
        let method = request.method.take();
        let (headers, body) = (mem::take(&mut request.headers), request.body.take());
        let wanted = Wanted { url: &url, method: method.as_deref(), headers, body };
        let spent = if self.proxied.len() >= self.limits.max_requests {
            Err((Refusal::UpstreamError, "this node is busy"))
        } else {
            self.spent
                .spend(&request.claims.jti, request.claims.iat)
                .map_err(|_| (Refusal::Unauthorized, "the ticket was spent"))
        };
        match spent {
            Ok(()) => {
                self.streams.put(stream_id.clone(), Stream::DataFetching);
                self.fetch(context, Asker::DataPlane { stream_id, request: Box::new(request) }, wanted);
            }
            Err((refusal, reason)) => {
                context.out.event(Event::ProxyFailed { origin: None, reason: reason.to_string() });
                let frame = request.refuse(refusal, reason);
                context.answers.push(streams::datum(context.seconds(), &stream_id, &frame));
                self.close_stream(context, stream_id, streams::COMPLETE);
            }
        }
    }

    /// Starts a fetch, or tells the asker why not.
    fn fetch(&mut self, context: &mut Context<'_, C>, asker: Asker<C>, wanted: Wanted<'_>) {
        let origin = guard::Target::parse(wanted.url).ok().map(|target| target.origin());
        if self.proxied.len() >= self.limits.max_requests {
            let reason =
                format!("this node has {} requests under way, as many as it takes", self.proxied.len());
            return self.fail(context, asker, origin, &reason);
        }
        let Wanted { url, method, headers, body } = wanted;
        let bytes = body.as_ref().map_or(0, Vec::len);
        let held: usize = self.proxied.values().map(|proxied| proxied.bytes).sum();
        if bytes > 0 && held.saturating_add(bytes) > MAX_REQUEST_BODIES {
            return self.fail(
                context,
                asker,
                origin,
                "this node has as many large requests under way as it takes",
            );
        }
        let request = guard::Request { url, method, headers, body };
        let max_body = self.limits.max_response_body.min(match asker {
            Asker::Tunnel { .. } => MAX_TUNNEL_BODY,
            Asker::Session { .. } | Asker::DataPlane { .. } => MAX_STREAM_BODY,
        });
        match guard::fetch(request, self.audience, PROXY_TIMEOUT, max_body) {
            Ok((target, fetch)) => {
                let effect = context.out.perform(Effect::Fetch(fetch));
                let until = context.now.deadline(PROXY_TIMEOUT, Reason::ProxyRequest);
                let proxied = Proxied { asker, origin: target.origin(), bytes, asked: context.now, until };
                self.proxied.insert(effect, proxied);
            }
            Err(refused) => self.fail(context, asker, origin, &refused.to_string()),
        }
    }

    fn respond(&mut self, context: &mut Context<'_, C>, asker: Asker<C>, response: &Response) {
        let seconds = context.seconds();
        let answer = match asker {
            Asker::Tunnel { reply_to } => {
                let Response { status, reason, headers, body } = response;
                let tunnel = Some((seconds, reply_to.as_str()));
                let answer = message::encode_proxy_response(tunnel, *status, reason, headers, body);
                if answer.plaintext().len() > MAX_PLAINTEXT {
                    let reason =
                        format!("the response has {} bytes and does not fit in one frame", body.len());
                    return self.fail(context, Asker::Tunnel { reply_to }, None, &reason);
                }
                answer
            }
            Asker::Session { stream_id, id } => {
                let datum = streams::session_response(id.as_ref(), response);
                streams::datum(seconds, &stream_id, &datum)
            }
            Asker::DataPlane { stream_id, request } => {
                let frame = request.respond(response);
                context.answers.push(streams::datum(seconds, &stream_id, &frame));
                return self.close_stream(context, stream_id, streams::COMPLETE);
            }
        };
        context.answers.push(answer);
    }

    fn fail(&mut self, context: &mut Context<'_, C>, asker: Asker<C>, origin: Option<String>, reason: &str) {
        context.out.event(Event::ProxyFailed { origin, reason: reason.to_string() });
        let seconds = context.seconds();
        match asker {
            Asker::Tunnel { reply_to } => {
                context.answers.push(message::error(seconds, Some(&reply_to), "proxy_failed", reason));
            }
            Asker::Session { stream_id, id } => {
                let datum = streams::session_error(id.as_ref(), "fetch_failed", reason);
                context.answers.push(streams::datum(seconds, &stream_id, &datum));
            }
            Asker::DataPlane { stream_id, request } => {
                let frame = request.refuse(Refusal::UpstreamError, reason);
                context.answers.push(streams::datum(seconds, &stream_id, &frame));
                self.close_stream(context, stream_id, streams::COMPLETE);
            }
        }
    }

    fn close_stream(&mut self, context: &mut Context<'_, C>, stream_id: String, reason: &str) {
        self.streams.take_closed(&stream_id);
        let close = StreamClose { stream_id, reason: Some(reason.to_string()) };
        context.answers.push(close.encode(context.seconds()));
    }
}

/// What the asker is told of a fetch that failed: the kind first, so that it reads well without the detail.
fn explain(error: &FetchError) -> String {
    let kind = match error.kind {
        FetchErrorKind::Url | FetchErrorKind::Forbidden => "refused",
        FetchErrorKind::Resolve => "the name does not resolve",
        FetchErrorKind::Connect => "cannot connect",
        FetchErrorKind::Tls => "TLS failed",
        FetchErrorKind::Timeout => "timed out",
        FetchErrorKind::Protocol => "the target broke HTTP",
        FetchErrorKind::TooLarge => "the response is too large",
        FetchErrorKind::Cancelled => "cancelled",
        FetchErrorKind::Busy => "this node is busy",
    };
    if error.detail.is_empty() { kind.to_string() } else { format!("{kind}: {}", printable(&error.detail)) }
}

/// This release installs no updates: it is ready only for what it is already.
pub(crate) fn update_prepare(now: Now, out: &mut Outbox, own: &Manifest, request: UpdatePrepare) -> FrameBuf {
    let UpdatePrepare { id, update_id, manifest } = request;
    let seconds = now.unix_seconds();
    if differences(&manifest, own).is_empty() {
        let ready = UpdateReady {
            reply_to: id,
            update_id,
            artifact_path: String::new(),
            sha256: String::new(),
            current_version: own.version.clone(),
            target_version: manifest.version,
        };
        return ready.encode(seconds);
    }
    out.event(Event::Unsupported { what: format!("an update to version {}", printable(&manifest.version)) });
    let message = format!("version {} of this node does not install updates by itself", own.version);
    UpdateFailed { reply_to: id, update_id, code: "prepare_failed".to_string(), message }.encode(seconds)
}

/// Nothing was prepared, ever.
pub(crate) fn update_apply(now: Now, request: UpdateApply) -> FrameBuf {
    let UpdateApply { id, update_id, .. } = request;
    let message = "no update is prepared".to_string();
    UpdateFailed { reply_to: id, update_id, code: "update_not_prepared".to_string(), message }
        .encode(now.unix_seconds())
}
