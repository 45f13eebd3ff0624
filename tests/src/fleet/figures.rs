//! What is counted of a fleet, and how it is told.

use std::fmt::Write as _;
use std::time::Duration;

use serde_json::{Map, Value, json};

use super::plan::Plan;

macro_rules! counters {
    ($($(#[$doc:meta])* $name:ident = $text:literal,)*) => {
        /// Sums over all nodes.
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
        pub struct Counters { $($(#[$doc])* pub $name: u64,)* }

        impl Counters {
            fn add(&mut self, other: &Self) {
                $(self.$name += other.$name;)*
            }

            /// Each with its name for programs and for people.
            fn all(&self) -> Vec<(&'static str, &'static str, u64)> {
                vec![$((stringify!($name), $text, self.$name),)*]
            }
        }
    };
}

counters! {
    /// WebSocket messages that nodes sent.
    messages_up = "messages of nodes",
    /// And that the server sent.
    messages_down = "messages of the server",
    /// Heartbeats that arrived.
    heartbeats = "heartbeats",
    /// Pings of nodes that the server answered.
    pings = "pings",
    /// Transports that nodes asked for.
    attempts = "attempts to connect",
    /// Those that were refused, or did not open.
    unopened = "of these not opened",
    /// `handshake_init`s that the server judged.
    handshakes = "handshakes",
    /// Those that it refused, for a clock that is off.
    handshakes_refused = "of these refused",
    /// Sessions that came to `ready`.
    sessions = "sessions",
    /// Of these, after the first of a process.
    reconnects = "reconnects",
    /// Sessions that the server ended because a newer one of that node came.
    replaced = "sessions replaced",
    /// Processes that were started.
    processes = "processes started",
    /// Of these, after one that was killed, or whose machine lost its power.
    killed = "killed",
    /// Clocks that were set wrong.
    clocks_set = "clocks set wrong",
    /// Proxied requests that were asked for.
    requests = "proxy requests",
    /// Those that a node refused, or failed to fetch.
    requests_failed = "of these failed",
    /// Streams that were opened, those of the data plane among them.
    streams = "streams",
    /// Those that ended with their session.
    streams_cut = "of these cut",
    /// Tickets that were issued.
    tickets = "tickets",
    /// Those that were taken: each once, or the run fails.
    tickets_accepted = "of these accepted",
    /// Connections that showed a ticket again.
    replays = "tickets shown again",
    /// Those that the node refused in an answer; the others were cut off before one.
    replays_refused = "of these refused",
    /// Proofs that a client did not take, for a clock that is off.
    proofs_refused = "proofs refused",
    /// Releases that a node was asked to prepare.
    updates_offered = "updates offered",
    /// Releases that a node came to run and to confirm.
    updates_done = "updates done",
    /// Releases that the wrapper gave up.
    updates_rolled_back = "updates rolled back",
    /// Of these, good ones: their time was over before the network was back.
    good_rolled_back = "of these good ones",
    /// Rollbacks that the server was told.
    rollbacks_told = "rollbacks told",
    /// Releases that a node would not prepare.
    updates_refused = "updates refused",
    /// Installations that were cut off half-way.
    installs_cut = "installations cut off",
}

/// The most that any one node held, or that happened in any one second.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Most {
    /// Requests under way in one node.
    pub requests: usize,
    /// Streams open in one node.
    pub streams: usize,
    /// Spent tickets that one node remembered.
    pub spent_tickets: usize,
    /// From the moment when a node could have had a session to that when it had one.
    pub reconnect: Duration,
}

/// All that is told of a run. The same for the same seed, whatever machine runs it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Figures {
    /// Sums.
    pub counters: Counters,
    /// Maxima.
    pub most: Most,
    /// Handshakes in each second of the run.
    per_second: Vec<u32>,
}

impl Figures {
    pub(super) fn new(plan: &Plan) -> Self {
        let seconds = usize::try_from(plan.length.as_secs()).unwrap_or(0) + 1;
        Self { per_second: vec![0; seconds], ..Self::default() }
    }

    pub(super) fn handshake(&mut self, at: Duration) {
        self.counters.handshakes += 1;
        if let Some(count) = usize::try_from(at.as_secs()).ok().and_then(|at| self.per_second.get_mut(at)) {
            *count += 1;
        }
    }

    /// Adds what other nodes did. In whatever order, it comes to the same.
    pub(super) fn add(&mut self, other: &Self) {
        self.counters.add(&other.counters);
        let (most, others) = (&mut self.most, &other.most);
        most.requests = most.requests.max(others.requests);
        most.streams = most.streams.max(others.streams);
        most.spent_tickets = most.spent_tickets.max(others.spent_tickets);
        most.reconnect = most.reconnect.max(others.reconnect);
        for (count, others) in self.per_second.iter_mut().zip(&other.per_second) {
            *count += others;
        }
    }

    /// The second with the most handshakes between two moments, and how many these are; the first of several.
    #[must_use]
    pub fn peak(&self, from: Duration, until: Duration) -> (u64, u32) {
        let seconds = (0_u64..).zip(&self.per_second);
        let within = seconds.filter(|(second, _)| (from.as_secs()..=until.as_secs()).contains(second));
        within.fold(
            (from.as_secs(), 0),
            |most, (second, count)| {
                if *count > most.1 { (second, *count) } else { most }
            },
        )
    }

    /// After each outage: when it was over, and the peak of the ten minutes after that.
    fn outages(&self, plan: &Plan) -> Vec<(Duration, Duration, u64, u32)> {
        let peak = |outage: &super::plan::Outage| {
            let (second, count) = self.peak(outage.until, outage.until + Duration::from_secs(600));
            (outage.from, outage.until, second, count)
        };
        plan.outages.iter().map(peak).collect()
    }

    pub(super) fn to_json(&self, plan: &Plan) -> Value {
        let counters: Map<String, Value> =
            self.counters.all().into_iter().map(|(name, _, count)| (name.to_owned(), count.into())).collect();
        let (second, peak) = self.peak(Duration::ZERO, plan.length);
        let outages: Vec<Value> = self
            .outages(plan)
            .into_iter()
            .map(|(from, until, second, count)| {
                json!({ "from_ms": from.as_millis() as u64, "until_ms": until.as_millis() as u64,
                    "peak_handshakes_per_second": count, "peak_at_second": second })
            })
            .collect();
        json!({
            "nodes": plan.settings.nodes, "hours": plan.settings.hours, "seed": plan.settings.seed,
            "counters": counters,
            "peak_handshakes_per_second": peak, "peak_at_second": second, "outages": outages,
            "most": {
                "requests": self.most.requests, "streams": self.most.streams,
                "spent_tickets": self.most.spent_tickets,
                "reconnect_ms": self.most.reconnect.as_millis() as u64,
            },
        })
    }

    pub(super) fn to_table(&self, plan: &Plan) -> String {
        let settings = &plan.settings;
        let mut text = format!(
            "{} nodes, {} hours of virtual time, seed {}\n\n",
            settings.nodes, settings.hours, settings.seed
        );
        // Writing to a string cannot fail.
        for (_, name, count) in self.counters.all() {
            let indent = if name.starts_with("of these") { "  " } else { "" };
            let _ = writeln!(text, "{:<26} {count:>12}", format!("{indent}{name}"));
        }
        let _ = writeln!(text, "\nthe most that one node had");
        let most = &self.most;
        for (name, count) in [
            ("requests under way", most.requests),
            ("streams", most.streams),
            ("spent tickets", most.spent_tickets),
        ] {
            let _ = writeln!(text, "{name:<26} {count:>12}");
        }
        let _ = writeln!(text, "{:<26} {:>10.1} s", "longest way back", most.reconnect.as_secs_f64());
        let _ = writeln!(
            text,
            "\nhandshakes a second: at most one of each node, {} in all (1 s and up to 0.5 s of jitter before the first)",
            settings.nodes
        );
        let (second, peak) = self.peak(Duration::ZERO, plan.length);
        let _ = writeln!(text, "{:<26} {peak:>12}   at {}", "peak", clock(Duration::from_secs(second)));
        for (from, until, second, count) in self.outages(plan) {
            let name = format!("after {} of outage", length(until - from));
            let at = clock(Duration::from_secs(second));
            let _ = writeln!(text, "{name:<26} {count:>12}   at {at}, over at {}", clock(until));
        }
        text
    }
}

/// Virtual time as hours, minutes and seconds.
pub(super) fn clock(at: Duration) -> String {
    let seconds = at.as_secs();
    format!("{}:{:02}:{:02}.{:03}", seconds / 3600, seconds / 60 % 60, seconds % 60, at.subsec_millis())
}

fn length(time: Duration) -> String {
    if time < Duration::from_secs(1) {
        format!("{} ms", time.as_millis())
    } else if time < Duration::from_secs(300) {
        format!("{} s", time.as_secs())
    } else {
        format!("{} min", time.as_secs() / 60)
    }
}
