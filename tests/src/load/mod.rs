//! What a node does under load: requests a second, how long they take, and what each costs the node.

mod client;
mod crypto;
mod meter;
mod upstream;

use std::collections::BTreeMap;
use std::fs;
use std::future::Future;
use std::io;
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use argh::FromArgs;
use consensus_core::crypto::pem;
use consensus_core::tunnel::Mode;
use consensus_core::wire::message::{BodyEncoding, ProxyRequest};
use consensus_core::wire::{base64, hex};
use serde_json::{Value, json};
use smol::LocalExecutor;

use self::client::{Direct, Issuer};
use self::crypto::{Cost, Operations};
use self::meter::Memory;
use self::upstream::Upstream;
use crate::binaries::{self, Shell};
use crate::network::{NODE_ID, Network};
use crate::options::Options;
use crate::orchestrator::{Journal, Orchestrator, Record};
use crate::process::{Home, NodeProcess, free_address};

/// What is fetched, in bytes.
const SIZES: [usize; 3] = [1024, 16 * 1024, 256 * 1024];

/// How many requests are under way at once.
const AT_ONCE: [usize; 2] = [1, 64];

/// The seed of the network's signing key.
const SERVER_SEED: [u8; 32] = [5; 32];

/// Longer than any start.
const TIMEOUT: Duration = Duration::from_secs(30);

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

    /// one kind of load only: proxy or connect
    #[argh(option)]
    pub only: Option<Kind>,

    /// bodies of that many KiB only (default 1, 16 and 256)
    #[argh(option)]
    pub kib: Option<usize>,

    /// that many requests at once only (default 1 and 64)
    #[argh(option)]
    pub at_once: Option<usize>,

    /// bodies of 16 KiB only, for a look at whether all is well
    #[argh(switch)]
    pub short: bool,

    /// write JSON instead of a table
    #[argh(switch)]
    pub json: bool,
}

/// A kind of load.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Requests of the network itself, `proxy_request`, on the control tunnel.
    Proxy,
    /// Requests of clients at the node's own `/connect`, end to end encrypted.
    Connect,
}

impl Kind {
    /// All of them.
    pub const ALL: [Self; 2] = [Self::Proxy, Self::Connect];

    /// Its name in options and tables.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Proxy => "proxy",
            Self::Connect => "connect",
        }
    }
}

impl std::str::FromStr for Kind {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let names = Self::ALL.map(Self::name).join(", ");
        Self::ALL
            .into_iter()
            .find(|kind| kind.name() == text)
            .ok_or_else(|| format!("{text}: not a kind of load; there are: {names}"))
    }
}

/// One row of the table: a shell under one load.
struct Cell {
    shell: Shell,
    kind: Kind,
    size: usize,
    at_once: usize,
    /// How long each request took, sorted.
    latencies: Vec<Duration>,
    took: Duration,
    node_cpu: Duration,
    memory: Memory,
    /// What the cryptography of one request costs alone, before and after.
    crypto: [Cost; 2],
}

impl Cell {
    fn per_second(&self) -> f64 {
        self.latencies.len() as f64 / self.took.as_secs_f64()
    }

    fn latency_ms(&self, percent: usize) -> f64 {
        meter::percentile(&self.latencies, percent).as_secs_f64() * 1e3
    }

    fn cpu_ms(&self) -> f64 {
        self.node_cpu.as_secs_f64() * 1e3 / self.latencies.len().max(1) as f64
    }

    fn crypto_ms(&self) -> f64 {
        self.crypto.iter().map(|cost| cost.total.as_secs_f64() * 1e3).sum::<f64>() / 2.0
    }

    /// Milliseconds of each kind of operation.
    fn crypto_parts(&self) -> BTreeMap<&'static str, f64> {
        let mut parts = BTreeMap::<_, f64>::new();
        for (kind, (_, sum)) in self.crypto.iter().flat_map(|cost| &cost.kinds) {
            *parts.entry(*kind).or_default() += sum.as_secs_f64() * 1e3 / 2.0;
        }
        parts
    }

    fn to_json(&self) -> Value {
        json!({
            "shell": self.shell.name(), "kind": self.kind.name(), "bytes": self.size, "at_once": self.at_once,
            "requests": self.latencies.len(), "seconds": self.took.as_secs_f64(),
            "requests_per_second": self.per_second(),
            "latency_ms": { "p50": self.latency_ms(50), "p99": self.latency_ms(99) },
            "node_cpu_ms_per_request": self.cpu_ms(), "crypto_ms_per_request": self.crypto_ms(),
            "crypto_ms_by_kind": self.crypto_parts(),
            "cpu_over_crypto": self.cpu_ms() / self.crypto_ms(),
            "rss_kib": self.memory.resident, "peak_rss_kib": self.memory.peak,
        })
    }

    fn print(&self) {
        println!(
            "{:<9} {:<11} {:>4} KiB {:>7} {:>10.0} {:>9.2} {:>9.2} {:>9.4} {:>9.4} {:>6.2} {:>8.2} {:>8.2}",
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
            self.memory.resident as f64 / 1024.0,
            self.memory.peak as f64 / 1024.0,
        );
    }
}

/// Measures and prints; `true` when everything could be measured and every answer was right.
#[must_use]
pub fn run(load: &Load) -> bool {
    let cells = match measure_all(load) {
        Ok(cells) => cells,
        Err(error) => {
            eprintln!("consensus-testbed: {error}");
            return false;
        }
    };
    if load.json {
        let rows: Vec<Value> = cells.iter().map(Cell::to_json).collect();
        println!("{}", json!({ "profile": binaries::PROFILE, "cells": rows }));
    } else {
        println!(
            "\nEverything on this machine: the node, the network and the upstream share its processors. CPU is the \
             node's, user and system, for one request; crypto what the cryptography of one costs alone; memory is in \
             MiB. Profile: {}{}",
            binaries::PROFILE,
            if cfg!(debug_assertions) { " (use --release for figures that mean something)" } else { "" }
        );
    }
    true
}

fn measure_all(load: &Load) -> io::Result<Vec<Cell>> {
    if !(load.seconds > 0.0 && load.seconds <= 3600.0) {
        return Err(io::Error::other("--seconds is not between 0 and 3600"));
    }
    if load.node.is_some() && load.shell.is_none() {
        return Err(io::Error::other("--node takes a --shell beside it"));
    }
    let window = Duration::from_secs_f64(load.seconds);
    let kib = load.kib.or(load.short.then_some(16));
    let sizes = kib.map_or(SIZES.to_vec(), |kib| vec![kib * 1024]);
    let at_once = load.at_once.map_or(AT_ONCE.to_vec(), |only| vec![only]);
    let mut cells = Vec::new();
    if !load.json {
        println!(
            "{:<9} {:<11} {:>8} {:>7} {:>10} {:>9} {:>9} {:>9} {:>9} {:>6} {:>8} {:>8}",
            "shell",
            "kind",
            "body",
            "at once",
            "per second",
            "p50 ms",
            "p99 ms",
            "CPU ms",
            "crypto ms",
            "ratio",
            "RSS",
            "peak"
        );
    }
    let shells = Shell::ALL.into_iter().filter(|shell| load.shell.is_none_or(|only| only == *shell));
    for shell in shells {
        let program = match &load.node {
            Some(program) => std::path::absolute(program)?,
            None => binaries::build(shell)?,
        };
        for kind in Kind::ALL.into_iter().filter(|kind| load.only.is_none_or(|only| only == *kind)) {
            for &size in &sizes {
                for &at_once in &at_once {
                    let what = format!("{}, {}, {size} bytes, {at_once} at once", shell.name(), kind.name());
                    let cell = Bench::start(shell, &program, size)
                        .and_then(|bench| bench.measure(kind, at_once, window))
                        .map_err(|error| io::Error::other(format!("{what}: {error}")))?;
                    if !load.json {
                        cell.print();
                    }
                    cells.push(cell);
                }
            }
        }
    }
    Ok(cells)
}

/// A network with a node that has just started, and what it fetches.
struct Bench {
    shell: Shell,
    size: usize,
    network: Network,
    upstream: Upstream,
    issuer: Issuer,
    node: NodeProcess,
    node_key: [u8; 32],
}

impl Bench {
    fn start(shell: Shell, program: &Path, size: usize) -> io::Result<Self> {
        let home = Home::new()?;
        // A network whose key is known here as well, so that tickets are issued without asking it.
        let state = home.root().join("server.json");
        fs::write(&state, json!({ "seed": hex::encode(&SERVER_SEED), "nodes": {} }).to_string())?;
        let options = Options { state: Some(state), ..Options::default() };
        let network = Network {
            orchestrator: Orchestrator::start(options, Journal::without_messages())?,
            upstream: crate::upstream::Upstream::start()?,
            home,
            local_api: free_address()?,
        };
        network.register_node()?;
        let node_key = fs::read_to_string(network.home.state_dir().join("keys/node.pub"))?;
        let node_key = pem::decode_public(&node_key).map_err(io::Error::other)?;
        let listen = network.local_api.to_string();
        let mut command = network.node(program, ["run", "--listen", &listen, "--allow-private-targets"]);
        command.env("CONSENSUS_LOG_LEVEL", "warn");
        let node = NodeProcess::spawn(command)?;
        let ready = network.orchestrator.journal().wait(0, TIMEOUT, |record| {
            matches!(record, Record::Ready { mode: Mode::Control, .. }).then_some(())
        });
        if ready.is_none() {
            let said: Vec<String> = node.lines(0).into_iter().map(|line| line.text).collect();
            return Err(io::Error::other(format!("no session; the node said:\n{}", said.join("\n"))));
        }
        // The tunnel may be up before the local interface is.
        let end = Instant::now() + TIMEOUT;
        while let Err(error) = TcpStream::connect(network.local_api) {
            if Instant::now() > end {
                return Err(error);
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        let upstream = Upstream::start(size)?;
        let issuer = Issuer::new(&SERVER_SEED, &upstream.url())?;
        Ok(Self { shell, size, network, upstream, issuer, node, node_key })
    }

    fn measure(&self, kind: Kind, at_once: usize, window: Duration) -> io::Result<Cell> {
        let url = self.upstream.url();
        let expected = base64::encode(&crate::upstream::bytes(self.size));
        let numbers = std::cell::Cell::new(0_u64);
        let request = || async {
            let number = numbers.get();
            numbers.set(number + 1);
            match kind {
                Kind::Proxy => self.proxy(number, &expected).await,
                Kind::Connect => {
                    let mut channel = Direct::connect(self.network.local_api).await?;
                    let asked = (url.as_str(), expected.as_str());
                    client::request(&mut channel, &self.node_key, &self.issuer, number, asked).await
                }
            }
        };
        // What is done once, and what is kept from then on, is not what a request costs.
        drive(at_once, window.min(Duration::from_secs(1)), request)?;
        // Before and after, because what else the machine does changes from one second to the next.
        let operations = match kind {
            Kind::Proxy => Operations::of_proxy_request(&self.proxy_request(0), &self.upstream.response()),
            Kind::Connect => Operations::of_data_plane_request(&url, &self.upstream.response(), false)?,
        };
        let crypto_before = operations.cost()?;
        let before = meter::process_cpu(self.node.pid())?;
        let begun = Instant::now();
        let mut latencies = drive(at_once, window, request)?;
        let took = begun.elapsed();
        let node_cpu = meter::process_cpu(self.node.pid())?.saturating_sub(before);
        latencies.sort_unstable();
        Ok(Cell {
            shell: self.shell,
            kind,
            size: self.size,
            at_once,
            latencies,
            took,
            node_cpu,
            memory: meter::memory(self.node.pid())?,
            crypto: [crypto_before, operations.cost()?],
        })
    }

    fn proxy_request(&self, number: u64) -> ProxyRequest {
        ProxyRequest {
            id: format!("00000000-0000-4000-8000-{number:012}"),
            target_url: self.upstream.url(),
            method: Some(String::from("GET")),
            headers: Some(BTreeMap::from([(String::from("accept"), String::from("*/*"))])),
            body: None,
            body_encoding: BodyEncoding::Base64,
        }
    }

    /// One `proxy_request`, its answer checked to the last byte.
    async fn proxy(&self, number: u64, expected: &str) -> io::Result<()> {
        let fetched = self.network.orchestrator.fetch(NODE_ID, self.proxy_request(number));
        let fetched = fetched.ok_or_else(|| io::Error::other("the node has no session any more"))?;
        match fetched.recv().await.map_err(io::Error::other)? {
            Ok(response) if response.status == 200 && response.body == expected => Ok(()),
            Ok(response) => {
                let length = response.body.len();
                Err(io::Error::other(format!("status {}, {length} characters of body", response.status)))
            }
            Err(failure) => Err(io::Error::other(failure.to_string())),
        }
    }
}

/// Makes requests for that long, so many at once, each followed by the next: how long each took.
fn drive<F: Future<Output = io::Result<()>>>(
    at_once: usize,
    window: Duration,
    request: impl Fn() -> F,
) -> io::Result<Vec<Duration>> {
    let end = Instant::now() + window;
    let one_after_the_other = || async {
        let mut latencies = Vec::new();
        loop {
            let begun = Instant::now();
            if begun >= end {
                return io::Result::Ok(latencies);
            }
            request().await?;
            latencies.push(begun.elapsed());
        }
    };
    let executor = LocalExecutor::new();
    let workers: Vec<_> = (0..at_once).map(|_| executor.spawn(one_after_the_other())).collect();
    smol::block_on(executor.run(async {
        let mut all = Vec::new();
        for worker in workers {
            all.extend(worker.await?);
        }
        Ok(all)
    }))
}
