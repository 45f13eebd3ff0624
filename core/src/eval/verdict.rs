//! The node's own judgement of what it measured, by the server's thresholds (protocol.md section 5).
//!
//! On a failure the server sends nothing, so this is what tells the operator why.

use alloc::format;
use alloc::string::{String, ToString as _};
use alloc::vec::Vec;
use core::fmt;

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

    /// Each threshold, and how the figures stand to it.
    #[must_use]
    pub fn judge(&self) -> [Judged; 6] {
        let at_least = |figure: Option<f64>, least: f64| figure.map(|figure| figure >= least);
        let ratio = |figure: Option<f64>, least: f64| figure.map(|figure| shown(figure, 3, least));
        [
            Judged {
                name: "memory",
                measured: self.memory_bytes.map(|bytes| format!("{} MiB", bytes >> 20)),
                needed: format!("at least {} MiB", MIN_MEMORY_BYTES >> 20),
                met: self.memory_bytes.map(|bytes| bytes >= MIN_MEMORY_BYTES),
                cause: "a machine, or a limit of its container, that is too small",
            },
            Judged {
                name: "event loop",
                measured: self
                    .event_loop_p99_ns
                    .map(|p99| format!("p99 {} ms", shown(p99 / 1e6, 3, MAX_EVENT_LOOP_P99_NS / 1e6))),
                needed: format!("at most {:.0} ms", MAX_EVENT_LOOP_P99_NS / 1e6),
                met: self.event_loop_p99_ns.map(|p99| p99 <= MAX_EVENT_LOOP_P99_NS),
                cause: "a machine that is busy with something else",
            },
            Judged {
                name: "throttle ratio",
                measured: ratio(self.throttle_ratio, MIN_THROTTLE_RATIO),
                needed: format!("at least {MIN_THROTTLE_RATIO}"),
                met: at_least(self.throttle_ratio, MIN_THROTTLE_RATIO),
                cause: "burst credits that are used up, or heat",
            },
            Judged {
                name: "processor share",
                measured: ratio(self.cpu_time_ratio, MIN_CPU_TIME_RATIO),
                needed: format!("at least {MIN_CPU_TIME_RATIO}"),
                met: at_least(self.cpu_time_ratio, MIN_CPU_TIME_RATIO),
                cause: "a core that is shared with other programs or other machines",
            },
            Judged {
                name: "slowest window",
                measured: self
                    .slowest_window_rps
                    .map(|rps| format!("{} requests/s", shown(rps, 1, MIN_WINDOW_RPS))),
                needed: format!("at least {MIN_WINDOW_RPS} requests/s"),
                met: at_least(self.slowest_window_rps, MIN_WINDOW_RPS),
                cause: "a processor that is too slow, or was taken away for a while",
            },
            Judged {
                name: "integrity",
                measured: self.integrity.map(|ok| if ok { "signed" } else { "not signed" }.to_string()),
                needed: "a signed word on what runs".to_string(),
                met: self.integrity,
                cause: "a release that is not the network's",
            },
        ]
    }

    /// Judges.
    #[must_use]
    pub fn verdict(&self) -> Verdict {
        let mut verdict = Verdict::default();
        for judged in self.judge() {
            match judged.met {
                None => verdict.not_measured.push(judged.name.to_string()),
                Some(true) => {}
                Some(false) => verdict.missed.push(judged.to_string()),
            }
        }
        verdict
    }
}

/// A figure with so many digits; with all of them where it would look like the threshold, which it is not.
fn shown(figure: f64, digits: usize, threshold: f64) -> String {
    let short = format!("{figure:.digits$}");
    let is_alike = short.parse().is_ok_and(|seen: f64| seen.total_cmp(&threshold).is_eq());
    if is_alike && figure.total_cmp(&threshold).is_ne() { format!("{figure}") } else { short }
}

/// One threshold.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Judged {
    /// In a word or two.
    pub name: &'static str,
    /// The figure, where there is one.
    pub measured: Option<String>,
    /// The threshold.
    pub needed: String,
    /// Whether it is met.
    pub met: Option<bool>,
    /// What it usually is where it is missed.
    pub cause: &'static str,
}

impl fmt::Display for Judged {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let measured = self.measured.as_deref().unwrap_or("not measured");
        write!(f, "{}: {measured}, needed is {} (usually {})", self.name, self.needed, self.cause)
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
            (Figures { throttle_ratio: Some(0.849), ..good() }, "throttle"),
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
    fn a_figure_that_misses_narrowly_is_not_shown_as_the_threshold() {
        for (figures, words) in [
            (
                Figures { event_loop_p99_ns: Some(50_000_001.0), ..good() },
                "p99 50.000001 ms, needed is at most 50 ms",
            ),
            (Figures { throttle_ratio: Some(0.8496), ..good() }, "0.8496, needed is at least 0.85"),
            (Figures { cpu_time_ratio: Some(0.8996), ..good() }, "0.8996, needed is at least 0.9"),
            (
                Figures { slowest_window_rps: Some(49.96), ..good() },
                "49.96 requests/s, needed is at least 50",
            ),
        ] {
            let verdict = figures.verdict();
            assert!(verdict.missed.iter().any(|m| m.contains(words)), "{verdict:?} has not {words:?}");
        }
        let [_, _, throttle, ..] = good().judge();
        assert_eq!(throttle.measured.as_deref(), Some("0.850"));
    }

    #[test]
    fn what_was_not_measured_is_not_missed_but_said() {
        let verdict = Figures::default().verdict();
        assert!(verdict.is_admissible());
        assert_eq!(verdict.not_measured.len(), 6);
    }
}
