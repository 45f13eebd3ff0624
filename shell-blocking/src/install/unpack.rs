//! An artifact read: gzip, tar, entry by entry by the rules of [`consensus_core::release::entry`].

use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{self, Read, Seek as _, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::Path;

use consensus_core::release::entry::{
    Entries, Entry, Kind, MANIFEST, MAX_ARTIFACT, MAX_MANIFEST, MAX_UNPACKED, Refused, check_manifest,
};
use consensus_core::release::gunzip::{Gunzip, Step};
use consensus_core::release::manifest::Manifest;
use consensus_core::release::version::Version;
use consensus_core::wire::hex;
use rustix::fs::OFlags;
use sha2::{Digest as _, Sha256};

/// A block of a tar archive.
const BLOCK: u64 = 512;

/// Zeros that an archive may end with beyond its mark. tar fills up to 10 KiB; some fill more.
const MAX_PADDING: u64 = 1024 * 1024;

/// Bytes that are read or unpacked at once.
const CHUNK: usize = 64 * 1024;

/// What can go wrong with an artifact.
#[derive(Debug)]
pub(super) enum Trouble {
    Refused(Refused),
    Io(io::Error),
}

impl From<Refused> for Trouble {
    fn from(refused: Refused) -> Self {
        Self::Refused(refused)
    }
}

impl From<io::Error> for Trouble {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

/// What an artifact must be.
pub(super) struct Wanted<'a> {
    pub(super) platform: &'a str,
    pub(super) version: Option<&'a Version>,
    pub(super) sha256: Option<[u8; 32]>,
}

/// What an artifact is.
#[derive(Debug)]
pub(super) struct Contents {
    pub(super) manifest: Manifest,
    pub(super) brings_wrapper: bool,
}

/// An artifact, opened once: what is hashed and what is unpacked is the same file, whatever happens to its name.
#[derive(Debug)]
pub(super) struct Artifact {
    file: File,
}

impl Artifact {
    /// Not blocked by a pipe in the file's place.
    pub(super) fn open(path: &Path) -> Result<Self, Trouble> {
        let nonblocking = OFlags::NONBLOCK.bits() as i32;
        let file = OpenOptions::new().read(true).custom_flags(nonblocking).open(path)?;
        let metadata = file.metadata()?;
        if !metadata.is_file() {
            return Err(io::Error::other("not an ordinary file").into());
        }
        if metadata.len() > MAX_ARTIFACT {
            return Err(Refused::ArtifactTooLarge.into());
        }
        Ok(Self { file })
    }

    /// SHA-256 of all of it.
    pub(super) fn hash(&mut self) -> Result<[u8; 32], Trouble> {
        self.file.rewind()?;
        let mut hashing = Sha256::new();
        let mut buffer = vec![0; CHUNK];
        let mut total = 0;
        loop {
            let count = self.file.read(&mut buffer)?;
            if count == 0 {
                return Ok(hashing.finalize().into());
            }
            total += count as u64;
            if total > MAX_ARTIFACT {
                return Err(Refused::ArtifactTooLarge.into());
            }
            hashing.update(&buffer[..count]);
        }
    }

    /// Checks all of it and unpacks it into `into`, an empty folder; without one nothing is written. What is written is
    /// not durable yet, and on an error half there.
    pub(super) fn unpack(&mut self, wanted: &Wanted<'_>, into: Option<&Path>) -> Result<Contents, Trouble> {
        self.file.rewind()?;
        read(&mut self.file, wanted, into)
    }
}

/// Reads an artifact to its end, wherever it comes from.
pub(super) fn read(
    from: &mut dyn Read,
    wanted: &Wanted<'_>,
    into: Option<&Path>,
) -> Result<Contents, Trouble> {
    let mut inflating = Inflating::new(from);
    let contents = read_archive(&mut inflating, wanted, into);
    // What is wrong with the compression comes through the archive's reader as an error of input.
    if let Some(refused) = inflating.refused.take() {
        return Err(refused.into());
    }
    let contents = contents?;
    let found: [u8; 32] = inflating.hashing.finalize().into();
    match wanted.sha256 {
        Some(wanted) if wanted != found => {
            Err(Refused::Hash { wanted: hex::encode(&wanted), found: hex::encode(&found) }.into())
        }
        _ => Ok(contents),
    }
}

fn read_archive(
    inflating: &mut Inflating<'_>,
    wanted: &Wanted<'_>,
    into: Option<&Path>,
) -> Result<Contents, Trouble> {
    let mut entries = Entries::default();
    let mut manifest = None;
    let mut end = 0;
    let mut archive = tar::Archive::new(&mut *inflating);
    // Raw: extensions of the format show as entries, and are refused, instead of being read into memory.
    for entry in archive.entries().map_err(header)?.raw(true) {
        let mut entry = entry.map_err(header)?;
        let path = entry.path_bytes().into_owned();
        let size = entry.header().entry_size().map_err(header)?;
        let mode = entry.header().mode().map_err(header)?;
        let kind = Kind::of(entry.header().as_bytes()[156]);
        let placed = entries.admit(&Entry { path: &path, kind, size, mode })?;
        end = entry.raw_file_position() + size.div_ceil(BLOCK) * BLOCK;
        if placed.is_folder {
            if let Some(into) = into.filter(|_| !placed.path.is_empty()) {
                make_folder(&into.join(&placed.path))?;
            }
            continue;
        }
        if placed.path == MANIFEST {
            let mut data = Vec::new();
            (&mut entry).take(MAX_MANIFEST + 1).read_to_end(&mut data)?;
            if data.len() as u64 != size {
                return Err(Refused::ArchiveTruncated.into());
            }
            manifest = Some(check_manifest(&data, wanted.platform, wanted.version)?);
            if let Some(into) = into {
                write_new(&into.join(MANIFEST), placed.mode, &mut &data[..])?;
            }
            continue;
        }
        let copied = match into {
            Some(into) => {
                let path = into.join(&placed.path);
                if let Some(parent) = path.parent() {
                    make_folder(parent)?;
                }
                write_new(&path, placed.mode, &mut entry)?
            }
            None => io::copy(&mut entry, &mut io::sink())?,
        };
        if copied != size {
            return Err(Refused::ArchiveTruncated.into());
        }
    }
    drain(inflating, end)?;
    let brings_wrapper = entries.finish()?;
    let Some((manifest, _)) = manifest else { return Err(Refused::Missing(MANIFEST).into()) };
    Ok(Contents { manifest, brings_wrapper })
}

/// After the last entry there are two blocks of zeros or more, and nothing else.
fn drain(inflating: &mut Inflating<'_>, end: u64) -> Result<(), Trouble> {
    let mut buffer = [0; 4096];
    loop {
        let count = inflating.read(&mut buffer)?;
        if count == 0 {
            break;
        }
        if buffer[..count].iter().any(|byte| *byte != 0) || inflating.given > end + MAX_PADDING {
            return Err(Refused::ArchiveTrailing.into());
        }
    }
    // The reader stops at the first block of zeros; the second counts all the same.
    match inflating.given.checked_sub(end) {
        Some(rest) if rest >= 2 * BLOCK => Ok(()),
        _ => Err(Refused::ArchiveTruncated.into()),
    }
}

fn header(error: io::Error) -> Trouble {
    match error.kind() {
        io::ErrorKind::UnexpectedEof => Refused::ArchiveTruncated.into(),
        _ => Refused::Header(consensus_core::text::printable(&error.to_string())).into(),
    }
}

fn make_folder(path: &Path) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o755).create(path)
}

/// A file that is not there yet, with exactly `mode`, whatever the process's mask is.
fn write_new(path: &Path, mode: u32, from: &mut dyn Read) -> io::Result<u64> {
    let mut file = OpenOptions::new().write(true).create_new(true).mode(mode).open(path)?;
    let copied = io::copy(from, &mut file)?;
    file.flush()?;
    file.set_permissions(std::fs::Permissions::from_mode(mode))?;
    Ok(copied)
}

/// The inflated artifact; its bytes are hashed on the way.
struct Inflating<'a> {
    from: &'a mut dyn Read,
    hashing: Sha256,
    gunzip: Gunzip,
    buffer: Vec<u8>,
    start: usize,
    end: usize,
    taken: u64,
    given: u64,
    /// What is wrong with it: an error of input cannot carry that.
    refused: Option<Refused>,
}

impl<'a> Inflating<'a> {
    fn new(from: &'a mut dyn Read) -> Self {
        Self {
            from,
            hashing: Sha256::new(),
            gunzip: Gunzip::new(MAX_UNPACKED),
            buffer: vec![0; CHUNK],
            start: 0,
            end: 0,
            taken: 0,
            given: 0,
            refused: None,
        }
    }

    fn refuse(&mut self, refused: impl Into<Refused>) -> io::Error {
        let refused = refused.into();
        let error = io::Error::other(refused.to_string());
        self.refused.get_or_insert(refused);
        error
    }
}

impl Read for Inflating<'_> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        if out.is_empty() {
            return Ok(0);
        }
        loop {
            let step = match self.gunzip.step(&self.buffer[self.start..self.end], out) {
                Ok(step) => step,
                Err(why) => return Err(self.refuse(why)),
            };
            self.start += step.read;
            self.given += step.written as u64;
            if step.written > 0 {
                return Ok(step.written);
            }
            if step != Step::default() || self.start < self.end {
                continue;
            }
            (self.start, self.end) = (0, self.from.read(&mut self.buffer)?);
            self.taken += self.end as u64;
            if self.taken > MAX_ARTIFACT {
                return Err(self.refuse(Refused::ArtifactTooLarge));
            }
            if self.end == 0 {
                return match self.gunzip.end() {
                    Ok(()) => Ok(0),
                    Err(why) => Err(self.refuse(why)),
                };
            }
            self.hashing.update(&self.buffer[..self.end]);
        }
    }
}
