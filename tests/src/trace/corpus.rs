//! Seeds for the fuzz targets, from what really came over a wire.

use std::collections::BTreeSet;
use std::fs;
use std::path::PathBuf;
use std::process::ExitCode;

use argh::FromArgs;
use consensus_core::crypto::Crypto as _;
use consensus_core::crypto::pure::Pure;
use consensus_core::io::{Input, Output};
use consensus_core::trace::{Reader, Replay, Step};
use consensus_core::wire::frame;
use consensus_core::wire::message::Message;

use super::spy::{Seen, Spy};

/// The longest seed, in bytes: a fuzzer is slow with long ones, and the repository keeps them.
const MAX_SEED: usize = 4096;

/// Make seeds for the fuzz targets frame, handshake and message from a node's trace with secrets. Only from a network of
/// your own: what was in the messages is in the seeds.
///
/// Example: consensus-testbed corpus node.trace fuzz/corpus
#[derive(Clone, Debug, FromArgs)]
#[argh(subcommand, name = "corpus")]
pub struct CorpusCommand {
    /// recorded with --trace and --trace-secrets
    #[argh(positional)]
    pub file: PathBuf,

    /// the folder of corpora: each target's is a folder in it
    #[argh(positional)]
    pub folder: PathBuf,
}

/// The seeds of a trace: target and content.
///
/// # Errors
/// Why the trace cannot be run.
pub fn seeds(trace: &[u8]) -> Result<BTreeSet<(&'static str, Vec<u8>)>, String> {
    let spy = Spy::default();
    let reader = Reader::new(trace).map_err(|error| error.to_string())?;
    let mut replay = Replay::new(reader, spy.clone()).map_err(|error| error.to_string())?;
    let mut all = BTreeSet::new();
    while let Some((record, step)) = replay.step().map_err(|error| error.to_string())? {
        let mut data = match step {
            Step::Input(_, Input::LinkBinary { data, .. } | Input::LocalMessage { data, .. })
            | Step::Output(Output::Send { data, .. } | Output::SendLocal { data, .. }) => data,
            Step::Difference(_) => {
                return Err(format!("record {record} is not what this core does: see `replay`"));
            }
            Step::Input(..) | Step::Output(_) | Step::End(_) => Vec::new(),
        };
        // The two messages of a handshake are JSON; all that follow are frames.
        if data.starts_with(b"{") {
            all.insert(("handshake", data));
        } else if frame::split(&mut data).is_ok() {
            all.insert(("frame", data));
        }
        for seen in spy.take() {
            let (Seen::Opened(data) | Seen::Sealed(data)) = seen;
            if Message::parse(&data).is_ok() {
                all.insert(("message", data));
            }
        }
    }
    all.retain(|(_, data)| data.len() <= MAX_SEED);
    Ok(all)
}

/// `corpus`.
#[must_use]
pub fn run_corpus(command: &CorpusCommand) -> ExitCode {
    match write(command) {
        Ok(count) => {
            println!("{count} seeds in {}", command.folder.display());
            ExitCode::SUCCESS
        }
        Err(text) => {
            eprintln!("consensus-testbed: {text}");
            ExitCode::FAILURE
        }
    }
}

fn write(command: &CorpusCommand) -> Result<usize, String> {
    let seeds = seeds(&super::file(&command.file)?)?;
    for (target, data) in &seeds {
        let folder = command.folder.join(target);
        // A seed is named by its content, so that it is there once.
        let name: String = Pure.sha256(&[data]).iter().take(8).map(|byte| format!("{byte:02x}")).collect();
        let path = folder.join(name);
        fs::create_dir_all(&folder)
            .and_then(|()| fs::write(&path, data))
            .map_err(|error| format!("{}: {error}", path.display()))?;
    }
    Ok(seeds.len())
}
