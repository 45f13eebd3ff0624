//! Releases put in place, proved, and given up: the install directory.
//!
//! What is done, and in which order, is [`consensus_core::update::install`]'s business; its files are described in
//! [`consensus_core::update::records`]. Here it is carried out, by one process at a time.

#[cfg(test)]
mod fuzzing;
mod unpack;

use std::fmt;
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _, PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};
use std::time::Duration;

use consensus_core::release::entry::{MANIFEST, MAX_MANIFEST, PROGRAM, RECORD, Refused, WRAPPER};
use consensus_core::release::manifest::Manifest;
use consensus_core::release::version::Version;
use consensus_core::state::parse_manifest;
use consensus_core::update::install::{Failure, NotDone, Op, Order, Plan, Survey, Wrapper};
use consensus_core::update::records::{
    self, MAX_RECORD, RELEASES, Record, RolledBack, id_of_target, parse_release_id,
};
use consensus_core::wire::hex;
use rustix::fs::{FlockOperation, OFlags, flock};
use rustix::io::Errno;

use self::unpack::{Artifact, Contents, Trouble, Wanted};
use crate::system;

/// The lock file. It stays: who removes one can take it from under another.
const LOCK: &str = "install.lock";

/// The wrapper in place.
const PLACED_WRAPPER: &str = "run-node.sh";

/// Bytes of a wrapper.
const MAX_WRAPPER: u64 = 1024 * 1024;

/// How long a release has to reconnect, unless it is said otherwise: a few attempts of the schedule, each of which may
/// take its whole time.
pub const PROBATION: Duration = Duration::from_secs(180);

/// Where and how releases are installed.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The install directory, absolute.
    pub install_dir: PathBuf,
    /// Releases that are kept, beside the one that runs and the last good one.
    pub retention: usize,
    /// How long a new release has to reconnect.
    pub probation: Duration,
    /// Whether a release may be older than the newest that proved itself.
    pub allow_older: bool,
}

/// A release to install.
#[derive(Clone, Copy, Debug)]
pub struct Request<'a> {
    /// The file.
    pub artifact: &'a Path,
    /// Its version: its manifest must say the same.
    pub version: &'a Version,
    /// Its SHA-256, where that is known.
    pub sha256: Option<[u8; 32]>,
    /// The update that it came by; the node that comes back from it tells this.
    pub update_id: Option<&'a str>,
}

/// A release in place. It runs after the next start.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Installed {
    /// Its folder.
    pub release: PathBuf,
    /// SHA-256 of its artifact.
    pub sha256: [u8; 32],
    /// What could not be tidied up; it is tried again the next time.
    pub warnings: Vec<String>,
}

/// How the running release stands.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Standing {
    /// It has to reconnect and then be confirmed, or it is given up.
    pub on_probation: bool,
    /// A release that was given up, until that is acknowledged.
    pub rolled_back: Option<RolledBack>,
    /// Releases that are not tried again, neither the version nor the artifact of that SHA-256.
    pub refused: Vec<(Version, Option<[u8; 32]>)>,
    /// The oldest version that is taken without being told to.
    pub floor: Option<Version>,
}

/// The releases of an install directory, by the names of their folders.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Releases {
    /// The one that is started next.
    pub current: Option<String>,
    /// The newest that proved itself.
    pub last_good: Option<String>,
    /// The one that was started last.
    pub running: Option<String>,
}

/// Why a release was not installed or confirmed. Each says what happened to what.
#[derive(Debug)]
pub enum InstallError {
    /// Another process installs.
    Busy(PathBuf),
    /// The artifact is no release that is taken.
    Artifact(PathBuf, Refused),
    /// The rules are against it.
    NotDone(NotDone),
    /// A file of the install directory cannot be understood.
    Damaged(PathBuf),
    /// A file or folder, and what could not be done with it.
    File(PathBuf, &'static str, io::Error),
}

impl fmt::Display for InstallError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Busy(dir) => {
                write!(f, "{}: another process installs there; try again when it is done", dir.display())
            }
            Self::Artifact(path, refused) => write!(f, "{}: {refused}", path.display()),
            Self::NotDone(why) => why.fmt(f),
            Self::Damaged(path) => write!(
                f,
                "{}: damaged; it was left as it is: remove it, and what it said is forgotten",
                path.display()
            ),
            Self::File(path, doing, error) => write!(f, "{}: {doing}: {error}", path.display()),
        }
    }
}

impl std::error::Error for InstallError {}

impl From<NotDone> for InstallError {
    fn from(why: NotDone) -> Self {
        Self::NotDone(why)
    }
}

impl Trouble {
    fn with(self, artifact: &Path) -> InstallError {
        match self {
            Self::Refused(refused) => InstallError::Artifact(artifact.to_path_buf(), refused),
            Self::Io(error) => InstallError::File(artifact.to_path_buf(), "cannot be unpacked", error),
        }
    }
}

/// Installs a release, so that the next start is of it, on probation. One call at a time on a machine.
///
/// # Errors
/// Nothing is changed then but that failed releases are remembered, and nothing half-made is left.
pub fn install(settings: &Settings, request: &Request<'_>) -> Result<Installed, InstallError> {
    let dir = &settings.install_dir;
    let mut artifact = Artifact::open(request.artifact).map_err(|error| error.with(request.artifact))?;
    let sha256 = artifact.hash().map_err(|error| error.with(request.artifact))?;
    if let Some(wanted) = request.sha256.filter(|wanted| *wanted != sha256) {
        let refused = Refused::Hash { wanted: hex::encode(&wanted), found: hex::encode(&sha256) };
        return Err(InstallError::Artifact(request.artifact.to_path_buf(), refused));
    }
    let lock = lock(dir)?;
    let survey = survey(dir)?;
    let order = Order {
        version: request.version.clone(),
        sha256,
        update_id: request.update_id.map(str::to_string),
        probation: settings.probation.as_secs().max(1),
        now: system::now().unix.as_secs(),
        process: std::process::id(),
        own: own_release(dir),
        retention: settings.retention,
        allow_older: settings.allow_older,
    };
    let mut plan = Plan::install(&order, &survey)?;
    let warnings = carry_out(dir, &mut plan, |plan, into| {
        let platform = system::platform();
        let wanted = Wanted { platform: &platform, version: Some(request.version), sha256: Some(sha256) };
        let contents: Contents =
            artifact.unpack(&wanted, Some(into)).map_err(|error| error.with(request.artifact))?;
        let wrapper = if dir.join(PLACED_WRAPPER).exists() { Wrapper::Differs } else { Wrapper::Missing };
        plan.unpacked(contents.brings_wrapper, wrapper);
        Ok(())
    })?;
    drop(lock);
    let release = dir.join(RELEASES).join(plan.release().unwrap_or_default());
    Ok(Installed { release, sha256, warnings })
}

/// The manifest of an artifact, after all of it was read and found to be a release of ours for this platform.
///
/// # Errors
/// It is not.
pub fn inspect(artifact: &Path) -> Result<Manifest, InstallError> {
    let platform = system::platform();
    let wanted = Wanted { platform: &platform, version: None, sha256: None };
    Artifact::open(artifact)
        .and_then(|mut opened| opened.unpack(&wanted, None))
        .map(|contents| contents.manifest)
        .map_err(|error| error.with(artifact))
}

/// The running release has proved itself: it is the last good one from now on. Done already, it does nothing.
///
/// # Errors
/// The program that runs is not the current release of the install directory, or the wrapper gave it up; or a file
/// could not be written, and it is still on probation.
pub fn confirm(settings: &Settings) -> Result<(), InstallError> {
    confirm_release(&settings.install_dir, own_release(&settings.install_dir).as_deref())
}

fn confirm_release(dir: &Path, running: Option<&str>) -> Result<(), InstallError> {
    let _lock = lock(dir)?;
    let survey = survey_of_what_can_be_read(dir)?;
    let wrapper = running.map_or(Wrapper::Same, |id| wrapper_of(dir, id));
    let mut plan = Plan::confirm(running, &survey, wrapper)?;
    carry_out(dir, &mut plan, |_, _| Ok(())).map(|_| ())
}

/// How the running release stands. What cannot be read counts as not there.
#[must_use]
pub fn standing(settings: &Settings) -> Standing {
    standing_of(&settings.install_dir, own_release(&settings.install_dir).as_deref())
}

fn standing_of(dir: &Path, running: Option<&str>) -> Standing {
    let Ok(survey) = survey_of_what_can_be_read(dir) else { return Standing::default() };
    Standing {
        on_probation: survey.is_on_probation(running),
        refused: survey.all_refused().into_iter().map(|failed| (failed.version, failed.sha256)).collect(),
        floor: survey.floor(),
        rolled_back: survey.rolled_back.filter(|found| survey.current.as_ref() != Some(&found.release)),
    }
}

/// What there is in any install directory.
///
/// # Errors
/// A file of it cannot be read or understood.
pub fn releases(install_dir: &Path) -> Result<Releases, InstallError> {
    let Survey { current, last_good, running, .. } = survey(install_dir)?;
    Ok(Releases { current, last_good, running })
}

/// The install directory that this process is of. `None` where its program is no installed release's.
#[must_use]
pub fn own_dir() -> Option<PathBuf> {
    let program = std::env::current_exe().and_then(fs::canonicalize).ok()?;
    let dir = program.ancestors().nth(4)?.to_path_buf();
    own_release(&dir).map(|_| dir)
}

/// The rollback that [`standing`] told was passed on, and is not told again. A release that is excused may be installed
/// again.
///
/// # Errors
/// It could not be written down; it is told again.
pub fn acknowledge_rollback(settings: &Settings, is_excused: bool) -> Result<(), InstallError> {
    let dir = &settings.install_dir;
    let _lock = lock(dir)?;
    let mut plan = Plan::acknowledge(&survey(dir)?, is_excused);
    carry_out(dir, &mut plan, |_, _| Ok(())).map(|_| ())
}

/// The manifest of the installed release that this process is of, with the hash of its artifact. `None` where it is of
/// none, or its files cannot be read. It is in the release's own folder, so that after a rollback it is the right one.
#[must_use]
pub fn own_manifest() -> Option<Manifest> {
    manifest_of(&std::env::current_exe().and_then(fs::canonicalize).ok()?)
}

/// The release that the next start is of: its manifest, as above, and its program. `None` where there is none, or its
/// files cannot be read.
#[must_use]
pub fn current(install_dir: &Path) -> Option<(Manifest, PathBuf)> {
    let program = install_dir.join("current").join(PROGRAM);
    Some((manifest_of(&fs::canonicalize(&program).ok()?)?, program))
}

fn manifest_of(program: &Path) -> Option<Manifest> {
    let release = program.parent()?.parent()?;
    parse_release_id(release.file_name()?.to_str()?)?;
    if release.join(PROGRAM) != program {
        return None;
    }
    let read = |name, most| read_up_to(&release.join(name), most).ok().flatten();
    let mut manifest = parse_manifest(&read(MANIFEST, MAX_MANIFEST)?).ok()?;
    let record = Record::parse(&read(RECORD, MAX_RECORD as u64)?).ok()?;
    manifest.tarball_sha256 = Some(format!("sha256:{}", hex::encode(&record.sha256)));
    Some(manifest)
}

/// The name of the release in `dir` that this process is of.
fn own_release(dir: &Path) -> Option<String> {
    let program = std::env::current_exe().and_then(fs::canonicalize).ok()?;
    let releases = fs::canonicalize(dir.join(RELEASES)).ok()?;
    let id = program.strip_prefix(releases).ok()?.components().next()?.as_os_str().to_str()?;
    parse_release_id(id).map(|_| id.to_string())
}

/// Held until it is dropped, or the process ends, however it ends.
struct Lock {
    _file: File,
}

fn lock(dir: &Path) -> Result<Lock, InstallError> {
    let failed = |path: &Path, doing, error| InstallError::File(path.to_path_buf(), doing, error);
    if !dir.is_dir() {
        DirBuilder::new()
            .recursive(true)
            .mode(0o755)
            .create(dir)
            .and_then(|()| sync(dir.parent().unwrap_or(dir)))
            .map_err(|error| failed(dir, "the folder cannot be made", error))?;
    }
    let path = dir.join(LOCK);
    // A pipe in its place would hold up whoever opens it, for ever.
    let flags = (OFlags::NOFOLLOW | OFlags::NONBLOCK).bits() as i32;
    let file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .custom_flags(flags)
        .open(&path)
        .map_err(|error| failed(&path, "the lock file cannot be opened", error))?;
    match flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Err(Errno::WOULDBLOCK) => Err(InstallError::Busy(dir.to_path_buf())),
        // Where the file system has no locks there is one installer all the same.
        Ok(()) | Err(_) => Ok(Lock { _file: file }),
    }
}

/// The install directory as it is.
fn survey(dir: &Path) -> Result<Survey, InstallError> {
    survey_with(dir, false)
}

/// The install directory as far as it can be read: a release that reconnects is good, whatever became of the records of
/// others. Whoever installs is told of them.
fn survey_of_what_can_be_read(dir: &Path) -> Result<Survey, InstallError> {
    survey_with(dir, true)
}

fn survey_with(dir: &Path, is_lenient: bool) -> Result<Survey, InstallError> {
    let releases = dir.join(RELEASES);
    let names = match fs::read_dir(&releases) {
        Ok(entries) => entries
            .map(|entry| entry.map(|entry| entry.file_name().to_string_lossy().into_owned()))
            .collect::<io::Result<Vec<_>>>(),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(error) => Err(error),
    };
    let mut names = names.map_err(|error| InstallError::File(releases, "cannot be listed", error))?;
    names.sort_unstable();
    Ok(Survey {
        current: link(dir, "current"),
        last_good: link(dir, "last-good"),
        running: record(dir, "running", is_lenient, |data| Ok(records::parse_id_line(data)))?.flatten(),
        releases: names,
        rolled_back: record(dir, "rolled-back", is_lenient, RolledBack::parse)?,
        refused: record(dir, "refused", is_lenient, records::parse_refused)?.unwrap_or_default(),
        floor: record(dir, "floor", is_lenient, records::parse_floor)?,
    })
}

/// What a record says; `None` where there is none, or none that can be understood and that is not to matter.
fn record<T>(
    dir: &Path,
    name: &str,
    is_lenient: bool,
    parse: impl FnOnce(&[u8]) -> Result<T, records::Damaged>,
) -> Result<Option<T>, InstallError> {
    let path = dir.join(name);
    let read = read_small(&path);
    let parsed = read
        .and_then(|data| data.map(|data| parse(&data).map_err(|_| InstallError::Damaged(path))).transpose());
    match parsed {
        Err(_) if is_lenient => Ok(None),
        parsed => parsed,
    }
}

/// What a link leads to, where that is a release of the directory that is there.
fn link(dir: &Path, name: &str) -> Option<String> {
    let target = fs::read_link(dir.join(name)).ok()?;
    let inside = target.strip_prefix(dir).unwrap_or(&target);
    id_of_target(inside.to_str()?).filter(|id| dir.join(RELEASES).join(id).is_dir())
}

fn wrapper_of(dir: &Path, id: &str) -> Wrapper {
    let read = |path: PathBuf| {
        let mut data = Vec::new();
        File::open(path)?.take(MAX_WRAPPER).read_to_end(&mut data).map(|_| data)
    };
    match (read(dir.join(PLACED_WRAPPER)), read(dir.join(RELEASES).join(id).join(WRAPPER))) {
        (_, Err(_)) => Wrapper::Same,
        (Ok(placed), Ok(brought)) if placed == brought => Wrapper::Same,
        (Ok(_), Ok(_)) => Wrapper::Differs,
        (Err(_), Ok(_)) => Wrapper::Missing,
    }
}

/// Carries a plan out; `unpack` does that one effect. Gives what could not be tidied up.
fn carry_out(
    dir: &Path,
    plan: &mut Plan,
    mut unpack: impl FnMut(&mut Plan, &Path) -> Result<(), InstallError>,
) -> Result<Vec<String>, InstallError> {
    let mut warnings = Vec::new();
    let mut failed = None;
    while let Some(op) = plan.next_op() {
        let result = match &op {
            Op::Unpack { into } => unpack(plan, &dir.join(into)),
            other => perform(dir, other)
                .map_err(|(path, doing, error)| InstallError::File(dir.join(path), doing, error)),
        };
        if let Err(error) = result {
            match plan.failed() {
                Failure::Plan => failed = Some(failed.unwrap_or(error)),
                Failure::Tidying => warnings.push(error.to_string()),
            }
        }
    }
    failed.map_or(Ok(warnings), Err)
}

fn perform<'a>(dir: &Path, op: &'a Op) -> Result<(), (&'a str, &'static str, io::Error)> {
    let at = |path: &str| if path == "." { dir.to_path_buf() } else { dir.join(path) };
    let (path, doing, result) = match op {
        Op::MakeFolder { path } => {
            (path, "cannot be made", DirBuilder::new().recursive(true).mode(0o755).create(at(path)))
        }
        // The owner of the artifact does it.
        Op::Unpack { into } => (into, "cannot be unpacked", Ok(())),
        Op::Write { path, data, mode } => (path, "cannot be written", write(&at(path), data, *mode)),
        Op::Copy { from, to, mode } => {
            let copy = read_whole(&at(from)).and_then(|data| write(&at(to), &data, *mode));
            (to, "cannot be written", copy)
        }
        Op::Sync { path } => (path, "cannot be synced", sync(&at(path))),
        Op::SyncTree { path } => (path, "cannot be synced", sync_tree(&at(path))),
        Op::Rename { from, to } => (to, "cannot be put in place", fs::rename(at(from), at(to))),
        Op::Link { target, path } => (path, "cannot be linked", symlink(target, at(path))),
        Op::Remove { path } => (path, "cannot be removed", unless_missing(fs::remove_file(at(path)))),
        Op::RemoveTree { path } => (path, "cannot be removed", unless_missing(fs::remove_dir_all(at(path)))),
    };
    result.map_err(|error| (path.as_str(), doing, error))
}

fn unless_missing(result: io::Result<()>) -> io::Result<()> {
    match result {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

/// One that is there is removed, and not written to: it may be a link to another.
fn write(path: &Path, data: &[u8], mode: u32) -> io::Result<()> {
    unless_missing(fs::remove_file(path))?;
    let mut file = OpenOptions::new().write(true).create_new(true).mode(mode).open(path)?;
    file.write_all(data)?;
    file.set_permissions(fs::Permissions::from_mode(mode))
}

fn sync(path: &Path) -> io::Result<()> {
    let is_folder = path.is_dir();
    match File::open(path).and_then(|file| file.sync_all()) {
        // Some network and FUSE file systems cannot sync a folder; what was done in it stands all the same.
        Err(error)
            if is_folder
                && matches!(error.kind(), io::ErrorKind::InvalidInput | io::ErrorKind::Unsupported) =>
        {
            Ok(())
        }
        other => other,
    }
}

/// What was unpacked is files and folders alone, in a bounded depth.
fn sync_tree(path: &Path) -> io::Result<()> {
    for entry in fs::read_dir(path)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            sync_tree(&entry.path())?;
        } else {
            sync(&entry.path())?;
        }
    }
    sync(path)
}

fn read_whole(path: &Path) -> io::Result<Vec<u8>> {
    let mut data = Vec::new();
    File::open(path)?.take(MAX_WRAPPER + 1).read_to_end(&mut data)?;
    if data.len() as u64 > MAX_WRAPPER { Err(io::Error::other("too large")) } else { Ok(data) }
}

/// A record's content; `None` where there is none.
fn read_small(path: &Path) -> Result<Option<Vec<u8>>, InstallError> {
    read_up_to(path, MAX_RECORD as u64)
}

/// A file's content, and one byte more than it may have: what is longer is found damaged by who reads it. `None` where
/// there is no file.
fn read_up_to(path: &Path, most: u64) -> Result<Option<Vec<u8>>, InstallError> {
    let nonblocking = OFlags::NONBLOCK.bits() as i32;
    let mut data = Vec::new();
    let read = OpenOptions::new()
        .read(true)
        .custom_flags(nonblocking)
        .open(path)
        .and_then(|file| file.take(most + 1).read_to_end(&mut data));
    match read {
        Ok(_) => Ok(Some(data)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(InstallError::File(path.to_path_buf(), "cannot be read", error)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::state_dir::tests::Scratch;

    #[test]
    fn an_installed_program_knows_its_release_and_one_from_elsewhere_does_not() {
        let scratch = Scratch::new();
        let release = scratch.path().join("releases/1.2.3-5-6");
        let program = release.join(PROGRAM);
        fs::create_dir_all(program.parent().unwrap()).unwrap();
        assert_eq!(manifest_of(&program), None);
        let mut manifest = Manifest::of_this_release("1.2.3", "abc", "linux-x64");
        fs::write(release.join(MANIFEST), consensus_core::state::emit_manifest(&manifest)).unwrap();
        assert_eq!(manifest_of(&program), None, "without a record the hash is not known");
        let version = "1.2.3".parse().unwrap();
        let record = Record { version, sha256: [0xab; 32], update_id: None, probation: 1 };
        fs::write(release.join(RECORD), record.emit()).unwrap();
        manifest.tarball_sha256 = Some(format!("sha256:{}", "ab".repeat(32)));
        assert_eq!(manifest_of(&program), Some(manifest));
        assert_eq!(manifest_of(&release.join("bin/other")), None);
        assert_eq!(manifest_of(&release.join("scripts/x/../../bin/consensus-node")), None);
        fs::write(release.join(MANIFEST), "{").unwrap();
        assert_eq!(manifest_of(&program), None);
        assert_eq!(own_manifest(), None);
    }

    #[test]
    fn a_damaged_record_of_others_does_not_keep_a_release_from_proving_itself() {
        let scratch = Scratch::new();
        let dir = scratch.path();
        let id = "1.2.3-5-6";
        for id in ["1.0.0-1-1", id] {
            fs::create_dir_all(dir.join(RELEASES).join(id)).unwrap();
        }
        symlink("releases/1.0.0-1-1", dir.join("last-good")).unwrap();
        symlink(format!("releases/{id}"), dir.join("current")).unwrap();
        for name in ["refused", "rolled-back", "floor"] {
            fs::write(dir.join(name), "\n").unwrap();
        }
        assert!(matches!(survey(dir), Err(InstallError::Damaged(_))), "who installs is told");
        let standing = standing_of(dir, Some(id));
        assert!(standing.on_probation);
        assert_eq!(standing.floor, Some("1.0.0".parse().unwrap()));
        confirm_release(dir, Some(id)).unwrap();
        assert_eq!(link(dir, "last-good").as_deref(), Some(id));
        assert_eq!(fs::read(dir.join("refused")).unwrap(), b"\n", "what cannot be understood is left");
    }

    #[test]
    fn links_and_pipes_in_the_way_are_neither_written_to_nor_waited_for() {
        let scratch = Scratch::new();
        let dir = scratch.path();
        let id = "1.2.3-5-6";
        fs::create_dir_all(dir.join(RELEASES).join(id)).unwrap();
        symlink(format!("releases/{id}"), dir.join("current")).unwrap();
        let precious = dir.join("precious");
        fs::write(&precious, "precious").unwrap();
        symlink(&precious, dir.join("floor.next")).unwrap();
        confirm_release(dir, Some(id)).unwrap();
        assert_eq!(fs::read(&precious).unwrap(), b"precious");
        assert_eq!(fs::read(dir.join("floor")).unwrap(), b"1.2.3\n");
        assert!(fs::symlink_metadata(dir.join("floor")).unwrap().is_file());
        fs::remove_file(dir.join(LOCK)).unwrap();
        let made = std::process::Command::new("mkfifo").arg(dir.join(LOCK)).status().unwrap();
        assert!(made.success());
        assert!(matches!(lock(dir), Err(InstallError::File(..))));
        fs::remove_file(dir.join(LOCK)).unwrap();
        symlink(dir.join("elsewhere"), dir.join(LOCK)).unwrap();
        assert!(matches!(lock(dir), Err(InstallError::File(..))));
        assert!(!dir.join("elsewhere").exists());
    }

    #[test]
    fn a_rollback_that_is_excused_is_forgotten_and_any_other_is_remembered() {
        for is_excused in [false, true] {
            let scratch = Scratch::new();
            let install_dir = scratch.path().to_path_buf();
            let rolled_back = b"release=1.2.3-5-6\nreason=it did not reconnect within 1 s\nsilent=yes\n";
            fs::write(install_dir.join("rolled-back"), rolled_back).unwrap();
            let probation = Duration::from_secs(1);
            let settings = Settings { install_dir, retention: 3, probation, allow_older: false };
            assert!(standing(&settings).rolled_back.unwrap().was_silent);
            acknowledge_rollback(&settings, is_excused).unwrap();
            let found = standing(&settings);
            assert_eq!((found.rolled_back, found.refused.is_empty()), (None, is_excused));
        }
    }
}
