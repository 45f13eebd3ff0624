//! Measurements: what is run, how often, and what the times mean. The shell only runs and times.
//!
//! ```
//! use consensus_core::bench::{Job, Step};
//! use consensus_core::crypto::{Drbg, pure::Pure};
//! use consensus_core::io::Measurement;
//! use std::time::Instant;
//!
//! let mut job = Job::new(Measurement::EventLoop, Pure, Drbg::new([0; 32])).expect("not one of the shell's own");
//! let report = loop {
//!     match job.step() {
//!         Step::Run => {
//!             let start = Instant::now();
//!             job.run();
//!             job.timed(start.elapsed());
//!         }
//!         Step::Turn { count } => {
//!             let start = Instant::now();
//!             for _ in 0..count { /* post a task to the shell's scheduler and run it */ }
//!             job.timed(start.elapsed());
//!         }
//!         Step::Done(report) => break report,
//!     }
//! };
//! assert!(report.to_json().is_object());
//! ```

mod kernels;
pub mod report;
mod runner;

use alloc::boxed::Box;
use alloc::string::{String, ToString as _};
use alloc::vec::Vec;
use core::fmt;
use core::time::Duration;

use self::kernels::{Kernel, Spec};
use self::report::{BenchResult, Cpu, CryptoReport, Memory, Report, Sized};
use self::runner::{EVENT_LOOP, Plan, Sampler, THROUGHPUT};
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

/// What a [`Job`] wants next.
#[derive(Clone, Debug, PartialEq)]
pub enum Step {
    /// Take the time of one call of [`Job::run`] and hand it to [`Job::timed`].
    Run,
    /// Take the time of this many turns of the shell's own scheduler, one after the other (post a task, run it),
    /// and hand it to [`Job::timed`].
    Turn {
        /// How many.
        count: u64,
    },
    /// The measurement is complete.
    Done(Box<Report>),
}

/// One measurement under way (protocol.md section 5). Drive it as the module's example does, on a thread that does
/// nothing else; it may be dropped at any step.
pub struct Job<C: Crypto> {
    measurement: Measurement,
    crypto: C,
    rng: Drbg,
    tasks: &'static [usize],
    /// Finished tasks: the operand's size, the result, and the exact time of its operations.
    results: Vec<(usize, BenchResult, Duration)>,
    /// The task under way. Its buffers live here and nowhere else: they are freed when the next task begins.
    current: Option<(Spec, Kernel<C>, Sampler)>,
}

impl<C: Crypto> fmt::Debug for Job<C> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Job").field("measurement", &self.measurement).finish_non_exhaustive()
    }
}

impl<C: Crypto> Job<C> {
    /// Prepares a measurement. `None` for those that only the shell can do: `System` and `MemoryPressure`.
    pub fn new(measurement: Measurement, crypto: C, rng: Drbg) -> Option<Self> {
        let tasks: &'static [usize] = match measurement {
            Measurement::Cpu | Measurement::Crypto => &MESSAGES,
            Measurement::Memory => &COPIES,
            Measurement::EventLoop => &[0],
            Measurement::System | Measurement::MemoryPressure { .. } => return None,
        };
        let mut job = Self { measurement, crypto, rng, tasks, results: Vec::new(), current: None };
        job.begin_next();
        Some(job)
    }

    /// What to do next. Asking twice gives the same answer.
    #[must_use]
    pub fn step(&self) -> Step {
        match &self.current {
            Some((Spec::Turn, _, sampler)) => Step::Turn { count: sampler.batch() },
            Some(_) => Step::Run,
            None => Step::Done(Box::new(self.report())),
        }
    }

    /// Runs one batch: the part to take the time of. Does nothing where [`Job::step`] is not [`Step::Run`].
    pub fn run(&mut self) {
        if let Some((_, kernel, sampler)) = &mut self.current {
            kernel.run(&self.crypto, sampler.batch());
        }
    }

    /// Tells how long what [`Job::step`] asked for took.
    pub fn timed(&mut self, elapsed: Duration) {
        let Some((_, _, sampler)) = &mut self.current else { return };
        sampler.timed(elapsed);
        if sampler.is_done() {
            self.finish_current();
            self.begin_next();
        }
    }

    /// How much of the measurement is done, from 0 to 1; never falls.
    #[must_use]
    pub fn progress(&self) -> f32 {
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::crypto::pure::Pure;
    use serde_json::Value;

    /// Drives a job with made-up times: what `run` really takes does not matter, so it is not called.
    fn drive(measurement: Measurement, elapsed: impl Fn(&Step) -> Duration) -> (Report, u32) {
        let mut job = Job::new(measurement, Pure, Drbg::new([2; 32])).unwrap();
        let mut last = job.progress();
        for steps in 0..100_000 {
            let step = job.step();
            assert_eq!(step, job.step());
            if let Step::Done(report) = step {
                assert_eq!(job.progress().to_bits(), 1_f32.to_bits());
                return (*report, steps);
            }
            job.timed(elapsed(&step));
            assert!(job.progress() >= last, "progress fell from {last} to {}", job.progress());
            last = job.progress();
        }
        unreachable!("the job has no end");
    }

    fn all_numbers_are_finite(value: &Value) {
        match value {
            // What is not finite serialises as null.
            Value::Null => unreachable!("a number that is not finite"),
            Value::Array(items) => items.iter().for_each(all_numbers_are_finite),
            Value::Object(members) => members.values().for_each(all_numbers_are_finite),
            _ => {}
        }
    }

    const OURS: [Measurement; 4] =
        [Measurement::Cpu, Measurement::Crypto, Measurement::Memory, Measurement::EventLoop];

    #[test]
    fn what_only_the_shell_can_measure_is_left_to_it() {
        let pressure = Measurement::MemoryPressure { test_size_mb: 1, rounds: 1 };
        for measurement in [Measurement::System, pressure] {
            assert!(Job::new(measurement, Pure, Drbg::new([0; 32])).is_none());
        }
    }

    #[test]
    fn every_number_is_finite_and_every_job_ends_whatever_the_clock_says() {
        for measurement in OURS {
            for elapsed in [
                Duration::ZERO,
                Duration::from_nanos(1),
                Duration::from_millis(3),
                Duration::from_secs(3600),
                Duration::MAX,
            ] {
                let (report, steps) = drive(measurement, |_| elapsed);
                all_numbers_are_finite(&report.to_json());
                assert!(steps < 2_000, "{measurement:?} with {elapsed:?}: {steps} steps");
            }
        }
    }

    #[test]
    fn results_have_the_names_of_the_deployed_network() {
        let names = |measurement, list: &str| -> Vec<String> {
            let (report, _) = drive(measurement, |_| Duration::from_millis(20));
            let json = report.to_json();
            json[list].as_array().unwrap().iter().map(|r| r["name"].as_str().unwrap().to_string()).collect()
        };
        assert_eq!(names(Measurement::Cpu, "results"), ["sha256-64B", "sha256-1KB", "sha256-16KB"]);
        assert_eq!(
            names(Measurement::Crypto, "results"),
            ["chacha20-poly1305-64B", "chacha20-poly1305-1KB", "chacha20-poly1305-16KB"]
        );
        assert_eq!(
            names(Measurement::Memory, "copy"),
            ["memory-copy-1MB", "memory-copy-16MB", "memory-copy-64MB"]
        );
        let (report, _) = drive(Measurement::EventLoop, |_| Duration::from_micros(2));
        assert_eq!(report.to_json()["name"], "event-loop");
    }

    #[test]
    fn a_steady_machine_gives_the_figures_one_can_compute() {
        let (report, _) = drive(Measurement::Memory, |_| Duration::from_millis(10));
        let Report::Memory(memory) = report else { unreachable!() };
        assert!(memory.reliable);
        let sixteen = &memory.copy[1];
        assert_eq!(sixteen.size_bytes, 16 * 1024 * 1024);
        let ns = sixteen.bench.ns_per_op.mean;
        let expected = 2.0 * 16.0 * 1024.0 * 1024.0 * 1e9 / ns;
        assert!((sixteen.bytes_per_second / expected - 1.0).abs() < 1e-9);
        assert!((memory.bytes_per_second / expected - 1.0).abs() < 1e-9);
        assert!((memory.bandwidth_gbps * 1e9 / expected - 1.0).abs() < 1e-9);
    }

    #[test]
    fn turns_are_timed_one_by_one() {
        let (report, _) = drive(Measurement::EventLoop, |step| match step {
            Step::Turn { count } => Duration::from_micros(5) * u32::try_from(*count).unwrap(),
            _ => unreachable!("the event loop is the shell's"),
        });
        let Report::EventLoop(result) = report else { unreachable!() };
        assert_eq!((result.samples, result.total_ops, result.duration_ms), (1000, 1000, 5));
        assert_eq!(result.ns_per_op.p99.to_bits(), 5000_f64.to_bits());
        assert_eq!(result.ops_per_second.to_bits(), 200_000_f64.to_bits());
        assert!(result.reliable);
    }

    #[test]
    fn kernels_really_run() {
        for measurement in [Measurement::Cpu, Measurement::Crypto] {
            let mut job = Job::new(measurement, Pure, Drbg::new([2; 32])).unwrap();
            while !matches!(job.step(), Step::Done(_)) {
                job.run();
                job.timed(Duration::from_millis(200));
            }
        }
    }

    #[test]
    fn running_a_finished_job_does_nothing() {
        let mut job = Job::new(Measurement::EventLoop, Pure, Drbg::new([2; 32])).unwrap();
        while let Step::Turn { .. } = job.step() {
            job.timed(Duration::from_millis(100));
        }
        let step = job.step();
        job.run();
        job.timed(Duration::from_secs(1));
        assert_eq!(job.step(), step);
    }
}
