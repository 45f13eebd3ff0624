//! The machine: what comes next follows from what is known.

use alloc::collections::VecDeque;
use alloc::format;
use alloc::string::{String, ToString as _};
use alloc::vec::Vec;
use core::mem;

use super::address::{self, Family, MAX_SERVICES};
use super::answers::{self, AGAIN, Answers, NONE, example};
use super::progress::{Held, Progress};
use super::texts;
use super::{
    AGREEMENT_VERSION, Effect, Invalid, Outcome, Purpose, Question, QuestionId, Registrant, Reusable, Reuse,
    Settings, Step, Tell, TellKind,
};
use crate::io::{Finish, Outcome as End, Response};
use crate::registration::operator_request;
use crate::state::{JoinAuth, check_machine};
use crate::text::printable;
use crate::time::Now;

mod network;
mod results;
mod stages;

use stages::Stage;

/// How long addresses are offered again, in seconds: home connections get another one every day.
const ADDRESSES_HOLD: u64 = 24 * 3600;

/// What runs out sooner than this, in seconds, is not offered again.
const MIN_LEFT: u64 = 60;

/// Evaluations of one setup: an authorisation that is used too late takes another.
const MAX_EVALUATIONS: u32 = 3;

/// How the look for an address goes.
#[derive(Clone, Debug, Default)]
struct Search {
    /// The service that is asked next.
    service: usize,
    /// What was found.
    address: Option<String>,
    /// Why the last service was of no use.
    problem: Option<String>,
}

/// The installed release in this setup.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Installed {
    Unknown,
    HandOver(String),
    Settled,
}

/// The service in this setup.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kept {
    Unknown,
    /// A supervisor has it; it is not known to be connected.
    Started,
    Settled,
}

/// What this process did; nothing of it outlives it.
#[derive(Clone, Debug)]
struct Session {
    /// Why the progress file is to be set aside.
    damaged: Option<String>,
    /// The authorisation in `join-auth.json` is not to be used.
    forgets: bool,
    dirty: bool,
    /// A progress file that cannot be written is told of once.
    unsaved: bool,
    resume: Option<bool>,
    keep: Option<bool>,
    release: Installed,
    v4: Search,
    v6: Search,
    /// The region that the server said, and for which address.
    region: Option<(String, Option<String>)>,
    evaluations: u32,
    emails: u32,
    code: Option<String>,
    code_tries: u32,
    token_refused: bool,
    /// What is wrong, for the next question.
    problem: Option<String>,
    summarised: bool,
    confirmed: bool,
    service: Kept,
    heading: Option<Stage>,
}

/// A setup under way; see [the module](super).
#[derive(Debug)]
pub struct Setup {
    settings: Settings,
    answers: Answers,
    /// Answers of before, for questions that are open.
    defaults: Answers,
    progress: Progress,
    session: Session,
    tells: VecDeque<Tell>,
    pending: Option<Step>,
    finish: Option<Finish>,
}

impl Setup {
    /// Begins, or goes on from what `setup-progress.json` says.
    ///
    /// # Errors
    /// An answer in `settings` that cannot be one.
    pub fn new(progress: Option<&[u8]>, mut settings: Settings, now: Now) -> Result<Self, Invalid> {
        settings.address_services.truncate(MAX_SERVICES);
        let mut answers = Answers::new();
        for (id, text) in &settings.given {
            answers.insert(*id, answers::read(*id, text, settings.allow_private)?);
        }
        let parsed = progress.map(|data| Progress::parse(data, settings.allow_private)).transpose();
        let (mut progress, damaged) = match parsed {
            Ok(progress) => (progress.unwrap_or_default(), None),
            Err(error) => (Progress::default(), Some(error.to_string())),
        };
        if progress.done {
            progress = Progress { extra: mem::take(&mut progress.extra), ..Progress::default() };
        }
        let session = Session {
            damaged,
            forgets: false,
            dirty: false,
            unsaved: false,
            resume: settings.handed_over.then_some(true),
            keep: (settings.running && settings.registration.is_some()).then_some(true),
            release: if settings.skip_release { Installed::Settled } else { Installed::Unknown },
            v4: Search::default(),
            v6: Search::default(),
            region: None,
            evaluations: 0,
            emails: 0,
            code: settings.code.clone(),
            code_tries: 0,
            token_refused: false,
            problem: None,
            summarised: false,
            confirmed: false,
            service: Kept::Unknown,
            heading: None,
        };
        let defaults = mem::take(&mut progress.answers);
        let (tells, pending, finish) = (VecDeque::new(), None, None);
        let mut this = Self { settings, answers, defaults, progress, session, tells, pending, finish };
        this.finish = this.conflict();
        if this.finish.is_some() {
            // Another node's machine: its files are left alone.
            this.session.damaged = None;
        }
        this.drop_what_ran_out(now);
        this.take_given(now);
        if this.session.resume == Some(true) {
            this.resume(true, now);
        }
        Ok(this)
    }

    /// The values that have to be given beforehand where nobody can be asked: all that are missing, at once.
    #[must_use]
    pub fn missing(&self) -> Vec<QuestionId> {
        let known = |id| self.answers.contains_key(&id) || self.defaults.contains_key(&id);
        let mut missing = Vec::new();
        if self.finish.is_some() {
            return missing;
        }
        if !known(QuestionId::Server) {
            missing.push(QuestionId::Server);
        }
        if self.settings.registration.is_some() {
            return missing;
        }
        if self.settings.address_services.is_empty() && !known(QuestionId::Ipv4) {
            missing.push(QuestionId::Ipv4);
        }
        let has_email = known(QuestionId::Email);
        if !has_email && self.progress.token.is_none() {
            missing.push(QuestionId::Email);
        } else if !has_email && !known(QuestionId::Contact) {
            missing.push(QuestionId::Contact);
        }
        for id in [QuestionId::EvmAddress, QuestionId::SolanaAddress, QuestionId::IcpAddress] {
            if !known(id) {
                missing.push(id);
            }
        }
        missing
    }

    /// How it ended, where it has: a machine that holds another node is refused before anything is asked or done.
    #[must_use]
    pub fn ended(&self) -> Option<&Finish> {
        self.finish.as_ref()
    }

    /// Where it is, by the name of what was begun last: `resume`, `server`, `keep_node`, `agreement`, `release`,
    /// `addresses`, `region`, `evaluation`, `email`, `payouts`, `confirm`, `register`, `service` or `done`.
    #[must_use]
    pub fn part(&self) -> &'static str {
        self.session.heading.unwrap_or(Stage::Resume).as_str()
    }

    /// What to do next; the same until it is dealt with.
    #[must_use]
    pub fn next(&mut self, now: Now) -> Step {
        loop {
            if let Some(step) = &self.pending {
                return step.clone();
            }
            if let Some(tell) = self.tells.pop_front() {
                return Step::Tell(tell);
            }
            if let Some(step) = self.due(now) {
                if !matches!(step, Step::Done(_)) {
                    self.pending = Some(step.clone());
                }
                return step;
            }
        }
    }

    /// Takes an answer to the question that is asked. Empty text stands for the default.
    ///
    /// # Errors
    /// It cannot be one, or this is not asked now; nothing has changed then.
    pub fn answer(&mut self, id: QuestionId, text: &str, now: Now) -> Result<(), Invalid> {
        let default = match &self.pending {
            Some(Step::Ask(question)) if question.id == id => question.default.clone(),
            _ => {
                let reason = "this is not what is asked now".to_string();
                return Err(Invalid { id, reason, example: example(id.kind()) });
            }
        };
        let text = match default {
            Some(default) if text.trim().is_empty() => default,
            _ => text.to_string(),
        };
        let value = answers::read(id, &text, self.settings.allow_private)?;
        self.pending = None;
        self.session.dirty = true;
        self.session.problem = None;
        self.take(id, value, now);
        Ok(())
    }

    /// Takes the end of the effect that is to be done; another one changes nothing.
    pub fn result(&mut self, outcome: Outcome, now: Now) {
        let effect = match self.pending.take() {
            Some(Step::Do(effect)) => effect,
            other => return self.pending = other,
        };
        match (effect, outcome) {
            (Effect::SetProgressAside, Outcome::Written(written)) => self.on_set_aside(written),
            (Effect::ForgetEvaluation, Outcome::Written(Ok(()))) => {}
            (Effect::ForgetEvaluation, Outcome::Written(Err(error))) => {
                // The file of before leads to the network that it is of.
                self.session.dirty = false;
                self.end(End::Internal, error);
            }
            (Effect::WriteProgress(_), Outcome::Written(written)) => self.on_written(written),
            (Effect::InstallRelease { .. }, Outcome::Release(release)) => self.on_release(release),
            (Effect::HandOver { .. }, Outcome::NotHandedOver(why)) => {
                self.end(
                    End::Internal,
                    format!("the installed release cannot be started: {}", printable(&why)),
                );
            }
            (Effect::FindAddress { family, fetch }, Outcome::Fetched(answer)) => {
                let found = address::read(family, &answer, self.settings.allow_private);
                self.on_address(family, &printable(&fetch.target.host), found);
            }
            (Effect::Fetch { purpose, .. }, Outcome::Fetched(answer)) => {
                self.on_fetched(purpose, answer, now);
            }
            (Effect::Evaluate { .. }, Outcome::Evaluated(evaluated)) => self.on_evaluated(evaluated),
            (Effect::Register(_), Outcome::Registered(Ok(registration))) => {
                let node_id = registration.node_id.clone();
                self.settings.registration = Some(*registration);
                self.settings.join_auth = None;
                self.progress.token = None;
                self.progress.verification = None;
                self.progress.joining = false;
                self.session.keep = Some(true);
                self.session.dirty = true;
                self.tell(TellKind::Text, format!("This machine is node {node_id} now."));
            }
            (Effect::Register(_), Outcome::Registered(Err((finish, status)))) => {
                self.on_not_registered(finish, status);
            }
            (Effect::InstallService { .. }, Outcome::Service(Ok(service))) => self.on_service(service),
            (Effect::InstallService { .. }, Outcome::Service(Err(finish))) => self.finish = Some(finish),
            (Effect::AwaitNode { node_id }, Outcome::Connected(connected)) => {
                self.on_connected(&node_id, connected);
            }
            (effect, _) => self.pending = Some(Step::Do(effect)),
        }
    }

    /// One node a machine (protocol.md section 12).
    fn conflict(&self) -> Option<Finish> {
        let (file, record) = self.settings.machine.as_ref()?;
        let node_id = self.settings.registration.as_ref().map(|registration| registration.node_id.as_str());
        let conflict = check_machine(record, &self.settings.state_dir, node_id).err()?;
        let message =
            format!("{file}: {conflict}; use that one, or remove this file if that node is gone for good");
        Some(Finish { outcome: End::Refused, message })
    }

    fn drop_what_ran_out(&mut self, now: Now) {
        let holds_until = now.unix_seconds().saturating_add(MIN_LEFT);
        let holds = |held: &Held| held.expires_at > holds_until;
        self.progress.token = self.progress.token.take().filter(holds);
        self.progress.verification = self.progress.verification.take().filter(holds);
        let holds = |auth: &JoinAuth| auth.expires_at > holds_until;
        self.settings.join_auth = self.settings.join_auth.take().filter(holds);
        let age = self.progress.addresses_at.map(|at| now.unix_seconds().saturating_sub(at));
        if age.is_none_or(|age| age > ADDRESSES_HOLD) {
            self.defaults.remove(&QuestionId::Ipv4);
            self.defaults.remove(&QuestionId::Ipv6);
        }
        if self.progress.release != self.settings.release {
            self.progress.release = None;
        }
        self.settle_server(self.answers.get(&QuestionId::Server).cloned());
        if self.progress.agreement != Some(AGREEMENT_VERSION) {
            self.progress.agreement = None;
        }
        if mem::take(&mut self.progress.joining) && self.settings.registration.is_none() {
            self.tell(
                TellKind::Warning,
                "An earlier setup was stopped while it registered: the network may have taken that."
                    .to_string(),
            );
        }
    }

    /// What the operator brings of an email address that is verified, or about to be.
    fn take_given(&mut self, now: Now) {
        let email = self.answers.get(&QuestionId::Email).cloned().unwrap_or_default();
        let expires_at = now.unix_seconds().saturating_add(3600);
        if let Some(text) = self.settings.email_token.clone() {
            self.progress.token = Some(Held { email: email.clone(), text, expires_at });
        }
        if let Some(text) = self.settings.verification_id.clone() {
            self.progress.verification = Some(Held { email, text, expires_at });
        }
    }

    /// What another network gave is of no use with this one.
    fn settle_server(&mut self, server: Option<String>) {
        // Another node's files are left alone.
        if server.is_none() || self.finish.is_some() {
            return;
        }
        if self.progress.server.is_some() && self.progress.server != server {
            self.progress.token = None;
            self.progress.verification = None;
            self.forget_evaluation();
            self.session.dirty = true;
        }
        self.progress.server = server;
    }

    /// `join-auth.json` does not say of which network it is: one that is not to be used is removed, before the progress
    /// is written that another process goes on from.
    fn forget_evaluation(&mut self) {
        self.session.forgets |= self.settings.join_auth.take().is_some();
    }

    fn reusable(&self, now: Now) -> Vec<Reuse> {
        let mut all = Vec::new();
        let mut add = |what, text: String, expires_at: Option<u64>| {
            let left = expires_at.map(|at| texts::left(at.saturating_sub(now.unix_seconds())));
            let text = left.map_or_else(|| text.clone(), |left| format!("{text} (for {left} more)"));
            all.push(Reuse { what, text, expires_at });
        };
        let open: Answers = self
            .defaults
            .iter()
            .filter(|(id, _)| !self.answers.contains_key(id))
            .map(|(id, text)| (*id, text.clone()))
            .collect();
        use QuestionId as Id;
        let values =
            [Id::Server, Id::Port, Id::Email, Id::Contact, Id::EvmAddress, Id::SolanaAddress, Id::IcpAddress];
        if let Some(text) = texts::listed(&open, &values) {
            add(Reusable::Answers, text, None);
        }
        if let Some(text) = texts::listed(&open, &[Id::Ipv4, Id::Ipv6]) {
            add(Reusable::Addresses, text, None);
        }
        if let Some(version) = &self.progress.release {
            add(Reusable::Release, format!("release {} is installed", printable(version)), None);
        }
        if let Some(auth) = &self.settings.join_auth {
            add(Reusable::Evaluation, "the evaluation that was passed".to_string(), Some(auth.expires_at));
        }
        if let Some(held) = &self.progress.verification {
            let text = format!("the code that was sent to {}", printable(&held.email));
            add(Reusable::Code, text, Some(held.expires_at));
        }
        if let Some(held) = &self.progress.token {
            let text = format!("the verified email address {}", printable(&held.email));
            add(Reusable::Email, text, Some(held.expires_at));
        }
        all
    }

    fn resume(&mut self, again: bool, now: Now) {
        self.session.resume = Some(again);
        if again {
            for (id, text) in &self.defaults {
                self.answers.entry(*id).or_insert_with(|| text.clone());
            }
            self.settle_server(self.answers.get(&QuestionId::Server).cloned());
            return;
        }
        self.progress.token = None;
        self.progress.verification = None;
        self.progress.agreement = None;
        self.forget_evaluation();
        self.defaults.remove(&QuestionId::Ipv4);
        self.defaults.remove(&QuestionId::Ipv6);
        // What the operator brings is not of before.
        self.take_given(now);
    }

    fn take(&mut self, id: QuestionId, value: String, now: Now) {
        let is_yes = value == "yes";
        match id {
            QuestionId::Resume => self.resume(is_yes, now),
            QuestionId::KeepNode => self.session.keep = Some(is_yes),
            QuestionId::Agreement if is_yes => self.progress.agreement = Some(AGREEMENT_VERSION),
            QuestionId::Agreement => {
                self.end(End::NotRegistered, "without your agreement nothing is set up".to_string());
            }
            QuestionId::Code if value.eq_ignore_ascii_case(AGAIN) => self.progress.verification = None,
            QuestionId::Code => self.session.code = Some(value),
            QuestionId::Confirm if is_yes => self.session.confirmed = true,
            QuestionId::Confirm => {
                // Another server would take all that was done so far.
                let server = self.answers.remove_entry(&QuestionId::Server);
                self.defaults.append(&mut self.answers);
                self.answers.extend(server);
                self.session.summarised = false;
            }
            QuestionId::Server
            | QuestionId::Ipv4
            | QuestionId::Ipv6
            | QuestionId::Port
            | QuestionId::Email
            | QuestionId::Contact
            | QuestionId::EvmAddress
            | QuestionId::SolanaAddress
            | QuestionId::IcpAddress
            | QuestionId::Service => {
                if id == QuestionId::Server {
                    self.settle_server(Some(value.clone()));
                }
                if matches!(id, QuestionId::Ipv4 | QuestionId::Ipv6) {
                    self.progress.addresses_at = Some(now.unix_seconds());
                }
                self.answers.insert(id, value);
            }
        }
    }

    fn authorisation(&self, now: Now) -> Option<&JoinAuth> {
        self.settings.join_auth.as_ref().filter(|auth| !auth.is_expired(now.unix_seconds()))
    }

    /// The token of the email address that was answered. One that the operator brought may be of any.
    fn token(&self, now: Now) -> Option<&Held> {
        let email = self.answers.get(&QuestionId::Email);
        let fits = |held: &&Held| held.email.is_empty() || email.is_none_or(|email| *email == held.email);
        self.progress.token.as_ref().filter(|held| held.expires_at > now.unix_seconds()).filter(fits)
    }

    /// Whether the address that was verified is to be answered again. One whose token the operator brought is nobody's
    /// business.
    fn lacks_email(&self) -> bool {
        let is_known = |held: &Held| held.email.is_empty() || self.answers.contains_key(&QuestionId::Email);
        !self.progress.token.as_ref().is_none_or(is_known)
    }

    /// The verification that is under way for this email address.
    fn verification(&self, email: &str, now: Now) -> Option<&Held> {
        let fits = |held: &&Held| held.email.is_empty() || held.email == email;
        self.progress.verification.as_ref().filter(|held| held.expires_at > now.unix_seconds()).filter(fits)
    }

    /// The next step; `None` where something else has to be looked at first.
    fn due(&mut self, now: Now) -> Option<Step> {
        if self.session.damaged.is_some() {
            return Some(Step::Do(Effect::SetProgressAside));
        }
        if mem::take(&mut self.session.forgets) {
            return Some(Step::Do(Effect::ForgetEvaluation));
        }
        let mut stage = self.stage(now);
        if mem::take(&mut self.session.dirty) {
            return Some(Step::Do(Effect::WriteProgress(self.emit(stage))));
        }
        if let Some(finish) = &self.finish {
            return Some(Step::Done(finish.clone()));
        }
        if stage == Stage::Resume {
            let reuse = self.reusable(now);
            if reuse.is_empty() {
                self.resume(true, now);
                stage = self.stage(now);
            } else if self.session.heading == Some(stage) {
                return Some(self.ask_again(reuse));
            }
        }
        if self.session.heading != Some(stage) {
            self.begin(stage);
            return None;
        }
        self.step_of(stage, now)
    }

    fn ask_again(&self, reuse: Vec<Reuse>) -> Step {
        let id = QuestionId::Resume;
        let (kind, text, default) = (id.kind(), texts::question(id), Some("yes".to_string()));
        Step::Ask(Question { id, kind, text, default, problem: None, reuse })
    }

    /// A question; what was answered before goes before `default`.
    fn ask(&mut self, id: QuestionId, default: Option<&str>) -> Step {
        let default = self.defaults.get(&id).cloned().or_else(|| default.map(str::to_string));
        let problem = self.session.problem.take();
        let (kind, text) = (id.kind(), texts::question(id));
        Step::Ask(Question { id, kind, text, default, problem, reuse: Vec::new() })
    }

    fn addresses(&mut self) -> Option<Step> {
        for (family, id) in [(Family::V4, QuestionId::Ipv4), (Family::V6, QuestionId::Ipv6)] {
            if self.answers.contains_key(&id) {
                continue;
            }
            if self.defaults.contains_key(&id) {
                return Some(self.ask(id, None));
            }
            let services = &self.settings.address_services;
            let search = match family {
                Family::V4 => &mut self.session.v4,
                Family::V6 => &mut self.session.v6,
            };
            if let Some(found) = search.address.clone() {
                return Some(self.ask(id, Some(&found)));
            }
            if let Some(service) = services.get(search.service) {
                match address::request(service) {
                    Ok(fetch) => return Some(Step::Do(Effect::FindAddress { family, fetch })),
                    Err(refused) => {
                        search.service += 1;
                        search.problem = Some(format!("{}: {refused}", printable(service)));
                        return None;
                    }
                }
            }
            // Most machines have no IPv6 address, which is no problem.
            let none = (family == Family::V6).then_some(NONE);
            if none.is_none() && self.session.problem.is_none() {
                let why = search.problem.clone().unwrap_or_else(|| "no service was asked".to_string());
                self.session.problem =
                    Some(format!("no {} address of this machine was found ({why})", family.name()));
            }
            return Some(self.ask(id, none));
        }
        Some(self.ask(QuestionId::Port, Some("9090")))
    }

    fn evaluation(&mut self, server: String) -> Option<Step> {
        self.session.evaluations += 1;
        if self.session.evaluations > MAX_EVALUATIONS {
            let text = "the authorisations of the network run out before they can be used; is this machine's clock \
                        right?";
            self.end(End::Refused, text.to_string());
            return None;
        }
        Some(Step::Do(Effect::Evaluate { server }))
    }

    fn registrant(&self, server: String) -> Registrant {
        let of = |id| self.answers.get(&id).cloned();
        let held = self.progress.token.as_ref();
        Registrant {
            server,
            email: of(QuestionId::Email),
            email_verification_token: held.map(|held| held.text.clone()).unwrap_or_default(),
            ipv4: of(QuestionId::Ipv4).unwrap_or_default(),
            ipv6: of(QuestionId::Ipv6).filter(|text| text != NONE),
            port: of(QuestionId::Port).and_then(|text| text.parse().ok()).unwrap_or_default(),
            contact: of(QuestionId::Contact).unwrap_or_default(),
            evm_address: of(QuestionId::EvmAddress).unwrap_or_default(),
            solana_address: of(QuestionId::SolanaAddress).unwrap_or_default(),
            icp_address: of(QuestionId::IcpAddress).unwrap_or_default(),
            region: self.session.region.as_ref().and_then(|(_, region)| region.clone()),
        }
    }

    fn emit(&self, stage: Stage) -> Vec<u8> {
        if self.progress.done {
            let extra = self.progress.extra.clone();
            return Progress { extra, ..Progress::default() }.emit(Stage::Done.as_str());
        }
        let mut progress = self.progress.clone();
        progress.answers.clone_from(&self.defaults);
        progress.answers.extend(self.answers.iter().map(|(id, text)| (*id, text.clone())));
        progress.emit(stage.as_str())
    }

    fn request(&mut self, purpose: Purpose, method: &str, path: &str, body: Option<Vec<u8>>) -> Option<Step> {
        let server = self.answers.get(&QuestionId::Server).map_or("", String::as_str);
        match operator_request(server, method, path, body) {
            Ok(fetch) => Some(Step::Do(Effect::Fetch { purpose, fetch })),
            Err(refused) => {
                self.end(End::Internal, format!("the server URL: {refused}"));
                None
            }
        }
    }

    fn tell(&mut self, kind: TellKind, text: String) {
        self.tells.push_back(Tell { kind, text });
    }

    fn end(&mut self, outcome: End, message: String) {
        self.finish = Some(Finish { outcome, message });
    }
}

/// Whether an answer blames the request, so that another one may be taken.
fn is_refusal(response: &Response) -> bool {
    (400..500).contains(&response.status)
}
