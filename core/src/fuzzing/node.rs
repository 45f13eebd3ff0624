//! A whole node, as a machine that keeps its contract.

use alloc::boxed::Box;
use alloc::collections::{BTreeMap, BTreeSet};
use alloc::string::String;
use alloc::vec::Vec;
use core::time::Duration;

use super::script::Script;
use super::ticket::{ISSUER_SEED, NODE_ID};
use super::transparent::Transparent;
use super::{START, UNIX};
use crate::crypto::identity::Identity;
use crate::crypto::{Crypto as _, Drbg};
use crate::data_plane::replay::Before;
use crate::io::{
    Audience, Effect, EffectId, EffectResult, FetchError, FetchErrorKind, Input, LinkEnd, LinkId, LocalId,
    LocalRequest, LocalResponse, OpenStage, Outcome, Output, Response, SocketEnd, SocketId,
};
use crate::limits::{Limits, MAX_MESSAGE, MAX_SOCKETS_UNSENT};
use crate::node::{Config, Node};
use crate::peer;
use crate::release::manifest::Manifest;
use crate::state::{Jwk, Registration};
use crate::time::{Deadline, Now};
use crate::tunnel::Mode;
use crate::tunnel::session::Session;
use crate::update::Settings;
use crate::wire::base64;
use crate::wire::frame::{FrameBuf, FrameType};

/// A whole node, its inputs chosen by the fuzzer: what comes out keeps the contract.
///
/// The first byte chooses the node; then each byte names an input, whose content is taken from those that follow. A
/// server half of our own answers handshakes when the fuzzer says so and seals what the fuzzer wants sealed, so that
/// the fuzzer gets past the cryptography.
pub fn node(data: &[u8]) {
    let mut script = Script { data: data.iter().copied().collect() };
    let mode = [None, Some(Mode::Eval), Some(Mode::Control)][usize::from(script.byte() % 3)];
    let mut world = World::new(mode);
    world.feed(Input::Tick);
    while let Some(byte) = script.data.pop_front() {
        world.step(byte, &mut script);
        world.said.clear();
    }
}

/// A node and all that it asked for; the owner that it has in a shell.
pub(super) struct World {
    pub(super) node: Node<Transparent>,
    pub(super) now: Now,
    pub(super) link: LinkId,
    last_sent: Vec<u8>,
    pub(super) server: Option<Session<Transparent>>,
    pub(super) sealed: Vec<Vec<u8>>,
    /// What the node told the server since somebody looked.
    pub(super) said: Vec<(FrameType, Vec<u8>)>,
    /// Bytes given to the link that it has not taken.
    pub(super) untaken: usize,
    held: bool,
    /// Open sockets: bytes given, and whether a read is wanted.
    pub(super) sockets: BTreeMap<SocketId, (usize, usize)>,
    next_socket: u64,
    pub(super) websockets: BTreeSet<LocalId>,
    pub(super) effects: BTreeMap<EffectId, Effect>,
    used_effects: BTreeSet<EffectId>,
    pub(super) cancelled: BTreeSet<EffectId>,
    pub(super) asked: BTreeSet<LocalId>,
    next_local: u64,
    /// The answer that the local API gave last.
    pub(super) answer: Option<LocalResponse>,
    pub(super) deadline: Option<Deadline>,
    pub(super) finished: Option<Outcome>,
}

impl World {
    pub(super) fn new(mode: Option<Mode>) -> Self {
        let now = START;
        let issuer = Transparent.public_key(&ISSUER_SEED);
        let registration = Registration {
            orchestrator_pubkey: Some(Jwk::of_key(issuer, "k")),
            domain: Some("node-1.example".into()),
            ..Registration::new(NODE_ID)
        };
        let config = Config {
            mode,
            tunnel_url: "wss://network.example/node/tunnel".into(),
            server_key: None,
            identity_seed: [1; 32].into(),
            candidate_id: None,
            registration: (mode != Some(Mode::Eval)).then_some(registration),
            manifest: Manifest::of_this_release("0.1.0", "unknown", "linux-x64"),
            limits: Limits { max_requests: 4, max_streams: 6, ..Limits::default() },
            allow_private_targets: false,
            spent_before: Before::Never,
            updates: Settings::default(),
        };
        Self {
            node: Node::new(config, Transparent, [2; 32], now),
            now,
            link: LinkId(0),
            last_sent: Vec::new(),
            server: None,
            sealed: Vec::new(),
            said: Vec::new(),
            untaken: 0,
            held: false,
            sockets: BTreeMap::new(),
            next_socket: 0,
            websockets: BTreeSet::new(),
            effects: BTreeMap::new(),
            used_effects: BTreeSet::new(),
            cancelled: BTreeSet::new(),
            asked: BTreeSet::new(),
            next_local: 0,
            answer: None,
            deadline: None,
            finished: None,
        }
    }

    fn step(&mut self, byte: u8, script: &mut Script) {
        let link = self.link;
        match byte % 20 {
            0 => {
                // Either clock may stand still; the unix clock may also jump.
                self.now.monotonic += Duration::from_millis(u64::from(script.byte()) * 250);
                self.now.unix = self.now.unix.saturating_add(Duration::from_secs(u64::from(script.byte())));
                self.feed(Input::Tick);
            }
            1 => self.feed(Input::LinkOpened { link }),
            2 => self.accept(),
            3 => self.feed(Input::LinkBinary { link, data: script.bytes() }),
            4 => self.feed(Input::LinkText { link, text: script.text() }),
            5 => self.feed(Input::LinkEnded { link, end: link_end(script) }),
            6 | 7 => self.seal(FrameType::Data, &script.bytes()),
            8 => {
                let kinds = [FrameType::Ping, FrameType::Pong, FrameType::Close, FrameType::Error];
                let kind = kinds[usize::from(script.byte() % 4)];
                self.seal(kind, &script.bytes());
            }
            9 => self.ready(),
            10 => {
                if let Some((effect, _)) = self.effects.pop_first() {
                    self.feed(Input::Done { effect, result: effect_result(script) });
                }
            }
            11 => self.feed(Input::Done {
                effect: EffectId(u64::from(script.byte())),
                result: effect_result(script),
            }),
            12 => self.local(script),
            13 => {
                // Replay of something sealed before.
                if let Some(frame) = self.sealed.get(usize::from(script.byte())) {
                    let data = frame.clone();
                    self.feed(Input::LinkBinary { link, data });
                }
            }
            14 => {
                // A link that is not, or no longer, the node's.
                let link = LinkId(u64::from(script.byte()));
                let data = script.bytes();
                if link != self.link {
                    self.feed(Input::LinkBinary { link, data });
                }
            }
            15 => {
                if script.byte() == 255 {
                    self.feed(Input::Stop);
                }
            }
            16 => {
                let bytes = self.untaken.min(usize::from(script.byte()) * 1024);
                self.untaken -= bytes;
                self.feed(Input::LinkSent { link, bytes });
            }
            17 => self.socket(script),
            18 => {
                let data = script.bytes();
                if let Some(id) = self.websockets.first().copied() {
                    self.feed(Input::LocalMessage { id, data });
                }
            }
            _ => {
                if let Some(id) = self.websockets.pop_last() {
                    self.feed(Input::LocalEnded { id });
                }
            }
        }
    }

    /// Something happens to a socket.
    fn socket(&mut self, script: &mut Script) {
        let nth = usize::from(script.byte()) % self.sockets.len().max(1);
        let Some((socket, (unsent, most))) = self.sockets.iter().nth(nth).map(|(id, state)| (*id, *state))
        else {
            return;
        };
        match script.byte() % 4 {
            0 => self.feed(Input::SocketOpened { socket }),
            1 => {
                let mut data = script.bytes();
                data.truncate(most);
                if !data.is_empty() {
                    self.sockets.insert(socket, (unsent, 0));
                    self.feed(Input::SocketData { socket, data });
                }
            }
            2 => {
                self.sockets.insert(socket, (0, most));
                self.feed(Input::SocketSent { socket, bytes: unsent });
            }
            _ => {
                self.sockets.remove(&socket);
                let end = match script.byte() % 3 {
                    0 => SocketEnd::Closed,
                    1 => SocketEnd::Failed { detail: script.text() },
                    _ => SocketEnd::Unopened(FetchError {
                        kind: FetchErrorKind::Connect,
                        detail: script.text(),
                    }),
                };
                self.feed(Input::SocketEnded { socket, end });
            }
        }
    }

    /// The server answers the handshake that the node sent last, if that is what it was.
    pub(super) fn accept(&mut self) {
        let signer = Identity::from_seed(Transparent, &[4; 32]);
        let key = *Identity::from_seed(Transparent, &[1; 32]).public_key();
        let mut rng = Drbg::new([5; 32]);
        let accepted = peer::handshake::accept(
            &Transparent,
            Some(&signer),
            &self.last_sent,
            |_| Some(key),
            &mut rng,
            self.now,
        );
        if let Ok(accepted) = accepted {
            self.server = Some(accepted.session);
            let link = self.link;
            self.feed(Input::LinkBinary { link, data: accepted.message });
        }
    }

    fn ready(&mut self) {
        let ready =
            alloc::format!(r#"{{"type":"ready","timestamp":{UNIX},"session_id":"s","mode":"control"}}"#);
        self.seal(FrameType::Data, ready.as_bytes());
    }

    pub(super) fn seal(&mut self, kind: FrameType, plaintext: &[u8]) {
        let Some(server) = &mut self.server else { return };
        let data = server.seal(kind, FrameBuf::from_plaintext(plaintext));
        if self.sealed.len() < 64 {
            self.sealed.push(data.clone());
        }
        let link = self.link;
        if plaintext.len() % 2 == 0 {
            self.feed(Input::LinkBinary { link, data });
        } else {
            self.feed(Input::LinkText { link, text: base64::encode(&data) });
        }
    }

    fn local(&mut self, script: &mut Script) {
        const TARGETS: [&str; 8] = [
            "/health",
            "/node/integrity",
            "/benchmark/all",
            "/benchmark/memory-pressure",
            "/proxy",
            "/connect",
            "/node/version?x",
            "/benchmark/cpu",
        ];
        let target = match TARGETS.get(usize::from(script.byte() % 10)) {
            Some(target) => String::from(*target),
            None => script.text(),
        };
        let method = String::from(if script.byte() % 2 == 0 { "GET" } else { "POST" });
        let header = |name: &str, value: &str| (String::from(name), String::from(value));
        let mut headers = Vec::from([header("host", &script.text()), header("origin", &script.text())]);
        if target == "/connect" {
            headers.extend([
                header("connection", "keep-alive, Upgrade"),
                header("upgrade", "websocket"),
                header("sec-websocket-version", "13"),
                header("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ=="),
            ]);
        }
        let headers = headers.into_iter().filter(|(_, value)| !value.is_empty()).collect();
        self.ask(LocalRequest { method, target, headers, body: script.bytes() });
    }

    /// A request to the local API.
    pub(super) fn ask(&mut self, request: LocalRequest) -> LocalId {
        let id = LocalId(self.next_local);
        self.next_local += 1;
        self.asked.insert(id);
        self.answer = None;
        self.feed(Input::Local { id, request });
        id
    }

    /// Both clocks go on.
    pub(super) fn pass(&mut self, time: Duration) {
        self.now = Now { monotonic: self.now.monotonic + time, unix: self.now.unix + time };
        self.feed(Input::Tick);
    }

    /// The link opens, the handshake is made, and the server takes the session.
    pub(super) fn connect(&mut self) {
        self.feed(Input::LinkOpened { link: self.link });
        self.accept();
        self.ready();
    }

    pub(super) fn is_up(&self) -> bool {
        self.node.state().ends_with("tunnel up")
    }

    /// Nothing happens but time, of which this much passes: the node is called when it wants to be.
    pub(super) fn idle(&mut self, time: Duration, answers_pings: bool) {
        let end = self.now.monotonic + time;
        for _ in 0..10_000 {
            let next = self.deadline.map_or(end, |deadline| deadline.at.min(end));
            self.pass(next.saturating_sub(self.now.monotonic));
            let is_pinged = self.said.iter().any(|(kind, _)| *kind == FrameType::Ping);
            if answers_pings && is_pinged && self.is_up() {
                self.seal(FrameType::Pong, b"");
            }
            if self.finished.is_some() || self.now.monotonic >= end {
                return;
            }
            if is_pinged {
                self.said.retain(|(kind, _)| *kind != FrameType::Ping);
            }
        }
        panic!("a node that does not come to rest");
    }

    pub(super) fn feed(&mut self, input: Input) {
        self.node.handle_input(self.now, input);
        // One input adds few outputs; the end of a session closes all its streams.
        for _ in 0..4096 {
            match self.node.poll_output() {
                Output::Compute { job } => self.node.compute(self.now, job),
                Output::Wait(deadline) => {
                    self.deadline = deadline;
                    if let Some(deadline) = deadline {
                        assert!(self.finished.is_none(), "a finished node waits for nothing");
                        assert!(
                            deadline.at > self.now.monotonic,
                            "a deadline in the past is a busy loop: {deadline:?}"
                        );
                    }
                    return;
                }
                Output::OpenLink { link, .. } => {
                    assert!(link >= self.link, "links are numbered upwards");
                    self.link = link;
                    self.server = None;
                    self.sealed.clear();
                    (self.untaken, self.held) = (0, false);
                }
                Output::Send { link, data } => {
                    assert_eq!(link, self.link, "only the current link is written to");
                    assert!(data.len() <= MAX_MESSAGE);
                    if let Some(server) = &mut self.server {
                        match server.open(&mut data.clone()) {
                            Ok((kind, plaintext)) => self.said.push((kind, plaintext.to_vec())),
                            Err(error) => panic!("the server cannot open what the node sent: {error}"),
                        }
                    }
                    self.untaken += data.len();
                    self.last_sent = data;
                }
                Output::HoldLink { link, hold } => {
                    assert_eq!(link, self.link);
                    assert_ne!(core::mem::replace(&mut self.held, hold), hold, "said when it changes");
                }
                Output::OpenSocket { socket, port, .. } => {
                    assert!(socket.0 >= self.next_socket && port != 0, "sockets are numbered upwards");
                    self.next_socket = socket.0 + 1;
                    self.sockets.insert(socket, (0, 0));
                }
                Output::SendSocket { socket, data } => {
                    let state = self.sockets.get_mut(&socket);
                    assert!(!data.is_empty() && state.is_some(), "an open socket is written to");
                    if let Some((unsent, _)) = state {
                        *unsent += data.len();
                    }
                    let unsent: usize = self.sockets.values().map(|(unsent, _)| unsent).sum();
                    assert!(unsent <= MAX_SOCKETS_UNSENT, "what targets do not take is bounded");
                }
                Output::ReadSocket { socket, most } => {
                    let state = self.sockets.get_mut(&socket);
                    assert!(most > 0 && state.is_some(), "an open socket is read");
                    if let Some((_, wanted)) = state {
                        assert_eq!(*wanted, 0, "one read at a time");
                        *wanted = most;
                    }
                }
                Output::CloseSocket { socket } => {
                    assert!(self.sockets.remove(&socket).is_some(), "an open socket is closed");
                }
                Output::SendLocal { id, .. } => assert!(self.websockets.contains(&id)),
                Output::CloseLocal { id, reason, .. } => {
                    assert!(self.websockets.remove(&id) && reason.len() <= 123);
                }
                Output::CloseLink { link, reason, .. } => {
                    assert_eq!(link, self.link);
                    assert!(reason.len() <= 123, "RFC 6455, 5.5.1");
                    self.server = None;
                }
                Output::DropLink { link } => {
                    assert_eq!(link, self.link);
                    self.server = None;
                }
                Output::Perform { id, effect } => {
                    assert!(self.used_effects.insert(id), "an effect's number is used once");
                    if let Effect::Fetch(fetch) = &effect {
                        let is_fit =
                            fetch.audience == Audience::Operator || fetch.target.check_literal().is_ok();
                        assert!(is_fit, "{fetch:?}");
                    }
                    self.effects.insert(id, effect);
                    assert!(self.finished.is_none() || self.asked.is_empty(), "a finished node does nothing");
                }
                Output::Cancel { id } => {
                    assert!(self.used_effects.contains(&id));
                    self.cancelled.insert(id);
                }
                Output::Respond { id, response } => {
                    assert!(self.asked.remove(&id), "one answer a request");
                    if response.status == 101 {
                        self.websockets.insert(id);
                    } else {
                        assert!((200..=599).contains(&response.status));
                    }
                    self.answer = Some(response);
                }
                Output::Event(event) => {
                    let text = alloc::string::ToString::to_string(&event);
                    assert!(!text.chars().any(char::is_control), "an event fit for a terminal: {text:?}");
                }
                Output::Finish(finish) => {
                    assert!(self.finished.is_none(), "one end");
                    assert!(!finish.message.chars().any(char::is_control), "{:?}", finish.message);
                    self.finished = Some(finish.outcome);
                }
            }
        }
        panic!("one input gives no end of outputs");
    }
}

fn link_end(script: &mut Script) -> LinkEnd {
    match script.byte() % 6 {
        0 => {
            let stages = [
                OpenStage::Resolve,
                OpenStage::Connect,
                OpenStage::Tls,
                OpenStage::Upgrade,
                OpenStage::Proxy,
            ];
            LinkEnd::Unopened { stage: stages[usize::from(script.byte() % 5)], detail: script.text() }
        }
        1 => LinkEnd::NotUpgraded { status: u16::from(script.byte()) * 4 },
        2 => LinkEnd::Closed { code: 900 + u16::from(script.byte()), reason: script.text() },
        3 => LinkEnd::TooLarge,
        4 => LinkEnd::BadWebSocket { detail: script.text() },
        _ => LinkEnd::Lost { detail: script.text() },
    }
}

fn effect_result(script: &mut Script) -> EffectResult {
    match script.byte() % 10 {
        0 => EffectResult::Fetched(Ok(Response {
            status: 200 + u16::from(script.byte()),
            reason: script.text(),
            headers: Vec::from([
                (script.text(), script.text()),
                (String::from("content-type"), script.text()),
            ]),
            body: script.bytes(),
        })),
        1 => EffectResult::Fetched(Err(FetchError { kind: FetchErrorKind::Tls, detail: script.text() })),
        2 => EffectResult::Measured(Err(script.text())),
        3 => EffectResult::Written(Ok(())),
        4 => EffectResult::Downloaded(Ok(script.text())),
        5 => EffectResult::Downloaded(Err(script.text())),
        6 => EffectResult::Inspected(Ok(Box::new(Manifest::of_this_release(
            &script.text(),
            "abc",
            "linux-x64",
        )))),
        7 => EffectResult::Installed(Ok(())),
        8 => EffectResult::Installed(Err(script.text())),
        _ => EffectResult::Written(Err(script.text())),
    }
}
