//! Text of a peer, made fit for people.

use alloc::string::String;

use crate::limits::MAX_PEER_TEXT;

/// `text` without control and formatting characters (each becomes a space), cut to
/// [`MAX_PEER_TEXT`] characters. What comes out can be written to a terminal and stays on one line.
#[must_use]
pub fn printable(text: &str) -> String {
    let mut out = String::new();
    for (count, c) in text.chars().enumerate() {
        if count == MAX_PEER_TEXT {
            out.push('…');
            break;
        }
        out.push(if is_plain(c) { c } else { ' ' });
    }
    out
}

/// Neither a control character nor one that changes how its neighbours are shown (line and paragraph separators,
/// directional marks and overrides, zero-width and tag characters).
pub(crate) fn is_plain(c: char) -> bool {
    !c.is_control()
        && !matches!(c,
            '\u{00ad}' | '\u{061c}' | '\u{180e}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}'
            | '\u{2060}'..='\u{206f}' | '\u{feff}' | '\u{fff9}'..='\u{fffb}' | '\u{e0000}'..='\u{e0fff}')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn escape_sequences_and_line_breaks_do_not_survive() {
        assert_eq!(printable("a\x1b[31mb\r\nc\u{202e}d\u{9b}e"), "a [31mb  c d e");
    }

    #[test]
    fn long_text_is_cut_with_a_sign_of_it() {
        let text = printable(&"é".repeat(MAX_PEER_TEXT + 1));
        assert_eq!(text.chars().count(), MAX_PEER_TEXT + 1);
        assert!(text.ends_with('…'));
    }
}
