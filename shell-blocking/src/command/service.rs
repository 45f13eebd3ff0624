//! `service`: whoever supervises this machine is to keep the node, is not to any more, or says how it is.

use std::fmt::Write as _;
use std::fs;
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
    let supervisor = servicing.supervisor.or_else(service::of_this_machine).ok_or_else(|| {
        usage("--supervisor: neither systemd nor launchd runs here, and there is no pm2: scripts/ensure-pm2.sh of the \
               release installs that")
    })?;
    // Everything that may keep it already, and not only what is asked for.
    let everything = Servicing { supervisor: None, user: false, ..servicing.clone() };
    if let Some(found) = service::installed(&everything).first() {
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
    let install_dir = install_dir(sources, servicing)?;
    let state = Places::find(sources, servicing, scope, &install_dir)?;
    has_release(&install_dir, supervisor)?;
    has_registration::<R>(&state)?;
    let user = match scope {
        Scope::User => (String::new(), uid),
        Scope::Machine => owner(&install_dir, &state.state_dir)?,
    };
    let settings = sources.service_variables()?;
    let arguments =
        if sources.allow_private_targets() { vec!["--allow-private-targets".into()] } else { vec![] };
    let order = Order {
        service: service::service(servicing, supervisor, scope),
        install_dir: text(&install_dir),
        state_dir: text(&state.state_dir),
        registry_dir: text(&state.registry_dir),
        user,
        arguments,
        settings,
    };
    let settings_file = order.settings_file();
    if order.settings.is_empty() && !Path::new(&settings_file).exists() {
        // Says what is missing.
        sources.network()?;
    }
    let steps = plan::install(&order).map_err(|unfit| usage(&unfit.to_string()))?;
    carry_out(&steps, servicing.dry_run, surroundings).map_err(|why| {
        let undo = format!("`{} service uninstall` takes away what was done", R::PROGRAM);
        Failure::internal(format!("{why}; {undo}"))
    })?;
    if servicing.dry_run {
        return Ok(Outcome::Done.exit_code());
    }
    let mut said = format!("{}\nsettings: {settings_file}\n", order.service.describe());
    match (supervisor, scope) {
        (Supervisor::Systemd, Scope::User) => {
            said.push_str("it runs while you are logged in; `loginctl enable-linger` has it run always\n");
        }
        (Supervisor::Pm2, _) => {
            said.push_str("run once what `pm2 startup` tells you, for PM2 to start with the machine\n");
        }
        _ => {}
    }
    Ok(print(surroundings.stdout, &shown(&said)))
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
fn install_dir(sources: &Sources<'_>, servicing: &Servicing) -> Result<PathBuf, Failure> {
    match servicing.install_dir.clone().or_else(install::own_dir) {
        Some(dir) => Ok(dir),
        None => Ok(sources.updating()?.install_dir),
    }
}

fn has_release(install_dir: &Path, supervisor: Supervisor) -> Result<(), Failure> {
    let mut needed = vec!["current/bin/consensus-node", "run-node.sh"];
    if supervisor == Supervisor::Pm2 {
        needed.push("current/scripts/start-pm2.sh");
    }
    match needed.into_iter().find(|name| !install_dir.join(name).is_file()) {
        Some(name) => {
            let text = format!(
                "{}: missing; install a release first, or name --install-dir",
                install_dir.join(name).display()
            );
            Err(Failure::new(Outcome::NotRegistered, text))
        }
        None => Ok(()),
    }
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
        // One that is started for this alone has none of its apps, and would save that.
        let text = format!("{}, and does not run it: `pm2 resurrect` first", service.describe());
        return Err(Failure::internal(text));
    }
    let install_dir = service::install_dir(service);
    carry_out(&plan::uninstall(service), servicing.dry_run, surroundings).map_err(Failure::internal)?;
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

/// Says each step and does it.
fn carry_out(steps: &[Step], dry_run: bool, surroundings: &mut Surroundings<'_>) -> Result<(), String> {
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
        let _ = surroundings.stdout.write_all(shown(&said).as_bytes());
        if dry_run {
            continue;
        }
        match (service::perform(step), step) {
            (Err(why), Step::Try(_)) => {
                let _ = writeln!(surroundings.stderr, "warning: {}", printable(&why));
            }
            (result, _) => result?,
        }
    }
    Ok(())
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
