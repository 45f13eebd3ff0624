//! `release`: makes a release of the network's node, and the key to sign it with.

use std::fs::{self, OpenOptions};
use std::io::{ErrorKind, Write as _};
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use consensus_core::crypto::identity::Identity;
use consensus_core::crypto::{Crypto as _, Drbg};
use consensus_core::release::artifact::file_name;
use consensus_core::release::manifest::Manifest;
use consensus_core::release::signature::{key_id, sign};
use consensus_core::release::verify::PublishManifest;
use consensus_core::state::emit_manifest;
use consensus_core::wire::hex;

use super::{Failure, version};
use crate::release::build::build;
use crate::runtime_api::Provider;
use crate::settings::{Making, Release, Sources, UsageError};
use crate::state_dir::{FileError, read_file, replace_file};
use crate::system;

/// A file with a private key has under 130 bytes.
const MAX_KEY_FILE: usize = 4096;

const SECONDS_A_DAY: u64 = 86_400;

/// Makes what is asked for; gives what to print.
pub(super) fn run(sources: &Sources<'_>) -> Result<String, Failure> {
    if let Some(path) = sources.new_key()? {
        return new_key(&path);
    }
    let (making, mut said) = (sources.making()?, sources.release()?);
    said.commit = said.commit.or_else(version::build_commit);
    if let Some(missing) = Sources::missing_of_release(&said) {
        return Err(missing.into());
    }
    let version = sources.release_version()?;
    let key = making.sign.as_deref().map(read_key).transpose()?;
    let manifest = manifest(&version.to_string(), &said);
    let name = file_name(&version, &manifest.platform)
        .map_err(|error| Failure::Usage(UsageError::new(&format!("--platform: {error}"))))?;
    let binary = match &making.binary {
        Some(path) => path.clone(),
        None => std::env::current_exe()
            .map_err(|error| Failure::internal(format!("this program cannot find itself: {error}")))?,
    };
    let tarball =
        build(&manifest, &binary, &making.scripts).map_err(|error| Failure::internal(error.to_string()))?;
    let manifest = describe(manifest, &said, &making, key.as_ref(), &tarball)?;
    write(&making, &name, &tarball, manifest)
}

/// The manifest before packing.
fn manifest(version: &str, said: &Release) -> Manifest {
    let platform = said.platform.clone().unwrap_or_else(system::platform);
    Manifest::of_this_release(version, said.commit.as_deref().unwrap_or_default(), &platform)
}

/// The manifest of the finished tarball, signed where there is a key.
fn describe(
    mut manifest: Manifest,
    said: &Release,
    making: &Making,
    key: Option<&Identity<Provider>>,
    tarball: &[u8],
) -> Result<Manifest, Failure> {
    let crypto = Provider::default();
    manifest.download_url.clone_from(&said.download_url);
    manifest.tarball_sha256 = Some(format!("sha256:{}", hex::encode(&crypto.sha256(&[tarball]))));
    manifest.set_tarball_size(tarball.len() as u64);
    let Some(key) = key else {
        // A signature that was made elsewhere, of the same bytes.
        manifest.signing_key_id.clone_from(&said.signing_key_id);
        manifest.signature.clone_from(&said.signature);
        return Ok(manifest);
    };
    let id = key_id(&crypto, key.public_key());
    if said.signing_key_id.as_ref().is_some_and(|said| *said != id) {
        let text =
            format!("CONSENSUS_RELEASE_SIGNING_KEY_ID is not the id of the key of --sign, which is {id}");
        return Err(UsageError::new(&text).into());
    }
    manifest.set_expires(system::now().unix_seconds() + making.expires_days * SECONDS_A_DAY);
    if sign(&crypto, key, &mut manifest) {
        Ok(manifest)
    } else {
        Err(Failure::internal("the manifest is not complete enough to be signed".to_string()))
    }
}

/// Writes the three files. The tarball comes first: what names it must not be there before it.
fn write(making: &Making, name: &str, tarball: &[u8], manifest: Manifest) -> Result<String, Failure> {
    fs::create_dir_all(&making.out)
        .map_err(|error| FileError::io(&making.out, "the folder cannot be made", &error))?;
    let stem = name.trim_end_matches(".tgz");
    let hash = manifest.tarball_sha256.clone().unwrap_or_default();
    let signed = match &manifest.signing_key_id {
        Some(id) => format!("signed with key {id}"),
        None => "not signed: nodes that pin release keys do not take it".to_string(),
    };
    let described = emit_manifest(&manifest);
    let publish = PublishManifest { manifest, required: making.required };
    let publish = serde_json::to_vec_pretty(&publish).unwrap_or_default();
    let mut text = String::new();
    for (name, data) in [
        (name.to_string(), tarball),
        (format!("{stem}.manifest.json"), &described),
        (format!("{stem}.publish.json"), &publish),
    ] {
        let path = making.out.join(name);
        replace_file(&path, data, 0o644)?;
        text.push_str(&format!("{}\n", path.display()));
    }
    text.push_str(&format!("{hash}, {} bytes, {signed}\n", tarball.len()));
    Ok(text)
}

/// The key in a file that only its owner may read.
fn read_key(path: &Path) -> Result<Identity<Provider>, Failure> {
    let wrong = |why: &str| Failure::Usage(UsageError::new(&format!("--sign: {}: {why}", path.display())));
    let mode = fs::metadata(path).map_err(|error| wrong(&error.to_string()))?.permissions().mode();
    if mode & 0o077 != 0 {
        return Err(wrong("others may read it; `chmod 600` it, and think of who has"));
    }
    let data = read_file(path, MAX_KEY_FILE)?.ok_or_else(|| wrong("there is no such file"))?;
    let text = std::str::from_utf8(&data).map_err(|_| wrong("not a PEM of a private key"))?;
    Identity::from_private_pem(Provider::default(), text).map_err(|error| wrong(&error.to_string()))
}

/// A new key in a new file.
fn new_key(path: &PathBuf) -> Result<String, Failure> {
    let mut rng = Drbg::new(system::seed().map_err(Failure::internal)?);
    let crypto = Provider::default();
    let (key, pem) = Identity::generate(crypto, &mut rng);
    let unwritten = |error: std::io::Error| match error.kind() {
        ErrorKind::AlreadyExists => {
            let text = format!("--new-key: {}: it exists, and a key is not written over", path.display());
            Failure::Usage(UsageError::new(&text))
        }
        _ => FileError::io(path, "cannot be written", &error).into(),
    };
    let mut file =
        OpenOptions::new().write(true).create_new(true).mode(0o600).open(path).map_err(unwritten)?;
    file.write_all(pem.as_bytes()).and_then(|()| file.sync_all()).map_err(unwritten)?;
    Ok(format!(
        "{}: the private key; whoever has it can have nodes run anything: keep it off this machine, and a copy of it\n\
         key id:     {}\npublic key: {}\nNodes take releases of this key alone with --release-key {2}\n",
        path.display(),
        key_id(&crypto, key.public_key()),
        hex::encode(key.public_key()),
    ))
}
