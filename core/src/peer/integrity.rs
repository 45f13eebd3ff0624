//! The server's judgement of an integrity payload: whose it is, and whether it is of the required release
//! (protocol.md section 8).

use alloc::vec::Vec;
use core::fmt;

use serde_json::Value;

use crate::crypto::Crypto;
use crate::release::integrity::{self, IntegrityError};
use crate::release::manifest::{Difference, Manifest, differences};
use crate::time::Now;

/// Why a node's integrity payload is not believed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Doubt {
    /// The payload itself does not hold.
    Payload(IntegrityError),
    /// The node is another release than the required one.
    Differs(Vec<Difference>),
}

impl fmt::Display for Doubt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Payload(error) => error.fmt(f),
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
    let payload = integrity::verify(crypto, payload, Some(node_key), now).map_err(Doubt::Payload)?;
    match required.map(|required| differences(required, &payload.manifest)) {
        Some(found) if !found.is_empty() => Err(Doubt::Differs(found)),
        _ => Ok(payload.manifest),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::crypto::Drbg;
    use crate::crypto::identity::Identity;
    use crate::crypto::pure::Pure;
    use core::time::Duration;

    #[test]
    fn only_the_required_release_of_the_right_node_is_believed() {
        let now = Now { monotonic: Duration::ZERO, unix: Duration::from_secs(1_790_000_000) };
        let identity = Identity::from_seed(Pure, &[1; 32]);
        let manifest = Manifest::of_this_release("1.0.0", "abc", "linux-x64");
        let payload = integrity::build(&identity, &manifest, now, &mut Drbg::new([2; 32]));
        let payload = serde_json::to_value(payload).unwrap();
        let check = |key: &[u8; 32], required| verify(&Pure, &payload, key, required, now);
        assert_eq!(check(identity.public_key(), None).unwrap(), manifest);
        assert_eq!(check(identity.public_key(), Some(&manifest)).unwrap(), manifest);
        assert_eq!(check(&[0; 32], None), Err(Doubt::Payload(IntegrityError::Key)));
        let required = Manifest::of_this_release("9.9.9", "abc", "linux-x64");
        let Err(Doubt::Differs(found)) = check(identity.public_key(), Some(&required)) else { panic!() };
        assert_eq!(found.len(), 1);
    }
}
