//! What several cores do at once (protocol.md section 5, `benchmark_multicore`): a chain of integer operations that
//! fits in registers, so that nothing but the cores themselves is shared.

use alloc::string::ToString as _;
use alloc::vec::Vec;
use core::hint::black_box;
use core::time::Duration;

use super::composite::ratio;
use super::report::{Multicore, Point};

/// All points together take no longer: an action has 30 s.
const LONGEST: Duration = Duration::from_secs(24);

/// Operations of one call of [`mix`]: under a millisecond on any machine, so that a worker sees the end in time.
pub const MIX: u32 = 1 << 16;

/// How many workers run at once, one after the other: 1, 2, 4 … and one for each of the machine's `cores`.
#[must_use]
pub fn worker_counts(cores: u32) -> Vec<u32> {
    let cores = cores.max(1);
    let mut counts: Vec<u32> =
        (0..u32::BITS).map(|doublings| 1 << doublings).take_while(|count| *count < cores).collect();
    counts.push(cores);
    counts
}

/// How long each of so many points is measured where `wanted` was asked for.
#[must_use]
pub fn point_time(wanted: Duration, points: usize) -> Duration {
    wanted.min(LONGEST / u32::try_from(points.max(1)).unwrap_or(u32::MAX))
}

/// The kernel: [`MIX`] operations, each of which needs the one before. Gives what to go on with.
#[must_use]
pub fn mix(state: u32) -> u32 {
    let mut state = black_box(state);
    for _ in 0..MIX {
        state ^= state << 13;
        state ^= state >> 17;
        state ^= state << 5;
        state = state.wrapping_mul(0x9e37_79b1);
    }
    black_box(state)
}

/// What it comes to: `points` are worker counts with the operations a second of all workers together, the first one
/// of a single worker.
#[must_use]
pub fn report(cores: u32, points: &[(u32, f64)]) -> Multicore {
    let single = points.first().map_or(0.0, |(_, total)| *total);
    let point = |(workers, total): &(u32, f64)| {
        let each = ratio(*total, f64::from(*workers));
        Point {
            workers: *workers,
            total_ops_per_second: *total,
            per_worker_ops_per_second: each,
            efficiency: ratio(each, single),
        }
    };
    let most = points.iter().map(|(_, total)| *total).fold(0.0, f64::max);
    Multicore {
        cores,
        chain: "int-mix".to_string(),
        points: points.iter().map(point).collect(),
        single_ops_per_second: single,
        effective_cores: ratio(most, single),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn worker_counts_double_up_to_the_cores() {
        for (cores, counts) in [
            (0, &[1][..]),
            (1, &[1]),
            (2, &[1, 2]),
            (3, &[1, 2, 3]),
            (4, &[1, 2, 4]),
            (6, &[1, 2, 4, 6]),
            (64, &[1, 2, 4, 8, 16, 32, 64]),
        ] {
            assert_eq!(worker_counts(cores), counts, "{cores}");
        }
        assert_eq!(worker_counts(u32::MAX).len(), 33);
    }

    #[test]
    fn many_points_share_the_time_that_an_action_has() {
        assert_eq!(point_time(Duration::from_millis(1500), 2), Duration::from_millis(1500));
        assert_eq!(point_time(Duration::from_secs(10), 8), Duration::from_secs(3));
        assert_eq!(point_time(Duration::from_secs(1), 0), Duration::from_secs(1));
    }

    #[test]
    fn every_operation_counts_for_the_result() {
        assert_ne!(mix(1), mix(2));
        assert_ne!(mix(1), mix(mix(1)));
        assert_eq!(mix(7), mix(7));
    }

    #[test]
    fn efficiency_is_of_one_worker_alone() {
        let report = report(4, &[(1, 100.0), (2, 150.0), (4, 140.0)]);
        assert_eq!(report.effective_cores.to_bits(), 1.5_f64.to_bits());
        assert_eq!(report.points[1].efficiency.to_bits(), 0.75_f64.to_bits());
        assert_eq!(report.points[2].per_worker_ops_per_second.to_bits(), 35_f64.to_bits());
        let nothing = super::report(1, &[(1, 0.0)]);
        assert!(nothing.effective_cores == 0.0 && nothing.points[0].efficiency == 0.0);
    }
}
