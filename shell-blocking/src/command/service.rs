//! `service`: whoever supervises this machine is to keep the node, is not to any more, or says how it is.

use std::fmt::Write as _;
use std::fs;
use std::io::{Write, sink};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use consensus_core::io::Outcome;
use consensus_core::service::{self as plan, Order, Report, Scope, Service, Step, Supervisor};
use consensus_core::text::printable;
use consensus_core::update::records::parse_release_id;

use super::{Failure, Name, Surroundings, print};
use crate::install;
use crate::runtime_api::Runtime;
use crate::service;
use crate::settings::{Servicing, Sources, UsageError};
use crate::state_dir::StateDir;

/// Said where nobody could keep it.
const NO_SUPERVISOR: &str = "neither systemd nor launchd runs here, and there is no pm2: scripts/ensure-pm2.sh of the release installs that";

/// Said where PM2 was asked for.
const NO_PM2: &str = "there is no pm2 in PATH: scripts/ensure-pm2.sh of the release installs it";

/// The sibling of an install directory that is the state directory, where nobody says another.
const STATE: &str = "node";

pub(super) fn run<R: Runtime>(
    command: Name,
    sources: &Sources<'_>,
    surroundings: &mut Surroundings<'_>,
) -> Result<u8, Failure> {
    let servicing = sources.servicing()?;
    match command {
        Name::ServiceInstall => install_service::<R>(sources, &servicing, surroundings),
        Name::ServiceUninstall => uninstall::<R>(&servicing, surroundings),
        _ => status::<R>(&servicing, surroundings),
    }
}

fn usage(text: &str) -> Failure {
    Failure::Usage(UsageError::new(text))
}

fn install_service<R: Runtime>(
    sources: &Sources<'_>,
    servicing: &Servicing,
    surroundings: &mut Surroundings<'_>,
) -> Result<u8, Failure> {
    let supervisor = servicing
        .supervisor
        .or_else(service::of_this_machine)
        .ok_or_else(|| usage(&format!("--supervisor: {NO_SUPERVISOR}")))?;
    if let Some(found) = kept_already(servicing) {
        let text = format!("{}; `{} service uninstall` takes it away", found.describe(), R::PROGRAM);
        return Err(Failure::new(Outcome::Refused, text));
    }
    let scope = if servicing.user || supervisor == Supervisor::Pm2 { Scope::User } else { Scope::Machine };
    let uid = service::uid();
    if scope == Scope::Machine && uid != 0 && !servicing.dry_run {
        return Err(usage(
            "root alone can tell the machine's supervisor something: run this as root, or with --user",
        ));
    }
    let order = order::<R>(sources, servicing, service::service(servicing, supervisor, scope))?;
    let steps = plan::install(&order).map_err(|unfit| usage(&unfit.to_string()))?;
    if supervisor == Supervisor::Pm2 && !servicing.dry_run && !service::has_pm2() {
        return Err(Failure::new(Outcome::NotRegistered, NO_PM2.to_string()));
    }
    let warnings = carry_out(&steps, servicing.dry_run, surroundings.stdout).map_err(not_done::<R>)?;
    warn(&warnings, surroundings);
    if servicing.dry_run {
        return Ok(Outcome::Done.exit_code());
    }
    let mut said = format!("{}\nsettings: {}\n", order.service.describe(), order.settings_file());
    said.extend(advice(&order.service, &warnings).into_iter().map(|line| format!("{line}\n")));
    Ok(print(surroundings.stdout, &shown(&said)))
}

/// What the operator has to do themselves.
fn advice(service: &Service, warnings: &[String]) -> Option<&'static str> {
    match (service.supervisor, service.scope) {
        (Supervisor::Systemd, Scope::User) if !warnings.is_empty() => {
            Some("it may run only while you are logged in: `loginctl enable-linger` has it run always")
        }
        (Supervisor::Pm2, _) => {
            Some("run once what `pm2 startup` tells you, for PM2 to start with the machine")
        }
        _ => None,
    }
}

fn not_done<R: Runtime>(why: String) -> Failure {
    Failure::internal(format!("{why}; `{} service uninstall` takes away what was done", R::PROGRAM))
}

/// What keeps the node already, whatever is asked for.
fn kept_already(servicing: &Servicing) -> Option<Service> {
    let everything = Servicing { supervisor: None, user: false, ..servicing.clone() };
    service::installed(&everything).into_iter().next()
}

fn order<R: Runtime>(
    sources: &Sources<'_>,
    servicing: &Servicing,
    service: Service,
) -> Result<Order, Failure> {
    let install_dir = install_dir(sources, servicing)?;
    let state = Places::find(sources, servicing, service.scope, &install_dir)?;
    if let Some(missing) = missing_of_release(&install_dir, service.supervisor) {
        let text = format!("{}: missing; install a release first, or name --install-dir", missing.display());
        return Err(Failure::new(Outcome::NotRegistered, text));
    }
    has_registration::<R>(&state)?;
    let user = match service.scope {
        Scope::User => (String::new(), service.uid),
        Scope::Machine => owner(&install_dir, &state.state_dir)?,
    };
    let settings = sources.service_variables(&state.state_dir)?;
    let arguments =
        if sources.allow_private_targets() { vec!["--allow-private-targets".into()] } else { vec![] };
    let order = Order {
        service,
        install_dir: text(&install_dir),
        state_dir: text(&state.state_dir),
        registry_dir: text(&state.registry_dir),
        user,
        arguments,
        settings,
    };
    if order.settings.is_empty() && !Path::new(&order.settings_file()).exists() {
        // Says what is missing.
        sources.network()?;
    }
    Ok(order)
}

/// The service that `setup` makes: the one that there is, else one of this user's supervisor.
///
/// # Errors
/// Why there can be none.
pub(super) fn of_setup(servicing: &Servicing, install_dir: &Path) -> Result<Service, String> {
    if let Some(found) = kept_already(servicing) {
        return Ok(found);
    }
    let supervisor = servicing.supervisor.or_else(service::of_this_machine).ok_or(NO_SUPERVISOR)?;
    if service::uid() == 0 && !servicing.user {
        return Err(
            "you are root, and a node for strangers does not run as root: set it up as a user of its own"
                .to_string(),
        );
    }
    let service = service::service(servicing, supervisor, Scope::User);
    if let Some(Err(why)) = service.probe().map(|command| service::run(&command)) {
        return Err(format!(
            "{} does not answer ({why}): it does where this user is logged in, by ssh for example and not by su",
            service.keeper()
        ));
    }
    if supervisor == Supervisor::Pm2 && !service::has_pm2() {
        return Err(NO_PM2.to_string());
    }
    match missing_of_release(install_dir, supervisor) {
        Some(missing) => {
            Err(format!("a service needs an installed release: there is no {}", missing.display()))
        }
        None => Ok(service),
    }
}

/// Has the service run, with the settings of now; gives it in words, and warnings. `runs` says whether a node does
/// already: then nothing is changed.
pub(super) fn set_up<R: Runtime>(
    sources: &Sources<'_>,
    servicing: &Servicing,
    service: Service,
    runs: bool,
) -> Result<(String, Vec<String>), Failure> {
    let exists = kept_already(servicing).as_ref() == Some(&service);
    if runs {
        // Whoever starts another one would start it in vain, again and again.
        let by_itself = "a node runs already, and no supervisor keeps it: stop it, and run `setup` again";
        return match exists {
            true => Ok((format!("{}, and it runs.", service.describe()), Vec::new())),
            false => Err(Failure::new(Outcome::Occupied, by_itself.to_string())),
        };
    }
    if service.scope == Scope::Machine && service::uid() != 0 {
        let text = format!(
            "{}, and root alone can start it: `systemctl start {}`, or launchctl",
            service.describe(),
            plan::NAME
        );
        return Err(Failure::new(Outcome::Refused, text));
    }
    let order = order::<R>(sources, servicing, service)?;
    let mut steps = Vec::new();
    if exists && order.service.supervisor != Supervisor::Pm2 {
        // Its settings may be others by now. PM2 starts anew what it has.
        steps = plan::uninstall(&order.service);
    }
    steps.extend(plan::install(&order).map_err(|unfit| usage(&unfit.to_string()))?);
    let mut warnings = carry_out(&steps, false, &mut sink()).map_err(not_done::<R>)?;
    warnings.extend(advice(&order.service, &warnings).map(|line| format!("{line}.")));
    Ok((format!("{}.\nIts settings: {}", order.service.describe(), order.settings_file()), warnings))
}

/// Where the node's files are.
struct Places {
    state_dir: PathBuf,
    registry_dir: PathBuf,
}

impl Places {
    /// As they are said; else for a user as every command has them, and for the machine beside the install directory: the
    /// home of whoever asks is root's.
    fn find(
        sources: &Sources<'_>,
        servicing: &Servicing,
        scope: Scope,
        install_dir: &Path,
    ) -> Result<Self, Failure> {
        let beside = install_dir.parent().unwrap_or(install_dir);
        Ok(match scope {
            Scope::User => {
                Self { state_dir: sources.state_dir()?, registry_dir: sources.machine_registry()? }
            }
            Scope::Machine => Self {
                state_dir: servicing.state_dir.clone().unwrap_or_else(|| beside.join(STATE)),
                registry_dir: servicing.registry_dir.clone().unwrap_or_else(|| beside.to_path_buf()),
            },
        })
    }
}

/// As it is said; else that of the release that runs this; else as every command has it.
pub(super) fn install_dir(sources: &Sources<'_>, servicing: &Servicing) -> Result<PathBuf, Failure> {
    match servicing.install_dir.clone().or_else(install::own_dir) {
        Some(dir) => Ok(dir),
        None => Ok(sources.updating()?.install_dir),
    }
}

/// What a service starts, and is not there.
fn missing_of_release(install_dir: &Path, supervisor: Supervisor) -> Option<PathBuf> {
    let mut needed = vec!["current/bin/consensus-node", "run-node.sh"];
    if supervisor == Supervisor::Pm2 {
        needed.push("current/scripts/start-pm2.sh");
    }
    needed.into_iter().map(|name| install_dir.join(name)).find(|path| !path.is_file())
}

fn has_registration<R: Runtime>(places: &Places) -> Result<(), Failure> {
    if StateDir::at(&places.state_dir).registration()?.is_none() {
        let text = format!(
            "{}: no node is registered there; run `{program} eval`, then `{program} register`, or name --state-dir",
            places.state_dir.display(),
            program = R::PROGRAM
        );
        return Err(Failure::new(Outcome::NotRegistered, text));
    }
    if !places.registry_dir.is_dir() {
        let text = format!(
            "{}: there is no such folder; set CONSENSUS_MACHINE_REGISTRY_DIR to the one with machine.json",
            places.registry_dir.display()
        );
        return Err(Failure::new(Outcome::NotRegistered, text));
    }
    Ok(())
}

/// Who the node of the whole machine runs as: whoever its releases belong to, for it installs them.
fn owner(install_dir: &Path, state_dir: &Path) -> Result<(String, u32), Failure> {
    let of = |path: &Path| {
        let failed = |error| Failure::internal(format!("{}: cannot be examined: {error}", path.display()));
        fs::metadata(path).map(|metadata| metadata.uid()).map_err(failed)
    };
    let (uid, other) = (of(install_dir)?, of(state_dir)?);
    if uid == 0 {
        let text = format!(
            "{}: belongs to root, and a node for strangers does not run as root; give it a user of its own, as \
             {}/current/systemd/consensus-node.service says",
            install_dir.display(),
            install_dir.display()
        );
        return Err(usage(&text));
    }
    if uid != other {
        let text = format!(
            "{} belongs to user {uid}, and {} to user {other}: give both to one",
            install_dir.display(),
            state_dir.display()
        );
        return Err(usage(&text));
    }
    Ok((service::user_name(uid).map_err(Failure::internal)?, uid))
}

fn uninstall<R: Runtime>(servicing: &Servicing, surroundings: &mut Surroundings<'_>) -> Result<u8, Failure> {
    let found = service::installed(servicing);
    let Some(service) = found.first() else { return Err(none_found::<R>()) };
    if let Some(other) = found.get(1) {
        let text =
            format!("{}, and {}: say which, by --supervisor or --user", service.describe(), other.describe());
        return Err(usage(&text));
    }
    if service.scope == Scope::Machine && service::uid() != 0 && !servicing.dry_run {
        return Err(usage(&format!("{}: run this as root", service.describe())));
    }
    if service.supervisor == Supervisor::Pm2
        && service::report(servicing, service).is_none()
        && !servicing.dry_run
    {
        if !service::has_pm2() {
            return Err(Failure::internal(format!("{}, and {NO_PM2}", service.describe())));
        }
        // One that is started for this alone has none of its apps, and would save that.
        let text = format!("{}, and does not run it: `pm2 resurrect` first", service.describe());
        return Err(Failure::internal(text));
    }
    let install_dir = service::install_dir(service);
    let steps = plan::uninstall(service);
    let warnings = carry_out(&steps, servicing.dry_run, surroundings.stdout).map_err(Failure::internal)?;
    warn(&warnings, surroundings);
    if servicing.dry_run {
        return Ok(Outcome::Done.exit_code());
    }
    let left = install_dir.map_or_else(String::new, |dir| format!(", releases in {dir} among them"));
    let said = format!(
        "{} does not keep the node any more; settings, identity and registration stay{left}\n",
        service.supervisor.name()
    );
    Ok(print(surroundings.stdout, &shown(&said)))
}

fn none_found<R: Runtime>() -> Failure {
    let text = format!("no supervisor keeps the node here; `{} service install` has one do so", R::PROGRAM);
    Failure::new(Outcome::NotRegistered, text)
}

fn status<R: Runtime>(servicing: &Servicing, surroundings: &mut Surroundings<'_>) -> Result<u8, Failure> {
    let found = service::installed(servicing);
    if found.is_empty() {
        return Err(none_found::<R>());
    }
    let mut all_run = true;
    let mut said = String::new();
    for service in &found {
        let report = service::report(servicing, service);
        all_run &= report.as_ref().is_some_and(|report| report.runs);
        let dir = service::install_dir(service).or_else(|| report.as_ref()?.install_dir.clone());
        said.push_str(&describe(service, report.as_ref(), dir.as_deref()));
    }
    let code = print(surroundings.stdout, &shown(&said));
    Ok(if all_run { code } else { Outcome::Internal.exit_code() })
}

fn describe(service: &Service, report: Option<&Report>, install_dir: Option<&str>) -> String {
    let mut out = format!("{}\n", service.describe());
    let mut line = |name: &str, text: &str| {
        // Writing to a text does not fail.
        let _ = writeln!(out, "  {name:<9} {text}");
    };
    match report {
        None if service.supervisor == Supervisor::Pm2 && !service::has_pm2() => line("state", NO_PM2),
        None => line("state", "its supervisor does not answer, or knows nothing of it"),
        Some(report) => {
            let mut text = report.state.clone();
            if let Some(since) = &report.since {
                text.push_str(&format!(", since {since}"));
            }
            if let Some(process) = report.process {
                text.push_str(&format!(", process {process}"));
            }
            line("state", &text);
            if let Some(restarts) = report.restarts {
                line("restarts", &restarts.to_string());
            }
        }
    }
    if let Some(dir) = install_dir {
        line("releases", dir);
        for (name, text) in releases(Path::new(dir)) {
            line(name, &text);
        }
    }
    out
}

/// Which release it is, and how it stands.
fn releases(install_dir: &Path) -> Vec<(&'static str, String)> {
    let found = match install::releases(install_dir) {
        Ok(found) => found,
        Err(error) => return vec![("release", error.to_string())],
    };
    let version =
        |id: &str| parse_release_id(id).map_or_else(|| id.to_string(), |(version, ..)| version.to_string());
    let Some(current) = found.current else { return vec![("release", "none can be started".to_string())] };
    let mut text = version(&current);
    let mut after = None;
    match found.last_good {
        Some(good) if good != current => {
            text.push_str(&format!(", on probation: {} comes back if it does not reconnect", version(&good)));
        }
        Some(_) => text.push_str(", proved"),
        None => text.push_str(", the first"),
    }
    if let Some(running) = found.running.filter(|running| *running != current) {
        after = Some(("runs", format!("{}, until the next start", version(&running))));
    }
    [("release", text)].into_iter().chain(after).collect()
}

fn warn(warnings: &[String], surroundings: &mut Surroundings<'_>) {
    for warning in warnings {
        let _ = writeln!(surroundings.stderr, "warning: {}", printable(warning));
    }
}

/// Says each step and does it. What failed and stopped nothing is given back.
fn carry_out(steps: &[Step], dry_run: bool, out: &mut dyn Write) -> Result<Vec<String>, String> {
    let mut warnings = Vec::new();
    for step in steps {
        let mut said = if dry_run { "would " } else { "" }.to_string();
        match step {
            Step::Write { path, text, mode, shown, .. } => {
                said.push_str(&format!("write {path} (mode {mode:04o})\n"));
                if dry_run && *shown {
                    said.extend(text.lines().map(|line| format!("    {line}\n")));
                } else if dry_run {
                    // The names of settings alone: a value may be a secret.
                    let names = text.lines().filter_map(|line| line.split_once("=\"")).map(|(name, _)| name);
                    said.extend(names.map(|name| format!("    {name}=…\n")));
                }
            }
            Step::Run(command) | Step::Try(command) => said.push_str(&format!("run {command}\n")),
            Step::Remove { path } => said.push_str(&format!("remove {path}\n")),
        }
        // It is done all the same, whether that can be told or not.
        let _ = out.write_all(shown(&said).as_bytes());
        if dry_run {
            continue;
        }
        match (service::perform(step), step) {
            (Err(why), Step::Try(_)) => warnings.push(why),
            (result, _) => result?,
        }
    }
    Ok(warnings)
}

/// Lines fit for a terminal. A path may be longer than what a peer may say.
fn shown(text: &str) -> String {
    let line = |line: &str| {
        let whole: Vec<char> = line.chars().collect();
        let parts = whole.chunks(consensus_core::limits::MAX_PEER_TEXT);
        parts.map(|part| printable(&part.iter().collect::<String>())).collect::<String>() + "\n"
    };
    text.lines().map(line).collect()
}

fn text(path: &Path) -> String {
    path.to_string_lossy().into_owned()
}
