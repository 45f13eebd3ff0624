//! What a node costs: bytes on disk, time to connect, memory when idle.

use std::fs;
use std::io;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use argh::FromArgs;
use consensus_core::tunnel::Mode;
use serde_json::{Value, json};

use crate::binaries::{self, Shell};
use crate::network::Network;
use crate::orchestrator::Record;
use crate::process::NodeProcess;

/// Starts that the median is of.
const STARTS: usize = 11;

/// How long a node is left alone before its memory is looked at.
const IDLE: Duration = Duration::from_secs(10);

/// Longer than any start.
const TIMEOUT: Duration = Duration::from_secs(30);

/// Measure each shell: size of the stripped program, time from start to `ready`, memory when idle.
///
/// Example: cargo run --release -p consensus-testbed -- footprint
#[derive(Clone, Debug, FromArgs)]
#[argh(subcommand, name = "footprint")]
pub struct Footprint {
    /// write JSON instead of a table
    #[argh(switch)]
    pub json: bool,

    /// one shell only: smol or blocking
    #[argh(option)]
    pub shell: Option<Shell>,
}

/// The figures of one shell. What the system does not tell is 0.
struct Figures {
    shell: Shell,
    size: u64,
    starts: Vec<Duration>,
    rss_kib: u64,
    peak_kib: u64,
    threads: u64,
}

impl Figures {
    fn median_ms(&self) -> f64 {
        self.starts.get(self.starts.len() / 2).map_or(0.0, |median| median.as_secs_f64() * 1e3)
    }

    fn to_json(&self) -> Value {
        let starts: Vec<f64> = self.starts.iter().map(|start| start.as_secs_f64() * 1e3).collect();
        json!({
            "shell": self.shell.name(), "profile": binaries::PROFILE, "binary_bytes": self.size,
            "start_to_ready_ms": { "median": self.median_ms(), "all": starts },
            "idle_rss_kib": self.rss_kib, "peak_rss_kib": self.peak_kib, "threads": self.threads,
        })
    }
}

/// Measures and prints; `true` when everything could be measured.
#[must_use]
pub fn run(footprint: &Footprint) -> bool {
    let shells: Vec<Shell> =
        Shell::ALL.into_iter().filter(|shell| footprint.shell.is_none_or(|only| only == *shell)).collect();
    let mut all = Vec::new();
    for shell in shells {
        match measure(shell) {
            Ok(figures) => all.push(figures),
            Err(error) => {
                eprintln!("consensus-testbed: {}: {error}", shell.name());
                return false;
            }
        }
    }
    if footprint.json {
        println!("{}", Value::from(all.iter().map(Figures::to_json).collect::<Vec<_>>()));
        return true;
    }
    println!(
        "{:<9} {:>12} {:>16} {:>16} {:>10} {:>10} {:>8}",
        "shell", "binary", "start to ready", "(fastest)", "idle RSS", "peak RSS", "threads"
    );
    for figures in &all {
        println!(
            "{:<9} {:>8.2} MiB {:>13.1} ms {:>13.1} ms {:>6.2} MiB {:>6.2} MiB {:>8}",
            figures.shell.name(),
            figures.size as f64 / f64::from(1 << 20),
            figures.median_ms(),
            figures.starts.first().map_or(0.0, |start| start.as_secs_f64() * 1e3),
            figures.rss_kib as f64 / 1024.0,
            figures.peak_kib as f64 / 1024.0,
            figures.threads,
        );
    }
    println!(
        "\n`control` over ws to a server on the same machine, median of {STARTS} starts; memory {} s after `ready`. \
         Profile: {}{}",
        IDLE.as_secs(),
        binaries::PROFILE,
        if cfg!(debug_assertions) { " (use --release for figures that mean something)" } else { "" }
    );
    true
}

fn measure(shell: Shell) -> io::Result<Figures> {
    let program = binaries::build(shell)?;
    let network = Network::start(false)?;
    network.register_node()?;
    // Once untimed, so that the program is in the page cache.
    start(&network, &program)?;
    let mut starts = Vec::new();
    for _ in 0..STARTS {
        starts.push(start(&network, &program)?.1);
    }
    starts.sort_unstable();
    let (node, _) = start(&network, &program)?;
    // This is a measurement of idleness: there is nothing to wait for but time.
    std::thread::sleep(IDLE);
    let status = fs::read_to_string(format!("/proc/{}/status", node.pid())).unwrap_or_default();
    let figure = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name))?;
        line.trim_start_matches(':').split_whitespace().next()?.parse().ok()
    };
    Ok(Figures {
        shell,
        size: stripped_size(&program, &network)?,
        starts,
        rss_kib: figure("VmRSS").unwrap_or(0),
        peak_kib: figure("VmHWM").unwrap_or(0),
        threads: figure("Threads").unwrap_or(0),
    })
}

/// Starts a node and waits for its session: the time from just before the process is made to the moment the server
/// sends `ready`.
fn start(network: &Network, program: &Path) -> io::Result<(NodeProcess, Duration)> {
    let journal = network.orchestrator.journal();
    let mark = journal.mark();
    let mut command = network.node(program, ["control"]);
    command.env("CONSENSUS_LOG_LEVEL", "info");
    let begun = Instant::now();
    let node = NodeProcess::spawn(command)?;
    let ready = journal.wait(mark, TIMEOUT, |record| match record {
        Record::Ready { mode: Mode::Control, .. } => Some(()),
        _ => None,
    });
    match ready {
        Some((at, ())) => Ok((node, at.duration_since(begun))),
        None => {
            let said = node.lines(0).iter().map(|line| line.text.clone()).collect::<Vec<_>>().join("\n");
            Err(io::Error::new(io::ErrorKind::TimedOut, format!("no session; the node said:\n{said}")))
        }
    }
}

/// The size of the program without symbols. The release profile strips already; other builds are stripped here,
/// where there is a `strip`.
fn stripped_size(program: &Path, network: &Network) -> io::Result<u64> {
    let stripped = network.home.root().join("stripped");
    let done = Command::new("strip").arg("-o").arg(&stripped).arg(program).status();
    let path = if done.is_ok_and(|status| status.success()) { stripped.as_path() } else { program };
    Ok(fs::metadata(path)?.len())
}
