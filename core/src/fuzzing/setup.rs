//! Setup over the life of several processes, with an operator, a network and a disk that do anything.

use alloc::boxed::Box;
use alloc::collections::BTreeSet;
use alloc::format;
use alloc::string::{String, ToString as _};
use alloc::vec;
use alloc::vec::Vec;
use core::time::Duration;

use arbitrary::Arbitrary;
use serde_json::{Value, json};

use super::{START, read};
use crate::io::{FetchError, FetchErrorKind, Finish, Outcome as End, Response};
use crate::setup::{
    Answers, Effect, Family, Outcome, Purpose, Question, QuestionId, Release, Service, Settings, Setup, Step,
    TellKind,
};
use crate::state::{JoinAuth, MachineRecord, Registration};
use crate::time::Now;

mod judge;

/// Steps that any course to the end takes fewer of.
const MANY: usize = 400;

/// How long an address is offered again, and what runs out too soon to be offered: `setup/machine.rs`.
const ADDRESSES_HOLD: u64 = 24 * 3600;
const MIN_LEFT: u64 = 60;

const SERVERS: [&str; 2] = ["https://network.example", "https://other.example"];

#[derive(Debug, Default, Arbitrary)]
struct Script {
    was_registered: bool,
    has_address_service: bool,
    skips_release: bool,
    /// The record of the machine: the state directory and the node in it.
    machine: Option<(String, Option<String>)>,
    given: Option<Given>,
    actions: Vec<Action>,
}

/// What the operator says beforehand.
#[derive(Clone, Copy, Debug, Arbitrary)]
struct Given {
    other_server: Option<bool>,
    contact: bool,
    handed_over: bool,
}

#[derive(Debug, Arbitrary)]
enum Action {
    /// The question is answered as it should be, or the effect ends well; there are several ways.
    Good(u8),
    /// The question is answered with nothing, which stands for its default.
    Default,
    /// The question is answered with this, or the answer of a request is this.
    Text(String),
    /// The effect fails.
    Fails {
        status: u16,
        text: String,
    },
    /// Something that nobody asked for.
    Other {
        id: u8,
        text: String,
    },
    /// The process is killed, before what it does is done or after, and another begins.
    Kill {
        done: bool,
        given: Option<Given>,
    },
    Damage {
        at: u16,
        with: u8,
    },
    /// Another program leaves its own file.
    Foreign {
        members: u16,
    },
    Wait {
        seconds: u32,
    },
    /// All goes well until there.
    GoTo(Place),
}

#[derive(Clone, Copy, Debug, Arbitrary)]
enum Place {
    Email,
    Code,
    Verify,
    Confirm,
    Register,
    Service,
    End,
}

impl Place {
    fn is(self, step: &Step) -> bool {
        let asks = |id| matches!(step, Step::Ask(question) if question.id == id);
        match self {
            Self::Email => asks(QuestionId::Email),
            Self::Code => asks(QuestionId::Code),
            Self::Verify => matches!(step, Step::Do(Effect::Fetch { purpose: Purpose::EmailVerify, .. })),
            Self::Confirm => asks(QuestionId::Confirm),
            Self::Register => matches!(step, Step::Do(Effect::Register(_))),
            Self::Service => matches!(step, Step::Do(Effect::InstallService { .. })),
            Self::End => false,
        }
    }
}

/// What was answered and is still valid is not asked again, in this process or the next. Nothing is asked before the
/// answers so far are on the disk, and the file leads to where it was written. A join request is sent for what the
/// operator confirmed and the network authorised, and for the same authorisation again only where the last one spent
/// nothing or its answer was lost. Setup ends.
pub fn setup(data: &[u8]) {
    let script: Script = read(data);
    let mut world = World {
        now: START,
        progress: None,
        saved: Saved::default(),
        registration: script.was_registered.then(|| Registration::new("node-0")),
        join_auth: None,
        is_doubtful: false,
        is_joining: false,
        is_warned: false,
        made: 0,
        lost: BTreeSet::new(),
        has_address_service: script.has_address_service,
        skips_release: script.skips_release,
        machine: script.machine,
    };
    let mut process = Process::start(&world, script.given);
    process.look(&mut world);
    for action in script.actions {
        match action {
            Action::Wait { seconds } => {
                let passed = Duration::from_secs(seconds.into());
                world.now = Now { monotonic: world.now.monotonic + passed, unix: world.now.unix + passed };
                continue;
            }
            Action::Damage { at, with } => {
                if let Some(byte) = world.progress.as_mut().and_then(|file| file.get_mut(usize::from(at))) {
                    *byte = with;
                    world.is_doubtful = true;
                    world.saved = Saved::unknown();
                }
                continue;
            }
            Action::Foreign { members } => {
                world.progress = Some(json!({"x": vec![0; members.into()]}).to_string().into_bytes());
                (world.saved, world.is_doubtful) = (Saved::default(), true);
                continue;
            }
            Action::Kill { done, given } => {
                if done {
                    process.carry_out(&mut world, &Action::Good(0));
                }
                process.die(&mut world);
                process = Process::start(&world, given);
            }
            Action::Other { id, text } => {
                process.disturb(&world, id, text);
                continue;
            }
            Action::GoTo(place) => process.go_to(&mut world, place),
            action => process.act(&mut world, &action),
        }
        process.look(&mut world);
    }
    process.go_to(&mut world, Place::End);
    let Step::Done(finish) = &process.step else { panic!("a setup that does not end: {:?}", process.step) };
    if finish.outcome == End::Done {
        assert!(world.registration.is_some(), "{finish:?}");
    }
}

/// What a file has that was written last, as the model knows it.
#[derive(Clone, Debug, Default)]
struct Saved {
    /// The file is not what was written.
    is_unknown: bool,
    /// Answers, and those of before that were not asked for yet.
    answers: Answers,
    agreed: bool,
    addresses_at: u64,
}

impl Saved {
    fn unknown() -> Self {
        Self { is_unknown: true, ..Self::default() }
    }
}

/// What outlives a process.
struct World {
    now: Now,
    progress: Option<Vec<u8>>,
    saved: Saved,
    registration: Option<Registration>,
    join_auth: Option<JoinAuth>,
    /// The file does not say of which network the authorisation is.
    is_doubtful: bool,
    /// The file says that a join request may have been sent.
    is_joining: bool,
    /// The operator was told of it.
    is_warned: bool,
    /// Names of what the network gave.
    made: u32,
    /// The authorisations of join requests whose answer was lost.
    lost: BTreeSet<String>,
    has_address_service: bool,
    skips_release: bool,
    machine: Option<(String, Option<String>)>,
}

impl World {
    fn settings(&self, given: Option<Given>) -> Settings {
        let mut settings = Settings {
            skip_release: self.skips_release,
            address_services: if self.has_address_service {
                vec!["https://a.example/".into()]
            } else {
                vec![]
            },
            handed_over: given.is_some_and(|given| given.handed_over),
            state_dir: "/state".into(),
            supervisor: self.has_supervisor().then(|| "systemd\u{1b}".into()),
            registration: self.registration.clone(),
            join_auth: self.join_auth.clone(),
            ..Settings::default()
        };
        if let Some(other) = given.and_then(|given| given.other_server) {
            settings.given.insert(QuestionId::Server, SERVERS[usize::from(other)].into());
        }
        if given.is_some_and(|given| given.contact) {
            settings.given.insert(QuestionId::Contact, "given".into());
        }
        settings.machine = self.machine.as_ref().map(|(state_dir, node_id)| {
            let mut record = MachineRecord::new(&mut crate::crypto::Drbg::new([7; 32]), 0);
            (record.state_dir, record.node_id) = (Some(state_dir.clone()), node_id.clone());
            ("/machine.json".into(), record)
        });
        settings
    }

    /// A build from source has nobody to keep it.
    fn has_supervisor(&self) -> bool {
        !self.skips_release
    }

    fn seconds(&self) -> u64 {
        self.now.unix_seconds()
    }

    /// A name that only `server` can have given.
    fn name(&mut self, server: &str) -> String {
        self.made += 1;
        format!("{server}#{}", self.made)
    }
}

/// One process of setup, and what the model knows of it.
struct Process {
    setup: Setup,
    step: Step,
    /// Answers that stand.
    known: Answers,
    /// What stands for an empty answer.
    defaults: Answers,
    /// What the file offers, until the operator decides about it.
    offered: Option<Saved>,
    /// The file had something that the model does not know.
    is_blind: bool,
    is_resume_asked: bool,
    agreed: bool,
    keep: Option<bool>,
    /// A supervisor has the node.
    is_kept: bool,
    confirmed: bool,
    /// What was typed and taken; the file will have it in one form.
    typed: Option<(QuestionId, String)>,
    /// An answer is not on the disk yet.
    is_dirty: bool,
    /// There is an authorisation, and no reason to think that it cannot be used.
    is_authorised: bool,
    /// The authorisation is known to be of the network that was answered.
    is_auth_traced: bool,
    evaluations: u32,
    emails: u32,
    /// What the file will have when it is written.
    writes: Saved,
}

impl Process {
    fn start(world: &World, given: Option<Given>) -> Self {
        let settings = world.settings(given);
        let known = settings.given.clone();
        let resumes = settings.handed_over;
        let Ok(setup) = Setup::new(world.progress.as_deref(), settings, world.now) else {
            panic!("what was given is good")
        };
        let mut offered = world.saved.clone();
        if world.seconds().saturating_sub(offered.addresses_at) > ADDRESSES_HOLD {
            offered.answers.remove(&QuestionId::Ipv4);
            offered.answers.remove(&QuestionId::Ipv6);
        }
        let was = offered.answers.get(&QuestionId::Server);
        let server = known.get(&QuestionId::Server);
        let moved = was.is_some() && server.is_some() && was != server;
        let holds = world.join_auth.as_ref().is_some_and(|auth| auth.expires_at > world.seconds() + MIN_LEFT);
        let mut this = Self {
            setup,
            step: Step::Done(Finish { outcome: End::Internal, message: String::new() }),
            known,
            defaults: Answers::new(),
            // `join-auth.json` does not say of which network it is: what was written last does.
            is_auth_traced: !world.is_doubtful || world.join_auth.is_none(),
            is_blind: offered.is_unknown,
            offered: Some(offered),
            is_resume_asked: false,
            agreed: false,
            keep: None,
            is_kept: false,
            confirmed: false,
            typed: None,
            is_dirty: false,
            is_authorised: holds && !moved,
            evaluations: 0,
            emails: 0,
            writes: Saved::default(),
        };
        if resumes {
            this.take_offered();
        }
        this
    }

    /// Everybody does what they should, until there or to the end.
    fn go_to(&mut self, world: &mut World, place: Place) {
        for _ in 0..MANY {
            if matches!(self.step, Step::Done(_)) || place.is(&self.step) {
                return;
            }
            self.act(world, &Action::Good(0));
            self.look(world);
        }
    }

    /// It is killed, whatever it did.
    fn die(&self, world: &mut World) {
        if let (Step::Do(Effect::Register(_)), Some(auth)) = (&self.step, &world.join_auth) {
            world.lost.insert(auth.join_id.clone());
        }
    }

    fn take_offered(&mut self) {
        let Some(offered) = self.offered.take() else { return };
        self.agreed = offered.agreed;
        for (id, text) in offered.answers {
            self.known.entry(id).or_insert(text);
        }
    }

    /// All answers that the file must have.
    fn all_answers(&self) -> Answers {
        let mut all = self.offered.as_ref().map(|saved| saved.answers.clone()).unwrap_or_default();
        all.extend(self.defaults.clone());
        all.extend(self.known.clone());
        all
    }

    fn server(&self) -> String {
        self.known.get(&QuestionId::Server).cloned().unwrap_or_default()
    }

    /// Reads what it says, up to the next step, and judges that.
    fn look(&mut self, world: &mut World) {
        for _ in 0..MANY {
            match self.setup.next(world.now) {
                Step::Tell(tell) => {
                    let is_plain = |c: char| c == '\n' && tell.kind != TellKind::Heading || !c.is_control();
                    assert!(tell.text.chars().all(is_plain), "{:?}", tell.text);
                    world.is_warned |= tell.text.contains("the network may have taken that");
                }
                step => {
                    assert_eq!(self.setup.next(world.now), step, "the same until it is dealt with");
                    if step != self.step {
                        self.step = step.clone();
                        self.judge(world, &step);
                    }
                    return;
                }
            }
        }
        panic!("it tells without an end");
    }

    /// Answers, or carries out.
    fn act(&mut self, world: &mut World, action: &Action) {
        match self.step.clone() {
            Step::Ask(question) => self.answer(world, &question, action),
            Step::Do(Effect::HandOver { .. }) if !matches!(action, Action::Fails { .. }) => {
                let given = Given { other_server: None, contact: false, handed_over: true };
                *self = Self::start(world, Some(given));
            }
            Step::Do(_) => {
                if let Some(outcome) = self.carry_out(world, action) {
                    self.step = Step::Done(Finish { outcome: End::Internal, message: String::new() });
                    self.setup.result(outcome, world.now);
                }
            }
            Step::Tell(_) | Step::Done(_) => {}
        }
    }

    fn answer(&mut self, world: &World, question: &Question, action: &Action) {
        let id = question.id;
        let text = match action {
            Action::Good(way) => good_answer(id, *way).to_string(),
            Action::Text(text) => text.clone(),
            _ => String::new(),
        };
        let before = self.setup.next(world.now);
        if let Err(invalid) = self.setup.answer(id, &text, world.now) {
            assert!(!invalid.to_string().contains(char::is_control), "{invalid}");
            let is_good = matches!(action, Action::Good(_));
            assert!(invalid.id == id && !is_good && self.setup.next(world.now) == before, "{invalid}");
            return;
        }
        self.is_dirty = true;
        self.step = Step::Done(Finish { outcome: End::Internal, message: String::new() });
        let value = match &question.default {
            Some(default) if text.trim().is_empty() => default.clone(),
            _ => text,
        };
        let is_yes = value.trim().to_ascii_lowercase().starts_with('y');
        match id {
            QuestionId::Resume if is_yes => self.take_offered(),
            QuestionId::Resume => {
                self.defaults = self.offered.take().map(|offered| offered.answers).unwrap_or_default();
                self.defaults.remove(&QuestionId::Ipv4);
                self.defaults.remove(&QuestionId::Ipv6);
                self.is_authorised = false;
            }
            QuestionId::KeepNode => self.keep = Some(is_yes),
            QuestionId::Agreement => self.agreed = is_yes,
            QuestionId::Confirm if is_yes => self.confirmed = true,
            QuestionId::Confirm => {
                let server = self.known.remove_entry(&QuestionId::Server);
                self.defaults.append(&mut self.known);
                self.known.extend(server);
            }
            QuestionId::Code => {}
            _ => self.typed = Some((id, value)),
        }
    }

    /// Does in the world what the step wants, by that action; the outcome, where the effect has one.
    fn carry_out(&mut self, world: &mut World, action: &Action) -> Option<Outcome> {
        let Step::Do(effect) = self.step.clone() else { return None };
        let way = if let Action::Good(way) = action { *way } else { 0 };
        let refused = || Finish { outcome: End::Refused, message: "refused".into() };
        let fails = match action {
            Action::Fails { status, .. } => Some(*status),
            _ => None,
        };
        Some(match effect {
            Effect::SetProgressAside => {
                if fails.is_some() {
                    return Some(Outcome::Written(Err("setup-progress.json: no space".into())));
                }
                (world.progress, world.saved, world.is_doubtful) = (None, Saved::default(), true);
                (self.is_blind, self.offered) = (false, Some(Saved::default()));
                Outcome::Written(Ok(()))
            }
            Effect::ForgetEvaluation if fails.is_some() => {
                self.is_dirty = false;
                Outcome::Written(Err("join-auth.json: read-only".into()))
            }
            Effect::ForgetEvaluation => {
                world.join_auth = None;
                Outcome::Written(Ok(()))
            }
            Effect::WriteProgress(_) if fails.is_some() => {
                world.is_doubtful = true;
                Outcome::Written(Err("setup-progress.json: no space".into()))
            }
            Effect::WriteProgress(data) => {
                let file: Value = serde_json::from_slice(&data).expect("JSON");
                world.is_joining = file["joining"] == true;
                let is_of = |server: &str| {
                    world.join_auth.as_ref().is_none_or(|auth| auth.join_id.starts_with(server))
                };
                world.is_doubtful &= !file["server"].as_str().is_some_and(is_of);
                (world.progress, world.saved) = (Some(data), self.writes.clone());
                Outcome::Written(Ok(()))
            }
            Effect::InstallRelease { .. } if fails.is_some() => Outcome::Release(Err(refused())),
            Effect::InstallRelease { .. } => Outcome::Release(Ok(match (action, way % 3) {
                (Action::Text(version), _) => {
                    Release::Installed { version: version.clone(), program: "/p".into() }
                }
                (_, 0) => Release::NotRequired,
                (_, 1) => Release::Runs { version: "2.0.0".into() },
                _ => Release::Installed { version: "2.0.0".into(), program: "/p".into() },
            })),
            Effect::HandOver { .. } => Outcome::NotHandedOver(match action {
                Action::Fails { text, .. } => text.clone(),
                _ => return None,
            }),
            Effect::FindAddress { family, .. } => {
                let good = match family {
                    Family::V4 => "8.8.4.4\n",
                    Family::V6 => "2606:4700::1111",
                };
                self.fetched(action, good.as_bytes().to_vec())
            }
            Effect::Fetch { purpose, .. } => {
                let server = self.server();
                let expires_at = match way % 4 {
                    0 | 1 => json!(world.seconds() + 3600),
                    2 => json!("2027-01-01T00:00:00Z"),
                    _ => json!(u64::MAX),
                };
                let good = match purpose {
                    Purpose::Region => json!({"success": true, "region": "eu\u{1b}", "city": "a\u{7}"}),
                    Purpose::EmailStart => {
                        let code = (way % 4 == 1).then_some("123456");
                        json!({"verification_id": world.name(&server), "expires_at": expires_at, "dev_code": code})
                    }
                    Purpose::EmailVerify => {
                        json!({"email_verification_token": world.name(&server), "expires_at": expires_at})
                    }
                };
                let outcome = self.fetched(action, good.to_string().into_bytes());
                if let (Purpose::EmailStart, Outcome::Fetched(Ok(Response { status: 400..500, .. }))) =
                    (purpose, &outcome)
                {
                    self.known.remove(&QuestionId::Email);
                    self.defaults.remove(&QuestionId::Email);
                }
                outcome
            }
            Effect::Evaluate { .. } if fails.is_some() => Outcome::Evaluated(Err(refused())),
            Effect::Evaluate { server } => {
                let auth = JoinAuth {
                    join_id: world.name(&server),
                    alg: "ed25519".into(),
                    nonce: "bm9uY2U".into(),
                    signature: "c2lnbmF0dXJl".into(),
                    // The last may be over before it is used.
                    expires_at: world.seconds() + [3600, 600, 30, 0][usize::from(way % 4)],
                    saved_at: world.seconds(),
                };
                (self.is_authorised, self.is_auth_traced) = (true, true);
                world.join_auth = Some(auth.clone());
                Outcome::Evaluated(Ok(auth))
            }
            Effect::Register(_) => self.register(world, fails),
            Effect::InstallService { .. } if fails.is_some() => Outcome::Service(Err(refused())),
            Effect::InstallService { keep, .. } => {
                self.is_kept = keep && way % 2 == 0;
                Outcome::Service(Ok(if self.is_kept {
                    Service::Installed {
                        text: "systemd runs it.".into(),
                        warnings: vec!["no\u{1b} linger".into()],
                    }
                } else {
                    Service::ByHand {
                        why: keep.then(|| "no\u{7}".into()),
                        lines: vec!["consensus-node run\u{7}".into()],
                    }
                }))
            }
            Effect::AwaitNode { .. } if fails.is_some() => Outcome::Connected(Err(refused())),
            Effect::AwaitNode { .. } => Outcome::Connected(Ok(())),
        })
    }

    fn fetched(&self, action: &Action, good: Vec<u8>) -> Outcome {
        Outcome::Fetched(match action {
            Action::Fails { status: 0, text } => Err(FetchError { detail: text.clone(), ..lost() }),
            Action::Fails { status, text } => Ok(body(*status, text.as_bytes())),
            Action::Text(text) => Ok(body(200, text.as_bytes())),
            _ => Ok(body(200, &good)),
        })
    }

    fn register(&mut self, world: &mut World, fails: Option<u16>) -> Outcome {
        let auth = world.join_auth.clone();
        let Some(status) = fails else {
            world.made += 1;
            let registration = Registration::new(&format!("node-{}", world.made));
            world.registration = Some(registration.clone());
            world.join_auth = None;
            self.keep = Some(true);
            return Outcome::Registered(Ok(Box::new(registration)));
        };
        let (outcome, status) = match status % 8 {
            0 => (End::Unreachable, None),
            1 => (End::NotRegistered, None),
            2 => (End::Refused, Some(401)),
            3 => (End::Refused, Some(403)),
            4 => (End::Refused, Some(404)),
            5 => (End::Refused, Some(410)),
            6 => (End::Refused, Some(409)),
            _ => (End::Refused, Some(500)),
        };
        if outcome == End::Unreachable {
            world.lost.extend(auth.map(|auth| auth.join_id));
        }
        if outcome == End::NotRegistered || matches!(status, Some(403 | 404 | 410)) {
            self.is_authorised = false;
        }
        Outcome::Registered(Err((Finish { outcome, message: "not registered".into() }, status)))
    }

    /// What nobody asked for changes nothing.
    fn disturb(&mut self, world: &World, id: u8, text: String) {
        let id = QuestionId::ALL[usize::from(id) % QuestionId::ALL.len()];
        match &self.step {
            Step::Ask(question) if question.id == id => {}
            _ => assert!(self.setup.answer(id, &text, world.now).is_err(), "{id:?} was not asked"),
        }
        let outcome = match &self.step {
            Step::Do(Effect::HandOver { .. }) => Outcome::Written(Ok(())),
            _ => Outcome::NotHandedOver(text),
        };
        self.setup.result(outcome, world.now);
        assert_eq!(self.setup.next(world.now), self.step, "what nobody waits for changes nothing");
    }
}

/// The stages that a file can say, in their order.
const STAGES: [&str; 12] = [
    "server",
    "keep_node",
    "agreement",
    "release",
    "addresses",
    "region",
    "evaluation",
    "email",
    "payouts",
    "confirm",
    "register",
    "service",
];

/// Stages that each process goes through by itself.
fn is_local(stage: &str) -> bool {
    matches!(stage, "keep_node" | "release" | "region")
}

fn stage_of_question(id: QuestionId) -> &'static str {
    use QuestionId as Id;
    match id {
        Id::Resume => panic!("it goes on without asking"),
        Id::Server => "server",
        Id::KeepNode => "keep_node",
        Id::Agreement => "agreement",
        Id::Ipv4 | Id::Ipv6 | Id::Port => "addresses",
        Id::Email | Id::Code => "email",
        Id::Contact | Id::EvmAddress | Id::SolanaAddress | Id::IcpAddress => "payouts",
        Id::Confirm => "confirm",
        Id::Service => "service",
    }
}

fn good_answer(id: QuestionId, way: u8) -> &'static str {
    use QuestionId as Id;
    let other = usize::from(way % 2);
    match id {
        Id::Resume | Id::KeepNode | Id::Agreement | Id::Confirm | Id::Service => ["yes", "no"][other],
        Id::Server => SERVERS[other],
        Id::Ipv4 => ["8.8.4.4", "1.1.1.1"][other],
        Id::Ipv6 => ["none", "2606:4700::1111"][other],
        Id::Port => ["9090", "80"][other],
        Id::Email => ["a@b.example", "c@d.example"][other],
        Id::Code => ["123456", "again"][other],
        Id::Contact => ["you@example.org", "other"][other],
        Id::EvmAddress => "0x52908400098527886E0F7030069857D2E4169EE7",
        Id::SolanaAddress => "4fYNw3dojWmQ4dXtSGE9epjRGy9pFSx62YypT7avPYvA",
        Id::IcpAddress => "rrkah-fqaaa-aaaaa-aaaaq-cai",
    }
}

const fn is_value(id: QuestionId) -> bool {
    use QuestionId as Id;
    !matches!(id, Id::Resume | Id::KeepNode | Id::Agreement | Id::Code | Id::Confirm | Id::Service)
}

fn lost() -> FetchError {
    FetchError { kind: FetchErrorKind::Connect, detail: "lost".into() }
}

fn body(status: u16, body: &[u8]) -> Response {
    Response { status, reason: String::new(), headers: Vec::new(), body: body.to_vec() }
}
