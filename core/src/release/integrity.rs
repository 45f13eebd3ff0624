//! The integrity payload: what a node signs about the release it runs, and how the server checks it (protocol.md
//! section 8).

use alloc::string::{String, ToString as _};
use core::fmt;
use core::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::manifest::{Manifest, PRODUCT};
use crate::crypto::identity::{Identity, verify_base64};
use crate::crypto::{Crypto, Drbg, pem};
use crate::time::Now;
use crate::wire::{canonical, hex};

/// The runtime family of protocol version 1. The server takes no other; what this program is, its manifest says.
pub const RUNTIME: &str = "bun";

/// How far the clock of a payload may be off before the server refuses it.
pub const CLOCK_TOLERANCE: Duration = Duration::from_secs(300);

/// The members that the signature covers: these eight and no others.
const SIGNED: [&str; 8] =
    ["product", "version", "runtime", "platform", "node_public_key_pem", "manifest", "timestamp", "nonce"];

/// The payload.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Integrity {
    /// `consensus-node`.
    pub product: String,
    /// The manifest's.
    pub version: String,
    /// [`RUNTIME`].
    pub runtime: String,
    /// The manifest's.
    pub platform: String,
    /// Who signs.
    pub node_public_key_pem: String,
    /// What runs.
    pub manifest: Manifest,
    /// Unix seconds.
    pub timestamp: u64,
    /// 16 random bytes, lower-case hex.
    pub nonce: String,
    /// Ed25519 over the canonical JSON of the eight members above, base64.
    pub signature: String,
}

/// The payload of this moment.
pub fn build<C: Crypto>(identity: &Identity<C>, manifest: &Manifest, now: Now, rng: &mut Drbg) -> Integrity {
    let mut payload = Integrity {
        product: PRODUCT.to_string(),
        version: manifest.version.clone(),
        runtime: RUNTIME.to_string(),
        platform: manifest.platform.clone(),
        node_public_key_pem: identity.public_key_pem().to_string(),
        manifest: manifest.clone(),
        timestamp: now.unix_seconds(),
        nonce: hex::encode(&rng.bytes::<16>()),
        signature: String::new(),
    };
    // A payload always serialises; were it not so, the signature would be one that verifies nowhere.
    let value = serde_json::to_value(&payload).unwrap_or_default();
    payload.signature = identity.sign(canonical::without(&value, "signature").as_bytes());
    payload
}

/// Why a server does not take a payload.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IntegrityError {
    /// A member is missing or of the wrong kind.
    Malformed,
    /// Another product.
    Product,
    /// A runtime that protocol version 1 does not have.
    Runtime,
    /// Not the key the node is known by.
    Key,
    /// Over [`CLOCK_TOLERANCE`] off the server's clock.
    Clock,
    /// Not the key's signature over the other members.
    Signature,
}

impl fmt::Display for IntegrityError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Malformed => "the integrity payload is incomplete or damaged",
            Self::Product => "the integrity payload is of another product",
            Self::Runtime => "the integrity payload names an unknown runtime",
            Self::Key => "the integrity payload is signed with another key than the node's",
            Self::Clock => "the integrity payload is over 300 s away from the server's clock",
            Self::Signature => "the signature of the integrity payload does not verify",
        })
    }
}

impl core::error::Error for IntegrityError {}

/// The server's half: checks a payload as it was received, and gives what it says. `node_key` is the key the node is
/// registered with; without it (during an evaluation) the payload's own key decides.
///
/// The manifest is not judged here: see [`differences`](super::manifest::differences).
///
/// # Errors
/// [`IntegrityError`], by the first check that fails.
pub fn verify<C: Crypto>(
    crypto: &C,
    payload: &Value,
    node_key: Option<&[u8; 32]>,
    now: Now,
) -> Result<Integrity, IntegrityError> {
    let read: Integrity = Deserialize::deserialize(payload).map_err(|_| IntegrityError::Malformed)?;
    if read.product != PRODUCT {
        return Err(IntegrityError::Product);
    }
    if read.runtime != RUNTIME {
        return Err(IntegrityError::Runtime);
    }
    let key = pem::decode_public(&read.node_public_key_pem).map_err(|_| IntegrityError::Malformed)?;
    if node_key.is_some_and(|known| *known != key) {
        return Err(IntegrityError::Key);
    }
    if read.timestamp.abs_diff(now.unix_seconds()) > CLOCK_TOLERANCE.as_secs() {
        return Err(IntegrityError::Clock);
    }
    // The signed text is made anew of exactly these members, as received: a payload with more of them than the
    // protocol has is not a way to sign something else.
    let signed: Map<String, Value> =
        SIGNED.iter().filter_map(|name| Some(((*name).to_string(), payload.get(name)?.clone()))).collect();
    let text = canonical::to_canonical(&Value::Object(signed));
    if verify_base64(crypto, &key, text.as_bytes(), &read.signature) {
        Ok(read)
    } else {
        Err(IntegrityError::Signature)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::crypto::pure::Pure;
    use crate::wire::canonical::tests::transcripts;
    use serde_json::json;

    fn now(unix: u64) -> Now {
        Now { monotonic: Duration::ZERO, unix: Duration::from_secs(unix) }
    }

    fn identity() -> Identity<Pure> {
        Identity::from_seed(Pure, &[5; 32])
    }

    fn payload() -> Value {
        let manifest = Manifest::of_this_release("0.1.0", "abc", "linux-x64");
        let built = build(&identity(), &manifest, now(1000), &mut Drbg::new([1; 32]));
        serde_json::to_value(built).unwrap()
    }

    fn check(payload: &Value, at: u64) -> Result<Integrity, IntegrityError> {
        verify(&Pure, payload, Some(identity().public_key()), now(at))
    }

    #[test]
    fn a_payload_has_the_nine_members_of_the_protocol_and_verifies() {
        let payload = payload();
        let mut names: alloc::vec::Vec<_> = payload.as_object().unwrap().keys().map(String::as_str).collect();
        let mut expected = SIGNED.to_vec();
        expected.push("signature");
        names.sort_unstable();
        expected.sort_unstable();
        assert_eq!(names, expected);
        assert_eq!(payload["runtime"], "bun");
        assert_eq!(payload["manifest"]["implementation"], "rust");
        assert_eq!(payload["nonce"].as_str().map(str::len), Some(32));
        assert!(check(&payload, 1000).is_ok());
    }

    #[test]
    fn members_beyond_the_protocol_neither_help_nor_hurt() {
        let mut payload = payload();
        payload["extra"] = json!(1);
        assert!(check(&payload, 1000).is_ok());
    }

    #[test]
    fn whatever_is_changed_breaks_the_signature() {
        for (pointer, value) in [
            ("/version", json!("0.1.1")),
            ("/platform", json!("linux-arm")),
            ("/nonce", json!("00")),
            ("/timestamp", json!(1001)),
            ("/manifest/commit", json!("abd")),
            ("/manifest/routes_hash", json!("sha256:0")),
        ] {
            let mut payload = payload();
            *payload.pointer_mut(pointer).unwrap() = value;
            assert_eq!(check(&payload, 1000), Err(IntegrityError::Signature), "{pointer}");
        }
        let mut payload = payload();
        payload["manifest"]["added"] = json!(true);
        assert_eq!(check(&payload, 1000), Err(IntegrityError::Signature));
    }

    #[test]
    fn other_products_runtimes_and_keys_are_told_apart() {
        for (member, value, error) in [
            ("product", json!("other"), IntegrityError::Product),
            ("runtime", json!("rust"), IntegrityError::Runtime),
            ("node_public_key_pem", json!("x"), IntegrityError::Malformed),
            ("timestamp", json!("now"), IntegrityError::Malformed),
            ("node_public_key_pem", json!(pem::encode_public(&[1; 32])), IntegrityError::Key),
        ] {
            let mut payload = payload();
            payload[member] = value;
            assert_eq!(check(&payload, 1000), Err(error), "{member}");
        }
        assert_eq!(check(&json!([]), 1000), Err(IntegrityError::Malformed));
    }

    #[test]
    fn the_clock_may_be_300_seconds_off_either_way() {
        let payload = payload();
        for at in [700, 1300] {
            assert!(check(&payload, at).is_ok(), "{at}");
        }
        for at in [699, 1301] {
            assert_eq!(check(&payload, at), Err(IntegrityError::Clock), "{at}");
        }
    }

    #[test]
    fn payloads_of_the_deployed_node_verify() {
        let Some(messages) = transcripts() else { return };
        let mut seen = 0;
        for message in &messages {
            if message["type"] == "eval_response" && message["action"] == "integrity" {
                let payload = &message["result"];
                let at = now(payload["timestamp"].as_u64().unwrap());
                verify(&Pure, payload, None, at).unwrap();
                seen += 1;
            }
        }
        assert!(seen > 0);
    }
}
