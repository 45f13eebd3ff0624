//! What a node did lately: figures of the last minutes, and the last events that an operator wants to see.
//!
//! Figures change with an input alone. So what holds before an input has held at the end of every step of time since the
//! input before it, and nothing has to wake up for a step to be noted.

use alloc::collections::VecDeque;
use alloc::string::{String, ToString as _};
use alloc::vec::Vec;
use core::mem::discriminant;
use core::time::Duration;

use serde_json::Value;

use crate::event::{Event, Level};
use crate::status::{Samples, Told};
use crate::text::printable;
use crate::time::{Now, iso8601};

/// One step of time.
pub(crate) const STEP: Duration = Duration::from_secs(2);

/// Steps that are remembered: five minutes.
pub(crate) const MAX_SAMPLES: usize = 150;

/// Events that are remembered.
pub(crate) const MAX_EVENTS: usize = 64;

/// The figures at one moment: what only grows, and what is.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Figures {
    pub(crate) requests: u64,
    pub(crate) failed: u64,
    /// Bytes of response bodies passed on.
    pub(crate) bytes: u64,
    /// Bytes through the tunnel, both ways.
    pub(crate) tunnel_bytes: u64,
    /// Requests that ended, and how long they took together.
    pub(crate) ended: u64,
    pub(crate) took: Duration,
    pub(crate) active_requests: usize,
    pub(crate) active_streams: usize,
}

/// What happened in one step, and how it stood at its end.
#[derive(Clone, Copy, Debug, Default)]
struct Sample {
    requests: u32,
    failed: u32,
    bytes: u64,
    tunnel_bytes: u64,
    ended: u32,
    took_us: u64,
    slowest_us: u64,
    active_requests: u32,
    active_streams: u32,
}

/// An event as it was heard: put into words when somebody asks.
#[derive(Debug)]
struct Heard {
    event: Event,
    /// Of the last one.
    unix: Duration,
    count: u64,
}

/// The history of one node.
#[derive(Debug)]
pub(crate) struct History {
    started: Duration,
    /// Steps that are over.
    steps: u64,
    /// At the end of the last of them.
    before: Figures,
    samples: VecDeque<Sample>,
    events: VecDeque<Heard>,
    warnings: u64,
    errors: u64,
}

impl History {
    pub(crate) fn new(now: Now) -> Self {
        Self {
            started: now.monotonic,
            steps: 0,
            before: Figures::default(),
            samples: VecDeque::new(),
            events: VecDeque::new(),
            warnings: 0,
            errors: 0,
        }
    }

    /// Whether a step is over that was not noted.
    pub(crate) fn is_due(&self, now: Now) -> bool {
        self.steps_until(now) > self.steps
    }

    fn steps_until(&self, now: Now) -> u64 {
        now.monotonic.saturating_sub(self.started).as_secs() / STEP.as_secs()
    }

    /// Notes the steps that are over. The figures are those before the input that comes now, `slowest` is the longest that
    /// a request took since the last call.
    pub(crate) fn note(&mut self, now: Now, figures: Figures, slowest: Duration) {
        let over = self.steps_until(now).saturating_sub(self.steps);
        if over == 0 {
            return;
        }
        self.steps += over;
        let before = core::mem::replace(&mut self.before, figures);
        let count = |after: u64, before: u64| narrow(after.saturating_sub(before));
        // Whatever happened did so in the first of them.
        let first = Sample {
            requests: count(figures.requests, before.requests),
            failed: count(figures.failed, before.failed),
            bytes: figures.bytes.saturating_sub(before.bytes),
            tunnel_bytes: figures.tunnel_bytes.saturating_sub(before.tunnel_bytes),
            ended: count(figures.ended, before.ended),
            took_us: micros(figures.took.saturating_sub(before.took)),
            slowest_us: micros(slowest),
            active_requests: narrow(figures.active_requests as u64),
            active_streams: narrow(figures.active_streams as u64),
        };
        let quiet = Sample {
            active_requests: first.active_requests,
            active_streams: first.active_streams,
            ..Sample::default()
        };
        self.push(first);
        let most = MAX_SAMPLES as u64;
        for _ in 1..over.min(most + 1) {
            self.push(quiet);
        }
    }

    fn push(&mut self, sample: Sample) {
        if self.samples.len() == MAX_SAMPLES {
            self.samples.pop_front();
        }
        self.samples.push_back(sample);
    }

    /// Remembers an event, if it is louder than routine traffic. One of the kind of the last takes its place.
    pub(crate) fn tell(&mut self, now: Now, event: &Event) {
        match event.level() {
            Level::Debug => return,
            Level::Info => {}
            Level::Warn => self.warnings += 1,
            Level::Error => self.errors += 1,
        }
        let mut heard = Heard { event: event.clone(), unix: now.unix, count: 1 };
        match self.events.back_mut() {
            Some(last) if discriminant(&last.event) == discriminant(event) => {
                heard.count += last.count;
                *last = heard;
            }
            _ => {
                if self.events.len() == MAX_EVENTS {
                    self.events.pop_front();
                }
                self.events.push_back(heard);
            }
        }
    }

    /// The last events, the latest at the end.
    pub(crate) fn events(&self) -> Vec<Told> {
        let told = |heard: &Heard| Told {
            at: iso8601(heard.unix),
            level: heard.event.level(),
            scope: heard.event.scope().to_string(),
            event: name(&heard.event),
            text: printable(&heard.event.to_string()),
            count: heard.count,
        };
        self.events.iter().map(told).collect()
    }

    /// Warnings and errors since the start.
    pub(crate) const fn alarms(&self) -> (u64, u64) {
        (self.warnings, self.errors)
    }

    /// How many events and steps are remembered.
    pub(crate) fn held(&self) -> (usize, usize) {
        (self.events.len(), self.samples.len())
    }

    /// The last steps, the latest at the end.
    pub(crate) fn samples(&self) -> Samples {
        let each = |of: fn(&Sample) -> u64| self.samples.iter().map(of).collect::<Vec<u64>>();
        Samples {
            step_seconds: STEP.as_secs(),
            steps: self.steps,
            requests: each(|sample| sample.requests.into()),
            failed: each(|sample| sample.failed.into()),
            bytes: each(|sample| sample.bytes),
            tunnel_bytes: each(|sample| sample.tunnel_bytes),
            ended: each(|sample| sample.ended.into()),
            took_us: each(|sample| sample.took_us),
            slowest_us: each(|sample| sample.slowest_us),
            active_requests: each(|sample| sample.active_requests.into()),
            active_streams: each(|sample| sample.active_streams.into()),
        }
    }
}

/// As the log has it.
fn name(event: &Event) -> String {
    let value = serde_json::to_value(event).unwrap_or_default();
    value.get("event").and_then(Value::as_str).unwrap_or_default().to_string()
}

fn narrow(count: u64) -> u32 {
    u32::try_from(count).unwrap_or(u32::MAX)
}

fn micros(took: Duration) -> u64 {
    u64::try_from(took.as_micros()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: u64) -> Now {
        let monotonic = Duration::from_secs(100 + seconds);
        Now { monotonic, unix: Duration::from_secs(1_800_000_000 + seconds) }
    }

    fn figures(requests: u64, active: usize) -> Figures {
        Figures { requests, active_requests: active, ..Figures::default() }
    }

    #[test]
    fn what_happened_is_in_the_step_after_the_last_input_and_what_stands_in_all_since() {
        let mut history = History::new(at(0));
        assert!(!history.is_due(at(1)));
        history.note(at(1), figures(9, 9), Duration::ZERO);
        assert!(history.samples().requests.is_empty(), "the step is not over");
        assert!(history.is_due(at(2)));
        history.note(at(2), figures(3, 1), Duration::from_millis(7));
        history.note(at(9), figures(5, 2), Duration::ZERO);
        let samples = history.samples();
        assert_eq!(samples.requests, [3, 2, 0, 0]);
        assert_eq!(samples.active_requests, [1, 2, 2, 2]);
        assert_eq!(samples.slowest_us, [7000, 0, 0, 0]);
        assert_eq!(samples.steps, 4);
        assert!(!history.is_due(at(9)), "time that stands still has no steps");
        assert!(!history.is_due(at(0)));
    }

    #[test]
    fn a_long_sleep_costs_no_more_than_what_is_remembered() {
        let mut history = History::new(at(0));
        history.note(at(u64::MAX / 4), figures(3, 1), Duration::ZERO);
        assert_eq!(history.held(), (0, MAX_SAMPLES));
        assert_eq!(history.samples().requests.iter().sum::<u64>(), 0, "that was long ago");
        history.note(at(u64::MAX / 4 + 2), figures(7, 1), Duration::ZERO);
        assert_eq!(history.samples().requests.last(), Some(&4));
    }

    #[test]
    fn events_of_one_kind_in_a_row_are_one_and_there_are_never_too_many() {
        let mut history = History::new(at(0));
        let failed = |reason: &str| Event::ProxyFailed { origin: None, reason: reason.to_string() };
        history.tell(at(1), &failed("one"));
        history.tell(at(2), &failed("two\u{1b}[2J"));
        history.tell(at(3), &Event::Heartbeat { active_requests: 0, active_streams: 0 });
        let events = history.events();
        assert_eq!(events.len(), 1);
        assert_eq!((events[0].count, events[0].event.as_str()), (2, "proxy_failed"));
        assert_eq!(events[0].text, "proxying: two [2J");
        assert_eq!(events[0].at, iso8601(at(2).unix));
        for n in 0..MAX_EVENTS {
            history.tell(at(4), &Event::Stopping);
            let event = Event::Connecting { url: "ws://s/".into(), attempt: u32::try_from(n).unwrap() };
            history.tell(at(4), &event);
        }
        assert_eq!(history.held().0, MAX_EVENTS);
        assert_eq!(history.alarms(), (2, 0));
    }
}
