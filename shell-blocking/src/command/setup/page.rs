//! Questions on a page, in a browser of this machine: the same as on a terminal, with what is under way.
//!
//! What the page shows is [`consensus_core::setup::view`], who is let in [`consensus_core::setup::gate`]. Here are the
//! sockets: a thread for each connection, which waits until there is something new to show. The page's address holds a
//! token, so it goes to standard output and never to the log.

use std::fmt::Debug;
use std::io::{self, ErrorKind, Read as _, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::net::UnixStream;
use std::process::{Command, Stdio};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use consensus_core::event::Event;
use consensus_core::io::{Finish, LocalResponse};
use consensus_core::setup::gate::{Asked, Gate, MAX_POSTED, Posted, TOKEN_BYTES, json_response, refusal};
use consensus_core::setup::view::View;
use consensus_core::setup::{Effect, Question, Tell};
use consensus_core::wire::base64;
use zeroize::Zeroizing;

use super::interrupts::Interrupts;
use crate::http::server::{Connection, Step, Waiting};
use crate::log::Listener;
use crate::places::{Doing, Place, Places, refuse_at_once};
use crate::system;

/// A page that asks for news waits so long for some.
const NEWS_TIMEOUT: Duration = Duration::from_secs(20);

/// An answer is judged by then, or not at all.
const JUDGE_TIMEOUT: Duration = Duration::from_secs(10);

/// From the first byte of a request to the end of its head, and again to that of its body.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(10);

/// Between two requests; and for a client to take a response.
const IDLE_TIMEOUT: Duration = Duration::from_secs(60);

/// After a refusal, for the client to read it before the connection is reset by what it still sends.
const REFUSAL_TIMEOUT: Duration = Duration::from_secs(1);

/// How long an open page has to ask how setup ended.
const END_TIMEOUT: Duration = Duration::from_secs(3);

/// How long accepting pauses when the system cannot give another connection.
const ACCEPT_PAUSE: Duration = Duration::from_millis(200);

/// A connection's thread has a request and a response, and those are on the heap.
const STACK: usize = 256 * 1024;

/// What a process is told that takes this one's place: port and token.
const MAX_LEFT: u64 = 128;

/// The page of one setup.
pub(super) struct Page {
    shared: Arc<Shared>,
    /// A byte for each answer.
    answers: UnixStream,
    port: u16,
    token: Zeroizing<[u8; TOKEN_BYTES]>,
}

struct Shared {
    gate: Gate,
    board: Mutex<Board>,
    changed: Condvar,
    answered: UnixStream,
}

/// What the page and setup have in common.
struct Board {
    view: View,
    /// An answer that nobody has looked at.
    posted: Option<String>,
    /// Whether an answer is being judged: another one would be for the question after it.
    judging: bool,
    /// What came of the last one.
    verdict: Option<Result<(), String>>,
    /// Whether a page was there.
    is_open: bool,
    /// Whether the end was told to one.
    told_end: bool,
}

impl Page {
    /// Listens on loopback, at that port or at any, and prints the page's address. A process that has taken another
    /// one's place goes on with the page of that, whose port and token it reads from `left`.
    pub(super) fn open(
        command: &str,
        port: u16,
        left: Option<&mut dyn io::Read>,
        stdout: &mut dyn Write,
    ) -> Result<Self, String> {
        let is_handed_over = left.is_some();
        let left = left.and_then(read_left);
        let taken_over = left.as_ref().and_then(|(port, _)| listen(*port).ok());
        let is_new = taken_over.is_none();
        let listener = match taken_over {
            Some(listener) => listener,
            None => listen(port).map_err(|error| {
                format!("cannot listen on 127.0.0.1:{port}: {error}; choose another with --browser-port")
            })?,
        };
        let token = match left.filter(|_| !is_new) {
            Some((_, token)) => token,
            None => Zeroizing::new(system::seed()?),
        };
        let (answers, answered) = UnixStream::pair().map_err(|error| error.to_string())?;
        let nonblocking = answers.set_nonblocking(true).and_then(|()| answered.set_nonblocking(true));
        nonblocking.map_err(|error| error.to_string())?;
        let address = listener.local_addr().map_err(|error| error.to_string())?;
        let view = if is_handed_over { View::handed_over(command) } else { View::new(command) };
        let board = Board {
            view,
            posted: None,
            judging: false,
            verdict: None,
            is_open: is_handed_over,
            told_end: false,
        };
        let shared = Arc::new(Shared {
            gate: Gate::new(&token, address.to_string()),
            board: Mutex::new(board),
            changed: Condvar::new(),
            answered,
        });
        if is_new {
            let (url, port) = (shared.gate.url(), address.port());
            let text = format!(
                "Open this page in a browser on this machine. It is for you alone.\n\n  {}\n\nFrom another machine, first: \
                 ssh -L {port}:127.0.0.1:{port} THIS-MACHINE\nCtrl-C stops; the next setup goes on there.\n",
                *url
            );
            let printed = stdout.write_all(Zeroizing::new(text).as_bytes()).and_then(|()| stdout.flush());
            printed.map_err(|error| format!("the page's address cannot be printed: {error}"))?;
        }
        let server = Arc::clone(&shared);
        let serving = thread("page", move || accept(&listener, &server));
        serving.map_err(|error| format!("the system gives no thread: {error}"))?;
        Ok(Self { shared, answers, port: address.port(), token })
    }

    /// Somebody for a log to tell.
    pub(super) fn listener(&self) -> Arc<dyn Listener> {
        Arc::clone(&self.shared) as Arc<dyn Listener>
    }

    /// Waits until the operator begins; `false` where they stop instead.
    pub(super) fn begin(&self, interrupts: &Interrupts) -> bool {
        let asks = self.shared.board().view.question.is_some();
        if !asks {
            return true;
        }
        let has_begun = self.posted(interrupts).is_some();
        self.judged(Ok(()));
        has_begun
    }

    pub(super) fn part(&self, part: &'static str) {
        self.shared.change(|view| view.part(part));
    }

    pub(super) fn tell(&self, tell: &Tell) {
        self.shared.change(|view| view.tell(tell));
    }

    pub(super) fn work(&self, effect: &Effect) {
        self.shared.change(|view| view.work(effect));
    }

    /// The text of an answer, which is to be judged; `None` where the operator stops here.
    pub(super) fn ask(&self, question: &Question, interrupts: &Interrupts) -> Option<String> {
        // One that could not be taken is still there, with the reason.
        let stands = self.shared.board().view.question.as_ref().map(|asked| asked.id);
        if stands != Some(question.id.as_str()) {
            self.shared.change(|view| view.ask(question));
        }
        self.posted(interrupts)
    }

    fn posted(&self, interrupts: &Interrupts) -> Option<String> {
        loop {
            if !interrupts.wait_for(self.answers.as_fd()) {
                return None;
            }
            let _ = (&self.answers).read(&mut [0; 64]);
            if let Some(text) = self.shared.board().posted.take() {
                return Some(text);
            }
        }
    }

    /// What comes of the answer.
    pub(super) fn judged(&self, verdict: Result<(), String>) {
        let mut board = self.shared.board();
        match &verdict {
            Ok(()) => board.view.taken(),
            Err(why) => board.view.refused(why),
        }
        (board.verdict, board.judging) = (Some(verdict), false);
        drop(board);
        self.shared.changed.notify_all();
    }

    /// Tells the end, and waits a moment for an open page to have heard it.
    pub(super) fn finish(&self, finish: &Finish) {
        self.shared.change(|view| view.finish(finish));
        let until = Instant::now() + END_TIMEOUT;
        let _board = self.shared.wait_while(until, |board| board.is_open && !board.told_end);
    }

    /// Leaves the page to the process that takes the place of this one.
    pub(super) fn leave_to(&self, command: &mut Command) -> io::Result<()> {
        let (read, mut write) = UnixStream::pair()?;
        let token = Zeroizing::new(base64::encode_url(&*self.token));
        write.write_all(Zeroizing::new(format!("{} {}\n", self.port, *token)).as_bytes())?;
        command.stdin(Stdio::from(OwnedFd::from(read)));
        Ok(())
    }
}

fn listen(port: u16) -> io::Result<TcpListener> {
    TcpListener::bind(SocketAddr::from((Ipv4Addr::LOCALHOST, port)))
}

fn read_left(left: &mut dyn io::Read) -> Option<(u16, Zeroizing<[u8; TOKEN_BYTES]>)> {
    let mut text = Zeroizing::new(String::new());
    left.take(MAX_LEFT).read_to_string(&mut text).ok()?;
    let (port, token) = text.trim_end().split_once(' ')?;
    Some((port.parse().ok()?, Zeroizing::new(base64::decode_array(token)?)))
}

fn thread(name: &str, work: impl FnOnce() + Send + 'static) -> io::Result<()> {
    std::thread::Builder::new().name(name.to_string()).stack_size(STACK).spawn(work).map(drop)
}

impl Shared {
    fn board(&self) -> MutexGuard<'_, Board> {
        // Nothing under this lock can leave it half-changed.
        self.board.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn change(&self, change: impl FnOnce(&mut View)) {
        change(&mut self.board().view);
        self.changed.notify_all();
    }

    /// Waits as long as that holds, and no longer than until then.
    fn wait_while(&self, until: Instant, mut holds: impl FnMut(&mut Board) -> bool) -> MutexGuard<'_, Board> {
        let left = until.saturating_duration_since(Instant::now());
        let waited = self.changed.wait_timeout_while(self.board(), left, |board| holds(board));
        waited.unwrap_or_else(PoisonError::into_inner).0
    }

    /// The answer to what was asked for, and whether it tells the end.
    fn respond(&self, asked: Asked) -> (LocalResponse, bool) {
        let response = match asked {
            Asked::File(file) => file,
            Asked::Answer(posted) => self.answer(&posted),
            Asked::View { after } => {
                let is_old = |board: &mut Board| Some(board.view.version) == after;
                self.board().is_open = true;
                let board = self.wait_while(Instant::now() + NEWS_TIMEOUT, is_old);
                return (json_response(200, board.view.to_json()), board.view.finish.is_some());
            }
        };
        (response, false)
    }

    fn answer(&self, posted: &Posted) -> LocalResponse {
        let mut board = self.board();
        let question = board.view.question.as_ref().filter(|asked| asked.number == posted.number);
        let Some(question) = question.filter(|_| !board.judging) else {
            return refusal(409, "not_asked", "this is not what is asked now");
        };
        if let Err(why) = posted.check(question.id) {
            return refusal(422, "invalid", why);
        }
        (board.posted, board.judging, board.verdict) = (Some(posted.text.clone()), true, None);
        drop(board);
        // A socket that is full tells of one, too.
        let _ = (&self.answered).write(&[1]);
        let mut board = self.wait_while(Instant::now() + JUDGE_TIMEOUT, |board| board.verdict.is_none());
        match board.verdict.take() {
            Some(Ok(())) => json_response(200, b"{}".to_vec()),
            Some(Err(why)) => refusal(422, "invalid", &why),
            None => refusal(503, "busy", "the answer was not judged in time; try again"),
        }
    }
}

impl Listener for Shared {
    fn event(&self, event: &Event) {
        self.change(|view| view.event(event));
    }

    fn warning(&self, text: &str) {
        self.change(|view| view.warning(text));
    }

    fn progress(&self, action: &str, fraction: f32) {
        self.change(|view| view.progress(action, fraction));
    }

    fn window(&self, node_rps: f64) {
        self.change(|view| view.window(node_rps));
    }

    fn downloaded(&self, received: u64, total: Option<u64>) {
        self.change(|view| view.downloaded(received, total));
    }
}

/// Ends the connection of which it is, when that has to go for another.
#[derive(Debug)]
struct Evict(TcpStream);

impl Drop for Evict {
    fn drop(&mut self) {
        let _ = self.0.shutdown(Shutdown::Both);
    }
}

fn accept(listener: &TcpListener, shared: &Arc<Shared>) {
    let places = Places::default();
    loop {
        let stream = match listener.accept() {
            Ok((stream, _)) => stream,
            Err(error) if matches!(error.kind(), ErrorKind::ConnectionAborted | ErrorKind::Interrupted) => {
                continue;
            }
            Err(_) => {
                std::thread::sleep(ACCEPT_PAUSE);
                continue;
            }
        };
        let _ = stream.set_nodelay(true);
        let Ok(evict) = stream.try_clone().map(Evict) else { continue };
        let Ok((place, _)) = places.enter(evict) else {
            let _ = stream.set_nonblocking(true);
            refuse_at_once(&stream);
            continue;
        };
        let shared = Arc::clone(shared);
        // Without a thread the connection is closed.
        let _ = thread("page client", move || {
            let _ = serve(stream, &shared, &place);
        });
    }
}

/// Serves a connection to its end.
fn serve(mut stream: TcpStream, shared: &Shared, place: &Place<impl Debug>) -> io::Result<()> {
    stream.set_write_timeout(Some(IDLE_TIMEOUT))?;
    let mut http = Connection::with_max_body(MAX_POSTED);
    // The first request is expected at once.
    let (mut waiting, mut until) = (Waiting::Head, Instant::now() + REQUEST_TIMEOUT);
    loop {
        match http.next(system::now().unix) {
            Step::Read => {
                let now = http.waiting();
                if now != waiting && (waiting, now) != (Waiting::Head, Waiting::Request) {
                    let time = if now == Waiting::Request { IDLE_TIMEOUT } else { REQUEST_TIMEOUT };
                    (waiting, until) = (now, Instant::now() + time);
                }
                match read(&mut stream, until)? {
                    Some(bytes) => http.received(&bytes),
                    None => return refuse(stream, &http.timed_out(system::now().unix)),
                }
            }
            Step::Write(bytes) => stream.write_all(&bytes)?,
            Step::Refuse(bytes) => return refuse(stream, &bytes),
            Step::Request(request) => {
                let asked = match shared.gate.let_in(&request) {
                    Ok(asked) => asked,
                    // Places among the requests under way are for those who were let in: others would hold them by
                    // not reading.
                    Err(refused) => return refuse(stream, &http.respond(&refused, system::now().unix)),
                };
                if place.begin(Doing::Request).is_err() {
                    return refuse(stream, &Connection::busy(system::now().unix));
                }
                let (response, tells_end) = shared.respond(asked);
                stream.write_all(&http.respond(&response, system::now().unix))?;
                if tells_end {
                    shared.board().told_end = true;
                    shared.changed.notify_all();
                }
                if http.is_closed() {
                    return Ok(());
                }
                let _ = place.begin(Doing::Waiting);
                (waiting, until) = (Waiting::Request, Instant::now() + IDLE_TIMEOUT);
            }
        }
    }
}

/// What came; `None` where the time is up.
fn read(stream: &mut TcpStream, until: Instant) -> io::Result<Option<Vec<u8>>> {
    let mut buffer = [0; 4096];
    loop {
        let left = until.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Ok(None);
        }
        stream.set_read_timeout(Some(left))?;
        match stream.read(&mut buffer) {
            Ok(0) => return Err(ErrorKind::UnexpectedEof.into()),
            Ok(count) => return Ok(buffer.get(..count).map(<[u8]>::to_vec)),
            Err(error)
                if matches!(
                    error.kind(),
                    ErrorKind::WouldBlock | ErrorKind::TimedOut | ErrorKind::Interrupted
                ) => {}
            Err(error) => return Err(error),
        }
    }
}

/// Says why, and reads over what still comes, so that it can be read.
fn refuse(mut stream: TcpStream, answer: &[u8]) -> io::Result<()> {
    stream.write_all(answer)?;
    stream.shutdown(Shutdown::Write)?;
    let until = Instant::now() + REFUSAL_TIMEOUT;
    while read(&mut stream, until)?.is_some() {}
    Ok(())
}
