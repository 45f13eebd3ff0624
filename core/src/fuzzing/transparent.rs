//! Cryptography that costs nothing and hides nothing, so that a fuzzer reaches past tags and signatures. Never part of
//! a node.
//!
//! What it keeps apart is what machines may count on: keys of two sessions, directions and identities differ, a frame
//! opens under its own key alone, a signature is of one key over one message. What it gives up is secrecy, and that a
//! frame's header is bound to its tag: whoever is here may write any sequence.

use zeroize::Zeroizing;

use crate::crypto::pure::Pure;
use crate::crypto::{BadPoint, Crypto, Drbg, Nonce, Point, Tag};

/// The provider.
#[derive(Clone, Copy, Debug)]
pub(super) struct Transparent;

impl Crypto for Transparent {
    type EphemeralSecret = [u8; 32];
    type SigningKey = [u8; 32];
    type AeadKey = [u8; 32];

    /// The point is the secret, and what is not its own complement is not on this curve.
    fn generate_ephemeral(&self, rng: &mut Drbg) -> ([u8; 32], Point) {
        let secret = rng.bytes::<32>();
        let mut point = [4; 65];
        point[1..33].copy_from_slice(&secret);
        point[33..].copy_from_slice(&secret.map(|byte| !byte));
        (secret, point)
    }

    fn agree(&self, secret: [u8; 32], peer: &Point) -> Result<Zeroizing<[u8; 32]>, BadPoint> {
        let is_point = peer[0] == 4 && (1..33).all(|at| peer[at] == !peer[at + 32]);
        if !is_point {
            return Err(BadPoint);
        }
        Ok(Zeroizing::new(core::array::from_fn(|at| secret[at] ^ peer[at + 1])))
    }

    fn signing_key(&self, seed: &[u8; 32]) -> [u8; 32] {
        *seed
    }

    fn public_key(&self, key: &[u8; 32]) -> [u8; 32] {
        key.map(|byte| byte.wrapping_add(1))
    }

    fn sign(&self, key: &[u8; 32], message: &[u8]) -> [u8; 64] {
        let mut signature = [0; 64];
        signature[..32].copy_from_slice(&self.public_key(key));
        signature[32..].copy_from_slice(&self.sha256(&[message]));
        signature
    }

    fn verify(&self, public_key: &[u8; 32], message: &[u8], signature: &[u8; 64]) -> bool {
        signature[..32] == public_key[..] && signature[32..] == self.sha256(&[message])
    }

    fn aead_key(&self, key: &[u8; 32]) -> [u8; 32] {
        *key
    }

    fn seal(&self, key: &[u8; 32], nonce: &Nonce, _aad: &[u8], _in_out: &mut [u8]) -> Tag {
        let mut tag = [0; 16];
        tag[..4].copy_from_slice(&key[..4]);
        tag[4..].copy_from_slice(nonce);
        tag
    }

    fn open(&self, key: &[u8; 32], nonce: &Nonce, _aad: &[u8], _in_out: &mut [u8], tag: &Tag) -> bool {
        tag[..4] == key[..4] && tag[4..] == nonce[..]
    }

    fn sha256(&self, parts: &[&[u8]]) -> [u8; 32] {
        Pure.sha256(parts)
    }

    fn hkdf_sha256(&self, salt: &[u8], ikm: &[u8], info: &[u8], out: &mut [u8]) {
        Pure.hkdf_sha256(salt, ikm, info, out);
    }
}
