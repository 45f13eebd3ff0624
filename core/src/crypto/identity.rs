//! The node's long-lived key pair.

use alloc::string::String;

use zeroize::Zeroizing;

use super::pem::{self, PemError};
use super::{Crypto, Drbg};
use crate::wire::base64;

/// Who the node is: an Ed25519 key pair (protocol.md section 1).
pub struct Identity<C: Crypto> {
    crypto: C,
    key: C::SigningKey,
    public_key: [u8; 32],
    public_key_pem: String,
}

impl<C: Crypto> core::fmt::Debug for Identity<C> {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("Identity").field("public_key_pem", &self.public_key_pem).finish_non_exhaustive()
    }
}

impl<C: Crypto> Identity<C> {
    /// The identity of a seed.
    pub fn from_seed(crypto: C, seed: &[u8; 32]) -> Self {
        let key = crypto.signing_key(seed);
        let public_key = crypto.public_key(&key);
        Self { crypto, key, public_key, public_key_pem: pem::encode_public(&public_key) }
    }

    /// The identity in `keys/node.key`.
    ///
    /// # Errors
    /// The text is not a PKCS#8 PEM of an Ed25519 key.
    pub fn from_private_pem(crypto: C, text: &str) -> Result<Self, PemError> {
        Ok(Self::from_seed(crypto, &*pem::decode_private(text)?))
    }

    /// A new identity, with the text to keep in `keys/node.key`.
    pub fn generate(crypto: C, rng: &mut Drbg) -> (Self, Zeroizing<String>) {
        let seed = Zeroizing::new(rng.bytes::<32>());
        (Self::from_seed(crypto, &seed), pem::encode_private(&seed))
    }

    /// The public key.
    pub fn public_key(&self) -> &[u8; 32] {
        &self.public_key
    }

    /// The public key as SPKI PEM.
    pub fn public_key_pem(&self) -> &str {
        &self.public_key_pem
    }

    /// A signature over `message`, base64.
    pub fn sign(&self, message: &[u8]) -> String {
        base64::encode(&self.sign_bytes(message))
    }

    /// A signature over `message`.
    pub fn sign_bytes(&self, message: &[u8]) -> [u8; 64] {
        self.crypto.sign(&self.key, message)
    }
}

/// Whether `signature` (base64) is `public_key`'s over `message`.
pub fn verify_base64<C: Crypto>(crypto: &C, public_key: &[u8; 32], message: &[u8], signature: &str) -> bool {
    base64::decode_array(signature).is_some_and(|signature| crypto.verify(public_key, message, &signature))
}
