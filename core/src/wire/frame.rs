//! Binary frames (protocol.md section 2): the layout, its bounds, and nothing of keys.
//!
//! ```text
//! version(1) type(1) sequence(8) nonce(12) length(4) ciphertext(length) tag(16)
//! ```

use alloc::vec::Vec;
use core::fmt;

use crate::crypto::{Nonce, Tag};
use crate::limits::MAX_MESSAGE;

/// Bytes before the ciphertext.
pub const HEADER: usize = 26;
/// Bytes after it.
pub const TAG: usize = 16;
/// Bytes that a frame adds to its plaintext.
pub const OVERHEAD: usize = HEADER + TAG;
/// The largest plaintext.
pub const MAX_PLAINTEXT: usize = MAX_MESSAGE - OVERHEAD;

const VERSION: u8 = 1;

/// What a frame is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum FrameType {
    /// Reserved; handshakes are plain JSON in version 1.
    Handshake = 0x01,
    /// One JSON message.
    Data = 0x10,
    /// To be answered with a pong.
    Ping = 0x20,
    /// The answer.
    Pong = 0x21,
    /// The end of the session.
    Close = 0x30,
    /// An error of the frame layer.
    Error = 0x31,
}

impl FrameType {
    const fn from_byte(byte: u8) -> Option<Self> {
        Some(match byte {
            0x01 => Self::Handshake,
            0x10 => Self::Data,
            0x20 => Self::Ping,
            0x21 => Self::Pong,
            0x30 => Self::Close,
            0x31 => Self::Error,
            _ => return None,
        })
    }
}

/// Why bytes are not a frame. The peer's fault, always.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FrameError {
    /// Fewer bytes than a frame without plaintext has.
    TooShort {
        /// How many.
        len: usize,
    },
    /// More than [`MAX_MESSAGE`].
    TooLong {
        /// How many.
        len: usize,
    },
    /// Another version of the protocol.
    Version(u8),
    /// No such type in version 1.
    Type(u8),
    /// The announced length is not that of the message.
    Length {
        /// By the header.
        announced: u32,
        /// In the message.
        present: usize,
    },
}

impl fmt::Display for FrameError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::TooShort { len } => write!(f, "{len} bytes are too few for a frame"),
            Self::TooLong { len } => write!(f, "{len} bytes are too many for a frame"),
            Self::Version(version) => write!(f, "frame version {version} is not 1"),
            Self::Type(byte) => write!(f, "frame type {byte:#04x} is unknown"),
            Self::Length { announced, present } => {
                write!(f, "the frame announces {announced} bytes and holds {present}")
            }
        }
    }
}

impl core::error::Error for FrameError {}

/// The head of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// What it is.
    pub kind: FrameType,
    /// Its place in its direction.
    pub sequence: u64,
    /// The AEAD nonce.
    pub nonce: Nonce,
    /// Of the ciphertext, in bytes.
    pub length: u32,
}

impl Header {
    /// What the tag protects beside the ciphertext.
    #[must_use]
    pub fn aad(&self) -> [u8; 14] {
        let mut aad = [0; 14];
        aad[0] = VERSION;
        aad[1] = self.kind as u8;
        aad[2..10].copy_from_slice(&self.sequence.to_be_bytes());
        aad[10..].copy_from_slice(&self.length.to_be_bytes());
        aad
    }

    /// The bytes on the wire.
    #[must_use]
    pub fn to_bytes(&self) -> [u8; HEADER] {
        let mut out = [0; HEADER];
        out[0] = VERSION;
        out[1] = self.kind as u8;
        out[2..10].copy_from_slice(&self.sequence.to_be_bytes());
        out[10..22].copy_from_slice(&self.nonce);
        out[22..].copy_from_slice(&self.length.to_be_bytes());
        out
    }
}

/// The parts of a frame, inside the message it came in.
#[derive(Debug, PartialEq, Eq)]
pub struct Parts<'a> {
    /// The head.
    pub header: Header,
    /// The ciphertext, to be decrypted where it is.
    pub ciphertext: &'a mut [u8],
    /// The tag.
    pub tag: Tag,
}

/// Takes a message apart.
///
/// # Errors
/// The message is not exactly one frame of version 1.
pub fn split(message: &mut [u8]) -> Result<Parts<'_>, FrameError> {
    let len = message.len();
    if len > MAX_MESSAGE {
        return Err(FrameError::TooLong { len });
    }
    let too_short = FrameError::TooShort { len };
    let (head, rest) = message.split_first_chunk_mut::<HEADER>().ok_or(too_short)?;
    let (ciphertext, tag) = rest.split_last_chunk_mut::<TAG>().ok_or(too_short)?;
    let (tag, present) = (*tag, ciphertext.len());
    let [version, kind, s0, s1, s2, s3, s4, s5, s6, s7, nonce @ .., l0, l1, l2, l3] = *head;
    if version != VERSION {
        return Err(FrameError::Version(version));
    }
    let kind = FrameType::from_byte(kind).ok_or(FrameError::Type(kind))?;
    let announced = u32::from_be_bytes([l0, l1, l2, l3]);
    if usize::try_from(announced) != Ok(present) {
        return Err(FrameError::Length { announced, present });
    }
    let sequence = u64::from_be_bytes([s0, s1, s2, s3, s4, s5, s6, s7]);
    Ok(Parts { header: Header { kind, sequence, nonce, length: announced }, ciphertext, tag })
}

/// A plaintext being written, behind room for its header: it is sealed where it stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FrameBuf {
    bytes: Vec<u8>,
}

impl FrameBuf {
    /// An empty plaintext with room for `capacity` bytes of it.
    #[must_use]
    pub fn with_capacity(capacity: usize) -> Self {
        let mut bytes = Vec::with_capacity(capacity.saturating_add(OVERHEAD));
        bytes.resize(HEADER, 0);
        Self { bytes }
    }

    /// A plaintext that exists already.
    #[must_use]
    pub fn from_plaintext(plaintext: &[u8]) -> Self {
        let mut buf = Self::with_capacity(plaintext.len());
        buf.extend(plaintext);
        buf
    }

    /// Appends to the plaintext.
    pub fn extend(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
    }

    /// Appends the base64 of `bytes` to the plaintext.
    pub fn extend_base64(&mut self, bytes: &[u8]) {
        super::base64::encode_into(bytes, &mut self.bytes);
    }

    /// The plaintext so far.
    #[must_use]
    pub fn plaintext(&self) -> &[u8] {
        &self.bytes[HEADER..]
    }

    /// The plaintext, to be encrypted where it is.
    pub(crate) fn plaintext_mut(&mut self) -> &mut [u8] {
        &mut self.bytes[HEADER..]
    }

    /// The frame: header before, tag after.
    pub(crate) fn finish(mut self, header: &Header, tag: &Tag) -> Vec<u8> {
        self.bytes[..HEADER].copy_from_slice(&header.to_bytes());
        self.bytes.extend_from_slice(tag);
        self.bytes
    }
}

impl fmt::Write for FrameBuf {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        self.extend(text.as_bytes());
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(header: Header, ciphertext: &[u8]) -> Vec<u8> {
        FrameBuf::from_plaintext(ciphertext).finish(&header, &[0xee; TAG])
    }

    const HEAD: Header =
        Header { kind: FrameType::Data, sequence: 0x0102_0304_0506_0708, nonce: [9; 12], length: 3 };

    #[test]
    fn a_frame_stands_on_the_wire_as_the_table_draws_it() {
        let bytes = frame(HEAD, b"abc");
        let mut expected = alloc::vec![1, 0x10, 1, 2, 3, 4, 5, 6, 7, 8];
        expected.extend([9; 12]);
        expected.extend([0, 0, 0, 3]);
        expected.extend(b"abc");
        expected.extend([0xee; 16]);
        assert_eq!(bytes, expected);
        assert_eq!(HEAD.aad(), [1, 0x10, 1, 2, 3, 4, 5, 6, 7, 8, 0, 0, 0, 3]);
    }

    #[test]
    fn splitting_gives_back_what_was_put_together() {
        let mut bytes = frame(HEAD, b"abc");
        let parts = split(&mut bytes).unwrap();
        assert_eq!(parts.header, HEAD);
        assert_eq!(parts.ciphertext, b"abc");
        assert_eq!(parts.tag, [0xee; 16]);
    }

    #[test]
    fn a_message_is_exactly_one_frame() {
        let good = frame(HEAD, b"abc");
        for len in 0..good.len() {
            assert!(split(&mut good[..len].to_vec()).is_err(), "{len} bytes");
        }
        let mut longer = good.clone();
        longer.push(0);
        assert_eq!(split(&mut longer), Err(FrameError::Length { announced: 3, present: 4 }));
        let mut huge = good;
        huge[22..26].copy_from_slice(&u32::MAX.to_be_bytes());
        assert_eq!(split(&mut huge), Err(FrameError::Length { announced: u32::MAX, present: 3 }));
    }

    #[test]
    fn other_versions_and_unknown_types_are_refused() {
        let mut version = frame(HEAD, b"abc");
        version[0] = 2;
        assert_eq!(split(&mut version), Err(FrameError::Version(2)));
        for byte in 0..=255 {
            let mut bytes = frame(HEAD, b"abc");
            bytes[1] = byte;
            let known = matches!(byte, 0x01 | 0x10 | 0x20 | 0x21 | 0x30 | 0x31);
            assert_eq!(split(&mut bytes).is_ok(), known, "{byte:#x}");
        }
    }
}
