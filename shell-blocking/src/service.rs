//! Supervisors of this machine: which there are, which keep the node, and the steps of
//! [`consensus_core::service`] carried out.

use std::fs::{self, DirBuilder};
use std::io::{self, Read};
use std::os::unix::fs::{DirBuilderExt as _, chown};
use std::path::Path;
use std::process::{Command as Process, Stdio};

use consensus_core::service::{
    Command, MAX_ANSWER, Report, Scope, Service, Step, Supervisor, place, pm2_apps,
};
use consensus_core::text::printable;

use crate::settings::Servicing;
use crate::state_dir::{read_file, replace_file};

/// A unit or a property list.
const MAX_FILE: usize = 64 * 1024;

/// The user who asks.
#[must_use]
pub fn uid() -> u32 {
    rustix::process::geteuid().as_raw()
}

/// The supervisor that this machine has, where nobody says which.
#[must_use]
pub fn of_this_machine() -> Option<Supervisor> {
    if cfg!(target_os = "macos") {
        return Some(Supervisor::Launchd);
    }
    // As sd_booted(3) has it.
    if Path::new("/run/systemd/system").is_dir() {
        return Some(Supervisor::Systemd);
    }
    has_pm2().then_some(Supervisor::Pm2)
}

/// Whether PM2 is on the path. It is not asked: it would start.
#[must_use]
pub fn has_pm2() -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).any(|folder| folder.join("pm2").is_file())
}

/// A service as it would be, wherever it is.
#[must_use]
pub fn service(servicing: &Servicing, supervisor: Supervisor, scope: Scope) -> Service {
    let text = |path: &Path| path.to_string_lossy().into_owned();
    let path = place(supervisor, scope, &text(&servicing.home), &text(&servicing.config))
        .unwrap_or_else(|| text(&servicing.pm2.join("dump.pm2")));
    let name = match supervisor {
        Supervisor::Pm2 => servicing.pm2_name.clone(),
        _ => consensus_core::service::NAME.to_string(),
    };
    Service { supervisor, scope, path, uid: uid(), name }
}

/// What keeps the node here, for the machine or for this user; of those, what was asked for.
#[must_use]
pub fn installed(servicing: &Servicing) -> Vec<Service> {
    let mut found = Vec::new();
    for supervisor in [Supervisor::Systemd, Supervisor::Launchd, Supervisor::Pm2] {
        for scope in [Scope::Machine, Scope::User] {
            let service = service(servicing, supervisor, scope);
            let is_asked_for = servicing.supervisor.is_none_or(|wanted| wanted == supervisor)
                && (!servicing.user || scope == Scope::User);
            let is_there = match (supervisor, scope) {
                (Supervisor::Pm2, Scope::Machine) => false,
                (Supervisor::Pm2, Scope::User) => {
                    saved_by_pm2(&service).is_some() || answer_of_pm2(servicing, &service).is_some()
                }
                _ => fs::symlink_metadata(&service.path).is_ok(),
            };
            if is_asked_for && is_there {
                found.push(service);
            }
        }
    }
    found
}

/// What PM2 saved of the node, for the next start of the machine.
fn saved_by_pm2(service: &Service) -> Option<Report> {
    let data = read_file(Path::new(&service.path), MAX_ANSWER).ok()??;
    let apps = pm2_apps(&String::from_utf8_lossy(&data))?;
    apps.into_iter().find(|(name, _)| *name == service.name).map(|(_, report)| report)
}

/// What PM2 says of the node, where it runs: one that is only asked would start.
fn answer_of_pm2(servicing: &Servicing, service: &Service) -> Option<Report> {
    let pid = read_file(&servicing.pm2.join("pm2.pid"), MAX_FILE).ok()??;
    let pid = String::from_utf8_lossy(&pid).trim().parse().ok().and_then(rustix::process::Pid::from_raw)?;
    rustix::process::test_kill_process(pid).ok()?;
    Report::parse(Supervisor::Pm2, &run(&service.query()).ok()?, &service.name)
}

/// How a service that is installed is; the install directory in it as far as that can be told. `None` where its
/// supervisor knows nothing of it.
#[must_use]
pub fn report(servicing: &Servicing, service: &Service) -> Option<Report> {
    if service.supervisor == Supervisor::Pm2 {
        return answer_of_pm2(servicing, service);
    }
    let mut report = Report::parse(service.supervisor, &run(&service.query()).ok()?, &service.name)?;
    if let (None, Some(pid)) = (&report.since, report.process) {
        let ps = Command::of("ps", &["-o", "lstart=", "-p", &pid.to_string()]);
        report.since = run(&ps).ok().map(|said| printable(said.trim())).filter(|said| !said.is_empty());
    }
    Some(report)
}

/// The install directory that a service's file says, or PM2 saved.
#[must_use]
pub fn install_dir(service: &Service) -> Option<String> {
    if service.supervisor == Supervisor::Pm2 {
        return saved_by_pm2(service)?.install_dir;
    }
    let data = read_file(Path::new(&service.path), MAX_FILE).ok()??;
    consensus_core::service::install_dir_of(service.supervisor, &String::from_utf8_lossy(&data))
}

/// The name of a user.
///
/// # Errors
/// `id` does not know it.
pub fn user_name(uid: u32) -> Result<String, String> {
    run(&Command::of("id", &["-un", &uid.to_string()])).map(|name| name.trim().to_string())
}

/// Carries out one step.
///
/// # Errors
/// What failed, and why.
pub fn perform(step: &Step) -> Result<(), String> {
    match step {
        Step::Write { path, text, mode, owner, .. } => {
            let path = Path::new(path);
            if let Some(folder) = path.parent() {
                DirBuilder::new()
                    .recursive(true)
                    .mode(0o755)
                    .create(folder)
                    .map_err(|error| format!("{}: the folder cannot be made: {error}", folder.display()))?;
            }
            replace_file(path, text.as_bytes(), *mode).map_err(|error| error.to_string())?;
            match owner {
                Some(owner) => chown(path, Some(*owner), None)
                    .map_err(|error| format!("{}: cannot be given to its user: {error}", path.display())),
                None => Ok(()),
            }
        }
        Step::Run(command) | Step::Try(command) => run(command).map(|_| ()),
        Step::Remove { path } => match fs::remove_file(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(format!("{path}: cannot be removed: {error}"))
            }
            _ => Ok(()),
        },
    }
}

/// Runs a program to its end; gives what it wrote to standard output, up to [`MAX_ANSWER`].
///
/// # Errors
/// It cannot be run, or ends with another code than 0: its last words.
pub fn run(command: &Command) -> Result<String, String> {
    let failed = |error: io::Error| format!("{}: {error}", command.program);
    let mut child = Process::new(&command.program)
        .args(&command.arguments)
        .envs(command.env.iter().map(|(name, value)| (name, value)))
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(failed)?;
    let (stdout, stderr) = (child.stdout.take(), child.stderr.take());
    // Both at once: who waits to write to one does not end the other.
    let said = std::thread::spawn(move || stderr.map(read).unwrap_or_default());
    let answer = stdout.map(read).unwrap_or_default();
    let said = said.join().unwrap_or_default();
    let status = child.wait().map_err(failed)?;
    if status.success() {
        return Ok(answer);
    }
    let last = said.lines().chain(answer.lines()).map(str::trim).rfind(|line| !line.is_empty());
    // Why comes first, and the variables are left out: a text that is shown is cut at its end.
    let command = Command { env: Vec::new(), ..command.clone() };
    Err(format!("{} ({status} of `{command}`)", printable(last.unwrap_or("it does not say why"))))
}

/// All of it, so that nobody is stopped by a full pipe; what is over [`MAX_ANSWER`] is dropped.
fn read(mut from: impl Read) -> String {
    let mut data = Vec::new();
    let _ = from.by_ref().take(MAX_ANSWER as u64).read_to_end(&mut data);
    let _ = io::copy(&mut from, &mut io::sink());
    String::from_utf8_lossy(&data).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_that_fails_says_why_first_and_is_named_without_its_variables() {
        let mut command = Command::of("sh", &["-c", "echo first >&2; echo there is none >&2; exit 3"]);
        command.env.push(("A".to_string(), "b".repeat(500)));
        let why = run(&command).unwrap_err();
        assert!(why.starts_with("there is none (exit status: 3 of `sh -c"), "{why}");
        assert!(!why.contains("bbb"), "{why}");
    }
}
