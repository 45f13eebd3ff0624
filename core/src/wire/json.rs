//! JSON written member by member into a buffer that is there already, for texts on the way of every request. What is
//! written in canonical order is canonical JSON (protocol.md section 1): strings and numbers are escaped and printed alike.

use alloc::vec::Vec;
use core::fmt::{self, Write};

/// An object being written. Names but those of [`named`](Self::named) are the code's own and need no escape.
pub(crate) struct Object<'a, W> {
    out: &'a mut W,
    is_empty: bool,
}

impl<'a, W: Write> Object<'a, W> {
    pub(crate) fn open(out: &'a mut W) -> Self {
        put(out, "{");
        Self { out, is_empty: true }
    }

    fn name(&mut self, name: &str) {
        if !core::mem::take(&mut self.is_empty) {
            put(self.out, ",");
        }
        put(self.out, "\"");
        put(self.out, name);
        put(self.out, "\":");
    }

    pub(crate) fn text(&mut self, name: &str, value: &str) {
        self.name(name);
        write_string(value, self.out);
    }

    /// A string that comes in characters.
    pub(crate) fn chars(&mut self, name: &str, value: impl IntoIterator<Item = char>) {
        self.name(name);
        put(self.out, "\"");
        value.into_iter().for_each(|c| write_char(c, self.out));
        put(self.out, "\"");
    }

    /// A member named by a peer, as a string.
    pub(crate) fn named(&mut self, name: &str, value: &str) {
        if !core::mem::take(&mut self.is_empty) {
            put(self.out, ",");
        }
        write_string(name, self.out);
        put(self.out, ":");
        write_string(value, self.out);
    }

    /// At most 2⁵³, above which JSON's numbers are not exact.
    pub(crate) fn number(&mut self, name: &str, value: u64) {
        self.name(name);
        // Writing to memory cannot fail.
        let _ = write!(self.out, "{value}");
    }

    pub(crate) fn object(&mut self, name: &str) -> Object<'_, W> {
        self.name(name);
        Object::open(self.out)
    }

    pub(crate) fn close(self) {
        put(self.out, "}");
    }
}

/// Memory to write to.
pub(crate) struct Bytes(pub(crate) Vec<u8>);

impl Write for Bytes {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        self.0.extend_from_slice(text.as_bytes());
        Ok(())
    }
}

fn put(out: &mut impl Write, text: &str) {
    // Writing to memory cannot fail.
    let _ = out.write_str(text);
}

/// A string, quoted.
pub(crate) fn write_string(text: &str, out: &mut impl Write) {
    put(out, "\"");
    if text.bytes().any(|byte| byte < b' ' || byte == b'"' || byte == b'\\') {
        text.chars().for_each(|c| write_char(c, out));
    } else {
        put(out, text);
    }
    put(out, "\"");
}

fn write_char(c: char, out: &mut impl Write) {
    // Writing to memory cannot fail.
    let _ = match c {
        '"' => out.write_str("\\\""),
        '\\' => out.write_str("\\\\"),
        '\u{8}' => out.write_str("\\b"),
        '\t' => out.write_str("\\t"),
        '\n' => out.write_str("\\n"),
        '\u{c}' => out.write_str("\\f"),
        '\r' => out.write_str("\\r"),
        '\0'..='\u{1f}' => write!(out, "\\u{:04x}", u32::from(c)),
        _ => out.write_char(c),
    };
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::canonical;
    use alloc::string::String;
    use serde_json::json;

    #[test]
    fn what_is_written_in_canonical_order_is_canonical_json() {
        let odd: String = (0..=0x7f).map(char::from).chain("äß\u{2028}\u{1f600}".chars()).collect();
        let mut out = String::from("before ");
        let mut object = Object::open(&mut out);
        object.chars("a", odd.chars());
        object.number("b", 1_795_391_521);
        let mut inner = object.object("c");
        inner.text("d", "plain");
        inner.text("e", &odd);
        inner.close();
        object.object("f").close();
        object.close();
        let value = json!({"a": odd, "b": 1_795_391_521_u64, "c": {"d": "plain", "e": odd}, "f": {}});
        assert_eq!(out.strip_prefix("before ").unwrap(), canonical::to_canonical(&value));
        assert_eq!(serde_json::from_str::<serde_json::Value>(&out[7..]).unwrap(), value);
    }
}
