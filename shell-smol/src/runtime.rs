//! The run loop: feeds the node what happened and carries out what it asks for.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use consensus_core::data_plane::job::Computed;
use consensus_core::io::{
    Effect, EffectId, EffectResult, FetchError, FetchErrorKind, Finish, Input, JobId, LinkEnd, LinkId,
    LocalId, LocalRequest, LocalResponse, Output, SocketId,
};
use consensus_core::time::Deadline;
use shell_blocking::budget::Budget;
use shell_blocking::effects::{Performers, Work};
use shell_blocking::http::server::SWITCHING_PROTOCOLS;
use shell_blocking::runtime_api::{Environment, Machine, Provider};
use shell_blocking::signals::Signals;
use shell_blocking::socket::MAX_LEAVING;
use shell_blocking::system;
use smol::channel::{Receiver, Sender};
use smol::{Async, Executor, Task, Timer, future};

use crate::api;
use crate::api::Answer;
use crate::channel::{Channel, Name};
use crate::fetch::Means;
use crate::link::Link;
use crate::sockets::{Place, Socket};

/// What may wait for the node, each up to a whole tunnel message. Whoever has more to say waits.
const MAX_WAITING: usize = 4;

/// How long the last words may take after the node has finished.
const FAREWELL: Duration = Duration::from_secs(3);

/// Something the node is to be told.
pub(crate) enum Happened {
    Input(Input),
    Local {
        request: LocalRequest,
        answer: Sender<Answer>,
    },
    /// A job of the node is done.
    Computed(Box<Computed<Provider>>),
    /// The link's transport took something: how much is with its channel.
    Sent,
}

/// What the node is told.
enum Told {
    Input(Input),
    Computed(Box<Computed<Provider>>),
}

/// Held by what the end of the node waits for.
pub(crate) type Busy = Sender<()>;

/// An effect under way.
enum Running {
    Fetch(Task<()>),
    Blocking(Arc<AtomicBool>),
}

struct Shell {
    environment: Environment,
    executor: Arc<Executor<'static>>,
    /// Whether the executor's tasks run on other cores than the node.
    has_cores: bool,
    happened: Sender<Happened>,
    link: Option<Link>,
    sockets: BTreeMap<SocketId, Socket>,
    /// Counts the sockets that are being left.
    leaving: Arc<()>,
    performers: Performers,
    effects: BTreeMap<EffectId, Running>,
    answers: BTreeMap<LocalId, Sender<Answer>>,
    locals: BTreeMap<LocalId, Channel>,
    next_local: u64,
    means: Means,
    /// What the shell itself has to tell the node.
    own: VecDeque<Input>,
    busy: Busy,
}

/// Runs `node` to its end.
pub(crate) fn drive(node: impl Machine, environment: Environment) -> Result<Finish, String> {
    let executor = Arc::new(Executor::new());
    let cores = system::cpus();
    if cores == 1 {
        return alone(node, environment, executor);
    }
    // smol makes one thread for itself, without which it cannot be: before those that are not needed as much.
    smol::block_on(async {});
    // The node has this thread for itself: whatever it is told, it is told at once.
    let (running, ended) = smol::channel::bounded::<()>(1);
    thread::scope(|scope| {
        let core = |_: &u32| {
            let work = thread::Builder::new().name("core".to_owned());
            let (executor, ended) = (&executor, &ended);
            work.spawn_scoped(scope, move || smol::block_on(executor.run(ended.recv()))).is_ok()
        };
        // Where the system gives fewer threads, those do it.
        if (0..cores).take_while(core).count() == 0 {
            return alone(node, environment, Arc::clone(&executor));
        }
        let finish = smol::block_on(run(node, environment, Arc::clone(&executor), true));
        drop(running);
        finish
    })
}

/// Runs `node`, and all that it does, on this thread.
fn alone(
    node: impl Machine,
    environment: Environment,
    executor: Arc<Executor<'static>>,
) -> Result<Finish, String> {
    let run = run(node, environment, Arc::clone(&executor), false);
    smol::block_on(executor.run(run))
}

async fn run(
    mut node: impl Machine,
    environment: Environment,
    executor: Arc<Executor<'static>>,
    has_cores: bool,
) -> Result<Finish, String> {
    let (happened, incoming) = smol::channel::bounded(MAX_WAITING);
    let signals = executor.spawn(watch_signals(happened.clone())?);
    let means = Means::new(environment.tls.clone(), Budget::default());
    let alarms = executor.spawn(means.alarms.clone().run());
    let api = match environment.listen {
        Some(address) => {
            let (happened, budget) = (happened.clone(), means.budget.clone());
            Some(api::listen(&executor, address, &environment.log, happened, budget)?)
        }
        None => None,
    };
    let (busy, at_rest) = smol::channel::bounded(1);
    let mut shell = Shell {
        environment,
        executor,
        has_cores,
        happened,
        link: None,
        sockets: BTreeMap::new(),
        leaving: Arc::default(),
        performers: Performers::default(),
        effects: BTreeMap::new(),
        answers: BTreeMap::new(),
        locals: BTreeMap::new(),
        next_local: 0,
        means,
        own: VecDeque::new(),
        busy,
    };
    let mut told = Told::Input(Input::Tick);
    let finish = loop {
        match told {
            Told::Input(input) => node.handle_input(system::now(), input),
            Told::Computed(computed) => node.handle_computed(system::now(), *computed),
        }
        let (deadline, finish) = shell.drain(&mut node);
        if let Some(finish) = finish {
            break finish;
        }
        told = match shell.own.pop_front() {
            Some(input) => Told::Input(input),
            None => shell.next(&incoming, deadline).await,
        };
    };
    // Waited for: the listener is closed when they are gone, and one that spawns holds the executor.
    signals.cancel().await;
    alarms.cancel().await;
    if let Some(api) = api {
        api.cancel().await;
    }
    // Nobody is answered any more, nothing is told: what is left is what was to be carried out before the end.
    drop(shell);
    drop(incoming);
    let all = async {
        let _ = at_rest.recv().await;
    };
    let late = async {
        Timer::after(FAREWELL).await;
    };
    future::or(all, late).await;
    Ok(finish)
}

impl Shell {
    /// Carries out everything the node wants now.
    fn drain(&mut self, node: &mut impl Machine) -> (Option<Deadline>, Option<Finish>) {
        let mut finished = None;
        loop {
            match node.poll_output() {
                Output::Wait(deadline) => return (deadline, finished),
                Output::OpenLink { link, url } => {
                    let happened = self.happened.clone();
                    let proxies = Arc::clone(&self.environment.proxies);
                    self.link = Some(Link::open(&self.executor, link, url, proxies, &self.means, happened));
                }
                Output::Send { link, data } => {
                    let Some(open) = self.link(link) else { continue };
                    if !open.channel.send(data) {
                        self.link = None;
                        self.own.push_back(Name::Link(link).ended(unread()));
                    }
                }
                Output::CloseLink { link, code, reason } => {
                    if let Some(open) = self.link.take_if(|open| open.id == link) {
                        open.close(code, reason, self.busy.clone());
                    }
                }
                Output::DropLink { link } => {
                    self.link.take_if(|open| open.id == link);
                }
                Output::HoldLink { link, hold } => {
                    if let Some(open) = self.link(link) {
                        open.channel.hold(hold);
                    }
                }
                Output::OpenSocket { socket, audience, host, port, timeout } => {
                    let place = Place { audience, host, port, timeout };
                    let (names, happened) = (self.means.names.clone(), self.happened.clone());
                    let opened = Socket::open(&self.executor, socket, place, names, happened);
                    self.sockets.insert(socket, opened);
                }
                Output::SendSocket { socket, data } => {
                    if let Some(open) = self.sockets.get(&socket) {
                        open.send(data);
                    }
                }
                Output::ReadSocket { socket, most } => {
                    if let Some(open) = self.sockets.get(&socket) {
                        open.read(most);
                    }
                }
                Output::CloseSocket { socket } => {
                    let closed = self.sockets.remove(&socket).filter(|socket| socket.is_open);
                    // One of them is held here.
                    if let Some(closed) = closed.filter(|_| Arc::strong_count(&self.leaving) <= MAX_LEAVING) {
                        closed.leave(self.busy.clone(), Arc::clone(&self.leaving));
                    }
                }
                Output::SendLocal { id, data } => {
                    if self.locals.get(&id).is_some_and(|channel| !channel.send(data)) {
                        self.locals.remove(&id);
                        self.own.push_back(Name::Local(id).ended(unread()));
                    }
                }
                Output::CloseLocal { id, code, reason } => {
                    if let Some(channel) = self.locals.remove(&id) {
                        channel.close(code, reason, self.busy.clone());
                    }
                }
                Output::Compute { job } => self.compute(node, job),
                Output::Perform { id, effect } => self.perform(id, effect),
                Output::Cancel { id } => match self.effects.remove(&id) {
                    Some(Running::Fetch(task)) => {
                        drop(task);
                        let error = FetchError { kind: FetchErrorKind::Cancelled, detail: String::new() };
                        let result = EffectResult::Fetched(Err(error));
                        self.own.push_back(Input::Done { effect: id, result });
                    }
                    // Its end comes by itself, sooner for being wanted.
                    Some(Running::Blocking(cancelled)) => cancelled.store(true, Ordering::Relaxed),
                    None => {}
                },
                Output::Respond { id, response } => self.respond(id, response),
                Output::Event(event) => self.environment.log.event(&event),
                Output::Finish(finish) => finished = Some(finish),
            }
        }
    }

    /// Has a job done by another core, where there is one.
    fn compute(&self, node: &mut impl Machine, job: JobId) {
        let Some(job) = node.take_job(job) else { return };
        if !self.has_cores {
            return node.handle_computed(system::now(), job.run());
        }
        let happened = self.happened.clone();
        let compute = async move {
            let computed = Box::new(job.run());
            let _ = happened.send(Happened::Computed(computed)).await;
        };
        self.executor.spawn(compute).detach();
    }

    fn link(&self, id: LinkId) -> Option<&Link> {
        self.link.as_ref().filter(|open| open.id == id)
    }

    fn respond(&mut self, id: LocalId, response: LocalResponse) {
        let Some(answer) = self.answers.remove(&id) else { return };
        let upgrade = (response.status == SWITCHING_PROTOCOLS).then(|| {
            let (channel, far) = Channel::new(self.means.budget.clone());
            self.locals.insert(id, channel);
            (id, far)
        });
        // A client that has gone away does not want it any more.
        if answer.try_send(Answer { response, upgrade, busy: self.busy.clone() }).is_err()
            && self.locals.remove(&id).is_some()
        {
            self.own.push_back(Input::LocalEnded { id });
        }
    }

    /// The next thing that happens, or the passing of the deadline.
    async fn next(&mut self, incoming: &Receiver<Happened>, deadline: Option<Deadline>) -> Told {
        loop {
            if let Some(Link { id: link, channel, .. }) = &self.link {
                let bytes = channel.take_sent();
                if bytes > 0 {
                    return Told::Input(Input::LinkSent { link: *link, bytes });
                }
            }
            let happened = match deadline.and_then(|deadline| system::instant(deadline.at)) {
                None => incoming.recv().await.ok(),
                Some(at) => {
                    let late = async {
                        self.means.alarms.at(at).await;
                        None
                    };
                    future::or(async { incoming.recv().await.ok() }, late).await
                }
            };
            match happened {
                None => {
                    self.means.pool.sweep();
                    return Told::Input(Input::Tick);
                }
                Some(Happened::Sent) => {}
                Some(Happened::Computed(computed)) => return Told::Computed(computed),
                Some(Happened::Input(input)) => {
                    if self.is_expected(&input) {
                        return Told::Input(input);
                    }
                }
                Some(Happened::Local { request, answer }) => {
                    let id = LocalId(self.next_local);
                    self.next_local += 1;
                    self.answers.insert(id, answer);
                    return Told::Input(Input::Local { id, request });
                }
            }
        }
    }

    /// Whether the node still wants to be told. Of what has ended, the runtime's own end is let go.
    fn is_expected(&mut self, input: &Input) -> bool {
        match input {
            Input::Done { effect, .. } => {
                self.effects.remove(effect);
                true
            }
            Input::LinkEnded { link, .. } => {
                let Some(ended) = self.link.take_if(|open| open.id == *link) else { return false };
                let busy = self.busy.clone();
                let last = async move {
                    ended.ended().await;
                    drop(busy);
                };
                self.executor.spawn(last).detach();
                true
            }
            // One that was given up may have had something to say just then, on another core.
            Input::LinkOpened { link } | Input::LinkBinary { link, .. } | Input::LinkText { link, .. } => {
                self.link(*link).is_some()
            }
            Input::SocketOpened { socket } => match self.sockets.get_mut(socket) {
                Some(open) => {
                    open.is_open = true;
                    true
                }
                None => false,
            },
            Input::SocketData { socket, .. } | Input::SocketSent { socket, .. } => {
                self.sockets.contains_key(socket)
            }
            Input::SocketEnded { socket, .. } => match self.sockets.remove(socket) {
                Some(ended) => {
                    ended.detach();
                    true
                }
                None => false,
            },
            Input::LocalMessage { id, .. } => self.locals.contains_key(id),
            Input::LocalEnded { id } => self.locals.remove(id).is_some(),
            Input::Tick | Input::LinkSent { .. } | Input::Local { .. } | Input::Stop => true,
        }
    }

    fn perform(&mut self, id: EffectId, effect: Effect) {
        let happened = self.happened.clone();
        let running = match Work::from(effect) {
            Work::Fetch(request) => {
                let means = self.means.clone();
                Running::Fetch(self.executor.spawn(async move {
                    let result = EffectResult::Fetched(means.fetch(request).await);
                    let _ = happened.send(Happened::Input(Input::Done { effect: id, result })).await;
                }))
            }
            Work::Blocking(work) => {
                let cancelled = Arc::new(AtomicBool::new(false));
                let executor = Arc::clone(&self.executor);
                // One turn of this shell's scheduler: a task is spawned, the run loop's thread runs it, its end is seen.
                let turn = move |count| {
                    for _ in 0..count {
                        smol::block_on(executor.spawn(async {}));
                    }
                };
                let done = move |result| {
                    // Nobody hears it after the node's end.
                    let _ = happened.send_blocking(Happened::Input(Input::Done { effect: id, result }));
                };
                let begun =
                    self.performers.begin(work, &self.environment, Arc::clone(&cancelled), turn, done);
                if let Err(result) = begun {
                    return self.own.push_back(Input::Done { effect: id, result: *result });
                }
                Running::Blocking(cancelled)
            }
        };
        self.effects.insert(id, running);
    }
}

/// How a peer ends that takes nothing.
fn unread() -> LinkEnd {
    LinkEnd::Lost { detail: "the other side does not read what it is sent".to_owned() }
}

/// SIGTERM and SIGINT stop the node in good order.
fn watch_signals(happened: Sender<Happened>) -> Result<impl Future<Output = ()> + use<>, String> {
    let signals =
        Async::new(Signals::watch()?).map_err(|error| format!("cannot watch for signals: {error}"))?;
    Ok(async move {
        while signals.read_with(Signals::take).await.is_ok() {
            let _ = happened.send(Happened::Input(Input::Stop)).await;
        }
    })
}
