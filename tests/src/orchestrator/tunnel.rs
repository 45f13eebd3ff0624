//! The tunnel end of the orchestrator: a WebSocket around [`consensus_core::peer`], well-behaved or not.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use async_tungstenite::tungstenite::protocol::CloseFrame;
use async_tungstenite::tungstenite::protocol::frame::coding::CloseCode;
use async_tungstenite::tungstenite::{Error as WsError, Message as WsMessage};
use async_tungstenite::{WebSocketReceiver, WebSocketSender, accept_async_with_config};
use consensus_core::crypto::identity::Identity;
use consensus_core::crypto::pem;
use consensus_core::crypto::pure::Pure;
use consensus_core::limits::{HANDSHAKE_TIMEOUT, MAX_MESSAGE};
use consensus_core::peer::handshake::{Accepted, Reject, accept};
use consensus_core::peer::orchestrator::{Event, Input, Orchestrator as Machine, Output, Terms};
use consensus_core::peer::streams::StreamTarget;
use consensus_core::time::Now;
use consensus_core::tunnel::Mode;
use consensus_core::wire::frame::FrameBuf;
use consensus_core::wire::message::ProxyRequest;
use serde_json::Value;
use smol::channel::{self, Receiver, Sender};
use smol::future;
use smol::io::AsyncWriteExt as _;
use smol::stream::StreamExt as _;

use super::state::Attached;
use super::stream::{Reader, Readers};
use super::{Fetched, Record, Shared};
use crate::backlog::Backlog;
use crate::conn::Conn;
use crate::dial;
use crate::options::Bad;

/// How long the node has to answer our close frame.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(2);

/// Strings in a recorded message are cut to this many characters, as the transcripts do.
const RECORDED_TEXT: usize = 2000;

/// Above this, nobody who sends through a session is read any more.
pub(super) const HIGH_UNSENT: usize = 1024 * 1024;

/// Messages in a row that are taken of a node that has always one more, before others get their turn.
const IN_A_ROW: usize = 32;

/// What the rest of the orchestrator wants of a session.
pub(super) enum Command {
    /// Anything the machine takes.
    Input(Input),
    /// A proxied request, and where its end is to be told.
    Proxy(ProxyRequest, Sender<Fetched>),
    /// A stream, and who gets what comes of it.
    OpenStream { stream_id: String, target: StreamTarget, reader: Reader },
    /// Bytes of a stream; they were added to that backlog, and leave it when they are written.
    SendStream { stream_id: String, data: Vec<u8>, unsent: Backlog },
}

/// What goes out, in order.
enum Out {
    /// A frame, and what waits in which backlog until it is written.
    Frame(Vec<u8>, Backlog, usize),
    Text(String),
    /// Bytes below the WebSocket layer.
    Raw(Vec<u8>),
    Close(u16, String),
}

/// Whether a request head asks for the tunnel.
pub(super) fn is_upgrade(head: &[u8]) -> bool {
    let head = String::from_utf8_lossy(head).to_ascii_lowercase();
    let target = head.split(' ').nth(1).unwrap_or_default();
    target.split('?').next() == Some("/node/tunnel") && head.contains("\r\nupgrade: websocket")
}

/// Serves one tunnel connection to its end.
pub(super) async fn serve(shared: &Arc<Shared>, conn: Conn, number: u64) {
    shared.journal.add(Record::Tunnel { connection: number });
    let bad = shared.next_bad();
    if bad == Some(Bad::Stall) {
        return hang(conn).await;
    }
    let config = dial::websocket_config(MAX_MESSAGE);
    let Ok(socket) = accept_async_with_config(conn.clone(), Some(config)).await else { return };
    let (sender, receiver) = socket.split();
    let (out, outgoing) = channel::unbounded();
    let mut link = Link {
        shared: Arc::clone(shared),
        conn: conn.clone(),
        number,
        receiver,
        out,
        unsent: Backlog::new(HIGH_UNSENT),
        bad,
        taken: 0,
    };
    let writer = write_all(sender, conn, outgoing);
    let (code, reason) = future::or(link.run(), async {
        writer.await;
        // The writer ends only when writing fails; the reader learns the same, with a better reason.
        future::pending().await
    })
    .await;
    let mut state = shared.state();
    state.attached.retain(|_, attached| attached.connection != number);
    drop(state);
    shared.journal.add(Record::Ended { connection: number, code, reason });
}

async fn hang(conn: Conn) {
    let _kept_open = conn;
    future::pending::<()>().await;
}

async fn write_all(mut sender: WebSocketSender<Conn>, mut conn: Conn, outgoing: Receiver<Out>) {
    while let Ok(out) = outgoing.recv().await {
        let written = match out {
            Out::Frame(data, unsent, bytes) => {
                let written = sender.send(WsMessage::binary(data)).await.is_ok();
                unsent.remove(bytes);
                written
            }
            Out::Text(text) => sender.send(WsMessage::text(text)).await.is_ok(),
            Out::Raw(data) => conn.write_all(&data).await.is_ok() && conn.flush().await.is_ok(),
            Out::Close(code, reason) => {
                let frame = CloseFrame { code: CloseCode::from(code), reason: reason.into() };
                sender.close(Some(frame)).await.is_ok()
            }
        };
        if !written {
            return;
        }
    }
}

type Ended = (Option<u16>, String);

struct Link {
    shared: Arc<Shared>,
    conn: Conn,
    number: u64,
    receiver: WebSocketReceiver<Conn>,
    out: Sender<Out>,
    unsent: Backlog,
    bad: Option<Bad>,
    /// Messages of the node so far.
    taken: u64,
}

enum Incoming {
    Binary(Vec<u8>),
    Text(String),
    Ended(Ended),
}

enum Happening {
    Incoming(Incoming),
    Command(Option<Command>),
    Due,
}

impl Link {
    async fn run(&mut self) -> Ended {
        let init = match future::or(self.receive(), timeout(HANDSHAKE_TIMEOUT)).await {
            Incoming::Binary(data) => data,
            Incoming::Text(text) => text.into_bytes(),
            Incoming::Ended(ended) => return ended,
        };
        if let Ok(init) = serde_json::from_slice(&init) {
            self.record(Record::Init { connection: self.number, init });
        }
        if self.bad == Some(Bad::NoAccept) {
            return self.ignore().await;
        }
        let accepted = match self.accept(&init) {
            Ok(accepted) => accepted,
            Err((reject, now)) => {
                self.record(Record::Rejected { connection: self.number, code: reject.code().to_owned() });
                self.send_frame(reject.message(now));
                return self.close(1008, reject.code()).await;
            }
        };
        self.send_frame(accepted.message.clone());
        if self.bad == Some(Bad::NoReady) {
            return self.ignore().await;
        }
        self.session(accepted).await
    }

    fn accept(&self, init: &[u8]) -> Result<Accepted<Pure>, (Reject, Now)> {
        let mut now = self.shared.now();
        let mut rng = self.shared.fork_rng();
        let stranger = Identity::from_seed(Pure, &rng.bytes());
        let signer = match &self.bad {
            Some(Bad::WrongSignature) => Some(&stranger),
            Some(Bad::Unsigned) => None,
            _ => Some(&self.shared.identity),
        };
        match &self.bad {
            Some(Bad::Reject(code)) => return Err((Reject::Policy { code: code.clone() }, now)),
            Some(Bad::StaleClock) => now.unix += Duration::from_secs(600),
            _ => {}
        }
        let registered = |node_id: &str| {
            let state = self.shared.state();
            let node = state.nodes.get(node_id)?;
            pem::decode_public(&node.public_key_pem).ok()
        };
        accept(&Pure, signer, init, registered, &mut rng, now).map_err(|reject| (reject, now))
    }

    async fn session(&mut self, accepted: Accepted<Pure>) -> Ended {
        let options = &self.shared.options;
        let default = Terms::default();
        let least = |strict: f64| if options.lenient { 0.0 } else { strict };
        let terms = Terms {
            min_throttle_ratio: least(default.min_throttle_ratio),
            min_cpu_time_ratio: least(default.min_cpu_time_ratio),
            min_window_rps: least(default.min_window_rps),
            sustained_ms: options.sustained_ms,
            window_ms: options.window_ms,
            quick: options.quick,
            speedtest_url: options.speedtest_url.clone(),
            min_memory_bytes: options.min_memory_mb << 20,
            max_event_loop_p99_ns: options.max_event_loop_p99_ms * 1e6,
            required_manifest: self.shared.state().required.clone(),
            admits: !options.refuse_eval,
            tells_plaintexts: self.shared.journal.keeps_traffic(),
            ..default
        };
        let (rng, now) = (self.shared.fork_rng(), self.shared.now());
        let mut machine = Machine::new(Pure, accepted.session, accepted.caller, terms, rng, now);
        let (commands, orders) = channel::unbounded();
        let mut waiting = BTreeMap::new();
        let mut readers = Readers::default();
        let (mut timer, mut armed) = (smol::Timer::never(), None);
        let mut in_a_row = 0;
        // Whose bytes the next frame carries.
        let mut turn = None;
        loop {
            // What there is to do, then until when.
            let deadline = loop {
                match machine.poll_output() {
                    Output::Wait(deadline) => break deadline,
                    Output::Send(frame) => {
                        if self.bad == Some(Bad::Replay) {
                            self.send_frame(frame.clone());
                        }
                        match turn.take() {
                            Some((unsent, bytes)) => self.send(Out::Frame(frame, unsent, bytes)),
                            None => self.send_frame(frame),
                        }
                    }
                    Output::Close { code, reason } => return self.close(code, &reason).await,
                    Output::Event(Event::Proxied { id, outcome }) => {
                        if let Some(answer) = waiting.remove(&id) {
                            let _: Result<(), _> = Sender::try_send(&answer, outcome);
                        }
                    }
                    Output::Event(Event::StreamData { stream_id, data }) => {
                        if let Some(close) = readers.data(stream_id, data) {
                            machine.handle_input(self.shared.now(), close);
                        }
                    }
                    Output::Event(Event::StreamError { stream_id, .. }) => readers.error(&stream_id),
                    Output::Event(Event::StreamClosed { stream_id, reason }) => {
                        readers.closed(&stream_id, &reason, false);
                    }
                    Output::Event(event) => {
                        if matches!(event, Event::Ready(_)) {
                            self.attach(&machine, &commands);
                            if let Some(ended) = self.misbehave(&mut machine).await {
                                return ended;
                            }
                        }
                        self.tell(event, &machine);
                    }
                }
            };
            // Of a stream that has ended meanwhile there is no frame.
            if let Some((unsent, bytes)) = turn.take() {
                unsent.remove(bytes);
            }
            if armed != deadline {
                armed = deadline;
                timer = deadline.map_or_else(smol::Timer::never, |deadline| {
                    smol::Timer::at(self.shared.started + deadline.at)
                });
            }
            let due = async {
                (&mut timer).await;
                Happening::Due
            };
            let order = async { Happening::Command(orders.recv().await.ok()) };
            let incoming = async { Happening::Incoming(receive(&mut self.receiver).await) };
            let happening = future::or(future::or(order, due), incoming).await;
            let input = match happening {
                Happening::Due => {
                    (timer, armed) = (smol::Timer::never(), None);
                    Input::Tick
                }
                Happening::Command(None) => Input::Tick,
                Happening::Command(Some(Command::Input(input))) => input,
                Happening::Command(Some(Command::Proxy(request, answer))) => {
                    waiting.insert(request.id.clone(), answer);
                    Input::Proxy(request)
                }
                Happening::Command(Some(Command::OpenStream { stream_id, target, reader })) => {
                    readers.add(stream_id.clone(), reader);
                    Input::OpenStream { stream_id, target }
                }
                Happening::Command(Some(Command::SendStream { stream_id, data, unsent })) => {
                    turn = Some((unsent, data.len()));
                    Input::SendStream { stream_id, data }
                }
                Happening::Incoming(Incoming::Ended(ended)) => return ended,
                Happening::Incoming(incoming) => {
                    in_a_row += 1;
                    if in_a_row == IN_A_ROW {
                        in_a_row = 0;
                        future::yield_now().await;
                    }
                    self.taken += 1;
                    if let Some(ended) = self.cut() {
                        return ended;
                    }
                    match incoming {
                        Incoming::Binary(data) => Input::Binary(data),
                        Incoming::Text(text) => Input::Text(text),
                        Incoming::Ended(_) => Input::Tick,
                    }
                }
            };
            machine.handle_input(self.shared.now(), input);
        }
    }

    /// Makes the session known; an older one of the same node has to go.
    fn attach(&self, machine: &Machine<Pure>, commands: &Sender<Command>) {
        let caller = machine.caller();
        let Some(node_id) = caller.node_id.clone().filter(|_| caller.mode == Mode::Control) else { return };
        let attached =
            Attached { connection: self.number, commands: commands.clone(), unsent: self.unsent.clone() };
        if let Some(older) = self.shared.state().attached.insert(node_id, attached) {
            let _ = older.commands.try_send(Command::Input(Input::Close));
        }
    }

    fn tell(&self, event: Event, machine: &Machine<Pure>) {
        let connection = self.number;
        let record = match event {
            Event::Ready(_) => Record::Ready {
                connection,
                mode: machine.caller().mode,
                node_id: machine.caller().node_id.clone(),
                session_id: machine.session_id().to_owned(),
            },
            Event::Plaintext(plaintext) => match serde_json::from_slice(&plaintext) {
                Ok(message) => Record::Message { connection, message: shortened(message) },
                Err(_) => return,
            },
            Event::Pinged => Record::Pinged { connection },
            Event::Pong => Record::Pong { connection },
            Event::Evaluated { action, outcome, took } => {
                Record::Evaluated { connection, action, ok: outcome.is_ok(), took }
            }
            Event::Judged { missed } => Record::Judged { connection, missed },
            Event::Offered(offer) => {
                let join_id = offer.join_id.clone();
                self.shared.state().offers.insert(join_id.clone(), offer);
                Record::Offered { connection, join_id }
            }
            Event::BadFrame(reason) => Record::BadFrame { connection, reason },
            // Told as plaintexts already, or handled before.
            Event::Heartbeat(_)
            | Event::Message(_)
            | Event::Proxied { .. }
            | Event::StreamData { .. }
            | Event::StreamError { .. }
            | Event::StreamClosed { .. } => return,
        };
        self.record(record);
    }

    /// What a bad server does once the session is up. `Some` when that was the end of it.
    async fn misbehave(&mut self, machine: &mut Machine<Pure>) -> Option<Ended> {
        match self.bad.clone()? {
            Bad::Silent => Some(self.ignore().await),
            Bad::HalfOpen => {
                hang(self.conn.clone()).await;
                None
            }
            Bad::Close(code) => Some(self.close(code, "as told").await),
            Bad::Oversize => {
                // FIN and binary; a 64-bit length of 1 GiB; no mask.
                self.send(Out::Raw(vec![0x82, 127, 0, 0, 0, 0, 0x40, 0, 0, 0]));
                Some(self.ignore().await)
            }
            Bad::Junk => {
                self.junk(machine);
                None
            }
            Bad::Reorder => {
                let now = self.shared.now();
                let mut frames: Vec<Vec<u8>> = Vec::new();
                for _ in 0..2 {
                    machine.handle_input(now, Input::Ping);
                }
                while let Output::Send(frame) = machine.poll_output() {
                    frames.push(frame);
                }
                for frame in frames.into_iter().rev() {
                    self.send_frame(frame);
                }
                None
            }
            Bad::Drop(_)
            | Bad::Stall
            | Bad::NoAccept
            | Bad::NoReady
            | Bad::WrongSignature
            | Bad::Unsigned
            | Bad::Reject(_)
            | Bad::StaleClock
            | Bad::Replay => None,
        }
    }

    /// Garbage of every kind a receiver has to tell apart, and none of which may harm the session.
    fn junk(&self, machine: &mut Machine<Pure>) {
        let header = |version: u8, kind: u8, length: u32| {
            // The highest sequence: a receiver that believed it before the tag would take nothing afterwards.
            let mut frame = vec![version, kind];
            frame.extend([0xff; 8]);
            frame.extend([7; 12]);
            frame.extend(length.to_be_bytes());
            frame.extend([0xaa; 64 + 16]);
            frame
        };
        for message in [
            Vec::new(),
            vec![0],
            vec![0x5a; 300],
            header(1, 0x10, 64),
            header(2, 0x10, 64),
            header(1, 0x77, 64),
            header(1, 0x10, 65),
            header(1, 0x10, u32::MAX),
        ] {
            self.send_frame(message);
        }
        self.send(Out::Text(String::from("this is not base64")));
        self.send(Out::Text(String::from("AAECAwQFBgc=")));
        let deep = "[".repeat(100_000);
        for plaintext in [
            "",
            "null",
            "{",
            "\u{fffd}",
            deep.as_str(),
            "{\"type\":\"dance\",\"timestamp\":1}",
            "{\"type\":\"proxy_request\",\"timestamp\":1}",
            "{\"type\":\"ready\",\"timestamp\":1e999,\"session_id\":\"x\",\"mode\":\"control\"}",
            "{\"type\":\"eval_request\",\"timestamp\":1,\"id\":7,\"action\":[]}",
        ] {
            let plaintext = FrameBuf::from_plaintext(plaintext.as_bytes());
            machine.handle_input(self.shared.now(), Input::Send(plaintext));
        }
    }

    /// The end of a connection that is to be cut, when it has come.
    fn cut(&self) -> Option<Ended> {
        let Some(Bad::Drop(after)) = self.bad else { return None };
        (self.taken >= after).then(|| (None, String::from("cut")))
    }

    async fn receive(&mut self) -> Incoming {
        let incoming = receive(&mut self.receiver).await;
        self.taken += 1;
        match self.cut() {
            Some(ended) => Incoming::Ended(ended),
            None => incoming,
        }
    }

    /// Reads on and does nothing about it.
    async fn ignore(&mut self) -> Ended {
        loop {
            if let Incoming::Ended(ended) = self.receive().await {
                return ended;
            }
        }
    }

    /// Sends a close frame and gives the node a moment for its own.
    async fn close(&mut self, code: u16, reason: &str) -> Ended {
        self.send(Out::Close(code, reason.to_owned()));
        let ended = future::or(async { Some(self.ignore().await) }, async {
            smol::Timer::after(CLOSE_TIMEOUT).await;
            None
        });
        ended.await.unwrap_or_else(|| (None, format!("closed with {code}, unanswered")))
    }

    fn send_frame(&self, frame: Vec<u8>) {
        let bytes = frame.len();
        self.unsent.add(bytes);
        self.send(Out::Frame(frame, self.unsent.clone(), bytes));
    }

    fn send(&self, out: Out) {
        // Fails only when writing has failed, and then reading does as well.
        let _ = self.out.try_send(out);
    }

    fn record(&self, record: Record) {
        self.shared.journal.add(record);
    }
}

async fn receive(receiver: &mut WebSocketReceiver<Conn>) -> Incoming {
    loop {
        match receiver.next().await {
            Some(Ok(WsMessage::Binary(data))) => return Incoming::Binary(data.into()),
            Some(Ok(WsMessage::Text(text))) => return Incoming::Text(text.as_str().to_owned()),
            Some(Ok(WsMessage::Close(frame))) => {
                let (code, reason) = frame
                    .map_or((1005, String::new()), |f| (u16::from(f.code), f.reason.as_str().to_owned()));
                // Lets the library send its answer.
                let _ = receiver.next().await;
                return Incoming::Ended((Some(code), reason));
            }
            Some(Ok(_)) => {}
            None | Some(Err(WsError::ConnectionClosed)) => {
                return Incoming::Ended((None, String::from("the connection ended")));
            }
            Some(Err(error)) => return Incoming::Ended((None, error.to_string())),
        }
    }
}

async fn timeout(after: Duration) -> Incoming {
    smol::Timer::after(after).await;
    Incoming::Ended((None, String::from("no handshake in time")))
}

/// The message with its long strings cut, so that a journal of large bodies stays small.
fn shortened(mut message: Value) -> Value {
    match &mut message {
        Value::String(text) => {
            if let Some((at, _)) = text.char_indices().nth(RECORDED_TEXT) {
                let length = text.chars().count();
                text.truncate(at);
                text.push_str(&format!("…({length} chars)"));
            }
        }
        Value::Array(items) => items.iter_mut().for_each(|item| *item = shortened(item.take())),
        Value::Object(members) => members.values_mut().for_each(|item| *item = shortened(item.take())),
        _ => {}
    }
    message
}
