//! The eval actions: names, parameters, and the headline of each result.

use alloc::format;
use alloc::string::{String, ToString as _};

use serde_json::{Number, Value};

use crate::io::Measurement;
use crate::limits::MAX_ID;
use crate::text::printable;
use crate::wire::message::EvalParams;

/// An action this release can do.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Action {
    Capabilities,
    Integrity,
    Echo { payload: String, nonce: String },
    Measure(Measurement),
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
        test_size_mb: number(params.test_size_mb.as_ref(), "test_size_mb", 128, 512)?,
        rounds: number(params.rounds.as_ref(), "rounds", 2, 8)?,
    })
}

/// A whole number from 1 to `max`.
fn number(value: Option<&Number>, name: &str, default: u32, max: u32) -> Result<u32, String> {
    let Some(value) = value else { return Ok(default) };
    // JavaScript writes 128 and 128.0 alike; some other peers do not.
    let number = value.as_u64().and_then(|n| u32::try_from(n).ok());
    number
        .filter(|n| (1..=max).contains(n))
        .ok_or_else(|| format!("{name} must be a whole number from 1 to {max}"))
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
    fn an_unknown_action_is_answered_in_printable_words() {
        let error = Action::parse("rm\u{1b}[2J", EvalParams::default()).unwrap_err();
        assert_eq!(error, "this release does not do \"rm [2J\"");
    }
}
