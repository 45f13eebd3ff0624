//! A program on a terminal of its own: what it shows, and what is typed.

use std::fs::File;
use std::io::{self, Read as _, Write as _};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rustix::fs::{Mode, OFlags, open};
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};

/// How often the end of a process is looked for.
const POLL: Duration = Duration::from_millis(5);

/// Ctrl-C, as a terminal sends it.
pub const INTERRUPT: &str = "\x03";

/// Ctrl-D, as a terminal sends it.
pub const END: &str = "\x04";

#[derive(Default)]
struct Shown {
    /// The text, and whether no more of it comes.
    text: Mutex<(String, bool)>,
    changed: Condvar,
}

/// A program on a terminal. Dropping it kills it.
pub struct Pty {
    child: Child,
    master: File,
    shown: Arc<Shown>,
    reader: Option<JoinHandle<()>>,
    mark: usize,
}

impl std::fmt::Debug for Pty {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Pty").field("pid", &self.child.id()).finish_non_exhaustive()
    }
}

impl Pty {
    /// Starts `setsid`, which is the program of `command`, with a new terminal: its first arguments make that the
    /// controlling one, so that what is typed there can interrupt.
    ///
    /// # Errors
    /// No terminal to be had, or the program cannot be run.
    pub fn spawn(command: &mut Command) -> io::Result<Self> {
        let master = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC)?;
        grantpt(&master)?;
        unlockpt(&master)?;
        let name = ptsname(&master, Vec::new())?;
        let slave = File::from(open(name, OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC, Mode::empty())?);
        command.stdin(Stdio::from(slave.try_clone()?)).stdout(Stdio::from(slave.try_clone()?));
        let child = command.stderr(Stdio::from(slave)).spawn()?;
        // The command holds the other end, which has to be closed for the end to be seen.
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let (master, shown) = (File::from(master), Arc::<Shown>::default());
        let (mut from, to) = (master.try_clone()?, Arc::clone(&shown));
        let reader = std::thread::spawn(move || {
            let mut bytes = [0; 4096];
            // An error is how a terminal tells that nobody is there any more.
            while let Ok(count @ 1..) = from.read(&mut bytes) {
                let mut text = to.text.lock().unwrap_or_else(PoisonError::into_inner);
                text.0.push_str(&String::from_utf8_lossy(&bytes[..count]));
                to.changed.notify_all();
            }
            to.text.lock().unwrap_or_else(PoisonError::into_inner).1 = true;
            to.changed.notify_all();
        });
        Ok(Self { child, master, shown, reader: Some(reader), mark: 0 })
    }

    /// All that it showed so far.
    #[must_use]
    pub fn text(&self) -> String {
        self.shown.text.lock().unwrap_or_else(PoisonError::into_inner).0.clone()
    }

    /// Waits until it shows one of these, after what was waited for before; which one.
    ///
    /// # Errors
    /// The time is up, or nobody is there to show it; the error has all that was shown.
    pub fn expect(&mut self, any: &[&str], timeout: Duration) -> io::Result<usize> {
        let end = Instant::now() + timeout;
        let mut text = self.shown.text.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            let new = text.0.get(self.mark..).unwrap_or_default();
            let found = any.iter().enumerate().filter_map(|(i, what)| Some((new.find(what)?, i)));
            if let Some((at, which)) = found.min() {
                self.mark += at + any[which].len();
                return Ok(which);
            }
            let left = end.saturating_duration_since(Instant::now());
            if text.1 || left.is_zero() {
                return Err(io::Error::other(format!("{any:?} was not shown; this was:\n{}", text.0)));
            }
            text = self.shown.changed.wait_timeout(text, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Types.
    ///
    /// # Errors
    /// The terminal is gone.
    pub fn type_text(&mut self, text: &str) -> io::Result<()> {
        self.master.write_all(text.as_bytes())
    }

    /// Kills it at once.
    ///
    /// # Errors
    /// It cannot be.
    pub fn kill(mut self) -> io::Result<()> {
        self.child.kill()?;
        self.child.wait().map(drop)
    }

    /// Waits for its end: how it ended, and all that it showed.
    ///
    /// # Errors
    /// It does not end in time.
    pub fn wait(mut self, timeout: Duration) -> io::Result<(ExitStatus, String)> {
        let end = Instant::now() + timeout;
        loop {
            if let Some(status) = self.child.try_wait()? {
                if let Some(reader) = self.reader.take() {
                    let _ = reader.join();
                }
                return Ok((status, self.text()));
            }
            if Instant::now() >= end {
                return Err(io::Error::other(format!("it does not end; it showed:\n{}", self.text())));
            }
            std::thread::sleep(POLL);
        }
    }
}

impl Drop for Pty {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
