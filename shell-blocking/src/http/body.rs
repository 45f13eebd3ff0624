//! Reads message bodies.
//!
//! ureq-proto decides which framing a message has; the bytes are taken here. Its own reader of chunks takes a size
//! with a sign, waits for ever behind a lone CR, and bounds neither extensions nor trailers.

use core::fmt;

/// Extensions and trailers of one chunked body together, in bytes. They are read over; nobody needs more.
const MAX_OVERHEAD: usize = 16 * 1024;

/// The digits of a chunk's size. 15 hold 2⁶⁰ − 1, over which nothing could be added up safely.
const MAX_SIZE_DIGITS: u32 = 15;

/// A body being read.
#[derive(Debug)]
pub(super) enum Body {
    /// So many bytes are still to come.
    Length(u64),
    /// In chunks.
    Chunked(Chunks),
    /// All until the connection ends.
    UntilClose,
}

/// Why a body is not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum BodyError {
    /// Over the caller's bound.
    TooLarge,
    /// The chunks are not of RFC 9112, 7.1.
    BadChunk,
}

impl fmt::Display for BodyError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::TooLarge => "the body is too large",
            Self::BadChunk => "the chunked body is malformed",
        })
    }
}

impl Body {
    /// A chunked body that begins.
    pub(super) fn chunked() -> Self {
        Self::Chunked(Chunks { state: Chunk::Start, overhead: 0 })
    }

    /// Takes what belongs to the body from `input`, adds the content to `out`, and returns how much it took.
    pub(super) fn read(&mut self, input: &[u8], out: &mut Vec<u8>, max: usize) -> Result<usize, BodyError> {
        match self {
            Self::Length(left) => {
                let take = usize::try_from(*left).unwrap_or(usize::MAX).min(input.len());
                append(&input[..take], out, max)?;
                *left -= take as u64;
                Ok(take)
            }
            Self::Chunked(chunks) => chunks.read(input, out, max),
            Self::UntilClose => {
                append(input, out, max)?;
                Ok(input.len())
            }
        }
    }

    /// Whether all of it has come, as far as the bytes say.
    pub(super) fn is_complete(&self) -> bool {
        match self {
            Self::Length(left) => *left == 0,
            Self::Chunked(chunks) => matches!(chunks.state, Chunk::End),
            Self::UntilClose => false,
        }
    }
}

fn append(bytes: &[u8], out: &mut Vec<u8>, max: usize) -> Result<(), BodyError> {
    if bytes.len() > max.saturating_sub(out.len()) {
        return Err(BodyError::TooLarge);
    }
    out.extend_from_slice(bytes);
    Ok(())
}

/// The chunked coding (RFC 9112, 7.1), one byte at a time where it is not content.
#[derive(Debug)]
pub(super) struct Chunks {
    state: Chunk,
    /// Bytes of extensions and trailers so far.
    overhead: usize,
}

#[derive(Clone, Copy, Debug)]
enum Chunk {
    /// Before the first digit of a size.
    Start,
    /// In a size of so many digits.
    Size { size: u64, digits: u32 },
    /// In white space after a size.
    Space { size: u64 },
    /// In an extension.
    Extension { size: u64 },
    /// After the CR of a size line.
    SizeLf { size: u64 },
    /// In content.
    Data { left: u64 },
    /// After content.
    DataCr,
    /// After content and CR.
    DataLf,
    /// At the begin of a trailer line, or of the empty line.
    Trailer,
    /// In a trailer line.
    TrailerLine,
    /// After the CR of a trailer line.
    TrailerLf,
    /// After the CR of the empty line.
    EndLf,
    /// All has come.
    End,
}

impl Chunks {
    fn read(&mut self, input: &[u8], out: &mut Vec<u8>, max: usize) -> Result<usize, BodyError> {
        let mut at = 0;
        while at < input.len() {
            match self.state {
                Chunk::End => break,
                Chunk::Data { left } => {
                    let take = usize::try_from(left).unwrap_or(usize::MAX).min(input.len() - at);
                    append(&input[at..at + take], out, max)?;
                    at += take;
                    let left = left - take as u64;
                    self.state = if left == 0 { Chunk::DataCr } else { Chunk::Data { left } };
                }
                state => {
                    let next = self.step(state, input[at])?;
                    // A chunk that cannot fit is refused by its size, before its content comes.
                    if let Chunk::SizeLf { size } = next {
                        if size > (max.saturating_sub(out.len())) as u64 {
                            return Err(BodyError::TooLarge);
                        }
                    }
                    self.state = next;
                    at += 1;
                }
            }
        }
        Ok(at)
    }

    fn step(&mut self, state: Chunk, byte: u8) -> Result<Chunk, BodyError> {
        let digit = char::from(byte).to_digit(16).map(u64::from);
        Ok(match (state, byte) {
            (Chunk::Start, _) => Chunk::Size { size: digit.ok_or(BodyError::BadChunk)?, digits: 1 },
            (Chunk::Size { size, .. } | Chunk::Space { size } | Chunk::Extension { size }, b'\r') => {
                Chunk::SizeLf { size }
            }
            (Chunk::Size { size, digits }, _) if digit.is_some() && digits < MAX_SIZE_DIGITS => {
                Chunk::Size { size: size << 4 | digit.unwrap_or_default(), digits: digits + 1 }
            }
            (Chunk::Size { size, .. } | Chunk::Space { size }, b' ' | b'\t') => {
                self.count()?;
                Chunk::Space { size }
            }
            (Chunk::Size { size, .. } | Chunk::Space { size }, b';')
            | (Chunk::Extension { size }, b'\t' | b' '..=b'~' | 0x80..) => {
                self.count()?;
                Chunk::Extension { size }
            }
            (Chunk::SizeLf { size: 0 }, b'\n') => Chunk::Trailer,
            (Chunk::SizeLf { size }, b'\n') => Chunk::Data { left: size },
            (Chunk::DataCr, b'\r') => Chunk::DataLf,
            (Chunk::DataLf, b'\n') => Chunk::Start,
            (Chunk::Trailer, b'\r') => Chunk::EndLf,
            (Chunk::EndLf, b'\n') => Chunk::End,
            (Chunk::TrailerLine, b'\r') => Chunk::TrailerLf,
            (Chunk::TrailerLf, b'\n') => Chunk::Trailer,
            (Chunk::Trailer | Chunk::TrailerLine, b'\t' | b' '..=b'~' | 0x80..) => {
                self.count()?;
                Chunk::TrailerLine
            }
            _ => return Err(BodyError::BadChunk),
        })
    }

    fn count(&mut self) -> Result<(), BodyError> {
        self.overhead += 1;
        if self.overhead > MAX_OVERHEAD { Err(BodyError::TooLarge) } else { Ok(()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The content, how much of the input it took and whether it is complete, in steps of `step` bytes.
    fn read(input: &[u8], step: usize) -> Result<(Vec<u8>, usize, bool), BodyError> {
        let (mut body, mut out, mut at) = (Body::chunked(), Vec::new(), 0);
        for piece in input.chunks(step) {
            at += body.read(piece, &mut out, 1000)?;
        }
        Ok((out, at, body.is_complete()))
    }

    fn both(input: &[u8]) -> Result<(Vec<u8>, usize, bool), BodyError> {
        let whole = read(input, input.len().max(1));
        assert_eq!(whole, read(input, 1), "{:?}", String::from_utf8_lossy(input));
        whole
    }

    #[test]
    fn chunks_are_joined() {
        for (input, content) in [
            (&b"0\r\n\r\n"[..], &b""[..]),
            (b"5\r\nhello\r\n0\r\n\r\n", b"hello"),
            (b"A;x=\"y\"\r\n0123456789\r\n1 \r\n!\r\n00\r\nTrailer: 1\r\nb: 2\r\n\r\n", b"0123456789!"),
            (b"0000a\r\n0123456789\r\n0\r\n\r\n", b"0123456789"),
        ] {
            assert_eq!(both(input), Ok((content.to_vec(), input.len(), true)));
        }
    }

    #[test]
    fn what_follows_is_left() {
        let input = b"1\r\nx\r\n0\r\n\r\nGET /";
        assert_eq!(read(input, input.len()), Ok((b"x".to_vec(), input.len() - 5, true)));
    }

    #[test]
    fn a_part_is_not_complete() {
        let input = b"5\r\nhello\r\n0\r\nT: 1\r\n\r\n";
        for end in 0..input.len() {
            assert!(!both(&input[..end]).unwrap().2, "{end}");
        }
    }

    #[test]
    fn other_spellings_are_refused() {
        for input in [
            &b"-1\r\n"[..],
            b"+1\r\nx\r\n",
            b" 1\r\nx\r\n",
            b"0x1\r\nx\r\n",
            b"\r\n",
            b"g\r\n",
            b"1 2\r\n",
            b"1\nx",
            b"1\rx",
            b"1\r\nxy",
            b"1\r\nx\n",
            b"1\r\nx\r\r\n",
            b"1;\0\r\n",
            b"0\r\n\n",
            b"0\r\nT: 1\n\r\n",
            b"1000000000000000\r\n",
            b"0000000000000001\r\n",
        ] {
            assert_eq!(both(input), Err(BodyError::BadChunk), "{:?}", String::from_utf8_lossy(input));
        }
    }

    #[test]
    fn bodies_are_bounded() {
        for input in [
            b"3e9\r\n".to_vec(),
            b"fffffffffffffff\r\n".to_vec(),
            [b"1;".to_vec(), vec![b'x'; MAX_OVERHEAD]].concat(),
            [b"0\r\n".to_vec(), b"T: 1\r\n".repeat(MAX_OVERHEAD)].concat(),
        ] {
            assert_eq!(both(&input), Err(BodyError::TooLarge));
        }
        let mut out = Vec::new();
        assert_eq!(Body::UntilClose.read(&[0; 11], &mut out, 10), Err(BodyError::TooLarge));
        assert_eq!(Body::Length(11).read(&[0; 11], &mut out, 10), Err(BodyError::TooLarge));
    }
}
