//! The parts of setup: their order, and the steps of each.

use alloc::boxed::Box;
use alloc::format;
use alloc::string::ToString as _;
use core::mem;

use super::{Installed, Kept, Setup};
use crate::io::Outcome as End;
use crate::setup::{AGREEMENT, Effect, Purpose, QuestionId, Step, TellKind, texts};
use crate::text::printable;
use crate::time::Now;

/// The parts of setup, in their order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Stage {
    Resume,
    Server,
    KeepNode,
    Agreement,
    Release,
    Addresses,
    Region,
    Evaluation,
    Email,
    Payouts,
    Confirm,
    Register,
    Service,
    Done,
}

impl Stage {
    /// Its name in `setup-progress.json`.
    pub(super) const fn as_str(self) -> &'static str {
        match self {
            Self::Resume => "resume",
            Self::Server => "server",
            Self::KeepNode => "keep_node",
            Self::Agreement => "agreement",
            Self::Release => "release",
            Self::Addresses => "addresses",
            Self::Region => "region",
            Self::Evaluation => "evaluation",
            Self::Email => "email",
            Self::Payouts => "payouts",
            Self::Confirm => "confirm",
            Self::Register => "register",
            Self::Service => "service",
            Self::Done => "done",
        }
    }

    /// What it is called when it begins.
    pub(super) const fn heading(self) -> Option<&'static str> {
        match self {
            Self::Resume => Some("An earlier setup left this"),
            Self::Server => Some("The network"),
            Self::Agreement => Some("What running a node means"),
            Self::Release => Some("The release"),
            Self::Addresses => Some("Addresses"),
            Self::Evaluation => Some("The evaluation"),
            Self::Email => Some("Your email address"),
            Self::Payouts => Some("Contact and payouts"),
            Self::Confirm => Some("Registration"),
            Self::Service => Some("The service"),
            Self::KeepNode | Self::Region | Self::Register | Self::Done => None,
        }
    }
}

impl Setup {
    /// What is to be done next.
    pub(super) fn stage(&self, now: Now) -> Stage {
        let has = |ids: &[QuestionId]| ids.iter().all(|id| self.answers.contains_key(id));
        let after = |is_missing: bool, stage: Stage| is_missing.then_some(stage);
        let keeps = self.settings.registration.is_some() && self.session.keep == Some(true);
        let ipv4 = self.answers.get(&QuestionId::Ipv4);
        let knows_region = self.session.region.as_ref().is_some_and(|(of, _)| Some(of) == ipv4);
        use QuestionId as Id;
        let payouts = [Id::Contact, Id::EvmAddress, Id::SolanaAddress, Id::IcpAddress];
        after(self.session.resume.is_none(), Stage::Resume)
            .or(after(!has(&[Id::Server]), Stage::Server))
            .or(after(self.settings.registration.is_some() && self.session.keep.is_none(), Stage::KeepNode))
            .or(after(keeps && self.session.service != Kept::Settled, Stage::Service))
            .or(after(keeps, Stage::Done))
            .or(after(self.progress.agreement.is_none(), Stage::Agreement))
            .or(after(self.session.release != Installed::Settled, Stage::Release))
            .or(after(!has(&[Id::Ipv4, Id::Ipv6, Id::Port]), Stage::Addresses))
            .or(after(!knows_region, Stage::Region))
            .or(after(self.authorisation(now).is_none(), Stage::Evaluation))
            .or(after(self.token(now).is_none() || self.lacks_email(), Stage::Email))
            .or(after(!has(&payouts), Stage::Payouts))
            .or(after(!self.session.confirmed, Stage::Confirm))
            .unwrap_or(Stage::Register)
    }

    /// Says what begins.
    pub(super) fn begin(&mut self, stage: Stage) {
        let was = self.session.heading.replace(stage);
        if let Some(heading) = stage.heading() {
            self.tell(TellKind::Heading, heading.to_string());
        }
        match stage {
            Stage::Agreement => self.tell(TellKind::Text, AGREEMENT.to_string()),
            Stage::KeepNode => {
                if let Some(registration) = &self.settings.registration {
                    let text =
                        format!("This machine is registered as node {} already.", registration.node_id);
                    self.tell(TellKind::Text, text);
                }
            }
            Stage::Evaluation if was > Some(stage) => {
                self.tell(TellKind::Warning, "The authorisation cannot be used any more.".to_string());
            }
            Stage::Evaluation => {
                let text = "The network measures this machine now, for a minute or two. Other work on it shows in the \
                            figures.";
                self.tell(TellKind::Text, text.to_string());
            }
            Stage::Service => {
                if let Some(supervisor) = &self.settings.supervisor {
                    let text = format!(
                        "{} can keep the node: it starts with the machine then, and again after a crash.",
                        printable(supervisor)
                    );
                    self.tell(TellKind::Text, text);
                }
            }
            Stage::Email if was > Some(stage) => {
                self.tell(TellKind::Warning, "The email address has to be verified again.".to_string());
            }
            _ => {}
        }
    }

    /// The next step of a stage; `None` where something else has to be looked at first.
    pub(super) fn step_of(&mut self, stage: Stage, now: Now) -> Option<Step> {
        let server = self.answers.get(&QuestionId::Server).cloned().unwrap_or_default();
        match stage {
            Stage::Resume => None,
            Stage::Server => Some(self.ask(QuestionId::Server, None)),
            Stage::KeepNode => Some(self.ask(QuestionId::KeepNode, Some("yes"))),
            Stage::Agreement => Some(self.ask(QuestionId::Agreement, None)),
            Stage::Release => Some(Step::Do(match &self.session.release {
                Installed::HandOver(program) => Effect::HandOver { program: program.clone(), server },
                Installed::Unknown | Installed::Settled => Effect::InstallRelease { server },
            })),
            Stage::Addresses => self.addresses(),
            Stage::Region => {
                let ipv4 = self.answers.get(&QuestionId::Ipv4).cloned().unwrap_or_default();
                self.request(Purpose::Region, "GET", &format!("/node/region/{ipv4}"), None)
            }
            Stage::Evaluation => self.evaluation(server),
            Stage::Email => self.email(now),
            Stage::Payouts => {
                let email = self.answers.get(&QuestionId::Email).cloned();
                let open = [
                    (QuestionId::Contact, email),
                    (QuestionId::EvmAddress, None),
                    (QuestionId::SolanaAddress, None),
                    (QuestionId::IcpAddress, None),
                ];
                let open = open.into_iter().find(|(id, _)| !self.answers.contains_key(id));
                open.map(|(id, default)| self.ask(id, default.as_deref()))
            }
            Stage::Confirm => {
                if !mem::replace(&mut self.session.summarised, true) {
                    let region = self.session.region.as_ref().and_then(|(_, region)| region.as_deref());
                    let text = texts::summary(&self.answers, region);
                    self.tell(TellKind::Personal, text);
                    return None;
                }
                Some(self.ask(QuestionId::Confirm, Some("yes")))
            }
            Stage::Register => {
                if !mem::replace(&mut self.progress.joining, true) {
                    // Written down first: the answer may be lost.
                    self.session.dirty = true;
                    return None;
                }
                Some(Step::Do(Effect::Register(Box::new(self.registrant(server)))))
            }
            Stage::Service => {
                if self.session.service == Kept::Started {
                    let node_id = self.settings.registration.as_ref()?.node_id.clone();
                    return Some(Step::Do(Effect::AwaitNode { node_id }));
                }
                let keep = match (&self.settings.supervisor, self.answers.get(&QuestionId::Service)) {
                    (Some(_), None) if !self.settings.running => {
                        return Some(self.ask(QuestionId::Service, Some("yes")));
                    }
                    (Some(_), answer) => answer.is_none_or(|answer| answer == "yes"),
                    (None, _) => false,
                };
                Some(Step::Do(Effect::InstallService { server, keep }))
            }
            Stage::Done => {
                let name =
                    self.settings.registration.as_ref().map(|registration| registration.node_id.clone());
                self.progress.done = true;
                self.session.dirty = true;
                // It was not needed, and nothing tells any more of which network it is.
                self.forget_evaluation();
                self.end(End::Done, format!("node {} is set up", name.unwrap_or_default()));
                None
            }
        }
    }
}
