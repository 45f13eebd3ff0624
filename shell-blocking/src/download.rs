//! Fetches the tarball of a release into the state directory, for both shells and by blocking.
//!
//! What has come stays in `NAME.part` when a connection is cut, when the machine goes down or when it is stopped, and the
//! next fetch asks for the rest. A server that answers such a question with anything but exactly the rest is asked for
//! the whole, once. Nothing gets its final name before all of its bytes were hashed: so it does not matter who served
//! them. What is fetched is bounded in size and in time, and one fetch at a time runs on a state directory.

mod attempt;
mod partial;
#[cfg(test)]
mod tests;

use std::ffi::OsStr;
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use consensus_core::guard::Target;
use consensus_core::io::{Audience, Outcome};
use consensus_core::proxy::Proxies;
use consensus_core::release::artifact::Artifact;
use consensus_core::text::printable;
use consensus_core::wire::hex;
use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;

use self::attempt::{Attempt, Trouble};
use self::partial::Partial;
use crate::state_dir::{FileError, StateDir, make_dir, open_lock};
use crate::tls::Tls;

/// The folder of tarballs in the state directory (protocol.md section 12).
const FOLDER: &str = "downloads";

/// How often a wait looks whether it is still wanted.
const SLICE: Duration = Duration::from_millis(100);

/// Tarballs that are kept, the newest first.
const KEPT: usize = 3;

/// How long a server is waited for, and how often it is asked.
#[derive(Clone, Copy, Debug)]
pub struct Patience {
    /// From the look-up of a name to a connection, TLS included.
    pub connect: Duration,
    /// Without a byte.
    pub stall: Duration,
    /// For all of it. A server that sends a byte now and then ends here.
    pub whole: Duration,
    /// Tries in a row that bring nothing new.
    pub tries: u32,
    /// Before the second try; it doubles with every further one.
    pub pause: Duration,
}

impl Default for Patience {
    fn default() -> Self {
        Self {
            connect: Duration::from_secs(20),
            stall: Duration::from_secs(30),
            whole: Duration::from_secs(2 * 3600),
            tries: 5,
            pause: Duration::from_secs(1),
        }
    }
}

/// What to fetch, and how.
#[derive(Clone, Debug)]
pub struct Download {
    /// The tarball.
    pub artifact: Artifact,
    /// Where it goes: `downloads/` of this one.
    pub state_dir: StateDir,
    /// The network's own server. The operator chose it, so a tarball there may be at any address; a URL elsewhere comes
    /// from the network and leads to public addresses alone.
    pub server: Option<Target>,
    /// Whether a URL elsewhere may lead to an address that is not public: for labs.
    pub allow_private: bool,
    /// TLS settings.
    pub tls: Tls,
    /// What it goes through. Where a name leads that is not the network's own is then for the proxy to judge.
    pub proxies: Arc<Proxies>,
    /// How long to wait.
    pub patience: Patience,
}

/// How far it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Progress {
    /// Bytes that are there, those of earlier fetches included.
    pub received: u64,
    /// All there will be, where it is known.
    pub total: Option<u64>,
}

/// A tarball that is what the manifest says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Downloaded {
    /// Where it is, absolute if the state directory is.
    pub path: PathBuf,
    /// Its hash.
    pub sha256: [u8; 32],
    /// Its length in bytes.
    pub size: u64,
    /// How many of them were there already.
    pub resumed_from: u64,
}

/// Why there is no tarball.
#[derive(Debug)]
pub enum DownloadError {
    /// Another process fetches into this state directory.
    Busy(PathBuf),
    /// It is no longer wanted. What has come is kept.
    Cancelled,
    /// The server was not reached, or stopped half way. What has come is kept.
    Unreachable(String),
    /// The server answered with something that is not the tarball. Nothing of it is kept.
    Refused(String),
    /// All came, and it is not what the manifest says. Nothing of it is kept.
    Corrupt {
        /// The hash of the manifest.
        wanted: [u8; 32],
        /// That of what came.
        got: [u8; 32],
    },
    /// A file of this machine.
    File(FileError),
}

impl fmt::Display for DownloadError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Busy(dir) => {
                write!(f, "{}: another process downloads a release; wait for it", dir.display())
            }
            Self::Cancelled => f.write_str("the download was stopped; the next one goes on from there"),
            Self::Unreachable(why) => {
                write!(f, "the release was not downloaded: {why}; what came is kept, so try again")
            }
            Self::Refused(why) => write!(f, "the release was not downloaded: {why}"),
            Self::Corrupt { wanted, got } => write!(
                f,
                "what was downloaded is not the release: its SHA-256 is {}, the manifest says {}",
                hex::encode(got),
                hex::encode(wanted)
            ),
            Self::File(error) => error.fmt(f),
        }
    }
}

impl std::error::Error for DownloadError {}

impl From<FileError> for DownloadError {
    fn from(error: FileError) -> Self {
        Self::File(error)
    }
}

impl DownloadError {
    /// How a program that wanted it ends.
    #[must_use]
    pub const fn outcome(&self) -> Outcome {
        match self {
            Self::Busy(_) | Self::Cancelled | Self::File(_) => Outcome::Internal,
            Self::Unreachable(_) => Outcome::Unreachable,
            Self::Refused(_) | Self::Corrupt { .. } => Outcome::Refused,
        }
    }
}

impl Download {
    /// The folder of tarballs.
    #[must_use]
    pub fn folder(&self) -> PathBuf {
        self.state_dir.root().join(FOLDER)
    }

    /// Where the tarball will be.
    #[must_use]
    pub fn path(&self) -> PathBuf {
        self.folder().join(&self.artifact.file_name)
    }

    /// How far a request to that target may reach.
    fn audience(&self, target: &Target) -> Audience {
        let is_own = self.server.as_ref().is_some_and(|server| server.origin() == target.origin());
        if is_own || self.allow_private { Audience::Operator } else { Audience::Stranger }
    }
}

/// Fetches a tarball, or finds it there already. Blocks until it is there, whole and verified, or until it fails.
/// `progress` is called often; a `cancelled` that is set ends it within a second.
///
/// # Errors
/// [`DownloadError`].
pub fn download(
    request: &Download,
    progress: &mut dyn FnMut(Progress),
    cancelled: &Arc<AtomicBool>,
) -> Result<Downloaded, DownloadError> {
    let folder = request.folder();
    make_dir(&folder)?;
    let _lock = lock(&folder)?;
    let (artifact, path) = (&request.artifact, request.path());
    if let Some(found) = partial::complete(&path, artifact, cancelled)? {
        return Ok(found);
    }
    // Before, too: a server that has one release after another begun and never sent must not fill the disk.
    prune(&folder, &path);
    let mut partial = Partial::open(&path, artifact)?;
    let until = Instant::now() + request.patience.whole;
    let (mut failures, mut may_begin_anew) = (0, true);
    loop {
        let before = partial.length();
        let trouble = if before > 0 && Some(before) == artifact.size {
            None
        } else {
            let mut attempt =
                Attempt { request, partial: &mut partial, progress: &mut *progress, cancelled, until };
            attempt.run().err()
        };
        let error = match trouble {
            None => match partial.hash(cancelled)? {
                got if got == artifact.sha256 => break,
                // The parts may be of different files.
                _ if before > 0 && may_begin_anew => {
                    may_begin_anew = false;
                    partial.clear()?;
                    continue;
                }
                got => {
                    partial.remove();
                    return Err(DownloadError::Corrupt { wanted: artifact.sha256, got });
                }
            },
            Some(Trouble::Anew(_)) if may_begin_anew => {
                may_begin_anew = false;
                partial.clear()?;
                continue;
            }
            Some(Trouble::Anew(why) | Trouble::Refused(why)) => {
                partial.remove();
                return Err(DownloadError::Refused(printable(&why)));
            }
            Some(Trouble::File(error)) => {
                // The disk may be full: it must not stay so for what is of no use yet.
                partial.remove();
                return Err(error.into());
            }
            Some(Trouble::Again(why)) => why,
        };
        if cancelled.load(Ordering::Relaxed) {
            return Err(DownloadError::Cancelled);
        }
        failures = if partial.length() > before { 1 } else { failures + 1 };
        if failures >= request.patience.tries || Instant::now() >= until {
            return Err(DownloadError::Unreachable(printable(&error)));
        }
        pause(request.patience.pause * (1 << (failures - 1).min(5)), until, cancelled)?;
    }
    let found = partial.finish(&path, artifact)?;
    prune(&folder, &path);
    Ok(found)
}

/// One fetch at a time. Where the file system has no locks, the hash is what counts.
fn lock(folder: &Path) -> Result<std::fs::File, DownloadError> {
    let file = open_lock(&folder.join("download.lock"))?;
    match flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Err(error) if error == Errno::WOULDBLOCK => Err(DownloadError::Busy(folder.to_path_buf())),
        _ => Ok(file),
    }
}

fn pause(time: Duration, until: Instant, cancelled: &AtomicBool) -> Result<(), DownloadError> {
    let end = until.min(Instant::now() + time);
    loop {
        if cancelled.load(Ordering::Relaxed) {
            return Err(DownloadError::Cancelled);
        }
        let left = end.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Ok(());
        }
        thread::sleep(left.min(SLICE));
    }
}

/// Removes what earlier fetches left, but for the newest and what is of `own`, a tarball. That this fails is no reason to
/// fail.
fn prune(folder: &Path, own: &Path) {
    let Ok(entries) = std::fs::read_dir(folder) else { return };
    let own = own.file_name().and_then(OsStr::to_str).unwrap_or_default();
    let mut others: Vec<_> = entries
        .flatten()
        .filter(|entry| {
            let name = entry.file_name();
            let is_ours = name.to_str().is_some_and(|name| {
                name.starts_with("consensus-node-")
                    && [".tgz", ".part", ".part.json"].iter().any(|end| name.ends_with(end))
            });
            is_ours && !name.to_str().is_some_and(|name| name.starts_with(own))
        })
        .map(|entry| (entry.metadata().and_then(|metadata| metadata.modified()).ok(), entry.path()))
        .collect();
    others.sort();
    let excess = others.len().saturating_sub(KEPT - 1);
    for (_, path) in others.iter().take(excess) {
        let _ = std::fs::remove_file(path);
    }
}
