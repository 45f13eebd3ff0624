//! What a measurement gives: the results of protocol.md section 5, as they stand in an `eval_response`.

use alloc::string::String;
use alloc::vec::Vec;

use serde::{Deserialize, Serialize};

/// The result of one [`Measurement`](crate::io::Measurement). Serialises as the bare result object.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[expect(missing_docs, reason = "each variant is named as the measurement it reports")]
pub enum Report {
    System(System),
    Cpu(Cpu),
    Crypto(CryptoReport),
    Memory(Memory),
    EventLoop(BenchResult),
    MemoryPressure(MemoryPressure),
}

impl Report {
    /// The bare result object of an `eval_response` or of the local API.
    #[must_use]
    pub fn to_json(&self) -> serde_json::Value {
        let value = match self {
            Self::System(r) => serde_json::to_value(r),
            Self::Cpu(r) => serde_json::to_value(r),
            Self::Crypto(r) => serde_json::to_value(r),
            Self::Memory(r) => serde_json::to_value(r),
            Self::EventLoop(r) => serde_json::to_value(r),
            Self::MemoryPressure(r) => serde_json::to_value(r),
        };
        value.unwrap_or(serde_json::Value::Null)
    }
}

/// A bench result: one operation timed many times.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct BenchResult {
    /// Such as `sha256-1KB`.
    pub name: String,
    /// Whether the figures can be trusted: cv under 0.10 and at least 10 samples.
    pub reliable: bool,
    /// Timed batches.
    pub samples: u64,
    /// Operations in all of them.
    pub total_ops: u64,
    /// The timed part, in whole milliseconds.
    pub duration_ms: u64,
    /// 1e9 / mean.
    pub ops_per_second: f64,
    /// Nanoseconds for one operation, over the samples.
    pub ns_per_op: NsPerOp,
    /// The coefficient of variation: stddev / mean.
    pub cv: f64,
}

/// The distribution of the time of one operation, in nanoseconds.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[expect(missing_docs, reason = "each field is the statistic of its name")]
pub struct NsPerOp {
    pub min: f64,
    pub median: f64,
    pub mean: f64,
    pub p95: f64,
    pub p99: f64,
    pub stddev: f64,
}

/// `benchmark_system`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct System {
    /// `linux` or `darwin`.
    pub platform: String,
    /// `x64`, `arm64` or `arm`.
    pub arch: String,
    /// Logical processors this process may use.
    pub cpus: u32,
    /// Physical memory, or the control group's limit where that is lower.
    pub total_memory_bytes: u64,
    /// Memory that could be taken without swapping.
    pub free_memory_bytes: u64,
    /// Of the machine.
    pub uptime_seconds: u64,
    /// The runtime's own version field (protocol.md section 5): the compiler that built this program.
    pub rust_version: String,
}

/// One size of a throughput benchmark: a bench result and what it means in bytes.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Sized {
    /// The operand, in bytes.
    pub size_bytes: u64,
    /// Bytes of operand a second, by the mean.
    pub bytes_per_second: f64,
    /// The timing.
    #[serde(flatten)]
    pub bench: BenchResult,
}

/// `benchmark_cpu`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Cpu {
    /// `sha256`.
    pub algorithm: String,
    /// 64 B, 1 KiB, 16 KiB.
    pub results: Vec<Sized>,
    /// At 1 KiB.
    pub bytes_per_second: f64,
    /// Whether all results are.
    pub reliable: bool,
}

/// `benchmark_crypto`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct CryptoReport {
    /// `chacha20-poly1305`.
    pub algorithm: String,
    /// 64 B, 1 KiB, 16 KiB; one operation seals and opens.
    pub results: Vec<Sized>,
    /// At 1 KiB.
    pub bytes_per_second: f64,
    /// Over all sizes: bytes of all operations by the time of all operations.
    pub total_bytes_per_second: f64,
    /// Whether all results are.
    pub reliable: bool,
}

/// `benchmark_memory`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Memory {
    /// 1, 16, 64 MiB; `bytes_per_second` counts 2 × size a copy: read and written.
    pub copy: Vec<Sized>,
    /// At 16 MiB, in 10⁹ bytes a second.
    pub bandwidth_gbps: f64,
    /// At 16 MiB.
    pub bytes_per_second: f64,
    /// Whether all results are.
    pub reliable: bool,
}

/// `benchmark_memory_pressure`. Sizes in MiB, `-1` where the platform does not tell.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct MemoryPressure {
    /// Whether all of it could be taken and touched in every round.
    pub success: bool,
    /// What was asked for.
    pub requested_mb: u32,
    /// Rounds asked for.
    pub rounds: u32,
    /// The most that was taken at once.
    pub allocated_mb: u32,
    /// All rounds.
    pub duration_ms: u64,
    /// Resident memory before the first round.
    pub rss_before_mb: f64,
    /// The highest seen.
    pub rss_peak_mb: f64,
    /// After the last round.
    pub rss_after_mb: f64,
    /// After less before, not under zero.
    pub rss_retained_mb: f64,
}
