//! A node whose inputs and outputs are written to a file: `--trace`.
//!
//! What is recorded, and how, is core's ([`consensus_core::trace`]); here is the file. It is written whenever the node
//! has come to rest, one write for an input and all that it led to, so that the trace of a node that was killed ends
//! with the last thing it did. A file that cannot be written ends the trace, and not the node.

use std::fs::{File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use consensus_core::event::Level;
use consensus_core::io::{Input, Output};
use consensus_core::time::Now;
use consensus_core::trace::{End, Recorder};
use serde_json::Value;

use crate::log::Log;
use crate::runtime_api::Machine;

/// A recorded node. It runs on core's own cryptography, because that one can be seeded, and does its jobs itself.
#[derive(Debug)]
pub struct Traced {
    recorder: Recorder,
    /// Until the trace has ended.
    file: Option<File>,
    path: PathBuf,
    log: Log,
}

/// Makes the file of a trace, readable by its owner alone.
///
/// # Errors
/// There is a file of that name already, which is never written over, or it cannot be made.
pub fn create(path: &Path) -> io::Result<File> {
    OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)
}

impl Traced {
    /// A node whose trace goes to `file`.
    #[must_use]
    pub fn new(recorder: Recorder, file: File, path: PathBuf, log: Log) -> Self {
        let mut traced = Self { recorder, file: Some(file), path, log };
        traced.write();
        traced
    }

    fn write(&mut self) {
        let Some(file) = &mut self.file else { return };
        let bytes = self.recorder.take_bytes();
        if let Err(error) = file.write_all(&bytes) {
            self.recorder.give_up();
            self.file = None;
            let text = format!("{}: {error}: the trace is cut here; the node goes on", self.path.display());
            return self.note(Level::Warn, &text);
        }
        let Some(end) = self.recorder.end() else { return };
        self.file = None;
        let text = format!("{}: {end}", self.path.display());
        self.note(if end == End::Finished { Level::Debug } else { Level::Warn }, &text);
    }

    fn note(&self, level: Level, text: &str) {
        let members = [("path", Value::from(self.path.to_string_lossy()))];
        self.log.note(level, "trace", "trace_ended", text, &members);
    }
}

impl Machine for Traced {
    fn handle_input(&mut self, now: Now, input: Input) {
        self.recorder.handle_input(now, input);
    }

    fn poll_output(&mut self) -> Output {
        let output = self.recorder.poll_output();
        if matches!(output, Output::Wait(_)) {
            self.write();
        }
        output
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use consensus_core::data_plane::replay::Before;
    use consensus_core::limits::Limits;
    use consensus_core::node::Config;
    use consensus_core::release::manifest::Manifest;
    use consensus_core::trace;
    use consensus_core::update::Settings;

    use super::*;
    use crate::log::Format;
    use crate::state_dir::StateDir;

    #[test]
    fn a_trace_is_for_its_owner_and_never_written_over() {
        let folder = std::env::temp_dir().join(format!("consensus-trace-{}", std::process::id()));
        let _ = StateDir::open(&folder).unwrap();
        let path = folder.join("trace");
        let mode = create(&path).unwrap().metadata().unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        assert_eq!(create(&path).unwrap_err().kind(), io::ErrorKind::AlreadyExists);
        std::fs::remove_dir_all(&folder).unwrap();
    }

    #[test]
    fn a_full_disk_ends_the_trace_and_not_the_node() {
        let config = Config {
            mode: None,
            tunnel_url: String::new(),
            server_key: None,
            identity_seed: [7; 32].into(),
            candidate_id: None,
            registration: None,
            manifest: Manifest::of_this_release("0.1.0", "unknown", "linux-x64"),
            limits: Limits::default(),
            allow_private_targets: false,
            spent_before: Before::Never,
            updates: Settings::default(),
        };
        let (program, program_version) = ("test".to_owned(), "1".to_owned());
        let settings = trace::Settings { program, program_version, secrets: true, limit: trace::MIN_LIMIT };
        let now = crate::system::now();
        let recorder = Recorder::new(settings, config, [9; 32], now);
        let full = File::options().write(true).open("/dev/full").unwrap();
        let log = Log::stderr(Some(Format::Json), Level::Error);
        let mut traced = Traced::new(recorder, full, "/dev/full".into(), log);
        assert!(traced.file.is_none());
        traced.handle_input(now, Input::Tick);
        assert_eq!(traced.poll_output(), Output::Wait(None));
        traced.handle_input(now, Input::Stop);
        let mut outputs = std::iter::from_fn(|| Some(traced.poll_output())).take(9);
        assert!(outputs.any(|output| matches!(output, Output::Finish(_))));
    }
}
