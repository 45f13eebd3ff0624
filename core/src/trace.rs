//! Record and replay of everything that a node is told and says, for auditors.
//!
//! A trace is a file of records. It begins with [`MAGIC`] and the version of the format (2 bytes, little endian); a
//! record is its length (4 bytes, little endian, at most [`MAX_RECORD`]), the CRC-32 of its body (4 bytes, likewise)
//! and its body, in postcard. The first record is the [`Header`]; the last one says why the trace ends.
//!
//! What the core consumes is all there: configuration, seed, and each input with its time. So a trace that was recorded
//! on the seeded provider ([`Pure`]) leads to the same outputs, bit for bit, when it is run again: [`Replay`].
//!
//! A job of the data plane ([`Output::Compute`]) is no input: what it makes holds keys and is no plain data, and when it
//! comes back is for other threads to say. A traced node therefore does its jobs itself, at once, in the order it gave
//! them out and at the time of the input that led to them: nothing but inputs moves it, and the trace is complete.
//!
//! A trace with secrets holds the node's private key, its seed, and so all that it ever sealed. One without has neither:
//! of each record it has a line made of numbers and of names that the protocol fixes ([`about`]), which can be shown but
//! not replayed. It is built from what may be told, and not by striking out what may not.

pub mod about;
mod config;
pub(crate) mod json;

use alloc::boxed::Box;
use alloc::string::String;
use alloc::vec::Vec;
use core::fmt;
use core::time::Duration;

use serde::{Deserialize, Serialize};

use self::config::{BadConfig, Stored};
use crate::crypto::Crypto;
use crate::crypto::pure::Pure;
use crate::io::{Input, Output};
use crate::node::{Config, Node};
use crate::time::Now;
use crate::tunnel::Mode;

/// What a trace begins with.
pub const MAGIC: [u8; 8] = *b"CNTRACE\n";

/// The version of the format.
pub const VERSION: u16 = 1;

/// The largest record, in bytes: the largest body that is fetched, in base64, with room for what is around it.
pub const MAX_RECORD: usize = 80 * 1024 * 1024;

/// The smallest bound on a trace that has room for its header and its end.
pub const MIN_LIMIT: u64 = 1024 * 1024;

/// No clock of a trace is past this; there is no such process, and the arithmetic of deadlines stays exact.
const MAX_MONOTONIC: Duration = Duration::from_secs(1 << 30);

/// The year 9999, about.
const MAX_UNIX: Duration = Duration::from_secs(253_402_300_800);

/// What stands before the body of a record, in bytes.
const PREFIX: usize = 8;

/// Kept free for the record that ends a trace.
const ROOM_FOR_END: u64 = 64;

/// The first record.
#[derive(Clone, Serialize, Deserialize)]
pub struct Header {
    /// The program that recorded it.
    pub program: String,
    /// The version of that program.
    pub program_version: String,
    /// What the node's tunnel was for.
    pub mode: Option<Mode>,
    /// The node's name, where it had one.
    pub node_id: Option<String>,
    /// The release that the node told to be.
    pub release: String,
    /// When the node was made.
    pub started: Now,
    secrets: Option<Secrets>,
}

#[derive(Clone, Serialize, Deserialize)]
struct Secrets {
    seed: [u8; 32],
    config: Stored,
}

impl Header {
    /// Whether the trace can be replayed.
    #[must_use]
    pub const fn has_secrets(&self) -> bool {
        self.secrets.is_some()
    }
}

impl fmt::Debug for Header {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Header")
            .field("program", &self.program)
            .field("program_version", &self.program_version)
            .field("mode", &self.mode)
            .field("has_secrets", &self.has_secrets())
            .finish_non_exhaustive()
    }
}

/// A record after the first. Borrowed to be written, owned when read.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Record<I = Input, O = Output> {
    /// The node was told something.
    Input {
        /// When.
        now: Now,
        /// What.
        input: I,
    },
    /// The node wanted something.
    Output(O),
    /// The node was told something, in a trace without secrets.
    Told {
        /// When.
        now: Now,
        /// What, as [`about::input`] has it.
        what: String,
    },
    /// The node wanted something, in a trace without secrets: as [`about::output`] has it.
    Wanted(String),
    /// The last one.
    End(End),
}

/// Why a trace ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum End {
    /// The node came to its end.
    Finished,
    /// The trace was as long as it may be; the node went on.
    Limit,
    /// Something cannot be recorded exactly, such as a figure that is no number; the node went on.
    Inexact,
}

impl fmt::Display for End {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Finished => "the node came to its end",
            Self::Limit => "the trace had its size; the node went on without it",
            Self::Inexact => "something could not be recorded exactly; the node went on without a trace",
        })
    }
}

/// Who records, and how much of it.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The program's name.
    pub program: String,
    /// Its version.
    pub program_version: String,
    /// Whether to record what makes a replay possible.
    pub secrets: bool,
    /// The bound of the whole trace, in bytes; at least [`MIN_LIMIT`].
    pub limit: u64,
}

/// A node that is recorded. The bytes of the trace are taken as they come: [`take_bytes`](Self::take_bytes).
#[derive(Debug)]
pub struct Recorder {
    node: Node<Pure>,
    now: Now,
    secrets: bool,
    /// Bytes that may still be written.
    left: u64,
    bytes: Vec<u8>,
    has_finished: bool,
    end: Option<End>,
}

impl Recorder {
    /// A node as [`Node::new`] makes it, and the head of its trace.
    #[must_use]
    pub fn new(settings: Settings, config: Config, seed: [u8; 32], now: Now) -> Self {
        let header = Header {
            program: settings.program,
            program_version: settings.program_version,
            mode: config.mode,
            node_id: config.registration.as_ref().map(|registration| registration.node_id.clone()),
            release: config.manifest.version.clone(),
            started: now,
            secrets: settings.secrets.then(|| Secrets { seed, config: Stored::of(&config) }),
        };
        let mut bytes = MAGIC.to_vec();
        bytes.extend(VERSION.to_le_bytes());
        let left = settings.limit.max(MIN_LIMIT) - bytes.len() as u64 - ROOM_FOR_END;
        let node = Node::new(config, Pure, seed, now);
        let secrets = settings.secrets;
        let mut recorder = Self { node, now, secrets, left, bytes, has_finished: false, end: None };
        recorder.write(&header);
        recorder
    }

    /// As [`Node::handle_input`].
    pub fn handle_input(&mut self, now: Now, input: Input) {
        self.now = now;
        if self.end.is_none() {
            if !self.secrets {
                self.write(&Record::<(), ()>::Told { now, what: about::input(&input) });
            } else if is_exact(&input) {
                self.write(&Record::<_, ()>::Input { now, input: &input });
            } else {
                self.finish(End::Inexact);
            }
        }
        self.node.handle_input(now, input);
    }

    /// As [`Node::poll_output`], but for [`Output::Compute`], which is done here.
    #[must_use]
    pub fn poll_output(&mut self) -> Output {
        loop {
            let output = self.node.poll_output();
            if self.end.is_none() {
                if self.secrets {
                    self.write(&Record::<(), _>::Output(&output));
                } else {
                    self.write(&Record::<(), ()>::Wanted(about::output(&output)));
                }
            }
            match output {
                Output::Compute { job } => self.node.compute(self.now, job),
                Output::Wait(_) if self.has_finished => {
                    self.finish(End::Finished);
                    return output;
                }
                output => {
                    self.has_finished |= matches!(output, Output::Finish(_));
                    return output;
                }
            }
        }
    }

    /// What has to be appended to the file.
    #[must_use]
    pub fn take_bytes(&mut self) -> Vec<u8> {
        core::mem::take(&mut self.bytes)
    }

    /// Why nothing more is recorded, when that is so.
    #[must_use]
    pub const fn end(&self) -> Option<End> {
        self.end
    }

    /// Records nothing more, because nobody can take it.
    pub fn give_up(&mut self) {
        self.end = self.end.or(Some(End::Limit));
        self.bytes = Vec::new();
    }

    fn finish(&mut self, end: End) {
        if self.end.is_none() {
            self.end = Some(end);
            // There is room for it.
            if let Some(record) = encode(&Record::<(), ()>::End(end)) {
                self.bytes.extend(record);
            }
        }
    }

    fn write(&mut self, record: &impl Serialize) {
        let Some(record) = encode(record) else { return self.finish(End::Inexact) };
        match self.left.checked_sub(record.len() as u64) {
            Some(left) if record.len() <= PREFIX + MAX_RECORD => {
                self.left = left;
                self.bytes.extend(record);
            }
            _ => self.finish(End::Limit),
        }
    }
}

/// Whether an input is itself again after it was written and read. JSON, in which reports are, has no number for what
/// is no number.
fn is_exact(input: &Input) -> bool {
    use crate::io::EffectResult::{Inspected, Measured};
    let Input::Done { result: Measured(_) | Inspected(_), .. } = input else { return true };
    postcard::to_allocvec(input)
        .is_ok_and(|bytes| postcard::from_bytes::<Input>(&bytes).is_ok_and(|again| again == *input))
}

fn encode(record: &impl Serialize) -> Option<Vec<u8>> {
    let mut out = postcard::to_extend(record, alloc::vec![0; PREFIX]).ok()?;
    let (prefix, body) = out.split_at_mut(PREFIX);
    prefix[..4].copy_from_slice(&u32::try_from(body.len()).ok()?.to_le_bytes());
    prefix[4..].copy_from_slice(&crc32fast::hash(body).to_le_bytes());
    Some(out)
}

/// Why a trace cannot be read, or not further. Records are counted from 0, the header.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TraceError {
    /// It does not begin as one.
    NotATrace,
    /// It is of a format that this program does not know.
    OtherVersion(u16),
    /// It ends without its end: the program that wrote it was killed, or the file was cut.
    Cut(u64),
    /// A record says to be over [`MAX_RECORD`].
    TooLarge(u64),
    /// A record is not what was written.
    Damaged(u64),
    /// A record has its checksum, but is none that a node's run leads to.
    Malformed(u64),
    /// Something follows the end.
    AfterEnd(u64),
    /// It holds no secrets, and so cannot be replayed.
    NoSecrets,
    /// The configuration in it is none that a node could have.
    Config(BadConfig),
}

impl fmt::Display for TraceError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotATrace => f.write_str("not a trace"),
            Self::OtherVersion(version) => {
                write!(f, "a trace of format {version}; this program reads format {VERSION}")
            }
            Self::Cut(record) => write!(
                f,
                "the trace is cut off in or before record {record}: the node was killed, or the file is not whole"
            ),
            Self::TooLarge(record) => write!(f, "record {record} says to be over {MAX_RECORD} bytes"),
            Self::Damaged(record) => write!(f, "record {record} is damaged: its checksum is another"),
            Self::Malformed(record) => write!(f, "record {record} is none that a node's run leads to"),
            Self::AfterEnd(record) => write!(f, "something follows record {record}, which ends the trace"),
            Self::NoSecrets => f.write_str(
                "the trace holds no secrets and can be shown, but not replayed; one recorded with --trace-secrets can",
            ),
            Self::Config(why) => write!(f, "the configuration in the trace is none that a node has: {why}"),
        }
    }
}

impl core::error::Error for TraceError {}

/// Reads a trace record by record. What it takes of memory is in proportion to the record at hand.
#[derive(Clone, Debug)]
pub struct Reader<'a> {
    rest: &'a [u8],
    header: Header,
    /// The number of the next record.
    next: u64,
    monotonic: Duration,
    has_ended: bool,
}

impl<'a> Reader<'a> {
    /// Reads the head of a trace.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn new(trace: &'a [u8]) -> Result<Self, TraceError> {
        let (magic, rest) = trace.split_at_checked(MAGIC.len()).ok_or(TraceError::NotATrace)?;
        if magic != MAGIC {
            return Err(TraceError::NotATrace);
        }
        let (version, mut rest) = rest.split_at_checked(2).ok_or(TraceError::Cut(0))?;
        let version = u16::from_le_bytes([version[0], version[1]]);
        if version != VERSION {
            return Err(TraceError::OtherVersion(version));
        }
        let header: Header = decode(take(&mut rest, 0)?, 0)?;
        if !is_sane(header.started) {
            return Err(TraceError::Malformed(0));
        }
        let monotonic = header.started.monotonic;
        Ok(Self { rest, header, next: 1, monotonic, has_ended: false })
    }

    /// The first record.
    #[must_use]
    pub const fn header(&self) -> &Header {
        &self.header
    }

    /// The next record and its number; `None` after the one that ends the trace.
    ///
    /// # Errors
    /// What is wrong with it. Nothing is to be read after an error.
    pub fn next_record(&mut self) -> Result<Option<(u64, Record)>, TraceError> {
        let number = self.next;
        if self.has_ended {
            let is_over = self.rest.is_empty();
            return if is_over { Ok(None) } else { Err(TraceError::AfterEnd(number - 1)) };
        }
        let record: Record = decode(take(&mut self.rest, number)?, number)?;
        if let Record::Input { now, .. } | Record::Told { now, .. } = &record {
            if !is_sane(*now) || now.monotonic < self.monotonic {
                return Err(TraceError::Malformed(number));
            }
            self.monotonic = now.monotonic;
        }
        let is_whole = matches!(record, Record::Input { .. } | Record::Output(_));
        self.has_ended = matches!(record, Record::End(_));
        if !self.has_ended && is_whole != self.header.has_secrets() {
            return Err(TraceError::Malformed(number));
        }
        self.next += 1;
        Ok(Some((number, record)))
    }
}

fn is_sane(now: Now) -> bool {
    now.monotonic <= MAX_MONOTONIC && now.unix <= MAX_UNIX
}

/// The body of the next record.
fn take<'a>(rest: &mut &'a [u8], number: u64) -> Result<&'a [u8], TraceError> {
    let (prefix, after) = rest.split_at_checked(PREFIX).ok_or(TraceError::Cut(number))?;
    let word = |at: usize| u32::from_le_bytes([prefix[at], prefix[at + 1], prefix[at + 2], prefix[at + 3]]);
    let length = usize::try_from(word(0)).unwrap_or(usize::MAX);
    if length > MAX_RECORD {
        return Err(TraceError::TooLarge(number));
    }
    let (body, after) = after.split_at_checked(length).ok_or(TraceError::Cut(number))?;
    if crc32fast::hash(body) != word(4) {
        return Err(TraceError::Damaged(number));
    }
    *rest = after;
    Ok(body)
}

fn decode<'a, T: Deserialize<'a>>(body: &'a [u8], number: u64) -> Result<T, TraceError> {
    match postcard::take_from_bytes(body) {
        Ok((value, [])) => Ok(value),
        _ => Err(TraceError::Malformed(number)),
    }
}

/// The first place where a run was another than the trace says.
#[derive(Clone, Debug, PartialEq)]
pub struct Difference {
    /// The number of the record.
    pub record: u64,
    /// When the input before it was told.
    pub at: Now,
    /// What the trace says.
    pub expected: Output,
    /// What the core wants now.
    pub got: Output,
}

/// One step of a replay.
#[derive(Clone, Debug, PartialEq)]
pub enum Step {
    /// The node was told this.
    Input(Now, Input),
    /// The node wanted this, as the trace says.
    Output(Output),
    /// The node wanted something else. Nothing that follows means anything.
    Difference(Box<Difference>),
    /// All of the trace was run, and was the same.
    End(End),
}

/// Runs a trace again.
///
/// `C` is [`Pure`], or a provider that does the same and looks on.
pub struct Replay<'a, C: Crypto> {
    reader: Reader<'a>,
    node: Node<C>,
    now: Now,
    /// No input since the last output that says to wait: an input may come.
    is_drained: bool,
    is_over: bool,
}

impl<C: Crypto> fmt::Debug for Replay<'_, C> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Replay")
            .field("reader", &self.reader)
            .field("node", &self.node)
            .finish_non_exhaustive()
    }
}

impl<'a, C: Crypto> Replay<'a, C> {
    /// The node of a trace, as it was made.
    ///
    /// # Errors
    /// The trace has no secrets, or a configuration that no node has.
    pub fn new(reader: Reader<'a>, crypto: C) -> Result<Self, TraceError> {
        let Some(Secrets { seed, config }) = reader.header.secrets.clone() else {
            return Err(TraceError::NoSecrets);
        };
        let now = reader.header.started;
        let config = config.into_config(reader.header.mode).map_err(TraceError::Config)?;
        let node = Node::new(config, crypto, seed, now);
        Ok(Self { reader, node, now, is_drained: true, is_over: false })
    }

    /// The node as it stands.
    #[must_use]
    pub const fn node(&self) -> &Node<C> {
        &self.node
    }

    /// Goes on by one record: tells the node an input, or compares an output. `None` after the end, and after a
    /// difference.
    ///
    /// # Errors
    /// The trace cannot be read, or is none of a run.
    pub fn step(&mut self) -> Result<Option<(u64, Step)>, TraceError> {
        if self.is_over {
            return Ok(None);
        }
        let result = self.advance();
        self.is_over = !matches!(result, Ok(Some((_, Step::Input(..) | Step::Output(_)))));
        result
    }

    fn advance(&mut self) -> Result<Option<(u64, Step)>, TraceError> {
        let Some((number, record)) = self.reader.next_record()? else { return Ok(None) };
        let step = match record {
            // A shell drains its node before it tells the next thing.
            Record::Input { now, input } if self.is_drained => {
                self.now = now;
                self.is_drained = false;
                self.node.handle_input(now, input.clone());
                Step::Input(now, input)
            }
            Record::Output(expected) => {
                let got = self.node.poll_output();
                self.is_drained = matches!(got, Output::Wait(_));
                // As it is written: what is no number is equal to itself there.
                if postcard::to_allocvec(&got) != postcard::to_allocvec(&expected) {
                    let (record, at) = (number, self.now);
                    Step::Difference(Difference { record, at, expected, got }.into())
                } else {
                    if let Output::Compute { job } = expected {
                        self.node.compute(self.now, job);
                    }
                    Step::Output(expected)
                }
            }
            Record::End(end) => match self.reader.next_record()? {
                None => Step::End(end),
                Some(_) => return Err(TraceError::AfterEnd(number)),
            },
            Record::Input { .. } | Record::Told { .. } | Record::Wanted(_) => {
                return Err(TraceError::Malformed(number));
            }
        };
        Ok(Some((number, step)))
    }
}

/// The trace with every checksum put right, as far as its lengths lead: for the fuzzer.
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) fn mended(trace: &[u8]) -> Vec<u8> {
    let mut out = trace.to_vec();
    let mut at = MAGIC.len() + 2;
    while let Some(prefix) = out.get(at..at + PREFIX) {
        let length = u32::from_le_bytes([prefix[0], prefix[1], prefix[2], prefix[3]]) as usize;
        // Where an address has 32 bits, their sum may be more than one can say.
        let Some(body) = out.get(at + PREFIX..).and_then(|rest| rest.get(..length)) else { break };
        let crc = crc32fast::hash(body).to_le_bytes();
        out[at + 4..at + PREFIX].copy_from_slice(&crc);
        at += PREFIX + length;
    }
    out
}

#[cfg(test)]
mod tests;
