//! Cryptography behind one trait, so that the machines do not know whose it is (protocol.md section 1).

mod drbg;
pub mod identity;
pub mod pem;
pub mod pure;

use core::fmt;

pub use drbg::Drbg;

/// A P-256 public key as the wire has it: the raw uncompressed point, `0x04‖X‖Y`.
pub type Point = [u8; 65];

/// Nonce of ChaCha20-Poly1305.
pub type Nonce = [u8; 12];

/// Tag of ChaCha20-Poly1305.
pub type Tag = [u8; 16];

/// The bytes of a peer's public key are not an uncompressed point on P-256.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BadPoint;

impl fmt::Display for BadPoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the public key is not an uncompressed point on P-256")
    }
}

impl core::error::Error for BadPoint {}

/// The primitives. A provider is a value without state of its own; randomness is handed in, and a provider that
/// cannot be seeded (the accelerated one) may draw its own for key agreement alone.
pub trait Crypto: Clone {
    /// An ephemeral P-256 private key, used once.
    type EphemeralSecret;
    /// An Ed25519 private key, ready for use; zeroised when dropped.
    type SigningKey;
    /// A ChaCha20-Poly1305 key, ready for use; zeroised when dropped.
    type AeadKey;

    /// A fresh key pair.
    fn generate_ephemeral(&self, rng: &mut Drbg) -> (Self::EphemeralSecret, Point);

    /// ECDH: the x-coordinate of the shared point. Consumes the secret: there is no second use.
    ///
    /// # Errors
    /// The peer's point is not on the curve, or not uncompressed.
    fn agree(
        &self,
        secret: Self::EphemeralSecret,
        peer: &Point,
    ) -> Result<zeroize::Zeroizing<[u8; 32]>, BadPoint>;

    /// The signing key of a seed (RFC 8032).
    fn signing_key(&self, seed: &[u8; 32]) -> Self::SigningKey;

    /// The public half.
    fn public_key(&self, key: &Self::SigningKey) -> [u8; 32];

    /// An Ed25519 signature.
    fn sign(&self, key: &Self::SigningKey, message: &[u8]) -> [u8; 64];

    /// Whether the signature is the key's over the message.
    fn verify(&self, public_key: &[u8; 32], message: &[u8], signature: &[u8; 64]) -> bool;

    /// The AEAD key of 32 bytes.
    fn aead_key(&self, key: &[u8; 32]) -> Self::AeadKey;

    /// Encrypts in place.
    fn seal(&self, key: &Self::AeadKey, nonce: &Nonce, aad: &[u8], in_out: &mut [u8]) -> Tag;

    /// Decrypts in place; `false`, and unspecified bytes, when the tag does not verify.
    #[must_use]
    fn open(&self, key: &Self::AeadKey, nonce: &Nonce, aad: &[u8], in_out: &mut [u8], tag: &Tag) -> bool;

    /// SHA-256 of the parts, one after the other.
    fn sha256(&self, parts: &[&[u8]]) -> [u8; 32];

    /// HKDF-SHA256, extract and expand (RFC 5869). `out` is at most 8160 bytes; all callers use 16 or 32.
    fn hkdf_sha256(&self, salt: &[u8], ikm: &[u8], info: &[u8], out: &mut [u8]);
}

/// Equality in a time that depends on the lengths alone.
#[must_use]
pub fn constant_time_eq(a: &[u8], b: &[u8]) -> bool {
    use subtle::ConstantTimeEq as _;
    a.ct_eq(b).into()
}
