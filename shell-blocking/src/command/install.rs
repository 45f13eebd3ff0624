//! `install`: puts a release in place, the first one too.

use std::io::ErrorKind;

use consensus_core::io::Outcome;
use consensus_core::release::version::Version;
use consensus_core::text::printable;
use consensus_core::wire::hex;

use super::{Failure, Surroundings};
use crate::install::{InstallError, PROBATION, Request, Settings, inspect, install};
use crate::settings::{Installing, Sources, UsageError};

/// Installs; gives what to print. What could not be tidied up is told on standard error.
pub(super) fn run(sources: &Sources<'_>, surroundings: &mut Surroundings<'_>) -> Result<String, Failure> {
    let wanted = sources.installing()?;
    let version = match &wanted.version {
        Some(version) => version.clone(),
        None => version_of(&wanted)?,
    };
    let settings = Settings {
        install_dir: wanted.install_dir.clone(),
        retention: wanted.retention,
        probation: wanted.probation.unwrap_or(PROBATION),
        allow_older: wanted.allow_older,
    };
    let is_first = std::fs::symlink_metadata(settings.install_dir.join("current")).is_err();
    let request = Request {
        artifact: &wanted.artifact,
        version: &version,
        sha256: wanted.sha256,
        update_id: wanted.update_id.as_deref(),
    };
    let installed = install(&settings, &request).map_err(|error| failure(&wanted, &error))?;
    for warning in &installed.warnings {
        // It is installed all the same, whether that can be told or not.
        let _ = writeln!(surroundings.stderr, "warning: {}", printable(warning));
    }
    let next = if is_first {
        format!("start it: {}/run-node.sh run", settings.install_dir.display())
    } else {
        format!(
            "it is started with the node's next start, and given up if it does not reconnect within {} s",
            settings.probation.as_secs()
        )
    };
    Ok(format!(
        "{}\nrelease {version} is installed, sha256:{}; {next}\n",
        installed.release.display(),
        hex::encode(&installed.sha256)
    ))
}

/// What the artifact says of itself, where nobody says what it has to be.
fn version_of(wanted: &Installing) -> Result<Version, Failure> {
    let manifest = inspect(&wanted.artifact).map_err(|error| failure(wanted, &error))?;
    manifest.version.parse().map_err(|error| {
        let text = format!("{}: its version {}: {error}", wanted.artifact.display(), manifest.version);
        Failure::new(Outcome::Refused, text)
    })
}

/// What is not taken is refused; a file that is not there was named wrongly; all else is this machine's.
fn failure(wanted: &Installing, error: &InstallError) -> Failure {
    match error {
        InstallError::File(path, _, io) if *path == wanted.artifact && io.kind() == ErrorKind::NotFound => {
            Failure::Usage(UsageError::new(&format!("{}: there is no such file", path.display())))
        }
        InstallError::Artifact(..) | InstallError::NotDone(_) => {
            Failure::new(Outcome::Refused, error.to_string())
        }
        InstallError::Busy(_) | InstallError::Damaged(_) | InstallError::File(..) => {
            Failure::internal(error.to_string())
        }
    }
}
