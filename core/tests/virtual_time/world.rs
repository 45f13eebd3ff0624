//! A node and a server in virtual time, over a link that can be slow, cut, half-open or refused. The same seed gives
//! the same run.

use std::collections::BTreeMap;
use std::time::Duration;

use consensus_core::bench::multicore;
use consensus_core::bench::report::{
    BenchResult, Composite, Cpu, CryptoReport, Memory, MemoryPressure, NsPerOp, Report, Sustained, System,
};
use consensus_core::crypto::Drbg;
use consensus_core::crypto::identity::Identity;
use consensus_core::crypto::pure::Pure;
use consensus_core::data_plane::job::Job;
use consensus_core::data_plane::replay::Before;
use consensus_core::event::Event;
use consensus_core::io::{
    Effect, EffectId, EffectResult, Fetch, Finish, Input, LinkEnd, LinkId, LocalId, LocalRequest,
    LocalResponse, Measurement, OpenStage, Output, Response, StateFile,
};
use consensus_core::limits::Limits;
use consensus_core::node::{Config, Node};
use consensus_core::peer::handshake;
use consensus_core::peer::orchestrator::{self, Orchestrator, Terms};
use consensus_core::release::manifest::Manifest;
use consensus_core::state::Registration;
use consensus_core::time::Now;
use consensus_core::tunnel::Mode;
use consensus_core::update::Settings;

/// More steps than any test takes: a run that reaches it does not end by itself.
const MAX_STEPS: usize = 2_000_000;

pub(crate) const NODE_SEED: [u8; 32] = [1; 32];
pub(crate) const UNIX: u64 = 1_795_391_521;

/// What the link does to what is sent on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Weather {
    /// Everything arrives.
    Clear,
    /// Nothing arrives any more, and nobody is told: a half-open connection.
    BlackHole,
    /// New connections are refused.
    Refusing,
}

enum Delivery {
    ToNode(Input),
    ToServer(LinkId, Vec<u8>),
}

/// The server's side of the current link.
enum Server {
    None,
    Opened(LinkId),
    Up(LinkId, Box<Orchestrator<Pure>>),
}

pub(crate) struct World {
    pub(crate) node: Node<Pure>,
    pub(crate) now: Duration,
    /// How far the node's unix clock is off the server's, in seconds.
    pub(crate) node_clock_off: i64,
    pub(crate) weather: Weather,
    pub(crate) terms: Terms,
    pub(crate) memory_bytes: u64,
    pub(crate) signer: [u8; 32],
    /// Whether a measurement comes to its end.
    pub(crate) measures: bool,
    pub(crate) reply: fn(&Fetch) -> Option<Response>,
    /// What comes of a download, of a look into what was downloaded, and of an installation, a confirmation or an
    /// acknowledgement; nothing, where it does not come to its end.
    pub(crate) download: Option<Result<String, String>>,
    pub(crate) archive: Result<Box<Manifest>, String>,
    pub(crate) install: Option<Result<(), String>>,
    /// The effects of updates, in order.
    pub(crate) updates: Vec<(EffectId, Effect)>,
    pub(crate) events: Vec<(Duration, Event)>,
    pub(crate) server_events: Vec<(Duration, orchestrator::Event)>,
    pub(crate) files: BTreeMap<StateFile, Vec<u8>>,
    pub(crate) fetched: Vec<Fetch>,
    pub(crate) cancelled: Vec<EffectId>,
    pub(crate) responses: BTreeMap<LocalId, LocalResponse>,
    pub(crate) closes: Vec<(u16, String)>,
    /// What the node wanted of sockets, of WebSockets of its local API, and of reading the link, in order.
    pub(crate) wanted: Vec<Output>,
    /// Whether the transport takes what the node gives it.
    pub(crate) takes: bool,
    /// Jobs that the world keeps to itself until it is told to run them; nothing where it runs each at once.
    pub(crate) jobs: Option<Vec<Job<Pure>>>,
    /// Bytes that it has not taken.
    pub(crate) untaken: usize,
    /// What the server sent while the node did not want to read; nothing where it does.
    unread: Option<Vec<Input>>,
    pub(crate) opened: Vec<Duration>,
    pub(crate) frames_to_node: Vec<Vec<u8>>,
    pub(crate) finish: Option<Finish>,
    server: Server,
    latency: Duration,
    queue: BTreeMap<(Duration, u64), Delivery>,
    sequence: u64,
    rng: Drbg,
    steps: usize,
}

pub(crate) fn config(mode: Option<Mode>) -> Config {
    Config {
        mode,
        tunnel_url: "wss://network.example/node/tunnel".into(),
        server_key: None,
        identity_seed: NODE_SEED.into(),
        candidate_id: None,
        registration: (mode == Some(Mode::Control)).then(|| Registration::new("node-1")),
        manifest: Manifest::of_this_release("0.1.0", "abc", "linux-x64"),
        limits: Limits::default(),
        allow_private_targets: false,
        spent_before: Before::Never,
        updates: Settings::default(),
    }
}

impl World {
    pub(crate) fn new(config: Config, seed: u8) -> Self {
        let start = Duration::from_secs(1000);
        let now = Now { monotonic: start, unix: Duration::from_secs(UNIX) };
        Self {
            node: Node::new(config, Pure, [seed; 32], now),
            now: start,
            node_clock_off: 0,
            weather: Weather::Clear,
            terms: Terms::default(),
            memory_bytes: 1 << 30,
            signer: [4; 32],
            measures: true,
            reply: |_| None,
            download: Some(Ok("/state/downloads/release.tgz".into())),
            archive: Err("nothing".into()),
            install: Some(Ok(())),
            updates: Vec::new(),
            events: Vec::new(),
            server_events: Vec::new(),
            files: BTreeMap::new(),
            fetched: Vec::new(),
            cancelled: Vec::new(),
            responses: BTreeMap::new(),
            closes: Vec::new(),
            wanted: Vec::new(),
            takes: true,
            jobs: None,
            untaken: 0,
            unread: None,
            opened: Vec::new(),
            frames_to_node: Vec::new(),
            finish: None,
            server: Server::None,
            latency: Duration::from_millis(20),
            queue: BTreeMap::new(),
            sequence: 0,
            rng: Drbg::new([seed ^ 0xff; 32]),
            steps: 0,
        }
    }

    pub(crate) fn elapsed(&self) -> Duration {
        self.now - Duration::from_secs(1000)
    }

    /// Sets the node going and runs until it has finished.
    pub(crate) fn run_to_end(&mut self) -> Finish {
        self.feed(Input::Tick);
        while self.finish.is_none() {
            assert!(self.step(Duration::MAX), "nothing will ever happen again");
        }
        self.finish.clone().unwrap()
    }

    /// Sets the node going, or lets it go on, for so long.
    pub(crate) fn run_for(&mut self, time: Duration) {
        let until = self.now + time;
        self.feed(Input::Tick);
        while self.step(until) {}
        self.now = until;
        self.feed(Input::Tick);
    }

    pub(crate) fn is_connected(&self) -> bool {
        let last = self.events.iter().rev().find_map(|(_, event)| match event {
            Event::Connected { .. } => Some(true),
            Event::Disconnected { .. } => Some(false),
            _ => None,
        });
        last.unwrap_or(false)
    }

    pub(crate) fn count(&self, wanted: fn(&Event) -> bool) -> usize {
        self.events.iter().filter(|(_, event)| wanted(event)).count()
    }

    pub(crate) fn node_now(&self) -> Now {
        let off = Duration::from_secs(self.node_clock_off.unsigned_abs());
        let unix = self.server_now().unix;
        let unix = if self.node_clock_off < 0 { unix.saturating_sub(off) } else { unix + off };
        Now { monotonic: self.now, unix }
    }

    fn server_now(&self) -> Now {
        Now { monotonic: self.now, unix: Duration::from_secs(UNIX) + self.elapsed() }
    }

    /// What the server does of its own accord.
    pub(crate) fn server(&mut self, input: orchestrator::Input) {
        let now = self.server_now();
        if let Server::Up(_, server) = &mut self.server {
            server.handle_input(now, input);
        }
        self.drain_server();
    }

    /// The server process dies, or the network between cuts the connection.
    pub(crate) fn cut(&mut self) {
        if let Server::Opened(link) | Server::Up(link, _) = &self.server {
            let end = LinkEnd::Lost { detail: "connection reset".into() };
            let input = Input::LinkEnded { link: *link, end };
            self.server = Server::None;
            self.deliver(Delivery::ToNode(input));
        }
    }

    /// Gives the node bytes as if the server had sent them.
    pub(crate) fn inject(&mut self, data: Vec<u8>) {
        if let Server::Opened(link) | Server::Up(link, _) = &self.server {
            let input = Input::LinkBinary { link: *link, data };
            self.deliver(Delivery::ToNode(input));
        }
    }

    pub(crate) fn local(&mut self, id: u64, method: &str, target: &str, host: &str, body: &str) {
        let headers = vec![("host".to_string(), host.to_string())];
        let request = LocalRequest {
            method: method.into(),
            target: target.into(),
            headers,
            body: body.as_bytes().to_vec(),
        };
        self.feed(Input::Local { id: LocalId(id), request });
    }

    fn deliver(&mut self, delivery: Delivery) {
        self.queue.insert((self.now + self.latency, self.sequence), delivery);
        self.sequence += 1;
    }

    /// The next thing that happens, if it does before `until`.
    fn step(&mut self, until: Duration) -> bool {
        self.steps += 1;
        assert!(self.steps < MAX_STEPS, "the run does not end");
        let wait = match self.node.poll_output() {
            Output::Wait(deadline) => deadline.map(|deadline| deadline.at),
            other => panic!("undrained: {other:?}"),
        };
        let server_wait = match &mut self.server {
            Server::Up(_, server) => match server.poll_output() {
                orchestrator::Output::Wait(deadline) => deadline.map(|deadline| deadline.at),
                other => panic!("undrained: {other:?}"),
            },
            Server::None | Server::Opened(_) => None,
        };
        let queued = self.queue.first_key_value().map(|((at, _), _)| *at);
        let Some(next) = [wait, server_wait, queued].into_iter().flatten().min().filter(|at| *at <= until)
        else {
            return false;
        };
        self.now = self.now.max(next);
        if queued == Some(next) {
            let (_, delivery) = self.queue.pop_first().unwrap();
            match delivery {
                Delivery::ToNode(input) => match &mut self.unread {
                    Some(unread) if matches!(input, Input::LinkBinary { .. }) => unread.push(input),
                    _ => self.feed(input),
                },
                Delivery::ToServer(link, data) => self.serve(link, data),
            }
        } else if server_wait == Some(next) {
            self.server(orchestrator::Input::Tick);
        } else {
            self.feed(Input::Tick);
        }
        true
    }

    /// The server gets a message of the node.
    fn serve(&mut self, link: LinkId, data: Vec<u8>) {
        let now = self.server_now();
        if self.weather == Weather::BlackHole {
            return;
        }
        match &mut self.server {
            Server::Opened(current) if *current == link => {
                let signer = Identity::from_seed(Pure, &self.signer);
                let node_key = *Identity::from_seed(Pure, &NODE_SEED).public_key();
                let registered = |id: &str| (id == "node-1").then_some(node_key);
                match handshake::accept(&Pure, Some(&signer), &data, registered, &mut self.rng, now) {
                    Ok(accepted) => {
                        let rng = self.rng.fork();
                        let terms = self.terms.clone();
                        let server =
                            Orchestrator::new(Pure, accepted.session, accepted.caller, terms, rng, now);
                        self.server = Server::Up(link, Box::new(server));
                        self.deliver(Delivery::ToNode(Input::LinkBinary { link, data: accepted.message }));
                    }
                    Err(reject) => {
                        let data = reject.message(now);
                        self.deliver(Delivery::ToNode(Input::LinkBinary { link, data }));
                    }
                }
            }
            Server::Up(current, server) if *current == link => {
                server.handle_input(now, orchestrator::Input::Binary(data));
                self.drain_server();
            }
            Server::None | Server::Opened(_) | Server::Up(..) => {}
        }
    }

    fn drain_server(&mut self) {
        loop {
            let Server::Up(link, server) = &mut self.server else { return };
            let link = *link;
            match server.poll_output() {
                orchestrator::Output::Wait(_) => return,
                orchestrator::Output::Send(data) => {
                    if self.weather != Weather::BlackHole {
                        self.frames_to_node.push(data.clone());
                        self.deliver(Delivery::ToNode(Input::LinkBinary { link, data }));
                    }
                }
                orchestrator::Output::Close { code, reason } => {
                    self.server = Server::None;
                    let end = LinkEnd::Closed { code, reason };
                    self.deliver(Delivery::ToNode(Input::LinkEnded { link, end }));
                }
                orchestrator::Output::Event(event) => self.server_events.push((self.now, event)),
            }
        }
    }

    pub(crate) fn feed(&mut self, input: Input) {
        self.node.handle_input(self.node_now(), input);
        self.drain();
    }

    /// Runs one of the jobs that were kept.
    pub(crate) fn run_job(&mut self, at: usize) {
        let job = self.jobs.as_mut().unwrap().remove(at);
        self.node.handle_computed(self.node_now(), job.run());
        self.drain();
    }

    fn drain(&mut self) {
        loop {
            match self.node.poll_output() {
                Output::Compute { job } => {
                    let now = self.node_now();
                    match &mut self.jobs {
                        Some(jobs) => jobs.push(self.node.take_job(job).unwrap()),
                        None => self.node.compute(now, job),
                    }
                }
                Output::Wait(deadline) => {
                    if let Some(deadline) = deadline {
                        assert!(deadline.at > self.now, "a busy loop: {deadline:?} at {:?}", self.now);
                    }
                    return;
                }
                Output::OpenLink { link, .. } => {
                    self.opened.push(self.now);
                    self.unread = None;
                    let input = match self.weather {
                        Weather::Clear => {
                            self.server = Server::Opened(link);
                            Input::LinkOpened { link }
                        }
                        Weather::BlackHole => continue,
                        Weather::Refusing => {
                            let detail = "connection refused".into();
                            Input::LinkEnded {
                                link,
                                end: LinkEnd::Unopened { stage: OpenStage::Connect, detail },
                            }
                        }
                    };
                    self.deliver(Delivery::ToNode(input));
                }
                Output::Send { link, data } => {
                    if self.takes {
                        self.deliver(Delivery::ToNode(Input::LinkSent { link, bytes: data.len() }));
                    } else {
                        self.untaken += data.len();
                    }
                    if self.weather != Weather::BlackHole {
                        self.deliver(Delivery::ToServer(link, data));
                    }
                }
                Output::CloseLink { code, reason, .. } => {
                    self.closes.push((code, reason));
                    self.server = Server::None;
                }
                Output::DropLink { .. } => self.server = Server::None,
                Output::Perform { id, effect } => {
                    if let Some(result) = self.perform(id, effect) {
                        self.deliver(Delivery::ToNode(Input::Done { effect: id, result }));
                    }
                }
                Output::Cancel { id } => self.cancelled.push(id),
                Output::Respond { id, response } => {
                    assert!(self.responses.insert(id, response).is_none(), "one answer a request");
                }
                Output::HoldLink { link, hold } => {
                    let unread = if hold { self.unread.replace(Vec::new()) } else { self.unread.take() };
                    for input in unread.into_iter().flatten() {
                        self.deliver(Delivery::ToNode(input));
                    }
                    self.wanted.push(Output::HoldLink { link, hold });
                }
                wanted @ (Output::OpenSocket { .. }
                | Output::SendSocket { .. }
                | Output::ReadSocket { .. }
                | Output::CloseSocket { .. }
                | Output::SendLocal { .. }
                | Output::CloseLocal { .. }) => self.wanted.push(wanted),
                Output::Event(event) => self.events.push((self.now, event)),
                Output::Finish(finish) => {
                    assert!(self.finish.is_none());
                    self.finish = Some(finish);
                }
            }
        }
    }

    fn perform(&mut self, id: EffectId, effect: Effect) -> Option<EffectResult> {
        Some(match effect {
            Effect::Download(_) => {
                self.updates.push((id, effect));
                EffectResult::Downloaded(self.download.clone()?)
            }
            Effect::Inspect { .. } => {
                self.updates.push((id, effect));
                EffectResult::Inspected(self.archive.clone())
            }
            Effect::Install(_) | Effect::ConfirmRelease | Effect::AcknowledgeRollback { .. } => {
                self.updates.push((id, effect));
                EffectResult::Installed(self.install.clone()?)
            }
            Effect::Fetch(fetch) => {
                let response = (self.reply)(&fetch);
                self.fetched.push(fetch);
                EffectResult::Fetched(Ok(response?))
            }
            Effect::Measure(_) if !self.measures => return None,
            Effect::Measure(measurement) => {
                EffectResult::Measured(Ok(report(measurement, self.memory_bytes)))
            }
            Effect::Write { file, data } => {
                self.files.insert(file, data);
                EffectResult::Written(Ok(()))
            }
            Effect::Remove { file } => {
                self.files.remove(&file);
                EffectResult::Written(Ok(()))
            }
        })
    }
}

fn bench(name: &str) -> BenchResult {
    let ns = 1000.0;
    BenchResult {
        name: name.into(),
        reliable: true,
        samples: 100,
        total_ops: 1000,
        duration_ms: 1000,
        ops_per_second: 1e6,
        ns_per_op: NsPerOp { min: ns, median: ns, mean: ns, p95: ns, p99: ns, stddev: 1.0 },
        cv: 0.001,
    }
}

fn report(measurement: Measurement, memory_bytes: u64) -> Report {
    match measurement {
        Measurement::System => Report::System(System {
            platform: "linux".into(),
            arch: "x64".into(),
            cpus: 2,
            total_memory_bytes: memory_bytes,
            free_memory_bytes: memory_bytes / 2,
            uptime_seconds: 60,
            rust_version: "0.1.0".into(),
        }),
        Measurement::Cpu => Report::Cpu(Cpu {
            algorithm: "sha256".into(),
            results: Vec::new(),
            bytes_per_second: 1e9,
            reliable: true,
        }),
        Measurement::Crypto => Report::Crypto(CryptoReport {
            algorithm: "chacha20-poly1305".into(),
            results: Vec::new(),
            bytes_per_second: 1e9,
            total_bytes_per_second: 1e9,
            reliable: true,
        }),
        Measurement::Memory => Report::Memory(Memory {
            copy: Vec::new(),
            bandwidth_gbps: 10.0,
            bytes_per_second: 1e10,
            reliable: true,
        }),
        Measurement::EventLoop => Report::EventLoop(bench("event-loop")),
        Measurement::MemoryPressure { test_size_mb, rounds } => Report::MemoryPressure(MemoryPressure {
            success: true,
            requested_mb: test_size_mb,
            rounds,
            allocated_mb: test_size_mb,
            duration_ms: 100,
            rss_before_mb: 3.0,
            rss_peak_mb: 131.0,
            rss_after_mb: 3.0,
            rss_retained_mb: 0.0,
        }),
        Measurement::Composite { .. } => {
            Report::Composite(Composite { results: Vec::new(), requests_per_second: 4000.0, reliable: true })
        }
        Measurement::Sustained { duration_ms, window_ms } => Report::Sustained(Sustained {
            response_size_bytes: 16 * 1024,
            duration_ms: duration_ms.into(),
            window_ms: window_ms.into(),
            windows: Vec::new(),
            total_requests: 100_000,
            node_rps_mean: 4000.0,
            node_rps_early: 4000.0,
            node_rps_late: 4000.0,
            node_rps_min_window: 3900.0,
            node_rps_max_window: 4100.0,
            throttle_ratio: 1.0,
            cpu_time_ratio: 0.99,
            steady: true,
        }),
        Measurement::Multicore { .. } => Report::Multicore(multicore::report(2, &[(1, 1e8), (2, 2e8)])),
    }
}
