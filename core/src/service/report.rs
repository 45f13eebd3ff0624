//! What supervisors answer when they are asked about the node.

use alloc::format;
use alloc::string::{String, ToString as _};
use alloc::vec::Vec;
use core::time::Duration;

use serde_json::Value;

use super::Supervisor;
use crate::text::printable;
use crate::time::iso8601;

/// Bytes of an answer. PM2 tells everything about every app.
pub const MAX_ANSWER: usize = 4 * 1024 * 1024;

/// How a service is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// Whether its process runs.
    pub runs: bool,
    /// In the supervisor's words; fit for a terminal.
    pub state: String,
    /// Since when, in the supervisor's words; fit for a terminal.
    pub since: Option<String>,
    /// The wrapper's process.
    pub process: Option<u32>,
    /// How often it was started again.
    pub restarts: Option<u64>,
    /// Where its releases are, where the answer says it.
    pub install_dir: Option<String>,
}

impl Report {
    /// Reads the answer to [`Service::query`](super::Service::query); of PM2's apps the one of that name. `None` where
    /// the supervisor knows no such service.
    #[must_use]
    pub fn parse(supervisor: Supervisor, answer: &str, name: &str) -> Option<Self> {
        match supervisor {
            Supervisor::Systemd => of_systemd(answer),
            Supervisor::Launchd => of_launchd(answer),
            Supervisor::Pm2 => {
                pm2_apps(answer)?.into_iter().find(|(known, _)| known == name).map(|(_, report)| report)
            }
        }
    }
}

fn of_systemd(answer: &str) -> Option<Report> {
    let get = |key: &str| {
        let value = answer.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix('='))?;
        (!value.is_empty()).then_some(value)
    };
    if get("LoadState") != Some("loaded") {
        return None;
    }
    let active = get("ActiveState")?;
    let mut state = format!("{active} ({})", get("SubState").unwrap_or("unknown"));
    if get("UnitFileState").is_some_and(|file| !file.starts_with("enabled")) {
        state.push_str(", not started with the machine");
    }
    Some(Report {
        runs: active == "active",
        state: printable(&state),
        since: get("ActiveEnterTimestamp").filter(|_| active == "active").map(printable),
        process: get("MainPID").and_then(|pid| pid.parse().ok()).filter(|pid| *pid != 0),
        restarts: get("NRestarts").and_then(|count| count.parse().ok()),
        install_dir: None,
    })
}

fn of_launchd(answer: &str) -> Option<Report> {
    // The job's own lines have one tab before them; those of what is inside it have more.
    let get = |key: &str| {
        answer.lines().find_map(|line| line.strip_prefix('\t')?.strip_prefix(key)?.strip_prefix(" = "))
    };
    let state = get("state")?;
    Some(Report {
        runs: state == "running",
        state: printable(state),
        process: get("pid").and_then(|pid| pid.parse().ok()),
        restarts: get("runs").and_then(|count| count.parse().ok()).map(|runs: u64| runs.saturating_sub(1)),
        ..Report::default()
    })
}

/// The apps in a list of PM2, by their names: what `pm2 jlist` says, and what `pm2 save` saves (of which only the names
/// and install directories are true at any other time). `None` where it is no such list.
#[must_use]
pub fn pm2_apps(answer: &str) -> Option<Vec<(String, Report)>> {
    // PM2 may greet before it answers.
    let list = answer.lines().find(|line| line.starts_with("[{") || *line == "[]");
    let value: Value = serde_json::from_str(list.unwrap_or(answer)).ok()?;
    let app = |app: &Value| {
        let name = app["name"].as_str()?.to_string();
        // `jlist` has it all in `pm2_env`, the saved list has not.
        let env = if app["pm2_env"].is_object() { &app["pm2_env"] } else { app };
        let state = env["status"].as_str().unwrap_or("unknown");
        let runs = state == "online";
        let dir = "CONSENSUS_NODE_INSTALL_DIR";
        let report = Report {
            runs,
            state: printable(state),
            since: env["pm_uptime"].as_u64().filter(|_| runs).map(|ms| iso8601(Duration::from_millis(ms))),
            process: app["pid"].as_u64().and_then(|pid| pid.try_into().ok()).filter(|pid| *pid != 0),
            restarts: env["restart_time"].as_u64(),
            install_dir: env[dir].as_str().or_else(|| env["env"][dir].as_str()).map(str::to_string),
        };
        Some((name, report))
    };
    Some(value.as_array()?.iter().filter_map(app).collect())
}
