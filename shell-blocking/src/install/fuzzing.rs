//! The body of the fuzz target `artifact`, which is this file and the reader beside it: gzip, tar, and the rules of
//! entries, as the installer has them. Nothing is written.

use std::collections::BTreeSet;
use std::io::{self, Read};

use super::unpack::{Trouble, Wanted, read};

const PLATFORM: &str = "linux-x64";

/// An archive says the same however it is cut; and one that is taken holds, by a second reading, plain files and
/// folders below itself, each once, with the manifest and the program among them.
///
/// As an artifact, and as what is in one: as it is, and with the checksums of its headers put right.
pub(super) fn artifact(data: &[u8]) {
    judge(data);
    for archive in [data.to_vec(), mended(data)] {
        if judge(&gzip(&archive)) {
            check(&archive);
        }
    }
}

/// Whether it is taken.
fn judge(artifact: &[u8]) -> bool {
    let wanted = Wanted { platform: PLATFORM, version: None, sha256: None };
    let verdict = |from: &mut dyn Read| match read(from, &wanted, None) {
        Ok(contents) => {
            assert_eq!(contents.manifest.platform, PLATFORM);
            Ok(contents.brings_wrapper)
        }
        Err(Trouble::Refused(refused)) => {
            let said = refused.to_string();
            assert!(!said.chars().any(char::is_control), "{said:?}");
            Err(said)
        }
        Err(Trouble::Io(error)) => panic!("an error of input where there is none: {error}"),
    };
    let whole = verdict(&mut &artifact[..]);
    let cut = verdict(&mut Bytes(artifact));
    // Which of two faults is told first may depend on how it is cut.
    assert_eq!(whole.as_ref().ok(), cut.as_ref().ok(), "{whole:?}, {cut:?}");
    whole.is_ok()
}

/// One byte at a time.
struct Bytes<'a>(&'a [u8]);

impl Read for Bytes<'_> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        let length = out.len().min(1);
        self.0.read(&mut out[..length])
    }
}

/// The heads of an archive's entries, where each begins.
fn heads(archive: &[u8]) -> Vec<usize> {
    let (mut heads, mut at) = (Vec::new(), 0);
    while let Some(head) = archive.get(at..at + 512).filter(|head| head.iter().any(|byte| *byte != 0)) {
        heads.push(at);
        let Some(size) = number(&head[124..136]) else { break };
        let blocks = size.div_ceil(512).min(archive.len());
        at += 512 * (1 + blocks);
    }
    heads
}

/// A number of a header: octal up to the first NUL, or binary where the first bit is set.
fn number(field: &[u8]) -> Option<usize> {
    if field[0] & 0x80 != 0 {
        let last = field.last_chunk::<8>()?;
        return usize::try_from(u64::from_be_bytes(*last)).ok();
    }
    let end = field.iter().position(|byte| *byte == 0).unwrap_or(field.len());
    let text = std::str::from_utf8(&field[..end]).ok()?.trim();
    usize::from_str_radix(text, 8).ok()
}

fn mended(archive: &[u8]) -> Vec<u8> {
    let mut out = archive.to_vec();
    for at in heads(archive) {
        out[at + 148..at + 156].fill(b' ');
        let sum: u32 = out[at..at + 512].iter().map(|byte| u32::from(*byte)).sum();
        out[at + 148..at + 156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    }
    // The two blocks that end it.
    out.resize(out.len().div_ceil(512) * 512 + 1024, 0);
    out
}

fn check(archive: &[u8]) {
    let mut seen = BTreeSet::new();
    for at in heads(archive) {
        let head = &archive[at..at + 512];
        let text = |field: &[u8]| {
            let end = field.iter().position(|byte| *byte == 0).unwrap_or(field.len());
            String::from_utf8_lossy(&field[..end]).into_owned()
        };
        let is_folder = match head[156] {
            0 | b'0' => false,
            b'5' => true,
            other => panic!("an entry of type {other}"),
        };
        let is_ustar = head[257..262] == *b"ustar" && head[262] != b' ';
        let prefix = if is_ustar { text(&head[345..500]) } else { String::new() };
        let name =
            if prefix.is_empty() { text(&head[..100]) } else { [&prefix, "/", &text(&head[..100])].concat() };
        assert!(!name.starts_with('/') && !name.contains('\\'), "{name:?}");
        let inside = name.trim_start_matches("./").trim_end_matches('/').to_ascii_lowercase();
        assert!(!inside.split('/').any(|part| part == ".."), "{name:?}");
        assert!(!inside.starts_with("install-record"), "{name:?}");
        if !inside.is_empty() {
            assert!(seen.insert(inside), "{name:?} is there twice");
        }
        assert!(!is_folder || number(&head[124..136]) == Some(0), "{name:?}");
    }
    assert!(seen.contains("release-manifest.json") && seen.contains("bin/consensus-node"), "{seen:?}");
}

/// Without compression: whatever a fuzzer changes stays where it is.
fn gzip(data: &[u8]) -> Vec<u8> {
    let mut out = b"\x1f\x8b\x08\0\0\0\0\0\0\xff".to_vec();
    let mut pieces = data.chunks(0xffff).peekable();
    loop {
        let piece = pieces.next().unwrap_or_default();
        let length = piece.len() as u16;
        out.push(u8::from(pieces.peek().is_none()));
        out.extend(length.to_le_bytes());
        out.extend((!length).to_le_bytes());
        out.extend(piece);
        if pieces.peek().is_none() {
            break;
        }
    }
    let mut crc = crc32fast::Hasher::new();
    crc.update(data);
    out.extend(crc.finalize().to_le_bytes());
    out.extend((data.len() as u32).to_le_bytes());
    out
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_corpus_of_artifact_holds() {
        let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz/corpus/artifact");
        let mut count = 0;
        for entry in std::fs::read_dir(&folder).unwrap() {
            let path = entry.unwrap().path();
            // Shown where it panics.
            eprintln!("{}", path.display());
            super::artifact(&std::fs::read(&path).unwrap());
            count += 1;
        }
        assert!(count > 0);
        let release = std::fs::read(folder.join("release.tgz")).unwrap();
        assert!(super::judge(&release), "there is one that is taken");
    }
}
