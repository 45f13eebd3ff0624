//! The release that the network requires, put in place.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use consensus_core::guard::Target;
use consensus_core::io::{Finish, Outcome as End};
use consensus_core::release::artifact::{Artifact, acceptable};
use consensus_core::release::manifest::{Manifest, differences};
use consensus_core::release::version::Version;
use consensus_core::setup::Release;
use consensus_core::text::printable;

use crate::command::{Failure, Setup, Surroundings, update, version};
use crate::download::{Download, Patience};
use crate::install::{self, PROBATION, Request, install};
use crate::runtime_api::{Provider, Runtime};
use crate::settings::Sources;
use crate::state_dir::StateDir;
use crate::system;

/// Asks which release is required, and installs it where it is not what runs from the install directory.
pub(super) fn settle<R: Runtime>(
    runtime: &R,
    sources: &Sources<'_>,
    setup: &Setup,
    state_dir: &StateDir,
    surroundings: &mut Surroundings<'_>,
    cancelled: &Arc<AtomicBool>,
) -> Result<Release, Failure> {
    let (network, keys) = (sources.network()?, sources.release_keys()?);
    let updating = sources.updating()?;
    let running = version::manifest(sources, state_dir)?;
    let environment = setup.environment(state_dir)?;
    setup.warn(&network.warnings);
    let Some(required) = update::ask(runtime, &environment, &network)? else {
        return Ok(Release::NotRequired);
    };
    let name = required.version.clone();
    let not_taken = |why: &dyn std::fmt::Display| {
        let name = printable(&name);
        let text = format!(
            "the required release, {name}, is not taken: {why}; --skip-release stays with this program"
        );
        Failure::new(End::Refused, text)
    };
    let now = system::now();
    keys.check(&Provider::default(), &required, now).map_err(|error| not_taken(&error))?;
    let is_running = differences(&required, &running).is_empty();
    if is_running && (install::own_manifest().is_some() || Artifact::of(&required).is_err()) {
        // A network may require a release and say nothing of where it is: then it is enough to be it.
        return Ok(Release::Runs { version: name });
    }
    let installed = |program: std::path::PathBuf| Release::Installed {
        version: name.clone(),
        program: program.to_string_lossy().into_owned(),
    };
    if let Some((current, program)) = install::current(&updating.install_dir) {
        if differences(&required, &current).is_empty() {
            return Ok(installed(program));
        }
    }
    let artifact = artifact(sources, &required, &running, is_running).map_err(|why| not_taken(&why))?;
    let request = Download {
        artifact,
        state_dir: state_dir.clone(),
        server: Target::parse(network.server.base()).ok(),
        allow_private: sources.allow_private_targets(),
        proxies: environment.proxies,
        tls: environment.tls,
        patience: Patience::default(),
    };
    let fetched = update::fetch(&request, &setup.log, surroundings, cancelled);
    let fetched = fetched.map_err(|error| Failure::new(error.outcome(), error.to_string()))?;
    let version: Version = name.parse().map_err(|error| not_taken(&error))?;
    let settings = install::Settings {
        install_dir: updating.install_dir.clone(),
        retention: updating.retention,
        probation: PROBATION,
        allow_older: sources.options.contains_key("--allow-older"),
    };
    let request =
        Request { artifact: &fetched.path, version: &version, sha256: Some(fetched.sha256), update_id: None };
    let placed = install(&settings, &request).map_err(|error| match error {
        install::InstallError::Artifact(..) | install::InstallError::NotDone(_) => {
            Failure::new(End::Refused, error.to_string())
        }
        other => Failure::Finish(Finish { outcome: End::Internal, message: other.to_string() }),
    })?;
    setup.warn(&placed.warnings);
    match install::current(&updating.install_dir) {
        Some((_, program)) => Ok(installed(program)),
        None => Err(Failure::internal(format!("{}: cannot be read back", placed.release.display()))),
    }
}

fn artifact(
    sources: &Sources<'_>,
    required: &Manifest,
    running: &Manifest,
    is_running: bool,
) -> Result<Artifact, String> {
    if !is_running {
        let keys = sources.release_keys().map_err(|error| error.to_string())?;
        let allow_older = sources.options.contains_key("--allow-older");
        acceptable(&Provider::default(), &keys, required, running, allow_older, system::now())
            .map_err(|error| error.to_string())?;
    }
    Artifact::of(required).map_err(|error| error.to_string())
}
