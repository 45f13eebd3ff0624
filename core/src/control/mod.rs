//! The control session (protocol.md section 9): heartbeats, requests to proxy, streams, and the clients of the data
//! plane.

mod clients;
mod fetching;
mod flow;
mod public;
mod raw;
mod sessions;
mod streams;

use alloc::collections::BTreeMap;
use alloc::string::{String, ToString as _};
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::time::Duration;

pub(crate) use self::fetching::explain;

use self::clients::Clients;
use self::fetching::{Asker, Proxied, Wanted};
use self::flow::{Flow, Source};
use self::public::PublicTunnel;
use self::raw::Sockets;
use self::streams::{Stream, Streams, Target};
use crate::counters::{Counters, Latency};
use crate::crypto::identity::Identity;
use crate::crypto::{Crypto, Drbg};
use crate::data_plane::replay::{Before, Spent};
use crate::event::Event;
use crate::holdings::Holdings;
use crate::io::{Audience, EffectId};
use crate::limits::{HEARTBEAT_INTERVAL, Limits, MAX_STREAM_BODY, MAX_TUNNEL_BODY};
use crate::outbox::Outbox;
use crate::release::manifest::Capabilities;
use crate::state::Registration;
use crate::time::{Deadline, Now, Reason};
use crate::tunnel::connection::Tunnel;
use crate::update::directed::Active;
use crate::wire::base64;
use crate::wire::frame::FrameBuf;
use crate::wire::message::{self, Heartbeat, ProxyRequest, StreamClose, StreamData, StreamOpen, decode_body};

/// Why a stream ends whose target has ended in good order.
const TARGET_CLOSED: &str = "target closed";

/// Why nothing new is taken on.
const DRAINING: &str = "this node restarts for an update: ask again in a minute";

/// What the control session needs of the node that has it.
pub(crate) struct Context<'a, C: Crypto> {
    pub(crate) now: Now,
    pub(crate) crypto: &'a C,
    pub(crate) identity: &'a Arc<Identity<C>>,
    pub(crate) rng: &'a mut Drbg,
    pub(crate) out: &'a mut Outbox,
    pub(crate) tunnel: &'a mut Tunnel<C>,
}

impl<C: Crypto> Context<'_, C> {
    fn seconds(&self) -> u64 {
        self.now.unix_seconds()
    }

    /// Sends a message, if there is a session.
    fn send(&mut self, plaintext: FrameBuf) {
        self.tunnel.send(self.out, plaintext);
    }
}

/// The control session's own state. It lives as long as the node; [`Control::stop`] ends what belongs to one
/// session.
#[derive(Debug)]
pub(crate) struct Control<C: Crypto> {
    node_id: Arc<str>,
    issuer_key: Option<[u8; 32]>,
    audience: Audience,
    limits: Limits,
    started: Now,
    heartbeat: Option<Deadline>,
    proxied: BTreeMap<EffectId, Proxied<C>>,
    /// Bytes of the bodies of requests under way.
    request_bytes: usize,
    streams: Streams,
    sockets: Sockets,
    tunnels: BTreeMap<String, PublicTunnel>,
    clients: Clients<C>,
    flow: Flow,
    counters: Counters,
    latency: Latency,
    draining: bool,
}

impl<C: Crypto> Control<C> {
    pub(crate) fn new(
        registration: Option<&Registration>,
        audience: Audience,
        limits: Limits,
        before: Before,
        started: Now,
    ) -> Self {
        let spent = Spent::new(started, before);
        Self {
            node_id: registration.map_or("", |registration| &registration.node_id).into(),
            issuer_key: registration.and_then(Registration::server_key),
            audience,
            started,
            heartbeat: None,
            proxied: BTreeMap::new(),
            request_bytes: 0,
            streams: Streams::default(),
            sockets: Sockets::default(),
            tunnels: BTreeMap::new(),
            clients: Clients::new(spent, limits.max_inits, started),
            limits,
            flow: Flow::default(),
            counters: Counters::default(),
            latency: Latency::default(),
            draining: false,
        }
    }

    /// The sizes of its queues and tables.
    pub(crate) fn holdings(&self) -> Holdings {
        let (sockets, socket_bytes) = self.sockets.held();
        let (jobs, job_bytes) = self.clients.jobs_held();
        Holdings {
            outputs: 0,
            requests: self.proxied.len(),
            request_bytes: self.request_bytes,
            streams: self.streams.len(),
            ended_streams: self.streams.ended(),
            sockets,
            socket_bytes,
            public_tunnels: self.tunnels.len(),
            waiting: self.flow.len(),
            clients: self.clients.len(),
            deadlines: self.clients.deadlines(),
            jobs,
            job_bytes,
            spent_tickets: self.clients.spent().len(),
            events: 0,
            samples: 0,
        }
    }

    pub(crate) const fn counters(&self) -> &Counters {
        &self.counters
    }

    pub(crate) const fn latency(&self) -> &Latency {
        &self.latency
    }

    /// The slowest request since this was last asked for.
    pub(crate) fn take_slowest(&mut self) -> Duration {
        self.latency.take_slowest()
    }

    pub(crate) const fn limits(&self) -> &Limits {
        &self.limits
    }

    /// Requests and streams under way, data-plane clients at the local API among these.
    pub(crate) fn under_way(&self) -> Active {
        Active { requests: self.proxied.len(), streams: self.streams.len() + self.clients.locals() }
    }

    /// Takes nothing new on, or again: what runs may end.
    pub(crate) fn drain(&mut self, draining: bool) {
        self.draining = draining;
    }

    /// What runs for others. A proxy session without a request waits for nothing.
    pub(crate) fn active(&self) -> Active {
        let streams = self.streams.active() + self.clients.locals();
        Active { requests: self.proxied.len(), streams }
    }

    #[cfg(any(test, feature = "fuzzing"))]
    pub(crate) fn stream_names(&self) -> alloc::collections::BTreeSet<String> {
        self.streams.names()
    }

    /// What a process that starts after this one must know of its tickets.
    pub(crate) fn spent_file(&self, now: Now) -> Vec<u8> {
        self.clients.spent().file(now)
    }

    /// The session is up: the first heartbeat goes out at once.
    pub(crate) fn start(&mut self, context: &mut Context<'_, C>) {
        self.clients.hear_time(context.tunnel.server_seconds(), context.now);
        self.heartbeat(context);
    }

    /// The session is gone, and with it everybody who waited for an answer on it. Clients at the local API stay.
    pub(crate) fn stop(&mut self, context: &mut Context<'_, C>) {
        self.heartbeat = None;
        self.flow.clear();
        self.tunnels.clear();
        for stream in self.streams.clear().into_values() {
            match stream {
                Stream::RawTunnel(socket) => self.drop_raw(context, socket),
                Stream::DataPlane(client) => self.forget_client(context, client),
                Stream::ProxySession(_) | Stream::Owner { .. } | Stream::Visitor { .. } => {}
            }
        }
        let of_session =
            |(effect, proxied): (&EffectId, &Proxied<C>)| proxied.is_of_session().then_some(*effect);
        let ended: Vec<EffectId> = self.proxied.iter().filter_map(of_session).collect();
        for effect in ended {
            self.cancel(context, effect);
        }
    }

    /// The node stops: clients at the local API go as well.
    pub(crate) fn stop_for_good(&mut self, context: &mut Context<'_, C>) {
        self.stop(context);
        self.stop_local_clients(context);
    }

    pub(crate) fn deadline(&self) -> Option<Deadline> {
        // Every request has the same time, so the oldest, which has the lowest id, is the first to be due.
        let oldest = self.proxied.first_key_value().map(|(_, proxied)| proxied.until);
        Deadline::earlier(Deadline::earlier(self.heartbeat, oldest), self.clients.deadline())
    }

    /// Whether the effect is one of this machine's.
    pub(crate) fn owns(&self, effect: EffectId) -> bool {
        self.proxied.contains_key(&effect)
    }

    /// The server wants something fetched.
    pub(crate) fn handle_proxy_request(&mut self, context: &mut Context<'_, C>, request: ProxyRequest) {
        let ProxyRequest { id, target_url, method, headers, body, body_encoding } = request;
        let asker = Asker::Tunnel { reply_to: id };
        if self.draining {
            return self.fail(context, asker, None, DRAINING);
        }
        match decode_body(body.map(Into::into), body_encoding, self.limits.max_request_body) {
            Ok(body) => {
                let headers = headers.unwrap_or_default().into_iter().collect();
                let wanted = Wanted { url: &target_url, method: method.as_deref(), headers, body };
                self.fetch(context, asker, wanted, MAX_TUNNEL_BODY);
            }
            Err(reason) => self.fail(context, asker, None, &reason),
        }
    }

    /// The server opens a stream.
    pub(crate) fn handle_stream_open(&mut self, context: &mut Context<'_, C>, open: StreamOpen) {
        let StreamOpen { stream_id, target } = open;
        // Before the target is looked at: whoever is told that a target is unknown takes the stream for closed.
        if self.streams.contains(&stream_id) {
            let text = "a stream of that name is open";
            return context.send(message::error(context.seconds(), Some(&stream_id), "stream_exists", text));
        }
        let Some(target) = Target::parse(&target) else {
            let text = "this release has no streams of that kind";
            context.out.event(Event::Unsupported { what: ["a stream: ", text].concat() });
            let answer =
                message::error(context.seconds(), Some(&stream_id), "unsupported_stream_target", text);
            self.streams.refuse(&stream_id);
            return context.send(answer);
        };
        if self.draining {
            context.send(message::error(context.seconds(), Some(&stream_id), "node_draining", DRAINING));
            return self.close_stream(context, &stream_id, DRAINING);
        }
        if self.streams.len() + self.clients.locals() >= self.limits.max_streams {
            self.over_limit(context.out, "max-streams");
            let text = "as many streams are open as this node takes";
            context.send(message::error(context.seconds(), Some(&stream_id), "too_many_streams", text));
            return self.close_stream(context, &stream_id, text);
        }
        self.counters.streams += 1;
        match target {
            Target::ProxySession => {
                self.streams.insert(stream_id, Stream::ProxySession(Default::default()));
            }
            Target::DataPlane => {
                let client = self.client_on_stream(context.now, &stream_id);
                self.streams.insert(stream_id, Stream::DataPlane(client));
            }
            Target::RawTunnel { host, port } => self.open_raw(context, stream_id, &host, port),
            Target::Owner { tunnel_id } => self.open_owner(context, stream_id, tunnel_id),
            Target::Visitor { tunnel_id, initial_data } => {
                self.open_visitor(context, stream_id, tunnel_id, initial_data.as_deref());
            }
        }
    }

    /// Bytes of a stream.
    pub(crate) fn handle_stream_data(&mut self, context: &mut Context<'_, C>, data: StreamData) {
        let StreamData { stream_id, data: text, .. } = data;
        let mut data = Vec::new();
        if !base64::decode_into(&text, &mut data) {
            let text = "the data of a stream is not base64";
            return context.send(message::error(context.seconds(), Some(&stream_id), "decode_failed", text));
        }
        drop(text);
        match self.streams.get(&stream_id) {
            None if self.streams.has_ended(&stream_id) => {}
            // The deployed server can send data before the open.
            None | Some(Stream::ProxySession(_)) => self.session_datum(context, stream_id, &data),
            Some(Stream::DataPlane(client)) => {
                let client = *client;
                self.handle_client(context, client, data);
            }
            Some(Stream::RawTunnel(socket)) => {
                let socket = *socket;
                self.send_raw(context, socket, data);
            }
            Some(Stream::Owner { tunnel_id }) => {
                let tunnel_id = tunnel_id.clone();
                self.relay_owner(context, &stream_id, &tunnel_id, &data);
            }
            Some(Stream::Visitor { tunnel_id, number }) => {
                let (tunnel_id, number) = (tunnel_id.clone(), *number);
                self.relay_visitor(context, &tunnel_id, number, &data);
            }
        }
    }

    /// The server closes a stream: what is under way for it is wanted by nobody.
    pub(crate) fn handle_stream_close(&mut self, context: &mut Context<'_, C>, close: &StreamClose) {
        match self.streams.remove(&close.stream_id) {
            None => {}
            Some(Stream::ProxySession(fetches)) => {
                for effect in fetches {
                    self.cancel(context, effect);
                }
            }
            Some(Stream::DataPlane(client)) => self.forget_client(context, client),
            Some(Stream::RawTunnel(socket)) => self.drop_raw(context, socket),
            Some(Stream::Owner { tunnel_id }) => self.drop_owner(context, &tunnel_id),
            Some(Stream::Visitor { tunnel_id, number }) => self.drop_visitor(context, &tunnel_id, number),
        }
    }

    /// The transport took more of what was given to it: whoever waited for that goes on.
    pub(crate) fn handle_link_sent(&mut self, context: &mut Context<'_, C>) {
        while let Some(source) = self.flow.pop(context.tunnel.taken()) {
            if let Source::Socket(socket) = source {
                self.read_more(context, socket);
            }
        }
        self.hold(context);
    }

    fn hold(&self, context: &mut Context<'_, C>) {
        if let Some(hold) = self.flow.hold() {
            context.tunnel.hold(context.now, context.out, hold);
        }
    }

    /// What is due: a heartbeat, requests that took too long, clients that do not go on.
    pub(crate) fn handle_time(&mut self, context: &mut Context<'_, C>) {
        if self.heartbeat.is_some_and(|heartbeat| heartbeat.is_due(context.now)) {
            self.heartbeat(context);
        }
        self.fail_overdue(context);
        self.close_slow_clients(context);
    }

    fn heartbeat(&mut self, context: &mut Context<'_, C>) {
        let now = context.now;
        self.heartbeat = Some(now.deadline(HEARTBEAT_INTERVAL, Reason::Heartbeat));
        let (active_requests, active_streams) = (self.proxied.len(), self.streams.len());
        context.out.event(Event::Heartbeat { active_requests, active_streams });
        let heartbeat = Heartbeat {
            node_id: self.node_id.to_string(),
            uptime_seconds: now.monotonic.saturating_sub(self.started.monotonic).as_secs(),
            capabilities: Capabilities::ALL,
            active_requests,
            active_streams,
        };
        context.send(heartbeat.encode(now.unix_seconds()));
    }

    /// A datum of a proxy session: one request.
    fn session_datum(&mut self, context: &mut Context<'_, C>, stream_id: String, data: &[u8]) {
        match sessions::request(data, self.limits.max_request_body) {
            Ok(request) => {
                let asker = Asker::Session { stream_id, id: request.id };
                if self.draining {
                    return self.fail(context, asker, None, DRAINING);
                }
                let (method, headers, body) = (request.method.as_deref(), request.headers, request.body);
                let wanted = Wanted { url: &request.url, method, headers, body };
                self.fetch(context, asker, wanted, MAX_STREAM_BODY);
            }
            Err((id, reason)) => {
                let answer = sessions::error(id.as_deref(), "invalid_request", &reason);
                context.send(message::stream_data(context.seconds(), &stream_id, &answer));
            }
        }
    }

    /// The node ends a stream.
    fn close_stream(&mut self, context: &mut Context<'_, C>, stream_id: &str, reason: &str) {
        self.streams.remove(stream_id);
        self.streams.refuse(stream_id);
        let close = StreamClose { stream_id: stream_id.to_string(), reason: Some(reason.to_string()) };
        context.send(close.encode(context.now.unix_seconds()));
    }

    /// Counts what a limit turned away, and tells the operator now and then.
    fn over_limit(&mut self, out: &mut Outbox, limit: &str) {
        self.counters.over_limit += 1;
        if self.counters.over_limit.is_power_of_two() {
            out.event(Event::OverLimit { limit: limit.to_string(), count: self.counters.over_limit });
        }
    }
}
