//! The operations that are measured.

use alloc::format;
use alloc::string::{String, ToString as _};
use alloc::vec::Vec;
use core::hint::black_box;

use crate::crypto::{Crypto, Drbg, Nonce};

/// The associated data of a sealed frame has this length (protocol.md section 2), so that of the measured one too.
const AAD: [u8; 14] = [0x10; 14];

/// Which operation, and the size of its operand in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Spec {
    Sha256(usize),
    Aead(usize),
    Copy(usize),
    /// One turn of the shell's scheduler: nothing to run here.
    Turn,
}

impl Spec {
    /// As it stands in a bench result.
    pub(super) fn name(self) -> String {
        match self {
            Self::Sha256(size) => format!("sha256-{}", size_name(size)),
            Self::Aead(size) => format!("chacha20-poly1305-{}", size_name(size)),
            Self::Copy(size) => format!("memory-copy-{}", size_name(size)),
            Self::Turn => "event-loop".to_string(),
        }
    }

    pub(super) const fn size(self) -> usize {
        match self {
            Self::Sha256(size) | Self::Aead(size) | Self::Copy(size) => size,
            Self::Turn => 0,
        }
    }
}

pub(super) fn size_name(size: usize) -> String {
    match size {
        0..1024 => format!("{size}B"),
        1024..1_048_576 => format!("{}KB", size / 1024),
        _ => format!("{}MB", size / 1_048_576),
    }
}

/// An operation with the memory it works on.
pub(super) enum Kernel<C: Crypto> {
    Sha256 { input: Vec<u8> },
    Aead { key: C::AeadKey, nonce: Nonce, text: Vec<u8> },
    Copy { from: Vec<u8>, to: Vec<u8> },
    Turn,
}

impl<C: Crypto> Kernel<C> {
    /// `None` when there is no memory for it: a small machine answers with an unreliable result instead of dying.
    pub(super) fn new(spec: Spec, crypto: &C, rng: &mut Drbg) -> Option<Self> {
        Some(match spec {
            Spec::Sha256(size) => Self::Sha256 { input: random(size, rng)? },
            Spec::Aead(size) => Self::Aead {
                key: crypto.aead_key(&rng.bytes()),
                nonce: rng.bytes(),
                text: random(size, rng)?,
            },
            // Not random, which would take longer than the measurement, but touched: untouched pages all map to
            // the same zeros and would be copied from the cache.
            Spec::Copy(size) => Self::Copy { from: filled(size, 0xa5)?, to: filled(size, 0x5a)? },
            Spec::Turn => Self::Turn,
        })
    }

    /// Does the operation `count` times. Operands and results go through `black_box`, so that no compiler may drop
    /// or merge any of them.
    pub(super) fn run(&mut self, crypto: &C, count: u64) {
        match self {
            Self::Sha256 { input } => {
                for _ in 0..count {
                    black_box(crypto.sha256(&[black_box(input.as_slice())]));
                }
            }
            Self::Aead { key, nonce, text } => {
                for _ in 0..count {
                    let text = black_box(text.as_mut_slice());
                    let tag = black_box(crypto.seal(key, nonce, &AAD, text));
                    black_box(crypto.open(key, nonce, &AAD, black_box(text), &tag));
                }
            }
            Self::Copy { from, to } => {
                for _ in 0..count {
                    black_box(to.as_mut_slice()).copy_from_slice(black_box(from.as_slice()));
                    black_box(to.as_mut_slice());
                }
            }
            Self::Turn => {}
        }
    }
}

fn filled(size: usize, byte: u8) -> Option<Vec<u8>> {
    let mut buffer = Vec::new();
    buffer.try_reserve_exact(size).ok()?;
    buffer.resize(size, byte);
    Some(buffer)
}

pub(super) fn random(size: usize, rng: &mut Drbg) -> Option<Vec<u8>> {
    let mut buffer = filled(size, 0)?;
    rng.fill(&mut buffer);
    Some(buffer)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::crypto::pure::Pure;

    #[test]
    fn a_copy_arrives() {
        let mut kernel = Kernel::new(Spec::Copy(1000), &Pure, &mut Drbg::new([1; 32])).unwrap();
        kernel.run(&Pure, 1);
        let Kernel::Copy { from, to } = kernel else { unreachable!() };
        assert_eq!(from, to);
        assert_eq!(to, [0xa5; 1000]);
    }

    #[test]
    fn what_is_sealed_is_opened_again() {
        let mut kernel = Kernel::new(Spec::Aead(100), &Pure, &mut Drbg::new([1; 32])).unwrap();
        let text = |kernel: &Kernel<Pure>| match kernel {
            Kernel::Aead { text, .. } => text.clone(),
            _ => unreachable!(),
        };
        let before = text(&kernel);
        kernel.run(&Pure, 3);
        assert_eq!(text(&kernel), before);
    }

    #[test]
    fn no_memory_is_no_kernel_and_no_crash() {
        let spec = Spec::Copy(isize::MAX as usize);
        assert!(Kernel::new(spec, &Pure, &mut Drbg::new([1; 32])).is_none());
    }
}
