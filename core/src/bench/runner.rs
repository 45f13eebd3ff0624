//! How often an operation is run, and what its times mean (protocol.md section 5).

use alloc::string::String;
use alloc::vec::Vec;
use core::time::Duration;

use super::report::{BenchResult, NsPerOp};

/// How an operation is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Plan {
    /// Run untimed for this long first: caches, clocks and page tables settle.
    warm_up: Duration,
    /// Then measure for this long …
    measure: Duration,
    /// … but never fewer samples than this …
    min_samples: usize,
    /// … nor more than this.
    max_samples: usize,
    /// One operation a sample; else as many as make a sample long enough to be measured.
    single: bool,
}

/// For hashes, ciphers and copies.
pub(super) const THROUGHPUT: Plan = Plan {
    warm_up: Duration::from_millis(200),
    measure: Duration::from_secs(1),
    min_samples: 10,
    max_samples: 200,
    single: false,
};

/// For a look at something that has a longer measurement.
pub(super) const QUICK: Plan = Plan {
    warm_up: Duration::from_millis(50),
    measure: Duration::from_millis(250),
    min_samples: 10,
    max_samples: 100,
    single: false,
};

/// For turns of the scheduler, of which each single one counts: its p99 is a threshold of admission.
pub(super) const EVENT_LOOP: Plan = Plan {
    warm_up: Duration::from_millis(200),
    measure: Duration::from_millis(500),
    min_samples: 10,
    max_samples: 1000,
    single: true,
};

/// A machine too slow for the least number of samples in this time gets the result it has: an eval action of three
/// operations must end within 30 s.
const LONGEST: Duration = Duration::from_secs(5);

/// Batches grow no further once one takes this long: the warm-up should end near its time.
const WARM_BATCH: Duration = Duration::from_millis(20);

/// No batch is larger, however fast the operation seems.
const MAX_BATCH: u64 = 1 << 24;

/// After so many batches in a row that took no time at all, the clock is taken to stand still.
const MAX_TIMELESS: u32 = 8;

/// Warm-up batches, whatever time they are said to take. Doubling reaches [`MAX_BATCH`] in 24, and ten of
/// [`WARM_BATCH`] fill the warm-up: more are needed only by a clock that lies.
const MAX_WARM_BATCHES: u32 = 100;

/// A result is reliable below this coefficient of variation.
const RELIABLE_CV: f64 = 0.10;

/// One operation being measured.
#[derive(Clone, Debug)]
pub(super) struct Sampler {
    plan: Plan,
    phase: Phase,
    batch: u64,
    /// Nanoseconds for one operation, a sample each.
    samples: Vec<f64>,
    total_ops: u64,
    measured: Duration,
}

#[derive(Clone, Copy, Debug)]
enum Phase {
    WarmUp { elapsed: Duration, batches: u32, timeless: u32 },
    Measure,
    Done,
}

impl Sampler {
    pub(super) const fn new(plan: Plan) -> Self {
        Self {
            plan,
            phase: Phase::WarmUp { elapsed: Duration::ZERO, batches: 0, timeless: 0 },
            batch: 1,
            samples: Vec::new(),
            total_ops: 0,
            measured: Duration::ZERO,
        }
    }

    /// Operations to run next, as one timed batch.
    pub(super) const fn batch(&self) -> u64 {
        self.batch
    }

    pub(super) const fn is_done(&self) -> bool {
        matches!(self.phase, Phase::Done)
    }

    /// Whether the next batch is a sample.
    pub(super) const fn is_measuring(&self) -> bool {
        matches!(self.phase, Phase::Measure)
    }

    /// The time of all samples.
    pub(super) const fn measured(&self) -> Duration {
        self.measured
    }

    /// Takes the time of the batch.
    pub(super) fn timed(&mut self, elapsed: Duration) {
        // A clock that went mad must not overflow a sum.
        let elapsed = elapsed.min(Duration::from_secs(3600));
        match &mut self.phase {
            Phase::WarmUp { elapsed: total, batches, timeless } => {
                *total += elapsed;
                *batches += 1;
                *timeless = if elapsed.is_zero() { *timeless + 1 } else { 0 };
                if *total >= self.plan.warm_up || *timeless >= MAX_TIMELESS || *batches >= MAX_WARM_BATCHES {
                    self.batch = self.batch_for(elapsed);
                    self.phase = Phase::Measure;
                } else if elapsed < WARM_BATCH {
                    self.batch = self.batch.saturating_mul(2).min(MAX_BATCH);
                }
            }
            Phase::Measure => {
                self.samples.push(nanoseconds(elapsed) / self.batch.max(1) as f64);
                self.total_ops = self.total_ops.saturating_add(self.batch);
                self.measured += elapsed;
                let enough = self.samples.len() >= self.plan.min_samples;
                if self.samples.len() >= self.plan.max_samples
                    || (enough && self.measured >= self.plan.measure)
                    || self.measured >= LONGEST
                {
                    self.phase = Phase::Done;
                }
            }
            Phase::Done => {}
        }
    }

    /// The batch that takes its share of the measuring time, by the last warm-up batch: then the time is used up
    /// just as the samples are.
    fn batch_for(&self, last: Duration) -> u64 {
        if self.plan.single {
            return 1;
        }
        let share = self.plan.measure.as_nanos() / self.plan.max_samples.max(1) as u128;
        let wanted = (share * u128::from(self.batch)).checked_div(last.as_nanos());
        // Without a time to go by, the last batch is as good as any.
        wanted.map_or(self.batch, |wanted| u64::try_from(wanted).unwrap_or(MAX_BATCH).clamp(1, MAX_BATCH))
    }

    /// From 0 to 1.
    pub(super) fn progress(&self) -> f32 {
        let whole = (self.plan.warm_up + self.plan.measure).as_secs_f32();
        let warm_up = self.plan.warm_up.as_secs_f32() / whole;
        match self.phase {
            Phase::WarmUp { elapsed, .. } => (elapsed.as_secs_f32() / whole).min(warm_up),
            Phase::Measure => {
                let time = self.measured.as_secs_f32() / self.plan.measure.as_secs_f32();
                let most = self.samples.len() as f32 / self.plan.max_samples as f32;
                let least = self.samples.len() as f32 / self.plan.min_samples as f32;
                warm_up + (1.0 - warm_up) * most.max(time.min(least)).clamp(0.0, 1.0)
            }
            Phase::Done => 1.0,
        }
    }

    /// What the samples say. Every number is finite, also of no samples, and of samples that took no time.
    pub(super) fn result(&self, name: String) -> BenchResult {
        let ns_per_op = distribution(&self.samples);
        let ratio = |a: f64, b: f64| if b > 0.0 { a / b } else { 0.0 };
        let cv = ratio(ns_per_op.stddev, ns_per_op.mean);
        BenchResult {
            name,
            reliable: self.samples.len() >= 10 && ns_per_op.mean > 0.0 && cv < RELIABLE_CV,
            samples: self.samples.len() as u64,
            total_ops: self.total_ops,
            duration_ms: u64::try_from(self.measured.as_millis()).unwrap_or(u64::MAX),
            ops_per_second: ratio(1e9, ns_per_op.mean),
            ns_per_op,
            cv,
        }
    }
}

fn nanoseconds(duration: Duration) -> f64 {
    duration.as_nanos() as f64
}

fn distribution(samples: &[f64]) -> NsPerOp {
    let mut sorted = samples.to_vec();
    sorted.sort_unstable_by(f64::total_cmp);
    let count = sorted.len();
    let at = |index: usize| sorted.get(index).copied().unwrap_or(0.0);
    // Nearest rank: the least sample that at least so many percent do not exceed.
    let percentile = |percent: usize| at((count * percent).div_ceil(100).saturating_sub(1));
    let mean = if count == 0 { 0.0 } else { sorted.iter().sum::<f64>() / count as f64 };
    // Of a sample, not of a population: one sample tells nothing about the spread.
    let variance = if count < 2 {
        0.0
    } else {
        sorted.iter().map(|x| (x - mean) * (x - mean)).sum::<f64>() / (count - 1) as f64
    };
    NsPerOp {
        min: at(0),
        median: (at(count.saturating_sub(1) / 2) + at(count / 2)) / 2.0,
        mean,
        p95: percentile(95),
        p99: percentile(99),
        stddev: square_root(variance),
    }
}

/// The square root, by Newton's method: core has none without `std`. Right to the last bit or the one before.
/// 0 for what is not a positive, finite number.
fn square_root(x: f64) -> f64 {
    if !(x.is_finite() && x > 0.0) {
        return 0.0;
    }
    // Half the exponent is close enough to start from.
    let mut root = f64::from_bits((x.to_bits() >> 1) + (1023_u64 << 51));
    // A normal number takes five rounds; the bound is for subnormal ones.
    for _ in 0..64 {
        let next = 0.5 * (root + x / root);
        if next.to_bits() == root.to_bits() {
            break;
        }
        root = next;
    }
    root
}

#[cfg(test)]
mod tests {
    use super::*;

    fn close(a: f64, b: f64) -> bool {
        (a - b).abs() <= 1e-12 * b.abs()
    }

    fn sampler_of(plan: Plan, ns_per_op: u64) -> Sampler {
        let mut sampler = Sampler::new(plan);
        while !sampler.is_done() {
            sampler.timed(Duration::from_nanos(ns_per_op.saturating_mul(sampler.batch())));
        }
        sampler
    }

    #[test]
    fn the_square_root_is_that_of_the_standard_library() {
        for x in [1.0, 2.0, 4.0, 1e-300, 5e-324, 1e300, f64::MAX, f64::MIN_POSITIVE, 123_456.789, 0.25] {
            assert!(close(square_root(x), x.sqrt()), "{x}: {} not {}", square_root(x), x.sqrt());
        }
        let mut state = 1_u64;
        for _ in 0..10_000 {
            state = state.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(0x1405_7b7e_f767_814f);
            let x = f64::from_bits(state >> 1);
            if x.is_finite() {
                assert!(close(square_root(x), x.sqrt()), "{x}");
            }
        }
        for x in [0.0, -0.0, -1.0, f64::NAN, f64::INFINITY] {
            assert_eq!(square_root(x).to_bits(), 0, "{x}");
        }
    }

    #[test]
    fn a_distribution_is_the_one_by_hand() {
        let samples: Vec<f64> = (1..=100).rev().map(f64::from).collect();
        let d = distribution(&samples);
        assert!(close(d.min, 1.0) && close(d.median, 50.5) && close(d.mean, 50.5));
        assert!(close(d.p95, 95.0) && close(d.p99, 99.0));
        assert!(close(d.stddev, 841.666_666_666_666_6_f64.sqrt()));
        let odd = distribution(&[5.0, 1.0, 3.0]);
        assert!(close(odd.median, 3.0) && close(odd.p99, 5.0) && close(odd.stddev, 2.0));
    }

    #[test]
    fn no_sample_and_one_sample_have_a_distribution() {
        let none = distribution(&[]);
        assert_eq!([none.min, none.median, none.mean, none.p95, none.p99, none.stddev], [0.0; 6]);
        let one = distribution(&[7.0]);
        assert_eq!(
            [one.min, one.median, one.mean, one.p95, one.p99, one.stddev],
            [7.0, 7.0, 7.0, 7.0, 7.0, 0.0]
        );
    }

    #[test]
    fn batches_fill_the_measuring_time_with_the_most_samples() {
        for ns in [40, 900, 12_345, 1_000_000, 4_999_999] {
            let result = sampler_of(THROUGHPUT, ns).result("x".into());
            assert!((100..=200).contains(&result.samples), "{ns} ns: {}", result.samples);
            assert!((400..=1100).contains(&result.duration_ms), "{ns} ns: {} ms", result.duration_ms);
            assert!(close(result.ns_per_op.mean, ns as f64));
            assert!(result.reliable);
        }
    }

    #[test]
    fn slow_operations_get_their_ten_samples() {
        let result = sampler_of(THROUGHPUT, 300_000_000).result("x".into());
        assert_eq!((result.samples, result.total_ops, result.duration_ms), (10, 10, 3000));
    }

    #[test]
    fn operations_beyond_all_patience_end_early_and_are_not_reliable() {
        let result = sampler_of(THROUGHPUT, 2_000_000_000).result("x".into());
        assert_eq!(result.samples, 3);
        assert!(!result.reliable);
    }

    #[test]
    fn a_clock_that_stands_still_gives_nothing_to_rely_on() {
        let sampler = sampler_of(THROUGHPUT, 0);
        let result = sampler.result("x".into());
        assert_eq!((result.samples, result.reliable), (200, false));
        assert_eq!([result.ops_per_second, result.cv, result.ns_per_op.mean], [0.0; 3]);
        assert!(sampler.batch() <= 256);
    }

    #[test]
    fn scattered_times_are_not_reliable() {
        let mut sampler = Sampler::new(EVENT_LOOP);
        let mut odd = false;
        while !sampler.is_done() {
            odd = !odd;
            sampler.timed(Duration::from_millis(if odd { 1 } else { 3 }));
        }
        let result = sampler.result("x".into());
        assert!(!result.reliable && result.cv > 0.4, "{result:?}");
        assert_eq!(result.samples, result.total_ops);
    }
}
