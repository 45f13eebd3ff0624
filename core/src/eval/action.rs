//! The eval actions: names, parameters, and the headline of each result.

use alloc::format;
use alloc::string::{String, ToString as _};
use core::ops::RangeInclusive;
use core::time::Duration;

use serde_json::{Number, Value};

use crate::io::Measurement;
use crate::limits::{EVAL_FETCH_TIMEOUT, MAX_ID, MAX_SUSTAINED_MS, MIN_WINDOW_MS};
use crate::text::printable;
use crate::wire::message::EvalParams;

/// An action this release can do.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Action {
    Capabilities,
    Integrity,
    Echo { payload: String, nonce: String },
    Measure(Measurement),
    Fetch { url: String, method: Option<String>, timeout: Duration },
}

impl Action {
    /// The action of a name and its parameters; the error is the answer.
    pub(super) fn parse(name: &str, params: EvalParams) -> Result<Self, String> {
        Ok(match name {
            "capabilities" => Self::Capabilities,
            "integrity" => Self::Integrity,
            "benchmark_system" => Self::Measure(Measurement::System),
            "benchmark_cpu" => Self::Measure(Measurement::Cpu),
            "benchmark_crypto" => Self::Measure(Measurement::Crypto),
            "benchmark_memory" => Self::Measure(Measurement::Memory),
            "benchmark_event_loop" => Self::Measure(Measurement::EventLoop),
            "benchmark_memory_pressure" => Self::Measure(memory_pressure(&params)?),
            "benchmark_composite" => {
                Self::Measure(Measurement::Composite { quick: params.quick.unwrap_or(false) })
            }
            "benchmark_sustained" => Self::Measure(sustained(&params)?),
            "benchmark_multicore" => {
                let duration_ms = number(params.duration_ms.as_ref(), "duration_ms", 1500, 10..=10_000)?;
                Self::Measure(Measurement::Multicore { duration_ms })
            }
            "speedtest_fetch" => {
                let url = params.target_url.ok_or("speedtest_fetch needs a target_url")?;
                let timeout_ms = number(params.timeout_ms.as_ref(), "timeout_ms", 15_000, 1..=u32::MAX)?;
                let timeout = Duration::from_millis(timeout_ms.into()).min(EVAL_FETCH_TIMEOUT);
                Self::Fetch { url, method: params.method, timeout }
            }
            "tunnel_echo" => {
                let payload = params.payload.ok_or("tunnel_echo needs a payload (base64)")?;
                let nonce = params.nonce.unwrap_or_default();
                if nonce.len() > MAX_ID {
                    return Err(format!("the nonce of tunnel_echo is over {MAX_ID} bytes"));
                }
                Self::Echo { payload, nonce }
            }
            other => return Err(format!("this release does not do \"{}\"", printable(other))),
        })
    }
}

/// Whether a registered node does the action (protocol.md section 9): a spot check, not a battery.
pub(crate) fn is_allowed_in_control(name: &str) -> bool {
    matches!(name, "integrity" | "benchmark_sustained")
}

/// The parameters of `benchmark_memory_pressure`, shared with the local API.
pub(crate) fn memory_pressure(params: &EvalParams) -> Result<Measurement, String> {
    Ok(Measurement::MemoryPressure {
        test_size_mb: number(params.test_size_mb.as_ref(), "test_size_mb", 128, 1..=512)?,
        rounds: number(params.rounds.as_ref(), "rounds", 2, 1..=8)?,
    })
}

/// The parameters of `benchmark_sustained`. A window that nobody asked for is no longer than the whole.
fn sustained(params: &EvalParams) -> Result<Measurement, String> {
    let durations = MIN_WINDOW_MS..=MAX_SUSTAINED_MS;
    let duration_ms = number(params.duration_ms.as_ref(), "duration_ms", 60_000, durations)?;
    let windows = MIN_WINDOW_MS..=duration_ms;
    let window_ms = number(params.window_ms.as_ref(), "window_ms", duration_ms.min(5000), windows)?;
    Ok(Measurement::Sustained { duration_ms, window_ms })
}

/// A whole number of a range.
fn number(
    value: Option<&Number>,
    name: &str,
    default: u32,
    range: RangeInclusive<u32>,
) -> Result<u32, String> {
    let Some(value) = value else { return Ok(default) };
    // JavaScript writes 128 and 128.0 alike; some other peers do not.
    let number = value.as_u64().and_then(|n| u32::try_from(n).ok());
    number
        .filter(|n| range.contains(n))
        .ok_or_else(|| format!("{name} must be a whole number from {} to {}", range.start(), range.end()))
}

/// One short phrase that says what came out.
pub(super) fn headline(action: &str, result: &Value) -> String {
    let number = |path: &str| result.pointer(path).and_then(Value::as_f64).unwrap_or(0.0);
    match action {
        "benchmark_system" => format!(
            "{} processors, {:.0} MiB of memory",
            number("/cpus"),
            number("/total_memory_bytes") / (1024.0 * 1024.0)
        ),
        "benchmark_cpu" | "benchmark_crypto" => {
            format!("{:.0} MB/s at 1 KiB{}", number("/bytes_per_second") / 1e6, doubt(result))
        }
        "benchmark_memory" => format!("{:.1} GB/s at 16 MiB{}", number("/bandwidth_gbps"), doubt(result)),
        "benchmark_event_loop" => {
            format!("{:.0} turns/s, p99 {:.3} ms", number("/ops_per_second"), number("/ns_per_op/p99") / 1e6)
        }
        "benchmark_memory_pressure" => {
            format!("{} of {} MiB taken and returned", number("/allocated_mb"), number("/requested_mb"))
        }
        "benchmark_composite" => {
            let per_request = 1e3 / number("/requests_per_second").max(1e-9);
            format!(
                "{:.0} requests/s at 16 KiB, {per_request:.3} ms of the node's time each{}",
                number("/requests_per_second"),
                doubt(result)
            )
        }
        "benchmark_sustained" => format!(
            "{:.0} requests/s in the slowest window, throttle ratio {:.3}, processor share {:.3}",
            number("/node_rps_min_window"),
            number("/throttle_ratio"),
            number("/cpu_time_ratio")
        ),
        "benchmark_multicore" => {
            format!("{} cores do the work of {:.2}", number("/cores"), number("/effective_cores"))
        }
        "speedtest_fetch" => {
            format!("{}, {} bytes in {} ms", number("/status"), number("/bytes"), number("/node_ms"))
        }
        "tunnel_echo" => format!("{} bytes", number("/bytes")),
        _ => "answered".to_string(),
    }
}

fn doubt(result: &Value) -> &'static str {
    if result.get("reliable") == Some(&Value::Bool(false)) { " (unsteady)" } else { "" }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn parameters_have_defaults_and_bounds() {
        let parse = |params: Value| {
            Action::parse("benchmark_memory_pressure", serde_json::from_value(params).unwrap_or_default())
        };
        let measure =
            |test_size_mb, rounds| Ok(Action::Measure(Measurement::MemoryPressure { test_size_mb, rounds }));
        assert_eq!(parse(json!({})), measure(128, 2));
        assert_eq!(parse(json!({"test_size_mb": null, "rounds": 8})), measure(128, 8));
        assert_eq!(parse(json!({"test_size_mb": 512, "rounds": 1})), measure(512, 1));
        for wrong in [json!(0), json!(513), json!(-1), json!(1.5), json!(1e300)] {
            assert!(parse(json!({"test_size_mb": wrong})).is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_sustained_measurement_has_windows_that_fit_in_it() {
        let parse = |params: Value| {
            Action::parse("benchmark_sustained", serde_json::from_value(params).unwrap_or_default())
        };
        let sustained =
            |duration_ms, window_ms| Ok(Action::Measure(Measurement::Sustained { duration_ms, window_ms }));
        assert_eq!(parse(json!({})), sustained(60_000, 5000));
        assert_eq!(parse(json!({"duration_ms": 30_000})), sustained(30_000, 5000));
        assert_eq!(parse(json!({"duration_ms": 3000})), sustained(3000, 3000));
        assert_eq!(parse(json!({"duration_ms": 5000, "window_ms": 1000})), sustained(5000, 1000));
        for wrong in [
            json!({"duration_ms": 99}),
            json!({"duration_ms": 600_001}),
            json!({"window_ms": 99}),
            json!({"duration_ms": 1000, "window_ms": 1001}),
        ] {
            assert!(parse(wrong.clone()).is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_fetch_has_a_target_and_no_more_than_its_time() {
        let parse = |params: Value| {
            Action::parse("speedtest_fetch", serde_json::from_value(params).unwrap_or_default())
        };
        let url = "http://a.example/";
        let fetch = |timeout| Ok(Action::Fetch { url: url.to_string(), method: None, timeout });
        assert_eq!(parse(json!({"target_url": url})), fetch(Duration::from_secs(15)));
        assert_eq!(parse(json!({"target_url": url, "timeout_ms": 7})), fetch(Duration::from_millis(7)));
        assert_eq!(parse(json!({"target_url": url, "timeout_ms": 99_000})), fetch(EVAL_FETCH_TIMEOUT));
        assert!(parse(json!({})).is_err() && parse(json!({"target_url": url, "timeout_ms": 0})).is_err());
    }

    #[test]
    fn an_unknown_action_is_answered_in_printable_words() {
        let error = Action::parse("rm\u{1b}[2J", EvalParams::default()).unwrap_err();
        assert_eq!(error, "this release does not do \"rm [2J\"");
    }
}
