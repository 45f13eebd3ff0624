//! Gzip (RFC 1952) taken apart as it comes, with bounds: one member, nothing after it, checksum and length checked,
//! and no more output for an input than a release has.

use alloc::boxed::Box;
use core::fmt;

use miniz_oxide::inflate::stream::{InflateState, inflate};
use miniz_oxide::{DataFormat, MZError, MZFlush, MZStatus};

/// Bytes of a header's optional fields (name, comment, extra).
const MAX_HEADER_FIELDS: usize = 4096;

/// The most output for one byte of input. Programs and texts come to 3 to 20; a bomb to 1000.
pub const MAX_RATIO: u64 = 200;

/// Output that is allowed for however little input: a tar's padding alone is 10 KiB of zeros.
pub const FREE_OUTPUT: u64 = 1024 * 1024;

const FIXED_HEADER: usize = 10;
const TRAILER: usize = 8;
const HEADER_CRC: u8 = 2;
const EXTRA: u8 = 4;
const NAME: u8 = 8;
const COMMENT: u8 = 16;
const RESERVED: u8 = 0xe0;

/// Why data are no gzip, or none that is taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GzipError {
    /// It does not begin as gzip does.
    NotGzip,
    /// The compressed data make no sense.
    Damaged,
    /// The checksum is another.
    Checksum,
    /// The length is another.
    Length,
    /// It ends before its end.
    Truncated,
    /// There is something after its end, perhaps another member.
    Trailing,
    /// It unpacks to over [`MAX_RATIO`] times its size.
    Bomb,
    /// It unpacks to more than this many bytes.
    TooLarge(u64),
}

impl fmt::Display for GzipError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotGzip => f.write_str("not a gzip file"),
            Self::Damaged => f.write_str("the compressed data are damaged"),
            Self::Checksum => f.write_str("the checksum of the compressed data is wrong"),
            Self::Length => f.write_str("the length of the compressed data is wrong"),
            Self::Truncated => f.write_str("the file is truncated"),
            Self::Trailing => f.write_str("there is something after the end of the compressed data"),
            Self::Bomb => write!(f, "it unpacks to over {MAX_RATIO} times its size"),
            Self::TooLarge(most) => write!(f, "it unpacks to over {most} bytes"),
        }
    }
}

impl core::error::Error for GzipError {}

/// What one step took and gave.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Step {
    /// Bytes of the input that were taken.
    pub read: usize,
    /// Bytes of the output that were filled.
    pub written: usize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Fixed,
    ExtraLength,
    Extra(usize),
    Text(u8),
    HeaderCrc,
    Body,
    Trailer,
    Over,
}

/// A gzip file under way.
pub struct Gunzip {
    state: State,
    /// Optional header fields that are still to come.
    flags: u8,
    /// The bytes of the field under way.
    held: [u8; FIXED_HEADER],
    held_len: usize,
    fields: usize,
    inflate: Box<InflateState>,
    crc: crc32fast::Hasher,
    taken: u64,
    given: u64,
    most: u64,
}

impl fmt::Debug for Gunzip {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Gunzip")
            .field("state", &self.state)
            .field("given", &self.given)
            .finish_non_exhaustive()
    }
}

impl Gunzip {
    /// One that gives at most `most` bytes.
    #[must_use]
    pub fn new(most: u64) -> Self {
        Self {
            state: State::Fixed,
            flags: 0,
            held: [0; FIXED_HEADER],
            held_len: 0,
            fields: 0,
            inflate: InflateState::new_boxed(DataFormat::Raw),
            crc: crc32fast::Hasher::new(),
            taken: 0,
            given: 0,
            most,
        }
    }

    /// Takes some of `input` and fills some of `output`, which is not empty. Taking and giving nothing means that more
    /// input is needed.
    ///
    /// # Errors
    /// It is no gzip that is taken; nothing more is to be had of it.
    pub fn step(&mut self, input: &[u8], output: &mut [u8]) -> Result<Step, GzipError> {
        let mut read = 0;
        loop {
            let rest = &input[read..];
            match self.state {
                State::Body => {
                    let step = self.body(rest, output)?;
                    read += step.read;
                    if step.written > 0 || self.state == State::Body {
                        return Ok(Step { read, written: step.written });
                    }
                }
                State::Over if rest.is_empty() => return Ok(Step { read, written: 0 }),
                State::Over => return Err(GzipError::Trailing),
                _ if rest.is_empty() => return Ok(Step { read, written: 0 }),
                _ => {
                    self.byte(rest[0])?;
                    self.taken += 1;
                    read += 1;
                }
            }
        }
    }

    /// Whether the input may end here.
    ///
    /// # Errors
    /// It may not.
    pub fn end(&self) -> Result<(), GzipError> {
        match self.state {
            State::Over => Ok(()),
            _ if self.taken < 2 => Err(GzipError::NotGzip),
            _ => Err(GzipError::Truncated),
        }
    }

    fn body(&mut self, input: &[u8], output: &mut [u8]) -> Result<Step, GzipError> {
        let result = inflate(&mut self.inflate, input, output, MZFlush::None);
        let (read, written) = (result.bytes_consumed, result.bytes_written);
        match result.status {
            Ok(MZStatus::StreamEnd) => self.state = State::Trailer,
            Ok(_) | Err(MZError::Buf) => {}
            Err(_) => return Err(GzipError::Damaged),
        }
        self.crc.update(&output[..written]);
        self.given = self.given.saturating_add(written as u64);
        if self.given > self.most {
            return Err(GzipError::TooLarge(self.most));
        }
        self.taken = self.taken.saturating_add(read as u64);
        if self.given > self.taken.saturating_mul(MAX_RATIO).saturating_add(FREE_OUTPUT) {
            return Err(GzipError::Bomb);
        }
        Ok(Step { read, written })
    }

    /// One byte of what is around the compressed data.
    fn byte(&mut self, byte: u8) -> Result<(), GzipError> {
        if matches!(self.state, State::ExtraLength | State::Extra(_) | State::Text(_)) {
            self.fields += 1;
            if self.fields > MAX_HEADER_FIELDS {
                return Err(GzipError::NotGzip);
            }
        }
        if self.held_len < FIXED_HEADER {
            self.held[self.held_len] = byte;
            self.held_len += 1;
        }
        match self.state {
            State::Fixed => {
                let starts =
                    self.held_len > 3 || [0x1f, 0x8b, 8][..self.held_len] == self.held[..self.held_len];
                if !starts || (self.held_len == 4 && byte & RESERVED != 0) {
                    return Err(GzipError::NotGzip);
                }
                if self.held_len == FIXED_HEADER {
                    self.flags = self.held[3] & (HEADER_CRC | EXTRA | NAME | COMMENT);
                    self.next_field();
                }
            }
            State::ExtraLength if self.held_len == 2 => {
                match u16::from_le_bytes([self.held[0], self.held[1]]) {
                    0 => self.next_field(),
                    length => self.state = State::Extra(usize::from(length)),
                }
            }
            State::Extra(left) if left > 1 => self.state = State::Extra(left - 1),
            State::Extra(_) => self.next_field(),
            State::Text(_) if byte == 0 => self.next_field(),
            State::HeaderCrc if self.held_len == 2 => self.next_field(),
            State::Trailer if self.held_len == TRAILER => {
                let [a, b, c, d, e, f, g, h, ..] = self.held;
                if u32::from_le_bytes([a, b, c, d]) != self.crc.clone().finalize() {
                    return Err(GzipError::Checksum);
                }
                if u64::from(u32::from_le_bytes([e, f, g, h])) != self.given & u64::from(u32::MAX) {
                    return Err(GzipError::Length);
                }
                self.state = State::Over;
            }
            _ => {}
        }
        Ok(())
    }

    fn next_field(&mut self) {
        self.held_len = 0;
        for (flag, state) in [
            (EXTRA, State::ExtraLength),
            (NAME, State::Text(NAME)),
            (COMMENT, State::Text(COMMENT)),
            (HEADER_CRC, State::HeaderCrc),
        ] {
            if self.flags & flag != 0 {
                self.flags &= !flag;
                self.state = state;
                return;
            }
        }
        self.state = State::Body;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::vec;
    use alloc::vec::Vec;

    /// A gzip file with these header flags and fields.
    fn gzip(data: &[u8], flags: u8, fields: &[u8]) -> Vec<u8> {
        let mut out = vec![0x1f, 0x8b, 8, flags, 0, 0, 0, 0, 0, 255];
        out.extend_from_slice(fields);
        out.extend(miniz_oxide::deflate::compress_to_vec(data, 6));
        out.extend(crc32fast::hash(data).to_le_bytes());
        out.extend((data.len() as u32).to_le_bytes());
        out
    }

    /// Fed in pieces of `piece` bytes, taken in pieces of `room`.
    fn gunzip(input: &[u8], piece: usize, room: usize, most: u64) -> Result<Vec<u8>, GzipError> {
        let mut machine = Gunzip::new(most);
        let mut out = vec![];
        let mut buffer = vec![0; room];
        let mut at = 0;
        loop {
            let end = input.len().min(at + piece);
            let step = machine.step(&input[at..end], &mut buffer)?;
            at += step.read;
            out.extend_from_slice(&buffer[..step.written]);
            if step == Step::default() && end == input.len() {
                return machine.end().map(|()| out);
            }
        }
    }

    fn text() -> Vec<u8> {
        (0..20_000_u32).flat_map(|n| (n * n).to_le_bytes()).collect()
    }

    #[test]
    fn whole_or_in_pieces_the_data_come_back() {
        let (data, fields) = (text(), b"\x03\x00abcname\0comment\0xx");
        for file in [gzip(&data, 0, b""), gzip(&data, HEADER_CRC | EXTRA | NAME | COMMENT, fields)] {
            for (piece, room) in [(usize::MAX / 2, 100_000), (1, 1), (7, 4096), (4096, 7)] {
                assert_eq!(gunzip(&file, piece, room, 80_000).as_ref(), Ok(&data), "{piece} {room}");
            }
        }
        assert_eq!(gunzip(&gzip(b"", EXTRA, b"\0\0"), 1, 1, 0), Ok(vec![]));
    }

    #[test]
    fn what_is_not_one_whole_gzip_file_is_refused_with_its_reason() {
        let good = gzip(&text(), 0, b"");
        let last = good.len();
        let changed = |at: usize, to: u8| {
            let mut file = good.clone();
            file[at] = to;
            file
        };
        let long_name = [gzip(b"", NAME, &vec![b'a'; MAX_HEADER_FIELDS + 1])].concat();
        for (file, why) in [
            (vec![], GzipError::NotGzip),
            (b"PK\x03\x04".to_vec(), GzipError::NotGzip),
            (changed(2, 7), GzipError::NotGzip),
            (changed(3, 0x20), GzipError::NotGzip),
            (long_name, GzipError::NotGzip),
            (good[..5].to_vec(), GzipError::Truncated),
            (good[..last / 2].to_vec(), GzipError::Truncated),
            (good[..last - 1].to_vec(), GzipError::Truncated),
            (changed(last - 8, good[last - 8] ^ 1), GzipError::Checksum),
            (changed(last - 1, good[last - 1] ^ 1), GzipError::Length),
            (changed(10, 0xff), GzipError::Damaged),
            ([&good[..], b"x"].concat(), GzipError::Trailing),
            ([&good[..], &good].concat(), GzipError::Trailing),
        ] {
            for piece in [1, 1000, usize::MAX / 2] {
                assert_eq!(gunzip(&file, piece, 4096, 80_000), Err(why));
            }
        }
        assert_eq!(gunzip(&good, 1000, 4096, 79_999), Err(GzipError::TooLarge(79_999)));
    }

    #[test]
    fn a_bomb_is_noticed_before_it_has_unpacked() {
        let bomb = gzip(&vec![0; 8 * 1024 * 1024], 0, b"");
        assert_eq!(gunzip(&bomb, 64, 65_536, u64::MAX), Err(GzipError::Bomb));
    }
}
