//! HTTP/1.1 without I/O: bytes in, bytes out. Both shells drive these machines over their own sockets.
//!
//! [`client`] makes one exchange, [`server`] reads the requests of one connection. ureq-proto writes and reads the
//! heads and decides the framing; around it stands what it leaves open: bounds, refusals of ambiguous framing, and
//! a reader of bodies (`body`) that is strict about chunks. Feeding bytes whole or one at a time gives the same
//! result.

mod body;
pub mod client;
pub mod pool;
pub mod server;
pub mod times;

use http::HeaderMap;
use http::header::TRANSFER_ENCODING;

/// Bytes as ISO 8859-1 text, which is what HTTP header values are.
fn latin1(bytes: &[u8]) -> String {
    bytes.iter().copied().map(char::from).collect()
}

/// The bytes of ISO 8859-1 text; `None` where it holds other characters.
fn latin1_bytes(text: &str) -> Option<Vec<u8>> {
    text.chars().map(|c| u8::try_from(u32::from(c)).ok()).collect()
}

/// Finds where a head may end: at an empty line. Remembers what it has looked at, so that a head that comes in small
/// pieces is not searched, or parsed, again for every piece.
#[derive(Debug, Default)]
struct HeadEnd {
    looked_at: usize,
}

impl HeadEnd {
    /// The length of the part of `bytes` that ends with the next empty line, if there is one.
    fn find(&mut self, bytes: &[u8]) -> Option<usize> {
        while self.looked_at < bytes.len() {
            let at = self.looked_at;
            self.looked_at += 1;
            let empty = bytes[at] == b'\n' && matches!(bytes[..at], [.., b'\n'] | [.., b'\n', b'\r']);
            if empty {
                return Some(at + 1);
            }
        }
        None
    }
}

/// What a message says about its transfer coding.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Coding {
    /// Nothing.
    None,
    /// Exactly `chunked`.
    Chunked,
    /// Anything else: two codings, another one, a misspelled one. Readers differ about such a message, so it is
    /// refused.
    Other,
}

fn coding(headers: &HeaderMap) -> Coding {
    let mut values = headers.get_all(TRANSFER_ENCODING).iter();
    match (values.next(), values.next()) {
        (None, _) => Coding::None,
        (Some(value), None) if value.as_bytes().eq_ignore_ascii_case(b"chunked") => Coding::Chunked,
        _ => Coding::Other,
    }
}

/// Whether a `Connection` header names that option.
fn has_connection_option(headers: &HeaderMap, option: &str) -> bool {
    headers
        .get_all(http::header::CONNECTION)
        .iter()
        .flat_map(|value| value.as_bytes().split(|b| *b == b','))
        .any(|value| value.trim_ascii().eq_ignore_ascii_case(option.as_bytes()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_head_ends_at_the_first_empty_line_however_it_comes() {
        for (bytes, ends) in [
            (&b"a\r\n\r\nrest"[..], Some(5)),
            (b"a\n\nrest", Some(3)),
            (b"a\n\r\nrest", Some(4)),
            (b"a\r\nb\r\n", None),
            (b"\n", None),
        ] {
            assert_eq!(HeadEnd::default().find(bytes), ends);
            let mut finder = HeadEnd::default();
            let found = (0..=bytes.len()).find_map(|end| finder.find(&bytes[..end]));
            assert_eq!(found, ends);
        }
    }

    #[test]
    fn text_that_is_not_iso_8859_1_is_not_sent() {
        assert_eq!(latin1_bytes("caf\u{e9}").as_deref(), Some(&b"caf\xe9"[..]));
        assert_eq!(latin1_bytes("\u{100}"), None);
        assert_eq!(latin1(b"caf\xe9"), "caf\u{e9}");
    }
}
