//! Lower-case hexadecimal.

use alloc::string::String;

const DIGITS: &[u8; 16] = b"0123456789abcdef";

/// Two digits a byte.
#[must_use]
pub fn encode(bytes: &[u8]) -> String {
    let mut out = String::with_capacity(bytes.len() * 2);
    for byte in bytes {
        out.push(char::from(DIGITS[usize::from(byte >> 4)]));
        out.push(char::from(DIGITS[usize::from(byte & 15)]));
    }
    out
}

/// Writes two digits a byte over `out`, which has room for exactly them; the text.
pub(crate) fn encode_to<'t>(bytes: &[u8], out: &'t mut [u8]) -> &'t str {
    for (byte, pair) in bytes.iter().zip(out.chunks_exact_mut(2)) {
        pair.copy_from_slice(&[DIGITS[usize::from(byte >> 4)], DIGITS[usize::from(byte & 15)]]);
    }
    // Digits are UTF-8.
    core::str::from_utf8(out).unwrap_or_default()
}

/// The bytes of an even number of digits in either case; `None` for anything else.
#[must_use]
pub fn decode(text: &str) -> Option<alloc::vec::Vec<u8>> {
    let digit = |c: u8| char::from(c).to_digit(16).and_then(|d| u8::try_from(d).ok());
    let pairs = text.as_bytes().chunks_exact(2);
    if !pairs.remainder().is_empty() {
        return None;
    }
    pairs.map(|pair| Some(digit(*pair.first()?)? << 4 | digit(*pair.last()?)?)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hex_survives_the_round_trip_and_nothing_else_is_taken() {
        let bytes: alloc::vec::Vec<u8> = (0..=255).collect();
        assert_eq!(decode(&encode(&bytes)).unwrap(), bytes);
        assert_eq!(decode("Ff").unwrap(), [255]);
        for text in ["f", "fg", "+1", "é"] {
            assert_eq!(decode(text), None, "{text}");
        }
    }
}
