//! Measurements of this machine: runs and times what [`consensus_core::bench`] says.

use std::sync::RwLock;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use consensus_core::bench::report::{MemoryPressure, Report};
use consensus_core::bench::{Job, Step, multicore};
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
        Measurement::Composite { .. } => "benchmark_composite",
        Measurement::Sustained { .. } => "benchmark_sustained",
        Measurement::Multicore { .. } => "benchmark_multicore",
    }
}

/// Carries out one measurement on this thread. `turn` makes that many turns of the shell's own scheduler;
/// `progress` hears from 0 to 1; `window` hears of each whole window, in requests a second of the node's own time;
/// `cancelled` is asked between steps of at most a few tens of milliseconds.
///
/// # Errors
/// Cancelled, or not possible on this machine; for people.
pub fn measure(
    measurement: Measurement,
    turn: &mut dyn FnMut(u64),
    progress: &mut dyn FnMut(f32),
    window: &mut dyn FnMut(f64),
    cancelled: &dyn Fn() -> bool,
) -> Result<Report, String> {
    match measurement {
        Measurement::System => Ok(Report::System(system::describe())),
        Measurement::MemoryPressure { test_size_mb, rounds } => {
            // Under a limit the system would kill the process sooner than refuse it memory, and that helps nobody.
            let room_mb = system::memory().map_or(u64::MAX, |memory| memory.free / MIB);
            memory_pressure(test_size_mb, rounds, room_mb, progress, cancelled).map(Report::MemoryPressure)
        }
        Measurement::Multicore { duration_ms } => {
            several_cores(system::cpus(), Duration::from_millis(duration_ms.into()), progress, cancelled)
        }
        Measurement::Cpu
        | Measurement::Crypto
        | Measurement::Memory
        | Measurement::EventLoop
        | Measurement::Composite { .. }
        | Measurement::Sustained { .. } => {
            let rng = Drbg::new(system::seed()?);
            let job = Job::new(measurement, Provider::default(), rng)
                .ok_or_else(|| format!("{} is not measured by this release", action(measurement)))?;
            run(job, turn, progress, window, cancelled)
        }
    }
}

fn run(
    mut job: Job<Provider>,
    turn: &mut dyn FnMut(u64),
    progress: &mut dyn FnMut(f32),
    window: &mut dyn FnMut(f64),
    cancelled: &dyn Fn() -> bool,
) -> Result<Report, String> {
    let mut windows = 0;
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
            Step::Clocks => {
                job.clocked(system::now().monotonic, system::thread_time());
                progress(job.progress());
                for ended in job.windows().get(windows..).unwrap_or_default() {
                    windows += 1;
                    window(ended.node_rps);
                }
                continue;
            }
            Step::Done(report) => return Ok(*report),
            Step::Failed(reason) => return Err(reason),
        };
        job.timed(elapsed);
        // Outside the timed part: a slow terminal must not spoil the figures.
        progress(job.progress());
    }
}

/// Several cores at once: as many threads as there are to be workers, each with the kernel and nothing else.
fn several_cores(
    cores: u32,
    wanted: Duration,
    progress: &mut dyn FnMut(f32),
    cancelled: &dyn Fn() -> bool,
) -> Result<Report, String> {
    let counts = multicore::worker_counts(cores);
    let time = multicore::point_time(wanted, counts.len());
    let mut points = Vec::new();
    for workers in &counts {
        let done = points.len() as f32;
        let mut tell = |fraction: f32| progress((done + fraction) / counts.len() as f32);
        points.push((*workers, work_at_once(*workers, time, &mut tell, cancelled)?));
    }
    progress(1.0);
    Ok(Report::Multicore(multicore::report(cores, &points)))
}

/// How often the one who waits looks up.
const LOOK_UP: Duration = Duration::from_millis(20);

/// Operations a second of so many threads together.
fn work_at_once(
    workers: u32,
    time: Duration,
    progress: &mut dyn FnMut(f32),
    cancelled: &dyn Fn() -> bool,
) -> Result<f64, String> {
    let stop = AtomicBool::new(false);
    // Nobody begins before all are there.
    let gate = RwLock::new(());
    let (stop, gate) = (&stop, &gate);
    let work = move || {
        let mut state = 1;
        let mut ops = 0.0;
        drop(gate.read());
        let start = Instant::now();
        while !stop.load(Ordering::Relaxed) {
            state = multicore::mix(state);
            ops += f64::from(multicore::MIX);
        }
        ops / start.elapsed().as_secs_f64().max(1e-9)
    };
    thread::scope(|scope| {
        let closed = gate.write();
        let mut threads = Vec::new();
        for _ in 0..workers {
            let thread = thread::Builder::new().name("mix".to_string()).spawn_scoped(scope, work);
            threads.push(thread.map_err(|_| {
                stop.store(true, Ordering::Relaxed);
                "the system gives no thread".to_string()
            })?);
        }
        drop(closed);
        let start = Instant::now();
        let mut was_cancelled = false;
        while start.elapsed() < time && !was_cancelled {
            thread::sleep(LOOK_UP.min(time));
            was_cancelled = cancelled();
            progress((start.elapsed().as_secs_f32() / time.as_secs_f32().max(1e-9)).min(1.0));
        }
        stop.store(true, Ordering::Relaxed);
        let rates: f64 = threads.into_iter().map(|thread| thread.join().unwrap_or(0.0)).sum();
        if was_cancelled { Err(cancelled_error()) } else { Ok(rates) }
    })
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
                thread::sleep(Duration::from_millis(5));
            },
            &mut |fraction| last = fraction,
            &mut |_| {},
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
        let report = measure(Measurement::Cpu, &mut |_| {}, &mut |_| {}, &mut |_| {}, &cancelled);
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

    #[test]
    fn several_cores_work_at_once_and_one_alone_is_the_measure() {
        let mut last = 0.0;
        let report = several_cores(3, Duration::from_millis(30), &mut |f| last = f, &|| false);
        let Ok(Report::Multicore(report)) = report else { panic!("{report:?}") };
        assert_eq!((report.cores, last), (3, 1.0));
        assert_eq!(report.points.iter().map(|point| point.workers).collect::<Vec<_>>(), [1, 2, 3]);
        assert!(report.points.iter().all(|point| point.total_ops_per_second > 0.0), "{report:?}");
        assert!(report.effective_cores >= 1.0 && report.single_ops_per_second > 0.0, "{report:?}");
        let cancelled = several_cores(1, Duration::from_secs(60), &mut |_| {}, &|| true);
        assert_eq!(cancelled, Err(cancelled_error()));
    }

    #[test]
    fn requests_are_served_and_timed_and_the_thread_has_its_time_told() {
        let mut last = 0.0;
        let sustained = Measurement::Sustained { duration_ms: 300, window_ms: 100 };
        let (mut tell, mut heard) = (|fraction| last = fraction, Vec::new());
        let report = measure(sustained, &mut |_| {}, &mut tell, &mut |rps| heard.push(rps), &|| false);
        let Ok(Report::Sustained(report)) = report else { panic!("{report:?}") };
        assert_eq!(last, 1.0);
        assert!(!report.windows.is_empty() && report.total_requests > 0, "{report:?}");
        let windows: Vec<f64> = report.windows.iter().map(|window| window.node_rps).collect();
        assert_eq!(heard, windows);
        assert!(report.node_rps_min_window > 0.0 && report.cpu_time_ratio > 0.0, "{report:?}");
        assert!(report.cpu_time_ratio <= 1.01, "no thread has more than one processor: {report:?}");
    }
}
