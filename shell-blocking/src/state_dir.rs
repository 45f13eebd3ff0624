//! The state directory and the machine registry as files (protocol.md section 12).
//!
//! A file is replaced as a whole or not at all: written under a temporary name beside it, synced, renamed over it,
//! and the folder synced. A file that cannot be understood is an error that names it; nothing here writes over one.
//! What the files say is [`consensus_core::state`]'s business.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Read as _, Seek as _, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use consensus_core::crypto::identity::Identity;
use consensus_core::crypto::{Crypto, Drbg, pem};
use consensus_core::data_plane::replay::Before;
use consensus_core::doctor;
use consensus_core::io::StateFile;
use consensus_core::release::manifest::Manifest;
use consensus_core::state::{self, JoinAuth, MAX_STATE_FILE, MachineRecord, Registration, StateError};
use rustix::fs::{FlockOperation, OFlags, flock};
use rustix::io::Errno;
use zeroize::Zeroizing;

/// The name of the lock file, in the state directory and in the machine registry.
const LOCK: &str = "node.lock";

/// The name of the machine registry's one file.
const MACHINE: &str = "machine.json";

/// A temporary file this old belongs to a process that was killed while it wrote.
const LEFTOVER_AGE: Duration = Duration::from_secs(3600);

/// A file or folder that cannot be used, in one sentence that names it.
#[derive(Debug)]
pub struct FileError {
    path: PathBuf,
    what: String,
}

impl FileError {
    pub(crate) fn io(path: &Path, doing: &str, error: &io::Error) -> Self {
        Self { path: path.to_path_buf(), what: format!("{doing}: {error}") }
    }

    pub(crate) fn damaged(path: &Path, why: &dyn std::fmt::Display) -> Self {
        let what = format!("{why}; it was left as it is: bring it back from a backup, or move it away");
        Self { path: path.to_path_buf(), what }
    }

    /// The file or folder.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl std::fmt::Display for FileError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}: {}", self.path.display(), self.what)
    }
}

impl std::error::Error for FileError {}

/// Why the state directory is not to be had for oneself.
#[derive(Debug)]
pub enum LockError {
    /// Another process has it.
    Held {
        /// The state directory.
        dir: PathBuf,
        /// The process, where it wrote itself down.
        pid: Option<u32>,
    },
    /// The lock file itself.
    File(FileError),
}

impl std::fmt::Display for LockError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Held { dir, pid } => {
                write!(f, "{}: another node ", dir.display())?;
                if let Some(pid) = pid {
                    write!(f, "(process {pid}) ")?;
                }
                f.write_str("runs on this state directory; stop it, or give this one another --state-dir")
            }
            Self::File(error) => error.fmt(f),
        }
    }
}

impl std::error::Error for LockError {}

/// A held lock; given back when dropped, and by the system when the process ends, however it ends.
#[derive(Debug)]
#[must_use]
pub struct Lock {
    _file: File,
}

/// The node's own key pair, as loaded.
#[derive(Debug)]
pub struct LoadedIdentity {
    /// The Ed25519 seed.
    pub seed: Zeroizing<[u8; 32]>,
    /// It did not exist before.
    pub created: bool,
    /// The mode of `keys/node.key` before it was narrowed to 0600, where it was wider.
    pub narrowed_from: Option<u32>,
}

/// A state directory. Cheap to clone; holds no open file.
#[derive(Debug, Clone)]
pub struct StateDir {
    root: PathBuf,
}

impl StateDir {
    /// The directory at `root`, made with mode 0700 where it is missing (an existing one keeps its mode), and
    /// with its folder for keys.
    ///
    /// # Errors
    /// It cannot be made, or something else is in its place.
    pub fn open(root: &Path) -> Result<Self, FileError> {
        make_dir(root)?;
        make_dir(&root.join("keys"))?;
        Ok(Self { root: root.to_path_buf() })
    }

    /// The directory at `root` as it is: nothing is made.
    #[must_use]
    pub fn at(root: &Path) -> Self {
        Self { root: root.to_path_buf() }
    }

    /// Where it is.
    #[must_use]
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Where a file of it is.
    #[must_use]
    pub fn path(&self, file: StateFile) -> PathBuf {
        self.root.join(file.path())
    }

    /// The content of a file; `None` where there is none.
    ///
    /// # Errors
    /// It cannot be read, is no ordinary file, or is over [`StateFile::max_size`].
    pub fn read(&self, file: StateFile) -> Result<Option<Zeroizing<Vec<u8>>>, FileError> {
        Ok(read(&self.path(file), file.max_size())?.map(|(data, _)| data))
    }

    /// Replaces a file as a whole and durably.
    ///
    /// # Errors
    /// Where it failed; the old content is then still there.
    pub fn write(&self, file: StateFile, data: &[u8]) -> Result<(), FileError> {
        let path = self.path(file);
        let mode = if file.is_secret() { 0o600 } else { 0o644 };
        replace_file(&path, data, mode)
    }

    /// Removes a file durably; one that is not there is removed already.
    ///
    /// # Errors
    /// It could not be removed.
    pub fn remove(&self, file: StateFile) -> Result<(), FileError> {
        let path = self.path(file);
        match fs::remove_file(&path) {
            Ok(()) => sync_parent(&path),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(error) => Err(FileError::io(&path, "cannot be removed", &error)),
        }
    }

    /// `config.json`.
    ///
    /// # Errors
    /// It is there and cannot be read or understood.
    pub fn registration(&self) -> Result<Option<Registration>, FileError> {
        self.parse(StateFile::Config, Registration::parse)
    }

    /// `join-auth.json`.
    ///
    /// # Errors
    /// It is there and cannot be read or understood.
    pub fn join_auth(&self) -> Result<Option<JoinAuth>, FileError> {
        self.parse(StateFile::JoinAuth, JoinAuth::parse)
    }

    /// `release-manifest.json`.
    ///
    /// # Errors
    /// It is there and cannot be read or understood.
    pub fn release_manifest(&self) -> Result<Option<Manifest>, FileError> {
        self.parse(StateFile::ReleaseManifest, state::parse_manifest)
    }

    /// `spent-tickets.json`. One that cannot be read is as good as one that a killed process left: no ticket that may
    /// be spent is taken.
    #[must_use]
    pub fn spent_before(&self) -> Before {
        match self.read(StateFile::SpentTickets) {
            Ok(None) => Before::Never,
            Ok(Some(data)) => Before::from_file(&data),
            Err(_) => Before::Unclean,
        }
    }

    fn parse<T>(
        &self,
        file: StateFile,
        parse: impl FnOnce(&[u8]) -> Result<T, StateError>,
    ) -> Result<Option<T>, FileError> {
        match self.read(file)? {
            Some(data) => parse(&data).map(Some).map_err(|why| FileError::damaged(&self.path(file), &why)),
            None => Ok(None),
        }
    }

    /// The key in `keys/node.key`, with its mode narrowed where others could read it; `None` where there is none.
    ///
    /// # Errors
    /// It is there and cannot be read or understood.
    pub fn identity(&self) -> Result<Option<LoadedIdentity>, FileError> {
        let path = self.path(StateFile::NodeKey);
        let Some((data, file)) = read(&path, MAX_STATE_FILE)? else {
            return Ok(None);
        };
        let text = std::str::from_utf8(&data).map_err(|why| FileError::damaged(&path, &why))?;
        let seed = pem::decode_private(text).map_err(|why| FileError::damaged(&path, &why))?;
        let mode = mode_of(&file, &path)?;
        let narrowed_from = if mode & 0o077 == 0 {
            None
        } else {
            file.set_permissions(fs::Permissions::from_mode(0o600)).map_err(|error| {
                FileError::io(&path, "can be read by others, and cannot be narrowed", &error)
            })?;
            Some(mode)
        };
        Ok(Some(LoadedIdentity { seed, created: false, narrowed_from }))
    }

    /// The node's key, made and saved first where there is none. Two processes that start at once get the same.
    ///
    /// # Errors
    /// An existing key cannot be read or understood (it is never replaced), or a new one cannot be saved.
    pub fn load_or_create_identity<C: Crypto>(
        &self,
        crypto: C,
        rng: &mut Drbg,
    ) -> Result<LoadedIdentity, FileError> {
        if let Some(identity) = self.identity()? {
            self.write_public_half(crypto, &identity.seed)?;
            return Ok(identity);
        }
        let (_, private_pem) = Identity::generate(crypto.clone(), rng);
        let path = self.path(StateFile::NodeKey);
        let temporary = write_temporary(&path, private_pem.as_bytes(), 0o600)?;
        // A link, unlike a rename, fails where another process was faster.
        let created = match fs::hard_link(&temporary, &path) {
            Ok(()) => true,
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => false,
            // File systems without links (FAT) leave the small chance of a race that they cannot rule out.
            Err(_) => {
                finish(&temporary, fs::rename(&temporary, &path), &path)?;
                true
            }
        };
        let _ = fs::remove_file(&temporary);
        sync_parent(&path)?;
        let identity = self
            .identity()?
            .ok_or_else(|| FileError::io(&path, "cannot be read back", &io::ErrorKind::NotFound.into()))?;
        self.write_public_half(crypto, &identity.seed)?;
        Ok(LoadedIdentity { created, ..identity })
    }

    /// `keys/node.pub` is for people and other programs; it follows the private key.
    fn write_public_half<C: Crypto>(&self, crypto: C, seed: &[u8; 32]) -> Result<(), FileError> {
        let identity = Identity::from_seed(crypto, seed);
        match self.read(StateFile::NodePub) {
            Ok(Some(data)) if pem_equals(&data, identity.public_key()) => Ok(()),
            Ok(None) => self.write(StateFile::NodePub, identity.public_key_pem().as_bytes()),
            Ok(Some(_)) => Err(FileError::damaged(
                &self.path(StateFile::NodePub),
                &"not the public half of keys/node.key",
            )),
            Err(error) => Err(error),
        }
    }

    /// Takes the directory for one process that keeps a control tunnel: two would take the session from each
    /// other for ever. `Ok(None)` where the file system has no locks.
    ///
    /// # Errors
    /// Another process has it, or the lock file cannot be used.
    pub fn lock(&self) -> Result<Option<Lock>, LockError> {
        let path = self.root.join(LOCK);
        let mut file = open_lock(&path).map_err(LockError::File)?;
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(error) if error == Errno::WOULDBLOCK => {
                let mut text = String::new();
                let pid = file.take(16).read_to_string(&mut text).ok().and_then(|_| text.trim().parse().ok());
                return Err(LockError::Held { dir: self.root.clone(), pid });
            }
            Err(_) => return Ok(None),
        }
        // Only for the message above: the lock holds without it.
        let _ = file.set_len(0);
        let _ = file.rewind();
        let _ = writeln!(file, "{}", std::process::id());
        self.remove_leftovers();
        Ok(Some(Lock { _file: file }))
    }

    /// Whether a node has the directory, and as which process, without taking it: nothing is made or written.
    #[must_use]
    pub fn held(&self) -> doctor::Lock {
        // A pipe in its place is not waited for.
        let nonblocking = OFlags::NONBLOCK.bits() as i32;
        let path = self.root.join(LOCK);
        let file = match OpenOptions::new().read(true).custom_flags(nonblocking).open(path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return doctor::Lock::Free,
            Err(_) => return doctor::Lock::Unknown,
        };
        // Shared, and given back with the file at once: a node that starts in this instant would take it for held.
        match flock(&file, FlockOperation::NonBlockingLockShared) {
            Ok(()) => doctor::Lock::Free,
            Err(error) if error == Errno::WOULDBLOCK => {
                let mut text = String::new();
                let pid = file.take(16).read_to_string(&mut text).ok().and_then(|_| text.trim().parse().ok());
                doctor::Lock::Held(pid)
            }
            Err(_) => doctor::Lock::Unknown,
        }
    }

    /// Temporary files of processes that were killed while they wrote.
    fn remove_leftovers(&self) {
        for dir in [self.root.clone(), self.root.join("keys")] {
            let Ok(entries) = fs::read_dir(dir) else { continue };
            for entry in entries.flatten() {
                let name = entry.file_name();
                let is_ours =
                    name.to_str().is_some_and(|name| name.starts_with('.') && name.ends_with(".tmp"));
                let age =
                    entry.metadata().ok().and_then(|m| m.modified().ok()).and_then(|at| at.elapsed().ok());
                if is_ours && age.is_some_and(|age| age > LEFTOVER_AGE) {
                    let _ = fs::remove_file(entry.path());
                }
            }
        }
    }
}

/// The machine registry: which node lives on this machine.
#[derive(Debug, Clone)]
pub struct MachineRegistry {
    dir: PathBuf,
}

impl MachineRegistry {
    /// The registry in the directory `dir`, which need not exist.
    #[must_use]
    pub fn at(dir: &Path) -> Self {
        Self { dir: dir.to_path_buf() }
    }

    /// Where its file is.
    #[must_use]
    pub fn path(&self) -> PathBuf {
        self.dir.join(MACHINE)
    }

    /// The record of this machine, where there is one.
    ///
    /// # Errors
    /// It is there and cannot be read or understood.
    pub fn load(&self) -> Result<Option<MachineRecord>, FileError> {
        let path = self.path();
        match read(&path, MAX_STATE_FILE)? {
            Some((data, _)) => {
                MachineRecord::parse(&data).map(Some).map_err(|why| FileError::damaged(&path, &why))
            }
            None => Ok(None),
        }
    }

    /// The record of this machine, made and saved first where there is none, and changed by `change` under a lock
    /// that other processes of this machine respect. It is written where `change` changed it.
    ///
    /// # Errors
    /// The file cannot be read, understood or written; or what `change` says.
    pub fn update<E: From<FileError>>(
        &self,
        rng: &mut Drbg,
        unix_seconds: u64,
        change: impl FnOnce(&mut MachineRecord) -> Result<(), E>,
    ) -> Result<MachineRecord, E> {
        make_dir(&self.dir)?;
        let lock = open_lock(&self.dir.join("machine.lock"))?;
        // Held for the instant of a read and a write. Where there are no locks, there is one node all the same.
        let _ = flock(&lock, FlockOperation::LockExclusive);
        let saved = self.load()?;
        let mut record = saved.clone().unwrap_or_else(|| MachineRecord::new(rng, unix_seconds));
        change(&mut record)?;
        if saved.as_ref() != Some(&record) {
            let path = self.path();
            replace_file(&path, &record.emit(), 0o644)?;
        }
        Ok(record)
    }
}

fn pem_equals(data: &[u8], key: &[u8; 32]) -> bool {
    std::str::from_utf8(data).is_ok_and(|text| pem::decode_public(text).as_ref() == Ok(key))
}

/// Makes a folder with mode 0700 where it is missing.
pub(crate) fn make_dir(path: &Path) -> Result<(), FileError> {
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path)
        .map_err(|error| FileError::io(path, "the folder cannot be made", &error))
}

pub(crate) fn open_lock(path: &Path) -> Result<File, FileError> {
    OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(path)
        .map_err(|error| FileError::io(path, "the lock file cannot be opened", &error))
}

fn mode_of(file: &File, path: &Path) -> Result<u32, FileError> {
    let metadata = file.metadata().map_err(|error| FileError::io(path, "cannot be examined", &error))?;
    Ok(metadata.permissions().mode() & 0o7777)
}

type Content = (Zeroizing<Vec<u8>>, File);

/// The content of any file of at most `max` bytes; `None` where there is none.
pub(crate) fn read_file(path: &Path, max: usize) -> Result<Option<Zeroizing<Vec<u8>>>, FileError> {
    Ok(read(path, max)?.map(|(data, _)| data))
}

/// A file's content and its mode.
pub(crate) type WithMode = (Zeroizing<Vec<u8>>, u32);

/// As [`read_file`], with the file's mode.
pub(crate) fn read_with_mode(path: &Path, max: usize) -> Result<Option<WithMode>, FileError> {
    let Some((data, file)) = read(path, max)? else { return Ok(None) };
    let mode = mode_of(&file, path)?;
    Ok(Some((data, mode)))
}

/// Replaces any file as a whole and durably.
pub(crate) fn replace_file(path: &Path, data: &[u8], mode: u32) -> Result<(), FileError> {
    let temporary = write_temporary(path, data, mode)?;
    finish(&temporary, fs::rename(&temporary, path), path)
}

/// The content and the open file. Not blocked by a pipe in the file's place, and never over `max` bytes.
fn read(path: &Path, max: usize) -> Result<Option<Content>, FileError> {
    let nonblocking = OFlags::NONBLOCK.bits() as i32;
    let mut file = match OpenOptions::new().read(true).custom_flags(nonblocking).open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(FileError::io(path, "cannot be opened", &error)),
    };
    let metadata = file.metadata().map_err(|error| FileError::io(path, "cannot be examined", &error))?;
    if !metadata.is_file() {
        return Err(FileError::damaged(path, &"not an ordinary file"));
    }
    let mut data = Zeroizing::new(Vec::new());
    let limit = max as u64 + 1;
    (&mut file)
        .take(limit)
        .read_to_end(&mut data)
        .map_err(|error| FileError::io(path, "cannot be read", &error))?;
    if data.len() > max {
        return Err(FileError::damaged(path, &format_args!("larger than {max} bytes")));
    }
    Ok(Some((data, file)))
}

/// A new file beside `path` with `data` in it, durably, and with `mode` from its first instant.
fn write_temporary(path: &Path, data: &[u8], mode: u32) -> Result<PathBuf, FileError> {
    static COUNTER: AtomicU64 = AtomicU64::new(0);
    if let Some(parent) = path.parent() {
        make_dir(parent)?;
    }
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    loop {
        // A process id comes again, after a restart of a container nearly always: hence the loop.
        let unique = COUNTER.fetch_add(1, Ordering::Relaxed);
        let temporary = path.with_file_name(format!(".{name}.{}.{unique}.tmp", std::process::id()));
        let mut file = match OpenOptions::new().write(true).create_new(true).mode(mode).open(&temporary) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => continue,
            Err(error) => return Err(FileError::io(path, "cannot be written", &error)),
        };
        let written = file.write_all(data).and_then(|()| file.sync_all());
        return match written {
            Ok(()) => Ok(temporary),
            Err(error) => {
                let _ = fs::remove_file(&temporary);
                Err(FileError::io(path, "cannot be written", &error))
            }
        };
    }
}

/// The last step of a replacement: its durability, or the removal of what did not make it.
fn finish(temporary: &Path, renamed: io::Result<()>, path: &Path) -> Result<(), FileError> {
    match renamed {
        Ok(()) => sync_parent(path),
        Err(error) => {
            let _ = fs::remove_file(temporary);
            Err(FileError::io(path, "cannot be written", &error))
        }
    }
}

pub(crate) fn sync_parent(path: &Path) -> Result<(), FileError> {
    let parent = path.parent().unwrap_or(Path::new("/"));
    match File::open(parent).and_then(|dir| dir.sync_all()) {
        Ok(()) => Ok(()),
        // Some network and FUSE file systems cannot sync a folder; the rename stands all the same.
        Err(error) if matches!(error.kind(), io::ErrorKind::InvalidInput | io::ErrorKind::Unsupported) => {
            Ok(())
        }
        Err(error) => Err(FileError::io(parent, "the folder cannot be synced", &error)),
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use consensus_core::crypto::pure::Pure;
    use std::os::unix::fs::symlink;

    /// A fresh folder that goes away with the value.
    pub(crate) struct Scratch(PathBuf);

    impl Scratch {
        pub(crate) fn new() -> Self {
            static COUNTER: AtomicU64 = AtomicU64::new(0);
            let name = format!(
                "consensus-node-test-{}-{}",
                std::process::id(),
                COUNTER.fetch_add(1, Ordering::Relaxed)
            );
            let path = std::env::temp_dir().join(name);
            let _ = fs::remove_dir_all(&path);
            fs::create_dir(&path).unwrap();
            Self(path)
        }

        pub(crate) fn path(&self) -> &Path {
            &self.0
        }
    }

    impl Drop for Scratch {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    fn state() -> (Scratch, StateDir) {
        let scratch = Scratch::new();
        let state = StateDir::open(&scratch.path().join("a/state")).unwrap();
        (scratch, state)
    }

    fn mode(path: &Path) -> u32 {
        fs::metadata(path).unwrap().permissions().mode() & 0o7777
    }

    fn rng() -> Drbg {
        Drbg::new([5; 32])
    }

    fn names(dir: &Path) -> Vec<String> {
        let mut names: Vec<_> =
            fs::read_dir(dir).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    #[test]
    fn secrets_and_folders_are_the_owners_alone_from_the_start() {
        let (_scratch, state) = state();
        assert_eq!((mode(state.root()), mode(&state.root().join("keys"))), (0o700, 0o700));
        state.load_or_create_identity(Pure, &mut rng()).unwrap();
        for file in [StateFile::Config, StateFile::JoinAuth, StateFile::ReleaseManifest] {
            state.write(file, b"{}").unwrap();
        }
        assert_eq!(mode(&state.path(StateFile::NodeKey)), 0o600);
        assert_eq!(mode(&state.path(StateFile::Config)), 0o600);
        assert_eq!(mode(&state.path(StateFile::JoinAuth)), 0o600);
        assert_eq!(mode(&state.path(StateFile::ReleaseManifest)) & 0o133, 0);
        // A wide mode of an old file does not live on in the new one.
        fs::set_permissions(state.path(StateFile::Config), fs::Permissions::from_mode(0o666)).unwrap();
        state.write(StateFile::Config, b"{}").unwrap();
        assert_eq!(mode(&state.path(StateFile::Config)), 0o600);
    }

    #[test]
    fn the_identity_is_made_once_and_then_loaded() {
        let (_scratch, state) = state();
        assert!(state.identity().unwrap().is_none());
        let first = state.load_or_create_identity(Pure, &mut rng()).unwrap();
        let again = state.load_or_create_identity(Pure, &mut Drbg::new([6; 32])).unwrap();
        assert!(first.created && !again.created);
        assert_eq!(*first.seed, *again.seed);
        assert_eq!(names(&state.root().join("keys")), ["node.key", "node.pub"]);
    }

    #[test]
    fn two_processes_that_start_at_once_get_the_same_identity() {
        let (_scratch, state) = state();
        let seeds: Vec<_> = std::thread::scope(|scope| {
            let state = &state;
            let threads: Vec<_> = (0..8)
                .map(|i| scope.spawn(move || state.load_or_create_identity(Pure, &mut Drbg::new([i; 32]))))
                .collect();
            threads.into_iter().map(|thread| *thread.join().unwrap().unwrap().seed).collect()
        });
        assert!(seeds.iter().all(|seed| *seed == seeds[0]));
        assert_eq!(names(&state.root().join("keys")), ["node.key", "node.pub"]);
    }

    #[test]
    fn a_key_that_others_can_read_is_narrowed_and_told() {
        let (_scratch, state) = state();
        state.load_or_create_identity(Pure, &mut rng()).unwrap();
        let path = state.path(StateFile::NodeKey);
        fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
        let loaded = state.load_or_create_identity(Pure, &mut rng()).unwrap();
        assert_eq!(loaded.narrowed_from, Some(0o644));
        assert_eq!(mode(&path), 0o600);
        assert_eq!(state.identity().unwrap().unwrap().narrowed_from, None);
    }

    #[test]
    fn a_damaged_file_is_named_and_never_overwritten() {
        let (_scratch, state) = state();
        for (file, damage) in [
            (StateFile::NodeKey, &b"-----BEGIN PRIVATE KEY-----\nMC4CAQ"[..]),
            (StateFile::NodeKey, b""),
            (StateFile::NodeKey, b"\xff\xfe"),
            (StateFile::Config, b"{\"node_id\":"),
            (StateFile::Config, b""),
            (StateFile::JoinAuth, b"[]"),
            (StateFile::ReleaseManifest, b"\0\0\0\0"),
        ] {
            let path = state.path(file);
            fs::write(&path, damage).unwrap();
            let error = match file {
                StateFile::NodeKey => {
                    assert!(state.identity().is_err());
                    state.load_or_create_identity(Pure, &mut rng()).unwrap_err()
                }
                StateFile::Config => state.registration().unwrap_err(),
                StateFile::JoinAuth => state.join_auth().unwrap_err(),
                StateFile::ReleaseManifest
                | StateFile::NodePub
                | StateFile::SpentTickets
                | StateFile::SetupProgress => state.release_manifest().unwrap_err(),
            };
            let text = error.to_string();
            assert!(text.starts_with(path.to_str().unwrap()), "{text}");
            assert_eq!(fs::read(&path).unwrap(), damage);
            fs::remove_file(&path).unwrap();
        }
    }

    #[test]
    fn a_public_key_of_another_private_key_is_named_and_kept() {
        let (_scratch, state) = state();
        state.load_or_create_identity(Pure, &mut rng()).unwrap();
        let path = state.path(StateFile::NodePub);
        for other in [pem::encode_public(&[9; 32]), "junk".to_string()] {
            fs::write(&path, &other).unwrap();
            let text = state.load_or_create_identity(Pure, &mut rng()).unwrap_err().to_string();
            assert!(text.contains("node.pub"), "{text}");
            assert_eq!(fs::read_to_string(&path).unwrap(), other);
        }
        fs::remove_file(&path).unwrap();
        state.load_or_create_identity(Pure, &mut rng()).unwrap();
        assert!(path.exists());
    }

    #[test]
    fn what_is_no_ordinary_file_or_too_large_is_refused_without_reading_it_all() {
        let (_scratch, state) = state();
        let path = state.path(StateFile::Config);
        File::create(&path).unwrap().set_len(1 << 40).unwrap();
        assert!(state.registration().unwrap_err().to_string().contains("larger than"));
        fs::remove_file(&path).unwrap();
        for target in ["/dev/zero", "/"] {
            symlink(target, &path).unwrap();
            assert!(state.registration().is_err(), "{target}");
            fs::remove_file(&path).unwrap();
        }
        let pipe = std::process::Command::new("mkfifo").arg(&path).status().unwrap();
        assert!(pipe.success());
        assert!(state.registration().unwrap_err().to_string().contains("not an ordinary file"));
    }

    #[test]
    fn writing_replaces_a_link_and_not_what_it_points_to() {
        let (scratch, state) = state();
        let target = scratch.path().join("target");
        fs::write(&target, "precious").unwrap();
        symlink(&target, state.path(StateFile::Config)).unwrap();
        state.write(StateFile::Config, b"new").unwrap();
        assert_eq!(fs::read_to_string(&target).unwrap(), "precious");
        assert_eq!(&**state.read(StateFile::Config).unwrap().unwrap(), b"new");
    }

    #[test]
    fn a_write_that_fails_leaves_the_old_content_and_nothing_else() {
        let (_scratch, state) = state();
        // A folder in the file's place: the rename fails.
        let path = state.path(StateFile::Config);
        fs::create_dir(&path).unwrap();
        fs::write(path.join("x"), "y").unwrap();
        assert!(state.write(StateFile::Config, b"new").is_err());
        assert_eq!(names(state.root()), ["config.json", "keys"]);
        assert!(path.join("x").exists());
    }

    #[test]
    fn what_a_killed_writer_left_is_neither_read_nor_in_the_way_and_goes_when_it_is_old() {
        let (_scratch, state) = state();
        state.write(StateFile::Config, b"{\"node_id\":\"n\"}").unwrap();
        let pid = std::process::id();
        for unique in 0..200 {
            fs::write(state.root().join(format!(".config.json.{pid}.{unique}.tmp")), "half").unwrap();
        }
        let old = state.root().join(".config.json.1.0.tmp");
        let day_ago = std::time::SystemTime::now() - Duration::from_secs(86_400);
        File::create(&old).unwrap().set_modified(day_ago).unwrap();
        state.write(StateFile::Config, b"{\"node_id\":\"m\"}").unwrap();
        assert_eq!(state.registration().unwrap().unwrap().node_id, "m");
        let _lock = state.lock().unwrap();
        assert!(!old.exists());
        assert!(
            state.root().join(format!(".config.json.{pid}.0.tmp")).exists(),
            "may be somebody's right now"
        );
    }

    #[test]
    fn removing_is_done_also_when_there_is_nothing_to_remove() {
        let (_scratch, state) = state();
        state.write(StateFile::JoinAuth, b"{}").unwrap();
        state.remove(StateFile::JoinAuth).unwrap();
        assert!(state.read(StateFile::JoinAuth).unwrap().is_none());
        state.remove(StateFile::JoinAuth).unwrap();
    }

    #[test]
    fn a_second_lock_is_refused_with_the_holder_named_until_the_first_is_given_back() {
        let (_scratch, state) = state();
        let lock = state.lock().unwrap();
        let text = state.lock().unwrap_err().to_string();
        assert!(text.contains(&format!("process {}", std::process::id())), "{text}");
        drop(lock);
        assert!(state.lock().unwrap().is_some());
        // A lock file that a dead process left holds nothing.
        fs::write(state.root().join(LOCK), "4711\n").unwrap();
        assert!(state.lock().unwrap().is_some());
    }

    #[test]
    fn the_machine_gets_its_name_once_and_a_damaged_record_is_kept() {
        let scratch = Scratch::new();
        let registry = MachineRegistry::at(&scratch.path().join("registry"));
        assert!(registry.load().unwrap().is_none());
        let made = registry.update::<FileError>(&mut rng(), 7, |_| Ok(())).unwrap();
        let again = registry.update::<FileError>(&mut Drbg::new([1; 32]), 9, |_| Ok(())).unwrap();
        assert_eq!(made, again);
        let changed = registry
            .update::<FileError>(&mut rng(), 9, |record| {
                record.register("/state", "n1", 9);
                Ok(())
            })
            .unwrap();
        assert_eq!(registry.load().unwrap(), Some(changed));
        fs::write(registry.path(), "{").unwrap();
        let text = registry.update::<FileError>(&mut rng(), 9, |_| Ok(())).unwrap_err().to_string();
        assert!(text.contains("machine.json"), "{text}");
        assert_eq!(fs::read_to_string(registry.path()).unwrap(), "{");
    }

    #[test]
    fn a_state_directory_that_cannot_be_made_is_named() {
        let scratch = Scratch::new();
        let file = scratch.path().join("file");
        fs::write(&file, "").unwrap();
        let text = StateDir::open(&file.join("state")).unwrap_err().to_string();
        assert!(text.contains("file/state"), "{text}");
    }
}
