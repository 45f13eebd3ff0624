//! What is wrong with a node and what to do: findings in, one line for each check out.
//!
//! The shell looks (files, connections, answers) and stops each way at the first step that fails; here it is judged.
//! A check that was not made because an earlier one failed is skipped, and says so: the first failure is the one to
//! mend.

mod date;
mod machine;
mod network;
mod redact;

use alloc::format;
use alloc::string::{String, ToString as _};
use alloc::vec::Vec;
use core::fmt;

use serde_json::{Value, json};

pub use self::date::http_date;
pub use self::machine::{
    Api, Files, Held, Identity, Kept, Lock, Memory, Registered, Running, SeenFile, Settings, Space,
    Supervision,
};
pub use self::network::{
    Answer, Answers, CERTIFICATE_SOON, Certificate, Insecure, Left, Resolved, Route, Shaken,
};
pub use self::redact::Redactor;
use crate::release::manifest::Manifest;
use crate::text::is_plain;

/// The exit code of `doctor` where a check failed.
pub const FAILED: u8 = 1;

/// A line's text is cut there, in characters.
const MAX_TEXT: usize = 2000;

/// What is looked at, in the order of the lines.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Check {
    /// Options, environment, settings file, proxies.
    Settings,
    /// The state directory and the machine registry.
    Files,
    /// The node's key.
    Identity,
    /// The look-up of the server's name, or of the proxy's.
    Dns,
    /// The connection to the server, or to the proxy and through it.
    Tcp,
    /// The server's certificate.
    Tls,
    /// The upgrade at the tunnel's URL.
    WebSocket,
    /// The tunnel's handshake.
    Handshake,
    /// This machine's clock against the server's.
    Clock,
    /// Whether the network knows the node.
    Registration,
    /// This release against the required one.
    Release,
    /// Room for a release, and for the state.
    Disk,
    /// The machine's memory.
    Memory,
    /// Whether a node runs.
    Node,
    /// Who starts it again.
    Supervisor,
}

impl Check {
    /// As lines name it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Settings => "settings",
            Self::Files => "files",
            Self::Identity => "identity",
            Self::Dns => "dns",
            Self::Tcp => "tcp",
            Self::Tls => "tls",
            Self::WebSocket => "websocket",
            Self::Handshake => "handshake",
            Self::Clock => "clock",
            Self::Registration => "registration",
            Self::Release => "release",
            Self::Disk => "disk",
            Self::Memory => "memory",
            Self::Node => "node",
            Self::Supervisor => "supervisor",
        }
    }
}

/// How a check went.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Nothing is wrong.
    Ok,
    /// The node works, but somebody should know of it.
    Warning,
    /// The node does not work, or will not.
    Failed,
    /// It could not be looked at, because of what failed before or runs now.
    Skipped,
}

impl Verdict {
    /// As lines say it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Warning => "warning",
            Self::Failed => "failed",
            Self::Skipped => "skipped",
        }
    }
}

/// One check's outcome. Its texts are fit for a terminal.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Line {
    /// What was looked at.
    pub check: Check,
    /// How it went.
    pub verdict: Verdict,
    /// What was found.
    pub text: String,
    /// What to do; empty where there is nothing to do.
    pub fix: String,
}

impl Line {
    fn new(check: Check, verdict: Verdict, text: &str, fix: &str) -> Self {
        Self { check, verdict, text: plain(text), fix: plain(fix) }
    }

    fn ok(check: Check, text: &str) -> Self {
        Self::new(check, Verdict::Ok, text, "")
    }

    fn warning(check: Check, text: &str, fix: &str) -> Self {
        Self::new(check, Verdict::Warning, text, fix)
    }

    fn failed(check: Check, text: &str, fix: &str) -> Self {
        Self::new(check, Verdict::Failed, text, fix)
    }

    fn skipped(check: Check, text: &str) -> Self {
        Self::new(check, Verdict::Skipped, text, "")
    }

    fn because_of(check: Check, cause: Check) -> Self {
        Self::skipped(check, &format!("because of {}", cause.name()))
    }

    /// `{"check", "result", "text", "fix"}`; `fix` is null where there is nothing to do.
    #[must_use]
    pub fn to_value(&self) -> Value {
        let fix = (!self.fix.is_empty()).then_some(&self.fix);
        json!({ "check": self.check.name(), "result": self.verdict.name(), "text": self.text, "fix": fix })
    }
}

impl fmt::Display for Line {
    /// One line, or two where there is something to do.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:<8} {:<13} {}", self.verdict.name(), self.check.name(), self.text)?;
        if self.fix.is_empty() { Ok(()) } else { write!(f, "\n{:22} fix: {}", "", self.fix) }
    }
}

/// All that was found.
#[derive(Clone, Debug)]
pub struct Findings {
    /// The program, for what it is told to do.
    pub program: String,
    /// This machine's clock, in unix seconds.
    pub unix_seconds: u64,
    /// The settings.
    pub settings: Settings,
    /// The state directory; `None` where the settings do not say which.
    pub files: Option<Files>,
    /// The key.
    pub identity: Identity,
    /// What the state directory says of a registration.
    pub registered: Registered,
    /// The way to the tunnel; `None` where no server is known.
    pub route: Option<Route>,
    /// What the server's HTTP interface answered.
    pub answers: Answers,
    /// What this release is, or which check says why that is not known.
    pub running: Result<Manifest, Check>,
    /// Room where releases and state are kept.
    pub disk: Vec<Space>,
    /// The memory, where the machine tells it.
    pub memory: Option<Memory>,
    /// Whether a node runs.
    pub node: Running,
    /// What keeps it running.
    pub supervision: Supervision,
}

/// The lines, one for each [`Check`] and in that order.
#[must_use]
pub fn examine(found: &Findings) -> Vec<Line> {
    let mut lines = Vec::from([machine::settings(found), machine::files(found), machine::identity(found)]);
    network::examine(found, &mut lines);
    lines.extend([
        machine::disk(found),
        machine::memory(found),
        machine::node(found),
        machine::supervisor(found),
    ]);
    lines
}

/// The exit code of these lines: 0, or [`FAILED`].
#[must_use]
pub fn exit_code(lines: &[Line]) -> u8 {
    if lines.iter().any(|line| line.verdict == Verdict::Failed) { FAILED } else { 0 }
}

/// `text` on one line and bounded, without what a terminal would obey.
fn plain(text: &str) -> String {
    let mut out: String = text.chars().take(MAX_TEXT).map(|c| if is_plain(c) { c } else { ' ' }).collect();
    if out.len() < text.len() && text.chars().nth(MAX_TEXT).is_some() {
        out.push('…');
    }
    out
}

/// A number of bytes for people.
fn mib(bytes: u64) -> String {
    format!("{} MiB", bytes / (1024 * 1024))
}

fn plural(count: usize, one: &str) -> String {
    let mut text = count.to_string();
    text.push(' ');
    text.push_str(one);
    if count != 1 {
        text.push('s');
    }
    text
}

#[cfg(test)]
mod tests;
