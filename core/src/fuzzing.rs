//! The bodies of the fuzz targets. They live here so that ordinary tests compile them and run them over the committed
//! corpus; `fuzz/` only hands them bytes. Each panics where an invariant does not hold.

use alloc::boxed::Box;
use alloc::collections::{BTreeMap, BTreeSet, VecDeque};
use alloc::string::String;
use alloc::vec::Vec;
use core::time::Duration;

use serde_json::Value;

use crate::crypto::identity::Identity;
use crate::crypto::pure::Pure;
use crate::crypto::{Drbg, pem};
use crate::data_plane::replay::Before;
use crate::io::{
    EffectId, EffectResult, FetchError, FetchErrorKind, Input, LinkEnd, LinkId, LocalId, LocalRequest,
    OpenStage, Output, Response, SocketEnd, SocketId,
};
use crate::limits::{Limits, MAX_MESSAGE, MAX_SOCKETS_UNSENT};
use crate::node::{Config, Node};
use crate::peer;
use crate::release::manifest::Manifest;
use crate::state::Registration;
use crate::time::Now;
use crate::trace::{self, Reader, Record, Replay, Step, TraceError, about};
use crate::tunnel::Mode;
use crate::tunnel::handshake::{Claims, Handshake};
use crate::tunnel::session::Session;
use crate::update::Settings;
use crate::wire::frame::{self, FrameBuf, FrameType};
use crate::wire::message::Message;
use crate::wire::{base64, canonical};

const UNIX: u64 = 1_795_391_521;

/// A frame that splits is the frame its parts put together again.
pub fn frame(data: &[u8]) {
    let mut message = data.to_vec();
    let Ok(parts) = frame::split(&mut message) else { return };
    let rebuilt = [&parts.header.to_bytes()[..], parts.ciphertext, &parts.tag].concat();
    assert_eq!(rebuilt, data, "splitting loses nothing");
}

/// Any answer to a handshake ends in an error: the fuzzer does not have the keys.
pub fn handshake(data: &[u8]) {
    let identity = Identity::from_seed(Pure, &[1; 32]);
    let claims = Claims { mode: Mode::Eval, node_id: None, candidate_id: None, release_version: Some("1") };
    let now = Now { monotonic: Duration::ZERO, unix: Duration::from_secs(UNIX) };
    let mut rng = Drbg::new([2; 32]);
    let (handshake, init) = Handshake::start(Pure, &identity, claims, None, &mut rng, now);
    assert!(handshake.finish(data, Drbg::new([3; 32])).is_err(), "a session out of nothing");
    // The other half: what is not that very init is no init of this key.
    if data != init {
        let signer = Identity::from_seed(Pure, &[4; 32]);
        let _ = peer::handshake::accept(&Pure, Some(&signer), data, |_| None, &mut rng, now);
    }
}

/// What parses as a message is of the type it says, whichever way it was read.
pub fn message(data: &[u8]) {
    let parsed = Message::parse(data);
    if let Ok(text) = core::str::from_utf8(data) {
        assert_eq!(parsed, Message::parse_any(text), "the quick way is only quicker");
    }
    let Ok(message) = parsed else { return };
    let value: Value = serde_json::from_slice(data).unwrap_or_default();
    // Of a member that stands twice, JSON parsers take the last one; a message with two types is refused.
    assert_eq!(value["type"], message.kind());
}

/// A key that decodes encodes to a text that decodes to it.
pub fn pem_key(data: &[u8]) {
    let Ok(text) = core::str::from_utf8(data) else { return };
    if let Ok(key) = pem::decode_public(text) {
        assert_eq!(pem::decode_public(&pem::encode_public(&key)), Ok(key));
    }
    if let Ok(seed) = pem::decode_private(text) {
        let again = pem::decode_private(&pem::encode_private(&seed));
        assert_eq!(again.as_ref().map(|seed| **seed), Ok(*seed));
    }
}

/// Canonical JSON is JSON, means the same as its source, and is its own canonical form.
pub fn canonical_json(data: &[u8]) {
    let Ok(value) = serde_json::from_slice::<Value>(data) else { return };
    let text = canonical::to_canonical(&value);
    match serde_json::from_str::<Value>(&text) {
        Ok(again) => assert_eq!(canonical::to_canonical(&again), text, "canonical of canonical"),
        Err(error) => panic!("canonical JSON does not parse: {error}: {text}"),
    }
}

/// A file that says to be a trace ends in its end, in a difference or in an error; and says the same again.
///
/// As it is, and with its checksums put right, so that the fuzzer gets past them.
pub fn trace_file(data: &[u8]) {
    for trace in [data.to_vec(), trace::mended(data)] {
        let run = || {
            let mut replay = Replay::new(Reader::new(&trace)?, Pure)?;
            let mut steps = 0_u64;
            let mut last = None;
            while let Some(step) = replay.step()? {
                steps += 1;
                last = Some(step);
            }
            Ok::<_, TraceError>((steps, last))
        };
        let first = run();
        if let Ok((_, last)) = &first {
            assert!(matches!(last, Some((_, Step::End(_) | Step::Difference(_)))), "a replay ends: {last:?}");
        }
        // As text: what is no number is no difference.
        assert_eq!(alloc::format!("{first:?}"), alloc::format!("{:?}", run()));
        let Ok(mut reader) = Reader::new(&trace) else { continue };
        while let Ok(Some((_, record))) = reader.next_record() {
            match record {
                Record::Input { input, .. } => assert!(!about::input(&input).contains('\n')),
                Record::Output(output) => assert!(!about::output(&output).contains('\n')),
                Record::Told { .. } | Record::Wanted(_) | Record::End(_) => {}
            }
        }
    }
}

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
    }
}

struct Script {
    data: VecDeque<u8>,
}

impl Script {
    fn byte(&mut self) -> u8 {
        self.data.pop_front().unwrap_or(0)
    }

    fn bytes(&mut self) -> Vec<u8> {
        let len = usize::from(self.byte()) << (self.byte() % 4);
        let len = len.min(self.data.len());
        self.data.drain(..len).collect()
    }

    fn text(&mut self) -> String {
        String::from_utf8_lossy(&self.bytes()).into_owned()
    }
}

struct World {
    node: Node<Pure>,
    now: Now,
    link: LinkId,
    last_sent: Vec<u8>,
    server: Option<Session<Pure>>,
    sealed: Vec<Vec<u8>>,
    /// Bytes given to the link that it has not taken.
    untaken: usize,
    held: bool,
    /// Open sockets: bytes given, and whether a read is wanted.
    sockets: BTreeMap<SocketId, (usize, usize)>,
    next_socket: u64,
    websockets: BTreeSet<LocalId>,
    effects: BTreeSet<EffectId>,
    used_effects: BTreeSet<EffectId>,
    asked: BTreeSet<LocalId>,
    next_local: u64,
    finished: bool,
}

impl World {
    fn new(mode: Option<Mode>) -> Self {
        let now = Now { monotonic: Duration::from_secs(5), unix: Duration::from_secs(UNIX) };
        let config = Config {
            mode,
            tunnel_url: "wss://network.example/node/tunnel".into(),
            server_key: None,
            identity_seed: [1; 32].into(),
            candidate_id: None,
            registration: (mode != Some(Mode::Eval)).then(|| Registration::new("node-1")),
            manifest: Manifest::of_this_release("0.1.0", "unknown", "linux-x64"),
            limits: Limits { max_requests: 4, ..Limits::default() },
            allow_private_targets: false,
            spent_before: Before::from_file(&[b'x'; 1]),
            updates: Settings::default(),
        };
        Self {
            node: Node::new(config, Pure, [2; 32], now),
            now,
            link: LinkId(0),
            last_sent: Vec::new(),
            server: None,
            sealed: Vec::new(),
            untaken: 0,
            held: false,
            sockets: BTreeMap::new(),
            next_socket: 0,
            websockets: BTreeSet::new(),
            effects: BTreeSet::new(),
            used_effects: BTreeSet::new(),
            asked: BTreeSet::new(),
            next_local: 0,
            finished: false,
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
            9 => {
                let ready = alloc::format!(
                    r#"{{"type":"ready","timestamp":{UNIX},"session_id":"s","mode":"control"}}"#
                );
                self.seal(FrameType::Data, ready.as_bytes());
            }
            10 => {
                if let Some(effect) = self.effects.pop_first() {
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
    fn accept(&mut self) {
        let signer = Identity::from_seed(Pure, &[4; 32]);
        let key = *Identity::from_seed(Pure, &[1; 32]).public_key();
        let mut rng = Drbg::new([5; 32]);
        let accepted =
            peer::handshake::accept(&Pure, Some(&signer), &self.last_sent, |_| Some(key), &mut rng, self.now);
        if let Ok(accepted) = accepted {
            self.server = Some(accepted.session);
            let link = self.link;
            self.feed(Input::LinkBinary { link, data: accepted.message });
        }
    }

    fn seal(&mut self, kind: FrameType, plaintext: &[u8]) {
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
        let id = LocalId(self.next_local);
        self.next_local += 1;
        self.asked.insert(id);
        self.feed(Input::Local {
            id,
            request: LocalRequest { method, target, headers, body: script.bytes() },
        });
    }

    fn feed(&mut self, input: Input) {
        self.node.handle_input(self.now, input);
        // One input adds few outputs; the end of a session closes all its streams.
        for _ in 0..4096 {
            match self.node.poll_output() {
                Output::Compute { job } => self.node.compute(self.now, job),
                Output::Wait(deadline) => {
                    if let Some(deadline) = deadline {
                        assert!(!self.finished, "a finished node waits for nothing");
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
                        let opened = server.open(&mut data.clone()).map(|(kind, _)| kind);
                        assert!(opened.is_ok(), "the server cannot open what the node sent: {opened:?}");
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
                Output::Perform { id, .. } => {
                    assert!(self.used_effects.insert(id), "an effect's number is used once");
                    self.effects.insert(id);
                    assert!(!self.finished || self.asked.is_empty(), "a finished node does nothing");
                }
                Output::Cancel { id } => assert!(self.used_effects.contains(&id)),
                Output::Respond { id, response } => {
                    assert!(self.asked.remove(&id), "one answer a request");
                    if response.status == 101 {
                        self.websockets.insert(id);
                    } else {
                        assert!((200..=599).contains(&response.status));
                    }
                }
                Output::Event(event) => {
                    let text = alloc::string::ToString::to_string(&event);
                    assert!(!text.chars().any(char::is_control), "an event fit for a terminal: {text:?}");
                }
                Output::Finish(finish) => {
                    assert!(!self.finished, "one end");
                    assert!(!finish.message.chars().any(char::is_control), "{:?}", finish.message);
                    self.finished = true;
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

#[cfg(test)]
mod tests {
    use super::*;
    use std::{eprintln, fs, path::Path};

    /// Runs a body over its committed corpus.
    fn replay(target: &str, body: fn(&[u8])) {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz/corpus").join(target);
        let mut count = 0;
        for entry in fs::read_dir(&folder).unwrap() {
            let path = entry.unwrap().path();
            eprintln!("{}", path.display());
            body(&fs::read(&path).unwrap());
            count += 1;
        }
        assert!(count > 0, "no corpus in {}", folder.display());
    }

    #[test]
    fn the_corpus_of_frame_holds() {
        replay("frame", frame);
    }

    #[test]
    fn the_corpus_of_handshake_holds() {
        replay("handshake", handshake);
    }

    #[test]
    fn the_corpus_of_message_holds() {
        replay("message", message);
    }

    #[test]
    fn the_corpus_of_pem_holds() {
        replay("pem", pem_key);
    }

    #[test]
    fn the_corpus_of_canonical_json_holds() {
        replay("canonical_json", canonical_json);
    }

    #[test]
    fn the_corpus_of_trace_file_holds() {
        replay("trace_file", trace_file);
    }

    #[test]
    fn the_corpus_of_node_holds() {
        replay("node", node);
    }
}
