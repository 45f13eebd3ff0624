//! The accelerated provider: ring, which TLS has linked already, where it is faster than core's own.

use consensus_core::crypto::pure::Pure;
use consensus_core::crypto::{BadPoint, Crypto, Drbg, Nonce, Point, Tag};
use ring::aead;
use ring::agreement::{ECDH_P256, EphemeralPrivateKey, UnparsedPublicKey, agree_ephemeral};
use ring::rand::SystemRandom;
use zeroize::Zeroizing;

/// The provider of the shells: P-256 and ChaCha20-Poly1305 are ring's. Ed25519, SHA-256 and HKDF are core's own, which
/// compiled as in a release are as fast as ring's or faster for messages of the lengths that are signed and hashed here
/// (`cargo bench -p shell-blocking --bench primitives`); and where signatures are judged by one implementation, the two
/// providers cannot differ about those that implementations differ about.
///
/// Key agreement draws the system's randomness and leaves the [`Drbg`] handed in alone, since ring takes no seed:
/// what has to be repeatable uses [`Pure`]. What ring refuses although its documentation gives it no reason to, the
/// pure provider does. ring does not zeroise an ephemeral key; it is gone after its one use.
#[derive(Clone, Copy, Debug, Default)]
pub struct Fast;

/// An ephemeral private key, and whose.
pub enum EphemeralSecret {
    /// ring's.
    Ring(EphemeralPrivateKey),
    /// Of the pure provider: the system gave no randomness.
    Pure(<Pure as Crypto>::EphemeralSecret),
}

/// The bytes of an AEAD key. ring expands them anew for each operation, which costs it next to nothing: a key that it
/// keeps is not zeroised.
pub struct AeadKey(Zeroizing<[u8; 32]>);

impl std::fmt::Debug for EphemeralSecret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("EphemeralSecret")
    }
}

impl std::fmt::Debug for AeadKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("AeadKey")
    }
}

impl AeadKey {
    fn expand(&self) -> Option<aead::LessSafeKey> {
        aead::UnboundKey::new(&aead::CHACHA20_POLY1305, &*self.0).ok().map(aead::LessSafeKey::new)
    }
}

fn generate() -> Option<(EphemeralPrivateKey, Point)> {
    let secret = EphemeralPrivateKey::generate(&ECDH_P256, &SystemRandom::new()).ok()?;
    let point = secret.compute_public_key().ok()?.as_ref().try_into().ok()?;
    Some((secret, point))
}

impl Crypto for Fast {
    type EphemeralSecret = EphemeralSecret;
    type SigningKey = <Pure as Crypto>::SigningKey;
    type AeadKey = AeadKey;

    fn generate_ephemeral(&self, rng: &mut Drbg) -> (Self::EphemeralSecret, Point) {
        if let Some((secret, point)) = generate() {
            return (EphemeralSecret::Ring(secret), point);
        }
        let (secret, point) = Pure.generate_ephemeral(rng);
        (EphemeralSecret::Pure(secret), point)
    }

    fn agree(&self, secret: Self::EphemeralSecret, peer: &Point) -> Result<Zeroizing<[u8; 32]>, BadPoint> {
        let secret = match secret {
            EphemeralSecret::Ring(secret) => secret,
            EphemeralSecret::Pure(secret) => return Pure.agree(secret, peer),
        };
        agree_ephemeral(secret, &UnparsedPublicKey::new(&ECDH_P256, peer), |shared| {
            let mut out = Zeroizing::new([0; 32]);
            out.copy_from_slice(shared);
            out
        })
        .map_err(|_| BadPoint)
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
        AeadKey(Zeroizing::new(*key))
    }

    fn seal(&self, key: &Self::AeadKey, nonce: &Nonce, aad: &[u8], in_out: &mut [u8]) -> Tag {
        let sealed = key.expand().and_then(|key| {
            let nonce = aead::Nonce::assume_unique_for_key(*nonce);
            key.seal_in_place_separate_tag(nonce, aead::Aad::from(aad), in_out).ok()
        });
        let Some(sealed) = sealed else {
            return Pure.seal(&Pure.aead_key(&key.0), nonce, aad, in_out);
        };
        let mut tag = [0; 16];
        tag.copy_from_slice(sealed.as_ref());
        tag
    }

    fn open(&self, key: &Self::AeadKey, nonce: &Nonce, aad: &[u8], in_out: &mut [u8], tag: &Tag) -> bool {
        let Some(key) = key.expand() else {
            return Pure.open(&Pure.aead_key(&key.0), nonce, aad, in_out, tag);
        };
        let nonce = aead::Nonce::assume_unique_for_key(*nonce);
        key.open_in_place_separate_tag(nonce, aead::Aad::from(aad), (*tag).into(), in_out, 0..).is_ok()
    }

    fn sha256(&self, parts: &[&[u8]]) -> [u8; 32] {
        Pure.sha256(parts)
    }

    fn hkdf_sha256(&self, salt: &[u8], ikm: &[u8], info: &[u8], out: &mut [u8]) {
        Pure.hkdf_sha256(salt, ikm, info, out);
    }
}
