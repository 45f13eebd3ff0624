//! How far the node's own work for a request of the data plane is from its floor: what the primitives in it would take
//! alone. Both are measured here, in turns, because what else a machine does changes.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::time::Duration;

use argh::FromArgs;
use consensus_core::bench::report::{CompositeSize, Report, Stages};
use consensus_core::bench::{Job, Step};
use consensus_core::crypto::Drbg;
use consensus_core::io::{Measurement, Response};
use serde_json::{Value, json};
use shell_blocking::system::thread_time;

use crate::primitives::{Cost, Operations, Provider};
use crate::upstream::bytes;

/// Both are measured so often; the median of each counts.
const ROUNDS: usize = 7;

/// Measure the node's work for one request of the data plane against the primitives in it.
///
/// Example: cargo run --release -p consensus-testbed -- floor
#[derive(Clone, Debug, FromArgs)]
#[argh(subcommand, name = "floor")]
pub struct Floor {
    /// write JSON instead of a table
    #[argh(switch)]
    pub json: bool,
}

/// What was found for responses of one size; times in nanoseconds.
struct Row {
    size: usize,
    /// Each kind of primitive, and how many of it there are in a request.
    primitives: BTreeMap<&'static str, (usize, f64)>,
    stages: Vec<(&'static str, f64)>,
    node: f64,
}

impl Row {
    fn floor(&self) -> f64 {
        self.primitives.values().map(|(_, time)| time).sum()
    }

    fn ratio(&self) -> f64 {
        self.node / self.floor()
    }

    fn to_json(&self) -> Value {
        let primitives: BTreeMap<_, _> = self
            .primitives
            .iter()
            .map(|(kind, (count, time))| (*kind, json!({ "count": count, "ns": time })))
            .collect();
        let stages: BTreeMap<_, _> = self.stages.iter().copied().collect();
        json!({
            "bytes": self.size, "primitives": primitives, "floor_ns": self.floor(), "stages_ns": stages,
            "node_ns": self.node, "ratio": self.ratio(),
        })
    }
}

/// Measures and prints; `true` when it could be done.
#[must_use]
pub fn run(floor: &Floor) -> bool {
    let rows = match measure() {
        Ok(rows) => rows,
        Err(error) => {
            eprintln!("consensus-testbed: {error}");
            return false;
        }
    };
    if floor.json {
        println!("{}", Value::from_iter(rows.iter().map(Row::to_json)));
        return true;
    }
    print(&rows);
    true
}

fn print(rows: &[Row]) {
    let line = |name: &str, cell: &dyn Fn(&Row) -> String| {
        let cells: String = rows.iter().map(|row| format!("{:>12}", cell(row))).collect();
        println!("{name:<28}{cells}");
    };
    let us = |time: f64| format!("{:.2}", time / 1e3);
    line("microseconds a request", &|row| format!("{} KiB", row.size / 1024));
    for kind in rows.iter().flat_map(|row| row.primitives.keys()).collect::<BTreeSet<_>>() {
        let count = rows.iter().filter_map(|row| row.primitives.get(*kind)).map(|(count, _)| *count).max();
        line(&format!("  {kind} × {}", count.unwrap_or_default()), &|row| {
            us(row.primitives.get(*kind).map_or(0.0, |(_, time)| *time))
        });
    }
    line("floor: their sum", &|row| us(row.floor()));
    for (at, (stage, _)) in rows.first().map(|row| row.stages.clone()).unwrap_or_default().iter().enumerate()
    {
        line(&format!("  {stage}"), &|row| us(row.stages[at].1));
    }
    line("the node's time", &|row| us(row.node));
    line("ratio", &|row| format!("{:.3}", row.ratio()));
}

fn measure() -> io::Result<Vec<Row>> {
    let mut floors: BTreeMap<usize, Vec<Cost>> = BTreeMap::new();
    let mut nodes: BTreeMap<usize, Vec<CompositeSize>> = BTreeMap::new();
    for round in 0..ROUNDS {
        for result in composite(round)? {
            let size = usize::try_from(result.response_size_bytes).map_err(io::Error::other)?;
            let headers = [
                ("content-type", String::from("application/octet-stream")),
                ("content-length", size.to_string()),
            ];
            let response = Response {
                status: 200,
                reason: String::from("OK"),
                headers: headers.map(|(name, value)| (name.to_owned(), value)).to_vec(),
                body: bytes(size),
            };
            let url = format!("https://composite.example/b/{size}");
            floors
                .entry(size)
                .or_default()
                .push(Operations::of_data_plane_request(&url, &response, false)?.cost());
            nodes.entry(size).or_default().push(result);
        }
    }
    let row = |(size, floors): (usize, Vec<Cost>)| {
        let nodes = nodes.remove(&size).unwrap_or_default();
        let middle = |figure: &dyn Fn(&CompositeSize) -> f64| median(nodes.iter().map(figure).collect());
        let kinds = floors.first().map(|cost| cost.kinds.clone()).unwrap_or_default();
        let primitives = kinds
            .into_iter()
            .map(|(kind, (count, _))| {
                let times = floors.iter().filter_map(|cost| cost.kinds.get(kind));
                (kind, (count, median(times.map(|(_, time)| nanoseconds(*time)).collect())))
            })
            .collect();
        let stages = STAGES.map(|(name, stage)| (name, middle(&|node| stage(&node.stages)))).to_vec();
        Row { size, primitives, stages, node: middle(&|node| node.node_ns_per_request) }
    };
    Ok(floors.into_iter().map(row).collect())
}

type Stage = fn(&Stages) -> f64;

/// The stages of a request, in order.
const STAGES: [(&str, Stage); 5] = [
    ("handshake", |stages| stages.handshake.mean_ns),
    ("request open", |stages| stages.request_open.mean_ns),
    ("ticket verify", |stages| stages.ticket_verify.mean_ns),
    ("response encode", |stages| stages.response_encode.mean_ns),
    ("response seal", |stages| stages.response_seal.mean_ns),
];

fn nanoseconds(time: Duration) -> f64 {
    time.as_nanos() as f64
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_unstable_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or_default()
}

/// The composite workload, timed by the processor time of this thread.
fn composite(round: usize) -> io::Result<Vec<CompositeSize>> {
    let seed = [u8::try_from(round).unwrap_or_default(); 32];
    let measurement = Measurement::Composite { quick: true };
    let mut job = Job::new(measurement, Provider::default(), Drbg::new(seed))
        .ok_or_else(|| io::Error::other("core does not know its own workload"))?;
    loop {
        match job.step() {
            Step::Run => {
                let begun = thread_time();
                job.run();
                job.timed(thread_time().saturating_sub(begun));
            }
            Step::Done(report) => match *report {
                Report::Composite(composite) => return Ok(composite.results),
                _ => return Err(io::Error::other("another report than was asked for")),
            },
            Step::Failed(reason) => return Err(io::Error::other(reason)),
            Step::Turn { .. } | Step::Clocks => return Err(io::Error::other("the workload wants a shell")),
        }
    }
}
