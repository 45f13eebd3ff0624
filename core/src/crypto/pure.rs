//! The reference provider: pure Rust, `no_std`, and deterministic given its seed.

use chacha20poly1305::aead::AeadInOut as _;
use chacha20poly1305::{ChaCha20Poly1305, KeyInit as _};
use p256::elliptic_curve::sec1::ToSec1Point as _;
use sha2::{Digest as _, Sha256};
use zeroize::Zeroizing;

use super::{BadPoint, Crypto, Drbg, Nonce, Point, Tag};

/// The provider that `core` itself brings.
#[derive(Clone, Copy, Debug, Default)]
pub struct Pure;

/// An Ed25519 key pair in memory.
pub struct SigningKey(ed25519_compact::KeyPair);

impl core::fmt::Debug for SigningKey {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str("SigningKey")
    }
}

impl Pure {
    /// The ephemeral key of a given scalar, for test vectors. `None` when it is zero or not below the group
    /// order.
    #[must_use]
    pub fn ephemeral_from_scalar(scalar: &[u8; 32]) -> Option<(p256::SecretKey, Point)> {
        let secret = p256::SecretKey::from_slice(scalar).ok()?;
        let encoded = secret.public_key().to_sec1_point(false);
        let point = encoded.as_bytes().try_into().ok()?;
        Some((secret, point))
    }
}

impl Crypto for Pure {
    type EphemeralSecret = p256::SecretKey;
    type SigningKey = SigningKey;
    type AeadKey = ChaCha20Poly1305;

    fn generate_ephemeral(&self, rng: &mut Drbg) -> (Self::EphemeralSecret, Point) {
        // A random string is a valid scalar with probability 1 − 2⁻³²; two draws in a row fail once in 2⁶⁴.
        loop {
            let scalar = Zeroizing::new(rng.bytes::<32>());
            if let Some(pair) = Self::ephemeral_from_scalar(&scalar) {
                return pair;
            }
        }
    }

    fn agree(&self, secret: Self::EphemeralSecret, peer: &Point) -> Result<Zeroizing<[u8; 32]>, BadPoint> {
        if peer[0] != 0x04 {
            return Err(BadPoint);
        }
        let peer = p256::PublicKey::from_sec1_bytes(peer).map_err(|_| BadPoint)?;
        let shared = p256::ecdh::diffie_hellman(secret.to_nonzero_scalar(), peer.as_affine());
        let mut out = Zeroizing::new([0; 32]);
        out.copy_from_slice(shared.raw_secret_bytes());
        Ok(out)
    }

    fn signing_key(&self, seed: &[u8; 32]) -> Self::SigningKey {
        SigningKey(ed25519_compact::KeyPair::from_seed(ed25519_compact::Seed::new(*seed)))
    }

    fn public_key(&self, key: &Self::SigningKey) -> [u8; 32] {
        *key.0.pk
    }

    fn sign(&self, key: &Self::SigningKey, message: &[u8]) -> [u8; 64] {
        *key.0.sk.sign(message, None)
    }

    fn verify(&self, public_key: &[u8; 32], message: &[u8], signature: &[u8; 64]) -> bool {
        ed25519_compact::PublicKey::new(*public_key)
            .verify(message, &ed25519_compact::Signature::new(*signature))
            .is_ok()
    }

    fn aead_key(&self, key: &[u8; 32]) -> Self::AeadKey {
        ChaCha20Poly1305::new(key.into())
    }

    fn seal(&self, key: &Self::AeadKey, nonce: &Nonce, aad: &[u8], in_out: &mut [u8]) -> Tag {
        // The cipher refuses only what is longer than 256 GiB, and no frame is over `MAX_MESSAGE`.
        match key.encrypt_inout_detached(nonce.into(), aad, in_out.into()) {
            Ok(tag) => tag.into(),
            Err(_) => [0; 16],
        }
    }

    fn open(&self, key: &Self::AeadKey, nonce: &Nonce, aad: &[u8], in_out: &mut [u8], tag: &Tag) -> bool {
        key.decrypt_inout_detached(nonce.into(), aad, in_out.into(), tag.into()).is_ok()
    }

    fn sha256(&self, parts: &[&[u8]]) -> [u8; 32] {
        let mut hash = Sha256::new();
        for part in parts {
            hash.update(part);
        }
        hash.finalize().into()
    }

    fn hkdf_sha256(&self, salt: &[u8], ikm: &[u8], info: &[u8], out: &mut [u8]) {
        // Expanding fails only over 8160 bytes, which the trait excludes.
        let expanded = hkdf::Hkdf::<Sha256>::new(Some(salt), ikm).expand(info, out);
        debug_assert!(expanded.is_ok(), "hkdf output over 8160 bytes");
    }
}
