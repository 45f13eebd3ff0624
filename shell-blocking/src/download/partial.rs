//! The file of a tarball while it comes.

use std::fs::{self, File, OpenOptions};
use std::io::{self, ErrorKind, Read as _, Seek as _, SeekFrom, Write as _};
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use consensus_core::release::artifact::Artifact;
use consensus_core::wire::hex;
use rustix::fs::OFlags;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use super::{DownloadError, Downloaded};
use crate::state_dir::{FileError, read_file, replace_file, sync_parent};

/// The largest note beside a partial file.
const MAX_NOTE: usize = 4096;

/// The longest entity tag that is remembered.
const MAX_TAG: usize = 256;

/// What is read of a file at once.
const CHUNK: usize = 64 * 1024;

/// What must be known of a partial file to go on with it: `NAME.part.json`.
#[derive(Default, Serialize, Deserialize)]
struct Note {
    /// What the whole must hash to: a part of another tarball is no part of this one.
    sha256: String,
    /// The server's name for the file, where it has a strong one.
    etag: Option<String>,
}

/// `NAME.part`, open.
pub(super) struct Partial {
    file: File,
    path: PathBuf,
    note_path: PathBuf,
    note: Note,
    length: u64,
    /// How many bytes were there when it was opened, and still count.
    resumed_from: u64,
}

/// The open file, if it is an ordinary one. Neither a link nor a pipe in its place is followed or waited for.
fn open(path: &Path, create: bool) -> Result<File, io::Error> {
    let flags = (OFlags::NOFOLLOW | OFlags::NONBLOCK).bits() as i32;
    let mut options = OpenOptions::new();
    options.read(true).write(create).create(create).truncate(false).mode(0o600).custom_flags(flags);
    let file = options.open(path)?;
    if !file.metadata()?.is_file() {
        return Err(io::Error::other("not an ordinary file"));
    }
    Ok(file)
}

fn hash(file: &mut File, path: &Path, cancelled: &AtomicBool) -> Result<[u8; 32], DownloadError> {
    let unreadable = |error: io::Error| FileError::io(path, "cannot be read", &error);
    file.seek(SeekFrom::Start(0)).map_err(unreadable)?;
    let (mut hash, mut buffer) = (Sha256::new(), vec![0; CHUNK]);
    loop {
        if cancelled.load(Ordering::Relaxed) {
            return Err(DownloadError::Cancelled);
        }
        match file.read(&mut buffer) {
            Ok(0) => return Ok(hash.finalize().into()),
            Ok(count) => hash.update(&buffer[..count]),
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(unreadable(error).into()),
        }
    }
}

/// The tarball where it is there already. What is there and is not the tarball is removed.
pub(super) fn complete(
    path: &Path,
    artifact: &Artifact,
    cancelled: &AtomicBool,
) -> Result<Option<Downloaded>, DownloadError> {
    let mut file = match open(path, false) {
        Ok(file) => file,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(FileError::io(path, "is in the way of a download", &error).into()),
    };
    let size = file.metadata().map_err(|error| FileError::io(path, "cannot be examined", &error))?.len();
    let may_be = size <= artifact.max_size() && artifact.size.is_none_or(|wanted| wanted == size);
    if may_be && hash(&mut file, path, cancelled)? == artifact.sha256 {
        narrow(&file, path)?;
        let (path, sha256) = (path.to_path_buf(), artifact.sha256);
        return Ok(Some(Downloaded { path, sha256, size, resumed_from: size }));
    }
    fs::remove_file(path).map_err(|error| FileError::io(path, "cannot be removed", &error))?;
    Ok(None)
}

fn narrow(file: &File, path: &Path) -> Result<(), FileError> {
    file.set_permissions(fs::Permissions::from_mode(0o600))
        .map_err(|error| FileError::io(path, "its mode cannot be set", &error))
}

fn beside(path: &Path, more: &str) -> PathBuf {
    let mut name = path.file_name().unwrap_or_default().to_os_string();
    name.push(more);
    path.with_file_name(name)
}

impl Partial {
    /// What there is of the tarball that will be at `path`; empty where there is nothing, or nothing of this one.
    pub(super) fn open(path: &Path, artifact: &Artifact) -> Result<Self, FileError> {
        let (path, note_path) = (beside(path, ".part"), beside(path, ".part.json"));
        let file = open(&path, true).map_err(|error| FileError::io(&path, "cannot be opened", &error))?;
        narrow(&file, &path)?;
        let length =
            file.metadata().map_err(|error| FileError::io(&path, "cannot be examined", &error))?.len();
        // A note that cannot be read is as good as none.
        let note: Note = match read_file(&note_path, MAX_NOTE) {
            Ok(Some(data)) => serde_json::from_slice(&data).unwrap_or_default(),
            Ok(None) | Err(_) => Note::default(),
        };
        let sha256 = hex::encode(&artifact.sha256);
        let is_ours = note.sha256 == sha256 && length <= artifact.max_size();
        let etag = note.etag.filter(|tag| is_ours && is_strong(tag));
        let note = Note { sha256, etag };
        let mut this = Self { file, path, note_path, note, length, resumed_from: length };
        if is_ours {
            this.file
                .seek(SeekFrom::Start(length))
                .map_err(|error| FileError::io(&this.path, "cannot be read", &error))?;
        } else {
            this.clear()?;
        }
        Ok(this)
    }

    /// Bytes that are there.
    pub(super) fn length(&self) -> u64 {
        self.length
    }

    /// The server's name for the file that the bytes are of.
    pub(super) fn etag(&self) -> Option<&str> {
        self.note.etag.as_deref()
    }

    /// Begins at nothing.
    pub(super) fn clear(&mut self) -> Result<(), FileError> {
        self.begin(None)
    }

    /// Begins at nothing, with a file that the server has that name for.
    pub(super) fn begin(&mut self, etag: Option<&str>) -> Result<(), FileError> {
        let cleared = self.file.set_len(0).and_then(|()| self.file.seek(SeekFrom::Start(0)));
        cleared.map_err(|error| FileError::io(&self.path, "cannot be emptied", &error))?;
        (self.length, self.resumed_from) = (0, 0);
        self.note.etag = etag.filter(|tag| is_strong(tag)).map(str::to_string);
        let note = serde_json::to_vec(&self.note).unwrap_or_default();
        replace_file(&self.note_path, &note, 0o600)
    }

    /// Adds what came.
    pub(super) fn append(&mut self, bytes: &[u8]) -> Result<(), FileError> {
        self.file.write_all(bytes).map_err(|error| FileError::io(&self.path, "cannot be written", &error))?;
        self.length += bytes.len() as u64;
        Ok(())
    }

    /// The hash of all that is there, from the disk.
    pub(super) fn hash(&mut self, cancelled: &AtomicBool) -> Result<[u8; 32], DownloadError> {
        hash(&mut self.file, &self.path, cancelled)
    }

    /// Gives it its name, durably.
    pub(super) fn finish(self, path: &Path, artifact: &Artifact) -> Result<Downloaded, FileError> {
        let renamed = self.file.sync_all().and_then(|()| fs::rename(&self.path, path));
        renamed.map_err(|error| FileError::io(path, "cannot be written", &error))?;
        sync_parent(path)?;
        let _ = fs::remove_file(&self.note_path);
        let (size, resumed_from) = (self.length, self.resumed_from);
        Ok(Downloaded { path: path.to_path_buf(), sha256: artifact.sha256, size, resumed_from })
    }

    /// Removes it: nothing of it is of use.
    pub(super) fn remove(&self) {
        let _ = fs::remove_file(&self.path);
        let _ = fs::remove_file(&self.note_path);
    }
}

/// Whether a tag names exactly these bytes, and can be sent back (RFC 9110, 8.8.3).
fn is_strong(tag: &str) -> bool {
    let inner = tag.strip_prefix('"').and_then(|rest| rest.strip_suffix('"'));
    tag.len() <= MAX_TAG
        && inner.is_some_and(|inner| inner.bytes().all(|b| b.is_ascii_graphic() && b != b'"'))
}
