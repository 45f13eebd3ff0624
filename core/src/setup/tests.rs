//! The machine against a network, a disk and an operator that are all in memory.

use alloc::collections::BTreeMap;
use alloc::format;
use alloc::string::{String, ToString as _};
use alloc::vec;
use alloc::vec::Vec;
use core::time::Duration;

use serde_json::{Value, json};

use super::*;
use crate::io::{FetchErrorKind, Outcome as End};
use crate::time::Now;

const SERVER: &str = "https://network.example";
const NOW: u64 = 1_795_391_521;

/// Steps that any course takes fewer of.
const MANY: usize = 300;

/// What outlives a process, and whom it deals with.
struct World {
    unix: u64,
    progress: Option<Vec<u8>>,
    aside: Option<Vec<u8>>,
    registration: Option<Registration>,
    join_auth: Option<JoinAuth>,
    machine: Option<MachineRecord>,
    given: Answers,
    skip_release: bool,
    runs_release: bool,
    handed_over: bool,
    required: Option<&'static str>,
    /// By the path's begin: status and body, in place of a good answer, as often as they are there.
    odd: Vec<(&'static str, u16, Value)>,
    /// In place of a good answer of a service.
    addresses: BTreeMap<&'static str, &'static str>,
    evaluation: Option<Finish>,
    auth_holds: u64,
    join_status: Vec<u16>,
    running: bool,
    supervisor: Option<String>,
    service: Result<Service, Finish>,
    connected: Result<(), Finish>,
    unwritable: bool,
    did: Vec<&'static str>,
    told: Vec<Tell>,
    asked: Vec<QuestionId>,
    /// Of those who registered.
    emails: Vec<Option<String>>,
}

impl World {
    fn new() -> Self {
        Self {
            unix: NOW,
            progress: None,
            aside: None,
            registration: None,
            join_auth: None,
            machine: None,
            given: Answers::new(),
            skip_release: true,
            runs_release: false,
            handed_over: false,
            required: None,
            odd: Vec::new(),
            addresses: [("IPv4", "8.8.4.4\n"), ("IPv6", "2606:4700::1111\n")].into(),
            evaluation: None,
            auth_holds: 600,
            join_status: Vec::new(),
            running: false,
            supervisor: None,
            service: Ok(by_hand(Some("there is none"))),
            connected: Ok(()),
            unwritable: false,
            did: Vec::new(),
            told: Vec::new(),
            asked: Vec::new(),
            emails: Vec::new(),
        }
    }

    fn now(&self) -> Now {
        Now { monotonic: Duration::ZERO, unix: Duration::from_secs(self.unix) }
    }

    fn settings(&self) -> Settings {
        Settings {
            given: self.given.clone(),
            skip_release: self.skip_release,
            address_services: vec!["https://a.example/".into(), "https://b.example/ip".into()],
            handed_over: self.handed_over,
            release: self.runs_release.then(|| "2.0.0".into()),
            state_dir: "/home/op/.consensus/node".into(),
            machine: self.machine.clone().map(|record| ("/m/machine.json".into(), record)),
            registration: self.registration.clone(),
            join_auth: self.join_auth.clone(),
            running: self.running,
            supervisor: self.supervisor.clone(),
            ..Settings::default()
        }
    }

    fn start(&self) -> Setup {
        Setup::new(self.progress.as_deref(), self.settings(), self.now()).unwrap()
    }

    fn answer_to(&mut self, path: &str, good: Value) -> Outcome {
        let odd = self.odd.iter().position(|(begin, _, _)| path.contains(begin));
        let (status, body) = match odd.map(|at| self.odd.remove(at)) {
            Some((_, 0, _)) => {
                let detail = "nobody there".to_string();
                return Outcome::Fetched(Err(FetchError { kind: FetchErrorKind::Connect, detail }));
            }
            Some((_, status, body)) => (status, body),
            None => (200, good),
        };
        let (reason, headers, body) = (String::new(), vec![], body.to_string().into_bytes());
        Outcome::Fetched(Ok(Response { status, reason, headers, body }))
    }

    /// Carries an effect out; `None` where the process ends with it.
    fn carry_out(&mut self, effect: &Effect) -> Option<Outcome> {
        let (name, outcome) = match effect {
            Effect::SetProgressAside => {
                self.aside = self.progress.take();
                ("aside", Outcome::Written(Ok(())))
            }
            Effect::ForgetEvaluation => {
                self.join_auth = None;
                ("forget", Outcome::Written(Ok(())))
            }
            Effect::WriteProgress(_) if self.unwritable => {
                ("write", Outcome::Written(Err("disk full".into())))
            }
            Effect::WriteProgress(data) => {
                self.progress = Some(data.clone());
                ("write", Outcome::Written(Ok(())))
            }
            Effect::InstallRelease { .. } => {
                let release = match self.required {
                    None => Release::NotRequired,
                    Some(version) if self.runs_release => Release::Runs { version: version.into() },
                    Some(version) => Release::Installed { version: version.into(), program: "/p".into() },
                };
                ("release", Outcome::Release(Ok(release)))
            }
            Effect::HandOver { .. } => {
                self.did.push("hand over");
                self.runs_release = true;
                return None;
            }
            Effect::FindAddress { family, .. } => {
                let body = self.addresses[family.name()].as_bytes().to_vec();
                let response = Response { status: 200, reason: String::new(), headers: vec![], body };
                ("address", Outcome::Fetched(Ok(response)))
            }
            Effect::Fetch { purpose: Purpose::Region, fetch } => {
                let good = json!({"success": true, "region": "eu-west", "city": "A\u{1b}B"});
                ("region", self.answer_to(&fetch.target.url(), good))
            }
            Effect::Fetch { purpose: Purpose::EmailStart, fetch } => {
                let good = json!({"verification_id": "v1", "expires_at": self.unix + 600});
                ("email start", self.answer_to(&fetch.target.url(), good))
            }
            Effect::Fetch { purpose: Purpose::EmailVerify, fetch } => {
                let body: Value = serde_json::from_slice(fetch.body.as_ref().unwrap()).unwrap();
                let outcome = if body["code"] == "123456" {
                    let good = json!({"email_verification_token": "t1", "expires_at": self.unix + 600});
                    self.answer_to(&fetch.target.url(), good)
                } else {
                    self.odd.push(("/verify", 401, json!({"error": "wrong_code"})));
                    self.answer_to("/verify", Value::Null)
                };
                ("email verify", outcome)
            }
            Effect::Evaluate { server } => {
                let evaluated = match &self.evaluation {
                    Some(finish) => Err(finish.clone()),
                    None => {
                        let auth = authorisation(self.unix + self.auth_holds);
                        self.join_auth = Some(JoinAuth { join_id: server.clone(), ..auth });
                        Ok(self.join_auth.clone().unwrap())
                    }
                };
                ("evaluate", Outcome::Evaluated(evaluated))
            }
            Effect::Register(registrant) => {
                assert_eq!(registrant.email_verification_token, "t1");
                assert_eq!(self.join_auth.as_ref().unwrap().join_id, registrant.server, "another network's");
                self.emails.push(registrant.email.clone());
                let registered = if self.join_status.is_empty() {
                    self.registration = Some(Registration::new("n1"));
                    self.join_auth = None;
                    Ok(Box::new(Registration::new("n1")))
                } else {
                    let finish = Finish { outcome: End::Refused, message: "join refused".into() };
                    Err((finish, Some(self.join_status.remove(0))))
                };
                ("register", Outcome::Registered(registered))
            }
            Effect::InstallService { keep: true, .. } => ("service", Outcome::Service(self.service.clone())),
            Effect::InstallService { keep: false, .. } => {
                ("service", Outcome::Service(Ok(by_hand(Some("there is none")))))
            }
            Effect::AwaitNode { node_id } => {
                assert_eq!(node_id, "n1");
                ("await", Outcome::Connected(self.connected.clone()))
            }
        };
        self.did.push(name);
        Some(outcome)
    }

    /// Drives to the end, or to where the process is killed: before step number `kill` is carried out, or (`done`)
    /// after that and before anybody learnt of it.
    fn drive(
        &mut self,
        mut answer: impl FnMut(&Question) -> String,
        kill: Option<(usize, bool)>,
    ) -> Option<Finish> {
        let mut setup = self.start();
        for number in 0..MANY {
            let step = setup.next(self.now());
            if !matches!(step, Step::Tell(_)) {
                assert_eq!(setup.next(self.now()), step, "the same until it is dealt with");
            }
            let is_killed = kill.filter(|(at, _)| *at == number).map(|(_, done)| done);
            if is_killed == Some(false) {
                return None;
            }
            match step {
                Step::Tell(tell) => self.told.push(tell),
                Step::Ask(question) => {
                    self.asked.push(question.id);
                    setup.answer(question.id, &answer(&question), self.now()).unwrap();
                }
                Step::Do(effect) => {
                    let Some(outcome) = self.carry_out(&effect) else {
                        self.handed_over = true;
                        setup = self.start();
                        self.handed_over = false;
                        continue;
                    };
                    if is_killed == Some(true) {
                        return None;
                    }
                    setup.result(outcome, self.now());
                }
                Step::Done(finish) => return Some(finish),
            }
        }
        panic!("no end: {:?} {:?}", self.did, self.asked);
    }

    /// To the last question, where the process is killed.
    fn run_to_the_last_question(&mut self) {
        let mut setup = self.start();
        loop {
            match setup.next(self.now()) {
                Step::Tell(_) => {}
                Step::Ask(question) if question.id == QuestionId::Confirm => return,
                Step::Ask(question) => {
                    setup.answer(question.id, &typical(&question), self.now()).unwrap();
                }
                Step::Do(effect) => {
                    let outcome = self.carry_out(&effect).unwrap();
                    setup.result(outcome, self.now());
                }
                Step::Done(finish) => panic!("{finish:?}"),
            }
        }
    }

    fn finish(&mut self) -> Finish {
        self.drive(typical, None).unwrap()
    }

    fn count(&self, what: &str) -> usize {
        self.did.iter().filter(|did| **did == what).count()
    }

    fn says(&self, words: &str) -> bool {
        self.told.iter().any(|tell| tell.text.contains(words))
    }
}

fn by_hand(why: Option<&str>) -> Service {
    Service::ByHand { why: why.map(str::to_string), lines: vec!["consensus-node run".into()] }
}

fn authorisation(expires_at: u64) -> JoinAuth {
    JoinAuth {
        // Of whom it is: the file itself does not say.
        join_id: SERVER.into(),
        alg: "ed25519".into(),
        nonce: "bg".into(),
        signature: "cw".into(),
        expires_at,
        saved_at: NOW,
    }
}

/// What an operator types who takes every default.
fn typical(question: &Question) -> String {
    match question.id {
        _ if question.default.is_some() => String::new(),
        QuestionId::Server => SERVER.into(),
        QuestionId::Agreement => "y".into(),
        QuestionId::Code => "123456".into(),
        QuestionId::Email => "op@example.org".into(),
        id => answers::example(id.kind()).into(),
    }
}

#[test]
fn a_fresh_machine_is_taken_through_everything_in_order() {
    let mut world = World::new();
    world.skip_release = false;
    let finish = world.finish();
    assert_eq!((finish.outcome, finish.message.as_str()), (End::Done, "node n1 is set up"));
    use QuestionId as Id;
    assert_eq!(
        world.asked,
        [
            Id::Server,
            Id::Agreement,
            Id::Ipv4,
            Id::Ipv6,
            Id::Port,
            Id::Email,
            Id::Code,
            Id::Contact,
            Id::EvmAddress,
            Id::SolanaAddress,
            Id::IcpAddress,
            Id::Confirm
        ]
    );
    let did: Vec<_> = world.did.iter().copied().filter(|did| *did != "write").collect();
    assert_eq!(
        did,
        [
            "release",
            "address",
            "address",
            "region",
            "evaluate",
            "email start",
            "email verify",
            "register",
            "service"
        ]
    );
    assert!(
        world.says(AGREEMENT) && world.says("eu-west, A B") && world.says("EVM      0x"),
        "{:?}",
        world.told
    );
    assert!(world.says("No supervisor keeps the node: there is none") && world.says("consensus-node run"));
    let left: Value = serde_json::from_slice(&world.progress.unwrap()).unwrap();
    assert_eq!(left, json!({"version": 1, "step": "done", "answers": {}}), "no token and no address stays");
}

#[test]
fn killed_at_any_step_it_goes_on_and_costs_no_email_before_the_evaluation() {
    let mut whole = World::new();
    whole.skip_release = false;
    whole.required = Some("2.0.0");
    assert_eq!(whole.finish().outcome, End::Done);
    for kill in 0..MANY {
        let mut ended = 0;
        for done in [false, true] {
            let mut world = World::new();
            world.skip_release = false;
            world.required = Some("2.0.0");
            if world.drive(typical, Some((kill, done))).is_some() {
                ended += 1;
                continue;
            }
            let before = world.did.clone();
            let finish = world.finish();
            assert_eq!(finish.outcome, End::Done, "{kill} {done}: {before:?}, then {:?}", world.did);
            let first = |what: &str| world.did.iter().position(|did| *did == what);
            assert!(first("email start") > first("evaluate"), "{:?}", world.did);
            // What an effect gave is lost where the process ended before it was written down, and no more.
            for what in ["email start", "evaluate", "release"] {
                assert!(world.count(what) <= whole.count(what) + 1, "{kill} {done}: {:?}", world.did);
            }
            let registered = world.did.iter().position(|did| *did == "register");
            assert!(registered.is_some() && world.count("register") <= 2, "{:?}", world.did);
        }
        if ended == 2 {
            assert!(kill > 40, "all steps were tried");
            return;
        }
    }
    panic!("it never came to its end");
}

#[test]
fn no_answer_out_of_turn_and_no_invalid_one_changes_anything() {
    let mut world = World::new();
    // The address is asked for a second time, with the reason.
    world.odd.push(("/email/start", 400, json!({"error": "invalid_email"})));
    let mut setup = world.start();
    let mut asked = 0;
    loop {
        let step = setup.next(world.now());
        match step.clone() {
            Step::Tell(_) => {}
            Step::Ask(question) => {
                asked += 1;
                for id in QuestionId::ALL.into_iter().filter(|id| *id != question.id) {
                    assert!(setup.answer(id, answers::example(id.kind()), world.now()).is_err(), "{id:?}");
                }
                let mut wrong = vec!["\u{1b}[2J".to_string(), "x".repeat(MAX_ANSWER + 1), "a\nb".into()];
                if question.default.is_none() {
                    wrong.extend([String::new(), " ".into()]);
                }
                for text in wrong {
                    let invalid = setup.answer(question.id, &text, world.now()).unwrap_err();
                    assert!(invalid.to_string().contains(invalid.example));
                    assert_eq!(setup.next(world.now()), step, "the question stands");
                }
                // Nor does the end of something that nobody does.
                setup.result(Outcome::Written(Ok(())), world.now());
                setup.result(Outcome::Service(Ok(by_hand(None))), world.now());
                assert_eq!(setup.next(world.now()), step, "the question stands, with all that it says");
                if setup.answer(question.id, &typical(&question), world.now()).is_err() {
                    panic!("{:?} is gone", question.id);
                }
            }
            Step::Do(effect) => {
                setup.result(Outcome::NotHandedOver("x".into()), world.now());
                assert_eq!(setup.next(world.now()), step, "another effect's end");
                let outcome = world.carry_out(&effect).unwrap();
                setup.result(outcome, world.now());
            }
            Step::Done(finish) => {
                assert_eq!(finish.outcome, End::Done);
                assert_eq!(asked, 13);
                return;
            }
        }
    }
}

#[test]
fn everything_that_still_holds_is_offered_and_nothing_that_ran_out() {
    let reuse_of = |world: &World| {
        let mut setup = world.start();
        loop {
            match setup.next(world.now()) {
                Step::Tell(_) => {}
                Step::Ask(question) if question.id == QuestionId::Resume => {
                    return question.reuse.iter().map(|reuse| reuse.what).collect::<Vec<_>>();
                }
                Step::Ask(_) => return Vec::new(),
                other => panic!("{other:?}"),
            }
        }
    };
    // Killed at the last question: all is there.
    let mut world = World::new();
    world.run_to_the_last_question();
    use Reusable::{Addresses, Answers, Email, Evaluation};
    assert_eq!(reuse_of(&world), [Answers, Addresses, Evaluation, Email]);
    // Nine minutes and one second later there are less than sixty seconds left of both.
    world.unix += 541;
    assert_eq!(reuse_of(&world), [Answers, Addresses]);
    world.unix += 24 * 3600;
    assert_eq!(reuse_of(&world), [Answers]);
    // It goes on, with another evaluation and another code.
    world.did.clear();
    assert_eq!(world.finish().outcome, End::Done);
    assert_eq!((world.count("evaluate"), world.count("email start"), world.count("address")), (1, 1, 2));

    // An evaluation by hand is offered too; one that ran out is not.
    let mut world = World::new();
    world.join_auth = Some(authorisation(NOW + 61));
    assert_eq!(reuse_of(&world), [Evaluation]);
    world.unix += 1;
    assert_eq!(reuse_of(&world), []);
}

#[test]
fn what_is_not_used_again_is_asked_for_again() {
    let mut world = World::new();
    world.join_auth = Some(authorisation(NOW + 600));
    let no = |question: &Question| match question.id {
        QuestionId::Resume => "no".to_string(),
        _ => typical(question),
    };
    assert_eq!(world.drive(no, None).unwrap().outcome, End::Done);
    assert_eq!(world.count("evaluate"), 1);

    let mut world = World::new();
    world.join_auth = Some(authorisation(NOW + 600));
    assert_eq!(world.finish().outcome, End::Done);
    assert_eq!(world.count("evaluate"), 0);
}

#[test]
fn a_token_that_the_operator_brings_counts_where_nothing_of_before_is_to_be_used_again() {
    let mut world = World::new();
    world.run_to_the_last_question();
    let settings = Settings { email_token: Some("t1".into()), ..world.settings() };
    let mut setup = Setup::new(world.progress.as_deref(), settings, world.now()).unwrap();
    world.did.clear();
    loop {
        match setup.next(world.now()) {
            Step::Tell(_) => {}
            Step::Ask(question) => {
                let text = if question.id == QuestionId::Resume { "no".into() } else { typical(&question) };
                setup.answer(question.id, &text, world.now()).unwrap();
            }
            Step::Do(effect) => {
                let outcome = world.carry_out(&effect).unwrap();
                setup.result(outcome, world.now());
            }
            Step::Done(finish) => break assert_eq!(finish.outcome, End::Done),
        }
    }
    assert_eq!((world.count("evaluate"), world.count("email start")), (1, 0), "{:?}", world.did);
}

#[test]
fn what_one_network_gave_is_not_shown_to_another() {
    let mut world = World::new();
    world.run_to_the_last_question();
    world.given.insert(QuestionId::Server, "https://other.example".into());
    world.did.clear();
    world.finish();
    assert_eq!((world.count("evaluate"), world.count("email start")), (1, 1), "{:?}", world.did);
}

#[test]
fn killed_at_any_step_it_never_sends_one_network_what_another_authorised() {
    for kill in 0..MANY {
        let mut ended = 0;
        for done in [false, true] {
            let mut world = World::new();
            world.run_to_the_last_question();
            world.given.insert(QuestionId::Server, "https://other.example".into());
            ended += usize::from(world.drive(typical, Some((kill, done))).is_some());
            // The next one does not say which network: that is in the file.
            world.given.clear();
            assert_eq!(world.finish().outcome, End::Done, "{kill} {done}: {:?}", world.did);
        }
        if ended == 2 {
            assert!(kill > 15, "all steps were tried");
            return;
        }
    }
    panic!("it never came to its end");
}

#[test]
fn an_evaluation_that_is_not_to_be_used_again_is_not_used_by_the_next_process_either() {
    let no = |question: &Question| match question.id {
        QuestionId::Resume => "no".to_string(),
        _ => typical(question),
    };
    let mut world = World::new();
    (world.skip_release, world.required) = (false, Some("2.0.0"));
    world.join_auth = Some(authorisation(NOW + 600));
    assert_eq!(world.drive(no, None).unwrap().outcome, End::Done);
    assert_eq!((world.count("hand over"), world.count("evaluate")), (1, 1), "{:?}", world.did);

    // What cannot be removed would be used: that is told, and nothing is asked after it.
    let mut world = World::new();
    world.join_auth = Some(authorisation(NOW + 600));
    let mut setup = world.start();
    let finish = loop {
        match setup.next(world.now()) {
            Step::Tell(_) => {}
            Step::Ask(question) => setup.answer(question.id, &no(&question), world.now()).unwrap(),
            Step::Do(Effect::ForgetEvaluation) => {
                setup.result(Outcome::Written(Err("join-auth.json: read-only".into())), world.now());
            }
            Step::Do(effect) => {
                let outcome = world.carry_out(&effect).unwrap();
                setup.result(outcome, world.now());
            }
            Step::Done(finish) => break finish,
        }
    };
    assert_eq!((finish.outcome, finish.message.as_str()), (End::Internal, "join-auth.json: read-only"));
}

#[test]
fn a_damaged_file_is_named_set_aside_and_not_trusted() {
    for damaged in ["", "{", "[]", "{\"version\":1,\"answers\":7}", "{\"version\":2}"] {
        let mut world = World::new();
        world.progress = Some(damaged.into());
        assert_eq!(world.finish().outcome, End::Done, "{damaged}");
        assert_eq!(world.aside.as_deref(), Some(damaged.as_bytes()));
        assert_eq!(world.did[0], "aside");
        assert!(world.says("setup-progress.json cannot be understood"), "{damaged}");
        assert!(!world.asked.contains(&QuestionId::Resume));
    }
    let mut world = World::new();
    world.progress = Some(br#"{"step":"done","theirs":true}"#.to_vec());
    assert_eq!(world.finish().outcome, End::Done);
    assert_eq!(world.aside, None);
    let left: Value = serde_json::from_slice(&world.progress.unwrap()).unwrap();
    assert_eq!(left["theirs"], true);
}

#[test]
fn members_of_others_are_not_carried_along_where_the_file_would_grow_too_large_with_them() {
    let mut world = World::new();
    // Written in lines, it is several times as long.
    let theirs = json!({ "theirs": vec![0; 20_000] }).to_string().into_bytes();
    assert!(theirs.len() < MAX_PROGRESS);
    world.progress = Some(theirs);
    world.run_to_the_last_question();
    assert!(world.progress.as_ref().unwrap().len() <= MAX_PROGRESS);
    world.asked.clear();
    assert_eq!(world.finish().outcome, End::Done);
    assert_eq!((world.asked[0], world.asked.len()), (QuestionId::Resume, 2), "what was answered is known");
    assert_eq!(world.aside, None);
}

#[test]
fn a_file_that_cannot_be_written_is_told_once_and_stops_nothing() {
    let mut world = World::new();
    world.unwritable = true;
    assert_eq!(world.finish().outcome, End::Done);
    assert_eq!(world.told.iter().filter(|tell| tell.text.contains("disk full")).count(), 1);
}

#[test]
fn a_machine_that_holds_another_node_is_refused_with_both_named() {
    let mut world = World::new();
    let mut record = MachineRecord::new(&mut crate::crypto::Drbg::new([1; 32]), NOW);
    record.register("/srv/other", "n9", NOW);
    world.machine = Some(record.clone());
    world.registration = Some(Registration::new("n1"));
    world.progress = Some("{".into());
    let finish = world.finish();
    assert_eq!(finish.outcome, End::Refused);
    assert_eq!(world.start().ended(), Some(&finish), "known before anything is made");
    for name in ["n9", "/srv/other", "n1", "/home/op/.consensus/node", "/m/machine.json"] {
        assert!(finish.message.contains(name), "{name}: {}", finish.message);
    }
    assert!(world.did.is_empty(), "nothing is touched");
    record.state_dir = Some("/home/op/.consensus/node/".into());
    world.machine = Some(record);
    let finish = world.finish();
    assert!(finish.message.contains("n9") && finish.message.contains("n1"), "{}", finish.message);
    assert!(world.start().missing().is_empty());
}

#[test]
fn a_registered_node_is_kept_or_registered_again() {
    let mut world = World::new();
    world.registration = Some(Registration::new("n1"));
    assert_eq!(world.finish().outcome, End::Done);
    assert_eq!(world.asked, [QuestionId::Server, QuestionId::KeepNode]);
    assert_eq!((world.count("service"), world.count("register")), (1, 0));

    let mut world = World::new();
    world.registration = Some(Registration::new("n1"));
    let again = |question: &Question| match question.id {
        QuestionId::KeepNode => "no".to_string(),
        _ => typical(question),
    };
    assert_eq!(world.drive(again, None).unwrap().outcome, End::Done);
    assert_eq!((world.count("register"), world.count("service")), (1, 1));
}

#[test]
fn without_agreement_nothing_is_done() {
    let mut world = World::new();
    let no = |question: &Question| match question.id {
        QuestionId::Agreement => "no".to_string(),
        _ => typical(question),
    };
    let finish = world.drive(no, None).unwrap();
    assert_eq!(finish.outcome, End::NotRegistered);
    assert!(world.did.iter().all(|did| *did == "write"), "{:?}", world.did);
}

#[test]
fn what_is_given_is_not_asked_and_what_is_missing_is_named_at_once() {
    let mut world = World::new();
    use QuestionId as Id;
    assert_eq!(
        world.start().missing(),
        [Id::Server, Id::Email, Id::EvmAddress, Id::SolanaAddress, Id::IcpAddress]
    );
    for id in [Id::Server, Id::Email, Id::EvmAddress, Id::SolanaAddress, Id::IcpAddress] {
        world.given.insert(id, answers::example(id.kind()).into());
    }
    assert_eq!(world.start().missing(), []);
    world.odd.push((
        "/email/start",
        200,
        json!({"verification_id": "v1", "dev_code": "123456", "expires_at": null}),
    ));
    let unattended = |question: &Question| question.unattended().unwrap().to_string();
    assert_eq!(world.drive(unattended, None).unwrap().outcome, End::Done);
    assert_eq!(world.asked, [Id::Agreement, Id::Ipv4, Id::Ipv6, Id::Port, Id::Contact, Id::Confirm]);

    world.given.insert(Id::Port, "0".into());
    let wrong = Setup::new(None, world.settings(), world.now()).unwrap_err();
    assert_eq!(wrong.id, Id::Port);
}

#[test]
fn a_token_or_a_code_of_elsewhere_is_used() {
    let world = World::new();
    let to_register = |settings: Settings| {
        let mut world = World::new();
        let mut setup = Setup::new(None, settings, world.now()).unwrap();
        loop {
            match setup.next(world.now()) {
                Step::Tell(_) => {}
                Step::Ask(question) => {
                    world.asked.push(question.id);
                    setup.answer(question.id, &typical(&question), world.now()).unwrap();
                }
                Step::Do(Effect::Register(_)) => return world,
                Step::Do(effect) => {
                    let outcome = world.carry_out(&effect).unwrap();
                    setup.result(outcome, world.now());
                }
                Step::Done(finish) => panic!("{finish:?}"),
            }
        }
    };
    let told = to_register(Settings { email_token: Some("t1".into()), ..world.settings() });
    assert_eq!(told.count("email start") + told.count("email verify"), 0);
    assert!(!told.asked.contains(&QuestionId::Email) && told.asked.contains(&QuestionId::Contact));
    let (verification_id, code) = (Some("v7".to_string()), Some("123456".to_string()));
    let told = to_register(Settings { verification_id, code, ..world.settings() });
    assert_eq!((told.count("email start"), told.count("email verify")), (0, 1));
    assert!(!told.asked.contains(&QuestionId::Code));
}

#[test]
fn addresses_that_are_not_found_are_asked_for_and_found_ones_typed_over() {
    let mut world = World::new();
    world.addresses = [("IPv4", "<html>"), ("IPv6", "8.8.8.8")].into();
    let mut problem = None;
    let finish = world.drive(
        |question| {
            match question.id {
                QuestionId::Ipv4 => {
                    problem.clone_from(&question.problem);
                    assert_eq!(question.default, None);
                    return "8.8.8.8".into();
                }
                QuestionId::Ipv6 => assert_eq!(question.default.as_deref(), Some("none")),
                _ => {}
            }
            typical(question)
        },
        None,
    );
    assert_eq!(finish.unwrap().outcome, End::Done);
    let problem = problem.unwrap();
    let says = "no IPv4 address of this machine was found (b.example: the answer is no address";
    assert!(problem.starts_with(says), "{problem}");
    assert_eq!(world.count("address"), 4, "every service, over each family");

    let mut world = World::new();
    let mut seen = Vec::new();
    world.drive(
        |question| match question.id {
            QuestionId::Ipv4 => {
                seen.push(question.default.clone().unwrap());
                "9.9.9.9".into()
            }
            QuestionId::Ipv6 => "none".into(),
            _ => typical(question),
        },
        None,
    );
    assert_eq!(seen, ["8.8.4.4"]);
    assert!(world.says("IPv4     9.9.9.9") && world.says("IPv6     none"));
}

#[test]
fn a_region_that_the_network_does_not_say_is_told_as_not_known_and_stops_nothing() {
    for body in [json!({"region": 7}), json!([]), json!({"success": true, "region": "\u{1b}", "city": ""})] {
        let mut world = World::new();
        world.odd.push(("/region", 200, body));
        assert_eq!(world.finish().outcome, End::Done);
        assert!(world.says("The region is not known") && !world.says("Region:"), "{:?}", world.told);
    }
}

#[test]
fn a_wrong_code_is_asked_again_and_after_some_another_is_sent() {
    let mut world = World::new();
    let mut codes = vec!["123456", "bad", "AGAIN", "bad3", "bad2", "bad1"];
    let mut problems = 0;
    let finish = world.drive(
        |question| {
            if question.id == QuestionId::Code {
                problems += usize::from(question.problem.is_some());
                return codes.pop().unwrap().into();
            }
            typical(question)
        },
        None,
    );
    assert_eq!(finish.unwrap().outcome, End::Done);
    assert!(codes.is_empty());
    // After three wrong ones, and after the word.
    assert_eq!(world.count("email start"), 3);
    assert_eq!(problems, 3);
}

#[test]
fn a_mailbox_is_not_filled() {
    let mut world = World::new();
    let finish = world.drive(
        |question| match question.id {
            QuestionId::Code => "again".into(),
            _ => typical(question),
        },
        None,
    );
    assert_eq!(finish.unwrap().outcome, End::Refused);
    assert_eq!(world.count("email start"), 5);
}

#[test]
fn an_address_that_the_network_refuses_is_asked_for_again() {
    let mut world = World::new();
    world.odd.push(("/email/start", 400, json!({"error": "invalid_email\u{1b}"})));
    let mut seen = Vec::new();
    let finish = world.drive(
        |question| {
            if question.id == QuestionId::Email {
                seen.push(question.problem.clone());
                assert_eq!(question.unattended(), None, "nobody who is not there can mend it");
            }
            typical(question)
        },
        None,
    );
    assert_eq!(finish.unwrap().outcome, End::Done);
    assert_eq!(seen, [None, Some("HTTP 400: invalid_email ".into())]);
}

#[test]
fn what_goes_wrong_for_good_ends_it_with_the_reason_and_all_that_was_known_kept() {
    let cases: [(&str, u16, Value, End); 6] = [
        ("/region/", 0, json!(null), End::Unreachable),
        ("/email/start", 0, json!(null), End::Unreachable),
        ("/email/start", 500, json!({"error": "broken"}), End::Refused),
        ("/email/start", 200, json!({"verification_id": "a b"}), End::Refused),
        ("/email/verify", 200, json!([]), End::Refused),
        ("/email/verify", 0, json!(null), End::Unreachable),
    ];
    for (path, status, body, outcome) in cases {
        let mut world = World::new();
        world.odd.push((path, status, body));
        assert_eq!(world.finish().outcome, outcome, "{path} {status}");
        let evaluations = world.count("evaluate");
        world.asked.clear();
        assert_eq!(world.finish().outcome, End::Done, "the next time");
        assert_eq!(world.asked[0], QuestionId::Resume);
        assert_eq!(world.count("evaluate"), 1.max(evaluations));
    }
    let mut world = World::new();
    world.odd.push(("/region/", 503, json!({"error": "down"})));
    assert_eq!(world.finish().outcome, End::Done, "not knowing the region is no reason to stop");
    assert!(world.says("down"));
}

#[test]
fn a_machine_that_is_not_admitted_costs_no_email() {
    let mut world = World::new();
    world.evaluation = Some(Finish { outcome: End::Refused, message: "too slow".into() });
    let finish = world.finish();
    assert_eq!(finish.outcome, End::Refused);
    assert_eq!(finish.message, "too slow; no email was sent");
    assert_eq!(world.count("email start"), 0);
}

#[test]
fn an_authorisation_that_runs_out_on_the_way_is_earned_again() {
    let mut world = World::new();
    let mut setup = world.start();
    loop {
        match setup.next(world.now()) {
            Step::Tell(tell) => world.told.push(tell),
            Step::Ask(question) => {
                if question.id == QuestionId::Contact && world.unix == NOW {
                    // Somebody has to look for an address for a while.
                    world.unix += 700;
                }
                setup.answer(question.id, &typical(&question), world.now()).unwrap();
            }
            Step::Do(effect) => {
                let outcome = world.carry_out(&effect).unwrap();
                setup.result(outcome, world.now());
            }
            Step::Done(finish) => {
                assert_eq!(finish.outcome, End::Done);
                break;
            }
        }
    }
    assert_eq!((world.count("evaluate"), world.count("email start")), (2, 2));
    assert!(world.says("The authorisation cannot be used any more"));

    // A clock that is wrong does not make it go on for ever.
    let mut world = World::new();
    world.auth_holds = 0;
    let finish = world.finish();
    assert!(finish.message.contains("clock"), "{}", finish.message);
    assert_eq!(world.count("evaluate"), 3);
}

#[test]
fn a_refused_join_request_gets_what_it_lacked_once() {
    for (status, again) in [(401, "email start"), (403, "evaluate"), (404, "evaluate"), (410, "evaluate")] {
        let mut world = World::new();
        world.join_status = vec![status];
        assert_eq!(world.finish().outcome, End::Done, "{status}");
        assert_eq!(world.count(again), 2, "{status}");
        assert!(world.says("join refused"));
    }
    for statuses in [vec![401, 401], vec![404; 9], vec![402], vec![500], vec![400]] {
        let mut world = World::new();
        world.join_status = statuses.clone();
        assert_eq!(world.finish().outcome, End::Refused, "{statuses:?}");
        assert_eq!(world.registration, None);
    }
}

#[test]
fn a_join_request_whose_answer_was_lost_is_told_of() {
    let mut world = World::new();
    let mut setup = world.start();
    loop {
        match setup.next(world.now()) {
            Step::Tell(_) => {}
            Step::Ask(question) => setup.answer(question.id, &typical(&question), world.now()).unwrap(),
            Step::Do(Effect::Register(_)) => break,
            Step::Do(effect) => {
                let outcome = world.carry_out(&effect).unwrap();
                setup.result(outcome, world.now());
            }
            Step::Done(finish) => panic!("{finish:?}"),
        }
    }
    // The network took it, and the process was killed. The authorisation is used up.
    world.join_status = vec![404];
    assert_eq!(world.finish().outcome, End::Done);
    assert!(world.says("the network may have taken that"));
    assert_eq!(world.count("evaluate"), 2);
}

#[test]
fn everything_is_asked_again_with_what_was_answered() {
    let mut world = World::new();
    let (mut confirms, mut contacts, mut emails) = (0, Vec::new(), Vec::new());
    let finish = world.drive(
        |question| {
            match question.id {
                QuestionId::Confirm => {
                    confirms += 1;
                    return if confirms == 1 { "n".into() } else { String::new() };
                }
                QuestionId::Email => {
                    emails.push(question.default.clone());
                    return if confirms == 0 { "op@example.org".into() } else { String::new() };
                }
                QuestionId::Contact => {
                    contacts.push(question.default.clone().unwrap());
                    return if confirms == 0 { "me@example.net".into() } else { String::new() };
                }
                _ => {}
            }
            typical(question)
        },
        None,
    );
    assert_eq!(finish.unwrap().outcome, End::Done);
    assert_eq!(contacts, ["op@example.org", "me@example.net"]);
    assert_eq!(emails, [None, Some("op@example.org".to_string())]);
    assert_eq!(world.emails, [Some("op@example.org".to_string())], "the network is told of it");
    // What was earned stays.
    assert_eq!((world.count("evaluate"), world.count("email start")), (1, 1));
}

#[test]
fn the_release_that_was_installed_goes_on_and_does_not_ask_again() {
    let mut world = World::new();
    world.skip_release = false;
    world.required = Some("2.0.0");
    assert_eq!(world.finish().outcome, End::Done);
    assert_eq!(world.count("hand over"), 1);
    assert!(!world.asked.contains(&QuestionId::Resume));
    assert_eq!(world.asked.iter().filter(|id| **id == QuestionId::Agreement).count(), 1);

    // One that is not the required one when it runs does not start itself for ever.
    let mut world = World::new();
    (world.skip_release, world.required) = (false, Some("2.0.0"));
    let mut setup = world.start();
    let mut starts = 0;
    let finish = loop {
        match setup.next(world.now()) {
            Step::Tell(_) => {}
            Step::Ask(question) => setup.answer(question.id, &typical(&question), world.now()).unwrap(),
            Step::Do(Effect::HandOver { .. }) => {
                starts += 1;
                world.handed_over = true;
                setup = world.start();
            }
            Step::Do(effect) => {
                let outcome = world.carry_out(&effect).unwrap();
                setup.result(outcome, world.now());
            }
            Step::Done(finish) => break finish,
        }
    };
    assert_eq!((finish.outcome, starts), (End::Outdated, 1));
    // Nor does one that cannot be started.
    world.handed_over = false;
    let mut setup = world.start();
    let finish = loop {
        match setup.next(world.now()) {
            Step::Tell(_) => {}
            Step::Ask(question) => setup.answer(question.id, &typical(&question), world.now()).unwrap(),
            Step::Do(Effect::HandOver { .. }) => {
                setup.result(Outcome::NotHandedOver("no such file".into()), world.now());
            }
            Step::Do(effect) => {
                let outcome = world.carry_out(&effect).unwrap();
                setup.result(outcome, world.now());
            }
            Step::Done(finish) => break finish,
        }
    };
    assert!(finish.message.contains("no such file"), "{}", finish.message);
}

#[test]
fn no_progress_file_makes_it_panic() {
    let mut world = World::new();
    world.run_to_the_last_question();
    let whole = world.progress.clone().unwrap();
    let mut state = 7_u64;
    for _ in 0..3000 {
        let mut data = whole.clone();
        for _ in 0..3 {
            state = state.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(0x1405_7b7e_f767_814f);
            let at = (state >> 33) as usize % data.len();
            data[at] = (state >> 24) as u8;
        }
        world.progress = Some(data);
        let mut setup = world.start();
        for _ in 0..8 {
            match setup.next(world.now()) {
                Step::Tell(tell) => assert!(!tell.text.contains('\u{1b}'), "{}", tell.text),
                Step::Ask(question) => {
                    let _ = setup.answer(question.id, &typical(&question), world.now());
                }
                Step::Do(Effect::SetProgressAside | Effect::WriteProgress(_)) => {
                    setup.result(Outcome::Written(Ok(())), world.now());
                }
                Step::Do(_) | Step::Done(_) => break,
            }
        }
    }
}

#[test]
fn the_agreement_is_a_page_of_short_lines() {
    assert!(AGREEMENT.lines().all(|line| line.chars().count() <= 80) && AGREEMENT.lines().count() < 60);
    for word in ["bandwidth", "processor time", "email address", "How to stop", "public addresses"] {
        assert!(AGREEMENT.to_lowercase().contains(&word.to_lowercase()), "{word}");
    }
}

/// A machine with a supervisor.
fn supervised() -> World {
    let (text, warnings) = ("systemd keeps it".to_string(), vec!["no linger".to_string()]);
    let service = Ok(Service::Installed { text, warnings });
    World { supervisor: Some("systemd of this user".into()), service, ..World::new() }
}

#[test]
fn a_supervised_node_that_is_connected_is_the_last_thing_that_setup_waits_for() {
    let mut world = supervised();
    assert_eq!(world.finish().outcome, End::Done);
    assert_eq!(world.asked.last(), Some(&QuestionId::Service));
    assert_eq!(&world.did[world.did.len() - 4..], ["write", "service", "await", "write"]);
    for words in [
        "systemd of this user can keep the node",
        "systemd keeps it",
        "no linger",
        "n1 runs, and is connected",
    ] {
        assert!(world.says(words), "{words}: {:?}", world.told);
    }
    let summary = world.told.iter().find(|tell| tell.kind == TellKind::Personal).unwrap();
    assert!(!summary.text.contains("yes"), "the network is not told of it: {}", summary.text);

    // Whoever does not want it is not told that something is missing.
    let mut world = World { service: Ok(by_hand(None)), ..supervised() };
    let answer = |question: &Question| match question.id {
        QuestionId::Service => "no".to_string(),
        _ => typical(question),
    };
    assert_eq!(world.drive(answer, None).unwrap().outcome, End::Done);
    assert_eq!(world.count("await"), 0);
}

#[test]
fn killed_at_any_step_a_supervised_node_is_connected_in_the_end() {
    for kill in 0..MANY {
        let mut ended = 0;
        for done in [false, true] {
            let mut world = supervised();
            if world.drive(typical, Some((kill, done))).is_some() {
                ended += 1;
                continue;
            }
            // Once it was installed, the node has the state directory.
            world.running = world.count("service") > 0;
            assert_eq!(world.finish().outcome, End::Done, "{kill} {done}: {:?}", world.did);
            assert!(world.count("register") <= 2 && world.count("await") >= 1, "{:?}", world.did);
        }
        if ended == 2 {
            return;
        }
    }
    panic!("it never came to its end");
}

#[test]
fn a_node_that_does_not_connect_is_told_with_what_helps_and_waited_for_by_the_next_setup() {
    let finish = Finish { outcome: End::Unreachable, message: "no session".into() };
    let mut world = World { connected: Err(finish), ..supervised() };
    let finish = world.finish();
    assert_eq!(finish.outcome, End::Unreachable);
    for words in ["no session", "service status", "doctor"] {
        assert!(finish.message.contains(words), "{}", finish.message);
    }
    let left: Value = serde_json::from_slice(world.progress.as_ref().unwrap()).unwrap();
    assert_eq!(left["step"], "service");
    world.connected = Ok(());
    world.running = true;
    world.asked.clear();
    assert_eq!(world.finish().outcome, End::Done);
    assert!(world.asked.iter().all(|id| *id == QuestionId::Resume), "{:?}", world.asked);
    assert_eq!((world.count("register"), world.count("service"), world.count("await")), (1, 2, 2));
}

#[test]
fn the_command_that_starts_the_node_is_told_whole_however_long_it_is() {
    let mut world = supervised();
    let command = format!("consensus-node run --server {SERVER} --release-key {}\u{7}", "x".repeat(400));
    world.service = Ok(Service::ByHand { why: None, lines: vec![command.clone()] });
    assert_eq!(world.finish().outcome, End::Done);
    assert!(world.says(&format!("\n  {}", command.replace('\u{7}', " "))), "{:?}", world.told.last());
}

#[test]
fn a_service_that_was_asked_for_beforehand_and_cannot_be_is_no_success() {
    for (given, outcome) in [("yes", End::NotRegistered), ("no", End::Done)] {
        let mut world = World::new();
        world.given.insert(QuestionId::Service, given.into());
        let finish = world.finish();
        assert_eq!(finish.outcome, outcome, "{finish:?}");
        assert!(world.says("consensus-node run"), "it is told how it is started all the same");
        assert!(!world.asked.contains(&QuestionId::Service));
    }
    let mut world = supervised();
    world.given.insert(QuestionId::Service, "y".into());
    assert_eq!(world.finish().outcome, End::Done);
    assert!(!world.asked.contains(&QuestionId::Service) && world.count("await") == 1);
}

#[test]
fn a_node_that_runs_is_not_registered_anew() {
    let mut world = World { running: true, registration: Some(Registration::new("n1")), ..supervised() };
    assert_eq!(world.finish().outcome, End::Done);
    assert_eq!(world.asked, [QuestionId::Server]);
    assert_eq!((world.count("evaluate"), world.count("register"), world.count("await")), (0, 0, 1));
}
