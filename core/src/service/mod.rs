//! The node as a service: what whoever supervises it is given, as a list of [`Step`]s, and what it answers.
//!
//! Files of supervisors are the ones in `scripts/systemd` and `scripts/launchd`, with the paths of this machine put in.
//! A path or a value with a control or formatting character is refused, so that no line of a file can become two;
//! everything else is escaped for where it goes. Settings go into an environment file that only its reader can read:
//! nothing but paths and switches is on a command line.

mod report;
mod text;

use alloc::format;
use alloc::string::{String, ToString as _};
use alloc::vec;
use alloc::vec::Vec;
use core::fmt;
use core::str::FromStr;

pub use self::report::{MAX_ANSWER, Report, pm2_apps};
pub use self::text::install_dir_of;
use crate::text::is_plain;

/// The name of the unit, and of the app where nobody gives it another.
pub const NAME: &str = "consensus-node";

/// The label of the launchd job.
pub const LABEL: &str = "network.consensus.node";

/// Where the settings of a service of the whole machine are.
pub const MACHINE_SETTINGS: &str = "/etc/consensus-node/node.env";

/// Who keeps the node running.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Supervisor {
    /// systemd.
    Systemd,
    /// launchd, of macOS.
    Launchd,
    /// PM2.
    Pm2,
}

impl Supervisor {
    /// Its name in options and sentences.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Systemd => "systemd",
            Self::Launchd => "launchd",
            Self::Pm2 => "pm2",
        }
    }
}

impl FromStr for Supervisor {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        [Self::Systemd, Self::Launchd, Self::Pm2].into_iter().find(|one| one.name() == text).ok_or(())
    }
}

/// Whose supervisor. PM2 is always somebody's own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    /// The machine's; only root can tell it something.
    Machine,
    /// That of the user who asks.
    User,
}

/// A service as it is on a machine, or is to be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Service {
    /// Who keeps it.
    pub supervisor: Supervisor,
    /// For whom.
    pub scope: Scope,
    /// Its unit, its property list, or the list of apps that PM2 keeps.
    pub path: String,
    /// The user who asks, by number.
    pub uid: u32,
    /// What PM2 calls it; for the others it is [`NAME`].
    pub name: String,
}

impl Service {
    /// Who keeps it, as the subject of a sentence.
    #[must_use]
    pub fn keeper(&self) -> String {
        let whose = match (self.supervisor, self.scope) {
            (Supervisor::Pm2, _) | (_, Scope::User) => "of this user",
            (_, Scope::Machine) => "of the whole machine",
        };
        format!("{} {whose}", self.supervisor.name())
    }

    /// As a sentence, without its point.
    #[must_use]
    pub fn describe(&self) -> String {
        let name = if self.supervisor == Supervisor::Launchd { LABEL } else { &self.name };
        format!("{} keeps {name} ({})", self.keeper(), self.path)
    }

    /// What says how it is: a [`Report`] is read from the answer.
    #[must_use]
    pub fn query(&self) -> Command {
        match self.supervisor {
            Supervisor::Systemd => self.systemctl(&[
                "show",
                "--property=LoadState,ActiveState,SubState,ActiveEnterTimestamp,MainPID,NRestarts,UnitFileState",
                "consensus-node.service",
            ]),
            Supervisor::Launchd => Command::of("launchctl", &["print", &self.target()]),
            Supervisor::Pm2 => Command::of("pm2", &["jlist"]),
        }
    }

    /// What fails where this supervisor does not work for whoever asks; `None` where only using it tells.
    #[must_use]
    pub fn probe(&self) -> Option<Command> {
        match self.supervisor {
            Supervisor::Systemd => Some(self.systemctl(&["show", "--property=Version"])),
            Supervisor::Launchd => Some(Command::of("launchctl", &["print", &self.domain()])),
            // It would start one.
            Supervisor::Pm2 => None,
        }
    }

    fn systemctl(&self, arguments: &[&str]) -> Command {
        let mut all = Vec::new();
        if self.scope == Scope::User {
            all.push("--user");
        }
        all.extend(arguments);
        Command::of("systemctl", &all)
    }

    /// launchd's domain.
    fn domain(&self) -> String {
        match self.scope {
            Scope::Machine => "system".to_string(),
            Scope::User => format!("gui/{}", self.uid),
        }
    }

    fn target(&self) -> String {
        format!("{}/{LABEL}", self.domain())
    }
}

/// Where a supervisor's file of the node is; `None` for PM2, whose own file it is. `home` is that of the user,
/// `config` its folder for settings (`XDG_CONFIG_HOME`).
#[must_use]
pub fn place(supervisor: Supervisor, scope: Scope, home: &str, config: &str) -> Option<String> {
    match (supervisor, scope) {
        (Supervisor::Systemd, Scope::Machine) => Some(format!("/etc/systemd/system/{NAME}.service")),
        (Supervisor::Systemd, Scope::User) => Some(format!("{config}/systemd/user/{NAME}.service")),
        (Supervisor::Launchd, Scope::Machine) => Some(format!("/Library/LaunchDaemons/{LABEL}.plist")),
        (Supervisor::Launchd, Scope::User) => Some(format!("{home}/Library/LaunchAgents/{LABEL}.plist")),
        (Supervisor::Pm2, _) => None,
    }
}

/// What is to be installed. All paths are absolute.
#[derive(Clone, Debug)]
pub struct Order {
    /// By whom, for whom, where.
    pub service: Service,
    /// Where the releases are.
    pub install_dir: String,
    /// Where identity and registration are.
    pub state_dir: String,
    /// Where `machine.json` is.
    pub registry_dir: String,
    /// The name and number of the user that the node runs as.
    pub user: (String, u32),
    /// What follows `run`: switches that have no variable.
    pub arguments: Vec<String>,
    /// Settings: variables and values. Where there are none, the environment file that is there counts.
    pub settings: Vec<(String, String)>,
}

impl Order {
    /// The environment file.
    #[must_use]
    pub fn settings_file(&self) -> String {
        match (self.service.supervisor, self.service.scope) {
            (Supervisor::Pm2, _) | (_, Scope::User) => format!("{}/node.env", self.install_dir),
            (_, Scope::Machine) => MACHINE_SETTINGS.to_string(),
        }
    }

    /// What the node has to find its files.
    fn places(&self) -> [(&'static str, &str); 3] {
        [
            ("CONSENSUS_NODE_INSTALL_DIR", self.install_dir.as_str()),
            ("CONSENSUS_STATE_DIR", &self.state_dir),
            ("CONSENSUS_MACHINE_REGISTRY_DIR", &self.registry_dir),
        ]
    }
}

/// A program and its arguments.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Command {
    /// By its name, or its path.
    pub program: String,
    /// Its arguments.
    pub arguments: Vec<String>,
    /// Variables beside those of whoever runs it.
    pub env: Vec<(String, String)>,
}

impl Command {
    /// Without variables of its own.
    #[must_use]
    pub fn of(program: &str, arguments: &[&str]) -> Self {
        let arguments = arguments.iter().map(|one| (*one).to_string()).collect();
        Self { program: program.to_string(), arguments, env: Vec::new() }
    }
}

impl fmt::Display for Command {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (name, value) in &self.env {
            write!(f, "{name}={} ", text::shell_word(value))?;
        }
        f.write_str(&text::shell_word(&self.program))?;
        for argument in &self.arguments {
            write!(f, " {}", text::shell_word(argument))?;
        }
        Ok(())
    }
}

/// One thing to do. They are done in order, up to the first that fails.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// A file, as a whole or not at all; its folder is made where it is missing.
    Write {
        /// Where.
        path: String,
        /// What.
        text: String,
        /// Its mode.
        mode: u32,
        /// Whose it becomes, where it does not stay whose who writes it.
        owner: Option<u32>,
        /// Whether the text may be shown: settings are not.
        shown: bool,
    },
    /// A program is run; another exit code than 0 is a failure.
    Run(Command),
    /// As [`Step::Run`], and where it fails that is told and the rest is done all the same.
    Try(Command),
    /// A file is removed.
    Remove {
        /// Which.
        path: String,
    },
}

/// A text with a character in it that no file of a supervisor is to hold.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unfit {
    /// What the text is.
    pub what: String,
    /// The text.
    pub text: String,
}

impl fmt::Display for Unfit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {:?} has a line end or another character that cannot be seen", self.what, self.text)
    }
}

impl core::error::Error for Unfit {}

/// What makes the node a service.
///
/// # Errors
/// A path or a setting that no file can hold.
pub fn install(order: &Order) -> Result<Vec<Step>, Unfit> {
    let settings_file = order.settings_file();
    let fit = |what: &str, text: &str| {
        let is_fit = text.chars().all(is_plain);
        if is_fit { Ok(()) } else { Err(Unfit { what: what.to_string(), text: text.to_string() }) }
    };
    for (name, path) in order.places() {
        fit(name, path)?;
    }
    fit("the path of the service", &order.service.path)?;
    fit("the user", &order.user.0)?;
    for (name, value) in &order.settings {
        fit(name, value)?;
    }
    for argument in &order.arguments {
        fit("an argument", argument)?;
    }
    let service = &order.service;
    let mut steps = Vec::new();
    if !order.settings.is_empty() {
        // systemd reads it before it becomes the user; the others have the wrapper read it.
        let owner = (service.scope == Scope::Machine && service.supervisor == Supervisor::Launchd)
            .then_some(order.user.1);
        let text = text::settings(&order.settings);
        steps.push(Step::Write { path: settings_file, text, mode: 0o600, owner, shown: false });
    }
    let write =
        |text| Step::Write { path: service.path.clone(), text, mode: 0o644, owner: None, shown: true };
    match service.supervisor {
        Supervisor::Systemd => {
            steps.push(write(text::unit(order)));
            steps.push(Step::Run(service.systemctl(&["daemon-reload"])));
            steps.push(Step::Run(service.systemctl(&["enable", "--now", "consensus-node.service"])));
            if service.scope == Scope::User {
                // Or it would end with the session of whoever asks.
                steps.push(Step::Try(Command::of("loginctl", &["enable-linger"])));
            }
        }
        Supervisor::Launchd => {
            steps.push(write(text::property_list(order)));
            // One that was switched off once stays so until it is switched on.
            steps.push(Step::Run(Command::of("launchctl", &["enable", &service.target()])));
            let bootstrap = ["bootstrap", &service.domain(), &service.path];
            steps.push(Step::Run(Command::of("launchctl", &bootstrap)));
        }
        Supervisor::Pm2 => {
            let script = format!("{}/current/scripts/start-pm2.sh", order.install_dir);
            let mut start = Command::of("/bin/sh", &[&script]);
            start.arguments.push("run".to_string());
            start.arguments.extend(order.arguments.iter().cloned());
            start.env = order.places().map(|(name, path)| (name.to_string(), path.to_string())).to_vec();
            start.env.push(("CONSENSUS_PM2_NAME".to_string(), service.name.clone()));
            steps.push(Step::Run(start));
        }
    }
    Ok(steps)
}

/// What makes it none any more. Releases, settings, identity and registration stay.
#[must_use]
pub fn uninstall(service: &Service) -> Vec<Step> {
    let remove = Step::Remove { path: service.path.clone() };
    match service.supervisor {
        Supervisor::Systemd => vec![
            Step::Try(service.systemctl(&["disable", "--now", "consensus-node.service"])),
            remove,
            Step::Try(service.systemctl(&["daemon-reload"])),
        ],
        Supervisor::Launchd => {
            vec![Step::Try(Command::of("launchctl", &["bootout", &service.target()])), remove]
        }
        Supervisor::Pm2 => vec![
            Step::Run(Command::of("pm2", &["delete", &service.name])),
            // Without force an empty list is not saved.
            Step::Run(Command::of("pm2", &["save", "--force"])),
        ],
    }
}

#[cfg(test)]
mod tests;
