//! The server's half of the integrity check (protocol.md section 8).

use alloc::format;
use alloc::string::{String, ToString as _};
use alloc::vec::Vec;
use core::fmt;
use core::time::Duration;

use serde::Deserialize as _;
use serde_json::{Map, Value};

use crate::crypto::identity::verify_base64;
use crate::crypto::{Crypto, constant_time_eq, pem};
use crate::release::manifest::{Difference, Manifest, differences};
use crate::text::printable;
use crate::time::Now;
use crate::tunnel::handshake::seconds;
use crate::wire::canonical;

/// How far a node's clock may be off.
pub const CLOCK_TOLERANCE: Duration = Duration::from_secs(300);

/// The members that are signed. The server rebuilds exactly these, so a payload that signed more does not verify.
const SIGNED: [&str; 8] =
    ["product", "version", "runtime", "platform", "node_public_key_pem", "manifest", "timestamp", "nonce"];

/// Why a node's integrity payload is not believed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Doubt {
    /// A member is missing or wrong.
    Malformed(String),
    /// Signed by another key than the node's.
    WrongKey,
    /// The signature does not verify.
    BadSignature,
    /// The clock is off.
    StaleClock {
        /// Seconds between the two clocks.
        off_by: u64,
    },
    /// The node is another release than the required one.
    Differs(Vec<Difference>),
}

impl fmt::Display for Doubt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Malformed(detail) => write!(f, "malformed: {detail}"),
            Self::WrongKey => f.write_str("the key is not the node's"),
            Self::BadSignature => f.write_str("the signature does not verify"),
            Self::StaleClock { off_by } => write!(f, "the timestamp is {off_by} s off"),
            Self::Differs(differences) => {
                f.write_str("another release than the required one")?;
                for difference in differences {
                    write!(f, "; {difference}")?;
                }
                Ok(())
            }
        }
    }
}

impl core::error::Error for Doubt {}

/// Verifies a payload of the node that has `node_key`; gives the manifest it vouches for.
///
/// # Errors
/// The first thing that is wrong with it.
pub fn verify<C: Crypto>(
    crypto: &C,
    payload: &Value,
    node_key: &[u8; 32],
    required: Option<&Manifest>,
    now: Now,
) -> Result<Manifest, Doubt> {
    let text = |name: &str| {
        payload
            .get(name)
            .and_then(Value::as_str)
            .ok_or_else(|| Doubt::Malformed(format!("{name} is not a string")))
    };
    for name in ["product", "version", "runtime", "platform", "nonce"] {
        text(name)?;
    }
    if text("runtime")? != "bun" {
        return Err(Doubt::Malformed("runtime is not of protocol version 1".to_string()));
    }
    let key = pem::decode_public(text("node_public_key_pem")?)
        .map_err(|e| Doubt::Malformed(format!("node_public_key_pem: {e}")))?;
    if !constant_time_eq(&key, node_key) {
        return Err(Doubt::WrongKey);
    }
    let signed: Map<String, Value> = SIGNED
        .iter()
        .filter_map(|name| payload.get(*name).map(|value| ((*name).to_string(), value.clone())))
        .collect();
    let signed = canonical::to_canonical(&Value::Object(signed));
    if !verify_base64(crypto, &key, signed.as_bytes(), text("signature")?) {
        return Err(Doubt::BadSignature);
    }
    let timestamp = payload.get("timestamp").and_then(Value::as_f64).unwrap_or_default();
    let off_by = seconds(timestamp).abs_diff(now.unix_seconds());
    if off_by > CLOCK_TOLERANCE.as_secs() {
        return Err(Doubt::StaleClock { off_by });
    }
    let manifest = Manifest::deserialize(payload.get("manifest").unwrap_or(&Value::Null))
        .map_err(|e| Doubt::Malformed(printable(&format!("manifest: {e}"))))?;
    match required.map(|required| differences(required, &manifest)) {
        Some(found) if !found.is_empty() => Err(Doubt::Differs(found)),
        _ => Ok(manifest),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::crypto::identity::Identity;
    use crate::crypto::pure::Pure;

    const NOW: Now = Now { monotonic: Duration::ZERO, unix: Duration::from_secs(1_790_000_000) };

    fn identity() -> Identity<Pure> {
        Identity::from_seed(Pure, &[1; 32])
    }

    fn payload() -> Value {
        let manifest = Manifest::of_this_release("1.0.0", "abc", "linux-x64");
        let mut payload = serde_json::json!({
            "product": "consensus-node", "version": "1.0.0", "runtime": "bun", "platform": "linux-x64",
            "node_public_key_pem": identity().public_key_pem(), "manifest": manifest,
            "timestamp": NOW.unix_seconds(), "nonce": "00112233445566778899aabbccddeeff",
        });
        payload["signature"] =
            Value::from(identity().sign(canonical::without(&payload, "signature").as_bytes()));
        payload
    }

    fn check(payload: &Value, required: Option<&Manifest>, now: Now) -> Result<Manifest, Doubt> {
        verify(&Pure, payload, identity().public_key(), required, now)
    }

    #[test]
    fn what_the_node_signed_verifies_and_gives_its_manifest() {
        assert_eq!(check(&payload(), None, NOW).unwrap().version, "1.0.0");
        let mut with_more = payload();
        with_more["unsigned"] = Value::from(1);
        assert!(check(&with_more, None, NOW).is_ok());
    }

    #[test]
    fn each_kind_of_doubt_is_told_apart() {
        let mut changed = payload();
        changed["version"] = Value::from("2");
        assert_eq!(check(&changed, None, NOW), Err(Doubt::BadSignature));
        let mut bare = payload();
        bare.as_object_mut().unwrap().remove("nonce");
        assert!(matches!(check(&bare, None, NOW), Err(Doubt::Malformed(_))));
        let later = Now { unix: NOW.unix + Duration::from_secs(301), ..NOW };
        assert_eq!(check(&payload(), None, later), Err(Doubt::StaleClock { off_by: 301 }));
        assert_eq!(verify(&Pure, &payload(), &[0; 32], None, NOW), Err(Doubt::WrongKey));
        let required = Manifest::of_this_release("9.9.9", "abc", "linux-x64");
        let Err(Doubt::Differs(differences)) = check(&payload(), Some(&required), NOW) else { panic!() };
        assert_eq!(differences.len(), 1);
    }
}
