//! Operations that are sampled one after the other: hash, cipher, copies, turns of the shell's scheduler.

use alloc::boxed::Box;
use alloc::string::{String, ToString as _};
use alloc::vec::Vec;
use core::time::Duration;

use super::Step;
use super::kernels::{Kernel, Spec};
use super::report::{BenchResult, Cpu, CryptoReport, Memory, Report, Sized};
use super::runner::{EVENT_LOOP, Plan, Sampler, THROUGHPUT};
use crate::crypto::{Crypto, Drbg};
use crate::io::Measurement;

const KIB: usize = 1024;
const MIB: usize = 1024 * KIB;

/// Operands of the hash and the cipher (protocol.md section 5).
const MESSAGES: [usize; 3] = [64, KIB, 16 * KIB];
/// The headline of both.
const MESSAGE_HEADLINE: usize = KIB;
/// Sizes of the copies.
const COPIES: [usize; 3] = [MIB, 16 * MIB, 64 * MIB];
/// Their headline.
const COPY_HEADLINE: usize = 16 * MIB;

/// The measurement of some operations.
pub(super) struct Sampled<C: Crypto> {
    measurement: Measurement,
    crypto: C,
    rng: Drbg,
    tasks: &'static [usize],
    /// Finished tasks: the operand's size, the result, and the exact time of its operations.
    results: Vec<(usize, BenchResult, Duration)>,
    /// The task under way. Its buffers live here and nowhere else: they are freed when the next task begins.
    current: Option<(Spec, Kernel<C>, Sampler)>,
}

impl<C: Crypto> Sampled<C> {
    /// Of `Cpu`, `Crypto`, `Memory` or, for any other, `EventLoop`.
    pub(super) fn new(measurement: Measurement, crypto: C, rng: Drbg) -> Self {
        let tasks: &'static [usize] = match measurement {
            Measurement::Cpu | Measurement::Crypto => &MESSAGES,
            Measurement::Memory => &COPIES,
            _ => &[0],
        };
        let mut job = Self { measurement, crypto, rng, tasks, results: Vec::new(), current: None };
        job.begin_next();
        job
    }

    pub(super) fn step(&self) -> Step {
        match &self.current {
            Some((Spec::Turn, _, sampler)) => Step::Turn { count: sampler.batch() },
            Some(_) => Step::Run,
            None => Step::Done(Box::new(self.report())),
        }
    }

    pub(super) fn run(&mut self) {
        if let Some((_, kernel, sampler)) = &mut self.current {
            kernel.run(&self.crypto, sampler.batch());
        }
    }

    pub(super) fn timed(&mut self, elapsed: Duration) {
        let Some((_, _, sampler)) = &mut self.current else { return };
        sampler.timed(elapsed);
        if sampler.is_done() {
            self.finish_current();
            self.begin_next();
        }
    }

    pub(super) fn progress(&self) -> f32 {
        let under_way = self.current.as_ref().map_or(0.0, |(_, _, sampler)| sampler.progress());
        // At most three tasks: exact in any float.
        ((self.results.len() as f32 + under_way) / self.tasks.len().max(1) as f32).clamp(0.0, 1.0)
    }

    fn plan(&self) -> Plan {
        if self.measurement == Measurement::EventLoop { EVENT_LOOP } else { THROUGHPUT }
    }

    fn begin_next(&mut self) {
        let plan = self.plan();
        // More than one round only where a kernel gets no memory.
        while let Some(&size) = self.tasks.get(self.results.len()) {
            let spec = match self.measurement {
                Measurement::Cpu => Spec::Sha256(size),
                Measurement::Crypto => Spec::Aead(size),
                Measurement::Memory => Spec::Copy(size),
                _ => Spec::Turn,
            };
            if let Some(kernel) = Kernel::new(spec, &self.crypto, &mut self.rng) {
                self.current = Some((spec, kernel, Sampler::new(plan)));
                return;
            }
            self.results.push((size, Sampler::new(plan).result(spec.name()), Duration::ZERO));
        }
    }

    fn finish_current(&mut self) {
        if let Some((spec, _, sampler)) = self.current.take() {
            self.results.push((spec.size(), sampler.result(spec.name()), sampler.measured()));
        }
    }

    fn report(&self) -> Report {
        let reliable = !self.results.is_empty() && self.results.iter().all(|(_, result, _)| result.reliable);
        match self.measurement {
            Measurement::Cpu => Report::Cpu(Cpu {
                algorithm: "sha256".to_string(),
                results: self.sized(1),
                bytes_per_second: self.headline(MESSAGE_HEADLINE, 1),
                reliable,
            }),
            Measurement::Crypto => Report::Crypto(CryptoReport {
                algorithm: "chacha20-poly1305".to_string(),
                results: self.sized(1),
                bytes_per_second: self.headline(MESSAGE_HEADLINE, 1),
                total_bytes_per_second: self.total_bytes_per_second(),
                reliable,
            }),
            Measurement::Memory => {
                let bytes_per_second = self.headline(COPY_HEADLINE, 2);
                Report::Memory(Memory {
                    copy: self.sized(2),
                    bandwidth_gbps: bytes_per_second / 1e9,
                    bytes_per_second,
                    reliable,
                })
            }
            _ => Report::EventLoop(
                self.results
                    .first()
                    .map_or_else(|| Sampler::new(EVENT_LOOP).result(String::new()), |(_, r, _)| r.clone()),
            ),
        }
    }

    /// `moved`: how many bytes an operation moves for each byte of its operand.
    fn sized(&self, moved: u32) -> Vec<Sized> {
        let sized = |(size, bench, _): &(usize, BenchResult, Duration)| Sized {
            size_bytes: *size as u64,
            bytes_per_second: bytes_per_second(*size, moved, bench),
            bench: bench.clone(),
        };
        self.results.iter().map(sized).collect()
    }

    fn headline(&self, wanted: usize, moved: u32) -> f64 {
        let result = self.results.iter().find(|(size, _, _)| *size == wanted);
        result.map_or(0.0, |(size, bench, _)| bytes_per_second(*size, moved, bench))
    }

    fn total_bytes_per_second(&self) -> f64 {
        let bytes: f64 = self.results.iter().map(|(size, r, _)| *size as f64 * r.total_ops as f64).sum();
        let time: Duration = self.results.iter().map(|(_, _, time)| *time).sum();
        if time.is_zero() { 0.0 } else { bytes / time.as_secs_f64() }
    }
}

fn bytes_per_second(size: usize, moved: u32, bench: &BenchResult) -> f64 {
    size as f64 * f64::from(moved) * bench.ops_per_second
}
