//! The effects that both shells carry out in the same way: files and measurements.

use consensus_core::io::{Effect, EffectResult, Fetch, Measurement, StateFile};

use crate::log::Log;
use crate::measure;
use crate::state_dir::StateDir;

/// An effect, sorted by who carries it out.
#[derive(Debug)]
pub enum Work {
    /// The runtime's own: it owns the sockets.
    Fetch(Fetch),
    /// For [`perform_blocking`], on a thread that may block.
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
}

impl From<Effect> for Work {
    fn from(effect: Effect) -> Self {
        match effect {
            Effect::Fetch(fetch) => Self::Fetch(fetch),
            Effect::Measure(measurement) => Self::Blocking(BlockingWork::Measure(measurement)),
            Effect::Write { file, data } => Self::Blocking(BlockingWork::Write { file, data }),
            Effect::Remove { file } => Self::Blocking(BlockingWork::Remove { file }),
        }
    }
}

/// Carries out one effect, start to end. To be called on a worker thread: a measurement takes seconds, and its
/// progress goes to `log`.
///
/// `turn` makes the given number of turns of the shell's own scheduler, one after the other (post a task, run it)
/// and returns when the last has run: the operation of [`Measurement::EventLoop`]. `cancelled` is asked between the
/// steps of a measurement; a file is written whatever it says.
pub fn perform_blocking(
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
