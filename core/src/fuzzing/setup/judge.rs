//! What must hold of each step that setup takes.

use alloc::string::{String, ToString as _};

use serde_json::{Value, json};

use super::{
    ADDRESSES_HOLD, Given, MIN_LEFT, Process, STAGES, Saved, World, body, is_local, is_value, lost,
    stage_of_question,
};
use crate::setup::{
    Effect, MAX_PROGRESS, Outcome, Purpose, Question, QuestionId, Registrant, Release, Setup, Step,
};

impl Process {
    pub(super) fn judge(&mut self, world: &World, step: &Step) {
        match step {
            Step::Ask(question) => self.judge_question(world, question),
            Step::Do(Effect::SetProgressAside) => {
                let is_large = world.progress.as_ref().is_some_and(|file| file.len() > MAX_PROGRESS);
                assert!(world.saved.is_unknown || is_large, "a file that was written and is not understood");
            }
            Step::Do(Effect::ForgetEvaluation) => {
                assert!(!self.is_authorised || self.keep == Some(true), "it could be used");
            }
            Step::Do(Effect::WriteProgress(data)) => self.judge_file(world, data),
            Step::Do(effect) => {
                assert!(!self.is_dirty, "{effect:?} before the answers are on the disk");
                self.take_offered();
                self.judge_effect(world, effect);
            }
            Step::Done(finish) => {
                let is_plain = !finish.message.is_empty() && !finish.message.contains(char::is_control);
                assert!(is_plain && !self.is_dirty, "{finish:?}");
            }
            Step::Tell(_) => {}
        }
    }

    fn judge_question(&mut self, world: &World, question: &Question) {
        let id = question.id;
        assert!(!self.is_dirty, "{id:?} is asked before the answers are on the disk");
        let says = question.problem.iter().chain(question.reuse.iter().map(|reuse| &reuse.text));
        for text in says.chain(&question.default) {
            assert!(!text.contains(char::is_control), "{text:?}");
        }
        if id == QuestionId::Resume {
            assert!(
                !question.reuse.is_empty() && self.offered.is_some() && !self.is_resume_asked,
                "for what?"
            );
            self.is_resume_asked = true;
            return;
        }
        self.take_offered();
        assert!(!self.known.contains_key(&id), "{id:?} was answered");
        match id {
            QuestionId::KeepNode => assert!(world.registration.is_some() && self.keep.is_none()),
            QuestionId::Agreement => assert!(!self.agreed, "it was agreed to"),
            QuestionId::Code => assert!(self.known.contains_key(&QuestionId::Email) || self.is_blind),
            QuestionId::Confirm if !self.is_blind => {
                for id in QuestionId::ALL.into_iter().filter(|id| is_value(*id)) {
                    assert!(self.known.contains_key(&id), "{id:?} is missing");
                }
            }
            _ => {}
        }
    }

    fn judge_effect(&mut self, world: &World, effect: &Effect) {
        let server = self.server();
        match effect {
            Effect::Evaluate { .. } => {
                self.evaluations += 1;
                assert!(self.evaluations <= 3, "evaluations without an end");
            }
            Effect::Fetch { purpose, fetch } => {
                assert!(fetch.target.url().starts_with(&server), "{fetch:?}");
                if *purpose != Purpose::Region && !self.is_blind {
                    assert!(self.is_authorised, "an email before the machine is admitted");
                }
                self.emails += u32::from(*purpose == Purpose::EmailStart);
                assert!(self.emails <= 5, "emails without an end");
                if *purpose == Purpose::EmailVerify && !self.is_blind {
                    let body: Value =
                        serde_json::from_slice(fetch.body.as_deref().unwrap_or_default()).expect("JSON");
                    assert!(
                        body["verification_id"].as_str().is_some_and(|id| id.starts_with(&server)),
                        "another network's"
                    );
                }
            }
            Effect::Register(registrant) => self.judge_registrant(world, registrant),
            Effect::InstallService { server: network, keep } => {
                assert!(world.registration.is_some() && self.keep == Some(true) && *network == server);
                let is_wanted = self.known.get(&QuestionId::Service).is_some_and(|answer| answer == "yes");
                assert!(self.is_blind || *keep == (world.has_supervisor() && is_wanted));
            }
            Effect::AwaitNode { node_id } => {
                let registration = world.registration.as_ref().expect("a node");
                assert!(self.is_kept && registration.node_id == *node_id);
            }
            Effect::SetProgressAside
            | Effect::ForgetEvaluation
            | Effect::WriteProgress(_)
            | Effect::InstallRelease { .. }
            | Effect::HandOver { .. }
            | Effect::FindAddress { .. } => {}
        }
    }

    fn judge_registrant(&self, world: &World, registrant: &Registrant) {
        assert!(self.confirmed, "the operator did not say yes");
        assert!(world.registration.is_none() || self.keep == Some(false), "it is registered");
        if self.is_blind {
            return;
        }
        assert!(self.agreed, "the operator did not agree");
        let auth = world.join_auth.as_ref().expect("an authorisation");
        assert!(self.is_authorised && auth.expires_at > world.seconds(), "it cannot be used");
        assert!(auth.join_id.starts_with(&registrant.server) || !self.is_auth_traced, "{}", auth.join_id);
        let token = &registrant.email_verification_token;
        assert!(token.starts_with(&registrant.server), "another network's: {token}");
        let port = registrant.port.to_string();
        let ipv6 = registrant.ipv6.clone().unwrap_or_else(|| "none".into());
        let none = String::new();
        for (id, text) in [
            (QuestionId::Server, &registrant.server),
            (QuestionId::Ipv4, &registrant.ipv4),
            (QuestionId::Ipv6, &ipv6),
            (QuestionId::Port, &port),
            (QuestionId::Email, registrant.email.as_ref().unwrap_or(&none)),
            (QuestionId::Contact, &registrant.contact),
            (QuestionId::EvmAddress, &registrant.evm_address),
            (QuestionId::SolanaAddress, &registrant.solana_address),
            (QuestionId::IcpAddress, &registrant.icp_address),
        ] {
            assert_eq!(self.known.get(&id), Some(text), "{id:?}");
        }
        let is_again = world.lost.contains(&auth.join_id);
        assert!(!is_again || world.is_warned, "a second join request for {}", auth.join_id);
    }

    /// The file has every answer, and leads to where it was written.
    fn judge_file(&mut self, world: &World, data: &[u8]) {
        self.is_dirty = false;
        assert!(data.len() <= MAX_PROGRESS, "a file of {} bytes, which would not be read", data.len());
        let file: Value = serde_json::from_slice(data).expect("JSON");
        let answer = |id: QuestionId| file["answers"][id.as_str()].as_str().map(String::from);
        let step = file["step"].as_str().expect("a step");
        if step == "done" {
            assert_eq!(file["answers"], json!({}), "nothing is offered again");
            self.writes = Saved::default();
            return;
        }
        if let Some((id, text)) = self.typed.take() {
            let value = answer(id).expect("what was typed");
            let is_free = matches!(id, QuestionId::Contact | QuestionId::Email);
            assert!(!is_free || value == text.trim(), "{value} is not {text}");
            self.known.insert(id, value);
        }
        let all = self.all_answers();
        if !self.is_blind {
            assert_eq!(file["answers"].as_object().map(serde_json::Map::len), Some(all.len()), "{file}");
        }
        for (id, text) in &self.known {
            assert_eq!(answer(*id).as_ref(), Some(text), "{id:?}");
        }
        assert!(self.is_blind || all.iter().all(|(id, text)| answer(*id).as_ref() == Some(text)), "{file}");
        self.writes = Saved {
            is_unknown: self.is_blind,
            agreed: file["agreement"].is_u64(),
            addresses_at: file["addresses_at"].as_u64().unwrap_or(0),
            answers: all,
        };
        // What is written before the operator decides about what there was keeps that.
        let agreed = self.agreed || self.offered.as_ref().is_some_and(|offered| offered.agreed);
        assert_eq!(self.writes.agreed, agreed || self.is_blind && self.writes.agreed);
        self.go_on_from(world, data, &file, step);
    }

    /// Another process with that file comes to the same step, where that is one of those that a file leads to.
    fn go_on_from(&self, world: &World, data: &[u8], file: &Value, step: &str) {
        let rank = |name: &str| STAGES.iter().position(|stage| *stage == name);
        let Some(was) = rank(step) else { return };
        let mut settings =
            world.settings(Some(Given { other_server: None, contact: false, handed_over: true }));
        settings.join_auth.take_if(|_| !self.is_authorised);
        let mut next = Setup::new(Some(data), settings, world.now).expect("nothing was given");
        let found = loop {
            match next.next(world.now) {
                Step::Tell(_) => {}
                Step::Ask(Question { id: QuestionId::KeepNode, .. }) => {
                    let Some(keep) = self.keep else { return };
                    let text = if keep { "yes" } else { "no" };
                    next.answer(QuestionId::KeepNode, text, world.now).expect("an answer");
                }
                Step::Ask(question) => break stage_of_question(question.id),
                Step::Do(effect) => {
                    let outcome = match effect {
                        Effect::SetProgressAside => panic!("what was written is not understood: {file}"),
                        Effect::ForgetEvaluation | Effect::WriteProgress(_) => Outcome::Written(Ok(())),
                        Effect::InstallRelease { .. } => Outcome::Release(Ok(Release::NotRequired)),
                        Effect::FindAddress { .. } => Outcome::Fetched(Err(lost())),
                        Effect::Fetch { purpose: Purpose::Region, .. } => {
                            Outcome::Fetched(Ok(body(200, b"{}")))
                        }
                        Effect::Fetch { .. } => break "email",
                        Effect::Evaluate { .. } => break "evaluation",
                        Effect::InstallService { .. } => break "service",
                        Effect::HandOver { .. } | Effect::Register(_) | Effect::AwaitNode { .. } => {
                            panic!("{effect:?}")
                        }
                    };
                    next.result(outcome, world.now);
                }
                // The machine is another node's.
                Step::Done(_) => return,
            }
        };
        let now = world.seconds();
        let is_over = |until: Option<u64>| until.is_some_and(|until| until <= now + MIN_LEFT);
        let ran_out = is_over(file["email_verified"]["expires_at"].as_u64())
            || is_over(file["email_verification"]["expires_at"].as_u64())
            || is_over(world.join_auth.as_ref().map(|auth| auth.expires_at))
            || now.saturating_sub(self.writes.addresses_at) > ADDRESSES_HOLD;
        let is = rank(found).expect("a stage");
        // Of what was refused, the next process may make use.
        let is_further = is > was && (!self.defaults.is_empty() || self.is_blind || is_local(step));
        let is_same = is == was || step == "register" && found == "confirm" || is_further;
        assert!(
            is_same || ran_out || self.is_blind,
            "it stood at {step}, and the file leads to {found}: {file}"
        );
    }
}
