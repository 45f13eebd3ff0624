//! The tunnel as one machine: opens the transport, shakes hands, says hello, keeps the session alive, gives a dead
//! one up, and comes back by the schedule.
//!
//! ```text
//! Idle ─open→ Opening ─opened→ Handshaking ─accept→ Greeting ─ready→ Up
//!   ▲            └────────────────┴──── end, timeout ───┴────────────┤
//!   └──────────────── no reconnect ── Waiting ←──────────────────────┘
//! ```

use alloc::string::{String, ToString as _};
use alloc::vec::Vec;
use core::fmt;
use core::mem;
use core::time::Duration;

use super::Mode;
use super::down::Down;
use super::handshake::{Claims, Handshake};
use super::reconnect::Backoff;
use super::session::Session;
use crate::crypto::identity::Identity;
use crate::crypto::{Crypto, Drbg};
use crate::event::Event;
use crate::io::{LinkEnd, LinkId, Output};
use crate::limits::{HANDSHAKE_TIMEOUT, OPEN_TIMEOUT};
use crate::outbox::Outbox;
use crate::time::{Deadline, Now, Reason};
use crate::wire::base64;
use crate::wire::frame::{FrameBuf, FrameType, MAX_PLAINTEXT};
use crate::wire::message::{self, Hello, Message};

/// What the tunnel needs of the node that has it.
pub(crate) struct Context<'a, C: Crypto> {
    pub(crate) now: Now,
    pub(crate) identity: &'a Identity<C>,
    pub(crate) rng: &'a mut Drbg,
    pub(crate) out: &'a mut Outbox,
}

/// What a tunnel is told once.
#[derive(Clone, Debug)]
pub(crate) struct Settings {
    pub(crate) url: String,
    pub(crate) mode: Mode,
    pub(crate) server_key: Option<[u8; 32]>,
    pub(crate) node_id: Option<String>,
    pub(crate) candidate_id: Option<String>,
    pub(crate) release_version: String,
    pub(crate) ping_interval: Duration,
    pub(crate) silence_limit: Duration,
}

/// What became of an input.
#[derive(Debug, PartialEq)]
pub(crate) enum Happening {
    /// The server said `ready`.
    Ready,
    /// The server answered a ping frame.
    Pong,
    /// A message that is not the tunnel's own business.
    Message(Message),
    /// The session or the attempt ended. Where the tunnel reconnects, it has already planned to.
    Down(Down),
}

enum State<C: Crypto> {
    Idle,
    Waiting { until: Deadline },
    Opening { link: LinkId, until: Deadline },
    Handshaking { link: LinkId, handshake: Handshake<C>, until: Deadline },
    Greeting { link: LinkId, session: Session<C>, until: Deadline },
    Up { link: LinkId, session: Session<C>, ping: Deadline, silence: Deadline },
}

/// The tunnel of one node.
pub(crate) struct Tunnel<C: Crypto> {
    crypto: C,
    settings: Settings,
    state: State<C>,
    backoff: Backoff,
    next_link: u64,
    bad_frames: u64,
    traffic: Traffic,
    counts: Counts,
    /// The server's clock as its last handshake said it, in unix seconds.
    server_seconds: u64,
}

/// How much of what was given to the current link it has taken, and whether it is held.
#[derive(Clone, Copy, Debug, Default)]
struct Traffic {
    /// Payload bytes given, since the link was opened.
    given: u64,
    /// Payload bytes taken.
    taken: u64,
    held: bool,
}

/// What became of the tunnel since the process started.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Counts {
    /// Times that the transport was opened.
    pub(crate) attempts: u64,
    /// Sessions that the server said `ready` in.
    pub(crate) sessions: u64,
    /// Payload bytes that came over the transport.
    pub(crate) received: u64,
    /// Payload bytes that it took.
    pub(crate) sent: u64,
    /// When the last session was ready, on the monotonic clock.
    pub(crate) ready: Duration,
}

impl<C: Crypto> fmt::Debug for Tunnel<C> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tunnel").field("state", &self.state_name()).finish_non_exhaustive()
    }
}

impl<C: Crypto> Tunnel<C> {
    /// How far it has come, in a word.
    pub(crate) const fn state_name(&self) -> &'static str {
        match &self.state {
            State::Idle => "idle",
            State::Waiting { .. } => "waiting",
            State::Opening { .. } => "opening",
            State::Handshaking { .. } => "handshaking",
            State::Greeting { .. } => "greeting",
            State::Up { .. } => "up",
        }
    }
}

impl<C: Crypto> Tunnel<C> {
    pub(crate) fn new(crypto: C, settings: Settings) -> Self {
        Self {
            crypto,
            settings,
            state: State::Idle,
            backoff: Backoff::default(),
            next_link: 0,
            bad_frames: 0,
            traffic: Traffic::default(),
            counts: Counts::default(),
            server_seconds: 0,
        }
    }

    /// When the tunnel wants [`handle_time`](Self::handle_time).
    pub(crate) fn deadline(&self) -> Option<Deadline> {
        match &self.state {
            State::Idle => None,
            State::Waiting { until }
            | State::Opening { until, .. }
            | State::Handshaking { until, .. }
            | State::Greeting { until, .. } => Some(*until),
            State::Up { ping, silence, .. } => Deadline::earlier(Some(*silence), Some(*ping)),
        }
    }

    /// The server's clock at the begin of the last session, in unix seconds; 0 before there was one.
    pub(crate) const fn server_seconds(&self) -> u64 {
        self.server_seconds
    }

    pub(crate) const fn counts(&self) -> &Counts {
        &self.counts
    }

    /// Whether there is a session on which messages can be sent.
    pub(crate) const fn is_up(&self) -> bool {
        matches!(self.state, State::Up { .. })
    }

    /// The first attempt.
    pub(crate) fn open(&mut self, context: &mut Context<'_, C>) {
        let link = LinkId(self.next_link);
        self.next_link += 1;
        self.bad_frames = 0;
        self.counts.attempts += 1;
        self.traffic = Traffic::default();
        let url = self.settings.url.clone();
        context.out.event(Event::Connecting { url: url.clone(), attempt: self.backoff.attempt() });
        context.out.push(Output::OpenLink { link, url });
        self.state = State::Opening { link, until: context.now.deadline(OPEN_TIMEOUT, Reason::Open) };
    }

    /// The transport is open: shake hands.
    pub(crate) fn handle_opened(&mut self, context: &mut Context<'_, C>, link: LinkId) {
        if !matches!(self.state, State::Opening { link: current, .. } if current == link) {
            // An attempt that was given up; the shell was told to drop it.
            return;
        }
        let claims = Claims {
            mode: self.settings.mode,
            node_id: self.settings.node_id.as_deref(),
            candidate_id: self.settings.candidate_id.as_deref(),
            release_version: Some(&self.settings.release_version),
        };
        let (handshake, data) = Handshake::start(
            self.crypto.clone(),
            context.identity,
            claims,
            self.settings.server_key,
            context.rng,
            context.now,
        );
        self.give(context.out, link, data);
        let until = context.now.deadline(HANDSHAKE_TIMEOUT, Reason::Handshake);
        self.state = State::Handshaking { link, handshake, until };
    }

    /// The transport ended or did not open.
    pub(crate) fn handle_ended(
        &mut self,
        context: &mut Context<'_, C>,
        link: LinkId,
        end: &LinkEnd,
    ) -> Option<Happening> {
        (self.link() == Some(link)).then(|| self.down(context, Down::of_link(end)))
    }

    /// A text message: base64 of a frame (protocol.md section 2), or a handshake answer.
    pub(crate) fn handle_text(
        &mut self,
        context: &mut Context<'_, C>,
        link: LinkId,
        text: String,
    ) -> Option<Happening> {
        if matches!(self.state, State::Handshaking { .. }) {
            return self.handle_binary(context, link, text.into_bytes());
        }
        if self.link() != Some(link) {
            return None;
        }
        match base64::decode(text.trim_ascii()) {
            Some(frame) => self.handle_binary(context, link, frame),
            None => {
                self.bad_frame(context, "a text message that is not base64");
                None
            }
        }
    }

    /// A binary message: a frame, or a handshake answer.
    pub(crate) fn handle_binary(
        &mut self,
        context: &mut Context<'_, C>,
        link: LinkId,
        mut data: Vec<u8>,
    ) -> Option<Happening> {
        if self.link() != Some(link) {
            return None;
        }
        self.counts.received = self.counts.received.saturating_add(data.len() as u64);
        if matches!(self.state, State::Handshaking { .. }) {
            return self.finish_handshake(context, link, &data);
        }
        let (State::Greeting { session, .. } | State::Up { session, .. }) = &mut self.state else {
            // Opening: the server speaks before it was spoken to.
            context.out.push(Output::DropLink { link });
            let end = LinkEnd::BadWebSocket { detail: "data before the upgrade".to_string() };
            return Some(self.down(context, Down::of_link(&end)));
        };
        let (kind, plaintext) = match session.open(&mut data) {
            Ok(opened) => opened,
            Err(error) => {
                self.bad_frame(context, &error.to_string());
                return None;
            }
        };
        // Only what the peer really sealed is a sign of life.
        if let State::Up { silence, .. } = &mut self.state {
            *silence = context.now.deadline(self.settings.silence_limit, Reason::Silence);
        }
        match kind {
            FrameType::Data | FrameType::Error => match Message::parse(plaintext) {
                Ok(message) => self.handle_message(context, message),
                Err(error) => {
                    self.bad_frame(context, &error.to_string());
                    None
                }
            },
            FrameType::Ping => {
                self.send_frame(
                    context,
                    FrameType::Pong,
                    message::pong_plaintext(context.now.unix_seconds()),
                );
                None
            }
            FrameType::Pong => self.is_up().then_some(Happening::Pong),
            FrameType::Close => {
                context.out.push(Output::CloseLink { link, code: 1000, reason: String::new() });
                Some(self.down(context, Down::of_close_frame()))
            }
            FrameType::Handshake => {
                self.bad_frame(context, "a handshake frame inside a session");
                None
            }
        }
    }

    /// What is due.
    pub(crate) fn handle_time(&mut self, context: &mut Context<'_, C>) -> Option<Happening> {
        let now = context.now;
        match &mut self.state {
            State::Idle => None,
            State::Waiting { until } => {
                if until.is_due(now) {
                    self.open(context);
                }
                None
            }
            State::Opening { link, until }
            | State::Handshaking { link, until, .. }
            | State::Greeting { link, until, .. } => {
                let (link, reason) = (*link, until.reason);
                until.is_due(now).then(|| self.give_up(context, link, reason))
            }
            State::Up { link, silence, ping, .. } => {
                let link = *link;
                if silence.is_due(now) {
                    return Some(self.give_up(context, link, Reason::Silence));
                }
                if ping.is_due(now) {
                    self.ping(now, context.out);
                }
                None
            }
        }
    }

    /// Pings now, and not only when it is time.
    pub(crate) fn ping(&mut self, now: Now, out: &mut Outbox) {
        let State::Up { link, session, ping, .. } = &mut self.state else { return };
        *ping = now.deadline(self.settings.ping_interval, Reason::Ping);
        let (link, data) = (*link, session.seal(FrameType::Ping, FrameBuf::with_capacity(0)));
        self.give(out, link, data);
    }

    /// Sends a message; whether there was a session to send it on.
    pub(crate) fn send(&mut self, out: &mut Outbox, plaintext: FrameBuf) -> bool {
        let (State::Greeting { link, session, .. } | State::Up { link, session, .. }) = &mut self.state
        else {
            return false;
        };
        // Every answer is bounded where it is made; this is for the one that is not. Its asker waits in vain, which
        // is better than a session that ends at a frame over the limit.
        let length = plaintext.plaintext().len();
        if length > MAX_PLAINTEXT {
            out.event(Event::NotSent { length });
            return false;
        }
        let (link, data) = (*link, session.seal(FrameType::Data, plaintext));
        self.give(out, link, data);
        true
    }

    fn give(&mut self, out: &mut Outbox, link: LinkId, data: Vec<u8>) {
        self.traffic.given = self.traffic.given.saturating_add(data.len() as u64);
        out.push(Output::Send { link, data });
    }

    /// The transport took so many bytes; whether that was the current link's.
    pub(crate) fn handle_sent(&mut self, now: Now, link: LinkId, bytes: usize) -> bool {
        if self.link() != Some(link) {
            return false;
        }
        self.traffic.taken = self.traffic.taken.saturating_add(bytes as u64);
        self.counts.sent = self.counts.sent.saturating_add(bytes as u64);
        // While nothing is read there is no other sign of life; and that there is none is not the server's fault.
        if let (true, State::Up { silence, .. }) = (self.traffic.held, &mut self.state) {
            *silence = now.deadline(self.settings.silence_limit, Reason::Silence);
        }
        true
    }

    /// Where in the current link's traffic the last message given ends.
    pub(crate) const fn given(&self) -> u64 {
        self.traffic.given
    }

    /// How far into the current link's traffic the transport is.
    pub(crate) const fn taken(&self) -> u64 {
        self.traffic.taken
    }

    /// Has the link read no more, or again.
    pub(crate) fn hold(&mut self, now: Now, out: &mut Outbox, hold: bool) {
        let State::Up { link, silence, .. } = &mut self.state else { return };
        if self.traffic.held != hold {
            self.traffic.held = hold;
            *silence = now.deadline(self.settings.silence_limit, Reason::Silence);
            out.push(Output::HoldLink { link: *link, hold });
        }
    }

    /// Ends the tunnel in good order, for good.
    pub(crate) fn close(&mut self, out: &mut Outbox, code: u16, reason: &str) {
        if let Some(link) = self.link() {
            let output = if matches!(self.state, State::Opening { .. }) {
                Output::DropLink { link }
            } else {
                Output::CloseLink { link, code, reason: reason.to_string() }
            };
            out.push(output);
        }
        self.state = State::Idle;
    }

    fn link(&self) -> Option<LinkId> {
        match &self.state {
            State::Idle | State::Waiting { .. } => None,
            State::Opening { link, .. }
            | State::Handshaking { link, .. }
            | State::Greeting { link, .. }
            | State::Up { link, .. } => Some(*link),
        }
    }

    fn finish_handshake(
        &mut self,
        context: &mut Context<'_, C>,
        link: LinkId,
        answer: &[u8],
    ) -> Option<Happening> {
        let State::Handshaking { handshake, .. } = mem::replace(&mut self.state, State::Idle) else {
            return None;
        };
        match handshake.finish(answer, context.rng.fork()) {
            Ok((session, server_seconds)) => {
                self.server_seconds = server_seconds;
                let until = context.now.deadline(HANDSHAKE_TIMEOUT, Reason::Ready);
                self.state = State::Greeting { link, session, until };
                let hello = Hello {
                    mode: self.settings.mode,
                    node_id: self.settings.node_id.clone(),
                    candidate_id: self.settings.candidate_id.clone(),
                    public_key_pem: context.identity.public_key_pem().to_string(),
                    version: self.settings.release_version.clone(),
                };
                self.send(context.out, hello.encode(context.now.unix_seconds()));
                None
            }
            Err(error) => {
                // 1008, policy violation: what the server itself uses for a refused handshake.
                let reason = "handshake failed".to_string();
                context.out.push(Output::CloseLink { link, code: 1008, reason });
                Some(self.down(context, Down::of_handshake(&error, context.now.unix_seconds())))
            }
        }
    }

    fn handle_message(&mut self, context: &mut Context<'_, C>, message: Message) -> Option<Happening> {
        match message {
            // A second `ready` says nothing new.
            Message::Ready(_) if self.is_up() => None,
            Message::Ready(_) => {
                let State::Greeting { link, session, .. } = mem::replace(&mut self.state, State::Idle) else {
                    return None;
                };
                let session_id = session.session_id().to_string();
                context.out.event(Event::Connected { session_id, mode: self.settings.mode });
                self.state = State::Up {
                    link,
                    session,
                    ping: context.now.deadline(self.settings.ping_interval, Reason::Ping),
                    silence: context.now.deadline(self.settings.silence_limit, Reason::Silence),
                };
                self.backoff.reset();
                self.counts.sessions += 1;
                self.counts.ready = context.now.monotonic;
                Some(Happening::Ready)
            }
            Message::Ping(ping) => {
                let pong = message::Pong { reply_to: ping.id };
                self.send(context.out, pong.encode(context.now.unix_seconds()));
                None
            }
            Message::Pong(_) => None,
            message => Some(Happening::Message(message)),
        }
    }

    /// Tells the peer and the operator of a frame that could not be used. The session goes on (section 2).
    fn bad_frame(&mut self, context: &mut Context<'_, C>, reason: &str) {
        self.bad_frames += 1;
        if self.bad_frames.is_power_of_two() {
            context.out.event(Event::BadFrame { reason: reason.to_string(), count: self.bad_frames });
        }
        let answer = message::error(context.now.unix_seconds(), None, "decode_failed", reason);
        self.send(context.out, answer);
    }

    fn send_frame(&mut self, context: &mut Context<'_, C>, kind: FrameType, plaintext: FrameBuf) {
        if let State::Greeting { link, session, .. } | State::Up { link, session, .. } = &mut self.state {
            let (link, data) = (*link, session.seal(kind, plaintext));
            self.give(context.out, link, data);
        }
    }

    fn give_up(&mut self, context: &mut Context<'_, C>, link: LinkId, reason: Reason) -> Happening {
        context.out.push(Output::DropLink { link });
        self.down(context, Down::of_deadline(reason))
    }

    /// The end of the current link, already known to the shell: plan the next attempt, or none.
    fn down(&mut self, context: &mut Context<'_, C>, down: Down) -> Happening {
        let retry = match self.settings.mode {
            Mode::Control => Some(self.backoff.next_delay(context.rng)),
            Mode::Eval => None,
        };
        self.state = match retry {
            Some(delay) => State::Waiting { until: context.now.deadline(delay, Reason::Reconnect) },
            None => State::Idle,
        };
        context.out.event(Event::Disconnected {
            reason: down.reason.clone(),
            advice: down.advice.clone(),
            retry_in_ms: retry.map(|delay| u64::try_from(delay.as_millis()).unwrap_or(u64::MAX)),
        });
        Happening::Down(down)
    }
}
