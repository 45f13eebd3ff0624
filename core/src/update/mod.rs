//! Updates: how a node comes to another release, and back if that does not work (protocol.md section 9).
//!
//! `directed` is what the network has a node do. The files are the shell's: it downloads, looks into the archive and
//! installs, each as an [`Effect`](crate::io::Effect) that the machine asks for.

pub(crate) mod directed;
pub mod install;
pub mod records;

use alloc::string::String;
use alloc::vec::Vec;

use serde::{Deserialize, Serialize};

use crate::release::signature::ReleaseKeys;
use crate::release::version::Version;

/// What a node is told of updates, once, at its start.
#[derive(Clone, Debug, Default)]
pub struct Settings {
    /// Who installs.
    pub way: Way,
    /// Who must have signed a release; nobody, where none is pinned.
    pub keys: ReleaseKeys,
    /// What the install directory says.
    pub standing: Standing,
}

/// Who installs a release that the network directs.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Way {
    /// The node itself, into its install directory.
    #[default]
    Installer,
    /// The operator's own command, whatever the artifact is.
    Command,
    /// Nobody. The reason goes to the server and to the log.
    Nobody(String),
}

/// How it stands with the installed releases.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Standing {
    /// The running release has not been confirmed yet.
    pub on_probation: bool,
    /// A release that did not pass its probation, while that has not been acknowledged.
    pub rolled_back: Option<RolledBack>,
    /// Releases that are not tried again, neither the version nor the tarball of that hash.
    pub refused: Vec<(Version, Option<[u8; 32]>)>,
    /// No release before this one is installed.
    pub floor: Option<Version>,
}

/// A release that was given up after its restart.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RolledBack {
    /// The network's name for the update; none where the operator updated.
    pub update_id: Option<String>,
    /// What was given up.
    pub version: String,
    /// Why.
    pub reason: String,
    /// It ran until its time was over, and did not end by itself: perhaps nobody could have reconnected then.
    pub was_silent: bool,
}

/// A release to be installed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Install {
    /// The network's name for the update: at most [`MAX_ID`](crate::limits::MAX_ID) bytes of anything.
    pub update_id: String,
    /// The file.
    pub artifact: String,
    /// Of the release.
    pub version: String,
    /// Of the file, to be checked again.
    pub sha256: [u8; 32],
    /// By the operator's command, and not by the node itself.
    pub by_command: bool,
}
