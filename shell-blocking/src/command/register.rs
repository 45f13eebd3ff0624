//! `register`: the conversation with the network's HTTP interface, and the machine registry around it.

use std::io::{BufRead as _, IsTerminal as _, Read as _, Write as _};

use consensus_core::crypto::Drbg;
use consensus_core::crypto::identity::Identity;
use consensus_core::event::Level;
use consensus_core::io::{Finish, Outcome};
use consensus_core::registration::{Input, Output, Registering, SettingError, Settings};
use consensus_core::release::manifest::Capabilities;
use consensus_core::state::{MachineConflict, MachineRecord, Registration, check_machine};
use consensus_core::text::printable;
use serde_json::Value;

use super::{Failure, Setup};
use crate::runtime_api::{Environment, Provider, Runtime};
use crate::settings::{Sources, UsageError};
use crate::state_dir::{FileError, MachineRegistry, StateDir};
use crate::system;

/// A typed line is read to this many bytes.
const MAX_LINE: u64 = 1024;

pub(super) fn run<R: Runtime>(runtime: &R, sources: &Sources<'_>, setup: &Setup) -> Result<u8, Failure> {
    let (finish, _) = register(runtime, sources, setup, None)?;
    let code = setup.finish(&finish);
    if finish.outcome == Outcome::Done {
        setup.note(Level::Info, "next", &format!("next: {} run", R::PROGRAM));
    }
    Ok(code)
}

/// Registers; the registration is in `config.json` then. Gives the status of the answer to the join request too.
pub(super) fn register<R: Runtime>(
    runtime: &R,
    sources: &Sources<'_>,
    setup: &Setup,
    region: Option<String>,
) -> Result<(Finish, Option<u16>), Failure> {
    let network = sources.network()?;
    let registering = sources.registering()?;
    let registry = MachineRegistry::at(&sources.machine_registry()?);
    let state_dir = setup.open_state_dir()?;
    let existing = state_dir.registration()?;
    let join_auth = state_dir.join_auth()?;
    let environment = setup.environment(&state_dir)?;
    let mut rng = Drbg::new(system::seed().map_err(Failure::internal)?);

    let node_id = existing.as_ref().map(|registration| registration.node_id.as_str());
    let record = claim(&registry, &mut rng, &state_dir, node_id, registering.machine_id.as_deref())?;
    let identity = setup.identity(&state_dir, existing.as_ref())?;
    setup.warn(&network.warnings);
    if let Some(node_id) = node_id {
        let text = format!("this node is registered as {node_id} already; registering again");
        setup.note(Level::Warn, "registered_already", &text);
    }

    let identity = Identity::from_seed(Provider::default(), &identity.seed);
    let settings = Settings {
        server_url: network.server.base().to_string(),
        email: registering.email,
        email_verification_token: registering.email_verification_token,
        verification: registering.verification,
        ipv4: registering.ipv4.to_string(),
        ipv6: registering.ipv6.map(|address| address.to_string()),
        port: registering.port,
        contact: registering.contact,
        evm_address: registering.evm_address,
        solana_address: registering.solana_address,
        icp_address: registering.icp_address,
        machine_id: Some(record.machine_id),
        join_auth,
        public_key_pem: identity.public_key_pem().to_string(),
        capabilities: Capabilities::ALL,
        region,
        existing,
    };
    let mut machine = Registering::new(settings, system::now()).map_err(|error| usage(&error))?;
    let finish = drive(runtime, setup, &environment, &state_dir, &mut machine);
    if finish.outcome == Outcome::Done {
        note_registered(setup, &registry, &mut rng, &state_dir);
    }
    Ok((finish, machine.join_status()))
}

/// The field of the machine's settings is the option's name with other strokes.
fn usage(error: &SettingError) -> Failure {
    let option = error.setting.replace('_', "-");
    Failure::Usage(UsageError::new(&format!("--{option}: {}", error.problem)))
}

enum ClaimError {
    File(FileError),
    Conflict(MachineConflict),
    Named { registered: String },
}

impl From<FileError> for ClaimError {
    fn from(error: FileError) -> Self {
        Self::File(error)
    }
}

/// Refuses where another node has the machine, before anything is done that only that one could use.
pub(super) fn check(
    sources: &Sources<'_>,
    state_dir: &StateDir,
    registration: Option<&Registration>,
) -> Result<(), Failure> {
    let registry = MachineRegistry::at(&sources.machine_registry()?);
    let Some(record) = registry.load()? else { return Ok(()) };
    let dir = state_dir.root().to_string_lossy();
    let node_id = registration.map(|registration| registration.node_id.as_str());
    check_machine(&record, &dir, node_id).map_err(|conflict| taken(&registry, &conflict))
}

fn taken(registry: &MachineRegistry, conflict: &MachineConflict) -> Failure {
    let file = registry.path();
    let file = file.display();
    let text = format!("{file}: {conflict}; use that one, or remove this file if that node is gone for good");
    Failure::new(Outcome::Refused, text)
}

/// The machine's record, made where there is none; refused where another node has the machine.
fn claim(
    registry: &MachineRegistry,
    rng: &mut Drbg,
    state_dir: &StateDir,
    node_id: Option<&str>,
    machine_id: Option<&str>,
) -> Result<MachineRecord, Failure> {
    let dir = state_dir.root().to_string_lossy();
    let claimed = registry.update(rng, system::now().unix_seconds(), |record| {
        check_machine(record, &dir, node_id).map_err(ClaimError::Conflict)?;
        match machine_id {
            Some(id) if id != record.machine_id && record.node_id.is_some() => {
                Err(ClaimError::Named { registered: record.machine_id.clone() })
            }
            Some(id) => {
                record.machine_id = id.to_string();
                Ok(())
            }
            None => Ok(()),
        }
    });
    let file = registry.path();
    let file = file.display();
    claimed.map_err(|error| match error {
        ClaimError::File(error) => error.into(),
        ClaimError::Conflict(conflict) => taken(registry, &conflict),
        ClaimError::Named { registered } => Failure::Usage(UsageError::new(&format!(
            "--machine-id (or CONSENSUS_MACHINE_ID): {:?} is not allowed; allowed: {registered}, which this machine's \
             node is registered with ({file})",
            machine_id.unwrap_or_default()
        ))),
    })
}

/// Writes the new node into the machine registry. It is registered whether or not that succeeds.
fn note_registered(setup: &Setup, registry: &MachineRegistry, rng: &mut Drbg, state_dir: &StateDir) {
    let now = system::now().unix_seconds();
    let noted = state_dir.registration().and_then(|registration| match registration {
        Some(registration) => registry.update(rng, now, |record| {
            record.register(&state_dir.root().to_string_lossy(), &registration.node_id, now);
            Ok::<_, FileError>(())
        }),
        None => registry.update(rng, now, |_| Ok(())),
    });
    if let Err(error) = noted {
        setup.note(Level::Warn, "not_saved", &format!("the machine registry does not know of it: {error}"));
    }
}

fn drive<R: Runtime>(
    runtime: &R,
    setup: &Setup,
    environment: &Environment,
    state_dir: &StateDir,
    machine: &mut Registering,
) -> Finish {
    loop {
        let input = match machine.poll_output() {
            Output::Fetch(fetch) => Input::Done(runtime.fetch(environment, &fetch)),
            Output::AskCode { email, verification_id } => match ask_code(&email) {
                Some(code) => Input::Code(code),
                None => {
                    say_how_to_continue::<R>(setup, &email, &verification_id);
                    Input::NoCode
                }
            },
            Output::Notice(notice) => {
                setup.notice("register", &notice);
                continue;
            }
            Output::Save { file, data } => {
                Input::Saved(state_dir.write(file, &data).map_err(|error| error.to_string()))
            }
            Output::Remove { file } => {
                Input::Saved(state_dir.remove(file).map_err(|error| error.to_string()))
            }
            Output::Finish(finish) => return finish,
            Output::Wait => {
                let message =
                    "the registration stopped half way; this is a defect of the program".to_string();
                return Finish { outcome: Outcome::Internal, message };
            }
        };
        machine.handle_input(system::now(), input);
    }
}

/// The code, typed on a terminal; `None` where there is no terminal, or its reader gave up.
fn ask_code(email: &str) -> Option<String> {
    let (stdin, mut stderr) = (std::io::stdin(), std::io::stderr());
    if !stdin.is_terminal() || !stderr.is_terminal() {
        return None;
    }
    loop {
        let _ = write!(stderr, "The code that was sent to {}: ", printable(email));
        let mut line = String::new();
        match stdin.lock().take(MAX_LINE).read_line(&mut line) {
            Ok(0) | Err(_) => {
                // The prompt's line is still open.
                let _ = writeln!(stderr);
                return None;
            }
            Ok(_) if line.trim().is_empty() => {}
            Ok(_) => return Some(line.trim().to_string()),
        }
    }
}

fn say_how_to_continue<R: Runtime>(setup: &Setup, email: &str, verification_id: &str) {
    // The address stays out of JSON lines: those are kept, and it is a person's.
    let to = if setup.log.is_text() { printable(email) } else { "the contact's address".to_string() };
    let text = format!(
        "a code was sent to {to}; continue with the same command and --verification-id {} --code CODE ({})",
        printable(verification_id),
        R::PROGRAM
    );
    let members = [("verification_id", Value::from(verification_id))];
    setup.log.note(Level::Info, "register", "code_needed", &text, &members);
}
