//! The composite workload (protocol.md section 6): the node's own work for one request of the data plane, stage by
//! stage, through the functions that serve clients; the client's and the issuer's work stands between, and the
//! upstream is a response in memory.

use alloc::boxed::Box;
use alloc::collections::BTreeMap;
use alloc::format;
use alloc::string::{String, ToString as _};
use alloc::vec::Vec;
use core::mem;
use core::time::Duration;

use super::Step;
use super::kernels::{random, size_name};
use super::report::{self, CompositeSize, Report, StageTime, Stages};
use super::runner::{Plan, QUICK, Sampler, THROUGHPUT};
use crate::crypto::identity::Identity;
use crate::crypto::{Crypto, Drbg};
use crate::data_plane::replay::{Before, Spent};
use crate::data_plane::responder::{self, Opened, Responder};
use crate::data_plane::ticket;
use crate::io::{Effect, EffectResult, Input, LocalId, LocalRequest, Output, Response};
use crate::limits::Limits;
use crate::node::{Config, Node};
use crate::peer::client::{Answer, Connecting, Request};
use crate::release::manifest::Manifest;
use crate::state::{Jwk, Registration};
use crate::time::Now;
use crate::tunnel::Mode;
use crate::tunnel::session::Session;
use crate::wire::frame::FrameType;

/// Response sizes.
const SIZES: [usize; 3] = [1024, 16 * 1024, 256 * 1024];

/// Their headline, and the size of the sustained measurement.
pub(super) const HEADLINE: usize = 16 * 1024;

/// The time it always is here: nothing in the work depends on which it is.
const NOW: Now = Now { monotonic: Duration::ZERO, unix: Duration::from_secs(1_790_000_000) };

/// The node that serves here.
const NODE_ID: &str = "0123456789ab";

/// Of a ticket, in seconds.
const TICKET_LIFETIME: u64 = 60;

/// A timed part of an iteration, in order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stage {
    Handshake,
    RequestOpen,
    TicketVerify,
    ResponseEncode,
    ResponseSeal,
}

const STAGES: usize = 5;

/// The client and the issuer of its tickets.
struct Client<C: Crypto> {
    crypto: C,
    rng: Drbg,
    issuer: C::SigningKey,
    node_key: [u8; 32],
    request: Request,
    /// What the request is named by.
    dedupe_key: String,
    tickets: u64,
}

impl<C: Crypto> Client<C> {
    fn start(&mut self) -> (Connecting<C>, Vec<u8>) {
        Connecting::start(self.crypto.clone(), NODE_ID, &mut self.rng, NOW)
    }

    /// The node has answered: a session, and the request sealed for it.
    fn ask(&mut self, connecting: Connecting<C>, accept: &[u8]) -> Result<(Session<C>, Vec<u8>), String> {
        let session = connecting.finish(accept, &self.node_key, self.rng.fork(), NOW);
        let mut session = session.map_err(|error| format!("the client refuses the handshake: {error}"))?;
        self.tickets += 1;
        let issued_at = NOW.unix_seconds();
        let claims = ticket::Claims {
            iss: ticket::ISSUER.into(),
            aud: NODE_ID.into(),
            sub: self.dedupe_key.as_str().into(),
            scope: ticket::SCOPE.into(),
            iat: issued_at,
            exp: issued_at + TICKET_LIFETIME,
            jti: format!("{:032x}", self.tickets).into(),
        };
        let token = ticket::issue(&self.crypto, &self.issuer, "composite", &claims);
        let frame = session.seal(FrameType::Data, self.request.encode(&token));
        Ok((session, frame))
    }

    /// Whether the node's frame is the response, byte for byte.
    fn check(mut session: Session<C>, mut frame: Vec<u8>, expected: &Response) -> Result<(), String> {
        let opened = session.open(&mut frame).map_err(|error| format!("the answer: {error}"))?;
        match Answer::parse(opened.1) {
            Some(Answer::Response { status, body, .. }) => {
                if status == expected.status && body == expected.body {
                    Ok(())
                } else {
                    Err(format!("{} bytes were sent, others came back", expected.body.len()))
                }
            }
            Some(Answer::Error { code, message }) => Err(format!("the node answers {code}: {message}")),
            None => Err("the answer cannot be read".to_string()),
        }
    }
}

/// How far an iteration has come: what its next part works on.
enum At<C: Crypto> {
    Start,
    Init(Connecting<C>, Vec<u8>),
    Accepted(Connecting<C>, Responder<C>, Vec<u8>),
    Asked(Responder<C>, Vec<u8>),
    Opened(Opened<C>),
    Paid(responder::Request<C>),
    Encoded(responder::Answer<C>),
}

/// Both ends of connections, one after the other, for a response of one size.
pub(super) struct Exchange<C: Crypto> {
    crypto: C,
    identity: Identity<C>,
    rng: Drbg,
    issuer_key: [u8; 32],
    max_body: usize,
    spent: Spent,
    response: Response,
    client: Client<C>,
    at: At<C>,
    /// What the client has of the last iteration. Freed in its own time, not in the node's.
    got: Option<(Session<C>, Vec<u8>)>,
}

impl<C: Crypto> Exchange<C> {
    /// Both ends, after a round trip through a whole node and one through the stages: what is timed is what works.
    ///
    /// # Errors
    /// The round trip fails, or does not bring the response back as it was; or there is no memory.
    pub(super) fn new(size: usize, crypto: C, mut rng: Drbg) -> Result<Self, String> {
        let body = random(size, &mut rng).ok_or_else(|| format!("no memory for {size} bytes"))?;
        let header = |(name, value): (&str, String)| (name.to_string(), value);
        let headers = [
            ("content-type", "application/octet-stream".to_string()),
            ("content-length", size.to_string()),
            ("cache-control", "no-store".to_string()),
        ];
        let headers = headers.map(header).to_vec();
        let response = Response { status: 200, reason: "OK".to_string(), headers, body };
        let seed = rng.bytes();
        let identity = Identity::from_seed(crypto.clone(), &seed);
        let issuer = crypto.signing_key(&rng.bytes());
        let issuer_key = crypto.public_key(&issuer);
        let request = Request {
            target_url: format!("https://composite.example/b/{size}"),
            headers: BTreeMap::from([("accept".to_string(), "application/octet-stream".to_string())]),
            ..Request::default()
        };
        let dedupe_key = request.dedupe_key(&crypto).ok_or("the workload's own URL is not one")?;
        let mut client = Client {
            crypto: crypto.clone(),
            rng: rng.fork(),
            issuer,
            node_key: *identity.public_key(),
            request,
            dedupe_key,
            tickets: 0,
        };
        let failed = |reason: String| format!("a request of {size} bytes does not come back: {reason}");
        let limits = Limits::default();
        let max_body = limits.max_request_body;
        let config = Config {
            mode: Some(Mode::Control),
            tunnel_url: String::new(),
            server_key: None,
            identity_seed: seed.into(),
            candidate_id: None,
            registration: Some(Registration {
                orchestrator_pubkey: Some(Jwk::of_key(issuer_key, "composite")),
                ..Registration::new(NODE_ID)
            }),
            manifest: Manifest::of_this_release("0", "0", "none"),
            limits,
            allow_private_targets: false,
            spent_before: Before::Never,
            updates: crate::update::Settings::default(),
        };
        round_trip(Node::new(config, crypto.clone(), rng.bytes(), NOW), &mut client, &response)
            .map_err(failed)?;
        let spent = Spent::new(NOW, Before::Never);
        let at = At::Start;
        let mut exchange =
            Self { crypto, identity, rng, issuer_key, max_body, spent, response, client, at, got: None };
        while !exchange.advance().map_err(failed)? {}
        let (session, frame) = exchange.got.take().ok_or_else(|| failed("no answer".to_string()))?;
        Client::check(session, frame, &exchange.response).map_err(failed)?;
        Ok(exchange)
    }

    /// Whose time the next part is; `None` for the client's.
    pub(super) const fn stage(&self) -> Option<Stage> {
        match self.at {
            At::Start | At::Accepted(..) => None,
            At::Init(..) => Some(Stage::Handshake),
            At::Asked(..) => Some(Stage::RequestOpen),
            At::Opened(_) => Some(Stage::TicketVerify),
            At::Paid(_) => Some(Stage::ResponseEncode),
            At::Encoded(_) => Some(Stage::ResponseSeal),
        }
    }

    /// Does the next part. Whether it was the last one of an iteration.
    ///
    /// # Errors
    /// What worked before does not any more.
    pub(super) fn advance(&mut self) -> Result<bool, String> {
        self.at = match mem::replace(&mut self.at, At::Start) {
            At::Start => {
                self.got = None;
                let (connecting, init) = self.client.start();
                At::Init(connecting, init)
            }
            At::Init(connecting, init) => {
                let crypto = self.crypto.clone();
                let accepted = responder::accept(crypto, &self.identity, NODE_ID, &init, &mut self.rng, NOW);
                let (responder, accept) =
                    accepted.map_err(|error| format!("the handshake fails: {error}"))?;
                At::Accepted(connecting, responder, accept)
            }
            At::Accepted(connecting, responder, accept) => {
                let (session, frame) = self.client.ask(connecting, &accept)?;
                self.got = Some((session, Vec::new()));
                At::Asked(responder, frame)
            }
            At::Asked(responder, mut frame) => {
                let opened = responder.open(&mut frame, self.max_body);
                At::Opened(opened.map_err(|refused| format!("the request: {}", refused.reason))?)
            }
            At::Opened(opened) => {
                let gate = responder::Gate { issuer_key: Some(&self.issuer_key), node_id: NODE_ID };
                let request = opened.verify(gate, NOW);
                let request = request.map_err(|refused| format!("the ticket: {}", refused.reason))?;
                let spent = self.spent.spend(&request.ticket, NOW);
                spent.map_err(|error| format!("the ticket cannot be spent: {error:?}"))?;
                At::Paid(request)
            }
            At::Paid(request) => At::Encoded(request.encode(&self.response)),
            At::Encoded(answer) => {
                let sealed = answer.seal();
                if let Some((_, frame)) = &mut self.got {
                    *frame = sealed;
                }
                return Ok(true);
            }
        };
        Ok(false)
    }
}

/// One request through a whole node at its `/connect`, the upstream's answer given to it.
fn round_trip<C: Crypto>(
    mut node: Node<C>,
    client: &mut Client<C>,
    response: &Response,
) -> Result<(), String> {
    let id = LocalId(1);
    let headers = [
        ("host", "127.0.0.1"),
        ("connection", "upgrade"),
        ("upgrade", "websocket"),
        ("sec-websocket-version", "13"),
        ("sec-websocket-key", "AAAAAAAAAAAAAAAAAAAAAA=="),
    ];
    let request = LocalRequest {
        method: "GET".to_string(),
        target: "/connect".to_string(),
        headers: headers.map(|(name, value)| (name.to_string(), value.to_string())).to_vec(),
        body: Vec::new(),
    };
    node.handle_input(NOW, Input::Local { id, request });
    let (connecting, init) = client.start();
    node.handle_input(NOW, Input::LocalMessage { id, data: init });
    let accept = sent(&mut node).ok_or("the node does not answer the handshake")?;
    let (session, frame) = client.ask(connecting, &accept)?;
    node.handle_input(NOW, Input::LocalMessage { id, data: frame });
    let mut fetch = None;
    loop {
        match node.poll_output() {
            Output::Wait(_) => break,
            Output::Compute { job } => node.compute(NOW, job),
            Output::Perform { id, effect: Effect::Fetch(request) } => fetch = Some((id, request)),
            // The node is asked for nothing else that matters here.
            _ => {}
        }
    }
    let (effect, request) = fetch.ok_or("the node does not fetch")?;
    if request.target.url() != client.request.target_url {
        return Err("the node fetches something else".to_string());
    }
    let result = EffectResult::Fetched(Ok(response.clone()));
    node.handle_input(NOW, Input::Done { effect, result });
    let frame = sent(&mut node).ok_or("the node does not answer the request")?;
    Client::check(session, frame, response)
}

/// What the node sends its client, of all that it wants done now.
fn sent<C: Crypto>(node: &mut Node<C>) -> Option<Vec<u8>> {
    let mut sent = None;
    loop {
        match node.poll_output() {
            Output::Wait(_) => return sent,
            Output::Compute { job } => node.compute(NOW, job),
            Output::SendLocal { data, .. } => sent = Some(data),
            // A tunnel that is never opened, a file that is never written.
            _ => {}
        }
    }
}

/// One size under way.
struct Current<C: Crypto> {
    exchange: Exchange<C>,
    sampler: Sampler,
    /// Of the batch under way: iterations still to do, and the time of those done.
    left: u64,
    batch: Duration,
    /// Of the batch under way, and of all batches that count.
    stages: [Duration; STAGES],
    all_stages: [Duration; STAGES],
    /// Whether the last run ended an iteration, and which stage it was.
    ran: (bool, Option<Stage>),
}

impl<C: Crypto> Current<C> {
    fn new(exchange: Exchange<C>, plan: Plan) -> Self {
        let sampler = Sampler::new(plan);
        let left = sampler.batch();
        let stages = [Duration::ZERO; STAGES];
        let ran = (false, None);
        Self { exchange, sampler, left, batch: Duration::ZERO, stages, all_stages: stages, ran }
    }

    fn result(&self) -> CompositeSize {
        let size = self.exchange.response.body.len();
        let exchange = self.sampler.result(format!("composite-request-{}", size_name(size)));
        let count = exchange.total_ops as f64;
        let mean = |time: Duration| if count > 0.0 { time.as_nanos() as f64 / count } else { 0.0 };
        let node_ns_per_request: f64 = self.all_stages.iter().map(|time| mean(*time)).sum();
        let stage = |stage: Stage| {
            let mean_ns = mean(self.all_stages[stage as usize]);
            StageTime { mean_ns, share: ratio(mean_ns, node_ns_per_request) }
        };
        CompositeSize {
            response_size_bytes: size as u64,
            node_requests_per_second: ratio(1e9, node_ns_per_request),
            node_ns_per_request,
            stages: Stages {
                handshake: stage(Stage::Handshake),
                request_open: stage(Stage::RequestOpen),
                ticket_verify: stage(Stage::TicketVerify),
                response_encode: stage(Stage::ResponseEncode),
                response_seal: stage(Stage::ResponseSeal),
            },
            reliable: exchange.reliable,
            exchange,
        }
    }
}

pub(super) fn ratio(a: f64, b: f64) -> f64 {
    if b > 0.0 { a / b } else { 0.0 }
}

/// `benchmark_composite`.
pub(super) struct Composite<C: Crypto> {
    plan: Plan,
    /// Those still to come, the last one first.
    rest: Vec<Exchange<C>>,
    current: Option<Current<C>>,
    results: Vec<CompositeSize>,
}

impl<C: Crypto> Composite<C> {
    /// # Errors
    /// As [`Exchange::new`].
    pub(super) fn new(quick: bool, crypto: C, mut rng: Drbg) -> Result<Self, String> {
        let exchange = |size: &usize| Exchange::new(*size, crypto.clone(), rng.fork());
        let rest = SIZES.iter().rev().map(exchange).collect::<Result<Vec<_>, _>>()?;
        let plan = if quick { QUICK } else { THROUGHPUT };
        let mut composite = Self { plan, rest, current: None, results: Vec::new() };
        composite.begin_next();
        Ok(composite)
    }

    fn begin_next(&mut self) {
        self.current = self.rest.pop().map(|exchange| Current::new(exchange, self.plan));
    }

    pub(super) fn step(&self) -> Step {
        match &self.current {
            Some(_) => Step::Run,
            None => Step::Done(Box::new(Report::Composite(self.report()))),
        }
    }

    pub(super) fn run(&mut self) -> Result<(), String> {
        if let Some(current) = &mut self.current {
            let stage = current.exchange.stage();
            current.ran = (current.exchange.advance()?, stage);
        }
        Ok(())
    }

    pub(super) fn timed(&mut self, elapsed: Duration) {
        let Some(current) = &mut self.current else { return };
        let (was_last, stage) = mem::take(&mut current.ran);
        current.batch = current.batch.saturating_add(elapsed);
        if let Some(stage) = stage {
            let time = &mut current.stages[stage as usize];
            *time = time.saturating_add(elapsed);
        }
        if !was_last {
            return;
        }
        current.left = current.left.saturating_sub(1);
        if current.left > 0 {
            return;
        }
        // The batch is whole. That it counts is known before the sampler hears of it, as the sampler itself does.
        let counts = current.sampler.is_measuring();
        current.sampler.timed(mem::take(&mut current.batch));
        for (all, batch) in current.all_stages.iter_mut().zip(mem::take(&mut current.stages)) {
            if counts {
                *all = all.saturating_add(batch);
            }
        }
        current.left = current.sampler.batch();
        if current.sampler.is_done() {
            self.results.push(current.result());
            self.begin_next();
        }
    }

    pub(super) fn progress(&self) -> f32 {
        let under_way = self.current.as_ref().map_or(0.0, |current| current.sampler.progress());
        ((self.results.len() as f32 + under_way) / SIZES.len() as f32).clamp(0.0, 1.0)
    }

    fn report(&self) -> report::Composite {
        let headline = self.results.iter().find(|result| result.response_size_bytes == HEADLINE as u64);
        report::Composite {
            requests_per_second: headline.map_or(0.0, |result| result.node_requests_per_second),
            reliable: !self.results.is_empty() && self.results.iter().all(|result| result.reliable),
            results: self.results.clone(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::crypto::pure::Pure;
    use crate::crypto::{BadPoint, Nonce, Point, Tag};
    use zeroize::Zeroizing;

    const fn milliseconds(stage: Option<Stage>) -> u64 {
        match stage {
            None => 7,
            Some(Stage::Handshake) => 8,
            Some(Stage::RequestOpen) => 1,
            Some(Stage::TicketVerify) => 4,
            Some(Stage::ResponseEncode) => 2,
            Some(Stage::ResponseSeal) => 5,
        }
    }

    #[test]
    fn the_nodes_time_is_that_of_its_stages_and_the_exchange_has_the_clients_too() {
        let mut job = Composite::new(true, Pure, Drbg::new([2; 32])).unwrap();
        let mut last = job.progress();
        let report = loop {
            let Some(current) = &job.current else { break job.report() };
            let elapsed = Duration::from_millis(milliseconds(current.exchange.stage()));
            job.run().unwrap();
            job.timed(elapsed);
            assert!(job.progress() >= last);
            last = job.progress();
        };
        assert_eq!(
            report.results.iter().map(|r| r.response_size_bytes).collect::<Vec<_>>(),
            [1024, 16384, 262_144]
        );
        for result in &report.results {
            let exact = |a: f64, b: f64| (a / b - 1.0).abs() < 1e-9;
            assert!(exact(result.exchange.ns_per_op.mean, 34e6), "{result:?}");
            assert!(exact(result.node_ns_per_request, 20e6) && exact(result.node_requests_per_second, 50.0));
            let stages = result.stages;
            assert!(exact(stages.handshake.mean_ns, 8e6) && exact(stages.handshake.share, 0.4));
            assert!(exact(stages.request_open.mean_ns, 1e6) && exact(stages.request_open.share, 0.05));
            assert!(exact(stages.ticket_verify.mean_ns, 4e6) && exact(stages.ticket_verify.share, 0.2));
            assert!(exact(stages.response_encode.mean_ns, 2e6) && exact(stages.response_encode.share, 0.1));
            assert!(exact(stages.response_seal.mean_ns, 5e6) && exact(stages.response_seal.share, 0.25));
        }
        assert!(report.reliable && report.requests_per_second.to_bits() == 50_f64.to_bits(), "{report:?}");
    }

    /// A provider that does all as it should, but damages what it seals when it is large: as only a response is.
    #[derive(Clone)]
    struct Damaging;

    impl Crypto for Damaging {
        type EphemeralSecret = <Pure as Crypto>::EphemeralSecret;
        type SigningKey = <Pure as Crypto>::SigningKey;
        type AeadKey = <Pure as Crypto>::AeadKey;

        fn generate_ephemeral(&self, rng: &mut Drbg) -> (Self::EphemeralSecret, Point) {
            Pure.generate_ephemeral(rng)
        }
        fn agree(
            &self,
            secret: Self::EphemeralSecret,
            peer: &Point,
        ) -> Result<Zeroizing<[u8; 32]>, BadPoint> {
            Pure.agree(secret, peer)
        }
        fn signing_key(&self, seed: &[u8; 32]) -> Self::SigningKey {
            Pure.signing_key(seed)
        }
        fn public_key(&self, key: &Self::SigningKey) -> [u8; 32] {
            Pure.public_key(key)
        }
        fn sign(&self, key: &Self::SigningKey, message: &[u8]) -> [u8; 64] {
            Pure.sign(key, message)
        }
        fn verify(&self, public_key: &[u8; 32], message: &[u8], signature: &[u8; 64]) -> bool {
            Pure.verify(public_key, message, signature)
        }
        fn aead_key(&self, key: &[u8; 32]) -> Self::AeadKey {
            Pure.aead_key(key)
        }
        fn seal(&self, key: &Self::AeadKey, nonce: &Nonce, aad: &[u8], in_out: &mut [u8]) -> Tag {
            // A letter of the body becomes another one.
            let body = in_out.len().checked_sub(64).filter(|_| in_out.len() > 10_000);
            if let Some(letter) = body.and_then(|at| in_out.get_mut(at)) {
                *letter = if *letter == b'A' { b'B' } else { b'A' };
            }
            Pure.seal(key, nonce, aad, in_out)
        }
        fn open(&self, key: &Self::AeadKey, nonce: &Nonce, aad: &[u8], in_out: &mut [u8], tag: &Tag) -> bool {
            Pure.open(key, nonce, aad, in_out, tag)
        }
        fn sha256(&self, parts: &[&[u8]]) -> [u8; 32] {
            Pure.sha256(parts)
        }
        fn hkdf_sha256(&self, salt: &[u8], ikm: &[u8], info: &[u8], out: &mut [u8]) {
            Pure.hkdf_sha256(salt, ikm, info, out);
        }
    }

    #[test]
    fn a_response_that_comes_back_changed_is_an_error_before_anything_is_timed() {
        assert!(Exchange::new(1024, Damaging, Drbg::new([2; 32])).is_ok());
        for measurement in [
            crate::io::Measurement::Composite { quick: true },
            crate::io::Measurement::Sustained { duration_ms: 1000, window_ms: 100 },
        ] {
            let job = super::super::Job::new(measurement, Damaging, Drbg::new([2; 32])).unwrap();
            let Step::Failed(reason) = job.step() else { panic!("{:?}", job.step()) };
            assert!(
                reason.contains("does not come back: ") && reason.contains("bytes were sent"),
                "{reason}"
            );
        }
    }
}
