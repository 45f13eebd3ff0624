//! What stands in files, and what comes as one.

use alloc::string::String;
use alloc::vec::Vec;
use core::fmt::Debug;

use super::transparent::Transparent;
use super::{START, UNIX};
use crate::crypto::identity::Identity;
use crate::crypto::pem;
use crate::crypto::pure::Pure;
use crate::data_plane::replay::{Before, Spent, serving_file};
use crate::io::Response;
use crate::release::artifact::{Artifact, ContentRange, acceptable};
use crate::release::gunzip::{Gunzip, GzipError};
use crate::release::manifest::{Manifest, differences};
use crate::release::signature::{ReleaseKeys, sign};
use crate::release::{latest, version::Version};
use crate::state::{self as files, JoinAuth, MachineRecord, Registration};
use crate::trace::{self, Reader, Record, Replay, Step, TraceError, about};
use crate::update::records;

/// A key that decodes encodes to a text that decodes to it.
pub fn pem_key(data: &[u8]) {
    let Ok(text) = core::str::from_utf8(data) else { return };
    if let Ok(key) = pem::decode_public(text) {
        assert_eq!(pem::decode_public(&pem::encode_public(&key)), Ok(key));
        // The DER of it, whatever the text was: the same twelve bytes before every key.
        let der = der(text);
        assert_eq!(der[..12], *b"\x30\x2a\x30\x05\x06\x03\x2b\x65\x70\x03\x21\x00");
        assert_eq!(der[12..], key);
    }
    if let Ok(seed) = pem::decode_private(text) {
        let again = pem::decode_private(&pem::encode_private(&seed));
        assert_eq!(again.as_ref().map(|seed| **seed), Ok(*seed));
        let der = der(text);
        assert_eq!(der[..16], *b"\x30\x2e\x02\x01\x00\x30\x05\x06\x03\x2b\x65\x70\x04\x22\x04\x20");
        assert_eq!(der[16..], *seed);
    }
}

/// The bytes between the two lines of a PEM text, bit by bit.
fn der(pem: &str) -> Vec<u8> {
    let inside = pem.split_once("KEY-----").map_or("", |(_, rest)| rest);
    let body = inside.rsplit_once("-----END ").map_or("", |(body, _)| body);
    let (mut bits, mut count, mut out) = (0_u32, 0, Vec::new());
    for byte in body.bytes().filter(|byte| !byte.is_ascii_whitespace() && *byte != b'=') {
        let value = match byte {
            b'A'..=b'Z' => byte - b'A',
            b'a'..=b'z' => byte - b'a' + 26,
            b'0'..=b'9' => byte - b'0' + 52,
            b'+' | b'-' => 62,
            _ => 63,
        };
        bits = (bits << 6) | u32::from(value);
        count += 6;
        if count >= 8 {
            count -= 8;
            out.push((bits >> count) as u8);
        }
    }
    out
}

/// A file that says to be a trace ends in its end, in a difference or in an error; and says the same again.
///
/// As it is, and with its checksums put right, so that the fuzzer gets past them.
pub fn trace_file(data: &[u8]) {
    for trace in [data.to_vec(), trace::mended(data)] {
        let run = || {
            let mut replay = Replay::new(Reader::new(&trace)?, Pure)?;
            let mut steps = 0_u64;
            let mut last = None;
            while let Some(step) = replay.step()? {
                steps += 1;
                last = Some(step);
            }
            Ok::<_, TraceError>((steps, last))
        };
        let first = run();
        if let Ok((_, last)) = &first {
            assert!(matches!(last, Some((_, Step::End(_) | Step::Difference(_)))), "a replay ends: {last:?}");
        }
        if is_read_to_its_end(&trace) {
            let longer = [&trace[..], b"\0"].concat();
            assert!(!is_read_to_its_end(&longer), "something follows the end");
        }
        // As text: what is no number is no difference.
        assert_eq!(alloc::format!("{first:?}"), alloc::format!("{:?}", run()));
        let Ok(mut reader) = Reader::new(&trace) else { continue };
        while let Ok(Some((_, record))) = reader.next_record() {
            match record {
                Record::Input { input, .. } => assert!(!about::input(&input).contains('\n')),
                Record::Output(output) => assert!(!about::output(&output).contains('\n')),
                Record::Told { .. } | Record::Wanted(_) | Record::End(_) => {}
            }
        }
    }
}

fn is_read_to_its_end(trace: &[u8]) -> bool {
    let Ok(mut reader) = Reader::new(trace) else { return false };
    loop {
        match reader.next_record() {
            Ok(Some(_)) => {}
            end => return end.is_ok(),
        }
    }
}

/// A manifest that is read is written as it was meant; of its texts none becomes a path, and a signature over it does
/// not outlive a change.
pub fn manifest(data: &[u8]) {
    if let Ok(text) = core::str::from_utf8(data) {
        let range = ContentRange::parse(text);
        assert!(
            range.is_none_or(|range| range.first <= range.last && range.total.is_none_or(|t| range.last < t))
        );
        if let Ok(version) = text.parse::<Version>() {
            assert_eq!(alloc::string::ToString::to_string(&version).parse::<Version>(), Ok(version));
        }
    }
    let answer = Response { status: 200, reason: String::new(), headers: Vec::new(), body: data.to_vec() };
    if let Err(finish) = latest::read(&answer) {
        assert!(!finish.message.chars().any(char::is_control), "{:?}", finish.message);
    }
    let Ok(mut read) = files::parse_manifest(data) else { return };
    assert_eq!(files::parse_manifest(&files::emit_manifest(&read)).as_ref(), Ok(&read));
    assert!(differences(&read, &read).is_empty());
    let running = Manifest::of_this_release("1.2.3", "abc", "linux-x64");
    let key = Identity::from_seed(Transparent, &[9; 32]);
    let nobody = ReleaseKeys::default();
    if let Ok(version) = acceptable(&Transparent, &nobody, &read, &running, false, START) {
        assert!(version >= "1.2.3".parse().unwrap_or(version.clone()));
        assert_eq!(read.platform, running.platform);
    }
    if let Ok(artifact) = Artifact::of(&read) {
        let is_plain = |b: u8| b.is_ascii_alphanumeric() || b"-._+".contains(&b);
        assert!(artifact.file_name.len() <= 255 && artifact.file_name.bytes().all(is_plain), "{artifact:?}");
        assert!(artifact.max_size() > 0 && artifact.max_size() <= crate::limits::MAX_TARBALL);
    }
    let Some(keys) = ReleaseKeys::new(Vec::from([*key.public_key()])) else { return };
    if sign(&Transparent, &key, &mut read) {
        let is_over = read.expires().is_some_and(|expires| expires <= UNIX);
        assert_eq!(keys.check(&Transparent, &read, START).is_ok(), !is_over, "{read:?}");
        read.commit.push('x');
        assert!(keys.check(&Transparent, &read, START).is_err(), "a signature over something else");
    }
}

fn same<T: PartialEq + Debug>(read: T, emit: impl Fn(&T) -> Vec<u8>, parse: impl Fn(&[u8]) -> Option<T>) {
    assert_eq!(parse(&emit(&read)).as_ref(), Some(&read), "written and read again");
}

/// Every file of the state directory and of the install directory: what is read is written as it was meant.
pub fn state(data: &[u8]) {
    if let Ok(read) = Registration::parse(data) {
        same(read, Registration::emit, |data| Registration::parse(data).ok());
    }
    if let Ok(read) = JoinAuth::parse(data) {
        same(read, JoinAuth::emit, |data| JoinAuth::parse(data).ok());
    }
    if let Ok(read) = MachineRecord::parse(data) {
        same(read, MachineRecord::emit, |data| MachineRecord::parse(data).ok());
    }
    if let Ok(read) = records::Record::parse(data) {
        same(read, records::Record::emit, |data| records::Record::parse(data).ok());
    }
    if let Ok(read) = records::parse_refused(data) {
        assert!(read.len() <= records::MAX_REFUSED, "{}", read.len());
        same(read, |failed| records::emit_refused(failed), |data| records::parse_refused(data).ok());
    }
    let _ = records::RolledBack::parse(data);
    let _ = records::parse_floor(data);
    if let Some(id) = records::parse_id_line(data) {
        assert!(records::id_of_target(&alloc::format!("releases/{id}")).is_some(), "{id}");
    }
    let before = Before::from_file(data);
    let file = Spent::new(START, before).file(START);
    let again = Before::from_file(&file);
    let is_unclean = file == serving_file();
    assert_eq!(again == Before::Unclean, is_unclean, "what a clean stop writes is read");
    assert_eq!(Spent::new(START, again).file(START), file, "nothing changes while nothing happens");
}

/// What a gzip may give here.
const MOST: u64 = 256 * 1024;

/// Gzip gives the same however it is cut, and what another reading of it gives.
pub fn gunzip(data: &[u8]) {
    if data.len() as u64 > MOST {
        return;
    }
    // Which of two faults is told first may depend on how it is cut.
    let whole = unpack(data, data.len().max(1), 4096).ok();
    assert_eq!(whole, unpack(data, 1, 4096).ok(), "in single bytes");
    assert_eq!(whole, unpack(data, 7, 1).ok(), "into single bytes");
    if whole.is_some() {
        assert_eq!(whole, second(data));
    }
    let packed = pack(data);
    assert_eq!(unpack(&packed, 13, 4096).as_deref(), Ok(data), "packed and unpacked");
    let longer = [&packed[..], b"x"].concat();
    assert_eq!(unpack(&longer, 4096, 4096), Err(GzipError::Trailing));
    let cut = &packed[..packed.len() - 1];
    assert_eq!(unpack(cut, 4096, 4096), Err(GzipError::Truncated));
    // What it unpacks to is one byte over what may be.
    if let Some(most) = (data.len() as u64).checked_sub(1) {
        let mut gunzip = Gunzip::new(most);
        let mut output = alloc::vec![0; data.len() + 1];
        assert_eq!(
            gunzip.step(&packed, &mut output).and_then(|_| gunzip.end()),
            Err(GzipError::TooLarge(most))
        );
    }
}

fn unpack(data: &[u8], most_in: usize, most_out: usize) -> Result<Vec<u8>, GzipError> {
    let mut gunzip = Gunzip::new(MOST);
    let (mut given, mut output) = (Vec::new(), alloc::vec![0; most_out]);
    for piece in data.chunks(most_in) {
        let mut rest = piece;
        loop {
            let step = gunzip.step(rest, &mut output)?;
            rest = &rest[step.read..];
            given.extend_from_slice(&output[..step.written]);
            if step.read == 0 && step.written == 0 {
                break;
            }
        }
        assert!(rest.is_empty(), "all that can be taken is taken");
    }
    gunzip.end()?;
    assert!(given.len() as u64 <= MOST);
    Ok(given)
}

/// The member of a gzip file, read at once.
fn second(data: &[u8]) -> Option<Vec<u8>> {
    let flags = *data.get(3)?;
    let mut rest = data.get(10..)?;
    if flags & 4 != 0 {
        let (length, after) = rest.split_first_chunk()?;
        rest = after.get(usize::from(u16::from_le_bytes(*length))..)?;
    }
    for flag in [8, 16] {
        if flags & flag != 0 {
            let end = rest.iter().position(|byte| *byte == 0)?;
            rest = &rest[end + 1..];
        }
    }
    if flags & 2 != 0 {
        rest = rest.get(2..)?;
    }
    let (body, trailer) = rest.split_last_chunk::<8>()?;
    let given = miniz_oxide::inflate::decompress_to_vec_with_limit(body, MOST as usize).ok()?;
    let mut crc = crc32fast::Hasher::new();
    crc.update(&given);
    let expected = [crc.finalize().to_le_bytes(), (given.len() as u32).to_le_bytes()].concat();
    (trailer[..] == expected[..]).then_some(given)
}

fn pack(data: &[u8]) -> Vec<u8> {
    let mut out = Vec::from(*b"\x1f\x8b\x08\0\0\0\0\0\0\xff");
    out.extend(miniz_oxide::deflate::compress_to_vec(data, 6));
    let mut crc = crc32fast::Hasher::new();
    crc.update(data);
    out.extend(crc.finalize().to_le_bytes());
    out.extend((data.len() as u32).to_le_bytes());
    out
}
