//! The run loop: feeds the node what happened and carries out what it asks for.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use consensus_core::io::{
    Effect, EffectId, EffectResult, FetchError, FetchErrorKind, Finish, Input, LinkEnd, LocalId,
    LocalRequest, LocalResponse, Output,
};
use consensus_core::node::Node;
use consensus_core::time::Deadline;
use shell_blocking::budget::Budget;
use shell_blocking::effects::{BlockingWork, Work, perform_blocking};
use shell_blocking::runtime_api::{Environment, Provider};
use shell_blocking::signals::Signals;
use shell_blocking::system;
use smol::channel::{Receiver, Sender};
use smol::{Async, Executor, Task, Timer, future};

use crate::link::Link;
use crate::{api, fetch};

/// What may wait for the node, each up to a whole tunnel message. Whoever has more to say waits.
const MAX_WAITING: usize = 4;

/// How long the last words may take after the node has finished.
const FAREWELL: Duration = Duration::from_secs(3);

/// Something the node is to be told.
pub(crate) enum Happened {
    Input(Input),
    Local { request: LocalRequest, answer: Sender<LocalResponse> },
}

/// An effect under way.
enum Running {
    Fetch(Task<()>),
    Blocking(Arc<AtomicBool>),
}

struct Shell {
    environment: Environment,
    executor: Arc<Executor<'static>>,
    happened: Sender<Happened>,
    link: Option<Link>,
    effects: BTreeMap<EffectId, Running>,
    answers: BTreeMap<LocalId, Sender<LocalResponse>>,
    next_local: u64,
    budget: Budget,
    /// What the shell itself has to tell the node.
    own: VecDeque<Input>,
    farewell: Option<Task<()>>,
}

/// Runs `node` to its end.
pub(crate) fn drive(node: Node<Provider>, environment: Environment) -> Result<Finish, String> {
    let executor = Arc::new(Executor::new());
    let run = run(node, environment, Arc::clone(&executor));
    smol::block_on(executor.run(run))
}

async fn run(
    mut node: Node<Provider>,
    environment: Environment,
    executor: Arc<Executor<'static>>,
) -> Result<Finish, String> {
    let (happened, incoming) = smol::channel::bounded(MAX_WAITING);
    let signals = executor.spawn(watch_signals(happened.clone())?);
    let api = match environment.listen {
        Some(address) => Some(api::listen(&executor, address, &environment.log, happened.clone())?),
        None => None,
    };
    let mut shell = Shell {
        environment,
        executor,
        happened,
        link: None,
        effects: BTreeMap::new(),
        answers: BTreeMap::new(),
        next_local: 0,
        budget: Budget::default(),
        own: VecDeque::new(),
        farewell: None,
    };
    let mut input = Input::Tick;
    let finish = loop {
        node.handle_input(system::now(), input);
        let (deadline, finish) = shell.drain(&mut node);
        if let Some(finish) = finish {
            break finish;
        }
        input = match shell.own.pop_front() {
            Some(input) => input,
            None => shell.next(&incoming, deadline).await,
        };
    };
    // Waited for: the listener is closed when they are gone, and one that spawns holds the executor.
    signals.cancel().await;
    if let Some(api) = api {
        api.cancel().await;
    }
    if let Some(farewell) = shell.farewell.take() {
        future::or(farewell, async {
            Timer::after(FAREWELL).await;
        })
        .await;
    }
    Ok(finish)
}

impl Shell {
    /// Carries out everything the node wants now.
    fn drain(&mut self, node: &mut Node<Provider>) -> (Option<Deadline>, Option<Finish>) {
        let mut finished = None;
        loop {
            match node.poll_output() {
                Output::Wait(deadline) => return (deadline, finished),
                Output::OpenLink { link, url } => {
                    let tls = self.environment.tls.clone();
                    self.link = Some(Link::open(
                        &self.executor,
                        link,
                        url,
                        tls,
                        self.happened.clone(),
                        self.budget.clone(),
                    ));
                }
                Output::Send { link, data } => {
                    let Some(open) = self.link.as_ref().filter(|open| open.id == link) else { continue };
                    if !open.send(data) {
                        self.link = None;
                        let end =
                            LinkEnd::Lost { detail: "the server does not read what it is sent".to_owned() };
                        self.own.push_back(Input::LinkEnded { link, end });
                    }
                }
                Output::CloseLink { link, code, reason } => {
                    if let Some(open) = self.link.take_if(|open| open.id == link) {
                        self.farewell = Some(self.executor.spawn(open.close(code, reason)));
                    }
                }
                Output::DropLink { link } => {
                    self.link.take_if(|open| open.id == link);
                }
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
                Output::Respond { id, response } => {
                    if let Some(answer) = self.answers.remove(&id) {
                        // A client that has gone away does not want it any more.
                        let _ = answer.try_send(response);
                    }
                }
                Output::Event(event) => self.environment.log.event(&event),
                Output::Finish(finish) => finished = Some(finish),
            }
        }
    }

    /// The next thing that happens, or the passing of the deadline.
    async fn next(&mut self, incoming: &Receiver<Happened>, deadline: Option<Deadline>) -> Input {
        let happened = match deadline {
            None => incoming.recv().await.ok(),
            Some(deadline) => {
                let wait = deadline.at.saturating_sub(system::now().monotonic);
                let timer = async {
                    Timer::after(wait).await;
                    None
                };
                future::or(async { incoming.recv().await.ok() }, timer).await
            }
        };
        match happened {
            None => Input::Tick,
            Some(Happened::Input(input)) => {
                match &input {
                    Input::Done { effect, .. } => {
                        self.effects.remove(effect);
                    }
                    Input::LinkEnded { link, .. } => {
                        if let Some(ended) = self.link.take_if(|open| open.id == *link) {
                            self.farewell = Some(self.executor.spawn(ended.ended()));
                        }
                    }
                    _ => {}
                }
                input
            }
            Some(Happened::Local { request, answer }) => {
                let id = LocalId(self.next_local);
                self.next_local += 1;
                self.answers.insert(id, answer);
                Input::Local { id, request }
            }
        }
    }

    fn perform(&mut self, id: EffectId, effect: Effect) {
        let happened = self.happened.clone();
        let running = match Work::from(effect) {
            Work::Fetch(request) => {
                let budget = self.budget.clone();
                let tls = self.environment.tls.clone();
                Running::Fetch(self.executor.spawn(async move {
                    let result = EffectResult::Fetched(fetch::fetch(&tls, request, &budget).await);
                    let _ = happened.send(Happened::Input(Input::Done { effect: id, result })).await;
                }))
            }
            Work::Blocking(work) => {
                let cancelled = Arc::new(AtomicBool::new(false));
                let task = self.perform_blocking(work, Arc::clone(&cancelled));
                let done = self.executor.spawn(async move {
                    let result = task.await;
                    let _ = happened.send(Happened::Input(Input::Done { effect: id, result })).await;
                });
                done.detach();
                Running::Blocking(cancelled)
            }
        };
        self.effects.insert(id, running);
    }

    fn perform_blocking(&self, work: BlockingWork, cancelled: Arc<AtomicBool>) -> Task<EffectResult> {
        let Environment { state_dir, log, .. } = self.environment.clone();
        let executor = Arc::clone(&self.executor);
        smol::unblock(move || {
            // One turn of this shell's scheduler: a task is spawned, the run loop's thread runs it, its end is seen.
            let mut turn = |count| {
                for _ in 0..count {
                    smol::block_on(executor.spawn(async {}));
                }
            };
            perform_blocking(work, &state_dir, &log, &mut turn, &|| cancelled.load(Ordering::Relaxed))
        })
    }
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
