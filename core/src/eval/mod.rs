//! The evaluation (protocol.md section 5): answers the server's actions, keeps the authorisation it earns, and
//! judges its own results.

mod action;
pub mod verdict;

pub(crate) use self::action::{is_allowed_in_control, memory_pressure};

use alloc::collections::VecDeque;
use alloc::format;
use alloc::string::{String, ToString as _};
use alloc::vec::Vec;
use core::fmt;
use core::time::Duration;

use serde_json::{Value, json};

use self::action::Action;
use self::verdict::{Figures, Verdict};
use crate::control::explain;
use crate::crypto::identity::Identity;
use crate::crypto::{Crypto, Drbg};
use crate::event::Event;
use crate::guard;
use crate::io::{
    Audience, Bounds, Effect, EffectId, EffectResult, Finish, Measurement, Outcome, Output, Response,
    StateFile,
};
use crate::limits::{
    EVAL_ACTION_TIMEOUT, EVAL_FETCH_TIMEOUT, EVAL_IDLE_TIMEOUT, EVAL_PATIENCE, EVAL_SUSTAINED_GRACE,
    MAX_ECHO, MAX_EVAL_FETCHES, MAX_EVAL_QUEUE,
};
use crate::outbox::Outbox;
use crate::release::integrity;
use crate::release::manifest::{Capabilities, Manifest};
use crate::state::JoinAuth;
use crate::text::printable;
use crate::time::{Deadline, Now, Reason};
use crate::tunnel::Mode;
use crate::wire::base64;
use crate::wire::frame::FrameBuf;
use crate::wire::message::{EvalRequest, EvalResponse, JoinReady};

/// The longest nonce that is signed: a real one has 32 bytes, and no other text that this key ever signs is
/// this short, so that a server cannot have one of those signed in the name of a join.
const MAX_JOIN_NONCE: usize = 64;

/// What an eval needs of the node that runs it.
pub(crate) struct Context<'a, C: Crypto> {
    pub(crate) now: Now,
    pub(crate) identity: &'a Identity<C>,
    pub(crate) manifest: &'a Manifest,
    pub(crate) rng: &'a mut Drbg,
    pub(crate) out: &'a mut Outbox,
}

/// An action waiting for its turn or under way.
#[derive(Debug)]
struct Request {
    id: String,
    name: String,
    asked: Now,
}

#[derive(Debug)]
struct Running {
    request: Request,
    effect: EffectId,
    begun: Now,
    /// How long it may take.
    time: Duration,
}

impl Running {
    fn new(request: Request, effect: EffectId, time: Duration, now: Now) -> Self {
        Self { request, effect, begun: now, time }
    }

    fn until(&self) -> Deadline {
        self.begun.deadline(self.time, Reason::EvalAction)
    }
}

/// The evaluation of one session.
pub(crate) struct Eval {
    mode: Mode,
    /// How far a fetch may reach, and the largest body it may bring.
    audience: Audience,
    bounds: Bounds,
    queue: VecDeque<(Request, Measurement)>,
    /// The measurement under way: there is one at a time, so that none disturbs another.
    running: Option<Running>,
    /// The fetches under way, oldest first.
    fetching: Vec<Running>,
    figures: Figures,
    idle: Option<Deadline>,
    /// Whether the operator knows what is being waited for.
    told: bool,
    saving: Option<(EffectId, JoinAuth)>,
}

impl fmt::Debug for Eval {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Eval")
            .field("mode", &self.mode)
            .field("running", &self.running)
            .finish_non_exhaustive()
    }
}

/// What the node is to do with the result of an input.
#[derive(Debug)]
pub(crate) enum Next {
    /// Send this.
    Send(FrameBuf),
    /// The evaluation is over.
    Finish(Finish),
}

impl Eval {
    pub(crate) fn new(mode: Mode, audience: Audience, bounds: Bounds) -> Self {
        Self {
            mode,
            audience,
            bounds,
            queue: VecDeque::new(),
            running: None,
            fetching: Vec::new(),
            figures: Figures::default(),
            idle: None,
            told: false,
            saving: None,
        }
    }

    /// The session is up: from here on the server is expected to ask.
    pub(crate) fn start(&mut self, now: Now) {
        if self.mode == Mode::Eval {
            self.idle = Some(now.deadline(EVAL_PATIENCE, Reason::EvalIdle));
            self.told = false;
        }
    }

    /// The session is gone: nobody waits for an answer any more.
    pub(crate) fn stop(&mut self, out: &mut Outbox) {
        self.queue.clear();
        self.idle = None;
        for running in self.running.take().into_iter().chain(self.fetching.drain(..)) {
            out.push(Output::Cancel { id: running.effect });
        }
    }

    pub(crate) fn deadline(&self) -> Option<Deadline> {
        let under_way = self.running.iter().chain(&self.fetching).map(Running::until);
        under_way.map(Some).fold(None, Deadline::earlier).or(self.idle)
    }

    /// Whether the node is admitted, and the authorisation on its way to the disk.
    pub(crate) const fn is_saving(&self) -> bool {
        self.saving.is_some()
    }

    /// Whether the effect is one of this machine's.
    pub(crate) fn owns(&self, effect: EffectId) -> bool {
        self.running.iter().chain(&self.fetching).any(|running| running.effect == effect)
            || self.saving.as_ref().is_some_and(|(id, _)| *id == effect)
    }

    /// The server asks for an action.
    pub(crate) fn handle_request<C: Crypto>(
        &mut self,
        context: &mut Context<'_, C>,
        request: EvalRequest,
    ) -> Option<Next> {
        self.idle = None;
        let name = printable(&request.action);
        context.out.event(Event::EvalStarted { action: name });
        let asked = context.now;
        let id = request.id;
        let name = request.action;
        let params = request.params.unwrap_or_default();
        let request = Request { id, name, asked };
        match Action::parse(&request.name, params) {
            Err(reason) => Some(self.answer(context, request, Err(reason))),
            Ok(Action::Capabilities) => Some(self.answer(context, request, Ok(json!(Capabilities::ALL)))),
            Ok(Action::Integrity) => {
                let payload = integrity::build(context.identity, context.manifest, context.now, context.rng);
                Some(self.answer(context, request, Ok(json!(payload))))
            }
            Ok(Action::Echo { payload, nonce }) => {
                let result = echo(&payload, &nonce);
                Some(self.answer(context, request, result))
            }
            Ok(Action::Measure(measurement)) => {
                if self.queue.len() >= MAX_EVAL_QUEUE {
                    let reason = format!("{MAX_EVAL_QUEUE} actions are waiting already");
                    return Some(self.answer(context, request, Err(reason)));
                }
                self.queue.push_back((request, measurement));
                self.run_next(context.now, context.out);
                None
            }
            Ok(Action::Fetch { url, method, timeout }) => {
                match self.fetch(context.out, &url, method.as_deref(), timeout) {
                    Ok(effect) => {
                        let running = Running::new(request, effect, EVAL_FETCH_TIMEOUT, context.now);
                        self.fetching.push(running);
                        None
                    }
                    Err(reason) => Some(self.answer(context, request, Err(reason))),
                }
            }
        }
    }

    /// Starts a fetch, by all rules for what strangers want fetched.
    fn fetch(
        &self,
        out: &mut Outbox,
        url: &str,
        method: Option<&str>,
        timeout: Duration,
    ) -> Result<EffectId, String> {
        if self.fetching.len() >= MAX_EVAL_FETCHES {
            return Err(format!("{MAX_EVAL_FETCHES} fetches are under way already"));
        }
        let request = guard::Request { url, method, headers: Vec::new(), body: None };
        let bounds = Bounds { whole: timeout, ..self.bounds };
        let fetch = guard::fetch(request, self.audience, bounds);
        let fetch = fetch.map_err(|refused| format!("refused: {refused}"))?;
        Ok(out.perform(Effect::Fetch(fetch)))
    }

    /// An effect of this machine ended.
    pub(crate) fn handle_done<C: Crypto>(
        &mut self,
        context: &mut Context<'_, C>,
        effect: EffectId,
        result: EffectResult,
    ) -> Option<Next> {
        if let Some((_, auth)) = self.saving.take_if(|(id, _)| *id == effect) {
            return Some(Next::Finish(saved(context.out, auth, result)));
        }
        let running = self.take(|running| running.effect == effect)?;
        let result = match result {
            EffectResult::Measured(result) => result.map(|report| report.to_json()),
            EffectResult::Fetched(Ok(response)) => {
                let took = context.now.monotonic.saturating_sub(running.begun.monotonic);
                Ok(fetched(&response, took))
            }
            EffectResult::Fetched(Err(error)) => Err(explain(&error)),
            EffectResult::Written(_)
            | EffectResult::Downloaded(_)
            | EffectResult::Inspected(_)
            | EffectResult::Installed(_) => Err("neither a measurement nor a fetch".to_string()),
        };
        let next = self.answer(context, running.request, result);
        self.run_next(context.now, context.out);
        Some(next)
    }

    /// The server admits the node: sign, and keep the authorisation.
    pub(crate) fn handle_join_ready<C: Crypto>(
        &mut self,
        context: &mut Context<'_, C>,
        join: JoinReady,
    ) -> Result<(), String> {
        if self.mode != Mode::Eval || self.saving.is_some() {
            return Err("join_ready out of place".to_string());
        }
        if join.alg != "ed25519" {
            return Err(format!("join_ready wants a signature of an unknown kind, {}", printable(&join.alg)));
        }
        let nonce = base64::decode(&join.nonce).filter(|n| !n.is_empty() && n.len() <= MAX_JOIN_NONCE);
        let nonce =
            nonce.ok_or_else(|| format!("the nonce of join_ready is not 1 to {MAX_JOIN_NONCE} bytes"))?;
        self.idle = None;
        self.tell_verdict(context.out);
        let auth = JoinAuth {
            signature: context.identity.sign(&nonce),
            join_id: join.join_id,
            alg: join.alg,
            nonce: join.nonce,
            expires_at: join.expires_at,
            saved_at: context.now.unix_seconds(),
        };
        let id = context.out.perform(Effect::Write { file: StateFile::JoinAuth, data: auth.emit() });
        self.saving = Some((id, auth));
        Ok(())
    }

    /// What is due: an action that took too long, or a server that no longer asks.
    pub(crate) fn handle_time<C: Crypto>(&mut self, context: &mut Context<'_, C>) -> Option<Next> {
        let now = context.now;
        if let Some(running) = self.take(|running| running.until().is_due(now)) {
            context.out.push(Output::Cancel { id: running.effect });
            let reason = format!("took longer than {} s", running.time.as_secs());
            let next = self.answer(context, running.request, Err(reason));
            self.run_next(context.now, context.out);
            return Some(next);
        }
        self.idle.take_if(|idle| idle.is_due(context.now))?;
        if !self.told {
            let rest = EVAL_IDLE_TIMEOUT.saturating_sub(EVAL_PATIENCE);
            context.out.event(Event::EvalWaiting { seconds: rest.as_secs() });
            self.idle = Some(context.now.deadline(rest, Reason::EvalIdle));
            self.told = true;
            return None;
        }
        let what =
            format!("the network made no offer within {} s and gave no reason", EVAL_IDLE_TIMEOUT.as_secs());
        Some(Next::Finish(self.finish_unadmitted(context.out, Outcome::Refused, &what)))
    }

    /// The evaluation ended without `join_ready`: tells the operator why, as far as the node can know.
    pub(crate) fn finish_unadmitted(&self, out: &mut Outbox, outcome: Outcome, what: &str) -> Finish {
        let verdict = self.figures.verdict();
        let admissible = verdict.is_admissible();
        let nothing_measured = self.figures == Figures::default();
        let message = if nothing_measured {
            format!("not evaluated: {what}; nothing had been measured yet")
        } else if admissible {
            format!(
                "not admitted: {what}; by the thresholds this program knows, the machine passes what was measured"
            )
        } else {
            format!("not admitted: {what}; {}", verdict.missed.join("; "))
        };
        self.tell_verdict(out);
        Finish { outcome, message }
    }

    /// Tells the operator the node's own judgement, where there is anything to judge.
    fn tell_verdict(&self, out: &mut Outbox) {
        if self.figures != Figures::default() {
            let verdict = self.figures.verdict();
            let admissible = verdict.is_admissible();
            let Verdict { missed, not_measured } = verdict;
            out.event(Event::EvalVerdict { admissible, missed, not_measured });
        }
    }

    /// Takes the first of those under way for which `is_it` holds.
    fn take(&mut self, is_it: impl Fn(&Running) -> bool) -> Option<Running> {
        if let Some(running) = self.running.take_if(|running| is_it(running)) {
            return Some(running);
        }
        let at = self.fetching.iter().position(is_it)?;
        Some(self.fetching.remove(at))
    }

    fn run_next(&mut self, now: Now, out: &mut Outbox) {
        if self.running.is_some() {
            return;
        }
        if let Some((request, measurement)) = self.queue.pop_front() {
            let effect = out.perform(Effect::Measure(measurement));
            self.running = Some(Running::new(request, effect, time_of(measurement), now));
        }
    }

    fn answer<C: Crypto>(
        &mut self,
        context: &mut Context<'_, C>,
        request: Request,
        result: Result<Value, String>,
    ) -> Next {
        self.figures.record(&request.name, result.as_ref().ok());
        let took = context.now.monotonic.saturating_sub(request.asked.monotonic);
        context.out.event(Event::EvalFinished {
            action: printable(&request.name),
            ok: result.is_ok(),
            summary: match &result {
                Ok(value) => action::headline(&request.name, value),
                Err(reason) => printable(reason),
            },
            duration_ms: u64::try_from(took.as_millis()).unwrap_or(u64::MAX),
        });
        let at_rest = self.running.is_none() && self.queue.is_empty() && self.fetching.is_empty();
        if self.mode == Mode::Eval && at_rest {
            self.idle = Some(context.now.deadline(EVAL_PATIENCE, Reason::EvalIdle));
            self.told = false;
        }
        let (ok, result, error) = match result {
            Ok(value) => (true, Some(value), None),
            Err(reason) => (false, None, Some(reason)),
        };
        let response = EvalResponse { reply_to: request.id, action: request.name, ok, result, error };
        Next::Send(response.encode(context.now.unix_seconds()))
    }
}

/// How long a measurement may take (protocol.md section 5).
fn time_of(measurement: Measurement) -> Duration {
    match measurement {
        Measurement::Sustained { duration_ms, .. } => {
            Duration::from_millis(duration_ms.into()) + EVAL_SUSTAINED_GRACE
        }
        _ => EVAL_ACTION_TIMEOUT,
    }
}

/// The result of `speedtest_fetch`.
fn fetched(response: &Response, took: Duration) -> Value {
    let mut result = json!({
        "ok": (200..400).contains(&response.status), "status": response.status, "bytes": response.body.len(),
        "node_ms": u64::try_from(took.as_millis()).unwrap_or(u64::MAX),
    });
    let named = |(name, _): &&(String, String)| name.eq_ignore_ascii_case("content-type");
    if let Some((_, value)) = response.headers.iter().find(named) {
        result["content_type"] = Value::from(value.as_str());
    }
    result
}

fn saved(out: &mut Outbox, auth: JoinAuth, result: EffectResult) -> Finish {
    let error = match result {
        EffectResult::Written(Ok(())) => {
            let message = "admitted; the authorisation is saved".to_string();
            out.event(Event::Admitted { join_id: printable(&auth.join_id), expires_at: auth.expires_at });
            return Finish { outcome: Outcome::Done, message };
        }
        EffectResult::Written(Err(error)) => error,
        EffectResult::Fetched(_)
        | EffectResult::Measured(_)
        | EffectResult::Downloaded(_)
        | EffectResult::Inspected(_)
        | EffectResult::Installed(_) => "not an answer to a write".to_string(),
    };
    out.event(Event::NotSaved { reason: error.clone() });
    Finish {
        outcome: Outcome::Internal,
        message: format!("admitted, but the authorisation could not be saved: {error}"),
    }
}

fn echo(payload: &str, nonce: &str) -> Result<Value, String> {
    let too_long = || format!("the payload is over {MAX_ECHO} bytes");
    // The bound is checked on the text, before it is decoded.
    if base64::decoded_len_max(payload.len()) > MAX_ECHO + 3 {
        return Err(too_long());
    }
    let bytes = base64::decode(payload).ok_or("the payload is not base64")?.len();
    if bytes > MAX_ECHO {
        return Err(too_long());
    }
    Ok(json!({"ok": true, "bytes": bytes, "echo": payload, "nonce": nonce}))
}
