//! What a node may fetch and install of what a server calls the required release, and how a fetch that was cut goes on.
//!
//! A manifest comes from the network: every text of it that becomes a file name, a URL or a bound is judged here.

use alloc::format;
use alloc::string::{String, ToString as _};
use core::fmt;

use super::manifest::{ARTIFACT, IMPLEMENTATION, Manifest, PRODUCT};
use super::signature::{ReleaseKeys, Unsigned};
use super::version::{Version, VersionError};
use crate::crypto::Crypto;
use crate::guard::{Refused, Target};
use crate::limits::MAX_TARBALL;
use crate::text::printable;
use crate::time::Now;
use crate::wire::hex;

/// The longest name of a platform, in bytes: two words of sixteen and the stroke between.
const MAX_PLATFORM: usize = 33;

/// A tarball that may be fetched: all that is known of it before a byte has come.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Artifact {
    /// The release's version.
    pub version: Version,
    /// `consensus-node-<version>-<platform>.tgz`: a name without separators, of bounded length.
    pub file_name: String,
    /// Where it is.
    pub url: Target,
    /// What all of its bytes hash to.
    pub sha256: [u8; 32],
    /// Its length, where the manifest says it.
    pub size: Option<u64>,
}

/// Why a release is not taken.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NotTaken {
    /// Another product.
    Product(String),
    /// An artifact of another kind, or of another implementation.
    Kind(String),
    /// For another platform than this one.
    Platform {
        /// The release's.
        offered: String,
        /// This machine's.
        own: String,
    },
    /// Its version is none.
    Version(VersionError),
    /// It is older than the one that runs.
    Older {
        /// The release's version.
        offered: Version,
        /// That of the release that runs.
        running: Version,
    },
    /// It is not signed as the pinned keys demand.
    Unsigned(Unsigned),
    /// It has no `download_url`.
    NoUrl,
    /// Its `download_url` is none.
    Url(Refused),
    /// It has no `tarball_sha256`, or one of another form: nothing says what the download has to be.
    NoHash,
    /// Its tarball is empty, or larger than any release.
    Size(u64),
}

impl fmt::Display for NotTaken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Product(product) => write!(f, "it is of another product, {}", printable(product)),
            Self::Kind(kind) => {
                write!(f, "it is an artifact that this program does not install: {}", printable(kind))
            }
            Self::Platform { offered, own } => {
                write!(f, "it is for {}, and this machine is {own}", printable(offered))
            }
            Self::Version(error) => write!(f, "its version: {error}"),
            Self::Older { offered, running } => {
                write!(f, "its version {offered} is older than {running}, which runs")
            }
            Self::Unsigned(error) => error.fmt(f),
            Self::NoUrl => f.write_str("its manifest has no download_url"),
            Self::Url(error) => write!(f, "its download_url: {error}"),
            Self::NoHash => f.write_str("its manifest has no tarball_sha256 (sha256: and 64 digits)"),
            Self::Size(size) => {
                write!(f, "its tarball has {size} bytes; a release has 1 to {MAX_TARBALL}")
            }
        }
    }
}

impl core::error::Error for NotTaken {}

/// The bytes of `sha256:` and 64 hexadecimal digits, as manifests write a hash.
#[must_use]
pub fn parse_sha256(text: &str) -> Option<[u8; 32]> {
    let digits = text.strip_prefix("sha256:").filter(|digits| digits.len() == 64)?;
    hex::decode(digits)?.try_into().ok()
}

/// The name a tarball has in `downloads/` and beside a release (protocol.md section 12).
///
/// # Errors
/// A version or platform that has no place in a file name.
pub fn file_name(version: &Version, platform: &str) -> Result<String, NotTaken> {
    let is_word = |word: &str| {
        !word.is_empty() && word.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_')
    };
    let is_platform = platform.len() <= MAX_PLATFORM
        && platform.split_once('-').is_some_and(|(os, arch)| is_word(os) && is_word(arch));
    if !is_platform {
        return Err(NotTaken::Platform {
            offered: platform.to_string(),
            own: "SYSTEM-PROCESSOR".to_string(),
        });
    }
    // A version is of letters, digits and `.-+`, and begins with a digit.
    Ok(format!("{PRODUCT}-{version}-{platform}.tgz"))
}

/// Judges the release that a server requires: whether this machine may run it at all, and whether an operator who
/// pinned keys would have it. `running` is the manifest of the release that runs.
///
/// # Errors
/// [`NotTaken`], by the first check that fails. Signatures come before everything that only a genuine release may say.
pub fn acceptable<C: Crypto>(
    crypto: &C,
    keys: &ReleaseKeys,
    required: &Manifest,
    running: &Manifest,
    allow_older: bool,
    now: Now,
) -> Result<Version, NotTaken> {
    keys.check(crypto, required, now).map_err(NotTaken::Unsigned)?;
    if required.product != PRODUCT {
        return Err(NotTaken::Product(required.product.clone()));
    }
    let implementation = required.implementation.as_deref().unwrap_or(IMPLEMENTATION);
    for (kind, own) in [(required.artifact.as_str(), ARTIFACT), (implementation, IMPLEMENTATION)] {
        if !kind.is_empty() && kind != own {
            return Err(NotTaken::Kind(kind.to_string()));
        }
    }
    if required.platform != running.platform {
        let (offered, own) = (required.platform.clone(), running.platform.clone());
        return Err(NotTaken::Platform { offered, own });
    }
    let offered: Version = required.version.parse().map_err(NotTaken::Version)?;
    // A release whose own version is none (a build of a developer) has nothing to be older than.
    if let Ok(running) = running.version.parse::<Version>() {
        if offered < running && !allow_older {
            return Err(NotTaken::Older { offered, running });
        }
    }
    Ok(offered)
}

impl Artifact {
    /// The tarball of a manifest that is [`acceptable`].
    ///
    /// # Errors
    /// [`NotTaken`]: the manifest does not say where it is or what it must be.
    pub fn of(manifest: &Manifest) -> Result<Self, NotTaken> {
        let version: Version = manifest.version.parse().map_err(NotTaken::Version)?;
        let file_name = file_name(&version, &manifest.platform)?;
        let url = manifest.download_url.as_deref().ok_or(NotTaken::NoUrl)?;
        let url = Target::parse(url).map_err(NotTaken::Url)?;
        let sha256 = manifest.tarball_sha256.as_deref().and_then(parse_sha256).ok_or(NotTaken::NoHash)?;
        let size = manifest.tarball_size();
        match size {
            Some(size) if !(1..=MAX_TARBALL).contains(&size) => Err(NotTaken::Size(size)),
            _ => Ok(Self { version, file_name, url, sha256, size }),
        }
    }

    /// The most bytes that may come.
    #[must_use]
    pub fn max_size(&self) -> u64 {
        self.size.unwrap_or(MAX_TARBALL)
    }
}

/// What a `Content-Range` says: which bytes these are, and of how many, where it is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ContentRange {
    /// The first byte's place.
    pub first: u64,
    /// The last byte's.
    pub last: u64,
    /// How long the whole is.
    pub total: Option<u64>,
}

impl ContentRange {
    /// Reads the value of the header (RFC 9110, 14.4). `None` where it is malformed or contradicts itself.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let number = |text: &str| {
            let is_number = (1..=19).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_digit());
            if is_number { text.parse::<u64>().ok() } else { None }
        };
        let (unit, rest) = text.split_once(' ')?;
        let (range, total) = rest.split_once('/')?;
        let (first, last) = range.split_once('-')?;
        let (first, last) = (number(first)?, number(last)?);
        let total = if total == "*" { None } else { Some(number(total)?) };
        let is_fine =
            unit.eq_ignore_ascii_case("bytes") && first <= last && total.is_none_or(|total| last < total);
        is_fine.then_some(Self { first, last, total })
    }

    /// Whether it is the rest of a body of which `have` bytes are there: all of it, from exactly there, of a whole of
    /// the length that is known.
    #[must_use]
    pub fn continues(&self, have: u64, size: Option<u64>) -> bool {
        let total = self.total.or(size);
        let is_same = size.is_none_or(|size| total == Some(size));
        self.first == have && is_same && total.is_none_or(|total| self.last + 1 == total)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::crypto::identity::Identity;
    use crate::crypto::pure::Pure;
    use crate::release::signature::sign;
    use alloc::vec;
    use core::time::Duration;
    use serde_json::json;

    const NOW: Now = Now { monotonic: Duration::ZERO, unix: Duration::from_secs(1000) };

    fn running() -> Manifest {
        Manifest::of_this_release("1.2.3", "abc", "linux-x64")
    }

    fn release(version: &str) -> Manifest {
        let mut manifest = Manifest::of_this_release(version, "def", "linux-x64");
        manifest.download_url = Some("https://releases.example/a.tgz".into());
        manifest.tarball_sha256 = Some(format!("sha256:{}", "ab".repeat(32)));
        manifest.set_tarball_size(77);
        manifest
    }

    fn judge(required: &Manifest) -> Result<Version, NotTaken> {
        acceptable(&Pure, &ReleaseKeys::default(), required, &running(), false, NOW)
    }

    #[test]
    fn a_newer_release_of_this_product_and_platform_is_taken() {
        assert_eq!(judge(&release("1.2.4")).unwrap().to_string(), "1.2.4");
        assert!(judge(&release("1.2.3")).is_ok(), "another build of the same version");
        let artifact = Artifact::of(&release("1.3.0-rc.1+b")).unwrap();
        assert_eq!(artifact.file_name, "consensus-node-1.3.0-rc.1+b-linux-x64.tgz");
        assert_eq!((artifact.sha256, artifact.size), ([0xab; 32], Some(77)));
    }

    #[test]
    fn another_product_kind_platform_or_an_older_version_is_not() {
        let mut other = release("1.2.4");
        other.product = "consensus-gateway".into();
        assert_eq!(judge(&other), Err(NotTaken::Product("consensus-gateway".into())));
        let mut other = release("1.2.4");
        other.artifact = "npm-tarball".into();
        assert_eq!(judge(&other), Err(NotTaken::Kind("npm-tarball".into())));
        let mut other = release("1.2.4");
        other.implementation = Some("bun".into());
        assert_eq!(judge(&other), Err(NotTaken::Kind("bun".into())));
        let mut other = release("1.2.4");
        other.platform = "linux-arm64".into();
        assert!(matches!(judge(&other), Err(NotTaken::Platform { .. })));
        assert!(matches!(judge(&release("latest")), Err(NotTaken::Version(_))));
        for older in ["1.2.2", "1.2.3-rc.1"] {
            assert!(matches!(judge(&release(older)), Err(NotTaken::Older { .. })), "{older}");
            let allowed = acceptable(&Pure, &ReleaseKeys::default(), &release(older), &running(), true, NOW);
            assert!(allowed.is_ok(), "{older}");
        }
    }

    #[test]
    fn where_keys_are_pinned_an_unsigned_or_expired_release_is_not_taken_whatever_else_it_is() {
        let key = Identity::from_seed(Pure, &[1; 32]);
        let keys = ReleaseKeys::new(vec![*key.public_key()]).unwrap();
        let judge = |manifest: &Manifest| acceptable(&Pure, &keys, manifest, &running(), true, NOW);
        let mut manifest = release("1.2.4");
        assert_eq!(judge(&manifest), Err(NotTaken::Unsigned(Unsigned::Missing)));
        manifest.set_expires(1001);
        assert!(sign(&Pure, &key, &mut manifest));
        assert!(judge(&manifest).is_ok());
        manifest.set_expires(1000);
        assert!(sign(&Pure, &key, &mut manifest));
        assert_eq!(judge(&manifest), Err(NotTaken::Unsigned(Unsigned::Expired(1000))));
    }

    #[test]
    fn texts_of_a_manifest_do_not_become_paths() {
        for platform in ["", "linux", "../x-y", "linux-x64/..", "linux-", "linux-x64\0", "Linux-x64", "a-b-c"]
        {
            let mut manifest = release("1.2.4");
            manifest.platform = platform.into();
            assert!(matches!(Artifact::of(&manifest), Err(NotTaken::Platform { .. })), "{platform:?}");
        }
        for version in ["../../x", "1.2.3/x", "1.2.3-\u{e9}", ""] {
            assert!(matches!(Artifact::of(&release(version)), Err(NotTaken::Version(_))), "{version:?}");
        }
    }

    #[test]
    fn a_tarball_without_place_hash_or_a_possible_size_is_not_fetched() {
        let mut manifest = release("1.2.4");
        manifest.download_url = None;
        assert_eq!(Artifact::of(&manifest), Err(NotTaken::NoUrl));
        manifest.download_url = Some("ftp://x/y".into());
        assert_eq!(Artifact::of(&manifest), Err(NotTaken::Url(Refused::Scheme)));
        for hash in ["", "sha256:", "ab", &"ab".repeat(32), &format!("sha512:{}", "ab".repeat(32))] {
            let mut manifest = release("1.2.4");
            manifest.tarball_sha256 = Some(hash.to_string());
            assert_eq!(Artifact::of(&manifest), Err(NotTaken::NoHash), "{hash}");
        }
        for size in [0, MAX_TARBALL + 1, u64::MAX] {
            let mut manifest = release("1.2.4");
            manifest.set_tarball_size(size);
            assert_eq!(Artifact::of(&manifest), Err(NotTaken::Size(size)));
        }
        let mut manifest = release("1.2.4");
        manifest.extra.insert("tarball_size".into(), json!("many"));
        assert_eq!(Artifact::of(&manifest).unwrap().max_size(), MAX_TARBALL);
    }

    #[test]
    fn a_range_continues_what_is_there_or_is_none_of_ours() {
        let range = ContentRange::parse("bytes 10-99/100").unwrap();
        assert_eq!(range, ContentRange { first: 10, last: 99, total: Some(100) });
        assert!(range.continues(10, Some(100)) && range.continues(10, None));
        assert!(!range.continues(11, Some(100)), "it begins elsewhere");
        assert!(!range.continues(10, Some(101)), "it is of something else");
        assert!(!ContentRange::parse("bytes 10-98/100").unwrap().continues(10, None), "it ends early");
        let unknown = ContentRange::parse("bytes 10-99/*").unwrap();
        assert!(unknown.continues(10, None) && unknown.continues(10, Some(100)));
        assert!(!unknown.continues(10, Some(200)));
        for text in [
            "",
            "bytes",
            "bytes 10-99",
            "bytes 99-10/100",
            "bytes 10-100/100",
            "items 10-99/100",
            "bytes */100",
            "bytes -1-99/100",
            "bytes +1-99/100",
            "bytes 10-99/99999999999999999999",
            "bytes  10-99/100",
        ] {
            assert_eq!(ContentRange::parse(text), None, "{text:?}");
        }
    }
}
