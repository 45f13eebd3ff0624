//! Threads for what blocks: made when needed, gone when idle, so that a node at rest is one thread.

use std::collections::VecDeque;
use std::fmt;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

/// How long a worker waits for the next job before it ends.
const IDLE: Duration = Duration::from_secs(5);

/// A TLS handshake with its certificate checks takes about 60 KiB in a debug build. Only what is touched is used.
const STACK: usize = 256 * 1024;

/// What a worker does.
pub type Job = Box<dyn FnOnce() + Send>;

/// A pool of workers for one kind of job. Jobs begin in the order in which they came.
#[derive(Clone, Debug)]
pub struct Workers {
    shared: Arc<Shared>,
    name: &'static str,
    most: usize,
}

#[derive(Debug)]
struct Shared {
    state: Mutex<State>,
    ready: Condvar,
}

#[derive(Default)]
struct State {
    jobs: VecDeque<Job>,
    workers: usize,
    idle: usize,
}

impl fmt::Debug for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("State")
            .field("workers", &self.workers)
            .field("idle", &self.idle)
            .finish_non_exhaustive()
    }
}

/// The system gives no thread; the job is given back.
pub struct NoThread(pub Job);

impl fmt::Debug for NoThread {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("NoThread")
    }
}

impl Workers {
    /// At most `most` threads of that name; a name of over 15 bytes is cut by the system.
    #[must_use]
    pub fn new(name: &'static str, most: usize) -> Self {
        let shared = Shared { state: Mutex::new(State::default()), ready: Condvar::new() };
        Self { shared: Arc::new(shared), name, most }
    }

    /// Has a job done. More jobs than threads wait.
    ///
    /// # Errors
    /// There is no thread, and none to be had.
    pub fn submit(&self, job: impl FnOnce() + Send + 'static) -> Result<(), NoThread> {
        let mut state = self.shared.state();
        state.jobs.push_back(Box::new(job));
        if state.jobs.len() <= state.idle {
            self.shared.ready.notify_one();
            return Ok(());
        }
        if state.workers >= self.most {
            return Ok(());
        }
        let shared = Arc::clone(&self.shared);
        let builder = thread::Builder::new().name(self.name.to_owned()).stack_size(STACK);
        match builder.spawn(move || work(&shared)) {
            Ok(_) => {
                state.workers += 1;
                Ok(())
            }
            // The workers there are will come to it.
            Err(_) if state.workers > 0 => Ok(()),
            Err(_) => state.jobs.pop_back().map_or(Ok(()), |job| Err(NoThread(job))),
        }
    }
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        // Jobs run outside the lock: nothing under it can fail halfway.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn work(shared: &Shared) {
    let mut state = shared.state();
    loop {
        if let Some(job) = state.jobs.pop_front() {
            drop(state);
            job();
            state = shared.state();
            continue;
        }
        state.idle += 1;
        let (next, wait) = shared.ready.wait_timeout(state, IDLE).unwrap_or_else(PoisonError::into_inner);
        state = next;
        state.idle -= 1;
        if wait.timed_out() && state.jobs.is_empty() {
            state.workers -= 1;
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    #[test]
    fn jobs_are_done_side_by_side_up_to_the_bound_and_then_wait() {
        let workers = Workers::new("test", 2);
        let (report, reports) = mpsc::channel();
        let mut gates = Vec::new();
        for job in 0..3 {
            let (open, gate) = mpsc::channel::<()>();
            gates.push(open);
            let report = report.clone();
            workers
                .submit(move || {
                    report.send(job).unwrap();
                    let _ = gate.recv();
                })
                .unwrap();
        }
        let mut begun = [reports.recv().unwrap(), reports.recv().unwrap()];
        begun.sort_unstable();
        assert_eq!(begun, [0, 1]);
        assert!(reports.recv_timeout(Duration::from_millis(50)).is_err(), "the third must wait");
        gates.remove(0);
        assert_eq!(reports.recv().unwrap(), 2);
        assert_eq!(workers.shared.state().workers, 2);
    }
}
