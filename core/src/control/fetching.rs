//! Requests that are fetched for others: who asked, what is under way, and what they are told (protocol.md sections 9
//! to 11).

use alloc::boxed::Box;
use alloc::format;
use alloc::string::{String, ToString as _};
use alloc::vec::Vec;

use super::clients::ClientId;
use super::sessions;
use super::streams::Stream;
use super::{Context, Control};
use crate::crypto::Crypto;
use crate::data_plane::responder::{self, Refusal};
use crate::event::Event;
use crate::guard;
use crate::io::{Effect, EffectId, EffectResult, Fetch, FetchError, FetchErrorKind, Output, Response};
use crate::limits::MAX_REQUEST_BODIES;
use crate::text::printable;
use crate::time::{Deadline, Now, Reason};
use crate::wire::frame::MAX_PLAINTEXT;
use crate::wire::message;

/// A fetch under way for somebody.
#[derive(Debug)]
pub(super) struct Proxied<C: Crypto> {
    asker: Asker<C>,
    origin: String,
    /// Of the request's body.
    bytes: usize,
    asked: Now,
    pub(super) until: Deadline,
}

/// Who gets the response.
#[derive(Debug)]
pub(super) enum Asker<C: Crypto> {
    /// The server, on the tunnel.
    Tunnel { reply_to: String },
    /// A proxy-session stream; `id` is the asker's own.
    Session { stream_id: String, id: Option<sessions::Id> },
    /// A client of the data plane.
    DataPlane { client: ClientId, request: Box<responder::Request<C>> },
}

impl<C: Crypto> Proxied<C> {
    /// Whether the answer goes to the server in any form, and so ends with the session.
    pub(super) const fn is_of_session(&self) -> bool {
        matches!(self.asker, Asker::Tunnel { .. } | Asker::Session { .. })
    }
}

/// What somebody wants fetched.
pub(super) struct Wanted<'a> {
    pub(super) url: &'a str,
    pub(super) method: Option<&'a str>,
    pub(super) headers: Vec<(String, String)>,
    pub(super) body: Option<Vec<u8>>,
}

/// A fetch that may be started.
pub(super) struct Prepared {
    origin: String,
    bytes: usize,
    fetch: Fetch,
}

/// Why there is no fetch.
pub(super) struct NotFetched {
    pub(super) origin: Option<String>,
    pub(super) reason: String,
}

impl<C: Crypto> Control<C> {
    /// Starts a fetch, or tells the asker why not.
    pub(super) fn fetch(
        &mut self,
        context: &mut Context<'_, C>,
        asker: Asker<C>,
        wanted: Wanted<'_>,
        max_body: usize,
    ) {
        match self.prepare(context, wanted, max_body) {
            Ok(prepared) => {
                let stream_id = match &asker {
                    Asker::Session { stream_id, .. } => Some(stream_id.clone()),
                    Asker::Tunnel { .. } | Asker::DataPlane { .. } => None,
                };
                let effect = self.start_fetch(context, asker, prepared);
                let stream = stream_id.and_then(|stream_id| self.streams.get_mut(&stream_id));
                if let Some(Stream::ProxySession(fetches)) = stream {
                    fetches.insert(effect);
                }
            }
            Err(NotFetched { origin, reason }) => self.fail(context, asker, origin, &reason),
        }
    }

    /// Checks what somebody wants fetched: the node's own limits, and the guard.
    pub(super) fn prepare(
        &mut self,
        context: &mut Context<'_, C>,
        wanted: Wanted<'_>,
        max_body: usize,
    ) -> Result<Prepared, NotFetched> {
        let Wanted { url, method, headers, body } = wanted;
        let bytes = body.as_ref().map_or(0, Vec::len);
        let over = if self.proxied.len() >= self.limits.max_requests {
            let reason =
                format!("this node has {} requests under way, as many as it takes", self.proxied.len());
            Some(("max-requests", reason))
        } else if bytes > 0 && self.request_bytes.saturating_add(bytes) > MAX_REQUEST_BODIES {
            let reason = "this node has as many large requests under way as it takes".to_string();
            Some(("request bodies", reason))
        } else {
            None
        };
        if let Some((limit, reason)) = over {
            self.over_limit(context.out, limit);
            return Err(NotFetched { origin: None, reason });
        }
        let request = guard::Request { url, method, headers, body };
        match guard::fetch(request, self.audience, self.limits.bounds(max_body)) {
            Ok(fetch) => Ok(Prepared { origin: fetch.target.origin(), bytes, fetch }),
            Err(refused) => {
                let origin = guard::Target::parse(url).ok().map(|target| target.origin());
                Err(NotFetched { origin, reason: refused.to_string() })
            }
        }
    }

    pub(super) fn start_fetch(
        &mut self,
        context: &mut Context<'_, C>,
        asker: Asker<C>,
        prepared: Prepared,
    ) -> EffectId {
        let Prepared { origin, bytes, fetch } = prepared;
        self.counters.requests += 1;
        self.request_bytes = self.request_bytes.saturating_add(bytes);
        let effect = context.out.perform(Effect::Fetch(fetch));
        let until = context.now.deadline(self.limits.request_timeout, Reason::ProxyRequest);
        self.proxied.insert(effect, Proxied { asker, origin, bytes, asked: context.now, until });
        effect
    }

    /// An effect of this machine ended.
    pub(crate) fn handle_done(
        &mut self,
        context: &mut Context<'_, C>,
        effect: EffectId,
        result: EffectResult,
    ) {
        let Some(Proxied { asker, origin, asked, .. }) = self.take_proxied(effect) else { return };
        let took = context.now.monotonic.saturating_sub(asked.monotonic);
        self.latency.observe(took);
        match result {
            EffectResult::Fetched(Ok(response)) => {
                self.counters.bytes = self.counters.bytes.saturating_add(response.body.len() as u64);
                context.out.event(Event::Proxied {
                    origin,
                    status: response.status,
                    bytes: response.body.len(),
                    duration_ms: u64::try_from(took.as_millis()).unwrap_or(u64::MAX),
                });
                self.respond(context, asker, response);
            }
            EffectResult::Fetched(Err(error)) => self.fail(context, asker, Some(origin), &explain(&error)),
            EffectResult::Measured(_)
            | EffectResult::Written(_)
            | EffectResult::Downloaded(_)
            | EffectResult::Inspected(_)
            | EffectResult::Installed(_) => {
                self.fail(context, asker, Some(origin), "not an answer to a fetch");
            }
        }
    }

    /// Takes a fetch out of what is under way, and out of its stream.
    fn take_proxied(&mut self, effect: EffectId) -> Option<Proxied<C>> {
        let proxied = self.proxied.remove(&effect)?;
        self.request_bytes = self.request_bytes.saturating_sub(proxied.bytes);
        if let Asker::Session { stream_id, .. } = &proxied.asker {
            if let Some(Stream::ProxySession(fetches)) = self.streams.get_mut(stream_id) {
                fetches.remove(&effect);
            }
        }
        Some(proxied)
    }

    /// Nobody wants it any more.
    pub(super) fn cancel(&mut self, context: &mut Context<'_, C>, effect: EffectId) {
        if self.take_proxied(effect).is_some() {
            context.out.push(Output::Cancel { id: effect });
        }
    }

    /// Fetches whose time is up.
    pub(super) fn fail_overdue(&mut self, context: &mut Context<'_, C>) {
        // Every request has the same time, so the oldest, which has the lowest id, is the first to be due.
        while let Some((effect, _)) =
            self.proxied.first_key_value().filter(|(_, proxied)| proxied.until.is_due(context.now))
        {
            let effect = *effect;
            let Some(proxied) = self.take_proxied(effect) else { return };
            context.out.push(Output::Cancel { id: effect });
            self.latency.observe(context.now.monotonic.saturating_sub(proxied.asked.monotonic));
            let reason = format!("no answer within {} s", self.limits.request_timeout.as_secs());
            self.fail(context, proxied.asker, Some(proxied.origin), &reason);
        }
    }

    fn respond(&mut self, context: &mut Context<'_, C>, asker: Asker<C>, response: Response) {
        let seconds = context.seconds();
        match asker {
            Asker::Tunnel { reply_to } => {
                let Response { status, reason, headers, body } = &response;
                let tunnel = Some((seconds, reply_to.as_str()));
                let answer = message::encode_proxy_response(tunnel, *status, reason, headers, body);
                if answer.plaintext().len() > MAX_PLAINTEXT {
                    let reason =
                        format!("the response has {} bytes and does not fit in one frame", body.len());
                    return self.fail(context, Asker::Tunnel { reply_to }, None, &reason);
                }
                context.send(answer);
            }
            Asker::Session { stream_id, id } => {
                let datum = sessions::response(id.as_deref(), &response);
                context.send(message::stream_data(seconds, &stream_id, &datum));
            }
            Asker::DataPlane { client, request } => self.answer_client(context, client, request, response),
        }
    }

    /// Tells the operator, and whoever asked.
    pub(super) fn fail(
        &mut self,
        context: &mut Context<'_, C>,
        asker: Asker<C>,
        origin: Option<String>,
        reason: &str,
    ) {
        self.tell_failure(context, origin, reason);
        let seconds = context.seconds();
        match asker {
            Asker::Tunnel { reply_to } => {
                context.send(message::error(seconds, Some(&reply_to), "proxy_failed", reason));
            }
            Asker::Session { stream_id, id } => {
                let datum = sessions::error(id.as_deref(), "fetch_failed", reason);
                context.send(message::stream_data(seconds, &stream_id, &datum));
            }
            Asker::DataPlane { client, request } => {
                self.refuse_client(context, client, *request, Refusal::UpstreamError, reason);
            }
        }
    }

    pub(super) fn tell_failure(
        &mut self,
        context: &mut Context<'_, C>,
        origin: Option<String>,
        reason: &str,
    ) {
        self.counters.failed += 1;
        context.out.event(Event::ProxyFailed { origin, reason: reason.to_string() });
    }
}

/// What the asker is told of a fetch that failed: the kind first, so that it reads well without the detail.
pub(crate) fn explain(error: &FetchError) -> String {
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
