//! What a node costs: bytes on disk, time to connect, memory when idle.

use std::fs;
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use argh::FromArgs;
use consensus_core::tunnel::Mode;
use serde_json::{Value, json};

use crate::binaries::{self, Shell};
use crate::memory::{self, Memory};
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

    /// the node's program, of the shell that --shell says; without it both shells are built
    #[argh(option)]
    pub node: Option<PathBuf>,
}

/// The figures of one shell. What the system does not tell is 0.
struct Figures {
    shell: Shell,
    /// `None` of a script, which is not what it runs.
    size: Option<u64>,
    starts: Vec<Duration>,
    memory: Memory,
    threads: usize,
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
            "idle_rss_kib": self.memory.resident, "peak_rss_kib": self.memory.peak, "threads": self.threads,
        })
    }
}

/// Measures and prints; `true` when everything could be measured.
#[must_use]
pub fn run(footprint: &Footprint) -> bool {
    if footprint.node.is_some() && footprint.shell.is_none() {
        eprintln!("consensus-testbed: --node takes a --shell beside it");
        return false;
    }
    let shells: Vec<Shell> =
        Shell::ALL.into_iter().filter(|shell| footprint.shell.is_none_or(|only| only == *shell)).collect();
    let mut all = Vec::new();
    for shell in shells {
        match measure(shell, footprint.node.as_deref()) {
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
            "{:<9} {:>12} {:>13.1} ms {:>13.1} ms {:>6.2} MiB {:>6.2} MiB {:>8}",
            figures.shell.name(),
            figures
                .size
                .map_or(String::from("-"), |size| format!("{:.2} MiB", size as f64 / f64::from(1 << 20))),
            figures.median_ms(),
            figures.starts.first().map_or(0.0, |start| start.as_secs_f64() * 1e3),
            figures.memory.resident as f64 / 1024.0,
            figures.memory.peak as f64 / 1024.0,
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

fn measure(shell: Shell, node: Option<&Path>) -> io::Result<Figures> {
    let program = match node {
        Some(program) => std::path::absolute(program)?,
        None => binaries::build(shell)?,
    };
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
    let threads = fs::read_dir(format!("/proc/{}/task", node.pid())).map_or(0, Iterator::count);
    Ok(Figures {
        shell,
        size: stripped_size(&program, &network)?,
        starts,
        memory: memory::of(node.pid()).unwrap_or_default(),
        threads,
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
fn stripped_size(program: &Path, network: &Network) -> io::Result<Option<u64>> {
    let mut begin = [0; 2];
    fs::File::open(program)?.read_exact(&mut begin)?;
    if begin == *b"#!" {
        return Ok(None);
    }
    let stripped = network.home.root().join("stripped");
    let done = Command::new("strip").arg("-o").arg(&stripped).arg(program).status();
    let path = if done.is_ok_and(|status| status.success()) { stripped.as_path() } else { program };
    Ok(Some(fs::metadata(path)?.len()))
}
