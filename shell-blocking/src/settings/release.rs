//! Settings about releases: the one that runs, those that are made, and whose are taken.

use std::path::PathBuf;

use consensus_core::limits::MAX_ID;
use consensus_core::release::artifact::parse_sha256;
use consensus_core::release::signature::ReleaseKeys;
use consensus_core::release::version::{Bump, Version};
use consensus_core::wire::hex;
use url::Url;

use super::read::{is_word, read_number, read_path, read_server_key, read_token};
use super::{Setting, Sources, UsageError};

/// Stands between the values of an option that was given several times.
pub(crate) const REPEATED: char = '\u{1f}';

/// For how many days the signature of a release holds by default. A node that only hears of older releases is told so
/// after that.
const EXPIRES_DAYS_DEFAULT: u64 = 90;

/// What the environment says about the release that runs (protocol.md section 13), before what the state directory
/// and the build say; and what `release` is told about the one that it makes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[expect(missing_docs, reason = "each is the manifest's member of that name")]
pub struct Release {
    pub version: Option<String>,
    pub commit: Option<String>,
    pub platform: Option<String>,
    pub download_url: Option<String>,
    pub tarball_sha256: Option<String>,
    pub signing_key_id: Option<String>,
    pub signature: Option<String>,
}

/// What making a release takes beside [`Release`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Making {
    /// Whether nodes must run it.
    pub required: bool,
    /// Where it goes.
    pub out: PathBuf,
    /// The program; the running one where there is none.
    pub binary: Option<PathBuf>,
    /// The folder of scripts and unit files.
    pub scripts: PathBuf,
    /// The private key to sign with.
    pub sign: Option<PathBuf>,
    /// For how many days the signature holds.
    pub expires_days: u64,
}

/// A new version for a workspace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Bumping {
    /// How.
    pub bump: Bump,
    /// The folder of the workspace.
    pub workspace: PathBuf,
}

const VERSION: Setting<String> =
    Setting::new("--version", &["CONSENSUS_NODE_VERSION"], "1 to 64 visible ASCII characters", |text| {
        read_token(text, 64)
    });
const COMMIT: Setting<String> =
    Setting::new("--commit", &["CONSENSUS_NODE_COMMIT"], "1 to 64 visible ASCII characters", |text| {
        read_token(text, 64)
    });
const PLATFORM: Setting<String> =
    Setting::new("--platform", &["CONSENSUS_NODE_PLATFORM"], "SYSTEM-PROCESSOR, such as linux-x64", |text| {
        match text.split_once('-') {
            Some((os, arch)) if is_word(os) && is_word(arch) => Ok(text.to_string()),
            _ => Err(String::new()),
        }
    });
const DOWNLOAD_URL: Setting<String> =
    Setting::new("--download-url", &["CONSENSUS_NODE_DOWNLOAD_URL"], "an https:// or http:// URL", |text| {
        match Url::parse(text) {
            Ok(url) if matches!(url.scheme(), "https" | "http") => Ok(text.to_string()),
            Ok(_) => Err(String::new()),
            Err(error) => Err(error.to_string()),
        }
    });
const TARBALL_SHA256: Setting<String> = Setting::new(
    "",
    &["CONSENSUS_NODE_TARBALL_SHA256"],
    "sha256: and 64 lower-case hexadecimal digits",
    |text| match parse_sha256(text) {
        Some(_) if !text.bytes().any(|b| b.is_ascii_uppercase()) => Ok(text.to_string()),
        _ => Err(String::new()),
    },
);
const SIGNING_KEY_ID: Setting<String> =
    Setting::new("", &["CONSENSUS_RELEASE_SIGNING_KEY_ID"], "1 to 128 visible ASCII characters", |text| {
        read_token(text, MAX_ID)
    });
const SIGNATURE: Setting<String> =
    Setting::new("", &["CONSENSUS_RELEASE_SIGNATURE"], "1 to 1024 visible ASCII characters", |text| {
        read_token(text, 1024)
    });
pub(super) const RELEASE_KEYS: Setting<ReleaseKeys> = Setting::new(
    "--release-key",
    &["CONSENSUS_RELEASE_KEYS"],
    "1 to 8 Ed25519 public keys, each as hex, base64url, JWK or PEM, or the path of a file with one; separated by commas",
    read_release_keys,
);
const REQUIRED: Setting<bool> = Setting::new("--required", &[], "true, false", |text| match text {
    "true" => Ok(true),
    "false" => Ok(false),
    _ => Err(String::new()),
});
const OUT: Setting<PathBuf> = Setting::new("--out", &[], "the path of a folder (default dist)", read_path);
const BINARY: Setting<PathBuf> = Setting::new("--binary", &[], "the path of a program", read_path);
const SCRIPTS: Setting<PathBuf> =
    Setting::new("--scripts", &[], "the path of a folder (default scripts)", read_path);
const SIGN: Setting<PathBuf> =
    Setting::new("--sign", &[], "the path of a file with an Ed25519 private key in PEM", read_path);
const NEW_KEY: Setting<PathBuf> =
    Setting::new("--new-key", &[], "the path of a file that does not exist", read_path);
const EXPIRES_DAYS: Setting<u64> =
    Setting::new("--expires-days", &[], "a whole number of days from 1 to 3650, with --sign", |text| {
        read_number(text, 1, 3650)
    });
const BUMP: Setting<Bump> = Setting::new(
    "version bump",
    &[],
    "major, minor, patch, prerelease, or a version such as 1.2.3",
    |text| text.parse().map_err(|_| String::new()),
);
const WORKSPACE: Setting<PathBuf> =
    Setting::new("--workspace", &[], "the path of a folder with this project's Cargo.toml", read_path);

fn read_release_keys(text: &str) -> Result<ReleaseKeys, String> {
    let mut keys = Vec::new();
    for value in text.split(REPEATED) {
        match read_release_key(value.trim()) {
            Ok(key) => keys.push(key),
            // A JWK has commas of its own, and so may a path: it is a list only where it is no key.
            Err(_) if value.contains(',') => {
                for one in value.split(',') {
                    keys.push(read_release_key(one.trim())?);
                }
            }
            Err(error) => return Err(error),
        }
    }
    ReleaseKeys::new(keys).ok_or_else(|| "there are too many".to_string())
}

fn read_release_key(text: &str) -> Result<[u8; 32], String> {
    // Base64 of 32 bytes has 43 or 44 characters.
    match hex::decode(text).and_then(|bytes| bytes.try_into().ok()) {
        Some(key) => Ok(key),
        None => read_server_key(text),
    }
}

impl Sources<'_> {
    /// What is said about the release.
    ///
    /// # Errors
    /// A wrong value.
    pub fn release(&self) -> Result<Release, UsageError> {
        Ok(Release {
            version: self.get(&VERSION)?,
            commit: self.get(&COMMIT)?,
            platform: self.get(&PLATFORM)?,
            download_url: self.get(&DOWNLOAD_URL)?,
            tarball_sha256: self.get(&TARBALL_SHA256)?,
            signing_key_id: self.get(&SIGNING_KEY_ID)?,
            signature: self.get(&SIGNATURE)?,
        })
    }

    /// Whose releases are taken.
    ///
    /// # Errors
    /// A wrong value.
    pub fn release_keys(&self) -> Result<ReleaseKeys, UsageError> {
        Ok(self.get(&RELEASE_KEYS)?.unwrap_or_default())
    }

    /// Where a new release key is to go, if that is what is wanted.
    ///
    /// # Errors
    /// A wrong value.
    pub fn new_key(&self) -> Result<Option<PathBuf>, UsageError> {
        self.get(&NEW_KEY)
    }

    /// What making a release takes.
    ///
    /// # Errors
    /// A wrong value.
    pub fn making(&self) -> Result<Making, UsageError> {
        let (sign, days) = (self.get(&SIGN)?, self.get(&EXPIRES_DAYS)?);
        if days.is_some() && sign.is_none() {
            return Err(UsageError::new("--expires-days is of a signature; give --sign too"));
        }
        Ok(Making {
            required: self.get(&REQUIRED)?.unwrap_or(true),
            out: self.get(&OUT)?.unwrap_or_else(|| PathBuf::from("dist")),
            binary: self.get(&BINARY)?,
            scripts: self.get(&SCRIPTS)?.unwrap_or_else(|| PathBuf::from("scripts")),
            sign,
            expires_days: days.unwrap_or(EXPIRES_DAYS_DEFAULT),
        })
    }

    /// Which version is to follow, and where.
    ///
    /// # Errors
    /// A wrong value, or none.
    pub fn bumping(&self) -> Result<Bumping, UsageError> {
        let bump = self.get(&BUMP)?;
        let bump = bump.ok_or_else(|| UsageError::new(&format!("missing: {}", BUMP.allowed)))?;
        Ok(Bumping { bump, workspace: self.get(&WORKSPACE)?.unwrap_or_else(|| PathBuf::from(".")) })
    }

    /// The version of a release that is made: what is said, or this program's own.
    ///
    /// # Errors
    /// What is said is no version.
    pub fn release_version(&self) -> Result<Version, UsageError> {
        let text = self.get(&VERSION)?.unwrap_or_else(|| env!("CARGO_PKG_VERSION").to_string());
        text.parse().map_err(|error| UsageError::new(&format!("{}: {text:?}: {error}", VERSION.names())))
    }

    /// What a release cannot be made without, and is not said.
    #[must_use]
    pub fn missing_of_release(release: &Release) -> Option<UsageError> {
        let missing: Vec<_> =
            [(&release.commit, COMMIT.names()), (&release.download_url, DOWNLOAD_URL.names())]
                .into_iter()
                .filter(|(value, _)| value.is_none())
                .map(|(_, names)| names)
                .collect();
        (!missing.is_empty()).then(|| UsageError::new(&format!("missing: {}", missing.join(", "))))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use consensus_core::crypto::pem;
    use consensus_core::state::Jwk;
    use consensus_core::wire::base64;
    use std::collections::BTreeMap;

    fn keys(text: &str) -> Result<ReleaseKeys, UsageError> {
        let options = BTreeMap::from([("--release-key".to_string(), text.to_string())]);
        Sources { options: &options, env: &|_| None, file: None }.release_keys()
    }

    #[test]
    fn release_keys_come_in_every_form_alone_repeated_and_in_a_list() {
        let (a, b) = (hex::encode(&[1; 32]), base64::encode_url(&[2; 32]));
        let jwk = Jwk::of_key([3; 32], "k").to_value().to_string();
        let pem = pem::encode_public(&[4; 32]);
        let all = ReleaseKeys::new((1..=4).map(|seed| [seed; 32]).collect()).unwrap();
        assert_eq!(keys(&[a.as_str(), &b, &jwk, &pem].join(&REPEATED.to_string())).unwrap(), all);
        let list = ReleaseKeys::new(vec![[1; 32], [2; 32]]).unwrap();
        assert_eq!(keys(&format!("{a}, {b}")).unwrap(), list);
        for wrong in ["", "x", &format!("{a},"), &format!("{a},/does/not/exist"), &a[2..]] {
            let error = keys(wrong).unwrap_err().to_string();
            assert!(error.starts_with("--release-key: "), "{error}");
        }
        let many: Vec<_> = (0..9).map(|seed| hex::encode(&[seed; 32])).collect();
        assert!(keys(&many.join(",")).unwrap_err().to_string().contains("too many"));
        let env = |name: &str| (name == "CONSENSUS_RELEASE_KEYS").then(|| a.clone().into());
        let found = Sources { options: &BTreeMap::new(), env: &env, file: None }.release_keys().unwrap();
        assert_eq!(found, ReleaseKeys::new(vec![[1; 32]]).unwrap());
    }

    #[test]
    fn an_expiry_belongs_to_a_signature() {
        let options = BTreeMap::from([("--expires-days".to_string(), "3".to_string())]);
        let error = Sources { options: &options, env: &|_| None, file: None }.making().unwrap_err();
        assert!(error.to_string().contains("--sign"), "{error}");
    }
}
