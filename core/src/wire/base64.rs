//! Base64: outgoing exact, incoming lenient (protocol.md, notation).

use alloc::string::String;
use alloc::vec::Vec;

use ::base64::Engine as _;
use ::base64::alphabet;
use ::base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use ::base64::prelude::{BASE64_STANDARD, BASE64_URL_SAFE_NO_PAD};

const LENIENT: GeneralPurposeConfig = GeneralPurposeConfig::new()
    .with_decode_padding_mode(DecodePaddingMode::Indifferent)
    .with_decode_allow_trailing_bits(true);
const LENIENT_STANDARD: GeneralPurpose = GeneralPurpose::new(&alphabet::STANDARD, LENIENT);
const LENIENT_URL: GeneralPurpose = GeneralPurpose::new(&alphabet::URL_SAFE, LENIENT);

/// Standard alphabet, padded.
#[must_use]
pub fn encode(bytes: &[u8]) -> String {
    BASE64_STANDARD.encode(bytes)
}

/// URL alphabet, not padded.
#[must_use]
pub fn encode_url(bytes: &[u8]) -> String {
    BASE64_URL_SAFE_NO_PAD.encode(bytes)
}

/// Appends the standard encoding of `bytes` to `out` without a copy between.
pub fn encode_into(bytes: &[u8], out: &mut Vec<u8>) {
    let start = out.len();
    let length = bytes.len().div_ceil(3).saturating_mul(4);
    out.resize(start + length, 0);
    let written = BASE64_STANDARD.encode_slice(bytes, &mut out[start..]);
    debug_assert_eq!(written, Ok(length), "the length was computed for exactly these bytes");
}

/// The longest value that [`Text`] and [`decode_array`] take, in bytes: a point on P-256 has 65.
const MAX_SHORT: usize = 66;

/// The standard encoding of a short value, without memory of its own.
pub(crate) struct Text {
    text: [u8; MAX_SHORT / 3 * 4],
    length: usize,
}

impl Text {
    /// Of at most 66 bytes.
    pub(crate) fn of<const N: usize>(bytes: &[u8; N]) -> Self {
        const { assert!(N <= MAX_SHORT) }
        let mut text = [0; MAX_SHORT / 3 * 4];
        // It fits, see above.
        let length = BASE64_STANDARD.encode_slice(bytes, &mut text).unwrap_or_default();
        Self { text, length }
    }

    pub(crate) fn as_str(&self) -> &str {
        // Base64 is UTF-8.
        core::str::from_utf8(&self.text[..self.length]).unwrap_or_default()
    }
}

/// Either alphabet (not both in one text), padding optional. `None` when it is not base64.
#[must_use]
pub fn decode(text: &str) -> Option<Vec<u8>> {
    let mut out = Vec::new();
    decode_into(text, &mut out).then_some(out)
}

/// Like [`decode`], appended to `out`; `false`, and nothing appended, when it is not base64.
#[must_use]
pub fn decode_into(text: &str, out: &mut Vec<u8>) -> bool {
    let start = out.len();
    // The usual alphabet first: to look for the other one would cost as much as decoding.
    let decoded = LENIENT_STANDARD.decode_vec(text, out).is_ok() || {
        out.truncate(start);
        LENIENT_URL.decode_vec(text, out).is_ok()
    };
    if !decoded {
        out.truncate(start);
    }
    decoded
}

/// Like [`decode`], for exactly `N` bytes. Takes no memory for a text of another length.
#[must_use]
pub fn decode_array<const N: usize>(text: &str) -> Option<[u8; N]> {
    const { assert!(N <= MAX_SHORT) }
    let unpadded = text.trim_end_matches('=');
    if unpadded.len() != (N * 4).div_ceil(3) {
        return None;
    }
    let mut out = [0; MAX_SHORT];
    let length = LENIENT_STANDARD
        .decode_slice(unpadded, &mut out)
        .or_else(|_| LENIENT_URL.decode_slice(unpadded, &mut out))
        .ok()?;
    out[..length].try_into().ok()
}

/// The bytes a base64 text of this length decodes to, at most.
#[must_use]
pub const fn decoded_len_max(text_len: usize) -> usize {
    text_len.div_ceil(4).saturating_mul(3)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn padding_and_alphabet_are_optional_on_the_way_in_and_exact_on_the_way_out() {
        for text in ["+/8=", "+/8", "-_8=", "-_8"] {
            assert_eq!(decode(text).unwrap(), [0xfb, 0xff], "{text}");
        }
        assert_eq!(encode(&[0xfb, 0xff]), "+/8=");
        assert_eq!(encode_url(&[0xfb, 0xff]), "-_8");
    }

    #[test]
    fn what_is_not_base64_is_refused() {
        for text in ["a", "ab cd", "ab\n", "é", "+_8="] {
            assert_eq!(decode(text), None, "{text:?}");
        }
    }

    #[test]
    fn an_array_has_exactly_its_length() {
        assert_eq!(decode_array::<2>("+/8="), Some([0xfb, 0xff]));
        assert_eq!(decode_array::<3>("+/8="), None);
        assert_eq!(decode_array::<1>("+/8="), None);
    }

    #[test]
    fn encoding_in_place_is_encoding() {
        for length in 0..64 {
            let bytes = alloc::vec![0xa5; length];
            let mut out = alloc::vec![b'"'];
            encode_into(&bytes, &mut out);
            assert_eq!(out[1..], *encode(&bytes).as_bytes());
        }
    }
}
