//! Randomness from a seed.

use sha2::{Digest as _, Sha256};
use zeroize::Zeroize as _;

/// A deterministic random bit generator: SHA-256 in counter mode, with the key replaced after every request so
/// that a later leak of the state does not tell what came before (fast key erasure).
///
/// The shell seeds it with 32 bytes of the system's randomness; a test or a trace seeds it with what it likes.
pub struct Drbg {
    key: [u8; 32],
}

impl core::fmt::Debug for Drbg {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str("Drbg")
    }
}

impl Drop for Drbg {
    fn drop(&mut self) {
        self.key.zeroize();
    }
}

impl Drbg {
    /// A generator whose output is a function of `seed` alone.
    #[must_use]
    pub const fn new(seed: [u8; 32]) -> Self {
        Self { key: seed }
    }

    /// Fills `out`.
    pub fn fill(&mut self, out: &mut [u8]) {
        for (counter, chunk) in (1u64..).zip(out.chunks_mut(32)) {
            let mut block = self.block(counter);
            chunk.copy_from_slice(&block[..chunk.len()]);
            block.zeroize();
        }
        self.key = self.block(0);
    }

    /// `N` random bytes.
    pub fn bytes<const N: usize>(&mut self) -> [u8; N] {
        let mut out = [0; N];
        self.fill(&mut out);
        out
    }

    /// A number under `bound`, or 0 where `bound` is 0. The bias of the modulus is under 2⁻³² for every bound
    /// under 2³²: good enough for jitter, not for keys.
    pub fn below(&mut self, bound: u64) -> u64 {
        u64::from_be_bytes(self.bytes()).checked_rem(bound).unwrap_or(0)
    }

    /// An independent generator, for a machine that runs beside this one.
    #[must_use]
    pub fn fork(&mut self) -> Self {
        Self::new(self.bytes())
    }

    fn block(&self, counter: u64) -> [u8; 32] {
        Sha256::new().chain_update(self.key).chain_update(counter.to_be_bytes()).finalize().into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_seed_gives_the_same_bytes_and_no_two_requests_are_alike() {
        let mut a = Drbg::new([7; 32]);
        let mut b = Drbg::new([7; 32]);
        let first: [u8; 100] = a.bytes();
        assert_eq!(first, b.bytes::<100>());
        assert_ne!(first, a.bytes::<100>());
        assert_ne!(Drbg::new([8; 32]).bytes::<100>(), first);
    }

    #[test]
    fn blocks_of_one_request_differ() {
        let bytes: [u8; 96] = Drbg::new([1; 32]).bytes();
        assert_ne!(bytes[..32], bytes[32..64]);
        assert_ne!(bytes[32..64], bytes[64..]);
    }
}
