//! Updates that the network directs: the core's effects carried out with [`download`](crate::download),
//! [`install`] and the operator's own command. All of it blocks.

use std::io::Read as _;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use consensus_core::event::Level;
use consensus_core::guard::Target;
use consensus_core::io::EffectResult;
use consensus_core::release::artifact::Artifact;
use consensus_core::release::manifest::Manifest;
use consensus_core::release::signature::ReleaseKeys;
use consensus_core::text::printable;
use consensus_core::update::{Install, RolledBack, Standing, Way};
use rustix::process::{Pid, Signal, kill_process_group};

use crate::download::{Download, Patience, download};
use crate::install;
use crate::log::Log;
use crate::runtime_api::Environment;

/// How long the operator's command may take, less than the core waits for it.
const COMMAND_TIMEOUT: Duration = Duration::from_secs(290);

/// How often the end of the command is looked for.
const POLL: Duration = Duration::from_millis(20);

/// Kept of what the command says, in bytes; the rest is read and dropped.
const MAX_OUTPUT: usize = 64 * 1024;

/// Lines of it that go to the log: the last.
const MAX_LINES: usize = 20;

/// What updates take of a node.
#[derive(Clone, Debug)]
pub struct Updates {
    /// Of the installer.
    pub install: install::Settings,
    /// The operator's own command.
    pub command: Option<String>,
    /// Who must have signed a release.
    pub keys: ReleaseKeys,
    /// The network's server: a tarball there may be at any address.
    pub server: Option<Target>,
    /// Whether one elsewhere may be at an address that is not public.
    pub allow_private: bool,
}

/// An effect of an update.
#[derive(Clone, Debug, PartialEq)]
pub enum Work {
    /// Of `Effect::Download`.
    Download(Box<Manifest>),
    /// Of `Effect::Inspect`.
    Inspect {
        /// The file.
        artifact: String,
    },
    /// Of `Effect::Install`.
    Install(Install),
    /// Of `Effect::ConfirmRelease`.
    Confirm,
    /// Of `Effect::AcknowledgeRollback`.
    Acknowledge {
        /// The release may be tried again.
        is_excused: bool,
    },
}

impl Work {
    /// Its end where it came to nothing.
    pub(crate) fn failed(&self, reason: String) -> EffectResult {
        match self {
            Self::Download(_) => EffectResult::Downloaded(Err(reason)),
            Self::Inspect { .. } => EffectResult::Inspected(Err(reason)),
            Self::Install(_) | Self::Confirm | Self::Acknowledge { .. } => {
                EffectResult::Installed(Err(reason))
            }
        }
    }
}

impl Updates {
    /// Who installs: the operator's command, or the node itself, where the release that runs is an installed one. What
    /// is installed beside a program that was started from elsewhere would never run.
    #[must_use]
    pub fn way(&self) -> Way {
        if self.command.is_some() {
            return Way::Command;
        }
        let resolve = |path: PathBuf| path.canonicalize().ok();
        let program = std::env::current_exe().ok().and_then(resolve);
        let folder = resolve(self.install.install_dir.clone());
        match (program, folder) {
            (Some(program), Some(folder)) if program.starts_with(&folder) => Way::Installer,
            _ => Way::Nobody(format!(
                "this node does not run from its install directory ({}), so nothing that is installed there would be \
                 started: install this release there, or set --update-command",
                self.install.install_dir.display()
            )),
        }
    }

    /// How it stands with the installed releases.
    #[must_use]
    pub fn standing(&self) -> Standing {
        let install::Standing { on_probation, rolled_back, refused, floor } =
            install::standing(&self.install);
        let rolled_back = rolled_back.map(|rolled_back| RolledBack {
            update_id: rolled_back.update_id,
            version: rolled_back.version.to_string(),
            reason: rolled_back.reason,
            was_silent: rolled_back.was_silent,
        });
        Standing { on_probation, rolled_back, refused, floor }
    }
}

/// Carries out one effect, start to end. A download and the operator's command end soon when it is cancelled, and leave
/// what a later one can go on with; an installation goes to its end.
pub(crate) fn perform(work: Work, environment: &Environment, cancelled: &Arc<AtomicBool>) -> EffectResult {
    let Some(updates) = &environment.updates else {
        return work.failed("this process installs nothing".to_owned());
    };
    let done = |result: Result<(), String>| EffectResult::Installed(result);
    match &work {
        Work::Download(manifest) => {
            EffectResult::Downloaded(fetch(manifest, updates, environment, cancelled))
        }
        Work::Inspect { artifact } => EffectResult::Inspected(
            install::inspect(Path::new(artifact)).map(Box::new).map_err(|error| error.to_string()),
        ),
        Work::Install(install) if install.by_command => {
            done(run_command(install, updates, &environment.log, cancelled, COMMAND_TIMEOUT))
        }
        Work::Install(install) => done(install_release(install, updates)),
        Work::Confirm => done(install::confirm(&updates.install).map_err(|error| error.to_string())),
        Work::Acknowledge { is_excused } => {
            let acknowledged = install::acknowledge_rollback(&updates.install, *is_excused);
            done(acknowledged.map_err(|error| error.to_string()))
        }
    }
}

fn fetch(
    manifest: &Manifest,
    updates: &Updates,
    environment: &Environment,
    cancelled: &Arc<AtomicBool>,
) -> Result<String, String> {
    let artifact = Artifact::of(manifest).map_err(|reason| reason.to_string())?;
    let request = Download {
        artifact,
        state_dir: environment.state_dir.clone(),
        server: updates.server.clone(),
        allow_private: updates.allow_private,
        tls: environment.tls.clone(),
        proxies: Arc::clone(&environment.proxies),
        patience: Patience::default(),
    };
    let mut told = 0;
    let mut progress = |progress: crate::download::Progress| {
        let Some(total) = progress.total.filter(|total| *total > 0) else { return };
        // Ten lines of a download are enough for a log.
        let tenth = progress.received.saturating_mul(10) / total;
        if tenth > told {
            told = tenth;
            let text = format!("{} of {total} bytes", progress.received);
            environment.log.note(Level::Debug, "update", "update_progress", &text, &[]);
        }
    };
    let downloaded = download(&request, &mut progress, cancelled).map_err(|error| error.to_string())?;
    downloaded
        .path
        .into_os_string()
        .into_string()
        .map_err(|path| format!("{}: the path is not UTF-8", path.to_string_lossy()))
}

fn install_release(wanted: &Install, updates: &Updates) -> Result<(), String> {
    let version = wanted.version.parse().map_err(|error| format!("{}: {error}", wanted.version))?;
    let request = install::Request {
        artifact: Path::new(&wanted.artifact),
        version: &version,
        sha256: Some(wanted.sha256),
        update_id: Some(&wanted.update_id),
    };
    install::install(&updates.install, &request).map(drop).map_err(|error| error.to_string())
}

/// Runs the operator's command (protocol.md section 13). What it says goes to the operator's log and to nobody else.
fn run_command(
    wanted: &Install,
    updates: &Updates,
    log: &Log,
    cancelled: &AtomicBool,
    timeout: Duration,
) -> Result<(), String> {
    let line = updates.command.as_deref().ok_or("there is no update command")?;
    let failed = |error: std::io::Error| format!("the update command cannot be run: {error}");
    let (ours, theirs) = UnixStream::pair().map_err(failed)?;
    let also = theirs.try_clone().map_err(failed)?;
    let mut command = Command::new("sh");
    command
        .args(["-c", line])
        .env("CONSENSUS_NODE_UPDATE_ID", &wanted.update_id)
        .env("CONSENSUS_NODE_ARTIFACT_PATH", &wanted.artifact)
        .env("CONSENSUS_NODE_TARGET_VERSION", &wanted.version)
        .stdin(Stdio::null())
        .stdout(OwnedFd::from(theirs))
        .stderr(OwnedFd::from(also))
        // A group of its own, so that all of it can be ended, and a signal for the node is not one for it.
        .process_group(0);
    let spawned = command.spawn();
    // The command holds its ends open itself: with ours the reader would never see the end.
    drop(command);
    let mut child = spawned.map_err(failed)?;
    let output = Arc::new(Mutex::new(Vec::new()));
    let reader = thread::spawn({
        let output = Arc::clone(&output);
        move || read_output(ours, &output)
    });
    let status = wait(&mut child, cancelled, timeout);
    if status.is_ok() {
        // What it left running in the background may hold the pipe; that is not waited for.
        let until = std::time::Instant::now() + Duration::from_millis(500);
        while !reader.is_finished() && std::time::Instant::now() < until {
            thread::sleep(POLL);
        }
    }
    let said = output.lock().unwrap_or_else(PoisonError::into_inner).clone();
    let said = String::from_utf8_lossy(&said);
    let lines: Vec<&str> = said.lines().filter(|line| !line.trim().is_empty()).collect();
    for line in lines.iter().skip(lines.len().saturating_sub(MAX_LINES)) {
        let text = format!("the update command says: {}", printable(line));
        log.note(Level::Info, "update", "update_command", &text, &[]);
    }
    match status? {
        status if status.success() => Ok(()),
        status => Err(format!("the update command ended with {status}")),
    }
}

/// The last of what the command says, within [`MAX_OUTPUT`].
fn read_output(mut ours: UnixStream, output: &Mutex<Vec<u8>>) {
    let mut bytes = [0; 4096];
    while let Ok(count @ 1..) = ours.read(&mut bytes) {
        let mut all = output.lock().unwrap_or_else(PoisonError::into_inner);
        all.extend_from_slice(bytes.get(..count).unwrap_or_default());
        let excess = all.len().saturating_sub(MAX_OUTPUT);
        all.drain(..excess);
    }
}

fn wait(child: &mut Child, cancelled: &AtomicBool, timeout: Duration) -> Result<ExitStatus, String> {
    let until = std::time::Instant::now() + timeout;
    loop {
        match child.try_wait() {
            Ok(Some(status)) => return Ok(status),
            Ok(None) => {}
            Err(error) => return Err(format!("the update command cannot be waited for: {error}")),
        }
        let is_late = std::time::Instant::now() >= until;
        if is_late || cancelled.load(Ordering::Relaxed) {
            if let Some(group) = i32::try_from(child.id()).ok().and_then(Pid::from_raw) {
                let _ = kill_process_group(group, Signal::KILL);
            }
            let _ = child.wait();
            let why = if is_late { "took too long" } else { "was cancelled" };
            return Err(format!("the update command {why} and was ended"));
        }
        thread::sleep(POLL);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::log::Format;
    use std::sync::mpsc;
    use std::time::Instant;

    fn updates(command: Option<&str>) -> Updates {
        let install_dir = std::env::temp_dir().join("consensus-no-such-folder");
        let probation = Duration::from_secs(1);
        Updates {
            install: install::Settings { install_dir, retention: 3, probation, allow_older: false },
            command: command.map(str::to_owned),
            keys: ReleaseKeys::default(),
            server: None,
            allow_private: false,
        }
    }

    fn wanted() -> Install {
        Install {
            update_id: "u; echo injected".into(),
            artifact: "/state/downloads/x.tgz".into(),
            version: "0.2.0".into(),
            sha256: [1; 32],
            by_command: true,
        }
    }

    /// What comes of a command, and the log.
    fn run(command: &str, cancelled: &AtomicBool, timeout: Duration) -> (Result<(), String>, String) {
        #[derive(Clone, Default)]
        struct Lines(Arc<Mutex<Vec<u8>>>);
        impl std::io::Write for Lines {
            fn write(&mut self, data: &[u8]) -> std::io::Result<usize> {
                self.0.lock().unwrap().write(data)
            }
            fn flush(&mut self) -> std::io::Result<()> {
                Ok(())
            }
        }
        let lines = Lines::default();
        let log = Log::to_writer(Box::new(lines.clone()), Format::Json, Level::Debug);
        let result = run_command(&wanted(), &updates(Some(command)), &log, cancelled, timeout);
        let said = String::from_utf8(lines.0.lock().unwrap().clone()).unwrap();
        (result, said)
    }

    const LONG: Duration = Duration::from_secs(60);

    #[test]
    fn the_operators_command_is_told_what_to_install_and_its_end_counts() {
        let none = AtomicBool::new(false);
        let line = r#"printf '%s|%s|%s' "$CONSENSUS_NODE_UPDATE_ID" "$CONSENSUS_NODE_ARTIFACT_PATH" \
            "$CONSENSUS_NODE_TARGET_VERSION""#;
        let (result, said) = run(line, &none, LONG);
        assert_eq!(result, Ok(()));
        assert!(said.contains("u; echo injected|/state/downloads/x.tgz|0.2.0"), "{said}");
        let (result, said) = run("echo out; echo err >&2; exit 3", &none, LONG);
        let error = result.unwrap_err();
        assert!(error.contains("exit status: 3") && !error.contains("err"), "{error}");
        assert!(said.contains("says: out") && said.contains("says: err"), "{said}");
    }

    #[test]
    fn what_the_command_says_is_bounded_and_fit_for_a_terminal() {
        let none = AtomicBool::new(false);
        let line = r#"i=0; while [ $i -lt 5000 ]; do printf '\033[31mline %d of a long story\n' $i; i=$((i+1)); done"#;
        let (result, said) = run(line, &none, LONG);
        assert_eq!(result, Ok(()));
        assert_eq!(said.lines().count(), MAX_LINES);
        assert!(said.contains("line 4999") && !said.contains('\u{1b}') && !said.contains("u001b"), "{said}");
    }

    #[test]
    fn a_command_that_is_cancelled_or_takes_too_long_is_ended_with_all_its_children() {
        let begun = Instant::now();
        let (result, _) = run("sleep 600 & sleep 600", &AtomicBool::new(true), LONG);
        assert!(result.unwrap_err().contains("cancelled"));
        let (result, _) = run("sleep 600 | cat", &AtomicBool::new(false), Duration::from_millis(1));
        assert!(result.unwrap_err().contains("too long"));
        assert!(begun.elapsed() < LONG);
    }

    #[test]
    fn what_the_command_leaves_running_is_not_waited_for() {
        let (done, ended) = mpsc::channel();
        thread::spawn(move || done.send(run("sleep 120 & exit 0", &AtomicBool::new(false), LONG)));
        let (result, _) = ended.recv_timeout(LONG).unwrap();
        assert_eq!(result, Ok(()));
    }

    #[test]
    fn a_program_from_elsewhere_installs_nothing_unless_the_operator_has_a_command() {
        let Way::Nobody(reason) = updates(None).way() else { panic!("{:?}", updates(None).way()) };
        assert!(
            reason.contains("consensus-no-such-folder") && reason.contains("--update-command"),
            "{reason}"
        );
        assert_eq!(updates(Some("true")).way(), Way::Command);
        let mut own = updates(None);
        own.install.install_dir = std::env::current_exe().unwrap().parent().unwrap().to_path_buf();
        assert_eq!(own.way(), Way::Installer);
    }
}
