//! The command line, the same for both shells: `setup eval register control start run verify doctor update install
//! service release bench status config version completions man`.

mod bench;
mod config;
mod doctor;
mod install;
mod manual;
mod node;
mod options;
mod register;
mod release;
mod service;
mod setup;
mod status;
mod update;
mod verify;
mod version;

use std::ffi::OsString;
use std::io::{IsTerminal as _, Write};
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;

use consensus_core::crypto::Drbg;
use consensus_core::event::Level;
use consensus_core::io::{Finish, Outcome};
use consensus_core::proxy::Proxies;
use consensus_core::registration::Notice;
use consensus_core::state::Registration;
use consensus_core::text::printable;
use serde_json::Value;

use self::options::{Invocation, Name, NoInvocation};
use crate::log::{Listener, Log};
use crate::runtime_api::{Environment, Provider, Runtime};
use crate::settings::{Common, File, Sources, UsageError, proxy_warnings};
use crate::state_dir::{FileError, LoadedIdentity, LockError, StateDir};
use crate::system;
use crate::tls::Tls;

/// The exit code of a usage error; the others are of [`Outcome::exit_code`].
const USAGE: u8 = 2;

/// Runs the program: reads the command line and the environment, does what they ask, and gives the exit code.
/// Never returns early by ending the process.
pub fn main<R: Runtime>(runtime: &R) -> ExitCode {
    // The first reading of the clock is the start of the process.
    let _ = system::now();
    let arguments: Vec<OsString> = std::env::args_os().skip(1).collect();
    let mut surroundings = Surroundings {
        env: &|name| std::env::var_os(name),
        stdout: &mut std::io::stdout(),
        colors: std::io::stdout().is_terminal()
            && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty())
            && std::env::var_os("TERM").is_none_or(|term| term != "dumb"),
        stderr: &mut std::io::stderr(),
        is_terminal: std::io::stderr().is_terminal()
            && std::env::var_os("TERM").is_none_or(|term| term != "dumb"),
        can_ask: std::io::stdin().is_terminal() && std::io::stderr().is_terminal(),
        log: &|common| Log::stderr(common.log, common.log_level),
    };
    ExitCode::from(run(runtime, &arguments, &mut surroundings))
}

/// What the process has, and a test stands in for.
struct Surroundings<'a> {
    env: &'a dyn Fn(&str) -> Option<OsString>,
    /// For what was asked for: help, versions.
    stdout: &'a mut dyn Write,
    /// Whether that may have colours.
    colors: bool,
    /// For usage errors: one line each, whatever the log looks like. There may be no log yet, and the reader is a
    /// person.
    stderr: &'a mut dyn Write,
    /// Whether that is a terminal, on which a line can be written over.
    is_terminal: bool,
    /// Whether somebody sits there: standard input and standard error are a terminal.
    can_ask: bool,
    log: &'a dyn Fn(&Common) -> Log,
}

fn run<R: Runtime>(runtime: &R, arguments: &[OsString], surroundings: &mut Surroundings<'_>) -> u8 {
    let failure = match invocation(R::PROGRAM, arguments) {
        Ok(invocation) => match dispatch(runtime, &invocation, surroundings) {
            Ok(code) => return code,
            Err(failure) => failure,
        },
        Err(NoInvocation::Help(text)) => {
            return print(surroundings.stdout, &format!("{}\n", text.trim_end()));
        }
        Err(NoInvocation::Usage(text)) => Failure::Usage(UsageError::new(&text)),
    };
    let (message, code) = match failure {
        Failure::Usage(error) => (error.to_string(), USAGE),
        Failure::Finish(finish) => (printable(&finish.message), finish.outcome.exit_code()),
    };
    let _ = writeln!(surroundings.stderr, "{}: {message}", R::PROGRAM);
    code
}

fn dispatch<R: Runtime>(
    runtime: &R,
    invocation: &Invocation,
    surroundings: &mut Surroundings<'_>,
) -> Result<u8, Failure> {
    let sources = Sources { options: &invocation.options, env: surroundings.env, file: None };
    if invocation.command == Name::Doctor {
        // What stops others is what this one tells of.
        return doctor::run(runtime, &sources, surroundings);
    }
    if invocation.command == Name::ConfigShow {
        return config::show(&sources, surroundings);
    }
    let file = match invocation.command {
        // These have nothing of it.
        Name::Version | Name::Bump | Name::Release | Name::Completions | Name::Man => None,
        // This one works also where nothing says where the state directory is.
        Name::Install => sources.state_dir().ok().map(|dir| File::read(&dir)).transpose()?.flatten(),
        _ => File::read(&sources.state_dir()?)?,
    };
    let sources = Sources { file: file.as_ref(), ..sources };
    if let Name::ServiceInstall | Name::ServiceUninstall | Name::ServiceStatus = invocation.command {
        return service::run::<R>(invocation.command, &sources, surroundings);
    }
    let text = match invocation.command {
        Name::Version => Some(version::text::<R>(&sources)?),
        Name::Bump => Some(version::bump(&sources)?),
        Name::Install => Some(install::run(&sources, surroundings)?),
        Name::Release => Some(release::run(&sources)?),
        Name::Completions => Some(manual::completions(R::PROGRAM, &options::info(), sources.shell()?)),
        Name::Man => Some(manual::page(R::PROGRAM, &options::info())),
        _ => None,
    };
    if let Some(text) = text {
        return Ok(print(surroundings.stdout, &text));
    }
    if invocation.command == Name::Setup && sources.options.contains_key("--agreement") {
        return Ok(print(surroundings.stdout, consensus_core::setup::AGREEMENT));
    }
    let common = sources.common()?;
    if !matches!(invocation.command, Name::Register | Name::Bench | Name::Status) {
        // Read again where it is used; here, so that a wrong value is told before anything is done.
        sources.release()?;
    }
    // `start` has no connection of its own, and these two are with this machine alone.
    let proxies = match invocation.command {
        Name::Start | Name::Bench | Name::Status => Proxies::default(),
        _ => sources.proxies()?,
    };
    let log = (surroundings.log)(&common);
    let setup = Setup { common, log, proxies: Arc::new(proxies) };
    setup.warn(&proxy_warnings(&setup.proxies));
    let result = match invocation.command {
        Name::Setup => setup::run(runtime, &sources, &setup, surroundings),
        Name::Eval => node::eval(runtime, &sources, &setup),
        Name::Control => node::control(runtime, &sources, &setup),
        Name::Start => node::start(runtime, &sources, &setup),
        Name::Run => node::run(runtime, &sources, &setup),
        Name::Register => register::run(runtime, &sources, &setup),
        Name::Bench => bench::run(runtime, &sources, &setup, surroundings.stdout, surroundings.colors),
        Name::Status => status::run(runtime, &sources, &setup, surroundings.stdout),
        Name::Update => update::run(runtime, &sources, &setup, surroundings),
        Name::Verify
        | Name::Version
        | Name::Bump
        | Name::Install
        | Name::Release
        | Name::ServiceInstall
        | Name::ServiceUninstall
        | Name::ServiceStatus
        | Name::ConfigShow
        | Name::Doctor
        | Name::Completions
        | Name::Man => verify::run(runtime, &sources, &setup),
    };
    match result {
        Err(Failure::Finish(finish)) => Ok(setup.finish(&finish)),
        other => other,
    }
}

fn invocation(program: &str, arguments: &[OsString]) -> Result<Invocation, NoInvocation> {
    let mut words = Vec::new();
    for argument in arguments {
        match argument.to_str() {
            Some(word) => words.push(word.to_string()),
            None => {
                let shown = argument.to_string_lossy();
                return Err(NoInvocation::Usage(format!("{shown:?} is not allowed; allowed: text in UTF-8")));
            }
        }
    }
    options::parse(program, &words)
}

fn print(out: &mut dyn Write, text: &str) -> u8 {
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Ok(()) => Outcome::Done.exit_code(),
        Err(_) => Outcome::Internal.exit_code(),
    }
}

/// Why a command came to nothing.
#[derive(Debug)]
enum Failure {
    Usage(UsageError),
    Finish(Finish),
}

impl Failure {
    fn new(outcome: Outcome, message: String) -> Self {
        Self::Finish(Finish { outcome, message })
    }

    fn internal(message: String) -> Self {
        Self::new(Outcome::Internal, message)
    }
}

impl From<UsageError> for Failure {
    fn from(error: UsageError) -> Self {
        Self::Usage(error)
    }
}

impl From<FileError> for Failure {
    fn from(error: FileError) -> Self {
        Self::internal(error.to_string())
    }
}

impl From<LockError> for Failure {
    fn from(error: LockError) -> Self {
        let outcome = match error {
            LockError::Held { .. } => Outcome::Occupied,
            LockError::File(_) => Outcome::Internal,
        };
        Self::new(outcome, error.to_string())
    }
}

/// What every command but `version` begins with.
struct Setup {
    common: Common,
    log: Log,
    proxies: Arc<Proxies>,
}

impl Setup {
    /// The same, with somebody who hears what the log is told.
    fn heard_by(&self, listener: Arc<dyn Listener>) -> Self {
        let (common, proxies) = (self.common.clone(), Arc::clone(&self.proxies));
        Self { common, log: self.log.heard_by(listener), proxies }
    }

    /// The state directory as it is; nothing is made.
    fn state_dir(&self) -> StateDir {
        StateDir::at(&self.common.state_dir)
    }

    /// The state directory, made where it is missing.
    fn open_state_dir(&self) -> Result<StateDir, Failure> {
        Ok(StateDir::open(&self.common.state_dir)?)
    }

    /// What a runtime needs; nothing listens yet.
    fn environment(&self, state_dir: &StateDir) -> Result<Environment, Failure> {
        Ok(Environment {
            state_dir: state_dir.clone(),
            tls: tls(self.common.ca.as_deref())?,
            proxies: Arc::clone(&self.proxies),
            listen: None,
            log: self.log.clone(),
            updates: None,
        })
    }

    /// The identity, with what the operator should know about it told. A registered node's key is never made anew:
    /// the network knows the node by it.
    fn identity(
        &self,
        state_dir: &StateDir,
        registration: Option<&Registration>,
    ) -> Result<LoadedIdentity, Failure> {
        let key = state_dir.path(consensus_core::io::StateFile::NodeKey);
        let identity = match registration {
            Some(registration) => state_dir.identity()?.ok_or_else(|| {
                Failure::internal(format!(
                    "{}: missing, and node {} is registered with this key; bring it back from a backup",
                    key.display(),
                    registration.node_id
                ))
            })?,
            None => {
                let mut rng = Drbg::new(system::seed().map_err(Failure::internal)?);
                state_dir.load_or_create_identity(Provider::default(), &mut rng)?
            }
        };
        if identity.created {
            let text = format!("a new identity was made: {}; keep a copy of it", key.display());
            self.note(Level::Info, "identity_created", &text);
        }
        if let Some(mode) = identity.narrowed_from {
            let text = format!("{} had mode {mode:04o} and could be read by others; now 0600", key.display());
            self.note(Level::Warn, "key_mode_narrowed", &text);
        }
        Ok(identity)
    }

    fn note(&self, level: Level, event: &'static str, text: &str) {
        self.log.note(level, "node", event, text, &[]);
    }

    fn warn(&self, warnings: &[String]) {
        for warning in warnings {
            self.log.note(Level::Warn, "settings", "warning", warning, &[]);
        }
    }

    fn notice(&self, scope: &'static str, notice: &Notice) {
        self.log.note(notice.level, scope, "notice", &notice.text, &[]);
    }

    /// The last line: how it ended. Gives the exit code.
    fn finish(&self, finish: &Finish) -> u8 {
        let level = if finish.outcome.exit_code() == 0 { Level::Info } else { Level::Error };
        let code = finish.outcome.exit_code();
        let outcome = serde_json::to_value(finish.outcome).unwrap_or_default();
        let members = [("outcome", outcome), ("exit_code", Value::from(code))];
        self.log.note(level, "node", "finished", &finish.message, &members);
        code
    }
}

/// A file that is no certificate is a wrong setting, and named as one.
fn tls(ca: Option<&Path>) -> Result<Tls, Failure> {
    Tls::new(ca)
        .map_err(|error| Failure::Usage(UsageError::new(&format!("--ca (or CONSENSUS_CA_FILE): {error}"))))
}

#[cfg(test)]
mod tests;
