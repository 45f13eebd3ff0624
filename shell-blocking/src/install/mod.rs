//! Releases put in place, proved, and given up: the install directory.

use std::fs;
use std::io::{self, Read as _};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::time::Duration;

use consensus_core::release::manifest::Manifest;
use consensus_core::release::version::Version;
use sha2::{Digest as _, Sha256};

/// Where and how releases are installed.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The install directory, absolute.
    pub install_dir: PathBuf,
    /// Releases that are kept.
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
    /// Its version.
    pub version: &'a Version,
    /// Its SHA-256, where that is known.
    pub sha256: Option<[u8; 32]>,
    /// The update that it came by.
    pub update_id: Option<&'a str>,
}

/// A release in place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Installed {
    /// Its folder.
    pub release: PathBuf,
}

/// A release that was given up.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RolledBack {
    /// The update that it came by.
    pub update_id: Option<String>,
    /// Its version.
    pub version: Version,
    /// Why.
    pub reason: String,
}

/// How the running release stands.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Standing {
    /// It has to reconnect and then be confirmed.
    pub on_probation: bool,
    /// A release that was given up, until that is acknowledged.
    pub rolled_back: Option<RolledBack>,
    /// Releases that are not tried again.
    pub refused: Vec<(Version, Option<[u8; 32]>)>,
    /// The oldest version that is taken.
    pub floor: Option<Version>,
}

/// Why a release was not installed or confirmed.
pub type InstallError = io::Error;

const MANIFEST: &str = "release-manifest.json";

fn unpack(artifact: &Path, into: Option<&Path>) -> Result<(Manifest, [u8; 32]), InstallError> {
    let bytes = fs::read(artifact)?;
    let sha256 = Sha256::digest(&bytes).into();
    let deflated = bytes.get(10..).ok_or_else(|| io::Error::other("it is no gzip file"))?;
    let inflated = miniz_oxide::inflate::decompress_to_vec_with_limit(deflated, 1 << 29)
        .map_err(|error| io::Error::other(format!("it is no gzip file: {error}")))?;
    let mut archive = tar::Archive::new(inflated.as_slice());
    let mut manifest = None;
    for entry in archive.entries()? {
        let mut entry = entry?;
        let path = entry.path()?.into_owned();
        let mut data = Vec::new();
        entry.read_to_end(&mut data)?;
        if path == Path::new(MANIFEST) {
            manifest = Some(serde_json::from_slice(&data)?);
        }
        if let Some(into) = into.filter(|_| path.starts_with("bin") || path == Path::new(MANIFEST)) {
            let to = into.join(path.file_name().unwrap_or_default());
            let folder = into.join("bin");
            fs::create_dir_all(&folder)?;
            let to =
                if path.starts_with("bin") { folder.join(to.file_name().unwrap_or_default()) } else { to };
            fs::write(to, data)?;
        }
    }
    let manifest = manifest.ok_or_else(|| io::Error::other("release-manifest.json is missing"))?;
    Ok((manifest, sha256))
}

fn point(dir: &Path, name: &str, id: &str) -> io::Result<()> {
    let next = dir.join(format!("{name}.next"));
    let _ = fs::remove_file(&next);
    symlink(format!("releases/{id}"), &next)?;
    fs::rename(next, dir.join(name))
}

fn target(dir: &Path, name: &str) -> Option<String> {
    let target = fs::read_link(dir.join(name)).ok()?;
    Some(target.to_str()?.strip_prefix("releases/")?.to_owned())
}

fn own(dir: &Path) -> Option<String> {
    let program = std::env::current_exe().and_then(fs::canonicalize).ok()?;
    let releases = fs::canonicalize(dir.join("releases")).ok()?;
    Some(program.strip_prefix(releases).ok()?.components().next()?.as_os_str().to_str()?.to_owned())
}

/// Installs a release.
///
/// # Errors
/// It is not one, or a file.
pub fn install(settings: &Settings, request: &Request<'_>) -> Result<Installed, InstallError> {
    let dir = &settings.install_dir;
    let id = format!("{}-{}-{}", request.version, crate::system::now().unix_seconds(), std::process::id());
    let release = dir.join("releases").join(&id);
    fs::create_dir_all(&release)?;
    let (_, sha256) = unpack(request.artifact, Some(&release))?;
    if request.sha256.is_some_and(|wanted| wanted != sha256) {
        return Err(io::Error::other("the artifact has another hash"));
    }
    point(dir, "current", &id)?;
    Ok(Installed { release })
}

/// The manifest of an artifact.
///
/// # Errors
/// It is none.
pub fn inspect(artifact: &Path) -> Result<Manifest, InstallError> {
    unpack(artifact, None).map(|(manifest, _)| manifest)
}

/// The running release has proved itself.
///
/// # Errors
/// A file.
pub fn confirm(settings: &Settings) -> Result<(), InstallError> {
    let dir = &settings.install_dir;
    let id = own(dir).ok_or_else(|| io::Error::other("the release that runs is not the current one"))?;
    point(dir, "last-good", &id)
}

/// How the running release stands.
#[must_use]
pub fn standing(settings: &Settings) -> Standing {
    let dir = &settings.install_dir;
    let current = target(dir, "current");
    let rolled_back = fs::read_to_string(dir.join("rolled-back")).ok().and_then(|text| {
        let get = |name: &str| {
            let line = text.lines().filter_map(|line| line.split_once('=')).find(|(found, _)| *found == name);
            line.map(|(_, value)| value.to_owned())
        };
        let update = get("update").and_then(|hex| consensus_core::wire::hex::decode(&hex));
        Some(RolledBack {
            update_id: update.and_then(|bytes| String::from_utf8(bytes).ok()),
            version: get("version")?.parse().ok()?,
            reason: get("reason")?,
        })
    });
    Standing {
        on_probation: current.is_some() && current == own(dir) && current != target(dir, "last-good"),
        rolled_back,
        refused: Vec::new(),
        floor: None,
    }
}

/// The rollback was passed on.
///
/// # Errors
/// A file.
pub fn acknowledge_rollback(settings: &Settings) -> Result<(), InstallError> {
    fs::remove_file(settings.install_dir.join("rolled-back"))
}
