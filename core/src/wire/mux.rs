//! The frames on the stream of a public tunnel's owner (protocol.md section 9): `type(1) ‖ stream_id(u32) ‖ payload`,
//! one in each datum.

use core::fmt;

/// Bytes before the payload.
pub const HEAD: usize = 5;

/// What a frame is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum MuxKind {
    /// A visitor came; the payload is the first it sent.
    Open = 1,
    /// Bytes of a visitor's stream.
    Data = 2,
    /// The stream ended in good order.
    End = 3,
    /// The stream broke, or is wanted no more.
    Reset = 4,
    /// To be answered by a pong.
    Ping = 5,
    /// The answer.
    Pong = 6,
}

/// Why bytes are not a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MuxError {
    /// Fewer bytes than a head has.
    TooShort,
    /// No such type.
    Kind(u8),
}

impl fmt::Display for MuxError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::TooShort => f.write_str("a tunnel frame has at least 5 bytes"),
            Self::Kind(kind) => write!(f, "tunnel frame type {kind} is unknown"),
        }
    }
}

impl core::error::Error for MuxError {}

/// A frame, in the datum that it came in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MuxFrame<'a> {
    /// What it is.
    pub kind: MuxKind,
    /// The visitor's number; 0 is the tunnel itself.
    pub stream: u32,
    /// What it carries.
    pub payload: &'a [u8],
}

impl<'a> MuxFrame<'a> {
    /// Takes a datum apart.
    ///
    /// # Errors
    /// [`MuxError`].
    pub fn parse(datum: &'a [u8]) -> Result<Self, MuxError> {
        let ([kind, stream @ ..], payload) = datum.split_first_chunk::<HEAD>().ok_or(MuxError::TooShort)?;
        let kind = match kind {
            1 => MuxKind::Open,
            2 => MuxKind::Data,
            3 => MuxKind::End,
            4 => MuxKind::Reset,
            5 => MuxKind::Ping,
            6 => MuxKind::Pong,
            other => return Err(MuxError::Kind(*other)),
        };
        Ok(Self { kind, stream: u32::from_be_bytes(*stream), payload })
    }
}

/// What stands before the payload.
#[must_use]
pub const fn head(kind: MuxKind, stream: u32) -> [u8; HEAD] {
    let [a, b, c, d] = stream.to_be_bytes();
    [kind as u8, a, b, c, d]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_frame_is_its_head_and_its_payload() {
        let datum = [&head(MuxKind::Data, 0x0102_0304)[..], b"hi"].concat();
        assert_eq!(datum, [2, 1, 2, 3, 4, b'h', b'i']);
        let frame = MuxFrame { kind: MuxKind::Data, stream: 0x0102_0304, payload: b"hi" };
        assert_eq!(MuxFrame::parse(&datum), Ok(frame));
        for kind in 0..=255 {
            let parsed = MuxFrame::parse(&[kind, 0, 0, 0, 0]).map(|frame| frame.kind as u8);
            let expected = if (1..=6).contains(&kind) { Ok(kind) } else { Err(MuxError::Kind(kind)) };
            assert_eq!(parsed, expected);
        }
        for length in 0..HEAD {
            assert_eq!(MuxFrame::parse(&datum[..length]), Err(MuxError::TooShort));
        }
    }
}
