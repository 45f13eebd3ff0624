//! The runtime on plain threads.
//!
//! One thread owns the node and waits, with poll(2), for the tunnel's socket, the local API's listener, signals, and
//! the inbox that other threads ring. What blocks (look-ups, TLS handshakes, fetches, files, measurements, the
//! local API's clients) has threads that are made when needed and end when idle.
//!
//! rustix's `poll` and not the polling crate: registering a source there is `unsafe`, because it must be taken out
//! before it is closed; here the descriptors are borrowed for one wait, which the compiler checks. A node has a
//! handful of them.

mod api;
mod connect;
mod fetch;
mod inbox;
mod link;
#[cfg(test)]
mod tests;
mod workers;

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{SyncSender, sync_channel};
use std::time::{Duration, Instant};

use consensus_core::event::Level;
use consensus_core::io::{
    Effect, EffectId, EffectResult, Fetch, FetchError, FetchErrorKind, Finish, Input, LinkEnd, LinkId,
    LocalId, LocalResponse, OpenStage, Output, Response,
};
use consensus_core::node::Node;
use consensus_core::time::Deadline;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;

use self::api::Api;
use self::inbox::{Inbox, Said};
use self::link::{Link, Read};
use self::workers::Workers;
use crate::budget::Budget;
use crate::effects::{BlockingWork, Work, perform_blocking};
use crate::runtime_api::{Environment, Provider, Runtime};
use crate::signals::Signals;
use crate::system;

/// Fetches at once. Each has a thread; more wait for one, within their own time.
const MAX_FETCHES: usize = 64;

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

    fn drive(&self, node: Node<Provider>, environment: Environment) -> Result<Finish, String> {
        Shell::new(environment)?.run(node)
    }

    fn fetch(&self, environment: &Environment, request: &Fetch) -> Result<Response, FetchError> {
        fetch::fetch(&environment.tls, request.clone(), &Arc::default(), &Budget::default())
    }
}

/// A link, by how far it has come.
enum Tunnel {
    /// A worker opens it; it may be told to stop.
    Opening(Arc<AtomicBool>),
    Open(Box<Link>),
}

struct Shell {
    environment: Environment,
    inbox: Arc<Inbox>,
    signals: Signals,
    api: Option<Api>,
    opening: Workers,
    fetching: Workers,
    /// One thread for each, so that files are written in order and measurements do not disturb one another.
    writing: Workers,
    measuring: Workers,
    links: BTreeMap<LinkId, Tunnel>,
    /// Links with more to read than one turn takes.
    unread: Vec<LinkId>,
    /// Links that have ended for the node.
    lingering: Vec<Link>,
    effects: BTreeMap<EffectId, Arc<AtomicBool>>,
    answers: BTreeMap<LocalId, SyncSender<LocalResponse>>,
    next_local: u64,
    budget: Budget,
    /// What the shell itself has to tell the node.
    own: VecDeque<Input>,
    deadline: Option<Deadline>,
    finished: Option<Finish>,
}

/// What a wait ended with.
#[derive(Default)]
struct Ready {
    said: bool,
    signal: bool,
    connection: bool,
    links: Vec<LinkId>,
    lingering: bool,
}

impl Shell {
    fn new(environment: Environment) -> Result<Self, String> {
        let inbox = Inbox::new().map_err(|error| format!("cannot set up the run loop: {error}"))?;
        let inbox = Arc::new(inbox);
        let signals = Signals::watch()?;
        let api = match environment.listen {
            Some(address) => Some(Api::listen(address, &inbox)?),
            None => None,
        };
        if let Some(api) = &api {
            let address = api.address().to_string();
            let members = [("address", address.as_str().into())];
            let text = format!("local API on http://{address}");
            environment.log.note(Level::Info, "api", "listening", &text, &members);
        }
        Ok(Self {
            environment,
            inbox,
            signals,
            api,
            opening: Workers::new("open-link", MAX_OPENING),
            fetching: Workers::new("fetch", MAX_FETCHES),
            writing: Workers::new("files", 1),
            measuring: Workers::new("measure", 1),
            links: BTreeMap::new(),
            unread: Vec::new(),
            lingering: Vec::new(),
            effects: BTreeMap::new(),
            answers: BTreeMap::new(),
            next_local: 0,
            budget: Budget::default(),
            own: VecDeque::new(),
            deadline: None,
            finished: None,
        })
    }

    fn run(mut self, mut node: Node<Provider>) -> Result<Finish, String> {
        self.feed(&mut node, Input::Tick);
        loop {
            while let Some(input) = self.own.pop_front() {
                self.feed(&mut node, input);
            }
            if self.finished.is_some() {
                break;
            }
            let mut ready = self.wait(self.unread.is_empty(), None)?;
            ready.links.append(&mut self.unread);
            if ready.said {
                self.hear(&mut node);
            }
            if ready.signal && self.signals.take().is_ok() {
                self.feed(&mut node, Input::Stop);
            }
            if let Some(api) = self.api.as_mut().filter(|_| ready.connection) {
                api.accept();
            }
            for id in ready.links {
                self.serve_link(&mut node, id);
            }
            if ready.lingering {
                self.lingering.retain_mut(Link::linger);
            }
            if self.deadline.is_some_and(|deadline| deadline.is_due(system::now())) {
                self.feed(&mut node, Input::Tick);
            }
        }
        self.say_goodbye();
        self.finished.ok_or_else(|| "the node ended without a word".to_owned())
    }

    /// Tells the node something and carries out what it wants.
    fn feed(&mut self, node: &mut Node<Provider>, input: Input) {
        node.handle_input(system::now(), input);
        loop {
            match node.poll_output() {
                Output::Wait(deadline) => {
                    self.deadline = deadline;
                    return;
                }
                Output::OpenLink { link, url } => self.open_link(link, url),
                Output::Send { link, data } => {
                    if let Some(Tunnel::Open(open)) = self.links.get_mut(&link) {
                        if let Err(end) = open.send(data) {
                            self.links.remove(&link);
                            self.own.push_back(Input::LinkEnded { link, end });
                        }
                    }
                }
                Output::CloseLink { link, code, reason } => match self.links.remove(&link) {
                    Some(Tunnel::Open(mut open)) => {
                        open.close(code, &reason);
                        self.lingering.push(*open);
                    }
                    Some(Tunnel::Opening(cancelled)) => cancelled.store(true, Ordering::Relaxed),
                    None => {}
                },
                Output::DropLink { link } => {
                    if let Some(Tunnel::Opening(cancelled)) = self.links.remove(&link) {
                        cancelled.store(true, Ordering::Relaxed);
                    }
                }
                Output::Perform { id, effect } => self.perform(id, effect),
                Output::Cancel { id } => {
                    if let Some(cancelled) = self.effects.get(&id) {
                        cancelled.store(true, Ordering::Relaxed);
                    }
                }
                Output::Respond { id, response } => self.respond(id, response),
                Output::Event(event) => self.environment.log.event(&event),
                Output::Finish(finish) => self.finished = Some(finish),
            }
        }
    }

    /// Waits until something happens, the node's deadline comes, or `most` is over; not at all unless `may_wait`.
    fn wait(&self, may_wait: bool, most: Option<Duration>) -> Result<Ready, String> {
        let now = Instant::now();
        let left = |until: Instant| until.saturating_duration_since(now);
        let mut ends = vec![most];
        if !may_wait {
            ends.push(Some(Duration::ZERO));
        }
        if self.finished.is_none() {
            ends.push(self.deadline.map(|deadline| deadline.at.saturating_sub(system::now().monotonic)));
        }
        ends.extend(self.lingering.iter().map(|link| link.until().map(left)));

        let mut fds = vec![
            PollFd::from_borrowed_fd(self.inbox.bell(), PollFlags::IN),
            PollFd::new(&self.signals, PollFlags::IN),
        ];
        let of_link = |link: &Link| {
            let write = if link.wants_to_write() { PollFlags::OUT } else { PollFlags::empty() };
            PollFlags::IN | write
        };
        let mut ids = Vec::new();
        for (id, tunnel) in &self.links {
            if let Tunnel::Open(link) = tunnel {
                fds.push(PollFd::from_borrowed_fd(link.fd(), of_link(link)));
                ids.push(*id);
            }
        }
        let lingering_from = fds.len();
        fds.extend(self.lingering.iter().map(|link| PollFd::from_borrowed_fd(link.fd(), of_link(link))));
        let listener_from = fds.len();
        match self.api.as_ref().filter(|_| self.finished.is_none()).map(Api::fd) {
            Some(Ok(fd)) => fds.push(PollFd::from_borrowed_fd(fd, PollFlags::IN)),
            Some(Err(until)) => ends.push(Some(left(until))),
            None => {}
        }

        let timeout = ends.into_iter().flatten().min().map(|wait| Timespec {
            tv_sec: i64::try_from(wait.as_secs()).unwrap_or(i64::MAX),
            tv_nsec: i64::from(wait.subsec_nanos()),
        });
        match poll(&mut fds, timeout.as_ref()) {
            Ok(_) => {}
            // A signal; its byte is read in the next turn.
            Err(Errno::INTR) => return Ok(Ready::default()),
            Err(error) => return Err(format!("cannot wait for events: {error}")),
        }
        let is_ready = |fd: &PollFd<'_>| !fd.revents().is_empty();
        Ok(Ready {
            said: is_ready(&fds[0]),
            signal: is_ready(&fds[1]),
            connection: fds[listener_from..].iter().any(is_ready),
            links: ids.into_iter().zip(&fds[2..]).filter(|(_, fd)| is_ready(fd)).map(|(id, _)| id).collect(),
            // One whose time is up gets its end as well.
            lingering: !self.lingering.is_empty()
                && (fds[lingering_from..listener_from].iter().any(is_ready)
                    || self
                        .lingering
                        .iter()
                        .any(|link| link.until().is_some_and(|until| Instant::now() >= until))),
        })
    }

    /// Hears what other threads said.
    fn hear(&mut self, node: &mut Node<Provider>) {
        for said in self.inbox.take() {
            match said {
                Said::Opened { link, result } => {
                    // One that is not wanted any more is dropped, and its socket with it.
                    let Some(Tunnel::Opening(_)) = self.links.get(&link) else { continue };
                    match *result {
                        Ok(socket) => {
                            self.links.insert(
                                link,
                                Tunnel::Open(Box::new(Link::new(link, socket, self.budget.clone()))),
                            );
                            self.feed(node, Input::LinkOpened { link });
                            // The upgrade may have brought the first message with it, of which the system knows
                            // nothing.
                            self.unread.push(link);
                        }
                        Err(end) => {
                            self.links.remove(&link);
                            self.feed(node, Input::LinkEnded { link, end });
                        }
                    }
                }
                Said::Done { effect, result } => {
                    self.effects.remove(&effect);
                    self.feed(node, Input::Done { effect, result });
                }
                Said::Local { request, answer } => {
                    let id = LocalId(self.next_local);
                    self.next_local += 1;
                    self.answers.insert(id, answer);
                    self.feed(node, Input::Local { id, request });
                }
                Said::Turn(made) => {
                    let _ = made.try_send(());
                }
            }
        }
    }

    /// Reads and writes a link.
    fn serve_link(&mut self, node: &mut Node<Provider>, id: LinkId) {
        for turn in 0..MESSAGES_A_TURN {
            let Some(Tunnel::Open(link)) = self.links.get_mut(&id) else { return };
            if turn == 0 {
                link.begin_turn();
                if link.wants_to_write() {
                    // A failure shows at the reading end, with its reason.
                    let _ = link.write();
                }
            }
            match link.read() {
                Read::Nothing if link.is_unread() => break,
                Read::Nothing => return,
                Read::Input(input) => self.feed(node, input),
                Read::End(end) => {
                    if let Some(Tunnel::Open(link)) = self.links.remove(&id) {
                        self.lingering.push(*link);
                    }
                    self.feed(node, Input::LinkEnded { link: id, end });
                    return;
                }
            }
        }
        self.unread.push(id);
    }

    fn open_link(&mut self, link: LinkId, url: String) {
        let cancelled = Arc::new(AtomicBool::new(false));
        let (inbox, tls, stop) =
            (Arc::clone(&self.inbox), self.environment.tls.clone(), Arc::clone(&cancelled));
        let open = move || {
            let result = Box::new(link::open(&url, &tls, &stop));
            inbox.say(Said::Opened { link, result });
        };
        match self.opening.submit(open) {
            Ok(()) => {
                self.links.insert(link, Tunnel::Opening(cancelled));
            }
            Err(_) => {
                let detail = "the system gives no thread".to_owned();
                let end = LinkEnd::Unopened { stage: OpenStage::Connect, detail };
                self.own.push_back(Input::LinkEnded { link, end });
            }
        }
    }

    fn perform(&mut self, effect: EffectId, what: Effect) {
        let cancelled = Arc::new(AtomicBool::new(false));
        let (inbox, stop) = (Arc::clone(&self.inbox), Arc::clone(&cancelled));
        let no_thread = || "the system gives no thread".to_owned();
        let (submitted, failed) = match Work::from(what) {
            Work::Fetch(request) => {
                let (tls, budget) = (self.environment.tls.clone(), self.budget.clone());
                // It may wait for a thread: that is part of its time.
                let asked = Instant::now();
                let job = move || {
                    let mut request = request;
                    request.timeout = request.timeout.saturating_sub(asked.elapsed());
                    let result = EffectResult::Fetched(fetch::fetch(&tls, request, &stop, &budget));
                    inbox.say(Said::Done { effect, result });
                };
                let error = FetchError { kind: FetchErrorKind::Busy, detail: no_thread() };
                (self.fetching.submit(job), EffectResult::Fetched(Err(error)))
            }
            Work::Blocking(work) => {
                let (workers, failed) = match &work {
                    BlockingWork::Measure(_) => (&self.measuring, EffectResult::Measured(Err(no_thread()))),
                    BlockingWork::Write { .. } | BlockingWork::Remove { .. } => {
                        (&self.writing, EffectResult::Written(Err(no_thread())))
                    }
                };
                let Environment { state_dir, log, .. } = self.environment.clone();
                let job = move || {
                    let mut turns = |count| make_turns(&inbox, count);
                    let is_cancelled = || stop.load(Ordering::Relaxed);
                    let result = perform_blocking(work, &state_dir, &log, &mut turns, &is_cancelled);
                    inbox.say(Said::Done { effect, result });
                };
                (workers.submit(job), failed)
            }
        };
        match submitted {
            Ok(()) => {
                self.effects.insert(effect, cancelled);
            }
            Err(_) => self.own.push_back(Input::Done { effect, result: failed }),
        }
    }

    fn respond(&mut self, id: LocalId, response: LocalResponse) {
        let (Some(answer), Some(api)) = (self.answers.remove(&id), &self.api) else { return };
        api.writing.fetch_add(1, Ordering::SeqCst);
        // A client that has gone away does not want it any more.
        if answer.try_send(response).is_err() {
            api.writing.fetch_sub(1, Ordering::SeqCst);
        }
    }

    /// Carries out the sends, closes and answers that came before the end.
    fn say_goodbye(&mut self) {
        // What runs is not waited for.
        for cancelled in self.effects.values() {
            cancelled.store(true, Ordering::Relaxed);
        }
        self.answers.clear();
        for tunnel in core::mem::take(&mut self.links).into_values() {
            match tunnel {
                Tunnel::Opening(cancelled) => cancelled.store(true, Ordering::Relaxed),
                // The node has not closed it, so that there is nothing to wait for but what was sent.
                Tunnel::Open(mut link) => {
                    let _ = link.write();
                }
            }
        }
        let until = Instant::now() + FAREWELL;
        loop {
            self.lingering.retain_mut(Link::linger);
            let answering = self.api.as_ref().is_some_and(|api| api.writing.load(Ordering::SeqCst) > 0);
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() || (self.lingering.is_empty() && !answering) {
                break;
            }
            // The writers of answers do not ring.
            let most = if answering { left.min(Duration::from_millis(5)) } else { left };
            let Ok(ready) = self.wait(true, Some(most)) else { break };
            if ready.signal {
                let _ = self.signals.take();
            }
            if ready.said {
                drop(self.inbox.take());
            }
        }
        self.inbox.close();
    }
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
