//! The server's part in one node's day: sessions, of which the newest counts, what it asks the node for, the clients
//! that it lets through, and the releases that it offers.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use consensus_core::crypto::identity::Identity;
use consensus_core::crypto::{Crypto as _, Drbg};
use consensus_core::data_plane::ticket::{self, Claims};
use consensus_core::io::{Input as NodeInput, LinkEnd};
use consensus_core::peer::client::{Answer, Connecting, Request};
use consensus_core::peer::handshake;
use consensus_core::peer::orchestrator::{Event, Input, Orchestrator, Output, ProxyFailure, Terms};
use consensus_core::peer::streams::StreamTarget;
use consensus_core::tunnel::session::Session;
use consensus_core::wire::frame::FrameType;
use consensus_core::wire::message::{
    BodyEncoding, Message, ProxyRequest, UpdateApply, UpdateFailed, UpdatePrepare, UpdateReady,
};
use consensus_core::wire::mux::{MuxFrame, MuxKind, head};
use serde_json::json;

use super::Planted;
use super::plan::{Dice, Plan, START_SPREAD};
use super::sham::Sham;
use super::world::{MONOTONIC, Seat, What, World};

/// Of the key that the server signs with, handshakes and tickets.
const SERVER_SEED: [u8; 32] = [4; 32];

/// How long a ticket is good for, in seconds.
const TICKET_LIFETIME: u64 = 60;

/// On the mean the server wants something of a node so often.
const TRAFFIC_EVERY: Duration = Duration::from_secs(20 * 60);

/// Before the end nothing new is asked for, so that all of it can come to its end.
const TRAFFIC_ENDS: Duration = Duration::from_secs(5 * 60);

/// A release that a node has not come to is offered again.
const OFFER_AGAIN: Duration = Duration::from_secs(10 * 60);

/// Something that the server does of its own accord.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Chore {
    /// It asks for something, and will do so again.
    Traffic,
    /// A stream should have ended.
    StreamDue { stream_id: String },
    /// A client shows a ticket.
    Show { ticket: usize },
    /// It looks whether the node is to have another release.
    Offer,
}

struct Ticket {
    request: Request,
    token: String,
    issued: Duration,
    shown: u32,
    accepted: u32,
    answered: u32,
}

struct Stream {
    link: u64,
    opened: Duration,
    kind: Kind,
}

enum Kind {
    Session,
    /// What is to come back of what was sent.
    Raw {
        left: usize,
    },
    Client(Box<Client>),
    /// It answers its only visitor.
    Owner,
    Visitor {
        owner: String,
    },
}

struct Client {
    ticket: usize,
    is_replay: bool,
    /// It says nothing after the handshake.
    is_idle: bool,
    step: Step,
}

enum Step {
    Connecting(Connecting<Sham>),
    Asked(Session<Sham>),
    Answered,
}

/// What the server knows of one node.
pub(super) struct Server {
    identity: Identity<Sham>,
    rng: Drbg,
    next: u64,
    /// Sessions that are ready. It is to be one at the most.
    ready: BTreeSet<u64>,
    attached: Option<u64>,
    version: String,
    heartbeat: Duration,
    requests: BTreeMap<String, Duration>,
    streams: BTreeMap<String, Stream>,
    tickets: Vec<Ticket>,
    /// Releases that the node will not take any more.
    failed: BTreeSet<usize>,
}

impl Server {
    pub(super) fn new(plan: &Plan, dice: &mut Dice) -> Self {
        Self {
            identity: Identity::from_seed(Sham, &SERVER_SEED),
            rng: Drbg::new(dice.bytes()),
            next: 0,
            ready: BTreeSet::new(),
            attached: None,
            version: plan.first.version.clone(),
            heartbeat: Duration::ZERO,
            requests: BTreeMap::new(),
            streams: BTreeMap::new(),
            tickets: Vec::new(),
            failed: BTreeSet::new(),
        }
    }

    pub(super) fn public_key(&self) -> [u8; 32] {
        *self.identity.public_key()
    }

    pub(super) fn is_attached(&self, link: u64) -> bool {
        self.attached == Some(link)
    }

    pub(super) fn last_heartbeat(&self) -> Duration {
        self.heartbeat
    }

    /// What it has in mind with a node, and when.
    pub(super) fn begin(&self, plan: &Plan, node: u32, dice: &mut Dice) -> Vec<(Duration, Chore)> {
        let offers = plan.releases.iter().filter_map(|release| release.offered_from(node));
        let first = START_SPREAD + dice.millis(0, TRAFFIC_EVERY.as_millis() as u64);
        offers.map(|at| (at, Chore::Offer)).chain([(first, Chore::Traffic)]).collect()
    }

    fn id(&mut self, kind: &str) -> String {
        self.next += 1;
        format!("{kind}{}", self.next)
    }
}

impl World<'_> {
    /// A message of the node arrives at the server.
    pub(super) fn serve(&mut self, id: u64, data: Vec<u8>) {
        let now = self.server_now();
        let Some(link) = self.link(id) else { return };
        match &mut link.seat {
            Seat::Gone => {}
            Seat::Open => self.shake_hands(id, &data),
            Seat::Up(server) => {
                server.handle_input(now, Input::Binary(data));
                self.drain_server(id);
            }
        }
    }

    fn shake_hands(&mut self, id: u64, init: &[u8]) {
        if self.has_planted(Planted::Deaf) && self.now > self.plan.length / 2 {
            return;
        }
        self.figures.handshake(self.now);
        let now = self.server_now();
        let key = Sham.public_key(&Sham.signing_key(&self.seed));
        let registered = |name: &str| (name == self.node_id).then_some(key);
        let server = &mut self.server;
        match handshake::accept(&Sham, Some(&server.identity), init, registered, &mut server.rng, now) {
            Ok(accepted) => {
                let rng = server.rng.fork();
                let session =
                    Orchestrator::new(Sham, accepted.session, accepted.caller, Terms::default(), rng, now);
                if let Some(link) = self.link(id) {
                    link.seat = Seat::Up(Box::new(session));
                }
                self.server_says(id, accepted.message);
                self.drain_server(id);
            }
            Err(reject) => {
                self.figures.counters.handshakes_refused += 1;
                self.server_says(id, reject.message(now));
                self.server_closes(id, 1008, "handshake refused".into());
            }
        }
    }

    fn server_says(&mut self, id: u64, data: Vec<u8>) {
        self.figures.counters.messages_down += 1;
        self.post(id, |link| NodeInput::LinkBinary { link, data });
    }

    fn server_closes(&mut self, id: u64, code: u16, reason: String) {
        self.server_loses(id);
        self.post(id, |link| NodeInput::LinkEnded { link, end: LinkEnd::Closed { code, reason } });
        self.tidy();
    }

    /// The server has that link no more, and nothing that was on it.
    pub(super) fn server_loses(&mut self, id: u64) {
        if let Some(link) = self.link(id) {
            link.seat = Seat::Gone;
            link.seat_wait = None;
        }
        self.server.ready.remove(&id);
        if self.server.attached == Some(id) {
            self.server.attached = None;
        }
        self.server.requests.clear();
        let before = self.server.streams.len();
        self.server.streams.retain(|_, stream| stream.link != id);
        self.figures.counters.streams_cut += (before - self.server.streams.len()) as u64;
    }

    pub(super) fn server_tick(&mut self, id: u64) {
        self.server_input(id, Input::Tick);
    }

    fn server_input(&mut self, id: u64, input: Input) {
        let now = self.server_now();
        if let Some(Seat::Up(server)) = self.link(id).map(|link| &mut link.seat) {
            server.handle_input(now, input);
            self.drain_server(id);
        }
    }

    fn drain_server(&mut self, id: u64) {
        loop {
            let Some(link) = self.link(id) else { return };
            let Seat::Up(server) = &mut link.seat else { return };
            match server.poll_output() {
                Output::Wait(deadline) => {
                    link.seat_wait = deadline.map(|deadline| deadline.at.saturating_sub(MONOTONIC));
                    return;
                }
                Output::Send(data) => self.server_says(id, data),
                Output::Close { code, reason } => return self.server_closes(id, code, reason),
                Output::Event(event) => self.learn(id, event),
            }
        }
    }

    fn learn(&mut self, id: u64, event: Event) {
        match event {
            Event::Ready(hello) => self.attach(id, hello.version),
            Event::Heartbeat(_) => {
                self.figures.counters.heartbeats += 1;
                if self.server.attached == Some(id) {
                    self.server.heartbeat = self.now;
                }
                self.check_holdings();
            }
            Event::Pinged => self.figures.counters.pings += 1,
            Event::Proxied { id, outcome } => {
                let asked = self.server.requests.remove(&id).unwrap_or_default();
                self.figures.counters.requests_failed += u64::from(outcome.is_err());
                if outcome == Err(ProxyFailure::TimedOut) && self.was_calm_since(asked) {
                    self.violated(&format!("request {id} was not answered"));
                }
            }
            Event::StreamData { stream_id, data } => self.stream_data(id, &stream_id, data),
            Event::StreamClosed { stream_id, .. } => {
                self.server.streams.remove(&stream_id);
            }
            Event::Message(message) => match *message {
                Message::UpdateReady(ready) => self.update_ready(id, ready),
                Message::UpdateFailed(failed) => self.update_failed(&failed),
                Message::ErrorMessage(error) if error.code == "decode_failed" => {
                    self.violated(&format!("it could not read what the server sent: {}", error.message));
                }
                _ => {}
            },
            Event::BadFrame(reason) => {
                self.violated(&format!("it sent what is not of the protocol: {reason}"));
            }
            Event::Pong
            | Event::StreamError { .. }
            | Event::Plaintext(_)
            | Event::Evaluated { .. }
            | Event::Judged { .. }
            | Event::Offered(_) => {}
        }
    }

    /// A session is ready: it takes the place of an older one of that node.
    fn attach(&mut self, id: u64, version: String) {
        self.figures.counters.sessions += 1;
        let older: Vec<u64> = self.server.ready.iter().copied().filter(|older| *older != id).collect();
        if !self.has_planted(Planted::OlderKept) {
            for older in older {
                self.figures.counters.replaced += 1;
                self.server_input(older, Input::Close);
            }
        }
        self.server.ready.insert(id);
        self.server.attached = Some(id);
        if self.server.ready.len() > 1 {
            self.violated(&format!("it has {} sessions at the server", self.server.ready.len()));
        }
        self.server.version = version;
        self.server.heartbeat = self.now;
        let young = |ticket: &Ticket| ticket.issued + Duration::from_secs(90) > self.now;
        let young = self.server.tickets.iter().rev().take_while(|ticket| young(ticket)).count();
        self.show_last(young);
        self.offer();
    }

    pub(super) fn do_chore(&mut self, chore: Chore) {
        match chore {
            Chore::Traffic => self.traffic(),
            Chore::StreamDue { stream_id } => self.stream_due(stream_id),
            Chore::Show { ticket } => self.show(ticket),
            Chore::Offer => self.offer(),
        }
    }

    fn is_over(&self) -> bool {
        self.now + TRAFFIC_ENDS > self.plan.length
    }

    fn traffic(&mut self) {
        if self.is_over() {
            return;
        }
        let next = self.dice.millis(0, 2 * TRAFFIC_EVERY.as_millis() as u64);
        self.after(next, What::Chore(Chore::Traffic));
        let Some(link) = self.server.attached else { return };
        match self.dice.below(100) {
            0..45 => self.ask(link),
            45..60 => self.proxy_session(link),
            60..70 => self.raw_tunnel(link),
            70..80 => self.public_tunnel(link),
            _ => self.client_comes(),
        }
    }

    fn ask(&mut self, link: u64) {
        self.figures.counters.requests += 1;
        let id = self.server.id("p");
        self.server.requests.insert(id.clone(), self.now);
        // One in ten is for an address that nobody may reach.
        let host = if self.dice.happens(10) { "10.0.0.1" } else { "203.0.114.10" };
        let request = ProxyRequest {
            target_url: format!("http://{host}/p/{id}"),
            id,
            method: None,
            headers: None,
            body: None,
            body_encoding: BodyEncoding::Utf8,
        };
        self.server_input(link, Input::Proxy(request));
    }

    /// Opens a stream that has to end, or to be answered, within that time.
    fn open(&mut self, link: u64, kind: Kind, target: StreamTarget, within: u64) -> String {
        self.figures.counters.streams += 1;
        let stream_id = self.server.id("s");
        self.server.streams.insert(stream_id.clone(), Stream { link, opened: self.now, kind });
        let due = Chore::StreamDue { stream_id: stream_id.clone() };
        self.after(Duration::from_secs(within), What::Chore(due));
        self.server_input(link, Input::OpenStream { stream_id: stream_id.clone(), target });
        stream_id
    }

    fn send_stream(&mut self, link: u64, stream_id: &str, data: Vec<u8>) {
        self.server_input(link, Input::SendStream { stream_id: stream_id.to_owned(), data });
    }

    fn close_stream(&mut self, link: u64, stream_id: &str) {
        self.server.streams.remove(stream_id);
        let reason = "no longer wanted".to_owned();
        self.server_input(link, Input::CloseStream { stream_id: stream_id.to_owned(), reason });
    }

    fn proxy_session(&mut self, link: u64) {
        let stream_id = self.open(link, Kind::Session, StreamTarget::ProxySession, 45);
        let datum = json!({ "id": "1", "url": format!("http://203.0.114.10/s/{stream_id}") });
        self.send_stream(link, &stream_id, datum.to_string().into_bytes());
    }

    fn raw_tunnel(&mut self, link: u64) {
        let left = 1 + self.dice.below(4096) as usize;
        let target = StreamTarget::RawTunnel { host: "203.0.114.20".into(), port: 7 };
        let stream_id = self.open(link, Kind::Raw { left }, target, 30);
        self.send_stream(link, &stream_id, vec![b'e'; left]);
    }

    fn public_tunnel(&mut self, link: u64) {
        let tunnel_id = self.server.id("t");
        let target = StreamTarget::TunnelOwner { tunnel_id: tunnel_id.clone() };
        let owner = self.open(link, Kind::Owner, target, 30);
        let target = StreamTarget::TunnelVisitor { tunnel_id, initial_data: b"hello".to_vec() };
        self.open(link, Kind::Visitor { owner }, target, 20);
    }

    /// A client wants something fetched, and pays for it.
    pub(super) fn client_comes(&mut self) {
        if self.is_over() || self.server.attached.is_none() {
            return;
        }
        let number = self.server.tickets.len();
        let target_url = format!("http://203.0.114.10/t/{number}");
        let request = Request { target_url, ..Request::default() };
        let now = self.server_now().unix_seconds();
        let claims = Claims {
            iss: ticket::ISSUER.into(),
            aud: self.node_id.as_str().into(),
            sub: request.dedupe_key(&Sham).unwrap_or_default().into(),
            scope: ticket::SCOPE.into(),
            iat: now,
            exp: now + TICKET_LIFETIME,
            jti: format!("ticket-{number}").into(),
        };
        let token = ticket::issue(&Sham, &Sham.signing_key(&SERVER_SEED), "k", &claims);
        let issued = self.now;
        self.server.tickets.push(Ticket { request, token, issued, shown: 0, accepted: 0, answered: 0 });
        self.figures.counters.tickets += 1;
        if self.dice.happens(40) {
            let after = self.dice.millis(500, 50_000);
            self.after(after, What::Chore(Chore::Show { ticket: number }));
        }
        self.show(number);
    }

    /// The last tickets are shown again, of whatever age.
    pub(super) fn show_again(&mut self) {
        self.show_last(6);
    }

    fn show_last(&mut self, count: usize) {
        let all = self.server.tickets.len();
        for ticket in all.saturating_sub(count)..all {
            let after = self.dice.millis(50, 3000);
            self.after(after, What::Chore(Chore::Show { ticket }));
        }
    }

    fn show(&mut self, number: usize) {
        let (Some(link), now, over) = (self.server.attached, self.server_now(), self.is_over()) else {
            return;
        };
        let Some(ticket) = self.server.tickets.get_mut(number).filter(|_| !over) else { return };
        let is_replay = ticket.accepted > 0;
        ticket.shown += 1;
        self.figures.counters.replays += u64::from(is_replay);
        let is_idle = !is_replay && self.dice.happens(5);
        let (connecting, init) = Connecting::start(Sham, &self.node_id, &mut self.server.rng, now);
        let client = Client { ticket: number, is_replay, is_idle, step: Step::Connecting(connecting) };
        let stream_id = self.open(link, Kind::Client(Box::new(client)), StreamTarget::DataPlane, 60);
        self.send_stream(link, &stream_id, init);
    }

    /// The request of a ticket is fetched: it was accepted.
    pub(super) fn ticket_accepted(&mut self, number: usize) {
        self.figures.counters.tickets_accepted += 1;
        let Some(ticket) = self.server.tickets.get_mut(number) else { return };
        ticket.accepted += 1;
        if ticket.accepted > 1 {
            let age = self.now.saturating_sub(ticket.issued);
            self.violated(&format!("ticket {number}, issued {age:?} ago, was accepted a second time"));
        }
    }

    /// What the node says on a stream.
    fn stream_data(&mut self, link: u64, stream_id: &str, data: Vec<u8>) {
        let Some(stream) = self.server.streams.get_mut(stream_id) else { return };
        match &mut stream.kind {
            Kind::Session => self.close_stream(link, stream_id),
            Kind::Raw { left } => {
                *left = left.saturating_sub(data.len());
                if *left == 0 {
                    self.close_stream(link, stream_id);
                }
            }
            Kind::Owner => match MuxFrame::parse(&data) {
                Ok(MuxFrame { kind: MuxKind::Open, stream, .. }) => {
                    let mut answer = head(MuxKind::Data, stream).to_vec();
                    answer.extend(b"welcome");
                    self.send_stream(link, stream_id, answer);
                    self.send_stream(link, stream_id, head(MuxKind::End, stream).to_vec());
                }
                Ok(_) => {}
                Err(error) => self.violated(&format!("the owner of a tunnel got {error}")),
            },
            Kind::Visitor { owner } => {
                // The end comes behind it, by the owner; the owner has nothing more to do then.
                let owner = owner.clone();
                self.close_stream(link, stream_id);
                self.close_stream(link, &owner);
            }
            Kind::Client(_) => self.client_hears(link, stream_id, data),
        }
    }

    fn client_hears(&mut self, link: u64, stream_id: &str, mut data: Vec<u8>) {
        let now = self.server_now();
        let key = Sham.public_key(&Sham.signing_key(&self.seed));
        let Some(Stream { opened, kind: Kind::Client(client), .. }) = self.server.streams.get_mut(stream_id)
        else {
            return;
        };
        let (number, opened) = (client.ticket, *opened);
        match std::mem::replace(&mut client.step, Step::Answered) {
            Step::Connecting(connecting) => {
                match connecting.finish(&data, &key, self.server.rng.fork(), now) {
                    Ok(_) if client.is_idle => {}
                    Ok(mut session) => {
                        let Some(ticket) = self.server.tickets.get(number) else { return };
                        let frame = session.seal(FrameType::Data, ticket.request.encode(&ticket.token));
                        client.step = Step::Asked(session);
                        self.send_stream(link, stream_id, frame);
                    }
                    Err(error) => {
                        self.figures.counters.proofs_refused += 1;
                        // By a clock that is off the proof is of another time.
                        if self.clock_off == 0 && self.was_calm_since(opened) {
                            self.violated(&format!("a client does not take its proof: {error}"));
                        }
                        self.close_stream(link, stream_id);
                    }
                }
            }
            Step::Asked(mut session) => {
                let is_replay = client.is_replay;
                let answer = session.open(&mut data).ok().and_then(|(_, plaintext)| Answer::parse(plaintext));
                match answer {
                    Some(Answer::Response { .. }) => {
                        let Some(ticket) = self.server.tickets.get_mut(number) else { return };
                        ticket.answered += 1;
                        if ticket.answered > 1 {
                            self.violated(&format!("ticket {number} was answered twice"));
                        }
                    }
                    Some(Answer::Error { code, .. }) => {
                        self.figures.counters.replays_refused +=
                            u64::from(is_replay && code == "unauthorized");
                    }
                    None => self.violated("a client cannot read its answer"),
                }
            }
            Step::Answered => self.violated("a client got more than one answer"),
        }
    }

    /// A stream should have ended.
    fn stream_due(&mut self, stream_id: String) {
        let Some(stream) = self.server.streams.get(&stream_id) else { return };
        if self.was_calm_since(stream.opened) {
            let kind = match &stream.kind {
                Kind::Session => "proxy session",
                Kind::Raw { .. } => "raw tunnel",
                Kind::Client(_) => "client of the data plane",
                Kind::Owner => "owner of a public tunnel",
                Kind::Visitor { .. } => "visitor of a public tunnel",
            };
            let what = format!("stream {stream_id}, a {kind}, neither ended nor was answered");
            return self.violated(&what);
        }
        // What is on its way may take its time.
        self.after(Duration::from_secs(120), What::Chore(Chore::StreamDue { stream_id }));
    }

    /// Offers the newest release that is there for this node.
    fn offer(&mut self) {
        let Some(link) = self.server.attached else { return };
        let (now, plan, node) = (self.now, self.plan, self.number);
        let is_offered = |at: &usize| {
            let release = &plan.releases[*at];
            release.offered_from(node).is_some_and(|from| from <= now)
                && release.withdrawn.is_none_or(|withdrawn| now < withdrawn)
        };
        let Some(at) = (0..plan.releases.len()).rev().find(is_offered) else { return };
        let manifest = &plan.releases[at].manifest;
        if self.server.failed.contains(&at) || self.server.version == manifest.version {
            return;
        }
        self.figures.counters.updates_offered += 1;
        let (id, update_id) = (self.server.id("u"), format!("release-{at}"));
        let prepare = UpdatePrepare { id, update_id, manifest: Box::new(manifest.clone()) };
        let seconds = self.server_now().unix_seconds();
        self.server_input(link, Input::Send(prepare.encode(seconds)));
        self.after(OFFER_AGAIN, What::Chore(Chore::Offer));
    }

    fn update_ready(&mut self, link: u64, ready: UpdateReady) {
        if ready.artifact_path.is_empty() {
            return;
        }
        let restart_after_ms = self.dice.below(5000);
        let apply = UpdateApply { id: self.server.id("a"), update_id: ready.update_id, restart_after_ms };
        let seconds = self.server_now().unix_seconds();
        self.server_input(link, Input::Send(apply.encode(seconds)));
    }

    fn update_failed(&mut self, failed: &UpdateFailed) {
        let at: Option<usize> = failed.update_id.strip_prefix("release-").and_then(|at| at.parse().ok());
        let was_rolled_back = failed.code == "apply_failed" && failed.message.contains("given up");
        let is_refused =
            ["is another release", "is not tried again"].iter().any(|reason| failed.message.contains(reason));
        self.figures.counters.rollbacks_told += u64::from(was_rolled_back);
        self.figures.counters.updates_refused += u64::from(is_refused);
        // Anything else is tried again.
        let is_excused = failed.message.contains("may be tried again");
        if (was_rolled_back && !is_excused) || is_refused {
            self.server.failed.extend(at);
        }
    }
}
