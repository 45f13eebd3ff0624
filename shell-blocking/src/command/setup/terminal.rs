//! Questions on a terminal: plain lines of at most 80 columns, without colours and without moving the cursor, so that it
//! is the same over SSH, on a serial console, and with `NO_COLOR`.

use std::io::stdin;
use std::os::fd::AsFd as _;

use consensus_core::setup::{Kind, MAX_ANSWER, Question};
use consensus_core::text::printable;
use rustix::io::{Errno, read};

use super::interrupts::Interrupts;
use crate::log::safe;

/// The width of a terminal that nobody has widened.
const COLUMNS: usize = 80;

/// A line that is longer than any answer is read to its end, and cut here.
const MAX_LINE: usize = MAX_ANSWER + 1;

/// Somebody at a terminal.
#[derive(Debug, Default)]
pub(super) struct Terminal {
    /// What was read and not yet asked for: lines that were pasted together.
    read: Vec<u8>,
}

/// What somebody did.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Typed {
    /// A line, without its end.
    Line(String),
    /// Ctrl-C, Ctrl-D, or the terminal is gone.
    Stop,
}

impl Terminal {
    /// Reads a line.
    pub(super) fn read(&mut self, interrupts: &Interrupts) -> Typed {
        let stdin = stdin();
        self.read_from(|buffer| {
            if !interrupts.wait_for(stdin.as_fd()) {
                return None;
            }
            match read(&stdin, buffer) {
                Ok(0) => None,
                Ok(count) => Some(count),
                Err(Errno::INTR | Errno::AGAIN) => Some(0),
                Err(_) => None,
            }
        })
    }

    fn read_from(&mut self, mut more: impl FnMut(&mut [u8]) -> Option<usize>) -> Typed {
        let mut is_cut = false;
        loop {
            if let Some(end) = self.read.iter().position(|byte| *byte == b'\n') {
                let rest = self.read.split_off(end + 1);
                let mut line = std::mem::replace(&mut self.read, rest);
                line.truncate(end);
                if is_cut {
                    // Longer than an answer can be, also where what came last was short.
                    line.resize(MAX_LINE, b'.');
                }
                return Typed::Line(String::from_utf8_lossy(&line).trim_end_matches('\r').to_string());
            }
            if self.read.len() > MAX_LINE {
                is_cut = true;
                self.read.clear();
            }
            let mut buffer = [0; 1024];
            match more(&mut buffer) {
                Some(count) => self.read.extend_from_slice(buffer.get(..count).unwrap_or_default()),
                None => return Typed::Stop,
            }
        }
    }

    /// A prompt: the question, and what an empty answer stands for. It stays on the line that is typed on.
    pub(super) fn prompt(&self, question: &Question) -> String {
        let choice = match (question.kind, question.default.as_deref()) {
            (Kind::YesNo, Some("yes")) => " [Y/n]".to_string(),
            (Kind::YesNo, Some(_)) => " [y/N]".to_string(),
            (Kind::YesNo, None) => " [y/n]".to_string(),
            (_, Some(default)) => format!(" [{}]", printable(default)),
            (_, None) => String::new(),
        };
        let mut text = self.wrap("", &format!("{}{choice}:", question.text));
        text.pop();
        text.push(' ');
        text
    }

    /// Text in lines of at most 80 columns, each made fit for a terminal, the first with a sign before it. Lines of the
    /// text stay lines; one that is indented stays whole, because it is there to be copied.
    pub(super) fn wrap(&self, sign: &str, text: &str) -> String {
        let mut out = String::new();
        let mut lead = sign.to_string();
        for line in text.lines() {
            let words = line.trim_start();
            let is_whole = line.len() > words.len();
            lead.push_str(&" ".repeat(line.len() - words.len()));
            let indent = " ".repeat(lead.chars().count());
            let mut current = std::mem::take(&mut lead);
            let mut is_empty = true;
            for word in words.split(' ') {
                let word = safe(word);
                let is_over = !is_whole && current.chars().count() + 1 + word.chars().count() > COLUMNS;
                if !is_empty && is_over {
                    out.push_str(current.trim_end());
                    out.push('\n');
                    current.clone_from(&indent);
                } else if !is_empty {
                    current.push(' ');
                }
                current.push_str(&word);
                is_empty = false;
            }
            out.push_str(current.trim_end());
            out.push('\n');
            lead = " ".repeat(sign.chars().count());
        }
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use consensus_core::setup::{AGREEMENT, QuestionId};

    fn lines(chunks: &[&[u8]]) -> Vec<Typed> {
        let mut terminal = Terminal::default();
        let mut chunks = chunks.iter();
        let mut more = |buffer: &mut [u8]| {
            let chunk = chunks.next()?;
            buffer[..chunk.len()].copy_from_slice(chunk);
            Some(chunk.len())
        };
        let mut all = Vec::new();
        loop {
            all.push(terminal.read_from(&mut more));
            if all.last() == Some(&Typed::Stop) {
                return all;
            }
        }
    }

    #[test]
    fn lines_come_whole_however_they_are_typed_or_pasted() {
        let line = |text: &str| Typed::Line(text.to_string());
        assert_eq!(
            lines(&[b"a", b"b\r", b"\n\nc\nd\n", b"e"]),
            [line("ab"), line(""), line("c"), line("d"), Typed::Stop]
        );
        let long = [b'x'; 1000];
        let all = lines(&[&long, &long, b"y\nz\n"]);
        assert_eq!(all.len(), 3, "{all:?}");
        assert!(matches!(&all[0], Typed::Line(text) if text.len() > MAX_ANSWER), "not taken for a short one");
        assert_eq!(all[1], line("z"));
    }

    #[test]
    fn what_is_told_fits_eighty_columns_and_cannot_move_the_cursor() {
        let terminal = Terminal::default();
        assert_eq!(terminal.wrap("", AGREEMENT), AGREEMENT, "the agreement is shown as it is");
        let long = "word ".repeat(60);
        for text in [&*long, "a\u{1b}[2Jb"] {
            let wrapped = terminal.wrap("! ", text);
            assert!(wrapped.lines().all(|line| line.chars().count() <= COLUMNS), "{wrapped}");
            assert!(!wrapped.contains('\u{1b}') && wrapped.starts_with("! ") && wrapped.ends_with('\n'));
        }
        assert_eq!(terminal.wrap("  - ", "a\n  b"), "  - a\n      b\n");
        let command = format!("  {}\n", long.trim_end());
        assert_eq!(terminal.wrap("", &command), command, "a command is copied as one line");
        let command = format!("  {}\n", "x".repeat(400));
        assert_eq!(terminal.wrap("", &command), command, "and whole, however long its words are");
    }

    #[test]
    fn a_prompt_says_what_an_empty_answer_stands_for() {
        let terminal = Terminal::default();
        let question = |kind, default: Option<&str>| Question {
            id: QuestionId::Port,
            kind,
            text: "Sure",
            default: default.map(str::to_string),
            problem: None,
            reuse: Vec::new(),
        };
        for (kind, default, expected) in [
            (Kind::YesNo, Some("yes"), "Sure [Y/n]: "),
            (Kind::YesNo, Some("no"), "Sure [y/N]: "),
            (Kind::YesNo, None, "Sure [y/n]: "),
            (Kind::Port, Some("9090"), "Sure [9090]: "),
            (Kind::Port, None, "Sure: "),
        ] {
            assert_eq!(terminal.prompt(&question(kind, default)), expected);
        }
    }
}
