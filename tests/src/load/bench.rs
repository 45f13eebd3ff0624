//! A node that has just started, a network for it, and what they are made to do.

use std::collections::BTreeMap;
use std::fs;
use std::future::Future;
use std::io;
use std::net::TcpStream;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use consensus_core::crypto::pem;
use consensus_core::crypto::pure::Pure;
use consensus_core::peer::client::{Answer, Request};
use consensus_core::peer::streams::StreamTarget;
use consensus_core::tunnel::Mode;
use consensus_core::wire::base64;
use consensus_core::wire::message::{BodyEncoding, ProxyRequest};
use smol::{LocalExecutor, channel};

use super::Kind;
use super::meter;
use super::upstream::Upstream;
use crate::data_plane::{Carrier, Connection};
use crate::memory::{self, Memory};
use crate::network::{NODE_ID, Network};
use crate::options::Options;
use crate::orchestrator::{Orchestrator, Record};
use crate::primitives::{Cost, Operations, Provider};
use crate::process::NodeProcess;

/// Longer than any start.
const TIMEOUT: Duration = Duration::from_secs(30);

/// What is done once, and what is kept from then on, is not what a request costs.
const WARM_UP: Duration = Duration::from_secs(1);

/// What one measurement found.
pub(super) struct Measured {
    /// How long each request took, sorted.
    pub(super) latencies: Vec<Duration>,
    pub(super) took: Duration,
    pub(super) node_cpu: Duration,
    pub(super) memory: Memory,
    /// What the cryptography of one request costs alone, before and after.
    pub(super) crypto: [Cost; 2],
}

/// The bench.
pub(super) struct Bench {
    network: Network,
    upstream: Upstream,
    node: NodeProcess,
    node_key: [u8; 32],
    body: Vec<u8>,
    body_base64: String,
    request: Request,
    dedupe_key: String,
    numbers: AtomicU64,
}

impl Bench {
    /// Starts a node with these options beside the usual ones, and an upstream of bodies of that size that answers so
    /// many requests together.
    pub(super) fn start(program: &Path, options: &[&str], size: usize, together: usize) -> io::Result<Self> {
        let network = Network::with(Options { quiet: true, ..Options::default() })?;
        network.register_node()?;
        let node_key = fs::read_to_string(network.home.state_dir().join("keys/node.pub"))?;
        let node_key = pem::decode_public(&node_key).map_err(io::Error::other)?;
        let listen = network.local_api.to_string();
        let usual = ["run", "--listen", &listen, "--allow-private-targets"];
        let mut command = network.node(program, usual.iter().chain(options));
        command.env("CONSENSUS_LOG_LEVEL", "warn");
        let node = NodeProcess::spawn(command)?;
        let ready = network.orchestrator.journal().wait(0, TIMEOUT, |record| {
            matches!(record, Record::Ready { mode: Mode::Control, .. }).then_some(())
        });
        if ready.is_none() {
            let said: Vec<String> = node.lines(0).into_iter().map(|line| line.text).collect();
            return Err(io::Error::other(format!("no session; the node said:\n{}", said.join("\n"))));
        }
        // The tunnel may be up before the local interface is.
        let end = Instant::now() + TIMEOUT;
        while let Err(error) = TcpStream::connect(network.local_api) {
            if Instant::now() > end {
                return Err(error);
            }
            thread::sleep(Duration::from_millis(5));
        }
        let upstream = Upstream::start(size, together)?;
        let request = Request { target_url: upstream.url(), ..Request::default() };
        let dedupe_key = request.dedupe_key(&Pure).ok_or_else(|| io::Error::other("no URL"))?;
        let body = crate::upstream::bytes(size);
        Ok(Self {
            network,
            upstream,
            node,
            node_key,
            body_base64: base64::encode(&body),
            body,
            request,
            dedupe_key,
            numbers: AtomicU64::new(0),
        })
    }

    pub(super) fn orchestrator(&self) -> &Orchestrator {
        &self.network.orchestrator
    }

    pub(super) fn node_cpu(&self) -> io::Result<Duration> {
        meter::process_cpu(self.node.pid())
    }

    pub(super) fn node_memory(&self) -> io::Result<Memory> {
        memory::of(self.node.pid())
    }

    /// Makes requests for that long, so many at once, each followed by the next.
    pub(super) fn measure(&self, kind: Kind, at_once: usize, window: Duration) -> io::Result<Measured> {
        let operations = match kind {
            Kind::Proxy => Operations::of_proxy_request(&self.proxy_request(), &self.upstream.response()),
            Kind::DataPlane | Kind::Connect => Operations::of_data_plane_request(
                &self.request.target_url,
                &self.upstream.response(),
                kind == Kind::DataPlane,
            )?,
        };
        self.drive(kind, at_once, window.min(WARM_UP))?;
        // Before and after, because what else the machine does changes from one second to the next.
        let crypto_before = operations.cost();
        let before = self.node_cpu()?;
        let begun = Instant::now();
        let mut latencies = self.drive(kind, at_once, window)?;
        let took = begun.elapsed();
        let node_cpu = self.node_cpu()?.saturating_sub(before);
        latencies.sort_unstable();
        let memory = self.node_memory()?;
        Ok(Measured { latencies, took, node_cpu, memory, crypto: [crypto_before, operations.cost()] })
    }

    /// Requests a second, so many at once, made by so many threads.
    pub(super) fn measure_rate(
        &self,
        kind: Kind,
        at_once: usize,
        threads: usize,
        window: Duration,
    ) -> io::Result<f64> {
        let drive = |window| -> io::Result<usize> {
            thread::scope(|scope| {
                let drivers: Vec<_> = (0..threads)
                    .map(|_| scope.spawn(|| self.drive(kind, at_once / threads, window)))
                    .collect();
                let counts = drivers.into_iter().map(|driver| match driver.join() {
                    Ok(latencies) => Ok(latencies?.len()),
                    Err(panic) => std::panic::resume_unwind(panic),
                });
                counts.sum()
            })
        };
        drive(window.min(WARM_UP))?;
        let begun = Instant::now();
        let requests = drive(window)?;
        Ok(requests as f64 / begun.elapsed().as_secs_f64())
    }

    /// How long each request took.
    fn drive(&self, kind: Kind, at_once: usize, window: Duration) -> io::Result<Vec<Duration>> {
        let end = Instant::now() + window;
        let one_after_the_other = async || {
            let mut latencies = Vec::new();
            loop {
                let begun = Instant::now();
                if begun >= end {
                    return Ok(latencies);
                }
                self.once(kind).await?;
                latencies.push(begun.elapsed());
            }
        };
        Ok(smol::block_on(all((0..at_once).map(|_| one_after_the_other())))?.concat())
    }

    /// One request, its answer checked to the last byte.
    pub(super) async fn once(&self, kind: Kind) -> io::Result<()> {
        match kind {
            Kind::Proxy => self.proxy().await,
            Kind::DataPlane => {
                let stream = self.orchestrator().open(NODE_ID, StreamTarget::DataPlane);
                let stream = stream.ok_or_else(|| io::Error::other("the node has no session any more"))?;
                self.paid(Carrier::Stream(stream)).await
            }
            Kind::Connect => {
                let url = format!("ws://{}/connect", self.network.local_api);
                self.paid(Carrier::direct(&url).await.map_err(io::Error::other)?).await
            }
        }
    }

    fn proxy_request(&self) -> ProxyRequest {
        let number = self.numbers.fetch_add(1, Ordering::Relaxed);
        ProxyRequest {
            id: format!("00000000-0000-4000-8000-{number:012}"),
            target_url: self.upstream.url(),
            method: Some(String::from("GET")),
            headers: Some(BTreeMap::from([(String::from("accept"), String::from("*/*"))])),
            body: None,
            body_encoding: BodyEncoding::Base64,
        }
    }

    async fn proxy(&self) -> io::Result<()> {
        let fetched = self.orchestrator().fetch(NODE_ID, self.proxy_request());
        let fetched = fetched.ok_or_else(|| io::Error::other("the node has no session any more"))?;
        match fetched.recv().await.map_err(io::Error::other)? {
            Ok(response) if response.status == 200 && response.body == self.body_base64 => Ok(()),
            Ok(response) => {
                let length = response.body.len();
                Err(io::Error::other(format!("status {}, {length} characters of body", response.status)))
            }
            Err(failure) => Err(io::Error::other(failure.to_string())),
        }
    }

    async fn paid(&self, carrier: Carrier) -> io::Result<()> {
        let orchestrator = self.orchestrator();
        let token = orchestrator.ticket(&orchestrator.claims(NODE_ID, self.dedupe_key.clone()));
        let connection = Connection::open(Provider::default(), carrier, NODE_ID, &self.node_key).await;
        let exchange = match connection {
            Ok(connection) => connection.request(&token, &self.request).await,
            Err(failure) => Err(failure),
        };
        match exchange.map_err(io::Error::other)?.answer {
            Answer::Response { status: 200, body, .. } if body == self.body => Ok(()),
            Answer::Response { status, body, .. } => {
                Err(io::Error::other(format!("status {status}, {} bytes of body", body.len())))
            }
            Answer::Error { code, message } => Err(io::Error::other(format!("{code}: {message}"))),
        }
    }
}

/// Does them all at once in this thread; ends with the last, or with the first that fails.
pub(super) async fn all<T>(
    works: impl IntoIterator<Item = impl Future<Output = io::Result<T>>>,
) -> io::Result<Vec<T>> {
    let (done, outcomes) = channel::unbounded();
    let executor = LocalExecutor::new();
    for work in works {
        let done = done.clone();
        let work = async move {
            // Fails only when one before has failed.
            let _ = done.try_send(work.await);
        };
        executor.spawn(work).detach();
    }
    drop(done);
    let collect = async {
        let mut all = Vec::new();
        while let Ok(outcome) = outcomes.recv().await {
            all.push(outcome?);
        }
        Ok(all)
    };
    executor.run(collect).await
}
