//! The release manifest: what a release is, in a form that can be compared (protocol.md section 8).

use alloc::format;
use alloc::string::{String, ToString as _};
use alloc::vec::Vec;
use core::fmt;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::crypto::Crypto;
use crate::text::printable;
use crate::wire::{canonical, hex};

/// The product every manifest of this network is of.
pub const PRODUCT: &str = "consensus-node";

/// The kind of artifact a release of this implementation is.
pub const ARTIFACT: &str = "native-tarball";

/// The implementation, as the manifest tells it.
pub const IMPLEMENTATION: &str = "rust";

/// The routes that [`ROUTES_HASH`] stands for. The list is protocol version 1's and is hashed as it is; it is not
/// the list of what the local API answers.
pub const ROUTES: [&str; 14] = [
    "GET /health",
    "GET /node/version",
    "GET /node/manifest",
    "GET /node/integrity",
    "GET /node/capabilities",
    "POST /benchmark/fetch",
    "POST /benchmark/cpu",
    "POST /benchmark/crypto",
    "POST /benchmark/concurrency",
    "GET /benchmark/system",
    "POST /benchmark/memory-test",
    "POST /benchmark/memory-pressure",
    "POST /proxy",
    "GET /connect",
];

/// [`routes_hash`] of [`ROUTES`]; a test holds them together.
pub const ROUTES_HASH: &str = "sha256:76a0779dd11144db55085c025ef2d1b827fb20a4a2f877132a64c9cfa590260d";

/// The names of what a node can do, as a manifest lists them.
pub const CAPABILITIES: [&str; 5] = ["forward_proxy", "reverse_proxy", "websockets", "tunnels", "ip_leasing"];

/// What a node can do, as heartbeats, the eval action and the join request tell it (protocol.md section 4).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[expect(missing_docs, reason = "each field is the capability of its name")]
pub struct Capabilities {
    pub forward_proxy: bool,
    pub reverse_proxy: bool,
    pub websockets: bool,
    pub tunnels: bool,
    pub ip_leasing: bool,
}

impl Capabilities {
    /// The only value protocol version 1 has.
    pub const ALL: Self =
        Self { forward_proxy: true, reverse_proxy: true, websockets: true, tunnels: true, ip_leasing: true };
}

/// The hash of a list of routes: `sha256:` and the hex of SHA-256 over its canonical JSON.
pub fn routes_hash<C: Crypto>(crypto: &C, routes: &[&str]) -> String {
    let list = Value::from(routes);
    format!("sha256:{}", hex::encode(&crypto.sha256(&[canonical::to_canonical(&list).as_bytes()])))
}

/// The network's name of an operating system or a processor, given Rust's (`std::env::consts`). Names that the
/// network does not have are passed through.
#[must_use]
pub fn network_name(rust_name: &str) -> &str {
    match rust_name {
        "macos" => "darwin",
        "x86_64" => "x64",
        "aarch64" => "arm64",
        other => other,
    }
}

/// The platform of a release, such as `linux-x64`, from Rust's names of the system and the processor.
#[must_use]
pub fn platform(os: &str, arch: &str) -> String {
    format!("{}-{}", network_name(os), network_name(arch))
}

/// A release manifest.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Manifest {
    /// `consensus-node`.
    pub product: String,
    /// The release's version.
    pub version: String,
    /// `native-tarball`: what kind of artifact it is.
    #[serde(default)]
    pub artifact: String,
    /// Such as `linux-x64`.
    pub platform: String,
    /// The commit it was built from.
    pub commit: String,
    /// Where its tarball is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub download_url: Option<String>,
    /// `sha256:` and lower-case hex.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tarball_sha256: Option<String>,
    /// The hash of the local API's routes.
    pub routes_hash: String,
    /// Names of what the node can do.
    #[serde(default)]
    pub capabilities: Vec<String>,
    /// `rust`: the truth about the implementation, inside what is signed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub implementation: Option<String>,
    /// The key that signed the release.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub signing_key_id: Option<String>,
    /// The release's signature.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub signature: Option<String>,
    /// Members this release does not know. They are signed as all others are, so they must not get lost.
    #[serde(flatten)]
    pub extra: Map<String, Value>,
}

impl Manifest {
    /// The manifest of a release of this implementation. What is known only after packing (the download, its hash,
    /// the signature) is for the caller to fill in.
    #[must_use]
    pub fn of_this_release(version: &str, commit: &str, platform: &str) -> Self {
        Self {
            product: PRODUCT.to_string(),
            version: version.to_string(),
            artifact: ARTIFACT.to_string(),
            platform: platform.to_string(),
            commit: commit.to_string(),
            download_url: None,
            tarball_sha256: None,
            routes_hash: ROUTES_HASH.to_string(),
            capabilities: CAPABILITIES.iter().map(|name| (*name).to_string()).collect(),
            implementation: Some(IMPLEMENTATION.to_string()),
            signing_key_id: None,
            signature: None,
            extra: Map::new(),
        }
    }
}

/// One member in which two manifests differ.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Difference {
    /// Its name.
    pub member: String,
    /// What the network requires.
    pub required: String,
    /// What this node has, if it has anything.
    pub observed: Option<String>,
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let observed = self.observed.as_deref().map_or_else(|| "nothing".to_string(), printable);
        write!(f, "{}: required {}, observed {observed}", self.member, printable(&self.required))
    }
}

/// Where `observed` is not what is `required`, in the order of protocol.md section 8. The tarball's hash counts only
/// where the required manifest has one: a node that was built in place has none.
#[must_use]
pub fn differences(required: &Manifest, observed: &Manifest) -> Vec<Difference> {
    let members = [
        ("version", Some(&required.version), Some(&observed.version)),
        ("platform", Some(&required.platform), Some(&observed.platform)),
        ("commit", Some(&required.commit), Some(&observed.commit)),
        ("routes_hash", Some(&required.routes_hash), Some(&observed.routes_hash)),
        ("tarball_sha256", required.tarball_sha256.as_ref(), observed.tarball_sha256.as_ref()),
    ];
    members
        .into_iter()
        .filter_map(|(member, required, observed)| {
            let required = required?;
            (Some(required) != observed).then(|| Difference {
                member: member.to_string(),
                required: required.clone(),
                observed: observed.cloned(),
            })
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::crypto::pure::Pure;
    use serde_json::json;

    #[test]
    fn the_hash_of_the_routes_is_the_deployed_networks() {
        assert_eq!(routes_hash(&Pure, &ROUTES), ROUTES_HASH);
    }

    #[test]
    fn capabilities_say_the_same_as_an_object_and_as_names() {
        let object = serde_json::to_value(Capabilities::ALL).unwrap();
        assert_eq!(object.as_object().unwrap().len(), CAPABILITIES.len());
        for name in CAPABILITIES {
            assert_eq!(object[name], true, "{name}");
        }
    }

    #[test]
    fn a_manifest_leaves_out_what_it_does_not_know() {
        let manifest = Manifest::of_this_release("0.1.0", "abc", "linux-x64");
        assert_eq!(
            serde_json::to_value(&manifest).unwrap(),
            json!({
                "product": "consensus-node", "version": "0.1.0", "artifact": "native-tarball",
                "platform": "linux-x64", "commit": "abc", "routes_hash": ROUTES_HASH,
                "capabilities": CAPABILITIES, "implementation": "rust",
            })
        );
    }

    #[test]
    fn platforms_have_the_networks_names() {
        assert_eq!(platform("linux", "x86_64"), "linux-x64");
        assert_eq!(platform("linux", "aarch64"), "linux-arm64");
        assert_eq!(platform("linux", "arm"), "linux-arm");
        assert_eq!(platform("macos", "aarch64"), "darwin-arm64");
    }

    #[test]
    fn differences_come_in_the_order_of_the_protocol() {
        let observed = Manifest::of_this_release("1", "c", "linux-x64");
        let mut required = Manifest::of_this_release("2", "d", "linux-arm");
        required.routes_hash = "sha256:0".into();
        required.tarball_sha256 = Some("sha256:1".into());
        let names: Vec<_> = differences(&required, &observed).into_iter().map(|d| d.member).collect();
        assert_eq!(names, ["version", "platform", "commit", "routes_hash", "tarball_sha256"]);
        assert_eq!(
            differences(&required, &observed)[4].to_string(),
            "tarball_sha256: required sha256:1, observed nothing"
        );
    }

    #[test]
    fn a_tarball_hash_that_nobody_requires_is_no_difference() {
        let required = Manifest::of_this_release("1", "c", "linux-x64");
        let mut observed = required.clone();
        observed.tarball_sha256 = Some("sha256:1".into());
        observed.artifact = "other".into();
        assert_eq!(differences(&required, &observed), []);
    }
}
