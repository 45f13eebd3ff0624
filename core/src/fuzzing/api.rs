//! The local API: no request that a web page can make a browser send does anything, and every one is answered once and
//! in time.

use alloc::string::{String, ToString as _};
use alloc::vec::Vec;
use core::net::{Ipv4Addr, Ipv6Addr};
use core::time::Duration;

use arbitrary::Arbitrary;
use serde_json::{Value, json};

use super::node::World;
use super::read;
use crate::io::{
    Audience, Effect, EffectResult, FetchError, FetchErrorKind, Input, LocalRequest, LocalResponse, Response,
};
use crate::limits::{LOCAL_TIMEOUT, MAX_LOCAL_REQUESTS};

#[derive(Debug, Default, Arbitrary)]
struct Script {
    actions: Vec<Action>,
}

#[derive(Debug, Arbitrary)]
enum Action {
    Ask {
        path: Path,
        post: Method,
        host: Option<Host>,
        origin: Option<Origin>,
        upgrade: u8,
        body: Body,
    },
    /// As it came.
    Raw {
        method: String,
        target: String,
        headers: Vec<(String, String)>,
        body: Vec<u8>,
    },
    Done {
        nth: u8,
        ok: bool,
        status: u16,
        headers: Vec<(String, String)>,
        body: Vec<u8>,
    },
    Wait {
        millis: u16,
    },
}

#[derive(Debug, Arbitrary)]
enum Path {
    Known(u8),
    Queried(u8, String),
    Any(String),
}

#[derive(Debug, Arbitrary)]
enum Method {
    Get,
    Post,
    Any(String),
}

#[derive(Debug, Arbitrary)]
enum Host {
    Local,
    Address([u8; 4], u16),
    Own,
    Any(String),
}

#[derive(Debug, Arbitrary)]
enum Origin {
    Same,
    Null,
    Any(String),
}

#[derive(Debug, Arbitrary)]
enum Body {
    Nothing,
    Proxy { url: String, private: bool, method: Option<String>, body: Option<String> },
    Pressure { size: i32, rounds: i32 },
    Bytes(Vec<u8>),
}

const PATHS: [&str; 20] = [
    "/health",
    "/node/version",
    "/node/manifest",
    "/node/integrity",
    "/node/capabilities",
    "/benchmark/system",
    "/benchmark/cpu",
    "/benchmark/crypto",
    "/benchmark/memory",
    "/benchmark/event-loop",
    "/benchmark/memory-pressure",
    "/benchmark/all",
    "/proxy",
    "/connect",
    "/",
    "/page.css",
    "/page.js",
    "/metrics",
    "/ready",
    "/status",
];

fn request(action: Action) -> Option<LocalRequest> {
    let (path, method, host, origin, upgrade, body) = match action {
        Action::Ask { path, post, host, origin, upgrade, body } => (path, post, host, origin, upgrade, body),
        Action::Raw { method, target, mut headers, body } => {
            for (name, _) in &mut headers {
                name.make_ascii_lowercase();
            }
            return Some(LocalRequest { method, target, headers, body });
        }
        Action::Done { .. } | Action::Wait { .. } => return None,
    };
    let known = |nth: u8| PATHS[usize::from(nth) % PATHS.len()].to_string();
    let target = match path {
        Path::Known(nth) => known(nth),
        Path::Queried(nth, query) => [&known(nth), "?", &query].concat(),
        Path::Any(text) => text,
    };
    let method = match method {
        Method::Get => "GET".into(),
        Method::Post => "POST".into(),
        Method::Any(text) => text,
    };
    let mut headers: Vec<(String, String)> = Vec::new();
    let mut header = |name: &str, value: String| headers.push((name.into(), value));
    let host = host.map(|host| match host {
        Host::Local => "localhost:9090".into(),
        Host::Address(octets, port) => alloc::format!("{}:{port}", Ipv4Addr::from(octets)),
        Host::Own => "NODE-1.example".into(),
        Host::Any(text) => text,
    });
    if let Some(origin) = origin {
        let origin = match origin {
            Origin::Same => ["http://", host.as_deref().unwrap_or("localhost")].concat(),
            Origin::Null => "null".into(),
            Origin::Any(text) => text,
        };
        header("origin", origin);
    }
    if let Some(host) = host {
        header("host", host);
    }
    if upgrade > 0 {
        let fields = [
            ("connection", "keep-alive, Upgrade"),
            ("upgrade", "websocket"),
            ("sec-websocket-version", "13"),
            ("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ=="),
        ];
        // Those whose bit is set.
        for (bit, (name, value)) in fields.into_iter().enumerate() {
            if upgrade >> bit & 1 == 1 {
                header(name, value.into());
            }
        }
    }
    let body = match body {
        Body::Nothing => Vec::new(),
        Body::Bytes(bytes) => bytes,
        Body::Pressure { size, rounds } => {
            json!({"test_size_mb": size, "rounds": rounds}).to_string().into_bytes()
        }
        Body::Proxy { url, private, method, body } => {
            let base = if private { "http://10.0.0.1/" } else { "http://target.example/" };
            let url = [base, &url].concat();
            json!({"target_url": url, "method": method, "body": body}).to_string().into_bytes()
        }
    };
    Some(LocalRequest { method, target, headers, body })
}

/// Whether a page of another site may have sent it, by a reading of its own: a browser names the page, or was told a
/// name for this address.
fn is_foreign(request: &LocalRequest) -> bool {
    let first =
        |wanted: &str| request.headers.iter().find(|(name, _)| name == wanted).map(|(_, value)| value);
    let host = first("host");
    let by_name = host.is_some_and(|host| {
        let name = match host.rfind(':') {
            Some(at) if host[at + 1..].bytes().all(|b| b.is_ascii_digit()) => &host[..at],
            _ => host,
        };
        let six = name.strip_prefix('[').and_then(|name| name.strip_suffix(']'));
        let is_address =
            name.parse::<Ipv4Addr>().is_ok() || six.is_some_and(|six| six.parse::<Ipv6Addr>().is_ok());
        !is_address && !["localhost", "node-1.example"].contains(&&*name.to_ascii_lowercase())
    });
    let from_elsewhere = first("origin").is_some_and(|origin| {
        let site = origin.find("://").map(|at| &origin[at + 3..]);
        site.is_none() || site != host.map(String::as_str)
    });
    by_name || from_elsewhere
}

/// Whether it is for the operator's pages and what they show.
fn is_of_pages(request: &LocalRequest) -> bool {
    let path = request.target.split(['?', '#']).next().unwrap_or_default();
    ["/", "/status", "/page.css", "/page.js"].contains(&path)
}

/// Whether it names no host, or one that nobody else can have lead here.
fn is_for_this_machine(request: &LocalRequest) -> bool {
    let Some((_, host)) = request.headers.iter().find(|(name, _)| name == "host") else { return true };
    let name = host.trim_end_matches(|c: char| c.is_ascii_digit()).strip_suffix(':').unwrap_or(host);
    name.eq_ignore_ascii_case("localhost")
        || name.parse::<Ipv4Addr>().is_ok()
        || name.trim_matches(['[', ']']).parse::<Ipv6Addr>().is_ok()
}

/// Nothing foreign does anything, and everything is answered.
pub fn api(data: &[u8]) {
    let Script { actions } = read(data);
    let mut world = World::new(None);
    world.feed(Input::Tick);
    for action in actions {
        match action {
            Action::Wait { millis } => world.pass(Duration::from_millis(millis.into())),
            Action::Done { nth, ok, status, headers, body } => {
                let effect =
                    world.effects.iter().nth(usize::from(nth)).map(|(id, effect)| (*id, effect.clone()));
                let Some((effect, of)) = effect else { continue };
                world.effects.remove(&effect);
                let result = match of {
                    Effect::Fetch(_) if ok => {
                        let status = 200 + status % 800;
                        EffectResult::Fetched(Ok(Response { status, reason: String::new(), headers, body }))
                    }
                    Effect::Fetch(_) => {
                        let detail = String::from_utf8_lossy(&body).into_owned();
                        EffectResult::Fetched(Err(FetchError { kind: FetchErrorKind::Connect, detail }))
                    }
                    _ => EffectResult::Measured(Err(String::from_utf8_lossy(&body).into_owned())),
                };
                world.feed(Input::Done { effect, result });
            }
            ask => {
                let Some(request) = request(ask) else { continue };
                let before = world.effects.len();
                let is_connect = request.target.split(['?', '#']).next() == Some("/connect");
                let is_foreign = is_foreign(&request);
                let is_told_to_pages = is_of_pages(&request) && !is_for_this_machine(&request);
                let id = world.ask(request);
                if is_foreign && !is_connect {
                    assert_eq!(world.effects.len(), before, "a web page had something done");
                    let status = world.answer.as_ref().map(|answer| answer.status);
                    assert!(status.is_some_and(|status| (400..500).contains(&status)), "{status:?}");
                }
                if is_told_to_pages {
                    let status = world.answer.as_ref().map_or(0, |answer| answer.status);
                    assert!(status >= 400, "a page under a name that is not this machine's: {status}");
                }
                let is_json = |answer: &&LocalResponse| {
                    answer.headers.iter().any(|(_, value)| value == "application/json")
                        && !answer.body.is_empty()
                };
                if let Some(answer) = world.answer.as_ref().filter(is_json) {
                    let value: Result<Value, _> = serde_json::from_slice(&answer.body);
                    assert!(value.is_ok(), "an answer is JSON");
                }
                assert!(
                    world.asked.contains(&id) == (world.effects.len() > before),
                    "what waits waits for something"
                );
                for effect in world.effects.values() {
                    match effect {
                        Effect::Fetch(fetch) => assert_eq!(fetch.audience, Audience::Stranger),
                        Effect::Measure(_) => {}
                        other => panic!("the local API had {other:?} done"),
                    }
                }
            }
        }
        assert!(world.asked.len() <= MAX_LOCAL_REQUESTS);
    }
    world.idle(LOCAL_TIMEOUT, false);
    assert!(world.asked.is_empty(), "a request that is never answered");
    world.feed(Input::Stop);
    assert!(world.finished.is_some(), "a node that serves its local API alone stops at once");
}
