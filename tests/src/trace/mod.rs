//! What a node did, from its trace: run again, or shown.

mod corpus;
mod sequence;
mod spy;
mod svg;

use std::fs::File;
use std::io::{self, Read as _, Write as _};
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use argh::FromArgs;
use consensus_core::crypto::pure::Pure;
use consensus_core::io::Output;
use consensus_core::text::printable;
use consensus_core::trace::{Difference, Header, Reader, Replay, Step, about};

pub use self::corpus::{CorpusCommand, run_corpus, seeds};
pub use self::sequence::{Entry, Side, entries, visit};
pub use self::svg::Picture;

/// The longest trace that a node writes, in bytes; longer files are not read.
const MAX_FILE: u64 = 1024 * 1024 * 1024;

/// Run a node's trace again, and say where the outputs are others than recorded.
///
/// Exit code 0: none is. 1: one is, or the trace is not whole, or it has no secrets and cannot be run.
///
/// Example: consensus-testbed replay node.trace
#[derive(Clone, Debug, FromArgs)]
#[argh(subcommand, name = "replay")]
pub struct ReplayCommand {
    /// recorded with --trace and --trace-secrets
    #[argh(positional)]
    pub file: PathBuf,
}

/// Show what a node was told and did, one line for each; with secrets also what was in the messages.
///
/// Example: consensus-testbed show node.trace --svg node.svg
#[derive(Clone, Debug, FromArgs)]
#[argh(subcommand, name = "show")]
pub struct ShowCommand {
    /// recorded with --trace
    #[argh(positional)]
    pub file: PathBuf,

    /// draw the sequence into this file
    #[argh(option)]
    pub svg: Option<PathBuf>,
}

/// Reads the file of a trace.
///
/// # Errors
/// It cannot be read, or is longer than any trace.
pub fn read(path: &Path) -> io::Result<Vec<u8>> {
    let mut trace = Vec::new();
    File::open(path)?.take(MAX_FILE + 1).read_to_end(&mut trace)?;
    if trace.len() as u64 > MAX_FILE {
        return Err(io::Error::other("longer than any trace"));
    }
    Ok(trace)
}

fn file(path: &Path) -> Result<Vec<u8>, String> {
    read(path).map_err(|error| format!("{}: {error}", path.display()))
}

/// One line about who recorded what.
fn title(header: &Header) -> String {
    let mode = header.mode.map_or("local API", |mode| mode.as_str());
    let node =
        header.node_id.as_deref().map_or(String::from("a node without a name"), |id| format!("node {id}"));
    let at = consensus_core::time::iso8601(header.started.unix);
    let (program, version) = (&header.program, &header.program_version);
    printable(&format!("{program} {version}, {mode}, {node}, release {}, from {at}", header.release))
}

/// Runs a trace to its end; what is to be said, `Err` where it did not run as recorded.
///
/// # Errors
/// The first difference, or why the trace cannot be run.
pub fn replay(trace: &[u8]) -> Result<String, String> {
    let reader = Reader::new(trace).map_err(|error| error.to_string())?;
    let started = reader.header().started.monotonic;
    let title = title(reader.header());
    let mut replay = Replay::new(reader, Pure).map_err(|error| error.to_string())?;
    let (mut inputs, mut outputs) = (0_u64, 0_u64);
    loop {
        match replay.step() {
            Ok(Some((_, Step::Input(..)))) => inputs += 1,
            Ok(Some((_, Step::Output(_)))) => outputs += 1,
            Ok(Some((_, Step::Difference(difference)))) => {
                let Difference { record, at, expected, got } = *difference;
                let at = at.monotonic.saturating_sub(started).as_secs_f64();
                let (expected, got) = (both(&expected, &got), both(&got, &expected));
                return Err(format!(
                    "{title}\nrecord {record}, at {at:.3} s: another output\n  expected {expected}\n  got      {got}"
                ));
            }
            Ok(Some((_, Step::End(end)))) => {
                return Ok(format!("{title}\n{inputs} inputs led to the same {outputs} outputs; {end}"));
            }
            Ok(None) => return Err(String::from("the trace has no end")),
            Err(error) => {
                return Err(format!(
                    "{title}\n{error}\n{inputs} inputs led to the same {outputs} outputs until there"
                ));
            }
        }
    }
}

/// An output for people; in full where its line is that of the other one.
fn both(output: &Output, other: &Output) -> String {
    let line = about::output(output);
    if line == about::output(other) { printable(&format!("{output:?}")) } else { line }
}

/// `replay`.
#[must_use]
pub fn run_replay(command: &ReplayCommand) -> ExitCode {
    let named = |error: String| format!("{}: {error}", command.file.display());
    match file(&command.file).and_then(|trace| replay(&trace).map_err(named)) {
        Ok(text) => {
            println!("{text}");
            ExitCode::SUCCESS
        }
        Err(text) => {
            eprintln!("consensus-testbed: {text}");
            ExitCode::FAILURE
        }
    }
}

/// `show`.
#[must_use]
pub fn run_show(command: &ShowCommand) -> ExitCode {
    match show(command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(text) => {
            eprintln!("consensus-testbed: {text}");
            ExitCode::FAILURE
        }
    }
}

fn show(command: &ShowCommand) -> Result<(), String> {
    let trace = file(&command.file)?;
    let reader = Reader::new(&trace).map_err(|error| format!("{}: {error}", command.file.display()))?;
    let title = title(reader.header());
    let (mut out, mut picture) = (io::stdout().lock(), Picture::default());
    let mut written = writeln!(out, "{title}");
    // Line by line: a trace may be longer than this machine's memory has room for in lines. What was read before an
    // error is shown all the same.
    let visited = visit(reader, &mut |entry| {
        if written.is_ok() {
            written = writeln!(out, "{}", entry.line());
        }
        if written.is_err() {
            return ControlFlow::Break(());
        }
        picture.add(&entry);
        ControlFlow::Continue(())
    });
    match written {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => return Ok(()),
        result => result.map_err(|error| format!("standard output: {error}"))?,
    }
    if let Some(path) = &command.svg {
        std::fs::write(path, picture.svg(&title)).map_err(|error| format!("{}: {error}", path.display()))?;
    }
    visited
}
