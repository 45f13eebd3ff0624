//! What can be seen without a network.

use alloc::format;
use alloc::string::{String, ToString as _};
use alloc::vec::Vec;

use super::{Check, Findings, Line, mib, plural};
use crate::state::MachineConflict;

/// What the network asks of a machine's memory (protocol.md section 5).
const MIN_MEMORY: u64 = 512 * 1024 * 1024;

/// With less free than this, requests of a busy node fail.
const LOW_MEMORY: u64 = 64 * 1024 * 1024;

/// What the state directory needs to replace its files.
const STATE_ROOM: u64 = 16 * 1024 * 1024;

/// What a release needs where the network does not say its size: tarball, unpacked, and the ones kept beside it.
const RELEASE_ROOM: u64 = 96 * 1024 * 1024;

/// Tarball and what is in it, as a multiple of the tarball.
const UNPACKED: u64 = 4;

/// What was found of the settings.
#[derive(Clone, Debug, Default)]
pub struct Settings {
    /// Wrong ones, each in one sentence.
    pub errors: Vec<String>,
    /// What to be warned of.
    pub warnings: Vec<String>,
    /// How many are set, by options, variables and file.
    pub set: usize,
    /// The server, as host and port.
    pub server: Option<String>,
}

pub(super) fn settings(found: &Findings) -> Line {
    let Settings { errors, warnings, set, server } = &found.settings;
    let program = &found.program;
    if !errors.is_empty() {
        let fix = format!(
            "correct it where it is said; what is missing is an option, a variable, or a line of config.toml in the \
             state directory; `{program} config show` says where each setting comes from"
        );
        return Line::failed(Check::Settings, &errors.join("; "), &fix);
    }
    if !warnings.is_empty() {
        let fix = format!("`{program} config show` says where each setting comes from");
        return Line::warning(Check::Settings, &warnings.join("; "), &fix);
    }
    let server = server.as_deref().unwrap_or("none");
    Line::ok(Check::Settings, &format!("{}, server {server}", plural(*set, "setting")))
}

/// One file that is there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SeenFile {
    /// Its path.
    pub path: String,
    /// Its mode.
    pub mode: u32,
    /// Its size in bytes.
    pub size: u64,
    /// Whether nobody else may read it.
    pub is_secret: bool,
}

/// What was found of the state directory and the machine registry.
#[derive(Clone, Debug, Default)]
pub struct Files {
    /// The state directory.
    pub dir: String,
    /// Its mode; `None` where it is not there.
    pub mode: Option<u32>,
    /// Whether this user may write in it.
    pub is_writable: bool,
    /// The files in it that a node knows.
    pub seen: Vec<SeenFile>,
    /// Those that cannot be read or understood, each in one sentence that says what to do.
    pub damaged: Vec<String>,
    /// Why the machine registry does not let this node be, if it does not, and the file that says so.
    pub conflict: Option<(String, MachineConflict)>,
    /// Those that the node or `setup` makes good by itself: what is wrong, and how that comes.
    pub mended: Vec<(String, String)>,
}

pub(super) fn files(found: &Findings) -> Line {
    let check = Check::Files;
    let Some(files) = &found.files else { return Line::because_of(check, Check::Settings) };
    let dir = &files.dir;
    let Some(mode) = files.mode else {
        let fix = format!("`{} setup` makes it; or name another by --state-dir", found.program);
        return Line::warning(check, &format!("{dir}: there is no state directory yet"), &fix);
    };
    if !files.damaged.is_empty() {
        let fix = "bring it back from a backup, or move it away; what that costs is in the README, \"When something is wrong\"";
        return Line::failed(check, &files.damaged.join("; "), fix);
    }
    if mode & 0o022 != 0 {
        let text = format!("{dir}: mode {mode:04o}: others can replace what is in it");
        return Line::failed(check, &text, &format!("chmod 0700 {dir}"));
    }
    if !files.is_writable {
        let text = format!("{dir}: this user cannot write in it");
        return Line::failed(
            check,
            &text,
            &format!("run this as the node's own user, or: chown -R USER {dir}"),
        );
    }
    let open = files.seen.iter().filter(|file| file.is_secret && file.mode & 0o077 != 0);
    // The network's other implementation writes the registration so; it holds no key.
    let (open, tolerated): (Vec<&SeenFile>, Vec<&SeenFile>) =
        open.partition(|file| !file.path.ends_with("config.json"));
    if !open.is_empty() {
        let (text, fix) = readable(&open);
        return Line::failed(check, &text, &fix);
    }
    if let Some((record, conflict)) = &files.conflict {
        let text = format!("{record}: {conflict}");
        // `run` does not ask the machine registry, so a node that was moved serves.
        if conflict.is_of_the_same_node() {
            let fix = format!(
                "if the state directory was moved, write its path into `state_dir` of {record}; if it was copied, \
                 remove one of the two: they cannot both run"
            );
            return Line::warning(check, &text, &fix);
        }
        let fix = format!(
            "run the node that is registered here, by its --state-dir; or remove {record}, if that node is gone for good"
        );
        return Line::failed(check, &text, &fix);
    }
    let (mut texts, mut fixes): (Vec<String>, Vec<String>) = files.mended.iter().cloned().unzip();
    if !tolerated.is_empty() {
        let (text, fix) = readable(&tolerated);
        texts.push(text);
        fixes.push(fix);
    }
    if !texts.is_empty() {
        return Line::warning(check, &texts.join("; "), &fixes.join("; "));
    }
    Line::ok(check, &format!("{dir}: {}", plural(files.seen.len(), "file")))
}

/// What is said of secret files that others can read, and what to do.
fn readable(files: &[&SeenFile]) -> (String, String) {
    let modes: Vec<String> =
        files.iter().map(|file| format!("{}: mode {:04o}", file.path, file.mode)).collect();
    let paths: Vec<&str> = files.iter().map(|file| file.path.as_str()).collect();
    (format!("{}: others can read it", modes.join("; ")), format!("chmod 0600 {}", paths.join(" ")))
}

/// What was found of the key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Identity {
    /// Nobody looked: no state directory is known.
    Unknown,
    /// There is none.
    Missing,
    /// It is not readable, or no key; in one sentence.
    Unreadable(String),
    /// `keys/node.pub` is not its public half; the sentence names it.
    OtherPublic(String),
    /// Key and public half.
    Whole,
}

/// What the state directory says of a registration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Registered {
    /// Nobody looked, or the file is damaged.
    Unknown,
    /// There is none.
    No,
    /// As this node.
    As(String),
}

pub(super) fn identity(found: &Findings) -> Line {
    let check = Check::Identity;
    match (&found.identity, &found.registered) {
        (Identity::Unknown, _) => Line::because_of(check, Check::Settings),
        (Identity::Missing, Registered::As(node)) => Line::failed(
            check,
            &format!("keys/node.key: missing, and node {node} is registered with this key"),
            "bring keys/node.key back from a backup; without it the node has to be registered anew",
        ),
        (Identity::Missing, _) => {
            let fix = format!("`{} setup` makes one", found.program);
            Line::warning(check, "there is no key yet", &fix)
        }
        (Identity::Unreadable(why), _) => Line::failed(
            check,
            why,
            "bring keys/node.key back from a backup; without it the node has to be registered anew",
        ),
        (Identity::OtherPublic(why), _) => Line::failed(
            check,
            why,
            "move keys/node.pub away: the next start makes it anew of the private key",
        ),
        (Identity::Whole, _) => Line::ok(check, "the key is readable, and keys/node.pub is its public half"),
    }
}

/// Room on one disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Space {
    /// Where.
    pub path: String,
    /// Whether releases go there, and not only state.
    pub for_releases: bool,
    /// Free for this user, in bytes.
    pub free: u64,
}

pub(super) fn disk(found: &Findings) -> Line {
    let check = Check::Disk;
    if found.disk.is_empty() {
        return Line::skipped(check, "the system does not say how much room there is");
    }
    let size = found.answers.required().and_then(|required| required.tarball_size());
    let release = size.map_or(RELEASE_ROOM, |size| size.saturating_mul(UNPACKED));
    let mut texts = Vec::new();
    for space in &found.disk {
        let needed = if space.for_releases { release.max(STATE_ROOM) } else { STATE_ROOM };
        let (path, free) = (&space.path, mib(space.free));
        if space.free < needed {
            let what = if space.for_releases { "a release" } else { "the state" };
            let text = format!("{path}: {free} free, and {what} needs {}", mib(needed));
            let fix = "make room: old releases, logs; CONSENSUS_NODE_RELEASE_RETENTION says how many releases are kept";
            return Line::failed(check, &text, fix);
        }
        texts.push(format!("{path}: {free} free"));
    }
    Line::ok(check, &texts.join(", "))
}

/// Memory in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Memory {
    /// Physical, or the limit of a control group.
    pub total: u64,
    /// What could be taken.
    pub free: u64,
}

pub(super) fn memory(found: &Findings) -> Line {
    let check = Check::Memory;
    let Some(Memory { total, free }) = found.memory else {
        return Line::skipped(check, "the system does not say how much memory there is");
    };
    let text = format!("{} of {} free", mib(free), mib(total));
    if total < MIN_MEMORY {
        let text = format!("{text}; the network admits machines from {} on", mib(MIN_MEMORY));
        return Line::failed(check, &text, "give the machine, or its control group, more memory");
    }
    if free < LOW_MEMORY {
        return Line::warning(
            check,
            &text,
            "stop what else takes memory, or lower --max-requests and --max-streams",
        );
    }
    Line::ok(check, &text)
}

/// Who has the state directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Lock {
    /// No node.
    Free,
    /// A node, which wrote its process down or not.
    Held(Held),
    /// That cannot be told.
    Unknown,
}

/// The process that holds a lock, where it is known.
pub type Held = Option<u32>;

/// What answers at the local API's address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Api {
    /// Nobody looked.
    Unknown,
    /// Nothing.
    Silent,
    /// Something that is no node.
    Other,
    /// A node.
    Node {
        /// Its name, where it is registered.
        node_id: Option<String>,
        /// `connected`, `connecting` or `none`.
        tunnel: String,
    },
}

/// Whether a node runs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Running {
    /// On the state directory.
    pub lock: Lock,
    /// At the local API's address.
    pub api: Api,
    /// That address.
    pub listen: String,
}

pub(super) fn node(found: &Findings) -> Line {
    let check = Check::Node;
    let Running { lock, api, listen } = &found.node;
    let program = &found.program;
    let process = match lock {
        Lock::Held(Some(pid)) => format!("a node runs (process {pid})"),
        _ => "a node runs".to_string(),
    };
    let is_held = matches!(lock, Lock::Held(_));
    match (api, &found.registered) {
        (Api::Other, _) => Line::failed(
            check,
            &format!("{listen}: a program that is no node answers where the local API is to be"),
            "give the local API another address, by --listen or NODE_PORT, or stop that program",
        ),
        (Api::Node { node_id: Some(other), .. }, Registered::As(own)) if other != own => Line::failed(
            check,
            &format!("{listen}: the local API of node {other} is there, and this is {own}"),
            "give this node's local API another address, by --listen or NODE_PORT",
        ),
        (Api::Node { tunnel, .. }, _) if tunnel == "connected" => {
            Line::ok(check, &format!("{process}, and is connected"))
        }
        (Api::Node { tunnel, .. }, _) if tunnel == "none" && !is_held => Line::warning(
            check,
            "the local API is served, and nothing keeps the tunnel",
            &format!("start `{program} run` in place of `start`, or `{program} control` beside it"),
        ),
        (Api::Node { tunnel, .. }, _) if tunnel != "none" => Line::warning(
            check,
            &format!("{process}, and is not connected"),
            "mend what failed here; if nothing did, the node's own log says why",
        ),
        _ if is_held => Line::ok(check, &format!("{process}; whether it is connected is not known")),
        _ => Line::warning(
            check,
            "no node runs",
            &format!("`{program} service install` has one run, `{program} run` runs one here"),
        ),
    }
}

/// A supervisor that keeps the node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Kept {
    /// Which, in words.
    pub text: String,
    /// Whether the node runs; `None` where the supervisor does not say.
    pub runs: Option<bool>,
    /// Its word for that.
    pub state: String,
    /// What starts it.
    pub start: String,
}

/// Who keeps the node running.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Supervision {
    /// The supervisor did not answer in time, or cannot be asked.
    Unknown(String),
    /// These; none where it is empty.
    By(Vec<Kept>),
}

pub(super) fn supervisor(found: &Findings) -> Line {
    let check = Check::Supervisor;
    let program = &found.program;
    match &found.supervision {
        Supervision::Unknown(why) => {
            Line::warning(check, why, &format!("`{program} service status` asks again"))
        }
        Supervision::By(kept) => match kept.as_slice() {
            [] => {
                let fix = format!(
                    "`{program} service install` has the node start with the machine and after a crash"
                );
                Line::warning(check, "none keeps the node", &fix)
            }
            [one] => match one.runs {
                Some(true) => Line::ok(check, &format!("{}: {}", one.text, one.state)),
                Some(false) => {
                    let text = format!("{}, and it does not run: {}", one.text, one.state);
                    Line::failed(check, &text, &format!("`{}`; its log says why it ended", one.start))
                }
                None => {
                    let text = format!("{}, and does not say whether it runs", one.text);
                    Line::warning(check, &text, &format!("`{}`", one.start))
                }
            },
            several => {
                let names: Vec<&str> = several.iter().map(|one| one.text.as_str()).collect();
                let fix = format!("take all but one away: `{program} service uninstall --supervisor NAME`");
                Line::failed(check, &names.join("; "), &fix)
            }
        },
    }
}
