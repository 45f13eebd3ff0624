//! The node, its install directory, and whoever keeps it running.

use std::fs;
use std::io::{self, Write as _};
use std::os::unix::fs::symlink;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use consensus_core::crypto::pure::Pure;
use consensus_core::crypto::{Crypto as _, Drbg};
use consensus_core::release::manifest::Manifest;
use consensus_core::wire::hex;
use serde_json::{Value, json};

use super::artifacts::Artifacts;
use super::fault::{Defect, Fault, Victim};
use crate::network::{NODE_ID, Network};
use crate::orchestrator::Record;
use crate::process::NodeProcess;
use crate::release;

/// The release that the node begins with.
const FIRST: &str = "1.0.0-1-1";

/// The node's program, for releases that call it.
const COPY: &str = "program";

/// Seconds that a new release has to reconnect.
const PROBATION: &str = "4";

/// Releases that are kept, beside the one that runs and the last good one.
const RETENTION: usize = 3;

/// The node is back before this, whatever happened.
const BACK: Duration = Duration::from_secs(90);

/// How often is looked.
const POLL: Duration = Duration::from_millis(10);

/// For how long the disk stays full after the release was to be installed.
const FULL: Duration = Duration::from_secs(3);

/// A server that sees a download stall waits so long before it sends another prepare.
const PATIENCE: Duration = Duration::from_secs(1);

/// What came of an update.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    /// The release that was offered runs.
    New,
    /// The one before it runs.
    Old,
}

/// The program that a release must have.
enum Program {
    Good,
    Bad(Vec<u8>),
}

pub(super) struct Site {
    network: Network,
    artifacts: Artifacts,
    dir: PathBuf,
    wrapper: PathBuf,
    program: Vec<u8>,
    /// What must not change: files of the state directory.
    kept: Vec<(PathBuf, Vec<u8>)>,
    process: Option<NodeProcess>,
    /// The supervisor does not end what the wrapper leaves, the next time.
    leaves: bool,
    /// Of the release that proved itself last.
    version: String,
    /// Where in the journal this update began.
    begun: usize,
    /// What an update takes here that nothing disturbs.
    usual: Duration,
}

/// What an update is taken to take before one was seen.
const USUAL: Duration = Duration::from_millis(500);

impl Site {
    pub(super) fn new(program: &Path) -> io::Result<Self> {
        let network = Network::start(false)?;
        network.register_node()?;
        let dir = network.home.root().join("runtime");
        let bin = dir.join("releases").join(FIRST).join("bin");
        fs::create_dir_all(&bin)?;
        fs::copy(program, bin.join("consensus-node"))?;
        fs::copy(program, network.home.root().join(COPY))?;
        for name in ["current", "last-good"] {
            symlink(format!("releases/{FIRST}"), dir.join(name))?;
        }
        let wrapper = dir.join("run-node.sh");
        fs::copy(Path::new(env!("CARGO_MANIFEST_DIR")).join("../scripts/run-node.sh"), &wrapper)?;
        let state = network.home.state_dir();
        let kept = ["config.json", "keys/node.key", "keys/node.pub"]
            .into_iter()
            .map(|name| Ok((state.join(name), fs::read(state.join(name))?)))
            .collect::<io::Result<_>>()?;
        Ok(Self {
            artifacts: Artifacts::start()?,
            network,
            dir,
            wrapper,
            program: fs::read(program)?,
            kept,
            process: None,
            leaves: false,
            version: String::from("1.0.0"),
            begun: 0,
            usual: USUAL,
        })
    }

    /// What a supervisor does: starts the wrapper where it does not run, and nothing it left behind runs either.
    fn tend(&mut self) -> Result<(), String> {
        if let Some(process) = &mut self.process {
            if process.is_running() {
                return Ok(());
            }
            if !std::mem::take(&mut self.leaves) {
                signal("KILL", &format!("-{}", process.pid()));
            }
        }
        let mut command = self.network.node(&self.wrapper, ["control", "--allow-private-targets"]);
        command
            .env("CONSENSUS_NODE_INSTALL_DIR", &self.dir)
            .env("CONSENSUS_NODE_PROBATION", PROBATION)
            .env("CONSENSUS_NODE_STOP_SECONDS", "3")
            .env("CONSENSUS_NODE_RELEASE_RETENTION", RETENTION.to_string())
            .process_group(0);
        self.process = Some(NodeProcess::spawn(command).map_err(|error| format!("the wrapper: {error}"))?);
        Ok(())
    }

    /// Waits until a release that has proved itself serves.
    pub(super) fn settle(&mut self) -> Result<(), String> {
        let end = Instant::now() + BACK;
        while Instant::now() < end {
            self.tend()?;
            if self.serves() {
                return Ok(());
            }
            std::thread::sleep(POLL);
        }
        Err(format!("nothing serves after {} s", BACK.as_secs()))
    }

    /// Whether the current release has proved itself, runs, and does what a node is for.
    fn serves(&self) -> bool {
        let (Some(current), Some(good)) = (self.target("current"), self.target("last-good")) else {
            return false;
        };
        if current != good || self.running().is_none_or(|(_, program)| !program.starts_with(&current)) {
            return false;
        }
        let request = json!({ "target_url": self.network.upstream.url("/b/100"), "method": "GET" });
        let answer = self.network.post(&format!("/node/tunnel/proxy/{NODE_ID}"), &request);
        answer.is_ok_and(|answer| answer.status == 200)
    }

    fn target(&self, name: &str) -> Option<PathBuf> {
        fs::canonicalize(self.dir.join(name)).ok()
    }

    /// The node's process and its program.
    fn running(&self) -> Option<(String, PathBuf)> {
        let wrapper = self.process.as_ref()?.pid();
        let children = fs::read_to_string(format!("/proc/{wrapper}/task/{wrapper}/children")).ok()?;
        children.split_whitespace().find_map(|pid| {
            let program = fs::read_link(format!("/proc/{pid}/exe")).ok()?;
            program.starts_with(&self.dir).then(|| (pid.to_owned(), program))
        })
    }

    fn kill(&mut self, victim: Victim) {
        let Some(wrapper) = self.process.as_ref().map(NodeProcess::pid) else { return };
        match victim {
            Victim::Node => {
                if let Some((pid, _)) = self.running() {
                    signal("KILL", &pid);
                }
            }
            Victim::Wrapper | Victim::Keeper => {
                self.leaves = victim == Victim::Keeper;
                signal("KILL", &wrapper.to_string());
            }
            Victim::Both => signal("KILL", &format!("-{wrapper}")),
        }
    }

    /// A release of that version, and its manifest with where it is.
    fn offer(&self, version: &str, fault: Fault) -> io::Result<Manifest> {
        let program = match fault {
            Fault::Bad(defect) => Program::Bad(self.defective(defect)),
            _ => Program::Good,
        };
        let program = match &program {
            Program::Good => &self.program,
            Program::Bad(bytes) => bytes,
        };
        let mut manifest = release::manifest(version);
        let text = serde_json::to_vec_pretty(&manifest)?;
        let wrapper = fs::read(&self.wrapper)?;
        let tarball = release::pack(&[
            ("release-manifest.json", 0o644, &text),
            ("bin/consensus-node", 0o755, program),
            ("scripts/run-node.sh", 0o755, &wrapper),
        ])?;
        manifest.tarball_sha256 = Some(format!("sha256:{}", hex::encode(&Pure.sha256(&[&tarball]))));
        manifest.set_tarball_size(u64::try_from(tarball.len()).unwrap_or(u64::MAX));
        manifest.download_url = Some(self.artifacts.publish(&format!("{version}.tgz"), tarball, fault));
        Ok(manifest)
    }

    fn defective(&self, defect: Defect) -> Vec<u8> {
        match defect {
            Defect::Crashes => b"#!/bin/sh\nexit 7\n".to_vec(),
            Defect::Hangs => b"#!/bin/sh\nexec sleep 1000\n".to_vec(),
            Defect::Lost => {
                let program = self.network.home.root().join(COPY);
                format!("#!/bin/sh\nexec '{}' \"$@\" --server http://127.0.0.1:9\n", program.display())
                    .into_bytes()
            }
            Defect::Foreign => {
                // The machine in an ELF header: one that nobody has.
                let mut program = self.program.clone();
                program[18..20].copy_from_slice(&[0xfe, 0xca]);
                program
            }
        }
    }

    /// Fills the disk but for so many bytes.
    fn fill(&self, left: u64) -> io::Result<PathBuf> {
        let path = self.network.home.root().join("filler");
        let mut file = fs::File::create(&path)?;
        let block = vec![0; 64 * 1024];
        while file.write_all(&block).is_ok() {}
        file.set_len(file.metadata()?.len().saturating_sub(left))?;
        Ok(path)
    }

    fn prepare(&self, update_id: &str, manifest: &Manifest) -> Result<String, String> {
        let id = self.network.orchestrator.prepare_update(NODE_ID, update_id, manifest.clone());
        id.ok_or_else(|| String::from("the node has no session to prepare on"))
    }

    /// What the node answered to a request of update messages; of an apply that was acknowledged and then failed, that.
    fn answer(&self, id: &str) -> Option<Value> {
        let records = self.network.orchestrator.journal().since(self.begun);
        records.into_iter().rev().find_map(|(_, record)| match record {
            Record::Message { message, .. } if message["reply_to"] == id => Some(message),
            _ => None,
        })
    }

    fn count(&self, mark: usize, wanted: fn(&Record) -> bool) -> usize {
        let records = self.network.orchestrator.journal().since(mark);
        records.iter().filter(|(_, record)| wanted(record)).count()
    }

    /// Offers one release, lets it go wrong, and waits until a node serves again.
    pub(super) fn update(&mut self, number: u32, fault: Fault, rng: &mut Drbg) -> Result<Outcome, String> {
        let mut version = format!("1.{number}.0");
        let mut update_id = format!("u-{number}");
        let make = |site: &Self, version: &str, fault| {
            site.offer(version, fault).map_err(|error| format!("making the release: {error}"))
        };
        let mut manifest = make(self, &version, fault)?;
        self.begun = self.network.orchestrator.journal().mark();
        let begun = Instant::now();
        let mut filler = match fault {
            Fault::FullDisk(left) => {
                Some(self.fill(left).map_err(|error| format!("filling the disk: {error}"))?)
            }
            _ => None,
        };
        let mut kill = match fault {
            Fault::Kill(victim, at) => {
                Some((victim, begun + self.usual * u32::try_from(at).unwrap_or(u32::MAX) / 1000))
            }
            _ => None,
        };
        let mut again = matches!(fault, Fault::Stall(_)).then(|| begun + PATIENCE);
        let restart_after_ms = rng.below(50);
        let mut asked = Some(self.prepare(&update_id, &manifest)?);
        // Where in the journal it was last disturbed: only a session after that shows that it is back.
        let mut disturbed = None;
        let mut applied = None;
        let is_ready = |record: &Record| matches!(record, Record::Ready { .. });
        while begun.elapsed() < BACK {
            self.tend()?;
            let now = Instant::now();
            if let Some((victim, _)) = kill.filter(|(_, at)| now >= *at) {
                disturbed = Some(self.network.orchestrator.journal().mark());
                self.kill(victim);
                (kill, asked) = (None, None);
            }
            if again.is_some_and(|at| now >= at) {
                again = None;
                version = format!("1.{number}.1");
                update_id.push('b');
                manifest = make(self, &version, Fault::None)?;
                asked = Some(self.prepare(&update_id, &manifest)?);
            }
            if let Some(answer) = asked.as_deref().and_then(|id| self.answer(id)) {
                asked = None;
                if answer["type"] == "update_ready" {
                    disturbed = Some(self.network.orchestrator.journal().mark());
                    applied = self.network.orchestrator.apply_update(NODE_ID, &update_id, restart_after_ms);
                }
            }
            // What it cannot install it says, and goes on.
            if applied
                .as_deref()
                .and_then(|id| self.answer(id))
                .is_some_and(|said| said["type"] == "update_failed")
            {
                (applied, disturbed) = (None, None);
            }
            let is_over = asked.is_none() && kill.is_none() && again.is_none();
            if let Some(path) = filler.take_if(|_| is_over && begun.elapsed() >= FULL) {
                fs::remove_file(path).map_err(|error| format!("emptying the disk: {error}"))?;
            }
            let is_back = disturbed.is_none_or(|mark| self.count(mark, is_ready) > 0);
            if is_over && filler.is_none() && is_back && self.serves() {
                if fault == Fault::None {
                    self.usual = begun.elapsed();
                }
                return self.outcome(&version, fault, &manifest);
            }
            std::thread::sleep(POLL);
        }
        Err(format!("the node did not come back within {} s", BACK.as_secs()))
    }

    fn outcome(&mut self, version: &str, fault: Fault, manifest: &Manifest) -> Result<Outcome, String> {
        let current = self.target("current").unwrap_or_default();
        let id = current.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let outcome = if id.starts_with(&format!("{version}-")) {
            self.version = version.to_owned();
            Outcome::New
        } else if id.starts_with(&format!("{}-", self.version)) {
            Outcome::Old
        } else {
            return Err(format!("{id} runs, which is neither {version} nor {}", self.version));
        };
        match (fault, outcome) {
            (Fault::None | Fault::Cut(_) | Fault::Stall(_), Outcome::Old) => {
                Err(String::from("nothing stood in the way of the new release, and the old one runs"))
            }
            (Fault::Bad(_) | Fault::Corrupt(_), Outcome::New) => {
                Err(String::from("a release that cannot be good runs"))
            }
            (Fault::Bad(_), Outcome::Old) => self.refuses(manifest).map(|()| outcome),
            _ => Ok(outcome),
        }
    }

    /// A release that failed is told of, and not tried again.
    fn refuses(&self, manifest: &Manifest) -> Result<(), String> {
        let journal = self.network.orchestrator.journal();
        let told = |record: &Record| match record {
            Record::Message { message, .. } => {
                (message["type"] == "update_failed" && message["code"] == "apply_failed").then_some(())
            }
            _ => None,
        };
        journal.wait(self.begun, BACK, told).ok_or("the network was not told that the release failed")?;
        let id = self.prepare("again", manifest)?;
        let answered = |record: &Record| match record {
            Record::Message { message, .. } if message["reply_to"] == id.as_str() => Some(message.clone()),
            _ => None,
        };
        let answer = journal.wait(self.begun, BACK, answered).ok_or("the second prepare has no answer")?.1;
        if answer["code"] == "prepare_failed" {
            Ok(())
        } else {
            Err(format!("a release that failed is prepared again: {answer}"))
        }
    }

    /// What must hold after every update.
    pub(super) fn check(&self, outcome: Outcome) -> Result<(), String> {
        for (path, before) in &self.kept {
            if fs::read(path).ok().as_ref() != Some(before) {
                return Err(format!("{} has changed", path.display()));
            }
        }
        for name in ["current", "last-good"] {
            let program = self.dir.join(name).join("bin/consensus-node");
            if fs::read(&program).ok().as_ref() != Some(&self.program) {
                return Err(format!("{} is not what was released", program.display()));
            }
        }
        let folder = self.dir.join("releases");
        let names = fs::read_dir(&folder).map_err(|error| format!("{}: {error}", folder.display()))?;
        let names: Vec<String> =
            names.flatten().map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
        // The one that ran while this one was installed is kept beside the others.
        let most = match outcome {
            Outcome::New => RETENTION + 1,
            // And what was left half-made, until the next installation.
            Outcome::Old => RETENTION + 2,
        };
        if names.len() > most {
            return Err(format!("releases gather: {names:?}"));
        }
        if outcome == Outcome::New && names.iter().any(|name| name.ends_with(".partial")) {
            return Err(format!("what was left half-made is still there after an update: {names:?}"));
        }
        let downloads = self.network.home.state_dir().join("downloads");
        let names: Vec<String> = fs::read_dir(downloads)
            .map(|entries| {
                entries.flatten().map(|entry| entry.file_name().to_string_lossy().into_owned()).collect()
            })
            .unwrap_or_default();
        // The lock, the three that are kept, and what came of one more, with what is known of it.
        if names.len() > 6 {
            return Err(format!("downloads gather: {names:?}"));
        }
        Ok(())
    }

    /// What the node and its wrapper said last, and what the server saw.
    pub(super) fn story(&self) -> String {
        let seen = self.network.orchestrator.journal().since(self.begun);
        let seen: Vec<String> = seen.iter().map(|(_, record)| record.to_string()).collect();
        let said = self.process.as_ref().map(|process| process.lines(0)).unwrap_or_default();
        let last = said.len().saturating_sub(60);
        let said: Vec<&str> = said[last..].iter().map(|line| line.text.as_str()).collect();
        format!("the server saw:\n{}\nthe node said last:\n{}", seen.join("\n"), said.join("\n"))
    }

    pub(super) fn stop(&mut self) -> io::Result<()> {
        if let Some(process) = self.process.take() {
            process.terminate()?;
            process.wait(BACK)?;
        }
        Ok(())
    }
}

impl Drop for Site {
    fn drop(&mut self) {
        if let Some(process) = &self.process {
            signal("KILL", &format!("-{}", process.pid()));
        }
    }
}

/// One that has ended meanwhile needs none.
fn signal(name: &str, pid: &str) {
    let _ = Command::new("kill").args(["-s", name, "--", pid]).stderr(std::process::Stdio::null()).status();
}
