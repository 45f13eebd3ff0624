//! Cryptography that protects nothing, so that ten thousand nodes fit on two cores.
//!
//! It has the shapes of the real thing, and keeps apart what that keeps apart: another key, nonce, message or point gives
//! another tag, signature or secret, so that replays, mix-ups and damage are refused as ever. But texts stay readable,
//! and whoever knows a public key can sign with it. It is for machines in virtual time alone.

use consensus_core::crypto::{BadPoint, Crypto, Drbg, Nonce, Point, Tag, constant_time_eq};
use zeroize::Zeroizing;

/// The provider. See the module: it protects nothing.
#[derive(Clone, Copy, Debug, Default)]
pub struct Sham;

/// A mix of 64-bit words that is no cryptographic hash. However its input is cut into parts, the result is the same.
#[derive(Clone, Copy, Debug)]
pub struct Mix {
    a: u64,
    b: u64,
    /// Bytes that do not make a word yet, from the low end up.
    part: u64,
    length: u64,
}

impl Mix {
    const fn new(purpose: u64) -> Self {
        Self { a: purpose ^ 0x9e37_79b9_7f4a_7c15, b: 0xd1b5_4a32_d192_ed03, part: 0, length: 0 }
    }

    fn word(&mut self, word: u64) {
        self.a = (self.a ^ word).wrapping_mul(0xff51_afd7_ed55_8ccd).rotate_left(29) ^ self.b;
        self.b = self.b.wrapping_add(word).wrapping_mul(0xc4ce_b9fe_1a85_ec53).rotate_left(31);
    }

    fn byte(&mut self, byte: u8) {
        self.part |= u64::from(byte) << (8 * (self.length % 8));
        self.length += 1;
        if self.length % 8 == 0 {
            let word = std::mem::take(&mut self.part);
            self.word(word);
        }
    }

    fn update(&mut self, mut bytes: &[u8]) {
        while self.length % 8 != 0 {
            let Some((first, rest)) = bytes.split_first() else { return };
            self.byte(*first);
            bytes = rest;
        }
        let (whole, rest) = words(bytes);
        for word in whole {
            self.word(word);
            self.length += 8;
        }
        for byte in rest {
            self.byte(*byte);
        }
    }

    /// A part of a structure: its length goes in as well, so that no two structures run together.
    fn piece(mut self, bytes: &[u8]) -> Self {
        self.update(bytes);
        self.update(&(bytes.len() as u64).to_le_bytes());
        self
    }

    fn finish(mut self) -> [u8; 32] {
        let (part, length) = (self.part, self.length);
        self.word(part);
        self.word(length);
        let mut out = [0; 32];
        for (number, word) in (1_u64..).zip(out.chunks_exact_mut(8)) {
            self.word(number);
            let mut z = self.a ^ self.b.rotate_left(17);
            z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
            word.copy_from_slice(&(z ^ (z >> 31)).to_le_bytes());
        }
        out
    }
}

/// The whole words of bytes, and what is left.
fn words(bytes: &[u8]) -> (impl Iterator<Item = u64>, &[u8]) {
    let chunks = bytes.chunks_exact(8);
    let rest = chunks.remainder();
    (chunks.map(|chunk| u64::from_le_bytes(chunk.first_chunk().copied().unwrap_or_default())), rest)
}

/// What the parts of the provider must not be taken for each other.
const PUBLIC: u64 = 1;
const SIGNATURE: u64 = 2;
const POINT: u64 = 3;
const SECRET: u64 = 4;
const KEY: u64 = 5;
const HASH: u64 = 6;
const KDF: u64 = 7;

/// Four odd numbers of 64 bits. Multiplied by a public four they make a point, and the order does not matter: that is
/// all that key agreement needs here.
#[derive(Clone, Copy, Debug)]
pub struct Scalar([u64; 4]);

const BASE: [u64; 4] =
    [0x9e37_79b9_7f4a_7c15, 0xbf58_476d_1ce4_e5b9, 0x94d0_49bb_1331_11eb, 0xd6e8_feb8_6659_fd93];

impl Scalar {
    fn of(bytes: &[u8; 32]) -> Self {
        let (whole, _) = words(bytes);
        let mut scalar = [1; 4];
        for (place, word) in scalar.iter_mut().zip(whole) {
            *place = word | 1;
        }
        Self(scalar)
    }

    fn times(&self, other: &[u64; 4]) -> [u8; 32] {
        let mut out = [0; 32];
        for ((place, a), b) in out.chunks_exact_mut(8).zip(&self.0).zip(other) {
            place.copy_from_slice(&a.wrapping_mul(*b).to_le_bytes());
        }
        out
    }
}

/// `0x04`, the product, and a check of it: other bytes are no point.
fn point_of(x: &[u8; 32]) -> Point {
    let mut point = [4; 65];
    point[1..33].copy_from_slice(x);
    point[33..].copy_from_slice(&Mix::new(POINT).piece(x).finish());
    point
}

fn signature_of(public_key: &[u8; 32], message: &[u8]) -> [u8; 64] {
    let first = Mix::new(SIGNATURE).piece(public_key).piece(message).finish();
    let mut signature = [0; 64];
    signature[..32].copy_from_slice(&first);
    signature[32..].copy_from_slice(&Mix::new(SIGNATURE).piece(&first).finish());
    signature
}

fn tag_of(key: &Mix, nonce: &Nonce, aad: &[u8], text: &[u8]) -> Tag {
    let mut tag = Tag::default();
    tag.copy_from_slice(&key.piece(nonce).piece(aad).piece(text).finish()[..16]);
    tag
}

impl Crypto for Sham {
    type EphemeralSecret = Scalar;
    /// The public key.
    type SigningKey = [u8; 32];
    /// A mix that has taken the key in.
    type AeadKey = Mix;

    fn generate_ephemeral(&self, rng: &mut Drbg) -> (Scalar, Point) {
        let scalar = Scalar::of(&rng.bytes());
        (scalar, point_of(&scalar.times(&BASE)))
    }

    fn agree(&self, secret: Scalar, peer: &Point) -> Result<Zeroizing<[u8; 32]>, BadPoint> {
        let x = peer[1..].first_chunk::<32>().ok_or(BadPoint)?;
        if point_of(x) != *peer {
            return Err(BadPoint);
        }
        let product = secret.times(&Scalar::of(x).0);
        Ok(Zeroizing::new(Mix::new(SECRET).piece(&product).finish()))
    }

    fn signing_key(&self, seed: &[u8; 32]) -> [u8; 32] {
        Mix::new(PUBLIC).piece(seed).finish()
    }

    fn public_key(&self, key: &[u8; 32]) -> [u8; 32] {
        *key
    }

    fn sign(&self, key: &[u8; 32], message: &[u8]) -> [u8; 64] {
        signature_of(key, message)
    }

    fn verify(&self, public_key: &[u8; 32], message: &[u8], signature: &[u8; 64]) -> bool {
        constant_time_eq(&signature_of(public_key, message), signature)
    }

    fn aead_key(&self, key: &[u8; 32]) -> Mix {
        Mix::new(KEY).piece(key)
    }

    fn seal(&self, key: &Mix, nonce: &Nonce, aad: &[u8], in_out: &mut [u8]) -> Tag {
        tag_of(key, nonce, aad, in_out)
    }

    fn open(&self, key: &Mix, nonce: &Nonce, aad: &[u8], in_out: &mut [u8], tag: &Tag) -> bool {
        tag_of(key, nonce, aad, in_out) == *tag
    }

    fn sha256(&self, parts: &[&[u8]]) -> [u8; 32] {
        let mut mix = Mix::new(HASH);
        for part in parts {
            mix.update(part);
        }
        mix.finish()
    }

    fn hkdf_sha256(&self, salt: &[u8], ikm: &[u8], info: &[u8], out: &mut [u8]) {
        let extracted = Mix::new(KDF).piece(salt).piece(ikm).piece(info);
        for (number, place) in (0_u64..).zip(out.chunks_mut(32)) {
            let block = extracted.piece(&number.to_le_bytes()).finish();
            place.copy_from_slice(&block[..place.len()]);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hash_does_not_depend_on_how_its_input_is_cut() {
        let bytes: Vec<u8> = (0..100).collect();
        let whole = Sham.sha256(&[&bytes]);
        for first in 0..=bytes.len() {
            let (a, rest) = bytes.split_at(first);
            let (b, c) = rest.split_at(rest.len() / 3);
            assert_eq!(Sham.sha256(&[a, b, &[], c]), whole, "{first}");
        }
        assert_ne!(Sham.sha256(&[&bytes[..99]]), whole);
        assert_ne!(Sham.sha256(&[b"\0"]), Sham.sha256(&[b"\0\0"]), "the length counts");
    }

    #[test]
    fn both_ends_agree_and_a_third_does_not() {
        let mut rng = Drbg::new([1; 32]);
        let pairs: Vec<_> = (0..3).map(|_| Sham.generate_ephemeral(&mut rng)).collect();
        let shared = |a: usize, b: usize| Sham.agree(pairs[a].0, &pairs[b].1).unwrap();
        assert_eq!(shared(0, 1), shared(1, 0));
        assert_ne!(shared(0, 1), shared(0, 2));
        for at in 0..65 {
            let mut point = pairs[0].1;
            point[at] ^= 1;
            assert_eq!(Sham.agree(pairs[1].0, &point).unwrap_err(), BadPoint, "{at}");
        }
    }

    #[test]
    fn a_frame_opens_with_its_own_key_nonce_head_and_text_alone() {
        let (key, other) = (Sham.aead_key(&[1; 32]), Sham.aead_key(&[2; 32]));
        let tag = Sham.seal(&key, &[3; 12], b"head", &mut b"text".to_vec());
        let open = |key: &Mix, nonce: u8, aad: &[u8], text: &[u8]| {
            Sham.open(key, &[nonce; 12], aad, &mut text.to_vec(), &tag)
        };
        assert!(open(&key, 3, b"head", b"text"));
        assert!(!open(&other, 3, b"head", b"text"));
        assert!(!open(&key, 4, b"head", b"text"));
        assert!(!open(&key, 3, b"hea", b"dtext"));
        assert!(!open(&key, 3, b"head", b"Text"));
    }

    #[test]
    fn a_signature_is_the_keys_over_the_message() {
        let (a, b) = (Sham.signing_key(&[1; 32]), Sham.signing_key(&[2; 32]));
        let signature = Sham.sign(&a, b"message");
        assert!(Sham.verify(&Sham.public_key(&a), b"message", &signature));
        assert!(!Sham.verify(&Sham.public_key(&b), b"message", &signature));
        assert!(!Sham.verify(&Sham.public_key(&a), b"massage", &signature));
        let mut bent = signature;
        bent[63] ^= 1;
        assert!(!Sham.verify(&a, b"message", &bent));
    }
}
