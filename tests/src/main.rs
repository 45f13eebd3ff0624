//! `consensus-testbed`: a local Consensus network to look at, try and measure nodes with.
#![forbid(unsafe_code)]

use std::process::ExitCode;

use argh::{EarlyExit, FromArgs};
use consensus_testbed::admission::{self, Admission};
use consensus_testbed::chaos::{self, Chaos};
use consensus_testbed::data_plane::command::{self as request, RequestCommand};
use consensus_testbed::demo::{self, Demo};
use consensus_testbed::fleet::{self, Fleet};
use consensus_testbed::floor::{self, Floor};
use consensus_testbed::footprint::{self, Footprint};
use consensus_testbed::load::{self, Load};
use consensus_testbed::options::Options;
use consensus_testbed::orchestrator::{Journal, Orchestrator};
use consensus_testbed::supervised::{self, Supervise};
use consensus_testbed::trace::{self, CorpusCommand, ReplayCommand, ShowCommand};
use consensus_testbed::tunnel::{self, TunnelCommand};

/// A complete local Consensus network.
#[derive(FromArgs)]
struct Arguments {
    #[argh(subcommand)]
    command: Command,
}

#[derive(FromArgs)]
#[argh(subcommand)]
enum Command {
    Serve(Box<Options>),
    Chaos(Chaos),
    Demo(Demo),
    Fleet(Fleet),
    Floor(Floor),
    Footprint(Footprint),
    Load(Load),
    Admission(Admission),
    Request(RequestCommand),
    Tunnel(TunnelCommand),
    Supervise(Supervise),
    Replay(ReplayCommand),
    Show(ShowCommand),
    Corpus(CorpusCommand),
}

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().collect();
    let words: Vec<&str> = words.iter().map(String::as_str).skip(1).collect();
    let arguments = match Arguments::from_args(&["consensus-testbed"], &words) {
        Ok(arguments) => arguments,
        // Help is what was asked for; anything else is a usage error.
        Err(EarlyExit { output, status: Ok(()) }) => {
            println!("{output}");
            return ExitCode::SUCCESS;
        }
        Err(EarlyExit { output, status: Err(()) }) => {
            eprintln!("{output}");
            return ExitCode::from(2);
        }
    };
    let passed = match arguments.command {
        Command::Serve(options) => serve(*options),
        Command::Chaos(chaos) => chaos::run(&chaos),
        Command::Demo(demo) => demo::run(&demo),
        Command::Fleet(fleet) => fleet::run(&fleet),
        Command::Floor(floor) => floor::run(&floor),
        Command::Footprint(footprint) => footprint::run(&footprint),
        Command::Load(load) => load::run(&load),
        Command::Admission(admission) => admission::run(&admission),
        Command::Request(command) => return request::run(&command).into(),
        Command::Replay(command) => return trace::run_replay(&command),
        Command::Corpus(command) => return trace::run_corpus(&command),
        Command::Show(command) => return trace::run_show(&command),
        Command::Tunnel(command) => tunnel::run(&command),
        Command::Supervise(options) => supervised::run(&options),
    };
    if passed { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// Serves until the process is ended.
fn serve(options: Options) -> bool {
    let listen = options.listen;
    match Orchestrator::start(options, Journal::new(true)) {
        Ok(orchestrator) => {
            println!("serving at {}", orchestrator.url());
            if let Some(ca) = orchestrator.ca_file() {
                println!("a node trusts it with --ca {}", ca.display());
            }
            println!("its signing key, for --server-key:\n{}", orchestrator.public_key_pem());
            loop {
                std::thread::park();
            }
        }
        Err(error) => {
            eprintln!("consensus-testbed: {listen}: {error}");
            false
        }
    }
}
