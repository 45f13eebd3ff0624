//! Update after update of one installed node, with something going wrong in most of them: what must never happen is
//! that the node does not come back.
//!
//! The node runs under the real wrapper, from an install directory on a small disk of its own. This program is the
//! network, and the supervisor that starts the wrapper again when it was killed.

mod artifacts;
mod fault;
mod site;

use std::collections::BTreeMap;
use std::io;
use std::time::{Duration, Instant};

use argh::FromArgs;
use consensus_core::crypto::Drbg;
use serde_json::{Value, json};

use self::fault::Fault;
use self::site::{Outcome, Site};
use crate::binaries::{self, Shell};
use crate::namespace;

/// Update an installed node again and again while processes are killed, the disk is full, downloads fail and releases
/// are bad, and see that it comes back each time with its identity and registration untouched.
///
/// Example: cargo run --release -p consensus-testbed -- chaos --updates 200
#[derive(Clone, Debug, FromArgs)]
#[argh(subcommand, name = "chaos")]
pub struct Chaos {
    /// how many updates (default 200)
    #[argh(option, default = "200")]
    pub updates: u32,

    /// what the faults and their instants are drawn from; it is printed (default 1)
    #[argh(option, default = "1")]
    pub seed: u64,

    /// which of the two programs: smol (default) or blocking
    #[argh(option, default = "Shell::Smol")]
    pub shell: Shell,

    /// write JSON instead of text
    #[argh(switch)]
    pub json: bool,
}

/// What came of the updates with one fault.
#[derive(Default)]
struct Tally {
    new: u32,
    old: u32,
    time: Duration,
}

/// Runs them; `true` when the node came back each time.
#[must_use]
pub fn run(chaos: &Chaos) -> bool {
    // Built outside, where there is room.
    let begun = binaries::build(chaos.shell).and_then(|program| {
        let bytes = std::fs::metadata(&program)?.len();
        // The releases that are kept, one that is being made, its artifact and what is left of others.
        namespace::on_small_disk(bytes * 12 + 32 * 1024 * 1024)
    });
    match begun {
        Ok(namespace::Inside::Here) => {}
        Ok(namespace::Inside::Done(passed)) => return passed,
        Err(error) => {
            eprintln!(
                "consensus-testbed: chaos needs a small disk of its own, in a mount namespace: {error}"
            );
            return false;
        }
    }
    match updates(chaos) {
        Ok(tallies) => {
            report(chaos, &tallies);
            true
        }
        Err(failure) => {
            eprintln!("\nconsensus-testbed: {failure}\nThe same again: chaos --seed {}", chaos.seed);
            false
        }
    }
}

fn updates(chaos: &Chaos) -> Result<BTreeMap<&'static str, Tally>, String> {
    let program = binaries::build(chaos.shell).map_err(|error| format!("building the node: {error}"))?;
    let mut rng = Drbg::new({
        let mut seed = [0; 32];
        seed[..8].copy_from_slice(&chaos.seed.to_le_bytes());
        seed
    });
    let failed = |error: io::Error| format!("setting up: {error}");
    let mut site = Site::new(&program).map_err(failed)?;
    site.settle().map_err(|why| format!("the node does not come up at all: {why}"))?;
    let mut tallies: BTreeMap<&'static str, Tally> = BTreeMap::new();
    for number in 1..=chaos.updates {
        let fault = Fault::draw(&mut rng);
        let begun = Instant::now();
        let outcome = site
            .update(number, fault, &mut rng)
            .and_then(|outcome| site.check(outcome).map(|()| outcome))
            .map_err(|why| format!("update {number}, {fault}: {why}\n{}", site.story()))?;
        let took = begun.elapsed();
        if !chaos.json {
            let became = match outcome {
                Outcome::New => "the new release serves",
                Outcome::Old => "the old release serves",
            };
            println!("{number:>4}  {:<58} {became}, {:.1} s", fault.to_string(), took.as_secs_f64());
        }
        let tally = tallies.entry(fault.name()).or_default();
        match outcome {
            Outcome::New => tally.new += 1,
            Outcome::Old => tally.old += 1,
        }
        tally.time += took;
    }
    site.stop().map_err(|error| format!("the node does not stop: {error}"))?;
    Ok(tallies)
}

fn report(chaos: &Chaos, tallies: &BTreeMap<&'static str, Tally>) {
    let of = |tally: &Tally| tally.new + tally.old;
    let mean = |tally: &Tally| tally.time.as_secs_f64() / f64::from(of(tally).max(1));
    if chaos.json {
        let faults: BTreeMap<_, Value> = tallies
            .iter()
            .map(|(name, tally)| {
                (*name, json!({ "updates": of(tally), "new": tally.new, "old": tally.old, "mean_s": mean(tally) }))
            })
            .collect();
        println!("{}", json!({ "shell": chaos.shell.name(), "seed": chaos.seed, "faults": faults }));
        return;
    }
    println!("\n{:<28}{:>8}{:>8}{:>8}{:>10}", "what went wrong", "updates", "new", "old", "mean s");
    for (name, tally) in tallies {
        println!("{name:<28}{:>8}{:>8}{:>8}{:>10.2}", of(tally), tally.new, tally.old, mean(tally));
    }
    let (all, time): (u32, Duration) =
        tallies.values().fold((0, Duration::ZERO), |(all, time), tally| (all + of(tally), time + tally.time));
    println!(
        "{all} updates of the {} node in {:.0} s, seed {}: it came back each time, with its identity and registration \
         untouched.",
        chaos.shell.name(),
        time.as_secs_f64(),
        chaos.seed
    );
}
