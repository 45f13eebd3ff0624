//! The update check and the integrity check by the server, asked for by the operator (protocol.md section 8).
//!
//! [`Verifying`] is a machine of the same shape as the [`Node`](crate::node::Node): first it learns which release the
//! network requires, then it has the server judge this node's integrity payload.

use alloc::collections::VecDeque;
use alloc::format;
use alloc::string::{String, ToString as _};
use alloc::vec::Vec;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::integrity::Integrity;
use super::latest::manifest_of;
use super::manifest::{Difference, Manifest, differences};
use crate::event::Level;
use crate::io::{Fetch, FetchError, Finish, Outcome, Response};
use crate::registration::{Notice, failure_text, is_success, json_body, operator_request, unreachable_text};
use crate::state::is_node_id;
use crate::text::printable;

/// Members of `required` and `observed` that are told, in this order; others follow by name.
const ORDER: [&str; 5] = ["version", "platform", "commit", "routes_hash", "tarball_sha256"];

/// Differences that are told. A manifest has eleven members.
const MAX_TOLD: usize = 32;

/// The answer to `POST /node/verify-integrity/<node_id>`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct IntegrityVerdict {
    /// Whether the node is what the network requires.
    pub verified: bool,
    /// Why not, in the server's words.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// More of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
    /// What the network requires, where that is why.
    #[serde(default, skip_serializing_if = "Map::is_empty", deserialize_with = "object")]
    pub required: Map<String, Value>,
    /// What it saw.
    #[serde(default, skip_serializing_if = "Map::is_empty", deserialize_with = "object")]
    pub observed: Map<String, Value>,
}

/// Null and other kinds of value count as an object without members.
fn object<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Map<String, Value>, D::Error> {
    Ok(match Value::deserialize(deserializer)? {
        Value::Object(members) => members,
        _ => Map::new(),
    })
}

/// `POST /admin/manifest`, with `x-admin-key`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PublishManifest {
    /// The release.
    pub manifest: Manifest,
    /// Whether nodes must run it.
    #[serde(default)]
    pub required: bool,
}

/// Something that happened: the answer to [`Output::Fetch`].
pub type Input = Result<Response, FetchError>;

/// Something to do.
#[derive(Clone, Debug, PartialEq)]
pub enum Output {
    /// Make this request; answer with [`Input`].
    Fetch(Fetch),
    /// Tell the operator.
    Notice(Notice),
    /// It is over: nothing but [`Output::Wait`] follows.
    Finish(Finish),
    /// Nothing to do until an answer comes.
    Wait,
}

#[derive(Clone, Copy, Debug)]
enum State {
    Latest,
    Verdict,
    Over,
}

/// A verification under way. Drive it until [`Output::Finish`].
#[derive(Debug)]
pub struct Verifying {
    server_url: String,
    node_id: String,
    payload: Integrity,
    state: State,
    /// The differences that were told of, each once.
    told: Vec<Difference>,
    outputs: VecDeque<Output>,
}

impl Verifying {
    /// Begins. `payload` is made of this moment: the server allows 300 s, the first request takes at most 30.
    #[must_use]
    pub fn new(server_url: &str, node_id: &str, payload: Integrity) -> Self {
        let mut this = Self {
            server_url: server_url.to_string(),
            node_id: node_id.to_string(),
            payload,
            state: State::Over,
            told: Vec::new(),
            outputs: VecDeque::new(),
        };
        if is_node_id(node_id) {
            this.fetch(State::Latest, "GET", "/update/latest", None);
        } else {
            this.finish(Outcome::NotRegistered, "this node has no name yet; register it first".to_string());
        }
        this
    }

    /// Never fails: what goes wrong becomes an output.
    pub fn handle_input(&mut self, input: Input) {
        match (core::mem::replace(&mut self.state, State::Over), input) {
            (State::Over, _) => {}
            (_, Err(error)) => self.finish(Outcome::Unreachable, unreachable_text(&error)),
            (State::Latest, Ok(response)) => {
                self.on_latest(&response);
                let path = format!("/node/verify-integrity/{}", self.node_id);
                self.fetch(State::Verdict, "POST", &path, json_body(&self.payload));
            }
            (State::Verdict, Ok(response)) => self.on_verdict(&response),
        }
    }

    /// The next thing to do. Drain until [`Output::Wait`].
    #[must_use]
    pub fn poll_output(&mut self) -> Output {
        self.outputs.pop_front().unwrap_or(Output::Wait)
    }

    /// Only tells: whether a difference matters, the server says in its verdict.
    fn on_latest(&mut self, response: &Response) {
        if response.status == 404 {
            return self.notice(Level::Info, "the network requires no certain release".to_string());
        }
        let required = if is_success(response) { manifest_of(&response.body).ok() } else { None };
        let Some(required) = required else {
            return self
                .notice(Level::Warn, format!("the required release is unknown: {}", failure_text(response)));
        };
        let found = differences(&required, &self.payload.manifest);
        if found.is_empty() {
            let version = printable(&required.version);
            return self.notice(Level::Info, format!("this is the required release, {version}"));
        }
        self.tell(&found);
    }

    fn on_verdict(&mut self, response: &Response) {
        // A refusal may come with any status: what counts is whether there is a verdict.
        match serde_json::from_slice::<IntegrityVerdict>(&response.body) {
            Ok(verdict) if verdict.verified && is_success(response) => {
                self.finish(Outcome::Done, format!("the network verified node {}", self.node_id));
            }
            Ok(verdict) if !verdict.verified => {
                let found = differing_members(&verdict.required, &verdict.observed);
                let mut reasons: Vec<String> = Vec::new();
                reasons.extend(verdict.error.iter().chain(&verdict.message).map(|text| printable(text)));
                if !found.is_empty() {
                    self.tell(&found);
                    let names: Vec<String> =
                        found.iter().take(MAX_TOLD).map(|difference| printable(&difference.member)).collect();
                    let names = names.join(", ");
                    reasons.push(format!("another release is required ({names}); `update` says which"));
                }
                let why =
                    if reasons.is_empty() { "it gives no reason".to_string() } else { reasons.join(": ") };
                self.finish(
                    Outcome::Refused,
                    format!("the network did not verify node {}: {why}", self.node_id),
                );
            }
            _ => self.finish(Outcome::Refused, failure_text(response)),
        }
    }

    fn tell(&mut self, found: &[Difference]) {
        for difference in found.iter().take(MAX_TOLD) {
            if !self.told.contains(difference) {
                self.told.push(difference.clone());
                self.notice(Level::Warn, difference.to_string());
            }
        }
    }

    fn fetch(&mut self, state: State, method: &str, path: &str, body: Option<Vec<u8>>) {
        match operator_request(&self.server_url, method, path, body) {
            Ok(fetch) => {
                self.outputs.push_back(Output::Fetch(fetch));
                self.state = state;
            }
            Err(refused) => self.finish(Outcome::Internal, format!("the server URL: {refused}")),
        }
    }

    fn notice(&mut self, level: Level, text: String) {
        self.outputs.push_back(Output::Notice(Notice { level, text }));
    }

    fn finish(&mut self, outcome: Outcome, message: String) {
        self.state = State::Over;
        self.outputs.push_back(Output::Finish(Finish { outcome, message }));
    }
}

/// Where the two lists of a verdict differ: members that are required and not seen so. What is seen and not required
/// is no difference.
fn differing_members(required: &Map<String, Value>, observed: &Map<String, Value>) -> Vec<Difference> {
    let text = |value: &Value| match value {
        Value::String(text) => text.clone(),
        other => other.to_string(),
    };
    let named = ORDER.iter().filter_map(|name| required.get_key_value(*name));
    let others = required.iter().filter(|(name, _)| !ORDER.contains(&name.as_str()));
    named
        .chain(others)
        .filter(|(name, wanted)| !wanted.is_null() && observed.get(*name) != Some(*wanted))
        .map(|(name, wanted)| Difference {
            member: printable(name),
            required: text(wanted),
            observed: observed.get(name).filter(|seen| !seen.is_null()).map(text),
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::crypto::Drbg;
    use crate::crypto::identity::Identity;
    use crate::crypto::pure::Pure;
    use crate::io::FetchErrorKind;
    use crate::release::integrity;
    use crate::time::Now;
    use alloc::vec;
    use core::time::Duration;
    use serde_json::json;

    fn payload() -> Integrity {
        let manifest = Manifest::of_this_release("1.0.0", "abc", "linux-x64");
        let now = Now { monotonic: Duration::ZERO, unix: Duration::from_secs(1000) };
        let identity = Identity::from_seed(Pure, &[1; 32]);
        integrity::build(&identity, &manifest, now, &mut Drbg::new([1; 32]))
    }

    fn response(status: u16, body: &Value) -> Input {
        Ok(Response { status, reason: "R".into(), headers: vec![], body: body.to_string().into_bytes() })
    }

    /// Gives the two answers; returns the notices, the requests and the end.
    fn run(latest: Input, verdict: Input) -> (Vec<String>, Vec<Fetch>, Finish) {
        let mut machine = Verifying::new("https://api.example", "n1", payload());
        let (mut notices, mut fetches) = (vec![], vec![]);
        let mut answers = vec![verdict, latest];
        loop {
            match machine.poll_output() {
                Output::Notice(notice) => notices.push(notice.text),
                Output::Fetch(fetch) => fetches.push(fetch),
                Output::Finish(finish) => {
                    assert_eq!(machine.poll_output(), Output::Wait);
                    return (notices, fetches, finish);
                }
                Output::Wait => machine.handle_input(answers.pop().unwrap()),
            }
        }
    }

    fn manifest() -> Value {
        serde_json::to_value(payload().manifest).unwrap()
    }

    #[test]
    fn a_verified_node_of_the_required_release_is_told_so() {
        let (notices, fetches, finish) =
            run(response(200, &manifest()), response(200, &json!({"verified": true})));
        assert_eq!(notices, ["this is the required release, 1.0.0"]);
        assert_eq!(finish.outcome, Outcome::Done);
        let urls: Vec<_> = fetches.iter().map(|f| (f.method.as_str(), f.target.url())).collect();
        assert_eq!(
            urls,
            [
                ("GET", "https://api.example/update/latest".to_string()),
                ("POST", "https://api.example/node/verify-integrity/n1".to_string())
            ]
        );
        let sent: Value = serde_json::from_slice(fetches[1].body.as_ref().unwrap()).unwrap();
        assert_eq!(sent, serde_json::to_value(payload()).unwrap());
    }

    #[test]
    fn no_required_release_is_no_reason_to_stop() {
        let (notices, _, finish) =
            run(response(404, &json!({"error": "none"})), response(200, &json!({"verified": true})));
        assert_eq!(notices, ["the network requires no certain release"]);
        assert_eq!(finish.outcome, Outcome::Done);
    }

    #[test]
    fn differences_are_told_with_what_is_required_and_what_is_there() {
        let mut required = manifest();
        required["version"] = json!("2.0.0");
        required["commit"] = json!("def");
        let verdict = json!({
            "verified": false, "required": {"commit": "def", "version": "2.0.0", "platform": "linux-x64"},
            "observed": {"commit": "abc", "version": "1.0.0", "platform": "linux-x64", "more": 1},
        });
        for latest in [required.clone(), json!({"manifest": required, "required": true})] {
            let (notices, _, finish) = run(response(200, &latest), response(200, &verdict));
            // Each once, though both answers have them.
            let told = ["version: required 2.0.0, observed 1.0.0", "commit: required def, observed abc"];
            assert_eq!(notices, told);
            assert_eq!(finish.outcome, Outcome::Refused);
            assert!(finish.message.contains("version, commit"), "{}", finish.message);
        }
    }

    #[test]
    fn a_refusal_has_the_servers_words_whatever_its_status() {
        let latest = || response(404, &Value::Null);
        for (status, body, says) in [
            (200, json!({"verified": false, "error": "bad_signature", "required": null}), "bad_signature"),
            (403, json!({"verified": false, "message": "stale\nclock"}), "stale clock"),
            (200, json!({"verified": false}), "no reason"),
            (404, json!({"error": "unknown_node"}), "HTTP 404: unknown_node"),
            (500, json!("x"), "HTTP 500"),
            (500, json!({"verified": true}), "HTTP 500"),
        ] {
            let (_, _, finish) = run(latest(), response(status, &body));
            assert_eq!(finish.outcome, Outcome::Refused, "{body}");
            assert!(finish.message.contains(says), "{}", finish.message);
        }
    }

    #[test]
    fn a_required_release_that_cannot_be_read_is_told_and_not_fatal() {
        for latest in [json!({"product": "x"}), json!([]), json!({"manifest": 7})] {
            let (notices, _, finish) = run(response(200, &latest), response(200, &json!({"verified": true})));
            assert!(notices[0].starts_with("the required release is unknown"), "{notices:?}");
            assert_eq!(finish.outcome, Outcome::Done);
        }
    }

    #[test]
    fn an_unreachable_network_and_an_unregistered_node_end_at_once() {
        let error = || Err(FetchError { kind: FetchErrorKind::Connect, detail: "refused".into() });
        assert_eq!(run(error(), error()).2.outcome, Outcome::Unreachable);
        let unregistered = Verifying::new("https://api.example", "", payload()).poll_output();
        assert!(matches!(unregistered, Output::Finish(Finish { outcome: Outcome::NotRegistered, .. })));
    }
}
