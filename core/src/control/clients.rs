//! Clients of the data plane (protocol.md section 10): each a connection for one request, over a stream of the tunnel
//! or over a WebSocket at the local API's `/connect`. The steps of one connection are
//! [`responder`](crate::data_plane::responder)'s; here is which connections there are and what they may.

use alloc::boxed::Box;
use alloc::collections::{BTreeMap, BTreeSet};
use alloc::string::{String, ToString as _};
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::mem;
use core::time::Duration;

use super::fetching::{Asker, Wanted};
use super::{Context, Control, DRAINING};
use crate::crypto::Crypto;
use crate::data_plane::job::{Computed, Host, Job, Made, Work};
use crate::data_plane::replay::{SpendError, Spent};
use crate::data_plane::responder::{self, AcceptError, Refusal, Responder};
use crate::event::Event;
use crate::io::{EffectId, JobId, LocalId, Output, Response};
use crate::limits::{
    DATA_PLANE_STEP, MAX_HANDSHAKE, MAX_JOB_BYTES, MAX_JOBS, MAX_STREAM_BODY, MAX_TUNNEL_BODY,
};
use crate::text::printable;
use crate::time::{Deadline, Now, Reason};
use crate::wire::message;

/// One connection of a client. Never reused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct ClientId(u64);

/// Where a client is.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Peer {
    /// Behind the network's gateway, on a stream of the tunnel.
    Stream(String),
    /// At the local API.
    Local(LocalId),
}

/// What a connection waits for.
#[derive(Debug)]
enum Step<C: Crypto> {
    /// The client's `data_init`.
    Init,
    /// Its request.
    Request(Box<Responder<C>>),
    /// A job. The shell owes its end, so that nobody has to wait for it.
    Job(JobId),
    /// What it asked for; that has a deadline of its own.
    Fetch(EffectId),
}

#[derive(Debug)]
struct Client<C: Crypto> {
    peer: Peer,
    step: Step<C>,
    until: Option<Duration>,
}

/// Why a connection ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    /// The client has its answer, or was told why there is none.
    Complete,
    /// Whoever is there does not speak the protocol.
    Handshake,
    /// A step took too long.
    TooSlow,
    /// The node has as much to do as it may.
    Busy,
    /// The node stops.
    Stopping,
    /// The node restarts.
    Restarting,
}

impl End {
    /// As a WebSocket says it (RFC 6455, 7.4.1); a stream has the words alone.
    const fn code(self) -> u16 {
        match self {
            Self::Complete => 1000,
            Self::Handshake | Self::TooSlow => 1008,
            Self::Busy => 1013,
            Self::Stopping => 1001,
            Self::Restarting => 1012,
        }
    }

    const fn reason(self) -> &'static str {
        match self {
            Self::Complete => "data-plane complete",
            Self::Handshake => "handshake failed",
            Self::TooSlow => "the client took too long",
            Self::Busy => "this node is busy",
            Self::Stopping => "this node stops",
            Self::Restarting => DRAINING,
        }
    }
}

/// How many inits may still come: as many as the bound, and so many more each second. A request that is paid for gives
/// its own back.
#[derive(Debug)]
struct Inits {
    left: u32,
    counted: Duration,
}

impl Inits {
    fn take(&mut self, most: u32, now: Now) -> bool {
        let passed = now.monotonic.saturating_sub(self.counted);
        let more = passed.as_millis().saturating_mul(u128::from(most)) / 1000;
        if more > 0 {
            self.counted = now.monotonic;
            self.left = u32::try_from(more).unwrap_or(u32::MAX).saturating_add(self.left).min(most);
        }
        let has = self.left > 0;
        self.left = self.left.saturating_sub(1);
        has
    }

    fn give_back(&mut self, most: u32) {
        self.left = self.left.saturating_add(1).min(most);
    }
}

/// The jobs there are, and what they hold.
#[derive(Debug)]
struct Jobs<C: Crypto> {
    /// Whose each is, and of how many bytes. One whose client has gone comes back all the same.
    given: BTreeMap<JobId, (ClientId, usize)>,
    /// Those that the shell has not taken: it does, with the outputs that say so.
    untaken: BTreeMap<JobId, Job<C>>,
    next: u64,
    bytes: usize,
}

impl<C: Crypto> Jobs<C> {
    /// Whether there is room for a job of so many bytes. There is always room for one job.
    fn has_room(&self, bytes: usize) -> bool {
        self.bytes == 0 || self.bytes.saturating_add(bytes) <= MAX_JOB_BYTES
    }

    /// Whether one more handshake may wait for a core: clients that come and go leave their jobs behind.
    fn has_place(&self) -> bool {
        self.given.len() < MAX_JOBS
    }

    fn give(&mut self, client: ClientId, work: Work<C>) -> JobId {
        let (id, bytes) = (JobId(self.next), work.bytes());
        self.next += 1;
        self.bytes += bytes;
        self.given.insert(id, (client, bytes));
        self.untaken.insert(id, Job::new(id, work));
        id
    }

    fn take_back(&mut self, id: JobId) -> Option<ClientId> {
        let (client, bytes) = self.given.remove(&id)?;
        self.bytes -= bytes;
        Some(client)
    }
}

/// The connections there are.
#[derive(Debug)]
pub(super) struct Clients<C: Crypto> {
    open: BTreeMap<ClientId, Client<C>>,
    local: BTreeMap<LocalId, ClientId>,
    deadlines: BTreeSet<(Duration, ClientId)>,
    next: u64,
    jobs: Jobs<C>,
    inits: Inits,
    spent: Spent,
}

impl<C: Crypto> Clients<C> {
    pub(super) fn new(spent: Spent, max_inits: u32, now: Now) -> Self {
        Self {
            open: BTreeMap::new(),
            local: BTreeMap::new(),
            deadlines: BTreeSet::new(),
            next: 0,
            jobs: Jobs { given: BTreeMap::new(), untaken: BTreeMap::new(), next: 0, bytes: 0 },
            inits: Inits { left: max_inits, counted: now.monotonic },
            spent,
        }
    }

    pub(super) const fn spent(&self) -> &Spent {
        &self.spent
    }

    /// The network has said what time it is.
    pub(super) fn hear_time(&mut self, server_seconds: u64, now: Now) {
        self.spent.hear_time(server_seconds, now);
    }

    pub(super) fn len(&self) -> usize {
        self.open.len()
    }

    /// How many jobs have not come back, and what they hold in bytes.
    pub(super) fn jobs_held(&self) -> (usize, usize) {
        (self.jobs.given.len(), self.jobs.bytes)
    }

    /// How many connections must take a step in time.
    pub(super) fn deadlines(&self) -> usize {
        self.deadlines.len()
    }

    /// How many came by the local API.
    pub(super) fn locals(&self) -> usize {
        self.local.len()
    }

    pub(super) fn deadline(&self) -> Option<Deadline> {
        self.deadlines.first().map(|(at, _)| Deadline { at: *at, reason: Reason::DataPlaneStep })
    }

    fn insert(&mut self, peer: Peer, now: Now) -> ClientId {
        let id = ClientId(self.next);
        self.next += 1;
        if let Peer::Local(local) = &peer {
            self.local.insert(*local, id);
        }
        self.open.insert(id, Client { peer, step: Step::Init, until: None });
        self.wait(id, Some(now.deadline(DATA_PLANE_STEP, Reason::DataPlaneStep).at));
        id
    }

    /// Gives the client's next step its time.
    fn wait(&mut self, id: ClientId, until: Option<Duration>) {
        let Some(client) = self.open.get_mut(&id) else { return };
        if let Some(before) = mem::replace(&mut client.until, until) {
            self.deadlines.remove(&(before, id));
        }
        if let Some(until) = until {
            self.deadlines.insert((until, id));
        }
    }

    fn remove(&mut self, id: ClientId) -> Option<Client<C>> {
        self.wait(id, None);
        let client = self.open.remove(&id)?;
        if let Peer::Local(local) = &client.peer {
            self.local.remove(local);
        }
        Some(client)
    }
}

impl<C: Crypto> Control<C> {
    /// A client on a stream.
    pub(super) fn client_on_stream(&mut self, now: Now, stream_id: &str) -> ClientId {
        self.counters.connections += 1;
        self.clients.insert(Peer::Stream(stream_id.to_string()), now)
    }

    /// A WebSocket was opened at `/connect`. It is closed at once where there are as many as may be.
    pub(crate) fn handle_local_open(&mut self, now: Now, out: &mut crate::outbox::Outbox, id: LocalId) {
        if self.draining {
            let (code, reason) = (End::Restarting.code(), End::Restarting.reason().to_string());
            return out.push(Output::CloseLocal { id, code, reason });
        }
        if self.streams.len() + self.clients.locals() >= self.limits.max_streams {
            self.over_limit(out, "max-streams");
            let (code, reason) = (End::Busy.code(), End::Busy.reason().to_string());
            return out.push(Output::CloseLocal { id, code, reason });
        }
        self.counters.connections += 1;
        self.clients.insert(Peer::Local(id), now);
    }

    /// A message came on it.
    pub(crate) fn handle_local_message(&mut self, context: &mut Context<'_, C>, id: LocalId, data: Vec<u8>) {
        if let Some(client) = self.clients.local.get(&id).copied() {
            self.handle_client(context, client, data);
        }
    }

    /// It has ended.
    pub(crate) fn handle_local_ended(&mut self, context: &mut Context<'_, C>, id: LocalId) {
        if let Some(client) = self.clients.local.get(&id).copied() {
            self.forget_client(context, client);
        }
    }

    /// All clients at the local API are told that the node stops.
    pub(super) fn stop_local_clients(&mut self, context: &mut Context<'_, C>) {
        while let Some((_, client)) = self.clients.local.first_key_value() {
            let client = *client;
            self.cancel_fetch_of(context, client);
            self.close_client(context, client, End::Stopping);
        }
    }

    /// The client has gone, or its stream has: what is under way for it is wanted by nobody.
    pub(super) fn forget_client(&mut self, context: &mut Context<'_, C>, id: ClientId) {
        self.cancel_fetch_of(context, id);
        self.clients.remove(id);
    }

    fn cancel_fetch_of(&mut self, context: &mut Context<'_, C>, id: ClientId) {
        if let Some(Client { step: Step::Fetch(effect), .. }) = self.clients.open.get(&id) {
            let effect = *effect;
            self.cancel(context, effect);
        }
    }

    /// Clients whose step took too long.
    pub(super) fn close_slow_clients(&mut self, context: &mut Context<'_, C>) {
        while let Some((_, id)) =
            self.clients.deadlines.first().filter(|(until, _)| context.now.monotonic >= *until)
        {
            let id = *id;
            self.close_client(context, id, End::TooSlow);
        }
    }

    /// A client's next message.
    pub(super) fn handle_client(&mut self, context: &mut Context<'_, C>, id: ClientId, data: Vec<u8>) {
        let Some(client) = self.clients.open.get_mut(&id) else { return };
        match mem::replace(&mut client.step, Step::Init) {
            Step::Init => self.client_init(context, id, data),
            Step::Request(responder) => {
                if !self.clients.jobs.has_room(data.len()) {
                    self.over_limit(context.out, "requests being decrypted");
                    return self.close_client(context, id, End::Busy);
                }
                let host = self.host(context);
                self.compute(context, id, Work::Open { host, responder, frame: data });
            }
            // One request a connection: what follows it is nobody's.
            step @ (Step::Job(_) | Step::Fetch(_)) => client.step = step,
        }
    }

    fn client_init(&mut self, context: &mut Context<'_, C>, id: ClientId, init: Vec<u8>) {
        if self.draining {
            return self.close_client(context, id, End::Restarting);
        }
        if !self.clients.inits.take(self.limits.max_inits, context.now) {
            self.over_limit(context.out, "max-inits");
            return self.close_client(context, id, End::Busy);
        }
        // What waits for a core is held. No init is worth that which is longer than any legal one.
        if init.len() > MAX_HANDSHAKE {
            self.tell_refused(context, &AcceptError::Malformed.to_string());
            return self.close_client(context, id, End::Handshake);
        }
        if !self.clients.jobs.has_place() {
            self.over_limit(context.out, "handshakes to be answered");
            return self.close_client(context, id, End::Busy);
        }
        let (host, rng) = (self.host(context), context.rng.fork());
        self.compute(context, id, Work::Accept { host, init, rng });
    }

    /// Gives a job out for a client.
    fn compute(&mut self, context: &mut Context<'_, C>, id: ClientId, work: Work<C>) {
        self.clients.wait(id, None);
        let Some(client) = self.clients.open.get_mut(&id) else { return };
        let job = self.clients.jobs.give(id, work);
        client.step = Step::Job(job);
        context.out.push(Output::Compute { job });
    }

    fn host(&self, context: &Context<'_, C>) -> Host<C> {
        Host {
            crypto: context.crypto.clone(),
            identity: Arc::clone(context.identity),
            node_id: Arc::clone(&self.node_id),
            issuer_key: self.issuer_key,
            max_body: self.limits.max_request_body,
            now: context.now,
        }
    }

    /// The job of an [`Output::Compute`], once.
    pub(crate) fn take_job(&mut self, job: JobId) -> Option<Job<C>> {
        self.clients.jobs.untaken.remove(&job)
    }

    /// A job is done; nothing where its client has gone meanwhile.
    pub(crate) fn handle_computed(&mut self, context: &mut Context<'_, C>, computed: Computed<C>) {
        let Some(id) = self.clients.jobs.take_back(computed.id) else { return };
        if !self
            .clients
            .open
            .get(&id)
            .is_some_and(|client| matches!(client.step, Step::Job(job) if job == computed.id))
        {
            return;
        }
        match computed.made {
            Made::Accepted(Ok((responder, accept))) => {
                let until = context.now.deadline(DATA_PLANE_STEP, Reason::DataPlaneStep).at;
                self.clients.wait(id, Some(until));
                if let Some(client) = self.clients.open.get_mut(&id) {
                    client.step = Step::Request(responder);
                }
                self.send_client(context, id, accept);
            }
            Made::Accepted(Err(error)) => {
                self.tell_refused(context, &error.to_string());
                self.close_client(context, id, End::Handshake);
            }
            Made::Opened(Ok(request)) => self.client_fetch(context, id, request),
            Made::Opened(Err(refused)) => {
                self.tell_refused(context, &refused.reason);
                if let Some(frame) = refused.frame {
                    self.send_client(context, id, frame);
                }
                self.close_client(context, id, End::Complete);
            }
            Made::Sealed(frame) => {
                self.send_client(context, id, frame);
                self.close_client(context, id, End::Complete);
            }
        }
    }

    /// Counts a client that was turned away, and tells the operator now and then.
    fn tell_refused(&mut self, context: &mut Context<'_, C>, reason: &str) {
        self.counters.refused += 1;
        if self.counters.refused.is_power_of_two() {
            let (reason, count) = (printable(reason), self.counters.refused);
            context.out.event(Event::ClientRefused { reason, count });
        }
    }

    fn client_fetch(
        &mut self,
        context: &mut Context<'_, C>,
        id: ClientId,
        mut request: Box<responder::Request<C>>,
    ) {
        let url = mem::take(&mut request.target_url);
        let method = request.method.take();
        let (headers, body) = (mem::take(&mut request.headers), request.body.take());
        let wanted = Wanted { url: &url, method: method.as_deref(), headers, body };
        let max_body = match self.clients.open.get(&id).map(|client| &client.peer) {
            Some(Peer::Local(_)) => MAX_TUNNEL_BODY,
            Some(Peer::Stream(_)) | None => MAX_STREAM_BODY,
        };
        // The ticket is spent last of all, so that no refusal burns it. What follows may still fail, but it was paid
        // for.
        let prepared = match self.prepare(context, wanted, max_body) {
            Ok(prepared) => prepared,
            Err(failed) => {
                self.tell_failure(context, failed.origin, &failed.reason);
                return self.refuse_client(context, id, *request, Refusal::UpstreamError, &failed.reason);
            }
        };
        if let Err(error) = self.clients.spent.spend(&request.ticket, context.now) {
            let reason = match error {
                SpendError::Replayed => "the ticket was spent",
                SpendError::BeforeStart => {
                    "the ticket may have been spent before this node started: get a new one"
                }
            };
            self.tell_refused(context, reason);
            return self.refuse_client(context, id, *request, Refusal::Unauthorized, reason);
        }
        self.clients.inits.give_back(self.limits.max_inits);
        let asker = Asker::DataPlane { client: id, request };
        let effect = self.start_fetch(context, asker, prepared);
        self.clients.wait(id, None);
        if let Some(client) = self.clients.open.get_mut(&id) {
            client.step = Step::Fetch(effect);
        }
    }

    /// What the client asked for is there.
    pub(super) fn answer_client(
        &mut self,
        context: &mut Context<'_, C>,
        id: ClientId,
        request: Box<responder::Request<C>>,
        response: Response,
    ) {
        if !self.clients.jobs.has_room(response.body.len()) {
            self.over_limit(context.out, "responses being encrypted");
            let reason = "this node has as many large responses under way as it takes";
            return self.refuse_client(context, id, *request, Refusal::UpstreamError, reason);
        }
        self.compute(context, id, Work::Answer { request, response });
    }

    /// The client gets an error, and that is all.
    pub(super) fn refuse_client(
        &mut self,
        context: &mut Context<'_, C>,
        id: ClientId,
        request: responder::Request<C>,
        refusal: Refusal,
        reason: &str,
    ) {
        let frame = request.refuse(refusal, reason);
        self.send_client(context, id, frame);
        self.close_client(context, id, End::Complete);
    }

    fn send_client(&self, context: &mut Context<'_, C>, id: ClientId, data: Vec<u8>) {
        match self.clients.open.get(&id).map(|client| &client.peer) {
            Some(Peer::Stream(stream_id)) => {
                let datum = message::stream_data(context.seconds(), stream_id, &data);
                context.send(datum);
            }
            Some(Peer::Local(local)) => context.out.push(Output::SendLocal { id: *local, data }),
            None => {}
        }
    }

    fn close_client(&mut self, context: &mut Context<'_, C>, id: ClientId, end: End) {
        match self.clients.remove(id).map(|client| client.peer) {
            Some(Peer::Stream(stream_id)) => self.close_stream(context, &stream_id, end.reason()),
            Some(Peer::Local(local)) => {
                let (code, reason) = (end.code(), end.reason().to_string());
                context.out.push(Output::CloseLocal { id: local, code, reason });
            }
            None => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::format;

    fn at(millis: u64) -> Now {
        Now { monotonic: Duration::from_millis(millis), unix: Duration::ZERO }
    }

    #[test]
    fn inits_are_bounded_by_the_second_and_paid_requests_do_not_count() {
        let mut inits = Inits { left: 10, counted: Duration::ZERO };
        let taken = (0..20).filter(|_| inits.take(10, at(50))).count();
        assert_eq!(taken, 10, "as many as the bound at once");
        inits.give_back(10);
        assert!(inits.take(10, at(60)) && !inits.take(10, at(70)));
        let taken = (0..20).filter(|_| inits.take(10, at(570))).count();
        assert_eq!(taken, 5, "half a second gives half of them");
        let taken = (0..20).filter(|_| inits.take(10, at(1_000_000))).count();
        assert_eq!(taken, 10, "a quiet hour gives no more than the bound");
    }

    #[test]
    fn every_end_fits_in_a_close_frame() {
        for end in [End::Complete, End::Handshake, End::TooSlow, End::Busy, End::Stopping, End::Restarting] {
            assert!(end.reason().len() <= 123, "{}", format!("{end:?}"));
        }
    }
}
