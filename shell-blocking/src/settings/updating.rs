//! Settings of updates (protocol.md section 13).

use std::path::PathBuf;
use std::time::Duration;

use consensus_core::release::artifact::parse_sha256;
use consensus_core::release::version::Version;
use consensus_core::update::records::MAX_UPDATE_ID;

use super::read::{read_number, read_path, read_text};
use super::{Setting, Sources, UsageError};

/// The longest command, in bytes.
const MAX_COMMAND: usize = 4096;

/// How many releases are kept by default.
const RETENTION_DEFAULT: usize = 3;

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

/// What `install` is told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Installing {
    /// The tarball, absolute.
    pub artifact: PathBuf,
    /// What its manifest has to say; where nothing is, whatever it says.
    pub version: Option<Version>,
    /// What all of its bytes hash to, where that is known.
    pub sha256: Option<[u8; 32]>,
    /// The update that it came by, where a node that is being updated runs this.
    pub update_id: Option<String>,
    /// Where it goes, absolute.
    pub install_dir: PathBuf,
    /// How many releases are kept.
    pub retention: usize,
    /// How long it has to reconnect.
    pub probation: Option<Duration>,
    /// Whether it may be older than the newest that proved itself.
    pub allow_older: bool,
}

pub(super) const INSTALL_DIR: Setting<PathBuf> = Setting::new(
    "",
    &["CONSENSUS_NODE_INSTALL_DIR"],
    "the path of a folder (default ~/.consensus/node-runtime)",
    read_path,
)
.key("install-dir");
pub(super) const RETENTION: Setting<usize> =
    Setting::new("", &["CONSENSUS_NODE_RELEASE_RETENTION"], "a whole number from 2 to 100", |text| {
        read_number(text, 2, 100)
    })
    .key("retention");
pub(super) const COMMAND: Setting<String> = Setting::new(
    "--update-command",
    &["CONSENSUS_NODE_UPDATE_COMMAND"],
    "one line for sh -c, at most 4096 bytes",
    |text| read_text(text, MAX_COMMAND),
);

// Of `install`, which has options for what a node has variables for alone.
const ARTIFACT: Setting<PathBuf> =
    Setting::new("ARTIFACT", &["CONSENSUS_NODE_ARTIFACT_PATH"], "the path of a release's tarball", read_path);
const TARGET_VERSION: Setting<Version> =
    Setting::new("--version", &["CONSENSUS_NODE_TARGET_VERSION"], "a version such as 1.2.3", |text| {
        text.parse().map_err(|_| String::new())
    });
const SHA256: Setting<[u8; 32]> = Setting::new("--sha256", &[], "64 hexadecimal digits", |text| {
    let text = if text.starts_with("sha256:") { text.to_string() } else { format!("sha256:{text}") };
    parse_sha256(&text).ok_or_else(String::new)
});
const UPDATE_ID: Setting<String> =
    Setting::new("", &["CONSENSUS_NODE_UPDATE_ID"], "at most 256 bytes", |text| {
        if text.len() > MAX_UPDATE_ID { Err(String::new()) } else { Ok(text.to_string()) }
    });
pub(super) const INTO: Setting<PathBuf> =
    Setting::new("--install-dir", INSTALL_DIR.env, INSTALL_DIR.allowed, read_path);
const KEPT: Setting<usize> = Setting::new("--retention", RETENTION.env, RETENTION.allowed, RETENTION.read);
pub(super) const PROBATION: Setting<u32> = Setting::new(
    "--probation",
    &["CONSENSUS_NODE_PROBATION"],
    "a whole number of seconds from 1 to 86400",
    |text| read_number(text, 1, 86_400),
);

impl Sources<'_> {
    /// What is to be installed, and where.
    ///
    /// # Errors
    /// A wrong value, no artifact, or no home folder.
    pub fn installing(&self) -> Result<Installing, UsageError> {
        let artifact = self.get(&ARTIFACT)?;
        let artifact = artifact.ok_or_else(|| {
            UsageError::new(&format!("missing: {}, {}", ARTIFACT.names(), ARTIFACT.allowed))
        })?;
        Ok(Installing {
            artifact: self.absolute(&artifact)?,
            version: self.get(&TARGET_VERSION)?,
            sha256: self.get(&SHA256)?,
            update_id: self.get(&UPDATE_ID)?,
            install_dir: self.folder(&INTO, ".consensus/node-runtime")?,
            retention: self.get(&KEPT)?.unwrap_or(RETENTION_DEFAULT),
            probation: self.get(&PROBATION)?.map(|seconds| Duration::from_secs(seconds.into())),
            allow_older: self.options.contains_key("--allow-older"),
        })
    }

    /// How releases come to this machine.
    ///
    /// # Errors
    /// A wrong value, or no home folder.
    pub fn updating(&self) -> Result<Updating, UsageError> {
        Ok(Updating {
            install_dir: self.folder(&INSTALL_DIR, ".consensus/node-runtime")?,
            retention: self.get(&RETENTION)?.unwrap_or(RETENTION_DEFAULT),
            command: self.get(&COMMAND)?,
        })
    }
}
