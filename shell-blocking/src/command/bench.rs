//! `bench`: the network's battery by hand, and whether it would admit this machine.

use std::collections::VecDeque;
use std::fmt::Write as _;
use std::io::Write;

use consensus_core::bench::report::{BenchResult, Composite, CompositeSize, Report, Sized, Sustained};
use consensus_core::eval::verdict::{Figures, Judged};
use consensus_core::io::{Effect, EffectId, EffectResult, Finish, Input, Measurement, Outcome, Output};
use consensus_core::time::Now;
use serde_json::{Map, Value, json};

use super::{Failure, Setup, print};
use crate::measure;
use crate::runtime_api::{Machine, Runtime};
use crate::settings::Sources;

/// The columns of a bar; with its name and figures the line stays under 80.
const BAR: usize = 32;

/// The whole battery: what decides, and what is good to know.
const WHOLE: [Measurement; 9] = [
    Measurement::System,
    Measurement::EventLoop,
    Measurement::Composite { quick: false },
    Measurement::Sustained { duration_ms: 60_000, window_ms: 5_000 },
    Measurement::Multicore { duration_ms: 1500 },
    Measurement::Cpu,
    Measurement::Crypto,
    Measurement::Memory,
    Measurement::MemoryPressure { test_size_mb: 128, rounds: 2 },
];

/// What decides, and no longer than it takes to see it.
const QUICK: [Measurement; 4] = [
    Measurement::System,
    Measurement::EventLoop,
    Measurement::Composite { quick: true },
    Measurement::Sustained { duration_ms: 6_000, window_ms: 1_000 },
];

type Results = Vec<(Measurement, Result<Report, String>)>;

pub(super) fn run<R: Runtime>(
    runtime: &R,
    sources: &Sources<'_>,
    setup: &Setup,
    stdout: &mut dyn Write,
    colors: bool,
) -> Result<u8, Failure> {
    let is_quick = sources.options.contains_key("--quick");
    let battery: &[Measurement] = if is_quick { &QUICK } else { &WHOLE };
    let mut results = Results::new();
    let machine = Battery {
        rest: battery.iter().copied().collect(),
        current: None,
        results: &mut results,
        out: VecDeque::new(),
    };
    let environment = setup.environment(&setup.state_dir())?;
    let finish = runtime.drive(machine, environment).map_err(Failure::internal)?;
    if finish.outcome != Outcome::Done {
        return Err(Failure::Finish(finish));
    }
    let mut figures = Figures::default();
    for (measurement, result) in &results {
        let result = result.as_ref().ok().map(Report::to_json);
        figures.record(measure::action(*measurement), result.as_ref());
    }
    let text = if sources.options.contains_key("--json") {
        format!("{}\n", as_json::<R>(is_quick, &results, &figures))
    } else {
        as_text(is_quick, &results, &figures, colors)
    };
    Ok(print(stdout, &text))
}

/// Has one measurement made after the other; to the runtime it is a node.
struct Battery<'a> {
    rest: VecDeque<Measurement>,
    current: Option<Measurement>,
    results: &'a mut Results,
    out: VecDeque<Output>,
}

impl Battery<'_> {
    /// There is one effect at a time, named by how many there were before.
    fn id(&self) -> EffectId {
        EffectId(self.results.len() as u64)
    }

    fn go_on(&mut self) {
        self.current = self.rest.pop_front();
        self.out.push_back(match self.current {
            Some(measurement) => Output::Perform { id: self.id(), effect: Effect::Measure(measurement) },
            None => Output::Finish(Finish {
                outcome: Outcome::Done,
                message: "everything is measured".to_owned(),
            }),
        });
    }
}

impl Machine for Battery<'_> {
    fn handle_input(&mut self, _: Now, input: Input) {
        match input {
            Input::Tick if self.current.is_none() && self.results.is_empty() => self.go_on(),
            Input::Done { effect, result } if effect == self.id() => {
                let Some(measurement) = self.current.take() else { return };
                let result = match result {
                    EffectResult::Measured(result) => result,
                    EffectResult::Fetched(_)
                    | EffectResult::Written(_)
                    | EffectResult::Downloaded(_)
                    | EffectResult::Inspected(_)
                    | EffectResult::Installed(_) => Err("not a measurement".to_owned()),
                };
                self.results.push((measurement, result));
                self.go_on();
            }
            Input::Stop => {
                self.out.push_back(Output::Cancel { id: self.id() });
                let message = "stopped before everything was measured".to_owned();
                self.out.push_back(Output::Finish(Finish { outcome: Outcome::Internal, message }));
            }
            // Nothing else is asked for.
            _ => {}
        }
    }

    fn poll_output(&mut self) -> Output {
        self.out.pop_front().unwrap_or(Output::Wait(None))
    }
}

fn as_json<R: Runtime>(is_quick: bool, results: &Results, figures: &Figures) -> Value {
    let (mut reports, mut errors) = (Map::new(), Map::new());
    for (measurement, result) in results {
        let action = measure::action(*measurement).to_owned();
        match result {
            Ok(report) => reports.insert(action, report.to_json()),
            Err(reason) => errors.insert(action, Value::from(reason.as_str())),
        };
    }
    let threshold = |judged: &Judged| {
        json!({
            "name": judged.name, "measured": judged.measured, "needed": judged.needed, "met": judged.met,
            "usual_cause": judged.cause,
        })
    };
    json!({
        "program": R::PROGRAM, "shell": R::SHELL, "quick": is_quick, "results": reports, "errors": errors,
        "admissible": is_admissible(figures), "thresholds": figures.judge().iter().map(threshold).collect::<Vec<_>>(),
    })
}

/// Whether everything that can be measured here is, and is good enough.
fn is_admissible(figures: &Figures) -> bool {
    figures.judge().iter().all(|judged| judged.met.unwrap_or(judged.name == "integrity"))
}

fn as_text(is_quick: bool, results: &Results, figures: &Figures, colors: bool) -> String {
    let mut text = String::new();
    for (measurement, result) in results {
        let written = match result {
            Ok(report) => describe(&mut text, report),
            Err(reason) => writeln!(text, "{} failed: {reason}\n", measure::action(*measurement)),
        };
        // Writing into memory does not fail.
        debug_assert!(written.is_ok());
    }
    let judged = judge(&mut text, is_quick, figures, colors);
    debug_assert!(judged.is_ok());
    text
}

fn describe(text: &mut String, report: &Report) -> std::fmt::Result {
    match report {
        Report::System(system) => {
            let mib = |bytes: u64| bytes >> 20;
            writeln!(
                text,
                "This machine: {}-{}, {} processors, {} MiB of memory ({} MiB free)\n",
                system.platform,
                system.arch,
                system.cpus,
                mib(system.total_memory_bytes),
                mib(system.free_memory_bytes)
            )
        }
        Report::EventLoop(turns) => writeln!(
            text,
            "The run loop: {:.0} turns a second, 99 of 100 within {:.3} ms\n",
            turns.ops_per_second,
            turns.ns_per_op.p99 / 1e6
        ),
        Report::Composite(composite) => describe_composite(text, composite),
        Report::Sustained(sustained) => describe_sustained(text, sustained),
        Report::Multicore(cores) => {
            writeln!(text, "{} cores together do the work of {:.2}\n", cores.cores, cores.effective_cores)
        }
        Report::Cpu(cpu) => describe_sizes(text, "SHA-256", &cpu.results),
        Report::Crypto(crypto) => describe_sizes(text, "ChaCha20-Poly1305", &crypto.results),
        Report::Memory(memory) => describe_sizes(text, "Copies of memory", &memory.copy),
        Report::MemoryPressure(pressure) => writeln!(
            text,
            "{:<18} {} of {} MiB taken, touched and given back in {} ms\n",
            "Memory taken", pressure.allocated_mb, pressure.requested_mb, pressure.duration_ms
        ),
    }
}

fn describe_sizes(text: &mut String, name: &str, sizes: &[Sized]) -> std::fmt::Result {
    write!(text, "{name:<18}")?;
    for sized in sizes {
        let size = byte_size(sized.size_bytes);
        write!(text, " {size:>6} {:>5.0} MB/s{}", sized.bytes_per_second / 1e6, doubt(&sized.bench))?;
    }
    writeln!(text)
}

const fn doubt(bench: &BenchResult) -> &'static str {
    if bench.reliable { " " } else { "~" }
}

fn byte_size(bytes: u64) -> String {
    match bytes {
        0..1024 => format!("{bytes} B"),
        1024..0x10_0000 => format!("{}KiB", bytes >> 10),
        _ => format!("{}MiB", bytes >> 20),
    }
}

fn bar(share: f64) -> String {
    // A cast from a float saturates, and a NaN is 0.
    let filled = ((share * BAR as f64 + 0.5) as usize).min(BAR);
    format!("{}{}", "#".repeat(filled), ".".repeat(BAR - filled))
}

fn describe_composite(text: &mut String, composite: &Composite) -> std::fmt::Result {
    let milliseconds = |size: &CompositeSize| size.node_ns_per_request / 1e6;
    writeln!(text, "One request of the data plane, the node's own time:")?;
    for size in &composite.results {
        writeln!(
            text,
            "  {:<18}{:>10.3} ms {:>9.0} a second{}",
            format!("{} answered", byte_size(size.response_size_bytes)),
            milliseconds(size),
            size.node_requests_per_second,
            if size.reliable { "" } else { "  (unsteady)" }
        )?;
    }
    // The stages of the one in the middle, which is what the network goes by.
    if let Some(size) = composite.results.get(1) {
        writeln!(text, "  of {:.3} ms at {}:", milliseconds(size), byte_size(size.response_size_bytes))?;
        let stages = size.stages;
        for (name, stage) in [
            ("handshake", stages.handshake),
            ("request open", stages.request_open),
            ("ticket verify", stages.ticket_verify),
            ("response encode", stages.response_encode),
            ("response seal", stages.response_seal),
        ] {
            let (share, ms) = (stage.share, stage.mean_ns / 1e6);
            writeln!(text, "  {name:<16} [{}] {ms:>7.3} ms {:>3.0} %", bar(share), share * 100.0)?;
        }
    }
    writeln!(text)
}

fn describe_sustained(text: &mut String, sustained: &Sustained) -> std::fmt::Result {
    writeln!(
        text,
        "Without a pause for {} s, requests a second at {}:",
        sustained.duration_ms / 1000,
        byte_size(sustained.response_size_bytes)
    )?;
    let most = sustained.node_rps_max_window.max(1e-9);
    for window in &sustained.windows {
        let after = window.start_ms as f64 / 1000.0;
        writeln!(
            text,
            "  after {after:>6.1} s   [{}] {:>9.1}",
            bar(window.node_rps / most),
            window.node_rps
        )?;
    }
    writeln!(
        text,
        "  end by begin {:.3}, share of a processor {:.3}\n",
        sustained.throttle_ratio, sustained.cpu_time_ratio
    )
}

fn judge(text: &mut String, is_quick: bool, figures: &Figures, colors: bool) -> std::fmt::Result {
    let thresholds = figures.judge();
    let missed = thresholds.iter().filter(|judged| judged.met == Some(false)).count();
    writeln!(text, "Would the network admit this machine?")?;
    let color = |code: &'static str| if colors { code } else { "" };
    for judged in &thresholds {
        let (word, code) = match judged.met {
            Some(true) => ("met", color("\x1b[32m")),
            Some(false) => ("MISSED", color("\x1b[31m")),
            None => ("-", ""),
        };
        let reset = if code.is_empty() { "" } else { "\x1b[0m" };
        let measured = judged.measured.as_deref().unwrap_or("not measured here");
        writeln!(text, "  {code}{word:<7}{reset} {:<16} {measured:<21} {}", judged.name, judged.needed)?;
        if judged.met == Some(false) {
            writeln!(text, "          usually {}", judged.cause)?;
        }
    }
    let answer = match (missed, is_admissible(figures)) {
        (0, true) => "Yes, by all that is measured here.".to_owned(),
        (0, false) => "That cannot be said: a measurement failed.".to_owned(),
        (1, _) => "No: one threshold is missed.".to_owned(),
        (missed, _) => format!("No: {missed} thresholds are missed."),
    };
    let code = if missed > 0 { color("\x1b[31m") } else { "" };
    let reset = if code.is_empty() { "" } else { "\x1b[0m" };
    writeln!(text, "{code}{answer}{reset}")?;
    if is_quick {
        writeln!(text, "This was a quick look; the network measures for longer: leave out --quick.")?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use consensus_core::bench::report::{NsPerOp, StageTime, Stages, System, Window};

    fn bench() -> BenchResult {
        BenchResult {
            name: "x".into(),
            reliable: true,
            samples: 10,
            total_ops: 10,
            duration_ms: 1000,
            ops_per_second: 147_007.7,
            ns_per_op: NsPerOp { min: 1.0, median: 1.0, mean: 1.0, p95: 1.0, p99: 14_768.0, stddev: 0.1 },
            cv: 0.01,
        }
    }

    fn results(throttle_ratio: f64) -> Results {
        let stage = |share| StageTime { mean_ns: 300_000.0 * share, share };
        let size = |response_size_bytes| CompositeSize {
            response_size_bytes,
            exchange: bench(),
            node_requests_per_second: 3333.3,
            node_ns_per_request: 300_000.0,
            stages: Stages {
                handshake: stage(0.5),
                request_open: stage(0.05),
                ticket_verify: stage(0.25),
                response_encode: stage(0.05),
                response_seal: stage(0.15),
            },
            reliable: true,
        };
        let window = |start_ms, node_rps| Window { start_ms, requests: 9000, rps: 1800.0, node_rps };
        let system = System {
            platform: "linux".into(),
            arch: "x64".into(),
            cpus: 2,
            total_memory_bytes: 4 << 30,
            free_memory_bytes: 2 << 30,
            uptime_seconds: 1,
            rust_version: "1".into(),
        };
        let reports = [
            Report::System(system),
            Report::EventLoop(bench()),
            Report::Composite(Composite {
                results: [1 << 10, 16 << 10, 256 << 10].map(size).to_vec(),
                requests_per_second: 3333.3,
                reliable: true,
            }),
            Report::Sustained(Sustained {
                response_size_bytes: 16 << 10,
                duration_ms: 60_000,
                window_ms: 5000,
                windows: (0..12).map(|n| window(n * 5001, 3000.0 + n as f64)).collect(),
                total_requests: 108_000,
                node_rps_mean: 3005.0,
                node_rps_early: 3000.0,
                node_rps_late: 3010.0,
                node_rps_min_window: 3000.0,
                node_rps_max_window: 3011.0,
                throttle_ratio,
                cpu_time_ratio: 0.998,
                steady: true,
            }),
        ];
        QUICK.into_iter().zip(reports.map(Ok)).collect()
    }

    fn figures(results: &Results) -> Figures {
        let mut figures = Figures::default();
        for (measurement, result) in results {
            let result = result.as_ref().ok().map(Report::to_json);
            figures.record(measure::action(*measurement), result.as_ref());
        }
        figures
    }

    #[test]
    fn the_text_fits_a_terminal_and_has_no_colour_where_none_is_wanted() {
        let results = results(1.0);
        let text = as_text(true, &results, &figures(&results), false);
        assert!(text.is_ascii() && !text.contains('\x1b'), "{text}");
        assert!(text.lines().all(|line| line.len() < 80), "{text}");
        assert!(text.contains("Yes, by all") && text.contains("quick look"), "{text}");
        assert!(text.contains("handshake        [################"), "{text}");
        assert_eq!(text.matches("  after ").count(), 12);
        assert!(as_text(false, &results, &figures(&results), true).contains("\x1b[32m"));
    }

    #[test]
    fn a_threshold_that_is_missed_is_named_with_what_it_usually_is() {
        let mut results = results(0.5);
        let text = as_text(false, &results, &figures(&results), false);
        assert!(text.contains("No: one threshold is missed."), "{text}");
        assert!(text.contains("MISSED  throttle ratio   0.500                 at least 0.85"), "{text}");
        assert!(text.contains("usually burst credits that are used up, or heat"), "{text}");
        results.pop();
        results.push((QUICK[3], Err("no thread".into())));
        let text = as_text(false, &results, &figures(&results), false);
        assert!(
            text.contains("benchmark_sustained failed: no thread") && text.contains("cannot be said"),
            "{text}"
        );
    }
}
