//! `setup`: core's machine of questions and effects, driven from a terminal, from a page in a browser, or by what was
//! said beforehand.
//!
//! What is asked and done, and in which order, is [`consensus_core::setup`]'s business. Here it is shown, read and
//! carried out. The file of how far it came is written before every question: stopping at any of them loses nothing.

mod address;
mod interrupts;
mod page;
mod release;
mod service;
mod terminal;
mod work;

use std::collections::BTreeMap;
use std::io::{Read, stdin};

use consensus_core::doctor::Lock as Held;
use consensus_core::event::Level;
use consensus_core::io::{Finish, Outcome as End, StateFile};
use consensus_core::setup::{
    AGREEMENT, MAX_PROGRESS, Question, QuestionId, Settings, Setup as Machine, Step, Tell, TellKind,
};
use consensus_core::text::printable;

use self::interrupts::Interrupts;
use self::page::Page;
use self::service::Keeper;
use self::terminal::{Terminal, Typed};
use self::work::Work;
use super::{Failure, Setup, Surroundings};
use crate::install;
use crate::runtime_api::Runtime;
use crate::settings::{SettingUp, Sources, UsageError, shell_word};
use crate::state_dir::{FileError, MachineRegistry, StateDir, read_file};
use crate::system;

/// Where a damaged file of progress goes, beside it. An earlier one there is written over.
const SET_ASIDE: &str = "setup-progress.json.damaged";

/// Set for the installed release's program, where that takes the place of this process.
const HANDED_OVER: &str = "CONSENSUS_SETUP_HANDED_OVER";

pub(super) fn run<R: Runtime>(
    runtime: &R,
    sources: &Sources<'_>,
    setup: &Setup,
    surroundings: &mut Surroundings<'_>,
) -> Result<u8, Failure> {
    let told = sources.setting_up()?;
    // Told before anything is done, though it is used much later.
    sources.release_keys()?;
    sources.updating()?;
    if told.given.contains_key(&QuestionId::Server) {
        sources.network()?;
        sources.tunnel()?;
    }
    let state_dir = setup.state_dir();
    let keeper = Keeper::find(sources)?;
    let settings = settings(sources, setup, &state_dir, &keeper, &told)?;
    let running = settings.running;
    let progress = progress(&state_dir)?;
    let machine = Machine::new(progress.as_deref(), settings, system::now());
    let mut machine = machine.map_err(|invalid| Failure::Usage(sources.wrong_answer(&invalid)))?;
    if let Some(finish) = machine.ended() {
        return Ok(setup.finish(finish));
    }
    let asks = told.browser || surroundings.can_ask;
    if !asks {
        nobody_there::<R>(&machine, &told)?;
    }
    // One setup at a time, and none beside a node that runs, but to see whether that is connected. Its folder is made
    // with it.
    let state_dir = setup.open_state_dir()?;
    let lock = if running { None } else { state_dir.lock()? };
    let interrupts = Interrupts::watch().map_err(Failure::internal)?;
    let page = if told.browser { Some(page::<R>(sources, &told, surroundings)?) } else { None };
    let heard = page.as_ref().map(|page| setup.heard_by(page.listener()));
    let setup = heard.as_ref().unwrap_or(setup);
    let face = match &page {
        Some(page) => Face::Page(page),
        None if asks => Face::Terminal(Terminal::default()),
        None => Face::Nobody,
    };
    let (keeper, state_dir, interrupts) = (&keeper, &state_dir, &interrupts);
    let mut front = Front { told: &told, face, interrupts, setup, surroundings, refused: false };
    let page = page.as_ref();
    let mut work = Work { runtime, sources, setup, state_dir, keeper, running, lock, interrupts, page };
    let ended = go_on(&mut machine, &mut front, &mut work);
    if let Some(page) = page {
        page.finish(&match &ended {
            Ok(finish) | Err(Failure::Finish(finish)) => finish.clone(),
            Err(Failure::Usage(error)) => Finish { outcome: End::Internal, message: error.to_string() },
        });
    }
    let finish = ended?;
    if finish.outcome != End::Done {
        setup.note(Level::Info, "next", &format!("go on where this ended with: {}", goes_on::<R>(sources)));
    }
    Ok(setup.finish(&finish))
}

/// Drives the machine to its end.
fn go_on<R: Runtime>(
    machine: &mut Machine,
    front: &mut Front<'_, '_>,
    work: &mut Work<'_, R>,
) -> Result<Finish, Failure> {
    if work.page.is_some_and(|page| !page.begin(work.interrupts)) {
        return Ok(stopped(work.state_dir));
    }
    loop {
        if work.interrupts.came() {
            return Ok(stopped(work.state_dir));
        }
        let step = machine.next(system::now());
        if let Some(page) = work.page {
            page.part(machine.part());
        }
        match step {
            Step::Tell(tell) => front.tell(&tell),
            Step::Ask(question) => match front.answer::<R>(&question)? {
                Some(text) => {
                    let answered = machine.answer(question.id, &text, system::now());
                    front.judged(answered.map_err(|invalid| invalid.to_string()))?;
                }
                None => return Ok(stopped(work.state_dir)),
            },
            Step::Do(effect) => {
                if let Some(page) = work.page {
                    page.work(&effect);
                }
                let outcome = work.carry_out(effect, front.surroundings)?;
                machine.result(outcome, system::now());
            }
            Step::Done(finish) => return Ok(finish),
        }
    }
}

/// The page, or the one that another process has left to this one.
fn page<R: Runtime>(
    sources: &Sources<'_>,
    told: &SettingUp,
    surroundings: &mut Surroundings<'_>,
) -> Result<Page, Failure> {
    let mut stdin = stdin();
    let left = (sources.env)(HANDED_OVER).is_some().then_some(&mut stdin as &mut dyn Read);
    Page::open(&goes_on::<R>(sources), told.browser_port, left, surroundings.stdout)
        .map_err(Failure::internal)
}

/// The command that goes on where this ends.
fn goes_on<R: Runtime>(sources: &Sources<'_>) -> String {
    // As it was called: it may be on nobody's path.
    let called = std::env::args().next().unwrap_or_else(|| R::PROGRAM.to_string());
    let mut words = vec![shell_word(&called), "setup".to_string()];
    words.extend(sources.said_again());
    words.join(" ")
}

fn stopped(state_dir: &StateDir) -> Finish {
    let file = state_dir.path(StateFile::SetupProgress);
    let message = if file.exists() {
        format!("stopped; how far it came is in {}", file.display())
    } else {
        "stopped before anything was done".to_string()
    };
    Finish { outcome: End::Internal, message }
}

/// What is known before the first question.
fn settings(
    sources: &Sources<'_>,
    setup: &Setup,
    state_dir: &StateDir,
    keeper: &Keeper,
    told: &SettingUp,
) -> Result<Settings, Failure> {
    let registry = MachineRegistry::at(&sources.machine_registry()?);
    let machine = registry.load()?.map(|record| (registry.path().display().to_string(), record));
    let registration = state_dir.registration()?;
    Ok(Settings {
        running: registration.is_some() && matches!(state_dir.held(), Held::Held(_)),
        supervisor: keeper.name(),
        given: told.given.clone(),
        email_token: told.email_token.clone(),
        verification_id: told.verification_id.clone(),
        code: told.code.clone(),
        skip_release: told.skip_release,
        address_services: told.address_services.clone(),
        allow_private: sources.allow_private_targets(),
        handed_over: (sources.env)(HANDED_OVER).is_some(),
        release: install::own_manifest().map(|manifest| manifest.version),
        state_dir: setup.common.state_dir.to_string_lossy().into_owned(),
        machine,
        registration,
        join_auth: state_dir.join_auth()?,
    })
}

/// The file of progress. One that is larger than any, or no file at all, is as good as one that is damaged.
fn progress(state_dir: &StateDir) -> Result<Option<Vec<u8>>, FileError> {
    // What cannot be read whole is cut, and so cannot be understood; the machine has it set aside.
    let path = state_dir.path(StateFile::SetupProgress);
    match read_file(&path, MAX_PROGRESS) {
        Ok(data) => Ok(data.map(|data| data.to_vec())),
        Err(_) if path.metadata().is_ok_and(|file| !file.is_file() || file.len() > MAX_PROGRESS as u64) => {
            Ok(Some(Vec::new()))
        }
        Err(error) => Err(error),
    }
}

/// Nobody can be asked: all that is missing is named at once.
fn nobody_there<R: Runtime>(machine: &Machine, told: &SettingUp) -> Result<(), Failure> {
    let mut missing = Vec::new();
    if !told.yes {
        missing.push(format!("--yes (you agree to what `{} setup --agreement` prints)", R::PROGRAM));
    }
    missing.extend(machine.missing().into_iter().filter_map(Sources::names_of));
    if missing.is_empty() {
        return Ok(());
    }
    let text = format!("missing, and there is no terminal to ask on: {}", missing.join(", "));
    Err(Failure::Usage(UsageError::new(&text)))
}

/// The options with those that setup found out.
pub(super) fn with(options: &BTreeMap<String, String>, more: &[(&str, &str)]) -> BTreeMap<String, String> {
    let mut all = options.clone();
    all.extend(more.iter().map(|(name, value)| ((*name).to_string(), (*value).to_string())));
    all
}

/// Where somebody is asked.
enum Face<'a> {
    Terminal(Terminal),
    Page(&'a Page),
    /// What was said beforehand has to do.
    Nobody,
}

/// Who answers.
struct Front<'a, 'b> {
    told: &'a SettingUp,
    face: Face<'a>,
    interrupts: &'a Interrupts,
    setup: &'a Setup,
    surroundings: &'a mut Surroundings<'b>,
    /// Whether the last answer could not be taken.
    refused: bool,
}

impl Front<'_, '_> {
    fn tell(&mut self, tell: &Tell) {
        if let Face::Page(page) = &self.face {
            return page.tell(tell);
        }
        let Face::Terminal(terminal) = &self.face else {
            let level = match tell.kind {
                TellKind::Text => Level::Info,
                TellKind::Warning => Level::Warn,
                TellKind::Personal if self.setup.log.is_text() => Level::Info,
                // A log is kept, and headings are for eyes.
                TellKind::Personal | TellKind::Heading => return,
            };
            if tell.text != AGREEMENT {
                self.setup.log.note(level, "setup", "setup", &tell.text, &[]);
            }
            return;
        };
        let text = match tell.kind {
            TellKind::Heading => format!("\n== {} ==\n\n", tell.text),
            TellKind::Text | TellKind::Personal => terminal.wrap("", &tell.text),
            TellKind::Warning => terminal.wrap("! ", &tell.text),
        };
        // A terminal that takes nothing is no reason to stop.
        let _ = self.surroundings.stderr.write_all(text.as_bytes());
    }

    /// The text of an answer; `None` where the operator stops here.
    fn answer<R: Runtime>(&mut self, question: &Question) -> Result<Option<String>, Failure> {
        let beforehand = question.unattended().filter(|_| self.told.yes && question.problem.is_none());
        if let Some(text) = beforehand {
            return Ok(Some(text.to_string()));
        }
        let terminal = match &mut self.face {
            Face::Terminal(terminal) => terminal,
            Face::Page(page) => return Ok(page.ask(question, self.interrupts)),
            Face::Nobody => {
                return match question.unattended().filter(|_| self.told.yes) {
                    Some(text) => Ok(Some(text.to_string())),
                    None => Err(unanswered::<R>(question)),
                };
            }
        };
        let mut text = String::new();
        for reuse in &question.reuse {
            text.push_str(&terminal.wrap("  - ", &reuse.text));
        }
        // Who has just been told what is wrong with an answer knows why there was a question.
        if let Some(problem) = question.problem.as_ref().filter(|_| !self.refused) {
            text.push_str(&terminal.wrap("! ", problem));
        }
        text.push_str(&terminal.prompt(question));
        let out = &mut *self.surroundings.stderr;
        let _ = out.write_all(text.as_bytes()).and_then(|()| out.flush());
        match terminal.read(self.interrupts) {
            Typed::Line(line) => Ok(Some(line)),
            Typed::Stop => {
                // The prompt's line is still open.
                let _ = writeln!(self.surroundings.stderr);
                Ok(None)
            }
        }
    }

    /// Tells somebody that their answer cannot be taken. Of what was said beforehand, none is left then.
    fn judged(&mut self, answered: Result<(), String>) -> Result<(), Failure> {
        self.refused = answered.is_err();
        match (&self.face, answered) {
            (Face::Page(page), answered) => page.judged(answered),
            (_, Ok(())) => {}
            (Face::Terminal(terminal), Err(why)) => {
                let _ = self.surroundings.stderr.write_all(terminal.wrap("! ", &why).as_bytes());
            }
            (Face::Nobody, Err(why)) => return Err(Failure::Usage(UsageError::new(&why))),
        }
        Ok(())
    }
}

/// A question that nobody is there to answer.
fn unanswered<R: Runtime>(question: &Question) -> Failure {
    let names = Sources::names_of(question.id).unwrap_or_else(|| question.id.as_str().to_string());
    let problem = question.problem.as_ref().map(|why| format!(": {}", printable(why))).unwrap_or_default();
    if question.id == QuestionId::Code {
        let text = format!(
            "a code was sent by email{problem}; go on with the same command and {names} CODE ({})",
            R::PROGRAM
        );
        return Failure::new(End::NotRegistered, text);
    }
    Failure::Usage(UsageError::new(&format!("missing: {names}{problem}")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::state_dir::tests::Scratch;

    #[test]
    fn what_is_no_file_of_progress_in_the_place_of_one_is_set_aside_as_a_damaged_one_is() {
        let scratch = Scratch::new();
        let state = StateDir::at(scratch.path());
        let path = state.path(StateFile::SetupProgress);
        let found = || progress(&state).map_err(|error| error.to_string());
        assert_eq!(found(), Ok(None));
        std::fs::write(&path, "{}").unwrap();
        assert_eq!(found(), Ok(Some(b"{}".to_vec())));
        let damaged = Ok(Some(Vec::new()));
        std::fs::write(&path, vec![b' '; MAX_PROGRESS + 1]).unwrap();
        assert_eq!(found(), damaged);
        std::fs::remove_file(&path).unwrap();
        std::os::unix::fs::symlink("/dev/null", &path).unwrap();
        assert_eq!(found(), damaged);
        std::fs::remove_file(&path).unwrap();
        std::fs::create_dir(&path).unwrap();
        assert_eq!(found(), damaged);
    }
}
