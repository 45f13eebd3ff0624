//! Measurements: what is run, how often, and what the times mean. The shell only runs and times.
//!
//! ```
//! use consensus_core::bench::{Job, Step};
//! use consensus_core::crypto::{Drbg, pure::Pure};
//! use consensus_core::io::Measurement;
//! use std::time::{Duration, Instant};
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
//!         Step::Clocks => { /* read the wall clock and this thread's processor time, for `Job::clocked` */ }
//!         Step::Done(report) => break report,
//!         Step::Failed(reason) => panic!("{reason}"),
//!     }
//! };
//! assert!(report.to_json().is_object());
//! ```

mod composite;
mod kernels;
pub mod multicore;
pub mod report;
mod runner;
mod sampled;
mod sustained;

use alloc::boxed::Box;
use alloc::string::String;
use core::fmt;
use core::time::Duration;

use self::composite::Composite;
use self::report::Report;
use self::sampled::Sampled;
use self::sustained::Sustained;
use crate::crypto::{Crypto, Drbg};
use crate::io::Measurement;

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
    /// Read the clock and the processor time of this thread, and hand both to [`Job::clocked`].
    Clocks,
    /// The measurement is complete.
    Done(Box<Report>),
    /// What was to be measured does not work; the reason is for people.
    Failed(String),
}

/// One measurement under way (protocol.md section 5). Drive it as the module's example does, on a thread that does
/// nothing else; it may be dropped at any step.
pub struct Job<C: Crypto> {
    measurement: Measurement,
    work: Work<C>,
}

enum Work<C: Crypto> {
    Sampled(Box<Sampled<C>>),
    Composite(Box<Composite<C>>),
    Sustained(Box<Sustained<C>>),
    Failed(String),
}

impl<C: Crypto> fmt::Debug for Job<C> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Job").field("measurement", &self.measurement).finish_non_exhaustive()
    }
}

impl<C: Crypto> Job<C> {
    /// Prepares a measurement. `None` for those that only the shell can do: `System`, `MemoryPressure` and
    /// `Multicore`.
    pub fn new(measurement: Measurement, crypto: C, rng: Drbg) -> Option<Self> {
        let work = match measurement {
            Measurement::Cpu | Measurement::Crypto | Measurement::Memory | Measurement::EventLoop => {
                Work::Sampled(Box::new(Sampled::new(measurement, crypto, rng)))
            }
            Measurement::Composite { quick } => match Composite::new(quick, crypto, rng) {
                Ok(composite) => Work::Composite(Box::new(composite)),
                Err(reason) => Work::Failed(reason),
            },
            Measurement::Sustained { duration_ms, window_ms } => {
                match Sustained::new(duration_ms, window_ms, crypto, rng) {
                    Ok(sustained) => Work::Sustained(Box::new(sustained)),
                    Err(reason) => Work::Failed(reason),
                }
            }
            Measurement::System | Measurement::MemoryPressure { .. } | Measurement::Multicore { .. } => {
                return None;
            }
        };
        Some(Self { measurement, work })
    }

    /// What to do next. Asking twice gives the same answer.
    #[must_use]
    pub fn step(&self) -> Step {
        match &self.work {
            Work::Sampled(job) => job.step(),
            Work::Composite(job) => job.step(),
            Work::Sustained(job) => job.step(),
            Work::Failed(reason) => Step::Failed(reason.clone()),
        }
    }

    /// Runs the part to take the time of. Does nothing where [`Job::step`] is not [`Step::Run`].
    pub fn run(&mut self) {
        let failed = match &mut self.work {
            Work::Sampled(job) => {
                job.run();
                Ok(())
            }
            Work::Composite(job) => job.run(),
            Work::Sustained(job) => job.run(),
            Work::Failed(_) => Ok(()),
        };
        if let Err(reason) = failed {
            self.work = Work::Failed(reason);
        }
    }

    /// Tells how long what [`Job::step`] asked for took.
    pub fn timed(&mut self, elapsed: Duration) {
        match &mut self.work {
            Work::Sampled(job) => job.timed(elapsed),
            Work::Composite(job) => job.timed(elapsed),
            Work::Sustained(job) => job.timed(elapsed),
            Work::Failed(_) => {}
        }
    }

    /// Tells the time by a clock that never goes back, and the processor time of this thread, each since any moment
    /// that stays the same. Does nothing where [`Job::step`] is not [`Step::Clocks`].
    pub fn clocked(&mut self, wall: Duration, cpu: Duration) {
        if let Work::Sustained(job) = &mut self.work {
            job.clocked(wall, cpu);
        }
    }

    /// The windows that are whole, first to last: of a measurement that has them.
    #[must_use]
    pub fn windows(&self) -> &[report::Window] {
        match &self.work {
            Work::Sustained(job) => job.windows(),
            Work::Sampled(_) | Work::Composite(_) | Work::Failed(_) => &[],
        }
    }

    /// How much of the measurement is done, from 0 to 1; never falls.
    #[must_use]
    pub fn progress(&self) -> f32 {
        match &self.work {
            Work::Sampled(job) => job.progress(),
            Work::Composite(job) => job.progress(),
            Work::Sustained(job) => job.progress(),
            Work::Failed(_) => 1.0,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::crypto::pure::Pure;
    use alloc::collections::BTreeSet;
    use alloc::format;
    use alloc::string::ToString as _;
    use alloc::vec::Vec;
    use serde_json::Value;

    /// Drives a job of sampled operations with made-up times: what `run` really takes does not matter, so it is not
    /// called.
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
        let multicore = Measurement::Multicore { duration_ms: 1 };
        for measurement in [Measurement::System, pressure, multicore] {
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

    /// The paths of all members.
    fn members(value: &Value, path: &str, out: &mut BTreeSet<String>) {
        match value {
            Value::Object(members_of) => {
                for (name, value) in members_of {
                    let path = format!("{path}/{name}");
                    members(value, &path, out);
                    out.insert(path);
                }
            }
            Value::Array(items) => items.iter().for_each(|item| members(item, &format!("{path}/_"), out)),
            _ => {}
        }
    }

    /// `CONSENSUS_VECTORS`: the transcripts beside it hold what the deployed node answered.
    #[test]
    fn results_have_the_members_of_the_deployed_networks_results() {
        let Some(messages) = crate::wire::canonical::tests::transcripts() else { return };
        let deployed = |action: &str| {
            let answers = |m: &&Value| m["type"] == "eval_response" && m["action"] == action;
            messages.iter().find(answers).unwrap()["result"].clone()
        };
        let composite = Measurement::Composite { quick: true };
        let sustained = Measurement::Sustained { duration_ms: 40, window_ms: 20 };
        let driven = |measurement| {
            let mut job = Job::new(measurement, Pure, Drbg::new([2; 32])).unwrap();
            let mut wall = Duration::ZERO;
            loop {
                match job.step() {
                    Step::Done(report) => return *report,
                    Step::Clocks => job.clocked(wall, wall),
                    _ => {
                        job.run();
                        wall += Duration::from_millis(2);
                        job.timed(Duration::from_millis(2));
                    }
                }
            }
        };
        let multicore = multicore::report(2, &[(1, 2.0), (2, 3.0)]);
        for (action, report) in [
            ("benchmark_composite", driven(composite)),
            ("benchmark_sustained", driven(sustained)),
            ("benchmark_multicore", Report::Multicore(multicore)),
            ("benchmark_event_loop", drive(Measurement::EventLoop, |_| Duration::from_micros(2)).0),
        ] {
            let (mut ours, mut theirs) = (BTreeSet::new(), BTreeSet::new());
            let json = report.to_json();
            all_numbers_are_finite(&json);
            members(&json, "", &mut ours);
            members(&deployed(action), "", &mut theirs);
            assert_eq!(ours, theirs, "{action}");
        }
    }
}
