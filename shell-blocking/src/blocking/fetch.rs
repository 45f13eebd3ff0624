//! HTTP exchanges with targets: connections are made by workers, then written and read by the run loop. A target that
//! stalls holds a descriptor and nothing else.

use std::collections::{BTreeMap, VecDeque};
use std::io::{self, ErrorKind, Read as _, Write as _};
use std::net::SocketAddr;
use std::os::fd::{AsFd as _, BorrowedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use consensus_core::guard::Target;
use consensus_core::io::{
    Audience, EffectId, EffectResult, Fetch, FetchError, FetchErrorKind, Input, Response,
};
use consensus_core::proxy::Proxies;
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::inbox::{Inbox, Said};
use super::watch::{Token, Watch};
use crate::budget::Budget;
use crate::connect::{Limit, Transport, dial_at, dial_through, look_up};
use crate::dial::{DialError, known};
use crate::http::client::Exchange;
use crate::http::pool::{self, Kept, Pool};
use crate::http::times::Times;
use crate::names::Names;
use crate::tls::{self, Tls};
use crate::workers::Workers;

/// Connections being made at once, each by a thread. A target that does not answer holds one for seconds: there are
/// enough of them that many such targets do not hold up the others.
const MAX_CONNECTING: usize = 128;

/// What is read at once: a body of 16 KiB and its head in one go.
const READ_BUFFER: usize = 20 * 1024;

/// Read of one target before the others, and the clock, have their turn.
const BYTES_A_TURN: usize = 256 * 1024;

/// What all fetches share.
#[derive(Clone, Debug)]
pub(super) struct Means {
    pub(super) tls: Tls,
    pub(super) names: Names,
    pub(super) pool: Pool<Connection>,
    pub(super) budget: Budget,
    /// For the node's own requests; none for those of others.
    proxies: Arc<Proxies>,
}

impl Means {
    /// For what the node fetches for others: it goes direct.
    pub(super) fn new(tls: Tls, budget: Budget) -> Self {
        Self { tls, names: Names::default(), pool: Pool::default(), budget, proxies: Arc::default() }
    }

    /// For the node's own requests.
    pub(super) fn own(tls: Tls, proxies: Arc<Proxies>) -> Self {
        Self { proxies, ..Self::new(tls, Budget::default()) }
    }
}

/// A connection to a target, and the memory to read it with.
#[derive(Debug)]
pub(super) struct Connection {
    transport: Transport,
    buffer: Vec<u8>,
}

impl pool::Connection for Connection {
    fn is_quiet(&mut self) -> bool {
        self.transport.is_quiet()
    }
}

/// A fetch, wherever it stands.
pub(super) struct Asked {
    target: Target,
    audience: Audience,
    exchange: Exchange,
    times: Times,
    /// Whether a kept connection has failed it.
    is_again: bool,
}

/// A connection, and whether it was kept from another fetch.
pub(super) struct Obtained {
    kept: Kept<Connection>,
    is_reused: bool,
}

impl Asked {
    fn new(fetch: Fetch, budget: &Budget) -> Result<Self, FetchError> {
        let times = Times::new(fetch.bounds, Instant::now());
        let (target, audience) = (fetch.target.clone(), fetch.audience);
        Ok(Self { target, audience, exchange: Exchange::new(fetch, budget)?, times, is_again: false })
    }

    fn limit(&self, cancelled: &Arc<AtomicBool>) -> Limit {
        let (until, time) = (self.times.connect(Instant::now()), self.times.connect_time());
        Limit { until, time, cancelled: Arc::clone(cancelled) }
    }

    fn take_kept(&self, addresses: &[SocketAddr], means: &Means) -> Option<Obtained> {
        if self.is_again {
            return None;
        }
        let kept = means.pool.take(&self.target, self.audience, addresses)?;
        Some(Obtained { kept, is_reused: true })
    }

    /// Looks up and connects; blocks.
    fn obtain(&self, means: &Means, limit: &Limit) -> Result<Obtained, DialError> {
        let Self { target, audience, .. } = self;
        let (mut transport, address) = match means.proxies.of(target) {
            Some(proxy) => dial_through(proxy, target, *audience, &means.tls, &means.names, limit)?,
            None => {
                let addresses = look_up(target, *audience, &means.names, limit)?;
                if let Some(kept) = self.take_kept(&addresses, means) {
                    return Ok(kept);
                }
                dial_at(target, &addresses, &means.tls, limit)?
            }
        };
        transport.set_nonblocking().map_err(|error| crate::dial::unconnected(target, &error))?;
        let connection = Connection { transport, buffer: vec![0; READ_BUFFER] };
        Ok(Obtained { kept: Kept::new(target, *audience, address, connection), is_reused: false })
    }
}

/// A fetch with its connection.
struct Conversation {
    asked: Asked,
    obtained: Obtained,
    /// Writing failed. A server may answer and close before it has read all: what it said counts, so it is read first.
    broken: Option<io::Error>,
}

/// How a turn of a conversation ended.
enum Turn {
    /// It goes on when the connection is ready.
    Wait,
    /// There may be more to read of which the system knows nothing, or the turn was over before it.
    More,
    /// The response is complete.
    Done,
    Failed(FetchError),
}

impl Conversation {
    fn new(mut asked: Asked, obtained: Obtained) -> Self {
        asked.times.connected(Instant::now());
        Self { asked, obtained, broken: None }
    }

    fn transport(&self) -> &Transport {
        &self.obtained.kept.connection.transport
    }

    fn fd(&self) -> BorrowedFd<'_> {
        self.transport().as_fd()
    }

    fn wants(&self) -> PollFlags {
        let is_unwritten = !self.asked.exchange.to_write().is_empty() || self.transport().is_unflushed();
        if is_unwritten && self.broken.is_none() { PollFlags::IN | PollFlags::OUT } else { PollFlags::IN }
    }

    fn until(&self) -> Instant {
        self.asked.times.answer(self.asked.exchange.has_begun())
    }

    fn late(&self) -> FetchError {
        self.asked.times.late(self.asked.exchange.has_begun())
    }

    /// The first turn: there is nothing to read on a connection that was quiet.
    fn begin(&mut self) -> Turn {
        self.write();
        // A server that speaks TLS may have said something at the end of the handshake.
        let is_plain = matches!(self.transport(), Transport::Plain(_));
        if is_plain || self.obtained.is_reused { Turn::Wait } else { Turn::More }
    }

    fn go_on(&mut self) -> Turn {
        self.write();
        match self.read() {
            Ok(turn) => turn,
            Err(error) => Turn::Failed(error),
        }
    }

    fn write(&mut self) {
        if self.broken.is_none() && self.wants().contains(PollFlags::OUT) {
            self.broken = self.try_write().err().filter(|error| error.kind() != ErrorKind::WouldBlock);
        }
    }

    fn try_write(&mut self) -> io::Result<()> {
        let (exchange, transport) = (&mut self.asked.exchange, &mut self.obtained.kept.connection.transport);
        loop {
            let bytes = exchange.to_write();
            if bytes.is_empty() {
                return transport.flush();
            }
            match transport.write(bytes) {
                Ok(0) => return Err(ErrorKind::WriteZero.into()),
                Ok(count) => exchange.wrote(count),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
    }

    fn read(&mut self) -> Result<Turn, FetchError> {
        let exchange = &mut self.asked.exchange;
        let Connection { transport, buffer } = &mut self.obtained.kept.connection;
        let mut left = BYTES_A_TURN;
        while left > 0 {
            match transport.read(buffer) {
                Ok(0) => match self.broken.take() {
                    Some(error) => return Err(broken(&error)),
                    None => exchange.closed()?,
                },
                Ok(count) => {
                    exchange.received(&buffer[..count])?;
                    left = left.saturating_sub(count);
                    if count < buffer.len() && matches!(transport, Transport::Plain(_)) && !exchange.is_done()
                    {
                        return Ok(Turn::Wait);
                    }
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(Turn::Wait),
                Err(error) => return Err(broken(&error)),
            }
            if exchange.is_done() {
                return Ok(Turn::Done);
            }
        }
        Ok(Turn::More)
    }

    /// Gives the response, and the connection back.
    fn finish(self, pool: &Pool<Connection>) -> Result<Response, FetchError> {
        let (response, is_reusable) = self.asked.exchange.finish()?;
        let mut kept = self.obtained.kept;
        if is_reusable && self.broken.is_none() && !kept.connection.transport.is_unflushed() {
            pool.put(kept);
        } else {
            kept.connection.transport.end_writing();
        }
        Ok(response)
    }

    /// What to begin anew with, where the failure is only that the connection had ended before.
    fn again(mut self, error: FetchError) -> Result<Asked, FetchError> {
        if self.obtained.is_reused && self.asked.exchange.rewind(&error) {
            Ok(Asked { is_again: true, ..self.asked })
        } else {
            Err(error)
        }
    }
}

fn broken(error: &io::Error) -> FetchError {
    let detail = format!("the connection broke: {}", tls::describe(error));
    FetchError { kind: FetchErrorKind::Protocol, detail }
}

/// Carries out one fetch, outside any run loop.
pub(super) fn fetch(means: &Means, fetch: Fetch) -> Result<Response, FetchError> {
    let mut asked = Asked::new(fetch, &means.budget)?;
    loop {
        let limit = asked.limit(&Arc::default());
        let obtained = asked.obtain(means, &limit).map_err(DialError::into_fetch_error)?;
        let mut conversation = Conversation::new(asked, obtained);
        let mut turn = conversation.begin();
        let error = loop {
            match turn {
                Turn::Done => return conversation.finish(&means.pool),
                Turn::Failed(error) => break error,
                Turn::More => {}
                Turn::Wait => {
                    let left = conversation.until().saturating_duration_since(Instant::now());
                    if left.is_zero() {
                        break conversation.late();
                    }
                    wait(&conversation, left).map_err(|error| broken(&error))?;
                }
            }
            turn = conversation.go_on();
        };
        asked = conversation.again(error)?;
    }
}

fn wait(conversation: &Conversation, time: std::time::Duration) -> io::Result<()> {
    let time = Timespec {
        tv_sec: i64::try_from(time.as_secs()).unwrap_or(i64::MAX),
        tv_nsec: i64::from(time.subsec_nanos()),
    };
    let mut fds = [PollFd::from_borrowed_fd(conversation.fd(), conversation.wants())];
    match poll(&mut fds, Some(&time)) {
        Ok(_) | Err(rustix::io::Errno::INTR) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// All fetches under way. What there is to tell the node goes to the queue that each call is handed.
pub(super) struct Fetches {
    means: Means,
    workers: Workers,
    inbox: Arc<Inbox>,
    fetches: BTreeMap<EffectId, Running>,
    /// Those whose turn was over before there was nothing more.
    more: Vec<EffectId>,
}

enum Running {
    /// A worker connects; it may be told to stop.
    Connecting {
        cancelled: Arc<AtomicBool>,
        times: Times,
        waiting: Waiting,
    },
    Talking(Box<Conversation>),
}

/// A fetch that waits for a worker. One that is given up before must not keep its request's body until a worker comes to
/// it: the node has taken another in its place.
type Waiting = Arc<Mutex<Option<Box<Asked>>>>;

fn take(waiting: &Waiting) -> Option<Box<Asked>> {
    // Nothing under this lock can leave it half-changed.
    waiting.lock().unwrap_or_else(PoisonError::into_inner).take()
}

fn give_up(cancelled: &AtomicBool, waiting: &Waiting) {
    cancelled.store(true, Ordering::Relaxed);
    drop(take(waiting));
}

impl Fetches {
    pub(super) fn new(means: Means, inbox: &Arc<Inbox>) -> Self {
        Self {
            means,
            workers: Workers::new("connect", MAX_CONNECTING),
            inbox: Arc::clone(inbox),
            fetches: BTreeMap::new(),
            more: Vec::new(),
        }
    }

    pub(super) fn begin(&mut self, id: EffectId, fetch: Fetch, own: &mut VecDeque<Input>) {
        let asked = match Asked::new(fetch, &self.means.budget) {
            Ok(asked) => asked,
            Err(error) => return own.push_back(done(id, Err(error))),
        };
        match known(&asked.target, asked.audience, &self.means.names) {
            Some(Err(error)) => own.push_back(done(id, Err(error.into_fetch_error()))),
            Some(Ok(addresses)) => match asked.take_kept(&addresses, &self.means) {
                Some(kept) => self.talk(id, asked, kept, own),
                None => self.connect(id, asked, own),
            },
            None => self.connect(id, asked, own),
        }
    }

    fn connect(&mut self, id: EffectId, asked: Asked, own: &mut VecDeque<Input>) {
        let cancelled = Arc::new(AtomicBool::new(false));
        let (limit, times) = (asked.limit(&cancelled), asked.times);
        let (inbox, means) = (Arc::clone(&self.inbox), self.means.clone());
        let waiting: Waiting = Arc::new(Mutex::new(Some(Box::new(asked))));
        let to_take = Arc::clone(&waiting);
        let job = move || {
            let Some(asked) = take(&to_take) else { return };
            let result = asked.obtain(&means, &limit);
            inbox.say(Said::Reached { effect: id, asked, result });
        };
        match self.workers.submit(job) {
            Ok(()) => {
                self.fetches.insert(id, Running::Connecting { cancelled, times, waiting });
            }
            Err(_) => {
                let detail = "the system gives no thread".to_owned();
                own.push_back(done(id, Err(FetchError { kind: FetchErrorKind::Busy, detail })));
            }
        }
    }

    /// A worker has come to its end.
    pub(super) fn reached(
        &mut self,
        id: EffectId,
        asked: Asked,
        result: Result<Obtained, DialError>,
        own: &mut VecDeque<Input>,
    ) {
        // One that is not wanted any more is dropped, and its connection with it.
        if self.fetches.remove(&id).is_none() {
            return;
        }
        match result {
            Ok(obtained) => self.talk(id, asked, obtained, own),
            Err(error) => own.push_back(done(id, Err(error.into_fetch_error()))),
        }
    }

    fn talk(&mut self, id: EffectId, asked: Asked, obtained: Obtained, own: &mut VecDeque<Input>) {
        let mut conversation = Box::new(Conversation::new(asked, obtained));
        let turn = conversation.begin();
        self.after(id, conversation, turn, own);
    }

    fn after(
        &mut self,
        id: EffectId,
        conversation: Box<Conversation>,
        turn: Turn,
        own: &mut VecDeque<Input>,
    ) {
        match turn {
            Turn::Wait => {
                self.fetches.insert(id, Running::Talking(conversation));
            }
            Turn::More => {
                self.fetches.insert(id, Running::Talking(conversation));
                self.more.push(id);
            }
            Turn::Done => own.push_back(done(id, conversation.finish(&self.means.pool))),
            Turn::Failed(error) => match conversation.again(error) {
                Ok(asked) => self.connect(id, asked, own),
                Err(error) => own.push_back(done(id, Err(error))),
            },
        }
    }

    /// Goes on with a fetch whose connection is ready.
    pub(super) fn serve(&mut self, id: EffectId, own: &mut VecDeque<Input>) {
        match self.fetches.remove(&id) {
            Some(Running::Talking(mut conversation)) => {
                let turn = conversation.go_on();
                self.after(id, conversation, turn, own);
            }
            Some(connecting @ Running::Connecting { .. }) => {
                self.fetches.insert(id, connecting);
            }
            None => {}
        }
    }

    /// Goes on with those whose turn was over.
    pub(super) fn serve_more(&mut self, own: &mut VecDeque<Input>) {
        for id in core::mem::take(&mut self.more) {
            self.serve(id, own);
        }
    }

    /// Whether some can go on without waiting.
    pub(super) fn has_more(&self) -> bool {
        !self.more.is_empty()
    }

    /// Ends a fetch that nobody wants any more; `false` if there is none.
    pub(super) fn cancel(&mut self, id: EffectId, own: &mut VecDeque<Input>) -> bool {
        match self.fetches.remove(&id) {
            Some(Running::Connecting { cancelled, waiting, .. }) => give_up(&cancelled, &waiting),
            Some(Running::Talking(_)) => {}
            None => return false,
        }
        let error = FetchError { kind: FetchErrorKind::Cancelled, detail: String::new() };
        own.push_back(done(id, Err(error)));
        true
    }

    /// Says what to wait for.
    pub(super) fn watch<'a>(&'a self, watch: &mut Watch<'a>) {
        for (id, running) in &self.fetches {
            match running {
                Running::Connecting { times, .. } => watch.until(Some(times.answer(true))),
                Running::Talking(conversation) => {
                    watch.on(conversation.fd(), conversation.wants(), Token::Fetch(*id));
                    watch.until(Some(conversation.until()));
                }
            }
        }
    }

    /// Gives up what has had its time.
    pub(super) fn expire(&mut self, now: Instant, own: &mut VecDeque<Input>) {
        let is_over = |running: &Running| match running {
            Running::Connecting { times, .. } => now >= times.answer(true),
            Running::Talking(conversation) => now >= conversation.until(),
        };
        let over: Vec<_> =
            self.fetches.iter().filter(|(_, running)| is_over(running)).map(|(id, _)| *id).collect();
        for id in over {
            match self.fetches.remove(&id) {
                Some(Running::Talking(conversation)) => own.push_back(done(id, Err(conversation.late()))),
                // The worker, which gives up by itself and says more, did not come to it.
                Some(Running::Connecting { cancelled, times, waiting }) => {
                    give_up(&cancelled, &waiting);
                    own.push_back(done(id, Err(times.unconnected())));
                }
                None => {}
            }
        }
    }

    /// Lets go of connections that were kept and are of no use any more.
    pub(super) fn sweep(&self) {
        self.means.pool.sweep();
    }

    /// Ends all of them.
    pub(super) fn finish(&mut self) {
        for running in core::mem::take(&mut self.fetches).into_values() {
            if let Running::Connecting { cancelled, .. } = running {
                cancelled.store(true, Ordering::Relaxed);
            }
        }
    }
}

fn done(effect: EffectId, result: Result<Response, FetchError>) -> Input {
    Input::Done { effect, result: EffectResult::Fetched(result) }
}

#[cfg(test)]
mod tests {
    use consensus_core::limits::Limits;

    use super::*;

    #[test]
    fn a_fetch_given_up_before_a_worker_came_to_it_keeps_nothing() {
        let inbox = Arc::new(Inbox::new().unwrap());
        let mut fetches = Fetches::new(Means::new(Tls::default(), Budget::default()), &inbox);
        // All are busy.
        fetches.workers = Workers::new("none", 0);
        let mut own = VecDeque::new();
        let (id, target) = (EffectId(1), Target::parse("http://203.0.113.1/").unwrap());
        let (method, body) = ("POST".to_owned(), Some(vec![0; 1024]));
        let (audience, bounds) = (Audience::Operator, Limits::default().bounds(1));
        let fetch = Fetch { audience, method, target, headers: Vec::new(), body, bounds };
        fetches.begin(id, fetch, &mut own);
        let Some(Running::Connecting { waiting, .. }) = fetches.fetches.get(&id) else { panic!("it waits") };
        let waiting = Arc::clone(waiting);
        assert!(waiting.lock().unwrap().is_some());
        assert!(fetches.cancel(id, &mut own));
        assert!(waiting.lock().unwrap().is_none());
        assert_eq!(own.len(), 1);
    }
}
