//! The control session (protocol.md section 9): heartbeats, and requests to proxy.

use alloc::collections::BTreeMap;
use alloc::format;
use alloc::string::{String, ToString as _};

use crate::event::Event;
use crate::guard;
use crate::io::{Audience, Effect, EffectId, EffectResult, FetchError, FetchErrorKind, Output, Response};
use crate::limits::{HEARTBEAT_INTERVAL, Limits, MAX_TUNNEL_BODY, PROXY_TIMEOUT};
use crate::outbox::Outbox;
use crate::release::manifest::{Capabilities, Manifest, differences};
use crate::text::printable;
use crate::time::{Deadline, Now, Reason};
use crate::wire::frame::{FrameBuf, MAX_PLAINTEXT};
use crate::wire::message::{
    self, Heartbeat, ProxyRequest, UpdateApply, UpdateFailed, UpdatePrepare, UpdateReady, decode_body,
};

/// A proxied request under way.
#[derive(Debug)]
struct Proxied {
    reply_to: String,
    origin: String,
    asked: Now,
    until: Deadline,
}

/// The control session's own state. It lives as long as the node; [`Control::stop`] ends what belongs to one
/// session.
#[derive(Debug)]
pub(crate) struct Control {
    node_id: String,
    audience: Audience,
    limits: Limits,
    started: Now,
    heartbeat: Option<Deadline>,
    proxied: BTreeMap<EffectId, Proxied>,
}

impl Control {
    pub(crate) fn new(node_id: String, audience: Audience, limits: Limits, started: Now) -> Self {
        Self { node_id, audience, limits, started, heartbeat: None, proxied: BTreeMap::new() }
    }

    /// The session is up: the first heartbeat goes out at once.
    pub(crate) fn start(&mut self, now: Now, out: &mut Outbox) -> FrameBuf {
        self.heartbeat(now, out)
    }

    /// The session is gone, and with it everybody who waited for an answer.
    pub(crate) fn stop(&mut self, out: &mut Outbox) {
        self.heartbeat = None;
        while let Some((id, _)) = self.proxied.pop_first() {
            out.push(Output::Cancel { id });
        }
    }

    pub(crate) fn deadline(&self) -> Option<Deadline> {
        // Every request has the same time, so the oldest, which has the lowest id, is the first to be due.
        let oldest = self.proxied.first_key_value().map(|(_, proxied)| proxied.until);
        Deadline::earlier(self.heartbeat, oldest)
    }

    /// Whether the effect is one of this machine's.
    pub(crate) fn owns(&self, effect: EffectId) -> bool {
        self.proxied.contains_key(&effect)
    }

    /// The server wants something fetched. Gives the answer where it is an error already.
    pub(crate) fn handle_proxy_request(
        &mut self,
        now: Now,
        out: &mut Outbox,
        request: ProxyRequest,
    ) -> Option<FrameBuf> {
        let reply_to = request.id.clone();
        let origin = guard::Target::parse(&request.target_url).ok().map(|target| target.origin());
        match self.fetch(out, request) {
            Ok((effect, origin)) => {
                let until = now.deadline(PROXY_TIMEOUT, Reason::ProxyRequest);
                self.proxied.insert(effect, Proxied { reply_to, origin, asked: now, until });
                None
            }
            Err(reason) => {
                out.event(Event::ProxyFailed { origin, reason: reason.clone() });
                Some(failed(now, &reply_to, &reason))
            }
        }
    }

    /// An effect of this machine ended: gives the answer.
    pub(crate) fn handle_done(
        &mut self,
        now: Now,
        out: &mut Outbox,
        effect: EffectId,
        result: EffectResult,
    ) -> Option<FrameBuf> {
        let proxied = self.proxied.remove(&effect)?;
        let result = match result {
            EffectResult::Fetched(Ok(response)) => respond(now, out, &proxied, &response),
            EffectResult::Fetched(Err(error)) => Err(explain(&error)),
            EffectResult::Measured(_) | EffectResult::Written(_) => {
                Err("not an answer to a fetch".to_string())
            }
        };
        Some(result.unwrap_or_else(|reason| give_up(now, out, proxied, &reason)))
    }

    /// What is due: a heartbeat, or a request that took too long. To be called until it gives nothing.
    pub(crate) fn handle_time(&mut self, now: Now, out: &mut Outbox) -> Option<FrameBuf> {
        if self.heartbeat.is_some_and(|heartbeat| heartbeat.is_due(now)) {
            return Some(self.heartbeat(now, out));
        }
        let oldest = self.proxied.first_entry().filter(|entry| entry.get().until.is_due(now))?;
        let (id, proxied) = oldest.remove_entry();
        out.push(Output::Cancel { id });
        let reason = format!("no answer within {} s", PROXY_TIMEOUT.as_secs());
        Some(give_up(now, out, proxied, &reason))
    }

    fn heartbeat(&mut self, now: Now, out: &mut Outbox) -> FrameBuf {
        self.heartbeat = Some(now.deadline(HEARTBEAT_INTERVAL, Reason::Heartbeat));
        let (active_requests, active_streams) = (self.proxied.len(), 0);
        out.event(Event::Heartbeat { active_requests, active_streams });
        let heartbeat = Heartbeat {
            node_id: self.node_id.clone(),
            uptime_seconds: now.monotonic.saturating_sub(self.started.monotonic).as_secs(),
            capabilities: Capabilities::ALL,
            active_requests,
            active_streams,
        };
        heartbeat.encode(now.unix_seconds())
    }

    /// Starts a fetch; gives its name and where it goes.
    fn fetch(&self, out: &mut Outbox, request: ProxyRequest) -> Result<(EffectId, String), String> {
        if self.proxied.len() >= self.limits.max_requests {
            return Err(format!(
                "this node has {} requests under way, as many as it takes",
                self.proxied.len()
            ));
        }
        let body = decode_body(request.body, request.body_encoding, self.limits.max_request_body)?;
        let request = guard::Request {
            url: &request.target_url,
            method: request.method.as_deref(),
            headers: request.headers.unwrap_or_default().into_iter().collect(),
            body,
        };
        let max_body = self.limits.max_response_body.min(MAX_TUNNEL_BODY);
        let (target, fetch) = guard::fetch(request, self.audience, PROXY_TIMEOUT, max_body)
            .map_err(|refused| refused.to_string())?;
        Ok((out.perform(Effect::Fetch(fetch)), target.origin()))
    }
}

/// The answer to a proxied request, unless it is too large for a frame.
fn respond(now: Now, out: &mut Outbox, proxied: &Proxied, response: &Response) -> Result<FrameBuf, String> {
    let tunnel = Some((now.unix_seconds(), proxied.reply_to.as_str()));
    let Response { status, reason, headers, body } = response;
    let answer = message::encode_proxy_response(tunnel, *status, reason, headers, body);
    if answer.plaintext().len() > MAX_PLAINTEXT {
        return Err(format!("the response has {} bytes and does not fit in one frame", body.len()));
    }
    let took = now.monotonic.saturating_sub(proxied.asked.monotonic);
    out.event(Event::Proxied {
        origin: proxied.origin.clone(),
        status: *status,
        bytes: body.len(),
        duration_ms: u64::try_from(took.as_millis()).unwrap_or(u64::MAX),
    });
    Ok(answer)
}

fn give_up(now: Now, out: &mut Outbox, proxied: Proxied, reason: &str) -> FrameBuf {
    out.event(Event::ProxyFailed { origin: Some(proxied.origin), reason: reason.to_string() });
    failed(now, &proxied.reply_to, reason)
}

fn failed(now: Now, reply_to: &str, reason: &str) -> FrameBuf {
    message::error(now.unix_seconds(), Some(reply_to), "proxy_failed", reason)
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
