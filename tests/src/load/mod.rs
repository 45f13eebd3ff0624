//! What a node does under load: requests a second, how long they take, and what each costs the node.

mod bench;
mod cores;
mod meter;
mod streams;
mod upstream;

use std::collections::BTreeMap;
use std::io;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use argh::FromArgs;
use serde_json::{Value, json};

use self::bench::{Bench, Measured};
use crate::binaries::{self, Shell};

/// What is fetched, in bytes.
const SIZES: [usize; 3] = [1024, 16 * 1024, 256 * 1024];

/// How many requests are under way at once.
const AT_ONCE: [usize; 2] = [1, 64];

/// Measure nodes under load: requests a second, latency, and the node's processor time and memory.
///
/// Example: cargo run --release -p consensus-testbed -- load --shell smol
#[derive(Clone, Debug, FromArgs)]
#[argh(subcommand, name = "load")]
pub struct Load {
    /// one shell only: smol or blocking
    #[argh(option)]
    pub shell: Option<Shell>,

    /// the node's program, of the shell that --shell says; without it both shells are built
    #[argh(option)]
    pub node: Option<PathBuf>,

    /// seconds each figure is measured for (default 5)
    #[argh(option, default = "5.0")]
    pub seconds: f64,

    /// one part only: proxy, data-plane, connect, streams or cores (which is measured by this alone)
    #[argh(option)]
    pub only: Option<Part>,

    /// bodies of that many KiB only (default 1, 16 and 256)
    #[argh(option)]
    pub kib: Option<usize>,

    /// that many requests at once only (default 1 and 64)
    #[argh(option)]
    pub at_once: Option<usize>,

    /// bodies of 16 KiB only, and less through the streams, for a look at whether all is well
    #[argh(switch)]
    pub short: bool,

    /// write JSON instead of a table
    #[argh(switch)]
    pub json: bool,
}

/// Part of the measurement.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// Requests of one kind.
    Requests(Kind),
    /// Many streams at once.
    Streams,
    /// The same requests on one core and on two.
    Cores,
}

impl FromStr for Part {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let kinds = Kind::ALL.into_iter().map(Self::Requests);
        let mut parts = kinds.chain([Self::Streams, Self::Cores]);
        parts
            .find(|part| match part {
                Self::Requests(kind) => kind.name() == text,
                Self::Streams => text == "streams",
                Self::Cores => text == "cores",
            })
            .ok_or_else(|| format!("{text}: there are proxy, data-plane, connect, streams and cores"))
    }
}

/// A kind of request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Of the network itself: `proxy_request`, on the control tunnel.
    Proxy,
    /// Of clients of the data plane, on streams of the control tunnel.
    DataPlane,
    /// Of clients of the data plane, at the node's own `/connect`.
    Connect,
}

impl Kind {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Proxy, Self::DataPlane, Self::Connect];

    /// Its name in options and tables.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Proxy => "proxy",
            Self::DataPlane => "data-plane",
            Self::Connect => "connect",
        }
    }
}

/// One row of the table of requests.
struct Row {
    shell: Shell,
    kind: Kind,
    size: usize,
    at_once: usize,
    measured: Measured,
}

impl Row {
    fn per_second(&self) -> f64 {
        self.measured.latencies.len() as f64 / self.measured.took.as_secs_f64()
    }

    fn latency_ms(&self, percent: usize) -> f64 {
        meter::percentile(&self.measured.latencies, percent).as_secs_f64() * 1e3
    }

    fn cpu_ms(&self) -> f64 {
        self.measured.node_cpu.as_secs_f64() * 1e3 / self.measured.latencies.len().max(1) as f64
    }

    fn crypto_ms(&self) -> f64 {
        self.measured.crypto.iter().map(|cost| cost.total.as_secs_f64() * 1e3).sum::<f64>() / 2.0
    }

    /// Milliseconds of each kind of operation.
    fn crypto_parts(&self) -> BTreeMap<&'static str, f64> {
        let mut parts = BTreeMap::<_, f64>::new();
        for (kind, (_, sum)) in self.measured.crypto.iter().flat_map(|cost| &cost.kinds) {
            *parts.entry(*kind).or_default() += sum.as_secs_f64() * 1e3 / 2.0;
        }
        parts
    }

    fn to_json(&self) -> Value {
        json!({
            "shell": self.shell.name(), "kind": self.kind.name(), "bytes": self.size, "at_once": self.at_once,
            "requests": self.measured.latencies.len(), "seconds": self.measured.took.as_secs_f64(),
            "requests_per_second": self.per_second(),
            "latency_ms": { "p50": self.latency_ms(50), "p99": self.latency_ms(99) },
            "node_cpu_ms_per_request": self.cpu_ms(), "crypto_ms_per_request": self.crypto_ms(),
            "crypto_ms_by_kind": self.crypto_parts(),
            "cpu_over_crypto": self.cpu_ms() / self.crypto_ms(),
            "rss_kib": self.measured.memory.resident, "peak_rss_kib": self.measured.memory.peak,
        })
    }

    const HEAD: &'static str = "shell     requests       body at once per second    p50 ms    p99 ms    CPU ms \
                                crypto ms  ratio      RSS     peak";

    fn print(&self) {
        println!(
            "{:<9} {:<10} {:>4} KiB {:>7} {:>10.0} {:>9.2} {:>9.2} {:>9.4} {:>9.4} {:>6.2} {:>8.2} {:>8.2}",
            self.shell.name(),
            self.kind.name(),
            self.size / 1024,
            self.at_once,
            self.per_second(),
            self.latency_ms(50),
            self.latency_ms(99),
            self.cpu_ms(),
            self.crypto_ms(),
            self.cpu_ms() / self.crypto_ms(),
            self.measured.memory.resident as f64 / 1024.0,
            self.measured.memory.peak as f64 / 1024.0,
        );
    }
}

/// Measures and prints; `true` when everything could be measured, every byte was right, and the node kept to its
/// memory.
#[must_use]
pub fn run(load: &Load) -> bool {
    match measure(load) {
        Ok(within_bounds) => within_bounds,
        Err(error) => {
            eprintln!("consensus-testbed: {error}");
            false
        }
    }
}

fn measure(load: &Load) -> io::Result<bool> {
    if !(load.seconds > 0.0 && load.seconds <= 3600.0) {
        return Err(io::Error::other("--seconds is not between 0 and 3600"));
    }
    if load.node.is_some() && load.shell.is_none() {
        return Err(io::Error::other("--node takes a --shell beside it"));
    }
    let mut programs = Vec::new();
    for shell in Shell::ALL.into_iter().filter(|shell| load.shell.is_none_or(|only| only == *shell)) {
        let program = match &load.node {
            Some(program) => std::path::absolute(program)?,
            None => binaries::build(shell)?,
        };
        programs.push((shell, program));
    }
    let requests = measure_requests(load, &programs)?;
    let streams = measure_streams(load, &programs)?;
    let cores = measure_cores(load, &programs)?;
    if load.json {
        let requests: Vec<Value> = requests.iter().map(Row::to_json).collect();
        let streams: Vec<Value> = streams.iter().map(streams::Row::to_json).collect();
        let cores: Vec<Value> = cores.iter().map(cores::Row::to_json).collect();
        println!(
            "{}",
            json!({ "profile": binaries::PROFILE, "requests": requests, "streams": streams, "cores": cores })
        );
    } else {
        println!(
            "\nEverything on this machine: the node, the network, its clients and what they fetch from share its \
             processors. CPU is the node's, user and system, for one request; crypto what the cryptography of one \
             costs alone; memory is in MiB. Profile: {}{}",
            binaries::PROFILE,
            if cfg!(debug_assertions) { " (use --release for figures that mean something)" } else { "" }
        );
    }
    Ok(streams.iter().all(streams::Row::is_within_bounds))
}

fn measure_requests(load: &Load, programs: &[(Shell, PathBuf)]) -> io::Result<Vec<Row>> {
    let window = Duration::from_secs_f64(load.seconds);
    let kib = load.kib.or(load.short.then_some(16));
    let sizes = kib.map_or(SIZES.to_vec(), |kib| vec![kib * 1024]);
    let at_once = load.at_once.map_or(AT_ONCE.to_vec(), |only| vec![only]);
    let wanted = |kind: &Kind| load.only.is_none_or(|only| only == Part::Requests(*kind));
    let kinds: Vec<Kind> = Kind::ALL.into_iter().filter(wanted).collect();
    let mut rows = Vec::new();
    if !load.json && !kinds.is_empty() {
        println!("{}", Row::HEAD);
    }
    for (shell, program) in programs {
        for kind in &kinds {
            for &size in &sizes {
                for &at_once in &at_once {
                    let (shell, kind) = (*shell, *kind);
                    let measured = Bench::start(program, &[], size, 1)
                        .and_then(|bench| bench.measure(kind, at_once, window))
                        .map_err(|error| {
                            let what = format!("{size} bytes, {at_once} at once");
                            io::Error::other(format!("{}, {}, {what}: {error}", shell.name(), kind.name()))
                        })?;
                    let row = Row { shell, kind, size, at_once, measured };
                    if !load.json {
                        row.print();
                    }
                    rows.push(row);
                }
            }
        }
    }
    Ok(rows)
}

fn measure_streams(load: &Load, programs: &[(Shell, PathBuf)]) -> io::Result<Vec<streams::Row>> {
    let mut rows = Vec::new();
    if load.only.is_some_and(|only| only != Part::Streams) {
        return Ok(rows);
    }
    if !load.json {
        println!("{}", streams::Row::HEAD);
    }
    for (shell, program) in programs {
        for measure in [streams::data_plane, streams::public_tunnel] {
            let row = measure(*shell, program, load.short)
                .map_err(|error| io::Error::other(format!("{}, streams: {error}", shell.name())))?;
            if !load.json {
                row.print();
            }
            rows.push(row);
        }
    }
    Ok(rows)
}

fn measure_cores(load: &Load, programs: &[(Shell, PathBuf)]) -> io::Result<Vec<cores::Row>> {
    let mut rows = Vec::new();
    if load.only != Some(Part::Cores) {
        return Ok(rows);
    }
    if !load.json {
        println!("{}", cores::Row::HEAD);
    }
    let (size, window) = (load.kib.unwrap_or(16) * 1024, Duration::from_secs_f64(load.seconds));
    for (shell, program) in programs {
        for kind in [Kind::Connect, Kind::DataPlane] {
            let row = cores::measure(*shell, program, kind, size, window)
                .map_err(|error| io::Error::other(format!("{}, cores: {error}", shell.name())))?;
            if !load.json {
                row.print();
            }
            rows.push(row);
        }
    }
    Ok(rows)
}
