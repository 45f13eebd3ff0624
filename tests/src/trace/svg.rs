//! The sequence of a trace as a picture: three columns, time downwards.

use std::fmt::Write as _;

use super::sequence::{Entry, Side};

/// Rows of a picture; a browser has trouble with more.
const MAX_ROWS: usize = 5000;

/// Characters of a row's text; the line in `show` has the rest.
const MAX_TEXT: usize = 90;

const ROW: usize = 22;
const TOP: usize = 84;
const WIDTH: usize = 1200;

const STYLE: &str = "\
    svg{background:#fff;color:#1b1f24;font:12px ui-monospace,monospace}\
    text{fill:currentColor}.dim{opacity:.6}line,path{stroke:currentColor}\
    .life{opacity:.3;stroke-dasharray:2 4}\
    @media(prefers-color-scheme:dark){svg{background:#14171b;color:#e6e9ec}}";

/// Where a side's line is.
const fn column(side: Side) -> usize {
    match side {
        Side::Server => 180,
        Side::Node => 640,
        Side::Client => 1100,
    }
}

/// Text for XML.
fn escaped(text: &str) -> String {
    let mut out = String::new();
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\'' => out.push_str("&#39;"),
            // What XML has no way to write.
            c if c.is_control() || matches!(c, '\u{fffe}' | '\u{ffff}') => out.push(' '),
            c => out.push(c),
        }
    }
    out
}

fn cut(text: &str) -> String {
    let mut short: String = text.chars().take(MAX_TEXT).collect();
    if short.len() < text.len() {
        short.push('…');
    }
    short
}

/// A picture that is being made: of any trace it holds no more than is drawn.
#[derive(Clone, Debug, Default)]
pub struct Picture {
    rows: Vec<Entry>,
    /// How many have no row any more.
    more: u64,
}

impl Picture {
    /// The next that happened.
    pub fn add(&mut self, entry: &Entry) {
        if !entry.is_news {
            return;
        }
        if self.rows.len() >= MAX_ROWS {
            self.more += 1;
            return;
        }
        self.rows.push(Entry { text: cut(&entry.text), ..entry.clone() });
    }

    /// The whole as SVG.
    #[must_use]
    pub fn svg(&self, title: &str) -> String {
        drawing(title, &self.rows, self.more)
    }
}

/// The picture. Light or dark as its reader's screen is; no script, nothing from elsewhere.
fn drawing(title: &str, rows: &[Entry], more: u64) -> String {
    let height = TOP + ROW * (rows.len() + 2);
    let mut out = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height}\" width=\"{WIDTH}\" \
         height=\"{height}\" role=\"img\"><title>{title}</title><style>{STYLE}</style>\n\
         <text x=\"12\" y=\"24\">{title}</text>\n",
        title = escaped(title)
    );
    for (side, name) in
        [(Side::Server, "server"), (Side::Node, "node"), (Side::Client, "clients, targets, machine")]
    {
        let x = column(side);
        // Writing to a String cannot fail.
        let _ = writeln!(
            out,
            "<text x=\"{x}\" y=\"56\" text-anchor=\"middle\">{name}</text>\
             <line class=\"life\" x1=\"{x}\" y1=\"64\" x2=\"{x}\" y2=\"{height}\"/>"
        );
    }
    for (row, entry) in rows.iter().enumerate() {
        let y = TOP + ROW * row;
        let text = escaped(&entry.text);
        let _ = write!(out, "<text class=\"dim\" x=\"4\" y=\"{y}\">{:.3}</text>", entry.at.as_secs_f64());
        let (node, other) = (column(Side::Node), column(entry.side));
        if entry.side == Side::Node {
            let _ = writeln!(out, "<text x=\"{node}\" y=\"{y}\" text-anchor=\"middle\">{text}</text>");
            continue;
        }
        let (from, to) = if entry.outward { (node, other) } else { (other, node) };
        let (line, middle) = (y + 4, (node + other) / 2);
        let back = if to > from { to - 6 } else { to + 6 };
        let _ = writeln!(
            out,
            "<line x1=\"{from}\" y1=\"{line}\" x2=\"{to}\" y2=\"{line}\"/>\
             <path fill=\"none\" d=\"M{back} {}L{to} {line}L{back} {}\"/>\
             <text x=\"{middle}\" y=\"{y}\" text-anchor=\"middle\">{text}</text>",
            line - 3,
            line + 3
        );
    }
    if more > 0 {
        let y = TOP + ROW * rows.len();
        let _ = writeln!(out, "<text x=\"12\" y=\"{y}\">and {more} more</text>");
    }
    out.push_str("</svg>\n");
    out
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_peers_text_cannot_leave_its_place() {
        let hostile = "</text><script>alert(1)</script>&\"'\u{1b}[0m";
        let entry = Entry {
            record: 1,
            at: Duration::from_millis(1500),
            side: Side::Server,
            outward: false,
            text: hostile.to_owned(),
            is_news: true,
        };
        let mut picture = Picture::default();
        picture.add(&entry);
        picture.add(&Entry { is_news: false, ..entry });
        let svg = picture.svg(hostile);
        assert!(!svg.contains("<script") && !svg.contains('\u{1b}'), "{svg}");
        assert_eq!(svg.matches("&lt;script&gt;").count(), 3, "title, heading and one row: {svg}");
        assert!(svg.contains("1.500") && svg.contains("prefers-color-scheme:dark"));
        assert_eq!(svg.matches("<text").count(), svg.matches("</text>").count());
    }

    #[test]
    fn a_long_trace_is_drawn_as_far_as_a_browser_goes() {
        let (record, at) = (1, Duration::ZERO);
        let entry =
            Entry { record, at, side: Side::Node, outward: true, text: "é".repeat(500), is_news: true };
        let mut picture = Picture::default();
        for _ in 0..MAX_ROWS + 7 {
            picture.add(&entry);
        }
        assert_eq!(picture.rows.len(), MAX_ROWS, "no more is held than is drawn");
        let svg = picture.svg("long");
        assert!(svg.contains("and 7 more"));
        assert!(svg.contains(&format!("{}…</text>", "é".repeat(MAX_TEXT))));
    }
}
