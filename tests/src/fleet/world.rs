//! One node's day in virtual time: its machine (files, install directory, clock, supervisor), its connections, and its
//! part of the server. What is done to the first two is in `machine` and `links`; the server's end is in
//! [`server`](super::server), what raw tunnels lead to in [`sockets`](super::sockets).

mod links;
mod machine;

use std::cmp::Ordering;
use std::collections::{BTreeMap, BinaryHeap};
use std::time::Duration;

use consensus_core::event::Event;
use consensus_core::io::{
    Effect, EffectId, EffectResult, Finish, Input, LinkEnd, LinkId, Outcome, Output, SocketId, StateFile,
};
use consensus_core::limits::{
    HANDSHAKE_CLOCK_TOLERANCE, HANDSHAKE_TIMEOUT, HEARTBEAT_INTERVAL, Limits, OPEN_TIMEOUT, RECONNECT_JITTER,
    RECONNECT_MAX,
};
use consensus_core::node::Node;
use consensus_core::peer::orchestrator::Orchestrator;
use consensus_core::time::Now;
use consensus_core::update::Install;

use super::directory::{Chosen, Directory};
use super::figures::{Figures, clock};
use super::plan::{Dice, Fault, Plan, START_SPREAD, Worth};
use super::server::{Chore, Server};
use super::sham::Sham;
use super::sockets::Sockets;
use super::{Planted, Violation};

/// The unix time at which a run begins, in seconds.
const UNIX: u64 = 1_795_391_521;

/// Every clock that does not jump begins here.
pub(super) const MONOTONIC: Duration = Duration::from_secs(1000);

/// How long the wrapper gives a release to reconnect.
const PROBATION: Duration = Duration::from_secs(120);

/// Inputs of one node in one virtual second, over the whole run: one that takes more does not come to rest.
const MAX_INPUTS_PER_SECOND: u64 = 20;

/// After the last disturbance a node has a session within this, whatever state it was in: the session that it believed
/// in has to be given up, then an attempt that was under way, then the longest wait, and the next attempt works.
pub(super) fn connected_within(limits: &Limits) -> Duration {
    let attempt = OPEN_TIMEOUT + 2 * HANDSHAKE_TIMEOUT;
    limits.silence_limit + attempt + RECONNECT_MAX + RECONNECT_JITTER + Duration::from_secs(5)
}

/// What happens at some moment.
pub(super) enum What {
    /// The plan's.
    Fault(Fault),
    /// The server is away for so long.
    Outage(Duration),
    /// The supervisor starts what is installed.
    Start,
    /// The time of a release on probation is over.
    ProbationOver { process: u32 },
    /// The process ends by itself.
    Crash { process: u32 },
    /// An effect comes to its end.
    Effect { process: u32, id: EffectId, effect: Box<Effect> },
    /// A fetch does.
    Fetched { process: u32, id: EffectId, result: Box<EffectResult> },
    /// Something of a link arrives at the node.
    ToNode { link: u64, input: Box<Input> },
    /// A transport that was asked for is there, or is not.
    Opened { link: u64, is_open: bool },
    /// A message arrives at the server; nothing where the link's other end is gone.
    ToServer { link: u64, data: Option<Vec<u8>> },
    /// Something of a socket.
    Socket { process: u32, socket: SocketId },
    /// The server does something of its own accord.
    Chore(Chore),
    /// Whether the node is connected.
    Check,
}

struct Due {
    at: Duration,
    /// What was planned first comes first.
    sequence: u64,
    what: What,
}

impl PartialEq for Due {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl Eq for Due {}

impl PartialOrd for Due {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Due {
    /// The earliest is the greatest: that is what the heap gives first.
    fn cmp(&self, other: &Self) -> Ordering {
        (other.at, other.sequence).cmp(&(self.at, self.sequence))
    }
}

/// The server's end of a link.
pub(super) enum Seat {
    /// It was never opened, or has ended.
    Gone,
    /// It is open, and the handshake has not come.
    Open,
    /// There is a session.
    Up(Box<Orchestrator<Sham>>),
}

/// One transport, from its opening until both ends have let it go.
pub(super) struct Link {
    pub(super) id: u64,
    process: u32,
    name: LinkId,
    latency: Duration,
    /// Neither direction is faster than itself: what arrives, arrives in order.
    last_up: Duration,
    last_down: Duration,
    /// Nothing arrives any more, and nobody is told.
    is_silent: bool,
    /// The node has not let it go.
    is_nodes: bool,
    pub(super) seat: Seat,
    /// When the seat wants to be called.
    pub(super) seat_wait: Option<Duration>,
    /// What waits while the node does not read.
    held: Option<Vec<Input>>,
}

/// A process of the node's program.
struct Process {
    number: u32,
    node: Node<Sham>,
    release: Chosen,
    worth: Worth,
    /// When it wants to be called.
    wait: Option<Duration>,
    sockets: Sockets,
    /// When the last file will be on the disk.
    written: Duration,
    installing: Option<Install>,
    sessions: u64,
    /// Since the last connection.
    failures: u32,
    /// When the last attempt or session ended.
    lost: Option<Duration>,
    is_up: bool,
    /// The operator asked it to end.
    is_stopping: bool,
    /// Its probation is over without a session.
    is_late: bool,
    finish: Option<Finish>,
    /// When it is to start again after a stop.
    down: Duration,
}

/// A node and all that it has to do with.
pub(super) struct World<'p> {
    pub(super) plan: &'p Plan,
    pub(super) number: u32,
    pub(super) node_id: String,
    pub(super) dice: Dice,
    pub(super) now: Duration,
    pub(super) figures: &'p mut Figures,
    pub(super) server: Server,
    pub(super) links: Vec<Link>,
    pub(super) violation: Option<Violation>,
    limits: Limits,
    pub(super) seed: [u8; 32],
    pub(super) clock_off: i64,
    queue: BinaryHeap<Due>,
    sequence: u64,
    next_link: u64,
    process: Option<Process>,
    processes: u32,
    files: BTreeMap<StateFile, Vec<u8>>,
    directory: Directory,
    /// Until then nothing passes.
    stalled_until: Duration,
    /// Until then the server takes nobody.
    away_until: Duration,
    /// The end of the last thing that went wrong.
    disturbed_until: Duration,
    inputs: u64,
}

impl<'p> World<'p> {
    pub(super) fn new(plan: &'p Plan, number: u32, figures: &'p mut Figures) -> Self {
        let mut dice = plan.dice(number);
        let (seed, server) = (dice.bytes(), Server::new(plan, &mut dice));
        let mut world = Self {
            plan,
            number,
            node_id: format!("node-{number}"),
            dice,
            now: Duration::ZERO,
            figures,
            server,
            links: Vec::new(),
            violation: None,
            limits: Limits::default(),
            seed,
            clock_off: 0,
            queue: BinaryHeap::new(),
            sequence: 0,
            next_link: 0,
            process: None,
            processes: 0,
            files: BTreeMap::new(),
            directory: Directory::default(),
            stalled_until: Duration::ZERO,
            away_until: Duration::ZERO,
            disturbed_until: Duration::ZERO,
            inputs: 0,
        };
        world.prepare();
        world
    }

    /// The first release is installed, and what the plan has in store is lined up.
    fn prepare(&mut self) {
        if let Err(reason) = self.install(&self.plan.first.clone(), None, usize::MAX) {
            self.violated(&format!("the first release is not installed: {reason}"));
        }
        let start = self.dice.millis(0, START_SPREAD.as_millis() as u64);
        self.at(start, What::Start);
        let mut dice = self.dice.clone();
        for (at, fault) in self.plan.faults(&mut dice) {
            self.at(at, What::Fault(fault));
        }
        self.dice = dice;
        for outage in self.plan.outages.clone() {
            self.at(outage.from, What::Outage(outage.until));
        }
        for chore in self.server.begin(self.plan, self.number, &mut self.dice) {
            self.at(chore.0, What::Chore(chore.1));
        }
    }

    /// Runs to the end, or to the first thing that does not hold. The core as it is then.
    pub(super) fn run(mut self) -> (Option<Node<Sham>>, Option<Violation>) {
        while self.violation.is_none() && self.step() {}
        if self.violation.is_none() {
            self.now = self.plan.length;
            self.judge_the_end();
        }
        (self.process.map(|process| process.node), self.violation)
    }

    /// The next thing that happens, if there is one before the end.
    fn step(&mut self) -> bool {
        let node = self.process.as_ref().and_then(|process| process.wait);
        let server = self.links.iter().filter_map(|link| link.seat_wait).min();
        let queued = self.queue.peek().map(|due| due.at);
        let Some(next) = [node, server, queued].into_iter().flatten().min() else { return false };
        if next > self.plan.length {
            return false;
        }
        self.now = self.now.max(next);
        if queued == Some(next) {
            if let Some(due) = self.queue.pop() {
                self.happen(due.what);
            }
        } else if server == Some(next) {
            let due = self.links.iter().find(|link| link.seat_wait == Some(next)).map(|link| link.id);
            if let Some(link) = due {
                self.server_tick(link);
            }
        } else {
            self.feed(Input::Tick);
        }
        true
    }

    fn happen(&mut self, what: What) {
        match what {
            What::Fault(fault) => self.befall(fault),
            What::Outage(until) => self.outage(until),
            What::Start => self.start(),
            What::ProbationOver { process } => self.probation_over(process),
            What::Crash { process } if self.is_current(process) => self.end_process(false),
            What::Effect { process, id, effect } if self.is_current(process) => {
                let result = self.carry_out(*effect);
                self.feed(Input::Done { effect: id, result });
            }
            What::Fetched { process, id, result } if self.is_current(process) => {
                self.feed(Input::Done { effect: id, result: *result });
            }
            What::Socket { process, socket } if self.is_current(process) => {
                let input = self.process.as_mut().and_then(|process| process.sockets.next(socket));
                let Some(input) = input else { return };
                self.feed(input);
                // There may be more where that came from.
                self.after(Duration::ZERO, What::Socket { process, socket });
            }
            What::Crash { .. } | What::Effect { .. } | What::Fetched { .. } | What::Socket { .. } => {}
            What::Opened { link, is_open } => self.opened(link, is_open),
            What::ToNode { link, input } => self.arrive(link, *input),
            What::ToServer { link, data: Some(data) } => self.serve(link, data),
            What::ToServer { link, data: None } => {
                self.server_loses(link);
                self.tidy();
            }
            What::Chore(chore) => self.do_chore(chore),
            What::Check => self.check(),
        }
    }

    pub(super) fn at(&mut self, at: Duration, what: What) {
        self.sequence += 1;
        self.queue.push(Due { at: at.max(self.now), sequence: self.sequence, what });
    }

    pub(super) fn after(&mut self, after: Duration, what: What) {
        self.at(self.now + after, what);
    }

    /// Something does not hold.
    pub(super) fn violated(&mut self, what: &str) {
        if self.violation.is_none() {
            let (settings, at, what) = (self.plan.settings.clone(), self.now, what.to_owned());
            self.violation = Some(Violation { settings, node: Some(self.number), at, what });
        }
    }

    pub(super) fn has_planted(&self, planted: Planted) -> bool {
        self.plan.settings.planted == Some(planted)
    }

    pub(super) fn server_now(&self) -> Now {
        Now { monotonic: MONOTONIC + self.now, unix: Duration::from_secs(UNIX) + self.now }
    }

    fn node_now(&self) -> Now {
        let now = self.server_now();
        let off = Duration::from_secs(self.clock_off.unsigned_abs());
        let unix = if self.clock_off < 0 { now.unix.saturating_sub(off) } else { now.unix + off };
        Now { unix, ..now }
    }

    /// Something goes wrong, or went wrong until then; the node has to be well a while later.
    fn disturb(&mut self, until: Duration) {
        self.disturbed_until = self.disturbed_until.max(until);
        self.at(until + connected_within(&self.limits), What::Check);
    }

    /// Whether nothing has gone wrong since a while before that moment.
    pub(super) fn was_calm_since(&self, at: Duration) -> bool {
        self.disturbed_until + connected_within(&self.limits) < at && !self.is_kept_out()
    }

    /// A clock that is off keeps the node out until somebody sets it. What the server has of it may be long dead.
    fn is_kept_out(&self) -> bool {
        self.clock_off.unsigned_abs() > HANDSHAKE_CLOCK_TOLERANCE.as_secs()
    }

    fn is_current(&self, process: u32) -> bool {
        self.process.as_ref().is_some_and(|current| current.number == process)
    }

    fn befall(&mut self, fault: Fault) {
        self.say(&format!("befalls it: {fault:?}"));
        match fault {
            Fault::Client => return self.client_comes(),
            Fault::Clock(off) => {
                self.clock_off = off;
                self.figures.counters.clocks_set += u64::from(off != 0);
                // Tickets that were spent, and have expired, must not come to life again.
                self.show_again();
            }
            Fault::Cut => {
                for link in self.living_links() {
                    self.lose(link);
                    self.server_loses(link);
                }
            }
            Fault::ServerLoses => {
                for link in self.living_links() {
                    self.silence(link);
                    self.server_loses(link);
                }
            }
            Fault::NodeLoses => {
                for link in self.living_links() {
                    self.silence(link);
                    let end = LinkEnd::Lost { detail: "no route to host".into() };
                    self.lose_at_once(link, end);
                }
            }
            Fault::Stall(time) => {
                self.stalled_until = self.stalled_until.max(self.now + time);
                return self.disturb(self.stalled_until);
            }
            Fault::Kill(down) | Fault::PowerCut(down) if self.process.is_some() => {
                if let Some(process) = &mut self.process {
                    process.down = down;
                }
                self.figures.counters.killed += 1;
                self.end_process(matches!(fault, Fault::PowerCut(_)));
            }
            Fault::Stop(down) => {
                let Some(process) = &mut self.process else { return };
                process.is_stopping = true;
                process.down = down;
                self.feed(Input::Stop);
            }
            // It is down.
            Fault::Kill(_) | Fault::PowerCut(_) => return,
        }
        self.tidy();
        self.disturb(self.now);
    }

    fn outage(&mut self, until: Duration) {
        self.say("the server goes away");
        self.away_until = until;
        for link in self.living_links() {
            // Most learn of it; from a machine that has lost its power nobody does.
            if self.dice.happens(10) {
                self.silence(link);
            } else {
                self.lose(link);
            }
            self.server_loses(link);
        }
        self.tidy();
        self.disturb(until);
    }

    /// Gives the node an input, and does what it wants done.
    pub(super) fn feed(&mut self, input: Input) {
        let now = self.node_now();
        let Some(process) = &mut self.process else { return };
        self.inputs += 1;
        process.node.handle_input(now, input);
        self.drain();
    }

    fn drain(&mut self) {
        let mut sent: Option<(LinkId, usize)> = None;
        loop {
            let Some(process) = &mut self.process else { return };
            match process.node.poll_output() {
                Output::Wait(deadline) => {
                    // The transport takes everything at once.
                    if let Some((link, bytes)) = sent.take() {
                        let now = self.node_now();
                        if let Some(process) = &mut self.process {
                            process.node.handle_input(now, Input::LinkSent { link, bytes });
                        }
                        continue;
                    }
                    process.wait = deadline.map(|deadline| deadline.at.saturating_sub(MONOTONIC));
                    if process.wait.is_some_and(|wait| wait <= self.now) {
                        self.violated(&format!("it does not wait: {deadline:?} is not after now"));
                    }
                    break;
                }
                Output::Send { link, data } => {
                    let bytes = data.len() + sent.map_or(0, |(_, bytes)| bytes);
                    sent = Some((link, bytes));
                    self.send(link, data);
                }
                Output::Event(event) => self.hear(event),
                Output::Compute { job } => {
                    let now = self.node_now();
                    if let Some(process) = &mut self.process {
                        process.node.compute(now, job);
                    }
                }
                Output::OpenLink { link, .. } => self.open_link(link),
                Output::CloseLink { link, .. } | Output::DropLink { link } => {
                    if let Some(id) = self.id_of(link) {
                        self.node_lets_go(id);
                        self.tidy();
                    }
                }
                Output::HoldLink { link, hold } => self.hold_link(link, hold),
                Output::Perform { id, effect } => self.perform(id, effect),
                // It comes to its end at its own time.
                Output::Cancel { .. } => {}
                Output::OpenSocket { socket, .. } => {
                    let (number, opens) = (process.number, self.dice.happens(90));
                    process.sockets.open(socket, opens, &mut self.dice);
                    let after = self.dice.millis(20, 200);
                    self.after(after, What::Socket { process: number, socket });
                }
                Output::SendSocket { socket, data } => {
                    let number = process.number;
                    process.sockets.send(socket, data);
                    let after = self.dice.millis(1, 50);
                    self.after(after, What::Socket { process: number, socket });
                }
                Output::ReadSocket { socket, most } => {
                    let number = process.number;
                    process.sockets.read(socket, most);
                    self.after(Duration::from_millis(1), What::Socket { process: number, socket });
                }
                Output::CloseSocket { socket } => process.sockets.close(socket),
                Output::Finish(finish) => process.finish = Some(finish),
                output @ (Output::Respond { .. } | Output::SendLocal { .. } | Output::CloseLocal { .. }) => {
                    self.violated(&format!("nobody is at the local API: {output:?}"));
                }
            }
        }
        if self.inputs > MAX_INPUTS_PER_SECOND * (self.now.as_secs() + 600) {
            self.violated(&format!("it does not come to rest: {} inputs", self.inputs));
        }
        self.finished();
    }

    /// Looks whether the process has come to its end, and was to.
    fn finished(&mut self) {
        let Some(Process { finish: Some(finish), is_stopping, .. }) = &self.process else { return };
        let is_meant = match finish.outcome {
            Outcome::Updating => true,
            Outcome::Done => *is_stopping,
            _ => false,
        };
        if !is_meant {
            let what = format!("it has ended by itself: {:?}: {}", finish.outcome, finish.message);
            self.violated(&what);
        }
        self.end_process(false);
    }

    fn hear(&mut self, event: Event) {
        self.say(&event.to_string_if(self.plan.settings.only.is_some()));
        let Some(process) = &mut self.process else { return };
        match event {
            Event::Connected { .. } => {
                process.is_up = true;
                process.failures = 0;
                process.sessions += 1;
                self.figures.counters.reconnects += u64::from(process.sessions > 1);
                let since = process.lost.unwrap_or_default().max(self.disturbed_until);
                let way_back = self.now.saturating_sub(since);
                self.figures.most.reconnect = self.figures.most.reconnect.max(way_back);
            }
            Event::Disconnected { .. } => {
                process.is_up = false;
                process.lost = Some(self.now);
            }
            Event::UpdateConfirmed { .. } => {
                self.figures.counters.updates_done += u64::from(process.release.on_probation);
            }
            Event::NotSent { .. } => self.violated("an answer was larger than a frame"),
            _ => {}
        }
    }

    /// What the node holds is within its bounds, and without a session it holds nothing of one.
    pub(super) fn check_holdings(&mut self) {
        let Some(process) = &self.process else { return };
        let (held, is_up) = (process.node.holdings(), process.is_up);
        let most = &mut self.figures.most;
        most.requests = most.requests.max(held.requests);
        most.streams = most.streams.max(held.streams);
        most.spent_tickets = most.spent_tickets.max(held.spent_tickets);
        if let Err(excess) = held.check(&self.limits) {
            self.violated(&excess.to_string());
        }
        if !is_up && held.under_way() > 0 {
            self.violated(&format!("it has no session, and holds something of one: {held:?}"));
        }
    }

    /// Where nothing has gone wrong for long enough, the node has a session that both ends believe in, and beats.
    fn check(&mut self) {
        self.check_holdings();
        let within = connected_within(&self.limits);
        let Some(process) = &self.process else { return };
        // A bad release keeps it out until it is given up.
        if self.now < self.disturbed_until + within || self.is_kept_out() || process.worth != Worth::Good {
            return;
        }
        let is_up = process.is_up;
        let seat = self.links.iter().any(|link| link.is_nodes && self.server.is_attached(link.id));
        if !(is_up && seat) {
            let what = format!("it has no session {} s after the last fault", within.as_secs());
            return self.violated(&what);
        }
        let beat = self.server.last_heartbeat();
        if beat + HEARTBEAT_INTERVAL + Duration::from_secs(5) < self.now {
            self.violated(&format!("its last heartbeat came at {}", clock(beat)));
        }
    }

    fn judge_the_end(&mut self) {
        self.check();
        self.check_bootable();
        let Some(process) = &self.process else { return self.violated("at the end it does not run") };
        let held = process.node.holdings();
        if held.under_way() > 0 {
            return self.violated(&format!("at the end it holds what nobody waits for: {held:?}"));
        }
        let survey = self.directory.survey();
        if survey.rolled_back.is_some() {
            return self.violated("at the end the network does not know of a release that was given up");
        }
        // Every node was offered the last release, which is good. One that was given up all the same is not tried again.
        let Some(last) = self.plan.releases.last() else { return };
        let version = process.release.version.to_string();
        let is_refused = |failed: &consensus_core::update::records::Failed| {
            failed.version.to_string() == last.manifest.version
        };
        if version != last.manifest.version && !survey.all_refused().iter().any(is_refused) {
            let what = format!("it was offered {} and runs {version}", last.manifest.version);
            self.violated(&what);
        }
    }

    /// Tells whoever wants to know of this node alone.
    pub(super) fn say(&self, what: &str) {
        if self.plan.settings.only.is_some() {
            eprintln!("{} {what}", clock(self.now));
        }
    }
}

/// Texts that are made where somebody reads them.
trait ToStringIf {
    fn to_string_if(&self, is_read: bool) -> String;
}

impl ToStringIf for Event {
    fn to_string_if(&self, is_read: bool) -> String {
        if is_read { self.to_string() } else { String::new() }
    }
}
