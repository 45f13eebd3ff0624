//! Updates that the network directs (protocol.md section 9): prepare, drain, install, restart; and, after a restart,
//! the confirmation of the release that runs, or the report that one was given up.
//!
//! ```text
//! Idle ─prepare→ Downloading → Inspecting → Prepared ─apply→ Draining → Installing ─→ Installed: the node ends
//!   ▲                │             │           │                            │
//!   └─── refused, failed, replaced ┴───────────┘            failed, the node serves on: Idle
//! ```
//!
//! What was prepared outlives the session: it belongs to the node. An answer to a prepare does not: a server that comes
//! back asks again, and is answered at once. That an installation failed is told to the next session, because the
//! server was told that it would happen.

use alloc::boxed::Box;
use alloc::format;
use alloc::string::{String, ToString as _};
use alloc::vec::Vec;
use core::mem;

use serde_json::{Value, json};

use super::{Install, RolledBack, Settings, Standing, Way};
use crate::crypto::Crypto;
use crate::event::Event;
use crate::io::{Effect, EffectId, EffectResult, Output};
use crate::limits::{DRAIN_LIMIT, INSTALL_TIMEOUT, MAX_ID, MAX_RESTART_AFTER, PREPARE_TIMEOUT};
use crate::outbox::Outbox;
use crate::release::artifact::{Artifact, acceptable};
use crate::release::manifest::{Manifest, differences};
use crate::release::version::Version;
use crate::text::printable;
use crate::time::{Deadline, Now, Reason};
use crate::tunnel::connection::Tunnel;
use crate::wire::frame::FrameBuf;
use crate::wire::hex;
use crate::wire::message::{self, UpdateApply, UpdateFailed, UpdatePrepare, UpdateReady};

/// What [`Directed::state_name`] may be.
pub(crate) const STATES: [&str; 7] =
    ["none", "preparing", "prepared", "draining", "installing", "overdue", "restarting"];

const PREPARE_FAILED: &str = "prepare_failed";
const NOT_PREPARED: &str = "update_not_prepared";
const APPLY_FAILED: &str = "apply_failed";

/// What the machine needs of the node that has it.
pub(crate) struct Context<'a, C: Crypto> {
    pub(crate) now: Now,
    pub(crate) crypto: &'a C,
    /// Of the running release.
    pub(crate) manifest: &'a Manifest,
    pub(crate) out: &'a mut Outbox,
    pub(crate) tunnel: &'a mut Tunnel<C>,
}

impl<C: Crypto> Context<'_, C> {
    /// Sends a message; whether there is a session.
    fn send(&mut self, plaintext: FrameBuf) -> bool {
        self.tunnel.is_up() && self.tunnel.send(self.out, plaintext)
    }
}

/// Whom an answer is for.
#[derive(Clone, Debug)]
struct Asker {
    reply_to: String,
    /// The session that asked.
    session: u64,
}

/// A release on its way to be prepared, or prepared.
#[derive(Debug)]
struct Release {
    update_id: String,
    manifest: Box<Manifest>,
    sha256: [u8; 32],
    /// The file; empty while it is not there.
    artifact: String,
}

#[derive(Debug, Default)]
enum State {
    #[default]
    Idle,
    Downloading {
        asker: Asker,
        release: Release,
        effect: EffectId,
        until: Deadline,
    },
    Inspecting {
        asker: Asker,
        release: Release,
        effect: EffectId,
        until: Deadline,
    },
    Prepared(Release),
    Draining {
        asker: Asker,
        release: Release,
        /// Not before, whether or not something runs.
        pause: Deadline,
        /// Then, whatever runs.
        limit: Deadline,
    },
    Installing {
        asker: Asker,
        release: Release,
        effect: EffectId,
        until: Deadline,
    },
    /// The node serves again, and the installer still runs.
    Overdue {
        effect: EffectId,
    },
    /// The node is to end.
    Installed {
        version: String,
    },
}

/// How far the confirmation of the running release is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Probation {
    /// Nothing is to be confirmed, any more.
    Over,
    /// The network has to answer.
    Waiting,
    /// The shell writes it down.
    Confirming(EffectId),
}

/// What the server must still be told, once there is a session.
#[derive(Debug)]
enum Report {
    RolledBack(RolledBack),
    /// The installer failed while there was none.
    Failed {
        update_id: String,
        message: String,
    },
}

/// The updates of one node.
#[derive(Debug)]
pub(crate) struct Directed {
    settings: Settings,
    state: State,
    probation: Probation,
    reports: Vec<Report>,
    /// The shell is told that the rollback was reported.
    acknowledging: Option<EffectId>,
    /// Counts sessions.
    session: u64,
}

impl Directed {
    pub(crate) fn new(mut settings: Settings) -> Self {
        let probation = if settings.standing.on_probation { Probation::Waiting } else { Probation::Over };
        let rolled_back = settings.standing.rolled_back.take();
        let reports = rolled_back.map(Report::RolledBack).into_iter().collect();
        Self { settings, state: State::Idle, probation, reports, acknowledging: None, session: 0 }
    }

    /// Nothing new is to be taken on.
    pub(crate) const fn is_draining(&self) -> bool {
        matches!(self.state, State::Draining { .. } | State::Installing { .. } | State::Installed { .. })
    }

    /// The release that the node is to end for.
    pub(crate) fn installed(&self) -> Option<&str> {
        match &self.state {
            State::Installed { version } => Some(version),
            _ => None,
        }
    }

    /// Whether the effect is one of this machine's.
    pub(crate) fn owns(&self, effect: EffectId) -> bool {
        self.effect() == Some(effect)
            || self.probation == Probation::Confirming(effect)
            || self.acknowledging == Some(effect)
    }

    fn effect(&self) -> Option<EffectId> {
        match &self.state {
            State::Downloading { effect, .. }
            | State::Inspecting { effect, .. }
            | State::Installing { effect, .. }
            | State::Overdue { effect } => Some(*effect),
            State::Idle | State::Prepared(_) | State::Draining { .. } | State::Installed { .. } => None,
        }
    }

    pub(crate) fn deadline(&self, now: Now) -> Option<Deadline> {
        match &self.state {
            State::Downloading { until, .. }
            | State::Inspecting { until, .. }
            | State::Installing { until, .. } => Some(*until),
            State::Draining { pause, limit, .. } => Some(if pause.is_due(now) { *limit } else { *pause }),
            State::Idle | State::Prepared(_) | State::Overdue { .. } | State::Installed { .. } => None,
        }
    }

    /// Its state in a word: one of [`STATES`].
    pub(crate) const fn state_name(&self) -> &'static str {
        match &self.state {
            State::Idle => "none",
            State::Downloading { .. } | State::Inspecting { .. } => "preparing",
            State::Prepared(_) => "prepared",
            State::Draining { .. } => "draining",
            State::Installing { .. } => "installing",
            State::Overdue { .. } => "overdue",
            State::Installed { .. } => "restarting",
        }
    }

    /// Whether the release that runs has still to prove itself.
    pub(crate) fn is_on_probation(&self) -> bool {
        self.probation != Probation::Over
    }

    /// What the local API says of it.
    pub(crate) fn status(&self) -> Value {
        let state = self.state_name();
        let release = match &self.state {
            State::Idle | State::Overdue { .. } => None,
            State::Downloading { release, .. }
            | State::Inspecting { release, .. }
            | State::Prepared(release)
            | State::Draining { release, .. }
            | State::Installing { release, .. } => Some(release),
            State::Installed { version } => {
                return json!({"state": state, "version": version, "on_probation": false});
            }
        };
        json!({
            "state": state,
            "update_id": release.map(|release| printable(&release.update_id)),
            "version": release.map(|release| printable(&release.manifest.version)),
            "on_probation": self.is_on_probation(),
        })
    }

    /// The session is up: what is still to be told is told. A release on probation pings at once.
    pub(crate) fn handle_ready<C: Crypto>(&mut self, context: &mut Context<'_, C>) {
        self.session += 1;
        let seconds = context.now.unix_seconds();
        let mut is_excused = false;
        for report in mem::take(&mut self.reports) {
            let (update_id, message, was_rolled_back) = match report {
                Report::Failed { update_id, message } => (Some(update_id), message, false),
                Report::RolledBack(RolledBack { update_id, version, reason, was_silent }) => {
                    let (version, mut reason) = (printable(&version), printable(&reason));
                    // The release that is known to work did not come through at once either: the network was away, and
                    // may have been so all the time that the other one had.
                    is_excused = was_silent && context.tunnel.counts().attempts > 1;
                    if is_excused {
                        reason.push_str("; nor did the release before it at once, so it may be tried again");
                        self.excuse(&version);
                    }
                    let message = format!("version {version} was installed and given up again: {reason}");
                    context.out.event(Event::UpdateRolledBack { version, reason });
                    (update_id.filter(|id| !id.is_empty() && id.len() <= MAX_ID), message, true)
                }
            };
            if let Some(update_id) = update_id {
                // The request that this would answer was another session's, or another process's.
                let reply_to = update_id.clone();
                let code = APPLY_FAILED.to_string();
                context.send(UpdateFailed { reply_to, update_id, code, message }.encode(seconds));
            }
            if was_rolled_back {
                self.acknowledging = Some(context.out.perform(Effect::AcknowledgeRollback { is_excused }));
            }
        }
        if self.probation == Probation::Waiting {
            context.out.event(Event::UpdateOnProbation { version: context.manifest.version.clone() });
            context.tunnel.ping(context.now, context.out);
        }
    }

    /// What was given up is not held against the release.
    fn excuse(&mut self, version: &str) {
        self.settings.standing.refused.retain(|(refused, _)| refused.to_string() != version);
    }

    /// The network answered a ping of this session: the release that runs works.
    pub(crate) fn handle_pong(&mut self, out: &mut Outbox) {
        if self.probation == Probation::Waiting {
            self.probation = Probation::Confirming(out.perform(Effect::ConfirmRelease));
        }
    }

    /// The server wants a release prepared. It takes the place of what was prepared before.
    pub(crate) fn handle_prepare<C: Crypto>(&mut self, context: &mut Context<'_, C>, request: UpdatePrepare) {
        let UpdatePrepare { id, update_id, manifest } = request;
        let asker = Asker { reply_to: id, session: self.session };
        match mem::take(&mut self.state) {
            state @ (State::Draining { .. } | State::Installing { .. } | State::Installed { .. }) => {
                self.state = state;
                let reason = "another update is being installed: ask again after the restart";
                return self.refuse(context, &asker, update_id, PREPARE_FAILED, reason);
            }
            state @ State::Overdue { .. } => {
                self.state = state;
                let reason = "the installer of the update before still runs: ask again later";
                return self.refuse(context, &asker, update_id, PREPARE_FAILED, reason);
            }
            // The same once more: the work goes on, and whoever asked last is answered.
            State::Downloading { asker: before, mut release, effect, until }
                if *release.manifest == *manifest =>
            {
                let replaced = mem::replace(&mut release.update_id, update_id);
                self.state = State::Downloading { asker, release, effect, until };
                return self.tell_replaced(context, &before, replaced);
            }
            State::Inspecting { asker: before, mut release, effect, until }
                if *release.manifest == *manifest =>
            {
                let replaced = mem::replace(&mut release.update_id, update_id);
                self.state = State::Inspecting { asker, release, effect, until };
                return self.tell_replaced(context, &before, replaced);
            }
            State::Prepared(mut release) if *release.manifest == *manifest => {
                release.update_id = update_id;
                self.answer_ready(context, &asker, &release);
                self.state = State::Prepared(release);
                return;
            }
            State::Downloading { asker: before, release, effect, .. }
            | State::Inspecting { asker: before, release, effect, .. } => {
                context.out.push(Output::Cancel { id: effect });
                self.tell_replaced(context, &before, release.update_id);
            }
            State::Idle | State::Prepared(_) => {}
        }
        if differences(&manifest, context.manifest).is_empty() {
            let release = Release { update_id, manifest, sha256: [0; 32], artifact: String::new() };
            return self.answer_ready(context, &asker, &release);
        }
        match self.judge(context, &manifest) {
            Ok(sha256) => {
                let (update, version) = (printable(&update_id), printable(&manifest.version));
                context.out.event(Event::UpdatePreparing { update_id: update, version });
                let effect = context.out.perform(Effect::Download(manifest.clone()));
                let release = Release { update_id, manifest, sha256, artifact: String::new() };
                let until = context.now.deadline(PREPARE_TIMEOUT, Reason::UpdatePrepare);
                self.state = State::Downloading { asker, release, effect, until };
            }
            Err(reason) => self.refuse(context, &asker, update_id, PREPARE_FAILED, &reason),
        }
    }

    /// The server wants the prepared release installed.
    pub(crate) fn handle_apply<C: Crypto>(
        &mut self,
        context: &mut Context<'_, C>,
        request: UpdateApply,
        active: Active,
    ) {
        let UpdateApply { id, update_id, restart_after_ms } = request;
        let seconds = context.now.unix_seconds();
        let session = self.session;
        let new = Asker { reply_to: id, session };
        let reason = match &mut self.state {
            State::Draining { asker, release, .. } | State::Installing { asker, release, .. }
                if release.update_id == update_id =>
            {
                // Asked once more, by a server that came back: it is under way.
                context.send(message::Ack { reply_to: new.reply_to.clone() }.encode(seconds));
                *asker = new;
                return;
            }
            State::Draining { .. } | State::Installing { .. } | State::Installed { .. } => {
                "another update is being installed"
            }
            State::Downloading { .. } | State::Inspecting { .. } => "it is still being prepared",
            State::Idle | State::Overdue { .. } => "no update is prepared",
            State::Prepared(release) if release.update_id != update_id => "another update is prepared",
            State::Prepared(_) => {
                return self.begin_drain(context, new, restart_after_ms, active);
            }
        };
        self.refuse(context, &new, update_id, NOT_PREPARED, reason);
    }

    fn begin_drain<C: Crypto>(
        &mut self,
        context: &mut Context<'_, C>,
        asker: Asker,
        restart_after_ms: u64,
        active: Active,
    ) {
        let State::Prepared(release) = mem::take(&mut self.state) else { return };
        // What was good when it was prepared may have expired since.
        if let Err(reason) = self.settings.keys.check(context.crypto, &release.manifest, context.now) {
            let reason = reason.to_string();
            return self.refuse(context, &asker, release.update_id, APPLY_FAILED, &reason);
        }
        let seconds = context.now.unix_seconds();
        context.send(message::Ack { reply_to: asker.reply_to.clone() }.encode(seconds));
        let pause = core::time::Duration::from_millis(restart_after_ms).min(MAX_RESTART_AFTER);
        let limit = pause + DRAIN_LIMIT;
        context.out.event(Event::UpdateDraining {
            version: printable(&release.manifest.version),
            active_requests: active.requests,
            active_streams: active.streams,
            limit_ms: u64::try_from(limit.as_millis()).unwrap_or(u64::MAX),
        });
        let pause = context.now.deadline(pause, Reason::UpdatePause);
        let limit = context.now.deadline(limit, Reason::UpdateDrain);
        self.state = State::Draining { asker, release, pause, limit };
    }

    /// Goes on where nothing has to be waited for any more: to be called after every input.
    pub(crate) fn advance(&mut self, now: Now, out: &mut Outbox, is_busy: bool) {
        let State::Draining { pause, limit, .. } = &self.state else { return };
        if !pause.is_due(now) || (is_busy && !limit.is_due(now)) {
            return;
        }
        let State::Draining { asker, release, .. } = mem::take(&mut self.state) else { return };
        out.event(Event::UpdateInstalling { version: printable(&release.manifest.version) });
        let effect = out.perform(Effect::Install(Install {
            update_id: release.update_id.clone(),
            artifact: release.artifact.clone(),
            version: release.manifest.version.clone(),
            sha256: release.sha256,
            by_command: self.settings.way == Way::Command,
        }));
        let until = now.deadline(INSTALL_TIMEOUT, Reason::UpdateInstall);
        self.state = State::Installing { asker, release, effect, until };
    }

    /// What took too long. The end of a drain is [`advance`](Self::advance)'s.
    pub(crate) fn handle_time<C: Crypto>(&mut self, context: &mut Context<'_, C>) {
        let is_due = match &self.state {
            State::Downloading { until, .. }
            | State::Inspecting { until, .. }
            | State::Installing { until, .. } => until.is_due(context.now),
            _ => false,
        };
        if !is_due {
            return;
        }
        match mem::take(&mut self.state) {
            State::Downloading { asker, release, effect, .. }
            | State::Inspecting { asker, release, effect, .. } => {
                context.out.push(Output::Cancel { id: effect });
                let reason = format!("not prepared within {} min", PREPARE_TIMEOUT.as_secs() / 60);
                self.refuse(context, &asker, release.update_id, PREPARE_FAILED, &reason);
            }
            State::Installing { asker, release, effect, .. } => {
                context.out.push(Output::Cancel { id: effect });
                self.state = State::Overdue { effect };
                let reason = format!("not installed within {} s", INSTALL_TIMEOUT.as_secs());
                self.fail_apply(context, &asker, release.update_id, &reason);
            }
            state => self.state = state,
        }
    }

    /// An effect of this machine ended.
    pub(crate) fn handle_done<C: Crypto>(
        &mut self,
        context: &mut Context<'_, C>,
        effect: EffectId,
        result: EffectResult,
    ) {
        if self.probation == Probation::Confirming(effect) {
            return self.confirmed(context, result);
        }
        if self.acknowledging == Some(effect) {
            self.acknowledging = None;
            if let Err(reason) = installed(result) {
                context.out.event(Event::NotSaved { reason });
            }
            return;
        }
        match mem::take(&mut self.state) {
            State::Downloading { asker, mut release, until, .. } => match result {
                EffectResult::Downloaded(Ok(path)) => {
                    release.artifact = path;
                    if self.settings.way == Way::Command {
                        return self.prepared(context, &asker, release);
                    }
                    let artifact = release.artifact.clone();
                    let effect = context.out.perform(Effect::Inspect { artifact });
                    self.state = State::Inspecting { asker, release, effect, until };
                }
                other => {
                    let reason = match other {
                        EffectResult::Downloaded(Err(reason)) => printable(&reason),
                        _ => "not an answer to a download".to_string(),
                    };
                    self.refuse(context, &asker, release.update_id, PREPARE_FAILED, &reason);
                }
            },
            State::Inspecting { asker, release, .. } => match inspected(&release.manifest, result) {
                Ok(()) => self.prepared(context, &asker, release),
                Err(reason) => self.refuse(context, &asker, release.update_id, PREPARE_FAILED, &reason),
            },
            State::Installing { asker, release, .. } => match installed(result) {
                Ok(()) => {
                    let version = printable(&release.manifest.version);
                    context.out.event(Event::UpdateInstalled { version: version.clone() });
                    self.state = State::Installed { version };
                }
                Err(reason) => self.fail_apply(context, &asker, release.update_id, &reason),
            },
            State::Overdue { .. } => {
                let reason = match installed(result) {
                    Ok(()) => "the installer has ended after all: the new release runs from the next start",
                    Err(_) => "the installer has ended",
                };
                context.out.event(Event::UpdateOverdue { reason: reason.to_string() });
            }
            state => self.state = state,
        }
    }

    fn confirmed<C: Crypto>(&mut self, context: &mut Context<'_, C>, result: EffectResult) {
        match installed(result) {
            Ok(()) => {
                self.probation = Probation::Over;
                // From here on the installer takes nothing older: what it would refuse is not prepared.
                let floor = &mut self.settings.standing.floor;
                *floor = floor.take().max(context.manifest.version.parse().ok());
                context.out.event(Event::UpdateConfirmed { version: context.manifest.version.clone() });
            }
            Err(reason) => {
                // The next pong tries again.
                self.probation = Probation::Waiting;
                context.out.event(Event::NotSaved { reason });
            }
        }
    }

    fn prepared<C: Crypto>(&mut self, context: &mut Context<'_, C>, asker: &Asker, release: Release) {
        let update_id = printable(&release.update_id);
        let version = printable(&release.manifest.version);
        context.out.event(Event::UpdatePrepared { update_id, version });
        self.answer_ready(context, asker, &release);
        self.state = State::Prepared(release);
    }

    fn answer_ready<C: Crypto>(&self, context: &mut Context<'_, C>, asker: &Asker, release: &Release) {
        let is_nothing = release.artifact.is_empty();
        let ready = UpdateReady {
            reply_to: asker.reply_to.clone(),
            update_id: release.update_id.clone(),
            artifact_path: release.artifact.clone(),
            sha256: if is_nothing { String::new() } else { hex::encode(&release.sha256) },
            current_version: context.manifest.version.clone(),
            target_version: release.manifest.version.clone(),
        };
        if asker.session == self.session {
            context.send(ready.encode(context.now.unix_seconds()));
        }
    }

    /// The answer to a prepare that another one has taken the place of.
    fn tell_replaced<C: Crypto>(&self, context: &mut Context<'_, C>, asker: &Asker, update_id: String) {
        // Of a session that has ended nobody waits for it.
        if asker.session == self.session {
            let reason = "another update_prepare has taken its place";
            self.refuse(context, asker, update_id, PREPARE_FAILED, reason);
        }
    }

    /// Tells the operator, and the server where it still waits.
    fn refuse<C: Crypto>(
        &self,
        context: &mut Context<'_, C>,
        asker: &Asker,
        update_id: String,
        code: &str,
        reason: &str,
    ) {
        tell_failed(context.out, &update_id, code, reason);
        if asker.session == self.session {
            let (reply_to, code) = (asker.reply_to.clone(), code.to_string());
            let failed = UpdateFailed { reply_to, update_id, code, message: reason.to_string() };
            context.send(failed.encode(context.now.unix_seconds()));
        }
    }

    /// The installer failed: the server was told that it would restart, so it learns this in any case.
    fn fail_apply<C: Crypto>(
        &mut self,
        context: &mut Context<'_, C>,
        asker: &Asker,
        update_id: String,
        reason: &str,
    ) {
        tell_failed(context.out, &update_id, APPLY_FAILED, reason);
        let message = reason.to_string();
        if !context.tunnel.is_up() {
            return self.reports.push(Report::Failed { update_id, message });
        }
        // Another session does not know the request.
        let reply_to = if asker.session == self.session { &asker.reply_to } else { &update_id };
        let (reply_to, code) = (reply_to.clone(), APPLY_FAILED.to_string());
        context.send(UpdateFailed { reply_to, update_id, code, message }.encode(context.now.unix_seconds()));
    }

    /// Whether this node can take that release, and what its tarball hashes to.
    fn judge<C: Crypto>(&self, context: &Context<'_, C>, manifest: &Manifest) -> Result<[u8; 32], String> {
        let Settings { way, keys, standing } = &self.settings;
        match way {
            Way::Nobody(reason) => return Err(reason.clone()),
            Way::Command => {
                keys.check(context.crypto, manifest, context.now).map_err(|reason| reason.to_string())?;
            }
            Way::Installer => {
                // Where a floor was written down, it says how old a release may be.
                let allow_older = standing.floor.is_some();
                let (own, now) = (context.manifest, context.now);
                acceptable(context.crypto, keys, manifest, own, allow_older, now)
                    .map_err(|reason| reason.to_string())?;
            }
        }
        let artifact = Artifact::of(manifest).map_err(|reason| reason.to_string())?;
        check_standing(standing, &artifact.version, &artifact.sha256)?;
        Ok(artifact.sha256)
    }
}

/// What a node has under way for others.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Active {
    pub(crate) requests: usize,
    pub(crate) streams: usize,
}

fn tell_failed(out: &mut Outbox, update_id: &str, code: &str, reason: &str) {
    let (update_id, code, reason) = (printable(update_id), code.to_string(), reason.to_string());
    out.event(Event::UpdateFailed { update_id, code, reason });
}

/// Whether the release was given up before, or is older than what may run.
fn check_standing(standing: &Standing, version: &Version, sha256: &[u8; 32]) -> Result<(), String> {
    // As the installer has it: two builds of one version are two releases.
    let name = version.to_string();
    let is_it = |(refused, hash): &(Version, _)| refused.to_string() == name || *hash == Some(*sha256);
    if standing.refused.iter().any(is_it) {
        return Err(format!("version {version} was tried, did not come up, and is not tried again"));
    }
    match &standing.floor {
        Some(floor) if version < floor => {
            Err(format!("version {version} is older than {floor}, the oldest that may run"))
        }
        _ => Ok(()),
    }
}

/// Whether what is in the archive is what the manifest said. What is known only after packing is not in it.
fn inspected(wanted: &Manifest, result: EffectResult) -> Result<(), String> {
    let found = match result {
        EffectResult::Inspected(found) => found.map_err(|reason| printable(&reason))?,
        _ => return Err("not an answer to an inspection".to_string()),
    };
    let members = [
        ("product", &wanted.product, &found.product),
        ("artifact", &wanted.artifact, &found.artifact),
        ("version", &wanted.version, &found.version),
        ("platform", &wanted.platform, &found.platform),
        ("commit", &wanted.commit, &found.commit),
        ("routes_hash", &wanted.routes_hash, &found.routes_hash),
    ];
    // A manifest without a kind is taken for one of ours.
    let differs = |(_, wanted, found): &(&str, &String, &String)| wanted != found && !wanted.is_empty();
    match members.into_iter().find(differs) {
        None => Ok(()),
        Some((member, wanted, found)) => Err(format!(
            "the artifact is another release: its {member} is {}, not {}",
            printable(found),
            printable(wanted)
        )),
    }
}

/// What became of an effect on the installed releases.
fn installed(result: EffectResult) -> Result<(), String> {
    match result {
        EffectResult::Installed(result) => result.map_err(|reason| printable(&reason)),
        _ => Err("not an answer to an installation".to_string()),
    }
}
