//! A fleet in one process: as many cores as one likes, each with its machine, its connections and its server, in virtual
//! time, and what must hold of them looked at all the while.
//!
//! Nodes have nothing to do with each other but what the plan gives all of them: the outages of the server, and its
//! releases. So each is run alone, one after the other, on as many threads as there are, and what they did is added up;
//! every figure is a function of the seed.

mod directory;
mod figures;
mod plan;
mod server;
mod sham;
mod sockets;
mod world;

use std::fmt;
use std::ops::RangeInclusive;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use argh::FromArgs;
use consensus_core::node::Node;

pub use self::figures::{Counters, Figures, Most};
pub use self::sham::{Mix, Scalar, Sham};

use self::figures::clock;
use self::plan::Plan;
use self::world::World;

/// Run a whole fleet of nodes in virtual time, with faults, outages and updates, and check what must hold of it.
///
/// The figures on standard output are the same for the same seed; what depends on this machine goes to standard error.
/// Of tickets shown again, those that were not refused had their connection cut: one that is accepted again fails the run.
///
/// Example: cargo run --release -p consensus-testbed -- fleet --nodes 1000 --hours 24 --seed 1
#[derive(Clone, Debug, FromArgs)]
#[argh(subcommand, name = "fleet")]
pub struct Fleet {
    /// how many nodes, 1 to 1000000 (default 1000)
    #[argh(option, default = "1000", from_str_fn(nodes))]
    pub nodes: u32,

    /// hours of virtual time, 2 to 720 (default 24)
    #[argh(option, default = "24", from_str_fn(hours))]
    pub hours: u32,

    /// what everything is drawn from (default 1)
    #[argh(option, default = "1")]
    pub seed: u64,

    /// this node of the fleet alone, and what it says, on standard error
    #[argh(option)]
    pub only: Option<u32>,

    /// write JSON instead of a table
    #[argh(switch)]
    pub json: bool,
}

fn nodes(text: &str) -> Result<u32, String> {
    within(text, 1..=1_000_000)
}

fn hours(text: &str) -> Result<u32, String> {
    within(text, 2..=720)
}

fn within(text: &str, range: RangeInclusive<u32>) -> Result<u32, String> {
    let number = text.parse().ok().filter(|number| range.contains(number));
    number.ok_or_else(|| format!("it is a whole number from {} to {}", range.start(), range.end()))
}

/// What a fleet is a function of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// How many nodes.
    pub nodes: u32,
    /// Hours of virtual time, at least 2.
    pub hours: u32,
    /// What everything is drawn from.
    pub seed: u64,
    /// This node alone, and what it says.
    pub only: Option<u32>,
    /// A mistake that the checks have to find.
    pub planted: Option<Planted>,
}

impl Default for Settings {
    fn default() -> Self {
        Self { nodes: 60, hours: 6, seed: 1, only: None, planted: None }
    }
}

/// A mistake made on purpose: for the tests of the checks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Planted {
    /// A node that starts finds its file of spent tickets empty, as if it had been left so in good order.
    ForgottenTickets,
    /// The wrapper finds the programs of all releases gone after an update.
    LostPrograms,
    /// The server closes no session of a node that a newer one replaces.
    OlderKept,
    /// From the middle of the run on the server says nothing to a node that shakes hands.
    Deaf,
    /// What nodes say of the end of a stream does not arrive.
    LostCloses,
}

/// Something that must hold and does not.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Violation {
    /// Of which run.
    pub settings: Settings,
    /// Which node; none where it is about all of them.
    pub node: Option<u32>,
    /// In virtual time.
    pub at: Duration,
    /// What does not hold.
    pub what: String,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Settings { nodes, hours, seed, .. } = self.settings;
        let (what, at) = (&self.what, clock(self.at));
        let command = format!("consensus-testbed fleet --nodes {nodes} --hours {hours} --seed {seed}");
        match self.node {
            None => write!(f, "seed {seed}, at {at}: {what}\nthe same again: {command}"),
            Some(node) => write!(
                f,
                "seed {seed}, node {node}, at {at}: {what}\nthat node alone: {command} --only {node}"
            ),
        }
    }
}

/// What came of a run.
#[derive(Debug)]
pub struct Outcome {
    plan: Plan,
    /// Of all nodes.
    pub figures: Figures,
    /// Of nodes in their order; at most one of each.
    pub violations: Vec<Violation>,
    /// The cores as they are at the end.
    pub cores: Vec<Node<Sham>>,
}

impl Outcome {
    /// The figures, as JSON on one line or as a table.
    #[must_use]
    pub fn text(&self, as_json: bool) -> String {
        if as_json {
            format!("{}\n", self.figures.to_json(&self.plan))
        } else {
            self.figures.to_table(&self.plan)
        }
    }
}

/// Runs a fleet on that many threads; how many makes no difference to what comes of it.
///
/// # Panics
/// A core panicked.
#[must_use]
pub fn simulate(settings: &Settings, threads: usize) -> Outcome {
    let plan = Plan::new(settings);
    let next = AtomicU32::new(settings.only.unwrap_or(0));
    let end = settings.only.map_or(settings.nodes, |only| only + 1);
    let shard = || {
        let mut figures = Figures::new(&plan);
        let (mut violations, mut cores) = (Vec::new(), Vec::new());
        loop {
            let node = next.fetch_add(1, Ordering::Relaxed);
            if node >= end {
                return (figures, violations, cores);
            }
            let (core, violation) = World::new(&plan, node, &mut figures).run();
            violations.extend(violation);
            cores.extend(core);
        }
    };
    let shards: Vec<_> = thread::scope(|scope| {
        let threads: Vec<_> = (0..threads.max(1)).map(|_| scope.spawn(shard)).collect();
        threads
            .into_iter()
            .map(|thread| thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
            .collect()
    });
    let mut figures = Figures::new(&plan);
    let (mut violations, mut cores) = (Vec::new(), Vec::new());
    for (shard, found, kept) in shards {
        figures.add(&shard);
        violations.extend(found);
        cores.extend(kept);
    }
    violations.sort_by_key(|violation| violation.node);
    let (second, peak) = figures.peak(Duration::ZERO, plan.length);
    if peak > settings.nodes {
        let what = format!("{peak} handshakes in one second of {} nodes", settings.nodes);
        let at = Duration::from_secs(second);
        violations.push(Violation { settings: settings.clone(), node: None, at, what });
    }
    Outcome { plan, figures, violations, cores }
}

/// Runs and prints; `true` when everything held.
#[must_use]
pub fn run(fleet: &Fleet) -> bool {
    let Fleet { nodes, hours, seed, only, json } = *fleet;
    if only.is_some_and(|only| only >= nodes) {
        eprintln!("consensus-testbed: the nodes of this fleet are 0 to {}", nodes - 1);
        return false;
    }
    let settings = Settings { nodes, hours, seed, only, planted: None };
    let threads = thread::available_parallelism().map_or(1, usize::from);
    let (begun, before) = (Instant::now(), resident_kib());
    let outcome = simulate(&settings, threads);
    let took = begun.elapsed();
    print!("{}", outcome.text(json));
    let (count, after) = (outcome.cores.len() as u64, resident_kib());
    let frames = outcome.figures.counters.messages_up + outcome.figures.counters.messages_down;
    eprintln!(
        "{:.1} s on {threads} threads, {:.0} times as fast as the fleet's own time, {:.2} million messages a second; \
         {:.1} MiB resident with all {count} cores kept, {:.1} KiB a core",
        took.as_secs_f64(),
        f64::from(hours) * 3600.0 / took.as_secs_f64(),
        frames as f64 / took.as_secs_f64() / 1e6,
        after as f64 / 1024.0,
        after.saturating_sub(before) as f64 / count.max(1) as f64,
    );
    for violation in outcome.violations.iter().take(10) {
        eprintln!("does not hold: {violation}");
    }
    if outcome.violations.len() > 10 {
        eprintln!("and {} nodes more", outcome.violations.len() - 10);
    }
    let held = outcome.violations.is_empty();
    if held {
        eprintln!("everything held that must");
    }
    held
}

/// What this process has in memory, as the system says it; 0 where it does not.
fn resident_kib() -> u64 {
    // Pages, of which the second number are resident.
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap_or_default();
    let pages: Option<u64> = statm.split_whitespace().nth(1).and_then(|text| text.parse().ok());
    pages.unwrap_or(0) * rustix::param::page_size() as u64 / 1024
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(nodes: u32, hours: u32, seed: u64) -> Settings {
        Settings { nodes, hours, seed, ..Settings::default() }
    }

    #[test]
    fn a_small_fleet_lives_through_its_day_whatever_the_seed() {
        for seed in [1, 2] {
            let outcome = simulate(&settings(60, 6, seed), 2);
            let found: Vec<String> = outcome.violations.iter().map(ToString::to_string).collect();
            assert!(found.is_empty(), "{}", found.join("\n"));
            assert_eq!(outcome.cores.len(), 60);
            let counters = &outcome.figures.counters;
            for (what, count) in [
                ("connections were lost", counters.reconnects),
                ("sessions were replaced", counters.replaced),
                ("processes were killed", counters.killed),
                ("clocks were set", counters.clocks_set),
                ("handshakes were refused", counters.handshakes_refused),
                ("streams were cut", counters.streams_cut),
                ("requests failed", counters.requests_failed),
                ("tickets were accepted", counters.tickets_accepted),
                ("tickets were refused", counters.replays_refused),
                ("updates were refused", counters.updates_refused),
                ("installations were cut off", counters.installs_cut),
                ("rollbacks were told", counters.rollbacks_told),
            ] {
                assert!(count > 0, "seed {seed}: nothing was tried where {what}: {counters:?}");
            }
            // Three good releases, of which an outage may cost a node one.
            assert!(counters.updates_done >= 2 * 60, "{counters:?}");
            let (_, peak) = outcome.figures.peak(Duration::ZERO, outcome.plan.length);
            assert!((20..=60).contains(&peak), "an outage brings them back together: {peak}");
        }
    }

    #[test]
    fn the_same_seed_says_the_same_on_any_number_of_threads_and_another_does_not() {
        let text = |seed, threads, as_json| simulate(&settings(9, 3, seed), threads).text(as_json);
        for as_json in [false, true] {
            assert_eq!(text(7, 1, as_json), text(7, 3, as_json));
        }
        assert_ne!(text(7, 1, true), text(8, 1, true));
    }

    #[test]
    fn a_node_alone_has_the_day_that_it_has_in_the_fleet() {
        let fleet = settings(3, 2, 5);
        let mut sum = Figures::new(&Plan::new(&fleet));
        for only in 0..3 {
            sum.add(&simulate(&Settings { only: Some(only), ..fleet.clone() }, 1).figures);
        }
        assert_eq!(sum, simulate(&fleet, 2).figures);
    }

    #[test]
    fn whatever_is_planted_is_found_and_says_how_to_see_it_again() {
        for (planted, told) in [
            (Planted::ForgottenTickets, "was accepted a second time"),
            (Planted::LostPrograms, "can be started"),
            (Planted::OlderKept, "2 sessions"),
            (Planted::Deaf, "no session"),
            (Planted::LostCloses, "neither ended nor was answered"),
        ] {
            let settings = Settings { planted: Some(planted), ..settings(20, 6, 1) };
            let outcome = simulate(&settings, 2);
            let told_so = |violation: &&Violation| violation.what.contains(told);
            let found = outcome.violations.iter().find(told_so);
            let found = found.unwrap_or_else(|| panic!("{planted:?}: {:?}", outcome.violations));
            let text = found.to_string();
            let command = format!("fleet --nodes 20 --hours 6 --seed 1 --only {}", found.node.unwrap());
            assert!(text.ends_with(&command), "{text}");
            let again = simulate(&Settings { only: found.node, ..settings }, 1);
            let at = |violation: &Violation| (violation.at, violation.what.clone());
            assert_eq!(again.violations.iter().map(at).next(), Some(at(found)));
        }
    }
}
