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
    Composite(Composite),
    Sustained(Sustained),
    Multicore(Multicore),
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
            Self::Composite(r) => serde_json::to_value(r),
            Self::Sustained(r) => serde_json::to_value(r),
            Self::Multicore(r) => serde_json::to_value(r),
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

/// `benchmark_composite` (protocol.md section 6).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Composite {
    /// 1, 16, 256 KiB.
    pub results: Vec<CompositeSize>,
    /// The node's own time alone, at 16 KiB.
    pub requests_per_second: f64,
    /// Whether all results are.
    pub reliable: bool,
}

/// The composite workload for a response of one size.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct CompositeSize {
    /// Of the response's body.
    pub response_size_bytes: u64,
    /// The whole iteration, the client's side included.
    pub exchange: BenchResult,
    /// 1e9 / [`node_ns_per_request`](Self::node_ns_per_request).
    pub node_requests_per_second: f64,
    /// The sum of the stages' means.
    pub node_ns_per_request: f64,
    /// The node's own time.
    pub stages: Stages,
    /// Whether the exchange is.
    pub reliable: bool,
}

/// The node's work for one request, in order.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Stages {
    /// `data_init` is answered: key agreement, proof, session keys.
    pub handshake: StageTime,
    /// The frame is opened, the request parsed, its body decoded.
    pub request_open: StageTime,
    /// The ticket is verified, bound to the request, and spent.
    pub ticket_verify: StageTime,
    /// The response is written as it will be sealed.
    pub response_encode: StageTime,
    /// The frame is sealed.
    pub response_seal: StageTime,
}

/// What one stage takes.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct StageTime {
    /// For one request, in nanoseconds.
    pub mean_ns: f64,
    /// Of the node's whole time, from 0 to 1.
    pub share: f64,
}

/// `benchmark_sustained`. Every `node_rps` is requests by the node's own time alone.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Sustained {
    /// Of the response's body.
    pub response_size_bytes: u64,
    /// As asked for.
    pub duration_ms: u64,
    /// As asked for.
    pub window_ms: u64,
    /// The whole ones.
    pub windows: Vec<Window>,
    /// Those of a last window that is not whole included.
    pub total_requests: u64,
    /// Over the windows, as all that follow.
    pub node_rps_mean: f64,
    /// The first two.
    pub node_rps_early: f64,
    /// The last two.
    pub node_rps_late: f64,
    /// The slowest.
    pub node_rps_min_window: f64,
    /// The fastest.
    pub node_rps_max_window: f64,
    /// Late by early.
    pub throttle_ratio: f64,
    /// The thread's processor time by the time that passed.
    pub cpu_time_ratio: f64,
    /// Whether the throttle ratio is at least 0.85.
    pub steady: bool,
}

/// One window of a sustained measurement.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Window {
    /// Since the begin of the measurement.
    pub start_ms: u64,
    /// Requests that ended in it.
    pub requests: u64,
    /// By the time that passed.
    pub rps: f64,
    /// By the node's own time alone.
    pub node_rps: f64,
}

/// `benchmark_multicore`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Multicore {
    /// Logical processors this process may use.
    pub cores: u32,
    /// `int-mix`.
    pub chain: String,
    /// 1, 2, 4 … workers, and one a core.
    pub points: Vec<Point>,
    /// Of one worker alone.
    pub single_ops_per_second: f64,
    /// The most that any number of workers did together, by what one does alone.
    pub effective_cores: f64,
}

/// So many workers at once.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Point {
    /// How many.
    pub workers: u32,
    /// Of all together.
    pub total_ops_per_second: f64,
    /// Of each.
    pub per_worker_ops_per_second: f64,
    /// Of each, by what one does alone.
    pub efficiency: f64,
}
