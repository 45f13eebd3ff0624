//! Ctrl-C and SIGTERM while setup runs: a question is left at once, work ends when its step is done.

use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::event::{PollFd, PollFlags, poll};

use crate::signals::Signals;

/// Whether the operator wants to stop. A second signal ends the process at once, which loses no more than the step that
/// is being done.
#[derive(Debug)]
pub(super) struct Interrupts {
    signals: Signals,
    came: AtomicBool,
}

impl Interrupts {
    /// Begins to watch.
    pub(super) fn watch() -> Result<Self, String> {
        Ok(Self { signals: Signals::watch()?, came: AtomicBool::new(false) })
    }

    /// Whether a signal came.
    pub(super) fn came(&self) -> bool {
        if self.signals.take().is_ok() {
            self.came.store(true, Ordering::Relaxed);
        }
        self.came.load(Ordering::Relaxed)
    }

    /// Waits until there is something to read, or a signal came; whether there is something to read.
    pub(super) fn wait_for(&self, input: BorrowedFd<'_>) -> bool {
        loop {
            if self.came() {
                return false;
            }
            let mut fds =
                [PollFd::from_borrowed_fd(input, PollFlags::IN), PollFd::new(&self.signals, PollFlags::IN)];
            // Interrupted by the very signal that is waited for; then it is told by the other descriptor.
            if poll(&mut fds, None).is_ok() && fds[1].revents().is_empty() && !fds[0].revents().is_empty() {
                return true;
            }
        }
    }

    /// Does something that takes its time. The flag is set by a signal; `tell` is called then, once.
    pub(super) fn during<T>(&self, tell: impl Fn() + Send, work: impl FnOnce(&Arc<AtomicBool>) -> T) -> T {
        let cancelled = Arc::new(AtomicBool::new(false));
        let Ok((ended, end)) = UnixStream::pair() else { return work(&cancelled) };
        std::thread::scope(|scope| {
            let flag = Arc::clone(&cancelled);
            scope.spawn(move || {
                // The other end is closed when the work is done, which reads as its end.
                if !self.wait_for(ended.as_fd()) {
                    flag.store(true, Ordering::Relaxed);
                    tell();
                }
            });
            let result = work(&cancelled);
            drop(end);
            result
        })
    }
}
