//! The runtime on plain threads.
//!
//! One thread owns the node and waits, with poll(2), for the tunnel's socket, the local API's connections, targets'
//! connections, signals, and the inbox that other threads ring. What blocks (look-ups, connecting, TLS handshakes,
//! fetches, files, measurements) has threads that are made when needed and end when idle.
//!
//! rustix's `poll` and not the polling crate: registering a source there is `unsafe`, because it must be taken out
//! before it is closed; here the descriptors are borrowed for one wait, which the compiler checks. An idle node has a
//! handful of them; only those are waited on that something is wanted of.

mod api;
mod channel;
mod fetch;
mod inbox;
mod link;
mod sockets;
#[cfg(test)]
mod tests;
mod watch;

use std::collections::{BTreeMap, VecDeque};
use std::os::fd::AsFd as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::sync_channel;
use std::time::{Duration, Instant};

use consensus_core::event::Level;
use consensus_core::io::{
    Effect, EffectId, Fetch, FetchError, Finish, Input, JobId, LinkEnd, LinkId, LocalId, LocalResponse,
    OpenStage, Output, Response,
};
use consensus_core::time::Deadline;
use rustix::event::PollFlags;

use self::api::{Api, Upgraded};
use self::channel::{Channel, Read};
use self::fetch::{Fetches, Means};
use self::inbox::{Inbox, Said};
use self::sockets::Sockets;
use self::watch::{Name, Token, Watch};
use crate::budget::Budget;
use crate::connect::{Tcp, Transport};
use crate::effects::{Performers, Work};
use crate::http::server::SWITCHING_PROTOCOLS;
use crate::names::Names;
use crate::runtime_api::{Environment, Machine, Runtime};
use crate::signals::Signals;
use crate::system;
use crate::workers::{NoThread, Workers};

/// Attempts at a link at once: one that is wanted, and one that was given up and cannot be interrupted yet.
const MAX_OPENING: usize = 4;

/// How long the last words may take after the node has finished.
const FAREWELL: Duration = Duration::from_secs(3);

/// Messages read from one link before the others, and the clock, have their turn.
const MESSAGES_A_TURN: usize = 64;

/// The blocking runtime.
#[derive(Clone, Copy, Debug, Default)]
pub struct Blocking;

impl Runtime for Blocking {
    const PROGRAM: &'static str = "consensus-node-blocking";
    const SHELL: &'static str = "blocking";

    fn drive(&self, node: impl Machine, environment: Environment) -> Result<Finish, String> {
        Shell::new(environment)?.run(node)
    }

    fn fetch(&self, environment: &Environment, request: &Fetch) -> Result<Response, FetchError> {
        let (tls, proxies) = (environment.tls.clone(), Arc::clone(&environment.proxies));
        fetch::fetch(&Means::own(tls, proxies), request.clone())
    }
}

/// The end of a WebSocket, for the node.
fn ended(name: Name, end: LinkEnd) -> Input {
    match name {
        Name::Link(link) => Input::LinkEnded { link, end },
        Name::Local(id) => Input::LocalEnded { id },
    }
}

struct Shell {
    environment: Environment,
    inbox: Arc<Inbox>,
    signals: Signals,
    api: Option<Api>,
    /// Where the node's jobs are run; nowhere but here on a machine with one core.
    cores: Option<Workers>,
    opening: Workers,
    performers: Performers,
    /// Links that a worker opens; each may be told to stop.
    unopened: BTreeMap<LinkId, Arc<AtomicBool>>,
    channels: BTreeMap<Name, Channel>,
    /// Channels with more to read than one turn takes, or with more than the system knows of.
    unread: Vec<Name>,
    /// Channels that have ended for the node.
    lingering: BTreeMap<u64, Channel>,
    next_lingering: u64,
    sockets: Sockets,
    fetches: Fetches,
    names: Names,
    effects: BTreeMap<EffectId, Arc<AtomicBool>>,
    budget: Budget,
    /// What the shell itself has to tell the node.
    own: VecDeque<Input>,
    deadline: Option<Deadline>,
    finished: Option<Finish>,
}

impl Shell {
    fn new(environment: Environment) -> Result<Self, String> {
        let inbox = Inbox::new().map_err(|error| format!("cannot set up the run loop: {error}"))?;
        let inbox = Arc::new(inbox);
        let signals = Signals::watch()?;
        let api = match environment.listen {
            Some(address) => Some(Api::listen(address)?),
            None => None,
        };
        if let Some(api) = &api {
            let address = api.address().to_string();
            let members = [("address", address.as_str().into())];
            let text = format!("local API on http://{address}");
            environment.log.note(Level::Info, "api", "listening", &text, &members);
        }
        let means = Means::new(environment.tls.clone(), Budget::default());
        Ok(Self {
            environment,
            sockets: Sockets::new(&inbox, means.names.clone()),
            budget: means.budget.clone(),
            names: means.names.clone(),
            fetches: Fetches::new(means, &inbox),
            inbox,
            signals,
            api,
            cores: cores(),
            opening: Workers::new("open-link", MAX_OPENING),
            performers: Performers::default(),
            unopened: BTreeMap::new(),
            channels: BTreeMap::new(),
            unread: Vec::new(),
            lingering: BTreeMap::new(),
            next_lingering: 0,
            effects: BTreeMap::new(),
            own: VecDeque::new(),
            deadline: None,
            finished: None,
        })
    }

    fn run(mut self, mut node: impl Machine) -> Result<Finish, String> {
        self.own.push_back(Input::Tick);
        let mut ready = Vec::new();
        loop {
            self.tell(&mut node);
            if self.finished.is_some() {
                break;
            }
            let may_wait = self.unread.is_empty() && !self.fetches.has_more();
            let is_late = self.wait(&mut ready, may_wait, None)?;
            for token in ready.drain(..) {
                self.serve(token, &mut node);
            }
            for name in core::mem::take(&mut self.unread) {
                self.serve_channel(name, &mut node);
            }
            self.fetches.serve_more(&mut self.own);
            if is_late {
                self.expire();
            }
            if self.deadline.is_some_and(|deadline| deadline.is_due(system::now())) {
                self.fetches.sweep();
                self.own.push_back(Input::Tick);
            }
        }
        self.say_goodbye();
        self.finished.ok_or_else(|| "the node ended without a word".to_owned())
    }

    /// Tells the node what the shell itself has to say, until that is nothing more. What the transports took is told
    /// when all there was to write has been: once for many messages.
    fn tell(&mut self, node: &mut impl Machine) {
        loop {
            while let Some(input) = self.own.pop_front() {
                self.feed(node, input);
            }
            self.sockets.write(&mut self.own);
            for (name, channel) in &mut self.channels {
                let Name::Link(link) = *name else { break };
                let bytes = channel.take_sent();
                if bytes > 0 {
                    self.own.push_back(Input::LinkSent { link, bytes });
                }
            }
            if self.own.is_empty() || self.finished.is_some() {
                return;
            }
        }
    }

    /// Goes on with what is ready.
    fn serve(&mut self, token: Token, node: &mut impl Machine) {
        match token {
            Token::Inbox => self.hear(node),
            Token::Signals => {
                if self.signals.take().is_ok() {
                    self.own.push_back(Input::Stop);
                }
            }
            Token::Channel(name) => {
                if !self.unread.contains(&name) {
                    self.serve_channel(name, node);
                }
            }
            token => self.go_on(token),
        }
    }

    /// Goes on with what needs no node.
    fn go_on(&mut self, token: Token) {
        match token {
            Token::Inbox | Token::Signals | Token::Channel(_) => {}
            Token::Listener => {
                if let Some(api) = &mut self.api {
                    api.accept();
                }
            }
            Token::Lingering(number) => {
                if self.lingering.get_mut(&number).is_some_and(|channel| !channel.linger()) {
                    self.lingering.remove(&number);
                }
            }
            Token::Socket(id) => self.sockets.serve(id, &mut self.own),
            Token::Fetch(id) => self.fetches.serve(id, &mut self.own),
            Token::Client(number) => {
                if let Some(api) = &mut self.api {
                    api.serve(number, &mut self.own);
                    self.evict();
                }
            }
        }
    }

    /// Gives up what has had its time.
    fn expire(&mut self) {
        let now = Instant::now();
        let is_over = |channel: &Channel| channel.until().is_some_and(|until| now >= until);
        self.lingering.retain(|_, channel| !is_over(channel));
        let over: Vec<Name> =
            self.channels.iter().filter(|(_, channel)| is_over(channel)).map(|(name, _)| *name).collect();
        for name in over {
            self.channels.remove(&name);
            let end = LinkEnd::Lost { detail: "what was sent was not read in time".to_owned() };
            self.own.push_back(ended(name, end));
        }
        self.sockets.expire(now);
        self.fetches.expire(now, &mut self.own);
        if let Some(api) = &mut self.api {
            api.expire(now);
        }
    }

    /// Tells the node something and carries out what it wants.
    fn feed(&mut self, node: &mut impl Machine, input: Input) {
        node.handle_input(system::now(), input);
        self.drain(node);
    }

    /// Carries out what the node wants.
    fn drain(&mut self, node: &mut impl Machine) {
        loop {
            match node.poll_output() {
                Output::Wait(deadline) => {
                    self.deadline = deadline;
                    return;
                }
                Output::OpenLink { link, url } => self.open_link(link, url),
                Output::Send { link, data } => self.send(Name::Link(link), data),
                Output::CloseLink { link, code, reason } => {
                    if let Some(cancelled) = self.unopened.remove(&link) {
                        cancelled.store(true, Ordering::Relaxed);
                    }
                    self.close(Name::Link(link), code, &reason);
                }
                Output::DropLink { link } => {
                    if let Some(cancelled) = self.unopened.remove(&link) {
                        cancelled.store(true, Ordering::Relaxed);
                    }
                    self.channels.remove(&Name::Link(link));
                }
                Output::HoldLink { link, hold } => {
                    let name = Name::Link(link);
                    if let Some(channel) = self.channels.get_mut(&name) {
                        channel.hold(hold);
                        // What was read and not told yet is nothing that the system would tell.
                        if !hold && !self.unread.contains(&name) {
                            self.unread.push(name);
                        }
                    }
                }
                Output::OpenSocket { socket, audience, host, port, timeout } => {
                    self.sockets.open(socket, audience, host, port, timeout, &mut self.own);
                }
                Output::SendSocket { socket, data } => self.sockets.send(socket, data),
                Output::ReadSocket { socket, most } => self.sockets.read(socket, most),
                Output::CloseSocket { socket } => self.sockets.close(socket),
                Output::SendLocal { id, data } => self.send(Name::Local(id), data),
                Output::CloseLocal { id, code, reason } => self.close(Name::Local(id), code, &reason),
                Output::Compute { job } => self.compute(node, job),
                Output::Perform { id, effect } => self.perform(id, effect),
                Output::Cancel { id } => {
                    if self.fetches.cancel(id, &mut self.own) {
                        continue;
                    }
                    // Its end comes by itself, sooner for being wanted.
                    if let Some(cancelled) = self.effects.get(&id) {
                        cancelled.store(true, Ordering::Relaxed);
                    }
                }
                Output::Respond { id, response } => self.respond(id, &response),
                Output::Event(event) => self.environment.log.event(&event),
                Output::Finish(finish) => self.finished = Some(finish),
            }
        }
    }

    /// Has a job done by another core, where there is one.
    fn compute(&self, node: &mut impl Machine, job: JobId) {
        let Some(job) = node.take_job(job) else { return };
        let Some(cores) = &self.cores else {
            return node.handle_computed(system::now(), job.run());
        };
        let inbox = Arc::clone(&self.inbox);
        // Without a thread it is done here.
        if let Err(NoThread(job)) = cores.submit(move || inbox.say(Said::Computed(Box::new(job.run())))) {
            job();
        }
    }

    fn send(&mut self, name: Name, data: Vec<u8>) {
        if let Some(channel) = self.channels.get_mut(&name) {
            if let Err(end) = channel.send(data) {
                self.channels.remove(&name);
                self.own.push_back(ended(name, end));
            }
        }
    }

    fn close(&mut self, name: Name, code: u16, reason: &str) {
        if let Some(mut channel) = self.channels.remove(&name) {
            channel.close(code, reason);
            self.linger(channel);
        }
    }

    fn linger(&mut self, channel: Channel) {
        self.lingering.insert(self.next_lingering, channel);
        self.next_lingering += 1;
    }

    /// Waits until something happens, the node's deadline comes, or `most` is over; not at all unless `may_wait`.
    /// Whether a time has come; what is ready is in `ready`.
    fn wait(&self, ready: &mut Vec<Token>, may_wait: bool, most: Option<Instant>) -> Result<bool, String> {
        let mut watch = Watch::new(ready);
        watch.until(most);
        if let Some(deadline) = self.deadline.filter(|_| self.finished.is_none()) {
            watch.until(system::instant(deadline.at));
        }
        watch.on(self.inbox.bell(), PollFlags::IN, Token::Inbox);
        watch.on(self.signals.as_fd(), PollFlags::IN, Token::Signals);
        for (name, channel) in &self.channels {
            watch.on(channel.fd(), channel.wants(), Token::Channel(*name));
            watch.until(channel.until());
        }
        for (number, channel) in &self.lingering {
            watch.on(channel.fd(), channel.wants(), Token::Lingering(*number));
            watch.until(channel.until());
        }
        self.sockets.watch(&mut watch);
        self.fetches.watch(&mut watch);
        if let Some(api) = &self.api {
            api.watch(&mut watch, self.finished.is_none());
        }
        watch.wait(may_wait)
    }

    /// Hears what other threads said.
    fn hear(&mut self, node: &mut impl Machine) {
        for said in self.inbox.take() {
            match said {
                Said::Opened { link, result } => {
                    // One that is not wanted any more is dropped, and its socket with it.
                    if self.unopened.remove(&link).is_none() {
                        continue;
                    }
                    match *result {
                        Ok(socket) => {
                            let name = Name::Link(link);
                            self.channels.insert(name, Channel::new(socket, self.budget.clone()));
                            self.feed(node, Input::LinkOpened { link });
                            // The upgrade may have brought the first message with it, of which the system knows
                            // nothing.
                            self.unread.push(name);
                        }
                        Err(end) => self.feed(node, Input::LinkEnded { link, end }),
                    }
                }
                Said::Done { effect, result } => {
                    self.effects.remove(&effect);
                    self.feed(node, Input::Done { effect, result });
                }
                Said::Connected { socket, result } => self.sockets.opened(socket, result, &mut self.own),
                Said::Reached { effect, asked, result } => {
                    self.fetches.reached(effect, *asked, result, &mut self.own);
                }
                Said::Computed(computed) => {
                    node.handle_computed(system::now(), *computed);
                    self.drain(node);
                }
                Said::Turn(made) => {
                    let _ = made.try_send(());
                }
            }
        }
    }

    /// Reads and writes a channel.
    fn serve_channel(&mut self, name: Name, node: &mut impl Machine) {
        for turn in 0..MESSAGES_A_TURN {
            let Some(channel) = self.channels.get_mut(&name) else { return };
            if turn == 0 {
                channel.begin_turn();
                if channel.wants_to_write() {
                    // A failure shows at the reading end, with its reason.
                    let _ = channel.write();
                }
            }
            if !channel.wants_to_read() {
                return;
            }
            let data = match channel.read() {
                Read::Binary(data) => data,
                Read::Text(text) => match name {
                    Name::Link(link) => {
                        self.feed(node, Input::LinkText { link, text });
                        continue;
                    }
                    Name::Local(_) => text.into_bytes(),
                },
                Read::Nothing if channel.is_unread() => break,
                Read::Nothing => return,
                Read::End(end) => {
                    if let Some(channel) = self.channels.remove(&name) {
                        self.linger(channel);
                    }
                    return self.feed(node, ended(name, end));
                }
            };
            let input = match name {
                Name::Link(link) => Input::LinkBinary { link, data },
                Name::Local(id) => Input::LocalMessage { id, data },
            };
            self.feed(node, input);
        }
        if !self.unread.contains(&name) {
            self.unread.push(name);
        }
    }

    fn open_link(&mut self, link: LinkId, url: String) {
        let cancelled = Arc::new(AtomicBool::new(false));
        let (inbox, tls, stop) =
            (Arc::clone(&self.inbox), self.environment.tls.clone(), Arc::clone(&cancelled));
        let (names, proxies) = (self.names.clone(), Arc::clone(&self.environment.proxies));
        let open = move || {
            let result = Box::new(link::open(&url, &proxies, &tls, &names, &stop));
            inbox.say(Said::Opened { link, result });
        };
        match self.opening.submit(open) {
            Ok(()) => {
                self.unopened.insert(link, cancelled);
            }
            Err(_) => {
                let detail = "the system gives no thread".to_owned();
                let end = LinkEnd::Unopened { stage: OpenStage::Connect, detail };
                self.own.push_back(Input::LinkEnded { link, end });
            }
        }
    }

    fn perform(&mut self, effect: EffectId, what: Effect) {
        let work = match Work::from(what) {
            Work::Fetch(request) => return self.fetches.begin(effect, request, &mut self.own),
            Work::Blocking(work) => work,
        };
        let cancelled = Arc::new(AtomicBool::new(false));
        let (inbox, done) = (Arc::clone(&self.inbox), Arc::clone(&self.inbox));
        let turn = move |count| make_turns(&inbox, count);
        let done = move |result| done.say(Said::Done { effect, result });
        match self.performers.begin(work, &self.environment, Arc::clone(&cancelled), turn, done) {
            Ok(()) => {
                self.effects.insert(effect, cancelled);
            }
            Err(result) => self.own.push_back(Input::Done { effect, result: *result }),
        }
    }

    fn respond(&mut self, id: LocalId, response: &LocalResponse) {
        let Some(api) = &mut self.api else { return };
        let upgraded = api.respond(id, response, &mut self.own);
        self.evict();
        let channel = upgraded.and_then(|Upgraded { stream, unread, place }| {
            let transport = Transport::Plain(Tcp::nonblocking(stream).ok()?);
            Some(Channel::of_client(transport, unread, place, self.budget.clone()))
        });
        match channel {
            Some(channel) => {
                self.channels.insert(Name::Local(id), channel);
                // Its first message may have come with the request.
                self.unread.push(Name::Local(id));
            }
            None if response.status == SWITCHING_PROTOCOLS => self.own.push_back(Input::LocalEnded { id }),
            None => {}
        }
    }

    /// Ends WebSockets of the local API that have to go for others.
    fn evict(&mut self) {
        let Some(api) = &mut self.api else { return };
        for place in api.take_evicted() {
            let is_it = |channel: &Channel| channel.place() == Some(place);
            let found = self.channels.iter().find(|(_, channel)| is_it(channel)).map(|(name, _)| *name);
            if let Some(name) = found {
                self.channels.remove(&name);
                self.own.push_back(ended(name, LinkEnd::Lost { detail: String::new() }));
            }
            self.lingering.retain(|_, channel| !is_it(channel));
        }
    }

    /// Carries out the sends, closes and answers that came before the end.
    fn say_goodbye(&mut self) {
        // What runs is not waited for.
        for cancelled in self.effects.values().chain(self.unopened.values()) {
            cancelled.store(true, Ordering::Relaxed);
        }
        // The node has not closed these, so that there is nothing to wait for but what was sent.
        for channel in self.channels.values_mut() {
            let _ = channel.write();
        }
        self.channels.clear();
        self.sockets.finish();
        self.fetches.finish();
        let until = Instant::now() + FAREWELL;
        let mut ready = Vec::new();
        loop {
            if let Some(api) = &mut self.api {
                api.finish();
            }
            let is_answering = self.api.as_ref().is_some_and(Api::is_answering);
            let is_busy = is_answering || self.sockets.is_leaving() || !self.lingering.is_empty();
            if !is_busy || Instant::now() >= until {
                break;
            }
            let Ok(is_late) = self.wait(&mut ready, true, Some(until)) else { break };
            for token in ready.drain(..) {
                match token {
                    Token::Inbox => drop(self.inbox.take()),
                    // The second signal ends the process by itself.
                    Token::Signals => drop(self.signals.take()),
                    token => self.go_on(token),
                }
            }
            if is_late {
                self.expire();
            }
        }
        self.inbox.close();
    }
}

/// A worker for each core, where there is more than one.
fn cores() -> Option<Workers> {
    let cores = usize::try_from(system::cpus()).unwrap_or(usize::MAX);
    (cores > 1).then(|| Workers::new("data-plane", cores))
}

/// Makes turns of the run loop, one after the other: something is said, and the loop hears it.
fn make_turns(inbox: &Inbox, count: u64) {
    for _ in 0..count {
        let (made, wait) = sync_channel(1);
        inbox.say(Said::Turn(made));
        // An error says that the loop has ended.
        let _ = wait.recv();
    }
}
