//! A control session that is up: whatever the network, targets and clients do, what is open here is what is open
//! there, everything that ends is said, nothing that has ended is held, and nothing waits for ever.

use alloc::collections::{BTreeMap, BTreeSet};
use alloc::format;
use alloc::string::{String, ToString as _};
use alloc::vec::Vec;
use core::time::Duration;

use arbitrary::Arbitrary;
use serde_json::{Value, json};

use super::node::World;
use super::ticket::{NODE_ID, Wanted, Written};
use super::transparent::Transparent;
use super::{UNIX, read};
use crate::crypto::Drbg;
use crate::crypto::identity::Identity;
use crate::io::{
    Effect, EffectResult, FetchError, FetchErrorKind, Input, LinkEnd, LocalRequest, Response, SocketEnd,
};
use crate::peer::client::{Answer, Connecting};
use crate::tunnel::Mode;
use crate::tunnel::session::Session;
use crate::wire::base64;
use crate::wire::frame::{FrameBuf, FrameType};
use crate::wire::message::Message;

#[derive(Debug, Default, Arbitrary)]
struct Script {
    actions: Vec<Action>,
}

#[derive(Debug, Arbitrary)]
enum Action {
    Wait {
        millis: u16,
    },
    /// Until the node wants to be called.
    Due,
    Open {
        stream: u8,
        target: Target,
    },
    Data {
        stream: u8,
        data: Data,
    },
    Close {
        stream: u8,
    },
    /// A client of the data plane, on its stream.
    Client {
        stream: u8,
        step: ClientStep,
    },
    Proxy {
        private: bool,
        body: Option<String>,
    },
    /// Any plaintext at all.
    Plaintext {
        kind: u8,
        text: String,
    },
    /// A frame that was sent before.
    Replay {
        nth: u8,
    },
    /// A fetch ends.
    Done {
        nth: u8,
        answer: Fetched,
    },
    Socket {
        nth: u8,
        what: Happens,
    },
    /// The link takes what it was given.
    Sent {
        kib: u8,
    },
    /// A client at the local API comes, says something, goes.
    Visit,
    Local {
        data: Vec<u8>,
    },
    Leave,
    Reconnect,
}

#[derive(Debug, Arbitrary)]
enum Target {
    Session,
    DataPlane,
    Raw { private: bool, port: u16 },
    Owner(u8),
    Visitor(u8, Option<Vec<u8>>),
    Any(String),
}

#[derive(Debug, Arbitrary)]
enum Data {
    Bytes(Vec<u8>),
    Request {
        id: u8,
        private: bool,
        body: Option<String>,
    },
    /// Of a public tunnel's owner.
    Mux {
        kind: u8,
        visitor: u8,
        payload: Vec<u8>,
    },
    /// What is no base64.
    Text(String),
}

#[derive(Debug, Arbitrary)]
enum ClientStep {
    Init,
    Request { written: Written, wanted: Wanted },
    Seal(Vec<u8>),
}

#[derive(Debug, Arbitrary)]
enum Fetched {
    Response { status: u16, headers: Vec<(String, String)>, body: Vec<u8> },
    Failed { detail: String },
    OtherKind,
}

#[derive(Debug, Arbitrary)]
enum Happens {
    Opened,
    Data(Vec<u8>),
    Sent,
    Closed,
    Failed(String),
    Unopened,
}

/// Somebody on a stream.
enum Client {
    Connecting(Connecting<Transparent>),
    Connected(Session<Transparent>),
}

/// The network's view of its node.
#[derive(Default)]
struct Network {
    /// Open streams, and whether each is of the data plane.
    open: BTreeMap<String, bool>,
    ended: BTreeSet<String>,
    /// Streams that data were sent on before they were open: the deployed server does.
    early: BTreeSet<String>,
    clients: BTreeMap<String, Client>,
}

/// The two views are one, at any time; and in the end nothing is left.
pub fn control(data: &[u8]) {
    let Script { actions } = read(data);
    let mut world = World::new(Some(Mode::Control));
    world.feed(Input::Tick);
    world.connect();
    let mut network = Network::default();
    network.compare(&mut world);
    for action in actions {
        network.act(&mut world, action);
        network.compare(&mut world);
    }
    settle(&mut world, &mut network);
}

/// Nothing happens any more but time.
fn settle(world: &mut World, network: &mut Network) {
    // The session lives on; what waits for somebody else has its time and no more.
    if world.is_up() {
        world.seal(FrameType::Pong, b"");
        world.idle(Duration::from_secs(120), true);
        network.compare(world);
        let held = world.node.holdings();
        assert!(world.is_up(), "pings are answered: the session stays");
        assert_eq!((held.requests, held.clients, held.deadlines), (0, 0, 0), "something waits for ever");
        assert!(world.asked.is_empty(), "a request of the local API waits for ever");
    }
    // The network is silent: the session goes, and what was of it.
    world.idle(Duration::from_secs(180), false);
    assert!(!world.is_up(), "a silent session is given up");
    network.lost();
    network.compare(world);
    let held = world.node.holdings();
    assert_eq!(held.under_way(), 0, "{held:?}");
    assert!(world.sockets.is_empty() && world.websockets.is_empty(), "closed with the session");
    world.feed(Input::Stop);
    world.idle(Duration::from_secs(3), false);
    assert!(world.finished.is_some(), "a stop that nobody answers comes to an end");
}

fn name(stream: u8) -> String {
    format!("s{}", stream % 8)
}

fn url(private: bool) -> &'static str {
    if private { "http://127.0.0.1/" } else { "http://target.example/" }
}

impl Network {
    fn act(&mut self, world: &mut World, action: Action) {
        let link = world.link;
        match action {
            Action::Wait { millis } => world.pass(Duration::from_millis(millis.into())),
            Action::Due => {
                let at = world.deadline.map_or(world.now.monotonic, |deadline| deadline.at);
                world.pass(at - world.now.monotonic);
            }
            Action::Open { stream, target } => self.open(world, name(stream), &target),
            Action::Data { stream, data } => {
                let data = match data {
                    Data::Bytes(bytes) => base64::encode(&bytes),
                    Data::Text(text) => text,
                    Data::Mux { kind, visitor, payload } => {
                        base64::encode(&[&[kind % 8, 0, 0, 0, visitor % 8][..], &payload].concat())
                    }
                    Data::Request { id, private, body } => {
                        let request = json!({"id": id, "url": url(private), "method": "PUT", "body": body});
                        base64::encode(request.to_string().as_bytes())
                    }
                };
                self.data(world, name(stream), data);
            }
            Action::Close { stream } => {
                let name = name(stream);
                if is_connected(world) && self.open.remove(&name).is_some() {
                    self.ended.insert(name.clone());
                    self.clients.remove(&name);
                }
                say(world, &json!({"type": "stream_close", "timestamp": UNIX, "stream_id": name}));
            }
            Action::Client { stream, step } => self.client(world, name(stream), step),
            Action::Proxy { private, body } => say(
                world,
                &json!({
                    "type": "proxy_request", "timestamp": UNIX, "id": "p", "target_url": url(private), "method": "PUT",
                    "body": body,
                }),
            ),
            Action::Plaintext { kind, text } => {
                let kinds = [FrameType::Data, FrameType::Ping, FrameType::Pong, FrameType::Handshake];
                // What opens or closes streams goes by their own actions, so that it is known here.
                if !text.contains("stream") && !text.contains("\\u") {
                    world.seal(kinds[usize::from(kind % 4)], text.as_bytes());
                }
            }
            Action::Replay { nth } => {
                if let Some(data) = world.sealed.get(usize::from(nth)).cloned() {
                    world.feed(Input::LinkBinary { link, data });
                }
            }
            Action::Done { nth, answer } => {
                let effect =
                    world.effects.iter().nth(usize::from(nth)).map(|(id, effect)| (*id, effect.clone()));
                let Some((effect, of)) = effect else { return };
                world.effects.remove(&effect);
                let result = match (of, answer) {
                    (Effect::Write { .. }, _) => EffectResult::Written(Ok(())),
                    (_, Fetched::OtherKind) => EffectResult::Written(Err("no".into())),
                    (_, Fetched::Response { status, headers, body }) => {
                        EffectResult::Fetched(Ok(Response { status, reason: String::new(), headers, body }))
                    }
                    (_, Fetched::Failed { detail }) => {
                        EffectResult::Fetched(Err(FetchError { kind: FetchErrorKind::Tls, detail }))
                    }
                };
                world.feed(Input::Done { effect, result });
            }
            Action::Socket { nth, what } => socket(world, nth, what),
            Action::Sent { kib } => {
                let bytes = world.untaken.min(usize::from(kib) * 1024);
                world.untaken -= bytes;
                world.feed(Input::LinkSent { link, bytes });
            }
            Action::Visit => visit(world),
            Action::Local { data } => {
                if let Some(id) = world.websockets.first().copied() {
                    world.feed(Input::LocalMessage { id, data });
                }
            }
            Action::Leave => {
                if let Some(id) = world.websockets.pop_last() {
                    world.feed(Input::LocalEnded { id });
                }
            }
            Action::Reconnect => {
                if world.is_up() {
                    world.feed(Input::LinkEnded { link, end: LinkEnd::Lost { detail: String::new() } });
                    self.lost();
                }
                world.said.clear();
                world.idle(Duration::from_secs(40), false);
                world.connect();
            }
        }
    }

    fn open(&mut self, world: &mut World, name: String, target: &Target) {
        let target = match target {
            Target::Session => "proxy-session".into(),
            Target::DataPlane => json!({"kind": "data-plane"}).to_string(),
            Target::Raw { private, port } => {
                let host = if *private { "10.0.0.1" } else { "target.example" };
                json!({"kind": "raw-tunnel", "host": host, "port": port}).to_string()
            }
            Target::Owner(tunnel) => {
                json!({"kind": "public-tunnel-owner", "tunnel_id": format!("t{}", tunnel % 2)}).to_string()
            }
            Target::Visitor(tunnel, data) => json!({
                "kind": "public-tunnel-stream", "tunnel_id": format!("t{}", tunnel % 2),
                "initial_data": data.as_ref().map(|data| base64::encode(data)),
            })
            .to_string(),
            Target::Any(text) => text.clone(),
        };
        if is_connected(world) && !self.open.contains_key(&name) {
            self.ended.remove(&name);
            let is_client =
                serde_json::from_str::<Value>(&target).is_ok_and(|value| value["kind"] == "data-plane");
            self.open.insert(name.clone(), is_client);
        }
        let open = json!({"type": "stream_open", "timestamp": UNIX, "stream_id": name, "target": target});
        say(world, &open);
    }

    fn data(&mut self, world: &mut World, name: String, data: String) {
        if !self.open.contains_key(&name) && !self.ended.contains(&name) {
            self.early.insert(name.clone());
        }
        say(world, &json!({"type": "stream_data", "timestamp": UNIX, "stream_id": name, "data": data}));
    }

    fn client(&mut self, world: &mut World, name: String, step: ClientStep) {
        if self.open.get(&name) != Some(&true) {
            return;
        }
        let bytes = match (step, self.clients.get_mut(&name)) {
            (ClientStep::Init, _) => {
                let mut rng = Drbg::new([world.now.monotonic.subsec_millis() as u8; 32]);
                let (connecting, init) = Connecting::start(Transparent, NODE_ID, &mut rng, world.now);
                self.clients.insert(name.clone(), Client::Connecting(connecting));
                init
            }
            (ClientStep::Request { written, wanted }, Some(Client::Connected(session))) => {
                let key = wanted.defined().unwrap_or_default();
                let claims = written.claims(&key, world.now.unix_seconds());
                let mut request = json!({
                    "type": "proxy_request", "token": written.token(&claims), "target_url": wanted.url(),
                    "headers": wanted.headers().into_iter().collect::<BTreeMap<_, _>>(),
                });
                if let Some(method) = wanted.method() {
                    request["method"] = method.into();
                }
                if let Some(body) = &wanted.body {
                    request["body"] = base64::encode(body).into();
                }
                session.seal(FrameType::Data, FrameBuf::from_plaintext(request.to_string().as_bytes()))
            }
            (ClientStep::Seal(plaintext), Some(Client::Connected(session))) => {
                session.seal(FrameType::Data, FrameBuf::from_plaintext(&plaintext))
            }
            (ClientStep::Request { .. } | ClientStep::Seal(_), _) => return,
        };
        self.data(world, name, base64::encode(&bytes));
    }

    /// The session is gone, and all names with it.
    fn lost(&mut self) {
        *self = Self::default();
    }

    /// What the node said; and then both sides must agree.
    fn compare(&mut self, world: &mut World) {
        for (kind, plaintext) in core::mem::take(&mut world.said) {
            if kind == FrameType::Data {
                match Message::parse(&plaintext) {
                    Ok(message) => self.hear(message),
                    Err(error) => panic!("the node said what is no message: {error}"),
                }
            }
        }
        if !world.is_up() {
            self.lost();
        }
        let Some(names) = world.node.stream_names() else { return };
        let held = world.node.holdings();
        let open: BTreeSet<String> = self.open.keys().cloned().collect();
        assert_eq!(names, open, "the node's streams, and the network's");
        assert_eq!(held.sockets, world.sockets.len(), "a connection for every raw tunnel, and no other");
        let on_streams = self.open.values().filter(|is_client| **is_client).count();
        assert_eq!(held.clients, on_streams + world.websockets.len(), "clients of the data plane");
        assert!(held.deadlines <= held.clients && held.jobs == 0, "{held:?}");
        let is_wanted = |(id, effect): &(&_, &Effect)| {
            matches!(effect, Effect::Fetch(_)) && !world.cancelled.contains(*id)
        };
        assert_eq!(held.requests, world.effects.iter().filter(is_wanted).count(), "fetches under way");
        assert!(held.requests <= 4 && held.streams + world.websockets.len() <= 6, "{held:?}");
        assert!(held.public_tunnels <= held.streams);
        assert!(held.requests > 0 || held.request_bytes == 0, "{held:?}");
    }

    fn hear(&mut self, message: Message) {
        match message {
            Message::StreamClose(close) => {
                let was_open = self.open.remove(&close.stream_id).is_some();
                assert!(was_open, "the node closes {}, which is not open", close.stream_id);
                self.clients.remove(&close.stream_id);
                self.ended.insert(close.stream_id);
            }
            Message::ErrorMessage(error) if error.code == "unsupported_stream_target" => {
                let Some(name) = error.reply_to else { return };
                self.open.remove(&name);
                self.ended.insert(name);
            }
            Message::StreamData(data) => {
                let name = data.stream_id;
                let may = self.open.contains_key(&name) || self.early.contains(&name);
                assert!(may, "the node sends on {name}, which has ended");
                let Some(bytes) = base64::decode(&data.data) else { panic!("data that are not base64") };
                self.hear_client(&name, bytes);
            }
            _ => {}
        }
    }

    fn hear_client(&mut self, name: &str, mut bytes: Vec<u8>) {
        let after = match self.clients.remove(name) {
            None => return,
            Some(Client::Connecting(connecting)) => {
                let identity = Identity::from_seed(Transparent, &[1; 32]);
                let now = super::START;
                // The proof's age is the client's affair, and its own test's.
                let accept: Value = serde_json::from_slice(&bytes).unwrap_or_default();
                let seconds = accept["proof"]["timestamp"].as_u64().unwrap_or(UNIX);
                let now = crate::time::Now { unix: Duration::from_secs(seconds), ..now };
                match connecting.finish(&bytes, identity.public_key(), Drbg::new([6; 32]), now) {
                    Ok(session) => Client::Connected(session),
                    Err(_) => return,
                }
            }
            Some(Client::Connected(mut session)) => {
                if let Ok((_, plaintext)) = session.open(&mut bytes) {
                    assert!(Answer::parse(plaintext).is_some(), "an answer that is none");
                }
                Client::Connected(session)
            }
        };
        self.clients.insert(name.into(), after);
    }
}

fn is_connected(world: &World) -> bool {
    world.is_up() && world.server.is_some()
}

fn say(world: &mut World, message: &Value) {
    world.seal(FrameType::Data, message.to_string().as_bytes());
}

fn visit(world: &mut World) {
    let fields = [
        ("host", "127.0.0.1:9090"),
        ("connection", "Upgrade"),
        ("upgrade", "websocket"),
        ("sec-websocket-version", "13"),
        ("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ=="),
    ];
    let headers = fields.map(|(name, value)| (name.into(), value.into())).into();
    world.ask(LocalRequest { method: "GET".into(), target: "/connect".into(), headers, body: Vec::new() });
}

fn socket(world: &mut World, nth: u8, what: Happens) {
    let nth = usize::from(nth) % world.sockets.len().max(1);
    let Some((socket, (unsent, most))) = world.sockets.iter().nth(nth).map(|(id, state)| (*id, *state))
    else {
        return;
    };
    let end = match what {
        Happens::Opened => return world.feed(Input::SocketOpened { socket }),
        Happens::Data(mut data) => {
            data.truncate(most);
            if !data.is_empty() {
                world.sockets.insert(socket, (unsent, 0));
                world.feed(Input::SocketData { socket, data });
            }
            return;
        }
        Happens::Sent => {
            world.sockets.insert(socket, (0, most));
            return world.feed(Input::SocketSent { socket, bytes: unsent });
        }
        Happens::Closed => SocketEnd::Closed,
        Happens::Failed(detail) => SocketEnd::Failed { detail },
        Happens::Unopened => {
            SocketEnd::Unopened(FetchError { kind: FetchErrorKind::Connect, detail: String::new() })
        }
    };
    world.sockets.remove(&socket);
    world.feed(Input::SocketEnded { socket, end });
}
