//! What a second core is worth: the same requests on one core and on two, with everything that takes part (the node, its
//! clients, the network, what is fetched from) pinned to them.

use std::io;
use std::path::Path;
use std::time::Duration;

use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};
use serde_json::{Value, json};

use super::Kind;
use super::bench::Bench;
use super::meter::median;
use crate::binaries::Shell;

/// Requests under way at once.
const AT_ONCE: usize = 64;

/// Both are measured so often, in turns, and the median of each counts: what else the machine does changes.
const ROUNDS: usize = 3;

/// One row of its table.
pub(super) struct Row {
    shell: Shell,
    kind: Kind,
    size: usize,
    /// Requests a second, on one core and on two.
    rates: [Vec<f64>; 2],
}

impl Row {
    pub(super) const HEAD: &'static str =
        "shell     requests       body    on one core   on two    ratio    (requests a second, medians of 3)";

    fn medians(&self) -> [f64; 2] {
        [median(&self.rates[0]), median(&self.rates[1])]
    }

    pub(super) fn print(&self) {
        let [one, two] = self.medians();
        println!(
            "{:<9} {:<10} {:>4} KiB {:>14.0} {:>8.0} {:>8.2}",
            self.shell.name(),
            self.kind.name(),
            self.size / 1024,
            one,
            two,
            two / one,
        );
    }

    pub(super) fn to_json(&self) -> Value {
        let [one, two] = self.medians();
        json!({
            "shell": self.shell.name(), "kind": self.kind.name(), "bytes": self.size, "at_once": AT_ONCE,
            "one_core": { "requests_per_second": one, "rounds": self.rates[0] },
            "two_cores": { "requests_per_second": two, "rounds": self.rates[1] },
            "ratio": two / one,
        })
    }
}

/// Measures one kind of request.
pub(super) fn measure(
    shell: Shell,
    program: &Path,
    kind: Kind,
    size: usize,
    window: Duration,
) -> io::Result<Row> {
    let all = sched_getaffinity(None)?;
    let cores: Vec<usize> = (0..CpuSet::MAX_CPU).filter(|cpu| all.is_set(*cpu)).take(2).collect();
    if cores.len() < 2 {
        return Err(io::Error::other("this process may use one core only"));
    }
    let mut rates = [Vec::new(), Vec::new()];
    for _ in 0..ROUNDS {
        for (count, rates) in (1..).zip(&mut rates) {
            let mut set = CpuSet::new();
            cores.iter().take(count).for_each(|cpu| set.set(*cpu));
            // What is started from here on inherits it: threads of this process, and the node.
            sched_setaffinity(None, &set)?;
            let rate = Bench::start(program, &[], size, 1)
                .and_then(|bench| bench.measure_rate(kind, AT_ONCE, count, window));
            sched_setaffinity(None, &all)?;
            rates.push(rate?);
        }
    }
    Ok(Row { shell, kind, size, rates })
}
