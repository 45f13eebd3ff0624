//! The node as one machine: routes inputs to the machine they belong to, and has no protocol rule of its own.

use alloc::string::{String, ToString as _};
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::fmt;

use zeroize::Zeroizing;

use crate::api::{self, Api};
use crate::control::{self, Control};
use crate::crypto::identity::Identity;
use crate::crypto::{Crypto, Drbg};
use crate::data_plane::job::{Computed, Job};
use crate::data_plane::replay::{self, Before};
use crate::eval::{self, Eval};
use crate::event::Event;
use crate::history::{Figures, History};
use crate::holdings::Holdings;
use crate::io::{
    Audience, Effect, EffectId, EffectResult, Finish, Input, JobId, LocalId, LocalRequest, Outcome, Output,
    StateFile,
};
use crate::limits::{Limits, STOP_TIMEOUT};
use crate::outbox::Outbox;
use crate::release::manifest::Manifest;
use crate::state::Registration;
use crate::text::printable;
use crate::time::{Deadline, Now, Reason};
use crate::tunnel::Mode;
use crate::tunnel::connection::{self, Happening, Tunnel};
use crate::tunnel::down::Down;
use crate::update;
use crate::update::directed::{Active, Directed};
use crate::wire::frame::FrameBuf;
use crate::wire::message::{self, Message};

/// What a node is told once, at its start.
#[derive(Debug, Clone)]
pub struct Config {
    /// What the tunnel is for; `None` for a node that only serves its local API.
    pub mode: Option<Mode>,
    /// `ws://…/node/tunnel` or `wss://…/node/tunnel`.
    pub tunnel_url: String,
    /// The server's signing key, where the operator pinned one.
    pub server_key: Option<[u8; 32]>,
    /// The Ed25519 seed in `keys/node.key`.
    pub identity_seed: Zeroizing<[u8; 32]>,
    /// An operator's own name for this candidate, told to the server.
    pub candidate_id: Option<String>,
    /// `config.json`, where the node is registered. [`Mode::Control`] needs it.
    pub registration: Option<Registration>,
    /// The manifest of the running release.
    pub manifest: Manifest,
    /// Bounds.
    pub limits: Limits,
    /// Whether strangers may have addresses fetched that are not globally reachable. For labs alone.
    pub allow_private_targets: bool,
    /// What `spent-tickets.json` says.
    pub spent_before: Before,
    /// How this node comes to other releases.
    pub updates: update::Settings,
}

/// The node.
pub struct Node<C: Crypto> {
    crypto: C,
    identity: Arc<Identity<C>>,
    manifest: Manifest,
    registration: Option<Registration>,
    rng: Drbg,
    out: Outbox,
    started: Now,
    now: Now,
    tunnel: Option<Tunnel<C>>,
    eval: Eval,
    control: Option<Control<C>>,
    api: Api,
    updates: Directed,
    history: History,
    phase: Phase,
    /// The file that says how it stands with the tickets, being written.
    saving: Option<EffectId>,
}

/// What the evaluation needs of its node. A macro, because it borrows some fields while others are in use.
macro_rules! eval_context {
    ($node:ident) => {
        eval::Context {
            now: $node.now,
            identity: &$node.identity,
            manifest: &$node.manifest,
            rng: &mut $node.rng,
            out: &mut $node.out,
        }
    };
}

/// How far the life of a node has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// No input yet.
    New,
    Running,
    /// The node takes its leave, because the operator wants it or for another release; the last file is being written.
    Stopping(Deadline),
    /// `Finish` was given: nothing happens any more.
    Finished,
}

impl<C: Crypto> fmt::Debug for Node<C> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Node")
            .field("identity", &self.identity)
            .field("tunnel", &self.tunnel)
            .field("phase", &self.phase)
            .finish_non_exhaustive()
    }
}

impl<C: Crypto> Node<C> {
    /// A node that has done nothing yet: its first input sets it going. `seed` is 32 bytes of the system's
    /// randomness.
    pub fn new(config: Config, crypto: C, seed: [u8; 32], now: Now) -> Self {
        let identity = Arc::new(Identity::from_seed(crypto.clone(), &config.identity_seed));
        let audience = if config.allow_private_targets { Audience::Operator } else { Audience::Stranger };
        let node_id = config.registration.as_ref().map(|registration| registration.node_id.clone());
        let tunnel = config.mode.map(|mode| {
            let settings = connection::Settings {
                url: config.tunnel_url,
                mode,
                server_key: config.server_key,
                node_id: node_id.clone(),
                candidate_id: config.candidate_id,
                release_version: config.manifest.version.clone(),
                ping_interval: config.limits.ping_interval,
                silence_limit: config.limits.silence_limit,
            };
            Tunnel::new(crypto.clone(), settings)
        });
        let control = (config.mode == Some(Mode::Control))
            .then(|| (config.registration.as_ref(), audience, config.limits.clone(), config.spent_before))
            .map(|(registration, audience, limits, before)| {
                Control::new(registration, audience, limits, before, now)
            });
        Self {
            crypto,
            identity,
            manifest: config.manifest,
            registration: config.registration,
            rng: Drbg::new(seed),
            out: Outbox::default(),
            started: now,
            now,
            tunnel,
            eval: Eval::new(
                config.mode.unwrap_or(Mode::Control),
                audience,
                config.limits.bounds(config.limits.max_response_body),
            ),
            control,
            api: Api::new(audience, config.limits),
            updates: Directed::new(config.updates),
            history: History::new(now),
            phase: Phase::New,
            saving: None,
        }
    }

    /// Takes one input. Never fails: a bad peer, a lost socket, a failed effect are inputs, and what follows is an
    /// output.
    pub fn handle_input(&mut self, now: Now, input: Input) {
        self.note_figures(now);
        self.now = now;
        if self.phase == Phase::New {
            self.start();
        }
        if self.phase == Phase::Finished {
            return;
        }
        match input {
            Input::Tick => {}
            Input::LinkOpened { link } => self.with_tunnel(|tunnel, context| {
                tunnel.handle_opened(context, link);
                None
            }),
            Input::LinkBinary { link, data } => {
                self.with_tunnel(|tunnel, context| tunnel.handle_binary(context, link, data));
            }
            Input::LinkText { link, text } => {
                self.with_tunnel(|tunnel, context| tunnel.handle_text(context, link, text));
            }
            Input::LinkSent { link, bytes } => {
                let now = self.now;
                if self.tunnel.as_mut().is_some_and(|tunnel| tunnel.handle_sent(now, link, bytes)) {
                    self.with_control(Control::handle_link_sent);
                }
            }
            Input::LinkEnded { link, end } => {
                self.with_tunnel(|tunnel, context| tunnel.handle_ended(context, link, &end));
            }
            Input::SocketOpened { socket } => {
                self.with_control(|control, context| control.handle_socket_opened(context, socket));
            }
            Input::SocketData { socket, data } => {
                self.with_control(|control, context| control.handle_socket_data(context, socket, &data));
            }
            Input::SocketSent { socket, bytes } => {
                self.with_control(|control, _| control.handle_socket_sent(socket, bytes));
            }
            Input::SocketEnded { socket, end } => {
                self.with_control(|control, context| control.handle_socket_ended(context, socket, &end));
            }
            Input::Done { effect, result } => self.handle_done(effect, result),
            Input::Local { id, request } => self.handle_local(id, &request),
            Input::LocalMessage { id, data } => {
                self.with_control(|control, context| control.handle_local_message(context, id, data));
            }
            Input::LocalEnded { id } => {
                self.with_control(|control, context| control.handle_local_ended(context, id));
            }
            Input::Stop => self.stop(),
        }
        self.handle_time();
        self.advance_update();
    }

    /// The next thing to do. Drain until [`Output::Wait`], which says when to come back at the latest.
    #[must_use]
    pub fn poll_output(&mut self) -> Output {
        let Some(output) = self.out.pop() else { return Output::Wait(self.deadline()) };
        if let Output::Event(event) = &output {
            self.history.tell(self.now, event);
        }
        output
    }

    /// The job that an [`Output::Compute`] names, once. To be run on any thread, and given back.
    #[must_use]
    pub fn take_job(&mut self, job: JobId) -> Option<Job<C>> {
        self.control.as_mut()?.take_job(job)
    }

    /// Takes what a job made; an input like others, but for being no plain data.
    pub fn handle_computed(&mut self, now: Now, computed: Computed<C>) {
        self.note_figures(now);
        self.now = now;
        if matches!(self.phase, Phase::New | Phase::Finished) {
            return;
        }
        self.with_control(|control, context| control.handle_computed(context, computed));
        self.handle_time();
        self.advance_update();
    }

    /// How far its life and that of its tunnel have come, for traces: such as `running, tunnel up`.
    #[must_use]
    pub fn state(&self) -> String {
        let phase = match self.phase {
            Phase::New => "new",
            Phase::Running => "running",
            Phase::Stopping(_) => "stopping",
            Phase::Finished => "finished",
        };
        let tunnel = self.tunnel.as_ref().map_or("none", Tunnel::state_name);
        [phase, ", tunnel ", tunnel].concat()
    }

    /// The sizes of its queues and tables, for whoever looks whether its memory is bounded.
    #[must_use]
    pub fn holdings(&self) -> Holdings {
        let (outputs, (events, samples)) = (self.out.len(), self.history.held());
        let held = self.control.as_ref().map_or_else(Holdings::default, Control::holdings);
        Holdings { outputs, events, samples, ..held }
    }

    /// The names of the streams that are open, where there is a control session.
    #[cfg(any(test, feature = "fuzzing"))]
    pub(crate) fn stream_names(&self) -> Option<alloc::collections::BTreeSet<String>> {
        self.control.as_ref().map(Control::stream_names)
    }

    /// Runs a job at once, for a shell that has nowhere else to run it.
    pub fn compute(&mut self, now: Now, job: JobId) {
        if let Some(job) = self.take_job(job) {
            self.handle_computed(now, job.run());
        }
    }

    /// What held until this input, for the steps of time that are over with it.
    fn note_figures(&mut self, now: Now) {
        if !self.history.is_due(now) {
            return;
        }
        let Some(control) = &mut self.control else { return };
        let tunnel = self.tunnel.as_ref().map(|tunnel| *tunnel.counts()).unwrap_or_default();
        let (counters, active) = (control.counters(), control.under_way());
        let figures = Figures {
            requests: counters.requests,
            failed: counters.failed,
            bytes: counters.bytes,
            tunnel_bytes: tunnel.received.saturating_add(tunnel.sent),
            ended: control.latency().count(),
            took: control.latency().sum(),
            active_requests: active.requests,
            active_streams: active.streams,
        };
        self.history.note(now, figures, control.take_slowest());
    }

    fn start(&mut self) {
        self.phase = Phase::Running;
        if self.control.is_some() && self.registration.is_none() {
            let message = "this node is not registered: run `eval`, then `register`".to_string();
            self.finish(Finish { outcome: Outcome::NotRegistered, message });
            return;
        }
        if self.control.is_some() {
            self.save(replay::serving_file());
        }
        self.with_tunnel(|tunnel, context| {
            tunnel.open(context);
            None
        });
    }

    /// Writes how it stands with the tickets.
    fn save(&mut self, data: Vec<u8>) {
        let write = Effect::Write { file: StateFile::SpentTickets, data };
        self.saving = Some(self.out.perform(write));
    }

    fn deadline(&self) -> Option<Deadline> {
        match self.phase {
            Phase::Running => {}
            Phase::Stopping(until) => return Deadline::earlier(Some(until), self.api.deadline()),
            Phase::New | Phase::Finished => return None,
        }
        [
            self.tunnel.as_ref().and_then(Tunnel::deadline),
            self.eval.deadline(),
            self.control.as_ref().and_then(Control::deadline),
            self.api.deadline(),
            self.updates.deadline(self.now),
        ]
        .into_iter()
        .fold(None, Deadline::earlier)
    }

    /// Everything that is due. Each round moves at least one deadline on, and a machine has a bounded number of
    /// them, so this ends.
    fn handle_time(&mut self) {
        while self.deadline().is_some_and(|deadline| deadline.is_due(self.now)) {
            if let Phase::Stopping(until) = self.phase {
                if until.is_due(self.now) {
                    return self.stopped();
                }
                self.api.handle_time(self.now, &mut self.out);
                continue;
            }
            self.with_tunnel(Tunnel::handle_time);
            let next = self.eval.handle_time(&mut eval_context!(self));
            self.after_eval(next);
            self.with_control(Control::handle_time);
            self.api.handle_time(self.now, &mut self.out);
            self.with_updates(Directed::handle_time);
            self.advance_update();
        }
    }

    fn with_tunnel(
        &mut self,
        act: impl FnOnce(&mut Tunnel<C>, &mut connection::Context<'_, C>) -> Option<Happening>,
    ) {
        let Some(tunnel) = &mut self.tunnel else { return };
        let mut context = connection::Context {
            now: self.now,
            identity: &self.identity,
            rng: &mut self.rng,
            out: &mut self.out,
        };
        match act(tunnel, &mut context) {
            None => {}
            Some(Happening::Ready) => self.handle_ready(),
            Some(Happening::Pong) => self.updates.handle_pong(&mut self.out),
            Some(Happening::Message(message)) => self.handle_message(message),
            Some(Happening::Down(down)) => self.handle_down(down),
        }
    }

    fn handle_ready(&mut self) {
        self.eval.start(self.now);
        self.with_control(Control::start);
        self.with_updates(Directed::handle_ready);
    }

    fn with_updates(&mut self, act: impl FnOnce(&mut Directed, &mut update::directed::Context<'_, C>)) {
        let (Some(control), Some(tunnel)) = (&mut self.control, &mut self.tunnel) else { return };
        let (now, crypto, manifest) = (self.now, &self.crypto, &self.manifest);
        let mut context = update::directed::Context { now, crypto, manifest, out: &mut self.out, tunnel };
        act(&mut self.updates, &mut context);
        control.drain(self.updates.is_draining());
    }

    /// Installs a release when nothing runs any more, and ends when it is installed.
    fn advance_update(&mut self) {
        if self.phase != Phase::Running {
            return;
        }
        if let Some(control) = &self.control {
            let Active { requests, streams } = control.active();
            self.updates.advance(self.now, &mut self.out, requests + streams > 0);
        }
        if self.updates.installed().is_some() {
            self.with_control(Control::stop_for_good);
            self.leave(1012, "node update apply requested");
        }
    }

    fn with_control(&mut self, act: impl FnOnce(&mut Control<C>, &mut control::Context<'_, C>)) {
        let (Some(control), Some(tunnel)) = (&mut self.control, &mut self.tunnel) else { return };
        let mut context = control::Context {
            now: self.now,
            crypto: &self.crypto,
            identity: &self.identity,
            rng: &mut self.rng,
            out: &mut self.out,
            tunnel,
        };
        act(control, &mut context);
    }

    fn handle_down(&mut self, down: Down) {
        self.eval.stop(&mut self.out);
        match self.control {
            Some(_) => self.with_control(Control::stop),
            // The server has said all it had to say; the end comes with the file.
            None if self.eval.is_saving() => {}
            None => {
                let finish = self.eval.finish_unadmitted(&mut self.out, down.outcome, &down.reason);
                self.finish(finish);
            }
        }
    }

    fn handle_message(&mut self, message: Message) {
        let (seconds, out) = (self.now.unix_seconds(), &mut self.out);
        let serves = self.control.is_some();
        let answer = match (message, serves) {
            (Message::EvalRequest(request), true) if !eval::is_allowed_in_control(&request.action) => {
                let text = "a registered node is not evaluated anew";
                Some(message::error(seconds, Some(&request.id), "eval_action_not_allowed", text))
            }
            (Message::EvalRequest(request), _) => {
                let next = self.eval.handle_request(&mut eval_context!(self), request);
                return self.after_eval(next);
            }
            (Message::JoinReady(join), _) => {
                let saved = self.eval.handle_join_ready(&mut eval_context!(self), join);
                saved.err().map(|reason| message::error(seconds, None, "join_failed", &reason))
            }
            (Message::ErrorMessage(error), _) => {
                let (code, message) = (printable(&error.code), printable(&error.message));
                out.event(Event::ServerError { code, message });
                None
            }
            (Message::HttpRequest(request), _) => {
                let text = "http_request is reserved";
                Some(message::error(seconds, request.id.as_deref(), "unsupported", text))
            }
            (Message::ProxyRequest(request), true) => {
                return self.with_control(|control, context| control.handle_proxy_request(context, request));
            }
            (Message::StreamOpen(open), true) => {
                return self.with_control(|control, context| control.handle_stream_open(context, open));
            }
            (Message::StreamData(data), true) => {
                return self.with_control(|control, context| control.handle_stream_data(context, data));
            }
            (Message::StreamClose(close), true) => {
                return self.with_control(|control, context| control.handle_stream_close(context, &close));
            }
            (Message::UpdatePrepare(request), true) => {
                return self.with_updates(|updates, context| updates.handle_prepare(context, request));
            }
            (Message::UpdateApply(request), true) => {
                let active = self.control.as_ref().map_or(Active::default(), Control::active);
                return self.with_updates(|updates, context| updates.handle_apply(context, request, active));
            }
            (Message::Ack(_), _) => None,
            (message, _) => {
                let text = ["a node does not take a message of type ", message.kind(), " here"].concat();
                Some(message::error(seconds, None, "unsupported", &text))
            }
        };
        self.send(answer);
    }

    fn handle_done(&mut self, effect: EffectId, result: EffectResult) {
        if self.saving == Some(effect) {
            self.saving = None;
            if let EffectResult::Written(Err(reason)) = result {
                self.out.event(Event::NotSaved { reason: printable(&reason) });
            }
            if matches!(self.phase, Phase::Stopping(_)) {
                self.stopped();
            }
        } else if self.eval.owns(effect) {
            let next = self.eval.handle_done(&mut eval_context!(self), effect, result);
            self.after_eval(next);
        } else if self.api.owns(effect) {
            self.api.handle_done(self.now, &mut self.out, effect, result);
        } else if self.updates.owns(effect) {
            self.with_updates(|updates, context| updates.handle_done(context, effect, result));
        } else if self.control.as_ref().is_some_and(|control| control.owns(effect)) {
            self.with_control(|control, context| control.handle_done(context, effect, result));
        }
    }

    fn handle_local(&mut self, id: LocalId, request: &LocalRequest) {
        let mut context = api::Context {
            now: self.now,
            started: self.started,
            holdings: self.holdings(),
            identity: &self.identity,
            manifest: &self.manifest,
            registration: self.registration.as_ref(),
            tunnel: self.tunnel.as_ref(),
            control: self.control.as_ref(),
            updates: &self.updates,
            history: &self.history,
            is_stopping: matches!(self.phase, Phase::Stopping(_)),
            rng: &mut self.rng,
            out: &mut self.out,
        };
        if !self.api.handle_request(&mut context, id, request) {
            return;
        }
        // A WebSocket for the data plane, which is served where the tickets are kept.
        let (code, reason) = match (&mut self.control, &self.registration) {
            // The file of what was spent is written already.
            _ if matches!(self.phase, Phase::Stopping(_)) => (1001, "this node stops"),
            (Some(control), _) => return control.handle_local_open(self.now, &mut self.out, id),
            (None, Some(_)) => (1013, "this process serves the local API alone; `run` serves the data plane"),
            (None, None) => (1011, "this node is not registered"),
        };
        self.out.push(Output::CloseLocal { id, code, reason: reason.to_string() });
    }

    fn after_eval(&mut self, next: Option<eval::Next>) {
        match next {
            None => {}
            Some(eval::Next::Send(answer)) => self.send(Some(answer)),
            Some(eval::Next::Finish(finish)) => {
                if let Some(tunnel) = &mut self.tunnel {
                    tunnel.close(&mut self.out, 1000, "eval complete");
                }
                self.finish(finish);
            }
        }
    }

    fn send(&mut self, answer: Option<FrameBuf>) {
        if let (Some(tunnel), Some(answer)) = (&mut self.tunnel, answer) {
            tunnel.send(&mut self.out, answer);
        }
    }

    fn stop(&mut self) {
        if self.phase != Phase::Running {
            return;
        }
        self.out.event(Event::Stopping);
        self.eval.stop(&mut self.out);
        self.with_control(Control::stop_for_good);
        if self.eval.is_saving() {
            // It is won: a moment more, and it is on the disk.
            return;
        }
        let is_eval = self.tunnel.is_some() && self.control.is_none();
        self.leave(1000, if is_eval { "eval stopped" } else { "control stopped" });
        if self.control.is_some() {
            // The end comes with the file.
        } else if is_eval {
            let message = "stopped by the operator before the evaluation was over".to_string();
            self.finish(Finish { outcome: Outcome::Internal, message });
        } else {
            self.stopped();
        }
    }

    /// Closes the tunnel for good. What was spent is for the next process to know.
    fn leave(&mut self, code: u16, reason: &str) {
        if let Some(tunnel) = &mut self.tunnel {
            tunnel.close(&mut self.out, code, reason);
        }
        if let Some(control) = &self.control {
            let file = control.spent_file(self.now);
            self.save(file);
            self.phase = Phase::Stopping(self.now.deadline(STOP_TIMEOUT, Reason::Stop));
        }
    }

    fn stopped(&mut self) {
        let finish = match self.updates.installed() {
            Some(version) => {
                let message = ["version ", version, " is installed and waits to be started"].concat();
                Finish { outcome: Outcome::Updating, message }
            }
            None => Finish { outcome: Outcome::Done, message: "stopped by the operator".to_string() },
        };
        self.finish(finish);
    }

    fn finish(&mut self, finish: Finish) {
        self.phase = Phase::Finished;
        self.out.finish(finish);
    }
}
