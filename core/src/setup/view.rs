//! What the page of a setup shows: kept as setup goes on, and told as JSON whenever it changes.
//!
//! Everything in it is text for people, shown as text; all of it is bounded.

use alloc::collections::VecDeque;
use alloc::string::{String, ToString as _};
use alloc::vec::Vec;

use serde::Serialize;

use super::{AGREEMENT, Effect, Kind, Purpose, Question, QuestionId, Tell, TellKind};
use crate::event::Event;
use crate::io::{Finish, Outcome};
use crate::text::printable;

/// The name of what is asked before anything is done: whether to begin.
pub const WELCOME: &str = "welcome";

/// Lines of news that are kept.
const MAX_NEWS: usize = 100;

/// A line of news is cut there, in bytes. The summary before the registration is the longest.
const MAX_LINE: usize = 4 * 1024;

/// Actions of an evaluation that are kept. The network asks for about a dozen.
const MAX_ACTIONS: usize = 64;

/// Windows that are kept: the last of a measurement that has more.
const MAX_WINDOWS: usize = 240;

/// What is shown.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct View {
    /// Another one after every change.
    pub version: u64,
    /// For the operator to type: what goes on where this ends.
    pub command: String,
    /// Where setup is: [`Setup::part`](super::Setup::part).
    pub part: &'static str,
    /// What was told, oldest first.
    pub news: VecDeque<News>,
    /// What is asked now.
    pub question: Option<Asked>,
    /// What is being done now, in words.
    pub work: Option<&'static str>,
    /// The release that is being downloaded.
    pub download: Option<Download>,
    /// What the network had measured, in its order.
    pub actions: VecDeque<Action>,
    /// Windows of the long measurement: requests a second of the node's own time.
    pub windows: VecDeque<f64>,
    /// How it ended.
    pub finish: Option<Ended>,
    #[serde(skip)]
    asked: u64,
}

/// A line, or the heading of those after it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct News {
    /// `heading`, `text` or `warning`.
    pub kind: &'static str,
    /// It has several lines where it is a summary.
    pub text: String,
}

/// A question.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Asked {
    /// Counts questions: an answer names the one it is for.
    pub number: u64,
    /// [`QuestionId::as_str`], or [`WELCOME`].
    pub id: &'static str,
    /// As [`Question::text`].
    pub text: &'static str,
    /// Whether its answer is yes or no.
    pub yes_no: bool,
    /// As [`Question::default`].
    pub default: Option<String>,
    /// Why it is asked again: of the network, or of the last answer, which could not be taken.
    pub problem: Option<String>,
    /// As [`Question::reuse`].
    pub reuse: Vec<String>,
    /// What is agreed to; of [`QuestionId::Agreement`].
    pub agreement: Option<&'static str>,
}

/// How far a download is, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Download {
    /// So many are there.
    pub received: u64,
    /// Of so many.
    pub total: Option<u64>,
}

/// Something measured.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Action {
    /// Its name (protocol.md section 5).
    pub name: String,
    /// How far it is, from 0 to 100.
    pub percent: u8,
    /// Whether it gave a result; nothing while it is under way.
    pub ok: Option<bool>,
    /// Its headline figure, or why there is none.
    pub summary: String,
}

/// The end.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Ended {
    /// As a log names it.
    pub outcome: Outcome,
    /// One sentence.
    pub message: String,
}

impl View {
    /// The first: it asks whether to begin.
    #[must_use]
    pub fn new(command: &str) -> Self {
        let question = Asked {
            number: 0,
            id: WELCOME,
            text: "Begin",
            yes_no: false,
            default: None,
            problem: None,
            reuse: Vec::new(),
            agreement: None,
        };
        let command = command.to_string();
        Self { version: 1, command, part: WELCOME, question: Some(question), ..Self::default() }
    }

    /// The page of a setup that begins without being asked, because another process has become this one.
    #[must_use]
    pub fn handed_over(command: &str) -> Self {
        Self { question: None, part: "release", ..Self::new(command) }
    }

    /// Where setup is now.
    pub fn part(&mut self, part: &'static str) {
        if part != self.part {
            self.part = part;
            self.version += 1;
        }
    }

    /// Something that setup tells.
    pub fn tell(&mut self, tell: &Tell) {
        // Shown with its question, where it is read.
        if tell.text != AGREEMENT {
            let kind = match tell.kind {
                TellKind::Heading => "heading",
                TellKind::Text | TellKind::Personal => "text",
                TellKind::Warning => "warning",
            };
            self.add(kind, &tell.text);
        }
    }

    /// Something that setup asks.
    pub fn ask(&mut self, question: &Question) {
        self.asked += 1;
        self.question = Some(Asked {
            number: self.asked,
            id: question.id.as_str(),
            text: question.text,
            yes_no: question.kind == Kind::YesNo,
            default: question.default.clone(),
            problem: question.problem.clone(),
            reuse: question.reuse.iter().map(|reuse| reuse.text.clone()).collect(),
            agreement: (question.id == QuestionId::Agreement).then_some(AGREEMENT),
        });
        self.work = None;
        self.version += 1;
    }

    /// The answer was taken.
    pub fn taken(&mut self) {
        self.question = None;
        self.version += 1;
    }

    /// The answer cannot be taken; the question stands.
    pub fn refused(&mut self, why: &str) {
        if let Some(question) = &mut self.question {
            question.problem = Some(why.to_string());
            self.version += 1;
        }
    }

    /// Something that setup does.
    pub fn work(&mut self, effect: &Effect) {
        self.work = match effect {
            // Done before anybody reads it.
            Effect::SetProgressAside | Effect::ForgetEvaluation | Effect::WriteProgress(_) => return,
            Effect::InstallRelease { .. } => Some("Asking which release the network requires"),
            Effect::HandOver { .. } => Some("Going on in the installed release"),
            Effect::FindAddress { .. } => Some("Asking for the public address of this machine"),
            Effect::Fetch { purpose: Purpose::Region, .. } => Some("Asking the network for the region"),
            Effect::Fetch { purpose: Purpose::EmailStart, .. } => Some("Having a code sent"),
            Effect::Fetch { purpose: Purpose::EmailVerify, .. } => Some("Having the code checked"),
            Effect::Evaluate { .. } => Some("The network measures this machine"),
            Effect::Register(_) => Some("Registering this machine"),
            Effect::InstallService { .. } => Some("Seeing to it that the node runs"),
            Effect::AwaitNode { .. } => Some("Waiting until the node is connected"),
        };
        self.download = None;
        if matches!(effect, Effect::Evaluate { .. }) {
            self.actions.clear();
            self.windows.clear();
        }
        self.version += 1;
    }

    /// So much of a release is there.
    pub fn downloaded(&mut self, received: u64, total: Option<u64>) {
        self.download = Some(Download { received, total });
        self.version += 1;
    }

    /// Something that a node tells, of those that setup runs.
    pub fn event(&mut self, event: &Event) {
        match event {
            Event::EvalStarted { action } => {
                if self.actions.len() == MAX_ACTIONS {
                    self.actions.pop_front();
                }
                let (name, summary) = (printable(action), String::new());
                self.actions.push_back(Action { name, percent: 0, ok: None, summary });
                if action == "benchmark_sustained" {
                    self.windows.clear();
                }
                self.version += 1;
            }
            Event::EvalFinished { action, ok, summary, .. } => {
                if let Some(known) = self.under_way(action) {
                    (known.percent, known.ok, known.summary) = (100, Some(*ok), printable(summary));
                    self.version += 1;
                }
            }
            Event::EvalWaiting { .. } | Event::EvalVerdict { admissible: true, .. } => {
                self.add("text", &event.to_string());
            }
            Event::Connected { .. } => self.add("text", "Connected to the network."),
            Event::Disconnected { .. } | Event::EvalVerdict { .. } | Event::ServerError { .. } => {
                self.add("warning", &event.to_string());
            }
            // The rest is for a log.
            _ => {}
        }
    }

    /// How far an action is, from 0 to 1.
    pub fn progress(&mut self, action: &str, fraction: f32) {
        // A cast from a float saturates, and a NaN is 0.
        let percent = ((fraction * 100.0) as u8).min(100);
        if let Some(known) = self.under_way(action).filter(|known| known.percent != percent) {
            known.percent = percent;
            self.version += 1;
        }
    }

    /// A window is whole.
    pub fn window(&mut self, node_rps: f64) {
        if self.windows.len() == MAX_WINDOWS {
            self.windows.pop_front();
        }
        self.windows.push_back(node_rps);
        self.version += 1;
    }

    /// Something that the operator should look at.
    pub fn warning(&mut self, text: &str) {
        self.add("warning", text);
    }

    /// How it ended.
    pub fn finish(&mut self, finish: &Finish) {
        (self.question, self.work, self.download) = (None, None, None);
        self.finish = Some(Ended { outcome: finish.outcome, message: finish.message.clone() });
        self.version += 1;
    }

    /// As JSON.
    #[must_use]
    pub fn to_json(&self) -> Vec<u8> {
        // Texts and numbers that are finite: there is nothing that could not be written.
        serde_json::to_vec(self).unwrap_or_default()
    }

    fn under_way(&mut self, action: &str) -> Option<&mut Action> {
        self.actions.iter_mut().rev().find(|known| known.name == action && known.ok.is_none())
    }

    fn add(&mut self, kind: &'static str, text: &str) {
        if self.news.len() == MAX_NEWS {
            self.news.pop_front();
        }
        let end = (0..=text.len().min(MAX_LINE)).rev().find(|at| text.is_char_boundary(*at));
        let text = text.get(..end.unwrap_or_default()).unwrap_or_default().to_string();
        self.news.push_back(News { kind, text });
        self.version += 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::format;
    use serde_json::{Value, json};

    fn json(view: &View) -> Value {
        serde_json::from_slice(&view.to_json()).unwrap()
    }

    fn question(id: QuestionId) -> Question {
        let default = Some("9090".to_string());
        Question { id, kind: Kind::Port, text: "Port", default, problem: None, reuse: Vec::new() }
    }

    #[test]
    fn it_asks_whether_to_begin_then_what_setup_asks() {
        let mut view = View::new("node");
        assert_eq!(json(&view)["question"]["id"], WELCOME);
        assert_eq!(json(&View::handed_over("node"))["question"], Value::Null);
        view.taken();
        view.ask(&question(QuestionId::Port));
        let shown = json(&view)["question"].clone();
        assert_eq!(
            shown,
            json!({"number": 1, "id": "port", "text": "Port", "yes_no": false, "default": "9090", "problem": null, "reuse": [],
                   "agreement": null})
        );
        view.refused("no");
        assert_eq!(json(&view)["question"]["problem"], "no");
        view.taken();
        view.ask(&question(QuestionId::Agreement));
        assert_eq!(json(&view)["question"]["agreement"], AGREEMENT);
        assert_eq!(json(&view)["question"]["number"], 2);
    }

    #[test]
    fn every_change_has_another_version_and_what_is_no_change_has_none() {
        let mut view = View::new("node");
        let started = Event::EvalStarted { action: "a".into() };
        let changes: [&dyn Fn(&mut View); 8] = [
            &|view| view.part("email"),
            &|view| view.tell(&Tell { kind: TellKind::Text, text: "t".into() }),
            &|view| view.work(&Effect::Evaluate { server: String::new() }),
            &|view| view.event(&started),
            &|view| view.progress("a", 0.5),
            &|view| view.window(1.0),
            &|view| view.downloaded(1, None),
            &|view| view.finish(&Finish { outcome: Outcome::Done, message: "m".into() }),
        ];
        for change in changes {
            let before = view.clone();
            change(&mut view);
            assert!(view.version > before.version, "{view:?}");
        }
        let before = view.clone();
        view.part("email");
        view.progress("a", 0.5001);
        view.progress("unknown", 0.7);
        view.tell(&Tell { kind: TellKind::Text, text: AGREEMENT.into() });
        view.work(&Effect::WriteProgress(Vec::new()));
        view.event(&Event::Stopping);
        assert_eq!(view, before);
    }

    #[test]
    fn an_action_goes_on_to_its_result() {
        let mut view = View::new("node");
        let event = |view: &mut View, ok: Option<bool>| match ok {
            None => view.event(&Event::EvalStarted { action: "benchmark_cpu".into() }),
            Some(ok) => view.event(&Event::EvalFinished {
                action: "benchmark_cpu".into(),
                ok,
                summary: "s\u{1b}[2J".into(),
                duration_ms: 1,
            }),
        };
        event(&mut view, None);
        view.progress("benchmark_cpu", f32::NAN);
        view.progress("benchmark_cpu", 7.0);
        event(&mut view, Some(true));
        event(&mut view, None);
        view.progress("benchmark_cpu", 0.25);
        assert_eq!(
            json(&view)["actions"],
            json!([{"name": "benchmark_cpu", "percent": 100, "ok": true, "summary": "s [2J"},
                   {"name": "benchmark_cpu", "percent": 25, "ok": null, "summary": ""}])
        );
    }

    #[test]
    fn it_is_bounded_whatever_comes() {
        let mut view = View::new("node");
        let long = "\u{e9}".repeat(MAX_LINE);
        for _ in 0..MAX_WINDOWS + 10 {
            view.warning(&long);
            view.window(1.5);
            view.event(&Event::EvalStarted { action: long.clone() });
        }
        assert_eq!((view.news.len(), view.actions.len()), (MAX_NEWS, MAX_ACTIONS));
        assert_eq!(view.windows.len(), MAX_WINDOWS);
        assert!(view.to_json().len() < MAX_NEWS * (MAX_LINE + 64) + MAX_ACTIONS * 4096 + 16 * 1024);
        assert!(!format!("{:?}", view.news[0].text).is_empty());
    }
}
