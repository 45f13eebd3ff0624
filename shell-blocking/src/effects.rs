//! The effects that both shells carry out in the same way: files and measurements.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use consensus_core::io::{Effect, EffectResult, Fetch, Measurement, StateFile};

use crate::log::Log;
use crate::measure;
use crate::runtime_api::Environment;
use crate::state_dir::StateDir;
use crate::updates;
use crate::workers::Workers;

/// An effect, sorted by who carries it out.
#[derive(Debug)]
pub enum Work {
    /// The runtime's own: it owns the sockets.
    Fetch(Fetch),
    /// For [`Performers`]: it needs no runtime.
    Blocking(BlockingWork),
}

/// An effect that needs no runtime.
#[derive(Debug, Clone, PartialEq)]
pub enum BlockingWork {
    /// Of [`Effect::Measure`]: seconds, on one core.
    Measure(Measurement),
    /// Of [`Effect::Write`]: milliseconds, for the disk to be done.
    Write {
        /// Which.
        file: StateFile,
        /// The new content.
        data: Vec<u8>,
    },
    /// Of [`Effect::Remove`].
    Remove {
        /// Which.
        file: StateFile,
    },
    /// Of the effects of updates: minutes, for the network and the operator's command.
    Update(updates::Work),
}

impl From<Effect> for Work {
    fn from(effect: Effect) -> Self {
        match effect {
            Effect::Fetch(fetch) => Self::Fetch(fetch),
            Effect::Measure(measurement) => Self::Blocking(BlockingWork::Measure(measurement)),
            Effect::Write { file, data } => Self::Blocking(BlockingWork::Write { file, data }),
            Effect::Remove { file } => Self::Blocking(BlockingWork::Remove { file }),
            Effect::Download(manifest) => {
                Self::Blocking(BlockingWork::Update(updates::Work::Download(manifest)))
            }
            Effect::Inspect { artifact } => {
                Self::Blocking(BlockingWork::Update(updates::Work::Inspect { artifact }))
            }
            Effect::Install(install) => Self::Blocking(BlockingWork::Update(updates::Work::Install(install))),
            Effect::ConfirmRelease => Self::Blocking(BlockingWork::Update(updates::Work::Confirm)),
            Effect::AcknowledgeRollback { is_excused } => {
                Self::Blocking(BlockingWork::Update(updates::Work::Acknowledge { is_excused }))
            }
        }
    }
}

/// Threads for effects: one for files and one for measurements, so that files are written in order and measurements do
/// not disturb one another; and one for updates, so that a download that was cancelled ends before the next begins.
/// They end when they have been idle.
#[derive(Debug)]
pub struct Performers {
    writing: Workers,
    measuring: Workers,
    updating: Workers,
}

impl Default for Performers {
    fn default() -> Self {
        Self {
            writing: Workers::new("files", 1),
            measuring: Workers::new("measure", 1),
            updating: Workers::new("update", 1),
        }
    }
}

impl Performers {
    /// Has an effect carried out. `done` gets what comes of it, on another thread; `turn` and `cancelled` are those of the effect.
    ///
    /// # Errors
    /// What comes of it at once, where the system gives no thread.
    pub fn begin(
        &self,
        work: BlockingWork,
        environment: &Environment,
        cancelled: Arc<AtomicBool>,
        mut turn: impl FnMut(u64) + Send + 'static,
        done: impl FnOnce(EffectResult) + Send + 'static,
    ) -> Result<(), Box<EffectResult>> {
        let no_thread = || "the system gives no thread".to_owned();
        let (workers, failed) = match &work {
            BlockingWork::Measure(_) => (&self.measuring, EffectResult::Measured(Err(no_thread()))),
            BlockingWork::Write { .. } | BlockingWork::Remove { .. } => {
                (&self.writing, EffectResult::Written(Err(no_thread())))
            }
            // A release must not lose its probation to a long download.
            BlockingWork::Update(work @ (updates::Work::Confirm | updates::Work::Acknowledge { .. })) => {
                (&self.writing, work.failed(no_thread()))
            }
            BlockingWork::Update(work) => (&self.updating, work.failed(no_thread())),
        };
        if let BlockingWork::Update(work) = work {
            let environment = environment.clone();
            let job = move || done(updates::perform(work, &environment, &cancelled));
            return workers.submit(job).map_err(|_| Box::new(failed));
        }
        let (state_dir, log) = (environment.state_dir.clone(), environment.log.clone());
        let job = move || {
            let is_cancelled = || cancelled.load(Ordering::Relaxed);
            done(perform_blocking(work, &state_dir, &log, &mut turn, &is_cancelled));
        };
        workers.submit(job).map_err(|_| Box::new(failed))
    }
}

/// Carries out one effect, start to end. To be called on a worker thread: a measurement takes seconds, and its
/// progress goes to `log`.
///
/// `turn` makes the given number of turns of the shell's own scheduler, one after the other (post a task, run it)
/// and returns when the last has run: the operation of [`Measurement::EventLoop`]. `cancelled` is asked between the
/// steps of a measurement; a file is written whatever it says.
fn perform_blocking(
    work: BlockingWork,
    state: &StateDir,
    log: &Log,
    turn: &mut dyn FnMut(u64),
    cancelled: &dyn Fn() -> bool,
) -> EffectResult {
    match work {
        BlockingWork::Measure(measurement) => {
            let action = measure::action(measurement);
            let report = measure::measure(
                measurement,
                turn,
                &mut |fraction| log.progress(action, fraction),
                &mut |node_rps| log.window(node_rps),
                cancelled,
            );
            EffectResult::Measured(report)
        }
        BlockingWork::Write { file, data } => {
            EffectResult::Written(state.write(file, &data).map_err(|error| error.to_string()))
        }
        BlockingWork::Remove { file } => {
            EffectResult::Written(state.remove(file).map_err(|error| error.to_string()))
        }
        BlockingWork::Update(work) => work.failed("not here".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::log::Format;
    use crate::state_dir::tests::Scratch;
    use consensus_core::bench::report::Report;
    use consensus_core::event::Level;

    fn perform(state: &StateDir, effect: Effect) -> EffectResult {
        let log = Log::to_writer(Box::new(std::io::sink()), Format::Json, Level::Error);
        match Work::from(effect) {
            Work::Blocking(work) => perform_blocking(work, state, &log, &mut |_| {}, &|| false),
            Work::Fetch(fetch) => panic!("{fetch:?}"),
        }
    }

    #[test]
    fn files_are_written_and_removed_and_a_failure_names_the_file() {
        let scratch = Scratch::new();
        let state = StateDir::open(scratch.path()).unwrap();
        let file = StateFile::JoinAuth;
        let written = perform(&state, Effect::Write { file, data: b"{}".to_vec() });
        assert_eq!(written, EffectResult::Written(Ok(())));
        assert!(state.path(file).exists());
        assert_eq!(perform(&state, Effect::Remove { file }), EffectResult::Written(Ok(())));
        assert!(!state.path(file).exists());
        std::fs::create_dir(state.path(file)).unwrap();
        let failed = perform(&state, Effect::Write { file, data: b"{}".to_vec() });
        let EffectResult::Written(Err(text)) = failed else { panic!("{failed:?}") };
        assert!(text.contains("join-auth.json"), "{text}");
    }

    #[test]
    fn the_machine_is_described() {
        let scratch = Scratch::new();
        let result = perform(&StateDir::at(scratch.path()), Effect::Measure(Measurement::System));
        assert!(matches!(result, EffectResult::Measured(Ok(Report::System(_)))), "{result:?}");
    }
}
