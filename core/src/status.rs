//! What `GET /status` of the local API says, and what is made of it: `consensus-node status`, and the status page.
//!
//! The answer is read as leniently as it can be, because the node that gives it may be of another release.

use alloc::boxed::Box;
use alloc::format;
use alloc::string::{String, ToString as _};
use alloc::vec::Vec;
use core::fmt;
use core::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::control::explain;
use crate::event::Level;
use crate::guard::Target;
use crate::io::{Audience, Bounds, Fetch, FetchError, Outcome, Response};
use crate::text::printable;

/// How long the local API may take.
const PATIENCE: Duration = Duration::from_secs(5);

/// The largest answer that is taken; real ones are some 10 KiB.
const MAX_ANSWER: usize = 1024 * 1024;

/// The last minute of [`Samples`].
const MINUTE: u64 = 60;

/// How it stands with a node, in a word.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum State {
    /// Registered, and connected to the network.
    Serving,
    /// Takes nothing new on, because another release is installed.
    Updating,
    /// Registered, and on its way to the network.
    Connecting,
    /// Registered, and serves its local API alone: another process may have the tunnel.
    LocalOnly,
    /// The network does not know it.
    NotRegistered,
    /// The operator asked it to stop.
    Stopping,
    /// A word that this release does not know.
    #[default]
    #[serde(other)]
    Unknown,
}

impl State {
    /// Whether it serves the network: what `/ready` says.
    #[must_use]
    pub const fn is_ready(self) -> bool {
        matches!(self, Self::Serving)
    }

    /// The word.
    #[must_use]
    pub const fn word(self) -> &'static str {
        match self {
            Self::Serving => "serving",
            Self::Updating => "updating",
            Self::Connecting => "connecting",
            Self::LocalOnly => "local API alone",
            Self::NotRegistered => "not registered",
            Self::Stopping => "stopping",
            Self::Unknown => "unknown",
        }
    }

    /// Why a node of this state is not ready, and what to do; nothing of one that is.
    #[must_use]
    pub const fn explain(self) -> Option<&'static str> {
        Some(match self {
            Self::Serving => return None,
            Self::Updating => "another release is being installed: this takes a minute",
            Self::Connecting => "there is no session with the network: its log says why",
            Self::LocalOnly => "this process serves the local API alone: `run` serves the network",
            Self::NotRegistered => "this node is not registered: run `setup`",
            Self::Stopping => "this node was asked to stop",
            Self::Unknown => "the node says a state that this release does not know",
        })
    }

    /// How `status` ends for it.
    #[must_use]
    pub const fn outcome(self) -> Outcome {
        match self {
            Self::Serving | Self::Updating | Self::LocalOnly => Outcome::Done,
            Self::Connecting => Outcome::Unreachable,
            Self::NotRegistered => Outcome::NotRegistered,
            Self::Stopping | Self::Unknown => Outcome::Internal,
        }
    }
}

/// All of it.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Status {
    /// In a word.
    pub state: State,
    /// Why it is not ready, and what to do.
    pub advice: Option<String>,
    /// Its name in the network.
    pub node_id: Option<String>,
    /// Its own domain name.
    pub domain: Option<String>,
    /// Of the release that runs.
    pub version: String,
    /// Such as `linux-x64`.
    pub platform: String,
    /// Seconds since the start of the process.
    pub uptime: u64,
    /// ISO 8601.
    pub timestamp: String,
    /// Of a node that has one.
    pub tunnel: Option<TunnelStatus>,
    /// Of a node that serves others.
    pub served: Option<Served>,
    /// As `/health` says it, of a node that the network can direct.
    pub update: Option<Value>,
    /// Warnings since the start.
    pub warnings: u64,
    /// Errors since the start.
    pub errors: u64,
    /// The last ones, the latest at the end.
    pub events: Vec<Told>,
    /// Figures of the last minutes.
    pub samples: Samples,
}

/// The tunnel since the start of the process.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct TunnelStatus {
    /// Whether there is a session.
    pub connected: bool,
    /// For how many seconds, where there is one.
    pub since: Option<u64>,
    /// How many there were.
    pub sessions: u64,
    /// How many connections were tried.
    pub attempts: u64,
    /// Bytes that came.
    pub received_bytes: u64,
    /// Bytes that went.
    pub sent_bytes: u64,
}

/// What was done for others since the start of the process, and what is under way. The counts are those of `/health`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Served {
    /// Requests fetched.
    pub requests: u64,
    /// Those of them, and those that were not fetched, that ended in an error.
    pub failed: u64,
    /// Bytes of response bodies passed on.
    pub bytes: u64,
    /// Streams opened.
    pub streams: u64,
    /// Data-plane connections.
    pub connections: u64,
    /// Those of them that were turned away.
    pub refused: u64,
    /// What a limit turned away.
    pub over_limit: u64,
    /// Requests under way, and how many may be.
    pub active_requests: usize,
    /// See there.
    pub max_requests: usize,
    /// Streams and connections at `/connect` that are open, and how many may be.
    pub active_streams: usize,
    /// See there.
    pub max_streams: usize,
    /// Half of the requests took no longer, in milliseconds; one of a few bounds. Absent where there were none, or it is
    /// above the last bound.
    pub half_within_ms: Option<u64>,
    /// The same of 95 in a hundred.
    pub most_within_ms: Option<u64>,
}

/// An event that was told.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Told {
    /// ISO 8601; of the last one.
    pub at: String,
    /// How loud.
    pub level: Level,
    /// Which part of the node spoke.
    pub scope: String,
    /// Its name in the log.
    pub event: String,
    /// In words; of the last one.
    pub text: String,
    /// How many of its kind there were in a row.
    pub count: u64,
}

/// Figures step by step, the latest at the end; a column for each, of the same length.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Samples {
    /// How long a step is.
    pub step_seconds: u64,
    /// How many there were since the start.
    pub steps: u64,
    /// Requests fetched.
    pub requests: Vec<u64>,
    /// Requests that failed.
    pub failed: Vec<u64>,
    /// Bytes of response bodies passed on.
    pub bytes: Vec<u64>,
    /// Bytes through the tunnel, both ways.
    pub tunnel_bytes: Vec<u64>,
    /// Requests that ended.
    pub ended: Vec<u64>,
    /// How long these took together, in microseconds.
    pub took_us: Vec<u64>,
    /// How long the slowest took.
    pub slowest_us: Vec<u64>,
    /// Requests under way at the end of the step.
    pub active_requests: Vec<u64>,
    /// Streams open at the end of the step.
    pub active_streams: Vec<u64>,
}

impl Samples {
    fn last_minute(&self, column: &[u64]) -> u64 {
        let steps = usize::try_from(MINUTE / self.step_seconds.max(1)).unwrap_or(usize::MAX);
        column.iter().rev().take(steps).fold(0, |all, step| all.saturating_add(*step))
    }
}

/// The question, for the local API at that `HOST:PORT`.
///
/// # Errors
/// No host and port.
pub fn question(authority: &str) -> Result<Fetch, String> {
    let target =
        Target::parse(&format!("http://{authority}/status")).map_err(|refused| refused.to_string())?;
    Ok(Fetch {
        audience: Audience::Operator,
        method: "GET".to_string(),
        target,
        headers: Vec::from([("accept".to_string(), "application/json".to_string())]),
        body: None,
        bounds: Bounds {
            connect: PATIENCE,
            first_byte: PATIENCE,
            whole: PATIENCE,
            max_head: 16 * 1024,
            max_body: MAX_ANSWER,
        },
    })
}

/// What came of the question.
#[derive(Clone, Debug, PartialEq)]
pub enum Found {
    /// A node.
    Node(Box<Status>),
    /// Nobody answers.
    Nobody(String),
    /// Somebody does who is no node of this kind.
    Stranger(String),
}

impl Found {
    /// Reads the answer, or what there was in its place.
    #[must_use]
    pub fn of(answer: Result<Response, FetchError>) -> Self {
        let response = match answer {
            Ok(response) => response,
            Err(error) => return Self::Nobody(explain(&error)),
        };
        if response.status != 200 {
            return Self::Stranger(format!("the answer has status {}", response.status));
        }
        match serde_json::from_slice::<Status>(&response.body) {
            // Every member may be missing, but a node says its release.
            Ok(status) if !status.version.is_empty() => Self::Node(Box::new(status)),
            Ok(_) => Self::Stranger("the answer is no node's".to_string()),
            Err(error) => Self::Stranger(printable(&format!("the answer cannot be read: {error}"))),
        }
    }

    /// How `status` ends.
    #[must_use]
    pub const fn outcome(&self) -> Outcome {
        match self {
            Self::Node(status) => status.state.outcome(),
            Self::Nobody(_) | Self::Stranger(_) => Outcome::Internal,
        }
    }

    /// Why this is not the node of that name, connected to the network, in one line; `None` where it is.
    #[must_use]
    pub fn not_ready(&self, node_id: &str) -> Option<String> {
        match self {
            Self::Node(status) => match &status.node_id {
                Some(other) if other != node_id => {
                    Some(format!("another node, {}, answers", printable(other)))
                }
                _ => status.state.explain().map(str::to_string),
            },
            Self::Nobody(reason) => Some(format!("no node answers ({reason})")),
            Self::Stranger(reason) => Some(format!("what answers is no node of this release ({reason})")),
        }
    }

    /// For people: some ten lines. `program` is what the operator calls.
    #[must_use]
    pub fn to_text(&self, authority: &str, program: &str) -> String {
        match self {
            Self::Node(status) => status.to_string(),
            Self::Nobody(reason) => format!(
                "nothing answers at http://{authority} ({reason})\n\
                 Start the node with `{program} run`, or say with --listen where its local API is; \
                 `{program} service status` says whether a supervisor keeps it.\n"
            ),
            Self::Stranger(reason) => format!(
                "what answers at http://{authority} is no node of this release ({reason})\n\
                 Say with --listen where the node's local API is; a node of an older release has /health alone.\n"
            ),
        }
    }

    /// For programs: what the node said, or `state` and `message` alone.
    #[must_use]
    pub fn to_json(&self) -> Value {
        match self {
            Self::Node(status) => json!(status),
            Self::Nobody(reason) => json!({"state": "no_answer", "message": reason}),
            Self::Stranger(reason) => json!({"state": "no_node", "message": reason}),
        }
    }
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let line = |f: &mut fmt::Formatter<'_>, name: &str, text: &str| writeln!(f, "{name:<12}  {text}");
        let name = self.node_id.as_deref().map_or("no name yet".to_string(), printable);
        let domain =
            self.domain.as_deref().map(|domain| format!(" at {}", printable(domain))).unwrap_or_default();
        line(f, "state", &format!("{}, {name}{domain}", self.state.word()))?;
        if let Some(advice) = self.advice.as_deref().or(self.state.explain()) {
            line(f, "", &printable(advice))?;
        }
        let (version, platform) = (printable(&self.version), printable(&self.platform));
        line(f, "release", &format!("{version} ({platform}), up {}", span(self.uptime)))?;
        if let Some(tunnel) = &self.tunnel {
            let since = match tunnel.since {
                Some(since) if tunnel.connected => format!("connected for {}", span(since)),
                _ => "not connected".to_string(),
            };
            let TunnelStatus { sessions, attempts, .. } = tunnel;
            line(f, "tunnel", &format!("{since}; sessions {sessions}, attempts {attempts}"))?;
            let (sent, received) = (size(tunnel.sent_bytes), size(tunnel.received_bytes));
            line(f, "through it", &format!("{sent} sent, {received} received"))?;
        }
        if let Some(served) = &self.served {
            let lately = self.samples.last_minute(&self.samples.requests);
            let Served { requests, failed, .. } = served;
            line(f, "requests", &format!("{requests}, {failed} failed; {lately} in the last minute"))?;
            if let Some(half) = served.half_within_ms {
                let most =
                    served.most_within_ms.map_or("30 s or longer".to_string(), |ms| format!("{ms} ms"));
                line(f, "latency", &format!("half within {half} ms, 95 % within {most}"))?;
            }
            line(f, "passed on", &format!("{} of responses", size(served.bytes)))?;
            let Served { active_requests, max_requests, active_streams, max_streams, .. } = served;
            let text = format!(
                "{active_requests} of {max_requests} requests, {active_streams} of {max_streams} streams"
            );
            line(f, "under way", &text)?;
            let Served { over_limit, refused, .. } = served;
            line(f, "turned away", &format!("{over_limit} over a limit, {refused} data-plane clients"))?;
        }
        if let Some(update) = &self.update {
            line(f, "update", &update_text(update))?;
        }
        let is_loud = |told: &&Told| told.level >= Level::Warn;
        let (warnings, errors) = (self.warnings, self.errors);
        let last = match self.events.iter().rev().find(is_loud) {
            Some(Told { at, text, .. }) => format!("; the last {}: {}", printable(at), printable(text)),
            None => String::new(),
        };
        line(f, "warnings", &format!("{warnings}, errors {errors}{last}"))
    }
}

/// What `/health` says of updates, in words.
fn update_text(update: &Value) -> String {
    let text = |name: &str| update.get(name).and_then(Value::as_str).map(printable);
    let state = text("state").unwrap_or_default();
    let version = text("version").map(|version| format!(" {version}")).unwrap_or_default();
    let is_on_probation = update.get("on_probation").and_then(Value::as_bool).unwrap_or_default();
    let probation = if is_on_probation { "; this release is on probation" } else { "" };
    format!("{state}{version}{probation}")
}

/// Seconds as people say them.
fn span(seconds: u64) -> String {
    let (minutes, hours, days) = (seconds / 60, seconds / 3600, seconds / 86_400);
    match () {
        () if days > 0 => format!("{days} d {} h", hours % 24),
        () if hours > 0 => format!("{hours} h {} min", minutes % 60),
        () if minutes > 0 => format!("{minutes} min {} s", seconds % 60),
        () => format!("{seconds} s"),
    }
}

/// Bytes as people say them, with one digit after the point.
fn size(bytes: u64) -> String {
    let units = ["B", "KiB", "MiB", "GiB", "TiB", "PiB"];
    let mut unit = 0;
    let mut tenths = u128::from(bytes) * 10;
    while tenths >= 10_240 && unit + 1 < units.len() {
        tenths /= 1024;
        unit += 1;
    }
    let unit_name = units.get(unit).copied().unwrap_or_default();
    if unit == 0 { format!("{bytes} B") } else { format!("{}.{} {unit_name}", tenths / 10, tenths % 10) }
}

#[cfg(test)]
mod tests {
    use alloc::vec;

    use super::*;
    use crate::io::FetchErrorKind;

    fn answer(status: u16, body: &str) -> Result<Response, FetchError> {
        Ok(Response { status, reason: String::new(), headers: vec![], body: body.as_bytes().to_vec() })
    }

    #[test]
    fn the_exit_code_says_whether_the_node_is_well() {
        for (state, code) in [
            ("serving", 0),
            ("updating", 0),
            ("local_only", 0),
            ("connecting", 69),
            ("not_registered", 3),
            ("stopping", 70),
            ("a word of tomorrow", 70),
        ] {
            let found = Found::of(answer(200, &format!(r#"{{"state":"{state}","version":"1"}}"#)));
            assert_eq!(found.outcome().exit_code(), code, "{state}");
        }
        let kind = FetchErrorKind::Connect;
        let nobody = Found::of(Err(FetchError { kind, detail: "connection refused".to_string() }));
        assert_eq!(nobody.outcome().exit_code(), 70);
        let text = nobody.to_text("127.0.0.1:9090", "consensus-node");
        assert!(text.contains("127.0.0.1:9090") && text.contains("consensus-node run"), "{text}");
        assert_eq!(nobody.to_json()["state"], "no_answer");
    }

    #[test]
    fn whatever_answers_in_the_place_of_a_node_is_said_to_be_none() {
        for (status, body) in [(404, r#"{"error":"not_found"}"#), (200, "<html>"), (200, "{}"), (200, "[]")] {
            let found = Found::of(answer(status, body));
            assert!(matches!(found, Found::Stranger(_)), "{body}");
            assert!(found.to_text("x", "p").contains("is no node of this release"));
            assert_eq!(found.to_json()["state"], "no_node");
        }
    }

    #[test]
    fn the_node_that_is_waited_for_is_ready_and_no_other() {
        let of = |body: &str| Found::of(answer(200, body)).not_ready("n1");
        assert_eq!(of(r#"{"state":"serving","version":"1","node_id":"n1"}"#), None);
        for (body, words) in [
            (r#"{"state":"serving","version":"1","node_id":"n2"}"#, "another node, n2"),
            (r#"{"state":"connecting","version":"1","node_id":"n1"}"#, "no session with the network"),
            ("{}", "no node of this release"),
        ] {
            assert!(of(body).is_some_and(|why| why.contains(words)), "{body}");
        }
        let error = FetchError { kind: FetchErrorKind::Connect, detail: "refused".to_string() };
        assert!(Found::of(Err(error)).not_ready("n1").is_some_and(|why| why.starts_with("no node answers")));
    }

    #[test]
    fn some_ten_lines_say_what_an_operator_wants_to_know_and_hold_no_control_characters() {
        let body = r#"{"state":"serving","node_id":"n\u001b[31m","domain":"d.example","version":"1.2.3",
            "platform":"linux-x64","uptime":97000,"tunnel":{"connected":true,"since":65,"sessions":2,"attempts":3,
            "sent_bytes":1536,"received_bytes":10},"served":{"requests":5,"failed":1,"bytes":2147483648,
            "max_requests":256,"active_requests":1,"half_within_ms":50,"most_within_ms":null},
            "update":{"state":"prepared","version":"1.3.0","on_probation":true},"warnings":1,
            "events":[{"at":"t","level":"warn","scope":"tunnel","event":"e","text":"cut\u0007 off","count":1}],
            "samples":{"step_seconds":2,"requests":[9,1,2]}}"#;
        let Found::Node(status) = Found::of(answer(200, body)) else { panic!() };
        let text = status.to_string();
        assert_eq!(
            text.lines().map(str::trim_end).collect::<Vec<_>>(),
            [
                "state         serving, n [31m at d.example",
                "release       1.2.3 (linux-x64), up 1 d 2 h",
                "tunnel        connected for 1 min 5 s; sessions 2, attempts 3",
                "through it    1.5 KiB sent, 10 B received",
                "requests      5, 1 failed; 12 in the last minute",
                "latency       half within 50 ms, 95 % within 30 s or longer",
                "passed on     2.0 GiB of responses",
                "under way     1 of 256 requests, 0 of 0 streams",
                "turned away   0 over a limit, 0 data-plane clients",
                "update        prepared 1.3.0; this release is on probation",
                "warnings      1, errors 0; the last t: cut  off",
            ]
        );
        // What came out goes in again.
        assert_eq!(Found::of(answer(200, &json!(status).to_string())), Found::Node(status));
    }

    #[test]
    fn every_state_but_serving_says_what_to_do() {
        let states = [
            State::Serving,
            State::Updating,
            State::Connecting,
            State::LocalOnly,
            State::NotRegistered,
            State::Stopping,
            State::Unknown,
        ];
        for state in states {
            assert_eq!(state.explain().is_none(), state.is_ready(), "{state:?}");
            assert!(!state.word().is_empty());
        }
    }

    #[test]
    fn sizes_and_spans_are_said_as_people_say_them() {
        for (bytes, text) in [(0, "0 B"), (1023, "1023 B"), (1024, "1.0 KiB"), (u64::MAX, "16383.9 PiB")] {
            assert_eq!(size(bytes), text);
        }
        for (seconds, text) in [(59, "59 s"), (3600, "1 h 0 min"), (90_061, "1 d 1 h")] {
            assert_eq!(span(seconds), text);
        }
    }
}
