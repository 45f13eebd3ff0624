//! The nodes to run: built by cargo when they are needed, in the profile this program was built in.

use std::io;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::str::FromStr;
use std::sync::{Mutex, PoisonError};

use serde_json::Value;

/// The profile that this program, and with it every node it builds, is built in.
pub const PROFILE: &str = if cfg!(debug_assertions) { "dev" } else { "release" };

/// Which of the two programs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Shell {
    /// `consensus-node`, on smol.
    Smol,
    /// `consensus-node-blocking`, on plain threads.
    Blocking,
}

impl Shell {
    /// Both.
    pub const ALL: [Self; 2] = [Self::Smol, Self::Blocking];

    /// Its name in options and tables.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Smol => "smol",
            Self::Blocking => "blocking",
        }
    }

    const fn package(self) -> &'static str {
        match self {
            Self::Smol => "shell-smol",
            Self::Blocking => "shell-blocking",
        }
    }

    const fn program(self) -> &'static str {
        match self {
            Self::Smol => "consensus-node",
            Self::Blocking => "consensus-node-blocking",
        }
    }
}

impl FromStr for Shell {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        Self::ALL
            .into_iter()
            .find(|shell| shell.name() == text)
            .ok_or_else(|| format!("{text}: not a shell; there are smol and blocking"))
    }
}

/// Builds a shell's program, if it is not built already, and says where it is. Once a process: later calls answer at
/// once.
///
/// # Errors
/// Cargo cannot be run, or the build fails.
pub fn build(shell: Shell) -> io::Result<PathBuf> {
    static BUILT: Mutex<Vec<(Shell, PathBuf)>> = Mutex::new(Vec::new());
    // Held while cargo runs: two builds at once would only wait for each other.
    let mut built = BUILT.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some((_, path)) = built.iter().find(|(known, _)| *known == shell) {
        return Ok(path.clone());
    }
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut command = Command::new(cargo);
    command.args(["build", "--package", shell.package(), "--bin", shell.program()]);
    command.args(["--message-format", "json-render-diagnostics"]);
    if !cfg!(debug_assertions) {
        command.arg("--release");
    }
    // What cargo tells the program it runs is not meant for another cargo: build scripts that look at it (ring's
    // does) would run again each time, and everything after them.
    for (name, _) in std::env::vars_os() {
        let of_this_run = name.to_str().is_some_and(|name| {
            [
                "CARGO_MANIFEST_",
                "CARGO_PKG_",
                "CARGO_BIN_",
                "CARGO_CRATE_NAME",
                "CARGO_PRIMARY_PACKAGE",
                "OUT_DIR",
            ]
            .iter()
            .any(|prefix| name.starts_with(prefix))
        });
        if of_this_run {
            command.env_remove(name);
        }
    }
    // Cargo sets it for what it runs; without it this is somewhere in the workspace.
    if let Some(folder) = std::env::var_os("CARGO_MANIFEST_DIR") {
        command.current_dir(folder);
    }
    let output = command.stdin(Stdio::null()).stderr(Stdio::inherit()).output()?;
    if !output.status.success() {
        return Err(io::Error::other(format!("building {} failed", shell.program())));
    }
    let path = String::from_utf8_lossy(&output.stdout)
        .lines()
        .filter_map(|line| serde_json::from_str::<Value>(line).ok())
        .filter(|message| message["target"]["name"] == shell.program())
        .find_map(|message| message["executable"].as_str().map(PathBuf::from))
        .ok_or_else(|| io::Error::other(format!("cargo does not say where {} is", shell.program())))?;
    built.push((shell, path.clone()));
    Ok(path)
}
