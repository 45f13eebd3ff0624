//! A trace as a sequence of lines.

use std::ops::ControlFlow;
use std::time::Duration;

use consensus_core::io::{Effect, Fetch, Input, Output};
use consensus_core::text::printable;
use consensus_core::trace::{Reader, Record, Replay, Step, about};

use super::spy::{Seen, Spy};

/// Whom the node has to do with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// The network's server, through the tunnel.
    Server,
    /// Nobody: the node itself.
    Node,
    /// A client of the node, a target that it fetches from, or its own machine.
    Client,
}

/// One thing that happened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// The record it is from.
    pub record: u64,
    /// Since the node was made.
    pub at: Duration,
    /// With whom.
    pub side: Side,
    /// Whether it was the node's doing.
    pub outward: bool,
    /// What, in printable text.
    pub text: String,
    /// It takes part in a picture: neither a look at the clock nor the wait for one.
    pub is_news: bool,
}

impl Entry {
    /// For a terminal.
    #[must_use]
    pub fn line(&self) -> String {
        let arrow = match (self.side, self.outward) {
            (Side::Server, true) => "server <-",
            (Side::Server, false) => "server ->",
            (Side::Client, true) => "client <-",
            (Side::Client, false) => "client ->",
            (Side::Node, _) => "node     ",
        };
        format!("{:>6} {:>11.6} {arrow} {}", self.record, self.at.as_secs_f64(), self.text)
    }
}

/// Tells `each` all that is in a trace, one after the other, for as long as it wants more; the error says why there is
/// no more where the trace is not whole. With secrets it is run again, for what the messages said.
///
/// # Errors
/// What is wrong with the trace.
pub fn visit(reader: Reader<'_>, each: &mut dyn FnMut(Entry) -> ControlFlow<()>) -> Result<(), String> {
    if reader.header().has_secrets() { replayed(reader, each) } else { told(reader, each) }
}

/// All that [`visit`] tells, for short traces, and its error.
#[must_use]
pub fn entries(reader: Reader<'_>) -> (Vec<Entry>, Option<String>) {
    let mut all = Vec::new();
    let result = visit(reader, &mut |entry| {
        all.push(entry);
        ControlFlow::Continue(())
    });
    (all, result.err())
}

fn told(mut reader: Reader<'_>, each: &mut dyn FnMut(Entry) -> ControlFlow<()>) -> Result<(), String> {
    let started = reader.header().started.monotonic;
    let mut at = Duration::ZERO;
    loop {
        let (record, text, outward) = match reader.next_record() {
            Ok(Some((record, Record::Told { now, what }))) => {
                at = now.monotonic.saturating_sub(started);
                (record, what, false)
            }
            Ok(Some((record, Record::Wanted(what)))) => (record, what, true),
            Ok(Some((record, Record::End(end)))) => (record, format!("the end: {end}"), true),
            // A trace without secrets has no others: the reader sees to it.
            Ok(Some((_, Record::Input { .. } | Record::Output(_)))) => continue,
            Ok(None) => return Ok(()),
            Err(error) => return Err(error.to_string()),
        };
        let text = printable(&text);
        // The words are core's own: `about` makes them.
        let side = match text.split([' ', ':']).next() {
            Some("link") => Side::Server,
            Some("open" | "close" | "drop" | "hold" | "go") if text.contains("link") => Side::Server,
            Some("tick" | "wait" | "say" | "finish" | "the" | "stop") => Side::Node,
            _ => Side::Client,
        };
        let is_news = !text.starts_with("wait") && text != "tick" && !text.ends_with("bytes were sent");
        if each(Entry { record, at, side, outward, text, is_news }).is_break() {
            return Ok(());
        }
    }
}

fn replayed(reader: Reader<'_>, each: &mut dyn FnMut(Entry) -> ControlFlow<()>) -> Result<(), String> {
    let started = reader.header().started.monotonic;
    let spy = Spy::default();
    let mut replay = Replay::new(reader, spy.clone()).map_err(|error| error.to_string())?;
    let mut at = Duration::ZERO;
    let mut state = String::new();
    loop {
        let entry = match replay.step() {
            Ok(Some((record, Step::Input(now, input)))) => {
                at = now.monotonic.saturating_sub(started);
                of_input(record, at, &input)
            }
            Ok(Some((record, Step::Output(output)))) => of_output(record, at, &output),
            Ok(Some((record, Step::End(end)))) => {
                let text = format!("the end: {end}");
                Entry { record, at, side: Side::Node, outward: true, text, is_news: true }
            }
            Ok(Some((_, Step::Difference(difference)))) => {
                let record = difference.record;
                return Err(format!("record {record} is not what this core does: see `replay`"));
            }
            Ok(None) => return Ok(()),
            Err(error) => return Err(error.to_string()),
        };
        // A job is about what a client said; all else that is sealed or opened is of the tunnel.
        let (record, is_job) = (entry.record, entry.outward);
        let side = if is_job { Side::Node } else { Side::Server };
        let seen = spy.take().into_iter().map(|seen| {
            let (outward, verb, data) = match &seen {
                Seen::Opened(data) => (false, "opened", data),
                Seen::Sealed(data) => (true, "sealed", data),
            };
            let text = format!("{verb}: {}", plain(data));
            Entry { record, at, side, outward, text, is_news: true }
        });
        let now = replay.node().state();
        let change = (now != state).then(|| {
            state = now;
            let text = format!("state: {state}");
            Entry { record, at, side: Side::Node, outward: true, text, is_news: true }
        });
        for entry in [entry].into_iter().chain(seen).chain(change) {
            if each(entry).is_break() {
                return Ok(());
            }
        }
    }
}

/// The begin of a message, in printable text.
fn plain(data: &[u8]) -> String {
    let begin = &data[..data.len().min(2048)];
    printable(&String::from_utf8_lossy(begin))
}

fn of_input(record: u64, at: Duration, input: &Input) -> Entry {
    let (side, is_news) = match input {
        Input::Tick => (Side::Node, false),
        Input::Stop => (Side::Node, true),
        Input::LinkSent { .. } => (Side::Server, false),
        Input::LinkOpened { .. }
        | Input::LinkBinary { .. }
        | Input::LinkText { .. }
        | Input::LinkEnded { .. } => (Side::Server, true),
        Input::SocketSent { .. } => (Side::Client, false),
        Input::Done { .. }
        | Input::SocketOpened { .. }
        | Input::SocketData { .. }
        | Input::SocketEnded { .. }
        | Input::Local { .. }
        | Input::LocalMessage { .. }
        | Input::LocalEnded { .. } => (Side::Client, true),
    };
    let mut text = about::input(input);
    match input {
        Input::LinkText { text: said, .. } => text.push_str(&format!(": {}", printable(said))),
        Input::Local { request, .. } => text.push_str(&format!(": {}", printable(&request.target))),
        _ => {}
    }
    Entry { record, at, side, outward: false, text, is_news }
}

fn of_output(record: u64, at: Duration, output: &Output) -> Entry {
    let (side, is_news) = match output {
        Output::Wait(_) => (Side::Node, false),
        Output::Event(_) | Output::Finish(_) | Output::Compute { .. } => (Side::Node, true),
        Output::OpenLink { .. }
        | Output::Send { .. }
        | Output::CloseLink { .. }
        | Output::DropLink { .. }
        | Output::HoldLink { .. } => (Side::Server, true),
        Output::ReadSocket { .. } => (Side::Client, false),
        Output::OpenSocket { .. }
        | Output::SendSocket { .. }
        | Output::CloseSocket { .. }
        | Output::SendLocal { .. }
        | Output::CloseLocal { .. }
        | Output::Perform { .. }
        | Output::Cancel { .. }
        | Output::Respond { .. } => (Side::Client, true),
    };
    let mut text = about::output(output);
    match output {
        Output::OpenLink { url, .. } => text.push_str(&format!(": {}", printable(url))),
        Output::CloseLink { reason, .. } | Output::CloseLocal { reason, .. } => {
            text.push_str(&format!(": {}", printable(reason)));
        }
        Output::OpenSocket { host, port, .. } => {
            text.push_str(&format!(": {} port {port}", printable(host)));
        }
        Output::Perform { effect: Effect::Fetch(Fetch { target, .. }), .. } => {
            text.push_str(&format!(": {}", printable(&target.url())));
        }
        _ => {}
    }
    Entry { record, at, side, outward: true, text, is_news }
}
