//! The local API (protocol.md section 14): requests in, responses or effects out.
//!
//! It listens on loopback by default and has no password, so what a web page could make a browser send is refused:
//! a request whose `Host` is a name that is not this node's (DNS rebinding), and one that changes or starts
//! something with a foreign `Origin`. The status page and what it reads are for the operator's browser, so they do not
//! answer to the node's own domain either, which is the network's to point somewhere: only to `localhost` and to
//! addresses.

mod metrics;
pub(crate) mod page;
mod report;

use alloc::collections::{BTreeMap, VecDeque};
use alloc::string::{String, ToString as _};
use alloc::vec::Vec;
use core::net::{Ipv4Addr, Ipv6Addr};
use core::str::FromStr as _;

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use serde_json::{Map, Value, json};

use crate::control::Control;
use crate::crypto::identity::Identity;
use crate::crypto::{Crypto, Drbg};
use crate::eval;
use crate::guard;
use crate::history::History;
use crate::holdings::Holdings;
use crate::io::{
    Audience, Effect, EffectId, EffectResult, FetchError, FetchErrorKind, LocalId, LocalRequest,
    LocalResponse, Measurement, Output, Response,
};
use crate::limits::{LOCAL_TIMEOUT, Limits, MAX_LOCAL_REQUESTS};
use crate::outbox::Outbox;
use crate::release::integrity;
use crate::release::manifest::{Capabilities, Manifest};
use crate::state::Registration;
use crate::time::{Deadline, Now, Reason, iso8601};
use crate::tunnel::connection::Tunnel;
use crate::update::directed::Directed;
use crate::wire::base64;
use crate::wire::message::{EvalParams, JoinedHeaders, few_headers, joined_headers};

/// What the API needs of the node it speaks for.
pub(crate) struct Context<'a, C: Crypto> {
    pub(crate) now: Now,
    pub(crate) started: Now,
    pub(crate) identity: &'a Identity<C>,
    pub(crate) manifest: &'a Manifest,
    pub(crate) registration: Option<&'a Registration>,
    pub(crate) tunnel: Option<&'a Tunnel<C>>,
    /// Of a node that serves others.
    pub(crate) control: Option<&'a Control<C>>,
    pub(crate) updates: &'a Directed,
    pub(crate) history: &'a History,
    pub(crate) holdings: Holdings,
    /// The operator has asked for its end.
    pub(crate) is_stopping: bool,
    pub(crate) rng: &'a mut Drbg,
    pub(crate) out: &'a mut Outbox,
}

impl<C: Crypto> Context<'_, C> {
    /// `connected`, `connecting` or `none`.
    fn tunnel_state(&self) -> &'static str {
        match self.tunnel {
            None => "none",
            Some(tunnel) if tunnel.is_up() => "connected",
            Some(_) => "connecting",
        }
    }

    /// How it stands with updates, of a node that the network can direct.
    fn update(&self) -> Option<Value> {
        self.control.map(|_| self.updates.status())
    }

    fn uptime(&self) -> u64 {
        self.now.monotonic.saturating_sub(self.started.monotonic).as_secs()
    }
}

/// A request that waits for an effect.
#[derive(Debug)]
struct Pending {
    id: LocalId,
    asked: Now,
    until: Deadline,
    work: Work,
}

#[derive(Debug)]
enum Work {
    Proxy,
    /// The measurements still to come, and those that came, each by the name it has in the answer; without a name
    /// the answer is the one result itself.
    Measure {
        name: Option<&'static str>,
        rest: VecDeque<(&'static str, Measurement)>,
        results: Map<String, Value>,
    },
}

/// What becomes of a request that is in order.
enum Answer {
    Now(Value),
    /// With a status of its own.
    Status(u16, Value),
    /// That is no JSON.
    Other(LocalResponse),
    /// When its effect has ended.
    Later,
    WebSocket,
}

/// The local API's own state.
#[derive(Debug)]
pub(crate) struct Api {
    audience: Audience,
    limits: Limits,
    pending: BTreeMap<EffectId, Pending>,
}

/// The body of `POST /proxy`.
#[derive(Deserialize)]
struct ProxyBody<'a> {
    target_url: Option<String>,
    method: Option<String>,
    #[serde(default, deserialize_with = "few_headers")]
    headers: Option<BTreeMap<String, String>>,
    #[serde(borrow)]
    body: Option<&'a RawValue>,
}

impl Api {
    pub(crate) fn new(audience: Audience, limits: Limits) -> Self {
        Self { audience, limits, pending: BTreeMap::new() }
    }

    pub(crate) fn deadline(&self) -> Option<Deadline> {
        self.pending.values().map(|pending| pending.until).min_by_key(|until| until.at)
    }

    /// Whether the effect is one of this machine's.
    pub(crate) fn owns(&self, effect: EffectId) -> bool {
        self.pending.contains_key(&effect)
    }

    /// Whether a measurement is under way, which another one would disturb.
    pub(crate) fn is_measuring(&self) -> bool {
        self.pending.values().any(|pending| matches!(pending.work, Work::Measure { .. }))
    }

    /// A request came. Whether it became a WebSocket for the data plane.
    pub(crate) fn handle_request<C: Crypto>(
        &mut self,
        context: &mut Context<'_, C>,
        id: LocalId,
        request: &LocalRequest,
    ) -> bool {
        match self.route(context, id, request) {
            Ok(Answer::Later) => {}
            Ok(Answer::Now(value)) => respond(context.out, id, 200, &value),
            Ok(Answer::Status(status, value)) => respond(context.out, id, status, &value),
            Ok(Answer::Other(response)) => context.out.push(Output::Respond { id, response }),
            Ok(Answer::WebSocket) => {
                let response = LocalResponse { status: 101, headers: Vec::new(), body: Vec::new() };
                context.out.push(Output::Respond { id, response });
                return true;
            }
            Err((status, error, message)) => {
                respond(context.out, id, status, &json!({"error": error, "message": message}));
            }
        }
        false
    }

    /// An effect of this machine ended.
    pub(crate) fn handle_done(&mut self, now: Now, out: &mut Outbox, effect: EffectId, result: EffectResult) {
        let Some(pending) = self.pending.remove(&effect) else { return };
        let Pending { id, asked, until, work } = pending;
        match (work, result) {
            (Work::Proxy, EffectResult::Fetched(Ok(response))) => {
                respond(out, id, 200, &proxied(now, asked, &response));
            }
            (Work::Proxy, EffectResult::Fetched(Err(error))) => {
                let (status, code) = fetch_status(&error);
                respond(out, id, status, &json!({"error": code, "message": error.detail}));
            }
            (Work::Measure { name: None, .. }, EffectResult::Measured(Ok(report))) => {
                respond(out, id, 200, &report.to_json());
            }
            (
                Work::Measure { name: Some(name), mut rest, mut results },
                EffectResult::Measured(Ok(report)),
            ) => {
                results.insert(name.to_string(), report.to_json());
                match rest.pop_front() {
                    None => respond(out, id, 200, &Value::Object(results)),
                    Some((name, measurement)) => {
                        let work = Work::Measure { name: Some(name), rest, results };
                        let effect = out.perform(Effect::Measure(measurement));
                        self.pending.insert(effect, Pending { id, asked, until, work });
                    }
                }
            }
            (Work::Measure { .. }, EffectResult::Measured(Err(reason))) => {
                respond(out, id, 500, &json!({"error": "measurement_failed", "message": reason}));
            }
            (Work::Proxy | Work::Measure { .. }, _) => {
                respond(
                    out,
                    id,
                    500,
                    &json!({"error": "internal", "message": "an effect of the wrong kind"}),
                );
            }
        }
    }

    /// What is due: requests whose time is up.
    pub(crate) fn handle_time(&mut self, now: Now, out: &mut Outbox) {
        let due = |(id, pending): (&EffectId, &Pending)| pending.until.is_due(now).then_some(*id);
        let due: Vec<EffectId> = self.pending.iter().filter_map(due).collect();
        for effect in due {
            if let Some(pending) = self.pending.remove(&effect) {
                out.push(Output::Cancel { id: effect });
                let body = json!({"error": "timeout", "message": "the request took too long"});
                respond(out, pending.id, 504, &body);
            }
        }
    }

    fn route<C: Crypto>(
        &mut self,
        context: &mut Context<'_, C>,
        id: LocalId,
        request: &LocalRequest,
    ) -> Result<Answer, (u16, &'static str, String)> {
        check_host(request, context.registration)?;
        let path = request.target.split(['?', '#']).next().unwrap_or_default();
        let wanted = match path {
            "/health"
            | "/node/version"
            | "/node/manifest"
            | "/node/integrity"
            | "/node/capabilities"
            | "/benchmark/system"
            | "/connect"
            | "/metrics"
            | "/ready"
            | "/status"
            | page::CSS
            | page::JS => "GET",
            // Other clients find here what they always did: nothing.
            "/" if page::is_wanted(request) => "GET",
            "/benchmark/cpu"
            | "/benchmark/crypto"
            | "/benchmark/memory"
            | "/benchmark/event-loop"
            | "/benchmark/memory-pressure"
            | "/benchmark/all"
            | "/proxy" => "POST",
            _ => return Err((404, "not_found", "there is nothing at this path".to_string())),
        };
        if request.method != wanted {
            return Err((405, "method_not_allowed", ["this path takes ", wanted].concat()));
        }
        if path == "/connect" {
            // Whatever page a client of the data plane comes from: what it may is in its ticket.
            return check_upgrade(request).map(|()| Answer::WebSocket);
        }
        check_origin(request)?;
        if matches!(path, "/" | "/status" | page::CSS | page::JS) {
            check_host(request, None)?;
        }
        let measure = |measurement| (None, VecDeque::new(), measurement);
        let (name, rest, measurement) = match path {
            "/health" => return Ok(Answer::Now(health(context))),
            "/ready" => return Ok(report::ready(context)),
            "/status" => return Ok(Answer::Now(json!(report::status(context)))),
            "/metrics" => return Ok(Answer::Other(metrics::response(context))),
            "/" | page::CSS | page::JS => return Ok(Answer::Other(page::response(path))),
            "/node/version" => return Ok(Answer::Now(version(context))),
            "/node/manifest" => return Ok(Answer::Now(json!(context.manifest))),
            "/node/integrity" => {
                return Ok(Answer::Now(json!(integrity::build(
                    context.identity,
                    context.manifest,
                    context.now,
                    context.rng
                ))));
            }
            "/node/capabilities" => return Ok(Answer::Now(json!(Capabilities::ALL))),
            "/proxy" => return self.proxy(context, id, request).map(|()| Answer::Later),
            "/benchmark/system" => measure(Measurement::System),
            "/benchmark/cpu" => measure(Measurement::Cpu),
            "/benchmark/crypto" => measure(Measurement::Crypto),
            "/benchmark/memory" => measure(Measurement::Memory),
            "/benchmark/event-loop" => measure(Measurement::EventLoop),
            "/benchmark/memory-pressure" => measure(memory_pressure(&request.body)?),
            _ => (
                Some("system"),
                VecDeque::from([
                    ("cpu", Measurement::Cpu),
                    ("crypto", Measurement::Crypto),
                    ("memory", Measurement::Memory),
                    ("event_loop", Measurement::EventLoop),
                ]),
                Measurement::System,
            ),
        };
        if self.is_measuring() {
            return Err((409, "busy", "another measurement is under way".to_string()));
        }
        let work = Work::Measure { name, rest, results: Map::new() };
        self.wait(context, id, Effect::Measure(measurement), work)?;
        Ok(Answer::Later)
    }

    fn proxy<C: Crypto>(
        &mut self,
        context: &mut Context<'_, C>,
        id: LocalId,
        request: &LocalRequest,
    ) -> Result<(), (u16, &'static str, String)> {
        let bad = |message: String| (400, "bad_request", message);
        let body: ProxyBody<'_> =
            serde_json::from_slice(&request.body).map_err(|error| bad(error.to_string()))?;
        let url = body.target_url.ok_or_else(|| bad("target_url is missing".to_string()))?;
        // Text is sent as the text it means, any other JSON as it is written.
        let data = body.body.map(|raw| {
            let text = serde_json::from_str::<String>(raw.get());
            text.unwrap_or_else(|_| raw.get().to_string()).into_bytes()
        });
        let request = guard::Request {
            url: &url,
            method: body.method.as_deref(),
            headers: body.headers.unwrap_or_default().into_iter().collect(),
            body: data,
        };
        let bounds = self.limits.bounds(self.limits.max_response_body);
        let fetch = guard::fetch(request, self.audience, bounds).map_err(|refused| match refused {
            guard::Refused::NotPublic => (403, "forbidden_target", refused.to_string()),
            _ => bad(refused.to_string()),
        })?;
        self.wait(context, id, Effect::Fetch(fetch), Work::Proxy)
    }

    fn wait<C: Crypto>(
        &mut self,
        context: &mut Context<'_, C>,
        id: LocalId,
        effect: Effect,
        work: Work,
    ) -> Result<(), (u16, &'static str, String)> {
        if self.pending.len() >= MAX_LOCAL_REQUESTS {
            return Err((503, "busy", "too many requests are under way".to_string()));
        }
        let until = context.now.deadline(LOCAL_TIMEOUT, Reason::LocalRequest);
        let effect = context.out.perform(effect);
        self.pending.insert(effect, Pending { id, asked: context.now, until, work });
        Ok(())
    }
}

fn memory_pressure(body: &[u8]) -> Result<Measurement, (u16, &'static str, String)> {
    let empty = body.trim_ascii().is_empty();
    let params = if empty { Ok(EvalParams::default()) } else { serde_json::from_slice(body) };
    let params = params.map_err(|error| (400, "bad_request", error.to_string()))?;
    eval::memory_pressure(&params).map_err(|message| (400, "bad_request", message))
}

/// A name in `Host` must be this node's: any other was made to point here by somebody else.
fn check_host(
    request: &LocalRequest,
    registration: Option<&Registration>,
) -> Result<(), (u16, &'static str, String)> {
    let Some(host) = request.header("host").map(host_of) else {
        return Ok(()); // HTTP/1.0, which no browser speaks.
    };
    let own = registration.and_then(|registration| registration.domain.as_deref());
    let is_address = Ipv4Addr::from_str(host).is_ok()
        || host
            .strip_prefix('[')
            .and_then(|h| h.strip_suffix(']'))
            .is_some_and(|h| Ipv6Addr::from_str(h).is_ok());
    if is_address
        || host.eq_ignore_ascii_case("localhost")
        || own.is_some_and(|own| host.eq_ignore_ascii_case(own))
    {
        return Ok(());
    }
    Err((
        421,
        "wrong_host",
        "this API answers to an address, to localhost and to the node's own domain".to_string(),
    ))
}

/// A browser names the page that asks in `Origin`. Whatever comes from another site is not the operator's wish.
fn check_origin(request: &LocalRequest) -> Result<(), (u16, &'static str, String)> {
    let Some(origin) = request.header("origin") else { return Ok(()) };
    let site = origin.split_once("://").map(|(_, rest)| rest);
    if site.is_some() && site == request.header("host") {
        return Ok(());
    }
    Err((403, "foreign_origin", "requests from other sites are refused".to_string()))
}

/// A request for a WebSocket (RFC 6455, 4.2.1).
fn check_upgrade(request: &LocalRequest) -> Result<(), (u16, &'static str, String)> {
    let has = |name: &str, word: &str| {
        let values = request.headers.iter().filter(|(n, _)| n == name);
        values.flat_map(|(_, value)| value.split(',')).any(|value| value.trim().eq_ignore_ascii_case(word))
    };
    if !has("connection", "upgrade") || !has("upgrade", "websocket") {
        return Err((426, "upgrade_required", "this is a WebSocket".to_string()));
    }
    if !has("sec-websocket-version", "13") {
        return Err((426, "upgrade_required", "the WebSocket version is not 13".to_string()));
    }
    match request.header("sec-websocket-key").and_then(base64::decode_array::<16>) {
        Some(_) => Ok(()),
        None => Err((400, "bad_request", "sec-websocket-key is not 16 bytes".to_string())),
    }
}

/// The host of a `Host` value: without the port, with the brackets.
fn host_of(value: &str) -> &str {
    match value.rsplit_once(':') {
        Some((host, port)) if port.bytes().all(|b| b.is_ascii_digit()) => host,
        _ => value,
    }
}

fn health<C: Crypto>(context: &Context<'_, C>) -> Value {
    json!({
        "status": "healthy",
        "registered": context.registration.is_some(),
        "node_id": context.registration.map(|registration| registration.node_id.as_str()),
        "domain": context.registration.and_then(|registration| registration.domain.as_deref()),
        "tunnel": context.tunnel_state(),
        "served": context.control.map(Control::counters),
        "update": context.update(),
        "uptime": context.uptime(),
        "timestamp": iso8601(context.now.unix),
    })
}

fn version<C: Crypto>(context: &Context<'_, C>) -> Value {
    let manifest = context.manifest;
    json!({
        "product": manifest.product, "version": manifest.version, "runtime": "rust",
        "platform": manifest.platform, "commit": manifest.commit, "protocol_version": 1,
        "update": context.update(),
    })
}

/// The answer to `/proxy`. The data stays text: a target's JSON is checked and passed on, never held as a tree, which
/// takes a hundred times its length.
#[derive(Serialize)]
struct Proxied<'a> {
    status: u16,
    #[serde(rename = "statusText")]
    status_text: &'a str,
    headers: JoinedHeaders<'a>,
    data: Data<'a>,
    data_encoding: &'static str,
    meta: Value,
}

#[derive(Serialize)]
#[serde(untagged)]
enum Data<'a> {
    Json(&'a RawValue),
    Text(&'a str),
    Base64(String),
}

fn proxied<'a>(now: Now, asked: Now, response: &'a Response) -> Proxied<'a> {
    let Response { status, reason, headers, body } = response;
    let is_json = headers.iter().any(|(name, value)| {
        name.eq_ignore_ascii_case("content-type") && value.to_ascii_lowercase().contains("json")
    });
    // JSON as JSON, text as text, and anything else as base64, which `data_encoding` then says.
    let text = core::str::from_utf8(body).ok();
    let json: Option<&RawValue> = text.filter(|_| is_json).and_then(|text| serde_json::from_str(text).ok());
    let (data, data_encoding) = match (json, text) {
        (Some(json), _) => (Data::Json(json), "json"),
        (None, Some(text)) => (Data::Text(text), "utf8"),
        (None, None) => (Data::Base64(base64::encode(body)), "base64"),
    };
    let took = now.monotonic.saturating_sub(asked.monotonic);
    let took = u64::try_from(took.as_millis()).unwrap_or(u64::MAX);
    let meta = json!({"processing_ms": took, "timestamp": iso8601(now.unix)});
    Proxied {
        status: *status,
        status_text: reason,
        headers: joined_headers(headers),
        data,
        data_encoding,
        meta,
    }
}

fn fetch_status(error: &FetchError) -> (u16, &'static str) {
    match error.kind {
        FetchErrorKind::Url => (400, "bad_request"),
        FetchErrorKind::Forbidden => (403, "forbidden_target"),
        FetchErrorKind::Timeout => (504, "timeout"),
        FetchErrorKind::Busy => (503, "busy"),
        FetchErrorKind::Resolve
        | FetchErrorKind::Connect
        | FetchErrorKind::Tls
        | FetchErrorKind::Protocol
        | FetchErrorKind::TooLarge
        | FetchErrorKind::Cancelled => (502, "upstream_error"),
    }
}

fn respond(out: &mut Outbox, id: LocalId, status: u16, body: &impl Serialize) {
    let header = |name: &str, value: &str| (name.to_string(), value.to_string());
    let mut headers = Vec::from([
        header("content-type", "application/json"),
        header("cache-control", "no-store"),
        header("x-content-type-options", "nosniff"),
    ]);
    if status == 426 {
        // RFC 9110, 15.5.22.
        headers.extend([header("upgrade", "websocket"), header("sec-websocket-version", "13")]);
    }
    // Plain data serialises.
    let mut body = serde_json::to_vec(body).unwrap_or_default();
    body.push(b'\n');
    out.push(Output::Respond { id, response: LocalResponse { status, headers, body } });
}
