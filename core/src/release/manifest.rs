//! The release manifest (protocol.md section 8).

use alloc::string::String;
use alloc::vec::Vec;

use serde::{Deserialize, Serialize};

/// A release manifest.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Manifest {
    /// `consensus-node`.
    pub product: String,
    /// The release's version.
    pub version: String,
    /// `native-tarball`: what kind of artifact it is.
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
}
