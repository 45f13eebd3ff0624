//! The server's end of one tunnel session, after the handshake: takes the node in, evaluates it, or keeps it attached
//! and asks it to fetch (protocol.md sections 4, 5 and 9).
//!
//! It has the shape of [`Node`](crate::node::Node): feed [`Input`]s with the time, drain [`Output`]s until
//! [`Output::Wait`].

use alloc::boxed::Box;
use alloc::collections::{BTreeMap, BTreeSet, VecDeque};
use alloc::format;
use alloc::string::{String, ToString as _};
use alloc::vec::Vec;
use core::fmt;
use core::time::Duration;

use serde_json::{Value, json};

use super::handshake::Caller;
use super::integrity;
use super::offer::Offer;
use super::streams::StreamTarget;
use crate::crypto::{Crypto, Drbg};
use crate::eval::verdict::{
    MAX_EVENT_LOOP_P99_NS, MIN_CPU_TIME_RATIO, MIN_MEMORY_BYTES, MIN_THROTTLE_RATIO, MIN_WINDOW_RPS,
};
use crate::limits::{EVAL_ACTION_TIMEOUT, HANDSHAKE_TIMEOUT, MAX_MESSAGE, MAX_STREAMS, PROXY_TIMEOUT};
use crate::release::manifest::Manifest;
use crate::text::printable;
use crate::time::{Deadline, Now, Reason};
use crate::tunnel::Mode;
use crate::tunnel::session::Session;
use crate::wire::frame::{FrameBuf, FrameType, MAX_PLAINTEXT};
use crate::wire::message::{
    EvalRequest, EvalResponse, Heartbeat, Hello, JoinReady, Message, ProxyRequest, ProxyResponse, Ready,
    StreamClose, StreamOpen, error, pong_plaintext, stream_data,
};
use crate::wire::{base64, hex};

/// What an evaluation measures, in this order. The fetches go out at once, and only where the terms have a URL.
pub const BATTERY: [&str; 13] = [
    "capabilities",
    "integrity",
    "benchmark_system",
    "benchmark_cpu",
    "benchmark_crypto",
    "benchmark_memory",
    "benchmark_event_loop",
    "benchmark_memory_pressure",
    "benchmark_composite",
    "benchmark_sustained",
    "benchmark_multicore",
    "tunnel_echo",
    "speedtest_fetch",
];

/// Fetches at once (protocol.md section 5).
pub const SPEEDTESTS: usize = 6;

/// Requests that may wait for their answers at once; one more fails at once.
pub const MAX_PENDING: usize = 4096;

/// The payload of the echo action, in bytes.
const ECHO_BYTES: usize = 16 * 1024;

/// For each number of workers, where a short look is enough.
const QUICK_POINT_MS: u32 = 300;

/// How much longer than the node itself the server waits for an answer, so that the node's own timeout is heard.
const GRACE: Duration = Duration::from_secs(5);

/// What this server wants of a node.
#[derive(Clone, Debug)]
pub struct Terms {
    /// The least memory, in bytes.
    pub min_memory_bytes: u64,
    /// The longest turn of the node's scheduler, 99th percentile, in nanoseconds.
    pub max_event_loop_p99_ns: f64,
    /// The least of what a sustained measurement must keep, of a processor that it must have, and of requests a second
    /// in its slowest window.
    pub min_throttle_ratio: f64,
    /// See above.
    pub min_cpu_time_ratio: f64,
    /// See above.
    pub min_window_rps: f64,
    /// How long a sustained measurement is, in milliseconds.
    pub sustained_ms: u32,
    /// How long its windows are, in milliseconds.
    pub window_ms: u32,
    /// Whether a short look is enough where the measurement decides nothing.
    pub quick: bool,
    /// What a node is to fetch.
    pub speedtest_url: Option<String>,
    /// The release that nodes must run, where one is set.
    pub required_manifest: Option<Manifest>,
    /// Whether a node that passes is told so. Without it a good node waits in vain.
    pub admits: bool,
    /// How long an offer to join holds.
    pub offer_lifetime: Duration,
    /// Whether each plaintext of a data frame is told as it is, in [`Event::Plaintext`]: for those who watch the wire.
    pub tells_plaintexts: bool,
}

impl Default for Terms {
    fn default() -> Self {
        Self {
            min_memory_bytes: MIN_MEMORY_BYTES,
            max_event_loop_p99_ns: MAX_EVENT_LOOP_P99_NS,
            min_throttle_ratio: MIN_THROTTLE_RATIO,
            min_cpu_time_ratio: MIN_CPU_TIME_RATIO,
            min_window_rps: MIN_WINDOW_RPS,
            sustained_ms: 30_000,
            window_ms: 5_000,
            quick: false,
            speedtest_url: None,
            required_manifest: None,
            admits: true,
            offer_lifetime: Duration::from_secs(600),
            tells_plaintexts: false,
        }
    }
}

/// Something that happened.
#[derive(Clone, Debug, PartialEq)]
pub enum Input {
    /// Time passed.
    Tick,
    /// A binary WebSocket message arrived.
    Binary(Vec<u8>),
    /// A text WebSocket message arrived: base64 of a frame.
    Text(String),
    /// Ask the node to fetch something; ends in [`Event::Proxied`] with the request's `id`.
    Proxy(ProxyRequest),
    /// Ask the node for an eval action; ends in [`Event::Evaluated`].
    Evaluate {
        /// Which.
        action: String,
        /// Its parameters.
        params: Option<Value>,
    },
    /// Open a stream; what comes of it is told in [`Event::StreamData`], [`Event::StreamError`] and, at its end,
    /// [`Event::StreamClosed`].
    OpenStream {
        /// Names the stream: one that no open stream has.
        stream_id: String,
        /// What it is to lead to.
        target: StreamTarget,
    },
    /// Send bytes on an open stream.
    SendStream {
        /// Which.
        stream_id: String,
        /// At most what fits in a frame as base64.
        data: Vec<u8>,
    },
    /// Close an open stream. Nothing more is told of it.
    CloseStream {
        /// Which.
        stream_id: String,
        /// Why, for the node.
        reason: String,
    },
    /// Send a ping frame; answered by [`Event::Pong`].
    Ping,
    /// Send a data frame of this plaintext: any other message of the protocol, or something that is none.
    Send(FrameBuf),
    /// End the session in good order.
    Close,
}

/// Something to do.
#[derive(Clone, Debug, PartialEq)]
pub enum Output {
    /// Nothing more now.
    Wait(Option<Deadline>),
    /// Send a binary WebSocket message.
    Send(Vec<u8>),
    /// Close the WebSocket; nothing follows.
    Close {
        /// The close code.
        code: u16,
        /// The reason.
        reason: String,
    },
    /// Tell whoever runs the server.
    Event(Event),
}

/// What the server learns.
#[derive(Clone, Debug, PartialEq)]
pub enum Event {
    /// The node introduced itself and was told `ready`.
    Ready(Hello),
    /// The node lives.
    Heartbeat(Heartbeat),
    /// The node pinged, and was answered.
    Pinged,
    /// The node answered a ping.
    Pong,
    /// An eval action came to its end.
    Evaluated {
        /// Which.
        action: String,
        /// The result, or why there is none.
        outcome: Result<Value, String>,
        /// From the request to the answer.
        took: Duration,
    },
    /// The battery is done: what the node missed; nothing missed is a pass.
    Judged {
        /// One sentence for each.
        missed: Vec<String>,
    },
    /// The node was offered to join.
    Offered(Offer),
    /// A proxied request came to its end.
    Proxied {
        /// Of the request.
        id: String,
        /// The response, or why there is none.
        outcome: Result<ProxyResponse, ProxyFailure>,
    },
    /// Bytes of the node on an open stream.
    StreamData {
        /// Which.
        stream_id: String,
        /// The bytes.
        data: Vec<u8>,
    },
    /// The node reports an error of an open stream; [`Event::StreamClosed`] may follow.
    StreamError {
        /// Which.
        stream_id: String,
        /// For programs.
        code: String,
        /// For people.
        message: String,
    },
    /// A stream ended: the node closed it, or it never was.
    StreamClosed {
        /// Which.
        stream_id: String,
        /// Why.
        reason: String,
    },
    /// A message as it stood in its frame; what it leads to follows. Only where the terms want it.
    Plaintext(Vec<u8>),
    /// Any other message of the node.
    Message(Box<Message>),
    /// The node sent something that is not of the protocol; it was told so.
    BadFrame(String),
}

/// Why a proxied request has no response.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ProxyFailure {
    /// The node answered with an error.
    Refused {
        /// Its code.
        code: String,
        /// Its message.
        message: String,
    },
    /// The node did not answer in time.
    TimedOut,
    /// Too many are waiting, or the request is larger than a frame.
    NotSent,
}

impl fmt::Display for ProxyFailure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Refused { code, message } => write!(f, "{}: {}", printable(code), printable(message)),
            Self::TimedOut => f.write_str("the node did not answer in time"),
            Self::NotSent => f.write_str("too many requests are waiting, or this one is too large"),
        }
    }
}

#[derive(Debug)]
struct PendingEval {
    action: String,
    asked: Duration,
    deadline: Deadline,
}

#[derive(Debug)]
enum Phase {
    /// Until `hello`.
    Greeting(Deadline),
    /// Eval mode: the action at this index is under way, perhaps several times.
    Battery { index: usize, waiting: BTreeSet<String>, missed: Vec<String> },
    /// Everything after.
    Attached,
    /// [`Output::Close`] was given.
    Closed,
}

/// The server's end of one session.
pub struct Orchestrator<C: Crypto> {
    crypto: C,
    session: Session<C>,
    caller: Caller,
    terms: Terms,
    rng: Drbg,
    phase: Phase,
    evals: BTreeMap<String, PendingEval>,
    proxied: BTreeMap<String, Deadline>,
    /// No deadline of those above is before this one. There may be thousands of them, and most are never due.
    soonest: Option<Deadline>,
    streams: BTreeSet<String>,
    echo: String,
    outputs: VecDeque<Output>,
}

impl<C: Crypto> fmt::Debug for Orchestrator<C> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Orchestrator")
            .field("session", &self.session)
            .field("phase", &self.phase)
            .finish_non_exhaustive()
    }
}

impl<C: Crypto> Orchestrator<C> {
    /// The server's end of a session that [`accept`](super::handshake::accept) gave, the `handshake_accept` being
    /// sent.
    pub fn new(crypto: C, session: Session<C>, caller: Caller, terms: Terms, rng: Drbg, now: Now) -> Self {
        Self {
            crypto,
            session,
            caller,
            terms,
            rng,
            phase: Phase::Greeting(now.deadline(HANDSHAKE_TIMEOUT, Reason::Ready)),
            evals: BTreeMap::new(),
            proxied: BTreeMap::new(),
            soonest: None,
            streams: BTreeSet::new(),
            echo: String::new(),
            outputs: VecDeque::new(),
        }
    }

    /// Who is at the other end.
    pub fn caller(&self) -> &Caller {
        &self.caller
    }

    /// The session, as both ends derived it.
    pub fn session_id(&self) -> &str {
        self.session.session_id()
    }

    /// Never fails: what a node does wrong is answered on the wire and told in an [`Event`].
    pub fn handle_input(&mut self, now: Now, input: Input) {
        if matches!(self.phase, Phase::Closed) {
            return;
        }
        match input {
            Input::Tick => {}
            Input::Binary(data) => self.receive(now, data),
            Input::Text(text) => match base64::decode(&text) {
                Some(data) if text.len() <= MAX_MESSAGE => self.receive(now, data),
                _ => self.bad_frame(now, "a text message is not base64"),
            },
            Input::Proxy(request) => self.proxy(now, request),
            Input::Evaluate { action, params } => {
                self.evaluate(now, &action, params);
            }
            Input::OpenStream { stream_id, target } => self.open_stream(now, stream_id, &target),
            Input::SendStream { stream_id, data } => self.send_stream(now, stream_id, &data),
            Input::CloseStream { stream_id, reason } => {
                if self.streams.remove(&stream_id) {
                    let close = StreamClose { stream_id, reason: Some(reason) };
                    self.send(FrameType::Data, close.encode(now.unix_seconds()));
                }
            }
            Input::Ping => self.send(FrameType::Ping, FrameBuf::with_capacity(0)),
            Input::Send(plaintext) => self.send(FrameType::Data, plaintext),
            Input::Close => self.close(1000, "server stopped"),
        }
        self.expire(now);
    }

    /// The next thing to do. Drain until [`Output::Wait`].
    #[must_use]
    pub fn poll_output(&mut self) -> Output {
        self.outputs.pop_front().unwrap_or_else(|| Output::Wait(self.deadline()))
    }

    fn deadline(&self) -> Option<Deadline> {
        let greeting = if let Phase::Greeting(deadline) = self.phase { Some(deadline) } else { None };
        Deadline::earlier(greeting, self.soonest)
    }

    fn expire(&mut self, now: Now) {
        match self.phase {
            Phase::Closed => return,
            Phase::Greeting(deadline) if deadline.is_due(now) => return self.close(1008, "no hello"),
            _ => {}
        }
        if !self.soonest.is_some_and(|soonest| soonest.is_due(now)) {
            return;
        }
        let due: Vec<String> = self
            .proxied
            .iter()
            .filter(|(_, deadline)| deadline.is_due(now))
            .map(|(id, _)| id.clone())
            .collect();
        for id in due {
            self.proxied.remove(&id);
            self.event(Event::Proxied { id, outcome: Err(ProxyFailure::TimedOut) });
        }
        let due: Vec<String> =
            self.evals.iter().filter(|(_, e)| e.deadline.is_due(now)).map(|(id, _)| id.clone()).collect();
        for id in due {
            self.evaluated(now, &id, Err("the node did not answer in time".to_string()));
        }
        let evals = self.evals.values().map(|pending| pending.deadline);
        let all = evals.chain(self.proxied.values().copied());
        self.soonest = all.fold(None, |earliest, deadline| Deadline::earlier(earliest, Some(deadline)));
    }

    fn receive(&mut self, now: Now, mut data: Vec<u8>) {
        let opened = match self.session.open(&mut data) {
            Ok((kind, plaintext)) => {
                if self.terms.tells_plaintexts && kind == FrameType::Data {
                    self.outputs.push_back(Output::Event(Event::Plaintext(plaintext.to_vec())));
                }
                Ok((kind, Message::parse(plaintext)))
            }
            Err(error) => Err(error.to_string()),
        };
        match opened {
            Ok((FrameType::Data, Ok(message))) => self.message(now, message),
            Ok((FrameType::Data, Err(error))) => self.bad_frame(now, &error.to_string()),
            Ok((FrameType::Ping, _)) => {
                self.send(FrameType::Pong, pong_plaintext(now.unix_seconds()));
                self.event(Event::Pinged);
            }
            Ok((FrameType::Pong, _)) => self.event(Event::Pong),
            Ok((FrameType::Close, _)) => self.close(1000, "node closed"),
            Ok((FrameType::Handshake | FrameType::Error, _)) => {
                self.bad_frame(now, "a frame type that no session uses");
            }
            Err(error) => self.bad_frame(now, &error),
        }
    }

    fn message(&mut self, now: Now, message: Message) {
        match message {
            Message::Hello(hello) if matches!(self.phase, Phase::Greeting(_)) => self.greet(now, hello),
            _ if matches!(self.phase, Phase::Greeting(_)) => self.close(1008, "hello comes first"),
            Message::Heartbeat(heartbeat) => self.event(Event::Heartbeat(heartbeat)),
            Message::EvalResponse(response) => self.eval_response(now, response),
            Message::ProxyResponse(response) => {
                let id = response.reply_to.clone();
                match self.proxied.remove(&id) {
                    Some(_) => self.event(Event::Proxied { id, outcome: Ok(response) }),
                    None => self.event(Event::Message(Box::new(Message::ProxyResponse(response)))),
                }
            }
            Message::ErrorMessage(report) => {
                let id = report.reply_to.clone().unwrap_or_default();
                if self.proxied.remove(&id).is_some() {
                    let failure = ProxyFailure::Refused { code: report.code, message: report.message };
                    self.event(Event::Proxied { id, outcome: Err(failure) });
                } else if self.evals.contains_key(&id) {
                    self.evaluated(now, &id, Err(format!("{}: {}", report.code, report.message)));
                } else if self.streams.contains(&id) {
                    self.stream_error(id, report.code, report.message);
                } else {
                    self.event(Event::Message(Box::new(Message::ErrorMessage(report))));
                }
            }
            Message::StreamData(data) if self.streams.contains(&data.stream_id) => {
                match base64::decode(&data.data) {
                    Some(bytes) => self.event(Event::StreamData { stream_id: data.stream_id, data: bytes }),
                    None => self.bad_frame(now, "the data of a stream is not base64"),
                }
            }
            Message::StreamClose(close) if self.streams.remove(&close.stream_id) => {
                let reason = close.reason.unwrap_or_default();
                self.event(Event::StreamClosed { stream_id: close.stream_id, reason });
            }
            other => self.event(Event::Message(Box::new(other))),
        }
    }

    fn open_stream(&mut self, now: Now, stream_id: String, target: &StreamTarget) {
        let open = StreamOpen { stream_id: stream_id.clone(), target: target.encode() };
        let plaintext = open.encode(now.unix_seconds());
        let not_sent = if self.streams.contains(&stream_id) {
            // Not told as the end of a stream: that of this name lives on.
            return self.event(Event::StreamError {
                stream_id,
                code: "stream_exists".to_string(),
                message: "a stream of that name is open".to_string(),
            });
        } else if self.streams.len() >= MAX_STREAMS {
            "too many streams are open"
        } else if plaintext.plaintext().len() > MAX_PLAINTEXT {
            "the initial data does not fit in a frame"
        } else {
            self.streams.insert(stream_id);
            return self.send(FrameType::Data, plaintext);
        };
        self.event(Event::StreamClosed { stream_id, reason: not_sent.to_string() });
    }

    fn send_stream(&mut self, now: Now, stream_id: String, data: &[u8]) {
        // One that the node has closed meanwhile; whoever sends learns of that from the event.
        if !self.streams.contains(&stream_id) {
            return;
        }
        let plaintext = stream_data(now.unix_seconds(), &stream_id, data);
        if plaintext.plaintext().len() <= MAX_PLAINTEXT {
            return self.send(FrameType::Data, plaintext);
        }
        let message = format!("{} bytes do not fit in a frame", data.len());
        self.event(Event::StreamError { stream_id, code: "not_sent".to_string(), message });
    }

    fn stream_error(&mut self, stream_id: String, code: String, message: String) {
        // Of such a stream the node knows nothing, so it will not close it.
        let never_was = code == "unsupported_stream_target";
        let error = Event::StreamError { stream_id: stream_id.clone(), code, message };
        self.event(error);
        if never_was {
            self.streams.remove(&stream_id);
            let reason = "the node has no streams of that kind".to_string();
            self.event(Event::StreamClosed { stream_id, reason });
        }
    }

    fn greet(&mut self, now: Now, hello: Hello) {
        let mode = self.caller.mode;
        let ready = Ready { session_id: self.session.session_id().to_string(), mode };
        self.send(FrameType::Data, ready.encode(now.unix_seconds()));
        self.phase = Phase::Attached;
        self.event(Event::Ready(hello));
        if mode == Mode::Eval {
            self.step(now, 0, Vec::new());
        }
    }

    /// Asks for the action at `index`, or judges when there is none.
    fn step(&mut self, now: Now, index: usize, missed: Vec<String>) {
        let Some(action) = BATTERY.get(index) else { return self.judge(now, missed) };
        let (count, params) = match *action {
            "tunnel_echo" => {
                let mut payload = alloc::vec![0; ECHO_BYTES];
                self.rng.fill(&mut payload);
                self.echo = base64::encode(&payload);
                (1, Some(json!({ "payload": self.echo, "nonce": self.random_id() })))
            }
            "benchmark_sustained" => {
                let Terms { sustained_ms, window_ms, .. } = self.terms;
                (1, Some(json!({ "duration_ms": sustained_ms, "window_ms": window_ms })))
            }
            "benchmark_composite" if self.terms.quick => (1, Some(json!({ "quick": true }))),
            "benchmark_multicore" if self.terms.quick => (1, Some(json!({ "duration_ms": QUICK_POINT_MS }))),
            "speedtest_fetch" => {
                let url = self.terms.speedtest_url.as_ref();
                (url.map_or(0, |_| SPEEDTESTS), url.map(|url| json!({ "target_url": url })))
            }
            _ => (1, None),
        };
        let asked = (0..count).map_while(|_| self.evaluate(now, action, params.clone()));
        let waiting: BTreeSet<String> = asked.collect();
        if waiting.is_empty() {
            let not_asked = (count > 0).then(|| format!("{action}: it could not be asked for"));
            let missed = missed.into_iter().chain(not_asked).collect();
            return self.step(now, index.saturating_add(1), missed);
        }
        self.phase = Phase::Battery { index, waiting, missed };
    }

    fn evaluate(&mut self, now: Now, action: &str, params: Option<Value>) -> Option<String> {
        if self.evals.len() >= MAX_PENDING {
            let outcome = Err("too many actions are waiting".to_string());
            self.event(Event::Evaluated { action: action.to_string(), outcome, took: Duration::ZERO });
            return None;
        }
        let id = self.random_id();
        let deadline = now.deadline(eval_timeout(action, params.as_ref()), Reason::EvalAction);
        let params = params.and_then(|params| serde_json::from_value(params).ok());
        let request = EvalRequest { id: id.clone(), action: action.to_string(), params };
        self.send(FrameType::Data, request.encode(now.unix_seconds()));
        let pending = PendingEval { action: action.to_string(), asked: now.monotonic, deadline };
        self.evals.insert(id.clone(), pending);
        self.soonest = Deadline::earlier(self.soonest, Some(deadline));
        Some(id)
    }

    fn eval_response(&mut self, now: Now, response: EvalResponse) {
        let known = self.evals.get(&response.reply_to).is_some_and(|e| e.action == response.action);
        if !known {
            return self.event(Event::Message(Box::new(Message::EvalResponse(response))));
        }
        let outcome = match (response.ok, response.result, response.error) {
            (true, Some(result), _) => Ok(result),
            (true, None, _) => Err("ok without a result".to_string()),
            (false, _, error) => Err(printable(&error.unwrap_or_default())),
        };
        self.evaluated(now, &response.reply_to, outcome);
    }

    fn evaluated(&mut self, now: Now, id: &str, outcome: Result<Value, String>) {
        let Some(pending) = self.evals.remove(id) else { return };
        let took = now.monotonic.saturating_sub(pending.asked);
        let action = pending.action;
        let flaws = self.flaws(now, &action, &outcome);
        self.event(Event::Evaluated { action, outcome, took });
        if let Phase::Battery { index, waiting, missed } = &mut self.phase {
            if waiting.remove(id) {
                missed.extend(flaws);
                if waiting.is_empty() {
                    let (index, missed) = (*index, core::mem::take(missed));
                    self.step(now, index.saturating_add(1), missed);
                }
            }
        }
    }

    /// What is wrong with a result, by this server's terms.
    fn flaws(&self, now: Now, action: &str, outcome: &Result<Value, String>) -> Vec<String> {
        match outcome {
            Ok(result) if action == "benchmark_sustained" => self.sustained_flaws(result),
            Ok(result) => self.flaw(now, action, result).into_iter().collect(),
            Err(error) => alloc::vec![format!("{action}: {error}")],
        }
    }

    fn sustained_flaws(&self, result: &Value) -> Vec<String> {
        let terms = &self.terms;
        let least = [
            ("throttle ratio", "throttle_ratio", terms.min_throttle_ratio),
            ("processor share", "cpu_time_ratio", terms.min_cpu_time_ratio),
            ("slowest window", "node_rps_min_window", terms.min_window_rps),
        ];
        let flaw = |(name, member, least): (&str, &str, f64)| {
            let figure = result[member].as_f64();
            let enough = figure.is_some_and(|figure| figure >= least);
            let figure = figure.map_or_else(|| "no figure".to_string(), |figure| format!("{figure:.3}"));
            (!enough).then(|| format!("{name}: {figure}, at least {least} is required"))
        };
        least.into_iter().filter_map(flaw).collect()
    }

    fn flaw(&self, now: Now, action: &str, result: &Value) -> Option<String> {
        match action {
            "integrity" => {
                let required = self.terms.required_manifest.as_ref();
                let verified =
                    integrity::verify(&self.crypto, result, &self.caller.public_key, required, now);
                verified.err().map(|doubt| format!("integrity: {doubt}"))
            }
            "benchmark_system" => {
                let (least, memory) = (self.terms.min_memory_bytes, result["total_memory_bytes"].as_u64());
                let enough = memory.is_some_and(|memory| memory >= least);
                (!enough)
                    .then(|| format!("memory: {} bytes, {least} are required", memory.unwrap_or_default()))
            }
            "benchmark_event_loop" => {
                let (most, p99) = (self.terms.max_event_loop_p99_ns, result["ns_per_op"]["p99"].as_f64());
                let fast = p99.is_some_and(|p99| p99 <= most);
                (!fast).then(|| format!("event loop: p99 {p99:?} ns, at most {most} are allowed"))
            }
            "tunnel_echo" => {
                let whole = result["echo"].as_str() == Some(self.echo.as_str());
                (!whole).then(|| "tunnel_echo: the payload came back changed".to_string())
            }
            "benchmark_composite" => {
                let serves = result["requests_per_second"].as_f64().is_some_and(|rate| rate > 0.0);
                (!serves).then(|| format!("{action}: no requests"))
            }
            "speedtest_fetch" => (result["ok"] != Value::Bool(true))
                .then(|| format!("{action}: the answer was {}", result["status"])),
            "benchmark_memory_pressure" => {
                (result["success"] != Value::Bool(true)).then(|| format!("{action}: no success"))
            }
            _ => None,
        }
    }

    fn judge(&mut self, now: Now, missed: Vec<String>) {
        self.phase = Phase::Attached;
        let passed = missed.is_empty();
        self.event(Event::Judged { missed });
        if !passed || !self.terms.admits {
            return;
        }
        let offer = Offer {
            join_id: self.random_id(),
            nonce: self.rng.bytes(),
            expires_at: now.unix_seconds().saturating_add(self.terms.offer_lifetime.as_secs()),
            public_key: self.caller.public_key,
        };
        let ready = JoinReady {
            join_id: offer.join_id.clone(),
            alg: "ed25519".to_string(),
            nonce: base64::encode_url(&offer.nonce),
            expires_at: offer.expires_at,
        };
        // The offer is told first: whoever runs the server must know it before the node can take it up.
        self.event(Event::Offered(offer));
        self.send(FrameType::Data, ready.encode(now.unix_seconds()));
    }

    fn proxy(&mut self, now: Now, request: ProxyRequest) {
        let id = request.id.clone();
        let plaintext = request.encode(now.unix_seconds());
        let fits = plaintext.plaintext().len() <= MAX_PLAINTEXT;
        if !fits || self.proxied.len() >= MAX_PENDING || self.proxied.contains_key(&id) {
            return self.event(Event::Proxied { id, outcome: Err(ProxyFailure::NotSent) });
        }
        let deadline = now.deadline(PROXY_TIMEOUT + GRACE, Reason::ProxyRequest);
        self.proxied.insert(id, deadline);
        self.soonest = Deadline::earlier(self.soonest, Some(deadline));
        self.send(FrameType::Data, plaintext);
    }

    fn bad_frame(&mut self, now: Now, reason: &str) {
        self.send(FrameType::Data, error(now.unix_seconds(), None, "decode_failed", reason));
        self.event(Event::BadFrame(reason.to_string()));
    }

    fn close(&mut self, code: u16, reason: &str) {
        self.phase = Phase::Closed;
        self.evals.clear();
        self.proxied.clear();
        self.streams.clear();
        self.outputs.push_back(Output::Close { code, reason: reason.to_string() });
    }

    fn send(&mut self, kind: FrameType, plaintext: FrameBuf) {
        if plaintext.plaintext().len() > MAX_PLAINTEXT {
            return;
        }
        let frame = self.session.seal(kind, plaintext);
        self.outputs.push_back(Output::Send(frame));
    }

    fn event(&mut self, event: Event) {
        self.outputs.push_back(Output::Event(event));
    }

    fn random_id(&mut self) -> String {
        hex::encode(&self.rng.bytes::<16>())
    }
}

/// How long the server waits for an action (protocol.md section 5).
fn eval_timeout(action: &str, params: Option<&Value>) -> Duration {
    match action {
        "benchmark_sustained" => {
            let asked = params.and_then(|params| params["duration_ms"].as_u64()).unwrap_or(60_000);
            Duration::from_millis(asked).saturating_add(Duration::from_secs(15))
        }
        "speedtest_fetch" => Duration::from_secs(20),
        _ => EVAL_ACTION_TIMEOUT,
    }
}

#[cfg(test)]
mod tests {
    use super::super::offer::OfferError;
    use super::*;
    use crate::crypto::identity::Identity;
    use crate::crypto::pure::Pure;
    use crate::peer::handshake::accept;
    use crate::tunnel::handshake::{Claims, Handshake};
    use crate::wire::canonical;
    use crate::wire::message::{Ack, encode_proxy_response};

    const NODE_SEED: [u8; 32] = [1; 32];

    /// What is measured where there is no URL to fetch.
    const WITHOUT_FETCHES: &[&str] = BATTERY.split_at(BATTERY.len() - 1).0;

    /// A hand-made node at the other end: its session, and the time of both.
    struct Pair {
        node: Session<Pure>,
        server: Orchestrator<Pure>,
        now: Now,
        events: Vec<Event>,
        closed: Option<(u16, String)>,
    }

    impl Pair {
        fn new(mode: Mode, terms: Terms) -> Self {
            let now = Now { monotonic: Duration::from_secs(5), unix: Duration::from_secs(1_790_000_000) };
            let identity = Identity::from_seed(Pure, &NODE_SEED);
            let claims = Claims { mode, node_id: Some("n1"), candidate_id: None, release_version: None };
            let (handshake, init) =
                Handshake::start(Pure, &identity, claims, None, &mut Drbg::new([2; 32]), now);
            let key = *identity.public_key();
            let accepted = accept(&Pure, None, &init, |_| Some(key), &mut Drbg::new([3; 32]), now).unwrap();
            let (node, _) = handshake.finish(&accepted.message, Drbg::new([4; 32])).unwrap();
            let server =
                Orchestrator::new(Pure, accepted.session, accepted.caller, terms, Drbg::new([5; 32]), now);
            Self { node, server, now, events: Vec::new(), closed: None }
        }

        /// Gives the server an input and opens what it sends.
        fn input(&mut self, input: Input) -> Vec<(FrameType, Vec<u8>)> {
            self.server.handle_input(self.now, input);
            let mut sent = Vec::new();
            loop {
                match self.server.poll_output() {
                    Output::Wait(_) => return sent,
                    Output::Send(mut frame) => {
                        let (kind, plaintext) = self.node.open(&mut frame).unwrap();
                        sent.push((kind, plaintext.to_vec()));
                    }
                    Output::Close { code, reason } => self.closed = Some((code, reason)),
                    Output::Event(event) => self.events.push(event),
                }
            }
        }

        fn say(&mut self, plaintext: FrameBuf) -> Vec<Message> {
            let frame = self.node.seal(FrameType::Data, plaintext);
            self.input(Input::Binary(frame)).iter().map(|(_, p)| Message::parse(p).unwrap()).collect()
        }

        fn hello(&mut self) -> Vec<Message> {
            let mode = self.server.caller().mode;
            let hello = Hello {
                mode,
                node_id: Some("n1".to_string()),
                candidate_id: None,
                public_key_pem: String::new(),
                version: "1".to_string(),
            };
            self.say(hello.encode(1))
        }

        fn after(&mut self, seconds: u64) {
            self.now.monotonic += Duration::from_secs(seconds);
            self.now.unix += Duration::from_secs(seconds);
        }
    }

    fn integrity_payload(now: Now) -> Value {
        let identity = Identity::from_seed(Pure, &NODE_SEED);
        let mut payload = serde_json::json!({
            "product": "consensus-node", "version": "1", "runtime": "bun", "platform": "linux-x64",
            "node_public_key_pem": identity.public_key_pem(), "timestamp": now.unix_seconds(), "nonce": "00",
            "manifest": Manifest::of_this_release("1", "c", "linux-x64"),
        });
        payload["signature"] =
            Value::from(identity.sign(canonical::without(&payload, "signature").as_bytes()));
        payload
    }

    /// A result that passes, for each action.
    fn good_result(request: &EvalRequest, now: Now) -> Value {
        match request.action.as_str() {
            "integrity" => integrity_payload(now),
            "benchmark_system" => serde_json::json!({ "total_memory_bytes": 1u64 << 30 }),
            "benchmark_event_loop" => serde_json::json!({ "ns_per_op": { "p99": 3000 } }),
            "benchmark_memory_pressure" => serde_json::json!({ "success": true }),
            "benchmark_composite" => serde_json::json!({ "requests_per_second": 5000.5 }),
            "benchmark_sustained" => serde_json::json!({
                "throttle_ratio": 1.01, "cpu_time_ratio": 0.99, "node_rps_min_window": 4000
            }),
            "speedtest_fetch" => serde_json::json!({ "ok": true, "status": 200 }),
            "tunnel_echo" => {
                serde_json::json!({ "ok": true, "echo": request.params.as_ref().unwrap().payload })
            }
            _ => serde_json::json!({}),
        }
    }

    /// Answers every action with what `result` gives, until the server asks for no more; what came last is given.
    fn evaluate(
        pair: &mut Pair,
        result: impl Fn(&EvalRequest, Now) -> Result<Value, String>,
    ) -> (Vec<String>, Vec<Message>) {
        let mut asked = Vec::new();
        let mut answer = pair.hello();
        assert!(matches!(answer.remove(0), Message::Ready(_)));
        while let Some(Message::EvalRequest(_)) = answer.first() {
            let Message::EvalRequest(request) = answer.remove(0) else { unreachable!() };
            asked.push(request.action.clone());
            let outcome = result(&request, pair.now);
            let response = EvalResponse {
                reply_to: request.id,
                action: request.action,
                ok: outcome.is_ok(),
                error: outcome.clone().err(),
                result: outcome.ok(),
            };
            answer.extend(pair.say(response.encode(1)));
        }
        (asked, answer)
    }

    #[test]
    fn a_good_node_is_asked_everything_in_order_and_offered_to_join() {
        let terms = Terms { speedtest_url: Some("http://a.example/".into()), ..Terms::default() };
        let mut pair = Pair::new(Mode::Eval, terms);
        let (asked, last) = evaluate(&mut pair, |request, now| Ok(good_result(request, now)));
        assert_eq!(asked[..BATTERY.len()], BATTERY);
        assert_eq!(asked[BATTERY.len()..], ["speedtest_fetch"; SPEEDTESTS - 1]);
        let [Message::JoinReady(ready)] = &last[..] else { panic!("{last:?}") };
        let Some(Event::Offered(offer)) = pair.events.last().cloned() else { panic!("{:?}", pair.events) };
        assert_eq!(base64::decode(&ready.nonce).unwrap(), offer.nonce);
        let identity = Identity::from_seed(Pure, &NODE_SEED);
        let signature = identity.sign(&offer.nonce);
        let key = *identity.public_key();
        assert_eq!(offer.verify(&Pure, &key, &signature, pair.now), Ok(()));
        assert_eq!(offer.verify(&Pure, &[0; 32], &signature, pair.now), Err(OfferError::WrongKey));
        assert_eq!(
            offer.verify(&Pure, &key, &identity.sign(b"other"), pair.now),
            Err(OfferError::BadSignature)
        );
        pair.after(601);
        assert_eq!(offer.verify(&Pure, &key, &signature, pair.now), Err(OfferError::Expired));
    }

    #[test]
    fn a_node_that_misses_a_threshold_is_asked_to_the_end_and_offered_nothing() {
        type Spoil = fn(&mut Value);
        let spoils: [(&str, Spoil); 9] = [
            ("benchmark_sustained", |v| v["throttle_ratio"] = Value::from(0.849)),
            ("benchmark_sustained", |v| v["cpu_time_ratio"] = Value::from(0.899)),
            ("benchmark_sustained", |v| v["node_rps_min_window"] = Value::from(49.9)),
            ("benchmark_sustained", |v| v["node_rps_min_window"] = Value::Null),
            ("benchmark_composite", |v| v["requests_per_second"] = Value::from(0)),
            ("benchmark_system", |v| v["total_memory_bytes"] = Value::from(1)),
            ("benchmark_event_loop", |v| v["ns_per_op"]["p99"] = Value::from(5.1e7)),
            ("integrity", |v| v["nonce"] = Value::from("ff")),
            ("tunnel_echo", |v| v["echo"] = Value::from("")),
        ];
        for (action, spoil) in spoils {
            let mut pair = Pair::new(Mode::Eval, Terms::default());
            let (asked, last) = evaluate(&mut pair, |request, now| {
                let mut result = good_result(request, now);
                if request.action == action {
                    spoil(&mut result);
                }
                Ok(result)
            });
            assert_eq!(asked, WITHOUT_FETCHES);
            assert!(last.is_empty(), "{action}");
            let Some(Event::Judged { missed }) = pair.events.last() else { panic!() };
            assert_eq!(missed.len(), 1, "{action}: {missed:?}");
        }
    }

    #[test]
    fn a_failed_or_unanswered_action_counts_as_missed() {
        let mut pair = Pair::new(Mode::Eval, Terms::default());
        let (asked, _) = evaluate(&mut pair, |_, _| Err("broken".to_string()));
        assert_eq!(asked, WITHOUT_FETCHES);
        let Some(Event::Judged { missed }) = pair.events.last() else { panic!() };
        assert_eq!(missed.len(), WITHOUT_FETCHES.len());

        let mut pair = Pair::new(Mode::Eval, Terms::default());
        pair.hello();
        pair.after(31);
        let next = pair.input(Input::Tick);
        assert_eq!(next.len(), 1, "the next action is asked for");
        assert!(matches!(&pair.events[1], Event::Evaluated { outcome: Err(_), .. }), "{:?}", pair.events);
    }

    fn request(id: &str) -> ProxyRequest {
        ProxyRequest {
            id: id.to_string(),
            target_url: "http://a/".to_string(),
            method: None,
            headers: None,
            body: None,
            body_encoding: Default::default(),
        }
    }

    #[test]
    fn proxied_requests_are_matched_by_id_in_any_order_and_time_out() {
        let mut pair = Pair::new(Mode::Control, Terms::default());
        pair.hello();
        for id in ["a", "b", "c"] {
            assert_eq!(pair.input(Input::Proxy(request(id))).len(), 1);
        }
        pair.events.clear();
        pair.say(error(1, Some("c"), "proxy_failed", "no"));
        pair.say(encode_proxy_response(Some((1, "a")), 200, "OK", &[], b"body"));
        pair.after(36);
        pair.input(Input::Tick);
        let seen: Vec<_> = pair
            .events
            .iter()
            .map(|event| match event {
                Event::Proxied { id, outcome } => (id.as_str(), outcome.is_ok()),
                other => panic!("{other:?}"),
            })
            .collect();
        assert_eq!(seen, [("c", false), ("a", true), ("b", false)]);
    }

    fn open(pair: &mut Pair, stream_id: &str) -> Vec<Message> {
        let target = StreamTarget::RawTunnel { host: "h".to_string(), port: 1 };
        let sent = pair.input(Input::OpenStream { stream_id: stream_id.to_string(), target });
        sent.iter().map(|(_, plaintext)| Message::parse(plaintext).unwrap()).collect()
    }

    fn send(stream_id: &str, data: &[u8]) -> Input {
        Input::SendStream { stream_id: stream_id.to_string(), data: data.to_vec() }
    }

    fn close(stream_id: &str) -> Input {
        Input::CloseStream { stream_id: stream_id.to_string(), reason: "client closed".to_string() }
    }

    #[test]
    fn a_stream_carries_bytes_both_ways_until_the_node_closes_it() {
        let mut pair = Pair::new(Mode::Control, Terms::default());
        pair.hello();
        let target = r#"{"kind":"raw-tunnel","host":"h","port":1}"#.to_string();
        let opened = StreamOpen { stream_id: "s".to_string(), target };
        assert_eq!(open(&mut pair, "s"), [Message::StreamOpen(opened)]);
        let sent = pair.input(send("s", b"\xffhi"));
        let Message::StreamData(data) = Message::parse(&sent[0].1).unwrap() else { panic!("{sent:?}") };
        assert_eq!((data.stream_id.as_str(), base64::decode(&data.data)), ("s", Some(b"\xffhi".to_vec())));
        pair.events.clear();
        // As this node writes it, and as another may.
        pair.say(stream_data(1, "s", b"one"));
        let other = br#"{"data":"dHdv","stream_id":"s","timestamp":1,"type":"stream_data"}"#;
        pair.say(FrameBuf::from_plaintext(other));
        pair.say(
            StreamClose { stream_id: "s".to_string(), reason: Some("target closed".to_string()) }.encode(1),
        );
        let data = |data: &[u8]| Event::StreamData { stream_id: "s".to_string(), data: data.to_vec() };
        let closed = Event::StreamClosed { stream_id: "s".to_string(), reason: "target closed".to_string() };
        assert_eq!(pair.events, [data(b"one"), data(b"two"), closed]);
        assert!(pair.input(send("s", b"late")).is_empty(), "the stream is gone");
        assert!(pair.input(close("s")).is_empty());
        pair.events.clear();
        pair.say(stream_data(1, "s", b"late"));
        assert!(matches!(pair.events[..], [Event::Message(_)]), "{:?}", pair.events);
    }

    #[test]
    fn a_stream_that_the_server_closes_is_told_of_no_more() {
        let mut pair = Pair::new(Mode::Control, Terms::default());
        pair.hello();
        open(&mut pair, "s");
        let sent = pair.input(close("s"));
        let closed = StreamClose { stream_id: "s".to_string(), reason: Some("client closed".to_string()) };
        assert_eq!(Message::parse(&sent[0].1), Ok(Message::StreamClose(closed.clone())));
        pair.events.clear();
        pair.say(closed.encode(1));
        assert!(matches!(pair.events[..], [Event::Message(_)]), "{:?}", pair.events);
        assert_eq!(open(&mut pair, "s").len(), 1, "the name can be used again");
    }

    #[test]
    fn what_goes_wrong_with_a_stream_is_told_by_its_name() {
        let mut pair = Pair::new(Mode::Control, Terms::default());
        pair.hello();
        open(&mut pair, "s");
        pair.events.clear();
        pair.say(error(1, Some("s"), "raw_tunnel_failed", "no route"));
        assert!(open(&mut pair, "s").is_empty());
        assert!(pair.input(send("s", &alloc::vec![0; MAX_MESSAGE])).is_empty());
        pair.say(error(1, Some("s"), "unsupported_stream_target", "no"));
        let seen: Vec<_> = pair
            .events
            .iter()
            .map(|event| match event {
                Event::StreamError { code, .. } => code.as_str(),
                Event::StreamClosed { .. } => "closed",
                other => panic!("{other:?}"),
            })
            .collect();
        assert_eq!(
            seen,
            ["raw_tunnel_failed", "stream_exists", "not_sent", "unsupported_stream_target", "closed"]
        );
    }

    #[test]
    fn streams_are_bounded() {
        let mut pair = Pair::new(Mode::Control, Terms::default());
        pair.hello();
        for number in 0..MAX_STREAMS {
            assert_eq!(open(&mut pair, &number.to_string()).len(), 1);
        }
        assert!(open(&mut pair, "more").is_empty());
        assert!(matches!(pair.events.last(), Some(Event::StreamClosed { .. })));
        pair.input(close("0"));
        assert_eq!(open(&mut pair, "more").len(), 1);
    }

    #[test]
    fn a_deadline_that_is_met_does_not_hide_the_next() {
        let mut pair = Pair::new(Mode::Control, Terms::default());
        pair.hello();
        pair.input(Input::Proxy(request("a")));
        pair.after(10);
        pair.input(Input::Proxy(request("b")));
        pair.say(encode_proxy_response(Some((1, "a")), 200, "OK", &[], b""));
        let deadline = |pair: &Pair| pair.server.deadline().map(|deadline| deadline.at - pair.now.monotonic);
        // The first may still be named, and is found to be met then.
        pair.after(25);
        pair.input(Input::Tick);
        assert_eq!(deadline(&pair), Some(Duration::from_secs(10)));
        pair.after(10);
        pair.input(Input::Tick);
        assert_eq!(deadline(&pair), None);
        assert!(matches!(pair.events.last(), Some(Event::Proxied { outcome: Err(_), .. })));
    }

    #[test]
    fn pings_are_answered_and_bad_frames_are_told_without_ending_the_session() {
        let mut pair = Pair::new(Mode::Control, Terms::default());
        pair.hello();
        let ping = pair.node.seal(FrameType::Ping, FrameBuf::with_capacity(0));
        let again = ping.clone();
        let pong = pair.input(Input::Binary(ping));
        assert_eq!(pong.len(), 1);
        assert_eq!(pong[0].0, FrameType::Pong);
        for input in [
            Input::Binary(again),
            Input::Binary(Vec::new()),
            Input::Text("?".to_string()),
            Input::Text(base64::encode(b"no frame")),
        ] {
            let answer = pair.input(input);
            assert!(String::from_utf8_lossy(&answer[0].1).contains("decode_failed"));
            assert!(matches!(pair.events.last(), Some(Event::BadFrame(_))));
        }
        assert_eq!(pair.closed, None);
        let close = pair.node.seal(FrameType::Close, FrameBuf::with_capacity(0));
        pair.input(Input::Binary(close));
        assert_eq!(pair.closed.as_ref().map(|(code, _)| *code), Some(1000));
        assert!(pair.input(Input::Ping).is_empty(), "nothing is sent after the close");
    }

    #[test]
    fn a_node_that_does_not_introduce_itself_is_let_go() {
        let mut pair = Pair::new(Mode::Control, Terms::default());
        pair.after(11);
        pair.input(Input::Tick);
        assert_eq!(pair.closed.as_ref().map(|(code, _)| *code), Some(1008));
        let mut pair = Pair::new(Mode::Control, Terms::default());
        pair.say(Ack { reply_to: "x".to_string() }.encode(1));
        assert_eq!(pair.closed.as_ref().map(|(code, _)| *code), Some(1008));
    }
}
