//! The accelerated provider and the pure one, against each other and against Wycheproof's vectors.
#![cfg(feature = "fast-crypto")]
#![expect(clippy::unwrap_used, reason = "a test that cannot go on panics and says where")]

use std::fmt::Debug;

use consensus_core::crypto::pure::Pure;
use consensus_core::crypto::{Crypto, Drbg, Point};
use shell_blocking::fast::Fast;
use wycheproof::{aead, ecdh, eddsa, hkdf};

const ROUNDS: usize = 300;

fn rng(test: u8) -> Drbg {
    Drbg::new([test; 32])
}

/// Up to `bound` random bytes.
fn some(rng: &mut Drbg, bound: u64) -> Vec<u8> {
    let mut out = vec![0; usize::try_from(rng.below(bound + 1)).unwrap()];
    rng.fill(&mut out);
    out
}

/// One bit of `bytes` is turned.
fn damage(rng: &mut Drbg, bytes: &mut [u8]) {
    let bit = usize::try_from(rng.below(bytes.len() as u64 * 8)).unwrap();
    bytes[bit / 8] ^= 1 << (bit % 8);
}

/// What both providers say, which must be the same.
#[track_caller]
fn both<T: PartialEq + Debug>(pure: T, fast: T) -> T {
    assert_eq!(pure, fast, "pure on the left, fast on the right");
    fast
}

fn verify(public_key: &[u8; 32], message: &[u8], signature: &[u8; 64]) -> bool {
    both(Pure.verify(public_key, message, signature), Fast.verify(public_key, message, signature))
}

fn takes(point: &Point) -> bool {
    fn one<C: Crypto>(crypto: C, point: &Point) -> bool {
        let (secret, _) = crypto.generate_ephemeral(&mut rng(1));
        crypto.agree(secret, point).is_ok()
    }
    both(one(Pure, point), one(Fast, point))
}

fn seal<C: Crypto>(
    crypto: C,
    key: &[u8; 32],
    nonce: &[u8; 12],
    aad: &[u8],
    text: &[u8],
) -> (Vec<u8>, [u8; 16]) {
    let mut text = text.to_vec();
    let tag = crypto.seal(&crypto.aead_key(key), nonce, aad, &mut text);
    (text, tag)
}

/// The plaintext, where the tag verifies.
fn open(key: &[u8; 32], nonce: &[u8; 12], aad: &[u8], text: &[u8], tag: &[u8; 16]) -> Option<Vec<u8>> {
    fn one<C: Crypto>(
        crypto: C,
        key: &[u8; 32],
        nonce: &[u8; 12],
        aad: &[u8],
        text: &[u8],
        tag: &[u8; 16],
    ) -> Option<Vec<u8>> {
        let mut text = text.to_vec();
        crypto.open(&crypto.aead_key(key), nonce, aad, &mut text, tag).then_some(text)
    }
    both(one(Pure, key, nonce, aad, text, tag), one(Fast, key, nonce, aad, text, tag))
}

#[test]
fn the_accelerated_provider_and_its_keys_go_to_other_threads() {
    fn goes<T: Send + Sync + 'static>() {}
    goes::<Fast>();
    goes::<<Fast as Crypto>::EphemeralSecret>();
    goes::<<Fast as Crypto>::SigningKey>();
    goes::<<Fast as Crypto>::AeadKey>();
}

#[test]
fn hashes_are_alike_however_the_input_is_cut() {
    let rng = &mut rng(2);
    for _ in 0..ROUNDS {
        let (a, b, c) = (some(rng, 200), some(rng, 200), some(rng, 5000));
        let parts = [&a[..], &b, &c];
        let hash = both(Pure.sha256(&parts), Fast.sha256(&parts));
        assert_eq!(hash, Fast.sha256(&[&parts.concat()]));
    }
    assert_eq!(Fast.sha256(&[]), Pure.sha256(&[&[]]));
}

#[test]
fn derived_keys_are_alike() {
    let rng = &mut rng(3);
    for round in 0..ROUNDS {
        let (salt, ikm, info) = (some(rng, 100), some(rng, 100), some(rng, 100));
        // The last round asks for all that there is.
        let length = if round + 1 == ROUNDS { 255 * 32 } else { usize::try_from(rng.below(200)).unwrap() };
        let derive = |out: &mut dyn FnMut(&mut [u8])| {
            let mut bytes = vec![0; length];
            out(&mut bytes);
            bytes
        };
        both(
            derive(&mut |out| Pure.hkdf_sha256(&salt, &ikm, &info, out)),
            derive(&mut |out| Fast.hkdf_sha256(&salt, &ikm, &info, out)),
        );
    }
}

#[test]
fn keys_and_signatures_are_alike_and_damaged_ones_are_refused_by_both() {
    let rng = &mut rng(4);
    for _ in 0..ROUNDS {
        let (seed, message) = (rng.bytes(), some(rng, 300));
        let (pure, fast) = (Pure.signing_key(&seed), Fast.signing_key(&seed));
        let mut public_key = both(Pure.public_key(&pure), Fast.public_key(&fast));
        let mut signature = both(Pure.sign(&pure, &message), Fast.sign(&fast, &message));
        assert!(verify(&public_key, &message, &signature));
        assert!(!verify(&public_key, &[&message[..], &[0]].concat(), &signature));
        let good = signature;
        damage(rng, &mut signature);
        assert!(!verify(&public_key, &message, &signature));
        damage(rng, &mut public_key);
        assert!(!verify(&public_key, &message, &good));
    }
}

/// A signature by a key of small order is anybody's: with `A` the identity, `R = S·B` verifies for every message.
#[test]
fn keys_of_small_order_and_unreduced_signatures_are_refused_by_both() {
    let mut identity = [0; 32];
    identity[0] = 1;
    // S = 1 and R = B, the base point.
    let mut anybodys = [0x66; 64];
    anybodys[0] = 0x58;
    anybodys[32..].fill(0);
    anybodys[32] = 1;
    assert!(!verify(&identity, b"anything", &anybodys));
    // As ring itself judges, the signature is good: what is refused is the key.
    let ring = ring::signature::UnparsedPublicKey::new(&ring::signature::ED25519, identity);
    assert!(ring.verify(b"anything", &anybodys).is_ok());

    // S + L, where L is the group's order.
    const ORDER: [u8; 32] = [
        0xed, 0xd3, 0xf5, 0x5c, 0x1a, 0x63, 0x12, 0x58, 0xd6, 0x9c, 0xf7, 0xa2, 0xde, 0xf9, 0xde, 0x14, 0, 0,
        0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0x10,
    ];
    let key = Fast.signing_key(&[1; 32]);
    let mut signature = Fast.sign(&key, b"x");
    assert!(verify(&Fast.public_key(&key), b"x", &signature));
    let mut carry = 0;
    for (byte, order) in signature[32..].iter_mut().zip(ORDER) {
        let sum = u16::from(*byte) + u16::from(order) + carry;
        *byte = sum.to_le_bytes()[0];
        carry = sum >> 8;
    }
    assert!(!verify(&Fast.public_key(&key), b"x", &signature));
}

#[test]
fn each_opens_what_the_other_sealed_and_both_refuse_what_is_damaged() {
    let rng = &mut rng(5);
    for round in 0..ROUNDS {
        let (key, nonce): ([u8; 32], [u8; 12]) = (rng.bytes(), rng.bytes());
        // All lengths about the ciphers' blocks, and some long ones.
        let text = if round < 200 { rng.bytes::<200>()[..round].to_vec() } else { some(rng, 70_000) };
        let aad = some(rng, 40);
        let (sealed, tag) =
            both(seal(Pure, &key, &nonce, &aad, &text), seal(Fast, &key, &nonce, &aad, &text));
        assert_eq!(open(&key, &nonce, &aad, &sealed, &tag).as_ref(), Some(&text));

        let mut other = key;
        damage(rng, &mut other);
        assert_eq!(open(&other, &nonce, &aad, &sealed, &tag), None);
        let mut other = nonce;
        damage(rng, &mut other);
        assert_eq!(open(&key, &other, &aad, &sealed, &tag), None);
        let mut other = tag;
        damage(rng, &mut other);
        assert_eq!(open(&key, &nonce, &aad, &sealed, &other), None);
        assert_eq!(open(&key, &nonce, &[&aad[..], &[0]].concat(), &sealed, &tag), None);
        if !sealed.is_empty() {
            let mut other = sealed.clone();
            damage(rng, &mut other);
            assert_eq!(open(&key, &nonce, &aad, &other, &tag), None);
        }
    }
}

#[test]
fn both_ends_agree_whichever_provider_they_have() {
    fn pair<A: Crypto, B: Crypto>(a: A, b: B, rng: &mut Drbg) -> ([u8; 32], [u8; 32]) {
        let ((a_secret, a_point), (b_secret, b_point)) =
            (a.generate_ephemeral(rng), b.generate_ephemeral(rng));
        assert_ne!(a_point, b_point);
        (*a.agree(a_secret, &b_point).unwrap(), *b.agree(b_secret, &a_point).unwrap())
    }
    let rng = &mut rng(6);
    for _ in 0..ROUNDS {
        let (pure, fast) = pair(Pure, Fast, rng);
        assert_eq!(pure, fast);
    }
    let (one, other) = pair(Fast, Fast, rng);
    assert_eq!(one, other);
}

#[test]
fn what_is_not_an_uncompressed_point_of_the_curve_is_refused_by_both() {
    // The point with x = 0.
    let mut zero = [0; 65];
    zero[0] = 0x04;
    zero[33..].copy_from_slice(&[
        0x66, 0x48, 0x5c, 0x78, 0x0e, 0x2f, 0x83, 0xd7, 0x24, 0x33, 0xbd, 0x5d, 0x84, 0xa0, 0x6b, 0xb6, 0x54,
        0x1c, 0x2a, 0xf3, 0x1d, 0xae, 0x87, 0x17, 0x28, 0xbf, 0x85, 0x6a, 0x17, 0x4f, 0x93, 0xf4,
    ]);
    assert!(takes(&zero));
    // The same with x written as the field's order.
    let mut unreduced = zero;
    unreduced[1..33].copy_from_slice(&[
        0xff, 0xff, 0xff, 0xff, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 0xff, 0xff, 0xff,
        0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff,
    ]);
    assert!(!takes(&unreduced));

    // Infinity, in the forms it is written in.
    let mut infinity = [0; 65];
    assert!(!takes(&infinity));
    infinity[0] = 0x04;
    assert!(!takes(&infinity));

    let rng = &mut rng(7);
    for _ in 0..ROUNDS {
        let (_, mut point) = Fast.generate_ephemeral(rng);
        assert!(takes(&point));
        // Compressed and hybrid forms of the same point, and no form at all.
        for form in [0x00, 0x01, 0x02, 0x03, 0x05, 0x06, 0x07, 0x84, 0xff] {
            let mut other = point;
            other[0] = form;
            assert!(!takes(&other), "{form:#04x}");
        }
        // Off the curve: of all the values of y, two are on it.
        damage(rng, &mut point[33..]);
        assert!(!takes(&point));
    }
}

#[test]
fn wycheproof_chacha20_poly1305() {
    let set = aead::TestSet::load(aead::TestName::ChaCha20Poly1305).unwrap();
    let mut tried = 0;
    for test in set.test_groups.iter().flat_map(|group| &group.tests) {
        let (Ok(key), Ok(nonce), Ok(tag)) =
            (test.key[..].try_into(), test.nonce[..].try_into(), test.tag[..].try_into())
        else {
            assert!(test.result.must_fail(), "{test:?} has another shape and is valid");
            continue;
        };
        let expected = (!test.result.must_fail()).then(|| test.pt.to_vec());
        assert_eq!(open(key, nonce, &test.aad, &test.ct, tag), expected, "{test:?}");
        if expected.is_some() {
            let sealed = both(
                seal(Pure, key, nonce, &test.aad, &test.pt),
                seal(Fast, key, nonce, &test.aad, &test.pt),
            );
            assert_eq!(sealed, (test.ct.to_vec(), *tag), "{test:?}");
        }
        tried += 1;
    }
    assert!(tried > 250, "{tried}");
}

#[test]
fn wycheproof_ed25519() {
    let set = eddsa::TestSet::load(eddsa::TestName::Ed25519).unwrap();
    let mut tried = 0;
    for group in &set.test_groups {
        let key = group.key.pk[..].try_into().unwrap();
        for test in &group.tests {
            let Ok(signature) = test.sig[..].try_into() else {
                assert!(test.result.must_fail(), "{test:?} has another shape and is valid");
                continue;
            };
            assert_eq!(verify(key, &test.msg, signature), !test.result.must_fail(), "{test:?}");
            tried += 1;
        }
    }
    assert!(tried > 100, "{tried}");
}

/// The accelerated provider makes its own private keys: of it, only whether it takes the public ones is seen here.
#[test]
fn wycheproof_ecdh_p256() {
    let set = ecdh::TestSet::load(ecdh::TestName::EcdhSecp256r1Ecpoint).unwrap();
    let mut tried = 0;
    for test in set.test_groups.iter().flat_map(|group| &group.tests) {
        let Ok(point) = test.public_key[..].try_into() else {
            // Compressed, empty, too long: nothing that has the type of a point.
            continue;
        };
        assert_eq!(takes(point), !test.result.must_fail(), "{test:?}");
        // A scalar is written with as many bytes as it takes, or with one zero more.
        let mut scalar = [0; 32];
        let digits = test.private_key.iter().position(|byte| *byte != 0).unwrap();
        let digits = &test.private_key[digits..];
        scalar[32 - digits.len()..].copy_from_slice(digits);
        let (secret, _) = Pure::ephemeral_from_scalar(&scalar).unwrap();
        let shared = Pure.agree(secret, point).ok().map(|shared| shared.to_vec());
        assert_eq!(shared, (!test.result.must_fail()).then(|| test.shared_secret.to_vec()), "{test:?}");
        tried += 1;
    }
    assert!(tried > 200, "{tried}");
}

#[test]
fn wycheproof_hkdf_sha256() {
    let set = hkdf::TestSet::load(hkdf::TestName::HkdfSha256).unwrap();
    let mut tried = 0;
    for test in set.test_groups.iter().flat_map(|group| &group.tests) {
        if test.size > 255 * 32 {
            assert!(test.result.must_fail(), "{test:?}");
            continue;
        }
        let mut out = [vec![0; test.size], vec![0; test.size]];
        Pure.hkdf_sha256(&test.salt, &test.ikm, &test.info, &mut out[0]);
        Fast.hkdf_sha256(&test.salt, &test.ikm, &test.info, &mut out[1]);
        let [pure, fast] = out;
        assert_eq!(both(pure, fast), test.okm.to_vec(), "{test:?}");
        tried += 1;
    }
    assert!(tried > 70, "{tried}");
}
