//! The signature of a release, and the keys that an operator pins to check it with.
//!
//! A release key signs what a node must know of a release before it runs it: which one it is, for which platform, the
//! exact tarball, and until when the statement holds. A server that hands out manifests cannot put one release's tarball
//! under another's name, show an old release for ever, or make one of its own. The signature travels in the manifest;
//! the members that protocol version 1 does not have (`tarball_size`, `expires`) go where unknown ones do.

use alloc::string::{String, ToString as _};
use alloc::vec::Vec;
use core::fmt;

use serde_json::{Value, json};

use super::manifest::Manifest;
use crate::crypto::Crypto;
use crate::crypto::identity::{Identity, verify_base64};
use crate::text::printable;
use crate::time::Now;
use crate::wire::{canonical, hex};

/// Release keys that can be pinned: the one in use, the next, and some to spare.
pub const MAX_RELEASE_KEYS: usize = 8;

/// The name of the member that has the tarball's length, in bytes.
const SIZE: &str = "tarball_size";

/// The name of the member that says until when the signature holds, in unix seconds.
const EXPIRES: &str = "expires";

impl Manifest {
    /// The length of the tarball in bytes, where the manifest says it.
    #[must_use]
    pub fn tarball_size(&self) -> Option<u64> {
        self.extra.get(SIZE).and_then(Value::as_u64)
    }

    /// Until when the signature holds, in unix seconds, where the manifest says it.
    #[must_use]
    pub fn expires(&self) -> Option<u64> {
        self.extra.get(EXPIRES).and_then(Value::as_u64)
    }

    /// Sets [`tarball_size`](Self::tarball_size).
    pub fn set_tarball_size(&mut self, bytes: u64) {
        self.extra.insert(SIZE.to_string(), bytes.into());
    }

    /// Sets [`expires`](Self::expires).
    pub fn set_expires(&mut self, unix_seconds: u64) {
        self.extra.insert(EXPIRES.to_string(), unix_seconds.into());
    }
}

/// The name of a key in a manifest (`signing_key_id`): the hex of the first eight bytes of its SHA-256.
pub fn key_id<C: Crypto>(crypto: &C, public_key: &[u8; 32]) -> String {
    hex::encode(&crypto.sha256(&[public_key])[..8])
}

/// The text that is signed; `None` where the manifest lacks a member of it.
fn signed_text(manifest: &Manifest) -> Option<String> {
    let signed = json!({
        "product": manifest.product,
        "version": manifest.version,
        "platform": manifest.platform,
        "commit": manifest.commit,
        "routes_hash": manifest.routes_hash,
        "tarball_size": manifest.tarball_size()?,
        "tarball_sha256": manifest.tarball_sha256.as_ref()?,
        "expires": manifest.expires()?,
    });
    Some(canonical::to_canonical(&signed))
}

/// Signs a manifest whose other members are all there. `false`, and nothing signed, where `tarball_sha256`,
/// `tarball_size` or `expires` is missing.
#[must_use]
pub fn sign<C: Crypto>(crypto: &C, key: &Identity<C>, manifest: &mut Manifest) -> bool {
    let Some(text) = signed_text(manifest) else { return false };
    manifest.signing_key_id = Some(key_id(crypto, key.public_key()));
    manifest.signature = Some(key.sign(text.as_bytes()));
    true
}

/// Why a manifest does not pass where release keys are pinned.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Unsigned {
    /// It has no signature.
    Missing,
    /// It lacks a member that a signature covers.
    Incomplete,
    /// Signed with a key that is not pinned, or that it does not name.
    UnknownKey(String),
    /// Not the key's signature over this manifest.
    Signature,
    /// The signature held until then, in unix seconds.
    Expired(u64),
}

impl fmt::Display for Unsigned {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Missing => f.write_str("the manifest is not signed, and release keys are pinned"),
            Self::Incomplete => f.write_str(
                "the manifest lacks tarball_sha256, tarball_size or expires, which a signature covers",
            ),
            Self::UnknownKey(id) if id.is_empty() => {
                f.write_str("the manifest does not say which key signed it")
            }
            Self::UnknownKey(id) => write!(f, "the manifest is signed with key {id}, which is not pinned"),
            Self::Signature => {
                f.write_str("the manifest's signature does not verify: it was changed, or forged")
            }
            Self::Expired(at) => write!(
                f,
                "the manifest's signature expired (unix time {at}): the server shows an old release, or this \
                 machine's clock is wrong"
            ),
        }
    }
}

impl core::error::Error for Unsigned {}

/// The keys that an operator pinned. With none, every manifest passes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ReleaseKeys(Vec<[u8; 32]>);

impl ReleaseKeys {
    /// Pins these keys. `None` where there are over [`MAX_RELEASE_KEYS`].
    #[must_use]
    pub fn new(mut keys: Vec<[u8; 32]>) -> Option<Self> {
        keys.sort_unstable();
        keys.dedup();
        (keys.len() <= MAX_RELEASE_KEYS).then_some(Self(keys))
    }

    /// Whether none is pinned.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The keys, in order.
    #[must_use]
    pub fn as_slice(&self) -> &[[u8; 32]] {
        &self.0
    }

    /// Whether `manifest` is signed with one of them, for now.
    ///
    /// # Errors
    /// [`Unsigned`], by the first check that fails. The expiry comes last: what is not signed has none.
    pub fn check<C: Crypto>(&self, crypto: &C, manifest: &Manifest, now: Now) -> Result<(), Unsigned> {
        if self.is_empty() {
            return Ok(());
        }
        let signature = manifest.signature.as_deref().ok_or(Unsigned::Missing)?;
        let (Some(text), Some(expires)) = (signed_text(manifest), manifest.expires()) else {
            return Err(Unsigned::Incomplete);
        };
        let named = manifest.signing_key_id.as_deref().unwrap_or_default();
        let key = self.0.iter().find(|key| key_id(crypto, key) == named);
        let key = key.ok_or_else(|| Unsigned::UnknownKey(printable(named)))?;
        if !verify_base64(crypto, key, text.as_bytes(), signature) {
            return Err(Unsigned::Signature);
        }
        if now.unix_seconds() >= expires {
            return Err(Unsigned::Expired(expires));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::crypto::pure::Pure;
    use alloc::format;
    use alloc::vec;
    use core::time::Duration;

    fn key(seed: u8) -> Identity<Pure> {
        Identity::from_seed(Pure, &[seed; 32])
    }

    fn at(unix: u64) -> Now {
        Now { monotonic: Duration::ZERO, unix: Duration::from_secs(unix) }
    }

    fn unsigned() -> Manifest {
        let mut manifest = Manifest::of_this_release("1.2.3", "abc", "linux-x64");
        manifest.tarball_sha256 = Some(format!("sha256:{}", "a".repeat(64)));
        manifest.set_tarball_size(1000);
        manifest.set_expires(2000);
        manifest
    }

    fn signed() -> Manifest {
        let mut manifest = unsigned();
        assert!(sign(&Pure, &key(1), &mut manifest));
        manifest
    }

    fn check(manifest: &Manifest, now: u64) -> Result<(), Unsigned> {
        let keys = ReleaseKeys::new(vec![*key(2).public_key(), *key(1).public_key()]).unwrap();
        // As it comes over the wire.
        let text = serde_json::to_string(manifest).unwrap();
        keys.check(&Pure, &serde_json::from_str(&text).unwrap(), at(now))
    }

    #[test]
    fn a_signed_manifest_passes_until_it_expires() {
        assert_eq!(check(&signed(), 1999), Ok(()));
        assert_eq!(check(&signed(), 2000), Err(Unsigned::Expired(2000)));
    }

    #[test]
    fn the_signed_text_is_the_canonical_json_of_eight_members() {
        let hash = "a".repeat(64);
        let routes = super::super::manifest::ROUTES_HASH;
        assert_eq!(
            signed_text(&unsigned()).unwrap(),
            format!(
                "{{\"commit\":\"abc\",\"expires\":2000,\"platform\":\"linux-x64\",\"product\":\"consensus-node\",\
                 \"routes_hash\":\"{routes}\",\"tarball_sha256\":\"sha256:{hash}\",\"tarball_size\":1000,\
                 \"version\":\"1.2.3\"}}"
            )
        );
    }

    #[test]
    fn whatever_is_signed_cannot_be_changed() {
        // Mix and match: another release's hash, size or platform under this one's name, or an expiry moved.
        for (member, value) in [
            ("product", json!("other")),
            ("version", json!("1.2.4")),
            ("platform", json!("linux-arm")),
            ("commit", json!("abd")),
            ("routes_hash", json!("sha256:0")),
            ("tarball_sha256", json!(format!("sha256:{}", "b".repeat(64)))),
            ("tarball_size", json!(1001)),
            ("expires", json!(3000)),
        ] {
            let mut value_of = serde_json::to_value(signed()).unwrap();
            value_of[member] = value;
            let changed: Manifest = serde_json::from_value(value_of).unwrap();
            assert_eq!(check(&changed, 1000), Err(Unsigned::Signature), "{member}");
        }
    }

    #[test]
    fn what_is_not_signed_says_the_server_is_free_to_change() {
        let mut manifest = signed();
        manifest.download_url = Some("https://mirror.example/x.tgz".into());
        manifest.extra.insert("notes".into(), json!("new"));
        assert_eq!(check(&manifest, 1000), Ok(()));
    }

    #[test]
    fn each_lack_has_its_own_reason() {
        assert_eq!(check(&unsigned(), 1000), Err(Unsigned::Missing));
        for member in ["tarball_sha256", "tarball_size", "expires"] {
            let mut value = serde_json::to_value(signed()).unwrap();
            value.as_object_mut().unwrap().remove(member);
            assert_eq!(
                check(&serde_json::from_value(value).unwrap(), 1000),
                Err(Unsigned::Incomplete),
                "{member}"
            );
        }
        let mut manifest = signed();
        manifest.extra.insert("expires".into(), json!("never"));
        assert_eq!(check(&manifest, 1000), Err(Unsigned::Incomplete));
        let mut manifest = unsigned();
        assert!(sign(&Pure, &key(9), &mut manifest));
        let id = manifest.signing_key_id.clone().unwrap();
        assert_eq!(id.len(), 16);
        assert_eq!(check(&manifest, 1000), Err(Unsigned::UnknownKey(id)));
        // The name of a pinned key under a signature of another.
        manifest.signing_key_id = signed().signing_key_id;
        assert_eq!(check(&manifest, 1000), Err(Unsigned::Signature));
        manifest.signing_key_id = None;
        assert_eq!(check(&manifest, 1000), Err(Unsigned::UnknownKey(String::new())));
        let mut manifest = signed();
        manifest.signature = Some("not base64 at all".into());
        assert_eq!(check(&manifest, 1000), Err(Unsigned::Signature));
    }

    #[test]
    fn without_a_pinned_key_everything_passes_and_their_number_is_bounded() {
        let none = ReleaseKeys::default();
        assert_eq!(none.check(&Pure, &unsigned(), at(9999)), Ok(()));
        assert_eq!(ReleaseKeys::new(vec![[1; 32]; 100]), ReleaseKeys::new(vec![[1; 32]]));
        let many = (0..=MAX_RELEASE_KEYS as u8).map(|seed| [seed; 32]).collect();
        assert_eq!(ReleaseKeys::new(many), None);
    }

    #[test]
    fn nothing_is_signed_that_is_not_complete() {
        let mut manifest = Manifest::of_this_release("1.2.3", "abc", "linux-x64");
        assert!(!sign(&Pure, &key(1), &mut manifest));
        assert_eq!(manifest.signature, None);
    }
}
