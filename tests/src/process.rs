//! A real node in a process of its own, and what it says.

use std::ffi::OsStr;
use std::fs;
use std::io::{self, BufRead as _, BufReader, Read};
use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use serde_json::Value;

/// How often the end of a process is looked for.
const POLL: Duration = Duration::from_millis(5);

/// A temporary folder with a node's state in it; removed when dropped, unless it is to be kept.
#[derive(Debug)]
pub struct Home {
    root: PathBuf,
    keep: bool,
}

impl Home {
    /// A new one.
    ///
    /// # Errors
    /// It cannot be made.
    pub fn new() -> io::Result<Self> {
        static NUMBER: AtomicU64 = AtomicU64::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let root = std::env::temp_dir().join(format!("consensus-testbed-{}-{number}", std::process::id()));
        fs::create_dir_all(&root)?;
        Ok(Self { root, keep: false })
    }

    /// Leaves the folder where it is.
    pub fn keep(&mut self) {
        self.keep = true;
    }

    /// The folder.
    #[must_use]
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// What `--state-dir` gets; the node makes it.
    #[must_use]
    pub fn state_dir(&self) -> PathBuf {
        self.root.join("state")
    }

    /// A command that runs a node in here, with nothing of our own environment but the path. Its log is JSON.
    #[must_use]
    pub fn command<A: AsRef<OsStr>>(
        &self,
        program: &Path,
        arguments: impl IntoIterator<Item = A>,
    ) -> Command {
        let mut command = Command::new(program);
        command.args(arguments).env_clear().current_dir(&self.root);
        if let Some(path) = std::env::var_os("PATH") {
            command.env("PATH", path);
        }
        command
            .env("HOME", &self.root)
            .env("CONSENSUS_MACHINE_REGISTRY_DIR", self.root.join("machine"))
            .env("CONSENSUS_STATE_DIR", self.state_dir())
            .env("CONSENSUS_LOG", "json")
            .env("CONSENSUS_LOG_LEVEL", "debug");
        command
    }
}

impl Drop for Home {
    fn drop(&mut self) {
        if !self.keep {
            let _ = fs::remove_dir_all(&self.root);
        }
    }
}

/// An address that nobody listens at just now.
///
/// # Errors
/// No port to be had.
pub fn free_address() -> io::Result<SocketAddr> {
    TcpListener::bind(("127.0.0.1", 0))?.local_addr()
}

/// One line of a node's standard error.
#[derive(Clone, Debug)]
pub struct Line {
    /// When it was read.
    pub at: Instant,
    /// As it stood there.
    pub text: String,
    /// As JSON; null where it is none.
    pub value: Value,
}

impl Line {
    /// Its `event`.
    #[must_use]
    pub fn event(&self) -> &str {
        self.value["event"].as_str().unwrap_or_default()
    }
}

#[derive(Default)]
struct Said {
    lines: Mutex<(Vec<Line>, bool)>,
    changed: Condvar,
    stdout: Mutex<String>,
}

/// A running node. Dropping it kills it.
pub struct NodeProcess {
    child: Child,
    started: Instant,
    said: Arc<Said>,
    readers: Vec<JoinHandle<()>>,
}

impl std::fmt::Debug for NodeProcess {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("NodeProcess").field("pid", &self.child.id()).finish_non_exhaustive()
    }
}

/// How a node ended.
#[derive(Clone, Debug)]
pub struct Exit {
    /// The exit code; `None` when a signal ended it.
    pub code: Option<i32>,
    /// From its start to its end.
    pub took: Duration,
    /// What it wrote to standard output.
    pub stdout: String,
    /// The lines of its standard error.
    pub lines: Vec<Line>,
}

impl Exit {
    /// All it said on standard error.
    #[must_use]
    pub fn stderr(&self) -> String {
        self.lines.iter().map(|line| line.text.as_str()).collect::<Vec<_>>().join("\n")
    }
}

impl NodeProcess {
    /// Starts it.
    ///
    /// # Errors
    /// The program cannot be run.
    pub fn spawn(mut command: Command) -> io::Result<Self> {
        let started = Instant::now();
        let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
        let said = Arc::new(Said::default());
        let (stdout, stderr) = (child.stdout.take(), child.stderr.take());
        let mut readers = Vec::new();
        if let Some(stderr) = stderr {
            let said = Arc::clone(&said);
            readers.push(std::thread::spawn(move || read_lines(stderr, &said)));
        }
        if let Some(mut stdout) = stdout {
            let said = Arc::clone(&said);
            readers.push(std::thread::spawn(move || {
                let mut bytes = [0; 4096];
                while let Ok(count @ 1..) = stdout.read(&mut bytes) {
                    let mut all = said.stdout.lock().unwrap_or_else(PoisonError::into_inner);
                    all.push_str(&String::from_utf8_lossy(&bytes[..count]));
                }
            }));
        }
        Ok(Self { child, started, said, readers })
    }

    /// Runs a node to its end.
    ///
    /// # Errors
    /// It cannot be run, or does not end in time (and is killed).
    pub fn run(command: Command, timeout: Duration) -> io::Result<Exit> {
        Self::spawn(command)?.wait(timeout)
    }

    /// When it was started.
    #[must_use]
    pub fn started(&self) -> Instant {
        self.started
    }

    /// Its process id.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Whether it still runs.
    pub fn is_running(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }

    /// How many lines it wrote so far: a place to wait from.
    #[must_use]
    pub fn mark(&self) -> usize {
        self.said.lines.lock().unwrap_or_else(PoisonError::into_inner).0.len()
    }

    /// The lines it wrote from a mark on.
    #[must_use]
    pub fn lines(&self, mark: usize) -> Vec<Line> {
        let lines = self.said.lines.lock().unwrap_or_else(PoisonError::into_inner);
        lines.0.get(mark..).unwrap_or_default().to_vec()
    }

    /// The mark just after the first line from `mark` on that was read when this one was.
    #[must_use]
    pub fn mark_after(&self, line: &Line, mark: usize) -> usize {
        let lines = self.lines(mark);
        let found = lines.iter().position(|other| other.at == line.at && other.text == line.text);
        mark + found.map_or(0, |index| index + 1)
    }

    /// What it wrote to standard output so far.
    #[must_use]
    pub fn stdout(&self) -> String {
        self.said.stdout.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The first line from a mark on that `matches`; waits for it. `None` when the time is up, or the process closed
    /// its standard error without.
    pub fn wait_for(
        &self,
        mark: usize,
        timeout: Duration,
        mut matches: impl FnMut(&Line) -> bool,
    ) -> Option<Line> {
        let end = Instant::now() + timeout;
        let mut seen = mark;
        let mut lines = self.said.lines.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            if let Some(line) = lines.0.iter().skip(seen).find(|line| matches(line)) {
                return Some(line.clone());
            }
            seen = lines.0.len().max(mark);
            if lines.1 {
                return None;
            }
            let left = end.checked_duration_since(Instant::now())?;
            lines = self.said.changed.wait_timeout(lines, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Asks it to stop (SIGTERM).
    ///
    /// # Errors
    /// The signal cannot be sent.
    pub fn terminate(&self) -> io::Result<()> {
        // `kill` is built into every shell; the standard library has none.
        let status = Command::new("sh").args(["-c", &format!("kill -TERM {}", self.pid())]).status()?;
        if status.success() { Ok(()) } else { Err(io::Error::other("kill failed")) }
    }

    /// Asks it to stop by several signals in one breath, as it happens where a whole group of processes is told.
    ///
    /// # Errors
    /// The first signal cannot be sent.
    pub fn terminate_and_interrupt(&self) -> io::Result<()> {
        let pid = self.pid();
        let script = format!("kill -TERM {pid} && {{ kill -INT {pid}; kill -TERM {pid}; true; }}");
        let status = Command::new("sh").args(["-c", &script]).stderr(Stdio::null()).status()?;
        if status.success() { Ok(()) } else { Err(io::Error::other("kill failed")) }
    }

    /// Waits for its end.
    ///
    /// # Errors
    /// It does not end in time; it is killed then.
    pub fn wait(mut self, timeout: Duration) -> io::Result<Exit> {
        let status = self.wait_status(timeout)?;
        let took = self.started.elapsed();
        for reader in self.readers.drain(..) {
            let _ = reader.join();
        }
        Ok(Exit { code: status.code(), took, stdout: self.stdout(), lines: self.lines(0) })
    }

    fn wait_status(&mut self, timeout: Duration) -> io::Result<ExitStatus> {
        let end = Instant::now() + timeout;
        loop {
            if let Some(status) = self.child.try_wait()? {
                return Ok(status);
            }
            if Instant::now() >= end {
                let last = self.lines(0).last().map(|line| line.text.clone()).unwrap_or_default();
                return Err(io::Error::new(
                    io::ErrorKind::TimedOut,
                    format!("the node still runs after {timeout:?}; it last said: {last}"),
                ));
            }
            std::thread::sleep(POLL);
        }
    }
}

impl Drop for NodeProcess {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn read_lines(stderr: impl Read, said: &Said) {
    let mut reader = BufReader::new(stderr);
    let mut bytes = Vec::new();
    loop {
        bytes.clear();
        let ended = !matches!(reader.read_until(b'\n', &mut bytes), Ok(1..));
        let mut lines = said.lines.lock().unwrap_or_else(PoisonError::into_inner);
        if ended {
            lines.1 = true;
        } else {
            let text = String::from_utf8_lossy(&bytes).trim_end().to_owned();
            let value = serde_json::from_str(&text).unwrap_or(Value::Null);
            lines.0.push(Line { at: Instant::now(), text, value });
        }
        said.changed.notify_all();
        if ended {
            return;
        }
    }
}
