//! Does one hot path so many times, on cryptography that weighs nothing: `scripts/instructions.sh` counts the
//! instructions of that, which are then the node's own.
//!
//! ```text
//! instructions list
//! instructions PATH TIMES MOST
//! ```
//!
//! `MOST` times are prepared whatever `TIMES` is, so that the difference of two runs is what was done alone.

mod paths;

use std::process::ExitCode;

use consensus_core::crypto::{BadPoint, Crypto, Drbg, Nonce, Point, Tag};

/// No cryptography: every key is one key, every tag and signature is right, and nothing is hidden.
#[derive(Clone, Copy, Debug, Default)]
struct Weightless;

impl Crypto for Weightless {
    type EphemeralSecret = ();
    type SigningKey = ();
    type AeadKey = ();

    fn generate_ephemeral(&self, _: &mut Drbg) -> ((), Point) {
        ((), [4; 65])
    }

    fn agree(&self, (): Self::EphemeralSecret, _: &Point) -> Result<zeroize::Zeroizing<[u8; 32]>, BadPoint> {
        Ok([0; 32].into())
    }

    fn signing_key(&self, _: &[u8; 32]) {}

    fn public_key(&self, (): &Self::SigningKey) -> [u8; 32] {
        [1; 32]
    }

    fn sign(&self, (): &Self::SigningKey, _: &[u8]) -> [u8; 64] {
        [2; 64]
    }

    fn verify(&self, _: &[u8; 32], _: &[u8], _: &[u8; 64]) -> bool {
        true
    }

    fn aead_key(&self, _: &[u8; 32]) {}

    fn seal(&self, (): &Self::AeadKey, _: &Nonce, _: &[u8], _: &mut [u8]) -> Tag {
        [3; 16]
    }

    fn open(&self, (): &Self::AeadKey, _: &Nonce, _: &[u8], _: &mut [u8], _: &Tag) -> bool {
        true
    }

    /// Tells tickets apart, which end differently.
    fn sha256(&self, parts: &[&[u8]]) -> [u8; 32] {
        let mut hash = [0; 32];
        for end in parts.iter().filter_map(|part| part.last_chunk::<8>()) {
            for (byte, add) in hash.iter_mut().zip(end) {
                *byte ^= add;
            }
        }
        hash
    }

    fn hkdf_sha256(&self, _: &[u8], _: &[u8], _: &[u8], out: &mut [u8]) {
        out.fill(5);
    }
}

fn main() -> ExitCode {
    let arguments: Vec<_> = std::env::args().skip(1).collect();
    match arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["list"] => {
            for name in paths::NAMES {
                println!("{name}");
            }
        }
        [wanted, times, most] => {
            let (Ok(times), Ok(most)) = (times.parse(), most.parse()) else {
                eprintln!("instructions: TIMES and MOST are numbers");
                return ExitCode::from(2);
            };
            let Some(name) = paths::NAMES.into_iter().find(|name| name.to_string() == wanted) else {
                eprintln!("instructions: no path is called {wanted}");
                return ExitCode::from(2);
            };
            let mut path = name.find::<Weightless>();
            let prepared: Vec<_> = (0..most).map(|_| path()).collect();
            let mut prepared = prepared.into_iter();
            prepared.by_ref().take(times).for_each(|work| work());
            // What was not done is not taken down either: that would count.
            std::mem::forget((prepared, path));
        }
        // As any benchmark is called by cargo: there is nothing to time here.
        _ => println!("instructions: see scripts/instructions.sh"),
    }
    ExitCode::SUCCESS
}
