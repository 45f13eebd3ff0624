//! Each primitive of both providers: `cargo bench -p shell-blocking --bench primitives`.

use consensus_core::crypto::pure::Pure;
use consensus_core::crypto::{Crypto, Drbg, Nonce};
use divan::Bencher;
use divan::counter::BytesCount;
use shell_blocking::fast::Fast;

const SIZES: [usize; 3] = [1024, 16 * 1024, 256 * 1024];

/// The associated data of a sealed frame has this length.
const AAD: [u8; 14] = [0x10; 14];
const NONCE: Nonce = [9; 12];

fn main() {
    divan::main();
}

fn random(size: usize) -> Vec<u8> {
    let mut out = vec![0; size];
    Drbg::new([1; 32]).fill(&mut out);
    out
}

#[divan::bench(types = [Pure, Fast], args = SIZES)]
fn seal<C: Crypto + Default>(bencher: Bencher<'_, '_>, size: usize) {
    let (crypto, mut text) = (C::default(), random(size));
    let key = crypto.aead_key(&[7; 32]);
    bencher.counter(BytesCount::new(size)).bench_local(|| crypto.seal(&key, &NONCE, &AAD, &mut text));
}

#[divan::bench(types = [Pure, Fast], args = SIZES)]
fn open<C: Crypto + Default>(bencher: Bencher<'_, '_>, size: usize) {
    let (crypto, mut sealed) = (C::default(), random(size));
    let key = crypto.aead_key(&[7; 32]);
    let tag = crypto.seal(&key, &NONCE, &AAD, &mut sealed);
    bencher
        .counter(BytesCount::new(size))
        .with_inputs(|| sealed.clone())
        .bench_local_refs(|text| assert!(crypto.open(&key, &NONCE, &AAD, text, &tag)));
}

#[divan::bench(types = [Pure, Fast], args = SIZES)]
fn sha256<C: Crypto + Default>(bencher: Bencher<'_, '_>, size: usize) {
    let (crypto, input) = (C::default(), random(size));
    bencher.counter(BytesCount::new(size)).bench_local(|| crypto.sha256(&[divan::black_box(&input)]));
}

#[divan::bench(types = [Pure, Fast], args = SIZES)]
fn sign<C: Crypto + Default>(bencher: Bencher<'_, '_>, size: usize) {
    let (crypto, message) = (C::default(), random(size));
    let key = crypto.signing_key(&[7; 32]);
    bencher.bench_local(|| crypto.sign(&key, divan::black_box(&message)));
}

#[divan::bench(types = [Pure, Fast], args = SIZES)]
fn verify<C: Crypto + Default>(bencher: Bencher<'_, '_>, size: usize) {
    let (crypto, message) = (C::default(), random(size));
    let key = crypto.signing_key(&[7; 32]);
    let (public_key, signature) = (crypto.public_key(&key), crypto.sign(&key, &message));
    bencher.bench_local(|| assert!(crypto.verify(&public_key, divan::black_box(&message), &signature)));
}

/// The three keys of a session, which are 80 bytes in all.
#[divan::bench(types = [Pure, Fast])]
fn hkdf_sha256<C: Crypto + Default>(bencher: Bencher<'_, '_>) {
    let crypto = C::default();
    let info = b"consensus-node-tunnel-v1:client-to-server";
    bencher.bench_local(|| {
        let mut out = [0; 80];
        let (first, rest) = out.split_at_mut(32);
        let (second, third) = rest.split_at_mut(32);
        for part in [first, second, third] {
            crypto.hkdf_sha256(divan::black_box(&[1; 32]), &[2; 32], info, part);
        }
        out
    });
}

#[divan::bench(types = [Pure, Fast])]
fn generate_ephemeral<C: Crypto + Default>(bencher: Bencher<'_, '_>) {
    let (crypto, mut rng) = (C::default(), Drbg::new([1; 32]));
    bencher.bench_local(|| crypto.generate_ephemeral(&mut rng));
}

#[divan::bench(types = [Pure, Fast])]
fn agree<C: Crypto + Default>(bencher: Bencher<'_, '_>) {
    let (crypto, mut rng) = (C::default(), Drbg::new([1; 32]));
    let (_, peer) = crypto.generate_ephemeral(&mut rng);
    bencher
        .with_inputs(|| crypto.generate_ephemeral(&mut rng).0)
        .bench_local_values(|secret| assert!(crypto.agree(secret, &peer).is_ok()));
}
