//! The node's own judgement of what it measured, by the server's thresholds (protocol.md section 5).
//!
//! On a failure the server sends nothing, so this is what tells the operator why.

use alloc::format;
use alloc::string::{String, ToString as _};
use alloc::vec::Vec;

use serde_json::Value;

/// Late windows by early windows, at least.
pub const MIN_THROTTLE_RATIO: f64 = 0.85;
/// Processor time by wall-clock time, at least.
pub const MIN_CPU_TIME_RATIO: f64 = 0.9;
/// Requests a second in the slowest window, at least.
pub const MIN_WINDOW_RPS: f64 = 50.0;
/// Memory of the machine, at least.
pub const MIN_MEMORY_BYTES: u64 = 512 * 1024 * 1024;
/// 99th percentile of one turn of the scheduler, at most.
pub const MAX_EVENT_LOOP_P99_NS: f64 = 50_000_000.0;

/// The figures that decide, as far as they were measured.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Figures {
    /// `benchmark_system`: `total_memory_bytes`.
    pub memory_bytes: Option<u64>,
    /// `benchmark_event_loop`: `ns_per_op.p99`.
    pub event_loop_p99_ns: Option<f64>,
    /// `benchmark_sustained`: `throttle_ratio`.
    pub throttle_ratio: Option<f64>,
    /// `benchmark_sustained`: `cpu_time_ratio`.
    pub cpu_time_ratio: Option<f64>,
    /// `benchmark_sustained`: `node_rps_min_window`.
    pub slowest_window_rps: Option<f64>,
    /// `integrity`: whether the payload verifies, or could at least be given.
    pub integrity: Option<bool>,
}

/// A judgement.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Verdict {
    /// One sentence for each threshold missed.
    pub missed: Vec<String>,
    /// The thresholds that nothing was measured for.
    pub not_measured: Vec<String>,
}

impl Verdict {
    /// Whether nothing that was measured misses its threshold.
    #[must_use]
    pub fn is_admissible(&self) -> bool {
        self.missed.is_empty()
    }
}

impl Figures {
    /// Takes what decides from the answer to one action; `None` for an action that failed.
    pub fn record(&mut self, action: &str, result: Option<&Value>) {
        let number = |path: &str| result.and_then(|value| value.pointer(path)).and_then(Value::as_f64);
        match action {
            "benchmark_system" => {
                self.memory_bytes = result.and_then(|value| value.get("total_memory_bytes")?.as_u64());
            }
            "benchmark_event_loop" => self.event_loop_p99_ns = number("/ns_per_op/p99"),
            "benchmark_sustained" => {
                self.throttle_ratio = number("/throttle_ratio");
                self.cpu_time_ratio = number("/cpu_time_ratio");
                self.slowest_window_rps = number("/node_rps_min_window");
            }
            "integrity" => self.integrity = Some(result.is_some()),
            _ => {}
        }
    }

    /// Judges.
    #[must_use]
    pub fn verdict(&self) -> Verdict {
        let mut verdict = Verdict::default();
        let mut judge = |name: &str, missed: Option<Option<String>>| match missed {
            None => verdict.not_measured.push(name.to_string()),
            Some(None) => {}
            Some(Some(sentence)) => verdict.missed.push(sentence),
        };
        judge(
            "memory",
            self.memory_bytes.map(|bytes| {
                (bytes < MIN_MEMORY_BYTES).then(|| {
                    format!("memory is {} MiB, {} MiB are needed", bytes >> 20, MIN_MEMORY_BYTES >> 20)
                })
            }),
        );
        judge(
            "event loop",
            self.event_loop_p99_ns.map(|p99| {
                (p99 > MAX_EVENT_LOOP_P99_NS).then(|| {
                    format!(
                        "the event loop's p99 is {:.1} ms, at most {:.0} ms are allowed (is the machine busy?)",
                        p99 / 1e6,
                        MAX_EVENT_LOOP_P99_NS / 1e6
                    )
                })
            }),
        );
        judge(
            "throttle ratio",
            self.throttle_ratio.map(|ratio| {
                (ratio < MIN_THROTTLE_RATIO).then(|| {
                    format!(
                        "throughput falls to {ratio:.2} of its start, {MIN_THROTTLE_RATIO} is needed (heat, or \
                         burst credits used up)"
                    )
                })
            }),
        );
        judge(
            "processor share",
            self.cpu_time_ratio.map(|ratio| {
                (ratio < MIN_CPU_TIME_RATIO).then(|| {
                    format!(
                        "the node got {ratio:.2} of a processor, {MIN_CPU_TIME_RATIO} is needed (a shared core?)"
                    )
                })
            }),
        );
        judge(
            "slowest window",
            self.slowest_window_rps.map(|rps| {
                (rps < MIN_WINDOW_RPS).then(|| {
                    format!("the slowest window has {rps:.1} requests/s, {MIN_WINDOW_RPS} are needed")
                })
            }),
        );
        judge(
            "integrity",
            self.integrity.map(|ok| (!ok).then(|| "the integrity payload does not verify".to_string())),
        );
        verdict
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn good() -> Figures {
        let mut figures = Figures::default();
        figures.record("benchmark_system", Some(&json!({"total_memory_bytes": MIN_MEMORY_BYTES})));
        figures.record("benchmark_event_loop", Some(&json!({"ns_per_op": {"p99": MAX_EVENT_LOOP_P99_NS}})));
        let sustained = json!({"throttle_ratio": 0.85, "cpu_time_ratio": 0.9, "node_rps_min_window": 50});
        figures.record("benchmark_sustained", Some(&sustained));
        figures.record("integrity", Some(&json!({})));
        figures
    }

    #[test]
    fn exactly_the_thresholds_are_good_enough() {
        assert_eq!(good().verdict(), Verdict::default());
    }

    #[test]
    fn each_threshold_is_missed_by_itself_and_named() {
        for (figures, word) in [
            (Figures { memory_bytes: Some(MIN_MEMORY_BYTES - 1), ..good() }, "memory"),
            (Figures { event_loop_p99_ns: Some(50_000_001.0), ..good() }, "event loop"),
            (Figures { throttle_ratio: Some(0.849), ..good() }, "throughput"),
            (Figures { cpu_time_ratio: Some(0.899), ..good() }, "processor"),
            (Figures { slowest_window_rps: Some(49.9), ..good() }, "window"),
            (Figures { integrity: Some(false), ..good() }, "integrity"),
        ] {
            let verdict = figures.verdict();
            assert_eq!(verdict.missed.len(), 1, "{word}");
            assert!(verdict.missed.iter().all(|m| m.contains(word)), "{verdict:?}");
        }
    }

    #[test]
    fn what_was_not_measured_is_not_missed_but_said() {
        let verdict = Figures::default().verdict();
        assert!(verdict.is_admissible());
        assert_eq!(verdict.not_measured.len(), 6);
    }
}
