//! Settings of updates (protocol.md section 13).

use std::path::PathBuf;

use super::read::{read_number, read_path, read_text};
use super::{Setting, Sources, UsageError};

/// The longest command, in bytes.
const MAX_COMMAND: usize = 4096;

/// How releases come to this machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Updating {
    /// Where releases are installed, absolute.
    pub install_dir: PathBuf,
    /// How many are kept.
    pub retention: usize,
    /// What installs a release that the network directs, where the operator does not leave that to the node.
    pub command: Option<String>,
}

const INSTALL_DIR: Setting<PathBuf> = Setting::new(
    "",
    &["CONSENSUS_NODE_INSTALL_DIR"],
    "the path of a folder (default ~/.consensus/node-runtime)",
    read_path,
);
const RETENTION: Setting<usize> =
    Setting::new("", &["CONSENSUS_NODE_RELEASE_RETENTION"], "a whole number from 2 to 100", |text| {
        read_number(text, 2, 100)
    });
const COMMAND: Setting<String> = Setting::new(
    "--update-command",
    &["CONSENSUS_NODE_UPDATE_COMMAND"],
    "one line for sh -c, at most 4096 bytes",
    |text| read_text(text, MAX_COMMAND),
);

impl Sources<'_> {
    /// How releases come to this machine.
    ///
    /// # Errors
    /// A wrong value, or no home folder.
    pub fn updating(&self) -> Result<Updating, UsageError> {
        Ok(Updating {
            install_dir: self.folder(&INSTALL_DIR, ".consensus/node-runtime")?,
            retention: self.get(&RETENTION)?.unwrap_or(3),
            command: self.get(&COMMAND)?,
        })
    }
}
