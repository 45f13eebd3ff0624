//! Where events go: one JSON object a line on standard error, or readable text on a terminal.
//!
//! A line is written by one call, so that lines of several threads and processes do not mix. A log that cannot be
//! written (the reader of the pipe has gone, or does not read) never stops the node: the line is left out and counted.
//! Nor can a peer fill the disk: of each kind of event only so many are told in a time.

use std::fmt::Write as _;
use std::io::{self, IsTerminal as _, Write};
use std::mem::{Discriminant, discriminant};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use consensus_core::event::{Event, Level};
use consensus_core::limits::MAX_PEER_TEXT;
use consensus_core::text::printable;
use consensus_core::time::iso8601;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use serde_json::{Map, Value};

/// A line's text is cut to so many pieces of [`MAX_PEER_TEXT`] characters.
const MAX_PIECES: usize = 16;

/// The columns of the progress bar; with the longest action name beside it the line stays under 80.
const BAR: usize = 24;

/// Lines of one kind of event at once; a peer can cause some kinds as often as it likes.
const BURST: u32 = 200;

/// After that, one line in so long.
const REFILL: Duration = Duration::from_millis(100);

/// A pipe that is writable takes so many bytes without waiting (POSIX, `PIPE_BUF` on Linux).
const PIPE_TAKES: usize = 4096;

/// How long a reader that is behind is waited for, once; after that its lines are left out until it reads again.
const READER_PATIENCE: Duration = Duration::from_millis(20);

/// How lines look.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// One JSON object a line.
    Json,
    /// Readable text.
    Text,
}

/// Somebody who hears what a log is told, before anything is left out: a page that shows it.
pub trait Listener: Send + Sync {
    /// Something the node tells.
    fn event(&self, event: &Event);
    /// A warning, or worse, of the shell.
    fn warning(&self, text: &str);
    /// As [`Log::progress`].
    fn progress(&self, action: &str, fraction: f32);
    /// As [`Log::window`].
    fn window(&self, node_rps: f64);
    /// As [`Log::downloaded`].
    fn downloaded(&self, received: u64, total: Option<u64>);
}

/// A log; cheap to clone, and all clones write to the same place.
#[derive(Clone)]
pub struct Log(Arc<Inner>, Option<Arc<dyn Listener>>);

struct Inner {
    format: Format,
    level: Level,
    /// Whether lines can be redrawn: the output is a terminal that understands it.
    live: bool,
    color: bool,
    state: Mutex<State>,
}

struct State {
    out: Box<dyn Write + Send>,
    /// A progress line is on the terminal, without a line end.
    drawn: bool,
    /// What was last shown of which action's progress, in percent.
    shown: Option<(String, u8)>,
    /// Whether `out` is standard error, of which the system tells if it takes a line.
    is_stderr: bool,
    /// Lines left out since the last one that was written.
    left_out: u64,
    /// How much of each kind of event was told lately.
    kinds: Vec<(Discriminant<Event>, Kind)>,
}

/// What is still allowed of one kind of event.
struct Kind {
    left: u32,
    since: Instant,
    untold: u64,
}

impl Kind {
    /// Whether one more may be told; gives how many were not told before it.
    fn tell(&mut self, now: Instant) -> Option<u64> {
        let refilled = now.saturating_duration_since(self.since).as_millis() / REFILL.as_millis();
        if refilled > 0 {
            self.left = self.left.saturating_add(u32::try_from(refilled).unwrap_or(BURST)).min(BURST);
            self.since = now;
        }
        if self.left == 0 {
            self.untold += 1;
            return None;
        }
        self.left -= 1;
        Some(std::mem::take(&mut self.untold))
    }
}

impl std::fmt::Debug for Log {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Log")
            .field("format", &self.0.format)
            .field("level", &self.0.level)
            .finish_non_exhaustive()
    }
}

impl Log {
    /// A log on standard error. Without a `format`, a terminal gets text and everything else JSON. Colours and
    /// the live progress line are for terminals alone; `NO_COLOR` and `TERM=dumb` are honoured.
    #[must_use]
    pub fn stderr(format: Option<Format>, level: Level) -> Self {
        let terminal = io::stderr().is_terminal();
        let format = format.unwrap_or(if terminal { Format::Text } else { Format::Json });
        let live = terminal && format == Format::Text && std::env::var_os("TERM").is_none_or(|t| t != "dumb");
        let color = live && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
        Self::new(Box::new(io::stderr()), true, format, level, live, color)
    }

    /// A log on any writer: for tests, and for programs that keep what a node says. Never live, never coloured.
    #[must_use]
    pub fn to_writer(out: Box<dyn Write + Send>, format: Format, level: Level) -> Self {
        Self::new(out, false, format, level, false, false)
    }

    fn new(
        out: Box<dyn Write + Send>,
        is_stderr: bool,
        format: Format,
        level: Level,
        live: bool,
        color: bool,
    ) -> Self {
        let kinds = Vec::new();
        let state = Mutex::new(State { out, drawn: false, shown: None, is_stderr, left_out: 0, kinds });
        Self(Arc::new(Inner { format, level, live, color, state }), None)
    }

    /// The same log, with somebody who hears what this clone, and clones of it, are told.
    #[must_use]
    pub fn heard_by(&self, listener: Arc<dyn Listener>) -> Self {
        Self(Arc::clone(&self.0), Some(listener))
    }

    /// A window of a measurement is whole: requests a second of the node's own time. For listeners alone.
    pub fn window(&self, node_rps: f64) {
        if let Some(listener) = &self.1 {
            listener.window(node_rps);
        }
    }

    /// How much of a release is there, in bytes. For listeners alone.
    pub fn downloaded(&self, received: u64, total: Option<u64>) {
        if let Some(listener) = &self.1 {
            listener.downloaded(received, total);
        }
    }

    /// Whether lines of this level are written.
    #[must_use]
    pub fn enabled(&self, level: Level) -> bool {
        level >= self.0.level
    }

    /// Whether lines are text for a person, and not JSON for a program.
    #[must_use]
    pub fn is_text(&self) -> bool {
        self.0.format == Format::Text
    }

    /// Something the node tells.
    pub fn event(&self, event: &Event) {
        if let Some(listener) = &self.1 {
            listener.event(event);
        }
        if !self.enabled(event.level()) {
            return;
        }
        // A statement of its own: the lock must be free again before the next line is written.
        let told = self.state().tell(event);
        match told {
            None => return,
            Some(0) => {}
            Some(untold) => {
                let text = format!("{untold} more lines like the next were left out");
                self.note(event.level(), event.scope(), "left_out", &text, &[("count", untold.into())]);
            }
        }
        match self.0.format {
            Format::Text => self.write_text(event.level(), event.scope(), &event.to_string()),
            Format::Json => {
                let mut members = match serde_json::to_value(event) {
                    Ok(Value::Object(members)) => members,
                    _ => Map::new(),
                };
                let name = members.remove("event");
                let name = name.as_ref().and_then(Value::as_str).unwrap_or("event");
                self.write_json(event.level(), event.scope(), name, None, members);
            }
        }
    }

    /// Something the shell tells: `event` names it for programs, `text` says it to people.
    pub fn note(
        &self,
        level: Level,
        scope: &'static str,
        event: &'static str,
        text: &str,
        members: &[(&str, Value)],
    ) {
        if let Some(listener) = self.1.as_ref().filter(|_| level >= Level::Warn) {
            listener.warning(text);
        }
        if !self.enabled(level) {
            return;
        }
        match self.0.format {
            Format::Text => self.write_text(level, scope, text),
            Format::Json => {
                let members = members.iter().map(|(name, value)| ((*name).to_string(), value.clone()));
                self.write_json(level, scope, event, Some(text), members.collect());
            }
        }
    }

    /// How far a measurement is: `fraction` from 0 to 1. A terminal shows it in place; anything else gets a line at
    /// most every ten percent.
    pub fn progress(&self, action: &str, fraction: f32) {
        if let Some(listener) = &self.1 {
            listener.progress(action, fraction);
        }
        if !self.enabled(Level::Info) {
            return;
        }
        // A cast from a float saturates, and a NaN is 0.
        let percent = ((fraction * 100.0) as u8).min(100);
        let mut state = self.state();
        let step = if self.0.live { 1 } else { 10 };
        match &state.shown {
            // Progress does not go back within one measurement; a new one of the same name starts low again.
            Some((shown, last)) if shown == action && percent >= *last && percent / step == *last / step => {
                return;
            }
            _ => {}
        }
        state.shown = Some((action.to_string(), percent));
        if self.0.live {
            let filled = usize::from(percent) * BAR / 100;
            let line = format!(
                "\r\x1b[2K  {:<26} [{}{}] {percent:>3} %",
                safe(action),
                "#".repeat(filled),
                ".".repeat(BAR - filled)
            );
            state.drawn = true;
            state.put(&line);
            return;
        }
        drop(state);
        match self.0.format {
            Format::Text => {
                self.write_text(Level::Info, "eval", &format!("{action}: {percent} %"));
            }
            Format::Json => {
                let mut members = Map::new();
                members.insert("action".to_string(), Value::from(action));
                members.insert("percent".to_string(), Value::from(percent));
                self.write_json(Level::Info, "eval", "progress", None, members);
            }
        }
    }

    fn write_text(&self, level: Level, scope: &str, text: &str) {
        let at = iso8601(since_epoch());
        let (name, color) = match level {
            Level::Debug => ("debug", "\x1b[2m"),
            Level::Info => ("info ", "\x1b[32m"),
            Level::Warn => ("warn ", "\x1b[33m"),
            Level::Error => ("error", "\x1b[31m"),
        };
        let (color, reset) = if self.0.color { (color, "\x1b[0m") } else { ("", "") };
        // The time of day is enough beside a person's eyes.
        let time = at.get(11..19).unwrap_or(&at);
        let line = format!("{time} {color}{name}{reset} {:<8} {}\n", safe(scope), safe(text));
        self.state().line(&line);
    }

    fn write_json(
        &self,
        level: Level,
        scope: &str,
        event: &str,
        message: Option<&str>,
        members: Map<String, Value>,
    ) {
        let level = match level {
            Level::Debug => "debug",
            Level::Info => "info",
            Level::Warn => "warn",
            Level::Error => "error",
        };
        // Put together by hand for the order of the first members: people read these lines too.
        let mut line = format!("{{\"ts\":\"{}\",\"level\":\"{level}\"", iso8601(since_epoch()));
        let first = [("scope", Some(scope)), ("event", Some(event)), ("message", message)];
        for (name, text) in first {
            if let Some(text) = text {
                let _ = write!(line, ",\"{name}\":{}", Value::from(safe(text)));
            }
        }
        for (name, value) in members {
            if !matches!(name.as_str(), "ts" | "level" | "scope" | "event" | "message") {
                let _ = write!(line, ",{}:{}", Value::from(safe(&name)), safe_value(value));
            }
        }
        line.push_str("}\n");
        self.state().line(&line);
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // A panic elsewhere leaves the writer usable.
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// Whether an event may be told; gives how many of its kind were not told before it.
    fn tell(&mut self, event: &Event) -> Option<u64> {
        let now = Instant::now();
        let kind = discriminant(event);
        if let Some((_, known)) = self.kinds.iter_mut().find(|(known, _)| *known == kind) {
            return known.tell(now);
        }
        self.kinds.push((kind, Kind { left: BURST - 1, since: now, untold: 0 }));
        Some(0)
    }

    /// Whether standard error takes a line without keeping us. A pipe that says so takes 4096 bytes.
    fn is_writable(&self) -> bool {
        if !self.is_stderr {
            return true;
        }
        let patience = if self.left_out == 0 { READER_PATIENCE } else { Duration::ZERO };
        let patience = Timespec { tv_sec: 0, tv_nsec: i64::from(patience.subsec_nanos()) };
        let stderr = io::stderr();
        let mut fds = [PollFd::new(&stderr, PollFlags::OUT)];
        // Where the system cannot tell, writing shows it.
        poll(&mut fds, Some(&patience)).map_or(true, |ready| ready > 0)
    }

    fn line(&mut self, line: &str) {
        if std::mem::take(&mut self.drawn) {
            self.shown = None;
            self.put(&format!("\r\x1b[2K{line}"));
        } else {
            self.put(line);
        }
    }

    fn put(&mut self, bytes: &str) {
        if !self.is_writable() {
            self.left_out += 1;
            return;
        }
        // One write of what a pipe has said it takes; a second one could wait for the reader.
        let mut text = String::new();
        if self.left_out > 0 && bytes.len() < PIPE_TAKES / 2 {
            let count = std::mem::take(&mut self.left_out);
            let _ = writeln!(text, "{{\"event\":\"left_out\",\"reason\":\"slow reader\",\"count\":{count}}}");
        }
        text.push_str(bytes);
        // There is nowhere to report a log that cannot be written, and the node matters more.
        let _ = self.out.write_all(text.as_bytes());
        let _ = self.out.flush();
    }
}

/// Text that cannot move a cursor, end a line or hide its neighbours. Longer than [`printable`] allows: a line may
/// be made of several bounded texts.
pub(crate) fn safe(text: &str) -> String {
    let mut out = String::new();
    let mut rest = text;
    for _ in 0..MAX_PIECES {
        let end = rest.char_indices().nth(MAX_PEER_TEXT).map_or(rest.len(), |(at, _)| at);
        let (piece, after) = rest.split_at(end);
        out.push_str(&printable(piece));
        rest = after;
        if rest.is_empty() {
            return out;
        }
    }
    out.push('…');
    out
}

fn safe_value(value: Value) -> Value {
    match value {
        Value::String(text) => Value::String(safe(&text)),
        Value::Array(items) => Value::Array(items.into_iter().map(safe_value).collect()),
        Value::Object(members) => {
            Value::Object(members.into_iter().map(|(name, value)| (safe(&name), safe_value(value))).collect())
        }
        other => other,
    }
}

fn since_epoch() -> Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Clone, Default)]
    struct Buffer(Arc<Mutex<Vec<u8>>>);

    impl Write for Buffer {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    impl Buffer {
        fn text(&self) -> String {
            String::from_utf8(self.0.lock().unwrap().clone()).unwrap()
        }

        fn lines(&self) -> Vec<Value> {
            self.text().lines().map(|line| serde_json::from_str(line).unwrap()).collect()
        }
    }

    fn log(format: Format, level: Level) -> (Log, Buffer) {
        let buffer = Buffer::default();
        (Log::to_writer(Box::new(buffer.clone()), format, level), buffer)
    }

    const HOSTILE: &str = "a\x1b[2Jb\r\nc\u{202e}d\u{9b}e\0\u{2028}f\u{7f}";

    fn is_one_clean_line(text: &str) -> bool {
        let line = text.strip_suffix('\n').unwrap();
        !line.chars().any(|c| c.is_control() || ('\u{2028}'..='\u{202e}').contains(&c))
    }

    #[test]
    fn control_characters_never_pass_whatever_the_way() {
        for format in [Format::Json, Format::Text] {
            let notes: [fn(&Log); 4] = [
                |log| log.note(Level::Info, "node", "x", HOSTILE, &[]),
                |log| {
                    log.note(
                        Level::Info,
                        "node",
                        "x",
                        "t",
                        &[(HOSTILE, serde_json::json!([HOSTILE, {HOSTILE: HOSTILE}]))],
                    );
                },
                |log| {
                    log.event(&Event::ServerError { code: HOSTILE.into(), message: HOSTILE.repeat(400) });
                },
                |log| log.progress(HOSTILE, 0.5),
            ];
            for note in notes {
                let (log, buffer) = log(format, Level::Debug);
                note(&log);
                assert!(is_one_clean_line(&buffer.text()), "{:?}", buffer.text());
            }
        }
    }

    #[test]
    fn a_json_line_has_the_time_level_scope_event_and_the_members_of_the_event() {
        let (log, buffer) = log(Format::Json, Level::Debug);
        log.event(&Event::EvalFinished {
            action: "integrity".into(),
            ok: true,
            summary: "s".into(),
            duration_ms: 7,
        });
        log.note(
            Level::Warn,
            "node",
            "wide_mode",
            "text",
            &[("path", Value::from("p")), ("ts", Value::from(1))],
        );
        let lines = buffer.lines();
        assert!(buffer.text().starts_with("{\"ts\":\"20"), "{}", buffer.text());
        assert_eq!(
            (
                &lines[0]["level"],
                &lines[0]["scope"],
                &lines[0]["event"],
                &lines[0]["action"],
                &lines[0]["duration_ms"]
            ),
            (&"info".into(), &"eval".into(), &"eval_finished".into(), &"integrity".into(), &7.into())
        );
        assert_eq!(
            (&lines[1]["level"], &lines[1]["event"], &lines[1]["message"], &lines[1]["path"]),
            (&"warn".into(), &"wide_mode".into(), &"text".into(), &"p".into())
        );
    }

    #[test]
    fn a_flood_of_one_kind_is_cut_and_counted_and_other_kinds_are_still_told() {
        let (start, mut kind) = (Instant::now(), Kind { left: 2, since: Instant::now(), untold: 0 });
        assert_eq!([kind.tell(start), kind.tell(start), kind.tell(start)], [Some(0), Some(0), None]);
        assert_eq!(kind.tell(start + 2 * REFILL), Some(1));

        let buffer = Buffer::default();
        let log = Log::to_writer(Box::new(buffer.clone()), Format::Json, Level::Info);
        for _ in 0..BURST + 50 {
            log.event(&Event::ServerError { code: "c".into(), message: "m".into() });
        }
        log.event(&Event::Stopping);
        let lines = buffer.lines();
        let errors = lines.iter().filter(|line| line["event"] == "server_error").count();
        assert!((200..240).contains(&errors), "{errors}");
        assert_eq!(lines.last().unwrap()["event"], "stopping");
    }

    #[test]
    fn quieter_levels_are_left_out() {
        let (log, buffer) = log(Format::Text, Level::Warn);
        log.note(Level::Info, "node", "x", "one", &[]);
        log.progress("cpu", 0.5);
        log.event(&Event::Stopping);
        assert_eq!(buffer.text(), "");
        log.note(Level::Error, "node", "x", "two", &[]);
        assert!(buffer.text().ends_with(" error node     two\n"), "{}", buffer.text());
    }

    #[test]
    fn a_pipe_gets_progress_at_most_every_ten_percent() {
        for format in [Format::Json, Format::Text] {
            let (log, buffer) = log(format, Level::Info);
            for i in 0..=1000 {
                log.progress("benchmark_cpu", i as f32 / 1000.0);
            }
            assert_eq!(buffer.text().lines().count(), 11, "{}", buffer.text());
            log.progress("benchmark_cpu", 0.0);
            log.progress("benchmark_cpu", f32::NAN);
            log.progress("benchmark_cpu", 9.0);
            assert_eq!(buffer.text().lines().count(), 13, "{}", buffer.text());
        }
    }

    #[test]
    fn a_terminals_progress_line_is_redrawn_and_cleared_before_the_next_line() {
        let buffer = Buffer::default();
        let log = Log::new(Box::new(buffer.clone()), false, Format::Text, Level::Info, true, false);
        log.progress("cpu", 0.25);
        log.progress("cpu", 0.251);
        log.progress("cpu", 0.5);
        log.note(Level::Info, "node", "x", "done", &[]);
        let text = buffer.text();
        assert_eq!(text.matches("\r\x1b[2K").count(), 3, "{text:?}");
        assert!(text.contains("[######..................]  25 %"), "{text:?}");
        assert_eq!(text.matches('\n').count(), 1);
        let longest = text.split(['\r', '\n']).map(|line| line.chars().count()).max().unwrap();
        assert!(longest < 80, "{longest}");
    }

    #[test]
    fn a_reader_that_went_away_does_not_stop_the_writer() {
        struct Broken;
        impl Write for Broken {
            fn write(&mut self, _: &[u8]) -> io::Result<usize> {
                Err(io::ErrorKind::BrokenPipe.into())
            }
            fn flush(&mut self) -> io::Result<()> {
                Err(io::ErrorKind::BrokenPipe.into())
            }
        }
        let log = Log::to_writer(Box::new(Broken), Format::Json, Level::Debug);
        log.event(&Event::Stopping);
        log.progress("cpu", 0.1);
    }
}
