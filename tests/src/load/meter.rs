//! What a process used, as Linux counts it.

use std::fs;
use std::io;
use std::time::Duration;

/// Ticks a second in `/proc/PID/stat`: `USER_HZ`, which is 100 on every platform that nodes run on.
const TICK: Duration = Duration::from_millis(10);

/// The processor time of a process, all its threads together, those that ended as well; to a hundredth of a second.
pub(super) fn process_cpu(pid: u32) -> io::Result<Duration> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    // The name, in parentheses, may hold anything; utime and stime are the fields 14 and 15, state being 3.
    let fields = stat.rsplit(')').next().unwrap_or_default();
    let ticks: u32 =
        fields.split_whitespace().skip(11).take(2).filter_map(|field| field.parse::<u32>().ok()).sum();
    Ok(TICK * ticks)
}

/// A sorted list's value below which so many of its values are, in per cent.
pub(super) fn percentile(sorted: &[Duration], percent: usize) -> Duration {
    let at = (sorted.len() * percent).div_ceil(100).saturating_sub(1);
    sorted.get(at).copied().unwrap_or_default()
}

/// The middle one of some values.
pub(super) fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_unstable_by(f64::total_cmp);
    sorted.get(sorted.len() / 2).copied().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_values_that_were_seen() {
        let ms = |n| Duration::from_millis(n);
        let values: Vec<_> = (1..=200).map(ms).collect();
        assert_eq!(percentile(&values, 50), ms(100));
        assert_eq!(percentile(&values, 99), ms(198));
        assert_eq!(percentile(&values, 100), ms(200));
        assert_eq!(percentile(&values[..1], 99), ms(1));
        assert_eq!(percentile(&[], 50), ms(0));
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn work_costs_processor_time() {
        let own = std::process::id();
        let mut sum = 0_u64;
        while process_cpu(own).unwrap() < TICK * 2 {
            sum = std::hint::black_box(sum + 1);
        }
    }
}
