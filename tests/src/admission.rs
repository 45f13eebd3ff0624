//! The whole evaluation at full length, and whether the node and the server judge it alike.

use std::collections::BTreeSet;
use std::io;
use std::path::PathBuf;
use std::time::Duration;

use argh::FromArgs;
use serde_json::Value;

use crate::binaries::{self, Shell};
use crate::network::Network;
use crate::options::Options;
use crate::orchestrator::Record;
use crate::process::NodeProcess;

/// The battery without its sustained part, on a slow machine.
const REST: Duration = Duration::from_secs(300);

/// Evaluate this machine with each shell, at full length and by the network's own thresholds, and compare the node's
/// verdict with the server's. Succeeds when the node is admitted and the two agree.
///
/// Example: cargo run --release -p consensus-testbed -- admission
#[derive(Clone, Debug, FromArgs)]
#[argh(subcommand, name = "admission")]
pub struct Admission {
    /// one shell only: smol or blocking
    #[argh(option)]
    pub shell: Option<Shell>,

    /// the node's program; without it the shell is built
    #[argh(option)]
    pub node: Option<PathBuf>,

    /// how long the machine is measured without a pause, in milliseconds (default 60000)
    #[argh(option, default = "60_000")]
    pub sustained_ms: u32,
}

/// What both said of one shell.
struct Judgement {
    shell: Shell,
    /// What the server missed; `None` where it never judged.
    server: Option<Vec<String>>,
    /// What the node itself missed, and could not judge.
    node: Option<(Vec<String>, Vec<String>)>,
    admitted: bool,
}

impl Judgement {
    /// Whether both know of the same thresholds that are missed, and the node judged every one of its own.
    fn is_alike(&self) -> bool {
        match (&self.server, &self.node) {
            (Some(server), Some((missed, not_measured))) => {
                not_measured.is_empty() && names(server) == names(missed)
            }
            _ => false,
        }
    }
}

/// The thresholds that sentences are about: each begins with the name of one.
fn names(missed: &[String]) -> BTreeSet<&str> {
    missed.iter().map(|sentence| sentence.split(':').next().unwrap_or_default()).collect()
}

/// Evaluates and compares; `true` when every shell was admitted with one verdict.
#[must_use]
pub fn run(admission: &Admission) -> bool {
    let mut judgements = Vec::new();
    for shell in Shell::ALL.into_iter().filter(|shell| admission.shell.is_none_or(|only| only == *shell)) {
        match evaluate(admission, shell) {
            Ok(judgement) => judgements.push(judgement),
            Err(error) => {
                eprintln!("consensus-testbed: {}: {error}", shell.name());
                return false;
            }
        }
    }
    println!(
        "\n  {:<9} {:<9} {:<33} {:<33} alike",
        "shell", "admitted", "the server missed", "the node missed"
    );
    let word = |is: bool| if is { "yes" } else { "NO" };
    let list = |missed: Option<&Vec<String>>| match missed {
        None => String::from("(no verdict)"),
        Some(missed) if missed.is_empty() => String::from("nothing"),
        Some(missed) => names(missed).into_iter().collect::<Vec<_>>().join(", "),
    };
    for judgement in &judgements {
        println!(
            "  {:<9} {:<9} {:<33} {:<33} {}",
            judgement.shell.name(),
            word(judgement.admitted),
            list(judgement.server.as_ref()),
            list(judgement.node.as_ref().map(|(missed, _)| missed)),
            word(judgement.is_alike())
        );
        for sentence in judgement.node.iter().flat_map(|(missed, _)| missed) {
            println!("            {sentence}");
        }
    }
    println!("\n  Profile: {}", binaries::PROFILE);
    judgements.iter().all(|judgement| judgement.admitted && judgement.is_alike())
}

fn evaluate(admission: &Admission, shell: Shell) -> io::Result<Judgement> {
    let program = match &admission.node {
        Some(path) => std::path::absolute(path)?,
        None => binaries::build(shell)?,
    };
    let network = Network::with(Options {
        sustained_ms: admission.sustained_ms,
        window_ms: 5_000.min(admission.sustained_ms),
        lenient: false,
        quick: false,
        speedtest_url: Some(String::from("/b/16384")),
        ..Options::default()
    })?;
    println!("\n{} shell, {} ms sustained:", shell.name(), admission.sustained_ms);
    let node = NodeProcess::spawn(network.node(&program, ["eval", "--allow-private-targets"]))?;
    let timeout = REST + Duration::from_millis(admission.sustained_ms.into());
    let mut mark = 0;
    while let Some(line) = node.wait_for(mark, timeout, |line| line.event() == "eval_finished") {
        mark = node.mark_after(&line, mark);
        let text = |name: &str| line.value[name].as_str().unwrap_or_default().to_owned();
        println!("  {:<26} {}", text("action"), text("summary"));
    }
    let exit = node.wait(timeout)?;
    let texts = |value: &Value| -> Vec<String> {
        let items = value.as_array().into_iter().flatten();
        items.filter_map(|item| item.as_str().map(str::to_owned)).collect()
    };
    let told = exit.lines.iter().rev().find(|line| line.event() == "eval_verdict");
    let journal = network.orchestrator.journal();
    let server = journal.wait(0, Duration::ZERO, |record| match record {
        Record::Judged { missed, .. } => Some(missed.clone()),
        _ => None,
    });
    Ok(Judgement {
        shell,
        server: server.map(|(_, missed)| missed),
        node: told.map(|line| (texts(&line.value["missed"]), texts(&line.value["not_measured"]))),
        admitted: exit.code == Some(0),
    })
}
