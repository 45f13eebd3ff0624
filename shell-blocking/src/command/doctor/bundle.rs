//! What doctor found, in a file to pass on. What it holds is listed, value by value, by what may be told; and out of all
//! of it is taken what stands in a secret setting or state file.

use std::fs::OpenOptions;
use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

use consensus_core::doctor::{self, Findings, Redactor};
use consensus_core::io::StateFile;
use consensus_core::proxy::Proxy;
use serde_json::{Value, json};
use url::Url;

use super::local::STATE_FILES;
use super::{Known, was_accepted};
use crate::command::Failure;
use crate::runtime_api::Runtime;
use crate::settings::{FILE_NAME, KNOWN, Sources};
use crate::state_dir::{MachineRegistry, StateDir, read_file};

/// The settings whose values may be told. Of any other it is told only whether it is set, and where.
const OPEN: [&str; 23] = [
    "server",
    "ca",
    "state-dir",
    "machine-registry-dir",
    "install-dir",
    "retention",
    "listen",
    "port",
    "log",
    "log-level",
    "max-requests",
    "max-streams",
    "max-inits",
    "max-request-body",
    "max-response-body",
    "max-head",
    "connect-seconds",
    "first-byte-seconds",
    "request-seconds",
    "ping-seconds",
    "silence-seconds",
    "bundle",
    "json",
];

/// The members of a registration that may be told: the lines name them.
const OPEN_MEMBERS: [&str; 10] = [
    "node_id",
    "domain",
    "region",
    "ipv4",
    "ipv6",
    "port",
    "benchmark_score",
    "registered_at",
    "commissioned_at",
    "state_dir",
];

/// A file whose content is learnt has at most so many bytes; over that a node does not take it either.
const MOST: usize = 1024 * 1024;

/// Writes the bundle; gives the names of the files in it.
pub(super) fn write<R: Runtime>(
    path: &Path,
    sources: &Sources<'_>,
    known: &Known,
    findings: &Findings,
    health: Option<Value>,
) -> Result<Vec<&'static str>, Failure> {
    let redactor = secrets(sources, known);
    let mut told = findings.clone();
    for error in &mut told.settings.errors {
        // What follows may quote the value, in part.
        let origin = error.split(": ").next().unwrap_or_default();
        *error = format!("{origin}: wrong (how is not shown)");
    }
    let lines: Vec<doctor::Line> = doctor::examine(&told)
        .into_iter()
        .map(|line| doctor::Line { text: redactor.apply(&line.text), fix: redactor.apply(&line.fix), ..line })
        .collect();
    let text: String = lines.iter().map(|line| format!("{line}\n")).collect();
    let values: Vec<Value> = lines.iter().map(doctor::Line::to_value).collect();
    let files: Vec<Value> = findings
        .files
        .iter()
        .flat_map(|files| &files.seen)
        .map(|file| json!({ "path": file.path, "mode": format!("{:04o}", file.mode), "size": file.size }))
        .collect();
    let pretty = |value: Value| format!("{:#}\n", redactor.apply_value(value));
    let entries: Vec<(&'static str, String)> = vec![
        ("doctor.txt", text),
        ("doctor.json", format!("{:#}\n", Value::from(values))),
        ("settings.json", pretty(settings(sources))),
        ("files.json", pretty(Value::from(files))),
        ("local-api.json", pretty(health.unwrap_or_default())),
        ("version.json", pretty(version::<R>(findings))),
    ];
    let packed: Vec<(String, Vec<u8>, u32)> = entries
        .iter()
        .map(|(name, text)| (format!("doctor/{name}"), text.clone().into_bytes(), 0o600))
        .collect();
    let failed = |error: std::io::Error| {
        let why = if error.kind() == std::io::ErrorKind::AlreadyExists {
            "it is there already, and is not written over; name another --bundle".to_string()
        } else {
            format!("the bundle cannot be written: {error}")
        };
        Failure::internal(format!("{}: {why}", path.display()))
    };
    let tarball = crate::release::build::gzip(&crate::release::build::archive(&packed).map_err(failed)?);
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path).map_err(failed)?;
    file.write_all(&tarball).and_then(|()| file.sync_all()).map_err(failed)?;
    Ok(entries.into_iter().map(|(name, _)| name).collect())
}

fn version<R: Runtime>(findings: &Findings) -> Value {
    let release = findings.running.as_ref().ok();
    json!({
        "program": R::PROGRAM,
        "shell": R::SHELL,
        "build": env!("CARGO_PKG_VERSION"),
        "version": release.map(|release| release.version.clone()),
        "commit": release.map(|release| release.commit.clone()),
        "platform": crate::system::platform(),
        "required": findings.answers.required().map(|required| required.version),
        "handshake_accepted": was_accepted(findings),
        "unix_seconds": findings.unix_seconds,
    })
}

fn settings(sources: &Sources<'_>) -> Value {
    let each = |known: &crate::settings::Known| {
        let (value, origin) = match known.find(sources) {
            Ok(None) => (None, None),
            Ok(Some(told)) if OPEN.contains(&known.name()) && !known.secret => {
                (Some(told.text.clone()), Some(told.origin))
            }
            Ok(Some(told)) => (Some("(not shown)".to_string()), Some(told.origin)),
            Err(_) => (Some("(wrong, not shown)".to_string()), None),
        };
        json!({ "name": known.name(), "value": value, "origin": origin, "default": known.default })
    };
    KNOWN.iter().map(each).collect()
}

/// Everything that is not to be told, as far as it is known here.
fn secrets(sources: &Sources<'_>, known: &Known) -> Redactor {
    let mut redactor = Redactor::default();
    for setting in KNOWN {
        // A wrong value may be anything, a secret in the wrong place among them.
        if OPEN.contains(&setting.name()) && setting.find(sources).is_ok() {
            continue;
        }
        for variable in setting.env {
            if let Some(value) = (sources.env)(variable) {
                learn(&mut redactor, &value.to_string_lossy());
            }
        }
        for (name, value) in sources.options {
            if name.trim_start_matches('-') == setting.name() {
                learn(&mut redactor, value);
            }
        }
        for (name, value) in sources.file.iter().flat_map(|file| file.texts()) {
            if name == setting.name() {
                learn(&mut redactor, value);
            }
        }
    }
    if let Some(dir) = &known.dir {
        let state = StateDir::at(dir);
        for file in STATE_FILES {
            if !matches!(file, StateFile::SpentTickets | StateFile::ReleaseManifest) {
                learn_file(&mut redactor, &state.path(file));
            }
        }
        if sources.file.is_none() {
            // One that is refused as a whole: what it sets is not known.
            learn_file(&mut redactor, &dir.join(FILE_NAME));
        }
    }
    if let Some(registry) = &known.registry {
        learn_file(&mut redactor, &MachineRegistry::at(registry).path());
    }
    redactor
}

/// Learns a value; of a URL its user, password, path and query also alone.
fn learn(redactor: &mut Redactor, value: &str) {
    redactor.learn(value);
    for part in value.split(['\0', ',', ' ']) {
        let whole = if part.contains("://") { part.to_string() } else { format!("http://{part}") };
        if let Ok(url) = Url::parse(&whole) {
            redactor.learn(url.username());
            redactor.learn(url.password().unwrap_or_default());
            redactor.learn(url.query().unwrap_or_default());
        }
        // A proxy may say back what it was sent.
        for secret in Proxy::parse(part, "").map(|proxy| proxy.secrets()).unwrap_or_default() {
            redactor.learn(&secret);
        }
        // As it stands there, where the parser writes it in another way.
        if let Some((user, _)) = part.rsplit_once('@') {
            let user = user.rsplit('/').next().unwrap_or_default();
            user.split(':').for_each(|part| redactor.learn(part));
        }
    }
}

fn learn_file(redactor: &mut Redactor, path: &Path) {
    let Ok(Some(data)) = read_file(path, MOST) else { return };
    match serde_json::from_slice::<Value>(&data) {
        Ok(value) => redactor.learn_value(&value, &OPEN_MEMBERS),
        Err(_) => String::from_utf8_lossy(&data)
            .split(|c: char| c.is_whitespace() || c == '"' || c == '\'')
            .filter(|word| word.len() > 7)
            .for_each(|word| redactor.learn(word)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_proxy_was_sent_is_hidden_where_it_says_it_back() {
        let mut redactor = Redactor::default();
        learn(&mut redactor, "http://op%2Fer:s3%2Fcret@proxy.example:3128");
        let said = redactor.apply("407 no op/er with s3/cret, s3%2Fcret or b3AvZXI6czMvY3JldA==");
        assert_eq!(said, "407 no (not shown) with (not shown), (not shown) or (not shown)");
    }
}
