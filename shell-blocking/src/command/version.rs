//! `version`, and what the running release is.

use consensus_core::release::manifest::{ARTIFACT, IMPLEMENTATION, Manifest, PRODUCT};
use serde_json::json;

use super::Failure;
use crate::install;
use crate::release::workspace::{self, BumpError};
use crate::runtime_api::Runtime;
use crate::settings::{Sources, UsageError};
use crate::state_dir::StateDir;
use crate::system;

/// The version of the protocol: protocol.md.
const PROTOCOL: u32 = 1;

/// The manifest of the release that runs. What is said in the environment goes before what was installed, that before
/// the state directory's `release-manifest.json`, and that before what the build knows.
pub(super) fn manifest(sources: &Sources<'_>, state_dir: &StateDir) -> Result<Manifest, Failure> {
    // A file left by the network's other implementation speaks of a program that does not run any more.
    let own = |manifest: &Manifest| manifest.implementation.as_deref() == Some(IMPLEMENTATION);
    let found = match install::own_manifest() {
        Some(manifest) => Some(manifest),
        None => state_dir.release_manifest()?.filter(own),
    };
    let mut manifest = found.unwrap_or_else(|| {
        let commit = build_commit().unwrap_or_else(|| "unknown".to_string());
        Manifest::of_this_release(env!("CARGO_PKG_VERSION"), &commit, &system::platform())
    });
    manifest.product = PRODUCT.to_string();
    manifest.artifact = ARTIFACT.to_string();
    let said = sources.release()?;
    let texts = [
        (&mut manifest.version, said.version),
        (&mut manifest.commit, said.commit),
        (&mut manifest.platform, said.platform),
    ];
    for (member, text) in texts {
        if let Some(text) = text {
            *member = text;
        }
    }
    manifest.download_url = said.download_url.or(manifest.download_url);
    manifest.tarball_sha256 = said.tarball_sha256.or(manifest.tarball_sha256);
    manifest.signing_key_id = said.signing_key_id.or(manifest.signing_key_id);
    manifest.signature = said.signature.or(manifest.signature);
    Ok(manifest)
}

/// The commit that the build was told.
pub(super) fn build_commit() -> Option<String> {
    option_env!("CONSENSUS_NODE_BUILD_COMMIT").map(str::to_string)
}

/// `version bump`: gives what to print.
pub(super) fn bump(sources: &Sources<'_>) -> Result<String, Failure> {
    let bumping = sources.bumping()?;
    let bumped = workspace::bump(&bumping.workspace, &bumping.bump).map_err(|error| match error {
        BumpError::File(error) => error.into(),
        // What is wrong is what was asked for, or where.
        error => Failure::Usage(UsageError::new(&error.to_string())),
    })?;
    let mut text = format!("{} -> {}\n", bumped.from, bumped.to);
    for file in &bumped.files {
        text.push_str(&format!("{}\n", file.display()));
    }
    Ok(text)
}

/// What `version` prints.
pub(super) fn text<R: Runtime>(sources: &Sources<'_>) -> Result<String, Failure> {
    let manifest = manifest(sources, &StateDir::at(&sources.state_dir()?))?;
    if sources.options.contains_key("--json") {
        let version = json!({
            "product": manifest.product,
            "version": manifest.version,
            "commit": manifest.commit,
            "runtime": IMPLEMENTATION,
            "shell": R::SHELL,
            "platform": manifest.platform,
            "protocol": PROTOCOL,
        });
        return Ok(format!("{version}\n"));
    }
    Ok(format!(
        "{} {} (commit {}, {}, {IMPLEMENTATION}, {} shell, protocol {PROTOCOL})\n",
        R::PROGRAM,
        manifest.version,
        manifest.commit,
        manifest.platform,
        R::SHELL
    ))
}
