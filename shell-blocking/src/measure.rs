//! Measurements of this machine: runs and times what [`consensus_core::bench`] says.

use std::time::Instant;

use consensus_core::bench::report::{MemoryPressure, Report};
use consensus_core::bench::{Job, Step};
use consensus_core::crypto::Drbg;
use consensus_core::io::Measurement;

use crate::runtime_api::Provider;
use crate::system;

/// The eval action that a measurement is for (protocol.md section 5).
#[must_use]
pub const fn action(measurement: Measurement) -> &'static str {
    match measurement {
        Measurement::System => "benchmark_system",
        Measurement::Cpu => "benchmark_cpu",
        Measurement::Crypto => "benchmark_crypto",
        Measurement::Memory => "benchmark_memory",
        Measurement::EventLoop => "benchmark_event_loop",
        Measurement::MemoryPressure { .. } => "benchmark_memory_pressure",
    }
}

/// Carries out one measurement on this thread. `turn` makes that many turns of the shell's own scheduler;
/// `progress` hears from 0 to 1; `cancelled` is asked between steps of at most a few tens of milliseconds.
///
/// # Errors
/// Cancelled, or not possible on this machine; for people.
pub fn measure(
    measurement: Measurement,
    turn: &mut dyn FnMut(u64),
    progress: &mut dyn FnMut(f32),
    cancelled: &dyn Fn() -> bool,
) -> Result<Report, String> {
    match measurement {
        Measurement::System => Ok(Report::System(system::describe())),
        Measurement::MemoryPressure { test_size_mb, rounds } => {
            // Under a limit the system would kill the process sooner than refuse it memory, and that helps nobody.
            let room_mb = system::memory().map_or(u64::MAX, |memory| memory.free / MIB);
            memory_pressure(test_size_mb, rounds, room_mb, progress, cancelled).map(Report::MemoryPressure)
        }
        Measurement::Cpu | Measurement::Crypto | Measurement::Memory | Measurement::EventLoop => {
            let rng = Drbg::new(system::seed()?);
            let job = Job::new(measurement, Provider::default(), rng)
                .ok_or_else(|| format!("{} is not measured by this release", action(measurement)))?;
            run(job, turn, progress, cancelled)
        }
    }
}

fn run(
    mut job: Job<Provider>,
    turn: &mut dyn FnMut(u64),
    progress: &mut dyn FnMut(f32),
    cancelled: &dyn Fn() -> bool,
) -> Result<Report, String> {
    loop {
        if cancelled() {
            return Err(cancelled_error());
        }
        let elapsed = match job.step() {
            Step::Run => {
                let start = Instant::now();
                job.run();
                start.elapsed()
            }
            Step::Turn { count } => {
                let start = Instant::now();
                turn(count);
                start.elapsed()
            }
            Step::Done(report) => return Ok(*report),
        };
        job.timed(elapsed);
        // Outside the timed part: a slow terminal must not spoil the figures.
        progress(job.progress());
    }
}

const MIB: u64 = 1024 * 1024;

/// Memory is touched once for each of these: no page of any of our platforms is smaller.
const PAGE: usize = 4096;

/// What is left to the rest of the machine.
const RESERVE_MB: u64 = 16;

fn cancelled_error() -> String {
    "cancelled".to_string()
}

/// Takes `size_mb` of memory in each round, touches every page, and gives it back. Memory that cannot be had is a
/// result and not an error. It is taken in pieces of 1 MiB, so that what could be had is known.
fn memory_pressure(
    size_mb: u32,
    rounds: u32,
    room_mb: u64,
    progress: &mut dyn FnMut(f32),
    cancelled: &dyn Fn() -> bool,
) -> Result<MemoryPressure, String> {
    let start = Instant::now();
    let before = system::resident();
    let mut peak = before;
    let mut most = 0;
    let mut success = true;
    for round in 0..rounds {
        let mut pieces: Vec<Vec<u8>> = Vec::new();
        for piece in 0..size_mb {
            if cancelled() {
                return Err(cancelled_error());
            }
            let mut memory = Vec::new();
            let refused = u64::from(piece) + RESERVE_MB >= room_mb
                || pieces.try_reserve(1).is_err()
                || memory.try_reserve_exact(MIB as usize).is_err();
            if refused {
                success = false;
                break;
            }
            memory.resize(MIB as usize, 0);
            for page in memory.chunks_mut(PAGE) {
                if let Some(first) = page.first_mut() {
                    *first = piece as u8 | 1;
                }
            }
            pieces.push(std::hint::black_box(memory));
            let done = f64::from(round) + f64::from(piece) / f64::from(size_mb);
            progress((done / f64::from(rounds)) as f32);
        }
        most = most.max(pieces.len());
        peak = peak.max(system::resident());
    }
    let after = system::resident();
    progress(1.0);
    let mb = |bytes: Option<u64>| bytes.map_or(-1.0, |bytes| bytes as f64 / MIB as f64);
    let retained = match (before, after) {
        (Some(before), Some(after)) => after.saturating_sub(before) as f64 / MIB as f64,
        _ => -1.0,
    };
    Ok(MemoryPressure {
        success,
        requested_mb: size_mb,
        rounds,
        allocated_mb: u32::try_from(most).unwrap_or(u32::MAX),
        duration_ms: u64::try_from(start.elapsed().as_millis()).unwrap_or(u64::MAX),
        rss_before_mb: mb(before),
        rss_peak_mb: mb(peak),
        rss_after_mb: mb(after),
        rss_retained_mb: retained,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn turns_of_the_scheduler_are_asked_for_and_timed() {
        let mut turns = 0;
        let mut last = 0.0;
        let report = measure(
            Measurement::EventLoop,
            &mut |count| {
                turns += count;
                std::thread::sleep(std::time::Duration::from_millis(5));
            },
            &mut |fraction| last = fraction,
            &|| false,
        );
        let Ok(Report::EventLoop(result)) = report else { panic!("{report:?}") };
        assert!(result.total_ops > 0 && turns >= result.total_ops, "{turns} {result:?}");
        assert_eq!(last, 1.0);
    }

    #[test]
    fn a_cancelled_measurement_ends_soon() {
        let start = Instant::now();
        let cancelled = || start.elapsed().as_millis() > 50;
        let report = measure(Measurement::Cpu, &mut |_| {}, &mut |_| {}, &cancelled);
        assert_eq!(report, Err("cancelled".to_string()));
        assert!(start.elapsed().as_millis() < 1000);
    }

    #[test]
    fn memory_pressure_takes_and_returns_what_was_asked_for() {
        let mut last = 0.0;
        let report = memory_pressure(32, 2, 1000, &mut |fraction| last = fraction, &|| false).unwrap();
        assert!(report.success);
        assert_eq!((report.requested_mb, report.rounds, report.allocated_mb), (32, 2, 32));
        // Other tests of this process may have left memory to take from: only what was touched is certain.
        assert!(report.rss_peak_mb >= 32.0 && report.rss_peak_mb >= report.rss_before_mb, "{report:?}");
        assert_eq!(last, 1.0);
    }

    #[test]
    fn memory_pressure_ends_when_it_is_cancelled() {
        let asked = std::cell::Cell::new(0);
        let cancelled = || {
            asked.set(asked.get() + 1);
            asked.get() > 3
        };
        assert!(memory_pressure(512, 8, 1000, &mut |_| {}, &cancelled).is_err());
        assert_eq!(asked.get(), 4);
    }

    #[test]
    fn memory_that_cannot_be_had_is_a_result() {
        let report = memory_pressure(32, 2, RESERVE_MB + 3, &mut |_| {}, &|| false).unwrap();
        assert_eq!((report.success, report.allocated_mb), (false, 3));
    }
}
