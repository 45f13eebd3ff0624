//! The machine of one node: its files, its install directory, the wrapper that starts what is in it, and the effects that
//! the node wants carried out.

use std::time::Duration;

use consensus_core::data_plane::replay::Before;
use consensus_core::io::{
    Effect, EffectId, EffectResult, FetchError, FetchErrorKind, Input, Outcome, Response, StateFile,
};
use consensus_core::node::{Config, Node};
use consensus_core::release::manifest::Manifest;
use consensus_core::state::{Jwk, Registration};
use consensus_core::tunnel::Mode;
use consensus_core::update::install::Order;
use consensus_core::update::{Install, Settings as Updates, Way};

use super::super::Planted;
use super::super::directory::{Chosen, Directory};
use super::super::plan::{Fault, QUIET, Worth};
use super::super::sham::Sham;
use super::super::sockets::Sockets;
use super::{PROBATION, Process, What, World};

impl World<'_> {
    /// The wrapper starts what is installed.
    pub(super) fn start(&mut self) {
        if self.process.is_some() {
            return;
        }
        let Some(chosen) = self.directory.choose() else {
            return self.violated("there is no release that can be started");
        };
        if let Some(given_up) = &chosen.given_up {
            self.given_up(&given_up.clone());
        }
        self.processes += 1;
        self.figures.counters.processes += 1;
        let number = self.processes;
        let (manifest, worth) = self.release(&chosen.version.to_string());
        if self.has_planted(Planted::ForgottenTickets) && self.files.contains_key(&StateFile::SpentTickets) {
            let empty = br#"{"clean":true,"first":0,"tickets":[]}"#;
            self.files.insert(StateFile::SpentTickets, empty.to_vec());
        }
        let spent = self.files.get(&StateFile::SpentTickets);
        let mut registration = Registration::new(&self.node_id);
        registration.orchestrator_pubkey = Some(Jwk::of_key(self.server.public_key(), "k"));
        let standing = self.directory.standing(&chosen.release);
        let config = Config {
            mode: Some(Mode::Control),
            tunnel_url: "wss://network.example/node/tunnel".into(),
            server_key: Some(self.server.public_key()),
            identity_seed: self.seed.into(),
            candidate_id: None,
            registration: Some(registration),
            manifest,
            limits: self.limits.clone(),
            allow_private_targets: false,
            spent_before: spent.map_or(Before::Never, |file| Before::from_file(file)),
            updates: Updates { way: Way::Installer, standing, ..Updates::default() },
        };
        if chosen.on_probation {
            self.may_be_killed_within(Duration::from_secs(1));
            self.after(PROBATION, What::ProbationOver { process: number });
        }
        if worth == Worth::Crashes {
            let after = self.dice.millis(5, 40);
            self.after(after, What::Crash { process: number });
        }
        let node = Node::new(config, Sham, self.dice.bytes(), self.node_now());
        self.say(&format!("process {number} of release {} starts", chosen.release));
        self.process = Some(Process {
            number,
            node,
            release: chosen,
            worth,
            wait: None,
            sockets: Sockets::default(),
            written: self.now,
            installing: None,
            sessions: 0,
            failures: 0,
            lost: None,
            is_up: false,
            is_stopping: false,
            is_late: false,
            finish: None,
            down: Duration::from_secs(1),
        });
        self.disturb(self.now);
        self.feed(Input::Tick);
    }

    pub(super) fn release(&self, version: &str) -> (Manifest, Worth) {
        let mut releases = self.plan.releases.iter();
        match releases.find(|release| release.manifest.version == version) {
            Some(release) => (release.manifest.clone(), release.worth),
            None => (self.plan.first.clone(), Worth::Good),
        }
    }

    pub(super) fn given_up(&mut self, release: &str) {
        self.say(&format!("the wrapper gives up {release}"));
        self.figures.counters.updates_rolled_back += 1;
        let version = release.split('-').next().unwrap_or_default();
        if self.release(version).1 == Worth::Good {
            self.figures.counters.good_rolled_back += 1;
        }
    }

    pub(super) fn probation_over(&mut self, number: u32) {
        let Some(process) = self.process.as_mut().filter(|process| process.number == number) else { return };
        if !self.directory.is_good(&process.release.release) {
            process.is_late = true;
            process.is_stopping = true;
            self.feed(Input::Stop);
        }
    }

    /// The process is no more. What it had not finished stays as it is.
    pub(super) fn end_process(&mut self, with_the_machine: bool) {
        let Some(process) = self.process.take() else { return };
        if let Some(install) = &process.installing {
            let effects = self.dice.below(30) as usize;
            self.figures.counters.installs_cut += 1;
            let (manifest, _) = self.release(&install.version);
            // Cut off, or done before it could be told.
            let _ = self.install(&manifest, Some(install), effects);
        }
        for link in self.living_links() {
            if with_the_machine {
                self.silence(link);
            }
            self.node_lets_go(link);
        }
        self.tidy();
        let is_clean = process.finish.is_some();
        let is_updating = process.finish.is_some_and(|finish| finish.outcome == Outcome::Updating);
        let Chosen { release, on_probation, .. } = &process.release;
        let is_good = self.directory.is_good(release);
        if process.is_late && !is_good {
            self.directory.give_up(release, "it did not reconnect within 120 s", true);
            self.given_up(&release.clone());
        }
        if self.has_planted(Planted::LostPrograms) && is_updating {
            self.directory = Directory::default();
        }
        self.check_bootable();
        // On the way to another release, or to the same once more, it is the wrapper that starts; else the supervisor.
        let is_wrappers = is_updating || (*on_probation && !is_clean);
        let down = if is_wrappers { Duration::from_secs(1) } else { process.down };
        self.after(down, What::Start);
        self.disturb(self.now + down);
    }

    pub(super) fn check_bootable(&mut self) {
        if !self.directory.is_bootable() {
            self.violated("neither the current release nor the last good one can be started");
        }
    }

    pub(super) fn install(
        &mut self,
        manifest: &Manifest,
        install: Option<&Install>,
        effects: usize,
    ) -> Result<(), String> {
        let sha256 = install.map_or([0; 32], |install| install.sha256);
        let order = Order {
            version: manifest.version.parse().map_err(|_| manifest.version.clone())?,
            sha256,
            update_id: install.map(|install| install.update_id.clone()),
            probation: PROBATION.as_secs(),
            now: self.node_now().unix_seconds(),
            process: self.processes,
            own: self.process.as_ref().map(|process| process.release.release.clone()),
            retention: 3,
            allow_older: false,
        };
        let result = self.directory.install(&order, effects);
        if self.directory.releases() > 3 + 2 {
            self.violated(
                "more releases are kept than are to be, the current and the last good one among them",
            );
        }
        self.check_bootable();
        result
    }

    pub(super) fn perform(&mut self, id: EffectId, effect: Effect) {
        let Some(process) = &mut self.process else { return };
        let number = process.number;
        let after = match &effect {
            Effect::Fetch(fetch) => {
                let path = fetch.target.path_and_query.clone();
                let (after, result) = self.fetch(&path);
                let result = Box::new(EffectResult::Fetched(result));
                return self.after(after, What::Fetched { process: number, id, result });
            }
            Effect::Write { .. } | Effect::Remove { .. } => {
                // One after the other, on a disk that is slow at times.
                let time = if self.dice.happens(95) { (1, 30) } else { (200, 1500) };
                process.written = process.written.max(self.now) + self.dice.millis(time.0, time.1);
                process.written.saturating_sub(self.now)
            }
            Effect::Download(_) => self.dice.millis(1000, 20_000),
            Effect::Install(install) => {
                process.installing = Some(install.clone());
                let time = self.dice.millis(200, 5000);
                self.may_be_killed_within(time);
                time
            }
            Effect::Inspect { .. }
            | Effect::Measure(_)
            | Effect::ConfirmRelease
            | Effect::AcknowledgeRollback { .. } => self.dice.millis(10, 200),
        };
        self.after(after, What::Effect { process: number, id, effect: Box::new(effect) });
    }

    /// At the moments that count it is killed more often than at others.
    pub(super) fn may_be_killed_within(&mut self, time: Duration) {
        if self.now + QUIET < self.plan.length && self.dice.happens(4) {
            let after = self.dice.millis(0, time.as_millis() as u64);
            let fault = if self.dice.happens(50) { Fault::Kill } else { Fault::PowerCut };
            self.after(after, What::Fault(fault(Duration::from_secs(1))));
        }
    }

    /// What a target answers, and when. A ticket whose request is fetched was accepted.
    pub(super) fn fetch(&mut self, path: &str) -> (Duration, Result<Response, FetchError>) {
        if let Some(ticket) = path.strip_prefix("/t/").and_then(|rest| rest.parse().ok()) {
            self.ticket_accepted(ticket);
        }
        if self.dice.happens(3) {
            let error = FetchError { kind: FetchErrorKind::Connect, detail: "refused".into() };
            return (self.dice.millis(10, 3000), Err(error));
        }
        // Some do not answer in the time that a node has.
        let after = if self.dice.happens(2) { Duration::from_secs(45) } else { self.dice.millis(20, 2000) };
        let body = vec![b'x'; self.dice.below(1024) as usize];
        let headers = vec![("content-type".to_owned(), "text/plain".to_owned())];
        (after, Ok(Response { status: 200, reason: "OK".into(), headers, body }))
    }

    /// Carries out what has come to its end.
    pub(super) fn carry_out(&mut self, effect: Effect) -> EffectResult {
        match effect {
            Effect::Write { file, data } => {
                self.files.insert(file, data);
                EffectResult::Written(Ok(()))
            }
            Effect::Remove { file } => {
                self.files.remove(&file);
                EffectResult::Written(Ok(()))
            }
            Effect::Download(manifest) => EffectResult::Downloaded(if self.dice.happens(95) {
                Ok(format!("/state/downloads/{}.tgz", manifest.version))
            } else {
                Err("the connection broke".into())
            }),
            Effect::Inspect { artifact } => {
                let version = artifact.trim_start_matches("/state/downloads/").trim_end_matches(".tgz");
                let (mut manifest, worth) = self.release(version);
                if worth == Worth::Mislabelled {
                    manifest.version = "0.9.0".into();
                }
                EffectResult::Inspected(Ok(Box::new(manifest)))
            }
            Effect::Install(install) => {
                let (manifest, _) = self.release(&install.version);
                if let Some(process) = &mut self.process {
                    process.installing = None;
                }
                EffectResult::Installed(self.install(&manifest, Some(&install), usize::MAX))
            }
            Effect::ConfirmRelease => {
                let running = self.process.as_ref().map(|process| process.release.release.clone());
                let result = self.directory.confirm(&running.unwrap_or_default());
                self.check_bootable();
                result
            }
            Effect::AcknowledgeRollback { is_excused } => self.directory.acknowledge(is_excused),
            Effect::Measure(_) => EffectResult::Measured(Err("nothing is measured here".into())),
            Effect::Fetch(_) => {
                let error = FetchError { kind: FetchErrorKind::Busy, detail: String::new() };
                EffectResult::Fetched(Err(error))
            }
        }
    }
}
