//! Core's own cryptography, by somebody who looks on: what is sealed and opened during a replay is what the messages
//! said.

use std::cell::RefCell;
use std::rc::Rc;

use consensus_core::crypto::pure::Pure;
use consensus_core::crypto::{BadPoint, Crypto, Drbg, Nonce, Point, Tag};
use zeroize::Zeroizing;

/// What was seen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Seen {
    /// A peer said this.
    Opened(Vec<u8>),
    /// The node says this.
    Sealed(Vec<u8>),
}

/// The provider; clones see together.
#[derive(Clone, Debug, Default)]
pub(super) struct Spy(Rc<RefCell<Vec<Seen>>>);

impl Spy {
    /// What was seen since this was last asked.
    pub(super) fn take(&self) -> Vec<Seen> {
        self.0.take()
    }
}

impl Crypto for Spy {
    type EphemeralSecret = <Pure as Crypto>::EphemeralSecret;
    type SigningKey = <Pure as Crypto>::SigningKey;
    type AeadKey = <Pure as Crypto>::AeadKey;

    fn generate_ephemeral(&self, rng: &mut Drbg) -> (Self::EphemeralSecret, Point) {
        Pure.generate_ephemeral(rng)
    }

    fn agree(&self, secret: Self::EphemeralSecret, peer: &Point) -> Result<Zeroizing<[u8; 32]>, BadPoint> {
        Pure.agree(secret, peer)
    }

    fn signing_key(&self, seed: &[u8; 32]) -> Self::SigningKey {
        Pure.signing_key(seed)
    }

    fn public_key(&self, key: &Self::SigningKey) -> [u8; 32] {
        Pure.public_key(key)
    }

    fn sign(&self, key: &Self::SigningKey, message: &[u8]) -> [u8; 64] {
        Pure.sign(key, message)
    }

    fn verify(&self, public_key: &[u8; 32], message: &[u8], signature: &[u8; 64]) -> bool {
        Pure.verify(public_key, message, signature)
    }

    fn aead_key(&self, key: &[u8; 32]) -> Self::AeadKey {
        Pure.aead_key(key)
    }

    fn seal(&self, key: &Self::AeadKey, nonce: &Nonce, aad: &[u8], in_out: &mut [u8]) -> Tag {
        self.0.borrow_mut().push(Seen::Sealed(in_out.to_vec()));
        Pure.seal(key, nonce, aad, in_out)
    }

    fn open(&self, key: &Self::AeadKey, nonce: &Nonce, aad: &[u8], in_out: &mut [u8], tag: &Tag) -> bool {
        let is_open = Pure.open(key, nonce, aad, in_out, tag);
        if is_open {
            self.0.borrow_mut().push(Seen::Opened(in_out.to_vec()));
        }
        is_open
    }

    fn sha256(&self, parts: &[&[u8]]) -> [u8; 32] {
        Pure.sha256(parts)
    }

    fn hkdf_sha256(&self, salt: &[u8], ikm: &[u8], info: &[u8], out: &mut [u8]) {
        Pure.hkdf_sha256(salt, ikm, info, out);
    }
}
