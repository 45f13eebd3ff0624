//! The hot paths of a node, each ready to be done once: `stages` times them, `instructions` counts them.
//!
//! What the other side does (clients, servers, targets) is done while a path is prepared, so that only the node's own
//! work is in what is done.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::Duration;

use consensus_core::crypto::identity::Identity;
use consensus_core::crypto::{Crypto, Drbg};
use consensus_core::data_plane::dedupe;
use consensus_core::data_plane::replay::{Before, Spent};
use consensus_core::data_plane::responder::{self, Answer, Gate, Opened, Request, Responder};
use consensus_core::data_plane::ticket;
use consensus_core::guard;
use consensus_core::io::{Audience, EffectId, EffectResult, Input, LinkId, Output, Response, SocketId};
use consensus_core::limits::Limits;
use consensus_core::node::{Config, Node};
use consensus_core::peer::client::{self, Connecting};
use consensus_core::peer::handshake;
use consensus_core::peer::streams::StreamTarget;
use consensus_core::release::manifest::Manifest;
use consensus_core::state::Registration;
use consensus_core::time::Now;
use consensus_core::tunnel::Mode;
use consensus_core::tunnel::session::Session;
use consensus_core::update::Settings;
use consensus_core::wire::frame::{FrameBuf, FrameType};
use consensus_core::wire::message::{BodyEncoding, Message, ProxyRequest, Ready, StreamOpen, stream_data};
use consensus_core::wire::mux::{MuxKind, head};
use consensus_core::wire::{base64, canonical};

const NOW: Now = Now { monotonic: Duration::from_secs(5), unix: Duration::from_secs(1_795_391_521) };
const NODE_ID: &str = "node-1";
const NODE_SEED: [u8; 32] = [2; 32];
const TARGET: &str = "http://203.0.114.10/b/c?d=e";
const KIB: usize = 1024;

/// What is left to do of a path that was prepared: the node's own work, once.
pub(crate) type Work = Box<dyn FnOnce()>;

/// Prepares a path once more. What was prepared is to be done in the order of its preparation.
pub(crate) type Path = Box<dyn FnMut() -> Work>;

/// A path by its name, for content of so many KiB; 0 where size does not matter.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Name {
    /// What is done.
    pub(crate) path: &'static str,
    /// With how much.
    pub(crate) kib: usize,
}

const fn name(path: &'static str, kib: usize) -> Name {
    Name { path, kib }
}

/// All of them.
pub(crate) const NAMES: [Name; 28] = [
    name("data-plane handshake", 0),
    name("data-plane open", 0),
    name("data-plane verify", 0),
    name("data-plane encode", 1),
    name("data-plane encode", 16),
    name("data-plane encode", 256),
    name("data-plane seal", 1),
    name("data-plane seal", 16),
    name("data-plane seal", 256),
    name("data-plane request", 1),
    name("data-plane request", 16),
    name("data-plane request", 256),
    name("proxy_request", 1),
    name("proxy_request", 16),
    name("proxy_request", 256),
    name("raw-tunnel to the target", 1),
    name("raw-tunnel to the target", 16),
    name("raw-tunnel to the client", 1),
    name("raw-tunnel to the client", 16),
    name("public-tunnel to the owner", 1),
    name("public-tunnel to the owner", 16),
    name("public-tunnel to the visitor", 1),
    name("public-tunnel to the visitor", 16),
    name("ping", 0),
    name("dedupe key", 0),
    name("guard", 0),
    name("canonical manifest", 0),
    name("tunnel handshake", 0),
];

impl std::fmt::Display for Name {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.kib {
            0 => f.pad(self.path),
            kib => f.pad(&format!("{}, {kib} KiB", self.path)),
        }
    }
}

impl Name {
    /// The path of that name, tried once: what it does is right.
    pub(crate) fn find<C: Crypto + Default + 'static>(self) -> Path {
        let size = self.kib * KIB;
        let paid = || Paid::<C>::new(size);
        let mut path = match self.path {
            "data-plane handshake" => paid().handshake(),
            "data-plane open" => paid().open(),
            "data-plane verify" => paid().verify(),
            "data-plane encode" => paid().encode(),
            "data-plane seal" => paid().seal(),
            "data-plane request" => paid().whole(),
            "proxy_request" => Tunnel::<C>::connected().proxy_request(size),
            "raw-tunnel to the target" => Tunnel::<C>::connected().raw_to_target(size),
            "raw-tunnel to the client" => Tunnel::<C>::connected().raw_to_client(size),
            "public-tunnel to the owner" => Tunnel::<C>::connected().public_to_owner(size),
            "public-tunnel to the visitor" => Tunnel::<C>::connected().public_to_visitor(size),
            "ping" => Tunnel::<C>::connected().ping(),
            "dedupe key" => dedupe_key::<C>(),
            "guard" => judged(),
            "canonical manifest" => canonical_manifest(),
            "tunnel handshake" => tunnel_handshake::<C>(),
            other => unreachable!("{other} is none of NAMES"),
        };
        path()();
        path
    }
}

fn content(size: usize) -> Vec<u8> {
    let mut out = vec![0; size];
    Drbg::new([1; 32]).fill(&mut out);
    out
}

fn response(size: usize) -> Response {
    let header = |name: &str, value: &str| (name.to_owned(), value.to_owned());
    Response {
        status: 200,
        reason: "OK".to_owned(),
        headers: vec![header("content-type", "text/plain"), header("content-length", &size.to_string())],
        body: content(size),
    }
}

fn headers() -> BTreeMap<String, String> {
    let header = |name: &str, value: &str| (name.to_owned(), value.to_owned());
    BTreeMap::from([header("accept", "*/*"), header("accept-language", "en"), header("x-request", "1")])
}

/// A client of the data plane, its tickets, and the node's half.
struct Paid<C: Crypto> {
    crypto: C,
    identity: Rc<Identity<C>>,
    issuer: C::SigningKey,
    issuer_key: [u8; 32],
    request: client::Request,
    response: Rc<Response>,
    spent: Rc<RefCell<Spent>>,
    rng: Drbg,
    number: u64,
}

impl<C: Crypto + Default + 'static> Paid<C> {
    fn new(size: usize) -> Self {
        let crypto = C::default();
        let issuer = crypto.signing_key(&[3; 32]);
        Self {
            identity: Rc::new(Identity::from_seed(crypto.clone(), &NODE_SEED)),
            issuer_key: crypto.public_key(&issuer),
            issuer,
            crypto,
            request: client::Request {
                target_url: TARGET.to_owned(),
                method: Some("GET".to_owned()),
                headers: headers(),
                body: None,
            },
            response: Rc::new(response(size)),
            spent: Rc::new(RefCell::new(Spent::new(NOW, Before::Never))),
            rng: Drbg::new([1; 32]),
            number: 0,
        }
    }

    fn token(&mut self) -> String {
        self.number += 1;
        let claims = ticket::Claims {
            iss: ticket::ISSUER.into(),
            aud: NODE_ID.into(),
            sub: self.request.dedupe_key(&self.crypto).expect("the target is a URL").into(),
            scope: ticket::SCOPE.into(),
            iat: NOW.unix_seconds(),
            exp: NOW.unix_seconds() + 60,
            jti: format!("{:032x}", self.number).into(),
        };
        ticket::issue(&self.crypto, &self.issuer, "k", &claims)
    }

    /// A connection whose request has come, and the frame of that; `init` is what it began with.
    fn asked(&mut self) -> (Vec<u8>, Responder<C>, Session<C>, Vec<u8>) {
        let token = self.token();
        let (connecting, init) = Connecting::start(self.crypto.clone(), NODE_ID, &mut self.rng, NOW);
        let (crypto, identity) = (self.crypto.clone(), &*self.identity);
        let (responder, accept) = responder::accept(crypto, identity, NODE_ID, &init, &mut self.rng, NOW)
            .expect("the init is right");
        let mut session = connecting
            .finish(&accept, self.identity.public_key(), self.rng.fork(), NOW)
            .expect("the accept is right");
        let frame = session.seal(FrameType::Data, self.request.encode(&token));
        (init, responder, session, frame)
    }

    fn opened(&mut self) -> (Opened<C>, Session<C>) {
        let (_, responder, session, mut frame) = self.asked();
        (responder.open(&mut frame, KIB).expect("the request is right"), session)
    }

    fn verified(&mut self) -> (Request<C>, Session<C>) {
        let (opened, session) = self.opened();
        let gate = Gate { issuer_key: Some(&self.issuer_key), node_id: NODE_ID };
        (opened.verify(gate, NOW).expect("the ticket is right"), session)
    }

    fn answer(&mut self) -> (Answer<C>, Session<C>) {
        let response = Rc::clone(&self.response);
        let (request, session) = self.verified();
        (request.encode(&response), session)
    }

    fn handshake(mut self) -> Path {
        Box::new(move || {
            let (_, init) = Connecting::start(self.crypto.clone(), NODE_ID, &mut self.rng, NOW);
            let (crypto, identity) = (self.crypto.clone(), Rc::clone(&self.identity));
            let mut rng = self.rng.fork();
            Box::new(move || {
                let accepted = responder::accept(crypto, &identity, NODE_ID, &init, &mut rng, NOW);
                accepted.expect("the init is right");
            })
        })
    }

    fn open(mut self) -> Path {
        Box::new(move || {
            let (_, responder, _, mut frame) = self.asked();
            Box::new(move || drop(responder.open(&mut frame, KIB).expect("the request is right")))
        })
    }

    fn verify(mut self) -> Path {
        Box::new(move || {
            let (opened, _) = self.opened();
            let (issuer_key, spent) = (self.issuer_key, Rc::clone(&self.spent));
            Box::new(move || {
                let gate = Gate { issuer_key: Some(&issuer_key), node_id: NODE_ID };
                let request = opened.verify(gate, NOW).expect("the ticket is right");
                spent.borrow_mut().spend(&request.ticket, NOW).expect("the ticket is not spent");
            })
        })
    }

    fn encode(mut self) -> Path {
        Box::new(move || {
            let (request, _) = self.verified();
            let response = Rc::clone(&self.response);
            Box::new(move || drop(request.encode(&response)))
        })
    }

    fn seal(mut self) -> Path {
        let (answer, mut session) = self.answer();
        assert_answered(&mut session, answer.seal(), &self.response);
        Box::new(move || {
            let (answer, _) = self.answer();
            Box::new(move || drop(answer.seal()))
        })
    }

    /// All of it in one go: where keys do not differ, a request sealed for one connection opens on the next.
    fn whole(mut self) -> Path {
        Box::new(move || {
            let (init, _, mut session, mut frame) = self.asked();
            let (crypto, identity) = (self.crypto.clone(), Rc::clone(&self.identity));
            let (response, spent) = (Rc::clone(&self.response), Rc::clone(&self.spent));
            let (issuer_key, mut rng) = (self.issuer_key, self.rng.fork());
            let is_first = self.number == 1;
            Box::new(move || {
                let (responder, _) = responder::accept(crypto, &identity, NODE_ID, &init, &mut rng, NOW)
                    .expect("the init is right");
                let gate = Gate { issuer_key: Some(&issuer_key), node_id: NODE_ID };
                let opened = responder.open(&mut frame, KIB).expect("the request is right");
                let request = opened.verify(gate, NOW).expect("the ticket is right");
                spent.borrow_mut().spend(&request.ticket, NOW).expect("the ticket is not spent");
                let frame = request.encode(&response).seal();
                if is_first {
                    assert_answered(&mut session, frame, &response);
                }
            })
        })
    }
}

fn assert_answered<C: Crypto>(session: &mut Session<C>, mut frame: Vec<u8>, response: &Response) {
    let (_, plaintext) = session.open(&mut frame).expect("the answer is sealed for the client");
    let answer: serde_json::Value = serde_json::from_slice(plaintext).expect("the answer is JSON");
    let body = base64::decode(answer["body"].as_str().unwrap_or_default());
    assert_eq!(body.as_ref(), Some(&response.body));
}

/// A node that is attached, and the server's end of its tunnel.
struct Tunnel<C: Crypto> {
    node: Node<C>,
    server: Session<C>,
    link: LinkId,
    /// What the node sent last.
    frame: Vec<u8>,
    effect: Option<EffectId>,
    socket: Option<SocketId>,
    /// What the target was given last.
    for_target: Vec<u8>,
}

impl<C: Crypto + Default + 'static> Tunnel<C> {
    fn connected() -> Self {
        let crypto = C::default();
        let key = *Identity::from_seed(crypto.clone(), &NODE_SEED).public_key();
        let config = Config {
            mode: Some(Mode::Control),
            tunnel_url: "wss://network.example/node/tunnel".into(),
            server_key: None,
            identity_seed: NODE_SEED.into(),
            candidate_id: None,
            registration: Some(Registration::new(NODE_ID)),
            manifest: Manifest::of_this_release("0.1.0", "unknown", "linux-x64"),
            limits: Limits::default(),
            allow_private_targets: false,
            spent_before: Before::Never,
            updates: Settings::default(),
        };
        let mut node = Node::new(config, crypto.clone(), [4; 32], NOW);
        node.handle_input(NOW, Input::Tick);
        let mut link = LinkId(0);
        let mut init = Vec::new();
        for input in [None, Some(())] {
            if input.is_some() {
                node.handle_input(NOW, Input::LinkOpened { link });
            }
            loop {
                match node.poll_output() {
                    Output::Wait(_) => break,
                    Output::OpenLink { link: opened, .. } => link = opened,
                    Output::Send { data, .. } => init = data,
                    _ => {}
                }
            }
        }
        let mut rng = Drbg::new([5; 32]);
        let accepted = handshake::accept(&crypto, None, &init, |_| Some(key), &mut rng, NOW)
            .expect("the node's handshake is right");
        let (frame, server) = (Vec::new(), accepted.session);
        let mut tunnel =
            Self { node, server, link, frame, effect: None, socket: None, for_target: Vec::new() };
        tunnel.feed(Input::LinkBinary { link, data: accepted.message });
        let hello = tunnel.said();
        assert!(matches!(hello, Message::Hello(_)), "{hello:?}");
        let ready = Ready { session_id: tunnel.server.session_id().to_owned(), mode: Mode::Control };
        let data = tunnel.sealed(ready.encode(NOW.unix_seconds()));
        tunnel.feed(Input::LinkBinary { link, data });
        tunnel
    }

    fn feed(&mut self, input: Input) {
        self.node.handle_input(NOW, input);
        let mut sent = 0;
        loop {
            match self.node.poll_output() {
                Output::Wait(_) if sent == 0 => return,
                Output::Wait(_) => {
                    self.node.handle_input(NOW, Input::LinkSent { link: self.link, bytes: sent });
                    sent = 0;
                }
                Output::Send { data, .. } => {
                    sent += data.len();
                    self.frame = data;
                }
                Output::Perform { id, .. } => self.effect = Some(id),
                Output::OpenSocket { socket, .. } => self.socket = Some(socket),
                Output::SendSocket { data, .. } => self.for_target = data,
                Output::ReadSocket { .. } | Output::Event(_) => {}
                other => panic!("not expected here: {other:?}"),
            }
        }
    }

    fn sealed(&mut self, plaintext: FrameBuf) -> Vec<u8> {
        self.server.seal(FrameType::Data, plaintext)
    }

    /// The message that the node sent last.
    fn said(&mut self) -> Message {
        let mut frame = std::mem::take(&mut self.frame);
        let (_, plaintext) = self.server.open(&mut frame).expect("the node seals for the server");
        Message::parse(plaintext).expect("the node speaks the protocol")
    }

    /// The bytes that the node sent last on a stream.
    fn said_on(&mut self, stream: &str) -> Vec<u8> {
        match self.said() {
            Message::StreamData(data) if data.stream_id == stream => {
                base64::decode(&data.data).expect("base64")
            }
            other => panic!("not data of {stream}: {other:?}"),
        }
    }

    fn open_stream(&mut self, stream_id: &str, target: &StreamTarget) {
        let open = StreamOpen { stream_id: stream_id.into(), target: target.encode() };
        let data = self.sealed(open.encode(NOW.unix_seconds()));
        self.feed(Input::LinkBinary { link: self.link, data });
    }

    /// A path that begins with a message of the server.
    fn told(self, mut message: impl FnMut() -> FrameBuf + 'static, then: fn(&mut Self)) -> Path {
        let tunnel = Rc::new(RefCell::new(self));
        Box::new(move || {
            let data = tunnel.borrow_mut().sealed(message());
            let tunnel = Rc::clone(&tunnel);
            Box::new(move || {
                let mut tunnel = tunnel.borrow_mut();
                let link = tunnel.link;
                tunnel.feed(Input::LinkBinary { link, data });
                then(&mut tunnel);
            })
        })
    }

    fn proxy_request(mut self, size: usize) -> Path {
        let response = response(size);
        let request = || ProxyRequest {
            id: "a3f1".into(),
            target_url: TARGET.into(),
            method: Some("GET".into()),
            headers: Some(headers()),
            body: None,
            body_encoding: BodyEncoding::default(),
        };
        let data = self.sealed(request().encode(NOW.unix_seconds()));
        self.feed(Input::LinkBinary { link: self.link, data });
        self.answer_fetch(response.clone());
        match self.said() {
            Message::ProxyResponse(answer) => {
                assert_eq!(base64::decode(&answer.body), Some(response.body.clone()));
            }
            other => panic!("not an answer: {other:?}"),
        }
        let tunnel = Rc::new(RefCell::new(self));
        Box::new(move || {
            let data = tunnel.borrow_mut().sealed(request().encode(NOW.unix_seconds()));
            let (tunnel, response) = (Rc::clone(&tunnel), response.clone());
            Box::new(move || {
                let mut tunnel = tunnel.borrow_mut();
                let link = tunnel.link;
                tunnel.feed(Input::LinkBinary { link, data });
                tunnel.answer_fetch(response);
            })
        })
    }

    fn answer_fetch(&mut self, response: Response) {
        let effect = self.effect.take().expect("the node fetches");
        self.feed(Input::Done { effect, result: EffectResult::Fetched(Ok(response)) });
    }

    fn raw(&mut self) -> SocketId {
        self.open_stream("r", &StreamTarget::RawTunnel { host: "203.0.114.10".into(), port: 22 });
        let socket = self.socket.expect("the node connects");
        self.feed(Input::SocketOpened { socket });
        socket
    }

    fn raw_to_target(mut self, size: usize) -> Path {
        let socket = self.raw();
        let bytes = content(size);
        let data = self.sealed(stream_data(NOW.unix_seconds(), "r", &bytes));
        self.feed(Input::LinkBinary { link: self.link, data });
        assert_eq!(self.for_target, bytes);
        self.for_target = Vec::new();
        self.feed(Input::SocketSent { socket, bytes: size });
        self.told(
            move || stream_data(NOW.unix_seconds(), "r", &bytes),
            |tunnel| {
                let bytes = std::mem::take(&mut tunnel.for_target).len();
                assert!(bytes > 0, "the target was given nothing");
                let socket = tunnel.socket.expect("it is open");
                tunnel.feed(Input::SocketSent { socket, bytes });
            },
        )
    }

    fn raw_to_client(mut self, size: usize) -> Path {
        let socket = self.raw();
        let bytes = content(size);
        self.feed(Input::SocketData { socket, data: bytes.clone() });
        assert_eq!(self.said_on("r"), bytes);
        let tunnel = Rc::new(RefCell::new(self));
        Box::new(move || {
            let (tunnel, data) = (Rc::clone(&tunnel), bytes.clone());
            Box::new(move || tunnel.borrow_mut().feed(Input::SocketData { socket, data }))
        })
    }

    /// The number of a visitor whose name is `v`; the owner's stream is `o`.
    fn public(&mut self) -> u32 {
        let tunnel_id = || "full-spit".to_owned();
        self.open_stream("o", &StreamTarget::TunnelOwner { tunnel_id: tunnel_id() });
        self.open_stream(
            "v",
            &StreamTarget::TunnelVisitor { tunnel_id: tunnel_id(), initial_data: Vec::new() },
        );
        let open = self.said_on("o");
        u32::from_be_bytes(open[1..5].try_into().expect("a frame has a head"))
    }

    fn public_to_owner(mut self, size: usize) -> Path {
        self.public();
        let bytes = content(size);
        let data = self.sealed(stream_data(NOW.unix_seconds(), "v", &bytes));
        self.feed(Input::LinkBinary { link: self.link, data });
        assert_eq!(self.said_on("o")[5..], bytes);
        self.told(move || stream_data(NOW.unix_seconds(), "v", &bytes), |_| {})
    }

    fn public_to_visitor(mut self, size: usize) -> Path {
        let visitor = self.public();
        let bytes = content(size);
        let datum = [&head(MuxKind::Data, visitor)[..], &bytes].concat();
        let data = self.sealed(stream_data(NOW.unix_seconds(), "o", &datum));
        self.feed(Input::LinkBinary { link: self.link, data });
        assert_eq!(self.said_on("v"), bytes);
        self.told(move || stream_data(NOW.unix_seconds(), "o", &datum), |_| {})
    }

    fn ping(mut self) -> Path {
        let ping = |server: &mut Session<C>| server.seal(FrameType::Ping, FrameBuf::from_plaintext(b"{}"));
        let data = ping(&mut self.server);
        self.feed(Input::LinkBinary { link: self.link, data });
        let mut frame = std::mem::take(&mut self.frame);
        let kind = self.server.open(&mut frame).map(|(kind, _)| kind);
        assert_eq!(kind, Ok(FrameType::Pong));
        let tunnel = Rc::new(RefCell::new(self));
        Box::new(move || {
            let data = ping(&mut tunnel.borrow_mut().server);
            let tunnel = Rc::clone(&tunnel);
            Box::new(move || {
                let mut tunnel = tunnel.borrow_mut();
                let link = tunnel.link;
                tunnel.feed(Input::LinkBinary { link, data });
            })
        })
    }
}

fn dedupe_key<C: Crypto + Default + 'static>() -> Path {
    Box::new(|| {
        let headers = headers();
        Box::new(move || {
            let headers = headers.iter().map(|(name, value)| (name.as_str(), value.as_str()));
            assert!(dedupe::key(&C::default(), TARGET, "GET", headers, Some(b"body")).is_some());
        })
    })
}

fn judged() -> Path {
    Box::new(|| {
        let headers = headers().into_iter().collect();
        let bounds = Limits::default().bounds(KIB);
        Box::new(move || {
            let request = guard::Request { url: TARGET, method: Some("GET"), headers, body: None };
            assert!(guard::fetch(request, Audience::Stranger, bounds).is_ok());
        })
    })
}

fn canonical_manifest() -> Path {
    let manifest = Rc::new(Manifest::of_this_release("0.1.0", "unknown", "linux-x64"));
    Box::new(move || {
        let manifest = Rc::clone(&manifest);
        Box::new(move || assert!(canonical::of(&*manifest).is_ok_and(|text| text.starts_with('{'))))
    })
}

/// A node from its start to its introduction.
fn tunnel_handshake<C: Crypto + Default + 'static>() -> Path {
    Box::new(|| Box::new(|| drop(Tunnel::<C>::connected())))
}
