//! When the steps of a fetch are late, and what is said then.

use std::time::{Duration, Instant};

use consensus_core::io::{Bounds, FetchError, FetchErrorKind};

/// The times of one fetch.
#[derive(Clone, Copy, Debug)]
pub struct Times {
    bounds: Bounds,
    whole: Instant,
    first_byte: Instant,
}

impl Times {
    /// Of a fetch that was asked for at that time.
    #[must_use]
    pub fn new(bounds: Bounds, asked: Instant) -> Self {
        let whole = asked + bounds.whole;
        Self { bounds, whole, first_byte: whole }
    }

    /// When there must be a connection, if the look-up begins now.
    #[must_use]
    pub fn connect(&self, now: Instant) -> Instant {
        self.whole.min(now + self.bounds.connect)
    }

    /// How long that is at most, for telling.
    #[must_use]
    pub fn connect_time(&self) -> Duration {
        self.bounds.connect.min(self.bounds.whole)
    }

    /// What to say when there is none, however far it came.
    #[must_use]
    pub fn unconnected(&self) -> FetchError {
        let detail = format!("no connection within {}", seconds(self.bounds.whole));
        FetchError { kind: FetchErrorKind::Timeout, detail }
    }

    /// There is a connection.
    pub fn connected(&mut self, now: Instant) {
        self.first_byte = self.whole.min(now + self.bounds.first_byte);
    }

    /// When the next step of the answer is late: its first byte, or the rest of it.
    #[must_use]
    pub fn answer(&self, has_begun: bool) -> Instant {
        if has_begun { self.whole } else { self.first_byte }
    }

    /// What to say when it is.
    #[must_use]
    pub fn late(&self, has_begun: bool) -> FetchError {
        let (what, time) = match has_begun {
            true => ("the answer was not complete", self.bounds.whole),
            false if self.first_byte < self.whole => ("the target did not answer", self.bounds.first_byte),
            false => ("the target did not answer", self.bounds.whole),
        };
        FetchError { kind: FetchErrorKind::Timeout, detail: format!("{what} within {}", seconds(time)) }
    }
}

/// A time as people say it.
pub(crate) fn seconds(time: Duration) -> String {
    format!("{} s", time.as_secs_f64())
}
